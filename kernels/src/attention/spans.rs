//! Which keys a block of query rows needs.
//!
//! A key is hidden from a row by a mask value of 0, or by an added value so low that its probability is exactly zero beside any other key.
//! Keys that are hidden from all rows of a block are left out, in whole panels. A row from which all keys are hidden by added values still
//! has probabilities, those of the scores alone, so its block needs every key. The last span ends with the last key that is needed.

use super::{Attention, Mask, MaskData};
use crate::gemm::block::PANEL;
use crate::team;
use std::ops::Range;

/// Added values from here on hide a key: far below what scores are, and so far that differences between values there are as well.
const HIDES: f32 = -1e30;

/// The needed keys of all blocks, in order.
pub(super) struct Spans {
    /// Batch entries and heads that differ.
    planes: [usize; 2],
    blocks: usize,
    list: Vec<Vec<Range<usize>>>,
}

impl Spans {
    /// Reads the mask once. `O(mask)` at most; rows stop where a panel is known to be needed.
    pub(super) fn new(spec: &Attention<'_>) -> Self {
        let (rows, seq) = (spec.rows(), spec.q.seq);
        let blocks = seq.div_ceil(rows);
        let planes = spec.mask.map_or([1, 1], |m| [m.dims[0], m.dims[1]]);
        let list = team::map(0..planes[0] * planes[1] * blocks, |i| {
            let (plane, first) = (i / blocks, i % blocks * rows);
            let at = (plane / planes[1], plane % planes[1]);
            let live = if planes[0] == 1 { seq } else { spec.live(at.0) };
            let rows = first..(first + rows).min(live);
            if rows.is_empty() {
                return Vec::new();
            }
            needed(spec, at, rows)
        });
        Spans {
            planes,
            blocks,
            list,
        }
    }

    /// Where the last key ends that some block of these heads needs.
    pub(super) fn reach_of(&self, batch: usize, heads: Range<usize>) -> usize {
        let blocks = heads.flat_map(|head| (0..self.blocks).map(move |block| (head, block)));
        let ends = blocks.filter_map(|(head, block)| self.of(batch, head, block).last());
        ends.map(|keys| keys.end).max().unwrap_or(0)
    }

    /// The keys that a block of rows needs.
    pub(super) fn of(&self, batch: usize, head: usize, block: usize) -> &[Range<usize>] {
        let [batches, heads] = self.planes;
        let pick = |n: usize, i: usize| if n == 1 { 0 } else { i };
        &self.list[(pick(batches, batch) * heads + pick(heads, head)) * self.blocks + block]
    }
}

/// Number of keys of `spans` in front of key `end`.
pub(super) fn clipped(spans: &[Range<usize>], end: usize) -> usize {
    let below = |s: &Range<usize>| s.end.min(end).saturating_sub(s.start);
    spans.iter().map(below).sum()
}

/// Each span with the number of keys in front of it: its column where they stand one behind the other.
pub(super) fn placed(spans: &[Range<usize>]) -> impl Iterator<Item = (usize, Range<usize>)> {
    spans.iter().scan(0, |column, keys| {
        let at = *column;
        *column += keys.len();
        Some((at, keys.clone()))
    })
}

fn needed(
    spec: &Attention<'_>,
    (batch, head): (usize, usize),
    rows: Range<usize>,
) -> Vec<Range<usize>> {
    let seen = spec.visible(rows.end - 1);
    let all = || Vec::from_iter((seen > 0).then_some(0..seen));
    let Some(mask) = spec.mask.filter(|m| m.dims[3] != 1) else {
        return all();
    };
    let mut panels = vec![false; seen.div_ceil(PANEL)];
    let mut end = 0;
    for row in rows {
        let (start, visible) = (mask.row(batch, head, row), spec.visible(row));
        let mut any = visible == 0;
        let shown = |key: &usize| !mask.hides(start + key..start + key + 1);
        end = (end..visible).rev().find(shown).map_or(end, |key| key + 1);
        for (i, panel) in panels.iter_mut().enumerate() {
            let keys = i * PANEL..((i + 1) * PANEL).min(visible);
            if keys.is_empty() {
                break;
            }
            if (*panel && any) || mask.hides(start + keys.start..start + keys.end) {
                continue;
            }
            (*panel, any) = (true, true);
        }
        if !any && matches!(mask.data, MaskData::Add(_)) {
            return all();
        }
    }
    let mut out: Vec<Range<usize>> = Vec::new();
    for (i, _) in panels.iter().enumerate().filter(|(_, needed)| **needed) {
        let (from, to) = (i * PANEL, ((i + 1) * PANEL).min(end));
        match out.last_mut().filter(|last| last.end == from) {
            Some(last) => last.end = to,
            None => out.push(from..to),
        }
    }
    out
}

impl Mask<'_> {
    /// Whether all of these values hide their key.
    fn hides(&self, values: Range<usize>) -> bool {
        match self.data {
            MaskData::Add(data) => data[values].iter().all(|bias| *bias <= HIDES),
            MaskData::Keep(data) => data[values].iter().all(|keep| *keep == 0),
        }
    }
}
