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

/// Fields that the library's first versions wrote and that say nothing today: it keeps them and reads them nowhere.
const OLD: [&str; 3] = ["attention_type", "invertible_adapter", "new_attention_norm"];

/// A warning for fields that a saved configuration has and its type has not. They are kept and count for nothing, as in the library.
pub(super) fn kept(keys: &[String], of: &str, known: &[String]) -> Option<Diagnostic> {
    let keys = keys.iter().map(String::as_str);
    let keys: Vec<&str> = keys.filter(|k| !OLD.contains(k)).collect();
    if keys.is_empty() {
        return None;
    }
    let named: Vec<String> = keys.iter().map(|k| format!("`{k}`")).collect();
    let what = format!(
        "the configuration has {}, which `{of}` does not know: kept, and without effect",
        named.join(", ")
    );
    let near = |key: &&str| {
        let near = nearest(key, known.iter().map(String::as_str))?;
        Some(format!("`{key}` is near to `{near}`"))
    };
    let near: Vec<String> = keys.iter().filter_map(near).collect();
    let mut d = Diagnostic::warning("config-key", what);
    if !near.is_empty() {
        d = d.note(near.join(", "));
    }
    Some(d.help(
        "the Adapters library 1.2.0 does the same; mend what is misspelt, and take out what a newer version wrote once it is known to change nothing",
    ))
}
