//! Executes graphs: compiled once, run many times.
//!
//! [`Plan::compile`] resolves kernels, folds small constants and assigns slots; [`Plan::run`] executes on feeds of any size that the
//! declared input types allow. The runtime only executes: gradients, losses and fusion are rewrites of the graph. On the CPU
//! the kernels (the crate `onnx-graft-kernels`) work on slices of candle's storage; frozen weights are read from the mapped file.

pub(crate) mod cache;
mod compile;
mod device;
mod exec;
mod fault;
mod floats;
mod guard;
pub(crate) mod host;
pub(crate) mod io;
pub(crate) mod kernels;
mod lower;
mod packed;
mod past;
mod plan;
mod tensor;
pub(crate) mod tract;
mod train_step;
pub(crate) mod value;
mod walk;

pub(crate) use device::named;
pub use device::{Device, Precision, device};
pub(crate) use past::caches;
#[cfg(feature = "train")]
pub(crate) use plan::map;
pub use plan::{CompileOptions, FeedSpec, Feeds, Outputs, Plan};

pub(crate) use onnx_graft_kernels::adamw;
pub use tensor::Tensor;
pub(crate) use train_step::Gradient;
pub use train_step::{Gradients, StepReport, TrainStep, Trainable};
pub(crate) use value::Value;
