//! The product on vector instructions of our own: which way a shape takes, blocks, and tasks.
#![expect(
    unsafe_code,
    reason = "tiles of C are written through a pointer by several tasks; the checked door is `gemm`"
)]

use super::block::THIN;
use super::raw::{RawA, RawB, RawC, RawTerm};
use super::skinny::skinny;
use super::unit::{Block, LINES, ROWS, Unit};
use crate::DType;
use crate::scratch::with_scratch;
use crate::team;
use crate::widen::widen_all;

/// Packed elements of A kept at once.
const A_KEPT: usize = 1 << 21;
/// Depth whose left sides are packed at once.
const DEEPEST: usize = 1 << 13;
/// Rows of C up to which a right operand is used as it is stored, by rows or by lines: packing it costs more than it saves.
const FEW: (usize, usize) = (8, 16);

/// Chooses between the ways.
///
/// # Safety
/// The views must lie in readable memory, C in writable memory that nobody else touches; the unit's instructions must be present.
pub(super) unsafe fn run<U: Unit>(
    terms: &[RawTerm],
    m: usize,
    n: usize,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    let lined = terms.iter().all(|term| term.b.cs != 1);
    let few = m <= if lined { FEW.1 } else { FEW.0 };
    if !few && (n > 2 * THIN || m <= U::MR) {
        // SAFETY: the caller vouches for the views, for C, and for the instructions.
        unsafe { blocked::<U>(terms, m, n, c, accumulate, parallel) };
        return;
    }
    let mut accumulate = accumulate;
    for &term in terms.iter().filter(|term| term.k > 0) {
        // SAFETY: the caller vouches for the views of each term, for C, and for the instructions; alignment is checked where it is
        // asked for.
        unsafe {
            if few {
                skinny::<U>(term, m, n, c, accumulate);
            } else if term.a.cs == 1 {
                narrow::<U>(term, m, n, c, accumulate, parallel);
            } else if term.b.dtype == DType::F32 && term.b.ptr.align_offset(align_of::<f32>()) == 0
            {
                mirrored::<U>(term, m, n, c, accumulate, parallel);
            } else {
                blocked::<U>(&[term], m, n, c, accumulate, parallel);
            }
        }
        accumulate = true;
    }
}

/// Few columns: dot products of rows of A with the columns of B, which are laid out as lines if they are not.
///
/// # Safety
/// As for [`run`].
unsafe fn narrow<U: Unit>(
    term: RawTerm,
    m: usize,
    n: usize,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    let RawTerm { alpha, a, b, k } = term;
    let padded = k.next_multiple_of(16);
    with_scratch(n * padded, |lines| {
        // SAFETY: B is readable.
        unsafe { pack_lines(b, k, n, padded, lines) };
        let b = RawB::new(DType::F32, lines.as_ptr().cast(), padded, true);
        let task = |from: usize, rows: usize| {
            for i in (from..from + rows).step_by(ROWS) {
                let count = ROWS.min(from + rows - i);
                for j in (0..n).step_by(LINES) {
                    let lines = LINES.min(n - j);
                    // SAFETY: rows from i on of A and C and lines from j on of B; tasks write disjoint rows; the instructions are present.
                    unsafe {
                        let sums = U::dots(a.rows_from(i), count, b.columns_from(j), lines, k);
                        c.put((i, count), (j, lines), alpha, &sums, accumulate);
                    }
                }
            }
        };
        if parallel {
            let step = m.div_ceil(4 * team::threads()).next_multiple_of(ROWS);
            team::range(m.div_ceil(step), |p| {
                task(p * step, step.min(m - p * step));
            });
        } else {
            task(0, m);
        }
    });
}

