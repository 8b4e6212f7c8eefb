//! The operators that the native pipeline fuses to, on the kernels of the crate `onnx-graft-kernels`.
//!
//! Tensors of heads are kept as `[batch, seq, heads, dim]` in memory and shown as `[batch, heads, seq, dim]`, so that the transposes
//! around an attention core are views.

use super::matmul::multiply_packed;
use super::{BuildCx, Cx, Entry, Ins, Kernel, OWN, Outs, plain, to_floats};
use crate::ir::DType;
use crate::runtime::value::{Fault, FloatRead, Floats, Host, KResult, Value, WeightBytes};
use crate::runtime::walk::count;
use onnx_graft_kernels::Heads;
use onnx_graft_kernels::activation::{self, Activation};
use onnx_graft_kernels::attention::{self, Attention, AttentionGrads, Mask, MaskData};
use onnx_graft_kernels::cross_entropy::{Head, IGNORE, linear_cross_entropy};
use onnx_graft_kernels::gemm::{Mat, MatMut, Rhs, Term, WeightRef, gemm};
use onnx_graft_kernels::norm::{self, Rows};
use onnx_graft_kernels::rotary::{Rotary, rotary};

fn some(values: impl IntoIterator<Item = Floats>) -> Outs {
    values.into_iter().map(|v| Some(Value::Float(v))).collect()
}

/// A tensor of rank 4 whose innermost axis is dense; others are copied.
fn heads(cx: &Cx<'_>, x: Floats) -> KResult<Floats> {
    let dense = {
        let read = x.read();
        let v = read.view()?;
        v.dims.len() == 4 && (v.strides[3] == 1 || v.dims[3] == 1)
    };
    if x.dims().len() != 4 {
        return Err(Fault(format!(
            "a tensor of heads has rank 4, not {}",
            x.dims().len()
        )));
    }
    if dense { Ok(x) } else { cx.dense(x) }
}

/// Elements and layout of a tensor shown as `[batch, heads, seq, dim]`.
fn layout<'a>(read: &'a FloatRead<'_>) -> KResult<(&'a [f32], Heads)> {
    let v = read.view()?;
    let (d, s) = (&v.dims, &v.strides);
    let heads = Heads {
        batch: d[0],
        heads: d[1],
        seq: d[2],
        dim: d[3],
        batch_step: s[0],
        head_step: s[1],
        seq_step: s[2],
    };
    Ok((v.data, heads))
}

/// A buffer for `[batch, heads, seq, dim]`, kept position by position.
fn by_position(of: Heads, dim: usize) -> Heads {
    Heads::bshd(of.batch, of.seq, of.heads, dim)
}

fn show(cx: &Cx<'_>, data: Vec<f32>, h: Heads) -> KResult<Floats> {
    let x = cx.floats(data, &[h.batch, h.seq, h.heads, h.dim], DType::Float)?;
    x.view(|t| t.transpose(1, 2))
}

fn size(h: Heads) -> KResult<usize> {
    count(&[h.batch, h.seq, h.heads, h.dim])
}

struct RmsNorm(f32);

impl Kernel for RmsNorm {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (x, w) = (ins.dense(0, cx)?, ins.dense(1, cx)?);
        let dims = x.dims().to_vec();
        let Some((&cols, rows)) = dims.split_last() else {
            return Err("a norm of a scalar".into());
        };
        let (mut y, mut inv) = (cx.alloc(count(&dims)?), cx.alloc(count(rows)?));
        let (rx, rw) = (x.read(), w.read());
        let of = Rows {
            x: rx.slice()?,
            cols,
            weight: Some(rw.slice()?),
        };
        norm::rms_norm(of, self.0, &mut y, &mut inv)?;
        Ok(some([
            cx.floats(y, &dims, DType::Float)?,
            cx.floats(inv, rows, DType::Float)?,
        ]))
    }
}

struct RmsNormGrad {
    weight: bool,
}

impl Kernel for RmsNormGrad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (x, w, inv, g) = (
            ins.dense(0, cx)?,
            ins.dense(1, cx)?,
            ins.dense(2, cx)?,
            ins.dense(3, cx)?,
        );
        let dims = x.dims().to_vec();
        let cols = dims.last().copied().unwrap_or(0);
        let mut dx = cx.alloc(count(&dims)?);
        let mut dw = if self.weight {
            cx.alloc(cols)
        } else {
            Vec::new()
        };
        let (rx, rw) = (x.read(), w.read());
        let of = Rows {
            x: rx.slice()?,
            cols,
            weight: Some(rw.slice()?),
        };
        norm::rms_norm_backward(
            of,
            inv.read().slice()?,
            g.read().slice()?,
            false,
            &mut dx,
            self.weight.then_some(&mut dw[..]),
        )?;
        let dx = cx.floats(dx, &dims, DType::Float)?;
        if self.weight {
            Ok(some([dx, cx.floats(dw, &[cols], DType::Float)?]))
        } else {
            Ok(some([dx]))
        }
    }
}

