//! Our own operators of the backward pass: adjoints of broadcasting, slicing and gathering, for shapes known only at run time.

use super::gather::index_of;
use super::{BuildCx, Cx, Entry, Ins, Kernel, OWN, Outs, axis_of, one, size_of};
use crate::runtime::value::{Fault, Floats, KResult, Value};
use crate::runtime::walk::{self, count, row_major};
use onnx_graft_kernels::team;

/// `SumTo(x, shape)`: the adjoint of `Expand`.
struct SumTo;

impl Kernel for SumTo {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let want = shape(&ins, 1)?;
        let x = ins.floats(0)?;
        one(sum_to(cx, x, &want)?)
    }
}

fn shape(ins: &Ins, slot: usize) -> KResult<Vec<usize>> {
    ins.ints(slot)?.into_iter().map(size_of).collect()
}

/// Sums over the axes along which `want` was broadcast.
pub(crate) fn sum_to(cx: &Cx<'_>, x: Floats, want: &[usize]) -> KResult<Floats> {
    let from = x.dims().to_vec();
    if from == want {
        return Ok(x);
    }
    let lead = from.len().checked_sub(want.len());
    let fits = lead.is_some_and(|l| from[l..].iter().zip(want).all(|(a, b)| a == b || *b == 1));
    let Some(lead) = lead.filter(|_| fits) else {
        return Err(Fault(format!("{from:?} does not sum to {want:?}")));
    };
    let x = cx.dense(x)?;
    let read = x.read();
    let src = read.slice()?;
    let gone: Vec<bool> = (0..from.len())
        .map(|i| i < lead || (want[i - lead] == 1 && from[i] != 1))
        .collect();
    let mut out = cx.alloc(count(want)?);
    let first_kept = gone.iter().position(|g| !g).unwrap_or(from.len());
    let rows: usize = from[..first_kept].iter().product();
    let width = src.len() / rows.max(1);
    if !gone[first_kept..].contains(&true) && out.len() == width {
        // Leading axes: bias-like operands.
        let block = 512;
        team::each(out.chunks_mut(block).enumerate(), |(b, o)| {
            let mut sums = vec![0f64; o.len()];
            for r in 0..rows {
                let part = &src[r * width + b * block..][..o.len()];
                sums.iter_mut()
                    .zip(part)
                    .for_each(|(s, &x)| *s += f64::from(x));
            }
            o.iter_mut().zip(sums).for_each(|(o, s)| *o = s as f32);
        });
        return cx.floats(out, want, x.dtype());
    }
    let mut kept = vec![1; lead];
    kept.extend_from_slice(want);
    let strides = walk::broadcast_strides(&kept, &row_major(&kept), &from);
    let mut sums = vec![0f64; out.len()];
    let steps = row_major(&from);
    for (i, &x) in src.iter().enumerate() {
        let mut rest = i;
        let mut at = 0;
        for (step, s) in steps.iter().zip(&strides) {
            at += rest / step * s;
            rest %= step;
        }
        sums[at] += f64::from(x);
    }
    out.iter_mut().zip(sums).for_each(|(o, s)| *o = s as f32);
    cx.floats(out, want, x.dtype())
}

/// `GatherGrad(grad, indices, shape){axis}`: rows are added up where `Gather` reads them.
struct GatherGrad(i64);

impl Kernel for GatherGrad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let dims = shape(&ins, 2)?;
        let index = ins.ints(1)?;
        let grad = ins.dense(0, cx)?;
        let axis = axis_of(self.0, dims.len())?;
        let (len, inner, outer) = (dims[axis], count(&dims[axis + 1..])?, count(&dims[..axis])?);
        let at = index
            .iter()
            .map(|&i| index_of(i, len))
            .collect::<KResult<Vec<_>>>()?;
        let read = grad.read();
        let src = read.slice()?;
        if src.len() != count(&[outer, at.len(), inner])? {
            return Err(Fault(format!(
                "a gradient of {:?} for {dims:?}",
                grad.dims()
            )));
        }
        let mut out = cx.zeros(count(&dims)?);
        if inner > 0 && !at.is_empty() && len > 0 {
            let block = at.len() * inner;
            walk::rows(&mut out, len * inner, |row, o| {
                let g = src[row * block..(row + 1) * block].chunks(inner);
                for (&i, g) in at.iter().zip(g) {
                    o[i * inner..(i + 1) * inner]
                        .iter_mut()
                        .zip(g)
                        .for_each(|(o, g)| *o += g);
                }
            });
        }
        cx.one(out, &dims, grad.dtype())
    }
}

