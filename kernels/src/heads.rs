//! Where the vectors of a multi-head tensor lie.

use crate::{KernelError, Result};

/// Vectors `[batch, seq, heads, dim]` in any order of the first three axes: the vector of `(b, s, h)` starts at
/// `b * batch_step + s * seq_step + h * head_step` and is contiguous.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Heads {
    /// Sequences.
    pub batch: usize,
    /// Positions of a sequence.
    pub seq: usize,
    /// Heads of a position.
    pub heads: usize,
    /// Elements of a vector.
    pub dim: usize,
    /// Elements from one sequence to the next.
    pub batch_step: usize,
    /// Elements from one position to the next.
    pub seq_step: usize,
    /// Elements from one head to the next.
    pub head_step: usize,
}

impl Heads {
    /// A dense `[batch, seq, heads, dim]`, as a projection writes it.
    pub fn bshd(batch: usize, seq: usize, heads: usize, dim: usize) -> Self {
        let row = heads.saturating_mul(dim);
        Self {
            batch,
            seq,
            heads,
            dim,
            batch_step: seq.saturating_mul(row),
            seq_step: row,
            head_step: dim,
        }
    }

    /// A dense `[batch, heads, seq, dim]`, as most exported attention expects it.
    pub fn bhsd(batch: usize, seq: usize, heads: usize, dim: usize) -> Self {
        let plane = seq.saturating_mul(dim);
        Self {
            batch,
            seq,
            heads,
            dim,
            batch_step: heads.saturating_mul(plane),
            seq_step: dim,
            head_step: plane,
        }
    }

    /// Number of vectors.
    pub(crate) fn vectors(&self) -> usize {
        self.batch * self.seq * self.heads
    }

    /// First element of the vector of `(b, s, h)`.
    pub(crate) fn at(&self, b: usize, s: usize, h: usize) -> usize {
        b * self.batch_step + s * self.seq_step + h * self.head_step
    }

    fn axes(&self) -> [(usize, usize); 3] {
        [
            (self.batch_step, self.batch),
            (self.seq_step, self.seq),
            (self.head_step, self.heads),
        ]
    }

    /// Checks that every vector lies inside `len` elements.
    pub(crate) fn check(&self, what: &'static str, len: usize) -> Result<()> {
        let count = self
            .axes()
            .iter()
            .try_fold(self.dim, |n, axis| n.checked_mul(axis.1));
        if count.ok_or(KernelError::Overflow { what })? == 0 {
            return Ok(());
        }
        let last = self
            .axes()
            .iter()
            .try_fold(self.dim, |end, &(step, count)| {
                step.checked_mul(count - 1)
                    .and_then(|reach| end.checked_add(reach))
            });
        let expected = last.ok_or(KernelError::Overflow { what })?;
        if len < expected {
            return Err(KernelError::Length {
                what,
                found: len,
                expected,
            });
        }
        Ok(())
    }

    /// [`Heads::check`], and that no two vectors overlap: needed where several tasks write.
    pub(crate) fn check_mut(&self, what: &'static str, len: usize) -> Result<()> {
        self.check(what, len)?;
        let mut axes = self.axes();
        axes.sort_unstable();
        let mut extent = self.dim;
        for (step, count) in axes.into_iter().filter(|axis| axis.1 > 1) {
            if step < extent {
                return Err(KernelError::Dim {
                    what: "step between vectors",
                    found: step,
                    expected: extent,
                });
            }
            extent = extent.saturating_add(step.saturating_mul(count - 1));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_and_overflow_are_refused() {
        let heads = Heads::bshd(2, 3, 4, 5);
        assert_eq!(heads.check_mut("x", 120), Ok(()));
        assert!(heads.check("x", 119).is_err());
        assert_eq!(Heads::bhsd(2, 3, 4, 5).check_mut("x", 120), Ok(()));
        let shared = Heads {
            batch_step: 0,
            ..heads
        };
        assert_eq!(shared.check("x", 60), Ok(()));
        assert!(shared.check_mut("x", 60).is_err());
        let huge = Heads::bshd(usize::MAX, 2, 2, 2);
        assert_eq!(huge.check("x", 1), Err(KernelError::Overflow { what: "x" }));
        assert_eq!(Heads::bshd(0, 9, 9, 9).check_mut("x", 0), Ok(()));
    }
}
