//! The module tree: which module each node belongs to, as far as the exporter left witnesses of it.
//!
//! Witnesses, in order of trust: dynamo's metadata (`pkg.torch.onnx.name_scopes`, `namespace`), scoped node names as TorchScript,
//! optimum and the genai builder write them, scoped names of outputs (fused and quantized nodes keep them), the names of parameters
//! that the node alone reads, and the neighbours: a node without any witness belongs to the innermost module that holds what it reads
//! and what reads it. The name of a parameter with several readers is no witness, because exporters merge equal ones.

use super::parents::Parents;
use crate::analyze::flow::Flow;
use crate::analyze::norm::Norms;
use crate::infer::Verified;
use crate::ir::contract::{exporter, stamp};
use crate::ir::layers::number;
use crate::ir::{Node, NodeId, ValueId};
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeMap;

mod linears;

/// Names one module of a [`ModuleTree`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct ModuleId(u32);

impl ModuleId {
    /// Its place in [`ModuleTree::ids`].
    pub(crate) fn index(self) -> usize {
        self.0 as usize
    }
}

/// The model itself.
pub(crate) const ROOT: ModuleId = ModuleId(0);

/// How it is known which module a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Witness {
    /// Metadata that the exporter wrote.
    Metadata,
    /// The node's name.
    NodeName,
    /// The name of one of its outputs.
    ValueName,
    /// The name of a parameter that it alone reads.
    ParameterName,
    /// What it reads and what reads it.
    Neighbours,
    /// The shape of the graph around it.
    Structure,
    /// The interface names it outright.
    Explicit,
}

impl std::fmt::Display for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Witness::Metadata => "exporter metadata",
            Witness::NodeName => "node names",
            Witness::ValueName => "value names",
            Witness::ParameterName => "parameter names",
            Witness::Neighbours => "neighbours",
            Witness::Structure => "structure",
            Witness::Explicit => "the interface's `graph`",
        })
    }
}

/// Modules nest no deeper: what a name puts deeper belongs to the last of these. Each has its path, and a name of a million parts would
/// make a million paths.
const DEEPEST: u32 = 64;

/// One module.
#[derive(Clone, Debug)]
pub(crate) struct Module {
    /// Dotted path from the exported model: `model.layers.0.mlp`.
    pub path: Box<str>,
    /// The module it is part of.
    pub parent: ModuleId,
    /// Its parts, by name.
    pub children: BTreeMap<Box<str>, ModuleId>,
    /// Nodes that belong to it and to none of its parts, in execution order.
    pub nodes: Vec<NodeId>,
    /// The class that the exporter recorded.
    pub class: Option<Box<str>>,
    /// Number of modules that it is part of.
    pub(crate) depth: u32,
}

/// Whose modules a tree has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Whose {
    /// The base model's.
    Base,
    /// The base model's, and those of attached adapters.
    All,
}

/// Modules and their nodes.
#[derive(Clone, Debug)]
pub(crate) struct ModuleTree {
    modules: Vec<Module>,
    of_node: Vec<Option<(ModuleId, Witness)>>,
}

impl ModuleTree {
    /// The modules of a model's main graph, those of attached adapters among them.
    pub(crate) fn new(verified: &Verified) -> Self {
        let view = Flow::new(verified);
        let mut tree = ModuleTree::made(&view, Whose::All);
        tree.with_linears(&view);
        tree
    }

    /// The modules of the base model: what adapters added belongs to modules by its neighbours alone, so that a module's values are its
    /// own.
    pub(super) fn of_view(view: &Flow<'_>) -> Self {
        ModuleTree::made(view, Whose::Base)
    }

    fn made(view: &Flow<'_>, whose: Whose) -> Self {
        let mut tree = ModuleTree {
            modules: vec![Module {
                path: "".into(),
                parent: ROOT,
                children: BTreeMap::new(),
                nodes: Vec::new(),
                class: None,
                depth: 0,
            }],
            of_node: vec![None; view.graph.index_bound()],
        };
        let raw = tree.metadata(view, whose);
        tree.names(view, &raw);
        tree.parameters(view);
        tree.residuals(view, &Norms::new(view));
        tree.neighbours(view);
        tree.list_nodes(view);
        tree
    }

