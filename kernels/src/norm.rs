//! Normalisation over the last axis.
//!
//! `RMSNorm`: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019). `LayerNorm`: Ba, Kiros and Hinton (2016). The forward
//! functions give one or two statistics per row, from which gradients are computed: those of `RMSNorm` here.
#![expect(
    unsafe_code,
    reason = "calls loops compiled for the instruction set that was probed"
)]
#![expect(
    clippy::too_many_arguments,
    reason = "the loops take the operands of the formulas"
)]
#![expect(
    clippy::inline_always,
    reason = "loop bodies must be compiled with the features of their caller"
)]

use crate::isa::Isa;
use crate::scratch::with_scratch;
use crate::simd::{fold, fold_wide, fold3, madd};
use crate::team;
use crate::{Result, check_dim, check_len, is_large, product, rows_of, rows_per_task};

/// Rows to normalise and what they are multiplied by.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    /// The rows, dense.
    pub x: &'a [f32],
    /// Elements of a row.
    pub cols: usize,
    /// One factor per column; ones if missing.
    pub weight: Option<&'a [f32]>,
}

/// `y = x / sqrt(mean(x^2) + eps) * weight`, row by row; `inv_rms` receives the reciprocal of the root for each row.
pub fn rms_norm(rows: Rows<'_>, eps: f32, y: &mut [f32], inv_rms: &mut [f32]) -> Result<()> {
    rms_norm_on(Isa::detect(), rows, eps, y, inv_rms)
}

fn rms_norm_on(
    isa: Isa,
    rows: Rows<'_>,
    eps: f32,
    y: &mut [f32],
    inv_rms: &mut [f32],
) -> Result<()> {
    let Rows { x, cols, weight } = rows;
    let rows = rows_of("input", x.len(), cols)?;
    check_len("result", y.len(), x.len())?;
    check_len("reciprocal root mean squares", inv_rms.len(), rows)?;
    check_affine("weight", weight, cols)?;
    let block = rows_per_task(cols);
    with_affine(weight, 1.0, cols, |weight| {
        if !is_large(x.len()) {
            rms_rows(isa, x, cols, weight, eps, y, inv_rms);
            return;
        }
        let parts = y.chunks_mut(block * cols).zip(inv_rms.chunks_mut(block));
        let parts = parts.zip(x.chunks(block * cols));
        team::each(parts, |((y, inv), x)| {
            rms_rows(isa, x, cols, weight, eps, y, inv);
        });
    });
    Ok(())
}

/// Gradients of [`rms_norm`]: `dx` (added to its contents if `accumulate`), and `dweight` if asked for.
pub fn rms_norm_backward(
    rows: Rows<'_>,
    inv_rms: &[f32],
    dy: &[f32],
    accumulate: bool,
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
) -> Result<()> {
    let grads = (dx, dweight);
    rms_norm_backward_on(Isa::detect(), rows, inv_rms, dy, accumulate, grads)
}

fn rms_norm_backward_on(
    isa: Isa,
    rows: Rows<'_>,
    inv_rms: &[f32],
    dy: &[f32],
    accumulate: bool,
    (dx, dweight): (&mut [f32], Option<&mut [f32]>),
) -> Result<()> {
    let Rows { x, cols, weight } = rows;
    let rows = rows_of("input", x.len(), cols)?;
    check_len("gradient of the result", dy.len(), x.len())?;
    check_len("gradient of the input", dx.len(), x.len())?;
    check_len("reciprocal root mean squares", inv_rms.len(), rows)?;
    check_affine("weight", weight, cols)?;
    check_affine("gradient of the weight", dweight.as_deref(), cols)?;
    let block = rows_per_task(cols);
    with_affine(weight, 1.0, cols, |weight| {
        let task = |(i, (dx, partial)): (usize, (&mut [f32], &mut [f32]))| {
            let (first, elements) = (i * block, i * block * cols);
            let (x, dy) = (&x[elements..][..dx.len()], &dy[elements..][..dx.len()]);
            let inv = &inv_rms[first..][..dx.len() / cols];
            rms_back_rows(isa, x, cols, weight, inv, dy, accumulate, dx, partial);
        };
        blocks(dx, cols, block, dweight, task)
    })
}

