//! Bottlenecks of many adapters in one subgraph. Narrower ones are filled up: the rows of zeros in `W_up` take what the activation makes of
//! the zeros in `W_down`.

use super::{Bottleneck, ReductionFactor, Scaling};
use crate::adapters::place::{At, Place, Stacking};

impl Bottleneck {
    /// What matters inside one place.
    pub(super) fn common(&self, place: &Place<'_>) -> Result<Stacking<Self>, &'static str> {
        if !matches!(place.at, At::Sublayer(_)) {
            return Err(
                "an invertible adapter stands at the embeddings, and is undone at the head",
            );
        }
        if self.phm_layer {
            return Err("its projections are sums of Kronecker products");
        }
        let (scaling, factor) = match self.scaling {
            Scaling::Factor(s) => (Scaling::Factor(1.0), Some(s as f32)),
            Scaling::Named(_) => (self.scaling.clone(), None),
        };
        let base = Self::base(true, 1, "");
        let common = Bottleneck {
            reduction_factor: ReductionFactor::One(1.into()),
            non_linearity: self.non_linearity.clone(),
            original_ln_before: self.original_ln_before,
            original_ln_after: self.original_ln_after,
            ln_before: self.ln_before,
            ln_after: self.ln_after,
            is_parallel: self.is_parallel,
            scaling,
            use_gating: self.use_gating,
            residual_before_ln: self.residual_before_ln.clone(),
            adapter_residual_before_ln: self.adapter_residual_before_ln,
            ..base
        };
        Ok(Stacking {
            common,
            detail: place.detail.clone(),
            factor,
        })
    }
}
