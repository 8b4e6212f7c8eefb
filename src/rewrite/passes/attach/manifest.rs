//! What is attached to a model, as its metadata says it: the adapters, setups that bind them together, and inputs that came with them.

use super::Attach;
use crate::diag::Diagnostic;
use crate::ir::Model;
use crate::ir::contract;
use crate::ir::contract::stamp;
use serde_json::{Map, Value};

pub(super) fn check_names(names: &[&str], model: &Model) -> Result<(), Diagnostic> {
    let there = attached(model);
    for (i, name) in names.iter().enumerate() {
        if there.iter().any(|t| t == name) {
            return Err(Diagnostic::error(
                "adapter-twice",
                format!("an adapter `{name}` is attached to this model already"),
            )
            .help("strip it first, or attach under another name"));
        }
        if names[..i].contains(name) {
            return Err(Diagnostic::error(
                "adapter-twice",
                format!("two adapters are called `{name}`"),
            )
            .help("give one of them another name: `NAME=SPEC`"));
        }
    }
    Ok(())
}

/// Names of the adapters that are attached to a model.
pub fn attached(model: &Model) -> Vec<String> {
    let manifest = read(model);
    let adapters = manifest["adapters"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    adapters
        .iter()
        .filter_map(|a| a["name"].as_str().map(str::to_owned))
        .collect()
}

/// The manifest of a model; null without one.
pub(in crate::rewrite::passes) fn read(model: &Model) -> Value {
    let text = model.metadata.get(stamp::MANIFEST);
    text.and_then(|t| serde_json::from_str(t).ok())
        .unwrap_or_default()
}

/// The model's manifest with these adapters added.
pub(super) fn manifest(model: &Model, pass: &Attach) -> String {
    let old = read(model);
    let list = |key: &str| old[key].as_array().cloned().unwrap_or_default();
    let (mut adapters, mut setups, mut inputs) = (list("adapters"), list("setups"), list("inputs"));
    adapters.extend(pass.adapters.iter().map(|a| {
        let mut entry = Map::new();
        entry.insert("name".into(), a.name.clone().into());
        entry.insert("config".into(), a.config.to_dict());
        entry.insert("config_id".into(), a.config.hash().into());
        entry.insert("route".into(), a.route.to_string().into());
        Value::Object(entry)
    }));
    if !pass.setup.multi_tasks().is_empty() {
        setups.push(pass.setup.to_json());
        if inputs.is_empty() {
            inputs.push(contract::TASK_IDS.into());
        }
    }
    let mut out = Map::new();
    out.insert(
        "tool".into(),
        concat!("onnx-graft ", env!("CARGO_PKG_VERSION")).into(),
    );
    out.insert("adapters".into(), adapters.into());
    for (key, list) in [("setups", setups), ("inputs", inputs)] {
        if !list.is_empty() {
            out.insert(key.into(), list.into());
        }
    }
    Value::Object(out).to_string()
}
