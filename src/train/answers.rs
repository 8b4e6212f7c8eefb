//! What a model answers, against what is right: the measures of tasks whose answers need no text to be generated.

use super::data::{IGNORE, Task};
use super::eval_args::{F1Average, Metric};
use super::metrics::{
    Average, accuracy, matthews_correlation, mean_absolute_error, mean_squared_error, pearson,
    precision_recall_f1, spearman,
};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::Value;

/// Answers and what is right, over any number of batches.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    task: Task,
    /// Classes, tokens, numbers, or 1 and 0 for each class of a multi-label task.
    found: Vec<f64>,
    right: Vec<f64>,
    /// Sum of the losses of all labels.
    loss: f64,
}

impl Answers {
    /// None yet.
    pub(crate) fn new(task: Task) -> Self {
        Answers {
            task,
            found: Vec::new(),
            right: Vec::new(),
            loss: 0.0,
        }
    }

    /// The answers: a class, a token or a number for each label.
    pub(crate) fn found(&self) -> &[f64] {
        &self.found
    }

    /// What is right, in the same order.
    pub(crate) fn right(&self) -> &[f64] {
        &self.right
    }

    /// Takes the answers to a batch: the output `name` of the graph, and the labels as a [`Collator`](super::Collator) gives them. Labels
    /// of -100 do not count.
    ///
    /// # Errors
    /// An output whose shape does not fit the labels.
    pub(crate) fn add(&mut self, name: &str, output: &Value, labels: &Value) -> Result<()> {
        let logits = output.to_f32().map_err(|e| failed(e.to_string()))?;
        let count: usize = labels.dims().iter().product();
        let classes = matches!(
            self.task,
            Task::Classification
                | Task::Seq2seq
                | Task::CausalLm
                | Task::TokenClassification
                | Task::QuestionAnswering
                | Task::MaskedLm
        );
        let width = logits.len().checked_div(count).unwrap_or(0);
        let rank = labels.dims().len() + usize::from(classes);
        let fits = width * count == logits.len() && if classes { width > 1 } else { width == 1 };
        // One number a row may come without an axis of its own.
        let shaped = output.dims().len() == rank || (!classes && output.dims().len() + 1 == rank);
        if count > 0 && !(fits && shaped) {
            let want = match self.task {
                Task::Classification => "[rows, classes]",
                Task::Seq2seq | Task::CausalLm | Task::MaskedLm => "[rows, tokens, vocabulary]",
                Task::TokenClassification => "[rows, tokens, classes]",
                Task::QuestionAnswering => "[rows, tokens]",
                Task::Regression | Task::MultiLabel => "the shape of the labels",
            };
            let found = output.dims();
            let message = format!("`{name}` has the shape {found:?}; {want} is needed");
            let d = Diagnostic::error("eval-output", message);
            return Err(Error::new(ErrorKind::Run, d.help("choose another --task")));
        }
        if classes {
            let labels = labels.to_ints().map_err(|e| failed(e.to_string()))?;
            for (row, &label) in logits.chunks(width.max(1)).zip(&labels) {
                if label != IGNORE {
                    self.class(row, label)?;
                }
            }
            return Ok(());
        }
        let labels = labels.to_f32().map_err(|e| failed(e.to_string()))?;
        for (&x, &y) in logits.iter().zip(&labels) {
            let (x, y) = (f64::from(x), f64::from(y));
            self.right.push(y);
            if self.task == Task::MultiLabel {
                self.found.push(f64::from(u8::from(x > 0.0)));
                // ln(1 + e^x) - x·y, without overflow.
                self.loss += x.max(0.0) - x * y + (-x.abs()).exp().ln_1p();
            } else {
                self.found.push(x);
                self.loss += (x - y) * (x - y);
            }
        }
        Ok(())
    }

    fn class(&mut self, row: &[f32], label: i64) -> Result<()> {
        let right = usize::try_from(label).ok().and_then(|l| row.get(l));
        let Some(right) = right else {
            let n = row.len();
            return Err(failed(format!("label {label} is outside {n} classes")));
        };
        // The first of equal ones, as torch's argmax takes.
        let best = (0..row.len())
            .rev()
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap_or(0);
        let most = f64::from(row[best]);
        let sum: f64 = row.iter().map(|&x| (f64::from(x) - most).exp()).sum();
        self.loss += most + sum.ln() - f64::from(*right);
        self.found.push(best as f64);
        self.right.push(label as f64);
        Ok(())
    }

