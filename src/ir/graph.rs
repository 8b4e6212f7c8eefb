//! The graph: operator vertices and value vertices of one petgraph `StableDiGraph`, slot numbers on the edges.
//!
//! Every ONNX name is a vertex and every mention of it is an edge, so nothing is stored twice. Invariants, which
//! [`verify`](super::verify) checks:
//! * an operator has at most one edge for each input slot and each output slot; a slot without an edge is an absent (`""`) one;
//! * a value has at most one `Def` edge; names are unique;
//! * edge order means nothing: petgraph yields the newest edge first, so everything is placed by slot number.
//!
//! Editing is crate-private: the public editor is [`Patch`](crate::rewrite::Patch).

use super::id::{NodeId, ValueId, birth};
#[cfg(test)]
use super::looks::look;
use super::node::{Metadata, Node, OrderKey, Value};
use super::types::Type;
use bytes::Bytes;
use petgraph::Direction::{Incoming, Outgoing};
use petgraph::graph::NodeIndex;
use petgraph::stable_graph::StableDiGraph;
use petgraph::visit::EdgeRef;
use rustc_hash::FxHashMap;

/// Looks are counted in tests only.
#[cfg(not(test))]
const fn look() {}

/// A vertex: an operator or a value.
#[derive(Clone, Debug)]
enum Vertex {
    /// An operator node.
    Op(Node),
    /// A value.
    Value(Value),
}

/// What an edge between an operator and a value means; the number is the slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Port {
    /// Operator → value: the value is this output of the operator.
    Def(u32),
    /// Value → operator: the value is this input of the operator.
    Use(u32),
    /// Value → operator: a subgraph of the operator captures the value (index into all captures of all its subgraphs, in order).
    Capture(u32),
}

#[derive(Clone, Debug)]
struct Entry {
    serial: u32,
    vertex: Vertex,
}

/// A graph input, a graph output or a `value_info` entry: a mention of a value with a type of its own.
#[derive(Clone, Debug)]
pub struct GraphPort {
    /// The value.
    pub value: ValueId,
    /// The type this entry declares.
    pub ty: Option<Type>,
    /// The encoded rest of the `ValueInfoProto`.
    pub residue: Bytes,
}

/// An entry of `value_info`.
#[derive(Clone, Debug)]
pub(crate) enum InfoEntry {
    /// It describes a live value.
    Value(GraphPort),
    /// It names a value that the graph does not have (encoded `ValueInfoProto`).
    Orphan(Bytes),
}

/// One place where a value is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Use {
    /// Input slot of a node.
    Input(NodeId, u32),
    /// Captured by a subgraph of a node.
    Capture(NodeId, u32),
}

impl Use {
    /// The reading node.
    pub fn node(self) -> NodeId {
        match self {
            Use::Input(n, _) | Use::Capture(n, _) => n,
        }
    }
}

/// A name that the graph already has.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the name `{0}` is taken")]
pub struct NameTaken(pub Box<str>);

/// A graph: a model's main graph, a subgraph of a control-flow node, or a function body.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    g: StableDiGraph<Entry, Port, u32>,
    /// Name of the graph.
    pub name: Box<str>,
    /// `metadata_props`.
    pub metadata: Metadata,
    /// The encoded rest of the `GraphProto`.
    pub residue: Bytes,
    pub(crate) inputs: Vec<GraphPort>,
    pub(crate) outputs: Vec<GraphPort>,
    pub(crate) initializers: Vec<ValueId>,
    pub(crate) sparse_initializers: Vec<(ValueId, Bytes)>,
    pub(crate) captures: Vec<ValueId>,
    pub(crate) infos: Vec<InfoEntry>,
    /// Whether the nodes of the file were in another order, in which some read what later ones make.
    pub(crate) mended: bool,
    names: FxHashMap<Box<str>, ValueId>,
    next_anchor: u32,
    last_seq: FxHashMap<u32, u32>,
}

