//! AVX-512: packing, a register tile of 12 × 32, and dot products.
#![expect(
    unsafe_code,
    reason = "SIMD intrinsics and raw strided views; the checked door is `gemm`"
)]
#![expect(
    clippy::needless_range_loop,
    reason = "loops of constant length over register arrays"
)]

use super::raw::{RawA, RawB};
use super::unit::{Block, F16, F32, LINES, ROWS, Unit};
use std::arch::x86_64::{
    __m512, __mmask16, _MM_HINT_T0, _mm_prefetch, _mm256_maskz_loadu_epi16, _mm512_add_ps,
    _mm512_castpd_ps, _mm512_castps_pd, _mm512_castsi512_ps, _mm512_cvtepu16_epi32,
    _mm512_cvtph_ps, _mm512_fmadd_ps, _mm512_loadu_ps, _mm512_mask_storeu_ps,
    _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_reduce_add_ps, _mm512_set1_ps, _mm512_setzero_ps,
    _mm512_shuffle_f32x4, _mm512_slli_epi32, _mm512_storeu_ps, _mm512_unpackhi_pd,
    _mm512_unpackhi_ps, _mm512_unpacklo_pd, _mm512_unpacklo_ps,
};

const MR: usize = 12;
const NR: usize = 32;
/// Depth steps by which the left panel is fetched before its use.
const AHEAD: usize = 16;
/// Stored rows by which a right operand is fetched before it is packed.
const ROWS_AHEAD: usize = 6;

/// AVX-512 with its F, BW, VL and DQ parts.
pub(super) struct Avx512;

impl Unit for Avx512 {
    const MR: usize = MR;
    const NR: usize = NR;
    const KC: usize = 512;

    unsafe fn pack_a(a: RawA, i0: usize, rows: usize, k0: usize, kc: usize, dst: *mut f32) {
        // SAFETY: the caller vouches for the views and for the instructions.
        unsafe { pack_a(a, i0, rows, k0, kc, dst) }
    }

    unsafe fn pack_b_of<const D: u8>(
        b: RawB,
        k0: usize,
        kc: usize,
        j0: usize,
        nc: usize,
        dst: *mut f32,
    ) {
        // SAFETY: the caller vouches for the block, for `dst`, for the type and for the instructions.
        unsafe { pack_b::<D>(b, k0, kc, j0, nc, dst) }
    }

    unsafe fn multiply(block: Block, a: *const f32, b: *const f32, c: *mut f32) {
        // SAFETY: the caller vouches for the panels, the block and the instructions.
        unsafe { multiply(block, a, b, c) }
    }

    unsafe fn dots_of<const D: u8>(
        a: RawA,
        rows: usize,
        b: RawB,
        lines: usize,
        k: usize,
    ) -> [[f32; LINES]; ROWS] {
        // SAFETY: the caller vouches for the rows, the lines, the type and the instructions.
        unsafe { dots::<D>(a, rows, b, lines, k) }
    }
}

/// The mask of the first `lanes` lanes.
pub(super) fn mask(lanes: usize) -> __mmask16 {
    if lanes >= 16 {
        u16::MAX
    } else {
        (1u16 << lanes) - 1
    }
}

/// Loads the lanes of `mask`, widened to `f32`; the others are zero and not touched.
///
/// # Safety
/// The masked elements from `ptr` on must be readable; any alignment.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn load<const D: u8>(ptr: *const u8, mask: __mmask16) -> __m512 {
    // SAFETY: the caller vouches for the masked lanes; the others are not accessed.
    unsafe {
        match D {
            F32 => _mm512_maskz_loadu_ps(mask, ptr.cast()),
            F16 => _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, ptr.cast())),
            _ => {
                let wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, ptr.cast()));
                _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
            }
        }
    }
}

