//! Evaluation: a model, adapters and data become measures.

use super::check::{Asked, exists, fits, head_fits, head_type_fits, keep, usage, write_file};
use super::event::{OnEvent, notes, progress};
use super::files::ModelFiles;
use super::head::label_count;
use super::model::ModelSettings;
use super::prepared::Prepared;
use super::request::{Purpose, Request};
use crate::adapters::{choice, whole_row_adapters};
use crate::analyze::logits::vocabulary;
use crate::api;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::{Generated, GenerationArguments, Heard, Prompt, Scored, generate, score};
use crate::options::{self, Options, fields};
use crate::rewrite::passes::channel;
use crate::rewrite::pipelines;
use crate::runtime::Plan;
use crate::train::metrics::{Normalization, exact_match, final_number, same_final_number};
use crate::train::{
    Answers, Collator, DataArguments, Dataset, EvalArguments, Labels, Masking, Metric, Task,
    TextPair, TrainingArguments, answers_of, labels_of, of_child,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Instant;

/// Measures of a model on data: what `rewrite eval` does, as a call.
///
/// Settings are those of the command's flags, under their names in snake case. Of a job file, the model, its interface, its tokenizer
/// and its data are read; adapters are named here, so that a model can be measured without and with them.
///
/// ```
/// use onnx_graft::job::Evaluation;
///
/// let report = Evaluation::open("fixtures/jobs/word-problems.json")?
///     .set("max_eval_samples", 4)
///     .run(&mut |_| Ok(()))?;
/// assert!(report.metrics["loss"] > 0.0);
/// # Ok::<(), onnx_graft::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Evaluation {
    request: Request,
}

/// What was measured.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[non_exhaustive]
pub struct EvalReport {
    /// Measures by name; with a `Parallel`, `CHILD.NAME`.
    pub metrics: BTreeMap<String, f64>,
    /// Number of rows.
    pub samples: usize,
    /// Number of labels: of tokens, or of rows.
    pub items: usize,
    /// Wall time in seconds.
    pub runtime: f64,
    /// The file of predictions, where one was asked for.
    #[serde(rename = "predictions")]
    pub file: Option<PathBuf>,
    /// One JSON object for each row, where the task has an answer for a row.
    #[serde(skip)]
    pub predictions: Vec<Value>,
}

/// What is asked of an evaluation besides its model, its data and its measures.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct EvalSettings {
    /// File that gets a line for each prediction.
    predictions: Option<String>,
    /// Replaces an existing file of predictions.
    overwrite_predictions: bool,
    /// Seed that sets rows apart for evaluation: that of the run, so that they are the same ones.
    data_seed: u64,
}

impl Options for EvalSettings {}

impl Default for EvalSettings {
    fn default() -> Self {
        EvalSettings {
            predictions: None,
            overwrite_predictions: false,
            data_seed: TrainingArguments::default().seed,
        }
    }
}

impl Evaluation {
    /// An evaluation of an ONNX file, or of the model of a job file on the job's data.
    ///
    /// # Errors
    /// A job file that cannot be read, or holds no job.
    pub fn open(file: impl Into<PathBuf>) -> Result<Evaluation> {
        let evaluation = Evaluation::new(Request::new(file));
        evaluation.request.job_file()?;
        Ok(evaluation)
    }

    /// The evaluation of a request.
    pub fn new(request: Request) -> Evaluation {
        Evaluation { request }
    }

    /// Sets something by its name.
    #[must_use]
    pub fn set(mut self, name: &str, value: impl Into<Value>) -> Evaluation {
        self.request = self.request.set(name, value);
        self
    }

    /// Measures, and writes the predictions where a file for them is named.
    ///
    /// # Errors
    /// Settings that do not fit, files that cannot be read, a graph that cannot do the task, data that says nothing, and what `events`
    /// returns.
    pub fn run(&self, events: OnEvent<'_>) -> Result<EvalReport> {
        let started = Instant::now();
        let mut run = Run::resolve(&self.request, events)?;
        let mut report = run.measured(events)?;
        report.runtime = started.elapsed().as_secs_f64();
        if let Some(file) = &run.predictions {
            let lines: Vec<String> = report.predictions.iter().map(Value::to_string).collect();
            write_file(file, (lines.join("\n") + "\n").as_bytes())?;
        }
        report.file.clone_from(&run.predictions);
        Ok(report)
    }
}

/// An evaluation that is understood, with its model.
struct Run {
    prepared: Prepared,
    model: ModelSettings,
    data: DataArguments,
    evaluation: EvalArguments,
    predictions: Option<PathBuf>,
    seed: u64,
}

