//! Packing of operands as bfloat16.
#![expect(
    unsafe_code,
    reason = "SIMD intrinsics and raw strided views; the checked door is `gemm`"
)]

use super::{DEPTH, SIDE, TILES};
use crate::DType;
use crate::gemm::avx512::{load, load_transposed, mask, transpose};
use crate::gemm::raw::{RawA, RawB, RawTerm};
use crate::gemm::unit::{BF16, F16, F32};
use std::arch::x86_64::{
    __m512, __m512i, __mmask16, __mmask32, _MM_HINT_T1, _mm_prefetch, _mm256_maskz_loadu_epi16,
    _mm512_castps_si512, _mm512_castsi256_si512, _mm512_castsi512_ps, _mm512_cvtne2ps_pbh,
    _mm512_inserti64x4, _mm512_loadu_epi16, _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps,
    _mm512_mul_ps, _mm512_permutexvar_epi16, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_storeu_si512,
};

/// 32 floats rounded to bfloat16.
#[inline]
#[target_feature(enable = "avx512f,avx512bf16")]
fn round(low: __m512, high: __m512) -> __m512i {
    // SAFETY: both types are 512 plain bits.
    unsafe { std::mem::transmute(_mm512_cvtne2ps_pbh(high, low)) }
}

/// Packs rows `i0..i0+rows` (at most [`SIDE`]) and depth `k0..k0+kc` of `a`, scaled, into one panel.
///
/// # Safety
/// The block must lie inside the view; `dst` must hold `kc.div_ceil(DEPTH) * TILES` slots that nobody else touches.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_a(
    term: &RawTerm,
    i0: usize,
    rows: usize,
    k0: usize,
    kc: usize,
    dst: *mut f32,
) {
    let a: RawA = term.a;
    let scale = _mm512_set1_ps(term.alpha);
    let base = a.ptr.wrapping_add(i0 * a.rs + k0 * a.cs);
    for (step, k) in (0..kc).step_by(DEPTH).enumerate() {
        for half in 0..2 {
            let tile = dst.wrapping_add(step * TILES + half * (TILES / 2));
            let count = rows.saturating_sub(half * 16).min(16);
            let from = base.wrapping_add(half * 16 * a.rs + k * a.cs);
            let (low, high) = (mask((kc - k).min(16)), mask((kc - k).saturating_sub(16)));
            if a.cs == 1 {
                for r in 0..16 {
                    let mut line = _mm512_castps_si512(_mm512_setzero_ps());
                    if r < count {
                        let row = from.wrapping_add(r * a.rs);
                        // SAFETY: masked elements of row r.
                        let (x, y) = unsafe {
                            (
                                _mm512_maskz_loadu_ps(low, row),
                                _mm512_maskz_loadu_ps(high, row.wrapping_add(16)),
                            )
                        };
                        line = round(_mm512_mul_ps(x, scale), _mm512_mul_ps(y, scale));
                    }
                    // SAFETY: row r of the tile.
                    unsafe { _mm512_storeu_si512(tile.add(r * 16).cast(), line) };
                }
                continue;
            }
            // SAFETY: up to 32 stored lines of `count` elements.
            let (x, y) = unsafe {
                let lines = (kc - k).min(16);
                let more = (kc - k).saturating_sub(16).min(16);
                let x = load_transposed::<F32>(from.cast(), a.cs * 4, lines, count);
                (
                    x,
                    load_transposed::<F32>(
                        from.wrapping_add(16 * a.cs).cast(),
                        a.cs * 4,
                        more,
                        count,
                    ),
                )
            };
            for (r, (&x, &y)) in x.iter().zip(&y).enumerate() {
                let line = round(_mm512_mul_ps(x, scale), _mm512_mul_ps(y, scale));
                // SAFETY: row r of the tile.
                unsafe { _mm512_storeu_si512(tile.add(r * 16).cast(), line) };
            }
        }
    }
}

/// Packs depth `k0..k0+kc` and columns `j0..j0+nc` of `b` into panels of [`SIDE`] columns.
///
/// # Safety
/// The block must lie inside the view; `dst` must hold `nc.div_ceil(SIDE) * kc.div_ceil(DEPTH) * TILES` slots.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(super) unsafe fn pack_b(b: RawB, k0: usize, kc: usize, j0: usize, nc: usize, dst: *mut f32) {
    // SAFETY: the caller vouches for the block and for `dst`; the elements are of the type that is read.
    unsafe {
        match b.dtype {
            DType::F32 => pack_b_typed::<F32>(b, k0, kc, j0, nc, dst),
            DType::F16 => pack_b_typed::<F16>(b, k0, kc, j0, nc, dst),
            DType::Bf16 => pack_b_typed::<BF16>(b, k0, kc, j0, nc, dst),
        }
    }
}

