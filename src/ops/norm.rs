//! `LayerNormalization` (17), `RMSNormalization` (23) and `SimplifiedLayerNormalization`, which onnxruntime writes into the default
//! domain: `x` is normalised over the axes from `axis` on, then scaled.
//!
//! Gradients recompute the statistics from `x`, in `f32` for narrower types (`stash_type` 1): a norm keeps nothing but its input.

use super::kit::grad::{convert, widened};
use super::kit::infer::{normal_axis, same_as_input};
use super::kit::{Differentiated, Inferred, MS, no_gradient};
use super::{GradCx, GradError, InferCx, OpDef};
use crate::ir::{DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("LayerNormalization", 2..=3, infer)
        .outputs(1..=3)
        .gradient(layer_norm),
    OpDef::new("RMSNormalization", 2..=2, infer).gradient(rms_norm),
    OpDef::new("SimplifiedLayerNormalization", 2..=2, infer)
        .outputs(1..=2)
        .gradient(rms_norm),
    OpDef::new("SimplifiedLayerNormalization", 2..=2, infer)
        .in_domain(MS)
        .outputs(1..=2)
        .gradient(rms_norm),
];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    same_as_input(cx)?;
    let axis = cx.node.int("axis", -1);
    let statistics = match cx.dims(0) {
        Some(dims) => {
            let first = normal_axis(axis, dims.len())?;
            let mut dims = dims.to_vec();
            dims[first..].fill(Sym::from(1));
            Some(dims)
        }
        None => None,
    };
    let ty = if cx.node.int("stash_type", 1) == 1 {
        Some(DType::Float)
    } else {
        cx.dtype(0)
    };
    for slot in 1..cx.outputs.len() {
        cx.set(slot, ty, statistics.clone());
    }
    Ok(())
}

/// What both rules share: operands in the wide type and the axes.
struct Norm {
    x: Val,
    scale: Val,
    g: Val,
    axes: Vec<i64>,
    leading: usize,
    narrow: DType,
    wide: DType,
}

impl Norm {
    fn read(cx: &GradCx<'_>) -> Result<Norm, GradError> {
        if cx.grads.iter().skip(1).any(Option::is_some) {
            return no_gradient(
                "a gradient arrives at the statistics, not only at the normalised output",
            );
        }
        let (rank, axis) = (cx.rank(0)?, cx.node().int("axis", -1));
        let first = normal_axis(axis, rank)?;
        let narrow = cx.float(0);
        let wide = widened(narrow, cx.node().int("stash_type", 1));
        let b = cx.b;
        Ok(Norm {
            x: convert(b, cx.input(0)?, narrow, wide),
            scale: convert(b, cx.input(1)?, cx.float(1), wide),
            g: convert(b, cx.grad()?, narrow, wide),
            axes: (first as i64 - rank as i64..0).collect(),
            leading: first,
            narrow,
            wide,
        })
    }

    /// `1/√(mean(v²) + ε)`.
    fn inverse_deviation(&self, cx: &GradCx<'_>, v: Val) -> Val {
        let b = cx.b;
        let epsilon = b.scalar_of(cx.node().float("epsilon", 1e-5), self.wide);
        let mean = b.reduce_mean(b.mul(v, v), &self.axes, true);
        b.unary("Reciprocal", b.unary("Sqrt", b.add(mean, epsilon)))
    }

    /// Gradient of a parameter that was broadcast over the leading axes.
    fn parameter(&self, cx: &GradCx<'_>, slot: usize, g: Val) -> Result<Val, GradError> {
        let dims = cx.fact(0).dims.unwrap_or_default();
        let sum = if cx.rank(slot)? <= dims.len() - self.leading {
            let axes: Vec<i64> = (0..self.leading as i64).collect();
            let sum = if axes.is_empty() {
                g
            } else {
                cx.b.reduce_sum(g, &axes, false)
            };
            cx.sum_to_input(slot, sum, Some(&dims[self.leading..]))?
        } else {
            cx.sum_to_input(slot, g, Some(&dims))?
        };
        Ok(convert(cx.b, sum, self.wide, cx.float(slot)))
    }
}

/// `dx = s·(h - mean(h) - x̂·mean(h·x̂))` with `h = g·scale`, `x̂ = (x - mean(x))·s`.
pub(super) fn layer_norm(cx: &mut GradCx<'_>) -> Differentiated {
    let n = Norm::read(cx)?;
    let b = cx.b;
    if cx.wants(0) || cx.wants(1) {
        let centered = b.sub(n.x, b.reduce_mean(n.x, &n.axes, true));
        let s = n.inverse_deviation(cx, centered);
        let normal = b.mul(centered, s);
        if cx.wants(0) {
            let h = b.mul(n.g, n.scale);
            let mean = b.reduce_mean(h, &n.axes, true);
            let along = b.reduce_mean(b.mul(h, normal), &n.axes, true);
            let d = b.sub(b.sub(h, mean), b.mul(normal, along));
            let dx = convert(b, b.mul(d, s), n.wide, n.narrow);
            cx.set(0, dx);
        }
        if cx.wants(1) {
            let d = n.parameter(cx, 1, b.mul(n.g, normal))?;
            cx.set(1, d);
        }
    }
    if cx.wants(2) {
        let d = n.parameter(cx, 2, n.g)?;
        cx.set(2, d);
    }
    Ok(())
}

/// `dx = s·(h - x̂·mean(h·x̂))` with `h = g·scale`, `x̂ = x·s`.
fn rms_norm(cx: &mut GradCx<'_>) -> Differentiated {
    let n = Norm::read(cx)?;
    let b = cx.b;
    let s = n.inverse_deviation(cx, n.x);
    let normal = b.mul(n.x, s);
    if cx.wants(0) {
        let h = b.mul(n.g, n.scale);
        let along = b.reduce_mean(b.mul(h, normal), &n.axes, true);
        let d = b.sub(h, b.mul(normal, along));
        let dx = convert(b, b.mul(d, s), n.wide, n.narrow);
        cx.set(0, dx);
    }
    if cx.wants(1) {
        let d = n.parameter(cx, 1, b.mul(n.g, normal))?;
        cx.set(1, d);
    }
    Ok(())
}
