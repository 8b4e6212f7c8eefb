//! Learning-rate schedules, as `transformers.optimization` defines them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How the learning rate moves over the steps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// Linear warmup, then linearly to zero.
    Linear,
    /// Linear warmup, then half a cosine to zero.
    Cosine,
    /// The same rate throughout, without warmup.
    Constant,
    /// Linear warmup, then the same rate.
    ConstantWithWarmup,
    /// Linear warmup, then `√(warmup / step)`.
    InverseSqrt,
    /// Linear warmup, then linearly to 1e-7 (power 1).
    Polynomial,
}

impl Schedule {
    /// The learning rate of the update number `step` (from 0) of `total`, `warmup` of them warming up, at peak rate `lr`.
    pub fn rate(self, lr: f64, step: u64, warmup: u64, total: u64) -> f64 {
        let (t, w, n) = (step as f64, warmup as f64, total as f64);
        if self != Schedule::Constant && step < warmup {
            return lr * t / w.max(1.0);
        }
        let progress = (t - w) / (n - w).max(1.0);
        match self {
            Schedule::Constant | Schedule::ConstantWithWarmup => lr,
            Schedule::Linear => lr * ((n - t) / (n - w).max(1.0)).max(0.0),
            Schedule::Cosine => {
                lr * (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
            Schedule::InverseSqrt => {
                // transformers: timescale = warmup or 10000, shift = timescale - warmup.
                let timescale = if warmup > 0 { w } else { 10_000.0 };
                lr / ((t + timescale - w) / timescale).sqrt()
            }
            Schedule::Polynomial => {
                const END: f64 = 1e-7;
                if t > n {
                    END
                } else {
                    (lr - END) * (1.0 - progress) + END
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn close(got: f64, want: f64) {
        // Both sides are a handful of f64 operations.
        assert!(
            (got - want).abs() <= 1e-12 * want.abs().max(1e-12),
            "{got} != {want}"
        );
    }

    #[test]
    fn linear_without_warmup_is_hugging_faces() {
        let rates: Vec<f64> = (0..3)
            .map(|t| Schedule::Linear.rate(5e-5, t, 0, 3))
            .collect();
        close(rates[0], 5e-5);
        close(rates[1], 5e-5 * 2.0 / 3.0);
        close(rates[2], 5e-5 / 3.0);
    }

    #[test]
    fn the_first_warmup_step_has_rate_zero() {
        close(Schedule::Linear.rate(1.0, 0, 2, 10), 0.0);
        close(Schedule::Cosine.rate(1.0, 1, 2, 10), 0.5);
        close(Schedule::Cosine.rate(1.0, 6, 2, 10), 0.5);
        close(Schedule::Constant.rate(1.0, 0, 2, 10), 1.0);
    }
}
