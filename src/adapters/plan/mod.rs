//! From configurations and a selection to places, parameters and values: everything that attaching and merging decide before they
//! write anything.

use crate::adapters::Adapter;
mod layers;
pub(crate) mod naming;
pub(crate) mod param;
pub(crate) mod place;
mod reach;
pub(crate) mod setup;
mod share;
mod unused;

pub(crate) use self::reach::places_of;
use self::unused::{Unused, quantized};
use crate::adapters::methods::MethodConfig;
use crate::adapters::naming::{renamed, scope};
use crate::adapters::param::{ParamSpec, decays};
use crate::adapters::place::{Place, Surroundings};
use crate::adapters::store::{AdapterStore, Param};
use crate::diag::{Diagnostic, Severity};
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{DType, Graph, TensorData};
use crate::select::Selection;
use bytes::Bytes;
use rustc_hash::FxHashSet;

/// One adapter's member (of a union, or its only one) at one place.
#[derive(Clone, Debug)]
pub(crate) struct Part<'s> {
    /// Index of the adapter.
    pub adapter: usize,
    /// The configuration.
    pub method: &'s MethodConfig,
    /// The place.
    pub place: Place<'s>,
    /// Its parameters: name inside the module, and full name.
    pub own: Vec<(String, String)>,
    /// The shared ones.
    pub shared: Vec<(String, String)>,
}

/// What is going to be attached.
#[derive(Clone, Debug)]
pub(crate) struct Plan<'s> {
    /// Every adapter at every place, by adapter, members and model order.
    pub parts: Vec<Part<'s>>,
    /// All parameters.
    pub store: AdapterStore,
    /// Compatibilities in force and the like.
    pub notes: Vec<Diagnostic>,
}

/// Decides places, parameters and values.
pub(crate) fn plan<'s>(
    adapters: &'s [Adapter],
    selection: &'s Selection,
    model: &'s Verified,
    seed: u64,
) -> Result<Plan<'s>> {
    let mut out = Plan {
        parts: Vec::new(),
        store: AdapterStore::default(),
        notes: Vec::new(),
    };
    // Fusions stand where the adapters stand that they mix.
    let (fusions, others): (Vec<_>, Vec<_>) = adapters
        .iter()
        .enumerate()
        .partition(|(_, a)| a.config.fuses().is_some());
    for (index, adapter) in others.into_iter().chain(fusions) {
        match adapter.config.fuses() {
            Some(_) => check_fusion(adapter, adapters)?,
            None => check_name(&adapter.name)?,
        }
        let fused = fused(adapter, adapters, &out.parts);
        let begin = out.parts.len();
        let mut notes = Vec::new();
        let mut store = AdapterStore::default();
        for method in adapter.config.methods() {
            if let Some(finding) = layers::beyond(method, selection) {
                let finding = finding.at(format!("adapter `{}`", adapter.name));
                if adapter.weights.is_none() {
                    return Err(Error::new(ErrorKind::Method, finding));
                }
                // The library takes such a file as it is.
                out.notes.push(Diagnostic {
                    severity: Severity::Warning,
                    ..finding
                });
            }
            let of = Member {
                index,
                adapter,
                method,
                fused: &fused,
            };
            let (parts, said) = member(&of, selection, model, seed, &mut store)
                .map_err(|e| e.within(format!("adapter `{}`", adapter.name)))?;
            out.parts.extend(parts);
            notes.extend(said);
        }
        if out.parts.len() == begin && adapter.config.fuses().is_some() {
            return Err(Error::new(ErrorKind::Method, nothing_to_mix(adapter)));
        }
        if out.parts.len() == begin && !Unused::is_all_elsewhere(adapter, selection) {
            return Err(Error::new(ErrorKind::Method, no_place(&adapter.name)));
        }
        out.notes.extend(notes);
        match adapter.base.differs(adapter, selection, model) {
            Some(other) if other.severity == Severity::Error => {
                return Err(Error::new(ErrorKind::Method, other));
            }
            found => out.notes.extend(found),
        }
        if let Some(weights) = &adapter.weights {
            let all = |(n, p): (&'_ str, &'_ Param)| -> Vec<String> {
                let aliases = p.aliases.iter().map(ToString::to_string);
                std::iter::once(n.to_owned()).chain(aliases).collect()
            };
            let names: Vec<String> = store.iter().flat_map(all).collect();
            let names = names.iter().map(String::as_str);
            let mut weights = weights.clone().renamed(&adapter.name);
            let elsewhere = Unused::elsewhere(&mut weights, adapter, selection);
            let mut weights = weights.fitted(names);
            let whole = quantized(&weights, &store);
            if !whole.is_empty() {
                return Err(Error::many(ErrorKind::Method, whole));
            }
            let graph = &model.model().graph;
            let unused = Unused::of(&mut weights, &store, adapter, selection, graph);
            let loaded = store
                .load(&weights)
                .map_err(|e| e.within(format!("adapter `{}`", adapter.name)))?;
            out.notes.extend(unused.notes.iter().cloned());
            out.notes.extend(loaded.said(&adapter.name));
            unused.keep(&adapter.name, &mut store);
            out.notes.extend(elsewhere.notes.iter().cloned());
            elsewhere.keep(&adapter.name, &mut store);
        }
        for (name, param) in store.iter() {
            out.store.insert(name, param.clone());
        }
    }
    Ok(out)
}

