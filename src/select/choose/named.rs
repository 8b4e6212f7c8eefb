//! Layers by name: from an interface's paths and a module tree to sites.

use super::record::{Record, shown};
use super::scene::{Prefix, Scene, fits_end, site};
use crate::analyze::boundary::{Boundary, Marks};
use crate::analyze::columns;
use crate::analyze::flow::Flow;
use crate::analyze::norm::{Norm, norm_calls, norm_nodes};
use crate::analyze::residual;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{NodeId, ValueId, contract};
use crate::select::field::Field;
use crate::select::interface::PerStack;
use crate::select::modules::{ModuleId, join};
use crate::select::site::{AttentionSite, Layer, LinearSite, NormSite, Role};
use rustc_hash::FxHashSet;

/// One layer of the tree.
#[derive(Clone, Debug)]
pub(super) struct Spot {
    pub(super) index: usize,
    pub(super) stack: usize,
    pub(super) module: ModuleId,
    pub(super) nodes: Vec<NodeId>,
}

impl Spot {
    fn place(&self) -> (usize, usize) {
        (self.stack, self.index)
    }
}

impl Scene<'_> {
    /// The layers that `model_layers` leads to, by stack; the paths' prefix becomes known on the way.
    pub(super) fn spots(&mut self) -> Result<Vec<Spot>> {
        let mut spots: Vec<Spot> = Vec::new();
        let mut findings = Vec::new();
        let named = |stack| Some((stack, self.interface.fields.model_layers.get(stack)?));
        let named: Vec<(usize, &str)> = (0..self.interface.stacks()).filter_map(named).collect();
        let mut found: Vec<Result<Vec<ModuleId>, Diagnostic>> = Vec::new();
        for (_, path) in &named {
            found.push(self.find_lists(path));
        }
        self.settle(&named, &mut found);
        // A stack is of another file only where no list is left that it might be by another name.
        let used: Vec<ModuleId> = found.iter().flatten().flatten().copied().collect();
        let within = |id: ModuleId| used.iter().any(|u| self.tree.is_within(id, *u));
        let some = !used.is_empty() && self.all_lists().into_iter().all(within);
        let mut before = 0;
        let alone = found.iter().filter(|f| f.is_ok()).count() == 1 && found.len() > 1;
        for ((stack, path), found) in named.into_iter().zip(found) {
            match found {
                Ok(lists) => {
                    if let Some(&list) = lists.first()
                        && (stack == 0 || self.prefix.full.is_empty())
                    {
                        self.set_prefix(list, path, alone);
                    }
                    // Entries that are no layers are counted where layers follow them.
                    let mut all: Vec<(usize, ModuleId)> = Vec::new();
                    for list in lists {
                        let children = &self.tree.module(list).children;
                        let numbered = children
                            .iter()
                            .filter_map(|(name, id)| Some((name.parse().ok()?, *id)));
                        let mut entries: Vec<(usize, ModuleId)> = numbered.collect();
                        entries.sort_unstable();
                        let first = entries.first().map_or(0, |(number, _)| *number);
                        let before = all.last().map_or(0, |(index, _)| index + 1);
                        entries.retain(|(_, id)| self.is_layer(*id, stack));
                        let placed = entries.into_iter();
                        all.extend(placed.map(|(number, id)| (before + number - first, id)));
                    }
                    let first = match spots.last() {
                        Some(last) if !self.interface.counts_layers_apart() => last.index + 1,
                        None if !self.interface.counts_layers_apart() => before,
                        _ => 0,
                    };
                    spots.extend(all.into_iter().map(|(i, module)| Spot {
                        index: first + i,
                        stack,
                        module,
                        nodes: self.tree.nodes_within(self.view, module),
                    }));
                }
                Err(_) if some => {
                    before += if stack == 0 {
                        self.interface.encoder_layers.unwrap_or(0)
                    } else {
                        0
                    };
                    self.absent.push(path.to_owned());
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

    /// A list of a file that holds one stack may fit the end of several paths. It is the stack of which its layers have every part, and
    /// most parts; the others are not in the graph.
    fn settle(&self, named: &[(usize, &str)], found: &mut [Result<Vec<ModuleId>, Diagnostic>]) {
        let first = |f: &Result<Vec<ModuleId>, Diagnostic>| f.as_ref().ok()?.first().copied();
        for a in 0..found.len() {
            for b in a + 1..found.len() {
                let (Some(one), Some(other)) = (first(&found[a]), first(&found[b])) else {
                    continue;
                };
                if one != other {
                    continue;
                }
                let fits = |at: usize| self.parts_of(one, named[at].0);
                let loser = if fits(b) > fits(a) { a } else { b };
                found[loser] = Err(Diagnostic::error("select-no-layers", "of another stack"));
            }
        }
    }

    /// How well a list fits a stack: whether the first of its modules has every part that the interface names there, and how many.
    fn parts_of(&self, list: ModuleId, stack: usize) -> (bool, usize) {
        let children = &self.tree.module(list).children;
        let Some(layer) = children.get("0").or_else(|| children.values().next()) else {
            return (false, 0);
        };
        let f = &self.interface.fields;
        let parts = [
            &f.layer_self_attn,
            &f.layer_cross_attn,
            &f.layer_intermediate_proj,
            &f.layer_output_proj,
        ];
        let paths: Vec<&str> = parts.iter().filter_map(|p| p.get(stack)).collect();
        let there = paths.iter().filter(|p| self.part(*layer, p).is_some());
        let there = there.count();
        (there == paths.len(), there)
    }

    /// A list entry is a layer unless it holds none of the parts that the interface names (genai puts the final norm there).
    fn is_layer(&self, id: ModuleId, stack: usize) -> bool {
        let f = &self.interface.fields;
        let parts = [
            &f.layer_self_attn,
            &f.layer_intermediate_proj,
            &f.layer_output_proj,
        ];
        let named = parts.iter().filter_map(|p| p.get(stack));
        let mut named = named.filter(|p| !p.is_empty());
        named.any(|p| self.part(id, p).is_some())
    }

    /// Every module whose children are numbered.
    fn all_lists(&self) -> Vec<ModuleId> {
        let numbered = self.tree.ids().filter(|id| self.tree.is_list(*id));
        numbered.collect()
    }

    /// The list of modules at a path; several, in execution order, where a part of the path is `*`.
    fn find_lists(&self, path: &str) -> Result<Vec<ModuleId>, Diagnostic> {
        let lists = self.all_lists();
        let base = self.interface.fields.base_model.as_deref();
        let score = |id: ModuleId| {
            let have = &*self.tree.module(id).path;
            let whole = fits_end(have, path);
            let part = fits_end(path, have);
            let under_base = base.is_some_and(|b| fits_end(have, &join(b, path)));
            let parts = have.split('.').count();
            (whole || part).then_some((under_base, whole, std::cmp::Reverse(parts)))
        };
        let best = lists.iter().copied().filter_map(score).max();
        if let Some(best) = best {
            let equal: Vec<ModuleId> = lists
                .iter()
                .copied()
                .filter(|id| score(*id) == Some(best))
                .collect();
            return match equal[..] {
                [_, _, ..] if !path.contains('*') => Err(self.several(path, &equal)),
                _ => Ok(equal),
            };
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

    /// A path that several lists end with names none of them.
    fn several(&self, path: &str, lists: &[ModuleId]) -> Diagnostic {
        let paths: Vec<&str> = lists
            .iter()
            .map(|id| &*self.tree.module(*id).path)
            .collect();
        let found = format!(
            "`model_layers` = \"{path}\" may be any of {}",
            shown(&paths)
        );
        Diagnostic::error("select-several-layers", found)
            .at(format!("{}, interface.model_layers", self.interface.source))
            .help("write more of the path, or a list with one entry for each stack")
    }

    /// `alone`: whether no other stack of the interface is in the graph, which may have been exported without the module that holds
    /// this one.
    fn set_prefix(&mut self, list: ModuleId, path: &str, alone: bool) {
        let have = &*self.tree.module(list).path;
        let own: Vec<&str> = have.split('.').collect();
        let before = if fits_end(have, path) {
            own.len().saturating_sub(path.split('.').count())
        } else {
            0
        };
        let in_tree = match own[..before].join(".") {
            empty if empty.is_empty() => empty,
            path => format!("{path}."),
        };
        let mut full = in_tree.clone();
        // TorchScript drops the module whose `forward` was not called; parameters keep the full path.
        let inner = if fits_end(have, path) {
            format!("{have}.")
        } else {
            format!("{path}.")
        };
        let graph = self.view.graph;
        let mut names = graph.initializers().iter().map(|v| graph.name_of(*v));
        let longer = |n: &str| n.find(&format!(".{inner}")).map(|at| n[..=at].to_owned());
        if !names.clone().any(|n| n.starts_with(&inner))
            && let Some(before) = names.find_map(longer)
        {
            full = format!("{before}{in_tree}");
        }
        let lead = path.strip_suffix(have).filter(|l| l.ends_with('.'));
        let lead = lead.filter(|_| alone && full.is_empty());
        self.prefix = Prefix {
            in_tree,
            full,
            lead: lead.unwrap_or_default().to_owned(),
        };
    }

    /// The part of a module that a path leads to; exporters may skip leading parts that were not called themselves. A leading part
    /// that the tree has is never skipped: what stands behind it by the same name is another module. Of several paths, with `|` between
    /// them, the first that leads somewhere.
    fn part(&self, of: ModuleId, path: &str) -> Option<ModuleId> {
        path.split('|').find_map(|p| self.part_at(of, p))
    }

    fn part_at(&self, of: ModuleId, path: &str) -> Option<ModuleId> {
        let mut rest = path;
        loop {
            if let Some(id) = self.tree.descend(of, rest) {
                return Some(id);
            }
            let (first, behind) = rest.split_once('.')?;
            if self.tree.descend(of, first).is_some() {
                return None;
            }
            rest = behind;
        }
    }
}

/// Finds the sites of layers one after the other.
pub(super) struct Named<'s> {
    scene: &'s Scene<'s>,
    record: &'s mut Record,
    marks: Marks,
    /// Which call of its layer a node belongs to, where layers are shared.
    call_of: Vec<u32>,
}

impl<'s> Named<'s> {
    pub(super) fn new(scene: &'s Scene<'s>, record: &'s mut Record) -> Self {
        Named {
            scene,
            record,
            marks: Marks::new(scene.view),
            call_of: vec![0; scene.view.graph.index_bound()],
        }
    }

    /// Splits the nodes of a shared layer into its calls; returns their number. Every call has the same operators on hidden states,
    /// so the k-th part of a module's nodes, in execution order, belongs to the k-th call.
    pub(super) fn split_calls(&mut self, spot: &Spot) -> usize {
        let f = &self.scene.interface.fields;
        let count = [&f.layer_output_proj, &f.layer_intermediate_proj]
            .iter()
            .filter_map(|p| self.scene.part(spot.module, p.get(spot.stack)?))
            .map(|m| self.linears_within(m).len())
            .find(|n| *n > 0);
        let calls = count.unwrap_or(1);
        if calls < 2 {
            return 1;
        }
        for m in self.scene.tree.subtree(spot.module) {
            let own = &self.scene.tree.module(m).nodes;
            let on_flow = |n: &NodeId| {
                self.scene
                    .view
                    .graph
                    .node_outputs(*n)
                    .into_iter()
                    .flatten()
                    .any(|v| self.scene.view.is_flow(v))
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
            .scene
            .tree
            .nodes_within(self.scene.view, id)
            .into_iter()
            .filter_map(|n| self.scene.linears.of(n))
            .collect();
        found.dedup();
        found.sort_unstable();
        found.dedup();
        found.retain(|l| self.scene.view.is_flow(self.scene.linears.all[*l].input));
        found
    }

    fn nodes_of(&self, id: ModuleId, call: usize) -> Vec<NodeId> {
        let mut nodes = self.scene.tree.nodes_within(self.scene.view, id);
        nodes.retain(|n| self.call_of[n.index()] as usize == call);
        nodes
    }

    fn boundary(&mut self, id: ModuleId, call: usize) -> Boundary {
        let nodes = self.nodes_of(id, call);
        self.marks.boundary(self.scene.view, &nodes)
    }

    // ---- one layer ---------------------------------------------------------------------------------------------------------

    pub(super) fn layer(&mut self, spot: &Spot, call: usize) -> Option<Layer> {
        let nodes: Vec<NodeId> = spot
            .nodes
            .iter()
            .copied()
            .filter(|n| self.call_of[n.index()] as usize == call)
            .collect();
        let edge = self.marks.boundary(self.scene.view, &nodes);
        let f = &self.scene.interface.fields;
        let at = |p: &PerStack| p.get(spot.stack).map(str::to_owned);
        let (Some(input), Some(output)) = (edge.input, edge.output) else {
            self.record.miss(
                self.scene,
                spot.place(),
                Field::ModelLayers,
                at(&f.model_layers).unwrap_or_default(),
                "nothing enters or leaves it",
                None,
            );
            return None;
        };
        let self_attn = self.attention(spot, call, Field::LayerSelfAttn, at(&f.layer_self_attn));
        let cross_attn = self.attention(spot, call, Field::LayerCrossAttn, at(&f.layer_cross_attn));
        let intermediate = self.linear(
            spot,
            spot.module,
            call,
            Role::Intermediate,
            at(&f.layer_intermediate_proj),
        );
        let output_proj = self.linear(
            spot,
            spot.module,
            call,
            Role::Output,
            at(&f.layer_output_proj),
        );
        let made = |a: &Option<AttentionSite>| a.as_ref().and_then(|a| Some(a.o.as_ref()?.output));
        let (attended, crossed) = (made(&self_attn), made(&cross_attn));
        let transformed = output_proj.as_ref().map(|p| p.output);
        let mut layer = Layer {
            index: spot.index,
            call,
            stack: spot.stack,
            path: self.scene.full_path(spot.module),
            input,
            output,
            self_attn,
            cross_attn,
            intermediate,
            gate_proj: self.gate(spot, call, at(&f.layer_gate_proj)),
            output_proj,
            ffn_output: None,
            pre_self_attn: self.entering(
                spot,
                call,
                Field::LayerPreSelfAttn,
                at(&f.layer_pre_self_attn),
            ),
            pre_cross_attn: self.entering(
                spot,
                call,
                Field::LayerPreCrossAttn,
                at(&f.layer_pre_cross_attn),
            ),
            pre_ffn: self.entering(spot, call, Field::LayerPreFfn, at(&f.layer_pre_ffn)),
            ln_1: self.norm(spot, call, Field::LayerLn1, at(&f.layer_ln_1), attended),
            ln_cross: self.norm(
                spot,
                call,
                Field::LayerLnCross,
                at(&f.layer_ln_cross),
                crossed,
            ),
            ln_2: self.norm(spot, call, Field::LayerLn2, at(&f.layer_ln_2), transformed),
        };
        if layer.output_proj.is_none() {
            layer.ffn_output = self.block(&layer);
        }
        Some(layer)
    }

    /// What the feed-forward block of a layer adds to the stream, whatever stands inside.
    fn block(&self, layer: &Layer) -> Option<ValueId> {
        let view = self.scene.view;
        let made = |v: ValueId| view.defined(v);
        let added = |sum: ValueId| residual::branch(**view, sum, layer.pre_ffn, &made);
        let found = match &layer.ln_2 {
            // The norm is of the sum, or of the block alone.
            Some(norm) => layer
                .pre_ffn
                .map(|_| added(norm.input).unwrap_or(norm.input)),
            None => added(layer.output),
        };
        let attended = layer.self_attn.as_ref().map(|a| a.output);
        let alike = |v: &ValueId| view.last(*v) == view.last(layer.input);
        found.filter(|v| alike(v) && attended.is_none_or(|a| made(a) < made(*v)))
    }

    /// A module of the layer, by its path there. One that is missing is recorded.
    fn part(&mut self, spot: &Spot, field: Field, path: &str) -> Option<ModuleId> {
        let found = self.scene.part(spot.module, path);
        if found.is_none() {
            let near = Some((spot.module, spot.module));
            self.record
                .miss(self.scene, spot.place(), field, path.to_owned(), "", near);
        }
        found
    }

    fn attention(
        &mut self,
        spot: &Spot,
        call: usize,
        field: Field,
        path: Option<String>,
    ) -> Option<AttentionSite> {
        let path = path?;
        let module = self.part(spot, field, &path)?;
        let f = &self.scene.interface.fields;
        // What a decoder's first step made of the encoder's states comes from a cache in the steps behind it.
        let fed = field == Field::LayerCrossAttn && self.is_fed(spot, module);
        let mut find = |role: Role, p: &PerStack| {
            if fed && matches!(role, Role::Key | Role::Value) {
                return None;
            }
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
        let output = if module == spot.module {
            o.as_ref().map(|o| o.output)
        } else {
            self.boundary(module, call).output
        };
        let Some(output) = output else {
            self.record.miss(
                self.scene,
                spot.place(),
                field,
                path,
                "nothing leaves it",
                None,
            );
            return None;
        };
        self.record
            .decide(self.scene, spot.index, field, module, output);
        let qkv_layout = qkv
            .as_ref()
            .map(|s| columns::layout(self.scene.view, s.output, s.d_out));
        let end = o.as_ref().map_or(output, |o| o.input);
        let fed = q.as_ref().filter(|_| fed);
        Some(AttentionSite {
            path: self.scene.full_path(module),
            fed: fed.and_then(|q| self.fed(end, q)),
            q,
            k,
            v,
            qkv,
            qkv_layout,
            o,
            output,
        })
    }

    /// Whether an attention has no projections of keys and values, in a graph with inputs for a cache. They are noted as absent.
    fn is_fed(&mut self, spot: &Spot, attention: ModuleId) -> bool {
        let f = &self.scene.interface.fields;
        let paths = [&f.attn_k_proj, &f.attn_v_proj].map(|p| p.get(spot.stack));
        let [Some(k), Some(v)] = paths else {
            return false;
        };
        let lacks = |path: &str| self.scene.part(attention, path).is_none();
        let g = self.scene.view.graph;
        let mut inputs = g.inputs().iter();
        let fed = lacks(k) && lacks(v) && inputs.any(|p| contract::is_past(g.name_of(p.value)));
        if fed {
            let at = self.scene.full_path(attention);
            let paths = [k, v].map(|p| format!("{at}.{p}"));
            self.record.absent.extend(paths);
        }
        fed
    }

    /// The graph inputs that an attention reads as keys and values: values are mixed by what the softmax makes, keys are in front of it.
    fn fed(&self, end: ValueId, q: &LinearSite) -> Option<[ValueId; 2]> {
        let view = self.scene.view;
        let past = |v: ValueId| view.graph.is_input(v) && contract::is_past(view.graph.name_of(v));
        let (mut keys, mut values) = (Vec::new(), Vec::new());
        let mut todo = vec![(end, false)];
        let mut seen = FxHashSet::default();
        while let Some((v, scores)) = todo.pop() {
            if v == q.output || v == q.rows.1 || v == q.input || !seen.insert((v, scores)) {
                continue;
            }
            if past(v) {
                let list = if scores { &mut keys } else { &mut values };
                list.push(v);
            } else if let Some(n) = view.producer(v).filter(|n| !view.measures(*n)) {
                let scores = scores || view.is(n, "Softmax");
                todo.extend(view.inputs(n).into_iter().flatten().map(|v| (v, scores)));
            }
        }
        match (&keys[..], &values[..]) {
            ([keys], [values]) => Some([*keys, *values]),
            _ => None,
        }
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
        let Some(module) = self.scene.part(of, &path) else {
            self.record.miss(
                self.scene,
                spot.place(),
                role.field(),
                path,
                "",
                Some((spot.module, of)),
            );
            return None;
        };
        let nodes = self.nodes_of(module, call);
        let mut found: Vec<usize> = nodes
            .iter()
            .filter_map(|n| self.scene.linears.call(*n))
            .collect();
        found.sort_unstable();
        found.dedup();
        let (main, other): (Vec<usize>, Vec<usize>) = found
            .into_iter()
            .partition(|l| self.scene.view.is_flow(self.scene.linears.all[*l].input));
        let full = self.scene.full_path(module);
        let Some((&first, more)) = main.split_first() else {
            let ops: Vec<&str> = nodes
                .iter()
                .map(|n| self.scene.view.op(*n))
                .filter(|o| !o.is_empty())
                .collect();
            let why = format!("the module holds no linear, but {}", shown(&ops));
            self.record
                .miss(self.scene, spot.place(), role.field(), path, &why, None);
            return None;
        };
        let mut site = site(role, full.clone(), &self.scene.linears.all[first]);
        site.other_calls = more
            .iter()
            .chain(&other)
            .map(|l| super::scene::site(role, full.clone(), &self.scene.linears.all[*l]))
            .collect();
        self.record
            .decide(self.scene, spot.index, role.field(), module, site.output);
        Some(site)
    }

    /// The gate projection. An export that holds it together with the up projection has no such module.
    fn gate(&mut self, spot: &Spot, call: usize, path: Option<String>) -> Option<LinearSite> {
        let path = path.filter(|p| self.scene.part(spot.module, p).is_some())?;
        self.linear(spot, spot.module, call, Role::Gate, Some(path))
    }

    fn entering(
        &mut self,
        spot: &Spot,
        call: usize,
        field: Field,
        path: Option<String>,
    ) -> Option<ValueId> {
        let path = path?;
        let module = self.part(spot, field, &path)?;
        let found = self.boundary(module, call).input;
        match found {
            Some(v) => self.record.decide(self.scene, spot.index, field, module, v),
            None => self.record.miss(
                self.scene,
                spot.place(),
                field,
                path,
                "no hidden state enters it",
                None,
            ),
        }
        found
    }

    /// A norm; of several calls of it, the one behind the value.
    fn norm(
        &mut self,
        spot: &Spot,
        call: usize,
        field: Field,
        path: Option<String>,
        behind: Option<ValueId>,
    ) -> Option<NormSite> {
        let path = path?;
        let module = self.part(spot, field, &path)?;
        let all = self.nodes_of(module, call);
        let nodes = one_call(self.scene.view, &all, behind);
        let edge = self.marks.boundary(self.scene.view, &nodes);
        let (Some(input), Some(output)) = (edge.input, edge.output) else {
            self.record.miss(
                self.scene,
                spot.place(),
                field,
                path,
                "nothing enters or leaves it",
                None,
            );
            return None;
        };
        let Some((nodes, kind)) = norm_nodes(self.scene.view, &nodes, input, output) else {
            self.record.miss(
                self.scene,
                spot.place(),
                field,
                path,
                "it is not a normalisation",
                None,
            );
            return None;
        };
        self.record
            .decide(self.scene, spot.index, field, module, output);
        Some(NormSite {
            path: self.scene.full_path(module),
            nodes,
            input,
            output,
            kind,
        })
    }
}

/// The nodes of one call of a norm: of several, the first one behind a value. All calls compute the same function.
fn one_call(view: &Flow<'_>, nodes: &[NodeId], behind: Option<ValueId>) -> Vec<NodeId> {
    let calls = norm_calls(view, nodes);
    if calls.len() < 2 {
        return nodes.to_vec();
    }
    let after = |n: &Norm| {
        let at = behind.map_or(i64::MIN, |v| view.defined(v));
        n.input.is_some_and(|v| view.defined(v) >= at)
    };
    let found = calls.iter().find(|n| after(n)).or(calls.first());
    found.map_or_else(|| nodes.to_vec(), |n| n.nodes.clone())
}
