//! What stands around the layers: embeddings and the projection onto the vocabulary.

use super::record::shown;
use super::scene::{Scene, ends_with, fits_end, site};
use crate::analyze::boundary::Marks;
use crate::analyze::linear::Linear;
use crate::diag::Diagnostic;
use crate::ir::{NodeId, ValueId, contract};
use crate::select::field::Field;
use crate::select::interface::GraphNames;
use crate::select::modules::{ROOT, Witness};
use crate::select::site::{Layer, LinearSite, ModuleSite, Role};
use rustc_hash::FxHashSet;

impl Scene<'_> {
    pub(super) fn embeddings(
        &self,
        layers: &[Layer],
        findings: &mut Vec<Diagnostic>,
    ) -> Vec<ModuleSite> {
        let stacks = self.interface.stacks();
        let mut paths: Vec<&str> = (0..stacks)
            .filter_map(|s| self.interface.fields.model_embeddings.get(s))
            .collect();
        paths.dedup();
        // What a built-in interface names is what the library takes, as the last norm of Whisper's encoder.
        let own = &self.interface.fields.model_embeddings;
        let usual = self.interface.usual();
        let usual = usual.is_some_and(|u| u.fields.model_embeddings == *own);
        let mut out = Vec::new();
        for path in paths {
            let found = self.embedding(path, layers);
            if found.is_empty() {
                findings.push(self.no_embeddings(path));
            } else if !usual && found.iter().all(|s| !self.embeds(s, layers)) {
                findings.push(self.other_module(path, &found));
            }
            out.extend(found);
        }
        out
    }

    fn embedding(&self, path: &str, layers: &[Layer]) -> Vec<ModuleSite> {
        let full: Box<str> = format!("{}{path}", self.prefix.full).into();
        if let Some(values) = self.named_values(Field::ModelEmbeddings) {
            return values
                .into_iter()
                .map(|output| ModuleSite {
                    path: full.clone(),
                    input: None,
                    output,
                })
                .collect();
        }
        let in_tree = self
            .tree
            .descend(ROOT, &format!("{}{path}", self.prefix.in_tree));
        let module = in_tree.or_else(|| {
            let mut all = self
                .tree
                .ids()
                .filter(|id| ends_with(&self.tree.module(*id).path, path));
            let first = all.next()?;
            all.next().is_none().then_some(first)
        });
        if let Some(module) = module {
            let nodes = self.tree.nodes_within(self.view, module);
            let lookups: Vec<NodeId> = nodes
                .iter()
                .copied()
                .filter(|n| self.view.is_lookup(*n))
                .collect();
            let whole = Marks::new(self.view).boundary(self.view, &nodes);
            let plain = !lookups.is_empty() && nodes.len() == lookups.len();
            let outputs: Vec<ValueId> = if plain {
                lookups
                    .iter()
                    .filter_map(|n| self.view.looked_up(*n))
                    .collect()
            } else {
                whole.output.into_iter().collect()
            };
            // A fused operator may have taken a part of the module, and its name.
            let frayed = outputs.iter().all(|v| self.leaves_to_nowhere(*v));
            let defined = |v: &ValueId| self.view.defined(*v);
            let last = outputs.iter().map(defined).max();
            let wider = self
                .composite(&full, layers)
                .filter(|v| frayed && Some(defined(v)) > last);
            let outputs = wider.map_or(outputs, |output| vec![output]);
            let path = self.full_path(module);
            return outputs
                .into_iter()
                .map(|output| ModuleSite {
                    path: path.clone(),
                    input: whole.input,
                    output,
                })
                .collect();
        }
        // A dropout leaves no node; what it would make is what enters the first layer.
        let last = path.rsplit('.').next().unwrap_or(path);
        if last.contains("drop")
            && let Some(l) = layers.first()
        {
            return vec![ModuleSite {
                path: full,
                input: Some(l.input),
                output: l.input,
            }];
        }
        if self.contradicts(path) {
            return Vec::new();
        }
        if let Some(output) = self.composite(&full, layers) {
            return vec![ModuleSite {
                path: full,
                input: None,
                output,
            }];
        }
        // A table that is reached through another module (T5's `shared`) is looked up by the token ids.
        self.view
            .order
            .iter()
            .copied()
            .filter(|n| self.view.is_lookup(*n) && self.view.reads_token_ids(*n))
            .filter_map(|n| self.view.looked_up(n))
            .map(|output| ModuleSite {
                path: full.clone(),
                input: None,
                output,
            })
            .collect()
    }

    /// Whether a module makes what enters the first layer of a stack: in front of it and, where tokens are looked up there, of them.
    fn embeds(&self, site: &ModuleSite, layers: &[Layer]) -> bool {
        let mut firsts: Vec<&Layer> = Vec::new();
        for layer in layers {
            if !firsts.iter().any(|l| l.stack == layer.stack) {
                firsts.push(layer);
            }
        }
        let own = self.before(site.output);
        let looks_up = |n: &NodeId| self.view.is_lookup(*n) && self.view.reads_token_ids(*n);
        firsts.iter().any(|l| {
            let before = self.before(l.input);
            let inside = self.view.producer(site.output);
            inside.is_none_or(|n| before.contains(&n))
                && (!before.iter().any(looks_up) || own.iter().any(looks_up))
        })
    }

    /// The nodes that a value is computed by.
    fn before(&self, value: ValueId) -> FxHashSet<NodeId> {
        let mut found = FxHashSet::default();
        let mut open: Vec<NodeId> = self.view.producer(value).into_iter().collect();
        while let Some(n) = open.pop() {
            if found.insert(n) {
                let inputs = self.view.inputs(n).into_iter().flatten();
                open.extend(inputs.filter_map(|v| self.view.producer(v)));
            }
        }
        found
    }

    fn other_module(&self, path: &str, found: &[ModuleSite]) -> Diagnostic {
        let first = found.first().map_or(path, |s| &*s.path);
        let message = format!("`model_embeddings` = \"{path}\" is not what embeds the tokens");
        let at = format!("{}, interface.model_embeddings", self.interface.source);
        Diagnostic::error("select-no-match", message)
            .at(at)
            .note(format!("what `{first}` makes is not made of the tokens' embeddings, or does not enter the first layer"))
            .note(format!("embeddings found: {}", shown(&self.embedders())))
            .help("name the module that looks the tokens up, relative to the base model")
    }

    /// The modules that look rows of a table up.
    fn embedders(&self) -> Vec<&str> {
        let all = self.view.order.iter().filter(|n| self.view.is_lookup(**n));
        all.filter_map(|n| Some(&*self.tree.module(self.tree.of(*n)?.0).path))
            .collect()
    }

    /// Whether the look-ups are of modules with other names, and nothing has this one. A table that several modules share may be
    /// stored under the name of any of them.
    fn contradicts(&self, path: &str) -> bool {
        let graph = self.view.graph;
        let inside = |name: &str| format!(".{name}.").contains(&format!(".{path}."));
        let lookups = self.view.order.iter().copied();
        let lookups = lookups.filter(|n| self.view.is_lookup(*n) && self.is_named(*n));
        let modules: Vec<&str> = lookups
            .filter(|n| self.view.reads_token_ids(*n))
            .filter_map(|n| Some(&*self.tree.module(self.tree.of(n)?.0).path))
            .collect();
        let shared = modules.iter().any(|m| *m != modules[0]);
        let mut named = graph.initializers().iter().map(|v| graph.name_of(*v));
        // What an encoder-decoder calls `shared` is the table of its stacks, each of which has it as its own.
        let [own, common] = ["embed_tokens", "shared"];
        let all = |name: &str| modules.iter().all(|m| fits_end(m, name));
        let stacks = fits_end(path, own) && all(common) || fits_end(path, common) && all(own);
        !modules.is_empty()
            && !shared
            && !stacks
            && !modules.iter().any(|m| inside(m))
            && !named.any(inside)
    }

    /// Where the base model is not what `base_model` says, as far as names tell.
    pub(super) fn other_base(&self, layers: &[Layer]) -> Option<Diagnostic> {
        let path = self.interface.fields.base_model.as_deref()?;
        let full = self.prefix.full.strip_suffix('.').unwrap_or_default();
        let whole = full.is_empty();
        // A built-in interface names the attribute that the class with a head has.
        let usual = || {
            let usual = self.interface.usual();
            usual.is_some_and(|u| u.fields.base_model.as_deref() == Some(path))
        };
        let fits = || fits_end(full, path) || fits_end(path, full);
        if (whole && usual()) || (!whole && fits()) {
            return None;
        }
        let first = layers.first().map_or("", |l| &*l.path);
        let message = format!("`base_model` = \"{path}\" does not hold the layers");
        let is = if whole {
            "the whole graph".to_owned()
        } else {
            format!("`{full}`")
        };
        Some(
            Diagnostic::error("select-no-match", message)
                .at(format!("{}, interface.base_model", self.interface.source))
                .note(format!(
                    "the first layer is `{first}`: the base model is {is}"
                ))
                .help(if whole {
                    "leave it out: it is found by the layers"
                } else {
                    "set it to that, or leave it out: it is found by the layers"
                }),
        )
    }

    /// What a module without nodes of its name makes that holds the table and more, as BERT's `embeddings`: the last value in front of
    /// the layers that is computed with one of its parameters. Where parameters have no names either, what enters the first layer.
    fn composite(&self, path: &str, layers: &[Layer]) -> Option<ValueId> {
        let graph = self.view.graph;
        let first = layers.first()?.input;
        let inner = format!("{path}.");
        let rest = |v: ValueId| graph.name_of(v).strip_prefix(&inner);
        let holds_modules = graph
            .initializers()
            .iter()
            .any(|v| rest(*v).is_some_and(|r| r.contains('.')));
        let own = |v: &ValueId| graph.value(*v).tensor.is_some() && rest(*v).is_some();
        let reads = |n: &&NodeId| self.view.inputs(**n).iter().flatten().any(own);
        let last = self.view.order.iter().filter(reads).filter_map(|n| {
            let v = graph.output(*n, 0)?;
            (self.view.is_flow(v) && self.view.defined(v) <= self.view.defined(first)).then_some(v)
        });
        let named = last
            .max_by_key(|v| self.view.defined(*v))
            .filter(|_| holds_modules);
        let whole = path == "embeddings" || path.ends_with(".embeddings");
        named.or_else(|| whole.then_some(first))
    }

    /// Names of the `graph` entry of a field, over all layers.
    pub(super) fn named_values(&self, field: Field) -> Option<Vec<ValueId>> {
        let names: Vec<String> = match self.interface.fields.graph.get(field.name())? {
            GraphNames::Pattern(p) => vec![p.clone()],
            GraphNames::Each(list) => list.iter().flatten().cloned().collect(),
        };
        Some(
            names
                .iter()
                .filter_map(|n| self.view.graph.find(n))
                .collect(),
        )
    }

    fn no_embeddings(&self, path: &str) -> Diagnostic {
        let lookups = self.embedders();
        let message = format!("`model_embeddings` = \"{path}\" matched nothing");
        let at = format!("{}, interface.model_embeddings", self.interface.source);
        if lookups.is_empty() {
            return Diagnostic::warning("select-no-embeddings", message)
                .at(at)
                .note("no embedding table is looked up: the graph starts with embedded inputs");
        }
        Diagnostic::error("select-no-match", message)
            .at(at)
            .note(format!("embeddings found: {}", shown(&lookups)))
            .help("`model_embeddings` is relative to the base model")
    }

    /// The projection onto the vocabulary: a linear as wide as an embedding table is long, whose result leaves the graph. Of several it
    /// is the one whose result is called `logits`, as only that is trained and generated from; without one, the last, which is said.
    pub(super) fn head(&self, findings: &mut Vec<Diagnostic>) -> Option<LinearSite> {
        let words: Vec<usize> = self
            .view
            .order
            .iter()
            .filter(|n| self.view.is_lookup(**n))
            .filter_map(|n| self.view.tensor(self.view.inputs(*n).first().copied()??))
            .filter_map(|t| usize::try_from(*t.dims.first()?).ok())
            .collect();
        let all: Vec<(&Linear, &str)> = self
            .linears
            .all
            .iter()
            .filter(|l| self.view.is_flow(l.input) && words.contains(&l.d_out))
            .filter_map(|l| Some((l, self.view.graph.name_of(self.view.exit(l.output)?))))
            .collect();
        let named: Vec<&Linear> = all
            .iter()
            .filter(|(_, exit)| *exit == contract::LOGITS)
            .map(|(l, _)| *l)
            .collect();
        let found = match (&named[..], &all[..]) {
            ([one], _) => *one,
            (_, [.., (last, exit)]) => {
                if all.len() > 1 {
                    let exits: Vec<String> = all.iter().map(|(_, e)| format!("`{e}`")).collect();
                    let message = format!(
                        "{} projections onto the vocabulary leave the graph, as {}: the one of `{exit}` is taken for the head of the model",
                        all.len(),
                        exits.join(" and ")
                    );
                    findings.push(Diagnostic::warning("select-heads", message).help(
                        "export the model with the output of its head called `logits`, or with that output alone",
                    ));
                }
                *last
            }
            (_, []) => return None,
        };
        let module = self
            .tree
            .of(found.core)
            .filter(|(_, w)| *w != Witness::Neighbours)
            .map(|m| m.0);
        let path = module.map_or_else(|| "lm_head".into(), |m| self.tree.module(m).path.clone());
        Some(site(Role::Head, path, found))
    }
}
