//! A training job: a model, adapters and data become adapter folders.

use super::attach::{AdapterSettings, Attaching, has_head};
use super::check::{
    Asked, fits, head_fits, head_type_fits, usage, with_finite_weights, write_file,
};
use super::event::{Event, OnEvent, note, notes, warn};
use super::files::ModelFiles;
use super::folder::RunFolder;
use super::head::{choose_head, label_count};
use super::look::Looker;
use super::origin::Origin;
use super::report::{Tally, TrainReport};
use super::request::{Purpose, Request};
use super::saving::SaveFormat;
use super::settings::JobSettings;
use crate::adapters::base::Base;
use crate::adapters::folder::{remove, write_setup};
use crate::adapters::heads::{Head, SavedHead};
use crate::adapters::{AdapterStore, Setup, choice, peft, spec};
use crate::analyze::logits::vocabulary;
use crate::api::{self, Adapted};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::picture::Picture;
use crate::rewrite::passes::loss::Divisor;
use crate::runtime::io;
use crate::runtime::{Feeds, Precision};
use crate::text::{CHAT_TEMPLATE, Tokenizer};
use crate::train::watch::{self, Watchers};
use crate::train::{
    Answer, CollateArguments, DataArguments, DecoderStart, Files, Loaded, Masking, Output,
    PaddingSide, Resume, Stop, Task, TrainData, Trainer, dataset_divisor, parse_loss, smoothed,
};
use serde_json::{Map, Value};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A training job: what `rewrite train` does, as a call.
///
/// A job file is one JSON object; `schemas/job.md` explains its settings. Each may also be set by name, over the file.
///
/// ```
/// use onnx_graft::job::{Event, Job};
///
/// # let out = tempfile::tempdir().unwrap();
/// # let out = out.path().join("out");
/// let report = Job::open("fixtures/jobs/gsm8k-qwen3.json")?
///     .set("output_dir", out.to_str().unwrap())
///     .set("max_steps", 1)
///     .run(&mut |event| {
///         if let Event::Note(line) = event {
///             eprintln!("{line}");
///         }
///         Ok(())
///     })?;
/// assert_eq!(report.steps, 1);
/// assert_eq!(report.adapters, [out.join("qwen-math-adapter")]);
/// assert!(out.join("qwen-math-adapter/adapter_config.json").exists());
/// # Ok::<(), onnx_graft::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Job {
    request: Request,
    stop: Option<Arc<AtomicBool>>,
}

impl Job {
    /// The job of a file. The name of an ONNX file makes a job for it that has no other settings yet.
    ///
    /// # Errors
    /// A job file that cannot be read, or holds no job; everything that is wrong with it is said.
    pub fn open(file: impl Into<PathBuf>) -> Result<Job> {
        let job = Job::new(Request::new(file));
        job.request.job_file()?;
        Ok(job)
    }

    /// The job of a request.
    pub fn new(request: Request) -> Job {
        Job {
            request,
            stop: None,
        }
    }

    /// Puts a setting over the file, by its name there.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Job {
        self.request = self.request.set(name, value);
        self
    }

    /// Ends the training after the current step, with a checkpoint, once the flag is set.
    #[must_use]
    pub fn stop_on(mut self, flag: Arc<AtomicBool>) -> Job {
        self.stop = Some(flag);
        self
    }

    /// Trains, and writes the adapters. With the setting `dry_run`, says what the run would be.
    ///
    /// # Errors
    /// Settings that do not fit, a model or data that cannot be read, a graph that cannot do the task, outputs that are there already,
    /// a training that fails or is stopped, and what `events` returns.
    pub fn run(&self, events: OnEvent<'_>) -> Result<TrainReport> {
        let run = Run::resolve(&self.request, events)?;
        run.train(self.stop.as_ref(), events)
    }
}

/// A job that is understood.
struct Run {
    settings: JobSettings,
    /// The settings of the data as they were given.
    origin: Map<String, Value>,
    files: ModelFiles,
    adapters: AdapterSettings,
    output: PathBuf,
}

