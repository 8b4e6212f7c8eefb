//! Training arguments, with the names and meanings of Hugging Face's `TrainingArguments`.

use super::optimizer::Optim;
use super::schedule::{Schedule, ScheduleOptions};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::options::Options;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// When something is done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Interval {
    /// Never.
    #[default]
    No,
    /// Every so many optimizer steps.
    Steps,
    /// At the end of every epoch.
    Epoch,
}

/// When a checkpoint is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SaveStrategy {
    /// Never.
    No,
    /// Every `save_steps` optimizer steps.
    #[default]
    Steps,
    /// At the end of every epoch.
    Epoch,
    /// Whenever an evaluation is the best so far.
    Best,
}

/// From which checkpoint a run goes on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub(crate) enum Resume {
    /// The last complete one in the output folder, if there is one.
    Last(bool),
    /// This one.
    From(String),
}

/// How to train. Every field has Hugging Face's default, unless its documentation says so.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "options of the field")]
pub(crate) struct TrainingArguments {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Number of rows of one micro-batch.
    pub per_device_train_batch_size: usize,
    /// Number of rows of one batch of an evaluation.
    pub per_device_eval_batch_size: usize,
    /// Number of micro-batches of one optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Number of passes over the data; fractions are allowed. A positive `max_steps` overrides it.
    pub num_train_epochs: f64,
    /// Number of optimizer steps in all; -1 leaves it to `num_train_epochs`.
    pub max_steps: i64,
    /// The optimizer.
    pub optim: Optim,
    /// Decoupled weight decay of the decayed parameter group.
    pub weight_decay: f64,
    /// First decay rate of the optimizer.
    pub adam_beta1: f64,
    /// Second decay rate of the optimizer.
    pub adam_beta2: f64,
    /// Number that is added to the denominator of the update.
    pub adam_epsilon: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Learning-rate schedule.
    pub lr_scheduler_type: Schedule,
    /// Parameters of the schedule by name: `num_cycles`, `min_lr`, `min_lr_rate`, `power`, `lr_end`, `timescale`.
    pub lr_scheduler_kwargs: ScheduleOptions,
    /// Number of steps of linear warmup; a positive one takes precedence over `warmup_ratio`.
    pub warmup_steps: u64,
    /// Share of all steps that is linear warmup.
    pub warmup_ratio: f64,
    /// When the loss is logged.
    pub logging_strategy: Interval,
    /// Number of optimizer steps from one log entry to the next; a number below 1 is a share of all steps (default: a fiftieth of all
    /// steps, at most 500, so that a short run has a curve too; Hugging Face's is 500).
    pub logging_steps: Option<f64>,
    /// Whether the first step is logged as well.
    pub logging_first_step: bool,
    /// When the evaluation data is evaluated.
    pub eval_strategy: Interval,
    /// Number of optimizer steps from one evaluation to the next; a number below 1 is a share of all steps (default: `logging_steps`,
    /// else 500).
    pub eval_steps: Option<f64>,
    /// Number of steps (or epochs, by the strategy) before the first evaluation.
    pub eval_delay: f64,
    /// Evaluates before the first step.
    pub eval_on_start: bool,
    /// When a checkpoint is written.
    pub save_strategy: SaveStrategy,
    /// Number of optimizer steps from one checkpoint to the next; a number below 1 is a share of all steps.
    pub save_steps: f64,
    /// Number of checkpoints that are kept, the best one among them (default: all).
    pub save_total_limit: Option<usize>,
    /// Ends with the parameters of the best checkpoint instead of the last ones.
    pub load_best_model_at_end: bool,
    /// The measure that decides what is best.
    pub metric_for_best_model: Option<String>,
    /// Whether more of that measure is better (default: yes, unless its name ends in `loss`).
    pub greater_is_better: Option<bool>,
    /// Number of evaluations in a row without an improvement after which training stops (default: never).
    pub early_stopping_patience: Option<usize>,
    /// Amount by which the measure must change to count as improved.
    pub early_stopping_threshold: f64,
    /// Share of the target that is spread over all classes. The loss is the mean over the labelled positions of a step, also with
    /// accumulation; Hugging Face's smoother adds up the means of the micro-batches there.
    pub label_smoothing_factor: f64,
    /// Rounds the operands of matrix products to bfloat16; sums and everything else stay in f32.
    pub bf16: bool,
    /// Keeps only what flows from one part of the model to the next, and computes the rest of the forward pass a second time when the
    /// backward pass needs it: less memory, more time, the same numbers.
    pub gradient_checkpointing: bool,
    /// Names of the adapters that are trained (default: all that are active); the others of a setup stay as they are, bit by bit.
    pub train_adapters: Option<Vec<String>>,
    /// Seed of initial values, data order and dropout.
    pub seed: u64,
    /// Seed of the data order (default: `seed`).
    pub data_seed: Option<u64>,
    /// Drops the last incomplete micro-batch of an epoch.
    pub dataloader_drop_last: bool,
    /// Keeps the data in file order instead of shuffling each epoch. Not an argument of Hugging Face's.
    pub no_shuffle: bool,
    /// Goes on from a checkpoint: true for the last complete one in the output folder, or a folder. `--resume` for short.
    pub resume_from_checkpoint: Option<Resume>,
}