    /// The module.
    pub(crate) fn module(&self, id: ModuleId) -> &Module {
        &self.modules[id.0 as usize]
    }

    /// All modules; a module comes after the one it is part of.
    pub(crate) fn ids(&self) -> impl Iterator<Item = ModuleId> {
        (0..self.modules.len() as u32).map(ModuleId)
    }

    /// The innermost module that a node belongs to, and how that is known.
    pub(crate) fn of(&self, n: NodeId) -> Option<(ModuleId, Witness)> {
        self.of_node.get(n.index()).copied().flatten()
    }

    /// Path of the innermost module that a node belongs to; empty where nothing tells.
    pub(crate) fn path_of(&self, n: NodeId) -> &str {
        self.of(n).map_or("", |(m, _)| &self.module(m).path)
    }

    /// Whether a module is another one or part of it.
    pub(crate) fn is_within(&self, mut id: ModuleId, outer: ModuleId) -> bool {
        while self.module(id).depth > self.module(outer).depth {
            id = self.module(id).parent;
        }
        id == outer
    }

    /// Whether a module has numbered parts.
    pub(super) fn is_list(&self, id: ModuleId) -> bool {
        let mut names = self.module(id).children.keys();
        names.any(|k| number(k).is_some())
    }

    /// The part that a dotted path leads to.
    pub(crate) fn descend(&self, from: ModuleId, path: &str) -> Option<ModuleId> {
        if path.is_empty() {
            return Some(from);
        }
        path.split('.')
            .try_fold(from, |m, part| self.module(m).children.get(part).copied())
    }

    /// A module and all its parts, in the order of their paths.
    pub(crate) fn subtree(&self, id: ModuleId) -> Vec<ModuleId> {
        let mut out = vec![id];
        let mut at = 0;
        while let Some(&m) = out.get(at) {
            out.extend(self.module(m).children.values().copied());
            at += 1;
        }
        out
    }

    /// The innermost module that two modules are part of.
    pub(crate) fn shared(&self, a: ModuleId, b: ModuleId) -> ModuleId {
        self.common(&[a, b]).unwrap_or(ROOT)
    }

    /// The path of a module, relative to one that it is part of; `None` if it is not.
    pub(crate) fn relative(&self, id: ModuleId, outer: ModuleId) -> Option<&str> {
        let (path, base) = (&self.module(id).path, &self.module(outer).path);
        if base.is_empty() {
            return Some(path);
        }
        let rest = path.strip_prefix(&**base)?;
        if rest.is_empty() {
            Some(rest)
        } else {
            rest.strip_prefix('.')
        }
    }

    /// All nodes of a module and its parts, in execution order.
    pub(super) fn nodes_within(&self, view: &Flow<'_>, id: ModuleId) -> Vec<NodeId> {
        let mut out: Vec<NodeId> = self
            .subtree(id)
            .into_iter()
            .flat_map(|m| self.module(m).nodes.iter().copied())
            .collect();
        out.sort_by_key(|n| view.place(*n));
        out
    }

    /// The module of a path, made where there is none.
    pub(crate) fn intern(&mut self, path: &str) -> ModuleId {
        let mut at = ROOT;
        for part in path.split('.').filter(|p| !p.is_empty()) {
            at = self.child(at, part);
        }
        at
    }

    fn child(&mut self, of: ModuleId, name: &str) -> ModuleId {
        if let Some(&id) = self.module(of).children.get(name) {
            return id;
        }
        if self.module(of).depth >= DEEPEST {
            return of;
        }
        let id = ModuleId(self.modules.len() as u32);
        let parent = &mut self.modules[of.0 as usize];
        parent.children.insert(name.into(), id);
        let path = if parent.path.is_empty() {
            name.into()
        } else {
            format!("{}.{name}", parent.path).into()
        };
        let depth = parent.depth + 1;
        self.modules.push(Module {
            path,
            parent: of,
            children: BTreeMap::new(),
            nodes: Vec::new(),
            class: None,
            depth,
        });
        id
    }

