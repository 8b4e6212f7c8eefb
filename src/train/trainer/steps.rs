//! The loop of a run: micro-batches become steps, and what is due after each of them is done.

use super::Output;
use super::{TrainData, Trainer, failed};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::contract;
use crate::runtime::Value;
use crate::train::args::{Interval, SaveStrategy, TrainingArguments};
use crate::train::batch::{Batch, Collator, Sampler};
use crate::train::event::{EvalEntry, Event, LogEntry, OnEvent, StepReport, Stop};
use serde_json::{Map, Value as Json};
use std::sync::atomic::Ordering;
use std::time::Instant;

/// What stays the same during a run.
pub(super) struct Loop<'a, 'e> {
    pub(super) data: &'a TrainData<'a>,
    pub(super) collator: Collator,
    pub(super) sampler: Sampler,
    pub(super) output: Option<&'a Output<'a>>,
    pub(super) run: Map<String, Json>,
    pub(super) on_event: OnEvent<'e>,
    pub(super) started: Instant,
    /// Since when tokens are counted for the next log entry.
    pub(super) since_log: (Instant, usize),
    /// The last step of this process, until an epoch has logged it.
    pub(super) last: Option<StepReport>,
}

impl Trainer {
    /// Trains until the last step, or until a reason to stop.
    pub(super) fn epochs(&mut self, l: &mut Loop<'_, '_>) -> Result<Stop> {
        while self.progress.step < self.total {
            let micro = l.sampler.epoch(l.data.train.lengths(), self.progress.epoch);
            let windows: Vec<_> = micro
                .chunks(self.args.gradient_accumulation_steps)
                .collect();
            let size = self.args.gradient_accumulation_steps;
            for window in windows.into_iter().skip(self.progress.window) {
                if self.progress.step >= self.total {
                    break;
                }
                let mut batches = Vec::with_capacity(window.len());
                for rows in window {
                    batches.push(
                        l.collator
                            .at(self.progress.epoch)
                            .rows(l.data.train, rows)?,
                    );
                }
                // Epochs are counted in micro-batches.
                let done = ((self.progress.window + 1) * size).min(micro.len());
                let epoch = self.progress.epoch as f64 + done as f64 / micro.len() as f64;
                let report = self.window(&batches, epoch, l)?;
                self.progress.window += 1;
                if let Some(stop) = self.after_step(&report, l)? {
                    return Ok(stop);
                }
            }
            if self.progress.step >= self.total {
                // The last epoch ends here, though it may be incomplete.
                let done = l.last.map_or(self.progress.epoch as f64, |r| r.epoch);
                if let Some(stop) = self.after_epoch(done, l)? {
                    return Ok(stop);
                }
                break;
            }
            self.progress.epoch += 1;
            self.progress.window = 0;
            if let Some(stop) = self.after_epoch(self.progress.epoch as f64, l)? {
                return Ok(stop);
            }
        }
        Ok(Stop::Finished)
    }

    /// One step over the micro-batches of a window.
    fn window(
        &mut self,
        batches: &[Batch],
        epoch: f64,
        l: &mut Loop<'_, '_>,
    ) -> Result<StepReport> {
        let smoothed = self.args.label_smoothing_factor > 0.0;
        let items: usize = batches.iter().map(|b| b.divisor(smoothed)).sum();
        let tokens = batches.iter().map(|b| b.tokens).sum();
        let positions = batches.iter().map(|b| b.positions).sum();
        let mut feeds = Vec::with_capacity(batches.len());
        for b in batches.iter().filter(|b| b.scored > 0) {
            let divisor =
                Value::from_f32(&[], vec![items as f32]).map_err(|e| failed(e.to_string()))?;
            let all = b.feeds.clone().with(contract::NUM_ITEMS, divisor);
            feeds.push(all.for_plan(self.plan()));
        }
        if feeds.is_empty() {
            // 0/0 in Hugging Face's Trainer: there is nothing to learn from.
            let message = format!(
                "no position of the batch of step {} is labelled; the step changes nothing",
                self.progress.step + 1
            );
            (l.on_event)(&Event::Warning { message })?;
            let learning_rate = self.rate();
            self.progress.step += 1;
            self.progress.tokens += tokens as u64;
            return Ok(StepReport {
                step: self.progress.step,
                epoch,
                loss: f64::NAN,
                learning_rate,
                grad_norm: 0.0,
                tokens,
                positions,
            });
        }
        let report = self.step(&feeds, tokens)?;
        Ok(StepReport {
            epoch,
            positions,
            ..report
        })
    }

