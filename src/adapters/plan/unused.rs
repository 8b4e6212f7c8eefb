//! What a file has for modules that the graph does not compute. PEFT adapts every module of the name, called or not: a pooler that the
//! task leaves out, a table that its readers hold under another name. Exporters leave such modules out.

use crate::adapters::naming::{Route, belongs};
use crate::adapters::param::decays;
use crate::adapters::store::{AdapterStore, Param, Weights};
use crate::adapters::{Adapter, Config};
use crate::diag::Diagnostic;
use crate::ir::{Graph, TensorData};
use crate::select::Selection;
use std::collections::BTreeSet;

/// What stands between a module's path and the rest of a key.
const MARKS: [&str; 3] = [".loras.", ".modules_to_save.", ".token_adapters."];

/// Tensors of an adapter that change nothing, kept for its file.
#[derive(Debug, Default)]
pub(super) struct Unused {
    tensors: Vec<(Box<str>, TensorData)>,
    /// What is to be known of them.
    pub(super) notes: Vec<Diagnostic>,
}

/// Whether a parameter is of a module that another file of the model holds.
fn away(key: &str, selection: &Selection) -> bool {
    selection.is_elsewhere(key) || Route::is_elsewhere(selection, key)
}

/// The modules that PEFT saved whole, where the model has them in numbers of few bits: there is a scale with them.
pub(super) fn quantized(weights: &Weights, store: &AdapterStore) -> Vec<Diagnostic> {
    let module = |name: &str| {
        let (inside, own) = name.rsplit_once('.')?;
        let (module, within) = inside.split_once(MARKS[1])?;
        if !own.ends_with("_scale") && !own.ends_with("_zero_point") {
            return None;
        }
        let weight = format!("{inside}.weight");
        // The file's names may begin further inside.
        let in_file = |k: &str| format!(".{weight}").ends_with(&format!(".{k}"));
        let is_whole = weights.tensors.keys().any(|k| in_file(k));
        let (_, below) = within.split_once('.').unwrap_or_default();
        is_whole.then(|| [module, below].join(".").trim_end_matches('.').to_owned())
    };
    let lacks = |name: &&str| !weights.tensors.contains_key(*name);
    let names = store.iter().map(|(name, _)| name).filter(lacks);
    let modules: BTreeSet<String> = names.filter_map(module).collect();
    let told = |module: String| {
        let found = format!(
            "`{module}` is quantized in this model, and the adapter's file has the module whole, in floats (PEFT's `modules_to_save`)"
        );
        Diagnostic::error("saved-quantized", found)
            .help("give the float model, and quantize what comes out; or quantize the model without this module")
    };
    modules.into_iter().map(told).collect()
}

impl Unused {
    /// Whether a saved adapter is of another file of the model alone: of the encoder, where this is the decoder.
    pub(super) fn is_all_elsewhere(adapter: &Adapter, selection: &Selection) -> bool {
        let weights = adapter.weights.as_ref().filter(|w| !w.tensors.is_empty());
        weights.is_some_and(|w| w.tensors.keys().all(|k| away(k, selection)))
    }

    /// Takes what belongs to modules that another file of the model holds out of `weights`, before names are fitted to those of this one:
    /// the same layers of the other stack would fit them, too.
    pub(super) fn elsewhere(
        weights: &mut Weights,
        adapter: &Adapter,
        selection: &Selection,
    ) -> Unused {
        let mut out = Unused::default();
        let keys = weights.tensors.keys();
        let keys = keys.filter(|k| belongs(k, &weights.adapter) && away(k, selection));
        let keys: Vec<Box<str>> = keys.cloned().collect();
        if keys.is_empty() {
            return out;
        }
        let found = format!(
            "{} tensors of `{}` belong to modules that another file of the model holds",
            keys.len(),
            adapter.name
        );
        let found = Diagnostic::warning("module-elsewhere", found);
        out.notes
            .push(found.help("they are kept, and are there in the adapter's file again"));
        for key in keys {
            if let Some(tensor) = weights.tensors.shift_remove(&key) {
                out.tensors.push((key, tensor));
            }
        }
        out
    }

