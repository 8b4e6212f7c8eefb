//! What many tests need.

use std::path::{Path, PathBuf};

/// A file or folder among the fixtures.
pub(crate) fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(path)
}
