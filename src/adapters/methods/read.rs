//! Reading a configuration's dictionary as one method's type, with findings that name the field at fault.

use super::Known;
use crate::adapters::config::keys::{UnknownKeys, unknown_key};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use serde_json::{Map, Value};

pub(super) fn read<M: Known>(value: &Value, unknown: UnknownKeys) -> Result<M> {
    let mut value = value.clone();
    // The library writes no `architecture` for bottlenecks, but some tools write null.
    if !M::KEYED
        && let Value::Object(map) = &mut value
    {
        map.shift_remove("architecture");
    }
    let method: M = serde_json::from_value(value.clone()).map_err(|e| {
        let found = wrong_fields::<M>(&value);
        if found.is_empty() {
            let finding = Diagnostic::error("config-value", e.to_string());
            return Error::new(ErrorKind::Method, finding);
        }
        Error::many(ErrorKind::Method, found)
    })?;
    if unknown == UnknownKeys::Refuse
        && let Some(key) = method.extra().keys().next()
    {
        let schema = schemars::schema_for!(M).to_value();
        let all = schema["properties"].as_object();
        let known: Vec<&str> = all
            .into_iter()
            .flat_map(Map::keys)
            .map(String::as_str)
            .collect();
        let of = M::NAME;
        return Err(unknown_key(key, of, known.iter().copied()));
    }
    Ok(method)
}

/// The fields whose values have the wrong type: each is put alone into a configuration that is right.
fn wrong_fields<M: Known>(value: &Value) -> Vec<Diagnostic> {
    let right = M::presets().first().map(|p| (p.make)().to_dict());
    let (Value::Object(fields), Some(Value::Object(right))) = (value, right) else {
        return Vec::new();
    };
    let schema = schemars::schema_for!(M).to_value();
    let mut found = Vec::new();
    for (name, v) in fields {
        let mut alone = right.clone();
        alone.insert(name.clone(), v.clone());
        if serde_json::from_value::<M>(Value::Object(alone)).is_ok() {
            continue;
        }
        let property = &schema["properties"][name];
        let finding = Diagnostic::error("config-value", format!("`{name}` is {v}"));
        let about = property["description"].as_str().unwrap_or_default();
        let finding = match about.lines().next() {
            Some(line) => finding.note(line.to_owned()),
            None => finding,
        };
        found.push(finding.help(match wanted(property, &schema, 0) {
            Some(text) => format!("it takes {text}"),
            None => "`rewrite adapter show METHOD` lists the fields with their defaults".to_owned(),
        }));
    }
    found
}

/// What a field takes, by its schema, in the words of a configuration string.
fn wanted(property: &Value, schema: &Value, depth: usize) -> Option<String> {
    const MAX_DEPTH: usize = 4;
    if depth > MAX_DEPTH {
        return None;
    }
    let inner = |p: &Value| wanted(p, schema, depth + 1);
    if let Some(target) = property["$ref"].as_str() {
        return inner(schema.pointer(target.strip_prefix('#')?)?);
    }
    if let Some(all) = property["anyOf"]
        .as_array()
        .or(property["oneOf"].as_array())
    {
        let all: Option<Vec<String>> = all.iter().map(inner).collect();
        return all.map(|a| a.join(", or "));
    }
    if let Some(all) = property["type"].as_array() {
        let one = |t: &Value| {
            let mut p = property.clone();
            p["type"] = t.clone();
            inner(&p)
        };
        let all: Option<Vec<String>> = all.iter().map(one).collect();
        return all.map(|a| a.join(", or "));
    }
    Some(match property["type"].as_str()? {
        "integer" => match property["minimum"].as_i64() {
            Some(least) => format!("a whole number, {least} or more"),
            None => "a whole number".into(),
        },
        "number" => "a number".into(),
        "boolean" => "True or False".into(),
        "string" => "a text in quotes".into(),
        "null" => "None".into(),
        "array" => match inner(&property["items"]) {
            Some(items) => format!("a list, each of it {items}"),
            None => "a list".into(),
        },
        "object" => "a map such as {'0': 8, 'default': 16}".into(),
        _ => return None,
    })
}
