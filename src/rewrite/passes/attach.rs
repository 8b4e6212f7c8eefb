//! Attaching adapters: for each place, the nodes of all adapters that are active there, and one value that takes the place's own.
//!
//! Nodes stand right behind the node they serve. Everything added is stamped in `metadata_props`, so that [`Strip`](super::Strip) finds
//! it in a file as well. Linear in the size of the graph.

use self::channels::replicate;
use self::compose::{Composer, Site, Used, closed, stamped};
use self::exchange::{Exchange, Exchanging};
use self::manifest::{check_exchanged, check_names, check_tenants, extended};
use self::outputs::{Grown, declare_outputs, forget_shapes};

use super::homes::Homes;
use crate::adapters::manifest::{Manifest, Tenants};
use crate::adapters::place::{At, BuildCx, Place, Shown, State, Types};
use crate::adapters::plan::{Part, Plan, plan};
use crate::adapters::{Adapter, AdapterStore, Setup, param_stamps};
use crate::diag::Diagnostic;
use crate::ir::contract::stamp;
use crate::ir::{Builder, DType, Fact, Graph, NodeId, Spot, Type, TypeKind, Use, Val, ValueId};
use crate::rewrite::{Pass, PassCx, PassError, Uses};
use crate::select::{LinearSite, Selection};
use rustc_hash::FxHashMap;
use std::cell::RefCell;
use std::collections::BTreeMap;

pub(super) mod blocks;
mod channels;
mod compose;
pub(crate) mod exchange;
mod manifest;
pub(super) mod outputs;
mod skipping;
mod tasks;
mod tenants;

/// Attaches adapters to the places that an interface selected.
#[derive(Clone, Debug)]
pub(crate) struct AttachPass {
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
    /// Which scores become graph outputs.
    pub shown: Shown,
    /// Layers without adapters.
    pub skip_layers: Vec<usize>,
    /// Whether a graph input says which layers are skipped.
    pub skip_input: bool,
    /// Where the input `adapter_ids` chooses one of the adapters for each sample, instead of a setup: what the manifest says of them.
    pub tenants: Option<Tenants>,
    /// Where the parameters are inputs, and the adapters those that the graph is made for: how.
    pub exchange: Option<Exchanging>,
}

impl AttachPass {
    /// One adapter, for inference, with initial values of seed 0 where it has no weights.
    #[cfg(test)]
    pub(crate) fn new(selection: Selection, adapter: Adapter) -> Self {
        AttachPass {
            selection,
            setup: Setup::Single(adapter.name.clone()),
            adapters: vec![adapter],
            seed: 0,
            training: false,
            shown: Shown::default(),
            skip_layers: Vec::new(),
            skip_input: false,
            tenants: None,
            exchange: None,
        }
    }
}

