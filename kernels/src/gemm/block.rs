//! Sizes of tiles and blocks.
#![cfg_attr(
    not(target_arch = "x86_64"),
    allow(dead_code, reason = "sizes of tiles that other processors do not have")
)]

/// Rows of the register tile.
pub(crate) const MR: usize = 12;
/// Columns of the register tile: two vectors of AVX-512.
pub(crate) const NR: usize = 32;
/// Columns of a packed right operand that are taken or left together: a part of it begins at a multiple of them.
pub(crate) const PANEL: usize = NR;
/// Columns that the narrow kernel computes at once.
pub(crate) const THIN: usize = 8;
/// Depth of a packed block.
pub(crate) const KC: usize = 512;
/// Operations below which a product stays on one thread.
pub(crate) const SERIAL_OPS: usize = 1 << 21;
