//! From structure to sites: layers whose names an optimizer removed, and places whose names an exporter changed.

use super::record::Record;
use super::scene::{Scene, site};
use crate::analyze::columns;
use crate::analyze::structure::{Core, Found, Projection, Structure};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{NodeId, ValueId};
use crate::select::field::Field;
use crate::select::interface::PerStack;
use crate::select::modules::{Witness, join};
use crate::select::site::{AttentionSite, Decision, Layer, LinearSite, NormSite, Role};

/// Attributes under which Hugging Face models hold their base model, where a head shows that there is one around it.
const BASE: [(&str, &[&str]); 3] = [
    (
        "model.",
        &[
            "llama", "mistral", "mixtral", "qwen", "gemma", "phi", "bart", "mbart", "plbart",
            "opt", "whisper",
        ],
    ),
    ("transformer.", &["gpt2", "gptj", "bloom", "falcon", "mpt"]),
    ("gpt_neox.", &["gpt_neox"]),
];

impl Scene<'_> {
    /// What stands before the base model's paths: initializers that kept their names say it, else the model type.
    pub(super) fn guess_prefix(&self) -> String {
        let f = &self.interface.fields;
        let lists: Vec<String> = (0..self.interface.stacks())
            .filter_map(|s| f.model_layers.get(s))
            .map(|p| format!("{p}."))
            .collect();
        let named = self.view.graph.initializers().iter().find_map(|v| {
            let name = self.view.graph.name_of(*v);
            lists.iter().find_map(|l| {
                let at = name.find(l.as_str())?;
                let digit = name
                    .as_bytes()
                    .get(at + l.len())
                    .is_some_and(u8::is_ascii_digit);
                let start = at == 0 || name[..at].ends_with('.');
                (digit && start).then(|| name[..at].to_owned())
            })
        });
        let by_type = || {
            let model_type = self.interface.model_type.as_deref()?;
            let headed = self
                .linears
                .all
                .iter()
                .any(|l| self.view.is_output(l.output) && l.d_out != l.d_in);
            let known = BASE
                .iter()
                .find(|(_, types)| types.iter().any(|t| model_type.starts_with(t)))?;
            headed.then(|| known.0.to_owned())
        };
        named.or_else(by_type).unwrap_or_default()
    }
}

/// Finds layers by structure, and what names leave open in layers.
pub(super) struct Unnamed<'s> {
    pub(super) scene: &'s Scene<'s>,
    pub(super) record: &'s mut Record,
}

