//! From an interface and a module tree to sites.

use super::boundary::{Boundary, Marks};
use super::interface::Interface;
use super::linear::{Linear, Linears};
use super::modules::{ModuleId, ModuleTree, join};
use super::norm::norm_nodes;
use super::report::{Miss, shown};
use super::site::{AttentionSite, Decision, Layer, LinearSite, NormSite, Role, Selection};
use super::structure::Structure;
use super::view::View;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{NodeId, ValueId};
use std::collections::BTreeMap;

/// All that a selection looks at.
pub(super) struct Chooser<'a> {
    pub(super) view: &'a View<'a>,
    pub(super) tree: &'a ModuleTree,
    pub(super) linears: &'a Linears,
    pub(super) interface: &'a Interface,
    pub(super) marks: Marks,
    /// Which call of its layer a node belongs to, where layers are shared.
    call_of: Vec<u32>,
    pub(super) misses: BTreeMap<(usize, &'static str, String), Miss>,
    pub(super) decisions: Vec<Decision>,
    /// Path in the tree → path in the state dict.
    pub(super) prefix: Prefix,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Prefix {
    pub(super) in_tree: String,
    pub(super) full: String,
}

/// One layer of the tree.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) index: usize,
    pub(super) stack: usize,
    pub(super) module: ModuleId,
    nodes: Vec<NodeId>,
}

impl<'a> Chooser<'a> {
    pub(super) fn new(
        view: &'a View<'a>,
        tree: &'a ModuleTree,
        linears: &'a Linears,
        interface: &'a Interface,
    ) -> Self {
        Chooser {
            view,
            tree,
            linears,
            interface,
            marks: Marks::new(view),
            call_of: vec![0; view.graph.index_bound()],
            misses: BTreeMap::new(),
            decisions: Vec::new(),
            prefix: Prefix::default(),
        }
    }

    /// The selection and every finding; only findings when there are no layers to speak of.
    pub(super) fn run(mut self) -> (Option<Selection>, Vec<Diagnostic>) {
        let (mut layers, totals) = match self.layers() {
            Ok(spots) => {
                let totals: Vec<usize> = (0..self.interface.stacks())
                    .map(|s| spots.iter().filter(|p| p.stack == s).count())
                    .collect();
                let mut layers = Vec::new();
                for spot in &spots {
                    for call in 0..self.split_calls(spot) {
                        layers.extend(self.layer(spot, call));
                    }
                }
                (layers, totals)
            }
            Err(e) => {
                let layers = match self.unnamed_layers(e) {
                    Ok(layers) => layers,
                    Err(e) => return (None, e.findings().to_vec()),
                };
                let totals = vec![layers.len(); self.interface.stacks()];
                (layers, totals)
            }
        };
        layers.sort_by_key(|l: &Layer| (l.stack, self.view.defined(l.output)));
        if !self.misses.is_empty() || layers.iter().any(|l| self.is_frayed(l)) {
            self.fill(&mut layers);
        }
        let mut findings = self.explicit(&mut layers);
        self.misses.retain(|_, m| !m.is_settled());
        findings.extend(self.findings(&totals));
        if layers.is_empty() && findings.is_empty() {
            findings.push(self.no_layers());
        }
        let embeddings = self.embeddings(&layers, &mut findings);
        let output_embeddings = self.head();
        let hidden_size = layers
            .iter()
            .find_map(|l| {
                self.view
                    .last(l.input)
                    .or(l.output_proj.as_ref().map(|p| p.d_out))
            })
            .unwrap_or(0);
        let selection = Selection {
            base_prefix: self.prefix.full.into(),
            hidden_size,
            embeddings,
            output_embeddings,
            layers,
            misses: Vec::new(),
            decisions: self.decisions,
        };
        (Some(selection), findings)
    }

    fn no_layers(&self) -> Diagnostic {
        let path = self
            .interface
            .fields
            .model_layers
            .get(0)
            .unwrap_or_default();
        Diagnostic::error("select-no-layers", format!("`model_layers` = \"{path}\" holds no layer"))
            .at(format!("{}, interface.model_layers", self.interface.source))
            .note("none of its parts has `layer_self_attn`, `layer_intermediate_proj` or `layer_output_proj`")
            .help("`rewrite inspect` shows the modules of the graph")
    }

