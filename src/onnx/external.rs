//! External tensor data: ranges of files beside the model.
//!
//! Locations are untrusted: they must lie in the model's folder (no absolute path, no `..`, no symbolic link that leads out) and be
//! regular files; only in the Hub's cache may they be links to the blobs of the same repository. Each file is mapped once, and every tensor is a slice of the map. Offsets and lengths may be of any alignment.

use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use bytes::Bytes;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

/// Where the external data of a model comes from.
#[derive(Debug, Default)]
pub struct ExternalSource {
    folder: Option<Arc<Path>>,
    /// By location as written; two spellings of one file are two maps of the same pages.
    files: RefCell<BTreeMap<Box<str>, Bytes>>,
}

impl ExternalSource {
    /// No files: external tensors are read as references without bytes.
    pub fn none() -> Self {
        ExternalSource::default()
    }

    /// Files of this folder and its subfolders: the folder that holds the model.
    pub fn folder(folder: impl AsRef<Path>) -> Self {
        ExternalSource {
            folder: Some(folder.as_ref().into()),
            files: RefCell::default(),
        }
    }

    /// The folder, where there is one.
    pub(super) fn base(&self) -> Option<Arc<Path>> {
        self.folder.clone()
    }

    /// A range of a file; `want` is the length that the tensor's type and dimensions ask for. `None` without files.
    pub(super) fn range(
        &self,
        location: &str,
        offset: u64,
        length: Option<u64>,
        want: u64,
    ) -> Result<Option<Bytes>> {
        let Some(folder) = &self.folder else {
            return Ok(None);
        };
        let file = self.file(folder, location)?;
        let size = u64::try_from(file.len()).unwrap_or(u64::MAX);
        let found = length.unwrap_or(want);
        if found != want {
            return Err(bad(format!(
                "the tensor takes {want} bytes, but its `length` in `{location}` is {found}"
            )));
        }
        let end = offset.checked_add(want).filter(|&end| end <= size);
        let range =
            end.and_then(|end| Some(usize::try_from(offset).ok()?..usize::try_from(end).ok()?));
        let Some(range) = range else {
            return Err(Error::new(
                ErrorKind::Decode,
                Diagnostic::error(
                    "external-data",
                    format!("bytes {offset} to {offset}+{want} of `{location}` are wanted, which has {size}"),
                )
                .help("the data file is incomplete or belongs to another model"),
            ));
        };
        Ok(Some(file.slice(range)))
    }

    fn file(&self, folder: &Path, location: &str) -> Result<Bytes> {
        if let Some(found) = self.files.borrow().get(location) {
            return Ok(found.clone());
        }
        let path = contained(folder, location)?;
        let bytes = map(&path)?.bytes();
        self.files
            .borrow_mut()
            .insert(location.into(), bytes.clone());
        Ok(bytes)
    }
}

fn bad(message: String) -> Error {
    Error::new(
        ErrorKind::Decode,
        Diagnostic::error("external-data", message),
    )
}

/// The path of a location relative to the folder: plain components only.
pub(super) fn relative(location: &str) -> Result<PathBuf> {
    let path = Path::new(location);
    let plain = path
        .components()
        .all(|c| matches!(c, Component::Normal(_) | Component::CurDir));
    let clean: PathBuf = path
        .components()
        .filter(|c| matches!(c, Component::Normal(_)))
        .collect();
    if !plain || clean.as_os_str().is_empty() || location.contains('\0') {
        return Err(Error::new(
            ErrorKind::Decode,
            Diagnostic::error(
                "external-data-path",
                format!(
                    "the external data location `{}` is not a path inside the model's folder",
                    location.escape_debug()
                ),
            )
            .help("locations are relative to the model, without `..`"),
        ));
    }
    Ok(clean)
}

