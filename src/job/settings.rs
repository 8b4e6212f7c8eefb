//! A fine-tuning job: one JSON object that holds what to train, on what, and how. Every field is also a flag of `rewrite train`.

use super::ignored;
use super::model::ModelSettings;
use super::saving::SaveFormat;
use crate::adapters::heads::HeadConfig;
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
#[cfg(test)]
use crate::options::Kind;
use crate::options::{self, OptionField, Options};
use crate::train::{CollateArguments, DataArguments, ReportTo, TrainingArguments};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
#[cfg(test)]
use serde_json::json;
use serde_json::{Map, Value};
use std::path::Path;

/// Which model, what is minimised, and where results go. Paths in a job file are relative to the file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[expect(clippy::struct_excessive_bools, reason = "options of the field")]
pub(crate) struct JobArguments {
    /// The ONNX file.
    pub model: Option<String>,
    /// What is minimised: causal-lm, seq2seq, classification, multi-label, regression, token-classification, question-answering,
    /// masked-lm, mse, or the name of a scalar value
    /// (default: what the task of the data asks for).
    pub loss: Option<String>,
    /// The prediction head that a base model gets for a task of whole examples, under the library's field names. `num_labels` and
    /// `label2id` come from the data.
    pub head: Option<HeadConfig>,
    /// Trains the head that the graph has, too, as the library does with the head of a Transformers class. It is saved beside the
    /// adapter.
    pub train_head: bool,
    /// The folder that adapters, checkpoints and reports go to.
    pub output_dir: Option<String>,
    /// The format that adapters are written in: adapterhub, peft, or both, NAME/ and NAME-peft/.
    pub format: SaveFormat,
    /// Replaces the results of an earlier run in the output folder.
    pub overwrite_output_dir: bool,
    /// Where the run is written down while it goes on.
    pub report_to: Vec<ReportTo>,
    /// Number of examples that the report shows with the model's answers before and after the training; 0 shows none, and nothing else
    /// that needs answers, such as which classes were mistaken. Takes 2 seconds or a twentieth of the run's time at most.
    pub report_samples: usize,
    /// Prints steps, tokens and an estimate of the memory, and trains nothing.
    pub dry_run: bool,
    /// Number of training examples that are shown before anything is trained: which of their tokens are read, and which are learned.
    pub show_examples: usize,
    /// Pushes the adapters to the Hub when training is done.
    pub push_to_hub: bool,
    /// The repository that is pushed to (default: the name of the output folder).
    pub hub_model_id: Option<String>,
    /// Makes a new repository private.
    pub hub_private_repo: bool,
}

impl Default for JobArguments {
    fn default() -> Self {
        JobArguments {
            model: None,
            loss: None,
            head: None,
            train_head: false,
            output_dir: None,
            format: SaveFormat::default(),
            overwrite_output_dir: false,
            report_to: vec![ReportTo::Jsonl, ReportTo::Html],
            report_samples: 3,
            dry_run: false,
            show_examples: 0,
            push_to_hub: false,
            hub_model_id: None,
            hub_private_repo: false,
        }
    }
}

impl Options for JobArguments {}

/// The options of a job file, under their own names, and those that change nothing here.
pub(super) type JobFile = (Map<String, Value>, Map<String, Value>);

/// All settings of a training job.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub(crate) struct JobSettings {
    /// Which model, where to.
    #[serde(flatten)]
    pub job: JobArguments,
    /// What the model gets, and how it is executed.
    #[serde(flatten)]
    pub model: ModelSettings,
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

impl JobSettings {
    /// The options of a job file, under their own names, and those that change nothing here.
    ///
    /// # Errors
    /// A file that cannot be read, or holds no job: see [`read`](Self::read).
    pub(super) fn open(path: &Path) -> Result<JobFile> {
        let text = disk::text(path).map_err(|e| Error::io(path, "cannot read the job", e))?;
        let place = path.display().to_string();
        let at = |m: String| {
            let d = Diagnostic::error("job", m).at(place.clone());
            Error::new(
                ErrorKind::Train,
                d.help("a job is one JSON object; `schemas/job.schema.json` describes it"),
            )
        };
        let mut options = match options::json(&text).map_err(|e| at(e.to_string()))? {
            Value::Object(options) => options,
            other => return Err(at(format!("found {}", word(&other)))),
        };
        options.shift_remove("$schema");
        // Here, where the file is known: options of other origin join these.
        let ignored = Self::rename(&mut options)
            .and_then(|()| ignored::take(&mut options))
            .and_then(|names| match ignored::text_field(&mut options) {
                Some(field) => ignored::put_text_field(&mut options, &field).map(|()| names),
                None => Ok(names),
            })
            .and_then(|names| Self::read(options.clone()).map(|_| names))
            .map_err(|e| e.within(&place))?;
        Ok((options, ignored))
    }

