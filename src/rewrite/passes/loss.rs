//! Losses: what is differentiated, appended to a graph in standard operators.

use super::attach::blocks::Cut;
use crate::adapters::Setup;
use crate::adapters::manifest::Manifest;
use crate::adapters::place::Kind;
use crate::analyze::logits::of_heads as several;
use crate::diag::{Diagnostic, nearest};
use crate::ir::contract;
use crate::ir::contract::stamp;
use crate::ir::{Attr, Builder, DType, Dim, Fact, Graph, NodeId, Sym, Type, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Patch};

/// A loss. As a pass it adds the scalar output `loss`, computed in `f32` (or `f64`, where the graph is).
#[derive(Clone, Debug, PartialEq)]
pub enum Loss {
    /// Cross entropy of `logits[:, :-1]` against `labels[:, 1:]`, as Hugging Face shifts them; positions labelled -100 do not count.
    /// Adds the input `labels: i64[batch, seq]`.
    CausalLm {
        /// Name of the logits, `[batch, seq, vocab]`. Without one: the output `logits`, or else the first output.
        logits: Option<String>,
        /// What the sum over positions is divided by.
        divisor: Divisor,
    },
    /// Cross entropy of tokens with a share of the target spread over the vocabulary, or of a decoder, whose labels are not shifted.
    /// Adds the input `labels: i64[batch, seq]`.
    Tokens {
        /// Whether position `i` is scored against label `i + 1`.
        shift: bool,
        /// What the sum over positions is divided by.
        divisor: Divisor,
        /// Share of the target that is spread over the vocabulary (Szegedy et al. 2016), as Hugging Face's label smoother does it.
        smoothing: f64,
    },
    /// Of logits `[batch, labels]`, one row for each example. Adds the input `labels`.
    Rows {
        /// What the labels are.
        kind: RowLoss,
        /// What the sum over examples (or over their labels) is divided by.
        divisor: Divisor,
        /// Share of a class's target that is spread over all classes.
        smoothing: f64,
    },
    /// `mean((output - target)²)`. Adds the input `target`, of the output's shape.
    Mse {
        /// Name of the output; without one, the first output.
        output: Option<String>,
    },
    /// A value of the graph that is a scalar already.
    Named(String),
}

/// A loss of whole examples.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowLoss {
    /// Cross entropy against a class: `labels: i64[batch]`; -100 does not count.
    Classification,
    /// Binary cross entropy of each label by itself: `labels: f32[batch, labels]`.
    MultiLabel,
    /// Squared difference: `labels: f32[batch, labels]`.
    Regression,
    /// Cross entropy of each token's class by itself: `labels: i64[batch, seq]`; -100 does not count.
    Tagging,
    /// The mean of two cross entropies over the tokens, of where an answer begins and where it ends: outputs `start_logits` and
    /// `end_logits`, `start_positions` and `end_positions: i64[batch]`.
    Spans,
}

/// What the summed cross entropy is divided by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Divisor {
    /// The number of positions that are labelled. When none is, the loss is 0/0, NaN, as in torch, and its gradient is zero.
    Labels,
    /// The input `num_items: f32`, for the mean over several micro-batches (Hugging Face's `num_items_in_batch`).
    Input,
}

