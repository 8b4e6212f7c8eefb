//! What a graph holds, without an interface: for `rewrite inspect`.

use super::modules::{ModuleTree, ROOT, Witness};
use crate::diag::count;
use crate::infer::Verified;
use crate::ir::layers::number;
use crate::ir::{DType, GraphPort, Model, TensorData};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt;

/// What a graph holds.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Inspection {
    /// What wrote the file, with its version, and which exporter by the traces it left.
    pub exporter: String,
    /// Imported operator sets.
    pub opsets: Vec<(String, i64)>,
    /// Graph inputs.
    pub inputs: Vec<PortRow>,
    /// Graph outputs.
    pub outputs: Vec<PortRow>,
    /// Number of nodes.
    pub nodes: usize,
    /// Numbers in initializers.
    pub parameters: u64,
    /// Number of nodes by operator.
    pub operators: BTreeMap<String, usize>,
    /// How many nodes belong to a module by which witness; `nothing` where there is none.
    pub witnesses: BTreeMap<String, usize>,
    /// Modules that are lists, with the number of their entries: candidates for `model_layers`.
    pub lists: Vec<LayerList>,
    /// All modules; list entries that hold the same as the first one are left out.
    pub modules: Vec<ModuleRow>,
}

/// A graph input or output.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PortRow {
    /// Name.
    pub name: String,
    /// Declared type.
    pub ty: String,
}

/// A module whose parts are numbered.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LayerList {
    /// Path.
    pub path: String,
    /// Number of entries.
    pub entries: usize,
}

/// One module.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ModuleRow {
    /// Path.
    pub path: String,
    /// Depth below the model.
    pub depth: usize,
    /// Class, where the exporter recorded it.
    pub class: Option<String>,
    /// Nodes in it and its parts.
    pub nodes: usize,
    /// For a list entry: how many entries hold the same and are left out.
    pub same: usize,
}

impl Inspection {
    /// Looks at a model.
    pub(crate) fn of(verified: &Verified) -> Self {
        let model = verified.model();
        let g = &model.graph;
        let tree = ModuleTree::new(verified);
        let mut operators = BTreeMap::new();
        let mut witnesses: BTreeMap<String, usize> = BTreeMap::new();
        for n in g.nodes() {
            *operators.entry(g.node(n).op.to_string()).or_insert(0) += 1;
            let by = tree
                .of(n)
                .map_or("nothing".to_owned(), |(_, w)| w.to_string());
            *witnesses.entry(by).or_insert(0) += 1;
        }
        // Single numbers and sizes are no parameters.
        let counts = |t: &&TensorData| !t.dims.is_empty() && t.dtype != DType::Int64;
        let count = |v| {
            let tensor = g.value(v).tensor.as_ref().filter(counts);
            tensor.and_then(TensorData::count).unwrap_or(0)
        };
        Inspection {
            exporter: exporter(model, &tree, &witnesses),
            opsets: model
                .opset_imports
                .iter()
                .map(|(d, v)| (d.to_string(), *v))
                .collect(),
            inputs: ports(model, g.inputs()),
            outputs: ports(model, g.outputs()),
            nodes: g.node_count(),
            parameters: g
                .initializers()
                .iter()
                .fold(0u64, |n, v| n.saturating_add(count(*v))),
            operators,
            witnesses,
            lists: lists(&tree),
            modules: rows(&tree),
        }
    }
}

fn ports(model: &Model, ports: &[GraphPort]) -> Vec<PortRow> {
    let row = |p: &GraphPort| PortRow {
        name: model.graph.name_of(p.value).to_owned(),
        ty: p
            .ty
            .as_ref()
            .map_or("unknown".to_owned(), ToString::to_string),
    };
    ports.iter().map(row).collect()
}

fn exporter(model: &Model, tree: &ModuleTree, witnesses: &BTreeMap<String, usize>) -> String {
    let has = |w: Witness| witnesses.contains_key(&w.to_string());
    let style = match &*model.producer_name {
        "pytorch" if has(Witness::Metadata) => "torch.export (dynamo)",
        "pytorch" if has(Witness::NodeName) => "TorchScript",
        "pytorch" => "module names removed by an optimizer",
        name if name.contains("genai") => "onnxruntime-genai model builder",
        name if name.starts_with("onnxruntime") => "onnxruntime optimizer",
        _ if has(Witness::Metadata) => "torch.export (dynamo)",
        _ if tree.module(ROOT).children.is_empty() => "no module names",
        _ => "scoped node names",
    };
    let wrote = format!("{} {}", model.producer_name, model.producer_version);
    match wrote.trim() {
        "" => style.to_owned(),
        wrote => format!("{wrote}, {style}"),
    }
}

