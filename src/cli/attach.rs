//! The main job: parses arguments, shows events and prints.

use super::args::AttachArgs;
use super::{Ui, tenants, usage};
use crate::adapters::place::Kind;
use crate::adapters::summary::Summary;
use crate::diag::count;
use crate::error::Result;
use crate::job::{AttachReport, AttachToFile, Selected, Written};
use serde_json::json;

pub(super) fn attach(args: &AttachArgs, ui: &Ui) -> Result<()> {
    let Some(input) = &args.model else {
        return Err(usage(
            "no model was given",
            "rewrite --interface qwen3 model.onnx",
        ));
    };
    let mut settings = args.select.settings();
    settings.adapter_ids = args.adapter_ids;
    let input = args.select.of.locate_parts(input, ui)?;
    let mut job = AttachToFile::new(input, settings);
    job.variant.clone_from(&args.select.of.variant);
    job.output.clone_from(&args.output);
    job.force = args.force;
    job.dry_run = args.dry_run;
    job.seed = args.seed;
    job.format = args.format.format();
    let report = job.run(&mut |event| ui.shown(event))?;
    ui.result(&json_of(&report), || text_of(&report))
}

fn json_of(report: &AttachReport) -> serde_json::Value {
    let selected = &report.selected;
    let mut out = match &report.output {
        Written::Dry { diff } => json!({ "selected": selected, "diff": diff, "dry_run": true }),
        Written::Files { saved, adapters } => json!({
            "model": saved.first().map(|s| &s.model), "bytes": saved.iter().map(|s| s.bytes).sum::<u64>(), "adapters": adapters, "selected": selected,
            "summary": rows(&report.summary), "full_model": report.summary.full,
        }),
    };
    if let Written::Files { saved, .. } = &report.output
        && saved.len() > 1
    {
        out["models"] = saved.iter().map(|s| json!(s.model)).collect();
    }
    if !report.tenants.is_empty() {
        out["adapter_ids"] = json!(report.tenants);
    }
    out
}

/// The rows of a summary table.
pub(super) fn rows(summary: &Summary) -> Vec<serde_json::Value> {
    let rows = summary.rows.iter();
    rows.map(|r| json!({ "name": r.name, "architecture": r.architecture, "#param": r.params, "%param": r.percent, "active": r.active, "train": r.train })).collect()
}

fn text_of(report: &AttachReport) -> String {
    let (mut selected, table) = (lines(&report.selected), report.summary.table());
    if !report.tenants.is_empty() {
        selected += &tenants::ids(report.tenants.iter().map(|n| &**n));
    }
    match &report.output {
        Written::Dry { diff } => format!("{selected}\n{diff}\n{table}\n"),
        Written::Files { saved, adapters } => {
            let mut text = format!("{selected}\n{table}\n");
            for s in saved {
                text += &format!("\nwrote {}", s.model.display());
            }
            for p in adapters {
                text += &format!("\nwrote {}{}", p.display(), std::path::MAIN_SEPARATOR);
            }
            text + "\n"
        }
    }
}

fn lines(selected: &Selected) -> String {
    let mut text = format!(
        "selected {}, hidden size {}; adapters at {}\n",
        count(selected.layers, "layer", "layers"),
        selected.hidden_size,
        count(selected.places, "place", "places"),
    );
    if selected.at.iter().any(|k| k.kind != "linear") {
        for k in &selected.at {
            text += &format!(
                "  {}: {} {}\n",
                k.adapter,
                k.places,
                Kind::of(&k.kind).map_or(&*k.kind, |k| k.about)
            );
        }
    }
    for (field, at) in &selected.first_layer {
        let names = selected.adapted.get(field).map(|n| n.join(", "));
        let mark = names.map_or_else(String::new, |n| format!("  ← {n}"));
        text += &format!("  {field:<24} {at}{mark}\n");
    }
    text
}
