//! Deleting adapter folders.

use super::{ADAPTER, FUSION, file, is_fusion, object};
use crate::adapters::peft::file as peft;
use crate::adapters::spec::folder_name;
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use serde_json::Value;
use std::fs;
use std::path::{Path, PathBuf};

/// The files of an adapter folder, AdapterHub's or PEFT's, with those of the head that the library saves beside it.
pub(super) const OWN_FILES: [&str; 13] = [
    file::SAFETENSORS,
    peft::SAFETENSORS,
    peft::TORCH,
    file::TORCH,
    file::FUSION_SAFETENSORS,
    file::FUSION_TORCH,
    file::FUSION_CONFIG,
    file::INTERFACE,
    file::WHOLE_INTERFACE,
    "head_config.json",
    "pytorch_model_head.bin",
    "model_head.safetensors",
    file::CONFIG,
];

/// What [`delete`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Deleted {
    /// Name of the adapter.
    pub name: String,
    /// The files that are gone.
    pub files: Vec<PathBuf>,
    /// What else is in the folder, and stays.
    pub kept: Vec<PathBuf>,
}

/// Deletes an adapter folder: the files that a saved adapter consists of, the configuration last, and the folder if it is empty then.
/// Everything else in it stays. Nothing is followed: a link is removed, not what it points to.
///
/// # Errors
/// [`ErrorKind::Method`] for a folder that holds no adapter, [`ErrorKind::Io`] for one that is a link or cannot be changed.
pub(crate) fn delete(folder: &Path) -> Result<Deleted> {
    let kind = fs::symlink_metadata(folder).map_err(|e| Error::io(folder, "cannot be read", e))?;
    let refuse = |what: &str, help: &str| {
        let finding = Diagnostic::error("delete", what).at(folder.display().to_string());
        Err(Error::new(ErrorKind::Method, finding.help(help)))
    };
    if !kind.is_dir() {
        return refuse(
            "this is no folder",
            "give the folder of a saved adapter itself, not a link or a file",
        );
    }
    let kind = if is_fusion(folder) { &FUSION } else { &ADAPTER };
    let path = folder.join(kind.config);
    let text = disk::own::text(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
    let top = object(&text).map_err(|e| e.within(path.display().to_string()))?;
    let named = top.get("name").filter(|_| top.contains_key("config"));
    let name = match named.and_then(Value::as_str) {
        Some(name) => name.to_owned(),
        // PEFT's files have no name: the folder is called by it.
        None if top.contains_key("peft_type") => folder_name(folder),
        None => {
            return refuse(
                "its adapter_config.json is not that of a saved adapter",
                "nothing was deleted",
            );
        }
    };
    let mut done = Deleted {
        name,
        ..Deleted::default()
    };
    for file in OWN_FILES {
        let path = folder.join(file);
        match fs::symlink_metadata(&path) {
            Ok(m) if !m.is_dir() => {
                fs::remove_file(&path).map_err(|e| Error::io(&path, "cannot be deleted", e))?;
                done.files.push(path);
            }
            Ok(_) | Err(_) => {}
        }
    }
    let left = fs::read_dir(folder).map_err(|e| Error::io(folder, "cannot be read", e))?;
    done.kept = left.filter_map(|e| e.ok().map(|e| e.path())).collect();
    done.kept.sort();
    if done.kept.is_empty() {
        fs::remove_dir(folder).map_err(|e| Error::io(folder, "cannot be deleted", e))?;
    }
    Ok(done)
}
