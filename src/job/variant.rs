//! Which file of a folder, or of a repository on the Hub, is the model that is meant.

use super::check::usage;
use super::event::OnEvent;
use super::remote;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::layout::{self, Layout, Listed, Unclear};
use std::path::{Path, PathBuf};

/// A model by its name: a file, a folder, or a reference to the Hub.
#[derive(Clone, Debug)]
pub(crate) struct ModelName<'a> {
    /// The file, the folder or the reference.
    pub(crate) name: &'a Path,
    /// The variant; full precision without one.
    pub(crate) variant: Option<&'a str>,
    /// Every file of an encoder-decoder, and not only those that its computation needs.
    pub(crate) every_part: bool,
}

impl ModelName<'_> {
    /// The model's file on this machine. The folder, where encoder and decoder are files of their own.
    ///
    /// # Errors
    /// What has no such variant, and what the Hub refuses.
    pub(crate) fn locate(&self, events: OnEvent<'_>) -> Result<PathBuf> {
        let on_hub = self.name.to_str().filter(|t| t.starts_with("hub:"));
        if let Some(text) = on_hub {
            let found = remote::model(text, self.variant, self.every_part, events)?;
            return Ok(found.unwrap_or_else(|| self.name.to_owned()));
        }
        if !self.name.is_dir() {
            return is_of(self.name, self.variant).map(|()| self.name.to_owned());
        }
        let found = inside(self.name, self.variant)?;
        Ok(match found.decoder {
            Some(_) => self.name.to_owned(),
            None => self.name.join(found.model),
        })
    }
}

/// Refuses a file that is of another variant than the one that is named.
pub(super) fn is_of(path: &Path, variant: Option<&str>) -> Result<()> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let Some(asked) = variant.filter(|v| path.exists() && !layout::is_variant(&name, v)) else {
        return Ok(());
    };
    Err(usage(
        format!(
            "{} is one file, and not the variant `{asked}`",
            path.display()
        ),
        "name that file, or give the folder that has the variants",
    ))
}

/// The model in a folder, or in the folder `onnx` in it: paths relative to the folder.
pub(super) fn inside(folder: &Path, variant: Option<&str>) -> Result<Layout> {
    let mut files: Vec<(String, Option<u64>)> = Vec::new();
    for under in ["", "onnx/"] {
        let entries = std::fs::read_dir(folder.join(under)).into_iter().flatten();
        for entry in entries.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // What a link leads to counts.
            let meta = std::fs::metadata(entry.path()).ok();
            if let Some(meta) = meta.filter(std::fs::Metadata::is_file) {
                files.push((format!("{under}{name}"), Some(meta.len())));
            }
        }
    }
    files.sort_unstable();
    let listed: Vec<Listed<'_>> = files.iter().map(|(f, s)| (&**f, *s)).collect();
    let at = folder.display().to_string();
    let strange = match layout::choose(&listed, variant) {
        Ok(found) => return Ok(found),
        Err(Unclear::Told(d)) => return Err(Error::new(ErrorKind::Usage, d.at(at))),
        Err(Unclear::Strange) => listed
            .iter()
            .filter(|f| Path::new(f.0).extension().is_some_and(|e| e == "onnx")),
    };
    let strange: Vec<&str> = strange.map(|f| f.0).collect();
    let found = match &strange[..] {
        [] => "the folder has no ONNX file".to_owned(),
        [one] if variant.is_none() => {
            return Ok(Layout {
                model: (*one).to_owned(),
                decoder: None,
                more: Vec::new(),
            });
        }
        several => format!("which file of the folder is meant? {}", several.join(", ")),
    };
    let d = Diagnostic::error("model-variant", found).at(at);
    let d = d.help("give the ONNX file, or the folder of a model.onnx");
    Err(Error::new(ErrorKind::Usage, d))
}
