//! The report of a run: one HTML file with its curves as SVG, readable without network and without scripts, in light and dark.

use super::RunRecord;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use minijinja::value::Serde;
use minijinja::{Environment, context};
use plotters::prelude::{
    ChartBuilder, Circle, IntoDrawingArea, LineSeries, RGBColor, SVGBackend, ShapeStyle,
};
use serde::Serialize;
use serde_json::Value;

const TEMPLATE: &str = include_str!("report.html");
const SIZE: (u32, u32) = (760, 260);
/// The template knows these colours and gives them the theme's; the second is dashed, too.
const COLOURS: [RGBColor; 6] = [
    RGBColor(0x1f, 0x6f, 0xb2),
    RGBColor(0xd9, 0x77, 0x06),
    RGBColor(0x2f, 0x85, 0x5a),
    RGBColor(0xb8, 0x32, 0x80),
    RGBColor(0x6b, 0x46, 0xc1),
    RGBColor(0x71, 0x80, 0x96),
];
/// Their names in the template.
const NAMES: [&str; 6] = ["a", "b", "c", "d", "e", "f"];
/// Points of a curve, and rows of a table: more are thinned out.
const POINTS: usize = 1000;
const ROWS: usize = 200;
/// Up to so many points are shown as points.
const MARKED: usize = 60;
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
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    env.add_template("report", TEMPLATE).map_err(failed)?;
    let template = env.get_template("report").map_err(failed)?;
    let values = context! {
        title => title(record),
        facts => facts(record),
        charts => Serde(charts(record)?),
        tables => Serde(tables(record)),
        warnings => &record.warnings,
        data => &record.data,
        adapters => &record.adapters,
        job => serde_json::to_string_pretty(&set(&record.job)).map_err(failed)?,
        version => env!("CARGO_PKG_VERSION"),
    };
    template.render(values).map_err(failed)
}

/// A page with several runs, each under its name: their curves together, and what they come to.
///
/// # Errors
/// What the drawing or the template refuse.
pub(crate) fn comparison(runs: &[(String, RunRecord)]) -> Result<String> {
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    env.add_template("report", TEMPLATE).map_err(failed)?;
    let template = env.get_template("report").map_err(failed)?;
    let mut charts = Vec::new();
    let mut add = |title: &str, of: &dyn Fn(&RunRecord) -> Line| {
        let lines: Vec<(&str, Line)> = runs.iter().map(|(n, r)| (n.as_str(), of(r))).collect();
        charts.push(chart(title, &lines)?);
        Ok::<(), Error>(())
    };
    add("Training loss", &|r| series(&r.log, &["loss"]))?;
    let mut named: Vec<String> = runs.iter().flat_map(|(_, r)| measures(r)).collect();
    named.sort_by_key(|n| (n != "loss", n.clone()));
    named.dedup();
    for name in &named {
        let title = if name == "loss" {
            "Evaluation loss".to_owned()
        } else {
            capital(name)
        };
        add(&title, &|r| series(&r.evaluations, &["metrics", name]))?;
    }
    add("Learning rate", &|r| series(&r.log, &["learning_rate"]))?;
    charts.retain(|c| !c.svg.is_empty());
    let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
    let values = context! {
        title => format!("Comparison of {} runs", runs.len()),
        facts => Vec::<(String, String)>::new(),
        charts => Serde(charts),
        tables => Serde(compared(&names, runs)),
        version => env!("CARGO_PKG_VERSION"),
    };
    template.render(values).map_err(failed)
}

