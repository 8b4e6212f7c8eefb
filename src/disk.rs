//! Files: the one place that opens foreign ones and that replaces any.
//!
//! What is read must be a regular file: a pipe would wait for ever, and a device has no end. Text and configuration are read up to a
//! [limit](TEXT_LIMIT); what may be larger is mapped or read in pieces.
//!
//! While a [`Watch`] lasts, every file that was opened is known by device and inode, and none of them is replaced or deleted, whatever
//! it is called then. Files of a run's own folder, which the program wrote itself and keeps up to date, are read by
//! [`own`](self::own) functions, which do not note them.

use crate::budget;
use std::fs::{self, File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

/// Bytes of the longest file that is read as a whole: tokenizers of a million entries take 50 MiB.
pub(crate) const TEXT_LIMIT: u64 = 256 << 20;

/// The files that were opened, while a [`Watch`] lasts.
static GIVEN: Mutex<Option<Vec<Given>>> = Mutex::new(None);

/// A file that was opened.
#[derive(Debug)]
struct Given {
    path: PathBuf,
    identity: Identity,
    /// Whether it is read as long as the program runs.
    mapped: bool,
    len: u64,
    changed: Option<SystemTime>,
}

/// What tells files apart, whatever they are called.
#[cfg(unix)]
type Identity = (u64, u64);
/// What tells files apart: their full path, where the system has nothing better.
#[cfg(not(unix))]
type Identity = PathBuf;

#[cfg(unix)]
#[expect(clippy::unnecessary_wraps, reason = "other systems may have none")]
fn identity(_path: &Path, meta: &Metadata) -> Option<Identity> {
    use std::os::unix::fs::MetadataExt;
    Some((meta.dev(), meta.ino()))
}

#[cfg(not(unix))]
fn identity(path: &Path, _meta: &Metadata) -> Option<Identity> {
    path.canonicalize().ok()
}

/// As long as it lives, files that were opened are neither replaced nor deleted.
#[derive(Debug)]
pub(crate) struct Watch(());

impl Watch {
    /// Begins. There is one for a process.
    pub(crate) fn begin() -> Watch {
        given(|g| *g = Some(Vec::new()));
        Watch(())
    }

    /// Notices files that were mapped and have changed since: what was computed from them may be of two contents.
    ///
    /// # Errors
    /// The first such file.
    #[expect(clippy::unused_self, reason = "as long as the watch lasts")]
    pub(crate) fn unchanged(&self) -> Result<(), (PathBuf, io::Error)> {
        given(|g| {
            let mapped = g.iter().flatten().filter(|f| f.mapped);
            for file in mapped {
                let now = fs::metadata(&file.path).ok();
                // What was renamed over it, or deleted, is another file: the mapped one is as it was.
                let same =
                    now.filter(|m| identity(&file.path, m).is_some_and(|i| i == file.identity));
                if same.is_some_and(|m| m.len() != file.len || m.modified().ok() != file.changed) {
                    let e = "the file was changed while it was read; what was made from it is not to be trusted";
                    return Err((file.path.clone(), io::Error::other(e)));
                }
            }
            Ok(())
        })
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        given(|g| *g = None);
    }
}

fn given<T>(f: impl FnOnce(&mut Option<Vec<Given>>) -> T) -> T {
    f(&mut GIVEN.lock().unwrap_or_else(PoisonError::into_inner))
}

fn note(path: &Path, meta: &Metadata, mapped: bool) {
    given(|g| {
        let (Some(list), Some(identity)) = (g.as_mut(), identity(path, meta)) else {
            return;
        };
        match list.iter_mut().find(|f| f.identity == identity) {
            Some(known) => known.mapped |= mapped,
            None => list.push(Given {
                path: path.to_owned(),
                identity,
                mapped,
                len: meta.len(),
                changed: meta.modified().ok(),
            }),
        }
    });
}

fn refused(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, what)
}