    /// Log, evaluation, checkpoint, in this order, where they are due.
    fn after_step(&mut self, report: &StepReport, l: &mut Loop<'_, '_>) -> Result<Option<Stop>> {
        (l.on_event)(&Event::Step(*report))?;
        l.last = Some(*report);
        l.since_log.1 += report.tokens;
        let p = &mut self.progress;
        // A step without a label has no loss, and counts nothing.
        if !report.loss.is_nan() {
            p.total_loss += report.loss;
            p.logged_loss += report.loss;
        }
        let (step, total) = (p.step, self.total);
        let due = |every: Option<u64>| every.is_some_and(|n| step.is_multiple_of(n));
        let last = step >= total;
        let log = self.args.log_every(total);
        let logs = self.args.logging_strategy == Interval::Steps && due(log);
        if logs || (self.args.logging_first_step && step == 1) {
            self.log(report, l)?;
        }
        let eval = TrainingArguments::every(self.args.eval_steps(), total);
        let delayed = (step as f64) < self.args.eval_delay;
        let mut improved = false;
        if self.args.eval_strategy == Interval::Steps && due(eval) && !delayed {
            improved = self.evaluate(l, report.epoch)?;
        }
        let save = TrainingArguments::every(self.args.save_steps, total);
        let saves = match self.args.save_strategy {
            // The end of an epoch saves by itself.
            SaveStrategy::No | SaveStrategy::Epoch => false,
            SaveStrategy::Steps => due(save) || last,
            SaveStrategy::Best => improved,
        };
        if saves {
            self.save(l)?;
        }
        if self.patience_is_over() {
            return Ok(Some(Stop::EarlyStopping));
        }
        let asked = self
            .stop
            .as_ref()
            .is_some_and(|s| s.load(Ordering::Relaxed));
        Ok((asked && !last).then_some(Stop::Interrupted))
    }

    /// Log, evaluation, checkpoint, where the end of an epoch asks for them.
    fn after_epoch(&mut self, done: f64, l: &mut Loop<'_, '_>) -> Result<Option<Stop>> {
        if self.args.logging_strategy == Interval::Epoch
            && let Some(report) = l.last.take()
        {
            self.log(&report, l)?;
        }
        let mut improved = false;
        if self.args.eval_strategy == Interval::Epoch && done >= self.args.eval_delay {
            improved = self.evaluate(l, done)?;
        }
        if self.args.save_strategy == SaveStrategy::Epoch
            || (improved && self.args.save_strategy == SaveStrategy::Best)
        {
            self.save(l)?;
        }
        Ok(self.patience_is_over().then_some(Stop::EarlyStopping))
    }

    fn patience_is_over(&self) -> bool {
        self.args
            .early_stopping_patience
            .is_some_and(|n| self.progress.without_improvement >= n)
    }

    fn log(&mut self, report: &StepReport, l: &mut Loop<'_, '_>) -> Result<()> {
        let p = &mut self.progress;
        let steps = p.updates - p.logged_updates;
        if steps == 0 {
            return Ok(());
        }
        let entry = LogEntry {
            step: p.step,
            epoch: report.epoch,
            loss: p.logged_loss / f64::from(steps),
            learning_rate: report.learning_rate,
            grad_norm: report.grad_norm,
            tokens_per_second: l.since_log.1 as f64
                / l.since_log.0.elapsed().as_secs_f64().max(1e-9),
        };
        p.logged_loss = 0.0;
        p.logged_updates = p.updates;
        p.log(&entry);
        l.since_log = (Instant::now(), 0);
        (l.on_event)(&Event::Log(entry))
    }

    /// Evaluates, and says whether that was the best so far.
    pub(super) fn evaluate(&mut self, l: &mut Loop<'_, '_>, epoch: f64) -> Result<bool> {
        let Some(data) = l.data.eval else {
            return Ok(false);
        };
        let size = self.args.per_device_eval_batch_size;
        let collator = Collator {
            packing: false,
            ..l.collator.clone()
        };
        let fixed = self.cooled(0);
        let found = self.evaluator.run(
            (self.inner.params(), fixed),
            data,
            &collator,
            size,
            l.data.pack(),
            l.on_event,
        )?;
        let found = EvalEntry {
            step: self.progress.step,
            epoch,
            ..found
        };
        self.progress.evaluated(&found);
        (l.on_event)(&Event::Evaluate(found.clone()))?;
        let Some(&metric) = found.metrics.get(self.args.metric()) else {
            let known: Vec<&str> = found.metrics.keys().map(String::as_str).collect();
            let d = Diagnostic::error(
                "metric",
                format!("the evaluation gives no `{}`", self.args.metric()),
            );
            return Err(Error::new(
                ErrorKind::Train,
                d.help(format!(
                    "`metric_for_best_model` is one of: {}",
                    known.join(", ")
                )),
            ));
        };
        let better = |a: f64, b: f64| if self.args.greater() { a > b } else { a < b };
        let p = &mut self.progress;
        let enough = p.best_metric.is_none_or(|b| {
            better(metric, b) && (metric - b).abs() > self.args.early_stopping_threshold
        });
        p.without_improvement = if enough { 0 } else { p.without_improvement + 1 };
        let improved = p.best_metric.is_none_or(|b| better(metric, b));
        if improved {
            p.best_metric = Some(metric);
            p.best_step = Some(p.step);
            if self.args.load_best_model_at_end {
                self.best = Some(
                    self.inner
                        .params()
                        .values()
                        .map(|t| t.value.clone())
                        .collect(),
                );
            }
        }
        l.since_log = (Instant::now(), 0);
        Ok(improved)
    }
}
