//! Operators that make index-like tensors: `Range`, `CumSum`, `OneHot`, `NonZero`.

use super::{Cx, Entry, Ins, Kernel, Outs, axis_of, one, plain, size_of};
use crate::ir::DType;
use crate::runtime::value::{Data, Fault, Host, KResult, Value};
use crate::runtime::walk::{View, count};

/// Lengths above this are a mistake in the graph, not a sequence.
const LONGEST: f64 = 1e10;

struct Range;

impl Kernel for Range {
    fn run(&self, cx: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let first = plain(ins.need(0)?.clone())?;
        let dtype = first.dtype();
        if let Value::Host(h) = &first
            && dtype != DType::Double
        {
            let get = |slot| -> KResult<i64> {
                ins.ints(slot)?
                    .first()
                    .copied()
                    .ok_or_else(|| "an empty operand".into())
            };
            let (start, limit, step) = (get(0)?, get(1)?, get(2)?);
            if step == 0 {
                return Err("a step of 0".into());
            }
            let span = i128::from(limit) - i128::from(start);
            let n = (span as f64 / step as f64).ceil().max(0.0);
            if n > LONGEST {
                return Err(Fault(format!("{n} elements")));
            }
            let data = (0..n as i64)
                .map(|i| start.wrapping_add(i.wrapping_mul(step)))
                .collect();
            return one(Host::from_ints(h.dtype(), vec![n as usize], data)?);
        }
        let (start, limit, step) = (ins.scalar(0)?, ins.scalar(1)?, ins.scalar(2)?);
        let n = (f64::from(limit - start) / f64::from(step)).ceil().max(0.0);
        if n.is_nan() || n > LONGEST {
            return Err(Fault(format!("{n} elements")));
        }
        let n = n as usize;
        if dtype == DType::Double {
            let data = (0..n)
                .map(|i| f64::from(start) + i as f64 * f64::from(step))
                .collect();
            return one(Host::new(dtype, vec![n], Data::F64(data))?);
        }
        let data = (0..n).map(|i| start + i as f32 * step).collect();
        one(super::cast::on_device(cx, cx.floats(data, &[n], dtype)?)?)
    }
}

struct CumSum {
    exclusive: bool,
    reverse: bool,
}

impl CumSum {
    fn go<T: Copy + Default>(
        &self,
        src: &[T],
        out: &mut [T],
        len: usize,
        inner: usize,
        add: fn(T, T) -> T,
    ) {
        if len == 0 || inner == 0 {
            return;
        }
        for (s, o) in src.chunks(len * inner).zip(out.chunks_mut(len * inner)) {
            for j in 0..inner {
                let mut sum = T::default();
                for k in 0..len {
                    let i = if self.reverse { len - 1 - k } else { k } * inner + j;
                    let next = add(sum, s[i]);
                    o[i] = if self.exclusive { sum } else { next };
                    sum = next;
                }
            }
        }
    }
}

impl Kernel for CumSum {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let axis = *ins.ints(1)?.first().ok_or("an empty axis")?;
        let v = plain(ins.take(0)?)?;
        let dims = v.dims().to_vec();
        let axis = axis_of(axis, dims.len())?;
        let (len, inner) = (dims[axis], count(&dims[axis + 1..])?);
        match v {
            Value::Float(x) => {
                let x = cx.dense(x)?;
                let mut out = cx.alloc(count(&dims)?);
                self.go(x.read().slice()?, &mut out, len, inner, |a, b| a + b);
                cx.one(out, &dims, x.dtype())
            }
            Value::Host(h) if h.dtype() == DType::Double => {
                let Data::F64(src) = h.data() else {
                    return Err("f64 elements".into());
                };
                let mut out = vec![0.0; src.len()];
                self.go(src, &mut out, len, inner, |a, b| a + b);
                one(Host::new(h.dtype(), dims, Data::F64(out))?)
            }
            Value::Host(h) => {
                let src = h.ints()?;
                let mut out = vec![0; src.len()];
                self.go(&src, &mut out, len, inner, i64::wrapping_add);
                one(Host::from_ints(h.dtype(), dims, out)?)
            }
            Value::Weight(_) => Err("a weight converts to a tensor".into()),
        }
    }
}

/// `OneHot(indices, depth, [off, on])`.
struct OneHot(i64);

impl Kernel for OneHot {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let depth = match plain(ins.need(1)?.clone())? {
            Value::Float(_) => ins.scalar(1)? as i64,
            _ => *ins.ints(1)?.first().ok_or("an empty depth")?,
        };
        let depth = size_of(depth)?;
        let values = plain(ins.take(2)?)?;
        let index = match plain(ins.take(0)?)? {
            Value::Float(x) => super::cast::cast(cx, Value::Float(x), DType::Int64)?,
            v => v,
        };
        let from = index.dims().to_vec();
        let axis = axis_of(self.0, from.len() + 1)?;
        let mut dims = from.clone();
        dims.insert(axis, depth);
        let (inner, n) = (count(&from[axis..])?, count(&dims)?);
        let mut hot = vec![0u8; n];
        for (k, &i) in index.to_ints()?.iter().enumerate() {
            let i = if i < 0 { i + depth as i64 } else { i };
            // Outside of the depth the row stays off.
            if (0..depth as i64).contains(&i) {
                let (o, j) = (k / inner.max(1), k % inner.max(1));
                hot[(o * depth + i as usize) * inner + j] = 1;
            }
        }
        let hot = Host::from_bools(dims, hot)?;
        let off = super::movement::narrow(&values, 0, 0, 1)?;
        let on = super::movement::narrow(&values, 0, 1, 1)?;
        super::where_::Where.run(cx, Ins(vec![Some(Value::Host(hot)), Some(on), Some(off)]))
    }
}

struct NonZero;

impl Kernel for NonZero {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let v = plain(ins.take(0)?)?;
        let dims = v.dims().to_vec();
        let set: Vec<bool> = match &v {
            Value::Float(x) => x.to_vec()?.into_iter().map(|x| x != 0.0).collect(),
            Value::Host(h) => match h.data() {
                Data::F64(v) => v.iter().map(|&x| x != 0.0).collect(),
                _ => h.ints()?.iter().map(|&x| x != 0).collect(),
            },
            Value::Weight(_) => return Err("a weight converts to a tensor".into()),
        };
        let found: Vec<usize> = (0..set.len()).filter(|&i| set[i]).collect();
        let strides = View::<u8>::dense(&[], &dims).strides.into_owned();
        let mut out = Vec::with_capacity(dims.len() * found.len());
        for (&s, &d) in strides.iter().zip(&dims) {
            out.extend(found.iter().map(|&i| (i / s % d.max(1)) as i64));
        }
        one(Value::from_i64(&[dims.len(), found.len()], out)?)
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Range", |_| Ok(Box::new(Range))),
    ("", "CumSum", |cx| {
        Ok(Box::new(CumSum {
            exclusive: cx.flag("exclusive"),
            reverse: cx.flag("reverse"),
        }))
    }),
    ("", "OneHot", |cx| Ok(Box::new(OneHot(cx.int("axis", -1))))),
    ("", "NonZero", |_| Ok(Box::new(NonZero))),
];
