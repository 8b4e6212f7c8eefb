//! Evaluation: the loss without gradients, dropout off.

use super::batch::{Collator, Sampler};
use super::data::Dataset;
use super::event::{Evaluation, Event, OnEvent};
use super::graph::{Mode, loss_graph};
use super::trainer::batch;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::rewrite::passes::loss::{LOSS, Loss, NUM_ITEMS};
use crate::runtime::value::Floats;
use crate::runtime::{CompileOptions, Feeds, Plan, Trainable, Value};
use indexmap::IndexMap;
use std::collections::BTreeMap;
use std::time::Instant;

/// A forward pass with the loss, prepared when it is first needed.
pub(super) struct Evaluator {
    model: Verified,
    loss: Loss,
    params: Vec<String>,
    mode: Mode,
    options: CompileOptions,
    plan: Option<Plan>,
}

impl Evaluator {
    pub(super) fn new(
        model: Verified,
        loss: &Loss,
        params: Vec<String>,
        mode: Mode,
        options: &CompileOptions,
    ) -> Self {
        Evaluator {
            model,
            loss: loss.clone(),
            params,
            mode,
            options: options.clone(),
            plan: None,
        }
    }

    fn compile(&self) -> Result<Plan> {
        let graph = loss_graph(self.model.clone(), &self.loss, self.mode)?;
        let options = CompileOptions {
            outputs: Some(vec![LOSS.to_owned()]),
            variables: self.params.clone(),
            ..self.options.clone()
        };
        Plan::compile(&graph, &options)
    }

    /// Evaluates in file order. The loss is the mean of the batches' losses, weighted by their examples, as Hugging Face's Trainer
    /// reports `eval_loss`.
    pub(super) fn run(
        &mut self,
        params: &IndexMap<Box<str>, Trainable>,
        data: &Dataset,
        collator: &Collator,
        size: usize,
        packed: Option<usize>,
        on_event: OnEvent<'_>,
    ) -> Result<Evaluation> {
        let plan = match self.plan.take() {
            Some(plan) => plan,
            None => self.compile()?,
        };
        let plan = self.plan.insert(plan);
        let started = Instant::now();
        let values = values(params)?;
        let sampler = Sampler {
            batch_size: size,
            ..Sampler::default()
        };
        // A packed graph reads segments, also of rows with one example.
        let collator = Collator {
            packing: packed.is_some(),
            ..collator.clone()
        };
        let (mut sum, mut examples, mut items) = (0.0, 0, 0);
        let batches = sampler.epoch(data.lengths(), 0);
        let total = batches.len();
        for (done, rows) in batches.iter().enumerate() {
            on_event(&Event::Evaluating { done, total })?;
            let b = batch(data, &collator, rows)?;
            if b.scored == 0 {
                continue;
            }
            let divisor =
                Value::from_f32(&[], vec![b.scored as f32]).map_err(|e| failed(&e.to_string()))?;
            let feeds = b.feeds.with(NUM_ITEMS, divisor);
            let loss = run(plan, feeds, &values)?;
            sum += loss * b.examples as f64;
            examples += b.examples;
            items += b.scored;
        }
        on_event(&Event::Evaluating { done: total, total })?;
        if examples == 0 {
            return Err(failed("no position of the evaluation data is labelled"));
        }
        let loss = sum / examples as f64;
        let mut metrics = BTreeMap::from([("loss".to_owned(), loss)]);
        if matches!(self.loss, Loss::CausalLm { .. } | Loss::Tokens { .. }) {
            metrics.insert("perplexity".to_owned(), loss.exp());
        }
        Ok(Evaluation {
            step: 0,
            epoch: 0.0,
            metrics,
            samples: examples,
            items,
            runtime: started.elapsed().as_secs_f64(),
        })
    }
}

/// Parameters as values of a plan.
fn values(params: &IndexMap<Box<str>, Trainable>) -> Result<Feeds> {
    let mut out = Feeds::new();
    for (name, p) in params {
        let value = Floats::new(p.value.clone(), &p.dims, p.dtype, None)
            .map_err(|e| failed(&e.to_string()))?;
        out.insert(name, Value::Float(value));
    }
    Ok(out)
}

fn run(plan: &Plan, mut feeds: Feeds, params: &Feeds) -> Result<f64> {
    feeds
        .0
        .retain(|k, _| plan.feeds().iter().any(|f| f.name == *k));
    feeds
        .0
        .extend(params.0.iter().map(|(k, v)| (k.clone(), v.clone())));
    let out = plan.run(&feeds)?;
    let loss = out
        .get(LOSS)
        .and_then(|v| v.to_f32().ok())
        .and_then(|v| v.first().copied());
    loss.map(f64::from)
        .ok_or_else(|| failed("the loss is no scalar"))
}

fn failed(message: &str) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("evaluate", message))
}
