//! `SoftmaxCrossEntropyLoss` (12, 13): `-log softmax(scores)[label]` over axis 1, weighted, with an ignored label, and reduced.
//! `NegativeLogLikelihoodLoss` (12, 13, 22): the same of scores that are logarithms of probabilities already.

use super::kit::grad::convert;
use super::kit::{Defined, Differentiated, Inferred, wrong};
use super::{ExpandCx, GradCx, GradError, InferCx, OpDef};
use crate::ir::{DType, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("SoftmaxCrossEntropyLoss", 2..=3, infer)
        .outputs(1..=2)
        .gradient(gradient),
    OpDef::new("NegativeLogLikelihoodLoss", 2..=3, infer).defined_by(likelihood),
];

/// `-weight[label]·x[label]`, zero at ignored labels, and summed; the mean is by the sum of the weights.
fn likelihood(cx: &ExpandCx<'_>) -> Defined {
    let (b, ty) = (cx.b, cx.float(0));
    let axis = |axis: i64| [("axis", axis.into())];
    let labels = b.cast(cx.input(1)?, DType::Int64);
    let skip = cx.node().attr("ignore_index").map(|_| {
        let index = b.int(cx.node().int("ignore_index", -100));
        b.op("Equal", &[labels, index], &[])
    });
    let labels = match skip {
        Some(skip) => b.op("Where", &[skip, b.int(0), labels], &[]),
        None => labels,
    };
    let taken = b.op(
        "GatherElements",
        &[cx.input(0)?, b.unsqueeze(labels, &[1])],
        &axis(1),
    );
    let taken = b.neg(b.squeeze(taken, &[1]));
    let weight = match cx.optional(2) {
        Some(weight) => b.op("Gather", &[weight, labels], &axis(0)),
        None => b.op("Expand", &[b.scalar_of(1.0, ty), b.shape(labels)], &[]),
    };
    let weight = match skip {
        Some(skip) => b.op("Where", &[skip, b.scalar_of(0.0, ty), weight], &[]),
        None => weight,
    };
    let each = b.mul(taken, weight);
    let sum = |v: Val| b.op("ReduceSum", &[v], &[("keepdims", 0i64.into())]);
    Ok(vec![Some(match cx.node().str("reduction") {
        Some("none") => each,
        Some("sum") => sum(each),
        _ => b.div(sum(each), sum(weight)),
    })])
}

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match cx.node.str("reduction") {
        Some("none") => cx.dims(1).map(<[_]>::to_vec),
        None | Some("mean" | "sum") => Some(Vec::new()),
        Some(other) => return wrong(format!("reduction = {other:?}")),
    };
    cx.set(0, cx.dtype(0), dims);
    cx.set_like(1, 0);
    Ok(())
}

/// The gradient is `(softmax - onehot)·f`, where `f` is the label's weight times the incoming gradient, divided by the sum of weights
/// for the mean, and zero at ignored labels. When all labels are ignored the mean is 0/0, and the gradient zero, as in torch.
fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    cx.refuse(&[2], "the class weights")?;
    let b = cx.b;
    let scores = cx.input(0)?;
    let log_prob = match cx.output(1) {
        Ok(v) => v,
        Err(_) => b.op("LogSoftmax", &[scores], &[("axis", 1i64.into())]),
    };
    let p = b.unary("Exp", log_prob);
    let mut dx = None;
    if let Some(g) = cx.grads.first().copied().flatten() {
        dx = Some(loss_gradient(cx, p, g)?);
    }
    if let Some(g) = cx.grads.get(1).copied().flatten() {
        let total = b.reduce_sum(g, &[1], true);
        let d = b.sub(g, b.mul(p, total));
        dx = Some(dx.map_or(d, |dx| b.add(dx, d)));
    }
    if let Some(dx) = dx {
        cx.set(0, dx);
    }
    Ok(())
}

fn loss_gradient(cx: &GradCx<'_>, p: Val, g: Val) -> Result<Val, GradError> {
    let (b, ty) = (cx.b, cx.float(0));
    let label_type = cx.fact(1).dtype.unwrap_or(DType::Int64);
    let labels = convert(b, cx.input(1)?, label_type, DType::Int64);
    let ignored = cx.node().attr("ignore_index").is_some();
    let (labels, counted) = if ignored {
        let index = b.int(cx.node().int("ignore_index", -100));
        let skip = b.op("Equal", &[labels, index], &[]);
        let labels = b.op("Where", &[skip, b.int(0), labels], &[]);
        (labels, Some(b.unary("Not", skip)))
    } else {
        (labels, None)
    };
    let weight = match cx.input(2) {
        Ok(w) => b.op("Gather", &[w, labels], &[("axis", 0i64.into())]),
        Err(_) => b.op("Expand", &[b.scalar_of(1.0, ty), b.shape(labels)], &[]),
    };
    let zero = b.scalar_of(0.0, ty);
    let only = |v: Val| counted.map_or(v, |c| b.op("Where", &[c, v, zero], &[]));
    let weight = only(weight);
    let mut factor = b.mul(weight, g);
    if matches!(cx.node().str("reduction"), None | Some("mean")) {
        let total = b.op("ReduceSum", &[weight], &[("keepdims", 0i64.into())]);
        factor = only(b.div(factor, total));
    }
    // softmax - onehot, without a one-hot tensor.
    let index = b.unsqueeze(labels, &[1]);
    let axis = [("axis", 1i64.into())];
    let at = b.op("GatherElements", &[p, index], &axis);
    let less = b.sub(at, b.scalar_of(1.0, ty));
    let d = b.op("ScatterElements", &[p, index, less], &axis);
    Ok(b.mul(d, b.unsqueeze(factor, &[1])))
}
