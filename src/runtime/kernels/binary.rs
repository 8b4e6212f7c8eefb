//! Element-wise operators of two and more operands, with broadcasting. A dying operand of the result's shape is overwritten.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, one, plain, to_floats};
use crate::ir::DType;
use crate::runtime::value::{Data, Fault, Floats, Host, KResult, Value, wrap_int};
use crate::runtime::walk::{self, View};

/// An arithmetic function for each kind of element.
struct Arith<F> {
    single: F,
    double: fn(f64, f64) -> f64,
    int: fn(i64, i64) -> Option<i64>,
}

fn arith<F>(
    single: F,
    double: fn(f64, f64) -> f64,
    int: fn(i64, i64) -> Option<i64>,
) -> KResult<Box<dyn Kernel>>
where
    F: Fn(f32, f32) -> f32 + Send + Sync + 'static,
{
    Ok(Box::new(Arith {
        single,
        double,
        int,
    }))
}

impl<F: Fn(f32, f32) -> f32 + Send + Sync> Kernel for Arith<F> {
    /// Any number of operands, combined from the left (`Min`, `Max`, `Sum` take several).
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let mut acc = plain(ins.take(0)?)?;
        for i in 1..ins.len() {
            let next = plain(ins.take(i)?)?;
            acc = match (acc, next) {
                (Value::Float(a), Value::Float(b)) => {
                    Value::Float(zip_floats(cx, a, b, &self.single)?)
                }
                (Value::Host(a), Value::Host(b)) => Value::Host(self.hosts(&a, &b)?),
                (a, b) => {
                    return Err(Fault(format!(
                        "operands of type {} and {}",
                        a.dtype(),
                        b.dtype()
                    )));
                }
            };
        }
        one(acc)
    }
}

impl<F> Arith<F> {
    fn hosts(&self, a: &Host, b: &Host) -> KResult<Host> {
        let dims = walk::broadcast(&[a.dims(), b.dims()])?;
        let n = crate::runtime::walk::count(&dims)?;
        if let (Data::F64(x), Data::F64(y)) = (a.data(), b.data()) {
            let mut out = vec![0.0; n];
            let (x, y) = (View::dense(x, a.dims()), View::dense(y, b.dims()));
            walk::zip(&dims, &x, &y, &mut out, self.double);
            return Host::new(a.dtype(), dims, Data::F64(out));
        }
        let (x, y) = (a.ints()?, b.ints()?);
        let mut out = vec![None; n];
        let (x, y) = (View::dense(&x, a.dims()), View::dense(&y, b.dims()));
        walk::zip(&dims, &x, &y, &mut out, self.int);
        let out: Option<Vec<i64>> = out
            .into_iter()
            .map(|v| v.map(|v| wrap_int(a.dtype(), v)))
            .collect();
        Host::from_ints(a.dtype(), dims, out.ok_or("division by zero")?)
    }
}

/// `f(a, b)` with broadcasting, in the buffer of an operand if one may be overwritten.
pub(crate) fn zip_floats(
    cx: &Cx<'_>,
    a: Floats,
    b: Floats,
    f: &(impl Fn(f32, f32) -> f32 + Sync),
) -> KResult<Floats> {
    let dims = walk::broadcast(&[a.dims(), b.dims()])?;
    let dtype = a.dtype();
    let mut a = a;
    if a.dims() == dims {
        match a.into_buffer() {
            Ok(mut v) => {
                walk::zip_in_place(&dims, &mut v, &b.read().view()?, f);
                return cx.floats(v, &dims, dtype);
            }
            Err(back) => a = back,
        }
    }
    let mut b = b;
    if b.dims() == dims {
        match b.into_buffer() {
            Ok(mut v) => {
                walk::zip_in_place(&dims, &mut v, &a.read().view()?, |y, x| f(x, y));
                return cx.floats(v, &dims, dtype);
            }
            Err(back) => b = back,
        }
    }
    let mut out = cx.alloc(crate::runtime::walk::count(&dims)?);
    walk::zip(&dims, &a.read().view()?, &b.read().view()?, &mut out, f);
    cx.floats(out, &dims, dtype)
}

/// A comparison or a logical operator: the result is bool.
struct Compare {
    single: fn(f32, f32) -> bool,
    double: fn(f64, f64) -> bool,
    int: fn(i64, i64) -> bool,
}

