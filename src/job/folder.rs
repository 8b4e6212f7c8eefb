//! The output folder of a training: it belongs to one run, and to one process at a time.
//!
//! A run is recognised by what it leaves: adapters, checkpoints, a log, a record, a report. Another one is refused there unless it goes
//! on from a checkpoint of the folder, or replaces what is there; then checkpoints, reports and the adapters that its record names are gone
//! before the first step, so that nothing of two runs stands side by side. The lock is the operating system's: it ends with its process, however that ends, and the file means nothing by itself.

use super::check::usage;
use crate::adapters::folder::{self, file as adapter};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::train::watch::file;
use crate::train::{Resume, checkpoint};
use std::collections::BTreeMap;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};

/// Name of the file that is locked. Hidden, so that it is not pushed.
const LOCK: &str = ".lock";

/// An output folder, and what a run may do with what is there.
pub(super) struct RunFolder<'a> {
    path: &'a Path,
    /// Names of the adapters that the run will write.
    names: &'a [String],
    takes: Takes,
}

/// What becomes of an earlier run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Takes {
    /// Nothing: there must be none.
    Nothing,
    /// It goes on.
    Over,
    /// It is replaced.
    Away,
}

/// The folder is locked as long as this lives.
#[must_use]
pub(super) struct Claim {
    _lock: File,
    path: PathBuf,
}

impl Drop for Claim {
    fn drop(&mut self) {
        // While it is locked: who has opened it since finds another file by its name.
        let _ = disk::remove(&self.path);
    }
}

impl<'a> RunFolder<'a> {
    /// What the settings ask for.
    pub(super) fn new(
        path: &'a Path,
        names: &'a [String],
        resume: Option<&Resume>,
        replace: bool,
    ) -> Self {
        let goes_on = match resume {
            None | Some(Resume::Last(false)) => false,
            // Without checkpoints there may be what a run left that was stopped before its first one, but no results.
            Some(Resume::Last(true)) => {
                !checkpoint::list(path).is_empty() || adapter_of(path, names).is_none()
            }
            Some(Resume::From(from)) => {
                let inside = Path::new(from).parent().map(Path::canonicalize);
                matches!((inside, path.canonicalize()), (Some(Ok(a)), Ok(b)) if a == b)
            }
        };
        let takes = match (goes_on, replace) {
            (true, _) => Takes::Over,
            (false, true) => Takes::Away,
            (false, false) => Takes::Nothing,
        };
        RunFolder { path, names, takes }
    }

    /// Refuses a file, and the folder of another run. Nothing is written.
    pub(super) fn check(&self) -> Result<()> {
        let shown = self.path.display();
        if self.path.exists() && !self.path.is_dir() {
            return Err(usage(
                format!("{shown} is not a folder"),
                "--output-dir takes a folder; it is made when it is missing",
            ));
        }
        match self.trace() {
            Some(found) if self.takes == Takes::Nothing => {
                let message = format!("{shown} holds an earlier run: {} exists", found.display());
                let d = Diagnostic::error("exists", message);
                Err(Error::new(
                    ErrorKind::Io,
                    d.help("give another --output-dir to keep both, --resume to go on from its last checkpoint, --force to replace it"),
                ))
            }
            _ => Ok(()),
        }
    }

    /// Makes the folder, locks it, and takes away the earlier run that is replaced.
    pub(super) fn claim(&self) -> Result<Claim> {
        fs::create_dir_all(self.path).map_err(|e| Error::io(self.path, "cannot be made", e))?;
        let path = self.path.join(LOCK);
        let failed = |e| Error::io(&path, "cannot be written", e);
        let claim = loop {
            let mut options = File::options();
            let open = options.write(true).create(true).truncate(false).open(&path);
            let lock = open.map_err(failed)?;
            locked(&lock, self.path)?;
            // A run that ended in between has taken the file away.
            if disk::is_named(&lock, &path).map_err(failed)? {
                let path = path.clone();
                break Claim { _lock: lock, path };
            }
        };
        // What another process wrote since the first look.
        self.check()?;
        if self.takes == Takes::Away {
            self.clear()?;
        }
        Ok(claim)
    }