struct RotaryEmbedding {
    inverse: bool,
}

impl Kernel for RotaryEmbedding {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let x = heads(cx, ins.floats(0)?)?;
        let (cos, sin) = (ins.dense(1, cx)?, ins.dense(2, cx)?);
        let read = x.read();
        let (data, from) = layout(&read)?;
        let rows = |t: &Floats| t.dims().iter().take(3).product::<usize>();
        if rows(&cos) != rows(&sin) {
            return Err("the tables of sines and cosines differ in shape".into());
        }
        let (rc, rs) = (cos.read(), sin.read());
        let tables = Rotary {
            cos: rc.slice()?,
            sin: rs.slice()?,
            rows: rows(&cos),
            positions: None,
            width: from.dim,
            dim: from.dim,
            interleaved: false,
        };
        let to = by_position(from, from.dim);
        let mut y = cx.alloc(size(to)?);
        rotary(data, from, &tables, self.inverse, &mut y, to)?;
        Ok(some([show(cx, y, to)?]))
    }
}

/// A mask in the kernel's form.
enum MaskValue {
    None,
    Add(Floats, [usize; 4]),
    Keep(Host, [usize; 4]),
}

impl MaskValue {
    fn read(cx: &Cx<'_>, ins: &mut Ins) -> KResult<Self> {
        if !ins.has(3) {
            return Ok(MaskValue::None);
        }
        let m = plain(ins.take(3)?)?;
        let rank = m.dims().len();
        if rank > 4 {
            return Err(Fault(format!("a mask of rank {rank}")));
        }
        let mut dims = [1; 4];
        dims[4 - rank..].copy_from_slice(m.dims());
        match m {
            Value::Host(h) => Ok(MaskValue::Keep(h, dims)),
            m => {
                let mut m = to_floats(m, 3)?;
                // An expanded mask is read as it was before.
                for axis in 0..rank {
                    if m.tensor().stride()[axis] == 0 && m.dims()[axis] > 1 {
                        m = m.view(|t| t.narrow(axis, 0, 1))?;
                        dims[4 - rank + axis] = 1;
                    }
                }
                Ok(MaskValue::Add(cx.dense(m)?, dims))
            }
        }
    }

    /// Calls `f` with the mask as the kernel takes it.
    fn with<R>(&self, f: impl FnOnce(Option<Mask<'_>>) -> KResult<R>) -> KResult<R> {
        match self {
            MaskValue::None => f(None),
            MaskValue::Add(m, dims) => {
                let read = m.read();
                f(Some(Mask {
                    data: MaskData::Add(read.slice()?),
                    dims: *dims,
                }))
            }
            MaskValue::Keep(m, dims) => f(Some(Mask {
                data: MaskData::Keep(m.bytes()?),
                dims: *dims,
            })),
        }
    }
}

struct AttentionCore {
    scale: f32,
}

impl AttentionCore {
    fn spec<'a>(
        &self,
        [q, k, v]: [Heads; 3],
        mask: Option<Mask<'a>>,
        live: Option<&'a [usize]>,
    ) -> Attention<'a> {
        Attention {
            q,
            k,
            v,
            out: by_position(q, v.dim),
            scale: self.scale,
            causal: None,
            mask,
            live,
        }
    }
}

/// How many queries of each batch entry count: those at `tokens`, which are the first ones of each.
fn live(ins: &Ins, slot: usize, q: Heads) -> KResult<Option<Vec<usize>>> {
    let Some(tokens) = ins.ints_opt(slot)? else {
        return Ok(None);
    };
    let mut counts = vec![0; q.batch];
    for token in tokens {
        let at = super::size_of(token)?;
        let count = counts.get_mut(at / q.seq.max(1));
        match count.filter(|n| **n == at % q.seq.max(1)) {
            Some(n) => *n += 1,
            None => return Err(Fault(format!("token {at} is not behind those of its row"))),
        }
    }
    Ok(Some(counts))
}

