//! `Gemm` (7, 9, 11, 13): `alpha·op(a)·op(b) + beta·c` for matrices `a` and `b`; `c` is broadcast to the product, and may be absent.

use super::forms::{axis_of, dtype, fact, put, same, unbroadcast};
use super::{GradCx, GradError, Gradient, InferCx, InferError, OpDef};
use crate::ir::{Sym, Val};

pub(super) const OPS: &[OpDef] = &[OpDef {
    domain: "",
    name: "Gemm",
    inputs: (2, 3),
    outputs: (1, 1),
    infer,
    gradient: Gradient::Rule(gradient),
}];

/// Rows and columns of `op(x)`.
fn matrix(cx: &InferCx<'_>, slot: usize, trans: &str) -> Result<Option<[Sym; 2]>, InferError> {
    let Some(dims) = cx.dims(slot) else {
        return Ok(None);
    };
    let [rows, columns] = dims else {
        let found = dims.len();
        return Err(InferError(format!(
            "input {slot} must be a matrix, it has rank {found}"
        )));
    };
    Ok(Some(if cx.node.int(trans, 0) != 0 {
        [columns.clone(), rows.clone()]
    } else {
        [rows.clone(), columns.clone()]
    }))
}

fn infer(cx: &mut InferCx<'_>) -> Result<(), InferError> {
    let (a, b) = (matrix(cx, 0, "transA")?, matrix(cx, 1, "transB")?);
    let (rows, depth) = a.map_or((None, None), |[m, k]| (Some(m), Some(k)));
    let (depth_b, columns) = b.map_or((None, None), |[k, n]| (Some(k), Some(n)));
    if let (Some(a), Some(b)) = (&depth, &depth_b) {
        same(a, b, "the sizes that are multiplied")?;
    }
    let side = |s: Option<Sym>| s.unwrap_or_else(|| cx.unknown());
    let dims = vec![side(rows), side(columns)];
    put(cx, 0, fact(dtype(cx, 0), Some(dims)));
    Ok(())
}

fn gradient(cx: &mut GradCx<'_>) -> Result<(), GradError> {
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
        let side = |slot: usize, transposed: bool| {
            let dims = cx.fact(slot).dims?;
            let at = axis_of(i64::from(transposed), 2)?;
            dims.get(at).cloned()
        };
        let full = [side(0, ta), side(1, !tb)];
        let d = unbroadcast(cx, 2, cx.b.scale(g, beta), &full)?;
        cx.set(2, d);
    }
    Ok(())
}
