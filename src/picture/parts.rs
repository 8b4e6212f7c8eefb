//! From boxes and edges to a [`Picture`]: what each part is called, what it holds, and how much.

use super::ports::{Ports, ports};
use super::scene::{Kind, Scene};
use super::text::{NAME, cut, shape, stored};
use super::tree::{Boxes, boxes};
use super::weights::{Weight, weights};
use super::wires::{Item, Tip, Wiring};
use super::{AdapterRow, Block, Edge, End, Operators, Part, Picture, Place};
use crate::adapters::AdapterStore;
use crate::adapters::manifest::{Entry, Manifest};
use crate::diag::{count, grouped};
use crate::infer::Verified;
use crate::ir::contract::{ADAPTER_IDS, EXCHANGED};
use crate::select::Selection;
use rustc_hash::FxHashMap;
use std::collections::{BTreeMap, BTreeSet};

/// Most names of one thing: roles of a module, operators of a part, parameters of an adapter at one place.
const NAMES: usize = 12;

/// Most operators and adapters in one box, and most edges.
const LOOSE: usize = 32;
const EDGES: usize = 300;

/// The picture of a verified model.
pub(super) fn picture(
    verified: &Verified,
    manifest: &Manifest,
    selection: Option<&Selection>,
) -> Picture {
    let mut scene = Scene::new(verified, manifest, selection);
    let weights = weights(&mut scene);
    let boxes = boxes(&scene, &weights);
    let ports = ports(&scene, manifest);
    let wiring = Wiring::new(&scene, &boxes, &ports, &weights);
    let mut desk = Desk {
        scene: &scene,
        boxes: &boxes,
        ports: &ports,
        wiring: &wiring,
        roles: roles(selection),
        blocks: vec![Block::default(); boxes.all.len()],
        parts: vec![BTreeMap::new(); boxes.all.len()],
        stands: FxHashMap::default(),
        reads: FxHashMap::default(),
        left_out: 0,
    };
    desk.nodes();
    for w in &weights {
        desk.weight(w);
    }
    desk.describe(&weights);
    let places = [
        std::mem::take(&mut desk.stands),
        std::mem::take(&mut desk.reads),
    ];
    let (model, lost) = desk.assemble();
    let mut left_out = Vec::new();
    if lost > 0 {
        let what = "operators and edges between modules";
        left_out.push(count(lost, what, what));
    }
    if boxes.left_out > 0 {
        left_out.push(count(boxes.left_out, "module", "modules"));
    }
    if ports.left_out > 0 {
        let what = "inputs and outputs of the graph";
        left_out.push(count(ports.left_out, what, what));
    }
    let base = weights.iter().filter(|w| w.adapter.is_none());
    Picture {
        title: cut(&verified.model().graph.name, 80),
        nodes: scene.flow.order.len(),
        parameters: base.fold(0, |n, w| w.count.saturating_add(n)),
        adapters: rows(verified, manifest, &scene, &places),
        model,
        left_out,
    }
}

/// The fields of the interface that name a path.
fn roles(selection: Option<&Selection>) -> FxHashMap<Box<str>, BTreeSet<&'static str>> {
    let mut out: FxHashMap<Box<str>, BTreeSet<&'static str>> = FxHashMap::default();
    for d in selection.into_iter().flat_map(|s| &s.decisions) {
        out.entry(d.path.clone())
            .or_default()
            .insert(d.field.name());
    }
    out
}

/// The rows of all adapters: those of the manifest, then whoever else has parameters in the graph.
fn rows(
    verified: &Verified,
    manifest: &Manifest,
    scene: &Scene<'_>,
    places: &[FxHashMap<u32, BTreeSet<usize>>; 2],
) -> Vec<AdapterRow> {
    let store = AdapterStore::from_model(verified.model());
    let mut counted: FxHashMap<&str, (u64, u64)> = FxHashMap::default();
    for (_, p) in store.iter() {
        let n = p.tensor.count().unwrap_or(0);
        let (all, trained) = counted.entry(&*p.adapter).or_default();
        *all = all.saturating_add(n);
        *trained = trained.saturating_add(if p.trainable { n } else { 0 });
    }
    let row = |(i, name): (usize, &str)| {
        let entry = manifest.adapters.iter().find(|e| e.name == name);
        let head = manifest
            .heads
            .iter()
            .find(|h| name.strip_prefix("head:") == Some(&h.name));
        let (parameters, trained) = counted.get(name).copied().unwrap_or_default();
        // Those of which each sample has one stand where all of them do.
        let all = manifest.tenants.as_ref();
        let all = all.filter(|t| t.names.iter().any(|n| n == name));
        let all = all.and_then(|_| scene.owners.get_index_of(ADAPTER_IDS));
        let places = places
            .iter()
            .filter_map(|p| p.get(&(all.unwrap_or(i) as u32)));
        let places: BTreeSet<usize> = places.flatten().copied().collect();
        let places = places.len();
        AdapterRow {
            name: cut(scene.label(i as u32), NAME),
            kind: match (entry, head, name) {
                (Some(entry), _, _) => cut(&kind(entry), NAME),
                (_, Some(head), _) => format!("head: {}", cut(head.word(), NAME)),
                (_, _, ADAPTER_IDS) => "one adapter for each sample".to_owned(),
                (_, _, EXCHANGED) => "parameters are inputs".to_owned(),
                _ => String::new(),
            },
            parameters,
            trained,
            places,
            active: places > 0 || parameters > 0,
        }
    };
    let names = scene.owners.iter().map(|name| &**name);
    names.enumerate().map(row).collect()
}

