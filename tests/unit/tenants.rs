//! Many adapters in one graph: each sample gets what its own adapter gives alone, and a sample without one what the base model gives; the
//! file is all that it takes to add, remove and extract them.

use super::support::fixture;
use onnx_graft::Attach;
use onnx_graft::adapters::{Adapter, AdapterFolder, Setup, WriteOptions};
use onnx_graft::api::{self, Adapted};
use onnx_graft::infer::Verified;
use onnx_graft::ir::{TensorData, text};
use onnx_graft::onnx::{self, ExternalSource};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value, io};
use onnx_graft::select::Interface;

fn base(arch: &str) -> Verified {
    api::open(fixture(arch).join("model.onnx")).unwrap()
}

fn adapters(specs: &[&str]) -> Vec<Adapter> {
    specs.iter().map(|s| api::adapter(s).unwrap()).collect()
}

fn to(model: Verified, arch: &str, specs: &[&str]) -> Attach {
    let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
    Attach::to(model)
        .interface(&interface)
        .adapters(adapters(specs))
        .seed(3)
}

fn by_ids(arch: &str, specs: &[&str]) -> onnx_graft::Result<Adapted> {
    to(base(arch), arch, specs).adapter_ids(true).run()
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
    match arch {
        "bert" => "last_hidden_state",
        _ => "logits",
    }
}

fn ids(ids: &[i64]) -> Value {
    Value::from_i64(&[ids.len()], ids.to_vec()).unwrap()
}

fn plan(model: &Verified) -> Plan {
    Plan::compile(model, &CompileOptions::default()).unwrap()
}

fn run(model: &Verified, feeds: &Feeds, output: &str) -> Vec<f32> {
    plan(model).run(feeds).unwrap()[output].to_f32().unwrap()
}

/// The model as it is read from a file.
fn reread(model: &Verified) -> Verified {
    let bytes = onnx::to_bytes(model).unwrap();
    let model = onnx::read(bytes.into(), &ExternalSource::none()).unwrap();
    Verified::check(model).unwrap()
}

/// The largest difference.
fn worst(found: &[f32], want: &[f32]) -> f32 {
    let each = found.iter().zip(want).map(|(f, w)| (f - w).abs());
    each.fold(0.0, f32::max)
}

