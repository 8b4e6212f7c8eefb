//! `rewrite train`.

use super::args::TrainArgs;
use super::{Ui, attach, compile_options, exists, open, usage};
use crate::adapters::folder::{WriteOptions, file};
use crate::api;
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::DType;
use crate::rewrite::passes::loss::Divisor;
use crate::runtime::{Feeds, io};
use crate::text::Tokenizer;
use crate::train::{
    Dataset, Mode, ReadOptions, StepReport, Trainer, TrainingArguments, dataset_divisor, parse_loss,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Keys of a job file that are not training arguments.
const JOB: [&str; 8] = [
    "model",
    "interface",
    "adapter",
    "data",
    "tokenizer",
    "loss",
    "output_dir",
    "threads",
];

/// A job: what the command line says, over what the job file says.
struct Job {
    model: PathBuf,
    data: PathBuf,
    tokenizer: Option<PathBuf>,
    loss: String,
    output: PathBuf,
    args: TrainingArguments,
    seed: u64,
}

fn job(cli: &mut TrainArgs) -> Result<Job> {
    let mut file = Map::new();
    let mut base = PathBuf::new();
    let is_job = cli.model.extension().is_some_and(|e| e == "json");
    if is_job {
        let text = std::fs::read_to_string(&cli.model)
            .map_err(|e| Error::io(&cli.model, "cannot read the job", e))?;
        let at = |m: String| {
            Error::new(
                ErrorKind::Train,
                Diagnostic::error("job", m).at(cli.model.display().to_string()),
            )
        };
        file = serde_json::from_str(&text).map_err(|e| at(e.to_string()))?;
        base = cli
            .model
            .parent()
            .map_or_else(PathBuf::new, Path::to_path_buf);
    }
    let text = |v: Option<Value>| v.and_then(|v| v.as_str().map(str::to_owned));
    let path = |v: Option<Value>| text(v).map(|p| base.join(p));
    let mut taken: Map<String, Value> = JOB
        .iter()
        .filter_map(|k| Some(((*k).to_owned(), file.shift_remove(*k)?)))
        .collect();
    let model = if is_job {
        path(taken.remove("model"))
            .ok_or_else(|| usage("the job names no model", "\"model\": \"model.onnx\""))?
    } else {
        cli.model.clone()
    };
    if cli.select.interface.is_none() {
        cli.select.interface = text(taken.remove("interface"));
    }
    if cli.select.adapters.is_empty() {
        cli.select.adapters = match taken.remove("adapter") {
            Some(Value::Array(list)) => list
                .iter()
                .filter_map(|v| v.as_str().map(str::to_owned))
                .collect(),
            Some(Value::String(s)) => vec![s],
            _ => Vec::new(),
        };
    }
    file.extend(cli.training.given.clone());
    let args = arguments(file)?;
    let data = cli
        .data
        .clone()
        .or_else(|| path(taken.remove("data")))
        .ok_or_else(|| usage("no data was given", "--data train.jsonl"))?;
    let output = cli
        .output_dir
        .clone()
        .or_else(|| path(taken.remove("output_dir")))
        .ok_or_else(|| usage("no output folder was given", "--output-dir out"))?;
    Ok(Job {
        data,
        output,
        tokenizer: cli
            .tokenizer
            .clone()
            .or_else(|| path(taken.remove("tokenizer"))),
        loss: cli
            .loss
            .clone()
            .or_else(|| text(taken.remove("loss")))
            .unwrap_or_else(|| "causal-lm".to_owned()),
        seed: args.seed,
        args,
        model,
    })
}

fn arguments(fields: Map<String, Value>) -> Result<TrainingArguments> {
    serde_json::from_value(Value::Object(fields)).map_err(|e| {
        let message = e.to_string();
        let unknown = message
            .strip_prefix("unknown field `")
            .and_then(|t| t.split('`').next())
            .map(str::to_owned);
        let known: Vec<String> = match json!(TrainingArguments::default()) {
            Value::Object(o) => o
                .keys()
                .cloned()
                .chain(JOB.iter().map(ToString::to_string))
                .collect(),
            _ => Vec::new(),
        };
        let d = Diagnostic::error("job-field", message);
        let near =
            unknown.and_then(|u| nearest(&u, known.iter().map(String::as_str)).map(str::to_owned));
        Error::new(
            ErrorKind::Train,
            if let Some(n) = near {
                d.help(format!("did you mean `{n}`?"))
            } else {
                d
            },
        )
    })
}

pub(super) fn train(args: &TrainArgs, ui: &Ui) -> Result<()> {
    let mut cli = args.clone();
    let job = job(&mut cli)?;
    let base = open(&job.model, ui)?;
    let interface = attach::interface(cli.select.interface.as_deref(), &job.model, &base)?;
    let vocabulary = vocabulary(&base);
    let adapted = attach::attached(base, &job.model, &cli.select, job.seed, true, ui)?;
    let names: Vec<String> = api::manifest(&adapted.model)?
        .into_iter()
        .map(|a| a.0)
        .collect();
    check_outputs(&job.output, &names, cli.force)?;
    let meta = api::meta(&job.model, &interface, &adapted.selection);
    let one_batch = is_safetensors(&job.data)?;
    let mode = if cli.portable {
        Mode::Portable
    } else {
        Mode::Native
    };
    let loss = parse_loss(
        &job.loss,
        if one_batch {
            Divisor::Labels
        } else {
            dataset_divisor()
        },
    );
    let steps_known = job.args.max_steps;
    let batch_size = job.args.per_device_train_batch_size * job.args.gradient_accumulation_steps;
    let model = adapted.model.clone();
    let mut trainer = Trainer::new(
        adapted.model,
        &loss,
        job.args.clone(),
        mode,
        &compile_options(&cli.exec)?,
    )?;
    ui.note(&format!(
        "training {} parameters of {}",
        trainer.trainable(),
        names.join(", ")
    ));
    let mut watch = Watch::new(ui, job.args.logging_steps);
    if one_batch {
        if steps_known <= 0 {
            return Err(usage("one batch needs a number of steps", "--max-steps 5"));
        }
        watch.total(steps_known as u64);
        let feeds = batch(&job.data)?;
        trainer.train_on(&feeds, &mut |r| watch.step(r))?;
    } else {
        let tokenizer = tokenizer(&job)?;
        let options = ReadOptions {
            tokenizer: tokenizer.as_ref(),
            max_length: job.args.max_seq_length,
            vocab: vocabulary,
        };
        let data = Dataset::read_jsonl(&job.data, &options)?;
        if data.truncated() > 0 {
            ui.note(&format!(
                "{} of {} rows were cut to {} tokens",
                data.truncated(),
                data.len(),
                job.args.max_seq_length
            ));
        }
        let batches = data.len().div_ceil(job.args.per_device_train_batch_size);
        watch.total(job.args.total_steps(batches));
        ui.note(&format!("{} rows, {batch_size} a step", data.len()));
        let pad = tokenizer.as_ref().and_then(Tokenizer::pad_id).unwrap_or(0);
        trainer.train(&data, pad, &mut |r| watch.step(r))?;
    }
    watch.finish();
    let store = trainer.store();
    let mut written = Vec::new();
    for name in &names {
        let folder = job.output.join(name);
        let saved = api::folder(&model, &store.of(name), name, &interface, meta.clone())?;
        saved.write(
            &folder,
            WriteOptions {
                force: cli.force,
                ..WriteOptions::default()
            },
        )?;
        written.push(folder);
    }
    let report = json!({
        "adapters": written, "steps": trainer.steps(), "first_loss": watch.first, "last_loss": watch.last,
        "losses": watch.losses, "tokens_per_second": watch.rate(),
    });
    ui.result(&report, || {
        let mut text = format!(
            "{} steps: loss {:.4} → {:.4}",
            trainer.steps(),
            watch.first,
            watch.last
        );
        if watch.tokens > 0 {
            text += &format!(", {:.0} tokens/s", watch.rate());
        }
        for folder in &written {
            text += &format!("\nwrote {}{}", folder.display(), std::path::MAIN_SEPARATOR);
        }
        text + "\n"
    })
}

fn check_outputs(output: &Path, names: &[String], force: bool) -> Result<()> {
    if output.exists() && !output.is_dir() {
        return Err(usage(
            format!("{} is not a folder", output.display()),
            "--output-dir takes a folder; it is made when it is missing",
        ));
    }
    match names
        .iter()
        .map(|n| output.join(n))
        .find(|f| f.join(file::CONFIG).exists())
    {
        Some(there) if !force => Err(exists(&there)),
        _ => Ok(()),
    }
}

/// Whether a file is safetensors: a header length, then a JSON object. JSON lines begin with the object.
fn is_safetensors(path: &Path) -> Result<bool> {
    let mut head = [0u8; 9];
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "cannot open the data", e))?;
    let read = std::io::Read::read(&mut std::io::BufReader::new(file), &mut head).unwrap_or(0);
    Ok(read == 9
        && head[8] == b'{'
        && u64::from_le_bytes(head[..8].try_into().unwrap_or_default()) < 1 << 32)
}

