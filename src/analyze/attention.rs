//! The core of an attention module: `softmax(scores) · values`, found between the module's projections.
//!
//! Positions that an adapter adds to keys and values enter at two values only: their scores stand in front of the others right before
//! the softmax, behind every mask and bias, and their values stand in front of the others where the mix reads them. So no mask has
//! to grow whatever its form, and nothing that the graph computes from the keys' shape changes. What lies between the scores and the
//! mix is copied, and the copy of the mix takes the place of the mix, whose shape is the same: declared shapes stay true.
//!
//! A bias by relative position (T5) is computed again for the longer row of keys. As in the library, the added positions come first
//! and move the keys away from the queries.

use super::softmax::{Bounds, Broken, Heart, Link};
use super::through::Through;
use super::view::View;
use crate::diag::Diagnostic;
use crate::ir::{Builder, DType, Fact, Graph, NodeId, TensorData, Val, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::hash_map::Entry;

/// The values between which an attention core lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends<'a> {
    /// Path of the module, for messages.
    pub(crate) path: &'a str,
    /// What the query projection reads.
    pub(crate) input: ValueId,
    /// Width of that.
    pub(crate) d_in: usize,
    /// What the projections of queries, keys and values make: as the module's output, and as rows.
    pub(crate) projected: [[ValueId; 2]; 3],
    /// Widths of queries, keys and values.
    pub(crate) widths: Widths,
    /// What leaves the core: the input of the output projection.
    pub(crate) end: ValueId,
}

/// Widths of queries, keys and values.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Widths {
    /// As they are projected.
    Known([usize; 3]),
    /// Of a fused projection `all` wide whose columns are mixed. Falcon hands every query head its own copy of the keys from there on.
    Mixed {
        /// As the columns tell them.
        told: Option<[usize; 3]>,
        /// All together.
        all: usize,
    },
}

/// One call of an attention module.
#[derive(Clone, Debug)]
pub struct AttentionCore {
    /// What the softmax reads: `[…, queries, keys]`, masks and biases included.
    pub(crate) scores: ValueId,
    /// Left operand of the product that makes the scores: the queries, scaled as the graph does it, rotated where it does.
    pub(crate) queries: ValueId,
    /// Element type of the queries.
    pub(crate) dtype: Option<DType>,
    /// What happens to a score between that product and the softmax, in order, masks and biases apart.
    pub(crate) then: Vec<Step>,
    /// The keys, from the product's right operand against the flow to what the scores' factors do not belong to any more: each with
    /// the number of steps of [`then`](Self::then), from the first, that lie between it and the product. The last has all that are
    /// the keys' own.
    pub(crate) keys: Vec<(ValueId, usize)>,
    /// What the mix multiplies the probabilities with: `[…, keys, head]`.
    pub(crate) values: ValueId,
    /// Nodes from the scores to the mix, in order.
    pub(crate) tail: Vec<NodeId>,
    /// What the mix makes.
    pub(crate) output: ValueId,
    /// What else is added to the scores: masks.
    pub(crate) masks: Vec<ValueId>,
    /// Conditions under which a score is replaced by a constant: masks that say what is hidden.
    pub(crate) hidden: Vec<ValueId>,
    /// Conditions under which a score stays, and is replaced by a constant elsewhere.
    pub(crate) shown: Vec<ValueId>,
    /// The bias by relative position, where there is one.
    pub(crate) bias: Option<RelativeBias>,
    /// How heads lie in the queries.
    pub(crate) query_heads: HeadAxis,
    /// How heads lie in the values.
    pub(crate) value_heads: HeadAxis,
    /// Number of query heads.
    pub(crate) heads: usize,
    /// Number of heads of keys and values.
    pub(crate) kv_heads: usize,
    /// Width of a head.
    pub(crate) head: usize,
    /// What enters the module: the input of the query projection.
    pub(crate) input: ValueId,
    /// The query projection's output, whose leading axes the module's input should have.
    pub(crate) like: ValueId,
    /// Width of that input.
    pub(crate) width: usize,
}