/// What is being trained, and what its folders need.
struct Subject {
    adapted: Adapted,
    names: Vec<String>,
    vocabulary: Option<i64>,
    decoder_start: DecoderStart,
    masking: Option<Masking>,
    collate: CollateArguments,
    tokenizer: Option<Tokenizer>,
    /// The chat template that each adapter was trained with, by name; it goes into the folder.
    templates: BTreeMap<String, String>,
    /// Settings that the run itself decided, for the record.
    decided: Map<String, Value>,
    /// The format that results are written in.
    format: SaveFormat,
}

impl Run {
    fn resolve(request: &Request, events: OnEvent<'_>) -> Result<Run> {
        let resolved = request.resolve(Purpose::Train, events)?;
        let mut all = resolved.settings.clone();
        // Not in a file: `bf16` says it there.
        all.shift_remove("dtype");
        let mut settings = JobSettings::read(all)?;
        let origin = resolved.origin.clone();
        settings.model = resolved.model_settings()?;
        settings.job.model = Some(resolved.model.display().to_string());
        let files = ModelFiles::locate(&resolved.model, settings.model.variant.as_deref())?;
        settings.data.positions = files.within_positions(settings.data.max_seq_length, events)?;
        let Some(output) = settings.job.output_dir.as_deref().map(PathBuf::from) else {
            return Err(usage("no output folder was given", "--output-dir out"));
        };
        if settings.data.data.is_none() {
            return Err(usage("no data was given", "--data train.jsonl"));
        }
        if settings.job.push_to_hub && cfg!(not(feature = "hub")) {
            let d = Diagnostic::error("hub-missing", "`push_to_hub` is set");
            return Err(Error::new(
                ErrorKind::Unsupported,
                d.help("build with the feature `hub`"),
            ));
        }
        Ok(Run {
            adapters: settings.model.adapters(),
            settings,
            origin,
            files,
            output,
        })
    }

    fn train(&self, stop: Option<&Arc<AtomicBool>>, events: OnEvent<'_>) -> Result<TrainReport> {
        if self.settings.job.push_to_hub && !self.settings.job.dry_run {
            self.check_push()?;
        }
        let one_batch = self.one_batch()?;
        let mut subject = self.prepare(one_batch.is_none(), events)?;
        let training = &self.settings.training;
        let names = subject.names.clone();
        let resume = training.resume_from_checkpoint.as_ref();
        let replace = self.settings.job.overwrite_output_dir;
        let folder = RunFolder::new(&self.output, &names, resume, replace);
        if !self.settings.job.dry_run {
            folder.check()?;
        }
        let (mut tally, mut watchers) = (Tally::new(), None);
        // Until the adapters are written.
        let claim;
        let trainer = if let Some(file) = &one_batch {
            if training.max_steps <= 0 {
                return Err(usage("one batch needs a number of steps", "--max-steps 5"));
            }
            let mut trainer = self.trainer(&subject, Divisor::Labels, events)?;
            claim = folder.claim()?;
            trainer.train_on(&io::read(file)?.plain(), &mut |e| {
                tally.event(e);
                events(&Event::Training(e.clone()))
            })?;
            trainer
        } else {
            let loaded = self.load(&mut subject, events)?;
            self.one_class(&subject, &loaded, events)?;
            self.check_head(&subject, &loaded)?;
            self.give_head(&mut subject, &loaded)?;
            let model = &subject.adapted.model;
            subject.decoder_start = self.files.decoder_start(model, loaded.pad_id, events)?;
            let mut trainer = self.trainer(&subject, dataset_divisor(), events)?;
            if self.settings.job.dry_run {
                let found = trainer.dry_run(&Self::train_data(&subject, &loaded))?;
                return Ok(TrainReport {
                    dry_run: Some(found),
                    ..tally.report()
                });
            }
            if let Some(stop) = stop {
                trainer.stop_on(Arc::clone(stop));
            }
            trainer.check(&Self::train_data(&subject, &loaded))?;
            claim = folder.claim()?;
            let written = self.on_data(&mut trainer, &subject, &loaded, &mut tally, events)?;
            watchers = Some((written, loaded));
            trainer
        };
        let mut report = tally.report();
        report.steps = trainer.steps();
        report.best_step = trainer.progress().best_step;
        report.best_metric = trainer.progress().best_metric;
        let to = (&*self.output, subject.format);
        report.adapters = subject.save(&trainer.store(), to, true)?;
        if let Some((watchers, loaded)) = watchers {
            self.conclude(watchers, &loaded, (&subject, &trainer), &mut report)?;
        }
        drop(claim);
        if self.settings.job.push_to_hub {
            self.push(&report.adapters, events)?;
        }
        Ok(report)
    }