impl Pass for Loss {
    fn name(&self) -> &'static str {
        "loss"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let named = matches!(self, Loss::Named(n) if n == contract::LOSS);
        if !named && g.find(contract::LOSS).is_some() {
            let d = Diagnostic::error(
                "loss-name",
                format!("the graph has a value `{}` already", contract::LOSS),
            );
            return Err(d
                .help(format!("use it as the loss by name: `{}`", contract::LOSS))
                .into());
        }
        let mut patch = cx.patch("loss", None);
        patch.builder().set_scope(contract::LOSS);
        let setup = headed(cx)?;
        let (setup, divisor) = (setup.as_ref(), self.divisor());
        let logits = |name: Option<&str>| scores(g, setup, name);
        let made = match self {
            Loss::CausalLm { logits: name, .. } => {
                let one = |scored| tokens(cx, &patch, scored, divisor, true, 0.0);
                each(&patch, &logits(name.as_deref())?, one)?
            }
            Loss::Tokens {
                shift, smoothing, ..
            } => {
                let one = |scored| tokens(cx, &patch, scored, divisor, *shift, *smoothing);
                each(&patch, &logits(None)?, one)?
            }
            Loss::Rows {
                kind: RowLoss::Tagging,
                smoothing,
                ..
            } => {
                let one = |scored| tokens(cx, &patch, scored, divisor, false, *smoothing);
                each(&patch, &logits(None)?, one)?
            }
            Loss::Rows {
                kind: RowLoss::Spans,
                ..
            } => spans(cx, &patch, setup, divisor)?,
            Loss::Rows {
                kind, smoothing, ..
            } => {
                let one = |scored| rows(cx, &patch, scored, *kind, divisor, *smoothing);
                each(&patch, &logits(None)?, one)?
            }
            Loss::Mse { output: name } => {
                let v = output(g, name.as_deref(), None)?;
                mse(cx, &mut patch, v)?;
                cx.commit(patch)?;
                return Ok(());
            }
            Loss::Named(name) => {
                let v = output(g, Some(name), None)?;
                publish(cx, &mut patch, v)?;
                cx.commit(patch)?;
                return Ok(());
            }
        };
        let (mut loss, ty) = made;
        if divisor == Divisor::Input {
            let n = graph_input(g, &patch, contract::NUM_ITEMS, Type::tensor(ty, []))?;
            loss = patch.builder().div(loss, n);
        }
        patch.add_output(loss, contract::LOSS, Some(Type::tensor(ty, [])));
        cx.commit(patch)?;
        Ok(())
    }
}

impl Loss {
    /// What the sum is divided by.
    fn divisor(&self) -> Divisor {
        match self {
            Loss::CausalLm { divisor, .. }
            | Loss::Tokens { divisor, .. }
            | Loss::Rows { divisor, .. } => *divisor,
            Loss::Mse { .. } | Loss::Named(_) => Divisor::Labels,
        }
    }
}

/// Scores, and the samples that they are of.
type Scored<'s> = (ValueId, Rows<'s>);

/// The sum of the losses of all heads.
fn each<'s>(
    patch: &Patch,
    scored: &[Scored<'s>],
    one: impl Fn(Scored<'s>) -> Result<(Val, DType), Diagnostic>,
) -> Result<(Val, DType), Diagnostic> {
    let mut whole: Option<(Val, DType)> = None;
    for scored in scored {
        let (loss, ty) = one(*scored)?;
        let sum = whole.map_or(loss, |(sum, _)| patch.builder().add(sum, loss));
        whole = Some((sum, ty));
    }
    whole.ok_or_else(|| Diagnostic::error("loss-value", "the graph has no scores"))
}

/// The scores that a loss reads: the value of this name; without one, those of every head.
fn scores<'s>(
    g: &Graph,
    setup: Option<&'s Setup>,
    name: Option<&str>,
) -> Result<Vec<Scored<'s>>, Diagnostic> {
    let several = match name {
        None => of_heads(g, setup, contract::LOGITS),
        Some(_) => Vec::new(),
    };
    if several.is_empty() {
        return Ok(vec![(output(g, name, Some(contract::LOGITS))?, Rows::All)]);
    }
    Ok(several)
}

/// The value of this name, or the default: the output `usual`, or else the first output.
pub(super) fn output(
    g: &Graph,
    name: Option<&str>,
    usual: Option<&str>,
) -> Result<ValueId, Diagnostic> {
    let Some(name) = name else {
        let usual = g
            .outputs()
            .iter()
            .find(|p| Some(g.name_of(p.value)) == usual);
        return usual
            .or_else(|| g.outputs().first())
            .map(|p| p.value)
            .ok_or_else(|| Diagnostic::error("loss-value", "the graph has no output"));
    };
    g.find(name).ok_or_else(|| {
        let d = Diagnostic::error("loss-value", format!("no value `{name}` in the graph"));
        match nearest(name, g.values().map(|v| g.name_of(v))) {
            Some(near) => d.help(format!("did you mean `{near}`?")),
            None => d,
        }
    })
}

/// Type and shape of a value, in floating point.
fn floating(cx: &PassCx<'_>, v: ValueId) -> Result<(DType, Fact), Diagnostic> {
    let fact = cx.fact(v).cloned().unwrap_or_default();
    match fact.dtype {
        Some(ty) if ty.is_float() => Ok((ty, fact)),
        None => Ok((DType::Float, fact)),
        Some(ty) => {
            let name = cx.model().graph.name_of(v);
            Err(Diagnostic::error(
                "loss-type",
                format!("`{name}` is {ty}; a loss needs floating point"),
            ))
        }
    }
}

