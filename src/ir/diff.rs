//! Structural difference of two models, by module.
//!
//! Nodes are the same when they have the same name and operator, or else make the same value with the same operator. A node is
//! *changed* when it reads other values, has other attributes or subgraphs, or makes values of other names. Order alone, doc strings,
//! `value_info` and how a tensor is stored are no difference. Linear in the size of the graphs; weights are read only where the two
//! models do not refer to the same bytes.

use super::attr::AttrValue;
use super::graph::{Graph, GraphPort};
use super::id::{NodeId, ValueId};
use super::model::Model;
use super::node::{Metadata, Node};
use super::tensor::{Payload, TensorData};
use super::text;
use indexmap::IndexMap;
use rustc_hash::FxHashMap;
use std::fmt;

mod folded;

pub(crate) use folded::Alike;

/// Unchanged nodes shown on either side of a change.
const CONTEXT: usize = 2;

/// How two models differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Diff {
    /// Nodes of the main graph, by module; only modules with a change, in graph order.
    pub(crate) modules: Vec<ModuleDiff>,
    /// Initializers.
    pub(crate) initializers: Vec<Entry>,
    /// Graph inputs and outputs.
    pub(crate) interface: Vec<Entry>,
    /// Model-local functions.
    pub(crate) functions: Vec<Entry>,
    /// Opset imports, IR version, producer and `metadata_props` of the model and the main graph.
    pub(crate) header: Vec<Entry>,
}

/// The changes in one module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ModuleDiff {
    /// Its name, as the grouping function gives it.
    pub(crate) module: String,
    /// Changed nodes with some unchanged ones around them.
    pub(crate) lines: Vec<Line>,
}

/// One line of a module's listing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Line {
    /// A node that differs.
    Node(Entry),
    /// An unchanged node, for context.
    Context(String),
    /// Unchanged nodes that are not shown.
    Gap,
}

/// Something that differs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// How.
    pub(crate) change: Change,
    /// What, as the text form shows it; of a changed one, as it is in the second model.
    pub(crate) text: String,
    /// For a change: from what to what.
    pub(crate) details: Vec<String>,
}

/// A kind of difference.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Change {
    /// Only the second model has it.
    Added,
    /// Only the first model has it.
    Removed,
    /// Both have it, and it is not the same.
    Changed,
}

/// Counts of a list of differences.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Number of [`Change::Added`].
    pub(crate) added: usize,
    /// Number of [`Change::Removed`].
    pub(crate) removed: usize,
    /// Number of [`Change::Changed`].
    pub(crate) changed: usize,
}

impl Counts {
    fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>) -> Self {
        let mut counts = Counts::default();
        for e in entries {
            match e.change {
                Change::Added => counts.added += 1,
                Change::Removed => counts.removed += 1,
                Change::Changed => counts.changed += 1,
            }
        }
        counts
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} added, {} removed, {} changed",
            self.added, self.removed, self.changed
        )
    }
}

impl ModuleDiff {
    /// The nodes that differ.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.lines.iter().filter_map(|l| match l {
            Line::Node(e) => Some(e),
            Line::Context(_) | Line::Gap => None,
        })
    }
}

impl Diff {
    /// Whether the models are the same.
    pub fn is_empty(&self) -> bool {
        self.modules.is_empty()
            && self.initializers.is_empty()
            && self.interface.is_empty()
            && self.functions.is_empty()
            && self.header.is_empty()
    }

    /// Counts over the nodes of all modules.
    pub(crate) fn nodes(&self) -> Counts {
        Counts::of(self.modules.iter().flat_map(ModuleDiff::entries))
    }
}

/// The difference from `a` to `b`. `module_of` names the module that a node of the main graph belongs to.
pub(crate) fn diff(a: &Model, b: &Model, module_of: &dyn Fn(&Model, NodeId) -> String) -> Diff {
    Diff {
        modules: modules(a, b, module_of),
        initializers: initializers(&a.graph, &b.graph),
        interface: interface(&a.graph, &b.graph),
        functions: functions(a, b),
        header: header(a, b),
    }
}

