//! What is asked of a job, and how it is understood.

use super::check::usage;
use super::event::{Event, OnEvent};
use super::model::ModelSettings;
use super::origin;
use super::settings::{JobFile, JobSettings};
use crate::adapters::{identifiers, spec};
use crate::error::Result;
use crate::generate::GenerationArguments;
use crate::options::{self, OptionField, Options};
use crate::text::is_template_file;
use crate::train::{CollateArguments, DataArguments, TrainingArguments};
use serde_json::{Map, Value};
use std::path::{Path, PathBuf};

/// What is asked of a job: a model or a job file, and settings over it.
///
/// There is one rule for relative paths: what a file says is relative to the file, what is set by name is relative to `here`. A text
/// that may also be a name (an interface, an adapter) is a path where there is such a file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Request {
    /// The ONNX file, or a job file (`.json`).
    pub file: PathBuf,
    /// Settings by name, as a job file has them. They stand over those of the file.
    pub flags: Map<String, Value>,
    /// The folder that paths among the flags are relative to; the current one where it is empty.
    pub here: PathBuf,
}

/// What the settings are for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Purpose {
    Train,
    Evaluate,
    Generate,
}

/// A request that is understood: every path is relative to the current folder.
pub(super) struct Resolved {
    /// The ONNX file.
    pub(super) model: PathBuf,
    /// All other settings by name.
    pub(super) settings: Map<String, Value>,
    /// The settings of the data as they were given: with references to the Hub.
    pub(super) origin: Map<String, Value>,
}

impl Request {
    /// A request for a model or a job file.
    pub fn new(file: impl Into<PathBuf>) -> Self {
        Request {
            file: file.into(),
            ..Request::default()
        }
    }

    /// Adds a setting by its name in a job file.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Self {
        self.flags.insert(name.to_owned(), value.into());
        self
    }

    /// The settings of the job file, if the request names one, and the names of those that change nothing.
    pub(super) fn job_file(&self) -> Result<Option<JobFile>> {
        let ends = |with: &str| self.file.extension().is_some_and(|e| e == with);
        if ["yaml", "yml", "toml"].into_iter().any(ends) {
            return Err(usage(
                format!(
                    "a job is one JSON object, and {} is none",
                    self.file.display()
                ),
                "write the same keys as JSON; schemas/job.md lists them",
            ));
        }
        let is_job = ends("json");
        is_job
            .then(|| JobSettings::open(&self.here.join(&self.file)))
            .transpose()
    }

    /// Puts flags over the file, fetches what the Hub has, and places every path.
    pub(super) fn resolve(&self, purpose: Purpose, events: OnEvent<'_>) -> Result<Resolved> {
        let on_hub = self.file.to_str().filter(|t| t.starts_with("hub:"));
        let file = self.here.join(&self.file);
        let folder = file.parent().map_or_else(PathBuf::new, Path::to_path_buf);
        let of_file = self.job_file()?;
        let is_job = of_file.is_some();
        let (mut settings, mut ignored) = of_file.unwrap_or_default();
        let mut flags = self.flags.clone();
        rename(&mut flags)?;
        if purpose == Purpose::Train {
            ignored.extend(super::ignored::take(&mut flags)?);
            for line in super::ignored::notes(&ignored) {
                events(&Event::Note(line))?;
            }
        }
        purpose.narrow(&mut settings)?;
        if let Some(reference) = on_hub {
            settings.insert("model".to_owned(), reference.into());
        }
        place(&mut settings, &folder);
        place(&mut flags, &self.here);
        if purpose == Purpose::Evaluate && flags.contains_key("data") {
            // The job's own evaluation data stands back.
            settings.shift_remove("eval_data");
            settings.shift_remove("eval_split");
        }
        let text_field = super::ignored::text_field(&mut flags);
        settings.extend(flags);
        if let Some(field) = text_field {
            super::ignored::put_text_field(&mut settings, &field)?;
        }
        if purpose == Purpose::Train {
            keep_revisions(&mut settings, events)?;
        }
        let data = ["data", "eval_data"].into_iter();
        let mut origin: Map<String, Value> = data
            .filter_map(|n| Some((n.to_owned(), settings.get(n)?.clone())))
            .collect();
        // What a flag replaces is not pulled.
        super::remote::fetch(&mut settings, events)?;
        for (name, given) in &mut origin {
            origin::pin(given, settings.get(name).unwrap_or(&Value::Null));
        }
        let named = settings.shift_remove("model");
        let model = match named.as_ref().and_then(Value::as_str) {
            _ if !is_job && on_hub.is_none() => file,
            Some(model) => PathBuf::from(model),
            None => return Err(usage("the job names no model", "\"model\": \"model.onnx\"")),
        };
        Ok(Resolved {
            model,
            settings,
            origin,
        })
    }
}