/// What an adapter is called whose configuration this version may not understand.
fn kind(entry: &Entry) -> String {
    let said = |v: &serde_json::Value| v["architecture"].as_str().map(str::to_owned);
    let members = entry.config["configs"].as_array();
    let members = || {
        Some(
            members?
                .iter()
                .filter_map(said)
                .collect::<Vec<_>>()
                .join(" + "),
        )
    };
    let own = entry.config().ok().map(|c| c.called());
    let found = own.or_else(members).or_else(|| said(&entry.config));
    found.unwrap_or_default()
}

/// What is known of own nodes, while they are collected.
#[derive(Clone, Debug, Default)]
struct Group {
    adapter: Option<u32>,
    operators: BTreeMap<Box<str>, usize>,
    nodes: usize,
    parameters: u64,
    tensors: Vec<(String, String)>,
    trains: bool,
    main: bool,
    first: u32,
    /// Whether its only operator joins two hidden states.
    joins: bool,
}

struct Desk<'d, 'a> {
    scene: &'d Scene<'a>,
    boxes: &'d Boxes,
    ports: &'d Ports,
    wiring: &'d Wiring<'d, 'a>,
    roles: FxHashMap<Box<str>, BTreeSet<&'static str>>,
    blocks: Vec<Block>,
    /// Own nodes of each box, by group.
    parts: Vec<BTreeMap<Item, Group>>,
    /// The modules that nodes of each adapter are in, and those where its parameters are read.
    stands: FxHashMap<u32, BTreeSet<usize>>,
    reads: FxHashMap<u32, BTreeSet<usize>>,
    /// Number of parts that have no room.
    left_out: usize,
}

impl Desk<'_, '_> {
    /// Counts nodes, and sorts those that are drawn into parts.
    fn nodes(&mut self) {
        let flow = &self.scene.flow;
        for &n in &flow.order {
            let spot = self.boxes.spot(self.scene.home(n));
            self.up(spot.block, |b| b.nodes += 1);
            let adapter = self.scene.adapter(n);
            if let Some(adapter) = adapter.filter(|_| self.scene.kind(n) == Kind::Main) {
                let home = self.scene.home(n).index();
                self.stands.entry(adapter).or_default().insert(home);
            }
            let counts = self.scene.kind(n) > Kind::Idle && !self.scene.passes(n);
            if !spot.seen || !counts {
                continue;
            }
            let group = self.parts[spot.block]
                .entry(self.wiring.item(n))
                .or_default();
            if group.nodes == 0 {
                group.first = flow.place(n);
            }
            let read = flow.inputs(n).into_iter().flatten();
            group.joins = group.nodes == 0 && read.filter(|v| flow.carries(*v)).count() > 1;
            group.adapter = adapter;
            group.nodes += 1;
            group.main |= self.scene.kind(n) == Kind::Main;
            *group
                .operators
                .entry(flow.node(n).op.op_type.clone())
                .or_default() += 1;
        }
    }

    /// Does something with a box and all around it.
    fn up(&mut self, block: usize, mut act: impl FnMut(&mut Block)) {
        let mut at = block;
        loop {
            act(&mut self.blocks[at]);
            if at == 0 {
                return;
            }
            at = self.boxes.all[at].parent;
        }
    }

    /// Counts a parameter where it is read first, and in each module that reads it.
    fn weight(&mut self, w: &Weight) {
        let spot = self.boxes.spot(self.scene.home(w.reader));
        if let Some(adapter) = w.adapter {
            let home = self.scene.home(w.reader).index();
            self.reads.entry(adapter).or_default().insert(home);
            if spot.seen {
                self.tensor(w, adapter, spot.block);
            }
            return;
        }
        let count = w.count;
        self.up(spot.block, |b| {
            b.parameters = b.parameters.saturating_add(count);
        });
        if spot.seen {
            let item = self.wiring.item(w.reader);
            if let Some(group) = self.parts[spot.block].get_mut(&item) {
                group.parameters = group.parameters.saturating_add(count);
            }
        }
        let mut seen: BTreeSet<usize> = BTreeSet::new();
        for n in w.others.iter().chain([&w.reader]) {
            let spot = self.boxes.spot(self.scene.home(*n));
            let mut at = spot.block;
            if !spot.seen {
                at = self.boxes.all[at].parent;
            }
            while seen.insert(at) {
                self.blocks[at].each = self.blocks[at].each.saturating_add(count);
                at = self.boxes.all[at].parent;
            }
        }
    }

