//! Functions of single elements, arithmetic, selection.

use super::super::harness::{Case, op};
use onnx_graft::ir::TensorData;

/// Unary functions between -1.5 and 1.5.
const SMOOTH: [&str; 24] = [
    "Neg",
    "Abs",
    "Exp",
    "Erf",
    "Tanh",
    "Sigmoid",
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "Softplus",
    "Softsign",
    "HardSigmoid",
    "HardSwish",
    "Mish",
    "Sin",
    "Cos",
    "Tan",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Identity",
];

pub(super) fn cases() -> Vec<Case> {
    let mut out: Vec<Case> = SMOOTH
        .into_iter()
        .map(|name| match name {
            // At 1.5 its third derivative is 1e4, so that curvature alone is an error of 1e-1.
            "Tan" => op(name).within(&[2, 3], -0.7, 0.7),
            "Mish" => op(name).x(&[2, 3]).at(22),
            _ => op(name).x(&[2, 3]),
        })
        .collect();
    out.extend(arithmetic());
    out.extend(selection());
    out.extend([
        op("Sqrt").within(&[5], 0.5, 2.0),
        op("Reciprocal").within(&[5], 0.5, 2.0),
        op("Log").within(&[5], 0.5, 2.0),
        op("ThresholdedRelu").x(&[7]).set("alpha", 0.4f32),
        op("LeakyRelu").x(&[7]).set("alpha", 0.3f32),
        op("Elu").x(&[7]).set("alpha", 0.7f32),
        op("HardSigmoid").x(&[7]).set("alpha", 0.6f32),
        op("Swish").x(&[7]).at(24).set("alpha", 1.3f32),
        op("Asin").within(&[5], -0.7, 0.7),
        op("Acos").within(&[5], -0.7, 0.7),
        op("Atanh").within(&[5], -0.7, 0.7),
        op("Acosh").within(&[5], 1.5, 3.0),
        op("Cast").x(&[2, 3]).set("to", 1i64),
        op("CastLike").x(&[2, 3]).frozen(&[1]),
        op("Dropout").x(&[2, 3]),
        op("Gelu").x(&[2, 3]),
        op("Gelu").x(&[2, 3]).set("approximate", "tanh"),
        op("com.microsoft::Gelu").x(&[2, 3]),
        op("com.microsoft::BiasGelu").x(&[2, 2, 3]).x(&[3]),
        op("com.microsoft::FastGelu").x(&[2, 3]),
        op("com.microsoft::FastGelu").x(&[2, 3]).x(&[3]),
        op("com.microsoft::QuickGelu").x(&[2, 3]),
        op("com.microsoft::QuickGelu")
            .x(&[2, 3])
            .set("alpha", 1.0f32),
    ]);
    out
}

fn arithmetic() -> Vec<Case> {
    let mut out = Vec::new();
    for name in ["Add", "Sub", "Mul", "Div", "Max", "Min", "Sum", "Mean"] {
        let second = |dims: &[usize], case: Case| case.within(dims, 0.5, 1.7);
        out.push(second(&[2, 3], op(name).x(&[2, 3])));
        out.push(second(&[3], op(name).x(&[2, 3])));
        out.push(second(&[2, 1, 1], op(name).x(&[1, 3])));
        out.push(second(&[1], op(name).x(&[])));
    }
    out.extend([
        op("Sum").x(&[2, 3]).x(&[3]).x(&[2, 1]),
        op("Max").x(&[2, 3]).x(&[3]).x(&[1, 1]),
        op("Mean").x(&[2, 3]),
        op("Pow").within(&[2, 3], 0.5, 2.0).within(&[3], -1.0, 2.0),
        op("Pow").x(&[2, 3]).is(TensorData::scalar(2.0)),
        op("Pow").x(&[2, 3]).is(TensorData::scalar(3.0)),
        op("Pow").within(&[4], 0.5, 2.0).is(TensorData::scalar(0.5)),
        op("Mod")
            .x(&[5])
            .is(TensorData::scalar(0.9))
            .set("fmod", 1i64),
    ]);
    out
}

fn selection() -> Vec<Case> {
    vec![
        op("Where")
            .bools(&[2, 3], &[1, 0, 1, 0, 0, 1])
            .x(&[2, 3])
            .x(&[3]),
        op("Where").bools(&[2, 1], &[1, 0]).x(&[]).x(&[2, 3]),
        op("Clip")
            .x(&[7])
            .is(TensorData::scalar(-0.6))
            .is(TensorData::scalar(0.8)),
        op("Clip").x(&[7]).none().is(TensorData::scalar(0.8)),
    ]
}
