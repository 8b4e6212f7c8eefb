//! The report of a run: one HTML file with its curves as SVG, readable without network and without scripts, in light and dark.

mod chart;
mod compare;
mod look;

pub(crate) use compare::comparison;

use super::RunRecord;
use crate::diag::{Diagnostic, grouped};
use crate::error::{Error, ErrorKind, Result};
use chart::{Chart, Curve, RATE, chart, drawable, series, told};
use minijinja::value::Serde;
use minijinja::{Environment, Value as Context, context};
use serde::Serialize;
use serde_json::Value;

const TEMPLATE: &str = include_str!("page.html");
/// Rows of a table: more are thinned out.
const ROWS: usize = 200;
/// Tables up to here are open.
const OPEN: usize = 12;

fn failed(e: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("report", e.to_string()))
}

/// The report as HTML.
///
/// # Errors
/// What the drawing or the template refuse.
pub(crate) fn html(record: &RunRecord) -> Result<String> {
    let look = match &record.look {
        Some(look) => Some(Serde(look::shown(look)?)),
        None => None,
    };
    page(context! {
        title => title(record),
        subtitle => subtitle(record),
        facts => facts(record),
        picture => &record.picture,
        charts => Serde(charts(record)?),
        look => look,
        tables => Serde(tables(record)),
        warnings => &record.warnings,
        data => &record.data,
        adapters => &record.adapters,
        job => serde_json::to_string_pretty(&set(&record.job)).map_err(failed)?,
        version => env!("CARGO_PKG_VERSION"),
    })
}

fn page(values: Context) -> Result<String> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    env.add_template("report", TEMPLATE).map_err(failed)?;
    let template = env.get_template("report").map_err(failed)?;
    template.render(values).map_err(failed)
}

/// The job without what it leaves open.
fn set(job: &Value) -> Value {
    match job {
        Value::Object(map) => map
            .iter()
            .filter(|(_, v)| !v.is_null())
            .map(|(k, v)| (k.clone(), set(v)))
            .collect(),
        other => other.clone(),
    }
}

/// The last part of a path.
fn last(path: &str) -> &str {
    path.rsplit(['/', '\\'])
        .find(|p| !p.is_empty())
        .unwrap_or(path)
}

/// What the model is called.
fn model(record: &RunRecord) -> Option<&str> {
    let named = Some(record.model.as_str()).filter(|m| !m.is_empty());
    named.or_else(|| record.job["model"].as_str().map(last))
}

fn title(record: &RunRecord) -> String {
    match (model(record), record.names.as_slice()) {
        (Some(model), []) => format!("Training report: {model}"),
        (Some(model), names) => format!("{} on {model}", names.join(", ")),
        (None, _) => "Training report".to_owned(),
    }
}

/// The run and its task.
fn subtitle(record: &RunRecord) -> String {
    let run = record.job["output_dir"].as_str().map(last);
    let parts = [
        run.map(|r| format!("training report of the run {r}")),
        record.job["task"].as_str().map(str::to_owned),
    ];
    let parts: Vec<String> = parts.into_iter().flatten().collect();
    parts.join(" · ")
}

/// Losses of steps, or of the log's entries where those are not known.
fn losses(record: &RunRecord) -> chart::Line {
    let logged = series(&record.log, &["loss"]);
    if record.steps.len() > logged.len() {
        let steps = record.losses().into_iter();
        return drawable(steps.map(|s| (s.0 as f64, s.1)));
    }
    logged
}