/// What [`layer_norm`] does to each row: `(x - mean) / sqrt(variance + eps) * weight + bias`.
#[derive(Clone, Copy, Debug)]
pub struct LayerNorm<'a> {
    /// Elements of a row.
    pub cols: usize,
    /// One factor per column; ones if missing.
    pub weight: Option<&'a [f32]>,
    /// One summand per column; zeros if missing.
    pub bias: Option<&'a [f32]>,
    /// Added to the variance.
    pub eps: f32,
    /// Whether the mean is subtracted; without it the variance is that about zero.
    pub center: bool,
}

/// Normalises the rows of `x` in place; `stats` receives the mean (0 without centring) and the reciprocal deviation of each row. The
/// statistics are summed in `f64`.
pub fn layer_norm(
    x: &mut [f32],
    norm: &LayerNorm<'_>,
    stats: Option<(&mut [f32], &mut [f32])>,
) -> Result<()> {
    layer_norm_on(Isa::detect(), x, norm, stats)
}

fn layer_norm_on(
    isa: Isa,
    x: &mut [f32],
    norm: &LayerNorm<'_>,
    stats: Option<(&mut [f32], &mut [f32])>,
) -> Result<()> {
    let cols = norm.cols;
    let rows = rows_of("input", x.len(), cols)?;
    check_affine("weight", norm.weight, cols)?;
    check_affine("bias", norm.bias, cols)?;
    if let Some((mean, inv_std)) = &stats {
        check_len("means", mean.len(), rows)?;
        check_len("reciprocal deviations", inv_std.len(), rows)?;
    }
    with_affine(norm.weight, 1.0, cols, |weight| {
        with_affine(norm.bias, 0.0, cols, |bias| {
            let apply = |x: &mut [f32], mean: &mut [f32], inv: &mut [f32]| {
                layer_rows(isa, x, *norm, weight, bias, mean, inv);
            };
            if !is_large(x.len()) {
                let (mean, inv) = stats.unwrap_or_default();
                apply(x, mean, inv);
                return;
            }
            let block = rows_per_task(cols);
            let x = x.chunks_mut(block * cols);
            match stats {
                Some((mean, inv)) => {
                    let stats = mean.chunks_mut(block).zip(inv.chunks_mut(block));
                    team::each(x.zip(stats), |(x, (mean, inv))| apply(x, mean, inv));
                }
                None => team::each(x, |x| apply(x, &mut [], &mut [])),
            }
        });
    });
    Ok(())
}

/// Gradient of [`layer_norm`] by the rows before it, `x`, for a gradient `dy` of the rows behind it. The statistics are computed again.
pub fn layer_norm_backward(
    x: &[f32],
    norm: &LayerNorm<'_>,
    dy: &[f32],
    dx: &mut [f32],
) -> Result<()> {
    layer_norm_backward_on(Isa::detect(), x, norm, dy, dx)
}

fn layer_norm_backward_on(
    isa: Isa,
    x: &[f32],
    norm: &LayerNorm<'_>,
    dy: &[f32],
    dx: &mut [f32],
) -> Result<()> {
    let cols = norm.cols;
    rows_of("input", x.len(), cols)?;
    check_len("gradient of the result", dy.len(), x.len())?;
    check_len("gradient of the input", dx.len(), x.len())?;
    check_affine("weight", norm.weight, cols)?;
    let block = rows_per_task(cols);
    with_affine(norm.weight, 1.0, cols, |weight| {
        let task = |(i, (dx, _)): (usize, (&mut [f32], &mut [f32]))| {
            let from = i * block * cols;
            let (x, dy) = (&x[from..][..dx.len()], &dy[from..][..dx.len()]);
            layer_back_rows(isa, x, *norm, weight, dy, dx);
        };
        blocks(dx, cols, block, None, task)
    })
}

