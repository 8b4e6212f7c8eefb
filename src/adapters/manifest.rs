//! The manifest: what is attached to a model, as its metadata says it. The one reader and the one writer.

use super::heads::Noted;
use super::methods::MethodConfig;
use super::{Config, Meta, Setup, UnknownKeys};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::Model;
use crate::ir::contract::stamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// What is attached to a model.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Manifest {
    /// What wrote it.
    pub tool: String,
    /// The adapters, in the order of attaching.
    pub adapters: Vec<Entry>,
    /// Prediction heads that came with adapters, the one in use last.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub heads: Vec<Noted>,
    /// Setups that bind adapters together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub setups: Vec<Value>,
    /// Graph inputs that came with adapters.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub inputs: Vec<String>,
    /// How the adapters are chosen for each sample, where an input does that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<Tenants>,
    /// The kinds of adapters whose parameters are inputs.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exchanged: Vec<Exchangeable>,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

/// A kind of adapters whose parameters are inputs of the graph.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Exchangeable {
    /// The dictionary of the configuration that they have in common.
    pub config: Value,
    /// Names of the inputs.
    pub inputs: Vec<String>,
}

/// Adapters of which an input chooses one for each sample, and all that it takes to attach them again, with others or without some.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Tenants {
    /// Their names, by id.
    pub names: Vec<String>,
    /// What their files say besides the configuration, by id.
    pub files: Vec<TenantFile>,
    /// Texts of the interfaces that those files have beside them, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub interfaces: Vec<String>,
    /// The interface that selects their places, as JSON.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    /// Where that came from, as far as it decides anything.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub source: String,
    /// Layers without adapters.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub skip_layers: Vec<usize>,
}

/// The file of one of them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct TenantFile {
    /// What it says besides the configuration.
    pub meta: Meta,
    /// Index of its interface.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interface: Option<usize>,
}

impl Tenants {
    /// Adds an adapter.
    pub(crate) fn push(&mut self, name: &str, meta: Meta, interface: Option<String>) {
        let interface = interface.map(|text| {
            let there = self.interfaces.iter().position(|i| *i == text);
            there.unwrap_or_else(|| {
                self.interfaces.push(text);
                self.interfaces.len() - 1
            })
        });
        self.names.push(name.to_owned());
        self.files.push(TenantFile { meta, interface });
    }

    /// What an adapter's file says, and the interface beside it.
    pub(crate) fn file(&self, id: usize) -> (Meta, Option<String>) {
        let file = self.files.get(id).cloned().unwrap_or_default();
        let interface = file.interface.and_then(|i| self.interfaces.get(i));
        (file.meta, interface.cloned())
    }
}

/// One adapter.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Its name.
    pub name: String,
    /// The dictionary of its configuration.
    pub config: Value,
    /// The configuration's hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_id: Option<String>,
    /// How the library integrated it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub route: Option<String>,
    /// Name of the model that it was attached to, where config.json said one.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model_name: String,
    /// Why its effect on a position depends on the whole sequence, where it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub whole_rows: Option<String>,
    /// Whether it takes thirds of fused projections for queries, keys and values, which are other columns.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub thirds: bool,
    /// Keys of other versions.
    #[serde(flatten)]
    pub extra: Map<String, Value>,
}

impl Manifest {
    /// The manifest of a model; an empty one, where nothing is attached.
    ///
    /// # Errors
    /// A manifest that cannot be read.
    pub(crate) fn read(model: &Model) -> Result<Manifest, Diagnostic> {
        let Some(text) = model.metadata.get(stamp::MANIFEST) else {
            return Ok(Manifest::default());
        };
        serde_json::from_str(text)
            .map_err(|e| Diagnostic::error("manifest", e.to_string()).at(stamp::MANIFEST))
    }