/// A run that goes on reads what it began with, whatever its branches on the Hub hold by now.
fn keep_revisions(settings: &mut Map<String, Value>, events: OnEvent<'_>) -> Result<()> {
    let Some(began) = origin::begun(settings) else {
        return Ok(());
    };
    let mut pinned = Vec::new();
    for name in ["model", "data", "eval_data"] {
        if let Some(given) = settings.get_mut(name) {
            pinned.extend(origin::pin_as(given, &began[name]));
        }
    }
    pinned.dedup();
    if pinned.is_empty() {
        return Ok(());
    }
    let list = pinned.join(", ");
    events(&Event::Note(format!(
        "the run goes on with what it began with: {list}; `hub:NAME@main` would name what is there now"
    )))
}

impl Purpose {
    /// Leaves the settings of a job file that a purpose reads: adapters and steps are for training.
    fn narrow(self, settings: &mut Map<String, Value>) -> Result<()> {
        if self == Purpose::Train {
            return Ok(());
        }
        let mut all = std::mem::take(settings);
        if self == Purpose::Evaluate {
            let training = options::take::<TrainingArguments>(&mut all.clone());
            let training: TrainingArguments = options::read(training)?;
            // Rows are set apart for evaluation as in the run.
            let seed = training.data_seed.unwrap_or(training.seed);
            *settings = options::take::<DataArguments>(&mut all);
            settings.insert("data_seed".to_owned(), seed.into());
        }
        for name in ["model", "variant", "interface", "tokenizer"] {
            settings.extend(all.shift_remove_entry(name));
        }
        Ok(())
    }
}

impl Resolved {
    /// The settings of the model.
    pub(super) fn model_settings(&self) -> Result<ModelSettings> {
        self.read()
    }

    /// The settings of one kind; settings may be of several kinds.
    pub(super) fn read<T: Options>(&self) -> Result<T> {
        options::read(options::take::<T>(&mut self.settings.clone()))
    }

    /// Refuses names that none of these kinds of settings has.
    pub(super) fn check_names(&self, kinds: &[Vec<OptionField>]) -> Result<()> {
        let known: Vec<&str> = kinds.iter().flatten().map(|f| f.name.as_str()).collect();
        let names = self.settings.keys();
        let unknown = names.filter(|name| !known.contains(&name.as_str()));
        options::unknown(unknown, &known).map_or(Ok(()), Err)
    }
}

/// Gives settings their own names in place of other ones.
fn rename(settings: &mut Map<String, Value>) -> Result<()> {
    options::rename::<DataArguments>(settings)?;
    options::rename::<CollateArguments>(settings)?;
    options::rename::<TrainingArguments>(settings)?;
    options::rename::<GenerationArguments>(settings)
}

/// What the text of a setting stands for.
#[derive(Clone, Copy)]
enum Text {
    /// A file or folder.
    Path,
    /// A file, or a name where there is none.
    PathOrName,
    /// `SPEC` or `NAME=SPEC`, where SPEC may be a file or folder.
    Adapter,
    /// A template, or the file of one.
    Template,
}

/// The settings that may name files.
const PLACED: [(&str, Text); 14] = [
    ("model", Text::Path),
    ("output_dir", Text::Path),
    ("tokenizer", Text::Path),
    ("data", Text::Path),
    ("eval_data", Text::Path),
    ("cache_dir", Text::Path),
    ("resume_from_checkpoint", Text::Path),
    ("predictions", Text::Path),
    ("prompts", Text::Path),
    ("interface", Text::PathOrName),
    ("adapter", Text::Adapter),
    ("fusion", Text::Adapter),
    ("active", Text::PathOrName),
    ("chat_template", Text::Template),
];

/// Whether a setting names files.
pub(crate) fn is_path(setting: &str) -> bool {
    PLACED.iter().any(|(name, _)| *name == setting)
}

/// Makes the paths among settings relative to a folder.
fn place(settings: &mut Map<String, Value>, folder: &Path) {
    if folder.as_os_str().is_empty() {
        return;
    }
    for (name, text) in PLACED {
        if let Some(value) = settings.get_mut(name) {
            text.place(value, folder);
        }
    }
}

impl Text {
    fn place(self, value: &mut Value, folder: &Path) {
        match value {
            Value::String(text) => {
                if let Some(placed) = self.placed(text, folder) {
                    *text = placed;
                }
            }
            Value::Array(list) => list.iter_mut().for_each(|v| self.place(v, folder)),
            Value::Object(map) => map.values_mut().for_each(|v| self.place(v, folder)),
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
        }
    }

