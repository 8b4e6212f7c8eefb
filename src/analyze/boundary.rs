//! The boundary of a module: what enters and what leaves a set of nodes.

use super::flow::Flow;
use crate::ir::{NodeId, ValueId};

/// Hidden states at the boundary of a set of nodes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Boundary {
    /// The hidden state that enters. Of several (encoder states, cached keys, an input for this layer alone) one as wide as what leaves,
    /// and of those the one that is computed last.
    pub(crate) input: Option<ValueId>,
    /// The hidden state that leaves. Of several the one that is computed last and read outside.
    pub(crate) output: Option<ValueId>,
}

/// Scratch marks for set membership: a boundary costs no more than the nodes it is asked for.
#[derive(Debug)]
pub(crate) struct Marks {
    stamp: Vec<u32>,
    epoch: u32,
}

impl Marks {
    pub(crate) fn new(view: &Flow<'_>) -> Self {
        Marks {
            stamp: vec![0; view.graph.index_bound()],
            epoch: 0,
        }
    }

    /// The boundary of a set of nodes.
    pub(crate) fn boundary(&mut self, view: &Flow<'_>, nodes: &[NodeId]) -> Boundary {
        self.epoch += 1;
        for n in nodes {
            self.stamp[n.index()] = self.epoch;
        }
        let inside = |n: NodeId| self.stamp[n.index()] == self.epoch;
        let mut entering: Vec<ValueId> = Vec::new();
        // Read outside before only handed out; then the later one.
        let mut output: Option<((bool, i64), ValueId)> = None;
        for &n in nodes {
            for v in view.inputs(n).into_iter().flatten() {
                let outside = !view.producer(v).is_some_and(inside);
                let v = if outside { view.unquantized(v) } else { v };
                if outside && view.is_flow(v) && entering.last() != Some(&v) {
                    entering.push(v);
                }
            }
            for v in view.graph.node_outputs(n).into_iter().flatten() {
                if !view.is_flow(v) {
                    continue;
                }
                // Codes are named after what they are made from: a node that makes them may count to this set, and its readers not.
                let apart = |r: &NodeId| !inside(*r) && !view.measures(*r);
                let read = view.readers(v).iter().any(|r| {
                    let made = || view.graph.node_outputs(*r).into_iter().flatten();
                    apart(r)
                        || view.quantizes(*r) && made().any(|o| view.readers(o).iter().any(apart))
                });
                let key = (read, view.defined(v));
                if (read || view.is_output(v)) && output.is_none_or(|(k, _)| key > k) {
                    output = Some((key, v));
                }
            }
        }
        let output = output.map(|o| o.1);
        let width = output.and_then(|v| view.last(v));
        let alike = |v: &ValueId| width.is_some() && view.last(*v) == width;
        let input = entering
            .into_iter()
            .rev()
            .max_by_key(|v| (alike(v), view.defined(*v)));
        Boundary { input, output }
    }
}
