//! The core of an attention module: `softmax(scores) · values`, found between the module's projections.
//!
//! Positions that an adapter adds to keys and values enter at two values only: their scores stand in front of the others right before
//! the softmax, behind every mask and bias, and their values stand in front of the others where the mix reads them. So no mask has
//! to grow whatever its form, and nothing that the graph computes from the keys' shape changes. What lies between the scores and the
//! mix is copied, and the copy of the mix takes the place of the mix, whose shape is the same: declared shapes stay true.
//!
//! A bias by relative position (T5) is computed again for the longer row of keys. As in the library, the added positions come first
//! and move the keys away from the queries.

use crate::diag::Diagnostic;
use crate::ir::contract::stamp;
use crate::ir::{Builder, DType, Fact, Graph, NodeId, Val, ValueId};
use crate::select::{AttentionSite, LinearSite, QkvLayout};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::hash_map::Entry;

/// What is known of any value.
pub type Facts<'a> = &'a dyn Fn(ValueId) -> Option<Fact>;

/// One call of an attention module.
#[derive(Clone, Debug)]
pub struct AttentionCore {
    /// What the softmax reads: `[…, queries, keys]`, masks and biases included.
    pub scores: ValueId,
    /// Left operand of the product that makes the scores: the queries, scaled as the graph does it, rotated where it does.
    pub queries: ValueId,
    /// Element type of the queries.
    pub dtype: Option<DType>,
    /// What happens to a score between that product and the softmax, in order, masks and biases apart.
    pub then: Vec<Step>,
    /// The keys, from the product's right operand against the flow to what the scores' factors do not belong to any more: each with
    /// the number of steps of [`then`](Self::then), from the first, that lie between it and the product. The last has all that are
    /// the keys' own.
    pub keys: Vec<(ValueId, usize)>,
    /// What the mix multiplies the probabilities with: `[…, keys, head]`.
    pub values: ValueId,
    /// Nodes from the scores to the mix, in order.
    pub tail: Vec<NodeId>,
    /// What the mix makes.
    pub output: ValueId,
    /// What else is added to the scores: masks.
    pub masks: Vec<ValueId>,
    /// The bias by relative position, where there is one.
    pub bias: Option<RelativeBias>,
    /// How heads lie in the queries.
    pub query_heads: HeadAxis,
    /// How heads lie in the values.
    pub value_heads: HeadAxis,
    /// Number of query heads.
    pub heads: usize,
    /// Number of heads of keys and values.
    pub kv_heads: usize,
    /// Width of a head.
    pub head: usize,
    /// What enters the module: the input of the query projection.
    pub input: ValueId,
    /// The query projection's output, whose leading axes the module's input should have.
    pub like: ValueId,
    /// Width of that input.
    pub width: usize,
}

/// What is added to scores by the distance of key and query.
#[derive(Clone, Debug)]
pub struct RelativeBias {
    /// What is added, perhaps with a mask: `[…, queries, keys]`.
    pub value: ValueId,
    /// Positions of keys minus positions of queries: `[queries, keys]`.
    pub distance: ValueId,
    /// Nodes from the distances to the bias, in order.
    pub nodes: Vec<NodeId>,
    /// Masks that are added on the way, with an axis of keys.
    pub masks: Vec<ValueId>,
    /// Nodes from the product of queries and keys to the scores, in order.
    pub chain: Vec<NodeId>,
}

/// What happens to a score.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Step {
    /// Multiplication with a value of one element.
    Mul(ValueId),
    /// Division by a value of one element.
    Div(ValueId),
    /// Multiplication with a number.
    Scale(f32),
    /// Soft capping.
    Tanh,
    /// Conversion.
    Cast(DType),
    /// The leading axes are put together or taken apart.
    Reshape,
    /// The bias by relative position is added.
    Bias,
}

/// The axes of an operand in front of its last two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadAxis {
    /// `[batch, heads]`.
    Query,
    /// `[batch, kv_heads]`, fewer than the queries'.
    Kv,
    /// `[batch, kv_heads, group]`, the group perhaps of size one.
    Grouped,
    /// `[batch · heads]`.
    Flat,
}

