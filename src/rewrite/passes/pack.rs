//! Packing: several examples in one row, with attention and positions of each kept apart.
//!
//! The graph gets the input `segment_ids: i64[batch, seq]`, which numbers the examples of a row, 0 for padding. Every self-attention
//! gets a mask that hides the positions of other segments, besides the masks that it has. Positions come from the input
//! `position_ids: i64[batch, seq]`, which the graph has already or gets in the place of what it counts itself: the row `0, 1, …`, or the
//! running sum of a mask. Biases by relative position need nothing: within a segment distances stay the same. Positions that cannot be
//! started again for each example are refused, never left as they are.
//!
//! Run it on the base model, before adapters are attached. Linear in the size of the graph.

use crate::analyze::through::Through;
use crate::analyze::view::{View, tensor};
use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::{DType, Dim, Fact, Graph, NodeId, Type, Use, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Patch, Uses};
use crate::select::Selection;
use rustc_hash::{FxHashMap, FxHashSet};

/// What is added to the score of a position of another segment. With another mask the sum may be infinite; a position sees its own
/// segment, so a row always has a finite score where it had one before.
const HIDDEN: f32 = f32::MIN / 2.0;

/// Keeps examples of one row apart.
#[derive(Clone, Debug)]
pub(crate) struct Pack {
    /// The sites, selected in the model that the pass runs on.
    pub selection: Selection,
}

fn refused(what: impl Into<String>) -> Diagnostic {
    Diagnostic::error("packing", what)
        .help("train without packing; `group_by_length` also saves padding")
}

impl Pass for Pack {
    fn name(&self) -> &'static str {
        "pack"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let before = cx.before();
        let g = &before.model().graph;
        let input = g.find(contract::INPUT_IDS).filter(|v| g.is_input(*v));
        if input.is_none() || g.find(contract::DECODER_INPUT_IDS).is_some() {
            return Err(
                refused("rows are packed in models that read one sequence of tokens").into(),
            );
        }
        if g.find(contract::SEGMENT_IDS).is_some() {
            return Err(refused(format!(
                "the graph has a value `{}` already",
                contract::SEGMENT_IDS
            ))
            .into());
        }
        let (cores, distances) = self.cores(cx, g)?;
        let positions = positions(cx, g, &distances)?;
        // The graph's own names of its axes: the mask is then known to fit the scores.
        let declared = input.and_then(|v| g.value(v).ty.as_ref()?.dims());
        let dims = declared
            .filter(|d| d.len() == 2)
            .map_or_else(|| vec![symbol("batch"), symbol("seq")], <[Dim]>::to_vec);
        let ty = Type::tensor(DType::Int64, dims);
        let mut patch = cx.patch("packing", None);
        patch.builder().set_scope("packing");
        let segments = patch
            .builder()
            .graph_input(contract::SEGMENT_IDS, ty.clone());
        if !positions.is_empty() {
            let ids = patch.builder().graph_input(contract::POSITION_IDS, ty);
            for Counted { value, from, uses } in positions {
                let fact = cx.fact(value).cloned().unwrap_or_default();
                let b = patch.builder();
                let others = match (line(&fact), fact.rank()) {
                    (Some(axis), Some(rank)) => (1..rank).filter(|i| *i != axis).collect(),
                    _ => Vec::new(),
                };
                let others: Vec<i64> = others.into_iter().map(|i| i as i64).collect();
                let own = if others.is_empty() {
                    ids
                } else {
                    b.unsqueeze(ids, &others)
                };
                let own = if from == 0 {
                    own
                } else {
                    b.add(own, b.int(from))
                };
                let own = match fact.dtype {
                    None | Some(DType::Int64) => own,
                    Some(ty) => b.cast(own, ty),
                };
                patch.redirect(value, own, Uses::Only(uses));
            }
        }
        separate(&mut patch, segments, &cores, cx);
        cx.commit(patch)?;
        Ok(())
    }
}

fn symbol(name: &str) -> Dim {
    Dim::Symbol(name.into())
}

