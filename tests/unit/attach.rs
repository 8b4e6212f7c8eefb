//! Attaching and stripping adapters on real exports: what is added, what it is called, and that it can be undone.

use super::support::fixture;
use onnx_graft::adapters::{Adapter, AdapterFolder, AdapterStore, Config, Setup, spec};
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract::stamp;
use onnx_graft::ir::{TensorData, text};
use onnx_graft::rewrite::Pipeline;
use onnx_graft::rewrite::passes::{AttachPass, Strip};
use onnx_graft::select::{Interface, Selection};

const DYNAMO: &str = "model.onnx";
const TORCHSCRIPT: &str = "model.torchscript.onnx";

fn open(arch: &str, file: &str) -> (Verified, Selection) {
    let model = onnx_graft::onnx::open(fixture(arch).join(file)).unwrap();
    let model = Verified::check(model).unwrap();
    let interface = Interface::read(&fixture(arch).join("interface.json")).unwrap();
    let selection = interface.select(&model).unwrap();
    (model, selection)
}

fn fresh(text: &str) -> Adapter {
    Adapter::fresh("a", Config::parse(text).unwrap())
}

fn attach(arch: &str, file: &str, adapter: Adapter) -> Verified {
    let (model, selection) = open(arch, file);
    let pass = AttachPass::new(selection, adapter);
    Pipeline::new().with(pass).run(model).unwrap().model
}

fn error(arch: &str, pass: impl FnOnce(Selection) -> AttachPass) -> String {
    let (model, selection) = open(arch, DYNAMO);
    let failed = Pipeline::new()
        .with(pass(selection))
        .run(model)
        .unwrap_err();
    failed.error.to_string()
}

/// Name, shape and role of every parameter.
fn params(model: &Verified) -> String {
    let store = AdapterStore::from_model(model.model());
    let line = |name: &str, p: &onnx_graft::adapters::Param| {
        let role = match (p.trainable, p.idle, p.decay) {
            (true, _, true) => "",
            (true, _, false) => " no decay",
            (false, true, _) => " idle",
            (false, false, _) => " frozen",
        };
        format!("{name} {:?}{role}\n", p.tensor.dims)
    };
    store.iter().map(|(n, p)| line(n, p)).collect()
}

/// The nodes of the adapter, as text.
fn added(model: &Verified) -> String {
    let g = &model.model().graph;
    let all = text::print_module(model.model(), &|n| {
        g.node(n).metadata.contains_key(stamp::ADAPTER)
    });
    let own = all
        .lines()
        .filter(|l| l.starts_with("  init") || l.starts_with("  %"));
    own.map(|l| {
        l.split("  // ").next().unwrap_or(l).trim_start().to_owned()
            + "
"
    })
    .collect()
}

const EVERYTHING: [&str; 22] = [
    "lora[attn_matrices=['q','k','v','o'], intermediate_lora=True, output_lora=True]",
    "lora[use_gating=True, init_weights='bert', dtype='bfloat16']",
    "dora",
    "dvora[attn_matrices=['q']]",
    "ia3",
    "lora[target_modules='all-linear', use_rslora=True]",
    "lora[target_modules='.*(k_proj|key|up_proj|intermediate.dense)', use_dora=True, lora_bias=True]",
    "ia3[target_modules=['k_proj', 'key', 'down_proj', 'output.dense'], feedforward_modules=['down_proj', 'output.dense']]",
    "vera[target_modules=['q_proj', 'query', 'up_proj', 'intermediate.dense'], r=3]",
    "lora[target_modules=['v_proj', 'value'], bias='lora_only', modules_to_save=['norm', 'LayerNorm', 'embed_tokens']]",
    "double_seq_bn[ln_before=True, ln_after=True, use_gating=True, scaling='channel']",
    "scaled_par_bn",
    "seq_bn_inv",
    "adapterplus[reduction_factor=4]",
    "compacter[reduction_factor=4]",
    "loreft[suffix_positions=1]",
    "lora|par_bn",
    "prefix_tuning[prefix_length=2, bottleneck_size=4]",
    "prefix_tuning_flat[prefix_length=2, use_gating=True, shared_gating=False, leave_out=[0]]",
    "prefix_tuning[prefix_length=2, bottleneck_size=4]|seq_bn|lora",
    "prompt_tuning[prompt_length=2]",
    "prompt_tuning[prompt_length=2, combine='prefix_after_bos']|lora|loreft",
];

