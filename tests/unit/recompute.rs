//! Recomputation: less is kept, and every number stays.

use super::support::fixture;
use super::synth::{Shape, decoder, patterned};
use crate::unit::training_graph;
use onnx_graft::adapters::AdapterStore;
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::ir::{DType, Fact};
use onnx_graft::rewrite::Pipeline;
use onnx_graft::rewrite::passes::gradient::Outputs;
use onnx_graft::rewrite::passes::recompute::Recompute;
use onnx_graft::rewrite::pipelines::Mode;
use onnx_graft::runtime::{CompileOptions, Feeds, TrainStep, Value, io};
use onnx_graft::select::Interface;
use onnx_graft::train::parse_loss;
use onnx_graft::{Attach, api};

/// The training graph of an adapted fixture, and its trainable parameters.
fn graph(arch: &str, file: &str, adapter: &str, loss: &str, mode: Mode) -> (Verified, Vec<String>) {
    let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
    let adapter = api::adapter(adapter).unwrap();
    let base = api::open(fixture(arch).join(file)).unwrap();
    let model = Attach::to(base)
        .interface(&interface)
        .adapters(vec![adapter])
        .seed(7)
        .training(true)
        .run()
        .unwrap()
        .model;
    trained(model, loss, mode)
}

fn trained(model: Verified, loss: &str, mode: Mode) -> (Verified, Vec<String>) {
    let store = AdapterStore::from_model(model.model());
    let names: Vec<String> = store.trainable();
    let loss = parse_loss(loss, onnx_graft::rewrite::passes::loss::Divisor::Labels);
    (
        training_graph(model, &loss, &names, Outputs::Drop, mode).unwrap(),
        names,
    )
}

fn recomputed(graph: &Verified, names: &[String]) -> Verified {
    let pass = Recompute {
        loss: contract::LOSS.to_owned(),
        wrt: names.to_vec(),
    };
    Pipeline::new().with(pass).run(graph.clone()).unwrap().model
}

/// How many tensors the backward pass gets from the forward pass.
fn kept(graph: &Verified) -> usize {
    let g = &graph.model().graph;
    let order = g.order().unwrap();
    let end = g.producer(g.find(contract::LOSS).unwrap()).unwrap().0;
    let end = order.iter().position(|n| *n == end).unwrap();
    let (before, after) = order.split_at(end + 1);
    let late: std::collections::BTreeSet<_> = after.iter().copied().collect();
    before
        .iter()
        .flat_map(|&n| g.node_outputs(n))
        .flatten()
        .filter(|&v| {
            let fact = graph.fact(v);
            // Matrices are parameters, turned over.
            fact.and_then(|f| f.dtype).is_some_and(DType::is_float)
                && fact.and_then(Fact::rank).is_none_or(|r| r > 2)
        })
        .filter(|&v| {
            g.value_readers(v)
                .any(|n| late.contains(&n) && !g.node(n).op.is_onnx("Shape"))
        })
        .count()
}

/// Loss and gradients, with what dropout draws at a seed.
fn numbers(graph: &Verified, names: &[String], feeds: &Feeds) -> (f32, Vec<Vec<f32>>) {
    let mut step = TrainStep::compile(graph, names, &CompileOptions::default()).unwrap();
    // Initial values would leave half of the gradients zero.
    for (i, p) in step.params_mut().values_mut().enumerate() {
        for (j, x) in p.value.iter_mut().enumerate() {
            *x += 0.05 * (((i * 37 + j * 101) % 23) as f32 / 11.0 - 1.0);
        }
    }
    let feeds = feeds.clone().for_plan(step.plan());
    let (loss, grads) = step.evaluate(&feeds, Some(11)).unwrap();
    (loss, grads.into_values().collect())
}

#[track_caller]
fn check(arch: &str, file: &str, adapter: &str, loss: &str, labels: Option<Value>) {
    let mut feeds = io::read(&fixture(arch).join("inputs.safetensors"))
        .unwrap()
        .plain();
    if let Some(labels) = labels {
        feeds.insert("labels", labels);
    }
    for mode in [Mode::Portable, Mode::Native] {
        let what = format!("{arch} {file} {adapter} {mode:?}");
        let (plain, names) = graph(arch, file, adapter, loss, mode);
        let less = recomputed(&plain, &names);
        let (before, after) = (kept(&plain), kept(&less));
        assert!(
            after < before,
            "{what}: {after} of {before} values are kept"
        );
        let (want, found) = (
            numbers(&plain, &names, &feeds),
            numbers(&less, &names, &feeds),
        );
        assert!(want.1.iter().flatten().any(|x| *x != 0.0), "{what}");
        assert_eq!(want, found, "{what}");
    }
}