/// What the runs come to, and the settings in which they differ: a column for each run.
fn compared(names: &[&str], runs: &[(String, RunRecord)]) -> Vec<Table> {
    let head = |first: &str| -> Vec<String> {
        let all = [first].into_iter().chain(names.iter().copied());
        all.map(str::to_owned).collect()
    };
    let known: Vec<Vec<(&str, String)>> = runs.iter().map(|(_, r)| facts(r)).collect();
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (fact, _) in known.iter().flatten() {
        if rows.iter().any(|row| row[0] == *fact) {
            continue;
        }
        let cell = |facts: &Vec<(&str, String)>| {
            let found = facts.iter().find(|(name, _)| name == fact);
            found.map_or_else(|| "–".to_owned(), |(_, text)| text.clone())
        };
        let cells = known.iter().map(cell);
        rows.push([(*fact).to_owned()].into_iter().chain(cells).collect());
    }
    let mut settings: Vec<&String> = Vec::new();
    let jobs = || runs.iter().map(|(_, r)| &r.job);
    for key in jobs()
        .filter_map(Value::as_object)
        .flat_map(serde_json::Map::keys)
    {
        let first = jobs().next().and_then(|j| j.get(key));
        if !settings.contains(&key) && jobs().any(|j| j.get(key) != first) {
            settings.push(key);
        }
    }
    let differing = settings.iter().map(|key| {
        let cell = |job: &Value| match &job[key.as_str()] {
            Value::Null => "–".to_owned(),
            Value::String(text) => text.clone(),
            other => other.to_string(),
        };
        [(*key).clone()]
            .into_iter()
            .chain(jobs().map(cell))
            .collect()
    });
    let table = |title, note: &str, first: &str, rows: Vec<Vec<String>>| Table {
        title,
        note: format!("{} {note}", rows.len()),
        head: head(first),
        rows,
        open: true,
    };
    let mut out = vec![
        table("Results", "measures", "Measure", rows),
        table(
            "Settings that differ",
            "settings",
            "Setting",
            differing.collect(),
        ),
    ];
    out.retain(|t| !t.rows.is_empty());
    out
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

fn title(record: &RunRecord) -> String {
    match record.job["model"].as_str() {
        Some(model) => {
            let name = model.rsplit(['/', '\\']).next().unwrap_or(model);
            format!("Training report: {name}")
        }
        None => "Training report".to_owned(),
    }
}

/// The run in a few numbers.
fn facts(record: &RunRecord) -> Vec<(&'static str, String)> {
    let (begin, end) = (&record.begin, &record.end);
    let mut out = Vec::new();
    let mut fact = |name, text: Option<String>| out.extend(text.map(|t| (name, t)));
    let count = |v: &Value| v.as_u64().map(grouped);
    let ended = end["reason"].as_str().map(|r| r.replace('_', " "));
    fact(
        "Ended",
        Some(ended.unwrap_or_else(|| "still running".to_owned())),
    );
    let done = end["steps"]
        .as_u64()
        .or_else(|| record.log.last()?["step"].as_u64());
    let of = count(&begin["total_steps"]);
    let steps = done.map(|d| match &of {
        Some(of) if *of != grouped(d) => format!("{} of {of}", grouped(d)),
        _ => grouped(d),
    });
    fact("Steps", steps);
    fact("Training examples", count(&begin["examples"]));
    fact("Trained parameters", count(&begin["trainable"]));
    let loss = |e: Option<&Value>| e.map(|e| short(&e["loss"]));
    if let (Some(first), Some(last)) = (loss(record.log.first()), loss(record.log.last())) {
        fact("Training loss", Some(format!("{first} → {last}")));
    }
    if let Some(last) = record.evaluations.last() {
        fact("Evaluation loss", Some(short(&last["metrics"]["loss"])));
    }
    if let Some(step) = end["best_step"].as_u64() {
        let metric = short(&end["best_metric"]);
        fact("Best", Some(format!("{metric} at step {}", grouped(step))));
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

/// Digits in groups of three.
fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(c);
    }
    out
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
        return format!("{x:.3e}");
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
        format!("{} entries", entries.len())
    };
    Table {
        title,
        note,
        head,
        open: shown.len() <= OPEN,
        rows: shown.into_iter().map(row).collect(),
    }
}

/// Names of measures, the loss first.
fn measures(record: &RunRecord) -> Vec<String> {
    let metrics = record
        .evaluations
        .iter()
        .filter_map(|e| e["metrics"].as_object());
    let mut names: Vec<String> = metrics.flat_map(serde_json::Map::keys).cloned().collect();
    names.sort_by_key(|n| (n != "loss", n.clone()));
    names.dedup();
    names
}

type Line = Vec<(f64, f64)>;

fn charts(record: &RunRecord) -> Result<Vec<Chart>> {
    let of = |path: &[&str]| series(&record.log, path);
    let evaluated = |name: &str| series(&record.evaluations, &["metrics", name]);
    let mut charts = vec![
        chart(
            "Loss",
            &[
                ("training", of(&["loss"])),
                ("evaluation", evaluated("loss")),
            ],
        )?,
        chart(
            "Learning rate",
            &[("learning rate", of(&["learning_rate"]))],
        )?,
        chart("Gradient norm", &[("gradient norm", of(&["grad_norm"]))])?,
        chart(
            "Tokens per second",
            &[("tokens per second", of(&["tokens_per_second"]))],
        )?,
    ];
    for name in measures(record).iter().filter(|n| *n != "loss") {
        charts.push(chart(
            &capital(name),
            &[("", Vec::new()), ("evaluation", evaluated(name))],
        )?);
    }
    charts.retain(|c| !c.svg.is_empty());
    Ok(charts)
}

/// A name as a title: `exact_match` is `Exact match`.
fn capital(name: &str) -> String {
    let mut letters = name.chars();
    let first = letters.next().map(char::to_uppercase);
    let text: String = first.into_iter().flatten().chain(letters).collect();
    text.replace('_', " ")
}

