//! Adapter folders, as AdapterHub's `save_adapter` writes them: `adapter_config.json`, weights as `adapter.safetensors` and as
//! `pytorch_adapter.bin`, and `adapter_interface.json` for adapters of the plugin route. What the library cannot read of an interface
//! (lists of several stacks, fields of our own) stands whole in a file beside it.
//!
//! Both weight files are written, because the Python library reads the torch file unless it is told otherwise. Where only
//! safetensors are wanted, [`WriteOptions`] says so.

use crate::adapters::base::Base;
use crate::adapters::config::json;
use crate::adapters::naming::{Route, belongs, renamed};
use crate::adapters::store::Weights;
use crate::adapters::target::Target;
use crate::adapters::{Adapter, AdapterStore, Config, MethodConfig, Setup, UnknownKeys, torch};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::fence;
use crate::ir::{DType, TensorData};
use crate::select::{Interface, Library};
use bytes::Bytes;
use indexmap::IndexMap;
use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde_json::{Map, Value};
use std::path::Path;

/// Names of the files.
pub(crate) mod file {
    /// Configuration and meta data.
    pub(crate) const CONFIG: &str = "adapter_config.json";
    /// Weights, safetensors.
    pub(crate) const SAFETENSORS: &str = "adapter.safetensors";
    /// Weights, torch.
    pub(crate) const TORCH: &str = "pytorch_adapter.bin";
    /// The interface of the model, as the Adapters library reads it.
    pub(crate) const INTERFACE: &str = "adapter_interface.json";
    /// The whole interface, where that one cannot say all of it.
    pub(crate) const WHOLE_INTERFACE: &str = "adapter_interface.onnx_graft.json";
    /// How adapters act together, beside their folders.
    pub(crate) const SETUP: &str = "adapter_setup.json";
    /// Its key for the setup.
    pub(crate) const SETUP_KEY: &str = "adapter_setup";
    /// Configuration and meta data of a fusion.
    pub(crate) const FUSION_CONFIG: &str = "adapter_fusion_config.json";
    /// Weights of a fusion, safetensors.
    pub(crate) const FUSION_SAFETENSORS: &str = "model_adapter_fusion.safetensors";
    /// Weights of a fusion, torch.
    pub(crate) const FUSION_TORCH: &str = "pytorch_model_adapter_fusion.bin";
}

mod delete;
mod fusion;
mod place;

pub(crate) use delete::delete;
use fusion::{FUSED, TEMPERATURE, fusion_dict};
#[cfg(feature = "train")]
pub(crate) use place::StagedAdapter;
pub(in crate::adapters) use place::write_files;

/// The files of one kind of folder.
struct Files {
    config: &'static str,
    safetensors: &'static str,
    torch: &'static str,
    /// Name of the archive in the torch file.
    archive: &'static str,
}

/// Those of an adapter.
const ADAPTER: Files = Files {
    config: file::CONFIG,
    safetensors: file::SAFETENSORS,
    torch: file::TORCH,
    archive: "pytorch_adapter",
};

/// Those of a fusion.
const FUSION: Files = Files {
    config: file::FUSION_CONFIG,
    safetensors: file::FUSION_SAFETENSORS,
    torch: file::FUSION_TORCH,
    archive: "pytorch_model_adapter_fusion",
};

/// Whether a folder holds an adapter or a fusion.
pub(crate) fn is_saved(folder: &Path) -> bool {
    [ADAPTER.config, FUSION.config]
        .iter()
        .any(|f| folder.join(f).exists())
}

/// Whether a folder holds a fusion, and no adapter.
pub(crate) fn is_fusion(folder: &Path) -> bool {
    folder.join(FUSION.config).exists() && !folder.join(ADAPTER.config).exists()
}

/// The version that is written: that of the library whose files these are.
pub(crate) const VERSION: &str = "adapters.1.2.0";

