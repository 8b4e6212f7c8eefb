//! What a run reports while it goes on. Whoever watches (a terminal, a log file, a report) gets the same events.

use serde::Serialize;
use std::collections::BTreeMap;
use std::path::PathBuf;

/// What one optimizer step did.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct StepReport {
    /// Number of steps done, this one included.
    pub step: u64,
    /// Epochs done, with the fraction of the current one.
    pub epoch: f64,
    /// Loss before the update, mean over labelled positions of all micro-batches; not a number where there is none.
    pub loss: f64,
    /// Learning rate of the update.
    pub learning_rate: f64,
    /// Global gradient norm before clipping.
    pub grad_norm: f64,
    /// Tokens read, padding not counted.
    pub tokens: usize,
    /// Positions computed, padding counted.
    pub positions: usize,
}

/// What a log line says: the mean over the steps since the last one, as Hugging Face's Trainer logs.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct LogEntry {
    /// Optimizer steps done.
    pub step: u64,
    /// Epochs done, with the fraction of the current one.
    pub epoch: f64,
    /// Mean loss of the steps since the last entry that learned something.
    pub loss: f64,
    /// Learning rate of the last update.
    pub learning_rate: f64,
    /// Global gradient norm of the last update, before clipping.
    pub grad_norm: f64,
    /// Tokens a second since the last entry, padding not counted.
    pub tokens_per_second: f64,
}

/// What an evaluation found.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct EvalEntry {
    /// Optimizer steps done before it; 0 outside training.
    pub step: u64,
    /// Epochs done before it.
    pub epoch: f64,
    /// Measures by name without prefix: `loss`, `perplexity`, `accuracy`, …
    pub metrics: BTreeMap<String, f64>,
    /// Examples evaluated.
    pub samples: usize,
    /// Labelled positions evaluated.
    pub items: usize,
    /// Wall time in seconds.
    pub runtime: f64,
}

/// Why a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Stop {
    /// All steps were done.
    Finished,
    /// The metric did not improve for long enough.
    EarlyStopping,
    /// Asked to stop from outside; a checkpoint was written.
    Interrupted,
}

/// Something that happened in a run.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
#[non_exhaustive]
pub enum Event {
    /// Before the first step.
    Begin {
        /// Optimizer steps of the whole run.
        total_steps: u64,
        /// Steps done before, when the run is a resumed one.
        resumed_from: Option<u64>,
        /// Training examples.
        examples: usize,
        /// Trainable elements.
        trainable: usize,
    },
    /// After every optimizer step.
    Step(StepReport),
    /// Every `logging_steps`.
    Log(LogEntry),
    /// Before every batch of an evaluation, and after the last one.
    Evaluating {
        /// Batches done.
        done: usize,
        /// Batches in all.
        total: usize,
    },
    /// After an evaluation.
    Evaluate(EvalEntry),
    /// After a checkpoint was written.
    Save {
        /// Optimizer steps done.
        step: u64,
        /// The folder.
        path: PathBuf,
        /// Whether it is the best one so far.
        best: bool,
    },
    /// Something that the user should know: rows without labels, templates not found, …
    Warning {
        /// The text.
        message: String,
    },
    /// After the last step.
    End {
        /// Why.
        reason: Stop,
        /// Optimizer steps done in all.
        steps: u64,
        /// Wall time of this process's part, in seconds.
        runtime: f64,
        /// Mean loss of the steps of this process.
        train_loss: f64,
        /// The step of the best checkpoint, where best was asked for.
        best_step: Option<u64>,
        /// Its metric.
        best_metric: Option<f64>,
        /// Steps of this process.
        done: u64,
    },
}

impl Event {
    /// Whether it only says how far the run is: such events are too many for a log.
    pub(crate) fn is_tick(&self) -> bool {
        matches!(self, Event::Step(_) | Event::Evaluating { .. })
    }
}

/// Receives events. An error stops the run.
pub(crate) type OnEvent<'a> = &'a mut dyn FnMut(&Event) -> crate::error::Result<()>;