    /// Writes down what the run made, with a look at what it learned.
    fn conclude(
        &self,
        mut watchers: Watchers,
        loaded: &Loaded,
        (subject, trainer): (&Subject, &Trainer),
        report: &mut TrainReport,
    ) -> Result<()> {
        for name in &subject.names {
            let made = subject.adapted.folder(name, &trainer.store().of(name))?;
            watchers.made(name, made.content());
        }
        // What is not AdapterHub's is known by what it reads as.
        let others = report.adapters.iter().filter(|f| peft::is_peft(f));
        for folder in others {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            watchers.made(&name, spec::read_folder(folder)?.content());
        }
        report.report = watchers.report();
        let wanted = report.report.is_some() && self.settings.job.report_samples > 0;
        // The adapters are written: whatever comes of this, they are there.
        if wanted && !report.losses.is_empty() {
            let looker = self.looker(subject, loaded, trainer.given()?);
            watchers.looked(looker.look(watchers.runtime()));
        }
        watchers.close()
    }

    /// The file of tensors, if the data is one batch of them, which need not be of any task.
    fn one_batch(&self) -> Result<Option<PathBuf>> {
        let data = self.settings.data.data.as_ref();
        let file = data.and_then(Files::single);
        Ok(match file {
            Some(one) if is_safetensors(&one)? => Some(one),
            _ => None,
        })
    }

    /// `rows`: whether the data is rows of the job's task.
    fn prepare(&self, rows: bool, events: OnEvent<'_>) -> Result<Subject> {
        let settings = &self.settings;
        let path = &self.files.path;
        let mut base = self.files.open(events)?;
        let interface = self.adapters.interface(path, &base)?;
        let vocabulary = vocabulary(&base.model().graph);
        if rows {
            let (task, usual) = (settings.data.task, settings.job.loss.is_none());
            fits(&base, task, usual)?;
            let class = self.files.class();
            if task == Task::CausalLm && usual && class.ends_with("ForMaskedLM") {
                let found = format!(
                    "a {class} sees the words that it is to tell: the task causal-lm is not for it"
                );
                let d = Diagnostic::error("task", found);
                return Err(Error::new(ErrorKind::Train, d.help("--task masked-lm")));
            }
        }
        if settings.collate.packing {
            base = api::pack(base, &interface)?;
        }
        let seed = settings.training.seed;
        let how = Attaching {
            seed,
            training: true,
            train_head: settings.job.train_head,
            ..Attaching::default()
        };
        let adapted = self
            .adapters
            .attach_by(&interface, base, path, how, events)?;
        if rows && settings.job.loss.is_none() {
            head_type_fits(&adapted.model, settings.data.task)?;
        }
        let names = adapted.manifest()?.into_iter().map(|a| a.0);
        let subject = Subject {
            format: settings.job.format,
            names: names.collect(),
            decoder_start: DecoderStart::default(),
            masking: None,
            collate: self.settings.collate,
            tokenizer: None,
            templates: BTreeMap::new(),
            decided: Map::new(),
            adapted,
            vocabulary,
        };
        subject.check_format(events)?;
        Ok(subject)
    }