/// Losses are computed in `f32` at least.
fn widened(patch: &Patch, v: ValueId, ty: DType) -> Val {
    match ty {
        DType::Float | DType::Double => v.into(),
        _ => patch.builder().cast(v, DType::Float),
    }
}

fn wide(ty: DType) -> DType {
    if ty == DType::Double {
        ty
    } else {
        DType::Float
    }
}

/// Sizes as a graph input declares them.
fn declared(dims: &[Sym]) -> Vec<Dim> {
    let dim = |s: &Sym| match (s.as_const(), s.to_string()) {
        (Some(n), _) => Dim::Known(n),
        (None, name) if name.chars().all(|c| c.is_alphanumeric() || c == '_') => {
            Dim::Symbol(name.into())
        }
        (None, _) => Dim::Unknown,
    };
    dims.iter().map(dim).collect()
}

/// A graph input of this name: the one that is there, or a new one.
fn graph_input(g: &Graph, patch: &Patch, name: &str, ty: Type) -> Result<Val, Diagnostic> {
    match g.find(name) {
        None => {
            let made = patch.builder().made_input(name);
            Ok(made.unwrap_or_else(|| patch.builder().graph_input(name, ty)))
        }
        Some(v) if g.is_input(v) => {
            let found = g.value(v).ty.as_ref().and_then(Type::dtype);
            if found.is_none() || found == ty.dtype() {
                return Ok(v.into());
            }
            let found = found.map_or("?", DType::name);
            Err(Diagnostic::error(
                "loss-input",
                format!("the input `{name}` is {found}; the loss needs {ty}"),
            ))
        }
        Some(_) => Err(Diagnostic::error(
            "loss-input",
            format!(
                "the loss needs an input `{name}`, but the graph computes a value of this name"
            ),
        )),
    }
}

fn tokens(
    cx: &PassCx<'_>,
    patch: &Patch,
    (logits, samples): Scored<'_>,
    divisor: Divisor,
    shift: bool,
    smoothing: f64,
) -> Result<(Val, DType), Diagnostic> {
    let g = &cx.model().graph;
    let (ty, fact) = floating(cx, logits)?;
    let name = g.name_of(logits);
    if let Some(rank) = fact.rank().filter(|&r| r != 3) {
        return Err(Diagnostic::error(
            "loss-shape",
            format!("`{name}` has rank {rank}; a language-model loss needs [batch, seq, vocab]"),
        )
        .help("name the logits, or choose another loss"));
    }
    let b = patch.builder();
    let places = match &fact.dims {
        Some(d) => samples.of_all(declared(&d[..2])),
        None => vec![Dim::Unknown, Dim::Unknown],
    };
    let labels = graph_input(
        g,
        patch,
        contract::LABELS,
        Type::tensor(DType::Int64, places),
    )?;
    let scores = if shift {
        b.slice(logits, 1, 0, -1)
    } else {
        logits.into()
    };
    let scores = match ty {
        DType::Float | DType::Double => scores,
        _ => b.cast(scores, DType::Float),
    };
    let shape = if let Some(vocab) = fact.size(2) {
        b.ints(&[-1, vocab])
    } else {
        let sizes = b.shape(logits);
        let vocab = b.op("Gather", &[sizes, b.ints(&[2])], &[("axis", 0i64.into())]);
        b.concat(&[b.ints(&[-1]), vocab], 0)
    };
    let scores = b.reshape(scores, shape);
    let labels = samples.of_given(g, b, labels);
    let labels = if lengthened(g) {
        padded(b, labels, logits)
    } else {
        labels
    };
    let next = if shift {
        b.slice(labels, 1, 1, i64::MAX)
    } else {
        labels
    };
    let next = b.reshape(next, b.ints(&[-1]));
    let loss = cross_entropy(b, scores, next, divisor, smoothing, wide(ty));
    Ok((summed(g, b, loss, (samples, divisor), wide(ty)), wide(ty)))
}

