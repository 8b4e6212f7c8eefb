//! What names find and what structure finds must be the same.

use super::field::Field;
use super::*;
use crate::ir::{Graph, Metadata, Model, ValueId};
use crate::unit::support::check_generated;
use std::path::{Path, PathBuf};

fn open(path: &Path) -> Model {
    crate::onnx::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Takes every name away from nodes and values, and all metadata, as an optimizer does at worst. Ids stay.
fn anonymous(mut model: Model) -> Model {
    let g: &mut Graph = &mut model.graph;
    for n in g.nodes().collect::<Vec<_>>() {
        let node = g.node_mut(n).unwrap();
        node.name = "".into();
        node.metadata = Metadata::default();
    }
    let ports: Vec<ValueId> = g
        .inputs()
        .iter()
        .chain(g.outputs())
        .map(|p| p.value)
        .collect();
    for (i, v) in g.values().collect::<Vec<_>>().into_iter().enumerate() {
        if !ports.contains(&v) {
            g.rename(v, &format!("v{i}")).unwrap();
        }
    }
    model
}

const FIELDS: [Field; 16] = [
    Field::Layer,
    Field::LayerOutput,
    Field::LayerSelfAttn,
    Field::LayerCrossAttn,
    Field::AttnQProj,
    Field::AttnKProj,
    Field::AttnVProj,
    Field::AttnQkvProj,
    Field::AttnOProj,
    Field::LayerIntermediateProj,
    Field::LayerOutputProj,
    Field::LayerPreSelfAttn,
    Field::LayerPreCrossAttn,
    Field::LayerPreFfn,
    Field::LayerLn1,
    Field::LayerLn2,
];

fn compare(path: &Path, interface: &Interface) -> Vec<String> {
    let at = path.display();
    let model = open(path);
    let named = Verified::check(model.clone()).unwrap();
    let bare = Verified::check(anonymous(model)).unwrap();
    let g = &named.model().graph;
    let a = interface
        .select(&named)
        .unwrap_or_else(|e| panic!("{at}: {e}"));
    let b = match interface.select(&bare) {
        Ok(b) => b,
        Err(e) => return vec![format!("{at}: {e}")],
    };
    let mut out = Vec::new();
    if a.layers.len() != b.layers.len() {
        return vec![format!(
            "{at}: {} layers, not {}",
            b.layers.len(),
            a.layers.len()
        )];
    }
    let view = Flow::new(&named);
    for (x, y) in a.layers.iter().zip(&b.layers) {
        for f in FIELDS {
            let (x, y) = (f.value(x), f.value(y));
            if x.map(|v| view.root(v)) != y.map(|v| view.root(v)) {
                let name = |v: Option<ValueId>| v.map_or("nothing", |v| g.name_of(v)).to_owned();
                out.push(format!(
                    "{at}: {f}: by structure {}, by name {}",
                    name(y),
                    name(x)
                ));
            }
        }
    }
    out
}

fn folders(root: &str) -> Vec<PathBuf> {
    let mut dirs: Vec<PathBuf> = std::fs::read_dir(root)
        .unwrap()
        .map(|d| d.unwrap().path())
        .collect();
    dirs.retain(|d| d.join("interface.json").exists());
    dirs.sort();
    dirs
}

#[test]
fn structure_finds_what_names_find() {
    let root = std::env::var("ONNX_GRAFT_STRUCTURE").unwrap_or_else(|_| "fixtures".to_owned());
    let mut wrong = Vec::new();
    for dir in folders(&root) {
        for file in ["model.onnx", "model.torchscript.onnx"] {
            let path = dir.join(file);
            if path.exists() {
                let interface = Interface::read(&dir.join("interface.json")).unwrap();
                let found = compare(&path, &interface);
                println!("{}: {} wrong", path.display(), found.len());
                wrong.extend(found);
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_proposed_interface_selects_what_the_written_one_does() {
    let root = std::env::var("ONNX_GRAFT_STRUCTURE").unwrap_or_else(|_| "fixtures".to_owned());
    let mut wrong = Vec::new();
    for dir in folders(&root) {
        for file in ["model.onnx", "model.torchscript.onnx"] {
            let path = dir.join(file);
            if !path.exists() {
                continue;
            }
            let at = path.display();
            let mut written = Interface::read(&dir.join("interface.json")).unwrap();
            if written.model_type.as_deref() == Some("t5") {
                written = Interface::resolve("t5").unwrap();
            }
            let verified = Verified::check(open(&path)).unwrap();
            let proposal = infer_interface(&verified).unwrap_or_else(|e| panic!("{at}: {e}"));
            let a = written.select(&verified).unwrap();
            let b = match proposal.interface.select(&verified) {
                Ok(b) => b,
                Err(e) => {
                    wrong.push(format!("{at}: {e}"));
                    continue;
                }
            };
            if a.base_prefix != b.base_prefix {
                wrong.push(format!(
                    "{at}: prefix {:?}, not {:?}",
                    b.base_prefix, a.base_prefix
                ));
            }
            let g = &verified.model().graph;
            for (x, y) in a.layers.iter().zip(&b.layers) {
                for f in FIELDS {
                    if let (Some(x), y) = (f.value(x), f.value(y))
                        && Some(x) != y
                    {
                        wrong.push(format!(
                            "{at}: {f}: {} as proposed, {} as written",
                            y.map_or("nothing", |y| g.name_of(y)),
                            g.name_of(x)
                        ));
                    }
                }
            }
            for ((field, p), (_, w)) in proposal
                .interface
                .fields
                .paths()
                .into_iter()
                .zip(written.fields.paths())
            {
                if p != w {
                    println!("{at}: {field}: proposed {p:?}, written {w:?}");
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_schema_in_the_repository_is_that_of_the_type() {
    let schema = schemars::schema_for!(InterfaceFile);
    let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
    check_generated("adapter_interface.schema.json", &text);
}

#[test]
fn calls_of_a_shared_layer_are_told_apart() {
    // Every call has linears of its own; a model without shared layers has one call of each.
    for dir in folders("fixtures") {
        let verified = Verified::check(open(&dir.join("model.onnx"))).unwrap();
        let s = Interface::read(&dir.join("interface.json"))
            .unwrap()
            .select(&verified)
            .unwrap();
        assert!(s.layers.iter().all(|l| l.call == 0));
        assert!(s.layers.iter().enumerate().all(|(i, l)| l.index == i));
    }
}

fn findings(file: &str, edit: impl Fn(&mut Fields)) -> String {
    let verified = Verified::check(open(Path::new(file))).unwrap();
    let mut i = Interface::resolve("qwen3").unwrap();
    edit(&mut i.fields);
    i.select(&verified)
        .expect_err("must be refused")
        .to_string()
}

#[test]
fn every_finding_names_layers_and_what_is_nearest() {
    let text = findings("fixtures/qwen3/model.onnx", |f| {
        f.attn_o_proj = PerStack::One(Some("out_proj".into()));
        f.layer_pre_ffn = PerStack::One(Some("post_attention_norm".into()));
    });
    // Structure would find both places; a name that is wrong stays wrong.
    insta::assert_snapshot!(text);
}

#[test]
fn a_wrong_list_names_the_lists_there_are() {
    insta::assert_snapshot!(findings("fixtures/qwen3/model.onnx", |f| {
        f.model_layers = PerStack::One(Some("blocks".into()));
    }));
}

#[test]
fn sites_of_the_fixtures() {
    for (name, file, interface) in [
        ("qwen3", "fixtures/qwen3/model.onnx", "qwen3"),
        ("gpt2", "fixtures/gpt2/model.onnx", "gpt2"),
        ("bert", "fixtures/bert/model.torchscript.onnx", "bert"),
    ] {
        let verified = Verified::check(open(Path::new(file))).unwrap();
        let s = Interface::resolve(interface)
            .unwrap()
            .select(&verified)
            .unwrap();
        insta::assert_snapshot!(format!("sites_{name}"), s.explain(&verified.model().graph));
    }
}

#[test]
fn an_inspection_shows_modules_and_lists() {
    let verified = Verified::check(open(Path::new("fixtures/llama/model.onnx"))).unwrap();
    insta::assert_snapshot!(Inspection::of(&verified));
}

#[test]
fn a_norm_is_applied_to_another_value() {
    let verified = Verified::check(open(Path::new("fixtures/t5/model.torchscript.onnx"))).unwrap();
    let mut i = Interface::resolve("t5").unwrap();
    i.fields.layer_ln_1 = PerStack::One(Some("layer.0.layer_norm".into()));
    let s = i.select(&verified).unwrap();
    let g = &verified.model().graph;
    let norm = s.layers[1].ln_1.as_ref().unwrap();
    assert_eq!(norm.kind, NormKind::RmsNorm);
    let b = crate::ir::Builder::new(17);
    let out = norm.apply(g, &b, s.layers[0].input.into());
    let made = b.finish();
    assert_eq!(made.nodes.len(), norm.nodes.len());
    assert!(matches!(out, crate::ir::Val::New(_)));
    let reads_old_input = made
        .nodes
        .iter()
        .flat_map(|n| &n.inputs)
        .any(|v| *v == Some(norm.input.into()));
    assert!(
        !reads_old_input,
        "every mention of the input is the other value"
    );
}

#[test]
fn layers_of_one_list_are_one_stack_where_the_stream_is_lost() {
    let mut model = open(Path::new("fixtures/qwen3/model.torchscript.onnx"));
    let g = &mut model.graph;
    let joint = g
        .nodes()
        .find(|n| &*g.node(*n).name == "/model/layers.0/Add_1");
    g.node_mut(joint.unwrap()).unwrap().op.op_type = "Sub".into();
    let verified = Verified::check(model).unwrap();
    let interface = infer_interface(&verified).unwrap().interface;
    assert_eq!(interface.fields.model_layers.get(0), Some("layers"));
    assert_eq!(interface.stacks(), 1);
    let layers = interface.select(&verified).unwrap().layers;
    let paths: Vec<&str> = layers.iter().map(|l| &*l.path).collect();
    assert_eq!(paths, ["model.layers.0", "model.layers.1"]);
}