impl AttentionCore {
    /// Finds the core of an attention module.
    pub fn find(site: &AttentionSite, graph: &Graph, facts: Facts<'_>) -> Result<Self, Diagnostic> {
        let search = Search::new(site, graph, facts)?;
        let (softmax, scores) = search.softmax()?;
        let (mix, values) = search.mix(softmax)?;
        let Product {
            queries,
            keys,
            output: product,
            mut then,
            masks,
            bias,
        } = search.product(scores)?;
        let (mut steps, keys) = search.key_scales(keys);
        steps.append(&mut then);
        let output = graph
            .output(mix, 0)
            .ok_or_else(|| search.refused("the mix has no output".into()))?;
        let tail = search.between(scores, output);
        let bias = match bias {
            None => None,
            Some((value, distance)) => {
                let chain = search.between(product, scores);
                let changed = |n: &NodeId| graph.node(*n).op.is_onnx("Concat");
                if chain.iter().any(changed) {
                    return Err(search.refused(
                        "a prefix is attached already in front of a bias by relative position"
                            .into(),
                    ));
                }
                let nodes = search.between(distance, value);
                let masks = search.masks(&nodes, distance);
                Some(RelativeBias {
                    value,
                    distance,
                    nodes,
                    masks,
                    chain,
                })
            }
        };
        let lost = |what: &str| search.refused(format!("{what} cannot be told"));
        let head = (facts)(queries)
            .and_then(|f| f.size(-1))
            .or_else(|| (facts)(values)?.size(-1))
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n > 0)
            .ok_or_else(|| lost("the width of a head"))?;
        let [q, _, v] = widths(site).ok_or_else(|| lost("the width of the keys"))?;
        if q % head != 0 || v % head != 0 || v == 0 || q % v != 0 {
            return Err(search.refused(format!(
                "queries of width {q} and values of width {v} are not made of heads of width {head}"
            )));
        }
        let (heads, kv_heads) = (q / head, v / head);
        let axis = |value: ValueId| {
            let fact = (facts)(value);
            let rank = fact.as_ref().and_then(Fact::rank);
            let at = |axis: i64| fact.as_ref().and_then(|f| f.size(axis));
            match rank {
                Some(3) => Ok(HeadAxis::Flat),
                Some(5) => Ok(HeadAxis::Grouped),
                Some(4) | None => match at(-3) {
                    Some(n) if n == heads as i64 => Ok(HeadAxis::Query),
                    Some(n) if n == kv_heads as i64 => Ok(HeadAxis::Kv),
                    None => Ok(HeadAxis::Query),
                    Some(n) => Err(search.refused(format!(
                        "an operand has {n} heads; there are {heads} of queries and {kv_heads} of keys"
                    ))),
                },
                Some(n) => Err(search.refused(format!("an operand has {n} axes"))),
            }
        };
        let (query_heads, value_heads) = (axis(queries)?, axis(values)?);
        if query_heads == HeadAxis::Kv {
            return Err(search.refused("the queries are grouped by the keys' heads".into()));
        }
        let entry = search.entry;
        Ok(AttentionCore {
            scores,
            queries,
            dtype: (facts)(queries).and_then(|f| f.dtype),
            then: steps,
            keys,
            values,
            tail,
            output,
            masks,
            bias,
            query_heads,
            value_heads,
            heads,
            kv_heads,
            head,
            input: entry.input,
            like: entry.output,
            width: entry.d_in,
        })
    }
}

/// Widths of queries, keys and values.
fn widths(site: &AttentionSite) -> Option<[usize; 3]> {
    if let (Some(q), Some(k), Some(v)) = (&site.q, &site.k, &site.v) {
        return Some([q.d_out, k.d_out, v.d_out]);
    }
    let fused = site.qkv.as_ref()?;
    match site.qkv_layout {
        Some(QkvLayout::Blocks { q, k, v }) => Some([q, k, v]),
        Some(QkvLayout::Interleaved) | None => Some([fused.d_out / 3; 3]),
    }
}

/// The product of queries and keys.
struct Product {
    queries: ValueId,
    keys: ValueId,
    output: ValueId,
    then: Vec<Step>,
    /// What else is added.
    masks: Vec<ValueId>,
    /// What is added by relative position, and the distances.
    bias: Option<(ValueId, ValueId)>,
}

/// Copies nodes into a fragment. Values that `map` does not have are read as they are by now; it gets what the copies make.
pub(crate) fn copy(
    graph: &Graph,
    b: &Builder,
    nodes: &[NodeId],
    map: &mut FxHashMap<ValueId, Val>,
    now: &dyn Fn(ValueId) -> Val,
) {
    for &n in nodes {
        let find = |v| map.get(&v).copied().unwrap_or_else(|| now(v));
        let copies = b.copy_node(graph, n, find);
        map.extend(copies);
    }
}

