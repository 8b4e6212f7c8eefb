//! Matrix products `C (=|+=) Σ alpha · op(A) · op(B)` on row-major `f32`, with weights read in the layout and type they are stored in.
//!
//! A sum of several products ([`gemm_sum`]) is one pass over C: a frozen weight and its low-rank update cost one write of the result.
//! Weights are packed panel by panel while they are used, never copied as a whole. With AVX-512 the register tile is our own; elsewhere
//! the `gemm` crate multiplies and weights of 16 bits are widened in blocks.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a panel of B in the first
//! cache, a block of A in the second. Each element of C is summed by one task in the order of the depth, so threads do not change
//! results.
#![expect(
    unsafe_code,
    reason = "tiles of C are written through a pointer by several tasks; every door here checks the sizes"
)]

pub use super::matrix::{DType, Mat, MatMut, Rhs, Term, WeightRef};

pub(super) use super::gemm_packed::{PANEL, Packed, multiply_on_thread, pack, packed_len};
use super::matrix::widen;
use super::scratch::with_scratch;
use super::{Isa, KernelError, Result, check_len, product};
use rayon::prelude::*;

/// Depth of a packed block.
pub(super) const KC: usize = 512;
/// Operations below which a product stays on one thread.
pub(super) const SERIAL_OPS: usize = 1 << 21;
/// Elements of a 16-bit weight widened at once where there is no packing.
const WIDENED: usize = 1 << 18;

/// `C = alpha · op(A) · op(B)`, or `C += …` if `accumulate`.
pub fn gemm(term: Term<'_>, accumulate: bool, c: MatMut<'_>) -> Result<()> {
    gemm_sum(&[term], accumulate, c)
}

/// `C = Σ alpha · op(A) · op(B)` over `terms`, or `C += …` if `accumulate`. No terms is a sum of zero.
pub fn gemm_sum(terms: &[Term<'_>], accumulate: bool, c: MatMut<'_>) -> Result<()> {
    gemm_sum_on(Isa::detect(), terms, accumulate, c)
}

/// In which precision the operands of a product may be rounded; sums are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Operands as they are.
    #[default]
    F32,
    /// Operands may be rounded to bfloat16, where the CPU has instructions for it (see [`has_bf16`]).
    Bf16,
}

/// Whether [`Precision::Bf16`] is any different from [`Precision::F32`] on this machine: AMX tiles that the system lets us use, or
/// AVX-512's dot product of bfloat16.
pub fn has_bf16() -> bool {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    return super::gemm_bf16::Unit::detect().is_some();
    #[cfg(not(all(target_arch = "x86_64", target_os = "linux")))]
    return false;
}

