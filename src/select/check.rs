//! Validation of interface files, with line and column of every finding.

use super::family::Family;
use super::field::{Field, GRAPH_ONLY, PATHS, Row};
use super::interface::{Fields, SCHEMA_VERSION};
use super::position::Positions;
use crate::diag::{Diagnostic, nearest};
use serde_json::{Map, Value};

/// What a field may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Methods,
    Text,
    Path { required: bool },
    Names,
}

/// All fields of the inner object, in the order of their names.
fn fields() -> Vec<(&'static str, Kind)> {
    let path = |row: &Row| {
        let required = row.required;
        (row.field.name(), Kind::Path { required })
    };
    let mut all: Vec<_> = PATHS.iter().map(path).collect();
    all.extend([
        ("adapter_methods", Kind::Methods),
        ("base_model", Kind::Text),
        ("graph", Kind::Names),
    ]);
    all.sort_unstable_by_key(|(name, _)| *name);
    all
}

/// Fields that the library's own files may have null, though a file has to have them: models of experts have no one linear there.
const NULLABLE: [&str; 2] = ["layer_intermediate_proj", "layer_output_proj"];

const WRAPPER: [&str; 5] = [
    "$schema",
    "interface",
    "model_type",
    "schema_version",
    "version",
];

pub(super) struct Check<'a> {
    pub(super) source: &'a str,
    pub(super) positions: Positions,
    pub(super) found: Vec<Diagnostic>,
}

