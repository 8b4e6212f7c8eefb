//! Folding adapters into the base weights.
//!
//! A method gives the new weight as a graph expression of the old one and its parameters (`W + alpha/r·B·A`, …). The pass makes a
//! small model of it, has it evaluated by whoever can run graphs, and puts the result in the place of the weight. Nothing else in the
//! graph changes; a weight that others read as well is copied for the adapted linear.

use crate::adapters::manifest::Manifest;
use crate::adapters::methods::Fold;
use crate::adapters::param::exchanged;
use crate::adapters::place::{At, Place};
use crate::adapters::plan::{Part, Plan, plan};
use crate::adapters::{Adapter, AdapterStore, Setup, convert};
use crate::analyze::view::identical;
use crate::diag::Diagnostic;
use crate::error::Error;
use crate::infer::Verified;
use crate::ir::{Graph, NodeId, TensorData, Use, ValueId, contract};
use crate::rewrite::{Pass, PassCx, PassError, Patch, Uses};
use crate::select::{ParameterSite, Selection, WeightUse};
pub(crate) use changes::{Changes, MergedWeight};
pub(crate) use coded::Spread;
use expression::merge_expression;
use open::Open;
use rustc_hash::FxHashSet;
use std::fmt;

mod changes;
mod coded;
pub(super) mod expression;
mod open;
mod stored;

/// Runs a model without inputs and gives its outputs, in order.
pub(crate) type Evaluate = dyn Fn(&Verified) -> Result<Vec<TensorData>, Error> + Send + Sync;

/// Folds adapters into the weights of the linears that they adapt.
pub(crate) struct Merge {
    /// The sites, selected in the model that the pass runs on.
    pub selection: Selection,
    /// The adapters, with weights; folded in one after the other.
    pub adapters: Vec<Adapter>,
    /// How they act together, where that is not one after the other: an `Average` of adapters or stacks.
    pub setup: Option<Setup>,
    /// Layers that adapters change nothing of.
    pub skip_layers: Vec<usize>,
    /// Whether they are folded in, or taken out again, the last one first.
    pub fold: Fold,
    /// Where what is changed is put down.
    pub(crate) changes: Changes,
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
        if Manifest::read(cx.model())?.tenants.is_some() {
            return Err(tenants_there().into());
        }
        let mut planned = plan(&self.adapters, &self.selection, before, 0)?;
        planned.skip(&self.skip_layers, &self.selection)?;
        let Plan {
            parts,
            store,
            notes,
        } = planned;
        for note in notes {
            cx.warn(note);
        }
        let mut work = Work::default();
        let mut parts: Vec<&Part<'_>> = parts.iter().collect();
        if self.fold == Fold::Out {
            parts.reverse();
        }
        // A parameter that the adapter has its own values of is what its other changes are folded into.
        parts.sort_by_key(|p| !matches!(p.place.at, At::Parameter(_)));
        for part in &parts {
            if let At::Parameter(site) = &part.place.at {
                self.parameter(part, site, (&parts, &store), &mut work, cx)?;
                continue;
            }
            let Some(weight) = Folded::of(&part.place) else {
                return Err(not_linear(&part.place).into());
            };
            if work.done.contains(&(weight.value, weight.path)) {
                continue;
            }
            let mut open = Open::of(&cx.model().graph, &weight)?;
            self.module(part, &weight, (&parts, &store), (&mut open, &mut work), cx)?;
            // Other modules whose columns the same projection holds.
            for other in &parts {
                let own = Folded::of(&other.place).filter(|w| {
                    w.value == weight.value
                        && !w.nodes.is_disjoint(&weight.nodes)
                        && !work.done.contains(&(w.value, w.path))
                });
                if let Some(own) = own {
                    self.module(other, &own, (&parts, &store), (&mut open, &mut work), cx)?;
                }
            }
            self.close(open, &part.place, &mut work, cx)?;
        }
        for (at, adapter) in self.adapters.iter().enumerate() {
            if work.drowned.contains(&at) && !work.effective.contains(&at) {
                cx.warn(drowned(&adapter.name));
            } else if !work.effective.contains(&at) {
                cx.warn(without_effect(&adapter.name));
            }
        }
        Ok(())
    }
}

