//! `rewrite eval`.

use super::Ui;
use super::args::{EvalArgs, name_beside};
use super::progress::Bar;
use crate::error::Result;
use crate::job::{EvalReport, Evaluation, Request};
use serde_json::json;

pub(super) fn run(args: &EvalArgs, ui: &Ui) -> Result<()> {
    let mut bar = Bar::new(ui);
    let report = Evaluation::new(request(args)).run(&mut |event| {
        bar.event(event);
        Ok(())
    })?;
    ui.result(&json!(report), || text(&report))
}

fn request(args: &EvalArgs) -> Request {
    let mut request = Request::new(&args.model);
    let flags = [
        &args.data.given,
        &args.evaluation.given,
        &args.generation.given,
    ];
    for given in flags {
        request.flags.extend(given.clone());
    }
    args.select.name(&mut request.flags);
    args.exec.name(&mut request.flags);
    name_beside(
        &mut request.flags,
        &args.stop_strings,
        args.tokenizer.as_deref(),
        args.portable,
    );
    if let Some(file) = &args.predictions {
        request = request.set("predictions", file.display().to_string());
    }
    if args.force {
        request = request.set("overwrite_predictions", true);
    }
    request
}

fn text(report: &EvalReport) -> String {
    let line = |(name, x): (&String, &f64)| format!("{name:<22} {x:.6}\n");
    let mut text: String = report.metrics.iter().map(line).collect();
    text += &format!("{:<22} {}\n", "samples", report.samples);
    text
}