/// Transposes 16 x 16 values.
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn transpose(rows: &mut [__m512; 16]) {
    let mut t = *rows;
    for i in (0..16).step_by(4) {
        let (ab_lo, ab_hi) = (
            _mm512_unpacklo_ps(rows[i], rows[i + 1]),
            _mm512_unpackhi_ps(rows[i], rows[i + 1]),
        );
        let (cd_lo, cd_hi) = (
            _mm512_unpacklo_ps(rows[i + 2], rows[i + 3]),
            _mm512_unpackhi_ps(rows[i + 2], rows[i + 3]),
        );
        let pd = |lo: __m512, hi: __m512| (_mm512_castps_pd(lo), _mm512_castps_pd(hi));
        let (a, b) = pd(ab_lo, cd_lo);
        let (c, d) = pd(ab_hi, cd_hi);
        t[i] = _mm512_castpd_ps(_mm512_unpacklo_pd(a, b));
        t[i + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(a, b));
        t[i + 2] = _mm512_castpd_ps(_mm512_unpacklo_pd(c, d));
        t[i + 3] = _mm512_castpd_ps(_mm512_unpackhi_pd(c, d));
    }
    // t[4q + r], 128-bit part p = column 4p + r of rows 4q..4q+4.
    for r in 0..4 {
        let (q0, q1, q2, q3) = (t[r], t[4 + r], t[8 + r], t[12 + r]);
        let even01 = _mm512_shuffle_f32x4::<0b10_00_10_00>(q0, q1);
        let odd01 = _mm512_shuffle_f32x4::<0b11_01_11_01>(q0, q1);
        let even23 = _mm512_shuffle_f32x4::<0b10_00_10_00>(q2, q3);
        let odd23 = _mm512_shuffle_f32x4::<0b11_01_11_01>(q2, q3);
        rows[r] = _mm512_shuffle_f32x4::<0b10_00_10_00>(even01, even23);
        rows[8 + r] = _mm512_shuffle_f32x4::<0b11_01_11_01>(even01, even23);
        rows[4 + r] = _mm512_shuffle_f32x4::<0b10_00_10_00>(odd01, odd23);
        rows[12 + r] = _mm512_shuffle_f32x4::<0b11_01_11_01>(odd01, odd23);
    }
}

/// Loads `lines` lines of `width` elements, `step` bytes apart, and transposes them; missing values are zero.
///
/// # Safety
/// `lines` lines of `width` elements must be readable from `ptr`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
pub(super) unsafe fn load_transposed<const D: u8>(
    ptr: *const u8,
    step: usize,
    lines: usize,
    width: usize,
) -> [__m512; 16] {
    let mut rows = [_mm512_setzero_ps(); 16];
    let lanes = mask(width);
    if lines >= 16 {
        for (i, row) in rows.iter_mut().enumerate() {
            // SAFETY: line i < lines.
            *row = unsafe { load::<D>(ptr.wrapping_add(i * step), lanes) };
        }
    } else {
        for (i, row) in rows.iter_mut().enumerate().take(lines) {
            // SAFETY: line i < lines.
            *row = unsafe { load::<D>(ptr.wrapping_add(i * step), lanes) };
        }
    }
    transpose(&mut rows);
    rows
}

/// [`Unit::pack_a`].
///
/// # Safety
/// As for [`Unit::pack_a`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_a(a: RawA, i0: usize, rows: usize, k0: usize, kc: usize, dst: *mut f32) {
    let base = a.ptr.wrapping_add(i0 * a.rs + k0 * a.cs);
    let panel = mask(MR);
    if a.cs == 1 {
        for k in (0..kc).step_by(16) {
            let width = (kc - k).min(16);
            // SAFETY: `rows` lines of `width` elements lie inside the view; stores stay below kc * MR.
            unsafe {
                let block =
                    load_transposed::<F32>(base.wrapping_add(k).cast(), a.rs * 4, rows, width);
                for (i, &row) in block.iter().enumerate().take(width) {
                    _mm512_mask_storeu_ps(dst.add((k + i) * MR), panel, row);
                }
            }
        }
    } else {
        let lanes = mask(rows);
        for k in 0..kc {
            // SAFETY: `a.rs == 1`, so `rows` elements are consecutive; the store stays below kc * MR.
            unsafe {
                let row = _mm512_maskz_loadu_ps(lanes, base.wrapping_add(k * a.cs));
                _mm512_mask_storeu_ps(dst.add(k * MR), panel, row);
            }
        }
    }
}