/// What `adapter_config.json` says besides the configuration.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Meta {
    /// Width of the base model.
    pub hidden_size: Option<u64>,
    /// Class of the model that saved it.
    pub model_class: String,
    /// `config.name_or_path` of the base model.
    pub model_name: String,
    /// `config.model_type` of the base model.
    pub model_type: String,
    /// Version of the library; absent in files of its first ones.
    pub version: Option<String>,
    /// Other keys.
    pub extra: Map<String, Value>,
}

impl Meta {
    /// What a file said, with these values where it said nothing, and this version and base.
    pub(crate) fn under(&self, saved: Meta) -> Meta {
        let text = |saved: String, own: &String| {
            if saved.is_empty() { own.clone() } else { saved }
        };
        let mut extra = saved.extra;
        for (key, value) in &self.extra {
            extra.insert(key.clone(), value.clone());
        }
        Meta {
            hidden_size: saved.hidden_size.or(self.hidden_size),
            model_class: text(saved.model_class, &self.model_class),
            model_name: text(saved.model_name, &self.model_name),
            model_type: text(saved.model_type, &self.model_type),
            version: self.version.clone(),
            extra,
        }
    }
}

/// A saved adapter.
#[derive(Clone, Debug, PartialEq)]
pub struct AdapterFolder {
    /// Its name.
    pub name: String,
    /// Its configuration, with the corrections that files of old versions need.
    pub config: Config,
    /// What else its file says.
    pub meta: Meta,
    /// Its weights, by the names of the file.
    pub(crate) weights: Weights,
    /// The text of its interface, where it has one beside it: an adapter of the plugin route.
    pub interface: Option<String>,
    /// What was corrected on reading.
    pub notes: Vec<Diagnostic>,
}

/// What to write.
#[derive(Clone, Copy, Debug)]
pub struct WriteOptions {
    /// `pytorch_adapter.bin`.
    pub torch: bool,
    /// `adapter.safetensors`.
    pub safetensors: bool,
    /// Replace files that are there.
    pub force: bool,
}

impl Default for WriteOptions {
    fn default() -> Self {
        WriteOptions {
            torch: true,
            safetensors: true,
            force: false,
        }
    }
}

impl AdapterFolder {
    /// Its weights, by the names of the file.
    pub fn tensors(&self) -> &IndexMap<Box<str>, TensorData> {
        &self.weights.tensors
    }

    /// Reads a folder.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a file is missing, [`ErrorKind::Method`] when the configuration is not understood,
    /// [`ErrorKind::Decode`] when the weights are not.
    pub fn read(folder: &Path) -> Result<AdapterFolder> {
        Self::read_with(folder, &|dict| Config::from_dict(dict, UnknownKeys::Keep))
    }

    /// Number of the adapter's parameters; those of a prediction head in the same file are not counted.
    pub(crate) fn parameters(&self) -> u64 {
        let own = self.weights.tensors.iter();
        let own = own.filter(|(key, _)| is_adapter_key(key, &self.name));
        own.filter_map(|(_, tensor)| tensor.count()).sum()
    }

