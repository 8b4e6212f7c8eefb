//! Folding adapters into the base weights.
//!
//! A method gives the new weight as a graph expression of the old one and its parameters (`W + alpha/r·B·A`, …). The pass makes a
//! small model of it, has it evaluated by whoever can run graphs, and puts the result in the place of the weight. Nothing else in the
//! graph changes; a weight that others read as well is copied for the adapted linear.

use crate::adapters::methods::Fold;
use crate::adapters::place::{BuildCx, Params, Place, wider};
use crate::adapters::plan::{Part, Plan, plan};
use crate::adapters::{Adapter, AdapterStore};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::infer::Verified;
use crate::ir::{
    Builder, DType, Fragment, Graph, GraphPort, Model, OrderKey, TensorData, Use, Val, ValueId,
};
use crate::rewrite::{Pass, PassCx, PassError, Patch, Uses};
use crate::select::{LinearSite, Selection};
use bytes::Bytes;
use rustc_hash::{FxHashMap, FxHashSet};
use std::cell::RefCell;
use std::fmt;

/// Runs a model without inputs and gives its outputs, in order.
pub(crate) type Evaluate = dyn Fn(&Verified) -> Result<Vec<TensorData>, Error> + Send + Sync;

/// Folds adapters into the weights of the linears that they adapt.
pub(crate) struct Merge {
    /// The sites, selected in the model that the pass runs on.
    pub selection: Selection,
    /// The adapters, with weights; folded in one after the other.
    pub adapters: Vec<Adapter>,
    /// Whether they are folded in, or taken out again, the last one first.
    pub fold: Fold,
    /// Runs the expressions.
    pub evaluate: Box<Evaluate>,
}

impl fmt::Debug for Merge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.adapters.iter().map(|a| &*a.name).collect();
        f.debug_struct("Merge")
            .field("adapters", &names)
            .finish_non_exhaustive()
    }
}

impl Pass for Merge {
    fn name(&self) -> &'static str {
        "merge"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let before = cx.before();
        let Plan {
            parts,
            store,
            notes,
            ..
        } = plan(&self.adapters, &self.selection, before, 0)?;
        for note in notes {
            cx.warn(note);
        }
        let mut done: FxHashSet<(usize, ValueId, String)> = FxHashSet::default();
        let mut parts: Vec<&Part<'_>> = parts.iter().collect();
        if self.fold == Fold::Out {
            parts.reverse();
        }
        for part in parts {
            let Some(site) = part.place.linear() else {
                return Err(not_linear(&part.place).into());
            };
            // Further calls of the same module read the same weight.
            if done.insert((part.adapter, site.weight.value, part.place.scope.clone())) {
                self.fold(part, site, &store, cx)?;
            }
        }
        Ok(())
    }
}

fn not_linear(place: &Place<'_>) -> Diagnostic {
    Diagnostic::error(
        "merge",
        format!(
            "`{}` is no change of a linear, and cannot be folded into a weight",
            place.scope
        ),
    )
    .help("only the LoRA family merges; keep this adapter attached")
}

impl Merge {
    fn fold(
        &self,
        part: &Part<'_>,
        site: &LinearSite,
        store: &AdapterStore,
        cx: &mut PassCx<'_>,
    ) -> Result<(), PassError> {
        let graph = &cx.model().graph;
        let opset = cx.model().opset("").unwrap_or(17);
        let expression = merge_expression(part, site, store, (graph, opset), self.fold)?;
        let name = &part.place.scope;
        let results =
            (self.evaluate)(&expression).map_err(|e| e.within(format!("merging {name}")))?;
        let targets = [Some(site.weight.value), site.weight.bias];
        let mut patch = cx.patch(format!("merge {name}"), None);
        for (target, result) in targets.into_iter().flatten().zip(results) {
            replace(&mut patch, graph, site, target, result)?;
        }
        cx.commit(patch)?;
        Ok(())
    }
}

