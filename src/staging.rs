//! Files and folders that are put together under another name and renamed when they are whole.
//!
//! What is staged is known to the process until it has its name, so that one that is told to end can take it away: [`remove_all`].
//! Writers of one folder wait for each other: [`hold`]. No other module makes temporary files that have names (`tests/tidy.rs`).

use crate::disk;
use crate::error::{Error, Result};
use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};
use tempfile::{NamedTempFile, TempDir};

/// What has no name yet.
static STAGED: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn staged() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    STAGED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Removes all that is staged, and lets nothing more be staged: for a process that ends right after it.
pub(crate) fn remove_all() {
    let staged = staged();
    for path in staged.iter() {
        let _ = if path.is_dir() {
            fs::remove_dir_all(path)
        } else {
            fs::remove_file(path)
        };
    }
    std::mem::forget(staged);
}

/// The folder of a path.
fn folder_of(path: &Path) -> &Path {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty());
    parent.unwrap_or(Path::new("."))
}

/// A file that is not whole yet. It is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct StagedFile {
    inner: NamedTempFile,
    known: Known,
}

/// A path among those that are staged.
#[derive(Debug)]
struct Known(PathBuf);

impl Known {
    /// Makes something and knows its path; a process that is ending waits here for its end.
    fn of<T>(
        make: impl FnOnce() -> io::Result<T>,
        path: impl Fn(&T) -> PathBuf,
    ) -> io::Result<(T, Known)> {
        let mut staged = staged();
        let made = make()?;
        let path = path(&made);
        staged.insert(path.clone());
        Ok((made, Known(path)))
    }
}

impl Drop for Known {
    fn drop(&mut self) {
        staged().remove(&self.0);
    }
}

impl StagedFile {
    /// Begins a file that is to have this path.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub(crate) fn beside(path: &Path) -> io::Result<StagedFile> {
        let mut builder = tempfile::Builder::new();
        builder.prefix(".onnx-graft-").suffix(".tmp");
        // Without this a temporary file is private; the mask of the process still applies.
        #[cfg(unix)]
        builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
        // The name that is given until then is nobody's concern.
        let plain = |e: io::Error| match e.raw_os_error() {
            Some(code) => io::Error::from_raw_os_error(code),
            None if e.kind() == io::ErrorKind::NotFound => {
                io::Error::new(e.kind(), "its folder is not there")
            }
            None => e.kind().into(),
        };
        let make = || builder.tempfile_in(folder_of(path)).map_err(plain);
        let (inner, known) = Known::of(make, |file| file.path().to_path_buf())?;
        Ok(StagedFile { inner, known })
    }

    /// The file, for writing.
    pub(crate) fn file(&mut self) -> &mut File {
        self.inner.as_file_mut()
    }

    /// Gives the file its name. What has the name is replaced, or with `replace` not set an error.
    ///
    /// # Errors
    /// A name that is taken, or cannot be given.
    pub(crate) fn name(self, path: &Path, replace: bool) -> io::Result<()> {
        let StagedFile { inner, known } = self;
        let named = disk::put(inner, path, replace);
        drop(known);
        named
    }
}

/// Writes a file as a whole; what has the name stays until then.
///
/// # Errors
/// What cannot be written.
pub(crate) fn write(path: &Path, bytes: &[u8], sync: bool) -> io::Result<()> {
    use io::Write;
    let mut staged = StagedFile::beside(path)?;
    staged.file().write_all(bytes)?;
    if sync {
        staged.file().sync_all()?;
    }
    staged.name(path, true)
}

/// A folder that is not whole yet. It is gone when this is dropped.
#[derive(Debug)]
pub(crate) struct StagedFolder {
    inner: TempDir,
    known: Known,
}

impl StagedFolder {
    /// Begins a folder in another; `prefix` begins its name.
    ///
    /// # Errors
    /// A folder that cannot be written to.
    pub(crate) fn within(parent: &Path, prefix: &str) -> io::Result<StagedFolder> {
        let make = || tempfile::Builder::new().prefix(prefix).tempdir_in(parent);
        let (inner, known) = Known::of(make, |folder| folder.path().to_path_buf())?;
        Ok(StagedFolder { inner, known })
    }

    /// Where it is.
    pub(crate) fn path(&self) -> &Path {
        self.inner.path()
    }

    /// Gives the folder its name, where nothing has it.
    ///
    /// # Errors
    /// A name that is taken, or cannot be given; then the folder is gone.
    pub(crate) fn name(self, path: &Path) -> io::Result<()> {
        if fs::symlink_metadata(path).is_ok() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        readable(self.path());
        fs::rename(self.path(), path)?;
        let StagedFolder { inner, known } = self;
        drop(inner.keep());
        drop(known);
        Ok(())
    }
}

/// Temporary folders are for their owner only; one with its name is as any other.
#[cfg(unix)]
fn readable(folder: &Path) {
    use std::os::unix::fs::PermissionsExt;
    let _ = fs::set_permissions(folder, fs::Permissions::from_mode(0o755));
}

#[cfg(not(unix))]
fn readable(_: &Path) {}