    /// Reads a folder whose configuration `config` makes from its dictionary: that of a method of another crate.
    ///
    /// # Errors
    /// Those of [`read`](Self::read), and those of `config`.
    pub fn read_with(
        folder: &Path,
        config: &dyn Fn(&Value) -> Result<Config>,
    ) -> Result<AdapterFolder> {
        let files = if is_fusion(folder) { &FUSION } else { &ADAPTER };
        let path = folder.join(files.config);
        let text = disk::text(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
        let at = |e: Error| e.within(path.display().to_string());
        let mut top = object(&text).map_err(at)?;
        if top.contains_key("peft_type") {
            return Err(at(Error::new(
                ErrorKind::Method,
                Diagnostic::error("peft", "this is an adapter of PEFT's").help(
                    "`--adapter FOLDER` takes it as it is; for the rest, make it one of AdapterHub's: `rewrite adapter convert FOLDER --to adapterhub -o DIR`",
                ),
            )));
        }
        let name = take_text(&mut top, "name").unwrap_or_else(|| "default".into());
        let version = take_text(&mut top, "version");
        let mut dict = top.shift_remove("config").unwrap_or_default();
        let mut named = None;
        if files.config == file::FUSION_CONFIG {
            dict = fusion_dict(&dict, &mut top, &name).map_err(at)?;
        } else if dict.is_null() {
            // The library's default, and what it wrote where a configuration had a name.
            let id = top.get("config_id").and_then(Value::as_str);
            let id = id
                .filter(|id| Config::parse(id).is_ok())
                .unwrap_or("seq_bn");
            named = Some(
                Diagnostic::warning(
                    "compat-config",
                    format!("the file has no configuration: it is taken to be `{id}`"),
                )
                .note(
                    "the library takes its default, `seq_bn`, where there is no `config_id` either",
                ),
            );
            dict = Value::String(id.to_owned());
        }
        let mut notes = correct(&mut dict, version.as_deref());
        notes.extend(named);
        notes.extend(Base::garbled(&top));
        let weights = Weights::new(
            &name,
            read_weights(folder, [files.safetensors, files.torch])?,
        );
        if let Some(note) = uninverted(&mut dict, &top, &weights) {
            notes.push(note);
        }
        let config = config(&dict).map_err(at)?;
        notes.extend(config.unknown());
        let meta = Meta {
            hidden_size: top.shift_remove("hidden_size").and_then(|v| v.as_u64()),
            model_class: take_text(&mut top, "model_class").unwrap_or_default(),
            model_name: take_text(&mut top, "model_name").unwrap_or_default(),
            model_type: take_text(&mut top, "model_type").unwrap_or_default(),
            version,
            extra: top,
        };
        let mut interfaces = [file::WHOLE_INTERFACE, file::INTERFACE].into_iter();
        let interface = interfaces.find_map(|f| disk::text(folder.join(f)).ok());
        Ok(AdapterFolder {
            name,
            config,
            meta,
            weights,
            interface,
            notes,
        })
    }

    /// A hash of its configuration and weights, under any name and in whichever files.
    pub(crate) fn content(&self) -> String {
        let mut hasher = blake3::Hasher::new();
        hasher.update(self.config.to_dict().to_string().as_bytes());
        let own = self.weights.tensors.iter();
        let own = own.filter(|(key, _)| is_adapter_key(key, &self.weights.adapter));
        let mut all: Vec<(String, &TensorData)> = own
            .map(|(key, t)| (renamed(key, &self.weights.adapter, "adapter"), t))
            .collect();
        all.sort_unstable_by(|a, b| a.0.cmp(&b.0));
        for (key, tensor) in all {
            hasher.update(format!("\n{key} {} {:?}\n", tensor.dtype, tensor.dims).as_bytes());
            hasher.update(&tensor.bytes().unwrap_or_default());
        }
        format!("blake3:{}", hasher.finalize().to_hex())
    }

    /// How the library integrated it. A file of the plugin route has the interface beside it; without one, it is of the library's own
    /// class for the model type, if there is such a class.
    pub(crate) fn route(&self) -> Route {
        match (&self.interface, Route::native(&self.meta.model_type)) {
            (None, Some(native)) => native,
            (Some(_), _) | (None, None) => Route::Plugin,
        }
    }

    /// Whether it was made by thirds of a packed projection: a file of the library's with parameters for one.
    pub(crate) fn goes_by_thirds(&self) -> bool {
        let interface = match &self.interface {
            Some(text) => Interface::parse(text, "adapter_interface.json").ok(),
            None => Interface::builtin(&self.meta.model_type).and_then(Result::ok),
        };
        let packed = interface.and_then(|i| i.fields.attn_qkv_proj.get(0).map(str::to_owned));
        let ours = Base::recorded(&self.meta.extra).is_ours();
        let by_flags = |m: &MethodConfig| m.adapts_projections() && !m.names_modules();
        let Some(packed) = packed.filter(|_| !ours) else {
            return false;
        };
        let scope = format!(".{packed}.loras.");
        self.config.methods().iter().any(by_flags)
            && self.weights.tensors.keys().any(|k| k.contains(&*scope))
    }

    /// The adapter to be attached, under this name (or its own).
    pub(crate) fn into_adapter(self, name: Option<&str>) -> Adapter {
        Adapter {
            route: self.route(),
            name: name.map_or(self.name, str::to_owned),
            config: self.config,
            weights: Some(self.weights),
            base: Base::recorded(&self.meta.extra),
            target: Target {
                hidden_size: self.meta.hidden_size,
                model_type: self.meta.model_type.clone(),
                interface: self.interface,
            },
            meta: Some(self.meta),
            allow_other_base: false,
        }
    }

    /// A folder for an attached adapter: its parameters from the store, under all the names that the library writes.
    pub(crate) fn from_store(
        name: &str,
        config: Config,
        store: &AdapterStore,
        meta: Meta,
        interface: Option<String>,
    ) -> Self {
        AdapterFolder {
            name: name.to_owned(),
            config,
            meta,
            weights: Weights {
                adapter: name.into(),
                tensors: store.tensors_of(name),
            },
            interface,
            notes: Vec::new(),
        }
    }

    /// The text of `adapter_config.json`.
    pub(crate) fn config_json(&self) -> String {
        let m = &self.meta;
        let mut top = m.extra.clone();
        let mut config = self.config.to_dict();
        if self.config.fuses().is_some() {
            // The library has the names beside the configuration, and no word for its kind.
            if let Value::Object(map) = &mut config {
                map.shift_remove("architecture");
                let names = map.shift_remove(FUSED).unwrap_or_default();
                top.insert(FUSED.into(), names);
                let now = map.shift_remove(TEMPERATURE);
                top.extend(now.map(|t| (TEMPERATURE.to_owned(), t)));
            }
        }
        top.insert("config".into(), config);
        top.insert("hidden_size".into(), m.hidden_size.into());
        top.insert("model_class".into(), m.model_class.clone().into());
        top.insert("model_name".into(), m.model_name.clone().into());
        top.insert("model_type".into(), m.model_type.clone().into());
        top.insert("name".into(), self.name.clone().into());
        let version = m.version.clone().unwrap_or_else(|| VERSION.into());
        top.insert("version".into(), version.into());
        json::pretty(&Value::Object(top))
    }

    /// Writes the folder. A new folder appears as a whole; in one that is there, each file is replaced as a whole, the configuration
    /// last.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], also when a file is there and `force` is not set.
    pub fn write(&self, folder: &Path, options: WriteOptions) -> Result<()> {
        let files = self.files(options)?;
        write_files(folder, &files, options.force)?;
        let written: Vec<&str> = files.iter().map(|(name, _)| *name).collect();
        // What an earlier saving wrote, and this one does not.
        let kind = self.kind();
        let own = [
            kind.safetensors,
            kind.torch,
            file::INTERFACE,
            file::WHOLE_INTERFACE,
        ];
        let stale = own.into_iter().filter(|n| !written.contains(n));
        remove(folder, &stale.collect::<Vec<_>>())
    }

    /// Names of its files.
    fn kind(&self) -> &'static Files {
        match self.config.fuses() {
            Some(_) => &FUSION,
            None => &ADAPTER,
        }
    }

