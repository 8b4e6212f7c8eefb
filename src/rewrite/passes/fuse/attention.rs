//! Attention cores: softmax between two matrix products.

use super::view::View;
use super::{Found, Input, is_f32};
use crate::ir::{NodeId, OpId, Sym, ValueId};
use crate::ops::DOMAIN;

/// `softmax(q·kᵀ [· scale] [+ mask])·v` with heads on axis 1, the repeat of grouped keys and values included.
pub(super) fn attention(view: &View<'_>, softmax: NodeId) -> Option<Found> {
    let node = view.g.node(softmax);
    let scores = view.g.input(softmax, 0)?;
    if !node.op.is_onnx("Softmax")
        || view.rank(scores)? != 4
        || !matches!(node.int("axis", -1), -1 | 3)
        || !is_f32(view, scores)
    {
        return None;
    }
    let mut removes = vec![softmax];
    let (scores, mask) = unmasked(view, scores, &mut removes)?;
    let (product, scale) = unscaled(view, scores, &mut removes)?;
    removes.push(product);
    let (q, kt) = view.pair(product)?;
    let (q, q_scale) = peel_scale(view, q, &mut removes);
    let (kt, k_scale) = peel_scale(view, kt, &mut removes);
    let k = untransposed(view, kt, &mut removes)?;
    let probabilities = unguarded(view, view.out(softmax)?, &mut removes)?;
    let mix = view.only_use_by(probabilities, "MatMul")?;
    if view.g.input(mix, 0)? != probabilities {
        return None;
    }
    removes.push(mix);
    let v = view.g.input(mix, 1)?;
    let (k, v) = unrepeated(view, k, v, &mut removes);
    if view.rank(q)? != 4 || view.rank(k)? != 4 || view.rank(v)? != 4 {
        return None;
    }
    let constant = |s: &Option<ValueId>| s.map_or(Some(1.0), |v| view.scalar(v));
    let input = |v: ValueId, s: Option<ValueId>| match s {
        Some(s) if view.scalar(s).is_none() => Input::Scaled(v, s),
        _ => Input::Is(v),
    };
    let scale = scale * constant(&q_scale).unwrap_or(1.0) * constant(&k_scale).unwrap_or(1.0);
    let found = Found {
        why: "attention",
        op: OpId::new(DOMAIN, "Attention"),
        inputs: vec![
            Some(input(q, q_scale)),
            Some(input(k, k_scale)),
            Some(Input::Is(v)),
            mask.map(Input::Is),
        ],
        attrs: vec![("scale", scale.into())],
        n_out: 2,
        replaces: view.out(mix)?,
        removes,
    };
    found.shrink(view)
}

impl Found {
    /// Keeps what others read: a repeated key or value that something else needs stays in the graph.
    fn shrink(mut self, view: &View<'_>) -> Option<Found> {
        loop {
            let stays: Vec<NodeId> = self
                .removes
                .iter()
                .copied()
                .filter(|&n| {
                    view.g.node_outputs(n).into_iter().flatten().any(|v| {
                        v != self.replaces
                            && (view.g.is_output(v)
                                || view
                                    .g
                                    .uses(v)
                                    .iter()
                                    .any(|u| !self.removes.contains(&u.node())))
                    })
                })
                .collect();
            if stays.is_empty() {
                return Some(self);
            }
            self.removes.retain(|n| !stays.contains(n));
            let (last, _) = view.g.producer(self.replaces)?;
            if !self.removes.contains(&last) {
                return None;
            }
        }
    }
}

/// The side of an `Add` that comes from a product, and the other one, the mask.
fn unmasked(
    view: &View<'_>,
    scores: ValueId,
    removes: &mut Vec<NodeId>,
) -> Option<(ValueId, Option<ValueId>)> {
    let Some(add) = view.made_by(scores, "Add") else {
        return Some((scores, None));
    };
    let (a, b) = view.pair(add)?;
    let is_product = |v: ValueId| {
        view.made_by(v, "MatMul").is_some()
            || ["Mul", "Div"].iter().any(|op| {
                view.made_by(v, op).is_some_and(|n| {
                    view.g
                        .input(n, 0)
                        .is_some_and(|x| view.made_by(x, "MatMul").is_some())
                })
            })
    };
    removes.push(add);
    let (product, mask) = if is_product(a) { (a, b) } else { (b, a) };
    let (md, sd) = (
        view.fact(mask)?.dims.as_ref()?,
        view.fact(product)?.dims.as_ref()?,
    );
    let fits = md.len() <= 4
        && md
            .iter()
            .rev()
            .zip(sd.iter().rev())
            .enumerate()
            .all(|(i, (m, s))| m.is(1) || m == s || (i < 2 && m.as_const().is_none()));
    (is_product(product) && is_f32(view, mask) && fits).then_some((product, Some(mask)))
}

fn unscaled(view: &View<'_>, scores: ValueId, removes: &mut Vec<NodeId>) -> Option<(NodeId, f32)> {
    if let Some(product) = view.made_by(scores, "MatMul") {
        return Some((product, 1.0));
    }
    for (op, inverse) in [("Mul", false), ("Div", true)] {
        if let Some(n) = view.made_by(scores, op) {
            let (x, s) = view.pair(n)?;
            let s = view.scalar(s)?;
            removes.push(n);
            return Some((
                view.made_by(x, "MatMul")?,
                if inverse { 1.0 / s } else { s },
            ));
        }
    }
    None
}

