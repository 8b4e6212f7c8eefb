//! Documentation of the methods, from their code: the head of a method's file, its fields with their comments, its presets.

use super::Config;
use super::config::{chunks, expansion, fusion_identifiers};
#[cfg(test)]
use super::identifiers;
use super::methods::MethodConfig;
use crate::error::Result;
use serde_json::{Map, Value, json};
use std::fmt::Write;

mod parameters;

use parameters::Example;
pub(crate) use parameters::{ParamDoc, PlaceDoc};

/// One field of a configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Field {
    /// Its name.
    pub name: String,
    /// Its value in the preset.
    pub default: Value,
    /// What it means.
    pub about: String,
}

/// What there is to know of one method in one configuration.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MethodDoc {
    /// The identifier, or the member of a union, as it is written.
    pub identifier: String,
    /// `architecture`; `bottleneck` where the key is absent.
    pub architecture: &'static str,
    /// Formula, paper and particularities.
    pub about: String,
    /// Where it attaches.
    pub places: Vec<PlaceDoc>,
    /// Whether it can be folded into the base weights.
    pub merges: bool,
    /// The fields with their values.
    pub fields: Vec<Field>,
    /// Its parameters.
    pub parameters: Vec<ParamDoc>,
}

/// What there is to know of a configuration: one method, or the members of a union.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Explained {
    /// The identifier or the configuration string.
    pub text: String,
    /// What an older name, or the name of a union, stands for.
    pub stands_for: Option<&'static str>,
    /// The configuration's hash.
    pub config_id: String,
    /// The members; one, where it is no union.
    pub members: Vec<MethodDoc>,
}

/// Explains an identifier or a configuration string.
///
/// # Errors
/// An identifier or a field that is not known, with the nearest one.
pub(crate) fn explain(text: &str) -> Result<Explained> {
    explain_in(&Example::new()?, text)
}

fn explain_in(example: &Example, text: &str) -> Result<Explained> {
    let text = text.trim();
    let named = text.split('[').next().unwrap_or(text).trim();
    let config = if fusion_identifiers().any(|n| n == named) {
        Config::parse_fusion(text)?
    } else {
        Config::parse(text)?
    };
    let written = chunks(text);
    let members = config.methods().iter().enumerate().map(|(i, method)| {
        let identifier = written.get(i).map_or_else(String::new, |t| (*t).to_owned());
        describe(identifier, method, example)
    });
    Ok(Explained {
        text: text.to_owned(),
        stands_for: expansion(text),
        config_id: config.hash(),
        members: members.collect::<Result<_>>()?,
    })
}

fn describe(identifier: String, method: &MethodConfig, example: &Example) -> Result<MethodDoc> {
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
    let (places, parameters) = example.ask(method)?;
    Ok(MethodDoc {
        identifier,
        architecture: method.name(),
        about: head(method.source()),
        places,
        merges: method.merges(),
        fields: method
            .fields()
            .into_iter()
            .map(|name| Field {
                default: dict.get(&name).cloned().unwrap_or_default(),
                about: about(&name),
                name,
            })
            .collect(),
        parameters,
    })
}

/// The `//!` lines at the head of a file.
fn head(source: &str) -> String {
    let lines = source.lines().map_while(|l| l.strip_prefix("//!"));
    let lines: Vec<&str> = lines.map(|l| l.strip_prefix(' ').unwrap_or(l)).collect();
    lines.join("\n")
}

/// What the symbols of shapes mean, and where the keys come from.
const LEGEND: &str = "`in` and `out` are the widths of a linear, `d` that of the model, other words are fields of the configuration; `I` is the layer and \
     `NAME` the adapter. Keys are those of a Llama through an interface.";

