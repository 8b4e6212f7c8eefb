//! Matrix products with operands rounded to bfloat16 and sums in `f32`: on AMX tiles, or with the AVX-512 dot product.
//!
//! Intel, "Architecture Instruction Set Extensions Programming Reference", chapter on AMX: a tile is 16 rows of 64 bytes; `TDPBF16PS`
//! adds the product of a 16 x 32 tile of A and a 32 x 16 tile of B, the latter with pairs of depth interleaved. The tile
//! intrinsics are not stable, hence inline assembly. Linux grants tile state per process on request. `VDPBF16PS` adds the products
//! of pairs of depth in each lane, so it reads the same packed operands.
//!
//! Packed layouts, in bfloat16: panels of [`SIDE`] rows (left) or columns (right); a panel holds, for each 32 steps of depth, two
//! tiles of 1 KiB. Missing rows, columns and depth are zero.
#![expect(
    unsafe_code,
    reason = "tile instructions and raw strided views; the checked door is `gemm`"
)]

use super::gemm::{RawA, RawB, RawC, RawTerm, SERIAL_OPS};
use super::gemm_avx512::{BF16, F16, F32, load, load_transposed, mask, transpose};
use super::gemm_blocked::slices;
use super::matrix::DType;
use super::scratch::with_scratch;
use rayon::prelude::*;
use std::arch::asm;
use std::arch::x86_64::{
    __cpuid_count, __m512, __m512bh, __m512i, __mmask16, __mmask32, _MM_HINT_T1, _mm_prefetch,
    _mm256_maskz_loadu_epi16, _mm512_castps_si512, _mm512_castsi256_si512, _mm512_castsi512_ps,
    _mm512_cvtne2ps_pbh, _mm512_dpbf16_ps, _mm512_inserti64x4, _mm512_loadu_epi16, _mm512_loadu_ps,
    _mm512_maskz_loadu_epi16, _mm512_maskz_loadu_ps, _mm512_mul_ps, _mm512_permutexvar_epi16,
    _mm512_set1_epi32, _mm512_set1_ps, _mm512_setzero_ps, _mm512_storeu_ps, _mm512_storeu_si512,
};
use std::sync::OnceLock;

/// Rows and columns of the block that four accumulator tiles cover.
const SIDE: usize = 32;
/// Depth of one tile product.
const DEPTH: usize = 32;
/// Depth of a packed block.
const KC: usize = 1024;
/// Depth whose left sides are packed at once.
const DEEPEST: usize = 32 * KC;
/// `f32` slots of scratch that two tiles take.
const TILES: usize = 512;
/// Slots of one row of a tile, which are as many pairs of depth.
const LINE: usize = 16;
/// Columns of a task, at most.
const WIDEST: usize = 256;
/// Rows whose left sides are packed at once.
const ROWS: usize = 1024;

/// The instructions that multiply.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unit {
    /// AMX tiles.
    Tiles,
    /// `VDPBF16PS`.
    Dot,
}

impl Unit {
    /// What the CPU has and the system lets this process use; asked once.
    pub(super) fn detect() -> Option<Self> {
        static FOUND: OnceLock<Option<Unit>> = OnceLock::new();
        *FOUND.get_or_init(|| {
            if !has_dot() {
                return None;
            }
            let tiles = has_tiles() && is_permitted();
            Some(if tiles { Unit::Tiles } else { Unit::Dot })
        })
    }
}

fn has_dot() -> bool {
    is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512vl")
        && is_x86_feature_detected!("avx512bf16")
}

fn has_tiles() -> bool {
    // CPUID leaf 7, EDX: bit 22 is AMX-BF16, bit 24 is AMX-TILE. AVX-512 implies that leaf 7 exists.
    __cpuid_count(7, 0).edx & (1 << 22 | 1 << 24) == (1 << 22 | 1 << 24)
}

fn is_permitted() -> bool {
    /// `ARCH_REQ_XCOMP_PERM` of `arch_prctl(2)`.
    const REQUEST: libc::c_ulong = 0x1023;
    /// `XFEATURE_XTILEDATA`.
    const TILE_DATA: libc::c_ulong = 18;
    // SAFETY: asks the kernel to allow tile state; touches no memory of ours. An old kernel answers with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, REQUEST, TILE_DATA) == 0 }
}

/// The tile configuration: palette 1, eight tiles of 16 rows and 64 bytes.
#[repr(C, align(64))]
struct Config([u8; 64]);

static CONFIG: Config = {
    let mut bytes = [0; 64];
    bytes[0] = 1;
    let mut tile = 0;
    while tile < 8 {
        bytes[16 + 2 * tile] = 64;
        bytes[48 + tile] = 16;
        tile += 1;
    }
    Config(bytes)
};

