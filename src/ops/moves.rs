//! Operators that pick, reverse or overwrite places: `Compress` (9, 11, 28), `ReverseSequence` (10, 28), `TensorScatter` (24), `Scatter`
//! (9), `MaxUnpool` (9, 11, 22), `Unique` (11, 28).

use super::kit::infer::{normal_axis, same_as_input};
use super::kit::{Defined, Differentiated, Inferred, wrong};
use super::{ExpandCx, GradCx, InferCx, OpDef};
use crate::ir::{Attr, DType, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Compress", 2..=2, infer_compress).defined_by(compress),
    OpDef::new("ReverseSequence", 2..=2, same_as_input).gradient(grad_reverse),
    OpDef::new("TensorScatter", 2..=3, same_as_input).defined_by(tensor_scatter),
    OpDef::new("Scatter", 3..=3, same_as_input).defined_by(|cx| {
        let axis = cx.node().int("axis", 0);
        let ins = [cx.input(0)?, cx.input(1)?, cx.input(2)?];
        let y = cx.b.op("ScatterElements", &ins, &[("axis", axis.into())]);
        Ok(vec![Some(y)])
    }),
    OpDef::new("MaxUnpool", 2..=3, infer_unpool),
    OpDef::new("Unique", 1..=1, infer_unique).outputs(1..=4),
];

fn infer_compress(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match (cx.dims_vec(0), cx.node.attr("axis")) {
        (Some(mut d), Some(_)) => {
            let axis = normal_axis(cx.node.int("axis", 0), d.len())?;
            d[axis] = cx.unknown();
            Some(d)
        }
        (None, Some(_)) => None,
        (_, None) => Some(vec![cx.unknown()]),
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn compress(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let (x, axis) = match cx.node().attr("axis") {
        Some(_) => (cx.input(0)?, cx.node().int("axis", 0)),
        None => (b.reshape(cx.input(0)?, b.ints(&[-1])), 0),
    };
    let at = b.squeeze(b.unary("NonZero", cx.input(1)?), &[0]);
    Ok(vec![Some(b.op(
        "Gather",
        &[x, at],
        &[("axis", axis.into())],
    ))])
}

/// Reversing twice is nothing: the gradient is reversed.
fn grad_reverse(cx: &mut GradCx<'_>) -> Differentiated {
    let attrs = ["batch_axis", "time_axis"];
    let attrs: Vec<(&str, Attr)> = attrs
        .into_iter()
        .map(|name| {
            (
                name,
                cx.node().int(name, i64::from(name == "batch_axis")).into(),
            )
        })
        .collect();
    let dx =
        cx.b.op("ReverseSequence", &[cx.grad()?, cx.input(1)?], &attrs);
    cx.set(0, dx);
    Ok(())
}

/// Rows of `update` from a place of each example on, in a circle where that is asked for.
fn tensor_scatter(cx: &ExpandCx<'_>) -> Defined {
    let (b, rank) = (cx.b, cx.rank(0)?);
    let axis = normal_axis(cx.node().int("axis", -2), rank)?;
    let (past, update) = (cx.input(0)?, cx.input(1)?);
    let size = |v| b.slice(b.shape(v), 0, axis as i64, axis as i64 + 1);
    let n = b.squeeze(size(update), &[0]);
    let range = b.op("Range", &[b.int(0), n, b.int(1)], &[]);
    let mut at = match cx.optional(2) {
        Some(first) => b.add(b.unsqueeze(b.cast(first, DType::Int64), &[1]), range),
        None => b.unsqueeze(range, &[0]),
    };
    if cx.node().str("mode") == Some("circular") {
        at = b.op("Mod", &[at, size(past)], &[]);
    }
    // [batch, n] to the axes of the update.
    let mut axes: Vec<i64> = (1..axis as i64).collect();
    axes.extend(axis as i64 + 1..rank as i64);
    let at = if axes.is_empty() {
        at
    } else {
        b.unsqueeze(at, &axes)
    };
    let at = b.op("Expand", &[at, b.shape(update)], &[]);
    let attrs = [("axis", (axis as i64).into())];
    Ok(vec![Some(b.op(
        "ScatterElements",
        &[past, at, update],
        &attrs,
    ))])
}

fn infer_unpool(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match (cx.ints(2), cx.dims(0)) {
        (Some(shape), _) => Some(shape.iter().map(|s| cx.as_size(s)).collect()),
        (None, Some(d)) => {
            let n = d.len().saturating_sub(2);
            let ones = vec![1; n];
            let kernel = cx.node.ints("kernel_shape").unwrap_or_default();
            let strides = cx.node.ints("strides").unwrap_or(&ones);
            let none = vec![0; 2 * n];
            let pads = cx.node.ints("pads").unwrap_or(&none);
            if kernel.len() != n || strides.len() != n || pads.len() != 2 * n {
                return wrong("kernel_shape, strides or pads do not fit the input");
            }
            let mut out = d.to_vec();
            for i in 0..n {
                let fixed = Sym::from(kernel[i] - pads[i] - pads[i + n] - strides[i]);
                let size = d[i + 2].mul(&Sym::from(strides[i]));
                let size = size.and_then(|s| s.add(&fixed));
                out[i + 2] = match size {
                    Some(s) if cx.input(2).is_none() => s,
                    _ => cx.unknown(),
                };
            }
            Some(out)
        }
        _ => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn infer_unique(cx: &mut InferCx<'_>) -> Inferred {
    let n = cx.unknown();
    let dims = match (cx.dims_vec(0), cx.node.attr("axis")) {
        (Some(mut d), Some(_)) => {
            let axis = normal_axis(cx.node.int("axis", 0), d.len())?;
            d[axis] = n.clone();
            Some(d)
        }
        (None, Some(_)) => None,
        (_, None) => Some(vec![n.clone()]),
    };
    cx.set(0, cx.dtype(0), dims);
    let inverse = cx.unknown();
    for (slot, size) in [(1, n.clone()), (2, inverse), (3, n)] {
        cx.set(slot, Some(DType::Int64), Some(vec![size]));
    }
    Ok(())
}
