//! `rewrite hub`.

use super::args::{HubCommand, PullArgs, PushArgs, RepoType};
use super::{Ui, usage};
use crate::adapters::card::{Card, on_hub};
use crate::adapters::folder::{AdapterFolder, file};
use crate::adapters::head;
use crate::error::{Error, Result};
use crate::hub::{self, Hub, Kind, PushFile, PushOptions, Reference, Select, Source, Transfer};
use crate::options::fields;
use crate::train::TrainingArguments;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

/// What a training leaves beside its adapters.
const RUN: &str = "run.json";
const CARD: &str = "README.md";

pub(super) fn run(command: &HubCommand, ui: &Ui) -> Result<()> {
    match command {
        HubCommand::Pull(args) => pull(args, ui),
        HubCommand::Push(args) => push(args, ui),
    }
}

fn kind(reference: &mut Reference, given: Option<RepoType>) {
    match given {
        Some(RepoType::Model) => reference.kind = Kind::Model,
        Some(RepoType::Dataset) => reference.kind = Kind::Dataset,
        None => {}
    }
}

fn pull(args: &PullArgs, ui: &Ui) -> Result<()> {
    let mut reference = Reference::parse(&args.repo)?;
    kind(&mut reference, args.repo_type);
    if let Some(revision) = &args.revision {
        let checked = Reference::parse(&format!("{}@{revision}", reference.page()))?;
        reference = reference.at(&checked.revision);
    }
    let hub = Hub::from_env()?;
    if args.list {
        let listing = hub.list(&reference)?;
        return ui.result(&json!(listing), || {
            let line = |f: &hub::RemoteFile| {
                let size = f.size.map_or_else(|| "?".to_owned(), |s| s.to_string());
                format!("{size:>14}  {}\n", f.path)
            };
            listing.files.iter().map(line).collect()
        });
    }
    let mut select = Select {
        include: args.include.clone(),
        exclude: args.exclude.clone(),
    };
    // A path is a file, a pattern, or a folder.
    if let Some(path) = reference.path.take() {
        let listing = hub.list(&reference)?;
        let folder = format!("{path}/");
        let inside = listing.files.iter().any(|f| f.path.starts_with(&folder));
        select.include.push(if inside { folder } else { path });
    }
    let mut bar = Bar::new(ui);
    let pulled = hub.pull(&reference, &select, &mut |t| bar.show(t));
    bar.clear();
    let pulled = pulled?;
    let target = match &args.output {
        Some(folder) => {
            pulled.export(folder, args.force)?;
            folder.clone()
        }
        None => pulled.folder.clone(),
    };
    let mut report = json!(pulled);
    report["folder"] = target.display().to_string().into();
    ui.note(&format!("{} at commit {}", pulled.repo, pulled.commit));
    ui.result(&report, || {
        let path = |f: &hub::PulledFile| format!("{}\n", target.join(&f.path).display());
        pulled.files.iter().map(path).collect()
    })
}

pub(super) fn push(args: &PushArgs, ui: &Ui) -> Result<()> {
    let mut to = Reference::target(&args.repo)?;
    kind(&mut to, args.repo_type);
    let mut files = hub::folder(&args.folder)?;
    let adapter = files.iter().any(|f| f.path == file::CONFIG) && to.kind == Kind::Model;
    let there = files.iter().any(|f| f.path == CARD);
    if adapter
        && !args.no_card
        && (!there || args.overwrite_card)
        && let Some(card) = card(args, &to)?
    {
        files.retain(|f| f.path != CARD);
        files.push(PushFile {
            path: CARD.to_owned(),
            source: Source::Bytes(card.text().into_bytes()),
        });
    }
    if args.dry_run {
        return dry_run(&files, &to, ui);
    }
    let options = PushOptions {
        create: args.create,
        private: args.private,
        message: args.commit_message.clone().unwrap_or_else(|| {
            let what = if adapter { "adapter" } else { "folder" };
            format!("Upload {what} with onnx-graft")
        }),
        description: args.commit_description.clone().unwrap_or_default(),
        pull_request: args.create_pr,
    };
    let hub = Hub::from_env()?;
    let mut bar = Bar::new(ui);
    let pushed = hub.push(&to, &files, &options, &mut |t| bar.show(t));
    bar.clear();
    let pushed = pushed?;
    ui.result(&json!(pushed), || {
        let mut text = match &pushed.commit {
            None => format!("{} has everything already\n", pushed.url),
            Some(commit) => format!(
                "{}: {} files in commit {commit}\n",
                pushed.url,
                pushed.files.len()
            ),
        };
        if let Some(request) = &pushed.pull_request {
            text += &format!("pull request {request}\n");
        }
        text
    })
}

fn dry_run(files: &[PushFile], to: &Reference, ui: &Ui) -> Result<()> {
    let names: Vec<&str> = files.iter().map(|f| f.path.as_str()).collect();
    ui.note(&format!("{to} would get {}", names.join(", ")));
    let card = files.iter().find_map(|f| match &f.source {
        Source::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Source::File(_) => None,
    });
    ui.result(
        &json!({"repo": to.page(), "files": names, "card": card}),
        || card.clone().unwrap_or_default(),
    )
}

/// The card of an adapter folder; none of a folder of PEFT's, whose tools write their own.
fn card(args: &PushArgs, to: &Reference) -> Result<Option<Card>> {
    let read = AdapterFolder::read(&args.folder);
    let folder = match read {
        Ok(folder) => folder,
        Err(e) if e.findings().iter().any(|f| f.code == "peft") => return Ok(None),
        Err(e) => return Err(e),
    };
    let mut card = Card::new(&to.repo, &folder);
    card.head = args.folder.join(head::file::CONFIG).exists();
    if let Some(base) = &args.base_model {
        if !on_hub(base) {
            return Err(usage(
                format!("`{base}` cannot be a model on the Hub"),
                "--base-model ORG/NAME",
            ));
        }
        card.base_model = Some(base.clone());
    }
    card.datasets.clone_from(&args.dataset);
    card.tags.clone_from(&args.tag);
    card.languages.clone_from(&args.language);
    card.license.clone_from(&args.license);
    if let Some(run) = record(args)? {
        from_run(&mut card, &run);
    }
    Ok(Some(card))
}

/// What the training left.
fn record(args: &PushArgs) -> Result<Option<Value>> {
    let beside = args.folder.join("..").join(RUN);
    let path = match &args.run {
        Some(path) => path.as_path(),
        None if beside.exists() => beside.as_path(),
        None => return Ok(None),
    };
    let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "cannot be read", e))?;
    serde_json::from_str(&text).map(Some).map_err(|e| {
        let d = crate::diag::Diagnostic::error("run-record", e.to_string());
        let d = d.at(path.display().to_string());
        Error::new(
            crate::error::ErrorKind::Train,
            d.help("--run takes the run.json that a training wrote"),
        )
    })
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

/// A bar for each file.
struct Bar {
    bar: ProgressBar,
    file: String,
}

impl Bar {
    fn new(ui: &Ui) -> Bar {
        let bar = if ui.progress() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = "{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec}  {eta} left";
        if let Ok(style) = ProgressStyle::with_template(style) {
            bar.set_style(style);
        }
        Bar {
            bar,
            file: String::new(),
        }
    }

    fn show(&mut self, t: Transfer<'_>) {
        if self.file != t.file {
            t.file.clone_into(&mut self.file);
            self.bar.set_message(self.file.clone());
            self.bar.set_length(t.total.unwrap_or(0));
            self.bar.reset();
        }
        self.bar.set_position(t.done);
    }

    fn clear(&self) {
        self.bar.finish_and_clear();
    }
}
