//! RMS norms, rotary embeddings and gated activations.

use super::view::View;
use super::{Found, Input, is_f32};
use crate::ir::{NodeId, OpId, ValueId};
use crate::ops::DOMAIN;

/// `x · 1/√(mean(x²) + ε) · w`, in the forms of both torch exporters.
pub(super) fn rms_normalization(view: &View<'_>, mean: NodeId) -> Option<Found> {
    let node = view.g.node(mean);
    if !node.op.is_onnx("ReduceMean") || node.int("keepdims", 1) != 1 {
        return None;
    }
    let square = view.g.input(mean, 0)?;
    let (square_node, x) = squared(view, square)?;
    let rank = view.rank(x)? as i64;
    let axes = view.axes(mean)?;
    if !is_f32(view, x) || !matches!(axes.as_slice(), [a] if *a == -1 || *a == rank - 1) {
        return None;
    }
    let plus = view.only_use_by(view.out(mean)?, "Add")?;
    let epsilon = view.scalar(view.other(plus, view.out(mean)?)?)?;
    let root = view.only_use_by(view.out(plus)?, "Sqrt")?;
    let mut removes = vec![square_node, mean, plus, root];
    let normal = normalized(view, x, view.out(root)?, &mut removes)?;
    let weighted = view.only_use_by(normal, "Mul")?;
    let weight = view.other(weighted, normal)?;
    let (wd, xd) = (
        view.fact(weight)?.dims.as_ref()?,
        view.fact(x)?.dims.as_ref()?,
    );
    if wd.len() != 1 || wd.last() != xd.last() || !is_f32(view, weight) {
        return None;
    }
    removes.push(weighted);
    let found = Found {
        why: "rms norm",
        op: OpId::new(DOMAIN, "RMSNormalization"),
        inputs: vec![Some(Input::Is(x)), Some(Input::Is(weight))],
        attrs: vec![("epsilon", epsilon.into())],
        n_out: 2,
        replaces: view.out(weighted)?,
        removes,
    };
    found.closed(view).then_some(found)
}

fn squared(view: &View<'_>, v: ValueId) -> Option<(NodeId, ValueId)> {
    if let Some(pow) = view.made_by(v, "Pow") {
        let (x, e) = view.pair(pow)?;
        #[expect(clippy::float_cmp, reason = "the exponent is the literal 2")]
        return (view.scalar(e)? == 2.0).then_some((pow, x));
    }
    let mul = view.made_by(v, "Mul")?;
    let (a, b) = view.pair(mul)?;
    (a == b).then_some((mul, a))
}

/// `x / root`, `x · (1 / root)` or `x · Reciprocal(root)`.
fn normalized(
    view: &View<'_>,
    x: ValueId,
    root: ValueId,
    removes: &mut Vec<NodeId>,
) -> Option<ValueId> {
    let (reader, slot) = view.only_use(root)?;
    removes.push(reader);
    let out = view.out(reader)?;
    let op = &view.g.node(reader).op;
    let inverse = op.is_onnx("Reciprocal")
        || (op.is_onnx("Div")
            && slot == 1
            && view.g.input(reader, 0).and_then(|n| view.scalar(n)) == Some(1.0));
    if inverse {
        let mul = view.only_use_by(out, "Mul")?;
        removes.push(mul);
        return (view.other(mul, out)? == x)
            .then(|| view.out(mul))
            .flatten();
    }
    (op.is_onnx("Div") && slot == 1 && view.g.input(reader, 0)? == x).then_some(out)
}

/// `x·cos + concat(-x₂, x₁)·sin` over the halves of the last axis.
pub(super) fn rotary_embedding(view: &View<'_>, concat: NodeId) -> Option<Found> {
    let node = view.g.node(concat);
    if !node.op.is_onnx("Concat") || node.input_count() != 2 {
        return None;
    }
    let (negated, first) = view.pair(concat)?;
    let neg = view.made_by(negated, "Neg")?;
    let upper = view.made_by(view.g.input(neg, 0)?, "Slice")?;
    let lower = view.made_by(first, "Slice")?;
    let x = view.g.input(upper, 0)?;
    let rank = view.rank(x)?;
    let axis = node.int("axis", 0);
    let width = view.fact(x)?.size(-1)?;
    let half = width / 2;
    let last = |a: i64| a == -1 || a == rank as i64 - 1;
    let covers = |n: NodeId, from: i64, to: i64| -> Option<bool> {
        let at = |slot: usize| view.ints(view.g.input(n, slot)?)?.first().copied();
        let (start, end) = (at(1)?, at(2)?);
        let end = if end < 0 { end + width } else { end.min(width) };
        let step = view.g.input(n, 4).map_or(Some(1), |_| at(4))?;
        Some(start == from && end == to && last(at(3)?) && step == 1)
    };
    let halves = width % 2 == 0
        && view.g.input(lower, 0)? == x
        && covers(lower, 0, half)?
        && covers(upper, half, width)?;
    if rank != 4 || !last(axis) || !halves || !is_f32(view, x) {
        return None;
    }
    let rotated = view.only_use_by(view.out(concat)?, "Mul")?;
    let sin = view.other(rotated, view.out(concat)?)?;
    let sum = view.only_use_by(view.out(rotated)?, "Add")?;
    let plain = view.made_by(view.other(sum, view.out(rotated)?)?, "Mul")?;
    let cos = view.other(plain, x)?;
    let table = |t: ValueId| -> bool {
        view.fact(t)
            .and_then(|f| f.dims.as_ref())
            .is_some_and(|d| d.len() == 4 && d[1].is(1) && d[3].is(width))
    };
    if !table(cos) || !table(sin) {
        return None;
    }
    let found = Found {
        why: "rotary embedding",
        op: OpId::new(DOMAIN, "RotaryEmbedding"),
        inputs: [x, cos, sin].map(|v| Some(Input::Is(v))).into(),
        attrs: vec![("inverse", 0i64.into())],
        n_out: 1,
        replaces: view.out(sum)?,
        removes: vec![neg, upper, lower, concat, rotated, plain, sum],
    };
    found.closed(view).then_some(found)
}

/// `a·σ(a)`, and `a·σ(a)·b` when the product has no other reader.
pub(super) fn gated_activation(view: &View<'_>, sigmoid: NodeId) -> Option<Found> {
    if !view.g.node(sigmoid).op.is_onnx("Sigmoid") {
        return None;
    }
    let a = view.g.input(sigmoid, 0)?;
    let silu = view.only_use_by(view.out(sigmoid)?, "Mul")?;
    if view.other(silu, view.out(sigmoid)?)? != a || !is_f32(view, a) {
        return None;
    }
    let activated = view.out(silu)?;
    let gated = view.only_use_by(activated, "Mul").and_then(|m| {
        let b = view.other(m, activated)?;
        (view.same_shape(a, b) && is_f32(view, b)).then_some((m, b))
    });
    let found = match gated {
        Some((product, b)) => Found {
            why: "gated activation",
            op: OpId::new(DOMAIN, "SwiGLU"),
            inputs: vec![Some(Input::Is(a)), Some(Input::Is(b))],
            attrs: vec![],
            n_out: 1,
            replaces: view.out(product)?,
            removes: vec![sigmoid, silu, product],
        },
        None => Found {
            why: "silu",
            op: OpId::new(DOMAIN, "Silu"),
            inputs: vec![Some(Input::Is(a))],
            attrs: vec![],
            n_out: 1,
            replaces: activated,
            removes: vec![sigmoid, silu],
        },
    };
    found.closed(view).then_some(found)
}
