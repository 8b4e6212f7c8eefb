//! The runtime against the corpus: graphs of both torch exporters on recorded inputs.

use super::support::fixture;
use onnx_graft::infer::Verified;
use onnx_graft::onnx;
use onnx_graft::runtime::{CompileOptions, Feeds, Outputs, Plan, Value, io};
use std::path::Path;

fn open(path: &Path) -> Verified {
    Verified::check(onnx::open(path).unwrap()).unwrap()
}

fn feeds_of(plan: &Plan, data: &Feeds) -> Feeds {
    let mut feeds = Feeds::new();
    for spec in plan.feeds() {
        if let Some(v) = data.0.get(&format!("input/{}", spec.name)) {
            feeds.insert(&spec.name, v.clone());
        }
    }
    feeds
}

fn largest_difference(a: &Value, b: &Value) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (a.to_f32().unwrap(), b.to_f32().unwrap());
    a.iter()
        .zip(&b)
        .map(|(x, y)| (x - y).abs())
        .fold(0.0, f32::max)
}

/// 1e-4: torch and onnxruntime differ by up to 4e-6 on these graphs, whose outputs are of order 1 to 10.
const TOLERANCE: f32 = 1e-4;

fn agrees_with_torch(arch: &str) {
    let folder = fixture(arch);
    let data = io::read(&folder.join("inputs.safetensors")).unwrap();
    let mut compared = 0;
    for file in ["model.onnx", "model.torchscript.onnx"] {
        let path = folder.join(file);
        if !path.exists() {
            continue;
        }
        let plan = Plan::compile(&open(&path), &CompileOptions::default()).unwrap();
        let feeds = feeds_of(&plan, &data);
        // Twice: the second run works in recycled buffers.
        for _ in 0..2 {
            let out: Outputs = plan.run(&feeds).unwrap();
            for (name, value) in &out {
                if let Some(want) = data.0.get(&format!("base/{name}")) {
                    let d = largest_difference(&value.0, want);
                    assert!(d < TOLERANCE, "{arch}/{file}: {name} differs by {d}");
                    compared += 1;
                }
            }
        }
    }
    assert!(compared > 0, "{arch}: nothing was compared");
}

macro_rules! architectures {
    ($($arch:ident),*) => {$(
        #[test]
        fn $arch() {
            agrees_with_torch(stringify!($arch));
        }
    )*};
}

architectures!(qwen3, qwen3_dedup, llama, gpt2, bert, distilbert, t5, vit);

#[test]
fn any_value_can_be_asked_for_and_nothing_else_is_computed() {
    let model = open(&fixture("qwen3").join("model.torchscript.onnx"));
    let all = Plan::compile(&model, &CompileOptions::default()).unwrap();
    let name = "/model/layers.0/self_attn/q_proj/MatMul_output_0".to_owned();
    let options = CompileOptions {
        outputs: Some(vec![name.clone()]),
        ..CompileOptions::default()
    };
    let part = Plan::compile(&model, &options).unwrap();
    assert!(part.step_count() * 4 < all.step_count());
    let ids = Value::from_i64(&[1, 3], vec![1, 2, 3]).unwrap();
    let out = part.run(&Feeds::new().with("input_ids", ids)).unwrap();
    assert_eq!(out[&name].dims()[..2], [1, 3]);
}

#[test]
fn inputs_are_checked_together() {
    let model = open(&fixture("qwen3").join("model.onnx"));
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    let feeds = Feeds::new()
        .with(
            "input_ids",
            Value::from_f32(&[1, 2], vec![1.0, 2.0]).unwrap(),
        )
        .with(
            "atention_mask",
            Value::from_i64(&[1, 2], vec![1, 1]).unwrap(),
        );
    let message = plan.run(&feeds).unwrap_err().to_string();
    for part in [
        "did you mean `attention_mask`?",
        "found f32, expected i64",
        "`attention_mask` is missing",
    ] {
        assert!(message.contains(part), "{part}: {message}");
    }
}

#[test]
fn an_id_outside_the_vocabulary_is_an_error_that_names_the_node() {
    let model = open(&fixture("qwen3").join("model.onnx"));
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    let feeds = Feeds::new()
        .with(
            "input_ids",
            Value::from_i64(&[1, 2], vec![1, 1 << 40]).unwrap(),
        )
        .with(
            "attention_mask",
            Value::from_i64(&[1, 2], vec![1, 1]).unwrap(),
        );
    let message = plan.run(&feeds).unwrap_err().to_string();
    assert!(
        message.contains("(Gather): index 1099511627776 is outside"),
        "{message}"
    );
    assert!(message.contains("inputs: "), "{message}");
}

