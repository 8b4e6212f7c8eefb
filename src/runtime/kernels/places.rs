//! Operators that order, drop or turn around what an axis holds: `ReverseSequence`, `MaxUnpool`, `Unique`, `NonMaxSuppression`.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, each_kind, one, plain, size_of};
use crate::ir::DType;
use crate::runtime::value::{Data, Fault, Host, KResult, Value};
use crate::runtime::walk::count;
use std::cmp::Ordering;

/// `ReverseSequence(x, lengths)`: the first `lengths[b]` steps of each example in reverse.
struct Reverse {
    batch: i64,
    time: i64,
}

impl Kernel for Reverse {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let lengths = ins.ints(1)?;
        let v = ins.take(0)?;
        let dims = v.dims().to_vec();
        let (batch, time) = (
            axis_of(self.batch, dims.len())?,
            axis_of(self.time, dims.len())?,
        );
        if batch + time != 1 || lengths.len() != dims[batch] {
            return Err(Fault(format!("{} lengths for {dims:?}", lengths.len())));
        }
        let inner = count(&dims[2..])?;
        let (n, steps) = (dims[batch], dims[time]);
        let mut index = vec![0; n * steps];
        for (b, &length) in lengths.iter().enumerate() {
            let length = size_of(length)?.min(steps);
            for t in 0..steps {
                let from = if t < length { length - 1 - t } else { t };
                let at = |t: usize| if batch == 0 { b * steps + t } else { t * n + b };
                index[at(t)] = at(from);
            }
        }
        one(each_kind!(cx, v, &dims, |src, out| {
            for (o, &i) in out.chunks_mut(inner.max(1)).zip(&index) {
                o.copy_from_slice(&src[i * inner..(i + 1) * inner]);
            }
        }))
    }
}

/// `MaxUnpool(x, indices, shape?)`: each element at its flat place of the tensor that was pooled.
struct Unpool {
    kernel: Vec<i64>,
    strides: Option<Vec<i64>>,
    pads: Option<Vec<i64>>,
}

impl Kernel for Unpool {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let shape = ins.ints_opt(2)?;
        let index = ins.ints(1)?;
        let x = ins.dense(0, cx)?;
        let mut own = x.dims().to_vec();
        let rank = own.len().saturating_sub(2);
        if self.kernel.len() != rank || index.len() != count(&own)? {
            return Err(Fault(format!("{} indices for {own:?}", index.len())));
        }
        let get = |v: &Option<Vec<i64>>, i: usize, d: i64| {
            v.as_ref().and_then(|v| v.get(i).copied()).unwrap_or(d)
        };
        for i in 0..rank {
            let steps = (own[i + 2] as i64 - 1) * get(&self.strides, i, 1);
            let pads = get(&self.pads, i, 0) + get(&self.pads, i + rank, 0);
            own[i + 2] = size_of(steps - pads + self.kernel[i])?;
        }
        let total = match &shape {
            Some(s) => s
                .iter()
                .map(|&n| size_of(n))
                .collect::<KResult<Vec<usize>>>()?,
            None => own.clone(),
        };
        if total.len() != own.len() {
            return Err(Fault(format!("a shape of {total:?}")));
        }
        // Places count in the shape that follows from the window; a larger one has it at its beginning.
        let mut out = cx.zeros(count(&total)?);
        let read = x.read();
        for (&i, &v) in index.iter().zip(read.slice()?) {
            let mut rest = super::gather::index_of(i, count(&own)?)?;
            let (mut flat, mut step) = (0, 1);
            for (&size, &wide) in own.iter().zip(&total).rev() {
                if rest % size >= wide {
                    return Err(Fault(format!("index {i} is outside {total:?}")));
                }
                flat += rest % size * step;
                step *= wide;
                rest /= size;
            }
            out[flat] = v;
        }
        cx.one(out, &total, x.dtype())
    }
}

/// `Unique(x) -> (values, first places, inverse, counts)`.
struct Unique {
    axis: Option<i64>,
    sorted: bool,
}

impl Unique {
    /// The distinct ones among `n` things, in the order of the result: first place, and for each thing which one it is.
    fn groups(
        &self,
        n: usize,
        order: &dyn Fn(usize, usize) -> Ordering,
    ) -> (Vec<usize>, Vec<usize>) {
        let mut by: Vec<usize> = (0..n).collect();
        by.sort_by(|&a, &b| order(a, b).then(a.cmp(&b)));
        let mut firsts: Vec<usize> = Vec::new();
        let mut group = vec![0; n];
        for &i in &by {
            match firsts.last() {
                Some(&f) if order(f, i) == Ordering::Equal => {}
                _ => firsts.push(i),
            }
            group[i] = firsts.len() - 1;
        }
        if !self.sorted {
            let mut seen: Vec<usize> = (0..firsts.len()).collect();
            seen.sort_by_key(|&g| firsts[g]);
            let mut at = vec![0; seen.len()];
            seen.iter()
                .enumerate()
                .for_each(|(new, &old)| at[old] = new);
            group.iter_mut().for_each(|g| *g = at[*g]);
            firsts.sort_unstable();
        }
        (firsts, group)
    }
}

