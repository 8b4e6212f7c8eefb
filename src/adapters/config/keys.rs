//! Fields that a configuration's type does not have.

use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind};

/// How to treat keys that the configuration's type does not have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnknownKeys {
    /// An error: somebody wrote this by hand.
    Refuse,
    /// They are kept and written back: another version of the library wrote this.
    Keep,
}

/// The error of such a key, with the nearest one.
pub(crate) fn unknown_key<'a>(
    key: &str,
    of: &str,
    known: impl Iterator<Item = &'a str> + Clone,
) -> Error {
    let mut d = Diagnostic::error("config-key", format!("`{of}` has no field `{key}`"));
    if let Some(near) = nearest(key, known.clone()) {
        d = d.note(format!("the nearest one is `{near}`"));
    }
    let all: Vec<&str> = known.collect();
    Error::new(
        ErrorKind::Method,
        d.help(format!("its fields are {}", all.join(", "))),
    )
}
