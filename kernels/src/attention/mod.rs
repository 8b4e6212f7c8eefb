//! Scaled dot-product attention, forward and backward, without the score tensor.
//!
//! One task per batch entry and key/value head prepares keys and values once, and walks over the query heads that share them in
//! blocks of rows; only the scores of one block exist. The forward pass keeps the log-sum-exp of each row, from which the backward
//! pass recomputes the probabilities (Dao et al., "`FlashAttention`", 2022, section 3.1). Semantics: ONNX `Attention` (opset 23)
//! without softcap; a row whose keys are all masked gives zeros.
//!
//! Keys that no row of a block sees are left out of all products: the time is that of what is visible (`spans`).
#![expect(
    unsafe_code,
    reason = "tasks write disjoint heads of strided views, which are checked before"
)]
#![expect(
    clippy::inline_always,
    reason = "loop bodies must be compiled with the features of their caller"
)]

use self::spans::{Spans, clipped, placed};
use crate::gemm::packed::{Packed, multiply_on_thread, pack, packed_len};
use crate::gemm::raw::{RawA, RawB, RawC};
use crate::isa::Isa;
use crate::scratch::with_scratch;
use crate::softmax::{dot_row, exp_row, softmax_row_on};
use crate::team;
use crate::{DType, Heads, KernelError, Result, check_dim, check_len, product};
use std::ops::Range;

mod spans;

/// Query rows whose scores exist at once, at most.
const ROWS: usize = 48;
/// Scores that exist at once per thread, unless one tile of rows needs more.
const SCORES: usize = 1 << 18;

/// What may attend to what, beside the causal rule.
#[derive(Clone, Copy, Debug)]
pub enum MaskData<'a> {
    /// Added to the scaled scores.
    Add(&'a [f32]),
    /// 0 removes a score, anything else keeps it.
    Keep(&'a [u8]),
}

/// A mask broadcast to `[batch, heads, seq, keys]`; each dimension is full or 1.
#[derive(Clone, Copy, Debug)]
pub struct Mask<'a> {
    /// The values, dense.
    pub data: MaskData<'a>,
    /// Their shape.
    pub dims: [usize; 4],
}

/// Shapes and rules of an attention.
#[derive(Clone, Copy, Debug)]
pub struct Attention<'a> {
    /// Queries; `heads` is a multiple of the key heads.
    pub q: Heads,
    /// Keys.
    pub k: Heads,
    /// Values; `dim` may differ from that of the keys.
    pub v: Heads,
    /// The result, `dim` of the values.
    pub out: Heads,
    /// Factor of the scores.
    pub scale: f32,
    /// Causal rule: query `i` sees keys `0..=i + offset`.
    pub causal: Option<usize>,
    /// Further restriction.
    pub mask: Option<Mask<'a>>,
    /// Queries of each batch entry that count, from its first one on; the others, which are padding, give zeros.
    pub live: Option<&'a [usize]>,
}

/// Operands of the backward pass. All gradients are overwritten and have the layout of what they are the gradient of.
#[derive(Debug)]
pub struct AttentionGrads<'a> {
    /// Gradient of the queries.
    pub dq: &'a mut [f32],
    /// Gradient of the keys.
    pub dk: &'a mut [f32],
    /// Gradient of the values.
    pub dv: &'a mut [f32],
}

/// `out = softmax(scale · q · kᵀ + mask) · v`, and the log-sum-exp of each row in `lse`, `[batch, heads, seq]`.
pub fn forward(
    spec: &Attention<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    out: &mut [f32],
    lse: &mut [f32],
) -> Result<()> {
    forward_on(Isa::detect(), spec, (q, k, v), out, lse)
}

