//! The interface: where the parts of a model are, by module path.
//!
//! AdapterHub's `adapter_interface.json` loads as it is, bare or wrapped in `{interface, model_type, version}`. Ours is a superset:
//! a field that AdapterHub gives one string may be a list with one entry for each entry of `model_layers` (encoder and decoder,
//! two towers), there is a norm for cross-attention, and `graph` names nodes or values outright, for exports without module names.

use super::check::Check;
use super::field::{Field, PATHS};
use super::position::Positions;
use super::site::Selection;
use crate::diag::{Diagnostic, nearest};
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The schema version this library writes where AdapterHub's own form cannot say it.
pub(crate) const SCHEMA_VERSION: u32 = 1;

/// What the source of an interface begins with that this library brings.
const BUILTIN: &str = "built-in ";

/// One path, or one for each entry of `model_layers`; null where there is none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum PerStack {
    /// The same for every stack.
    One(Option<String>),
    /// One entry for each stack.
    Each(Vec<Option<String>>),
}

impl Default for PerStack {
    fn default() -> Self {
        PerStack::One(None)
    }
}

impl PerStack {
    /// The path for one stack.
    pub fn get(&self, stack: usize) -> Option<&str> {
        match self {
            PerStack::One(p) => p.as_deref(),
            PerStack::Each(list) => list.get(stack)?.as_deref(),
        }
    }

    /// Whether no stack has a path.
    pub(crate) fn is_null(&self) -> bool {
        match self {
            PerStack::One(p) => p.is_none(),
            PerStack::Each(list) => list.iter().all(Option::is_none),
        }
    }

    pub(super) fn len(&self) -> Option<usize> {
        match self {
            PerStack::One(_) => None,
            PerStack::Each(list) => Some(list.len()),
        }
    }
}

/// Names of nodes or values: a pattern with `{layer}` in it, or one name for each layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum GraphNames {
    /// A name, in which `{layer}` stands for the layer id.
    Pattern(String),
    /// One name for each layer; null where a layer has none.
    Each(Vec<Option<String>>),
}

impl GraphNames {
    /// The name for one layer.
    pub fn get(&self, layer: usize) -> Option<String> {
        match self {
            GraphNames::Pattern(p) => Some(p.replace("{layer}", &layer.to_string())),
            GraphNames::Each(list) => list.get(layer)?.clone(),
        }
    }
}

/// AdapterHub's fields, and the ones we add. Paths before the first `_` of the name say what they are relative to: `model_*` the base
/// model, `layer_*` one layer, `attn_*` the attention module.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fields {
    /// Methods that the model takes: `bottleneck`, `lora`, `reft`, `prompt_tuning`, `invertible`, ….
    pub adapter_methods: Vec<String>,
    /// Key projection.
    #[serde(default)]
    pub attn_k_proj: PerStack,
    /// Output projection of the attention.
    #[serde(default)]
    pub attn_o_proj: PerStack,
    /// Query projection.
    #[serde(default)]
    pub attn_q_proj: PerStack,
    /// Fused projection of query, key and value; instead of the three.
    #[serde(default)]
    pub attn_qkv_proj: PerStack,
    /// Value projection.
    #[serde(default)]
    pub attn_v_proj: PerStack,
    /// Attribute of the exported model that holds the base model, if it is not the usual one.
    #[serde(default)]
    pub base_model: Option<String>,
    /// Cross-attention module.
    #[serde(default)]
    pub layer_cross_attn: PerStack,
    /// Projection of a gated feed-forward block whose output goes through the activation. Not AdapterHub's.
    #[serde(default, skip_serializing_if = "PerStack::is_null")]
    pub layer_gate_proj: PerStack,
    /// First projection of the feed-forward block; of a gated one, the branch without activation.
    #[serde(default)]
    pub layer_intermediate_proj: PerStack,
    /// Norm behind self-attention.
    #[serde(default)]
    pub layer_ln_1: PerStack,
    /// Norm behind the feed-forward block.
    #[serde(default)]
    pub layer_ln_2: PerStack,
    /// Norm behind cross-attention. Not AdapterHub's.
    #[serde(default, skip_serializing_if = "PerStack::is_null")]
    pub layer_ln_cross: PerStack,
    /// Last projection of the feed-forward block.
    #[serde(default)]
    pub layer_output_proj: PerStack,
    /// Module whose input is the residual of cross-attention.
    #[serde(default)]
    pub layer_pre_cross_attn: PerStack,
    /// Module whose input is the residual of the feed-forward block.
    #[serde(default)]
    pub layer_pre_ffn: PerStack,
    /// Module whose input is the residual of self-attention.
    #[serde(default)]
    pub layer_pre_self_attn: PerStack,
    /// Self-attention module. Empty where the layer holds the projections of its attention itself, which is not AdapterHub's.
    #[serde(default)]
    pub layer_self_attn: PerStack,
    /// Module whose output is the embedded input.
    pub model_embeddings: PerStack,
    /// The list of layers; several lists for several stacks.
    pub model_layers: PerStack,
    /// Names of nodes or values that stand for a field, whatever modules the graph shows: keys are field names, those of
    /// projections in cross-attention with `layer_cross_attn.` in front; `layer` for a layer's input, `layer.output`. Not AdapterHub's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub graph: BTreeMap<String, GraphNames>,
}