/// Every sample of the batch of three is what its own adapter alone makes of it, or the base model. The seed and the names decide initial
/// values, so that all attach the same parameters.
#[test]
fn each_sample_has_its_own_adapter_or_none() {
    let cases: [(&str, &[&str]); 11] = [
        // Ranks, factors and places of their own.
        (
            "qwen3",
            &[
                "a=lora[r=4,init_weights='bert',alpha=400]",
                "b=lora[r=8,init_weights='bert',alpha=100,attn_matrices=['q','k','v','o'],output_lora=True]",
                "c=lora[r=2,init_weights='bert',alpha=90,intermediate_lora=True,leave_out=[0]]",
            ],
        ),
        (
            "bert",
            &[
                "a=ia3[init_weights='bert',alpha=30]",
                "b=ia3[init_weights='bert',alpha=40,attn_matrices=['q'],output_lora=True]",
            ],
        ),
        (
            "bert",
            &[
                "a=vera[r=3,vera_b=0.5,alpha=90]",
                "b=vera[r=8,vera_b=0.3,alpha=90]",
                "c=vera[r=8,vera_b=0.4,intermediate_lora=True]",
            ],
        ),
        (
            "bert",
            &[
                "a=seq_bn[reduction_factor=4,init_weights='houlsby']",
                "b=seq_bn[reduction_factor=2,init_weights='houlsby']",
                "c=double_seq_bn[reduction_factor=4,init_weights='houlsby']",
            ],
        ),
        // `sigmoid(0)` is not 0.
        (
            "qwen3",
            &[
                "a=par_bn[reduction_factor=4,init_weights='houlsby',scaling=40.0]",
                "b=par_bn[reduction_factor=2,init_weights='houlsby',scaling=20.0]",
                "c=double_seq_bn[non_linearity='sigmoid',reduction_factor=2]",
                "d=double_seq_bn[non_linearity='sigmoid',reduction_factor=4]",
            ],
        ),
        (
            "bert",
            &[
                "a=seq_bn[ln_before=True,ln_after=True,use_gating=True,reduction_factor=2]",
                "b=seq_bn[ln_before=True,ln_after=True,use_gating=True,reduction_factor=4]",
                "c=scaled_par_bn[init_weights='houlsby']",
                "d=par_bn[init_weights='houlsby',scaling='channel']",
            ],
        ),
        // Methods beside each other, and unions.
        (
            "qwen3",
            &[
                "a=lora[init_weights='bert',alpha=400]",
                "b=ia3[init_weights='bert',alpha=30]",
                "c=seq_bn|lora[init_weights='bert',alpha=400]",
            ],
        ),
        (
            "bert",
            &[
                "a=lora[init_weights='bert',use_gating=True,alpha=400]",
                "b=lora[init_weights='bert',use_gating=True,r=3]",
            ],
        ),
        // Fused projections: the blocks side by side.
        (
            "gpt2",
            &[
                "a=lora[init_weights='bert',alpha=400]",
                "b=lora[init_weights='bert',alpha=200]",
                "c=lora[init_weights='bert',alpha=400,attn_matrices=['k'],r=3,intermediate_lora=True]",
                "d=lora[init_weights='bert',alpha=400,attn_matrices=['q','k','v'],r=3]",
            ],
        ),
        (
            "gpt2",
            &[
                "a=ia3[init_weights='bert',alpha=30]",
                "b=ia3[init_weights='bert',alpha=40]",
            ],
        ),
        // PEFT's choice of modules.
        (
            "qwen3",
            &[
                "a=lora[target_modules=['q_proj','down_proj'],init_weights='bert',alpha=400]",
                "b=lora[target_modules='all-linear',r=2,init_weights='bert',alpha=50]",
                "c=ia3[target_modules=['k_proj','down_proj'],feedforward_modules=['down_proj'],init_weights='bert',alpha=30]",
            ],
        ),
    ];
    for (arch, specs) in cases {
        let out = output(arch);
        let all = by_ids(arch, specs).unwrap().model;
        let all = reread(&all);
        let none = run(&base(arch), &inputs(arch), out);
        let alone: Vec<Vec<f32>> = specs
            .iter()
            .map(|s| {
                run(
                    &to(base(arch), arch, &[s]).run().unwrap().model,
                    &inputs(arch),
                    out,
                )
            })
            .collect();
        let each = none.len() / 3;
        // Left out, none; one id is for all.
        assert_eq!(run(&all, &inputs(arch), out), none, "{specs:?}");
        let last = specs.len() as i64 - 1;
        let one = run(&all, &inputs(arch).with("adapter_ids", ids(&[last])), out);
        let far = worst(&one, &alone[specs.len() - 1]);
        assert!(far < 1e-5, "{specs:?}: {far}");
        for given in [[0, -1, last], [1, 0, -1], [-1, last, 1]] {
            let found = run(&all, &inputs(arch).with("adapter_ids", ids(&given)), out);
            for (i, id) in given.into_iter().enumerate() {
                let at = i * each..(i + 1) * each;
                let got = &found[at.clone()];
                let Ok(id) = usize::try_from(id) else {
                    assert_eq!(got, &none[at], "{specs:?}, sample {i} is the base model's");
                    continue;
                };
                assert_ne!(
                    alone[id][at.clone()],
                    none[at.clone()],
                    "{specs:?} do something"
                );
                // Products of each sample with its own matrices, filled up with zeros: another order of summing.
                let far = worst(got, &alone[id][at]);
                assert!(far < 1e-5, "{specs:?}, sample {i} with {id}: {far}");
            }
        }
    }
}