    fn load(&self, subject: &mut Subject, events: OnEvent<'_>) -> Result<Loaded> {
        let settings = &self.settings;
        let named = settings.model.tokenizer.as_deref();
        let tokenizer = self.files.tokenizer(named, &self.adapters.adapters)?;
        let model = &subject.adapted.model;
        let foreign = tokenizer
            .as_ref()
            .and_then(|t| self.files.foreign(t, model));
        warn(events, &foreign)?;
        let side = tokenizer.as_ref().and_then(Tokenizer::pads_left);
        let side = side.map(|left| {
            if left {
                PaddingSide::Left
            } else {
                PaddingSide::Right
            }
        });
        subject.collate.padding_side = subject.collate.padding_side.or(side);
        let seed = settings
            .training
            .data_seed
            .unwrap_or(settings.training.seed);
        let label_names = match settings.data.label_names.clone() {
            None if settings.data.task.has_classes() => self.known_classes(subject)?,
            given => given,
        };
        let data = DataArguments {
            label_names,
            choice: choice(subject.adapted.model.model())?,
            chat_date: settings.data.chat_date.clone().or_else(|| self.kept_date()),
            ..settings.data.clone()
        };
        let loaded = notes(events, |say| {
            data.load(tokenizer.as_ref(), subject.vocabulary, seed, say)
        })?;
        subject.masking = Masking::of(&data, tokenizer.as_ref(), subject.vocabulary, seed)?;
        if tokenizer.is_none() {
            let line = "no tokenizer: rows are token ids".to_owned();
            events(&Event::Detail(line))?;
        }
        for (what, read) in [
            ("train", Some(&loaded.report.data)),
            ("evaluate", loaded.report.eval_data.as_ref()),
        ] {
            for file in read.into_iter().flat_map(|r| &r.files) {
                events(&Event::Detail(format!("{what}: {file}")))?;
            }
        }
        for line in loaded.report.lines() {
            events(&Event::Detail(line))?;
        }
        let date = loaded.chat_date.clone();
        let date = date.map(|d| ("chat_date".to_owned(), Value::String(d)));
        subject.decided.extend(date);
        let trained = settings.training.train_adapters.as_ref();
        let kept = self.adapters.templates();
        for name in &subject.names {
            let trained = trained.is_none_or(|only| only.contains(name));
            let own = || kept.get(name).cloned();
            let template = loaded
                .chat_template
                .clone()
                .filter(|_| trained)
                .or_else(own);
            subject
                .templates
                .extend(template.map(|t| (name.clone(), t)));
        }
        let all = loaded.train.len();
        for i in 0..settings.job.show_examples.min(all) {
            let example = loaded.train.get(i)?;
            let text = example.shown(tokenizer.as_ref(), &loaded.report.label_names);
            note(events, format!("example {} of {all}:\n{text}", i + 1))?;
        }
        subject.tokenizer = tokenizer;
        Ok(loaded)
    }

    /// The classes that the head knows: those of a saved one, else those of the graph's own, unless they are placeholders.
    fn known_classes(&self, subject: &Subject) -> Result<Option<Vec<String>>> {
        if let Some(names) = api::classes(&subject.adapted.model)? {
            return Ok(Some(names));
        }
        let own = has_head(&subject.adapted.model).then(|| self.files.classes());
        let named = |names: &Vec<String>| names.iter().any(|n| !n.starts_with("LABEL_"));
        Ok(own.flatten().filter(named))
    }

    /// The date that the chat template had in the run that this one goes on with.
    fn kept_date(&self) -> Option<String> {
        let from = match &self.settings.training.resume_from_checkpoint {
            Some(Resume::Last(true)) => self.output.clone(),
            Some(Resume::From(checkpoint)) => Path::new(checkpoint).parent()?.to_owned(),
            Some(Resume::Last(false)) | None => return None,
        };
        let text = disk::own::text(from.join(watch::file::RUN)).ok()?;
        let run: Value = serde_json::from_str(&text).ok()?;
        run["job"]["chat_date"].as_str().map(str::to_owned)
    }

    /// Refuses data of one class where the classes come from the data, and says it where they do not; also of other labels that are all
    /// the same.
    fn one_class(&self, subject: &Subject, loaded: &Loaded, events: OnEvent<'_>) -> Result<()> {
        let (task, read) = (self.settings.data.task, &loaded.report.data);
        let Some(first) = read.first.as_ref().filter(|_| !read.mixed) else {
            return Ok(());
        };
        let names = &loaded.report.label_names;
        let class = |class: &i64| {
            let named = usize::try_from(*class).ok().and_then(|c| names.get(c));
            named.map_or_else(|| class.to_string(), |n| format!("`{n}`"))
        };
        let number = |bits: &Vec<u32>| {
            let each = bits.iter().map(|b| f32::from_bits(*b).to_string());
            each.collect::<Vec<_>>().join(", ")
        };
        let n = read.examples;
        let message = match (task, first) {
            (Task::Classification, Answer::Class(c)) => {
                format!("all {n} examples are of one class, {}", class(c))
            }
            (Task::TokenClassification, Answer::Class(c)) => {
                format!("all {} tags are of one class, {}", read.labels, class(c))
            }
            (Task::Regression, Answer::Values(v)) if n > 1 => {
                format!("all {n} targets are {}", number(v))
            }
            (Task::MultiLabel, Answer::Values(v)) if n > 1 => {
                format!("all {n} examples have the same labels: {}", number(v))
            }
            (_, Answer::Class(_) | Answer::Values(_)) => return Ok(()),
        };
        let headless = !has_head(&subject.adapted.model);
        if task == Task::Classification && headless && self.settings.data.label_names.is_none() {
            let d = Diagnostic::error("data-one-class", message);
            return Err(Error::new(ErrorKind::Train, d.help("give examples of every class; where more are to come, name the classes: --label-names")));
        }
        let d = Diagnostic::warning("data-one-class", message);
        warn(
            events,
            &[d.help("the model learns to answer this whatever it is given")],
        )
    }

