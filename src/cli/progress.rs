//! How a run looks on a terminal: a bar where there is one, plain lines where there is not.

use super::Ui;
use crate::train::{Evaluation, Event, StepReport};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::Instant;

/// Shows the events of a run.
pub(super) struct Progress<'a> {
    ui: &'a Ui,
    bar: ProgressBar,
    total: u64,
    started: Instant,
    tokens: usize,
    /// Loss of the first step.
    pub(super) first: f64,
    /// Loss of the last step.
    pub(super) last: f64,
    /// Loss of every step.
    pub(super) losses: Vec<f64>,
    logged: u64,
}

impl<'a> Progress<'a> {
    pub(super) fn new(ui: &'a Ui) -> Self {
        let dumb = std::env::var_os("TERM").is_some_and(|t| t == "dumb");
        let bar = if ui.progress() && !dumb {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  {eta} left");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Progress {
            ui,
            bar,
            total: 0,
            started: Instant::now(),
            tokens: 0,
            first: f64::NAN,
            last: f64::NAN,
            losses: Vec::new(),
            logged: 0,
        }
    }

    /// Tokens a second so far.
    pub(super) fn rate(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    pub(super) fn event(&mut self, event: &Event) {
        match event {
            Event::Begin {
                total_steps,
                resumed_from,
                ..
            } => {
                self.total = *total_steps;
                self.bar.set_length(*total_steps);
                self.bar.set_position(resumed_from.unwrap_or(0));
                self.bar.reset_eta();
                if let Some(step) = resumed_from {
                    self.line(&format!("goes on from the checkpoint of step {step}"));
                }
                self.started = Instant::now();
            }
            Event::Step(r) => self.step(r),
            Event::Log(e) => {
                self.logged = e.step;
                self.plain(&format!(
                    "step {}/{}  loss {:.4}  lr {:.3e}  grad norm {:.3}  {:.0} tokens/s",
                    e.step, self.total, e.loss, e.learning_rate, e.grad_norm, e.tokens_per_second
                ));
            }
            Event::Evaluate(e) => self.line(&evaluated(e)),
            Event::Save { step, path, .. } => {
                self.plain(&format!("step {step}: wrote {}", path.display()));
            }
            Event::Warning { message } => self.line(&format!("warning: {message}")),
            Event::End { .. } => {}
        }
    }

    fn step(&mut self, r: &StepReport) {
        if self.losses.is_empty() {
            self.first = r.loss;
        }
        self.last = r.loss;
        self.losses.push(r.loss);
        self.tokens += r.tokens;
        let rate = if self.tokens > 0 {
            format!("  {:.0} tokens/s", self.rate())
        } else {
            String::new()
        };
        self.bar.set_position(r.step);
        self.bar.set_message(format!(
            "loss {:.4}  lr {:.2e}{rate}",
            r.loss, r.learning_rate
        ));
    }

    /// A line above the bar, or by itself.
    fn line(&self, text: &str) {
        if self.bar.is_hidden() {
            self.ui.note(text);
        } else {
            self.bar.suspend(|| self.ui.note(text));
        }
    }

    /// A line where there is no bar to say it.
    fn plain(&self, text: &str) {
        if self.bar.is_hidden() {
            self.ui.note(text);
        }
    }

    pub(super) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    /// One line about the whole run.
    pub(super) fn summary(&self, steps: u64) -> String {
        let mut text = format!("{steps} steps: loss {:.4} → {:.4}", self.first, self.last);
        if self.tokens > 0 {
            text += &format!(", {:.0} tokens/s", self.rate());
        }
        text
    }
}

fn evaluated(e: &Evaluation) -> String {
    let metrics: Vec<String> = e
        .metrics
        .iter()
        .map(|(k, v)| format!("{k} {v:.4}"))
        .collect();
    format!(
        "step {}: evaluation of {} examples: {}",
        e.step,
        e.samples,
        metrics.join("  ")
    )
}