impl Kernel for AttentionCore {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let q = heads(cx, ins.floats(0)?)?;
        let k = heads(cx, ins.floats(1)?)?;
        let v = heads(cx, ins.floats(2)?)?;
        let mask = MaskValue::read(cx, &mut ins)?;
        let (rq, rk, rv) = (q.read(), k.read(), v.read());
        let ((dq, hq), (dk, hk), (dv, hv)) = (layout(&rq)?, layout(&rk)?, layout(&rv)?);
        let out = by_position(hq, hv.dim);
        let rows = [hq.batch, hq.heads, hq.seq];
        let live = live(&ins, 4, hq)?;
        let (mut y, mut lse) = (cx.alloc(size(out)?), cx.alloc(count(&rows)?));
        mask.with(|mask| {
            let spec = self.spec([hq, hk, hv], mask, live.as_deref());
            Ok(attention::forward(&spec, dq, dk, dv, &mut y, &mut lse)?)
        })?;
        Ok(some([
            show(cx, y, out)?,
            cx.floats(lse, &rows, DType::Float)?,
        ]))
    }
}

struct AttentionGrad(AttentionCore);

impl Kernel for AttentionGrad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let mut dense =
            |slot: usize| -> KResult<Floats> { by_position_dense(cx, ins.floats(slot)?) };
        let (q, k, v) = (dense(0)?, dense(1)?, dense(2)?);
        let (y, g) = (dense(4)?, dense(6)?);
        let lse = ins.dense(5, cx)?;
        let mask = MaskValue::read(cx, &mut ins)?;
        let (rq, rk, rv, ry, rg) = (q.read(), k.read(), v.read(), y.read(), g.read());
        let ((dq, hq), (dk, hk), (dv, hv)) = (layout(&rq)?, layout(&rk)?, layout(&rv)?);
        let ((dy, _), (dg, _)) = (layout(&ry)?, layout(&rg)?);
        let live = live(&ins, 7, hq)?;
        let (mut gq, mut gk, mut gv) = (
            cx.alloc(size(hq)?),
            cx.alloc(size(hk)?),
            cx.alloc(size(hv)?),
        );
        let grads = AttentionGrads {
            dq: &mut gq,
            dk: &mut gk,
            dv: &mut gv,
        };
        mask.with(|mask| {
            let spec = self.0.spec([hq, hk, hv], mask, live.as_deref());
            Ok(attention::backward(
                &spec,
                (dq, dk, dv),
                (dy, lse.read().slice()?),
                dg,
                grads,
            )?)
        })?;
        Ok(some([
            show(cx, gq, hq)?,
            show(cx, gk, hk)?,
            show(cx, gv, hv)?,
        ]))
    }
}

/// The tensor kept position by position without gaps; copied if it is not.
fn by_position_dense(cx: &Cx<'_>, x: Floats) -> KResult<Floats> {
    if x.dims().len() != 4 {
        return Err(Fault(format!(
            "a tensor of heads has rank 4, not {}",
            x.dims().len()
        )));
    }
    let turned = x.view(|t| t.transpose(1, 2))?;
    drop(x);
    cx.dense(turned)?.view(|t| t.transpose(1, 2))
}

struct Unary(Activation);

impl Kernel for Unary {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let x = ins.floats(0)?;
        let dims = x.dims().to_vec();
        let mut y = cx.buffer(x)?;
        activation::forward(self.0, &mut y);
        cx.one(y, &dims, DType::Float)
    }
}

struct UnaryGrad(Activation);

impl Kernel for UnaryGrad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (x, g) = (ins.dense(0, cx)?, ins.dense(1, cx)?);
        let mut dx = cx.alloc(count(x.dims())?);
        activation::backward(self.0, x.read().slice()?, g.read().slice()?, &mut dx)?;
        cx.one(dx, x.dims(), DType::Float)
    }
}

/// The form of a GELU.
fn form(cx: &BuildCx<'_>) -> KResult<Activation> {
    match cx.node.str("approximate") {
        None | Some("none") => Ok(Activation::Gelu),
        Some("tanh") => Ok(Activation::GeluTanh),
        Some(other) => Err(Fault(format!("approximate = {other:?}"))),
    }
}

struct LayerNormGrad(f32);

impl Kernel for LayerNormGrad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (x, w, g) = (ins.dense(0, cx)?, ins.dense(1, cx)?, ins.dense(2, cx)?);
        let (read, weight) = (x.read(), w.read());
        let weight = weight.slice()?;
        let norm = norm::LayerNorm {
            cols: weight.len(),
            weight: Some(weight),
            bias: None,
            eps: self.0,
            center: true,
        };
        let mut dx = cx.alloc(count(x.dims())?);
        norm::layer_norm_backward(read.slice()?, &norm, g.read().slice()?, &mut dx)?;
        cx.one(dx, x.dims(), DType::Float)
    }
}

