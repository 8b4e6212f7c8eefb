//! `Gelu` (20) and the activations of `com.microsoft`: `Gelu`, `BiasGelu` (`gelu(x + bias)`), `FastGelu` (`tanh` form, optional bias)
//! and `QuickGelu` (`x·σ(alpha·x)`).

use super::kit::infer::same_as_input;
use super::kit::{Defined, Differentiated, MS, no_gradient};
use super::{ExpandCx, GradCx, OpDef};
use crate::ir::{Builder, DType, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Gelu", 1..=1, same_as_input).gradient(gelu),
    OpDef::new("Gelu", 1..=1, same_as_input)
        .in_domain(MS)
        .gradient(gelu),
    OpDef::new("BiasGelu", 2..=2, same_as_input)
        .in_domain(MS)
        .defined_by(|cx| biased(cx, "none")),
    OpDef::new("FastGelu", 1..=2, same_as_input)
        .in_domain(MS)
        .defined_by(|cx| biased(cx, "tanh")),
    OpDef::new("QuickGelu", 1..=1, same_as_input)
        .in_domain(MS)
        .gradient(quick_gelu),
];

/// `gelu(x + bias)`: the sum is a value again, which is what a projection makes.
fn biased(cx: &ExpandCx<'_>, approximate: &str) -> Defined {
    let b = cx.b;
    let x = match cx.optional(1) {
        Some(bias) => b.add(cx.input(0)?, bias),
        None => cx.input(0)?,
    };
    if b.opset() >= 20 {
        let attrs = [("approximate", approximate.into())];
        return Ok(vec![Some(b.op("Gelu", &[x], &attrs))]);
    }
    if approximate == "none" {
        return Ok(vec![Some(b.op_in(MS, "Gelu", &[x], &[]))]);
    }
    let ty = cx.float(0);
    let c = |v: f32| b.scalar_of(v, ty);
    let cube = b.mul(b.mul(x, x), x);
    let inner = b.mul(b.add(x, b.mul(cube, c(0.044_715))), c(SQRT_2_OVER_PI));
    let tanh = b.add(b.unary("Tanh", inner), c(1.0));
    Ok(vec![Some(b.mul(b.mul(x, c(0.5)), tanh))])
}

/// √(2/π).
const SQRT_2_OVER_PI: f32 = 0.797_884_6;

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
    let k = SQRT_2_OVER_PI;
    let square = b.mul(x, x);
    let inner = b.mul(x, b.add(b.mul(square, c(0.044_715 * k)), c(k)));
    let t = b.unary("Tanh", inner);
    let half = b.add(b.mul(t, c(0.5)), c(0.5));
    let inner_slope = b.add(b.mul(square, c(3.0 * 0.044_715 * k)), c(k));
    // ½·x·(1 - t²)·inner′ = 2·half·(1 - half)·x·inner′
    let bump = b.mul(half, b.sub(c(2.0), b.add(half, half)));
    b.add(half, b.mul(b.mul(x, bump), inner_slope))
}

fn gelu(cx: &mut GradCx<'_>) -> Differentiated {
    let slope = match cx.node().str("approximate") {
        None | Some("none") => erf_slope,
        Some("tanh") => tanh_slope,
        Some(other) => return no_gradient(format!("approximate = {other:?}")),
    };
    through(cx, slope)
}

/// With `σ = σ(a·x)`: `σ + a·x·σ·(1 - σ)`.
fn quick_gelu(cx: &mut GradCx<'_>) -> Differentiated {
    let alpha = cx.node().float("alpha", 1.702);
    through(cx, |b, x, ty| {
        let c = |v: f32| b.scalar_of(v, ty);
        let ax = b.mul(x, c(alpha));
        let s = b.unary("Sigmoid", ax);
        b.mul(s, b.add(b.mul(ax, b.sub(c(1.0), s)), c(1.0)))
    })
}

/// `g·slope(x)`.
fn through(cx: &mut GradCx<'_>, slope: impl Fn(&Builder, Val, DType) -> Val) -> Differentiated {
    let ty = cx.float(0);
    if cx.wants(0) {
        let dx = cx.b.mul(cx.grad()?, slope(cx.b, cx.input(0)?, ty));
        cx.set(0, dx);
    }
    Ok(())
}