fn no_place(name: &str) -> Diagnostic {
    Diagnostic::error(
        "no-place",
        format!("the configuration of `{name}` matches nothing in this model"),
    )
    .help("check which parts it names (attn_matrices, …_lora, …_adapter, leave_out) against `rewrite inspect`")
}

impl Plan<'_> {
    /// Leaves layers without adapters: the library's `skip_layers`. Their parameters are kept for the adapters' files.
    pub(crate) fn skip(
        &mut self,
        layers: &[usize],
        selection: &Selection,
    ) -> std::result::Result<(), Diagnostic> {
        let known = |n: &&usize| selection.layers.iter().any(|l| l.index == **n);
        if let Some(other) = layers.iter().find(|n| !known(n)) {
            let last = selection.layers.iter().map(|l| l.index).max();
            let found = format!("`skip_layers` names layer {other}, which the model does not have");
            return Err(Diagnostic::error("skip-layers", found)
                .help(format!("its layers are 0 to {}", last.unwrap_or_default())));
        }
        let skipped = |p: &Part<'_>| p.place.layer.is_some_and(|l| layers.contains(&l));
        let (gone, kept): (Vec<_>, Vec<_>) = self.parts.drain(..).partition(skipped);
        self.parts = kept;
        let names = |parts: &[Part<'_>]| -> FxHashSet<String> {
            let all = parts.iter().flat_map(|p| p.own.iter().chain(&p.shared));
            all.map(|(_, full)| full.clone()).collect()
        };
        let used = names(&self.parts);
        for name in names(&gone).difference(&used) {
            if let Some(param) = self.store.get(name).cloned() {
                let idle = Param {
                    idle: true,
                    trainable: false,
                    ..param
                };
                self.store.insert(name, idle);
            }
        }
        Ok(())
    }
}

pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.is_empty() || name.contains(['.', ',', '/']) {
        return Err(Error::new(
            ErrorKind::Method,
            Diagnostic::error(
                "adapter-name",
                format!("`{name}` cannot be the name of an adapter"),
            )
            .help("use letters, digits, `-` and `_`: the name becomes part of parameter names"),
        ));
    }
    Ok(())
}

/// The places of the adapters that a fusion mixes.
fn fused<'s>(
    fusion: &Adapter,
    adapters: &[Adapter],
    parts: &[Part<'s>],
) -> Vec<(String, Place<'s>)> {
    let Some(names) = fusion.config.fuses() else {
        return Vec::new();
    };
    let of = |p: &Part<'s>| {
        let name = &adapters[p.adapter].name;
        names
            .contains(name)
            .then(|| (name.clone(), p.place.clone()))
    };
    parts.iter().filter_map(of).collect()
}

/// A fusion whose adapters have no bottleneck.
fn nothing_to_mix(fusion: &Adapter) -> Diagnostic {
    let names = fusion.config.fuses().unwrap_or_default();
    let found = format!(
        "the fusion `{}` mixes bottlenecks behind attention and feed-forward blocks, and `{}` has none",
        fusion.name,
        names.join("` or `")
    );
    Diagnostic::error("fusion-method", found).help(
        "mix adapters such as seq_bn, double_seq_bn or par_bn; compose others with Stack, Average, Parallel or MultiTask",
    )
}

/// Refuses a fusion of adapters that are not there.
fn check_fusion(fusion: &Adapter, adapters: &[Adapter]) -> Result<()> {
    let names = fusion.config.fuses().unwrap_or_default();
    let missing = names
        .iter()
        .find(|n| adapters.iter().all(|a| a.name != **n));
    let message = match missing {
        Some(name) => format!(
            "the fusion `{}` mixes `{name}`, which is not there",
            fusion.name
        ),
        None if names.is_empty() => {
            format!("the fusion `{}` mixes no adapter", fusion.name)
        }
        None => return Ok(()),
    };
    Err(Error::new(
        ErrorKind::Method,
        Diagnostic::error("fusion-adapters", message)
            .help("name the adapters that it mixes: --active 'Fuse(a, b)'"),
    ))
}

/// One method of one adapter.
struct Member<'s, 'f> {
    /// Index of the adapter.
    index: usize,
    adapter: &'s Adapter,
    method: &'s MethodConfig,
    /// What it mixes.
    fused: &'f [(String, Place<'s>)],
}

