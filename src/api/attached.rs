//! Which adapters a model holds, and where: for who looks into a file.

use crate::adapters::manifest::Manifest;
use crate::adapters::naming::MARKS;
use crate::diag::grouped;
use crate::error::Result;
use crate::infer::Verified;
use crate::ir::contract::{ADAPTER_IDS, stamp};
use crate::ir::layers::{folded, numbered, ranges};
use crate::select::ModuleTree;
use indexmap::{IndexMap, IndexSet};
use serde::Serialize;
use std::fmt;

/// An adapter in a model, and where it is.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Attached {
    /// Its name.
    pub name: String,
    /// Its architecture, where the manifest has it.
    pub architecture: Option<String>,
    /// What people call its configuration, where the manifest has it.
    pub kind: Option<String>,
    /// Number of its parameters, where the manifest has it.
    pub parameters: Option<u64>,
    /// Whether all of them are trained.
    pub trained: bool,
    /// Modules that it is a part of, those of equal layers as one.
    pub modules: Vec<String>,
    /// Numbers of the layers, as ranges.
    pub layers: String,
    /// Number of modules.
    pub places: usize,
}

/// The adapters that the main graph of a model holds, in the order of attaching. Linear in the size of the graph.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn attached(model: &Verified) -> Result<Vec<Attached>> {
    let mut modules = adapted_modules(model);
    let (configs, summary) = (super::manifest(model)?, super::summary(model)?);
    let mut names: IndexSet<String> = summary.rows.iter().map(|r| r.name.clone()).collect();
    names.extend(modules.keys().cloned());
    let one = |name: String| {
        let row = summary.rows.iter().find(|r| r.name == name);
        let found = modules.swap_remove(&name).unwrap_or_default();
        Attached {
            architecture: row.map(|r| r.architecture.clone()),
            kind: configs.iter().find(|c| c.0 == name).map(|c| c.1.called()),
            parameters: row.map(|r| r.params),
            trained: row.is_some_and(|r| r.train),
            layers: ranges(found.iter().filter_map(|m| numbered(m).1)),
            places: found.len(),
            modules: folded(found.iter().map(|m| &**m)),
            name,
        }
    };
    Ok(names.into_iter().map(one).collect())
}

/// The modules of the model that each adapter is a part of.
pub(crate) fn adapted_modules(model: &Verified) -> IndexMap<String, IndexSet<String>> {
    let graph = &model.model().graph;
    let mut out: IndexMap<String, IndexSet<String>> = IndexMap::new();
    let stamped = graph
        .nodes()
        .filter_map(|n| Some((n, graph.node(n).metadata.get(stamp::ADAPTER)?)));
    let mut stamped = stamped.peekable();
    if stamped.peek().is_none() {
        return out;
    }
    let tree = ModuleTree::new(model);
    // A manifest that cannot be read is reported by who needs it.
    let manifest = Manifest::read(model.model()).unwrap_or_default();
    let tenants = manifest.tenants.map(|t| t.names).unwrap_or_default();
    for (n, owner) in stamped {
        let outer = adapted(tree.path_of(n));
        // Those of which each sample has one stand where all of them do.
        let shared = tenants.iter().filter(|_| **owner == *ADAPTER_IDS);
        let names: Vec<&str> = match shared.map(|n| &**n).collect::<Vec<_>>() {
            names if names.is_empty() => vec![&**owner],
            names => names,
        };
        for name in names {
            let found = out.entry(name.to_owned()).or_default();
            if !outer.is_empty() && outer != ADAPTER_IDS {
                found.insert(outer.to_owned());
            }
        }
    }
    out
}

/// The module that an adapter's own module is a part of.
fn adapted(path: &str) -> &str {
    let whole = format!("{path}.");
    let marks = MARKS.iter().filter(|m| m.starts_with('.'));
    let at = marks.filter_map(|m| whole.find(m)).min();
    at.and_then(|at| path.get(..at)).unwrap_or(path)
}

impl fmt::Display for Attached {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.name)?;
        if let Some(kind) = self.kind.as_deref().filter(|k| *k != self.name) {
            write!(f, " ({kind})")?;
        }
        if let Some(n) = self.parameters {
            let trained = if self.trained {
                ""
            } else {
                ", not all trained"
            };
            write!(f, ", {} parameters{trained}", grouped(n))?;
        }
        if !self.modules.is_empty() {
            write!(f, ", at {}", self.modules.join(", "))?;
        }
        if !self.layers.is_empty() {
            write!(f, " of layers {}", self.layers)?;
        }
        Ok(())
    }
}
