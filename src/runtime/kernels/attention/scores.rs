//! The core of all attention operators: scores, softmax and the mix of values, one head at a time.

use super::super::Cx;
use super::super::matmul::{Mat, multiply};
use super::super::rotary::Layout;
use crate::runtime::value::{Fault, Floats, KResult};
use crate::runtime::walk::{self, View, count};
use onnx_graft_kernels::softmax::softmax_row;
use onnx_graft_kernels::team;

/// Shape of an attention.
#[derive(Clone, Copy, Debug)]
struct Shape {
    heads: usize,
    kv: usize,
    seq: usize,
    keys: usize,
    vdim: usize,
}

/// What changes the scores, in this order: factor, cap, mask.
pub(super) struct Scores<'a> {
    pub(super) scale: f32,
    pub(super) softcap: f32,
    /// Query `i` of a batch entry sees the keys of this range.
    pub(super) visible: &'a (dyn Fn(usize, usize) -> std::ops::Range<usize> + Sync),
    /// Added, broadcast to `[batch, heads, seq, keys]`.
    pub(super) bias: Option<&'a View<'a, f32>>,
    /// A score of each head that takes part in the softmax and nowhere else.
    pub(super) sink: Option<&'a [f32]>,
    /// Which form of the scores is a result, too.
    pub(super) keep: Option<Stage>,
}

/// Stages of the scores, in the order of `qk_matmul_output_mode`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Stage {
    Product,
    Capped,
    Masked,
    Softmax,
}

/// Splits `[b, s, h·d]` into heads, as a view; `[b, h, s, d]` is as it should be.
pub(super) fn heads(cx: &Cx<'_>, x: Floats, heads: i64) -> KResult<Floats> {
    let dims = x.dims().to_vec();
    if dims.len() == 4 {
        return Ok(x);
    }
    let l = Layout::of(&dims, heads)?;
    let x = cx.dense(x)?;
    x.view(|t| {
        t.reshape((dims[0], l.seq, l.heads, l.dim))?
            .permute((0, 2, 1, 3))
    })
}

pub(super) fn last(x: &Floats) -> KResult<[usize; 4]> {
    <[usize; 4]>::try_from(x.dims()).map_err(|_| Fault(format!("{:?}, expected rank 4", x.dims())))
}

pub(super) fn attend(
    cx: &Cx<'_>,
    q: &Floats,
    k: &Floats,
    v: &Floats,
    s: &Scores<'_>,
) -> KResult<Floats> {
    attend_and_keep(cx, q, k, v, s).map(|r| r.0)
}

/// The result, and the scores if they are asked for.
pub(super) fn attend_and_keep(
    cx: &Cx<'_>,
    q: &Floats,
    k: &Floats,
    v: &Floats,
    s: &Scores<'_>,
) -> KResult<(Floats, Option<Floats>)> {
    let ([b, h, n, d], [kb, kv, t, kd], [vb, vh, vt, e]) = (last(q)?, last(k)?, last(v)?);
    let fits = kb == b && vb == b && kd == d && vh == kv && vt == t && kv > 0 && h % kv == 0;
    if !fits {
        return Err(Fault(format!(
            "queries {:?}, keys {:?}, values {:?}",
            q.dims(),
            k.dims(),
            v.dims()
        )));
    }
    let shape = Shape {
        heads: h,
        kv,
        seq: n,
        keys: t,
        vdim: e,
    };
    let dims = [b, h, n, e];
    let dtype = q.dtype();
    let mut out = cx.zeros(count(&dims)?);
    let mut kept = match s.keep {
        Some(_) => cx.zeros(count(&[b, h, n, t])?),
        None => Vec::new(),
    };
    if n * e > 0 && t > 0 {
        let (q, k, v) = (q.read(), k.read(), v.read());
        let views = [q.view()?, k.view()?, v.view()?];
        let bias = s
            .bias
            .map(|m| {
                let to = [b, h, n, t];
                if walk::broadcast(&[&m.dims, &to])? != to {
                    return Err(Fault(format!("a mask of {:?} for {to:?}", m.dims)));
                }
                Ok(walk::broadcast_strides(&m.dims, &m.strides, &to))
            })
            .transpose()?;
        let pieces: Vec<&mut [f32]> = if kept.is_empty() {
            (0..b * h).map(|_| &mut [][..]).collect()
        } else {
            kept.chunks_mut(n * t).collect()
        };
        let heads = out.chunks_mut(n * e).zip(pieces).enumerate();
        team::try_each(heads, |(i, (o, scores))| {
            head(cx, shape, &views, s, bias.as_deref(), i, (o, scores))
        })?;
    }
    let kept = match s.keep {
        Some(_) => Some(cx.floats(kept, &[b, h, n, t], dtype)?),
        None => None,
    };
    Ok((cx.floats(out, &dims, dtype)?, kept))
}

