//! `com.microsoft::EmbedLayerNormalization` (1): the sum of word, position and segment embeddings, normalised. Its second output is
//! the number of ones of the mask in each row, its third the sum before the norm.

use super::kit::heads::{count, length};
use super::kit::{Defined, Inferred, MS};
use super::skip_norm::Norm;
use super::{ExpandCx, InferCx, OpDef};
use crate::ir::{DType, TensorData, Val};

pub(super) const OPS: &[OpDef] = &[OpDef::new("EmbedLayerNormalization", 7..=9, infer)
    .in_domain(MS)
    .outputs(1..=3)
    .defined_by(expand)];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let ty = cx.dtype(2);
    let width = cx.dims(2).and_then(|d| d.last()).cloned();
    let dims = cx.dims(0).zip(width).map(|(ids, width)| {
        let mut d = ids.to_vec();
        d.push(width);
        d
    });
    let batch = cx.dims(0).and_then(|d| d.first()).cloned();
    cx.set(0, ty, dims.clone());
    cx.set(1, Some(DType::Int32), batch.map(|b| vec![b]));
    cx.set(2, ty, dims);
    Ok(())
}

fn expand(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let ids = cx.input(0)?;
    let rows = |table: Val, at: Val| b.op("Gather", &[table, at], &[("axis", 0i64.into())]);
    let places = match cx.optional(8) {
        Some(p) => p,
        None => count(b, length(b, ids, 1)),
    };
    let mut sum = b.add(rows(cx.input(2)?, ids), rows(cx.input(3)?, places));
    if let (Some(segments), Some(table)) = (cx.optional(1), cx.optional(4)) {
        sum = b.add(sum, rows(table, segments));
    }
    let norm = Norm {
        scale: cx.input(5)?,
        beta: Some(cx.input(6)?),
        epsilon: cx.node().float("epsilon", 1e-12),
        centered: true,
    };
    let y = norm.build(b, sum, &cx.fact(2), [false; 2])[0];
    let lengths = cx.has_output(1).then(|| lengths(cx, ids));
    Ok(vec![y, lengths, Some(sum)])
}

fn lengths(cx: &ExpandCx<'_>, ids: Val) -> Val {
    let b = cx.b;
    let one = |x: i32| TensorData::raw(DType::Int32, [1], x.to_le_bytes().to_vec().into());
    let Some(mask) = cx.optional(7) else {
        let batch = b.slice(b.shape(ids), 0, 0, 1);
        return b.op("ConstantOfShape", &[batch], &[("value", one(0).into())]);
    };
    let ones = b.op("Equal", &[mask, b.constant(one(1))], &[]);
    b.reduce_sum(b.cast(ones, DType::Int32), &[1], false)
}