/// One batch; names may carry the prefix `input/`.
fn batch(path: &Path) -> Result<Feeds> {
    Ok(io::read(path)?.plain())
}

fn tokenizer(job: &Job) -> Result<Option<Tokenizer>> {
    let beside = job.model.with_file_name("tokenizer.json");
    match &job.tokenizer {
        Some(path) => Tokenizer::open(path).map(Some),
        None if beside.exists() => Tokenizer::open(&beside).map(Some),
        None => Ok(None),
    }
}

/// Rows of the table that `input_ids` looks up, if the graph has one.
fn vocabulary(model: &Verified) -> Option<i64> {
    let g = &model.model().graph;
    let ids = g.find("input_ids")?;
    g.uses(ids).into_iter().find_map(|u| {
        let table = g.input(u.node(), 0)?;
        let tensor = g
            .value(table)
            .tensor
            .as_ref()
            .filter(|t| t.dtype.is_float() || t.dtype == DType::Uint8)?;
        g.node(u.node())
            .op
            .is_onnx("Gather")
            .then(|| tensor.dims.first().map(|&d| d as i64))
            .flatten()
    })
}

/// Shows progress.
struct Watch<'a> {
    ui: &'a Ui,
    bar: ProgressBar,
    every: u64,
    total: u64,
    started: Instant,
    tokens: usize,
    first: f64,
    last: f64,
    losses: Vec<f64>,
}