/// Copies the columns of B (`[k, n]`, at most `2 * THIN` columns) to lines `padded` elements apart.
///
/// # Safety
/// The view must be readable.
unsafe fn pack_lines(b: RawB, k: usize, n: usize, padded: usize, lines: &mut [f32]) {
    let size = b.dtype.size();
    if b.cs != 1 {
        for (j, line) in lines.chunks_exact_mut(padded).enumerate().take(n) {
            let stored = b.ptr.wrapping_add(j * b.cs * size);
            // SAFETY: column j is stored as k consecutive elements.
            widen_all(
                b.dtype,
                unsafe { std::slice::from_raw_parts(stored, k * size) },
                &mut line[..k],
            );
        }
        return;
    }
    let mut row = [0.0; 2 * THIN];
    for at in 0..k {
        let stored = b.ptr.wrapping_add(at * b.rs * size);
        // SAFETY: row `at` is stored as n consecutive elements.
        widen_all(
            b.dtype,
            unsafe { std::slice::from_raw_parts(stored, n * size) },
            &mut row[..n],
        );
        for (j, &value) in row[..n].iter().enumerate() {
            lines[j * padded + at] = value;
        }
    }
}

/// Few columns and a transposed A: computes the transposed result, which is wide, and writes it back.
///
/// # Safety
/// As for [`run`]; `b` must be aligned `f32`.
unsafe fn mirrored<U: Unit>(
    term: RawTerm,
    m: usize,
    n: usize,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    let RawTerm { alpha, a, b, k } = term;
    with_scratch(m * n, |turned| {
        let left = RawA {
            ptr: b.ptr.cast(),
            rs: b.cs,
            cs: b.rs,
        };
        let right = RawB {
            ptr: a.ptr.cast(),
            dtype: DType::F32,
            rs: a.cs,
            cs: a.rs,
        };
        let out = RawC {
            ptr: turned.as_mut_ptr(),
            ld: m,
        };
        let mirror = RawTerm {
            alpha,
            a: left,
            b: right,
            k,
        };
        // SAFETY: the same operands with swapped roles; the result is our buffer.
        unsafe { blocked::<U>(&[mirror], n, m, out, false, parallel) };
        for i in 0..m {
            // SAFETY: row i of C.
            let row = unsafe { std::slice::from_raw_parts_mut(c.ptr.add(i * c.ld), n) };
            for (j, value) in row.iter_mut().enumerate() {
                *value = turned[j * m + i] + if accumulate { *value } else { 0.0 };
            }
        }
    });
}

/// The blocked product: A packed once per block of rows, B packed by each task for its own columns.
///
/// # Safety
/// As for [`run`].
unsafe fn blocked<U: Unit>(
    terms: &[RawTerm],
    m: usize,
    n: usize,
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    let depth: usize = terms.iter().map(|term| term.k).sum();
    if depth > DEEPEST {
        let mut accumulate = accumulate;
        for term in terms.iter().flat_map(|term| term.slices(DEEPEST)) {
            // SAFETY: a part of the depth of one product.
            unsafe { blocked::<U>(&[term], m, n, c, accumulate, parallel) };
            accumulate = true;
        }
        return;
    }
    let block = (A_KEPT / depth.max(1) / U::MR).max(4) * U::MR;
    for i0 in (0..m).step_by(block) {
        let rows = block.min(m - i0);
        let terms: Vec<_> = terms
            .iter()
            .filter(|term| term.k > 0)
            .map(|term| RawTerm {
                a: term.a.rows_from(i0),
                ..*term
            })
            .collect();
        let c = RawC {
            ptr: c.ptr.wrapping_add(i0 * c.ld),
            ld: c.ld,
        };
        let panels = rows.div_ceil(U::MR);
        with_scratch(panels * U::MR * depth, |packed| {
            // SAFETY: these rows of A and C are part of what the caller vouches for; `packed` has room for all panels.
            unsafe {
                pack_left::<U>(&terms, rows, packed, parallel);
                multiply_packed::<U>(&terms, rows, n, packed, c, accumulate, parallel);
            }
        });
    }
}

/// Splits the depth of all terms into blocks: `(term, first depth, depth, depth before it over all terms)`.
fn depth_blocks<U: Unit>(
    terms: &[RawTerm],
) -> impl Iterator<Item = (&RawTerm, usize, usize, usize)> {
    let mut before = 0;
    terms.iter().flat_map(move |term| {
        let start = before;
        before += term.k;
        (0..term.k)
            .step_by(U::KC)
            .map(move |k0| (term, k0, U::KC.min(term.k - k0), start + k0))
    })
}

