//! Training arguments, with the names and meanings of Hugging Face's `TrainingArguments`.

use super::schedule::Schedule;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How to train. Every field has Hugging Face's default.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct TrainingArguments {
    /// Peak learning rate.
    pub learning_rate: f64,
    /// Sequences of one micro-batch.
    pub per_device_train_batch_size: usize,
    /// Micro-batches of one optimizer step.
    pub gradient_accumulation_steps: usize,
    /// Passes over the data; fractions are allowed. Overridden by a positive `max_steps`.
    pub num_train_epochs: f64,
    /// Optimizer steps in all; -1 leaves it to `num_train_epochs`.
    pub max_steps: i64,
    /// Decoupled weight decay of the decayed parameter group.
    pub weight_decay: f64,
    /// AdamW's first decay rate.
    pub adam_beta1: f64,
    /// AdamW's second decay rate.
    pub adam_beta2: f64,
    /// AdamW's epsilon.
    pub adam_epsilon: f64,
    /// Largest global gradient norm; 0 turns clipping off.
    pub max_grad_norm: f64,
    /// Learning-rate schedule.
    pub lr_scheduler_type: Schedule,
    /// Steps of linear warmup; takes precedence over `warmup_ratio` when positive.
    pub warmup_steps: u64,
    /// Share of all steps that is linear warmup.
    pub warmup_ratio: f64,
    /// A log line every so many optimizer steps.
    pub logging_steps: u64,
    /// The adapter is saved every so many optimizer steps, as well as at the end; 0 saves at the end only.
    pub save_steps: u64,
    /// Seed of initial values, data order and dropout.
    pub seed: u64,
    /// Longest sequence in tokens; longer ones are cut at the end.
    pub max_seq_length: usize,
    /// Drops the last incomplete micro-batch of an epoch.
    pub dataloader_drop_last: bool,
    /// Keeps the data in file order instead of shuffling each epoch.
    pub no_shuffle: bool,
}

impl crate::options::Options for TrainingArguments {}

impl Default for TrainingArguments {
    fn default() -> Self {
        TrainingArguments {
            learning_rate: 5e-5,
            per_device_train_batch_size: 8,
            gradient_accumulation_steps: 1,
            num_train_epochs: 3.0,
            max_steps: -1,
            weight_decay: 0.0,
            adam_beta1: 0.9,
            adam_beta2: 0.999,
            adam_epsilon: 1e-8,
            max_grad_norm: 1.0,
            lr_scheduler_type: Schedule::Linear,
            warmup_steps: 0,
            warmup_ratio: 0.0,
            logging_steps: 500,
            save_steps: 0,
            seed: 42,
            max_seq_length: 2048,
            dataloader_drop_last: false,
            no_shuffle: false,
        }
    }
}

impl TrainingArguments {
    /// Checks ranges; every violation is reported.
    pub fn validate(&self) -> Result<()> {
        let checks = [
            (
                self.learning_rate.is_finite() && self.learning_rate >= 0.0,
                "learning_rate",
                "a number of at least 0",
            ),
            (
                self.per_device_train_batch_size > 0,
                "per_device_train_batch_size",
                "at least 1",
            ),
            (
                self.gradient_accumulation_steps > 0,
                "gradient_accumulation_steps",
                "at least 1",
            ),
            (
                self.num_train_epochs > 0.0 || self.max_steps > 0,
                "num_train_epochs",
                "positive, unless max_steps is",
            ),
            (
                (0.0..=1.0).contains(&self.warmup_ratio),
                "warmup_ratio",
                "between 0 and 1",
            ),
            (
                (0.0..1.0).contains(&self.adam_beta1),
                "adam_beta1",
                "at least 0 and below 1",
            ),
            (
                (0.0..1.0).contains(&self.adam_beta2),
                "adam_beta2",
                "at least 0 and below 1",
            ),
            (
                self.max_grad_norm >= 0.0,
                "max_grad_norm",
                "at least 0 (0 turns clipping off)",
            ),
            (self.max_seq_length > 1, "max_seq_length", "at least 2"),
        ];
        let found: Vec<Diagnostic> = checks
            .iter()
            .filter(|c| !c.0)
            .map(|(_, field, want)| {
                Diagnostic::error("train-argument", format!("`{field}` must be {want}"))
            })
            .collect();
        if found.is_empty() {
            Ok(())
        } else {
            Err(Error::many(ErrorKind::Train, found))
        }
    }

    /// Optimizer steps of a whole run over `batches` micro-batches an epoch, as Hugging Face counts them.
    pub fn total_steps(&self, batches: usize) -> u64 {
        if self.max_steps > 0 {
            return self.max_steps as u64;
        }
        let updates = batches.div_ceil(self.gradient_accumulation_steps).max(1);
        (updates as f64 * self.num_train_epochs).ceil() as u64
    }

    /// Warmup steps of a run of `total` steps.
    pub fn warmup(&self, total: u64) -> u64 {
        if self.warmup_steps > 0 {
            self.warmup_steps
        } else {
            (total as f64 * self.warmup_ratio).ceil() as u64
        }
    }
}