/// [`pack_b`] for elements of type `D`.
///
/// # Safety
/// As for [`pack_b`], of which the elements must be of type `D`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn pack_b_typed<const D: u8>(
    b: RawB,
    k0: usize,
    kc: usize,
    j0: usize,
    nc: usize,
    dst: *mut f32,
) {
    let size = if D == F32 { 4 } else { 2 };
    let base = b.ptr.wrapping_add((k0 * b.rs + j0 * b.cs) * size);
    let panel = kc.div_ceil(DEPTH) * TILES;
    // Both layouts walk along stored lines, 16 columns by 32 depth at a time.
    for (step, k) in (0..kc).step_by(DEPTH).enumerate() {
        for j in (0..nc.next_multiple_of(SIDE)).step_by(16) {
            let tile =
                dst.wrapping_add(j / SIDE * panel + step * TILES + j % SIDE / 16 * (TILES / 2));
            let (cols, deep) = (nc.saturating_sub(j).min(16), (kc - k).min(DEPTH));
            let from = base.wrapping_add((k * b.rs + j * b.cs) * size);
            // Stored lines lie pages apart: the next step of depth is fetched while this one is packed.
            let next = from.wrapping_add(DEPTH * b.rs * size);
            for line in 0..if b.cs == 1 { DEPTH } else { 16 } {
                let at = next.wrapping_add(line * b.rs.max(b.cs) * size);
                _mm_prefetch::<_MM_HINT_T1>(at.cast());
                if b.cs != 1 {
                    _mm_prefetch::<_MM_HINT_T1>(at.wrapping_add(64).cast());
                }
            }
            // SAFETY: `cols` columns and `deep` steps from `from` on lie inside the view; the tile is ours.
            unsafe {
                if b.cs == 1 {
                    interleave::<D>(from, b.rs * size, cols, deep, tile);
                } else {
                    turn::<D>(from, b.cs * size, cols, deep, tile);
                }
            }
        }
    }
}

/// One tile of B from stored rows: pairs of depth are interleaved.
///
/// # Safety
/// `deep` rows of `cols` elements, `step` bytes apart, must be readable from `from` on; `tile` must hold a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn interleave<const D: u8>(
    from: *const u8,
    step: usize,
    cols: usize,
    deep: usize,
    tile: *mut f32,
) {
    const ORDER: [u16; 32] = {
        let mut order = [0; 32];
        let mut i = 0;
        while i < 32 {
            order[i] = (i / 2 + 16 * (i % 2)) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: 32 values.
    let order = unsafe { _mm512_loadu_epi16(ORDER.as_ptr().cast()) };
    let lanes = |k: usize| if k < deep { mask(cols) } else { 0 };
    for pair in 0..16 {
        let (first, second) = (
            from.wrapping_add(2 * pair * step),
            from.wrapping_add((2 * pair + 1) * step),
        );
        // SAFETY: masked elements of two stored rows; masks are empty past the depth.
        unsafe {
            let both = rows_of_two::<D>(first, second, lanes(2 * pair), lanes(2 * pair + 1));
            _mm512_storeu_si512(
                tile.add(pair * 16).cast(),
                _mm512_permutexvar_epi16(order, both),
            );
        }
    }
}

/// 16 values of one stored row and 16 of the next, as bfloat16.
///
/// # Safety
/// The elements of `first` in `m0` and of `second` in `m1` must be readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn rows_of_two<const D: u8>(
    first: *const u8,
    second: *const u8,
    m0: __mmask16,
    m1: __mmask16,
) -> __m512i {
    // SAFETY: the caller vouches for the masked elements; the others are not accessed.
    unsafe {
        if D == BF16 {
            let low = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(m0, first.cast()));
            return _mm512_inserti64x4::<1>(low, _mm256_maskz_loadu_epi16(m1, second.cast()));
        }
        round(load::<D>(first, m0), load::<D>(second, m1))
    }
}

/// One tile of B from stored columns: a transposition of pairs.
///
/// # Safety
/// `cols` columns of `deep` elements, `step` bytes apart, must be readable from `from` on; `tile` must hold a tile.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn turn<const D: u8>(
    from: *const u8,
    step: usize,
    cols: usize,
    deep: usize,
    tile: *mut f32,
) {
    let mut lines = [_mm512_setzero_ps(); 16];
    let all: __mmask32 = if deep >= 32 {
        u32::MAX
    } else {
        (1 << deep) - 1
    };
    for (j, line) in lines.iter_mut().enumerate().take(cols) {
        let from = from.wrapping_add(j * step);
        // SAFETY: masked elements of a stored column.
        *line = unsafe {
            if D == BF16 {
                _mm512_castsi512_ps(_mm512_maskz_loadu_epi16(all, from.cast()))
            } else {
                let size = if D == F32 { 4 } else { 2 };
                let high = load::<D>(from.wrapping_add(16 * size), (all >> 16) as u16);
                _mm512_castsi512_ps(round(load::<D>(from, all as u16), high))
            }
        };
    }
    transpose(&mut lines);
    for (pair, &line) in lines.iter().enumerate() {
        // SAFETY: row `pair` of the tile.
        unsafe { _mm512_storeu_si512(tile.add(pair * 16).cast(), _mm512_castps_si512(line)) };
    }
}
