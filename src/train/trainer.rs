//! The trainer: adapter parameters only; the base model is part of the graph and stays as it is.
//!
//! Steps, schedules, logs, evaluations and checkpoints come when Hugging Face's Trainer has them. Every random choice follows from the
//! seed and the number of the step, so a run that goes on from a checkpoint is the run that never stopped, bit by bit.

mod keep;
mod steps;

use super::args::{Interval, TrainingArguments};
use super::batch::{CollateArguments, Collator, DecoderStart, Sampler};
use super::checkpoint::{self, Progress};
use super::data::Dataset;
use super::dry::DryRun;
use super::evaluate::{Evaluator, values};
use super::event::{Event, OnEvent, StepReport, Stop};
use super::loss::{not_trained, nothing_to_train};
use super::masking::Masking;
use super::optimizer::update;
use crate::adapters::{AdapterStore, usually_trained};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{TensorData, contract};
use crate::rewrite::passes::gradient::Outputs;
use crate::rewrite::passes::loss::{Divisor, Loss};
use crate::rewrite::pipelines::{self, Mode};
use crate::runtime::{CompileOptions, Feeds, Plan, TrainStep, Trainable, Value};
use serde_json::{Map, Value as Json};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;
use steps::Loop;

/// What is trained on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TrainData<'a> {
    /// Training examples.
    pub train: &'a Dataset,
    /// Evaluation examples.
    pub eval: Option<&'a Dataset>,
    /// How examples stand together.
    pub collate: CollateArguments,
    /// The id of padding.
    pub pad_id: i64,
    /// What a decoder begins with.
    pub decoder_start: DecoderStart,
    /// How words are masked that are to be told.
    pub masking: Option<Masking>,
    /// Tokens of a packed row.
    pub max_length: usize,
}

#[cfg(test)]
impl<'a> TrainData<'a> {
    /// Training examples, padded with token 0.
    pub(crate) fn new(train: &'a Dataset) -> Self {
        TrainData {
            train,
            eval: None,
            collate: CollateArguments::default(),
            pad_id: 0,
            masking: None,
            decoder_start: DecoderStart::default(),
            max_length: 2048,
        }
    }
}

impl TrainData<'_> {
    fn collator(&self) -> Collator {
        Collator {
            pad_id: self.pad_id,
            side: self.collate.padding_side.unwrap_or_default(),
            multiple_of: self.collate.pad_to_multiple_of,
            packing: self.collate.packing,
            decoder_start: self.decoder_start,
            masking: self.masking,
        }
    }

    fn pack(&self) -> Option<usize> {
        self.collate.packing.then_some(self.max_length)
    }
}

/// Where a run is kept.
pub(crate) struct Output<'a> {
    /// The folder of checkpoints.
    pub folder: &'a Path,
    /// The fingerprint of the base model: a run goes on over no other one.
    pub base: &'a str,
    /// The configurations of the adapters by name: a run goes on with the same ones.
    pub adapters: &'a Map<String, Json>,
    /// Writes adapters into a folder.
    pub save: &'a dyn Fn(&AdapterStore, &Path) -> Result<()>,
}

/// Trains the adapter parameters of a model.
pub(crate) struct Trainer {
    inner: TrainStep,
    evaluator: Evaluator,
    store: AdapterStore,
    args: TrainingArguments,
    progress: Progress,
    total: u64,
    stop: Option<Arc<AtomicBool>>,
    best: Option<Vec<Vec<f32>>>,
    /// Bytes of the weights that stay as they are.
    frozen: u64,
}

impl std::fmt::Debug for Trainer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Trainer")
            .field("step", &self.steps())
            .field("parameters", &self.inner.params().len())
            .finish_non_exhaustive()
    }
}

impl Trainer {
    /// Prepares the step of an adapted model: loss, gradients by all trainable parameters, plan.
    pub(crate) fn new(
        model: Verified,
        loss: &Loss,
        args: TrainingArguments,
        mode: Mode,
        options: &CompileOptions,
    ) -> Result<Trainer> {
        args.validate()?;
        let mut store = AdapterStore::from_model(model.model());
        let usual = usually_trained(model.model())?;
        if let Some(only) = args.train_adapters.as_ref().or(usual.as_ref()) {
            let unknown = store.train_only(only);
            if let Some(name) = unknown {
                return Err(not_trained(&name, &store));
            }
        }
        let names: Vec<String> = store.trainable();
        if names.is_empty() {
            return Err(nothing_to_train());
        }
        let g = &model.model().graph;
        let tensors = g
            .initializers()
            .iter()
            .filter(|&&v| store.get(g.name_of(v)).is_none());
        let frozen = tensors
            .filter_map(|&v| g.value(v).tensor.as_ref())
            .map(|t| t.stored_len() as u64)
            .sum();
        let evaluator = Evaluator::new(model.clone(), loss, names.clone(), mode, options)?;
        let recompute = args.gradient_checkpointing;
        let pipeline = pipelines::training(loss, &names, Outputs::Drop, recompute, mode);
        let graph = pipeline.run(model)?.model;
        let mut inner = TrainStep::compile(&graph, &names, options)?;
        for (name, t) in inner.params_mut() {
            let param = store.get(name);
            t.decays = param.is_some_and(|p| p.decay);
            t.to_identity = param.and_then(|p| p.to_identity);
        }
        let total = u64::try_from(args.max_steps).unwrap_or(0);
        Ok(Trainer {
            inner,
            evaluator,
            store,
            args,
            progress: Progress::default(),
            total,
            stop: None,
            best: None,
            frozen,
        })
    }

