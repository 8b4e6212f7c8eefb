//! Files of heads: `head_config.json` and its weights beside an adapter, of the library's flexible heads and of Transformers' own.

use super::classes;
use super::{HeadConfig, Pooling, Step, params};
use crate::adapters::config::json as text;
use crate::adapters::folder::{
    Meta, VERSION, object, read_file, read_safetensors, to_safetensors, write_files,
};
use crate::adapters::target::Target;
use crate::adapters::{AdapterStore, Param, torch};
use crate::analyze::logits::word_table;
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{Graph, TensorData};
use indexmap::{IndexMap, IndexSet};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::Path;

/// Names of the files.
pub(crate) mod file {
    /// Configuration and meta data.
    pub(crate) const CONFIG: &str = "head_config.json";
    /// Weights, torch.
    pub(crate) const TORCH: &str = "pytorch_model_head.bin";
    /// Weights, safetensors.
    pub(crate) const SAFETENSORS: &str = "model_head.safetensors";
    /// All of them.
    pub(crate) const ALL: [&str; 3] = [CONFIG, TORCH, SAFETENSORS];
}

type Tensors = IndexMap<Box<str>, TensorData>;

/// What a base model's files say that its graph does not.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct HeadBase {
    /// `config.model_type`.
    pub model_type: String,
    /// The token that ends a sequence.
    pub eos_token_id: Option<i64>,
    /// Epsilon of its layer norms (default: 1e-12, as the library takes it).
    pub layer_norm_eps: Option<f64>,
    /// The dropout of its classifiers, where a head does not say its own.
    pub dropout: f64,
    /// Whether its words are scored by the table of embeddings; T5's hidden states are scaled then.
    pub tied: bool,
    /// Whether the adapter that it came with is part of the weights.
    pub merged: bool,
}

/// A head to be attached: fresh, or with the weights of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    /// Its name: that of its adapter.
    pub name: String,
    /// Its configuration.
    pub config: HeadConfig,
    /// Its weights, by the names of a flexible head; without, it gets initial values.
    pub weights: Option<Tensors>,
    /// What is known of the base model.
    pub base: HeadBase,
}

/// A head of a Transformers class: modules of the model beside the base model.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct StaticHead {
    /// Its name: that of its adapter.
    pub name: String,
    /// The class that has it.
    pub class: String,
    /// Number of labels that the file says.
    pub num_labels: Option<usize>,
    /// Names of the labels.
    pub label2id: Option<BTreeMap<String, i64>>,
    /// Its weights, by the names of the class's state dict.
    pub weights: Tensors,
    /// Second names of weights, with the first ones.
    pub aliases: Vec<(Box<str>, Box<str>)>,
    /// Names of its weights among those of its adapter, where they are part of them.
    pub keys: IndexSet<Box<str>>,
}

/// A head in an adapter's folder.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum SavedHead {
    /// One of the library's flexible heads.
    Flexible(Head),
    /// One of a Transformers class.
    Static(StaticHead),
}

/// The owner that a head's parameters have in a store: not the adapter's own name.
pub(crate) fn owner(name: &str) -> String {
    format!("head:{name}")
}

fn wrong(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::Method, Diagnostic::error("head", message))
}

