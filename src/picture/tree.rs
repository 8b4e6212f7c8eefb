//! Which modules are drawn: equal ones in a row as one, lists as their entries, and no more than a person can look at.

use super::scene::{Kind, Scene};
use super::text::{NAME, cut};
use super::weights::Weight;
use crate::diag::count;
use crate::ir::NodeId;
use crate::ir::layers::number;
use crate::select::{ModuleId, ROOT};
use rustc_hash::FxHashMap;

/// Modules nest no deeper in a picture: what is deeper is part of the last one.
const DEEPEST: u32 = 12;
/// Most boxes in one box, and in all.
const SIBLINGS: usize = 40;
const BOXES: usize = 600;

/// A box of the picture.
#[derive(Clone, Debug)]
pub(super) struct Drawn {
    /// The module that is drawn: the first one, of several.
    pub(super) module: ModuleId,
    /// The box around it; the first one's is itself.
    pub(super) parent: usize,
    /// All modules that it stands for.
    pub(super) members: Vec<ModuleId>,
    pub(super) name: String,
    /// Whether hidden states pass.
    pub(super) main: bool,
    /// Whether it stands for modules that are left out, and nothing in it is drawn.
    pub(super) rest: bool,
    pub(super) depth: u32,
    /// Where its first node stands.
    pub(super) first: u32,
}

/// Where a module is: in a box, and whether as a part that can be seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Spot {
    pub(super) block: usize,
    /// Whether it is the one that is drawn, and not one that the box stands for too.
    pub(super) seen: bool,
}

/// The boxes, parents first, and the box of each module.
pub(super) struct Boxes {
    pub(super) all: Vec<Drawn>,
    spots: Vec<Spot>,
    /// Number of modules that are left out, beyond those that equal ones stand for.
    pub(super) left_out: usize,
}

impl Boxes {
    pub(super) fn spot(&self, m: ModuleId) -> Spot {
        self.spots[m.index()]
    }
}

/// What is known of each module before any is drawn.
struct Modules {
    /// The form: equal numbers for equal modules.
    forms: Vec<u32>,
    /// Whether something of the model is in it.
    matters: Vec<bool>,
    /// Whether nodes of its own are in it.
    own: Vec<bool>,
    /// Whether hidden states pass, or parameters are in it.
    main: Vec<bool>,
    /// Where its first node stands.
    first: Vec<u32>,
}

/// Decides what is drawn. Linear in the size of the graph, sorting apart.
pub(super) fn boxes(scene: &Scene<'_>, weights: &[Weight]) -> Boxes {
    let known = Modules::new(scene, weights);
    let root = Drawn {
        module: ROOT,
        parent: 0,
        members: vec![ROOT],
        name: String::new(),
        main: true,
        rest: false,
        depth: 0,
        first: 0,
    };
    let mut out = Boxes {
        all: vec![root],
        spots: Vec::new(),
        left_out: 0,
    };
    let mut given: FxHashMap<ModuleId, Spot> = FxHashMap::default();
    // In the order of their depth, so that what is left out is what lies deepest.
    let mut at = 0;
    while at < out.all.len() {
        // What makes masks and positions is one box.
        let main = at == 0 || known.main[out.all[at].module.index()];
        if main && out.all[at].depth < DEEPEST && !out.all[at].rest {
            let parts = entries(scene, &known, out.all[at].module);
            out.put(at, runs(&known, parts), &known, &mut given);
        }
        at += 1;
    }
    for m in scene.tree.ids() {
        let parent = scene.tree.module(m).parent;
        let spot = match (given.get(&m), m == ROOT) {
            (_, true) => Spot {
                block: 0,
                seen: true,
            },
            // What is in a module that is not drawn is not drawn either.
            (Some(spot), _) if out.spots[parent.index()].seen => *spot,
            _ => out.spots[parent.index()],
        };
        out.spots.push(spot);
    }
    out
}

