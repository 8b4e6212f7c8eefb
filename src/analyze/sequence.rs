//! A longer sequence behind the embeddings: which values have to grow with it.
//!
//! The graph falls into the ancestors of the embeddings' output, which keep the length that the inputs have, and everything else, which
//! runs at the greater length. Where the rest reads an input with an axis of the sequence, or what the ancestors compute of one (its
//! shape, as a rule), it reads the same of a longer input instead. Exports of a fixed length hold it in their shape constants.

use super::through::Through;
use super::view::View;
use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::{DType, Graph, NodeId, Sym, Use, ValueId};
use rustc_hash::FxHashSet;

/// What grows with the sequence behind the embeddings.
#[derive(Clone, Debug)]
pub struct Longer {
    /// What the embeddings make: `[batch, sequence, width]`.
    pub(crate) embedded: ValueId,
    /// Width of an embedding.
    pub(crate) width: usize,
    /// Inputs `[batch, sequence]`.
    pub(crate) inputs: Vec<(ValueId, Meaning)>,
    /// Nodes in front of the embeddings to be computed again of longer inputs, in order.
    pub(crate) nodes: Vec<NodeId>,
    /// Values of which the rest reads the longer version, and where.
    pub(crate) moved: Vec<(ValueId, Vec<Use>)>,
    /// Shape constants with the sequence's length in them: where they are read, the numbers, and whether they are a vector.
    pub(crate) shapes: Vec<Shape>,
    /// Values behind the embeddings, whose declared shapes are no longer true.
    pub(crate) behind: Vec<ValueId>,
}

/// A shape constant.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// The constant.
    pub value: ValueId,
    /// Where it is read as a shape.
    pub uses: Vec<Use>,
    /// Its numbers.
    pub numbers: Vec<i64>,
    /// Whether it has no axis.
    pub scalar: bool,
    /// The length of the sequence.
    pub length: i64,
}

/// What an input with an axis of the sequence says of a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Meaning {
    /// Whether it is attended to.
    Mask,
    /// Where it is.
    Position,
    /// Which token or type it has.
    Token,
    /// Which token it has, to a model that is given embeddings instead: none, so that none of them is padding.
    Untold,
}

