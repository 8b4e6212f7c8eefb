//! Who writes a run down: a log of events, curves for TensorBoard, a report.

mod record;
mod report;
mod tensorboard;

pub use record::RunRecord;
pub use report::html;
pub use tensorboard::EventFile;

use super::event::Event;
use super::job::ReportTo;
use crate::error::{Error, Result};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Names of the files in the output folder.
pub mod file {
    /// One event a line.
    pub const LOG: &str = "log.jsonl";
    /// The report.
    pub const REPORT: &str = "report.html";
    /// The folder of TensorBoard's files.
    pub const RUNS: &str = "runs";
}

/// The watchers of a run, all fed with the same events.
pub struct Watchers {
    folder: PathBuf,
    log: Option<File>,
    board: Option<EventFile>,
    report: bool,
    record: RunRecord,
}

impl Watchers {
    /// Opens the files. A run that goes on from a checkpoint keeps what was logged up to there, and drops what came after.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn open(folder: &Path, to: &[ReportTo], job: Value) -> Result<Watchers> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot be made", e))?;
        Ok(Watchers {
            log: None,
            board: if to.contains(&ReportTo::Tensorboard) {
                Some(EventFile::create(&folder.join(file::RUNS))?)
            } else {
                None
            },
            report: to.contains(&ReportTo::Html),
            record: RunRecord::new(job, to.contains(&ReportTo::Jsonl)),
            folder: folder.to_owned(),
        })
    }

    /// Lines about the data and the adapters for the report.
    pub fn describe(&mut self, data: Vec<String>, adapters: String) {
        self.record.data = data;
        self.record.adapters = adapters;
    }

    /// Takes an event.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn event(&mut self, event: &Event) -> Result<()> {
        if let Event::Begin { resumed_from, .. } = event {
            self.begin(resumed_from.unwrap_or(0))?;
        }
        self.record.event(event);
        if let (Some(log), false) = (&mut self.log, matches!(event, Event::Step(_))) {
            let line = serde_json::to_string(event).unwrap_or_default() + "\n";
            let path = self.folder.join(file::LOG);
            log.write_all(line.as_bytes())
                .and_then(|()| log.flush())
                .map_err(|e| Error::io(&path, "cannot be written", e))?;
        }
        if let Some(board) = &mut self.board {
            board.event(event)?;
        }
        Ok(())
    }

    /// Opens the log behind what was logged up to a step.
    fn begin(&mut self, step: u64) -> Result<()> {
        if !self.record.logs {
            return Ok(());
        }
        let path = self.folder.join(file::LOG);
        let failed = |e| Error::io(&path, "cannot be written", e);
        let mut kept = Vec::new();
        if step > 0
            && let Ok(old) = File::open(&path)
        {
            for line in BufReader::new(old).lines().map_while(std::io::Result::ok) {
                let event: Value = serde_json::from_str(&line).unwrap_or_default();
                let at = event["step"].as_u64().unwrap_or(0);
                if at <= step && !event.is_null() && event["event"] != "end" {
                    self.record.line(&event);
                    kept.push(line + "\n");
                }
            }
        }
        let text = kept.concat();
        let mut new = tempfile::NamedTempFile::new_in(&self.folder).map_err(failed)?;
        new.write_all(text.as_bytes()).map_err(failed)?;
        new.persist(&path).map_err(|e| failed(e.error))?;
        self.log = Some(
            OpenOptions::new()
                .append(true)
                .open(&path)
                .map_err(failed)?,
        );
        Ok(())
    }

    /// Writes what is written at the end.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub fn close(self) -> Result<()> {
        if !self.report {
            return Ok(());
        }
        let path = self.folder.join(file::REPORT);
        let failed = |e| Error::io(&path, "cannot be written", e);
        let mut new = tempfile::NamedTempFile::new_in(&self.folder).map_err(failed)?;
        new.write_all(html(&self.record)?.as_bytes())
            .map_err(failed)?;
        new.persist(&path).map_err(|e| failed(e.error))?;
        Ok(())
    }
}
