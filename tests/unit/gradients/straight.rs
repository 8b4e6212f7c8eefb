//! Straight through: where the scale of the codes comes from the input, the gradient is that of the float product with the dequantized
//! weight, and the result is the quantized one.

use super::harness::noise;
use onnx_graft::infer::Verified;
use onnx_graft::ir::{Builder, DType, Dim, Model, OpId, TensorData, Type, Val, contract};
use onnx_graft::rewrite::Pipeline;
use onnx_graft::rewrite::passes::gradient::{GradientPass, Outputs, Unreached};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value};

const DIMS: [i64; 2] = [4, 6];
const WIDTH: usize = 5;

fn codes() -> Vec<i8> {
    (0..DIMS[1] as usize * WIDTH)
        .map(|i| (i * 37 % 251) as u8 as i8)
        .collect()
}

fn scales() -> Vec<f32> {
    (0..WIDTH).map(|j| 0.01 + 0.003 * j as f32).collect()
}

/// The loss `Σ y·cos(i)` of a product, and its gradient by the input.
fn gradient(product: impl FnOnce(&Builder, Val) -> Val) -> (f32, Vec<f32>) {
    let b = Builder::new(17);
    let x = b.graph_input("x", Type::tensor(DType::Float, DIMS.map(Dim::Known)));
    let y = product(&b, x);
    let weights = noise(7, DIMS[0] as usize * WIDTH, -1.0, 1.0);
    let weights = b.constant(TensorData::from_f32(
        [DIMS[0] as u64, WIDTH as u64],
        &weights,
    ));
    let loss = b.op(
        "ReduceSum",
        &[b.mul(y, weights)],
        &[("keepdims", 0i64.into())],
    );
    let model = Model {
        graph: b
            .finish_graph("g", &[(loss, "loss", Type::tensor(DType::Float, []))])
            .unwrap(),
        opset_imports: vec![("".into(), 17), ("com.microsoft".into(), 1)],
        ir_version: 8,
        ..Model::default()
    };
    let pass = GradientPass {
        loss: "loss".into(),
        wrt: vec!["x".into()],
        outputs: Outputs::Keep,
        unreached: Unreached::Refuse,
    };
    let model = Verified::check(model).unwrap();
    let done = Pipeline::new().with(pass).run(model).unwrap();
    let plan = Plan::compile(&done.model, &CompileOptions::default()).unwrap();
    let data = noise(3, (DIMS[0] * DIMS[1]) as usize, -2.0, 1.0);
    let x = Value::from_f32(&DIMS.map(|d| d as usize), data).unwrap();
    let out = plan.run(&Feeds::new().with("x", x)).unwrap();
    let loss = out["loss"].to_f32().unwrap()[0];
    (loss, out[&*contract::grad("x")].to_f32().unwrap())
}

fn weight(b: &Builder) -> [Val; 3] {
    let dims = [DIMS[1] as u64, WIDTH as u64];
    let data: Vec<u8> = codes().iter().map(|&x| x as u8).collect();
    [
        b.constant(TensorData::raw(DType::Int8, dims, data.into())),
        b.constant(TensorData::from_f32([WIDTH as u64], &scales())),
        b.constant(TensorData::raw(
            DType::Int8,
            [WIDTH as u64],
            vec![3, 0, 1, 9, 255].into(),
        )),
    ]
}

#[test]
fn gradients_pass_dynamic_quantization_as_they_came() {
    let float = gradient(|b, x| {
        let [w, scale, zero] = weight(b);
        let w = b.op(
            "DequantizeLinear",
            &[w, scale, zero],
            &[("axis", 1i64.into())],
        );
        b.matmul(x, w)
    });
    let chain = gradient(|b, x| {
        let [w, scale, zero] = weight(b);
        let op = OpId::onnx("DynamicQuantizeLinear");
        let parts = b.node_n(op, &[Some(x)], &[], 3);
        let sum = b.op("MatMulInteger", &[parts[0], w, parts[2], zero], &[]);
        b.mul(b.cast(sum, DType::Float), b.mul(parts[1], scale))
    });
    let fused = gradient(|b, x| {
        let [w, scale, zero] = weight(b);
        b.op_in(
            "com.microsoft",
            "DynamicQuantizeMatMul",
            &[x, w, scale, zero],
            &[],
        )
    });
    for (loss, grad) in [chain, fused] {
        // The forward pass rounds to 255 steps over the range of `x`.
        assert!(loss.to_bits() != float.0.to_bits());
        assert!(
            (loss - float.0).abs() < 0.02 * float.0.abs().max(1.0),
            "{loss} for {}",
            float.0
        );
        for (a, b) in grad.iter().zip(&float.1) {
            // The scale of the codes is multiplied in, and divided out again.
            assert!((a - b).abs() <= 1e-5 * b.abs().max(1.0), "{a} for {b}");
        }
    }
}
