//! Ctrl-C and a request to terminate end a run after its current step; the second one ends the process.

use crate::error::{Error, Result};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// Lets the signals set a flag.
pub(super) fn watch(flag: &Arc<AtomicBool>) -> Result<()> {
    let seen = Arc::clone(flag);
    let handler = move || {
        if seen.swap(true, Ordering::Relaxed) {
            // The usual code of a process that a signal ended.
            #[expect(clippy::exit, reason = "asked twice to end at once")]
            std::process::exit(130);
        }
    };
    ctrlc::set_handler(handler).map_err(|e| {
        Error::io(
            Path::new("signals"),
            "cannot be handled",
            std::io::Error::other(e),
        )
    })
}
