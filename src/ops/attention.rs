//! `Attention` (23, 24) of `ai.onnx`.
//!
//! The definition is the operator's own, with the order of the corrected specification (soft cap before the mask) and its rule for
//! rows that are masked as a whole: they attend to nothing.

use super::kit::heads::{
    Core, Window, bias_of, count, length, merge_heads, repeat_heads, split_heads,
};
use super::kit::infer::same_size;
use super::kit::{Defined, Inferred, no_gradient, wrong};
use super::{ExpandCx, GradError, InferCx, InferError, OpDef};
use crate::ir::{DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[OpDef::new("Attention", 3..=7, infer)
    .outputs(1..=4)
    .defined_by(expand)];

/// `[b, n, s, d]` of an operand, where it is known.
pub(super) fn heads_of(
    cx: &InferCx<'_>,
    slot: usize,
    heads: i64,
) -> Result<Option<[Sym; 4]>, InferError> {
    let Some(dims) = cx.dims(slot) else {
        return Ok(None);
    };
    match dims {
        [b, n, s, d] => Ok(Some([b, n, s, d].map(Clone::clone))),
        [b, s, hidden] if heads > 0 => {
            let width = hidden
                .div(&Sym::from(heads))
                .unwrap_or_else(|| cx.unknown());
            Ok(Some([b.clone(), Sym::from(heads), s.clone(), width]))
        }
        [_, _, _] => wrong(format!(
            "input {slot} has rank 3, which needs the number of heads"
        )),
        other => {
            let rank = other.len();
            wrong(format!("input {slot} has rank {rank}, expected 3 or 4"))
        }
    }
}

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let (nq, nk) = (
        cx.node.int("q_num_heads", 0),
        cx.node.int("kv_num_heads", 0),
    );
    let ty = cx.dtype(0);
    let (q, k, v) = (
        heads_of(cx, 0, nq)?,
        heads_of(cx, 1, nk)?,
        heads_of(cx, 2, nk)?,
    );
    if let (Some(q), Some(k)) = (&q, &k) {
        same_size(&q[3], &k[3], "the head widths of query and key")?;
    }
    let flat = cx.dims(0).map(<[_]>::len) == Some(3);
    let total = |slot: usize, own: &Sym| match cx.input(slot) {
        Some(past) => past
            .dims
            .as_ref()
            .and_then(|p| p.get(2)?.add(own))
            .unwrap_or_else(|| cx.unknown()),
        None => own.clone(),
    };
    let present = |x: &Option<[Sym; 4]>, slot: usize| {
        x.as_ref().map(|x| {
            let mut d = x.to_vec();
            d[2] = total(slot, &x[2]);
            d
        })
    };
    let (pk, pv) = (present(&k, 4), present(&v, 5));
    let y = q.as_ref().zip(v.as_ref()).map(|(q, v)| {
        if flat {
            let hidden = q[1].mul(&v[3]).unwrap_or_else(|| cx.unknown());
            vec![q[0].clone(), q[2].clone(), hidden]
        } else {
            vec![q[0].clone(), q[1].clone(), q[2].clone(), v[3].clone()]
        }
    });
    let scores = q.zip(pk.clone()).map(|(q, k)| {
        let [batch, heads, rows, _] = q;
        vec![batch, heads, rows, k[2].clone()]
    });
    cx.set(0, ty, y);
    cx.set(1, ty, pk);
    cx.set(2, ty, pv);
    cx.set(3, ty, scores);
    Ok(())
}

