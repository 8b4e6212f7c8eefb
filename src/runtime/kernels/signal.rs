//! `DFT`, `STFT` and `MelWeightMatrix`. Transforms are sums of products, not fast ones.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, one, size_of};
use crate::ir::DType;
use crate::runtime::value::{Fault, KResult, Value};
use crate::runtime::walk::{self, count};

/// Complex numbers, as the real and the imaginary parts.
type Complex = (f64, f64);

/// Σ x[t]·e^(±2πi·k·t/n) for each `k` below `out`.
fn transform(x: &[Complex], n: usize, out: usize, inverse: bool) -> Vec<Complex> {
    let sign = if inverse { 1.0 } else { -1.0 };
    let step = sign * std::f64::consts::TAU / n.max(1) as f64;
    let at = |k: usize| {
        let mut sum = (0.0, 0.0);
        for (t, (re, im)) in x.iter().enumerate().take(n) {
            let (sin, cos) = (step * ((k * t) % n.max(1)) as f64).sin_cos();
            sum.0 += re * cos - im * sin;
            sum.1 += re * sin + im * cos;
        }
        if inverse {
            (sum.0 / n as f64, sum.1 / n as f64)
        } else {
            sum
        }
    };
    (0..out).map(at).collect()
}

struct Dft {
    axis: Option<i64>,
    inverse: bool,
    half: bool,
}

impl Kernel for Dft {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let first = |v: Option<Vec<i64>>| v.and_then(|v| v.first().copied());
        let length = first(ins.ints_opt(1)?);
        let axis = match self.axis {
            Some(axis) => axis,
            None => first(ins.ints_opt(2)?).unwrap_or(-2),
        };
        let x = ins.dense(0, cx)?;
        let dims = x.dims().to_vec();
        let axis = axis_of(axis, dims.len())?;
        let parts = dims.last().copied().unwrap_or(0);
        if axis + 1 == dims.len() || !matches!(parts, 1 | 2) {
            return Err(Fault(format!("a transform along axis {axis} of {dims:?}")));
        }
        let have = dims[axis];
        let back = self.inverse && self.half;
        let n = match length {
            Some(n) => size_of(n)?,
            None if back => 2 * have.saturating_sub(1),
            None => have,
        };
        let out = if self.half && !self.inverse {
            n / 2 + 1
        } else {
            n
        };
        let mut shape = dims.clone();
        shape[axis] = out;
        let made = if back { 1 } else { 2 };
        if let Some(last) = shape.last_mut() {
            *last = made;
        }
        let inner = count(&dims[axis + 1..dims.len() - 1])?;
        let outer = count(&dims[..axis])?;
        let src = x.to_vec()?;
        let mut y = cx.alloc(count(&shape)?);
        for o in 0..outer {
            for i in 0..inner {
                let read = |t: usize| {
                    let at = ((o * have + t) * inner + i) * parts;
                    let im = if parts == 2 { src[at + 1] } else { 0.0 };
                    (f64::from(src[at]), f64::from(im))
                };
                let mut line: Vec<Complex> = (0..have.min(n)).map(read).collect();
                if back {
                    // The other half is the conjugate of this one, from its end on.
                    line.resize(n / 2 + 1, (0.0, 0.0));
                    let mirrored: Vec<Complex> = (line.len()..n)
                        .map(|k| (line[n - k].0, -line[n - k].1))
                        .collect();
                    line.extend(mirrored);
                }
                for (k, (re, im)) in transform(&line, n, out, self.inverse)
                    .into_iter()
                    .enumerate()
                {
                    let at = ((o * out + k) * inner + i) * made;
                    y[at] = re as f32;
                    if made == 2 {
                        y[at + 1] = im as f32;
                    }
                }
            }
        }
        cx.one(y, &shape, x.dtype())
    }
}

/// `STFT(signal, step, window?, length?)`: transforms of windows, `step` apart.
struct Stft {
    half: bool,
}

