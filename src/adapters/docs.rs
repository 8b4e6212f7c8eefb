//! Documentation of the methods, from their code: the head of a method's file, its fields with their comments, its presets.

use super::methods::{MethodConfig, Preset};
use super::{Config, identifiers};
use serde_json::{Map, Value, json};
use std::fmt::Write;

/// One field of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its value in the preset.
    pub default: Value,
    /// What it means.
    pub about: String,
}

/// What there is to know of an identifier.
#[derive(Clone, Debug, PartialEq)]
pub struct MethodDoc {
    /// The identifier.
    pub identifier: &'static str,
    /// `architecture`; `bottleneck` where the key is absent.
    pub architecture: &'static str,
    /// Formula, paper and particularities.
    pub about: String,
    /// The flags that say where it attaches, and are on.
    pub attaches: Vec<String>,
    /// Whether it can be folded into the base weights.
    pub merges: bool,
    /// The fields with their defaults.
    pub fields: Vec<Field>,
}

/// Fields that say where a method attaches.
const PLACES: [&str; 9] = [
    "selfattn_lora",
    "intermediate_lora",
    "output_lora",
    "mh_adapter",
    "output_adapter",
    "cross_adapter",
    "inv_adapter",
    "output_reft",
    "cross_prefix",
];

/// The documentation of one preset.
pub fn describe(preset: &Preset) -> MethodDoc {
    let method = (preset.make)();
    let dict = match method.to_dict() {
        Value::Object(map) => map,
        _ => Map::new(),
    };
    let schema = method.schema();
    let about = |name: &str| {
        schema["properties"][name]["description"]
            .as_str()
            .unwrap_or_default()
            .replace('\n', " ")
    };
    let on = |v: &Value| !matches!(v, Value::Null | Value::Bool(false));
    let places = PLACES.iter().filter(|p| dict.get(**p).is_some_and(on));
    MethodDoc {
        identifier: preset.name,
        architecture: method.architecture().unwrap_or("bottleneck"),
        about: head(method.source()),
        attaches: places.map(|p| (*p).to_owned()).collect(),
        merges: method.merges(),
        fields: dict
            .iter()
            .map(|(name, v)| Field {
                name: name.clone(),
                default: v.clone(),
                about: about(name),
            })
            .collect(),
    }
}

/// The `//!` lines at the head of a file.
fn head(source: &str) -> String {
    let lines = source.lines().map_while(|l| l.strip_prefix("//!"));
    let lines: Vec<&str> = lines.map(|l| l.strip_prefix(' ').unwrap_or(l)).collect();
    lines.join("\n")
}

impl MethodDoc {
    /// As text for a terminal.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{} ({})\n\n{}\n\nattaches at: {}\nmerges into the base weights: {}\n\n",
            self.identifier,
            self.architecture,
            self.about,
            if self.attaches.is_empty() {
                "-".into()
            } else {
                self.attaches.join(", ")
            },
            if self.merges { "yes" } else { "no" }
        );
        for f in &self.fields {
            let _ = writeln!(
                out,
                "  {:<28}{:<18}{}",
                f.name,
                f.default.to_string(),
                f.about
            );
        }
        out
    }

    /// As JSON.
    pub fn json(&self) -> Value {
        let field = |f: &Field| json!({ "name": f.name, "default": f.default, "about": f.about });
        json!({
            "identifier": self.identifier, "architecture": self.architecture, "about": self.about,
            "attaches": self.attaches, "merges": self.merges,
            "fields": self.fields.iter().map(field).collect::<Vec<_>>(),
        })
    }
}