impl SavedHead {
    /// The head in an adapter's folder, if there is one.
    ///
    /// # Errors
    /// Files that cannot be read or understood.
    pub(crate) fn read(folder: &Path, rename: Option<&str>) -> Result<Option<SavedHead>> {
        let Some(mut top) = described(folder)? else {
            return Ok(None);
        };
        let at = |e: Error| e.within(folder.join(file::CONFIG).display().to_string());
        let mut take = |name: &str| top.shift_remove(name).unwrap_or_default();
        let saved = take("name").as_str().unwrap_or_default().to_owned();
        let config = take("config");
        let class = take("model_class").as_str().unwrap_or_default().to_owned();
        let pooling = take("pooling");
        let (labels, ids) = (take("num_labels"), take("label2id"));
        let tensors = tensors(folder)?;
        if config.is_null() {
            let ids: Option<BTreeMap<String, i64>> = serde_json::from_value(ids).unwrap_or(None);
            return Ok(Some(SavedHead::Static(StaticHead {
                name: rename.unwrap_or(&saved).to_owned(),
                class,
                num_labels: labels.as_u64().and_then(|n| usize::try_from(n).ok()),
                label2id: ids.filter(|ids| !ids.is_empty()),
                weights: tensors,
                aliases: Vec::new(),
                keys: IndexSet::new(),
            })));
        }
        let refuse = |d: Diagnostic| at(Error::new(ErrorKind::Method, d));
        let mut config = HeadConfig::from_file(config).map_err(refuse)?;
        if config.pooling.is_none() && !pooling.is_null() {
            let named = serde_json::from_value(pooling);
            config.pooling =
                named.map_err(|e| refuse(Diagnostic::error("head", format!("`pooling`: {e}"))))?;
        }
        config.validate().map_err(refuse)?;
        let name = rename.unwrap_or(&saved).to_owned();
        let (old, new) = (format!("heads.{saved}."), format!("heads.{name}."));
        let tensors = tensors
            .into_iter()
            .filter_map(|(k, t)| Some((format!("{new}{}", k.strip_prefix(&*old)?).into(), t)));
        Ok(Some(SavedHead::Flexible(Head {
            name,
            config,
            weights: Some(tensors.collect()),
            base: HeadBase::default(),
        })))
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        match self {
            SavedHead::Flexible(head) => &head.name,
            SavedHead::Static(head) => &head.name,
        }
    }

    /// Writes the head's files into its adapter's folder. The values come from the store of the model that it is attached to, and from
    /// its graph.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], also when a file is there and `force` is not set.
    pub(crate) fn write(
        &self,
        folder: &Path,
        store: &AdapterStore,
        graph: &Graph,
        meta: &Meta,
        force: bool,
    ) -> Result<()> {
        match self {
            SavedHead::Flexible(head) => head.write(folder, store, graph, meta, force),
            SavedHead::Static(head) => head.write(folder, store, meta, force),
        }
    }
}

/// What the head's file in a folder says of the model that it was made for.
///
/// # Errors
/// A file that cannot be read.
pub(crate) fn target(folder: &Path) -> Result<Target> {
    let top = described(folder)?.unwrap_or_default();
    let text = |name: &str| top.get(name).and_then(Value::as_str).unwrap_or_default();
    Ok(Target {
        hidden_size: top.get("hidden_size").and_then(Value::as_u64),
        model_type: text("model_type").to_owned(),
        interface: None,
    })
}

/// Whether a folder has any file of a head.
pub(crate) fn has_head(folder: &Path) -> bool {
    let files = [file::CONFIG, file::SAFETENSORS, file::TORCH];
    files.iter().any(|f| folder.join(f).exists())
}

