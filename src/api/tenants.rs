//! Adapters that the input `adapter_ids` of a model chooses from: what the model remembers of them, and getting them back.

use super::attach::interface_for;
use crate::adapters::folder::{AdapterFolder, Meta};
use crate::adapters::manifest::{Manifest, Tenants};
use crate::adapters::{Adapter, AdapterStore, Route};
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::select::{Interface, Selection};

/// The adapters that the input `adapter_ids` of a model chooses from, in the order of their ids, each as the folder that it was attached
/// from.
///
/// # Errors
/// [`ErrorKind::Method`]: a model without such adapters, or a manifest that cannot be read.
pub fn tenants(model: &Verified) -> Result<Vec<AdapterFolder>> {
    Ok(read(model)?.1)
}

/// The same, with what the manifest says of all of them.
pub(super) fn read(model: &Verified) -> Result<(Tenants, Vec<AdapterFolder>)> {
    let wrong = |d: Diagnostic| Error::new(ErrorKind::Method, d);
    let manifest = Manifest::read(model.model()).map_err(wrong)?;
    let Some(tenants) = &manifest.tenants else {
        let found = format!(
            "this model has no adapters that an input `{}` chooses from",
            contract::ADAPTER_IDS
        );
        return Err(wrong(Diagnostic::error("tenants-none", found).help(
            "make one: rewrite --adapter-ids -a a=DIR -a b=DIR model.onnx -o tenants.onnx",
        )));
    };
    let store = AdapterStore::from_model(model.model());
    let folder = |(id, name): (usize, &String)| {
        let entry = manifest.adapters.iter().find(|e| e.name == *name);
        let entry = entry.ok_or_else(|| {
            let found = format!("the manifest says nothing of the adapter `{name}`");
            wrong(Diagnostic::error("manifest", found).help("the file was changed by another tool"))
        })?;
        let (meta, interface) = tenants.file(id);
        let config = entry.config()?;
        Ok(AdapterFolder::from_store(
            name, config, &store, meta, interface,
        ))
    };
    let folders = tenants.names.iter().enumerate().map(folder);
    let folders = folders.collect::<Result<_>>()?;
    Ok((tenants.clone(), folders))
}

/// What a model remembers of adapters that are attached to it so that they can be attached again.
pub(super) fn noted(
    adapters: &[Adapter],
    interface: &Interface,
    selection: &Selection,
    meta: &Meta,
    skip_layers: Vec<usize>,
) -> Tenants {
    let mut out = Tenants {
        interface: (!interface.is_bare()).then(|| interface.to_json()),
        // A path says nothing to others.
        source: if interface.is_builtin() {
            interface.source.clone()
        } else {
            "the model's own interface".to_owned()
        },
        skip_layers,
        ..Tenants::default()
    };
    for a in adapters {
        if let Some(saved) = &a.meta {
            out.push(&a.name, saved.clone(), a.target.interface.clone());
            continue;
        }
        let mut meta = meta.clone();
        let mut own = None;
        match &a.route {
            Route::Native { model_type } if meta.model_type.is_empty() => {
                meta.model_type = model_type.to_string();
            }
            Route::Native { .. } => {}
            Route::Plugin if interface.is_bare() => {}
            Route::Plugin => own = Some(interface_for(&a.config, interface, selection).to_json()),
        }
        out.push(&a.name, meta, own);
    }
    out
}

/// Refuses to leave out an adapter that is not there, or the only one.
pub(super) fn check_left(name: &str, adapters: &[Adapter]) -> Result<()> {
    let names: Vec<&str> = adapters.iter().map(|a| &*a.name).collect();
    let d = if !names.contains(&name) {
        let found = format!("there is no adapter `{name}`");
        let d = Diagnostic::error("adapter-missing", found);
        match nearest(name, names.iter().copied()) {
            Some(near) => d.help(format!("did you mean `{near}`?")),
            None => d.help(format!("there are: {}", names.join(", "))),
        }
    } else if names.len() == 1 {
        Diagnostic::error("adapter-last", format!("`{name}` is the only adapter"))
            .help("`rewrite strip` takes out all adapters")
    } else {
        return Ok(());
    };
    Err(Error::new(ErrorKind::Method, d))
}
