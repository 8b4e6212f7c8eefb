//! What a unit of vector instructions brings to the product: its register tile, the layouts that feed it, and dot products.
//!
//! Packed layouts, all `f32`:
//! * left side: panels of [`Unit::MR`] rows, element `(i, k)` of a panel at `k * MR + i`;
//! * right side: panels of [`Unit::NR`] columns, element `(k, j)` of a panel at `k * NR + j`, columns past the end are zero.
#![expect(
    unsafe_code,
    reason = "what the units do with raw views; the checked door is `gemm`"
)]

use super::raw::{RawA, RawB};
use crate::DType;

/// Types of stored elements, as arguments that code is made for.
pub(super) const F32: u8 = 0;
pub(super) const F16: u8 = 1;
pub(super) const BF16: u8 = 2;

/// Lines of the right operand that [`Unit::dots`] takes at once.
pub(super) const LINES: usize = 8;
/// Rows of the left operand that [`Unit::dots`] takes at once.
pub(super) const ROWS: usize = 3;

/// A block of C from packed panels.
#[derive(Clone, Copy)]
pub(super) struct Block {
    /// Rows, columns and depth of the block.
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) kc: usize,
    /// Elements from one packed left panel to the next.
    pub(super) a_step: usize,
    /// Elements from one packed right panel to the next.
    pub(super) b_step: usize,
    pub(super) ldc: usize,
    pub(super) alpha: f32,
    pub(super) accumulate: bool,
}

/// Vector instructions of one kind. Every function needs them to be there.
pub(super) trait Unit {
    /// Rows of the register tile.
    const MR: usize;
    /// Columns of the register tile.
    const NR: usize;
    /// Depth of a packed block: a right panel of it stays in the first cache.
    const KC: usize;

    /// Packs rows `i0..i0+rows` (at most [`Unit::MR`]) and depth `k0..k0+kc` of `a` into one panel.
    ///
    /// # Safety
    /// The block must lie inside the view; `dst` must hold `kc * MR` elements that nobody else touches.
    unsafe fn pack_a(a: RawA, i0: usize, rows: usize, k0: usize, kc: usize, dst: *mut f32);

    /// Packs depth `k0..k0+kc` and columns `j0..j0+nc` of `b` into panels of [`Unit::NR`] columns, `kc * NR` elements each.
    ///
    /// # Safety
    /// The block must lie inside the view; `dst` must hold `nc.div_ceil(NR) * NR * kc` elements that nobody else touches.
    unsafe fn pack_b(b: RawB, k0: usize, kc: usize, j0: usize, nc: usize, dst: *mut f32) {
        // SAFETY: the caller vouches for the block and for `dst`; the elements are of the type that is read.
        unsafe {
            match b.dtype {
                DType::F32 => Self::pack_b_of::<F32>(b, k0, kc, j0, nc, dst),
                DType::F16 => Self::pack_b_of::<F16>(b, k0, kc, j0, nc, dst),
                DType::Bf16 => Self::pack_b_of::<BF16>(b, k0, kc, j0, nc, dst),
            }
        }
    }

    /// [`Unit::pack_b`] for elements of type `D`.
    ///
    /// # Safety
    /// As for [`Unit::pack_b`], of which the elements must be of type `D`.
    unsafe fn pack_b_of<const D: u8>(
        b: RawB,
        k0: usize,
        kc: usize,
        j0: usize,
        nc: usize,
        dst: *mut f32,
    );

    /// Computes `block` of C from packed panels.
    ///
    /// # Safety
    /// `a` and `b` must hold the packed panels the block speaks of, and `c` the block, which nobody else touches.
    unsafe fn multiply(block: Block, a: *const f32, b: *const f32, c: *mut f32);

    /// The first `k` elements of `rows` rows of `a` (at most [`ROWS`], each with consecutive elements) times those of `lines` columns of
    /// `b` (at most [`LINES`], each stored as a line): sums by row and line.
    ///
    /// # Safety
    /// The rows and the lines must be readable.
    unsafe fn dots(a: RawA, rows: usize, b: RawB, lines: usize, k: usize) -> [[f32; LINES]; ROWS] {
        // SAFETY: the caller vouches for the rows and the lines; the elements are of the type that is read.
        unsafe {
            match b.dtype {
                DType::F32 => Self::dots_of::<F32>(a, rows, b, lines, k),
                DType::F16 => Self::dots_of::<F16>(a, rows, b, lines, k),
                DType::Bf16 => Self::dots_of::<BF16>(a, rows, b, lines, k),
            }
        }
    }

    /// [`Unit::dots`] for elements of type `D`.
    ///
    /// # Safety
    /// As for [`Unit::dots`], of which the lines must be of type `D`.
    unsafe fn dots_of<const D: u8>(
        a: RawA,
        rows: usize,
        b: RawB,
        lines: usize,
        k: usize,
    ) -> [[f32; LINES]; ROWS];
}
