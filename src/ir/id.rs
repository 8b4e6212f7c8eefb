//! Handles. petgraph reuses indices after a removal; these carry a birth number, so that a stale handle is an error and never
//! another node.

use petgraph::graph::NodeIndex;
use std::sync::atomic::{AtomicU32, Ordering};

/// Names one operator node of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId {
    pub(super) ix: NodeIndex<u32>,
    pub(super) serial: u32,
}

/// Names one value (input, initializer, node output or capture) of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ValueId {
    pub(super) ix: NodeIndex<u32>,
    pub(super) serial: u32,
}

static NEXT: AtomicU32 = AtomicU32::new(1);

/// A number no other vertex of this process has had. It is never printed or ordered by.
pub(super) fn birth() -> u32 {
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl NodeId {
    /// A dense number below [`Graph::index_bound`](super::Graph::index_bound), for side tables; valid until the next removal.
    pub(crate) fn index(self) -> usize {
        self.ix.index()
    }
}

impl ValueId {
    /// A dense number below [`Graph::index_bound`](super::Graph::index_bound), for side tables; valid until the next removal.
    pub(crate) fn index(self) -> usize {
        self.ix.index()
    }
}
