//! Adapters for exported Transformers.
//!
//! A Transformer that was exported to ONNX is a graph of operators: the modules, and with them the places where LoRA or a bottleneck
//! adapter would go, are gone. This crate finds those places again, splices adapters in, writes the result as ONNX, and executes and
//! trains it on the CPU. The base weights are never changed and never copied to look at them.
//!
//! # A tour
//!
//! | step | what does it | what comes out |
//! |---|---|---|
//! | read | [`open`] | a [`Verified`] model: structure, types and shapes are checked |
//! | select | [`Interface::select`] | a [`Selection`]: for each layer the values where adapters go |
//! | attach | [`Attach`] | an [`Adapted`] model, still standard ONNX |
//! | write | [`onnx::save`] | `model.onnx` for any runtime |
//! | run | `runtime::Plan` | outputs, losses, gradients |
//! | train | `job::Job` | trained adapter folders |
//! | save | [`Adapted::folder`] | a folder that AdapterHub's `load_adapter` reads |
//!
//! An [`Interface`] says which modules of an architecture are its embeddings, layers and projections, in the format of AdapterHub's
//! `adapter_interface.json`. Specs of common architectures are built in ([`Interface::builtin`]); [`Interface::resolve`] reads a file.
//! [`select::infer_interface`] proposes one from the graph. An adapter is a configuration string such as `lora[r=8,alpha=16]`, a
//! configuration file, or a saved folder; [`adapter`] takes all three.
//!
//! ## From a file to a trained adapter
//!
#![cfg_attr(feature = "train", doc = "```")]
#![cfg_attr(not(feature = "train"), doc = "```ignore")]
//! use onnx_graft::Attach;
//! use onnx_graft::adapters::WriteOptions;
//! use onnx_graft::job::{Event, Job, TrainEvent};
//! use onnx_graft::onnx::{self, SaveOptions};
//! # fn main() -> onnx_graft::Result<()> {
//! # let out = tempfile::tempdir().unwrap();
//! # let out = out.path();
//! // Attached with initial values, written as ONNX and as an adapter folder.
//! let adapted = Attach::open("fixtures/qwen3/model.onnx")?.adapter("lora[r=8,alpha=16]")?.run()?;
//! onnx::save(&adapted.model, &out.join("model.lora.onnx"), SaveOptions::default())?;
//! adapted.folder("lora", &adapted.store())?.write(&out.join("fresh"), WriteOptions::default())?;
//!
//! // Trained: a job has the settings of `rewrite train` and of a job file.
//! let mut losses = Vec::new();
//! let report = Job::open("fixtures/qwen3/model.onnx")?
//!     .set("adapter", "lora[r=8,alpha=16]")
//!     .set("data", "fixtures/train/ids.jsonl")
//!     .set("output_dir", out.join("run").to_str().unwrap())
//!     .set("max_steps", 5)
//!     .set("learning_rate", 1e-2)
//!     .run(&mut |event| {
//!         if let Event::Training(TrainEvent::Step(step)) = event {
//!             losses.push(step.loss);
//!         }
//!         Ok(())
//!     })?;
//! assert_eq!(report.adapters, [out.join("run/lora")]);
//! assert!(losses[4] < losses[0]);
//!
//! // Used: a saved folder is an adapter like any other.
//! let trained = out.join("run/lora");
//! Attach::open("fixtures/qwen3/model.onnx")?.adapter(trained.to_str().unwrap())?.run()?;
//! # Ok(())
//! # }
//! ```
//!
//! ## A pass of your own
//!
//! Attaching, stripping, merging, losses, gradients and fusion are passes: each sees a model read-only and commits
//! [`Patch`]es. A patch is checked as a whole before anything is written, and a pass whose result does not verify
//! leaves the model as it was. This one measures how large each layer's output is, in ten lines:
//!
//! ```
//! use onnx_graft::{Interface, Pass, PassCx, PassError, Pipeline};
//!
//! struct Loudness(Interface);
//!
//! impl Pass for Loudness {
//!     fn name(&self) -> &str {
//!         "loudness"
//!     }
//!
//!     fn run(&self, cx: &mut PassCx<'_>) -> Result<(), PassError> {
//!         let selection = self.0.select(cx.before())?;
//!         let mut patch = cx.patch("loudness of every layer", None);
//!         for layer in &selection.layers {
//!             let b = patch.builder();
//!             let size = b.reduce_mean(b.unary("Abs", layer.output), &[0, 1, 2], false);
//!             patch.add_output(size, &format!("loudness.{}", layer.index), None);
//!         }
//!         cx.commit(patch)?;
//!         Ok(())
//!     }
//! }
//!
//! # fn main() -> onnx_graft::Result<()> {
//! let model = onnx_graft::open("fixtures/qwen3/model.onnx")?;
//! let interface = Interface::resolve("qwen3")?;
//! let rewritten = Pipeline::new().with(Loudness(interface)).run(model)?;
//! assert_eq!(rewritten.reports[0].added, 4);
//! let graph = &rewritten.model.model().graph;
//! let names: Vec<_> = graph.outputs().iter().map(|o| graph.name_of(o.value)).collect();
//! assert_eq!(names, ["logits", "loudness.0", "loudness.1"]);
//! # Ok(())
//! # }
//! ```
//!
//! # Invariants
//!
//! - Nothing is lost: what is read and written again decodes to the same model; what cannot be carried is an error.
//! - The same input gives the same bytes, on every machine and with any number of threads.
//! - Original names stay: graph inputs, outputs, and every node and value that a rewrite did not replace.
//! - Untrusted files do not panic, and allocate only what the file paid for.
//!
//! # Features
//!
//! `runtime` executes graphs on candle, `train` adds training, `hub` pulls from and pushes to the
//! Hugging Face Hub, `cli` is the `rewrite` binary, `tract` an independent engine to compare
//! with, `cuda` candle's CUDA device. Without default features this is a small crate that reads, rewrites and writes graphs.
//!
//! Why things are as they are is told in [`design`].