impl Unnamed<'_> {
    /// All layers by structure. `error` says why names did not lead to them, and stands when structure does not either.
    pub(super) fn layers(&mut self, error: Error) -> Result<Vec<Layer>> {
        let structure = self.scene.structure();
        let found = structure.layers();
        // Where names lead to layers, a list that they do not know is a mistake and no gap.
        let tree = self.scene.tree;
        let module = |linear: usize| {
            let core = self.scene.linears.all[linear].core;
            let of = tree.of(core).filter(|_| self.scene.is_named(core));
            of.map(|(module, _)| module)
        };
        // The parts of a layer may stand in lists of their own, as XLM's `attentions` and `ffns`.
        let whole = |f: &Found| {
            let attention = module(f.self_attn.o);
            let down = f.down.and_then(module).or(attention);
            let both = attention.zip(down).map(|(a, b)| tree.shared(a, b));
            both.is_some_and(|m| tree.list_entry(m).is_some())
        };
        if found.iter().any(whole) {
            return Err(error);
        }
        let Some(stacks) = self.stacks(&found) else {
            return Err(if found.is_empty() {
                error
            } else {
                self.other_stacks(&found)
            });
        };
        let mut out = Vec::new();
        for (stack, members) in stacks.into_iter().enumerate() {
            for (local, f) in members.into_iter().enumerate() {
                if let Some(mut layer) =
                    self.build(&structure, f, (stack, out.len(), local), f.output)
                {
                    self.own_names(&mut layer);
                    self.account(&layer);
                    out.push(layer);
                }
            }
        }
        Ok(out)
    }

    /// Gives the linears of a layer that has no path of its own the paths that they have in the graph, and that adapters for the original
    /// model are saved under.
    fn own_names(&self, layer: &mut Layer) {
        let scene = self.scene;
        let attentions = [&mut layer.self_attn, &mut layer.cross_attn];
        let projections = attentions
            .into_iter()
            .flatten()
            .flat_map(|a| [&mut a.q, &mut a.k, &mut a.v, &mut a.qkv, &mut a.o]);
        let block = [
            &mut layer.intermediate,
            &mut layer.gate_proj,
            &mut layer.output_proj,
        ];
        for site in projections.chain(block).flatten() {
            let of = |n: &NodeId| scene.tree.of(*n).filter(|_| scene.is_named(*n));
            if let Some((module, _)) = site.nodes.iter().find_map(of) {
                site.path = scene.tree.module(module).path.clone();
            }
        }
    }

    /// Whether a value enters a module from a node that names no module: the node may belong to it.
    fn enters_from_nowhere(&self, v: ValueId) -> bool {
        self.scene
            .view
            .producer(v)
            .is_some_and(|n| !self.scene.is_named(n))
    }

    /// Whether names leave a boundary of a layer open.
    pub(super) fn is_frayed(&self, l: &Layer) -> bool {
        let entering = [Some(l.input), l.pre_self_attn, l.pre_cross_attn, l.pre_ffn];
        let attentions = [&l.self_attn, &l.cross_attn].into_iter().flatten();
        entering
            .into_iter()
            .flatten()
            .any(|v| self.enters_from_nowhere(v))
            || self.scene.leaves_to_nowhere(l.output)
            || attentions
                .into_iter()
                .any(|a| self.scene.leaves_to_nowhere(a.output))
    }

    /// Moves boundaries that names leave open out to where structure puts them.
    fn mend(&mut self, layer: &mut Layer, other: &Layer) {
        let inward = |v: &mut ValueId, from: ValueId| {
            let moves = self.enters_from_nowhere(*v)
                && self.scene.view.defined(from) < self.scene.view.defined(*v);
            if moves {
                *v = from;
            }
            moves
        };
        let outward = |v: &mut ValueId, to: ValueId| {
            let moves = self.scene.leaves_to_nowhere(*v)
                && self.scene.view.defined(to) > self.scene.view.defined(*v);
            if moves {
                *v = to;
            }
            moves
        };
        inward(&mut layer.input, other.input);
        outward(&mut layer.output, other.output);
        let mut moved = Vec::new();
        for (field, own, from) in [
            (
                Field::LayerPreSelfAttn,
                &mut layer.pre_self_attn,
                other.pre_self_attn,
            ),
            (
                Field::LayerPreCrossAttn,
                &mut layer.pre_cross_attn,
                other.pre_cross_attn,
            ),
            (Field::LayerPreFfn, &mut layer.pre_ffn, other.pre_ffn),
        ] {
            if let (Some(own), Some(from)) = (own, from)
                && inward(own, from)
            {
                moved.push((field, from));
            }
        }
        for (field, own, to) in [
            (Field::LayerSelfAttn, &mut layer.self_attn, &other.self_attn),
            (
                Field::LayerCrossAttn,
                &mut layer.cross_attn,
                &other.cross_attn,
            ),
        ] {
            if let (Some(own), Some(to)) = (own, to)
                && outward(&mut own.output, to.output)
            {
                moved.push((field, to.output));
            }
        }
        for (field, value) in moved {
            let of = |d: &&mut Decision| d.layer == Some(layer.index) && d.field == field;
            if let Some(decision) = self.record.decisions.iter_mut().find(of) {
                decision.value = value;
                decision.witness = Witness::Structure;
            }
        }
    }

    /// Fills in what the names did not lead to, in graphs whose layers they did lead to.
    pub(super) fn fill(&mut self, layers: &mut [Layer]) {
        let structure = self.scene.structure();
        let found = structure.layers();
        let Some(stacks) = self.stacks(&found) else {
            return;
        };
        for (stack, members) in stacks.into_iter().enumerate() {
            let mut own: Vec<&mut Layer> = layers.iter_mut().filter(|l| l.stack == stack).collect();
            if own.len() != members.len() {
                continue;
            }
            for (local, (layer, f)) in own.iter_mut().zip(members).enumerate() {
                let output = f.output.or(Some(layer.output));
                let at = (stack, layer.index, local);
                let Some(mut other) = self.build(&structure, f, at, output) else {
                    continue;
                };
                self.mend(layer, &other);
                self.keep_gaps(&mut other, f);
                let before: Vec<bool> = SITES.iter().map(|f| f.value(layer).is_some()).collect();
                merge(layer, other);
                for (field, had) in SITES.into_iter().zip(before) {
                    if !had {
                        self.found_by_structure(layer, field);
                    }
                }
            }
        }
    }

    /// Structure answers only where names are silent: for nodes without one, for columns of a projection that an exporter fused, and
    /// for exporters that rename modules. A name that the interface has wrong stays a finding.
    fn keep_gaps(&self, layer: &mut Layer, f: &Found) {
        if self.scene.view.renames {
            return;
        }
        let silent = |nodes: &[NodeId]| !nodes.iter().any(|n| self.scene.is_named(*n));
        let linear = |s: &mut Option<LinearSite>| {
            if s.as_ref()
                .is_some_and(|s| s.column.is_none() && !silent(&s.nodes))
            {
                *s = None;
            }
        };
        let mut gap = false;
        let hearts = [Some(&f.self_attn), f.cross_attn.as_ref()];
        let hearts = hearts.map(|core| Some(self.scene.tree.of(core?.heart)?.0));
        for (site, heart) in [&mut layer.self_attn, &mut layer.cross_attn]
            .into_iter()
            .zip(hearts)
        {
            let Some(a) = site else { continue };
            // A reshape that the attention itself does behind a projection is no name of the projection.
            let around = |n: &NodeId| {
                let module = self.scene.tree.of(*n).map(|(m, _)| m);
                let both = module.zip(heart);
                both.is_some_and(|(m, heart)| self.scene.tree.is_within(heart, m))
            };
            let projection = |s: &mut Option<LinearSite>| {
                let own = |s: &LinearSite| {
                    let nodes = s.nodes.iter().copied().filter(|n| !around(n));
                    s.column.is_none() && !silent(&nodes.collect::<Vec<_>>())
                };
                if s.as_ref().is_some_and(own) {
                    *s = None;
                }
            };
            for s in [&mut a.q, &mut a.k, &mut a.v, &mut a.qkv, &mut a.o] {
                projection(s);
            }
            if [&a.q, &a.k, &a.v, &a.qkv, &a.o].iter().all(|s| s.is_none()) {
                *site = None;
            } else {
                gap = true;
            }
        }
        for s in [&mut layer.intermediate, &mut layer.output_proj] {
            linear(s);
            gap |= s.is_some();
        }
        for s in [&mut layer.ln_1, &mut layer.ln_cross, &mut layer.ln_2] {
            if s.as_ref().is_some_and(|s| !silent(&s.nodes)) {
                *s = None;
            }
            gap |= s.is_some();
        }
        // What enters a module is a gap as well where no name says what reads it.
        for v in [
            &mut layer.pre_self_attn,
            &mut layer.pre_cross_attn,
            &mut layer.pre_ffn,
        ] {
            *v = v.filter(|v| gap || self.scene.leaves_to_nowhere(*v));
        }
    }

    /// Records that structure gave a field of a layer, if it did.
    fn found_by_structure(&mut self, layer: &Layer, field: Field) {
        let Some(path) = field.path(&self.scene.interface.fields, layer.stack) else {
            return;
        };
        let Some(value) = field.value(layer) else {
            return;
        };
        if let Some(miss) = self
            .record
            .misses
            .get_mut(&(layer.stack, field, path.to_owned()))
        {
            miss.found(layer.index);
        }
        let inside = field
            .is_of_attention()
            .then(|| layer.self_attn.as_ref().or(layer.cross_attn.as_ref()))
            .flatten();
        let outer = inside.map_or(&layer.path, |a| &a.path);
        self.record.decisions.push(Decision {
            layer: Some(layer.index),
            field,
            path: join(outer, path).into(),
            value,
            witness: Witness::Structure,
        });
    }

    /// The chains of layers, one for each entry of `model_layers`: those without cross-attention first.
    fn stacks<'f>(&self, found: &'f [Found]) -> Option<Vec<Vec<&'f Found>>> {
        let count = found.iter().map(|f| f.stack + 1).max()?;
        let mut chains: Vec<Vec<&Found>> = vec![Vec::new(); count];
        for f in found {
            chains[f.stack].push(f);
        }
        let crosses = |c: &[&Found]| c.iter().any(|f| f.cross_attn.is_some());
        let wanted = self.scene.interface.stacks();
        if wanted == chains.len() {
            chains.sort_by_key(|c| crosses(c));
            return Some(chains);
        }
        let cross = !self.scene.interface.fields.layer_cross_attn.is_null();
        let mut fitting = chains.into_iter().filter(|c| crosses(c) == cross);
        let first = fitting.next()?;
        (wanted == 1 && fitting.next().is_none()).then(|| vec![first])
    }

    fn other_stacks(&self, found: &[Found]) -> Error {
        let count = found.iter().map(|f| f.stack + 1).max().unwrap_or(0);
        let d = Diagnostic::error(
            "select-stacks",
            format!(
                "`model_layers` names {} lists; by its structure this graph has {count} chains of layers",
                self.scene.interface.stacks()
            ),
        )
        .at(format!("{}, interface.model_layers", self.scene.interface.source))
        .help("give `model_layers` one entry for each chain: the encoder's, then the decoder's");
        Error::new(ErrorKind::Interface, d)
    }

    // ---- one layer -----------------------------------------------------------------------------------------------------------

    /// A layer as structure shows it; where it does not show where the layer ends, `output` says so.
    fn build(
        &self,
        s: &Structure<'_>,
        f: &Found,
        (stack, index, local): (usize, usize, usize),
        output: Option<ValueId>,
    ) -> Option<Layer> {
        let fields = self.scene.interface.fields.clone();
        let at = |p: &PerStack| p.get(stack).map(str::to_owned);
        let path = format!(
            "{}{}.{local}",
            self.scene.prefix.full,
            at(&fields.model_layers)?
        );
        let under = |p: &PerStack| at(p).map(|p| join(&path, &p));
        let attention = |core: &Core, p: &PerStack| Some(self.core_site(core, &under(p)?, stack));
        let mut self_attn = attention(&f.self_attn, &fields.layer_self_attn);
        let mut cross_attn = f
            .cross_attn
            .as_ref()
            .and_then(|c| attention(c, &fields.layer_cross_attn));
        // A norm that is part of the attention module (BERT's `attention.output.LayerNorm`) makes what leaves it.
        for (site, module, norm, out) in [
            (
                &mut self_attn,
                &fields.layer_self_attn,
                &fields.layer_ln_1,
                f.ln_1,
            ),
            (
                &mut cross_attn,
                &fields.layer_cross_attn,
                &fields.layer_ln_cross,
                f.ln_cross,
            ),
        ] {
            let within = at(norm)
                .zip(at(module))
                .is_some_and(|(n, m)| n.starts_with(&format!("{m}.")));
            if let (Some(site), Some(out), true) = (site, out, within) {
                site.output = out;
            }
        }
        let linear = |p: Projection, role: Role, paths: &PerStack| {
            self.projection_site(p, role, &under(paths)?)
        };
        let norm = |out: Option<ValueId>, paths: &PerStack| {
            let n = s.norms.making(self.scene.view, out?)?;
            Some(NormSite {
                path: under(paths)?.into(),
                nodes: n.nodes.clone(),
                input: n.input?,
                output: n.output,
                kind: n.kind,
            })
        };
        // A `layer_pre_*` field that names a norm means what enters the norm.
        let entering = |v: ValueId, paths: &PerStack| {
            let path = at(paths)?;
            let last = path.rsplit('.').next().unwrap_or_default().to_lowercase();
            let is_norm = last.contains("norm") || last.starts_with("ln");
            let before = s.norms.making(self.scene.view, v).filter(|_| is_norm);
            match before {
                Some(n) => n.input,
                None => Some(v),
            }
        };
        let up_input = f.up.map(|p| self.scene.linears.all[p.linear].input);
        let up_input = up_input.or(f.block.map(|b| b.0));
        let layer = Layer {
            index,
            call: 0,
            stack,
            input: f.input,
            output: output?,
            self_attn,
            cross_attn,
            intermediate: f
                .up
                .and_then(|p| linear(p, Role::Intermediate, &fields.layer_intermediate_proj)),
            gate_proj: f.gate.and_then(|l| {
                let whole = Projection {
                    linear: l,
                    columns: None,
                };
                linear(whole, Role::Gate, &fields.layer_gate_proj)
            }),
            output_proj: f.down.and_then(|l| {
                linear(
                    Projection {
                        linear: l,
                        columns: None,
                    },
                    Role::Output,
                    &fields.layer_output_proj,
                )
            }),
            ffn_output: f.block.map(|b| b.1),
            pre_self_attn: entering(f.self_attn.input, &fields.layer_pre_self_attn),
            pre_cross_attn: f
                .cross_attn
                .as_ref()
                .and_then(|c| entering(c.input, &fields.layer_pre_cross_attn)),
            pre_ffn: up_input.and_then(|v| entering(v, &fields.layer_pre_ffn)),
            ln_1: norm(f.ln_1, &fields.layer_ln_1),
            ln_cross: norm(f.ln_cross, &fields.layer_ln_cross),
            ln_2: norm(f.ln_2, &fields.layer_ln_2),
            path: path.into(),
        };
        Some(layer)
    }

    fn core_site(&self, core: &Core, path: &str, stack: usize) -> AttentionSite {
        let f = &self.scene.interface.fields;
        let linear = |p: Option<Projection>, role: Role, paths: &PerStack| {
            self.projection_site(p?, role, &join(path, paths.get(stack)?))
        };
        let fused = core
            .q
            .filter(|q| Some(q.linear) == core.k.map(|k| k.linear));
        let separate = |p: Option<Projection>| p.filter(|p| fused.is_none() || p.columns.is_some());
        let whole = fused.map(|q| Projection { columns: None, ..q });
        let qkv = linear(whole, Role::Qkv, &f.attn_qkv_proj);
        let o = linear(
            Some(Projection {
                linear: core.o,
                columns: None,
            }),
            Role::AttentionOutput,
            &f.attn_o_proj,
        );
        AttentionSite {
            fed: None,
            path: path.into(),
            q: linear(separate(core.q), Role::Query, &f.attn_q_proj),
            k: linear(separate(core.k), Role::Key, &f.attn_k_proj),
            v: linear(separate(core.v), Role::Value, &f.attn_v_proj),
            qkv_layout: qkv
                .as_ref()
                .map(|s| columns::layout(self.scene.view, s.output, s.d_out)),
            qkv,
            output: self.scene.linears.all[core.o].output,
            o,
        }
    }

    fn projection_site(&self, p: Projection, role: Role, path: &str) -> Option<LinearSite> {
        let mut out = site(role, path.into(), self.scene.linears.all.get(p.linear)?);
        if let Some((value, first, width)) = p.columns {
            out.output = value;
            out.rows = (out.rows.0, value);
            out.column = Some(first);
            out.d_out = width;
            out.anchor = self.scene.view.producer(value)?;
        }
        Some(out)
    }

    /// Records decisions and misses of a layer that structure alone gave.
    fn account(&mut self, layer: &Layer) {
        for field in SITES {
            let path = field.path(&self.scene.interface.fields, layer.stack);
            match (path, field.value(layer)) {
                (Some(_), Some(_)) => self.found_by_structure(layer, field),
                // An export may hold it together with the up projection.
                (Some(_), None) if field == Field::LayerGateProj => {}
                (Some(path), None) => {
                    self.record
                        .missing(layer.stack, layer.index, field, path, HIDDEN);
                }
                (None, _) => {}
            }
        }
    }
}

