//! Normalisations, recognised by what they compute: fused operators, and the arithmetic that exporters write for them.

use super::flow::Flow;
use crate::ir::{NodeId, ValueId};
use rustc_hash::FxHashMap;

/// What a normalisation computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum NormKind {
    /// Mean and variance.
    LayerNorm,
    /// Root of the mean square.
    RmsNorm,
}

/// One normalisation.
#[derive(Clone, Debug)]
pub(crate) struct Norm {
    /// What it normalises; `None` where a fused operator makes the sum itself and does not hand it out.
    pub(crate) input: Option<ValueId>,
    pub(crate) output: ValueId,
    /// The summands of a fused residual.
    pub(crate) skip: Option<[ValueId; 2]>,
    pub(crate) nodes: Vec<NodeId>,
    pub(crate) kind: NormKind,
}

/// All normalisations of a graph, by what they read and make.
#[derive(Debug, Default)]
pub(crate) struct Norms {
    pub(crate) all: Vec<Norm>,
    by_input: FxHashMap<ValueId, Vec<usize>>,
    by_output: FxHashMap<ValueId, usize>,
    by_skip: FxHashMap<ValueId, usize>,
}

impl Norms {
    pub(crate) fn new(view: &Flow<'_>) -> Self {
        let mut out = Norms::default();
        for &n in &view.order {
            if let Some(norm) = fused(view, n).or_else(|| spelled(view, n)) {
                out.add(view, norm);
            }
        }
        out
    }

    fn add(&mut self, view: &Flow<'_>, norm: Norm) {
        let at = self.all.len();
        if let Some(v) = norm.input {
            self.by_input.entry(view.root(v)).or_default().push(at);
        }
        for v in norm.skip.into_iter().flatten() {
            self.by_skip.insert(v, at);
        }
        self.by_output.insert(view.root(norm.output), at);
        self.all.push(norm);
    }

    /// The normalisation that makes a value.
    pub(crate) fn making(&self, view: &Flow<'_>, v: ValueId) -> Option<&Norm> {
        self.by_output.get(&view.root(v)).map(|i| &self.all[*i])
    }

    /// The normalisations of a value.
    pub(crate) fn of(&self, view: &Flow<'_>, v: ValueId) -> impl Iterator<Item = &Norm> {
        let found = self
            .by_input
            .get(&view.root(v))
            .map_or(&[][..], Vec::as_slice);
        found.iter().map(|i| &self.all[*i])
    }

    /// The fused residual that a value is a summand of.
    pub(crate) fn adding(&self, v: ValueId) -> Option<&Norm> {
        self.by_skip.get(&v).map(|i| &self.all[*i])
    }
}

/// The normalisations that some nodes are, in their order.
pub(crate) fn norm_calls(view: &Flow<'_>, nodes: &[NodeId]) -> Vec<Norm> {
    let of = |n: &NodeId| fused(view, *n).or_else(|| spelled(view, *n));
    nodes.iter().filter_map(of).collect()
}

fn fused(view: &Flow<'_>, n: NodeId) -> Option<Norm> {
    let inputs = view.inputs(n);
    let slot = |i: usize| inputs.get(i).copied().flatten();
    let output = view.graph.output(n, 0)?;
    let (kind, skip) = match view.op(n) {
        "LayerNormalization" => (NormKind::LayerNorm, false),
        "RMSNormalization" | "SimplifiedLayerNormalization" => (NormKind::RmsNorm, false),
        "SkipLayerNormalization" => (NormKind::LayerNorm, true),
        "SkipSimplifiedLayerNormalization" => (NormKind::RmsNorm, true),
        _ => return None,
    };
    if !view.is_flow(slot(0)?) {
        return None;
    }
    let (input, skip) = if skip {
        (view.graph.output(n, 3), Some([slot(0)?, slot(1)?]))
    } else {
        (slot(0), None)
    };
    Some(Norm {
        input,
        output,
        skip,
        nodes: vec![n],
        kind,
    })
}

