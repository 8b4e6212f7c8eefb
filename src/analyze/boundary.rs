//! The boundary of a module: what enters and what leaves a set of nodes.

use super::flow::Flow;
use crate::ir::{NodeId, ValueId};

/// Hidden states at the boundary of a set of nodes.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Boundary {
    /// The hidden state that enters. Of several (encoder states, cached keys, an input for this layer alone) one as wide as what leaves,
    /// of those one that nothing else reads, and of those the one that is read first.
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
        // With the place of the node that reads it first.
        let mut entering: Vec<(ValueId, i64)> = Vec::new();
        // Read outside before only handed out; then the later one.
        let mut output: Option<((bool, i64), ValueId)> = None;
        for &n in nodes {
            for v in view.inputs(n).into_iter().flatten() {
                let outside = !view.producer(v).is_some_and(inside);
                let v = if outside { view.unquantized(v) } else { v };
                if outside && view.is_flow(v) && entering.last().is_none_or(|e| e.0 != v) {
                    entering.push((v, i64::from(view.place(n))));
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
        // What other layers read as well are encoder states, wherever their nodes stand.
        let own = |v: &ValueId| {
            let readers = view.readers(*v);
            readers.iter().all(|r| inside(*r) || view.measures(*r))
        };
        let input = entering
            .into_iter()
            .rev()
            .max_by_key(|(v, at)| (alike(v), own(v), -at, view.defined(*v)))
            .map(|e| e.0);
        Boundary { input, output }
    }
}
