//! `rewrite train`.

use super::args::{PushArgs, TrainArgs};
use super::progress::Progress;
use super::{Ui, attach, compile_options, exists, open, usage};
use crate::adapters::folder::{WriteOptions, file};
use crate::adapters::head::{Head, HeadConfig, HeadType};
use crate::adapters::{AdapterStore, Meta, Setup};
use crate::api;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::ir::{DType, Fact};
use crate::options;
use crate::rewrite::passes::loss::Divisor;
use crate::runtime::io;
use crate::select::Interface;
use crate::text::Tokenizer;
use crate::train::watch::Watchers;
use crate::train::{
    AdapterSpecs, DataArguments, Dataset, Files, Job, Labels, Loaded, Mode, Output, Resume, Stop,
    Task, TrainData, Trainer, dataset_divisor, parse_loss, smoothed,
};
use serde_json::json;
use std::path::{Path, PathBuf};

/// The job: the command line over the job file.
struct Request {
    job: Job,
    model: PathBuf,
    output: PathBuf,
    force: bool,
}

fn request(cli: &mut TrainArgs, ui: &Ui) -> Result<Request> {
    let is_job = cli.model.extension().is_some_and(|e| e == "json");
    let folder = cli
        .model
        .parent()
        .filter(|_| is_job)
        .map_or_else(PathBuf::new, Path::to_path_buf);
    let mut options = if is_job {
        let mut file = Job::open(&cli.model)?;
        super::remote::job(&mut file, ui)?;
        file
    } else {
        serde_json::Map::new()
    };
    // What the file says is relative to the file.
    let own = options::take::<DataArguments>(&mut options);
    let mut data: DataArguments = options::read(own)?;
    data.beside(&folder);
    if let serde_json::Value::Object(fields) = json!(data) {
        options.extend(fields);
    }
    let flags = [
        &cli.job.given,
        &cli.data.given,
        &cli.collate.given,
        &cli.training.given,
    ];
    let named: Vec<String> = flags.iter().flat_map(|f| f.keys().cloned()).collect();
    options.extend(flags.into_iter().flat_map(Clone::clone));
    let mut job = Job::read(options)?;
    // What the file says is relative to the file; what a flag says is relative to where we are.
    let place = |field: &str, text: &str| {
        if named.iter().any(|n| n == field) {
            PathBuf::from(text)
        } else {
            folder.join(text)
        }
    };
    if cli.select.interface.is_none() {
        cli.select.interface = job.job.interface.as_deref().map(|i| located(&folder, i));
    }
    if cli.select.adapters.is_empty() {
        cli.select.adapters = job.job.adapter.list();
    }
    if cli.select.active.is_none() {
        cli.select.active.clone_from(&job.job.active);
    }
    // The record of the run says what was trained, whoever said it.
    job.job.interface.clone_from(&cli.select.interface);
    job.job.active.clone_from(&cli.select.active);
    if matches!(job.job.adapter, AdapterSpecs::Default) && !cli.select.adapters.is_empty() {
        job.job.adapter = AdapterSpecs::Many(cli.select.adapters.clone());
    }
    if cli.exec.threads.is_none() {
        cli.exec.threads = job.job.threads;
    }
    if cli.exec.device == "cpu" {
        cli.exec.device.clone_from(&job.job.device);
    }
    let model = if is_job {
        let model = job
            .job
            .model
            .as_deref()
            .ok_or_else(|| usage("the job names no model", "\"model\": \"model.onnx\""))?;
        place("model", model)
    } else {
        job.job.model = Some(cli.model.display().to_string());
        cli.model.clone()
    };
    super::generate::within_positions(&mut job.data.max_seq_length, &model, ui);
    let output = job
        .job
        .output_dir
        .as_deref()
        .ok_or_else(|| usage("no output folder was given", "--output-dir out"))?;
    let output = place("output_dir", output);
    job.job.tokenizer = job
        .job
        .tokenizer
        .as_deref()
        .map(|t| place("tokenizer", t).display().to_string());
    if job.data.data.is_none() {
        return Err(usage("no data was given", "--data train.jsonl"));
    }
    Ok(Request {
        force: cli.force || job.job.overwrite_output_dir,
        job,
        model,
        output,
    })
}

