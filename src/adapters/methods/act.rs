//! Activation functions, by the names of Hugging Face's `ACT2FN`.

use crate::diag::{Diagnostic, nearest};
use crate::ir::{Builder, Val};

const NAMES: [&str; 20] = [
    "gelu",
    "gelu_10",
    "gelu_accurate",
    "gelu_fast",
    "gelu_new",
    "gelu_python",
    "gelu_pytorch_tanh",
    "laplace",
    "leaky_relu",
    "leakyrelu",
    "linear",
    "mish",
    "quick_gelu",
    "relu",
    "relu2",
    "relu6",
    "sigmoid",
    "silu",
    "swish",
    "tanh",
];

/// Refuses a name that nobody knows.
pub(crate) fn check(name: Option<&str>) -> Result<(), Diagnostic> {
    let Some(name) = name else { return Ok(()) };
    let lower = name.to_lowercase();
    if NAMES.contains(&lower.as_str()) {
        return Ok(());
    }
    let mut d = Diagnostic::error(
        "non-linearity",
        format!("`{name}` is not a known non-linearity"),
    );
    if let Some(near) = nearest(&lower, NAMES) {
        d = d.note(format!("the nearest one is `{near}`"));
    }
    Err(d.help(format!("known are {}", NAMES.join(", "))))
}

/// Applies an activation; without a name, the identity.
pub(crate) fn apply(b: &Builder, name: Option<&str>, x: Val) -> Val {
    let Some(name) = name else { return x };
    match name.to_lowercase().as_str() {
        "relu" => b.unary("Relu", x),
        "relu2" => {
            let y = b.unary("Relu", x);
            b.mul(y, y)
        }
        "relu6" => b.op("Clip", &[x, b.scalar(0.0), b.scalar(6.0)], &[]),
        "leakyrelu" | "leaky_relu" => b.op("LeakyRelu", &[x], &[("alpha", 0.01f32.into())]),
        "sigmoid" => b.unary("Sigmoid", x),
        "tanh" => b.unary("Tanh", x),
        "silu" | "swish" => b.mul(x, b.unary("Sigmoid", x)),
        "quick_gelu" => b.mul(x, b.unary("Sigmoid", b.scale(x, 1.702))),
        "mish" => b.mul(x, b.unary("Tanh", b.unary("Softplus", x))),
        "gelu" | "gelu_python" => gelu(b, x),
        "gelu_10" => b.op("Clip", &[gelu(b, x), b.scalar(-10.0), b.scalar(10.0)], &[]),
        "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => gelu_tanh(b, x),
        "laplace" => laplace(b, x),
        _ => x,
    }
}

/// `x/2·(1 + erf(x/√2))`.
fn gelu(b: &Builder, x: Val) -> Val {
    if b.opset() >= 20 {
        return b.unary("Gelu", x);
    }
    let erf = b.unary("Erf", b.scale(x, std::f32::consts::FRAC_1_SQRT_2));
    b.mul(b.scale(x, 0.5), b.add(erf, b.scalar(1.0)))
}

/// √(2/π).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

/// `x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
fn gelu_tanh(b: &Builder, x: Val) -> Val {
    if b.opset() >= 20 {
        return b.op("Gelu", &[x], &[("approximate", "tanh".into())]);
    }
    let cube = b.mul(b.mul(x, x), x);
    let inner = b.scale(b.add(x, b.scale(cube, 0.044_715)), SQRT_2_OVER_PI);
    b.mul(
        b.scale(x, 0.5),
        b.add(b.unary("Tanh", inner), b.scalar(1.0)),
    )
}

/// Hugging Face's constant, rounded as it is there.
#[expect(clippy::approx_constant, reason = "the reference rounds it")]
const LAPLACE_MEAN: f32 = 0.707_107;

/// `(1 + erf((x - µ)/(σ√2)))/2` with µ = 0.707107, σ = 0.282095.
fn laplace(b: &Builder, x: Val) -> Val {
    let z = b.scale(
        b.sub(x, b.scalar(LAPLACE_MEAN)),
        1.0 / (0.282_095 * std::f32::consts::SQRT_2),
    );
    b.scale(b.add(b.unary("Erf", z), b.scalar(1.0)), 0.5)
}