    /// Reads metadata; returns the nodes without, with the scope that their names give.
    fn metadata<'g>(&mut self, view: &Flow<'g>, whose: Whose) -> Vec<(NodeId, &'g str, Witness)> {
        let mut rest = Vec::new();
        let scope_of = |name: &'g str| match whose {
            Whose::All => name_scope(name).or_else(|| added_scope(name)),
            Whose::Base => name_scope(name),
        };
        for &n in &view.order {
            let node = view.node(n);
            if whose == Whose::Base && node.metadata.contains_key(stamp::ADAPTER) {
                continue;
            }
            if let Some((path, classes)) = metadata_scope(node) {
                let id = self.intern(&path);
                self.of_node[n.index()] = Some((id, Witness::Metadata));
                if let Some(class) = classes
                    && self.module(id).class.is_none()
                {
                    self.modules[id.0 as usize].class = Some(class.into());
                }
            } else if let Some(scope) = scope_of(&node.name) {
                rest.push((n, scope, Witness::NodeName));
            } else {
                let graph = view.graph;
                let outputs = graph.node_outputs(n);
                let mut outputs = outputs.into_iter().flatten();
                if let Some(scope) = outputs.find_map(|v| scope_of(graph.name_of(v))) {
                    rest.push((n, scope, Witness::ValueName));
                }
            }
        }
        rest
    }

    /// Places nodes by scoped names. A part `x_1` is a further call of `x` when `x` exists beside it and no parameter says that
    /// `x_1` is a module of its own.
    fn names<'g>(&mut self, view: &Flow<'g>, raw: &[(NodeId, &'g str, Witness)]) {
        let parents = Parents::new(view, raw);
        let mut scopes: FxHashSet<&str> = FxHashSet::default();
        let mut seen: FxHashSet<String> = FxHashSet::default();
        for (_, scope, _) in raw {
            if !scopes.insert(scope) {
                continue;
            }
            let mut path = String::new();
            for part in parts(scope) {
                path.push('/');
                path.push_str(part);
                if !seen.contains(&path) {
                    seen.insert(path.clone());
                }
            }
        }
        let mut own: FxHashSet<&str> = FxHashSet::default();
        for &v in view.graph.initializers() {
            let name = view.graph.name_of(v);
            own.extend(name.match_indices('.').map(|(at, _)| &name[..at]));
        }
        let mut placed: FxHashMap<&str, ModuleId> = FxHashMap::default();
        for (n, scope, witness) in raw {
            let id = match placed.get(scope) {
                Some(id) => *id,
                None => self.place_scope(scope, &seen, &own, &parents),
            };
            placed.insert(scope, id);
            self.of_node[n.index()] = Some((id, *witness));
        }
    }

    /// Places nodes that an optimizer made anew, by the parameters that they alone read, where these agree.
    fn parameters(&mut self, view: &Flow<'_>) {
        for &n in &view.order {
            // Parameters of an adapter are no module's of the model.
            let ours = view.node(n).metadata.contains_key(stamp::ADAPTER);
            if ours || self.of_node[n.index()].is_some() {
                continue;
            }
            let read = view.inputs(n).into_iter().flatten();
            let stored = read
                .map(|v| view.root(v))
                .filter(|v| view.tensor(*v).is_some());
            let alone = stored.filter(|v| view.readers(*v).len() == 1);
            let mut owners = alone.filter_map(|v| owner(view.graph.name_of(v)));
            if let Some(path) = owners.next()
                && owners.all(|other| other == path)
            {
                let id = self.intern(path);
                self.of_node[n.index()] = Some((id, Witness::ParameterName));
            }
        }
    }

    fn place_scope(
        &mut self,
        scope: &str,
        seen: &FxHashSet<String>,
        own: &FxHashSet<&str>,
        parents: &Parents<'_>,
    ) -> ModuleId {
        if let Some(path) = parents.owned(scope) {
            return self.intern(path);
        }
        let (mut written, mut at) = (String::new(), ROOT);
        for part in parts(scope) {
            for parent in parents.before(&format!("{written}/{part}")) {
                at = self.child(at, parent);
            }
            let repeated = part.rsplit_once('_').filter(|(base, n)| {
                !base.is_empty()
                    && number(n).is_some()
                    && seen.contains(&format!("{written}/{base}"))
                    && !own.contains(join(&self.module(at).path, part).as_str())
            });
            let name = repeated.map_or(part, |(base, _)| base);
            written.push('/');
            written.push_str(part);
            for piece in name.split('.') {
                at = self.child(at, piece);
            }
        }
        at
    }

    /// A residual addition that an exporter fused with the norm behind it carries the norm's name. It belongs to the module that the
    /// sublayer and the norm share, or, where the norm is another layer's, to the sublayer's own layer.
    fn residuals(&mut self, view: &Flow<'_>, norms: &Norms) {
        for norm in &norms.all {
            let Some(add) = norm
                .input
                .and_then(|v| view.producer(v))
                .filter(|n| view.op(*n) == "Add")
            else {
                continue;
            };
            let Some((own, witness)) = norm.nodes.first().and_then(|n| self.of(*n)) else {
                continue;
            };
            // What an adapter adds stays its own.
            if view.node(add).metadata.contains_key(stamp::ADAPTER) {
                continue;
            }
            let outside = |v: &ValueId| {
                let made = view.producer(*v).and_then(|p| self.of(p));
                view.is_flow(*v) && made.is_none_or(|(m, _)| !self.is_within(m, own))
            };
            let operands: Vec<ValueId> = view
                .inputs(add)
                .into_iter()
                .flatten()
                .filter(outside)
                .collect();
            if operands.len() != 2 || self.of(add).map(|m| m.0) != Some(own) {
                continue;
            }
            let branch = operands
                .into_iter()
                .max_by_key(|v| view.defined(*v))
                .and_then(|v| view.producer(v));
            let Some((branch, _)) = branch.and_then(|p| self.of(p)) else {
                continue;
            };
            let parent = self.module(own).parent;
            let home = if self.is_within(branch, parent) {
                Some(parent)
            } else {
                self.list_entry(branch)
            };
            if let Some(home) = home {
                self.of_node[add.index()] = Some((home, witness));
            }
        }
    }

    /// The innermost entry of a list that a module is part of.
    pub(super) fn list_entry(&self, mut id: ModuleId) -> Option<ModuleId> {
        while id != ROOT {
            let m = self.module(id);
            let name = m.path.rsplit('.').next().unwrap_or_default();
            if number(name).is_some() {
                return Some(id);
            }
            id = m.parent;
        }
        None
    }

    fn list_nodes(&mut self, view: &Flow<'_>) {
        for m in &mut self.modules {
            m.nodes.clear();
        }
        for &n in &view.order {
            if let Some((m, _)) = self.of_node[n.index()] {
                self.modules[m.0 as usize].nodes.push(n);
            }
        }
    }

    /// Nodes without a witness: the innermost common module of what they read and what reads them.
    fn neighbours(&mut self, view: &Flow<'_>) {
        if self.modules.len() == 1 {
            return;
        }
        let missing: Vec<NodeId> = view
            .order
            .iter()
            .copied()
            .filter(|n| self.of_node[n.index()].is_none())
            .collect();
        let mut above: FxHashMap<NodeId, ModuleId> = FxHashMap::default();
        for &n in &missing {
            let sources = view
                .inputs(n)
                .into_iter()
                .flatten()
                .filter(|v| view.carries(*v));
            let around: Vec<ModuleId> = sources
                .filter_map(|v| view.producer(v))
                .filter_map(|p| above.get(&p).copied().or_else(|| self.of(p).map(|m| m.0)))
                .collect();
            if let Some(m) = self.common(&around) {
                above.insert(n, m);
            }
        }
        let mut below: FxHashMap<NodeId, ModuleId> = FxHashMap::default();
        for &n in missing.iter().rev() {
            let outputs = view.graph.node_outputs(n).into_iter().flatten();
            let around: Vec<ModuleId> = outputs
                .flat_map(|v| view.readers(v))
                .filter_map(|r| below.get(&r).copied().or_else(|| self.of(r).map(|m| m.0)))
                .collect();
            if let Some(m) = self.common(&around) {
                below.insert(n, m);
            }
        }
        for n in missing {
            let around: Vec<ModuleId> = [above.get(&n), below.get(&n)]
                .into_iter()
                .flatten()
                .copied()
                .collect();
            if let Some(m) = self.common(&around)
                && around.len() == 2
            {
                self.of_node[n.index()] = Some((m, Witness::Neighbours));
            }
        }
    }

    fn common(&self, ids: &[ModuleId]) -> Option<ModuleId> {
        ids.iter().copied().reduce(|mut a, mut b| {
            while a != b {
                if self.module(a).depth >= self.module(b).depth {
                    a = self.module(a).parent;
                } else {
                    b = self.module(b).parent;
                }
            }
            a
        })
    }
}