/// A file of the job's folder, or a name.
pub(super) fn located(folder: &Path, name: &str) -> String {
    let path = folder.join(name);
    if path.exists() {
        path.display().to_string()
    } else {
        name.to_owned()
    }
}

/// A model that is ready to be trained, with what its folder needs.
struct Prepared {
    model: Verified,
    names: Vec<String>,
    interface: Interface,
    meta: Meta,
    vocabulary: Option<i64>,
    head: Option<Head>,
}

/// `rows`: whether the data is rows of the job's task.
fn prepare(cli: &TrainArgs, request: &Request, rows: bool, ui: &Ui) -> Result<Prepared> {
    let mut base = open(&request.model, ui)?;
    let interface = attach::interface(cli.select.interface.as_deref(), &request.model, &base)?;
    let vocabulary = vocabulary(&base);
    if rows {
        let usual = request.job.job.loss.is_none();
        fits(&base, request.job.data.task, usual)?;
    }
    if request.job.collate.packing {
        base = api::pack(base, &interface)?;
    }
    let adapted = attach::attached(
        base,
        &request.model,
        &cli.select,
        request.job.training.seed,
        true,
        ui,
    )?;
    let names: Vec<String> = api::manifest(&adapted.model)?
        .into_iter()
        .map(|a| a.0)
        .collect();
    let meta = api::meta(&request.model, &interface, &adapted.selection);
    Ok(Prepared {
        model: adapted.model,
        names,
        interface,
        meta,
        vocabulary,
        head: None,
    })
}

/// The file of tensors, if the data is one batch of them, which need not be of any task.
fn one_batch(job: &Job) -> Result<Option<PathBuf>> {
    let files = job.data.data.as_ref().map_or_else(Vec::new, Files::list);
    Ok(match &*files {
        [one] if is_safetensors(one)? => Some(one.clone()),
        _ => None,
    })
}

/// That a graph can do a task.
pub(super) fn fits(model: &Verified, task: Task, usual_loss: bool) -> Result<()> {
    let g = &model.model().graph;
    let refused = |what: String, help: &str| {
        let d = Diagnostic::error("task", what);
        Err(Error::new(ErrorKind::Train, d.help(help)))
    };
    let decodes = g
        .find(contract::DECODER_INPUT_IDS)
        .is_some_and(|v| g.is_input(v));
    if task == Task::Seq2seq && !decodes {
        return refused(
            "the task seq2seq needs an encoder-decoder: the graph has no input `decoder_input_ids`"
                .into(),
            "a decoder learns completions with the task causal-lm: columns `prompt` and `completion`",
        );
    }
    if task == Task::CausalLm && usual_loss && decodes {
        return refused(
            "the task causal-lm needs a decoder; this graph is an encoder-decoder: it has the input `decoder_input_ids`".into(),
            "--task seq2seq",
        );
    }
    let output = crate::rewrite::passes::logits::logits(g, None).ok();
    let Some(output) = output.filter(|_| task == Task::CausalLm && usual_loss) else {
        return Ok(());
    };
    let fact = model.fact(output);
    let width = fact.and_then(|f| f.size(-1));
    let foreign = g.name_of(output) != contract::LOGITS
        && width.zip(vocabulary(model)).is_some_and(|(w, v)| w != v);
    let whole = fact.and_then(Fact::rank).is_some_and(|r| r < 3);
    if foreign || whole {
        let shape = fact
            .and_then(|f| f.dims.as_ref())
            .map_or_else(String::new, |dims| {
                let dims: Vec<String> = dims.iter().map(ToString::to_string).collect();
                format!("[{}]", dims.join(", "))
            });
        let words = vocabulary(model).map_or_else(|| "vocabulary".to_owned(), |v| v.to_string());
        let what = format!(
            "the graph has no logits of tokens: its output `{}` is {shape}, expected [batch, tokens, {words}]",
            g.name_of(output)
        );
        return refused(
            what,
            "export the model with its language-model head, or choose another task: --task classification, regression, …",
        );
    }
    Ok(())
}

