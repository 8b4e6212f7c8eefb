//! `Gather`, `GatherElements`, `GatherND`. An index outside the axis is an error.

use super::{Cx, Entry, Ins, Kernel, Outs, axis_of, each_kind, one};
use crate::runtime::value::{Fault, KResult, Value};
use crate::runtime::walk::{self, count, row_major};

/// An index counted from the front.
pub(crate) fn index_of(i: i64, size: usize) -> KResult<usize> {
    let at = if i < 0 {
        i.saturating_add(size as i64)
    } else {
        i
    };
    usize::try_from(at)
        .ok()
        .filter(|&a| a < size)
        .ok_or_else(|| Fault(format!("index {i} is outside an axis of size {size}")))
}

struct Gather(i64);

impl Kernel for Gather {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let index = ins.host(1)?;
        let v = ins.take(0)?;
        let axis = axis_of(self.0, v.dims().len())?;
        let size = v.dims()[axis];
        let at = index
            .ints()?
            .iter()
            .map(|&i| index_of(i, size))
            .collect::<KResult<Vec<_>>>()?;
        let mut dims = v.dims()[..axis].to_vec();
        dims.extend_from_slice(index.dims());
        dims.extend_from_slice(&v.dims()[axis + 1..]);
        // Rows of a table are read from the file: the rest of it is not touched.
        if let Value::Weight(w) = &v
            && axis == 0
            && w.has_rows()
            && cx.device.is_cpu()
        {
            let width = count(&w.dims()[1..])?;
            let mut out = cx.alloc(count(&dims)?);
            if width > 0 {
                for (row, &i) in out.chunks_mut(width).zip(&at) {
                    w.read_f32(i * width, row)?;
                }
            }
            return cx.one(out, &dims, w.dtype());
        }
        let picked = super::movement::pick(cx, v, axis, &at)?;
        one(super::shape::reshaped(cx, picked, dims)?)
    }
}

struct GatherElements(i64);

impl Kernel for GatherElements {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let index = ins.host(1)?;
        let v = ins.take(0)?;
        let from = v.dims().to_vec();
        let axis = axis_of(self.0, from.len())?;
        let dims = index.dims().to_vec();
        let fits = dims.len() == from.len()
            && dims
                .iter()
                .zip(&from)
                .enumerate()
                .all(|(i, (a, b))| i == axis || a <= b);
        if !fits {
            return Err(Fault(format!("indices {dims:?} into {from:?}")));
        }
        let at = index
            .ints()?
            .iter()
            .map(|&i| index_of(i, from[axis]))
            .collect::<KResult<Vec<_>>>()?;
        let (into, strides) = (row_major(&dims), row_major(&from));
        one(each_kind!(cx, v, &dims, |src, out| {
            for (k, o) in out.iter_mut().enumerate() {
                let mut rest = k;
                let mut offset = at[k] * strides[axis];
                for a in 0..dims.len() {
                    let i = rest / into[a];
                    rest %= into[a];
                    if a != axis {
                        offset += i * strides[a];
                    }
                }
                *o = src[offset];
            }
        }))
    }
}

struct GatherND(i64);

impl Kernel for GatherND {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let index = ins.host(1)?;
        let v = ins.take(0)?;
        let from = v.dims().to_vec();
        let b = usize::try_from(self.0).map_err(|_| Fault(format!("batch_dims = {}", self.0)))?;
        let Some((&k, lead)) = index.dims().split_last() else {
            return Err("indices without axes".into());
        };
        if b > lead.len() || b + k > from.len() || lead[..b] != from[..b] {
            return Err(Fault(format!("indices {:?} into {from:?}", index.dims())));
        }
        let mut dims = lead.to_vec();
        dims.extend_from_slice(&from[b + k..]);
        let (inner, batches) = (count(&from[b + k..])?, count(&from[..b])?);
        let block = count(&from[b..])?;
        let tuples = index.ints()?;
        let strides = row_major(&from);
        let n = count(lead)?;
        let per = n.checked_div(batches).unwrap_or(0);
        let mut at = Vec::with_capacity(n);
        for t in 0..n {
            let mut offset = t.checked_div(per).map_or(0, |b| b * block);
            for j in 0..k {
                offset += index_of(tuples[t * k + j], from[b + j])? * strides[b + j];
            }
            at.push(offset);
        }
        one(each_kind!(cx, v, &dims, |src, out| {
            walk::rows(out, inner, |i, o| {
                o.copy_from_slice(&src[at[i]..at[i] + inner]);
            });
        }))
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Gather", |cx| Ok(Box::new(Gather(cx.int("axis", 0))))),
    ("", "GatherElements", |cx| {
        Ok(Box::new(GatherElements(cx.int("axis", 0))))
    }),
    ("", "GatherND", |cx| {
        Ok(Box::new(GatherND(cx.int("batch_dims", 0))))
    }),
];
