//! `com.microsoft::Attention` and `MultiHeadAttention` (1). `GroupQueryAttention` is in its own file.
//!
//! The definitions cover what exporters and optimizers write: one product for query, key and value (`Attention`), separate or packed
//! operands (`MultiHeadAttention`), padding masks as lengths, `[b, t]` or `[b, s, t]`, additive biases, causality and a cache. What
//! only decoding uses (beam search, a shared cache buffer) has no definition.

use super::kit::heads::{
    Core, Window, bias_of, count, length, merge_heads, split_heads, split_last,
};
use super::kit::{Defined, Differentiated, Inferred, MS, no_gradient, wrong};
use super::{ExpandCx, GradError, InferCx, OpDef};
use crate::ir::{AttrValue, DType, Sym, TensorData, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Attention", 2..=7, infer_attention)
        .in_domain(MS)
        .outputs(1..=2)
        .defined_by(expand_attention),
    OpDef::new("MultiHeadAttention", 1..=10, infer_multi)
        .in_domain(MS)
        .outputs(1..=4)
        .defined_by(expand_multi),
];

// ---- Attention ---------------------------------------------------------------------------------------------------------------

/// Widths of query, key and value, all heads together.
fn hidden_sizes(listed: Option<&[i64]>, total: Option<i64>) -> Option<[i64; 3]> {
    match listed {
        Some(&[q, k, v]) => Some([q, k, v]),
        Some(_) => None,
        None => total.map(|n| [n / 3; 3]),
    }
}

fn infer_attention(cx: &mut InferCx<'_>) -> Inferred {
    let heads = cx.node.int("num_heads", 0);
    if heads <= 0 {
        return wrong("num_heads is missing");
    }
    let total = cx.input(1).and_then(|f| f.size(-1));
    let sizes = hidden_sizes(cx.node.ints("qkv_hidden_sizes"), total);
    let ty = cx.dtype(0);
    let value = sizes.map_or_else(|| cx.unknown(), |s| Sym::from(s[2]));
    let y = cx.dims(0).map(|d| {
        let mut d = d.to_vec();
        if let Some(last) = d.last_mut() {
            *last = value.clone();
        }
        d
    });
    let present = y.as_ref().filter(|d| d.len() == 3).map(|d| {
        let past = cx.dims(4).and_then(|p| p.get(3)).cloned();
        let keys = past
            .map_or(Some(d[1].clone()), |p| p.add(&d[1]))
            .unwrap_or_else(|| cx.unknown());
        let width = sizes.map_or_else(|| cx.unknown(), |s| Sym::from(s[1] / heads));
        vec![Sym::from(2), d[0].clone(), Sym::from(heads), keys, width]
    });
    cx.set(0, ty, y);
    cx.set(1, ty, present);
    Ok(())
}

fn expand_attention(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    refuse_attrs(cx, &["do_rotary", "past_present_share_buffer"])?;
    let ty = cx.float(0);
    let heads = node.int("num_heads", 0);
    let sizes = hidden_sizes(node.ints("qkv_hidden_sizes"), cx.fact(1).size(-1))
        .filter(|s| heads > 0 && s.iter().all(|n| n % heads == 0))
        .ok_or_else(|| GradError("the widths of query, key and value are unknown".into()))?;
    let mut qkv = b.matmul(cx.input(0)?, cx.input(1)?);
    if let Some(bias) = cx.optional(2) {
        qkv = b.add(qkv, bias);
    }
    let parts = split_last(b, qkv, &sizes);
    let [q, mut k, mut v] = [0, 1, 2].map(|i| split_heads(b, parts[i], heads));
    let past = cx.optional(4);
    if let Some(past) = past {
        let at = |i: i64| b.op("Gather", &[past, b.int(i)], &[("axis", 0i64.into())]);
        (k, v) = (b.concat(&[at(0), k], 2), b.concat(&[at(1), v], 2));
    }
    let present = cx
        .has_output(1)
        .then(|| b.concat(&[b.unsqueeze(k, &[0]), b.unsqueeze(v, &[0])], 0));
    let mut biases = Vec::new();
    if let Some(mask) = cx.optional(3) {
        biases.push(padding(cx, 3, mask, ty, length(b, k, 2))?);
    }
    if node.int("unidirectional", 0) != 0 {
        biases.push(causal(cx, ty, q, k, past.map(|p| (p, 3))));
    }
    biases.extend(cx.optional(5));
    let core = core(cx, ty, sizes[0] / heads, biases);
    let done = core.build(b, q, k, v);
    Ok(vec![Some(merge_heads(b, done.y)), present])
}

/// Attributes that the definitions do not cover.
fn refuse_attrs(cx: &ExpandCx<'_>, names: &[&str]) -> Differentiated {
    match names.iter().find(|n| cx.node().int(n, 0) != 0) {
        Some(n) => no_gradient(format!("no definition with {n} = 1")),
        None => Ok(()),
    }
}