/// Opens a regular file.
fn regular(path: &Path) -> io::Result<(File, Metadata)> {
    // Before it is opened: opening a pipe waits for somebody who writes.
    let check = |meta: Metadata| match meta.file_type() {
        t if t.is_file() => Ok(meta),
        t if t.is_dir() => Err(refused("it is a folder, and a file is expected".into())),
        _ => Err(refused(
            "not a regular file (a pipe, a socket or a device); write its contents to a file first"
                .into(),
        )),
    };
    check(fs::metadata(path)?)?;
    let file = File::open(path)?;
    let meta = check(file.metadata()?)?;
    Ok((file, meta))
}

/// Opens a regular file that was given.
pub(crate) fn open(path: impl AsRef<Path>) -> io::Result<File> {
    let path = path.as_ref();
    let (file, meta) = regular(path)?;
    note(path, &meta, false);
    Ok(file)
}

/// Opens a regular file that was given, to be mapped.
pub(crate) fn open_mapped(path: impl AsRef<Path>) -> io::Result<(File, u64)> {
    let path = path.as_ref();
    let (file, meta) = regular(path)?;
    note(path, &meta, true);
    Ok((file, meta.len()))
}

/// Reads up to a limit, of text or of memory.
fn whole((file, meta): (File, Metadata), limit: Option<u64>) -> io::Result<Vec<u8>> {
    let too_long = || {
        let mib = TEXT_LIMIT >> 20;
        refused(match limit {
            Some(_) => format!("longer than {mib} MiB, which no such file is"),
            None => budget::Exceeded::new("the file", u128::from(meta.len())).to_string(),
        })
    };
    let limit = limit.unwrap_or_else(budget::limit);
    if meta.len() > limit {
        return Err(too_long());
    }
    let mut bytes = Vec::new();
    let size = usize::try_from(meta.len()).unwrap_or(0);
    bytes
        .try_reserve_exact(size)
        .map_err(|_| io::Error::from(io::ErrorKind::OutOfMemory))?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(too_long());
    }
    Ok(bytes)
}

fn utf8(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        let what = format!("not text in UTF-8: the byte at {at} begins no character");
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

/// The bytes of a file that was given, up to [`TEXT_LIMIT`].
pub(crate) fn bytes(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let path = path.as_ref();
    let (file, meta) = regular(path)?;
    note(path, &meta, false);
    whole((file, meta), Some(TEXT_LIMIT))
}

/// The bytes of a file of weights or of other tensors that was given, as far as memory goes.
pub(crate) fn tensors(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
    let path = path.as_ref();
    let (file, meta) = regular(path)?;
    note(path, &meta, false);
    whole((file, meta), None)
}

/// The text of a file that was given, up to [`TEXT_LIMIT`].
pub(crate) fn text(path: impl AsRef<Path>) -> io::Result<String> {
    let path = path.as_ref();
    bytes(path).and_then(utf8)
}

/// Files that this program wrote and keeps up to date: records and checkpoints of a run, and what is in the cache.
pub(crate) mod own {
    use super::{File, Path, TEXT_LIMIT, io, regular, utf8, whole};

    /// The bytes of such a file, up to [`TEXT_LIMIT`](super::TEXT_LIMIT).
    pub(crate) fn bytes(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        whole(regular(path.as_ref())?, Some(TEXT_LIMIT))
    }

    /// The bytes of such a file of tensors.
    pub(crate) fn tensors(path: impl AsRef<Path>) -> io::Result<Vec<u8>> {
        whole(regular(path.as_ref())?, None)
    }

    /// The text of such a file.
    pub(crate) fn text(path: impl AsRef<Path>) -> io::Result<String> {
        bytes(path).and_then(utf8)
    }

    /// Such a file, to be read in pieces.
    pub(crate) fn open(path: impl AsRef<Path>) -> io::Result<File> {
        regular(path.as_ref()).map(|(file, _)| file)
    }
}

/// Refuses a path whose file was given: it is about to be replaced or deleted.
///
/// # Errors
/// The file is an input.
pub(crate) fn replaceable(path: &Path) -> io::Result<()> {
    let Ok(meta) = fs::metadata(path) else {
        return Ok(());
    };
    let found = given(|g| {
        let list = g.as_ref()?;
        let identity = identity(path, &meta)?;
        let file = list.iter().find(|f| f.identity == identity)?;
        Some(file.path.clone())
    });
    match found {
        Some(input) if input == path => Err(refused(
            "it is an input of this command, and inputs are never modified: choose another output"
                .into(),
        )),
        Some(input) => Err(refused(format!(
            "it is the same file as {}, an input of this command, and inputs are never modified: choose another output",
            input.display()
        ))),
        None => Ok(()),
    }
}

/// Refuses a folder that holds a file that was given, at any depth.
///
/// # Errors
/// A file in it is an input.
pub(crate) fn replaceable_folder(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            replaceable_folder(&path)?;
        } else {
            replaceable(&path).map_err(|e| {
                let name = path.display();
                refused(format!("{name}: {e}"))
            })?;
        }
    }
    Ok(())
}

