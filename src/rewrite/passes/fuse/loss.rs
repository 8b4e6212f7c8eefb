//! The causal language-model loss without logits.

use super::super::super::pass::{Pass, PassCx, PassError};
use super::super::super::patch::Uses;
use super::is_f32;
use super::view::View;
use crate::ir::{OpId, Val, ValueId};
use crate::ops::DOMAIN;

/// Replaces the loss over `logits = h·w` by one operator that multiplies labelled rows only and keeps no logits.
///
/// Runs after the loss pass and before the gradient. It does nothing where the logits are not a product with a constant matrix.
#[derive(Clone, Debug)]
pub struct FuseLoss {
    /// Name of the logits, `[batch, seq, vocab]`.
    pub logits: String,
    /// Name of the labels input, `[batch, seq]`.
    pub labels: String,
    /// Name of the divisor input, if the loss has one.
    pub divisor: Option<String>,
    /// Name of the scalar loss.
    pub loss: String,
}

impl Pass for FuseLoss {
    fn name(&self) -> &'static str {
        "fuse-loss"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let view = View::new(cx);
        let Some((hidden, weight, loss, ins)) = self.find(&view) else {
            return Ok(());
        };
        let anchor = view.g.producer(loss).map(|p| p.0);
        let mut patch = cx.patch("loss without logits", anchor);
        let b = patch.builder();
        b.set_scope(&format!("{}/fused", self.loss));
        let inputs: Vec<Option<Val>> = [hidden, weight]
            .into_iter()
            .chain(ins)
            .map(|v| Some(v.into()))
            .collect();
        let outs = b.node_n(
            OpId::new(DOMAIN, "LinearCrossEntropy"),
            &inputs,
            &[("ignore_index", (-100i64).into())],
            2,
        );
        patch.redirect(loss, outs[0], Uses::All);
        patch.import(DOMAIN, 1);
        cx.commit(patch)?;
        Ok(())
    }
}

impl FuseLoss {
    fn find(&self, view: &View<'_>) -> Option<(ValueId, ValueId, ValueId, Vec<ValueId>)> {
        let product = view.made_by(view.g.find(&self.logits)?, "MatMul")?;
        let (hidden, weight) = view.pair(product)?;
        // A tied head is the transposed embedding: execution takes it as a view.
        let stored = view.untransposed(weight).unwrap_or(weight);
        let constant = view.constant(stored)?;
        let loss = view.g.find(&self.loss)?;
        let mut ins = vec![view.g.find(&self.labels)?];
        if let Some(d) = &self.divisor {
            ins.push(view.g.find(d)?);
        }
        // Labels that the loss lengthens first belong to a prompt: positions that the graph's own inputs do not have.
        let lengthened = view.g.uses(ins[0]).iter().any(|u| {
            let op = &view.g.node(u.node()).op;
            op.is_onnx("Pad") || op.is_onnx("Concat")
        });
        let fits = !lengthened
            && constant.dims.len() == 2
            && view.rank(hidden)? == 3
            && is_f32(view, hidden);
        fits.then_some((hidden, weight, loss, ins))
    }
}