/// An `adapter_interface.json`: bare fields, or wrapped.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "adapter_interface.json")]
#[serde(untagged)]
pub enum InterfaceFile {
    /// As AdapterHub writes it.
    Wrapped {
        /// The fields.
        interface: Box<Fields>,
        /// The model type of `config.json`.
        #[serde(default)]
        model_type: Option<String>,
        /// Version of what wrote the file; `adapters.…` for AdapterHub.
        #[serde(default)]
        version: Option<String>,
        /// Version of our superset; absent in AdapterHub's files.
        #[serde(default)]
        schema_version: Option<u32>,
    },
    /// Only the fields.
    Bare(Box<Fields>),
}

/// What the Adapters library can use of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    /// All of it.
    Whole,
    /// This, of which fields and stacks are left out.
    Part(Box<Interface>),
    /// Nothing.
    Nothing,
}

/// An interface, ready to select with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// The fields.
    pub fields: Fields,
    /// The model type it is for.
    pub model_type: Option<String>,
    /// Version of what wrote it.
    pub version: Option<String>,
    /// Version of our superset; `None` for AdapterHub's own form.
    pub schema_version: Option<u32>,
    /// Where it came from, for messages: a path, or `built-in qwen3`.
    pub source: String,
    /// Number of layers of the encoder, by which those of a decoder in a file of its own are counted on; `None` where it is not known.
    pub(crate) encoder_layers: Option<usize>,
    /// What is to be said wherever it is used: how it was found, where nobody named it.
    pub(crate) notes: Vec<Diagnostic>,
}

impl Interface {
    /// One that names nothing, for adapters that choose modules by their own names in a model whose layers cannot be told.
    pub(crate) fn bare() -> Interface {
        Interface {
            fields: Fields::default(),
            model_type: None,
            version: None,
            schema_version: None,
            source: "none".to_owned(),
            encoder_layers: None,
            notes: Vec::new(),
        }
    }

    /// Whether it names no layers, and so nothing at all.
    pub(crate) fn is_bare(&self) -> bool {
        self.fields.model_layers.is_null()
    }

    /// Reads an interface from JSON. `source` is where the text came from. Every finding has line and column.
    ///
    /// # Errors
    /// [`ErrorKind::Interface`]: malformed JSON, unknown or misshapen fields, or fields that contradict each other; all together.
    pub fn parse(text: &str, source: &str) -> Result<Interface> {
        let value: Value = serde_json::from_str(text).map_err(|e| {
            let what = e.to_string();
            let what = what.split(" at line ").next().unwrap_or(&what).to_owned();
            fail(
                Diagnostic::error("interface-json", format!("not JSON: {what}")).at(format!(
                    "{source}:{}:{}",
                    e.line(),
                    e.column()
                )),
            )
        })?;
        let mut check = Check {
            source,
            positions: Positions::of(text),
            found: Vec::new(),
        };
        let Value::Object(outer) = &value else {
            return Err(fail(
                Diagnostic::error("interface-json", "an interface is a JSON object").at(source),
            ));
        };
        let wrapped = outer.contains_key("interface");
        check.duplicates();
        if wrapped {
            check.wrapper(outer);
        }
        let (inner, prefix) = match outer.get("interface") {
            Some(Value::Object(inner)) => (inner, "interface."),
            Some(_) => {
                check.error(
                    "interface",
                    "interface-type",
                    "`interface` is not an object",
                );
                return Err(Error::many(ErrorKind::Interface, check.found));
            }
            None => (outer, ""),
        };
        check.fields(inner, prefix, wrapped);
        if !check.found.is_empty() {
            return Err(Error::many(ErrorKind::Interface, check.found));
        }
        let fields: Fields = serde_json::from_value(Value::Object(inner.clone()))
            .map_err(|e| fail(Diagnostic::error("interface-type", e.to_string()).at(source)))?;
        let text_of = |key: &str| outer.get(key).and_then(Value::as_str).map(str::to_owned);
        let interface = Interface {
            model_type: text_of("model_type"),
            version: text_of("version"),
            schema_version: outer
                .get("schema_version")
                .and_then(Value::as_u64)
                .map(|v| v as u32),
            source: source.to_owned(),
            notes: Vec::new(),
            fields,
            encoder_layers: None,
        };
        check.rules(&interface.fields, prefix);
        if check.found.is_empty() {
            Ok(interface)
        } else {
            Err(Error::many(ErrorKind::Interface, check.found))
        }
    }

