//! An interface is proposed for a model.

use super::check::{ensure_absent, keep, write_file};
use super::event::{OnEvent, warn};
use super::open;
use crate::api;
use crate::error::Result;
use crate::select::{Interface, infer_interface};
use std::path::PathBuf;

/// Proposes an interface from the graph alone.
#[derive(Clone, Debug)]
pub(crate) struct Infer {
    /// The ONNX file.
    pub(crate) model: PathBuf,
    /// Where the interface goes (default: it is only returned).
    pub(crate) output: Option<PathBuf>,
    /// Whether an existing output is replaced.
    pub(crate) force: bool,
}

impl Infer {
    /// Infers, and writes where an output is named.
    ///
    /// # Errors
    /// A graph in which no layers are found; an output that exists or is the model; files that cannot be read or written.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<Interface> {
        let (model, _) = api::opened(api::shown(open(&self.model, events)?)?, false)?;
        let proposal = infer_interface(&model)?;
        warn(events, &proposal.notes)?;
        if let Some(output) = &self.output {
            ensure_absent(output, self.force)?;
            keep(output, [&*self.model])?;
            write_file(output, proposal.interface.to_json().as_bytes())?;
        }
        Ok(proposal.interface)
    }
}
