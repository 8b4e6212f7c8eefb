//! Several children in one batch: heads of their own, losses, one child alone, layers that are skipped.

use super::support::fixture;
use onnx_graft::Attach;
use onnx_graft::adapters::Setup;
use onnx_graft::adapters::heads::{Head, HeadConfig, HeadType, Pooling};
use onnx_graft::api::{self, Adapted};
use onnx_graft::infer::Verified;
use onnx_graft::ir::{DType, Dim, TensorData, Type, contract};
use onnx_graft::rewrite::passes::channel::children;
use onnx_graft::rewrite::passes::gradient::Outputs as Keep;
use onnx_graft::rewrite::passes::loss::{Divisor, Loss, RowLoss};
use onnx_graft::rewrite::pipelines::{self, Mode};
use onnx_graft::runtime::value::Weight;
use onnx_graft::runtime::{CompileOptions, Feeds, Outputs, Plan, Value, io};
use onnx_graft::select::Interface;

const SPECS: [&str; 2] = ["a=lora[init_weights='bert',alpha=400]", "b=seq_bn"];

fn base(arch: &str) -> Attach {
    let model = api::open(fixture(arch).join("model.onnx")).unwrap();
    let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
    Attach::to(model).interface(&interface).seed(3)
}

fn attach(arch: &str, setup: &str) -> Adapted {
    let setup = Setup::parse(setup).unwrap();
    let adapters = SPECS.iter().map(|s| api::adapter(s).unwrap());
    let active = adapters.filter(|a| setup.names().contains(&&*a.name));
    base(arch).adapters(active).active(setup).run().unwrap()
}

fn head(name: &str, num_labels: usize, head_type: HeadType, pooling: Pooling) -> Head {
    let config = HeadConfig {
        num_labels: Some(num_labels),
        pooling: Some(pooling),
        dropout_prob: Some(0.0),
        ..HeadConfig::of(head_type)
    };
    Head::fresh(name, config)
}

fn inputs(arch: &str) -> Feeds {
    let data = io::read(&fixture(arch).join("inputs.safetensors")).unwrap();
    let mut feeds = Feeds::new();
    for (name, value) in data.0 {
        if let Some(name) = name.strip_prefix("input/") {
            feeds.insert(name, value);
        }
    }
    feeds
}

fn run(model: &Verified, feeds: &Feeds) -> Outputs {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    plan.run(&feeds.clone().for_plan(&plan)).unwrap()
}

fn floats(out: &Outputs, name: &str) -> Vec<f32> {
    out[name].to_f32().unwrap()
}

fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let off = a.iter().zip(b).map(|(x, y)| (x - y).abs());
    let off = off.fold(0.0, f32::max);
    assert!(off < 3e-5, "{what}: off by {off}");
}

/// Each adapter alone with its head, and the setup with both heads.
fn both(setup: &str, heads: &[Head; 2]) -> ([Verified; 2], Verified) {
    let alone = |name: &str, head: &Head| {
        let adapted = attach("bert", name);
        api::attach_head(adapted.model, head.clone(), 5, false).unwrap()
    };
    let each = [alone("a", &heads[0]), alone("b", &heads[1])];
    let adapted = attach("bert", setup);
    let block = adapted.setup.headed().cloned();
    let all = api::attach_heads(adapted.model, heads.to_vec(), block, 5, false).unwrap();
    (each, all)
}

fn pair(head_type: HeadType, pooling: Pooling) -> [Head; 2] {
    [
        head("a", 3, head_type, pooling),
        head("b", 2, head_type, pooling),
    ]
}

#[test]
fn each_child_has_a_head_and_outputs_of_its_own() {
    let feeds = inputs("bert");
    for pooling in [Pooling::First, Pooling::Last] {
        let heads = pair(HeadType::Classification, pooling);
        let (each, all) = both("Parallel(a, b)", &heads);
        let out = run(&all, &feeds);
        assert!(out.get("logits").is_none());
        for (name, own) in ["a", "b"].iter().zip(&each) {
            let want = floats(&run(own, &feeds), "logits");
            let what = format!("{name}, {pooling:?}");
            close(&floats(&out, &format!("logits.{name}")), &want, &what);
        }
        // The samples of each child alone.
        let (_, all) = both("BatchSplit(a, b, batch_sizes=[1, 2])", &heads);
        let out = run(&all, &feeds);
        let want = floats(&run(&each[0], &feeds), "logits");
        close(&floats(&out, "logits.a"), &want[..3], "the first sample");
        let want = floats(&run(&each[1], &feeds), "logits");
        close(&floats(&out, "logits.b"), &want[2..], "the others");
    }
    let heads = pair(HeadType::Tagging, Pooling::First);
    let (each, all) = both("Parallel(a, b)", &heads);
    let out = run(&all, &feeds);
    let want = floats(&run(&each[1], &feeds), "logits");
    close(&floats(&out, "logits.b"), &want, "tags");
}

