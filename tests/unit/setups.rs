//! Compositions: what each block computes, by laws that hold whatever the adapters are.

use super::support::fixture;
use crate::unit::training_graph;
use onnx_graft::Attach;
use onnx_graft::adapters::{Adapter, AdapterStore, Config, Setup, usually_trained};
use onnx_graft::api::{self, Adapted};
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::rewrite::passes::gradient::Outputs as Keep;
use onnx_graft::rewrite::passes::loss::Divisor;
use onnx_graft::rewrite::pipelines::Mode;
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value, io};
use onnx_graft::select::Interface;
use onnx_graft::train::{Schedule, Trainer, TrainingArguments, parse_loss};

fn base(arch: &str) -> Attach {
    let model = api::open(fixture(arch).join("model.onnx")).unwrap();
    let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
    Attach::to(model).interface(&interface).seed(3)
}

fn attach(arch: &str, specs: &[&str], setup: &str) -> onnx_graft::Result<Adapted> {
    let adapters = specs
        .iter()
        .map(|s| api::adapter(s))
        .collect::<Result<Vec<_>, _>>()?;
    base(arch)
        .adapters(adapters)
        .active(Setup::parse(setup).unwrap())
        .run()
}

/// An adapter with values that are no initial ones, the same for every name.
fn copies(arch: &str, spec: &str, names: &[&str]) -> Vec<Adapter> {
    let fresh = attach(arch, &[&format!("x={spec}")], "x").unwrap();
    let folder = fresh.folder("x", &fresh.store()).unwrap();
    names
        .iter()
        .map(|n| folder.clone().into_adapter(Some(n)))
        .collect()
}

fn inputs(arch: &str) -> Feeds {
    let mut feeds = Feeds::new();
    for (name, value) in io::read(&fixture(arch).join("inputs.safetensors"))
        .unwrap()
        .0
    {
        if let Some(name) = name.strip_prefix("input/") {
            feeds.insert(name, value);
        }
    }
    feeds
}

fn output(arch: &str) -> &'static str {
    if arch == "bert" {
        contract::LAST_HIDDEN_STATE
    } else {
        contract::LOGITS
    }
}

fn run(arch: &str, model: &Verified) -> Vec<f32> {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    plan.run(&inputs(arch)).unwrap()[output(arch)]
        .to_f32()
        .unwrap()
}

/// f32 sums in another order: differences of a few last digits, of values of about 3.
fn close(a: &[f32], b: &[f32], what: &str) {
    assert_eq!(a.len(), b.len(), "{what}");
    let off = a
        .iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, f32::max);
    assert!(off < 3e-5, "{what}: off by {off}");
}

fn differ(a: &[f32], b: &[f32], what: &str) {
    let off = a
        .iter()
        .zip(b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, f32::max);
    assert!(off > 1e-3, "{what}: nothing changes ({off})");
}

/// Adapters whose initial values do something.
const SPECS: [(&str, &str, &str); 7] = [
    ("bert", "seq_bn", "double_seq_bn"),
    ("qwen3", "seq_bn", "seq_bn"),
    ("qwen3", "scaled_par_bn[init_weights='bert']", "seq_bn"),
    (
        "qwen3",
        "lora[init_weights='bert',alpha=400]",
        "lora[init_weights='bert',alpha=300]",
    ),
    (
        "bert",
        "lora[init_weights='bert',alpha=400]",
        "lora[init_weights='bert',alpha=300]",
    ),
    (
        "bert",
        "ia3[init_weights='bert']",
        "ia3[init_weights='bert']",
    ),
    ("qwen3", "noreft[r=2]", "noreft[r=2]"),
];

