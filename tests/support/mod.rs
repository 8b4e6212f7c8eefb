//! What the tests of the library and those of the command share.

#[cfg(feature = "hub")]
pub(crate) mod hub;

use std::path::{Path, PathBuf};

/// A file or folder among the fixtures.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}
