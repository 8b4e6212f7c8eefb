//! Adapter folders from one format or name to another.

use super::check::{usage, write_file};
use crate::adapters::average::rename;
use crate::adapters::folder::{AdapterFolder, StagedAdapter, WriteOptions};
use crate::adapters::heads::{self, files::copy_renamed};
use crate::adapters::peft::{self, PeftFolder};
use crate::adapters::spec::folder_name;
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
}

/// Converts an adapter folder between AdapterHub's and PEFT's format.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct Convert {
    /// The folder.
    pub folder: PathBuf,
    /// The format to write.
    pub to: Format,
    /// To AdapterHub's: a file or the name of a built-in interface.
    pub interface: Option<String>,
    /// To AdapterHub's: name of the adapter (default: the folder's).
    pub name: Option<String>,
    /// The new folder.
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
        match (self.to, peft::is_peft(&self.folder)) {
            (Format::Peft, false) => {
                let out = peft::to_peft(&AdapterFolder::read(&self.folder)?)?;
                let mut notes = Vec::new();
                if self.folder.join(heads::file::CONFIG).exists() {
                    let found = "the head that was saved with the adapter is not converted";
                    let d = Diagnostic::warning("head-ignored", found);
                    notes.push(d.help("attach the folder as it is to use its head"));
                }
                out.write(&self.output, options)?;
                Ok(Converted::Peft(out, notes))
            }
            (Format::Adapterhub, true) => {
                let interface = self.interface.as_deref().map(Interface::resolve);
                let interface = interface.transpose()?;
                let read = PeftFolder::read(&self.folder)?;
                let out = peft::from_peft(&read, &self.name(), interface.as_ref())?;
                out.write(&self.output, options)?;
                Ok(Converted::Adapterhub(out))
            }
            (Format::Peft, true) | (Format::Adapterhub, false) => Err(usage(
                format!(
                    "{} is of that format already, or of none",
                    self.folder.display()
                ),
                "give a folder of the other format",
            )),
        }
    }

    /// The given name, or the folder's as far as an adapter may be called so.
    fn name(&self) -> String {
        let given = self.name.clone();
        given.unwrap_or_else(|| folder_name(&self.folder))
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
    let out = rename(AdapterFolder::read(from)?, name)?;
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
