//! What flows between the parts of a module, and which parts there are that are no modules: operators and adapters in between.
//!
//! Operators of a module that feed each other are one part, as long as no part of the module stands between them: an addition behind the
//! attention and one behind the feed-forward block are two.

use super::ports::Ports;
use super::scene::{Kind, Scene};
use super::tree::Boxes;
use super::weights::Weight;
use crate::ir::{NodeId, ValueId};
use indexmap::IndexMap;
use rustc_hash::FxHashMap;

/// Something in a box: a box in it, own nodes, or a port of the model.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Item {
    Input(usize),
    /// A box, by its number.
    Module(usize),
    /// Own nodes, by the one that stands for them.
    Nodes(u32),
    /// An adapter without nodes here: something reads its parameters as they are.
    Bare(u32),
    Output(usize),
}

/// One end of an edge.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Tip {
    In(usize),
    Item(Item),
    Out,
}

/// What an edge carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wire {
    pub(super) aside: bool,
    /// Its first value.
    pub(super) value: ValueId,
}

/// Where a value comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Source {
    Node(NodeId),
    Input(usize),
}

/// Who reads a value.
#[derive(Clone, Copy, Debug)]
enum Reader {
    Node(NodeId),
    Output(usize),
}

/// The edges of all boxes, and the groups of nodes that they go between.
pub(super) struct Wiring<'s, 'a> {
    scene: &'s Scene<'a>,
    boxes: &'s Boxes,
    ports: &'s Ports,
    /// Whether a node reads a parameter.
    weighs: Vec<bool>,
    edges: Vec<(Source, Reader, Wire)>,
    /// How many parts stand before a node, and before a box, in its module.
    levels: Vec<u32>,
    box_levels: Vec<u32>,
    /// Union-find over nodes.
    groups: Vec<u32>,
    /// The edges of each box.
    pub(super) wires: Vec<IndexMap<(Tip, Tip), Wire>>,
    entries: Vec<FxHashMap<Source, usize>>,
}

/// Most different things that are drawn entering one box.
const ENTRIES: usize = 6;

impl<'s, 'a> Wiring<'s, 'a> {
    /// Finds the edges. Linear in the size of the graph.
    pub(super) fn new(
        scene: &'s Scene<'a>,
        boxes: &'s Boxes,
        ports: &'s Ports,
        weights: &[Weight],
    ) -> Self {
        let (bound, n) = (scene.flow.graph.index_bound(), boxes.all.len());
        let mut out = Wiring {
            scene,
            boxes,
            ports,
            weighs: vec![false; bound],
            edges: Vec::new(),
            levels: vec![0; bound],
            box_levels: vec![0; n],
            groups: (0..bound as u32).collect(),
            wires: vec![IndexMap::new(); n],
            entries: vec![FxHashMap::default(); n],
        };
        for w in weights {
            out.weighs[w.reader.index()] = true;
        }
        out.collect();
        out.group();
        for at in 0..out.edges.len() {
            let (source, reader, wire) = out.edges[at];
            out.connect(source, reader, wire);
        }
        out
    }

    /// The part of its box that an own node belongs to.
    pub(super) fn item(&self, n: NodeId) -> Item {
        Item::Nodes(self.group_of(n.index() as u32))
    }

