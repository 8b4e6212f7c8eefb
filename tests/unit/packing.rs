//! Packing: examples that share a row are trained as if each had its own.

use super::support::fixture;
use crate::unit::training_graph;
use onnx_graft::adapters::AdapterStore;
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::rewrite::passes::gradient::Outputs;
use onnx_graft::rewrite::pipelines::{self, Mode};
use onnx_graft::rewrite::{Pass, PassCx, PassError, Pipeline, Uses};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, TrainStep, Value};
use onnx_graft::select::Interface;
use onnx_graft::train::{
    Batch, Collator, Example, IGNORE, PaddingSide, dataset_divisor, parse_loss,
};
use onnx_graft::{Attach, api};
use std::path::Path;

const MODES: [Mode; 2] = [Mode::Portable, Mode::Native];

fn examples() -> Vec<Example> {
    let ids = |seed: i64, n: i64| {
        (0..n)
            .map(|i| (seed * 31 + i * 17 + i * i) % 40)
            .collect::<Vec<i64>>()
    };
    let example = |seed, n| {
        let ids = ids(seed, n);
        let mut labels = ids.clone();
        for l in &mut labels {
            *l %= 16;
        }
        labels[..2].fill(IGNORE);
        Example::tokens(ids, labels)
    };
    vec![example(1, 5), example(2, 9), example(3, 4)]
}

fn batch(rows: &[Vec<Example>], packing: bool, side: PaddingSide) -> Batch {
    let collator = Collator {
        side,
        packing,
        ..Collator::default()
    };
    collator.collate(rows).unwrap()
}

struct Case {
    step: TrainStep,
}

impl Case {
    fn new(arch: &str, graph: &str, adapter: &str, packed: bool, mode: Mode) -> Case {
        let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
        let mut base = api::open(fixture(arch).join(graph)).unwrap();
        if packed {
            base = api::pack(base, &interface).unwrap();
        }
        let adapter = api::adapter(adapter).unwrap();
        let model = Attach::to(base)
            .interface(&interface)
            .adapters(vec![adapter])
            .seed(7)
            .training(true)
            .run()
            .unwrap()
            .model;
        let store = AdapterStore::from_model(model.model());
        let names: Vec<String> = store.trainable();
        // An encoder without a head: its hidden state stands for logits.
        let encoder = arch.ends_with("bert");
        let loss = if encoder { "seq2seq" } else { "causal-lm" };
        let loss = parse_loss(loss, dataset_divisor());
        let graph = training_graph(model, &loss, &names, Outputs::Drop, mode).unwrap();
        let mut step = TrainStep::compile(&graph, &names, &CompileOptions::default()).unwrap();
        // Initial values would leave half of the gradients zero.
        for (i, p) in step.params_mut().values_mut().enumerate() {
            for (j, x) in p.value.iter_mut().enumerate() {
                *x += 0.05 * (((i * 37 + j * 101) % 23) as f32 / 11.0 - 1.0);
            }
        }
        Case { step }
    }

    fn run(&self, b: &Batch) -> (f32, Vec<f32>) {
        let items = Value::from_f32(&[], vec![b.scored as f32]).unwrap();
        let feeds: Feeds = b
            .feeds
            .clone()
            .with(contract::NUM_ITEMS, items)
            .for_plan(self.step.plan());
        let (loss, grads) = self.step.evaluate(&feeds, None).unwrap();
        (loss, grads.into_values().flatten().collect())
    }
}

/// Loss and gradients of two batches, relative.
#[track_caller]
pub(super) fn same(a: &(f32, Vec<f32>), b: &(f32, Vec<f32>), what: &str) {
    // Sums in another order, in f32.
    assert!(
        (a.0 - b.0).abs() <= 1e-5 * a.0.abs(),
        "{what}: loss {} != {}",
        a.0,
        b.0
    );
    let scale = a.1.iter().fold(0f32, |m, x| m.max(x.abs()));
    assert!(scale > 1e-4, "{what}: gradients are not nothing");
    let apart =
        a.1.iter()
            .zip(&b.1)
            .fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    assert!(
        apart <= 1e-4 * scale,
        "{what}: gradients differ by {apart} of {scale}"
    );
}