    /// Refuses a head of the graph's that is for another task, or has other classes than the data.
    fn check_head(&self, subject: &Subject, loaded: &Loaded) -> Result<()> {
        let (model, task) = (&subject.adapted.model, self.settings.data.task);
        if self.settings.job.loss.is_some() || !has_head(model) {
            return Ok(());
        }
        let names = &loaded.report.label_names;
        let sets = [Some(&loaded.train), loaded.eval.as_ref()];
        let sets: Vec<_> = sets.into_iter().flatten().collect();
        let asked = Asked {
            task,
            labels: label_count(&sets, &[])?,
            names,
        };
        head_fits(model, &asked)
    }

    /// Adds a head for a task of whole examples, where the graph has none.
    fn give_head(&self, subject: &mut Subject, loaded: &Loaded) -> Result<()> {
        let settings = &self.settings;
        let names = &loaded.report.label_names;
        let graph = &subject.adapted.model.model().graph;
        let width = crate::analyze::logits::logits(graph, None).ok();
        let width = width.and_then(|v| subject.adapted.model.fact(v)?.size(-1));
        let width = width.and_then(|n| usize::try_from(n).ok());
        if let Some(SavedHead::Static(head)) = subject.adapted.heads.last_mut() {
            head.name_labels(names, width.filter(|_| settings.data.task.has_classes()));
        }
        let config = settings.job.head.clone().unwrap_or_default();
        let model = &subject.adapted.model;
        // The children of a `Parallel` have one each.
        let block = subject.adapted.setup.headed().cloned();
        let owners = match &block {
            Some(block) => block.children().iter().map(Setup::last).collect(),
            None => vec![subject.names.last().map_or("", String::as_str)],
        };
        let (task, base) = (settings.data.task, self.files.head_base());
        let head =
            |name: &&str| choose_head(model, base.clone(), name, task, config.clone(), loaded);
        let heads: Option<Vec<Head>> = owners.iter().map(head).collect::<Result<_>>()?;
        let Some(heads) = heads else {
            return Ok(());
        };
        let seed = settings.training.seed;
        subject.adapted.model = api::attach_heads(model.clone(), heads.clone(), block, seed, true)?;
        let heads = heads.into_iter().map(SavedHead::Flexible);
        subject.adapted.heads.extend(heads);
        Ok(())
    }

    fn trainer(&self, subject: &Subject, divisor: Divisor, events: OnEvent<'_>) -> Result<Trainer> {
        let JobSettings {
            job,
            model,
            data,
            training,
            ..
        } = &self.settings;
        let name = job.loss.as_deref().unwrap_or_else(|| data.task.name());
        let loss = smoothed(parse_loss(name, divisor), training.label_smoothing_factor);
        let mut options = model.compile_options()?;
        options.cache_size = self.files.cache_size();
        if training.bf16 {
            options.precision = Precision::Bf16;
        }
        let adapted = &subject.adapted;
        let graph = adapted.model.clone();
        let compiled = || Trainer::new(graph, &loss, training.clone(), model.mode(), &options);
        let trainer = if job.dry_run {
            compiled()?
        } else {
            with_finite_weights(adapted, compiled)?
        };
        let names = trainer.store().trained().join(", ");
        let count = trainer.trainable();
        note(events, format!("training {count} parameters of {names}"))?;
        Ok(trainer)
    }