    /// Contents of the files, the configuration last.
    fn files(&self, options: WriteOptions) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let mut out = Vec::new();
        // In one order, whatever file they were read from.
        let mut tensors = self.weights.tensors.clone();
        tensors.sort_unstable_keys();
        let kind = self.kind();
        if options.safetensors {
            out.push((kind.safetensors, to_safetensors(&tensors)?));
        }
        if options.torch {
            out.push((kind.torch, torch::write(kind.archive, &tensors)?));
        }
        if let Some(text) = &self.interface {
            let whole = Interface::parse(text, file::INTERFACE).ok();
            let text = text.clone().into_bytes();
            match whole.map(|i| i.for_library()) {
                None | Some(Library::Whole) => out.push((file::INTERFACE, text)),
                Some(Library::Part(part)) => {
                    out.push((file::INTERFACE, part.to_json().into_bytes()));
                    out.push((file::WHOLE_INTERFACE, text));
                }
                Some(Library::Nothing) => out.push((file::WHOLE_INTERFACE, text)),
            }
        }
        out.push((kind.config, self.config_json().into_bytes()));
        Ok(out)
    }
}

/// Writes how adapters act together beside their folders, as the library's `save_adapter_setup` does.
///
/// # Errors
/// [`ErrorKind::Io`], also when the file is there and `force` is not set.
pub(crate) fn write_setup(folder: &Path, setup: &Setup, force: bool) -> Result<()> {
    let top = serde_json::json!({
        file::SETUP_KEY: setup.to_json(),
        "head_setup": null,
        "version": VERSION,
    });
    write_files(
        folder,
        &[(file::SETUP, json::pretty(&top).into_bytes())],
        force,
    )
}

