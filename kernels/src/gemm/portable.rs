//! Products by the `gemm` crate, for processors without AVX-512.
#![expect(unsafe_code, reason = "raw strided views; the checked door is `gemm`")]

use super::raw::{RawA, RawB, RawC, RawTerm};
use crate::DType;
use crate::scratch::with_scratch;
use crate::team;
use crate::widen::widen_all;

/// Elements of a 16-bit weight that are widened at once.
const WIDENED: usize = 1 << 18;

/// One product by the `gemm` crate; 16-bit (or unaligned) operands are widened in blocks of stored rows.
///
/// # Safety
/// The views must lie in readable memory, C in writable memory that nobody else touches.
pub(super) unsafe fn run_portable(
    term: RawTerm,
    m: usize,
    n: usize,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    let RawTerm { alpha, a, b, k } = term;
    if b.dtype == DType::F32 && b.ptr.align_offset(align_of::<f32>()) == 0 {
        // SAFETY: the caller vouches for the views; B is `f32` and was found aligned.
        unsafe { crate_gemm((m, n, k), alpha, a, b, c, accumulate, parallel) };
        return;
    }
    let size = b.dtype.size();
    // Stored rows are columns of B if it is transposed, else depth.
    let transposed = b.cs != 1;
    let (lines, width, step) = if transposed {
        (n, k, b.cs)
    } else {
        (k, n, b.rs)
    };
    let block = (WIDENED / width.max(1)).max(1);
    for from in (0..lines).step_by(block) {
        let count = block.min(lines - from);
        with_scratch(count * width, |wide| {
            for (i, out) in wide.chunks_exact_mut(width).enumerate() {
                let line = b.ptr.wrapping_add((from + i) * step * size);
                // SAFETY: line `from + i` of B has `width` stored elements, for which the caller vouches.
                widen_all(
                    b.dtype,
                    unsafe { std::slice::from_raw_parts(line, width * size) },
                    out,
                );
            }
            let b = RawB::new(DType::F32, wide.as_ptr().cast(), width, transposed);
            if transposed {
                let c = RawC {
                    ptr: c.ptr.wrapping_add(from),
                    ld: c.ld,
                };
                // SAFETY: columns from..from + count of C, and as many widened lines, which are aligned.
                unsafe { crate_gemm((m, count, k), alpha, a, b, c, accumulate, parallel) };
            } else {
                let a = RawA {
                    ptr: a.ptr.wrapping_add(from * a.cs),
                    ..a
                };
                // SAFETY: depth from..from + count of A, and as many widened lines, which are aligned.
                unsafe {
                    crate_gemm(
                        (m, n, count),
                        alpha,
                        a,
                        b,
                        c,
                        accumulate || from > 0,
                        parallel,
                    );
                }
            }
        });
    }
}

/// The `gemm` crate on aligned `f32` views.
///
/// # Safety
/// As for [`run_portable`]; `b` must be aligned `f32`.
pub(super) unsafe fn crate_gemm(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    a: RawA,
    b: RawB,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    if parallel {
        // Whole vectors of columns: where they are cut changes no sum.
        let step = n.div_ceil(team::threads()).next_multiple_of(64);
        team::range(n.div_ceil(step), |part| {
            let (from, c) = (part * step, { c });
            let c = RawC {
                ptr: c.ptr.wrapping_add(from),
                ld: c.ld,
            };
            let shape = (m, step.min(n - from), k);
            // SAFETY: some columns of B and of C; tasks write disjoint ones.
            unsafe { crate_gemm(shape, alpha, a, b.columns_from(from), c, accumulate, false) };
        });
        return;
    }
    // SAFETY: pointers and strides describe the elements of the views, for which the caller vouches.
    unsafe {
        gemm::gemm::<f32>(
            m,
            n,
            k,
            c.ptr,
            1,
            c.ld as isize,
            accumulate,
            a.ptr,
            a.cs as isize,
            a.rs as isize,
            b.ptr.cast(),
            b.cs as isize,
            b.rs as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}