impl Boxes {
    /// Puts boxes into a box, one for each run of equal modules. What has no room is in one more.
    fn put(
        &mut self,
        parent: usize,
        runs: Vec<Vec<Entry>>,
        known: &Modules,
        given: &mut FxHashMap<ModuleId, Spot>,
    ) {
        let room = SIBLINGS.min(BOXES.saturating_sub(self.all.len()));
        let shown = if runs.len() > room {
            room.saturating_sub(1)
        } else {
            runs.len()
        };
        let mut left: Vec<Entry> = Vec::new();
        for (i, run) in runs.into_iter().enumerate() {
            if i < shown {
                let name = named(&run);
                self.push(parent, &run, name, false, known, given);
            } else {
                left.extend(run);
            }
        }
        if !left.is_empty() {
            self.left_out += left.len();
            let name = count(left.len(), "more module", "more modules");
            self.push(parent, &left, name, true, known, given);
        }
    }

    fn push(
        &mut self,
        parent: usize,
        entries: &[Entry],
        name: String,
        rest: bool,
        known: &Modules,
        given: &mut FxHashMap<ModuleId, Spot>,
    ) {
        let members: Vec<ModuleId> = entries.iter().map(|e| e.module).collect();
        let Some(&module) = members.first() else {
            return;
        };
        let block = self.all.len();
        for (i, m) in members.iter().enumerate() {
            let seen = i == 0 && !rest;
            given.insert(*m, Spot { block, seen });
        }
        let first = members.iter().map(|m| known.first[m.index()]).min();
        self.all.push(Drawn {
            module,
            parent,
            name,
            main: rest || known.main[module.index()],
            first: first.unwrap_or(0),
            members,
            rest,
            depth: self.all[parent].depth + 1,
        });
    }
}

/// A module among its siblings.
#[derive(Clone, Debug)]
struct Entry {
    module: ModuleId,
    /// The list that it is an entry of, and what its number is there.
    list: Option<(String, usize)>,
    name: String,
}

/// What is drawn in a module: its parts, and of lists their entries, in execution order.
fn entries(scene: &Scene<'_>, known: &Modules, of: ModuleId) -> Vec<Entry> {
    let mut out = Vec::new();
    let path = &scene.tree.module(of).path;
    let own = path.rsplit('.').next().unwrap_or_default();
    for (name, &m) in &scene.tree.module(of).children {
        if !known.matters[m.index()] {
            continue;
        }
        let inner = &scene.tree.module(m).children;
        let inner = || inner.iter().filter(|(_, m)| known.matters[m.index()]);
        let list = !known.own[m.index()]
            && inner().next().is_some()
            && inner().all(|(n, _)| number(n).is_some());
        if list {
            out.extend(inner().map(|(n, m)| Entry {
                module: *m,
                list: number(n).map(|n| (name.to_string(), n)),
                name: format!("{name}.{n}"),
            }));
        } else {
            out.push(Entry {
                module: m,
                list: number(name).map(|n| (own.to_owned(), n)),
                name: name.to_string(),
            });
        }
    }
    // A list stands where its first entry does.
    let mut begins: FxHashMap<String, u32> = FxHashMap::default();
    for e in &out {
        if let Some((list, _)) = &e.list {
            let first = known.first[e.module.index()];
            let begin = begins.entry(list.clone()).or_insert(first);
            *begin = first.min(*begin);
        }
    }
    out.sort_by_cached_key(|e| match &e.list {
        Some((list, n)) => (begins[list], list.clone(), *n),
        None => (known.first[e.module.index()], e.name.clone(), 0),
    });
    out
}

/// Entries of one list that are equal and stand side by side, together.
fn runs(known: &Modules, entries: Vec<Entry>) -> Vec<Vec<Entry>> {
    let mut out: Vec<Vec<Entry>> = Vec::new();
    for e in entries {
        let same = |other: &Entry| {
            let lists = (&e.list, &other.list);
            matches!(lists, (Some((a, _)), Some((b, _))) if a == b)
                && known.forms[e.module.index()] == known.forms[other.module.index()]
        };
        match out.last_mut() {
            Some(run) if run.last().is_some_and(same) => run.push(e),
            _ => out.push(vec![e]),
        }
    }
    out
}

/// What a run is called: `layers 0–27`.
fn named(run: &[Entry]) -> String {
    match run {
        [first, .., last] => match (&first.list, &last.list) {
            (Some((list, a)), Some((_, b))) => {
                format!("{} {a}–{b}", cut(list, NAME)).trim().to_owned()
            }
            _ => cut(&first.name, NAME),
        },
        [only] => match &only.list {
            Some((list, n)) if !list.is_empty() => format!("{} {n}", cut(list, NAME)),
            _ => cut(&only.name, NAME),
        },
        [] => String::new(),
    }
}