impl Run {
    fn resolve(request: &Request, events: OnEvent<'_>) -> Result<Run> {
        let resolved = request.resolve(Purpose::Evaluate, events)?;
        resolved.check_names(&[
            fields::<ModelSettings>(),
            fields::<EvalSettings>(),
            fields::<DataArguments>(),
            fields::<EvalArguments>(),
            fields::<GenerationArguments>(),
        ])?;
        let model = resolved.model_settings()?;
        let files = ModelFiles::locate(&resolved.model, model.variant.as_deref())?;
        let mut data: DataArguments = resolved.read()?;
        data.positions = files.within_positions(data.max_seq_length, events)?;
        if data.data.is_none() {
            return Err(usage("no data was given", "--data test.jsonl"));
        }
        let evaluation: EvalArguments = resolved.read()?;
        evaluation.validate()?;
        let settings: EvalSettings = resolved.read()?;
        let predictions = settings.predictions.map(PathBuf::from);
        if let Some(file) = &predictions {
            if file.exists() && !settings.overwrite_predictions {
                return Err(exists(file));
            }
            keep(file, [&*resolved.model])?;
        }
        let mut generation = options::take::<GenerationArguments>(&mut resolved.settings.clone());
        // What the model's files say for conversations is not what a measure should depend on.
        generation.entry("do_sample").or_insert(json!(false));
        let prepared = Prepared::open(files, &model, generation, events)?;
        fits(&prepared.model, evaluation.task, true)?;
        head_type_fits(&prepared.model, evaluation.task)?;
        Ok(Run {
            prepared,
            model,
            data,
            evaluation,
            predictions,
            seed: settings.data_seed,
        })
    }

    /// The measures of the task; with a `Parallel`, of each of its children by itself.
    fn measured(&mut self, events: OnEvent<'_>) -> Result<EvalReport> {
        let children = channel::children(&self.prepared.model)?;
        if children.is_empty() {
            return self.one(events);
        }
        let mut report = EvalReport::default();
        for (name, model) in children {
            self.prepared.model = model;
            let found = self.one(events)?;
            let named = found.metrics.iter();
            let named = named.map(|(metric, x)| (of_child(&name, metric), *x));
            report.metrics.extend(named);
            let predictions = found.predictions.into_iter().map(|mut p| {
                p["adapter"] = json!(name);
                p
            });
            report.predictions.extend(predictions);
            (report.samples, report.items) = (found.samples, found.items);
        }
        Ok(report)
    }

    fn one(&self, events: OnEvent<'_>) -> Result<EvalReport> {
        match self.evaluation.task {
            Task::CausalLm => self.tokens(events),
            Task::Classification
            | Task::Regression
            | Task::MultiLabel
            | Task::Seq2seq
            | Task::TokenClassification
            | Task::QuestionAnswering
            | Task::MaskedLm => self.answers(events),
        }
    }

    /// The examples that are evaluated on: those set apart for it, or all. With the id of padding.
    fn dataset(&self, data: &DataArguments, events: OnEvent<'_>) -> Result<(Dataset, i64)> {
        let data = DataArguments {
            choice: choice(self.prepared.model.model())?,
            ..data.clone()
        };
        let (tokenizer, words) = (
            self.prepared.tokenizer.as_ref(),
            vocabulary(&self.prepared.model.model().graph),
        );
        let loaded = notes(events, |say| data.load(tokenizer, words, self.seed, say))?;
        let most = data.max_eval_samples.unwrap_or(usize::MAX);
        let rows = match loaded.eval {
            Some(eval) => eval,
            None => loaded.train.select(0..most.min(loaded.train.len())),
        };
        Ok((rows, loaded.pad_id))
    }

    /// Measures of tokens: what each row says, and what is generated for it.
    fn tokens(&self, events: OnEvent<'_>) -> Result<EvalReport> {
        let metrics = self.evaluation.metrics();
        let mut report = EvalReport::default();
        if metrics.iter().any(|m| !m.generates()) {
            self.scored(&metrics, &mut report, events)?;
        }
        if metrics.iter().any(|m| m.generates()) {
            self.generated(&metrics, &mut report, events)?;
        }
        Ok(report)
    }