impl Prepared {
    /// The adapters' summary table.
    fn summary(&self) -> Result<String> {
        let setup = api::stacked(self.names.iter().cloned());
        Ok(api::summary(&self.model, &setup)?.table())
    }

    /// Writes the adapters into a folder.
    fn save(&self, store: &AdapterStore, folder: &Path, force: bool) -> Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        for name in &self.names {
            let at = folder.join(name);
            let saved = api::folder(
                &self.model,
                &store.of(name),
                name,
                &self.interface,
                self.meta.clone(),
            )?;
            let options = WriteOptions {
                force,
                ..WriteOptions::default()
            };
            saved.write(&at, options)?;
            if let Some(head) = self.head.as_ref().filter(|h| h.name == *name) {
                head.write(&at, store, &self.meta, force)?;
            }
            written.push(at);
        }
        Ok(written)
    }
}

pub(super) fn train(args: &TrainArgs, ui: &Ui) -> Result<()> {
    let mut cli = args.clone();
    let request = request(&mut cli, ui)?;
    let job = &request.job;
    let one_batch = one_batch(job)?;
    let mut prepared = prepare(&cli, &request, one_batch.is_none(), ui)?;
    let resumes = matches!(
        job.training.resume_from_checkpoint,
        Some(Resume::Last(true) | Resume::From(_))
    );
    check_outputs(&request.output, &prepared.names, request.force || resumes)?;
    let mut progress = Progress::new(ui);
    let trainer = if let Some(file) = &one_batch {
        if job.training.max_steps <= 0 {
            return Err(usage("one batch needs a number of steps", "--max-steps 5"));
        }
        let mut trainer = trainer(&cli, &request, &prepared, Divisor::Labels, ui)?;
        trainer.train_on(&io::read(file)?.plain(), &mut |e| {
            progress.event(e);
            Ok(())
        })?;
        trainer
    } else {
        let tokenizer = tokenizer(&request)?;
        let seed = job.training.data_seed.unwrap_or(job.training.seed);
        let vocabulary = prepared.vocabulary;
        let data = DataArguments {
            task_count: task_count(cli.select.active.as_deref()),
            ..job.data.clone()
        };
        let loaded = data.load(tokenizer.as_ref(), vocabulary, seed, &mut |line| {
            ui.note(&line);
        })?;
        prepared.give_head(&request, &loaded)?;
        let mut trainer = trainer(&cli, &request, &prepared, dataset_divisor(), ui)?;
        if job.job.dry_run {
            return dry_run(&mut trainer, &request, &loaded, ui);
        }
        on_data(&mut trainer, &request, &prepared, &loaded, &mut progress)?;
        trainer
    };
    progress.finish();
    let written = prepared.save(&trainer.store(), &request.output, true)?;
    if job.job.push_to_hub {
        push(job, &request.output, &written, ui)?;
    }
    let report = json!({
        "adapters": written, "steps": trainer.steps(), "first_loss": progress.first, "last_loss": progress.last,
        "losses": progress.losses, "tokens_per_second": progress.rate(), "best_step": trainer.progress().best_step,
        "best_metric": trainer.progress().best_metric,
    });
    ui.result(&report, || {
        let mut text = progress.summary(trainer.steps());
        for folder in &written {
            text += &format!("\nwrote {}{}", folder.display(), std::path::MAIN_SEPARATOR);
        }
        text + "\n"
    })
}

