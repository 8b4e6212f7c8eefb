//! `com.microsoft::GroupQueryAttention` (1): causal attention with fewer key heads than query heads, a cache of its own layout, and
//! the rotary embedding inside.
//!
//! `seqlens_k[b]` is the number of valid keys less one, this step's included. A step that is as long as `total_sequence_length` is the
//! first (its rows begin at position 0, right-padded); otherwise the rows stand behind the `seqlens_k + 1 - s` keys that the cache
//! holds for this row of the batch. What stands behind the valid keys of a row, in the output and in the cache, is not specified.

use super::kit::heads::{
    Core, Rotary, Window, bias_of, count, length, merge_heads, repeat_heads, split_heads,
    split_last,
};
use super::kit::{Defined, Differentiated, Inferred, MS, no_gradient, wrong};
use super::{ExpandCx, GradError, InferCx, OpDef};
use crate::ir::{AttrValue, DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[OpDef::new("GroupQueryAttention", 7..=14, infer)
    .in_domain(MS)
    .outputs(1..=4)
    .defined_by(expand)];

/// Width of a head: packed, the last axis holds query, key and value heads.
fn head_width(hidden: Option<i64>, packed: bool, heads: i64, groups: i64) -> Option<i64> {
    let all = if packed {
        groups.checked_mul(2)?.checked_add(heads)?
    } else {
        heads
    };
    hidden?.checked_div(all)
}

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let (heads, groups) = (cx.node.int("num_heads", 0), cx.node.int("kv_num_heads", 0));
    if heads <= 0 || groups <= 0 || heads % groups != 0 {
        return wrong(format!(
            "{heads} query heads do not share {groups} key heads"
        ));
    }
    let packed = cx.input(1).is_none();
    let ty = cx.dtype(0);
    let hidden = cx.input(0).and_then(|f| f.size(-1));
    let width = head_width(hidden, packed, heads, groups);
    let (y, cache) = match cx.dims(0) {
        Some([batch, rows, _]) => {
            let all = width.and_then(|w| w.checked_mul(heads));
            let all = all.map_or_else(|| cx.unknown(), Sym::from);
            let each = width.map_or_else(|| cx.unknown(), Sym::from);
            let past = cx.dims(3).and_then(|p| p.get(2)).cloned();
            let keys = match past {
                Some(p) => p.add(rows).unwrap_or_else(|| cx.unknown()),
                None => rows.clone(),
            };
            (
                Some(vec![batch.clone(), rows.clone(), all]),
                Some(vec![batch.clone(), Sym::from(groups), keys, each]),
            )
        }
        _ => (None, None),
    };
    cx.set(0, ty, y);
    cx.set(1, ty, cache.clone());
    cx.set(2, ty, cache);
    Ok(())
}

/// Where this step's rows stand.
struct Places {
    /// Rows of this step, a scalar.
    rows: Val,
    /// Keys of the longest row of the batch, this step's included, a scalar.
    total: Val,
    /// Keys in the cache by batch, `[b]`.
    before: Val,
}

fn expand(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    refuse(cx)?;
    let ty = cx.float(0);
    let (heads, groups) = (node.int("num_heads", 0), node.int("kv_num_heads", 0));
    let packed = cx.optional(1).is_none();
    let width = head_width(cx.fact(0).size(-1), packed, heads, groups)
        .filter(|_| groups > 0 && heads % groups == 0)
        .ok_or_else(|| GradError("the width of a head is unknown".into()))?;
    let [q, k, v] = if packed {
        let parts = split_last(
            b,
            cx.input(0)?,
            &[heads * width, groups * width, groups * width],
        );
        [parts[0], parts[1], parts[2]]
    } else {
        [cx.input(0)?, cx.input(1)?, cx.input(2)?]
    };
    let places = places(cx, q)?;
    let mut q = split_heads(b, q, heads);
    let (mut k, mut v) = (split_heads(b, k, groups), split_heads(b, v, groups));
    if node.int("do_rotary", 0) != 0 {
        let turn = rotary(cx, &places, width)?;
        (q, k) = (turn.apply(b, q), turn.apply(b, k));
    }
    if let (Some(pk), Some(pv)) = (cx.optional(3), cx.optional(4)) {
        let index = cache_index(cx, &places, pk);
        (k, v) = (appended(cx, pk, k, index), appended(cx, pv, v, index));
    }
    let window = Window {
        offset: Some(b.unsqueeze(places.before, &[1, 2, 3])),
        left: node.int("local_window_size", -1),
    };
    let allowed = window.allowed(b, places.rows, length(b, k, 2));
    let mut biases = vec![bias_of(b, allowed, ty, f32::NEG_INFINITY)];
    biases.extend(cx.optional(10));
    let scale = node.attr("scale").and_then(AttrValue::as_float);
    let core = Core {
        scale: scale
            .filter(|&s| s != 0.0)
            .unwrap_or_else(|| (width as f32).sqrt().recip()),
        softcap: node.float("softcap", 0.0),
        biases,
        ty,
        precise: ty,
        guard: false,
    };
    let times = heads / groups;
    let done = core.build(
        b,
        q,
        repeat_heads(b, k, groups, times, width),
        repeat_heads(b, v, groups, times, width),
    );
    Ok(vec![Some(merge_heads(b, done.y)), Some(k), Some(v)])
}

