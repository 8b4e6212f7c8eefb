//! Attaching a prediction head: `logits` from the hidden states that a base model gives.

use super::attach::blocks::Cut;
use super::homes::Homes;
use super::loss::{Rows, lengthened};
use crate::adapters::heads::{Head, HeadConfig, HeadType, Noted, Pooling, owner};
use crate::adapters::manifest::Manifest;
use crate::adapters::{Setup, param_stamps};
use crate::analyze::logits::of_heads;
use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::contract::{POOLER_OUTPUT, stamp};
use crate::ir::{
    Builder, DType, Dim, Graph, GraphPort, Metadata, OpId, Sym, TensorData, Type, Val, ValueId,
};
use crate::rewrite::{Pass, PassCx, PassError};
use rustc_hash::FxHashMap;

/// Element type that a head computes in.
const COMPUTED: DType = DType::Float;

/// Adds a head behind the last hidden states; or one for each child of a block, each with outputs of its own.
#[derive(Clone, Debug)]
pub(crate) struct AttachHead {
    /// The heads.
    pub heads: Vec<Head>,
    /// The block whose children have one each; without, there is one head.
    pub block: Option<Setup>,
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
        for head in &self.heads {
            head.config.validate()?;
        }
        let g = &cx.model().graph;
        let names: Vec<&str> = self
            .heads
            .iter()
            .flat_map(|h| h.config.outputs())
            .copied()
            .collect();
        let hidden = hidden_states(cx, &names)?;
        let pooler = pooler(g);
        let mut manifest = Manifest::read(cx.model())?;
        manifest.written();
        let mut patch = cx.patch("head", None);
        let mut outputs = Vec::new();
        let parts = self.parts(patch.builder(), g, &hidden, pooler);
        for (head, part) in self.heads.iter().zip(parts) {
            let several = self.block.is_some();
            for (name, value, dims) in self.one(head, &part, (&hidden, g), patch.builder())? {
                let name = if several {
                    contract::of_head(name, &head.name)
                } else {
                    name.to_owned()
                };
                outputs.push((name, value, dims));
            }
            manifest.heads.push(Noted::flexible(head));
        }
        for (name, value, dims) in outputs {
            patch.add_output(value, &name, Some(Type::tensor(COMPUTED, dims)));
        }
        let class = |_: &str| "onnx_graft.head".to_owned();
        Homes::of(cx.before(), None).tell(patch.builder(), "", &class);
        cx.declare_types();
        patch.model_metadata(stamp::MANIFEST, Some(&manifest.text()));
        cx.commit(patch)?;
        Ok(())
    }
}

/// What a head reads of the base model's outputs, and which samples that is.
struct Part<'c> {
    hidden: Val,
    pooler: Option<Val>,
    rows: Rows<'c>,
    batch: Dim,
}

/// Says in the manifest that the graph's head is this one.
#[derive(Clone, Debug)]
pub(crate) struct NoteHead(pub(crate) Noted);

impl Pass for NoteHead {
    fn name(&self) -> &'static str {
        "note-head"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let mut manifest = Manifest::read(cx.model())?;
        manifest.written();
        manifest.heads.push(self.0.clone());
        let mut patch = cx.patch("note-head", None);
        patch.model_metadata(stamp::MANIFEST, Some(&manifest.text()));
        cx.commit(patch)?;
        Ok(())
    }
}

