//! `BitCast`, `CumProd`, `Det`, and random tensors: the same numbers for the same seed.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, each_kind, one, plain, size_of};
use crate::ir::{AttrValue, DType, TensorData};
use crate::runtime::value::{Data, Fault, Host, KResult, Value, Weight};
use crate::runtime::walk::count;
use half::{bf16, f16};

/// The elements in their own type, little-endian.
fn encoded(v: &Value) -> KResult<Vec<u8>> {
    let dtype = v.dtype();
    if let Value::Host(h) = v
        && let Data::F64(d) = h.data()
    {
        return Ok(d.iter().flat_map(|x| x.to_le_bytes()).collect());
    }
    if dtype.is_float() {
        let each = v.to_f32()?.into_iter();
        return Ok(match dtype {
            DType::Float16 => each.flat_map(|x| f16::from_f32(x).to_le_bytes()).collect(),
            DType::Bfloat16 => each.flat_map(|x| bf16::from_f32(x).to_le_bytes()).collect(),
            DType::Double => each.flat_map(|x| f64::from(x).to_le_bytes()).collect(),
            _ => each.flat_map(f32::to_le_bytes).collect(),
        });
    }
    let size = (dtype.bits() / 8) as usize;
    if size == 0 {
        return Err(Fault(format!("elements of {dtype}")));
    }
    let each = v.to_ints()?.into_iter();
    Ok(each
        .flat_map(|x| x.to_le_bytes().into_iter().take(size))
        .collect())
}

struct BitCast(DType);

impl Kernel for BitCast {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let v = plain(ins.take(0)?)?;
        if v.dtype().bits() != self.0.bits() {
            return Err(Fault(format!(
                "{} and {} differ in size",
                v.dtype(),
                self.0
            )));
        }
        let dims: Vec<u64> = v.dims().iter().map(|&d| d as u64).collect();
        let tensor = TensorData::raw(self.0, dims, encoded(&v)?.into());
        one(Weight::new(&tensor, cx.device)?.value()?)
    }
}

/// `CumProd(x, axis)`.
struct Product {
    exclusive: bool,
    reverse: bool,
}

impl Kernel for Product {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let axis = ins.ints(1)?.first().copied().ok_or("an empty axis")?;
        let v = ins.take(0)?;
        let dims = v.dims().to_vec();
        let axis = axis_of(axis, dims.len())?;
        let (n, inner) = (dims[axis], count(&dims[axis + 1..])?);
        let (exclusive, reverse) = (self.exclusive, self.reverse);
        if let Value::Host(h) = &v
            && !matches!(h.data(), Data::F64(_))
        {
            let src = h.ints()?;
            let mut out = vec![1i64; src.len()];
            products(
                &src,
                &mut out,
                [n, inner],
                exclusive,
                reverse,
                i64::wrapping_mul,
            );
            return one(Host::from_ints(h.dtype(), dims, out)?);
        }
        one(each_kind!(cx, v, &dims, |src, out| {
            out.iter_mut().for_each(|o| *o = number(1));
            products(src, out, [n, inner], exclusive, reverse, |a, b| a * b);
        }))
    }
}

/// A small number in any kind of elements.
fn number<T: From<u8>>(x: u8) -> T {
    T::from(x)
}

fn products<T: Copy>(
    src: &[T],
    out: &mut [T],
    [n, inner]: [usize; 2],
    exclusive: bool,
    reverse: bool,
    times: impl Fn(T, T) -> T,
) {
    for (block, from) in out
        .chunks_mut((n * inner).max(1))
        .zip(src.chunks((n * inner).max(1)))
    {
        for i in 0..inner {
            let mut last: Option<T> = None;
            for t in 0..n {
                let at = if reverse { n - 1 - t } else { t } * inner + i;
                let next = last.map_or(from[at], |l| times(l, from[at]));
                // Before the first stands one, which is there already.
                if !exclusive {
                    block[at] = next;
                } else if let Some(l) = last {
                    block[at] = l;
                }
                last = Some(next);
            }
        }
    }
}

/// Determinants of square matrices, by elimination.
struct Det;