/// Removes these files of a folder, as far as they are there.
///
/// # Errors
/// [`ErrorKind::Io`].
pub(crate) fn remove(folder: &Path, names: &[&str]) -> Result<()> {
    for path in names.iter().map(|n| folder.join(n)).filter(|p| p.is_file()) {
        disk::remove(&path).map_err(|e| Error::io(&path, "cannot be replaced", e))?;
    }
    Ok(())
}

/// Refuses a path for an adapter folder where something else than a folder is.
///
/// # Errors
/// [`ErrorKind::Io`], also with every `force`: a file is not replaced by a folder.
pub(crate) fn free(folder: &Path) -> Result<()> {
    if !folder.exists() || folder.is_dir() {
        return Ok(());
    }
    Err(Error::new(
        ErrorKind::Io,
        Diagnostic::error(
            "exists",
            format!("{} is a file, and the adapter's folder is to stand there", folder.display()),
        )
        .help("write elsewhere (-o), give the adapter another name (NAME=SPEC), or move the file away"),
    ))
}

pub(in crate::adapters) fn object(text: &str) -> Result<Map<String, Value>> {
    match serde_json::from_str(text) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(_) => Err(Error::new(
            ErrorKind::Method,
            Diagnostic::error("json", "this is not a JSON object"),
        )),
        Err(e) => Err(Error::new(
            ErrorKind::Method,
            Diagnostic::error("json", e.to_string()),
        )),
    }
}

fn take_text(map: &mut Map<String, Value>, key: &str) -> Option<String> {
    match map.shift_remove(key) {
        Some(Value::String(s)) => Some(s),
        _ => None,
    }
}

/// What the library corrects in files of old versions: LoRA's scale before 1.1.0, names of activations before there were versions.
fn correct(config: &mut Value, version: Option<&str>) -> Vec<Diagnostic> {
    let mut notes = Vec::new();
    let Value::Object(map) = config else {
        return notes;
    };
    match version {
        None => {
            let new = match map.get("non_linearity").and_then(Value::as_str) {
                Some("gelu") => "gelu_new",
                Some("gelu_orig") => "gelu",
                _ => return notes,
            };
            map.insert("non_linearity".into(), new.into());
            notes.push(Diagnostic::warning(
                "compat-activation",
                format!("the file has no version: its activation is what is called `{new}` today"),
            ));
        }
        Some(v) if before_1_1(v) => {
            let lora = map.get("architecture").and_then(Value::as_str) == Some("lora");
            let (r, alpha) = (map.get("r").cloned(), map.get("alpha").cloned());
            if let (true, Some(r)) = (lora, r)
                && alpha.as_ref().and_then(Value::as_f64) != r.as_f64()
            {
                map.insert("alpha".into(), r);
                notes.push(Diagnostic::warning(
                    "compat-scale",
                    format!(
                        "{v} did not divide by `r`: `alpha` is taken to be `r`, as it was trained"
                    ),
                ));
            }
        }
        Some(_) => {}
    }
    notes
}

