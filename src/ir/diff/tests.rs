use super::{Change, Diff, Model, NodeId, diff};
use crate::ir::text::parse;
use std::fmt::Write;

/// The part of a node's name in front of its last `/`.
fn module(m: &Model, n: NodeId) -> String {
    let name = &m.graph.node(n).name;
    name.rsplit_once('/').map_or("", |s| s.0).to_owned()
}

fn between(a: &str, b: &str) -> Diff {
    diff(&parse(a).unwrap(), &parse(b).unwrap(), &module)
}

const BASE: &str = r#"opset "" 17
graph g(%x: f32[b, 4]) -> (%y: f32[b, 4])
  init %w: f32[4, 4] = seed(1)
  %h0 = Relu(%x)  // mlp/0
  %h1 = Neg(%h0)  // mlp/1
  %h2 = Abs(%h1)  // mlp/2
  %q = MatMul(%h2, %w)  // attn/q/MatMul
  %s = Softmax(%q) {axis = -1}  // attn/softmax
  %y = Tanh(%s)  // out/tanh
"#;

#[test]
fn a_model_does_not_differ_from_itself() {
    let d = between(BASE, BASE);
    assert!(d.is_empty(), "{d}");
    assert_eq!(d.to_string(), "no difference");
}

#[test]
fn an_adapter_shows_as_additions_and_one_rewired_reader() {
    let adapted = BASE
        .replace("%s = Softmax(%q)", "%a = MatMul(%h2, %lora)  // attn/q/lora\n  %o = Add(%q, %a)  // attn/q/add\n  %s = Softmax(%o)")
        .replace("  %h0", "  init %lora: f32[4, 4] = fill(0.0) +onnx_graft.adapter=\"l\"\n  %h0");
    let d = between(BASE, &adapted);
    assert_eq!(
        d.to_string(),
        "\
attn/q: 2 added, 0 removed, 0 changed
    %q = MatMul(%h2, %w)  // attn/q/MatMul
  + %a = MatMul(%h2, %lora)  // attn/q/lora
  + %o = Add(%q, %a)  // attn/q/add
attn: 0 added, 0 removed, 1 changed
  ~ %s = Softmax(%o) {axis = -1}  // attn/softmax
      input 0: %q -> %o
initializers: 1 added, 0 removed, 0 changed
  + %lora: f32[4, 4] blake3:7b9b5d5a35f1a2a5
nodes: 2 added, 0 removed, 1 changed; initializers: 1 added, 0 removed, 0 changed; modules with changes: 2"
            .replace("7b9b5d5a35f1a2a5", &zero_hash())
    );
}

fn zero_hash() -> String {
    blake3::hash(&[0; 64]).to_hex()[..16].to_owned()
}

#[test]
fn an_output_that_hands_its_name_over_is_seen() {
    let renamed = BASE.replace(
        "%y = Tanh(%s)  // out/tanh",
        "%y_0 = Tanh(%s)  // out/tanh\n  %y = Add(%y_0, %x)  // out/add",
    );
    let d = between(BASE, &renamed);
    assert_eq!((d.nodes().added, d.nodes().changed), (1, 1));
    let text = d.to_string();
    assert!(text.contains("output 0: %y -> %y_0"), "{text}");
    assert!(d.interface.is_empty());
}

#[test]
fn a_reader_of_another_value_of_the_same_name_is_rewired() {
    let a = "graph g(%x) -> (%z)\n %y = Relu(%x)  // r\n %z = Neg(%y)  // n";
    let b =
        "graph g(%x) -> (%z)\n %y0 = Relu(%x)  // r\n %y = Abs(%y0)  // new\n %z = Neg(%y)  // n";
    let text = between(a, b).to_string();
    assert!(
        text.contains("~ %z = Neg(%y)  // n\n      input 0: %y -> %y (another value of this name)"),
        "{text}"
    );
}

#[test]
fn other_kinds_of_change_are_seen() {
    let d = between(BASE, &BASE.replace("axis = -1", "axis = 1"));
    assert!(d.to_string().contains("axis: -1 -> 1"), "{d}");
    let d = between(BASE, &BASE.replace("seed(1)", "seed(2)"));
    assert_eq!(
        (d.modules.len(), d.initializers[0].change),
        (0, Change::Changed)
    );
    let d = between(
        BASE,
        &BASE.replace("b, 4]) -> (%y: f32[b, 4]", "b, 4], %z) -> (%y: f32[c, 4]"),
    );
    let text = d.to_string();
    assert!(
        text.contains("+ input %z: untyped") && text.contains("type: f32[b, 4] -> f32[c, 4]"),
        "{text}"
    );
    let d = between(
        BASE,
        &BASE.replace("opset \"\" 17", "opset \"\" 18\nmeta \"k\" = \"v\""),
    );
    let text = d.to_string();
    assert!(
        text.contains("+ meta \"k\" = \"v\"") && text.contains("was: 17 -> 18"),
        "{text}"
    );
    let d = between(BASE, &BASE.replace("Neg(%h0)", "Abs(%h0)"));
    assert_eq!(
        (d.nodes().added, d.nodes().removed, d.nodes().changed),
        (1, 1, 0)
    );
    let d = between(BASE, &BASE.replace("// mlp/1", "// mlp/1b"));
    assert!(
        d.to_string().contains("name: \"mlp/1\" -> \"mlp/1b\""),
        "{d}"
    );
}

#[test]
fn context_is_two_nodes_of_the_module() {
    let long = |op: &str| {
        let mut text = "graph g(%v0) -> (%v9)\n".to_owned();
        for i in 0..9 {
            let op = if i == 5 { op } else { "Relu" };
            writeln!(text, "  %v{} = {op}(%v{i})  // m/{i}", i + 1).unwrap();
        }
        text
    };
    let d = between(
        &long("Neg"),
        &long("Neg").replace("%v6 = Neg(%v5)", "%v6 = Neg(%v0)"),
    );
    assert_eq!(
        d.modules[0].lines.len(),
        7,
        "a gap, two before, the change, two after, a gap: {d}"
    );
}