#[test]
fn stripping_gives_the_same_text() {
    for (arch, file) in [("qwen3", DYNAMO), ("bert", TORCHSCRIPT)] {
        let (base, _) = open(arch, file);
        let before = text::print(base.model());
        for config in EVERYTHING {
            let model = attach(arch, file, fresh(config));
            assert_ne!(text::print(model.model()), before, "{arch}/{file} {config}");
            let written = onnx_graft::onnx::to_bytes(&model).unwrap();
            let reread =
                onnx_graft::onnx::read(written.into(), &onnx_graft::onnx::ExternalSource::none())
                    .unwrap();
            for model in [model, Verified::check(reread).unwrap()] {
                let stripped = Pipeline::new()
                    .with(Strip::default())
                    .run(model)
                    .unwrap()
                    .model;
                assert_eq!(
                    text::print(stripped.model()),
                    before,
                    "{arch}/{file} {config}"
                );
            }
        }
    }
}

#[test]
fn both_exporters_get_the_same_parameters() {
    for config in EVERYTHING {
        let [a, b] = [DYNAMO, TORCHSCRIPT].map(|file| attach("qwen3", file, fresh(config)));
        let [a, b] = [a, b].map(|m| AdapterStore::from_model(m.model()));
        assert_eq!(a, b, "{config}");
    }
}

#[test]
fn attaching_twice_gives_the_same_bytes() {
    let bytes = || onnx_graft::onnx::to_bytes(&attach("qwen3", DYNAMO, fresh("lora"))).unwrap();
    assert_eq!(bytes(), bytes());
}

#[test]
fn parameters_have_the_librarys_names() {
    insta::assert_snapshot!(
        "params_lora",
        params(&attach(
            "qwen3",
            DYNAMO,
            fresh("lora[r=4, output_lora=True, leave_out=[1]]")
        ))
    );
    insta::assert_snapshot!(
        "params_vera_gated",
        params(&attach(
            "qwen3",
            DYNAMO,
            fresh("vera[leave_out=[1], use_gating=True, r=4]")
        ))
    );
    insta::assert_snapshot!(
        "params_bottleneck",
        params(&attach(
            "qwen3",
            DYNAMO,
            fresh(
                "seq_bn[reduction_factor={'0': 8, 'default': 16}, ln_before=True, scaling='learned']"
            )
        ))
    );
    insta::assert_snapshot!(
        "params_loreft",
        params(&attach("qwen3", DYNAMO, fresh("loreft[layers=[1]]")))
    );
}

#[test]
fn nodes_stand_behind_what_they_serve() {
    insta::assert_snapshot!(
        "added_lora",
        added(&attach(
            "qwen3",
            DYNAMO,
            fresh("lora[attn_matrices=['q'], leave_out=[1]]")
        ))
    );
    insta::assert_snapshot!(
        "added_seq_bn",
        added(&attach("qwen3", DYNAMO, fresh("seq_bn[leave_out=[1]]")))
    );
    insta::assert_snapshot!(
        "added_par_bn",
        added(&attach("bert", DYNAMO, fresh("par_bn[leave_out=[1]]")))
    );
}

#[test]
fn a_name_is_attached_once() {
    let model = attach("qwen3", DYNAMO, fresh("lora"));
    let interface = Interface::read(&fixture("qwen3/interface.json")).unwrap();
    let selection = interface.select(&model).unwrap();
    let failed = Pipeline::new()
        .with(AttachPass::new(selection, fresh("seq_bn")))
        .run(model)
        .unwrap_err();
    assert!(
        failed
            .error
            .to_string()
            .contains("an adapter `a` is attached to this model already")
    );
}

