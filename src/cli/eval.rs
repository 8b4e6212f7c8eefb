//! `rewrite eval`.

use super::args::EvalArgs;
use super::generate::Prepared;
use super::{Ui, compile_options, exists, usage, write_file};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::generate::{Generation, full_sequence_adapters, generate, score};
use crate::options;
use crate::runtime::{Feeds, Plan};
use crate::text::Tokenizer;
use crate::train::metrics::{
    Average, Normalization, accuracy, exact_match, final_number, matthews_correlation,
    mean_absolute_error, mean_squared_error, pearson, precision_recall_f1, same_final_number,
    spearman,
};
use crate::train::{
    Dataset, EvalArguments, EvalTask, F1Average, Labels, Metric, Mode, ReadOptions, inference_graph,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;
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

pub(super) fn run(args: &EvalArgs, ui: &Ui) -> Result<()> {
    let evaluation: EvalArguments = options::read(args.evaluation.given.clone())?;
    evaluation.validate()?;
    if let Some(file) = &args.predictions {
        if file.exists() && !args.force {
            return Err(exists(file));
        }
        super::keep(file, [&*args.data, &*args.model])?;
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
    let report = match evaluation.task {
        EvalTask::CausalLm => causal(&prepared, args, &evaluation, ui)?,
        EvalTask::Classification | EvalTask::Regression => {
            whole_rows(&prepared, args, &evaluation, ui)?
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

fn causal(
    prepared: &Prepared,
    args: &EvalArgs,
    evaluation: &EvalArguments,
    ui: &Ui,
) -> Result<Report> {
    let metrics = evaluation.metrics();
    let mut report = Report::default();
    if metrics.iter().any(|m| !m.generates()) {
        let options = ReadOptions {
            tokenizer: prepared.tokenizer.as_ref(),
            max_length: evaluation.max_seq_length,
            vocab: None,
        };
        let data = Dataset::read_jsonl(&args.data, &options)?;
        let rows = data
            .len()
            .min(evaluation.max_eval_samples.unwrap_or(usize::MAX));
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
            let d = Diagnostic::error("eval-labels", "no token of the data is labelled")
                .at(args.data.display().to_string());
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
        generated(prepared, args, evaluation, &metrics, ui, &mut report)?;
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

/// A row as it may stand in a JSON-lines file.
#[derive(Deserialize)]
struct Row {
    prompt: Option<String>,
    completion: Option<String>,
    text: Option<String>,
    label: Option<Value>,
}

fn rows(path: &Path, most: Option<usize>) -> Result<Vec<(String, Row)>> {
    let file = std::fs::File::open(path).map_err(|e| Error::io(path, "cannot open the data", e))?;
    let mut out = Vec::new();
    for (i, line) in std::io::BufReader::new(file).lines().enumerate() {
        if most.is_some_and(|m| out.len() >= m) {
            break;
        }
        let line = line.map_err(|e| Error::io(path, "cannot read the data as UTF-8 text", e))?;
        if line.trim().is_empty() {
            continue;
        }
        let at = format!("{}, line {}", path.display(), i + 1);
        let row = serde_json::from_str(&line).map_err(|e| bad(&at, e.to_string()))?;
        out.push((at, row));
    }
    Ok(out)
}

fn bad(at: &str, message: impl Into<String>) -> Error {
    Error::new(
        ErrorKind::Train,
        Diagnostic::error("eval-row", message).at(at),
    )
}

/// Texts that are generated, against the completions.
fn generated(
    prepared: &Prepared,
    args: &EvalArgs,
    evaluation: &EvalArguments,
    metrics: &[Metric],
    ui: &Ui,
    report: &mut Report,
) -> Result<()> {
    let mut prompts = Vec::new();
    let mut references = Vec::new();
    for (at, row) in rows(&args.data, evaluation.max_eval_samples)? {
        let (Some(prompt), Some(completion)) = (row.prompt, row.completion) else {
            return Err(bad(
                &at,
                "`prompt` and `completion` are needed to compare what is generated",
            ));
        };
        if metrics.contains(&Metric::FinalNumber) && final_number(&completion).is_none() {
            return Err(bad(&at, "the completion has no number"));
        }
        prompts.push(crate::generate::PromptText::Text(prompt));
        references.push(completion);
    }
    let prompts = prepared.encode(&prompts, false)?;
    let decoder = prepared.decoder(&args.exec, args.portable, ui)?;
    let bar = bar(ui, prompts.len(), "texts");
    let mut texts: Vec<Generation> = Vec::new();
    let size = prepared.settings.args.batch_size;
    for (n, chunk) in prompts.chunks(size).enumerate() {
        bar.set_position((n * size) as u64);
        texts.extend(generate(
            &decoder,
            prepared.tokenizer.as_ref(),
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
    let mut hits: BTreeMap<Metric, usize> = BTreeMap::new();
    for (text, reference) in texts.iter().zip(&references) {
        let mut prediction = json!({ "prediction": text.text, "reference": reference, "finish_reason": text.finish_reason });
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
fn whole_rows(
    prepared: &Prepared,
    args: &EvalArgs,
    evaluation: &EvalArguments,
    ui: &Ui,
) -> Result<Report> {
    let Some(tokenizer) = prepared.tokenizer.as_ref() else {
        return Err(usage(
            "rows of text need a tokenizer",
            "--tokenizer tokenizer.json",
        ));
    };
    let classes = evaluation.task == EvalTask::Classification;
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
    let all = rows(&args.data, evaluation.max_eval_samples)?;
    if all.is_empty() {
        return Err(bad(&args.data.display().to_string(), "there are no rows"));
    }
    let bar = bar(ui, all.len(), "rows");
    let (mut found, mut labels) = (Vec::new(), Vec::new());
    for chunk in all.chunks(evaluation.per_device_eval_batch_size) {
        let (feeds, wanted) = feeds(&plan, chunk, tokenizer, prepared, evaluation)?;
        labels.extend(wanted);
        let results = plan.run(&feeds)?;
        let value = &results[&name];
        let data = value
            .to_f32()
            .map_err(|e| Error::new(ErrorKind::Run, Diagnostic::error("eval", e.to_string())))?;
        let width = data.len() / chunk.len().max(1);
        let shaped =
            value.dims().first() == Some(&chunk.len()) && width > 0 && value.dims().len() <= 2;
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
        for row in data.chunks(width) {
            let best = (0..row.len())
                .rev()
                .max_by(|&a, &b| row[a].total_cmp(&row[b]))
                .unwrap_or(0);
            found.push(if classes {
                best as f64
            } else {
                f64::from(row[0])
            });
        }
        bar.inc(chunk.len() as u64);
    }
    bar.finish_and_clear();
    let predictions = found
        .iter()
        .zip(&labels)
        .map(|(p, r)| json!({ "prediction": p, "reference": r }));
    let mut report = Report {
        samples: all.len(),
        items: all.len(),
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

/// A batch of texts, filled up behind their ends, and their labels.
fn feeds(
    plan: &Plan,
    rows: &[(String, Row)],
    tokenizer: &Tokenizer,
    prepared: &Prepared,
    evaluation: &EvalArguments,
) -> Result<(Feeds, Vec<f64>)> {
    let mut texts = Vec::new();
    let mut labels = Vec::new();
    for (at, row) in rows {
        let (Some(text), Some(label)) = (&row.text, &row.label) else {
            return Err(bad(at, "`text` and `label` are needed"));
        };
        let mut ids = tokenizer.encode(text, true)?;
        ids.truncate(evaluation.max_seq_length);
        texts.push(ids);
        let known = label
            .as_f64()
            .or_else(|| prepared.class(label.as_str()?).map(|c| c as f64));
        labels.push(known.ok_or_else(|| {
            bad(
                at,
                format!("the label {label} is none that config.json names"),
            )
        })?);
    }
    let width = texts.iter().map(Vec::len).max().unwrap_or(0);
    let pad = tokenizer.pad_id().unwrap_or(0);
    let mut feeds = Feeds::new();
    for spec in plan.feeds() {
        let (of, behind): (&dyn Fn(usize, i64) -> i64, i64) = match spec.name.as_str() {
            "input_ids" => (&|_, id| id, pad),
            "attention_mask" => (&|_, _| 1, 0),
            "token_type_ids" => (&|_, _| 0, 0),
            "position_ids" => (&|i, _| i as i64, 0),
            _ => continue,
        };
        let mut data = vec![behind; texts.len() * width];
        for (ids, to) in texts.iter().zip(data.chunks_mut(width.max(1))) {
            for (i, (&id, to)) in ids.iter().zip(to).enumerate() {
                *to = of(i, id);
            }
        }
        let value = crate::runtime::Value::from_i64(&[texts.len(), width], data);
        feeds.insert(
            &spec.name,
            value.map_err(|e| {
                Error::new(ErrorKind::Run, Diagnostic::error("eval", e.to_string()))
            })?,
        );
    }
    Ok((feeds, labels))
}
