//! Prediction heads, as the library's flexible heads are: `head_config.json` and its weights beside an adapter.
//!
//! A head is trained with the adapter and saved in its folder, but is no part of it: its parameters are `heads.NAME.…`. Heads that the
//! exported model has already stay as they are, and are not described here.

use crate::adapters::config::json as text;
use crate::adapters::folder::{
    Meta, VERSION, object, read_file, read_safetensors, to_safetensors, write_files,
};
use crate::adapters::methods::act;
use crate::adapters::param::{Init, ParamSpec, Size};
use crate::adapters::{AdapterStore, Param, torch};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::{Builder, DType, Graph, TensorData, Val};
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
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
}

/// What a head predicts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum HeadType {
    /// One class of several; with one label, a number.
    #[default]
    Classification,
    /// Any number of labels.
    MultilabelClassification,
}

/// The position of the sequence that a head reads.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Pooling {
    /// The first one: encoders.
    #[default]
    First,
    /// The last one that is no padding: decoders.
    Last,
}

/// A head, under the library's field names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default)]
pub(crate) struct HeadConfig {
    /// What it predicts.
    pub head_type: HeadType,
    /// Number of classes or labels; 1 for a number.
    pub num_labels: usize,
    /// Number of linear layers.
    pub layers: usize,
    /// Activation between them.
    pub activation_function: Option<String>,
    /// Names of the labels.
    pub label2id: Option<BTreeMap<String, i64>>,
    /// Whether the linears have a bias.
    pub bias: bool,
    /// Dropout before each linear; 0 without.
    pub dropout_prob: Option<f64>,
    /// The position that is read. The library decides it by the model's class.
    pub pooling: Pooling,
    /// What else a file says.
    #[serde(flatten)]
    #[schemars(skip)]
    pub extra: Map<String, Value>,
}

impl Default for HeadConfig {
    fn default() -> Self {
        HeadConfig {
            head_type: HeadType::Classification,
            num_labels: 2,
            layers: 2,
            activation_function: Some("tanh".into()),
            label2id: None,
            bias: true,
            dropout_prob: None,
            pooling: Pooling::First,
            extra: Map::from_iter([("use_pooler".to_owned(), false.into())]),
        }
    }
}

impl HeadConfig {
    /// Refuses values that make no head.
    pub(crate) fn validate(&self) -> Result<(), Diagnostic> {
        let bad = |m: String| Err(Diagnostic::error("head", m));
        if self.num_labels == 0 || self.layers == 0 {
            return bad("a head needs at least one label and one layer".into());
        }
        if !(0.0..1.0).contains(&self.dropout_prob.unwrap_or(0.0)) {
            return bad("`dropout_prob` must be at least 0 and below 1".into());
        }
        if self.extra.get("use_pooler") == Some(&Value::Bool(true)) {
            return bad(
                "`use_pooler`: the graph's own pooler is not read; train a head without".into(),
            );
        }
        act::check(self.activation_function.as_deref())
    }

    /// Places of the linears in the library's `nn.Sequential`: each has a dropout before it, and an activation between.
    fn linears(&self) -> impl Iterator<Item = usize> {
        let step = if self.activation_function.is_some() {
            3
        } else {
            2
        };
        (0..self.layers).map(move |l| 1 + l * step)
    }

    /// The parameters of the head `name` on a model of this width.
    pub(crate) fn params(&self, name: &str, width: usize) -> Vec<ParamSpec> {
        let width = Size::new("d", width);
        let labels = Size::new("num_labels", self.num_labels);
        let mut out = Vec::new();
        for (l, at) in self.linears().enumerate() {
            let rows = if l + 1 == self.layers {
                &labels
            } else {
                &width
            };
            out.push(ParamSpec::new(
                format!("heads.{name}.{at}.weight"),
                &[rows, &width],
                Init::bert(),
            ));
            if self.bias {
                out.push(ParamSpec::new(
                    format!("heads.{name}.{at}.bias"),
                    &[rows],
                    Init::Zeros,
                ));
            }
        }
        out
    }

    /// The logits `[batch, labels]` of hidden states at one position, `[batch, width]`.
    pub(crate) fn build(
        &self,
        b: &Builder,
        hidden: Val,
        get: impl Fn(usize, &str) -> Val,
        dropout: impl Fn(Val) -> Val,
    ) -> Val {
        let mut x = hidden;
        for (l, at) in self.linears().enumerate() {
            x = b.linear_t(dropout(x), get(at, "weight"));
            if self.bias {
                x = b.add(x, get(at, "bias"));
            }
            if l + 1 < self.layers {
                x = act::apply(b, self.activation_function.as_deref(), x);
            }
        }
        x
    }
}

/// A head to be attached: fresh, or with the weights of a file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Head {
    /// Its name: that of its adapter.
    pub name: String,
    /// Its configuration.
    pub config: HeadConfig,
    /// Its weights, by the names of the file; without, it gets initial values.
    pub weights: Option<IndexMap<Box<str>, TensorData>>,
}

