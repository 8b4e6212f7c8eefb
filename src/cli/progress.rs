//! How a run looks on a terminal: a bar where there is one, plain lines where there is not.

use super::Ui;
use crate::diag::count;
use crate::job::{self, TrainReport};
use crate::train::{EvalEntry, Event, LogEntry, StepReport};
use indicatif::{ProgressBar, ProgressStyle};
use std::time::{Duration, Instant};

/// Shows the events of a run.
pub(super) struct Progress<'a> {
    ui: &'a Ui,
    bar: ProgressBar,
    total: u64,
    /// Steps that were done before this process.
    before: u64,
    started: Instant,
    tokens: usize,
}

/// Whether a terminal can move its cursor, and somebody sits before it.
fn lively(var: impl Fn(&str) -> Option<String>) -> bool {
    var("TERM").is_none_or(|t| t != "dumb")
        && var("CI").is_none_or(|c| matches!(c.as_str(), "" | "0" | "false"))
}

impl<'a> Progress<'a> {
    pub(super) fn new(ui: &'a Ui) -> Self {
        let bar = if ui.progress() && lively(|name| std::env::var(name).ok()) {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style =
            ProgressStyle::with_template("{bar:25} {pos}/{len} steps  {wide_msg} {eta} left");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Progress {
            ui,
            bar,
            total: 0,
            before: 0,
            started: Instant::now(),
            tokens: 0,
        }
    }

    /// Tokens a second so far.
    fn rate(&self) -> f64 {
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
                self.before = resumed_from.unwrap_or(0);
                self.bar.set_length(*total_steps);
                self.bar.set_position(self.before);
                self.bar.reset_eta();
                if let Some(step) = resumed_from {
                    self.line(&format!("goes on from the checkpoint of step {step}"));
                }
                self.started = Instant::now();
            }
            Event::Step(r) => self.step(r),
            Event::Log(e) => {
                let done = e.step.saturating_sub(self.before);
                let left = left(
                    self.started.elapsed(),
                    done,
                    self.total.saturating_sub(e.step),
                );
                self.plain(&logged(e, self.total, left));
            }
            // A long evaluation shows that it goes on, in the place of the loss.
            Event::Evaluating { done, total } => {
                self.bar
                    .set_message(format!("evaluates, batch {done} of {total}"));
            }
            Event::Evaluate(e) => self.line(&evaluated(e)),
            Event::Save { step, path, best } => {
                let best = if *best { ", the best so far" } else { "" };
                self.plain(&format!("step {step}: wrote {}{best}", path.display()));
            }
            Event::Warning { message } => self.line(&format!("warning: {message}")),
            Event::End { .. } => self.bar.finish_and_clear(),
        }
    }

    fn step(&mut self, r: &StepReport) {
        self.tokens += r.tokens;
        self.bar.set_position(r.step);
        // A step that has nothing to learn has no loss.
        let loss = if r.loss.is_nan() {
            "no loss".to_owned()
        } else {
            format!("loss {:.4}", r.loss)
        };
        if self.ui.verbose > 1 {
            self.line(&format!(
                "step {}: {loss}, gradient {:.4}, rate {:.2e}, {} tokens in {} positions",
                r.step, r.grad_norm, r.learning_rate, r.tokens, r.positions
            ));
        }
        self.bar.set_message(format!(
            "epoch {:.2}  {loss}  lr {:.2e}{}",
            r.epoch,
            r.learning_rate,
            speed(self.rate())
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
}

/// One line about a whole training.
pub(super) fn summary(report: &TrainReport) -> String {
    let (steps, first, last) = (report.steps, report.first_loss, report.last_loss);
    if report.losses.is_empty() {
        return format!("{steps} steps were done before; nothing is left to do");
    }
    format!(
        "{}: loss {first:.4} → {last:.4}{}",
        count(steps as usize, "step", "steps"),
        speed(report.tokens_per_second).replace("  ", ", ")
    )
}

/// A bar for work of a known size; everything else that a job says is a line.
pub(super) struct Bar<'a> {
    ui: &'a Ui,
    bar: Option<ProgressBar>,
}

impl<'a> Bar<'a> {
    pub(super) fn new(ui: &'a Ui) -> Self {
        Bar { ui, bar: None }
    }

    pub(super) fn event(&mut self, event: &job::Event) {
        let job::Event::Progress { what, done, total } = event else {
            return self.ui.event(event);
        };
        let bar = self.bar.get_or_insert_with(|| {
            let bar = if self.ui.progress() {
                ProgressBar::new(*total as u64)
            } else {
                ProgressBar::hidden()
            };
            let style = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  {eta} left");
            if let Ok(style) = style {
                bar.set_style(style);
            }
            bar.set_message(*what);
            bar
        });
        bar.set_position(*done as u64);
        if done == total {
            bar.finish_and_clear();
            self.bar = None;
        }
    }
}

/// How far the generation of texts is; everything else that a job says is a line.
pub(super) struct Texts<'a> {
    ui: &'a Ui,
    shown: bool,
    bar: ProgressBar,
    /// Tokens of the texts that are done, and pieces of those that are not.
    tokens: usize,
    pieces: usize,
    done: u64,
    started: Instant,
}

