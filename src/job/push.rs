//! A folder is pushed to the Hub, an adapter with a model card that is made from its training.

use super::check::usage;
use super::event::{Event, OnEvent, warn};
use super::origin::Origin;
use crate::adapters::card::{Card, on_hub};
use crate::adapters::folder::file;
use crate::adapters::heads;
use crate::adapters::peft::is_peft;
use crate::adapters::spec::read_folder;
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::hub::{self, Hub, Kind, PushFile, PushOptions, Pushed, Reference, Source};
use crate::options::fields;
use crate::train::TrainingArguments;
use crate::train::watch::file::{GRAPH, RUN};
use serde_json::Value;
use std::path::{Path, PathBuf};

/// Name of the model card in its folder.
const CARD: &str = "README.md";

/// A folder that is pushed.
#[derive(Clone, Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "settings of a command")]
pub(crate) struct Push {
    /// The folder; hidden files stay here.
    pub(crate) folder: PathBuf,
    /// ORG/NAME, with @BRANCH as needed.
    pub(crate) repo: String,
    /// What the repository holds.
    pub(crate) kind: Option<Kind>,
    /// Makes the repository if there is none.
    pub(crate) create: bool,
    /// Makes it a private one.
    pub(crate) private: bool,
    /// First line of the commit's message.
    pub(crate) commit_message: Option<String>,
    /// The rest of it.
    pub(crate) commit_description: Option<String>,
    /// Opens a pull request instead of changing the branch.
    pub(crate) create_pr: bool,
    /// What the training left for the card; run.json beside the folder without it.
    pub(crate) run: Option<PathBuf>,
    /// Card: the base model on the Hub.
    pub(crate) base_model: Option<String>,
    /// Card: datasets on the Hub.
    pub(crate) datasets: Vec<String>,
    /// Card: further tags.
    pub(crate) tags: Vec<String>,
    /// Card: languages, as codes.
    pub(crate) languages: Vec<String>,
    /// Card: the licence, as the Hub names it.
    pub(crate) license: Option<String>,
    /// Writes a new card even where there is one.
    pub(crate) overwrite_card: bool,
    /// Writes no card.
    pub(crate) no_card: bool,
}

/// What a push would send.
pub(crate) struct Parcel {
    /// The repository.
    pub(crate) to: Reference,
    /// The files, the card among them.
    pub(crate) files: Vec<PushFile>,
    /// What a person should know of the card.
    pub(crate) notes: Vec<Diagnostic>,
    /// Whether the folder is an adapter's.
    adapter: bool,
}

impl Parcel {
    /// The text of the card, where one was made.
    pub(crate) fn card(&self) -> Option<String> {
        self.files.iter().find_map(|f| match &f.source {
            Source::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            Source::File(_) => None,
        })
    }
}

impl Push {
    /// Collects the files and makes the card.
    pub(crate) fn parcel(&self) -> Result<Parcel> {
        let mut to = Reference::target(&self.repo)?;
        if let Some(kind) = self.kind {
            to.kind = kind;
        }
        let mut files = hub::folder(&self.folder)?;
        let adapter = files.iter().any(|f| f.path == file::CONFIG) && to.kind == Kind::Model;
        let there = files.iter().any(|f| f.path == CARD);
        let mut notes = Vec::new();
        if adapter
            && !self.no_card
            && (!there || self.overwrite_card)
            && let Some(mut card) = self.card(&to, &mut notes)?
        {
            let picture = self.picture(&card);
            let there = files.iter().any(|f| f.path == GRAPH);
            card.picture = (there || picture.is_some()).then(|| GRAPH.to_owned());
            files.extend(picture.filter(|_| !there).map(|file| PushFile {
                path: GRAPH.to_owned(),
                source: Source::File(file),
            }));
            files.retain(|f| f.path != CARD);
            files.push(PushFile {
                path: CARD.to_owned(),
                source: Source::Bytes(card.text().into_bytes()),
            });
        }
        Ok(Parcel {
            to,
            files,
            notes,
            adapter,
        })
    }