#[test]
fn decoders() {
    for file in ["model.onnx", "model.torchscript.onnx"] {
        check(
            "qwen3",
            file,
            "seq_bn[reduction_factor=4]",
            "causal-lm",
            None,
        );
        check("llama", file, "lora[r=4,alpha=8]", "causal-lm", None);
        check(
            "gpt2",
            file,
            "double_seq_bn[reduction_factor=4]",
            "causal-lm",
            None,
        );
    }
    check("llama", "model.onnx", "prefix_tuning", "causal-lm", None);
    check("qwen3", "model.onnx", "loreft[r=2]", "causal-lm", None);
}

#[test]
fn a_dropout_draws_the_same_again() {
    check(
        "qwen3",
        "model.onnx",
        "lora[r=4,alpha=8,dropout=0.5,attn_matrices=['q','k','v'],output_lora=True]",
        "causal-lm",
        None,
    );
    check(
        "qwen3",
        "model.onnx",
        "seq_bn[reduction_factor=4,dropout=0.5]",
        "causal-lm",
        None,
    );
}

#[test]
fn an_encoder_and_a_model_of_two_stacks() {
    let labels = |arch: &str, like: &str| {
        let path = fixture(arch).join("inputs.safetensors");
        let dims = io::read(&path).unwrap().plain().0[like].dims().to_vec();
        let n = dims.iter().product::<usize>() as i64;
        Value::from_i64(&dims, (0..n).map(|i| i % 16).collect()).unwrap()
    };
    let lora = "lora[r=4,alpha=8]";
    let own = labels("bert", "input_ids");
    check("bert", "model.onnx", lora, "seq2seq", Some(own));
    let own = labels("t5", "decoder_input_ids");
    check("t5", "model.onnx", lora, "seq2seq", Some(own));
}

/// Of a layer more, only what it hands on is kept.
#[test]
fn depth_costs_little() {
    let kept = |layers: usize, recomputes: bool| {
        let model = decoder(Shape::tiny(layers), &mut patterned);
        let interface = Interface::resolve("qwen3").unwrap();
        let adapter = api::adapter("lora[r=4]|par_bn").unwrap();
        let base = Verified::check(model).unwrap();
        let adapted = Attach::to(base)
            .interface(&interface)
            .adapters(vec![adapter])
            .seed(7)
            .training(true)
            .run()
            .unwrap();
        let (graph, names) = trained(adapted.model, "causal-lm", Mode::Native);
        kept(&if recomputes {
            recomputed(&graph, &names)
        } else {
            graph
        })
    };
    let more = |recomputes| kept(12, recomputes) - kept(4, recomputes);
    // The residual stream behind the attention and behind the MLP of each.
    assert_eq!(more(true), 8 * 2);
    assert!(more(false) > 8 * 12);
}

/// Backward passes ask for shapes of what the forward pass has long consumed; they are read at once.
#[test]
fn nothing_is_kept_for_its_shape() {
    for (arch, mode) in [
        ("qwen3", Mode::Native),
        ("qwen3", Mode::Portable),
        ("bert", Mode::Portable),
    ] {
        let (graph, _) = graph(arch, "model.onnx", "lora[r=4]|seq_bn", "seq2seq", mode);
        let g = &graph.model().graph;
        let order = g.order().unwrap();
        let place: std::collections::BTreeMap<_, _> =
            order.iter().enumerate().map(|(at, n)| (*n, at)).collect();
        assert!(order.iter().any(|n| g.node(*n).op.is_onnx("Shape")));
        for v in g.values() {
            let Some((made, _)) = g.producer(v) else {
                continue;
            };
            let readers: Vec<_> = g.value_readers(v).collect();
            let is_shape = |n: &_| g.node(*n).op.is_onnx("Shape");
            let last = readers.iter().max_by_key(|n| place[n]);
            if let Some(last) = last.filter(|n| is_shape(n)) {
                let apart = place[last] - place[&made];
                assert!(
                    apart <= readers.len() + 1,
                    "{arch} {mode:?}: {} for {apart} nodes",
                    g.name_of(v)
                );
            }
        }
    }
}
