//! Products with few rows, as a step of decoding has them: they are read from memory at its speed, in the layout and type they are stored in.
#![expect(
    unsafe_code,
    reason = "raw strided views and tasks on parts of C; the checked door is `gemm`"
)]

use super::raw::{RawA, RawB, RawC, RawTerm};
use super::unit::{LINES, ROWS, Unit};
use crate::DType;
use crate::isa::Isa;
use crate::scratch::with_scratch;
use crate::team;
use crate::widen::widen_all;

/// Stored elements below which such a product stays on one thread.
const SERIAL: usize = 1 << 18;
/// Columns of C that a task computes at least.
const LEAST: usize = 32;
/// Columns of C that one pass over some depth works on.
const WIDE: usize = 512;
/// Stored rows that are added to a row of C at once.
const DEEP: usize = 8;

/// One product with few rows.
///
/// # Safety
/// The views must lie in readable memory, C in writable memory that nobody else touches; the unit's instructions must be present.
pub(super) unsafe fn skinny<U: Unit>(term: RawTerm, m: usize, n: usize, c: RawC, accumulate: bool) {
    let RawTerm { alpha, a, b, k } = term;
    let lined = b.cs != 1 || k == 1;
    // Dot products take rows of A; sums over stored rows take its columns, scaled.
    with_scratch(if lined && a.cs == 1 { 0 } else { m * k }, |left| {
        let a = if lined && a.cs == 1 {
            a
        } else {
            let by = if lined { 1.0 } else { alpha };
            for (i, row) in left.chunks_exact_mut(k).enumerate() {
                for (x, to) in row.iter_mut().enumerate() {
                    // SAFETY: an element of A.
                    *to = by * unsafe { *a.ptr.add(i * a.rs + x * a.cs) };
                }
            }
            RawA::new(left.as_ptr(), k, false)
        };
        let task = |from: usize, columns: usize| {
            // SAFETY: columns from..from + columns of B and C; tasks write disjoint columns; the instructions are present.
            unsafe {
                if lined {
                    by_lines::<U>(alpha, a, b, (m, k), (from, columns), c, accumulate);
                } else {
                    by_rows(a, b, (m, k), (from, columns), c, accumulate);
                }
            }
        };
        let threads = team::threads();
        if n * k < SERIAL || threads == 1 {
            task(0, n);
            return;
        }
        let step = n.div_ceil(4 * threads).next_multiple_of(LEAST);
        team::range(n.div_ceil(step), |p| {
            task(p * step, step.min(n - p * step));
        });
    });
}

/// Columns of B that are stored as lines: dot products.
///
/// # Safety
/// As for [`skinny`], for these columns; A must have rows of consecutive elements.
unsafe fn by_lines<U: Unit>(
    alpha: f32,
    a: RawA,
    b: RawB,
    (m, k): (usize, usize),
    (from, columns): (usize, usize),
    c: RawC,
    accumulate: bool,
) {
    for j in (from..from + columns).step_by(LINES) {
        let lines = LINES.min(from + columns - j);
        for i in (0..m).step_by(ROWS) {
            let rows = ROWS.min(m - i);
            // SAFETY: rows from i on and columns from j on, for which the caller vouches.
            unsafe {
                let sums = U::dots(a.rows_from(i), rows, b.columns_from(j), lines, k);
                c.put((i, rows), (j, lines), alpha, &sums, accumulate);
            }
        }
    }
}

/// Rows of B: each is added to the rows of C, in the order of the depth.
///
/// # Safety
/// As for [`skinny`], for these columns; A must have rows of consecutive elements, which are scaled.
unsafe fn by_rows(
    a: RawA,
    b: RawB,
    (m, k): (usize, usize),
    (from, columns): (usize, usize),
    c: RawC,
    accumulate: bool,
) {
    let isa = Isa::detect();
    let size = b.dtype.size();
    let as_stored = b.dtype == DType::F32 && b.ptr.align_offset(align_of::<f32>()) == 0;
    with_scratch(if as_stored { 0 } else { DEEP * WIDE }, |wide| {
        for j in (from..from + columns).step_by(WIDE) {
            let width = WIDE.min(from + columns - j);
            for x0 in (0..k).step_by(DEEP) {
                let deep = DEEP.min(k - x0);
                let mut rows: [&[f32]; DEEP] = [&[]; DEEP];
                let mut space = &mut *wide;
                for (x, row) in rows.iter_mut().enumerate().take(deep) {
                    let at = b.ptr.wrapping_add(((x0 + x) * b.rs + j) * size);
                    if as_stored {
                        // SAFETY: `width` elements of row x0 + x from column j on, for which the caller vouches; they are aligned.
                        *row = unsafe { std::slice::from_raw_parts(at.cast(), width) };
                    } else {
                        let (to, rest) = space.split_at_mut(width);
                        // SAFETY: the bytes of `width` elements of row x0 + x from column j on.
                        let stored = unsafe { std::slice::from_raw_parts(at, width * size) };
                        widened(isa, b.dtype, stored, to);
                        (*row, space) = (to, rest);
                    }
                }
                for i in 0..m {
                    // SAFETY: a row of A, and one of C at these columns.
                    let (left, to) = unsafe {
                        let left = std::slice::from_raw_parts(a.ptr.add(i * a.rs + x0), deep);
                        let to = c.ptr.add(i * c.ld + j);
                        (left, std::slice::from_raw_parts_mut(to, width))
                    };
                    if x0 == 0 && !accumulate {
                        to.fill(0.0);
                    }
                    add_rows(isa, left, rows, to);
                }
            }
        }
    });
}

multiversion! {
    /// Widens stored elements.
    fn widened(dtype: DType, bytes: &[u8], out: &mut [f32]) = widened_body
}

#[expect(clippy::inline_always, reason = "compiled once per instruction set")]
#[inline(always)]
fn widened_body<const FMA: bool>(dtype: DType, bytes: &[u8], out: &mut [f32]) {
    widen_all(dtype, bytes, out);
}

multiversion! {
    /// Adds rows, each times its element of `left`.
    fn add_rows(left: &[f32], rows: [&[f32]; DEEP], to: &mut [f32]) = add_rows_body
}

#[expect(clippy::inline_always, reason = "compiled once per instruction set")]
#[inline(always)]
fn add_rows_body<const FMA: bool>(left: &[f32], rows: [&[f32]; DEEP], to: &mut [f32]) {
    let add = |sum: f32, x: f32, y: f32| if FMA { x.mul_add(y, sum) } else { x * y + sum };
    if let Ok(left) = <[f32; DEEP]>::try_from(left) {
        let rows = rows.map(|row| &row[..to.len()]);
        for (j, to) in to.iter_mut().enumerate() {
            let mut sum = *to;
            for x in 0..DEEP {
                sum = add(sum, left[x], rows[x][j]);
            }
            *to = sum;
        }
        return;
    }
    for (&left, row) in left.iter().zip(rows) {
        for (to, &value) in to.iter_mut().zip(row) {
            *to = add(*to, left, value);
        }
    }
}