impl Kernel for Compare {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (a, b) = (plain(ins.take(0)?)?, plain(ins.take(1)?)?);
        let dims = walk::broadcast(&[a.dims(), b.dims()])?;
        let mut out = vec![0u8; crate::runtime::walk::count(&dims)?];
        match (&a, &b) {
            (Value::Float(x), Value::Float(y)) => walk::zip(
                &dims,
                &x.read().view()?,
                &y.read().view()?,
                &mut out,
                |x, y| u8::from((self.single)(x, y)),
            ),
            (Value::Host(x), Value::Host(y)) => match (x.data(), y.data()) {
                (Data::F64(p), Data::F64(q)) => {
                    let (p, q) = (View::dense(p, x.dims()), View::dense(q, y.dims()));
                    walk::zip(&dims, &p, &q, &mut out, |x, y| {
                        u8::from((self.double)(x, y))
                    });
                }
                _ => {
                    let (p, q) = (x.ints()?, y.ints()?);
                    let (p, q) = (View::dense(&p, x.dims()), View::dense(&q, y.dims()));
                    walk::zip(&dims, &p, &q, &mut out, |x, y| u8::from((self.int)(x, y)));
                }
            },
            _ => {
                return Err(Fault(format!(
                    "operands of type {} and {}",
                    a.dtype(),
                    b.dtype()
                )));
            }
        }
        one(Host::from_bools(dims, out)?)
    }
}

fn compare(
    single: fn(f32, f32) -> bool,
    double: fn(f64, f64) -> bool,
    int: fn(i64, i64) -> bool,
) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(Compare {
        single,
        double,
        int,
    }))
}

/// `Pow(x, y)`: the exponent has a type of its own; its usual values need no logarithm.
struct Pow;

impl Kernel for Pow {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let x = plain(ins.take(0)?)?;
        let y = plain(ins.take(1)?)?;
        if let Value::Host(h) = &x {
            return one(pow_host(h, &y)?);
        }
        let x = to_floats(x, 0)?;
        let y = match y {
            Value::Host(h) => Floats::new(
                Value::Host(h.clone()).to_f32()?,
                h.dims(),
                DType::Float,
                None,
            )?,
            v => to_floats(v, 1)?,
        };
        if y.tensor().elem_count() == 1 && y.dims().len() <= x.dims().len() {
            let e = y.to_vec()?[0];
            let (dims, dtype) = (x.dims().to_vec(), x.dtype());
            let mut v = cx.buffer(x)?;
            match e {
                2.0 => walk::map_in_place(&mut v, |x| x * x),
                3.0 => walk::map_in_place(&mut v, |x| x * x * x),
                0.5 => walk::map_in_place(&mut v, f32::sqrt),
                -1.0 => walk::map_in_place(&mut v, f32::recip),
                -0.5 => walk::map_in_place(&mut v, |x| x.sqrt().recip()),
                e => walk::map_in_place(&mut v, |x| x.powf(e)),
            }
            return cx.one(v, &dims, dtype);
        }
        one(zip_floats(cx, x, y, &f32::powf)?)
    }
}

fn pow_host(x: &Host, y: &Value) -> KResult<Host> {
    let dims = walk::broadcast(&[x.dims(), y.dims()])?;
    let n = crate::runtime::walk::count(&dims)?;
    let wide = |v: &Value| -> KResult<Vec<f64>> {
        Ok(match v {
            Value::Host(h) => match h.data() {
                Data::F64(v) => v.clone(),
                _ => h.ints()?.iter().map(|&x| x as f64).collect(),
            },
            v => v.to_f32()?.into_iter().map(f64::from).collect(),
        })
    };
    let q = wide(y)?;
    let mut out = vec![0.0; n];
    let p = wide(&Value::Host(x.clone()))?;
    walk::zip(
        &dims,
        &View::dense(&p, x.dims()),
        &View::dense(&q, y.dims()),
        &mut out,
        f64::powf,
    );
    if x.dtype() == DType::Double {
        return Host::new(DType::Double, dims, Data::F64(out));
    }
    let out = out.into_iter().map(|x| x as i64).collect();
    Host::from_ints(x.dtype(), dims, out)
}

fn modulo(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    if cx.flag("fmod") {
        return arith(|a, b| a % b, |a, b| a % b, i64::checked_rem);
    }
    // The sign of the divisor, as Python's `%`.
    arith(
        |a, b| {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) {
                r + b
            } else {
                r
            }
        },
        |a, b| {
            let r = a % b;
            if r != 0.0 && (r < 0.0) != (b < 0.0) {
                r + b
            } else {
                r
            }
        },
        |a, b| {
            let r = a.checked_rem(b)?;
            Some(if r != 0 && (r < 0) != (b < 0) {
                r + b
            } else {
                r
            })
        },
    )
}