impl<'a> Texts<'a> {
    pub(super) fn new(ui: &'a Ui, shown: bool) -> Self {
        let shown = shown && ui.progress() && lively(|name| std::env::var(name).ok());
        Texts {
            ui,
            shown,
            bar: ProgressBar::hidden(),
            tokens: 0,
            pieces: 0,
            done: 0,
            started: Instant::now(),
        }
    }

    pub(super) fn event(&mut self, event: &job::Event) {
        match event {
            job::Event::Asked { texts, .. } if self.shown => {
                self.started = Instant::now();
                self.bar = ProgressBar::new(*texts as u64);
                let style = if *texts > 1 {
                    "{bar:30} {pos}/{len} texts{msg}"
                } else {
                    "{spinner} a text{msg}"
                };
                if let Ok(style) = ProgressStyle::with_template(style) {
                    self.bar.set_style(style);
                }
                self.bar.enable_steady_tick(Duration::from_millis(200));
            }
            job::Event::Asked { .. } => {}
            job::Event::Progress { done, total, .. } if done == total => {
                self.bar.finish_and_clear();
            }
            job::Event::Progress { done, .. } => {
                self.done = *done as u64;
                self.bar.set_position(self.done);
            }
            job::Event::Text { .. } => {
                self.pieces += 1;
                self.rate();
            }
            job::Event::Answer { text, .. } => {
                self.tokens += text.ids.len();
                self.rate();
            }
            other => self.suspend(|| self.ui.event(other)),
        }
    }

    /// A piece is a token, or more; where there is no tokenizer, only whole texts are counted.
    fn rate(&self) {
        let tokens = self.tokens.max(self.pieces);
        let spent = self.started.elapsed();
        let rate = tokens as f64 / spent.as_secs_f64().max(1e-9);
        let total = self.bar.length().unwrap_or(0);
        let left = left(spent, self.done, total.saturating_sub(self.done));
        let left = left.map_or_else(String::new, |l| format!("  {} left", short(l)));
        let message = format!("  {tokens} tokens{}{left}", speed(rate));
        self.bar.set_message(message);
    }

    /// Lets something be printed in the place of the bar.
    pub(super) fn suspend<T>(&self, print: impl FnOnce() -> T) -> T {
        if self.bar.is_hidden() {
            print()
        } else {
            self.bar.suspend(print)
        }
    }
}

/// Tokens a second, where tokens are counted.
fn speed(rate: f64) -> String {
    if rate > 0.0 {
        format!("  {rate:.0} tokens/s")
    } else {
        String::new()
    }
}

/// Time that the steps to come take when they take as long as those that were done.
fn left(spent: Duration, done: u64, to_come: u64) -> Option<Duration> {
    let each = spent.as_secs_f64() / (done > 0).then_some(done)? as f64;
    Duration::try_from_secs_f64(each * to_come as f64).ok()
}

/// One line for one entry of the log.
fn logged(e: &LogEntry, total: u64, left: Option<Duration>) -> String {
    let mut text = format!(
        "step {}/{total}  loss {:.4}  lr {:.3e}  grad norm {:.3}{}",
        e.step,
        e.loss,
        e.learning_rate,
        e.grad_norm,
        speed(e.tokens_per_second)
    );
    if let Some(left) = left.filter(|_| e.step < total) {
        text += &format!("  {} left", short(left));
    }
    text
}

/// A duration in hours, minutes and seconds.
fn short(t: Duration) -> String {
    let s = t.as_secs_f64().round() as u64;
    match s {
        0..60 => format!("{s}s"),
        60..3600 => format!("{}m{:02}s", s / 60, s % 60),
        _ => format!("{}h{:02}m", s / 3600, s % 3600 / 60),
    }
}

fn evaluated(e: &EvalEntry) -> String {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_entry_is_one_line() {
        let e = LogEntry {
            step: 10,
            epoch: 0.5,
            loss: 1.25,
            learning_rate: 1e-4,
            grad_norm: 0.5,
            tokens_per_second: 1234.0,
        };
        let spent = left(Duration::from_secs(20), 10, 90);
        assert_eq!(
            logged(&e, 100, spent),
            "step 10/100  loss 1.2500  lr 1.000e-4  grad norm 0.500  1234 tokens/s  3m00s left"
        );
        assert!(logged(&e, 10, left(Duration::from_secs(20), 10, 0)).ends_with("tokens/s"));
        assert_eq!(left(Duration::from_secs(20), 0, 90), None);
    }

    #[test]
    fn bars_are_for_terminals_with_somebody_before_them() {
        let with = |name: &'static str, value: &'static str| {
            lively(move |n| (n == name).then(|| value.to_owned()))
        };
        assert!(lively(|_| None) && with("TERM", "xterm") && with("CI", "false"));
        assert!(!with("TERM", "dumb") && !with("CI", "true"));
    }
}
