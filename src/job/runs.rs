//! Several training runs side by side, as one HTML page.

use super::check::{ensure_absent, keep, usage, write_file};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::train::watch::{self, RunRecord};
use std::collections::BTreeSet;
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
        let ending = self.output.extension().and_then(|e| e.to_str());
        if !ending.is_some_and(|e| e.eq_ignore_ascii_case("html") || e.eq_ignore_ascii_case("htm"))
        {
            return Err(usage(
                format!("{} is no name of a page", self.output.display()),
                "give a file that ends in .html",
            ));
        }
        let files: Vec<PathBuf> = self.runs.iter().map(|run| file_of(run)).collect();
        let mut seen = BTreeSet::new();
        let twice = |f: &&PathBuf| !seen.insert(f.canonicalize().unwrap_or_else(|_| (*f).clone()));
        if let Some(file) = files.iter().find(twice) {
            return Err(usage(
                format!("the run {} was given twice", name(file)),
                "give each run once",
            ));
        }
        keep(&self.output, files.iter().map(PathBuf::as_path))?;
        let read = |(run, file): (&PathBuf, &PathBuf)| Ok((name(run), read(file)?));
        let runs: Result<Vec<(String, RunRecord)>> =
            self.runs.iter().zip(&files).map(read).collect();
        let runs = told_apart(runs?, &self.runs);
        ensure_absent(&self.output, self.force)?;
        let page = watch::comparison(&runs)?;
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

/// The record of a run. Of one that was broken off, the log knows more.
fn read(file: &Path) -> Result<RunRecord> {
    let log = file.with_file_name(watch::file::LOG);
    let text = disk::own::text(file);
    if text.is_err() && file.ends_with(watch::file::RUN) && log.is_file() {
        let mut record = RunRecord::default();
        read_log(&mut record, &log)?;
        return Ok(record);
    }
    let text = text.map_err(|e| Error::io(file, "cannot read the run", e))?;
    let bad = |why: String| {
        let d = Diagnostic::error("run-record", format!("this is no record of a run: {why}"));
        let d = d.at(file.display().to_string());
        let help = "give the output folder of a training: it holds run.json";
        Error::new(ErrorKind::Train, d.help(help))
    };
    let mut record: RunRecord = serde_json::from_str(&text).map_err(|e| bad(e.to_string()))?;
    if record.end.is_null() && log.is_file() {
        (record.log, record.evaluations) = (Vec::new(), Vec::new());
        read_log(&mut record, &log)?;
    }
    Ok(record)
}

fn read_log(record: &mut RunRecord, log: &Path) -> Result<()> {
    let bad = |e| Error::io(log, "cannot read the log of the run", e);
    let file = disk::own::open(log).map_err(bad)?;
    record.read_log(std::io::BufReader::new(file)).map_err(bad)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn the_log_of_a_run_that_was_broken_off_says_what_its_record_does_not() {
        let dir = tempfile::tempdir().unwrap();
        let run = dir.path().join(watch::file::RUN);
        let lines = "{\"event\": \"log\", \"step\": 1, \"loss\": 2.0}\nnot json\n{\"event\": \"log\", \"step\": 2, \"loss\": 1.0}\n{\"ev";
        fs::write(dir.path().join(watch::file::LOG), lines).unwrap();
        assert_eq!(read(&run).unwrap().log.len(), 2);
        fs::write(&run, "{\"log\": [{\"step\": 1}], \"names\": [\"a\"]}").unwrap();
        let found = read(&run).unwrap();
        assert_eq!((found.log.len(), found.names), (2, vec!["a".to_owned()]));
        fs::write(&run, "{\"log\": [{\"step\": 1}], \"end\": {\"steps\": 1}}").unwrap();
        assert_eq!(read(&run).unwrap().log.len(), 1);
        fs::write(&run, "[1").unwrap();
        let e = read(&run).unwrap_err().to_string();
        assert!(
            e.contains("no record of a run") && e.contains("run.json"),
            "{e}"
        );
    }
}
