//! Sums of products of 8-bit integers, exact: `MatMulInteger`, `ConvInteger`.

use super::conv::{Axis, Frame};
use super::{Cx, Entry, Ins, Kernel, Outs, one, plain, size_of};
use crate::ir::DType;
use crate::runtime::value::{Fault, Host, KResult, Value, Weight};
use crate::runtime::walk::{self, count, row_major};
use onnx_graft_kernels::team;

/// Bytes of an 8-bit operand, from the file where they are there.
pub(super) enum Bytes {
    File(Weight),
    Host(Host),
}

impl Bytes {
    pub(super) fn of(v: Value) -> KResult<Self> {
        match v {
            Value::Weight(w) if w.bytes().is_some() => Ok(Bytes::File(w)),
            v => match plain(v)? {
                Value::Host(h) => Ok(Bytes::Host(h)),
                v => Err(Fault(format!(
                    "found {}, expected 8-bit integers",
                    v.dtype()
                ))),
            },
        }
    }

    pub(super) fn get(&self) -> KResult<&[u8]> {
        match self {
            Bytes::File(w) => w.bytes().ok_or_else(|| "a permuted weight".into()),
            Bytes::Host(h) => h.bytes(),
        }
    }

    /// To be held on to; those of a file are not copied.
    pub(super) fn shared(&self) -> KResult<bytes::Bytes> {
        match self {
            Bytes::File(w) => w.shared().ok_or_else(|| "a permuted weight".into()),
            Bytes::Host(h) => Ok(h.bytes()?.to_vec().into()),
        }
    }
}

fn wide(b: u8, signed: bool) -> i32 {
    if signed {
        i32::from(b as i8)
    } else {
        i32::from(b)
    }
}

/// `out[j] += l · w[j]`, wrapping.
fn add_row(out: &mut [i32], l: i32, w: &[u8], signed: bool) {
    if signed {
        for (s, &b) in out.iter_mut().zip(w) {
            *s = s.wrapping_add(l * i32::from(b as i8));
        }
    } else {
        for (s, &b) in out.iter_mut().zip(w) {
            *s = s.wrapping_add(l * i32::from(b));
        }
    }
}

/// A zero point that holds for all elements, or for one of `n` rows or columns; the last two axes of an operand of more are `[n, 1]` or
/// `[1, n]`.
struct Zero(Vec<i64>);

impl Zero {
    fn new(v: Option<Vec<i64>>, n: usize, batches: usize) -> KResult<Self> {
        let v = v.unwrap_or_else(|| vec![0]);
        if v.len() == 1 || v.len() == n || v.len() == n * batches {
            Ok(Zero(v))
        } else {
            Err(Fault(format!("{} zero points for {n}", v.len())))
        }
    }

    fn at(&self, batch: usize, i: usize, n: usize) -> i32 {
        let at = match self.0.len() {
            1 => 0,
            len if len == n => i,
            _ => batch * n + i,
        };
        self.0[at] as i32
    }
}

/// `MatMulInteger(a, b, a zero?, b zero?) -> i32`, with the shapes of `MatMul`.
struct MatMulInteger;

impl Kernel for MatMulInteger {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (za, zb) = (ins.ints_opt(2)?, ins.ints_opt(3)?);
        let (a, b) = (ins.take(0)?, ins.take(1)?);
        let (mut da, mut db) = (a.dims().to_vec(), b.dims().to_vec());
        let bad = || Fault(format!("a product of {:?} and {:?}", a.dims(), b.dims()));
        let (row, column) = (da.len() == 1, db.len() == 1);
        if row {
            da.insert(0, 1);
        }
        if column {
            db.push(1);
        }
        let ([la @ .., m, k], [lb @ .., kb, n]) = (&da[..], &db[..]) else {
            return Err(bad());
        };
        if k != kb {
            return Err(bad());
        }
        let (m, k, n) = (*m, *k, *n);
        let batch = walk::broadcast(&[la, lb])?;
        let batches = count(&batch)?;
        let sa = walk::broadcast_strides(la, &row_major(la), &batch);
        let sb = walk::broadcast_strides(lb, &row_major(lb), &batch);
        let steps = row_major(&batch);
        let at = |i: usize, s: &[usize]| -> usize {
            let each = steps.iter().zip(&batch).zip(s);
            each.map(|((step, size), s)| i / step % size * s).sum()
        };
        let signed = [a.dtype() == DType::Int8, b.dtype() == DType::Int8];
        let mut dims = batch.clone();
        if !row {
            dims.push(m);
        }
        if !column {
            dims.push(n);
        }
        let za = Zero::new(za, m, count(la)?)?;
        let zb = Zero::new(zb, n, count(lb)?)?;
        let (na, nb) = (count(&da)?, count(&db)?);
        let (a, b) = (Bytes::of(a)?, Bytes::of(b)?);
        let (x, w) = (a.get()?, b.get()?);
        if x.len() != na || w.len() != nb {
            return Err("operands of 8 bits are expected".into());
        }
        let mut out = vec![0i64; batches * m * n];
        if n > 0 {
            team::each(out.chunks_mut(n).enumerate(), |(r, o)| {
                let (i, r) = (r / m, r % m);
                let (ia, ib) = (at(i, &sa), at(i, &sb));
                let left = &x[(ia * m + r) * k..(ia * m + r + 1) * k];
                let right = &w[ib * k * n..(ib + 1) * k * n];
                let z = za.at(ia, r, m);
                let mut sums = vec![0i32; n];
                let mut total = 0i32;
                for (p, &l) in left.iter().enumerate() {
                    let l = wide(l, signed[0]) - z;
                    total = total.wrapping_add(l);
                    if l != 0 {
                        add_row(&mut sums, l, &right[p * n..(p + 1) * n], signed[1]);
                    }
                }
                for (j, (o, s)) in o.iter_mut().zip(sums).enumerate() {
                    *o = i64::from(s.wrapping_sub(zb.at(ib, j, n).wrapping_mul(total)));
                }
            });
        }
        one(Host::from_ints(DType::Int32, dims, out)?)
    }
}

