//! Normalisations that are defined by reductions: `LpNormalization` (1, 22), `MeanVarianceNormalization` (9, 13), `GroupNormalization`
//! (18, 21), `LRN` (1, 13), and onnxruntime's `GroupNorm`, `SkipGroupNorm` (1), which have channels last.

use super::kit::grad::{convert, widened};
use super::kit::infer::{normal_axis, same_as_input};
use super::kit::{Defined, Inferred, MS, no_gradient};
use super::{ExpandCx, InferCx, OpDef};
use crate::ir::Val;

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("LpNormalization", 1..=1, same_as_input).defined_by(lp),
    OpDef::new("MeanVarianceNormalization", 1..=1, same_as_input).defined_by(mean_variance),
    OpDef::new("GroupNormalization", 3..=3, same_as_input).defined_by(|cx| {
        let y = grouped(cx, cx.input(0)?, "num_groups", 1)?;
        Ok(vec![Some(y)])
    }),
    OpDef::new("LRN", 1..=1, same_as_input).defined_by(local),
    OpDef::new("GroupNorm", 3..=3, same_as_input)
        .in_domain(MS)
        .defined_by(|cx| last(cx, cx.input(0)?)),
    OpDef::new("SkipGroupNorm", 4..=5, infer_skip)
        .in_domain(MS)
        .outputs(1..=2)
        .defined_by(skip),
];

fn infer_skip(cx: &mut InferCx<'_>) -> Inferred {
    cx.set_like(0, 0);
    cx.set_like(1, 0);
    Ok(())
}

/// `x / ‖x‖`, and zero where that is zero.
fn lp(cx: &ExpandCx<'_>) -> Defined {
    let (b, ty) = (cx.b, cx.float(0));
    let axis = normal_axis(cx.node().int("axis", -1), cx.rank(0)?)? as i64;
    let reduction = match cx.node().int("p", 2) {
        1 => "ReduceL1",
        2 => "ReduceL2",
        p => return no_gradient(format!("p = {p}, expected 1 or 2")),
    };
    let norm = b.reduce(reduction, cx.input(0)?, &[axis], true);
    let none = b.op("Equal", &[norm, b.scalar_of(0.0, ty)], &[]);
    let norm = b.op("Where", &[none, b.scalar_of(1.0, ty), norm], &[]);
    Ok(vec![Some(b.div(cx.input(0)?, norm))])
}

fn mean_variance(cx: &ExpandCx<'_>) -> Defined {
    let (b, ty) = (cx.b, cx.float(0));
    let axes = cx.node().ints("axes").unwrap_or(&[0, 2, 3]);
    let x = b.sub(cx.input(0)?, b.reduce_mean(cx.input(0)?, axes, true));
    let square = b.reduce_mean(b.mul(x, x), axes, true);
    let deviation = b.add(b.unary("Sqrt", square), b.scalar_of(1e-9, ty));
    Ok(vec![Some(b.div(x, deviation))])
}

/// Channels on axis 1, normalised in groups; scale and bias are of the channels, before opset 21 of the groups.
fn grouped(cx: &ExpandCx<'_>, x: Val, groups: &str, first: usize) -> Result<Val, super::GradError> {
    let (b, ty) = (cx.b, cx.float(0));
    let groups = cx.node().int(groups, 1);
    let rank = cx.rank(0)? as i64;
    let wide = widened(ty, cx.node().int("stash_type", 1));
    let rows = b.reshape(x, b.ints(&[0, groups, -1]));
    let rows = convert(b, rows, ty, wide);
    let rows = b.sub(rows, b.reduce_mean(rows, &[2], true));
    let square = b.reduce_mean(b.mul(rows, rows), &[2], true);
    let epsilon = b.scalar_of(cx.node().float("epsilon", 1e-5), wide);
    let normal = b.div(rows, b.unary("Sqrt", b.add(square, epsilon)));
    let normal = convert(b, normal, wide, ty);
    let by_group = cx.node().op.domain.is_empty() && b.opset() < 21;
    let operand = |slot: usize, behind: i64| -> Result<Val, super::GradError> {
        let own = cx.float(slot);
        let v = convert(b, cx.input(slot)?, own, ty);
        Ok(b.unsqueeze(v, &(1..=behind).collect::<Vec<_>>()))
    };
    let shape = b.shape(x);
    if by_group {
        let y = b.add(b.mul(normal, operand(first, 1)?), operand(first + 1, 1)?);
        return Ok(b.reshape(y, shape));
    }
    let normal = b.reshape(normal, shape);
    Ok(b.add(
        b.mul(normal, operand(first, rank - 2)?),
        operand(first + 1, rank - 2)?,
    ))
}

/// `GroupNorm` of onnxruntime: channels last unless said otherwise, and an activation.
fn last(cx: &ExpandCx<'_>, x: Val) -> Defined {
    let (b, rank) = (cx.b, cx.rank(0)? as i64);
    let behind = cx.node().int("channels_last", 1) != 0;
    let inward: Vec<i64> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
    let outward: Vec<i64> = [0].into_iter().chain(2..rank).chain([1]).collect();
    let x = if behind { b.transpose(x, &inward) } else { x };
    let mut y = grouped(cx, x, "groups", 1)?;
    if cx.node().int("activation", 0) == 1 {
        y = b.mul(y, b.unary("Sigmoid", y));
    }
    Ok(vec![Some(if behind {
        b.transpose(y, &outward)
    } else {
        y
    })])
}

/// `GroupNorm(x + skip + bias)`, and the sum. The skip may be `[n, 1, 1, c]` or `[n, c]`.
fn skip(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let mut skip = cx.input(3)?;
    if cx.rank(3)? == 2 {
        skip = b.unsqueeze(skip, &[1, 2]);
    }
    let mut sum = b.add(cx.input(0)?, skip);
    if let Some(bias) = cx.optional(4) {
        sum = b.add(sum, bias);
    }
    let mut outs = last(cx, sum)?;
    outs.push(Some(sum));
    Ok(outs)
}

/// `x / (bias + alpha / size · Σ x²)^beta`, the sum over `size` neighbouring channels.
fn local(cx: &ExpandCx<'_>) -> Defined {
    let (b, ty, node) = (cx.b, cx.float(0), cx.node());
    let (size, rank) = (node.int("size", 1), cx.rank(0)?);
    if size < 1 {
        return no_gradient(format!("size = {size}"));
    }
    let x = cx.input(0)?;
    let mut pads = vec![0; 2 * rank];
    (pads[1], pads[rank + 1]) = ((size - 1) / 2, size - 1 - (size - 1) / 2);
    let square = b.op("Pad", &[b.mul(x, x), b.ints(&pads)], &[]);
    let part = |i: i64| {
        let end = i - (size - 1);
        b.slice(square, 1, i, if end == 0 { i64::MAX } else { end })
    };
    let sum = (1..size).fold(part(0), |sum, i| b.add(sum, part(i)));
    let scale = node.float("alpha", 1e-4) / size as f32;
    let base = b.add(
        b.mul(sum, b.scalar_of(scale, ty)),
        b.scalar_of(node.float("bias", 1.0), ty),
    );
    let power = b.op(
        "Pow",
        &[base, b.scalar_of(node.float("beta", 0.75), ty)],
        &[],
    );
    Ok(vec![Some(b.div(x, power))])
}
