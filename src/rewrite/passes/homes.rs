//! Says of added nodes which module they stand in, in the words of exporters.
//!
//! `torch.onnx` notes the modules around each node in `metadata_props`: their paths (`pkg.torch.onnx.name_scopes`), their classes
//! (`pkg.torch.onnx.class_hierarchy`), and both in one line (`namespace`), which viewers group by. Nodes of adapters get the same, with
//! the adapter as a part of the module that it adapts, so that whatever groups by module finds them where they act.

use crate::infer::Verified;
use crate::ir::contract::{EXCHANGED, exporter, stamp};
use crate::ir::layers::number;
use crate::ir::{Builder, Metadata, NewNode, NodeId};
use crate::select::{ModuleTree, Selection};
use std::sync::Arc;

/// The modules of a model to which nodes are added.
pub(super) struct Homes {
    tree: Arc<ModuleTree>,
}

impl Homes {
    /// Finds the modules; those of a base model are known from a selection of it. Linear in the size of the graph.
    pub(super) fn of(model: &Verified, selection: Option<&Selection>) -> Self {
        let graph = &model.model().graph;
        let ours = |n| graph.node(n).metadata.contains_key(stamp::ADAPTER);
        let known = selection.and_then(|s| s.tree.clone());
        let known = known.filter(|_| !graph.nodes().any(ours));
        Homes {
            tree: known.unwrap_or_else(|| Arc::new(ModuleTree::new(model))),
        }
    }

    /// Path of the module that a node of the model is in; empty where nothing tells.
    pub(super) fn around(&self, node: Option<NodeId>) -> &str {
        node.map_or("", |n| self.tree.path_of(n))
    }

    /// Says of all nodes that a builder has made which module they are in. They hang on a node of the module `near`; `class` gives the
    /// class of the adapter of a name.
    pub(super) fn tell(&self, b: &Builder, near: &str, class: &dyn Fn(&str) -> String) {
        b.describe(|node| {
            let (scope, _) = node.name.split_once('/').unwrap_or_default();
            let owner = node.metadata.get(stamp::ADAPTER);
            let within = scope
                .strip_prefix(near)
                .is_some_and(|rest| rest.starts_with('.'));
            let path = match owner {
                // Parameters that come in are named by the module alone.
                Some(owner) if **owner == *EXCHANGED && within && !near.is_empty() => {
                    format!("{near}.loras.{EXCHANGED}")
                }
                _ => settled(scope, near),
            };
            self.metadata(node, &path, &owner.map(|o| class(o)).unwrap_or_default())
        });
    }

    fn metadata(&self, node: &NewNode, path: &str, class: &str) -> Metadata {
        let mut modules = vec![("", self.class(""))];
        for part in boundaries(path) {
            let class = if part == path {
                class
            } else {
                self.class(part)
            };
            modules.push((part, class));
        }
        let op = &*node.op.op_type;
        modules.push((&node.name, op));
        let listed = |text: &dyn Fn(&(&str, &str)) -> String| {
            modules.iter().map(text).collect::<Vec<_>>().join(", ")
        };
        let line: Vec<String> = modules
            .iter()
            .map(|(p, c)| format!("{}: {c}", flat(p)))
            .collect();
        Metadata::from_iter([
            (exporter::NAMESPACE.into(), line.join("/").into()),
            (
                exporter::CLASSES.into(),
                format!("[{}]", listed(&|(_, c)| quoted(c))).into(),
            ),
            (
                exporter::SCOPES.into(),
                format!("[{}]", listed(&|(p, _)| quoted(p))).into(),
            ),
        ])
    }

    /// The class that the exporter recorded of a module.
    fn class(&self, path: &str) -> &str {
        let found = self.tree.descend(crate::select::ROOT, path);
        found
            .and_then(|m| self.tree.module(m).class.as_deref())
            .unwrap_or_default()
    }
}

/// The paths of a module and of those around it, outermost first; a list of layers is no module that is called.
fn boundaries(path: &str) -> impl Iterator<Item = &str> {
    let ends = path.match_indices('.').map(|(at, _)| at);
    let called = |end: &usize| number(path[*end..].split('.').nth(1).unwrap_or_default()).is_none();
    let whole = (!path.is_empty()).then_some(path.len());
    ends.filter(called).chain(whole).map(|end| &path[..end])
}

/// Where a module of an adapter stands in the tree of the model: its path in files names the modules of the library's own class, of which
/// the exported model may be a part, or a whole with more around it. Both have the same layers.
fn settled(scope: &str, near: &str) -> String {
    let (own, there): (Vec<&str>, Vec<&str>) =
        (scope.split('.').collect(), near.split('.').collect());
    let Some(at) = (1..own.len()).find(|i| number(own[*i]).is_some()) else {
        return scope.to_owned();
    };
    let layer = (1..there.len()).find(|i| there[i - 1..=*i] == own[at - 1..=at]);
    match layer {
        Some(i) => [&there[..=i], &own[at + 1..]].concat().join("."),
        None if near.is_empty() => scope.to_owned(),
        // Another name for the layers: what is behind the module's own names goes into the module.
        None => {
            let leaf = own.len().saturating_sub(2).max(at + 1);
            [&there[..], &own[leaf..]].concat().join(".")
        }
    }
}

/// A string as Python's `repr` writes it.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\\', "\\\\").replace('\'', "\\'"))
}

/// A name without the sign that parts the entries of `namespace`.
fn flat(name: &str) -> String {
    name.replace('/', ".")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_of_a_file_is_settled_in_the_tree_of_the_graph() {
        for (scope, near, path) in [
            (
                "model.layers.0.q.loras.a",
                "model.layers.0.q",
                "model.layers.0.q.loras.a",
            ),
            (
                "bert.encoder.layer.1.q.loras.a",
                "encoder.layer.1.q",
                "encoder.layer.1.q.loras.a",
            ),
            (
                "h.0.attn.c_attn.loras.a",
                "transformer.h.0.attn",
                "transformer.h.0.attn.c_attn.loras.a",
            ),
            (
                "h.0.attn.c_attn.loras.a",
                "blocks.0.attention",
                "blocks.0.attention.loras.a",
            ),
            ("layers.3.adapters.a", "", "layers.3.adapters.a"),
            ("heads.default", "", "heads.default"),
            ("", "model", ""),
        ] {
            assert_eq!(settled(scope, near), path, "{scope} near {near}");
        }
    }

    #[test]
    fn lists_are_no_boundaries() {
        let of = |path| boundaries(path).collect::<Vec<_>>();
        assert_eq!(
            of("model.layers.0.q"),
            ["model", "model.layers.0", "model.layers.0.q"]
        );
        assert!(of("").is_empty());
    }
}
