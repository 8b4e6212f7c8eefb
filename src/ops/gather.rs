//! `Gather`, `GatherElements`, `GatherND`, and our operators that scatter their gradients:
//!
//! * `onnx_graft::GatherGrad(grad, indices, shape){axis = 0} -> dx`: zeros of `shape` (an `i64` vector, the shape of the data), to which
//!   `grad` is added at the places where `Gather(dx, indices, axis)` reads; repeated indices add up; negative ones count from the end.
//! * `onnx_graft::GatherElementsGrad(grad, indices, shape){axis = 0} -> dx`: the same for `GatherElements`.
//! * `onnx_graft::GatherNDGrad(grad, indices, shape){batch_dims = 0} -> dx`: the same for `GatherND`.
//!
//! Where one known index is taken (pooling at the first position) the gradient is a `Pad`; where opset and form allow it, the gradients of
//! the other two are `ScatterElements` and `ScatterND` with `reduction = "add"`.

use super::kit::infer::{normal_axis, shaped_by};
use super::kit::{DOMAIN, Differentiated, Inferred, wrong};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Gather", 2..=2, infer_gather).gradient(grad_gather),
    OpDef::new("GatherElements", 2..=2, infer_elements).gradient(grad_elements),
    OpDef::new("GatherND", 2..=2, infer_nd).gradient(grad_nd),
    OpDef::new("GatherGrad", 3..=3, |cx| shaped_by(cx, 2)).in_domain(DOMAIN),
    OpDef::new("GatherElementsGrad", 3..=3, |cx| shaped_by(cx, 2)).in_domain(DOMAIN),
    OpDef::new("GatherNDGrad", 3..=3, |cx| shaped_by(cx, 2)).in_domain(DOMAIN),
];

const INDEX: &[DType] = &[DType::Int32, DType::Int64];

