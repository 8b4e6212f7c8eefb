//! Columns of a fused projection: which of them are adapted, and their factor among the others.

use super::Lora;
use crate::adapters::methods::detail::Columns;
use crate::adapters::place::{BuildCx, Place};
use crate::ir::Val;

impl Lora {
    /// Widths of the blocks of a place that are adapted, with the columns in front of each; one block for a separate linear.
    pub(super) fn blocks(&self, place: &Place<'_>, d_out: usize) -> Vec<Block> {
        let Some(Columns { widths, .. }) = place.detail.columns() else {
            return vec![Block {
                width: d_out,
                on: true,
            }];
        };
        let letters = ["q", "k", "v"].into_iter().zip(widths);
        letters
            .map(|(m, width)| Block {
                width: *width,
                on: self.wants(m),
            })
            .collect()
    }

    /// Number of columns of a projection that are adapted.
    pub(in crate::adapters::methods) fn adapted_width(
        &self,
        place: &Place<'_>,
        d_out: usize,
    ) -> usize {
        let blocks = self.blocks(place, d_out);
        blocks.iter().filter(|k| k.on).map(|k| k.width).sum()
    }

    /// From `[adapted columns, inner]` to all columns of the projection, with zeros for those that are not adapted.
    pub(in crate::adapters::methods) fn whole_width(
        &self,
        place: &Place<'_>,
        (stored, inner): (Val, usize),
        d_out: usize,
        cx: &BuildCx<'_>,
    ) -> Val {
        if place.detail.columns().is_none() {
            return stored;
        }
        let b = cx.b;
        let mut row = 0;
        let mut parts = Vec::with_capacity(3);
        for block in self.blocks(place, d_out) {
            if block.on {
                parts.push(b.slice(stored, 0, row, row + block.width as i64));
                row += block.width as i64;
            } else {
                parts.push(cx.zeros(&[block.width, inner]));
            }
        }
        ordered(place, b.concat(&parts, 0), cx)
    }
}

/// Some columns of a projection.
#[derive(Clone, Copy, Debug)]
pub(super) struct Block {
    pub(super) width: usize,
    pub(super) on: bool,
}

/// From `[Σ width of enabled blocks, r]` to `[Σ width, r·enabled]`, block-diagonal.
pub(super) fn spread(blocks: &[Block], r: usize, stored: Val, cx: &BuildCx<'_>) -> Val {
    let b = cx.b;
    let enabled = blocks.iter().filter(|k| k.on).count();
    let (mut row, mut seen) = (0, 0);
    let mut parts = Vec::with_capacity(blocks.len());
    for block in blocks {
        if !block.on {
            parts.push(cx.zeros(&[block.width, r * enabled]));
            continue;
        }
        let own = b.slice(stored, 0, row as i64, (row + block.width) as i64);
        let mut columns = Vec::with_capacity(3);
        if seen > 0 {
            columns.push(cx.zeros(&[block.width, r * seen]));
        }
        columns.push(own);
        if seen + 1 < enabled {
            columns.push(cx.zeros(&[block.width, r * (enabled - seen - 1)]));
        }
        parts.push(if columns.len() == 1 {
            own
        } else {
            b.concat(&columns, 1)
        });
        row += block.width;
        seen += 1;
    }
    if parts.len() == 1 {
        parts[0]
    } else {
        b.concat(&parts, 0)
    }
}

/// Rows of `[q | k | v]` in the order of the projection's columns.
pub(super) fn ordered(place: &Place<'_>, rows: Val, cx: &BuildCx<'_>) -> Val {
    along(0, place, rows, cx)
}

/// The same on the last axis.
pub(super) fn ordered_last(place: &Place<'_>, columns: Val, cx: &BuildCx<'_>) -> Val {
    along(-1, place, columns, cx)
}

fn along(axis: i64, place: &Place<'_>, x: Val, cx: &BuildCx<'_>) -> Val {
    let Some(order) = place.detail.columns().and_then(|c| c.order.as_ref()) else {
        return x;
    };
    let order: Vec<i64> = order.iter().map(|i| *i as i64).collect();
    let index = cx.b.ints(&order);
    cx.b.op("Gather", &[x, index], &[("axis", axis.into())])
}