struct Gated(Activation);

impl Kernel for Gated {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (a, b) = (ins.dense(0, cx)?, ins.dense(1, cx)?);
        let mut y = cx.alloc(count(a.dims())?);
        activation::gated(self.0, a.read().slice()?, b.read().slice()?, &mut y)?;
        cx.one(y, a.dims(), DType::Float)
    }
}

struct GatedGrad(Activation);

impl Kernel for GatedGrad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (a, b, g) = (ins.dense(0, cx)?, ins.dense(1, cx)?, ins.dense(2, cx)?);
        let dims = a.dims().to_vec();
        // Dying operands become the results.
        let (mut da, mut db, mut dy) = (cx.buffer(a)?, cx.buffer(b)?, cx.buffer(g)?);
        activation::gated_backward_in_place(self.0, &mut da, &mut db, &mut dy)?;
        cx.pool.give(dy);
        Ok(some([
            cx.floats(da, &dims, DType::Float)?,
            cx.floats(db, &dims, DType::Float)?,
        ]))
    }
}

/// A stored matrix as the right side of a product.
pub(super) fn stored<'a>(w: &WeightBytes<'a>, dims: &[usize]) -> KResult<Option<WeightRef<'a>>> {
    let Some(dtype) = crate::runtime::value::stored(w.dtype) else {
        return Ok(None);
    };
    let &[mut rows, mut cols] = dims else {
        return Ok(None);
    };
    if w.transposed {
        std::mem::swap(&mut rows, &mut cols);
    }
    Ok(Some(WeightRef::new(dtype, w.bytes, rows, cols)?))
}

struct LinearCrossEntropy {
    ignore: i64,
    gradient: bool,
}

impl Kernel for LinearCrossEntropy {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let h = ins.dense(0, cx)?;
        let w = ins.take(1)?;
        let labels = ins.host(2)?;
        let divisor = if ins.has(3) {
            Some(ins.scalar(3)?)
        } else {
            None
        };
        let &[batch, seq, width] = h.dims() else {
            return Err("hidden states have rank 3".into());
        };
        if labels.dims() != [batch, seq] {
            return Err(Fault(format!(
                "labels {:?} for hidden states {:?}",
                labels.dims(),
                h.dims()
            )));
        }
        let targets = self.targets(&labels.ints()?, seq);
        let counted = targets.iter().filter(|&&t| t != IGNORE).count();
        let divisor = divisor.unwrap_or(counted as f32);
        let scale = if counted == 0 { 0.0 } else { 1.0 / divisor };
        let mut grad = if self.gradient {
            cx.alloc(targets.len() * width)
        } else {
            Vec::new()
        };
        let out = self.gradient.then_some(&mut grad[..]);
        let read = h.read();
        let hidden = read.slice()?;
        let loss = if let Value::Weight(weight) = &w
            && let Some(bytes) = weight.matrix()
            && let Some(head) = stored(&bytes, weight.dims())?
        {
            let head = Head {
                weight: Rhs::from(head),
                transposed: bytes.transposed,
                precision: cx.precision,
            };
            linear_cross_entropy(hidden, width, head, &targets, scale, out)?
        } else {
            let w = cx.dense(to_floats(w, 1)?)?;
            let &[rows, cols] = w.dims() else {
                return Err("the head is a matrix".into());
            };
            let read = w.read();
            let weight = Rhs::from(Mat::new(read.slice()?, rows, cols)?);
            let head = Head {
                weight,
                transposed: false,
                precision: cx.precision,
            };
            linear_cross_entropy(hidden, width, head, &targets, scale, out)?
        };
        let mut value = cx.alloc(1);
        value[0] = (loss / f64::from(divisor)) as f32;
        let mut outs = vec![cx.floats(value, &[], DType::Float)?];
        if self.gradient {
            outs.push(cx.floats(grad, &[batch, seq, width], DType::Float)?);
        }
        Ok(some(outs))
    }
}

impl LinearCrossEntropy {
    /// The label of the next position for each position.
    fn targets(&self, labels: &[i64], seq: usize) -> Vec<i64> {
        let mut out = Vec::with_capacity(labels.len());
        for row in labels.chunks(seq.max(1)) {
            out.extend(
                row.iter()
                    .skip(1)
                    .map(|&l| if l == self.ignore { IGNORE } else { l }),
            );
            out.push(IGNORE);
        }
        out
    }
}

