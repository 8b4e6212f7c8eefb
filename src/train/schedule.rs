//! Learning-rate schedules, as `transformers.optimization` defines them.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::f64::consts::PI;

/// How the learning rate moves over the steps of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Schedule {
    /// Linear warmup, then linearly to zero.
    Linear,
    /// Linear warmup, then `num_cycles` (½) of a cosine, to zero.
    Cosine,
    /// Linear warmup, then `num_cycles` (1) times half a cosine to zero, each from the peak again.
    CosineWithRestarts,
    /// Linear warmup, then a cosine to `min_lr`, or `min_lr_rate` times the peak.
    CosineWithMinLr,
    /// The same rate throughout, without warmup.
    Constant,
    /// Linear warmup, then the same rate.
    ConstantWithWarmup,
    /// Linear warmup, then `√(timescale / step)`.
    InverseSqrt,
    /// Linear warmup, then with `power` (1) to `lr_end` (1e-7).
    Polynomial,
}

/// Parameters of schedules; what is absent has the library's default.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct ScheduleOptions {
    /// Cycles of a cosine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub num_cycles: Option<f64>,
    /// The last rate of `cosine_with_min_lr`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr: Option<f64>,
    /// The same as a share of the peak.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub min_lr_rate: Option<f64>,
    /// Power of `polynomial`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub power: Option<f64>,
    /// The last rate of `polynomial`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lr_end: Option<f64>,
    /// Timescale of `inverse_sqrt`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timescale: Option<f64>,
}

impl ScheduleOptions {
    /// What is wrong with the options for a schedule at peak rate `lr`, as transformers refuses it.
    pub(super) fn wrong(&self, schedule: Schedule, lr: f64) -> Option<String> {
        let given = [
            ("num_cycles", self.num_cycles),
            ("min_lr", self.min_lr),
            ("min_lr_rate", self.min_lr_rate),
            ("power", self.power),
            ("lr_end", self.lr_end),
            ("timescale", self.timescale),
        ];
        let known: &[&str] = match schedule {
            Schedule::Linear | Schedule::Constant | Schedule::ConstantWithWarmup => &[],
            Schedule::Cosine | Schedule::CosineWithRestarts => &["num_cycles"],
            Schedule::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
            Schedule::InverseSqrt => &["timescale"],
            Schedule::Polynomial => &["power", "lr_end"],
        };
        let foreign = given
            .iter()
            .find(|(name, x)| x.is_some() && !known.contains(name));
        if let Some((name, _)) = foreign {
            return Some(format!("`{name}` is no parameter of this schedule"));
        }
        if schedule == Schedule::CosineWithMinLr
            && self.min_lr.is_some() == self.min_lr_rate.is_some()
        {
            return Some("this schedule needs `min_lr` or `min_lr_rate`, and not both".to_owned());
        }
        let end = self.lr_end.filter(|end| *end >= lr);
        end.map(|end| format!("`lr_end` ({end}) must be below `learning_rate` ({lr})"))
    }
}

impl Schedule {
    /// The learning rate of the update number `step` (from 0) of `total`, `warmup` of them warming up, at peak rate `lr`.
    pub(crate) fn rate(
        self,
        lr: f64,
        step: u64,
        warmup: u64,
        total: u64,
        options: &ScheduleOptions,
    ) -> f64 {
        let (t, w, n) = (step as f64, warmup as f64, total as f64);
        if self != Schedule::Constant && step < warmup {
            return lr * t / w.max(1.0);
        }
        let progress = (t - w) / (n - w).max(1.0);
        match self {
            Schedule::Constant | Schedule::ConstantWithWarmup => lr,
            Schedule::Linear => lr * ((n - t) / (n - w).max(1.0)).max(0.0),
            Schedule::Cosine => lr * cosine(progress, options.num_cycles.unwrap_or(0.5)).max(0.0),
            Schedule::CosineWithRestarts if progress >= 1.0 => 0.0,
            Schedule::CosineWithRestarts => {
                let cycles = options.num_cycles.unwrap_or(1.0);
                lr * (0.5 * (1.0 + (PI * ((cycles * progress) % 1.0)).cos())).max(0.0)
            }
            Schedule::CosineWithMinLr => {
                let least = options
                    .min_lr
                    .map(|m| m / lr.max(f64::MIN_POSITIVE))
                    .or(options.min_lr_rate)
                    .unwrap_or(0.0);
                let factor = cosine(progress, options.num_cycles.unwrap_or(0.5));
                lr * (factor * (1.0 - least) + least).max(0.0)
            }
            Schedule::InverseSqrt => {
                // transformers: timescale = warmup or 10000, shift = timescale - warmup.
                let timescale = options
                    .timescale
                    .unwrap_or(if warmup > 0 { w } else { 10_000.0 });
                lr / ((t + timescale - w) / timescale).sqrt()
            }
            Schedule::Polynomial => {
                let end = options.lr_end.unwrap_or(1e-7);
                if t > n {
                    end
                } else {
                    (lr - end) * (1.0 - progress).powf(options.power.unwrap_or(1.0)) + end
                }
            }
        }
    }
}