    /// Labelled tokens, against what the model expects at their places.
    fn scored(
        &self,
        metrics: &[Metric],
        report: &mut EvalReport,
        events: OnEvent<'_>,
    ) -> Result<()> {
        let model = &self.prepared.model;
        let (data, _) = self.dataset(&self.data, events)?;
        let rows = data.len();
        // What depends on the whole row is computed for rows of one length only: one by one.
        let alone = !whole_row_adapters(model.model())?.is_empty();
        let size = if alone {
            1
        } else {
            self.evaluation.per_device_eval_batch_size
        };
        let mut at = 0;
        let next = || {
            progress(events, "rows", at, rows)?;
            let batch: Result<Vec<Scored>> = (at..rows.min(at + size))
                .map(|i| labelled(&data, i))
                .collect();
            at = rows.min(at + size);
            batch.map(|b| (!b.is_empty()).then_some(b))
        };
        let mut options = self.model.compile_options()?;
        options.cache_size = self.prepared.files.cache_size();
        let sums = score(model.clone(), self.model.portable, &options, next)?;
        if sums.items == 0 {
            let d = Diagnostic::error("eval-labels", "no token of the data is labelled");
            return Err(Error::new(
                ErrorKind::Train,
                d.help("rows of one token, or labels that are all -100, say nothing"),
            ));
        }
        for m in metrics {
            let value = match m {
                Metric::Loss => sums.mean(),
                Metric::Perplexity => sums.perplexity(),
                Metric::Accuracy => sums.accuracy(),
                _ => continue,
            };
            report.metrics.insert(m.name(), value);
        }
        (report.samples, report.items) = (sums.samples, sums.items);
        Ok(())
    }

    /// Texts that are generated, against the completions.
    fn generated(
        &self,
        metrics: &[Metric],
        report: &mut EvalReport,
        events: OnEvent<'_>,
    ) -> Result<()> {
        let tokenizer = self.prepared.tokenizer.as_ref();
        let pairs = self.pairs(metrics, events)?;
        let texts = self.write(&pairs, events)?;
        let normalization = Normalization {
            ignore_case: self.evaluation.ignore_case,
            ignore_punctuation: self.evaluation.ignore_punctuation,
        };
        // A reference may spell out the token that ends a text, which a text that was generated does not.
        let end = tokenizer
            .and_then(|t| t.decode(&[t.eos_id()?], false).ok())
            .unwrap_or_default();
        let mut hits: BTreeMap<Metric, usize> = BTreeMap::new();
        for (text, pair) in texts.iter().zip(&pairs) {
            let reference = pair.completion.trim();
            let reference = if end.is_empty() {
                reference
            } else {
                reference.trim_end_matches(&*end).trim_end()
            };
            let mut prediction = json!({
                "prompt": pair.prompt, "prediction": text.text, "reference": reference, "finish_reason": text.finish_reason,
            });
            for &m in metrics.iter().filter(|m| m.generates()) {
                let hit = match m {
                    Metric::FinalNumber => same_final_number(&text.text, reference),
                    _ => exact_match(&text.text, reference, normalization),
                };
                *hits.entry(m).or_default() += usize::from(hit);
                prediction[m.name()] = json!(hit);
            }
            report.predictions.push(prediction);
        }
        for (m, n) in hits {
            report
                .metrics
                .insert(m.name(), n as f64 / texts.len() as f64);
        }
        report.samples = texts.len();
        Ok(())
    }

    /// Prompts with their completions.
    fn pairs(&self, metrics: &[Metric], events: OnEvent<'_>) -> Result<Vec<TextPair>> {
        let tokenizer = self.prepared.tokenizer.as_ref();
        let data = DataArguments {
            choice: choice(self.prepared.model.model())?,
            ..self.data.clone()
        };
        let pairs = notes(events, |say| data.text_pairs(tokenizer, say))?;
        let without = pairs.iter().find(|p| final_number(&p.completion).is_none());
        if let (true, Some(pair)) = (metrics.contains(&Metric::FinalNumber), without) {
            let d = Diagnostic::error(
                "eval-row",
                format!("the completion {:?} has no number", pair.completion),
            );
            return Err(Error::new(
                ErrorKind::Train,
                d.help("`final_number` compares numbers; exact_match compares texts"),
            ));
        }
        Ok(pairs)
    }

    /// A text for each prompt.
    fn write(&self, pairs: &[TextPair], events: OnEvent<'_>) -> Result<Vec<Generated>> {
        let tokenizer = self.prepared.tokenizer.as_ref();
        let prompt = |p: &TextPair| {
            let special = !p.special && self.data.add_special_tokens;
            let prompt = Prompt::new(&p.prompt, special, tokenizer)?;
            Ok(Prompt {
                chosen: p.task_id,
                ..prompt
            })
        };
        let prompts: Vec<Prompt> = pairs.iter().map(prompt).collect::<Result<_>>()?;
        let decoder = self.prepared.decoder(&self.model, events)?;
        let settings = &self.prepared.settings;
        let mut texts = Vec::new();
        for chunk in prompts.chunks(settings.args.batch_size) {
            progress(events, "texts", texts.len(), prompts.len())?;
            let silent = &mut |_: usize, _: Heard<'_>| Ok(());
            texts.extend(generate(&decoder, tokenizer, chunk, settings, silent)?);
        }
        progress(events, "texts", prompts.len(), prompts.len())?;
        Ok(texts)
    }