impl Graph {
    // ---- reading -------------------------------------------------------------------------------------------------------

    /// Graph inputs, in order. In files of IR version 3 initializers may be among them.
    pub fn inputs(&self) -> &[GraphPort] {
        &self.inputs
    }

    /// Graph outputs, in order.
    pub fn outputs(&self) -> &[GraphPort] {
        &self.outputs
    }

    /// Initializers, in file order.
    pub fn initializers(&self) -> &[ValueId] {
        &self.initializers
    }

    /// Sparse initializers, in file order, with the encoded `SparseTensorProto`.
    pub(crate) fn sparse_initializers(&self) -> &[(ValueId, Bytes)] {
        &self.sparse_initializers
    }

    /// In a subgraph: the values that stand for values of the enclosing graph.
    pub(crate) fn captures(&self) -> &[ValueId] {
        &self.captures
    }

    /// `value_info`, in file order.
    pub(crate) fn infos(&self) -> &[InfoEntry] {
        &self.infos
    }

    /// An upper bound of [`NodeId::index`] and [`ValueId::index`].
    pub(crate) fn index_bound(&self) -> usize {
        self.g
            .node_indices()
            .next_back()
            .map_or(0, |i| i.index() + 1)
    }

    /// Number of operator nodes.
    pub fn node_count(&self) -> usize {
        self.nodes().count()
    }

