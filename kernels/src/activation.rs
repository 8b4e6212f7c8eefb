//! Activation functions, forward and backward, and their product with a gate, in one pass each.
//!
//! Relative accuracy against the exact function: a few units in the last place for sigmoid, `SiLU` and tanh, `4e-6` for both GELUs
//! wherever the result is above 1e-30, limited by the rounded argument of the exponential. NaN stays NaN.
#![expect(
    unsafe_code,
    reason = "calls loops compiled for the instruction set that was probed"
)]
#![expect(
    clippy::inline_always,
    reason = "loop bodies must be compiled with the features of their caller"
)]

use crate::isa::Isa;
use crate::simd::{exp, madd};
use crate::team;
use crate::{CHUNK, Result, check_len, is_large};

/// An element-wise function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x * sigmoid(x)`, also called Swish.
    Silu,
    /// `x * Phi(x)` with the normal distribution function.
    Gelu,
    /// GELU with its tanh approximation.
    GeluTanh,
    /// `1 / (1 + e^-x)`.
    Sigmoid,
    /// The hyperbolic tangent.
    Tanh,
}

/// `x = f(x)`.
pub fn forward(f: Activation, x: &mut [f32]) {
    forward_on(Isa::detect(), f, x);
}

fn forward_on(isa: Isa, f: Activation, x: &mut [f32]) {
    if is_large(x.len()) {
        team::each(x.chunks_mut(CHUNK), |x| apply(isa, f, x));
    } else {
        apply(isa, f, x);
    }
}

/// `dx = dy * f'(x)`.
pub fn backward(f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) -> Result<()> {
    backward_on(Isa::detect(), f, x, dy, dx)
}

fn backward_on(isa: Isa, f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) -> Result<()> {
    check_len("gradient of the result", dy.len(), x.len())?;
    check_len("gradient of the input", dx.len(), x.len())?;
    if !is_large(x.len()) {
        derive(isa, f, x, dy, dx);
        return Ok(());
    }
    let parts = x.chunks(CHUNK).zip(dy.chunks(CHUNK));
    let parts = dx.chunks_mut(CHUNK).zip(parts);
    team::each(parts, |(dx, (x, dy))| derive(isa, f, x, dy, dx));
    Ok(())
}

/// `y = f(a) * b`: the gated unit of Shazeer, "GLU Variants Improve Transformer" (2020).
pub fn gated(f: Activation, a: &[f32], b: &[f32], y: &mut [f32]) -> Result<()> {
    gated_on(Isa::detect(), f, a, b, y)
}

fn gated_on(isa: Isa, f: Activation, a: &[f32], b: &[f32], y: &mut [f32]) -> Result<()> {
    check_len("second operand", b.len(), a.len())?;
    check_len("result", y.len(), a.len())?;
    if !is_large(a.len()) {
        gate(isa, f, a, b, y);
        return Ok(());
    }
    let parts = a.chunks(CHUNK).zip(b.chunks(CHUNK));
    let parts = y.chunks_mut(CHUNK).zip(parts);
    team::each(parts, |(y, (a, b))| gate(isa, f, a, b, y));
    Ok(())
}

/// Gradients of [`gated`] in the buffers of its operands: `a` becomes `dy * b * f'(a)`, `b` becomes `dy * f(a)`, and `dy` becomes the
/// recomputed result `f(a) * b`, which the gradient of a following projection needs.
pub fn gated_backward_in_place(
    f: Activation,
    a: &mut [f32],
    b: &mut [f32],
    dy: &mut [f32],
) -> Result<()> {
    gated_backward_on(Isa::detect(), f, a, b, dy)
}

fn gated_backward_on(
    isa: Isa,
    f: Activation,
    a: &mut [f32],
    b: &mut [f32],
    dy: &mut [f32],
) -> Result<()> {
    check_len("second operand", b.len(), a.len())?;
    check_len("gradient of the result", dy.len(), a.len())?;
    if !is_large(a.len()) {
        replace_gate(isa, f, a, b, dy);
        return Ok(());
    }
    let parts = a.chunks_mut(CHUNK).zip(b.chunks_mut(CHUNK));
    let parts = parts.zip(dy.chunks_mut(CHUNK));
    team::each(parts, |((a, b), dy)| replace_gate(isa, f, a, b, dy));
    Ok(())
}

multiversion! { fn apply(f: Activation, x: &mut [f32]) = apply_body }
multiversion! { fn derive(f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) = derive_body }
multiversion! { fn gate(f: Activation, a: &[f32], b: &[f32], y: &mut [f32]) = gate_body }
multiversion! { fn replace_gate(f: Activation, a: &mut [f32], b: &mut [f32], dy: &mut [f32]) = replace_gate_body }

/// Runs `$body` with `$d` naming the value-and-derivative function of `$f`.
macro_rules! for_each_function {
    ($f:expr, $fma:ident, |$d:ident| $body:expr) => {
        match $f {
            Activation::Silu => {
                let $d = silu::<$fma>;
                $body
            }
            Activation::Gelu => {
                let $d = gelu::<$fma>;
                $body
            }
            Activation::GeluTanh => {
                let $d = gelu_tanh::<$fma>;
                $body
            }
            Activation::Sigmoid => {
                let $d = logistic::<$fma>;
                $body
            }
            Activation::Tanh => {
                let $d = tanh::<$fma>;
                $body
            }
        }
    };
}

