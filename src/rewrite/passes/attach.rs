//! Attaching adapters: for each place, the nodes of all adapters that are active there, and one value that takes the place's own.
//!
//! Nodes stand right behind the node they serve. Everything added is stamped in `metadata_props`, so that [`Strip`](super::Strip) finds
//! it in a file as well. Linear in the size of the graph.

use crate::adapters::place::{At, BuildCx, Params, Place, State, wider};
use crate::adapters::plan::{Part, Plan, plan};
use crate::adapters::sequence::Longer;
use crate::adapters::{Adapter, Param, Setup, param_stamps, stamp};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::ir::{
    Builder, DType, Dim, Fact, Graph, Metadata, Model, Type, TypeKind, Use, Val, ValueId,
};
use crate::rewrite::{Pass, PassCx, PassError, Patch, Uses};
use crate::select::{LinearSite, Selection};
use rustc_hash::FxHashMap;
use serde_json::{Map, Value, json};
use std::cell::RefCell;
use std::collections::BTreeMap;

/// Attaches adapters to the places that an interface selected.
#[derive(Clone, Debug)]
pub struct Attach {
    /// The sites, selected in the model that the pass runs on.
    pub selection: Selection,
    /// Which adapters are active, and how they are put together.
    pub setup: Setup,
    /// The adapters.
    pub adapters: Vec<Adapter>,
    /// Seed of initial values.
    pub seed: u64,
    /// Whether dropout and stochastic depth are wanted.
    pub training: bool,
}

impl Attach {
    /// One adapter, for inference, with initial values of seed 0 where it has no weights.
    pub fn new(selection: Selection, adapter: Adapter) -> Self {
        Attach {
            selection,
            setup: Setup::Single(adapter.name.clone()),
            adapters: vec![adapter],
            seed: 0,
            training: false,
        }
    }
}

impl Pass for Attach {
    fn name(&self) -> &'static str {
        "attach"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let names: Vec<&str> = self.adapters.iter().map(|a| &*a.name).collect();
        check_names(&names, cx.model())?;
        self.setup.check(&names)?;
        let before = cx.before();
        let facts = |v: ValueId| before.fact(v).cloned();
        let graph = &before.model().graph;
        let Plan {
            parts,
            store,
            loaded,
            notes,
        } = plan(&self.adapters, &self.selection, graph, &facts, self.seed)?;
        for note in notes {
            cx.warn(note);
        }
        for (adapter, heads) in self.adapters.iter().zip(loaded) {
            let heads = heads.map(|l| l.heads).unwrap_or_default();
            if !heads.is_empty() {
                cx.warn(
                    Diagnostic::warning(
                        "head-ignored",
                        format!(
                            "the file of `{}` also holds {}",
                            adapter.name,
                            heads.join(", ")
                        ),
                    )
                    .help("the graph has its own head, which is used"),
                );
            }
        }
        let groups = grouped(&parts, graph)?;
        let mut writer = Writer {
            pass: self,
            params: store.iter().collect(),
            current: current_values(graph),
            values: FxHashMap::default(),
            once: RefCell::default(),
            scopes: RefCell::default(),
        };
        for group in groups.values() {
            writer.write(group, cx)?;
        }
        let longer = parts.iter().filter_map(|p| match &p.place.at {
            At::Sequence(longer) => Some(&**longer),
            _ => None,
        });
        for longer in longer {
            declare_outputs(longer, cx)?;
        }
        let manifest = manifest(cx.model(), self);
        let mut patch = cx.patch("manifest", None);
        patch.model_metadata(stamp::MANIFEST, Some(&manifest));
        cx.commit(patch)?;
        Ok(())
    }
}

fn check_names(names: &[&str], model: &Model) -> Result<(), Diagnostic> {
    let there = attached(model);
    for (i, name) in names.iter().enumerate() {
        if there.iter().any(|t| t == name) {
            return Err(Diagnostic::error(
                "adapter-twice",
                format!("an adapter `{name}` is attached to this model already"),
            )
            .help("strip it first, or attach under another name"));
        }
        if names[..i].contains(name) {
            return Err(Diagnostic::error(
                "adapter-twice",
                format!("two adapters are called `{name}`"),
            )
            .help("give one of them another name: `NAME=SPEC`"));
        }
    }
    Ok(())
}