    fn rename(options: &mut Map<String, Value>) -> Result<()> {
        options::rename::<JobArguments>(options)?;
        options::rename::<DataArguments>(options)?;
        options::rename::<CollateArguments>(options)?;
        options::rename::<TrainingArguments>(options)
    }

    /// A job from its options.
    ///
    /// # Errors
    /// Names that no option has, values that do not fit, and combinations that make no sense; all names together.
    pub(crate) fn read(mut options: Map<String, Value>) -> Result<JobSettings> {
        let known = Self::fields();
        let known: Vec<&str> = known.iter().map(|f| f.name.as_str()).collect();
        let names = options
            .keys()
            .filter(|name| !known.contains(&name.as_str()));
        if let Some(e) = options::unknown(names, &known) {
            return Err(e);
        }
        let job = options::take::<JobArguments>(&mut options);
        let model = options::take::<ModelSettings>(&mut options);
        let data = options::take::<DataArguments>(&mut options);
        let collate = options::take::<CollateArguments>(&mut options);
        let training = options::take::<TrainingArguments>(&mut options);
        options::check::<CollateArguments>(&collate)?;
        let collate: CollateArguments = options::read(collate)?;
        Ok(JobSettings {
            job: options::read(job)?,
            model: options::read(model)?,
            data: options::read(data)?,
            collate,
            training: options::read(training)?,
        })
    }

    /// All options, in order.
    pub(super) fn fields() -> Vec<OptionField> {
        let mut all = options::fields::<JobArguments>();
        all.extend(Self::model_fields());
        all.extend(options::fields::<DataArguments>());
        all.extend(options::fields::<CollateArguments>());
        all.extend(options::fields::<TrainingArguments>());
        all
    }

    /// The settings as a job file has them.
    pub(crate) fn to_file(&self) -> Value {
        let mut file = serde_json::to_value(self).unwrap_or_default();
        if let Value::Object(options) = &mut file {
            options.shift_remove("dtype");
        }
        file
    }

    /// The options of the model. `dtype` is a flag: in a file, `bf16` says it.
    fn model_fields() -> impl Iterator<Item = OptionField> {
        let all = options::fields::<ModelSettings>().into_iter();
        all.filter(|f| f.name != "dtype")
    }

