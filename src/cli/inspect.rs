//! `rewrite inspect` and `rewrite interface`: parses arguments, shows events and prints.

use super::{Ui, open, stdout};
use crate::api;
use crate::error::Result;
use crate::ir::layers::{numbered, ranges};
use crate::job::Infer;
use crate::select::{Inspection, Interface, Selection};
use indexmap::IndexMap;
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
    let adapters = api::attached(&model)?;
    for adapter in &adapters {
        said += &format!("adapter     {adapter}\n");
    }
    shown["adapters"] = json!(adapters);
    let named = interface.map(Interface::resolve).transpose()?;
    let prospects = api::prospects(&model, path, named.as_ref())?;
    let Some(interface) = named else {
        shown["adapting"] = json!(prospects);
        return ui.result(&shown, || format!("{said}{prospects}"));
    };
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
    ui.result(
        &json!({ "model": shown, "selected": explained.lines().collect::<Vec<_>>(), "fields": fields, "adapting": prospects }),
        || {
            let table = decisions(&selection);
            let folded = selection.explain(graph).folded();
            format!("{said}\n{table}\n{folded}\n{prospects}")
        },
    )
}

/// What each field of the interface resolves to, and how that is known; equal layers in one row.
fn decisions(selection: &Selection) -> String {
    let mut rows: IndexMap<(String, String, String), Vec<usize>> = IndexMap::new();
    for d in &selection.decisions {
        let module = if d.layer.is_some() {
            numbered(&d.path).0
        } else {
            d.path.to_string()
        };
        let key = (d.field.to_string(), module, d.witness.to_string());
        rows.entry(key).or_default().extend(d.layer);
    }
    let mut text = format!("{:<27}{:<46}layers\n", "interface field", "module");
    for ((field, module, witness), layers) in rows {
        let layers = ranges(layers);
        text += &format!("{field:<26} {module:<45} {layers:<9} by {witness}\n");
    }
    text
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
    let folded = selection.explain(&model.model().graph).folded();
    let explained = format!("{}\n{folded}", decisions(&selection));
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
