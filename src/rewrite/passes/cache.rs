//! A decoder with memory: keys and values of positions that were computed before are fed instead of being computed again.
//!
//! The cached positions enter an attention at two places only, as those of a prefix do: their scores stand in front of the others right
//! before the softmax, and what they weigh is added to the mix. So the graph goes on to see nothing but its new positions, no mask has
//! to grow, and keys and values that are there already are read where they lie and never copied. Keys and values are cached as the
//! model makes them: rotated, and not repeated for grouped queries.
//!
//! A graph that counts its positions itself counts from zero; it gets the input `position_ids` instead.
//!
//! Not for encoder-decoders, nor for a bias by relative position. What depends on the sequence in a way that no pattern here shows
//! (a bias by position in a mask) is not found out: who uses the pass compares once.

use crate::analyze::attention::{AttentionCore, Step, copy};
use crate::analyze::positions::{Usage, usage};
use crate::analyze::through::Through;
use crate::analyze::view::View;
use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::{Builder, DType, Dim, Graph, InfoEntry, NodeId, OpId, Type, Use, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Uses};
use crate::select::{AttentionSite, Selection};
use rustc_hash::{FxHashMap, FxHashSet};

/// Name of the graph input with what is cached of an attention: `[batch, kv_heads, past_sequence, head]`.
pub(crate) fn past_name(layer: usize, part: Part) -> String {
    format!("{}{layer}.{}", contract::PAST, part.name())
}

/// Name of the graph output with what is to be appended to it: that of the new positions alone.
pub(crate) fn new_name(layer: usize, part: Part) -> String {
    format!("{}{layer}.{}", contract::NEW, part.name())
}

/// What is cached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Part {
    /// Keys.
    Key,
    /// Values.
    Value,
}

impl Part {
    /// Both.
    pub(crate) const BOTH: [Part; 2] = [Part::Key, Part::Value];

    fn name(self) -> &'static str {
        match self {
            Part::Key => "key",
            Part::Value => "value",
        }
    }
}

/// Gives a decoder outputs with the keys and values of its positions, and, for the steps behind the first, inputs with those of the
/// positions before.
#[derive(Clone, Debug)]
pub(crate) struct AddCache {
    /// Where the attentions are; of the model before adapters were attached, or after.
    pub selection: Selection,
    /// Whether there are positions before. Without, only the outputs are added.
    pub past: bool,
}

impl Pass for AddCache {
    fn name(&self) -> &'static str {
        "add-cache"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let memories = memories(cx, &self.selection)?;
        if self.past {
            let mask = entrance(cx)?;
            for (layer, memory) in memories.iter().enumerate() {
                remember(cx, layer, memory, mask)?;
            }
        }
        let mut patch = cx.patch("new keys and values", None);
        let b = patch.builder();
        b.set_scope("cache");
        let mut outputs = Vec::new();
        for (layer, memory) in memories.iter().enumerate() {
            for part in Part::BOTH {
                let found = memory.part(part);
                let copy = match found.axes {
                    Axes::HeadsFirst => b.unary("Identity", found.value),
                    Axes::SequenceFirst => b.transpose(found.value, &[0, 2, 1, 3]),
                };
                outputs.push((copy, new_name(layer, part)));
            }
        }
        for (value, name) in outputs {
            patch.add_output(value, &name, None);
        }
        if self.past {
            // Shapes were declared for positions that all rows share.
            patch.forget(declared(&cx.model().graph));
        }
        cx.commit(patch)?;
        Ok(())
    }
}

/// An attention, and where its keys and values are.
struct Memory {
    core: AttentionCore,
    keys: Found,
    /// What happens to a score of those keys.
    steps: Vec<Step>,
    values: Found,
}

