//! Recycled buffers: what one value gives up, the next one of similar size takes.
//!
//! A pool never holds more than the plan once had live, because it is only fed by values that died.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Buffers below this length are cheaper to allocate than to look up.
const SMALL: usize = 1024;

/// A pool of `f32` buffers, ordered by length.
#[derive(Debug, Default)]
pub(crate) struct Pool(Mutex<BTreeMap<usize, Vec<Vec<f32>>>>);

impl Pool {
    /// A buffer of exactly `len` elements with arbitrary contents.
    pub(crate) fn take(&self, len: usize) -> Vec<f32> {
        if len < SMALL {
            return vec![0.0; len];
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // A buffer more than twice as long would be held hostage by a small value.
        let found = free
            .range_mut(len..=len.saturating_mul(2))
            .find_map(|(size, list)| list.pop().map(|v| (*size, list.is_empty(), v)));
        let Some((size, emptied, mut buffer)) = found else {
            drop(free);
            return vec![0.0; len];
        };
        if emptied {
            free.remove(&size);
        }
        drop(free);
        buffer.truncate(len);
        buffer
    }

    /// A buffer of zeros.
    pub(crate) fn zeros(&self, len: usize) -> Vec<f32> {
        if len < SMALL {
            return vec![0.0; len];
        }
        let mut v = self.take(len);
        v.fill(0.0);
        v
    }

    /// Takes a dead buffer in.
    pub(crate) fn give(&self, buffer: Vec<f32>) {
        if buffer.len() < SMALL {
            return;
        }
        let mut free = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        free.entry(buffer.len()).or_default().push(buffer);
    }
}
