//! `rewrite inspect` and `rewrite interface`: parses arguments, shows events and prints.

use super::{Ui, open, stdout};
use crate::api;
use crate::error::Result;
use crate::job::Infer;
use crate::select::{Inspection, Interface};
use serde_json::json;
use std::path::Path;

pub(super) fn inspect(path: &Path, interface: Option<&str>, ui: &Ui) -> Result<()> {
    let model = open(path, ui)?;
    let inspection = Inspection::of(&model);
    let heads = api::heads(&model)?;
    let mut shown = json!(inspection);
    let mut said = inspection.to_string();
    for head in &heads {
        let classes = head.classes().unwrap_or_default();
        let named = if classes.is_empty() {
            String::new()
        } else {
            format!(": {}", classes.join(", "))
        };
        said += &format!("head        {} of `{}`{named}\n", head.word(), head.name);
    }
    if !heads.is_empty() {
        let rows = heads
            .iter()
            .map(|h| json!({ "name": h.name, "type": h.word(), "classes": h.classes() }));
        shown["heads"] = rows.collect();
    }
    let Some(name) = interface else {
        return ui.result(&shown, || said);
    };
    let interface = Interface::resolve(name)?;
    let (model, opened) = api::opened(api::shown(model)?, false)?;
    ui.warnings(&opened);
    let selection = interface.select(&model)?;
    ui.warnings(&selection.misses);
    let graph = &model.model().graph;
    let explained = selection.explain(graph).to_string();
    let fields: Vec<_> = selection
        .decisions
        .iter()
        .map(|d| {
            json!({ "layer": d.layer, "field": d.field.name(), "module": d.path,
                    "value": graph.name_of(d.value), "witness": d.witness.to_string() })
        })
        .collect();
    let rows = || -> String {
        let row = |d: &crate::select::Decision| {
            let layer = d.layer.map_or_else(|| "-".to_owned(), |l| l.to_string());
            let value = graph.name_of(d.value);
            format!(
                "{layer:>5}  {:<26}{:<46}{value}  ({})\n",
                d.field, d.path, d.witness
            )
        };
        selection.decisions.iter().map(row).collect()
    };
    ui.result(
        &json!({ "model": shown, "selected": explained.lines().collect::<Vec<_>>(), "fields": fields }),
        || {
            let head = format!("layer  {:<26}{:<46}value  (witness)", "interface field", "module");
            format!("{said}\n{explained}\n{head}\n{}", rows())
        },
    )
}

pub(super) fn list(ui: &Ui) -> Result<()> {
    let names: Vec<&str> = Interface::builtin_names().collect();
    ui.result(&json!(names), || names.join("\n") + "\n")
}

pub(super) fn show(name: &str) -> Result<()> {
    let interface = Interface::resolve(name)?;
    // JSON either way.
    stdout(interface.to_json().as_bytes())
}

pub(super) fn check(interface: &str, model: Option<&Path>, ui: &Ui) -> Result<()> {
    let parsed = Interface::resolve(interface)?;
    let Some(path) = model else {
        return ui.result(&json!({ "valid": true }), || {
            format!("{} is valid\n", parsed.source)
        });
    };
    let (model, opened) = api::opened(api::shown(open(path, ui)?)?, false)?;
    ui.warnings(&opened);
    let selection = parsed.select(&model)?;
    ui.warnings(&selection.misses);
    let explained = selection.explain(&model.model().graph).to_string();
    let layers = selection.layers.len();
    ui.result(&json!({ "valid": true, "layers": layers }), || {
        format!(
            "{explained}\n{} selects {layers} layers of {}\n",
            parsed.source,
            path.display()
        )
    })
}

pub(super) fn infer(model: &Path, output: Option<&Path>, force: bool, ui: &Ui) -> Result<()> {
    let job = Infer {
        model: model.to_owned(),
        output: output.map(Path::to_owned),
        force,
    };
    let interface = job.run(&mut |event| ui.shown(event))?;
    let Some(output) = output else {
        return stdout(interface.to_json().as_bytes());
    };
    ui.result(&json!({ "file": output }), || {
        format!("wrote {}\n", output.display())
    })
}
