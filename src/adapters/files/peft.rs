//! PEFT's adapter folders (`adapter_config.json` with `peft_type`, `adapter_model.safetensors`), to and from AdapterHub's.
//!
//! LoRA, DoRA, (IA)³, VeRA and prompt tuning are read: what the Adapters library's flags can say becomes an adapter that it loads, the
//! rest a configuration with PEFT's own `target_modules`. Everything else is refused with the reason; nothing is approximated. The
//! library's DoRA is not written: PEFT takes the norm with the scale, and leaves the bias out of it.

mod fields;
mod flags;
mod read;
mod served;
mod write;

use crate::adapters::config::json;
use crate::adapters::folder::{WriteOptions, object, read_weights, to_safetensors, write_files};
use crate::adapters::store::convert;
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::ir::TensorData;
use indexmap::IndexMap;
pub(crate) use read::{config_alone, from_peft};
use serde_json::{Map, Value};
pub(crate) use served::{from_served, to_served};
use std::path::Path;
pub(crate) use write::to_peft;

/// Names of the files.
pub(crate) mod file {
    /// Configuration.
    pub(crate) const CONFIG: &str = "adapter_config.json";
    /// Weights, safetensors.
    pub(crate) const SAFETENSORS: &str = "adapter_model.safetensors";
    /// Weights, torch.
    pub(crate) const TORCH: &str = "adapter_model.bin";
}

/// What stands before a module's path in PEFT's keys.
const PREFIX: &str = "base_model.model.";

/// An adapter as PEFT saves it.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct PeftFolder {
    /// The configuration, with at least `peft_type`.
    pub config: Map<String, Value>,
    /// The weights, by the names of the file.
    pub tensors: IndexMap<Box<str>, TensorData>,
}

/// Whether a folder is one of PEFT's.
pub(crate) fn is_peft(folder: &Path) -> bool {
    let text = disk::text(folder.join(file::CONFIG)).unwrap_or_default();
    object(&text).is_ok_and(|map| map.contains_key("peft_type"))
}

impl PeftFolder {
    /// Reads a folder.
    ///
    /// # Errors
    /// [`ErrorKind::Io`] when a file is missing, [`ErrorKind::Method`] and [`ErrorKind::Decode`] when one is not understood.
    pub(crate) fn read(folder: &Path) -> Result<PeftFolder> {
        let path = folder.join(file::CONFIG);
        let text = disk::text(&path).map_err(|e| Error::io(&path, "cannot be read", e))?;
        let config = object(&text).map_err(|e| e.within(path.display().to_string()))?;
        if !config.contains_key("peft_type") {
            return Err(refuse(
                "the configuration has no `peft_type`",
                "this is not a folder of PEFT's",
            ));
        }
        let tensors = read_weights(folder, [file::SAFETENSORS, file::TORCH])?;
        Ok(PeftFolder { config, tensors })
    }

    /// Writes the folder, as [`AdapterFolder::write`](crate::adapters::AdapterFolder::write) does.
    ///
    /// # Errors
    /// [`ErrorKind::Io`], also when a file is there and `force` is not set.
    pub(crate) fn write(&self, folder: &Path, options: WriteOptions) -> Result<()> {
        let config = json::pretty(&Value::Object(self.config.clone()));
        let files = [
            (file::SAFETENSORS, to_safetensors(&self.tensors)?),
            (file::CONFIG, config.into_bytes()),
        ];
        write_files(folder, &files, options.force)
    }
}

fn refuse(what: impl Into<String>, help: &str) -> Error {
    Error::new(
        ErrorKind::Unsupported,
        Diagnostic::error("convert", what).help(help),
    )
}

fn floats(t: &TensorData, module: &str) -> Result<Vec<f32>> {
    t.to_f32().ok_or_else(|| {
        refuse(
            format!("a parameter of `{module}` is {}", t.dtype),
            "parameters are floats",
        )
    })
}

fn typed(dims: &[u64], values: &[f32], like: &TensorData) -> Result<TensorData> {
    convert(&TensorData::from_f32(dims, values), like.dtype).ok_or_else(|| {
        refuse(
            format!("a parameter cannot be {}", like.dtype),
            "parameters are floats",
        )
    })
}

#[cfg(test)]
mod tests;