#[test]
fn tensors_survive_a_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("values.safetensors");
    let a = Value::from_f32(&[2], vec![1.5, -2.0]).unwrap();
    let b = Value::from_i64(&[1, 1], vec![-7]).unwrap();
    io::write(&path, [("b", &b), ("a", &a)]).unwrap();
    let back = io::read(&path).unwrap();
    assert_eq!(back.0["a"].to_f32().unwrap(), [1.5, -2.0]);
    assert_eq!(back.0["b"].to_ints().unwrap(), [-7]);
    assert_eq!(back.0["b"].dims(), [1, 1]);
}

/// A graph that was converted to `f16` takes the data of the original, rounded as its input declares.
#[test]
fn floats_are_fed_in_the_type_of_the_input() {
    use onnx_graft::ir::{Builder, DType, Dim, Model, Type};
    let b = Builder::new(17);
    let ty = || Type::tensor(DType::Float16, [Dim::Known(2)]);
    let x = b.graph_input("x", ty());
    let y = b.unary("Neg", x);
    let model = Model {
        graph: b.finish_graph("g", &[(y, "y", ty())]).unwrap(),
        opset_imports: vec![("".into(), 17)],
        ir_version: 8,
        ..Model::default()
    };
    let model = Verified::check(model).unwrap();
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    let fed = Value::from_f32(&[2], vec![0.1, 70000.0]).unwrap();
    let out = plan.run(&Feeds::new().with("x", fed)).unwrap();
    assert_eq!(out["y"].dtype(), DType::Float16);
    assert_eq!(
        out["y"].to_f32().unwrap(),
        [-0.099_975_586, f32::NEG_INFINITY]
    );
}

/// Functions of one element, on `f64` as on `f32`, with the attributes that the node gives; what is not a number stays so.
#[test]
fn functions_of_an_element_are_the_same_in_both_precisions() {
    let functions = [
        "Selu(%x) {alpha = 1.5, gamma = 1.2}",
        "Celu(%x) {alpha = 2.0}",
        "ThresholdedRelu(%x) {alpha = 0.25}",
        "LeakyRelu(%x) {alpha = 0.5}",
        "Elu(%x) {alpha = 0.5}",
        "HardSigmoid(%x) {alpha = 0.5, beta = 0.25}",
        "Sign(%x)",
        "Softplus(%x)",
        "Mish(%x)",
        "Gelu(%x)",
        "Relu(%x)",
        "Erf(%x)",
        "ReduceSumSquare(%x) {noop_with_empty_axes = 1}",
        "ReduceL1(%x) {noop_with_empty_axes = 1}",
    ];
    for function in functions {
        let text = format!(
            "opset \"\" 20\ngraph main(%x: f32[9]) -> (%y: f32[9], %w: f32[9])\n  %y = {function}\n  \
             %d = Cast(%x) {{to = 11}}\n  %v = {}\n  %w = Cast(%v) {{to = 1}}",
            function.replace("%x", "%d")
        );
        let model = onnx_graft::ir::text::parse(&text).unwrap();
        let model = Verified::check(model).unwrap();
        let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
        let mut feeds = Feeds::new();
        let x = vec![-2.0, -0.5, 0.0, -0.0, 0.25, 0.5, 4.0, 1e-3, f32::NAN];
        feeds.insert("x", Value::from_f32(&[9], x).unwrap());
        let out = plan.run(&feeds).unwrap();
        let (y, w) = (out["y"].0.to_f32().unwrap(), out["w"].0.to_f32().unwrap());
        for (i, (a, b)) in y.iter().zip(&w).enumerate() {
            let near = (a - b).abs() <= 1e-6 * a.abs().max(1.0);
            assert!(
                near || (a.is_nan() && b.is_nan()),
                "{function}[{i}]: {a} {b}"
            );
        }
        // The sign of what is no number is anything.
        assert!(y[8].is_nan() || function.starts_with("Sign"), "{function}");
    }
}

/// A product that is added to half-precision numbers is joined with others of that type, as the gradient of a fused projection is.
#[test]
fn a_fused_product_keeps_the_type_of_what_it_is_added_to() {
    let text = r#"
        graph-text 1
        ir_version 8
        opset "" 17
        opset "onnx_graft" 1
        graph g(%c: f16[2, 4], %a: f16[2, 3]) -> (%z: f16[2, 8])
          init %w: f16[3, 4] = fill(0.5)
          %y = onnx_graft::MatMulAdd(%c, %a, %w) {alpha = 1.0}
          %z = Concat(%c, %y) {axis = 1}
    "#;
    let model = Verified::check(onnx_graft::ir::text::parse(text).unwrap()).unwrap();
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    let fed =
        |dims: &[usize], x: f32| Value::from_f32(dims, vec![x; dims.iter().product()]).unwrap();
    let feeds = Feeds::new()
        .with("c", fed(&[2, 4], 1.0))
        .with("a", fed(&[2, 3], 2.0));
    let out = plan.run(&feeds).unwrap();
    let want = [1.0, 1.0, 1.0, 1.0, 4.0, 4.0, 4.0, 4.0].repeat(2);
    assert_eq!(out["z"].to_f32().unwrap(), want);
}
