//! The prediction head that a base model gets for a task of whole examples.

use super::attach::has_head;
use crate::adapters::heads::{Head, HeadBase, HeadConfig, HeadType};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::train::{Dataset, Labels, Loaded, Task};

/// The head for a task, where the task needs one and the graph has none. Its size and its names come from the data.
pub(super) fn choose_head(
    model: &Verified,
    base: HeadBase,
    name: &str,
    task: Task,
    config: HeadConfig,
    loaded: &Loaded,
) -> Result<Option<Head>> {
    let head_type = match task {
        Task::CausalLm | Task::Seq2seq => return Ok(None),
        Task::TokenClassification => HeadType::Tagging,
        Task::QuestionAnswering => HeadType::QuestionAnswering,
        Task::MaskedLm => HeadType::MaskedLm,
        Task::Classification | Task::Regression => HeadType::Classification,
        Task::MultiLabel => HeadType::MultilabelClassification,
    };
    if has_head(model) {
        return Ok(None);
    }
    let names = &loaded.report.label_names;
    let sets = [Some(&loaded.train), loaded.eval.as_ref()];
    let found = label_count(&sets.into_iter().flatten().collect::<Vec<_>>(), names)?;
    let num_labels = match loaded.train.get(0)?.labels {
        Labels::Values(_) => found,
        _ if names.is_empty() => found.max(config.num_labels()),
        _ => names.len(),
    };
    let ids = names
        .iter()
        .enumerate()
        .map(|(i, n)| (n.clone(), i as i64))
        .collect();
    let labelled = !head_type.of_words() && head_type != HeadType::QuestionAnswering;
    let config = HeadConfig {
        head_type,
        num_labels: labelled.then_some(num_labels),
        label2id: (labelled && !names.is_empty()).then_some(ids),
        ..config
    };
    Ok(Some(Head {
        base,
        ..Head::fresh(name, config)
    }))
}

/// Number of classes that data has, or of values of an example.
pub(super) fn label_count(data: &[&Dataset], names: &[String]) -> Result<usize> {
    if let Some(first) = data.first()
        && let Labels::Values(v) = first.get(0)?.labels
    {
        return Ok(v.len());
    }
    if !names.is_empty() {
        return Ok(names.len());
    }
    let mut each = data.iter().map(|d| largest_class(d));
    let found = each.try_fold(0, |n, m| m.map(|m| n.max(m)))?;
    let rows: usize = data.iter().map(|d| d.len()).sum();
    if found > MANY_CLASSES && found / 10 > rows {
        let message = format!(
            "the largest class of {rows} examples is {}, which makes {found} classes",
            found - 1
        );
        let d = Diagnostic::error("labels", message);
        let help = "classes are numbered from 0 without gaps: is another column meant, or a number (--task regression)?";
        return Err(Error::new(ErrorKind::Train, d.help(help)));
    }
    Ok(found)
}

/// Classes that nobody doubts.
const MANY_CLASSES: usize = 100_000;

/// Number of classes that data has.
fn largest_class(data: &Dataset) -> Result<usize> {
    let mut most = 0;
    for i in 0..data.len() {
        let own = match data.get(i)?.labels {
            Labels::Class(c) => c,
            Labels::Each(l) => l.into_iter().max().unwrap_or(-1),
            _ => continue,
        };
        most = most.max(usize::try_from(own).map_or(0, |c| c + 1));
    }
    Ok(most)
}