#![allow(
    rustdoc::private_intra_doc_links,
    reason = "comments of private items are for those who read the code"
)]
#![cfg_attr(
    not(feature = "cli"),
    allow(
        dead_code,
        unused_imports,
        unreachable_pub,
        reason = "some of what the library keeps to itself is for the features that are left out"
    )
)]

pub mod adapters;
pub(crate) mod analyze;
mod api;
mod budget;
#[cfg(feature = "cli")]
#[doc(hidden)]
pub mod cli;
mod diag;
mod disk;
mod draw;
mod error;
mod fence;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
#[cfg(feature = "train")]
mod generate;
#[cfg(feature = "hub")]
mod hub;
mod infer;
pub mod ir;
#[cfg(feature = "train")]
pub mod job;
pub mod onnx;
mod ops;
#[cfg(feature = "train")]
mod options;
mod picture;
pub mod rewrite;
#[cfg(feature = "runtime")]
pub mod runtime;
pub mod select;
mod staging;
#[cfg(feature = "train")]
mod text;
#[cfg(feature = "train")]
mod train;

#[cfg(test)]
extern crate self as onnx_graft;
#[cfg(test)]
#[global_allocator]
static ALLOCATOR: fence::Allocator = fence::Allocator;
#[cfg(test)]
#[path = "../tests/unit/mod.rs"]
mod unit;

/// Decisions that had alternatives, with their reasons. No code.
pub mod design {
    #[doc = include_str!("design/0001-vertices-and-edges.md")]
    pub mod vertices_and_edges {}
    #[doc = include_str!("design/0002-patches-and-copies.md")]
    pub mod patches_and_copies {}
    #[doc = include_str!("design/0003-nothing-is-lost.md")]
    pub mod nothing_is_lost {}
    #[doc = include_str!("design/0004-what-a-tap-is.md")]
    pub mod what_a_tap_is {}
    #[doc = include_str!("design/0005-merge-as-graph.md")]
    pub mod merge_as_graph {}
    #[doc = include_str!("design/0006-gradient-is-a-pass.md")]
    #[doc = ""]
    #[doc = include_str!("design/0015-codes-stand-for-numbers.md")]
    pub mod gradient_is_a_pass {}
    #[doc = include_str!("design/0007-two-pipelines.md")]
    pub mod two_pipelines {}
    #[doc = include_str!("design/0011-a-cache-is-a-prefix.md")]
    pub mod a_cache_is_a_prefix {}
    #[doc = include_str!("design/0012-fused-operators-are-opened.md")]
    pub mod fused_operators_are_opened {}
    #[doc = include_str!("design/0013-many-adapters-are-rows.md")]
    pub mod many_adapters_are_rows {}
    #[doc = include_str!("design/0014-a-body-is-a-model.md")]
    pub mod a_body_is_a_model {}
    #[doc = include_str!("design/0017-a-fence-with-an-allocator.md")]
    pub mod a_fence_with_an_allocator {}
    #[doc = include_str!("design/0018-merged-codes-keep-their-scheme.md")]
    pub mod merged_codes_keep_their_scheme {}
    #[doc = include_str!("design/0019-our-own-hub-client.md")]
    pub mod our_own_hub_client {}
    #[doc = include_str!("design/0020-an-adapter-comes-in.md")]
    pub mod an_adapter_comes_in {}
}

pub use adapters::{Adapter, AdapterStore, Config, Setup};
pub use api::{
    Adapted, Attach, adapter, diff, find_interface, manifest, open, strip, summary, tenants,
};
pub use diag::{Diagnostic, Severity};
pub use error::{Error, ErrorKind, Result};
pub use infer::Verified;
pub use ir::Model;
pub use picture::Picture;
pub use rewrite::{Pass, PassCx, PassError, Patch, Pipeline};
pub use select::{Interface, Selection};