/// `ConvInteger(x, w, x zero?, w zero?) -> i32`; padding is the zero point of `x`.
struct ConvInteger {
    frame: Frame,
    group: i64,
}

impl Kernel for ConvInteger {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let zx = ins.ints_opt(2)?.unwrap_or_else(|| vec![0]);
        let zw = ins.ints_opt(3)?;
        let (x, w) = (ins.take(0)?, ins.take(1)?);
        let (dx, dw) = (x.dims().to_vec(), w.dims().to_vec());
        let bad = || Fault(format!("an input of {dx:?} and a kernel of {dw:?}"));
        let groups = size_of(self.group)?;
        let fits = dx.len() == dw.len()
            && dx.len() > 2
            && groups > 0
            && dx[1] == dw[1] * groups
            && dw[0].is_multiple_of(groups);
        if !fits {
            return Err(bad());
        }
        let rank = dx.len() - 2;
        let axes: Vec<Axis> = (0..rank)
            .map(|i| self.frame.axis(i, rank, dx[i + 2], dw[i + 2]))
            .collect::<KResult<_>>()?;
        let (filters, per) = (dw[0], dw[1]);
        let zw = Zero::new(zw, filters, 1)?;
        let mut dims = vec![dx[0], filters];
        dims.extend(axes.iter().map(|a| a.out));
        let (area, plane, taps) = (count(&dims[2..])?, count(&dx[2..])?, count(&dw[2..])?);
        let signed = [x.dtype() == DType::Int8, w.dtype() == DType::Int8];
        let (x, w) = (Bytes::of(x)?, Bytes::of(w)?);
        let (src, kernel) = (x.get()?, w.get()?);
        if src.len() != count(&dx)? || kernel.len() != count(&dw)? {
            return Err("operands of 8 bits are expected".into());
        }
        // Where each tap of each window reads; nothing in the padding.
        let reads: Vec<Option<usize>> = (0..area * taps)
            .map(|i| {
                let (mut o, mut t, mut flat, mut step) = (i / taps, i % taps, 0, 1);
                for axis in axes.iter().rev() {
                    flat += axis.at(o % axis.out, t % axis.kernel)? * step;
                    step *= axis.size;
                    o /= axis.out;
                    t /= axis.kernel;
                }
                Some(flat)
            })
            .collect();
        let zx = zx[0] as i32;
        let mut out = vec![0i64; count(&dims)?];
        if area > 0 {
            team::each(out.chunks_mut(area).enumerate(), |(p, o)| {
                let (b, f) = (p / filters, p % filters);
                let first = f / (filters / groups) * per;
                let z = zw.at(0, f, filters);
                for (i, o) in o.iter_mut().enumerate() {
                    let mut sum = 0i32;
                    for c in 0..per {
                        let from = (b * dx[1] + first + c) * plane;
                        let weight = (f * per + c) * taps;
                        for (t, at) in reads[i * taps..(i + 1) * taps].iter().enumerate() {
                            if let Some(at) = at {
                                let l = wide(src[from + at], signed[0]) - zx;
                                let r = wide(kernel[weight + t], signed[1]) - z;
                                sum = sum.wrapping_add(l * r);
                            }
                        }
                    }
                    *o = i64::from(sum);
                }
            });
        }
        one(Host::from_ints(DType::Int32, dims, out)?)
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "MatMulInteger", |_| Ok(Box::new(MatMulInteger))),
    ("", "ConvInteger", |cx| {
        Ok(Box::new(ConvInteger {
            frame: Frame::read(cx)?,
            group: cx.int("group", 1),
        }))
    }),
];