impl Check<'_> {
    fn at(&self, path: &str) -> String {
        match self.positions.get(path) {
            Some((line, column)) => format!("{}:{line}:{column}, {path}", self.source),
            None => format!("{}, {path}", self.source),
        }
    }

    pub(super) fn error(&mut self, path: &str, code: &'static str, message: impl Into<String>) {
        let d = Diagnostic::error(code, message).at(self.at(path));
        self.found.push(d);
    }

    pub(super) fn duplicates(&mut self) {
        for path in self.positions.duplicates().to_vec() {
            self.error(
                &path,
                "interface-duplicate",
                format!("`{path}` is given twice"),
            );
        }
    }

    fn unknown(&mut self, path: &str, key: &str, known: &[&str]) {
        let mut d = Diagnostic::error("interface-field", format!("unknown field `{key}`"))
            .at(self.at(path));
        if let Some(near) = nearest(key, known.iter().copied()) {
            d = d.note(format!("nearest: {near}"));
        }
        self.found
            .push(d.help("a field of your own begins with `x-`"));
    }

    pub(super) fn wrapper(&mut self, outer: &Map<String, Value>) {
        for (key, value) in outer {
            let fine = match key.as_str() {
                "interface" => true,
                "$schema" => value.is_string(),
                "model_type" | "version" => value.is_string() || value.is_null(),
                "schema_version" => self.schema_version(value),
                k if k.starts_with("x-") => true,
                k => {
                    self.unknown(k, k, &WRAPPER);
                    true
                }
            };
            if !fine {
                self.error(key, "interface-type", format!("`{key}` is not a string"));
            }
        }
    }

    fn schema_version(&mut self, value: &Value) -> bool {
        match value.as_u64() {
            Some(v) if (1..=u64::from(SCHEMA_VERSION)).contains(&v) => {}
            _ if value.is_null() => {}
            _ => self.error(
                "schema_version",
                "interface-version",
                format!("schema_version is {value}; this version reads up to {SCHEMA_VERSION}"),
            ),
        }
        true
    }

    pub(super) fn fields(&mut self, inner: &Map<String, Value>, prefix: &str, wrapped: bool) {
        let all = fields();
        let known: Vec<&str> = all.iter().map(|f| f.0).collect();
        for (key, value) in inner {
            let path = format!("{prefix}{key}");
            if let Some((_, kind)) = all.iter().find(|f| f.0 == key) {
                self.shape(&path, key, *kind, value);
            } else if !key.starts_with("x-") {
                match key.as_str() {
                    "schema_version" if !wrapped => {
                        self.schema_version(value);
                    }
                    "$schema" | "model_type" | "version" if !wrapped => {}
                    _ => self.unknown(&path, key, &known),
                }
            }
        }
        for (name, kind) in all {
            let needed = matches!(kind, Kind::Methods | Kind::Path { required: true });
            if needed && !inner.contains_key(name) {
                let at = if prefix.is_empty() {
                    name.to_owned()
                } else {
                    format!("{prefix}{name}")
                };
                self.error(&at, "interface-missing", format!("`{name}` is missing"));
            }
        }
    }

    fn shape(&mut self, path: &str, key: &str, kind: Kind, value: &Value) {
        let text_or_null = |v: &Value| v.is_string() || v.is_null();
        let wanted = match kind {
            Kind::Methods => match value {
                Value::Array(list) if list.iter().all(Value::is_string) => {
                    return self.methods(path, list);
                }
                _ => "a list of method names",
            },
            Kind::Text if text_or_null(value) => return,
            Kind::Text => "a string or null",
            Kind::Path { required } => match value {
                Value::String(s) if s.is_empty() && key == Field::LayerSelfAttn.name() => return,
                Value::String(s) if s.is_empty() || s.split('.').any(str::is_empty) => {
                    "a dotted module path"
                }
                Value::String(_) => return,
                Value::Null if !required || NULLABLE.contains(&key) => return,
                Value::Array(list) if !list.is_empty() && list.iter().all(text_or_null) => return,
                _ if required => "a string, or a list with one for each stack",
                _ => "a string, null, or a list with one of them for each stack",
            },
            Kind::Names => match value {
                Value::Object(map) => return self.graph(path, map),
                _ => "an object of names of nodes or values",
            },
        };
        self.error(
            path,
            "interface-type",
            format!("`{key}` is {value}, expected {wanted}"),
        );
    }

    fn methods(&mut self, path: &str, list: &[Value]) {
        let methods = Family::ALL.map(Family::name);
        for m in list.iter().filter_map(Value::as_str) {
            if Family::of(m).is_none() {
                let mut d = Diagnostic::error("interface-method", format!("unknown method `{m}`"))
                    .at(self.at(path));
                if let Some(near) = nearest(m, methods) {
                    d = d.note(format!("nearest: {near}"));
                }
                self.found
                    .push(d.help(format!("methods are {}", methods.join(", "))));
            }
        }
    }

    fn graph(&mut self, path: &str, map: &Map<String, Value>) {
        let names = fields().into_iter().map(|f| f.0);
        let mut known: Vec<String> = names.map(str::to_owned).collect();
        let cross = PATHS.iter().filter(|r| r.field.is_of_attention());
        known.extend(cross.map(|r| format!("{}.{}", Field::LayerCrossAttn, r.field)));
        known.extend(GRAPH_ONLY.map(|f| f.name().to_owned()));
        for (key, value) in map {
            let at = format!("{path}.{key}");
            if !known.iter().any(|k| k == key) && !key.starts_with("x-") {
                let known: Vec<&str> = known.iter().map(String::as_str).collect();
                self.unknown(&at, key, &known);
            }
            let fine = match value {
                Value::String(_) => true,
                Value::Array(list) => list.iter().all(|v| v.is_string() || v.is_null()),
                _ => false,
            };
            if !fine {
                self.error(
                    &at,
                    "interface-type",
                    format!(
                        "`{key}` is {value}, expected a name, or a list with one for each layer"
                    ),
                );
            }
        }
    }

    /// What no single field can say: AdapterHub's `__post_init__`, by stack.
    pub(super) fn rules(&mut self, f: &Fields, prefix: &str) {
        let stacks = f.model_layers.len().unwrap_or(1);
        for (name, paths) in f.paths() {
            if let Some(n) = paths.len()
                && n != stacks
            {
                self.error(
                    &format!("{prefix}{name}"),
                    "interface-stacks",
                    format!("`{name}` has {n} entries, `model_layers` has {stacks}"),
                );
            }
        }
        for stack in 0..stacks {
            let of = if stacks > 1 {
                format!(" of stack {stack}")
            } else {
                String::new()
            };
            if f.model_layers.get(stack).is_none() {
                self.error(
                    &format!("{prefix}model_layers"),
                    "interface-missing",
                    format!("`model_layers`{of} is null"),
                );
            }
            let separate =
                [&f.attn_q_proj, &f.attn_k_proj, &f.attn_v_proj].map(|p| p.get(stack).is_some());
            let fused = f.attn_qkv_proj.get(stack).is_some();
            let attends =
                f.layer_self_attn.get(stack).is_some() || f.layer_cross_attn.get(stack).is_some();
            let problem = match (separate, fused) {
                ([true, true, true], true) => Some("both `attn_qkv_proj` and q, k, v are given"),
                ([true, true, true], false) | (_, true) => None,
                _ if !attends => None,
                _ => Some(
                    "neither `attn_qkv_proj` nor all of `attn_q_proj`, `attn_k_proj`, `attn_v_proj` is given",
                ),
            };
            if let Some(problem) = problem {
                let at = self.at(&format!("{prefix}attn_qkv_proj"));
                self.found.push(
                    Diagnostic::error("interface-qkv", format!("{problem}{of}"))
                        .at(at)
                        .help("give either the fused projection or all three"),
                );
            }
        }
    }
}
