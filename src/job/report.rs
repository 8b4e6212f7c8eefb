//! What a training comes to.

use crate::train::{DryRun, Event};
use serde::Serialize;
use std::path::PathBuf;
use std::time::Instant;

/// What a training did.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[non_exhaustive]
pub struct TrainReport {
    /// The folders of the trained adapters.
    pub adapters: Vec<PathBuf>,
    /// The page with its curves and examples, where one was asked for (`report_to`).
    pub report: Option<PathBuf>,
    /// Optimizer steps done in all.
    pub steps: u64,
    /// Loss of the first step of this run that had something to learn; not a number where there was none.
    pub first_loss: f64,
    /// Loss of the last such step.
    pub last_loss: f64,
    /// Loss of every step.
    pub losses: Vec<f64>,
    /// Tokens read in a second, padding not counted.
    pub tokens_per_second: f64,
    /// The step of the best evaluation.
    pub best_step: Option<u64>,
    /// The measure of the best evaluation.
    pub best_metric: Option<f64>,
    /// What the run would be, where only that was asked for (`dry_run`): nothing was trained or written.
    #[serde(skip)]
    pub dry_run: Option<DryRun>,
}

/// Counts what the events of a training say.
pub(super) struct Tally {
    losses: Vec<f64>,
    tokens: usize,
    started: Instant,
}

impl Tally {
    pub(super) fn new() -> Self {
        Tally {
            losses: Vec::new(),
            tokens: 0,
            started: Instant::now(),
        }
    }

    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::Begin { .. } => self.started = Instant::now(),
            Event::Step(report) => {
                self.losses.push(report.loss);
                self.tokens += report.tokens;
            }
            _ => {}
        }
    }

    /// Losses of the steps that had something to learn.
    fn learned(&self) -> impl Iterator<Item = f64> {
        self.losses.iter().copied().filter(|l| !l.is_nan())
    }

    /// The report of what was counted; nothing is written yet.
    pub(super) fn report(self) -> TrainReport {
        let (first, last) = (self.learned().next(), self.learned().last());
        TrainReport {
            adapters: Vec::new(),
            report: None,
            steps: 0,
            first_loss: first.unwrap_or(f64::NAN),
            last_loss: last.unwrap_or(f64::NAN),
            tokens_per_second: self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9),
            losses: self.losses,
            best_step: None,
            best_metric: None,
            dry_run: None,
        }
    }
}
