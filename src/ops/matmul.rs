//! `MatMul` (1, 9, 13) and `com.microsoft::FusedMatMul` (1): matrix products over the last two axes, broadcasting the others.
//!
//! The gradient of `x·w` with respect to `x` is `g·wᵀ`, written as `Transpose` and `MatMul`: the native pipeline folds the
//! transposition into the product, so a frozen weight is never copied. With respect to a matrix `w` shared by a batch, the leading
//! axes of `x` and `g` are flattened, so that the sum over the batch is part of one product.

use super::kit::grad::{rows, swap_last};
use super::kit::infer::same_size;
use super::kit::{Defined, Differentiated, Inferred, MS, wrong};
use super::{ExpandCx, GradCx, GradError, InferCx, InferError, OpDef};
use crate::ir::{Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("MatMul", 2..=2, |cx| {
        let (a, b) = (cx.dims(0).map(<[_]>::to_vec), cx.dims(1).map(<[_]>::to_vec));
        infer(cx, a, b)
    })
    .gradient(gradient),
    OpDef::new("FusedMatMul", 2..=2, infer_fused)
        .in_domain(MS)
        .defined_by(expand_fused),
];

fn infer(cx: &mut InferCx<'_>, a: Option<Vec<Sym>>, b: Option<Vec<Sym>>) -> Inferred {
    let ty = cx.dtype(0).or(cx.dtype(1));
    let dims = match (a, b) {
        (Some(a), Some(b)) => Some(product(cx, a, b)?),
        _ => None,
    };
    cx.set(0, ty, dims);
    Ok(())
}

/// Shape of `a·b`, as `numpy.matmul` has it.
pub(super) fn product(
    cx: &InferCx<'_>,
    mut a: Vec<Sym>,
    mut b: Vec<Sym>,
) -> Result<Vec<Sym>, InferError> {
    if a.is_empty() || b.is_empty() {
        return wrong("an operand is a scalar");
    }
    let (row, column) = (a.len() > 1, b.len() > 1);
    if !row {
        a.insert(0, Sym::from(1));
    }
    if !column {
        b.push(Sym::from(1));
    }
    let (ra, rb) = (a.len(), b.len());
    same_size(&a[ra - 1], &b[rb - 2], "the sizes that are multiplied")?;
    let mut dims = cx.broadcast(&a[..ra - 2], &b[..rb - 2])?;
    dims.extend(row.then(|| a[ra - 2].clone()));
    dims.extend(column.then(|| b[rb - 1].clone()));
    Ok(dims)
}

/// Dimensions of an operand of `FusedMatMul` after its transpositions.
fn transposed(dims: Option<&[Sym]>, batch: bool, last: bool) -> Option<Vec<Sym>> {
    let dims = dims?;
    let Some(perm) = permutation(dims.len(), batch, last) else {
        return Some(dims.to_vec());
    };
    Some(perm.iter().map(|&i| dims[i as usize].clone()).collect())
}

/// `transBatch` moves the first axis behind the batch axes, `trans` then swaps the last two. `None`: nothing moves.
fn permutation(rank: usize, batch: bool, last: bool) -> Option<Vec<i64>> {
    if rank < 2 || !(batch || last) {
        return None;
    }
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    if batch {
        perm[..rank - 1].rotate_left(1);
    }
    if last {
        perm.swap(rank - 1, rank - 2);
    }
    Some(perm)
}

fn infer_fused(cx: &mut InferCx<'_>) -> Inferred {
    let on = |name: &str| cx.node.int(name, 0) != 0;
    let a = transposed(cx.dims(0), on("transBatchA"), on("transA"));
    let b = transposed(cx.dims(1), on("transBatchB"), on("transB"));
    infer(cx, a, b)
}