/// Names of the adapters that are attached to a model.
pub fn attached(model: &Model) -> Vec<String> {
    let Some(text) = model.metadata.get(stamp::MANIFEST) else {
        return Vec::new();
    };
    let manifest: Value = serde_json::from_str(text).unwrap_or_default();
    let adapters = manifest["adapters"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    adapters
        .iter()
        .filter_map(|a| a["name"].as_str().map(str::to_owned))
        .collect()
}

/// The model's manifest with these adapters added.
fn manifest(model: &Model, pass: &Attach) -> String {
    let old = model
        .metadata
        .get(stamp::MANIFEST)
        .and_then(|t| serde_json::from_str::<Value>(t).ok());
    let mut adapters = old
        .as_ref()
        .and_then(|o| o["adapters"].as_array().cloned())
        .unwrap_or_default();
    adapters.extend(pass.adapters.iter().map(|a| {
        let mut entry = Map::new();
        entry.insert("name".into(), a.name.clone().into());
        entry.insert("config".into(), a.config.to_dict());
        entry.insert("config_id".into(), a.config.hash().into());
        entry.insert("route".into(), a.route.to_string().into());
        Value::Object(entry)
    }));
    json!({ "tool": concat!("onnx-graft ", env!("CARGO_PKG_VERSION")), "adapters": adapters })
        .to_string()
}

/// Order of places: where their value is made, then their rank; with the index of the first part to keep equal ones apart.
type GroupKey = (usize, u8, ValueId);

fn grouped<'p, 's>(
    parts: &'p [Part<'s>],
    graph: &Graph,
) -> Result<BTreeMap<GroupKey, Vec<&'p Part<'s>>>, PassError> {
    let order = graph
        .order()
        .map_err(|c| Diagnostic::error("cycle", c.to_string()))?;
    let mut position = vec![0; graph.index_bound()];
    for (i, n) in order.iter().enumerate() {
        position[n.index()] = i + 1;
    }
    let mut groups: BTreeMap<GroupKey, Vec<&Part<'_>>> = BTreeMap::new();
    for part in parts {
        let target = part.place.target();
        let at = graph
            .producer(target)
            .map_or(0, |(n, _)| position[n.index()]);
        let group = groups.entry((at, part.place.rank(), target)).or_default();
        if let Some(other) = group.iter().find(|p| p.adapter == part.adapter) {
            return Err(Diagnostic::error(
                "union-place",
                format!("two members of one adapter meet at `{}`", other.place.scope),
            )
            .help("members of a union must be at different places")
            .into());
        }
        group.push(part);
    }
    Ok(groups)
}

/// What adapters that are attached already put in the place of a value: the last of each chain.
fn current_values(graph: &Graph) -> FxHashMap<ValueId, ValueId> {
    let mut out: FxHashMap<ValueId, ValueId> = FxHashMap::default();
    for n in graph.nodes() {
        let metadata = &graph.node(n).metadata;
        if let Some(name) = metadata.get(stamp::REPLACES)
            && !metadata.contains_key(stamp::READERS)
            && let (Some(old), Some(new)) = (graph.find(name), graph.output(n, 0))
        {
            out.insert(old, new);
        }
    }
    let starts: Vec<ValueId> = out.keys().copied().collect();
    for start in starts {
        let mut end = out[&start];
        let mut steps = out.len();
        while let (Some(next), true) = (out.get(&end).copied(), steps > 0) {
            end = next;
            steps -= 1;
        }
        out.insert(start, end);
    }
    out
}

struct Writer<'w> {
    pass: &'w Attach,
    params: FxHashMap<&'w str, &'w Param>,
    /// What stands for a value of the base model by now.
    current: FxHashMap<ValueId, ValueId>,
    /// Parameters that are in the graph.
    values: FxHashMap<String, ValueId>,
    /// Values that several places use: masks and the like.
    once: RefCell<BTreeMap<String, Val>>,
    /// How often a scope was used for names.
    scopes: RefCell<FxHashMap<String, usize>>,
}