/// Cross entropy of rows of scores, summed or their mean; with `smoothing` as Hugging Face's `LabelSmoother` has it.
fn cross_entropy(
    b: &Builder,
    scores: Val,
    labels: Val,
    divisor: Divisor,
    smoothing: f64,
    ty: DType,
) -> Val {
    let reduction = match divisor {
        Divisor::Labels => "mean",
        Divisor::Input => "sum",
    };
    let attrs: [(&str, Attr); 2] = [
        ("ignore_index", (-100i64).into()),
        ("reduction", reduction.into()),
    ];
    let loss = b.op("SoftmaxCrossEntropyLoss", &[scores, labels], &attrs);
    if smoothing == 0.0 {
        return loss;
    }
    let spread = spread(b, scores, labels, divisor, ty);
    let share = |v: Val, s: f64| b.mul(v, b.scalar_of(s as f32, ty));
    b.add(share(loss, 1.0 - smoothing), share(spread, smoothing))
}

/// Minus the mean log-probability of all classes, summed over the positions that count, or their mean.
fn spread(b: &Builder, scores: Val, labels: Val, divisor: Divisor, ty: DType) -> Val {
    let log = b.op("LogSoftmax", &[scores], &[("axis", (-1i64).into())]);
    let each = b.neg(b.reduce_mean(log, &[-1], false));
    let ignored = b.op("Equal", &[labels, b.int(-100)], &[]);
    let zero = b.scalar_of(0.0, ty);
    let counted = b.op("Where", &[ignored, zero, each], &[]);
    let sum = b.reduce_sum(counted, &[0], false);
    if divisor == Divisor::Input {
        return sum;
    }
    let ones = b.op("Where", &[ignored, zero, b.scalar_of(1.0, ty)], &[]);
    b.div(sum, b.reduce_sum(ones, &[0], false))
}

/// A loss of logits `[batch, labels]`.
fn rows(
    cx: &PassCx<'_>,
    patch: &Patch,
    (logits, samples): Scored<'_>,
    kind: RowLoss,
    divisor: Divisor,
    smoothing: f64,
) -> Result<(Val, DType), Diagnostic> {
    let g = &cx.model().graph;
    let (ty, fact) = floating(cx, logits)?;
    let name = g.name_of(logits);
    if let Some(rank) = fact.rank().filter(|&r| r != 2) {
        return Err(Diagnostic::error(
            "loss-shape",
            format!("`{name}` has rank {rank}; a loss of whole examples needs [batch, labels]"),
        )
        .help("a base model needs a prediction head; a language model's loss is causal-lm"));
    }
    let dims = fact
        .dims
        .as_deref()
        .map_or_else(|| vec![Dim::Unknown, Dim::Unknown], declared);
    let dims = samples.of_all(dims);
    let labels = match kind {
        RowLoss::Classification | RowLoss::Tagging | RowLoss::Spans => {
            Type::tensor(DType::Int64, dims[..1].to_vec())
        }
        RowLoss::MultiLabel | RowLoss::Regression => Type::tensor(wide(ty), dims),
    };
    let labels = graph_input(g, patch, contract::LABELS, labels)?;
    let x = widened(patch, logits, ty);
    let b = patch.builder();
    let labels = samples.of_given(g, b, labels);
    let each = match kind {
        RowLoss::Classification | RowLoss::Tagging | RowLoss::Spans => None,
        RowLoss::MultiLabel => {
            // log(1 + exp(x)) - x·y
            Some(b.sub(b.unary("Softplus", x), b.mul(x, labels)))
        }
        RowLoss::Regression => {
            let diff = b.sub(x, labels);
            Some(b.mul(diff, diff))
        }
    };
    let loss = match (each, divisor) {
        (None, _) => cross_entropy(b, x, labels, divisor, smoothing, wide(ty)),
        (Some(each), Divisor::Input) => b.reduce_sum(each, &[0, 1], false),
        (Some(each), Divisor::Labels) => b.reduce_mean(each, &[0, 1], false),
    };
    Ok((summed(g, b, loss, (samples, divisor), wide(ty)), wide(ty)))
}