pub(super) fn join(a: &str, b: &str) -> String {
    match (a.is_empty(), b.is_empty()) {
        (true, _) => b.to_owned(),
        (_, true) => a.to_owned(),
        _ => format!("{a}.{b}"),
    }
}

/// What torch.export writes instead of a module for nodes that it made for symbolic sizes.
const NO_MODULE: &str = "_empty_nn_module_stack_from_metadata_hook";

/// Module path and class from dynamo's metadata: the entry before the last one, which is the fx node itself.
fn metadata_scope(node: &Node) -> Option<(String, Option<String>)> {
    if let Some(scopes) = node.metadata.get(exporter::SCOPES) {
        let scopes = python_list(scopes)?;
        let at = scopes.len().checked_sub(2)?;
        let path = scopes.get(at)?;
        if path == NO_MODULE {
            return None;
        }
        let class = node
            .metadata
            .get(exporter::CLASSES)
            .and_then(|c| python_list(c))
            .and_then(|c| c.get(at).cloned());
        return Some((path.clone(), class));
    }
    let namespace = node.metadata.get(exporter::NAMESPACE)?;
    let entries: Vec<&str> = namespace.split('/').collect();
    let (path, class) = entries
        .get(entries.len().checked_sub(2)?)?
        .split_once(':')?;
    if path.trim() == NO_MODULE {
        return None;
    }
    Some((path.trim().to_owned(), Some(class.trim().to_owned())))
}