    /// Reads an interface file.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when it cannot be read, else as [`parse`](Self::parse).
    pub fn read(path: &Path) -> Result<Interface> {
        let text =
            disk::text(path).map_err(|e| Error::io(path, "the interface cannot be read", e))?;
        Interface::parse(&text, &path.display().to_string())
    }

    /// The interface of a path, or the built-in one of a name: `qwen3`, also written `qwen3.json` when no such file exists.
    ///
    /// # Errors
    /// [`ErrorKind::Interface`] when it is neither, with the nearest name; else as [`read`](Self::read).
    pub fn resolve(path_or_name: &str) -> Result<Interface> {
        let path = Path::new(path_or_name);
        if path.is_dir() {
            return Interface::read(&path.join("adapter_interface.json"));
        }
        if path.exists() {
            return Interface::read(path);
        }
        let name = path_or_name.strip_suffix(".json").unwrap_or(path_or_name);
        if let Some(found) = Interface::builtin(name) {
            return found;
        }
        let mut d = Diagnostic::error(
            "interface-unknown",
            format!("`{path_or_name}` is neither a file nor a built-in interface"),
        );
        if let Some(near) = nearest(name, Interface::builtin_names()) {
            d = d.note(format!("nearest built-in: {near}"));
        }
        Err(fail(d.help(
            "`rewrite interface list` shows the built-in ones; `rewrite interface infer` proposes one from the graph",
        )))
    }

    /// The same for a model file, beside which `config.json` says how many layers its encoder has.
    #[must_use]
    pub(crate) fn counting(mut self, file: &Path) -> Interface {
        let text = disk::text(beside(file, "config.json")).unwrap_or_default();
        let config: Value = serde_json::from_str(&text).unwrap_or_default();
        let names = ["encoder_layers", "num_encoder_layers", "num_layers"];
        let count = names.iter().find_map(|n| config[*n].as_u64());
        self.encoder_layers = count.and_then(|n| usize::try_from(n).ok());
        self
    }

    /// Whether each list of layers counts from 0: in a model of two models, as the library counts there.
    pub(crate) fn counts_layers_apart(&self) -> bool {
        self.model_type.as_deref() == Some("encoder-decoder")
    }

    /// The interface for a model file: an `adapter_interface.json` beside it, or the built-in one for the `model_type` of the
    /// `config.json` beside it. `Ok(None)` when neither is there or the type has no built-in interface.
    ///
    /// # Errors
    /// As [`read`](Self::read), for files that exist.
    pub(crate) fn detect(model: &Path) -> Result<Option<Interface>> {
        let dir = model.parent().unwrap_or(Path::new(""));
        let beside = dir.join("adapter_interface.json");
        if beside.is_file() {
            return Interface::read(&beside).map(Some);
        }
        Interface::model_type_beside(model)
            .and_then(|t| Interface::builtin(&t))
            .transpose()
    }

    /// The `model_type` that the `config.json` beside a model states; without such a file the type in `genai_config.json`, which the
    /// onnxruntime-genai builder writes.
    pub(crate) fn model_type_beside(model: &Path) -> Option<String> {
        let read = |name: &str| -> Option<Value> {
            let text = disk::text(beside(model, name)).ok()?;
            serde_json::from_str(&text).ok()
        };
        let own = match read("config.json") {
            Some(config) => config.get("model_type")?.clone(),
            None => read("genai_config.json")?.pointer("/model/type")?.clone(),
        };
        own.as_str().map(str::to_owned)
    }