/// Keys or values of all heads.
#[derive(Clone, Copy)]
struct Found {
    value: ValueId,
    axes: Axes,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Axes {
    /// `[batch, kv_heads, sequence, head]`.
    HeadsFirst,
    /// `[batch, sequence, kv_heads, head]`.
    SequenceFirst,
}

impl Memory {
    fn part(&self, part: Part) -> Found {
        match part {
            Part::Key => self.keys,
            Part::Value => self.values,
        }
    }
}

fn refused(what: impl Into<String>, site: &str) -> Diagnostic {
    Diagnostic::error("cache", what)
        .at(site)
        .help("without a cache the whole text is computed for every token")
}

fn memories(cx: &PassCx<'_>, selection: &Selection) -> Result<Vec<Memory>, Diagnostic> {
    let g = &cx.model().graph;
    let mut out = Vec::new();
    for layer in &selection.layers {
        if layer.cross_attn.is_some() {
            return Err(refused(
                "attention to an encoder has no cache here",
                &layer.path,
            ));
        }
        let Some(site) = &layer.self_attn else {
            return Err(refused(
                "the layer has no attention that is known",
                &layer.path,
            ));
        };
        out.push(memory(site, View::new(g, cx))?);
    }
    if out.is_empty() {
        return Err(refused("the model has no layers that are known", ""));
    }
    Ok(out)
}

fn memory(site: &AttentionSite, view: View<'_>) -> Result<Memory, Diagnostic> {
    let core = site.core(view)?;
    if core.bias.is_some() {
        return Err(refused("a bias by relative position is added", &site.path));
    }
    let plain = |op: &OpId| {
        let known = ["Softmax", "IsNaN", "MatMul"];
        known.iter().any(|k| op.is_onnx(k)) || Through::ALIKE.or(Through::GUARD).takes(op)
    };
    let mut tail = core.tail.iter().map(|n| &view.node(*n).op);
    if let Some(op) = tail.find(|op| !plain(op)) {
        return Err(refused(
            format!("{op} changes the probabilities"),
            &site.path,
        ));
    }
    let fits = |v: ValueId| {
        let dims = view.dims(v)?;
        let is = |axis: usize, n: usize| dims[axis].is(n as i64);
        let open = |axis: usize| dims[axis].as_const().is_none();
        if dims.len() != 4 || !is(3, core.head) {
            return None;
        }
        let axes = if is(1, core.kv_heads) && open(2) {
            Axes::HeadsFirst
        } else if is(2, core.kv_heads) && open(1) {
            Axes::SequenceFirst
        } else {
            return None;
        };
        Some(Found { value: v, axes })
    };
    let unknown = |what: &str| {
        refused(
            format!("the {what} have no value with an axis of heads"),
            &site.path,
        )
    };
    let all = core.keys.last().map_or(0, |k| k.1);
    let deepest = core
        .keys
        .iter()
        .rev()
        .find_map(|(v, n)| Some((fits(*v)?, *n)));
    let (keys, scaled) = deepest.ok_or_else(|| unknown("keys"))?;
    let steps = core.then[..scaled].iter().chain(&core.then[all..]).copied();
    Ok(Memory {
        steps: steps.collect(),
        keys,
        values: narrow(view.graph, core.values, &fits).ok_or_else(|| unknown("values"))?,
        core,
    })
}

/// The first of the values on the way to an operand that fits, against the flow.
fn narrow(g: &Graph, from: ValueId, fits: &dyn Fn(ValueId) -> Option<Found>) -> Option<Found> {
    let mut best = None;
    let mut next = Some(from);
    while let Some(v) = next {
        best = fits(v).or(best);
        let Some((n, _)) = g.producer(v) else { break };
        let op = &g.node(n).op;
        next = if op.is_onnx("Concat") {
            // A prefix stands in front of what the model makes.
            best = None;
            g.node_inputs(n).into_iter().flatten().last()
        } else {
            Through::LAID_OUT.before(g, v)
        };
    }
    best
}

/// Values that the graph declares types of.
pub(super) fn declared(g: &Graph) -> Vec<ValueId> {
    let known = |i: &InfoEntry| match i {
        InfoEntry::Value(p) => Some(p.value),
        InfoEntry::Orphan(_) => None,
    };
    g.infos().iter().filter_map(known).collect()
}

/// The inputs that every layer needs: the additive mask of the past, `[batch, 1, 1, past]`, and positions.
fn entrance(cx: &mut PassCx<'_>) -> Result<ValueId, PassError> {
    let g = &cx.model().graph;
    let batch = batch_size(g);
    let uses = if g
        .find(contract::POSITION_IDS)
        .is_some_and(|v| g.is_input(v))
    {
        Vec::new()
    } else {
        position_uses(cx)?
    };
    let mut patch = cx.patch("past", None);
    let b = patch.builder();
    b.set_scope("cache");
    let dims = [batch.clone(), Dim::Symbol("past_sequence".into())];
    let mask = b.graph_input(
        contract::PAST_ATTENTION_MASK,
        Type::tensor(DType::Int64, dims),
    );
    let mask = b.cast(mask, DType::Float);
    let hidden = b.mul(b.sub(b.scalar(1.0), mask), b.scalar(f32::MIN));
    let mask = b.unsqueeze(hidden, &[1, 2]);
    let mut redirects = Vec::new();
    if !uses.is_empty() {
        let dims = [batch, sequence_size(g)];
        let positions = b.graph_input(contract::POSITION_IDS, Type::tensor(DType::Int64, dims));
        for found in &uses {
            let dtype = cx
                .fact(found.start)
                .and_then(|f| f.dtype)
                .unwrap_or(DType::Int64);
            let own = if dtype == DType::Int64 {
                positions
            } else {
                b.cast(positions, dtype)
            };
            let own = if found.axes.is_empty() {
                own
            } else {
                b.unsqueeze(own, &found.axes)
            };
            let mut map = FxHashMap::from_iter([(found.start, own)]);
            copy(g, b, &found.nodes, &mut map, &Val::Old);
            let new = map.get(&found.value).copied().unwrap_or(own);
            redirects.push((found.value, new, found.reader));
        }
    }
    for (old, new, reader) in redirects {
        patch.redirect(old, new, Uses::Only(vec![reader]));
    }
    let applied = cx.commit(patch)?;
    Ok(applied.value(mask))
}

fn input_dims(g: &Graph) -> Option<&[Dim]> {
    let ids = g.find(contract::INPUT_IDS)?;
    g.inputs()
        .iter()
        .find(|p| p.value == ids)
        .and_then(|p| p.ty.as_ref().or(g.value(ids).ty.as_ref()))?
        .dims()
}

fn batch_size(g: &Graph) -> Dim {
    input_dims(g)
        .and_then(|d| d.first().cloned())
        .unwrap_or(Dim::Unknown)
}

fn sequence_size(g: &Graph) -> Dim {
    input_dims(g)
        .and_then(|d| d.get(1).cloned())
        .unwrap_or(Dim::Unknown)
}

/// A place where counted positions become numbers: the reader, what it reads, and the way there from the first value with an axis of
/// rows in front, `[1, …, sequence, …]`.
struct PositionUse {
    reader: Use,
    value: ValueId,
    start: ValueId,
    /// Axes of that value that are neither of rows nor of positions.
    axes: Vec<i64>,
    nodes: Vec<NodeId>,
}

/// A value, the first row on the way to it with its axes, and the nodes behind that.
type Way = (ValueId, Option<(ValueId, Vec<i64>)>, Vec<NodeId>);

/// Where a graph that counts its positions uses them: a conversion to floating point, or a look-up in a table.
fn position_uses(cx: &PassCx<'_>) -> Result<Vec<PositionUse>, Diagnostic> {
    let g = &cx.model().graph;
    let view = View::new(g, cx);
    let int = |v: ValueId| {
        let dtype = cx.fact(v).and_then(|f| f.dtype);
        matches!(dtype, Some(DType::Int64 | DType::Int32))
    };
    // Axes of size one behind the first, where that is one, too, and one other axis is not known.
    let row = |v: ValueId| -> Option<Vec<i64>> {
        let dims = cx.fact(v)?.dims.as_ref()?;
        let open = dims.iter().filter(|d| d.as_const().is_none()).count();
        let ones: Vec<i64> = (0..dims.len())
            .filter(|&i| dims[i].is(1))
            .map(|i| i as i64)
            .collect();
        let fits = dims.len() >= 2 && open == 1 && ones.len() + 1 == dims.len() && ones[0] == 0;
        fits.then(|| ones[1..].to_vec())
    };
    let counted = |v: ValueId| {
        let dims = cx.fact(v).and_then(|f| f.dims.as_ref());
        dims.is_some_and(|d| d.iter().any(|d| d.as_const().is_none()))
    };
    let passes = Through::ALIKE
        .or(Through::SHAPE)
        .or(Through::REPEAT)
        .or(Through::SUM);
    let mut out = Vec::new();
    let mut seen = FxHashSet::default();
    let mut todo: Vec<Way> = g
        .nodes()
        .filter(|n| g.node(*n).op.is_onnx("Range"))
        .filter_map(|n| Some((g.output(n, 0)?, None, Vec::new())))
        .filter(|(v, _, _)| int(*v) && counted(*v))
        .collect();
    while let Some((v, start, nodes)) = todo.pop() {
        if !seen.insert(v) {
            continue;
        }
        let start = start.or_else(|| Some((v, row(v)?)));
        for u in g.uses(v) {
            let Use::Input(n, slot) = u else { continue };
            let node = g.node(n);
            if let Some(usage) = usage(view, n, slot) {
                let looks_up = usage == Usage::Table;
                let own = start.clone().or_else(|| looks_up.then(|| (v, Vec::new())));
                let Some((start, axes)) = own else {
                    return Err(refused(
                        "positions are counted without an axis of rows",
                        &node.name,
                    ));
                };
                let nodes = nodes.clone();
                out.push(PositionUse {
                    reader: u,
                    value: v,
                    start,
                    axes,
                    nodes,
                });
            } else if passes.takes(&node.op) {
                let mut way = nodes.clone();
                if start.is_some() {
                    way.push(n);
                }
                let next = g.output(n, 0).filter(|o| int(*o));
                todo.extend(next.map(|o| (o, start.clone(), way)));
            }
        }
    }
    if out.is_empty() {
        return Err(refused(
            "it is not known where the graph counts its positions",
            "",
        ));
    }
    Ok(out)
}

/// Puts the past in front of the positions of one attention.
fn remember(
    cx: &mut PassCx<'_>,
    layer: usize,
    memory: &Memory,
    mask: ValueId,
) -> Result<(), PassError> {
    let g = &cx.model().graph;
    let core = &memory.core;
    let anchor = g.producer(core.output).map(|(n, _)| n);
    let mut patch = cx.patch(format!("past of attention {layer}"), anchor);
    let b = patch.builder();
    b.set_scope(&format!("cache.{layer}"));
    let dtype = |v: ValueId| cx.fact(v).and_then(|f| f.dtype).unwrap_or(DType::Float);
    let sizes = [
        batch_size(g),
        Dim::Known(core.kv_heads as i64),
        Dim::Symbol("past_sequence".into()),
        Dim::Known(core.head as i64),
    ];
    let past = |part: Part| {
        let ty = Type::tensor(dtype(memory.part(part).value), sizes.clone());
        b.graph_input(&past_name(layer, part), ty)
    };
    let (keys, values) = (past(Part::Key), past(Part::Value));
    let batch = b.slice(b.shape(keys), 0, 0, 1);
    let length = b.slice(b.shape(keys), 0, 2, 3);
    let grouped = |v: Val, last: Val| {
        let heads = b.ints(&[core.kv_heads as i64, -1]);
        b.reshape(v, b.concat(&[batch, heads, last], 0))
    };
    let queries = grouped(core.queries.into(), b.ints(&[core.head as i64]));
    let own = b.matmul(queries, b.transpose(keys, &[0, 1, 3, 2]));
    let own = scored(
        b,
        own,
        &memory.steps,
        core.dtype.unwrap_or(DType::Float),
        mask,
    );
    let like = |v: Val, of: Val| {
        let leading = b.slice(b.shape(of), 0, 0, -1);
        b.reshape(v, b.concat(&[leading, b.ints(&[-1])], 0))
    };
    let scores = b.concat(&[like(own, core.scores.into()), core.scores.into()], -1);

    let Some((mix, before)) = core.tail.split_last() else {
        return Err(refused("nothing lies between the scores and the mix", "").into());
    };
    let mut map = FxHashMap::from_iter([(core.scores, scores)]);
    copy(g, b, before, &mut map, &Val::Old);
    let probabilities = g.input(*mix, 0).and_then(|p| Some((p, *map.get(&p)?)));
    let Some((old, new)) = probabilities else {
        return Err(refused("the mix does not read the probabilities", "").into());
    };
    let cut = |from: Val, to: Val| b.op("Slice", &[new, from, to, b.ints(&[-1])], &[]);
    let mut now = FxHashMap::from_iter([(old, cut(length, b.ints(&[i64::MAX])))]);
    copy(g, b, std::slice::from_ref(mix), &mut now, &Val::Old);
    let Some(&now) = now.get(&core.output) else {
        return Err(refused("the mix has no output", "").into());
    };
    let before = grouped(cut(b.ints(&[0]), length), length);
    let before = like(b.matmul(before, values), now);
    let out = b.add(before, now);
    patch.redirect(core.output, out, Uses::All);
    cx.commit(patch)?;
    Ok(())
}

/// What happens to the scores of the past: the model's factors, and the mask.
fn scored(b: &Builder, scores: Val, steps: &[Step], dtype: DType, mask: ValueId) -> Val {
    let mut out = scores;
    let mut now = dtype;
    for step in steps {
        match *step {
            Step::Mul(v) => out = b.mul(out, v),
            Step::Div(v) => out = b.div(out, v),
            Step::Scale(x) => out = b.mul(out, b.scalar_of(x, now)),
            Step::Tanh => out = b.unary("Tanh", out),
            Step::Cast(to) => {
                if to != now {
                    out = b.cast(out, to);
                }
                now = to;
            }
            Step::Reshape | Step::Bias => {}
        }
    }
    if now == DType::Float {
        return b.add(out, mask);
    }
    // The sum is f32: the lowest number of that type is none of a narrower one.
    b.cast(b.add(b.cast(out, DType::Float), mask), now)
}

#[cfg(test)]
mod tests;
