//! Who writes a run down: a log of events, curves for TensorBoard, a report.
//!
//! All of them are fed with events and know nothing else. The log is the memory: a run that goes on from a checkpoint reads what it
//! said up to there, so that the report shows the whole run.

mod look;
mod record;
mod report;
mod tensorboard;

pub(crate) use look::{Classes, Estimate, Guess, Look, Sample, TokenLoss};
pub(crate) use record::RunRecord;
pub(crate) use report::{comparison, html};
pub(crate) use tensorboard::EventFile;

use super::event::Event;
use crate::disk;
use crate::error::{Error, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

/// Names of the files in the output folder.
pub(crate) mod file {
    /// One event a line.
    pub(crate) const LOG: &str = "log.jsonl";
    /// The report.
    pub(crate) const REPORT: &str = "report.html";
    /// The picture of the model with its adapters.
    pub(crate) const GRAPH: &str = "graph.svg";
    /// The record of the run: what the report shows, as JSON.
    pub(crate) const RUN: &str = "run.json";
    /// The folder of TensorBoard's files.
    pub(crate) const RUNS: &str = "runs";
}

/// A watcher of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReportTo {
    /// `log.jsonl`: one event a line.
    Jsonl,
    /// An event file for TensorBoard.
    Tensorboard,
    /// `report.html`: curves, the job and its results in one file.
    Html,
    /// All of them.
    All,
    /// Nothing but `run.json`.
    None,
    /// A service that nothing is sent to here, as the others that follow: the run is written down in the output folder.
    Wandb,
    /// See `wandb`.
    Mlflow,
    /// See `wandb`.
    CometMl,
    /// See `wandb`.
    Clearml,
    /// See `wandb`.
    Neptune,
    /// See `wandb`.
    Swanlab,
    /// See `wandb`.
    Trackio,
    /// See `wandb`.
    Dvclive,
    /// See `wandb`.
    Codecarbon,
    /// See `wandb`.
    AzureMl,
    /// See `wandb`.
    Dagshub,
    /// See `wandb`.
    Flyte,
}

impl ReportTo {
    /// Whether this is a service elsewhere.
    fn is_elsewhere(self) -> bool {
        match self {
            ReportTo::Jsonl
            | ReportTo::Tensorboard
            | ReportTo::Html
            | ReportTo::All
            | ReportTo::None => false,
            ReportTo::Wandb
            | ReportTo::Mlflow
            | ReportTo::CometMl
            | ReportTo::Clearml
            | ReportTo::Neptune
            | ReportTo::Swanlab
            | ReportTo::Trackio
            | ReportTo::Dvclive
            | ReportTo::Codecarbon
            | ReportTo::AzureMl
            | ReportTo::Dagshub
            | ReportTo::Flyte => true,
        }
    }

    /// The services of a list that nothing is sent to, by their names.
    pub(crate) fn elsewhere(list: &[ReportTo]) -> Vec<String> {
        let named = list.iter().filter(|r| r.is_elsewhere());
        let name = |r: &ReportTo| Some(serde_json::to_value(r).ok()?.as_str()?.to_owned());
        named.filter_map(name).collect()
    }

    /// Whether a list asks for this one. `none` beside others asks for nothing; services elsewhere alone leave what is usual.
    fn asked(self, list: &[ReportTo]) -> bool {
        let usual = [ReportTo::Jsonl, ReportTo::Html];
        let away = !list.is_empty() && list.iter().all(|r| r.is_elsewhere());
        let list = if away { &usual[..] } else { list };
        !list.contains(&ReportTo::None) && (list.contains(&self) || list.contains(&ReportTo::All))
    }
}

/// The watchers of a run, all fed with the same events.
pub(crate) struct Watchers {
    folder: PathBuf,
    logs: bool,
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
    pub(crate) fn open(folder: &Path, to: &[ReportTo], job: Value) -> Result<Watchers> {
        std::fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot be made", e))?;
        let board = if ReportTo::Tensorboard.asked(to) {
            Some(EventFile::create(&folder.join(file::RUNS))?)
        } else {
            None
        };
        Ok(Watchers {
            logs: ReportTo::Jsonl.asked(to),
            log: None,
            board,
            report: ReportTo::Html.asked(to),
            record: RunRecord::new(job),
            folder: folder.to_owned(),
        })
    }