/// The strings of a Python list of strings, as `repr` writes it.
fn python_list(text: &str) -> Option<Vec<String>> {
    let mut rest = text.trim().strip_prefix('[')?.strip_suffix(']')?.trim();
    let mut out = Vec::new();
    while let Some(quote) = rest.chars().next() {
        if quote != '\'' && quote != '"' {
            return None;
        }
        let mut item = String::new();
        let mut chars = rest.char_indices().skip(1);
        let end = loop {
            match chars.next()? {
                (_, '\\') => item.push(chars.next()?.1),
                (at, c) if c == quote => break at + 1,
                (_, c) => item.push(c),
            }
        };
        out.push(item);
        rest = rest.get(end..)?.trim_start();
        rest = rest.strip_prefix(',').unwrap_or(rest).trim_start();
    }
    Some(out)
}

/// The scope in a name such as `/model/layers.0/self_attn/q_proj/MatMul`: all but the last part. ONNX Runtime's fusions append
/// `/…Fusion/` to the name of the node they replace.
fn name_scope(name: &str) -> Option<&str> {
    let name = name.strip_prefix('/')?;
    let name = match name.strip_suffix('/') {
        Some(fused) => fused.rsplit_once('/').map_or("", |(own, _)| own),
        None => name,
    };
    Some(name.rsplit_once('/').map_or("", |(scope, _)| scope))
}

/// The scope in a name that this library gave a node, which begins with the path of the adapter's module:
/// `model.layers.0.self_attn.q_proj.loras.a/MatMul`.
fn added_scope(name: &str) -> Option<&str> {
    let (path, _) = name.split_once('/')?;
    owner(path).map(|_| path)
}

