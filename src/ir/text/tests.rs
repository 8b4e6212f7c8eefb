use super::{TextOptions, parse, print, print_module, write};
use crate::ir::{AttrValue, DType, Payload};
use proptest::prelude::*;

/// The text, normalised: parsed and printed.
#[track_caller]
fn stable(text: &str) {
    let printed = print(&parse(text).unwrap());
    assert_eq!(printed.trim_end(), text.trim_end());
}

const EVERYTHING: &str = r#"graph-text 1
ir_version 10
producer "py\"torch" "2.5\n"
opset "" 18
opset "com.microsoft" 1
meta "onnx_graft.adapters" = "[]"
function local::Scaled:two(%a) -> (%b)
  opset "" 17
  %b = LeakyRelu(%a) {alpha = @alpha:1}
graph main(%ids: i64[batch, "past + 1", ?], %"a b": f32[..], %s: other x"22040a020801", %u) -> (%logits: f32[2], %ids)
  init %w: f32[2, 2] = {1.0, -0.0, nan, nan(0x7fc00001)} +onnx_graft.adapter="lora"
  init %h: f16[] = 0.5
  init %d: f64[1] = {1e-300}
  init %empty: f32[0, 3] = {}
  init %str: string[2] = {"a", x"ff00"}
  init %b: bool[2] = {true, false}
  init %q: u4[3] = x"2103"
  init %big: f32[3, 3] blake3:0123456789abcdef
  init %gone: f32[100] missing
  %onnx::MatMul_12, _ = Split(%w, _) {num_outputs = 2, axes = ints[], scale = 0.5, list = [1, -2], f = [1.0, inf]}  // /model/layers.0/Split
  () = com.microsoft::Sink:ovl(%onnx::MatMul_12, _) +onnx_graft.site="q" +onnx_graft.x=""
  %c = Constant() {value = tensor i64[2] = {1, 2}, t = [tensor f32[] = 1.0], s = "x", l = ["a", x"80"], o = other x"0a01"}  // " spaced "
  %y = If(%b)  // a // b
    .then_branch = graph then() -> (%z: f32[2])
      meta "k" = "v"
      init %local: f32[1] = {3.0}
      %t = Relu(%onnx::MatMul_12)
      %z = Add(%t, %local)
    .else_branch = graph ""() -> (%e)
      capture %mine = %w
      %e = Identity(%mine)
  %logits = Many(%y)
    .bodies[0] = graph a() -> (%y)
    .bodies[1] = graph b() -> (%y)
"#;

#[test]
fn everything_the_form_can_say() {
    stable(EVERYTHING);
}

#[test]
fn constants_are_made_for_tests() {
    let m = parse(
        r"graph g(%x: f32[2]) -> (%x)
          init %f: f32[2, 2] = fill(0.5)
          init %i: i64[3] = iota
          init %s: f32[1000] = seed(3)
          init %h: bf16[] = 1.5",
    )
    .unwrap();
    let tensor = |n: &str| {
        m.graph
            .value(m.graph.find(n).unwrap())
            .tensor
            .clone()
            .unwrap()
    };
    assert_eq!(tensor("f").to_f32().unwrap(), [0.5; 4]);
    assert_eq!(tensor("i").to_i64().unwrap(), [0, 1, 2]);
    assert_eq!(tensor("h").to_f32().unwrap(), [1.5]);
    let s = tensor("s").to_f32().unwrap();
    assert!(s.iter().all(|x| (-1.0..1.0).contains(x)));
    let mean = s.iter().sum::<f32>() / 1000.0;
    // The deviation of the mean of 1000 uniform numbers is 0.018: five of them.
    assert!(mean.abs() < 0.09, "{mean}");
    let again = parse("graph g() -> ()\ninit %s: f32[1000] = seed(3)").unwrap();
    let other = again
        .graph
        .value(again.graph.find("s").unwrap())
        .tensor
        .clone()
        .unwrap();
    assert_eq!(other, tensor("s"));
}

#[test]
fn a_hash_parses_to_a_placeholder() {
    let m = parse("graph g() -> ()\n  init %w: f32[4, 4] blake3:00ff00ff00ff00ff").unwrap();
    let t = m
        .graph
        .value(m.graph.find("w").unwrap())
        .tensor
        .clone()
        .unwrap();
    assert_eq!((t.dtype, &*t.dims), (DType::Float, &[4, 4][..]));
    assert!(matches!(&t.payload, Payload::External(e) if e.bytes.is_empty()));
    assert!(t.bytes().is_none());
}

#[test]
fn subgraphs_capture_what_they_do_not_define() {
    let m = parse(
        r"graph g(%c: bool[], %x: f32[2]) -> (%y)
          %y = If(%c)
            .then_branch = graph t() -> (%z)
              %z = If(%c)
                .then_branch = graph u() -> (%x)
                .else_branch = graph v() -> (%w)
                  %w = Relu(%x)
            .else_branch = graph e() -> (%x)",
    )
    .unwrap();
    let n = m.graph.nodes().next().unwrap();
    let names: Vec<&str> = m
        .graph
        .node_captures(n)
        .iter()
        .map(|&v| m.graph.name_of(v))
        .collect();
    assert_eq!(names, ["c", "x", "x"]);
    let Some(AttrValue::Graph(t)) = m.graph.node(n).attr("then_branch") else {
        panic!("no subgraph")
    };
    assert_eq!(t.captures().len(), 2);
}

