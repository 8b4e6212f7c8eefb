//! Normalisation over the last axis, forward and backward, one pass over each row.
//!
//! `RMSNorm`: Zhang and Sennrich, "Root Mean Square Layer Normalization" (2019). `LayerNorm`: Ba, Kiros and Hinton (2016). The forward
//! functions keep one or two statistics per row, from which the backward functions work.
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

use super::scratch::with_scratch;
use super::simd::{fold, fold2, fold3, madd};
use super::{Result, check_dim, check_len, is_large, product, rows_of, rows_per_task};
use rayon::prelude::*;

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
    let Rows { x, cols, weight } = rows;
    let rows = rows_of("input", x.len(), cols)?;
    check_len("result", y.len(), x.len())?;
    check_len("reciprocal root mean squares", inv_rms.len(), rows)?;
    check_affine("weight", weight, cols)?;
    let block = rows_per_task(cols);
    with_affine(weight, 1.0, cols, |weight| {
        if !is_large(x.len()) {
            rms_rows(x, cols, weight, eps, y, inv_rms);
            return;
        }
        y.par_chunks_mut(block * cols)
            .zip(inv_rms.par_chunks_mut(block))
            .zip(x.par_chunks(block * cols))
            .for_each(|((y, inv), x)| rms_rows(x, cols, weight, eps, y, inv));
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
            rms_back_rows(x, cols, weight, inv, dy, accumulate, dx, partial);
        };
        blocks(dx, cols, block, dweight, None, task)
    })
}

/// `y = (x - mean) / sqrt(variance + eps) * weight + bias`, row by row; `mean` and `inv_std` receive the statistics.
///
/// A missing bias is zero.
pub fn layer_norm(
    rows: Rows<'_>,
    bias: Option<&[f32]>,
    eps: f32,
    y: &mut [f32],
    (mean, inv_std): (&mut [f32], &mut [f32]),
) -> Result<()> {
    let Rows { x, cols, weight } = rows;
    let rows = rows_of("input", x.len(), cols)?;
    check_len("result", y.len(), x.len())?;
    check_len("means", mean.len(), rows)?;
    check_len("reciprocal deviations", inv_std.len(), rows)?;
    check_affine("weight", weight, cols)?;
    check_affine("bias", bias, cols)?;
    let block = rows_per_task(cols);
    with_affine(weight, 1.0, cols, |weight| {
        with_affine(bias, 0.0, cols, |bias| {
            if !is_large(x.len()) {
                layer_rows(x, cols, weight, bias, eps, y, mean, inv_std);
                return;
            }
            y.par_chunks_mut(block * cols)
                .zip(
                    mean.par_chunks_mut(block)
                        .zip(inv_std.par_chunks_mut(block)),
                )
                .zip(x.par_chunks(block * cols))
                .for_each(|((y, (mean, inv)), x)| {
                    layer_rows(x, cols, weight, bias, eps, y, mean, inv);
                });
        });
    });
    Ok(())
}

/// What [`layer_norm`] kept of its input.
#[derive(Clone, Copy, Debug)]
pub struct LayerStats<'a> {
    /// Mean of each row.
    pub mean: &'a [f32],
    /// Reciprocal standard deviation of each row.
    pub inv_std: &'a [f32],
}

