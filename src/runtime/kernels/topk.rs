//! `TopK(x, k)`: values and indices along an axis; equal values keep the order of their indices.

use super::{Cx, Entry, Ins, Kernel, Outs, axis_of, plain};
use crate::ir::DType;
use crate::runtime::value::{Fault, Host, KResult, Value};
use crate::runtime::walk::count;
use std::cmp::Ordering;

struct TopK {
    axis: i64,
    largest: bool,
    k: Option<i64>,
}

impl Kernel for TopK {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let k = match self.k {
            Some(k) => k,
            None => *ins.ints(1)?.first().ok_or("an empty k")?,
        };
        let k = super::size_of(k)?;
        let v = plain(ins.take(0)?)?;
        let dims = v.dims().to_vec();
        let axis = axis_of(self.axis, dims.len())?;
        let (len, inner) = (dims[axis], count(&dims[axis + 1..])?);
        if k > len {
            return Err(Fault(format!("the {k} largest of {len}")));
        }
        let mut to = dims.clone();
        to[axis] = k;
        let outer = count(&dims[..axis])?;
        let (values, index) = match &v {
            Value::Float(x) => {
                let src = x.to_vec()?;
                // NaN counts as the largest, as ONNX Runtime does.
                let (at, index) = self.pick(outer, len, inner, k, |a, b| src[a].total_cmp(&src[b]));
                let out: Vec<f32> = at.into_iter().map(|i| src[i]).collect();
                (Value::Float(cx.floats(out, &to, x.dtype())?), index)
            }
            Value::Host(h) if h.dtype() != DType::Double => {
                let src = h.ints()?;
                let (at, index) = self.pick(outer, len, inner, k, |a, b| src[a].cmp(&src[b]));
                let out: Vec<i64> = at.into_iter().map(|i| src[i]).collect();
                (
                    Value::Host(Host::from_ints(h.dtype(), to.clone(), out)?),
                    index,
                )
            }
            v => return Err(Fault(format!("found {}", v.dtype()))),
        };
        Ok(vec![Some(values), Some(Value::from_i64(&to, index)?)])
    }
}

impl TopK {
    /// Offsets and indices of the chosen elements, in row-major order of the result.
    fn pick(
        &self,
        outer: usize,
        len: usize,
        inner: usize,
        k: usize,
        order: impl Fn(usize, usize) -> Ordering,
    ) -> (Vec<usize>, Vec<i64>) {
        let mut at = vec![0; outer * k * inner];
        let mut index = vec![0i64; outer * k * inner];
        let mut list: Vec<usize> = Vec::with_capacity(len);
        for o in 0..outer {
            for j in 0..inner {
                let offset = |i: usize| (o * len + i) * inner + j;
                list.clear();
                list.extend(0..len);
                list.sort_by(|&a, &b| {
                    let by = order(offset(a), offset(b));
                    if self.largest { by.reverse() } else { by }
                });
                for (r, &i) in list[..k].iter().enumerate() {
                    let to = (o * k + r) * inner + j;
                    at[to] = offset(i);
                    index[to] = i as i64;
                }
            }
        }
        (at, index)
    }
}

pub(super) const KERNELS: &[Entry] = &[("", "TopK", |cx| {
    Ok(Box::new(TopK {
        axis: cx.int("axis", -1),
        largest: cx.int("largest", 1) != 0,
        k: cx.node.attr("k").and_then(crate::ir::AttrValue::as_int),
    }))
})];