struct Search<'a> {
    graph: &'a Graph,
    facts: Facts<'a>,
    path: &'a str,
    /// The projection that makes the queries.
    entry: &'a LinearSite,
    /// What leaves the attention: the output projection's input.
    end: ValueId,
    /// Outputs of the query projection.
    queries: FxHashSet<ValueId>,
    /// Outputs of the key projection.
    keys: FxHashSet<ValueId>,
    /// Where walks against the flow end.
    stops: FxHashSet<ValueId>,
}

impl<'a> Search<'a> {
    fn new(
        site: &'a AttentionSite,
        graph: &'a Graph,
        facts: Facts<'a>,
    ) -> Result<Self, Diagnostic> {
        let fused = site.qkv.as_ref();
        let projections = [&site.q, &site.k, &site.v].map(|p| p.as_ref().or(fused));
        let [Some(q), Some(k), Some(v)] = projections else {
            return Err(Diagnostic::error(
                "attention-projections",
                "the projections of keys and values are not known",
            )
            .at(site.path.to_string())
            .help(
                "name attn_q_proj, attn_k_proj and attn_v_proj, or attn_qkv_proj, in the interface",
            ));
        };
        let ends = |site: &LinearSite| FxHashSet::from_iter([site.output, site.rows.1]);
        let (queries, keys) = (ends(q), ends(k));
        let mut stops: FxHashSet<ValueId> = queries.iter().chain(&keys).copied().collect();
        stops.extend(ends(v));
        stops.insert(q.input);
        Ok(Search {
            graph,
            facts,
            path: &site.path,
            entry: q,
            end: site.o.as_ref().map_or(site.output, |o| o.input),
            queries,
            keys,
            stops,
        })
    }

    fn refused(&self, why: String) -> Diagnostic {
        Diagnostic::error("attention-core", why)
            .at(self.path.to_string())
            .help("prefixes need the attention as a softmax between two products: export the model with eager or SDPA attention")
    }

    /// Nodes between the projections and a value, against the flow, each once.
    fn behind(&self, from: ValueId, mut see: impl FnMut(NodeId) -> bool) {
        let mut seen = FxHashSet::default();
        let mut todo = vec![from];
        while let Some(v) = todo.pop() {
            if v != from && self.stops.contains(&v) {
                continue;
            }
            let Some((n, _)) = self.graph.producer(v) else {
                continue;
            };
            if !seen.insert(n) {
                continue;
            }
            if see(n) {
                todo.extend(self.graph.node_inputs(n).into_iter().flatten());
            }
        }
    }

    /// Whether a value is computed from the outputs of a projection, inside the module.
    fn reaches(&self, from: ValueId, goal: &FxHashSet<ValueId>) -> bool {
        if goal.contains(&from) {
            return true;
        }
        let mut found = false;
        self.behind(from, |n| {
            // A shape is no use of the numbers.
            if self.graph.node(n).op.is_onnx("Shape") {
                return false;
            }
            let mut inputs = self.graph.node_inputs(n).into_iter().flatten();
            found |= inputs.any(|v| goal.contains(&v));
            !found
        });
        found
    }

    /// The softmax, and what it reads.
    fn softmax(&self) -> Result<(NodeId, ValueId), Diagnostic> {
        let mut found = Vec::new();
        self.behind(self.end, |n| {
            if self.graph.node(n).op.is_onnx("Softmax") {
                found.push(n);
                return false;
            }
            true
        });
        let reads = |n: &NodeId| self.graph.input(*n, 0).map(|v| (*n, v));
        let both = |(_, v): &(NodeId, ValueId)| {
            self.reaches(*v, &self.queries) && self.reaches(*v, &self.keys)
        };
        let mut all = found.iter().filter_map(reads).filter(both);
        match (all.next(), all.next()) {
            (Some(one), None) => Ok(one),
            (Some(_), Some(_)) => Err(self.refused("there is more than one softmax".into())),
            (None, _) => Err(self.refused("there is no softmax over the scores".into())),
        }
    }

    /// The product of probabilities and values.
    fn mix(&self, softmax: NodeId) -> Result<(NodeId, ValueId), Diagnostic> {
        let mut todo: Vec<ValueId> = self.graph.output(softmax, 0).into_iter().collect();
        let mut seen = FxHashSet::default();
        while let Some(v) = todo.pop() {
            for u in self.graph.uses(v) {
                let n = u.node();
                if !seen.insert(n) {
                    continue;
                }
                let node = self.graph.node(n);
                if is_product(&node.op) {
                    if self.graph.input(n, 0) == Some(v)
                        && let Some(values) = self.graph.input(n, 1)
                    {
                        return Ok((n, values));
                    }
                    return Err(self.refused("the values are the left operand of the mix".into()));
                }
                let passes = [
                    "Cast", "Identity", "Dropout", "Where", "Reshape", "Mul", "Slice",
                ];
                if passes.iter().any(|op| node.op.is_onnx(op)) {
                    todo.extend(self.graph.output(n, 0));
                }
            }
        }
        Err(self.refused("nothing multiplies the probabilities with the values".into()))
    }

