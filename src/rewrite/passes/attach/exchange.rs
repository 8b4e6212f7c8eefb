//! Adapters that a running model exchanges: their parameters are optional inputs of the graph, and what these are where nothing is given
//! leaves the model as it is. One graph serves every adapter of its kinds, of whatever rank or length.
//!
//! A kind is what adapters at a place have in common once ranks, scales and values are taken out of it. Where several kinds meet, each
//! reads what the one before it made. Names of inputs are those of modules, without any adapter's name.

mod inputs;

use self::inputs::{Input, Inputs};
use super::compose::{Composer, Used, stamped};
use super::tenants::is_one_place;
use super::{GroupKey, grouped};
use crate::adapters::manifest::Exchangeable;
use crate::adapters::methods::MethodConfig;
use crate::adapters::naming::nameless;
use crate::adapters::param::ParamSpec;
use crate::adapters::place::{At, BuildCx, Exchanged, Given, Params, Place, State, wider};
use crate::adapters::plan::{Part, Plan};
use crate::adapters::{Adapter, AdapterStore};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::infer::Verified;
use crate::ir::contract;
use crate::ir::{Builder, DType, Graph, TensorData, Val};
use crate::rewrite::PassError;
use crate::rewrite::passes::merge::Evaluate;
use crate::rewrite::passes::merge::expression::standalone;
use indexmap::IndexMap;
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

/// How parameters become inputs.
#[derive(Clone)]
pub(crate) struct Exchanging {
    /// What runs the expressions that they are made of.
    pub evaluate: Arc<Evaluate>,
    /// Their element type.
    pub dtype: DType,
}

impl fmt::Debug for Exchanging {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut f = f.debug_struct("Exchanging");
        f.field("dtype", &self.dtype).finish_non_exhaustive()
    }
}

/// Parameters of an adapter, by the names of the graph's inputs.
pub(crate) type Tensors = IndexMap<Box<str>, TensorData>;

/// Everything that a graph with exchanged adapters is made of, and the adapters' files.
#[derive(Debug)]
pub(crate) struct Exchange<'s> {
    kinds: BTreeMap<GroupKey, Vec<Kind<'s>>>,
    inputs: Inputs,
    /// For each adapter its parameters.
    pub files: Vec<Tensors>,
}

/// Adapters with one subgraph at a place.
#[derive(Debug)]
struct Kind<'s> {
    config: MethodConfig,
    place: Place<'s>,
    /// The parameters: name inside the module, and index of the input.
    own: Vec<(String, usize)>,
    shared: Vec<(String, usize)>,
}

/// One adapter at a place, with what its parameters are made of.
struct Made<'s> {
    adapter: usize,
    config: MethodConfig,
    place: Place<'s>,
    own: Vec<Wanted>,
    shared: Vec<Wanted>,
}

/// A parameter on its way to an input.
struct Wanted {
    spec: ParamSpec,
    transposed: bool,
    /// The input's name, as far as no other kind has it.
    name: String,
    /// Its place among what is evaluated.
    value: usize,
}

