//! Taking adapters out again: the inverse of [`AttachPass`](super::AttachPass), on the same model or on one that was written and read again.

use crate::adapters::manifest::Manifest;
use crate::adapters::{Setup, heads};
use crate::diag::{Diagnostic, nearest};
use crate::ir::contract::{self, stamp};
use crate::ir::{Graph, Metadata, NodeId, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Uses};
use rustc_hash::{FxHashMap, FxHashSet};

/// Removes attached adapters: all of them, or one.
#[derive(Clone, Debug, Default)]
pub(crate) struct Strip {
    /// The one to remove; `None` for all.
    pub adapter: Option<String>,
}

impl Strip {
    /// `kept`: owners of heads that stay.
    fn concerns(&self, metadata: &Metadata, kept: &[String]) -> bool {
        let found = metadata.get(stamp::ADAPTER);
        found.is_some_and(|name| {
            let wanted = |wanted| wanted == &**name || *heads::owner(wanted) == **name;
            self.adapter
                .as_deref()
                .map_or(!kept.iter().any(|k| **k == **name), wanted)
        })
    }
}

impl Pass for Strip {
    fn name(&self) -> &'static str {
        "strip"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let model = cx.model();
        let g = &model.graph;
        let manifest = Manifest::read(model)?;
        if let Some(name) = &self.adapter {
            check_attached(name, &manifest)?;
            check_apart(name, &manifest)?;
        }
        let kept: Vec<String> = manifest.merged_heads().map(heads::owner).collect();
        let nodes: Vec<NodeId> = g
            .nodes()
            .filter(|n| self.concerns(&g.node(*n).metadata, &kept))
            .collect();
        let closing = closing_values(g, &nodes)?;
        let values: Vec<ValueId> = g
            .initializers()
            .iter()
            .copied()
            .filter(|v| self.concerns(&g.value(*v).metadata, &kept))
            .collect();
        let inputs = self.inputs(g, &manifest, &nodes);
        let mut patch = cx.patch("strip", None);
        let gone: FxHashSet<NodeId> = nodes.iter().copied().collect();
        let mut restored: Vec<(ValueId, ValueId)> = closing
            .iter()
            .map(|(new, old)| (*new, root(*old, &closing)))
            .collect();
        restored.sort_unstable();
        for (new, old) in restored {
            let outside = g.is_output(new) || g.uses(new).iter().any(|u| !gone.contains(&u.node()));
            if outside {
                patch.redirect(new, old.into(), Uses::All);
            }
        }
        // What stands for a value that goes stands for the one under it.
        for n in g.nodes().filter(|n| !gone.contains(n)) {
            let replaced = g.node(n).metadata.get(stamp::REPLACES);
            let Some(old) = replaced.and_then(|name| g.find(name)) else {
                continue;
            };
            if closing.contains_key(&old) {
                patch.stamp(n, stamp::REPLACES, g.name_of(root(old, &closing)));
            }
        }
        // The first one attached remembers the base model's types: the last to be set.
        for n in nodes.iter().rev() {
            let Some(text) = g.node(*n).metadata.get(stamp::OUTPUTS) else {
                continue;
            };
            for (name, ty) in super::attach::outputs::remembered(text) {
                let value = g.outputs().iter().find(|p| g.name_of(p.value) == name);
                if let Some(port) = value {
                    patch.output_type(root(port.value, &closing), Some(ty));
                }
            }
        }
        for n in nodes {
            // An output of its own, of a head: nothing stands for it.
            let own = g.output(n, 0).filter(|v| g.is_output(*v));
            if let Some(v) = own.filter(|v| !closing.contains_key(v)) {
                patch.remove_output(v);
            }
            patch.remove_node(n);
        }
        for v in values.into_iter().chain(inputs) {
            patch.remove_value(v);
        }
        patch.model_metadata(
            stamp::MANIFEST,
            self.rest(manifest).map(|m| m.text()).as_deref(),
        );
        cx.commit(patch)?;
        Ok(())
    }
}

