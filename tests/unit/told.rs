//! What is added to a graph says where it stands: types, and the module that it is a part of.

use super::support::fixture;
use onnx_graft::Attach;
use onnx_graft::api;
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract::{exporter, stamp};
use onnx_graft::ir::{Graph, InfoEntry, NodeId, ValueId};
use onnx_graft::onnx::{self, ExternalSource};
use onnx_graft::select::{Interface, ModuleTree};

fn adapted(arch: &str, graph: &str, specs: &[&str]) -> Verified {
    let folder = fixture(arch);
    let interface = Interface::read(&folder.join("interface.json")).unwrap();
    let model = api::open(folder.join(graph)).unwrap();
    let mut attach = Attach::to(model).interface(&interface);
    for (i, spec) in specs.iter().enumerate() {
        attach = attach.adapter(&format!("a{i}={spec}")).unwrap();
    }
    attach.run().unwrap().model
}

fn added(graph: &Graph) -> Vec<NodeId> {
    let ours = |n: &NodeId| graph.node(*n).metadata.contains_key(stamp::ADAPTER);
    graph.nodes().filter(ours).collect()
}

/// Values whose element type and rank `value_info` has.
fn declared(graph: &Graph) -> Vec<ValueId> {
    let of = |entry: &InfoEntry| match entry {
        InfoEntry::Value(port) => port.ty.as_ref()?.dims().map(|_| port.value),
        InfoEntry::Orphan(_) => None,
    };
    graph.infos().iter().filter_map(of).collect()
}

const EXPORTS: [(&str, &str); 5] = [
    ("qwen3", "model.onnx"),
    ("qwen3", "model.torchscript.onnx"),
    ("gpt2", "model.onnx"),
    ("bert", "model.onnx"),
    ("vit", "model.onnx"),
];

const SPECS: [&[&str]; 5] = [
    &["lora[r=4]", "seq_bn[reduction_factor=4]"],
    &["double_seq_bn_inv[reduction_factor=4]"],
    &["loreft"],
    &["prefix_tuning[prefix_length=4]"],
    &["ia3"],
];

#[test]
fn every_added_node_has_types_and_a_module_of_the_model() {
    for (arch, graph) in EXPORTS {
        let plain = api::open(fixture(arch).join(graph)).unwrap();
        let base = ModuleTree::new(&plain);
        for specs in SPECS {
            let model = adapted(arch, graph, specs);
            // As other tools see it: written and read again.
            let bytes = onnx::to_bytes(&model).unwrap();
            let model = onnx::read(bytes.into(), &ExternalSource::none()).unwrap();
            let model = Verified::check(model).unwrap();
            let g = &model.model().graph;
            let tree = ModuleTree::new(&model);
            let types: Vec<ValueId> = declared(g);
            let nodes = added(g);
            assert!(!nodes.is_empty(), "{arch} {specs:?}");
            for n in nodes {
                let node = g.node(n);
                let what = format!("{arch}/{graph} {specs:?}: {}", node.name);
                for v in g.node_outputs(n).into_iter().flatten() {
                    let declared = g.is_output(v) || types.contains(&v);
                    assert!(declared, "{what}: no type of {}", g.name_of(v));
                }
                for key in exporter::ALL {
                    assert!(node.metadata.contains_key(key), "{what}: no {key}");
                }
                let (module, _) = tree.of(n).expect("a module");
                let path = &*tree.module(module).path;
                let layered = path.split('.').any(|p| p.parse::<usize>().is_ok());
                let top = path.split('.').next().unwrap_or_default();
                let known = base.descend(onnx_graft::select::ROOT, top).is_some();
                assert!(
                    known || !layered,
                    "{what}: {path} is no module of the model"
                );
            }
        }
    }
}

#[test]
fn an_adapter_is_a_part_of_the_module_that_it_adapts() {
    let model = adapted("qwen3", "model.torchscript.onnx", &["lora[r=4]", "seq_bn"]);
    let found = api::attached(&model).unwrap();
    let places: Vec<(&str, &[String], &str)> = found
        .iter()
        .map(|a| (&*a.name, &*a.modules, &*a.layers))
        .collect();
    let q_and_v = ["model.layers.*.self_attn.{q_proj,v_proj}".to_owned()];
    let behind = ["model.layers.*.output_adapters".to_owned()];
    assert_eq!(
        places,
        [("a0", &q_and_v[..], "0, 1"), ("a1", &behind[..], "0, 1")]
    );
}

#[test]
fn the_difference_stands_in_the_modules_and_equal_layers_are_shown_once() {
    let plain = api::open(fixture("qwen3").join("model.onnx")).unwrap();
    let model = adapted("qwen3", "model.onnx", &["lora[r=4]"]);
    let diff = api::diff(&plain, &model);
    let folded = diff.folded();
    let modules: Vec<(String, Vec<usize>)> = folded
        .modules()
        .into_iter()
        .map(|m| (m.module, m.layers))
        .collect();
    let of = |name: &str| (format!("model.layers.*.self_attn{name}"), vec![0, 1]);
    assert_eq!(
        modules,
        [of(".q_proj.loras.a0"), of(""), of(".v_proj.loras.a0")]
    );
    let (whole, short) = (diff.to_string(), folded.to_string());
    assert!(whole.lines().count() > short.lines().count());
    assert!(!short.contains("(no module)"), "{short}");
}

#[test]
fn layers_that_differ_are_shown_apart() {
    let plain = api::open(fixture("qwen3").join("model.onnx")).unwrap();
    let model = adapted("qwen3", "model.onnx", &["lora[r=4,leave_out=[0]]"]);
    let diff = api::diff(&plain, &model);
    let all = diff.folded().modules();
    assert!(all.iter().all(|m| m.layers.is_empty()), "{all:?}");
    assert!(
        all.iter().all(|m| m.module.contains("layers.1.")),
        "{all:?}"
    );
}
