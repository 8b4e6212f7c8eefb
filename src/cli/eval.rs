//! `rewrite eval`.

use super::args::EvalArgs;
use super::generate::Prepared;
use super::{Ui, attach, compile_options, exists, train, usage, write_file};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::{Generation, Prompt, full_sequence_adapters, generate, score};
use crate::options;
use crate::runtime::Plan;
use crate::train::metrics::{
    Average, Normalization, accuracy, exact_match, final_number, matthews_correlation,
    mean_absolute_error, mean_squared_error, pearson, precision_recall_f1, same_final_number,
    spearman,
};
use crate::train::{
    Collator, DataArguments, Dataset, EvalArguments, EvalTask, Example, F1Average, Job, Labels,
    Metric, Mode, TextPair, inference_graph,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// What was measured.
#[derive(Default)]
struct Report {
    metrics: BTreeMap<String, f64>,
    samples: usize,
    items: usize,
    /// One JSON object for each row.
    predictions: Vec<Value>,
}

/// What is evaluated on what: the command line over the job file.
struct Request {
    args: EvalArgs,
    evaluation: EvalArguments,
    data: DataArguments,
}

fn request(args: &EvalArgs, ui: &Ui) -> Result<Request> {
    let mut args = args.clone();
    let mut options: Map<String, Value> = Map::new();
    if args.model.extension().is_some_and(|e| e == "json") {
        let folder = args
            .model
            .parent()
            .map_or_else(PathBuf::new, Path::to_path_buf);
        let mut file = Job::open(&args.model)?;
        super::remote::job(&mut file, ui)?;
        let mut data: DataArguments = options::read(options::take::<DataArguments>(&mut file))?;
        data.beside(&folder);
        if let Value::Object(fields) = json!(data) {
            options.extend(fields);
        }
        let job = Job::read(file)?.job;
        let model = job
            .model
            .ok_or_else(|| usage("the job names no model", "\"model\": \"model.onnx\""))?;
        args.model = folder.join(model);
        args.select.interface = args
            .select
            .interface
            .or_else(|| Some(train::located(&folder, &job.interface?)));
        args.tokenizer = args.tokenizer.or_else(|| Some(folder.join(job.tokenizer?)));
        if args.data.given.contains_key("data") {
            // The job's own evaluation data stands back.
            options.shift_remove("eval_data");
            options.shift_remove("eval_split");
        }
    }
    options.extend(args.data.given.clone());
    options.extend(args.evaluation.given.clone());
    let data: DataArguments = options::read(options::take::<DataArguments>(&mut options.clone()))?;
    if data.data.is_none() {
        return Err(usage("no data was given", "--data test.jsonl"));
    }
    let evaluation: EvalArguments = options::read(options::take::<EvalArguments>(&mut options))?;
    evaluation.validate()?;
    Ok(Request {
        args,
        evaluation,
        data,
    })
}

pub(super) fn run(args: &EvalArgs, ui: &Ui) -> Result<()> {
    let request = request(args, ui)?;
    let args = &request.args;
    if let Some(file) = &args.predictions {
        if file.exists() && !args.force {
            return Err(exists(file));
        }
        super::keep(file, [&*args.model])?;
    }
    let started = Instant::now();
    let mut given = args.generation.given.clone();
    if !args.stop_strings.is_empty() {
        given.insert("stop_strings".into(), json!(args.stop_strings));
    }
    // What the model's files say for conversations is not what a measure should depend on.
    given.entry("do_sample").or_insert(json!(false));
    let prepared = Prepared::new(
        &args.model,
        &args.select,
        args.tokenizer.as_deref(),
        &given,
        ui,
    )?;
    let report = match request.evaluation.task {
        EvalTask::CausalLm => causal(&prepared, &request, ui)?,
        EvalTask::Classification | EvalTask::Regression => whole_rows(&prepared, &request, ui)?,
    };
    let seconds = started.elapsed().as_secs_f64();
    if let Some(file) = &args.predictions {
        let lines: Vec<String> = report.predictions.iter().map(Value::to_string).collect();
        write_file(file, (lines.join("\n") + "\n").as_bytes())?;
    }
    let document = json!({
        "metrics": report.metrics, "samples": report.samples, "items": report.items, "runtime": seconds,
        "predictions": args.predictions,
    });
    ui.result(&document, || {
        let line = |(name, x): (&String, &f64)| format!("{name:<22} {x:.6}\n");
        let mut text: String = report.metrics.iter().map(line).collect();
        text += &format!("{:<22} {}\n", "samples", report.samples);
        text
    })
}

fn bar(ui: &Ui, total: usize, what: &str) -> ProgressBar {
    let bar = if ui.progress() {
        ProgressBar::new(total as u64)
    } else {
        ProgressBar::hidden()
    };
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {pos}/{len} {msg}  {eta} left") {
        bar.set_style(style);
    }
    bar.set_message(what.to_owned());
    bar
}