fn cosine(progress: f64, cycles: f64) -> f64 {
    0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos())
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

    fn rate(s: Schedule, step: u64, warmup: u64, total: u64) -> f64 {
        s.rate(5e-5, step, warmup, total, &ScheduleOptions::default())
    }

    #[test]
    fn linear_without_warmup_is_hugging_faces() {
        close(rate(Schedule::Linear, 0, 0, 3), 5e-5);
        close(rate(Schedule::Linear, 1, 0, 3), 5e-5 * 2.0 / 3.0);
        close(rate(Schedule::Linear, 2, 0, 3), 5e-5 / 3.0);
    }

    #[test]
    fn the_first_warmup_step_has_rate_zero() {
        close(rate(Schedule::Linear, 0, 2, 10), 0.0);
        close(rate(Schedule::Cosine, 1, 2, 10), 2.5e-5);
        close(rate(Schedule::Constant, 0, 2, 10), 5e-5);
    }

    /// `transformers.get_scheduler(name, SGD(lr=5e-5), 3, 20, kwargs)`, rates of updates 0, 2, 3, 10 and 19, of transformers 4.51.3.
    #[test]
    fn rates_are_those_of_transformers() {
        for (schedule, options, want) in reference() {
            for (step, want) in [0, 2, 3, 10, 19].into_iter().zip(want) {
                let got = schedule.rate(5e-5, step, 3, 20, &options);
                // The table has twelve digits.
                assert!(
                    (got - want).abs() <= 1e-11 * want.abs().max(1e-9),
                    "{schedule:?} {step}: {got} != {want}"
                );
            }
        }
    }

    /// Schedule, options, rates; as text, because these are what another program printed.
    const REFERENCE: &str = "
        Linear none 0.00000000000e+00 3.33333333333e-05 5.00000000000e-05 2.94117647059e-05 2.94117647059e-06
        Cosine none 0.00000000000e+00 3.33333333333e-05 5.00000000000e-05 3.18415747518e-05 4.25672507902e-07
        CosineWithRestarts cycles 0.00000000000e+00 3.33333333333e-05 5.00000000000e-05 3.74457160676e-06 1.68819426489e-06
        CosineWithMinLr least 0.00000000000e+00 3.33333333333e-05 5.00000000000e-05 3.54732598014e-05 1.03405380063e-05
        ConstantWithWarmup none 0.00000000000e+00 3.33333333333e-05 5.00000000000e-05 5.00000000000e-05 5.00000000000e-05
        Constant none 5.00000000000e-05 5.00000000000e-05 5.00000000000e-05 5.00000000000e-05 5.00000000000e-05
        InverseSqrt none 0.00000000000e+00 3.33333333333e-05 5.00000000000e-05 2.73861278753e-05 1.98679853560e-05
        Polynomial none 0.00000000000e+00 3.33333333333e-05 5.00000000000e-05 2.94529411765e-05 3.03529411765e-06
        Polynomial power 0.00000000000e+00 3.33333333333e-05 5.00000000000e-05 1.79550173010e-05 1.16955017301e-06
    ";

    fn reference() -> Vec<(Schedule, ScheduleOptions, Vec<f64>)> {
        let none = ScheduleOptions::default();
        let options = |name: &str| match name {
            "cycles" => ScheduleOptions {
                num_cycles: Some(2.0),
                ..none
            },
            "least" => ScheduleOptions {
                min_lr: Some(1e-5),
                ..none
            },
            "power" => ScheduleOptions {
                power: Some(2.0),
                lr_end: Some(1e-6),
                ..none
            },
            _ => none,
        };
        let row = |line: &str| {
            let mut words = line.split_whitespace();
            let schedule = match words.next()? {
                "Linear" => Schedule::Linear,
                "Cosine" => Schedule::Cosine,
                "CosineWithRestarts" => Schedule::CosineWithRestarts,
                "CosineWithMinLr" => Schedule::CosineWithMinLr,
                "ConstantWithWarmup" => Schedule::ConstantWithWarmup,
                "Constant" => Schedule::Constant,
                "InverseSqrt" => Schedule::InverseSqrt,
                "Polynomial" => Schedule::Polynomial,
                other => panic!("{other}"),
            };
            let options = options(words.next()?);
            Some((
                schedule,
                options,
                words.map(|w| w.parse().unwrap()).collect(),
            ))
        };
        let rows: Vec<_> = REFERENCE.lines().filter_map(row).collect();
        assert_eq!(rows.len(), 9);
        rows
    }
}
