//! The passes.

mod attach;
pub mod cache;
pub mod expand;
pub mod fuse;
pub mod gradient;
pub mod head;
pub mod logits;
pub mod loss;
mod merge;
pub mod pack;
pub mod recompute;
pub mod shapes;
mod strip;
#[cfg(test)]
pub(crate) mod testing;

pub use attach::AttachPass;
pub use merge::{Evaluate, Merge, merge_expression};
pub use strip::Strip;
