//! Several training runs side by side, as one HTML page.

use super::check::{ensure_absent, keep, usage, write_file};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::train::watch::{self, RunRecord};
use std::path::{Path, PathBuf};

/// Compares runs: their curves in the same charts, and the settings in which they differ.
#[derive(Clone, Debug)]
pub(crate) struct CompareRuns {
    /// Output folders of runs, or their `run.json`.
    pub runs: Vec<PathBuf>,
    /// The page.
    pub output: PathBuf,
    /// Whether an existing page is replaced.
    pub force: bool,
}

impl CompareRuns {
    /// Reads the runs and writes the page.
    ///
    /// # Errors
    /// A folder that holds no run; a page that is there already.
    pub(crate) fn run(&self) -> Result<()> {
        if self.runs.is_empty() {
            return Err(usage("no run was given", "rewrite report out-a out-b"));
        }
        let files: Vec<PathBuf> = self.runs.iter().map(|run| file_of(run)).collect();
        keep(&self.output, files.iter().map(PathBuf::as_path))?;
        ensure_absent(&self.output, self.force)?;
        let read = |(run, file): (&PathBuf, &PathBuf)| Ok((name(run), read(file)?));
        let runs: Result<Vec<(String, RunRecord)>> =
            self.runs.iter().zip(&files).map(read).collect();
        let page = watch::comparison(&told_apart(runs?, &self.runs))?;
        write_file(&self.output, page.as_bytes())
    }
}

fn file_of(run: &Path) -> PathBuf {
    if run.is_dir() {
        run.join(watch::file::RUN)
    } else {
        run.to_owned()
    }
}

/// The name of a run: that of its folder.
fn name(run: &Path) -> String {
    let folder = if run.is_dir() {
        Some(run)
    } else {
        run.parent()
    };
    let name = folder.and_then(Path::file_name).and_then(|n| n.to_str());
    name.map_or_else(|| run.display().to_string(), str::to_owned)
}

/// Runs whose names are the same are called as they were given.
fn told_apart(mut runs: Vec<(String, RunRecord)>, given: &[PathBuf]) -> Vec<(String, RunRecord)> {
    let names: Vec<String> = runs.iter().map(|(name, _)| name.clone()).collect();
    for ((name, _), path) in runs.iter_mut().zip(given) {
        if names.iter().filter(|n| *n == name).count() > 1 {
            *name = path.display().to_string();
        }
    }
    runs
}

fn read(file: &Path) -> Result<RunRecord> {
    let text = disk::own::text(file).map_err(|e| Error::io(file, "cannot read the run", e))?;
    serde_json::from_str(&text).map_err(|e| {
        let d = Diagnostic::error("run-record", format!("this is no record of a run: {e}"));
        let d = d.at(file.display().to_string());
        let help = "give the output folder of a training: it holds run.json";
        Error::new(ErrorKind::Train, d.help(help))
    })
}
