//! The cases, by family.

mod composite;
mod defined;
mod elementwise;
mod own;
mod quantized;
mod shape;

use super::harness::Case;

/// All cases.
pub(crate) fn all() -> Vec<Case> {
    [
        elementwise::cases(),
        shape::cases(),
        composite::cases(),
        defined::cases(),
        own::cases(),
        quantized::cases(),
    ]
    .into_iter()
    .flatten()
    .collect()
}