/// The run in a few numbers.
fn facts(record: &RunRecord) -> Vec<(&'static str, String)> {
    let (begin, end) = (&record.begin, &record.end);
    let mut out = Vec::new();
    let mut fact = |name, text: Option<String>| out.extend(text.map(|t| (name, t)));
    let count = |v: &Value| v.as_u64().map(grouped);
    let ended = end["reason"].as_str().map(|r| r.replace('_', " "));
    let open = "still running, or broken off";
    fact("Ended", Some(ended.unwrap_or_else(|| open.to_owned())));
    let done = end["steps"]
        .as_u64()
        .or_else(|| record.log.last()?["step"].as_u64());
    let of = count(&begin["total_steps"]);
    let steps = done.map(|d| match &of {
        Some(of) if *of != grouped(d) => format!("{} of {of}", grouped(d)),
        _ => grouped(d),
    });
    fact("Steps", steps);
    let epoch = record.log.last().and_then(|e| e["epoch"].as_f64());
    fact("Epochs", epoch.map(|e| format!("{e:.2}")));
    fact("Training examples", count(&begin["examples"]));
    fact("Trained parameters", count(&begin["trainable"]));
    let line = losses(record);
    if let (Some(first), Some(last)) = (line.first(), line.last()) {
        fact(
            "Training loss",
            Some(format!("{:.4} → {:.4}", first.1, last.1)),
        );
    }
    let evaluated = series(&record.evaluations, &["metrics", "loss"]);
    if let Some(last) = evaluated.last() {
        let first = evaluated.first().filter(|f| f.0 < last.0);
        let first = first.map_or_else(String::new, |f| format!("{:.4} → ", f.1));
        fact("Evaluation loss", Some(format!("{first}{:.4}", last.1)));
    }
    if let (Some(step), Some(metric)) = (end["best_step"].as_u64(), end["best_metric"].as_f64()) {
        fact(
            "Best evaluation",
            Some(format!("{metric:.4} at step {}", grouped(step))),
        );
    }
    fact("Time", end["runtime"].as_f64().map(time));
    out
}

/// Seconds for people.
fn time(seconds: f64) -> String {
    let s = seconds.round() as u64;
    match s {
        0..60 => format!("{seconds:.1} s"),
        60..3600 => format!("{} min {} s", s / 60, s % 60),
        _ => format!("{} h {} min", s / 3600, s % 3600 / 60),
    }
}

/// A number for people. What is no number, as a loss that is none, is a dash.
fn short(v: &Value) -> String {
    let Some(x) = v.as_f64() else {
        return "–".to_owned();
    };
    if v.is_u64() {
        return grouped(v.as_u64().unwrap_or_default());
    }
    digits(x)
}