impl<'s> Exchange<'s> {
    /// Decides kinds, names and values. `known` is what a graph has inputs for already.
    ///
    /// # Errors
    /// Adapters that cannot be exchanged, and why; two kinds of prefixes at one attention.
    pub(crate) fn of(
        planned: &Plan<'s>,
        adapters: &[Adapter],
        model: &Verified,
        how: &Exchanging,
        known: &[Exchangeable],
    ) -> Result<Self, PassError> {
        let graph = &model.model().graph;
        let opset = model.model().opset("").unwrap_or(17);
        let mut maker = Maker {
            adapters,
            store: &planned.store,
            graph,
            b: Builder::new(opset),
            made: RefCell::default(),
            once: RefCell::default(),
            named: FxHashMap::default(),
            values: Vec::new(),
        };
        let mut found: BTreeMap<GroupKey, Vec<Made<'s>>> = BTreeMap::new();
        for (key, group) in grouped(&planned.parts, graph)? {
            let parts = group.into_iter().map(|part| maker.exchanged(part));
            found.insert(key, parts.collect::<Result<_, _>>()?);
        }
        let values = maker.evaluated(opset, &*how.evaluate)?;
        let mut inputs = Inputs::new(known, how.dtype);
        let mut kinds = BTreeMap::new();
        for (key, parts) in found {
            let mut here: Vec<Kind<'s>> = Vec::new();
            for made in parts {
                let at = here.iter().position(|k| k.takes(&made));
                let at = at.unwrap_or_else(|| {
                    let kind = Kind::new(&made, &here, &mut inputs);
                    here.push(kind);
                    here.len() - 1
                });
                let kind = &here[at];
                let pairs = kind.own.iter().zip(&made.own);
                for ((_, input), wanted) in pairs.chain(kind.shared.iter().zip(&made.shared)) {
                    inputs.give(*input, made.adapter, values[wanted.value].clone());
                }
            }
            if here.len() > 1 && matches!(here[0].place.at, At::Attention(_)) {
                return Err(two_kinds(&here[0].place).into());
            }
            kinds.insert(key, here);
        }
        for kind in kinds.values().flatten() {
            let all = kind.own.iter().chain(&kind.shared).map(|(_, i)| *i);
            inputs.settle(&all.collect::<Vec<_>>());
        }
        inputs.finish(graph)?;
        let files = inputs.files(adapters.len())?;
        Ok(Exchange {
            kinds,
            inputs,
            files,
        })
    }

    /// What the manifest says of the inputs.
    pub(crate) fn exchangeable(&self) -> Vec<Exchangeable> {
        self.inputs.exchangeable()
    }
}

impl<'s> Kind<'s> {
    /// Whether an adapter is of the kind.
    fn takes(&self, made: &Made<'_>) -> bool {
        let named = |mine: &[(String, usize)], own: &[Wanted]| {
            let theirs = own.iter().map(|w| &w.spec.suffix);
            mine.iter().map(|(suffix, _)| suffix).eq(theirs)
        };
        self.config == made.config
            && self.place.detail == made.place.detail
            && is_one_place(&self.place.at, &made.place.at)
            && named(&self.own, &made.own)
            && named(&self.shared, &made.shared)
    }

    fn new(made: &Made<'s>, others: &[Kind<'_>], inputs: &mut Inputs) -> Self {
        // Another kind at this place has inputs of its own, whatever they are called.
        let apart: Vec<usize> = others
            .iter()
            .flat_map(|k| k.own.iter().map(|(_, i)| *i))
            .collect();
        let mut of = |wanted: &[Wanted], apart: &[usize]| -> Vec<(String, usize)> {
            let input = |w: &Wanted| {
                let wanted = (&*w.name, &w.spec, w.transposed);
                (
                    w.spec.suffix.clone(),
                    inputs.find(&made.config, wanted, apart),
                )
            };
            wanted.iter().map(input).collect()
        };
        Kind {
            own: of(&made.own, &apart),
            shared: of(&made.shared, &[]),
            config: made.config.clone(),
            place: made.place.clone(),
        }
    }
}

/// Prefixes of two kinds, of which neither is in front of the other.
fn two_kinds(place: &Place<'_>) -> Diagnostic {
    Diagnostic::error(
        "exchange-kinds",
        "two kinds of adapters meet at one attention, where one graph has room for one",
    )
    .at(place.scope.clone())
    .help("export them into graphs of their own: one `rewrite export-adapter` for each")
}

/// Makes the expressions of parameters.
struct Maker<'w> {
    adapters: &'w [Adapter],
    store: &'w AdapterStore,
    graph: &'w Graph,
    b: Builder,
    /// Parameters that are there, by name.
    made: RefCell<FxHashMap<String, Val>>,
    once: RefCell<BTreeMap<String, Val>>,
    /// What was made for an adapter under a name.
    named: FxHashMap<(usize, String), usize>,
    /// What is evaluated: an expression, or a parameter as it is.
    values: Vec<Source>,
}

enum Source {
    Stored(TensorData),
    Computed(Val),
}