/// PEFT's VeRA trains the diagonals alone, which begin as zeros.
#[test]
fn diagonals_of_each_sample_are_its_own() {
    let saved = |name: &str, r: usize| {
        let spec = format!("{name}=vera[target_modules=['q_proj','down_proj'],r={r}]");
        let adapted = to(base("qwen3"), "qwen3", &[&spec]).run().unwrap();
        let mut folder = adapted.folder(name, &adapted.store()).unwrap();
        for (key, tensor) in &mut folder.weights.tensors {
            if key.contains("lambda") {
                let n = tensor.dims[0];
                let values: Vec<f32> = (0..n).map(|i| 2.0 - i as f32 / r as f32).collect();
                *tensor = TensorData::from_f32([n], &values);
            }
        }
        folder.into_adapter(None)
    };
    let (a, b) = (saved("a", 4), saved("b", 6));
    let of = |adapters: Vec<Adapter>| to(base("qwen3"), "qwen3", &[]).adapters(adapters);
    let alone = [&a, &b].map(|x| of(vec![x.clone()]).run().unwrap().model);
    let alone = alone.map(|m| run(&m, &inputs("qwen3"), "logits"));
    let all = of(vec![a, b]).adapter_ids(true).run().unwrap().model;
    let found = run(
        &all,
        &inputs("qwen3").with("adapter_ids", ids(&[1, -1, 0])),
        "logits",
    );
    let none = run(&base("qwen3"), &inputs("qwen3"), "logits");
    let each = found.len() / 3;
    for (i, want) in [&alone[1], &none, &alone[0]].into_iter().enumerate() {
        let at = i * each..(i + 1) * each;
        // Scaled behind the product, and not the matrix in front of it.
        let far = worst(&found[at.clone()], &want[at.clone()]);
        assert!(far < 1e-5, "sample {i}: {far}");
        assert!(
            i == 1 || worst(&found[at.clone()], &none[at]) > 1e-3,
            "sample {i}"
        );
    }
}

/// What `adapter_ids` adds is taken out without a trace.
#[test]
fn stripping_leaves_the_base_model() {
    for (arch, specs) in [
        ("qwen3", ["a=lora[r=2]|seq_bn", "b=lora[r=3]"]),
        ("bert", ["a=double_seq_bn", "b=ia3"]),
    ] {
        let model = base(arch);
        let before = text::print(model.model());
        let all = reread(&by_ids(arch, &specs).unwrap().model);
        let stripped = api::strip(all.clone(), None).unwrap();
        assert_eq!(text::print(stripped.model()), before);
        let e = api::strip(all, Some("a")).unwrap_err().to_string();
        assert!(e.contains("rewrite tenants remove"), "{e}");
    }
}

/// Names of adapters with one configuration.
fn many(count: usize) -> Vec<String> {
    (0..count).map(|i| format!("a{i}=lora[r=2]")).collect()
}

#[test]
fn nodes_do_not_grow_with_the_number_of_adapters() {
    let nodes = |count: usize| {
        let specs = many(count);
        let specs: Vec<&str> = specs.iter().map(|s| &**s).collect();
        let model = by_ids("qwen3", &specs).unwrap().model;
        let graph = &model.model().graph;
        (graph.node_count(), graph.initializers().len())
    };
    let one = nodes(1);
    assert_eq!([nodes(8), nodes(64)], [one, one]);
}

/// An id that no adapter has is an error, and never another adapter; so is a number of ids that is not the batch's.
#[test]
fn ids_that_no_adapter_has_are_errors() {
    let model = by_ids("qwen3", &["a=lora", "b=lora[r=2]"]).unwrap().model;
    let plan = plan(&model);
    for given in [&[0, 2, -1][..], &[0, -2, 1], &[-3, 0, 0], &[0, i64::MAX, 1]] {
        let fed = inputs("qwen3").with("adapter_ids", ids(given));
        let e = plan.run(&fed).unwrap_err().to_string();
        assert!(e.contains("outside an axis of size"), "{given:?}: {e}");
    }
    for given in [&[0, 1][..], &[0, 0, 0, 0], &[]] {
        let fed = inputs("qwen3").with("adapter_ids", ids(given));
        assert!(plan.run(&fed).is_err(), "{given:?}");
    }
}

fn error(arch: &str, specs: &[&str]) -> String {
    by_ids(arch, specs).unwrap_err().to_string()
}