// ---- nodes -------------------------------------------------------------------------------------------------------------------

/// Which nodes and values of the two graphs are the same.
struct Matches {
    /// Nodes of `b` by node of `a`, and back.
    to_b: FxHashMap<NodeId, NodeId>,
    to_a: FxHashMap<NodeId, NodeId>,
    /// Values of `b` by value of `a`, and back.
    value_to_b: FxHashMap<ValueId, ValueId>,
    value_to_a: FxHashMap<ValueId, ValueId>,
}

fn order(g: &Graph) -> Vec<NodeId> {
    g.order().unwrap_or_else(|_| {
        let mut nodes: Vec<NodeId> = g.nodes().collect();
        nodes.sort_by_key(|&n| g.node(n).order());
        nodes
    })
}

fn matches(a: &Graph, b: &Graph, order_a: &[NodeId], order_b: &[NodeId]) -> Matches {
    let mut m = Matches {
        to_b: FxHashMap::default(),
        to_a: FxHashMap::default(),
        value_to_b: FxHashMap::default(),
        value_to_a: FxHashMap::default(),
    };
    let by_name = |g: &Graph, n: NodeId| -> Option<Box<str>> {
        Some(g.node(n).name.clone()).filter(|name| !name.is_empty())
    };
    let by_output = |g: &Graph, n: NodeId| -> Option<Box<str>> {
        let first = g.node_outputs(n).into_iter().flatten().next()?;
        Some(g.name_of(first).into())
    };
    m.pair(a, b, order_a, order_b, by_name);
    m.pair(a, b, order_a, order_b, by_output);
    let sources = a.values().filter(|&v| a.producer(v).is_none());
    for va in sources {
        let same = b.find(a.name_of(va));
        if let Some(vb) = same.filter(|&vb| b.producer(vb).is_none()) {
            m.value_to_b.insert(va, vb);
            m.value_to_a.insert(vb, va);
        }
    }
    m
}

impl Matches {
    /// Pairs nodes that are alone in having a key, and have the same one.
    fn pair(
        &mut self,
        a: &Graph,
        b: &Graph,
        order_a: &[NodeId],
        order_b: &[NodeId],
        key: impl Fn(&Graph, NodeId) -> Option<Box<str>>,
    ) {
        let mut seen: FxHashMap<Box<str>, Option<NodeId>> = FxHashMap::default();
        for &n in order_b.iter().filter(|n| !self.to_a.contains_key(n)) {
            if let Some(k) = key(b, n) {
                seen.entry(k).and_modify(|e| *e = None).or_insert(Some(n));
            }
        }
        let mut times: FxHashMap<Box<str>, usize> = FxHashMap::default();
        let free: Vec<(NodeId, Box<str>)> = order_a
            .iter()
            .filter(|n| !self.to_b.contains_key(n))
            .filter_map(|&n| Some((n, key(a, n)?)))
            .collect();
        for (_, k) in &free {
            *times.entry(k.clone()).or_default() += 1;
        }
        for (na, k) in free {
            let Some(&Some(nb)) = seen.get(&k) else {
                continue;
            };
            if times.get(&k) != Some(&1) || a.node(na).op != b.node(nb).op {
                continue;
            }
            self.to_b.insert(na, nb);
            self.to_a.insert(nb, na);
            for (va, vb) in a.node_outputs(na).into_iter().zip(b.node_outputs(nb)) {
                if let (Some(va), Some(vb)) = (va, vb) {
                    self.value_to_b.insert(va, vb);
                    self.value_to_a.insert(vb, va);
                }
            }
        }
    }

