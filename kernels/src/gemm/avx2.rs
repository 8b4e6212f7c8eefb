//! AVX2 and FMA: packing, a register tile of 6 × 16, and dot products.
//!
//! Twelve accumulators, two vectors of the right panel and one broadcast element of the left one take 15 of the 16 registers. Masked stores
//! are microcode on AMD's processors before Zen 4, so edges of C go through a tile on the stack.
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
    __m256, __m256i, _MM_HINT_T0, _mm_add_ps, _mm_cvtss_f32, _mm_hadd_ps, _mm_loadu_si128,
    _mm_prefetch, _mm256_add_ps, _mm256_broadcast_ss, _mm256_castps256_ps128, _mm256_castsi256_ps,
    _mm256_cvtepu16_epi32, _mm256_cvtph_ps, _mm256_extractf128_ps, _mm256_fmadd_ps,
    _mm256_loadu_ps, _mm256_loadu_si256, _mm256_maskload_ps, _mm256_mul_ps, _mm256_permute2f128_ps,
    _mm256_set1_ps, _mm256_setzero_ps, _mm256_shuffle_ps, _mm256_slli_epi32, _mm256_storeu_ps,
    _mm256_unpackhi_ps, _mm256_unpacklo_ps,
};

const MR: usize = 6;
const NR: usize = 16;
/// Lanes of a vector.
const VL: usize = 8;
/// Rows of C whose left panels are used with all right panels before the next ones: they stay in the second cache.
const ROWS_KEPT: usize = 16 * MR;
/// Depth steps by which the left panel is fetched before its use.
const AHEAD: usize = 16;
/// Depth steps between two of the loop's branches.
const UNROLLED: usize = 4;
/// Stored rows by which a right operand is fetched before it is packed.
const ROWS_AHEAD: usize = 6;

/// AVX2, FMA and F16C.
pub(super) struct Avx2;

impl Unit for Avx2 {
    const MR: usize = MR;
    const NR: usize = NR;
    const KC: usize = 256;

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

const fn size(dtype: u8) -> usize {
    if dtype == F32 { 4 } else { 2 }
}

/// Loads eight elements, widened to `f32`.
///
/// # Safety
/// They must be readable from `ptr` on; any alignment.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load<const D: u8>(ptr: *const u8) -> __m256 {
    // SAFETY: the caller vouches for eight elements.
    unsafe {
        match D {
            F32 => _mm256_loadu_ps(ptr.cast()),
            F16 => _mm256_cvtph_ps(_mm_loadu_si128(ptr.cast())),
            _ => {
                let wide = _mm256_cvtepu16_epi32(_mm_loadu_si128(ptr.cast()));
                _mm256_castsi256_ps(_mm256_slli_epi32::<16>(wide))
            }
        }
    }
}

/// The mask of the first `lanes` lanes, fewer than eight.
#[inline]
#[target_feature(enable = "avx2")]
fn mask(lanes: usize) -> __m256i {
    const ONES: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];
    let from = &ONES[VL - lanes.min(VL)..];
    // SAFETY: at least eight numbers are left.
    unsafe { _mm256_loadu_si256(from.as_ptr().cast()) }
}

/// Loads the first `lanes` elements, widened to `f32`; the other lanes are zero and not touched.
///
/// # Safety
/// `lanes` elements must be readable from `ptr` on; any alignment.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_some<const D: u8>(ptr: *const u8, lanes: usize) -> __m256 {
    // SAFETY: the caller vouches for `lanes` elements, and no others are read.
    unsafe {
        if lanes >= VL {
            return load::<D>(ptr);
        }
        if D == F32 {
            return _mm256_maskload_ps(ptr.cast(), mask(lanes));
        }
        let mut few = [0u8; 2 * VL];
        std::ptr::copy_nonoverlapping(ptr, few.as_mut_ptr(), 2 * lanes);
        load::<D>(few.as_ptr())
    }
}

