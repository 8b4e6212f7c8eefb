//! The trainer: adapter parameters only; the base model is part of the graph and stays as it is.

use super::args::TrainingArguments;
use super::batch::{Batch, Collator, Sampler};
use super::data::{Dataset, Example};
use super::event::StepReport;
use super::graph::{Mode, nothing_to_train, training_graph};
use crate::adapters::AdapterStore;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{DType, TensorData};
use crate::rewrite::passes::gradient::Outputs;
use crate::rewrite::passes::loss::{Divisor, Loss, NUM_ITEMS};
use crate::runtime::cpu::adamw::AdamW;
use crate::runtime::{CompileOptions, Feeds, Plan, TrainStep, Trainable, Value};

/// Trains the adapter parameters of a model.
///
/// ```no_run
/// use onnx_graft::train::{Mode, Trainer, TrainingArguments, parse_loss};
/// # fn f(adapted: onnx_graft::infer::Verified, data: onnx_graft::train::Dataset) -> onnx_graft::Result<()> {
/// use onnx_graft::rewrite::passes::loss::Divisor;
/// let args = TrainingArguments { max_steps: 100, ..TrainingArguments::default() };
/// let loss = parse_loss("causal-lm", Divisor::Input);
/// let mut trainer = Trainer::new(adapted, &loss, args, Mode::Native, &Default::default())?;
/// trainer.train(&data, 0, &mut |report| println!("{}: {}", report.step, report.loss))?;
/// let trained = trainer.store();
/// # Ok(())
/// # }
/// ```
pub struct Trainer {
    inner: TrainStep,
    store: AdapterStore,
    args: TrainingArguments,
    total: u64,
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
    pub fn new(
        model: Verified,
        loss: &Loss,
        args: TrainingArguments,
        mode: Mode,
        options: &CompileOptions,
    ) -> Result<Trainer> {
        args.validate()?;
        let store = AdapterStore::from_model(model.model());
        let names: Vec<String> = store
            .iter()
            .filter(|(_, p)| p.trainable)
            .map(|(n, _)| n.to_owned())
            .collect();
        if names.is_empty() {
            return Err(nothing_to_train());
        }
        let graph = training_graph(model, loss, &names, Outputs::Drop, mode)?;
        let mut inner = TrainStep::compile(&graph, &names, options)?;
        for (name, t) in inner.params_mut() {
            t.decays = store.get(name).is_some_and(|p| p.decay);
        }
        let total = u64::try_from(args.max_steps).unwrap_or(0);
        Ok(Trainer {
            inner,
            store,
            args,
            total,
        })
    }

    /// A trainer of a causal language model on datasets: the mean loss over the labelled positions of each step, with fused kernels,
    /// on the CPU.
    ///
    /// # Errors
    /// Those of [`new`](Self::new).
    pub fn causal_lm(model: Verified, args: TrainingArguments) -> Result<Trainer> {
        let loss = super::parse_loss("causal-lm", dataset_divisor());
        Self::new(model, &loss, args, Mode::Native, &CompileOptions::default())
    }

    /// Number of trainable elements.
    pub fn trainable(&self) -> usize {
        self.inner.params().values().map(|t| t.value.len()).sum()
    }

    /// The plan of one micro-batch.
    pub fn plan(&self) -> &Plan {
        self.inner.plan()
    }

    /// Steps done.
    pub fn steps(&self) -> u64 {
        u64::from(self.inner.steps())
    }

    /// All adapter parameters, with the trained values.
    pub fn store(&self) -> AdapterStore {
        let mut store = self.store.clone();
        for (name, t) in self.inner.params() {
            let Some(p) = store.get(name).cloned() else {
                continue;
            };
            let tensor = stored(t, &p.tensor);
            store.insert(name, crate::adapters::Param { tensor, ..p });
        }
        store
    }

    /// One optimizer step over micro-batches. Each has all inputs of the graph, labels included; their gradients are added up.
    pub fn step(&mut self, batches: &[Feeds], tokens: usize) -> Result<StepReport> {
        let step = self.steps();
        let mut loss = 0.0;
        for (i, feeds) in batches.iter().enumerate() {
            let seed = self.args.seed.wrapping_add((step << 20) | i as u64);
            loss += f64::from(self.inner.accumulate(feeds, 1.0, Some(seed))?);
        }
        if !loss.is_finite() {
            return Err(Error::new(
                ErrorKind::Train,
                Diagnostic::error(
                    "loss-not-finite",
                    format!("the loss is {loss} at step {}", step + 1),
                )
                .help("lower the learning rate, or check that every batch has labels"),
            ));
        }
        let args = &self.args;
        let total = self.total.max(step + 1);
        let lr = args
            .lr_scheduler_type
            .rate(args.learning_rate, step, args.warmup(total), total);
        let optimizer = AdamW {
            lr,
            beta1: args.adam_beta1,
            beta2: args.adam_beta2,
            eps: args.adam_epsilon,
            weight_decay: args.weight_decay,
        };
        let done = self.inner.apply(&optimizer, Some(args.max_grad_norm))?;
        Ok(StepReport {
            step: u64::from(done.step),
            epoch: 0.0,
            positions: tokens,
            loss,
            learning_rate: lr,
            grad_norm: done.grad_norm,
            tokens,
        })
    }

