//! What a picture is made of: for each node of the graph its module, whether hidden states pass through it, and whose it is.

use crate::adapters::heads::owner;
use crate::adapters::manifest::Manifest;
use crate::adapters::place::{Home, Kind as PlaceKind};
use crate::analyze::flow::Flow;
use crate::analyze::linear::Linears;
use crate::analyze::through::Through;
use crate::infer::Verified;
use crate::ir::contract::{ADAPTER_IDS, stamp};
use crate::ir::{NodeId, ValueId};
use crate::select::{ModuleId, ModuleTree, ROOT, Selection, Witness, modules};
use indexmap::IndexSet;
use rustc_hash::FxHashMap;

/// What passes through a node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// Constants and sizes.
    #[default]
    Idle,
    /// What is no hidden state: masks, positions.
    Aside,
    /// Hidden states.
    Main,
}

/// A model's nodes, sorted.
pub(super) struct Scene<'a> {
    pub(super) flow: Flow<'a>,
    pub(super) tree: ModuleTree,
    /// Names of adapters: those of the manifest first, then whoever else owns nodes or parameters.
    pub(super) owners: IndexSet<Box<str>>,
    /// Names of the adapters of which each sample has one.
    tenants: Option<String>,
    /// Widths of the one linear of a module.
    pub(super) linears: FxHashMap<ModuleId, (usize, usize)>,
    kinds: Vec<Kind>,
    homes: Vec<ModuleId>,
    adapters: Vec<Option<u32>>,
    passes: Vec<bool>,
}