/// The rows of one head.
fn mat<'a>(x: &View<'a, f32>, b: usize, h: usize, rows: usize) -> Mat<'a> {
    Mat {
        data: &x.data[b * x.strides[0] + h * x.strides[1]..],
        rows,
        cols: x.dims[3],
        row: x.strides[2],
        col: x.strides[3],
    }
}

/// One head of one batch entry.
fn head(
    cx: &Cx<'_>,
    s: Shape,
    [q, k, v]: &[View<'_, f32>; 3],
    rule: &Scores<'_>,
    bias: Option<&[usize]>,
    i: usize,
    (out, kept): (&mut [f32], &mut [f32]),
) -> KResult<()> {
    let (b, h) = (i / s.heads, i % s.heads);
    let g = h / (s.heads / s.kv);
    let mut scores = cx.alloc(s.seq * s.keys);
    let (q, k) = (mat(q, b, h, s.seq), mat(k, b, g, s.keys));
    multiply(cx, &mut scores, s.keys, q, k.t(), rule.scale, false)?;
    let mut keep = |stage: Stage, r: usize, row: &[f32]| {
        if rule.keep == Some(stage) {
            kept[r * s.keys..(r + 1) * s.keys].copy_from_slice(row);
        }
    };
    for (r, row) in scores.chunks_mut(s.keys).enumerate() {
        keep(Stage::Product, r, row);
        if rule.softcap > 0.0 {
            row.iter_mut()
                .for_each(|x| *x = rule.softcap * (*x / rule.softcap).tanh());
        }
        keep(Stage::Capped, r, row);
        if let (Some(m), Some(st)) = (rule.bias, bias) {
            let at = b * st[0] + h * st[1] + r * st[2];
            row.iter_mut()
                .enumerate()
                .for_each(|(j, x)| *x += m.data[at + j * st[3]]);
        }
        let see = (rule.visible)(b, r);
        for (j, x) in row.iter_mut().enumerate() {
            if !see.contains(&j) {
                *x = f32::NEG_INFINITY;
            }
        }
        keep(Stage::Masked, r, row);
        if row.iter().all(|x| *x == f32::NEG_INFINITY) {
            row.fill(0.0);
        } else if let Some(sink) = rule.sink {
            sunk_row(row, sink[h]);
        } else {
            softmax_row(row);
        }
        keep(Stage::Softmax, r, row);
    }
    let p = Mat::dense(&scores, s.seq, s.keys);
    multiply(cx, out, s.vdim, p, mat(v, b, g, s.keys), 1.0, false)?;
    cx.pool.give(scores);
    Ok(())
}

/// The softmax of a row and one more score, which is left out.
fn sunk_row(row: &mut [f32], sink: f32) {
    let lse = softmax_row(row);
    // What the others get when the sink takes its part: a sigmoid.
    let share = 1.0 / (1.0 + (sink - lse).exp());
    row.iter_mut().for_each(|x| *x *= share);
}