#[test]
fn weights_that_are_no_numbers_are_refused() {
    let mut folder = AdapterFolder::read(&fixture("qwen3/plugin/lora_all")).unwrap();
    let (name, tensor) = folder.weights.tensors.iter_mut().next().unwrap();
    let mut values = tensor.to_f32().unwrap();
    values[0] = f32::NAN;
    let name = name.clone();
    *tensor = TensorData::from_f32(tensor.dims.clone(), &values);
    let failed = onnx_graft::Attach::open(fixture("qwen3/model.onnx"))
        .unwrap()
        .adapters([folder.into_adapter(None)])
        .run()
        .unwrap_err()
        .to_string();
    assert!(failed.contains("weights-finite"), "{failed}");
    assert!(failed.contains(&*name), "{failed}");
}

/// What is not active is no part of the graph, and is saved with its weights all the same.
#[test]
fn an_inactive_adapter_keeps_its_weights() {
    let folder = spec::read_folder(&fixture("qwen3/plugin/lora_all")).unwrap();
    let b = folder.clone().into_adapter(Some("b"));
    let adapted = onnx_graft::Attach::open(fixture("qwen3/model.onnx"))
        .unwrap()
        .adapters([fresh("seq_bn"), b])
        .active("a".into())
        .run()
        .unwrap();
    let graph = AdapterStore::from_model(adapted.model.model());
    assert_eq!(graph.of("b").iter().count(), 0);
    let kept = adapted.folder("b", &adapted.store()).unwrap();
    let mut values: Vec<_> = kept
        .weights
        .tensors
        .values()
        .map(TensorData::bytes)
        .collect();
    let mut wanted: Vec<_> = folder
        .weights
        .tensors
        .values()
        .map(TensorData::bytes)
        .collect();
    values.sort();
    wanted.sort();
    assert_eq!(values, wanted);
    let rows = adapted.summary().unwrap().rows;
    let told: Vec<_> = rows
        .iter()
        .map(|r| (&*r.name, r.active, r.params > 0))
        .collect();
    assert_eq!(told, [("a", true, true), ("b", false, true)]);
}

#[test]
fn one_of_two_adapters_is_stripped() {
    let (model, selection) = open("qwen3", DYNAMO);
    let only_a = text::print(
        Pipeline::new()
            .with(AttachPass::new(selection, fresh("lora")))
            .run(model)
            .unwrap()
            .model
            .model(),
    );
    let model = attach("qwen3", DYNAMO, fresh("lora"));
    let interface = Interface::read(&fixture("qwen3/interface.json")).unwrap();
    let selection = interface.select(&model).unwrap();
    let other = Adapter::fresh("b", Config::parse("double_seq_bn").unwrap());
    let both = Pipeline::new()
        .with(AttachPass::new(selection, other))
        .run(model)
        .unwrap()
        .model;
    let strip = Strip {
        adapter: Some("b".into()),
    };
    let left = Pipeline::new().with(strip).run(both.clone()).unwrap().model;
    assert_eq!(text::print(left.model()), only_a);
    let wrong = Strip {
        adapter: Some("c".into()),
    };
    let failed = Pipeline::new().with(wrong).run(both).unwrap_err();
    assert!(failed.error.to_string().contains("attached are: a, b"));
}

#[test]
fn all_faults_of_a_file_are_listed() {
    let mut folder = AdapterFolder::read(&fixture("qwen3/plugin/lora_qv")).unwrap();
    let names: Vec<Box<str>> = folder
        .weights
        .tensors
        .keys()
        .filter(|k| k.contains(".loras."))
        .cloned()
        .collect();
    let extra = folder.weights.tensors[&names[0]].clone();
    folder.weights.tensors.shift_remove(&names[0]);
    folder
        .weights
        .tensors
        .insert(names[1].clone(), extra.clone());
    folder.weights.tensors.insert(
        "model.layers.9.self_attn.q_proj.loras.a.lora_A".into(),
        extra,
    );
    let text = error("qwen3", |s| AttachPass::new(s, folder.into_adapter(None)));
    assert!(
        text.contains("error[weights-missing]") && text.contains(&*names[0]),
        "{text}"
    );
    assert!(
        text.contains("error[weights-shape]") && text.contains(&*names[1]),
        "{text}"
    );
    assert!(
        text.contains("error[weights-extra]") && text.contains("layers.9"),
        "{text}"
    );
}

