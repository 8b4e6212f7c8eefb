//! Attaching adapters: for each place, the nodes of all adapters that are active there, and one value that takes the place's own.
//!
//! Nodes stand right behind the node they serve. Everything added is stamped in `metadata_props`, so that [`Strip`](super::Strip) finds
//! it in a file as well. Linear in the size of the graph.

use self::manifest::{check_names, manifest};
use self::outputs::{declare_outputs, forget_shapes};
use self::tasks::{Origin, Picker, no_batch, one_length};
use crate::adapters::methods::MethodConfig;
use crate::adapters::place::{At, BuildCx, Params, Place, State, Tasks, wider};
use crate::adapters::plan::{Part, Plan, plan};
use crate::adapters::{Adapter, Param, Setup, param_stamps};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind};
use crate::ir::contract;
use crate::ir::contract::stamp;
use crate::ir::{Builder, DType, Fact, Graph, Metadata, Use, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Uses};
use crate::select::{LinearSite, Selection};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::BTreeMap;

pub(super) mod manifest;
pub(super) mod outputs;
mod tasks;

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
        let mut planned = plan(&self.adapters, &self.selection, graph, &facts, self.seed)?;
        planned.share(&self.adapters, &self.setup)?;
        let Plan {
            parts,
            store,
            loaded,
            notes,
        } = planned;
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
            let first = self.pass.setup.alone();
            let setup = if alone { &first } else { &self.pass.setup };
            let at = Site {
                group,
                rank: cx.fact(target).and_then(Fact::rank),
            };
            let state = self.apply(setup, at, state, &build, &mut used)?;
            let Some(new) = closed(state, used.last.as_ref(), &build)? else {
                return Ok(());
            };
            unpacked(place, &build)?;
            made.append(&mut used.made);
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
        at: Site<'g, 's>,
        state: State,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        match setup {
            Setup::Single(name) => {
                let Some(part) = self.part(at, name) else {
                    return Ok(state);
                };
                let last = self.enter(part, cx, used)?;
                let params = last.params();
                let state = part.method.step(&part.place, state, &params, cx)?;
                used.last = Some(last);
                Ok(state)
            }
            Setup::Stack(children) => {
                let mut state = state;
                for child in children {
                    state = self.apply(child, at, state, cx, used)?;
                }
                Ok(state)
            }
            Setup::MultiTask(tasks) => self.multi_task(tasks, at, state, cx, used),
        }
    }

    fn part<'g, 's>(&self, at: Site<'g, 's>, name: &str) -> Option<&'g Part<'s>> {
        let named = |p: &&&Part<'_>| self.pass.adapters[p.adapter].name == *name;
        at.group.iter().find(named).copied()
    }

    /// Each sample its own child: together where the method can, and otherwise each child on all samples, of which every sample takes
    /// its own value.
    fn multi_task<'g, 's>(
        &self,
        tasks: &[Setup],
        at: Site<'g, 's>,
        state: State,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<State, PassError> {
        let here = |t: &Setup| t.names().iter().find_map(|n| self.part(at, n));
        let Some(first) = tasks.iter().find_map(here) else {
            return Ok(state);
        };
        let place = &first.place;
        let rank = match (&place.at, at.rank) {
            (At::Sequence(_) | At::Mask(_), _) => return Err(one_length(place).into()),
            (_, Some(rank)) if rank > 2 => rank,
            (_, rank) => return Err(no_batch(place, rank).into()),
        };
        let owner = &self.pass.adapters[first.adapter].name;
        let origin = Origin {
            scope: self.fresh_scope(contract::TASK_IDS),
            stamp: stamped(owner),
        };
        let picker = Picker::new(tasks.len(), rank, origin, cx)?;
        let parts: Option<Vec<&'g Part<'s>>> = tasks
            .iter()
            .map(|t| match t {
                Setup::Single(n) => self
                    .part(at, n)
                    .filter(|p| !p.method.task_shared().is_empty()),
                Setup::Stack(_) | Setup::MultiTask(_) => None,
            })
            .collect();
        if let Some(parts) = parts {
            let entered = parts
                .into_iter()
                .map(|p| self.enter(p, cx, used))
                .collect::<Result<Vec<Entered<'_, '_>>, _>>()?;
            let configs: Vec<_> = entered.iter().map(|e| e.part.method).collect();
            let of: Vec<_> = entered
                .iter()
                .map(|e| (&e.part.place, e.params()))
                .collect();
            let together = Tasks {
                ids: picker.ids,
                rank,
                of: &of,
            };
            if let Some(state) = MethodConfig::step_tasks(&configs, state, &together, cx)? {
                used.last = entered.into_iter().next_back();
                return Ok(state);
            }
        }
        let before = used.last.take();
        let mut values = Vec::with_capacity(tasks.len());
        for task in tasks {
            used.last.clone_from(&before);
            let state = self.apply(task, at, state, cx, used)?;
            let value = closed(state, used.last.as_ref(), cx)?;
            values.push(value.unwrap_or_else(|| cx.current(place.target())));
        }
        cx.b.set_scope(&self.fresh_scope(&format!("{}/tasks", place.scope)));
        Ok(State {
            closed: Some(picker.pick(&values, cx)?),
            ..state
        })
    }

    /// Makes the part's parameters, and names and stamps what follows as its own.
    fn enter<'g, 's>(
        &self,
        part: &'g Part<'s>,
        cx: &BuildCx<'_>,
        used: &mut Used<'g, 's>,
    ) -> Result<Entered<'g, 's>, PassError> {
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
        Ok(Entered { part, own, shared })
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

/// The parts at one place.
#[derive(Clone, Copy)]
struct Site<'g, 's> {
    group: &'g [&'g Part<'s>],
    /// Number of axes of what flows, where it is known.
    rank: Option<usize>,
}

/// An adapter at a place, with its parameters in the graph.
#[derive(Clone)]
struct Entered<'g, 's> {
    part: &'g Part<'s>,
    own: Values,
    shared: Values,
}

impl Entered<'_, '_> {
    fn params(&self) -> Params<'_> {
        Params {
            own: &self.own,
            shared: &self.shared,
        }
    }
}

/// Refuses what treats a row as one example where rows are packed.
fn unpacked(place: &Place<'_>, build: &BuildCx<'_>) -> Result<(), Diagnostic> {
    let why = match place.at {
        At::Sequence(_) | At::Mask(_) => {
            Some("a prompt stands in front of a row, not of each of its examples")
        }
        At::Linear(_)
        | At::Sublayer(_)
        | At::Layer(_)
        | At::Embeddings(_)
        | At::HeadInput(_)
        | At::Attention(_) => build.whole_rows.get(),
    };
    match why {
        Some(why) if build.segments().is_some() => Err(Diagnostic::error("packing", why)
            .at(place.scope.clone())
            .help("train without packing; `group_by_length` also saves padding")),
        Some(_) | None => Ok(()),
    }
}

/// What takes the place's value; `None` where no adapter has acted.
fn closed(
    state: State,
    last: Option<&Entered<'_, '_>>,
    cx: &BuildCx<'_>,
) -> Result<Option<Val>, Diagnostic> {
    match (state.closed, last) {
        (Some(value), _) => Ok(Some(value)),
        (None, None) => Ok(None),
        (None, Some(e)) => {
            let place = &e.part.place;
            e.part.method.close(place, state, &e.params(), cx).map(Some)
        }
    }
}

/// What the adapters of one place have used so far.
#[derive(Default)]
struct Used<'g, 's> {
    /// The last adapter.
    last: Option<Entered<'g, 's>>,
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
        closed: None,
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