/// `x` of `x · s` with one-element `s`.
fn peel_scale(
    view: &View<'_>,
    v: ValueId,
    removes: &mut Vec<NodeId>,
) -> (ValueId, Option<ValueId>) {
    let one = |s: ValueId| {
        view.fact(s)
            .and_then(|f| f.dims.as_ref())
            .is_some_and(|d| d.iter().all(|n| n.is(1)) && d.len() <= 1)
    };
    let Some(mul) = view.made_by(v, "Mul") else {
        return (v, None);
    };
    let Some((a, b)) = view.pair(mul) else {
        return (v, None);
    };
    let (x, s) = if one(b) { (a, b) } else { (b, a) };
    if !one(s) {
        return (v, None);
    }
    removes.push(mul);
    (x, Some(s))
}

/// `k` of `kᵀ`: a transposition of the last two axes, also as dynamo writes it, through three axes.
fn untransposed(view: &View<'_>, kt: ValueId, removes: &mut Vec<NodeId>) -> Option<ValueId> {
    if let Some(t) = view.made_by(kt, "Transpose") {
        removes.push(t);
        return (view.g.node(t).ints("perm")? == [0, 1, 3, 2])
            .then(|| view.g.input(t, 0))
            .flatten();
    }
    let outer = view.made_by(kt, "Reshape")?;
    let swap = view.made_by(view.g.input(outer, 0)?, "Transpose")?;
    let inner = view.made_by(view.g.input(swap, 0)?, "Reshape")?;
    let k = view.g.input(inner, 0)?;
    let dims = |v: ValueId| view.fact(v).and_then(|f| f.dims.clone());
    let (kd, td) = (dims(k)?, dims(kt)?);
    let flat = dims(view.out(inner)?)?;
    let swapped =
        kd.len() == 4 && td.len() == 4 && kd[..2] == td[..2] && kd[2] == td[3] && kd[3] == td[2];
    if view.g.node(swap).ints("perm")? != [0, 2, 1] || !swapped || flat[1..] != kd[2..] {
        return None;
    }
    removes.extend([outer, swap, inner]);
    Some(k)
}

/// The probabilities behind the guard `Where(IsNaN(p), 0, p)`, which the fused kernel makes needless.
fn unguarded(view: &View<'_>, p: ValueId, removes: &mut Vec<NodeId>) -> Option<ValueId> {
    let uses = view.g.uses(p);
    if uses.len() != 2 {
        return Some(p);
    }
    let test = uses
        .iter()
        .map(|u| u.node())
        .find(|&n| view.g.node(n).op.is_onnx("IsNaN"))?;
    let guard = uses
        .iter()
        .map(|u| u.node())
        .find(|&n| view.g.node(n).op.is_onnx("Where"))?;
    let zero = view.scalar(view.g.input(guard, 1)?)?;
    let matches =
        view.g.input(guard, 0)? == view.out(test)? && view.g.input(guard, 2)? == p && zero == 0.0;
    removes.extend([test, guard]);
    matches.then(|| view.out(guard)).flatten()
}

/// Keys and values before `repeat_kv` (unsqueeze, expand, reshape), if both are repeated alike.
fn unrepeated(
    view: &View<'_>,
    k: ValueId,
    v: ValueId,
    removes: &mut Vec<NodeId>,
) -> (ValueId, ValueId) {
    match (repeated(view, k), repeated(view, v)) {
        (Some((k0, nk, mut kn)), Some((v0, nv, mut vn))) if nk == nv => {
            removes.append(&mut kn);
            removes.append(&mut vn);
            (k0, v0)
        }
        _ => (k, v),
    }
}

fn repeated(view: &View<'_>, v: ValueId) -> Option<(ValueId, i64, Vec<NodeId>)> {
    let reshape = view.made_by(v, "Reshape")?;
    let expand = view.made_by(view.g.input(reshape, 0)?, "Expand")?;
    let unsqueeze = view.made_by(view.g.input(expand, 0)?, "Unsqueeze")?;
    let x = view.g.input(unsqueeze, 0)?;
    let dims = |v: ValueId| -> Option<&Vec<Sym>> { view.fact(v)?.dims.as_ref() };
    let (xd, ed, vd) = (dims(x)?, dims(view.out(expand)?)?, dims(v)?);
    let (heads, all) = (xd.get(1)?.as_const()?, vd.get(1)?.as_const()?);
    let times = all.checked_div(heads)?;
    let alike = xd.len() == 4 && ed.len() == 5 && vd.len() == 4 && view.axes(unsqueeze)? == [2];
    let grouped = alike
        && ed[1] == xd[1]
        && ed[2].is(times)
        && ed[3..] == xd[2..]
        && vd[2..] == xd[2..]
        && heads * times == all;
    grouped.then(|| (x, times, vec![reshape, expand, unsqueeze]))
}