impl AttachPass {
    fn names(&self, group: &[&Part<'_>]) -> Vec<&str> {
        let name = |p: &&Part<'_>| &*self.adapters[p.adapter].name;
        group.iter().map(name).collect()
    }

    /// What the module tree calls the class of an adapter's modules.
    fn class(&self, name: &str) -> String {
        let found = self.adapters.iter().find(|a| *a.name == *name);
        let kind = found.map_or("adapter", |a| a.config.architecture());
        format!("onnx_graft.{kind}")
    }

    /// Refuses what cannot stand in a stack with others.
    fn compatible(&self, group: &[&Part<'_>]) -> Result<(), Diagnostic> {
        let names = self.names(group);
        let alone = group.iter().find(|p| p.method.stands_alone());
        let Some(part) = alone.filter(|_| names.len() > 1 && self.setup.stacks(&names)) else {
            return Ok(());
        };
        Err(Diagnostic::error(
            "stack-dora",
            format!(
                "`{}` stand at one linear, and DoRA with `target_modules` has no meaning in a stack",
                names.join("` and `")
            ),
        )
        .at(part.place.scope.clone())
        .help("merge the first one into the base model, and attach the other one to that"))
    }

    /// What adapters of a stack do not do: where they do not compose, its first one acts alone.
    fn unheard<'p, 's: 'p>(
        &self,
        parts: impl Iterator<Item = &'p &'p Part<'s>>,
    ) -> Vec<Diagnostic> {
        let (all, alone) = (self.setup.names(), self.setup.alone());
        let heard = alone.names();
        let mut found: BTreeMap<&str, &str> = BTreeMap::new();
        for part in parts.filter(|p| !p.place.kind().composes) {
            let name = &*self.adapters[part.adapter].name;
            if all.contains(&name) && !heard.contains(&name) {
                found.entry(name).or_insert(part.place.kind().about);
            }
        }
        let said = |(name, about): (&str, &str)| {
            let first = heard.first().unwrap_or(&"");
            Diagnostic::warning(
                "stack-unheard",
                format!(
                    "`{name}` does nothing to the {about}: adapters of a stack do not compose there, and `{first}` is the first one"
                ),
            )
            .help(format!("name `{name}` before `{first}`, or attach them one after the other"))
        };
        found.into_iter().map(said).collect()
    }

    /// The place of stacked adapters whose changes are added, though the library's stack is a chain.
    fn summed<'p, 's>(&self, group: &[&'p Part<'s>]) -> Option<&'p Place<'s>> {
        let names = self.names(group);
        let adds = |p: &&&Part<'_>| {
            p.method.chains(&p.place) == Some(false) && p.place.detail.target().is_none()
        };
        let found = group.iter().skip(1).find(adds)?;
        self.setup.stacks(&names).then_some(&found.place)
    }
}

impl Pass for AttachPass {
    fn name(&self) -> &'static str {
        "attach"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let names: Vec<&str> = self.adapters.iter().map(|a| &*a.name).collect();
        let there = Manifest::read(cx.model())?;
        check_names(&names, &there)?;
        check_tenants(self.tenants.as_ref(), &there, cx.model())?;
        if self.exchange.is_some() {
            check_exchanged(&there, cx.model())?;
        }
        if self.skip_input {
            skipping::check(cx.model())?;
        }
        self.setup.check(&names)?;
        let before = cx.before();
        let graph = &before.model().graph;
        let mut planned = plan(&self.adapters, &self.selection, before, self.seed)?;
        planned.share(&self.adapters, &self.setup)?;
        planned.skip(&self.skip_layers, &self.selection)?;
        let exchange = self
            .exchange
            .as_ref()
            .map(|how| Exchange::of(&planned, &self.adapters, before, how, &[]));
        let exchange = exchange.transpose()?;
        let Plan {
            parts,
            store,
            notes,
        } = planned;
        for note in notes {
            cx.warn(note);
        }
        let groups = grouped(&parts, graph)?;
        // Adapters of which each sample has one never meet.
        let stacks = self.tenants.is_none() && exchange.is_none();
        for group in groups.values().filter(|_| stacks) {
            self.compatible(group)?;
        }
        let summed = groups.values().filter(|_| stacks);
        let summed: Vec<&Place<'_>> = summed.filter_map(|g| self.summed(g)).collect();
        if let Some(first) = summed.first() {
            cx.warn(
                Diagnostic::warning(
                    "stack-sum",
                    format!(
                        "at {} linears that are not square the adapters of a stack read the same input, and what they make is added",
                        summed.len()
                    ),
                )
                .at(first.scope.clone())
                .help("at square ones each reads what the one before it made; the Adapters library stops with an error here"),
            );
        }
        for finding in self.unheard(groups.values().flatten()) {
            cx.warn(finding);
        }
        let mut writer = Writer {
            pass: self,
            exchange: exchange.as_ref(),
            composer: Composer {
                adapters: &self.adapters,
                params: store.iter().collect(),
                values: FxHashMap::default(),
                scopes: RefCell::default(),
            },
            current: current_values(graph),
            once: RefCell::default(),
            homes: Homes::of(before, Some(&self.selection)),
        };
        cx.declare_types();
        let channels = if stacks { self.setup.channels() } else { 1 };
        let grown = if channels > 1 {
            let owner = self.setup.first().unwrap_or_default();
            let tell = |b: &Builder| writer.homes.tell(b, "", &|name| self.class(name));
            Some(replicate(channels, owner, &tell, &mut writer.current, cx)?)
        } else {
            None
        };
        for (key, group) in &groups {
            writer.write(key, group, cx)?;
        }
        if let Some(grown) = &grown {
            declare_outputs(grown, cx)?;
        }
        let longer = parts.iter().filter_map(|p| match &p.place.at {
            At::Sequence(longer) => Some(&**longer),
            _ => None,
        });
        for longer in longer {
            declare_outputs(&Grown::from(longer), cx)?;
        }
        if exchange.is_none() {
            writer.beside(&store, cx)?;
        }
        let manifest = extended(there, self, exchange.as_ref()).text();
        let mut patch = cx.patch("manifest", None);
        patch.model_metadata(stamp::MANIFEST, Some(&manifest));
        cx.commit(patch)?;
        Ok(())
    }
}