/// The path of the module that a parameter of this name belongs to: `encoder.layer.0.output.dense` of `encoder.layer.0.output.dense.bias`.
fn owner(name: &str) -> Option<&str> {
    let (path, last) = name.rsplit_once('.')?;
    let is_word = |part: &str| {
        let mut letters = part.bytes();
        !part.is_empty() && letters.all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    let named = last.starts_with(|c: char| c.is_ascii_alphabetic());
    (named && is_word(last) && path.split('.').all(is_word)).then_some(path)
}

/// The parts of a scope, outermost first.
fn parts(scope: &str) -> impl Iterator<Item = &str> {
    scope.split('/').filter(|p| !p.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn python_lists_of_strings() {
        assert_eq!(
            python_list("['', 'model', \"it's\", 'a\\'b']"),
            Some(vec![
                String::new(),
                "model".into(),
                "it's".into(),
                "a'b".into()
            ])
        );
        assert_eq!(python_list("[]"), Some(vec![]));
        assert_eq!(python_list("['a"), None);
        assert_eq!(python_list("[1]"), None);
    }

    #[test]
    fn scopes_of_names() {
        assert_eq!(
            name_scope("/model/layers.0/q_proj/MatMul"),
            Some("model/layers.0/q_proj")
        );
        assert_eq!(
            name_scope("/model/layers.0/norm/Mul_1/SimplifiedLayerNormFusion/"),
            Some("model/layers.0/norm")
        );
        assert_eq!(name_scope("/Gather"), Some(""));
        assert_eq!(name_scope("node_linear"), None);
        assert_eq!(
            added_scope("model.layers.0.q_proj.loras.a/input/MatMul"),
            Some("model.layers.0.q_proj.loras.a")
        );
        assert_eq!(added_scope("model/layers/0/MatMul"), None);
        assert_eq!(added_scope("onnx::MatMul.1/x"), None);
    }

    /// The module of each node of a graph, by the first of its outputs.
    fn found(nodes: &str) -> Vec<String> {
        let text = format!(
            r#"
            graph-text 1
            ir_version 8
            opset "" 17
            graph g(%x: f32[b, 4]) -> (%y)
              init %layer.0.dense.bias: f32[4] = fill(0.5)
              init %layer.1.dense.bias: f32[4] = fill(0.5)
              init %merged.bias: f32[4] = fill(0.5)
              init %w: f32[4, 4] = fill(0.5)
              init %val_1.5: f32[4] = fill(0.5)
              init %rows: i64[2] = {{-1, 4}}
              {nodes}
            "#
        );
        let model = crate::ir::text::parse(&text).unwrap();
        let model = Verified::check(model).unwrap();
        let view = Flow::new(&model);
        let mut tree = ModuleTree::of_view(&view);
        let linears = crate::analyze::linear::Linears::new(&view, &|_, _| true);
        tree.adopt(&view, &linears.all);
        let of = |n: &NodeId| {
            let name = view.graph.name_of(view.out(*n).unwrap());
            match tree.of(*n) {
                Some((m, w)) => format!("{name}: {} by {w}", tree.module(m).path),
                None => format!("{name}: nothing"),
            }
        };
        view.order.iter().map(of).collect()
    }

    #[test]
    fn a_parameter_names_the_one_node_that_reads_it() {
        let graph = "%a = Add(%x, %layer.0.dense.bias)
            %b = Add(%a, %merged.bias)
            %c = Add(%b, %merged.bias)
            %d = Add(%c, %val_1.5)
            %y = Add(%d, %layer.1.dense.bias)";
        assert_eq!(
            found(graph),
            [
                "a: layer.0.dense by parameter names",
                "b: layer by neighbours",
                "c: layer by neighbours",
                "d: layer by neighbours",
                "y: layer.1.dense by parameter names",
            ]
        );
    }

    #[test]
    fn a_product_without_a_name_belongs_to_the_module_of_its_bias() {
        let graph = "%p = MatMul(%x, %w)\n %y = Add(%p, %merged.bias)  // /m/q/Add";
        assert_eq!(
            found(graph),
            ["p: m.q by node names", "y: m.q by node names"]
        );
        let shared = "%r = Reshape(%x, %rows)
            %p = Gemm(%r, %w, %layer.0.dense.bias)
            %q = Gemm(%r, %w, %layer.1.dense.bias)
            %y = Add(%p, %q)";
        assert!(!found(shared)[0].contains("dense"), "{:?}", found(shared));
    }
}