fn expand(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let flat = cx.rank(0)? == 3;
    let ty = cx.float(0);
    let heads = |slot: usize, attr: &str| -> Result<i64, GradError> {
        let known = if flat {
            Some(node.int(attr, 0)).filter(|&n| n > 0)
        } else {
            cx.fact(slot).size(1)
        };
        known.ok_or_else(|| GradError(format!("the number of heads of input {slot} is unknown")))
    };
    let (nq, nk) = (heads(0, "q_num_heads")?, heads(1, "kv_num_heads")?);
    let width = |slot: usize, n: i64| -> Result<i64, GradError> {
        let last = cx.fact(slot).size(-1);
        let last =
            last.ok_or_else(|| GradError(format!("the width of input {slot} is unknown")))?;
        Ok(if flat { last / n } else { last })
    };
    let (dq, dv) = (width(0, nq)?, width(2, nk)?);
    if nk <= 0 || nq % nk != 0 {
        return no_gradient(format!("{nq} query heads do not share {nk} key heads"));
    }
    let operand = |slot: usize, n: i64| -> Result<Val, GradError> {
        let x = cx.input(slot)?;
        Ok(if flat { split_heads(b, x, n) } else { x })
    };
    let (q, mut k, mut v) = (operand(0, nq)?, operand(1, nk)?, operand(2, nk)?);
    let past = cx.optional(4);
    if let (Some(pk), Some(pv)) = (past, cx.optional(5)) {
        (k, v) = (b.concat(&[pk, k], 2), b.concat(&[pv, v], 2));
    }
    let biases = biases(cx, ty, q, k, past)?;
    let core = Core {
        scale: node
            .attr("scale")
            .and_then(crate::ir::AttrValue::as_float)
            .unwrap_or_else(|| (dq as f32).sqrt().recip()),
        softcap: node.float("softcap", 0.0),
        guard: !biases.is_empty(),
        biases,
        ty,
        precise: DType::from_code(node.int("softmax_precision", 0) as i32)
            .filter(|t| t.is_float())
            .unwrap_or(ty),
    };
    let times = nq / nk;
    let done = core.build(
        b,
        q,
        repeat_heads(b, k, nk, times, dq),
        repeat_heads(b, v, nk, times, dv),
    );
    let y = if flat { merge_heads(b, done.y) } else { done.y };
    let stage = usize::try_from(node.int("qk_matmul_output_mode", 0))
        .ok()
        .and_then(|m| done.stages.get(m).copied());
    Ok(vec![Some(y), Some(k), Some(v), stage])
}

/// The mask, causality and the lengths of a cache that is kept outside, as additive biases.
fn biases(
    cx: &ExpandCx<'_>,
    ty: DType,
    q: Val,
    k: Val,
    past: Option<Val>,
) -> Result<Vec<Val>, GradError> {
    let b = cx.b;
    let mut out = Vec::new();
    let lengths = cx.optional(6);
    if let Some(mask) = cx.optional(3) {
        let bias = if cx.fact(3).dtype == Some(DType::Bool) {
            bias_of(b, mask, ty, f32::NEG_INFINITY)
        } else {
            mask
        };
        let bias = if lengths.is_some() {
            padded(b, bias, cx.rank(3)?, length(b, k, 2), ty)
        } else {
            bias
        };
        out.push(bias);
    }
    let cached = lengths.map(|n| b.unsqueeze(n, &[1, 2, 3]));
    if cx.node().int("is_causal", 0) != 0 {
        let queries = length(b, q, 2);
        let offset = match (past, cached) {
            (Some(p), _) => Some(length(b, p, 2)),
            (None, Some(n)) => Some(b.sub(n, queries)),
            (None, None) => None,
        };
        let window = Window { offset, left: 0 };
        let allowed = window.allowed(b, queries, length(b, k, 2));
        out.push(bias_of(b, allowed, ty, f32::NEG_INFINITY));
    }
    if let Some(n) = cached {
        let keys = count(b, length(b, k, 2));
        let allowed = b.op("Less", &[keys, n], &[]);
        out.push(bias_of(b, allowed, ty, f32::NEG_INFINITY));
    }
    Ok(out)
}

/// A mask that may be shorter than the cache, forbidding the rest.
fn padded(b: &crate::ir::Builder, bias: Val, rank: usize, keys: Val, ty: DType) -> Val {
    let missing = b.sub(keys, length(b, bias, rank as i64 - 1));
    let zeros = b.ints(&vec![0; 2 * rank - 1]);
    let pads = b.concat(&[zeros, b.unsqueeze(missing, &[0])], 0);
    b.op(
        "Pad",
        &[bias, pads, b.scalar_of(f32::NEG_INFINITY, ty)],
        &[],
    )
}