impl MethodDoc {
    /// AdapterHub's keys of its places, each once.
    pub(crate) fn locations(&self) -> Vec<&'static str> {
        let mut out: Vec<&'static str> = self.places.iter().map(|p| p.location).collect();
        let mut seen = Vec::new();
        out.retain(|l| {
            !seen.contains(l) && {
                seen.push(*l);
                true
            }
        });
        out
    }

    /// As text for a terminal.
    fn text(&self) -> String {
        let mut out = format!(
            "{} ({})\n\n{}\n\nmerges into the base weights: {}\n\nattaches at\n",
            self.identifier,
            self.architecture,
            self.about,
            if self.merges { "yes" } else { "no" }
        );
        for p in &self.places {
            let _ = writeln!(out, "  {:<20}{}", p.location, p.what);
        }
        out += "\nfields\n";
        for f in &self.fields {
            let _ = writeln!(
                out,
                "  {:<30}{:<18}{}",
                f.name,
                f.default.to_string(),
                f.about
            );
        }
        out += "\nparameters\n";
        for p in &self.parameters {
            let shared = match p.shared {
                "" => String::new(),
                who => format!(", shared by {who}"),
            };
            let _ = writeln!(out, "  {}", p.key);
            let _ = writeln!(
                out,
                "      {:<36}  {:<22}  {}{shared}",
                p.dims(),
                p.initial,
                p.role
            );
        }
        let _ = writeln!(out, "  {}", LEGEND.replace('`', ""));
        out
    }

    fn json(&self) -> Value {
        let field = |f: &Field| json!({ "name": f.name, "default": f.default, "about": f.about });
        let place = |p: &PlaceDoc| json!({ "location": p.location, "what": p.what });
        json!({
            "identifier": self.identifier, "architecture": self.architecture, "about": self.about,
            "attaches": self.locations(), "merges": self.merges,
            "places": self.places.iter().map(place).collect::<Vec<_>>(),
            "fields": self.fields.iter().map(field).collect::<Vec<_>>(),
            "parameters": self.parameters.iter().map(ParamDoc::json).collect::<Vec<_>>(),
        })
    }
}

impl Explained {
    /// `architecture` of its configuration.
    pub(crate) fn architecture(&self) -> &'static str {
        match &self.members[..] {
            [one] => one.architecture,
            _ => "union",
        }
    }

    /// AdapterHub's keys of the places of all members.
    pub(crate) fn locations(&self) -> Vec<&'static str> {
        self.members.iter().flat_map(MethodDoc::locations).collect()
    }

    /// Whether it can be folded into the base weights: all members can.
    pub(crate) fn merges(&self) -> bool {
        self.members.iter().all(|m| m.merges)
    }

    /// As text for a terminal.
    pub(crate) fn text(&self) -> String {
        let mut out = match self.stands_for {
            Some(full) if self.members.len() > 1 => {
                format!("{} is the union {full}\n\n", self.text)
            }
            Some(full) => format!("{} is an older name of {full}\n\n", self.text),
            None => String::new(),
        };
        let members: Vec<String> = self.members.iter().map(MethodDoc::text).collect();
        out += &members.join("\n");
        out
    }

    /// As JSON: the method, or the `members` of a union.
    pub(crate) fn json(&self) -> Value {
        let mut out = match &*self.members {
            [only] => only.json(),
            members => {
                json!({ "members": members.iter().map(MethodDoc::json).collect::<Vec<_>>() })
            }
        };
        out["identifier"] = self.text.clone().into();
        out["stands_for"] = self.stands_for.into();
        out["config_id"] = self.config_id.clone().into();
        out
    }
}

/// All methods as one Markdown document: `schemas/methods.md`.
///
/// # Errors
/// Never, with the methods that there are.
#[cfg(test)]
pub(crate) fn markdown() -> Result<String> {
    let example = Example::new()?;
    let mut out = String::from(
        "# Adapter methods\n\nGenerated from the code; a test keeps it fresh.\n\n| identifier | architecture | attaches at | merges | config id |\n|---|---|---|---|---|\n",
    );
    let (mut docs, mut others) = (Vec::new(), Vec::new());
    for name in identifiers().chain(fusion_identifiers()) {
        let known = explain_in(&example, name)?;
        if known.stands_for.is_some() {
            others.push(known);
            continue;
        }
        for d in known.members {
            let merges = if d.merges { "yes" } else { "" };
            let at = d.locations().join(", ");
            let _ = writeln!(
                out,
                "| `{}` | {} | {at} | {merges} | `{}` |",
                d.identifier, d.architecture, known.config_id
            );
            docs.push(d);
        }
    }
    out += "\n`dynamic` and `static` are for a `Fuse` of a setup: `--fusion dynamic`.\n";
    out += "\n| older name, or union | stands for | config id |\n|---|---|---|\n";
    for o in &others {
        let full = o.stands_for.unwrap_or_default().replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | `{full}` | `{}` |", o.text, o.config_id);
    }
    let _ = writeln!(out, "\nIn the tables of parameters, {LEGEND}");
    let mut architectures: Vec<&str> = docs.iter().map(|d| d.architecture).collect();
    architectures.dedup();
    for architecture in architectures {
        let same: Vec<&MethodDoc> = docs
            .iter()
            .filter(|d| d.architecture == architecture)
            .collect();
        section(&mut out, architecture, &same);
    }
    Ok(out)
}

