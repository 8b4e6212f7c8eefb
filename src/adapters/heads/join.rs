//! A head of a Transformers class on a graph that has one: its modules get the adapter's own values, as PEFT's `modules_to_save` do.

use super::files::StaticHead;
use crate::adapters::methods::lora::Targets;
use crate::adapters::{Adapter, AdapterStore, Weights};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{Graph, TensorData};
use crate::select::{ParameterSite, Selection};
use indexmap::{IndexMap, IndexSet};

/// What came of a saved head on a graph with a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Joined {
    /// The adapter has its weights.
    Taken,
    /// The graph has the same values already.
    Same,
    /// The graph's head is another one.
    Other,
}

/// A stored parameter as the state dict has it.
pub(super) fn stored(site: &ParameterSite, graph: &Graph) -> Option<TensorData> {
    let tensor = graph.value(site.stored).tensor.as_ref()?;
    let dims: Vec<u64> = site.dims.iter().map(|d| *d as u64).collect();
    if !site.stored_transposed {
        return Some(TensorData {
            dims: dims.into(),
            ..tensor.clone()
        });
    }
    let ([rows, columns], values) = (<[usize; 2]>::try_from(&*site.dims).ok()?, tensor.to_f32()?);
    let at = |r: usize, c: usize| values.get(c * rows + r).copied();
    let turned = (0..rows).flat_map(|r| (0..columns).map(move |c| (r, c)));
    let turned: Option<Vec<f32>> = turned.map(|(r, c)| at(r, c)).collect();
    Some(TensorData::from_f32(dims, &turned?))
}

fn same(a: &TensorData, b: &TensorData) -> bool {
    let equal = || match (a.to_f32(), b.to_f32()) {
        (Some(a), Some(b)) => a == b,
        (_, None) | (None, _) => false,
    };
    a.dims == b.dims && ((a.dtype == b.dtype && a.bytes() == b.bytes()) || equal())
}

impl StaticHead {
    /// The head that a graph has, under the names of its state dict: the modules beside the base model.
    ///
    /// # Errors
    /// A graph whose head has no parameters of its own.
    pub(crate) fn of_graph(
        name: &str,
        class: &str,
        selection: &Selection,
        graph: &Graph,
    ) -> Result<StaticHead> {
        let top = |path: &str| path.split('.').next().unwrap_or(path).to_owned();
        let layers = selection.layers.iter().map(|l| top(&l.path));
        let base: IndexSet<String> = layers
            .chain(selection.tables.iter().map(|t| top(&t.path)))
            .collect();
        let tables: Vec<_> = selection.tables.iter().map(|t| t.value).collect();
        let own = |p: &&ParameterSite| {
            !p.module.is_empty()
                && !p.nodes.is_empty()
                && !base.contains(&top(&p.module))
                && !tables.contains(&p.stored)
        };
        let own = selection.parameters.iter().filter(own);
        let weights: IndexMap<Box<str>, TensorData> = own
            .filter_map(|p| Some((format!("{}.{}", p.module, p.name).into(), stored(p, graph)?)))
            .collect();
        if weights.is_empty() {
            let found = "the graph has no head with parameters of its own";
            return Err(Error::new(
                ErrorKind::Method,
                Diagnostic::error("head", found)
                    .help("leave `train_head` out; a base model gets a head for a task of whole examples by itself"),
            ));
        }
        Ok(StaticHead {
            name: name.to_owned(),
            class: class.to_owned(),
            num_labels: None,
            label2id: None,
            weights,
            aliases: Vec::new(),
            keys: IndexSet::new(),
        })
    }