/// [`Unit::pack_b`] for elements of type `D`.
///
/// # Safety
/// As for [`Unit::pack_b`], of which the elements must be of type `D`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn pack_b<const D: u8>(b: RawB, k0: usize, kc: usize, j0: usize, nc: usize, dst: *mut f32) {
    let size = if D == F32 { 4 } else { 2 };
    let base = b.ptr.wrapping_add((k0 * b.rs + j0 * b.cs) * size);
    if b.cs == 1 {
        for k in 0..kc {
            let line = base.wrapping_add(k * b.rs * size);
            for j in (0..nc.next_multiple_of(NR)).step_by(16) {
                let lanes = mask(nc.saturating_sub(j));
                _mm_prefetch::<_MM_HINT_T0>(
                    line.wrapping_add(ROWS_AHEAD * b.rs * size + j * size)
                        .cast(),
                );
                // SAFETY: masked lanes lie in columns j0..j0+nc; the store is inside panel j / NR.
                unsafe {
                    let row = load::<D>(line.wrapping_add(j * size), lanes);
                    _mm512_storeu_ps(dst.add((j / NR) * NR * kc + k * NR + j % NR), row);
                }
            }
        }
    } else {
        for j in (0..nc.next_multiple_of(NR)).step_by(16) {
            let lines = nc.saturating_sub(j).min(16);
            let panel = (j / NR) * NR * kc + j % NR;
            for k in (0..kc).step_by(16) {
                let width = (kc - k).min(16);
                // SAFETY: `lines` stored rows of `width` depth values lie inside the view; stores stay inside the panel.
                unsafe {
                    let line = base.wrapping_add((j * b.cs + k) * size);
                    let block = load_transposed::<D>(line, b.cs * size, lines, width);
                    for (i, &row) in block.iter().enumerate().take(width) {
                        _mm512_storeu_ps(dst.add(panel + (k + i) * NR), row);
                    }
                }
            }
        }
    }
}

/// One register tile: `M` rows and `V` vectors of columns, the last one masked.
///
/// # Safety
/// `a` and `b` must hold panels of depth `kc`; `c` must hold `M` rows of `V` vectors, of the last one the masked lanes, which nobody else
/// touches.
#[expect(clippy::too_many_arguments, reason = "the operands of one tile")]
#[target_feature(enable = "avx512f")]
unsafe fn tile<const M: usize, const V: usize>(
    kc: usize,
    a: *const f32,
    b: *const f32,
    c: *mut f32,
    ldc: usize,
    alpha: f32,
    accumulate: bool,
    last: __mmask16,
) {
    let mut acc = [[_mm512_setzero_ps(); V]; M];
    // SAFETY: the panels hold kc * MR and kc * NR elements; M <= MR and V * 16 <= NR.
    unsafe {
        for i in 0..M {
            _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(i * ldc).cast());
            if V == 2 {
                _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(i * ldc + 16).cast());
            }
        }
        let (mut a, mut b) = (a, b);
        for _ in 0..kc {
            _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(AHEAD * MR).cast());
            let mut bv = [_mm512_setzero_ps(); V];
            for (v, value) in bv.iter_mut().enumerate() {
                *value = _mm512_loadu_ps(b.add(v * 16));
            }
            for i in 0..M {
                let av = _mm512_set1_ps(*a.add(i));
                for v in 0..V {
                    acc[i][v] = _mm512_fmadd_ps(av, bv[v], acc[i][v]);
                }
            }
            a = a.add(MR);
            b = b.add(NR);
        }
    }
    let alpha = _mm512_set1_ps(alpha);
    for (i, row) in acc.iter().enumerate() {
        for (v, &value) in row.iter().enumerate() {
            let lanes = if v + 1 == V { last } else { u16::MAX };
            let at = c.wrapping_add(i * ldc + v * 16);
            // SAFETY: masked lanes are inside the caller's block of C.
            unsafe {
                let mut value = _mm512_mul_ps(value, alpha);
                if accumulate {
                    value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(lanes, at));
                }
                _mm512_mask_storeu_ps(at, lanes, value);
            }
        }
    }
}

