//! The prediction head that a base model gets for a task of whole examples.

use crate::adapters::heads::{Head, HeadBase, HeadConfig, HeadType};
use crate::error::Result;
use crate::infer::Verified;
use crate::ir::contract;
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
        Task::Classification | Task::Regression => HeadType::Classification,
        Task::MultiLabel => HeadType::MultilabelClassification,
    };
    let names = &loaded.report.label_names;
    let num_labels = match loaded.train.get(0)?.labels {
        Labels::Values(v) => v.len(),
        _ if names.is_empty() => {
            let sets = [Some(&loaded.train), loaded.eval.as_ref()];
            let mut most = sets.into_iter().flatten().map(largest_class);
            most.try_fold(config.num_labels(), |n, m| m.map(|m| n.max(m)))?
        }
        _ => names.len(),
    };
    if model.model().graph.find(contract::LOGITS).is_some() {
        return Ok(None);
    }
    let ids = names
        .iter()
        .enumerate()
        .map(|(i, n)| (n.clone(), i as i64))
        .collect();
    let config = HeadConfig {
        head_type,
        num_labels: Some(num_labels),
        label2id: (!names.is_empty()).then_some(ids),
        ..config
    };
    Ok(Some(Head {
        base,
        ..Head::fresh(name, config)
    }))
}

/// Number of classes that data has.
fn largest_class(data: &Dataset) -> Result<usize> {
    let mut most = 0;
    for i in 0..data.len() {
        if let Labels::Class(c) = data.get(i)?.labels {
            most = most.max(usize::try_from(c).map_or(0, |c| c + 1));
        }
    }
    Ok(most)
}
