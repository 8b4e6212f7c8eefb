//! Reductions over axes. Sums run in double precision over each row, in a fixed order.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, one, plain};
use crate::ir::DType;
use crate::runtime::value::{Data, Fault, Host, KResult, Value, wrap_int};
use crate::runtime::walk::{self, count, row_major};
use onnx_graft_kernels::team;

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Sum,
    Mean,
    Max,
    Min,
    Prod,
    L1,
    L2,
    SumSquare,
    LogSum,
    LogSumExp,
}

struct Reduce {
    kind: Kind,
    fixed: Option<Vec<i64>>,
    keep: bool,
    /// No axes mean no reduction instead of all.
    noop: bool,
}

impl Kind {
    /// Whether the reduction of one element is that element.
    fn keeps_one(self) -> bool {
        matches!(
            self,
            Kind::Sum | Kind::Mean | Kind::Max | Kind::Min | Kind::Prod
        )
    }

    fn row(self, row: impl Iterator<Item = f64> + Clone, n: usize) -> f64 {
        match self {
            Kind::Sum => row.sum(),
            // Of nothing it is undefined (ONNX, ReduceMean), and zero in ONNX Runtime.
            Kind::Mean => row.sum::<f64>() / n.max(1) as f64,
            Kind::Max => row.fold(
                f64::NEG_INFINITY,
                |a, x| if x > a || x.is_nan() { x } else { a },
            ),
            Kind::Min => row.fold(
                f64::INFINITY,
                |a, x| if x < a || x.is_nan() { x } else { a },
            ),
            Kind::Prod => row.product(),
            Kind::L1 => row.map(f64::abs).sum(),
            Kind::L2 => row.map(|x| x * x).sum::<f64>().sqrt(),
            Kind::SumSquare => row.map(|x| x * x).sum(),
            Kind::LogSum => row.sum::<f64>().ln(),
            Kind::LogSumExp => {
                let max = row.clone().fold(f64::NEG_INFINITY, f64::max);
                if max.is_infinite() {
                    return max;
                }
                max + row.map(|x| (x - max).exp()).sum::<f64>().ln()
            }
        }
    }
}

impl Kernel for Reduce {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let axes = match &self.fixed {
            Some(a) => Some(a.clone()),
            None => ins.ints_opt(1)?,
        };
        let v = plain(ins.take(0)?)?;
        let rank = v.dims().len();
        let mut gone = vec![false; rank];
        match axes.filter(|a| !a.is_empty()) {
            Some(axes) => {
                // A scalar has the axis of its only element, as in ONNX Runtime.
                for a in axes
                    .into_iter()
                    .filter(|a| rank > 0 || !matches!(a, 0 | -1))
                {
                    gone[axis_of(a, rank)?] = true;
                }
            }
            None if self.noop && self.kind.keeps_one() => return one(v),
            // Each element is reduced by itself.
            None if self.noop => {}
            None => gone.fill(true),
        }
        let from = v.dims().to_vec();
        let dims: Vec<usize> = (0..rank)
            .filter(|&i| self.keep || !gone[i])
            .map(|i| if gone[i] { 1 } else { from[i] })
            .collect();
        match v {
            Value::Float(x) => {
                let x = cx.dense(x)?;
                let read = x.read();
                let src = read.slice()?;
                let mut out = cx.alloc(count(&dims)?);
                self.floats(src, &from, &gone, &mut out);
                cx.one(out, &dims, x.dtype())
            }
            Value::Host(h) if h.dtype() == DType::Double => {
                let Data::F64(v) = h.data() else {
                    return Err("f64 elements".into());
                };
                let out = each(&from, &gone, |at, w| {
                    self.kind.row(w.iter().map(|i| v[at + i]), w.len())
                });
                one(Host::new(h.dtype(), dims, Data::F64(out))?)
            }
            Value::Host(h) => {
                let v = h.ints()?;
                let kind = self.kind;
                let dtype = h.dtype();
                let out = each(&from, &gone, |at, w| match (kind, w.is_empty()) {
                    (Kind::Max, true) => Some(least(dtype)),
                    (Kind::Min, true) => Some(wrap_int(dtype, !least(dtype))),
                    _ => ints(kind, w.iter().map(|i| v[at + i])),
                });
                let out = out.into_iter().collect::<Option<Vec<i64>>>();
                let out =
                    out.ok_or_else(|| Fault(format!("no such reduction of {}", h.dtype())))?;
                one(Host::from_ints(h.dtype(), dims, out)?)
            }
            Value::Weight(_) => Err("a weight converts to a tensor".into()),
        }
    }
}