#[inline(always)]
fn apply_body<const FMA: bool>(f: Activation, x: &mut [f32]) {
    for_each_function!(f, FMA, |d| {
        for x in x {
            *x = d(*x).0;
        }
    });
}

#[inline(always)]
fn derive_body<const FMA: bool>(f: Activation, x: &[f32], dy: &[f32], dx: &mut [f32]) {
    for_each_function!(f, FMA, |d| {
        for ((dx, &dy), &x) in dx.iter_mut().zip(dy).zip(x) {
            *dx = dy * d(x).1;
        }
    });
}

#[inline(always)]
fn gate_body<const FMA: bool>(f: Activation, a: &[f32], b: &[f32], y: &mut [f32]) {
    for_each_function!(f, FMA, |d| {
        for ((y, &a), &b) in y.iter_mut().zip(a).zip(b) {
            *y = d(a).0 * b;
        }
    });
}

#[inline(always)]
fn replace_gate_body<const FMA: bool>(f: Activation, a: &mut [f32], b: &mut [f32], dy: &mut [f32]) {
    for_each_function!(f, FMA, |d| {
        for ((a, b), dy) in a.iter_mut().zip(b).zip(dy) {
            let (value, slope) = d(*a);
            let (gate, grad) = (*b, *dy);
            *a = grad * gate * slope;
            *b = grad * value;
            *dy = value * gate;
        }
    });
}

#[inline(always)]
fn sigmoid<const FMA: bool>(x: f32) -> f32 {
    1.0 / (1.0 + exp::<FMA>(-x))
}

#[inline(always)]
fn logistic<const FMA: bool>(x: f32) -> (f32, f32) {
    let s = sigmoid::<FMA>(x);
    (s, s * (1.0 - s))
}

#[inline(always)]
fn silu<const FMA: bool>(x: f32) -> (f32, f32) {
    let s = sigmoid::<FMA>(x);
    (x * s, s * madd::<FMA>(x, 1.0 - s, 1.0))
}

#[inline(always)]
fn tanh<const FMA: bool>(x: f32) -> (f32, f32) {
    let a = x.abs();
    let far = 1.0 - 2.0 / (exp::<FMA>(2.0 * a) + 1.0);
    // An odd polynomial where the other form cancels.
    let z = x * x;
    let mut p = -5.704_988_7e-3;
    for c in [
        2.063_908_8e-2,
        -5.373_971_5e-2,
        1.333_144_2e-1,
        -3.333_328e-1,
    ] {
        p = madd::<FMA>(p, z, c);
    }
    let near = madd::<FMA>(p * z, a, a);
    let t = if a < 0.625 { near } else { far }.copysign(x);
    (t, 1.0 - t * t)
}

/// `sqrt(2 / pi)`.
const TANH_SCALE: f32 = 0.797_884_6;
/// Coefficient of the cube in the tanh approximation (Hendrycks and Gimpel, 2016).
const CUBE: f32 = 0.044_715;

#[inline(always)]
fn gelu_tanh<const FMA: bool>(x: f32) -> (f32, f32) {
    // (1 + tanh z) / 2 = sigmoid(2 z), which does not cancel for negative z.
    let square = x * x;
    let s = sigmoid::<FMA>(2.0 * TANH_SCALE * x * madd::<FMA>(CUBE, square, 1.0));
    let inner = 2.0 * TANH_SCALE * madd::<FMA>(3.0 * CUBE, square, 1.0);
    // Zero times a cube that has overflowed is zero here.
    let tail = s * (1.0 - s);
    let bend = if tail == 0.0 { 0.0 } else { x * tail * inner };
    (x * s, s + bend)
}

/// `erfcx(a) * (a + SHIFT)` as a polynomial in `(a - SHIFT) / (a + SHIFT)`, least relative error `2e-9` on 0..10; highest power first.
const TAIL: [f32; 11] = [
    -4.487_089_6e-5,
    7.045_331e-5,
    6.492_086e-4,
    -4.581_668e-4,
    -4.801_570_4e-3,
    8.399_264e-3,
    2.835_903_3e-2,
    -1.712_518_3e-1,
    4.539_142_5e-1,
    -8.046_518_6e-1,
    1.054_031_8,
];
const SHIFT: f32 = 2.5;

