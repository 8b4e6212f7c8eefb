//! `AdamW` in place, and clipping by the global norm.
//!
//! Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (2019), in the order of operations of `torch.optim.AdamW` (single
//! tensor, not maximising, no `AMSGrad`), so that trajectories can be compared bit by bit.
#![expect(
    unsafe_code,
    reason = "calls loops compiled for the instruction set that was probed"
)]
#![expect(
    clippy::inline_always,
    reason = "loop bodies must be compiled with the features of their caller"
)]

use crate::isa::Isa;
use crate::team;
use crate::{CHUNK, Result, check_len};

/// Hyperparameters, in `f64` as torch keeps them.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct AdamW {
    /// Learning rate.
    pub lr: f64,
    /// Decay of the first moment.
    pub beta1: f64,
    /// Decay of the second moment.
    pub beta2: f64,
    /// Added to the denominator.
    pub eps: f64,
    /// Decoupled weight decay.
    pub weight_decay: f64,
}

impl Default for AdamW {
    fn default() -> Self {
        Self {
            lr: 1e-3,
            beta1: 0.9,
            beta2: 0.999,
            eps: 1e-8,
            weight_decay: 1e-2,
        }
    }
}

/// The scalars of one step, rounded to `f32` once.
#[derive(Clone, Copy)]
struct Step {
    keep: f32,
    rise: f32,
    beta2: f32,
    fresh: f32,
    root: f32,
    eps: f32,
    size: f32,
    scale: f32,
}

/// One step of `param`. `step` counts from 1; `grad` is multiplied by `grad_scale` (clipping) while it is read.
pub fn adamw(
    options: &AdamW,
    step: u32,
    param: &mut [f32],
    grad: &[f32],
    grad_scale: f32,
    first: &mut [f32],
    second: &mut [f32],
) -> Result<()> {
    let state = (first, second);
    adamw_on(
        Isa::detect(),
        options,
        step,
        param,
        (grad, grad_scale),
        state,
    )
}

fn adamw_on(
    isa: Isa,
    options: &AdamW,
    step: u32,
    param: &mut [f32],
    (grad, grad_scale): (&[f32], f32),
    (first, second): (&mut [f32], &mut [f32]),
) -> Result<()> {
    check_len("gradient", grad.len(), param.len())?;
    check_len("first moment", first.len(), param.len())?;
    check_len("second moment", second.len(), param.len())?;
    let power = i32::try_from(step.max(1)).unwrap_or(i32::MAX);
    let (bias1, bias2) = (
        1.0 - options.beta1.powi(power),
        1.0 - options.beta2.powi(power),
    );
    let scalars = Step {
        keep: (1.0 - options.lr * options.weight_decay) as f32,
        rise: (1.0 - options.beta1) as f32,
        beta2: options.beta2 as f32,
        fresh: (1.0 - options.beta2) as f32,
        root: bias2.sqrt() as f32,
        eps: options.eps as f32,
        size: (options.lr / bias1) as f32,
        scale: grad_scale,
    };
    let moments = first.chunks_mut(CHUNK).zip(second.chunks_mut(CHUNK));
    let parts = param.chunks_mut(CHUNK).zip(grad.chunks(CHUNK)).zip(moments);
    team::each(parts, |((param, grad), (first, second))| {
        update(isa, scalars, param, grad, first, second);
    });
    Ok(())
}

multiversion! {
    fn update(step: Step, param: &mut [f32], grad: &[f32], first: &mut [f32], second: &mut [f32]) = update_body
}

#[inline(always)]
fn update_body<const FMA: bool>(
    step: Step,
    param: &mut [f32],
    grad: &[f32],
    first: &mut [f32],
    second: &mut [f32],
) {
    for (((p, &g), m), v) in param.iter_mut().zip(grad).zip(first).zip(second) {
        let g = g * step.scale;
        *p *= step.keep;
        // torch fuses the multiplication and addition of `lerp` and of `addcmul`.
        *m = step.rise.mul_add(g - *m, *m);
        *v = (step.fresh * g).mul_add(g, *v * step.beta2);
        let denominator = v.sqrt() / step.root + step.eps;
        *p += -step.size * *m / denominator;
    }
}

/// The Euclidean norm over all gradients, summed in blocks of fixed size in `f64`.
pub fn global_norm(grads: &[&[f32]]) -> f64 {
    grads
        .iter()
        .map(|grad| square_sum(grad))
        .sum::<f64>()
        .sqrt()
}

fn square_sum(grad: &[f32]) -> f64 {
    let blocks = team::map(grad.chunks(CHUNK), |chunk| {
        let squares = chunk.iter().map(|&g| f64::from(g) * f64::from(g));
        squares.sum::<f64>()
    });
    blocks.iter().sum()
}

