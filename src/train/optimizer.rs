//! Optimizers, under Hugging Face's names. One update of one parameter; clipping has scaled the gradient's factor already.

use super::args::TrainingArguments;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::adamw::{AdamW, adamw};
use crate::runtime::{Gradient, Trainable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Optim {
    /// AdamW (Loshchilov and Hutter 2019).
    #[default]
    AdamwTorch,
    /// Lion (Chen et al. 2023): the sign of an interpolated momentum.
    Lion,
    /// Stochastic gradient descent without momentum.
    Sgd,
    /// `RMSprop` with torch's smoothing constant 0.99.
    Rmsprop,
    /// `Adagrad` (Duchi et al. 2011).
    Adagrad,
    /// Adafactor (Shazeer and Stern 2018) at the given learning rate: without relative steps, parameter scale and momentum, as Hugging
    /// Face's Trainer sets it up. Its state of a matrix is one row and one column.
    Adafactor,
}

impl Optim {
    /// Elements of the state that a parameter of these dimensions has.
    pub(crate) fn state(self, dims: &[usize]) -> usize {
        let n = dims.iter().product();
        match self {
            Optim::AdamwTorch => 2 * n,
            Optim::Sgd => 0,
            Optim::Lion | Optim::Rmsprop | Optim::Adagrad => n,
            Optim::Adafactor => Factors::of(dims).map_or(n, Factors::state),
        }
    }
}

/// A parameter as matrices one behind the other.
#[derive(Clone, Copy)]
struct Factors {
    matrices: usize,
    rows: usize,
    columns: usize,
}

impl Factors {
    /// `None` for vectors and scalars.
    fn of(dims: &[usize]) -> Option<Self> {
        let [rest @ .., rows, columns] = dims else {
            return None;
        };
        Some(Factors {
            matrices: rest.iter().product(),
            rows: *rows,
            columns: *columns,
        })
    }

    /// Means of the rows of all matrices, then of their columns.
    fn state(self) -> usize {
        self.matrices * (self.rows + self.columns)
    }
}

/// Constants of Adafactor that Hugging Face's Trainer does not set.
mod adafactor {
    /// Added to squared gradients.
    pub(super) const EPS: f32 = 1e-30;
    /// Largest root mean square of an update before the learning rate.
    pub(super) const CLIP: f32 = 1.0;
    /// Exponent of the decay of the second moment over steps.
    pub(super) const DECAY: f32 = -0.8;
}

/// The direction of Adafactor's update; `second` holds the (factored) second moment.
fn adafactor_direction(
    grads: &[f32],
    dims: &[usize],
    second: &mut Vec<f32>,
    number: u32,
) -> Vec<f32> {
    let keep = 1.0 - (number as f32).powf(adafactor::DECAY);
    let squares = |g: f32| g * g + adafactor::EPS;
    let mut out = grads.to_vec();
    match Factors::of(dims) {
        None => {
            second.resize(grads.len(), 0.0);
            for (x, v) in out.iter_mut().zip(second) {
                *v = keep * *v + (1.0 - keep) * squares(*x);
                *x /= v.sqrt();
            }
        }
        Some(f) => {
            second.resize(f.state(), 0.0);
            let (all_rows, all_columns) = second.split_at_mut(f.matrices * f.rows);
            let each = out
                .chunks_exact_mut((f.rows * f.columns).max(1))
                .zip(all_rows.chunks_exact_mut(f.rows.max(1)))
                .zip(all_columns.chunks_exact_mut(f.columns.max(1)));
            for ((matrix, rows), columns) in each {
                let mut sums = vec![0.0; f.columns];
                for (line, r) in matrix.chunks_exact(f.columns).zip(rows.iter_mut()) {
                    let mut sum = 0.0;
                    for (x, c) in line.iter().zip(&mut sums) {
                        sum += squares(*x);
                        *c += squares(*x);
                    }
                    *r = keep * *r + (1.0 - keep) * sum / f.columns as f32;
                }
                for (c, sum) in columns.iter_mut().zip(sums) {
                    *c = keep * *c + (1.0 - keep) * sum / f.rows as f32;
                }
                let mean = rows.iter().sum::<f32>() / f.rows as f32;
                for (line, r) in matrix.chunks_exact_mut(f.columns).zip(rows.iter()) {
                    let row = (r / mean).sqrt().recip();
                    for (x, c) in line.iter_mut().zip(columns.iter()) {
                        *x *= row * c.sqrt().recip();
                    }
                }
            }
        }
    }
    let norm = out.iter().map(|x| f64::from(x * x)).sum::<f64>();
    let rms = (norm / out.len().max(1) as f64).sqrt() as f32;
    let scale = (rms / adafactor::CLIP).max(1.0);
    for x in &mut out {
        *x /= scale;
    }
    out
}

/// One update of one parameter at a learning rate.
pub(super) fn update(
    args: &TrainingArguments,
    rate: f64,
    p: &mut Trainable,
    g: Gradient<'_>,
) -> Result<()> {
    let decay = if p.decays { args.weight_decay } else { 0.0 };
    let n = p.value.len();
    if args.optim == Optim::AdamwTorch {
        p.first.resize(n, 0.0);
        p.second.resize(n, 0.0);
        let options = AdamW {
            lr: rate,
            beta1: args.adam_beta1,
            beta2: args.adam_beta2,
            eps: args.adam_epsilon,
            weight_decay: decay,
        };
        let (value, first, second) = (&mut p.value, &mut p.first, &mut p.second);
        return adamw(&options, g.number, value, g.grad, g.clip, first, second).map_err(|e| {
            Error::new(
                ErrorKind::Train,
                Diagnostic::error("optimizer", e.to_string()),
            )
        });
    }
    let (rate, decay) = (rate as f32, decay as f32);
    let grads = g.grad.iter().map(|x| x * g.clip);
    let squares = |v: &mut Vec<f32>| v.resize(n, 0.0);
    match args.optim {
        Optim::AdamwTorch => {}
        Optim::Lion => {
            let (b1, b2) = (args.adam_beta1 as f32, args.adam_beta2 as f32);
            p.first.resize(n, 0.0);
            for ((x, m), g) in p.value.iter_mut().zip(&mut p.first).zip(grads) {
                let c = b1 * *m + (1.0 - b1) * g;
                let sign = if c == 0.0 { 0.0 } else { c.signum() };
                *x = *x * (1.0 - rate * decay) - rate * sign;
                *m = b2 * *m + (1.0 - b2) * g;
            }
        }
        Optim::Sgd => {
            for (x, g) in p.value.iter_mut().zip(grads) {
                *x -= rate * (g + decay * *x);
            }
        }
        Optim::Rmsprop => {
            const ALPHA: f32 = 0.99;
            squares(&mut p.second);
            for ((x, v), g) in p.value.iter_mut().zip(&mut p.second).zip(grads) {
                let g = g + decay * *x;
                *v = ALPHA * *v + (1.0 - ALPHA) * g * g;
                // torch's own epsilon of RMSprop: Hugging Face does not set it.
                *x -= rate * g / (v.sqrt() + 1e-8);
            }
        }
        Optim::Adagrad => {
            squares(&mut p.second);
            for ((x, v), g) in p.value.iter_mut().zip(&mut p.second).zip(grads) {
                let g = g + decay * *x;
                *v += g * g;
                // torch's own epsilon of Adagrad: Hugging Face does not set it.
                *x -= rate * g / (v.sqrt() + 1e-10);
            }
        }
        Optim::Adafactor => {
            let grads: Vec<f32> = grads.collect();
            let update = adafactor_direction(&grads, &p.dims, &mut p.second, g.number);
            for (x, u) in p.value.iter_mut().zip(update) {
                *x = *x * (1.0 - rate * decay) - rate * u;
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::TensorData;

    /// Twenty updates of `Σ (a·x - b)²` from the same start as torch's optimizers took.
    fn descend(optim: Optim, rate: f64, dims: &[u64]) -> Vec<f32> {
        let args = TrainingArguments {
            optim,
            weight_decay: 0.1,
            ..TrainingArguments::default()
        };
        let (start, a, b) = (
            [1.0f32, -2.0, 0.5, 0.0, 1.0, -1.0],
            [1.0f32, 2.0, 3.0, 0.5, 1.0, 2.0],
            [0.5f32, 0.1, -1.0, 1.0, 0.0, 2.0],
        );
        let n = dims.iter().product::<u64>() as usize;
        let start = TensorData::from_f32(dims.to_vec(), &start[..n]);
        let mut p = Trainable::new(&start).unwrap();
        for number in 1..=20 {
            let grad: Vec<f32> = (0..n)
                .map(|i| 2.0 * a[i] * (a[i] * p.value[i] - b[i]))
                .collect();
            let g = Gradient {
                grad: &grad,
                clip: 1.0,
                number,
            };
            update(&args, rate, &mut p, g).unwrap();
        }
        let state = p.first.len() + p.second.len();
        let shape: Vec<usize> = dims.iter().map(|&d| d as usize).collect();
        assert_eq!(state, optim.state(&shape), "{optim:?}");
        p.value
    }

    /// Twenty steps of rounding in f32.
    #[track_caller]
    fn near(got: &[f32], want: &[f32]) {
        assert_eq!(got.len(), want.len());
        let apart = got.iter().zip(want).map(|(g, w)| (g - w).abs());
        assert!(apart.fold(0.0, f32::max) < 2e-6, "{got:?} != {want:?}");
    }

    #[test]
    fn adafactor_goes_where_hugging_faces_goes() {
        let vector = descend(Optim::Adafactor, 0.05, &[3]);
        near(&vector, &[0.496_058_7, -0.972_276, -0.209_772_94]);
        let matrix = descend(Optim::Adafactor, 0.05, &[2, 3]);
        let want = [
            0.513_722_3,
            -0.800_123_63,
            -0.133_821_49,
            1.093_917,
            0.704_395,
            0.122_674,
        ];
        near(&matrix, &want);
        // One matrix behind the other: each has its own factors, and one clip for both.
        let flat = descend(Optim::Adafactor, 0.05, &[1, 2, 3]);
        near(&flat, &want);
    }

    #[test]
    fn optimizers_go_where_torchs_go() {
        let cases = [
            (
                Optim::AdamwTorch,
                0.05,
                [0.355_451_3, -0.901_998_2, -0.348_412_1],
            ),
            (
                Optim::Sgd,
                0.01,
                [0.818_821_9, -0.329_001_72, -0.316_161_93],
            ),
            (
                Optim::Rmsprop,
                0.01,
                [0.521_149_04, -1.288_487_1, -0.099_483_06],
            ),
            (
                Optim::Adagrad,
                0.1,
                [0.525_396_35, -1.300_840_6, -0.090_737_08],
            ),
            (
                Optim::Lion,
                0.02,
                [0.568_261_15, -1.529_012_9, 0.087_885_07],
            ),
        ];
        for (optim, rate, want) in cases {
            near(&descend(optim, rate, &[3]), &want);
        }
    }
}