fn check_affine(what: &'static str, values: Option<&[f32]>, cols: usize) -> Result<()> {
    values.map_or(Ok(()), |values| check_dim(what, values.len(), cols))
}

/// Runs `work` with the values, or with `cols` times `default`.
fn with_affine<R>(
    values: Option<&[f32]>,
    default: f32,
    cols: usize,
    work: impl FnOnce(&[f32]) -> R,
) -> R {
    match values {
        Some(values) => work(values),
        None => with_scratch(cols, |values| {
            values.fill(default);
            work(values)
        }),
    }
}

/// Runs `task` on each block of rows of `dx` with the block's own sums (a row of `cols` zeros if there is a `dweight`, else none), then
/// adds the sums of the blocks in their order. Blocks depend on `cols` alone, so threads do not change the sums.
fn blocks(
    dx: &mut [f32],
    cols: usize,
    block: usize,
    dweight: Option<&mut [f32]>,
    task: impl Fn((usize, (&mut [f32], &mut [f32]))) + Sync,
) -> Result<()> {
    let large = is_large(dx.len());
    let count = dx.len().div_ceil(block * cols);
    let Some(dweight) = dweight else {
        let each = |(i, dx): (usize, &mut [f32])| task((i, (dx, &mut [])));
        if large {
            team::each(dx.chunks_mut(block * cols).enumerate(), each);
        } else {
            dx.chunks_mut(block * cols).enumerate().for_each(each);
        }
        return Ok(());
    };
    let len = product("partial sums", &[count, cols])?;
    with_scratch(len, |partials| {
        partials.fill(0.0);
        if large {
            let pairs = dx.chunks_mut(block * cols).zip(partials.chunks_mut(cols));
            team::each(pairs.enumerate(), &task);
        } else {
            dx.chunks_mut(block * cols)
                .zip(partials.chunks_mut(cols))
                .enumerate()
                .for_each(&task);
        }
        dweight.fill(0.0);
        for partial in partials.chunks(cols) {
            for (out, &value) in dweight.iter_mut().zip(partial) {
                *out += value;
            }
        }
    });
    Ok(())
}

multiversion! {
    fn rms_rows(x: &[f32], cols: usize, weight: &[f32], eps: f32, y: &mut [f32], inv: &mut [f32]) = rms_rows_body
}
multiversion! {
    fn rms_back_rows(
        x: &[f32], cols: usize, weight: &[f32], inv: &[f32], dy: &[f32], accumulate: bool, dx: &mut [f32], dw: &mut [f32],
    ) = rms_back_rows_body
}
multiversion! {
    fn layer_rows(x: &mut [f32], norm: LayerNorm<'_>, weight: &[f32], bias: &[f32], mean: &mut [f32], inv: &mut [f32]) = layer_rows_body
}
multiversion! {
    fn layer_back_rows(x: &[f32], norm: LayerNorm<'_>, weight: &[f32], dy: &[f32], dx: &mut [f32]) = layer_back_rows_body
}

#[inline(always)]
fn rms_rows_body<const FMA: bool>(
    x: &[f32],
    cols: usize,
    weight: &[f32],
    eps: f32,
    y: &mut [f32],
    inv: &mut [f32],
) {
    for ((x, y), inv) in x.chunks_exact(cols).zip(y.chunks_exact_mut(cols)).zip(inv) {
        let squares = fold(x, |acc, x| madd::<FMA>(x, x, acc));
        *inv = 1.0 / (squares / cols as f32 + eps).sqrt();
        for ((y, &x), &w) in y.iter_mut().zip(x).zip(weight) {
            *y = x * *inv * w;
        }
    }
}

#[inline(always)]
fn rms_back_rows_body<const FMA: bool>(
    x: &[f32],
    cols: usize,
    weight: &[f32],
    inv: &[f32],
    dy: &[f32],
    accumulate: bool,
    dx: &mut [f32],
    dw: &mut [f32],
) {
    let rows = x
        .chunks_exact(cols)
        .zip(dy.chunks_exact(cols))
        .zip(dx.chunks_exact_mut(cols));
    for (((x, dy), dx), &inv) in rows.zip(inv) {
        let along = fold3(x, dy, weight, |acc, x, dy, w| madd::<FMA>(x * dy, w, acc));
        let pull = along * inv * inv * inv / cols as f32;
        if accumulate {
            for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx += madd::<FMA>(dy * inv, w, -x * pull);
            }
        } else {
            for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx = madd::<FMA>(dy * inv, w, -x * pull);
            }
        }
        for ((dw, &x), &dy) in dw.iter_mut().zip(x).zip(dy) {
            *dw = madd::<FMA>(dy, x * inv, *dw);
        }
    }
}