impl Options for TrainingArguments {
    const ALIASES: &'static [(&'static str, &'static str)] = &[
        ("evaluation_strategy", "eval_strategy"),
        ("resume", "resume_from_checkpoint"),
    ];
    const WORDS: &'static [(&'static str, &'static str, &'static str)] = &[
        ("optim", "adamw", "adamw_torch"),
        ("optim", "adamw_apex_fused", "adamw_torch"),
        ("optim", "adamw_hf", "adamw_torch"),
        ("optim", "adamw_torch_fused", "adamw_torch"),
        ("optim", "adamw_torch_npu_fused", "adamw_torch"),
        ("optim", "adamw_torch_xla", "adamw_torch"),
        ("optim", "lion_32bit", "lion"),
    ];

    fn wrong(&self) -> Vec<Diagnostic> {
        self.ranges()
    }
}

impl Default for TrainingArguments {
    fn default() -> Self {
        TrainingArguments {
            learning_rate: 5e-5,
            per_device_train_batch_size: 8,
            per_device_eval_batch_size: 8,
            gradient_accumulation_steps: 1,
            num_train_epochs: 3.0,
            max_steps: -1,
            optim: Optim::AdamwTorch,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lr_scheduler_type: Schedule::Linear,
            lr_scheduler_kwargs: ScheduleOptions::default(),
            warmup_steps: 0,
            warmup_ratio: 0.0,
            logging_strategy: Interval::Steps,
            logging_steps: None,
            logging_first_step: false,
            eval_strategy: Interval::No,
            eval_steps: None,
            eval_delay: 0.0,
            eval_on_start: false,
            save_strategy: SaveStrategy::Steps,
            save_steps: 500.0,
            save_total_limit: None,
            load_best_model_at_end: false,
            metric_for_best_model: None,
            greater_is_better: None,
            early_stopping_patience: None,
            early_stopping_threshold: 0.0,
            label_smoothing_factor: 0.0,
            bf16: false,
            gradient_checkpointing: false,
            train_adapters: None,
            seed: 42,
            data_seed: None,
            dataloader_drop_last: false,
            no_shuffle: false,
            resume_from_checkpoint: None,
        }
    }
}

/// A finding when a condition does not hold.
fn unless(ok: bool, field: &str, want: &str) -> Option<Diagnostic> {
    (!ok).then(|| Diagnostic::error("train-argument", format!("`{field}` must be {want}")))
}

impl TrainingArguments {
    /// Checks ranges and combinations; every violation is reported.
    pub(crate) fn validate(&self) -> Result<()> {
        let found: Vec<Diagnostic> = self
            .ranges()
            .into_iter()
            .chain(self.combinations())
            .collect();
        if found.is_empty() {
            Ok(())
        } else {
            Err(Error::many(ErrorKind::Train, found))
        }
    }