#[test]
fn a_block_of_copies_is_the_adapter_also_in_front_of_others() {
    for (arch, spec, next) in SPECS {
        let with = |setup: &str| {
            let mut adapters = copies(arch, spec, &["a", "b", "d"]);
            adapters.extend(copies(arch, next, &["c"]));
            let setup = Setup::parse(setup).unwrap();
            adapters.retain(|a| setup.names().contains(&&*a.name));
            base(arch).adapters(adapters).active(setup).run().unwrap()
        };
        let stack = run(arch, &with("Stack(a, c)").model);
        differ(&stack, &run(arch, &with("c").model), spec);
        for setup in [
            "Stack(Average(a, b), c)",
            "Stack(Average(a, b, d, weights=[1, 2, 3]), c)",
            "Stack(BatchSplit(a, b, batch_sizes=[1, 2]), c)",
        ] {
            let found = run(arch, &with(setup).model);
            close(&found, &stack, &format!("{arch}, {spec}: {setup}"));
        }
        let parallel = run(arch, &with("Stack(Parallel(a, b), c)").model);
        let twice = [stack.clone(), stack.clone()].concat();
        close(&parallel, &twice, &format!("{arch}, {spec}: Parallel"));
    }
}

#[test]
fn parallel_gives_what_each_child_gives() {
    let cases: [(&str, &[&str], &str, &[&str]); 5] = [
        (
            "qwen3",
            &["a=seq_bn", "b=lora[init_weights='bert',alpha=400]"],
            "Parallel(a, b)",
            &["a", "b"],
        ),
        (
            "bert",
            &[
                "a=double_seq_bn",
                "b=ia3[init_weights='bert']",
                "c=noreft[r=2]",
            ],
            "Parallel(a, Stack(b, c), c)",
            &["a", "Stack(b, c)", "c"],
        ),
        (
            "bert",
            &[
                "a=prefix_tuning_flat[prefix_length=2]",
                "b=prefix_tuning_flat[prefix_length=3]",
            ],
            "Parallel(a, b)",
            &["a", "b"],
        ),
        (
            "qwen3",
            &["a=seq_bn_inv", "b=seq_bn"],
            "Parallel(a, b)",
            &["a", "b"],
        ),
        (
            "gpt2",
            &[
                "a=lora[init_weights='bert',alpha=400]",
                "b=lora[init_weights='bert',alpha=100,r=4]",
            ],
            "Parallel(a, b)",
            &["a", "b"],
        ),
    ];
    for (arch, specs, setup, children) in cases {
        let found = run(arch, &attach(arch, specs, setup).unwrap().model);
        let each = children.iter().map(|child| {
            let named = |s: &&&str| Setup::parse(child).unwrap().names().contains(&&s[..1]);
            let own: Vec<&str> = specs.iter().filter(named).copied().collect();
            run(arch, &attach(arch, &own, child).unwrap().model)
        });
        let each: Vec<Vec<f32>> = each.collect();
        close(&found, &each.concat(), &format!("{arch}: {setup}"));
        differ(&each[0], &each[1], setup);
    }
}

fn gradients(adapted: &Adapted, feeds: &Feeds) -> (f32, Vec<(String, Vec<f32>)>) {
    let mut store = AdapterStore::from_model(adapted.model.model());
    if let Some(only) = usually_trained(adapted.model.model()).unwrap() {
        store.train_only(&only);
    }
    let names = store.trainable();
    let loss = parse_loss("causal-lm", Divisor::Labels);
    let graph = training_graph(
        adapted.model.clone(),
        &loss,
        &names,
        Keep::Drop,
        Mode::Portable,
    );
    let plan = Plan::compile(&graph.unwrap(), &CompileOptions::default()).unwrap();
    let out = plan.run(feeds).unwrap();
    let loss = out[contract::LOSS].to_f32().unwrap()[0];
    let each = names
        .iter()
        .map(|n| (n.clone(), out[&contract::grad(n)].to_f32().unwrap()));
    (loss, each.collect())
}