fn digits(x: f64) -> String {
    let size = x.abs();
    if x == 0.0 {
        return "0".to_owned();
    }
    if !(1e-3..1e6).contains(&size) {
        // 1.000e-4 says no more than 1e-4.
        let text = format!("{x:.3e}");
        let Some((number, exponent)) = text.split_once('e') else {
            return text;
        };
        let number = number.trim_end_matches('0').trim_end_matches('.');
        return format!("{number}e{exponent}");
    }
    let decimals = if size < 10.0 {
        4
    } else if size < 1000.0 {
        2
    } else {
        0
    };
    let text = format!("{x:.decimals$}");
    if decimals == 0 {
        return text;
    }
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// Every so many of a list, the last one always among them.
fn thinned<T>(list: &[T], most: usize) -> Vec<&T> {
    let every = list.len().div_ceil(most).max(1);
    let last = list.len().saturating_sub(1);
    list.iter()
        .enumerate()
        .filter(|(i, _)| i % every == 0 || *i == last)
        .map(|(_, e)| e)
        .collect()
}

#[derive(Serialize)]
struct Table {
    title: &'static str,
    note: String,
    head: Vec<String>,
    rows: Vec<Vec<String>>,
    open: bool,
}

/// Columns of the log.
const LOG: [(&str, &str); 6] = [
    ("Step", "step"),
    ("Epoch", "epoch"),
    ("Loss", "loss"),
    ("Learning rate", "learning_rate"),
    ("Gradient norm", "grad_norm"),
    ("Tokens/s", "tokens_per_second"),
];

fn tables(record: &RunRecord) -> Vec<Table> {
    let measures = measures(record);
    let evaluations = |e: &Value| -> Vec<String> {
        let mut row = vec![short(&e["step"]), short(&e["epoch"])];
        row.extend(measures.iter().map(|m| short(&e["metrics"][m])));
        row.push(short(&e["samples"]));
        row
    };
    let mut head = vec!["Step".to_owned(), "Epoch".to_owned()];
    head.extend(measures.iter().cloned());
    head.push("Examples".to_owned());
    let log = |e: &Value| LOG.iter().map(|(_, key)| short(&e[key])).collect();
    let names = LOG.iter().map(|(name, _)| (*name).to_owned()).collect();
    let mut out = vec![
        table("Evaluations", &record.evaluations, head, &evaluations),
        table("Training log", &record.log, names, &log),
    ];
    out.retain(|t| !t.rows.is_empty());
    out
}

fn table(
    title: &'static str,
    entries: &[Value],
    head: Vec<String>,
    row: &dyn Fn(&Value) -> Vec<String>,
) -> Table {
    let shown = thinned(entries, ROWS);
    let note = if shown.len() < entries.len() {
        format!("{} of {} entries", shown.len(), entries.len())
    } else {
        let word = if entries.len() == 1 {
            "entry"
        } else {
            "entries"
        };
        format!("{} {word}", entries.len())
    };
    Table {
        title,
        note,
        head,
        open: shown.len() <= OPEN,
        rows: shown.into_iter().map(row).collect(),
    }
}

/// Names of measures, the loss first; so many that a page can show them.
fn measures(record: &RunRecord) -> Vec<String> {
    const MOST: usize = 24;
    let metrics = record
        .evaluations
        .iter()
        .filter_map(|e| e["metrics"].as_object());
    let mut names: Vec<String> = metrics.flat_map(serde_json::Map::keys).cloned().collect();
    names.sort_by_key(|n| (n != "loss", n.clone()));
    names.dedup();
    names.truncate(MOST);
    names
}

fn charts(record: &RunRecord) -> Result<Vec<Chart>> {
    let evaluated = |name: &str| Curve {
        name: "evaluation".to_owned(),
        points: series(&record.evaluations, &["metrics", name]),
        colour: 1,
        faint: false,
    };
    let mut loss = told("training", losses(record), 0);
    loss.push(evaluated("loss"));
    let mut out = vec![chart("Loss", loss, (true, false))?];
    for (title, key) in [
        (RATE, "learning_rate"),
        ("Gradient norm", "grad_norm"),
        ("Tokens per second", "tokens_per_second"),
    ] {
        let line = series(&record.log, &[key]);
        // A point is no curve; the table has it.
        if line.len() < 2 {
            continue;
        }
        let curves = told(&title.to_lowercase(), line, 0);
        out.push(chart(title, curves, (false, false))?);
    }
    for name in measures(record).iter().filter(|n| *n != "loss") {
        let curves = vec![evaluated(name)];
        out.push(chart(&capital(name), curves, (false, false))?);
    }
    Ok(out.into_iter().flatten().collect())
}

/// A name as a title: `exact_match` is `Exact match`.
fn capital(name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().map(char::to_uppercase);
    let text: String = first.into_iter().flatten().chain(letters).collect();
    text.replace('_', " ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record() -> RunRecord {
        let mut r = RunRecord::new(
            json!({"model": "<script>alert(1)</script>", "seed": 1, "resume": null}),
        );
        for step in 1..5 {
            r.line(&json!({"event": "log", "step": step, "epoch": 0.1, "loss": 4.0 / f64::from(step), "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_second": 100.0}));
        }
        r.line(&json!({"event": "log", "step": 5, "epoch": 0.5, "loss": null, "learning_rate": 1e-4, "grad_norm": null, "tokens_per_second": 100.0}));
        r.line(&json!({"event": "evaluate", "step": 4, "epoch": 0.4, "metrics": {"loss": 1.5, "\"><b>": 0.5}, "samples": 3, "items": 9, "runtime": 0.1}));
        r.line(&json!({"event": "warning", "message": "a < b"}));
        r
    }

    #[test]
    fn a_report_stands_by_itself_and_escapes_what_it_quotes() {
        let text = html(&record()).unwrap();
        // The first chart twice: for narrow pages, and for wide ones.
        assert_eq!(text.matches("<svg").count(), 6);
        assert!(text.contains("a &lt; b"));
        assert!(!text.contains("<script") && !text.contains("<b>"));
        let own = text.replace("http://www.w3.org/2000/svg", "");
        assert!(
            !own.contains("http") && !own.contains("url("),
            "nothing is fetched"
        );
        assert!(
            !text.contains("&quot;resume&quot;"),
            "what the job leaves open is not shown"
        );
    }

    #[test]
    fn a_report_is_called_after_its_run() {
        let mut r = record();
        r.job = json!({"model": "../a/model.onnx", "output_dir": "runs/seventh/"});
        assert_eq!(title(&r), "Training report: model.onnx");
        (r.model, r.names) = ("tiny/model.onnx".to_owned(), vec!["math".to_owned()]);
        assert_eq!(title(&r), "math on tiny/model.onnx");
        assert_eq!(subtitle(&r), "training report of the run seventh");
    }

    #[test]
    fn losses_are_shown_as_a_terminal_shows_them() {
        let mut r = record();
        r.steps = (1..=9).map(|s| (s, 0.00123 * s as f64)).collect();
        let text = html(&r).unwrap();
        assert!(text.contains("<dd>0.0012 → 0.0111</dd>"), "every step");
    }

    #[test]
    fn a_picture_of_the_model_stands_where_there_is_one() {
        let mut r = record();
        assert!(!html(&r).unwrap().contains("class=\"picture\""));
        r.picture = "<svg id=\"model\"></svg>".to_owned();
        assert!(html(&r).unwrap().contains("<svg id=\"model\"></svg>"));
    }

    #[test]
    fn a_curve_is_told_in_words() {
        let text = html(&record()).unwrap();
        assert!(text.contains(
            "aria-label=\"training by step, from 4 at step 1 to 1 at step 4, between 1 and 4; evaluation by step, from 1.5"
        ));
    }

    #[test]
    fn a_loss_that_is_no_number_is_a_dash() {
        assert!(html(&record()).unwrap().contains("<td>0.5</td><td>–</td>"));
    }

    #[test]
    fn a_run_without_entries_has_a_report_without_curves() {
        let text = html(&RunRecord::default()).unwrap();
        assert!(!text.contains("<svg") && text.contains("still running"));
    }

    #[test]
    fn long_runs_are_thinned_out() {
        let list: Vec<u32> = (0..10_001).collect();
        let few = thinned(&list, 200);
        assert!(few.len() <= 201 && *few[0] == 0 && **few.last().unwrap() == 10_000);
    }

    #[test]
    fn the_report_of_a_long_run_is_small() {
        let mut r = RunRecord::default();
        for step in 1..=1_000_000u64 {
            let loss = 2.0 + (step % 97) as f64 / 97.0;
            r.steps.push((step, loss));
            if step % 100 == 0 {
                r.line(&json!({"event": "log", "step": step, "epoch": 0.1, "loss": loss, "learning_rate": 1e-4, "grad_norm": loss, "tokens_per_second": loss}));
            }
        }
        let size = html(&r).unwrap().len();
        // Five drawings of two lines of 800 points in some 12 characters, and a table of 200 rows.
        assert!(size < 250_000, "{size}");
    }

    #[test]
    fn numbers_are_short() {
        let all = [0.0, 1.5, 123.456, 1234.5, 1e-4, 5e7, 1.234e-5].map(digits);
        assert_eq!(
            all,
            ["0", "1.5", "123.46", "1234", "1e-4", "5e7", "1.234e-5"]
        );
        assert_eq!(
            [time(5.25), time(65.0), time(3700.0)],
            ["5.2 s", "1 min 5 s", "1 h 1 min"]
        );
    }
}
