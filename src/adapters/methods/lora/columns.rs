//! Columns of a fused projection: which of them are adapted, and their factor among the others.

use super::Lora;
use crate::adapters::methods::detail::Columns;
use crate::adapters::place::{At, BuildCx, Params, Place};
use crate::ir::{TensorData, Val};
use crate::select::LinearSite;

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

impl Lora {
    /// `B` of all columns: for a fused projection block-diagonal, with zeros where nothing is adapted.
    pub(super) fn full_b(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Val {
        let stored = p.get("lora_B");
        if place.detail.columns().is_none() || cx.b.is_by_row(stored) {
            return stored;
        }
        let blocks = self.blocks(place, site.d_out);
        ordered(place, spread(&blocks, self.r, stored, cx), cx)
    }

    /// The vector of (IA)³ for all columns, with ones where nothing is adapted.
    pub(super) fn vector(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
        gate: Option<Val>,
    ) -> Val {
        let b = cx.b;
        let blocks = self.blocks(place, site.d_out);
        let stored = p.get("lora_B");
        let scaled = |l: Val| match gate {
            Some(g) => b.mul(l, g),
            None => cx.times(l, p, self.alpha()),
        };
        if place.detail.columns().is_none() {
            let input = matches!(place.at, At::Input(_));
            return scaled(b.squeeze(stored, &[i64::from(!input)]));
        }
        if let Some(rank) = b.rank_by_row(stored) {
            let own = scaled(b.squeeze(stored, &[1]));
            return self.filled(place, site, (own, rank), 1.0, cx);
        }
        // Rows of `[enabled, out]`, weighted by the gates (or alpha) and summed; ones elsewhere.
        let rows = b.transpose(spread(&blocks, 1, stored, cx), &[1, 0]);
        let chosen = match gate {
            Some(g) => b.matmul(g, rows),
            None => b.scale(b.reduce_sum(rows, &[0], false), self.alpha()),
        };
        let rest: Vec<f32> = blocks
            .iter()
            .flat_map(|k| std::iter::repeat_n(f32::from(u8::from(!k.on)), k.width))
            .collect();
        let rest = b.constant(TensorData::from_f32([rest.len() as u64], &rest));
        let all = b.add(chosen, cx.to_param(rest));
        ordered_last(place, all, cx)
    }
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
