//! What is known of a run.

use crate::train::event::Event;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
#[cfg(test)]
use std::io::BufRead;
use std::path::Path;

/// The history of a run, as the report and a model card show it. It says nothing about the machine: no date, no absolute path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunRecord {
    /// The job.
    pub job: Value,
    /// Lines about the data.
    pub data: Vec<String>,
    /// The adapters' summary table.
    pub adapters: String,
    /// How the run began: examples, steps, trainable parameters.
    pub begin: Value,
    /// Training log: objects with `step`, `epoch`, `loss`, `learning_rate`, `grad_norm`, `tokens_per_second`.
    pub log: Vec<Value>,
    /// Evaluations: objects with `step`, `epoch` and `metrics`.
    pub evaluations: Vec<Value>,
    /// Warnings, each once.
    pub warnings: Vec<String>,
    /// How the run ended; null while it goes on.
    pub end: Value,
    /// The adapters that it wrote, when it had ended: hashes of their contents by name. What is said above is of no other ones.
    pub made: BTreeMap<String, String>,
}

impl RunRecord {
    /// An empty record. Absolute paths of the job are cut to their last part.
    pub(crate) fn new(mut job: Value) -> Self {
        cut_paths(&mut job);
        RunRecord {
            job,
            ..RunRecord::default()
        }
    }

    /// The record that a log tells of. Lines that are none, as an interrupted run may leave, are passed over.
    ///
    /// # Errors
    /// A log that cannot be read.
    #[cfg(test)]
    pub(crate) fn from_log(job: Value, log: impl BufRead) -> std::io::Result<Self> {
        let mut record = RunRecord::new(job);
        for line in log.split(b'\n') {
            record.line(&serde_json::from_slice(&line?).unwrap_or_default());
        }
        Ok(record)
    }

    /// Takes an event.
    pub(crate) fn event(&mut self, event: &Event) {
        if !event.is_tick() {
            self.line(&json!(event));
        }
    }

    /// Takes a line of the log.
    pub(crate) fn line(&mut self, event: &Value) {
        match event["event"].as_str() {
            Some("begin") => self.begin = event.clone(),
            Some("log") => self.log.push(event.clone()),
            Some("evaluate") => self.evaluations.push(event.clone()),
            Some("warning") => {
                let text = event["message"].as_str().map(str::to_owned);
                let new = text.filter(|t| !self.warnings.contains(t));
                self.warnings.extend(new);
            }
            Some("end") => self.end = event.clone(),
            _ => {}
        }
    }
}

/// Cuts absolute paths to their last part.
fn cut_paths(value: &mut Value) {
    match value {
        Value::String(text) if Path::new(text.as_str()).is_absolute() => {
            let name = Path::new(text.as_str())
                .file_name()
                .and_then(|n| n.to_str());
            *text = name.unwrap_or_default().to_owned();
        }
        Value::Array(list) => list.iter_mut().for_each(cut_paths),
        Value::Object(map) => map.values_mut().for_each(cut_paths),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::train::event::{EvalEntry, LogEntry, Stop};

    #[test]
    fn a_record_of_events_is_the_record_of_their_log() {
        let events = [
            Event::Begin {
                total_steps: 2,
                resumed_from: None,
                examples: 3,
                trainable: 4,
            },
            Event::Warning {
                message: "w".into(),
            },
            Event::Warning {
                message: "w".into(),
            },
            Event::Log(LogEntry {
                step: 1,
                epoch: 0.5,
                loss: f64::NAN,
                learning_rate: 1e-4,
                grad_norm: 1.0,
                tokens_per_second: 10.0,
            }),
            Event::Evaluate(EvalEntry {
                step: 1,
                epoch: 0.5,
                metrics: [("loss".to_owned(), 2.0)].into(),
                samples: 1,
                items: 1,
                runtime: 0.1,
            }),
            Event::End {
                reason: Stop::Finished,
                steps: 2,
                runtime: 1.0,
                train_loss: 0.5,
                best_step: None,
                best_metric: None,
                done: 2,
            },
        ];
        let job = json!({"model": "/home/me/m.onnx", "data": ["rel/x", "/abs/y"]});
        let (mut record, mut text) = (RunRecord::new(job.clone()), String::new());
        for e in &events {
            record.event(e);
            text += &(serde_json::to_string(e).unwrap() + "\n");
        }
        text += "{\"event\": \"log\", \"ste";
        assert_eq!(RunRecord::from_log(job, text.as_bytes()).unwrap(), record);
        assert_eq!(
            record.job,
            json!({"model": "m.onnx", "data": ["rel/x", "y"]})
        );
        assert_eq!((record.warnings.len(), record.log.len()), (1, 1));
        let again: RunRecord = serde_json::from_value(json!(record)).unwrap();
        assert_eq!(again, record);
    }
}
