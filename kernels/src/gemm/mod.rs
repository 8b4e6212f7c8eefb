//! Sums of matrix products `C (=|+=) Σ alpha · op(A) · op(B)` on row-major `f32`, with weights read in the layout and type they are stored in.
//!
//! A sum of several products is one pass over C: a frozen weight and its low-rank update cost one write of the result. Weights are packed
//! panel by panel while they are used, never copied as a whole; with few rows they are not packed at all. With AVX-512 and with AVX2 the
//! register tile is our own; elsewhere the `gemm` crate multiplies and weights of 16 bits are widened in blocks.
//!
//! Blocking follows Goto and van de Geijn, "Anatomy of High-Performance Matrix Multiplication" (2008): a panel of B in the first
//! cache, a block of A in the second. Each element of C is summed by one task in the order of the depth, so threads do not change
//! results.
//!
//! Inside: `matrix` has the checked operands, `raw` what remains of them, `block` the sizes that all share; `portable`, `blocked` and
//! `skinny` over a `unit` (`avx512`, `avx2`), and `bf16` multiply; `packed` prepares right operands for attention.
#![expect(
    unsafe_code,
    reason = "hands checked operands to kernels that read and write through pointers"
)]

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(all(target_arch = "x86_64", target_os = "linux"))]
mod bf16;
pub(crate) mod block;
#[cfg(target_arch = "x86_64")]
mod blocked;
mod matrix;
pub(crate) mod packed;
mod portable;
pub(crate) mod raw;
#[cfg(target_arch = "x86_64")]
mod skinny;
#[cfg(target_arch = "x86_64")]
mod unit;

pub use matrix::{Mat, MatMut, Rhs, Term, WeightRef};

use crate::Result;
use crate::isa::Isa;
use crate::team;
use block::SERIAL_OPS;
use raw::{RawC, RawTerm};

/// In which precision the operands of a product may be rounded; sums are always `f32`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Operands as they are.
    #[default]
    F32,
    /// Operands may be rounded to bfloat16, where the machine has instructions for it: AMX tiles that the system lets us use, or AVX-512's
    /// dot product of bfloat16. Elsewhere the same as [`Precision::F32`].
    Bf16,
}

/// `C = Σ alpha · op(A) · op(B)` over `terms`, or `C += …` if `accumulate`. No terms is a sum of zero.
///
/// Products too small for [`Precision::Bf16`] are computed in `f32`.
pub fn gemm(
    precision: Precision,
    terms: &[Term<'_>],
    accumulate: bool,
    c: MatMut<'_>,
) -> Result<()> {
    gemm_on(Isa::detect(), precision, terms, accumulate, c)
}

/// [`gemm()`] with the given instructions.
#[expect(
    clippy::needless_pass_by_value,
    reason = "the result is borrowed for the call"
)]
pub(crate) fn gemm_on(
    isa: Isa,
    precision: Precision,
    terms: &[Term<'_>],
    accumulate: bool,
    c: MatMut<'_>,
) -> Result<()> {
    let (m, n) = (c.rows, c.cols);
    let raw = terms
        .iter()
        .map(|term| term.raw(m, n))
        .collect::<Result<Vec<_>>>()?;
    let out = RawC {
        ptr: c.data.as_mut_ptr(),
        ld: c.stride,
    };
    #[cfg(all(target_arch = "x86_64", target_os = "linux"))]
    if precision == Precision::Bf16
        && isa.unit() != crate::isa::Unit::None
        && n > 2 * block::THIN
        && m >= 8
        && raw.iter().any(|term| term.k > 0)
    {
        // SAFETY: every operand was checked against its slice, C is borrowed mutably, and the unit was detected.
        unsafe { bf16::run(isa.unit(), &raw, m, n, out, accumulate) };
        return Ok(());
    }
    let _ = precision;
    // SAFETY: every operand was checked against its slice, and C is borrowed mutably.
    unsafe { run(isa, &raw, m, n, out, accumulate) };
    Ok(())
}

/// Multiplies in `f32`, on several threads if it is worth it.
///
/// # Safety
/// The views must lie in readable memory, C in writable memory that nobody else touches.
unsafe fn run(isa: Isa, terms: &[RawTerm], m: usize, n: usize, c: RawC, accumulate: bool) {
    if m == 0 || n == 0 {
        return;
    }
    if !accumulate && terms.iter().all(|term| term.k == 0) {
        for i in 0..m {
            // SAFETY: row i of C, which the caller lets us write.
            unsafe { std::slice::from_raw_parts_mut(c.ptr.add(i * c.ld), n) }.fill(0.0);
        }
        return;
    }
    let depth: usize = terms.iter().map(|term| term.k).sum();
    let parallel = 2 * m * n * depth >= SERIAL_OPS && team::threads() > 1;
    #[cfg(target_arch = "x86_64")]
    {
        use crate::isa::Level;
        // SAFETY: the caller vouches for the views and for C; an `Isa` of a level proves its instructions.
        unsafe {
            match isa.level() {
                Level::Avx512 => {
                    return blocked::run::<avx512::Avx512>(terms, m, n, c, accumulate, parallel);
                }
                Level::Avx2 => {
                    return blocked::run::<avx2::Avx2>(terms, m, n, c, accumulate, parallel);
                }
                Level::Portable => {}
            }
        }
    }
    let _ = isa;
    let mut accumulate = accumulate;
    for term in terms.iter().filter(|term| term.k > 0) {
        // SAFETY: the caller vouches for the views of each term and for C.
        unsafe { portable::run_portable(*term, m, n, c, accumulate, parallel) };
        accumulate = true;
    }
}

#[cfg(test)]
mod tests;
