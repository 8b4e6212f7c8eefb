//! `ScatterElements`, `ScatterND`. With repeated indices and no reduction the last one wins.

use super::gather::index_of;
use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, one, plain};
use crate::runtime::value::{Data, Fault, Host, KResult, Value};
use crate::runtime::walk::{count, row_major};

#[derive(Clone, Copy)]
enum Reduction {
    None,
    Add,
    Mul,
    Max,
    Min,
}

fn reduction(cx: &BuildCx<'_>) -> KResult<Reduction> {
    Ok(match cx.node.str("reduction").unwrap_or("none") {
        "none" => Reduction::None,
        "add" => Reduction::Add,
        "mul" => Reduction::Mul,
        "max" => Reduction::Max,
        "min" => Reduction::Min,
        other => return Err(Fault(format!("reduction = \"{other}\""))),
    })
}

trait Combine: Copy {
    fn combine(r: Reduction, old: Self, new: Self) -> Self;
}

macro_rules! combine {
    ($($t:ty: $add:expr, $mul:expr);* $(;)?) => {$(
        impl Combine for $t {
            fn combine(r: Reduction, old: Self, new: Self) -> Self {
                let (add, mul): (fn($t, $t) -> $t, fn($t, $t) -> $t) = ($add, $mul);
                match r {
                    Reduction::None => new,
                    Reduction::Add => add(old, new),
                    Reduction::Mul => mul(old, new),
                    Reduction::Max => if new > old { new } else { old },
                    Reduction::Min => if new < old { new } else { old },
                }
            }
        }
    )*};
}

combine! {
    f32: |a, b| a + b, |a, b| a * b;
    f64: |a, b| a + b, |a, b| a * b;
    i64: i64::wrapping_add, i64::wrapping_mul;
    u8: u8::wrapping_add, u8::wrapping_mul;
}

/// Writes blocks of `inner` updates at offsets.
fn write<T: Combine>(r: Reduction, out: &mut [T], at: &[usize], inner: usize, updates: &[T]) {
    if inner == 0 {
        return;
    }
    for (&o, u) in at.iter().zip(updates.chunks(inner)) {
        for (x, &u) in out[o..o + inner].iter_mut().zip(u) {
            *x = T::combine(r, *x, u);
        }
    }
}

/// The data with blocks of updates written into it, in its own buffer if it may be overwritten.
fn scatter(
    cx: &Cx<'_>,
    r: Reduction,
    data: Value,
    at: &[usize],
    inner: usize,
    updates: Value,
) -> KResult<Value> {
    let dims = data.dims().to_vec();
    match (plain(data)?, plain(updates)?) {
        (Value::Float(x), Value::Float(u)) => {
            let u = cx.dense(u)?;
            let dtype = x.dtype();
            let mut out = cx.buffer(x)?;
            write(r, &mut out, at, inner, u.read().slice()?);
            Ok(Value::Float(cx.floats(out, &dims, dtype)?))
        }
        (Value::Host(x), Value::Host(u)) => {
            let data = match (x.data(), u.data()) {
                (Data::I64(p), Data::I64(q)) => {
                    let mut out = p.clone();
                    write(r, &mut out, at, inner, q);
                    Data::I64(out)
                }
                (Data::U8(p), Data::U8(q)) => {
                    let mut out = p.clone();
                    write(r, &mut out, at, inner, q);
                    Data::U8(out)
                }
                (Data::F64(p), Data::F64(q)) => {
                    let mut out = p.clone();
                    write(r, &mut out, at, inner, q);
                    Data::F64(out)
                }
                _ => {
                    return Err(Fault(format!(
                        "data of {} and updates of {}",
                        x.dtype(),
                        u.dtype()
                    )));
                }
            };
            Ok(Value::Host(Host::new(x.dtype(), dims, data)?))
        }
        (x, u) => Err(Fault(format!(
            "data of {} and updates of {}",
            x.dtype(),
            u.dtype()
        ))),
    }
}

struct ScatterND(Reduction);

impl Kernel for ScatterND {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let index = ins.host(1)?;
        let updates = ins.take(2)?;
        let data = ins.take(0)?;
        let dims = data.dims().to_vec();
        let Some((&k, lead)) = index.dims().split_last() else {
            return Err("indices without axes".into());
        };
        let mut want = lead.to_vec();
        want.extend_from_slice(
            dims.get(k..)
                .ok_or("the indices are longer than the rank")?,
        );
        if updates.dims() != want {
            return Err(Fault(format!(
                "updates {:?}, expected {want:?}",
                updates.dims()
            )));
        }
        let strides = row_major(&dims);
        let tuples = index.ints()?;
        let n = count(lead)?;
        let mut at = Vec::with_capacity(n);
        for t in 0..n {
            let mut offset = 0;
            for j in 0..k {
                offset += index_of(tuples[t * k + j], dims[j])? * strides[j];
            }
            at.push(offset);
        }
        let inner = count(&dims[k..])?;
        one(scatter(cx, self.0, data, &at, inner, updates)?)
    }
}

struct ScatterElements(Reduction, i64);

impl Kernel for ScatterElements {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let index = ins.host(1)?;
        let updates = ins.take(2)?;
        let data = ins.take(0)?;
        let dims = data.dims().to_vec();
        let axis = axis_of(self.1, dims.len())?;
        let of = index.dims();
        let fits = of == updates.dims()
            && of.len() == dims.len()
            && of
                .iter()
                .zip(&dims)
                .enumerate()
                .all(|(i, (a, b))| i == axis || a <= b);
        if !fits {
            return Err(Fault(format!(
                "indices {of:?} and updates {:?} into {dims:?}",
                updates.dims()
            )));
        }
        let (from, strides) = (row_major(of), row_major(&dims));
        let mut at = Vec::with_capacity(count(of)?);
        for (k, &i) in index.ints()?.iter().enumerate() {
            let mut offset = index_of(i, dims[axis])? * strides[axis];
            let mut rest = k;
            for a in 0..dims.len() {
                let j = rest / from[a];
                rest %= from[a];
                if a != axis {
                    offset += j * strides[a];
                }
            }
            at.push(offset);
        }
        one(scatter(cx, self.0, data, &at, 1, updates)?)
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "ScatterND", |cx| {
        Ok(Box::new(ScatterND(reduction(cx)?)))
    }),
    ("", "ScatterElements", |cx| {
        Ok(Box::new(ScatterElements(reduction(cx)?, cx.int("axis", 0))))
    }),
];

/// `ScatterElements` that adds.
pub(crate) fn elements_add(axis: i64) -> impl Kernel {
    ScatterElements(Reduction::Add, axis)
}

/// `ScatterND` that adds.
pub(crate) fn nd_add() -> impl Kernel {
    ScatterND(Reduction::Add)
}
