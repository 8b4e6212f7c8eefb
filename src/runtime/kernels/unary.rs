//! Element-wise operators of one operand. They overwrite an operand that dies here.

use super::{BuildCx, Cx, Entry, Ins, Kernel, MS, Outs, one, plain};
use crate::ir::DType;
use crate::runtime::value::{Data, Fault, Host, KResult, Value, wrap_int};
use crate::runtime::walk;
use candle_core::cpu::erf::{erf_f32, erf_f64};
use onnx_graft_kernels::activation::{self, Activation};

/// An element-wise function for each kind of element it is defined on.
struct Map<F, D> {
    single: F,
    double: D,
    int: Option<fn(i64) -> i64>,
}

fn map<F, D>(single: F, double: D, int: Option<fn(i64) -> i64>) -> KResult<Box<dyn Kernel>>
where
    F: Fn(f32) -> f32 + Send + Sync + 'static,
    D: Fn(f64) -> f64 + Send + Sync + 'static,
{
    Ok(Box::new(Map {
        single,
        double,
        int,
    }))
}

impl<F, D> Kernel for Map<F, D>
where
    F: Fn(f32) -> f32 + Send + Sync,
    D: Fn(f64) -> f64 + Send + Sync,
{
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        match plain(ins.take(0)?)? {
            Value::Float(x) => {
                let (dims, dtype) = (x.dims().to_vec(), x.dtype());
                match x.into_buffer() {
                    Ok(mut v) => {
                        walk::map_in_place(&mut v, &self.single);
                        cx.one(v, &dims, dtype)
                    }
                    Err(x) => {
                        let mut out = cx.alloc(x.tensor().elem_count());
                        walk::map(&x.read().view()?, &mut out, &self.single);
                        cx.one(out, &dims, dtype)
                    }
                }
            }
            Value::Host(h) => map_host(&h, &self.double, self.int),
            Value::Weight(_) => Err("a weight converts to a tensor".into()),
        }
    }
}

/// The function on integers or `f64`.
fn map_host(h: &Host, double: impl Fn(f64) -> f64, int: Option<fn(i64) -> i64>) -> KResult<Outs> {
    let data = match (h.data(), int) {
        (Data::F64(v), _) => Data::F64(v.iter().map(|&x| double(x)).collect()),
        (_, Some(f)) => {
            let v = h
                .ints()?
                .iter()
                .map(|&x| wrap_int(h.dtype(), f(x)))
                .collect();
            return one(Host::from_ints(h.dtype(), h.dims().to_vec(), v)?);
        }
        (_, None) => {
            return Err(Fault(format!("found {}, expected a float type", h.dtype())));
        }
    };
    one(Host::new(h.dtype(), h.dims().to_vec(), data)?)
}

/// An activation function.
struct Activate {
    f: Activation,
    double: fn(f64) -> f64,
}

fn activate(f: Activation, double: fn(f64) -> f64) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(Activate { f, double }))
}

impl Kernel for Activate {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        match plain(ins.take(0)?)? {
            Value::Float(x) => {
                let (dims, dtype) = (x.dims().to_vec(), x.dtype());
                let mut v = cx.buffer(x)?;
                activation::forward(self.f, &mut v);
                cx.one(v, &dims, dtype)
            }
            Value::Host(h) => map_host(&h, self.double, None),
            Value::Weight(_) => Err("a weight converts to a tensor".into()),
        }
    }
}

/// A predicate on floats.
struct Test(fn(f64) -> bool);

impl Kernel for Test {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let v = plain(ins.take(0)?)?;
        let dims = v.dims().to_vec();
        let out = match v {
            Value::Float(x) => {
                let x = cx.dense(x)?;
                let read = x.read();
                let mut out = vec![0u8; x.tensor().elem_count()];
                let view = crate::runtime::walk::View::dense(read.slice()?, &dims);
                walk::map(&view, &mut out, |x| u8::from((self.0)(f64::from(x))));
                out
            }
            Value::Host(h) => match h.data() {
                Data::F64(v) => v.iter().map(|&x| u8::from((self.0)(x))).collect(),
                _ => vec![0; h.data().len()],
            },
            Value::Weight(_) => return Err("a weight converts to a tensor".into()),
        };
        one(Host::from_bools(dims, out)?)
    }
}

struct Not;

impl Kernel for Not {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let h = ins.host(0)?;
        let out = h.bytes()?.iter().map(|&x| u8::from(x == 0)).collect();
        one(Host::from_bools(h.dims().to_vec(), out)?)
    }
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn gelu_erf(x: f64) -> f64 {
    0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2))
}

fn gelu_tanh(x: f64) -> f64 {
    // sqrt(2 / pi)
    const K: f64 = 0.797_884_560_802_865_4;
    0.5 * x * (1.0 + (K * (x + 0.044_715 * x * x * x)).tanh())
}