fn shift(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    // A shift by the width or more, or by a negative number, shifts everything out.
    match cx.node.str("direction") {
        Some("LEFT") => arith(
            |a, _| a,
            |a, _| a,
            |a, b| {
                Some(
                    u32::try_from(b)
                        .ok()
                        .and_then(|b| a.checked_shl(b))
                        .unwrap_or(0),
                )
            },
        ),
        Some("RIGHT") => arith(
            |a, _| a,
            |a, _| a,
            |a, b| Some(a >> u32::try_from(b).unwrap_or(63).min(63)),
        ),
        other => Err(Fault(format!("direction = {other:?}"))),
    }
}

/// `Mean`: the sum, divided by the number of operands.
struct Mean;

impl Kernel for Mean {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let mut sum = ins.floats(0)?;
        for i in 1..ins.len() {
            sum = zip_floats(cx, sum, ins.floats(i)?, &|a, b| a + b)?;
        }
        let (dims, dtype, n) = (sum.dims().to_vec(), sum.dtype(), ins.len() as f32);
        let mut out = cx.buffer(sum)?;
        walk::map_in_place(&mut out, |x| x / n);
        cx.one(out, &dims, dtype)
    }
}

/// The smaller one; NaN wins.
fn least(a: f32, b: f32) -> f32 {
    if a < b || a.is_nan() { a } else { b }
}

/// The larger one; NaN wins.
fn most(a: f32, b: f32) -> f32 {
    if a > b || a.is_nan() { a } else { b }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Add", |_| {
        arith(|a, b| a + b, |a, b| a + b, |a, b| Some(a.wrapping_add(b)))
    }),
    ("", "Sum", |_| {
        arith(|a, b| a + b, |a, b| a + b, |a, b| Some(a.wrapping_add(b)))
    }),
    ("", "Mean", |_| Ok(Box::new(Mean))),
    ("", "Sub", |_| {
        arith(|a, b| a - b, |a, b| a - b, |a, b| Some(a.wrapping_sub(b)))
    }),
    ("", "Mul", |_| {
        arith(|a, b| a * b, |a, b| a * b, |a, b| Some(a.wrapping_mul(b)))
    }),
    ("", "Div", |_| {
        arith(
            |a, b| a / b,
            |a, b| a / b,
            |a, b| (b != 0).then(|| a.wrapping_div(b)),
        )
    }),
    ("", "Mod", modulo),
    ("", "Min", |_| arith(least, f64::min, |a, b| Some(a.min(b)))),
    ("", "Max", |_| arith(most, f64::max, |a, b| Some(a.max(b)))),
    ("", "PRelu", |_| {
        arith(
            |a, s| if a < 0.0 { a * s } else { a },
            |a, s| if a < 0.0 { a * s } else { a },
            |a, s| Some(if a < 0 { a.wrapping_mul(s) } else { a }),
        )
    }),
    ("", "Pow", |_| Ok(Box::new(Pow))),
    ("", "Equal", |_| {
        compare(|a, b| a == b, |a, b| a == b, |a, b| a == b)
    }),
    ("", "Greater", |_| {
        compare(|a, b| a > b, |a, b| a > b, |a, b| a > b)
    }),
    ("", "GreaterOrEqual", |_| {
        compare(|a, b| a >= b, |a, b| a >= b, |a, b| a >= b)
    }),
    ("", "Less", |_| {
        compare(|a, b| a < b, |a, b| a < b, |a, b| a < b)
    }),
    ("", "LessOrEqual", |_| {
        compare(|a, b| a <= b, |a, b| a <= b, |a, b| a <= b)
    }),
    ("", "And", |_| compare(no, no_wide, |a, b| a != 0 && b != 0)),
    ("", "Or", |_| compare(no, no_wide, |a, b| a != 0 || b != 0)),
    ("", "Xor", |_| {
        compare(no, no_wide, |a, b| (a != 0) != (b != 0))
    }),
    ("", "BitShift", shift),
    ("", "BitwiseAnd", |_| {
        arith(|a, _| a, |a, _| a, |a, b| Some(a & b))
    }),
    ("", "BitwiseXor", |_| {
        arith(|a, _| a, |a, _| a, |a, b| Some(a ^ b))
    }),
    ("", "BitwiseOr", |_| {
        arith(|a, _| a, |a, _| a, |a, b| Some(a | b))
    }),
];

fn no(_: f32, _: f32) -> bool {
    false
}

fn no_wide(_: f64, _: f64) -> bool {
    false
}