/// Order of places: where their value is made, then their rank; with the first of the nodes that alone read what is replaced.
type GroupKey = (usize, u8, ValueId, Option<NodeId>);

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
        let group = groups
            .entry((
                at,
                part.place.kind().rank,
                target,
                part.place.readers().and_then(|r| r.first().copied()),
            ))
            .or_default();
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
    pass: &'w AttachPass,
    exchange: Option<&'w Exchange<'w>>,
    composer: Composer<'w>,
    /// What stands for a value of the base model by now.
    current: FxHashMap<ValueId, ValueId>,
    /// Values that several places use: masks and the like.
    once: RefCell<BTreeMap<String, Val>>,
    /// The modules that added nodes stand in.
    homes: Homes,
}

impl Writer<'_> {
    fn write(
        &mut self,
        key: &GroupKey,
        group: &[&Part<'_>],
        cx: &mut PassCx<'_>,
    ) -> Result<(), PassError> {
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
        let types = |v: ValueId| cx.fact(v)?.dtype;
        let (moves, scores, computed);
        let new = {
            let b = patch.builder();
            let mut build = BuildCx::new(
                b,
                graph,
                base,
                self.pass.training,
                &self.current,
                &self.once,
            );
            build.shown = self.pass.shown;
            build.types = Types(&types);
            build.sizes_vary = self.exchange.is_some();
            b.set_scope(&self.composer.fresh_scope(&format!("{}/input", place.scope)));
            b.set_stamp(stamped(&self.pass.adapters[first.adapter].name));
            if matches!(place.at, At::Parameter(_)) {
                // It hangs on nothing of the graph, and early nodes may read it.
                b.set_spot(Some(Spot::Front));
            }
            let mut used = Used::default();
            let first = self.pass.setup.alone();
            let composes = place.kind().composes;
            let setup = if composes { &self.pass.setup } else { &first };
            let at = Site {
                group,
                rank: cx.fact(target).and_then(Fact::rank),
            };
            let opened = |place: &Place<'_>| open(place, &build, cx);
            let new = if let Some(exchange) = self.exchange {
                let of = (key, exchange);
                self.composer.exchange(of, &opened, &build, &mut used)?
            } else if self.pass.tenants.is_some() {
                self.composer.tenants(at, &opened, &build, &mut used)?
            } else {
                let state = open(place, &build, cx);
                let state = self.composer.apply(setup, at, state, &build, &mut used)?;
                closed(state, used.last.as_ref(), &build)?
            };
            let Some(new) = new else {
                return Ok(());
            };
            let new = if self.pass.skip_input {
                let last = self.pass.selection.layers.iter().map(|l| l.index).max();
                let layers = last.map_or(0, |n| n + 1);
                skipping::kept(b, graph, place, layers, (old.into(), new))?
            } else {
                new
            };
            unpacked(place, &build)?;
            made.append(&mut used.made);
            moves = build.moves.take();
            scores = build.scores.take();
            computed = b.float();
            sealed(b, new)
        };
        let mut shared = Vec::new();
        let uses = match place.readers() {
            Some(nodes) => {
                let found = readers(graph, old, nodes);
                shared = found.shared;
                Uses::Only(found.uses)
            }
            None => Uses::All,
        };
        let unread = matches!(&uses, Uses::Only(own) if own.is_empty());
        if unread && shared.is_empty() {
            return Err(unread_here(place, graph.name_of(old)).into());
        }
        Self::mark(patch.builder(), graph, old, new, &uses, place.kind().name);
        for (old, made, uses) in again(&shared, (old, new), patch.builder(), graph) {
            patch.redirect(old, made, Uses::Only(uses));
        }
        if let At::Sequence(longer) = &place.at {
            forget_shapes(&Grown::from(&**longer), graph, &mut patch);
        }
        for (old, new, uses) in &moves {
            patch.redirect(*old, *new, Uses::Only(uses.clone()));
        }
        patch.redirect(old, new, uses.clone());
        for (name, score) in scores {
            let dims = None;
            let dtype = computed;
            let kind = TypeKind::Tensor { dtype, dims };
            patch.add_output(score, &name, Some(Type { kind, exact: None }));
        }
        let near = match place.linear() {
            Some(site) => &*site.path,
            None => self.homes.around(place.anchor(graph)),
        };
        let class = |name: &str| self.pass.class(name);
        self.homes.tell(patch.builder(), near, &class);
        let applied = cx.commit(patch)?;
        for (old, new, _) in moves {
            self.current.insert(old, applied.value(new));
        }
        for (name, v) in made {
            self.composer.values.insert(name, applied.value(v));
        }
        for v in self.once.borrow_mut().values_mut() {
            *v = Val::Old(applied.value(*v));
        }
        if uses == Uses::All {
            self.current.insert(target, applied.value(new));
        }
        Ok(())
    }

    /// Keeps parameters of modules that the graph does not compute.
    fn beside(&self, store: &AdapterStore, cx: &mut PassCx<'_>) -> Result<(), PassError> {
        let read = |name: &str| self.composer.values.contains_key(name);
        let patch = cx.patch("parameters of modules that are not computed", None);
        let b = patch.builder();
        for (name, param) in store
            .iter()
            .filter(|(n, p)| p.idle && !p.trainable && !read(n))
        {
            b.set_stamp(param_stamps(param));
            b.initializer(name, param.tensor.clone());
        }
        cx.commit(patch)?;
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
}

/// Refuses what treats a row as one example where rows are packed.
fn unpacked(place: &Place<'_>, build: &BuildCx<'_>) -> Result<(), Diagnostic> {
    match build.whole_rows.get() {
        Some(why) if build.segments().is_some() => Err(Diagnostic::error("packing", why)
            .at(place.scope.clone())
            .help("train without packing; `group_by_length` also saves padding")),
        Some(_) | None => Ok(()),
    }
}

/// What flows through a place before any adapter.
fn open(place: &Place<'_>, build: &BuildCx<'_>, cx: &PassCx<'_>) -> State {
    let mut values = None;
    let (x, out, residual) = match &place.at {
        At::Linear(site) => {
            let (x, out) = (build.current(site.input), build.current(site.output));
            (like(x, out, site, build, cx), out, None)
        }
        At::Table(site) => (build.current(site.ids), build.current(site.output), None),
        At::Sublayer(site) => {
            let o = build.current(site.output);
            let residual = site.residual.map(|r| build.current(r));
            let beside = site.beside.map(|v| build.current(v));
            let whole = match (residual, beside) {
                (Some(r), Some(v)) => Some(build.b.add(r, v)),
                (r, _) => r,
            };
            (o, o, whole)
        }
        At::Attention(core) => {
            let (x, like) = (build.current(core.input), build.current(core.like));
            let x = leading(x, like, [core.input, core.like], core.width, build, cx);
            values = Some(build.current(core.values));
            (x, build.current(core.scores), None)
        }
        At::Layer(_)
        | At::Embeddings(_)
        | At::HeadInput(_)
        | At::Input(_)
        | At::Parameter(_)
        | At::Sequence(_)
        | At::Mask(_) => {
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
struct Readers {
    /// The uses that become those of another value.
    uses: Vec<Use>,
    /// Nodes that quantize the value for the site and for others, and where the site reads what they make.
    shared: Vec<(NodeId, Vec<Use>)>,
}

/// Whether a node is one of the site's, or computes for them alone: the product of both scales, beside the integer product itself.
fn serves(graph: &Graph, node: NodeId, nodes: &[NodeId], depth: u8) -> bool {
    if nodes.contains(&node) {
        return true;
    }
    let outputs = graph.node_outputs(node).into_iter().flatten();
    let mut read = outputs.flat_map(|o| graph.uses(o)).peekable();
    depth > 0 && read.peek().is_some() && read.all(|u| serves(graph, u.node(), nodes, depth - 1))
}

/// Where nodes of a site read a value: by themselves, or through a node that quantizes it.
fn readers(graph: &Graph, value: ValueId, nodes: &[NodeId]) -> Readers {
    let all = graph.uses(value);
    let own = all.iter().copied().filter(|u| nodes.contains(&u.node()));
    let mut out = Readers {
        uses: own.collect(),
        shared: Vec::new(),
    };
    if !out.uses.is_empty() {
        return out;
    }
    for u in all {
        let n = u.node();
        let op = &graph.node(n).op;
        if !op.is_onnx("DynamicQuantizeLinear") && !op.is_onnx("QuantizeLinear") {
            continue;
        }
        let outputs = graph.node_outputs(n).into_iter().flatten();
        let behind: Vec<Use> = outputs.flat_map(|o| graph.uses(o)).collect();
        let of_site = |u: &Use| serves(graph, u.node(), nodes, 4);
        if behind.iter().all(of_site) {
            out.uses.push(u);
            continue;
        }
        let own: Vec<Use> = behind.into_iter().filter(of_site).collect();
        if own.iter().any(|u| nodes.contains(&u.node())) {
            out.shared.push((n, own));
        }
    }
    out
}

/// The nodes that quantize a value for a site and for others once more, for the site alone: what each output was, what it is, and where.
fn again(
    shared: &[(NodeId, Vec<Use>)],
    (old, new): (ValueId, Val),
    b: &Builder,
    graph: &Graph,
) -> Vec<(ValueId, Val, Vec<Use>)> {
    let mut out = Vec::new();
    for (n, own) in shared {
        let find = |v: ValueId| if v == old { new } else { Val::Old(v) };
        let made = b.copy_node(graph, *n, find);
        let mark = |from: ValueId| {
            b.mark_last_node(stamp::REPLACES, graph.name_of(from));
            b.mark_last_node(stamp::READERS, "some");
        };
        for (slot, (from, copy)) in made.into_iter().enumerate() {
            // Each node stands for one value.
            let copy = if slot == 0 {
                copy
            } else {
                b.unary("Identity", copy)
            };
            mark(from);
            let uses = graph.uses(from).into_iter();
            let uses: Vec<Use> = uses.filter(|u| own.contains(u)).collect();
            out.push((from, copy, uses));
        }
    }
    out
}

/// A change of what a linear reads, where the linear does not read it.
fn unread_here(place: &Place<'_>, name: &str) -> Diagnostic {
    let found = format!(
        "what the adapter makes of `{name}` would be read by nothing: the linear reads it through other nodes"
    );
    Diagnostic::error("place-unread", found)
        .at(place.scope.clone())
        .help("merge the adapter instead (`rewrite merge`), or export the model again without that optimization")
}

#[cfg(test)]
mod tests;