    fn train_data<'a>(subject: &Subject, loaded: &'a Loaded) -> TrainData<'a> {
        TrainData {
            train: &loaded.train,
            eval: loaded.eval.as_ref(),
            collate: subject.collate,
            pad_id: loaded.pad_id,
            decoder_start: subject.decoder_start,
            masking: subject.masking,
            max_length: loaded.max_length,
        }
    }

    fn looker<'a>(&'a self, subject: &'a Subject, loaded: &'a Loaded, given: Feeds) -> Looker<'a> {
        Looker {
            model: &subject.adapted.model,
            selection: &subject.adapted.selection,
            files: &self.files,
            settings: &self.settings,
            tokenizer: subject.tokenizer.as_ref(),
            loaded,
            decoder_start: subject.decoder_start,
            masking: subject.masking,
            given,
        }
    }

    /// Trains on the job's datasets. What writes the run down is still open.
    fn on_data(
        &self,
        trainer: &mut Trainer,
        subject: &Subject,
        loaded: &Loaded,
        tally: &mut Tally,
        events: OnEvent<'_>,
    ) -> Result<Watchers> {
        let data = Self::train_data(subject, loaded);
        let save = |store: &AdapterStore, folder: &Path| {
            // What a run goes on from is AdapterHub's, whatever its results are.
            let to = (folder, SaveFormat::Adapterhub);
            subject.save(store, to, false).map(|_| ())
        };
        let base = Base::recorded(&subject.adapted.meta.extra).to_string();
        let configs = subject.adapted.manifest()?;
        let configs = configs.into_iter().map(|(n, c)| (n, c.to_dict()));
        let output = Output {
            folder: &self.output,
            base: &base,
            adapters: &configs.collect(),
            save: &save,
        };
        events(&Event::Stoppable)?;
        let report_to = &self.settings.job.report_to;
        let away = crate::train::ReportTo::elsewhere(report_to);
        if !away.is_empty() {
            let message = format!("`report_to`: nothing is sent to {}", away.join(", "));
            let d = Diagnostic::warning("report-to", message)
                .help("the run is written down in the output folder: jsonl, html, tensorboard");
            warn(events, &[d])?;
        }
        let first = !self.output.join(watch::file::LOG).exists();
        let mut watchers = Watchers::open(&self.output, report_to, self.described(subject))?;
        watchers.describe(loaded.report.lines(), subject.summary(&trainer.store())?);
        watchers.name(self.files.called(), subject.names.clone());
        watchers.picture(self.picture(subject, &trainer.store())?);
        let done = trainer.train(&data, Some(&output), &mut |e| {
            tally.event(e);
            events(&Event::Training(e.clone()))?;
            watchers.event(e)
        });
        let stop = match done {
            Ok(stop) => stop,
            Err(e) => {
                if first && trainer.steps() == 0 {
                    // No step was made, here or before: the folder holds no run.
                    drop(watchers);
                    remove(&self.output, &[watch::file::LOG])?;
                }
                return Err(e);
            }
        };
        if stop == Stop::Interrupted {
            watchers.close()?;
            let message = format!(
                "stopped after step {}; a checkpoint was written",
                trainer.steps()
            );
            let d = Diagnostic::error("interrupted", message);
            return Err(Error::new(ErrorKind::Train, d.help("go on with --resume")));
        }
        Ok(watchers)
    }

    /// The model with what is trained in it, for the report.
    fn picture(&self, subject: &Subject, store: &AdapterStore) -> Result<String> {
        let adapted = &subject.adapted;
        let picture = Picture::of(&adapted.model, Some(&adapted.selection))?.training(store);
        let name = self.files.path.file_name().map(|n| n.to_string_lossy());
        Ok(picture.titled(&name.unwrap_or_default()).element())
    }

    /// The settings for the record: the model and data on the Hub by their names there, each with its commit.
    fn described(&self, subject: &Subject) -> Value {
        let mut file = self.settings.to_file();
        if let Value::Object(options) = &mut file {
            let model = Origin::of(&self.files.path).map(|o| o.model().into());
            options.extend(model.map(|m: Value| ("model".to_owned(), m)));
            options.extend(self.origin.clone());
            options.extend(subject.decided.clone());
        }
        file
    }

    /// Pushes the adapters, each to its repository: `hub_model_id`, or the name of the output folder; with the adapter's name behind it
    /// where there are several.
    #[cfg(feature = "hub")]
    fn push(&self, written: &[PathBuf], events: OnEvent<'_>) -> Result<()> {
        let job = &self.settings.job;
        let repo = self.push_to()?;
        for folder in written {
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let repo = if written.len() > 1 {
                format!("{repo}-{name}")
            } else {
                repo.clone()
            };
            let push = super::push::Push {
                folder: folder.clone(),
                repo,
                create: true,
                private: job.hub_private_repo,
                ..super::push::Push::default()
            };
            let pushed = push.run(events)?;
            events(&Event::Pushed(pushed))?;
        }
        Ok(())
    }

    /// The repository that is pushed to.
    #[cfg(feature = "hub")]
    fn push_to(&self) -> Result<String> {
        let named = self.output.file_name();
        let named = named.map(|n| n.to_string_lossy().into_owned());
        let given = self.settings.job.hub_model_id.clone();
        given
            .or(named)
            .ok_or_else(|| usage("no repository to push to", "--hub-model-id org/name"))
    }

    /// Asks the Hub before the first step whether the token is one.
    #[cfg(feature = "hub")]
    fn check_push(&self) -> Result<()> {
        let to = crate::hub::Reference::target(&self.push_to()?)?;
        crate::hub::Hub::from_env()?.owned(&to).map(|_| ())
    }

    #[cfg(not(feature = "hub"))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "the Hub is a feature"
    )]
    fn check_push(&self) -> Result<()> {
        Ok(())
    }

    #[cfg(not(feature = "hub"))]
    #[expect(
        clippy::unused_self,
        clippy::unnecessary_wraps,
        reason = "the Hub is a feature"
    )]
    fn push(&self, _: &[PathBuf], _: OnEvent<'_>) -> Result<()> {
        Ok(())
    }
}

