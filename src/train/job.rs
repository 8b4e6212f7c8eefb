//! A fine-tuning job: one JSON object that holds what to train, on what, and how. Every field is also a flag of `rewrite train`.

use super::args::TrainingArguments;
use super::batch::CollateArguments;
use super::data::DataArguments;
use crate::adapters::head::HeadConfig;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::options::{self, OptionField, Options};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The adapters of a job.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum AdapterSpecs {
    /// The first method that the interface lists.
    #[default]
    Default,
    /// `SPEC` or `NAME=SPEC`.
    One(String),
    /// Several of them.
    Many(Vec<String>),
    /// Specs by name.
    Named(BTreeMap<String, String>),
}

impl AdapterSpecs {
    /// Each as `SPEC` or `NAME=SPEC`.
    pub fn list(&self) -> Vec<String> {
        match self {
            AdapterSpecs::Default => Vec::new(),
            AdapterSpecs::One(s) => vec![s.clone()],
            AdapterSpecs::Many(list) => list.clone(),
            AdapterSpecs::Named(map) => map.iter().map(|(n, s)| format!("{n}={s}")).collect(),
        }
    }
}

/// A watcher of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ReportTo {
    /// `log.jsonl`: one event a line.
    Jsonl,
    /// An event file for TensorBoard.
    Tensorboard,
    /// `report.html`: curves, the job and its results in one file.
    Html,
}

/// Which model, which adapters, and where results go. Paths in a job file are relative to the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "options of the field")]
pub struct JobArguments {
    /// The ONNX file.
    pub model: Option<String>,
    /// An `adapter_interface.json`, or the name of a built-in one; without it, config.json beside the model decides, or the graph.
    pub interface: Option<String>,
    /// What is trained: `SPEC`, `NAME=SPEC`, a list of them, or an object of specs by name. A spec is a configuration string, an
    /// `adapter_config.json` or a saved adapter folder.
    pub adapter: AdapterSpecs,
    /// Which adapters are active and how they are composed.
    pub active: Option<String>,
    /// tokenizer.json or its folder; the one beside the model without it.
    pub tokenizer: Option<String>,
    /// What is minimised: causal-lm, seq2seq, classification, multi-label, regression, mse, or the name of a scalar value; without it
    /// the task of the data decides.
    pub loss: Option<String>,
    /// The prediction head that a base model gets for a task of whole examples, under the library's field names. `num_labels` and
    /// `label2id` come from the data.
    pub head: Option<HeadConfig>,
    /// Where adapters, checkpoints and reports go.
    pub output_dir: Option<String>,
    /// Replaces the results of an earlier run in the output folder.
    pub overwrite_output_dir: bool,
    /// Where the run is written down while it goes on.
    pub report_to: Vec<ReportTo>,
    /// Where to compute: cpu; cuda or cuda:N in a build with CUDA.
    pub device: String,
    /// Threads; all cores without it.
    pub threads: Option<usize>,
    /// Runs the graph as it was exported, without fused kernels.
    pub portable: bool,
    /// Prints steps, tokens and an estimate of the memory, and trains nothing.
    pub dry_run: bool,
    /// Pushes the adapters to the Hub when training is done.
    pub push_to_hub: bool,
    /// The repository that is pushed to; the name of the output folder without it.
    pub hub_model_id: Option<String>,
    /// Makes a new repository private.
    pub hub_private_repo: bool,
}

impl Default for JobArguments {
    fn default() -> Self {
        JobArguments {
            model: None,
            interface: None,
            adapter: AdapterSpecs::Default,
            active: None,
            tokenizer: None,
            loss: None,
            head: None,
            output_dir: None,
            overwrite_output_dir: false,
            report_to: vec![ReportTo::Jsonl, ReportTo::Html],
            device: "cpu".to_owned(),
            threads: None,
            portable: false,
            dry_run: false,
            push_to_hub: false,
            hub_model_id: None,
            hub_private_repo: false,
        }
    }
}

impl Options for JobArguments {}

/// A whole job.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Job {
    /// Which model, which adapters, where to.
    #[serde(flatten)]
    pub job: JobArguments,
    /// On what.
    #[serde(flatten)]
    pub data: DataArguments,
    /// How examples stand together.
    #[serde(flatten)]
    pub collate: CollateArguments,
    /// How.
    #[serde(flatten)]
    pub training: TrainingArguments,
}

impl Job {
    /// The options of a job file.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no JSON object.
    pub fn open(path: &Path) -> Result<Map<String, Value>> {
        let text =
            std::fs::read_to_string(path).map_err(|e| Error::io(path, "cannot read the job", e))?;
        let at = |m: String| {
            let d = Diagnostic::error("job", m).at(path.display().to_string());
            Error::new(
                ErrorKind::Train,
                d.help("a job is one JSON object; `schemas/job.schema.json` describes it"),
            )
        };
        match serde_json::from_str(&text).map_err(|e| at(e.to_string()))? {
            Value::Object(mut o) => {
                o.shift_remove("$schema");
                Ok(o)
            }
            other => Err(at(format!("found {}", word(&other)))),
        }
    }

    /// A job from its options.
    ///
    /// # Errors
    /// Names that no option has, values that do not fit, and combinations that make no sense; all names together.
    pub fn read(mut options: Map<String, Value>) -> Result<Job> {
        let job = options::take::<JobArguments>(&mut options);
        let data = options::take::<DataArguments>(&mut options);
        let collate = options::take::<CollateArguments>(&mut options);
        let training = options::take::<TrainingArguments>(&mut options);
        let known = Self::fields();
        let known: Vec<&str> = known.iter().map(|f| f.name.as_str()).collect();
        if let Some(e) = options::unknown(options.keys(), &known) {
            return Err(e);
        }
        Ok(Job {
            job: options::read(job)?,
            data: options::read(data)?,
            collate: options::read(collate)?,
            training: options::read(training)?,
        })
    }

    /// All options, in order.
    pub fn fields() -> Vec<OptionField> {
        let mut all = options::fields::<JobArguments>();
        all.extend(options::fields::<DataArguments>());
        all.extend(options::fields::<CollateArguments>());
        all.extend(options::fields::<TrainingArguments>());
        all
    }

    /// The JSON schema of a job file.
    pub fn schema() -> Value {
        let mut properties = Map::from_iter([("$schema".to_owned(), json!({"type": "string"}))]);
        let mut defs = Map::new();
        let parts = [
            schemars::schema_for!(JobArguments),
            schemars::schema_for!(DataArguments),
            schemars::schema_for!(CollateArguments),
            schemars::schema_for!(TrainingArguments),
        ];
        for part in parts {
            let mut part = part.to_value();
            if let Value::Object(p) = part["properties"].take() {
                properties.extend(p);
            }
            if let Value::Object(d) = part["$defs"].take() {
                defs.extend(d);
            }
        }
        json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "title": "Job",
            "description": "A fine-tuning job of `rewrite train`. Paths are relative to the file.",
            "type": "object",
            "properties": properties,
            "required": ["model"],
            "additionalProperties": false,
            "$defs": defs,
        })
    }
}

fn word(v: &Value) -> &'static str {
    match v {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// A path of a job file, which may be relative to it.
pub fn beside(folder: &Path, path: &str) -> PathBuf {
    folder.join(path)
}
