//! Stable topological order.
//!
//! Kahn's algorithm with a min-heap on [`OrderKey`]: the lexicographically smallest topological order. An untouched graph comes
//! out in file order, and spliced nodes stand right behind the node they serve. `O((n + e) log n)`.

use super::graph::Graph;
use super::id::NodeId;
use super::node::OrderKey;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// The graph is cyclic; these nodes are on or behind a cycle.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} nodes are on or behind a cycle", .0.len())]
pub struct Cycle(pub Vec<NodeId>);

impl Graph {
    /// Nodes in execution order.
    pub fn order(&self) -> Result<Vec<NodeId>, Cycle> {
        let mut waiting = vec![0u32; self.index_bound()];
        let mut ready: BinaryHeap<Reverse<(OrderKey, NodeId)>> = BinaryHeap::new();
        let mut total = 0;
        for n in self.nodes() {
            total += 1;
            let deps = self.dependencies(n);
            waiting[n.index()] = deps;
            if deps == 0 {
                ready.push(Reverse((self.node(n).order, n)));
            }
        }
        let mut out = Vec::with_capacity(total);
        while let Some(Reverse((_, n))) = ready.pop() {
            out.push(n);
            for v in self.node_outputs(n).into_iter().flatten() {
                for reader in self.value_readers(v) {
                    let left = &mut waiting[reader.index()];
                    *left -= 1;
                    if *left == 0 {
                        ready.push(Reverse((self.node(reader).order, reader)));
                    }
                }
            }
        }
        if out.len() == total {
            return Ok(out);
        }
        Err(Cycle(
            self.nodes().filter(|n| waiting[n.index()] > 0).collect(),
        ))
    }

    fn dependencies(&self, n: NodeId) -> u32 {
        self.node_sources(n)
            .filter(|&v| self.producer(v).is_some())
            .count() as u32
    }
}
