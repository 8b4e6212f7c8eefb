//! An interface proposed from a graph alone: structure says what each linear and norm does, the module tree says what it is called.

use super::family::Family;
use super::field::Field;
use super::interface::{Fields, Interface, PerStack, SCHEMA_VERSION};
use super::modules::{ModuleId, ModuleTree, ROOT, Witness};
use crate::analyze::flow::Flow;
use crate::analyze::linear::Linears;
use crate::analyze::structure::{Core, Found, Projection, Structure};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{NodeId, ValueId};
use std::collections::BTreeMap;

/// A proposed interface.
#[derive(Clone, Debug)]
pub struct Proposal {
    /// The interface. It selects what it was inferred from.
    pub interface: Interface,
    /// What could not be told.
    pub notes: Vec<Diagnostic>,
}

impl Proposal {
    /// The interface, which says how it was found wherever it is used.
    pub(crate) fn noted(self, first: Option<Diagnostic>) -> Interface {
        let mut interface = self.interface;
        interface.notes = first.into_iter().chain(self.notes).collect();
        interface
    }
}

/// Proposes an interface for a graph.
///
/// # Errors
/// [`ErrorKind::Interface`] when the graph shows no attention between projections.
pub fn infer_interface(verified: &Verified) -> Result<Proposal> {
    let view = Flow::new(verified);
    let mut tree = ModuleTree::of_view(&view);
    let linears = tree.with_linears(&view);
    let structure = Structure::new(&view, &linears);
    let found = structure.layers();
    if found.is_empty() {
        return Err(Error::new(ErrorKind::Interface, no_attention(&structure)));
    }
    let cx = Namer {
        view: &view,
        tree: &tree,
        linears: &linears,
        structure: &structure,
    };
    let proposal = cx.propose(&found);
    match Interface::parse(&proposal.interface.to_json(), "the inferred interface") {
        Ok(_) => Ok(proposal),
        Err(e) => {
            let what = "the graph does not show all that an interface has to name";
            let d = Diagnostic::error("infer-incomplete", what);
            let d = d.help("write the interface by hand: `rewrite inspect` shows the modules");
            Err(Error::new(ErrorKind::Interface, d).with_source(e))
        }
    }
}

fn no_attention(structure: &Structure<'_>) -> Diagnostic {
    const SHOWN: usize = 3;
    let found = "the graph shows no attention between projections";
    let mut d = Diagnostic::error("infer-no-layers", found);
    for gap in structure.gaps().into_iter().take(SHOWN) {
        d = d.note(gap);
    }
    d.help("linears are adapted by their own names all the same: `lora[target_modules=all-linear]`; or write the interface by hand: `rewrite inspect` shows the modules")
}

/// Modules that stand at the top of a model without being its base model.
const PARTS: [&str; 5] = [
    "decoder",
    "encoder",
    "language_model",
    "text_model",
    "vision_model",
];

/// Paths of one layer, by field.
type Paths = BTreeMap<Field, String>;

/// Whether an attention and its projections have paths.
fn names_attention(paths: &Paths) -> bool {
    let all = |fields: &[Field]| fields.iter().all(|f| paths.contains_key(f));
    let split = [Field::AttnQProj, Field::AttnKProj, Field::AttnVProj];
    all(&[Field::LayerSelfAttn, Field::AttnOProj]) && (all(&split) || all(&[Field::AttnQkvProj]))
}

struct Namer<'a> {
    view: &'a Flow<'a>,
    tree: &'a ModuleTree,
    linears: &'a Linears,
    structure: &'a Structure<'a>,
}

/// Names for a graph without names: the most common ones.
const USUAL: [(Field, &str); 10] = [
    (Field::AttnKProj, "k_proj"),
    (Field::AttnOProj, "o_proj"),
    (Field::AttnQProj, "q_proj"),
    (Field::AttnVProj, "v_proj"),
    (Field::LayerIntermediateProj, "mlp.up_proj"),
    (Field::LayerOutputProj, "mlp.down_proj"),
    (Field::LayerPreFfn, "post_attention_layernorm"),
    (Field::LayerPreSelfAttn, "input_layernorm"),
    (Field::LayerSelfAttn, "self_attn"),
    (Field::ModelLayers, "layers"),
];