    fn ranges(&self) -> Vec<Diagnostic> {
        let rate = |x: f64| x.is_finite() && x >= 0.0;
        let unit = |x: f64| (0.0..1.0).contains(&x);
        let every = |x: f64| x.is_finite() && x >= 0.0 && (x < 1.0 || x.fract() == 0.0);
        let checks = [
            unless(
                rate(self.learning_rate) && self.learning_rate > 0.0,
                "learning_rate",
                "a number above 0: at 0 nothing is learned",
            ),
            unless(
                self.per_device_train_batch_size > 0,
                "per_device_train_batch_size",
                "at least 1",
            ),
            unless(
                self.per_device_eval_batch_size > 0,
                "per_device_eval_batch_size",
                "at least 1",
            ),
            unless(
                self.gradient_accumulation_steps > 0,
                "gradient_accumulation_steps",
                "at least 1",
            ),
            unless(
                (0.0..=1.0).contains(&self.warmup_ratio),
                "warmup_ratio",
                "between 0 and 1",
            ),
            unless(
                unit(self.adam_beta1),
                "adam_beta1",
                "at least 0 and below 1",
            ),
            unless(
                unit(self.adam_beta2),
                "adam_beta2",
                "at least 0 and below 1",
            ),
            unless(self.adam_epsilon > 0.0, "adam_epsilon", "positive"),
            unless(
                rate(self.weight_decay),
                "weight_decay",
                "a number of at least 0",
            ),
            unless(
                rate(self.max_grad_norm),
                "max_grad_norm",
                "at least 0 (0 turns clipping off)",
            ),
            unless(
                unit(self.label_smoothing_factor),
                "label_smoothing_factor",
                "at least 0 and below 1",
            ),
            unless(
                self.logging_steps.is_none_or(every),
                "logging_steps",
                "a whole number, or a share below 1",
            ),
            unless(
                self.eval_steps.is_none_or(|x| every(x) && x > 0.0),
                "eval_steps",
                "a positive whole number, or a share below 1",
            ),
            unless(
                every(self.save_steps),
                "save_steps",
                "a whole number, or a share below 1",
            ),
            unless(
                self.save_total_limit != Some(0),
                "save_total_limit",
                "at least 1",
            ),
            unless(
                self.early_stopping_patience != Some(0),
                "early_stopping_patience",
                "at least 1",
            ),
        ];
        checks.into_iter().flatten().collect()
    }

    fn combinations(&self) -> Vec<Diagnostic> {
        let mut out = Vec::new();
        let mut say = |ok: bool, message: &str, help: &str| {
            if !ok {
                out.push(Diagnostic::error("train-argument", message).help(help));
            }
        };
        if let Some(wrong) = self
            .lr_scheduler_kwargs
            .wrong(self.lr_scheduler_type, self.learning_rate)
        {
            say(
                false,
                &format!("`lr_scheduler_kwargs`: {wrong}"),
                "the parameters are: `num_cycles` of cosines, `min_lr` or `min_lr_rate` of cosine_with_min_lr, `power` and `lr_end` of polynomial, `timescale` of inverse_sqrt",
            );
        }
        let epochs = self.num_train_epochs > 0.0 && self.num_train_epochs.is_finite();
        say(
            epochs || self.max_steps > 0,
            "`num_train_epochs` must be positive, unless max_steps is",
            "leave it out for 3 epochs, or give `max_steps`",
        );
        say(
            self.save_steps > 0.0 || self.save_strategy != SaveStrategy::Steps,
            "`save_steps` must be positive, as `save_strategy` is steps",
            "for no checkpoints, set `save_strategy` to no",
        );
        let best = self.load_best_model_at_end;
        let save_matches = match (self.save_strategy, self.eval_strategy) {
            (SaveStrategy::Best, e) => e != Interval::No,
            (SaveStrategy::Steps, e) => e == Interval::Steps,
            (SaveStrategy::Epoch, e) => e == Interval::Epoch,
            (SaveStrategy::No, _) => false,
        };
        say(
            !best || save_matches,
            "`load_best_model_at_end` needs checkpoints and evaluations at the same steps",
            "give `eval_strategy` and `save_strategy` the same value, steps or epoch",
        );
        let (save, eval) = (self.save_steps, self.eval_steps());
        let multiple = (save >= 1.0 && eval >= 1.0 && save % eval == 0.0)
            || (save < 1.0 && eval < 1.0 && ((save / eval).round() * eval - save).abs() < 1e-9);
        say(
            !(best && save_matches && self.save_strategy == SaveStrategy::Steps) || multiple,
            &format!(
                "`load_best_model_at_end` needs `save_steps` ({save}) to be a multiple of `eval_steps` ({eval})"
            ),
            "give both the same value",
        );
        say(
            self.save_strategy != SaveStrategy::Best || self.eval_strategy != Interval::No,
            "`save_strategy` best needs evaluations",
            "set `eval_strategy`, and give evaluation data",
        );
        say(
            self.early_stopping_patience.is_none() || self.eval_strategy != Interval::No,
            "`early_stopping_patience` needs evaluations",
            "set `eval_strategy`, and give evaluation data",
        );
        out
    }