const HIDDEN: &str = "the graph has no value for it: a fused operator holds it, or its structure is not one that is known";

/// The fields that stand for a place in a layer.
const SITES: [Field; 16] = [
    Field::LayerSelfAttn,
    Field::LayerCrossAttn,
    Field::AttnQProj,
    Field::AttnKProj,
    Field::AttnVProj,
    Field::AttnQkvProj,
    Field::AttnOProj,
    Field::LayerIntermediateProj,
    Field::LayerGateProj,
    Field::LayerOutputProj,
    Field::LayerPreSelfAttn,
    Field::LayerPreCrossAttn,
    Field::LayerPreFfn,
    Field::LayerLn1,
    Field::LayerLnCross,
    Field::LayerLn2,
];

/// Takes from `other` what `layer` lacks.
fn merge(layer: &mut Layer, other: Layer) {
    fn take<T>(to: &mut Option<T>, from: Option<T>) {
        if to.is_none() {
            *to = from;
        }
    }
    let attention =
        |to: &mut Option<AttentionSite>, from: Option<AttentionSite>| match (to.as_mut(), from) {
            (Some(a), Some(b)) => {
                // Without its output projection the module seemed to end where that begins.
                let cut = a.o.is_none()
                    && b.o
                        .as_ref()
                        .is_some_and(|o| a.output == o.input || a.output == o.rows.0);
                if cut {
                    a.output = b.output;
                }
                take(&mut a.q, b.q);
                take(&mut a.k, b.k);
                take(&mut a.v, b.v);
                take(&mut a.qkv, b.qkv);
                take(&mut a.qkv_layout, b.qkv_layout);
                take(&mut a.o, b.o);
            }
            (None, from) => *to = from,
            (Some(_), None) => {}
        };
    attention(&mut layer.self_attn, other.self_attn);
    attention(&mut layer.cross_attn, other.cross_attn);
    take(&mut layer.intermediate, other.intermediate);
    take(&mut layer.gate_proj, other.gate_proj);
    take(&mut layer.output_proj, other.output_proj);
    if layer.output_proj.is_none() {
        take(&mut layer.ffn_output, other.ffn_output);
    }
    take(&mut layer.pre_self_attn, other.pre_self_attn);
    take(&mut layer.pre_cross_attn, other.pre_cross_attn);
    take(&mut layer.pre_ffn, other.pre_ffn);
    take(&mut layer.ln_1, other.ln_1);
    take(&mut layer.ln_cross, other.ln_cross);
    take(&mut layer.ln_2, other.ln_2);
}