/// Transposes 8 x 8 values.
#[inline]
#[target_feature(enable = "avx2")]
fn transpose(r: [__m256; VL]) -> [__m256; VL] {
    let mut t = r;
    for i in (0..VL).step_by(4) {
        let (ab_lo, ab_hi) = (
            _mm256_unpacklo_ps(r[i], r[i + 1]),
            _mm256_unpackhi_ps(r[i], r[i + 1]),
        );
        let (cd_lo, cd_hi) = (
            _mm256_unpacklo_ps(r[i + 2], r[i + 3]),
            _mm256_unpackhi_ps(r[i + 2], r[i + 3]),
        );
        t[i] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_lo, cd_lo);
        t[i + 1] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_lo, cd_lo);
        t[i + 2] = _mm256_shuffle_ps::<0b01_00_01_00>(ab_hi, cd_hi);
        t[i + 3] = _mm256_shuffle_ps::<0b11_10_11_10>(ab_hi, cd_hi);
    }
    // t[i], half h = column 4h + i of rows 0..4; t[4 + i] that of rows 4..8.
    let mut out = t;
    for i in 0..4 {
        out[i] = _mm256_permute2f128_ps::<0x20>(t[i], t[4 + i]);
        out[4 + i] = _mm256_permute2f128_ps::<0x31>(t[i], t[4 + i]);
    }
    out
}

/// Loads `lines` lines of `width` elements, `step` bytes apart, and transposes them; missing values are zero.
///
/// # Safety
/// `lines` lines of `width` elements must be readable from `ptr`.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn load_transposed<const D: u8>(
    ptr: *const u8,
    step: usize,
    lines: usize,
    width: usize,
) -> [__m256; VL] {
    let mut rows = [_mm256_setzero_ps(); VL];
    if lines >= VL && width >= VL {
        for (i, row) in rows.iter_mut().enumerate() {
            // SAFETY: line i < lines has eight elements.
            *row = unsafe { load::<D>(ptr.wrapping_add(i * step)) };
        }
    } else {
        for (i, row) in rows.iter_mut().enumerate().take(lines) {
            // SAFETY: line i < lines.
            *row = unsafe { load_some::<D>(ptr.wrapping_add(i * step), width) };
        }
    }
    transpose(rows)
}

/// [`Unit::pack_a`].
///
/// # Safety
/// As for [`Unit::pack_a`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_a(a: RawA, i0: usize, rows: usize, k0: usize, kc: usize, dst: *mut f32) {
    let base = a.ptr.wrapping_add(i0 * a.rs + k0 * a.cs);
    if a.cs == 1 {
        for k in (0..kc).step_by(VL) {
            let width = (kc - k).min(VL);
            // SAFETY: `rows` lines of `width` elements lie inside the view. A store of eight lanes reaches into the next step, which is
            // stored after it; the last steps, behind which there may be nothing of ours, go through the stack.
            unsafe {
                let block =
                    load_transposed::<F32>(base.wrapping_add(k).cast(), a.rs * 4, rows, width);
                if k + VL < kc {
                    for (i, &row) in block.iter().enumerate() {
                        _mm256_storeu_ps(dst.add((k + i) * MR), row);
                    }
                } else {
                    let mut last = [0.0; VL * MR + 2];
                    for (i, &row) in block.iter().enumerate() {
                        _mm256_storeu_ps(last.as_mut_ptr().add(i * MR), row);
                    }
                    std::ptr::copy_nonoverlapping(last.as_ptr(), dst.add(k * MR), width * MR);
                }
            }
        }
        return;
    }
    for k in 0..kc {
        let from = base.wrapping_add(k * a.cs);
        // SAFETY: `a.rs == 1`, so `rows` elements are consecutive; the copy stays below kc * MR.
        unsafe {
            let to = dst.add(k * MR);
            if rows == MR {
                std::ptr::copy_nonoverlapping(from, to, MR);
            } else {
                for i in 0..MR {
                    *to.add(i) = if i < rows { *from.add(i) } else { 0.0 };
                }
            }
        }
    }
}

