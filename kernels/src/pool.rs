//! Recycled buffers: what one value gives up, the next one of similar size takes, so that a run reuses the pages of the one before.
//!
//! The system zeroes every page that it hands out. Without recycling that costs a training step a tenth of its time.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Buffers below this length are cheaper to allocate than to look up.
const SMALL: usize = 1024;

/// What unwinds a thread that asks for a buffer the system has no memory for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoMemory {
    /// Elements asked for.
    pub elements: usize,
}

/// A new buffer of zeros. The system gives zeroed pages without touching them, so it is asked first and the answer taken then: a list that
/// is made room for and filled would touch all of them.
fn fresh(len: usize) -> Vec<f32> {
    if Vec::<f32>::new().try_reserve_exact(len).is_err() {
        std::panic::resume_unwind(Box::new(NoMemory { elements: len }));
    }
    vec![0.0; len]
}

/// Buffers that are given back and handed out again.
///
/// A buffer is initialised but holds whatever it held last. Kept and handed-out buffers together never exceed the most that was once
/// handed out: when batches change their shape, buffers that no longer fit are freed before others are made.
#[derive(Debug, Default)]
pub struct Pool(Mutex<Store>);

#[derive(Debug, Default)]
struct Store {
    /// By capacity.
    buffers: BTreeMap<usize, Vec<Vec<f32>>>,
    /// Elements of the buffers kept.
    held: usize,
    /// Elements of the buffers handed out.
    used: usize,
    /// The most that was ever handed out.
    peak: usize,
}

impl Pool {
    /// An empty pool.
    pub fn new() -> Self {
        Self::default()
    }

    /// A buffer of `len` elements with arbitrary contents: the smallest kept one that fits without wasting more than half of it, else
    /// a new one of zeros. Where the system has none, the thread unwinds with [`NoMemory`].
    pub fn take(&self, len: usize) -> Vec<f32> {
        if len < SMALL {
            return vec![0.0; len];
        }
        let (found, freed) = self.store().take(len);
        // Returns pages to the system before it asks for others.
        drop(freed);
        let mut buffer = found.unwrap_or_else(|| fresh(class(len)));
        buffer.resize(len, 0.0);
        buffer
    }

    /// A buffer of `len` zeros.
    pub fn zeros(&self, len: usize) -> Vec<f32> {
        let mut buffer = self.take(len);
        buffer.fill(0.0);
        buffer
    }

    /// Keeps a buffer for later.
    pub fn give(&self, buffer: Vec<f32>) {
        let size = buffer.capacity();
        if size < SMALL {
            return;
        }
        let mut store = self.store();
        store.used = store.used.saturating_sub(size);
        store.held += size;
        store.buffers.entry(size).or_default().push(buffer);
    }

    /// Says that a run begins: what earlier ones handed out and never got back (results) is no longer counted.
    pub fn begin(&self) {
        self.store().used = 0;
    }

    /// Elements of the buffers handed out now.
    pub fn used(&self) -> usize {
        self.store().used
    }

    /// Elements of unused buffers kept now.
    pub fn held(&self) -> usize {
        self.store().held
    }

    fn store(&self) -> MutexGuard<'_, Store> {
        // A panic elsewhere cannot leave the store half changed in a way that matters: at worst a lost buffer is counted.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The capacity that a new buffer gets: at most an eighth more than it needs, so that batches of nearly the same shape share buffers.
fn class(len: usize) -> usize {
    let step = 1 << len.max(8).ilog2().saturating_sub(3);
    len.next_multiple_of(step)
}

impl Store {
    /// A kept buffer, or the buffers that have to go for a new one.
    fn take(&mut self, len: usize) -> (Option<Vec<f32>>, Vec<Vec<f32>>) {
        let fits = self.buffers.range(len..=len.saturating_mul(2)).next();
        let found = fits.map(|(size, _)| *size).and_then(|size| self.pop(size));
        self.used += found.as_ref().map_or(class(len), Vec::capacity);
        self.peak = self.peak.max(self.used);
        let mut freed = Vec::new();
        while found.is_none() && self.used + self.held > self.peak {
            let Some(size) = self.buffers.first_key_value().map(|(size, _)| *size) else {
                break;
            };
            freed.extend(self.pop(size));
        }
        (found, freed)
    }

    fn pop(&mut self, size: usize) -> Option<Vec<f32>> {
        let stack = self.buffers.get_mut(&size)?;
        let buffer = stack.pop();
        if stack.is_empty() {
            self.buffers.remove(&size);
        }
        if buffer.is_some() {
            self.held -= size;
        }
        buffer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_comes_back() {
        let pool = Pool::new();
        let buffer = pool.take(10_000);
        let place = buffer.as_ptr();
        pool.give(buffer);
        let again = pool.take(6000);
        assert_eq!((again.as_ptr(), again.len()), (place, 6000));
        assert_eq!(pool.held(), 0);
        pool.give(again);
        let again = pool.take(10_000);
        assert_eq!((again.as_ptr(), again.len()), (place, 10_000));
        assert!(pool.zeros(5000).iter().all(|&x| x == 0.0));
    }

    #[test]
    fn nearly_equal_sizes_share_a_buffer() {
        let pool = Pool::new();
        let buffer = pool.take(9000);
        let place = buffer.as_ptr();
        pool.give(buffer);
        let other = pool.take(9100);
        assert_eq!(other.as_ptr(), place);
    }

    #[test]
    fn small_and_oversized_buffers_are_not_handed_out() {
        let pool = Pool::new();
        pool.give(vec![0.0; SMALL - 1]);
        assert_eq!(pool.held(), 0);
        pool.give(vec![1.0; 1 << 16]);
        assert!(pool.take(1 << 12).iter().all(|&x| x == 0.0));
        assert!(pool.take(0).is_empty());
    }

    /// Values of one run, all alive at once and then dead.
    fn run(pool: &Pool, len: usize, count: usize) {
        pool.begin();
        let values: Vec<_> = (0..count).map(|_| pool.take(len)).collect();
        for v in values {
            pool.give(v);
        }
    }

    #[test]
    fn changing_shapes_do_not_pile_up() {
        let pool = Pool::new();
        for len in [2000, 4500, 3000, 9100, 20_000, 1500, 41_000, 8000] {
            run(&pool, len, 10);
            let most = [2000, 4500, 3000, 9100, 20_000, 1500, 41_000, 8000]
                .iter()
                .take_while(|&&l| l != len)
                .chain([&len])
                .map(|&l| class(l) * 10)
                .max();
            assert!(Some(pool.held()) <= most, "{} after {len}", pool.held());
        }
    }

    #[test]
    fn results_that_are_kept_do_not_count_for_ever() {
        let pool = Pool::new();
        for _ in 0..100 {
            pool.begin();
            let (result, scratch) = (pool.take(5000), pool.take(5000));
            pool.give(scratch);
            drop(result);
        }
        assert!(pool.store().peak <= 2 * class(5000));
    }
}
