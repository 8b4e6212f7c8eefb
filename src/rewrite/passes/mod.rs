//! The passes.

mod attach;
pub(crate) mod cache;
pub(crate) mod channel;
pub(crate) mod expand;
pub(crate) mod fuse;
pub(crate) mod gradient;
pub(crate) mod head;
mod homes;
pub(crate) mod inline;
pub(crate) mod join;
pub(crate) mod logits;
pub(crate) mod loss;
mod merge;
pub(crate) mod pack;
pub(crate) mod recompute;
pub(crate) mod shapes;
mod strip;
#[cfg(test)]
pub(crate) mod testing;
pub(crate) mod unpad;

pub(crate) use attach::AttachPass;
pub(crate) use attach::exchange::{Exchange, Exchanging, Tensors};
pub(crate) use merge::{Changes, Merge, MergedWeight, Spread};
pub(crate) use strip::Strip;