fn lists(tree: &ModuleTree) -> Vec<LayerList> {
    tree.ids()
        .map(|id| tree.module(id))
        .map(|m| LayerList {
            path: m.path.to_string(),
            entries: m.children.keys().filter(|k| number(k).is_some()).count(),
        })
        .filter(|l| l.entries > 0)
        .collect()
}

fn rows(tree: &ModuleTree) -> Vec<ModuleRow> {
    let mut totals: Vec<usize> = tree.ids().map(|id| tree.module(id).nodes.len()).collect();
    let ids: Vec<_> = tree.ids().collect();
    for (at, id) in ids.iter().enumerate().rev() {
        if *id != ROOT {
            totals[tree.module(*id).parent.index()] += totals[at];
        }
    }
    let mut out = Vec::new();
    let mut open = vec![(ROOT, 0usize, 0usize)];
    while let Some((id, depth, same)) = open.pop() {
        let m = tree.module(id);
        if id != ROOT {
            out.push(ModuleRow {
                path: m.path.to_string(),
                depth,
                class: m.class.as_ref().map(ToString::to_string),
                nodes: totals[id.index()],
                same,
            });
        }
        let mut children: Vec<_> = m.children.iter().collect();
        children.sort_by_key(|(name, _)| {
            (
                name.parse::<usize>().unwrap_or(usize::MAX),
                name.to_string(),
            )
        });
        // Entries of a list that hold the same modules as the one before.
        let mut shown: Vec<(super::ModuleId, usize)> = Vec::new();
        for (name, id) in children {
            let number = number(name).is_some();
            match shown.last_mut() {
                Some((last, same)) if number && shape(tree, *last) == shape(tree, *id) => {
                    *same += 1;
                }
                _ => shown.push((*id, 0)),
            }
        }
        open.extend(
            shown
                .into_iter()
                .rev()
                .map(|(id, same)| (id, depth + usize::from(!m.path.is_empty()), same)),
        );
    }
    out
}

/// The paths of a module's parts, relative to it.
fn shape(tree: &ModuleTree, id: super::ModuleId) -> Vec<&str> {
    tree.subtree(id)
        .into_iter()
        .filter_map(|m| tree.relative(m, id))
        .collect()
}

impl fmt::Display for Inspection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "exporter    {}", self.exporter)?;
        let opsets: Vec<String> = self
            .opsets
            .iter()
            .map(|(d, v)| format!("{} {v}", if d.is_empty() { "ai.onnx" } else { d }))
            .collect();
        writeln!(f, "opsets      {}", opsets.join(", "))?;
        writeln!(
            f,
            "size        {}, {} parameters",
            count(self.nodes, "node", "nodes"),
            self.parameters
        )?;
        let by: Vec<String> = self
            .witnesses
            .iter()
            .map(|(w, n)| format!("{n} by {w}"))
            .collect();
        writeln!(f, "modules     {}", by.join(", "))?;
        for (what, ports) in [("inputs", &self.inputs), ("outputs", &self.outputs)] {
            writeln!(f, "{what}")?;
            for p in ports {
                writeln!(f, "  {}: {}", p.name, p.ty)?;
            }
        }
        for l in &self.lists {
            writeln!(f, "list        {} with {} entries", l.path, l.entries)?;
        }
        writeln!(f, "module tree")?;
        for m in &self.modules {
            let name = m.path.rsplit('.').next().unwrap_or(&m.path);
            write!(f, "  {}{name}", "  ".repeat(m.depth))?;
            if let Some(class) = &m.class {
                write!(f, ": {}", class.rsplit('.').next().unwrap_or(class))?;
            }
            write!(f, ", {}", count(m.nodes, "node", "nodes"))?;
            if m.same > 0 {
                write!(f, ", and {} more of the same", m.same)?;
            }
            writeln!(f)?;
        }
        Ok(())
    }
}
