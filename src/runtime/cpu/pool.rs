//! A bounded store of buffers, so that a training step reuses the pages of the one before.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers that are given back and handed out again.
///
/// A buffer is initialised but holds whatever it held last. Buffers beyond the limit are freed, the smallest first.
#[derive(Debug)]
pub struct Pool {
    limit: usize,
    store: Mutex<Store>,
}

#[derive(Debug, Default)]
struct Store {
    /// By capacity.
    buffers: BTreeMap<usize, Vec<Vec<f32>>>,
    held: usize,
}

impl Pool {
    /// A pool that keeps at most `limit` elements of unused buffers.
    pub fn new(limit: usize) -> Self {
        Self {
            limit,
            store: Mutex::default(),
        }
    }

    /// A buffer of `len` elements with arbitrary contents: the smallest kept one that fits without wasting more than half of it, else
    /// a new one of zeros.
    pub fn take(&self, len: usize) -> Vec<f32> {
        let found = self.store().take(len);
        let Some(mut buffer) = found else {
            return vec![0.0; len];
        };
        if buffer.len() < len {
            buffer.resize(len, 0.0);
        } else {
            buffer.truncate(len);
        }
        buffer
    }

    /// A buffer of `len` zeros.
    pub fn take_zeroed(&self, len: usize) -> Vec<f32> {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// Keeps `buffer` for later, or frees it if the pool is full.
    pub fn give(&self, buffer: Vec<f32>) {
        let size = buffer.capacity();
        if size == 0 || size > self.limit {
            return;
        }
        let mut store = self.store();
        store.held += size;
        store.buffers.entry(size).or_default().push(buffer);
        let mut freed = Vec::new();
        while store.held > self.limit {
            freed.extend(store.pop_smallest());
        }
        drop(store);
    }

    /// Elements of unused buffers kept now.
    pub fn held(&self) -> usize {
        self.store().held
    }

    /// Frees all unused buffers.
    pub fn clear(&self) {
        let freed = std::mem::take(&mut *self.store());
        drop(freed);
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // A panic elsewhere cannot leave the store half changed in a way that matters: at worst `held` counts a lost buffer.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Store {
    fn take(&mut self, len: usize) -> Option<Vec<f32>> {
        let size = *self.buffers.range(len..=len.saturating_mul(2)).next()?.0;
        self.pop(size)
    }

    fn pop_smallest(&mut self) -> Option<Vec<f32>> {
        let size = *self.buffers.first_key_value()?.0;
        self.pop(size)
    }

    fn pop(&mut self, size: usize) -> Option<Vec<f32>> {
        let stack = self.buffers.get_mut(&size)?;
        let buffer = stack.pop();
        if stack.is_empty() {
            self.buffers.remove(&size);
        }
        self.held -= size;
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back() {
        let pool = Pool::new(1000);
        let buffer = pool.take(100);
        let place = buffer.as_ptr();
        pool.give(buffer);
        let again = pool.take(60);
        assert_eq!((again.as_ptr(), again.len()), (place, 60));
        assert_eq!(pool.held(), 0);
        pool.give(again);
        let again = pool.take(100);
        assert_eq!((again.as_ptr(), again.len()), (place, 100));
    }

    #[test]
    fn waste_and_store_are_bounded() {
        let pool = Pool::new(250);
        let sizes = [100, 100, 100, 300];
        sizes
            .map(|len| pool.take(len))
            .into_iter()
            .for_each(|buffer| pool.give(buffer));
        assert_eq!(pool.held(), 200);
        assert_eq!(pool.take(40).capacity(), 40);
        assert!(pool.take(0).is_empty());
        pool.clear();
        assert_eq!(pool.held(), 0);
        assert_eq!(pool.take_zeroed(3), [0.0; 3]);
    }
}
