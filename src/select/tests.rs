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

/// `x · (mean(x²))^-½ · (1 + w)`.
fn norm(layer: usize, name: &str, x: &str) -> String {
    let (v, at) = (format!("{name}{layer}"), format!("/layers.{layer}/{name}"));
    format!(
        "
        %{v}s = Mul(%{x}, %{x})  // {at}/Mul
        %{v}m = ReduceMean(%{v}s) {{axes = [-1], keepdims = 1}}  // {at}/ReduceMean
        %{v}i = Pow(%{v}m, %half)  // {at}/Pow
        %{v}n = Mul(%{x}, %{v}i)  // {at}/Mul_1
        %{v}w = Add(%gain, %one)  // {at}/Add
        %{v} = Mul(%{v}n, %{v}w)  // {at}/Mul_2"
    )
}

/// Three layers: of a gated convolution's projections, of attention, and of attention with two experts.
fn mixed() -> Verified {
    let mut body = String::new();
    for layer in 0..3 {
        let x = format!("x{layer}");
        body += &norm(layer, "norm1", &x);
        let at = format!("/layers.{layer}");
        body += &if layer == 0 {
            format!(
                "
        %c = MatMul(%norm1{layer}, %w)  // {at}/conv/in_proj/MatMul
        %g = Sigmoid(%c)  // {at}/conv/Sigmoid
        %a{layer} = MatMul(%g, %w)  // {at}/conv/out_proj/MatMul"
            )
        } else {
            format!(
                "
        %q{layer} = MatMul(%norm1{layer}, %w)  // {at}/self_attn/q_proj/MatMul
        %k{layer} = MatMul(%norm1{layer}, %w)  // {at}/self_attn/k_proj/MatMul
        %v{layer} = MatMul(%norm1{layer}, %w)  // {at}/self_attn/v_proj/MatMul
        %t{layer} = Transpose(%k{layer}) {{perm = [0, 2, 1]}}  // {at}/self_attn/Transpose
        %s{layer} = MatMul(%q{layer}, %t{layer})  // {at}/self_attn/MatMul
        %p{layer} = Softmax(%s{layer}) {{axis = -1}}  // {at}/self_attn/Softmax
        %z{layer} = MatMul(%p{layer}, %v{layer})  // {at}/self_attn/MatMul_1
        %a{layer} = MatMul(%z{layer}, %w)  // {at}/self_attn/o_proj/MatMul"
            )
        };
        body += &format!("\n        %y{layer} = Add(%{x}, %a{layer})  // {at}/Add");
        body += &norm(layer, "norm2", &format!("y{layer}"));
        body += &if layer == 2 {
            format!(
                "
        %r = MatMul(%norm2{layer}, %router)  // {at}/moe/gate/MatMul
        %rs = Softmax(%r) {{axis = -1}}  // {at}/moe/Softmax
        %r0, %r1 = Split(%rs) {{axis = -1}}  // {at}/moe/Split
        %e0 = MatMul(%norm2{layer}, %w)  // {at}/moe/experts.0/MatMul
        %e1 = MatMul(%norm2{layer}, %w)  // {at}/moe/experts.1/MatMul
        %m0 = Mul(%e0, %r0)  // {at}/moe/Mul
        %m1 = Mul(%e1, %r1)  // {at}/moe/Mul_1
        %f{layer} = Add(%m0, %m1)  // {at}/moe/Add"
            )
        } else {
            format!(
                "
        %u{layer} = MatMul(%norm2{layer}, %w)  // {at}/mlp/up_proj/MatMul
        %h{layer} = Sigmoid(%u{layer})  // {at}/mlp/Sigmoid
        %f{layer} = MatMul(%h{layer}, %w)  // {at}/mlp/down_proj/MatMul"
            )
        };
        let next = layer + 1;
        body += &format!("\n        %x{next} = Add(%y{layer}, %f{layer})  // {at}/Add_1");
    }
    let graph = format!(
        r#"
        graph-text 1
        ir_version 8
        opset "" 17
        graph main(%input_ids: i64[b, s]) -> (%x3)
        init %table: f32[8, 4] = fill(0.5)
        init %w: f32[4, 4] = fill(0.5)
        init %router: f32[4, 2] = fill(0.5)
        init %gain: f32[4] = fill(0.5)
        init %one: f32[] = {{1.0}}
        init %half: f32[] = {{-0.5}}
        %x0 = Gather(%table, %input_ids)  // /embed/Gather{body}
        "#
    );
    let model = crate::ir::text::parse(&graph).unwrap_or_else(|e| panic!("{e}\n{graph}"));
    Verified::check(model).unwrap_or_else(|r| panic!("{:?}", r.findings))
}