impl Subject {
    /// The adapters' summary table.
    fn summary(&self, store: &AdapterStore) -> Result<String> {
        Ok(api::summed_up(&self.adapted.model, store)?.table())
    }

    /// Refuses adapters that cannot be written in the format of the results, before anything is trained.
    fn check_format(&self, events: OnEvent<'_>) -> Result<()> {
        self.format.check_names(&self.names)?;
        let store = self.adapted.store();
        for name in &self.names {
            let adapter = self.adapted.folder(name, &store.of(name))?;
            self.format.of(adapter, Path::new(name))?;
            if self.adapted.has_head(name) {
                self.format.say_headless(name, events)?;
            }
        }
        Ok(())
    }

    /// Writes the adapters into a folder.
    fn save(
        &self,
        store: &AdapterStore,
        (folder, format): (&Path, SaveFormat),
        force: bool,
    ) -> Result<Vec<PathBuf>> {
        let mut written = Vec::new();
        for name in &self.names {
            let at = folder.join(name);
            let adapter = self.adapted.folder(name, &store.of(name))?;
            let saved = format.of(adapter, &at)?;
            let staged = saved.staged(force, &|place, whole| {
                if let Some(template) = self.templates.get(name) {
                    write_file(&place.join(CHAT_TEMPLATE), template.as_bytes())?;
                }
                if whole {
                    self.adapted.write_head(name, place, store, false)?;
                }
                Ok(())
            })?;
            staged
                .into_iter()
                .try_for_each(|s| s.put(&[CHAT_TEMPLATE]))?;
            written.extend(format.places(&at));
        }
        let setup = &self.adapted.setup;
        if setup.active().len() > 1 {
            write_setup(folder, setup, force)?;
        }
        Ok(written)
    }
}

/// Whether a file is safetensors: a header length, then a JSON object. JSON lines begin with the object.
fn is_safetensors(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(false);
    }
    let mut head = [0u8; 9];
    let file = disk::open(path).map_err(|e| Error::io(path, "cannot open the data", e))?;
    let read = std::io::Read::read(&mut std::io::BufReader::new(file), &mut head).unwrap_or(0);
    Ok(read == 9
        && head[8] == b'{'
        && u64::from_le_bytes(head[..8].try_into().unwrap_or_default()) < 1 << 32)
}