fn member<'s>(
    of: &Member<'s, '_>,
    selection: &'s Selection,
    model: &'s Verified,
    seed: u64,
    store: &mut AdapterStore,
) -> Result<(Vec<Part<'s>>, Vec<Diagnostic>)> {
    let Member {
        index,
        adapter,
        method,
        fused,
    } = *of;
    let wrong = |d: Diagnostic| Error::new(ErrorKind::Method, d);
    let base = &*selection.base_prefix;
    let has = |scope: &str| {
        // A name in a key ends with a dot.
        let inner = format!("{}.", scope.strip_prefix(base).unwrap_or(scope));
        let weights = adapter.weights.as_ref();
        weights.is_some_and(|w| {
            let inner = renamed(&inner, &adapter.name, &w.adapter);
            w.has(inner.trim_end_matches('.'))
        })
    };
    let around = Surroundings {
        selection,
        graph: &model.model().graph,
        route: &adapter.route,
        name: &adapter.name,
        has: adapter
            .weights
            .is_some()
            .then_some(&has as &dyn Fn(&str) -> bool),
        foreign: adapter.weights.is_some() && !adapter.base.is_ours(),
        by_columns: adapter.weights.is_none() || adapter.base.by_columns(),
        known: model,
        fused,
    };
    let places = method.places(&around).map_err(wrong)?;
    let notes = method.notes(&around, &places);
    let seeding = Seeding {
        seed,
        own: method.seed().filter(|s| *s != 0),
    };
    let dtype = method.dtype().map_err(wrong)?;
    let fresh = adapter.weights.is_none();
    let mut add = |scope: &str, spec: &ParamSpec| -> Result<(String, String)> {
        let (scope, others) = match &*spec.scopes {
            [first, others @ ..] => (&**first, others),
            [] => (scope, &[][..]),
        };
        let name = format!("{scope}.{}", spec.suffix);
        let copies = adapter.route.copies(selection, scope);
        let others = others.iter().chain(&copies);
        let again = others.map(|s| format!("{s}.{}", spec.suffix).into());
        if store.get(&name).is_none() {
            spec.bounded(&name).map_err(wrong)?;
            let tensor = if fresh {
                let (seed, stream) = seeding.stream(&name, &spec.suffix);
                initial(spec, dtype, seed, stream, &name, around.graph).map_err(wrong)?
            } else {
                placeholder(spec, dtype)
            };
            store.insert(
                &name,
                Param {
                    adapter: adapter.name.as_str().into(),
                    tensor,
                    trainable: spec.trainable,
                    idle: spec.idle,
                    decay: decays(&name),
                    to_identity: spec.to_identity,
                    aliases: spec
                        .aliases
                        .iter()
                        .map(|a| format!("{scope}.{a}").into())
                        .chain(again)
                        .collect(),
                },
            );
        }
        Ok((spec.suffix.clone(), name))
    };
    let shared_scope = scope(&adapter.route.shared(selection), "", &adapter.name);
    let mut shared = Vec::new();
    for spec in method.shared(&places).map_err(wrong)? {
        shared.push(add(&shared_scope, &spec)?);
    }
    let mut parts = Vec::with_capacity(places.len());
    for place in places {
        let specs = method.params(&place).map_err(wrong)?;
        let own = specs
            .iter()
            .map(|s| add(&place.scope, s))
            .collect::<Result<_>>()?;
        parts.push(Part {
            adapter: index,
            method,
            place,
            own,
            shared: shared.clone(),
        });
    }
    Ok((parts, notes))
}

/// Where initial values come from.
struct Seeding {
    seed: u64,
    own: Option<i64>,
}

impl Seeding {
    /// `init_weights_seed` gives modules of equal shape equal values, as in the library; otherwise every parameter has its own.
    fn stream<'n>(&self, name: &'n str, suffix: &'n str) -> (u64, &'n str) {
        match self.own {
            Some(own) => (own as u64, suffix),
            None => (self.seed, name),
        }
    }
}

fn initial(
    spec: &ParamSpec,
    dtype: DType,
    seed: u64,
    stream: &str,
    name: &str,
    graph: &Graph,
) -> Result<TensorData, Diagnostic> {
    let Some(values) = spec.init.values(&spec.dims(), seed, stream, graph) else {
        return Err(Diagnostic::error(
            "initial-value",
            format!("the initial value of `{name}` is taken from a base weight that is not stored as floats"),
        )
        .help("use a method that does not read the base weights (lora, ia3)"));
    };
    let tensor = TensorData::from_f32(dims(spec), &values);
    crate::adapters::store::convert(&tensor, dtype)
        .ok_or_else(|| Diagnostic::error("dtype", format!("`{name}` cannot be {dtype}")))
}

/// Shape and type without elements, to be filled from a file.
fn placeholder(spec: &ParamSpec, dtype: DType) -> TensorData {
    TensorData::raw(dtype, dims(spec), Bytes::new())
}

fn dims(spec: &ParamSpec) -> Box<[u64]> {
    spec.shape.iter().map(|d| d.get() as u64).collect()
}