    /// Counts a parameter of an adapter where it stands.
    fn tensor(&mut self, w: &Weight, adapter: u32, block: usize) {
        let flow = &self.scene.flow;
        let own = self.scene.adapter(w.reader) == w.adapter;
        let item = if own {
            self.wiring.item(w.reader)
        } else {
            Item::Bare(adapter)
        };
        let value = flow.graph.value(w.value);
        let dims = value.tensor.as_ref().map(|t| stored(&t.dims));
        let owner = &self.scene.owners[adapter as usize];
        let group = self.parts[block].entry(item).or_default();
        if group.nodes == 0 {
            group.first = flow.place(w.reader);
        }
        group.adapter = Some(adapter);
        group.parameters = group.parameters.saturating_add(w.count);
        group.trains |= w.trains;
        if group.tensors.len() < NAMES {
            let name = leaf(&value.name, owner);
            group.tensors.push((name, dims.unwrap_or_default()));
        }
    }

    /// Says what each box is.
    fn describe(&mut self, weights: &[Weight]) {
        let mut largest: FxHashMap<usize, &Weight> = FxHashMap::default();
        for w in weights.iter().filter(|w| w.adapter.is_none()) {
            for n in w.others.iter().chain([&w.reader]) {
                let spot = self.boxes.spot(self.scene.home(*n));
                let known = largest.get(&spot.block);
                if spot.seen && known.is_none_or(|k| k.count < w.count) {
                    largest.insert(spot.block, w);
                }
            }
        }
        for (i, drawn) in self.boxes.all.iter().enumerate() {
            let module = self.scene.tree.module(drawn.module);
            let roles = self.roles.get(&module.path);
            let class = module.class.as_ref().filter(|_| !drawn.rest);
            let class = class.map(|c| cut(c.rsplit('.').next().unwrap_or(c), NAME));
            let weight = largest.get(&i);
            let dims = weight.and_then(|w| self.scene.flow.graph.value(w.value).tensor.as_ref());
            let widths = self
                .scene
                .linears
                .get(&drawn.module)
                .filter(|_| !drawn.rest && i > 0);
            let block = &mut self.blocks[i];
            block.name.clone_from(&drawn.name);
            block.path = cut(&module.path, 2 * NAME);
            block.count = drawn.members.len();
            block.class = class;
            block.roles = roles
                .into_iter()
                .flatten()
                .take(NAMES)
                .map(|r| (*r).to_owned())
                .collect();
            block.weight = match widths {
                Some((a, b)) => Some(format!("{} → {}", grouped(*a as u64), grouped(*b as u64))),
                None => dims.map(|t| stored(&t.dims)),
            };
            block.stored = weight.and_then(|w| w.stored.clone());
        }
    }

    /// Puts the boxes into each other, the innermost first.
    fn assemble(mut self) -> (Block, usize) {
        let mut inner: Vec<Vec<(usize, Block)>> = vec![Vec::new(); self.blocks.len()];
        for i in (0..self.blocks.len()).rev() {
            let mut block = std::mem::take(&mut self.blocks[i]);
            let parts = self.sorted(i, std::mem::take(&mut inner[i]));
            let at: FxHashMap<Item, usize> =
                parts.iter().enumerate().map(|(k, p)| (p.0, k)).collect();
            block.parts = parts.into_iter().map(|p| p.1).collect();
            let end = |tip: Tip| match tip {
                Tip::In(k) => Some(End::In(k)),
                Tip::Out => Some(End::Out),
                Tip::Item(item) => at.get(&item).copied().map(End::Part),
            };
            let edge = |(tips, wire): (&(Tip, Tip), &super::wires::Wire)| {
                let fact = self.scene.flow.fact(wire.value);
                Some(Edge {
                    from: end(tips.0)?,
                    to: end(tips.1)?,
                    shape: fact.and_then(shape),
                    aside: wire.aside,
                })
            };
            block.edges = self.wiring.wires[i].iter().filter_map(edge).collect();
            block.edges.sort_by_key(|e| (e.aside, e.from, e.to));
            self.left_out += block.edges.len().saturating_sub(EDGES);
            block.edges.truncate(EDGES);
            block.edges.sort_by_key(|e| (e.from, e.to));
            if i == 0 {
                return (block, self.left_out);
            }
            inner[self.boxes.all[i].parent].push((i, block));
        }
        (Block::default(), self.left_out)
    }

