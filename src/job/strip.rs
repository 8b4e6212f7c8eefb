//! Taking adapters out of a model file again.

use super::check::keep;
use super::event::{OnEvent, warn};
use super::open;
use crate::adapters::manifest::Manifest;
use crate::api;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::onnx::{SaveOptions, Saved};
use std::path::PathBuf;

/// Takes adapters out of a model file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct Strip {
    /// A model with adapters, as this library wrote it.
    pub model: PathBuf,
    /// Name of the only adapter to take out (default: all).
    pub name: Option<String>,
    /// Where the model without them goes.
    pub output: PathBuf,
    /// Whether an existing output is replaced.
    pub force: bool,
}

impl Strip {
    /// A job with the command's defaults.
    pub(crate) fn new(model: impl Into<PathBuf>, output: impl Into<PathBuf>) -> Self {
        Strip {
            model: model.into(),
            name: None,
            output: output.into(),
            force: false,
        }
    }

    /// Strips and writes. A model without adapters is written as it is, which is a finding.
    ///
    /// # Errors
    /// An adapter that is not there; an output that exists or is the input; files that cannot be read or written.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<Saved> {
        keep(&self.output, [&*self.model])?;
        let model = open(&self.model, events)?;
        let merged = Manifest::read(model.model());
        let merged = merged.map_err(|d| Error::new(ErrorKind::Method, d))?;
        for head in merged.merged_heads().filter(|_| self.name.is_none()) {
            let finding = Diagnostic::warning(
                "strip-head",
                format!(
                    "the head of `{head}` stays: its adapter is merged into the weights, which it was trained with"
                ),
            );
            let help = "for the base model, take the file that was merged";
            warn(events, [&finding.help(help)])?;
        }
        let none = merged.exchanged.is_empty() && api::manifest(&model)?.is_empty();
        if self.name.is_none() && none {
            let finding = Diagnostic::warning(
                "strip-nothing",
                "this model carries no adapters of this program",
            )
            .at(self.model.display().to_string());
            warn(events, [&finding.help("what is written is the same model")])?;
        }
        let stripped = api::strip(model, self.name.as_deref())?;
        let options = SaveOptions {
            force: self.force,
            ..SaveOptions::default()
        };
        crate::onnx::save(&stripped, &self.output, options)
    }
}