impl Maker<'_> {
    fn exchanged<'s>(&mut self, part: &Part<'s>) -> Result<Made<'s>, PassError> {
        let owner = &self.adapters[part.adapter].name;
        let none = FxHashMap::default();
        let params = |names: &[(String, String)]| -> Result<Vec<(String, Val)>, Diagnostic> {
            let each = names
                .iter()
                .map(|(s, full)| Ok((s.clone(), self.parameter(full)?)));
            each.collect()
        };
        let (own, shared) = (params(&part.own)?, params(&part.shared)?);
        let p = Params {
            own: &own,
            shared: &shared,
        };
        let cx = BuildCx::new(&self.b, self.graph, DType::Float, false, &none, &self.once);
        cx.owner.borrow_mut().clone_from(owner);
        let found = part.method.exchanged(&part.place, &p, &cx);
        let Exchanged {
            config,
            detail,
            own,
            shared,
        } = found.map_err(|why| refused(owner, part, why))?;
        let mut place = part.place.clone();
        place.detail = detail;
        let scope = |spec: &ParamSpec| match spec.scopes.first() {
            Some(scope) => scope.clone(),
            None => part.place.scope.clone(),
        };
        let home = |spec: &ParamSpec| {
            let there = part
                .shared
                .iter()
                .find(|(suffix, _)| *suffix == spec.suffix);
            let full = there.map_or("", |(_, full)| full);
            let scope = full.strip_suffix(&*spec.suffix).unwrap_or_default();
            scope.trim_end_matches('.').to_owned()
        };
        let own = self.wanted(part.adapter, &own, config.params(&place)?, &scope)?;
        let specs = config.shared(std::slice::from_ref(&place))?;
        let shared = self.wanted(part.adapter, &shared, specs, &home)?;
        Ok(Made {
            adapter: part.adapter,
            config,
            place,
            own,
            shared,
        })
    }

    /// A parameter in `f32`.
    fn parameter(&self, full: &str) -> Result<Val, Diagnostic> {
        if let Some(v) = self.made.borrow().get(full) {
            return Ok(*v);
        }
        let missing = || Diagnostic::error("param", format!("there is no parameter `{full}`"));
        let tensor = &self.store.get(full).ok_or_else(missing)?.tensor;
        let v = self.b.initializer(full, tensor.clone());
        let v = if tensor.dtype == DType::Float {
            v
        } else {
            self.b.cast(v, DType::Float)
        };
        self.made.borrow_mut().insert(full.to_owned(), v);
        Ok(v)
    }

    /// The parameters that a configuration asks for, with their names and what they are made of.
    fn wanted(
        &mut self,
        adapter: usize,
        given: &[Given],
        specs: Vec<ParamSpec>,
        scope: &dyn Fn(&ParamSpec) -> String,
    ) -> Result<Vec<Wanted>, Diagnostic> {
        let mut out = Vec::with_capacity(given.len());
        for spec in specs.into_iter().filter(|s| !s.idle) {
            let Some(given) = given.iter().find(|g| g.suffix == spec.suffix) else {
                let found = format!("`{}` is asked for, and nothing makes it", spec.suffix);
                return Err(Diagnostic::error("exchange", found));
            };
            let full = format!("{}.{}", scope(&spec), given.name);
            let name = nameless(&full, &self.adapters[adapter].name);
            let key = (adapter, name.clone());
            let there = self.named.get(&key).copied();
            let value = there.unwrap_or_else(|| {
                self.values.push(self.source(given.value));
                self.named.insert(key, self.values.len() - 1);
                self.values.len() - 1
            });
            out.push(Wanted {
                transposed: given.transposed,
                spec,
                name,
                value,
            });
        }
        Ok(out)
    }

    fn source(&self, v: Val) -> Source {
        let Val::New(ix) = v else {
            return Source::Computed(v);
        };
        let stored = self.b.peek().values[ix as usize].tensor.clone();
        stored.map_or(Source::Computed(v), Source::Stored)
    }

    /// The values, in order.
    fn evaluated(self, opset: i64, evaluate: &Evaluate) -> Result<Vec<TensorData>, Error> {
        let computed = self.values.iter().filter_map(|s| match s {
            Source::Computed(v) => Some(*v),
            Source::Stored(_) => None,
        });
        // One value may stand for several parameters.
        let mut outputs: Vec<Val> = computed.collect();
        let wanted = outputs.clone();
        outputs.sort_unstable();
        outputs.dedup();
        let mut results = Vec::new();
        if !outputs.is_empty() {
            let model = standalone(
                self.b.finish(),
                (self.graph, &FxHashMap::default()),
                &outputs,
                opset,
            )?;
            results = evaluate(&model)?;
        }
        let by_value: FxHashMap<Val, TensorData> = outputs.into_iter().zip(results).collect();
        let mut computed = wanted.into_iter().filter_map(|v| by_value.get(&v).cloned());
        let each = self.values.into_iter().map(|s| match s {
            Source::Stored(t) => Some(t),
            Source::Computed(_) => computed.next(),
        });
        let all: Option<Vec<TensorData>> = each.collect();
        let missing = || Diagnostic::error("exchange", "a parameter could not be computed");
        all.ok_or_else(|| Error::new(ErrorKind::Method, missing()))
    }
}

