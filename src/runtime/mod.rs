//! Executes graphs: compiled once, run many times.
//!
//! [`Plan::compile`] resolves kernels, folds small constants and assigns slots; [`Plan::run`] executes on feeds of any size that the
//! declared input types allow. The runtime only executes: gradients, losses and fusion are rewrites of the graph. On the CPU
//! the kernels work on slices of candle's storage; frozen weights are read from the mapped file.

pub mod cache;
mod compile;
pub mod cpu;
mod exec;
pub mod io;
pub mod kernels;
mod lower;
mod plan;
pub mod tract;
mod train_step;
pub mod value;

pub use plan::{CompileOptions, FeedSpec, Feeds, Outputs, Plan};

pub use train_step::{Gradient, Gradients, StepReport, TrainStep, Trainable};
pub use value::Value;

use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};

/// A device by name: `cpu`, `cuda` or `cuda:N`.
///
/// # Errors
/// An unknown name, or a device that this build or machine does not have.
pub fn device(name: &str) -> Result<candle_core::Device> {
    let wrong = |message: String, help: &str| {
        Error::new(
            ErrorKind::Unsupported,
            Diagnostic::error("device", message).help(help),
        )
    };
    if name == "cpu" {
        return Ok(candle_core::Device::Cpu);
    }
    let ordinal = match name.split_once(':') {
        Some(("cuda", n)) => n.parse().ok(),
        None if name == "cuda" => Some(0),
        _ => None,
    };
    let Some(ordinal) = ordinal else {
        return Err(wrong(
            format!("there is no device `{name}`"),
            "cpu, cuda or cuda:N",
        ));
    };
    candle_core::Device::new_cuda(ordinal).map_err(|e| {
        wrong(
            format!("`{name}` cannot be used: {e}"),
            "build with the feature `cuda` on a machine with its driver, or use cpu",
        )
    })
}