/// Pushes the adapters, each to its repository: `hub_model_id`, or the name of the output folder; with the adapter's name behind it
/// where there are several.
fn push(job: &Job, output: &Path, written: &[PathBuf], ui: &Ui) -> Result<()> {
    let named = output.file_name().map(|n| n.to_string_lossy().into_owned());
    let Some(repo) = job.job.hub_model_id.clone().or(named) else {
        return Err(usage("no repository to push to", "--hub-model-id org/name"));
    };
    for folder in written {
        let name = folder.file_name().unwrap_or_default().to_string_lossy();
        let repo = if written.len() > 1 {
            format!("{repo}-{name}")
        } else {
            repo.clone()
        };
        let args = PushArgs {
            folder: folder.clone(),
            repo,
            create: true,
            private: job.job.hub_private_repo,
            ..PushArgs::default()
        };
        super::hub::push(&args, ui)?;
    }
    Ok(())
}

/// What is minimised, where the job does not say it.
fn usual_loss(task: Task) -> &'static str {
    match task {
        Task::CausalLm => "causal-lm",
        Task::Seq2seq => "seq2seq",
        Task::Classification => "classification",
        Task::Regression => "regression",
        Task::MultiLabel => "multi-label",
    }
}

fn trainer(
    cli: &TrainArgs,
    request: &Request,
    prepared: &Prepared,
    divisor: Divisor,
    ui: &Ui,
) -> Result<Trainer> {
    let job = &request.job;
    let name = job
        .job
        .loss
        .as_deref()
        .unwrap_or_else(|| usual_loss(job.data.task));
    let loss = smoothed(
        parse_loss(name, divisor),
        job.training.label_smoothing_factor,
    );
    let mode = if job.job.portable {
        Mode::Portable
    } else {
        Mode::Native
    };
    let mut options = compile_options(&cli.exec)?;
    if job.training.bf16 {
        options.precision = crate::runtime::cpu::gemm::Precision::Bf16;
    }
    let trainer = Trainer::new(
        prepared.model.clone(),
        &loss,
        job.training.clone(),
        mode,
        &options,
    )?;
    ui.note(&format!(
        "training {} parameters of {}",
        trainer.trainable(),
        prepared.names.join(", ")
    ));
    Ok(trainer)
}

impl Prepared {
    /// Adds a head for a task of whole examples, where the graph has none.
    fn give_head(&mut self, request: &Request, loaded: &Loaded) -> Result<()> {
        let task = request.job.data.task;
        let head_type = match task {
            Task::CausalLm | Task::Seq2seq => return Ok(()),
            Task::Classification | Task::Regression => HeadType::Classification,
            Task::MultiLabel => HeadType::MultilabelClassification,
        };
        let names = &loaded.report.label_names;
        let config = request.job.job.head.clone().unwrap_or_default();
        let num_labels = match loaded.train.get(0)?.labels {
            Labels::Values(v) => v.len(),
            _ if names.is_empty() => {
                let sets = [Some(&loaded.train), loaded.eval.as_ref()];
                let mut most = sets.into_iter().flatten().map(largest_class);
                most.try_fold(config.num_labels, |n, m| m.map(|m| n.max(m)))?
            }
            _ => names.len(),
        };
        if self.model.model().graph.find(contract::LOGITS).is_some() {
            return Ok(());
        }
        let ids = names
            .iter()
            .enumerate()
            .map(|(i, n)| (n.clone(), i as i64))
            .collect();
        let head = Head {
            name: self.names[0].clone(),
            config: HeadConfig {
                head_type,
                num_labels,
                label2id: (!names.is_empty()).then_some(ids),
                ..config
            },
            weights: None,
        };
        self.model = api::attach_head(
            self.model.clone(),
            head.clone(),
            request.job.training.seed,
            true,
        )?;
        self.head = Some(head);
        Ok(())
    }
}

/// How many tasks a setup chooses from by `task_ids`.
pub(super) fn task_count(active: Option<&str>) -> Option<usize> {
    let setup = active.and_then(|text| Setup::parse(text).ok())?;
    setup.multi_tasks().iter().map(|tasks| tasks.len()).min()
}

/// Number of classes that the data has.
fn largest_class(data: &Dataset) -> Result<usize> {
    let mut most = 0;
    for i in 0..data.len() {
        if let Labels::Class(c) = data.get(i)?.labels {
            most = most.max(usize::try_from(c).map_or(0, |c| c + 1));
        }
    }
    Ok(most)
}

