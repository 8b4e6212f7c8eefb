//! Softmax over the last axis, forward and backward.
#![expect(
    unsafe_code,
    reason = "calls loops compiled for the instruction set that was probed"
)]
#![expect(
    clippy::inline_always,
    reason = "loop bodies must be compiled with the features of their caller"
)]

use super::simd::{LANES, exp, fold, fold2, largest, madd, sum_lanes};
use super::{Result, check_len, is_large, rows_of, rows_per_task};
use rayon::prelude::*;

/// `y = softmax(x)` for each row of `cols`. A row of negative infinities gives zeros.
pub fn softmax(x: &[f32], cols: usize, y: &mut [f32]) -> Result<()> {
    rows_of("input", x.len(), cols)?;
    check_len("result", y.len(), x.len())?;
    if !is_large(x.len()) {
        rows(x, cols, y);
        return Ok(());
    }
    let block = rows_per_task(cols) * cols;
    y.par_chunks_mut(block)
        .zip(x.par_chunks(block))
        .for_each(|(y, x)| rows(x, cols, y));
    Ok(())
}

/// Gradient of [`softmax`] from its result: `dx = y * (dy - sum(dy * y))`.
pub fn softmax_backward(y: &[f32], cols: usize, dy: &[f32], dx: &mut [f32]) -> Result<()> {
    rows_of("result", y.len(), cols)?;
    check_len("gradient of the result", dy.len(), y.len())?;
    check_len("gradient of the input", dx.len(), y.len())?;
    if !is_large(y.len()) {
        back_rows(y, cols, dy, dx);
        return Ok(());
    }
    let block = rows_per_task(cols) * cols;
    dx.par_chunks_mut(block)
        .zip(y.par_chunks(block).zip(dy.par_chunks(block)))
        .for_each(|(dx, (y, dy))| back_rows(y, cols, dy, dx));
    Ok(())
}

multiversion! { fn rows(x: &[f32], cols: usize, y: &mut [f32]) = rows_body }
multiversion! { fn back_rows(y: &[f32], cols: usize, dy: &[f32], dx: &mut [f32]) = back_rows_body }

#[inline(always)]
fn rows_body<const FMA: bool>(x: &[f32], cols: usize, y: &mut [f32]) {
    for (x, y) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)) {
        y.copy_from_slice(x);
        let (_, sum) = exponentials::<FMA>(y);
        let scale = if sum == 0.0 { 0.0 } else { 1.0 / sum };
        for y in y {
            *y *= scale;
        }
    }
}

#[inline(always)]
fn back_rows_body<const FMA: bool>(y: &[f32], cols: usize, dy: &[f32], dx: &mut [f32]) {
    let rows = y.chunks_exact(cols).zip(dy.chunks_exact(cols));
    for ((y, dy), dx) in rows.zip(dx.chunks_exact_mut(cols)) {
        let along = fold2(y, dy, |acc, y, dy| madd::<FMA>(y, dy, acc));
        for ((dx, &y), &dy) in dx.iter_mut().zip(y).zip(dy) {
            *dx = y * (dy - along);
        }
    }
}

multiversion! {
    /// `sum(a * b)`.
    pub(super) fn dot_row(a: &[f32], b: &[f32]) -> f32 = dot_row_body
}
multiversion! {
    /// Replaces a row by its softmax and returns its log-sum-exp; a row of negative infinities becomes zeros.
    pub(super) fn softmax_row(row: &mut [f32]) -> f32 = softmax_row_body
}
multiversion! {
    /// Replaces a row by `exp(row - shift)`; zeros if the shift is negative infinity (the log-sum-exp of a row of zeros).
    pub(super) fn exp_row(row: &mut [f32], shift: f32) = exp_row_body
}
multiversion! {
    /// Replaces a row by `exp(row - max)` and returns the maximum and the sum.
    pub(super) fn exponentials_row(row: &mut [f32]) -> (f32, f32) = exponentials
}
multiversion! {
    /// The maximum of a row, and the sum of `exp(row - max)`.
    pub(super) fn sum_of_exponentials(row: &[f32]) -> (f32, f32) = sum_of_exponentials_body
}
multiversion! {
    /// `row *= factor`.
    pub(super) fn scale_row(row: &mut [f32], factor: f32) = scale_row_body
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
    use crate::runtime::cpu::testing::{close, dot, gradient, values, wide};

    fn naive(x: &[f64], cols: usize) -> Vec<f64> {
        x.chunks(cols)
            .flat_map(|x| {
                let sum: f64 = x.iter().map(|x| x.exp()).sum();
                x.iter().map(move |x| x.exp() / sum)
            })
            .collect()
    }

    #[test]
    fn values_and_gradient() {
        let cols = 45;
        let x: Vec<f32> = values(3 * cols, 1).iter().map(|v| v * 6.0).collect();
        let dy = values(x.len(), 2);
        let (mut y, mut dx) = (vec![0.0; x.len()], vec![0.0; x.len()]);
        softmax(&x, cols, &mut y).unwrap();
        // Two roundings each in the exponential and the quotient.
        close(&y, &naive(&wide(&x), cols), 1e-6);
        softmax_backward(&y, cols, &dy, &mut dx).unwrap();
        close(
            &dx,
            &gradient(&wide(&x), |x| dot(&naive(x, cols), &wide(&dy))),
            1e-6,
        );
    }

    #[test]
    fn masked_rows_are_zero_and_nan_is_kept() {
        let inf = f32::INFINITY;
        let x = [-inf, -inf, -inf, -inf, 1.0, -inf, 1.0, f32::NAN, -inf];
        let mut y = [9.0; 9];
        softmax(&x, 3, &mut y).unwrap();
        assert_eq!(y[..6], [0.0, 0.0, 0.0, 0.0, 1.0, 0.0]);
        assert!(y[6..].iter().all(|v| v.is_nan()));
        assert!(softmax(&x, 2, &mut y).is_err());
    }
}