    /// Gives the adapter the head's parameters where the graph has other values; `all`: wherever it has parameters.
    ///
    /// # Errors
    /// A head that fits in parts, or is of other sizes.
    pub(crate) fn join(
        &mut self,
        adapter: &mut Adapter,
        selection: &Selection,
        graph: &Graph,
        all: bool,
    ) -> Result<Joined> {
        let site = |key: &str| {
            let named = |p: &&ParameterSite| {
                key.strip_prefix(&*p.module)
                    .and_then(|rest| rest.strip_prefix('.'))
                    == Some(&*p.name)
            };
            selection.parameters.iter().find(named)
        };
        let (mut found, mut open) = (Vec::new(), Vec::new());
        for (name, tensor) in &self.weights {
            match site(name) {
                Some(site) => found.push((site, tensor)),
                None => open.push((name, tensor)),
            }
        }
        if found.is_empty() {
            return Ok(Joined::Other);
        }
        let refuse = |message: String| {
            let d = Diagnostic::error("head", message);
            Err(Error::new(
                ErrorKind::Method,
                d.help("export the model with the head that the adapter was trained with, or without one"),
            ))
        };
        for (name, tensor) in open {
            // A second name of the same parameter, as `decoder.bias` is of `bias`.
            let first = found.iter().find(|(_, t)| same(t, tensor));
            let Some((site, _)) = first else {
                return refuse(format!(
                    "the head that was saved with `{}` has `{name}`, and the graph's head has not",
                    self.name
                ));
            };
            let of = format!("{}.{}", site.module, site.name);
            self.aliases.push((name.clone(), of.into()));
        }
        let mut modules: IndexSet<&str> = IndexSet::new();
        for (site, tensor) in &found {
            let dims: Vec<u64> = site.dims.iter().map(|d| *d as u64).collect();
            if *tensor.dims != *dims {
                return refuse(format!(
                    "`{}.{}` of the head that was saved with `{}` is {:?}, and in the graph {dims:?}",
                    site.module, site.name, self.name, tensor.dims
                ));
            }
            if all || !stored(site, graph).is_some_and(|s| same(&s, tensor)) {
                modules.insert(&site.module);
            }
        }
        if modules.is_empty() {
            return Ok(Joined::Same);
        }
        // A head of words is frozen, as the library freezes a model's output embeddings.
        let words = selection.output_embeddings.as_ref().map(|s| &*s.path);
        let kept = !all && modules.iter().any(|m| Some(*m) == words);
        let modules: Vec<String> = modules.into_iter().map(str::to_owned).collect();
        let (config, targets) = adapter.config.saving(&modules, kept);
        adapter.config = config;
        self.take(&targets, adapter.weights.as_mut(), selection, graph);
        Ok(Joined::Taken)
    }

    /// Puts the values of all that these fields name among an adapter's weights: the file's, or else the graph's.
    fn take(
        &mut self,
        targets: &Targets,
        weights: Option<&mut Weights>,
        selection: &Selection,
        graph: &Graph,
    ) {
        let mut tensors = Vec::new();
        for site in &selection.parameters {
            let Some(key) = targets.key(site, &self.name) else {
                continue;
            };
            let own = format!("{}.{}", site.module, site.name);
            let value = self.weights.get(&*own).cloned();
            tensors.extend(value.or_else(|| stored(site, graph)).map(|t| (key, t)));
        }
        self.keys = tensors.iter().map(|(key, _)| (**key).into()).collect();
        if let Some(weights) = weights {
            let own = tensors.into_iter().map(|(key, t)| (key.into(), t));
            weights.tensors.extend(own);
        }
    }

    /// The head's weights with the values that the adapter has in a store.
    pub(crate) fn weights_in(&self, store: &AdapterStore) -> IndexMap<Box<str>, TensorData> {
        let mut out = self.weights.clone();
        let inner = format!(".modules_to_save.{}.", self.name);
        for (name, param) in store.iter() {
            if let Some((module, rest)) = name.split_once(&inner)
                && let Some(own) = out.get_mut(&*format!("{module}.{rest}"))
            {
                *own = param.tensor.clone();
            }
        }
        for (alias, of) in &self.aliases {
            if let Some(t) = out.get(of).cloned() {
                out.insert(alias.clone(), t);
            }
        }
        out.retain(|_, t| t.count() != Some(0));
        out
    }

    /// An adapter's own tensors, without those of this head.
    pub(crate) fn without(&self, weights: &mut Weights) {
        weights.tensors.retain(|name, _| !self.keys.contains(name));
    }
}