    /// Whether a reader sees the same value in both graphs: matched ones, or two new ones of the same name.
    fn same(&self, a: &Graph, b: &Graph, va: Option<ValueId>, vb: Option<ValueId>) -> bool {
        match (va, vb) {
            (None, None) => true,
            (Some(va), Some(vb)) => match self.value_to_b.get(&va) {
                Some(&to) => to == vb,
                None => !self.value_to_a.contains_key(&vb) && a.name_of(va) == b.name_of(vb),
            },
            _ => false,
        }
    }
}

/// A node in the merged listing of both graphs.
#[derive(Clone, Copy)]
enum Listed {
    Removed(NodeId),
    Added(NodeId),
    Both(NodeId, NodeId),
}

/// The nodes of `b` in order, with those that only `a` has behind their predecessors in `a`.
fn merged(order_a: &[NodeId], order_b: &[NodeId], m: &Matches) -> Vec<Listed> {
    let mut removed: FxHashMap<Option<NodeId>, Vec<NodeId>> = FxHashMap::default();
    let mut before = None;
    for &n in order_a {
        match m.to_b.get(&n) {
            Some(&nb) => before = Some(nb),
            None => removed.entry(before).or_default().push(n),
        }
    }
    let gone = |at: Option<NodeId>| removed.get(&at).into_iter().flatten().copied();
    let mut out: Vec<Listed> = gone(None).map(Listed::Removed).collect();
    for &n in order_b {
        out.push(match m.to_a.get(&n) {
            Some(&na) => Listed::Both(na, n),
            None => Listed::Added(n),
        });
        out.extend(gone(Some(n)).map(Listed::Removed));
    }
    out
}

fn modules(a: &Model, b: &Model, module_of: &dyn Fn(&Model, NodeId) -> String) -> Vec<ModuleDiff> {
    let (ga, gb) = (&a.graph, &b.graph);
    let (order_a, order_b) = (order(ga), order(gb));
    let m = matches(ga, gb, &order_a, &order_b);
    let mut by_module: IndexMap<String, Vec<(Listed, Option<Entry>)>> = IndexMap::new();
    for listed in merged(&order_a, &order_b, &m) {
        let (module, entry) = match listed {
            Listed::Removed(n) => (
                module_of(a, n),
                Some(plain(Change::Removed, text::node_text(ga, n))),
            ),
            Listed::Added(n) => (
                module_of(b, n),
                Some(plain(Change::Added, text::node_text(gb, n))),
            ),
            Listed::Both(na, nb) => (module_of(b, nb), changed_node(ga, gb, na, nb, &m)),
        };
        by_module.entry(module).or_default().push((listed, entry));
    }
    by_module
        .into_iter()
        .filter(|(_, lines)| lines.iter().any(|(_, e)| e.is_some()))
        .map(|(module, lines)| ModuleDiff {
            module,
            lines: hunks(gb, lines),
        })
        .collect()
}

fn plain(change: Change, text: String) -> Entry {
    Entry {
        change,
        text,
        details: Vec::new(),
    }
}

/// Changes with their context; everything else becomes gaps.
fn hunks(gb: &Graph, lines: Vec<(Listed, Option<Entry>)>) -> Vec<Line> {
    let mut near = vec![false; lines.len()];
    for (i, _) in lines.iter().enumerate().filter(|(_, (_, e))| e.is_some()) {
        let end = (i + CONTEXT + 1).min(near.len());
        near[i.saturating_sub(CONTEXT)..end].fill(true);
    }
    let mut out = Vec::new();
    for ((listed, entry), near) in lines.into_iter().zip(near) {
        match (entry, listed) {
            (Some(entry), _) => out.push(Line::Node(entry)),
            (None, Listed::Both(_, n)) if near => out.push(Line::Context(text::node_text(gb, n))),
            _ if out.last() == Some(&Line::Gap) => {}
            _ => out.push(Line::Gap),
        }
    }
    out
}