impl Strip {
    /// Graph inputs that came with adapters, and that only what goes reads.
    fn inputs(&self, g: &Graph, manifest: &Manifest, gone: &[NodeId]) -> Vec<ValueId> {
        if self.adapter.is_some() {
            return Vec::new();
        }
        let found = manifest.inputs.iter().filter_map(|n| g.find(n));
        let unread = |v: &ValueId| g.uses(*v).iter().all(|u| gone.contains(&u.node()));
        found.filter(|v| g.is_input(*v) && unread(v)).collect()
    }

    /// The manifest without what is removed; `None` when nothing is left.
    fn rest(&self, mut manifest: Manifest) -> Option<Manifest> {
        let gone = |name: &str| self.adapter.as_deref().is_none_or(|n| n == name);
        let attached: Vec<String> = manifest.names().map(str::to_owned).collect();
        // A head that was merged into the weights stays with them.
        manifest.heads.retain(|h| {
            h.merged || !gone(&h.name) || (!h.is_flexible() && !attached.contains(&h.name))
        });
        manifest.adapters.retain(|a| !gone(&a.name));
        if self.adapter.is_none() {
            (manifest.setups, manifest.inputs) = (Vec::new(), Vec::new());
            manifest.tenants = None;
        }
        let empty = manifest.adapters.is_empty() && manifest.heads.is_empty();
        (!empty).then_some(manifest)
    }
}

fn check_attached(name: &str, manifest: &Manifest) -> Result<(), Diagnostic> {
    let there: Vec<&str> = manifest.names().collect();
    if there.contains(&name) {
        return Ok(());
    }
    let mut d = Diagnostic::error(
        "adapter-missing",
        format!("no adapter `{name}` is attached to this model"),
    );
    if let Some(near) = nearest(name, there.iter().copied()) {
        d = d.note(format!("the nearest one is `{near}`"));
    }
    Err(d.help(match &*there {
        [] => "the model carries no adapters of this tool".to_owned(),
        _ => format!("attached are: {}", there.join(", ")),
    }))
}

/// The tasks of a setup share their nodes: one of them cannot go alone.
fn check_apart(name: &str, manifest: &Manifest) -> Result<(), Diagnostic> {
    if manifest.tenants.is_some() {
        let found = format!(
            "`{name}` is one of the adapters that `{}` chooses from, whose parameters are stacked",
            contract::ADAPTER_IDS
        );
        return Err(Diagnostic::error("adapter-bound", found)
            .help("`rewrite tenants remove` takes one of them out; without --name, all are"));
    }
    let setups = manifest.setups.iter();
    let bound = setups
        .filter_map(|s| Setup::from_json(s).ok())
        .find(|s| s.names().contains(&name));
    match bound {
        None => Ok(()),
        Some(setup) => Err(Diagnostic::error(
            "adapter-bound",
            format!("`{name}` is a part of `{setup}`, which is one piece of the graph"),
        )
        .help("strip all adapters, and attach again those that are to stay")),
    }
}

/// New value to the value whose place it took.
fn closing_values(g: &Graph, nodes: &[NodeId]) -> Result<FxHashMap<ValueId, ValueId>, Diagnostic> {
    let mut out = FxHashMap::default();
    for &n in nodes {
        let node = g.node(n);
        let Some(name) = node.metadata.get(stamp::REPLACES) else {
            continue;
        };
        let (Some(old), Some(new)) = (g.find(name), g.output(n, 0)) else {
            return Err(Diagnostic::error(
                "strip-value",
                format!("`{}` stands for `{name}`, which is not in the graph any more", node.name),
            )
            .help("another tool changed the graph after the adapter was attached; start from the base model"));
        };
        out.insert(new, old);
    }
    Ok(out)
}

/// The value at the end of a chain of replacements.
fn root(value: ValueId, closing: &FxHashMap<ValueId, ValueId>) -> ValueId {
    let mut at = value;
    for _ in 0..=closing.len() {
        match closing.get(&at) {
            Some(old) => at = *old,
            None => break,
        }
    }
    at
}

#[cfg(test)]
mod tests;