/// Packs the left sides: for each depth block, all panels; block at `before * U::MR * panels`.
///
/// # Safety
/// The left sides must have `rows` readable rows; the instructions must be present; `packed` must hold the panels of all blocks.
unsafe fn pack_left<U: Unit>(terms: &[RawTerm], rows: usize, packed: &mut [f32], parallel: bool) {
    let panels = rows.div_ceil(U::MR);
    let out = RawC {
        ptr: packed.as_mut_ptr(),
        ld: 0,
    };
    let pack = |panel: usize| {
        let out = { out }.ptr;
        for (term, k0, kc, before) in depth_blocks::<U>(terms) {
            let i0 = panel * U::MR;
            // SAFETY: the panel's own part of `packed`; the block lies inside A.
            unsafe {
                let dst = out.add((before * panels + panel * kc) * U::MR);
                U::pack_a(term.a, i0, U::MR.min(rows - i0), k0, kc, dst);
            }
        }
    };
    if parallel && packed.len() >= 1 << 16 {
        team::range(panels, pack);
    } else {
        (0..panels).for_each(pack);
    }
}

/// Runs the tasks of one block of rows.
///
/// # Safety
/// As for [`run`]; `packed` must hold what [`pack_left`] made of these terms and rows.
unsafe fn multiply_packed<U: Unit>(
    terms: &[RawTerm],
    rows: usize,
    n: usize,
    packed: &[f32],
    c: RawC,
    accumulate: bool,
    parallel: bool,
) {
    let panels = rows.div_ceil(U::MR);
    let (nc, splits) = partition::<U>(panels, n, parallel);
    let per_split = panels.div_ceil(splits);
    let task = |index: usize| {
        let (j0, p0) = ((index / splits) * nc, (index % splits) * per_split);
        if p0 >= panels {
            return;
        }
        let (cols, count) = (nc.min(n - j0), per_split.min(panels - p0));
        let m = (rows - p0 * U::MR).min(count * U::MR);
        let c_at = { c }.ptr.wrapping_add(p0 * U::MR * c.ld + j0);
        with_scratch(U::KC * cols.next_multiple_of(U::NR), |right| {
            for (step, (term, k0, kc, before)) in depth_blocks::<U>(terms).enumerate() {
                let block = Block {
                    m,
                    n: cols,
                    kc,
                    a_step: kc * U::MR,
                    b_step: kc * U::NR,
                    ldc: c.ld,
                    alpha: term.alpha,
                    accumulate: accumulate || step > 0,
                };
                // SAFETY: the packed panels p0..p0 + count of this depth block; tasks write disjoint blocks of C.
                unsafe {
                    U::pack_b(term.b, k0, kc, j0, cols, right.as_mut_ptr());
                    let left = packed.as_ptr().add((before * panels + p0 * kc) * U::MR);
                    U::multiply(block, left, right.as_ptr(), c_at);
                }
            }
        });
    };
    let tasks = n.div_ceil(nc) * splits;
    if parallel && tasks > 1 {
        team::range(tasks, task);
    } else {
        (0..tasks).for_each(task);
    }
}

/// Columns of a task, and into how many parts the rows are split. The partition never changes a result.
fn partition<U: Unit>(panels: usize, n: usize, parallel: bool) -> (usize, usize) {
    const WIDEST: usize = 128;
    if !parallel {
        return (n.next_multiple_of(U::NR).min(WIDEST), 1);
    }
    let wanted = 3 * team::threads();
    let nc = n
        .div_ceil(wanted)
        .next_multiple_of(U::NR)
        .clamp(4 * U::NR, WIDEST);
    let columns = n.div_ceil(nc);
    let splits = wanted.div_ceil(columns).min(panels.div_ceil(4)).max(1);
    (nc, if columns >= wanted { 1 } else { splits })
}
