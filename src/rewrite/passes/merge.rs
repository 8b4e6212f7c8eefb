//! Folding adapters into the base weights.
//!
//! A method gives the new weight as a graph expression of the old one and its parameters (`W + alpha/r·B·A`, …). The pass makes a
//! small model of it, has it evaluated by whoever can run graphs, and puts the result in the place of the weight. Nothing else in the
//! graph changes; a weight that others read as well is copied for the adapted linear.

use super::attach::blocks::weighted_sum;
use crate::adapters::manifest::Manifest;
use crate::adapters::methods::{Fold, Merged};
use crate::adapters::param::exchanged;
use crate::adapters::place::{At, BuildCx, Params, Place, wider};
use crate::adapters::plan::{Part, Plan, plan};
use crate::adapters::{Adapter, AdapterStore, Setup, convert};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::infer::Verified;
use crate::ir::{
    Builder, DType, Fragment, Graph, GraphPort, Model, NodeId, OrderKey, TensorData, Use, Val,
    ValueId, contract,
};
use crate::rewrite::{Pass, PassCx, PassError, Patch, Uses};
use crate::select::{ParameterSite, Selection};
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
    /// How they act together, where that is not one after the other: an `Average` of adapters or stacks.
    pub setup: Option<Setup>,
    /// Layers that adapters change nothing of.
    pub skip_layers: Vec<usize>,
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
        let mut done: FxHashSet<(ValueId, &str)> = FxHashSet::default();
        let mut effective: FxHashSet<usize> = FxHashSet::default();
        let mut parts: Vec<&Part<'_>> = parts.iter().collect();
        if self.fold == Fold::Out {
            parts.reverse();
        }
        // A parameter that the adapter has its own values of is what its other changes are folded into.
        parts.sort_by_key(|p| !matches!(p.place.at, At::Parameter(_)));
        for part in &parts {
            if let (At::Parameter(_), Some(setup)) = (&part.place.at, &self.setup) {
                return Err(not_mixed(setup, &part.place).into());
            }
            if let At::Parameter(site) = &part.place.at {
                let exchanged = self.exchange(part, site, &store, cx)?;
                let apart = exchanged == Exchanged::Apart;
                if exchanged != Exchanged::Same {
                    effective.insert(part.adapter);
                }
                let module =
                    |p: &&&Part<'_>| Folded::of(&p.place).is_some_and(|w| w.path == &*site.module);
                if apart && parts.iter().any(|p| module(&p)) {
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
                continue;
            }
            let Some(weight) = Folded::of(&part.place) else {
                return Err(not_linear(&part.place).into());
            };
            if !done.insert((weight.value, weight.path)) {
                continue;
            }
            // All that is folded into it: further calls of the same module, a head that shares a table of tokens, other adapters.
            let mut whole = weight.clone();
            let mut stack: Vec<&Part<'_>> = Vec::new();
            for other in &parts {
                let Some(own) = Folded::of(&other.place).filter(|w| w.value == weight.value) else {
                    continue;
                };
                let scopes = |p: &&Part<'_>| p.place.scope == other.place.scope;
                if own.path != weight.path && other.place.scope != part.place.scope {
                    continue;
                }
                done.insert((own.value, own.path));
                whole.nodes.extend(own.nodes);
                if !stack
                    .iter()
                    .any(|p| p.adapter == other.adapter && scopes(p))
                {
                    stack.push(other);
                }
            }
            if self.setup.is_some() {
                stack.sort_by_key(|p| p.adapter);
                if self.fold(&self.terms(&stack)?, &whole, &store, cx)? {
                    effective.extend(stack.iter().map(|p| p.adapter));
                }
                continue;
            }
            // Changes that a stack adds up or chains are one expression; others are folded in one after the other.
            let adds = |p: &&Part<'_>| p.method.chains(&p.place).is_some();
            if stack.iter().any(adds) {
                stack.sort_by_key(|p| p.adapter);
                let one = [(1.0, stack.clone())];
                if self.fold(&one, &whole, &store, cx)? {
                    effective.extend(stack.iter().map(|p| p.adapter));
                }
            } else {
                for part in stack {
                    if self.fold(&[(1.0, vec![part])], &whole, &store, cx)? {
                        effective.insert(part.adapter);
                    }
                }
            }
        }
        for (at, adapter) in self.adapters.iter().enumerate() {
            if !effective.contains(&at) {
                cx.warn(without_effect(&adapter.name));
            }
        }
        Ok(())
    }
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
}

