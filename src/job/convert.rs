//! Adapter folders from one format or name to another.

use super::check::{ensure_absent, usage, write_file};
use crate::adapters::average::rename;
use crate::adapters::folder::{AdapterFolder, StagedAdapter, WriteOptions};
use crate::adapters::heads::{self, files::copy_renamed};
use crate::adapters::onnx_adapter;
use crate::adapters::peft::{self, PeftFolder};
use crate::adapters::spec::{folder_name, is_served, read_folder, read_served};
use crate::diag::Diagnostic;
use crate::disk;
use crate::error::{Error, Result};
use crate::select::Interface;
use crate::text::CHAT_TEMPLATE;
use std::path::{Path, PathBuf};

/// Formats of adapter folders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum Format {
    /// The Adapters library's.
    Adapterhub,
    /// Hugging Face PEFT's.
    Peft,
    /// ONNX Runtime's: a file.
    OnnxAdapter,
}

/// Converts an adapter between AdapterHub's, PEFT's and ONNX Runtime's formats.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct Convert {
    /// The folder, or the file of ONNX Runtime's.
    pub folder: PathBuf,
    /// The format to write.
    pub to: Format,
    /// To AdapterHub's: a file or the name of a built-in interface.
    pub interface: Option<String>,
    /// To AdapterHub's: name of the adapter (default: the folder's).
    pub name: Option<String>,
    /// The new folder or file.
    pub output: PathBuf,
    /// Whether existing outputs are replaced.
    pub force: bool,
}

/// A converted adapter.
#[derive(Clone, Debug)]
#[expect(clippy::large_enum_variant, reason = "there is one of them")]
pub(crate) enum Converted {
    /// In AdapterHub's format.
    Adapterhub(AdapterFolder),
    /// In PEFT's format, and what is to be known of it.
    Peft(PeftFolder, Vec<Diagnostic>),
    /// In ONNX Runtime's: number of tensors, and what is to be known.
    OnnxAdapter(usize, Vec<Diagnostic>),
}

impl Convert {
    /// A job with the command's defaults.
    pub(crate) fn new(folder: impl Into<PathBuf>, to: Format, output: impl Into<PathBuf>) -> Self {
        Convert {
            folder: folder.into(),
            to,
            interface: None,
            name: None,
            output: output.into(),
            force: false,
        }
    }

    /// Converts and writes.
    ///
    /// # Errors
    /// A folder that is of that format already, or of none; adapters that the other format cannot say.
    pub(crate) fn run(&self) -> Result<Converted> {
        let options = WriteOptions {
            force: self.force,
            ..WriteOptions::default()
        };
        let served = is_served(&self.folder);
        let is_peft = !served && peft::is_peft(&self.folder);
        match self.to {
            Format::Peft if served => {
                let out = read_served(&self.folder)?;
                out.write(&self.output, options)?;
                Ok(Converted::Peft(out, Vec::new()))
            }
            Format::Peft if !is_peft => {
                let out = peft::to_peft(&AdapterFolder::read(&self.folder)?)?;
                out.write(&self.output, options)?;
                Ok(Converted::Peft(out, self.headless()))
            }
            Format::Adapterhub if served || is_peft => {
                let interface = self.interface.as_deref().map(Interface::resolve);
                let interface = interface.transpose()?;
                let read = if served {
                    read_served(&self.folder)?
                } else {
                    PeftFolder::read(&self.folder)?
                };
                let out = peft::from_peft(&read, &self.name(), interface.as_ref())?;
                out.write(&self.output, options)?;
                Ok(Converted::Adapterhub(out))
            }
            Format::OnnxAdapter if !served => {
                let read = if is_peft {
                    PeftFolder::read(&self.folder)?
                } else {
                    peft::to_peft(&AdapterFolder::read(&self.folder)?)?
                };
                let out = peft::to_served(&read)?;
                ensure_absent(&self.output, self.force)?;
                write_file(&self.output, &onnx_adapter::write(&out)?)?;
                Ok(Converted::OnnxAdapter(out.tensors.len(), self.headless()))
            }
            Format::Peft | Format::Adapterhub | Format::OnnxAdapter => Err(usage(
                format!(
                    "{} is of that format already, or of none",
                    self.folder.display()
                ),
                "give a folder or file of another format",
            )),
        }
    }

    /// That a head stays behind.
    fn headless(&self) -> Vec<Diagnostic> {
        if !self.folder.join(heads::file::CONFIG).exists() {
            return Vec::new();
        }
        let found = "the head that was saved with the adapter is not converted";
        let d = Diagnostic::warning("head-ignored", found);
        vec![d.help("attach the folder as it is to use its head")]
    }

    /// The given name, or the folder's as far as an adapter may be called so.
    fn name(&self) -> String {
        let given = self.name.clone();
        let own = if is_served(&self.folder) {
            self.folder.with_extension("")
        } else {
            self.folder.clone()
        };
        given.unwrap_or_else(|| folder_name(&own))
    }
}

/// The adapter of a folder under another name, and the folder that it goes to: the one that is given, or one of the new name beside it.
///
/// # Errors
/// A folder that cannot be read; a name that an adapter cannot have.
pub(crate) fn rename_beside(
    from: &Path,
    name: &str,
    to: Option<&Path>,
) -> Result<(AdapterFolder, PathBuf)> {
    let out = rename(read_folder(from)?, name)?;
    let beside = || from.parent().unwrap_or(Path::new("")).join(name);
    Ok((out, to.map_or_else(beside, Path::to_owned)))
}

/// Writes an adapter with what stands beside the one that it was made of: its head and its chat template; all of it, or nothing.
///
/// # Errors
/// Files that cannot be read, or are there already and `force` is not set.
pub(crate) fn write_like(out: &AdapterFolder, from: &Path, to: &Path, force: bool) -> Result<()> {
    let place = StagedAdapter::new(to, force)?;
    out.write(place.path(), WriteOptions::default())?;
    copy_renamed(from, place.path(), &out.name, false)?;
    let template = from.join(CHAT_TEMPLATE);
    if template.exists() {
        let text = disk::bytes(&template).map_err(|e| Error::io(&template, "cannot be read", e))?;
        write_file(&place.path().join(CHAT_TEMPLATE), &text)?;
    }
    place.put(&[CHAT_TEMPLATE])
}