    /// Operator nodes in order of their birth. For execution order see [`order`](Self::order).
    pub fn nodes(&self) -> impl Iterator<Item = NodeId> + '_ {
        let looked = self.g.node_indices().inspect(|_| look());
        looked.filter_map(|ix| match &self.g[ix] {
            Entry {
                serial,
                vertex: Vertex::Op(_),
            } => Some(NodeId {
                ix,
                serial: *serial,
            }),
            Entry {
                vertex: Vertex::Value(_),
                ..
            } => None,
        })
    }

    /// Values in order of their birth.
    pub fn values(&self) -> impl Iterator<Item = ValueId> + '_ {
        let looked = self.g.node_indices().inspect(|_| look());
        looked.filter_map(|ix| match &self.g[ix] {
            Entry {
                serial,
                vertex: Vertex::Value(_),
            } => Some(ValueId {
                ix,
                serial: *serial,
            }),
            Entry {
                vertex: Vertex::Op(_),
                ..
            } => None,
        })
    }

    /// The node, or `None` for a stale handle.
    pub(crate) fn get_node(&self, id: NodeId) -> Option<&Node> {
        look();
        match self.g.node_weight(id.ix)? {
            Entry {
                serial,
                vertex: Vertex::Op(n),
            } if *serial == id.serial => Some(n),
            _ => None,
        }
    }

    /// The value, or `None` for a stale handle.
    pub(crate) fn get_value(&self, id: ValueId) -> Option<&Value> {
        look();
        match self.g.node_weight(id.ix)? {
            Entry {
                serial,
                vertex: Vertex::Value(v),
            } if *serial == id.serial => Some(v),
            _ => None,
        }
    }

    /// The node.
    ///
    /// # Panics
    /// On a stale handle, or one of another graph: a programming error, caught loudly.
    pub fn node(&self, id: NodeId) -> &Node {
        self.get_node(id)
            .expect("invariant: a live handle of this graph")
    }

    /// The value.
    ///
    /// # Panics
    /// On a stale handle, or one of another graph: a programming error, caught loudly.
    pub fn value(&self, id: ValueId) -> &Value {
        self.get_value(id)
            .expect("invariant: a live handle of this graph")
    }

    /// Name of a value; see [`value`](Self::value).
    pub fn name_of(&self, id: ValueId) -> &str {
        &self.value(id).name
    }

    /// The value of this name.
    pub fn find(&self, name: &str) -> Option<ValueId> {
        self.names.get(name).copied()
    }

    /// Inputs of a node by slot; `None` is an absent input.
    pub fn node_inputs(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).input_count()];
        for e in self.g.edges_directed(id.ix, Incoming) {
            if let Port::Use(s) = *e.weight()
                && let Some(slot) = slots.get_mut(s as usize)
            {
                *slot = Some(self.value_at(e.source()));
            }
        }
        slots
    }

    /// One input of a node; `None` if the slot is absent or beyond the last one.
    pub fn input(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        self.g
            .edges_directed(id.ix, Incoming)
            .find_map(|e| match *e.weight() {
                Port::Use(s) if s as usize == slot => Some(self.value_at(e.source())),
                _ => None,
            })
    }

    /// Outputs of a node by slot; `None` is an output nobody named.
    pub fn node_outputs(&self, id: NodeId) -> Vec<Option<ValueId>> {
        let mut slots = vec![None; self.node(id).output_count()];
        for e in self.g.edges_directed(id.ix, Outgoing) {
            if let Port::Def(s) = *e.weight()
                && let Some(slot) = slots.get_mut(s as usize)
            {
                *slot = Some(self.value_at(e.target()));
            }
        }
        slots
    }

    /// One output of a node.
    pub fn output(&self, id: NodeId, slot: usize) -> Option<ValueId> {
        self.g
            .edges_directed(id.ix, Outgoing)
            .find_map(|e| match *e.weight() {
                Port::Def(s) if s as usize == slot => Some(self.value_at(e.target())),
                _ => None,
            })
    }

    /// What the subgraphs of a node capture, in the order of all captures of all its subgraphs.
    pub(crate) fn node_captures(&self, id: NodeId) -> Vec<ValueId> {
        let mut found: Vec<(u32, ValueId)> = self
            .g
            .edges_directed(id.ix, Incoming)
            .filter_map(|e| match *e.weight() {
                Port::Capture(k) => Some((k, self.value_at(e.source()))),
                _ => None,
            })
            .collect();
        found.sort_unstable_by_key(|f| f.0);
        found.into_iter().map(|f| f.1).collect()
    }

    /// The node and output slot that define a value; `None` for inputs, initializers and captures.
    pub fn producer(&self, id: ValueId) -> Option<(NodeId, u32)> {
        self.g
            .edges_directed(id.ix, Incoming)
            .find_map(|e| match *e.weight() {
                Port::Def(s) => Some((self.node_at(e.source()), s)),
                _ => None,
            })
    }

    /// Where a value is read by nodes, in file order of the readers. Graph outputs are separate: [`is_output`](Self::is_output).
    pub fn uses(&self, id: ValueId) -> Vec<Use> {
        let mut uses: Vec<(OrderKey, Use)> = self
            .g
            .edges_directed(id.ix, Outgoing)
            .filter_map(|e| {
                let node = self.node_at(e.target());
                let key = self.node(node).order;
                match *e.weight() {
                    Port::Use(s) => Some((key, Use::Input(node, s))),
                    Port::Capture(k) => Some((key, Use::Capture(node, k))),
                    Port::Def(_) => None,
                }
            })
            .collect();
        uses.sort_unstable();
        uses.into_iter().map(|u| u.1).collect()
    }

    /// Whether anything reads the value, as a node input, a capture or a graph output.
    pub(crate) fn is_used(&self, id: ValueId) -> bool {
        self.g.edges_directed(id.ix, Outgoing).next().is_some() || self.is_output(id)
    }

    /// Whether the value is a graph output.
    pub fn is_output(&self, id: ValueId) -> bool {
        self.outputs.iter().any(|p| p.value == id)
    }

    /// Whether the value is a graph input.
    pub fn is_input(&self, id: ValueId) -> bool {
        self.inputs.iter().any(|p| p.value == id)
    }

    /// Values a node reads, inputs and captures, in no particular order.
    pub(crate) fn node_sources(&self, id: NodeId) -> impl Iterator<Item = ValueId> + '_ {
        self.g
            .edges_directed(id.ix, Incoming)
            .map(|e| self.value_at(e.source()))
    }

    /// Nodes that read a value, one for each edge, in no particular order.
    pub(crate) fn value_readers(&self, id: ValueId) -> impl Iterator<Item = NodeId> + '_ {
        self.g
            .edges_directed(id.ix, Outgoing)
            .map(|e| self.node_at(e.target()))
    }

    /// Ports of all edges of a vertex: for verification.
    pub(super) fn node_ports(&self, id: NodeId) -> impl Iterator<Item = Port> + '_ {
        self.g
            .edges_directed(id.ix, Incoming)
            .chain(self.g.edges_directed(id.ix, Outgoing))
            .map(|e| *e.weight())
    }

    /// Number of definitions of a value.
    pub(super) fn definition_count(&self, id: ValueId) -> usize {
        self.g.edges_directed(id.ix, Incoming).count()
    }

    fn node_at(&self, ix: NodeIndex<u32>) -> NodeId {
        look();
        NodeId {
            ix,
            serial: self.g[ix].serial,
        }
    }

    fn value_at(&self, ix: NodeIndex<u32>) -> ValueId {
        look();
        ValueId {
            ix,
            serial: self.g[ix].serial,
        }
    }

    // ---- editing: crate-private --------------------------------------------------------------------------------------

    /// Mutable access to a node's own data (never to its edges).
    pub(crate) fn node_mut(&mut self, id: NodeId) -> Option<&mut Node> {
        match self.g.node_weight_mut(id.ix)? {
            Entry {
                serial,
                vertex: Vertex::Op(n),
            } if *serial == id.serial => Some(n),
            _ => None,
        }
    }

    /// Mutable access to a value's own data; its name changes through [`rename`](Self::rename) only.
    pub(crate) fn value_mut(&mut self, id: ValueId) -> Option<&mut Value> {
        match self.g.node_weight_mut(id.ix)? {
            Entry {
                serial,
                vertex: Vertex::Value(v),
            } if *serial == id.serial => Some(v),
            _ => None,
        }
    }

    /// Adds a value without producer.
    pub(crate) fn add_value(&mut self, value: Value) -> Result<ValueId, NameTaken> {
        if self.names.contains_key(&value.name) {
            return Err(NameTaken(value.name));
        }
        let (name, serial) = (value.name.clone(), birth());
        let ix = self.g.add_node(Entry {
            serial,
            vertex: Vertex::Value(value),
        });
        let id = ValueId { ix, serial };
        self.names.insert(name, id);
        Ok(id)
    }

    /// The first free place behind an anchor and what was spliced in behind it.
    pub(crate) fn next_seq(&self, anchor: u32) -> u32 {
        self.last_seq.get(&anchor).map_or(1, |s| s + 1)
    }

    /// Adds a node behind all others.
    pub(crate) fn push_node(
        &mut self,
        node: Node,
        ins: &[Option<ValueId>],
        outs: &[Option<ValueId>],
    ) -> NodeId {
        // Anchor 0 is in front of all nodes.
        let order = OrderKey {
            anchor: self.next_anchor.max(1),
            seq: 0,
        };
        self.insert_node(node, order, ins, outs)
    }

    /// Adds a node at a place in the order.
    pub(crate) fn insert_node(
        &mut self,
        mut node: Node,
        order: OrderKey,
        ins: &[Option<ValueId>],
        outs: &[Option<ValueId>],
    ) -> NodeId {
        node.order = order;
        node.n_in = ins.len() as u32;
        node.n_out = outs.len() as u32;
        self.next_anchor = self.next_anchor.max(order.anchor.saturating_add(1));
        if order.seq > 0 {
            let last = self.last_seq.entry(order.anchor).or_insert(0);
            *last = order.seq.max(*last);
        }
        let serial = birth();
        let ix = self.g.add_node(Entry {
            serial,
            vertex: Vertex::Op(node),
        });
        for (s, v) in ins.iter().enumerate() {
            if let Some(v) = v {
                self.g.add_edge(v.ix, ix, Port::Use(s as u32));
            }
        }
        for (s, v) in outs.iter().enumerate() {
            if let Some(v) = v {
                self.g.add_edge(ix, v.ix, Port::Def(s as u32));
            }
        }
        NodeId { ix, serial }
    }

    /// The anchor behind all nodes.
    pub(crate) fn end_anchor(&self) -> u32 {
        self.next_anchor
    }

    /// Removes a node and its edges; its outputs stay, without producer.
    pub(crate) fn remove_node(&mut self, id: NodeId) {
        if self.get_node(id).is_some() {
            self.g.remove_node(id.ix);
        }
    }

    /// Puts outputs in the order of these names; those of others come behind.
    pub(crate) fn order_outputs(&mut self, names: &[String]) {
        let mut all = std::mem::take(&mut self.outputs);
        for name in names {
            let at = all.iter().position(|p| self.name_of(p.value) == name);
            let port = at.map(|at| all.remove(at));
            self.outputs.extend(port);
        }
        self.outputs.append(&mut all);
    }

    /// Removes values, their edges and their mentions as inputs, initializers and in `value_info`.
    pub(crate) fn remove_values(&mut self, ids: &[ValueId]) {
        let mut gone: Vec<ValueId> = ids
            .iter()
            .copied()
            .filter(|&id| self.get_value(id).is_some())
            .collect();
        gone.sort_unstable();
        let dead = |v: &ValueId| gone.binary_search(v).is_ok();
        self.inputs.retain(|p| !dead(&p.value));
        self.initializers.retain(|v| !dead(v));
        self.sparse_initializers.retain(|(v, _)| !dead(v));
        self.infos
            .retain(|i| !matches!(i, InfoEntry::Value(p) if dead(&p.value)));
        for &id in &gone {
            self.names.remove(&self.value(id).name.clone());
            self.g.remove_node(id.ix);
        }
    }

    /// Gives a value another name.
    pub(crate) fn rename(&mut self, id: ValueId, name: &str) -> Result<(), NameTaken> {
        if self.name_of(id) == name {
            return Ok(());
        }
        if self.names.contains_key(name) {
            return Err(NameTaken(name.into()));
        }
        let Some(value) = self.value_mut(id) else {
            return Ok(());
        };
        let old = std::mem::replace(&mut value.name, name.into());
        self.names.remove(&old);
        self.names.insert(name.into(), id);
        Ok(())
    }

    /// Points one reader of a value at another value.
    pub(crate) fn set_use(&mut self, at: Use, value: ValueId) {
        match at {
            Use::Input(n, s) => self.set_edge(n, Port::Use(s), value),
            Use::Capture(n, k) => self.set_edge(n, Port::Capture(k), value),
        }
    }

    /// Takes all captures of a node off it.
    pub(super) fn clear_captures(&mut self, node: NodeId) {
        let edges = self.g.edges_directed(node.ix, Incoming);
        let captures = edges.filter(|e| matches!(e.weight(), Port::Capture(_)));
        let gone: Vec<_> = captures.map(|e| e.id()).collect();
        for edge in gone {
            self.g.remove_edge(edge);
        }
    }

    /// Wires all captures of a new node, which has none yet.
    pub(crate) fn add_captures(&mut self, node: NodeId, values: &[ValueId]) {
        for (k, v) in values.iter().enumerate() {
            self.g.add_edge(v.ix, node.ix, Port::Capture(k as u32));
        }
    }

    fn set_edge(&mut self, node: NodeId, port: Port, value: ValueId) {
        let old = self
            .g
            .edges_directed(node.ix, Incoming)
            .find(|e| *e.weight() == port)
            .map(|e| e.id());
        if let Some(e) = old {
            self.g.remove_edge(e);
        }
        self.g.add_edge(value.ix, node.ix, port);
    }
}