/// A model without inputs that computes the merged weight, and the merged bias where it changes, of one linear.
///
/// # Errors
/// When the method has no such form here, or the weight is not stored as floats.
pub(crate) fn merge_expression(
    part: &Part<'_>,
    site: &LinearSite,
    store: &AdapterStore,
    (graph, opset): (&Graph, i64),
    fold: Fold,
) -> Result<Verified, Error> {
    let wrong = |d: Diagnostic| Error::new(ErrorKind::Method, d);
    let b = Builder::new(opset);
    let stored = graph
        .value(site.weight.value)
        .tensor
        .as_ref()
        .map(|t| t.dtype);
    let kept = part.method.dtype().map_err(wrong)?;
    let computed = wider(kept, stored.unwrap_or(DType::Float));
    b.set_float(computed);
    let parameter = |(suffix, name): &(String, String)| {
        let tensor = store.get(name).map(|p| p.tensor.clone());
        let value = |t| match b.initializer(name, t) {
            v if kept == computed => v,
            v => b.cast(v, computed),
        };
        tensor.map(|t| (suffix.clone(), value(t)))
    };
    let own: Vec<(String, Val)> = part.own.iter().filter_map(parameter).collect();
    let shared: Vec<(String, Val)> = part.shared.iter().filter_map(parameter).collect();
    let (current, once) = (FxHashMap::default(), RefCell::default());
    let build = BuildCx::new(
        &b,
        graph,
        stored.unwrap_or(DType::Float),
        false,
        &current,
        &once,
    );
    let params = Params {
        own: &own,
        shared: &shared,
    };
    let merged = part
        .method
        .merge(&part.place, &params, &build, fold)
        .map_err(wrong)?;
    drop(build);
    let outputs: Vec<Val> = std::iter::once(merged.weight).chain(merged.bias).collect();
    standalone(b.finish(), graph, &outputs, opset)
}

/// A model of a fragment: what it reads of the graph are constants, which become its own.
fn standalone(
    mut fragment: Fragment,
    graph: &Graph,
    outputs: &[Val],
    opset: i64,
) -> Result<Verified, Error> {
    let mut own: FxHashMap<ValueId, u32> = FxHashMap::default();
    for node in &mut fragment.nodes {
        for input in node.inputs.iter_mut().flatten() {
            let Val::Old(id) = *input else { continue };
            let ix = *own.entry(id).or_insert_with(|| {
                let value = graph.value(id);
                fragment.values.push(crate::ir::NewValue {
                    name: format!("base/{}", value.name).into(),
                    ty: None,
                    tensor: value.tensor.clone(),
                    metadata: crate::ir::Metadata::default(),
                    input: false,
                });
                fragment.values.len() as u32 - 1
            });
            *input = Val::New(ix);
        }
    }
    let mut model = Model {
        opset_imports: vec![("".into(), opset)],
        ir_version: 8,
        ..Model::default()
    };
    let g = &mut model.graph;
    g.name = "merge".into();
    let place = |_: &crate::ir::NewNode, i: u32| OrderKey { anchor: i, seq: 0 };
    let ids = g
        .insert_fragment(fragment, place)
        .map_err(|e| Error::new(ErrorKind::Patch, Diagnostic::error("merge", e.to_string())))?;
    for v in outputs {
        if let Val::New(ix) = v {
            g.outputs.push(GraphPort {
                value: ids[*ix as usize],
                ty: None,
                residue: Bytes::new(),
            });
        }
    }
    Verified::check(model).map_err(Error::from)
}

/// Puts a constant in the place of another one, for the site alone.
fn replace(
    patch: &mut Patch,
    graph: &Graph,
    site: &LinearSite,
    old: ValueId,
    new: TensorData,
) -> Result<(), Diagnostic> {
    let value = graph.value(old);
    let same = value
        .tensor
        .as_ref()
        .is_some_and(|t| t.dims == new.dims && t.dtype == new.dtype);
    if !same {
        return Err(Diagnostic::error(
            "merge",
            format!(
                "the merged `{}` is {} {:?}",
                value.name, new.dtype, new.dims
            ),
        ));
    }
    let uses = graph.uses(old);
    let nodes: FxHashSet<_> = site.calls().flat_map(|c| c.nodes.iter().copied()).collect();
    let own: Vec<Use> = uses
        .iter()
        .copied()
        .filter(|u| nodes.contains(&u.node()))
        .collect();
    if (own.len() == uses.len() || uses.len() == 1) && !graph.is_output(old) {
        patch.set_tensor(old, new);
        return Ok(());
    }
    if own.is_empty() {
        return Err(Diagnostic::error(
            "merge-shared",
            format!("`{}` is read by other modules as well", value.name),
        )
        .at(site.path.to_string())
        .help("keep the adapter attached, or export the model with separate weights"));
    }
    let copy = patch
        .builder()
        .initializer(&format!("{}/{}", site.path, value.name), new);
    patch.redirect(old, copy, Uses::Only(own));
    Ok(())
}

#[cfg(test)]
mod tests;