impl Namer<'_> {
    fn propose(&self, found: &[Found]) -> Proposal {
        let mut notes = Vec::new();
        let mut lists: Vec<Option<ModuleId>> = Vec::new();
        let mut by_stack: Vec<Paths> = Vec::new();
        let stacks = self.stacks(found);
        let several = stacks.len() > 1;
        for (list, layers) in stacks {
            let named = list.map(|list| (list, self.agreed(&layers, list, &mut notes)));
            // A choice of experts has neither projection.
            let there = |field: &Field| match field {
                Field::LayerIntermediateProj => layers.iter().any(|f| f.up.is_some()),
                Field::LayerOutputProj => layers.iter().any(|f| f.down.is_some()),
                _ => true,
            };
            let usual = || {
                let fields = USUAL.iter().filter(|(field, _)| there(field));
                fields
                    .map(|(k, v)| (*k, (*v).to_owned()))
                    .collect::<Paths>()
            };
            let (list, mut paths) = match named {
                Some((list, paths)) if names_attention(&paths) => (Some(list), paths),
                Some((list, _)) => {
                    notes.push(self.unheld(list));
                    (None, usual())
                }
                None => {
                    notes.push(self.unlisted(&layers));
                    (None, usual())
                }
            };
            if list.is_none() {
                if several {
                    let name = match by_stack.len() {
                        _ if layers.iter().any(|l| l.cross_attn.is_some()) => {
                            "decoder.layers".to_owned()
                        }
                        0 => "encoder.layers".to_owned(),
                        n => format!("stack_{n}.layers"),
                    };
                    paths.insert(Field::ModelLayers, name);
                }
                if layers.iter().any(|l| l.cross_attn.is_some()) {
                    paths.insert(Field::LayerCrossAttn, "encoder_attn".to_owned());
                }
            }
            lists.push(list);
            by_stack.push(paths);
        }
        let embeddings = self.embeddings(found, &lists);
        let base = self.base(embeddings, &lists, found);
        notes.extend(self.headless(base));
        for (paths, list) in by_stack.iter_mut().zip(&lists) {
            if let Some(list) = list.and_then(|l| self.tree.relative(l, base)) {
                paths.insert(Field::ModelLayers, list.to_owned());
            }
            let shared = self.shared_table(base);
            let embeddings = shared
                .as_deref()
                .or_else(|| self.tree.relative(embeddings?, base))
                .unwrap_or("embed_tokens");
            paths.insert(Field::ModelEmbeddings, embeddings.to_owned());
        }
        let per_stack = |field: Field| {
            let all: Vec<Option<String>> =
                by_stack.iter().map(|p| p.get(&field).cloned()).collect();
            match all.split_first() {
                Some((first, rest)) if rest.iter().all(|p| p == first) => {
                    if field == Field::ModelLayers && !rest.is_empty() {
                        PerStack::Each(all)
                    } else {
                        PerStack::One(first.clone())
                    }
                }
                _ => PerStack::Each(all),
            }
        };
        let fields = Fields {
            adapter_methods: Family::PLAIN.map(|f| f.name().to_owned()).to_vec(),
            attn_k_proj: per_stack(Field::AttnKProj),
            attn_o_proj: per_stack(Field::AttnOProj),
            attn_q_proj: per_stack(Field::AttnQProj),
            attn_qkv_proj: per_stack(Field::AttnQkvProj),
            attn_v_proj: per_stack(Field::AttnVProj),
            base_model: None,
            layer_cross_attn: per_stack(Field::LayerCrossAttn),
            layer_gate_proj: PerStack::default(),
            layer_intermediate_proj: per_stack(Field::LayerIntermediateProj),
            layer_ln_1: per_stack(Field::LayerLn1),
            layer_ln_2: per_stack(Field::LayerLn2),
            layer_ln_cross: per_stack(Field::LayerLnCross),
            layer_output_proj: per_stack(Field::LayerOutputProj),
            layer_pre_cross_attn: per_stack(Field::LayerPreCrossAttn),
            layer_pre_ffn: per_stack(Field::LayerPreFfn),
            layer_pre_self_attn: per_stack(Field::LayerPreSelfAttn),
            layer_self_attn: per_stack(Field::LayerSelfAttn),
            model_embeddings: per_stack(Field::ModelEmbeddings),
            model_layers: per_stack(Field::ModelLayers),
            graph: BTreeMap::new(),
        };
        let version = concat!("onnx-graft.", env!("CARGO_PKG_VERSION")).to_owned();
        let mut interface = Interface {
            fields,
            model_type: None,
            version: Some(version),
            schema_version: None,
            source: "inferred".to_owned(),
            encoder_layers: None,
            notes: Vec::new(),
        };
        if !interface.is_adapterhub() {
            interface.schema_version = Some(SCHEMA_VERSION);
        }
        Proposal { interface, notes }
    }

    /// A warning where nothing but names tells the base model from the model: all linears are inside of what is taken for it.
    fn headless(&self, base: ModuleId) -> Option<Diagnostic> {
        let outside = |l: &crate::analyze::linear::Linear| {
            let module = self.module(l.core);
            module.is_some_and(|m| !self.tree.is_within(m, base))
        };
        if base == ROOT || self.linears.all.iter().any(outside) {
            return None;
        }
        let path = &self.tree.module(base).path;
        let found = format!("all of the graph lies in `{path}`, which is taken for the base model");
        Some(Diagnostic::warning("infer-base", found).help(format!(
            "where `{path}` is a part of the base model itself, its paths begin with `{path}.`"
        )))
    }

    /// The module of a node, where a name says it.
    fn module(&self, n: NodeId) -> Option<ModuleId> {
        self.tree
            .of(n)
            .filter(|(_, w)| *w < Witness::Neighbours)
            .map(|m| m.0)
    }

    fn of_linear(&self, linear: usize) -> Option<ModuleId> {
        self.module(self.linears.all[linear].core)
    }

    /// A module of an attention: that of its output projection, or where an optimizer left it without a name, of its heart or another
    /// projection.
    fn of_core(&self, core: &Core) -> Option<ModuleId> {
        let others = || {
            let mut others = [core.q, core.k, core.v].into_iter().flatten();
            others.find_map(|p| self.of_projection(p))
        };
        let own = self.of_linear(core.o);
        own.or_else(|| self.module(core.heart)).or_else(others)
    }

    /// The module of a projection; of columns whose product carries no name, that of their bias.
    fn of_projection(&self, p: Projection) -> Option<ModuleId> {
        let columns = || self.module(self.view.producer(p.columns?.0)?);
        self.of_linear(p.linear).or_else(columns)
    }

    fn of_norm(&self, output: ValueId) -> Option<ModuleId> {
        let norm = self.structure.norms.making(self.view, output)?;
        norm.nodes.last().and_then(|n| self.module(*n))
    }

    /// That layers get usual names: their attention is in no module of its own, or its projections are none, as in a `Block` that holds
    /// `wqkv` and `proj` itself, and in `nn.MultiheadAttention`.
    fn unheld(&self, list: ModuleId) -> Diagnostic {
        let path = &self.tree.module(list).path;
        let found = format!(
            "the attention in the layers of `{path}`, or a projection of it, is no module of its own: usual names are proposed for the parts of layers, and linears keep their own"
        );
        Diagnostic::warning("infer-no-names", found)
            .note("adapters for the original model need its own names")
    }

    /// That layers get usual names: none has a name in the graph, or their parts have names and are in no one module, as XLM's
    /// `attentions.0` and `ffns.0`.
    fn unlisted(&self, layers: &[&Found]) -> Diagnostic {
        let entry = |f: &&Found| self.tree.list_entry(self.of_linear(f.self_attn.o)?);
        let found = match layers.iter().find_map(entry) {
            Some(part) => format!(
                "`{}` is a part of a layer, and no list of modules holds whole layers: usual names are proposed for layers, and linears keep their own",
                self.tree.module(part).path
            ),
            None => "the graph carries no module names: usual ones are proposed".to_owned(),
        };
        Diagnostic::warning("infer-no-names", found)
            .note("adapters for the original model need its own names")
    }

    /// The lists of layers with what is in them. The stream may be lost between two layers, as behind a choice of experts, so chains of
    /// one list are one stack.
    fn stacks<'f>(&self, found: &'f [Found]) -> Vec<(Option<ModuleId>, Vec<&'f Found>)> {
        let chains = found.iter().map(|f| f.stack).max().map_or(0, |s| s + 1);
        let mut out: Vec<(Option<ModuleId>, Vec<&Found>)> = Vec::new();
        for chain in 0..chains {
            let layers: Vec<&Found> = found.iter().filter(|f| f.stack == chain).collect();
            let list = self.list(&layers);
            match out.iter_mut().find(|(l, _)| list.is_some() && *l == list) {
                Some((_, former)) => former.extend(layers),
                None => out.push((list, layers)),
            }
        }
        // Nodes may stand in another order than the stacks: an encoder is named first.
        out.sort_by_key(|(_, layers)| layers.iter().any(|f| f.cross_attn.is_some()));
        out
    }

    /// The list that the layers are entries of: the innermost module with numbered parts around all of them.
    fn list(&self, layers: &[&Found]) -> Option<ModuleId> {
        let whole = |f: &&Found| {
            let cores = [Some(&f.self_attn), f.cross_attn.as_ref()];
            let cores = cores.into_iter().flatten().map(|c| self.of_core(c));
            let modules = cores.chain([f.down.and_then(|l| self.of_linear(l))]);
            modules.flatten().reduce(|a, b| self.tree.shared(a, b))
        };
        let entries: Vec<ModuleId> = layers.iter().map(whole).collect::<Option<_>>()?;
        let mut at = entries
            .iter()
            .copied()
            .reduce(|a, b| self.tree.shared(a, b))?;
        // A layer may itself hold a list of its sublayers.
        while !self.tree.is_list(at) || entries.contains(&at) {
            if at == ROOT {
                return None;
            }
            at = self.tree.module(at).parent;
        }
        Some(at)
    }

    /// Paths on which all layers of a stack agree.
    fn agreed(&self, layers: &[&Found], list: ModuleId, notes: &mut Vec<Diagnostic>) -> Paths {
        // Of several attentions in one entry (over time and over space), the one in front of the feed-forward block is the layer's.
        let mut by_entry: BTreeMap<Option<ModuleId>, &Found> = BTreeMap::new();
        for f in layers.iter().copied() {
            let entry = self.of_core(&f.self_attn).and_then(|m| self.entry(m, list));
            let kept = by_entry.entry(entry).or_insert(f);
            if kept.down.is_none() {
                *kept = f;
            }
        }
        let one_each = by_entry.values();
        let mut all: Vec<Paths> = one_each.filter_map(|l| self.layer(l, list)).collect();
        let Some(mut first) = all.pop() else {
            return Paths::new();
        };
        // Layers without the part (a choice of experts in its place) do not disagree.
        let part = |f: Field| {
            const ALONE: [Field; 3] = [
                Field::LayerIntermediateProj,
                Field::LayerOutputProj,
                Field::LayerSelfAttn,
            ];
            f.is_of_attention() || ALONE.contains(&f)
        };
        for paths in &all {
            let parts = paths.iter().filter(|(f, _)| part(**f));
            for (field, path) in parts {
                first.entry(*field).or_insert_with(|| path.clone());
            }
        }
        let attention = first.get(&Field::LayerSelfAttn).cloned();
        first.retain(|field, path| {
            let agrees = |p: &Paths| match p.get(field) {
                Some(other) => other == path,
                None => part(*field),
            };
            let same = all.iter().all(agrees);
            if !same {
                // The first layer of a model may go without a norm that the others have.
                let others = all.iter().filter(|p| p.get(field) == Some(path)).count();
                notes.push(
                    Diagnostic::warning(
                        "infer-differs",
                        format!(
                            "`{field}` is \"{path}\" in {} of {} layers",
                            others + 1,
                            all.len() + 1
                        ),
                    )
                    .at(self.tree.module(list).path.to_string()),
                );
            }
            same
        });
        // Where some layers go without the norm, what enters the attention itself is the one place that all have.
        if let Some(attention) = attention {
            first.entry(Field::LayerPreSelfAttn).or_insert(attention);
        }
        first
    }

    /// The entry of a list that a module is part of.
    fn entry(&self, mut id: ModuleId, list: ModuleId) -> Option<ModuleId> {
        while self.tree.module(id).parent != list {
            id = self.tree.module(id).parent;
            if id == ROOT {
                return None;
            }
        }
        Some(id)
    }

    fn layer(&self, f: &Found, list: ModuleId) -> Option<Paths> {
        let entry = self.entry(self.of_core(&f.self_attn)?, list)?;
        let mut out = Paths::new();
        let mut put = |field: Field, id: Option<ModuleId>, of: ModuleId| {
            let path = id
                .and_then(|id| self.tree.relative(id, of))
                .filter(|p| !p.is_empty() || field == Field::LayerSelfAttn);
            if let Some(path) = path {
                out.insert(field, path.to_owned());
            }
        };
        // Linears, and the modules of those that have a name.
        let mut linears: Vec<(Field, Option<ModuleId>)> = Vec::new();
        let attn = self.attention(&f.self_attn, entry);
        put(Field::LayerSelfAttn, attn, entry);
        if let Some(attn) = attn {
            // A reshape that the attention itself does behind a projection is no name of the projection.
            let heart = self.module(f.self_attn.heart);
            let own = |m: &ModuleId| heart.is_none_or(|h| !self.tree.is_within(h, *m));
            let of = |p: Option<Projection>| p.and_then(|p| self.of_projection(p)).filter(own);
            let (q, k, v) = (of(f.self_attn.q), of(f.self_attn.k), of(f.self_attn.v));
            let linear = |p: Option<Projection>| p.map(|p| p.linear);
            let split = linear(f.self_attn.q) != linear(f.self_attn.k);
            if q == k && (q.is_some() || !split) {
                put(Field::AttnQkvProj, q, attn);
            } else {
                put(Field::AttnQProj, q, attn);
                put(Field::AttnKProj, k, attn);
                put(Field::AttnVProj, v, attn);
                linears.extend([
                    (Field::AttnQProj, q),
                    (Field::AttnKProj, k),
                    (Field::AttnVProj, v),
                ]);
            }
            let o = self.of_linear(f.self_attn.o).filter(own);
            put(Field::AttnOProj, o, attn);
            linears.push((Field::AttnOProj, o));
        }
        for (field, linear) in [
            (Field::LayerIntermediateProj, f.up.map(|p| p.linear)),
            (Field::LayerOutputProj, f.down),
        ] {
            let Some(linear) = linear else { continue };
            let module = self.of_linear(linear);
            put(field, module, entry);
            linears.push((field, module));
        }
        let within = |id: &ModuleId| self.tree.is_within(*id, entry);
        let pre = |input: ValueId| {
            self.of_norm(self.structure.unarranged(input))
                .filter(within)
        };
        put(
            Field::LayerPreSelfAttn,
            pre(f.self_attn.input).or(attn),
            entry,
        );
        if let Some(core) = &f.cross_attn {
            let cross = self.attention(core, entry);
            put(Field::LayerCrossAttn, cross, entry);
            let norm = if f.post_norm { None } else { pre(core.input) };
            put(Field::LayerPreCrossAttn, norm.or(cross), entry);
        }
        let root = |v: ValueId| self.view.root(v);
        let post_norm = f.post_norm;
        if let Some(up) = f.up {
            let input = self.linears.all[up.linear].input;
            let parallel = root(input) == root(f.self_attn.input);
            let block = self
                .of_linear(up.linear)
                .filter(within)
                .map(|m| self.outermost(m, entry));
            let norm = if post_norm { None } else { pre(input) };
            put(
                Field::LayerPreFfn,
                norm.or(block.filter(|_| !parallel)),
                entry,
            );
        } else if let Some((entered, _)) = f.block {
            let norm = if post_norm { None } else { pre(entered) };
            put(Field::LayerPreFfn, norm, entry);
        }
        let behind = |output: Option<ValueId>, sublayer: ValueId| {
            let norm = self.structure.norms.making(self.view, output?)?;
            let branch = norm.input.is_some_and(|v| root(v) == root(sublayer));
            if branch || post_norm {
                self.of_norm(norm.output).filter(within)
            } else {
                None
            }
        };
        let made = |l: usize| self.linears.all[l].output;
        put(Field::LayerLn1, behind(f.ln_1, made(f.self_attn.o)), entry);
        put(
            Field::LayerLn2,
            f.down
                .map(made)
                .or(f.block.map(|b| b.1))
                .and_then(|v| behind(f.ln_2, v)),
            entry,
        );
        put(
            Field::LayerLnCross,
            f.cross_attn
                .as_ref()
                .and_then(|c| behind(f.ln_cross, made(c.o))),
            entry,
        );
        // What a quantizer left without a name gets the usual one.
        for (field, _) in linears.iter().filter(|(_, module)| module.is_none()) {
            let usual = USUAL.iter().find(|(f, _)| f == field);
            out.extend(usual.map(|(f, path)| (*f, (*path).to_owned())));
        }
        Some(out)
    }

    /// The attention module: the innermost one that holds all of its projections, which are modules of their own if that is the layer.
    fn attention(&self, core: &Core, entry: ModuleId) -> Option<ModuleId> {
        let projections = [core.q, core.k, core.v].into_iter().flatten();
        let parts = projections.map(|p| self.of_projection(p));
        let parts: Vec<Option<ModuleId>> = parts.chain([self.of_linear(core.o)]).collect();
        let lost = parts.iter().any(Option::is_none);
        let heart = self.module(core.heart).filter(|_| lost);
        let modules: Vec<ModuleId> = parts.into_iter().flatten().chain(heart).collect();
        let held = modules.len() > 1 && modules.iter().all(|m| *m != entry);
        let shared = modules.into_iter().reduce(|a, b| self.tree.shared(a, b))?;
        let inside = self.tree.is_within(shared, entry);
        (inside && (shared != entry || held)).then_some(shared)
    }

    /// The part directly below `outer` that a module is in.
    fn outermost(&self, mut id: ModuleId, outer: ModuleId) -> ModuleId {
        while self.tree.module(id).parent != outer && id != ROOT {
            id = self.tree.module(id).parent;
        }
        id
    }

    /// The outermost module around the lookup of token ids that does not hold the layers too.
    fn embeddings(&self, found: &[Found], lists: &[Option<ModuleId>]) -> Option<ModuleId> {
        // The stack that is found may be the second one of the graph: its tokens are looked up nearest to its layers.
        let near = |n: &NodeId| {
            let (module, list) = (self.module(*n)?, lists.first().copied().flatten()?);
            Some(self.tree.module(self.tree.shared(module, list)).depth)
        };
        let order = self.view.order.iter().copied();
        let lookups = order.filter(|n| self.view.is_lookup(*n) && self.view.reads_token_ids(*n));
        let lookup = lookups.min_by_key(|n| std::cmp::Reverse(near(n)));
        // Without tokens (images) it is the module that makes what enters the first layer.
        let maker = || {
            let mut at = self.view.producer(found.first()?.input)?;
            let elsewhere = |n: NodeId| {
                let Some(module) = self.module(n) else {
                    return true;
                };
                let mut lists = lists.iter().flatten();
                lists.any(|l| self.tree.is_within(module, *l) || self.tree.is_within(*l, module))
            };
            // A layer may begin with another block (Conformers), and a model lay out anew what enters it (Hiera).
            while elsewhere(at) {
                let inputs = self.view.inputs(at).into_iter().flatten();
                let flow = inputs.filter(|v| self.view.is_flow(*v));
                let first = flow.min_by_key(|v| self.view.defined(*v));
                at = self.view.producer(first?)?;
            }
            Some(at)
        };
        let mut at = self.module(lookup.or_else(maker)?)?;
        loop {
            let parent = self.tree.module(at).parent;
            let holds_layers = self
                .tree
                .subtree(parent)
                .into_iter()
                .any(|m| self.tree.is_list(m));
            if parent == ROOT || holds_layers {
                return Some(at);
            }
            at = parent;
        }
    }

    /// The path of a table that is called from a module which does not hold it (`shared` of an encoder-decoder): scopes name the caller,
    /// the parameter its own module.
    fn shared_table(&self, base: ModuleId) -> Option<String> {
        let mut lookups = self.view.order.iter().copied();
        let lookup = lookups.find(|n| self.view.is_lookup(*n) && self.view.reads_token_ids(*n))?;
        let table = self.view.root(self.view.input(lookup, 0)?);
        let own = self.view.graph.name_of(table).strip_suffix(".weight")?;
        let called = &*self.tree.module(self.module(lookup)?).path;
        let name = |p: &str| p.rsplit('.').next().map(str::to_owned);
        let holder = own.rsplit_once('.').map_or("", |(holder, _)| holder);
        let inside = called.rsplit_once('.').map_or("", |(caller, _)| caller);
        let above =
            inside != holder && (holder.is_empty() || inside.starts_with(&format!("{holder}.")));
        let base = &*self.tree.module(base).path;
        let relative = match base {
            "" => own,
            base => own.strip_prefix(base)?.strip_prefix('.')?,
        };
        (name(own) == name(called) && above).then(|| relative.to_owned())
    }

    /// The base model: the part of the exported model that holds layers, embeddings, and all that stands in front of the layers.
    fn base(
        &self,
        embeddings: Option<ModuleId>,
        lists: &[Option<ModuleId>],
        found: &[Found],
    ) -> ModuleId {
        let all = embeddings
            .into_iter()
            .chain(lists.iter().copied().flatten());
        let shared = all.reduce(|a, b| self.tree.shared(a, b)).unwrap_or(ROOT);
        let mut named = lists.iter().flatten().peekable();
        if shared == ROOT || named.peek().is_none() || named.any(|l| *l == shared) {
            return ROOT;
        }
        let base = self.outermost(shared, ROOT);
        let entered = found.iter().map(|f| self.view.defined(f.input)).min();
        let before = |n: &NodeId| entered.is_some_and(|e| i64::from(self.view.place(*n)) <= e);
        let outside = |n: &NodeId| {
            let carries = self.view.out(*n).is_some_and(|v| self.view.carries(v));
            let module = self.module(*n).filter(|m| carries && *m != ROOT);
            module.is_some_and(|m| !self.tree.is_within(m, base))
        };
        let partial = self.view.order.iter().filter(|n| before(n)).any(outside);
        if partial || PARTS.contains(&&*self.tree.module(base).path) {
            return ROOT;
        }
        base
    }
}