/// The loss of where answers begin and end: the mean of both.
fn spans(
    cx: &PassCx<'_>,
    patch: &Patch,
    setup: Option<&Setup>,
    divisor: Divisor,
) -> Result<(Val, DType), Diagnostic> {
    let g = &cx.model().graph;
    let ends = [
        (contract::START_LOGITS, contract::START_POSITIONS),
        (contract::END_LOGITS, contract::END_POSITIONS),
    ];
    let mut scored = Vec::new();
    for (name, position) in ends {
        let several = of_heads(g, setup, name);
        scored.extend(several.into_iter().map(|of| (of, position)));
        let port = g.outputs().iter().find(|p| g.name_of(p.value) == name);
        scored.extend(port.map(|p| ((p.value, Rows::All), position)));
        if scored.is_empty() {
            let found = format!("the graph has no output `{name}`");
            return Err(Diagnostic::error("loss-value", found)
                .help("export the model with its head for question answering, or the base model without a head"));
        }
    }
    let b = patch.builder();
    let mut whole: Option<(Val, DType)> = None;
    for ((logits, samples), position) in scored {
        let (ty, fact) = floating(cx, logits)?;
        let kind = wide(ty);
        let batch = fact
            .dims
            .as_deref()
            .map(|d| samples.of_all(declared(d)))
            .and_then(|d| d.first().cloned());
        let ty_in = Type::tensor(DType::Int64, [batch.unwrap_or(Dim::Unknown)]);
        let at = graph_input(g, patch, position, ty_in)?;
        let x = widened(patch, logits, ty);
        let at = samples.of_given(g, b, at);
        // Adapters may put positions in front of the tokens.
        let at = match g.find(contract::INPUT_IDS).filter(|_| lengthened(g)) {
            Some(ids) => {
                let length = |v: ValueId| b.slice(b.shape(v), 0, 1, 2);
                b.add(at, b.sub(length(logits), length(ids)))
            }
            None => at,
        };
        let loss = cross_entropy(b, x, at, divisor, 0.0, kind);
        let loss = summed(g, b, loss, (samples, divisor), kind);
        whole = Some((whole.map_or(loss, |(sum, _)| b.add(sum, loss)), kind));
    }
    let (sum, kind) = whole.ok_or_else(|| Diagnostic::error("loss-value", "no scores"))?;
    Ok((b.mul(sum, b.scalar_of(0.5, kind)), kind))
}

/// Whether adapters make the sequence longer than the inputs are.
pub(super) fn lengthened(g: &Graph) -> bool {
    let mut nodes = g.nodes().map(|n| &g.node(n).metadata);
    nodes.any(|m| {
        m.get(stamp::PLACE)
            .is_some_and(|kind| &**kind == "sequence")
    })
}

/// How often each sample stands in what flows: the number of children of a `Parallel`, or 1.
pub(crate) fn channels(g: &Graph) -> usize {
    let replicates = |n: &NodeId| {
        let kind = g.node(*n).metadata.get(stamp::PLACE);
        kind.is_some_and(|kind| &**kind == Kind::BATCH.name)
    };
    let found = g.nodes().find(replicates);
    found.map_or(1, |n| g.node_inputs(n).len())
}

/// The samples of a batch that a value has.
#[derive(Clone, Copy)]
pub(super) enum Rows<'c> {
    /// All, as often as they stand in what flows.
    All,
    /// All, once: what a head of a `Parallel`'s child gives.
    Once,
    /// Those of one child of a `BatchSplit` of these sizes.
    Part(&'c [usize], usize),
}

impl<'c> Rows<'c> {
    /// The samples that the head of the block's child has.
    pub(super) fn of(block: Option<&'c Setup>, child: usize) -> Self {
        match block {
            None => Rows::All,
            Some(Setup::BatchSplit { batch_sizes, .. }) => Rows::Part(batch_sizes, child),
            Some(_) => Rows::Once,
        }
    }

    /// Sizes of what these samples have, for all samples of the batch.
    fn of_all(self, mut dims: Vec<Dim>) -> Vec<Dim> {
        if let (Rows::Part(sizes, _), Some(batch)) = (self, dims.first_mut()) {
            *batch = Dim::Known(sizes.iter().sum::<usize>() as i64);
        }
        dims
    }

    /// What is given for each sample of a batch, for these.
    pub(super) fn of_given(self, g: &Graph, b: &Builder, given: Val) -> Val {
        match (self, channels(g)) {
            (Rows::Once, _) | (Rows::All, 1) => given,
            (Rows::All, n) => b.concat(&vec![given; n], 0),
            (Rows::Part(sizes, child), _) => Cut::samples(sizes).parts(b, given)[child],
        }
    }
}

