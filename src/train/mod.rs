//! Training: datasets, schedules and the trainer.

mod answers;
mod args;
mod batch;
pub mod checkpoint;
mod data;
mod dry;
mod eval_args;
mod evaluate;
mod event;
mod graph;
pub mod metrics;
mod optimizer;
mod schedule;
mod trainer;
pub mod watch;

pub use crate::rewrite::pipelines::Mode;
pub use answers::Answers;
pub use args::{Interval, Resume, SaveStrategy, TrainingArguments};
pub use batch::{Batch, CollateArguments, Collator, PaddingSide, Rows, Sampler, epoch_order};
pub(crate) use data::is_template_file;
pub use data::{
    AssistantLoss, AssistantTurn, CompletionMask, DataArguments, DataReport, Dataset, EvalSplit,
    Example, Files, IGNORE, Labels, Loaded, OnBadRow, ReadOptions, ReadReport, Side, Task,
    TextPair, TokenRef, Tokens,
};
pub use dry::DryRun;
pub use eval_args::{EvalArguments, F1Average, Metric};
pub use event::{EvalEntry, Event, LogEntry, OnEvent, StepReport, Stop};
pub use graph::{inference_graph, loss_graph, parse_loss, smoothed, training_graph};
pub use optimizer::Optim;
pub use schedule::{Schedule, ScheduleOptions};
pub use trainer::{Output, TrainData, Trainer, dataset_divisor};
pub use watch::ReportTo;