#[track_caller]
fn packed_equals_padded(arch: &str, graph: &str, adapter: &str) {
    let padded: Vec<Vec<Example>> = examples().into_iter().map(|e| vec![e]).collect();
    let packed = [examples()];
    for mode in MODES {
        let what = format!("{arch} {graph} {adapter} {mode:?}");
        let plain = Case::new(arch, graph, adapter, false, mode).run(&batch(
            &padded,
            false,
            PaddingSide::Right,
        ));
        let case = Case::new(arch, graph, adapter, true, mode);
        same(
            &plain,
            &case.run(&batch(&packed, true, PaddingSide::Right)),
            &what,
        );
        let b = batch(&padded, true, PaddingSide::Right);
        same(&plain, &case.run(&b), &format!("{what}, one example a row"));
        // Two rows, of which one is padded.
        let mut two = examples();
        let last = two.pop().unwrap();
        let b = batch(&[two, vec![last]], true, PaddingSide::Right);
        same(&plain, &case.run(&b), &format!("{what}, two rows"));
    }
}

#[test]
fn qwen3() {
    packed_equals_padded("qwen3", "model.onnx", "lora[r=4]");
    packed_equals_padded(
        "qwen3",
        "model.torchscript.onnx",
        "seq_bn[reduction_factor=4]",
    );
}

#[test]
fn llama_with_prefixes() {
    packed_equals_padded(
        "llama",
        "model.onnx",
        "prefix_tuning[prefix_length=3,bottleneck_size=8]",
    );
    packed_equals_padded("llama", "model.torchscript.onnx", "lora[r=4]");
}

#[test]
fn gpt2_with_learned_positions() {
    packed_equals_padded("gpt2", "model.onnx", "seq_bn[reduction_factor=4]");
    packed_equals_padded(
        "gpt2",
        "model.torchscript.onnx",
        "par_bn[reduction_factor=4]",
    );
}

#[test]
fn bert_and_distilbert_see_both_sides() {
    for (arch, graph) in [
        ("bert", "model.onnx"),
        ("bert", "model.torchscript.onnx"),
        ("distilbert", "model.onnx"),
        ("distilbert", "model.torchscript.onnx"),
    ] {
        packed_equals_padded(arch, graph, "lora[r=4]");
    }
}

#[test]
fn reft_changes_the_ends_of_each_example() {
    // More positions than the shortest example has tokens.
    for ends in [
        "prefix_positions=2,suffix_positions=1",
        "prefix_positions=5,suffix_positions=6",
    ] {
        packed_equals_padded(
            "qwen3",
            "model.onnx",
            &format!("loreft[r=2,dropout=0.0,{ends}]"),
        );
    }
}

#[test]
fn a_merged_initializer_changes_nothing() {
    packed_equals_padded("qwen3_dedup", "model.onnx", "lora[r=4]");
}

/// Names of the operators of a graph.
fn operators(model: &Verified) -> Vec<String> {
    let g = &model.model().graph;
    g.nodes().map(|n| g.node(n).op.to_string()).collect()
}

#[test]
fn packed_attention_is_fused_as_well() {
    for (arch, graph) in [
        ("qwen3", "model.onnx"),
        ("qwen3", "model.torchscript.onnx"),
        ("llama", "model.onnx"),
        ("llama", "model.torchscript.onnx"),
        ("gpt2", "model.onnx"),
        ("bert", "model.onnx"),
    ] {
        let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
        let base = api::open(fixture(arch).join(graph)).unwrap();
        let packed = api::pack(base.clone(), &interface).unwrap();
        let fused = |m: Verified| {
            let ops = operators(&pipelines::inference(Mode::Native).run(m).unwrap().model);
            ops.iter().filter(|o| o.ends_with("Attention")).count()
        };
        let (plain, packed) = (fused(base), fused(packed));
        assert_eq!((plain, packed), (2, 2), "{arch} {graph}");
    }
}