#[test]
fn a_saved_adapter_fits_under_another_name_and_prefix() {
    let folder = AdapterFolder::read(&fixture("qwen3/plugin/lora_qv")).unwrap();
    let mut bare = folder.clone();
    bare.weights.tensors = folder
        .weights
        .tensors
        .iter()
        .map(|(k, t)| (k.strip_prefix("model.").unwrap_or(k).into(), t.clone()))
        .collect();
    let values = |m: &Verified| {
        let store = AdapterStore::from_model(m.model());
        store
            .iter()
            .map(|(_, p)| p.tensor.clone())
            .collect::<Vec<_>>()
    };
    let here = values(&attach("qwen3", DYNAMO, folder.into_adapter(None)));
    let there = values(&attach("qwen3", DYNAMO, bare.into_adapter(Some("other"))));
    assert_eq!(here, there);
}

/// The library's file of a model without a head lacks them; one that has them, as ours do, is taken.
#[test]
fn shared_parameters_that_a_file_lacks_are_one_error() {
    for (method, names) in [
        (
            "vera",
            &["shared_parameters.a.lora_A", "shared_parameters.a.lora_B"][..],
        ),
        ("compacter", &["shared_parameters.a.phm_rule"]),
    ] {
        let at = fixture("bert/native").join(method);
        let mut folder = AdapterFolder::read(&at).unwrap();
        let text = error("bert", |s| {
            AttachPass::new(s, folder.clone().into_adapter(None))
        });
        assert_eq!(text.matches("error[").count(), 1, "{text}");
        assert!(text.contains("error[weights-shared]"), "{text}");
        assert!(names.iter().all(|n| text.contains(n)), "{text}");
        let rest = std::fs::read(at.join("unsaved.safetensors")).unwrap();
        let rest = onnx_graft::adapters::folder::read_safetensors(&rest.into()).unwrap();
        folder.weights.tensors.extend(rest);
        let model = attach("bert", DYNAMO, folder.clone().into_adapter(None));
        let store = AdapterStore::from_model(model.model());
        let mut ours = store.tensors_of("a");
        ours.sort_unstable_keys();
        folder.weights.tensors.sort_unstable_keys();
        assert_eq!(ours, folder.weights.tensors, "{method}");
    }
}

/// A file that leaves out more layers than there are is the library's to write.
#[test]
fn a_saved_adapter_may_leave_out_other_layers() {
    let mut folder = AdapterFolder::read(&fixture("qwen3/plugin/lora_leave_out")).unwrap();
    let mut dict = folder.config.to_dict();
    dict["leave_out"].as_array_mut().unwrap().push(7.into());
    folder.config = Config::from_dict(&dict, onnx_graft::adapters::UnknownKeys::Keep).unwrap();
    let (model, selection) = open("qwen3", DYNAMO);
    let pass = AttachPass::new(selection, folder.into_adapter(None));
    let done = Pipeline::new().with(pass).run(model).unwrap();
    let notes: Vec<String> = done.reports[0]
        .warnings
        .iter()
        .map(ToString::to_string)
        .collect();
    assert!(
        notes.iter().any(|n| n.contains("warning[layer-id]")),
        "{notes:?}"
    );
}