/// The owner that a head's parameters have in a store: not the adapter's own name.
pub(crate) fn owner(name: &str) -> String {
    format!("head:{name}")
}

impl Head {
    /// The head in an adapter's folder: `None` when there is none, or one of another kind (a language model's, say).
    ///
    /// # Errors
    /// Files that cannot be read or understood.
    pub(crate) fn read(folder: &Path, rename: Option<&str>) -> Result<Option<Head>> {
        let path = folder.join(file::CONFIG);
        if !path.exists() {
            return Ok(None);
        }
        let text =
            std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
        let at = |e: Error| e.within(path.display().to_string());
        let mut top = object(&text).map_err(at)?;
        let saved = top
            .shift_remove("name")
            .and_then(|n| n.as_str().map(str::to_owned))
            .unwrap_or_default();
        let config = top.shift_remove("config").unwrap_or_default();
        let known = ["classification", "multilabel_classification"];
        if !config["head_type"]
            .as_str()
            .is_some_and(|t| known.contains(&t))
        {
            return Ok(None);
        }
        let config: HeadConfig = serde_json::from_value(config).map_err(|e| {
            at(Error::new(
                ErrorKind::Method,
                Diagnostic::error("head", e.to_string()),
            ))
        })?;
        config
            .validate()
            .map_err(|d| at(Error::new(ErrorKind::Method, d)))?;
        let (safe, pickle) = (folder.join(file::SAFETENSORS), folder.join(file::TORCH));
        let tensors = if safe.exists() {
            read_safetensors(&read_file(&safe)?)
                .map_err(|e| e.within(safe.display().to_string()))?
        } else {
            torch::read(&read_file(&pickle)?).map_err(|e| e.within(pickle.display().to_string()))?
        };
        let name = rename.unwrap_or(&saved).to_owned();
        let (old, new) = (format!("heads.{saved}."), format!("heads.{name}."));
        let tensors = tensors
            .into_iter()
            .filter_map(|(k, t)| Some((format!("{new}{}", k.strip_prefix(&*old)?).into(), t)));
        Ok(Some(Head {
            name,
            config,
            weights: Some(tensors.collect()),
        }))
    }

    /// Writes the head's files into its adapter's folder. The values come from the store of the model that it is attached to.
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
        let tensors = store.of(&owner(&self.name)).tensors();
        let mut config = json!(self.config);
        if self.config.pooling == Pooling::First
            && let Some(o) = config.as_object_mut()
        {
            o.shift_remove("pooling");
        }
        let top = Value::Object(Map::from_iter([
            ("config".to_owned(), config),
            ("hidden_size".to_owned(), meta.hidden_size.into()),
            ("model_class".to_owned(), meta.model_class.clone().into()),
            ("model_name".to_owned(), meta.model_name.clone().into()),
            ("model_type".to_owned(), meta.model_type.clone().into()),
            ("name".to_owned(), self.name.clone().into()),
            ("version".to_owned(), VERSION.into()),
        ]));
        let files = [
            (file::SAFETENSORS, to_safetensors(&tensors)?),
            (file::TORCH, torch::write("pytorch_model_head", &tensors)?),
            (file::CONFIG, text::pretty(&top).into_bytes()),
        ];
        write_files(folder, &files, force)
    }

    /// The parameters on a model of this width: the file's values, or initial ones.
    ///
    /// # Errors
    /// Missing and misshapen weights, all of them.
    pub(crate) fn store(
        &self,
        width: usize,
        seed: u64,
        graph: &Graph,
    ) -> Result<Vec<(String, Param)>> {
        let mut found = Vec::new();
        let mut out = Vec::new();
        for spec in self.config.params(&self.name, width) {
            let sizes = spec.dims();
            let dims: Vec<u64> = sizes.iter().map(|&d| d as u64).collect();
            let tensor = match &self.weights {
                None => {
                    let values = spec
                        .init
                        .values(&sizes, seed, &spec.suffix, graph)
                        .unwrap_or_default();
                    TensorData::from_f32(dims, &values)
                }
                Some(file) => match file.get(&*spec.suffix) {
                    Some(t) if *t.dims == *dims => t.clone(),
                    Some(t) => {
                        found.push(Diagnostic::error(
                            "head",
                            format!(
                                "`{}` has shape {:?}; the model needs {dims:?}",
                                spec.suffix, t.dims
                            ),
                        ));
                        continue;
                    }
                    None => {
                        found.push(Diagnostic::error(
                            "head",
                            format!("`{}` is missing", spec.suffix),
                        ));
                        continue;
                    }
                },
            };
            let param = Param {
                adapter: owner(&self.name).into(),
                tensor,
                trainable: true,
                idle: false,
                decay: crate::adapters::param::decays(&spec.suffix),
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

/// Element type that a head computes in.
pub(crate) const COMPUTED: DType = DType::Float;