/// All methods as one Markdown document.
pub fn markdown() -> String {
    let docs: Vec<MethodDoc> = MethodConfig::presets().map(|p| describe(&p)).collect();
    let mut out = String::from(
        "# Adapter methods\n\nGenerated from the code; a test keeps it fresh.\n\n| identifier | architecture | attaches at | merges | config id |\n|---|---|---|---|---|\n",
    );
    for d in &docs {
        let id = Config::parse(d.identifier)
            .map(|c| c.hash())
            .unwrap_or_default();
        let _ = writeln!(
            out,
            "| `{}` | {} | {} | {} | `{id}` |",
            d.identifier,
            d.architecture,
            d.attaches.join(", "),
            if d.merges { "yes" } else { "" }
        );
    }
    let others: Vec<String> = identifiers()
        .filter(|i| docs.iter().all(|d| d.identifier != *i))
        .map(|i| format!("`{i}`"))
        .collect();
    let _ = writeln!(out, "\nUnions and older names: {}.", others.join(", "));
    let mut architectures: Vec<&str> = Vec::new();
    for d in &docs {
        if architectures.contains(&d.architecture) {
            continue;
        }
        architectures.push(d.architecture);
        let same: Vec<&MethodDoc> = docs
            .iter()
            .filter(|o| o.architecture == d.architecture)
            .collect();
        let _ = writeln!(out, "\n## {}\n\n{}\n", d.architecture, d.about);
        let names: Vec<String> = same.iter().map(|o| format!("`{}`", o.identifier)).collect();
        let _ = writeln!(
            out,
            "| field | {} | meaning |\n|---|{}---|",
            names.join(" | "),
            "---|".repeat(same.len())
        );
        for f in &d.fields {
            let value = |o: &&MethodDoc| {
                let found = o.fields.iter().find(|g| g.name == f.name);
                found.map_or_else(String::new, |g| g.default.to_string())
            };
            let values: Vec<String> = same.iter().map(value).collect();
            let _ = writeln!(
                out,
                "| `{}` | {} | {} |",
                f.name,
                values.join(" | "),
                f.about.replace('|', "\\|")
            );
        }
    }
    out
}

/// The JSON Schema of `adapter_config.json`.
pub fn schema() -> Value {
    let mut defs = Map::new();
    let mut refs = Vec::new();
    for preset in MethodConfig::presets() {
        let Value::Object(mut schema) = (preset.make)().schema() else {
            continue;
        };
        schema.remove("$schema");
        if let Some(Value::Object(inner)) = schema.remove("$defs") {
            defs.extend(inner);
        }
        let title = schema
            .get("title")
            .and_then(Value::as_str)
            .unwrap_or(preset.name)
            .to_owned();
        if !defs.contains_key(&title) {
            refs.push(json!({ "$ref": format!("#/$defs/{title}") }));
            defs.insert(title, Value::Object(schema));
        }
    }
    defs.insert("Union".into(), json!({
        "type": "object", "required": ["architecture", "configs"],
        "properties": { "architecture": { "const": "union" }, "configs": { "type": "array", "items": { "anyOf": refs } } },
    }));
    let mut all = refs.clone();
    all.push(json!({ "$ref": "#/$defs/Union" }));
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "adapter_config.json",
        "type": "object",
        "required": ["config"],
        "properties": {
            "config": { "anyOf": all },
            "hidden_size": { "type": ["integer", "null"] },
            "model_class": { "type": "string" },
            "model_name": { "type": ["string", "null"] },
            "model_type": { "type": "string" },
            "name": { "type": "string" },
            "onnx_graft": { "type": "object", "properties": { "base": { "type": "string", "description": "Fingerprint of the base model; not AdapterHub's." } } },
            "version": { "type": "string" },
        },
        "$defs": defs,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{env, fs, path::Path};

    /// `UPDATE_SCHEMAS=1` writes the file instead.
    fn fresh(name: &str, wanted: &str) {
        let path = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("schemas")
            .join(name);
        if env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::write(&path, wanted).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert!(
            found == wanted,
            "schemas/{name} is not fresh: run the tests with UPDATE_SCHEMAS=1"
        );
    }

    #[test]
    fn generated_files_are_fresh() {
        fresh("methods.md", &markdown());
        let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
        fresh("adapter_config.schema.json", &text);
    }

    #[test]
    fn every_field_is_explained() {
        for preset in MethodConfig::presets() {
            let doc = describe(&preset);
            assert!(doc.about.len() > 40, "{}: {}", preset.name, doc.about);
            let silent: Vec<&str> = doc
                .fields
                .iter()
                .filter(|f| f.about.is_empty())
                .map(|f| &*f.name)
                .collect();
            assert!(silent.is_empty(), "{}: {silent:?}", preset.name);
        }
    }
}