fn refuse(cx: &ExpandCx<'_>) -> Differentiated {
    if cx.node().int("smooth_softmax", 0) > 0 {
        return no_gradient("no definition with smooth_softmax = 1");
    }
    match [(11, "head_sink"), (12, "k_scale"), (13, "v_scale")]
        .into_iter()
        .find(|&(slot, _)| cx.optional(slot).is_some())
    {
        Some((_, name)) => no_gradient(format!("no definition with {name}")),
        None => Ok(()),
    }
}

fn places(cx: &ExpandCx<'_>, q: Val) -> Result<Places, GradError> {
    let b = cx.b;
    let rows = length(b, q, 1);
    let wide = |v: Val| b.cast(v, DType::Int64);
    let valid = b.add(b.reshape(wide(cx.input(5)?), b.ints(&[-1])), b.int(1));
    let total = b.reshape(wide(cx.input(6)?), b.ints(&[]));
    let first = b.op("Equal", &[total, rows], &[]);
    let before = b.op("Where", &[first, b.int(0), b.sub(valid, rows)], &[]);
    Ok(Places {
        rows,
        total,
        before,
    })
}

fn rotary(cx: &ExpandCx<'_>, places: &Places, width: i64) -> Result<Rotary, GradError> {
    let b = cx.b;
    let positions = match cx.optional(9) {
        Some(p) => p,
        None => b.add(
            b.unsqueeze(places.before, &[1]),
            b.unsqueeze(count(b, places.rows), &[0]),
        ),
    };
    let half = cx.fact(7).size(-1);
    let at = |slot: usize| -> Result<Val, GradError> {
        Ok(b.op(
            "Gather",
            &[cx.input(slot)?, positions],
            &[("axis", 0i64.into())],
        ))
    };
    Ok(Rotary {
        cos: at(7)?,
        sin: at(8)?,
        half: half.ok_or_else(|| GradError("the width of the cosine table is unknown".into()))?,
        width: Some(width),
        interleaved: cx.node().int("rotary_interleaved", 0) != 0,
    })
}

/// For each place of the new cache the place in the old cache and the step's keys behind it, `[b, 1, t, 1]`.
fn cache_index(cx: &ExpandCx<'_>, places: &Places, past: Val) -> Val {
    let b = cx.b;
    let held = length(b, past, 2);
    let keys = b.op("Max", &[held, places.total], &[]);
    let to = count(b, keys);
    let before = b.unsqueeze(places.before, &[1]);
    let old = b.op("Less", &[to, before], &[]);
    let new = b.add(b.sub(to, before), held);
    let last = b.sub(b.add(held, places.rows), b.int(1));
    let from = b.op("Where", &[old, to, new], &[]);
    let from = b.op("Min", &[from, last], &[]);
    b.unsqueeze(from, &[1, 3])
}

/// The cache with the step's keys or values put behind what it holds.
fn appended(cx: &ExpandCx<'_>, past: Val, new: Val, index: Val) -> Val {
    let b = cx.b;
    let all = b.concat(&[past, new], 2);
    let sizes = b.shape(all);
    let places = b.slice(b.shape(index), 0, 2, 3);
    let shape = b.concat(
        &[b.slice(sizes, 0, 0, 2), places, b.slice(sizes, 0, 3, 4)],
        0,
    );
    let index = b.op("Expand", &[index, shape], &[]);
    b.op("GatherElements", &[all, index], &[("axis", 2i64.into())])
}