fn refused(owner: &str, part: &Part<'_>, why: &str) -> Diagnostic {
    let method = part.method.name();
    let found = format!("`{owner}` ({method}) cannot be an input of the graph: {why}");
    Diagnostic::error("exchange-method", found)
        .at(part.place.scope.clone())
        .help("attach it (`rewrite model.onnx --adapter …`), or merge it where its method allows (`rewrite merge`)")
}

impl Composer<'_> {
    /// What stands for a place's value where any adapter may come in; `opened` says what flows through a place before any.
    pub(super) fn exchange(
        &self,
        (key, exchange): (&GroupKey, &Exchange<'_>),
        opened: &dyn Fn(&Place<'_>) -> State,
        cx: &BuildCx<'_>,
        used: &mut Used<'_, '_>,
    ) -> Result<Option<Val>, PassError> {
        let b = cx.b;
        let mut value = None;
        for kind in exchange.kinds.get(key).into_iter().flatten() {
            let computed = wider(DType::Float, cx.base);
            b.set_float(computed);
            cx.owner.borrow_mut().replace_range(.., contract::EXCHANGED);
            let mut params = |of: &[(String, usize)]| -> Vec<(String, Val)> {
                let each = of.iter().map(|(suffix, input)| {
                    let input = exchange.inputs.at(*input);
                    let v = self.input(input, b, used);
                    let v = if input.dtype == computed {
                        v
                    } else {
                        b.cast(v, computed)
                    };
                    if input.transposed {
                        b.mark_transposed(v);
                    }
                    (suffix.clone(), v)
                });
                each.collect()
            };
            b.set_stamp(stamped(contract::EXCHANGED));
            let module = kind.own.first().map_or("", |(suffix, input)| {
                let name = &exchange.inputs.at(*input).name;
                name.strip_suffix(&**suffix).unwrap_or(name)
            });
            b.set_scope(&self.fresh_scope(module.trim_end_matches('.')));
            let (own, shared) = (params(&kind.own), params(&kind.shared));
            let p = Params {
                own: &own,
                shared: &shared,
            };
            let mut state = opened(&kind.place);
            if let Some(before) = value {
                state.out = before;
                if !matches!(kind.place.at, At::Linear(_)) {
                    state.x = before;
                }
            }
            let state = kind.config.step(&kind.place, state, &p, cx)?;
            value = Some(kind.config.close(&kind.place, state, &p, cx)?);
        }
        Ok(value)
    }

    /// A parameter as an input of the graph; made once.
    fn input(&self, input: &Input, b: &Builder, used: &mut Used<'_, '_>) -> Val {
        if let Some(id) = self.values.get(&*input.name) {
            return Val::Old(*id);
        }
        if let Some((_, v)) = used.made.iter().find(|(n, _)| **n == *input.name) {
            return *v;
        }
        let stamp = stamped(contract::EXCHANGED);
        let v = if input.is_constant() {
            b.set_stamp(stamp);
            b.initializer(&input.name, input.default.clone())
        } else {
            b.optional_input(&input.name, input.ty(), input.default.clone(), stamp)
        };
        used.made.push((input.name.to_string(), v));
        v
    }
}