/// The factor of `torch.nn.utils.clip_grad_norm_`: `min(1, max / (norm + 1e-6))`.
pub fn clip_scale(norm: f64, max: f64) -> f32 {
    (max / (norm + 1e-6)).min(1.0) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    // Bits after three steps of torch.optim.AdamW(lr=0.03, weight_decay=0.1, foreach=False), torch 2.15 on x86-64.
    const PARAM: [u32; 20] = [
        0xbea0_a3bd,
        0x3f1c_7bb6,
        0x3fd0_84df,
        0xbf82_7fc0,
        0xbd40_faee,
        0x3f89_0119,
        0xbfd5_7319,
        0xbf0d_a4d2,
        0x3e9a_c8d9,
        0x3fb2_cd2d,
        0xbfa1_4b78,
        0xbe83_d6b8,
        0x3f53_2006,
        0x3fd7_4d56,
        0xbf4b_8872,
        0x3d6e_2b87,
        0x3f94_c2ac,
        0xbfc0_20e6,
        0xbefc_61f1,
        0x3eeb_71fc,
    ];
    const FIRST: [u32; 20] = [
        0xbc34_395c,
        0xbd82_f1aa,
        0x3d23_126f,
        0xbc57_0a3e,
        0x3db9_999a,
        0xbda1_47ae,
        0xbb17_8d3e,
        0xbce4_dd2f,
        0x3d46_a7ef,
        0x3cbb_645b,
        0xbcf6_45a0,
        0x3d96_e979,
        0xbdc3_f7cf,
        0xbc9d_b22c,
        0xbd37_ced9,
        0x3d01_47af,
        0x3bc2_8f5c,
        0xbd40_8313,
        0x3d68_72b1,
        0x3b79_db19,
    ];
    const SECOND: [u32; 20] = [
        0x3958_ca04,
        0x3a52_b845,
        0x397d_dca8,
        0x3a30_e1bd,
        0x39ff_f2e6,
        0x39ff_8a17,
        0x3a31_116b,
        0x397d_88d0,
        0x3a52_bf14,
        0x3958_f3f2,
        0x3a36_05f5,
        0x39c8_aaca,
        0x3a21_81e9,
        0x3a32_1e1e,
        0x399d_6a63,
        0x3a41_61e8,
        0x394c_9867,
        0x3a41_4d78,
        0x399d_a944,
        0x3a31_e0ce,
    ];

    #[test]
    fn three_steps_have_the_bits_of_torch() {
        for isa in Isa::all() {
            let mut param: Vec<f32> = (0..20)
                .map(|i| ((i * 37 + 11) % 29 - 14) as f32 / 8.0)
                .collect();
            let (mut first, mut second) = ([0.0; 20], [0.0; 20]);
            let options = AdamW {
                lr: 0.03,
                weight_decay: 0.1,
                ..AdamW::default()
            };
            for step in 1..=3 {
                let grad: Vec<f32> = (0..20)
                    .map(|i| ((i * 13 + step * 5) % 23 - 11) as f32 / 16.0)
                    .collect();
                let state = (&mut first[..], &mut second[..]);
                adamw_on(isa, &options, step as u32, &mut param, (&grad, 1.0), state).unwrap();
            }
            let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&first), FIRST, "{isa:?}");
            assert_eq!(bits(&second), SECOND, "{isa:?}");
            assert_eq!(bits(&param), PARAM, "{isa:?}");
        }
    }

    #[test]
    fn clipping_scales_to_the_norm() {
        let (a, b) = ([3.0, 0.0], [0.0, 4.0]);
        let norm = global_norm(&[&a, &b]);
        assert!((norm - 5.0).abs() < 1e-12);
        assert!((clip_scale(norm, 10.0) - 1.0).abs() < 1e-9);
        assert!((clip_scale(norm, 1.0) - 0.2).abs() < 1e-6);
        let options = AdamW::default();
        let run = |grad: f32, scale: f32| {
            let (mut p, mut m, mut v) = ([1.0], [0.0], [0.0]);
            adamw(&options, 1, &mut p, &[grad], scale, &mut m, &mut v).unwrap();
            (p, m, v)
        };
        assert_eq!(run(4.0, 0.5), run(2.0, 1.0));
    }

    #[test]
    fn sizes_are_checked() {
        let wrong = adamw(
            &AdamW::default(),
            1,
            &mut [0.0; 2],
            &[0.0; 3],
            1.0,
            &mut [0.0; 2],
            &mut [0.0; 2],
        );
        assert!(wrong.is_err());
    }
}