fn labelled(arch: &str) -> Feeds {
    let labels = io::read(&fixture(arch).join("inputs.safetensors"))
        .unwrap()
        .0;
    let labels: Value = labels.into_iter().find(|(n, _)| n == "labels").unwrap().1;
    let mut feeds = inputs(arch);
    feeds.insert(contract::LABELS, labels);
    feeds
}

#[test]
fn parallel_training_is_that_of_each_child() {
    let specs = ["a=seq_bn", "b=lora[init_weights='bert',alpha=400]"];
    let feeds = labelled("qwen3");
    let (loss, both) = gradients(&attach("qwen3", &specs, "Parallel(a, b)").unwrap(), &feeds);
    let (of_a, mut each) = gradients(&attach("qwen3", &specs[..1], "a").unwrap(), &feeds);
    let (of_b, more) = gradients(&attach("qwen3", &specs[1..], "b").unwrap(), &feeds);
    each.extend(more);
    assert!(
        (loss - of_a - of_b).abs() < 1e-5,
        "{loss}, {of_a} and {of_b}"
    );
    assert_eq!(both.len(), each.len());
    for (name, want) in each {
        let found = &both.iter().find(|(n, _)| *n == name).unwrap().1;
        close(found, &want, &name);
    }
}

#[test]
fn a_prompt_cannot_be_one_of_several() {
    let found = attach("qwen3", &["a=seq_bn", "b=prompt_tuning"], "Parallel(a, b)");
    let found = found.unwrap_err().to_string();
    assert!(found.contains("prompts make all samples longer"), "{found}");
}

#[test]
fn what_a_stack_leaves_out_is_said() {
    let run = |specs: &[&str], setup: &str| attach("qwen3", specs, setup).unwrap();
    let unheard = |a: &Adapted| {
        a.warnings
            .iter()
            .filter(|w| w.code == "stack-unheard")
            .count()
    };
    let found = run(&["lora", "prompt_tuning"], "Stack(lora, prompt_tuning)");
    assert_eq!(unheard(&found), 1);
    let found = run(&["lora", "prompt_tuning"], "Stack(prompt_tuning, lora)");
    assert_eq!(unheard(&found), 0);
}

#[test]
fn several_refts_act_one_behind_the_other() {
    let specs = ["a=noreft[r=2]", "b=noreft[r=2,prefix_positions=1]"];
    let both = run(
        "qwen3",
        &attach("qwen3", &specs, "Stack(a, b)").unwrap().model,
    );
    let first = attach("qwen3", &specs[..1], "a").unwrap();
    differ(&both, &run("qwen3", &first.model), "b");
    let second = Attach::to(first.model)
        .interface(&Interface::read(&fixture("qwen3").join("interface.json")).unwrap())
        .adapters([api::adapter(specs[1]).unwrap()])
        .seed(3)
        .run()
        .unwrap();
    close(&both, &run("qwen3", &second.model), "Stack(a, b)");
}

/// A fusion weighs its only adapter with 1. (Of parallel bottlenecks the library's fusion also adds the residual: `bert/native/fuse` and
/// the like hold what it computes.)
#[test]
fn a_fusion_of_one_adapter_is_the_adapter() {
    for (arch, spec) in [("bert", "seq_bn"), ("qwen3", "double_seq_bn")] {
        let alone = run(
            arch,
            &base(arch)
                .adapters(copies(arch, spec, &["a"]))
                .run()
                .unwrap()
                .model,
        );
        for config in ["static", "dynamic[value_initialized=True]"] {
            let mut adapters = copies(arch, spec, &["a"]);
            adapters.push(Adapter::fresh("a", Config::parse_fusion(config).unwrap()));
            let last = adapters.last_mut().unwrap();
            last.name = "f".into();
            let setup = Setup::parse("Fuse(a, name='f')").unwrap();
            let fused = base(arch).adapters(adapters).active(setup).run().unwrap();
            close(
                &run(arch, &fused.model),
                &alone,
                &format!("{arch}, {spec}, {config}"),
            );
        }
    }
}