#[inline(always)]
fn layer_rows_body<const FMA: bool>(
    x: &mut [f32],
    norm: LayerNorm<'_>,
    weight: &[f32],
    bias: &[f32],
    means: &mut [f32],
    invs: &mut [f32],
) {
    for (i, row) in x.chunks_exact_mut(norm.cols).enumerate() {
        let (mean, inv) = statistics(row, &norm);
        for ((x, &w), &b) in row.iter_mut().zip(weight).zip(bias) {
            *x = (*x - mean) * inv * w + b;
        }
        if let (Some(to_mean), Some(to_inv)) = (means.get_mut(i), invs.get_mut(i)) {
            (*to_mean, *to_inv) = (mean, inv);
        }
    }
}

/// Mean and reciprocal deviation of a row.
#[inline(always)]
fn statistics(row: &[f32], norm: &LayerNorm<'_>) -> (f32, f32) {
    let n = norm.cols as f64;
    let mean = if norm.center {
        fold_wide(row, |sum, x| sum + x) / n
    } else {
        0.0
    };
    let squares = fold_wide(row, |sum, x| sum + (x - mean) * (x - mean));
    let inv = (1.0 / (squares / n + f64::from(norm.eps)).sqrt()) as f32;
    (mean as f32, inv)
}

/// `dx = (h - mean(h) - x̂·mean(h·x̂)) / deviation` with `h = dy·weight`.
#[inline(always)]
fn layer_back_rows_body<const FMA: bool>(
    x: &[f32],
    norm: LayerNorm<'_>,
    weight: &[f32],
    dy: &[f32],
    dx: &mut [f32],
) {
    let n = norm.cols as f32;
    let rows = x.chunks_exact(norm.cols).zip(dy.chunks_exact(norm.cols));
    for ((x, dy), dx) in rows.zip(dx.chunks_exact_mut(norm.cols)) {
        let (mean, inv) = statistics(x, &norm);
        let level = if norm.center {
            fold3(dy, dy, weight, |acc, dy, _, w| madd::<FMA>(dy, w, acc)) / n
        } else {
            0.0
        };
        let along = fold3(x, dy, weight, |acc, x, dy, w| {
            madd::<FMA>((x - mean) * dy, w, acc)
        });
        let along = along * inv * inv / n;
        for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
            *dx = (madd::<FMA>(dy, w, -level) - (x - mean) * along) * inv;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{close, dot, gradient, values, wide};

    const EPS: f64 = 1e-6;
    /// Rows of 37 values below 1: a few roundings of sums below 40.
    const TOLERANCE: f64 = 2e-6;

    fn rms(x: &[f64], w: &[f64]) -> Vec<f64> {
        x.chunks(w.len())
            .flat_map(|x| {
                let inv = 1.0 / (dot(x, x) / w.len() as f64 + EPS).sqrt();
                x.iter().zip(w).map(move |(x, w)| x * inv * w)
            })
            .collect()
    }

    fn layer(x: &[f64], w: &[f64], b: &[f64]) -> Vec<f64> {
        let n = w.len() as f64;
        x.chunks(w.len())
            .flat_map(|x| {
                let mean = x.iter().sum::<f64>() / n;
                let var = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n;
                let inv = 1.0 / (var + EPS).sqrt();
                x.iter()
                    .zip(w)
                    .zip(b)
                    .map(move |((x, w), b)| (x - mean) * inv * w + b)
            })
            .collect()
    }

    fn of<'a>(x: &'a [f32], cols: usize, weight: Option<&'a [f32]>) -> Rows<'a> {
        Rows { x, cols, weight }
    }

    #[test]
    fn rms_norm_and_its_gradients() {
        let (rows, cols) = (3, 37);
        let (x, w, dy) = (
            values(rows * cols, 1),
            values(cols, 2),
            values(rows * cols, 3),
        );
        let start = values(rows * cols, 4);
        let mut wanted = gradient(&wide(&x), |x| dot(&rms(x, &wide(&w)), &wide(&dy)));
        wanted
            .iter_mut()
            .zip(&start)
            .for_each(|(a, &b)| *a += f64::from(b));
        for isa in Isa::all() {
            let (mut y, mut inv) = (vec![0.0; rows * cols], vec![0.0; rows]);
            let input = of(&x, cols, Some(&w));
            rms_norm_on(isa, input, EPS as f32, &mut y, &mut inv).unwrap();
            close(&y, &rms(&wide(&x), &wide(&w)), TOLERANCE);

            let (mut dx, mut dw) = (start.clone(), vec![7.0; cols]);
            let grads = (&mut dx[..], Some(&mut dw[..]));
            rms_norm_backward_on(isa, input, &inv, &dy, true, grads).unwrap();
            close(&dx, &wanted, TOLERANCE);
            close(
                &dw,
                &gradient(&wide(&w), |w| dot(&rms(&wide(&x), w), &wide(&dy))),
                TOLERANCE,
            );
        }
    }

    #[test]
    fn a_missing_weight_is_one() {
        let (x, dy) = (values(40, 1), values(40, 2));
        let (mut y, mut inv, mut dx) = ([0.0; 40], [0.0; 2], [0.0; 40]);
        let input = of(&x, 20, None);
        rms_norm(input, EPS as f32, &mut y, &mut inv).unwrap();
        close(&y, &rms(&wide(&x), &[1.0; 20]), TOLERANCE);
        rms_norm_backward(input, &inv, &dy, false, &mut dx, None).unwrap();
        close(
            &dx,
            &gradient(&wide(&x), |x| dot(&rms(x, &[1.0; 20]), &wide(&dy))),
            TOLERANCE,
        );
    }

    fn norm<'a>(weight: &'a [f32], bias: Option<&'a [f32]>, center: bool) -> LayerNorm<'a> {
        LayerNorm {
            cols: weight.len(),
            weight: Some(weight),
            bias,
            eps: EPS as f32,
            center,
        }
    }

    #[test]
    fn layer_norm_with_and_without_centring() {
        // Far from zero, where single precision would lose the variance.
        let (rows, cols) = (3, 37);
        let x: Vec<f32> = values(rows * cols, 1).iter().map(|v| v + 300.0).collect();
        let (w, b) = (values(cols, 3), values(cols, 4));
        for isa in Isa::all() {
            let (mut y, mut mean, mut inv) = (x.clone(), vec![0.0; rows], vec![0.0; rows]);
            let stats = Some((&mut mean[..], &mut inv[..]));
            layer_norm_on(isa, &mut y, &norm(&w, Some(&b), true), stats).unwrap();
            // The mean is rounded to `f32`: 2^-16 at 300, over a deviation of about 0.6.
            close(&y, &layer(&wide(&x), &wide(&w), &wide(&b)), 1e-4);
            let exact = x[..cols].iter().map(|&x| f64::from(x)).sum::<f64>() / cols as f64;
            assert_eq!(mean[0].to_bits(), (exact as f32).to_bits());

            let mut y = x.clone();
            layer_norm_on(isa, &mut y, &norm(&w, None, false), None).unwrap();
            close(&y, &rms(&wide(&x), &wide(&w)), TOLERANCE);
        }
    }

    #[test]
    fn threads_do_not_change_bits() {
        let (rows, cols) = (300, 129);
        let (x, w, dy) = (
            values(rows * cols, 1),
            values(cols, 2),
            values(rows * cols, 3),
        );
        let run = |threads: usize| {
            let (mut y, mut inv) = (vec![0.0; rows * cols], vec![0.0; rows]);
            let (mut dx, mut dw) = (vec![0.0; rows * cols], vec![0.0; cols]);
            let (mut z, mut mean, mut inv_std) = (x.clone(), vec![0.0; rows], vec![0.0; rows]);
            team::Team::new(threads).unwrap().run(|| {
                let input = of(&x, cols, Some(&w));
                rms_norm(input, 1e-6, &mut y, &mut inv).unwrap();
                rms_norm_backward(input, &inv, &dy, false, &mut dx, Some(&mut dw)).unwrap();
                let stats = Some((&mut mean[..], &mut inv_std[..]));
                layer_norm(&mut z, &norm(&w, None, true), stats).unwrap();
            });
            ([y, inv, dx, dw], [z, mean, inv_std])
        };
        assert_eq!(run(1), run(3));
    }

    #[test]
    fn sizes_are_checked() {
        let x = [0.0; 6];
        let rows = Rows {
            x: &x,
            cols: 3,
            weight: None,
        };
        let mut y = [0.0; 6];
        assert_eq!(rms_norm(rows, 0.0, &mut y, &mut [0.0; 2]), Ok(()));
        for cols in [4, 0] {
            assert!(rms_norm(Rows { cols, ..rows }, 0.0, &mut y, &mut [0.0; 1]).is_err());
        }
        let short = Rows {
            weight: Some(&x[..2]),
            ..rows
        };
        assert!(rms_norm(short, 0.0, &mut y, &mut [0.0; 2]).is_err());
        assert!(rms_norm(rows, 0.0, &mut y, &mut [0.0; 3]).is_err());
        assert_eq!(
            rms_norm(Rows { x: &[], ..rows }, 0.0, &mut [], &mut []),
            Ok(())
        );

        let mut x = [0.0; 6];
        assert!(layer_norm(&mut x, &norm(&[1.0; 4], None, true), None).is_err());
        assert!(layer_norm(&mut x, &norm(&[1.0; 3], Some(&[0.0; 2]), true), None).is_err());
        let short = Some((&mut y[..1], &mut x[..2]));
        assert!(layer_norm(&mut [0.0; 6], &norm(&[1.0; 3], None, true), short).is_err());
    }

    #[test]
    fn gradients_of_layers_match_finite_differences() {
        for (isa, center) in Isa::all()
            .into_iter()
            .flat_map(|isa| [(isa, true), (isa, false)])
        {
            let (x, w, dy) = (values(3 * 37, 1), values(37, 2), values(3 * 37, 3));
            let norm = LayerNorm {
                cols: 37,
                weight: Some(&w),
                bias: None,
                eps: EPS as f32,
                center,
            };
            let mut dx = vec![0.0; x.len()];
            layer_norm_backward_on(isa, &x, &norm, &dy, &mut dx).unwrap();
            let wanted = gradient(&wide(&x), |x| {
                let mut sum = 0.0;
                for (x, dy) in x.chunks(37).zip(wide(&dy).chunks(37)) {
                    let mean = if center {
                        x.iter().sum::<f64>() / 37.0
                    } else {
                        0.0
                    };
                    let var = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / 37.0;
                    let inv = 1.0 / (var + EPS).sqrt();
                    let y: Vec<f64> = x
                        .iter()
                        .zip(wide(&w))
                        .map(|(x, w)| (x - mean) * inv * w)
                        .collect();
                    sum += dot(&y, dy);
                }
                sum
            });
            close(&dx, &wanted, 1e-4);
        }
    }
}