    /// Trains on one batch at every step, `max_steps` times.
    pub fn train_on(&mut self, feeds: &Feeds, on_step: &mut dyn FnMut(&StepReport)) -> Result<()> {
        let feeds = [self.fitting(feeds.clone())];
        self.total = u64::try_from(self.args.max_steps).unwrap_or(0).max(1);
        while self.steps() < self.total {
            let report = self.step(&feeds, 0)?;
            on_step(&report);
        }
        Ok(())
    }

    /// Without values that the graph does not read.
    fn fitting(&self, mut feeds: Feeds) -> Feeds {
        feeds
            .0
            .retain(|k, _| self.plan().feeds().iter().any(|f| f.name == *k));
        feeds
    }

    /// Trains on a dataset, as long as the arguments say. Micro-batches of one step share one divisor, the number of their labels, so
    /// that accumulation gives the gradient of one large batch.
    pub fn train(
        &mut self,
        data: &Dataset,
        pad: i64,
        on_step: &mut dyn FnMut(&StepReport),
    ) -> Result<()> {
        let sampler = Sampler {
            batch_size: self.args.per_device_train_batch_size,
            seed: self.args.seed,
            shuffle: !self.args.no_shuffle,
            drop_last: self.args.dataloader_drop_last,
        };
        let collator = Collator { pad_id: pad };
        let batches = sampler.epoch(data.lengths(), 0).len();
        if batches == 0 {
            return Err(failed(format!(
                "{} examples make no batch of {}",
                data.len(),
                sampler.batch_size
            )));
        }
        self.total = self.args.total_steps(batches);
        let mut epoch = 0;
        while self.steps() < self.total {
            let micro = sampler.epoch(data.lengths(), epoch);
            for window in micro.chunks(self.args.gradient_accumulation_steps) {
                if self.steps() >= self.total {
                    break;
                }
                let mut batches = Vec::with_capacity(window.len());
                for rows in window {
                    let rows: Vec<Vec<Example>> = rows
                        .iter()
                        .map(|row| row.iter().map(|&i| data.get(i)).collect())
                        .collect::<Result<_>>()?;
                    batches.push(collator.collate(&rows)?);
                }
                let report = self.window(&batches, epoch as f64)?;
                on_step(&report);
            }
            epoch += 1;
        }
        Ok(())
    }

    /// One step over the micro-batches of a window.
    fn window(&mut self, batches: &[Batch], epoch: f64) -> Result<StepReport> {
        let items: usize = batches.iter().map(|b| b.items).sum();
        if items == 0 {
            return Err(failed(format!(
                "no position of the batch of step {} is labelled",
                self.steps() + 1
            )));
        }
        let mut feeds = Vec::with_capacity(batches.len());
        for b in batches {
            let divisor =
                Value::from_f32(&[], vec![items as f32]).map_err(|e| failed(e.to_string()))?;
            feeds.push(self.fitting(b.feeds.clone().with(NUM_ITEMS, divisor)));
        }
        let report = self.step(&feeds, batches.iter().map(|b| b.tokens).sum())?;
        Ok(StepReport {
            epoch,
            positions: batches.iter().map(|b| b.positions).sum(),
            ..report
        })
    }
}

/// The loss of a dataset run divides by the labels of the whole accumulation window.
pub fn dataset_divisor() -> Divisor {
    Divisor::Input
}

/// The trained values in the type of the file.
fn stored(t: &Trainable, old: &TensorData) -> TensorData {
    let bytes: Vec<u8> = match t.dtype {
        DType::Bfloat16 => t
            .value
            .iter()
            .flat_map(|&x| crate::ir::f32_to_bf16(x).to_le_bytes())
            .collect(),
        DType::Float16 => t
            .value
            .iter()
            .flat_map(|&x| crate::ir::f32_to_f16(x).to_le_bytes())
            .collect(),
        DType::Double => t
            .value
            .iter()
            .flat_map(|&x| f64::from(x).to_le_bytes())
            .collect(),
        _ => t.value.iter().flat_map(|x| x.to_le_bytes()).collect(),
    };
    TensorData::raw(t.dtype, old.dims.clone(), bytes.into())
}

fn failed(message: String) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("train", message))
}