#[test]
fn errors_name_line_and_expectation() {
    for (text, parts) in [
        (
            "graph g() -> ()\n  %y = Relu(%x)",
            ["line 2", "`%x` is read, but nothing above defines it"],
        ),
        (
            "graph g(%x) -> (%x)\n  %x = Relu(%x)",
            ["line 2", "`%x` is defined already"],
        ),
        (
            "graph g(%x: f33[2]) -> ()",
            ["line 1", "an element type such as `f32`"],
        ),
        (
            "graph g() -> ()\n  init %w: f32[2] = {1.0}",
            ["line 2", "2 elements are expected, 1 are there"],
        ),
        (
            "graph g() -> ()\n  init %w: i64[1] = {1.5}",
            ["line 2", "`1.5` is no element of type i64"],
        ),
        ("graph g() -> (%y)", ["line 1", "`%y` is read"]),
        ("opset \"\" 17", ["line 1", "there is no `graph` line"]),
        ("nonsense", ["line 1", "`nonsense` begins no line here"]),
        ("graph-text 2\ngraph g() -> ()", ["line 1", "version 1"]),
        (
            "graph g() -> ()\n  %y = Relu() {a = [1, 2.0]}",
            ["line 2", "either integers or floats"],
        ),
        (
            "graph g() -> ()\n  %y = Relu() {a = \"x}",
            ["line 2", "does not end"],
        ),
        (
            "graph g() -> ()\n  init %w: f32[99999999999] = fill(0)",
            ["line 2", "can be made"],
        ),
    ] {
        let message = parse(text).unwrap_err().to_string();
        for part in parts {
            assert!(message.contains(part), "`{part}` is not in {message}");
        }
    }
}

#[test]
fn a_module_prints_alone() {
    let m = parse(
        r"graph g(%x: f32[2]) -> (%z)
          init %a: f32[] = 1.0
          init %b: f32[] = 2.0
          %y = Add(%x, %a)  // one
          %z = Add(%y, %b)  // two",
    )
    .unwrap();
    let text = print_module(&m, &|n| &*m.graph.node(n).name == "two");
    assert_eq!(
        text,
        "graph-text 1\ngraph g(%x: f32[2]) -> (%z)\n  init %b: f32[] = 2.0\n  %z = Add(%y, %b)  // two\n"
    );
}

#[test]
fn dangling_weights_can_be_left_out() {
    let m = parse("graph g(%x) -> (%x)\n  init %unused: f32[] = 1.0").unwrap();
    let mut text = String::new();
    let options = TextOptions {
        dangling: false,
        ..TextOptions::default()
    };
    write(&m, options, &mut text).unwrap();
    assert_eq!(text, "graph-text 1\ngraph g(%x) -> (%x)\n");
}

#[test]
fn hashes_tell_weights_apart() {
    let line = |seed: u32| {
        print(&parse(&format!("graph g() -> ()\ninit %w: f32[9] = seed({seed})")).unwrap())
    };
    assert_eq!(line(1), line(1));
    assert_ne!(line(1), line(2));
    let mut text = String::new();
    let m = parse("graph g() -> ()\ninit %w: f32[9] = iota").unwrap();
    write(
        &m,
        TextOptions {
            hashes: false,
            ..TextOptions::default()
        },
        &mut text,
    )
    .unwrap();
    assert!(text.contains("init %w: f32[9] ...\n"), "{text}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any names, attribute values and metadata survive.
    #[test]
    fn any_text_survives(
        names in prop::array::uniform4("\\PC{0,6}|[ -~]{1,8}|[a-z/.:]{1,8}|\\p{Any}{1,4}"),
        floats in prop::collection::vec(any::<u32>(), 1..9),
        bytes in prop::collection::vec(any::<u8>(), 0..6),
    ) {
        prop_assume!(names[0] != names[1]);
        let mut m = parse("graph g(%a: f32[n]) -> (%b)\n  init %w: f32[1] = {1.0}\n  %b = Op(%a) {s = \"\", f = [1.0]}").unwrap();
        let g = &mut m.graph;
        let (a, b) = (g.find("a").unwrap(), g.find("b").unwrap());
        prop_assume!(g.rename(a, &names[0]).is_ok() && g.rename(b, &names[1]).is_ok());
        let n = g.nodes().next().unwrap();
        let floats: Vec<f32> = floats.into_iter().map(f32::from_bits).collect();
        let w = g.find("w").unwrap();
        g.value_mut(w).unwrap().tensor = Some(crate::ir::TensorData::from_f32([floats.len() as u64], &floats));
        let node = g.node_mut(n).unwrap();
        node.name = names[2].as_str().into();
        node.op.domain = names[3].as_str().into();
        node.attrs.insert("s".into(), AttrValue::String(bytes.into()).into());
        node.attrs.insert("f".into(), AttrValue::Floats(floats).into());
        node.attrs.insert(names[0].as_str().into(), AttrValue::Ref { name: names[1].as_str().into(), kind: 1 }.into());
        node.metadata.insert(format!("onnx_graft.{}", names[1]).into(), names[2].as_str().into());
        m.metadata.insert(names[2].as_str().into(), names[3].as_str().into());
        let text = print(&m);
        let again = parse(&text).map_err(|e| TestCaseError::fail(format!("{e}\n{text}")))?;
        prop_assert_eq!(print(&again), text);
    }

    /// No text panics the parser.
    #[test]
    fn any_damage_is_an_error_or_a_model(at in any::<prop::sample::Index>(), with in "\\PC{0,3}") {
        let text = EVERYTHING;
        let at = at.index(text.len());
        prop_assume!(text.is_char_boundary(at));
        let _ = parse(&format!("{}{with}{}", &text[..at], &text[at + 1..]));
    }
}