impl<'a> Scene<'a> {
    pub(super) fn new(
        verified: &'a Verified,
        manifest: &Manifest,
        selection: Option<&Selection>,
    ) -> Scene<'a> {
        let (flow, tree, linears) = modules(verified);
        let bound = flow.graph.index_bound();
        let mut owners: IndexSet<Box<str>> = manifest.names().map(Into::into).collect();
        owners.extend(manifest.heads.iter().map(|h| owner(&h.name).into()));
        let mut scene = Scene {
            linears: FxHashMap::default(),
            flow,
            tree,
            owners,
            tenants: manifest.tenants.as_ref().map(|t| t.names.join(" or ")),
            kinds: vec![Kind::Idle; bound],
            homes: vec![ROOT; bound],
            adapters: vec![None; bound],
            passes: vec![false; bound],
        };
        for at in 0..scene.flow.order.len() {
            scene.sort(scene.flow.order[at]);
        }
        if let Some(selection) = selection {
            scene.take_sites(selection);
        }
        scene.stray();
        scene.settle();
        scene.linears = scene.only_linears(&linears);
        scene
    }

    /// What passes through a node.
    pub(super) fn kind(&self, n: NodeId) -> Kind {
        self.kinds[n.index()]
    }

    /// The module that a node is drawn in.
    pub(super) fn home(&self, n: NodeId) -> ModuleId {
        self.homes[n.index()]
    }

    /// The adapter that a node belongs to, by its place in `owners`.
    pub(super) fn adapter(&self, n: NodeId) -> Option<u32> {
        self.adapters[n.index()]
    }

    /// Whether a node hands on what it reads first, in another form: it is no box of its own.
    pub(super) fn passes(&self, n: NodeId) -> bool {
        self.passes[n.index()]
    }

    /// What a box of an owner is called: where each sample chooses one adapter, all of them.
    pub(super) fn label(&self, owner: u32) -> &str {
        match (&*self.owners[owner as usize], &self.tenants) {
            (ADAPTER_IDS, Some(names)) => names,
            (name, _) => name,
        }
    }

    /// The number of an owner.
    pub(super) fn own(&mut self, name: &str) -> u32 {
        let at = self.owners.get_index_of(name);
        at.unwrap_or_else(|| self.owners.insert_full(name.into()).0) as u32
    }

    /// Decides what a node is; those before it are decided.
    fn sort(&mut self, n: NodeId) {
        let owner = self.flow.node(n).metadata.get(stamp::ADAPTER).cloned();
        let adapter = owner.map(|name| self.own(&name));
        let flow = &self.flow;
        let outputs = flow.graph.node_outputs(n);
        let outputs = || outputs.iter().flatten().copied();
        let float = |v: &ValueId| flow.dtype(*v).is_none_or(crate::ir::DType::is_float);
        let kind = if outputs().any(|v| flow.carries(v)) {
            Kind::Main
        } else if outputs().all(|v| flow.is_constant(v)) {
            Kind::Idle
        } else if outputs().any(|v| flow.is_data(v) || float(&v)) {
            Kind::Aside
        } else {
            Kind::Idle
        };
        let op = &flow.node(n).op;
        let first = flow.input(n, 0).filter(|v| !flow.is_constant(*v));
        let hands_on = Through::LAID_OUT.or(Through::PART).takes(op)
            || ["Split", "DynamicQuantizeLinear"]
                .iter()
                .any(|o| op.is_onnx(o))
            || op.is_onnx("Gather") && flow.input(n, 1).is_some_and(|v| flow.is_constant(v));
        let i = n.index();
        self.passes[i] = hands_on && adapter.is_none() && first.is_some();
        (self.kinds[i], self.adapters[i]) = (kind, adapter);
        self.homes[i] = self.tree.of(n).map_or(ROOT, |(m, _)| m);
    }

    /// Puts what serves one module alone, and of which nobody knows the module, into that: the scales of a quantizer's codes.
    fn stray(&mut self) {
        for at in (0..self.flow.order.len()).rev() {
            let n = self.flow.order[at];
            let lost =
                self.kind(n) == Kind::Aside && self.tree.of(n).is_none() && self.home(n) == ROOT;
            if !lost || self.adapter(n).is_some() {
                continue;
            }
            let outputs = self.flow.graph.node_outputs(n).into_iter().flatten();
            let mut homes = outputs
                .flat_map(|v| self.flow.graph.value_readers(v))
                .map(|r| self.home(r));
            if let Some(home) = homes.next()
                && homes.all(|h| h == home)
            {
                self.move_to(n, home);
            }
        }
    }

    /// Finds the modules that adapters are in: by what exporters and we write on nodes, else by what their last nodes replace.
    fn settle(&mut self) {
        let base = self.base();
        let mut lifted: Vec<ModuleId> = self.tree.ids().collect();
        for m in self.tree.ids() {
            if !base[m.index()] && m != ROOT {
                lifted[m.index()] = lifted[self.tree.module(m).parent.index()];
            }
        }
        for at in (0..self.flow.order.len()).rev() {
            let n = self.flow.order[at];
            if self.adapter(n).is_none() {
                continue;
            }
            let told = self.tree.of(n).filter(|(_, w)| *w < Witness::ValueName);
            let home = match told {
                Some((m, _)) => m,
                None => self.guess(n),
            };
            self.homes[n.index()] = lifted[home.index()];
        }
    }

    /// For each module whether nodes of the base model are in it or its parts.
    fn base(&self) -> Vec<bool> {
        let mut base = vec![false; self.tree.ids().count()];
        for &n in &self.flow.order {
            if self.adapter(n).is_none() {
                base[self.home(n).index()] = true;
            }
        }
        let ids: Vec<ModuleId> = self.tree.ids().collect();
        for m in ids.into_iter().rev() {
            if base[m.index()] {
                base[self.tree.module(m).parent.index()] = true;
            }
        }
        base
    }

    /// The module of an adapter's node that nobody wrote down. Those behind it have theirs.
    fn guess(&self, n: NodeId) -> ModuleId {
        let metadata = &self.flow.node(n).metadata;
        let outputs = self.flow.graph.node_outputs(n).into_iter().flatten();
        let readers = outputs.flat_map(|v| self.flow.graph.value_readers(v));
        let readers = readers.map(|r| self.home(r));
        let readers = readers.reduce(|a, b| self.tree.shared(a, b));
        let replaced = metadata.get(stamp::REPLACES);
        let maker = replaced.and_then(|name| self.maker(name));
        let kind = metadata.get(stamp::PLACE);
        let kind = kind.and_then(|k| PlaceKind::of(k)).map(PlaceKind::home);
        match (kind, maker, readers) {
            (Some(Home::Maker), Some(m), _) => m,
            (Some(Home::Readers), _, Some(r)) => r,
            (_, Some(m), Some(r)) if replaced.is_some() => self.tree.shared(m, r),
            (_, _, Some(r)) => r,
            (_, m, None) => m.unwrap_or(ROOT),
        }
    }

    /// The module of the base model's node that makes a value, or what stood for it before.
    fn maker(&self, name: &str) -> Option<ModuleId> {
        const STEPS: usize = 64;
        let mut name = name;
        for _ in 0..STEPS {
            let n = self.flow.producer(self.flow.graph.find(name)?)?;
            if self.adapter(n).is_none() {
                return Some(self.home(n));
            }
            name = self.flow.node(n).metadata.get(stamp::REPLACES)?;
        }
        None
    }

    pub(super) fn move_to(&mut self, n: NodeId, home: ModuleId) {
        self.homes[n.index()] = home;
    }

    /// The widths of the modules that are one linear.
    fn only_linears(&self, linears: &Linears) -> FxHashMap<ModuleId, (usize, usize)> {
        let mut found: FxHashMap<ModuleId, Vec<(usize, usize)>> = FxHashMap::default();
        let base = |n: NodeId| self.adapter(n).is_none();
        for (_, linear) in linears.flowing().filter(|(_, l)| base(l.core)) {
            let of = found.entry(self.home(linear.core)).or_default();
            of.push((linear.d_in, linear.d_out));
        }
        let only = |(m, all): (ModuleId, Vec<(usize, usize)>)| match all[..] {
            [one] => Some((m, one)),
            _ => None,
        };
        found.into_iter().filter_map(only).collect()
    }
}
