//! All that a selection looks at.

use super::record::Record;
use crate::analyze::flow::Flow;
use crate::analyze::linear::{Linear, Linears};
use crate::analyze::structure::{Found, Structure};
use crate::diag::Diagnostic;
use crate::ir::{NodeId, ValueId};
use crate::select::field::Field;
use crate::select::interface::Interface;
use crate::select::modules::{ModuleId, ModuleTree, Witness};
use crate::select::site::{Layer, LinearSite, Role};

/// A graph, its modules, and the interface to find in them.
pub(super) struct Scene<'a> {
    pub(super) view: &'a Flow<'a>,
    pub(super) tree: &'a ModuleTree,
    pub(super) linears: &'a Linears,
    pub(super) interface: &'a Interface,
    /// Path in the tree → path in the state dict.
    pub(super) prefix: Prefix,
    /// Lists of layers that the interface names and the graph does not hold, where it holds another one.
    pub(super) absent: Vec<String>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Prefix {
    pub(super) in_tree: String,
    pub(super) full: String,
    /// What stands between it and the paths of a graph that was exported from a part of the model: `encoder.`.
    pub(super) lead: String,
}

impl<'a> Scene<'a> {
    /// The structure of the graph; worth its cost only where names are missing.
    pub(super) fn structure(&self) -> Structure<'a> {
        Structure::new(self.view, self.linears)
    }

    /// Fields that only some layers have, as in hybrids: those in which structure sees no attention, or no feed-forward block of two
    /// linears, go without.
    pub(super) fn left_out(
        &self,
        record: &mut Record,
        layers: &[Layer],
        totals: &[usize],
    ) -> Vec<Diagnostic> {
        let found = self.structure().layers();
        let within = |linear: usize, layer: &Layer| {
            let module = self.tree.of(self.linears.all[linear].core);
            let path = module.map(|(m, _)| self.full_path(m));
            path.is_some_and(|p| {
                p.strip_prefix(&*layer.path)
                    .is_some_and(|r| r.starts_with('.'))
            })
        };
        let lacks = |field: Field, (stack, index): (usize, usize)| {
            let mut own = layers
                .iter()
                .filter(|l| (l.stack, l.index) == (stack, index));
            let Some(layer) = own.next() else {
                return false;
            };
            let attends = |f: &Found| within(f.self_attn.o, layer);
            let transforms = |f: &Found| f.down.is_some_and(|d| within(d, layer));
            match field {
                Field::LayerSelfAttn => !found.iter().any(attends),
                f if f.is_of_attention() => !found.iter().any(attends),
                Field::LayerIntermediateProj | Field::LayerOutputProj => {
                    !found.iter().any(transforms)
                }
                _ => false,
            }
        };
        record.left_out(totals, &lacks)
    }

    /// The path in the exported model's state dict.
    pub(super) fn full_path(&self, id: ModuleId) -> Box<str> {
        let have = &*self.tree.module(id).path;
        match have.strip_prefix(self.prefix.in_tree.as_str()) {
            Some(rest) => format!("{}{}{rest}", self.prefix.full, self.prefix.lead).into(),
            None => have.into(),
        }
    }

    /// Whether a node's own names say which module it belongs to.
    pub(super) fn is_named(&self, n: NodeId) -> bool {
        self.tree
            .of(n)
            .is_some_and(|(_, w)| w < Witness::Neighbours)
    }

    /// Whether a value leaves a module to a node that names no module: the node may belong to it.
    pub(super) fn leaves_to_nowhere(&self, v: ValueId) -> bool {
        self.view.readers(v).iter().any(|n| !self.is_named(*n))
    }
}

/// A site of a linear.
pub(super) fn site(role: Role, path: Box<str>, l: &Linear) -> LinearSite {
    LinearSite {
        role,
        path,
        input: l.input,
        output: l.output,
        rows: l.rows,
        nodes: l.nodes.clone(),
        weight: l.weight.clone(),
        late_bias: l.late_bias,
        d_in: l.d_in,
        d_out: l.d_out,
        column: None,
        anchor: l.nodes.last().copied().unwrap_or(l.core),
        other_calls: Vec::new(),
    }
}

pub(super) fn ends_with(path: &str, tail: &str) -> bool {
    path.strip_suffix(tail)
        .is_some_and(|p| p.is_empty() || p.ends_with('.') || tail.is_empty())
}

/// Whether a path ends with another one, in which `*` stands for any one part.
pub(super) fn fits_end(path: &str, tail: &str) -> bool {
    let mut parts = path.rsplit('.');
    tail.is_empty()
        || tail
            .rsplit('.')
            .all(|t| parts.next().is_some_and(|p| p == t || p == "*" || t == "*"))
}