#[inline(always)]
fn gelu<const FMA: bool>(x: f32) -> (f32, f32) {
    const INV_SQRT_2PI: f32 = 0.398_942_3;
    let a = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    // Beyond, the exponential is zero; the bound keeps the quotient finite.
    let a = if a > 20.0 { 20.0 } else { a };
    let density = exp::<FMA>(-0.5 * x * x);
    let inv = 1.0 / (a + SHIFT);
    let u = (a - SHIFT) * inv;
    let mut p = TAIL[0];
    for &c in &TAIL[1..] {
        p = madd::<FMA>(p, u, c);
    }
    let tail = 0.5 * density * p * inv;
    let phi = if x < 0.0 { tail } else { 1.0 - tail };
    let bend = if density == 0.0 {
        0.0
    } else {
        x * INV_SQRT_2PI * density
    };
    (x * phi, phi + bend)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, dot, gradient, values, wide};

    const ALL: [Activation; 5] = [
        Activation::Silu,
        Activation::Gelu,
        Activation::GeluTanh,
        Activation::Sigmoid,
        Activation::Tanh,
    ];

    /// `erf` by its series, enough terms for |x| < 4.
    fn erf(x: f64) -> f64 {
        let (mut term, mut sum) = (x, x);
        for n in 1..120 {
            term *= -x * x / f64::from(n);
            sum += term / f64::from(2 * n + 1);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    }

    fn exact(f: Activation, x: f64) -> f64 {
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        match f {
            Activation::Silu => x * sigmoid(x),
            Activation::Gelu => 0.5 * x * (1.0 + erf(x * std::f64::consts::FRAC_1_SQRT_2)),
            Activation::GeluTanh => {
                0.5 * x
                    * (1.0
                        + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x.powi(3)))
                            .tanh())
            }
            Activation::Sigmoid => sigmoid(x),
            Activation::Tanh => x.tanh(),
        }
    }

    /// Every function with every instruction set.
    fn cases() -> impl Iterator<Item = (Isa, Activation)> {
        Isa::all()
            .into_iter()
            .flat_map(|isa| ALL.into_iter().map(move |f| (isa, f)))
    }

    fn inputs(len: usize) -> Vec<f32> {
        values(len, 3).iter().map(|v| v * 5.0).collect()
    }

    #[test]
    fn values_match_the_definition() {
        let x = inputs(203);
        for (isa, f) in cases() {
            let mut y = x.clone();
            forward_on(isa, f, &mut y);
            let wanted: Vec<f64> = x.iter().map(|&x| exact(f, f64::from(x))).collect();
            // A few roundings of values up to 5.
            close(&y, &wanted, 1e-6);
        }
    }

    #[test]
    fn slopes_match_finite_differences() {
        let (x, dy) = (inputs(67), values(67, 4));
        for (isa, f) in cases() {
            let mut dx = vec![0.0; x.len()];
            backward_on(isa, f, &x, &dy, &mut dx).unwrap();
            let wanted = gradient(&wide(&x), |x| {
                let y: Vec<f64> = x.iter().map(|&x| exact(f, x)).collect();
                dot(&y, &wide(&dy))
            });
            close(&dx, &wanted, 2e-6);
        }
    }

    #[test]
    fn gates_match_finite_differences_on_every_path() {
        for (isa, f) in cases() {
            let len = if f == Activation::Silu {
                2 * CHUNK + 77
            } else {
                19
            };
            let (a, b, dy) = (inputs(len), values(len, 5), values(len, 6));
            let mut y = vec![0.0; len];
            gated_on(isa, f, &a, &b, &mut y).unwrap();
            let (mut da, mut db, mut again) = (a.clone(), b.clone(), dy.clone());
            gated_backward_on(isa, f, &mut da, &mut db, &mut again).unwrap();
            assert_eq!(again, y);
            let step = 1e-5;
            for i in (0..len).step_by(if len > 100 { 97 } else { 1 }) {
                let (a, b, dy) = (f64::from(a[i]), f64::from(b[i]), f64::from(dy[i]));
                let slope = (exact(f, a + step) - exact(f, a - step)) / (2.0 * step);
                let wanted = [exact(f, a) * b, dy * b * slope, dy * exact(f, a)];
                close(&[y[i], da[i], db[i]], &wanted, 2e-6);
            }
        }
    }

    #[test]
    fn ends_are_finite_or_nan() {
        let x = [-1e30, -1e4, -30.0, 30.0, 1e4, f32::NAN];
        for (isa, f) in cases() {
            let (mut y, mut dx) = (x, [0.0; 6]);
            forward_on(isa, f, &mut y);
            backward_on(isa, f, &x, &[1.0; 6], &mut dx).unwrap();
            for i in 0..5 {
                let wanted = match f {
                    Activation::Sigmoid => [0.0, 1.0],
                    Activation::Tanh => [-1.0, 1.0],
                    _ => [0.0, x[i]],
                }[usize::from(x[i] > 0.0)];
                assert!((y[i] - wanted).abs() <= 1e-10, "{f:?}({}) = {}", x[i], y[i]);
                assert!(dx[i].is_finite());
            }
            assert!(y[5].is_nan() && dx[5].is_nan());
        }
    }

    #[test]
    fn sizes_are_checked() {
        assert!(backward(Activation::Silu, &[0.0; 3], &[0.0; 2], &mut [0.0; 3]).is_err());
        assert!(gated(Activation::Silu, &[0.0; 3], &[0.0; 2], &mut [0.0; 3]).is_err());
    }
}
