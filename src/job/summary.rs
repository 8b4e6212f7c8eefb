//! The library's summary table: of adapter folders, or of the adapters in a model.

use super::event::OnEvent;
use super::open;
use crate::adapters::Setup;
use crate::adapters::folder::AdapterFolder;
use crate::adapters::spec::read_folder;
use crate::adapters::summary::Summary;
use crate::api;
use crate::error::Result;
use std::path::PathBuf;

/// What is summed up.
#[derive(Debug)]
pub(crate) enum Summed {
    /// The adapters in a model.
    Model(Summary),
    /// Folders and what they hold.
    Folders(Vec<(PathBuf, AdapterFolder)>),
}

/// Sums up adapter folders, or one model: a single path that is no folder.
///
/// # Errors
/// Files that cannot be read; adapters that are not understood.
pub(crate) fn sum_up(paths: &[PathBuf], events: OnEvent<'_>) -> Result<Summed> {
    if let [path] = paths
        && !path.is_dir()
    {
        let model = open(path, events)?;
        let names = api::manifest(&model)?.into_iter().map(|(n, _)| n);
        return Ok(Summed::Model(api::summary(&model, &Setup::stack(names))?));
    }
    let read = |p: &PathBuf| Ok((p.clone(), read_folder(p)?));
    Ok(Summed::Folders(
        paths.iter().map(read).collect::<Result<_>>()?,
    ))
}
