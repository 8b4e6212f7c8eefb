//! Folding adapters into the base weights.
//!
//! A method gives the new weight as a graph expression of the old one and its parameters (`W + alpha/r·B·A`, …). The pass makes a
//! small model of it, has it evaluated by whoever can run graphs, and puts the result in the place of the weight. Nothing else in the
//! graph changes; a weight that others read as well is copied for the adapted linear.

use crate::adapters::manifest::Manifest;
use crate::adapters::methods::{Fold, Merged};
use crate::adapters::param::exchanged;
use crate::adapters::place::{At, BuildCx, Params, Place, wider};
use crate::adapters::plan::{Part, Plan, plan};
use crate::adapters::{Adapter, AdapterStore, convert};
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
        let Plan {
            parts,
            store,
            notes,
            ..
        } = plan(&self.adapters, &self.selection, before, 0)?;
        for note in notes {
            cx.warn(note);
        }
        let mut done: FxHashSet<(ValueId, &str)> = FxHashSet::default();
        let mut parts: Vec<&Part<'_>> = parts.iter().collect();
        if self.fold == Fold::Out {
            parts.reverse();
        }
        // A parameter that the adapter has its own values of is what its other changes are folded into.
        parts.sort_by_key(|p| !matches!(p.place.at, At::Parameter(_)));
        for part in &parts {
            if let At::Parameter(site) = &part.place.at {
                let apart = self.exchange(part, site, &store, cx)?;
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
            // Changes that a stack adds up or chains are one expression; others are folded in one after the other.
            let adds = |p: &&Part<'_>| p.method.chains(&p.place).is_some();
            if stack.iter().any(adds) {
                stack.sort_by_key(|p| p.adapter);
                self.fold(&stack, &whole, &store, cx)?;
            } else {
                for part in stack {
                    self.fold(&[part], &whole, &store, cx)?;
                }
            }
        }
        Ok(())
    }
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
    /// Puts a parameter that the adapter has its own values of in the place of the base model's, for its module alone. Whether it stands
    /// beside the base model's now, which others read.
    fn exchange(
        &self,
        part: &Part<'_>,
        site: &ParameterSite,
        store: &AdapterStore,
        cx: &mut PassCx<'_>,
    ) -> Result<bool, PassError> {
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
            return Ok(false);
        };
        let graph = &cx.model().graph;
        let base = graph.value(site.stored).tensor.as_ref();
        let own_values = base.and_then(|b| in_place_of(b, &own.tensor, site));
        if let (Some(base), Some(values)) = (base, &own_values)
            && base.bytes() == values.bytes()
        {
            return Ok(false);
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
            return Ok(false);
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
        Ok(true)
    }

    fn fold(
        &self,
        stack: &[&Part<'_>],
        weight: &Folded<'_>,
        store: &AdapterStore,
        cx: &mut PassCx<'_>,
    ) -> Result<(), PassError> {
        let graph = &cx.model().graph;
        let opset = cx.model().opset("").unwrap_or(17);
        let expression = merge_expression(stack, weight.value, store, (graph, opset), self.fold)?;
        let name = stack.last().map_or("", |p| &*p.place.scope);
        let results =
            (self.evaluate)(&expression).map_err(|e| e.within(format!("merging {name}")))?;
        let targets = [Some(weight.value), weight.bias];
        let mut patch = cx.patch(format!("merge {name}"), None);
        for (target, result) in targets.into_iter().flatten().zip(results) {
            replace(&mut patch, graph, weight, target, result)?;
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
    stack: &[&Part<'_>],
    weight: ValueId,
    store: &AdapterStore,
    (graph, opset): (&Graph, i64),
    fold: Fold,
) -> Result<Verified, Error> {
    let wrong = |d: Diagnostic| Error::new(ErrorKind::Method, d);
    let b = Builder::new(opset);
    let stored = graph.value(weight).tensor.as_ref().map(|t| t.dtype);
    let stored = stored.unwrap_or(DType::Float);
    let mut computed = stored;
    for part in stack {
        computed = wider(part.method.dtype().map_err(wrong)?, computed);
    }
    b.set_float(computed);
    let (current, once) = (FxHashMap::default(), RefCell::default());
    let build = BuildCx::new(&b, graph, stored, false, &current, &once);
    let mut merged: Option<Merged> = None;
    for (at, part) in stack.iter().enumerate() {
        let kept = part.method.dtype().map_err(wrong)?;
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
        let params = Params {
            own: &own,
            shared: &shared,
        };
        let below = merged.and_then(|m| m.change);
        if at > 0 && below.is_none() {
            return Err(wrong(
                Diagnostic::error(
                    "merge-stack",
                    "an adapter in front of this one does more than add to the weight, so both together are no weight",
                )
                .at(part.place.scope.clone())
                .help("keep both attached: `--active \"Stack(a, b)\"`"),
            ));
        }
        let next = part.method.merge(&part.place, &params, &build, fold, below);
        merged = Some(next.map_err(wrong)?);
    }
    drop(build);
    let outputs = merged.into_iter();
    let outputs: Vec<Val> = outputs
        .flat_map(|m| std::iter::once(m.weight).chain(m.bias))
        .collect();
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