/// Where a mask is added: a mask that the graph has, or the scores themselves; with the number of axes that the scores have.
struct Core {
    at: ValueId,
    rank: usize,
    heads: usize,
}

impl Pack {
    /// The cores, and the distances of positions that their biases are made of.
    fn cores(
        &self,
        cx: &PassCx<'_>,
        g: &Graph,
    ) -> Result<(Vec<Core>, FxHashSet<ValueId>), Diagnostic> {
        let mut distances = FxHashSet::default();
        let mut out: Vec<Core> = Vec::new();
        for layer in &self.selection.layers {
            let Some(site) = &layer.self_attn else {
                continue;
            };
            let core = site.core(View::new(g, cx)).map_err(|d| {
                refused(format!(
                    "the attention of layer {} cannot be kept apart: {}",
                    layer.index, d.message
                ))
                .at(layer.path.to_string())
            })?;
            distances.extend(core.bias.as_ref().map(|b| b.distance));
            let rank = cx.fact(core.scores).and_then(Fact::rank).unwrap_or(4);
            // A mask that several layers share gets the segments once.
            let additive = |v: &&ValueId| {
                let fact = cx.fact(**v);
                fact.and_then(|f| f.dtype) == Some(DType::Float)
                    && fact.and_then(Fact::rank) == Some(rank)
            };
            let at = core
                .masks
                .iter()
                .find(additive)
                .copied()
                .unwrap_or(core.scores);
            if out.iter().all(|c| c.at != at) {
                out.push(Core {
                    at,
                    rank,
                    heads: core.heads,
                });
            }
        }
        if out.is_empty() {
            return Err(refused(
                "the graph has no self-attention that the interface names",
            ));
        }
        Ok((out, distances))
    }
}

/// Adds the mask of segments at each core; it is computed once for each form.
fn separate(patch: &mut Patch, segments: Val, cores: &[Core], cx: &PassCx<'_>) {
    let mut made: FxHashMap<(usize, usize), Val> = FxHashMap::default();
    let bias = {
        let b = patch.builder();
        let rows = b.unsqueeze(segments, &[1, 3]);
        let columns = b.unsqueeze(segments, &[1, 2]);
        let same = b.op("Equal", &[rows, columns], &[]);
        b.op("Where", &[same, b.scalar(0.0), b.scalar(HIDDEN)], &[])
    };
    for core in cores {
        let flat = if core.rank == 3 { core.heads } else { 0 };
        let own = *made.entry((core.rank, flat)).or_insert_with(|| {
            let b = patch.builder();
            match core.rank {
                3 => {
                    // [batch · heads, queries, keys]
                    let heads = b.op(
                        "Expand",
                        &[bias, b.ints(&[1, core.heads as i64, 1, 1])],
                        &[],
                    );
                    let sizes = b.slice(b.shape(bias), 0, 2, 4);
                    b.reshape(heads, b.concat(&[b.ints(&[-1]), sizes], 0))
                }
                5 => b.unsqueeze(bias, &[1]),
                _ => bias,
            }
        });
        let dtype = cx
            .fact(core.at)
            .and_then(|f| f.dtype)
            .unwrap_or(DType::Float);
        let b = patch.builder();
        let own = if dtype == DType::Float {
            own
        } else {
            b.cast(own, dtype)
        };
        let sum = b.add(core.at, own);
        patch.redirect(core.at, sum, Uses::All);
    }
}

/// A value that counts positions.
struct Counted {
    value: ValueId,
    /// What the first position has.
    from: i64,
    /// Where the input is read instead.
    uses: Vec<Use>,
}

