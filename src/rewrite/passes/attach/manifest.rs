//! The manifest of a model that adapters are attached to.

use super::AttachPass;
use super::exchange::Exchange;
use crate::adapters::base::keeps_thirds;
use crate::adapters::manifest::{Entry, Manifest, Tenants};
use crate::diag::Diagnostic;
use crate::ir::{Model, contract};
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

/// Refuses what cannot stand beside adapters that `adapter_ids` chooses from.
pub(super) fn check_tenants(
    tenants: Option<&Tenants>,
    there: &Manifest,
    model: &Model,
) -> Result<(), Diagnostic> {
    let name = contract::ADAPTER_IDS;
    if !there.exchanged.is_empty() {
        let found = "the adapters of this model are inputs, which come when it runs";
        return Err(Diagnostic::error("exchange-there", found).help(
            "`rewrite export-adapter` makes files for it; or start from the base model: `rewrite strip`",
        ));
    }
    if there.tenants.is_some() {
        let found = format!("this model holds adapters that its input `{name}` chooses from");
        return Err(Diagnostic::error("tenants-there", found).help(
            "`rewrite tenants add` puts further ones beside them; or start from the base model: `rewrite strip`",
        ));
    }
    let Some(tenants) = tenants else {
        return Ok(());
    };
    let flexible = there.heads.iter().find(|h| h.is_flexible());
    if let Some(other) = there.names().next().or(flexible.map(|h| &*h.name)) {
        let found = format!(
            "`{other}` is attached to this model, and would act on every sample beside those that `{name}` chooses from"
        );
        return Err(Diagnostic::error("tenants-beside", found)
            .help("merge it into the weights first (`rewrite merge`), or start from the base model: `rewrite strip`"));
    }
    if tenants.names.iter().any(|n| n == name) {
        let found = format!("an adapter is called `{name}`, like the input that chooses one");
        return Err(
            Diagnostic::error("adapter-name", found).help("give it another name: -a NAME=SPEC")
        );
    }
    check_optional(model)
}

/// Refuses what inputs of adapters cannot stand beside.
pub(super) fn check_exchanged(there: &Manifest, model: &Model) -> Result<(), Diagnostic> {
    let flexible = there.heads.iter().find(|h| h.is_flexible());
    if let Some(other) = there.names().next().or(flexible.map(|h| &*h.name)) {
        let found = format!(
            "`{other}` is attached to this model, and would act beside every adapter that comes"
        );
        return Err(Diagnostic::error("exchange-beside", found)
            .help("merge it into the weights first (`rewrite merge`), or start from the base model: `rewrite strip`"));
    }
    check_optional(model)
}

/// Refuses files whose version of the format knows no inputs that may be left out.
pub(super) fn check_optional(model: &Model) -> Result<(), Diagnostic> {
    if model.ir_version < 4 {
        let found = format!(
            "this file is of version {} of ONNX's format, in which no input may be left out",
            model.ir_version
        );
        return Err(Diagnostic::error("ir-version", found)
            .help("export the model again with a tool of 2019 or later"));
    }
    Ok(())
}

/// The manifest with the pass's adapters added.
pub(super) fn extended(
    mut manifest: Manifest,
    pass: &AttachPass,
    exchange: Option<&Exchange<'_>>,
) -> Manifest {
    manifest.written();
    if let Some(exchange) = exchange {
        manifest.exchanged = exchange.exchangeable();
        return manifest;
    }
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
    if pass.skip_input {
        manifest.inputs.push(contract::SKIP_LAYERS.into());
    }
    if let Some(tenants) = &pass.tenants {
        manifest.tenants = Some(tenants.clone());
        manifest.inputs.push(contract::ADAPTER_IDS.into());
        return manifest;
    }
    if pass.setup.is_bound() {
        manifest.setups.push(pass.setup.to_json());
    }
    let tasks = contract::TASK_IDS;
    if !pass.setup.multi_tasks().is_empty() && manifest.inputs.iter().all(|n| n != tasks) {
        manifest.inputs.push(contract::TASK_IDS.into());
    }
    manifest
}