fn core(cx: &ExpandCx<'_>, ty: DType, width: i64, biases: Vec<Val>) -> Core {
    let scale = cx.node().attr("scale").and_then(AttrValue::as_float);
    Core {
        scale: scale
            .filter(|&s| s != 0.0)
            .unwrap_or_else(|| (width as f32).sqrt().recip()),
        softcap: 0.0,
        guard: !biases.is_empty(),
        biases,
        ty,
        precise: ty,
    }
}

fn causal(cx: &ExpandCx<'_>, ty: DType, q: Val, k: Val, past: Option<(Val, i64)>) -> Val {
    let b = cx.b;
    let offset = past.map(|(p, axis)| length(b, p, axis));
    let allowed = Window { offset, left: 0 }.allowed(b, length(b, q, 2), length(b, k, 2));
    bias_of(b, allowed, ty, f32::NEG_INFINITY)
}

/// The bias of a padding mask: lengths `[b]`, or 1 for what counts in `[b, t]` or `[b, s, t]`.
fn padding(
    cx: &ExpandCx<'_>,
    slot: usize,
    mask: Val,
    ty: DType,
    keys: Val,
) -> Result<Val, GradError> {
    let (b, rank) = (cx.b, cx.rank(slot)?);
    let forbidden = cx.node().float("mask_filter_value", -10000.0);
    let allowed = match rank {
        1 => {
            let (batch, entries) = (cx.fact(0).dims, cx.fact(slot).dims);
            let lengths = batch
                .zip(entries)
                .is_none_or(|(x, m)| x.first() == m.first());
            if !lengths {
                return no_gradient(
                    "no definition for a mask of starts and ends, only of lengths [batch]",
                );
            }
            let ends = b.unsqueeze(b.cast(mask, DType::Int64), &[1, 2, 3]);
            b.op("Less", &[count(b, keys), ends], &[])
        }
        2 => b.cast(b.unsqueeze(mask, &[1, 2]), DType::Bool),
        3 => b.cast(b.unsqueeze(mask, &[1]), DType::Bool),
        r => return no_gradient(format!("no definition for a mask of rank {r}")),
    };
    Ok(bias_of(b, allowed, ty, forbidden))
}

// ---- MultiHeadAttention ------------------------------------------------------------------------------------------------------

/// How the operands of `MultiHeadAttention` come, by the ranks of query and key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Packing {
    /// `[b, s, n·d]` each.
    Separate,
    /// Query `[b, s, n·d]`, key and value `[b, n, t, d]`.
    Heads,
    /// Query `[b, s, n·d]`, key `[b, t, n, 2, d]` with the value.
    KeyValue,
    /// Query `[b, s, n, 3, d]` with key and value.
    All,
}

fn packing(query: Option<usize>, key: Option<usize>) -> Option<Packing> {
    match (query?, key) {
        (5, None) => Some(Packing::All),
        (3, Some(5)) => Some(Packing::KeyValue),
        (3, Some(4)) => Some(Packing::Heads),
        (3, Some(3)) => Some(Packing::Separate),
        _ => None,
    }
}

fn infer_multi(cx: &mut InferCx<'_>) -> Inferred {
    let heads = Sym::from(cx.node.int("num_heads", 0));
    let ty = cx.dtype(0);
    let way = packing(cx.dims(0).map(<[_]>::len), cx.dims(1).map(<[_]>::len));
    let (Some(way), Some(q)) = (way, cx.dims(0).map(<[_]>::to_vec)) else {
        cx.set(0, ty, None);
        return Ok(());
    };
    let at = |slot: usize, i: usize| cx.dims(slot).and_then(|d| d.get(i)).cloned();
    let per_head = |hidden: Option<Sym>| hidden.and_then(|h| h.div(&heads));
    let (keys, width, value) = match way {
        Packing::All => (at(0, 1), at(0, 4), at(0, 4)),
        Packing::KeyValue => (at(1, 1), at(1, 4), at(1, 4)),
        Packing::Heads => (at(1, 2), at(1, 3), at(2, 3)),
        Packing::Separate => (at(1, 1), per_head(at(1, 2)), per_head(at(2, 2))),
    };
    let or = |s: Option<Sym>| s.unwrap_or_else(|| cx.unknown());
    let total = match at(6, 2) {
        Some(past) => keys.and_then(|k| k.add(&past)),
        None if cx.input(6).is_some() => None,
        None => keys,
    };
    let (total, width, value) = (or(total), or(width), or(value));
    let hidden = or(value.mul(&heads));
    let y = vec![q[0].clone(), q[1].clone(), hidden];
    let cache = |w: &Sym| vec![q[0].clone(), heads.clone(), total.clone(), w.clone()];
    let (pk, pv, qk) = (
        cache(&width),
        cache(&value),
        vec![q[0].clone(), heads.clone(), q[1].clone(), total.clone()],
    );
    for (slot, dims) in [y, pk, pv, qk].into_iter().enumerate() {
        cx.set(slot, ty, Some(dims));
    }
    Ok(())
}