/// [`Unit::pack_b`] for elements of type `D`.
///
/// # Safety
/// As for [`Unit::pack_b`], of which the elements must be of type `D`.
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn pack_b<const D: u8>(b: RawB, k0: usize, kc: usize, j0: usize, nc: usize, dst: *mut f32) {
    let size = size(D);
    let base = b.ptr.wrapping_add((k0 * b.rs + j0 * b.cs) * size);
    if b.cs == 1 {
        for k in 0..kc {
            let line = base.wrapping_add(k * b.rs * size);
            for j in (0..nc.next_multiple_of(NR)).step_by(VL) {
                let at = line.wrapping_add(j * size);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(ROWS_AHEAD * b.rs * size).cast());
                // SAFETY: the lanes that are read lie in columns j0..j0+nc; the store is inside panel j / NR.
                unsafe {
                    let row = load_some::<D>(at, nc.saturating_sub(j));
                    _mm256_storeu_ps(dst.add((j / NR) * NR * kc + k * NR + j % NR), row);
                }
            }
        }
        return;
    }
    for j in (0..nc.next_multiple_of(NR)).step_by(VL) {
        let lines = nc.saturating_sub(j).min(VL);
        let panel = (j / NR) * NR * kc + j % NR;
        for k in (0..kc).step_by(VL) {
            let width = (kc - k).min(VL);
            // SAFETY: `lines` stored rows of `width` depth values lie inside the view; stores stay inside the panel.
            unsafe {
                let line = base.wrapping_add((j * b.cs + k) * size);
                let block = load_transposed::<D>(line, b.cs * size, lines, width);
                for (i, &row) in block.iter().enumerate().take(width) {
                    _mm256_storeu_ps(dst.add(panel + (k + i) * NR), row);
                }
            }
        }
    }
}

