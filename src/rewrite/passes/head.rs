//! Attaching a prediction head: `logits` from the hidden states that a base model gives.

use super::loss::lengthened;
use crate::adapters::heads::{Head, HeadType, Noted, Pooling, owner};
use crate::adapters::manifest::Manifest;
use crate::adapters::param_stamps;
use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::contract::{POOLER_OUTPUT, stamp};
use crate::ir::{Builder, DType, Dim, Graph, Metadata, OpId, Sym, TensorData, Type, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError};
use rustc_hash::FxHashMap;

/// Element type that a head computes in.
const COMPUTED: DType = DType::Float;

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
        let config = &self.head.config;
        config.validate()?;
        let g = &cx.model().graph;
        let hidden = hidden_states(cx, config.outputs())?;
        let (steps, table) = self.head.layers(hidden.width, g)?;
        let params = self.head.store(&steps, table.is_some(), self.seed, g)?;
        let pooler = pooler(g);
        let mut patch = cx.patch("head", None);
        let outputs = {
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
            let table = table.map(|t| b.cast(t, COMPUTED));
            let x = self.read(b, g, hidden.value, pooler)?;
            let get = |at: usize, kind: &str| {
                let name = format!("heads.{}.{at}.{kind}", self.head.name);
                // `params` names everything of the steps but the table.
                values.get(&name).copied().or(table).unwrap_or(x)
            };
            let p = self.head.dropout();
            let epsilon = self.head.base.layer_norm_eps.unwrap_or(1e-12) as f32;
            let dropout = |v| dropout(b, v, p, self.training);
            let scores = config.build(b, x, &steps, get, dropout, epsilon);
            self.shaped(b, scores, &hidden)
        };
        for (name, value, dims) in outputs {
            patch.add_output(value, name, Some(Type::tensor(COMPUTED, dims)));
        }
        let noted = Noted::flexible(&self.head);
        patch.model_metadata(stamp::MANIFEST, Some(&with(cx, noted)?));
        cx.commit(patch)?;
        Ok(())
    }
}

/// Says in the manifest that the graph's head is this one.
#[derive(Clone, Debug)]
pub(crate) struct NoteHead(pub(crate) Noted);

impl Pass for NoteHead {
    fn name(&self) -> &'static str {
        "note-head"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let mut patch = cx.patch("note-head", None);
        patch.model_metadata(stamp::MANIFEST, Some(&with(cx, self.0.clone())?));
        cx.commit(patch)?;
        Ok(())
    }
}

/// The manifest's text with one more head.
fn with(cx: &PassCx<'_>, head: Noted) -> Result<String, Diagnostic> {
    let mut manifest = Manifest::read(cx.model())?;
    manifest.written();
    manifest.heads.push(head);
    Ok(manifest.text())
}

impl AttachHead {
    /// The positions that the head reads: all of them, or one of each row.
    fn read(
        &self,
        b: &Builder,
        g: &Graph,
        hidden: ValueId,
        pooler: Option<ValueId>,
    ) -> Result<Val, Diagnostic> {
        let Head { config, base, .. } = &self.head;
        let states = || b.cast(hidden, COMPUTED);
        if !config.head_type.of_examples() {
            // T5 scores its words by the table of embeddings, which is not scaled.
            let scaled = base.tied && matches!(&*base.model_type, "t5" | "mt5");
            let states = states();
            return Ok(if scaled {
                b.div(states, root(b, states))
            } else {
                states
            });
        }
        match self.head.pooling() {
            Pooling::Pooler => pooler.map(|v| b.cast(v, COMPUTED)).ok_or_else(|| {
                Diagnostic::error(
                    "head",
                    format!("the head reads the model's pooler, and the graph has no output `{POOLER_OUTPUT}`"),
                )
                .help("export the base model with its pooler")
            }),
            Pooling::First => {
                let first = b.slice(states(), 1, 0, 1);
                Ok(b.squeeze(first, &[1]))
            }
            Pooling::Last => {
                let mask = input(g, contract::ATTENTION_MASK, "`pooling` last")?;
                let states = states();
                Ok(last(b, b.cast(mask, DType::Int64), states, lengthened(g)))
            }
            Pooling::Eos => {
                let ids = input(g, contract::INPUT_IDS, "`pooling` eos")?;
                let Some(eos) = base.eos_token_id else {
                    return Err(Diagnostic::error(
                        "head",
                        "the head reads the last end-of-sequence token, whose id is not known",
                    )
                    .help("put the model's config.json beside it"));
                };
                let ends = b.op("Equal", &[b.cast(ids, DType::Int64), b.int(eos)], &[]);
                let ends = b.cast(ends, DType::Int64);
                Ok(last(b, ends, states(), lengthened(g)))
            }
        }
    }