    /// Collects the edges, and counts what stands before each node.
    fn collect(&mut self) {
        let flow = &self.scene.flow;
        let mut sources: Vec<Option<Source>> = vec![None; flow.graph.index_bound()];
        for (v, port) in &self.ports.input_of {
            sources[v.index()] = Some(Source::Input(*port));
        }
        for &n in &flow.order {
            let kind = self.scene.kind(n);
            if kind == Kind::Idle {
                continue;
            }
            let passed = self.scene.passes(n).then(|| flow.input(n, 0)).flatten();
            let passed = passed.map(|v| sources[v.index()]);
            let passed = passed.or_else(|| self.prepares(n).then(|| self.nearest(n, &sources)));
            for v in flow.graph.node_outputs(n).into_iter().flatten() {
                sources[v.index()] = passed.unwrap_or(Some(Source::Node(n)));
            }
            if passed.is_some() {
                continue;
            }
            let mut read: Vec<ValueId> = flow.graph.node_sources(n).collect();
            read.sort_unstable();
            read.dedup();
            for value in read {
                let Some(source) = sources[value.index()] else {
                    continue;
                };
                let looks_up =
                    matches!(source, Source::Input(_)) && flow.is_lookup(n) && kind == Kind::Main;
                let wire = Wire {
                    aside: !flow.carries(value) && !looks_up,
                    value,
                };
                self.edges.push((source, Reader::Node(n), wire));
                self.count(source, n);
            }
        }
        for &(value, port) in &self.ports.output_of {
            if let Some(source) = sources[value.index()] {
                let aside = self.ports.outputs[port].aside;
                self.edges
                    .push((source, Reader::Output(port), Wire { aside, value }));
            }
        }
    }

    /// Whether a node prepares masks or positions inside a module: only what stands outside of all is drawn.
    fn prepares(&self, n: NodeId) -> bool {
        let spot = self.boxes.spot(self.scene.home(n));
        let drawn = &self.boxes.all[spot.block];
        let deep = spot.seen && drawn.depth > 1 && drawn.main;
        let aside = self.scene.kind(n) == Kind::Aside && !self.weighs[n.index()];
        aside && (deep || self.scene.adapter(n).is_some())
    }

    /// Where what such a node makes comes from: from something in the same box, if there is.
    fn nearest(&self, n: NodeId, sources: &[Option<Source>]) -> Option<Source> {
        let (block, _) = self.place(n);
        let mut read: Vec<ValueId> = self.scene.flow.graph.node_sources(n).collect();
        read.sort_unstable();
        let all = || read.iter().filter_map(|v| sources[v.index()]);
        all()
            .find(|s| self.begin(*s).0 == block)
            .or_else(|| all().next())
    }

    /// The box that a source stands in, and as what.
    fn begin(&self, source: Source) -> (usize, Item) {
        match source {
            Source::Input(port) => (0, Item::Input(port)),
            Source::Node(n) => self.place(n),
        }
    }

    fn end(&self, reader: Reader) -> (usize, Item) {
        match reader {
            Reader::Output(port) => (0, Item::Output(port)),
            Reader::Node(n) => self.place(n),
        }
    }

    fn place(&self, n: NodeId) -> (usize, Item) {
        let spot = self.boxes.spot(self.scene.home(n));
        if spot.seen {
            return (spot.block, self.item(n));
        }
        (self.boxes.all[spot.block].parent, Item::Module(spot.block))
    }

    /// Raises two places to the box that holds both. `out` and `enter` hear of each box that is left.
    fn meet(
        &self,
        (mut a, mut from): (usize, Item),
        (mut b, mut to): (usize, Item),
        mut left: impl FnMut(bool, usize, Item),
    ) -> (usize, Item, Item) {
        let all = &self.boxes.all;
        while a != b {
            let (x, y) = (all[a].depth, all[b].depth);
            if x >= y {
                left(true, a, from);
                (a, from) = (all[a].parent, Item::Module(a));
            }
            if y >= x {
                left(false, b, to);
                (b, to) = (all[b].parent, Item::Module(b));
            }
        }
        (a, from, to)
    }

    /// Notes that a node stands behind a source.
    fn count(&mut self, source: Source, n: NodeId) {
        let (begin, end) = (self.begin(source), self.place(n));
        let (_, from, to) = self.meet(begin, end, |_, _, _| {});
        if from == to {
            return;
        }
        let adapter = match source {
            Source::Node(n) => self.scene.adapter(n),
            Source::Input(_) => None,
        };
        let before = match from {
            Item::Module(b) => self.box_levels[b] + u32::from(matches!(to, Item::Nodes(_))),
            // Nodes of an adapter are a part of their own.
            Item::Nodes(i) => {
                let changes = adapter != self.scene.adapter(n) && adapter.is_some();
                self.levels[i as usize] + u32::from(changes)
            }
            Item::Input(_) | Item::Output(_) | Item::Bare(_) => 0,
        };
        let slot = match to {
            Item::Module(b) => &mut self.box_levels[b],
            Item::Nodes(i) => &mut self.levels[i as usize],
            Item::Input(_) | Item::Output(_) | Item::Bare(_) => return,
        };
        *slot = before.max(*slot);
    }