/// The smallest number of an integer type.
fn least(dtype: DType) -> i64 {
    match dtype {
        DType::Int64 => i64::MIN,
        DType::Int32 => i64::from(i32::MIN),
        DType::Int16 => i64::from(i16::MIN),
        DType::Int8 => i64::from(i8::MIN),
        _ => 0,
    }
}

fn ints(kind: Kind, row: impl Iterator<Item = i64>) -> Option<i64> {
    match kind {
        Kind::Sum => Some(row.fold(0, i64::wrapping_add)),
        Kind::Prod => Some(row.fold(1, i64::wrapping_mul)),
        Kind::Max => row.max(),
        Kind::Min => row.min(),
        Kind::Mean => {
            let (s, n) = row.fold((0i64, 0i64), |(s, n), x| (s.wrapping_add(x), n + 1));
            s.checked_div(n)
        }
        Kind::L1 => Some(row.fold(0, |a, x| a.wrapping_add(x.wrapping_abs()))),
        Kind::SumSquare => Some(row.fold(0, |a, x| a.wrapping_add(x.wrapping_mul(x)))),
        Kind::L2 | Kind::LogSum | Kind::LogSumExp => None,
    }
}

/// Calls `f` with the base offset of every kept position and the offsets of the reduced ones.
fn each<T>(from: &[usize], gone: &[bool], f: impl Fn(usize, &[usize]) -> T) -> Vec<T> {
    let strides = row_major(from);
    let walk = |want: bool| -> Vec<usize> {
        let mut at = vec![0usize];
        for i in (0..from.len()).filter(|&i| gone[i] == want) {
            at = at
                .iter()
                .flat_map(|&a| (0..from[i]).map(move |k| (a, k)))
                .map(|(a, k)| a + k * strides[i])
                .collect();
        }
        at
    };
    let inner = walk(true);
    walk(false).into_iter().map(|at| f(at, &inner)).collect()
}

impl Reduce {
    fn floats(&self, src: &[f32], from: &[usize], gone: &[bool], out: &mut [f32]) {
        if out.is_empty() {
            return;
        }
        let first = gone.iter().position(|&g| g).unwrap_or(from.len());
        let tail = gone[first..].iter().all(|&g| g);
        if tail {
            // The last axes: each result is one row.
            let n: usize = from[first..].iter().product();
            let kind = self.kind;
            let row = |i: usize| {
                let r = &src[i * n..(i + 1) * n];
                kind.row(r.iter().map(|&x| f64::from(x)), n) as f32
            };
            if src.len() <= 2 * walk::TASK {
                out.iter_mut().enumerate().for_each(|(i, o)| *o = row(i));
            } else {
                let least = (walk::TASK / n.max(1)).max(1);
                team::each(out.chunks_mut(least).enumerate(), |(part, out)| {
                    for (i, o) in out.iter_mut().enumerate() {
                        *o = row(part * least + i);
                    }
                });
            }
            return;
        }
        let lead = gone.iter().take_while(|&&g| g).count();
        if matches!(self.kind, Kind::Sum | Kind::Mean) && !gone[lead..].contains(&true) {
            // The first axes (bias gradients): rows are added up, a block of columns on each thread.
            let n: usize = from[..lead].iter().product();
            let width = out.len();
            let scale = if self.kind == Kind::Mean {
                1.0 / n.max(1) as f64
            } else {
                1.0
            };
            team::each(out.chunks_mut(256).enumerate(), |(b, o)| {
                let mut sums = vec![0f64; o.len()];
                for i in 0..n {
                    let r = &src[i * width + b * 256..][..o.len()];
                    sums.iter_mut()
                        .zip(r)
                        .for_each(|(s, &x)| *s += f64::from(x));
                }
                o.iter_mut()
                    .zip(sums)
                    .for_each(|(o, s)| *o = (s * scale) as f32);
            });
            return;
        }
        let kind = self.kind;
        let all = each(from, gone, |at, w| {
            kind.row(w.iter().map(|i| f64::from(src[at + i])), w.len()) as f32
        });
        out.copy_from_slice(&all);
    }
}