impl Kernel for Unique {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let v = plain(ins.take(0)?)?;
        let v = match self.axis {
            Some(_) => v,
            None => super::shape::reshaped(cx, v.clone(), vec![count(v.dims())?])?,
        };
        let axis = axis_of(self.axis.unwrap_or(0), v.dims().len())?;
        let dims = v.dims().to_vec();
        let (n, inner, outer) = (dims[axis], count(&dims[axis + 1..])?, count(&dims[..axis])?);
        let place = |i: usize, k: usize| (k / inner.max(1) * n + i) * inner + k % inner.max(1);
        let each = outer * inner;
        let (firsts, group) = match &v {
            Value::Float(x) => {
                let data = x.to_vec()?;
                self.groups(n, &|a, b| {
                    let pairs = (0..each).map(|k| data[place(a, k)].total_cmp(&data[place(b, k)]));
                    pairs.fold(Ordering::Equal, Ordering::then)
                })
            }
            Value::Host(h) if matches!(h.data(), Data::F64(_)) => {
                let Data::F64(data) = h.data() else {
                    return Err("f64 elements".into());
                };
                self.groups(n, &|a, b| {
                    let pairs = (0..each).map(|k| data[place(a, k)].total_cmp(&data[place(b, k)]));
                    pairs.fold(Ordering::Equal, Ordering::then)
                })
            }
            v => {
                let data = v.to_ints()?;
                self.groups(n, &|a, b| {
                    let pairs = (0..each).map(|k| data[place(a, k)].cmp(&data[place(b, k)]));
                    pairs.fold(Ordering::Equal, Ordering::then)
                })
            }
        };
        let mut counts = vec![0i64; firsts.len()];
        group.iter().for_each(|&g| counts[g] += 1);
        let y = super::movement::pick(cx, v, axis, &firsts)?;
        let ints = |v: Vec<i64>| Value::from_i64(&[v.len()], v);
        Ok(vec![
            Some(y),
            Some(ints(firsts.iter().map(|&i| i as i64).collect())?),
            Some(ints(group.iter().map(|&i| i as i64).collect())?),
            Some(ints(counts)?),
        ])
    }
}

/// `NonMaxSuppression(boxes, scores, most?, overlap?, least score?)`.
struct Suppression {
    centers: bool,
}

impl Suppression {
    /// Low and high corner: `[y0, x0, y1, x1]` in any order, or center and size, `[x, y, w, h]`.
    fn corners(&self, b: &[f32]) -> [f32; 4] {
        if self.centers {
            let (w, h) = (b[2] / 2.0, b[3] / 2.0);
            [b[1] - h, b[0] - w, b[1] + h, b[0] + w]
        } else {
            [
                b[0].min(b[2]),
                b[1].min(b[3]),
                b[0].max(b[2]),
                b[1].max(b[3]),
            ]
        }
    }

    fn overlap(&self, a: &[f32], b: &[f32]) -> f32 {
        let (a, b) = (self.corners(a), self.corners(b));
        let side = |i: usize| a[i + 2].min(b[i + 2]) - a[i].max(b[i]);
        let area = |c: [f32; 4]| (c[2] - c[0]) * (c[3] - c[1]);
        let (y, x) = (side(0), side(1));
        if y <= 0.0 || x <= 0.0 || area(a) <= 0.0 || area(b) <= 0.0 {
            return 0.0;
        }
        x * y / (area(a) + area(b) - x * y)
    }
}

impl Kernel for Suppression {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let most = match ins.ints_opt(2)? {
            Some(v) => size_of(v.first().copied().unwrap_or(0).max(0))?,
            None => 0,
        };
        let number = |slot: usize| ins.has(slot).then(|| ins.scalar(slot)).transpose();
        let (limit, least) = (number(3)?.unwrap_or(0.0), number(4)?);
        let (scores, boxes) = (ins.dense(1, cx)?, ins.dense(0, cx)?);
        let ([batch, n, 4], [sb, classes, sn]) = (boxes.dims(), scores.dims()) else {
            return Err(Fault(format!(
                "boxes of {:?}, scores of {:?}",
                boxes.dims(),
                scores.dims()
            )));
        };
        if sb != batch || sn != n {
            return Err(Fault(format!(
                "boxes of {:?}, scores of {:?}",
                boxes.dims(),
                scores.dims()
            )));
        }
        let (rb, rs) = (boxes.read(), scores.read());
        let (places, scores) = (rb.slice()?, rs.slice()?);
        let mut out = Vec::new();
        for b in 0..*batch {
            let at = |i: usize| &places[(b * n + i) * 4..][..4];
            for class in 0..*classes {
                let score = &scores[(b * classes + class) * n..][..*n];
                let mut left: Vec<usize> = (0..*n)
                    .filter(|&i| least.is_none_or(|l| score[i] > l))
                    .collect();
                left.sort_by(|&a, &b| score[b].total_cmp(&score[a]).then(a.cmp(&b)));
                let mut chosen: Vec<usize> = Vec::new();
                for i in left {
                    if chosen.len() >= most {
                        break;
                    }
                    if chosen.iter().all(|&c| self.overlap(at(i), at(c)) <= limit) {
                        chosen.push(i);
                        out.extend([b as i64, class as i64, i as i64]);
                    }
                }
            }
        }
        let rows = out.len() / 3;
        one(Host::new(DType::Int64, vec![rows, 3], Data::I64(out))?)
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "ReverseSequence", |cx: &mut BuildCx<'_>| {
        Ok(Box::new(Reverse {
            batch: cx.int("batch_axis", 1),
            time: cx.int("time_axis", 0),
        }))
    }),
    ("", "MaxUnpool", |cx| {
        Ok(Box::new(Unpool {
            kernel: cx
                .ints("kernel_shape")
                .ok_or("the attribute `kernel_shape` is missing")?,
            strides: cx.ints("strides"),
            pads: cx.ints("pads"),
        }))
    }),
    ("", "Unique", |cx| {
        let axis = cx.node.attr("axis").and_then(crate::ir::AttrValue::as_int);
        Ok(Box::new(Unique {
            axis,
            sorted: cx.int("sorted", 1) != 0,
        }))
    }),
    ("", "NonMaxSuppression", |cx| {
        Ok(Box::new(Suppression {
            centers: cx.flag("center_point_box"),
        }))
    }),
];