    /// A measure; not a number where there is nothing to measure.
    pub(crate) fn measure(&self, metric: Metric, average: Option<F1Average>, positive: i64) -> f64 {
        let ids = |v: &[f64]| v.iter().map(|&x| x as i64).collect::<Vec<_>>();
        let (found, right) = (&self.found, &self.right);
        let mean = self.loss / found.len() as f64;
        let scores = || {
            let (p, r) = (ids(found), ids(right));
            let two = p.iter().chain(&r).all(|c| (0..2).contains(c));
            let average = match average {
                Some(F1Average::Micro) => Average::Micro,
                Some(F1Average::Weighted) => Average::Weighted,
                Some(F1Average::Macro) => Average::Macro,
                None if !two => Average::Macro,
                Some(F1Average::Binary) | None => Average::Binary { positive },
            };
            precision_recall_f1(&p, &r, average)
        };
        match metric {
            Metric::Loss => mean,
            Metric::Perplexity => mean.exp(),
            Metric::Accuracy => accuracy(&ids(found), &ids(right)),
            Metric::F1 => scores().f1,
            Metric::Precision => scores().precision,
            Metric::Recall => scores().recall,
            Metric::MatthewsCorrelation => matthews_correlation(&ids(found), &ids(right)),
            Metric::Mse => mean_squared_error(found, right),
            Metric::Mae => mean_absolute_error(found, right),
            Metric::Pearson => pearson(found, right),
            Metric::Spearman => spearman(found, right),
            Metric::ExactMatch | Metric::FinalNumber => f64::NAN,
        }
    }
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("evaluate", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn floats(dims: &[usize], data: &[f32]) -> Value {
        Value::from_f32(dims, data.to_vec()).unwrap()
    }

    #[test]
    fn classes_are_the_largest_logits() {
        let mut a = Answers::new(Task::Classification);
        let logits = floats(&[3, 2], &[0.0, 1.0, 3.0, 0.0, 5.0, 5.0]);
        let labels = Value::from_i64(&[3], vec![1, IGNORE, 1]).unwrap();
        a.add("logits", &logits, &labels).unwrap();
        assert_eq!((a.found(), a.right()), (&[1.0, 0.0][..], &[1.0, 1.0][..]));
        assert!((a.measure(Metric::Accuracy, None, 1) - 0.5).abs() < 1e-12);
        // ln(1 + e^-1) and ln 2.
        let want = f64::midpoint((-1f64).exp().ln_1p(), 2f64.ln());
        assert!((a.measure(Metric::Loss, None, 1) - want).abs() < 1e-12);
    }

    #[test]
    fn tokens_of_a_target_count_where_they_are_labelled() {
        let mut a = Answers::new(Task::Seq2seq);
        let logits = floats(&[1, 2, 3], &[9.0, 0.0, 0.0, 0.0, 0.0, 9.0]);
        let labels = Value::from_i64(&[1, 2], vec![IGNORE, 2]).unwrap();
        a.add("logits", &logits, &labels).unwrap();
        assert_eq!(a.found(), [2.0]);
        let want = (2.0 * (-9f64).exp()).ln_1p();
        assert!((a.measure(Metric::Perplexity, None, 1) - want.exp()).abs() < 1e-12);
    }

    #[test]
    fn several_classes_of_a_row_are_asked_one_by_one() {
        let mut a = Answers::new(Task::MultiLabel);
        let labels = floats(&[2, 2], &[1.0, 0.0, 1.0, 1.0]);
        a.add("logits", &floats(&[2, 2], &[2.0, -1.0, -3.0, 0.5]), &labels)
            .unwrap();
        assert_eq!(a.found(), [1.0, 0.0, 0.0, 1.0]);
        assert!((a.measure(Metric::Accuracy, None, 1) - 0.75).abs() < 1e-12);
        assert!((a.measure(Metric::F1, None, 1) - 0.8).abs() < 1e-12);
        let soft = |x: f64| x.exp().ln_1p();
        let want = (soft(-2.0) + soft(-1.0) + soft(3.0) + soft(-0.5)) / 4.0;
        assert!((a.measure(Metric::Loss, None, 1) - want).abs() < 1e-12);
    }

    #[test]
    fn numbers_come_with_or_without_an_axis() {
        for dims in [&[2][..], &[2, 1]] {
            let mut a = Answers::new(Task::Regression);
            let labels = floats(&[2, 1], &[1.0, 3.0]);
            a.add("logits", &floats(dims, &[1.0, 2.0]), &labels)
                .unwrap();
            assert!((a.measure(Metric::Mse, None, 1) - 0.5).abs() < 1e-12);
            assert!((a.measure(Metric::Loss, None, 1) - 0.5).abs() < 1e-12);
        }
    }

    #[test]
    fn an_output_of_another_task_is_refused() {
        let mut a = Answers::new(Task::Classification);
        let labels = Value::from_i64(&[2], vec![0, 1]).unwrap();
        let e = a.add("hidden", &floats(&[2, 3, 4], &[0.0; 24]), &labels);
        let e = e.unwrap_err().to_string();
        assert!(
            e.contains("[2, 3, 4]") && e.contains("[rows, classes]"),
            "{e}"
        );
    }
}