/// The examples that are evaluated on: those set apart for it, or all.
fn dataset(prepared: &Prepared, request: &Request, ui: &Ui) -> Result<(Dataset, i64)> {
    let most = request.data.max_eval_samples;
    let loaded = request
        .data
        .load(prepared.tokenizer.as_ref(), None, 42, &mut |line| {
            ui.note(&line);
        })?;
    let data = match loaded.eval {
        Some(eval) => eval,
        None => loaded
            .train
            .select(0..most.unwrap_or(usize::MAX).min(loaded.train.len())),
    };
    Ok((data, loaded.pad_id))
}

fn causal(prepared: &Prepared, request: &Request, ui: &Ui) -> Result<Report> {
    let (args, evaluation) = (&request.args, &request.evaluation);
    let metrics = evaluation.metrics();
    let mut report = Report::default();
    if metrics.iter().any(|m| !m.generates()) {
        let (data, _) = dataset(prepared, request, ui)?;
        let rows = data.len();
        // What depends on the whole row is computed for rows of one length only: one by one.
        let alone = !full_sequence_adapters(prepared.model.model()).is_empty();
        let size = if alone {
            1
        } else {
            evaluation.per_device_eval_batch_size
        };
        let bar = bar(ui, rows, "rows");
        let mut at = 0;
        let next = || {
            bar.set_position(at as u64);
            let batch: Result<Vec<(Vec<i64>, Vec<i64>)>> = (at..rows.min(at + size))
                .map(|i| tokens(&data, i))
                .collect();
            at = rows.min(at + size);
            batch.map(|b| (!b.is_empty()).then_some(b))
        };
        let sums = score(
            prepared.model.clone(),
            args.portable,
            &compile_options(&args.exec)?,
            next,
        )?;
        bar.finish_and_clear();
        if sums.items == 0 {
            let d = Diagnostic::error("eval-labels", "no token of the data is labelled");
            return Err(Error::new(
                ErrorKind::Train,
                d.help("rows of one token, or labels that are all -100, say nothing"),
            ));
        }
        for m in &metrics {
            let value = match m {
                Metric::Loss => sums.mean(),
                Metric::Perplexity => sums.perplexity(),
                Metric::Accuracy => sums.accuracy(),
                _ => continue,
            };
            report.metrics.insert(m.name(), value);
        }
        (report.samples, report.items) = (sums.samples, sums.items);
    }
    if metrics.iter().any(|m| m.generates()) {
        generated(prepared, request, &metrics, ui, &mut report)?;
    }
    Ok(report)
}

fn tokens(data: &Dataset, index: usize) -> Result<(Vec<i64>, Vec<i64>)> {
    let example = data.get(index)?;
    match example.labels {
        Labels::Tokens(labels) => Ok((example.input_ids, labels)),
        Labels::Sequence(_) | Labels::Class(_) | Labels::Values(_) => Err(Error::new(
            ErrorKind::Train,
            Diagnostic::error("eval-row", "the row has no labels of tokens"),
        )),
    }
}