#[test]
fn one_child_alone_is_its_adapter_alone() {
    let feeds = inputs("bert");
    let heads = pair(HeadType::Classification, Pooling::Last);
    let (each, all) = both("Parallel(a, b)", &heads);
    let found = children(&all).unwrap();
    assert_eq!(found.len(), 2);
    for ((name, model), own) in found.iter().zip(&each) {
        let (found, want) = (run(model, &feeds), run(own, &feeds));
        for output in ["logits", contract::LAST_HIDDEN_STATE] {
            let what = format!("{name}: {output}");
            close(&floats(&found, output), &floats(&want, output), &what);
        }
        let names = |m: &Verified| {
            let g = &m.model().graph;
            let mut names: Vec<_> = g.outputs().iter().map(|p| g.name_of(p.value)).collect();
            names.sort_unstable();
            names.into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(names(model), names(own));
        let classes = api::heads(model).unwrap();
        assert_eq!(classes.last().unwrap().name, *name);
    }
    // Prefixes and ReFT run on all samples of which each child keeps its own.
    for spec in [
        "prefix_tuning[flat=True]",
        "noreft[r=2]",
        "ia3[init_weights='bert']",
    ] {
        let adapters = ["a", "b"].map(|n| api::adapter(&format!("{n}={spec}")).unwrap());
        let with = |setup: &str, n: usize| {
            let setup = Setup::parse(setup).unwrap();
            let attach = base("qwen3").adapters(adapters[2 - n..].to_vec());
            attach.active(setup).run().unwrap().model
        };
        let (both, alone) = (with("Parallel(a, b)", 2), with("b", 1));
        let feeds = inputs("qwen3");
        let (_, child) = children(&both).unwrap().pop().unwrap();
        let found = floats(&run(&child, &feeds), "logits");
        close(&found, &floats(&run(&alone, &feeds), "logits"), spec);
    }
    assert!(children(&each[0]).unwrap().is_empty());
}

/// Loss and gradients of all trained parameters.
fn gradients(model: &Verified, loss: &Loss, feeds: &Feeds) -> (f32, Vec<(String, Vec<f32>)>) {
    let store = onnx_graft::adapters::AdapterStore::from_model(model.model());
    let wrt = store.trainable();
    let graph = pipelines::training(loss, &wrt, Keep::Drop, false, Mode::Native);
    let out = run(&graph.run(model.clone()).unwrap().model, feeds);
    let each = wrt
        .iter()
        .map(|n| (n.clone(), floats(&out, &contract::grad(n))));
    (floats(&out, contract::LOSS)[0], each.collect())
}

#[test]
fn the_loss_of_several_heads_is_the_sum_of_theirs() {
    let heads = || pair(HeadType::Classification, Pooling::Last);
    let loss = |divisor| Loss::Rows {
        kind: RowLoss::Classification,
        divisor,
        smoothing: 0.0,
    };
    let mut feeds = inputs("bert");
    let labels = |l: &[i64]| Value::from_i64(&[l.len()], l.to_vec()).unwrap();
    feeds.insert(contract::LABELS, labels(&[0, 1, 1]));
    feeds.insert(
        contract::NUM_ITEMS,
        Value::from_f32(&[], vec![3.0]).unwrap(),
    );
    for divisor in [Divisor::Labels, Divisor::Input] {
        let (each, all) = both("Parallel(a, b)", &heads());
        let (whole, found) = gradients(&all, &loss(divisor), &feeds);
        let (of_a, mut want) = gradients(&each[0], &loss(divisor), &feeds);
        let (of_b, more) = gradients(&each[1], &loss(divisor), &feeds);
        want.extend(more);
        assert!(
            (whole - of_a - of_b).abs() < 1e-5,
            "{whole}, {of_a} and {of_b}"
        );
        assert_eq!(found.len(), want.len());
        for (name, want) in want {
            let found = &found.iter().find(|(n, _)| *n == name).unwrap().1;
            close(found, &want, &name);
        }
    }
    // Of a `BatchSplit`, each head has the labels of its own samples.
    let (_, all) = both("BatchSplit(a, b, batch_sizes=[1, 2])", &heads());
    let (whole, _) = gradients(&all, &loss(Divisor::Labels), &feeds);
    let out = run(&all, &feeds);
    let entropy = |row: &[f32], label: usize| {
        let sum: f32 = row.iter().map(|x| x.exp()).sum();
        sum.ln() - row[label]
    };
    let (a, b) = (floats(&out, "logits.a"), floats(&out, "logits.b"));
    let want = entropy(&a, 0) + f32::midpoint(entropy(&b[..2], 1), entropy(&b[2..], 1));
    assert!((whole - want).abs() < 1e-5, "{whole} and {want}");
}

#[test]
fn an_input_skips_layers() {
    for (arch, spec) in [("bert", "double_seq_bn"), ("qwen3", SPECS[0])] {
        let output = ["logits", contract::LAST_HIDDEN_STATE][usize::from(arch == "bert")];
        let adapter = || api::adapter(spec).unwrap();
        let dropped = base(arch).adapters([adapter()]).skip_layers([1]);
        let dropped = dropped.run().unwrap().model;
        let whole = base(arch).adapters([adapter()]).run().unwrap().model;
        let chosen = base(arch).adapters([adapter()]).skip_layers_input(true);
        let chosen = chosen.run().unwrap().model;
        let mut feeds = inputs(arch);
        let all = floats(&run(&whole, &feeds), output);
        let found = floats(&run(&chosen, &feeds), output);
        close(&found, &all, "the input left out");
        let flags = |f: [bool; 2]| {
            let bytes = bytes::Bytes::from(f.map(u8::from).to_vec());
            let flags = TensorData::raw(DType::Bool, [2], bytes);
            Weight::new(&flags, &candle_core::Device::Cpu)
                .unwrap()
                .value()
                .unwrap()
        };
        feeds.insert(contract::SKIP_LAYERS, flags([false, true]));
        let want = floats(&run(&dropped, &feeds), output);
        close(
            &floats(&run(&chosen, &feeds), output),
            &want,
            "layer 1 skipped",
        );
        let bare = api::open(fixture(arch).join("model.onnx")).unwrap();
        feeds.insert(contract::SKIP_LAYERS, flags([true, true]));
        let want = floats(&run(&bare, &feeds), output);
        assert_eq!(
            floats(&run(&chosen, &feeds), output),
            want,
            "all skipped: bit by bit"
        );
        let back = api::strip(chosen, None).unwrap();
        assert!(api::diff(&back, &bare).is_empty());
    }
    let prefix = api::adapter("prefix_tuning").unwrap();
    let refused = base("qwen3")
        .adapters([prefix])
        .skip_layers_input(true)
        .run();
    let refused = refused.unwrap_err().to_string();
    assert!(refused.contains("--skip-layers"), "{refused}");
}

/// The model with a batch of this size, so that sizes that do not add up are found wherever they are.
fn sized(model: &Verified, rows: i64) -> Verified {
    let mut model = model.model().clone();
    for port in &mut model.graph.inputs {
        if let Some(dims) = port.ty.as_ref().and_then(Type::dims)
            && dims.len() > 1
            && let Some(dtype) = port.ty.as_ref().and_then(Type::dtype)
        {
            let mut dims = dims.to_vec();
            dims[0] = Dim::Known(rows);
            port.ty = Some(Type::tensor(dtype, dims));
        }
    }
    Verified::check(model).unwrap()
}

#[test]
fn blocks_in_blocks_give_each_sample_its_own_adapter() {
    let specs = [
        ("bert", "seq_bn"),
        ("bert", "lora[init_weights='bert',alpha=400]"),
        ("qwen3", "prefix_tuning[flat=True]"),
        ("qwen3", "noreft[r=2]"),
        ("qwen3", "ia3[init_weights='bert']"),
    ];
    for (arch, spec) in specs {
        let output = ["logits", contract::LAST_HIDDEN_STATE][usize::from(arch == "bert")];
        let feeds = inputs(arch);
        let run_as = |setup: &str| {
            let setup = Setup::parse(setup).unwrap();
            let names = ["a", "b", "c"]
                .into_iter()
                .filter(|n| setup.names().contains(n));
            let adapters = names.map(|n| api::adapter(&format!("{n}={spec}")).unwrap());
            let done = base(arch).adapters(adapters).active(setup).run().unwrap();
            sized(&done.model, feeds.0["input_ids"].dims()[0] as i64);
            floats(&run(&done.model, &feeds), output)
        };
        let alone = ["a", "b", "c"].map(run_as);
        let rows = feeds.0["input_ids"].dims()[0];
        let width = alone[0].len() / rows;
        let of = |who: usize, row: usize| &alone[who][row * width..(row + 1) * width];
        let rest = rows - 1;
        let nested = format!("BatchSplit(b, c, batch_sizes=[1, {rest}])");
        let found = run_as(&format!("Parallel(a, {nested})"));
        for row in 0..rows {
            let what = format!("{arch}, {spec}, row {row}");
            close(&found[row * width..(row + 1) * width], of(0, row), &what);
            let own = if row == 0 { 1 } else { 2 };
            let second = &found[(rows + row) * width..(rows + row + 1) * width];
            close(second, of(own, row), &what);
        }
        let inner = format!("BatchSplit(b, c, batch_sizes=[1, {}])", rest - 1);
        let found = run_as(&format!("BatchSplit(a, {inner}, batch_sizes=[1, {rest}])"));
        for row in 0..rows {
            let what = format!("{arch}, {spec}, two levels, row {row}");
            close(
                &found[row * width..(row + 1) * width],
                of(row.min(2), row),
                &what,
            );
        }
    }
}
