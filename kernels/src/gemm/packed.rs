//! Right operands packed once for many products on one thread, as attention needs them.
#![expect(unsafe_code, reason = "raw strided views; the callers check them")]

#[cfg(target_arch = "x86_64")]
use super::avx2::Avx2;
#[cfg(target_arch = "x86_64")]
use super::avx512::Avx512;
use super::block::PANEL;
use super::portable::crate_gemm;
use super::raw::{RawA, RawB, RawC};
#[cfg(target_arch = "x86_64")]
use super::unit::{Block, Unit};
use crate::isa::Isa;
#[cfg(target_arch = "x86_64")]
use crate::isa::Level;
#[cfg(target_arch = "x86_64")]
use crate::scratch::with_scratch;

/// A right operand prepared for many products on one thread.
pub(crate) enum Packed<'a> {
    /// Packed panels for depth blocks, each over all columns.
    #[cfg(target_arch = "x86_64")]
    Panels {
        /// Whose panels they are.
        level: Level,
        /// The panels; block `k0` starts at `k0 * n` rounded up to whole panels.
        data: &'a [f32],
        /// Columns, rounded up to whole panels.
        width: usize,
        /// Row and column that products begin at.
        from: (usize, usize),
    },
    /// The view itself.
    View(RawB, std::marker::PhantomData<&'a [f32]>),
}

impl Packed<'_> {
    /// The part from row `depth` and column `column` on, a multiple of [`PANEL`].
    pub(crate) fn part(&self, depth: usize, column: usize) -> Packed<'_> {
        debug_assert!(column.is_multiple_of(PANEL), "parts begin with a panel");
        match *self {
            #[cfg(target_arch = "x86_64")]
            Packed::Panels {
                level,
                data,
                width,
                from,
            } => Packed::Panels {
                level,
                data,
                width,
                from: (from.0 + depth, from.1 + column),
            },
            Packed::View(b, lifetime) => {
                let elements = depth * b.rs + column * b.cs;
                let ptr = b.ptr.wrapping_add(elements * b.dtype.size());
                Packed::View(RawB { ptr, ..b }, lifetime)
            }
        }
    }
}

/// Elements of scratch that [`pack`] needs for a `[k, n]` operand.
pub(crate) fn packed_len(k: usize, n: usize) -> usize {
    #[cfg(target_arch = "x86_64")]
    return k * n.next_multiple_of(PANEL);
    #[cfg(not(target_arch = "x86_64"))]
    return 0 * k * n;
}

/// Prepares `b` (`[k, n]`) in `space`.
///
/// # Safety
/// The view must be of aligned `f32` and readable as long as the result is used.
pub(crate) unsafe fn pack(isa: Isa, b: RawB, k: usize, n: usize, space: &mut [f32]) -> Packed<'_> {
    #[cfg(target_arch = "x86_64")]
    if isa.level() != Level::Portable {
        let width = n.next_multiple_of(PANEL);
        let data = &mut space[..k * width];
        // SAFETY: the caller vouches for the view; an `Isa` of a level proves its instructions; there is room for all panels.
        unsafe {
            match isa.level() {
                Level::Avx512 => fill::<Avx512>(b, k, n, data),
                _ => fill::<Avx2>(b, k, n, data),
            }
        }
        return Packed::Panels {
            level: isa.level(),
            data,
            width,
            from: (0, 0),
        };
    }
    let _ = (isa, k, n, space);
    Packed::View(b, std::marker::PhantomData)
}

/// Packs all of `b`, block of depth by block.
///
/// # Safety
/// As for [`pack`]; `data` must hold `k` rows of `n` columns rounded up to [`PANEL`]; the unit's instructions must be present.
#[cfg(target_arch = "x86_64")]
unsafe fn fill<U: Unit>(b: RawB, k: usize, n: usize, data: &mut [f32]) {
    let width = n.next_multiple_of(PANEL);
    for k0 in (0..k).step_by(U::KC) {
        let kc = U::KC.min(k - k0);
        // SAFETY: block k0 of the packed operand has kc * width elements.
        unsafe { U::pack_b(b, k0, kc, 0, n, data.as_mut_ptr().add(k0 * width)) };
    }
}

/// `C[m, n] (=|+=) alpha · A[m, k] · B` on this thread; `n` and `k` may be less than what was packed.
///
/// # Safety
/// A must lie in readable memory, C in writable memory that nobody else touches; B must have `k` rows and `n` columns.
pub(crate) unsafe fn multiply_on_thread(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    a: RawA,
    b: &Packed<'_>,
    c: RawC,
    accumulate: bool,
) {
    if m == 0 || n == 0 {
        return;
    }
    if k == 0 {
        for i in 0..if accumulate { 0 } else { m } {
            // SAFETY: row i of C, which the caller lets us write.
            unsafe { std::slice::from_raw_parts_mut(c.ptr.add(i * c.ld), n) }.fill(0.0);
        }
        return;
    }
    match *b {
        #[cfg(target_arch = "x86_64")]
        Packed::Panels {
            level,
            data,
            width,
            from,
        } => {
            let panels = (data, width, from);
            // SAFETY: the caller vouches for A and C, and that B has these rows and columns; panels of a level prove its instructions.
            unsafe {
                match level {
                    Level::Avx512 => panelled::<Avx512>((m, n, k), alpha, a, panels, c, accumulate),
                    _ => panelled::<Avx2>((m, n, k), alpha, a, panels, c, accumulate),
                }
            }
        }
        // SAFETY: the caller vouches for the views; B was given as aligned `f32`.
        Packed::View(b, _) => unsafe { crate_gemm((m, n, k), alpha, a, b, c, accumulate, false) },
    }
}

/// [`multiply_on_thread`] with packed panels: their elements, their columns, and where the operand begins.
///
/// # Safety
/// As for [`multiply_on_thread`]; the panels must be those of the unit, whose instructions must be present.
#[cfg(target_arch = "x86_64")]
unsafe fn panelled<U: Unit>(
    (m, n, k): (usize, usize, usize),
    alpha: f32,
    a: RawA,
    (data, width, from): (&[f32], usize, (usize, usize)),
    c: RawC,
    accumulate: bool,
) {
    let packed_depth = data.len() / width.max(1);
    with_scratch(m.next_multiple_of(U::MR) * U::KC, |left| {
        let mut done = 0;
        while done < k {
            let row = from.0 + done;
            let k0 = row / U::KC * U::KC;
            // The panels of a block are as deep as the block was when it was packed.
            let deep = U::KC.min(packed_depth - k0);
            let kc = (k0 + deep - row).min(k - done);
            let block = Block {
                m,
                n,
                kc,
                a_step: kc * U::MR,
                b_step: deep * U::NR,
                ldc: c.ld,
                alpha,
                accumulate: accumulate || done > 0,
            };
            let panel = k0 * width + from.1 * deep + (row - k0) * U::NR;
            // SAFETY: panels for m rows; rows of block k0 of B; C is the caller's.
            unsafe {
                for (p, i) in (0..m).step_by(U::MR).enumerate() {
                    let to = left.as_mut_ptr().add(p * kc * U::MR);
                    U::pack_a(a, i, U::MR.min(m - i), done, kc, to);
                }
                U::multiply(block, left.as_ptr(), data.as_ptr().add(panel), c.ptr);
            }
            done += kc;
        }
    });
}