    /// The text of a manifest that says what two texts say of adapters that come in, and else the same as both; `None` where they differ.
    pub(crate) fn united(a: &str, b: &str) -> Option<String> {
        let read = |text: &str| serde_json::from_str::<Manifest>(text).ok();
        let (mut a, mut b) = (read(a)?, read(b)?);
        let (ours, theirs) = (
            std::mem::take(&mut a.exchanged),
            std::mem::take(&mut b.exchanged),
        );
        if a != b {
            return None;
        }
        a.exchanged = ours;
        for kind in theirs {
            match a.exchanged.iter_mut().find(|k| k.config == kind.config) {
                Some(there) => {
                    let new = kind
                        .inputs
                        .into_iter()
                        .filter(|i| !there.inputs.contains(i));
                    there.inputs.extend(new.collect::<Vec<_>>());
                }
                None => a.exchanged.push(kind),
            }
        }
        Some(a.text())
    }

    /// Says that this version wrote it.
    pub(crate) fn written(&mut self) {
        self.tool = concat!("onnx-graft ", env!("CARGO_PKG_VERSION")).into();
    }

    /// The text that the model's metadata holds.
    pub(crate) fn text(&self) -> String {
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Names of the heads whose adapters are part of the weights: what stays with them.
    pub(crate) fn merged_heads(&self) -> impl Iterator<Item = &str> {
        let heads = self.heads.iter().filter(|h| h.merged);
        heads.map(|h| &*h.name)
    }

    /// The children of the `Parallel` that the adapters are put together by, where there is one.
    pub(crate) fn parallel(&self) -> Option<Vec<Setup>> {
        let mut setups = self.setups.iter().filter_map(|s| Setup::from_json(s).ok());
        setups.find_map(|s| s.parallel().map(<[Setup]>::to_vec))
    }

    /// Names of the adapters.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.adapters.iter().map(|a| &*a.name)
    }
}

impl Entry {
    /// Its configuration.
    ///
    /// # Errors
    /// One that this version does not understand, such as that of a method of another crate.
    pub(crate) fn config(&self) -> Result<Config> {
        Config::from_dict(&self.config, UnknownKeys::Keep)
    }

    /// Whether its effect on a position depends on the whole sequence. Files of older versions do not say it: then the methods of the
    /// configuration do. A method of another crate needs a version that says it.
    ///
    /// # Errors
    /// A configuration that is not understood.
    pub(crate) fn reads_whole_rows(&self) -> Result<bool> {
        if self.whole_rows.is_some() {
            return Ok(true);
        }
        let members = self.config["configs"].as_array();
        let members = members.map_or(std::slice::from_ref(&self.config), Vec::as_slice);
        let mut own = members.iter().filter(|m| MethodConfig::knows(m));
        own.try_fold(false, |found, m| {
            let method = MethodConfig::from_dict(m, UnknownKeys::Keep)?;
            Ok(found || method.reads_whole_rows().is_some())
        })
    }
}

/// Names of the adapters whose effect on a position depends on the whole sequence, so that neither a cache nor filled-up rows give
/// what the sequence alone gives.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn whole_row_adapters(model: &Model) -> Result<Vec<String>> {
    let manifest = Manifest::read(model).map_err(|d| Error::new(ErrorKind::Method, d))?;
    let mut out = Vec::new();
    for entry in manifest.adapters {
        if entry.reads_whole_rows()? {
            out.push(entry.name);
        }
    }
    Ok(out)
}

/// What each sample of a batch chooses from, by a graph input: the children of a `MultiTask`, or many adapters in one graph.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Choice {
    /// Their names, by id: of a child, that of its last adapter.
    pub names: Vec<String>,
    /// Whether a sample may have none: -1.
    pub or_none: bool,
}

/// The name that PEFT has for no adapter.
const BASE: &str = "__base__";

