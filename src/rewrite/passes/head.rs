//! Attaching a prediction head: `logits` from the hidden states that a base model gives.

use crate::adapters::head::{COMPUTED, Head, Pooling, owner};
use crate::adapters::param_stamps;
use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::contract::stamp;
use crate::ir::{Builder, DType, Dim, Graph, Metadata, OpId, Sym, TensorData, Type, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError};
use rustc_hash::FxHashMap;

/// Adds a head behind the last hidden states.
#[derive(Clone, Debug)]
pub(crate) struct AttachHead {
    /// The head.
    pub head: Head,
    /// Seed of initial values.
    pub seed: u64,
    /// Whether dropout is wanted.
    pub training: bool,
}

impl Pass for AttachHead {
    fn name(&self) -> &'static str {
        "head"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        self.head.config.validate()?;
        let g = &cx.model().graph;
        let (hidden, width, batch) = hidden_states(cx)?;
        let params = self.head.store(width, self.seed, g)?;
        let mut patch = cx.patch("head", None);
        let logits = {
            let b = patch.builder();
            b.set_scope(&format!("heads.{}", self.head.name));
            let mut values: FxHashMap<String, Val> = FxHashMap::default();
            for (name, param) in &params {
                b.set_stamp(param_stamps(param));
                values.insert(name.clone(), b.initializer(name, param.tensor.clone()));
            }
            let mut stamps = Metadata::default();
            stamps.insert(stamp::ADAPTER.into(), owner(&self.head.name).into());
            b.set_stamp(stamps);
            b.set_float(COMPUTED);
            let hidden = b.cast(hidden, COMPUTED);
            let read = match self.head.config.pooling {
                Pooling::First => {
                    let first = b.slice(hidden, 1, 0, 1);
                    b.squeeze(first, &[1])
                }
                Pooling::Last => last(b, g, hidden)?,
            };
            let get = |at: usize, kind: &str| {
                let name = format!("heads.{}.{at}.{kind}", self.head.name);
                // `params` names every linear of the configuration.
                values.get(&name).copied().unwrap_or(hidden)
            };
            let p = self.head.config.dropout_prob.unwrap_or(0.0);
            self.head
                .config
                .build(b, read, get, |v| dropout(b, v, p, self.training))
        };
        let dims = [batch, Dim::Known(self.head.config.num_labels as i64)];
        patch.add_output(logits, contract::LOGITS, Some(Type::tensor(COMPUTED, dims)));
        cx.commit(patch)?;
        Ok(())
    }
}

/// The hidden states, their width and how the batch is called.
fn hidden_states(cx: &PassCx<'_>) -> Result<(ValueId, usize, Dim), Diagnostic> {
    let g = &cx.model().graph;
    if g.find(contract::LOGITS).is_some() {
        return Err(Diagnostic::error(
            "head",
            format!(
                "the graph has a value `{}`: a head of its own",
                contract::LOGITS
            ),
        )
        .help("train on that head's loss, or export the base model without a head"));
    }
    let named = g
        .outputs()
        .iter()
        .find(|p| g.name_of(p.value) == "last_hidden_state");
    let ranked = || {
        g.outputs()
            .iter()
            .find(|p| cx.fact(p.value).and_then(crate::ir::Fact::rank) == Some(3))
    };
    let found = named.or_else(ranked).map(|p| p.value);
    let Some(value) = found else {
        return Err(Diagnostic::error(
            "head",
            "no output of the graph holds hidden states [batch, sequence, width]",
        )
        .help("export the base model, whose output is `last_hidden_state`"));
    };
    let fact = cx.fact(value).cloned().unwrap_or_default();
    let width = fact.size(2).and_then(|w| usize::try_from(w).ok());
    let Some(width) = width else {
        return Err(Diagnostic::error(
            "head",
            format!("the width of `{}` is not known", g.name_of(value)),
        ));
    };
    let batch = match fact.dims.as_ref().and_then(|d| d.first()) {
        Some(s) => named_dim(s),
        None => Dim::Unknown,
    };
    Ok((value, width, batch))
}

fn named_dim(s: &Sym) -> Dim {
    match (s.as_const(), s.to_string()) {
        (Some(n), _) => Dim::Known(n),
        (None, name) if name.chars().all(|c| c.is_alphanumeric() || c == '_') => {
            Dim::Symbol(name.into())
        }
        (None, _) => Dim::Unknown,
    }
}

/// `[batch, width]` at the last position that is attended to. A position that is attended to weighs its number, so that the largest is
/// the last, wherever the padding is.
fn last(b: &Builder, g: &Graph, hidden: Val) -> Result<Val, Diagnostic> {
    let Some(mask) = g.find(contract::ATTENTION_MASK).filter(|v| g.is_input(*v)) else {
        return Err(Diagnostic::error(
            "head",
            "`pooling` last needs the graph input `attention_mask`",
        ));
    };
    let mask = b.cast(mask, DType::Int64);
    let length = b.slice(b.shape(mask), 0, 1, 2);
    let numbers = b.op(
        "Range",
        &[
            b.int(1),
            b.squeeze(b.add(length, b.ints(&[1])), &[0]),
            b.int(1),
        ],
        &[],
    );
    let at = b.op(
        "ArgMax",
        &[b.mul(mask, numbers)],
        &[("axis", 1i64.into()), ("keepdims", 1i64.into())],
    );
    let at = b.unsqueeze(at, &[2]);
    // [batch, 1, 1] against the last axis's [width].
    let width = b.slice(b.shape(hidden), 0, 2, 3);
    let shape = b.concat(&[b.ints(&[1, 1]), width], 0);
    let at = b.op("Expand", &[at, shape], &[]);
    let picked = b.op("GatherElements", &[hidden, at], &[("axis", 1i64.into())]);
    Ok(b.squeeze(picked, &[1]))
}

fn dropout(b: &Builder, v: Val, p: f64, training: bool) -> Val {
    if !training || p == 0.0 {
        return v;
    }
    let on = b.constant(TensorData::raw(
        DType::Bool,
        [],
        bytes::Bytes::from_static(&[1]),
    ));
    let inputs = [Some(v), Some(b.scalar(p as f32)), Some(on)];
    b.node_n(OpId::onnx("Dropout"), &inputs, &[], 2)[0]
}

#[cfg(test)]
mod tests;