/// What is added to scores by the distance of key and query.
#[derive(Clone, Debug)]
pub(crate) struct RelativeBias {
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
pub(crate) enum Step {
    /// Multiplication with a value that has one element for all keys.
    Mul(ValueId),
    /// Division by such a value.
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
pub(crate) enum HeadAxis {
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
    /// Finds the core that lies between the projections of an attention module.
    ///
    /// # Errors
    /// What the graph has in its place.
    pub(crate) fn find(view: View<'_>, ends: &Ends<'_>) -> Result<Self, Diagnostic> {
        let graph = view.graph;
        let search = Search::new(view, ends);
        let heart = search.heart()?;
        let (scores, values, mix) = (heart.scores, heart.values, heart.mix);
        let Product {
            queries,
            keys,
            output: product,
            mut then,
            masks,
            hidden,
            shown,
            bias,
        } = search.product(&heart)?;
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
        let head = view
            .size(queries, -1)
            .or_else(|| view.size(values, -1))
            .and_then(|n| usize::try_from(n).ok())
            .filter(|n| *n > 0)
            .ok_or_else(|| lost("the width of a head"))?;
        if let Some(own) = view.size(values, -1).filter(|n| *n != head as i64) {
            return Err(search.refused(format!(
                "a head's queries and keys are {head} wide and its values {own}: a prefix has one width for both"
            )));
        }
        // Heads that the operands show count where it is not known which columns of a fused projection are whose.
        let wide = |v: ValueId| {
            let rank = view.fact(v).and_then(Fact::rank);
            let heads = view.size(v, -3).filter(|_| rank == Some(4))?;
            usize::try_from(heads).ok().map(|n| n * head)
        };
        let [q, v] = match ends.widths {
            // The projection of queries may hold more than them: a gate, as in Qwen3-Next.
            Widths::Known([q, _, v]) => match wide(queries) {
                Some(own) if own < q => [own, v],
                _ => [q, v],
            },
            Widths::Mixed { told, all } => match (wide(queries), wide(values), told) {
                (Some(q), Some(v), _) | (_, _, Some([q, _, v])) => [q, v],
                _ if all % (3 * head) == 0 => [all / 3; 2],
                _ => {
                    return Err(lost(
                        "which columns of the fused projection are queries, keys and values",
                    ));
                }
            },
        };
        if q % head != 0 || v % head != 0 || v == 0 || q % v != 0 {
            return Err(search.refused(format!(
                "queries of width {q} and values of width {v} are not made of heads of width {head}"
            )));
        }
        let (heads, kv_heads) = (q / head, v / head);
        let axis = |value: ValueId| {
            let fact = view.fact(value);
            let rank = fact.and_then(Fact::rank);
            let at = |axis: i64| fact.and_then(|f| f.size(axis));
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
        if query_heads == HeadAxis::Flat && steps.iter().any(|s| search.by_row(s)) {
            return Err(search.strange(product));
        }
        Ok(AttentionCore {
            scores,
            queries,
            dtype: view.dtype(queries),
            then: steps,
            keys,
            values,
            tail,
            output,
            masks,
            hidden,
            shown,
            bias,
            query_heads,
            value_heads,
            heads,
            kv_heads,
            head,
            input: ends.input,
            like: ends.projected[0][0],
            width: ends.d_in,
        })
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
    /// Conditions that put a constant in place of a score.
    hidden: Vec<ValueId>,
    /// Conditions under which a score stays.
    shown: Vec<ValueId>,
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
    view: View<'a>,
    path: &'a str,
    /// What leaves the attention.
    end: ValueId,
    /// Outputs of the query projection.
    queries: [ValueId; 2],
    /// Outputs of the key projection.
    keys: [ValueId; 2],
    /// Where walks against the flow end.
    stops: FxHashSet<ValueId>,
}

impl<'a> Search<'a> {
    fn new(view: View<'a>, ends: &Ends<'a>) -> Self {
        let mut stops: FxHashSet<ValueId> = ends.projected.into_iter().flatten().collect();
        // However it is laid out for the projections.
        stops.extend(Through::LAID_OUT.up(view.graph, ends.input));
        Search {
            view,
            path: ends.path,
            end: ends.end,
            queries: ends.projected[0],
            keys: ends.projected[1],
            stops,
        }
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
            let Some((n, _)) = self.view.graph.producer(v) else {
                continue;
            };
            if !seen.insert(n) {
                continue;
            }
            if see(n) {
                todo.extend(self.view.graph.node_inputs(n).into_iter().flatten());
            }
        }
    }

    /// Whether a value is computed from the outputs of a projection, inside the module.
    fn reaches(&self, from: ValueId, goal: &[ValueId]) -> bool {
        if goal.contains(&from) {
            return true;
        }
        let mut found = false;
        self.behind(from, |n| {
            // A shape is no use of the numbers.
            if self.view.graph.node(n).op.is_onnx("Shape") {
                return false;
            }
            let mut inputs = self.view.graph.node_inputs(n).into_iter().flatten();
            found |= inputs.any(|v| goal.contains(&v));
            !found
        });
        found
    }

    /// Whether a value is computed from both queries and keys.
    fn scores(&self, v: ValueId) -> bool {
        self.reaches(v, &self.queries) && self.reaches(v, &self.keys)
    }

    /// The softmax of the scores, with its products.
    fn heart(&self) -> Result<Heart, Diagnostic> {
        let mut found = Vec::new();
        self.behind(self.end, |n| {
            if self.view.is(n, "Softmax") {
                found.push(n);
                return false;
            }
            true
        });
        found.retain(|n| self.view.input(*n, 0).is_some_and(|v| self.scores(v)));
        let softmax = match found[..] {
            [one] => one,
            [] => return Err(self.refused("there is no softmax over the scores".into())),
            _ => return Err(self.refused("there is more than one softmax".into())),
        };
        let bounds = Bounds {
            product: &|n, q, k| {
                !self.view.is(n, "Einsum")
                    && self.reaches(q, &self.queries)
                    && self.reaches(k, &self.keys)
            },
            inside: &|v| !self.stops.contains(&v),
        };
        let unmixed =
            || self.refused("nothing multiplies the probabilities with the values".into());
        let heart = Heart::around(&self.view, softmax, &bounds).map_err(|b| match b {
            Broken::Product(v) => self.strange(v),
            Broken::Mix => unmixed(),
        })?;
        if self.view.is(heart.mix, "Einsum") {
            return Err(unmixed());
        }
        if self.view.input(heart.mix, 0) != Some(heart.probabilities) {
            return Err(self.refused("the values are the left operand of the mix".into()));
        }
        Ok(heart)
    }

    /// The refusal of scores that something unknown makes.
    fn strange(&self, v: ValueId) -> Diagnostic {
        let name = self
            .view
            .producer(v)
            .map(|n| self.view.node(n).op.to_string());
        self.refused(format!(
            "the scores are made by {}, not by a product of queries and keys",
            name.unwrap_or_else(|| "nothing".into())
        ))
    }

    /// The product of queries and keys, and what happens to a score behind it.
    fn product(&self, heart: &Heart) -> Result<Product, Diagnostic> {
        let node = self.view.node(heart.product);
        if node.int("transA", 0) != 0 {
            return Err(self.refused("the queries are transposed in the product".into()));
        }
        let mut out = Product {
            queries: heart.queries,
            keys: heart.keys,
            output: self
                .view
                .out(heart.product)
                .ok_or_else(|| self.strange(heart.scores))?,
            then: Vec::new(),
            masks: Vec::new(),
            hidden: Vec::new(),
            shown: Vec::new(),
            bias: None,
        };
        for link in &heart.links {
            self.step(link, &mut out)?;
        }
        let alpha = node.float("alpha", 1.0);
        if alpha.to_bits() != 1f32.to_bits() {
            out.then.push(Step::Scale(alpha));
        }
        out.then.reverse();
        // A factor for each row belongs to the axes that the scores have where it stands.
        let reshaped = out.then.iter().position(|s| *s == Step::Reshape);
        let moved = &out.then[reshaped.unwrap_or(out.then.len())..];
        if moved.iter().any(|s| self.by_row(s)) {
            return Err(self.strange(heart.scores));
        }
        Ok(out)
    }

    /// Whether a step has a factor for each row of the scores.
    fn by_row(&self, step: &Step) -> bool {
        matches!(step, Step::Mul(v) | Step::Div(v) if !self.view.is_single(*v))
    }

    /// Whether a factor is 1 for scores that stay and 0 for those that go: a condition as numbers, or part of a stored mask.
    fn shows(&self, factor: ValueId) -> bool {
        let passes = Through::LAID_OUT.or(Through::PART).or(Through::PICK);
        let binary = |t: &TensorData| {
            // 1, or the one code that a quantizer made of it.
            let floats = t.to_f32();
            let one = floats.is_some().then_some(1f32);
            let codes = || Some(t.to_i64()?.into_iter().map(|x| x as f32).collect());
            let values: Vec<f32> = floats.or_else(codes).unwrap_or_default();
            let mut shown = values.iter().filter(|x| x.abs() > 0.0);
            let first = one.or(shown.clone().next().copied());
            let same = |x: &f32| Some(x.to_bits()) == first.map(f32::to_bits);
            values.len() > 1 && shown.all(same)
        };
        let known = |v: ValueId| {
            let truth = self.view.dtype(v) == Some(DType::Bool);
            truth || self.view.constant(v).is_some_and(binary)
        };
        passes.up(self.view.graph, factor).any(known)
    }

    /// What one operator does to a score.
    fn step(&self, link: &Link, out: &mut Product) -> Result<(), Diagnostic> {
        let view = &self.view;
        let n = link.node;
        let strange = || {
            Err(view
                .out(n)
                .map_or_else(|| self.strange(link.from), |v| self.strange(v)))
        };
        let node = view.node(n);
        if !node.op.domain.is_empty() {
            return strange();
        }
        match &*node.op.op_type {
            op @ ("Identity" | "Dropout" | "QuantizeLinear" | "DequantizeLinear" | "Sub")
                if op != "Sub" || view.input(n, 0) == Some(link.from) => {}
            "Cast" => {
                let to = i32::try_from(node.int("to", 0)).ok();
                out.then
                    .extend(to.and_then(DType::from_code).map(Step::Cast));
            }
            "Tanh" => out.then.push(Step::Tanh),
            "Reshape" | "Unsqueeze" | "Squeeze" => out.then.push(Step::Reshape),
            op @ ("Mul" | "Div") => match self.scaling(n) {
                Some((step, x)) if x == link.from => out.then.push(step),
                Some(_) => return strange(),
                None => {
                    let inputs = view.inputs(n).into_iter().flatten();
                    let others: Vec<ValueId> = inputs.filter(|v| *v != link.from).collect();
                    match others[..] {
                        [v] if op == "Mul" && self.shows(v) => out.shown.push(v),
                        [v] if op == "Mul" && view.size(v, -1) == Some(1) => {
                            out.then.push(Step::Mul(v));
                        }
                        _ => return strange(),
                    }
                }
            },
            "Add" => {
                let inputs = view.inputs(n).into_iter().flatten();
                for other in inputs.filter(|v| *v != link.from) {
                    if let Some(distance) = self.distances(other) {
                        if out.bias.replace((other, distance)).is_some() {
                            return Err(
                                self.refused("two biases by relative position are added".into())
                            );
                        }
                        out.then.push(Step::Bias);
                    } else {
                        out.masks.push(other);
                    }
                }
            }
            "Where" => {
                let constant = |v: ValueId| view.constant(v).is_some();
                let replaced = view.input(n, 1).is_some_and(constant);
                if replaced && view.input(n, 2) == Some(link.from) {
                    out.hidden.extend(view.input(n, 0));
                } else {
                    out.shown.extend(view.input(n, 0));
                }
            }
            "Max" | "Min" | "Concat" => {}
            _ => return strange(),
        }
        Ok(())
    }

    /// The distances of keys and queries that a bias is looked up by: `[1, keys] - [queries, 1]`, in front of a table.
    fn distances(&self, bias: ValueId) -> Option<ValueId> {
        let mut found = None;
        let mut looked_up = false;
        let ints = [DType::Int64, DType::Int32];
        self.behind(bias, |n| {
            let node = self.view.graph.node(n);
            if node.op.is_onnx("Shape") {
                return false;
            }
            if node.op.is_onnx("Gather") {
                let table = self.view.input(n, 0).and_then(|t| self.view.fact(t));
                looked_up |= table.is_some_and(|t| t.dtype.is_some_and(DType::is_float));
            }
            let operands = [0, 1].map(|slot| self.view.fact(self.view.input(n, slot)?));
            if let ("Sub", [Some(a), Some(b)]) = (&*node.op.op_type, operands)
                && a.dtype.is_some_and(|d| ints.contains(&d))
                && (a.rank(), b.rank()) == (Some(2), Some(2))
                && (a.size(0), b.size(1)) == (Some(1), Some(1))
            {
                found = self.view.graph.output(n, 0);
                return false;
            }
            true
        });
        found.filter(|_| looked_up)
    }

    /// What nodes behind the distances add to what depends on them, where it has an axis of keys.
    fn masks(&self, nodes: &[NodeId], distance: ValueId) -> Vec<ValueId> {
        let made =
            |v: ValueId| v == distance || self.view.producer(v).is_some_and(|n| nodes.contains(&n));
        let row = |v: ValueId| {
            let dims = self.view.dims(v);
            dims.is_none_or(|d| d.len() >= 2 && !d.last().is_some_and(|n| n.is(1)))
        };
        let adds = nodes
            .iter()
            .filter(|n| self.view.graph.node(**n).op.is_onnx("Add"));
        let inputs = adds.flat_map(|n| self.view.graph.node_inputs(*n)).flatten();
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
            let Some((n, _)) = self.view.graph.producer(v) else {
                continue;
            };
            let inputs = || self.view.graph.node_inputs(n).into_iter().flatten();
            if done {
                let through = |i: ValueId| {
                    let made = self.view.graph.producer(i);
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
            let Some(n) = self.view.producer(at) else {
                break;
            };
            let node = self.view.node(n);
            let next = if node.op.is_onnx("Mul") || node.op.is_onnx("Div") {
                self.scaling(n).map(|(step, x)| {
                    steps.push(step);
                    x
                })
            } else {
                Through::LAID_OUT.before(self.view.graph, at)
            };
            let Some(next) = next else { break };
            at = next;
            way.push((at, steps.len()));
        }
        (steps, way)
    }

    /// A multiplication with, or division by, a value of one element: the step, and what is scaled.
    fn scaling(&self, n: NodeId) -> Option<(Step, ValueId)> {
        let (a, b) = (self.view.graph.input(n, 0)?, self.view.graph.input(n, 1)?);
        let single = |v: ValueId| self.view.is_single(v);
        if self.view.graph.node(n).op.is_onnx("Div") {
            return single(b).then_some((Step::Div(b), a));
        }
        if single(b) {
            return Some((Step::Mul(b), a));
        }
        single(a).then_some((Step::Mul(a), b))
    }
}
