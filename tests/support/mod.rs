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

/// Holds a generated file in `schemas/` to what the code says now. `UPDATE_SCHEMAS=1` writes the file instead.
pub(crate) fn check_generated(name: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("schemas")
        .join(name);
    if std::env::var_os("UPDATE_SCHEMAS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(
        found == wanted,
        "schemas/{name} is not fresh: run the tests with UPDATE_SCHEMAS=1"
    );
}
