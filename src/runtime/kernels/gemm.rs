//! `Gemm(a, b, c?)`: `alpha * a'·b' + beta * c`.

use super::matmul::matmul;
use super::{Cx, Entry, Ins, Kernel, Outs};
use crate::runtime::value::{Fault, KResult, Value};
use crate::runtime::walk;

struct Gemm {
    alpha: f32,
    beta: f32,
    trans: [bool; 2],
}

impl Kernel for Gemm {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let turn = |v: Value, t: bool| -> KResult<Value> {
            if v.dims().len() != 2 {
                return Err(Fault(format!("a matrix of shape {:?}", v.dims())));
            }
            if t { v.permuted(&[1, 0]) } else { Ok(v) }
        };
        let a = turn(ins.take(0)?, self.trans[0])?;
        let b = turn(ins.take(1)?, self.trans[1])?;
        let out = matmul(cx, a, b, self.alpha)?;
        let c = if ins.has(2) {
            Some(ins.floats(2)?)
        } else {
            None
        };
        let Some(c) = c.filter(|_| self.beta != 0.0) else {
            return super::one(out);
        };
        let (dims, dtype) = (out.dims().to_vec(), out.dtype());
        if walk::broadcast(&[&dims, c.dims()])? != dims {
            return Err(Fault(format!(
                "{:?} does not broadcast to {dims:?}",
                c.dims()
            )));
        }
        let mut v = cx.buffer(out)?;
        let beta = self.beta;
        walk::zip_in_place(&dims, &mut v, &c.read().view()?, |x, c| x + beta * c);
        cx.one(v, &dims, dtype)
    }
}

pub(super) const KERNELS: &[Entry] = &[("", "Gemm", |cx| {
    Ok(Box::new(Gemm {
        alpha: cx.float("alpha", 1.0),
        beta: cx.float("beta", 1.0),
        trans: [cx.flag("transA"), cx.flag("transB")],
    }))
})];
