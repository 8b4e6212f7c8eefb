//! Training: datasets, schedules and the trainer.

mod args;
mod compare;
mod data;
mod graph;
mod merge;
mod schedule;
mod trainer;

pub use args::TrainingArguments;
pub use compare::{Comparison, compare, generate_inputs};
pub use data::{Batch, Dataset, Example, IGNORE, ReadOptions, TextTokenizer, epoch_order};
pub use graph::{Mode, inference_graph, loss_graph, parse_loss, training_graph};
pub use merge::merge;
pub use schedule::Schedule;
pub use trainer::{StepReport, Trainer, dataset_divisor};