fn forward_on(
    isa: Isa,
    spec: &Attention<'_>,
    (q, k, v): (&[f32], &[f32], &[f32]),
    out: &mut [f32],
    lse: &mut [f32],
) -> Result<()> {
    spec.check(q, k, v, lse.len())?;
    spec.out.check_mut("attention result", out.len())?;
    let (seq, group) = (spec.q.seq, spec.group());
    if lse.is_empty() {
        return Ok(());
    }
    lse.fill(f32::NEG_INFINITY);
    let out = RawC {
        ptr: out.as_mut_ptr(),
        ld: spec.out.seq_step,
    };
    let spans = Spans::new(spec);
    // The rows of `lse` that belong to one key head are consecutive.
    let heads = lse.chunks_mut(group * seq).enumerate();
    team::each(heads, |(task, lse)| {
        let (batch, kv) = (task / spec.k.heads, task % spec.k.heads);
        // SAFETY: the views were checked; heads of different tasks do not overlap.
        unsafe { forward_task(isa, spec, &spans, (batch, kv), (q, k, v), out, lse) };
    });
    Ok(())
}

/// Gradients of [`forward`] from its operands, its result and `lse`, given the gradient `dout` in the layout of `out`.
pub fn backward(
    spec: &Attention<'_>,
    (q, k, v): (&[f32], &[f32], &[f32]),
    (out, lse): (&[f32], &[f32]),
    dout: &[f32],
    grads: AttentionGrads<'_>,
) -> Result<()> {
    backward_on(Isa::detect(), spec, (q, k, v), (out, lse), dout, grads)
}

fn backward_on(
    isa: Isa,
    spec: &Attention<'_>,
    (q, k, v): (&[f32], &[f32], &[f32]),
    (out, lse): (&[f32], &[f32]),
    dout: &[f32],
    grads: AttentionGrads<'_>,
) -> Result<()> {
    spec.check(q, k, v, lse.len())?;
    spec.out.check("attention result", out.len())?;
    spec.out.check("gradient of the result", dout.len())?;
    spec.q
        .check_mut("gradient of the queries", grads.dq.len())?;
    spec.k.check_mut("gradient of the keys", grads.dk.len())?;
    spec.v.check_mut("gradient of the values", grads.dv.len())?;
    let saved = Saved {
        q,
        k,
        v,
        out,
        lse,
        dout,
    };
    let raw = |data: &mut [f32], at: Heads| RawC {
        ptr: data.as_mut_ptr(),
        ld: at.seq_step,
    };
    let AttentionGrads { dq, dk, dv } = grads;
    let grads = [raw(dq, spec.q), raw(dk, spec.k), raw(dv, spec.v)];
    let spans = Spans::new(spec);
    team::range(spec.k.batch * spec.k.heads, |task| {
        let (batch, kv) = (task / spec.k.heads, task % spec.k.heads);
        // SAFETY: the views were checked; heads of different tasks do not overlap.
        unsafe { backward_task(isa, spec, &spans, (batch, kv), saved, grads) };
    });
    Ok(())
}

#[derive(Clone, Copy)]
struct Saved<'a> {
    q: &'a [f32],
    k: &'a [f32],
    v: &'a [f32],
    out: &'a [f32],
    lse: &'a [f32],
    dout: &'a [f32],
}