/// Tile state of this thread, released when dropped.
struct Tiles;

impl Tiles {
    /// # Safety
    /// The unit must have been detected.
    unsafe fn configure() -> Self {
        // SAFETY: the configuration is valid and 64 bytes long.
        unsafe { asm!("ldtilecfg [{}]", in(reg) &raw const CONFIG, options(nostack, readonly)) };
        Self
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        // SAFETY: this thread has configured tiles.
        unsafe { asm!("tilerelease", options(nostack, nomem)) };
    }
}

/// `C[32, 32] += A · B` over `steps` steps of depth; rows from `height` on may be left out.
///
/// # Safety
/// The unit must have been detected, and tiles configured if it is those; `a` and `b` must hold `steps` pairs of tiles; C must hold the
/// block.
unsafe fn block(unit: Unit, a: *const f32, b: *const f32, steps: usize, height: usize, c: RawC) {
    /// Rows whose sums stay in registers.
    const ROWS: usize = 11;
    if unit == Unit::Tiles {
        // SAFETY: the caller's contract.
        unsafe { tile_block(a, b, steps, c.ptr, c.ld * 4) };
        return;
    }
    let ldc = c.ld;
    for i in (0..height).step_by(ROWS) {
        let (a, c) = (a.wrapping_add(i * LINE), c.ptr.wrapping_add(i * c.ld));
        // SAFETY: rows from i on of the panel and of C.
        unsafe {
            match SIDE - i {
                ROWS.. => dot_rows::<ROWS>(a, b, steps, c, ldc),
                _ => dot_rows::<{ SIDE - 2 * ROWS }>(a, b, steps, c, ldc),
            }
        }
    }
}

/// `C[M, 32] += A · B`, by dot products of pairs.
///
/// # Safety
/// As for [`block`]; `a` begins at a row that `M - 1` others follow.
#[target_feature(enable = "avx512f,avx512bf16")]
unsafe fn dot_rows<const M: usize>(
    a: *const f32,
    b: *const f32,
    steps: usize,
    c: *mut f32,
    ldc: usize,
) {
    let mut sums = [[_mm512_setzero_ps(); 2]; M];
    // SAFETY: the caller's contract: row i of a step lies LINE slots behind row i - 1, across its two tiles.
    unsafe {
        for (i, sum) in sums.iter_mut().enumerate() {
            let row = c.add(i * ldc);
            *sum = [_mm512_loadu_ps(row), _mm512_loadu_ps(row.add(16))];
        }
        let (mut a, mut b) = (a, b);
        for _ in 0..steps {
            for pair in 0..LINE {
                let right = [
                    pairs(b.add(pair * LINE)),
                    pairs(b.add(TILES / 2 + pair * LINE)),
                ];
                for (i, sum) in sums.iter_mut().enumerate() {
                    let left = _mm512_set1_epi32(*a.add(i * LINE + pair).cast());
                    let left = bits(_mm512_castsi512_ps(left));
                    sum[0] = _mm512_dpbf16_ps(sum[0], left, right[0]);
                    sum[1] = _mm512_dpbf16_ps(sum[1], left, right[1]);
                }
            }
            a = a.add(TILES);
            b = b.add(TILES);
        }
        for (i, sum) in sums.iter().enumerate() {
            let row = c.add(i * ldc);
            _mm512_storeu_ps(row, sum[0]);
            _mm512_storeu_ps(row.add(16), sum[1]);
        }
    }
}

/// 32 packed values.
///
/// # Safety
/// 16 slots must be readable.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn pairs(from: *const f32) -> __m512bh {
    // SAFETY: the caller's contract.
    bits(unsafe { _mm512_loadu_ps(from) })
}

/// The same bits as 32 values of bfloat16.
#[inline]
#[target_feature(enable = "avx512f")]
fn bits(x: __m512) -> __m512bh {
    // SAFETY: both types are 512 plain bits.
    unsafe { std::mem::transmute(x) }
}

