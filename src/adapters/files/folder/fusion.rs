//! What the file of a fusion says beside its configuration.

use crate::adapters::Config;
use crate::error::Result;
use serde_json::{Map, Value};

/// The key of a fusion's adapters.
pub(super) const FUSED: &str = "adapter_names";

/// The key of the temperature that a fusion's training has reached: ours, which the library ignores.
pub(super) const TEMPERATURE: &str = "temperature_now";

/// The dictionary of a fusion: its file has the adapters beside the configuration, which may be the name of one.
pub(super) fn fusion_dict(dict: &Value, top: &mut Map<String, Value>, name: &str) -> Result<Value> {
    let mut dict = match dict {
        Value::String(text) => Config::parse_fusion(text)?.to_dict(),
        Value::Null => Config::parse_fusion("dynamic")?.to_dict(),
        other => other.clone(),
    };
    let names = match top.shift_remove(FUSED) {
        Some(Value::Array(names)) => Value::Array(names),
        Some(Value::String(names)) => names.split(',').collect(),
        _ => name.split(',').collect(),
    };
    if let Value::Object(map) = &mut dict {
        map.insert("architecture".into(), Config::FUSION.into());
        map.insert(FUSED.into(), names);
        let now = top.shift_remove(TEMPERATURE);
        map.extend(now.map(|t| (TEMPERATURE.to_owned(), t)));
    }
    Ok(dict)
}
