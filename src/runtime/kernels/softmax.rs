//! `Softmax`, `LogSoftmax`.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, one, walk};
use crate::runtime::value::{Floats, KResult, Value, count};

struct Softmax {
    axis: i64,
    log: bool,
    /// Before opset 13 the axes from `axis` on are one.
    flat: bool,
}

/// The softmax of a row, in place. A row of `-inf` alone gives NaN, as the definition does.
pub(crate) fn softmax_row(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in row.iter_mut() {
        *x = (*x - max).exp();
        sum += *x;
    }
    let r = 1.0 / sum;
    row.iter_mut().for_each(|x| *x *= r);
}

fn log_softmax_row(row: &mut [f32]) {
    let max = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f32 = row.iter().map(|x| (x - max).exp()).sum();
    // Two subtractions: the sum of the two would lose the logarithm beside a large maximum.
    let log = sum.ln();
    row.iter_mut().for_each(|x| *x = (*x - max) - log);
}

impl Kernel for Softmax {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let x = ins.floats(0)?;
        let dims = x.dims().to_vec();
        if dims.is_empty() {
            return one(x);
        }
        let axis = axis_of(self.axis, dims.len())?;
        let last = axis + 1 == dims.len() || self.flat;
        if last {
            let width = count(&dims[axis..])?;
            return one(self.rows(cx, x, &dims, width)?);
        }
        // Another axis: exchanged with the last one, and back.
        let mut perm: Vec<usize> = (0..dims.len()).collect();
        perm.swap(axis, dims.len() - 1);
        let turned = x.view(|t| t.permute(perm.as_slice()))?;
        drop(x);
        let to = turned.dims().to_vec();
        let y = self.rows(cx, turned, &to, dims[axis])?;
        one(super::movement::permute(&Value::Float(y), &perm, None)?)
    }
}

impl Softmax {
    fn rows(&self, cx: &Cx<'_>, x: Floats, dims: &[usize], width: usize) -> KResult<Floats> {
        let dtype = x.dtype();
        let mut v = cx.buffer(x)?;
        if self.log {
            walk::rows(&mut v, width, |_, r| log_softmax_row(r));
        } else {
            walk::rows(&mut v, width, |_, r| softmax_row(r));
        }
        cx.floats(v, dims, dtype)
    }
}

fn make(cx: &BuildCx<'_>, log: bool) -> Box<dyn Kernel> {
    let flat = cx.opset < 13;
    Box::new(Softmax {
        axis: cx.int("axis", if flat { 1 } else { -1 }),
        log,
        flat,
    })
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Softmax", |cx| Ok(make(cx, false))),
    ("", "LogSoftmax", |cx| Ok(make(cx, true))),
];
