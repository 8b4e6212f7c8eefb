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
use crate::ir::{Graph, ValueId, contract};
use crate::rewrite::passes::channel;
use crate::rewrite::passes::loss::{Loss, RowLoss};
use crate::rewrite::pipelines::{self, Mode};
use crate::runtime::value::Floats;
use crate::runtime::{CompileOptions, Feeds, Outputs, Plan, Trainable, Value};
use indexmap::IndexMap;
use rustc_hash::FxHashSet;
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
    /// The children of a `Parallel`, each alone.
    children: Vec<(String, Evaluator)>,
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
    ) -> Result<Self> {
        let mut children = Vec::new();
        for (name, alone) in channel::children(&model)? {
            // Parameters of the other children are in the graph, and nothing reads them.
            let own = reached(&alone.model().graph, &params);
            children.push((name, Evaluator::new(alone, loss, own, mode, options)?));
        }
        Ok(Evaluator {
            model,
            loss: loss.clone(),
            params,
            mode,
            options: options.clone(),
            plan: None,
            children,
        })
    }

    /// Names of the measures that an evaluation gives.
    pub(super) fn measures(&self) -> Vec<String> {
        if !self.children.is_empty() {
            let of = |(name, child): &(String, Evaluator)| {
                let each = child.measures().into_iter();
                each.map(|m| of_child(name, &m)).collect::<Vec<_>>()
            };
            let each = self.children.iter().flat_map(of);
            return std::iter::once(Metric::Loss.name()).chain(each).collect();
        }
        let metrics = match (task(&self.loss), &self.loss) {
            (Some(task), _) => Metric::of(task),
            (None, Loss::CausalLm { .. } | Loss::Tokens { .. }) => {
                vec![Metric::Loss, Metric::Perplexity]
            }
            (None, _) => vec![Metric::Loss],
        };
        metrics.into_iter().map(Metric::name).collect()
    }

    fn compile(&self) -> Result<Plan> {
        let graph = pipelines::evaluating(&self.loss, self.mode)
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
        if !self.children.is_empty() {
            return self.of_children((params, fixed), data, collator, (size, packed), on_event);
        }
        let answered = task(&self.loss);
        let plan = match self.plan.take() {
            Some(plan) => plan,
            None => self.compile()?,
        };
        let plan = self.plan.insert(plan);
        let started = Instant::now();
        let own = |name: &str| self.params.iter().any(|p| *p == *name);
        let mut values = values(params, own)?;
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

impl Evaluator {
    /// Each child by itself. The loss is the sum of theirs, as it is trained; the other measures are named by their child.
    fn of_children(
        &mut self,
        (params, fixed): (&IndexMap<Box<str>, Trainable>, Feeds),
        data: &Dataset,
        collator: &Collator,
        (size, packed): (usize, Option<usize>),
        on_event: OnEvent<'_>,
    ) -> Result<EvalEntry> {
        let mut whole: Option<EvalEntry> = None;
        let mut sum = 0.0;
        for (name, child) in &mut self.children {
            let given = (params, Feeds(fixed.0.clone()));
            let found = child.run(given, data, collator, size, packed, on_event)?;
            sum += found.metrics.get(contract::LOSS).copied().unwrap_or(0.0);
            let named = found.metrics.iter();
            let named = named.map(|(m, x)| (of_child(name, m), *x)).collect();
            whole = Some(match whole {
                None => EvalEntry {
                    metrics: named,
                    ..found
                },
                Some(mut entry) => {
                    entry.metrics.extend(named);
                    entry.runtime += found.runtime;
                    entry
                }
            });
        }
        let mut whole = whole.ok_or_else(|| failed("the setup has no children"))?;
        whole.metrics.insert(contract::LOSS.to_owned(), sum);
        Ok(whole)
    }
}

/// The name of a measure of one child.
pub(crate) fn of_child(child: &str, metric: &str) -> String {
    format!("{child}.{metric}")
}

/// Those parameters that a graph's outputs hang on.
fn reached(g: &Graph, params: &[String]) -> Vec<String> {
    let mut seen: FxHashSet<ValueId> = FxHashSet::default();
    let mut open: Vec<ValueId> = g.outputs().iter().map(|p| p.value).collect();
    while let Some(v) = open.pop() {
        if seen.insert(v)
            && let Some((node, _)) = g.producer(v)
        {
            open.extend(g.node_inputs(node).into_iter().flatten());
        }
    }
    let read = |name: &&String| g.find(name).is_some_and(|v| seen.contains(&v));
    params.iter().filter(read).cloned().collect()
}

/// Parameters as values of a plan, where they are wanted.
pub(super) fn values(
    params: &IndexMap<Box<str>, Trainable>,
    wanted: impl Fn(&str) -> bool,
) -> Result<Feeds> {
    let mut out = Feeds::new();
    for (name, p) in params.iter().filter(|(name, _)| wanted(name)) {
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