/// One architecture: its text, a table of the fields of all its identifiers, and their parameters.
#[cfg(test)]
fn section(out: &mut String, architecture: &str, same: &[&MethodDoc]) {
    let Some(first) = same.first() else { return };
    let _ = writeln!(out, "\n## {architecture}\n\n{}\n", first.about);
    let names: Vec<String> = same.iter().map(|o| format!("`{}`", o.identifier)).collect();
    let _ = writeln!(
        out,
        "| field | {} | meaning |\n|---|{}---|",
        names.join(" | "),
        "---|".repeat(same.len())
    );
    for f in &first.fields {
        let value = |o: &&MethodDoc| {
            let found = o.fields.iter().find(|g| g.name == f.name);
            found.map_or_else(String::new, |g| g.default.to_string())
        };
        let values: Vec<String> = same.iter().map(value).collect();
        let about = f.about.replace('|', "\\|");
        let _ = writeln!(out, "| `{}` | {} | {about} |", f.name, values.join(" | "));
    }
    for d in same {
        let _ = writeln!(out, "\nParameters of `{}`:\n", d.identifier);
        out.push_str("| key | shape | initial value | | shared by |\n|---|---|---|---|---|\n");
        for p in &d.parameters {
            let dims = p.dims();
            let _ = writeln!(
                out,
                "| `{}` | `{dims}` | {} | {} | {} |",
                p.key, p.initial, p.role, p.shared
            );
        }
    }
}

/// The JSON Schema of `adapter_config.json`.
#[cfg(test)]
pub(crate) fn schema() -> Value {
    let mut defs = Map::new();
    let mut refs = Vec::new();
    for preset in MethodConfig::presets() {
        let Value::Object(mut schema) = (preset.make)().schema().clone() else {
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
    use crate::unit::support::check_generated;

    #[test]
    fn generated_files_are_fresh() {
        check_generated("methods.md", &markdown().unwrap());
        let text = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
        check_generated("adapter_config.schema.json", &text);
    }

    #[test]
    fn every_field_and_parameter_is_explained() {
        for name in identifiers() {
            let known = explain(name).unwrap();
            let text = known.text();
            assert_eq!(
                known.stands_for.is_some(),
                text.starts_with(&format!("{name} is "))
            );
            for doc in &known.members {
                assert!(doc.about.len() > 40, "{name}: {}", doc.about);
                let silent: Vec<&str> = doc
                    .fields
                    .iter()
                    .filter(|f| f.about.is_empty())
                    .map(|f| &*f.name)
                    .collect();
                assert!(silent.is_empty(), "{name}: {silent:?}");
                assert!(
                    !doc.places.is_empty() && !doc.parameters.is_empty(),
                    "{name}"
                );
                for p in &doc.parameters {
                    // A size that is not told by name is a number of more than one digit.
                    let bare = |s: &String| s.len() > 1 && s.bytes().all(|b| b.is_ascii_digit());
                    assert!(!p.shape.iter().any(bare), "{name}: {} {}", p.key, p.dims());
                }
            }
        }
    }

    #[test]
    fn shapes_are_told_in_symbols() {
        let lines = |text: &str| -> Vec<String> {
            let known = explain(text).unwrap();
            let all = known.members.iter().flat_map(|m| &m.parameters);
            all.map(|p| {
                format!(
                    "{} {} {} {} {}",
                    p.key,
                    p.dims(),
                    p.initial,
                    p.role,
                    p.shared
                )
            })
            .collect()
        };
        let q = "model.layers.I.self_attn.q_proj.loras.NAME";
        assert_eq!(
            lines("lora[attn_matrices=['q']]"),
            [
                format!("{q}.lora_A [r, in] U(±1/√in) trained "),
                format!("{q}.lora_B [out, r] 0 trained "),
            ]
        );
        let shared = "model.shared_parameters.NAME";
        assert_eq!(
            lines("vera[attn_matrices=['q']]"),
            [
                format!("{q}.vera_D [r, r] 0.1 on the diagonal trained "),
                format!("{q}.vera_B [out, out] 0 on the diagonal trained "),
                format!("{shared}.lora_A [r, in] U(±√(6/in)) frozen all places"),
                format!("{shared}.lora_B [out, r] U(±√(6/r)) frozen all places"),
            ]
        );
        let typo = explain("seq_bm").unwrap_err().to_string();
        assert!(typo.contains("nearest one is `seq_bn`"), "{typo}");
    }
}
