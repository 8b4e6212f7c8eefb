//! Expressions and shape rules that several operators share. No operator of its own.

use super::broadcast::sum_to;
use super::{GradCx, GradError, InferCx, InferError};
use crate::ir::{Builder, DType, Fact, Sym, Val};

/// An axis counted from the front.
pub(super) fn axis_of(axis: i64, rank: usize) -> Option<usize> {
    let at = if axis < 0 {
        axis.saturating_add(rank as i64)
    } else {
        axis
    };
    usize::try_from(at).ok().filter(|&a| a < rank)
}

/// An axis counted from the front; an error when the tensor does not have it.
pub(super) fn checked_axis(axis: i64, rank: usize) -> Result<usize, InferError> {
    axis_of(axis, rank).ok_or_else(|| InferError(format!("axis {axis} of a tensor of rank {rank}")))
}

/// The elements' type and shape of an input, without its elements.
pub(super) fn like(cx: &InferCx<'_>, slot: usize) -> Fact {
    cx.input(slot).map_or_else(Fact::default, |f| Fact {
        ints: None,
        ..f.clone()
    })
}

/// The first output has the type and shape of the first input.
pub(super) fn infer_like(cx: &mut InferCx<'_>) -> Result<(), InferError> {
    let fact = like(cx, 0);
    put(cx, 0, fact);
    Ok(())
}

/// Fills an output, if the node has it.
pub(super) fn put(cx: &mut InferCx<'_>, slot: usize, fact: Fact) {
    if let Some(o) = cx.outputs.get_mut(slot) {
        *o = fact;
    }
}

/// A fact of a type and, where it is known, a shape.
pub(super) fn fact(dtype: Option<DType>, dims: Option<Vec<Sym>>) -> Fact {
    Fact {
        dtype,
        dims,
        ints: None,
    }
}

/// Element type of an input.
pub(super) fn dtype(cx: &InferCx<'_>, slot: usize) -> Option<DType> {
    cx.input(slot)?.dtype
}

/// Two sizes that must be equal: their common value, a number if one of them is. An error when they are different numbers.
pub(super) fn same(a: &Sym, b: &Sym, what: &str) -> Result<Sym, InferError> {
    match (a.as_const(), b.as_const()) {
        (Some(x), Some(y)) if x != y => Err(InferError(format!("{what}: {x} and {y} differ"))),
        (None, Some(_)) => Ok(b.clone()),
        _ => Ok(a.clone()),
    }
}

/// Element type of constants and statistics for a value: `f32` for the types that operators with `stash_type` 1 widen.
pub(super) fn wide(dtype: DType, stash: i64) -> DType {
    if stash == 1 && matches!(dtype, DType::Float16 | DType::Bfloat16) {
        DType::Float
    } else {
        dtype
    }
}

/// `v` in another element type.
pub(super) fn to(b: &Builder, v: Val, from: DType, to: DType) -> Val {
    if from == to { v } else { b.cast(v, to) }
}

/// Rank of an input of a node under differentiation.
pub(super) fn rank(cx: &GradCx<'_>, slot: usize) -> Result<usize, GradError> {
    cx.fact(slot)
        .rank()
        .ok_or_else(|| GradError(format!("the rank of input {slot} is unknown")))
}

/// Element type of an input of a node under differentiation.
pub(super) fn float(cx: &GradCx<'_>, slot: usize) -> DType {
    cx.fact(slot).dtype.unwrap_or(DType::Float)
}

/// An error if any of these inputs needs a gradient.
pub(super) fn refuse(cx: &GradCx<'_>, slots: &[usize], what: &str) -> Result<(), GradError> {
    match slots.iter().find(|&&s| cx.wants(s)) {
        Some(s) => Err(GradError(format!("no gradient for {what} (input {s})"))),
        None => Ok(()),
    }
}

/// The last two axes exchanged.
pub(super) fn swap_last(b: &Builder, v: Val, rank: usize) -> Val {
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(rank - 1, rank - 2);
    b.transpose(v, &perm)
}

/// One size of a value as a one-element `i64` vector: a constant where it is known.
pub(super) fn size(b: &Builder, v: Val, known: &Fact, axis: i64) -> Val {
    if let Some(n) = known.size(axis) {
        return b.ints(&[n]);
    }
    // A negative index counts from the end of the shape, as the axis does.
    let at = b.ints(&[axis]);
    b.op("Gather", &[b.shape(v), at], &[("axis", 0i64.into())])
}

/// `[rows, width]`, where `width` is an axis of `like`.
pub(super) fn rows(b: &Builder, v: Val, like: Val, known: &Fact, axis: i64) -> Val {
    if let Some(n) = known.size(axis) {
        let shape = b.ints(&[-1, n]);
        return b.reshape(v, shape);
    }
    let shape = b.concat(&[b.ints(&[-1]), size(b, like, known, axis)], 0);
    b.reshape(v, shape)
}

/// `g` of the broadcast shape (`full`, as far as it is known) summed to the shape of an input that was broadcast to it.
pub(super) fn unbroadcast(
    cx: &GradCx<'_>,
    slot: usize,
    g: Val,
    full: &[Option<Sym>],
) -> Result<Val, GradError> {
    let id = cx.input_id(slot)?;
    let from: Option<Vec<Sym>> = full.iter().cloned().collect();
    let to = cx.fact(slot).dims;
    Ok(sum_to(cx.b, g, from.as_deref(), to.as_deref(), || {
        cx.shape_of(id)
    }))
}

/// Dimensions of an input of a node under differentiation.
pub(super) fn dims(cx: &GradCx<'_>, slot: usize) -> Result<Vec<Sym>, GradError> {
    cx.fact(slot)
        .dims
        .ok_or_else(|| GradError(format!("the shape of input {slot} is unknown")))
}