#[test]
fn what_a_fusion_needs_is_said() {
    for (specs, setup, want) in [
        (
            &["a=lora", "b=lora"][..],
            "Fuse(a, b)",
            "`a,b` mixes bottlenecks behind attention and feed-forward blocks, and `a` or `b` has none",
        ),
        (
            &["a=seq_bn", "b=noreft"],
            "Fuse(a, b)",
            "`reft` stands here",
        ),
        (
            &["a=seq_bn", "b=seq_bn", "c=dora"],
            "Stack(Average(c, a), b)",
            "",
        ),
    ] {
        let found = attach("qwen3", specs, setup);
        match want {
            "" => assert!(found.is_ok(), "{setup}"),
            want => {
                let found = found.unwrap_err().to_string();
                assert!(found.contains(want), "{found}");
            }
        }
    }
    let mut adapters = copies("qwen3", "seq_bn", &["a", "b"]);
    adapters.push(Adapter::fresh(
        "x,y",
        Config::parse_fusion("static").unwrap(),
    ));
    let setup = Setup::parse("Fuse(a, b)").unwrap();
    let found = base("qwen3")
        .adapters(adapters)
        .active(setup)
        .run()
        .unwrap_err();
    let found = found.to_string();
    assert!(found.contains("no `Fuse` for the fusion `x,y`"), "{found}");
}

#[test]
fn the_fused_adapters_stay_as_they_are() {
    let specs = ["a=seq_bn", "b=seq_bn"];
    let adapted = attach("qwen3", &specs, "Fuse(a, b)").unwrap();
    let before = adapted.store();
    let args = |only: Option<Vec<String>>| TrainingArguments {
        learning_rate: 1e-2,
        max_steps: 2,
        lr_scheduler_type: Schedule::Constant,
        train_adapters: only,
        ..TrainingArguments::default()
    };
    let trained = |only: Option<&[&str]>| {
        let only = only.map(|o| o.iter().map(|&n| n.to_owned()).collect());
        let loss = parse_loss("causal-lm", Divisor::Labels);
        let options = CompileOptions::default();
        let model = adapted.model.clone();
        let mut trainer = Trainer::new(model, &loss, args(only), Mode::Native, &options).unwrap();
        trainer
            .train_on(&labelled("qwen3"), &mut |_| Ok(()))
            .unwrap();
        let after = trainer.store();
        let changed = |name: &str| {
            let (old, new) = (before.of(name), after.of(name));
            old.iter()
                .zip(new.iter())
                .any(|(o, n)| o.1.tensor.bytes() != n.1.tensor.bytes())
        };
        ["a", "b", "a,b"].map(changed)
    };
    assert_eq!(trained(None), [false, false, true]);
    assert_eq!(trained(Some(&["a", "a,b"])), [true, false, true]);
}

/// The regularisation's gradient is `2·0.01·(W − I)`, once in a step however many micro-batches it has, and where it is wanted.
#[test]
fn the_value_matrix_is_pulled_towards_the_identity() {
    let step = |config: &str| {
        let mut adapters = copies("qwen3", "seq_bn", &["a", "b"]);
        let mut fusion = Adapter::fresh("a,b", Config::parse_fusion(config).unwrap());
        fusion.route = adapters[0].route.clone();
        adapters.push(fusion);
        let setup = Setup::parse("Fuse(a, b)").unwrap();
        let adapted = base("qwen3")
            .adapters(adapters)
            .active(setup)
            .run()
            .unwrap();
        let args = TrainingArguments {
            learning_rate: 1.0,
            optim: serde_json::from_str("\"sgd\"").unwrap(),
            max_steps: 1,
            max_grad_norm: 0.0,
            lr_scheduler_type: Schedule::Constant,
            ..TrainingArguments::default()
        };
        let loss = parse_loss("causal-lm", Divisor::Labels);
        let options = CompileOptions::default();
        let before = adapted.store();
        let mut trainer = Trainer::new(adapted.model, &loss, args, Mode::Native, &options).unwrap();
        trainer
            .train_on(&labelled("qwen3"), &mut |_| Ok(()))
            .unwrap();
        let after = trainer.store();
        let name = "model.layers.0.output_adapters.adapter_fusion_layer.a,b.value.weight";
        let value = |s: &AdapterStore| s.get(name).unwrap().tensor.to_f32().unwrap();
        (value(&before), value(&after))
    };
    let free = "dynamic[value_initialized=False,regularization=False]";
    let (before, without) = step(free);
    let (same, with) = step("dynamic[value_initialized=False]");
    assert_eq!(before, same);
    let width = before.len().isqrt();
    let want: Vec<f32> = before
        .iter()
        .zip(&without)
        .enumerate()
        .map(|(i, (w, plain))| {
            let one = if i / width == i % width { 1.0 } else { 0.0 };
            plain - 0.02 * (w - one)
        })
        .collect();
    close(&with, &want, "value matrix");
    differ(&with, &without, "value matrix");
}

