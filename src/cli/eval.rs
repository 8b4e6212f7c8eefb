//! `rewrite eval`.

use super::args::EvalArgs;
use super::generate::Prepared;
use super::{Ui, attach, compile_options, exists, train, usage, write_file};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::{Generation, Prompt, Scored, full_sequence_adapters, generate, score};
use crate::ir::contract;
use crate::options;
use crate::runtime::Plan;
use crate::train::metrics::{Normalization, exact_match, final_number, same_final_number};
use crate::train::{
    Answers, Collator, DataArguments, Dataset, EvalArguments, Example, Job, Labels, Metric, Mode,
    Task, TextPair, TrainingArguments, inference_graph,
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
    /// The seed that sets rows apart for evaluation: that of the run, so that they are the same ones.
    seed: u64,
}

fn request(args: &EvalArgs, ui: &Ui) -> Result<Request> {
    let mut args = args.clone();
    let mut options: Map<String, Value> = Map::new();
    let mut seed = TrainingArguments::default().seed;
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
        let job = Job::read(file)?;
        seed = job.training.data_seed.unwrap_or(job.training.seed);
        let job = job.job;
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
    let mut data: DataArguments =
        options::read(options::take::<DataArguments>(&mut options.clone()))?;
    super::generate::within_positions(&mut data.max_seq_length, &args.model, ui);
    if data.data.is_none() {
        return Err(usage("no data was given", "--data test.jsonl"));
    }
    let evaluation: EvalArguments = options::read(options::take::<EvalArguments>(&mut options))?;
    evaluation.validate()?;
    Ok(Request {
        args,
        evaluation,
        data,
        seed,
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
    train::fits(&prepared.model, request.evaluation.task, true)?;
    let report = match request.evaluation.task {
        Task::CausalLm => causal(&prepared, &request, ui)?,
        Task::Classification | Task::Regression | Task::MultiLabel | Task::Seq2seq => {
            answered(&prepared, &request, ui)?
        }
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
    let data = DataArguments {
        task_count: train::task_count(request.args.select.active.as_deref()),
        ..request.data.clone()
    };
    let loaded = data.load(
        prepared.tokenizer.as_ref(),
        train::vocabulary(&prepared.model),
        request.seed,
        &mut |line| ui.note(&line),
    )?;
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
            let batch: Result<Vec<Scored>> = (at..rows.min(at + size))
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

fn tokens(data: &Dataset, index: usize) -> Result<Scored> {
    let example = data.get(index)?;
    match example.labels {
        Labels::Tokens(labels) => Ok(Scored {
            ids: example.input_ids,
            labels,
            task_id: example.task_id,
        }),
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

/// A class, a number or a target for each row.
fn answered(prepared: &Prepared, request: &Request, ui: &Ui) -> Result<Report> {
    let (args, evaluation) = (&request.args, &request.evaluation);
    let task = evaluation.task;
    let named = matches!(task, Task::Classification | Task::MultiLabel);
    let mut with_names = request.data.clone();
    if named && with_names.label_names.is_none() {
        with_names.label_names =
            attach::saved_classes(&args.select)?.or_else(|| prepared.classes());
    }
    let request = &Request {
        args: args.clone(),
        evaluation: evaluation.clone(),
        data: with_names,
        seed: request.seed,
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
        decoder_start: pad_id,
        ..Collator::default()
    };
    let bar = bar(ui, data.len(), "rows");
    let mut answers = Answers::new(task);
    let indices: Vec<usize> = (0..data.len()).collect();
    for chunk in indices.chunks(evaluation.per_device_eval_batch_size) {
        let rows: Vec<Vec<Example>> = chunk
            .iter()
            .map(|&i| data.get(i).map(|e| vec![e]))
            .collect::<Result<_>>()?;
        let mut feeds = collator.collate(&rows)?.feeds;
        let labels = feeds.0.shift_remove(contract::LABELS).ok_or_else(|| {
            let d = Diagnostic::error("eval-row", "the rows have no labels");
            Error::new(ErrorKind::Train, d.help("see --columns"))
        })?;
        feeds
            .0
            .retain(|k, _| plan.feeds().iter().any(|f| f.name == *k));
        let results = plan.run(&feeds)?;
        answers.add(&name, &results[&name], &labels)?;
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let names = request.data.label_names.as_deref().unwrap_or_default();
    // Classes by their names, where they have any.
    let shown = |x: f64| match names.get(x as usize) {
        Some(name) if task == Task::Classification => json!(name),
        _ if task == Task::Classification => json!(x as i64),
        _ => json!(x),
    };
    let mut report = Report {
        samples: data.len(),
        items: answers.right().len(),
        ..Report::default()
    };
    if task != Task::Seq2seq {
        // Of several numbers for a row, all of them.
        let width = (report.items / report.samples.max(1)).max(1);
        let each = |x: &[f64]| match x {
            [one] => shown(*one),
            several => several.iter().copied().map(&shown).collect(),
        };
        let pairs = answers
            .found()
            .chunks(width)
            .zip(answers.right().chunks(width));
        report.predictions = pairs
            .enumerate()
            .map(|(row, (p, r))| json!({ "row": row, "prediction": each(p), "reference": each(r) }))
            .collect();
    }
    for m in evaluation.metrics() {
        let value = answers.measure(m, evaluation.average, evaluation.pos_label);
        report.metrics.insert(m.name(), value);
    }
    Ok(report)
}
