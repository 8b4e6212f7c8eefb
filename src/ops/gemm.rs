//! `Gemm` (7, 9, 11, 13): `alpha·op(a)·op(b) + beta·c` for matrices `a` and `b`; `c` is broadcast to the product, and may be absent.

use super::kit::infer::same_size;
use super::kit::{Differentiated, Inferred, wrong};
use super::{GradCx, InferCx, InferError, OpDef};
use crate::ir::{Sym, Val};

pub(super) const OPS: &[OpDef] = &[OpDef::new("Gemm", 2..=3, infer).gradient(gradient)];

/// Rows and columns of `op(x)`.
fn matrix(cx: &InferCx<'_>, slot: usize, trans: &str) -> Result<Option<[Sym; 2]>, InferError> {
    let Some(dims) = cx.dims(slot) else {
        return Ok(None);
    };
    let [rows, columns] = dims else {
        let found = dims.len();
        return wrong(format!(
            "input {slot} must be a matrix, it has rank {found}"
        ));
    };
    Ok(Some(if cx.node.int(trans, 0) != 0 {
        [columns.clone(), rows.clone()]
    } else {
        [rows.clone(), columns.clone()]
    }))
}

pub(super) fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let (a, b) = (matrix(cx, 0, "transA")?, matrix(cx, 1, "transB")?);
    let (rows, depth) = a.map_or((None, None), |[m, k]| (Some(m), Some(k)));
    let (depth_b, columns) = b.map_or((None, None), |[k, n]| (Some(k), Some(n)));
    if let (Some(a), Some(b)) = (&depth, &depth_b) {
        same_size(a, b, "the sizes that are multiplied")?;
    }
    let side = |s: Option<Sym>| s.unwrap_or_else(|| cx.unknown());
    let dims = vec![side(rows), side(columns)];
    cx.set(0, cx.dtype(0), Some(dims));
    Ok(())
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    let node = cx.node();
    let (alpha, beta) = (node.float("alpha", 1.0), node.float("beta", 1.0));
    let (ta, tb) = (node.int("transA", 0) != 0, node.int("transB", 0) != 0);
    let (a, w, g) = (cx.input(0)?, cx.input(1)?, cx.grad()?);
    let t = |v: Val, transposed: bool| {
        if transposed {
            cx.b.transpose(v, &[1, 0])
        } else {
            v
        }
    };
    let da = cx.wants(0).then(|| {
        let d = if ta {
            cx.b.matmul(t(w, tb), t(g, true))
        } else {
            cx.b.matmul(g, t(w, !tb))
        };
        cx.b.scale(d, alpha)
    });
    let dw = cx.wants(1).then(|| {
        let d = if tb {
            cx.b.matmul(t(g, true), t(a, ta))
        } else {
            cx.b.matmul(t(a, !ta), g)
        };
        cx.b.scale(d, alpha)
    });
    if let Some(d) = da {
        cx.set(0, d);
    }
    if let Some(d) = dw {
        cx.set(1, d);
    }
    if cx.wants(2) {
        let side = |slot: usize, at: usize| cx.fact(slot).dims?.get(at).cloned();
        let full: Option<Vec<Sym>> = [side(0, usize::from(ta)), side(1, usize::from(!tb))]
            .into_iter()
            .collect();
        let d = cx.sum_to_input(2, cx.b.scale(g, beta), full.as_deref())?;
        cx.set(2, d);
    }
    Ok(())
}