fn train_data<'a>(request: &Request, loaded: &'a Loaded) -> TrainData<'a> {
    TrainData {
        train: &loaded.train,
        eval: loaded.eval.as_ref(),
        collate: request.job.collate,
        pad_id: loaded.pad_id,
        decoder_start: loaded.pad_id,
        max_length: loaded.max_length,
    }
}

/// Trains on the job's datasets.
fn on_data(
    trainer: &mut Trainer,
    request: &Request,
    prepared: &Prepared,
    loaded: &Loaded,
    progress: &mut Progress<'_>,
) -> Result<()> {
    let data = train_data(request, loaded);
    let save =
        |store: &AdapterStore, folder: &Path| prepared.save(store, folder, false).map(|_| ());
    let output = Output {
        folder: &request.output,
        save: &save,
    };
    trainer.check(&data)?;
    trainer.stop_on(super::interrupt::flag()?);
    let mut watchers = Watchers::open(
        &request.output,
        &request.job.job.report_to,
        json!(request.job),
    )?;
    watchers.describe(loaded.report.lines(), prepared.summary()?);
    let stop = trainer.train(&data, Some(&output), &mut |e| {
        progress.event(e);
        watchers.event(e)
    })?;
    watchers.close()?;
    if stop == Stop::Interrupted {
        let message = format!(
            "stopped after step {}; a checkpoint was written",
            trainer.steps()
        );
        let d = Diagnostic::error("interrupted", message);
        return Err(Error::new(ErrorKind::Train, d.help("go on with --resume")));
    }
    Ok(())
}

/// What the run would be, and what it would need.
fn dry_run(trainer: &mut Trainer, request: &Request, loaded: &Loaded, ui: &Ui) -> Result<()> {
    let data = train_data(request, loaded);
    let found = trainer.dry_run(&data)?;
    ui.result(&json!(found), || found.to_string())
}

fn check_outputs(output: &Path, names: &[String], force: bool) -> Result<()> {
    if output.exists() && !output.is_dir() {
        return Err(usage(
            format!("{} is not a folder", output.display()),
            "--output-dir takes a folder; it is made when it is missing",
        ));
    }
    let there = names
        .iter()
        .map(|n| output.join(n))
        .find(|f| f.join(file::CONFIG).exists());
    match there {
        Some(there) if !force => Err(exists(&there)),
        _ => Ok(()),
    }
}

/// Whether a file is safetensors: a header length, then a JSON object. JSON lines begin with the object.
fn is_safetensors(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let mut head = [0u8; 9];
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "cannot open the data", e))?;
    let read = std::io::Read::read(&mut std::io::BufReader::new(file), &mut head).unwrap_or(0);
    Ok(read == 9
        && head[8] == b'{'
        && u64::from_le_bytes(head[..8].try_into().unwrap_or_default()) < 1 << 32)
}

fn tokenizer(request: &Request) -> Result<Option<Tokenizer>> {
    let beside = request.model.with_file_name("tokenizer.json");
    match &request.job.job.tokenizer {
        Some(path) => Tokenizer::open(Path::new(path)).map(Some),
        None if beside.exists() => Tokenizer::open(&beside).map(Some),
        None => Ok(None),
    }
}

/// Rows of the table that `input_ids` looks up, if the graph has one.
pub(super) fn vocabulary(model: &Verified) -> Option<i64> {
    let g = &model.model().graph;
    let ids = g.find(contract::INPUT_IDS)?;
    g.uses(ids).into_iter().find_map(|u| {
        let table = g.input(u.node(), 0)?;
        let tensor = g
            .value(table)
            .tensor
            .as_ref()
            .filter(|t| t.dtype.is_float() || t.dtype == DType::Uint8)?;
        let looked_up = g.node(u.node()).op.is_onnx("Gather");
        looked_up
            .then(|| tensor.dims.first().map(|&d| d as i64))
            .flatten()
    })
}