impl Longer {
    /// Finds what has to grow when the embeddings' output does.
    pub(crate) fn find(
        view: View<'_>,
        embedded: ValueId,
        hidden: usize,
    ) -> Result<Self, Diagnostic> {
        let graph = view.graph;
        let refused = |why: String| {
            Diagnostic::error("sequence", why)
                .help("export the model with a dynamic sequence axis, from token ids and an attention mask `[batch, sequence]`")
        };
        let Some([_, sequence, _]) = view.dims(embedded) else {
            return Err(refused(
                "the embeddings' output is not known to be [batch, sequence, width]".into(),
            ));
        };
        let width = view.size(embedded, 2).and_then(|n| usize::try_from(n).ok());
        let width = width.ok_or_else(|| refused("the embeddings' width is not known".into()))?;
        let order = graph
            .order()
            .map_err(|c| Diagnostic::error("cycle", c.to_string()))?;
        let inside = ancestors(graph, embedded);
        let mut inputs = Vec::new();
        let mut grown: FxHashSet<ValueId> = FxHashSet::default();
        for port in graph.inputs() {
            let v = port.value;
            let Some(dims) = view.dims(v) else {
                continue;
            };
            if is_cache(dims) && !reads_input(graph, &inside, v) {
                return Err(refused(format!(
                    "the input `{}` holds keys or values of tokens before: the prompt would stand in front of every step",
                    graph.name_of(v)
                ))
                .help("export the model without a cache (use_cache=False)"));
            }
            if graph.name_of(v) == contract::SEGMENT_IDS && !reads_input(graph, &inside, v) {
                return Err(refused(
                    "several examples share a row, and each would need the prompt in front".into(),
                )
                .help("train without packing; `group_by_length` also saves padding"));
            }
            let axes = dims.iter().filter(|d| *d == sequence).count();
            if axes == 0 && own_axis(view, &inside, v) {
                inputs.push((v, Meaning::of(graph.name_of(v))));
                grown.insert(v);
                continue;
            }
            if axes == 0 || sequence.as_const().is_some() && dims.len() != 2 {
                continue;
            }
            if dims.len() != 2 || dims[1] != *sequence || axes > 1 {
                return Err(refused(format!(
                    "the input `{}` has an axis of the sequence and is not [batch, sequence]",
                    graph.name_of(v)
                )));
            }
            inputs.push((v, Meaning::of(graph.name_of(v))));
            grown.insert(v);
        }
        // What the inside computes of the inputs.
        let mut computed = Vec::new();
        for &n in &order {
            if !inside.contains(&n) {
                continue;
            }
            let reads = |v: &ValueId| grown.contains(v);
            if graph.node_inputs(n).iter().flatten().any(reads) {
                grown.extend(graph.node_outputs(n).into_iter().flatten());
                computed.push(n);
            }
        }
        let outside = |v: ValueId| -> Vec<Use> {
            let uses = graph.uses(v).into_iter();
            uses.filter(|u| !inside.contains(&u.node())).collect()
        };
        let candidates = inputs.iter().map(|(v, _)| *v).chain(
            computed
                .iter()
                .flat_map(|n| graph.node_outputs(*n).into_iter().flatten()),
        );
        let moved: Vec<(ValueId, Vec<Use>)> = candidates
            .filter(|v| *v != embedded)
            .map(|v| (v, outside(v)))
            .filter(|(_, uses)| !uses.is_empty())
            .collect();
        let needed: FxHashSet<NodeId> = moved
            .iter()
            .flat_map(|(v, _)| ancestors(graph, *v))
            .collect();
        let nodes = computed
            .into_iter()
            .filter(|n| needed.contains(n))
            .collect();
        let (behind, after) = descendants(graph, &order, embedded, &moved);
        let mut shapes = Vec::new();
        if let Some(length) = sequence.as_const() {
            if hidden as i64 == length || width as i64 == length {
                return Err(refused(format!(
                    "the sequence has the fixed length {length}, which is the width of the hidden state too"
                )));
            }
            shapes = constants(view, &after, length);
        }
        Ok(Longer {
            embedded,
            width,
            inputs,
            nodes,
            moved,
            shapes,
            behind,
        })
    }
}

impl Longer {
    /// The same for a model that is given embeddings instead of these token ids. One that looks for a token by its id (the end of the
    /// sequence, as CLIP does) needs them, and keeps them.
    pub(crate) fn without_ids(mut self, view: View<'_>, ids: ValueId) -> Self {
        if !seeks(view, ids)
            && let Some((_, m)) = self.inputs.iter_mut().find(|(v, _)| *v == ids)
        {
            *m = Meaning::Untold;
        }
        self
    }
}

/// Whether a graph looks for the place of a token. Where it asks which tokens are *not* one, or goes one back, it looks for padding.
fn seeks(view: View<'_>, ids: ValueId) -> bool {
    let mut seen: FxHashSet<ValueId> = FxHashSet::default();
    let mut todo = vec![ids];
    let readers = |v: ValueId| view.graph.uses(v).into_iter().map(Use::node);
    while let Some(v) = todo.pop() {
        if !seen.insert(v) {
            continue;
        }
        for n in readers(v) {
            match view.op(n) {
                "NonZero" => return true,
                "ArgMax" => {
                    let back = |n: NodeId| matches!(view.op(n), "Add" | "Sub" | "Mod");
                    let out = view.out(n);
                    if !out.into_iter().flat_map(readers).any(back) {
                        return true;
                    }
                }
                "Equal" => todo.extend(view.out(n)),
                _ if Through::LAID_OUT.takes(&view.node(n).op) => todo.extend(view.out(n)),
                _ => {}
            }
        }
    }
    false
}

