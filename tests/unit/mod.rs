//! Tests of what the library keeps to itself. They are compiled into it, and see everything.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests"
)]

mod attach;
#[cfg(feature = "train")]
mod bodies;
#[cfg(feature = "train")]
mod corpus;
#[cfg(feature = "train")]
mod data;
#[cfg(feature = "train")]
mod exchange;
#[cfg(feature = "train")]
mod exports;
mod foreign_bytes;
mod fuse;
#[cfg(feature = "train")]
mod generate;
mod golden;
#[cfg(feature = "runtime")]
mod gradients;
mod growth;
#[cfg(feature = "train")]
mod head;
#[cfg(feature = "hub")]
mod hub;
mod infer;
#[cfg(feature = "train")]
mod invertible;
mod laws;
#[cfg(feature = "train")]
mod losses;
#[cfg(feature = "train")]
mod merge;
#[cfg(feature = "train")]
mod merge_codes;
#[cfg(feature = "train")]
mod multi_task;
#[cfg(feature = "runtime")]
mod node_cases;
#[cfg(feature = "train")]
mod packing;
#[cfg(feature = "train")]
mod parallel;
#[cfg(feature = "train")]
mod peft;
mod picture;
#[cfg(feature = "runtime")]
mod places;
#[cfg(feature = "runtime")]
mod plain;
#[cfg(feature = "train")]
mod recompute;
mod roundtrip;
#[cfg(feature = "runtime")]
mod runtime;
mod select;
#[cfg(feature = "train")]
mod setups;
#[cfg(feature = "train")]
mod strangers;
#[cfg(feature = "train")]
mod tenants;
mod told;
#[cfg(feature = "train")]
mod train_loop;
#[cfg(feature = "train")]
mod train_step;
#[cfg(feature = "train")]
mod training_truth;
#[cfg(feature = "train")]
mod unpad;
#[cfg(feature = "train")]
mod watch;
#[cfg(feature = "train")]
mod weighted;

#[cfg(feature = "runtime")]
mod windows;

#[path = "../support/mod.rs"]
pub(crate) mod support;

#[expect(dead_code, reason = "shared with benches")]
#[path = "../../benches/synth.rs"]
mod synth;

/// A model with a loss and its gradients by the values named: one step of training.
#[cfg(feature = "train")]
fn training_graph(
    model: crate::infer::Verified,
    loss: &crate::rewrite::Loss,
    wrt: &[String],
    outputs: crate::rewrite::Outputs,
    mode: crate::rewrite::pipelines::Mode,
) -> crate::Result<crate::infer::Verified> {
    let pipeline = crate::rewrite::pipelines::training(loss, wrt, outputs, false, mode);
    Ok(pipeline.run(model)?.model)
}
