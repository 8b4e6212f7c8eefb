//! What is trained on and what is evaluated on: splits of the data, and the rows of them that are read.

use super::super::args::{DataArguments, DataSet, EvalSplit, Files, Paths};
use super::super::source::{self, Columns, Fault, Source};
use super::slice::{self, Slice};
use super::{Splits, failed, wrong};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use std::cell::Cell;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::rc::Rc;

/// Rows of files that are read one after the other.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in super::super) struct Part {
    pub(in super::super) files: Vec<PathBuf>,
    /// Which rows, counted through all files.
    rows: Range<u64>,
}

impl Part {
    /// The files as sources of these rows, each with its name.
    pub(in super::super) fn sources(
        &self,
    ) -> impl Iterator<Item = Result<(String, Source)>> + use<'_> {
        let (at, columns) = (Rc::new(Cell::new(0)), Columns::default());
        self.files.iter().map(move |file| {
            let source = source::open(file, &columns)?.within(Rc::clone(&at), self.rows.clone());
            Ok((file.display().to_string(), source))
        })
    }

    /// Whether some row is in both.
    fn meets(&self, other: &Part) -> bool {
        let (a, b) = (&self.rows, &other.rows);
        self.files == other.files && a.start < b.end && b.start < a.end
    }
}

/// Whether some row is in both.
pub(in super::super) fn meet(a: &[Part], b: &[Part]) -> bool {
    a.iter().any(|a| b.iter().any(|b| a.meets(b)))
}

/// A data set, and where it is.
struct Set {
    at: String,
    splits: Splits,
}

impl DataArguments {
    /// What is trained on.
    pub(in super::super) fn train_parts(&self) -> Result<Vec<Part>> {
        let Some(data) = &self.data else {
            let d = Diagnostic::error("data-argument", "no data was given");
            return Err(Error::new(ErrorKind::Train, d.help("--data train.jsonl")));
        };
        parts(
            &self.sets(data)?,
            &slices("train_split", &self.train_split)?,
        )
    }

    /// What is evaluated on, if that has files of its own or is a split.
    pub(in super::super) fn eval_parts(&self) -> Result<Option<Vec<Part>>> {
        let named = match &self.eval_split {
            Some(EvalSplit::Named(name)) => Some(slices("eval_split", name)?),
            _ => None,
        };
        match (&self.eval_data, named, &self.data) {
            (Some(data), Some(slices), _) | (None, Some(slices), Some(data)) => {
                parts(&self.sets(data)?, &slices).map(Some)
            }
            (Some(data), None, _) => {
                let sets = self.sets(data)?;
                let has = |split: &str| sets.iter().all(|s| s.splits.get(split).is_some());
                let split = ["validation", "test"].into_iter().find(|s| has(s));
                let named = sets.iter().any(|s| s.splits.named);
                let split = split.unwrap_or(if named { "validation" } else { "train" });
                parts(&sets, &slices("eval_data", split)?).map(Some)
            }
            _ => Ok(None),
        }
    }

    fn sets(&self, given: &Files) -> Result<Vec<Set>> {
        let sets: Vec<Set> = given
            .sets()
            .iter()
            .map(|set| open(set, self.data_config.as_deref()))
            .collect::<Result<_>>()?;
        if sets.is_empty() {
            let d = Diagnostic::error("data-argument", "the list of data files is empty");
            return Err(Error::new(
                ErrorKind::Train,
                d.help("name at least one file"),
            ));
        }
        Ok(sets)
    }
}

fn slices(option: &str, text: &str) -> Result<Vec<Slice>> {
    slice::parse(text).map_err(|what| {
        let d = Diagnostic::error("data-argument", format!("`{option}`: {what}"));
        let help = "a split by its name, with the rows that are wanted in brackets";
        Error::new(ErrorKind::Train, d.help(help))
    })
}