    /// The outputs of the head with their sizes.
    fn shaped(
        &self,
        b: &Builder,
        scores: Val,
        hidden: &Hidden,
    ) -> Vec<(&'static str, Val, Vec<Dim>)> {
        let config = &self.head.config;
        let Hidden { batch, seq, .. } = hidden;
        let labels = Dim::Known(config.num_labels() as i64);
        match config.head_type {
            HeadType::QuestionAnswering => {
                let names = config.outputs().iter().enumerate();
                names
                    .map(|(i, name)| {
                        let of = b.slice(scores, 2, i as i64, i as i64 + 1);
                        let dims = vec![batch.clone(), seq.clone()];
                        (*name, b.squeeze(of, &[2]), dims)
                    })
                    .collect()
            }
            HeadType::MultipleChoice => {
                let choices = config.num_choices.unwrap_or(2) as i64;
                let rows = b.reshape(scores, b.ints(&[-1, choices]));
                let dims = vec![Dim::Unknown, Dim::Known(choices)];
                vec![(contract::LOGITS, rows, dims)]
            }
            HeadType::Tagging => {
                vec![(
                    contract::LOGITS,
                    scores,
                    vec![batch.clone(), seq.clone(), labels],
                )]
            }
            t if t.of_words() => {
                let dims = vec![batch.clone(), seq.clone(), Dim::Unknown];
                vec![(contract::LOGITS, scores, dims)]
            }
            _ => vec![(contract::LOGITS, scores, vec![batch.clone(), labels])],
        }
    }
}

/// The hidden states of a base model.
struct Hidden {
    value: ValueId,
    width: usize,
    batch: Dim,
    seq: Dim,
}

/// The square root of the width of a value.
fn root(b: &Builder, v: Val) -> Val {
    let width = b.cast(b.slice(b.shape(v), 0, 2, 3), COMPUTED);
    b.unary("Sqrt", width)
}

/// What the model's own pooler makes: the output of this name, or the only one of rank two.
fn pooler(g: &Graph) -> Option<ValueId> {
    let mut outputs = g.outputs().iter().map(|p| p.value);
    outputs.find(|v| g.name_of(*v) == POOLER_OUTPUT)
}

/// The hidden states of a graph that has none of these outputs yet.
fn hidden_states(cx: &PassCx<'_>, outputs: &[&str]) -> Result<Hidden, Diagnostic> {
    let g = &cx.model().graph;
    let own = std::iter::once(&contract::LOGITS).chain(outputs);
    if let Some(name) = own.into_iter().find(|n| g.find(n).is_some()) {
        return Err(Diagnostic::error(
            "head",
            format!("the graph has a value `{name}`: a head of its own"),
        )
        .help("train on that head's loss, or export the base model without a head"));
    }
    let named = g
        .outputs()
        .iter()
        .find(|p| g.name_of(p.value) == contract::LAST_HIDDEN_STATE);
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
    let dim = |at: usize| {
        let known = fact.dims.as_ref().and_then(|d| d.get(at));
        known.map_or(Dim::Unknown, named_dim)
    };
    Ok(Hidden {
        value,
        width,
        batch: dim(0),
        seq: dim(1),
    })
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

/// The graph input of this name, which `what` needs.
fn input(g: &Graph, name: &str, what: &str) -> Result<ValueId, Diagnostic> {
    let found = g.find(name).filter(|v| g.is_input(*v));
    found.ok_or_else(|| Diagnostic::error("head", format!("{what} needs the graph input `{name}`")))
}

/// `[batch, width]` at the last position that `mask` marks. A position that is marked weighs its number, so that the largest is the last,
/// wherever the padding is. `longer`: adapters put positions in front, which the mask does not have.
fn last(b: &Builder, mask: Val, hidden: Val, longer: bool) -> Val {
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
    let at = if longer {
        let more = b.sub(b.slice(b.shape(hidden), 0, 1, 2), length);
        b.add(at, more)
    } else {
        at
    };
    let at = b.unsqueeze(at, &[2]);
    // [batch, 1, 1] against the last axis's [width].
    let width = b.slice(b.shape(hidden), 0, 2, 3);
    let shape = b.concat(&[b.ints(&[1, 1]), width], 0);
    let at = b.op("Expand", &[at, shape], &[]);
    let picked = b.op("GatherElements", &[hidden, at], &[("axis", 1i64.into())]);
    b.squeeze(picked, &[1])
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