fn gelu(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    match cx.node.str("approximate").unwrap_or("none") {
        "none" => activate(Activation::Gelu, gelu_erf),
        "tanh" => activate(Activation::GeluTanh, gelu_tanh),
        other => Err(Fault(format!("approximate = \"{other}\""))),
    }
}

/// `BiasGelu(x, bias)` and `FastGelu(x, bias?)` of ONNX Runtime.
struct BiasGelu(Activation);

impl Kernel for BiasGelu {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let x = ins.floats(0)?;
        let bias = ins.dense_opt(1, cx)?;
        let (dims, dtype) = (x.dims().to_vec(), x.dtype());
        let mut v = cx.buffer(x)?;
        if let Some(b) = bias {
            if walk::broadcast(&[&dims, b.dims()])? != dims {
                return Err(Fault(format!("a bias of shape {:?}", b.dims())));
            }
            walk::zip_in_place(&dims, &mut v, &b.read().view()?, |x, b| x + b);
        }
        activation::forward(self.0, &mut v);
        cx.one(v, &dims, dtype)
    }
}

fn quick_gelu(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let alpha = cx.float("alpha", 1.702);
    map(
        move |x| x * sigmoid(alpha * x),
        |x| x / (1.0 + (-1.702 * x).exp()),
        None,
    )
}

/// `Clip(x, min?, max?)`; bounds are attributes before opset 11.
struct Clip(Option<f32>, Option<f32>);

impl Kernel for Clip {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        if let Value::Host(h) = plain(ins.need(0)?.clone())?
            && h.dtype() != DType::Double
        {
            let first = |v: Option<Vec<i64>>| v.and_then(|v| v.first().copied());
            let lo = first(ins.ints_opt(1)?).unwrap_or(i64::MIN);
            let hi = first(ins.ints_opt(2)?).unwrap_or(i64::MAX);
            let v = h.ints()?.iter().map(|&x| x.max(lo).min(hi)).collect();
            return one(Host::from_ints(h.dtype(), h.dims().to_vec(), v)?);
        }
        let lo = if ins.has(1) {
            Some(ins.scalar(1)?)
        } else {
            self.0
        };
        let hi = if ins.has(2) {
            Some(ins.scalar(2)?)
        } else {
            self.1
        };
        let (lo, hi) = (lo.unwrap_or(f32::MIN), hi.unwrap_or(f32::MAX));
        let x = ins.floats(0)?;
        let (dims, dtype) = (x.dims().to_vec(), x.dtype());
        let mut v = cx.buffer(x)?;
        // Not `clamp`: NaN passes through, and crossed bounds give the upper one.
        walk::map_in_place(&mut v, |x| {
            let x = if x < lo { lo } else { x };
            if x > hi { hi } else { x }
        });
        cx.one(v, &dims, dtype)
    }
}

fn clip(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let get = |name: &str| cx.node.attr(name).and_then(crate::ir::AttrValue::as_float);
    Ok(Box::new(Clip(get("min"), get("max"))))
}

fn sign(x: f32) -> f32 {
    if x > 0.0 {
        1.0
    } else if x < 0.0 {
        -1.0
    } else {
        x
    }
}

fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Neg", |_| map(|x| -x, |x| -x, Some(i64::wrapping_neg))),
    ("", "Abs", |_| {
        map(f32::abs, f64::abs, Some(i64::wrapping_abs))
    }),
    ("", "Sign", |_| {
        map(
            sign,
            |x| if x == 0.0 { x } else { x.signum() },
            Some(i64::signum),
        )
    }),
    ("", "Sqrt", |_| map(f32::sqrt, f64::sqrt, None)),
    ("", "Reciprocal", |_| map(f32::recip, f64::recip, None)),
    ("", "Exp", |_| map(f32::exp, f64::exp, None)),
    ("", "Log", |_| map(f32::ln, f64::ln, None)),
    ("", "Sin", |_| map(f32::sin, f64::sin, None)),
    ("", "Cos", |_| map(f32::cos, f64::cos, None)),
    ("", "Tan", |_| map(f32::tan, f64::tan, None)),
    ("", "Atan", |_| map(f32::atan, f64::atan, None)),
    ("", "Tanh", |_| activate(Activation::Tanh, f64::tanh)),
    ("", "Erf", |_| map(erf_f32, erf_f64, None)),
    ("", "Sigmoid", |_| {
        activate(Activation::Sigmoid, |x| 1.0 / (1.0 + (-x).exp()))
    }),
    // NaN stays NaN.
    ("", "Relu", |_| {
        map(
            |x| if x < 0.0 { 0.0 } else { x },
            |x| if x < 0.0 { 0.0 } else { x },
            Some(|x| x.max(0)),
        )
    }),
    ("", "LeakyRelu", |cx| {
        let a = cx.float("alpha", 0.01);
        map(
            move |x| if x < 0.0 { a * x } else { x },
            move |x| if x < 0.0 { f64::from(a) * x } else { x },
            None,
        )
    }),
    ("", "Elu", |cx| {
        let a = cx.float("alpha", 1.0);
        map(
            move |x| if x < 0.0 { a * x.exp_m1() } else { x },
            move |x| {
                if x < 0.0 {
                    f64::from(a) * x.exp_m1()
                } else {
                    x
                }
            },
            None,
        )
    }),
    ("", "HardSigmoid", |cx| {
        let (a, b) = (cx.float("alpha", 0.2), cx.float("beta", 0.5));
        map(
            move |x| (a * x + b).clamp(0.0, 1.0),
            move |x| (f64::from(a) * x + f64::from(b)).clamp(0.0, 1.0),
            None,
        )
    }),
    ("", "HardSwish", |_| {
        map(
            |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            |x| x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
            None,
        )
    }),
    ("", "Softplus", |_| {
        map(softplus, |x| x.max(0.0) + (-x.abs()).exp().ln_1p(), None)
    }),
    ("", "Softsign", |_| {
        map(|x| x / (1.0 + x.abs()), |x| x / (1.0 + x.abs()), None)
    }),
    ("", "Mish", |_| {
        map(
            |x| x * softplus(x).tanh(),
            |x| x * (x.max(0.0) + (-x.abs()).exp().ln_1p()).tanh(),
            None,
        )
    }),
    ("", "Swish", |cx| {
        let a = cx.float("alpha", 1.0);
        map(
            move |x| x * sigmoid(a * x),
            move |x| x / (1.0 + (-f64::from(a) * x).exp()),
            None,
        )
    }),
    ("", "Floor", |_| map(f32::floor, f64::floor, None)),
    ("", "Ceil", |_| map(f32::ceil, f64::ceil, None)),
    ("", "Round", |_| {
        map(f32::round_ties_even, f64::round_ties_even, None)
    }),
    ("", "Gelu", gelu),
    ("", "Clip", clip),
    ("", "Not", |_| Ok(Box::new(Not))),
    ("", "IsNaN", |_| Ok(Box::new(Test(f64::is_nan)))),
    ("", "IsInf", |cx| {
        let (neg, pos) = (
            cx.int("detect_negative", 1) != 0,
            cx.int("detect_positive", 1) != 0,
        );
        Ok(Box::new(Test(match (neg, pos) {
            (true, true) => f64::is_infinite,
            (true, false) => |x| x == f64::NEG_INFINITY,
            (false, true) => |x| x == f64::INFINITY,
            (false, false) => |_| false,
        })))
    }),
    ("", "BitwiseNot", |_| map(|x| x, |x| x, Some(|x| !x))),
    ("", "Acos", |_| map(f32::acos, f64::acos, None)),
    ("", "Asin", |_| map(f32::asin, f64::asin, None)),
    ("", "Sinh", |_| map(f32::sinh, f64::sinh, None)),
    ("", "Cosh", |_| map(f32::cosh, f64::cosh, None)),
    ("", "Asinh", |_| map(f32::asinh, f64::asinh, None)),
    ("", "Acosh", |_| map(f32::acosh, f64::acosh, None)),
    ("", "Atanh", |_| map(f32::atanh, f64::atanh, None)),
    ("", "Selu", |cx| {
        let (a, g) = (cx.float("alpha", 1.673_263_2), cx.float("gamma", 1.050_701));
        let (b, h) = (f64::from(a), f64::from(g));
        map(
            move |x| g * if x > 0.0 { x } else { a * x.exp_m1() },
            move |x| h * if x > 0.0 { x } else { b * x.exp_m1() },
            None,
        )
    }),
    ("", "Celu", |cx| {
        let a = cx.float("alpha", 1.0);
        let b = f64::from(a);
        // NaN stays NaN.
        map(
            move |x| if x > 0.0 { x } else { a * (x / a).exp_m1() },
            move |x| if x > 0.0 { x } else { b * (x / b).exp_m1() },
            None,
        )
    }),
    ("", "ThresholdedRelu", |cx| {
        let a = cx.float("alpha", 1.0);
        map(
            move |x| if x > a || x.is_nan() { x } else { 0.0 },
            move |x| {
                if x > f64::from(a) || x.is_nan() {
                    x
                } else {
                    0.0
                }
            },
            None,
        )
    }),
    (MS, "Gelu", |_| activate(Activation::Gelu, gelu_erf)),
    (MS, "BiasGelu", |_| Ok(Box::new(BiasGelu(Activation::Gelu)))),
    (MS, "FastGelu", |_| {
        Ok(Box::new(BiasGelu(Activation::GeluTanh)))
    }),
    (MS, "QuickGelu", quick_gelu),
];
