//! Training: datasets, schedules and the trainer.

mod args;
mod batch;
mod compare;
mod data;
mod eval_args;
mod event;
mod graph;
mod job;
mod merge;
pub mod metrics;
mod schedule;
mod trainer;

pub use args::TrainingArguments;
pub use batch::{Batch, Collator, Rows, Sampler, epoch_order};
pub use compare::{Comparison, compare, generate_inputs};
pub use data::{Dataset, Example, IGNORE, Labels, ReadOptions};
pub use eval_args::{EvalArguments, EvalTask, F1Average, Metric};
pub use event::{Evaluation, Event, LogEntry, OnEvent, StepReport, Stop};
pub use graph::{Mode, inference_graph, loss_graph, parse_loss, training_graph};
pub use job::{AdapterSpecs, Job, JobArguments, ReportTo, beside};
pub use merge::merge;
pub use schedule::Schedule;
pub use trainer::{Trainer, dataset_divisor};
