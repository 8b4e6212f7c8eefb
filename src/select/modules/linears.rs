//! Linears and modules: all nodes of a linear belong to one module.

use super::{ModuleId, ModuleTree, ROOT, Witness, owner};
use crate::analyze::flow::Flow;
use crate::analyze::linear::{Linear, Linears};
use crate::ir::contract::stamp;
use crate::ir::layers::number;
use crate::ir::{Graph, NodeId};
use rustc_hash::FxHashMap;

impl ModuleTree {
    /// Finds the linears of the graph, and takes each as a whole into its module.
    pub(in crate::select) fn with_linears(&mut self, view: &Flow<'_>) -> Linears {
        let linears = Linears::new(view, &|a, b| together(view.graph, self, a, b));
        self.adopt(view, &linears.all);
        linears
    }

    /// The module of a linear that a module computes itself, by the name of its parameters: `nn.MultiheadAttention` calls neither its
    /// `out_proj` nor, as it is no module, what `in_proj_weight` and `in_proj_bias` belong to.
    fn functional(&mut self, view: &Flow<'_>, of: ModuleId, linear: &Linear) -> Option<ModuleId> {
        let module = self.module(of);
        let (path, weight) = (&*module.path, &linear.weight);
        if of == ROOT || module.nodes.len() <= linear.nodes.len() {
            return None;
        }
        let mut stored = [Some(weight.value), weight.bias].into_iter().flatten();
        // Equal parameters of several layers are stored once, under the name of one of them.
        let both = |a: &str, b: &str| number(a).is_some() && number(b).is_some();
        let alike = |(a, b): (&str, &str)| a == b || both(a, b);
        let ends = |whole: &str| {
            let parts = path.rsplit('.').count();
            let pairs = std::iter::zip(whole.rsplit('.'), path.rsplit('.'));
            whole.rsplit('.').count() >= parts && pairs.into_iter().all(alike)
        };
        let leaf = stored.find_map(|v| {
            let (owner, last) = view.graph.name_of(view.root(v)).rsplit_once('.')?;
            if ["weight", "bias"].contains(&last) {
                let (outer, leaf) = owner.rsplit_once('.')?;
                return ends(outer).then(|| leaf.to_owned());
            }
            let leaf = last
                .strip_suffix("_weight")
                .or(last.strip_suffix("_bias"))?;
            (ends(owner) && !leaf.is_empty()).then(|| leaf.to_owned())
        })?;
        Some(self.child(of, &leaf))
    }

    /// Takes the nodes of a linear that a quantizer replaced without names into the module that its remaining nodes name, and those of
    /// one that a module computes itself into a module of their own.
    pub(super) fn adopt(&mut self, view: &Flow<'_>, linears: &[Linear]) {
        let mut moved = false;
        let mut claims: FxHashMap<NodeId, usize> = FxHashMap::default();
        for n in linears.iter().flat_map(|l| &l.nodes) {
            *claims.entry(*n).or_insert(0) += 1;
        }
        let base = |l: &&Linear| !view.node(l.core).metadata.contains_key(stamp::ADAPTER);
        for linear in linears.iter().filter(base) {
            let named = linear
                .nodes
                .iter()
                .find_map(|n| self.of(*n).filter(|(_, w)| *w < Witness::Neighbours));
            // A fused reader took the bias in, which had the name.
            let late = linear.late_bias.filter(|_| named.is_none());
            let late = late.and_then(|v| owner(view.graph.name_of(view.root(v))));
            let late = late.map(|path| (self.intern(path), Witness::ParameterName));
            let Some((module, witness)) = named.or(late) else {
                continue;
            };
            if let Some(own) = self.functional(view, module, linear) {
                for n in linear.nodes.iter().filter(|n| claims[*n] == 1) {
                    self.of_node[n.index()] = Some((own, Witness::ParameterName));
                }
                moved = true;
                continue;
            }
            // A reshape in front of several belongs to none of them.
            for n in linear.nodes.iter().filter(|n| claims[*n] == 1) {
                let slot = &mut self.of_node[n.index()];
                if slot.is_none_or(|(_, w)| w >= Witness::Neighbours) {
                    *slot = Some((module, witness));
                    moved = true;
                }
            }
        }
        if moved {
            self.list_nodes(view);
        }
    }
}

/// Whether two nodes may belong to one module: they do, or it is not known of one of them.
fn together(graph: &Graph, tree: &ModuleTree, a: NodeId, b: NodeId) -> bool {
    let sure = |n| {
        tree.of(n)
            .filter(|(_, w)| *w < Witness::Neighbours)
            .filter(|_| !graph.node(n).metadata.contains_key(stamp::DEFINITION))
            .map(|m| m.0)
    };
    match (sure(a), sure(b)) {
        (Some(a), Some(b)) => a == b,
        _ => true,
    }
}