impl Kernel for Stft {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let one_of = |v: Option<Vec<i64>>| v.and_then(|v| v.first().copied());
        let step = size_of(one_of(ins.ints_opt(1)?).ok_or("the step is missing")?)?;
        let length = one_of(ins.ints_opt(3)?).map(size_of).transpose()?;
        let window = ins.dense_opt(2, cx)?.map(|w| w.to_vec()).transpose()?;
        let x = ins.dense(0, cx)?;
        let (batch, signal, parts) = match *x.dims() {
            [b, s] => (b, s, 1),
            [b, s, p @ (1 | 2)] => (b, s, p),
            _ => return Err(Fault(format!("a signal of {:?}", x.dims()))),
        };
        let n = length.or(window.as_ref().map(Vec::len)).unwrap_or(signal);
        if step == 0 || n > signal || window.as_ref().is_some_and(|w| w.len() != n) {
            return Err(Fault(format!("frames of {n}, {step} apart, in {signal}")));
        }
        let frames = 1 + (signal - n) / step;
        let out = if self.half { n / 2 + 1 } else { n };
        let src = x.to_vec()?;
        let shape = [batch, frames, out, 2];
        let mut y = cx.alloc(count(&shape)?);
        walk::rows(&mut y, out * 2, |r, row| {
            let (b, f) = (r / frames, r % frames);
            let read = |t: usize| {
                let at = (b * signal + f * step + t) * parts;
                let w = f64::from(window.as_ref().map_or(1.0, |w| w[t]));
                let im = if parts == 2 { src[at + 1] } else { 0.0 };
                (f64::from(src[at]) * w, f64::from(im) * w)
            };
            let line: Vec<Complex> = (0..n).map(read).collect();
            for (o, (re, im)) in row.chunks_mut(2).zip(transform(&line, n, out, false)) {
                (o[0], o[1]) = (re as f32, im as f32);
            }
        });
        cx.one(y, &shape, x.dtype())
    }
}

/// `MelWeightMatrix(bins, length, rate, low, high)`.
struct Mel(DType);

impl Kernel for Mel {
    fn run(&self, cx: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let int = |slot: usize| -> KResult<i64> {
            ins.ints(slot)?
                .first()
                .copied()
                .ok_or_else(|| "an empty input".into())
        };
        let (bins, length, rate) = (size_of(int(0)?)?, int(1)?, int(2)?);
        let mel = |hz: f64| 2595.0 * (hz / 700.0).ln_1p() / 10f64.ln();
        let low = mel(f64::from(ins.scalar(3)?));
        let high = mel(f64::from(ins.scalar(4)?));
        let rows = size_of(length / 2 + 1)?;
        let step = (high - low) / (bins + 2) as f64;
        let edge = |i: usize| {
            let hz = 700.0 * ((i as f64 * step + low) / 2595.0 * 10f64.ln()).exp_m1();
            size_of((((length + 1) as f64 * hz) / rate as f64).floor() as i64)
        };
        let edges = (0..bins + 2).map(edge).collect::<KResult<Vec<usize>>>()?;
        if rate < 1 || edges.iter().any(|&e| e > rows) {
            return Err(Fault(format!("edges beyond {rows} frequencies")));
        }
        let mut out = cx.zeros(count(&[rows, bins])?);
        for i in 0..bins {
            let (left, center, right) = (edges[i], edges[i + 1], edges[i + 2]);
            let mut set = |j: usize, x: f32| {
                if let Some(o) = out.get_mut(j * bins + i) {
                    *o = x;
                }
            };
            if left == center {
                set(center, 1.0);
            } else {
                for j in left..=center {
                    set(j, (j - left) as f32 / (center - left) as f32);
                }
            }
            for j in center..right {
                set(j, (right - j) as f32 / (right - center) as f32);
            }
        }
        let out = cx.floats(out, &[rows, bins], DType::Float)?;
        one(super::cast::cast(cx, Value::Float(out), self.0)?)
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "DFT", |cx: &mut BuildCx<'_>| {
        let axis = (cx.opset < 20).then(|| cx.int("axis", 1));
        Ok(Box::new(Dft {
            axis,
            inverse: cx.flag("inverse"),
            half: cx.flag("onesided"),
        }))
    }),
    ("", "STFT", |cx| {
        Ok(Box::new(Stft {
            half: cx.int("onesided", 1) != 0,
        }))
    }),
    ("", "MelWeightMatrix", |cx| {
        let ty = cx.dtype("output_datatype", DType::Float)?;
        Ok(Box::new(Mel(ty)))
    }),
];