    /// Pushes the folder as one commit.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<Pushed> {
        let parcel = self.parcel()?;
        warn(events, &parcel.notes)?;
        let options = PushOptions {
            create: self.create,
            private: self.private,
            message: self.commit_message.clone().unwrap_or_else(|| {
                let what = if parcel.adapter { "adapter" } else { "folder" };
                format!("Upload {what} with onnx-graft")
            }),
            description: self.commit_description.clone().unwrap_or_default(),
            pull_request: self.create_pr,
        };
        let mut heard = Ok(());
        let hub = Hub::from_env()?;
        let pushed = hub.push(&parcel.to, &parcel.files, &options, &mut |t| {
            if heard.is_ok() {
                heard = events(&Event::transfer(t));
            }
        })?;
        heard.map(|()| pushed)
    }

    /// The card of an adapter folder; none of a folder of PEFT's that says what this program does not understand.
    fn card(&self, to: &Reference, notes: &mut Vec<Diagnostic>) -> Result<Option<Card>> {
        let peft = is_peft(&self.folder);
        let folder = match read_folder(&self.folder) {
            Ok(folder) => folder,
            Err(_) if peft => return Ok(None),
            Err(e) => return Err(e),
        };
        let mut card = Card::new(&to.repo, &folder);
        card.peft = peft;
        card.model = Origin::read(&folder.meta).map(|o| o.words());
        card.head = self.folder.join(heads::file::CONFIG).exists();
        if let Some(base) = &self.base_model {
            if !on_hub(base) {
                return Err(usage(
                    format!("`{base}` cannot be a model on the Hub"),
                    "--base-model ORG/NAME",
                ));
            }
            card.base_model = Some(base.clone());
        }
        card.datasets.clone_from(&self.datasets);
        card.tags.clone_from(&self.tags);
        card.languages.clone_from(&self.languages);
        card.license.clone_from(&self.license);
        if let Some((path, run)) = self.record()? {
            let made = run["made"].as_object().into_iter().flatten();
            let content = folder.content();
            if made.map(|m| m.1).any(|hash| *hash == *content) {
                from_run(&mut card, &run);
            } else {
                self.other_run(&path, &folder.name, notes)?;
            }
        }
        Ok(Some(card))
    }

    /// The picture that the run of a card left beside its record.
    fn picture(&self, card: &Card) -> Option<PathBuf> {
        // Without a summary the card is of no run.
        card.summary.as_ref()?;
        let record = self.run.clone();
        let record = record.unwrap_or_else(|| self.folder.join("..").join(RUN));
        let file = record.with_file_name(GRAPH);
        file.is_file().then_some(file)
    }

    /// A record of a run that did not make the adapter: refused where it was named, and left alone where it only stands there.
    fn other_run(&self, path: &Path, name: &str, notes: &mut Vec<Diagnostic>) -> Result<()> {
        let message = format!(
            "{} is not of the run that made `{name}`: no adapter that it names has these weights",
            path.display()
        );
        if self.run.is_some() {
            let d = Diagnostic::error("run-record", message);
            return Err(Error::new(
                ErrorKind::Train,
                d.help("--run takes the run.json of the training that wrote this folder; leave it out for a card without figures"),
            ));
        }
        notes.push(
            Diagnostic::warning("run-record", message)
                .help("the card has no figures; --run FILE names the record of its training"),
        );
        Ok(())
    }

    /// What a training left, and the file that says it.
    fn record(&self) -> Result<Option<(PathBuf, Value)>> {
        let beside = self.folder.join("..").join(RUN);
        let path = match &self.run {
            Some(path) => path.clone(),
            None if beside.exists() => beside,
            None => return Ok(None),
        };
        let text = disk::text(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
        let parsed = serde_json::from_str(&text);
        parsed.map(|run| Some((path.clone(), run))).map_err(|e| {
            let d = Diagnostic::error("run-record", e.to_string());
            let d = d.at(path.display().to_string());
            Error::new(
                ErrorKind::Train,
                d.help("--run takes the run.json that a training wrote"),
            )
        })
    }
}

/// Results and arguments of a training. Paths of this machine are not for a card.
fn from_run(card: &mut Card, run: &Value) {
    let job = &run["job"];
    for field in fields::<TrainingArguments>() {
        let value = &job[&field.name];
        if value.is_null() || matches!(value, Value::Array(a) if a.is_empty()) {
            continue;
        }
        let always = ALWAYS.contains(&field.name.as_str());
        let local = LOCAL.contains(&field.name.as_str());
        if !local && (always || *value != field.default) {
            let text = value
                .as_str()
                .map_or_else(|| value.to_string(), str::to_owned);
            card.arguments.push((field.name, text));
        }
    }
    let end = &run["end"];
    for (name, key) in [("steps", "steps"), ("training loss", "train_loss")] {
        if let Some(x) = end[key].as_f64() {
            card.arguments.push((name.to_owned(), x.to_string()));
        }
    }
    let best = end["best_step"].as_u64();
    let evaluations = run["evaluations"].as_array();
    let shown = evaluations.and_then(|list| {
        let of_best = list
            .iter()
            .rev()
            .find(|e| best.is_some() && e["step"].as_u64() == best);
        of_best.or(list.last())
    });
    if let Some(metrics) = shown.and_then(|e| e["metrics"].as_object()) {
        let values = metrics
            .iter()
            .filter_map(|(k, v)| Some((k.clone(), v.as_f64()?)));
        card.results = values.collect();
    }
    card.summary = run["adapters"].as_str().map(str::to_owned);
    for text in texts(&job["data"]) {
        let reference = text
            .starts_with("hub:")
            .then(|| Reference::parse(text).ok());
        if let Some(r) = reference.flatten().filter(|r| r.kind == Kind::Dataset)
            && !card.datasets.contains(&r.repo)
        {
            card.datasets.push(r.repo);
        }
    }
}

/// Arguments that a card says even where they are the default.
const ALWAYS: [&str; 6] = [
    "learning_rate",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "num_train_epochs",
    "lr_scheduler_type",
    "seed",
];
/// Arguments that hold for one machine only.
const LOCAL: [&str; 1] = ["resume_from_checkpoint"];

fn texts(value: &Value) -> Vec<&str> {
    match value {
        Value::String(s) => vec![s],
        Value::Array(list) => list.iter().flat_map(texts).collect(),
        Value::Object(map) => map.values().flat_map(texts).collect(),
        Value::Null | Value::Bool(_) | Value::Number(_) => Vec::new(),
    }
}
