//! Training: datasets, schedules and the trainer.

mod answers;
mod args;
mod batch;
pub(crate) mod checkpoint;
mod data;
mod dry;
mod eval_args;
mod evaluate;
mod event;
mod loss;
mod masking;
pub(crate) mod metrics;
mod optimizer;
mod schedule;
mod trainer;
pub(crate) mod watch;

pub(crate) use answers::Answers;
#[cfg(test)]
pub(crate) use args::Interval;
pub(crate) use args::{Resume, TrainingArguments};
#[cfg(test)]
pub(crate) use batch::Batch;
pub(crate) use batch::{CollateArguments, Collator, DecoderStart, PaddingSide};
#[cfg(any(feature = "hub", test, fuzzing))]
pub(crate) use data::Splits;
pub(crate) use data::{
    Answer, DataArguments, Dataset, Example, Files, IGNORE, Labels, Loaded, Task, TextPair,
};
#[cfg(test)]
pub(crate) use data::{CompletionMask, EvalSplit, ReadOptions, Tokens};
#[cfg(any(test, fuzzing))]
pub(crate) use data::{Format, rows_of};
pub use dry::DryRun;
pub(crate) use eval_args::{EvalArguments, Metric};
pub(crate) use evaluate::{answers_of, labels_of, of_child};
pub(crate) use event::Stop;
pub use event::{EvalEntry, Event, LogEntry, StepReport};
pub(crate) use loss::{parse_loss, smoothed};
pub(crate) use masking::Masking;
#[cfg(test)]
pub(crate) use schedule::Schedule;
pub(crate) use trainer::{Output, TrainData, Trainer, dataset_divisor};
pub(crate) use watch::ReportTo;