fn expand_multi(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let ty = cx.float(0);
    let heads = node.int("num_heads", 0);
    if let Some(slot) = [8, 9].into_iter().find(|&s| cx.optional(s).is_some()) {
        return no_gradient(format!(
            "no definition with input {slot}, which only decoding uses"
        ));
    }
    let unknown = || GradError("the shapes of query and key are unknown or not supported".into());
    let way = packing(cx.fact(0).rank(), cx.fact(1).rank()).ok_or_else(unknown)?;
    let width = match way {
        Packing::All => cx.fact(0).size(4),
        _ => cx.fact(0).size(2).map(|h| h / heads.max(1)),
    };
    let width = width.ok_or_else(unknown)?;
    let (q, mut k, mut v) = operands(cx, way, heads, width)?;
    let past = cx.optional(6);
    if let (Some(pk), Some(pv)) = (past, cx.optional(7)) {
        (k, v) = (b.concat(&[pk, k], 2), b.concat(&[pv, v], 2));
    }
    let mut biases = Vec::new();
    if let Some(mask) = cx.optional(4) {
        biases.push(padding(cx, 4, mask, ty, length(b, k, 2))?);
    }
    if node.int("unidirectional", 0) != 0 {
        biases.push(causal(cx, ty, q, k, past.map(|p| (p, 2))));
    }
    biases.extend(cx.optional(5));
    let done = core(cx, ty, width, biases).build(b, q, k, v);
    let y = merge_heads(b, done.y);
    Ok(vec![Some(y), Some(k), Some(v), Some(done.stages[0])])
}

/// Parts of a bias: constants where it is one, so that each stays the bias of a projection.
fn split_bias(cx: &ExpandCx<'_>, slot: usize, bias: Val, sizes: &[i64]) -> Vec<Val> {
    let stored = cx.graph.input(cx.id, slot);
    let tensor = stored.and_then(|v| cx.graph.value(v).tensor.as_ref());
    let parts = tensor.and_then(|t| {
        let bytes = t.bytes()?;
        let mut at = 0;
        let mut out = Vec::new();
        for &n in sizes {
            let n = u64::try_from(n).ok()?;
            let end = usize::try_from(t.dtype.bytes_for(n)?)
                .ok()?
                .checked_add(at)?;
            if end > bytes.len() {
                return None;
            }
            out.push(TensorData::raw(t.dtype, [n], bytes.slice(at..end)));
            at = end;
        }
        (at == bytes.len()).then_some(out)
    });
    match parts {
        Some(parts) => parts.into_iter().map(|t| cx.b.constant(t)).collect(),
        None => split_last(cx.b, bias, sizes),
    }
}

/// Query, key and value as `[b, n, s, d]`, with their biases.
fn operands(
    cx: &ExpandCx<'_>,
    way: Packing,
    heads: i64,
    width: i64,
) -> Result<(Val, Val, Val), GradError> {
    let b = cx.b;
    let hidden = heads.saturating_mul(width);
    let biases: Option<Vec<Val>> = match cx.optional(3) {
        Some(bias) => {
            let value = cx
                .fact(3)
                .size(0)
                .map_or(hidden, |n| n.saturating_sub(hidden.saturating_mul(2)));
            Some(split_bias(cx, 3, bias, &[hidden, hidden, value]))
        }
        None => None,
    };
    let biased = |v: Val, i: usize| biases.as_ref().map_or(v, |w| b.add(v, w[i]));
    let flat = |slot: usize, i: usize| -> Result<Val, GradError> {
        Ok(split_heads(b, biased(cx.input(slot)?, i), heads))
    };
    // One of several operands of each head: [b, s, n, parts, d] as [b, s, n·d].
    let part = |slot: usize, at: i64| -> Result<Val, GradError> {
        let one = b.op(
            "Gather",
            &[cx.input(slot)?, b.int(at)],
            &[("axis", 3i64.into())],
        );
        Ok(b.reshape(one, b.ints(&[0, 0, -1])))
    };
    let split = |v: Val, i: usize| split_heads(b, biased(v, i), heads);
    Ok(match way {
        Packing::Separate => (flat(0, 0)?, flat(1, 1)?, flat(2, 2)?),
        Packing::Heads => (flat(0, 0)?, cx.input(1)?, cx.input(2)?),
        Packing::KeyValue => (flat(0, 0)?, split(part(1, 0)?, 1), split(part(1, 1)?, 2)),
        Packing::All => (
            split(part(0, 0)?, 0),
            split(part(0, 1)?, 1),
            split(part(0, 2)?, 2),
        ),
    })
}