    /// The built-in interface for a model type; `None` if there is none.
    pub(crate) fn builtin(model_type: &str) -> Option<Result<Interface>> {
        let at = super::builtin::INTERFACES
            .binary_search_by(|(name, _)| (*name).cmp(model_type))
            .ok()?;
        let (name, text) = super::builtin::INTERFACES[at];
        Some(Interface::parse(text, &format!("{BUILTIN}{name}")))
    }

    /// Names of the built-in interfaces, sorted.
    pub(crate) fn builtin_names() -> impl Iterator<Item = &'static str> {
        super::builtin::INTERFACES.iter().map(|(name, _)| *name)
    }

    /// Number of layer lists.
    pub(crate) fn stacks(&self) -> usize {
        self.fields.model_layers.len().unwrap_or(1)
    }

    /// Whether AdapterHub's library can read the file that [`to_json`](Self::to_json) writes.
    pub(crate) fn is_adapterhub(&self) -> bool {
        self.fields.graph.is_empty()
            && self.fields.layer_ln_cross.is_null()
            && self.fields.layer_gate_proj.is_null()
            && self
                .fields
                .paths()
                .iter()
                .all(|(_, p)| p.len().is_none() && p.get(0) != Some(""))
    }

    /// The same with what is open in its paths as a model has it: alternatives (`a|b`), and any entry of a list (`*`) where the layers are
    /// in one entry only. So the Adapters library, which knows neither, finds the modules.
    #[must_use]
    pub(crate) fn resolved(&self, selection: &Selection) -> Interface {
        let settle = |field: Field, stack: usize, path: &str| -> String {
            if field == Field::ModelLayers && path.contains('*') {
                let in_stack = selection.layers.iter().filter(|l| l.stack == stack);
                let lists = in_stack.filter_map(|l| {
                    let inner = l.path.strip_prefix(&*selection.base_prefix)?;
                    Some(inner.rsplit_once('.')?.0)
                });
                let lists: BTreeSet<&str> = lists.collect();
                return match lists.first() {
                    Some(only) if lists.len() == 1 => (*only).to_owned(),
                    Some(_) | None => path.to_owned(),
                };
            }
            let mut decided = selection.decisions.iter().filter(|d| d.field == field);
            let mut all = path.split('|');
            let has = |p: &&str| {
                decided.any(|d| {
                    d.path
                        .strip_suffix(p)
                        .is_some_and(|r| r.is_empty() || r.ends_with('.'))
                })
            };
            let first = all.clone().next().unwrap_or(path);
            all.find(has).unwrap_or(first).to_owned()
        };
        let mut out = self.clone();
        let Ok(Value::Object(mut fields)) = serde_json::to_value(&self.fields) else {
            return out;
        };
        for row in &PATHS {
            match fields.get_mut(row.field.name()) {
                Some(Value::String(path)) => *path = settle(row.field, 0, path),
                Some(Value::Array(each)) => {
                    for (stack, entry) in each.iter_mut().enumerate() {
                        if let Value::String(path) = entry {
                            *path = settle(row.field, stack, path);
                        }
                    }
                }
                Some(_) | None => {}
            }
        }
        if let Ok(fields) = serde_json::from_value(Value::Object(fields)) {
            out.fields = fields;
        }
        out
    }

    /// What of it the Adapters library can use: nothing of models of two models, for which it has classes of its own and no interface, nor
    /// of paths that are open.
    pub(crate) fn for_library(&self) -> Library {
        let composite = matches!(self.model_type.as_deref(), Some("clip" | "encoder-decoder"));
        let reduced = self.to_adapterhub();
        let paths = reduced.fields.paths();
        let open = |p: &str| p.contains(['*', '|']);
        if composite || paths.iter().any(|(_, p)| p.get(0).is_some_and(open)) {
            Library::Nothing
        } else if self.is_adapterhub() {
            Library::Whole
        } else {
            Library::Part(Box::new(reduced))
        }
    }

    /// Whether it is one of those that this library brings.
    pub(crate) fn is_builtin(&self) -> bool {
        self.source.starts_with(BUILTIN)
    }

    /// The built-in interface for the same type of model.
    pub(super) fn usual(&self) -> Option<Interface> {
        Interface::builtin(self.model_type.as_deref()?)?.ok()
    }

    /// As much of it as AdapterHub's library can read: of several stacks the first, and none of our fields.
    #[must_use]
    pub(crate) fn to_adapterhub(&self) -> Interface {
        let mut out = self.clone();
        let own = ["graph", "layer_gate_proj", "layer_ln_cross"];
        if let Ok(Value::Object(mut fields)) = serde_json::to_value(&self.fields) {
            fields.retain(|name, _| !own.contains(&name.as_str()));
            for row in &PATHS {
                if let Some(field) = fields.get_mut(row.field.name())
                    && let Value::Array(each) = field
                {
                    *field = each.first().cloned().unwrap_or_default();
                }
            }
            if let Ok(fields) = serde_json::from_value(Value::Object(fields)) {
                out.fields = fields;
            }
        }
        out
    }

    /// The file, in AdapterHub's form: keys sorted, indent 2, all 18 fields. Our additions appear only where they are used.
    pub(crate) fn to_json(&self) -> String {
        let mut file = Map::new();
        let inner = serde_json::to_value(&self.fields).unwrap_or_default();
        file.insert("interface".into(), sorted(inner));
        file.insert("model_type".into(), self.model_type.clone().into());
        if !self.is_adapterhub() {
            let version = self.schema_version.unwrap_or(SCHEMA_VERSION);
            file.insert("schema_version".into(), version.into());
        }
        file.insert("version".into(), self.version.clone().into());
        let text = serde_json::to_string_pretty(&Value::Object(file)).unwrap_or_default();
        text + "\n"
    }
}

