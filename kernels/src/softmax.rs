//! Softmax of a row, and the sums of exponentials that it and the losses are made of.
#![expect(
    unsafe_code,
    reason = "calls loops compiled for the instruction set that was probed"
)]
#![expect(
    clippy::inline_always,
    reason = "loop bodies must be compiled with the features of their caller"
)]

use crate::isa::Isa;
use crate::simd::{LANES, exp, fold, fold2, largest, madd, sum_lanes};

/// Replaces a row by its softmax and returns its log-sum-exp; a row of negative infinities becomes zeros.
pub fn softmax_row(row: &mut [f32]) -> f32 {
    softmax_row_on(Isa::detect(), row)
}

/// Replaces a row by the logarithm of its softmax.
pub fn log_softmax_row(row: &mut [f32]) {
    log_softmax_row_on(Isa::detect(), row);
}

multiversion! {
    /// `sum(a * b)`.
    pub(crate) fn dot_row(a: &[f32], b: &[f32]) -> f32 = dot_row_body
}
multiversion! {
    /// [`softmax_row`] with the given instructions.
    pub(crate) fn softmax_row_on(row: &mut [f32]) -> f32 = softmax_row_body
}
multiversion! { fn log_softmax_row_on(row: &mut [f32]) = log_softmax_row_body }
multiversion! {
    /// Replaces a row by `exp(row - shift)`; zeros if the shift is negative infinity (the log-sum-exp of a row of zeros).
    pub(crate) fn exp_row(row: &mut [f32], shift: f32) = exp_row_body
}
multiversion! {
    /// Replaces a row by `exp(row - max)` and returns the maximum and the sum.
    pub(crate) fn exponentials_row(row: &mut [f32]) -> (f32, f32) = exponentials
}
multiversion! {
    /// The maximum of a row, and the sum of `exp(row - max)`.
    pub(crate) fn sum_of_exponentials(row: &[f32]) -> (f32, f32) = sum_of_exponentials_body
}
multiversion! {
    /// `row *= factor`.
    pub(crate) fn scale_row(row: &mut [f32], factor: f32) = scale_row_body
}

#[inline(always)]
fn dot_row_body<const FMA: bool>(a: &[f32], b: &[f32]) -> f32 {
    fold2(a, b, |acc, a, b| madd::<FMA>(a, b, acc))
}

#[inline(always)]
fn softmax_row_body<const FMA: bool>(row: &mut [f32]) -> f32 {
    let (max, sum) = exponentials::<FMA>(row);
    if sum == 0.0 {
        return f32::NEG_INFINITY;
    }
    scale_row_body::<FMA>(row, 1.0 / sum);
    max + sum.ln()
}

#[inline(always)]
fn log_softmax_row_body<const FMA: bool>(row: &mut [f32]) {
    let (max, sum) = sum_of_exponentials_body::<FMA>(row);
    // Two subtractions: the sum of the two would lose the logarithm beside a large maximum.
    let log = sum.ln();
    for value in row {
        *value = (*value - max) - log;
    }
}

#[inline(always)]
fn exp_row_body<const FMA: bool>(row: &mut [f32], shift: f32) {
    if shift == f32::NEG_INFINITY {
        row.fill(0.0);
        return;
    }
    for value in row {
        *value = exp::<FMA>(*value - shift);
    }
}

#[inline(always)]
fn sum_of_exponentials_body<const FMA: bool>(row: &[f32]) -> (f32, f32) {
    let max = largest(row);
    (max, fold(row, |acc, value| acc + exp::<FMA>(value - max)))
}

#[inline(always)]
fn scale_row_body<const FMA: bool>(row: &mut [f32], factor: f32) {
    for value in row {
        *value *= factor;
    }
}

/// Replaces a row by `exp(row - max)` and returns the maximum and the sum; a row of negative infinities becomes zeros.
#[inline(always)]
fn exponentials<const FMA: bool>(row: &mut [f32]) -> (f32, f32) {
    let max = largest(row);
    if max == f32::NEG_INFINITY && row.iter().all(|v| *v == f32::NEG_INFINITY) {
        row.fill(0.0);
        return (max, 0.0);
    }
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut lanes = [0.0; LANES];
    for chunk in chunks {
        for (lane, value) in lanes.iter_mut().zip(chunk) {
            *value = exp::<FMA>(*value - max);
            *lane += *value;
        }
    }
    for (lane, value) in lanes.iter_mut().zip(rest) {
        *value = exp::<FMA>(*value - max);
        *lane += *value;
    }
    (max, sum_lanes(lanes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, values};

    #[test]
    fn values_match_the_definition() {
        for (isa, cols) in Isa::all().into_iter().flat_map(|i| [(i, 45), (i, 300)]) {
            let x: Vec<f32> = values(cols, 1).iter().map(|v| v * 6.0).collect();
            let sum: f64 = x.iter().map(|&x| f64::from(x).exp()).sum();
            let logs: Vec<f64> = x.iter().map(|&x| f64::from(x) - sum.ln()).collect();
            let probs: Vec<f64> = logs.iter().map(|x| x.exp()).collect();
            let mut y = x.clone();
            let lse = softmax_row_on(isa, &mut y);
            // Two roundings each in the exponential and the quotient.
            close(&y, &probs, 1e-6);
            close(&[lse], &[sum.ln()], 1e-6);
            let mut y = x.clone();
            log_softmax_row_on(isa, &mut y);
            close(&y, &logs, 1e-6);
        }
    }

    #[test]
    fn masked_rows_are_zero_and_nan_is_kept() {
        let inf = f32::INFINITY;
        for isa in Isa::all() {
            let mut rows = [[-inf, -inf, -inf], [-inf, 1.0, -inf], [1.0, f32::NAN, -inf]];
            let [a, b, c] = &mut rows;
            assert_eq!(softmax_row_on(isa, a).to_bits(), (-inf).to_bits());
            assert!((softmax_row_on(isa, b) - 1.0).abs() < 1e-6);
            assert!(softmax_row_on(isa, c).is_nan());
            assert_eq!([*a, *b], [[0.0; 3], [0.0, 1.0, 0.0]]);
            assert!(c.iter().all(|v| v.is_nan()), "{c:?}");
            let mut masked = [-inf; 3];
            log_softmax_row_on(isa, &mut masked);
            assert!(masked.iter().all(|v| v.is_nan()));
        }
    }
}