    /// The first thing that an earlier run left.
    fn trace(&self) -> Option<PathBuf> {
        let files = [file::RUN, file::LOG, file::REPORT, file::GRAPH].map(|f| self.path.join(f));
        let of_run = || files.into_iter().find(|p| p.exists());
        let step = || checkpoint::list(self.path).into_iter().next();
        adapter_of(self.path, self.names)
            .or_else(of_run)
            .or_else(|| Some(step()?.1))
    }

    /// Deletes checkpoints, the adapters that the run made, log, record, report and curves.
    fn clear(&self) -> Result<()> {
        let failed = |path: &Path, e| Error::io(path, "cannot be replaced", e);
        for folder in self.made() {
            disk::replaceable_folder(&folder).map_err(|e| failed(&folder, e))?;
            folder::delete(&folder)?;
        }
        for (_, path) in checkpoint::list(self.path) {
            checkpoint::delete(&path)?;
        }
        let mut files = [file::RUN, file::LOG, file::REPORT, file::GRAPH]
            .map(|f| self.path.join(f))
            .to_vec();
        let curves = fs::read_dir(self.path.join(file::RUNS));
        let curves = curves.into_iter().flatten().flatten().map(|e| e.path());
        files.extend(curves.filter(|p| p.to_string_lossy().contains("events.out.tfevents")));
        for path in files.iter().filter(|p| p.exists()) {
            disk::remove(path).map_err(|e| failed(path, e))?;
        }
        Ok(())
    }
}

/// A part of a run's record.
#[derive(serde::Deserialize)]
struct Made {
    /// Adapters and the hashes of their weights.
    #[serde(default)]
    made: BTreeMap<String, String>,
}

impl RunFolder<'_> {
    /// Folders of adapters that the run in the folder made, as its record says.
    fn made(&self) -> Vec<PathBuf> {
        let text = disk::own::bytes(self.path.join(file::RUN)).unwrap_or_default();
        let names = serde_json::from_slice::<Made>(&text).map(|m| m.made);
        let names = names.unwrap_or_default().into_keys();
        // A name is one of a folder inside.
        let inside =
            names.filter(|n| Path::new(n).components().count() == 1 && !n.starts_with('.'));
        let folders = inside.map(|n| self.path.join(n));
        let is_ours = |f: &PathBuf| {
            let kind = fs::symlink_metadata(f);
            kind.is_ok_and(|k| k.is_dir()) && f.join(adapter::CONFIG).exists()
        };
        folders.filter(is_ours).collect()
    }
}

/// Refuses a folder that another process trains into; as long as the result lives, none begins.
pub(super) fn unlocked(folder: &Path) -> Result<Option<Claim>> {
    let path = folder.join(LOCK);
    if !path.exists() {
        return Ok(None);
    }
    let lock = disk::own::open(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
    locked(&lock, folder)?;
    Ok(Some(Claim { _lock: lock, path }))
}

/// Locks a file of a folder.
fn locked(lock: &File, folder: &Path) -> Result<()> {
    match lock.try_lock() {
        Ok(()) => Ok(()),
        // A file system without locks.
        Err(TryLockError::Error(e)) if e.kind() == io::ErrorKind::Unsupported => Ok(()),
        Err(TryLockError::Error(e)) => Err(Error::io(&folder.join(LOCK), "cannot be locked", e)),
        Err(TryLockError::WouldBlock) => {
            let message = format!("another process trains into {}", folder.display());
            let d = Diagnostic::error("run-locked", message);
            Err(Error::new(
                ErrorKind::Io,
                d.help("wait for it, or write into another folder"),
            ))
        }
    }
}

/// The first of these adapters that is there.
fn adapter_of(output: &Path, names: &[String]) -> Option<PathBuf> {
    let mut folders = names.iter().map(|n| output.join(n));
    folders.find(|f| f.join(adapter::CONFIG).exists())
}
