//! Jobs: what the commands do, as calls of the library.
//!
//! A job begins with a [`Request`]: a model or a job file, and settings over it. It says what happens in [`Event`]s, and returns a
//! report. Nothing here prints, and nothing here parses a command line.
//!
//! ```text
//! request ─ resolve (file, flags, Hub, paths) ─> settings ─ model, interface, adapters, data ─ checks ─> work ─> report
//! ```

mod attach;
mod average;
mod chat;
mod check;
mod compare;
mod convert;
mod evaluate;
mod event;
mod exchange;
mod files;
mod folder;
mod generate;
mod graph;
mod head;
mod ignored;
mod infer;
mod look;
mod merge;
mod merged;
mod model;
mod origin;
mod prepared;
mod print;
#[cfg(feature = "hub")]
mod pull;
#[cfg(feature = "hub")]
mod push;
mod remote;
mod report;
mod request;
mod run;
mod runs;
mod saving;
mod settings;
mod strip;
mod summary;
mod tenants;
mod to_file;
mod train;
mod variant;
mod verdict;

pub use crate::train::{DryRun, EvalEntry, Event as TrainEvent, LogEntry, StepReport};
pub use attach::AdapterSettings;
pub(crate) use compare::agree;
pub use compare::{Compare, Comparison, Engine};
pub use evaluate::{EvalReport, Evaluation};
pub use event::{Event, OnEvent};
pub use generate::{Generation, GenerationReport};
#[cfg(test)]
pub(crate) use merge::merged_as;
pub use merge::{Merge, merge, reset};
pub use merged::Merged;
pub use report::TrainReport;
pub use request::Request;
pub use run::Compiled;
pub use train::Job;

pub(crate) use average::Average;
#[cfg(feature = "cli")]
pub(crate) use chat::{Conversation, Turn};
pub(crate) use check::{check_device, check_fusion, check_interface, check_setup, check_spec};
pub(crate) use check::{ensure_absent, usage, write_file};
pub(crate) use convert::{Convert, Converted, Format, rename_beside, write_like};
#[cfg(test)]
pub(crate) use exchange::exchanging;
pub(crate) use exchange::{ExportAdapter, ParameterType};
pub(crate) use graph::Graph;
pub(crate) use ignored::{check as check_other_arguments, names as other_arguments};
pub(crate) use infer::Infer;
pub(crate) use model::{Dtype, ModelSettings};
pub(crate) use print::{Print, list_pipelines, pipelines_text};
#[cfg(feature = "hub")]
pub(crate) use pull::Pull;
#[cfg(feature = "hub")]
pub(crate) use push::{Parcel, Push};
#[cfg(feature = "cli")]
pub(crate) use remote::{Want, fetched, wanted};
#[cfg(feature = "cli")]
pub(crate) use request::is_path;
pub(crate) use run::Run;
pub(crate) use runs::CompareRuns;
pub(crate) use saving::SaveFormat;
pub(crate) use settings::JobArguments;
#[cfg(any(test, fuzzing))]
pub(crate) use settings::JobSettings;
pub(crate) use strip::Strip;
pub(crate) use summary::{Summed, sum_up};
pub(crate) use tenants::{ChangeTenants, ExtractTenant, ListTenants};
pub(crate) use to_file::{AttachReport, AttachToFile, Selected, Written};
#[cfg(feature = "cli")]
pub(crate) use variant::ModelName;
pub(crate) use verdict::CheckModel;

use crate::error::Result;
use crate::infer::Verified;
use std::path::Path;

/// Reads and verifies a model.
pub(crate) fn open(path: &Path, events: OnEvent<'_>) -> Result<Verified> {
    if path.is_dir() {
        let what = format!(
            "{} is a folder, and one ONNX file is needed",
            path.display()
        );
        return Err(usage(
            what,
            "give the file; `train`, `eval`, `generate`, `check`, `merge` and attaching take an encoder and its decoder together",
        ));
    }
    let model = crate::api::open(path)?;
    let g = &model.model().graph;
    let (nodes, weights) = (g.node_count(), g.initializers().len());
    let line = format!(
        "read {}: {nodes} nodes, {weights} initializers, {} inputs, {} outputs",
        path.display(),
        g.inputs().len(),
        g.outputs().len()
    );
    events(&Event::Detail(line))?;
    for (name, version) in &model.model().opset_imports {
        let name = if name.is_empty() { "ai.onnx" } else { &**name };
        events(&Event::Trace(format!("operators of {name} {version}")))?;
    }
    for finding in model.warnings() {
        events(&Event::Detail(finding.to_string()))?;
    }
    Ok(model)
}