/// Texts that are generated, against the completions.
fn generated(
    prepared: &Prepared,
    request: &Request,
    metrics: &[Metric],
    ui: &Ui,
    report: &mut Report,
) -> Result<()> {
    let (args, evaluation) = (&request.args, &request.evaluation);
    let tokenizer = prepared.tokenizer.as_ref();
    let pairs: Vec<TextPair> = request
        .data
        .text_pairs(tokenizer, &mut |line| ui.note(&line))?;
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
    let prompt = |p: &TextPair| {
        Prompt::new(
            &p.prompt,
            !p.special && request.data.add_special_tokens,
            tokenizer,
        )
    };
    let prompts: Vec<Prompt> = pairs.iter().map(prompt).collect::<Result<_>>()?;
    let decoder = prepared.decoder(&args.exec, args.portable, ui)?;
    let bar = bar(ui, prompts.len(), "texts");
    let mut texts: Vec<Generation> = Vec::new();
    let size = prepared.settings.args.batch_size;
    for (n, chunk) in prompts.chunks(size).enumerate() {
        bar.set_position((n * size) as u64);
        texts.extend(generate(
            &decoder,
            tokenizer,
            chunk,
            &prepared.settings,
            &mut |_, _| Ok(()),
        )?);
    }
    bar.finish_and_clear();
    let normalization = Normalization {
        ignore_case: evaluation.ignore_case,
        ignore_punctuation: evaluation.ignore_punctuation,
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

/// A class or a number for each row.
fn whole_rows(prepared: &Prepared, request: &Request, ui: &Ui) -> Result<Report> {
    let (args, evaluation) = (&request.args, &request.evaluation);
    let classes = evaluation.task == EvalTask::Classification;
    let mut with_names = request.data.clone();
    if classes && with_names.label_names.is_none() {
        with_names.label_names =
            attach::saved_classes(&args.select)?.or_else(|| prepared.classes());
    }
    let request = &Request {
        args: args.clone(),
        evaluation: evaluation.clone(),
        data: with_names,
    };
    let (data, pad_id) = dataset(prepared, request, ui)?;
    let mode = if args.portable {
        Mode::Portable
    } else {
        Mode::Native
    };
    let model = inference_graph(prepared.model.clone(), mode)?;
    let id = crate::rewrite::passes::logits::logits(&model.model().graph, None)
        .map_err(|d| Error::new(ErrorKind::Run, d))?;
    let name = model.model().graph.name_of(id).to_owned();
    let mut options = compile_options(&args.exec)?;
    options.outputs = Some(vec![name.clone()]);
    let plan = Plan::compile(&model, &options)?;
    let collator = Collator {
        pad_id,
        ..Collator::default()
    };
    let bar = bar(ui, data.len(), "rows");
    let (mut found, mut labels) = (Vec::new(), Vec::new());
    let indices: Vec<usize> = (0..data.len()).collect();
    for chunk in indices.chunks(evaluation.per_device_eval_batch_size) {
        let examples: Vec<Example> = chunk.iter().map(|&i| data.get(i)).collect::<Result<_>>()?;
        for e in &examples {
            labels.push(label(e)?);
        }
        let rows: Vec<Vec<Example>> = examples.into_iter().map(|e| vec![e]).collect();
        let mut feeds = collator.collate(&rows)?.feeds;
        feeds
            .0
            .retain(|k, _| plan.feeds().iter().any(|f| f.name == *k));
        let results = plan.run(&feeds)?;
        found.extend(answers(&results[&name], &name, chunk.len(), classes)?);
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let predictions = found
        .iter()
        .zip(&labels)
        .map(|(p, r)| json!({ "prediction": p, "reference": r }));
    let mut report = Report {
        samples: data.len(),
        items: data.len(),
        predictions: predictions.collect(),
        ..Report::default()
    };
    for m in evaluation.metrics() {
        report
            .metrics
            .insert(m.name(), measure(m, evaluation, &found, &labels));
    }
    Ok(report)
}

/// The class or the number of a row.
fn label(example: &Example) -> Result<f64> {
    match &example.labels {
        Labels::Class(c) => Ok(*c as f64),
        Labels::Values(v) if v.len() == 1 => Ok(f64::from(v[0])),
        Labels::Values(_) | Labels::Tokens(_) | Labels::Sequence(_) => {
            let d = Diagnostic::error("eval-row", "a row has no class, and no number");
            Err(Error::new(
                ErrorKind::Train,
                d.help("`text` and `label` are needed; see --columns"),
            ))
        }
    }
}

/// The most probable class of each row, or its number.
fn answers(
    value: &crate::runtime::Value,
    name: &str,
    rows: usize,
    classes: bool,
) -> Result<Vec<f64>> {
    let data = value
        .to_f32()
        .map_err(|e| Error::new(ErrorKind::Run, Diagnostic::error("eval", e.to_string())))?;
    let width = data.len() / rows.max(1);
    let shaped = value.dims().first() == Some(&rows) && width > 0 && value.dims().len() <= 2;
    if !shaped || (!classes && width != 1) || (classes && width < 2) {
        let want = if classes {
            "[rows, classes]"
        } else {
            "[rows, 1]"
        };
        let d = Diagnostic::error(
            "eval-output",
            format!(
                "`{name}` has the shape {:?}; {want} is needed",
                value.dims()
            ),
        );
        return Err(Error::new(ErrorKind::Run, d.help("choose another --task")));
    }
    let best = |row: &[f32]| {
        (0..row.len())
            .rev()
            .max_by(|&a, &b| row[a].total_cmp(&row[b]))
            .unwrap_or(0)
    };
    Ok(data
        .chunks(width)
        .map(|row| {
            if classes {
                best(row) as f64
            } else {
                f64::from(row[0])
            }
        })
        .collect())
}

fn measure(metric: Metric, evaluation: &EvalArguments, found: &[f64], labels: &[f64]) -> f64 {
    let ids = |v: &[f64]| v.iter().map(|&x| x as i64).collect::<Vec<_>>();
    let (p, r) = (ids(found), ids(labels));
    let two = p.iter().chain(&r).all(|c| (0..2).contains(c));
    let average = match evaluation.average {
        Some(F1Average::Micro) => Average::Micro,
        Some(F1Average::Weighted) => Average::Weighted,
        Some(F1Average::Macro) => Average::Macro,
        None if !two => Average::Macro,
        Some(F1Average::Binary) | None => Average::Binary {
            positive: evaluation.pos_label,
        },
    };
    let scores = || precision_recall_f1(&p, &r, average);
    match metric {
        Metric::Accuracy => accuracy(&p, &r),
        Metric::F1 => scores().f1,
        Metric::Precision => scores().precision,
        Metric::Recall => scores().recall,
        Metric::MatthewsCorrelation => matthews_correlation(&p, &r),
        Metric::Mse => mean_squared_error(found, labels),
        Metric::Mae => mean_absolute_error(found, labels),
        Metric::Pearson => pearson(found, labels),
        Metric::Spearman => spearman(found, labels),
        Metric::Loss | Metric::Perplexity | Metric::ExactMatch | Metric::FinalNumber => f64::NAN,
    }
}