/// Deletes a folder that others may be looking at: it loses its name first, so that half of it is never seen. `prefix` begins the name that
/// it has while it goes, for who sweeps up after a process that was ended in between.
///
/// # Errors
/// A folder that cannot be renamed or deleted, or holds an input.
pub(crate) fn discard(folder: &Path, prefix: &str) -> io::Result<()> {
    disk::replaceable_folder(folder)?;
    let place = StagedFolder::within(folder_of(folder), prefix)?;
    fs::rename(folder, place.path().join("old"))?;
    let StagedFolder { inner, known } = place;
    let done = inner.close();
    drop(known);
    done
}

thread_local! {
    /// The folders that this thread holds.
    static HELD: RefCell<Vec<PathBuf>> = const { RefCell::new(Vec::new()) };
}

/// The right to write into a folder, as long as this lives.
#[must_use]
#[derive(Debug)]
pub(crate) struct Hold {
    /// The folder's own handle, which is what is locked: no file is left behind.
    locked: Option<(File, PathBuf)>,
}

impl Drop for Hold {
    fn drop(&mut self) {
        if let Some((_, real)) = &self.locked {
            HELD.with_borrow_mut(|held| held.retain(|h| h != real));
        }
    }
}

/// How long a writer waits for another. What is written under a hold is renamed, or copied from one disk to another.
const PATIENCE: Duration = Duration::from_mins(10);
/// How often it looks.
const LOOK: Duration = Duration::from_millis(10);

/// Waits until no other process, and no other thread of this one, holds a folder that is there. A thread that holds it already goes on.
/// Where folders cannot be locked, nobody waits.
///
/// # Errors
/// A folder that another holds for longer than ten minutes.
pub(crate) fn hold(folder: &Path) -> Result<Hold> {
    hold_within(folder, PATIENCE)
}

fn hold_within(folder: &Path, patience: Duration) -> Result<Hold> {
    let free = Hold { locked: None };
    let Ok(real) = folder.canonicalize() else {
        return Ok(free);
    };
    if HELD.with_borrow(|held| held.contains(&real)) {
        return Ok(free);
    }
    let Ok(handle) = File::open(&real) else {
        return Ok(free);
    };
    let began = Instant::now();
    loop {
        match handle.try_lock() {
            Ok(()) => break,
            Err(TryLockError::Error(_)) => return Ok(free),
            Err(TryLockError::WouldBlock) if began.elapsed() < patience => thread::sleep(LOOK),
            Err(TryLockError::WouldBlock) => {
                let waited = patience.as_secs();
                let message = format!(
                    "another process has been writing into the folder for more than {waited} s"
                );
                let e = io::Error::new(io::ErrorKind::TimedOut, message);
                return Err(Error::io(folder, "cannot be written to", e));
            }
        }
    }
    HELD.with_borrow_mut(|held| held.push(real.clone()));
    Ok(Hold {
        locked: Some((handle, real)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let list = fs::read_dir(folder).unwrap();
        let mut names: Vec<String> = list
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[test]
    fn what_has_no_name_yet_is_known_and_goes() {
        let root = tempfile::tempdir().unwrap();
        let known = || -> Vec<PathBuf> {
            let all = staged();
            let ours = all.iter().filter(|p| p.starts_with(root.path()));
            ours.cloned().collect()
        };
        let file = StagedFile::beside(&root.path().join("a")).unwrap();
        let folder = StagedFolder::within(root.path(), ".x-").unwrap();
        assert_eq!(known().len(), 2);
        drop(file);
        folder.name(&root.path().join("b")).unwrap();
        write(&root.path().join("c"), b"c", true).unwrap();
        assert_eq!(known(), Vec::<PathBuf>::new());
        assert_eq!(names(root.path()), ["b", "c"]);
    }

    #[test]
    fn a_name_that_is_taken_is_kept() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().join("a");
        fs::write(&path, "old").unwrap();
        let staged = StagedFile::beside(&path).unwrap();
        let e = staged.name(&path, false).unwrap_err();
        assert_eq!(e.kind(), io::ErrorKind::AlreadyExists);
        let staged = StagedFolder::within(root.path(), ".x-").unwrap();
        assert!(staged.name(&path).is_err());
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(names(root.path()), ["a"]);
    }

    #[test]
    fn what_is_discarded_loses_its_name_first() {
        let root = tempfile::tempdir().unwrap();
        let old = root.path().join("old");
        fs::create_dir_all(old.join("deep")).unwrap();
        discard(&old, ".x-").unwrap();
        assert_eq!(names(root.path()), Vec::<String>::new());
    }

    #[test]
    fn writers_of_a_folder_wait_and_a_writer_does_not_wait_for_itself() {
        let root = tempfile::tempdir().unwrap();
        let path = root.path().to_path_buf();
        let outer = hold(&path).unwrap();
        assert!(outer.locked.is_some() && hold(&path).unwrap().locked.is_none());
        let other = {
            let path = path.clone();
            thread::spawn(move || hold(&path).unwrap().locked.is_some())
        };
        let impatient = {
            let path = path.clone();
            thread::spawn(move || hold_within(&path, LOOK).unwrap_err().to_string())
        };
        let e = impatient.join().unwrap();
        assert!(e.contains("another process"), "{e}");
        drop(outer);
        assert!(other.join().unwrap(), "and free again");
    }
}