fn expand_fused(cx: &ExpandCx<'_>) -> Defined {
    let side = |slot: usize, batch: &str, last: &str| -> Result<Val, GradError> {
        let (batch, last) = (cx.node().int(batch, 0) != 0, cx.node().int(last, 0) != 0);
        Ok(match permutation(cx.rank(slot)?, batch, last) {
            Some(perm) => cx.b.transpose(cx.input(slot)?, &perm),
            None => cx.input(slot)?,
        })
    };
    let (a, b) = (
        side(0, "transBatchA", "transA")?,
        side(1, "transBatchB", "transB")?,
    );
    let y = cx.b.matmul(a, b);
    Ok(vec![Some(cx.b.scale(y, cx.node().float("alpha", 1.0)))])
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    let (ra, rb) = (cx.rank(0)?, cx.rank(1)?);
    let (mut a, mut w, mut g) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
    // A vector is a matrix of one row (left) or one column (right); the axis is missing in the product too.
    if rb == 1 {
        w = cx.b.unsqueeze(w, &[1]);
        g = cx.b.unsqueeze(g, &[-1]);
    }
    if ra == 1 {
        a = cx.b.unsqueeze(a, &[0]);
        g = cx.b.unsqueeze(g, &[-2]);
    }
    if cx.wants(0) {
        let da = cx.b.matmul(g, swap_last(cx.b, w, rb.max(2)));
        let da = match (ra, rb) {
            (1, 0..=2) => cx.b.squeeze(da, &[0]),
            (1, _) => column_sum(cx, da, 0)?,
            (_, 0..=2) => da,
            _ => cx.sum_to_input(0, da, full(cx, 0, 1).as_deref())?,
        };
        cx.set(0, da);
    }
    if cx.wants(1) {
        let dw = if rb <= 2 && ra > 2 {
            let flat_a = rows(cx.b, a, a, &cx.fact(0), -1);
            let flat_g = if rb == 1 {
                cx.b.reshape(g, cx.b.ints(&[-1, 1]))
            } else {
                rows(cx.b, g, w, &cx.fact(1), -1)
            };
            cx.b.matmul(cx.b.transpose(flat_a, &[1, 0]), flat_g)
        } else {
            cx.b.matmul(swap_last(cx.b, a, ra.max(2)), g)
        };
        let dw = match rb {
            1 => cx.b.squeeze(dw, &[1]),
            2 => dw,
            _ => cx.sum_to_input(1, dw, full(cx, 1, 0).as_deref())?,
        };
        cx.set(1, dw);
    }
    Ok(())
}

/// The shape of an operand's gradient before it is summed to the operand's shape: batch axes of both, then the operand's own two.
/// `None` where a batch axis is not known.
pub(super) fn full(cx: &GradCx<'_>, slot: usize, other: usize) -> Option<Vec<Sym>> {
    let (own, other) = (
        cx.fact(slot).dims.unwrap_or_default(),
        cx.fact(other).dims.unwrap_or_default(),
    );
    let (batch, own_batch) = (other.len().saturating_sub(2), own.len().saturating_sub(2));
    let rank = batch.max(own_batch);
    let mut dims: Vec<Sym> = (0..rank)
        .map(|i| {
            let mine = (i + own_batch).checked_sub(rank).map(|j| &own[j]);
            let its = (i + batch).checked_sub(rank).map(|j| &other[j]);
            match (mine, its) {
                (Some(a), Some(b)) if a == b || b.is(1) => Some(a.clone()),
                (Some(a), Some(b)) if a.is(1) => Some(b.clone()),
                (Some(_), Some(_)) => None,
                (a, b) => a.or(b).cloned(),
            }
        })
        .collect::<Option<_>>()?;
    dims.extend_from_slice(&own[own_batch..]);
    Some(dims)
}

/// `[..., 1, k]` summed to `[k]`.
fn column_sum(cx: &GradCx<'_>, da: Val, slot: usize) -> Result<Val, GradError> {
    let flat = rows(cx.b, da, cx.input(slot)?, &cx.fact(slot), 0);
    Ok(cx.b.reduce_sum(flat, &[0], false))
}
