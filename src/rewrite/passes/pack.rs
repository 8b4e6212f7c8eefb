//! Packing: several examples in one row, with attention and positions of each kept apart.
//!
//! The graph gets the input `segment_ids: i64[batch, seq]`, which numbers the examples of a row, 0 for padding. Every self-attention
//! gets a mask that hides the positions of other segments, besides the masks that it has. Positions come from the input
//! `position_ids: i64[batch, seq]`, which the graph has already or gets in the place of the row `0, 1, …` that it counts itself. Biases
//! by relative position need nothing: within a segment distances stay the same.
//!
//! Run it on the base model, before adapters are attached. Linear in the size of the graph.

use crate::adapters::attention::AttentionCore;
use crate::diag::Diagnostic;
use crate::ir::{DType, Dim, Graph, NodeId, Type, Use, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Patch, Uses};
use crate::select::Selection;
use rustc_hash::{FxHashMap, FxHashSet};

/// Name of the graph input that says which example each position belongs to.
pub const SEGMENTS: &str = "segment_ids";
/// Name of the graph input with the position of each token in its example.
pub const POSITIONS: &str = "position_ids";

/// What is added to the score of a position of another segment: half of the least `f32`, so that two masks do not overflow to a
/// difference of infinities.
const HIDDEN: f32 = f32::MIN / 2.0;

