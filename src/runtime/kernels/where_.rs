//! `Where(condition, x, y)`.

use super::{Cx, Entry, Ins, Kernel, Outs, one, plain};
use crate::runtime::value::{Data, Fault, Host, KResult, Value};
use crate::runtime::walk::{self, View, count};

pub(crate) struct Where;

impl Kernel for Where {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let c = ins.host(0)?;
        let (a, b) = (plain(ins.take(1)?)?, plain(ins.take(2)?)?);
        let dims = walk::broadcast(&[c.dims(), a.dims(), b.dims()])?;
        let n = count(&dims)?;
        let test = View::dense(c.bytes()?, c.dims());
        match (&a, &b) {
            (Value::Float(x), Value::Float(y)) => {
                let mut out = cx.alloc(n);
                walk::select(&dims, &test, &x.read().view()?, &y.read().view()?, &mut out);
                cx.one(out, &dims, x.dtype())
            }
            (Value::Host(x), Value::Host(y)) => {
                let data = match (x.data(), y.data()) {
                    (Data::I64(p), Data::I64(q)) => {
                        let mut out = vec![0; n];
                        let (p, q) = (View::dense(p, x.dims()), View::dense(q, y.dims()));
                        walk::select(&dims, &test, &p, &q, &mut out);
                        Data::I64(out)
                    }
                    (Data::U8(p), Data::U8(q)) => {
                        let mut out = vec![0; n];
                        let (p, q) = (View::dense(p, x.dims()), View::dense(q, y.dims()));
                        walk::select(&dims, &test, &p, &q, &mut out);
                        Data::U8(out)
                    }
                    (Data::F64(p), Data::F64(q)) => {
                        let mut out = vec![0.0; n];
                        let (p, q) = (View::dense(p, x.dims()), View::dense(q, y.dims()));
                        walk::select(&dims, &test, &p, &q, &mut out);
                        Data::F64(out)
                    }
                    _ => return Err(kinds(&a, &b)),
                };
                one(Host::new(x.dtype(), dims, data)?)
            }
            _ => Err(kinds(&a, &b)),
        }
    }
}

fn kinds(a: &Value, b: &Value) -> Fault {
    Fault(format!("operands of type {} and {}", a.dtype(), b.dtype()))
}

pub(super) const KERNELS: &[Entry] = &[("", "Where", |_| Ok(Box::new(Where)))];