#[test]
fn padding_on_the_left_changes_nothing_in_a_packed_graph() {
    let rows: Vec<Vec<Example>> = examples().into_iter().map(|e| vec![e]).collect();
    let case = Case::new("qwen3", "model.onnx", "lora[r=4]", true, Mode::Native);
    let right = case.run(&batch(&rows, true, PaddingSide::Right));
    let left = case.run(&batch(&rows, true, PaddingSide::Left));
    same(&right, &left, "sides");
}

#[test]
fn padding_on_the_left_trains_the_same() {
    // Also where the first token of an example has a label: what stands before it is padding, and does not predict it.
    let rows: Vec<Vec<Example>> = examples()
        .into_iter()
        .map(|e| vec![Example::tokens(e.input_ids.clone(), e.input_ids)])
        .collect();
    for (arch, graph) in [("qwen3", "model.onnx"), ("llama", "model.torchscript.onnx")] {
        let case = Case::new(arch, graph, "lora[r=4]", false, Mode::Native);
        let right = case.run(&batch(&rows, false, PaddingSide::Right));
        let left = case.run(&batch(&rows, false, PaddingSide::Left));
        same(&right, &left, arch);
    }
}

fn logits(model: &Verified, b: &Batch) -> Vec<f32> {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let feeds = b.feeds.clone().for_plan(&plan);
    plan.run(&feeds)
        .unwrap()
        .get("logits")
        .unwrap()
        .to_f32()
        .unwrap()
}

#[test]
fn one_segment_does_not_see_another() {
    let interface = Interface::read(&fixture("qwen3/interface.json")).unwrap();
    let base = api::open(fixture("qwen3/model.onnx")).unwrap();
    let model = api::pack(base, &interface).unwrap();
    let before = logits(&model, &batch(&[examples()], true, PaddingSide::Right));
    let mut changed = examples();
    changed[0].input_ids.fill(33);
    let after = logits(&model, &batch(&[changed], true, PaddingSide::Right));
    let vocab = before.len() / 18;
    assert_ne!(before[..5 * vocab], after[..5 * vocab]);
    // Hidden scores are exactly nothing after the softmax.
    assert_eq!(before[5 * vocab..], after[5 * vocab..]);
}

#[test]
fn what_cannot_be_kept_apart_is_refused() {
    for (arch, want) in [
        ("vit", "one sequence of tokens"),
        ("t5", "one sequence of tokens"),
    ] {
        let base = api::open(fixture(arch).join("model.onnx")).unwrap();
        let interface = Interface::builtin(arch)
            .unwrap_or_else(|| Interface::read(&fixture(arch).join("interface.json")))
            .unwrap();
        let e = api::pack(base, &interface).unwrap_err().to_string();
        assert!(e.contains(want) && e.contains("without packing"), "{e}");
    }
}

#[test]
fn what_treats_a_row_as_one_example_is_refused() {
    let setup = |text: &str| onnx_graft::adapters::Setup::parse(text).unwrap();
    for (specs, active, want) in [
        (
            vec!["a=seq_bn[reduction_factor=4,use_gating=true]"],
            "a",
            "mean over all positions",
        ),
        (
            vec!["a=prompt_tuning[prompt_length=2]"],
            "a",
            "the prompt in front",
        ),
        (
            vec!["a=lora[r=2]", "b=lora[r=2]"],
            "MultiTask(a, b)",
            "one task for each row",
        ),
    ] {
        let interface = Interface::read(&fixture("qwen3/interface.json")).unwrap();
        let base = api::open(fixture("qwen3/model.onnx")).unwrap();
        let base = api::pack(base, &interface).unwrap();
        let adapters: Vec<_> = specs.iter().map(|s| api::adapter(s).unwrap()).collect();
        let e = Attach::to(base)
            .interface(&interface)
            .adapters(adapters)
            .active(setup(active))
            .seed(7)
            .training(true)
            .run()
            .unwrap_err();
        let e = e.to_string();
        assert!(e.contains(want) && e.contains("without packing"), "{e}");
    }
}