impl Attention<'_> {
    fn group(&self) -> usize {
        self.q.heads / self.k.heads.max(1)
    }

    fn check(&self, q: &[f32], k: &[f32], v: &[f32], lse: usize) -> Result<()> {
        self.q.check("queries", q.len())?;
        self.k.check("keys", k.len())?;
        self.v.check("values", v.len())?;
        check_dim("batch of the keys", self.k.batch, self.q.batch)?;
        check_dim("batch of the values", self.v.batch, self.q.batch)?;
        check_dim("batch of the result", self.out.batch, self.q.batch)?;
        check_dim("head size of the keys", self.k.dim, self.q.dim)?;
        check_dim("head size of the result", self.out.dim, self.v.dim)?;
        check_dim("positions of the values", self.v.seq, self.k.seq)?;
        check_dim("positions of the result", self.out.seq, self.q.seq)?;
        check_dim("value heads", self.v.heads, self.k.heads)?;
        check_dim("heads of the result", self.out.heads, self.q.heads)?;
        check_dim(
            "query heads over key heads",
            self.group() * self.k.heads,
            self.q.heads,
        )?;
        let full = [self.q.batch, self.q.heads, self.q.seq, self.k.seq];
        check_len(
            "row statistics",
            lse,
            product("row statistics", &full[..3])?,
        )?;
        if let Some(live) = self.live {
            check_len("numbers of queries", live.len(), self.q.batch)?;
        }
        let Some(mask) = self.mask else { return Ok(()) };
        for (dim, full) in mask.dims.into_iter().zip(full) {
            if dim != 1 && dim != full {
                return Err(KernelError::Dim {
                    what: "dimension of the mask",
                    found: dim,
                    expected: full,
                });
            }
        }
        let len = match mask.data {
            MaskData::Add(data) => data.len(),
            MaskData::Keep(data) => data.len(),
        };
        check_len("mask", len, product("mask", &mask.dims)?)
    }

    /// Rows of a block: whole register tiles, few enough scores.
    fn rows(&self) -> usize {
        (SCORES / self.k.seq.max(1)).clamp(12, ROWS) / 12 * 12
    }

    /// Queries of a batch entry that count.
    fn live(&self, batch: usize) -> usize {
        self.live.map_or(self.q.seq, |l| l[batch].min(self.q.seq))
    }

    /// Keys that query `row` may see by the causal rule.
    fn visible(&self, row: usize) -> usize {
        self.causal.map_or(self.k.seq, |offset| {
            (row + 1).saturating_add(offset).min(self.k.seq)
        })
    }

    /// Adds the mask to the scores of one row, which are those of the first keys of `spans`, one behind the other.
    fn mask_row(
        &self,
        (batch, row, head): (usize, usize, usize),
        spans: &[Range<usize>],
        scores: &mut [f32],
    ) {
        let Some(mask) = self.mask else {
            return;
        };
        let start = mask.row(batch, head, row);
        let mut rest = scores;
        for keys in spans {
            let (scores, next) = rest.split_at_mut(keys.len().min(rest.len()));
            mask.add(start, keys.start, scores);
            rest = next;
        }
    }
}