    /// A trainer of a causal language model on datasets: the mean loss over the labelled positions of each step, with fused kernels,
    /// on the CPU.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    #[cfg(test)]
    pub(crate) fn causal_lm(model: Verified, args: TrainingArguments) -> Result<Trainer> {
        let loss = super::parse_loss("causal-lm", dataset_divisor());
        Self::new(model, &loss, args, Mode::Native, &CompileOptions::default())
    }

    /// Ends the run after the current step, with a checkpoint, once the flag is set.
    pub(crate) fn stop_on(&mut self, flag: Arc<AtomicBool>) {
        self.stop = Some(flag);
    }

    /// Number of trainable elements.
    pub(crate) fn trainable(&self) -> usize {
        self.inner.params().values().map(|t| t.value.len()).sum()
    }

    /// The plan of one micro-batch.
    pub(crate) fn plan(&self) -> &Plan {
        self.inner.plan()
    }

    /// Steps done.
    pub(crate) fn steps(&self) -> u64 {
        self.progress.step
    }

    /// The state of the loop.
    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// All adapter parameters, with the trained values.
    pub(crate) fn store(&self) -> AdapterStore {
        let mut store = self.store.clone();
        for (name, t) in self.inner.params() {
            let Some(p) = store.get(name).cloned() else {
                continue;
            };
            let tensor = stored(t, &p.tensor);
            store.insert(name, crate::adapters::Param { tensor, ..p });
        }
        for (name, value) in self.cooled(0).0 {
            if let (Some(p), Ok(now)) = (store.get(&name).cloned(), value.to_f32()) {
                let tensor = TensorData::from_f32([], &now);
                store.insert(&name, crate::adapters::Param { tensor, ..p });
            }
        }
        store
    }

    /// The trained parameters, as a plan that has them as variables is fed with them.
    ///
    /// # Errors
    /// Values that cannot be made.
    pub(crate) fn given(&self) -> Result<Feeds> {
        let mut all = values(self.inner.params(), |_| true)?;
        all.0.extend(self.cooled(0).0);
        Ok(all)
    }

    /// One optimizer step over micro-batches. Each has all inputs of the graph, labels included; their gradients are added up.
    pub(crate) fn step(&mut self, batches: &[Feeds], tokens: usize) -> Result<StepReport> {
        let step = self.progress.step;
        let mut loss = 0.0;
        for (i, feeds) in batches.iter().enumerate() {
            let seed = self.args.seed.wrapping_add((step << 20) | i as u64);
            let cooled = self.cooled(i as u64);
            let with;
            let feeds = if cooled.0.is_empty() {
                feeds
            } else {
                with = cooled
                    .0
                    .into_iter()
                    .fold(feeds.clone(), |f, (n, v)| f.with(&n, v));
                &with
            };
            loss += f64::from(self.inner.accumulate(feeds, 1.0, Some(seed))?);
        }
        if !loss.is_finite() {
            return Err(Error::new(
                ErrorKind::Train,
                Diagnostic::error("loss-not-finite", format!("the loss is {loss} at step {}", step + 1))
                    .help("lower the learning rate, or check that every batch has labels; the last checkpoint is untouched"),
            ));
        }
        let learning_rate = self.rate();
        let args = &self.args;
        let done = self.inner.apply(Some(args.max_grad_norm), &mut |_, p, g| {
            update(args, learning_rate, p, g)
        })?;
        // The loss of the next step would show it, and there is none.
        if step + 1 == self.total {
            self.is_finite()?;
        }
        self.progress.step += 1;
        self.progress.updates = done.step;
        self.progress.tokens += tokens as u64;
        Ok(StepReport {
            step: self.progress.step,
            epoch: 0.0,
            loss,
            learning_rate,
            grad_norm: done.grad_norm,
            tokens,
            positions: tokens,
        })
    }