impl Kernel for Det {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let x = ins.dense(0, cx)?;
        let [lead @ .., rows, cols] = x.dims() else {
            return Err(Fault(format!("a matrix of shape {:?}", x.dims())));
        };
        if rows != cols {
            return Err(Fault(format!("a matrix of shape {:?}", x.dims())));
        }
        let n = *rows;
        let read = x.read();
        let mut out = cx.alloc(count(lead)?);
        for (o, m) in out.iter_mut().zip(read.slice()?.chunks((n * n).max(1))) {
            let mut m: Vec<f64> = m.iter().map(|&x| f64::from(x)).collect();
            let mut det = 1.0;
            for k in 0..n {
                let size = |r: &usize| m[r * n + k].abs();
                let best = (k..n)
                    .max_by(|a, b| size(a).total_cmp(&size(b)))
                    .unwrap_or(k);
                if best != k {
                    (0..n).for_each(|c| m.swap(best * n + c, k * n + c));
                    det = -det;
                }
                let pivot = m[k * n + k];
                det *= pivot;
                if pivot == 0.0 {
                    break;
                }
                for r in k + 1..n {
                    let f = m[r * n + k] / pivot;
                    for c in k..n {
                        m[r * n + c] -= f * m[k * n + c];
                    }
                }
            }
            *o = det as f32;
        }
        let dims = lead.to_vec();
        cx.one(out, &dims, x.dtype())
    }
}

/// Whether there is an input at all.
struct There(bool);

impl Kernel for There {
    fn run(&self, _: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let there = self.0 && ins.has(0);
        one(Host::from_bools(Vec::new(), vec![u8::from(there)])?)
    }
}

#[derive(Clone, Copy)]
enum Law {
    Normal(f32, f32),
    Uniform(f32, f32),
    /// One with the probability that the input says.
    Chance,
}

struct Random {
    law: Law,
    seed: u64,
    to: Option<DType>,
    shape: Option<Vec<usize>>,
}

impl Kernel for Random {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let like = if ins.has(0) {
            Some(plain(ins.take(0)?)?)
        } else {
            None
        };
        let dims = match (&self.shape, &like) {
            (Some(s), _) => s.clone(),
            (None, Some(v)) => v.dims().to_vec(),
            (None, None) => return Err("neither a shape nor an input".into()),
        };
        let n = count(&dims)?;
        let seed = self.seed ^ cx.random.unwrap_or(0);
        let draw = |i: usize| super::dropout::uniform(seed, i as u64);
        let values: Vec<f32> = match self.law {
            Law::Uniform(low, high) => (0..n).map(|i| low + (high - low) * draw(i)).collect(),
            Law::Normal(mean, deviation) => (0..n)
                .map(|i| {
                    // Box and Muller; the logarithm never meets zero.
                    let radius = (-2.0 * (1.0 - draw(2 * i)).ln()).sqrt();
                    mean + deviation * radius * (std::f32::consts::TAU * draw(2 * i + 1)).cos()
                })
                .collect(),
            Law::Chance => {
                let p = like
                    .as_ref()
                    .ok_or("the probabilities are absent")?
                    .to_f32()?;
                p.iter()
                    .enumerate()
                    .map(|(i, &p)| f32::from(u8::from(draw(i) < p)))
                    .collect()
            }
        };
        let to = self
            .to
            .or(like.as_ref().map(Value::dtype))
            .unwrap_or(DType::Float);
        let out = super::cast::on_device(cx, cx.floats(values, &dims, DType::Float)?)?;
        one(super::cast::cast(cx, Value::Float(out), to)?)
    }

    fn pure(&self) -> bool {
        false
    }
}

fn random(cx: &mut BuildCx<'_>, law: Law) -> KResult<Box<dyn Kernel>> {
    let name = cx
        .node
        .name
        .bytes()
        .fold(7u64, |h, b| h.wrapping_mul(31) ^ u64::from(b));
    let seed = cx.node.attr("seed").and_then(AttrValue::as_float);
    let to = cx.dtype("dtype", DType::Undefined)?;
    let shape = cx.ints("shape");
    Ok(Box::new(Random {
        law,
        seed: seed.map_or(name, |s| u64::from(s.to_bits())),
        to: (to != DType::Undefined).then_some(to),
        shape: shape
            .map(|s| s.into_iter().map(size_of).collect::<KResult<_>>())
            .transpose()?,
    }))
}

fn normal(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let law = Law::Normal(cx.float("mean", 0.0), cx.float("scale", 1.0));
    random(cx, law)
}

fn uniform(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let law = Law::Uniform(cx.float("low", 0.0), cx.float("high", 1.0));
    random(cx, law)
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "BitCast", |cx| {
        let to = cx.dtype("to", DType::Undefined)?;
        Ok(Box::new(BitCast(to)))
    }),
    ("", "CumProd", |cx| {
        Ok(Box::new(Product {
            exclusive: cx.flag("exclusive"),
            reverse: cx.flag("reverse"),
        }))
    }),
    ("", "Det", |_| Ok(Box::new(Det))),
    ("", "OptionalHasElement", |cx| {
        Ok(Box::new(There(cx.n_in > 0)))
    }),
    ("", "RandomNormal", normal),
    ("", "RandomNormalLike", normal),
    ("", "RandomUniform", uniform),
    ("", "RandomUniformLike", uniform),
    ("", "Bernoulli", |cx| random(cx, Law::Chance)),
];