#[test]
fn scores_are_outputs_where_they_are_wanted() {
    let specs = ["a=seq_bn[use_gating=True]", "b=seq_bn"];
    let attach = || {
        base("qwen3")
            .adapters(specs.map(|s| api::adapter(s).unwrap()))
            .active(Setup::parse("Fuse(a, b)").unwrap())
    };
    let plain = attach().run().unwrap();
    let shown = attach().output_fusion_attentions(true).run().unwrap();
    let names = |m: &Verified| -> Vec<String> {
        let g = &m.model().graph;
        g.outputs()
            .iter()
            .map(|p| g.name_of(p.value).to_owned())
            .collect()
    };
    assert_eq!(names(&plain.model), ["logits"]);
    let found = names(&shown.model);
    assert_eq!(
        found[1],
        "adapter_fusion_attentions.model.layers.0.output_adapters.adapter_fusion_layer.a,b"
    );
    let plan = Plan::compile(&shown.model, &CompileOptions::default()).unwrap();
    let out = plan.run(&inputs("qwen3")).unwrap();
    let scores = &out[&found[1]];
    let dims = scores.0.dims().to_vec();
    assert_eq!(dims[2], 2, "{dims:?}");
    for pair in scores.to_f32().unwrap().chunks(2) {
        assert!((pair[0] + pair[1] - 1.0).abs() < 1e-6, "{pair:?}");
    }
    let stripped = api::strip(shown.model, None).unwrap();
    assert_eq!(names(&stripped), ["logits"]);
    let gated = base("qwen3")
        .adapters([api::adapter("a=unipelt").unwrap()])
        .output_gating_scores(true)
        .run()
        .unwrap();
    let found = names(&gated.model);
    assert!(found.len() > 6, "{found:?}");
    assert!(
        found[1..]
            .iter()
            .all(|n| n.starts_with("adapter_gating_scores.")),
        "{found:?}"
    );
    let plan = Plan::compile(&gated.model, &CompileOptions::default()).unwrap();
    let out = plan.run(&inputs("qwen3")).unwrap();
    let batch = out["logits"].0.dims()[0];
    for name in &found[1..] {
        assert_eq!(out[name].0.dims()[0], batch, "{name}");
        assert_eq!(out[name].0.dims().len(), 2, "{name}");
    }
}

#[test]
fn skipped_layers_have_no_adapters_and_their_parameters_stay() {
    let of = |skip: &[usize]| {
        base("qwen3")
            .adapters(copies("qwen3", "seq_bn", &["a"]))
            .skip_layers(skip.iter().copied())
            .run()
    };
    let (all, none) = (of(&[]).unwrap(), of(&[0, 1]).unwrap());
    let bare = api::open(fixture("qwen3").join("model.onnx")).unwrap();
    close(&run("qwen3", &none.model), &run("qwen3", &bare), "no layer");
    let one = of(&[1]).unwrap();
    differ(
        &run("qwen3", &one.model),
        &run("qwen3", &all.model),
        "layer 1",
    );
    let folder = |a: &Adapted| a.folder("a", &a.store()).unwrap().weights.tensors;
    assert_eq!(folder(&one), folder(&all));
    let found = of(&[7]).unwrap_err().to_string();
    assert!(
        found.contains("layer 7, which the model does not have"),
        "{found}"
    );
}

