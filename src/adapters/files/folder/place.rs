//! How adapter folders get to their place: put together beside it, and then there as a whole.
//!
//! Writers of one place wait for each other. In a folder that is there already, the file that says what the folder is goes first and comes
//! last, so that half of two savings is no adapter.

use super::delete::OWN_FILES;
use super::{file, free};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::staging::{self, StagedFolder};
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

/// Begins the name of a folder that is being put together.
const STAGED: &str = ".adapter-";

/// Writes files into a folder: a new one appears as a whole; in one that is there, each file is replaced as a whole, in order. The last one
/// says what the others are.
pub(in crate::adapters) fn write_files(
    folder: &Path,
    files: &[(&'static str, Vec<u8>)],
    force: bool,
) -> Result<()> {
    // The folder of a file that is named alone.
    let here = folder.as_os_str().is_empty();
    let folder = if here { Path::new(".") } else { folder };
    let names: Vec<String> = files.iter().map(|(n, _)| (*n).to_owned()).collect();
    refuse_taken(folder, &names, force)?;
    let staged = begin(folder)?;
    for (name, bytes) in files {
        let path = staged.path().join(name);
        write_synced(&path, bytes).map_err(|e| Error::io(&path, "cannot be written", e))?;
    }
    put(staged, folder, &names, force)
}

/// Begins a folder beside its place.
fn begin(folder: &Path) -> Result<StagedFolder> {
    let parent = parent_of(folder);
    fs::create_dir_all(&parent).map_err(|e| Error::io(&parent, "cannot be made", e))?;
    let staged = StagedFolder::within(&parent, STAGED);
    staged.map_err(|e| Error::io(&parent, "cannot be written to", e))
}

fn parent_of(folder: &Path) -> PathBuf {
    match folder.parent() {
        Some(p) if !p.as_os_str().is_empty() => p.to_owned(),
        _ => PathBuf::from("."),
    }
}

/// Refuses a place that is a file, and files that are there already.
fn refuse_taken(folder: &Path, names: &[String], force: bool) -> Result<()> {
    free(folder)?;
    let taken = names.iter().find(|n| folder.join(n).exists());
    let Some(name) = taken.filter(|_| !force) else {
        return Ok(());
    };
    let d = Diagnostic::error("exists", "the file is there already")
        .at(folder.join(name).display().to_string());
    Err(Error::new(
        ErrorKind::Io,
        d.help("use `--force` to replace it"),
    ))
}

/// Puts what is staged in its place.
fn put(staged: StagedFolder, folder: &Path, names: &[String], force: bool) -> Result<()> {
    let _hold = staging::hold(&parent_of(folder))?;
    // What another writer put there in the meantime.
    refuse_taken(folder, names, force)?;
    if fs::symlink_metadata(folder).is_err() {
        let named = staged.name(folder);
        return named.map_err(|e| Error::io(folder, "cannot be written", e));
    }
    let failed = |path: &Path, e| Error::io(path, "cannot be written", e);
    // All of them before the first is replaced.
    for path in names.iter().map(|n| folder.join(n)) {
        disk::replaceable(&path).map_err(|e| failed(&path, e))?;
    }
    if let Some(last) = names.last().map(|n| folder.join(n)) {
        match disk::remove(&last) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(failed(&last, e)),
            _ => {}
        }
    }
    for name in names {
        let path = folder.join(name);
        let from = staged.path().join(name);
        disk::rename(&from, &path).map_err(|e| failed(&path, e))?;
    }
    Ok(())
}

fn write_synced(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let mut f = fs::File::create(path)?;
    f.write_all(bytes)?;
    f.sync_all()
}

/// An adapter with all that belongs to it (template, head), put together beside its place.
#[cfg(feature = "train")]
#[derive(Debug)]
pub(crate) struct StagedAdapter {
    staged: StagedFolder,
    place: PathBuf,
    force: bool,
}

#[cfg(feature = "train")]
impl StagedAdapter {
    /// Begins one for a place.
    ///
    /// # Errors
    /// A place that is taken, unless `force` is set, or cannot be written to.
    pub(crate) fn new(place: &Path, force: bool) -> Result<Self> {
        refuse_taken(place, &[file::CONFIG.to_owned()], force)?;
        Ok(StagedAdapter {
            staged: begin(place)?,
            place: place.to_owned(),
            force,
        })
    }

    /// The folder to write into.
    pub(crate) fn path(&self) -> &Path {
        self.staged.path()
    }

    /// Puts it in its place. Of an adapter that was there, the files that this one does not have go, and so do those of `more`; everything
    /// else in the folder stays.
    ///
    /// # Errors
    /// Files that are there, unless they are to be replaced, and what cannot be written.
    pub(crate) fn put(self, more: &[&'static str]) -> Result<()> {
        let StagedAdapter {
            staged,
            place,
            force,
        } = self;
        let list = fs::read_dir(staged.path())
            .map_err(|e| Error::io(staged.path(), "cannot be read", e))?;
        let names = list
            .flatten()
            .filter_map(|e| e.file_name().into_string().ok());
        let mut names: Vec<String> = names.collect();
        // The configuration last.
        let config = |n: &String| n == file::CONFIG || n == file::FUSION_CONFIG;
        names.sort_by_key(|n| (config(n), n.clone()));
        let _hold = staging::hold(&parent_of(&place))?;
        put(staged, &place, &names, force)?;
        let own = OWN_FILES.iter().chain(more).copied();
        let stale: Vec<&str> = own.filter(|n| names.iter().all(|m| m != n)).collect();
        super::remove(&place, &stale)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn saving(mark: &str) -> [(&'static str, Vec<u8>); 3] {
        let of = |name: &'static str| (name, mark.repeat(2000).into_bytes());
        [of(file::SAFETENSORS), of(file::TORCH), of(file::CONFIG)]
    }

    #[test]
    fn writers_of_one_place_never_mix() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("a");
        let write = |mark: &'static str| {
            let place = place.clone();
            std::thread::spawn(move || {
                let done = (0..20).map(|_| write_files(&place, &saving(mark), true));
                done.collect::<Result<Vec<_>>>().unwrap();
            })
        };
        let writers: Vec<_> = ["x", "y", "z", "u"].into_iter().map(write).collect();
        for writer in writers {
            writer.join().unwrap();
            let _hold = staging::hold(root.path()).unwrap();
            let found = saving("").map(|(name, _)| fs::read(place.join(name)).unwrap());
            assert!(
                found[0] == found[1] && found[1] == found[2],
                "files of two savings"
            );
        }
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }

    #[test]
    fn only_one_of_two_writers_makes_a_new_folder() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("a");
        let write = |mark: &'static str| {
            let place = place.clone();
            std::thread::spawn(move || write_files(&place, &saving(mark), false).is_ok())
        };
        let writers: Vec<_> = ["x", "y", "z", "u"].into_iter().map(write).collect();
        let made = writers.into_iter().map(|w| w.join().unwrap());
        assert_eq!(made.filter(|made| *made).count(), 1);
    }

    #[test]
    fn half_a_saving_over_another_is_no_adapter() {
        let root = tempfile::tempdir().unwrap();
        let place = root.path().join("a");
        write_files(&place, &saving("x"), false).unwrap();
        // A folder where a file is to stand ends the writing in the middle.
        fs::remove_file(place.join(file::TORCH)).unwrap();
        fs::create_dir_all(place.join(file::TORCH).join("full")).unwrap();
        assert!(write_files(&place, &saving("y"), true).is_err());
        assert!(!place.join(file::CONFIG).exists());
        assert_eq!(fs::read_dir(root.path()).unwrap().count(), 1);
    }
}
