//! Attention cores: softmax between two matrix products.

use super::{Found, Fused, Input};
use crate::analyze::softmax::{Bounds, Heart, Link};
use crate::analyze::view::View;
use crate::ir::{NodeId, OpId, ValueId};
use crate::ops::DOMAIN;
use rustc_hash::FxHashSet;

/// `softmax(q·kᵀ [· scale] [+ mask])·v` with heads on axis 1, the repeat of grouped keys and values included.
pub(super) fn attention(view: &View<'_>, softmax: NodeId) -> Option<Found> {
    let node = view.node(softmax);
    let scores = view.input(softmax, 0)?;
    if !node.op.is_onnx("Softmax")
        || view.rank(scores)? != 4
        || !matches!(node.int("axis", -1), -1 | 3)
        || !view.is_f32(scores)
    {
        return None;
    }
    let bounds = Bounds {
        product: &|n, _, _| view.is(n, "MatMul"),
        inside: &|_| true,
    };
    let heart = Heart::around(view, softmax, &bounds).ok()?;
    let mut removes = vec![softmax, heart.product, heart.mix];
    removes.extend(heart.links.iter().map(|l| l.node));
    let (mask, scale) = match heart.links[..] {
        [] => (None, 1.0),
        [add] if view.is(add.node, "Add") => (Some(masked(view, add)?), 1.0),
        [scale] => (None, scaled(view, scale)?),
        [add, scale] => (Some(masked(view, add)?), scaled(view, scale)?),
        _ => return None,
    };
    let (q, q_scale) = peel_scale(view, heart.queries, &mut removes);
    let (kt, k_scale) = peel_scale(view, heart.keys, &mut removes);
    let k = untransposed(view, kt, &mut removes)?;
    unguarded(view, &heart, &mut removes)?;
    let (k, v) = unrepeated(view, k, heart.values, &mut removes);
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
        fused: Fused {
            op: OpId::new(DOMAIN, "Attention"),
            inputs: vec![
                Some(input(q, q_scale)),
                Some(input(k, k_scale)),
                Some(Input::Is(v)),
                mask.map(Input::Is),
            ],
            attrs: vec![("scale", scale.into())],
            n_out: 2,
        },
        replaces: view.out(heart.mix)?,
        removes,
    };
    found.shrink(view)
}

/// What an `Add` adds to the scores, if it has their shape or is stretched to it.
fn masked(view: &View<'_>, add: Link) -> Option<ValueId> {
    if !view.is(add.node, "Add") {
        return None;
    }
    let (a, b) = view.pair(add.node)?;
    let mask = if a == add.from { b } else { a };
    let (md, sd) = (view.dims(mask)?, view.dims(add.from)?);
    let fits = md.len() <= 4
        && md
            .iter()
            .rev()
            .zip(sd.iter().rev())
            .enumerate()
            .all(|(i, (m, s))| m.is(1) || m == s || (i < 2 && m.as_const().is_none()));
    (view.is_f32(mask) && fits && !is_computed(view, mask)).then_some(mask)
}

/// Whether a mask is made by a product, as a bias that hidden states choose (`WavLM`, DeBERTa): it has a gradient, which the fused operator
/// does not give.
fn is_computed(view: &View<'_>, mask: ValueId) -> bool {
    let mut seen = FxHashSet::default();
    let mut todo = vec![mask];
    while let Some(v) = todo.pop() {
        let Some(n) = view.producer(v).filter(|n| seen.insert(*n)) else {
            continue;
        };
        if ["MatMul", "Gemm", "Einsum"].contains(&view.op(n)) {
            return true;
        }
        // A shape is no use of the numbers.
        if !view.measures(n) {
            todo.extend(view.inputs(n).into_iter().flatten());
        }
    }
    false
}

/// What a constant multiplies the scores with.
fn scaled(view: &View<'_>, link: Link) -> Option<f32> {
    let (x, s) = view.pair(link.node)?;
    let s = view.scalar(s).filter(|_| x == link.from)?;
    match view.op(link.node) {
        "Mul" => Some(s),
        "Div" => Some(1.0 / s),
        _ => None,
    }
}

/// `x` of `x · s` with one-element `s`.
fn peel_scale(
    view: &View<'_>,
    v: ValueId,
    removes: &mut Vec<NodeId>,
) -> (ValueId, Option<ValueId>) {
    let one = |s: ValueId| view.is_single(s) && view.rank(s).is_some_and(|r| r <= 1);
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
        return (view.node(t).ints("perm")? == [0, 1, 3, 2])
            .then(|| view.input(t, 0))
            .flatten();
    }
    let outer = view.made_by(kt, "Reshape")?;
    let swap = view.made_by(view.input(outer, 0)?, "Transpose")?;
    let inner = view.made_by(view.input(swap, 0)?, "Reshape")?;
    let k = view.input(inner, 0)?;
    let (kd, td) = (view.dims(k)?, view.dims(kt)?);
    let flat = view.dims(view.out(inner)?)?;
    let swapped =
        kd.len() == 4 && td.len() == 4 && kd[..2] == td[..2] && kd[2] == td[3] && kd[3] == td[2];
    if view.node(swap).ints("perm")? != [0, 2, 1] || !swapped || flat[1..] != kd[2..] {
        return None;
    }
    removes.extend([outer, swap, inner]);
    Some(k)
}

/// Whether the mix reads the probabilities as they are, or behind the guard `Where(IsNaN(p), 0, p)`, which the fused kernel makes
/// needless.
fn unguarded(view: &View<'_>, heart: &Heart, removes: &mut Vec<NodeId>) -> Option<()> {
    let mixed = heart.probabilities;
    let only = view.only_use(mixed)? == (heart.mix, 0) && view.is(heart.mix, "MatMul");
    if !only {
        return None;
    }
    let [guard] = heart.way[..] else {
        return heart.way.is_empty().then_some(());
    };
    let test = view.made_by(view.input(guard, 0)?, "IsNaN")?;
    let p = view.input(test, 0)?;
    let zero = view.scalar(view.input(guard, 1)?)?;
    removes.extend([test, guard]);
    let twice = view.graph.uses(p).len() == 2;
    let fits = view.is(guard, "Where") && view.input(guard, 2)? == p && zero == 0.0 && twice;
    fits.then_some(())
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
    let expand = view.made_by(view.input(reshape, 0)?, "Expand")?;
    let unsqueeze = view.made_by(view.input(expand, 0)?, "Unsqueeze")?;
    let x = view.input(unsqueeze, 0)?;
    let (xd, ed, vd) = (view.dims(x)?, view.dims(view.out(expand)?)?, view.dims(v)?);
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