    /// Refuses parameters that the last update made useless.
    fn is_finite(&self) -> Result<()> {
        let store = self.store();
        let Some((name, _)) = store.iter().find(|(_, p)| p.tensor.not_finite() > 0) else {
            return Ok(());
        };
        let d = Diagnostic::error(
            "weights-finite",
            format!("the last update made values of `{name}` that are not finite"),
        );
        let help = "lower the learning rate; nothing of this step was saved, and earlier checkpoints are untouched";
        Err(Error::new(ErrorKind::Train, d.help(help)))
    }

    /// The temperatures of fusions, so many micro-batches into the next step: the library lowers them in each.
    pub(super) fn cooled(&self, more: u64) -> Feeds {
        let each = self.args.gradient_accumulation_steps.max(1) as u64;
        let forwards = self.progress.step * each + more;
        let mut feeds = Feeds::new();
        let temperatures = self
            .store
            .iter()
            .filter(|(n, _)| n.starts_with(contract::FUSION_TEMPERATURE));
        for (name, p) in temperatures {
            let first = p.tensor.to_f32().and_then(|v| v.first().copied());
            let first = first.unwrap_or(contract::LAST_TEMPERATURE);
            let now = first - contract::COOLING * forwards as f32;
            let value = Value::from_f32(&[], vec![now.max(contract::LAST_TEMPERATURE)]);
            feeds.0.extend(value.ok().map(|v| (name.to_owned(), v)));
        }
        feeds
    }

    /// The learning rate of the next update.
    fn rate(&self) -> f64 {
        let (args, step) = (&self.args, self.progress.step);
        let total = self.total.max(step + 1);
        args.lr_scheduler_type.rate(
            args.learning_rate,
            step,
            args.warmup(total),
            total,
            &args.lr_scheduler_kwargs,
        )
    }

    /// Trains on one batch at every step, `max_steps` times.
    pub(crate) fn train_on(&mut self, feeds: &Feeds, on_event: OnEvent<'_>) -> Result<()> {
        let feeds = [feeds.clone().for_plan(self.plan())];
        self.total = u64::try_from(self.args.max_steps).unwrap_or(0).max(1);
        on_event(&self.begin(1, None))?;
        let started = Instant::now();
        while self.progress.step < self.total {
            let report = self.step(&feeds, 0)?;
            self.progress.total_loss += report.loss;
            on_event(&Event::Step(report))?;
        }
        on_event(&self.end(Stop::Finished, 0, started))
    }

    fn begin(&self, examples: usize, resumed_from: Option<u64>) -> Event {
        Event::Begin {
            total_steps: self.total,
            resumed_from,
            examples,
            trainable: self.trainable(),
        }
    }

    fn end(&self, reason: Stop, before: u64, started: Instant) -> Event {
        let p = &self.progress;
        Event::End {
            reason,
            steps: p.step,
            runtime: started.elapsed().as_secs_f64(),
            train_loss: p.total_loss / f64::from(p.updates.max(1)),
            best_step: p.best_step,
            best_metric: p.best_metric,
            done: p.step - before,
        }
    }

    fn sampler(&self, data: &TrainData<'_>) -> Sampler {
        Sampler {
            batch_size: self.args.per_device_train_batch_size,
            seed: self.args.data_seed.unwrap_or(self.args.seed),
            shuffle: !self.args.no_shuffle,
            drop_last: self.args.dataloader_drop_last,
            group_by_length: data.collate.group_by_length,
            pack: data.pack(),
        }
    }

    /// What a run on this data would be: its steps and tokens, and the memory of one step on the longest batch, which is computed once.
    ///
    /// # Errors
    /// Those of a step.
    pub(crate) fn dry_run(&mut self, data: &TrainData<'_>) -> Result<DryRun> {
        let sampler = self.sampler(data);
        let lengths = data.train.lengths();
        let micro = sampler.epoch(lengths, 0);
        let width = |rows: &super::batch::Rows| {
            let row = |r: &Vec<usize>| r.iter().map(|&i| u64::from(lengths[i])).sum::<u64>();
            rows.iter().map(row).max().unwrap_or(0) * rows.len() as u64
        };
        let longest = micro.iter().max_by_key(|r| width(r));
        let mut positions = 0;
        if let Some(rows) = longest {
            let b = data.collator().rows(data.train, rows)?;
            positions = b.positions;
            let n = Value::from_f32(&[], vec![b.items.max(1) as f32])
                .map_err(|e| failed(e.to_string()))?;
            let feeds = b.feeds.with(contract::NUM_ITEMS, n).for_plan(self.plan());
            self.inner.evaluate(&feeds, Some(self.args.seed))?;
        }
        let trainable = self.trainable();
        let params = self.inner.params().values();
        let state: usize = params.map(|p| self.args.optim.state(&p.dims)).sum();
        Ok(DryRun {
            steps: self.args.total_steps(micro.len()),
            examples: data.train.len(),
            tokens_per_epoch: lengths.iter().map(|&n| u64::from(n)).sum(),
            positions_per_epoch: micro.iter().map(width).sum(),
            trainable,
            base_bytes: self.frozen,
            parameter_bytes: trainable as u64 * 4,
            optimizer_bytes: (trainable + state) as u64 * 4,
            longest_batch: positions,
            peak_bytes: super::dry::peak_memory(),
        })
    }

