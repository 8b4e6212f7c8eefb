//! The manifest of a model that adapters are attached to.

use super::AttachPass;
use crate::adapters::base::keeps_thirds;
use crate::adapters::manifest::{Entry, Manifest};
use crate::diag::Diagnostic;
use crate::ir::contract;
use serde_json::Map;

pub(super) fn check_names(names: &[&str], there: &Manifest) -> Result<(), Diagnostic> {
    for (i, name) in names.iter().enumerate() {
        if there.names().any(|t| t == *name) {
            return Err(Diagnostic::error(
                "adapter-twice",
                format!("an adapter `{name}` is attached to this model already"),
            )
            .help("strip it first, or attach under another name"));
        }
        if names[..i].contains(name) {
            return Err(Diagnostic::error(
                "adapter-twice",
                format!("two adapters are called `{name}`"),
            )
            .help("give one of them another name: `NAME=SPEC`"));
        }
    }
    Ok(())
}

/// The manifest with the pass's adapters added.
pub(super) fn extended(mut manifest: Manifest, pass: &AttachPass) -> Manifest {
    manifest.written();
    manifest.adapters.extend(pass.adapters.iter().map(|a| {
        let mut methods = a.config.methods().iter();
        Entry {
            name: a.name.clone(),
            config: a.config.to_dict(),
            config_id: Some(a.config.hash()),
            route: Some(a.route.to_string()),
            whole_rows: methods
                .find_map(|m| m.reads_whole_rows())
                .map(str::to_owned),
            model_name: a
                .meta
                .as_ref()
                .map_or_else(String::new, |m| m.model_name.clone()),
            thirds: keeps_thirds(a, &pass.selection),
            extra: Map::new(),
        }
    }));
    if pass.setup.is_bound() {
        manifest.setups.push(pass.setup.to_json());
    }
    if !pass.setup.multi_tasks().is_empty() {
        if manifest.inputs.is_empty() {
            manifest.inputs.push(contract::TASK_IDS.into());
        }
    }
    manifest
}
