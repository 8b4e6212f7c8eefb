//! Several runs on one page: their curves together, what they come to, and the settings in which they differ.

use super::chart::{Chart, Curve, RATE, chart, series, told};
use super::{Table, capital, facts, losses, measures, model, page};
use crate::error::Result;
use crate::train::watch::RunRecord;
use minijinja::context;
use minijinja::value::Serde;
use serde_json::Value;

/// A page with several runs, each under its name.
///
/// # Errors
/// What the drawing or the template refuse.
pub(crate) fn comparison(runs: &[(String, RunRecord)]) -> Result<String> {
    let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
    let title = match names.as_slice() {
        [one] => format!("The run {one}"),
        several => format!("Comparison of {} runs", several.len()),
    };
    page(context! {
        title => title,
        subtitle => names.join(" · "),
        facts => Vec::<(String, String)>::new(),
        summary => Serde(tables(&names, runs)),
        charts => Serde(charts(runs)?),
        version => env!("CARGO_PKG_VERSION"),
    })
}

fn charts(runs: &[(String, RunRecord)]) -> Result<Vec<Chart>> {
    let mut out = Vec::new();
    let mut add = |title: &str, of: &dyn Fn(&RunRecord) -> super::chart::Line| {
        let each = runs.iter().enumerate();
        let mut curves: Vec<Curve> = each.flat_map(|(i, (n, r))| told(n, of(r), i)).collect();
        // Single values of several runs hide each other.
        curves.retain(|c| !c.faint || runs.len() <= 2);
        let how = (out.is_empty(), runs.len() > 1);
        out.extend(chart(title, curves, how)?);
        Ok::<(), crate::error::Error>(())
    };
    add("Training loss", &losses)?;
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
    for (title, key) in [
        (RATE, "learning_rate"),
        ("Gradient norm", "grad_norm"),
        ("Tokens per second", "tokens_per_second"),
    ] {
        add(title, &|r| series(&r.log, &[key]))?;
    }
    Ok(out)
}

/// Rows of what every run says of itself, in the order in which it is first said.
fn rows(of: &[Vec<(String, String)>]) -> Vec<Vec<String>> {
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (name, _) in of.iter().flatten() {
        if rows.iter().any(|row| row[0] == *name) {
            continue;
        }
        let cell = |said: &Vec<(String, String)>| {
            let found = said.iter().find(|(n, _)| n == name);
            found.map_or_else(|| "–".to_owned(), |(_, text)| text.clone())
        };
        let cells = of.iter().map(cell);
        rows.push([name.clone()].into_iter().chain(cells).collect());
    }
    rows
}

/// The run in words: its model, its adapters, its numbers, and its last measures.
fn said(record: &RunRecord) -> Vec<(String, String)> {
    let mut out = Vec::new();
    out.extend(model(record).map(|m| ("Model".to_owned(), m.to_owned())));
    if !record.names.is_empty() {
        out.push(("Adapters".to_owned(), record.names.join(", ")));
    }
    let numbers = facts(record).into_iter();
    out.extend(numbers.map(|(name, text)| (name.to_owned(), text)));
    for name in measures(record).iter().filter(|n| *n != "loss") {
        let line = series(&record.evaluations, &["metrics", name]);
        let last = line.last().map(|p| format!("{:.4}", p.1));
        out.extend(last.map(|text| (format!("Last {name}"), text)));
    }
    out
}

/// Settings by their paths: `adapter.math` is `lora[r=8]`.
fn settings(job: &Value) -> Vec<(String, String)> {
    let mut out = Vec::new();
    flatten("", job, &mut out);
    out
}

fn flatten(path: &str, value: &Value, out: &mut Vec<(String, String)>) {
    match value {
        Value::Object(map) => {
            for (key, inner) in map {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                flatten(&path, inner, out);
            }
        }
        Value::Null => {}
        Value::String(text) => out.push((path.to_owned(), text.clone())),
        other => out.push((path.to_owned(), other.to_string())),
    }
}

/// What the runs come to, and the settings in which they differ: a column for each run.
fn tables(names: &[&str], runs: &[(String, RunRecord)]) -> Vec<Table> {
    let head = |first: &str| -> Vec<String> {
        let all = [first].into_iter().chain(names.iter().copied());
        all.map(str::to_owned).collect()
    };
    let results = rows(&runs.iter().map(|(_, r)| said(r)).collect::<Vec<_>>());
    let mut differing = rows(
        &runs
            .iter()
            .map(|(_, r)| settings(&r.job))
            .collect::<Vec<_>>(),
    );
    differing.retain(|row| row[1..].windows(2).any(|w| w[0] != w[1]));
    let table = |title, note: String, first: &str, rows: Vec<Vec<String>>| Table {
        title,
        note,
        head: head(first),
        rows,
        open: true,
    };
    let (all, differ) = (results.len(), differing.len());
    let mut out = vec![
        table("Results", format!("{all} measures"), "Measure", results),
        table(
            "Settings that differ",
            format!("{differ} settings"),
            "Setting",
            differing,
        ),
    ];
    out.retain(|t| !t.rows.is_empty());
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn run(name: &str, rate: f64) -> (String, RunRecord) {
        let mut r =
            RunRecord::new(json!({"seed": 1, "learning_rate": rate, "adapter": {"a": "lora"}}));
        r.names = vec![name.to_owned()];
        r.line(&json!({"event": "log", "step": 1, "loss": 2.0, "learning_rate": rate, "grad_norm": 1.0}));
        r.line(
            &json!({"event": "evaluate", "step": 1, "metrics": {"loss": 2.0, "accuracy": 0.25}}),
        );
        (name.to_owned(), r)
    }

    #[test]
    fn runs_are_told_apart_by_their_colours_and_by_what_differs() {
        let runs = [run("x", 1e-3), run("<y>", 1e-2)];
        let text = comparison(&runs).unwrap();
        for part in [
            "Comparison of 2 runs",
            "class=\"legend b\">&lt;y&gt;<",
            "<td>learning_rate</td><td>0.001</td><td>0.01</td>",
            "<td>Last accuracy</td><td>0.2500</td>",
            "<td>Adapters</td><td>x</td>",
        ] {
            assert!(text.contains(part), "{part}");
        }
        assert!(!text.contains("<td>seed</td>") && !text.contains("<y>"));
        assert!(comparison(&runs[..1]).unwrap().contains("The run x"));
    }

    #[test]
    fn a_run_that_says_nothing_is_on_the_page() {
        let runs = [run("x", 1e-3), ("broken".to_owned(), RunRecord::default())];
        assert!(comparison(&runs).unwrap().contains("broken off"));
    }
}
