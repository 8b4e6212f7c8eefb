//! The changes that many adapters make of one linear, in one subgraph. A lower rank is filled up: zeros add nothing to a product.

use super::{Form, Lora, shared_at, tables};
use crate::adapters::methods::detail::{Detail, Target};
use crate::adapters::place::{At, BuildCx, Params, Place, Stacking};
use crate::ir::Val;
use crate::select::LinearSite;
use serde_json::Number;

/// Whether the parameters are diagonals, of each sample its own.
pub(super) fn has_diagonals(p: &Params<'_>, cx: &BuildCx<'_>) -> bool {
    let diagonal = p.find("vera_lambda_d");
    diagonal.is_some_and(|v| cx.b.is_by_row(v))
}

/// VeRA with diagonals: what flows is scaled, in the place of the rows of matrices that would be as many as samples.
pub(super) fn by_diagonals(
    place: &Place<'_>,
    site: &LinearSite,
    x: Val,
    p: &Params<'_>,
    cx: &BuildCx<'_>,
) -> Val {
    let b = cx.b;
    let [shared_a, shared_b] = shared_at(place, site, p, cx);
    let z = b.mul(b.linear_t(x, shared_a), p.get("vera_lambda_d"));
    b.mul(b.linear_t(z, shared_b), p.get("vera_lambda_b"))
}

impl Lora {
    /// What matters inside one place.
    pub(super) fn common(&self, place: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
        if matches!(place.at, At::Parameter(_)) {
            return Err("a stored parameter is one for all samples");
        }
        if tables::is_one(place) || !matches!(place.at, At::Linear(_) | At::Input(_)) {
            return Err("rows of an embedding table are looked up by tokens, not by samples");
        }
        if self.dora() {
            return Err("its magnitude divides by the norm of the whole changed weight");
        }
        let form = self.form();
        let fused = place.detail.columns().is_some();
        if fused && self.use_gating {
            return Err("a fused projection has a gate for each of its blocks");
        }
        let vera = (form == Form::Vera)
            .then(|| Number::from_f64(0.0))
            .flatten();
        let mut common = Lora {
            composition_mode: self.composition_mode.clone(),
            vera_d: vera,
            use_gating: self.use_gating,
            ..Self::default()
        };
        if fused {
            // The blocks of a fused projection have their shares of the rank side by side.
            common.r = self.r;
            common.attn_matrices.clone_from(&self.attn_matrices);
            common.attn_matrices.sort_unstable();
        }
        let detail = match place.detail.target() {
            Some(Target { shared, .. }) => Detail::Target(Target {
                rank: 1,
                scale: 1.0,
                shared,
            }),
            None => place.detail.clone(),
        };
        let own = if form == Form::Scale {
            self.alpha()
        } else {
            self.scale_at(place)
        };
        Ok(Stacking {
            common,
            detail,
            factor: (!self.use_gating).then_some(own),
        })
    }

    /// The change of a fused projection's columns: each adapted block from its share of the rank, zeros elsewhere.
    pub(super) fn blockwise(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        z: Val,
        stored: Val,
        cx: &BuildCx<'_>,
    ) -> Val {
        let b = cx.b;
        let r = self.r as i64;
        let (mut row, mut made) = (0, Vec::new());
        let blocks = self.blocks(place, site.d_out);
        for (at, block) in (0..).zip(blocks.iter().filter(|k| k.on)) {
            let width = block.width as i64;
            let own = b.slice(z, -1, at * r, (at + 1) * r);
            made.push(b.linear_t(own, b.slice(stored, 0, row, row + width)));
            row += width;
        }
        let made = match &*made {
            [one] => *one,
            all => b.concat(all, -1),
        };
        let rank = b.rank_by_row(stored).unwrap_or(3);
        self.filled(place, site, (made, rank), 0.0, cx)
    }

    /// Columns of the adapted blocks (of a value of `rank` axes) among those of the projection, and `rest` in all others.
    pub(super) fn filled(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        (made, rank): (Val, usize),
        rest: f32,
        cx: &BuildCx<'_>,
    ) -> Val {
        let b = cx.b;
        let blocks = self.blocks(place, site.d_out);
        let adapted: usize = blocks.iter().filter(|k| k.on).map(|k| k.width).sum();
        // For each column of `[q | k | v]`, its place among those made; the one behind them is filled.
        let mut next = 0..;
        let plain: Vec<i64> = blocks
            .iter()
            .flat_map(|k| std::iter::repeat_n(k.on, k.width))
            .map(|on| {
                let own = on.then(|| next.next()).flatten();
                own.unwrap_or(adapted as i64)
            })
            .collect();
        let order = place.detail.columns().and_then(|c| c.order.as_ref());
        let columns = match order {
            Some(order) => order.iter().map(|i| plain[*i]).collect(),
            None => plain,
        };
        let mut pads = vec![0; 2 * rank];
        pads[2 * rank - 1] = 1;
        let padded = b.op("Pad", &[made, b.ints(&pads), b.scalar(rest)], &[]);
        b.op(
            "Gather",
            &[padded, b.ints(&columns)],
            &[("axis", (-1i64).into())],
        )
    }
}