/// Keeps examples of one row apart.
#[derive(Clone, Debug)]
pub struct Pack {
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
        let input = g.find("input_ids").filter(|v| g.is_input(*v));
        if input.is_none() || g.find("decoder_input_ids").is_some() {
            return Err(
                refused("rows are packed in models that read one sequence of tokens").into(),
            );
        }
        if g.find(SEGMENTS).is_some() {
            return Err(refused(format!("the graph has a value `{SEGMENTS}` already")).into());
        }
        let positions = positions(cx, g)?;
        let cores = self.cores(cx, g)?;
        let dims = [symbol("batch"), symbol("seq")];
        let ty = Type::tensor(DType::Int64, dims);
        let mut patch = cx.patch("packing", None);
        patch.builder().set_scope("packing");
        let segments = patch.builder().graph_input(SEGMENTS, ty.clone());
        if !positions.is_empty() {
            let ids = patch.builder().graph_input(POSITIONS, ty);
            for (value, uses) in positions {
                let fact = cx.fact(value).cloned().unwrap_or_default();
                let b = patch.builder();
                let own = match fact.rank() {
                    Some(3) => b.unsqueeze(ids, &[1]),
                    _ => ids,
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
    fn cores(&self, cx: &PassCx<'_>, g: &Graph) -> Result<Vec<Core>, Diagnostic> {
        let facts = |v: ValueId| cx.fact(v).cloned();
        let mut out: Vec<Core> = Vec::new();
        for layer in &self.selection.layers {
            let Some(site) = &layer.self_attn else {
                continue;
            };
            let core = AttentionCore::find(site, g, &facts).map_err(|d| {
                refused(format!(
                    "the attention of layer {} cannot be kept apart: {}",
                    layer.index, d.message
                ))
                .at(layer.path.to_string())
            })?;
            let rank = cx
                .fact(core.scores)
                .and_then(crate::ir::Fact::rank)
                .unwrap_or(4);
            // A mask that several layers share gets the segments once.
            let additive = |v: &&ValueId| {
                let fact = cx.fact(**v);
                fact.and_then(|f| f.dtype) == Some(DType::Float)
                    && fact.and_then(crate::ir::Fact::rank) == Some(rank)
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
        Ok(out)
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

/// Which readers are to read the input `position_ids` instead of which value.
fn positions(cx: &PassCx<'_>, g: &Graph) -> Result<Vec<(ValueId, Vec<Use>)>, Diagnostic> {
    if g.find(POSITIONS).is_some_and(|v| g.is_input(v)) {
        return Ok(Vec::new());
    }
    let mut search = Search {
        g,
        cx,
        found: Vec::new(),
        seen: FxHashSet::default(),
        lost: Vec::new(),
    };
    for n in g.nodes() {
        let node = g.node(n);
        let reads = |slot: usize| g.input(n, slot);
        if node.op.is_onnx("Gather") && reads(0).is_some_and(|t| table(g, t)) {
            search.back(n, 1);
        } else if node.op.is_onnx("Cos") || node.op.is_onnx("Sin") {
            search.back(n, 0);
        }
    }
    if let Some(name) = search.lost.first() {
        return Err(refused(format!(
            "the positions at `{name}` are not a row of numbers for each sequence, and cannot be started again for each example"
        )));
    }
    let relative = g.nodes().any(|n| g.node(n).op.is_onnx("Log"));
    if search.found.is_empty() && !relative {
        return Err(refused(
            "the positions of tokens were not found in the graph",
        ));
    }
    let mut out: Vec<(ValueId, Vec<Use>)> = Vec::new();
    for (value, at) in search.found {
        match out.iter_mut().find(|(v, _)| *v == value) {
            Some((_, uses)) if !uses.contains(&at) => uses.push(at),
            Some(_) => {}
            None => out.push((value, vec![at])),
        }
    }
    Ok(out)
}

/// A table of vectors.
fn table(g: &Graph, v: ValueId) -> bool {
    let tensor = g.value(v).tensor.as_ref();
    tensor.is_some_and(|t| t.dtype.is_float() && t.dims.len() == 2)
}

/// Walks against the flow from what reads positions to where they are counted.
struct Search<'a> {
    g: &'a Graph,
    cx: &'a PassCx<'a>,
    found: Vec<(ValueId, Use)>,
    seen: FxHashSet<(NodeId, usize)>,
    lost: Vec<String>,
}

impl Search<'_> {
    fn back(&mut self, node: NodeId, slot: usize) {
        let mut path = Vec::new();
        self.walk(node, slot, &mut path);
    }

    fn walk(&mut self, node: NodeId, slot: usize, path: &mut Vec<(NodeId, usize)>) {
        if !self.seen.insert((node, slot)) {
            return;
        }
        let Some(value) = self.g.input(node, slot) else {
            return;
        };
        path.push((node, slot));
        if self.counts(value) {
            self.take(path);
        } else if let Some((n, _)) = self.g.producer(value) {
            let op = &self.g.node(n).op;
            let all = ["MatMul", "Mul", "Add", "Sub", "Concat", "Einsum"];
            // Only what moves or scales; sizes come from elsewhere.
            let one = [
                "Unsqueeze",
                "Squeeze",
                "Reshape",
                "Expand",
                "Slice",
                "Cast",
                "Identity",
                "Transpose",
            ];
            if one.iter().any(|o| op.is_onnx(o)) {
                self.walk(n, 0, path);
            } else if all.iter().any(|o| op.is_onnx(o)) {
                for slot in 0..self.g.node_inputs(n).len() {
                    self.walk(n, slot, path);
                }
            }
        }
        path.pop();
    }

    /// Whether a value is the row `0, 1, 2, …`.
    fn counts(&self, value: ValueId) -> bool {
        if let Some(t) = &self.g.value(value).tensor {
            let numbers = (t.dtype == DType::Int64 && t.count().is_some_and(|n| n > 1))
                .then(|| t.to_i64())
                .flatten();
            return numbers.is_some_and(|n| n.iter().enumerate().all(|(i, x)| *x == i as i64));
        }
        let made = self.g.producer(value).map(|(n, _)| n);
        made.is_some_and(|n| self.g.node(n).op.is_onnx("Range"))
    }

    /// The place on the path nearest to the count where the value is `[1, seq]` or `[1, 1, seq]`.
    fn take(&mut self, path: &[(NodeId, usize)]) {
        let row = |v: ValueId| {
            let fact = self.cx.fact(v);
            let dims = fact.and_then(|f| f.dims.as_ref());
            dims.is_some_and(|d| {
                matches!(d.len(), 2 | 3) && d[..d.len() - 1].iter().all(|s| s.is(1))
            })
        };
        let is_count = |v: ValueId| self.g.value(v).tensor.is_some();
        let at = path.iter().rev().find_map(|&(n, slot)| {
            let v = self.g.input(n, slot)?;
            // A buffer of all positions is longer than the sequence.
            (row(v) && !is_count(v)).then_some((v, n, slot))
        });
        let Some((value, node, slot)) = at else {
            let name = path.last().map(|(n, _)| self.g.node(*n).name.to_string());
            self.lost.extend(name);
            return;
        };
        self.found.push((value, Use::Input(node, slot as u32)));
    }
}
