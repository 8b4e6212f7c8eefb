//! The passes.

mod attach;
pub mod expand;
pub mod fuse;
pub mod gradient;
pub mod loss;
mod merge;
mod strip;

pub use attach::Attach;
pub use attach::manifest::attached;
pub use merge::{Evaluate, Merge, merge_expression};
pub use strip::Strip;