/// The splits of a file, a folder, or files that are named by split.
fn open(set: &DataSet, config: Option<&str>) -> Result<Set> {
    let path = match set {
        DataSet::Splits(splits) => {
            let files = |paths: &Paths| match paths {
                Paths::One(one) => vec![one.clone()],
                Paths::Many(many) => many.clone(),
            };
            let all = splits.iter().map(|(name, p)| (name.clone(), files(p)));
            let splits = Splits {
                all: all.collect(),
                named: true,
            };
            let at = "the splits of `data`".to_owned();
            return Ok(Set { at, splits });
        }
        DataSet::Path(path) => path,
    };
    let folder = Path::new(path);
    if !folder.is_dir() {
        let all = vec![("train".to_owned(), vec![path.clone()])];
        let splits = Splits { all, named: false };
        return Ok(Set {
            at: path.clone(),
            splits,
        });
    }
    let mut files = Vec::new();
    walk(folder, "", 0, &mut files)?;
    let card = disk::text(folder.join("README.md")).ok();
    let mut splits = Splits::of(&files, card.as_deref(), config, path)?;
    for file in splits.all.iter_mut().flat_map(|(_, files)| files) {
        *file = folder.join(&*file).display().to_string();
    }
    Ok(Set {
        at: path.clone(),
        splits,
    })
}

/// Folders in folders that are looked into.
const DEPTH: usize = 16;

/// The files below a folder, relative to it.
fn walk(folder: &Path, prefix: &str, depth: usize, out: &mut Vec<String>) -> Result<()> {
    let read = std::fs::read_dir(folder)
        .map_err(|e| Error::io(folder, "cannot read the data folder", e))?;
    for entry in read {
        let entry = entry.map_err(|e| Error::io(folder, "cannot read the data folder", e))?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        let (path, inside) = (entry.path(), format!("{prefix}{name}"));
        if !path.is_dir() {
            out.push(inside);
        } else if depth < DEPTH && !name.starts_with('.') {
            walk(&path, &format!("{inside}/"), depth + 1, out)?;
        }
    }
    Ok(())
}

/// The rows of the slices, in their order.
fn parts(sets: &[Set], slices: &[Slice]) -> Result<Vec<Part>> {
    let mut out = Vec::new();
    for slice in slices {
        let none = sets.iter().all(|s| s.splits.get("all").is_none());
        if !(slice.is_all() && none) {
            out.push(part(sets, slice)?);
            continue;
        }
        let mut names: Vec<&str> = Vec::new();
        for (name, _) in sets.iter().flat_map(|s| &s.splits.all) {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        for name in names {
            out.push(part(sets, &Slice::whole(name))?);
        }
    }
    Ok(out)
}

fn part(sets: &[Set], slice: &Slice) -> Result<Part> {
    let mut files = Vec::new();
    for set in sets {
        match set.splits.get(&slice.split) {
            Some(found) => files.extend(found.iter().map(PathBuf::from)),
            None if set.splits.named => return Err(no_split(set, &slice.split)),
            None => {}
        }
    }
    if files.is_empty() {
        return Err(no_split(&sets[0], &slice.split));
    }
    let rows = match slice.fixed() {
        Some(rows) => rows,
        None => slice
            .of(count(&files)?)
            .map_err(|what| failed(wrong("dataset-split", what), &sets[0].at))?,
    };
    if rows.start >= rows.end {
        let d = wrong("dataset-split", format!("`{slice}` has no rows"));
        return Err(failed(
            d.help("the first number is that of the first row, the second that behind the last"),
            &sets[0].at,
        ));
    }
    Ok(Part { files, rows })
}

fn no_split(set: &Set, split: &str) -> Error {
    let d = wrong("dataset-split", format!("the data has no split `{split}`"));
    let d = if set.splits.named {
        d.note(format!("splits: {}", set.splits.names())).help(
            "`train_split` and `eval_split` name one of them or a part of one, such as `train[90%:]`",
        )
    } else {
        d.note("no name of a file or folder says a split, so all of it is `train`").help(
            "give the evaluation file as `eval_data`, a part such as `train[90%:]`, or a share such as 0.1 as `eval_split`",
        )
    };
    failed(d, &set.at)
}

/// The number of rows of files. They are read for it.
fn count(files: &[PathBuf]) -> Result<u64> {
    let mut rows = 0;
    for file in files {
        for row in source::open(file, &Columns::default())? {
            match row {
                Err(Fault::File(e)) => return Err(e),
                Ok(_) | Err(Fault::Row { .. }) => rows += 1,
            }
        }
    }
    Ok(rows)
}
