//! `Gelu` (20) and the activations of `com.microsoft`: `Gelu`, `BiasGelu` (`gelu(x + bias)`), `FastGelu` (`tanh` form, optional bias)
//! and `QuickGelu` (`x·σ(alpha·x)`).

use super::forms::{float, infer_like, unbroadcast};
use super::{GradCx, GradError, Gradient, OpDef};
use crate::ir::{Builder, DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    def("", "Gelu", (1, 1), gelu),
    def("com.microsoft", "Gelu", (1, 1), gelu),
    def("com.microsoft", "BiasGelu", (2, 2), gelu),
    def("com.microsoft", "FastGelu", (1, 2), fast_gelu),
    def("com.microsoft", "QuickGelu", (1, 1), quick_gelu),
];

const fn def(
    domain: &'static str,
    name: &'static str,
    inputs: (usize, usize),
    rule: fn(&mut GradCx<'_>) -> Result<(), GradError>,
) -> OpDef {
    OpDef {
        domain,
        name,
        inputs,
        outputs: (1, 1),
        infer: infer_like,
        gradient: Gradient::Rule(rule),
    }
}

/// Derivative of `x·Φ(x)`: `Φ(x) + x·φ(x)`.
fn erf_slope(b: &Builder, x: Val, ty: DType) -> Val {
    let c = |v: f32| b.scalar_of(v, ty);
    let erf = b.unary("Erf", b.mul(x, c(std::f32::consts::FRAC_1_SQRT_2)));
    let cdf = b.add(b.mul(erf, c(0.5)), c(0.5));
    let bell = b.unary("Exp", b.mul(b.mul(x, x), c(-0.5)));
    // 1/√(2π)
    let density = b.mul(bell, c(0.398_942_3));
    b.add(cdf, b.mul(x, density))
}

/// Derivative of `x·½(1 + tanh(√(2/π)·(x + 0.044715·x³)))`.
fn tanh_slope(b: &Builder, x: Val, ty: DType) -> Val {
    let c = |v: f32| b.scalar_of(v, ty);
    // √(2/π)
    let k = 0.797_884_6f32;
    let square = b.mul(x, x);
    let inner = b.mul(x, b.add(b.mul(square, c(0.044_715 * k)), c(k)));
    let t = b.unary("Tanh", inner);
    let half = b.add(b.mul(t, c(0.5)), c(0.5));
    let inner_slope = b.add(b.mul(square, c(3.0 * 0.044_715 * k)), c(k));
    // ½·x·(1 - t²)·inner′ = 2·half·(1 - half)·x·inner′
    let bump = b.mul(half, b.sub(c(2.0), b.add(half, half)));
    b.add(half, b.mul(b.mul(x, bump), inner_slope))
}

fn gelu(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    let slope = match cx.node().str("approximate") {
        None | Some("none") => erf_slope,
        Some("tanh") => tanh_slope,
        Some(other) => return Err(GradError(format!("approximate = {other:?}"))),
    };
    through(cx, slope)
}

fn fast_gelu(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    through(cx, tanh_slope)
}

/// With `σ = σ(a·x)`: `σ + a·x·σ·(1 - σ)`.
fn quick_gelu(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    let alpha = cx.node().float("alpha", 1.702);
    through(cx, |b, x, ty| {
        let c = |v: f32| b.scalar_of(v, ty);
        let ax = b.mul(x, c(alpha));
        let s = b.unary("Sigmoid", ax);
        b.mul(s, b.add(b.mul(ax, b.sub(c(1.0), s)), c(1.0)))
    })
}

/// `g·slope(x + bias)`, for `x` and, summed, for the bias.
fn through(
    cx: &mut GradCx<'_>,
    slope: impl Fn(&Builder, Val, DType) -> Val,
) -> Result<(), GradError> {
    let ty = float(cx, 0);
    let x = match cx.input(1) {
        Ok(bias) => cx.b.add(cx.input(0)?, bias),
        Err(_) => cx.input(0)?,
    };
    let dx = cx.b.mul(cx.grad()?, slope(cx.b, x, ty));
    if cx.wants(0) {
        cx.set(0, dx);
    }
    if cx.wants(1) {
        let full: Vec<Option<Sym>> = super::forms::dims(cx, 0)?.into_iter().map(Some).collect();
        let d = unbroadcast(cx, 1, dx, &full)?;
        cx.set(1, d);
    }
    Ok(())
}