#[test]
fn what_was_composed_can_be_taken_out() {
    let bare = api::open(fixture("qwen3").join("model.onnx")).unwrap();
    for (specs, setup) in [
        (&["a=seq_bn", "b=seq_bn"][..], "Fuse(a, b)"),
        (&["a=seq_bn", "b=lora"], "Parallel(a, b)"),
        (
            &["a=seq_bn", "b=seq_bn", "c=seq_bn"],
            "Stack(Average(a, b), c)",
        ),
    ] {
        let adapted = attach("qwen3", specs, setup).unwrap();
        let one = api::strip(adapted.model.clone(), Some("a"))
            .unwrap_err()
            .to_string();
        assert!(one.contains("one piece of the graph"), "{one}");
        let stripped = api::strip(adapted.model, None).unwrap();
        assert_eq!(
            api::diff(&bare, &stripped).to_string(),
            api::diff(&bare, &bare).to_string(),
            "{setup}"
        );
    }
}

#[test]
fn the_temperature_falls_in_training_and_is_kept() {
    let mut adapters = copies("qwen3", "seq_bn", &["a"]);
    adapters.extend(copies("qwen3", "seq_bn[reduction_factor=4]", &["b"]));
    adapters.push(Adapter::fresh(
        "a,b",
        Config::parse_fusion("static[query=False,temperature=True]").unwrap(),
    ));
    let setup = || Setup::parse("Fuse(a, b)").unwrap();
    let adapted = base("qwen3")
        .adapters(adapters.clone())
        .active(setup())
        .run()
        .unwrap();
    let name = "adapter_fusion_temperature.a,b";
    let plan = Plan::compile(&adapted.model, &CompileOptions::default()).unwrap();
    let with = |t: Option<f32>| {
        let mut feeds = inputs("qwen3");
        if let Some(t) = t {
            feeds.insert(name, Value::from_f32(&[], vec![t]).unwrap());
        }
        plan.run(&feeds).unwrap()["logits"].to_f32().unwrap()
    };
    // As the library has it in its first forward pass.
    close(&with(None), &with(Some(50.0)), "50");
    assert_ne!(with(None), with(Some(1.0)));
    let args = TrainingArguments {
        max_steps: 3,
        ..TrainingArguments::default()
    };
    let loss = parse_loss("causal-lm", Divisor::Labels);
    let options = CompileOptions::default();
    let mut trainer =
        Trainer::new(adapted.model.clone(), &loss, args, Mode::Native, &options).unwrap();
    trainer
        .train_on(&labelled("qwen3"), &mut |_| Ok(()))
        .unwrap();
    let store = trainer.store();
    let now = store.get(name).unwrap().tensor.to_f32().unwrap()[0];
    assert!((now - 49.85).abs() < 1e-5, "{now}");
    let dir = tempfile::tempdir().unwrap();
    let folder = adapted.folder("a,b", &store.of("a,b")).unwrap();
    folder
        .write(dir.path(), onnx_graft::adapters::WriteOptions::default())
        .unwrap();
    let read = onnx_graft::adapters::AdapterFolder::read(dir.path()).unwrap();
    assert!(
        read.weights
            .tensors
            .keys()
            .all(|k| !k.contains("temperature"))
    );
    adapters.pop();
    adapters.push(read.into_adapter(None));
    let again = base("qwen3")
        .adapters(adapters)
        .active(setup())
        .run()
        .unwrap();
    let kept = again.store().get(name).unwrap().tensor.to_f32().unwrap()[0];
    assert!((kept - now).abs() < 1e-5, "{kept}");
}