fn reduce(cx: &BuildCx<'_>, kind: Kind) -> Box<dyn Kernel> {
    Box::new(Reduce {
        kind,
        fixed: cx.ints("axes"),
        keep: cx.int("keepdims", 1) != 0,
        noop: cx.flag("noop_with_empty_axes"),
    })
}

/// `ArgMax`, `ArgMin`.
struct Arg {
    axis: i64,
    keep: bool,
    last: bool,
    min: bool,
}

impl Kernel for Arg {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let v = ins.take(0)?;
        let from = v.dims().to_vec();
        let axis = axis_of(self.axis, from.len())?;
        if from[axis] == 0 {
            return Err("an empty axis has no largest element".into());
        }
        let mut gone = vec![false; from.len()];
        gone[axis] = true;
        let wide: Vec<f64> = match plain(v)? {
            Value::Host(h) => h.ints()?.iter().map(|&x| x as f64).collect(),
            v => v.to_f32()?.into_iter().map(f64::from).collect(),
        };
        let better = |x: f64, best: f64| {
            let more = if self.min { x < best } else { x > best };
            more || (self.last && x == best)
        };
        let out = each(&from, &gone, |at, w| {
            let mut best = 0;
            for (k, i) in w.iter().enumerate() {
                if better(wide[at + i], wide[at + w[best]]) {
                    best = k;
                }
            }
            best as i64
        });
        let mut dims = from;
        if self.keep {
            dims[axis] = 1;
        } else {
            dims.remove(axis);
        }
        one(Value::from_i64(&dims, out)?)
    }
}

fn arg(cx: &BuildCx<'_>, min: bool) -> Box<dyn Kernel> {
    Box::new(Arg {
        axis: cx.int("axis", 0),
        keep: cx.int("keepdims", 1) != 0,
        last: cx.flag("select_last_index"),
        min,
    })
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "ReduceSum", |cx| Ok(reduce(cx, Kind::Sum))),
    ("", "ReduceMean", |cx| Ok(reduce(cx, Kind::Mean))),
    ("", "ReduceMax", |cx| Ok(reduce(cx, Kind::Max))),
    ("", "ReduceMin", |cx| Ok(reduce(cx, Kind::Min))),
    ("", "ReduceProd", |cx| Ok(reduce(cx, Kind::Prod))),
    ("", "ReduceL1", |cx| Ok(reduce(cx, Kind::L1))),
    ("", "ReduceL2", |cx| Ok(reduce(cx, Kind::L2))),
    ("", "ReduceSumSquare", |cx| Ok(reduce(cx, Kind::SumSquare))),
    ("", "ReduceLogSum", |cx| Ok(reduce(cx, Kind::LogSum))),
    ("", "ReduceLogSumExp", |cx| Ok(reduce(cx, Kind::LogSumExp))),
    ("", "ArgMax", |cx| Ok(arg(cx, false))),
    ("", "ArgMin", |cx| Ok(arg(cx, true))),
];
