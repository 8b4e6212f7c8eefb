//! All linears and stored parameters that have a module's name, whether a field names them or not.

use super::scene::{Scene, site};
use crate::analyze::linear::{Layout, Linear};
use crate::analyze::norm::Norms;
use crate::ir::layers::number;
use crate::ir::{NodeId, ValueId};
use crate::select::modules::Witness;
use crate::select::site::{Layer, LinearModule, LinearSite, ParameterSite, Role, TableSite};
use rustc_hash::{FxHashMap, FxHashSet};

/// Which layer a path leads into.
struct Within<'l>(FxHashMap<&'l str, usize>);

impl<'l> Within<'l> {
    fn new(layers: &'l [Layer]) -> Self {
        Within(layers.iter().map(|l| (&*l.path, l.index)).collect())
    }

    /// The layer that a module is, or is a part of.
    fn layer(&self, path: &str) -> Option<usize> {
        let dots = path.match_indices('.').map(|(at, _)| at);
        let mut outer = dots.chain([path.len()]).map(|end| &path[..end]);
        outer.find_map(|p| self.0.get(p).copied())
    }
}

/// The path of an expert in the state dict: `mlp.experts.expert_0.wi`. TorchScript leaves out the `ModuleDict` that Switch Transformers
/// and NLLB-MoE hold their experts in.
fn keyed(path: Box<str>) -> Box<str> {
    let is_expert = |part: &str| {
        let which = part.strip_prefix("expert_");
        which.is_some_and(|n| number(n).is_some())
    };
    let mut parts: Vec<&str> = path.split('.').collect();
    match parts.iter().position(|p| is_expert(p)) {
        Some(at) if at > 0 && parts[at - 1] != "experts" => {
            parts.insert(at, "experts");
            parts.join(".").into()
        }
        Some(_) | None => path,
    }
}

/// A parameter that is read as it is stored, and stored as it is in the state dict.
fn as_stored(
    module: Box<str>,
    name: &str,
    value: ValueId,
    nodes: Vec<NodeId>,
    dims: Vec<usize>,
) -> ParameterSite {
    ParameterSite {
        module,
        name: name.into(),
        value,
        nodes,
        dims,
        transposed: false,
        stored: value,
        stored_transposed: false,
        derived: false,
    }
}

