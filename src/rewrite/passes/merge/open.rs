//! A weight while adapters are folded into it: its floats, whatever it is stored as.

use super::changes::MergedWeight;
use super::coded::{Rounded, Spread};
use super::stored::Stored;
use super::{Folded, replace};
use crate::analyze::view::identical;
use crate::diag::Diagnostic;
use crate::ir::{Graph, NodeId, TensorData, ValueId};
use crate::rewrite::Patch;
use rustc_hash::{FxHashMap, FxHashSet};

/// A weight and its bias, opened.
pub(super) struct Open {
    /// What they are by now.
    pub(super) now: FxHashMap<ValueId, TensorData>,
    /// The module that they were opened for.
    path: String,
    weight: ValueId,
    bias: Option<ValueId>,
    /// The nodes of all modules that have something folded in.
    nodes: FxHashSet<NodeId>,
    /// What they were.
    former: FxHashMap<ValueId, TensorData>,
    /// How weight and bias are stored, where they are no floats.
    stored: Option<Stored>,
    stored_bias: Option<Stored>,
    /// The adapters that changed a value.
    pub(super) meant: Vec<usize>,
    modules: Vec<String>,
}

/// What was written.
pub(super) struct Closed {
    pub(super) weight: MergedWeight,
    /// Whether anything is stored otherwise than before.
    pub(super) changes: bool,
}

impl Open {
    /// Opens the weight of a module.
    pub(super) fn of(graph: &Graph, folded: &Folded<'_>) -> Result<Self, Diagnostic> {
        let mut former = FxHashMap::default();
        let (mut stored, mut stored_bias) = (None, None);
        let form = folded.weight.as_ref();
        if let Some(weight) = form.filter(|w| w.form != crate::select::WeightForm::Float) {
            let found = Stored::open(graph, weight, &folded.nodes, folded.path)?;
            former.insert(folded.value, found.floats());
            stored = Some(found);
        } else if let Some(tensor) = &graph.value(folded.value).tensor {
            former.insert(folded.value, tensor.clone());
        }
        if let Some(bias) = folded.bias {
            if let Some(tensor) = identical(graph, bias) {
                former.insert(bias, tensor.clone());
            } else if Stored::is_coded(graph, bias) {
                let found = Stored::open_bias(graph, bias, folded.path)?;
                former.insert(bias, found.floats());
                // A bias of 32 bits counts in the product of the scales of input and weight.
                if let Some(weight) = stored.as_mut().filter(|_| found.coded.counts()) {
                    weight.coded.keeps_scales = !weight.coded.has_outputs(&found.coded);
                }
                stored_bias = Some(found);
            }
        }
        Ok(Open {
            now: former.clone(),
            path: folded.path.to_owned(),
            weight: folded.value,
            bias: folded.bias,
            nodes: FxHashSet::default(),
            former,
            stored,
            stored_bias,
            meant: Vec::new(),
            modules: Vec::new(),
        })
    }

    /// Takes note of what was folded in: new values of weight and bias, by these adapters.
    pub(super) fn take(&mut self, folded: &Folded<'_>, results: Vec<TensorData>, by: &[usize]) {
        self.nodes.extend(&folded.nodes);
        if !self.modules.iter().any(|m| m == folded.path) {
            self.modules.push(folded.path.to_owned());
        }
        let targets = [Some(self.weight), self.bias];
        let mut changes = false;
        for (target, result) in targets.into_iter().flatten().zip(results) {
            let before = self.now.get(&target).and_then(TensorData::to_f32);
            changes |= before != result.to_f32();
            self.now.insert(target, result);
        }
        if changes {
            self.meant.extend(by);
        }
    }

    /// Writes what weight and bias are by now in the place of what they were.
    pub(super) fn close(
        mut self,
        patch: &mut Patch,
        graph: &Graph,
        names: impl Fn(usize) -> String,
    ) -> Result<Closed, Diagnostic> {
        let site = Folded {
            path: &self.path,
            value: self.weight,
            bias: self.bias,
            nodes: std::mem::take(&mut self.nodes),
            weight: None,
        };
        let mut changes = false;
        let new = self.now.remove(&self.weight);
        let old = self.former.get(&self.weight);
        let mut rounded = Rounded::default();
        let form = self.stored.as_ref().map(|s| s.form.clone());
        match (&mut self.stored, new, old) {
            (Some(stored), Some(new), _) => {
                let wanted = new.to_f32().unwrap_or_default();
                let scales = stored.coded.scales.clone();
                rounded = stored
                    .coded
                    .take(&wanted)
                    .ok_or_else(|| not_finite(&self.path))?;
                changes |= rounded.groups > 0;
                if rounded.groups > 0 {
                    stored.write(patch, graph, &site.nodes, &self.path)?;
                }
                if let (Some(bias), Some(own)) = (self.bias, &mut self.stored_bias)
                    && own.coded.counts()
                    && scales != stored.coded.scales
                    && let Some(values) = self.now.get(&bias).and_then(TensorData::to_f32)
                {
                    self.now.remove(&bias);
                    own.coded.follow(&scales, &stored.coded.scales, &values);
                    own.write(patch, graph, &site.nodes, &self.path)?;
                }
            }
            (None, Some(new), Some(old)) => {
                (rounded.base, rounded.change) = apart(old, &new);
                changes |= old.to_f32() != new.to_f32();
                replace(patch, graph, &site, self.weight, new)?;
            }
            _ => {}
        }
        if let Some(bias) = self.bias
            && let (Some(new), Some(old)) = (self.now.remove(&bias), self.former.get(&bias))
            && old.to_f32() != new.to_f32()
        {
            changes = true;
            match &self.stored_bias {
                Some(stored) => stored.write_floats(patch, graph, &site.nodes, (new, &self.path)),
                None => replace(patch, graph, &site, bias, new)?,
            }
        }
        self.meant.sort_unstable();
        self.meant.dedup();
        Ok(Closed {
            weight: MergedWeight {
                modules: self.modules,
                adapters: self.meant.iter().map(|a| names(*a)).collect(),
                form,
                base: rounded.base,
                change: rounded.change,
                error: rounded.error,
                stored: changes,
                groups: [rounded.groups, rounded.rescaled],
            },
            changes,
        })
    }
}

/// The size of a tensor's values, and of their distance from others.
fn apart(old: &TensorData, new: &TensorData) -> (Spread, Spread) {
    let (mut base, mut change) = (Spread::default(), Spread::default());
    let values = |t: &TensorData| t.to_f32().unwrap_or_default();
    for (old, new) in values(old).into_iter().zip(values(new)) {
        base.add(f64::from(old));
        change.add(f64::from(new) - f64::from(old));
    }
    (base, change)
}

fn not_finite(name: &str) -> Diagnostic {
    Diagnostic::error(
        "merge-finite",
        format!("the merged weight of `{name}` is not finite, or its scale would not be"),
    )
    .help("look at the adapter's values: `rewrite check` names those that are not finite")
}
