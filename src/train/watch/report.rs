//! The report of a run: one HTML file with its curves as SVG, readable without network and without scripts.

use super::RunRecord;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use minijinja::value::Serde;
use minijinja::{Environment, context};
use plotters::prelude::{
    ChartBuilder, IntoDrawingArea, LineSeries, RGBColor, SVGBackend, ShapeStyle,
};
use serde_json::Value;

const TEMPLATE: &str = include_str!("report.html");
const SIZE: (u32, u32) = (720, 280);
/// Told apart by brightness, too, for those who do not see the hue.
const COLOURS: [RGBColor; 3] = [
    RGBColor(0x1f, 0x6f, 0xb2),
    RGBColor(0xd9, 0x77, 0x06),
    RGBColor(0x3f, 0x7d, 0x3f),
];

fn failed(e: impl std::fmt::Display) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("report", e.to_string()))
}

/// The report as HTML.
///
/// # Errors
/// What the drawing or the template refuse.
pub fn html(record: &RunRecord) -> Result<String> {
    let mut charts = Vec::new();
    let loss = [
        ("training", series(&record.log, &["loss"])),
        (
            "evaluation",
            series(&record.evaluations, &["metrics", "loss"]),
        ),
    ];
    charts.push(chart("Loss", &loss)?);
    charts.push(chart(
        "Learning rate",
        &[("learning rate", series(&record.log, &["learning_rate"]))],
    )?);
    charts.push(chart(
        "Tokens per second",
        &[("tokens/s", series(&record.log, &["tokens_per_second"]))],
    )?);
    let mut names: Vec<&String> = record
        .evaluations
        .iter()
        .filter_map(|e| e["metrics"].as_object())
        .flat_map(serde_json::Map::keys)
        .collect();
    names.sort();
    names.dedup();
    for name in names.into_iter().filter(|n| *n != "loss") {
        charts.push(chart(
            name,
            &[(
                "evaluation",
                series(&record.evaluations, &["metrics", name]),
            )],
        )?);
    }
    charts.retain(|c| !c.svg.is_empty());
    let mut env = Environment::new();
    env.set_auto_escape_callback(|_| minijinja::AutoEscape::Html);
    env.add_template("report", TEMPLATE).map_err(failed)?;
    let job = serde_json::to_string_pretty(&record.job).map_err(failed)?;
    let template = env.get_template("report").map_err(failed)?;
    let version = env!("CARGO_PKG_VERSION");
    template
        .render(context! { charts => Serde(charts), job, version, record => Serde(record) })
        .map_err(failed)
}

/// A chart, with its legend.
#[derive(serde::Serialize)]
struct Chart {
    title: String,
    svg: String,
    legend: Vec<(String, String)>,
}

/// Step and value of each entry.
fn series(entries: &[Value], path: &[&str]) -> Vec<(f64, f64)> {
    let value = |e: &Value| path.iter().try_fold(e, |v, k| v.get(*k))?.as_f64();
    entries
        .iter()
        .filter_map(|e| Some((e["step"].as_f64()?, value(e)?)))
        .filter(|p| p.1.is_finite())
        .collect()
}

fn chart(title: &str, lines: &[(&str, Vec<(f64, f64)>)]) -> Result<Chart> {
    let points = || lines.iter().flat_map(|(_, p)| p);
    let range = |of: fn(&(f64, f64)) -> f64| {
        let least = points().map(of).fold(f64::INFINITY, f64::min);
        let most = points().map(of).fold(f64::NEG_INFINITY, f64::max);
        let room = ((most - least) * 0.05).max(most.abs() * 1e-3).max(1e-12);
        (least, most, room)
    };
    let mut out = Chart {
        title: title.to_owned(),
        svg: String::new(),
        legend: Vec::new(),
    };
    if points().next().is_none() {
        return Ok(out);
    }
    let (x, y) = (range(|p| p.0), range(|p| p.1));
    {
        let area = SVGBackend::with_string(&mut out.svg, SIZE).into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin(8)
            .x_label_area_size(32)
            .y_label_area_size(64)
            .build_cartesian_2d(x.0..x.1.max(x.0 + 1.0), (y.0 - y.2)..(y.1 + y.2))
            .map_err(failed)?;
        let small = y.1.abs().max(y.0.abs()) < 1e-2;
        let label = move |v: &f64| {
            if small {
                format!("{v:.1e}")
            } else {
                format!("{v:.4}")
                    .trim_end_matches('0')
                    .trim_end_matches('.')
                    .to_owned()
            }
        };
        chart
            .configure_mesh()
            .x_desc("step")
            .x_label_formatter(&|v| format!("{v:.0}"))
            .y_label_formatter(&label)
            .light_line_style(RGBColor(0xee, 0xee, 0xee))
            .draw()
            .map_err(failed)?;
        for ((_, line), colour) in lines.iter().zip(COLOURS) {
            let style = ShapeStyle {
                color: colour.into(),
                filled: false,
                stroke_width: 2,
            };
            chart
                .draw_series(LineSeries::new(line.iter().copied(), style).point_size(2))
                .map_err(failed)?;
        }
        area.present().map_err(failed)?;
    }
    for ((name, line), RGBColor(r, g, b)) in lines.iter().zip(COLOURS) {
        if !line.is_empty() && lines.len() > 1 {
            out.legend
                .push(((*name).to_owned(), format!("#{r:02x}{g:02x}{b:02x}")));
        }
    }
    // It scales with the page, and says what it is to those who do not see it.
    let (w, h) = SIZE;
    let head = format!("<svg width=\"{w}\" height=\"{h}\" viewBox=\"0 0 {w} {h}\"");
    let safe: String = title
        .chars()
        .filter(|c| c.is_alphanumeric() || " _-".contains(*c))
        .collect();
    out.svg = out.svg.replacen(
        &head,
        &format!("<svg role=\"img\" aria-label=\"{safe} by step\" viewBox=\"0 0 {w} {h}\""),
        1,
    );
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record() -> RunRecord {
        let mut r = RunRecord::new(json!({"model": "<script>alert(1)</script>"}), false);
        for step in 1..5 {
            r.line(&json!({"event": "log", "step": step, "epoch": 0.1, "loss": 4.0 / f64::from(step), "learning_rate": 1e-4, "grad_norm": 1.0, "tokens_per_second": 100.0}));
        }
        r.line(&json!({"event": "evaluate", "step": 4, "epoch": 0.4, "metrics": {"loss": 1.5, "accuracy": 0.5}, "samples": 3, "items": 9, "runtime": 0.1}));
        r.line(&json!({"event": "warning", "message": "a < b"}));
        r
    }

    #[test]
    fn a_report_stands_by_itself_and_escapes_what_it_quotes() {
        let text = html(&record()).unwrap();
        assert_eq!(text.matches("<svg").count(), 4);
        assert!(text.contains("a &lt; b") && !text.contains("<script"));
        let own = text.replace("http://www.w3.org/2000/svg", "");
        assert!(!own.contains("http"), "nothing is fetched");
        assert!(text.contains("Loss by step"));
    }

    #[test]
    fn a_run_without_entries_has_a_report_without_curves() {
        let text = html(&RunRecord::default()).unwrap();
        assert!(!text.contains("<svg"));
    }
}