/// `C[32, 32] += A · B` over `steps` tile products.
///
/// # Safety
/// Tiles must be configured; `a` and `b` must hold `steps` pairs of tiles; C must hold the block, `ldc` bytes between rows.
unsafe fn tile_block(a: *const f32, b: *const f32, steps: usize, c: *mut f32, ldc: usize) {
    // SAFETY: the caller's contract. No compiled code uses tile registers.
    unsafe {
        asm!(
            "tileloadd tmm0, [{c0} + {ldc}*1]",
            "tileloadd tmm1, [{c0} + {ldc}*1 + 64]",
            "tileloadd tmm2, [{c1} + {ldc}*1]",
            "tileloadd tmm3, [{c1} + {ldc}*1 + 64]",
            "2:",
            "tileloadd tmm4, [{a} + {line}*1]",
            "tileloadd tmm6, [{b} + {line}*1]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{b} + {line}*1 + 1024]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{a} + {line}*1 + 1024]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            "add {a}, 2048",
            "add {b}, 2048",
            "dec {steps}",
            "jnz 2b",
            "tilestored [{c0} + {ldc}*1], tmm0",
            "tilestored [{c0} + {ldc}*1 + 64], tmm1",
            "tilestored [{c1} + {ldc}*1], tmm2",
            "tilestored [{c1} + {ldc}*1 + 64], tmm3",
            a = inout(reg) a => _,
            b = inout(reg) b => _,
            steps = inout(reg) steps => _,
            c0 = in(reg) c,
            c1 = in(reg) c.wrapping_byte_add(16 * ldc),
            ldc = in(reg) ldc,
            line = in(reg) 64usize,
            options(nostack),
        );
    }
}

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
unsafe fn pack_a(term: &RawTerm, i0: usize, rows: usize, k0: usize, kc: usize, dst: *mut f32) {
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
unsafe fn pack_b(b: RawB, k0: usize, kc: usize, j0: usize, nc: usize, dst: *mut f32) {
    // SAFETY: the caller's contract.
    unsafe {
        match b.dtype {
            DType::F32 => pack_b_typed::<F32>(b, k0, kc, j0, nc, dst),
            DType::F16 => pack_b_typed::<F16>(b, k0, kc, j0, nc, dst),
            DType::Bf16 => pack_b_typed::<BF16>(b, k0, kc, j0, nc, dst),
        }
    }
}

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
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
unsafe fn rows_of_two<const D: u8>(
    first: *const u8,
    second: *const u8,
    m0: __mmask16,
    m1: __mmask16,
) -> __m512i {
    // SAFETY: the caller's masks.
    unsafe {
        if D == BF16 {
            let low = _mm512_castsi256_si512(_mm256_maskz_loadu_epi16(m0, first.cast()));
            return _mm512_inserti64x4::<1>(low, _mm256_maskz_loadu_epi16(m1, second.cast()));
        }
        round(load::<D>(first, m0), load::<D>(second, m1))
    }
}

/// One tile of B from stored columns: a transposition of pairs.
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

/// Multiplies, on several threads if it is worth it.
///
/// # Safety
/// The unit must have been detected. The views must lie in readable memory, C in writable memory that nobody else touches.
pub(super) unsafe fn run(
    unit: Unit,
    terms: &[RawTerm],
    m: usize,
    n: usize,
    c: RawC,
    accumulate: bool,
) {
    let depth: usize = terms.iter().map(|term| term.k).sum();
    let parallel = m * n * depth >= SERIAL_OPS && rayon::current_num_threads() > 1;
    if !accumulate {
        clear(m, n, c, parallel);
    }
    let sliced: Vec<RawTerm> = terms
        .iter()
        .flat_map(|term| slices(*term, DEEPEST))
        .collect();
    let groups = if depth > DEEPEST {
        sliced.chunks(1)
    } else {
        sliced.chunks(sliced.len().max(1))
    };
    for group in groups {
        for i0 in (0..m).step_by(ROWS) {
            let rows = ROWS.min(m - i0);
            let at = |term: &RawTerm| RawTerm {
                a: term.a.rows_from(i0),
                ..*term
            };
            let group: Vec<RawTerm> = group.iter().map(at).collect();
            let c = RawC {
                ptr: c.ptr.wrapping_add(i0 * c.ld),
                ld: c.ld,
            };
            // SAFETY: the caller's contract, for these rows and this depth.
            unsafe { rows_of(unit, &group, rows, n, c, parallel) };
        }
    }
}

/// Fills C with zeros: tiles always add.
fn clear(m: usize, n: usize, c: RawC, parallel: bool) {
    let row = |i: usize| {
        let c = { c };
        // SAFETY: row i of the C that `run` may write.
        unsafe { std::slice::from_raw_parts_mut(c.ptr.wrapping_add(i * c.ld), n) }.fill(0.0);
    };
    if parallel {
        (0..m).into_par_iter().with_min_len(16).for_each(row);
    } else {
        (0..m).for_each(row);
    }
}

/// `(term, first depth, depth, tile steps before it)` for each depth block.
fn depth_blocks(terms: &[RawTerm]) -> Vec<(&RawTerm, usize, usize, usize)> {
    let mut before = 0;
    let mut blocks = Vec::new();
    for term in terms {
        for k0 in (0..term.k).step_by(KC) {
            let kc = KC.min(term.k - k0);
            blocks.push((term, k0, kc, before));
            before += kc.div_ceil(DEPTH);
        }
    }
    blocks
}

/// One block of rows: packs the left sides, then runs the tasks.
///
/// # Safety
/// As for [`run`].
unsafe fn rows_of(unit: Unit, terms: &[RawTerm], rows: usize, n: usize, c: RawC, parallel: bool) {
    let blocks = depth_blocks(terms);
    let panels = rows.div_ceil(SIDE);
    let steps: usize = blocks.iter().map(|block| block.2.div_ceil(DEPTH)).sum();
    with_scratch(panels * steps * TILES, |packed| {
        let out = RawC {
            ptr: packed.as_mut_ptr(),
            ld: 0,
        };
        let pack = |index: usize| {
            let out = { out };
            let (panel, block) = (index % panels, index / panels);
            let (term, k0, kc, before) = blocks[block];
            let at = (before * panels + panel * kc.div_ceil(DEPTH)) * TILES;
            let i0 = panel * SIDE;
            // SAFETY: the panel's own part of `packed`; the block lies inside A.
            unsafe { pack_a(term, i0, SIDE.min(rows - i0), k0, kc, out.ptr.add(at)) };
        };
        let count = panels * blocks.len();
        if parallel {
            (0..count).into_par_iter().with_min_len(4).for_each(pack);
        } else {
            (0..count).for_each(pack);
        }
        // SAFETY: the caller's contract; the left sides are packed.
        unsafe { multiply(unit, &blocks, (rows, n), packed, c, parallel) };
    });
}

/// The tasks: each packs its own columns of B and walks down the rows.
///
/// # Safety
/// As for [`run`]; `packed` holds the panels of all blocks.
unsafe fn multiply(
    unit: Unit,
    blocks: &[(&RawTerm, usize, usize, usize)],
    (rows, n): (usize, usize),
    packed: &[f32],
    c: RawC,
    parallel: bool,
) {
    let panels = rows.div_ceil(SIDE);
    let wanted = if parallel {
        3 * rayon::current_num_threads()
    } else {
        1
    };
    let nc = n
        .div_ceil(wanted)
        .next_multiple_of(SIDE)
        .clamp(2 * SIDE, WIDEST);
    let task = |index: usize| {
        let (c, j0) = ({ c }, index * nc);
        let cols = nc.min(n - j0);
        // SAFETY: `run` is only called with a unit that was detected.
        let _tiles = (unit == Unit::Tiles).then(|| unsafe { Tiles::configure() });
        with_scratch(cols.div_ceil(SIDE) * KC / DEPTH * TILES, |right| {
            for &(term, k0, kc, before) in blocks {
                let steps = kc.div_ceil(DEPTH);
                // SAFETY: the block lies inside B; `right` is ours.
                unsafe { pack_b(term.b, k0, kc, j0, cols, right.as_mut_ptr()) };
                for (jp, j) in (0..cols).step_by(SIDE).enumerate() {
                    for panel in 0..panels {
                        let (i0, width) = (panel * SIDE, (cols - j).min(SIDE));
                        let height = (rows - i0).min(SIDE);
                        let at = c.ptr.wrapping_add(i0 * c.ld + j0 + j);
                        let left = packed[(before * panels + panel * steps) * TILES..].as_ptr();
                        let b = right[jp * steps * TILES..].as_ptr();
                        // SAFETY: packed panels of `steps` products; tasks write disjoint blocks of C.
                        unsafe {
                            let at = RawC { ptr: at, ld: c.ld };
                            if height == SIDE && width == SIDE {
                                block(unit, left, b, steps, SIDE, at);
                            } else {
                                edge(unit, left, b, steps, at, (height, width));
                            }
                        }
                    }
                }
            }
        });
    };
    let tasks = n.div_ceil(nc);
    if parallel && tasks > 1 {
        (0..tasks).into_par_iter().with_max_len(1).for_each(task);
    } else {
        (0..tasks).for_each(task);
    }
}

/// A block that reaches over the edge of C, by way of a buffer.
///
/// # Safety
/// As for [`block`], but only `height` rows of `width` elements of C exist.
unsafe fn edge(
    unit: Unit,
    a: *const f32,
    b: *const f32,
    steps: usize,
    c: RawC,
    (height, width): (usize, usize),
) {
    let mut buffer = [0.0f32; SIDE * SIDE];
    let whole = RawC {
        ptr: buffer.as_mut_ptr(),
        ld: SIDE,
    };
    // SAFETY: the buffer is a whole block.
    unsafe { block(unit, a, b, steps, height, whole) };
    for (i, row) in buffer.chunks_exact(SIDE).enumerate().take(height) {
        // SAFETY: row i of the existing part.
        let out = unsafe { std::slice::from_raw_parts_mut(c.ptr.wrapping_add(i * c.ld), width) };
        out.iter_mut().zip(row).for_each(|(out, x)| *out += x);
    }
}