impl Choice {
    /// The id that a sample says, by name or as a number.
    pub(crate) fn id(&self, said: &Value) -> Option<i64> {
        if let Some(name) = said.as_str() {
            let none = (self.or_none && name == BASE).then_some(-1);
            let at = self.names.iter().position(|n| n == name);
            return at.and_then(|i| i64::try_from(i).ok()).or(none);
        }
        let least = if self.or_none { -1 } else { 0 };
        said.as_i64()
            .filter(|id| (least..self.names.len() as i64).contains(id))
    }
}

/// What the samples of a model choose from, where they do.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn choice(model: &Model) -> Result<Option<Choice>> {
    let manifest = Manifest::read(model).map_err(|d| Error::new(ErrorKind::Method, d))?;
    if let Some(tenants) = manifest.tenants {
        return Ok(Some(Choice {
            names: tenants.names,
            or_none: true,
        }));
    }
    let mut setups = manifest
        .setups
        .iter()
        .filter_map(|s| Setup::from_json(s).ok());
    // Where there are several, an id counts in each.
    let tasks = setups.find_map(|s| {
        let least = s.multi_tasks().into_iter().min_by_key(|tasks| tasks.len());
        least.map(<[Setup]>::to_vec)
    });
    Ok(tasks.map(|tasks| Choice {
        names: tasks.iter().map(|t| t.last().to_owned()).collect(),
        or_none: false,
    }))
}

/// The adapters that training changes where nobody names them: as with the library's `train_adapter_fusion`, those that a fusion mixes stay
/// as they are. `None` for all, where nothing is mixed.
///
/// # Errors
/// A manifest that cannot be read.
pub(crate) fn usually_trained(model: &Model) -> Result<Option<Vec<String>>> {
    let manifest = Manifest::read(model).map_err(|d| Error::new(ErrorKind::Method, d))?;
    let is_fusion = |e: &&Entry| e.config["architecture"] == Config::FUSION;
    let mut mixed: Vec<String> = Vec::new();
    for fusion in manifest.adapters.iter().filter(is_fusion) {
        mixed.extend(fusion.config()?.fuses().unwrap_or_default().iter().cloned());
    }
    let rest = manifest.names().filter(|n| mixed.iter().all(|m| m != n));
    Ok((!mixed.is_empty()).then(|| rest.map(str::to_owned).collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn model(manifest: &str) -> Model {
        let mut out = Model::default();
        out.metadata.insert(stamp::MANIFEST.into(), manifest.into());
        out
    }

    #[test]
    fn a_manifest_without_the_field_is_answered_by_the_methods() {
        let entries = [
            (
                "a",
                r#"{"architecture":"reft","layers":"all","prefix_positions":3,"suffix_positions":1,"r":1,"orthogonality":true}"#,
            ),
            ("b", r#"{"architecture":"lora"}"#),
            (
                "c",
                r#"{"architecture":"union","configs":[{"architecture":"lora","use_gating":true}]}"#,
            ),
            ("d", r#"{"architecture":"of_another_crate"}"#),
        ];
        let entries: Vec<String> = entries
            .iter()
            .map(|(n, c)| format!(r#"{{"name":"{n}","config":{c}}}"#))
            .collect();
        let text = format!(r#"{{"tool":"t","adapters":[{}]}}"#, entries.join(","));
        assert_eq!(whole_row_adapters(&model(&text)).unwrap(), ["a", "c"]);
    }

    #[test]
    fn a_manifest_says_it_for_methods_that_are_not_known() {
        let text = r#"{"tool":"t","adapters":[{"name":"x","config":{"architecture":"own"},"whole_rows":"why"}]}"#;
        assert_eq!(whole_row_adapters(&model(text)).unwrap(), ["x"]);
        assert_eq!(Manifest::read(&model(text)).unwrap().text(), text);
    }

    #[test]
    fn a_broken_manifest_is_an_error() {
        for text in ["{", r#"{"adapters":[{}]}"#, "[1]"] {
            assert!(whole_row_adapters(&model(text)).is_err(), "{text}");
        }
    }
}
