//! `rewrite print`, `diff`, `strip`, `check`, `report` and `verify`: parses arguments, shows events and prints.

use super::args::{self, GraphArgs, PrintArgs, VerifyArgs};
use super::select::VariantArgs;
use super::{Ui, compile_options, open};
use crate::api;
use crate::error::Result;
use crate::ir::diff::Alike;
use crate::job::{
    CheckModel, Compare, CompareRuns, Engine, Graph, Print, Strip, agree, list_pipelines,
    pipelines_text,
};
use serde_json::json;
use std::path::{Path, PathBuf};

pub(super) fn print(args: &PrintArgs, ui: &Ui) -> Result<()> {
    if args.after.as_deref() == Some("list") {
        let all = list_pipelines().into_iter();
        let rows = all.map(|(name, passes)| json!({ "pipeline": name, "passes": passes }));
        return ui.result(&json!(rows.collect::<Vec<_>>()), pipelines_text);
    }
    let mut job = Print::new(&args.model);
    job.module.clone_from(&args.module);
    job.adapters = args.select.settings();
    job.after.clone_from(&args.after);
    job.pipeline.clone_from(&args.pipeline);
    job.mode = args.mode.mode();
    job.loss.clone_from(&args.loss);
    let text = job.run(&mut |event| ui.shown(event))?;
    ui.result(&json!({ "text": text }), || text.clone())
}

/// Writes the picture of a model; without a file to write it to, prints it in the language of Graphviz.
pub(super) fn graph(args: &GraphArgs, ui: &Ui) -> Result<()> {
    let mut job = Graph::new(&args.model);
    job.adapters = args.select.settings();
    job.output.clone_from(&args.output);
    job.force = args.force;
    let picture = job.run(&mut |event| ui.shown(event))?;
    ui.result(
        &json!({ "file": args.output, "picture": picture }),
        || match &args.output {
            Some(output) => format!("wrote {}\n", output.display()),
            None => picture.dot(),
        },
    )
}

/// Prints the difference; whether there is none.
pub(super) fn diff(a: &Path, b: &Path, ui: &Ui) -> Result<bool> {
    let files = [(a, open(a, ui)?), (b, open(b, ui)?)];
    let [(_, from), (_, to)] = &files;
    let found = api::diff(from, to);
    let (same, folded) = (found.is_empty(), found.folded());
    let mut said = String::new();
    let mut adapters = Vec::new();
    for (path, model) in &files {
        let attached = api::attached(model)?;
        for adapter in &attached {
            said += &format!("adapter in {}: {adapter}\n", path.display());
        }
        adapters.push(attached);
    }
    let module = |m: &Alike<'_>| {
        let (counts, lines) = (m.counts(), m.first.lines.iter());
        json!({ "module": m.module, "layers": m.layers, "added": counts.added, "removed": counts.removed,
                "changed": counts.changed, "lines": lines.map(ToString::to_string).collect::<Vec<_>>() })
    };
    let modules: Vec<_> = folded.modules().iter().map(module).collect();
    let document = json!({
        "identical": same, "nodes": found.nodes().to_string(), "modules": modules,
        "adapters": adapters, "text": found.to_string(),
    });
    ui.result(&document, || format!("{said}{folded}\n"))?;
    Ok(same)
}

pub(super) fn strip(
    model: &Path,
    name: Option<&str>,
    output: &Path,
    force: bool,
    ui: &Ui,
) -> Result<()> {
    let mut job = Strip::new(model, output);
    job.name = name.map(str::to_owned);
    job.force = force;
    let saved = job.run(&mut |event| ui.shown(event))?;
    ui.wrote(&saved)
}

pub(super) fn verify(args: &VerifyArgs, ui: &Ui) -> Result<()> {
    let mut job = Compare::new(&args.a, &args.b);
    job.engine = match args.engine {
        args::Engine::Candle => Engine::Native,
        args::Engine::Tract => Engine::Tract,
    };
    job.inputs.clone_from(&args.inputs);
    (job.atol, job.rtol, job.seed) = (args.atol, args.rtol, args.seed);
    job.compile = compile_options(&args.exec)?;
    let report = job.run(&mut |event| ui.shown(event))?;
    let rows: Vec<_> = report
        .iter()
        .map(|r| json!({ "output": r.name, "max_abs_diff": r.max_abs, "max_rel_diff": r.max_rel, "within": r.within }))
        .collect();
    ui.result(&json!(rows), || {
        let mut text = String::new();
        for r in &report {
            let verdict = if r.within { "ok" } else { "DIFFERENT" };
            text += &format!(
                "{:<32} max |Δ| {:.3e}  max rel {:.3e}  {verdict}\n",
                r.name, r.max_abs, r.max_rel
            );
        }
        text
    })?;
    agree(&report)
}

/// What an exported model is good for, a line or two for each purpose.
pub(super) fn check(
    model: &Path,
    of: &VariantArgs,
    interface: Option<String>,
    ui: &Ui,
) -> Result<()> {
    let model = of.locate(model, ui)?;
    let job = CheckModel {
        model,
        variant: of.variant.clone(),
        interface,
    };
    let found = job.run(&mut |event| ui.shown(event))?;
    ui.result(&json!({ "aspects": found }), || {
        let mut text = String::new();
        for aspect in &found {
            let good = if aspect.good { "yes" } else { "no" };
            text += &format!("{:<11} {good:<4} {}\n", aspect.purpose, aspect.found);
            for help in &aspect.help {
                text += &format!("                 help: {help}\n");
            }
        }
        text
    })
}

/// Writes the page that compares runs.
pub(super) fn report(runs: Vec<PathBuf>, output: PathBuf, force: bool, ui: &Ui) -> Result<()> {
    let job = CompareRuns {
        runs,
        output,
        force,
    };
    job.run()?;
    let page = &job.output;
    ui.result(&json!({ "report": page, "runs": job.runs }), || {
        format!("wrote {}\n", page.display())
    })
}