/// What is done already.
#[derive(Default)]
struct Work<'p> {
    /// Weights, by their modules.
    done: FxHashSet<(ValueId, &'p str)>,
    /// Adapters that something stored is another one by.
    effective: FxHashSet<usize>,
    /// Adapters whose change of a weight is smaller than its codes can tell.
    drowned: FxHashSet<usize>,
}

/// What became of a parameter that an adapter has its own values of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Exchanged {
    /// The values are those of the base model.
    Same,
    /// It has the adapter's values.
    Whole,
    /// It stands beside the base model's now, which others read.
    Apart,
}

fn without_effect(name: &str) -> Diagnostic {
    Diagnostic::warning(
        "merge-nothing",
        format!("`{name}` changes no weight: the model stays as it is without it"),
    )
    .help("a fresh adapter computes what the base model does; train it first, and give its folder")
}

/// A change that the codes of quantized weights cannot tell.
fn drowned(name: &str) -> Diagnostic {
    Diagnostic::warning(
        "merge-nothing",
        format!("`{name}` changes no weight: all that it adds is smaller than what the codes of the quantized weights can tell"),
    )
    .help("keep it attached, or merge it into the model before it is quantized")
}

/// Weights that many adapters stand behind belong to all of them.
fn tenants_there() -> Diagnostic {
    let found = format!(
        "this model holds adapters that its input `{}` chooses from: what is merged into its weights would act under every one of them",
        contract::ADAPTER_IDS
    );
    Diagnostic::error("merge-tenants", found).help(
        "merge into the base model (`rewrite strip` gives it back); `rewrite tenants extract` gives an adapter's folder",
    )
}

/// The weight that an adapter is folded into.
#[derive(Clone, Debug)]
struct Folded<'p> {
    /// Path of its module.
    path: &'p str,
    /// The initializer.
    value: ValueId,
    /// The bias beside it.
    bias: Option<ValueId>,
    /// The module's nodes.
    nodes: FxHashSet<NodeId>,
    /// How a linear's weight is stored.
    weight: Option<WeightUse>,
}

impl<'p> Folded<'p> {
    fn of(place: &'p Place<'_>) -> Option<Self> {
        if let At::Table(site) = place.at {
            return Some(Folded {
                path: &site.path,
                value: site.value,
                bias: None,
                nodes: FxHashSet::from_iter([site.node]),
                weight: None,
            });
        }
        let site = place.linear()?;
        let nodes = site.calls().flat_map(|c| c.nodes.iter().copied());
        Some(Folded {
            path: &site.path,
            value: site.weight.value,
            bias: site.weight.bias,
            nodes: nodes.collect(),
            weight: Some(site.weight.clone()),
        })
    }
}