impl<'a> Watch<'a> {
    fn new(ui: &'a Ui, every: u64) -> Self {
        let bar = if ui.progress() {
            ProgressBar::new(0)
        } else {
            ProgressBar::hidden()
        };
        let style = ProgressStyle::with_template("{bar:30} {pos}/{len} steps  {msg}  {eta} left");
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Watch {
            ui,
            bar,
            every,
            total: 0,
            started: Instant::now(),
            tokens: 0,
            first: f64::NAN,
            last: f64::NAN,
            losses: Vec::new(),
        }
    }

    fn total(&mut self, steps: u64) {
        self.total = steps;
        self.bar.set_length(steps);
    }

    fn rate(&self) -> f64 {
        self.tokens as f64 / self.started.elapsed().as_secs_f64().max(1e-9)
    }

    fn step(&mut self, r: &StepReport) {
        if r.step == 1 {
            self.first = r.loss;
        }
        self.last = r.loss;
        self.losses.push(r.loss);
        self.tokens += r.tokens;
        let rate = if self.tokens > 0 {
            format!("  {:.0} tokens/s", self.rate())
        } else {
            String::new()
        };
        self.bar.set_position(r.step);
        self.bar.set_message(format!(
            "loss {:.4}  lr {:.2e}{rate}",
            r.loss, r.learning_rate
        ));
        let due = self.every > 0
            && (r.step.is_multiple_of(self.every) || r.step == self.total || r.step == 1);
        if due && !self.ui.quiet && !self.ui.progress() {
            self.ui.note(&format!(
                "step {}/{}  loss {:.4}  lr {:.3e}  grad norm {:.3}{rate}",
                r.step, self.total, r.loss, r.learning_rate, r.grad_norm
            ));
        }
    }

    fn finish(&self) {
        self.bar.finish_and_clear();
    }
}