impl Writer<'_> {
    fn write(&mut self, group: &[&Part<'_>], cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let Some(first) = group.first() else {
            return Ok(());
        };
        let place = &first.place;
        let base = Self::base_dtype(place.target(), place.linear().map(|l| l.weight.value), cx);
        let mut patch = cx.patch(
            format!("adapters at {}", place.scope),
            place.anchor(&cx.model().graph),
        );
        let target = place.target();
        let graph = &cx.model().graph;
        let mut made = Vec::new();
        let old = self.now(target);
        let moves;
        let new = {
            let b = patch.builder();
            let build = BuildCx::new(
                b,
                graph,
                base,
                self.pass.training,
                &self.current,
                &self.once,
            );
            b.set_scope(&self.fresh_scope(&format!("{}/input", place.scope)));
            b.set_stamp(stamped(&self.pass.adapters[first.adapter].name));
            let state = open(place, &build, cx);
            let mut used = Used::default();
            // ReFT and invertible adapters do not compose in the library: the first one of the setup is the one.
            let alone = matches!(
                place.at,
                At::Layer(_) | At::Embeddings(_) | At::HeadInput(_) | At::Sequence(_) | At::Mask(_)
            );
            let first = self.pass.setup.first().map(Setup::from);
            let setup = first.as_ref().filter(|_| alone).unwrap_or(&self.pass.setup);
            let state = self.apply(setup, group, state, &build, &mut used)?;
            let Some((part, own, shared)) = used.last else {
                return Ok(());
            };
            made.append(&mut used.made);
            let params = Params {
                own: &own,
                shared: &shared,
            };
            let new = part.method.close(&part.place, state, &params, &build)?;
            moves = build.moves.take();
            sealed(b, new)
        };
        let uses = match &place.at {
            At::HeadInput(site) => Uses::Only(readers(graph, old, &site.nodes)),
            At::Linear(_)
            | At::Sublayer(_)
            | At::Layer(_)
            | At::Embeddings(_)
            | At::Sequence(_)
            | At::Mask(_)
            | At::Attention(_) => Uses::All,
        };
        Self::mark(patch.builder(), graph, old, new, &uses, place.kind());
        if let At::Sequence(longer) = &place.at {
            forget_shapes(longer, graph, &mut patch);
        }
        for (old, new, uses) in &moves {
            patch.redirect(*old, *new, Uses::Only(uses.clone()));
        }
        patch.redirect(old, new, uses.clone());
        let applied = cx.commit(patch)?;
        for (old, new, _) in moves {
            self.current.insert(old, applied.value(new));
        }
        for (name, v) in made {
            self.values.insert(name, applied.value(v));
        }
        for v in self.once.borrow_mut().values_mut() {
            *v = Val::Old(applied.value(*v));
        }
        if uses == Uses::All {
            self.current.insert(target, applied.value(new));
        }
        Ok(())
    }

    fn now(&self, value: ValueId) -> ValueId {
        self.current.get(&value).copied().unwrap_or(value)
    }

    fn base_dtype(value: ValueId, weight: Option<ValueId>, cx: &PassCx<'_>) -> DType {
        let known = cx.fact(value).and_then(|f| f.dtype);
        let graph = &cx.model().graph;
        let stored = || weight.and_then(|w| graph.get_value(w)?.tensor.as_ref().map(|t| t.dtype));
        known
            .or_else(stored)
            .filter(|d| d.is_float())
            .unwrap_or(DType::Float)
    }

    /// Stamps the node that makes the value of the place. A replaced graph output hands its name on and gets the new value's.
    fn mark(b: &Builder, graph: &Graph, old: ValueId, new: Val, uses: &Uses, kind: &str) {
        let inner = match new {
            Val::New(ix) if *uses == Uses::All && graph.is_output(old) => {
                b.peek().values[ix as usize].name.clone()
            }
            Val::New(_) | Val::Old(_) => graph.name_of(old).into(),
        };
        b.mark_last_node(stamp::REPLACES, &inner);
        b.mark_last_node(stamp::PLACE, kind);
        if *uses != Uses::All {
            b.mark_last_node(stamp::READERS, "some");
        }
    }

    /// Runs the composition on what flows through the place.
    fn apply<'g, 's>(
        &self,
        setup: &Setup,
        group: &'g [&'g Part<'s>],
        state: State,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        match setup {
            Setup::Single(name) => {
                let found = group
                    .iter()
                    .find(|p| self.pass.adapters[p.adapter].name == *name);
                let Some(part) = found else { return Ok(state) };
                self.enter(part, cx, used)?;
                let Some((_, own, shared)) = &used.last else {
                    return Ok(state);
                };
                let params = Params { own, shared };
                Ok(part.method.step(&part.place, state, &params, cx)?)
            }
            Setup::Stack(children) => {
                let mut state = state;
                for child in children {
                    state = self.apply(child, group, state, cx, used)?;
                }
                Ok(state)
            }
        }
    }

    /// Makes the part's parameters, and names and stamps what follows as its own.
    fn enter<'g, 's>(
        &self,
        part: &'g Part<'s>,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<(), PassError> {
        let b = cx.b;
        let name = &self.pass.adapters[part.adapter].name;
        let stored = part.method.dtype()?;
        let computed = wider(stored, cx.base);
        b.set_float(computed);
        cx.owner.borrow_mut().clone_from(name);
        b.set_scope(&self.fresh_scope(&part.place.scope));
        let mut fetch = |names: &[(String, String)]| -> Result<Vec<(String, Val)>, PassError> {
            names
                .iter()
                .map(|(suffix, full)| Ok((suffix.clone(), self.parameter(full, b, used)?)))
                .collect()
        };
        let mut shared = fetch(&part.shared)?;
        let mut own = fetch(&part.own)?;
        b.set_stamp(stamped(name));
        if stored != computed {
            for (_, v) in own.iter_mut().chain(&mut shared) {
                *v = b.cast(*v, computed);
            }
        }
        used.last = Some((part, own, shared));
        Ok(())
    }

    /// The scope, with a number when it was used before: a module that is called twice, an adapter that is inverted.
    fn fresh_scope(&self, scope: &str) -> String {
        let mut scopes = self.scopes.borrow_mut();
        let count = scopes.entry(scope.to_owned()).or_insert(0);
        *count += 1;
        match *count {
            1 => scope.to_owned(),
            n => format!("{scope}/{n}"),
        }
    }

    fn parameter(
        &self,
        full: &str,
        b: &Builder,
        used: &mut Used<'_, '_>,
    ) -> Result<Val, PassError> {
        if let Some(id) = self.values.get(full) {
            return Ok(Val::Old(*id));
        }
        if let Some((_, v)) = used.made.iter().find(|(n, _)| n == full) {
            return Ok(*v);
        }
        let Some(param) = self.params.get(full) else {
            let finding = Diagnostic::error("param", format!("there is no parameter `{full}`"));
            return Err(Error::new(ErrorKind::Method, finding).into());
        };
        b.set_stamp(param_stamps(param));
        let v = b.initializer(full, param.tensor.clone());
        used.made.push((full.to_owned(), v));
        Ok(v)
    }
}