/// Zeros of a shape with the gradient scattered into it by a standard operator.
struct Scatter {
    make: &'static str,
    axis: i64,
    batch: usize,
}

impl Kernel for Scatter {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let dims = shape(&ins, 2)?;
        let index = ins.take(1)?;
        let grad = ins.take(0)?;
        let zeros = Value::Float(cx.floats(cx.zeros(count(&dims)?), &dims, grad.dtype())?);
        if self.make == "elements" {
            let k = super::scatter::elements_add(self.axis);
            return k.run(cx, Ins(vec![Some(zeros), Some(index), Some(grad)]));
        }
        let index = if self.batch == 0 {
            index
        } else {
            batched(&index, self.batch)?
        };
        let k = super::scatter::nd_add();
        k.run(cx, Ins(vec![Some(zeros), Some(index), Some(grad)]))
    }
}

/// Index tuples with the coordinates of their batch in front.
fn batched(index: &Value, batch: usize) -> KResult<Value> {
    let dims = index.dims().to_vec();
    let Some((&k, lead)) = dims.split_last() else {
        return Err("indices without axes".into());
    };
    if batch > lead.len() {
        return Err(Fault(format!("batch_dims = {batch} of indices {dims:?}")));
    }
    let strides = row_major(lead);
    let ints = index.to_ints()?;
    let n = count(lead)?;
    let mut out = Vec::with_capacity(n * (k + batch));
    for t in 0..n {
        out.extend((0..batch).map(|j| (t / strides[j] % lead[j].max(1)) as i64));
        out.extend_from_slice(&ints[t * k..(t + 1) * k]);
    }
    let mut to = lead.to_vec();
    to.push(k + batch);
    Value::from_i64(&to, out)
}

/// `SliceGrad(grad, shape, starts, ends, axes?, steps?)`: the gradient written where `Slice` reads.
struct SliceGrad;

impl Kernel for SliceGrad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let dims = shape(&ins, 1)?;
        let (starts, ends) = (ins.ints(2)?, ins.ints(3)?);
        let axes = ins
            .ints_opt(4)?
            .unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = ins.ints_opt(5)?.unwrap_or_else(|| vec![1; starts.len()]);
        if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return Err("starts, ends, axes and steps differ in length".into());
        }
        let grad = ins.dense(0, cx)?;
        // The positions that the slice reads, axis by axis.
        let mut at: Vec<Vec<usize>> = dims.iter().map(|&d| (0..d).collect()).collect();
        for i in 0..starts.len() {
            let axis = axis_of(axes[i], dims.len())?;
            at[axis] = super::movement::positions(dims[axis], starts[i], ends[i], steps[i])?;
        }
        let found: Vec<usize> = at.iter().map(Vec::len).collect();
        if found != grad.dims() {
            return Err(Fault(format!(
                "a gradient of {:?}, expected {found:?}",
                grad.dims()
            )));
        }
        let strides = row_major(&dims);
        let steps = row_major(&found);
        let mut out = cx.zeros(count(&dims)?);
        let read = grad.read();
        let inner = found.last().copied().unwrap_or(1);
        let src = read.slice()?;
        for (r, g) in src.chunks(inner.max(1)).enumerate() {
            let mut rest = r * inner;
            let mut base = 0;
            for a in 0..dims.len().saturating_sub(1) {
                base += at[a][rest / steps[a]] * strides[a];
                rest %= steps[a];
            }
            match at.last() {
                Some(last) => last.iter().zip(g).for_each(|(&i, &g)| out[base + i] = g),
                None => out[0] = g[0],
            }
        }
        cx.one(out, &dims, grad.dtype())
    }
}

fn nd(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(Scatter {
        make: "nd",
        axis: 0,
        batch: size_of(cx.int("batch_dims", 0))?,
    }))
}

pub(super) const KERNELS: &[Entry] = &[
    (OWN, "SumTo", |_| Ok(Box::new(SumTo))),
    (OWN, "GatherGrad", |cx| {
        Ok(Box::new(GatherGrad(cx.int("axis", 0))))
    }),
    (OWN, "GatherElementsGrad", |cx| {
        Ok(Box::new(Scatter {
            make: "elements",
            axis: cx.int("axis", 0),
            batch: 0,
        }))
    }),
    (OWN, "GatherNDGrad", nd),
    (OWN, "SliceGrad", |_| Ok(Box::new(SliceGrad))),
];
