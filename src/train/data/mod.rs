//! Datasets: rows of files become tokenized examples. Knows no batches, no model and no trainer.
//!
//! ```text
//! files ─ source ─> rows ─ encode (templates, tokenizer, labels, cut) ─> examples ─ dataset ─> memory or a mapped temporary file
//! ```
//!
//! `splits` says which files are trained on. A row that cannot be used is an error with file and line, or is left out and counted; it is never dropped in silence.

mod args;
mod dataset;
mod encode;
mod forms;
mod load;
mod mask;
mod report;
mod roles;
mod show;
mod source;
mod splits;
#[cfg(test)]
mod tests;
mod tokens;

pub(crate) use args::{DataArguments, Files, Task};
#[cfg(test)]
pub(crate) use args::{EvalSplit, OnBadRow, Tokens};
pub(crate) use dataset::Dataset;
pub(crate) use encode::TextPair;
pub(crate) use load::Loaded;
#[cfg(test)]
pub(crate) use load::ReadOptions;
#[cfg(test)]
pub(crate) use mask::CompletionMask;
pub(crate) use report::Answer;
#[cfg(test)]
pub(crate) use report::ReadReport;
#[cfg(any(test, fuzzing))]
pub(crate) use source::{Format, rows_of};
#[cfg(any(feature = "hub", test, fuzzing))]
pub(crate) use splits::Splits;

/// The label that the loss ignores.
pub(crate) const IGNORE: i64 = -100;

/// What an example is to be trained towards.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Labels {
    /// A label for each input token, [`IGNORE`] where the loss ignores it. Not shifted: the loss shifts.
    Tokens(Vec<i64>),
    /// The decoder's tokens of an encoder-decoder.
    Sequence(Vec<i64>),
    /// A class of the sequence.
    Class(i64),
    /// A label for each input token by itself, [`IGNORE`] where the loss ignores it: a class, or the token that is masked.
    Each(Vec<i64>),
    /// The first and the last token of an answer.
    Span(i64, i64),
    /// Numbers for the sequence: a regression target, or one 0 or 1 for each label of a multi-label task.
    Values(Vec<f32>),
}

/// One tokenized sequence.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Example {
    /// Token ids.
    pub input_ids: Vec<i64>,
    /// What it is trained towards.
    pub labels: Labels,
    /// Segment ids of a text pair, one for each token.
    pub token_type_ids: Option<Vec<i64>>,
    /// Which task of a `MultiTask` setup it belongs to.
    pub task_id: Option<i64>,
}

impl Example {
    /// A sequence with a label for each token.
    pub(crate) fn tokens(input_ids: Vec<i64>, labels: Vec<i64>) -> Self {
        Example {
            input_ids,
            labels: Labels::Tokens(labels),
            token_type_ids: None,
            task_id: None,
        }
    }
}
