//! What is known of a run when it is over.

use crate::train::event::Event;
use serde::Serialize;
use serde_json::{Value, json};

/// The history of a run, as the report shows it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunRecord {
    /// The job.
    pub job: Value,
    /// Lines about the data.
    pub data: Vec<String>,
    /// The adapters' summary table.
    pub adapters: String,
    /// Training log: objects with `step`, `epoch`, `loss`, `learning_rate`, `grad_norm`, `tokens_per_second`.
    pub log: Vec<Value>,
    /// Evaluations: objects with `step`, `epoch` and `metrics`.
    pub evaluations: Vec<Value>,
    /// Warnings.
    pub warnings: Vec<String>,
    /// How the run ended.
    pub end: Value,
    /// Whether events are logged.
    #[serde(skip)]
    pub(super) logs: bool,
}

impl RunRecord {
    /// An empty record.
    pub fn new(job: Value, logs: bool) -> Self {
        RunRecord {
            job,
            logs,
            ..RunRecord::default()
        }
    }

    /// Takes an event.
    pub fn event(&mut self, event: &Event) {
        if !matches!(event, Event::Step(_)) {
            self.line(&json!(event));
        }
    }

    /// Takes a line of the log.
    pub fn line(&mut self, event: &Value) {
        match event["event"].as_str() {
            Some("log") => self.log.push(event.clone()),
            Some("evaluate") => self.evaluations.push(event.clone()),
            Some("warning") => self
                .warnings
                .extend(event["message"].as_str().map(str::to_owned)),
            Some("end") => self.end = event.clone(),
            _ => {}
        }
    }
}
