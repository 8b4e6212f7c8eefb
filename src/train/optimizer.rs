//! Optimizers, under Hugging Face's names. One update of one parameter; clipping has scaled the gradient's factor already.

use super::args::TrainingArguments;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::runtime::cpu::adamw::{AdamW, adamw};
use crate::runtime::{Gradient, Trainable};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which optimizer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Optim {
    /// AdamW (Loshchilov and Hutter 2019).
    #[default]
    #[serde(alias = "adamw_torch_fused", alias = "adamw_hf", alias = "adamw")]
    AdamwTorch,
    /// Lion (Chen et al. 2023): the sign of an interpolated momentum.
    #[serde(alias = "lion_32bit")]
    Lion,
    /// Stochastic gradient descent without momentum.
    Sgd,
    /// `RMSprop` with torch's smoothing constant 0.99.
    Rmsprop,
    /// `Adagrad` (Duchi et al. 2011).
    Adagrad,
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
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::TensorData;

    /// Twenty updates of `Σ (a·x - b)²` from the same start as torch's optimizers took.
    fn descend(optim: Optim, rate: f64) -> Vec<f32> {
        let args = TrainingArguments {
            optim,
            weight_decay: 0.1,
            ..TrainingArguments::default()
        };
        let mut p = Trainable::new(&TensorData::from_f32([3], &[1.0, -2.0, 0.5])).unwrap();
        let (a, b) = ([1.0f32, 2.0, 3.0], [0.5f32, 0.1, -1.0]);
        for number in 1..=20 {
            let grad: Vec<f32> = (0..3)
                .map(|i| 2.0 * a[i] * (a[i] * p.value[i] - b[i]))
                .collect();
            let g = Gradient {
                grad: &grad,
                clip: 1.0,
                number,
            };
            update(&args, rate, &mut p, g).unwrap();
        }
        p.value
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
            let got = descend(optim, rate);
            // Twenty steps of rounding in f32.
            let apart = got
                .iter()
                .zip(want)
                .map(|(g, w)| (g - w).abs())
                .fold(0.0, f32::max);
            assert!(apart < 2e-6, "{optim:?}: {got:?} != {want:?}");
        }
    }
}