macro_rules! tiles {
    ($rows:expr, $v:literal, $args:tt; $($m:literal)*) => {
        match $rows { $($m => tile::<$m, $v> $args,)* _ => tile::<MR, $v> $args }
    };
}

/// [`Unit::multiply`].
///
/// # Safety
/// As for [`Unit::multiply`].
#[target_feature(enable = "avx512f")]
unsafe fn multiply(block: Block, a: *const f32, b: *const f32, c: *mut f32) {
    let Block {
        m,
        n,
        kc,
        a_step,
        b_step,
        ldc,
        alpha,
        accumulate,
    } = block;
    for (jp, j) in (0..n).step_by(NR).enumerate() {
        let cols = (n - j).min(NR);
        for (ip, i) in (0..m).step_by(MR).enumerate() {
            let rows = (m - i).min(MR);
            // SAFETY: the panels and the tile of C lie inside what the caller vouches for.
            unsafe {
                let (a, b, c) = (a.add(ip * a_step), b.add(jp * b_step), c.add(i * ldc + j));
                if cols > 16 {
                    let last = mask(cols - 16);
                    tiles!(rows, 2, (kc, a, b, c, ldc, alpha, accumulate, last); 1 2 3 4 5 6 7 8 9 10 11);
                } else {
                    let last = mask(cols);
                    tiles!(rows, 1, (kc, a, b, c, ldc, alpha, accumulate, last); 1 2 3 4 5 6 7 8 9 10 11);
                }
            }
        }
    }
}

/// Sums of `R` rows and [`LINES`] lines; those past the last are that one's.
///
/// # Safety
/// As for [`Unit::dots`], for `R` rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn some<const D: u8, const R: usize>(
    a: RawA,
    b: RawB,
    lines: usize,
    k: usize,
) -> [[f32; LINES]; R] {
    let size = if D == F32 { 4 } else { 2 };
    let mut at = [std::ptr::null(); LINES];
    for (j, at) in at.iter_mut().enumerate() {
        *at = b.ptr.wrapping_add(j.min(lines - 1) * b.cs * size);
    }
    let mut acc = [[_mm512_setzero_ps(); LINES]; R];
    for from in (0..k).step_by(16) {
        let lanes = mask(k - from);
        let mut av = [_mm512_setzero_ps(); R];
        for (r, value) in av.iter_mut().enumerate() {
            // SAFETY: masked lanes lie inside row r.
            *value = unsafe { _mm512_maskz_loadu_ps(lanes, a.ptr.wrapping_add(r * a.rs + from)) };
        }
        for j in 0..LINES {
            // SAFETY: masked lanes lie inside a line that exists.
            let bv = unsafe { load::<D>(at[j].wrapping_add(from * size), lanes) };
            for r in 0..R {
                acc[r][j] = _mm512_fmadd_ps(av[r], bv, acc[r][j]);
            }
        }
    }
    let mut sums = [[0.0; LINES]; R];
    for (sums, acc) in sums.iter_mut().zip(&acc) {
        for (sum, &acc) in sums.iter_mut().zip(acc) {
            *sum = _mm512_reduce_add_ps(acc);
        }
    }
    sums
}

/// [`Unit::dots`] for elements of type `D`.
///
/// # Safety
/// As for [`Unit::dots`].
#[target_feature(enable = "avx512f,avx512bw,avx512vl")]
unsafe fn dots<const D: u8>(
    a: RawA,
    rows: usize,
    b: RawB,
    lines: usize,
    k: usize,
) -> [[f32; LINES]; ROWS] {
    let mut sums = [[0.0; LINES]; ROWS];
    // SAFETY: the caller vouches for `rows` rows and `lines` lines.
    unsafe {
        match rows {
            1 => sums[..1].copy_from_slice(&some::<D, 1>(a, b, lines, k)),
            2 => sums[..2].copy_from_slice(&some::<D, 2>(a, b, lines, k)),
            _ => sums.copy_from_slice(&some::<D, ROWS>(a, b, lines, k)),
        }
    }
    sums
}