/// [`gemm_sum`] with operands in the given precision. Products too small for it stay in `f32`.
pub fn gemm_sum_in(
    precision: Precision,
    terms: &[Term<'_>],
    accumulate: bool,
    c: MatMut<'_>,
) -> Result<()> {
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if precision == Precision::Bf16
        && let Some(unit) = super::gemm_bf16::Unit::detect()
        && c.cols > super::gemm_avx512::THIN * 2
        && c.rows >= 8
    {
        let raw = terms
            .iter()
            .map(|term| term.raw(c.rows, c.cols))
            .collect::<Result<Vec<_>>>()?;
        if raw.iter().any(|term| term.k > 0) {
            let out = RawC {
                ptr: c.data.as_mut_ptr(),
                ld: c.stride,
            };
            // SAFETY: every operand was checked against its slice, and C is borrowed mutably.
            unsafe { super::gemm_bf16::run(unit, &raw, c.rows, c.cols, out, accumulate) };
            return Ok(());
        }
    }
    let _ = precision;
    gemm_sum(terms, accumulate, c)
}

#[expect(
    clippy::needless_pass_by_value,
    reason = "the result is borrowed for the call"
)]
fn gemm_sum_on(isa: Isa, terms: &[Term<'_>], accumulate: bool, c: MatMut<'_>) -> Result<()> {
    let (m, n) = (c.rows, c.cols);
    let raw = terms
        .iter()
        .map(|term| term.raw(m, n))
        .collect::<Result<Vec<_>>>()?;
    let out = RawC {
        ptr: c.data.as_mut_ptr(),
        ld: c.stride,
    };
    // SAFETY: every operand was checked against its slice, and C is borrowed mutably.
    unsafe { run(isa, &raw, m, n, out, accumulate, true) };
    Ok(())
}

/// Shapes of a batch of equal products; matrices are dense, batches `*_step` elements apart (0 repeats one matrix).
#[derive(Clone, Copy, Debug)]
pub struct Batch {
    /// Number of products.
    pub count: usize,
    /// Rows of each result.
    pub m: usize,
    /// Columns of each result.
    pub n: usize,
    /// Depth.
    pub k: usize,
    /// Elements from one A to the next.
    pub a_step: usize,
    /// Elements from one B to the next.
    pub b_step: usize,
    /// Whether A is stored `[K, M]`.
    pub trans_a: bool,
    /// Whether B is stored `[N, K]`.
    pub trans_b: bool,
}

/// `C[i] (=|+=) alpha · op(A[i]) · op(B[i])` for a batch; C is dense `[count, M, N]`.
pub fn gemm_batched(
    batch: Batch,
    alpha: f32,
    a: &[f32],
    b: &[f32],
    accumulate: bool,
    c: &mut [f32],
) -> Result<()> {
    let Batch {
        count,
        m,
        n,
        k,
        a_step,
        b_step,
        trans_a,
        trans_b,
    } = batch;
    let (a_len, b_len) = (
        product("left batch", &[m, k])?,
        product("right batch", &[k, n])?,
    );
    check_len(
        "result batch",
        c.len(),
        product("result batch", &[count, m, n])?,
    )?;
    let reach = |step: usize, len: usize| {
        product("batch", &[count.saturating_sub(1), step]).map(|s| s + len)
    };
    for (what, have, need) in [
        ("left batch", a.len(), reach(a_step, a_len)?),
        ("right batch", b.len(), reach(b_step, b_len)?),
    ] {
        if count > 0 && have < need {
            return Err(KernelError::Length {
                what,
                found: have,
                expected: need,
            });
        }
    }
    if m * n == 0 || count == 0 {
        return Ok(());
    }
    let (isa, many) = (Isa::detect(), count >= rayon::current_num_threads());
    let (lda, ldb) = (if trans_a { m } else { k }, if trans_b { k } else { n });
    let one = |(i, c): (usize, &mut [f32])| {
        let a = RawA::new(a[i * a_step..].as_ptr(), lda, trans_a);
        let b = RawB::new(DType::F32, b[i * b_step..].as_ptr().cast(), ldb, trans_b);
        let c = RawC {
            ptr: c.as_mut_ptr(),
            ld: n,
        };
        // SAFETY: the slices hold a whole matrix from these offsets on (checked above); `c` is this task's own.
        unsafe {
            run(
                isa,
                &[RawTerm { alpha, a, b, k }],
                m,
                n,
                c,
                accumulate,
                !many,
            );
        }
    };
    if many && 2 * m * n * k * count >= SERIAL_OPS {
        c.par_chunks_mut(m * n).enumerate().for_each(one);
    } else {
        c.chunks_mut(m * n).enumerate().for_each(one);
    }
    Ok(())
}

/// An unchecked left operand: element `(i, k)` at `i * rs + k * cs`, one of them 1.
#[derive(Clone, Copy)]
pub(super) struct RawA {
    pub(super) ptr: *const f32,
    pub(super) rs: usize,
    pub(super) cs: usize,
}

impl RawA {
    /// A matrix of row stride `stride`, read transposed if `trans`.
    pub(super) fn new(ptr: *const f32, stride: usize, trans: bool) -> Self {
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

    pub(super) fn rows_from(self, i: usize) -> Self {
        Self {
            ptr: self.ptr.wrapping_add(i * self.rs),
            ..self
        }
    }
}

/// An unchecked right operand: element `(k, j)` at `k * rs + j * cs` elements, one of them 1.
#[derive(Clone, Copy)]
pub(super) struct RawB {
    pub(super) ptr: *const u8,
    pub(super) dtype: DType,
    pub(super) rs: usize,
    pub(super) cs: usize,
}

impl RawB {
    /// A matrix of row stride `stride`, read transposed if `trans`.
    pub(super) fn new(dtype: DType, ptr: *const u8, stride: usize, trans: bool) -> Self {
        let (rs, cs) = if trans { (1, stride) } else { (stride, 1) };
        Self { ptr, dtype, rs, cs }
    }
}

/// An unchecked result.
#[derive(Clone, Copy)]
pub(super) struct RawC {
    pub(super) ptr: *mut f32,
    pub(super) ld: usize,
}

/// One unchecked product.
#[derive(Clone, Copy)]
pub(super) struct RawTerm {
    pub(super) alpha: f32,
    pub(super) a: RawA,
    pub(super) b: RawB,
    pub(super) k: usize,
}

// SAFETY: the views are read-only, or written in disjoint tiles; the callers of `run` vouch for the memory behind them.
unsafe impl Send for RawA {}
// SAFETY: as above.
unsafe impl Sync for RawA {}
// SAFETY: as above.
unsafe impl Send for RawTerm {}
// SAFETY: as above.
unsafe impl Sync for RawTerm {}
// SAFETY: as above.
unsafe impl Send for RawC {}
// SAFETY: as above.
unsafe impl Sync for RawC {}

/// Multiplies, on several threads if `parallel` and worth it.
///
/// # Safety
/// The views must lie in readable memory, C in writable memory that nobody else touches.
pub(super) unsafe fn run(
    isa: Isa,
    terms: &[RawTerm],
    m: usize,
    n: usize,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    if !accumulate && terms.iter().all(|term| term.k == 0) {
        for i in 0..m {
            // SAFETY: row i of C.
            unsafe { std::slice::from_raw_parts_mut(c.ptr.add(i * c.ld), n) }.fill(0.0);
        }
        return;
    }
    let depth: usize = terms.iter().map(|term| term.k).sum();
    let parallel = parallel && 2 * m * n * depth >= SERIAL_OPS && rayon::current_num_threads() > 1;
    #[cfg(target_arch = "x86_64")]
    if isa == Isa::Avx512 {
        // SAFETY: the caller's contract; the instruction set was detected.
        unsafe { super::gemm_blocked::run_avx512(terms, m, n, c, accumulate, parallel) };
        return;
    }
    let _ = isa;
    let mut accumulate = accumulate;
    for term in terms.iter().filter(|term| term.k > 0) {
        // SAFETY: the caller's contract.
        unsafe { run_portable(*term, m, n, c, accumulate, parallel) };
        accumulate = true;
    }
}

/// One product by the `gemm` crate; 16-bit (or unaligned) operands are widened in blocks of stored rows.
///
/// # Safety
/// As for [`run`].
unsafe fn run_portable(
    term: RawTerm,
    m: usize,
    n: usize,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    let RawTerm { alpha, a, b, k } = term;
    if b.dtype == DType::F32 && b.ptr.align_offset(align_of::<f32>()) == 0 {
        // SAFETY: the caller's contract; aligned.
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
                // SAFETY: a stored row of `width` elements.
                widen(
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
                // SAFETY: columns from..from + count of C.
                unsafe { crate_gemm((m, count, k), alpha, a, b, c, accumulate, parallel) };
            } else {
                let a = RawA {
                    ptr: a.ptr.wrapping_add(from * a.cs),
                    ..a
                };
                // SAFETY: depth from..from + count.
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
/// As for [`run`]; `b` must be aligned `f32`.
pub(super) unsafe fn crate_gemm(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    a: RawA,
    b: RawB,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    let threads = if parallel {
        gemm::Parallelism::Rayon(0)
    } else {
        gemm::Parallelism::None
    };
    // SAFETY: the caller's contract; strides describe the same elements.
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
            threads,
        );
    }
}

#[cfg(test)]
mod tests;