    /// The structure of the graph; worth its cost only where names are missing.
    pub(super) fn structure(&self) -> Structure<'a> {
        Structure::new(self.view, self.linears)
    }

    // ---- layers ----------------------------------------------------------------------------------------------------------

    fn layers(&mut self) -> Result<Vec<Spot>> {
        let mut spots = Vec::new();
        let mut findings = Vec::new();
        for stack in 0..self.interface.stacks() {
            let Some(path) = self.interface.fields.model_layers.get(stack) else {
                continue;
            };
            match self.find_list(path) {
                Ok(list) => {
                    if stack == 0 || self.prefix.full.is_empty() {
                        self.set_prefix(list, path);
                    }
                    let mut found: Vec<(usize, ModuleId)> = self
                        .tree
                        .module(list)
                        .children
                        .iter()
                        .filter_map(|(name, id)| Some((name.parse().ok()?, *id)))
                        .filter(|(_, id)| self.is_layer(*id, stack))
                        .collect();
                    found.sort_unstable();
                    let first = spots.len();
                    spots.extend(found.into_iter().enumerate().map(|(i, (_, module))| Spot {
                        index: first + i,
                        stack,
                        module,
                        nodes: self.tree.nodes_within(self.view, module),
                    }));
                }
                Err(d) => findings.push(d),
            }
        }
        if findings.is_empty() {
            Ok(spots)
        } else {
            Err(Error::many(ErrorKind::Interface, findings))
        }
    }

    /// A list entry is a layer unless it holds none of the parts that the interface names (genai puts the final norm there).
    fn is_layer(&self, id: ModuleId, stack: usize) -> bool {
        let f = &self.interface.fields;
        let parts = [
            &f.layer_self_attn,
            &f.layer_intermediate_proj,
            &f.layer_output_proj,
        ];
        parts
            .iter()
            .any(|p| p.get(stack).is_some_and(|p| self.part(id, p).is_some()))
    }

    fn find_list(&self, path: &str) -> Result<ModuleId, Diagnostic> {
        let lists: Vec<ModuleId> = self
            .tree
            .ids()
            .filter(|id| {
                let children = &self.tree.module(*id).children;
                children
                    .keys()
                    .any(|k| k.bytes().all(|b| b.is_ascii_digit()))
            })
            .collect();
        let base = self.interface.fields.base_model.as_deref();
        let score = |id: ModuleId| {
            let have = &*self.tree.module(id).path;
            let whole = ends_with(have, path);
            let part = ends_with(path, have);
            let under_base = base.is_some_and(|b| ends_with(have, &join(b, path)));
            (whole || part).then_some((under_base, whole, std::cmp::Reverse(have.len())))
        };
        let best = lists
            .iter()
            .copied()
            .filter_map(|id| Some((score(id)?, id)))
            .max();
        if let Some((_, id)) = best {
            return Ok(id);
        }
        let paths: Vec<&str> = lists
            .iter()
            .map(|id| &*self.tree.module(*id).path)
            .collect();
        let mut d = Diagnostic::error(
            "select-no-layers",
            format!("`model_layers` = \"{path}\" is no list of modules in this graph"),
        )
        .at(format!("{}, interface.model_layers", self.interface.source));
        if !paths.is_empty() {
            d = d.note(format!("lists found: {}", shown(&paths)));
        }
        Err(d.help(if paths.is_empty() {
            "the graph carries no module names; name nodes in the interface's `graph`, or export it again with names"
        } else {
            "`model_layers` is relative to the base model: `layers` matches `model.layers`"
        }))
    }

    fn set_prefix(&mut self, list: ModuleId, path: &str) {
        let have = &*self.tree.module(list).path;
        let in_tree = have.strip_suffix(path).unwrap_or("").to_owned();
        let mut full = in_tree.clone();
        // TorchScript drops the module whose `forward` was not called; parameters keep the full path.
        let inner = format!("{in_tree}{path}.");
        let graph = self.view.graph;
        let mut names = graph.initializers().iter().map(|v| graph.name_of(*v));
        let longer = |n: &str| n.find(&format!(".{inner}")).map(|at| n[..=at].to_owned());
        if !names.clone().any(|n| n.starts_with(&inner))
            && let Some(before) = names.find_map(longer)
        {
            full = format!("{before}{in_tree}");
        }
        self.prefix = Prefix { in_tree, full };
    }

    /// The path in the exported model's state dict.
    pub(super) fn full_path(&self, id: ModuleId) -> Box<str> {
        let have = &*self.tree.module(id).path;
        match have.strip_prefix(self.prefix.in_tree.as_str()) {
            Some(rest) => format!("{}{rest}", self.prefix.full).into(),
            None => have.into(),
        }
    }

    /// The part of a module that a path leads to; exporters may skip leading parts that were not called themselves.
    fn part(&self, of: ModuleId, path: &str) -> Option<ModuleId> {
        let mut rest = path;
        loop {
            if let Some(id) = self.tree.descend(of, rest) {
                return Some(id);
            }
            rest = rest.split_once('.')?.1;
        }
    }

    /// Splits the nodes of a shared layer into its calls; returns their number. Every call has the same operators on hidden states,
    /// so the k-th part of a module's nodes, in execution order, belongs to the k-th call.
    fn split_calls(&mut self, spot: &Spot) -> usize {
        let f = &self.interface.fields;
        let count = [&f.layer_output_proj, &f.layer_intermediate_proj]
            .iter()
            .filter_map(|p| self.part(spot.module, p.get(spot.stack)?))
            .map(|m| self.linears_within(m).len())
            .find(|n| *n > 0);
        let calls = count.unwrap_or(1);
        if calls < 2 {
            return 1;
        }
        for m in self.tree.subtree(spot.module) {
            let own = &self.tree.module(m).nodes;
            let on_flow = |n: &NodeId| {
                self.view
                    .graph
                    .node_outputs(*n)
                    .into_iter()
                    .flatten()
                    .any(|v| self.view.is_flow(v))
            };
            let total = own.iter().filter(|n| on_flow(n)).count();
            let each = total.div_ceil(calls).max(1);
            let mut seen = 0;
            for n in own {
                self.call_of[n.index()] = (seen / each).min(calls - 1) as u32;
                seen += usize::from(on_flow(n));
            }
        }
        calls
    }

    /// Linears of a module that read hidden states, in execution order.
    fn linears_within(&self, id: ModuleId) -> Vec<usize> {
        let mut found: Vec<usize> = self
            .tree
            .nodes_within(self.view, id)
            .into_iter()
            .filter_map(|n| self.linears.of(n))
            .collect();
        found.dedup();
        found.sort_unstable();
        found.dedup();
        found.retain(|l| self.view.is_flow(self.linears.all[*l].input));
        found
    }

    fn nodes_of(&self, id: ModuleId, call: usize) -> Vec<NodeId> {
        let mut nodes = self.tree.nodes_within(self.view, id);
        nodes.retain(|n| self.call_of[n.index()] as usize == call);
        nodes
    }

    fn boundary(&mut self, id: ModuleId, call: usize) -> Boundary {
        let nodes = self.nodes_of(id, call);
        self.marks.boundary(self.view, &nodes)
    }

    // ---- one layer ---------------------------------------------------------------------------------------------------------

    fn layer(&mut self, spot: &Spot, call: usize) -> Option<Layer> {
        let nodes: Vec<NodeId> = spot
            .nodes
            .iter()
            .copied()
            .filter(|n| self.call_of[n.index()] as usize == call)
            .collect();
        let edge = self.marks.boundary(self.view, &nodes);
        let f = self.interface.fields.clone();
        let at = |p: &super::interface::PerStack| p.get(spot.stack).map(str::to_owned);
        let (Some(input), Some(output)) = (edge.input, edge.output) else {
            self.miss(
                spot,
                "model_layers",
                at(&f.model_layers).unwrap_or_default(),
                "nothing enters or leaves it",
                None,
            );
            return None;
        };
        let self_attn = self.attention(spot, call, "layer_self_attn", at(&f.layer_self_attn));
        let cross_attn = self.attention(spot, call, "layer_cross_attn", at(&f.layer_cross_attn));
        let layer = Layer {
            index: spot.index,
            call,
            stack: spot.stack,
            path: self.full_path(spot.module),
            input,
            output,
            self_attn,
            cross_attn,
            intermediate: self.linear(
                spot,
                spot.module,
                call,
                Role::Intermediate,
                at(&f.layer_intermediate_proj),
            ),
            output_proj: self.linear(
                spot,
                spot.module,
                call,
                Role::Output,
                at(&f.layer_output_proj),
            ),
            pre_self_attn: self.entering(
                spot,
                call,
                "layer_pre_self_attn",
                at(&f.layer_pre_self_attn),
            ),
            pre_cross_attn: self.entering(
                spot,
                call,
                "layer_pre_cross_attn",
                at(&f.layer_pre_cross_attn),
            ),
            pre_ffn: self.entering(spot, call, "layer_pre_ffn", at(&f.layer_pre_ffn)),
            ln_1: self.norm(spot, call, "layer_ln_1", at(&f.layer_ln_1)),
            ln_cross: self.norm(spot, call, "layer_ln_cross", at(&f.layer_ln_cross)),
            ln_2: self.norm(spot, call, "layer_ln_2", at(&f.layer_ln_2)),
        };
        Some(layer)
    }

    fn attention(
        &mut self,
        spot: &Spot,
        call: usize,
        field: &'static str,
        path: Option<String>,
    ) -> Option<AttentionSite> {
        let path = path?;
        let Some(module) = self.part(spot.module, &path) else {
            self.miss(spot, field, path, "", Some(spot.module));
            return None;
        };
        let f = self.interface.fields.clone();
        let mut find = |role: Role, p: &super::interface::PerStack| {
            self.linear(
                spot,
                module,
                call,
                role,
                p.get(spot.stack).map(str::to_owned),
            )
        };
        let [q, k, v] = [
            find(Role::Query, &f.attn_q_proj),
            find(Role::Key, &f.attn_k_proj),
            find(Role::Value, &f.attn_v_proj),
        ];
        let qkv = find(Role::Qkv, &f.attn_qkv_proj);
        let o = find(Role::AttentionOutput, &f.attn_o_proj);
        let edge = self.boundary(module, call);
        let Some(output) = edge.output else {
            self.miss(spot, field, path, "nothing leaves it", None);
            return None;
        };
        self.decide(spot, field, module, output);
        let qkv_layout = qkv.as_ref().map(|s| super::fused::layout(self.view, s));
        Some(AttentionSite {
            path: self.full_path(module),
            q,
            k,
            v,
            qkv,
            qkv_layout,
            o,
            output,
        })
    }

    fn linear(
        &mut self,
        spot: &Spot,
        of: ModuleId,
        call: usize,
        role: Role,
        path: Option<String>,
    ) -> Option<LinearSite> {
        let path = path?;
        let Some(module) = self.part(of, &path) else {
            self.miss(spot, role.field(), path, "", Some(of));
            return None;
        };
        let nodes = self.nodes_of(module, call);
        let mut found: Vec<usize> = nodes.iter().filter_map(|n| self.linears.of(*n)).collect();
        found.sort_unstable();
        found.dedup();
        let (main, other): (Vec<usize>, Vec<usize>) = found
            .into_iter()
            .partition(|l| self.view.is_flow(self.linears.all[*l].input));
        let full = self.full_path(module);
        let Some((&first, more)) = main.split_first() else {
            let ops: Vec<&str> = nodes
                .iter()
                .map(|n| self.view.op(*n))
                .filter(|o| !o.is_empty())
                .collect();
            let why = format!("the module holds no linear, but {}", shown(&ops));
            self.miss(spot, role.field(), path, &why, None);
            return None;
        };
        let mut site = site(role, full.clone(), &self.linears.all[first]);
        site.other_calls = more
            .iter()
            .chain(&other)
            .map(|l| self::site(role, full.clone(), &self.linears.all[*l]))
            .collect();
        self.decide(spot, role.field(), module, site.output);
        Some(site)
    }

    fn entering(
        &mut self,
        spot: &Spot,
        call: usize,
        field: &'static str,
        path: Option<String>,
    ) -> Option<ValueId> {
        let path = path?;
        let Some(module) = self.part(spot.module, &path) else {
            self.miss(spot, field, path, "", Some(spot.module));
            return None;
        };
        let found = self.boundary(module, call).input;
        match found {
            Some(v) => self.decide(spot, field, module, v),
            None => self.miss(spot, field, path, "no hidden state enters it", None),
        }
        found
    }

    fn norm(
        &mut self,
        spot: &Spot,
        call: usize,
        field: &'static str,
        path: Option<String>,
    ) -> Option<NormSite> {
        let path = path?;
        let Some(module) = self.part(spot.module, &path) else {
            self.miss(spot, field, path, "", Some(spot.module));
            return None;
        };
        let nodes = self.nodes_of(module, call);
        let edge = self.marks.boundary(self.view, &nodes);
        let (Some(input), Some(output)) = (edge.input, edge.output) else {
            self.miss(spot, field, path, "nothing enters or leaves it", None);
            return None;
        };
        let Some((nodes, kind)) = norm_nodes(self.view, &nodes, input, output) else {
            self.miss(spot, field, path, "it is not a normalisation", None);
            return None;
        };
        self.decide(spot, field, module, output);
        Some(NormSite {
            path: self.full_path(module),
            nodes,
            input,
            output,
            kind,
        })
    }
}

/// A site of a linear.
pub(super) fn site(role: Role, path: Box<str>, l: &Linear) -> LinearSite {
    LinearSite {
        role,
        path,
        input: l.input,
        output: l.output,
        rows: l.rows,
        nodes: l.nodes.clone(),
        weight: l.weight.clone(),
        late_bias: l.late_bias,
        d_in: l.d_in,
        d_out: l.d_out,
        column: None,
        anchor: l.nodes.last().copied().unwrap_or(l.core),
        other_calls: Vec::new(),
    }
}

pub(super) fn ends_with(path: &str, tail: &str) -> bool {
    path.strip_suffix(tail)
        .is_some_and(|p| p.is_empty() || p.ends_with('.') || tail.is_empty())
}
