//! Ctrl-C and a request to terminate. A training ends after its current step when it is asked first, and at once when it is asked again;
//! all else ends at once. What is staged is removed, so that nothing half-written is left.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What is set when a run is to end after its current step.
static STOP: Mutex<Option<Arc<AtomicBool>>> = Mutex::new(None);

/// The code of a process that a signal ended, as shells have it for Ctrl-C.
const ENDED: i32 = 130;

/// Handles the signals from here on. Where they cannot be handled, they end the process as they always do.
pub(super) fn watch() {
    let _ = ctrlc::set_handler(|| {
        let stop = STOP.lock().unwrap_or_else(PoisonError::into_inner);
        let first = stop
            .as_ref()
            .is_some_and(|s| !s.swap(true, Ordering::Relaxed));
        if !first {
            crate::staging::remove_all();
            #[expect(clippy::exit, reason = "asked to end at once")]
            std::process::exit(ENDED);
        }
    });
}

/// Lets the first signal from here on set a flag.
pub(super) fn stop_by(flag: &Arc<AtomicBool>) {
    let mut stop = STOP.lock().unwrap_or_else(PoisonError::into_inner);
    *stop = Some(Arc::clone(flag));
}
