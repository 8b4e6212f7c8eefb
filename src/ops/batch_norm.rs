//! `BatchNormalization` (7, 9, 14, 15) at inference: `(x - mean)·scale/√(var + ε) + bias` over axis 1. Training mode is not differentiated.
//! `InstanceNormalization` (6, 22): the same with mean and variance of each plane.

use super::kit::grad::{convert, widened};
use super::kit::infer::same_as_input;
use super::kit::{Defined, Differentiated, Inferred, no_gradient};
use super::{ExpandCx, GradCx, InferCx, OpDef};
use crate::ir::{DType, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("BatchNormalization", 5..=5, infer)
        .outputs(1..=5)
        .gradient(gradient),
    OpDef::new("InstanceNormalization", 3..=3, same_as_input).defined_by(instance),
];

/// With the statistics of each plane, in f32 also for narrower types.
fn instance(cx: &ExpandCx<'_>) -> Defined {
    let (b, ty) = (cx.b, cx.fact(0).dtype.unwrap_or(DType::Float));
    let wide = widened(ty, 1);
    let space: Vec<i64> = (2..cx.rank(0)? as i64).collect();
    let along = |v: Val| b.unsqueeze(v, &(1..=space.len() as i64).collect::<Vec<_>>());
    let x = convert(b, cx.input(0)?, ty, wide);
    let x = b.sub(x, b.reduce_mean(x, &space, true));
    let square = b.reduce_mean(b.mul(x, x), &space, true);
    let epsilon = b.scalar_of(cx.node().float("epsilon", 1e-5), wide);
    let normal = b.div(x, b.unary("Sqrt", b.add(square, epsilon)));
    let scaled = b.mul(convert(b, normal, wide, ty), along(cx.input(1)?));
    Ok(vec![Some(b.add(scaled, along(cx.input(2)?)))])
}

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    same_as_input(cx)?;
    for slot in 1..cx.outputs.len() {
        cx.set_like(slot, 3);
    }
    Ok(())
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    if cx.node().int("training_mode", 0) != 0 {
        return no_gradient("no rule in training mode");
    }
    cx.refuse(&[3, 4], "fixed statistics")?;
    let (b, rank) = (cx.b, cx.rank(0)? as i64);
    let spread: Vec<i64> = (1..rank - 1).collect();
    // [c] as [c, 1, …], to be broadcast along axis 1.
    let along = |v: Val| {
        if spread.is_empty() {
            v
        } else {
            b.unsqueeze(v, &spread)
        }
    };
    let (g, ty) = (cx.grad()?, cx.float(0));
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
