//! Selection: from an interface to sites.
//!
//! A graph has no modules; an interface names modules. [`ModuleTree`] recovers them from what exporters leave behind, and
//! [`Interface::select`] turns every field of the interface into values and nodes of the graph: a [`Selection`]. What a field means
//! is AdapterHub's: a projection is tapped at its input, output and weight, `layer_pre_*` at the value that *enters* the module,
//! `layer_ln_*` is a normalisation to apply again. Selection is linear in the size of the graph and changes nothing.

mod builtin;
mod check;
mod choose;
mod explain;
mod family;
mod field;
mod infer;
mod inspect;
mod interface;
mod modules;
mod parents;
mod position;
mod site;

use crate::analyze::flow::Flow;
use crate::analyze::linear::Linears;
use crate::diag::{Diagnostic, Severity};
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{Model, NodeId, OpId};
pub use family::Family;
pub use infer::{Proposal, infer_interface};
pub(crate) use inspect::Inspection;
pub use interface::{Fields, GraphNames, Interface, InterfaceFile, PerStack};
pub(crate) use interface::{Library, beside};
pub(crate) use modules::{ModuleId, ModuleTree, ROOT, Witness};
pub(crate) use site::LinearModule;
pub use site::{
    AttentionSite, Layer, Layout, LinearSite, ModuleSite, NormKind, NormSite, ParameterSite,
    QkvLayout, Role, Selection, TableSite, WeightForm, WeightUse,
};
use std::sync::Arc;

impl Interface {
    /// Finds every place that the interface names, in every layer.
    ///
    /// # Errors
    /// [`ErrorKind::Interface`](crate::ErrorKind::Interface) with all findings: fields that match nothing, in all layers or in some,
    /// with the layers and the nearest modules there.
    pub fn select(&self, verified: &Verified) -> Result<Selection> {
        let Examination {
            selection,
            findings,
        } = self.examine(verified);
        match selection {
            Some(mut s) if findings.iter().all(|d| d.severity == Severity::Warning) => {
                s.misses = [self.notes.clone(), findings].concat();
                Ok(s)
            }
            _ => Err(Error::many(ErrorKind::Interface, findings)),
        }
    }

    /// What [`select`](Self::select) finds, whether or not all fields match: for `inspect` and `interface check`.
    pub(crate) fn examine(&self, verified: &Verified) -> Examination {
        let (view, tree, linears) = modules(verified);
        let (selection, findings) = choose::run(&view, &tree, &linears, self);
        let with_tree = |selection| Selection {
            tree: Some(Arc::new(tree)),
            ..selection
        };
        Examination {
            selection: selection.map(with_tree),
            findings,
        }
    }
}

/// What flows in a model's main graph, its modules, and its linears, each of which belongs to one module as a whole.
pub(crate) fn modules(verified: &Verified) -> (Flow<'_>, ModuleTree, Linears) {
    let view = Flow::new(verified);
    let mut tree = ModuleTree::of_view(&view);
    let linears = tree.with_linears(&view);
    (view, tree, linears)
}

/// A selection that may be incomplete, with all findings.
#[derive(Clone, Debug)]
pub(crate) struct Examination {
    /// What was found; `None` without any layer.
    pub selection: Option<Selection>,
    /// What was not.
    pub findings: Vec<Diagnostic>,
}

/// Fused operators that swallow places which interfaces name: a norm with the residual addition in front, an attention with its
/// projections, an activation with the bias of the projection. With the input that makes them do so, where they can do without.
const HIDING: [(&str, Option<usize>); 13] = [
    ("Attention", None),
    ("BiasGelu", None),
    ("BiasSplitGelu", None),
    ("EmbedLayerNormalization", None),
    ("FastGelu", Some(1)),
    ("FusedConv", None),
    ("FusedGemm", None),
    ("GemmFastGelu", None),
    ("MultiHeadAttention", Some(3)),
    ("QAttention", None),
    ("SkipGroupNorm", None),
    ("SkipLayerNormalization", None),
    ("SkipSimplifiedLayerNormalization", None),
];

/// Attention as one operator, and products that are written as sums over indices.
const CORES: [(&str, &str); 5] = [
    ("", "Attention"),
    ("", "Einsum"),
    ("com.microsoft", "Attention"),
    ("com.microsoft", "GroupQueryAttention"),
    ("com.microsoft", "MultiHeadAttention"),
];

/// The operators of a model that swallow places which interfaces name. Expanding them into their definitions (a pass
/// does that) before selecting makes these places values of the graph.
pub(crate) fn hiding_operators(model: &Model) -> Vec<OpId> {
    let g = &model.graph;
    among(model, |n| {
        let op = &g.node(n).op;
        let hides = |(name, slot): &(&str, Option<usize>)| {
            *name == &*op.op_type && slot.is_none_or(|s| g.input(n, s).is_some())
        };
        &*op.domain == "com.microsoft" && HIDING.iter().any(hides)
    })
}

/// The operators of a model that hold the core of an attention: scores, masks, softmax and mix. Expanding them makes the core a part
/// of the graph, for what stands in front of keys and values or adds to the masks.
pub(crate) fn fused_attentions(model: &Model) -> Vec<OpId> {
    among(model, |n| {
        let op = &model.graph.node(n).op;
        CORES.contains(&(&*op.domain, &*op.op_type))
    })
}

/// Operators of the nodes that are wanted, each once.
fn among(model: &Model, wanted: impl Fn(NodeId) -> bool) -> Vec<OpId> {
    let g = &model.graph;
    let nodes = g.nodes().filter(|n| wanted(*n));
    let mut found: Vec<OpId> = nodes.map(|n| g.node(n).op.clone()).collect();
    found.sort();
    found.dedup();
    found
}

#[cfg(test)]
mod tests;