#[test]
fn one_list_of_layers_whatever_stands_inside() {
    let model = mixed();
    let proposal = infer_interface(&model).unwrap();
    let f = &proposal.interface.fields;
    for (field, want) in [
        (&f.model_layers, "layers"),
        (&f.layer_self_attn, "self_attn"),
        (&f.attn_q_proj, "q_proj"),
        (&f.layer_pre_self_attn, "norm1"),
        (&f.layer_pre_ffn, "norm2"),
        (&f.layer_output_proj, "mlp.down_proj"),
    ] {
        assert_eq!(field.get(0), Some(want));
    }
    let s = proposal.interface.select(&model).unwrap();
    let g = &model.model().graph;
    let name = |v: Option<ValueId>| v.map(|v| g.name_of(v));
    assert_eq!(s.layers.len(), 3);
    let [conv, plain, experts] = &s.layers[..] else {
        unreachable!()
    };
    assert!(conv.self_attn.is_none() && conv.output_proj.is_some());
    assert!(plain.self_attn.is_some() && plain.ffn_output.is_none());
    assert!(experts.self_attn.is_some() && experts.output_proj.is_none());
    assert_eq!(name(experts.ffn_output), Some("f2"));
    assert_eq!(name(experts.pre_ffn), Some("y2"));
    assert_eq!(
        s.layers.iter().map(|l| l.index).collect::<Vec<_>>(),
        [0, 1, 2]
    );
    // What is left out is said, each with its layers.
    let said: Vec<&str> = s.misses.iter().map(|d| &*d.message).collect();
    assert!(
        said.iter()
            .any(|m| m.starts_with("layers 0 have no `layer_self_attn`"))
    );
    let experts = "layers 2 have no `layer_intermediate_proj`, `layer_output_proj`";
    assert!(said.iter().any(|m| m.starts_with(experts)), "{said:?}");
    // Experts are linears by their own names.
    let by_name = |path: &str| s.modules.iter().any(|m| &*m.site.path == path);
    assert!(by_name("layers.2.moe.experts.1") && by_name("layers.0.conv.in_proj"));
}

#[test]
fn a_name_that_fits_several_lists_is_none_of_them() {
    let verified = Verified::check(open(Path::new("fixtures/t5/model.onnx"))).unwrap();
    let mut i = Interface::resolve("t5").unwrap().to_adapterhub();
    i.fields.model_layers = PerStack::One(Some("block".into()));
    let text = i.select(&verified).expect_err("two lists").to_string();
    assert!(text.contains("may be any of"), "{text}");
}

/// Layers whose products have no names are found in the list that their norms name.
#[test]
fn a_list_of_layers_is_found_by_the_names_of_parameters() {
    for (file, interface) in [
        ("fixtures/bert/model.onnx", "bert"),
        ("fixtures/llama/model.onnx", "llama"),
    ] {
        let interface = Interface::resolve(interface).unwrap();
        let mut model = open(Path::new(file));
        let named = interface.select(&Verified::check(model.clone()).unwrap());
        let g = &model.graph;
        let vectors = g.initializers().iter().copied().filter(|v| {
            let name = g.name_of(*v);
            name.contains(".bias") || name.contains("norm")
        });
        let kept: Vec<(ValueId, String)> = vectors.map(|v| (v, g.name_of(v).to_owned())).collect();
        assert!(!kept.is_empty(), "{file}");
        model = anonymous(model);
        for (v, name) in kept {
            model.graph.rename(v, &name).unwrap();
        }
        let found = interface.select(&Verified::check(model).unwrap());
        let (named, found) = (named.unwrap(), found.unwrap());
        assert_eq!(named.layers.len(), found.layers.len(), "{file}");
        for (a, b) in named.layers.iter().zip(&found.layers) {
            for field in [Field::AttnQProj, Field::AttnOProj, Field::LayerOutputProj] {
                assert_eq!(field.value(a), field.value(b), "{file} {field}");
            }
        }
    }
}

/// XLM has no module for a layer: its attentions stand in one list, the rest in others.
#[test]
fn layers_whose_parts_stand_in_lists_of_their_own() {
    let mut model = open(Path::new("fixtures/bert/model.torchscript.onnx"));
    let g = &mut model.graph;
    for n in g.nodes().collect::<Vec<_>>() {
        let node = g.node_mut(n).unwrap();
        let name = node.name.replace("/encoder/layer.", "/ffns.");
        let layer = name
            .strip_prefix("/ffns.")
            .and_then(|rest| rest.split_once("/attention/"));
        node.name = match layer {
            Some((i, rest)) => format!("/attentions.{i}/{rest}").into(),
            None => name.into(),
        };
    }
    for v in g.values().collect::<Vec<_>>() {
        let name = g.name_of(v).replace("encoder.layer.", "merged.");
        g.rename(v, &name).unwrap();
    }
    let model = Verified::check(model).unwrap();
    let proposal = infer_interface(&model).unwrap();
    let said: Vec<String> = proposal.notes.iter().map(|n| n.message.clone()).collect();
    assert!(
        said.iter()
            .any(|n| n.contains("`attentions.0` is a part of a layer")),
        "{said:?}"
    );
    let written = proposal.interface.to_json();
    let s = Interface::parse(&written, "written")
        .unwrap()
        .select(&model)
        .unwrap();
    let paths: Vec<String> = s
        .layers
        .iter()
        .flat_map(Layer::linears)
        .map(|l| l.path.to_string())
        .collect();
    assert_eq!(s.layers.len(), 2);
    assert!(
        paths.contains(&"attentions.1.self.query".to_owned()),
        "{paths:?}"
    );
    assert!(
        paths.contains(&"ffns.0.output.dense".to_owned()),
        "{paths:?}"
    );
}