    /// The JSON schema of a job file.
    #[cfg(test)]
    fn schema() -> Value {
        let mut properties = Map::from_iter([("$schema".to_owned(), json!({"type": "string"}))]);
        let mut defs = Map::new();
        let parts = [
            schemars::schema_for!(JobArguments),
            schemars::schema_for!(ModelSettings),
            schemars::schema_for!(DataArguments),
            schemars::schema_for!(CollateArguments),
            schemars::schema_for!(TrainingArguments),
        ];
        for part in parts {
            let mut part = part.to_value();
            if let Value::Object(p) = part["properties"].take() {
                let known = Self::fields();
                properties.extend(
                    p.into_iter()
                        .filter(|(n, _)| known.iter().any(|f| f.name == *n)),
                );
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

/// All options of a job as a document in Markdown: what each is, its default, and its flag.
#[cfg(test)]
fn markdown() -> String {
    let mut out = String::from(
        "# Options of a fine-tuning job\n\n`rewrite train job.json` reads them from a JSON object, under these names; `job.schema.json` is its \
         schema. Each is also a flag, in kebab case (`per_device_train_batch_size` is `--per-device-train-batch-size`), and a flag stands \
         over the file. Names and meanings are those of Hugging Face's `TrainingArguments`, datasets and TRL where they have one.\n",
    );
    let parts: [(&str, Vec<OptionField>); 5] = [
        ("The job", options::fields::<JobArguments>()),
        (
            "The model and its adapters",
            JobSettings::model_fields().collect(),
        ),
        ("Data", options::fields::<DataArguments>()),
        ("Batches", options::fields::<CollateArguments>()),
        ("Training", options::fields::<TrainingArguments>()),
    ];
    for (title, fields) in parts {
        out += &format!("\n## {title}\n\n| option | default | what it does |\n|---|---|---|\n");
        for f in fields {
            let default = match &f.default {
                Value::Null => String::new(),
                Value::String(s) => format!("`{s}`"),
                other => format!("`{other}`"),
            };
            let words = match &f.kind {
                Kind::Choice(words) => format!(" One of: {}.", words.join(", ")),
                _ => String::new(),
            };
            let doc = (f.doc.replace('\n', " ") + &words).replace('|', "\\|");
            out += &format!("| `{}` | {default} | {doc} |\n", f.name);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unit::support::check_generated;
    use std::{env, fs};

    #[test]
    fn generated_files_are_fresh() {
        check_generated(
            "job.schema.json",
            &(serde_json::to_string_pretty(&JobSettings::schema()).unwrap() + "\n"),
        );
        check_generated("job.md", &markdown());
    }

    #[test]
    fn every_option_is_explained_and_of_one_name() {
        let fields = JobSettings::fields();
        let mut names: Vec<&str> = fields.iter().map(|f| f.name.as_str()).collect();
        names.sort_unstable();
        let before = names.len();
        names.dedup();
        assert_eq!(names.len(), before);
        let silent: Vec<&str> = fields
            .iter()
            .filter(|f| f.doc.is_empty())
            .map(|f| f.name.as_str())
            .collect();
        assert!(silent.is_empty(), "{silent:?}");
    }

    #[test]
    fn jobs_of_the_repository_are_jobs() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/jobs");
        for entry in fs::read_dir(folder).unwrap() {
            let job =
                JobSettings::read(JobSettings::open(&entry.unwrap().path()).unwrap().0).unwrap();
            job.training.validate().unwrap();
            assert!(job.job.model.is_some());
        }
    }

    #[test]
    fn what_is_wrong_with_a_job_file_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.json");
        for (text, want) in [
            (r#"{"modle": "m.onnx"}"#, "there is no option `modle`"),
            (
                r#"{"learning_rate": "fast"}"#,
                "found \"fast\", expected a number",
            ),
            (r#"{"seed": 1, "seed": 2}"#, "`seed` is given twice"),
            (
                r#"{"adapter": {"a": "lora", "a": "lora[r=4]"}}"#,
                "`a` is given twice",
            ),
            (
                r#"{"max_length": 8, "max_seq_length": 9}"#,
                "`max_length` and `max_seq_length` are one option",
            ),
            (
                r#"{"pad_to_multiple_of": 0}"#,
                "`pad_to_multiple_of` must be at least 1",
            ),
            ("[]", "found a list"),
        ] {
            fs::write(&path, text).unwrap();
            let e = JobSettings::open(&path).unwrap_err().to_string();
            assert!(e.contains(want) && e.contains("job.json"), "{e}");
        }
        fs::write(&path, r#"{"$schema": "s", "evaluation_strategy": "steps"}"#).unwrap();
        let (options, ignored) = JobSettings::open(&path).unwrap();
        assert_eq!(options.keys().collect::<Vec<_>>(), ["eval_strategy"]);
        assert!(ignored.is_empty());
    }

    #[test]
    fn arguments_of_other_trainers_are_ignored_or_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("job.json");
        let text = r#"{"model": "m.onnx", "fp16": false, "run_name": "x", "deepspeed": null, "report_to": "none"}"#;
        fs::write(&path, text).unwrap();
        let (options, ignored) = JobSettings::open(&path).unwrap();
        let ignored: Vec<&String> = ignored.keys().collect();
        assert_eq!(ignored, ["fp16", "run_name", "deepspeed"]);
        let job = JobSettings::read(options).unwrap();
        assert_eq!(job.job.report_to, [ReportTo::None]);
        fs::write(&path, r#"{"neftune_noise_alpha": 5}"#).unwrap();
        let e = JobSettings::open(&path).unwrap_err().to_string();
        assert!(
            e.contains("`neftune_noise_alpha` = 5") && e.contains("job.json"),
            "{e}"
        );
    }

    #[test]
    fn a_misspelt_option_is_named_with_the_nearest() {
        let Value::Object(o) = json!({"learning_rat": 1e-4, "modle": "m.onnx"}) else {
            unreachable!()
        };
        let e = JobSettings::read(o).unwrap_err().to_string();
        assert!(
            e.contains("did you mean `learning_rate`") && e.contains("did you mean `model`"),
            "{e}"
        );
    }
}