impl<'p> Folded<'p> {
    fn of(place: &'p Place<'_>) -> Option<Self> {
        if let At::Table(site) = place.at {
            return Some(Folded {
                path: &site.path,
                value: site.value,
                bias: None,
                nodes: FxHashSet::from_iter([site.node]),
            });
        }
        let site = place.linear()?;
        let nodes = site.calls().flat_map(|c| c.nodes.iter().copied());
        Some(Folded {
            path: &site.path,
            value: site.weight.value,
            bias: site.weight.bias,
            nodes: nodes.collect(),
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

    /// Folds these adapters into one weight: the sum of what each stack makes of it. Whether any value of it is another one then.
    fn fold(
        &self,
        terms: &[(f64, Vec<&Part<'_>>)],
        weight: &Folded<'_>,
        store: &AdapterStore,
        cx: &mut PassCx<'_>,
    ) -> Result<bool, PassError> {
        let graph = &cx.model().graph;
        let opset = cx.model().opset("").unwrap_or(17);
        let targets = (weight.value, weight.bias);
        let expression = merge_expression(terms, targets, store, (graph, opset), self.fold)?;
        let last = terms.last().and_then(|(_, stack)| stack.last());
        let name = last.map_or("", |p| &*p.place.scope);
        let results =
            (self.evaluate)(&expression).map_err(|e| e.within(format!("merging {name}")))?;
        let targets = [Some(weight.value), weight.bias];
        let mut patch = cx.patch(format!("merge {name}"), None);
        let mut changes = false;
        for (target, result) in targets.into_iter().flatten().zip(results) {
            let former = graph.value(target).tensor.as_ref();
            changes |= former.and_then(TensorData::to_f32) != result.to_f32();
            replace(&mut patch, graph, weight, target, result)?;
        }
        cx.commit(patch)?;
        Ok(changes)
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

/// A model without inputs that computes the merged weight, and the merged bias where it changes, of one linear: the weighted sum of what
/// each stack makes of it, of which the weight itself has the rest.
///
/// # Errors
/// When the method has no such form here, or the weight is not stored as floats.
fn merge_expression(
    terms: &[(f64, Vec<&Part<'_>>)],
    (weight, bias): (ValueId, Option<ValueId>),
    store: &AdapterStore,
    (graph, opset): (&Graph, i64),
    fold: Fold,
) -> Result<Verified, Error> {
    let wrong = |d: Diagnostic| Error::new(ErrorKind::Method, d);
    let b = Builder::new(opset);
    let stored = graph.value(weight).tensor.as_ref().map(|t| t.dtype);
    let stored = stored.unwrap_or(DType::Float);
    let mut computed = stored;
    for part in terms.iter().flat_map(|(_, stack)| stack) {
        computed = wider(part.method.dtype().map_err(wrong)?, computed);
    }
    b.set_float(computed);
    let (current, once) = (FxHashMap::default(), RefCell::default());
    let build = BuildCx::new(&b, graph, stored, false, &current, &once);
    let mut each = Vec::with_capacity(terms.len());
    // A setup may name an adapter more than once.
    let mut made = FxHashMap::default();
    for (share, stack) in terms {
        let values = (store, &mut made);
        let merged = merge_stack(stack, values, &build, computed, fold).map_err(wrong)?;
        each.extend(merged.map(|m| (*share, m)));
    }
    let outputs: Vec<Val> = match &*each {
        [(share, only)] if (share - 1.0).abs() < 1e-9 => {
            std::iter::once(only.weight).chain(only.bias).collect()
        }
        _ => {
            let mixed = |of: &dyn Fn(&Merged) -> Val, old: ValueId| {
                let old = build.up(Val::Old(old));
                let terms: Vec<(f64, Val)> = each
                    .iter()
                    .map(|(share, m)| (*share, build.up(of(m))))
                    .collect();
                build.down(weighted_sum(&b, &terms, old))
            };
            let new_bias = bias.filter(|_| each.iter().any(|(_, m)| m.bias.is_some()));
            let own = new_bias.map(|old| mixed(&|m: &Merged| m.bias.unwrap_or(Val::Old(old)), old));
            std::iter::once(mixed(&|m: &Merged| m.weight, weight))
                .chain(own)
                .collect()
        }
    };
    drop(build);
    standalone(b.finish(), graph, &outputs, opset)
}

/// What a stack of adapters makes of the weight.
fn merge_stack(
    stack: &[&Part<'_>],
    (store, made): (&AdapterStore, &mut FxHashMap<String, Val>),
    build: &BuildCx<'_>,
    computed: DType,
    fold: Fold,
) -> Result<Option<Merged>, Diagnostic> {
    let b = build.b;
    let mut merged: Option<Merged> = None;
    for (at, part) in stack.iter().enumerate() {
        let kept = part.method.dtype()?;
        let mut parameter = |(suffix, name): &(String, String)| {
            let tensor = store.get(name).map(|p| p.tensor.clone())?;
            let value = made.entry(name.clone());
            let stored = *value.or_insert_with(|| b.initializer(name, tensor));
            let value = if kept == computed {
                stored
            } else {
                b.cast(stored, computed)
            };
            Some((suffix.clone(), value))
        };
        let own: Vec<(String, Val)> = part.own.iter().filter_map(&mut parameter).collect();
        let shared: Vec<(String, Val)> = part.shared.iter().filter_map(&mut parameter).collect();
        let params = Params {
            own: &own,
            shared: &shared,
        };
        let below = merged.and_then(|m| m.change);
        if at > 0 && below.is_none() {
            return Err(Diagnostic::error(
                "merge-stack",
                "an adapter in front of this one does more than add to the weight, so both together are no weight",
            )
            .at(part.place.scope.clone())
            .help("keep both attached: `--active \"Stack(a, b)\"`"));
        }
        merged = Some(
            part.method
                .merge(&part.place, &params, build, fold, below)?,
        );
    }
    Ok(merged)
}

/// A model of a fragment: what it reads of the graph are constants, which become its own.
pub(super) fn standalone(
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
    site: &Folded<'_>,
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
    let own: Vec<Use> = uses
        .iter()
        .copied()
        .filter(|u| site.nodes.contains(&u.node()))
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
