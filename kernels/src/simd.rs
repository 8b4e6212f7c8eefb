//! Pieces of vectorised loops: fused sums, folds over lanes, the exponential.
//!
//! All of them are inlined into loops that [`multiversion!`](crate::isa) compiles for an instruction set.
#![expect(
    clippy::inline_always,
    reason = "must be compiled with the features of the caller"
)]

/// `a * b + c`, fused if the code around it is compiled with FMA.
#[inline(always)]
pub(crate) fn madd<const FMA: bool>(a: f32, b: f32, c: f32) -> f32 {
    if FMA { a.mul_add(b, c) } else { a * b + c }
}

/// Lanes of the accumulators that replace a running sum.
pub(crate) const LANES: usize = 32;

/// Sums accumulator lanes pairwise, in a fixed order.
#[inline(always)]
pub(crate) fn sum_lanes(lanes: [f32; LANES]) -> f32 {
    let mut lanes = lanes;
    let mut half = LANES / 2;
    while half > 0 {
        for i in 0..half {
            lanes[i] += lanes[i + half];
        }
        half /= 2;
    }
    lanes[0]
}

/// Folds a row with `f(accumulator, value)` in lanes that are summed at the end; the tail goes to the first lanes.
#[inline(always)]
pub(crate) fn fold(a: &[f32], f: impl Fn(f32, f32) -> f32) -> f32 {
    let (chunks, rest) = a.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for a in chunks {
        for (lane, &a) in lanes.iter_mut().zip(a) {
            *lane = f(*lane, a);
        }
    }
    for (lane, &a) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, a);
    }
    sum_lanes(lanes)
}

/// [`fold`] in double precision, without the widened row.
#[inline(always)]
pub(crate) fn fold_wide(a: &[f32], f: impl Fn(f64, f64) -> f64) -> f64 {
    const WIDE: usize = LANES / 2;
    let (chunks, rest) = a.as_chunks::<WIDE>();
    let mut lanes = [0.0; WIDE];
    for a in chunks {
        for (lane, &a) in lanes.iter_mut().zip(a) {
            *lane = f(*lane, f64::from(a));
        }
    }
    for (lane, &a) in lanes.iter_mut().zip(rest) {
        *lane = f(*lane, f64::from(a));
    }
    lanes.iter().sum()
}

/// [`fold`] over two rows.
#[inline(always)]
pub(crate) fn fold2(a: &[f32], b: &[f32], f: impl Fn(f32, f32, f32) -> f32) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut lanes = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        for ((lane, &a), &b) in lanes.iter_mut().zip(a).zip(b) {
            *lane = f(*lane, a, b);
        }
    }
    for ((lane, &a), &b) in lanes.iter_mut().zip(a_rest).zip(b_rest) {
        *lane = f(*lane, a, b);
    }
    sum_lanes(lanes)
}

/// [`fold`] over three rows.
#[inline(always)]
pub(crate) fn fold3(a: &[f32], b: &[f32], c: &[f32], f: impl Fn(f32, f32, f32, f32) -> f32) -> f32 {
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    let (c, c_rest) = c.as_chunks::<LANES>();
    let mut lanes = [0.0; LANES];
    for ((a, b), c) in a.iter().zip(b).zip(c) {
        for (((lane, &a), &b), &c) in lanes.iter_mut().zip(a).zip(b).zip(c) {
            *lane = f(*lane, a, b, c);
        }
    }
    for (((lane, &a), &b), &c) in lanes.iter_mut().zip(a_rest).zip(b_rest).zip(c_rest) {
        *lane = f(*lane, a, b, c);
    }
    sum_lanes(lanes)
}

/// `e^x` within 2 units in the last place; results below 2^-125 are zero, above the largest `f32` infinite, NaN stays NaN.
///
/// Cody and Waite's reduction to `|r| <= ln 2 / 2`, then a polynomial.
#[inline(always)]
pub(crate) fn exp<const FMA: bool>(x: f32) -> f32 {
    /// Adding it rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_359_4;
    const LN2_LOW: f32 = -2.121_944_4e-4;
    const SMALLEST: f32 = -86.9;
    // A comparison with NaN fails, so NaN passes through both bounds.
    let bounded = if x > 89.0 { 89.0 } else { x };
    let bounded = if bounded < -87.0 { -87.0 } else { bounded };
    let shifted = madd::<FMA>(bounded, std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = madd::<FMA>(n, -LN2_LOW, madd::<FMA>(n, -LN2_HIGH, bounded));
    let mut p = 1.987_569_1e-4;
    for c in [
        1.398_199_9e-3,
        8.333_452e-3,
        4.166_579_6e-2,
        1.666_666_6e-1,
        5.0e-1,
    ] {
        p = madd::<FMA>(p, r, c);
    }
    let p = madd::<FMA>(p, r * r, r) + 1.0;
    // 2^(n - 1): n reaches 128, whose power is no longer finite.
    let scale = f32::from_bits(
        shifted
            .to_bits()
            .wrapping_sub(ROUND.to_bits())
            .wrapping_add(126)
            << 23,
    );
    let value = p * scale * 2.0;
    if x < SMALLEST { 0.0 } else { value }
}

/// The larger of both; the second if the first is NaN. Compiles to one instruction.
#[inline(always)]
pub(crate) fn larger(a: f32, b: f32) -> f32 {
    if a > b { a } else { b }
}

/// The largest value of a row, negative infinity if there is none.
#[inline(always)]
pub(crate) fn largest(row: &[f32]) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut lanes = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (lane, &value) in lanes.iter_mut().zip(chunk) {
            *lane = larger(value, *lane);
        }
    }
    let lanes = lanes
        .into_iter()
        .fold(f32::NEG_INFINITY, |a, b| larger(b, a));
    rest.iter().fold(lanes, |a, &b| larger(b, a))
}

#[cfg(test)]
mod tests {
    #![expect(
        unsafe_code,
        reason = "calls the version compiled for the instruction set"
    )]

    use super::*;
    use crate::isa::Isa;

    multiversion! { fn exps(x: &[f32], y: &mut [f32]) = exps_body }

    #[inline(always)]
    fn exps_body<const FMA: bool>(x: &[f32], y: &mut [f32]) {
        for (y, &x) in y.iter_mut().zip(x) {
            *y = exp::<FMA>(x);
        }
    }

    #[test]
    fn exp_is_within_two_units() {
        let x: Vec<f32> = (0..20_000).map(|i| i as f32 * 0.008_77 - 86.7).collect();
        for isa in Isa::all() {
            let mut y = vec![0.0; x.len()];
            exps(isa, &x, &mut y);
            for (&x, &y) in x.iter().zip(&y) {
                let exact = f64::from(x).exp();
                if exact > f64::from(f32::MAX) {
                    assert!(y.is_infinite(), "{x} {y}");
                    continue;
                }
                let unit = f64::from(f32::EPSILON) * 2f64.powi(exact.log2().floor() as i32);
                assert!(
                    (f64::from(y) - exact).abs() <= 2.0 * unit,
                    "exp({x}) = {y}, not {exact}"
                );
            }
        }
    }

    #[test]
    fn exp_at_the_ends() {
        let x = [
            f32::NEG_INFINITY,
            -1e30,
            -200.0,
            f32::INFINITY,
            f32::NAN,
            0.0,
            -0.0,
        ];
        for isa in Isa::all() {
            let mut y = [7.0; 7];
            exps(isa, &x, &mut y);
            assert_eq!(y[..4], [0.0, 0.0, 0.0, f32::INFINITY]);
            assert!(y[4].is_nan());
            assert_eq!(y[5..], [1.0, 1.0]);
        }
    }
}
