//! Evaluation: the loss without gradients, dropout off.

use super::answers::Answers;
use super::batch::{Collator, Sampler};
use super::data::{Dataset, Task};
use super::eval_args::Metric;
use super::event::{EvalEntry, Event, OnEvent};
use crate::analyze::logits::logits;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::rewrite::passes::loss::channels;
use crate::rewrite::passes::loss::{Loss, RowLoss};
use crate::rewrite::pipelines::{self, Mode};
use crate::runtime::value::Floats;
use crate::runtime::{CompileOptions, Feeds, Outputs, Plan, Trainable, Value};
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

/// The task behind a loss over rows.
fn task(loss: &Loss) -> Option<Task> {
    match loss {
        Loss::Rows { kind, .. } => Some(match kind {
            RowLoss::Classification => Task::Classification,
            RowLoss::MultiLabel => Task::MultiLabel,
            RowLoss::Regression => Task::Regression,
            RowLoss::Tagging => Task::TokenClassification,
            RowLoss::Spans => Task::QuestionAnswering,
        }),
        _ => None,
    }
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

    /// The task whose answers are measured, where a row has one answer.
    fn answered(&self) -> Option<Task> {
        task(&self.loss).filter(|_| channels(&self.model.model().graph) == 1)
    }

    /// Names of the measures that an evaluation gives.
    pub(super) fn measures(&self) -> Vec<String> {
        let metrics = match (self.answered(), &self.loss) {
            (Some(task), _) => Metric::of(task),
            (None, Loss::CausalLm { .. } | Loss::Tokens { .. }) => {
                vec![Metric::Loss, Metric::Perplexity]
            }
            (None, _) => vec![Metric::Loss],
        };
        metrics.into_iter().map(Metric::name).collect()
    }

    fn compile(&self) -> Result<Plan> {
        let graph = pipelines::loss(&self.loss, self.mode)
            .run(self.model.clone())?
            .model;
        let mut outputs = vec![contract::LOSS.to_owned()];
        outputs.extend(match task(&self.loss) {
            None => Vec::new(),
            Some(task) => answers_of(&graph, task)?,
        });
        let options = CompileOptions {
            outputs: Some(outputs),
            variables: self.params.clone(),
            ..self.options.clone()
        };
        Plan::compile(&graph, &options)
    }

    /// Evaluates in file order. The loss is the mean of the batches' losses, weighted by their examples, as Hugging Face's Trainer
    /// reports `eval_loss`.
    pub(super) fn run(
        &mut self,
        (params, fixed): (&IndexMap<Box<str>, Trainable>, Feeds),
        data: &Dataset,
        collator: &Collator,
        size: usize,
        packed: Option<usize>,
        on_event: OnEvent<'_>,
    ) -> Result<EvalEntry> {
        let answered = self.answered();
        let plan = match self.plan.take() {
            Some(plan) => plan,
            None => self.compile()?,
        };
        let plan = self.plan.insert(plan);
        let started = Instant::now();
        let mut values = values(params)?;
        values.0.extend(fixed.0);
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
        let mut answers = answered.map(Answers::new);
        let batches = sampler.epoch(data.lengths(), 0);
        let total = batches.len();
        for (done, rows) in batches.iter().enumerate() {
            on_event(&Event::Evaluating { done, total })?;
            let b = collator.rows(data, rows)?;
            if b.scored == 0 {
                continue;
            }
            let divisor =
                Value::from_f32(&[], vec![b.scored as f32]).map_err(|e| failed(&e.to_string()))?;
            let labels = labels_of(&b.feeds);
            let feeds = b.feeds.with(contract::NUM_ITEMS, divisor);
            let out = run(plan, feeds, &values)?;
            let loss = out
                .get(contract::LOSS)
                .and_then(|v| v.to_f32().ok()?.first().copied());
            let loss = loss.ok_or_else(|| failed("the loss is no scalar"))?;
            if let Some(answers) = &mut answers {
                for ((name, output), labels) in out.iter().skip(1).zip(&labels) {
                    answers.add(name, &output.0, labels)?;
                }
            }
            sum += f64::from(loss) * b.examples as f64;
            examples += b.examples;
            items += b.scored;
        }
        on_event(&Event::Evaluating { done: total, total })?;
        if examples == 0 {
            return Err(failed("no position of the evaluation data is labelled"));
        }
        let loss = sum / examples as f64;
        let mut metrics = BTreeMap::from([(contract::LOSS.to_owned(), loss)]);
        if matches!(self.loss, Loss::CausalLm { .. } | Loss::Tokens { .. }) {
            metrics.insert("perplexity".to_owned(), loss.exp());
        }
        let measured = task(&self.loss).zip(answers);
        if let Some((task, answers)) = measured {
            for m in Metric::of(task) {
                let value = answers.measure(m, None, 1);
                // The loss is the one that is trained. Numbers that are all equal have no correlation.
                if value.is_finite() {
                    metrics.entry(m.name()).or_insert(value);
                }
            }
        }
        Ok(EvalEntry {
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

fn run(plan: &Plan, feeds: Feeds, params: &Feeds) -> Result<Outputs> {
    let mut feeds = feeds.for_plan(plan);
    feeds
        .0
        .extend(params.0.iter().map(|(k, v)| (k.clone(), v.clone())));
    plan.run(&feeds)
}

/// Names of the outputs that answer a row.
pub(crate) fn answers_of(graph: &Verified, task: Task) -> Result<Vec<String>> {
    if task == Task::QuestionAnswering {
        let names = [contract::START_LOGITS, contract::END_LOGITS];
        return Ok(names.map(str::to_owned).to_vec());
    }
    let g = &graph.model().graph;
    let id = logits(g, None).map_err(|d| Error::new(ErrorKind::Train, d))?;
    Ok(vec![g.name_of(id).to_owned()])
}

/// What is right, for each of these outputs.
pub(crate) fn labels_of(feeds: &Feeds) -> Vec<Value> {
    let names = [
        contract::LABELS,
        contract::START_POSITIONS,
        contract::END_POSITIONS,
    ];
    let found = names.iter().filter_map(|n| feeds.0.get(*n).cloned());
    found.collect()
}

fn failed(message: &str) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("evaluate", message))
}
