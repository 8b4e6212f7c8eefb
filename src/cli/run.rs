//! `rewrite run`: parses arguments, shows events and prints.

use super::args::RunArgs;
use super::exec::BackendArg;
use super::{Ui, compile_options};
use crate::error::Result;
use crate::job::Run;
use serde_json::json;

pub(super) fn run(args: &RunArgs, ui: &Ui) -> Result<()> {
    let mut job = Run::new(&args.model);
    job.compile = compile_options(&args.exec)?;
    job.adapters = args.select.settings();
    job.wanted.clone_from(&args.wanted);
    job.loss.clone_from(&args.loss);
    job.grad.clone_from(&args.grad);
    let native = args.native || args.exec.backend == Some(BackendArg::Native);
    (job.native, job.seed) = (native, args.seed);
    let report = job.files(&args.inputs, &args.outputs, args.force, &mut |event| {
        ui.shown(event)
    })?;
    let shapes: serde_json::Map<String, serde_json::Value> = report
        .outputs
        .iter()
        .map(|(k, v)| {
            (
                k.clone(),
                json!({ "dtype": v.dtype().name(), "shape": v.dims() }),
            )
        })
        .collect();
    let mut found = json!({ "outputs": shapes, "loss": report.loss, "file": args.outputs });
    if let Some(classes) = &report.classes {
        found["classes"] = json!(classes);
    }
    ui.result(&found, || {
        let mut text = String::new();
        for (name, v) in &report.outputs {
            let dims: Vec<String> = v.dims().iter().map(ToString::to_string).collect();
            text += &format!("{name}: {}[{}]\n", v.dtype(), dims.join(", "));
        }
        if let Some(classes) = &report.classes {
            text += &format!("classes: {}\n", classes.join(", "));
        }
        if let Some(loss) = report.loss {
            text += &format!("loss = {loss}\n");
        }
        text
    })
}
