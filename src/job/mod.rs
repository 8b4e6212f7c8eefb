//! Jobs: what the commands do, as calls of the library.
//!
//! A job begins with a [`Request`]: a model or a job file, and settings over it. It says what happens in [`Event`]s, and returns a
//! report. Nothing here prints, and nothing here parses a command line.
//!
//! ```text
//! request ─ resolve (file, flags, Hub, paths) ─> settings ─ model, interface, adapters, data ─ checks ─> work ─> report
//! ```

mod attach;
mod check;
mod evaluate;
mod event;
mod generate;
mod head;
mod model;
mod prepared;
#[cfg(feature = "hub")]
mod push;
mod remote;
mod report;
mod request;
mod settings;
mod train;

pub use evaluate::{EvalReport, Evaluation};
pub use event::{Event, OnEvent};
pub use generate::{Generation, GenerationReport};
pub use report::TrainReport;
pub use request::Request;
pub use train::Job;

pub(crate) use attach::AdapterSettings;
pub(crate) use check::{ARGUMENTS, exists, keep, usage, write_file};
pub(crate) use model::{Dtype, ModelSettings};
#[cfg(feature = "hub")]
pub(crate) use push::{Parcel, Push};
#[cfg(feature = "cli")]
pub(crate) use remote::{fetched, wanted};
pub(crate) use settings::JobArguments;