    /// Lines about the data and the adapters' summary table for the report.
    pub(crate) fn describe(&mut self, data: Vec<String>, adapters: String) {
        self.record.data = data;
        self.record.adapters = adapters;
    }

    /// What the model is called, and the adapters that are trained.
    pub(crate) fn name(&mut self, model: String, adapters: Vec<String>) {
        self.record.model = model;
        self.record.names = adapters;
    }

    /// The report, where one is written.
    pub(crate) fn report(&self) -> Option<PathBuf> {
        self.report.then(|| self.folder.join(file::REPORT))
    }

    /// Wall time of the run so far, in seconds.
    pub(crate) fn runtime(&self) -> f64 {
        self.record.end["runtime"].as_f64().unwrap_or(0.0)
    }

    /// Takes what the model does with a few examples.
    pub(crate) fn looked(&mut self, look: Look) {
        self.record.look = Some(look);
    }

    /// The picture of the model, as SVG, for the report and beside it.
    pub(crate) fn picture(&mut self, svg: String) {
        self.record.picture = svg;
    }

    /// Says which adapter the run wrote, by its content.
    pub(crate) fn made(&mut self, name: &str, content: String) {
        self.record.made.insert(name.to_owned(), content);
    }

    /// Takes an event.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub(crate) fn event(&mut self, event: &Event) -> Result<()> {
        if let Event::Begin { resumed_from, .. } = event {
            self.begin(resumed_from.unwrap_or(0))?;
        }
        self.record.event(event);
        if let (Some(log), false) = (&mut self.log, event.is_tick()) {
            let line = serde_json::to_string(event).unwrap_or_default() + "\n";
            let path = self.folder.join(file::LOG);
            log.write_all(line.as_bytes())
                .and_then(|()| log.flush())
                .map_err(|e| Error::io(&path, "cannot be written", e))?;
        }
        if let Some(board) = &mut self.board {
            board.event(event)?;
        }
        // The report can be looked at while the run goes on.
        match event {
            Event::Evaluate(_) | Event::Save { .. } | Event::End { .. } => self.write(),
            Event::Begin { .. }
            | Event::Step(_)
            | Event::Evaluating { .. }
            | Event::Log(_)
            | Event::Warning { .. } => Ok(()),
        }
    }

    /// Opens the log behind what was logged up to a step.
    fn begin(&mut self, step: u64) -> Result<()> {
        if step > 0 {
            let old = disk::own::text(self.folder.join(file::RUN)).unwrap_or_default();
            let old: RunRecord = serde_json::from_str(&old).unwrap_or_default();
            let before = old.steps.into_iter().filter(|s| s.0 <= step);
            self.record.steps = before.collect();
        }
        if !self.logs {
            return Ok(());
        }
        let path = self.folder.join(file::LOG);
        let mut kept = Vec::new();
        if step > 0
            && let Ok(old) = disk::own::open(&path)
        {
            for line in BufReader::new(old)
                .split(b'\n')
                .map_while(std::io::Result::ok)
            {
                let event: Value = serde_json::from_slice(&line).unwrap_or_default();
                let at = event["step"].as_u64().unwrap_or(0);
                if at <= step && event.is_object() && event["event"] != "end" {
                    self.record.line(&event);
                    kept.extend(line);
                    kept.push(b'\n');
                }
            }
        }
        atomically(&path, &kept)?;
        let log = OpenOptions::new().append(true).open(&path);
        self.log = Some(log.map_err(|e| Error::io(&path, "cannot be written", e))?);
        Ok(())
    }

    /// Writes the record and the report.
    fn write(&self) -> Result<()> {
        let text = serde_json::to_string_pretty(&self.record).unwrap_or_default() + "\n";
        atomically(&self.folder.join(file::RUN), text.as_bytes())?;
        if !self.report {
            return Ok(());
        }
        if !self.record.picture.is_empty() {
            atomically(
                &self.folder.join(file::GRAPH),
                self.record.picture.as_bytes(),
            )?;
        }
        let report = html(&self.record)?;
        atomically(&self.folder.join(file::REPORT), report.as_bytes())
    }

    /// Writes what is written at the end.
    ///
    /// # Errors
    /// Files that cannot be written.
    pub(crate) fn close(self) -> Result<()> {
        self.write()
    }
}

/// Replaces a file as a whole.
fn atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    crate::staging::write(path, bytes, false).map_err(|e| Error::io(path, "cannot be written", e))
}
