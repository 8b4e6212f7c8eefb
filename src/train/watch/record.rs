//! What is known of a run.

use super::Look;
use crate::train::event::Event;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::{BufRead, Read};
use std::path::Path;

/// Entries of the log, and evaluations, that a record holds for good; it may hold twice as many. The log itself has all.
const ENTRIES: usize = 2048;
/// Steps whose loss a record holds for good.
const STEPS: usize = 400;
/// Warnings that a record holds.
const WARNINGS: usize = 200;
/// Bytes of a line of a log. A longer one is none of ours.
const LINE: u64 = 1 << 20;

/// The history of a run, as the report and a model card show it. It says nothing about the machine: no date, no absolute path.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct RunRecord {
    /// What the model is called.
    pub model: String,
    /// Names of the adapters that are trained.
    pub names: Vec<String>,
    /// The job.
    pub job: Value,
    /// Lines about the data.
    pub data: Vec<String>,
    /// The adapters' summary table.
    pub adapters: String,
    /// The picture of the model, which is a file of its own.
    #[serde(skip)]
    pub picture: String,
    /// How the run began: examples, steps, trainable parameters.
    pub begin: Value,
    /// Training log: objects with `step`, `epoch`, `loss`, `learning_rate`, `grad_norm`, `tokens_per_second`. Of a long one, entries
    /// that are spread evenly.
    pub log: Vec<Value>,
    /// Steps with their losses; of many, some that are spread evenly.
    pub steps: Vec<(u64, f64)>,
    /// Evaluations: objects with `step`, `epoch` and `metrics`.
    pub evaluations: Vec<Value>,
    /// Warnings, each once.
    pub warnings: Vec<String>,
    /// How the run ended; null while it goes on.
    pub end: Value,
    /// What the model does with a few examples, before the run and after it.
    pub look: Option<Look>,
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

    /// Takes the lines of a log. Those that are none, as an interrupted run may leave, are passed over.
    ///
    /// # Errors
    /// A log that cannot be read.
    pub(crate) fn read_log(&mut self, mut log: impl BufRead) -> std::io::Result<()> {
        let mut line = Vec::new();
        loop {
            line.clear();
            if log.by_ref().take(LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(());
            }
            self.line(&serde_json::from_slice(&line).unwrap_or_default());
        }
    }

    /// Takes an event.
    pub(crate) fn event(&mut self, event: &Event) {
        if let Event::Step(step) = event
            && step.loss.is_finite()
        {
            self.steps.push((step.step, step.loss));
            spread(&mut self.steps, STEPS, |s| s.0 as f64);
        }
        if !event.is_tick() {
            self.line(&json!(event));
        }
    }

    /// The losses of steps, spread evenly.
    pub(crate) fn losses(&self) -> Vec<(u64, f64)> {
        let mut steps = self.steps.clone();
        evenly(&mut steps, STEPS, |s| s.0 as f64);
        steps
    }

    /// Takes a line of the log.
    pub(crate) fn line(&mut self, event: &Value) {
        match event["event"].as_str() {
            Some("begin") => self.begin = event.clone(),
            Some("log") => {
                self.log.push(event.clone());
                spread(&mut self.log, ENTRIES, step_of);
            }
            Some("evaluate") => {
                self.evaluations.push(event.clone());
                spread(&mut self.evaluations, ENTRIES, step_of);
            }
            Some("warning") if self.warnings.len() < WARNINGS => {
                let text = event["message"].as_str().map(str::to_owned);
                let new = text.filter(|t| !self.warnings.contains(t));
                self.warnings.extend(new);
            }
            Some("end") => self.end = event.clone(),
            _ => {}
        }
    }
}

fn step_of(entry: &Value) -> f64 {
    entry["step"].as_f64().unwrap_or(0.0)
}

/// Thins out a list that has grown to twice so many entries.
fn spread<T>(list: &mut Vec<T>, most: usize, step: impl Fn(&T) -> f64) {
    if list.len() >= 2 * most {
        evenly(list, most, step);
        // Steps that do not grow, as no run of ours has them.
        list.truncate(2 * most - 1);
    }
}

/// Thins out a list of more entries than these, so that the rest is spread evenly over the steps. The last one stays.
fn evenly<T>(list: &mut Vec<T>, most: usize, step: impl Fn(&T) -> f64) {
    let (Some(first), Some(last)) = (list.first().map(&step), list.last().map(&step)) else {
        return;
    };
    if list.len() <= most {
        return;
    }
    let (end, gap) = (list.len() - 1, (last - first) / most as f64);
    let (mut at, mut next) = (0, first);
    list.retain(|entry| {
        let keep = step(entry) >= next || at == end;
        if keep {
            next = step(entry) + gap;
        }
        at += 1;
        keep
    });
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
        let mut read = RunRecord::new(job);
        read.read_log(text.as_bytes()).unwrap();
        assert_eq!(read, record);
        assert_eq!(
            record.job,
            json!({"model": "m.onnx", "data": ["rel/x", "y"]})
        );
        assert_eq!((record.warnings.len(), record.log.len()), (1, 1));
        let again: RunRecord = serde_json::from_value(json!(record)).unwrap();
        assert_eq!(again, record);
    }

    #[test]
    fn a_long_run_is_held_in_entries_that_are_spread_evenly() {
        let mut record = RunRecord::default();
        for step in 1..=100_000u64 {
            record.line(&json!({"event": "log", "step": step, "loss": 1.0}));
            record.line(&json!({"event": "warning", "message": step.to_string()}));
        }
        let steps: Vec<f64> = record.log.iter().map(step_of).collect();
        assert!((ENTRIES / 2..2 * ENTRIES).contains(&steps.len()));
        assert_eq!((steps[0], steps[steps.len() - 1]), (1.0, 100_000.0));
        let most = steps.windows(2).map(|w| w[1] - w[0]).fold(0.0, f64::max);
        // Each time that the list is thinned out, a gap may become larger by one that is left out.
        assert!(most <= 3.0 * 100_000.0 / ENTRIES as f64, "{most}");
        assert_eq!(record.warnings.len(), WARNINGS);
        for _ in 0..3 * ENTRIES {
            record.line(&json!({"event": "evaluate"}));
        }
        assert!(record.evaluations.len() < 2 * ENTRIES);
    }

    #[test]
    fn a_line_without_end_is_passed_over() {
        let log = "x".repeat(3 << 20) + "\n{\"event\": \"log\", \"step\": 1}\n";
        let mut record = RunRecord::default();
        record.read_log(log.as_bytes()).unwrap();
        assert_eq!(record.log.len(), 1);
    }
}