/// What the head's file in a folder says, if there is one.
fn described(folder: &Path) -> Result<Option<Map<String, Value>>> {
    let path = folder.join(file::CONFIG);
    let mut weights = [file::SAFETENSORS, file::TORCH].into_iter();
    let weights = weights.find(|f| folder.join(f).exists());
    match (path.exists(), weights) {
        (true, Some(_)) => {}
        (false, None) => return Ok(None),
        (false, Some(weights)) => {
            let found = format!(
                "{weights} holds a head, and {}, which says what it is, is missing",
                file::CONFIG
            );
            let d = Diagnostic::error("head", found).at(folder.display().to_string());
            return Err(Error::new(
                ErrorKind::Method,
                d.help("copy it from where the adapter was saved; take the head's weights away to use the adapter alone"),
            ));
        }
        (true, None) => {
            let found = format!(
                "{} says that there is a head, and its weights are missing: {} or {}",
                file::CONFIG,
                file::SAFETENSORS,
                file::TORCH
            );
            let d = Diagnostic::error("head", found).at(folder.display().to_string());
            return Err(Error::new(
                ErrorKind::Method,
                d.help("copy them from where the adapter was saved; take the file away to use the adapter alone"),
            ));
        }
    }
    let text = disk::text(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
    let top = object(&text).map_err(|e| e.within(path.display().to_string()))?;
    Ok(Some(top))
}

/// Copies the head of an adapter's folder into that of the same adapter under another name, if it has one.
///
/// # Errors
/// Files that cannot be read, or are there already and `force` is not set.
pub(crate) fn copy_renamed(from: &Path, to: &Path, name: &str, force: bool) -> Result<()> {
    let Some(mut top) = described(from)? else {
        return Ok(());
    };
    let mut tensors = tensors(from)?;
    if let Some(saved) = top.get("name").and_then(Value::as_str) {
        let (old, new) = (format!("heads.{saved}."), format!("heads.{name}."));
        let renamed = tensors.into_iter().map(|(k, t)| {
            let inner = k
                .strip_prefix(&*old)
                .map(|rest| format!("{new}{rest}").into());
            (inner.unwrap_or(k), t)
        });
        tensors = renamed.collect();
        top.insert("name".into(), name.into());
    }
    write_all(to, &tensors, &Value::Object(top), force)
}

fn write_all(folder: &Path, tensors: &Tensors, top: &Value, force: bool) -> Result<()> {
    // In one order, wherever they come from, so that a head that stays as it is has the same bytes.
    let mut tensors = tensors.clone();
    tensors.sort_unstable_keys();
    let files = [
        (file::SAFETENSORS, to_safetensors(&tensors)?),
        (file::TORCH, torch::write("pytorch_model_head", &tensors)?),
        (file::CONFIG, text::pretty(top).into_bytes()),
    ];
    write_files(folder, &files, force)
}

/// The weights in a folder, by name. Two files of them are the same.
fn tensors(folder: &Path) -> Result<Tensors> {
    let (safe, pickle) = (folder.join(file::SAFETENSORS), folder.join(file::TORCH));
    let torch =
        || torch::read(&read_file(&pickle)?).map_err(|e| e.within(pickle.display().to_string()));
    let mut out = if safe.exists() {
        let read = read_safetensors(&read_file(&safe)?)
            .map_err(|e| e.within(safe.display().to_string()))?;
        if pickle.exists() {
            let other = torch()?;
            let same = |name: &str, t: &TensorData| {
                let other = other.get(name);
                other.is_some_and(|o| o.dims == t.dims && o.bytes() == t.bytes())
            };
            if other.len() != read.len() || !read.iter().all(|(name, t)| same(name, t)) {
                let found = format!(
                    "{} and {} hold different weights",
                    file::SAFETENSORS,
                    file::TORCH
                );
                let d = Diagnostic::error("weights-differ", found).at(folder.display().to_string());
                return Err(Error::new(
                    ErrorKind::Method,
                    d.help("delete the older one; a save by the Python library replaces one of them only"),
                ));
            }
        }
        read
    } else {
        torch()?
    };
    out.sort_unstable_keys();
    Ok(out)
}

/// Writes a head's files into its adapter's folder.
fn write(
    folder: &Path,
    tensors: &Tensors,
    meta: &Meta,
    own: Map<String, Value>,
    force: bool,
) -> Result<()> {
    let mut top = own;
    top.insert("hidden_size".into(), meta.hidden_size.into());
    top.insert("model_name".into(), meta.model_name.clone().into());
    top.insert("model_type".into(), meta.model_type.clone().into());
    top.insert("version".into(), VERSION.into());
    top.sort_keys();
    write_all(folder, tensors, &Value::Object(top), force)
}

impl Head {
    /// A head with initial values.
    pub(crate) fn fresh(name: &str, config: HeadConfig) -> Self {
        Head {
            name: name.to_owned(),
            config,
            weights: None,
            base: HeadBase::default(),
        }
    }

    /// Dropout before each linear: the head's own, or else the model's.
    pub(crate) fn dropout(&self) -> f64 {
        self.config.dropout_prob.unwrap_or(self.base.dropout)
    }

    /// The position that is read.
    pub(crate) fn pooling(&self) -> Pooling {
        let usual = classes::pooling(&self.base.model_type).unwrap_or(Pooling::First);
        // The library's classes that read another position than the first do so whatever `use_pooler` says.
        let pooled = self.config.use_pooler == Some(true) && usual == Pooling::First;
        let own = self.config.pooling.or(pooled.then_some(Pooling::Pooler));
        own.unwrap_or(usual)
    }

    /// The layers on a model of this width, and the table of embeddings where it is what scores words: in a fresh head, and in one whose
    /// file has the same values.
    ///
    /// # Errors
    /// A head of words on a graph whose words are not known.
    pub(crate) fn layers(
        &self,
        width: usize,
        graph: &Graph,
    ) -> Result<(Vec<Step>, Option<crate::ir::ValueId>), Diagnostic> {
        let table = word_table(graph).filter(|_| self.config.head_type.of_words());
        let words = table.map_or(0, |(_, rows)| usize::try_from(rows).unwrap_or(0));
        let mut config = self.config.clone();
        if let Some((table, _)) = table
            && config.embedding_size.is_none()
        {
            let stored = graph.value(table).tensor.as_ref();
            config.embedding_size = stored.and_then(|t| usize::try_from(*t.dims.get(1)?).ok());
        }
        let steps = config.steps(width, words);
        let Some(Step::Linear {
            at,
            from,
            to,
            words: true,
            ..
        }) = steps.last()
        else {
            return Ok((steps, None));
        };
        if to.get() == 0 {
            return Err(Diagnostic::error(
                "head",
                "the number of words is not known: no table is looked up by `input_ids`",
            )
            .help("give the head a `vocab_size`"));
        }
        let stored = table.and_then(|(v, _)| graph.value(v).tensor.as_ref());
        let fits = |t: &&TensorData| *t.dims == [to.get() as u64, from.get() as u64];
        let stored = stored.filter(fits);
        let key = format!("heads.{}.{at}.weight", self.name);
        let tied = match &self.weights {
            None => stored.is_some(),
            Some(file) => match (file.get(&*key), stored) {
                (None, Some(_)) => true,
                (Some(a), Some(b)) => a.dtype == b.dtype && a.bytes() == b.bytes(),
                (_, None) => false,
            },
        };
        Ok((steps, table.map(|(v, _)| v).filter(|_| tied)))
    }

    /// Writes the head's files into its adapter's folder. The values come from the store of the model that it is attached to, and from
    /// the graph, where it reads the table of embeddings.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], also when a file is there and `force` is not set.
    pub(crate) fn write(
        &self,
        folder: &Path,
        store: &AdapterStore,
        graph: &Graph,
        meta: &Meta,
        force: bool,
    ) -> Result<()> {
        let mut tensors = store.of(&owner(&self.name)).tensors();
        let width = meta.hidden_size.unwrap_or(0) as usize;
        let refuse = |d| Error::new(ErrorKind::Method, d);
        let (steps, table) = self.layers(width, graph).map_err(refuse)?;
        let (mut words, mut embedding) = (0, 0);
        if let Some(Step::Linear { at, .. }) = steps.last() {
            let key: Box<str> = format!("heads.{}.{at}.weight", self.name).into();
            let stored = table.and_then(|t| graph.value(t).tensor.clone());
            if let Some(stored) = stored.filter(|_| !tensors.contains_key(&key)) {
                tensors.insert(key.clone(), stored);
            }
            let dims = tensors.get(&key).map(|t| t.dims.clone());
            if let Some([rows, columns]) = dims.as_deref() {
                (words, embedding) = (*rows as usize, *columns as usize);
            }
        }
        let mut own = Map::new();
        own.insert("config".into(), self.config.to_file(words, embedding));
        let class = classes::flexible(&meta.model_type).unwrap_or_else(|| meta.model_class.clone());
        own.insert("model_class".into(), class.into());
        own.insert("name".into(), self.name.clone().into());
        if let Some(pooling) = self.config.pooling {
            own.insert("pooling".into(), json!(pooling));
        }
        write(folder, &tensors, meta, own, force)
    }

    /// The parameters of these layers: the file's values, or initial ones. `tied`: scores of words are the table of embeddings.
    ///
    /// # Errors
    /// Missing and misshapen weights, all of them.
    pub(crate) fn store(
        &self,
        steps: &[Step],
        tied: bool,
        seed: u64,
        graph: &Graph,
    ) -> Result<Vec<(String, Param)>> {
        let mut found = Vec::new();
        let mut out = Vec::new();
        let of_words = steps.iter().find_map(|s| match s {
            Step::Linear {
                at, words: true, ..
            } => Some(format!("heads.{}.{at}.weight", self.name)),
            _ => None,
        });
        let specs = params(&self.name, steps).into_iter();
        let specs = specs.filter(|s| !tied || Some(&s.suffix) != of_words.as_ref());
        for spec in specs {
            let sizes = spec.dims();
            let dims: Vec<u64> = sizes.iter().map(|&d| d as u64).collect();
            if let Err(d) = spec.bounded(&spec.suffix) {
                found.push(d);
                continue;
            }
            let tensor = match &self.weights {
                None => {
                    let values = spec
                        .init
                        .values(&sizes, seed, &spec.suffix, graph)
                        .unwrap_or_default();
                    TensorData::from_f32(dims, &values)
                }
                Some(file) => match file.get(&*spec.suffix) {
                    Some(t) if *t.dims == *dims && t.not_finite() > 0 => {
                        found.push(Diagnostic::error(
                            "weights-finite",
                            format!("`{}` holds values that are not finite", spec.suffix),
                        ));
                        continue;
                    }
                    Some(t) if *t.dims == *dims => t.clone(),
                    Some(t) => {
                        let (name, has) = (&spec.suffix, &t.dims);
                        found.push(Diagnostic::error(
                            "head",
                            format!("`{name}` has shape {has:?}; the model needs {dims:?}"),
                        ));
                        continue;
                    }
                    None => {
                        let what = format!("`{}` is missing", spec.suffix);
                        found.push(Diagnostic::error("head", what));
                        continue;
                    }
                },
            };
            let param = Param {
                adapter: owner(&self.name).into(),
                tensor,
                trainable: spec.trainable,
                idle: false,
                decay: crate::adapters::param::decays(&spec.suffix),
                to_identity: None,
                aliases: Vec::new(),
            };
            out.push((spec.suffix, param));
        }
        if found.is_empty() {
            Ok(out)
        } else {
            Err(Error::many(ErrorKind::Method, found))
        }
    }
}

impl StaticHead {
    /// Says what its labels are called, in the order of their ids; as the library calls those without names, where they have none.
    pub(crate) fn name_labels(&mut self, names: &[String], count: Option<usize>) {
        let Some(count) = count.filter(|n| names.is_empty() || names.len() <= *n) else {
            return;
        };
        let name = |i: usize| {
            names
                .get(i)
                .cloned()
                .unwrap_or_else(|| format!("LABEL_{i}"))
        };
        if !names.is_empty() || self.label2id.is_none() {
            self.label2id = Some((0..count).map(|i| (name(i), i as i64)).collect());
        }
        self.num_labels = Some(count);
    }

    /// The same as a flexible head, for a base model.
    ///
    /// # Errors
    /// A class whose head has no flexible form, and weights that this form does not have.
    pub(crate) fn flexible(&self) -> Result<Head> {
        let known = classes::of_class(&self.class);
        let known = known.ok_or_else(|| {
            wrong(format!(
                "the head of a {} has no form that fits a base model",
                self.class
            ))
        })?;
        let mut weights = Tensors::new();
        for (at, module) in &known.modules {
            for kind in ["weight", "bias"] {
                if let Some(t) = self.weights.get(&*format!("{module}.{kind}")) {
                    weights.insert(format!("heads.{}.{at}.{kind}", self.name).into(), t.clone());
                }
            }
        }
        if weights.is_empty() {
            let names: Vec<&str> = known.modules.iter().map(|(_, m)| *m).collect();
            return Err(wrong(format!(
                "the head of a {} is made of {}, none of which the file has",
                self.class,
                names.join(", ")
            )));
        }
        let mut config = known.config;
        if let Some((at, _)) = known.modules.last().filter(|_| config.head_type.of_words()) {
            let key = format!("heads.{}.{at}.weight", self.name);
            let dims = weights
                .get(&*key)
                .map(|t| t.dims.clone())
                .unwrap_or_default();
            config.vocab_size = dims.first().and_then(|d| usize::try_from(*d).ok());
        }
        let labels = self
            .num_labels
            .or(self.label2id.as_ref().map(BTreeMap::len));
        if !config.head_type.of_words() {
            config.num_labels = labels;
            config.label2id.clone_from(&self.label2id);
        }
        if config.head_type == super::HeadType::MultipleChoice {
            (config.num_choices, config.num_labels) = (config.num_labels, None);
        }
        Ok(Head {
            weights: Some(weights),
            ..Head::fresh(&self.name, config)
        })
    }

    /// Writes the head's files into its adapter's folder, with the values that the adapter has in a store.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], also when a file is there and `force` is not set.
    pub(crate) fn write(
        &self,
        folder: &Path,
        store: &AdapterStore,
        meta: &Meta,
        force: bool,
    ) -> Result<()> {
        let mut own = Map::new();
        own.insert("config".into(), Value::Null);
        own.insert("name".into(), Value::Null);
        own.insert("model_class".into(), self.class.clone().into());
        own.insert("label2id".into(), json!(self.label2id));
        own.insert("num_labels".into(), json!(self.num_labels));
        write(folder, &self.weights_in(store), meta, own, force)
    }
}
