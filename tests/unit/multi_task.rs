//! `MultiTask`: each sample gets what its own adapter gives, whatever the method; parameters that tasks have together are one.

use super::support::fixture;
use onnx_graft::Attach;
use onnx_graft::adapters::{Adapter, AdapterFolder, AdapterStore, Setup};
use onnx_graft::api::{self, Adapted};
use onnx_graft::infer::Verified;
use onnx_graft::ir::text;
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value, io};
use onnx_graft::select::Interface;

fn attach(arch: &str, specs: &[&str], setup: &str) -> onnx_graft::Result<Adapted> {
    let model = api::open(fixture(arch).join("model.onnx"))?;
    let interface = Interface::read(&fixture(arch).join("interface.json"))?;
    let adapters: Vec<Adapter> = specs
        .iter()
        .map(|s| api::adapter(s))
        .collect::<Result<_, _>>()?;
    Attach::to(model)
        .interface(&interface)
        .adapters(adapters)
        .active(Setup::parse(setup).unwrap())
        .seed(3)
        .run()
}

fn error(arch: &str, specs: &[&str], setup: &str) -> String {
    attach(arch, specs, setup).unwrap_err().to_string()
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

fn run(model: &Verified, feeds: &Feeds, output: &str) -> Vec<f32> {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    plan.run(feeds).unwrap()[output].to_f32().unwrap()
}

/// Every sample of the batch of three is what its own adapter alone makes of it; the seed and the names decide initial values, so that
/// both attach the same parameters.
#[test]
fn each_sample_has_its_own_adapter() {
    let cases: [(&str, &str, &[&str], &str); 6] = [
        (
            "bert",
            "last_hidden_state",
            &[
                "a=lora[init_weights='bert',alpha=400]",
                "b=ia3[init_weights='bert']",
            ],
            "MultiTask(a, b)",
        ),
        (
            "bert",
            "last_hidden_state",
            &[
                "a=dora[init_weights='bert',alpha=400]",
                "b=seq_bn|lora[init_weights='bert']",
            ],
            "MultiTask(a, b)",
        ),
        (
            "qwen3",
            "logits",
            &[
                "a=scaled_par_bn[init_weights='bert']",
                "b=double_seq_bn",
                "c=loreft",
            ],
            "MultiTask(a, b, c)",
        ),
        (
            "qwen3",
            "logits",
            &["a=seq_bn", "b=double_seq_bn", "c=seq_bn_inv"],
            "MultiTask(a, Stack(b, c))",
        ),
        (
            "bert",
            "last_hidden_state",
            &[
                "a=prefix_tuning_flat[prefix_length=2]",
                "b=prefix_tuning_flat[prefix_length=3]",
            ],
            "MultiTask(a, b)",
        ),
        (
            "bert",
            "last_hidden_state",
            &[
                "a=mtl_lora[init_weights='bert',use_gating=True]",
                "b=lora[attn_matrices=['k'],init_weights='bert',alpha=400]",
            ],
            "MultiTask(a, b)",
        ),
    ];
    for (arch, output, specs, setup) in cases {
        let all = attach(arch, specs, setup).unwrap().model;
        let Setup::MultiTask(tasks) = Setup::parse(setup).unwrap() else {
            panic!("{setup} is no MultiTask")
        };
        let alone: Vec<Vec<f32>> = tasks
            .iter()
            .map(|t| {
                let model = attach(arch, specs, &t.to_string()).unwrap().model;
                run(&model, &inputs(arch), output)
            })
            .collect();
        let ids = [1i64, 0, tasks.len() as i64 - 1];
        let ids = Value::from_i64(&[3], ids.to_vec()).unwrap();
        let found = run(&all, &inputs(arch).with("task_ids", ids.clone()), output);
        let each = found.len() / 3;
        assert_ne!(alone[0][..each], alone[1][..each], "{specs:?} do something");
        for (i, task) in ids.to_ints().unwrap().iter().enumerate() {
            let want = &alone[*task as usize][i * each..(i + 1) * each];
            let got = &found[i * each..(i + 1) * each];
            let worst = got
                .iter()
                .zip(want)
                .map(|(g, w)| (g - w).abs())
                .fold(0.0, f32::max);
            // The same numbers through the same kernels, in batches of three as well; fused kernels may round otherwise.
            assert!(worst < 1e-5, "{specs:?}, sample {i}: {worst}");
        }
    }
}

#[test]
fn tasks_have_one_pair_of_matrices_and_whole_folders() {
    let specs = ["a=mtl_lora[r=4]", "b=mtl_lora[r=4,alpha=16]"];
    let adapted = attach("bert", &specs, "MultiTask(a, b)").unwrap();
    let store = AdapterStore::from_model(adapted.model.model());
    let names: Vec<&str> = store
        .iter()
        .map(|(n, _)| n)
        .filter(|n| n.contains("layer.0"))
        .collect();
    let at = |p: &str, n: &str| format!("encoder.layer.0.attention.self.{p}.loras.{n}");
    let expected: Vec<String> = ["query", "value"]
        .into_iter()
        .flat_map(|p| {
            [
                "a.lora_A",
                "a.lora_B",
                "a.weights",
                "a.task_specific.values",
                "b.weights",
                "b.task_specific.values",
            ]
            .map(|n| at(p, n))
        })
        .collect();
    assert_eq!(names, expected);
    let file = |n: &str| store.tensors_of(n);
    let (a, b) = (file("a"), file("b"));
    assert_eq!((a.len(), b.len()), (16, 16));
    assert_eq!(a[&*at("query", "a.lora_A")], b[&*at("query", "b.lora_A")]);
    assert!(a.keys().all(|k| k.contains(".loras.a.")) && b.keys().all(|k| k.contains(".loras.b.")));
}

/// Saved tasks share what they have the same values of; fresh ones get those of the first saved one.
#[test]
fn saved_tasks_share_what_they_were_trained_with_together() {
    let read = |n: &str| AdapterFolder::read(&fixture("bert/native/mtl_lora").join(n)).unwrap();
    let (a, mut b) = (read("adapter_a"), read("adapter_b"));
    let key = "encoder.layer.0.attention.self.query.loras.b.lora_A";
    let shared = b.weights.tensors[key].clone();
    let attach = |first: Adapter, second: Adapter| {
        let model = api::open(fixture("bert/model.onnx")).unwrap();
        let interface = Interface::builtin("bert").unwrap().unwrap();
        let setup = Setup::parse("MultiTask(a, b)").unwrap();
        Attach::to(model)
            .interface(&interface)
            .adapters(vec![first, second])
            .active(setup)
            .seed(0)
            .run()
            .unwrap()
    };
    let kept = |done: &Adapted| {
        let store = AdapterStore::from_model(done.model.model());
        store
            .get(&key.replace(".b.", ".a."))
            .unwrap()
            .tensor
            .clone()
    };
    let own = |done: &Adapted| {
        let store = AdapterStore::from_model(done.model.model());
        store.get(key).map(|p| p.tensor.clone())
    };
    let both = attach(a.clone().into_adapter(None), b.clone().into_adapter(None));
    assert!(own(&both).is_none() && kept(&both) == shared);
    let config = a.config.clone();
    let mut fresh = Adapter::fresh("a", config);
    fresh.route = a.route();
    assert!(kept(&attach(fresh, b.clone().into_adapter(None))) == shared);
    let other = onnx_graft::ir::TensorData::from_f32([4, 32], &[0.5; 128]);
    b.weights.tensors.insert(key.into(), other.clone());
    let apart = attach(a.into_adapter(None), b.into_adapter(None));
    assert!(own(&apart) == Some(other) && kept(&apart) == shared);
}

#[test]
fn stripping_takes_the_input_along() {
    let before = text::print(api::open(fixture("bert/model.onnx")).unwrap().model());
    let specs = ["a=mtl_lora", "b=mtl_lora", "c=seq_bn"];
    let adapted = attach("bert", &specs, "Stack(c, MultiTask(a, b))")
        .unwrap()
        .model;
    assert!(text::print(adapted.model()).contains("task_ids"));
    let failed = api::strip(adapted.clone(), Some("a"))
        .unwrap_err()
        .to_string();
    assert!(
        failed.contains("`a` is a part of `Stack(c, MultiTask(a, b))`"),
        "{failed}"
    );
    let stripped = api::strip(adapted, None).unwrap();
    assert_eq!(text::print(stripped.model()), before);
}

#[test]
fn mistakes_say_what_to_do() {
    let text = error(
        "bert",
        &["a=mtl_lora[r=4]", "b=mtl_lora"],
        "MultiTask(a, b)",
    );
    assert!(
        text.contains("`lora_A` together, in different shapes"),
        "{text}"
    );
    let prompts = [
        "a=prompt_tuning[prompt_length=2]",
        "b=prompt_tuning[prompt_length=3]",
    ];
    let text = error("bert", &prompts, "MultiTask(a, b)");
    assert!(text.contains("cannot be chosen for each sample"), "{text}");
    let adapted = attach("bert", &["a=lora", "b=ia3"], "MultiTask(a, b)")
        .unwrap()
        .model;
    let ids = Value::from_i64(&[3], vec![0, 1, 2]).unwrap();
    let plan = Plan::compile(&adapted, &CompileOptions::default()).unwrap();
    let text = plan
        .run(&inputs("bert").with("task_ids", ids))
        .unwrap_err()
        .to_string();
    assert!(text.contains("task_ids"), "{text}");
}

/// Each sample of a `BatchSplit` has its own child, wherever adapters stand; a batch of another size is refused when the graph runs.
#[test]
fn each_part_of_a_batch_has_its_own_child() {
    let cases: [(&str, &str, &[&str]); 4] = [
        (
            "bert",
            "last_hidden_state",
            &[
                "a=double_seq_bn[ln_before=True]",
                "b=lora[init_weights='bert',alpha=400]",
            ],
        ),
        (
            "qwen3",
            "logits",
            &["a=dora[init_weights='bert',alpha=400]", "b=ia3"],
        ),
        (
            "qwen3",
            "logits",
            &["a=loreft", "b=scaled_par_bn[init_weights='bert']"],
        ),
        (
            "bert",
            "last_hidden_state",
            &[
                "a=prefix_tuning_flat[prefix_length=2]",
                "b=prefix_tuning_flat[prefix_length=3]",
            ],
        ),
    ];
    for (arch, output, specs) in cases {
        let alone = ["a", "b"].map(|name| {
            let model = attach(arch, specs, name).unwrap().model;
            run(&model, &inputs(arch), output)
        });
        let all = attach(arch, specs, "BatchSplit(a, b, batch_sizes=[1, 2])").unwrap();
        let found = run(&all.model, &inputs(arch), output);
        let each = found.len() / 3;
        assert_ne!(alone[0][..each], alone[1][..each], "{specs:?} do something");
        for (i, alone) in [&alone[0], &alone[1], &alone[1]].into_iter().enumerate() {
            let rows = i * each..(i + 1) * each;
            let pairs = found[rows.clone()].iter().zip(&alone[rows]);
            let worst = pairs.fold(0f32, |m, (g, w)| m.max((g - w).abs()));
            // The same numbers through the same kernels, in batches of another size.
            assert!(worst < 1e-5, "{specs:?}, sample {i}: {worst}");
        }
        let few = attach(arch, specs, "BatchSplit(a, b, batch_sizes=[1, 1])").unwrap();
        let plan = Plan::compile(&few.model, &CompileOptions::default()).unwrap();
        assert!(
            plan.run(&inputs(arch)).is_err(),
            "{specs:?}: three samples in two"
        );
    }
}

/// Weights add up to 1, unless they are taken as they are: then they weigh what each child changes.
#[test]
fn an_average_weighs_what_its_children_make() {
    let specs = [
        "a=lora[attn_matrices=['o'],init_weights='bert',alpha=400,leave_out=[0]]",
        "b=ia3",
    ];
    let of = |setup: &str| {
        let model = attach("qwen3", &specs, setup).unwrap().model;
        run(&model, &inputs("qwen3"), "logits")
    };
    let near = |found: &[f32], want: &[f32], what: &str| {
        let pairs = found.iter().zip(want);
        let worst = pairs.fold(0f32, |m, (g, w)| m.max((g - w).abs()));
        // Logits are of order 1; only sums are ordered otherwise.
        assert!(worst < 1e-5, "{what}: {worst}");
    };
    let (a, b) = (of("a"), of("b"));
    near(&of("Average(a, b, weights=[1.0, 0.0])"), &a, "all of a");
    near(&of("Average(a, b, weights=[0, 3])"), &b, "all of b");
    near(&of("Average(a, a)"), &a, "twice a");
    near(
        &of("Average(a, b, weights=[1, 1], normalize_weights=False)"),
        &of("Stack(a, b)"),
        "both changes, of other linears",
    );
    assert_ne!(of("Average(a, b)"), a);
}