impl AttachHead {
    /// What each head reads.
    fn parts(
        &self,
        b: &Builder,
        g: &Graph,
        hidden: &Hidden,
        pooler: Option<ValueId>,
    ) -> Vec<Part<'_>> {
        let cut = match &self.block {
            Some(Setup::BatchSplit { batch_sizes, .. }) => Cut::samples(batch_sizes),
            Some(_) => Cut::channels(self.heads.len()),
            None => {
                return vec![Part {
                    hidden: hidden.value.into(),
                    pooler: pooler.map(Val::from),
                    rows: Rows::All,
                    batch: hidden.batch.clone(),
                }];
            }
        };
        b.set_scope("heads");
        if let Some(first) = self.heads.first() {
            b.set_stamp(owned(first));
        }
        let states = cut.parts(b, hidden.value.into());
        let pooled = pooler.map(|v| cut.parts(b, v.into()));
        let part = |(i, hidden): (usize, Val)| Part {
            hidden,
            pooler: pooled.as_ref().map(|all| all[i]),
            rows: Rows::of(self.block.as_ref(), i),
            batch: rows_of(g),
        };
        states.into_iter().enumerate().map(part).collect()
    }

    /// The outputs of a head with their sizes.
    fn one(
        &self,
        head: &Head,
        part: &Part<'_>,
        (hidden, g): (&Hidden, &Graph),
        b: &Builder,
    ) -> Result<Vec<Output>, PassError> {
        let (steps, table) = head.layers(hidden.width, g)?;
        let params = head.store(&steps, table.is_some(), self.seed, g)?;
        b.set_scope(&format!("heads.{}", head.name));
        let mut values: FxHashMap<String, Val> = FxHashMap::default();
        for (name, param) in &params {
            b.set_stamp(param_stamps(param));
            values.insert(name.clone(), b.initializer(name, param.tensor.clone()));
        }
        b.set_stamp(owned(head));
        b.set_float(COMPUTED);
        let table = table.map(|t| b.cast(t, COMPUTED));
        let x = read(head, b, g, part)?;
        let get = |at: usize, kind: &str| {
            let name = format!("heads.{}.{at}.{kind}", head.name);
            // `params` names everything of the steps but the table.
            values.get(&name).copied().or(table).unwrap_or(x)
        };
        let p = head.dropout();
        let epsilon = head.base.layer_norm_eps.unwrap_or(1e-12) as f32;
        let dropout = |v| dropout(b, v, p, self.training);
        let scores = head.config.build(b, x, &steps, get, dropout, epsilon);
        Ok(shaped(&head.config, b, scores, (&part.batch, &hidden.seq)))
    }
}

/// Name, value and sizes of a graph output.
type Output = (&'static str, Val, Vec<Dim>);

/// The stamps of a head's nodes.
fn owned(head: &Head) -> Metadata {
    let mut stamps = Metadata::default();
    stamps.insert(stamp::ADAPTER.into(), owner(&head.name).into());
    stamps
}

/// The batch's size, as the graph's inputs have it.
fn rows_of(g: &Graph) -> Dim {
    let named = |p: &&GraphPort| contract::ROWS.contains(&g.name_of(p.value));
    let input = g.inputs().iter().find(named);
    let first = input.and_then(|p| p.ty.as_ref()?.dims()?.first().cloned());
    first.unwrap_or(Dim::Unknown)
}

/// The positions that the head reads: all of them, or one of each row.
fn read(head: &Head, b: &Builder, g: &Graph, part: &Part<'_>) -> Result<Val, Diagnostic> {
    let Head { config, base, .. } = head;
    let states = || b.cast(part.hidden, COMPUTED);
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
    match head.pooling() {
        Pooling::Pooler => part.pooler.map(|v| b.cast(v, COMPUTED)).ok_or_else(|| {
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
            let mask = part.rows.of_given(g, b, mask.into());
            let states = states();
            Ok(last(b, b.cast(mask, DType::Int64), states, lengthened(g)))
        }
        Pooling::Eos => {
            let ids = input(g, contract::INPUT_IDS, "`pooling` eos")?;
            let ids = part.rows.of_given(g, b, ids.into());
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
    config: &HeadConfig,
    b: &Builder,
    scores: Val,
    (batch, seq): (&Dim, &Dim),
) -> Vec<Output> {
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
    let own = std::iter::once(&contract::LOGITS).chain(outputs).copied();
    let own = own.into_iter().find(|n| g.find(n).is_some());
    let several = || of_heads(g).next().map(|p| g.name_of(p.value));
    if let Some(name) = own.or_else(several) {
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
