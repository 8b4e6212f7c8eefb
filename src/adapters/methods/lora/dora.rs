//! The magnitude of DoRA (Liu et al. 2024).

use super::Lora;
use crate::adapters::methods::weight::base_weight;
use crate::adapters::place::{BuildCx, Params, Place};
use crate::diag::Diagnostic;
use crate::ir::contract::stamp;
use crate::ir::{Val, ValueId};
use crate::select::{Layout, LinearSite};

impl Lora {
    /// `m/‖W + ΔW‖`, one factor for each row: `[out]`.
    pub(super) fn dora_factor(
        &self,
        place: &Place<'_>,
        site: &LinearSite,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Val, Diagnostic> {
        let b = cx.b;
        let weight = base_weight(site, cx)?;
        let sum = match self.delta_weight(place, site, p, cx) {
            // PEFT takes the norm with the scale.
            Some(delta) if place.detail.target().is_some() => {
                b.add(weight, b.scale(delta, self.scale_at(place)))
            }
            Some(delta) => b.add(weight, delta),
            None => weight,
        };
        let axis = match site.weight.layout {
            Layout::OutIn => 1,
            Layout::InOut => 0,
        };
        let norm = b.unary("Sqrt", b.reduce_sum(b.mul(sum, sum), &[axis], false));
        if place.detail.target().is_some() {
            // PEFT does not differentiate the norm (section 4.3 of the paper).
            b.mark_last_node(stamp::DETACHED, "true");
        }
        Ok(b.div(b.squeeze(p.get("m.weight"), &[1]), norm))
    }
}

/// The bias that a linear adds by now: its own, or the one that is trained in its place.
pub(super) fn bias_now(site: &LinearSite, bias: ValueId, cx: &BuildCx<'_>) -> Val {
    let g = cx.graph;
    let instead = |v: &ValueId| {
        let replaced = g.producer(*v).map(|(n, _)| &g.node(n).metadata);
        replaced.is_some_and(|m| {
            m.get(stamp::REPLACES)
                .is_some_and(|name| **name == *g.name_of(bias))
        })
    };
    let mut read = site.nodes.iter().flat_map(|n| g.node_inputs(*n)).flatten();
    Val::Old(read.find(instead).unwrap_or(bias))
}