/// What an `Average` of LoRA-like adapters makes of a linear is that of one weight.
#[test]
fn a_mean_of_adapters_merges() {
    let interface = Interface::read(&fixture("qwen3").join("interface.json")).unwrap();
    for (specs, setup) in [
        (
            &[
                "a=lora[init_weights='bert',alpha=400]",
                "b=lora[init_weights='bert',alpha=100,r=4]",
            ][..],
            "Average(a, b)",
        ),
        (
            &[
                "a=lora[init_weights='bert',alpha=400]",
                "b=ia3[init_weights='bert']",
            ],
            "Average(a, b, weights=[1, 3])",
        ),
        (
            &[
                "a=dora[init_weights='bert',alpha=400]",
                "b=lora[init_weights='bert',alpha=100,attn_matrices=['q']]",
            ],
            "Average(a, b, weights=[0.5, 0.2], normalize_weights=False)",
        ),
        (
            &[
                "a=lora[init_weights='bert',alpha=400]",
                "b=lora[init_weights='bert',alpha=300]",
                "c=ia3[init_weights='bert']",
            ],
            "Average(Stack(a, b), c)",
        ),
    ] {
        let attached = attach("qwen3", specs, setup).unwrap();
        let model = api::open(fixture("qwen3").join("model.onnx")).unwrap();
        let own: Vec<Adapter> = specs
            .iter()
            .map(|s| {
                let name = &s[..1];
                attached
                    .folder(name, &attached.store().of(name))
                    .unwrap()
                    .into_adapter(None)
            })
            .collect();
        let parsed = Setup::parse(setup).unwrap();
        let merged = onnx_graft::job::merged_as(&model, &interface, own, parsed).unwrap();
        close(
            &run("qwen3", &merged),
            &run("qwen3", &attached.model),
            setup,
        );
        differ(&run("qwen3", &merged), &run("qwen3", &model), setup);
    }
}

/// Of a fused projection the chosen columns are adapted as one linear; merged, attached and by task it is the same.
#[test]
fn mtl_lora_adapts_a_fused_projection() {
    let interface = Interface::read(&fixture("gpt2").join("interface.json")).unwrap();
    let model = api::open(fixture("gpt2").join("model.onnx")).unwrap();
    let spec = "mtl_lora[init_weights='bert',alpha=400,n_up_projection=2]";
    let (a, b) = (format!("a={spec}"), format!("b={spec}"));
    let alone = attach("gpt2", &[&a], "a").unwrap();
    let width = alone
        .store()
        .iter()
        .find(|(n, _)| n.ends_with("lora_B"))
        .unwrap()
        .1
        .tensor
        .dims
        .clone();
    // q and v of three blocks.
    assert_eq!(*width, [2, 64, 8]);
    let own = alone
        .folder("a", &alone.store())
        .unwrap()
        .into_adapter(None);
    let merged = onnx_graft::job::merge(&model, &interface, vec![own]).unwrap();
    close(&run("gpt2", &merged), &run("gpt2", &alone.model), "merged");
    differ(&run("gpt2", &merged), &run("gpt2", &model), "a");
    let tasks = attach("gpt2", &[&a, &b], "MultiTask(a, b)").unwrap();
    let plan = Plan::compile(&tasks.model, &CompileOptions::default()).unwrap();
    let mut feeds = inputs("gpt2");
    let batch = feeds.0[contract::INPUT_IDS].dims()[0];
    feeds.insert(
        contract::TASK_IDS,
        Value::from_i64(&[batch], vec![0; batch]).unwrap(),
    );
    let of_a = plan.run(&feeds).unwrap()["logits"].to_f32().unwrap();
    close(&of_a, &run("gpt2", &alone.model), "task a");
}