/// `x / sqrt(mean(x²) + ε) · w`, or with `x - mean(x)` for x and a bias; found by its root, which may be written as a power, with or
/// without ε, and with the weight as `1 + w`.
fn spelled(view: &Flow<'_>, root: NodeId) -> Option<Norm> {
    let first = |n: NodeId| view.inputs(n).first().copied().flatten();
    let made_by = |v: ValueId, ops: &[&str]| {
        view.producer(view.root(v))
            .filter(|p| ops.contains(&view.op(*p)))
    };
    let inverse = match view.op(root) {
        "Sqrt" => false,
        "Pow" => power(view, root)?.is_sign_negative(),
        _ => return None,
    };
    if !view.is_flow(first(root)?) {
        return None;
    }
    let guarded = made_by(first(root)?, &["Add", "Max", "Clip"]);
    let operands = match guarded {
        Some(guard) => view.inputs(guard),
        None => vec![first(root)],
    };
    let mean = operands
        .into_iter()
        .flatten()
        .find_map(|v| made_by(v, &["ReduceMean"]))?;
    let square = made_by(first(mean)?, &["Pow", "Mul"])?;
    let squared = first(square)?;
    let (centred, kind) = match made_by(squared, &["Sub"]) {
        Some(sub) => (view.root(first(sub)?), NormKind::LayerNorm),
        None => (view.root(squared), NormKind::RmsNorm),
    };
    // Half precision is widened inside the norm.
    let input = match made_by(centred, &["Cast"]) {
        Some(cast) if first(cast).is_some_and(|v| view.is_flow(v)) => view.root(first(cast)?),
        _ => centred,
    };
    let output = scaled(view, view.graph.output(root, 0)?, inverse)?;
    let mut nodes = Vec::new();
    let mut open = vec![output];
    while let Some(v) = open.pop() {
        let Some(n) = view
            .producer(v)
            .filter(|_| v != input && !view.is_constant(v))
        else {
            continue;
        };
        if !nodes.contains(&n) {
            nodes.push(n);
            open.extend(view.inputs(n).into_iter().flatten());
        }
        if nodes.len() > 24 {
            return None;
        }
    }
    nodes.sort_by_key(|n| view.place(*n));
    Some(Norm {
        input: Some(input),
        output,
        skip: None,
        nodes,
        kind,
    })
}

/// The exponent of a power that is a square root, or one over it.
fn power(view: &Flow<'_>, n: NodeId) -> Option<f32> {
    let exponent = view.constant(view.input(n, 1)?)?.to_f32()?;
    match *exponent {
        [e] if (e.abs() - 0.5).abs() < 1e-6 => Some(e),
        _ => None,
    }
}

/// From the root mean square on, or from one over it: the division, casts, weight and bias.
fn scaled(view: &Flow<'_>, root: ValueId, inverse: bool) -> Option<ValueId> {
    let only = |v: ValueId| match view.readers(v)[..] {
        [r] if !view.is_output(v) => Some((r, view.graph.output(r, 0)?)),
        _ => None,
    };
    let (mut node, mut at) = only(root)?;
    let inverts = view.op(node) == "Reciprocal"
        || (view.op(node) == "Div"
            && view
                .inputs(node)
                .first()
                .copied()
                .flatten()
                .is_some_and(|v| view.is_constant(v)));
    if inverts && !inverse {
        (node, at) = only(at)?;
    }
    if !matches!(view.op(node), "Div" | "Mul") {
        return None;
    }
    // A weight is a vector, stored or computed from stored ones.
    let wide = |v: ValueId| match view.tensor(v) {
        Some(t) => t.count() != Some(1),
        None => view.is_constant(v) && view.rank(v).is_some_and(|r| r > 0),
    };
    let mut left = vec!["Cast", "Cast", "Mul", "Add"];
    while let Some((next, made)) = only(at) {
        let step = view.op(next);
        let Some(known) = left.iter().position(|s| *s == step) else {
            break;
        };
        let constant = view
            .inputs(next)
            .into_iter()
            .flatten()
            .any(|v| v != at && wide(v));
        if step != "Cast" && !constant {
            break;
        }
        left.remove(known);
        // What a norm adds comes last.
        if step == "Add" {
            left.retain(|s| *s == "Cast");
        }
        at = made;
    }
    Some(at)
}

/// The nodes between input and output of a normalisation, constants apart.
pub(crate) fn norm_nodes(
    view: &Flow<'_>,
    nodes: &[NodeId],
    input: ValueId,
    output: ValueId,
) -> Option<(Vec<NodeId>, NormKind)> {
    let mut wanted = vec![output];
    let mut kept: Vec<NodeId> = Vec::new();
    for &n in nodes.iter().rev() {
        let made: Vec<ValueId> = view.graph.node_outputs(n).into_iter().flatten().collect();
        if made.iter().any(|v| wanted.contains(v)) && !made.iter().all(|v| view.is_constant(*v)) {
            kept.push(n);
            wanted.extend(view.inputs(n).into_iter().flatten().filter(|v| *v != input));
        }
    }
    kept.reverse();
    let has = |op: &str| kept.iter().any(|n| view.op(*n) == op);
    let rms = has("RMSNormalization") || has("SimplifiedLayerNormalization");
    let plain = has("LayerNormalization") || (has("Sub") && has("ReduceMean"));
    let kind = match (rms, plain) {
        (true, _) => NormKind::RmsNorm,
        (_, true) => NormKind::LayerNorm,
        _ if has("ReduceMean") || has("ReduceSum") || has("ReduceL2") => NormKind::RmsNorm,
        _ => return None,
    };
    // Everything else that these nodes read must be a constant, or the norm could not be applied elsewhere.
    let made: Vec<ValueId> = kept
        .iter()
        .flat_map(|n| view.graph.node_outputs(*n))
        .flatten()
        .collect();
    let foreign = kept
        .iter()
        .flat_map(|n| view.inputs(*n))
        .flatten()
        .any(|v| v != input && !view.is_constant(v) && !made.contains(&v));
    (!foreign).then_some((kept, kind))
}