/// Parameters in the graph, by their names inside the module.
type Values = Vec<(String, Val)>;

/// What the adapters of one place have used so far.
#[derive(Default)]
struct Used<'g, 's> {
    /// The last adapter and its parameters.
    last: Option<(&'g Part<'s>, Values, Values)>,
    /// Parameters made in this patch.
    made: Vec<(String, Val)>,
}

/// The stamp of an adapter's nodes.
fn stamped(adapter: &str) -> Metadata {
    let mut stamps = Metadata::default();
    stamps.insert(stamp::ADAPTER.into(), adapter.into());
    stamps
}

/// What flows through a place before any adapter.
fn open(place: &Place<'_>, build: &BuildCx<'_>, cx: &PassCx<'_>) -> State {
    let mut values = None;
    let (x, out, residual) = match &place.at {
        At::Linear(site) => {
            let (x, out) = (build.current(site.input), build.current(site.output));
            (like(x, out, site, build, cx), out, None)
        }
        At::Sublayer(site) => {
            let o = build.current(site.output);
            (o, o, site.residual.map(|r| build.current(r)))
        }
        At::Attention(core) => {
            let (x, like) = (build.current(core.input), build.current(core.like));
            let x = leading(x, like, [core.input, core.like], core.width, build, cx);
            values = Some(build.current(core.values));
            (x, build.current(core.scores), None)
        }
        At::Layer(_) | At::Embeddings(_) | At::HeadInput(_) | At::Sequence(_) | At::Mask(_) => {
            let v = build.current(place.target());
            (v, v, None)
        }
    };
    State {
        x,
        out,
        residual,
        delta: None,
        values,
    }
}

/// A linear's input with the leading axes of its output: a `Gemm` reads rows of a flattened batch.
fn like(x: Val, out: Val, site: &LinearSite, build: &BuildCx<'_>, cx: &PassCx<'_>) -> Val {
    leading(x, out, [site.input, site.output], site.d_in, build, cx)
}

/// `x` with the leading axes of `out`; `of` are the values of the base model that they stand for.
fn leading(
    x: Val,
    out: Val,
    of: [ValueId; 2],
    width: usize,
    build: &BuildCx<'_>,
    cx: &PassCx<'_>,
) -> Val {
    let [have, want] = of.map(|v| cx.fact(v).and_then(Fact::rank));
    match (have, want) {
        (Some(have), Some(want)) if have != want => {
            let b = build.b;
            let leading = b.slice(b.shape(out), 0, 0, -1);
            let shape = b.concat(&[leading, b.ints(&[width as i64])], 0);
            b.reshape(x, shape)
        }
        _ => x,
    }
}

