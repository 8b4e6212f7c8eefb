//! `Softmax`, `LogSoftmax`.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, one};
use crate::runtime::value::{Floats, KResult, Value};
use crate::runtime::walk::{self, count};
use onnx_graft_kernels::softmax::{log_softmax_row, softmax_row};

struct Softmax {
    axis: i64,
    log: bool,
    /// Before opset 13 the axes from `axis` on are one.
    flat: bool,
}

/// The softmax of a row, in place. A row of `-inf` alone gives NaN, as the definition does.
fn defined_row(row: &mut [f32]) {
    if softmax_row(row) == f32::NEG_INFINITY {
        row.fill(f32::NAN);
    }
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
        one(Value::Float(y).permuted(&perm)?)
    }
}

impl Softmax {
    fn rows(&self, cx: &Cx<'_>, x: Floats, dims: &[usize], width: usize) -> KResult<Floats> {
        let dtype = x.dtype();
        let mut v = cx.buffer(x)?;
        if self.log {
            walk::rows(&mut v, width, |_, r| log_softmax_row(r));
        } else {
            walk::rows(&mut v, width, |_, r| defined_row(r));
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
