//! The gradient of broadcasting, and our operator `onnx_graft::SumTo` for shapes that are only known when the graph runs.
//!
//! `SumTo(x, shape) -> y`: sums `x` over the axes along which a tensor of `shape` (an `i64` vector) was broadcast to give the shape
//! of `x`, so that `y` has exactly `shape`. Aligned at the last axis, an axis of `x` is summed where `shape` has no such axis or has 1
//! and `x` has not; all others must be equal. It is the adjoint of `Expand`; an `x` of that shape already comes back as it is.

use super::support::{Differentiated, Inferred, OWN, as_size, own};
use super::{GradCx, GradError, Gradient, InferCx, OpDef};
use crate::ir::{Builder, Sym, Val};

pub(super) const OPS: &[OpDef] = &[own("SumTo", (2, 2), infer, Gradient::Rule(gradient))];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let dims = match (cx.ints(1), cx.len_of(1)) {
        (Some(v), _) => Some(v.iter().map(|s| as_size(cx, s)).collect()),
        (None, Some(n)) => Some(cx.unknown_dims(n)),
        (None, None) => None,
    };
    cx.set(0, dtype, dims);
    Ok(())
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    if cx.wants(0) {
        let (g, shape) = (cx.grad()?, cx.input_shape(0)?);
        cx.set(0, cx.b.op("Expand", &[g, shape], &[]));
    }
    Ok(())
}

/// How a broadcast axis-by-axis comparison ends.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Sum {
    /// Nothing was broadcast.
    None,
    /// Sum over the first `lead` axes, which go, and over `ones`, which stay with size 1.
    Axes { lead: usize, ones: Vec<usize> },
    /// It depends on sizes that are not known.
    Dynamic,
}

fn plan(from: &[Sym], to: &[Sym]) -> Sum {
    let Some(lead) = from.len().checked_sub(to.len()) else {
        return Sum::Dynamic;
    };
    let mut ones = Vec::new();
    for (i, (f, t)) in from[lead..].iter().zip(to).enumerate() {
        if f == t {
            continue;
        }
        match (f.as_const(), t.as_const()) {
            (_, Some(1)) => ones.push(lead + i),
            // The input is not of size 1, or was not broadcast to more: it had that size already.
            (_, Some(_)) | (Some(1), None) => {}
            (_, None) => return Sum::Dynamic,
        }
    }
    if lead == 0 && ones.is_empty() {
        Sum::None
    } else {
        Sum::Axes { lead, ones }
    }
}

/// Sums a gradient of shape `from` to the shape `to` that was broadcast to it; `target` makes the shape vector where it is needed.
pub(super) fn sum_to(
    b: &Builder,
    grad: Val,
    from: Option<&[Sym]>,
    to: Option<&[Sym]>,
    target: impl FnOnce() -> Val,
) -> Val {
    let plan = match (from, to) {
        (Some(from), Some(to)) => plan(from, to),
        _ => Sum::Dynamic,
    };
    match plan {
        Sum::None => grad,
        Sum::Dynamic => b.op_in(OWN, "SumTo", &[grad, target()], &[]),
        Sum::Axes { lead, ones } => {
            let leading: Vec<i64> = (0..lead as i64).collect();
            if ones.is_empty() {
                return b.reduce_sum(grad, &leading, false);
            }
            let all: Vec<i64> = leading
                .iter()
                .copied()
                .chain(ones.iter().map(|&a| a as i64))
                .collect();
            let summed = b.reduce_sum(grad, &all, true);
            if lead == 0 {
                summed
            } else {
                b.squeeze(summed, &leading)
            }
        }
    }
}

/// A gradient in the shape of the node's first output, summed to the shape of an input that was broadcast to it.
pub(super) fn unbroadcast(cx: &GradCx<'_>, grad: Val, slot: usize) -> Result<Val, GradError> {
    let id = cx.input_id(slot)?;
    let (from, to) = (cx.out_fact(0).dims, cx.fact_of(id).dims);
    Ok(sum_to(cx.b, grad, from.as_deref(), to.as_deref(), || {
        cx.shape_of(id)
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dims(text: &[&str]) -> Vec<Sym> {
        text.iter()
            .map(|t| t.parse::<i64>().map_or_else(|_| Sym::symbol(t), Sym::from))
            .collect()
    }

    #[test]
    fn sums_what_was_broadcast() {
        let axes = |lead, ones: &[usize]| Sum::Axes {
            lead,
            ones: ones.to_vec(),
        };
        for (from, to, want) in [
            (&["b", "s", "8"][..], &["b", "s", "8"][..], Sum::None),
            (&["b", "s", "8"], &["8"], axes(2, &[])),
            (&["b", "s", "8"], &["1", "8"], axes(1, &[1])),
            (&["b", "s", "8"], &["b", "1", "8"], axes(0, &[1])),
            (&["b", "s", "8"], &["b", "t", "8"], Sum::Dynamic),
            (&["b", "?1"], &["b", "4"], Sum::None),
            (&["b", "s"], &["1", "b", "s"], Sum::Dynamic),
        ] {
            assert_eq!(plan(&dims(from), &dims(to)), want, "{from:?} to {to:?}");
        }
    }
}
