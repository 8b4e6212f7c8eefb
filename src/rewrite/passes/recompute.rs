//! Recomputation: memory for time.
//!
//! A backward pass reads values of the forward pass, layer after layer in the opposite order, and each must be kept until then. This pass
//! keeps only what flows from one stage of the model to the next and computes the rest again, stage by stage, right before the
//! backward pass needs it (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016; `gradient_checkpointing` in Hugging Face's
//! Trainer). Stages are found in the graph: they end where a single value carries everything that was computed so far, which in a
//! Transformer is each addition to the residual stream. Results are the same to the last bit.
//!
//! Run it on a training graph, behind the gradient and all fusions. Linear in the graph.

use crate::diag::Diagnostic;
use crate::ir::contract::stamp;
use crate::ir::{Builder, DType, Graph, NodeId, Type, Use, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Uses};
use rustc_hash::{FxHashMap, FxHashSet};

/// Computes values of the forward pass again for the backward pass.
#[derive(Clone, Debug)]
pub(crate) struct Recompute {
    /// Name of the loss, where the forward pass ends.
    pub loss: String,
    /// Names of the values that are trained: what does not depend on them is kept, as it is few and shared.
    pub wrt: Vec<String>,
}

impl Pass for Recompute {
    fn name(&self) -> &'static str {
        "recompute"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let g = &cx.model().graph;
        let loss = g
            .find(&self.loss)
            .and_then(|v| g.producer(v))
            .ok_or_else(|| {
                let what = format!("the graph computes no value `{}`", self.loss);
                Diagnostic::error("recompute-loss", what)
                    .help("append the loss and its gradients first")
            })?
            .0;
        let forward = Forward::find(cx, g, loss, &self.wrt);
        let stages = forward.stages(g);
        let mut patch = cx.patch("recompute", None);
        patch.builder().set_scope("recompute");
        // The last stage first, as the backward pass reads them.
        for stage in stages.iter().rev() {
            let copies = forward.again(g, stage, patch.builder());
            for (v, copy) in copies {
                let uses: Vec<Use> = forward.late_readers(g, v).collect();
                if !uses.is_empty() {
                    patch.redirect(v, copy, Uses::Only(uses));
                }
            }
        }
        cx.commit(patch)?;
        Ok(())
    }
}

/// The nodes that the loss depends on.
struct Forward {
    /// In execution order.
    order: Vec<NodeId>,
    /// By node: its place in the order, if it is one of them.
    place: Vec<Option<usize>>,
    /// By value: whether it grows with the batch and depends on what is trained.
    flows: Vec<bool>,
}

/// Values of a part of the forward pass that are not kept.
type Stage = FxHashSet<ValueId>;

impl Forward {
    fn find(cx: &PassCx<'_>, g: &Graph, loss: NodeId, wrt: &[String]) -> Self {
        let mut is = vec![false; g.index_bound()];
        let mut open = vec![loss];
        while let Some(n) = open.pop() {
            if !std::mem::replace(&mut is[n.index()], true) {
                let before = g.node_sources(n).filter_map(|v| g.producer(v));
                open.extend(before.map(|p| p.0));
            }
        }
        let mut order = g.order().unwrap_or_default();
        order.retain(|n| is[n.index()]);
        let mut place = vec![None; is.len()];
        for (at, n) in order.iter().enumerate() {
            place[n.index()] = Some(at);
        }
        let (mut fed, mut trained) = (vec![false; is.len()], vec![false; is.len()]);
        for p in g.inputs() {
            fed[p.value.index()] = true;
        }
        for v in wrt.iter().filter_map(|name| g.find(name)) {
            trained[v.index()] = true;
        }
        let mut flows = vec![false; is.len()];
        for &n in &order {
            let any = |set: &[bool]| g.node_sources(n).any(|v| set[v.index()]);
            let (data, learns) = (any(&fed), any(&trained));
            for v in g.node_outputs(n).into_iter().flatten() {
                let ty = cx.fact(v).and_then(|f| f.dtype);
                let ty = ty.or_else(|| g.value(v).ty.as_ref().and_then(Type::dtype));
                let float = ty.is_none_or(DType::is_float);
                fed[v.index()] = data;
                trained[v.index()] = learns && float;
                // A mask of a dropout is drawn again, too.
                flows[v.index()] = data && learns && (float || ty == Some(DType::Bool));
            }
        }
        Forward {
            order,
            place,
            flows,
        }
    }