/// Puts a complete file in its place; with `force` in the place of another, which is no input.
pub(crate) fn put(new: tempfile::NamedTempFile, path: &Path, force: bool) -> io::Result<()> {
    if !force {
        return new.persist_noclobber(path).map(drop).map_err(|e| e.error);
    }
    replaceable(path)?;
    new.persist(path).map(drop).map_err(|e| e.error)
}

/// Moves a complete file to its place, where another that is no input may be.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    replaceable(to)?;
    fs::rename(from, to)
}

/// Deletes a file that is no input.
pub(crate) fn remove(path: &Path) -> io::Result<()> {
    replaceable(path)?;
    fs::remove_file(path)
}

/// Whether an open file is the one that has a name.
///
/// # Errors
/// A file that cannot be looked at.
pub(crate) fn is_named(file: &File, path: &Path) -> io::Result<bool> {
    let own = identity(path, &file.metadata()?);
    match fs::metadata(path) {
        Ok(named) => Ok(own == identity(path, &named)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One test: the watch is the process's.
    #[test]
    fn what_was_opened_is_neither_replaced_nor_deleted() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("given"), "a").unwrap();
        fs::write(at("other"), "b").unwrap();
        fs::create_dir(at("folder")).unwrap();
        fs::hard_link(at("given"), at("folder/link")).unwrap();
        let new = || tempfile::NamedTempFile::new_in(dir.path()).unwrap();
        put(new(), &at("given"), true).unwrap();
        fs::write(at("given"), "a").unwrap();
        fs::remove_file(at("folder/link")).unwrap();
        fs::hard_link(at("given"), at("folder/link")).unwrap();

        let watch = Watch::begin();
        assert_eq!(text(at("given")).unwrap(), "a");
        assert_eq!(own::text(at("other")).unwrap(), "b");
        let e = put(new(), &at("given"), true).unwrap_err().to_string();
        assert!(e.contains("inputs are never modified"), "{e}");
        let e = remove(&at("folder/link")).unwrap_err().to_string();
        assert!(e.contains("same file as"), "{e}");
        replaceable_folder(&at("folder")).unwrap_err();
        rename(&at("other"), &at("given")).unwrap_err();
        put(new(), &at("other"), false).unwrap_err();
        put(new(), &at("other"), true).unwrap();
        assert_eq!(fs::read_to_string(at("given")).unwrap(), "a");

        let (_file, len) = open_mapped(at("given")).unwrap();
        assert_eq!(len, 1);
        watch.unchanged().unwrap();
        fs::write(at("given"), "longer").unwrap();
        assert_eq!(watch.unchanged().unwrap_err().0, at("given"));
        drop(watch);
        put(new(), &at("given"), true).unwrap();
    }

    #[test]
    fn only_regular_files_up_to_a_limit_are_read() {
        let dir = tempfile::tempdir().unwrap();
        assert!(
            bytes(dir.path())
                .unwrap_err()
                .to_string()
                .contains("folder")
        );
        let path = dir.path().join("long");
        File::create(&path)
            .unwrap()
            .set_len(TEXT_LIMIT + 1)
            .unwrap();
        assert!(bytes(&path).unwrap_err().to_string().contains("256 MiB"));
        fs::write(&path, b"ab\xff").unwrap();
        assert!(text(&path).unwrap_err().to_string().contains("byte at 2"));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn devices_are_no_files() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("zero.json");
        std::os::unix::fs::symlink("/dev/zero", &link).unwrap();
        let e = text(&link).unwrap_err().to_string();
        assert!(e.contains("not a regular file"), "{e}");
    }
}
