//! From examples to batches: which examples stand together, and how they become tensors.

use super::data::{Example, IGNORE, Labels};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::rewrite::passes::loss::LABELS;
use crate::runtime::{Feeds, Value};

/// The examples of one micro-batch by index: a list for each row, with one example each unless rows are packed.
pub type Rows = Vec<Vec<usize>>;

/// The tensors of one micro-batch.
#[derive(Clone, Debug)]
pub struct Batch {
    /// Every input that the batch can serve, by name of the graph input. Who runs a graph takes what the graph reads.
    pub feeds: Feeds,
    /// Number of examples.
    pub examples: usize,
    /// Number of labels that count towards the loss, after the shift.
    pub items: usize,
    /// Number of tokens, padding not counted.
    pub tokens: usize,
    /// Number of positions, padding counted.
    pub positions: usize,
}

/// Decides which examples stand together, epoch by epoch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sampler {
    /// Rows of one micro-batch.
    pub batch_size: usize,
    /// Seed of the order.
    pub seed: u64,
    /// Draws a new order each epoch; otherwise that of the file.
    pub shuffle: bool,
    /// Drops the last incomplete micro-batch.
    pub drop_last: bool,
}

impl Sampler {
    /// The micro-batches of an epoch over examples of these lengths in tokens. The same on every machine.
    pub fn epoch(&self, lengths: &[u32], epoch: u64) -> Vec<Rows> {
        let order = if self.shuffle {
            epoch_order(lengths.len(), self.seed, epoch)
        } else {
            (0..lengths.len()).collect()
        };
        let size = self.batch_size.max(1);
        let keep = if self.drop_last {
            order.len() / size
        } else {
            order.len().div_ceil(size)
        };
        let batches = order.chunks(size).take(keep);
        batches
            .map(|b| b.iter().map(|&i| vec![i]).collect())
            .collect()
    }
}

/// Turns examples into tensors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Collator {
    /// The id behind the end.
    pub pad_id: i64,
}

impl Collator {
    /// A batch of rows, padded to the longest.
    pub fn collate(&self, rows: &[Vec<Example>]) -> Result<Batch> {
        let examples: Vec<&Example> = rows.iter().flatten().collect();
        let width = examples
            .iter()
            .map(|e| e.input_ids.len())
            .max()
            .unwrap_or(0);
        let count = examples.len();
        let mut ids = vec![self.pad_id; count * width];
        let mut mask = vec![0; count * width];
        let mut labels = vec![IGNORE; count * width];
        let (mut items, mut tokens) = (0, 0);
        for (r, e) in examples.iter().enumerate() {
            let (at, n) = (r * width, e.input_ids.len());
            ids[at..at + n].copy_from_slice(&e.input_ids);
            mask[at..at + n].fill(1);
            tokens += n;
            let Labels::Tokens(l) = &e.labels else {
                return Err(failed("only token labels are collated"));
            };
            labels[at..at + n].copy_from_slice(l);
            items += l.iter().skip(1).filter(|&&l| l != IGNORE).count();
        }
        let ints = |data: Vec<i64>| {
            Value::from_i64(&[count, width], data).map_err(|e| failed(&e.to_string()))
        };
        let positions: Vec<i64> = (0..count).flat_map(|_| 0..width as i64).collect();
        let feeds = Feeds::new()
            .with("input_ids", ints(ids)?)
            .with("attention_mask", ints(mask)?)
            .with("position_ids", ints(positions)?)
            .with("token_type_ids", ints(vec![0; count * width])?)
            .with(LABELS, ints(labels)?);
        Ok(Batch {
            feeds,
            examples: count,
            items,
            tokens,
            positions: count * width,
        })
    }
}

/// The order of `n` examples in an epoch: a seeded shuffle, the same on every machine.
pub fn epoch_order(n: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut order: Vec<usize> = (0..n).collect();
    let mut state = seed ^ epoch.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        // SplitMix64 (Steele, Lea, Flood 2014).
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    for i in (1..n).rev() {
        let j = ((u128::from(next()) * (i as u128 + 1)) >> 64) as usize;
        order.swap(i, j);
    }
    order
}

fn failed(message: &str) -> Error {
    Error::new(ErrorKind::Train, Diagnostic::error("batch", message))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_padded_to_the_longest() {
        let rows = [
            vec![Example::tokens(vec![1, 2, 3], vec![1, 2, 3])],
            vec![Example::tokens(vec![4, 5], vec![IGNORE, 5])],
        ];
        let b = Collator { pad_id: 9 }.collate(&rows).unwrap();
        let ints = |n: &str| b.feeds.0[n].to_ints().unwrap();
        assert_eq!(ints("input_ids"), [1, 2, 3, 4, 5, 9]);
        assert_eq!(ints("attention_mask"), [1, 1, 1, 1, 1, 0]);
        assert_eq!(ints("labels"), [1, 2, 3, -100, 5, -100]);
        assert_eq!((b.items, b.tokens, b.positions), (3, 5, 6));
    }

    #[test]
    fn an_epoch_is_a_permutation_that_depends_on_seed_and_epoch() {
        let mut a = epoch_order(100, 1, 0);
        assert_ne!(a, epoch_order(100, 1, 1));
        assert_ne!(a, epoch_order(100, 2, 0));
        assert_eq!(a, epoch_order(100, 1, 0));
        a.sort_unstable();
        assert_eq!(a, (0..100).collect::<Vec<_>>());
    }
}