    /// From the softmax against the flow to the product of queries and keys: its operands, and what happens to a score behind it.
    fn product(&self, scores: ValueId) -> Result<Product, Diagnostic> {
        let g = self.graph;
        let mut bias = None;
        let mut masks = Vec::new();
        let mut steps = Vec::new();
        let mut at = scores;
        // A path is no longer than the graph.
        for _ in 0..g.node_count() {
            let Some((n, _)) = g.producer(at) else { break };
            let node = g.node(n);
            let first = g.input(n, 0);
            if is_product(&node.op) {
                let (Some(q), Some(k)) = (first, g.input(n, 1)) else {
                    break;
                };
                if !self.reaches(q, &self.queries) || !self.reaches(k, &self.keys) {
                    break;
                }
                if let Some(alpha) = node.attrs.get("alpha").and_then(|a| a.value.as_float())
                    && alpha.to_bits() != 1f32.to_bits()
                {
                    steps.push(Step::Scale(alpha));
                }
                if node
                    .attrs
                    .get("transA")
                    .and_then(|a| a.value.as_int())
                    .unwrap_or(0)
                    != 0
                {
                    return Err(self.refused("the queries are transposed in the product".into()));
                }
                steps.reverse();
                return Ok(Product {
                    queries: q,
                    keys: k,
                    output: at,
                    then: steps,
                    masks,
                    bias,
                });
            }
            if let Some(old) = self.replaced(n) {
                at = old;
                continue;
            }
            let next = match (&*node.op.domain, &*node.op.op_type) {
                ("", "Identity" | "Dropout") => first,
                ("", "Cast") => {
                    let to = node.attrs.get("to").and_then(|a| a.value.as_int());
                    let to = to.and_then(|t| DType::from_code(i32::try_from(t).ok()?));
                    steps.extend(to.map(Step::Cast));
                    first
                }
                ("", "Tanh") => {
                    steps.push(Step::Tanh);
                    first
                }
                ("", "Reshape" | "Unsqueeze" | "Squeeze") => {
                    steps.push(Step::Reshape);
                    first
                }
                ("", "Mul" | "Div") => match self.scaling(n) {
                    Some((step, x)) => {
                        steps.push(step);
                        Some(x)
                    }
                    None => break,
                },
                ("", "Sub") => first.filter(|v| self.reaches(*v, &self.keys)),
                ("", "Add" | "Where" | "Max" | "Min" | "Concat") => {
                    let inputs: Vec<ValueId> = g.node_inputs(n).into_iter().flatten().collect();
                    // Scores of a prefix stand in front; where queries and keys are one product, they are made of it, too.
                    let found =
                        inputs.iter().rev().copied().find(|v| {
                            self.reaches(*v, &self.queries) && self.reaches(*v, &self.keys)
                        });
                    let others = inputs.iter().filter(|v| Some(**v) != found);
                    for &other in others.filter(|_| node.op.is_onnx("Add")) {
                        if let Some(distance) = self.distances(other) {
                            if bias.replace((other, distance)).is_some() {
                                return Err(self
                                    .refused("two biases by relative position are added".into()));
                            }
                            steps.push(Step::Bias);
                        } else {
                            masks.push(other);
                        }
                    }
                    found
                }
                _ => break,
            };
            let Some(next) = next else { break };
            at = next;
        }
        let name = g.producer(at).map(|(n, _)| g.node(n).op.to_string());
        Err(self.refused(format!(
            "the scores are made by {}, not by a product of queries and keys",
            name.unwrap_or_else(|| "nothing".into())
        )))
    }

    /// The distances of keys and queries that a bias is looked up by: `[1, keys] - [queries, 1]`, in front of a table.
    fn distances(&self, bias: ValueId) -> Option<ValueId> {
        let mut found = None;
        let mut looked_up = false;
        let ints = [DType::Int64, DType::Int32];
        self.behind(bias, |n| {
            let node = self.graph.node(n);
            if node.op.is_onnx("Shape") {
                return false;
            }
            if node.op.is_onnx("Gather") {
                let table = self.graph.input(n, 0).and_then(self.facts);
                looked_up |= table.is_some_and(|t| t.dtype.is_some_and(DType::is_float));
            }
            let operands = [0, 1].map(|slot| self.graph.input(n, slot).and_then(self.facts));
            if let ("Sub", [Some(a), Some(b)]) = (&*node.op.op_type, operands)
                && a.dtype.is_some_and(|d| ints.contains(&d))
                && (a.rank(), b.rank()) == (Some(2), Some(2))
                && (a.size(0), b.size(1)) == (Some(1), Some(1))
            {
                found = self.graph.output(n, 0);
                return false;
            }
            true
        });
        found.filter(|_| looked_up)
    }

