//! Training: datasets, schedules and the trainer.

mod args;
mod batch;
mod compare;
mod data;
mod event;
mod graph;
mod job;
mod merge;
mod schedule;
mod trainer;

pub use args::TrainingArguments;
pub use batch::{Batch, Collator, Rows, Sampler, epoch_order};
pub use compare::{Comparison, compare, generate_inputs};
pub use data::{
    AssistantLoss, AssistantTurn, CompletionMask, DataArguments, DataReport, Dataset, EvalSplit,
    Example, Files, IGNORE, Labels, Loaded, OnBadRow, ReadOptions, ReadReport, Side, Task,
    TextPair, TokenRef, Tokens,
};
pub use event::{Evaluation, Event, LogEntry, OnEvent, StepReport, Stop};
pub use graph::{Mode, inference_graph, loss_graph, parse_loss, training_graph};
pub use job::{AdapterSpecs, Job, JobArguments, ReportTo, beside};
pub use merge::merge;
pub use schedule::Schedule;
pub use trainer::{Trainer, dataset_divisor};