fn changed_node(a: &Graph, b: &Graph, na: NodeId, nb: NodeId, m: &Matches) -> Option<Entry> {
    let mut details = Vec::new();
    let name = |g: &Graph, v: Option<ValueId>| {
        v.map_or_else(|| "_".to_owned(), |v| text::value_text(g, v))
    };
    let mut slots = |what: &str, va: &[Option<ValueId>], vb: &[Option<ValueId>], by_name: bool| {
        for i in 0..va.len().max(vb.len()) {
            let (x, y) = (va.get(i).copied(), vb.get(i).copied());
            let same = match (x, y) {
                (Some(x), Some(y)) if by_name => name(a, x) == name(b, y),
                (Some(x), Some(y)) => m.same(a, b, x, y),
                _ => false,
            };
            if !same {
                let show = |g, v: Option<Option<ValueId>>| {
                    v.map_or_else(|| "none".to_owned(), |v| name(g, v))
                };
                let (from, to) = (show(a, x), show(b, y));
                let note = if from == to {
                    " (another value of this name)"
                } else {
                    ""
                };
                details.push(format!("{what} {i}: {from} -> {to}{note}"));
            }
        }
    };
    slots("input", &a.node_inputs(na), &b.node_inputs(nb), false);
    slots("output", &a.node_outputs(na), &b.node_outputs(nb), true);
    let captures = |g: &Graph, n| g.node_captures(n).into_iter().map(Some).collect::<Vec<_>>();
    slots("capture", &captures(a, na), &captures(b, nb), false);
    let (x, y) = (a.node(na), b.node(nb));
    attributes(x, y, &mut details);
    if x.name != y.name {
        details.push(format!("name: {:?} -> {:?}", x.name, y.name));
    }
    metadata(&x.metadata, &y.metadata, &mut details);
    (!details.is_empty()).then(|| Entry {
        change: Change::Changed,
        text: text::node_text(b, nb),
        details,
    })
}

fn attributes(a: &Node, b: &Node, details: &mut Vec<String>) {
    let show = |v: Option<&AttrValue>| v.map_or_else(|| "none".to_owned(), text::attribute_text);
    let more = b.attrs.keys().filter(|k| !a.attrs.contains_key(*k));
    for name in a.attrs.keys().chain(more) {
        let (x, y) = (a.attr(name), b.attr(name));
        let same = match (x, y) {
            (Some(x), Some(y)) => same_attribute(x, y),
            _ => false,
        };
        if !same {
            details.push(format!("{name}: {} -> {}", show(x), show(y)));
        }
    }
}

fn same_attribute(a: &AttrValue, b: &AttrValue) -> bool {
    use AttrValue as V;
    let bits = |x: &[f32]| x.iter().map(|f| f.to_bits()).collect::<Vec<_>>();
    match (a, b) {
        (V::Float(a), V::Float(b)) => a.to_bits() == b.to_bits(),
        (V::Int(a), V::Int(b)) => a == b,
        (V::String(a), V::String(b)) | (V::Other(a), V::Other(b)) => a == b,
        (V::Tensor(a), V::Tensor(b)) => same_tensor(a, b),
        (V::Floats(a), V::Floats(b)) => bits(a) == bits(b),
        (V::Ints(a), V::Ints(b)) => a == b,
        (V::Strings(a), V::Strings(b)) => a == b,
        (V::Tensors(a), V::Tensors(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same_tensor(a, b))
        }
        (V::Graph(a), V::Graph(b)) => text::graph_text(a) == text::graph_text(b),
        (V::Graphs(a), V::Graphs(b)) => {
            a.len() == b.len()
                && a.iter()
                    .zip(b)
                    .all(|(a, b)| text::graph_text(a) == text::graph_text(b))
        }
        (V::Ref { name, kind }, V::Ref { name: n, kind: k }) => (name, kind) == (n, k),
        _ => false,
    }
}

