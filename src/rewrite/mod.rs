//! Rewriting: patches, passes and pipelines.
//!
//! A pass sees the model read-only and commits [`Patch`]es; it runs on a copy, which replaces the model only when it verifies.

pub(crate) mod bodies;
mod pass;
pub(crate) mod passes;
mod patch;
pub mod pipelines;

pub use pass::{Failed, Pass, PassCx, PassError, PassReport, Pipeline, Rewritten};
pub use passes::expand::Expand;
pub use passes::gradient::Outputs;
pub use passes::loss::{Divisor, Loss, RowLoss};
pub use patch::{Applied, Patch, PatchError, Uses};
