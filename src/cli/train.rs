//! `rewrite train`.

use super::args::TrainArgs;
use super::progress::Progress;
use super::{Ui, hub, interrupt};
use crate::error::Result;
use crate::job::{Event, Job, Request, TrainReport};
use serde_json::json;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

pub(super) fn train(args: &TrainArgs, ui: &Ui) -> Result<()> {
    let stop = Arc::new(AtomicBool::new(false));
    let job = Job::new(request(args)).stop_on(Arc::clone(&stop));
    let mut progress = Progress::new(ui);
    let mut transfer = hub::Bar::new(ui);
    let report = job.run(&mut |event| {
        match event {
            Event::Training(event) => progress.event(event),
            Event::Stoppable => interrupt::stop_by(&stop),
            Event::Transfer { .. } => transfer.event(event),
            Event::Pushed(pushed) => {
                transfer.clear();
                hub::pushed(pushed, ui)?;
            }
            other => ui.event(other),
        }
        Ok(())
    })?;
    match &report.dry_run {
        Some(found) => ui.result(&json!(found), || found.to_string()),
        None => ui.result(&json!(report), || text(&report)),
    }
}

fn request(args: &TrainArgs) -> Request {
    let mut request = Request::new(&args.model);
    let flags = [
        &args.job.given,
        &args.model_settings.given,
        &args.data.given,
        &args.collate.given,
        &args.training.given,
        &args.other.given,
    ];
    for given in flags {
        request.flags.extend(given.clone());
    }
    args.select.name(&mut request.flags);
    args.exec.name(&mut request.flags);
    if args.force {
        request = request.set("overwrite_output_dir", true);
    }
    request
}

fn text(report: &TrainReport) -> String {
    let mut text = super::progress::summary(report);
    if let (Some(step), Some(metric)) = (report.best_step, report.best_metric) {
        text += &format!("\nbest evaluation: {metric:.4} at step {step}");
    }
    for folder in &report.adapters {
        text += &format!("\nwrote {}{}", folder.display(), std::path::MAIN_SEPARATOR);
    }
    if let Some(page) = &report.report {
        text += &format!("\nwrote {}", page.display());
    }
    text + "\n"
}
