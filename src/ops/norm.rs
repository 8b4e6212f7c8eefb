//! `LayerNormalization` (17), `RMSNormalization` (23) and `SimplifiedLayerNormalization`, which onnxruntime writes into the default
//! domain: `x` is normalised over the axes from `axis` on, then scaled.
//!
//! Gradients recompute the statistics from `x`, in `f32` for narrower types (`stash_type` 1): a norm keeps nothing but its input.

use super::forms::{
    axis_of, checked_axis, dtype, fact, float, infer_like, put, rank, to, unbroadcast, wide,
};
use super::{GradCx, GradError, Gradient, InferCx, InferError, OpDef};
use crate::ir::{DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    def("", "LayerNormalization", (2, 3), (1, 3), true),
    def("", "RMSNormalization", (2, 2), (1, 1), false),
    def("", "SimplifiedLayerNormalization", (2, 2), (1, 2), false),
    def(
        "com.microsoft",
        "SimplifiedLayerNormalization",
        (2, 2),
        (1, 2),
        false,
    ),
];

const fn def(
    domain: &'static str,
    name: &'static str,
    inputs: (usize, usize),
    outputs: (usize, usize),
    centered: bool,
) -> OpDef {
    OpDef {
        domain,
        name,
        inputs,
        outputs,
        infer,
        gradient: Gradient::Rule(if centered { layer_norm } else { rms_norm }),
    }
}

fn infer(cx: &mut InferCx<'_>) -> Result<(), InferError> {
    infer_like(cx)?;
    let axis = cx.node.int("axis", -1);
    let statistics = match cx.dims(0) {
        Some(dims) => {
            let first = checked_axis(axis, dims.len())?;
            let mut dims = dims.to_vec();
            dims[first..].fill(Sym::from(1));
            Some(dims)
        }
        None => None,
    };
    let ty = if cx.node.int("stash_type", 1) == 1 {
        Some(DType::Float)
    } else {
        dtype(cx, 0)
    };
    for slot in 1..cx.outputs.len() {
        put(cx, slot, fact(ty, statistics.clone()));
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
            return Err(GradError(
                "a gradient arrives at the statistics, not only at the normalised output".into(),
            ));
        }
        let (rank, axis) = (rank(cx, 0)?, cx.node().int("axis", -1));
        let first = axis_of(axis, rank)
            .ok_or_else(|| GradError(format!("axis {axis} of a tensor of rank {rank}")))?;
        let narrow = float(cx, 0);
        let wide = wide(narrow, cx.node().int("stash_type", 1));
        let b = cx.b;
        Ok(Norm {
            x: to(b, cx.input(0)?, narrow, wide),
            scale: to(b, cx.input(1)?, float(cx, 1), wide),
            g: to(b, cx.grad()?, narrow, wide),
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
        let sum = if rank(cx, slot)? <= dims.len() - self.leading {
            let axes: Vec<i64> = (0..self.leading as i64).collect();
            let sum = if axes.is_empty() {
                g
            } else {
                cx.b.reduce_sum(g, &axes, false)
            };
            let rest: Vec<Option<Sym>> = dims[self.leading..].iter().cloned().map(Some).collect();
            unbroadcast(cx, slot, sum, &rest)?
        } else {
            let full: Vec<Option<Sym>> = dims.into_iter().map(Some).collect();
            unbroadcast(cx, slot, g, &full)?
        };
        Ok(to(cx.b, sum, self.wide, float(cx, slot)))
    }
}

/// `dx = s·(h - mean(h) - x̂·mean(h·x̂))` with `h = g·scale`, `x̂ = (x - mean(x))·s`.
fn layer_norm(cx: &mut GradCx<'_>) -> Result<(), GradError> {
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
            let dx = to(b, b.mul(d, s), n.wide, n.narrow);
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
fn rms_norm(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    let n = Norm::read(cx)?;
    let b = cx.b;
    let s = n.inverse_deviation(cx, n.x);
    let normal = b.mul(n.x, s);
    if cx.wants(0) {
        let h = b.mul(n.g, n.scale);
        let along = b.reduce_mean(b.mul(h, normal), &n.axes, true);
        let d = b.sub(h, b.mul(normal, along));
        let dx = to(b, b.mul(d, s), n.wide, n.narrow);
        cx.set(0, dx);
    }
    if cx.wants(1) {
        let d = n.parameter(cx, 1, b.mul(n.g, normal))?;
        cx.set(1, d);
    }
    Ok(())
}
