//! Sizes of blocks that all units share.

/// Columns of a packed right operand that are taken or left together: a part of it begins at a multiple of them, as they are whole panels of
/// every unit.
pub(crate) const PANEL: usize = 32;
/// Columns up to whose double a product is narrow.
pub(crate) const THIN: usize = 8;
/// Operations below which a product stays on one thread.
pub(crate) const SERIAL_OPS: usize = 1 << 21;