    /// The stages, without the last one: behind it the backward pass begins at once.
    fn stages(&self, g: &Graph) -> Vec<Stage> {
        // What is read throughout the model, as an encoder's output is by every layer of the decoder, belongs to no stage.
        let long = (self.order.len() / 8).max(64);
        let mut stages: Vec<Stage> = Vec::new();
        let mut current = Stage::default();
        // Values that are read later, with the place of their last reader.
        let mut alive: Vec<(ValueId, usize)> = Vec::new();
        for (at, &n) in self.order.iter().enumerate() {
            let carrier = match alive[..] {
                [(v, _)] => Some(v),
                _ => None,
            };
            alive.retain(|&(_, end)| end > at);
            let made: Vec<(ValueId, usize)> = g
                .node_outputs(n)
                .into_iter()
                .flatten()
                .filter(|v| self.flows[v.index()])
                .map(|v| (v, self.last_reader(g, v).unwrap_or(at)))
                .filter(|(_, end)| end - at <= long)
                .collect();
            alive.extend(made.iter().filter(|m| m.1 > at));
            // A run of values that each carry everything ends with the one from which the graph branches again.
            if let Some(v) = carrier.filter(|_| alive.len() > 1) {
                current.remove(&v);
                stages.push(std::mem::take(&mut current));
            }
            current.extend(made.iter().map(|m| m.0));
        }
        stages
    }

    /// The place of the last node of the forward pass that reads a value.
    fn last_reader(&self, g: &Graph, v: ValueId) -> Option<usize> {
        g.value_readers(v)
            .filter_map(|n| self.place[n.index()])
            .max()
    }

    /// Readers of a value in the backward pass. Who asks for its shape only can do so at once.
    fn late_readers<'a>(&'a self, g: &'a Graph, v: ValueId) -> impl Iterator<Item = Use> + 'a {
        g.uses(v).into_iter().filter(|u| {
            let n = u.node();
            self.place[n.index()].is_none() && !g.node(n).op.is_onnx("Shape")
        })
    }

    /// Copies of the nodes of a stage that the backward pass needs, in execution order; returns the copy of each value.
    fn again(&self, g: &Graph, stage: &Stage, b: &Builder) -> Vec<(ValueId, Val)> {
        let copied =
            |v: &ValueId| stage.contains(v) && g.producer(*v).is_some_and(|p| can_repeat(g, p.0));
        let mut needed: FxHashSet<NodeId> = FxHashSet::default();
        let read = stage
            .iter()
            .filter(|v| self.late_readers(g, **v).next().is_some());
        let mut open: Vec<ValueId> = read.copied().filter(copied).collect();
        while let Some((n, _)) = open.pop().and_then(|v| g.producer(v)) {
            if needed.insert(n) {
                open.extend(g.node_sources(n).filter(copied));
            }
        }
        let mut nodes: Vec<NodeId> = needed.into_iter().collect();
        nodes.sort_by_key(|n| self.place[n.index()]);
        let mut copies: FxHashMap<ValueId, Val> = FxHashMap::default();
        let mut out = Vec::new();
        for n in nodes {
            let find = |v| copies.get(&v).copied().unwrap_or(Val::Old(v));
            let made = b.copy_node(g, n, find);
            let node = g.node(n);
            if &*node.op.op_type == "Dropout" {
                let name = node.metadata.get(stamp::DRAWS_AS).unwrap_or(&node.name);
                b.mark_last_node(stamp::DRAWS_AS, name);
            }
            let made = made.into_iter().filter(|(v, _)| stage.contains(v));
            for (v, copy) in made {
                copies.insert(v, copy);
                out.push((v, copy));
            }
        }
        out
    }
}

/// Whether a second run of a node gives the same.
fn can_repeat(g: &Graph, n: NodeId) -> bool {
    let op = &g.node(n).op;
    let random = [
        "Bernoulli",
        "Multinomial",
        "RandomNormal",
        "RandomNormalLike",
        "RandomUniform",
        "RandomUniformLike",
    ];
    g.node_captures(n).is_empty()
        && !["If", "Loop", "Scan"].iter().any(|o| op.is_onnx(o))
        && !random.iter().any(|o| op.is_onnx(o))
}

#[cfg(test)]
mod tests;
