//! Bottlenecks that a running model exchanges: full projections, with the constant factor in the second one, and invertible adapters as
//! they are.

use super::{Bottleneck, ReductionFactor, ResidualBeforeLn, Scaling};
use crate::adapters::methods::detail::Detail;
use crate::adapters::place::{At, BuildCx, Exchanged, Given, Params, Place, SublayerSite};

impl Bottleneck {
    pub(super) fn as_inputs(
        &self,
        place: &Place<'_>,
        p: &Params<'_>,
        cx: &BuildCx<'_>,
    ) -> Result<Exchanged<Self>, &'static str> {
        let At::Sublayer(site) = &place.at else {
            return Ok(self.invertible_as_inputs(place, p));
        };
        if !self.may_be_empty(site) {
            return Err(
                "with these settings of norms and residuals it changes the model even where it adds nothing",
            );
        }
        let full = Bottleneck {
            phm_layer: false,
            ..self.clone()
        };
        let config = full.common(place)?.common;
        let projections = self.projections().as_full(p, cx);
        let factor = match self.scaling {
            Scaling::Factor(s) => s as f32,
            Scaling::Named(_) => 1.0,
        };
        let down = projections.down.map(|(name, v)| Given::new(name, v));
        let up = projections.up;
        let up = up.map(|(name, v)| Given::new(name, cx.b.scale(v, factor)));
        let kept = ["scaling", "adapter_norm_", "gate."];
        let others = p
            .own
            .iter()
            .filter(|(s, _)| kept.iter().any(|k| s.starts_with(k)));
        let others = others.map(|(suffix, v)| Given::new(&**suffix, *v));
        Ok(Exchanged {
            config,
            detail: Detail::None,
            own: down.into_iter().chain(up).chain(others).collect(),
            shared: Vec::new(),
        })
    }

    /// Whether what takes a value's place is that value, where the projections add nothing.
    fn may_be_empty(&self, site: &SublayerSite<'_>) -> bool {
        if self.is_parallel {
            return true;
        }
        if self.ln_after && self.adapter_residual_before_ln {
            return false;
        }
        // With the norm in front, what is read is the stream and no longer the block's output.
        let reads_stream = self.original_ln_before;
        match (&self.residual_before_ln, self.original_ln_after) {
            (ResidualBeforeLn::Is(true), after) => after,
            (ResidualBeforeLn::Is(false), after) => after != reads_stream,
            (ResidualBeforeLn::Named(_), true) => !reads_stream,
            (ResidualBeforeLn::Named(_), false) => reads_stream && site.norm.is_none(),
        }
    }

    /// An invertible adapter: its networks add nothing where they are empty.
    fn invertible_as_inputs(&self, place: &Place<'_>, p: &Params<'_>) -> Exchanged<Self> {
        let config = Bottleneck {
            inv_adapter: self.inv_adapter.clone(),
            inv_adapter_reduction_factor: Some(1.into()),
            reduction_factor: ReductionFactor::One(1.into()),
            non_linearity: self.non_linearity.clone(),
            ..Self::base(true, 1, "")
        };
        let own = p.own.iter().map(|(suffix, v)| Given::new(&**suffix, *v));
        Exchanged {
            config,
            detail: place.detail.clone(),
            own: own.collect(),
            shared: Vec::new(),
        }
    }
}