    /// The parts of a box in execution order.
    fn sorted(&mut self, i: usize, inner: Vec<(usize, Block)>) -> Vec<(Item, Part)> {
        let mut out: Vec<((u8, u32, Item), Part)> = Vec::new();
        if i == 0 {
            let inputs = self.ports.inputs.iter().cloned().enumerate();
            out.extend(inputs.map(|(k, p)| ((0, 0, Item::Input(k)), Part::Input(p))));
            let outputs = self.ports.outputs.iter().cloned().enumerate();
            out.extend(outputs.map(|(k, p)| ((2, 0, Item::Output(k)), Part::Output(p))));
        }
        for (block, b) in inner {
            let first = self.boxes.all[block].first;
            out.push(((1, first, Item::Module(block)), Part::Module(b)));
        }
        let deep = self.boxes.all[i].depth > 1;
        for (item, group) in std::mem::take(&mut self.parts[i]) {
            let key = (1, group.first, item);
            match group.adapter {
                // What but says which sample has it is no place.
                Some(_) if !group.main && group.parameters == 0 => {}
                Some(adapter) => out.push((key, Part::Adapter(self.adapter_place(adapter, group)))),
                // What prepares masks and positions is told where it begins only.
                None if !group.main && deep && group.parameters == 0 => {}
                None => out.push((key, Part::Operators(operators(group)))),
            }
        }
        // Those with fewest nodes are left out.
        let mut sizes: Vec<(usize, (u8, u32, Item))> = out
            .iter()
            .filter_map(|(key, p)| Some((loose(p)?, *key)))
            .collect();
        sizes.sort_by_key(|(n, key)| (std::cmp::Reverse(*n), *key));
        let left: BTreeSet<(u8, u32, Item)> = sizes.into_iter().skip(LOOSE).map(|s| s.1).collect();
        self.left_out += left.len();
        out.retain(|p| !left.contains(&p.0));
        out.sort_by_key(|p| p.0);
        out.into_iter()
            .map(|((_, _, item), part)| (item, part))
            .collect()
    }

    fn adapter_place(&self, adapter: u32, group: Group) -> Place {
        Place {
            adapter: adapter as usize,
            name: cut(self.scene.label(adapter), NAME),
            tensors: group.tensors,
            parameters: group.parameters,
            trains: group.trains,
            nodes: group.nodes,
        }
    }
}

/// Number of nodes of a part that is no module and no port.
fn loose(part: &Part) -> Option<usize> {
    match part {
        Part::Operators(o) => Some(o.nodes),
        Part::Adapter(p) => Some(p.nodes),
        Part::Module(_) | Part::Input(_) | Part::Output(_) => None,
    }
}

/// What a parameter is called at its place: what follows the adapter's name, without words that all have.
fn leaf(name: &str, owner: &str) -> String {
    let owner = format!(".{}.", owner.strip_prefix("head:").unwrap_or(owner));
    let behind = name.rfind(&owner).map(|at| &name[at + owner.len()..]);
    let rest = behind.unwrap_or(name).trim_matches('.');
    let rest = rest.strip_suffix(".weight").unwrap_or(rest);
    let words: Vec<&str> = rest
        .split('.')
        .filter(|w| !w.bytes().all(|b| b.is_ascii_digit()))
        .collect();
    let from = words.len().saturating_sub(2);
    let short = words[from..].join(".");
    cut(if short.is_empty() { name } else { &short }, 28)
}

/// Operators of a module's own.
fn operators(group: Group) -> Operators {
    let mut all: Vec<(String, usize)> = group
        .operators
        .into_iter()
        .map(|(op, n)| (cut(&op, NAME), n))
        .collect();
    all.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let has = |op: &str| all.iter().any(|(o, _)| o == op);
    let core = [
        "Attention",
        "MultiHeadAttention",
        "GroupQueryAttention",
        "QAttention",
    ];
    let label = match &all[..] {
        [(op, 1)] if op == "Add" && group.joins => "+".to_owned(),
        [(op, 1)] if op == "Mul" && group.joins => "×".to_owned(),
        _ if has("Softmax") && has("MatMul") || core.iter().any(|op| has(op)) => {
            "attention".to_owned()
        }
        [(op, 1)] => op.clone(),
        [(a, _)] => a.clone(),
        [(a, _), (b, _)] => format!("{a}, {b}"),
        [(a, _), (b, _), ..] => format!("{a}, {b}, …"),
        [] => String::new(),
    };
    all.truncate(NAMES);
    Operators {
        label,
        operators: all,
        nodes: group.nodes,
        parameters: group.parameters,
        aside: !group.main,
    }
}