impl Fields {
    /// The fields that hold paths, in the order of their names.
    pub(crate) fn paths(&self) -> [(Field, &PerStack); 18] {
        PATHS.map(|row| (row.field, (row.path)(self)))
    }
}

fn sorted(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            let mut entries: Vec<(String, Value)> = map.into_iter().collect();
            entries.sort_by(|a, b| a.0.cmp(&b.0));
            Value::Object(entries.into_iter().collect())
        }
        other => other,
    }
}

fn fail(d: Diagnostic) -> Error {
    Error::new(ErrorKind::Interface, d)
}

/// A file that belongs to a model: beside it, or a folder further up where the model lies in a folder `onnx`, as on the Hub.
pub(crate) fn beside(model: &Path, name: &str) -> PathBuf {
    let near = model.with_file_name(name);
    let folder = model.parent();
    let inside = folder
        .and_then(Path::file_name)
        .is_some_and(|n| n == "onnx");
    match folder.and_then(Path::parent) {
        Some(up) if inside && !near.exists() && up.join(name).exists() => up.join(name),
        Some(_) | None => near,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const BARE: &str = r#"{
  "adapter_methods": ["lora"],
  "model_embeddings": "embed_tokens",
  "model_layers": "layers",
  "layer_self_attn": "self_attn",
  "attn_q_proj": "q_proj", "attn_k_proj": "k_proj", "attn_v_proj": "v_proj", "attn_o_proj": "o_proj",
  "layer_intermediate_proj": "mlp.up_proj",
  "layer_output_proj": "mlp.down_proj"
}"#;

    fn findings(text: &str) -> Vec<String> {
        Interface::parse(text, "i.json")
            .expect_err("must be refused")
            .findings()
            .iter()
            .map(|d| format!("{} | {} | {}", d.code, d.path, d.message))
            .collect()
    }

    #[test]
    fn every_builtin_interface_parses_and_is_written_back_as_it_is() {
        for name in Interface::builtin_names() {
            let i = Interface::builtin(name)
                .expect("listed")
                .unwrap_or_else(|e| panic!("{name}: {e}"));
            assert_eq!(i.model_type.as_deref(), Some(name));
            let file = std::fs::read_to_string(format!("schemas/interfaces/{name}.json")).unwrap();
            assert_eq!(i.to_json(), file, "{name}");
        }
    }

    #[test]
    fn every_interface_file_is_in_the_table() {
        let mut files: Vec<String> = std::fs::read_dir("schemas/interfaces")
            .unwrap()
            .map(|f| {
                f.unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_str()
                    .unwrap()
                    .to_owned()
            })
            .collect();
        files.sort();
        assert_eq!(Interface::builtin_names().collect::<Vec<_>>(), files);
    }

    #[test]
    fn a_bare_object_is_an_interface() {
        let i = Interface::parse(BARE, "i.json").unwrap();
        assert_eq!(i.fields.attn_q_proj.get(0), Some("q_proj"));
        assert!(i.fields.layer_ln_1.is_null());
        assert!(i.is_adapterhub());
    }

    #[test]
    fn unknown_fields_are_reported_together_with_place_and_nearest_name() {
        let text = BARE
            .replace("\"attn_q_proj\"", "\"attn_q_prj\"")
            .replace("\"layer_self_attn\"", "\"layer_selfattn\"");
        let e = Interface::parse(&text, "i.json").expect_err("must be refused");
        assert_eq!(
            e.to_string(),
            "error[interface-field]: unknown field `layer_selfattn`\n  in i.json:5:3, layer_selfattn\n  nearest: layer_self_attn\n  help: a field of your own begins with `x-`\n\
             error[interface-field]: unknown field `attn_q_prj`\n  in i.json:6:3, attn_q_prj\n  nearest: attn_q_proj\n  help: a field of your own begins with `x-`"
        );
        assert!(
            Interface::parse(
                &BARE.replace("\"adapter_methods\"", "\"x-mine\": 1, \"adapter_methods\""),
                "i.json"
            )
            .is_ok()
        );
    }

    #[test]
    fn either_the_fused_projection_or_all_three() {
        let both = BARE.replace(
            "\"attn_o_proj\"",
            "\"attn_qkv_proj\": \"qkv\", \"attn_o_proj\"",
        );
        assert_eq!(
            findings(&both),
            [
                "interface-qkv | i.json:6:78, attn_qkv_proj | both `attn_qkv_proj` and q, k, v are given"
            ]
        );
        let partial = both.replace("\"attn_q_proj\": \"q_proj\",", "");
        assert!(
            Interface::parse(&partial, "i.json").is_ok(),
            "AdapterHub takes a partial set beside the fused one"
        );
        let none = BARE.replace("\"attn_q_proj\": \"q_proj\",", "");
        assert_eq!(findings(&none).len(), 1);
    }

    #[test]
    fn wrong_types_missing_fields_and_broken_json() {
        assert_eq!(
            findings(&BARE.replace("\"layers\"", "7")),
            [
                "interface-type | i.json:4:3, model_layers | `model_layers` is 7, expected a string, or a list with one for each stack"
            ]
        );
        // Models of experts have no one linear there.
        assert!(Interface::parse(&BARE.replace("\"mlp.up_proj\"", "null"), "i.json").is_ok());
        assert_eq!(findings(&BARE.replace("\"mlp.up_proj\"", "7")).len(), 1);
        assert_eq!(
            findings(&BARE.replace("\"lora\"", "\"lorra\"")),
            ["interface-method | i.json:2:3, adapter_methods | unknown method `lorra`"]
        );
        assert_eq!(
            findings("{\n \"a\": }"),
            ["interface-json | i.json:2:7 | not JSON: expected value"]
        );
        assert_eq!(
            findings(&BARE.replace("\"mlp.down_proj\"", "\"mlp..down\"")).len(),
            1
        );
        assert!(
            findings("{}")
                .iter()
                .all(|f| f.starts_with("interface-missing"))
        );
        assert_eq!(
            findings(&BARE.replace(
                "\"adapter_methods\"",
                "\"model_layers\": \"x\", \"adapter_methods\""
            ))
            .len(),
            1
        );
    }

    #[test]
    fn stacks_need_one_entry_each() {
        let two = BARE.replace("\"layers\"", "[\"encoder.layers\", \"decoder.layers\"]");
        let i = Interface::parse(&two, "i.json").unwrap();
        assert_eq!(
            (i.stacks(), i.fields.attn_q_proj.get(1)),
            (2, Some("q_proj"))
        );
        assert!(!i.is_adapterhub());
        let three = two.replace("\"o_proj\"", "[\"a\", \"b\", null]");
        assert_eq!(
            findings(&three),
            [
                "interface-stacks | i.json:6:78, attn_o_proj | `attn_o_proj` has 3 entries, `model_layers` has 2"
            ]
        );
    }

    #[test]
    fn names_resolve_with_and_without_extension() {
        assert_eq!(
            Interface::resolve("qwen3.json").unwrap(),
            Interface::resolve("qwen3").unwrap()
        );
        let e = Interface::resolve("qwen33").expect_err("unknown");
        assert!(e.to_string().contains("nearest built-in: qwen3"), "{e}");
    }
}