/// Files of task adapters may name an invertible part that they do not hold: the library leaves it out.
fn uninverted(dict: &mut Value, top: &Map<String, Value>, weights: &Weights) -> Option<Diagnostic> {
    let task = top.get("type").and_then(Value::as_str) == Some("text_task");
    let named = dict.get("inv_adapter").is_some_and(|v| !v.is_null());
    let held = weights.has(&format!("invertible_adapters.{}", weights.adapter));
    if !task || !named || held {
        return None;
    }
    let fields = dict.as_object_mut()?;
    fields.insert("inv_adapter".into(), Value::Null);
    fields.insert("inv_adapter_reduction_factor".into(), Value::Null);
    let found = "the file names an invertible adapter and holds none: it is left out";
    Some(Diagnostic::warning("compat-invertible", found))
}

fn before_1_1(version: &str) -> bool {
    let Some(numbers) = version.strip_prefix("adapters.") else {
        return false;
    };
    let mut parts = numbers.split('.').map(|p| {
        p.chars()
            .take_while(char::is_ascii_digit)
            .collect::<String>()
    });
    let mut next = || {
        parts
            .next()
            .and_then(|p| p.parse::<u32>().ok())
            .unwrap_or(0)
    };
    let (major, minor) = (next(), next());
    (major, minor) < (1, 1)
}

/// The weights in one of two files, safetensors or torch's. Where both are there and can be read, they must be the same.
pub(in crate::adapters) fn read_weights(
    folder: &Path,
    [safe, torch_file]: [&str; 2],
) -> Result<IndexMap<Box<str>, TensorData>> {
    let names = [safe, torch_file];
    let [safe, torch_file] = names.map(|n| folder.join(n));
    let of_torch = || {
        torch::read(&read_file(&torch_file)?)
            .map_err(|e| e.within(torch_file.display().to_string()))
    };
    if safe.exists() {
        let found = read_safetensors(&read_file(&safe)?)
            .map_err(|e| e.within(safe.display().to_string()))?;
        if torch_file.exists()
            && let Ok(other) = of_torch()
        {
            same(&found, &other, names)
                .map_err(|d| Error::new(ErrorKind::Method, d.at(folder.display().to_string())))?;
        }
        return Ok(found);
    }
    if torch_file.exists() {
        return of_torch();
    }
    Err(Error::new(
        ErrorKind::Io,
        Diagnostic::error(
            "weights-missing",
            format!("there is neither {} nor {}", names[0], names[1]),
        )
        .at(folder.display().to_string())
        .help("to start from initial values, give the configuration file instead of the folder"),
    ))
}

/// Refuses two files of one adapter that hold different weights: who reads which is by chance.
fn same(
    a: &IndexMap<Box<str>, TensorData>,
    b: &IndexMap<Box<str>, TensorData>,
    names: [&str; 2],
) -> Result<(), Diagnostic> {
    let equal = |x: &TensorData, y: &TensorData| {
        x.dtype == y.dtype && x.dims == y.dims && x.bytes() == y.bytes()
    };
    let changed = a
        .iter()
        .filter(|(k, t)| b.get(*k).is_none_or(|o| !equal(t, o)));
    let mut differ: Vec<&str> = changed.map(|(k, _)| &**k).collect();
    differ.extend(b.keys().filter(|k| !a.contains_key(*k)).map(|k| &**k));
    let Some(first) = differ.first() else {
        return Ok(());
    };
    let [safe, torch_file] = names;
    let message = format!(
        "{safe} and {torch_file} hold different weights: {} of {} tensors, the first is `{first}`",
        differ.len(),
        a.len().max(b.len())
    );
    Err(Diagnostic::error("weights-differ", message)
        .help("one of them is of another saving: remove it"))
}

