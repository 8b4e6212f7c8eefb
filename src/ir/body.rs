//! Graphs inside nodes: the branches of `If`, the bodies of `Loop` and `Scan`, and nodes of one graph taken into another.

use super::attr::{Attr, AttrValue};
use super::build::{Builder, Val};
use super::graph::Graph;
use super::id::{NodeId, ValueId};
use super::node::Node;
use rustc_hash::FxHashMap;

/// Where a graph stands inside another: a node, its attribute, and the place among the attribute's graphs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Body {
    /// The node that holds it.
    pub node: NodeId,
    /// Name of the attribute.
    pub attr: Box<str>,
    /// Place among the graphs of the attribute.
    pub at: usize,
}

/// The graphs of a node, each with its attribute and its place there, in the order of all captures.
fn graphs(node: &Node) -> impl Iterator<Item = (&str, usize, &Graph)> {
    node.attrs.iter().flat_map(|(name, attr)| {
        let all: &[Graph] = match &attr.value {
            AttrValue::Graph(g) => std::slice::from_ref(g),
            AttrValue::Graphs(g) => g,
            _ => &[],
        };
        all.iter().enumerate().map(|(at, g)| (&**name, at, g))
    })
}

impl Body {
    /// The graph.
    pub(crate) fn graph<'g>(&self, outer: &'g Graph) -> Option<&'g Graph> {
        let mut all = graphs(outer.get_node(self.node)?);
        let found = all.find(|(attr, at, _)| **attr == *self.attr && *at == self.at);
        found.map(|(_, _, g)| g)
    }

    /// The values of the outer graph that it captures, in the order of its captures.
    pub(crate) fn captured(&self, outer: &Graph) -> Vec<ValueId> {
        let all = outer.node_captures(self.node);
        let range = self.range(outer);
        all.get(range).map(<[ValueId]>::to_vec).unwrap_or_default()
    }

    /// Where its captures are among those of the node.
    fn range(&self, outer: &Graph) -> std::ops::Range<usize> {
        let mut first = 0;
        for (attr, at, g) in outer.get_node(self.node).into_iter().flat_map(graphs) {
            let end = first + g.captures.len();
            if *attr == *self.attr && at == self.at {
                return first..end;
            }
            first = end;
        }
        first..first
    }
}

impl Graph {
    /// The graphs inside a node, in the order of their captures.
    pub(crate) fn bodies(&self, node: NodeId) -> Vec<Body> {
        let found = self.get_node(node).into_iter().flat_map(graphs);
        let body = |(attr, at, _): (&str, usize, &Graph)| Body {
            node,
            attr: attr.into(),
            at,
        };
        found.map(body).collect()
    }

    /// Replaces a graph inside a node; `captured` are the values of this graph that it captures, in the order of its captures.
    pub(crate) fn set_body(&mut self, body: &Body, inner: Graph, captured: &[ValueId]) {
        let range = body.range(self);
        let mut all = self.node_captures(body.node);
        if range.end > all.len() {
            return;
        }
        all.splice(range, captured.iter().copied());
        let Some(node) = self.node_mut(body.node) else {
            return;
        };
        match node.attrs.get_mut(&body.attr).map(|a| &mut a.value) {
            Some(AttrValue::Graph(g)) => **g = inner,
            Some(AttrValue::Graphs(list)) => {
                if let Some(g) = list.get_mut(body.at) {
                    *g = inner;
                }
            }
            _ => return,
        }
        self.clear_captures(body.node);
        self.add_captures(body.node, &all);
    }
}

/// An attribute of a call, by its name.
type FindAttr<'a> = &'a dyn Fn(&str) -> Option<Attr>;

/// What [`Builder::adopt`] asks about a graph that it takes the nodes of.
pub(crate) struct Adopted<'a> {
    /// The graph.
    pub graph: &'a Graph,
    /// Whether a name is taken where the nodes go.
    pub taken: &'a dyn Fn(&str) -> bool,
    /// The attributes that references in a function's body stand for; none elsewhere.
    pub attrs: Option<FindAttr<'a>>,
    /// What becomes of the names of its nodes and values.
    pub rename: &'a dyn Fn(&str) -> String,
}

impl Builder {
    /// All nodes and initializers of a graph once more, under their own names where these are free. `given` holds what its inputs and
    /// captures are here, and in the end also what every other value is. An input that is not given is an absent operand.
    pub(crate) fn adopt(&self, of: &Adopted<'_>, given: &mut FxHashMap<ValueId, Val>) {
        let g = of.graph;
        let free = |name: &str| {
            let mut free = (of.rename)(name);
            while (of.taken)(&free) || !self.claim(&free) {
                free.push('_');
            }
            free
        };
        for &v in g.initializers() {
            let value = g.value(v);
            if let (Some(tensor), false) = (&value.tensor, given.contains_key(&v)) {
                let name = free(&value.name);
                given.insert(
                    v,
                    self.adopted(&name, tensor.clone(), value.metadata.clone()),
                );
            }
        }
        for n in g.order().unwrap_or_default() {
            let mut node = g.node(n).clone();
            if !node.name.is_empty() {
                node.name = (of.rename)(&node.name).into();
            }
            let refers = |a: &Attr| matches!(a.value, AttrValue::Ref { .. });
            if node.attrs.values().any(refers) {
                for (name, attr) in std::mem::take(&mut node.attrs) {
                    let attr = match &attr.value {
                        AttrValue::Ref { name, .. } => of.attrs.and_then(|find| find(name)),
                        _ => Some(attr),
                    };
                    node.attrs.extend(attr.map(|a| (name, a)));
                }
            }
            let find = |v: &ValueId| given.get(v).copied();
            let inputs: Vec<Option<Val>> =
                g.node_inputs(n).iter().map(|v| find(v.as_ref()?)).collect();
            let captures: Vec<Val> = g.node_captures(n).iter().filter_map(find).collect();
            let outputs = g.node_outputs(n);
            let names: Vec<Option<String>> = outputs
                .iter()
                .map(|v| v.map(|v| free(g.name_of(v))))
                .collect();
            let made = self.adopted_node(node, inputs, captures, &names);
            for (v, new) in outputs.into_iter().zip(made) {
                if let (Some(v), Some(new)) = (v, new) {
                    given.insert(v, new);
                }
            }
        }
    }
}