/// Which readers are to read the input `position_ids` instead of which value.
fn positions(
    cx: &PassCx<'_>,
    g: &Graph,
    distances: &FxHashSet<ValueId>,
) -> Result<Vec<Counted>, Diagnostic> {
    if g.find(contract::POSITION_IDS)
        .is_some_and(|v| g.is_input(v))
    {
        return Ok(Vec::new());
    }
    let mut search = Search {
        g,
        cx,
        distances,
        found: Vec::new(),
        seen: FxHashSet::default(),
        lost: Vec::new(),
    };
    for n in g.nodes() {
        let op = &g.node(n).op;
        let slot = match (&*op.domain, &*op.op_type) {
            ("", "Gather") if g.input(n, 0).is_some_and(|t| table(g, t)) => 1,
            ("", "Cos" | "Sin") => 0,
            ("", "RotaryEmbedding") => 3,
            ("com.microsoft", "RotaryEmbedding") => 1,
            _ => continue,
        };
        search.back(n, slot);
    }
    if let Some(name) = search.lost.first() {
        return Err(refused(format!(
            "the positions at `{name}` are not a row of numbers for each sequence, and cannot be started again for each example"
        )));
    }
    if search.found.is_empty() && distances.is_empty() {
        return Err(refused(
            "the positions of tokens were not found in the graph",
        ));
    }
    let mut out: Vec<Counted> = Vec::new();
    for (value, from, at) in search.found {
        match out.iter_mut().find(|c| c.value == value) {
            Some(c) if !c.uses.contains(&at) => c.uses.push(at),
            Some(_) => {}
            None => out.push(Counted {
                value,
                from,
                uses: vec![at],
            }),
        }
    }
    Ok(out)
}

/// The axis of the sequence of `[1, seq]`, `[1, 1, seq]`, `[1, seq, 1]`, …: the only one that is not of size 1, behind that of the batch.
fn line(fact: &Fact) -> Option<usize> {
    let dims = fact.dims.as_ref()?;
    let mut long = (0..dims.len()).filter(|i| !dims[*i].is(1));
    let axis = long.next().filter(|axis| *axis > 0)?;
    long.next().is_none().then_some(axis)
}

/// A table of vectors.
fn table(g: &Graph, v: ValueId) -> bool {
    tensor(g, v).is_some_and(|t| t.dtype.is_float() && t.dims.len() == 2)
}

/// Walks against the flow from what reads positions to where they are counted.
struct Search<'a> {
    g: &'a Graph,
    cx: &'a PassCx<'a>,
    /// Differences of positions, which packing does not change.
    distances: &'a FxHashSet<ValueId>,
    found: Vec<(ValueId, i64, Use)>,
    seen: FxHashSet<(NodeId, usize)>,
    lost: Vec<String>,
}

/// How positions are counted.
enum Count {
    /// `0, 1, 2, …` for all sequences.
    Row,
    /// `1, 2, 3, …` along each sequence: the running sum of what is 1 at its tokens.
    Sum,
}

