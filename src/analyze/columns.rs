//! Fused projections: which columns are whose.

use super::flow::Flow;
use super::through::Through;
use crate::ir::{NodeId, ValueId};
use std::sync::Arc;

mod owners;

/// How q, k and v lie in a fused projection's output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QkvLayout {
    /// `[q | k | v]`, with these widths.
    Blocks {
        /// Width of q.
        q: usize,
        /// Width of k.
        k: usize,
        /// Width of v.
        v: usize,
    },
    /// Head by head, as in GPT-NeoX, BLOOM and Falcon: `[h0: q k v | h1: q k v | …]`.
    Interleaved {
        /// Widths of q, k and v.
        widths: [usize; 3],
        /// For each column, its place in `[q | k | v]`.
        order: Arc<[usize]>,
    },
    /// An order that could not be told.
    Unknown,
}

/// How q, k and v lie in the output of a fused projection: a split of the last axis in three says it, or where each column goes.
pub(crate) fn layout(view: &Flow<'_>, output: ValueId, width: usize) -> QkvLayout {
    let mut at = output;
    loop {
        let readers: Vec<NodeId> = view
            .readers(at)
            .into_iter()
            .filter(|r| !view.measures(*r))
            .collect();
        if let [r] = readers[..]
            && let Some(next) = Through::ALIKE.or(Through::BOUND).after(view.graph, r)
        {
            at = next;
            continue;
        }
        let found = split(view, at, &readers, width);
        return found
            .or_else(|| owners::layout(view, at, width))
            .unwrap_or(QkvLayout::Unknown);
    }
}

fn split(view: &Flow<'_>, v: ValueId, readers: &[NodeId], width: usize) -> Option<QkvLayout> {
    let rank = view.rank(v).map_or(3, |r| r as i64);
    let last = |axis: i64| axis == -1 || axis == rank - 1;
    if let [r] = readers[..]
        && view.op(r) == "Split"
        && last(view.node(r).int("axis", 0))
    {
        let sizes = split_sizes(view, r, view.graph.node_outputs(r).len(), width)?;
        return blocks(&sizes, width);
    }
    if let [r] = readers[..]
        && view.op(r) == "GroupQueryAttention"
        && [1, 2].iter().all(|slot| view.input(r, *slot).is_none())
    {
        return blocks(&packed(view, r, width)?, width);
    }
    // Slices of the last axis, each starting where the one before ends.
    let mut cuts: Vec<(usize, usize)> = Vec::new();
    for r in readers {
        if view.op(*r) != "Slice" {
            return None;
        }
        cuts.push(slice_range(view, *r, &last, width)?);
    }
    cuts.sort_unstable();
    cuts.dedup();
    let touching = cuts.windows(2).all(|w| w[0].1 == w[1].0);
    let sizes: Vec<usize> = cuts.iter().map(|(s, e)| e.saturating_sub(*s)).collect();
    if touching && cuts.first().is_some_and(|c| c.0 == 0) {
        blocks(&sizes, width)
    } else {
        None
    }
}

/// Widths of queries, keys and values that an attention operator takes in one: by its numbers of heads.
fn packed(view: &Flow<'_>, n: NodeId, width: usize) -> Option<Vec<usize>> {
    let heads = |name: &str| usize::try_from(view.node(n).int(name, 0)).ok();
    let (q, kv) = (heads("num_heads")?, heads("kv_num_heads")?);
    let all = kv.checked_mul(2)?.checked_add(q)?;
    let head = width.checked_div(all).filter(|h| h * all == width)?;
    Some(vec![q * head, kv * head, kv * head])
}

fn blocks(sizes: &[usize], width: usize) -> Option<QkvLayout> {
    match *sizes {
        [q, k, v] if q + k + v == width => Some(QkvLayout::Blocks { q, k, v }),
        _ => None,
    }
}

/// The parts of the last axis that one node cuts out of a value `width` wide: value, first column, number of columns.
pub(crate) fn columns(
    view: &Flow<'_>,
    n: NodeId,
    width: usize,
) -> Option<Vec<(ValueId, usize, usize)>> {
    let x = view.inputs(n).first().copied().flatten()?;
    let rank = view.rank(x).map_or(3, |r| r as i64);
    let last = |axis: i64| axis == -1 || axis == rank - 1;
    match view.op(n) {
        "Split" if last(view.node(n).int("axis", 0)) => {
            let outputs = view.graph.node_outputs(n);
            let sizes = split_sizes(view, n, outputs.len(), width)?;
            let mut at = 0;
            let mut out = Vec::new();
            for (v, size) in outputs.into_iter().zip(sizes) {
                out.extend(v.map(|v| (v, at, size)));
                at += size;
            }
            Some(out)
        }
        "Slice" => {
            let (start, end) = slice_range(view, n, &last, width)?;
            Some(vec![(
                view.graph.output(n, 0)?,
                start,
                end.checked_sub(start)?,
            )])
        }
        _ => None,
    }
}

fn split_sizes(view: &Flow<'_>, n: NodeId, parts: usize, width: usize) -> Option<Vec<usize>> {
    match view.inputs(n).get(1).copied().flatten() {
        Some(s) => Some(
            view.tensor(s)?
                .to_i64()?
                .into_iter()
                .filter_map(|n| usize::try_from(n).ok())
                .collect(),
        ),
        None => Some(vec![width / parts.max(1); parts]),
    }
}

fn slice_range(
    view: &Flow<'_>,
    n: NodeId,
    last: &dyn Fn(i64) -> bool,
    width: usize,
) -> Option<(usize, usize)> {
    let inputs = view.inputs(n);
    let one = |slot: usize| -> Option<i64> {
        let t = view.tensor(inputs.get(slot).copied()??)?.to_i64()?;
        (t.len() == 1).then(|| t[0])
    };
    if !last(one(3)?) || inputs.get(4).copied().flatten().is_some() && one(4)? != 1 {
        return None;
    }
    let start = usize::try_from(one(1)?).ok()?;
    Some((start, usize::try_from(one(2)?).ok()?.min(width)))
}
