//! `MultiTask`: the input that says of which task each sample is, and taking each sample's value.

use crate::adapters::place::{BuildCx, Place};
use crate::diag::Diagnostic;
use crate::ir::contract;
use crate::ir::{DType, Dim, Metadata, Spot, Type, Val};

/// Takes each sample's value from those of all tasks.
pub(super) struct Picker {
    /// The task of each sample, checked against their number.
    pub(super) ids: Val,
    count: usize,
    rank: usize,
    origin: Origin,
}

/// How what is made for the whole model is named and stamped.
pub(super) struct Origin {
    /// What it is made for.
    pub(super) owner: &'static str,
    pub(super) scope: String,
    pub(super) stamp: Metadata,
}

impl Origin {
    /// A value of the whole model, made once, in front of all nodes of the file.
    pub(super) fn once(
        &self,
        cx: &BuildCx<'_>,
        key: &str,
        make: impl FnOnce() -> Result<Val, Diagnostic>,
    ) -> Result<Val, Diagnostic> {
        let b = cx.b;
        let owner = cx.owner.replace(self.owner.to_owned());
        let scope = b.set_scope(&self.scope);
        b.set_stamp(self.stamp.clone());
        b.set_spot(Some(Spot::Front));
        let made = cx.once_or(key, make);
        b.set_spot(None);
        b.set_scope(&scope);
        cx.owner.replace(owner);
        made
    }
}

impl Picker {
    /// For values of this rank whose first axis is the batch.
    pub(super) fn new(
        count: usize,
        rank: usize,
        origin: Origin,
        cx: &BuildCx<'_>,
    ) -> Result<Self, Diagnostic> {
        cx.whole_rows
            .set(Some("`task_ids` has one task for each row"));
        let input = origin.once(cx, "input", || input(cx))?;
        let ids = origin.once(cx, &format!("of {count}"), || {
            // Looking the ids up in their range refuses those outside; from the end, it would count those below 0.
            let b = cx.b;
            let below = b.op("Less", &[input, b.int(0)], &[]);
            let outside = b.int(i64::from(i32::MAX));
            let ids = b.op("Where", &[below, outside, input], &[]);
            let range: Vec<i64> = (0..count as i64).collect();
            Ok(b.op("Gather", &[b.ints(&range), ids], &[("axis", 0i64.into())]))
        })?;
        Ok(Picker {
            ids,
            count,
            rank,
            origin,
        })
    }

    /// Each sample's value, of one value for each task.
    pub(super) fn pick(&self, values: &[Val], cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
        let Some((last, others)) = values.split_last() else {
            return Ok(self.ids);
        };
        let mut out = *last;
        for (i, v) in others.iter().enumerate().rev() {
            if *v != out {
                let mine = self.mask(i, cx)?;
                cx.b.set_stamp(self.origin.stamp.clone());
                out = cx.b.op("Where", &[mine, *v, out], &[]);
            }
        }
        Ok(out)
    }

    /// Whether each sample is of the task: `[batch, 1, …]`.
    fn mask(&self, task: usize, cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
        let key = format!("{task} of {}, rank {}", self.count, self.rank);
        self.origin.once(cx, &key, || {
            let b = cx.b;
            let mine = b.op("Equal", &[self.ids, b.int(task as i64)], &[]);
            let axes: Vec<i64> = (1..self.rank as i64).collect();
            Ok(b.unsqueeze(mine, &axes))
        })
    }
}

/// The graph input `[batch]`: a new one, or the one that adapters attached before have made.
fn input(cx: &BuildCx<'_>) -> Result<Val, Diagnostic> {
    let g = cx.graph;
    if let Some(v) = g.find(contract::TASK_IDS) {
        let ty = g
            .inputs()
            .iter()
            .find(|p| p.value == v)
            .and_then(|p| p.ty.as_ref());
        let fits = ty.is_some_and(|t| {
            t.dtype() == Some(DType::Int64) && t.dims().is_none_or(|d| d.len() == 1)
        });
        return if fits {
            Ok(Val::Old(v))
        } else {
            Err(Diagnostic::error(
                "task-ids",
                format!(
                    "the model has a value `{}` that is no input i64[batch]",
                    contract::TASK_IDS
                ),
            )
            .help("rename it: the tasks of a `MultiTask` are told by an input of this name"))
        };
    }
    let batch = g
        .inputs()
        .iter()
        .find_map(|p| p.ty.as_ref()?.dims()?.first().cloned());
    let ty = Type::tensor(DType::Int64, vec![batch.unwrap_or(Dim::Unknown)]);
    Ok(cx.b.graph_input(contract::TASK_IDS, ty))
}

pub(super) fn one_length(place: &Place<'_>) -> Diagnostic {
    Diagnostic::error(
        "tasks-length",
        "prompts make all samples longer, and cannot be chosen for each sample",
    )
    .at(place.scope.clone())
    .help("attach the prompt alone, or use another method for the tasks")
}

pub(super) fn no_batch(place: &Place<'_>, rank: Option<usize>, block: &str) -> Diagnostic {
    let found = rank.map_or("an unknown number of".to_owned(), |r| r.to_string());
    Diagnostic::error(
        "tasks-batch",
        format!("what flows here has {found} axes, and `{block}` needs [batch, sequence, width]"),
    )
    .at(place.scope.clone())
    .help("export the model with its batch axis: that of the samples")
}
