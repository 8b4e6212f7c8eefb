//! `RotaryEmbedding` (23) and `com.microsoft::RotaryEmbedding` (1): each pair of a head's elements turned by an angle that depends on
//! the position. `[b, n, s, d]`, or `[b, s, n·d]`.

use super::kit::heads::{Rotary, count, length, merge_heads, split_heads};
use super::kit::infer::same_as_input;
use super::kit::{Defined, MS, no_gradient};
use super::{ExpandCx, GradError, OpDef};
use crate::ir::{DType, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("RotaryEmbedding", 3..=4, same_as_input).defined_by(|cx| expand(cx, 1, 2, Some(3))),
    OpDef::new("RotaryEmbedding", 4..=4, same_as_input)
        .in_domain(MS)
        .defined_by(|cx| expand(cx, 2, 3, Some(1))),
];

fn expand(cx: &ExpandCx<'_>, cos: usize, sin: usize, positions: Option<usize>) -> Defined {
    let (b, node, x) = (cx.b, cx.node(), cx.input(0)?);
    let (rank, table) = (cx.rank(0)?, cx.fact(cos));
    let known = table.size(-1);
    let half = match node.int("rotary_embedding_dim", 0) {
        0 => known.ok_or_else(|| GradError("the width of the cosine table is unknown".into()))?,
        d => d / 2,
    };
    let heads = match (node.int("num_heads", 0), cx.fact(0).size(-1)) {
        (n, _) if n > 0 => n,
        // Without a number of heads the table spans whole heads.
        (_, Some(hidden)) if half > 0 => hidden / (2 * half),
        _ => return no_gradient("the number of heads is unknown"),
    };
    let width = match rank {
        4 => cx.fact(0).size(3),
        _ => cx.fact(0).size(-1).map(|n| n / heads),
    };
    let position = positions.and_then(|slot| Some((slot, cx.optional(slot)?)));
    let places = match position {
        None => None,
        Some((slot, p)) => {
            let sequence = if rank == 4 { 2 } else { 1 };
            Some(places(cx, slot, p, length(b, x, sequence))?)
        }
    };
    let at = |slot: usize| -> Result<Val, GradError> {
        let table = cx.input(slot)?;
        Ok(match places {
            Some(p) => b.op("Gather", &[table, p], &[("axis", 0i64.into())]),
            None => table,
        })
    };
    let turn = Rotary {
        cos: at(cos)?,
        sin: at(sin)?,
        half,
        width,
        interleaved: node.int("interleaved", 0) != 0,
    };
    Ok(vec![Some(match rank {
        4 => turn.apply(b, x),
        3 => merge_heads(b, turn.apply(b, split_heads(b, x, heads))),
        r => return no_gradient(format!("input 0 has rank {r}, expected 3 or 4")),
    })])
}

/// Positions `[b, s]`; the contrib operator also takes the position of the first element alone.
fn places(cx: &ExpandCx<'_>, slot: usize, p: Val, sequence: Val) -> Result<Val, GradError> {
    let (b, fact) = (cx.b, cx.fact(slot));
    if cx.rank(slot)? == 1 {
        let p = if fact.dtype == Some(DType::Int64) {
            p
        } else {
            b.cast(p, DType::Int64)
        };
        return Ok(b.unsqueeze(b.add(count(b, sequence), p), &[0]));
    }
    Ok(p)
}