impl Modules {
    fn new(scene: &Scene<'_>, weights: &[Weight]) -> Modules {
        let n = scene.tree.ids().count();
        let mut out = Modules {
            forms: vec![0; n],
            matters: vec![false; n],
            own: vec![false; n],
            main: vec![false; n],
            first: vec![u32::MAX; n],
        };
        for &node in &scene.flow.order {
            if scene.kind(node) > Kind::Idle {
                let i = scene.home(node).index();
                out.matters[i] = true;
                out.main[i] |= scene.kind(node) == Kind::Main;
                let main = scene.kind(node) == Kind::Main;
                out.own[i] |= main || !scene.passes(node) && scene.adapter(node).is_none();
                out.first[i] = out.first[i].min(scene.flow.place(node));
            }
        }
        for w in weights {
            out.matters[scene.home(w.reader).index()] = true;
            out.main[scene.home(w.reader).index()] = true;
        }
        let ids: Vec<ModuleId> = scene.tree.ids().collect();
        for m in ids.into_iter().rev() {
            let parent = scene.tree.module(m).parent.index();
            out.matters[parent] |= out.matters[m.index()];
            out.main[parent] |= out.main[m.index()];
            out.first[parent] = out.first[parent].min(out.first[m.index()]);
        }
        out.compare(scene, weights);
        out
    }

    /// Gives equal modules equal numbers: those of one class with equal operators, weights of equal shapes, the same adapters, and equal
    /// parts of the same names.
    fn compare(&mut self, scene: &Scene<'_>, weights: &[Weight]) {
        let mut words: FxHashMap<String, u32> = FxHashMap::default();
        let mut word = |text: String| {
            let next = words.len() as u32;
            *words.entry(text).or_insert(next)
        };
        let mut own: Vec<Vec<u32>> = vec![Vec::new(); self.forms.len()];
        for &n in &scene.flow.order {
            if scene.kind(n) == Kind::Main && !scene.passes(n) {
                own[scene.home(n).index()].push(word(described(scene, n)));
            }
        }
        for w in weights {
            let value = scene.flow.graph.value(w.value);
            let dims = value.tensor.as_ref().map(|t| &t.dims);
            let text = format!("{dims:?} {:?} {:?} {}", w.stored, w.adapter, w.trains);
            let form = word(text);
            for n in w.others.iter().chain([&w.reader]) {
                own[scene.home(*n).index()].push(form);
            }
        }
        let mut forms: FxHashMap<Vec<u32>, u32> = FxHashMap::default();
        let ids: Vec<ModuleId> = scene.tree.ids().collect();
        for m in ids.into_iter().rev() {
            let module = scene.tree.module(m);
            let mut key = std::mem::take(&mut own[m.index()]);
            key.sort_unstable();
            key.push(u32::MAX);
            key.push(word(format!("{:?}", module.class)));
            for (name, part) in &module.children {
                // What but prepares sizes or masks is shared by all layers, and stands in the first.
                if self.forms[part.index()] != 0 {
                    key.extend([word(format!("part {name}")), self.forms[part.index()]]);
                }
            }
            let empty = key.len() == 2;
            let next = forms.len() as u32 + 1;
            self.forms[m.index()] = if empty {
                0
            } else {
                *forms.entry(key).or_insert(next)
            };
        }
    }
}

/// A node as far as it tells modules apart: its operator, its adapter, and the shapes of the constants that it reads.
fn described(scene: &Scene<'_>, n: NodeId) -> String {
    let flow = &scene.flow;
    let inputs = flow.inputs(n).into_iter().flatten();
    let constants = inputs.filter(|v| flow.is_constant(*v));
    let sizes = constants.map(|v| {
        let rank = flow.rank(v).unwrap_or(usize::MAX);
        let dims: Vec<Option<i64>> = (0..rank.min(4)).map(|i| flow.size(v, i as i64)).collect();
        dims
    });
    let sizes: Vec<Vec<Option<i64>>> = sizes.take(8).collect();
    format!("{} {:?} {sizes:?}", flow.node(n).op, scene.adapter(n))
}