    fn placed(self, text: &str, folder: &Path) -> Option<String> {
        if text.starts_with("hub:") || text.contains("=hub:") {
            return None;
        }
        let path = folder.join(text);
        let shown = |path: &Path| path.display().to_string();
        match self {
            Text::Path => Some(shown(&path)),
            Text::PathOrName => path.exists().then(|| shown(&path)),
            Text::Template => is_template_file(text).then(|| shown(&path)),
            Text::Adapter => {
                let (name, spec) = spec::split(text);
                let path = folder.join(spec);
                // An identifier is a method, whatever stands beside the file.
                if identifiers().any(|i| i == spec) || !path.exists() {
                    return None;
                }
                Some(match name {
                    Some(name) => format!("{name}={}", path.display()),
                    None => shown(&path),
                })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::fs;

    fn resolve(request: &Request, purpose: Purpose) -> Resolved {
        request.resolve(purpose, &mut |_| Ok(())).unwrap()
    }

    /// A folder with a job file, an interface and an adapter.
    fn desk(job: &Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("job.json"), job.to_string()).unwrap();
        fs::write(dir.path().join("own.json"), "{}").unwrap();
        fs::create_dir(dir.path().join("saved")).unwrap();
        fs::create_dir(dir.path().join("lora")).unwrap();
        dir
    }

    #[test]
    fn there_is_one_rule_for_paths() {
        let dir = desk(&json!({
            "model": "m.onnx", "interface": "own.json", "adapter": {"a": "saved", "b": "lora"}, "data": ["x.jsonl", "/y.jsonl"],
            "chat_template": "{{ x }}", "output_dir": "out", "resume_from_checkpoint": true
        }));
        let at = |name: &str| json!(dir.path().join(name).display().to_string());
        let request = Request::new(dir.path().join("job.json"))
            .set("eval_data", "here.jsonl")
            .set("chat_template", "t.jinja");
        let found = resolve(&request, Purpose::Train);
        assert_eq!(found.model, dir.path().join("m.onnx"));
        let s = &found.settings;
        assert_eq!(s["interface"], at("own.json"));
        assert_eq!(s["adapter"], json!({"a": at("saved"), "b": "lora"}));
        assert_eq!(s["data"], json!([at("x.jsonl"), "/y.jsonl"]));
        assert_eq!(s["output_dir"], at("out"));
        assert_eq!(s["resume_from_checkpoint"], true);
        assert_eq!(
            (&s["eval_data"], &s["chat_template"]),
            (&json!("here.jsonl"), &json!("t.jinja"))
        );
        // The same words as flags are relative to where the caller is.
        let mut request = Request::new("m.onnx")
            .set("interface", "own.json")
            .set("adapter", json!(["n=saved", "lora[r=4]"]))
            .set("data", "x.jsonl");
        request.here = dir.path().to_owned();
        let found = resolve(&request, Purpose::Train);
        assert_eq!(found.model, dir.path().join("m.onnx"));
        let named = format!("n={}", dir.path().join("saved").display());
        assert_eq!(found.settings["interface"], at("own.json"));
        assert_eq!(found.settings["adapter"], json!([named, "lora[r=4]"]));
        assert_eq!(found.settings["data"], at("x.jsonl"));
    }

    #[test]
    fn an_evaluation_reads_what_is_not_for_training() {
        let dir = desk(&json!({
            "model": "m.onnx", "interface": "qwen3", "adapter": "lora", "data": "x.jsonl", "eval_split": 0.5, "seed": 7, "threads": 3
        }));
        let request = Request::new(dir.path().join("job.json"));
        let found = resolve(&request, Purpose::Evaluate).settings;
        let names: Vec<&str> = found.keys().map(String::as_str).collect();
        assert_eq!(names, ["data", "eval_split", "data_seed", "interface"]);
        assert_eq!(found["data_seed"], 7);
        let other = request.set("data", "other.jsonl");
        let found = resolve(&other, Purpose::Evaluate).settings;
        assert!(!found.contains_key("eval_split"));
        let found = resolve(&other, Purpose::Generate).settings;
        assert!(!found.contains_key("data_seed") && found["interface"] == "qwen3");
    }

    #[test]
    fn names_that_no_setting_has_are_refused() {
        let request = Request::new("m.onnx")
            .set("interface", "qwen3")
            .set("adaptr", "lora");
        let found = resolve(&request, Purpose::Generate);
        let e = found.check_names(&[options::fields::<ModelSettings>()]);
        let e = e.unwrap_err().to_string();
        assert!(
            e.contains("did you mean `adapter`?") && !e.contains("interface"),
            "{e}"
        );
    }

    #[test]
    fn flags_stand_over_the_file_under_any_of_their_names() {
        let dir = desk(&json!({"model": "m.onnx", "max_seq_length": 9}));
        let file = dir.path().join("job.json");
        let request = Request::new(&file)
            .set("max_length", 5)
            .set("model", "n.onnx");
        let found = resolve(&request, Purpose::Train);
        assert_eq!(found.settings["max_seq_length"], 5);
        assert_eq!(found.model, Path::new("n.onnx"));
        fs::write(&file, "{}").unwrap();
        let missing = Request::new(&file).resolve(Purpose::Train, &mut |_| Ok(()));
        let e = missing.err().unwrap().to_string();
        assert!(e.contains("names no model"), "{e}");
    }
}