    /// A class, a number or a target for each row.
    fn answers(&self, events: OnEvent<'_>) -> Result<EvalReport> {
        let task = self.evaluation.task;
        let mut data = self.data.clone();
        if task.has_classes() && data.label_names.is_none() {
            let noted = api::classes(&self.prepared.model)?;
            data.label_names = noted.or_else(|| self.prepared.files.classes());
        }
        let (rows, pad_id) = self.dataset(&data, events)?;
        let names = data.label_names.as_deref().unwrap_or_default();
        let labels = label_count(&[&rows], &[])?;
        let asked = Asked {
            task,
            labels,
            names,
        };
        head_fits(&self.prepared.model, &asked)?;
        let answers = self.answered(&rows, pad_id, events)?;
        let mut report = EvalReport {
            samples: rows.len(),
            items: answers.right().len(),
            ..EvalReport::default()
        };
        if !matches!(
            task,
            Task::Seq2seq | Task::TokenClassification | Task::QuestionAnswering | Task::MaskedLm
        ) {
            report.predictions = predictions(&answers, report.samples, task, names);
        }
        for m in self.evaluation.metrics() {
            let value = answers.measure(m, self.evaluation.average, self.evaluation.pos_label);
            report.metrics.insert(m.name(), value);
        }
        Ok(report)
    }

    /// Runs the graph on rows, and keeps what it answers.
    fn answered(&self, data: &Dataset, pad_id: i64, events: OnEvent<'_>) -> Result<Answers> {
        let model = pipelines::inference(self.model.mode())
            .run(self.prepared.model.clone())?
            .model;
        let names = answers_of(&model, self.evaluation.task)?;
        let mut options = self.model.compile_options()?;
        options.outputs = Some(names.clone());
        options.cache_size = self.prepared.files.cache_size();
        let plan = Plan::compile(&model, &options)?;
        let files = &self.prepared.files;
        let decoder_start = files.decoder_start(&self.prepared.model, pad_id, events)?;
        let words = vocabulary(&self.prepared.model.model().graph);
        let tokenizer = self.prepared.tokenizer.as_ref();
        let collator = Collator {
            pad_id,
            decoder_start,
            masking: Masking::of(&self.data, tokenizer, words, self.seed)?,
            ..Collator::default()
        };
        let mut answers = Answers::new(self.evaluation.task);
        let rows: Vec<Vec<usize>> = (0..data.len()).map(|i| vec![i]).collect();
        let mut done = 0;
        for chunk in rows.chunks(self.evaluation.per_device_eval_batch_size) {
            progress(events, "rows", done, data.len())?;
            let feeds = collator.rows(data, chunk)?.feeds;
            let labels = labels_of(&feeds);
            if labels.len() != names.len() {
                let d = Diagnostic::error("eval-row", "the rows have no labels");
                return Err(Error::new(ErrorKind::Train, d.help("see --columns")));
            }
            let results = plan.run(&feeds.for_plan(&plan))?;
            for (name, labels) in names.iter().zip(&labels) {
                answers.add(name, &results[name].0, labels)?;
            }
            done += chunk.len();
        }
        progress(events, "rows", done, data.len())?;
        Ok(answers)
    }
}

fn labelled(data: &Dataset, index: usize) -> Result<Scored> {
    let example = data.get(index)?;
    match example.labels {
        Labels::Tokens(labels) => Ok(Scored {
            ids: example.input_ids,
            labels,
            task_id: example.task_id,
        }),
        _ => Err(Error::new(
            ErrorKind::Train,
            Diagnostic::error("eval-row", "the row has no labels of tokens"),
        )),
    }
}

/// What was answered for each row, and what is right: classes by their names, where they have any.
fn predictions(answers: &Answers, rows: usize, task: Task, names: &[String]) -> Vec<Value> {
    let shown = |x: f64| match names.get(x as usize) {
        Some(name) if task == Task::Classification => json!(name),
        _ if task == Task::Classification => json!(x as i64),
        _ => json!(x),
    };
    // Of several numbers for a row, all of them.
    let width = (answers.right().len() / rows.max(1)).max(1);
    let each = |x: &[f64]| match x {
        each if task == Task::MultiLabel && names.len() == each.len() => {
            let set = names.iter().zip(each).filter(|(_, x)| **x > 0.0);
            set.map(|(name, _)| json!(name)).collect()
        }
        [one] => shown(*one),
        several => several.iter().copied().map(&shown).collect(),
    };
    let pairs = answers
        .found()
        .chunks(width)
        .zip(answers.right().chunks(width));
    pairs
        .enumerate()
        .map(|(row, (p, r))| json!({ "row": row, "prediction": each(p), "reference": each(r) }))
        .collect()
}
