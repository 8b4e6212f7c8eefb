//! An allocator that knows limits: a thread that has one and passes it gets no memory, and never comes back.
//!
//! A limit is a number of bytes that one thread may hold at once, counted from when it is set. Threads without one, which are all but
//! those of the [pool](super::pool), pay one look at a number. To stop for ever is all that an allocator can do: it may neither unwind
//! nor refuse, as code that is refused ends the process.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

/// The system's allocator, with limits for the threads of [`fence`](super).
#[derive(Debug)]
pub struct Allocator;

/// No limit.
const FREE: i64 = i64::MAX;

thread_local! {
    /// Bytes that this thread may still take.
    static LEFT: Cell<i64> = const { Cell::new(FREE) };
    /// Tells the others that it wanted more.
    static OVER: Cell<Option<&'static AtomicBool>> = const { Cell::new(None) };
}

/// Runs work that may hold so many bytes more than it began with; `over` is set when it wants more, and then it does not come back.
pub(super) fn within<T>(bytes: u64, over: &'static AtomicBool, work: impl FnOnce() -> T) -> T {
    OVER.set(Some(over));
    LEFT.set(i64::try_from(bytes).unwrap_or(FREE - 1));
    let done = work();
    LEFT.set(FREE);
    done
}

/// Counts bytes that are taken.
fn take(bytes: usize) {
    let _ = LEFT.try_with(|left| {
        if left.get() == FREE {
            return;
        }
        let rest = left.get().saturating_sub_unsigned(bytes as u64);
        left.set(rest);
        if rest < 0 {
            left.set(FREE);
            stop();
        }
    });
}

/// Counts bytes that are given back.
fn give(bytes: usize) {
    let _ = LEFT.try_with(|left| {
        if left.get() != FREE {
            left.set(
                left.get()
                    .saturating_add_unsigned(bytes as u64)
                    .min(FREE - 1),
            );
        }
    });
}

fn stop() {
    let _ = OVER.try_with(|over| {
        if let Some(over) = over.get() {
            over.store(true, Ordering::Release);
        }
    });
    loop {
        std::thread::park();
    }
}

// SAFETY: each call is the system allocator's with the same arguments, and its answer is given on unchanged; counting neither allocates
// nor unwinds.
#[allow(unsafe_code, reason = "the interface of allocators")]
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: the caller's promise about `layout` is the one that is asked for.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        take(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        give(layout.size());
        // SAFETY: `at` is from this allocator, so from the system's, with this layout.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // The old place is there until the new one is filled.
        take(size);
        give(layout.size());
        // SAFETY: as above, and the caller's promise about `size` is the one that is asked for.
        unsafe { System.realloc(at, layout, size) }
    }
}
