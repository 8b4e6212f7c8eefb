//! Where a repository's files lie: `blobs/<hash>`, `snapshots/<commit>/<path>` as links to them, `refs/<revision>` with a commit.
//! The layout, the names of partial files and the locks are those of Python's `huggingface_hub`.

use super::name::{commit_hash, harmless};
use super::{Hub, IntoError, Reference, fail};
use crate::disk;
use crate::error::{Error, Result};
use crate::staging;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// Where the files of one repository are.
pub(super) struct Place {
    folder: PathBuf,
    locks: PathBuf,
    refs: PathBuf,
}

impl Place {
    pub(super) fn of(hub: &Hub, reference: &Reference) -> Place {
        let name = reference.cached();
        let folder = hub.cache.join(&name);
        Place {
            locks: hub.cache.join(".locks").join(name),
            refs: folder.join("refs"),
            folder,
        }
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(etag)
    }

    pub(super) fn partial(&self, etag: &str) -> PathBuf {
        self.folder.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.folder.join("snapshots").join(commit)
    }

    /// Waits until no other process downloads the same content.
    pub(super) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.locks.join(format!("{etag}.lock"));
        let make = || {
            fs::create_dir_all(&self.locks)?;
            fs::create_dir_all(self.folder.join("blobs"))?;
            let file = File::create(&path)?;
            file.lock()?;
            Ok(file)
        };
        make().map_err(|e| Error::io(&path, "the cache cannot be written to", e))
    }

    /// Gives a blob its name in a snapshot.
    pub(super) fn link(&self, etag: &str, commit: &str, path: &str) -> Result<PathBuf> {
        let pointer = self.snapshot(commit).join(path);
        let make = || -> std::io::Result<()> {
            let parent = pointer.parent().unwrap_or(&self.folder);
            fs::create_dir_all(parent)?;
            let depth = path.split('/').count();
            let temporary = parent.join(format!(".{etag}.{}", std::process::id()));
            let _ = fs::remove_file(&temporary);
            linked(&self.blob(etag), depth, etag, &temporary)?;
            fs::rename(&temporary, &pointer)
        };
        make().map_err(|e| Error::io(&pointer, "the cache cannot be written to", e))?;
        Ok(pointer)
    }

    /// Notes the commit of a revision.
    pub(super) fn note(&self, revision: &str, commit: &str) -> Result<()> {
        if revision == commit {
            return Ok(());
        }
        let path = self.refs.join(revision);
        let make = || -> std::io::Result<()> {
            let parent = path.parent().unwrap_or(&self.refs);
            fs::create_dir_all(parent)?;
            staging::write(&path, commit.as_bytes(), false)
        };
        make().map_err(|e| Error::io(&path, "the cache cannot be written to", e))
    }

    /// The commit that a revision had when it was asked for last.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if commit_hash(revision) {
            return Some(revision.to_owned());
        }
        let text = disk::own::text(self.refs.join(revision)).ok()?;
        let text = text.trim();
        commit_hash(text).then(|| text.to_owned())
    }

    /// The files of a snapshot with their sizes, by name.
    pub(super) fn files(&self, commit: &str) -> Result<Vec<(String, u64)>> {
        let root = self.snapshot(commit);
        let mut found = Vec::new();
        let mut folders = vec![root.clone()];
        while let Some(folder) = folders.pop() {
            let list =
                fs::read_dir(&folder).map_err(|e| Error::io(&folder, "cannot be read", e))?;
            for entry in list.flatten() {
                let path = entry.path();
                let Ok(meta) = fs::metadata(&path) else {
                    continue;
                };
                if entry.file_type().is_ok_and(|t| t.is_dir()) {
                    folders.push(path);
                } else if let Some(name) = relative(&root, &path).filter(|_| meta.is_file()) {
                    found.push((name, meta.len()));
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

#[cfg(unix)]
fn linked(_blob: &Path, depth: usize, etag: &str, at: &Path) -> std::io::Result<()> {
    let up = "../".repeat(depth + 1);
    std::os::unix::fs::symlink(format!("{up}blobs/{etag}"), at)
}

#[cfg(not(unix))]
fn linked(blob: &Path, _depth: usize, _etag: &str, at: &Path) -> std::io::Result<()> {
    fs::copy(blob, at).map(|_| ())
}

/// A path below another, with slashes.
pub(super) fn relative(root: &Path, path: &Path) -> Option<String> {
    let parts: Option<Vec<&str>> = path
        .strip_prefix(root)
        .ok()?
        .components()
        .map(|c| c.as_os_str().to_str())
        .collect();
    Some(parts?.join("/")).filter(|p| harmless(p))
}

/// The error of an offline run that misses something.
pub(super) fn not_cached(reference: &Reference, what: &str) -> Error {
    fail("hub-offline", format!("{what} is not in the cache, and the Hub must not be asked"))
        .at(reference.to_string())
        .help("unset HF_HUB_OFFLINE (and TRANSFORMERS_OFFLINE) once to pull it, or set HF_HOME to the cache that has it")
        .into_error()
}
