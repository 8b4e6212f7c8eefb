//! `Where` and `Clip`. The gradient of `Where` selects as well, so that a NaN or infinity in the branch not taken does not leak;
//! `Clip` passes the gradient between its bounds, bounds included, and none to the bounds.

use super::kit::{Differentiated, Inferred};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{DType, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Where", 3..=3, infer_where).gradient(grad_where),
    OpDef::new("Clip", 1..=3, infer_clip).gradient(grad_clip),
];

fn infer_where(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(0, &[DType::Bool])?;
    let dtype = cx.same_dtype(1..3)?;
    let dims = cx.broadcast_inputs(0..3)?;
    let ints = where_ints(cx);
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

fn where_ints(cx: &InferCx<'_>) -> Option<Vec<Sym>> {
    let (yes, no) = (cx.ints_or_unknown(1)?, cx.ints_or_unknown(2)?);
    let cond = cx.ints(0);
    let n = [cond.as_ref().map_or(1, Vec::len), yes.len(), no.len()]
        .into_iter()
        .find(|n| *n != 1)
        .unwrap_or(1);
    let at = |v: &[Sym], i: usize| {
        if v.len() == 1 {
            v.first().cloned()
        } else {
            v.get(i).cloned()
        }
    };
    (0..n)
        .map(|i| {
            let (a, b) = (at(&yes, i)?, at(&no, i)?);
            let chosen = cond.as_ref().and_then(|c| at(c, i)?.as_const());
            Some(match chosen {
                Some(0) => b,
                Some(_) => a,
                None if a == b => a,
                None => cx.unknown_int(),
            })
        })
        .collect()
}

fn grad_where(cx: &mut GradCx<'_>) -> Differentiated {
    let (cond, g) = (cx.input(0)?, cx.grad()?);
    let zero = cx.scalar(0.0);
    if cx.wants(1) {
        let taken = cx.b.op("Where", &[cond, g, zero], &[]);
        cx.set(1, cx.unbroadcast(1, taken)?);
    }
    if cx.wants(2) {
        let taken = cx.b.op("Where", &[cond, zero, g], &[]);
        cx.set(2, cx.unbroadcast(2, taken)?);
    }
    Ok(())
}

fn infer_clip(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.same_dtype(0..cx.inputs.len())?;
    let dims = cx.dims_vec(0);
    cx.set(0, dtype, dims);
    Ok(())
}

fn grad_clip(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let x = cx.input(0)?;
    let mut g = cx.grad()?;
    // Bounds are inputs from opset 11 on.
    for (slot, op) in [(1, "GreaterOrEqual"), (2, "LessOrEqual")] {
        if let Some(bound) = cx.optional(slot) {
            let inside = cx.b.op(op, &[x, bound], &[]);
            g = cx.keep_where(inside, g);
        }
    }
    cx.set(0, g);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};

    #[test]
    fn where_of_shapes() {
        let got = infer(&["f32[seq]"], |b, v| {
            let shape = b.concat(&[b.shape(v[0]), b.ints(&[-1])], 0);
            let unknown = b.op("Equal", &[shape, b.int(-1)], &[]);
            vec![unknown, b.op("Where", &[unknown, b.ints(&[8]), shape], &[])]
        });
        assert_eq!(got, ["bool[2] = (0, 1)", "i64[2] = (seq, 8)"]);
        let got = infer(&["f32[n]"], |b, v| {
            vec![b.op("Where", &[v[0], v[0], v[0]], &[])]
        });
        assert_eq!(got, ["error: Where: input 0 is f32, expected bool"]);
    }

    #[test]
    fn gradients_select() {
        let got = backward(18, &["bool[n, 8]", "f32[8]", "f32[n, 8]"], |b, v| {
            vec![b.op("Where", v, &[])]
        });
        assert_eq!(
            got,
            "Where: Where(a, g0, [0.0])\nReduceSum: ReduceSum(Where, [0])\nWhere_1: Where(a, [0.0], g0)\n\
             db = ReduceSum\ndc = Where_1"
        );
        let got = backward(18, &["f32[n]", "f32[]"], |b, v| vec![b.op("Clip", v, &[])]);
        assert_eq!(
            got,
            "GreaterOrEqual: GreaterOrEqual(a, b)\nWhere: Where(GreaterOrEqual, g0, [0.0])\nda = Where"
        );
    }
}