/// What is declared of values whose length changes is no longer true. The last node remembers the types of outputs.
fn forget_shapes(longer: &Longer, graph: &Graph, patch: &mut Patch) {
    let mut outputs = Map::new();
    for port in graph.outputs() {
        let (Some(ty), true) = (&port.ty, longer.behind.contains(&port.value)) else {
            continue;
        };
        let (Some(dtype), Some(dims)) = (ty.dtype(), ty.dims()) else {
            continue;
        };
        let dims: Vec<Value> = dims
            .iter()
            .map(|d| match d {
                Dim::Known(n) => json!(n),
                Dim::Symbol(s) => json!(s),
                Dim::Unknown => Value::Null,
            })
            .collect();
        let name = graph.name_of(port.value).to_owned();
        outputs.insert(name, json!([dtype.name(), dims]));
        let open = TypeKind::Tensor { dtype, dims: None };
        patch.output_type(
            port.value,
            Some(Type {
                kind: open,
                exact: None,
            }),
        );
    }
    if !outputs.is_empty() {
        let text = Value::Object(outputs).to_string();
        patch.builder().mark_last_node(stamp::OUTPUTS, &text);
    }
    patch.forget(longer.behind.clone());
}

/// The types of outputs whose length has changed, as [`stamp::OUTPUTS`] remembers them.
pub(super) fn remembered_outputs(text: &str) -> Vec<(String, Type)> {
    let Ok(Value::Object(outputs)) = serde_json::from_str(text) else {
        return Vec::new();
    };
    let dim = |d: &Value| match d {
        Value::String(s) => Dim::Symbol(s.as_str().into()),
        d => d.as_i64().map_or(Dim::Unknown, Dim::Known),
    };
    let typed = |(name, ty): (String, Value)| {
        let dtype = DType::from_name(ty[0].as_str()?)?;
        let dims: Vec<Dim> = ty[1].as_array()?.iter().map(dim).collect();
        Some((name, Type::tensor(dtype, dims)))
    };
    outputs.into_iter().filter_map(typed).collect()
}

/// Declares outputs behind the embeddings as they are inferred now.
fn declare_outputs(longer: &Longer, cx: &mut PassCx<'_>) -> Result<(), PassError> {
    let verified = cx.verified()?;
    let graph = &verified.model().graph;
    let before = cx.before().model();
    let mut patch = cx.patch("outputs", None);
    for port in graph.outputs() {
        let name = graph.name_of(port.value);
        let old =
            before.graph.outputs().iter().find(|p| {
                before.graph.name_of(p.value) == name && longer.behind.contains(&p.value)
            });
        let Some(old) = old.and_then(|p| p.ty.as_ref()) else {
            continue;
        };
        let fact = verified.fact(port.value).cloned().unwrap_or_default();
        let (Some(dtype), Some(declared), Some(dims)) = (fact.dtype, old.dims(), fact.dims) else {
            continue;
        };
        // A symbol may stay where it stands for the same size, or for one that nothing else declares.
        let dims: Vec<Dim> = dims
            .iter()
            .zip(declared)
            .map(|(now, old)| match (now.as_const(), now.as_symbol(), old) {
                (Some(n), _, _) => Dim::Known(n),
                (None, Some(name), Dim::Symbol(s)) if *name == **s => old.clone(),
                _ => Dim::Unknown,
            })
            .collect();
        patch.output_type(port.value, Some(Type::tensor(dtype, dims)));
    }
    if !patch.is_empty() {
        cx.commit(patch)?;
    }
    Ok(())
}

/// The value as the output of the last node made, so that the node can be stamped.
fn sealed(b: &Builder, v: Val) -> Val {
    let last = b
        .peek()
        .nodes
        .last()
        .and_then(|n| n.outputs.first().copied().flatten());
    match v {
        Val::New(ix) if last == Some(ix) => v,
        Val::New(_) | Val::Old(_) => b.unary("Identity", v),
    }
}

/// Where nodes of a site read a value.
fn readers(graph: &Graph, value: ValueId, nodes: &[crate::ir::NodeId]) -> Vec<Use> {
    let uses = graph.uses(value).into_iter();
    uses.filter(|u| nodes.contains(&u.node())).collect()
}
