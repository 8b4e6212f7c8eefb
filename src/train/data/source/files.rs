//! Which files a path means: one file, or a folder as data sets lie on the Hub.

use super::Format;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use std::path::{Path, PathBuf};

/// The part of a data set that a file belongs to, by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in super::super) enum Split {
    Train,
    Validation,
    Test,
}

impl Split {
    /// The split of a name, in one of the words that the Hub knows it by.
    pub(in super::super) fn named(word: &str) -> Option<Split> {
        match word {
            "train" | "training" => Some(Split::Train),
            "validation" | "valid" | "val" | "dev" => Some(Split::Validation),
            "test" | "testing" | "eval" | "evaluation" => Some(Split::Test),
            _ => None,
        }
    }

    /// The split that a word of the file's name, set off by anything but letters and digits, says; or its folder's name.
    fn of(file: &Path, root: &Path) -> Option<Split> {
        let inside = file
            .strip_prefix(root)
            .unwrap_or(file)
            .to_string_lossy()
            .to_ascii_lowercase();
        let mut words: Vec<&str> = inside.split(|c: char| !c.is_ascii_alphanumeric()).collect();
        words.reverse();
        words.into_iter().find_map(Split::named)
    }
}

/// The data files of a path. Of a folder, those of the split; all of them where no name says a split.
pub(in super::super) fn resolve(path: &Path, split: Split, strict: bool) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let files = folder(path, 0)?;
    let by_split = |s: Split| files.iter().filter(move |f| Split::of(f, path) == Some(s));
    let mut found: Vec<PathBuf> = by_split(split).cloned().collect();
    if found.is_empty() && !strict && split != Split::Train {
        let other = if split == Split::Test {
            Split::Validation
        } else {
            Split::Test
        };
        found = by_split(other).cloned().collect();
    }
    if found.is_empty() && !strict && files.iter().all(|f| Split::of(f, path).is_none()) {
        found.clone_from(&files);
    }
    if !found.is_empty() {
        return Ok(found);
    }
    let names: Vec<String> = files
        .iter()
        .filter_map(|f| Some(f.file_name()?.to_string_lossy().into_owned()))
        .take(8)
        .collect();
    let word = match split {
        Split::Train => "train",
        Split::Validation => "validation",
        Split::Test => "test",
    };
    let d = Diagnostic::error(
        "dataset-split",
        format!("no file of the folder belongs to the split `{word}`"),
    )
    .at(path.display().to_string());
    Err(Error::new(
        ErrorKind::Train,
        d.note(format!("files there: {}", names.join(", ")))
            .help("name the files"),
    ))
}

/// The data files of a folder, sorted; of one format only, Parquet first. A folder without any stands for its only subfolder with some,
/// or for `data` in it.
fn folder(path: &Path, depth: usize) -> Result<Vec<PathBuf>> {
    let read =
        std::fs::read_dir(path).map_err(|e| Error::io(path, "cannot read the data folder", e))?;
    let (mut files, mut folders) = (Vec::new(), Vec::new());
    for entry in read {
        let entry = entry
            .map_err(|e| Error::io(path, "cannot read the data folder", e))?
            .path();
        let name = entry
            .file_name()
            .map(|n| n.to_string_lossy().into_owned())
            .unwrap_or_default();
        if name.starts_with(['.', '_']) {
            continue;
        }
        if entry.is_dir() {
            folders.push(entry);
        } else if let Some((format, _)) = Format::of(&entry) {
            files.push((format, entry));
        }
    }
    files.sort();
    folders.sort();
    if let Some(&(first, _)) = files.first() {
        return Ok(files
            .into_iter()
            .filter(|(f, _)| *f == first)
            .map(|(_, p)| p)
            .collect());
    }
    let d =
        |message: &str| Diagnostic::error("dataset-folder", message).at(path.display().to_string());
    let none = || {
        Error::new(
            ErrorKind::Train,
            d("the folder has no data files")
                .help("data files end in .parquet, .jsonl, .csv, .tsv or .json"),
        )
    };
    if depth == 3 {
        return Err(none());
    }
    if let Some(data) = folders.iter().find(|f| f.ends_with("data")) {
        return folder(data, depth + 1);
    }
    let inside: Vec<(&PathBuf, Vec<PathBuf>)> = folders
        .iter()
        .filter_map(|f| Some((f, folder(f, depth + 1).ok()?)))
        .collect();
    // Folders that are splits themselves belong together.
    if inside.iter().all(|(f, _)| Split::of(f, path).is_some()) && !inside.is_empty() {
        return Ok(inside.into_iter().flat_map(|(_, files)| files).collect());
    }
    match <[_; 1]>::try_from(inside) {
        Ok([(_, files)]) => Ok(files),
        Err(inside) if inside.is_empty() => Err(none()),
        Err(inside) => {
            let names: Vec<String> = inside
                .iter()
                .map(|(f, _)| f.display().to_string())
                .collect();
            Err(Error::new(
                ErrorKind::Train,
                d("the folder holds several data sets")
                    .note(names.join(", "))
                    .help("name one of them"),
            ))
        }
    }
}