#[test]
fn what_cannot_be_chosen_by_ids_is_refused_by_name() {
    for (spec, why) in [
        ("dora", "norm of the whole changed weight"),
        ("prefix_tuning", "keys and values"),
        ("prompt_tuning", "all samples longer"),
        ("loreft", "positions"),
        ("compacter[reduction_factor=8]", "Kronecker"),
        ("seq_bn_inv", "invertible"),
        ("mtl_lora", "task_ids"),
    ] {
        let e = error("bert", &["a=lora", &format!("b={spec}")]);
        let named = e.contains("`b`") && e.contains("adapter_ids") && e.contains("MultiTask(a, b)");
        assert!(named && e.contains(why), "{spec}: {e}");
    }
    let e = error("bert", &["a=lora", "adapter_ids=lora"]);
    assert!(e.contains("like the input"), "{e}");
    let e = error("bert", &["a=lora", "a=lora"]);
    assert!(e.contains("two adapters are called `a`"), "{e}");
    let setup = Setup::parse("Stack(a, b)").unwrap();
    let both = to(base("bert"), "bert", &["a=lora", "b=lora"]).active(setup);
    let e = both.adapter_ids(true).run().unwrap_err().to_string();
    assert!(e.contains("both say which adapter acts"), "{e}");
    // Beside adapters that always act, and the other way round.
    let there = to(base("bert"), "bert", &["x=lora"]).run().unwrap().model;
    let e = to(there, "bert", &["a=lora"]).adapter_ids(true).run();
    assert!(e.unwrap_err().to_string().contains("`x` is attached"));
    let there = by_ids("bert", &["a=lora"]).unwrap().model;
    let e = to(there.clone(), "bert", &["x=lora"]).run().unwrap_err();
    assert!(e.to_string().contains("rewrite tenants add"), "{e}");
    let interface = Interface::builtin("bert").unwrap().unwrap();
    let e = onnx_graft::job::merge(&there, &interface, adapters(&["x=lora"])).unwrap_err();
    assert!(e.to_string().contains("rewrite tenants extract"), "{e}");
    let e = Attach::again(&base("bert")).unwrap_err().to_string();
    assert!(e.contains("--adapter-ids"), "{e}");
    let again = Attach::again(&there).unwrap();
    let e = again.clone().without("b").unwrap_err().to_string();
    assert!(e.contains("no adapter `b`"), "{e}");
    let e = again.without("a").unwrap_err().to_string();
    assert!(e.contains("rewrite strip"), "{e}");
}

/// Adapters of folders, added to a file and taken out of it again: the folders come back, and the graph is the one that had them from the
/// start.
#[test]
fn adapters_come_and_go_without_the_base_model() {
    let specs = [
        "a=lora[r=2,leave_out=[1]]",
        "b=lora[r=8]",
        "c=seq_bn",
        "d=ia3",
    ];
    let dir = tempfile::tempdir().unwrap();
    let saved = |spec: &str| -> AdapterFolder {
        let adapted = to(base("qwen3"), "qwen3", &[spec]).run().unwrap();
        let name = &spec[..1];
        let folder = adapted.folder(name, &adapted.store()).unwrap();
        let at = dir.path().join(name);
        folder.write(&at, WriteOptions::default()).unwrap();
        AdapterFolder::read(&at).unwrap()
    };
    let folders = specs.map(saved);
    let of = |chosen: &[usize]| {
        let chosen = chosen
            .iter()
            .map(|i| folders[*i].clone().into_adapter(None));
        to(base("qwen3"), "qwen3", &[])
            .adapters(chosen)
            .adapter_ids(true)
            .run()
            .unwrap()
            .model
    };
    let print = |m: &Verified| text::print(m.model());
    let whole = of(&[0, 1, 2, 3]);
    assert_eq!(api::tenants(&reread(&whole)).unwrap(), folders);
    let again = |m: &Verified| Attach::again(&reread(m)).unwrap();
    // A smaller file grows: the rank, the methods, the places.
    let more = [1, 2, 3].map(|i| folders[i].clone().into_adapter(None));
    let grown = again(&of(&[0])).adapters(more).run().unwrap().model;
    assert_eq!(print(&grown), print(&whole));
    let fewer = again(&whole).without("a").unwrap().without("c").unwrap();
    assert_eq!(print(&fewer.run().unwrap().model), print(&of(&[1, 3])));
    let e = again(&whole)
        .adapters(adapters(&["b=lora"]))
        .run()
        .unwrap_err();
    assert!(e.to_string().contains("two adapters are called `b`"), "{e}");
}
