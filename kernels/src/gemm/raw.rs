//! Operands of products without lifetimes: what remains of checked matrices inside of the kernels.
#![expect(
    unsafe_code,
    reason = "views that several tasks share; whoever multiplies with them vouches for the memory"
)]

use crate::DType;

/// An unchecked left operand: element `(i, k)` at `i * rs + k * cs`, one of them 1.
#[derive(Clone, Copy)]
pub(crate) struct RawA {
    pub(crate) ptr: *const f32,
    pub(crate) rs: usize,
    pub(crate) cs: usize,
}

impl RawA {
    /// A matrix of row stride `stride`, read transposed if `trans`.
    pub(crate) fn new(ptr: *const f32, stride: usize, trans: bool) -> Self {
        if trans {
            Self {
                ptr,
                rs: 1,
                cs: stride,
            }
        } else {
            Self {
                ptr,
                rs: stride,
                cs: 1,
            }
        }
    }

    pub(crate) fn rows_from(self, i: usize) -> Self {
        Self {
            ptr: self.ptr.wrapping_add(i * self.rs),
            ..self
        }
    }
}

/// An unchecked right operand: element `(k, j)` at `k * rs + j * cs` elements, one of them 1.
#[derive(Clone, Copy)]
pub(crate) struct RawB {
    pub(crate) ptr: *const u8,
    pub(crate) dtype: DType,
    pub(crate) rs: usize,
    pub(crate) cs: usize,
}

impl RawB {
    /// A matrix of row stride `stride`, read transposed if `trans`.
    pub(crate) fn new(dtype: DType, ptr: *const u8, stride: usize, trans: bool) -> Self {
        let (rs, cs) = if trans { (1, stride) } else { (stride, 1) };
        Self { ptr, dtype, rs, cs }
    }

    pub(crate) fn columns_from(self, j: usize) -> Self {
        Self {
            ptr: self.ptr.wrapping_add(j * self.cs * self.dtype.size()),
            ..self
        }
    }
}

/// An unchecked result.
#[derive(Clone, Copy)]
pub(crate) struct RawC {
    pub(crate) ptr: *mut f32,
    pub(crate) ld: usize,
}

impl RawC {
    /// Writes, or adds, `alpha` times the first sums to `rows` and `columns`, each given by its first and their number.
    ///
    /// # Safety
    /// These elements must lie in writable memory that nobody else touches.
    pub(crate) unsafe fn put<const J: usize, const I: usize>(
        self,
        rows: (usize, usize),
        columns: (usize, usize),
        alpha: f32,
        sums: &[[f32; J]; I],
        accumulate: bool,
    ) {
        for (i, sums) in sums.iter().enumerate().take(rows.1) {
            let line = self.ptr.wrapping_add((rows.0 + i) * self.ld + columns.0);
            for (j, &sum) in sums.iter().enumerate().take(columns.1) {
                // SAFETY: the caller vouches for the element.
                unsafe {
                    let at = line.add(j);
                    *at = alpha * sum + if accumulate { *at } else { 0.0 };
                }
            }
        }
    }
}

/// One unchecked product.
#[derive(Clone, Copy)]
pub(crate) struct RawTerm {
    pub(crate) alpha: f32,
    pub(crate) a: RawA,
    pub(crate) b: RawB,
    pub(crate) k: usize,
}

// SAFETY: the views are read-only; whoever multiplies with them vouches for the memory behind them for as long as the tasks run.
unsafe impl Send for RawA {}
// SAFETY: as for `Send`: nothing is written through the view.
unsafe impl Sync for RawA {}
// SAFETY: a read-only view, as `RawA`.
unsafe impl Send for RawB {}
// SAFETY: a read-only view, as `RawA`.
unsafe impl Sync for RawB {}
// SAFETY: both operands are read-only views, as `RawA`.
unsafe impl Send for RawTerm {}
// SAFETY: both operands are read-only views, as `RawA`.
unsafe impl Sync for RawTerm {}
// SAFETY: tasks write disjoint tiles of the result, and no other code has access to it while they run.
unsafe impl Send for RawC {}
// SAFETY: tasks write disjoint tiles of the result through their copies of the view.
unsafe impl Sync for RawC {}

impl RawTerm {
    /// Splits the depth into slices of at most `step`.
    pub(crate) fn slices(self, step: usize) -> impl Iterator<Item = RawTerm> {
        (0..self.k).step_by(step).map(move |k0| {
            let (mut a, mut b) = (self.a, self.b);
            a.ptr = a.ptr.wrapping_add(k0 * a.cs);
            b.ptr = b.ptr.wrapping_add(k0 * b.rs * b.dtype.size());
            RawTerm {
                alpha: self.alpha,
                a,
                b,
                k: step.min(self.k - k0),
            }
        })
    }
}