#[test]
fn mistakes_say_what_to_do() {
    let text = error("qwen3", |s| {
        AttachPass::new(s, fresh("lora[selfattn_lora=False]"))
    });
    assert!(text.contains("matches nothing in this model"), "{text}");
    let text = error("qwen3", |s| {
        AttachPass::new(s, fresh("seq_bn[reduction_factor={'0': 4}]"))
    });
    assert!(text.contains("has no entry for layer 1"), "{text}");
    for (config, what) in [
        ("lora[leave_out=[0, 7]]", "`leave_out` names the layer 7"),
        (
            "seq_bn[leave_out=[2, 9]]",
            "`leave_out` names the layers 2, 9",
        ),
        ("loreft[layers=[5]]", "`layers` names the layer 5"),
        (
            "par_bn[reduction_factor={'last': 4, 'default': 2}]",
            "`reduction_factor` names the layer last",
        ),
        (
            "lora|par_bn[leave_out=[3]]",
            "`leave_out` names the layer 3",
        ),
    ] {
        let text = error("qwen3", |s| AttachPass::new(s, fresh(config)));
        assert!(
            text.contains(what) && text.contains("has 2 layers"),
            "{config}: {text}"
        );
        assert_eq!(text.matches("error[").count(), 1, "{config}: {text}");
        assert!(text.contains("from 0 to 1"), "{config}: {text}");
    }
    let text = error("qwen3", |s| AttachPass::new(s, fresh("compacter")));
    assert!(
        text.contains("`reduction_factor=8` gives the width 4"),
        "{text}"
    );
    let text = error("qwen3", |s| AttachPass {
        setup: Setup::Single("b".into()),
        ..AttachPass::new(s, fresh("lora"))
    });
    assert!(text.contains("the setup names the adapter `b`"), "{text}");
    let text = error("qwen3", |s| {
        AttachPass::new(s, spec::parse("a.b=lora").unwrap().load().unwrap())
    });
    assert!(text.contains("cannot be the name of an adapter"), "{text}");
}

/// One table for all layers, numbered without those that are left out; the library writes it again in every attention.
#[test]
fn prefixes_are_one_parameter_for_all_layers() {
    let flat = "prefix_tuning_flat[prefix_length=2, leave_out=[0]]";
    let model = attach("bert", DYNAMO, fresh(flat));
    let first = "encoder.layer.0.attention.self.prefix_tuning.pool.prefix_tunings.a.self_prefix.control_trans";
    // 2 positions x 1 layer x (key, value) x width 32.
    assert_eq!(params(&model), format!("{first} [128]\n"));
    let store = AdapterStore::from_model(model.model());
    let aliases = &store.get(first).unwrap().aliases;
    assert_eq!(
        aliases.iter().map(|a| &**a).collect::<Vec<_>>(),
        [
            "encoder.layer.1.attention.self.prefix_tuning.pool.prefix_tunings.a.self_prefix.control_trans",
            "prefix_tuning.prefix_tunings.a.self_prefix.control_trans",
        ]
    );
    let softmax = |m: &Verified| added(m).matches(" = Softmax(").count();
    assert_eq!(softmax(&model), 1, "layer 0 is left out");
    // Keys have two heads of width 8 in Qwen3, queries four.
    let grouped = attach(
        "qwen3",
        DYNAMO,
        fresh("prefix_tuning_flat[prefix_length=2]"),
    );
    let layers = softmax(&grouped);
    let [(_, table)] = AdapterStore::from_model(grouped.model())
        .iter()
        .map(|(n, p)| (n.to_owned(), p.tensor.dims[0]))
        .collect::<Vec<_>>()[..]
    else {
        panic!("one parameter");
    };
    assert_eq!(table, 2 * layers as u64 * 2 * 2 * 8);
}