impl Meaning {
    fn of(name: &str) -> Self {
        if name.contains("mask") {
            Meaning::Mask
        } else if name.contains("position") {
            Meaning::Position
        } else {
            Meaning::Token
        }
    }
}

/// Whether an input of this shape can be the keys or values of an attention: `[batch, heads, past, head]`.
fn is_cache(dims: &[Sym]) -> bool {
    matches!(dims, [batch, _, past, _] if batch.as_const().is_none() && past.as_const().is_none())
}

/// Whether an input is the mask, the positions or the types of this sequence although its axis has a name of its own, as exporters write
/// it where the model does not compare the lengths. `inside`: what makes the embeddings.
fn own_axis(view: View<'_>, inside: &FxHashSet<NodeId>, v: ValueId) -> bool {
    let graph = view.graph;
    let Some([_, axis]) = view.dims(v) else {
        return false;
    };
    let name = graph.name_of(v);
    let (stem, decoders) = match name.strip_prefix("decoder_") {
        Some(stem) => (stem, true),
        None => (name, false),
    };
    let known = [
        contract::ATTENTION_MASK,
        contract::POSITION_IDS,
        contract::TOKEN_TYPE_IDS,
    ];
    let ids = graph.find(contract::DECODER_INPUT_IDS);
    let decodes = ids.is_some_and(|ids| reads_input(graph, inside, ids));
    let elsewhere = |p: &ValueId| {
        let dims = view.dims(*p).unwrap_or_default();
        *p != v && dims.contains(axis)
    };
    let mut others = graph.inputs().iter().map(|p| p.value);
    known.contains(&stem)
        && axis.as_const().is_none()
        && decoders == decodes
        && !others.any(|p| elsewhere(&p))
}

/// Whether one of the nodes reads a value.
fn reads_input(graph: &Graph, nodes: &FxHashSet<NodeId>, v: ValueId) -> bool {
    graph.uses(v).iter().any(|u| nodes.contains(&u.node()))
}

/// Whether a mask treats all queries alike: it has rows of its own for them, and nothing in it compares positions.
pub(crate) fn alike(view: View<'_>, mask: ValueId) -> bool {
    const COMPARE: [&str; 7] = [
        "CumSum",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
        "Range",
        "Trilu",
    ];
    let graph = view.graph;
    let dims = view.dims(mask).unwrap_or_default();
    let [.., queries, keys] = dims else {
        return false;
    };
    let square = |v: ValueId| {
        let tensor = graph.value(v).tensor.as_ref();
        tensor.is_some_and(|t| matches!(*t.dims, [.., a, b] if a > 1 && b > 1))
    };
    let compares = |n: &NodeId| {
        let op = &graph.node(*n).op;
        COMPARE.iter().any(|c| op.is_onnx(c))
            || graph.node_inputs(*n).into_iter().flatten().any(square)
    };
    !queries.is(1) && queries == keys && !ancestors(graph, mask).iter().any(compares)
}

/// Nodes that a value depends on.
fn ancestors(graph: &Graph, value: ValueId) -> FxHashSet<NodeId> {
    let mut out = FxHashSet::default();
    let mut todo = vec![value];
    while let Some(v) = todo.pop() {
        if let Some((n, _)) = graph.producer(v)
            && out.insert(n)
        {
            todo.extend(graph.node_inputs(n).into_iter().flatten());
            todo.extend(graph.node_captures(n));
        }
    }
    out
}

/// Values that depend on the embeddings or on something that moves, and the nodes that make them.
fn descendants(
    graph: &Graph,
    order: &[NodeId],
    embedded: ValueId,
    moved: &[(ValueId, Vec<Use>)],
) -> (Vec<ValueId>, Vec<NodeId>) {
    let reads: FxHashSet<NodeId> = moved
        .iter()
        .flat_map(|(_, uses)| uses.iter().map(|u| u.node()))
        .collect();
    let mut reached = FxHashSet::from_iter([embedded]);
    let (mut values, mut nodes) = (vec![embedded], Vec::new());
    for &n in order {
        let inputs = graph.node_inputs(n).into_iter().flatten();
        let mut all = inputs.chain(graph.node_captures(n));
        if !reads.contains(&n) && !all.any(|v| reached.contains(&v)) {
            continue;
        }
        nodes.push(n);
        for v in graph.node_outputs(n).into_iter().flatten() {
            reached.insert(v);
            values.push(v);
        }
    }
    (values, nodes)
}