/// The same elements. Two references to the same range of the same file are the same without being read.
fn same_tensor(a: &TensorData, b: &TensorData) -> bool {
    if (a.dtype, &a.dims) != (b.dtype, &b.dims) {
        return false;
    }
    if let (Payload::External(x), Payload::External(y)) = (&a.payload, &b.payload)
        && x.folder == y.folder
        && x.entries == y.entries
    {
        return true;
    }
    match (a.bytes(), b.bytes()) {
        (Some(x), Some(y)) => (x.as_ptr(), x.len()) == (y.as_ptr(), y.len()) || x == y,
        // Strings, and tensors whose bytes are not here.
        _ => a.payload == b.payload,
    }
}

// ---- everything else -----------------------------------------------------------------------------------------------------------

/// Compares two lists of named things.
fn compare<K: std::hash::Hash + Eq, A, B>(
    a: &IndexMap<K, A>,
    b: &IndexMap<K, B>,
    show_a: impl Fn(&K, &A) -> String,
    show_b: impl Fn(&K, &B) -> String,
    details: impl Fn(&A, &B) -> Vec<String>,
) -> Vec<Entry> {
    let mut out = Vec::new();
    for (k, x) in a {
        match b.get(k) {
            None => out.push(plain(Change::Removed, show_a(k, x))),
            Some(y) => {
                let details = details(x, y);
                if !details.is_empty() {
                    out.push(Entry {
                        change: Change::Changed,
                        text: show_b(k, y),
                        details,
                    });
                }
            }
        }
    }
    let added = b.iter().filter(|(k, _)| !a.contains_key(*k));
    out.extend(added.map(|(k, y)| plain(Change::Added, show_b(k, y))));
    out
}

fn changed(what: &str, from: &str, to: &str, details: &mut Vec<String>) {
    if from != to {
        details.push(format!("{what}: {from} -> {to}"));
    }
}

fn initializers(a: &Graph, b: &Graph) -> Vec<Entry> {
    let list = |g: &Graph| -> IndexMap<Box<str>, ValueId> {
        g.initializers()
            .iter()
            .map(|&v| (g.value(v).name.clone(), v))
            .collect()
    };
    let show = |g: &Graph, v: &ValueId| {
        let tensor = g.value(*v).tensor.as_ref().map(text::tensor_text);
        format!(
            "{}: {}",
            text::value_text(g, *v),
            tensor.unwrap_or_default()
        )
    };
    compare(
        &list(a),
        &list(b),
        |_, v| show(a, v),
        |_, v| show(b, v),
        |&x, &y| {
            let (x, y) = (a.value(x), b.value(y));
            let mut details = Vec::new();
            if let (Some(t), Some(u)) = (&x.tensor, &y.tensor)
                && !same_tensor(t, u)
            {
                details.push(format!(
                    "tensor: {} -> {}",
                    text::tensor_text(t),
                    text::tensor_text(u)
                ));
            }
            metadata(&x.metadata, &y.metadata, &mut details);
            details
        },
    )
}

fn interface(a: &Graph, b: &Graph) -> Vec<Entry> {
    let mut out = Vec::new();
    for (what, pa, pb) in [
        ("input", a.inputs(), b.inputs()),
        ("output", a.outputs(), b.outputs()),
    ] {
        let list = |g: &Graph, ports: &[GraphPort]| -> IndexMap<String, (usize, String)> {
            let ports = ports.iter().enumerate().map(|(i, p)| {
                let ty =
                    p.ty.as_ref()
                        .map_or_else(|| "untyped".to_owned(), text::type_text);
                (text::value_text(g, p.value), (i, ty))
            });
            ports.collect()
        };
        let show = |k: &String, (_, ty): &(usize, String)| format!("{what} {k}: {ty}");
        out.extend(compare(&list(a, pa), &list(b, pb), show, show, |x, y| {
            let mut details = Vec::new();
            changed("type", &x.1, &y.1, &mut details);
            changed("position", &x.0.to_string(), &y.0.to_string(), &mut details);
            details
        }));
    }
    out
}