    /// Optimizer steps of a whole run over `batches` micro-batches an epoch, an incomplete window at the
    /// end of an epoch included: it is a step, which older versions of Hugging Face's Trainer make but do not count.
    pub(crate) fn total_steps(&self, batches: usize) -> u64 {
        if self.max_steps > 0 {
            return self.max_steps as u64;
        }
        let updates = batches.div_ceil(self.gradient_accumulation_steps).max(1);
        (updates as f64 * self.num_train_epochs).ceil() as u64
    }

    /// Warmup steps of a run of `total` steps.
    pub(crate) fn warmup(&self, total: u64) -> u64 {
        if self.warmup_steps > 0 {
            self.warmup_steps
        } else {
            (total as f64 * self.warmup_ratio).ceil() as u64
        }
    }

    /// An interval in steps: a number below 1 is a share of all steps. `None` is never.
    pub(crate) fn every(steps: f64, total: u64) -> Option<u64> {
        if steps <= 0.0 {
            None
        } else if steps < 1.0 {
            Some(((total as f64 * steps).ceil() as u64).max(1))
        } else {
            Some(steps as u64)
        }
    }

    /// Steps from one log entry to the next, in a run of so many.
    pub(super) fn log_every(&self, total: u64) -> Option<u64> {
        match self.logging_steps {
            Some(steps) => Self::every(steps, total),
            None => Some(total.div_ceil(50).clamp(1, 500)),
        }
    }

    /// Steps from one evaluation to the next, as they are written down.
    pub(super) fn eval_steps(&self) -> f64 {
        self.eval_steps.or(self.logging_steps).unwrap_or(500.0)
    }

    /// The measure that decides what is best, without the prefix `eval_`.
    pub(crate) fn metric(&self) -> &str {
        let name = self.metric_for_best_model.as_deref().unwrap_or("loss");
        name.strip_prefix("eval_").unwrap_or(name)
    }

    /// Whether more of the measure is better.
    pub(crate) fn greater(&self) -> bool {
        self.greater_is_better
            .unwrap_or(!self.metric().ends_with("loss"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn combinations_that_make_no_sense_are_all_named() {
        let args = TrainingArguments {
            load_best_model_at_end: true,
            early_stopping_patience: Some(2),
            adam_beta1: 1.0,
            ..TrainingArguments::default()
        };
        let e = args.validate().unwrap_err().to_string();
        for want in [
            "load_best_model_at_end",
            "early_stopping_patience",
            "adam_beta1",
        ] {
            assert!(e.contains(want), "{want} in {e}");
        }
        let args = TrainingArguments {
            load_best_model_at_end: true,
            eval_strategy: Interval::Steps,
            eval_steps: Some(30.0),
            save_steps: 45.0,
            ..TrainingArguments::default()
        };
        assert!(
            args.validate()
                .unwrap_err()
                .to_string()
                .contains("multiple")
        );
    }

    #[test]
    fn steps_are_counted_as_hugging_face_does() {
        let args = TrainingArguments {
            num_train_epochs: 1.0,
            gradient_accumulation_steps: 8,
            ..TrainingArguments::default()
        };
        // 4000 examples, 2 a batch, 8 batches a step.
        assert_eq!(args.total_steps(2000), 250);
        assert_eq!(args.total_steps(2001), 251);
        assert_eq!(TrainingArguments::every(0.1, 25), Some(3));
        assert_eq!(TrainingArguments::every(30.0, 25), Some(30));
        assert_eq!(TrainingArguments::every(0.0, 25), None);
    }
}