/// The outputs of this name that heads give: the only one's, or those of each head, with the samples that they have.
fn of_heads<'s>(g: &Graph, setup: Option<&'s Setup>, name: &str) -> Vec<(ValueId, Rows<'s>)> {
    let children = setup.map_or(&[][..], Setup::children);
    let each = children.iter().enumerate().filter_map(|(i, child)| {
        let own = contract::of_head(name, child.last());
        let port = g.outputs().iter().find(|p| g.name_of(p.value) == own)?;
        Some((port.value, Rows::of(setup, i)))
    });
    each.collect()
}

/// The block whose children have a head each, where the graph has such heads.
fn headed(cx: &PassCx<'_>) -> Result<Option<Setup>, Diagnostic> {
    let g = &cx.model().graph;
    if several(g).next().is_none() {
        return Ok(None);
    }
    let manifest = Manifest::read(cx.model())?;
    let mut setups = manifest
        .setups
        .iter()
        .filter_map(|s| Setup::from_json(s).ok());
    Ok(setups.find_map(|s| s.headed().cloned()))
}

/// The sum of the losses of all copies, of their mean. A loss that is a sum already stays.
fn summed(
    g: &Graph,
    b: &Builder,
    loss: Val,
    (rows, divisor): (Rows<'_>, Divisor),
    ty: DType,
) -> Val {
    match (rows, channels(g), divisor) {
        (Rows::All, n @ 2.., Divisor::Labels) => b.mul(loss, b.scalar_of(n as f32, ty)),
        _ => loss,
    }
}

/// Labels with positions in front that do not count, as many as the logits have more.
fn padded(b: &Builder, labels: Val, logits: ValueId) -> Val {
    let sizes = b.shape(labels);
    let length = |v: Val| b.slice(v, 0, 1, 2);
    let more = b.sub(length(b.shape(logits)), length(sizes));
    let shape = b.concat(&[b.slice(sizes, 0, 0, 1), more], 0);
    let ignored = b.op("Expand", &[b.int(-100), shape], &[]);
    b.concat(&[ignored, labels], 1)
}

fn mse(cx: &PassCx<'_>, patch: &mut Patch, out: ValueId) -> Result<(), Diagnostic> {
    let (ty, fact) = floating(cx, out)?;
    let target = match &fact.dims {
        Some(d) => Type::tensor(wide(ty), declared(d)),
        None => Type {
            kind: crate::ir::TypeKind::Tensor {
                dtype: wide(ty),
                dims: None,
            },
            exact: None,
        },
    };
    let target = graph_input(&cx.model().graph, patch, contract::TARGET, target)?;
    let b = patch.builder();
    let diff = b.sub(widened(patch, out, ty), target);
    let loss = b.op(
        "ReduceMean",
        &[b.mul(diff, diff)],
        &[("keepdims", 0i64.into())],
    );
    patch.add_output(loss, contract::LOSS, Some(Type::tensor(wide(ty), [])));
    Ok(())
}

/// A value that is there already, as the output `loss`.
fn publish(cx: &PassCx<'_>, patch: &mut Patch, v: ValueId) -> Result<(), Diagnostic> {
    let g = &cx.model().graph;
    let (ty, fact) = floating(cx, v)?;
    let name = g.name_of(v);
    if let Some(dims) = fact.dims.as_ref().filter(|d| !d.iter().all(|d| d.is(1))) {
        let dims: Vec<String> = dims.iter().map(Sym::to_string).collect();
        let shape = dims.join(", ");
        return Err(Diagnostic::error(
            "loss-shape",
            format!("`{name}` has shape [{shape}]; a loss is one number"),
        ));
    }
    let b = patch.builder();
    let typed = Some(Type::tensor(
        ty,
        fact.dims.as_deref().map(declared).unwrap_or_default(),
    ));
    if name != contract::LOSS {
        let copy = b.unary("Identity", v);
        patch.add_output(copy, contract::LOSS, typed);
    } else if !g.is_output(v) {
        patch.add_output(v.into(), contract::LOSS, typed);
    }
    Ok(())
}

#[cfg(test)]
mod tests;