fn infer_gather(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(1, INDEX)?;
    let dtype = cx.dtype(0);
    let mut dims = None;
    if let Some(d) = cx.dims(0) {
        let axis = cx.axis("axis", 0, d.len())?;
        if let (Some(n), Some(index)) = (d[axis].as_const(), cx.const_ints(1))
            && let Some(i) = index.iter().find(|i| **i < -n || **i >= n)
        {
            return wrong(format!("index {i} of an axis of size {n}"));
        }
        dims = cx.dims(1).map(|i| [&d[..axis], i, &d[axis + 1..]].concat());
    }
    let ints = gathered_ints(cx);
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

fn gathered_ints(cx: &InferCx<'_>) -> Option<Vec<Sym>> {
    let (v, index) = (cx.ints(0)?, cx.ints(1)?);
    cx.rank(0).filter(|r| *r == 1)?;
    let n = v.len() as i64;
    index
        .iter()
        .map(|i| match i.as_const() {
            Some(i) => {
                let at = if i < 0 { i + n } else { i };
                v.get(usize::try_from(at).ok()?).cloned()
            }
            None => Some(cx.unknown_int()),
        })
        .collect()
}

fn grad_gather(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let g = cx.grad()?;
    let axis = cx.node().int("axis", 0);
    let back = if let Some((axis, rank, before, after)) = single(cx, axis) {
        let mut pads = vec![0; 2 * rank];
        pads[axis] = before;
        pads[rank + axis] = after;
        // A scalar index removed the axis, a vector of one kept it.
        let g = if cx.fact(1).rank() == Some(0) {
            cx.b.unsqueeze(g, &[axis as i64])
        } else {
            g
        };
        cx.pad_zeros(g, &pads)
    } else {
        let inputs = [g, cx.input(1)?, cx.input_shape(0)?];
        cx.b.op_in(DOMAIN, "GatherGrad", &inputs, &[("axis", axis.into())])
    };
    cx.set(0, back);
    Ok(())
}

/// Axis, rank and the zeros around, if one known index of an axis of known size is taken.
fn single(cx: &GradCx<'_>, axis: i64) -> Option<(usize, usize, i64, i64)> {
    if cx.fact(1).rank()? > 1 {
        return None;
    }
    let index = cx.const_ints(1)?;
    let [index] = index.as_slice() else {
        return None;
    };
    let rank = cx.fact(0).rank()?;
    let at = normal_axis(axis, rank).ok()?;
    let size = cx.fact(0).size(axis)?;
    let index = if *index < 0 { index + size } else { *index };
    Some((at, rank, index, size - 1 - index))
}

fn infer_elements(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(1, INDEX)?;
    if let (Some(a), Some(b)) = (cx.rank(0), cx.rank(1)) {
        if a != b {
            return wrong(format!("data of rank {a}, indices of rank {b}"));
        }
        cx.axis("axis", 0, a)?;
    }
    let (dtype, mut dims) = (cx.dtype(0), cx.dims_vec(1));
    if dims.is_none() {
        dims = cx.rank(0).map(|r| cx.unknown_dims(r));
    }
    cx.set(0, dtype, dims);
    Ok(())
}

fn grad_elements(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let (g, index) = (cx.grad()?, cx.input(1)?);
    let axis = cx.node().int("axis", 0);
    let back = if cx.b.opset() >= 16 {
        let zeros = cx.zeros_like(cx.input_id(0)?);
        let attrs = [("axis", axis.into()), ("reduction", "add".into())];
        cx.b.op("ScatterElements", &[zeros, index, g], &attrs)
    } else {
        let inputs = [g, index, cx.input_shape(0)?];
        cx.b.op_in(
            DOMAIN,
            "GatherElementsGrad",
            &inputs,
            &[("axis", axis.into())],
        )
    };
    cx.set(0, back);
    Ok(())
}

fn infer_nd(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(1, &[DType::Int64])?;
    let dtype = cx.dtype(0);
    let batch = cx.node.int("batch_dims", 0);
    let dims = match (cx.dims(0), cx.dims(1)) {
        (Some(d), Some(i)) => {
            let Some((last, index)) = i.split_last() else {
                return wrong("indices are a scalar");
            };
            let Some(b) = usize::try_from(batch)
                .ok()
                .filter(|b| *b < i.len().min(d.len()))
            else {
                return wrong(format!("batch_dims is {batch}"));
            };
            match last.as_const().map(usize::try_from) {
                Some(Ok(k)) if b + k <= d.len() => Some([index, &d[b + k..]].concat()),
                Some(_) => {
                    return wrong(format!(
                        "index tuples of {last} for a tensor of rank {}",
                        d.len()
                    ));
                }
                None => None,
            }
        }
        _ => None,
    };
    cx.set(0, dtype, dims);
    Ok(())
}

fn grad_nd(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let (g, index) = (cx.grad()?, cx.input(1)?);
    let batch = cx.node().int("batch_dims", 0);
    let back: Val = if batch == 0 && cx.b.opset() >= 16 {
        let zeros = cx.zeros_like(cx.input_id(0)?);
        let attrs = [("reduction", "add".into())];
        cx.b.op("ScatterND", &[zeros, index, g], &attrs)
    } else {
        let inputs = [g, index, cx.input_shape(0)?];
        let attrs = [("batch_dims", batch.into())];
        cx.b.op_in(DOMAIN, "GatherNDGrad", &inputs, &attrs)
    };
    cx.set(0, back);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};

    #[test]
    fn gathers() {
        let got = infer(
            &["f32[64, 8]", "i64[batch, seq]", "i64[batch, 2]"],
            |b, v| {
                vec![
                    b.op("Gather", &[v[0], v[1]], &[]),
                    b.op("Gather", &[v[0], v[1]], &[("axis", 1i64.into())]),
                    b.op("GatherElements", &[v[0], v[1]], &[]),
                    b.op("GatherND", &[v[0], v[2]], &[]),
                ]
            },
        );
        assert_eq!(
            got,
            [
                "f32[batch, seq, 8]",
                "f32[64, batch, seq]",
                "f32[batch, seq]",
                "f32[batch]"
            ]
        );
        let got = infer(&["f32[4, 8]"], |b, v| {
            vec![b.op("Gather", &[v[0], b.int(4)], &[])]
        });
        assert_eq!(got, ["error: Gather: index 4 of an axis of size 4"]);
    }

    #[test]
    fn gradient_of_pooling_pads() {
        let got = backward(18, &["f32[batch, 5, 8]"], |b, v| {
            vec![b.op("Gather", &[v[0], b.int(0)], &[("axis", 1i64.into())])]
        });
        assert_eq!(
            got,
            "Unsqueeze: Unsqueeze(g0, [1])\nPad: Pad(Unsqueeze, [0, 0, 0, 0, 4, 0])\nda = Pad"
        );
    }

    #[test]
    fn gradient_of_a_table_scatters() {
        let got = backward(17, &["f32[64, 8]", "i64[batch, seq]"], |b, v| {
            vec![b.op("Gather", v, &[])]
        });
        assert_eq!(
            got,
            "GatherGrad: onnx_graft::GatherGrad(g0, b, [64, 8])\nda = GatherGrad"
        );
        let elements = |opset| {
            backward(opset, &["f32[64, 8]", "i64[4, 8]"], |b, v| {
                vec![b.op("GatherElements", v, &[])]
            })
        };
        assert!(elements(16).ends_with(
            "ScatterElements: ScatterElements(ConstantOfShape, b, g0)\nda = ScatterElements"
        ));
        assert!(elements(13).contains("onnx_graft::GatherElementsGrad(g0, b, [64, 8])"));
    }
}
