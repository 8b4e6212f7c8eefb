//! What was read of data, and what became of it.

use super::{IGNORE, Labels};
use serde::Serialize;

/// Share of unknown tokens above which a tokenizer is taken to be another model's.
pub(super) const FOREIGN: f64 = 0.5;

/// What was read, and what became of it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct DataReport {
    /// The training data.
    pub data: ReadReport,
    /// The evaluation data, when it has files of its own.
    pub eval_data: Option<ReadReport>,
    /// Examples that are trained on.
    pub train_examples: usize,
    /// Their tokens.
    pub train_tokens: u64,
    /// Examples that are evaluated on.
    pub eval_examples: usize,
    /// Their tokens.
    pub eval_tokens: u64,
    /// The classes by name, in the order of their ids; empty where they have no names.
    pub label_names: Vec<String>,
}

/// What was read of some files.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub(crate) struct ReadReport {
    /// The files.
    pub files: Vec<String>,
    /// Rows that were read.
    pub rows: u64,
    /// Examples made of them.
    pub examples: u64,
    /// Tokens of these.
    pub tokens: u64,
    /// Tokens that are learned.
    pub labels: u64,
    /// Tokens of the longest.
    pub longest: u64,
    /// Examples that were cut to the longest length allowed.
    pub truncated: u64,
    /// Bad rows that were left out.
    pub skipped: u64,
    /// Place and reason of the first of them.
    pub reasons: Vec<String>,
    /// Rows without any token, which are left out.
    pub empty: u64,
    /// Examples in which the response or instruction template was not found: none of their tokens is learned.
    pub not_found: u64,
    /// Those of them in which the response template was found, and the instruction template was not.
    pub no_instruction: u64,
    /// Examples without any token that is learned, these included.
    pub unlabelled: u64,
    /// Examples whose prompt alone has other tokens than at the head of prompt and completion.
    pub apart: u64,
    /// Tokens that a tokenizer made of texts.
    #[serde(skip)]
    pub tokenized: u64,
    /// Those of them that stand for what the tokenizer does not know.
    pub unknown: u64,
    /// The first class, or the first values, that an example has.
    #[serde(skip)]
    pub first: Option<Answer>,
    /// Whether there is another one.
    #[serde(skip)]
    pub mixed: bool,
    /// Rows with an instruction and an output that were learned in Alpaca's form.
    pub alpaca: u64,
    /// Examples that the chat template made.
    pub conversations: u64,
    /// Examples that begin with the beginning-of-sequence token twice.
    pub twice: u64,
    /// What the response template is tokenized to where it was not found and stands in the text.
    pub in_context: Option<Vec<i64>>,
    /// The same of the instruction template.
    pub instruction_in_context: Option<Vec<i64>>,
}

/// What is to be learned of an example, or of one of its tokens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    /// A class.
    Class(i64),
    /// Values, by their bits.
    Values(Vec<u32>),
}

impl ReadReport {
    /// Looks at the labels of an example: whether all are the same.
    pub(super) fn see(&mut self, labels: &Labels) {
        let mut take = |answer: Answer| match &self.first {
            Some(first) => self.mixed |= *first != answer,
            None => self.first = Some(answer),
        };
        match labels {
            Labels::Class(class) => take(Answer::Class(*class)),
            Labels::Each(each) => {
                let read = each.iter().filter(|l| **l != IGNORE);
                read.for_each(|l| take(Answer::Class(*l)));
            }
            Labels::Values(values) => {
                take(Answer::Values(values.iter().map(|v| v.to_bits()).collect()));
            }
            Labels::Tokens(_) | Labels::Sequence(_) | Labels::Span(..) => {}
        }
    }

    /// The share of tokens that stand for what the tokenizer does not know.
    pub(super) fn unknown_share(&self) -> f64 {
        self.unknown as f64 / self.tokenized.max(1) as f64
    }

    /// The same in words.
    pub(super) fn unknown_text(&self) -> String {
        format!(
            "{:.0} % of the tokens ({} of {}) are unknown to the tokenizer",
            100.0 * self.unknown_share(),
            self.unknown,
            self.tokenized
        )
    }

    /// The templates that were not found: name, number of examples, and the tokens where the template stands in a text.
    pub(super) fn not_found(&self) -> [(&'static str, u64, Option<&[i64]>); 2] {
        let response = self.not_found - self.no_instruction;
        [
            ("response", response, self.in_context.as_deref()),
            (
                "instruction",
                self.no_instruction,
                self.instruction_in_context.as_deref(),
            ),
        ]
    }
}

impl DataReport {
    /// What was read, in sentences for a report.
    pub(crate) fn lines(&self) -> Vec<String> {
        let mut out = vec![format!(
            "{} training examples of {} tokens",
            self.train_examples, self.train_tokens
        )];
        if self.eval_examples > 0 {
            out.push(format!(
                "{} evaluation examples of {} tokens",
                self.eval_examples, self.eval_tokens
            ));
        }
        for read in std::iter::once(&self.data).chain(&self.eval_data) {
            out.push(format!(
                "{} rows, longest {} tokens, {} tokens learned",
                read.rows, read.longest, read.labels
            ));
            let counts = [
                (read.truncated, "examples were cut"),
                (read.skipped, "bad rows were left out"),
                (
                    read.not_found,
                    "examples lack the template, and nothing of them is learned",
                ),
                (read.unlabelled, "examples have nothing to learn"),
            ];
            out.extend(
                counts
                    .iter()
                    .filter(|(n, _)| *n > 0)
                    .map(|(n, what)| format!("{n} {what}")),
            );
            out.extend(read.reasons.iter().cloned());
        }
        if !self.label_names.is_empty() {
            out.push(format!("classes: {}", self.label_names.join(", ")));
        }
        out
    }
}
