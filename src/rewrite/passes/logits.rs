//! Logits of chosen positions only: the product with the vocabulary is the largest of a language model, and most of its rows are
//! thrown away.

use super::loss::Rows;
use crate::analyze::logits::logits;
use crate::analyze::through::Through;
use crate::analyze::view::View;
use crate::ir::contract;
use crate::ir::{DType, Dim, Type, Use, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Uses};

/// Cuts the hidden state in front of the head to the positions of the input `logit_positions`. The logits are `[batch, chosen,
/// vocabulary]` afterwards.
#[derive(Clone, Debug, Default)]
pub(crate) struct ChooseLogits {
    /// Name of the logits. Without one: the output `logits`, or else the first output.
    pub logits: Option<String>,
}

impl Pass for ChooseLogits {
    fn name(&self) -> &'static str {
        "choose-logits"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let logits = logits(g, self.logits.as_deref())?;
        let (at, value) = cut(cx, logits);
        let mut patch = cx.patch("logits of chosen positions", at.map(Use::node));
        let b = patch.builder();
        b.set_scope("chosen");
        let port = g.outputs().iter().find(|p| p.value == logits);
        let declared = port
            .and_then(|p| p.ty.as_ref())
            .and_then(|t| t.dims())
            .map(<[Dim]>::to_vec);
        let batch = declared
            .as_ref()
            .and_then(|d| d.first().cloned())
            .unwrap_or(Dim::Unknown);
        let chosen = Dim::Symbol("chosen".into());
        let ty = Type::tensor(DType::Int64, [batch.clone(), chosen.clone()]);
        let positions = b.graph_input(contract::LOGIT_POSITIONS, ty);
        let positions = Rows::All.of_given(g, b, positions);
        let places = b.unsqueeze(positions, &[2]);
        let rows = b.op(
            "GatherND",
            &[value.into(), places],
            &[("batch_dims", 1i64.into())],
        );
        let uses = at.map_or(Uses::All, |u| Uses::Only(vec![u]));
        patch.redirect(value, rows, uses);
        let dtype = cx
            .fact(logits)
            .and_then(|f| f.dtype)
            .unwrap_or(DType::Float);
        if at.is_some()
            && let Some(vocab) = declared.and_then(|d| d.get(2).cloned())
        {
            patch.output_type(logits, Some(Type::tensor(dtype, [batch, chosen, vocab])));
        }
        if at.is_some() {
            patch.forget(super::cache::declared(g));
        }
        cx.commit(patch)?;
        Ok(())
    }
}

/// Where the hidden state enters the head, if what lies between it and the logits treats every position alike; else the logits.
fn cut(cx: &PassCx<'_>, logits: ValueId) -> (Option<Use>, ValueId) {
    let g = &cx.model().graph;
    let view = View::new(g, cx);
    let sequence = |v: ValueId| {
        let dims = view.dims(v);
        dims.is_some_and(|d| d.len() == 3 && d[2].as_const().is_some())
    };
    let mut at = logits;
    for _ in 0..g.node_count() {
        let Some((n, _)) = g.producer(at) else { break };
        let op = &g.node(n).op;
        let Some(first) = g.input(n, 0) else { break };
        let product = ["MatMul", "FusedMatMul", "MatMulNBits"].contains(&&*op.op_type);
        if product && sequence(first) {
            return (Some(Use::Input(n, 0)), first);
        }
        let plain = Through::ALIKE.or(Through::BOUND).takes(op);
        let scaled =
            Through::FACTOR.takes(op) && view.input(n, 1).is_some_and(|v| view.is_single(v));
        // A bias of the vocabulary.
        let moved =
            Through::SUM.takes(op) && view.input(n, 1).and_then(|v| view.rank(v)) == Some(1);
        if !(plain || scaled || moved) {
            break;
        }
        at = first;
    }
    (None, logits)
}

#[cfg(test)]
mod tests;