pub(in crate::adapters) fn read_file(path: &Path) -> Result<Bytes> {
    let bytes = disk::tensors(path).map_err(|e| Error::io(path, "cannot be read", e))?;
    Ok(bytes.into())
}

const DTYPES: [(Dtype, DType); 10] = [
    (Dtype::F32, DType::Float),
    (Dtype::F64, DType::Double),
    (Dtype::F16, DType::Float16),
    (Dtype::BF16, DType::Bfloat16),
    (Dtype::I64, DType::Int64),
    (Dtype::I32, DType::Int32),
    (Dtype::I16, DType::Int16),
    (Dtype::I8, DType::Int8),
    (Dtype::U8, DType::Uint8),
    (Dtype::BOOL, DType::Bool),
];

/// Reads a safetensors file; the tensors are ranges of `bytes`, in the order of the file's data.
///
/// # Errors
/// [`ErrorKind::Decode`] when it is none, or for element types that ONNX does not have.
pub(crate) fn read_safetensors(bytes: &Bytes) -> Result<IndexMap<Box<str>, TensorData>> {
    let wrong =
        |message: String| Error::new(ErrorKind::Decode, Diagnostic::error("safetensors", message));
    let parsed = fence::guarded(|| SafeTensors::deserialize(bytes));
    let parsed = parsed.map_err(|e| wrong(e.to_string()))?;
    let parsed = parsed.map_err(|e| wrong(e.to_string()))?;
    let mut out = IndexMap::new();
    for (name, view) in parsed.iter() {
        let dtype = DTYPES
            .iter()
            .find(|(d, _)| *d == view.dtype())
            .map(|(_, d)| *d);
        let dtype = dtype.ok_or_else(|| wrong(format!("`{name}` is {:?}", view.dtype())))?;
        let dims: Box<[u64]> = view.shape().iter().map(|d| *d as u64).collect();
        out.insert(
            name.into(),
            TensorData::raw(dtype, dims, bytes.slice_ref(view.data())),
        );
    }
    out.sort_unstable_keys();
    Ok(out)
}

/// The bytes of a safetensors file.
///
/// # Errors
/// [`ErrorKind::Unsupported`] for element types that it cannot hold.
pub(crate) fn to_safetensors(tensors: &IndexMap<Box<str>, TensorData>) -> Result<Vec<u8>> {
    let wrong = |message: String| {
        Error::new(
            ErrorKind::Unsupported,
            Diagnostic::error("safetensors", message),
        )
    };
    let mut data = Vec::with_capacity(tensors.len());
    for (name, t) in tensors {
        let dtype = DTYPES.iter().find(|(_, d)| *d == t.dtype).map(|(d, _)| *d);
        let dtype = dtype.ok_or_else(|| wrong(format!("`{name}` is {}", t.dtype)))?;
        let bytes = t
            .bytes()
            .ok_or_else(|| wrong(format!("`{name}` has no elements")))?;
        let dims: Vec<usize> = t.dims.iter().map(|d| *d as usize).collect();
        data.push((&**name, dtype, dims, bytes));
    }
    let views = data
        .iter()
        .map(|(name, dtype, dims, bytes)| {
            Ok((
                *name,
                TensorView::new(*dtype, dims.clone(), bytes).map_err(|e| wrong(e.to_string()))?,
            ))
        })
        .collect::<Result<Vec<_>>>()?;
    safetensors::serialize(views, None).map_err(|e| wrong(e.to_string()))
}

/// Whether a name in a file is an adapter's, rather than a prediction head's.
pub(crate) fn is_adapter_key(key: &str, adapter: &str) -> bool {
    belongs(key, adapter)
}

#[cfg(test)]
mod tests;