struct MatMulAdd {
    alpha: f32,
    trans_a: bool,
    trans_b: bool,
}

impl Kernel for MatMulAdd {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let c = ins.floats(0)?;
        let dtype = c.dtype();
        let a = ins.dense(1, cx)?;
        let b = ins.take(2)?;
        let dims = c.dims().to_vec();
        let mut out = cx.buffer(c)?;
        let (bd, ad) = (b.dims().to_vec(), a.dims().to_vec());
        let (&[br, bc], Some(&last)) = (&bd[..], ad.last()) else {
            return Err("a product needs matrices".into());
        };
        let n = if self.trans_b { br } else { bc };
        let rows = count(&ad)? / last.max(1);
        let m = count(&dims)?.checked_div(n).unwrap_or(0);
        if let Value::Weight(w) = &b
            && let Some((codes, turned)) = w.codes()
        {
            let read = a.read();
            let left = super::matmul::Mat::dense(read.slice()?, rows, last);
            let left = if self.trans_a { left.t() } else { left };
            let turned = turned != self.trans_b;
            multiply_packed(cx, &mut out, left, codes, turned, self.alpha, true)?;
        } else {
            let read = a.read();
            let left = Mat::new(read.slice()?, rows, last)?;
            let flat;
            let flat_read;
            let weight = match &b {
                Value::Weight(w) => w.matrix(),
                _ => None,
            };
            let (rhs, turned): (Rhs<'_>, bool) = match weight
                .map(|w| stored(&w, &bd).map(|s| (s, w.transposed)))
                .transpose()?
            {
                Some((Some(w), turned)) => (w.into(), turned),
                _ => {
                    flat = cx.dense(to_floats(b, 2)?)?;
                    flat_read = flat.read();
                    (Mat::new(flat_read.slice()?, br, bc)?.into(), false)
                }
            };
            let mut term = Term::new(left, rhs).scaled(self.alpha);
            if self.trans_a {
                term = term.trans_a();
            }
            if self.trans_b != turned {
                term = term.trans_b();
            }
            gemm(cx.precision, &[term], true, MatMut::new(&mut out, m, n)?)?;
        }
        cx.one(out, &dims, dtype)
    }
}

fn attention_core(cx: &BuildCx<'_>) -> AttentionCore {
    AttentionCore {
        scale: cx.float("scale", 1.0),
    }
}

pub(super) const KERNELS: &[Entry] = &[
    (OWN, "RMSNormalization", |cx| {
        Ok(Box::new(RmsNorm(cx.float("epsilon", 1e-5))))
    }),
    (OWN, "RMSNormalizationGrad", |cx| {
        Ok(Box::new(RmsNormGrad {
            weight: cx.wants(1),
        }))
    }),
    (OWN, "RotaryEmbedding", |cx| {
        Ok(Box::new(RotaryEmbedding {
            inverse: cx.flag("inverse"),
        }))
    }),
    (OWN, "Attention", |cx| Ok(Box::new(attention_core(cx)))),
    (OWN, "AttentionGrad", |cx| {
        Ok(Box::new(AttentionGrad(attention_core(cx))))
    }),
    (OWN, "LayerNormalization", super::norm::layer_norm_of_last),
    (OWN, "LayerNormalizationGrad", |cx| {
        Ok(Box::new(LayerNormGrad(cx.float("epsilon", 1e-5))))
    }),
    (OWN, "Gelu", |cx| Ok(Box::new(Unary(form(cx)?)))),
    (OWN, "GeluGrad", |cx| Ok(Box::new(UnaryGrad(form(cx)?)))),
    (OWN, "Silu", |_| Ok(Box::new(Unary(Activation::Silu)))),
    (OWN, "SiluGrad", |_| {
        Ok(Box::new(UnaryGrad(Activation::Silu)))
    }),
    (OWN, "SwiGLU", |_| Ok(Box::new(Gated(Activation::Silu)))),
    (OWN, "SwiGLUGrad", |_| {
        Ok(Box::new(GatedGrad(Activation::Silu)))
    }),
    (OWN, "LinearCrossEntropy", |cx| {
        Ok(Box::new(LinearCrossEntropy {
            ignore: cx.int("ignore_index", -100),
            gradient: cx.wants(1),
        }))
    }),
    (OWN, "MatMulAdd", |cx| {
        Ok(Box::new(MatMulAdd {
            alpha: cx.float("alpha", 1.0),
            trans_a: cx.flag("transA"),
            trans_b: cx.flag("transB"),
        }))
    }),
];
