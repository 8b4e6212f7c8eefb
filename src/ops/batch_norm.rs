//! `BatchNormalization` (7, 9, 14, 15) at inference: `(x - mean)·scale/√(var + ε) + bias` over axis 1. Training mode is not differentiated.

use super::forms::{float, infer_like, like, put, rank, refuse};
use super::{GradCx, GradError, Gradient, InferCx, InferError, OpDef};
use crate::ir::Val;

pub(super) const OPS: &[OpDef] = &[OpDef {
    domain: "",
    name: "BatchNormalization",
    inputs: (5, 5),
    outputs: (1, 5),
    infer,
    gradient: Gradient::Rule(gradient),
}];

fn infer(cx: &mut InferCx<'_>) -> Result<(), InferError> {
    infer_like(cx)?;
    for slot in 1..cx.outputs.len() {
        let statistics = like(cx, 3);
        put(cx, slot, statistics);
    }
    Ok(())
}

fn gradient(cx: &mut GradCx<'_>) -> Result<(), GradError> {
    if cx.node().int("training_mode", 0) != 0 {
        return Err(GradError("no rule in training mode".into()));
    }
    refuse(cx, &[3, 4], "fixed statistics")?;
    let (b, rank) = (cx.b, rank(cx, 0)? as i64);
    let spread: Vec<i64> = (1..rank - 1).collect();
    // [c] as [c, 1, …], to be broadcast along axis 1.
    let along = |v: Val| {
        if spread.is_empty() {
            v
        } else {
            b.unsqueeze(v, &spread)
        }
    };
    let (g, ty) = (cx.grad()?, float(cx, 0));
    let epsilon = b.scalar_of(cx.node().float("epsilon", 1e-5), ty);
    let inverse = b.unary("Reciprocal", b.unary("Sqrt", b.add(cx.input(4)?, epsilon)));
    let axes: Vec<i64> = (0..rank).filter(|&a| a != 1).collect();
    if cx.wants(0) {
        let slope = b.mul(cx.input(1)?, inverse);
        cx.set(0, b.mul(g, along(slope)));
    }
    if cx.wants(1) {
        let centered = b.sub(cx.input(0)?, along(cx.input(3)?));
        let normal = b.mul(centered, along(inverse));
        cx.set(1, b.reduce_sum(b.mul(g, normal), &axes, false));
    }
    if cx.wants(2) {
        cx.set(2, b.reduce_sum(g, &axes, false));
    }
    Ok(())
}
