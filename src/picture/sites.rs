//! Modules of graphs whose names an optimizer removed: what a selection found by the structure of the graph says of them.

use super::scene::{Kind, Scene};
use crate::ir::NodeId;
use crate::select::{AttentionSite, Layer, LinearSite, ModuleId, Selection, Witness};

impl Scene<'_> {
    /// Puts nodes that no exporter named into the layers, attentions and projections that a selection of the same model found around them.
    pub(super) fn take_sites(&mut self, selection: &Selection) {
        for layer in selection.layers.iter().filter(|l| l.call == 0) {
            self.layer(layer);
        }
    }

    /// Places of a layer's nodes in the order of execution.
    fn layer(&mut self, layer: &Layer) {
        let graph = self.flow.graph;
        let known = |v| graph.get_value(v).is_some();
        if !known(layer.input) || !known(layer.output) {
            return;
        }
        let (from, to) = (
            self.flow.defined(layer.input),
            self.flow.defined(layer.output),
        );
        let whole = (
            from.saturating_add(1).max(0) as usize,
            to.saturating_add(1).max(0) as usize,
        );
        let home = self.tree.intern(&layer.path);
        self.put(whole, home);
        for attention in layer.self_attn.iter().chain(&layer.cross_attn) {
            self.attention(attention, whole);
        }
        let inner = layer.intermediate.iter().chain(&layer.gate_proj);
        if let (Some(begin), Some(last)) = (
            inner.filter_map(|l| self.range(l)).map(|r| r.0).min(),
            &layer.output_proj,
        ) && let (Some((_, end)), Some(first)) = (self.range(last), &layer.intermediate)
        {
            let (a, b) = (self.tree.intern(&first.path), self.tree.intern(&last.path));
            let home = self.tree.shared(a, b);
            self.put((begin.max(whole.0), end.min(whole.1)), home);
        }
        for linear in layer.linears() {
            self.linear(linear);
        }
    }

    fn attention(&mut self, site: &AttentionSite, (from, to): (usize, usize)) {
        let reads = [&site.q, &site.k, &site.v, &site.qkv];
        let begin = reads
            .into_iter()
            .flatten()
            .filter_map(|l| self.range(l))
            .map(|r| r.0)
            .min();
        let end = site.o.as_ref().and_then(|l| self.range(l)).map(|r| r.1);
        if let (Some(begin), Some(end)) = (begin, end) {
            let home = self.tree.intern(&site.path);
            self.put((begin.max(from), end.min(to)), home);
        }
    }

    /// Where a linear's nodes begin and end.
    fn range(&self, linear: &LinearSite) -> Option<(usize, usize)> {
        let live = linear
            .nodes
            .iter()
            .filter(|n| self.flow.graph.get_node(**n).is_some());
        let places = || live.clone().map(|n| self.flow.place(*n) as usize);
        Some((places().min()?, places().max()? + 1))
    }

    /// A linear of its own; columns of one that several share are in none of them.
    fn linear(&mut self, linear: &LinearSite) {
        let nodes: Vec<NodeId> = linear.nodes.clone();
        if linear.column.is_some() {
            return;
        }
        let home = self.tree.intern(&linear.path);
        for n in nodes {
            if self.flow.graph.get_node(n).is_some() && self.is_open(n) {
                self.move_to(n, home);
            }
        }
    }

    fn put(&mut self, (from, to): (usize, usize), home: ModuleId) {
        let order = self
            .flow
            .order
            .get(from..to.max(from))
            .unwrap_or_default()
            .to_vec();
        for n in order {
            if self.is_open(n) && self.kind(n) == Kind::Main {
                self.move_to(n, home);
            }
        }
    }

    /// Whether nobody wrote down which module a node is in.
    fn is_open(&self, n: NodeId) -> bool {
        let named = self
            .tree
            .of(n)
            .is_some_and(|(_, w)| w < Witness::Neighbours);
        self.adapter(n).is_none() && !named
    }
}
