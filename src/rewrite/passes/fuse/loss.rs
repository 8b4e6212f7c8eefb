//! The causal language-model loss without logits.

use super::super::super::pass::{Pass, PassCx, PassError};
use super::super::super::patch::Uses;
use super::super::loss::{Divisor, Loss, output};
use crate::analyze::logits::of_heads;
use crate::analyze::pattern::{Picture, any, op, or};
use crate::analyze::view::View;
use crate::ir::contract::stamp;
use crate::ir::{OpId, Val, ValueId, contract};
use crate::ops::DOMAIN;

/// Replaces the loss over `logits = h·w` by one operator that multiplies labelled rows only and keeps no logits.
///
/// Runs after the loss pass and before the gradient. It does nothing for other losses, nor where the logits are not a product with a
/// constant matrix.
#[derive(Clone, Debug)]
pub(crate) struct FuseLoss {
    /// The loss, as the pass before appended it.
    pub of: Loss,
}

impl Pass for FuseLoss {
    fn name(&self) -> &'static str {
        "fuse-loss"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let Loss::CausalLm { logits, divisor } = &self.of else {
            return Ok(());
        };
        let view = View::new(&cx.model().graph, cx);
        let Some((hidden, weight, loss, ins)) = find(&view, logits.as_deref(), *divisor) else {
            return Ok(());
        };
        let anchor = view.graph.producer(loss).map(|p| p.0);
        let mut patch = cx.patch("loss without logits", anchor);
        let b = patch.builder();
        b.set_scope(&format!("{}/fused", contract::LOSS));
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

/// `h·w`, or `h·eᵀ` where the head is the tied embedding: execution takes it as a view.
fn logits_of() -> Picture {
    let weight = or([op("Transpose", [any("stored")]), any("stored")]);
    op("MatMul", [any("hidden"), weight]).called("product")
}

/// The hidden states and the weight whose product the logits are, the loss, and what else the operator reads.
fn find(
    view: &View<'_>,
    logits: Option<&str>,
    divisor: Divisor,
) -> Option<(ValueId, ValueId, ValueId, Vec<ValueId>)> {
    let mut names = view
        .graph
        .outputs()
        .iter()
        .map(|p| view.graph.name_of(p.value));
    if names.any(|n| contract::head_output(n).is_some()) {
        return None;
    }
    // Each head has a loss of its own, and a sum of several is no product with one vocabulary.
    if of_heads(view.graph).next().is_some() {
        return None;
    }
    let logits = output(view.graph, logits, Some(contract::LOGITS)).ok()?;
    let fit = logits_of().fit(view, logits)?;
    let (hidden, weight) = view.pair(fit.node("product")?)?;
    let stored = fit.value("stored")?;
    let constant = view.constant(stored)?;
    // The operator has no gradient of the weight: a head that is trained keeps its logits.
    let trained = view.graph.value(stored).metadata.contains_key(stamp::PARAM);
    let loss = view.graph.find(contract::LOSS)?;
    let mut ins = vec![view.graph.find(contract::LABELS)?];
    if divisor == Divisor::Input {
        ins.push(view.graph.find(contract::NUM_ITEMS)?);
    }
    // Labels that the loss lengthens first belong to a prompt: positions that the graph's own inputs do not have.
    let lengthened = view.graph.uses(ins[0]).iter().any(|u| {
        let op = &view.graph.node(u.node()).op;
        op.is_onnx("Pad") || op.is_onnx("Concat")
    });
    let fits = !lengthened
        && !trained
        && constant.dims.len() == 2
        && view.rank(hidden)? == 3
        && view.is_f32(hidden);
    fits.then_some((hidden, weight, loss, ins))
}