    /// Takes what belongs to modules that the graph certainly does not compute out of `weights`.
    pub(super) fn of(
        weights: &mut Weights,
        store: &AdapterStore,
        adapter: &Adapter,
        selection: &Selection,
        graph: &Graph,
    ) -> Unused {
        let mut out = Unused::default();
        if !by_names(&adapter.config) {
            return out;
        }
        let own = |p: (&str, &Param)| {
            let aliases = p.1.aliases.iter().map(ToString::to_string);
            aliases.chain([p.0.to_owned()]).collect::<Vec<_>>()
        };
        let expected: BTreeSet<String> = store.iter().flat_map(own).collect();
        let keys = weights.tensors.keys();
        let extra = keys.filter(|k| belongs(k, &weights.adapter) && !expected.contains(&***k));
        let extra: Vec<(Box<str>, String)> = extra
            .filter_map(|k| Some((k.clone(), module(k)?)))
            .collect();
        let adapted: BTreeSet<String> = expected.iter().filter_map(|k| module(k)).collect();
        let paths: BTreeSet<&String> = extra.iter().map(|(_, path)| path).collect();
        let here = Here {
            selection,
            graph,
            adapted: &adapted,
        };
        let mut unused: BTreeSet<&str> = BTreeSet::new();
        for path in paths {
            let keys = || extra.iter().filter(|(_, p)| p == path).map(|(k, _)| k);
            let why = if keys().all(|k| k.contains(".lora_embedding_")) && is_shared(path) {
                "the model looks rows up in the table that its encoder and decoder hold, which PEFT does not wrap with this module"
            } else if here.lacks(path) {
                "the exporter left it out, since nothing that the graph gives depends on it"
            } else {
                continue;
            };
            unused.insert(path);
            let found = format!(
                "`{path}` is not computed in this graph: what the file of `{}` changes there has no effect, as in PEFT",
                adapter.name
            );
            let found = Diagnostic::warning("module-unused", found).note(why);
            out.notes
                .push(found.help("it is kept, and is there in the adapter's file again"));
        }
        for (key, path) in &extra {
            if unused.contains(path.as_str())
                && let Some(tensor) = weights.tensors.shift_remove(key)
            {
                out.tensors.push((key.clone(), tensor));
            }
        }
        out
    }

    /// Puts them beside what is used.
    pub(super) fn keep(self, adapter: &str, store: &mut AdapterStore) {
        for (name, tensor) in self.tensors {
            let param = Param {
                adapter: adapter.into(),
                tensor,
                trainable: false,
                idle: true,
                decay: decays(&name),
                to_identity: None,
                aliases: Vec::new(),
            };
            store.insert(&name, param);
        }
    }
}

fn by_names(config: &Config) -> bool {
    config.methods().iter().all(|m| m.names_modules())
}

/// The module that a key is for.
fn module(key: &str) -> Option<String> {
    let at = MARKS.iter().find_map(|m| Some((key.find(m)?, m.len())));
    let (at, mark) = at?;
    // Behind the adapter's name: the parameter of a part of the module, or of itself.
    let inner = key[at + mark..].split_once('.')?.1;
    let saved = key[at..].starts_with(".modules_to_save.");
    Some(match inner.rsplit_once('.') {
        Some((part, _)) if saved => format!("{}.{part}", &key[..at]),
        _ => key[..at].to_owned(),
    })
}

/// Whether a module is the table of an encoder-decoder that its two parts were given.
fn is_shared(path: &str) -> bool {
    path == "shared" || path.ends_with(".shared")
}

/// What a graph shows of its modules.
struct Here<'a> {
    selection: &'a Selection,
    graph: &'a Graph,
    /// The modules that the file's other parameters are for.
    adapted: &'a BTreeSet<String>,
}

impl Here<'_> {
    /// Whether the graph certainly does not compute a module: all its linears have names, no parameter has one of this path, and none of
    /// the modules that the file does not adapt may be this one by a longer or a shorter path.
    fn lacks(&self, path: &str) -> bool {
        let s = self.selection;
        let modules = s.modules.iter().map(|m| &*m.site.path);
        let tables = s.tables.iter().map(|t| &*t.path);
        let stored = s.parameters.iter().map(|p| &*p.module);
        let mut all = modules.chain(tables).chain(stored);
        let inner = format!("{path}.");
        let names = self.graph.initializers().iter();
        let mut names = names.map(|v| self.graph.name_of(*v));
        s.nameless == 0
            && !s.modules.is_empty()
            && !names.any(|n| n.starts_with(&inner))
            && !all.any(|m| !self.adapted.contains(m) && alike(m, path))
    }
}