/// Gradients of [`layer_norm`]: `dx` (added to its contents if `accumulate`), and `dweight` and `dbias` if asked for.
pub fn layer_norm_backward(
    rows: Rows<'_>,
    stats: LayerStats<'_>,
    dy: &[f32],
    accumulate: bool,
    dx: &mut [f32],
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
) -> Result<()> {
    let Rows { x, cols, weight } = rows;
    let rows = rows_of("input", x.len(), cols)?;
    check_len("gradient of the result", dy.len(), x.len())?;
    check_len("gradient of the input", dx.len(), x.len())?;
    check_len("means", stats.mean.len(), rows)?;
    check_len("reciprocal deviations", stats.inv_std.len(), rows)?;
    check_affine("weight", weight, cols)?;
    check_affine("gradient of the weight", dweight.as_deref(), cols)?;
    check_affine("gradient of the bias", dbias.as_deref(), cols)?;
    let block = rows_per_task(cols);
    with_affine(weight, 1.0, cols, |weight| {
        let task = |(i, (dx, partial)): (usize, (&mut [f32], &mut [f32]))| {
            let (first, elements) = (i * block, i * block * cols);
            let (x, dy) = (&x[elements..][..dx.len()], &dy[elements..][..dx.len()]);
            let rows = dx.len() / cols;
            let (mean, inv) = (
                &stats.mean[first..][..rows],
                &stats.inv_std[first..][..rows],
            );
            layer_back_rows(x, cols, weight, mean, inv, dy, accumulate, dx, partial);
        };
        blocks(dx, cols, block, dweight, dbias, task)
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

/// Runs `task` on each block of rows of `dx` with the block's own sums (none, one or two rows of `cols`, zeroed), then adds the sums
/// of the blocks in their order. Blocks depend on `cols` alone, so threads do not change the sums.
fn blocks(
    dx: &mut [f32],
    cols: usize,
    block: usize,
    dweight: Option<&mut [f32]>,
    dbias: Option<&mut [f32]>,
    task: impl Fn((usize, (&mut [f32], &mut [f32]))) + Sync,
) -> Result<()> {
    let large = is_large(dx.len());
    let count = dx.len().div_ceil(block * cols);
    let Some(width) = dbias
        .as_ref()
        .map(|_| 2 * cols)
        .or(dweight.as_ref().map(|_| cols))
    else {
        if large {
            let each = |(i, dx): (usize, &mut [f32])| task((i, (dx, &mut [])));
            dx.par_chunks_mut(block * cols).enumerate().for_each(each);
        } else {
            dx.chunks_mut(block * cols)
                .enumerate()
                .for_each(|(i, dx)| task((i, (dx, &mut []))));
        }
        return Ok(());
    };
    let len = product("partial sums", &[count, width])?;
    with_scratch(len, |partials| {
        partials.fill(0.0);
        if large {
            let pairs = dx
                .par_chunks_mut(block * cols)
                .zip(partials.par_chunks_mut(width));
            pairs.enumerate().for_each(&task);
        } else {
            dx.chunks_mut(block * cols)
                .zip(partials.chunks_mut(width))
                .enumerate()
                .for_each(&task);
        }
        for (out, from) in [(dweight, 0), (dbias, cols)] {
            let Some(out) = out else { continue };
            out.fill(0.0);
            for partial in partials.chunks(width) {
                for (out, &value) in out.iter_mut().zip(&partial[from..]) {
                    *out += value;
                }
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
    fn layer_rows(
        x: &[f32], cols: usize, weight: &[f32], bias: &[f32], eps: f32, y: &mut [f32], mean: &mut [f32], inv: &mut [f32],
    ) = layer_rows_body
}
multiversion! {
    fn layer_back_rows(
        x: &[f32], cols: usize, weight: &[f32], mean: &[f32], inv: &[f32], dy: &[f32], accumulate: bool, dx: &mut [f32],
        dwb: &mut [f32],
    ) = layer_back_rows_body
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
    x: &[f32],
    cols: usize,
    weight: &[f32],
    bias: &[f32],
    eps: f32,
    y: &mut [f32],
    mean: &mut [f32],
    inv: &mut [f32],
) {
    let rows = x.chunks_exact(cols).zip(y.chunks_exact_mut(cols));
    for ((x, y), (mean, inv)) in rows.zip(mean.iter_mut().zip(inv)) {
        let center = fold(x, |acc, x| acc + x) / cols as f32;
        let squares = fold(x, |acc, x| madd::<FMA>(x - center, x - center, acc));
        *mean = center;
        *inv = 1.0 / (squares / cols as f32 + eps).sqrt();
        for (((y, &x), &w), &b) in y.iter_mut().zip(x).zip(weight).zip(bias) {
            *y = madd::<FMA>((x - center) * *inv, w, b);
        }
    }
}

#[inline(always)]
fn layer_back_rows_body<const FMA: bool>(
    x: &[f32],
    cols: usize,
    weight: &[f32],
    mean: &[f32],
    inv: &[f32],
    dy: &[f32],
    accumulate: bool,
    dx: &mut [f32],
    dwb: &mut [f32],
) {
    let (dw, db) = dwb.split_at_mut(dwb.len().min(cols));
    let rows = x
        .chunks_exact(cols)
        .zip(dy.chunks_exact(cols))
        .zip(dx.chunks_exact_mut(cols));
    for (((x, dy), dx), (&mean, &inv)) in rows.zip(mean.iter().zip(inv)) {
        let level = fold2(dy, weight, |acc, dy, w| madd::<FMA>(dy, w, acc)) / cols as f32;
        let along = fold3(x, dy, weight, |acc, x, dy, w| {
            madd::<FMA>((x - mean) * dy, w, acc)
        });
        let pull = along * inv * inv / cols as f32;
        let slope =
            |x: f32, dy: f32, w: f32| (madd::<FMA>(dy, w, -level) - (x - mean) * pull) * inv;
        if accumulate {
            for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx += slope(x, dy, w);
            }
        } else {
            for (((dx, &x), &dy), &w) in dx.iter_mut().zip(x).zip(dy).zip(weight) {
                *dx = slope(x, dy, w);
            }
        }
        for ((dw, &x), &dy) in dw.iter_mut().zip(x).zip(dy) {
            *dw = madd::<FMA>(dy, (x - mean) * inv, *dw);
        }
        for (db, &dy) in db.iter_mut().zip(dy) {
            *db += dy;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::cpu::testing::{close, dot, gradient, values, wide};

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

    #[test]
    fn rms_norm_and_its_gradients() {
        let (rows, cols) = (3, 37);
        let (x, w, dy) = (
            values(rows * cols, 1),
            values(cols, 2),
            values(rows * cols, 3),
        );
        let (mut y, mut inv) = (vec![0.0; rows * cols], vec![0.0; rows]);
        rms_norm(
            Rows {
                x: &x,
                cols,
                weight: Some(&w),
            },
            EPS as f32,
            &mut y,
            &mut inv,
        )
        .unwrap();
        close(&y, &rms(&wide(&x), &wide(&w)), TOLERANCE);

        let start = values(rows * cols, 4);
        let (mut dx, mut dw) = (start.clone(), vec![7.0; cols]);
        rms_norm_backward(
            Rows {
                x: &x,
                cols,
                weight: Some(&w),
            },
            &inv,
            &dy,
            true,
            &mut dx,
            Some(&mut dw),
        )
        .unwrap();
        let mut wanted = gradient(&wide(&x), |x| dot(&rms(x, &wide(&w)), &wide(&dy)));
        wanted
            .iter_mut()
            .zip(&start)
            .for_each(|(a, &b)| *a += f64::from(b));
        close(&dx, &wanted, TOLERANCE);
        close(
            &dw,
            &gradient(&wide(&w), |w| dot(&rms(&wide(&x), w), &wide(&dy))),
            TOLERANCE,
        );
    }

    #[test]
    fn a_missing_weight_is_one() {
        let (x, dy) = (values(40, 1), values(40, 2));
        let (mut y, mut inv, mut dx) = ([0.0; 40], [0.0; 2], [0.0; 40]);
        rms_norm(
            Rows {
                x: &x,
                cols: 20,
                weight: None,
            },
            EPS as f32,
            &mut y,
            &mut inv,
        )
        .unwrap();
        close(&y, &rms(&wide(&x), &[1.0; 20]), TOLERANCE);
        rms_norm_backward(
            Rows {
                x: &x,
                cols: 20,
                weight: None,
            },
            &inv,
            &dy,
            false,
            &mut dx,
            None,
        )
        .unwrap();
        close(
            &dx,
            &gradient(&wide(&x), |x| dot(&rms(x, &[1.0; 20]), &wide(&dy))),
            TOLERANCE,
        );
    }

    #[test]
    fn layer_norm_and_its_gradients() {
        let (rows, cols) = (3, 37);
        let (x, dy) = (values(rows * cols, 1), values(rows * cols, 2));
        let (w, b) = (values(cols, 3), values(cols, 4));
        let (mut y, mut mean, mut inv_std) =
            (vec![0.0; rows * cols], vec![0.0; rows], vec![0.0; rows]);
        layer_norm(
            Rows {
                x: &x,
                cols,
                weight: Some(&w),
            },
            Some(&b),
            EPS as f32,
            &mut y,
            (&mut mean, &mut inv_std),
        )
        .unwrap();
        close(&y, &layer(&wide(&x), &wide(&w), &wide(&b)), TOLERANCE);

        let stats = LayerStats {
            mean: &mean,
            inv_std: &inv_std,
        };
        let (mut dx, mut dw, mut db) = (vec![0.0; rows * cols], vec![7.0; cols], vec![7.0; cols]);
        let grads = (Some(&mut dw[..]), Some(&mut db[..]));
        layer_norm_backward(
            Rows {
                x: &x,
                cols,
                weight: Some(&w),
            },
            stats,
            &dy,
            false,
            &mut dx,
            grads.0,
            grads.1,
        )
        .unwrap();
        let loss = |x: &[f64], w: &[f64], b: &[f64]| dot(&layer(x, w, b), &wide(&dy));
        close(
            &dx,
            &gradient(&wide(&x), |x| loss(x, &wide(&w), &wide(&b))),
            TOLERANCE,
        );
        close(
            &dw,
            &gradient(&wide(&w), |w| loss(&wide(&x), w, &wide(&b))),
            TOLERANCE,
        );
        close(
            &db,
            &gradient(&wide(&b), |b| loss(&wide(&x), &wide(&w), b)),
            TOLERANCE,
        );
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
            rayon::ThreadPoolBuilder::new()
                .num_threads(threads)
                .build()
                .unwrap()
                .install(|| {
                    rms_norm(
                        Rows {
                            x: &x,
                            cols,
                            weight: Some(&w),
                        },
                        1e-6,
                        &mut y,
                        &mut inv,
                    )
                    .unwrap();
                    rms_norm_backward(
                        Rows {
                            x: &x,
                            cols,
                            weight: Some(&w),
                        },
                        &inv,
                        &dy,
                        false,
                        &mut dx,
                        Some(&mut dw),
                    )
                    .unwrap();
                });
            (y, inv, dx, dw)
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
    }
}