impl Search<'_> {
    fn back(&mut self, node: NodeId, slot: usize) {
        let mut path = Vec::new();
        self.walk(node, slot, &mut path);
    }

    fn walk(&mut self, node: NodeId, slot: usize, path: &mut Vec<(NodeId, usize)>) {
        /// Operators of all whose inputs a position may come.
        const ALL: [&str; 6] = ["MatMul", "Mul", "Add", "Sub", "Concat", "Einsum"];
        if !self.seen.insert((node, slot)) {
            return;
        }
        let Some(value) = self.g.input(node, slot) else {
            return;
        };
        path.push((node, slot));
        match self.counts(value) {
            Some(Count::Row) => self.take(path),
            Some(Count::Sum) => self.found.push((value, 1, Use::Input(node, slot as u32))),
            None => {
                if let Some((n, _)) = self.g.producer(value) {
                    let op = &self.g.node(n).op;
                    if Through::LAID_OUT.or(Through::PART).takes(op) {
                        self.walk(n, 0, path);
                    } else if ALL.iter().any(|o| op.is_onnx(o)) {
                        for slot in 0..self.g.node_inputs(n).len() {
                            self.walk(n, slot, path);
                        }
                    } else if self.hides_positions(n) {
                        self.lost.push(self.g.node(n).name.to_string());
                    }
                }
            }
        }
        path.pop();
    }

    /// How a value counts positions, if it does.
    fn counts(&self, value: ValueId) -> Option<Count> {
        if let Some(t) = tensor(self.g, value) {
            let numbers = (t.dtype == DType::Int64 && t.count().is_some_and(|n| n > 1))
                .then(|| t.to_i64())
                .flatten()?;
            let row = numbers.iter().enumerate().all(|(i, x)| *x == i as i64);
            return row.then_some(Count::Row);
        }
        let (n, _) = self.g.producer(value)?;
        let node = self.g.node(n);
        let is =
            |slot: usize, wanted: i64| self.number(self.g.input(n, slot)?).map(|x| x == wanted);
        if node.op.is_onnx("Range") {
            // Another step is that of frequencies.
            return is(2, 1)?.then_some(Count::Row);
        }
        let forward = node.int("exclusive", 0) == 0 && node.int("reverse", 0) == 0;
        let along = is(1, 1) == Some(true) || is(1, -1) == Some(true);
        let fits = node.op.is_onnx("CumSum") && forward && along && self.rank(value) == Some(2);
        fits.then_some(Count::Sum)
    }

    fn number(&self, v: ValueId) -> Option<i64> {
        let fact = self.cx.fact(v)?;
        match fact.ints.as_deref() {
            Some([one]) => one.as_const(),
            _ => None,
        }
    }

    fn rank(&self, v: ValueId) -> Option<usize> {
        self.cx.fact(v).and_then(Fact::rank)
    }

    /// Whether positions come out of this node in a form that is not followed.
    fn hides_positions(&self, node: NodeId) -> bool {
        let mut seen = FxHashSet::from_iter([node]);
        let mut todo = vec![node];
        while let Some(n) = todo.pop() {
            if self.g.node(n).op.is_onnx("Shape") {
                continue;
            }
            for v in self.g.node_inputs(n).into_iter().flatten() {
                if self.distances.contains(&v) {
                    continue;
                }
                let fixed = || {
                    self.g
                        .node_outputs(n)
                        .into_iter()
                        .flatten()
                        .all(|v| self.fixed(v))
                };
                if self.counts(v).is_some() && !(self.fixed(v) && fixed()) {
                    return true;
                }
                let made = self.g.producer(v).map(|(n, _)| n);
                todo.extend(made.filter(|n| seen.insert(*n)));
            }
        }
        false
    }

    /// Whether a value has the same length for all sequences: it counts something else.
    fn fixed(&self, v: ValueId) -> bool {
        let dims = self.cx.fact(v).and_then(|f| f.dims.as_ref());
        dims.is_some_and(|d| d.iter().all(|d| d.as_const().is_some()))
    }

    /// The place on the path nearest to the count where the value is `[1, seq]`, or has more axes of size 1.
    fn take(&mut self, path: &[(NodeId, usize)]) {
        let row = |v: ValueId| self.cx.fact(v).is_some_and(|f| line(f).is_some());
        let is_count = |v: ValueId| tensor(self.g, v).is_some();
        let at = path.iter().rposition(|&(n, slot)| {
            // A buffer of all positions is longer than the sequence.
            self.g
                .input(n, slot)
                .is_some_and(|v| row(v) && !is_count(v))
        });
        // What lies between the count and that place moves numbers and leaves them as they are.
        let place = at.filter(|at| path[at + 1..].iter().all(|(n, slot)| self.keeps(*n, *slot)));
        let Some((node, slot)) = place.map(|at| path[at]) else {
            let name = path.last().map(|(n, _)| self.g.node(*n).name.to_string());
            self.lost.extend(name);
            return;
        };
        if let Some(value) = self.g.input(node, slot) {
            self.found.push((value, 0, Use::Input(node, slot as u32)));
        }
    }

    /// Whether a node's result has the numbers of this input.
    fn keeps(&self, node: NodeId, slot: usize) -> bool {
        let op = &self.g.node(node).op;
        let other = || self.number(self.g.input(node, 1 - slot.min(1))?);
        match &*op.op_type {
            "Add" => other() == Some(0),
            "Sub" => slot == 0 && other() == Some(0),
            "Mul" => other() == Some(1),
            "MatMul" | "Concat" | "Einsum" => false,
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests;