/// Whether one path may be the other with parts left out.
fn alike(a: &str, b: &str) -> bool {
    let (long, short) = if a.len() < b.len() { (b, a) } else { (a, b) };
    let mut parts = long.split('.');
    let within = short.split('.').all(|s| parts.any(|p| p == s));
    within && long.rsplit('.').next() == short.rsplit('.').next()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Adapted, Attach};

    const MODEL: &str = "fixtures/qwen3/model.onnx";

    fn attached(adapter: Adapter) -> crate::Result<Adapted> {
        Attach::open(MODEL)?.adapters([adapter]).run()
    }

    /// An adapter whose file has parameters of one more module.
    fn with(path: &str) -> Adapter {
        let fresh = crate::adapter("lora[r=2,target_modules=['q_proj']]").unwrap();
        let adapted = attached(fresh).unwrap();
        let mut folder = adapted.folder("lora", &adapted.store()).unwrap();
        for (name, dims) in [("lora_A", [2, 8]), ("lora_B", [8, 2])] {
            let tensor = TensorData::from_f32(dims, &[0.5; 16]);
            let key = format!("{path}.loras.lora.{name}").into();
            folder.weights.tensors.insert(key, tensor);
        }
        folder.into_adapter(None)
    }

    #[test]
    fn what_the_graph_does_not_compute_is_kept_for_the_file() {
        let adapted = attached(with("model.pooler.dense")).unwrap();
        let codes: Vec<&str> = adapted.warnings.iter().map(|d| d.code).collect();
        assert!(codes.contains(&"module-unused"), "{codes:?}");
        // Whether the file is made from the result or from the model that was written and read.
        let stored = AdapterStore::from_model(adapted.model.model());
        for store in [adapted.store(), stored] {
            let folder = adapted.folder("lora", &store).unwrap();
            let kept = folder.tensors().get("model.pooler.dense.loras.lora.lora_A");
            assert_eq!(kept.unwrap().to_f32().unwrap(), [0.5; 16]);
        }
    }

    #[test]
    fn what_may_be_computed_by_another_path_is_refused() {
        let e = attached(with("model.layers.0.mlp.inner.up_proj")).unwrap_err();
        assert!(format!("{e:?}").contains("weights-extra"), "{e:?}");
    }

    #[test]
    fn the_module_of_a_key() {
        for (key, of) in [
            ("pooler.dense.loras.a.lora_A", "pooler.dense"),
            ("pooler.dense.modules_to_save.a.weight", "pooler.dense"),
            ("pooler.modules_to_save.a.dense.weight", "pooler.dense"),
            ("x.loras.a.m.weight", "x"),
        ] {
            assert_eq!(module(key).as_deref(), Some(of), "{key}");
        }
    }

    #[test]
    fn modules_chosen_by_name_need_no_interface() {
        use crate::select::Interface;
        let run = |spec: &str| {
            let open = Attach::open(MODEL).unwrap().interface(&Interface::bare());
            open.adapter(spec).unwrap().run().unwrap()
        };
        let adapted = run("lora[r=2,target_modules=['q_proj']]");
        assert!(adapted.selection.layers.is_empty());
        assert_eq!(adapted.store().len(), 4);
        // What goes by layers is given the interface of the graph.
        assert!(!run("lora[r=2]").selection.layers.is_empty());
    }

    #[test]
    fn a_saved_module_is_not_one_in_few_bits() {
        let tensor = || TensorData::from_f32([1], &[1.0]);
        let file = |names: &[&str]| Weights {
            adapter: "a".into(),
            tensors: names.iter().map(|n| ((*n).into(), tensor())).collect(),
        };
        let store = |names: &[&str]| {
            let mut store = AdapterStore::default();
            for name in names {
                let param = Param {
                    adapter: "a".into(),
                    tensor: tensor(),
                    trainable: true,
                    idle: false,
                    decay: true,
                    to_identity: None,
                    aliases: Vec::new(),
                };
                store.insert(name, param);
            }
            store
        };
        let at = |name: &str| format!("m.head.modules_to_save.a.dense.{name}");
        let saved = file(&["head.modules_to_save.a.dense.weight"]);
        let few = store(&[&at("weight_scale"), &at("weight_zero_point")]);
        let [told] = quantized(&saved, &few).try_into().unwrap();
        assert!(
            told.message.starts_with("`m.head.dense` is quantized"),
            "{told}"
        );
        // What is missing otherwise is missing, and what is there is there.
        assert_eq!(quantized(&saved, &store(&[&at("bias")])), []);
        assert_eq!(quantized(&file(&["x.loras.a.lora_A"]), &few), []);
        let whole = file(&[&at("weight"), &at("weight_scale"), &at("weight_zero_point")]);
        assert_eq!(quantized(&whole, &few), []);
    }
}
