//! `rewrite print`, `diff`, `strip` and `verify`.

use super::args::{Engine, VerifyArgs};
use super::{Ui, compile_options, keep, open, usage};
use crate::api;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{Model, NodeId, diff as ir_diff, text};
use crate::onnx::SaveOptions;
use crate::runtime::{Outputs, Plan, io};
use crate::select::module_of;
use crate::train::{compare, generate_inputs};
use serde_json::json;
use std::path::Path;

pub(super) fn print(path: &Path, module: Option<&str>, ui: &Ui) -> Result<()> {
    let model = open(path, ui)?.into_model();
    let Some(module) = module else {
        return printed(&text::print(&model), ui);
    };
    let inside = |n: NodeId| {
        let path = module_of(&model.graph, n);
        format!(".{path}.").contains(&format!(".{module}."))
    };
    if !model.graph.nodes().any(inside) {
        return Err(usage(
            format!("no node of the model belongs to a module `{module}`"),
            "`rewrite inspect` shows the modules",
        ));
    }
    printed(&text::print_module(&model, &inside), ui)
}

fn printed(text: &str, ui: &Ui) -> Result<()> {
    ui.result(&json!({ "text": text }), || text.to_owned())
}

/// The difference by module.
pub(super) fn difference(a: &Model, b: &Model) -> String {
    compared(a, b).to_string()
}

fn compared(a: &Model, b: &Model) -> ir_diff::Diff {
    ir_diff::diff(a, b, &|m, n| module_of(&m.graph, n))
}

/// Prints the difference; whether there is none.
pub(super) fn diff(a: &Path, b: &Path, ui: &Ui) -> Result<bool> {
    let (a, b) = (open(a, ui)?, open(b, ui)?);
    let found = compared(a.model(), b.model());
    let c = found.nodes();
    let text = found.to_string();
    let same = found.is_empty();
    ui.result(
        &json!({ "identical": same, "nodes": c.to_string(), "text": text }),
        || format!("{text}\n"),
    )?;
    Ok(same)
}

pub(super) fn strip(
    path: &Path,
    name: Option<&str>,
    output: &Path,
    force: bool,
    ui: &Ui,
) -> Result<()> {
    keep(output, [path])?;
    let model = open(path, ui)?;
    if name.is_none() && api::manifest(&model)?.is_empty() {
        let finding = Diagnostic::warning(
            "strip-nothing",
            "this model carries no adapters of this program",
        )
        .at(path.display().to_string());
        ui.warnings([&finding.help("what is written is the same model")]);
    }
    let stripped = api::strip(model, name)?;
    let saved = crate::onnx::save(
        &stripped,
        output,
        SaveOptions {
            force,
            ..SaveOptions::default()
        },
    )?;
    ui.result(
        &json!({ "model": saved.model, "bytes": saved.bytes }),
        || format!("wrote {}\n", saved.model.display()),
    )
}

pub(super) fn verify(args: &VerifyArgs, ui: &Ui) -> Result<()> {
    let (a, b) = (open(&args.a, ui)?, open(&args.b, ui)?);
    let inputs = match &args.inputs {
        Some(path) => io::read(path)?.plain(),
        None => generate_inputs(&a, args.seed)?,
    };
    let run = |m: &Verified, path: &Path| -> Result<Outputs> {
        match args.engine {
            Engine::Candle => {
                let plan = Plan::compile(m, &compile_options(&args.exec)?)?;
                plan.run(&inputs.clone().for_plan(&plan))
            }
            Engine::Tract => crate::runtime::tract::run(m, path, &inputs),
        }
    };
    let (x, y) = (run(&a, &args.a)?, run(&b, &args.b)?);
    let report = compare(&x, &y, args.atol, args.rtol)?;
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
    if report.iter().all(|r| r.within) {
        return Ok(());
    }
    let d = Diagnostic::error("verify-differs", "the models differ");
    Err(Error::new(
        ErrorKind::Run,
        d.help("raise --atol or --rtol if that is expected"),
    ))
}
