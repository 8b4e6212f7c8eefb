//! Logits of chosen positions only: the product with the vocabulary is the largest of a language model, and most of its rows are
//! thrown away.

use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::{DType, Dim, Graph, NodeId, Type, Use, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Uses};

/// Cuts the hidden state in front of the head to the positions of the input `logit_positions`. The logits are `[batch, chosen,
/// vocabulary]` afterwards.
#[derive(Clone, Debug, Default)]
pub struct ChooseLogits {
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

/// The logits by name.
pub fn logits(g: &Graph, name: Option<&str>) -> Result<ValueId, Diagnostic> {
    let find = |name: &str| g.outputs().iter().find(|p| g.name_of(p.value) == name);
    let port = match name {
        Some(name) => find(name),
        None => find(contract::LOGITS).or_else(|| g.outputs().first()),
    };
    port.map(|p| p.value).ok_or_else(|| {
        let names: Vec<&str> = g.outputs().iter().map(|p| g.name_of(p.value)).collect();
        Diagnostic::error(
            "logits",
            format!(
                "the graph has no output `{}`",
                name.unwrap_or(contract::LOGITS)
            ),
        )
        .help(format!("its outputs are: {}", names.join(", ")))
    })
}

/// Where the hidden state enters the head, if what lies between it and the logits treats every position alike; else the logits.
fn cut(cx: &PassCx<'_>, logits: ValueId) -> (Option<Use>, ValueId) {
    let g = &cx.model().graph;
    let sequence = |v: ValueId| {
        let dims = cx.fact(v).and_then(|f| f.dims.as_ref());
        dims.is_some_and(|d| d.len() == 3 && d[2].as_const().is_some())
    };
    let single = |n: NodeId, slot: usize| {
        let dims = g
            .input(n, slot)
            .and_then(|v| cx.fact(v))
            .and_then(|f| f.dims.as_ref());
        dims.is_some_and(|d| d.iter().all(|d| d.is(1)))
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
        let plain = ["Identity", "Cast", "Tanh"].iter().any(|p| op.is_onnx(p));
        let scaled = ["Mul", "Div"].iter().any(|p| op.is_onnx(p)) && single(n, 1);
        // A bias of the vocabulary.
        let moved = op.is_onnx("Add")
            && g.input(n, 1)
                .is_some_and(|v| cx.fact(v).and_then(crate::ir::Fact::rank) == Some(1));
        if !(plain || scaled || moved) {
            break;
        }
        at = first;
    }
    (None, logits)
}

#[cfg(test)]
mod tests;
