//! What to measure.

use super::data::Task;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A measure.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Mean negative log-likelihood of the labelled tokens.
    Loss,
    /// `exp` of the loss.
    Perplexity,
    /// Share of labelled tokens, or of rows, whose most probable answer is right.
    Accuracy,
    /// Harmonic mean of precision and recall.
    F1,
    /// Share of predictions of a class that are right.
    Precision,
    /// Share of a class that is found.
    Recall,
    /// Matthews' correlation.
    MatthewsCorrelation,
    /// Share of generated texts that are the completion.
    ExactMatch,
    /// Share of generated texts that come to the number that the completion comes to.
    FinalNumber,
    /// Mean squared error.
    Mse,
    /// Mean absolute error.
    Mae,
    /// Pearson's correlation.
    Pearson,
    /// Spearman's correlation.
    Spearman,
}

impl Metric {
    /// Whether texts have to be generated for it.
    pub(crate) fn generates(self) -> bool {
        matches!(self, Metric::ExactMatch | Metric::FinalNumber)
    }

    fn fits(self, task: Task) -> bool {
        use Metric::{
            Accuracy, ExactMatch, F1, FinalNumber, Loss, Mae, MatthewsCorrelation, Mse, Pearson,
            Perplexity, Precision, Recall, Spearman,
        };
        match self {
            Loss => true,
            Perplexity => matches!(task, Task::CausalLm | Task::Seq2seq | Task::MaskedLm),
            ExactMatch | FinalNumber => task == Task::CausalLm,
            Accuracy => task != Task::Regression,
            F1 | Precision | Recall => matches!(
                task,
                Task::Classification | Task::MultiLabel | Task::TokenClassification
            ),
            MatthewsCorrelation => task == Task::Classification,
            Mse | Mae | Pearson | Spearman => task == Task::Regression,
        }
    }

    /// The measures of a task that need no text to be generated.
    pub(crate) fn of(task: Task) -> Vec<Metric> {
        const ALL: [Metric; 11] = [
            Metric::Loss,
            Metric::Perplexity,
            Metric::Accuracy,
            Metric::F1,
            Metric::Precision,
            Metric::Recall,
            Metric::MatthewsCorrelation,
            Metric::Mse,
            Metric::Mae,
            Metric::Pearson,
            Metric::Spearman,
        ];
        ALL.into_iter().filter(|m| m.fits(task)).collect()
    }

    /// Its name.
    pub(crate) fn name(self) -> String {
        match serde_json::to_value(self) {
            Ok(serde_json::Value::String(name)) => name,
            _ => String::new(),
        }
    }
}

/// How the F1 of several classes becomes one number, under scikit-learn's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum F1Average {
    /// That of `pos_label`.
    Binary,
    /// From the counts of all classes together.
    Micro,
    /// The mean over classes.
    Macro,
    /// The mean over classes, weighted by how often they are there.
    Weighted,
}

/// What to measure.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct EvalArguments {
    /// What the model does with the rows.
    pub task: Task,
    /// The measures; those usual for the task without it. `exact_match` and `final_number` generate a text for every prompt.
    pub metrics: Vec<Metric>,
    /// How the F1 of several classes becomes one number; `binary` for two classes and `macro` for more without it.
    pub average: Option<F1Average>,
    /// The class that `binary` measures.
    pub pos_label: i64,
    /// Rows of one batch.
    pub per_device_eval_batch_size: usize,
    /// Measures only so many rows, from the first.
    pub max_eval_samples: Option<usize>,
    /// Longest row in tokens; longer ones are cut at the end.
    pub max_seq_length: usize,
    /// Upper and lower case are the same for `exact_match`.
    pub ignore_case: bool,
    /// Punctuation does not count for `exact_match`.
    pub ignore_punctuation: bool,
}

impl crate::options::Options for EvalArguments {
    fn wrong(&self) -> Vec<Diagnostic> {
        let checks = [
            (
                self.per_device_eval_batch_size > 0,
                "`per_device_eval_batch_size` must be at least 1",
            ),
            (
                self.max_eval_samples != Some(0),
                "`max_eval_samples` must be at least 1",
            ),
            (
                self.max_seq_length >= 2,
                "`max_seq_length` must be at least 2",
            ),
        ];
        let wrong = checks.into_iter().filter(|(holds, _)| !holds);
        wrong
            .map(|(_, message)| Diagnostic::error("eval-argument", message))
            .collect()
    }
}

impl Default for EvalArguments {
    fn default() -> Self {
        EvalArguments {
            task: Task::CausalLm,
            metrics: Vec::new(),
            average: None,
            pos_label: 1,
            per_device_eval_batch_size: 8,
            max_eval_samples: None,
            max_seq_length: 2048,
            ignore_case: false,
            ignore_punctuation: false,
        }
    }
}

impl EvalArguments {
    /// The measures: those named, or those usual for the task.
    pub(crate) fn metrics(&self) -> Vec<Metric> {
        if !self.metrics.is_empty() {
            let mut all = self.metrics.clone();
            all.sort_unstable();
            all.dedup();
            return all;
        }
        match self.task {
            Task::CausalLm | Task::Seq2seq | Task::MaskedLm => {
                vec![Metric::Loss, Metric::Perplexity, Metric::Accuracy]
            }
            Task::Classification | Task::MultiLabel | Task::TokenClassification => {
                vec![Metric::Accuracy, Metric::F1]
            }
            // Of both ends of an answer.
            Task::QuestionAnswering => vec![Metric::Accuracy],
            Task::Regression => vec![Metric::Mse, Metric::Pearson, Metric::Spearman],
        }
    }

    /// Checks that everything fits together; every violation is reported.
    pub(crate) fn validate(&self) -> Result<()> {
        let mut found = Vec::new();
        let mut wrong = |message: String| found.push(Diagnostic::error("eval-argument", message));
        for m in self.metrics.iter().filter(|m| !m.fits(self.task)) {
            let task = serde_json::to_value(self.task).unwrap_or_default();
            wrong(format!("`{}` is no measure of the task {task}", m.name()));
        }
        found.extend(crate::options::Options::wrong(self));
        if found.is_empty() {
            Ok(())
        } else {
            Err(Error::many(ErrorKind::Train, found))
        }
    }
}