/// Counts positions as `RoBERTa` does: the running sum of the mask.
struct Summed;

impl Pass for Summed {
    fn name(&self) -> &'static str {
        "summed"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let old = g.find("slice_1").unwrap();
        let mask = g.find("attention_mask").unwrap();
        let mut patch = cx.patch("positions", g.producer(old).map(|(n, _)| n));
        let new = {
            let b = patch.builder();
            let sum = b.op("CumSum", &[mask.into(), b.int(1)], &[]);
            // Number 1 is that of padding.
            b.add(b.mul(sum, mask), b.int(1))
        };
        patch.redirect(old, new, Uses::All);
        cx.commit(patch)?;
        Ok(())
    }
}

#[test]
fn positions_that_are_sums_of_the_mask_start_again() {
    let interface = Interface::read(&fixture("distilbert/interface.json")).unwrap();
    let base = api::open(fixture("distilbert/model.onnx")).unwrap();
    let model = Pipeline::new().with(Summed).run(base).unwrap().model;
    let packed = api::pack(model.clone(), &interface).unwrap();
    let states = |model: &Verified, b: &Batch| {
        let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
        let feeds = b.feeds.clone().for_plan(&plan);
        let out = plan.run(&feeds).unwrap();
        out.get("last_hidden_state").unwrap().to_f32().unwrap()
    };
    let together = states(&packed, &batch(&[examples()], true, PaddingSide::Right));
    let mut alone = Vec::new();
    for e in examples() {
        alone.extend(states(
            &model,
            &batch(&[vec![e]], false, PaddingSide::Right),
        ));
    }
    let apart = together
        .iter()
        .zip(&alone)
        .fold(0f32, |m, (x, y)| m.max((x - y).abs()));
    // Sums in another order, of states of about 1.
    assert!(together.len() == alone.len() && apart < 1e-5, "{apart}");
}

/// Fused attention cores of a packed model.
fn cores(path: &Path) -> usize {
    let interface = Interface::read(&fixture("qwen3").join("interface.json")).unwrap();
    let packed = api::pack(api::open(path).unwrap(), &interface).unwrap();
    let graph = pipelines::inference(Mode::Native)
        .run(packed)
        .unwrap()
        .model;
    let g = &graph.model().graph;
    let core = |n: &_| &*g.node(*n).op.op_type == "Attention";
    g.nodes().filter(core).count()
}

/// Exporters name axes as they like; without fusion the probabilities of every layer would be kept.
#[test]
fn packed_attention_is_fused_whatever_the_axes_are_called() {
    let path = fixture("qwen3/model.onnx");
    assert_eq!(cores(&path), 2);
    let mut bytes = std::fs::read(path).unwrap();
    // `dim_param` with a name of the same length.
    let names: [(&[u8], &[u8]); 2] = [
        (b"\x12\x05batch", b"\x12\x05s4321"),
        (b"\x12\x08sequence", b"\x12\x08s5312345"),
    ];
    for (from, to) in names {
        for at in 0..bytes.len() - from.len() {
            if bytes[at..].starts_with(from) {
                bytes[at..at + to.len()].copy_from_slice(to);
            }
        }
    }
    let folder = tempfile::tempdir().unwrap();
    let renamed = folder.path().join("model.onnx");
    std::fs::write(&renamed, bytes).unwrap();
    assert_eq!(cores(&renamed), 2);
}