    /// What nodes behind the distances add to what depends on them, where it has an axis of keys.
    fn masks(&self, nodes: &[NodeId], distance: ValueId) -> Vec<ValueId> {
        let made = |v: ValueId| {
            v == distance
                || self
                    .graph
                    .producer(v)
                    .is_some_and(|(n, _)| nodes.contains(&n))
        };
        let row = |v: ValueId| {
            let dims = (self.facts)(v).and_then(|f| f.dims);
            dims.is_none_or(|d| d.len() >= 2 && !d.last().is_some_and(|n| n.is(1)))
        };
        let adds = nodes
            .iter()
            .filter(|n| self.graph.node(**n).op.is_onnx("Add"));
        let inputs = adds.flat_map(|n| self.graph.node_inputs(*n)).flatten();
        inputs.filter(|v| !made(*v) && row(*v)).collect()
    }

    /// Nodes on the way from one value to another, in order.
    fn between(&self, start: ValueId, end: ValueId) -> Vec<NodeId> {
        let mut on_way: FxHashMap<NodeId, bool> = FxHashMap::default();
        let mut out = Vec::new();
        let mut todo: Vec<(ValueId, bool)> = vec![(end, false)];
        while let Some((v, done)) = todo.pop() {
            if v == start || self.stops.contains(&v) {
                continue;
            }
            let Some((n, _)) = self.graph.producer(v) else {
                continue;
            };
            let inputs = || self.graph.node_inputs(n).into_iter().flatten();
            if done {
                let through = |i: ValueId| {
                    let made = self.graph.producer(i);
                    i == start || made.is_some_and(|(m, _)| on_way.get(&m) == Some(&true))
                };
                if inputs().any(through) && on_way.insert(n, true) != Some(true) {
                    out.push(n);
                }
            } else if let Entry::Vacant(entry) = on_way.entry(n) {
                entry.insert(false);
                todo.push((v, true));
                todo.extend(inputs().map(|i| (i, false)));
            }
        }
        out
    }

    /// Factors on the keys behind their rotation: half of the scale, in some exports. And the values on the way.
    fn key_scales(&self, keys: ValueId) -> (Vec<Step>, Vec<(ValueId, usize)>) {
        let mut steps = Vec::new();
        let mut way = vec![(keys, 0)];
        let mut at = keys;
        while !self.keys.contains(&at) {
            let Some((n, _)) = self.graph.producer(at) else {
                break;
            };
            let node = self.graph.node(n);
            let next = match (&*node.op.domain, &*node.op.op_type) {
                (
                    "",
                    "Identity" | "Transpose" | "Reshape" | "Unsqueeze" | "Squeeze" | "Expand"
                    | "Cast",
                ) => self.graph.input(n, 0),
                ("", "Mul" | "Div") => self.scaling(n).map(|(step, x)| {
                    steps.push(step);
                    x
                }),
                _ => None,
            };
            let Some(next) = next else { break };
            at = next;
            way.push((at, steps.len()));
        }
        (steps, way)
    }

    /// A multiplication with, or division by, a value of one element: the step, and what is scaled.
    fn scaling(&self, n: NodeId) -> Option<(Step, ValueId)> {
        let (a, b) = (self.graph.input(n, 0)?, self.graph.input(n, 1)?);
        let single = |v: ValueId| {
            let fact = (self.facts)(v);
            fact.and_then(|f| f.dims)
                .is_some_and(|dims| dims.iter().all(|d| d.is(1)))
        };
        if self.graph.node(n).op.is_onnx("Div") {
            return single(b).then_some((Step::Div(b), a));
        }
        if single(b) {
            return Some((Step::Mul(b), a));
        }
        single(a).then_some((Step::Mul(a), b))
    }

    /// What an adapter's node stands for.
    fn replaced(&self, n: NodeId) -> Option<ValueId> {
        let name = self.graph.node(n).metadata.get(stamp::REPLACES)?;
        self.graph.find(name)
    }
}

fn is_product(op: &crate::ir::OpId) -> bool {
    op.is_onnx("MatMul") || (&*op.domain, &*op.op_type) == ("com.microsoft", "FusedMatMul")
}