/// A parameter of the state dict in shape and type of the initializer that holds it.
fn in_place_of(stored: &TensorData, own: &TensorData, site: &ParameterSite) -> Option<TensorData> {
    let values = own.to_f32()?;
    let values = match site.dims[..] {
        [rows, columns] if site.stored_transposed => exchanged(&values, [rows, columns]),
        _ => values,
    };
    let same = stored.count() == Some(values.len() as u64);
    let tensor = TensorData::from_f32(stored.dims.clone(), &values);
    same.then(|| convert(&tensor, stored.dtype)).flatten()
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
    /// A parameter that an adapter has its own values of.
    fn parameter<'p>(
        &self,
        part: &Part<'_>,
        site: &ParameterSite,
        (parts, store): (&[&'p Part<'_>], &AdapterStore),
        work: &mut Work<'p>,
        cx: &mut PassCx<'_>,
    ) -> Result<(), PassError> {
        if let Some(setup) = &self.setup {
            return Err(not_mixed(setup, &part.place).into());
        }
        let exchanged = self.exchange(part, site, store, cx)?;
        if exchanged != Exchanged::Same {
            work.effective.insert(part.adapter);
        }
        let module = |p: &&Part<'_>| Folded::of(&p.place).is_some_and(|w| w.path == &*site.module);
        if exchanged == Exchanged::Apart && parts.iter().any(module) {
            return Err(Diagnostic::error(
                "merge-shared",
                format!(
                    "the weight of `{}` is read by other modules as well",
                    site.module
                ),
            )
            .at(part.place.scope.clone())
            .help("keep the adapter attached, or export the model with separate weights")
            .into());
        }
        Ok(())
    }

    /// Folds in all that changes the weight of one module.
    fn module<'p>(
        &self,
        part: &'p Part<'_>,
        weight: &Folded<'p>,
        (parts, store): (&[&'p Part<'p>], &AdapterStore),
        (open, work): (&mut Open, &mut Work<'p>),
        cx: &PassCx<'_>,
    ) -> Result<(), PassError> {
        work.done.insert((weight.value, weight.path));
        // All that is folded into it: further calls of the same module, a head that shares a table of tokens, other adapters.
        let mut whole = weight.clone();
        let mut stack: Vec<&Part<'_>> = Vec::new();
        for other in parts {
            let Some(own) = Folded::of(&other.place).filter(|w| w.value == weight.value) else {
                continue;
            };
            let scopes = |p: &&Part<'_>| p.place.scope == other.place.scope;
            if own.path != weight.path && other.place.scope != part.place.scope {
                continue;
            }
            work.done.insert((own.value, own.path));
            whole.nodes.extend(own.nodes);
            if !stack
                .iter()
                .any(|p| p.adapter == other.adapter && scopes(p))
            {
                stack.push(other);
            }
        }
        // Changes that a stack adds up or chains are one expression; others are folded in one after the other.
        let adds = |p: &&Part<'_>| p.method.chains(&p.place).is_some();
        if self.setup.is_some() {
            stack.sort_by_key(|p| p.adapter);
            self.fold(&self.terms(&stack)?, &whole, (store, open), cx)
        } else if stack.iter().any(adds) {
            stack.sort_by_key(|p| p.adapter);
            self.fold(&[(1.0, stack)], &whole, (store, open), cx)
        } else {
            let mut each = stack.into_iter();
            each.try_for_each(|part| self.fold(&[(1.0, vec![part])], &whole, (store, open), cx))
        }
    }

    /// Writes what became of a weight.
    fn close(
        &self,
        open: Open,
        place: &Place<'_>,
        work: &mut Work<'_>,
        cx: &mut PassCx<'_>,
    ) -> Result<(), PassError> {
        let meant = open.meant.clone();
        let mut patch = cx.patch(format!("merge {}", place.scope), None);
        let name = |a: usize| self.adapters[a].name.clone();
        let closed = open.close(&mut patch, &cx.model().graph, name)?;
        let to = if closed.changes {
            &mut work.effective
        } else {
            &mut work.drowned
        };
        to.extend(meant);
        if !patch.is_empty() {
            cx.commit(patch)?;
        }
        if closed.weight.change.squares > 0.0 || closed.changes {
            self.changes.put(closed.weight);
        }
        Ok(())
    }

    /// Puts a parameter that the adapter has its own values of in the place of the base model's, for its module alone. What became
    /// of it.
    fn exchange(
        &self,
        part: &Part<'_>,
        site: &ParameterSite,
        store: &AdapterStore,
        cx: &mut PassCx<'_>,
    ) -> Result<Exchanged, PassError> {
        if self.fold == Fold::Out {
            return Err(Diagnostic::error(
                "reset-parameter",
                "the base model's own values are not known any more",
            )
            .at(part.place.scope.clone())
            .help("keep the base model's file: nothing else brings its weights back")
            .into());
        }
        let own = part.own.first();
        let Some((name, own)) = own.and_then(|(_, name)| Some((name, store.get(name)?))) else {
            return Ok(Exchanged::Same);
        };
        let graph = &cx.model().graph;
        let base = graph.value(site.stored).tensor.as_ref();
        let own_values = base.and_then(|b| in_place_of(b, &own.tensor, site));
        if let (Some(base), Some(values)) = (base, &own_values)
            && base.bytes() == values.bytes()
        {
            return Ok(Exchanged::Same);
        }
        let all = graph.uses(site.value);
        let uses: Vec<Use> = all
            .iter()
            .copied()
            .filter(|u| site.nodes.contains(&u.node()))
            .collect();
        let dtype = cx.fact(site.value).and_then(|f| f.dtype);
        let mut patch = cx.patch(format!("merge {}", part.place.scope), None);
        let direct = site.stored == site.value || graph.uses(site.stored).len() == 1;
        let alone = direct && uses.len() == all.len() && !graph.is_output(site.value);
        if let Some(tensor) = own_values.filter(|_| alone) {
            patch.set_tensor(site.stored, tensor);
            cx.commit(patch)?;
            return Ok(Exchanged::Whole);
        }
        let b = patch.builder();
        let mut value = b.initializer(name, own.tensor.clone());
        if site.transposed {
            value = b.transpose(value, &[1, 0]);
        }
        if let Some(dtype) = dtype.filter(|d| *d != own.tensor.dtype) {
            value = b.cast(value, dtype);
        }
        patch.redirect(site.value, value, Uses::Only(uses));
        cx.commit(patch)?;
        Ok(Exchanged::Apart)
    }

    /// The children of the setup at a weight, with their weights; the base model's own weight has the rest.
    fn terms<'p, 's>(
        &self,
        parts: &[&'p Part<'s>],
    ) -> Result<Vec<(f64, Vec<&'p Part<'s>>)>, Diagnostic> {
        let whole = || vec![(1.0, parts.to_vec())];
        let Some(setup) = &self.setup else {
            return Ok(whole());
        };
        let Some((children, weights)) = setup.averaged() else {
            return match parts.first() {
                Some(part) if !setup.is_chain() => Err(not_mixed(setup, &part.place)),
                _ => Ok(whole()),
            };
        };
        let mut out = Vec::with_capacity(children.len());
        for (child, weight) in children.iter().zip(weights) {
            let names = child.names();
            let own = |p: &&&Part<'_>| names.contains(&&*self.adapters[p.adapter].name);
            let own: Vec<&Part<'_>> = parts.iter().filter(own).copied().collect();
            match own.first() {
                Some(part) if !child.is_chain() => return Err(not_mixed(setup, &part.place)),
                Some(_) => out.push((weight, own)),
                None => {}
            }
        }
        Ok(out)
    }

    /// Folds these adapters into one weight: the sum of what each stack makes of it.
    fn fold(
        &self,
        terms: &[(f64, Vec<&Part<'_>>)],
        weight: &Folded<'_>,
        (store, open): (&AdapterStore, &mut Open),
        cx: &PassCx<'_>,
    ) -> Result<(), PassError> {
        let graph = &cx.model().graph;
        let opset = cx.model().opset("").unwrap_or(17);
        let targets = (weight.value, weight.bias);
        let of = (graph, opset);
        let expression = merge_expression(terms, targets, store, of, self.fold, &open.now)?;
        let last = terms.last().and_then(|(_, stack)| stack.last());
        let name = last.map_or("", |p| &*p.place.scope);
        let results =
            (self.evaluate)(&expression).map_err(|e| e.within(format!("merging {name}")))?;
        let stacks = terms.iter().flat_map(|(_, stack)| stack);
        let by: Vec<usize> = stacks.map(|p| p.adapter).collect();
        open.take(weight, results, &by);
        Ok(())
    }
}

/// What depends on more than the weight, or has no one weight.
fn not_mixed(setup: &Setup, place: &Place<'_>) -> Diagnostic {
    Diagnostic::error(
        "merge-setup",
        format!("`{setup}` is no change of the weight that it meets here"),
    )
    .at(place.scope.clone())
    .help("an `Average` of adapters or stacks of the LoRA family merges, and a `Stack`; keep others attached")
}

/// Puts a constant in the place of another one, for the site alone.
fn replace(
    patch: &mut Patch,
    graph: &Graph,
    site: &Folded<'_>,
    old: ValueId,
    new: TensorData,
) -> Result<(), Diagnostic> {
    let value = graph.value(old);
    let same = identical(graph, old).is_some_and(|t| t.dims == new.dims && t.dtype == new.dtype);
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
    let own: Vec<Use> = uses
        .iter()
        .copied()
        .filter(|u| site.nodes.contains(&u.node()))
        .collect();
    let stored = value.tensor.is_some();
    if stored && (own.len() == uses.len() || uses.len() == 1) && !graph.is_output(old) {
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