/// Constants that give the shape of something behind the embeddings, and hold the sequence's length.
fn constants(view: View<'_>, after: &[NodeId], length: i64) -> Vec<Shape> {
    let graph = view.graph;
    let nodes: FxHashSet<NodeId> = after.iter().copied().collect();
    let mut out: Vec<Shape> = Vec::new();
    let mut add = |n: NodeId, slot: u32, v: ValueId| {
        let fixed = match graph.producer(v) {
            None => graph.value(v).tensor.is_some(),
            Some((p, _)) => graph.node(p).op.is_onnx("Constant"),
        };
        let fact = view
            .fact(v)
            .filter(|f| fixed && f.dtype == Some(DType::Int64));
        let numbers = fact.as_ref().and_then(|f| {
            let ints = f.ints.as_ref()?;
            ints.iter().map(crate::ir::Sym::as_const).collect()
        });
        let (Some(fact), Some(numbers)) = (fact, numbers) else {
            return;
        };
        let numbers: Vec<i64> = numbers;
        if !numbers.contains(&length) {
            return;
        }
        let at = Use::Input(n, slot);
        match out.iter_mut().find(|s| s.value == v) {
            Some(shape) => shape.uses.push(at),
            None => out.push(Shape {
                value: v,
                uses: vec![at],
                numbers,
                scalar: fact.rank() == Some(0),
                length,
            }),
        }
    };
    for &n in after {
        let op = &graph.node(n).op;
        if !(op.is_onnx("Reshape") || op.is_onnx("Expand")) {
            continue;
        }
        let Some(shape) = graph.input(n, 1) else {
            continue;
        };
        match graph.producer(shape) {
            // A shape that is put together: its fixed parts, where only shapes behind the embeddings read it.
            Some((p, _)) if graph.node(p).op.is_onnx("Concat") => {
                if !graph.uses(shape).iter().all(|u| nodes.contains(&u.node())) {
                    continue;
                }
                for (slot, part) in graph.node_inputs(p).into_iter().enumerate() {
                    if let Some(part) = part {
                        add(p, slot as u32, part);
                    }
                }
            }
            _ => add(n, 1, shape),
        }
    }
    for shape in &mut out {
        shape.uses.sort_unstable();
        shape.uses.dedup();
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::infer::Verified;
    use crate::ir::text::parse;

    /// Which tokens are not padding is no place of a token, and one back from the first that is padding is none either.
    #[test]
    fn a_place_is_looked_for_or_padding_is() {
        let seeks = |lines: &str| {
            let graph = format!(
                "opset \"\" 17\n\
                 graph main(%ids: i64[b, s]) -> (%y: i64[b, r])\n\
                 init %one: i64[] = 1\n\
                 %found = Equal(%ids, %one)\n\
                 {lines}"
            );
            let model = Verified::check(parse(&graph).unwrap()).unwrap();
            let g = &model.model().graph;
            super::seeks(View::new(g, &model), g.find("ids").unwrap())
        };
        let positions = "%shown = Not(%found)\n%n = Cast(%shown) {to = 7}\n%y = CumSum(%n, %one)";
        let last = "%n = Cast(%found) {to = 7}\n%at = ArgMax(%n) {axis = 1}\n%y = Sub(%at, %one)";
        let end = "%n = Cast(%found) {to = 7}\n%y = ArgMax(%n) {axis = 1}";
        assert!(!seeks(positions));
        assert!(!seeks(last));
        assert!(seeks(end));
    }
}