fn functions(a: &Model, b: &Model) -> Vec<Entry> {
    let list = |m: &Model| -> IndexMap<String, String> {
        let functions = m.functions.iter().map(|f| {
            let name = format!("{}::{}:{}", f.domain, f.name, f.overload);
            let opsets = format!("{:?}", f.opset_imports);
            (
                name.trim_end_matches(':').to_owned(),
                opsets + &text::graph_text(&f.body),
            )
        });
        functions.collect()
    };
    let show = |k: &String, _: &String| format!("function {k}");
    compare(&list(a), &list(b), show, show, |x, y| {
        if x == y {
            Vec::new()
        } else {
            vec!["the body differs".to_owned()]
        }
    })
}

fn metadata(a: &Metadata, b: &Metadata, details: &mut Vec<String>) {
    let show = |v: Option<&Box<str>>| v.map_or_else(|| "none".to_owned(), |v| format!("{v:?}"));
    let more = b.keys().filter(|k| !a.contains_key(*k));
    for key in a.keys().chain(more) {
        changed(key, &show(a.get(key)), &show(b.get(key)), details);
    }
}

fn header(a: &Model, b: &Model) -> Vec<Entry> {
    let list = |m: &Model| -> IndexMap<String, String> {
        let mut all = IndexMap::new();
        all.insert("ir_version".to_owned(), m.ir_version.to_string());
        all.insert(
            "producer".to_owned(),
            format!("{} {}", m.producer_name, m.producer_version),
        );
        all.insert("graph name".to_owned(), m.graph.name.to_string());
        let opsets = m.opset_imports.iter();
        all.extend(opsets.map(|(d, v)| (format!("opset {d:?}"), v.to_string())));
        let meta = |what: &str, map: &Metadata| -> Vec<(String, String)> {
            map.iter()
                .map(|(k, v)| (format!("{what} {k:?}"), format!("{v:?}")))
                .collect()
        };
        all.extend(meta("meta", &m.metadata));
        all.extend(meta("graph meta", &m.graph.metadata));
        all
    };
    let show = |k: &String, v: &String| format!("{k} = {v}");
    compare(&list(a), &list(b), show, show, |x, y| {
        let mut details = Vec::new();
        changed("was", x, y, &mut details);
        details
    })
}

// ---- showing -------------------------------------------------------------------------------------------------------------------

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Line::Node(e) => write!(f, "{e}"),
            Line::Context(text) => write!(f, "    {text}"),
            Line::Gap => f.write_str("    …"),
        }
    }
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let sign = match self.change {
            Change::Added => '+',
            Change::Removed => '-',
            Change::Changed => '~',
        };
        write!(f, "  {sign} {}", self.text)?;
        for d in &self.details {
            write!(f, "\n      {d}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Diff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (title, entries) in [
            ("header", &self.header),
            ("interface", &self.interface),
            ("functions", &self.functions),
        ] {
            section(f, title, entries)?;
        }
        for m in &self.modules {
            let name = match &*m.module {
                "" => "(no module)",
                name => name,
            };
            writeln!(f, "{name}: {}", Counts::of(m.entries()))?;
            for line in &m.lines {
                writeln!(f, "{line}")?;
            }
        }
        section(f, "initializers", &self.initializers)?;
        self.summary(f)
    }
}

impl Diff {
    fn summary(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.is_empty() {
            return f.write_str("no difference");
        }
        write!(
            f,
            "nodes: {}; initializers: {}; modules with changes: {}",
            self.nodes(),
            Counts::of(&self.initializers),
            self.modules.len()
        )
    }
}

fn section(f: &mut fmt::Formatter<'_>, title: &str, entries: &[Entry]) -> fmt::Result {
    if entries.is_empty() {
        return Ok(());
    }
    writeln!(f, "{title}: {}", Counts::of(entries))?;
    for e in entries {
        writeln!(f, "{e}")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