impl Scene<'_> {
    /// The linears of the graph by their modules, in execution order. A site that a field of the interface names is taken as it is:
    /// of a projection that was fused with others it has the columns.
    pub(super) fn modules(&self, layers: &[Layer], head: Option<&LinearSite>) -> Vec<LinearModule> {
        let within = Within::new(layers);
        let mut out: Vec<LinearModule> = Vec::new();
        let mut at: FxHashMap<Box<str>, usize> = FxHashMap::default();
        let mut taken: FxHashSet<NodeId> = FxHashSet::default();
        let mut put = |layer: Option<usize>, site: &LinearSite| {
            if let Some(i) = at.get(&site.path) {
                let first: &mut LinearModule = &mut out[*i];
                first.site.other_calls.extend(site.calls().map(|c| {
                    let mut call = c.clone();
                    call.other_calls.clear();
                    call
                }));
                return;
            }
            at.insert(site.path.clone(), out.len());
            let site = site.clone();
            out.push(LinearModule { layer, site });
        };
        for layer in layers {
            for site in layer.linears() {
                taken.extend(site.calls().flat_map(|c| c.nodes.iter().copied()));
                put(Some(layer.index), site);
            }
        }
        if let Some(head) = head {
            taken.extend(&head.nodes);
            put(None, head);
        }
        for l in self.linears.all.iter().filter(|l| !taken.contains(&l.core)) {
            let Some((module, _)) = self.tree.of(l.core).filter(|m| m.1 < Witness::Neighbours)
            else {
                continue;
            };
            let path = self.module_path(&self.tree.module(module).path, &within);
            let mut site = site(Role::Linear, keyed(path), l);
            let bias = site.weight.bias;
            if let Some(path) = bias.and_then(|b| self.contained(&site.path, b)) {
                site.path = path;
            }
            put(within.layer(&site.path), &site);
        }
        out.sort_by_key(|m| self.view.defined(m.site.output));
        out
    }

    /// The path of a module that its parameter is stored under, where that has one part more: a scope has no part for what nothing calls,
    /// such as a container of modules (X-MOD's `adapter_modules`).
    fn contained(&self, path: &str, parameter: ValueId) -> Option<Box<str>> {
        let stored = self.view.graph.name_of(self.view.root(parameter));
        let (stored, last) = stored.rsplit_once('.')?;
        let parts: Vec<&str> = stored.split('.').collect();
        let without = |i: usize| {
            let kept = parts.iter().enumerate().filter(|(j, _)| *j != i);
            kept.map(|(_, p)| *p).eq(path.split('.'))
        };
        let named = ["weight", "bias"].contains(&last);
        let mut inner = 1..parts.len().saturating_sub(1);
        (named && inner.any(without)).then(|| stored.into())
    }

    /// The path in the exported model's state dict of a module that may lie outside the base model.
    fn module_path(&self, path: &str, within: &Within<'_>) -> Box<str> {
        let Some(rest) = path.strip_prefix(self.prefix.in_tree.as_str()) else {
            return path.into();
        };
        let full = format!("{}{rest}", self.prefix.full);
        let graph = self.view.graph;
        let stored = |p: &str| {
            let parameter = |end: &str| graph.find(&format!("{p}.{end}")).is_some();
            parameter("weight") || parameter("bias")
        };
        let inside = || within.layer(&full).is_some();
        if full == path || (!stored(path) && (inside() || stored(&full))) {
            full.into()
        } else {
            path.into()
        }
    }

    /// Number of linears of hidden states whose module is not known.
    pub(super) fn nameless(&self, modules: &[LinearModule]) -> usize {
        let calls = modules.iter().flat_map(|m| m.site.calls());
        let taken: FxHashSet<NodeId> = calls.flat_map(|c| c.nodes.iter().copied()).collect();
        let all = self.linears.all.iter();
        let open = all.filter(|l| !taken.contains(&l.core) && self.view.is_flow(l.input));
        open.count()
    }

    /// The look-ups in embedding tables by their modules, in execution order.
    pub(super) fn tables(&self, layers: &[Layer]) -> Vec<TableSite> {
        let within = Within::new(layers);
        // Positions are looked up as words are, though no input says which.
        let lookups = self
            .view
            .order
            .iter()
            .filter(|n| self.view.is(**n, "Gather"));
        let site = |&node: &NodeId| {
            let (module, _) = self.tree.of(node).filter(|m| m.1 < Witness::Neighbours)?;
            let path = self.module_path(&self.tree.module(module).path, &within);
            let [Some(value), Some(ids), ..] = *self.view.inputs(node) else {
                return None;
            };
            let tensor = self.view.tensor(value).filter(|t| t.dtype.is_float())?;
            let [rows, width] = *tensor.dims else {
                return None;
            };
            let by_rows = self.view.node(node).int("axis", 0) == 0;
            let output = self.view.graph.output(node, 0)?;
            (by_rows && !path.is_empty()).then_some(TableSite {
                path,
                node,
                ids,
                output,
                scaled: self.scaled(node, output),
                value,
                rows: usize::try_from(rows).ok()?,
                width: usize::try_from(width).ok()?,
            })
        };
        lookups.filter_map(site).collect()
    }

    /// The stored parameters of modules, by their names in the state dict: what linears and norms read, and every other initializer that
    /// has such a name.
    pub(super) fn parameters(
        &self,
        layers: &[Layer],
        modules: &[LinearModule],
        tables: &[TableSite],
    ) -> Vec<ParameterSite> {
        let graph = self.view.graph;
        let mut out: Vec<ParameterSite> = Vec::new();
        let mut seen: FxHashSet<String> = FxHashSet::default();
        let whole = modules.iter().filter(|m| m.site.column.is_none());
        for site in whole.map(|m| &m.site) {
            let nodes: Vec<NodeId> = site.calls().flat_map(|c| c.nodes.iter().copied()).collect();
            let name = format!("{}.weight", site.path);
            // torch's `Conv1D` stores `[in, out]`, and the file has it as it is.
            let own = graph.name_of(site.weight.value) == name;
            let conv1d = own && site.weight.layout == Layout::InOut;
            let (rows, columns) = if conv1d {
                (site.d_in, site.d_out)
            } else {
                (site.d_out, site.d_in)
            };
            let read = self.axes_read(site);
            if let Some(read) = read.filter(|_| seen.insert(name)) {
                out.push(ParameterSite {
                    module: site.path.clone(),
                    name: "weight".into(),
                    value: site.weight.read,
                    nodes: nodes.clone(),
                    dims: vec![rows, columns],
                    transposed: (read == Layout::InOut) != conv1d,
                    stored: site.weight.value,
                    stored_transposed: (site.weight.layout == Layout::InOut) != conv1d,
                    derived: false,
                });
            }
            if let Some(bias) = site.weight.bias
                && seen.insert(format!("{}.bias", site.path))
            {
                let module = site.path.clone();
                let own = as_stored(module, "bias", bias, nodes, vec![site.d_out]);
                // Exporters store equal biases once, and hand them on.
                let stored = self.view.root(bias);
                out.push(ParameterSite { stored, ..own });
            }
        }
        // A table that a head shares is stored under one of the two names.
        for t in tables {
            if !seen.insert(format!("{}.weight", t.path)) {
                continue;
            }
            let calls = tables.iter().filter(|c| c.path == t.path);
            let nodes = calls.map(|c| c.node).collect();
            let dims = vec![t.rows, t.width];
            out.push(as_stored(t.path.clone(), "weight", t.value, nodes, dims));
        }
        for site in self.of_norms(layers) {
            if seen.insert(format!("{}.{}", site.module, site.name)) {
                out.push(site);
            }
        }
        for &value in graph.initializers() {
            let Some((module, name)) = graph.name_of(value).rsplit_once('.') else {
                continue;
            };
            let Some(tensor) = self.view.tensor(value).filter(|t| t.dtype.is_float()) else {
                continue;
            };
            if name.is_empty() || !seen.insert(graph.name_of(value).to_owned()) {
                continue;
            }
            let dims = tensor.dims.iter().map(|d| *d as usize).collect();
            let nodes = self.lookups(value);
            out.push(as_stored(module.into(), name, value, nodes, dims));
        }
        self.mark_derived(&mut out);
        out
    }

    /// What a module makes of the rows that one of its nodes looks up, where it multiplies them by a number.
    fn scaled(&self, node: NodeId, rows: ValueId) -> Option<ValueId> {
        let module = |n: NodeId| self.tree.of(n).map(|(module, _)| module);
        self.view.graph.uses(rows).into_iter().find_map(|u| {
            let n = u.node();
            let factor = |v: &Option<ValueId>| {
                let number = v.and_then(|v| self.view.constant(v));
                number.is_some_and(|t| t.count() == Some(1))
            };
            let scales = self.view.is(n, "Mul") && self.view.inputs(n).iter().any(factor);
            let out = self.view.out(n).filter(|_| scales)?;
            (module(n) == module(node)).then_some(out)
        })
    }

    /// Weights and biases of norms. Exporters store equal ones once, so that a name tells of one norm alone.
    fn of_norms(&self, layers: &[Layer]) -> Vec<ParameterSite> {
        let within = Within::new(layers);
        let mut out: Vec<ParameterSite> = Vec::new();
        for norm in Norms::new(self.view).all {
            let module = norm.nodes.last().and_then(|n| self.tree.of(*n));
            let Some((module, _)) = module.filter(|m| m.1 < Witness::Neighbours) else {
                continue;
            };
            let mut path = self.module_path(&self.tree.module(module).path, &within);
            let inputs = norm.nodes.iter().flat_map(|n| self.view.inputs(*n));
            let mut inputs = inputs.flatten();
            if let Some(whole) = inputs.find_map(|v| self.contained(&path, v)) {
                path = whole;
            }
            for &n in &norm.nodes {
                let named = match self.view.op(n) {
                    "Mul" => "weight",
                    "Add" => "bias",
                    _ => "",
                };
                for (slot, value) in self.view.inputs(n).iter().enumerate() {
                    let name = match (named, slot) {
                        ("", 1) => "weight",
                        ("", 2) => "bias",
                        (named, _) => named,
                    };
                    let Some(value) = value.filter(|_| !name.is_empty() && !path.is_empty()) else {
                        continue;
                    };
                    let tensor = self.view.tensor(value).filter(|t| t.dtype.is_float());
                    let Some([width]) = tensor.map(|t| &*t.dims).filter(|d| *d != [1]) else {
                        continue;
                    };
                    let same = |p: &&mut ParameterSite| p.module == path && &*p.name == name;
                    match out.iter_mut().find(same) {
                        Some(known) if known.value == value => known.nodes.push(n),
                        Some(_) => {}
                        None => {
                            let dims = vec![*width as usize];
                            let own = as_stored(path.clone(), name, value, vec![n], dims);
                            let stored = self.view.root(value);
                            let kept = self.view.graph.name_of(stored);
                            let last = kept.rsplit_once('.').map(|(_, last)| last);
                            let derived = !matches!(last, Some("weight" | "bias"));
                            out.push(ParameterSite {
                                stored,
                                derived,
                                ..own
                            });
                        }
                    }
                }
            }
        }
        out
    }

    /// How the multiplication of a site reads its weight; `None` where it is no stored matrix of floats.
    fn axes_read(&self, site: &LinearSite) -> Option<Layout> {
        let l: &Linear = self
            .linears
            .all
            .get(self.linears.of(*site.nodes.last()?)?)?;
        match self.view.op(l.core) {
            "MatMul" => Some(Layout::InOut),
            "Gemm" | "FusedGemm" | "FusedMatMul" => {
                let flipped = self.view.node(l.core).int("transB", 0) == 1;
                Some(if flipped {
                    Layout::OutIn
                } else {
                    Layout::InOut
                })
            }
            _ => None,
        }
    }

    /// The nodes that look rows up, where others read a table too: a head that shares it is another module. Else all its readers.
    fn lookups(&self, value: ValueId) -> Vec<NodeId> {
        let readers = self.view.readers(value);
        let lookups: Vec<NodeId> = readers
            .iter()
            .copied()
            .filter(|n| self.view.is_lookup(*n))
            .collect();
        if lookups.is_empty() { readers } else { lookups }
    }
}

#[cfg(test)]
mod tests {
    use super::keyed;

    #[test]
    fn experts_lie_in_a_module_that_an_export_leaves_out() {
        for (path, want) in [
            ("block.1.mlp.expert_0.wi", "block.1.mlp.experts.expert_0.wi"),
            ("mlp.experts.expert_0.wi", "mlp.experts.expert_0.wi"),
            ("mlp.experts.0.wi", "mlp.experts.0.wi"),
            ("mlp.expert_gate", "mlp.expert_gate"),
        ] {
            assert_eq!(&*keyed(path.into()), want);
        }
    }
}