/// What the library has a class of its own for gets that class's names, unless an interface file says how; what is written is that again
/// when it is read.
#[test]
fn fresh_adapters_are_those_of_the_librarys_class() {
    use onnx_graft::adapters::{Route, WriteOptions};
    let path = fixture("bert").join(DYNAMO);
    let attach = || onnx_graft::Attach::open(&path).unwrap();
    let native = attach().adapter("a=seq_bn").unwrap().run().unwrap();
    let folder = native.folder("a", &native.store()).unwrap();
    assert_eq!(folder.interface, None);
    assert_eq!(folder.route().to_string(), "native:bert");
    let plugin = attach().adapter("a=seq_bn").unwrap().route(Route::Plugin);
    let plugin = plugin.run().unwrap();
    let names = |a: &onnx_graft::Adapted| -> Vec<String> {
        a.store().iter().map(|(n, _)| n.to_owned()).collect()
    };
    assert_ne!(names(&native), names(&plugin));
    let file = Interface::read(&fixture("bert/interface.json")).unwrap();
    let by_file = attach().interface(&file).adapter("a=seq_bn").unwrap();
    assert_eq!(names(&by_file.run().unwrap()), names(&plugin));
    for adapted in [native, plugin] {
        let dir = tempfile::tempdir().unwrap();
        let folder = adapted.folder("a", &adapted.store()).unwrap();
        folder
            .write(
                dir.path(),
                WriteOptions {
                    force: true,
                    ..WriteOptions::default()
                },
            )
            .unwrap();
        let spec = dir.path().to_str().unwrap();
        let again = attach().adapter(spec).unwrap().run().unwrap();
        assert_eq!(again.store(), adapted.store());
        let text = |m: &Verified| text::print(m.model());
        assert_eq!(text(&again.model), text(&adapted.model));
    }
}

/// Outputs are declared with the length they have.
#[test]
fn outputs_grow_with_a_prompt() {
    let outputs = |arch: &str| {
        let model = attach(arch, DYNAMO, fresh("prompt_tuning[prompt_length=3]"));
        let port = &model.model().graph.outputs()[0];
        port.ty.as_ref().unwrap().to_string()
    };
    assert_eq!(outputs("vit"), "f32[batch, 20, 32]");
    assert_eq!(outputs("bert"), "f32[batch, ?, 32]");
}

/// Exporters give the mask an axis of its own where the model does not compare its length with that of the tokens.
#[cfg(feature = "runtime")]
#[test]
fn a_mask_with_an_axis_of_its_own_grows_with_a_prompt() {
    use onnx_graft::ir::{DType, Dim, Type};
    use onnx_graft::runtime::{CompileOptions, Plan, io};
    let (model, selection) = open("qwen3", DYNAMO);
    let mut apart = model.clone().into_model();
    let mask = apart.graph.find("attention_mask").unwrap();
    let dims = ["batch", "own"].map(|d| Dim::Symbol(d.into()));
    apart.graph.value_mut(mask).unwrap().ty = Some(Type::tensor(DType::Int64, dims));
    let apart = Verified::check(apart).unwrap();
    let interface = Interface::read(&fixture("qwen3").join("interface.json")).unwrap();
    let other = interface.select(&apart).unwrap();
    let logits = |model: Verified, selection: Selection| {
        let pass = AttachPass::new(selection, fresh("prompt_tuning[prompt_length=3]"));
        let model = Pipeline::new().with(pass).run(model).unwrap().model;
        let data = io::read(&fixture("qwen3").join("inputs.safetensors")).unwrap();
        let mut feeds = onnx_graft::runtime::Feeds::new();
        for (name, value) in data.0 {
            if let Some(name) = name.strip_prefix("input/") {
                feeds.insert(name, value);
            }
        }
        let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
        let out = plan.run(&feeds).unwrap();
        out.get("logits").unwrap().to_f32().unwrap()
    };
    assert_eq!(logits(model, selection), logits(apart, other));
}

#[test]
fn a_prompt_from_a_text_needs_a_tokenizer() {
    let text = "prompt_tuning[prompt_init='from_string', prompt_init_text='classify']";
    let found = error("bert", |s| AttachPass::new(s, fresh(text)));
    assert!(found.contains("no tokenizer"), "{found}");
    assert!(found.contains("random_uniform"), "{found}");
}

/// An attention that the exporter fused has no scores to put anything in front of.
#[test]
fn a_fused_attention_refuses_prefixes() {
    let (model, selection) = open("qwen3", "model.dynamo23.onnx");
    let failed = Pipeline::new()
        .with(AttachPass::new(selection, fresh("prefix_tuning")))
        .run(model)
        .unwrap_err();
    let found = failed.error.to_string();
    assert!(found.contains("no softmax"), "{found}");
}
