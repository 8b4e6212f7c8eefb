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

mod pack;

use self::pack::{pack_a, pack_b};
use super::block::SERIAL_OPS;
use super::raw::{RawC, RawTerm};
use crate::isa::Unit;
use crate::scratch::with_scratch;
use crate::team;
use std::arch::asm;
use std::arch::x86_64::{
    __m512, __m512bh, _mm512_castsi512_ps, _mm512_dpbf16_ps, _mm512_loadu_ps, _mm512_set1_epi32,
    _mm512_setzero_ps, _mm512_storeu_ps,
};

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
        // SAFETY: tiles are configured, and the operands and C hold whole blocks, as the caller vouches.
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
    // SAFETY: the caller vouches for the operands and for C; row i of a step lies LINE slots behind row i - 1, across its two tiles.
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
    // SAFETY: the caller vouches for the 16 slots.
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
    // SAFETY: the caller vouches for tile state, operands and C. No compiled code uses tile registers.
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
    let parallel = m * n * depth >= SERIAL_OPS && team::threads() > 1;
    if !accumulate {
        clear(m, n, c, parallel);
    }
    let sliced: Vec<RawTerm> = terms.iter().flat_map(|term| term.slices(DEEPEST)).collect();
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
            // SAFETY: these rows and this depth are part of what the caller vouches for.
            unsafe { rows_of(unit, &group, rows, n, c, parallel) };
        }
    }
}

/// Fills C with zeros: tiles always add.
fn clear(m: usize, n: usize, c: RawC, parallel: bool) {
    let row = |i: usize| {
        let c = { c };
        // SAFETY: row i of the C that the caller of `run` lets it write.
        unsafe { std::slice::from_raw_parts_mut(c.ptr.wrapping_add(i * c.ld), n) }.fill(0.0);
    };
    if parallel {
        team::range(m, row);
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
            team::range(count, pack);
        } else {
            (0..count).for_each(pack);
        }
        // SAFETY: the caller vouches for B, for C and for the unit; the left sides are packed.
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
    let wanted = if parallel { 3 * team::threads() } else { 1 };
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
        team::range(tasks, task);
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
