//! Per-thread scratch buffers that are reused from call to call.
//!
//! A buffer is taken out of the thread's store while in use, so a task that the same thread steals meanwhile gets another one.

use std::cell::RefCell;

/// Buffers a thread keeps.
const KEPT: usize = 6;
/// Largest buffer a thread keeps, in elements.
const KEPT_LEN: usize = 1 << 22;
/// Alignment of a scratch slice, in elements: one cache line.
const ALIGN: usize = 16;

thread_local! {
    static STORE: RefCell<Vec<Vec<f32>>> = const { RefCell::new(Vec::new()) };
}

/// Runs `work` on `len` elements of initialised but arbitrary contents, aligned to a cache line.
pub(crate) fn with_scratch<R>(len: usize, work: impl FnOnce(&mut [f32]) -> R) -> R {
    let wanted = len + ALIGN;
    let mut buffer = take(wanted);
    if buffer.len() < wanted {
        // A longer buffer need not keep the old contents.
        buffer.clear();
        buffer.resize(wanted, 0.0);
    }
    let skip = buffer
        .as_ptr()
        .align_offset(ALIGN * size_of::<f32>())
        .min(ALIGN);
    let result = work(&mut buffer[skip..skip + len]);
    give(buffer);
    result
}

/// The smallest kept buffer of at least `wanted` elements, else the largest one.
fn take(wanted: usize) -> Vec<f32> {
    STORE.with_borrow_mut(|store| {
        let fit = store.partition_point(|buffer| buffer.len() < wanted);
        if fit < store.len() {
            store.remove(fit)
        } else {
            store.pop().unwrap_or_default()
        }
    })
}

/// Puts a buffer back; the store stays sorted by length and bounded.
fn give(buffer: Vec<f32>) {
    if buffer.len() > KEPT_LEN {
        return;
    }
    STORE.with_borrow_mut(|store| {
        let at = store.partition_point(|kept| kept.len() < buffer.len());
        store.insert(at, buffer);
        if store.len() > KEPT {
            store.remove(0);
        }
    });
}