/// The existing regular file that a location names, resolved, inside the resolved folder.
pub(super) fn contained(folder: &Path, location: &str) -> Result<PathBuf> {
    let clean = relative(location)?;
    // A bare file name has the empty folder, which is the current one.
    let folder = if folder.as_os_str().is_empty() {
        Path::new(".")
    } else {
        folder
    };
    let root = folder
        .canonicalize()
        .map_err(|e| Error::io(folder, "cannot find the folder of the model", e))?;
    let path = root.join(&clean);
    let real = path
        .canonicalize()
        .map_err(|e| missing(&path, location, e))?;
    if !real.starts_with(&root) && !in_hub_cache(&root, &real) {
        return Err(Error::new(
            ErrorKind::Decode,
            Diagnostic::error(
                "external-data-path",
                format!("the external data `{location}` is a symbolic link that leads out of the model's folder"),
            )
            .help("put the file itself, or a hard link to it, beside the model"),
        ));
    }
    Ok(real)
}

/// The error of a file of weights that is not beside its model.
fn missing(path: &Path, location: &str, e: std::io::Error) -> Error {
    let d = Diagnostic::error("io", format!("cannot find the external data: {e}"));
    let d = d.at(path.display().to_string());
    let help = format!(
        "the model's weights are in the file `{location}`, whose place is beside the model: copy it from where the model is from, or export \
         again into one file (`external_data=False`)"
    );
    Error::new(ErrorKind::Io, d.help(help)).with_source(e)
}

/// Whether a file is a blob of the repository whose snapshot a folder is in the Hub's cache, where all files of a snapshot are links:
/// `REPO/snapshots/<commit>/…` and `REPO/blobs/<hash>`.
fn in_hub_cache(root: &Path, real: &Path) -> bool {
    let snapshots = root.ancestors().skip(1).find(|a| a.ends_with("snapshots"));
    let repo = snapshots.and_then(Path::parent);
    repo.is_some_and(|repo| real.parent() == Some(repo.join("blobs").as_path()))
}

/// A mapped file; empty files have no map.
#[derive(Clone)]
pub(super) struct Mapped(Option<Arc<memmap2::Mmap>>);

impl AsRef<[u8]> for Mapped {
    fn as_ref(&self) -> &[u8] {
        self.0.as_deref().map_or(&[], |map| map)
    }
}

impl Mapped {
    /// The bytes, which keep the map alive.
    pub(super) fn bytes(&self) -> Bytes {
        Bytes::from_owner(self.clone())
    }

    /// Reading a message jumps from tag to tag: no read-ahead, so that weights are not brought in.
    pub(super) fn skim(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.0 {
            // Advice that is not taken changes nothing but speed.
            let _ = map.advise(memmap2::Advice::Random);
        }
    }

    /// The message is read: pages that were mapped along with the tags are given back, and read-ahead is on again.
    #[allow(unsafe_code, reason = "advice on a map of this file")]
    pub(super) fn settle(&self) {
        #[cfg(unix)]
        if let Some(map) = &self.0 {
            let _ = map.advise(memmap2::Advice::Normal);
            // SAFETY: the map is shared and read-only, so that dropped pages come back from the file with the same content.
            let _ = unsafe { map.unchecked_advise(memmap2::UncheckedAdvice::DontNeed) };
        }
    }
}

/// Maps a regular file that was given.
pub(super) fn map(path: &Path) -> Result<Mapped> {
    let opened = disk::open_mapped(path).map_err(|e| Error::io(path, "cannot open", e))?;
    mapped(path, opened)
}

/// Maps a regular file that is looked at only.
pub(super) fn peek(path: &Path) -> Result<Mapped> {
    let open = || {
        let file = disk::own::open(path)?;
        let len = file.metadata()?.len();
        Ok((file, len))
    };
    mapped(path, open().map_err(|e| Error::io(path, "cannot open", e))?)
}

fn mapped(path: &Path, (file, len): (File, u64)) -> Result<Mapped> {
    // An empty file cannot be mapped.
    if len == 0 {
        return Ok(Mapped(None));
    }
    // SAFETY: the map is read-only and shared, and lives as long as any slice of it. Another process that truncates or writes the
    // file while it is mapped breaks what the map promises, as for every program that maps files; this library never writes into
    // an existing file, it replaces files by renaming.
    #[allow(unsafe_code, reason = "mapping a file")]
    let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "cannot map", e))?;
    Ok(Mapped(Some(Arc::new(map))))
}