/// A chart, with its legend.
#[derive(Serialize)]
struct Chart {
    title: String,
    svg: String,
    /// Name of a line, and that of its colour.
    legend: Vec<(String, &'static str)>,
}

/// Step and value of each entry.
fn series(entries: &[Value], path: &[&str]) -> Line {
    let value = |e: &Value| path.iter().try_fold(e, |v, k| v.get(*k))?.as_f64();
    let all: Line = entries
        .iter()
        .filter_map(|e| Some((e["step"].as_f64()?, value(e)?)))
        .filter(|p| p.1.is_finite())
        .collect();
    thinned(&all, POINTS).into_iter().copied().collect()
}

fn chart(title: &str, lines: &[(&str, Line)]) -> Result<Chart> {
    let mut out = Chart {
        title: title.to_owned(),
        svg: String::new(),
        legend: Vec::new(),
    };
    let drawn: Vec<&(&str, Line)> = lines.iter().filter(|l| !l.1.is_empty()).collect();
    if drawn.is_empty() {
        return Ok(out);
    }
    draw(&mut out.svg, lines)?;
    if drawn.len() > 1 {
        let names = lines.iter().zip(NAMES.iter().cycle());
        out.legend = names.map(|(l, n)| (l.0.to_owned(), *n)).collect();
    }
    // It scales with the page, and says what it shows to those who do not see it.
    let (w, h) = SIZE;
    let head = format!("<svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\"");
    let said = drawn
        .iter()
        .map(|(name, line)| described(name, line))
        .collect::<Vec<_>>();
    let new = format!(
        "<svg role=\"img\" aria-label=\"{}\" viewBox=\"0 0 {w} {h}\"",
        escaped(&said.join("; "))
    );
    out.svg = out.svg.replacen(&head, &new, 1);
    Ok(out)
}

/// A line in words.
fn described(name: &str, line: &[(f64, f64)]) -> String {
    let (Some(first), Some(last)) = (line.first(), line.last()) else {
        return name.to_owned();
    };
    let least = line.iter().map(|p| p.1).fold(f64::INFINITY, f64::min);
    let most = line.iter().map(|p| p.1).fold(f64::NEG_INFINITY, f64::max);
    format!(
        "{name} by step, from {} at step {} to {} at step {}, between {} and {}",
        digits(first.1),
        first.0,
        digits(last.1),
        last.0,
        digits(least),
        digits(most)
    )
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('"', "&quot;")
}

/// Least and most of the lines' coordinates.
fn range(lines: &[(&str, Line)], of: fn(&(f64, f64)) -> f64) -> (f64, f64) {
    let all = || lines.iter().flat_map(|l| &l.1).map(of);
    (
        all().fold(f64::INFINITY, f64::min),
        all().fold(f64::NEG_INFINITY, f64::max),
    )
}

fn draw(svg: &mut String, lines: &[(&str, Line)]) -> Result<()> {
    let (x, y) = (range(lines, |p| p.0), range(lines, |p| p.1));
    let room = ((y.1 - y.0) * 0.06).max(y.1.abs() * 1e-3).max(1e-12);
    let area = SVGBackend::with_string(svg, SIZE).into_drawing_area();
    let mut chart = ChartBuilder::on(&area)
        .margin(10)
        .margin_right(18)
        .x_label_area_size(34)
        .y_label_area_size(64)
        .build_cartesian_2d(x.0..x.1.max(x.0 + 1.0), (y.0 - room)..(y.1 + room))
        .map_err(failed)?;
    chart
        .configure_mesh()
        .disable_x_mesh()
        .y_labels(5)
        .x_labels(8)
        .x_desc("step")
        .x_label_formatter(&|v| {
            if v.fract() == 0.0 {
                format!("{v:.0}")
            } else {
                String::new()
            }
        })
        .y_label_formatter(&|v| digits(*v))
        .bold_line_style(RGBColor(0xee, 0xee, 0xee))
        .light_line_style(plotters::style::TRANSPARENT)
        .draw()
        .map_err(failed)?;
    for ((_, line), colour) in lines.iter().zip(COLOURS.into_iter().cycle()) {
        let style = ShapeStyle {
            color: colour.into(),
            filled: false,
            stroke_width: 2,
        };
        let points = line.iter().copied();
        chart
            .draw_series(LineSeries::new(points.clone(), style))
            .map_err(failed)?;
        if line.len() <= MARKED {
            let dots = points.map(|p| Circle::new(p, 3, style.filled()));
            chart.draw_series(dots).map_err(failed)?;
        }
    }
    area.present().map_err(failed)
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
        assert_eq!(text.matches("<svg").count(), 5);
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
    fn numbers_are_short() {
        let all = [0.0, 1.5, 123.456, 1234.5, 1e-4, 5e7].map(digits);
        assert_eq!(all, ["0", "1.5", "123.46", "1234", "1.000e-4", "5.000e7"]);
        assert_eq!(
            [time(5.25), time(65.0), time(3700.0)],
            ["5.2 s", "1 min 5 s", "1 h 1 min"]
        );
    }
}