/// One register tile: `M` rows and `V` vectors of columns.
///
/// # Safety
/// `a` and `b` must hold panels of depth `kc`; `c` must hold `M` rows of `V` vectors, which nobody else touches.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const M: usize, const V: usize>(
    kc: usize,
    (a, b): (*const f32, *const f32),
    c: *mut f32,
    ldc: usize,
    alpha: f32,
    accumulate: bool,
) {
    let mut acc = [[_mm256_setzero_ps(); V]; M];
    // SAFETY: the panels hold kc * MR and kc * NR elements; M <= MR and V * 8 <= NR.
    unsafe {
        for i in 0..M {
            _mm_prefetch::<_MM_HINT_T0>(c.wrapping_add(i * ldc).cast());
        }
        let mut steps = |a: *const f32, b: *const f32, count: usize| {
            for k in 0..count {
                let mut bv = [_mm256_setzero_ps(); V];
                for (v, value) in bv.iter_mut().enumerate() {
                    *value = _mm256_loadu_ps(b.add(k * NR + v * VL));
                }
                for i in 0..M {
                    let av = _mm256_broadcast_ss(&*a.add(k * MR + i));
                    for v in 0..V {
                        acc[i][v] = _mm256_fmadd_ps(av, bv[v], acc[i][v]);
                    }
                }
            }
        };
        let (mut a, mut b) = (a, b);
        for _ in 0..kc / UNROLLED {
            _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(AHEAD * MR).cast());
            _mm_prefetch::<_MM_HINT_T0>(a.wrapping_add(AHEAD * MR + 16).cast());
            steps(a, b, UNROLLED);
            a = a.add(UNROLLED * MR);
            b = b.add(UNROLLED * NR);
        }
        steps(a, b, kc % UNROLLED);
    }
    let alpha = _mm256_set1_ps(alpha);
    for (i, row) in acc.iter().enumerate() {
        for (v, &value) in row.iter().enumerate() {
            let at = c.wrapping_add(i * ldc + v * VL);
            // SAFETY: these lanes are inside the caller's tile of C.
            unsafe {
                let mut value = _mm256_mul_ps(value, alpha);
                if accumulate {
                    value = _mm256_add_ps(value, _mm256_loadu_ps(at));
                }
                _mm256_storeu_ps(at, value);
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
#[target_feature(enable = "avx2,fma")]
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
    for i0 in (0..m).step_by(ROWS_KEPT) {
        for (jp, j) in (0..n).step_by(NR).enumerate() {
            let cols = (n - j).min(NR);
            for i in (i0..m.min(i0 + ROWS_KEPT)).step_by(MR) {
                let rows = (m - i).min(MR);
                // SAFETY: the panels and the tile of C lie inside what the caller vouches for.
                unsafe {
                    let panels = (a.add(i / MR * a_step), b.add(jp * b_step));
                    let c = c.add(i * ldc + j);
                    match cols {
                        NR => {
                            tiles!(rows, 2, (kc, panels, c, ldc, alpha, accumulate); 1 2 3 4 5);
                        }
                        VL => {
                            tiles!(rows, 1, (kc, panels, c, ldc, alpha, accumulate); 1 2 3 4 5);
                        }
                        _ => {
                            let mut part = [0.0; MR * NR];
                            let to = part.as_mut_ptr();
                            if cols < VL {
                                tiles!(rows, 1, (kc, panels, to, NR, alpha, false); 1 2 3 4 5);
                            } else {
                                tiles!(rows, 2, (kc, panels, to, NR, alpha, false); 1 2 3 4 5);
                            }
                            for (i, part) in part.chunks_exact(NR).enumerate().take(rows) {
                                for (x, &sum) in part.iter().enumerate().take(cols) {
                                    let at = c.add(i * ldc + x);
                                    *at = sum + if accumulate { *at } else { 0.0 };
                                }
                            }
                        }
                    }
                }
            }
        }
    }
}

/// The sum of the lanes.
#[inline]
#[target_feature(enable = "avx2")]
fn sum(v: __m256) -> f32 {
    let half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let pairs = _mm_hadd_ps(half, half);
    _mm_cvtss_f32(_mm_hadd_ps(pairs, pairs))
}

/// Sums of `R` rows and `L` lines from line `j` on; those past the last are that one's.
///
/// # Safety
/// As for [`Unit::dots`], for at least `R` rows and one line.
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn some<const D: u8, const R: usize, const L: usize>(
    a: RawA,
    b: RawB,
    (j, lines): (usize, usize),
    k: usize,
) -> [[f32; L]; R] {
    let line = |x: usize| {
        let line = (j + x).min(lines - 1);
        b.ptr.wrapping_add(line * b.cs * size(D))
    };
    let mut at = [std::ptr::null(); L];
    for (x, at) in at.iter_mut().enumerate() {
        *at = line(x);
    }
    let mut acc = [[_mm256_setzero_ps(); L]; R];
    let whole = k / VL * VL;
    for from in (0..whole).step_by(VL) {
        let mut av = [_mm256_setzero_ps(); R];
        for (r, value) in av.iter_mut().enumerate() {
            // SAFETY: eight elements of row r.
            *value = unsafe { _mm256_loadu_ps(a.ptr.wrapping_add(r * a.rs + from)) };
        }
        for x in 0..L {
            // SAFETY: eight elements of a line that exists.
            let bv = unsafe { load::<D>(at[x].wrapping_add(from * size(D))) };
            for r in 0..R {
                acc[r][x] = _mm256_fmadd_ps(av[r], bv, acc[r][x]);
            }
        }
    }
    if whole < k {
        for x in 0..L {
            // SAFETY: what is left of a line that exists, and of row r.
            let bv = unsafe { load_some::<D>(at[x].wrapping_add(whole * size(D)), k - whole) };
            for r in 0..R {
                let row = a.ptr.wrapping_add(r * a.rs + whole);
                // SAFETY: what is left of row r.
                let av = unsafe { load_some::<F32>(row.cast(), k - whole) };
                acc[r][x] = _mm256_fmadd_ps(av, bv, acc[r][x]);
            }
        }
    }
    let mut sums = [[0.0; L]; R];
    for (sums, acc) in sums.iter_mut().zip(&acc) {
        for (to, &acc) in sums.iter_mut().zip(acc) {
            *to = sum(acc);
        }
    }
    sums
}

/// [`Unit::dots`] for elements of type `D`.
///
/// # Safety
/// As for [`Unit::dots`].
#[target_feature(enable = "avx2,fma,f16c")]
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
            1 => sums[..1].copy_from_slice(&some::<D, 1, LINES>(a, b, (0, lines), k)),
            2 => sums[..2].copy_from_slice(&few::<D, 2>(a, b, lines, k)),
            _ => sums.copy_from_slice(&few::<D, ROWS>(a, b, lines, k)),
        }
    }
    sums
}

/// [`some`] of more than one row: four lines at a time, for which there are registers.
///
/// # Safety
/// As for [`some`].
#[inline]
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn few<const D: u8, const R: usize>(
    a: RawA,
    b: RawB,
    lines: usize,
    k: usize,
) -> [[f32; LINES]; R] {
    const HALF: usize = LINES / 2;
    let mut sums = [[0.0; LINES]; R];
    for j in (0..lines).step_by(HALF) {
        // SAFETY: the caller vouches for the rows and for line j.
        let found = unsafe { some::<D, R, HALF>(a, b, (j, lines), k) };
        for (sums, found) in sums.iter_mut().zip(&found) {
            sums[j..j + HALF].copy_from_slice(found);
        }
    }
    sums
}