    /// Trains on datasets, as long as the arguments say. Micro-batches of one step share one divisor, the number of their labels, so
    /// that accumulation gives the gradient of one large batch.
    ///
    /// # Errors
    /// Data without a batch; a loss or gradient that is not finite; a checkpoint of another run; what `on_event` returns.
    pub(crate) fn train(
        &mut self,
        data: &TrainData<'_>,
        output: Option<&Output<'_>>,
        on_event: OnEvent<'_>,
    ) -> Result<Stop> {
        let sampler = self.sampler(data);
        let micro = sampler.epoch(data.train.lengths(), 0).len();
        if micro == 0 {
            let (n, size) = (data.train.len(), sampler.batch_size);
            return Err(failed(format!("{n} examples make no batch of {size}")));
        }
        self.can_evaluate(data)?;
        self.total = self.args.total_steps(micro);
        let mut run = self.conditions(data);
        let resumed = match output {
            Some(o) => {
                run.insert(keep::BASE.into(), o.base.into());
                run.insert(keep::ADAPTERS.into(), o.adapters.clone().into());
                checkpoint::sweep(o.folder);
                self.resume(o.folder, &run, on_event)?
            }
            None => None,
        };
        self.check(data)?;
        on_event(&self.begin(data.train.len(), resumed))?;
        let mut looping = Loop {
            data,
            collator: data.collator(),
            sampler,
            output,
            run,
            on_event,
            started: Instant::now(),
            since_log: (Instant::now(), 0),
            last: None,
        };
        let before = self.progress.step;
        if self.args.eval_on_start && self.progress.step == 0 {
            self.evaluate(&mut looping, 0.0)?;
        }
        let reason = self.epochs(&mut looping)?;
        if reason == Stop::Interrupted {
            self.save(&mut looping)?;
        } else if self.args.load_best_model_at_end
            && let Some(best) = &self.best
        {
            for (p, value) in self.inner.params_mut().values_mut().zip(best) {
                p.value.clone_from(value);
            }
        }
        let end = self.end(reason, before, looping.started);
        (looping.on_event)(&end)?;
        Ok(reason)
    }

    /// Refuses evaluations without data.
    fn can_evaluate(&self, data: &TrainData<'_>) -> Result<()> {
        if self.args.eval_strategy == Interval::No || data.eval.is_some_and(|d| !d.is_empty()) {
            return Ok(());
        }
        let message = "`eval_strategy` is set, and there is no evaluation data";
        let d = Diagnostic::error("train", message);
        let help = "name it: --eval-data FILE; or set rows of the data apart: --eval-split 0.1";
        Err(Error::new(ErrorKind::Train, d.help(help)))
    }

    /// What can be said of data and arguments before anything is done: evaluations give the measure that decides what is best, and
    /// rows can be packed.
    ///
    /// # Errors
    /// What does not fit.
    pub(crate) fn check(&self, data: &TrainData<'_>) -> Result<()> {
        if data.collate.packing && !data.train.is_empty() {
            data.collator().collate(&[vec![data.train.get(0)?; 2]])?;
        }
        let known = self.evaluator.measures();
        let metric = self.args.metric();
        if data.eval.is_none()
            || self.args.eval_strategy == Interval::No
            || known.iter().any(|k| k == metric)
        {
            return Ok(());
        }
        let d = Diagnostic::error("metric", format!("evaluations give no `{metric}`"));
        let near = crate::diag::nearest(metric, known.iter().map(String::as_str));
        let near = near.map_or_else(String::new, |n| format!("; did you mean `{n}`?"));
        let help = format!(
            "`metric_for_best_model` is one of: {}{near}",
            known.join(", ")
        );
        Err(Error::new(ErrorKind::Train, d.help(help)))
    }
}

/// The loss of a dataset run divides by the labels of the whole accumulation window.
pub(crate) fn dataset_divisor() -> Divisor {
    Divisor::Input
}

/// The trained values in the type of the file.
fn stored(t: &Trainable, old: &TensorData) -> TensorData {
    let dims = old.dims.clone();
    TensorData::from_floats(t.dtype, dims.clone(), &t.value)
        .unwrap_or_else(|| TensorData::from_f32(dims, &t.value))
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("train", message))
}