impl Mask<'_> {
    /// Where the values of a row of queries start.
    fn row(&self, batch: usize, head: usize, row: usize) -> usize {
        let dims = self.dims;
        let pick = |axis: usize, index: usize| if dims[axis] == 1 { 0 } else { index };
        ((pick(0, batch) * dims[1] + pick(1, head)) * dims[2] + pick(2, row)) * dims[3]
    }

    /// Adds the values of a row, from key `key` on.
    fn add(&self, start: usize, key: usize, scores: &mut [f32]) {
        let one = self.dims[3] == 1;
        let from = if one { start } else { start + key };
        match self.data {
            MaskData::Add(data) if !one => {
                scores
                    .iter_mut()
                    .zip(&data[from..])
                    .for_each(|(score, bias)| *score += bias);
            }
            MaskData::Add(data) => scores.iter_mut().for_each(|score| *score += data[from]),
            MaskData::Keep(data) => {
                for (t, score) in scores.iter_mut().enumerate() {
                    let keep = data[if one { from } else { from + t }];
                    *score = if keep != 0 { *score } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// The rows of one head as a left operand.
fn left(at: Heads, data: &[f32], (batch, seq, head): (usize, usize, usize)) -> RawA {
    RawA {
        ptr: data.as_ptr().wrapping_add(at.at(batch, seq, head)),
        rs: at.seq_step,
        cs: 1,
    }
}

/// The rows of one head as a right operand, transposed if asked.
fn right(at: Heads, data: &[f32], (batch, seq, head): (usize, usize, usize), trans: bool) -> RawB {
    RawB::new(
        DType::F32,
        data.as_ptr().wrapping_add(at.at(batch, seq, head)).cast(),
        at.seq_step,
        trans,
    )
}

/// Where the rows of one head start in a result.
fn result(at: Heads, c: RawC, (batch, seq, head): (usize, usize, usize)) -> RawC {
    RawC {
        ptr: c.ptr.wrapping_add(at.at(batch, seq, head)),
        ld: c.ld,
    }
}

/// All query heads of one key head.
///
/// # Safety
/// The views must have been checked; nobody else touches these heads of `out`.
unsafe fn forward_task(
    isa: Isa,
    spec: &Attention<'_>,
    spans: &Spans,
    (batch, kv): (usize, usize),
    (q, k, v): (&[f32], &[f32], &[f32]),
    out: RawC,
    lse: &mut [f32],
) {
    let (dim, value_dim) = (spec.q.dim, spec.v.dim);
    let heads = kv * spec.group()..(kv + 1) * spec.group();
    let keys = spans.reach_of(batch, heads);
    let (rows, live) = (spec.rows(), spec.live(batch));
    let sizes = [
        packed_len(dim, keys),
        packed_len(keys, value_dim),
        rows * keys,
    ];
    with_scratch(sizes.iter().sum(), |space| {
        let (k_space, space) = space.split_at_mut(sizes[0]);
        let (v_space, scores) = space.split_at_mut(sizes[1]);
        // SAFETY: `Attention::check` found all vectors of the head inside of the slices, which outlive the packed operand.
        let k_packed = unsafe {
            pack(
                isa,
                right(spec.k, k, (batch, 0, kv), true),
                dim,
                keys,
                k_space,
            )
        };
        // SAFETY: `Attention::check` found all vectors of the head inside of the slices, which outlive the packed operand.
        let v_packed = unsafe {
            pack(
                isa,
                right(spec.v, v, (batch, 0, kv), false),
                keys,
                value_dim,
                v_space,
            )
        };
        for (h, lse) in lse.chunks_exact_mut(spec.q.seq).enumerate() {
            let head = kv * spec.group() + h;
            let at = (batch, live, head);
            // SAFETY: the rows of `out` from `live` on exist, and belong to this task.
            unsafe { zero(result(spec.out, out, at), spec.q.seq - live, value_dim) };
            for (block, lse) in lse[..live].chunks_mut(rows).enumerate() {
                let (r0, m) = (block * rows, lse.len());
                let seen = spans.of(batch, head, block);
                let width = clipped(seen, keys);
                let at = (batch, r0, head);
                for (column, keys_at) in placed(seen) {
                    let score = RawC {
                        ptr: scores.as_mut_ptr().wrapping_add(column),
                        ld: keys,
                    };
                    // SAFETY: `m` rows from `at` on exist; scores hold `m * keys` elements.
                    unsafe {
                        multiply_on_thread(
                            (m, keys_at.len(), dim),
                            spec.scale,
                            left(spec.q, q, at),
                            &k_packed.part(0, keys_at.start),
                            score,
                            false,
                        );
                    }
                }
                for (i, (lse, row)) in lse
                    .iter_mut()
                    .zip(scores.chunks_exact_mut(keys.max(1)))
                    .enumerate()
                {
                    let visible = clipped(seen, spec.visible(r0 + i));
                    spec.mask_row((batch, r0 + i, head), seen, &mut row[..visible]);
                    *lse = softmax_row_on(isa, &mut row[..visible]);
                    row[visible..width].fill(0.0);
                }
                let to = result(spec.out, out, at);
                // SAFETY: the rows of `out` from `at` on belong to this task.
                unsafe { mix((m, value_dim), (scores, keys), seen, &v_packed, to) };
            }
        }
    });
}

/// `C = A · B` over the depth of `spans`, whose columns of A (of row stride `stride`) stand one behind the other; zeros if there is none.
///
/// # Safety
/// As for [`multiply_on_thread`].
unsafe fn mix(
    (m, n): (usize, usize),
    (a, stride): (&[f32], usize),
    spans: &[Range<usize>],
    b: &Packed<'_>,
    c: RawC,
) {
    if spans.is_empty() {
        // SAFETY: the rows of C are what the caller lets us write.
        unsafe { zero(c, m, n) };
    }
    for (column, keys) in placed(spans) {
        let a = RawA {
            ptr: a.as_ptr().wrapping_add(column),
            rs: stride,
            cs: 1,
        };
        let b = b.part(keys.start, 0);
        // SAFETY: the spans lie inside of A and B, and the caller vouches for A, B and C.
        unsafe { multiply_on_thread((m, n, keys.len()), 1.0, a, &b, c, column > 0) };
    }
}

/// Fills `rows` rows of `width` elements with zeros.
///
/// # Safety
/// The rows must be writable and nobody else's.
unsafe fn zero(c: RawC, rows: usize, width: usize) {
    for i in 0..rows {
        // SAFETY: row i of the caller's block.
        unsafe { std::slice::from_raw_parts_mut(c.ptr.wrapping_add(i * c.ld), width) }.fill(0.0);
    }
}

/// Right operands that all blocks of a backward task share.
struct Shared<'a> {
    /// Keys, transposed.
    k_turned: Packed<'a>,
    /// Keys.
    k: Packed<'a>,
    /// Values, transposed.
    v_turned: Packed<'a>,
}

/// Gradients of one key head and of the query heads that share it.
///
/// # Safety
/// The views must have been checked; nobody else touches these heads of the gradients.
unsafe fn backward_task(
    isa: Isa,
    spec: &Attention<'_>,
    spans: &Spans,
    (batch, kv): (usize, usize),
    saved: Saved<'_>,
    grads: [RawC; 3],
) {
    let (dim, value_dim) = (spec.q.dim, spec.v.dim);
    let heads = kv * spec.group()..(kv + 1) * spec.group();
    let keys = spans.reach_of(batch, heads.clone());
    let (rows, head0, live) = (spec.rows(), (batch, 0, kv), spec.live(batch));
    // SAFETY: these heads belong to this task.
    unsafe {
        zero(result(spec.k, grads[1], head0), spec.k.seq, dim);
        zero(result(spec.v, grads[2], head0), spec.k.seq, value_dim);
        for head in heads.clone() {
            let padding = result(spec.q, grads[0], (batch, live, head));
            zero(padding, spec.q.seq - live, dim);
        }
    }
    let sizes = [
        packed_len(dim, keys),
        packed_len(keys, dim),
        packed_len(value_dim, keys),
    ];
    with_scratch(sizes.iter().sum(), |space| {
        let (k_turned, space) = space.split_at_mut(sizes[0]);
        let (k, v_turned) = space.split_at_mut(sizes[1]);
        // SAFETY: `Attention::check` found all vectors of the head inside of the slices, which outlive the packed operand.
        let shared = unsafe {
            Shared {
                k_turned: pack(
                    isa,
                    right(spec.k, saved.k, head0, true),
                    dim,
                    keys,
                    k_turned,
                ),
                k: pack(isa, right(spec.k, saved.k, head0, false), keys, dim, k),
                v_turned: pack(
                    isa,
                    right(spec.v, saved.v, head0, true),
                    value_dim,
                    keys,
                    v_turned,
                ),
            }
        };
        for head in heads {
            for (block, r0) in (0..live).step_by(rows).enumerate() {
                let at = Block {
                    first: (batch, r0, head),
                    rows: rows.min(live - r0),
                    kv,
                    keys,
                    seen: spans.of(batch, head, block),
                };
                // SAFETY: these rows belong to the heads that the caller vouches for.
                unsafe { backward_block(isa, spec, &at, saved, &shared, grads) };
            }
        }
    });
}

/// One block of query rows.
struct Block<'a> {
    /// Batch entry, row and head of the first.
    first: (usize, usize, usize),
    rows: usize,
    /// The head of the keys.
    kv: usize,
    /// Keys that any block of these heads sees.
    keys: usize,
    /// Keys that some row sees.
    seen: &'a [Range<usize>],
}

/// Adds the gradients of a block, and sets those of its queries.
///
/// # Safety
/// As for [`backward_task`].
unsafe fn backward_block(
    isa: Isa,
    spec: &Attention<'_>,
    block: &Block<'_>,
    saved: Saved<'_>,
    shared: &Shared<'_>,
    [dq, dk, dv]: [RawC; 3],
) {
    let Block {
        first: at,
        rows: m,
        kv,
        keys,
        seen,
    } = *block;
    let (batch, r0, head) = at;
    let (dim, value_dim) = (spec.q.dim, spec.v.dim);
    let width = clipped(seen, keys);
    let sizes = [
        m * keys,
        m * keys,
        packed_len(m, value_dim),
        packed_len(m, dim),
    ];
    with_scratch(sizes.iter().sum(), |space| {
        let (probs, space) = space.split_at_mut(sizes[0]);
        let (grad, space) = space.split_at_mut(sizes[1]);
        let (dout_space, q_space) = space.split_at_mut(sizes[2]);
        for (column, keys_at) in placed(seen) {
            let to = |space: &mut [f32]| RawC {
                ptr: space.as_mut_ptr().wrapping_add(column),
                ld: keys,
            };
            let part = |b: &'_ Packed<'_>, depth: usize, scale: f32, a: RawA, c: RawC| {
                let b = b.part(0, keys_at.start);
                // SAFETY: `m` rows from `at` on exist; both score blocks hold `m * keys` elements.
                unsafe { multiply_on_thread((m, keys_at.len(), depth), scale, a, &b, c, false) };
            };
            let (q, dout) = (left(spec.q, saved.q, at), left(spec.out, saved.dout, at));
            part(&shared.k_turned, dim, spec.scale, q, to(probs));
            part(&shared.v_turned, value_dim, 1.0, dout, to(grad));
        }
        let rows = probs
            .chunks_exact_mut(keys.max(1))
            .zip(grad.chunks_exact_mut(keys.max(1)));
        for (i, (probs, grad)) in rows.enumerate() {
            let (row, visible) = (r0 + i, clipped(seen, spec.visible(r0 + i)));
            let from = spec.out.at(batch, row, head);
            let vector = from..from + value_dim;
            let delta = dot_row(isa, &saved.out[vector.clone()], &saved.dout[vector]);
            spec.mask_row((batch, row, head), seen, &mut probs[..visible]);
            exp_row(
                isa,
                &mut probs[..visible],
                saved.lse[(batch * spec.q.heads + head) * spec.q.seq + row],
            );
            score_gradient(
                isa,
                &probs[..visible],
                delta,
                spec.scale,
                &mut grad[..visible],
            );
            probs[visible..width].fill(0.0);
            grad[visible..width].fill(0.0);
        }
        let (probs, grad): (&[f32], &[f32]) = (probs, grad);
        // SAFETY: these heads of the gradients belong to this task.
        unsafe {
            mix(
                (m, dim),
                (grad, keys),
                seen,
                &shared.k,
                result(spec.q, dq, at),
            );
            let dout = pack(
                isa,
                right(spec.out, saved.dout, at, false),
                m,
                value_dim,
                dout_space,
            );
            let q = pack(isa, right(spec.q, saved.q, at, false), m, dim, q_space);
            for (column, keys_at) in placed(seen) {
                let turned = |x: &[f32]| RawA {
                    ptr: x.as_ptr().wrapping_add(column),
                    rs: 1,
                    cs: keys,
                };
                let (first, n) = ((batch, keys_at.start, kv), keys_at.len());
                let to = result(spec.v, dv, first);
                multiply_on_thread((n, value_dim, m), 1.0, turned(probs), &dout, to, true);
                let to = result(spec.k, dk, first);
                multiply_on_thread((n, dim, m), 1.0, turned(grad), &q, to, true);
            }
        }
    });
}

multiversion! {
    /// `grad = probs * (grad - delta) * scale`: from the gradient of the probabilities to that of the unscaled scores.
    fn score_gradient(probs: &[f32], delta: f32, scale: f32, grad: &mut [f32]) = score_gradient_body
}

#[inline(always)]
fn score_gradient_body<const FMA: bool>(probs: &[f32], delta: f32, scale: f32, grad: &mut [f32]) {
    for (grad, &p) in grad.iter_mut().zip(probs) {
        *grad = p * (*grad - delta) * scale;
    }
}

#[cfg(test)]
mod tests;
