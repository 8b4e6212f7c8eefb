//! The library's summary table: of adapter folders, or of the adapters in a model.

use super::event::{Event, OnEvent, note};
use super::open;
use crate::adapters::folder::AdapterFolder;
use crate::adapters::manifest::Manifest;
use crate::adapters::spec::{is_served, read_folder};
use crate::adapters::summary::Summary;
use crate::api;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use std::path::PathBuf;

/// What is summed up.
#[derive(Debug)]
pub(crate) enum Summed {
    /// The adapters in a model.
    Model(Summary),
    /// Folders and what they hold.
    Folders(Vec<(PathBuf, AdapterFolder)>),
}

/// Sums up adapters, or one model: a single path that is neither a folder nor one of ONNX Runtime's adapter files.
///
/// # Errors
/// Files that cannot be read; adapters that are not understood.
pub(crate) fn sum_up(paths: &[PathBuf], events: OnEvent<'_>) -> Result<Summed> {
    if let [path] = paths
        && !path.is_dir()
        && !is_served(path)
    {
        let model = open(path, events)?;
        let manifest = Manifest::read(model.model());
        let manifest = manifest.map_err(|d| Error::new(ErrorKind::Method, d))?;
        for adapter in manifest.adapters.iter().filter(|a| a.thirds) {
            events(&Event::Warning(in_thirds(&adapter.name)))?;
        }
        for kind in &manifest.exchanged {
            let method = kind.config["architecture"].as_str();
            let method = method.unwrap_or("a bottleneck");
            let line = format!(
                "adapters that come in: {method}, by {} inputs",
                kind.inputs.len()
            );
            note(events, line)?;
        }
        return Ok(Summed::Model(api::summary(&model)?));
    }
    let read = |p: &PathBuf| {
        let mut folder = read_folder(p)?;
        if folder.goes_by_thirds() {
            folder.notes.push(in_thirds(&folder.name));
        }
        Ok((p.clone(), folder))
    };
    Ok(Summed::Folders(
        paths.iter().map(read).collect::<Result<_>>()?,
    ))
}

/// What is to be known of an adapter that the library made for a projection of q, k and v in one.
fn in_thirds(name: &str) -> Diagnostic {
    let found = format!(
        "`{name}` adapts thirds of the packed projection, as the Adapters library does, whatever the columns of q, k and v are"
    );
    Diagnostic::warning("compat-thirds", found)
        .help("with equal blocks (GPT-2) they are the same; grouped queries and heads side by side (GPT-NeoX, BLOOM, Falcon) are not")
}