    fn group_of(&self, mut i: u32) -> u32 {
        while self.groups[i as usize] != i {
            i = self.groups[i as usize];
        }
        i
    }

    fn find(&mut self, mut i: u32) -> u32 {
        while self.groups[i as usize] != i {
            let above = self.groups[i as usize];
            self.groups[i as usize] = self.groups[above as usize];
            i = self.groups[i as usize];
        }
        i
    }

    fn unite(&mut self, a: u32, b: u32) {
        let (a, b) = (self.find(a), self.find(b));
        let (first, other) = (a.min(b), a.max(b));
        self.groups[other as usize] = first;
    }

    /// Puts nodes together: an adapter's between the same parts, others that feed each other.
    fn group(&mut self) {
        let mut places: FxHashMap<(usize, u32, u32), u32> = FxHashMap::default();
        // What an adapter prepares aside goes with what follows.
        let mut levels: FxHashMap<(usize, u32), u32> = FxHashMap::default();
        for &n in self.scene.flow.order.iter().rev() {
            let spot = self.boxes.spot(self.scene.home(n));
            let idle = self.scene.kind(n) == Kind::Idle;
            let Some(adapter) = self.scene.adapter(n).filter(|_| spot.seen && !idle) else {
                continue;
            };
            let i = n.index() as u32;
            let main = self.scene.kind(n) == Kind::Main;
            let level = *levels
                .entry((spot.block, adapter))
                .and_modify(|l| {
                    if main {
                        *l = self.levels[n.index()];
                    }
                })
                .or_insert(self.levels[n.index()]);
            let first = *places.entry((spot.block, adapter, level)).or_insert(i);
            self.unite(first, i);
        }
        for at in 0..self.edges.len() {
            let (Source::Node(a), Reader::Node(b), _) = self.edges[at] else {
                continue;
            };
            let alike = |n: NodeId| {
                let spot = self.boxes.spot(self.scene.home(n));
                (
                    spot.seen,
                    spot.block,
                    self.levels[n.index()],
                    self.scene.kind(n),
                    self.scene.adapter(n),
                )
            };
            if alike(a) == alike(b) && alike(a).0 {
                self.unite(a.index() as u32, b.index() as u32);
            }
        }
        // Paths of one step from here on.
        for i in 0..self.groups.len() as u32 {
            self.groups[i as usize] = self.find(i);
        }
    }

    /// Notes an edge in every box that it goes through.
    fn connect(&mut self, source: Source, reader: Reader, wire: Wire) {
        let mut left = Vec::new();
        let (begin, end) = (self.begin(source), self.end(reader));
        let note = |leaves, block, item| left.push((leaves, block, item));
        let (block, from, to) = self.meet(begin, end, note);
        if from != to {
            self.wire(block, (Tip::Item(from), Tip::Item(to)), wire);
        }
        for (leaves, block, item) in left.into_iter().filter(|_| !wire.aside) {
            let tips = if leaves {
                (Tip::Item(item), Tip::Out)
            } else {
                let known = self.entries[block].len().min(ENTRIES - 1);
                let entry = *self.entries[block].entry(source).or_insert(known);
                (Tip::In(entry), Tip::Item(item))
            };
            self.wire(block, tips, wire);
        }
    }

    fn wire(&mut self, block: usize, tips: (Tip, Tip), wire: Wire) {
        let there = self.wires[block].entry(tips).or_insert(wire);
        if there.aside && !wire.aside {
            *there = wire;
        }
    }
}
