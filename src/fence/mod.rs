//! A fence around third-party code that takes bytes or programs of strangers: tokenizers, templates, tract, Parquet, regular expressions.
//!
//! What such a crate does not expect makes it panic, run for ever, or ask for all memory. Behind [`guarded`] a panic is a value, and no
//! trace of it is shown. Behind [`bounded`] the work has a thread of its own besides: its stack is large, and its time and its memory
//! have limits. Work that passes one of them is left where it is (no thread can be ended from outside), and who asked for it goes on
//! with a [`Fallen`].
//!
//! The limit of memory holds where [`Allocator`] allocates: in the `rewrite` binary and in the tests of this crate. `tests/tidy.rs` lists
//! who may name such a crate, and where its fence stands. Nothing here knows what the work is.

mod allocator;
mod pool;

pub use allocator::Allocator;

use crate::budget;

use std::cell::Cell;
use std::fmt;
use std::panic::{self, AssertUnwindSafe};
use std::sync::Once;
use std::time::Duration;

/// Why work behind the fence has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fallen {
    /// It panicked.
    Panicked,
    /// It took longer than it may.
    Late(Duration),
    /// It asked for more bytes than it may.
    Large(u64),
    /// The system gave no thread.
    NoThread,
}

impl fmt::Display for Fallen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fallen::Panicked => f.write_str("it gave up on what it was given"),
            Fallen::Late(limit) => write!(f, "it took longer than {} s", limit.as_secs_f64()),
            Fallen::Large(limit) => write!(f, "it asked for more than {} MiB", limit >> 20),
            Fallen::NoThread => f.write_str("the system has no room for another thread"),
        }
    }
}

/// What work may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Time.
    pub time: Duration,
    /// Bytes that are allocated at once.
    pub bytes: u64,
}

/// Runs work on this thread; a panic in it is a value.
///
/// # Errors
/// [`Fallen::Panicked`]. What the work was about to change is not to be used after it.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, Fallen> {
    silence();
    let _inside = Inside::enter();
    panic::catch_unwind(AssertUnwindSafe(work)).map_err(|_| Fallen::Panicked)
}

/// Runs work on a thread of its own, within limits.
///
/// # Errors
/// Why there is no result.
pub(crate) fn bounded<T: Send + 'static>(
    limits: Limits,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Fallen> {
    let limits = Limits {
        bytes: limits.bytes.min(budget::limit()),
        ..limits
    };
    pool::run(limits, move || guarded(work))?
}

thread_local! {
    /// How many fences this thread is behind.
    static DEPTH: Cell<u32> = const { Cell::new(0) };
}

/// Whether this thread is behind a fence. It may be asked in a signal handler.
pub(crate) fn is_inside() -> bool {
    DEPTH.try_with(Cell::get).unwrap_or(0) > 0
}

struct Inside;

impl Inside {
    fn enter() -> Self {
        DEPTH.set(DEPTH.get() + 1);
        Inside
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        DEPTH.set(DEPTH.get().saturating_sub(1));
    }
}

/// Puts a hook in front of the process's own that says nothing of panics behind a fence.
fn silence() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let own = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if DEPTH.try_with(Cell::get).unwrap_or(0) == 0 {
                own(info);
            }
        }));
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: Limits = Limits {
        // Longer than any of this takes on a busy machine.
        time: Duration::from_mins(1),
        bytes: 64 << 20,
    };

    fn fail() -> u8 {
        panic!("of a stranger")
    }

    #[test]
    fn a_panic_is_a_value() {
        assert_eq!(guarded(|| 7), Ok(7));
        assert_eq!(guarded(fail), Err(Fallen::Panicked));
        assert_eq!(bounded(LIMITS, fail), Err(Fallen::Panicked));
        // The thread is still there for what follows.
        assert_eq!(bounded(LIMITS, || 8), Ok(8));
    }

    #[test]
    fn endless_work_is_left() {
        let endless = || loop {
            std::hint::spin_loop();
        };
        let time = Duration::from_millis(50);
        let limits = Limits { time, ..LIMITS };
        assert_eq!(bounded::<u8>(limits, endless), Err(Fallen::Late(time)));
    }

    #[test]
    fn memory_has_a_limit() {
        let one = || vec![1u8; 1 << 40].len();
        assert_eq!(bounded(LIMITS, one), Err(Fallen::Large(LIMITS.bytes)));
        let many = || {
            let mut all = Vec::new();
            while all.len() < 1 << 20 {
                all.push(vec![1u8; 1 << 16]);
            }
            all.len()
        };
        assert_eq!(bounded(LIMITS, many), Err(Fallen::Large(LIMITS.bytes)));
        // What is given back may be taken again.
        let again = || (0..1000).map(|_| vec![1u8; 1 << 20].len()).sum::<usize>();
        assert_eq!(bounded(LIMITS, again), Ok(1000 << 20));
    }

    #[test]
    fn deep_work_has_a_deep_stack() {
        fn down(n: u64) -> u64 {
            let here = std::hint::black_box([n; 32]);
            if n == 0 {
                0
            } else {
                here[0] - n + 1 + down(n - 1)
            }
        }
        assert_eq!(bounded(LIMITS, || down(100_000)), Ok(100_000));
    }
}
