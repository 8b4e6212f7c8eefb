//! Normalizations over the last axes, and ONNX Runtime's fusions of them with the residual sum.

use super::{BuildCx, Cx, Entry, Ins, Kernel, MS, Outs, axis_of};
use crate::runtime::value::{Fault, Floats, KResult};
use crate::runtime::walk::{self, count};
use onnx_graft_kernels::norm::{LayerNorm, layer_norm};
use std::borrow::Cow;

struct Norm {
    axis: i64,
    eps: f32,
    centre: bool,
    wants: [bool; 2],
}

impl Kernel for Norm {
    /// `(x, scale, bias?) -> (y, mean?, inverse deviation?)`
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let scale = ins.dense(1, cx)?;
        let bias = ins.dense_opt(2, cx)?;
        let x = ins.floats(0)?;
        let (dims, dtype) = (x.dims().to_vec(), x.dtype());
        let axis = axis_of(self.axis, dims.len())?;
        let width = count(&dims[axis..])?;
        let mut v = cx.buffer(x)?;
        let mut outs: Outs = vec![None];
        if self.wants.contains(&true) {
            let mut kept = dims[..axis].to_vec();
            kept.resize(dims.len(), 1);
            let rows = count(&dims[..axis])?;
            let (mut mean, mut inv) = (cx.zeros(rows), cx.zeros(rows));
            self.apply(
                &mut v,
                width,
                &scale,
                bias.as_ref(),
                Some((&mut mean, &mut inv)),
            )?;
            // RMSNormalization has one output only; its statistics never get here.
            for stat in [mean, inv] {
                outs.push(Some(cx.floats(stat, &kept, dtype)?.into()));
            }
        } else {
            self.apply(&mut v, width, &scale, bias.as_ref(), None)?;
        }
        outs[0] = Some(cx.floats(v, &dims, dtype)?.into());
        Ok(outs)
    }
}

impl Norm {
    /// Normalizes rows in place; `stats` receives the mean and the reciprocal deviation of each.
    fn apply(
        &self,
        v: &mut [f32],
        width: usize,
        scale: &Floats,
        bias: Option<&Floats>,
        stats: Option<(&mut [f32], &mut [f32])>,
    ) -> KResult<()> {
        let fits = |f: &Floats| f.tensor().elem_count() == width || f.tensor().elem_count() == 1;
        if !fits(scale) || bias.is_some_and(|b| !fits(b)) {
            return Err(Fault(format!(
                "a scale of {:?} for rows of {width}",
                scale.dims()
            )));
        }
        if v.is_empty() {
            // Rows of no elements have no variance.
            if let Some((_, inv)) = stats {
                inv.fill(1.0 / self.eps.sqrt());
            }
            return Ok(());
        }
        let (scale, bias) = (scale.read(), bias.map(Floats::read));
        let weight = each_column(scale.slice()?, width);
        let bias = match &bias {
            Some(b) => Some(each_column(b.slice()?, width)),
            None => None,
        };
        let norm = LayerNorm {
            cols: width,
            weight: Some(&weight),
            bias: bias.as_deref(),
            eps: self.eps,
            center: self.centre,
        };
        Ok(layer_norm(v, &norm, stats)?)
    }
}

/// `BatchNormalization(x, scale, bias, mean, var)` with `fixed` statistics, `InstanceNormalization(x, scale, bias)` with those of each
/// plane: axis 1 has the channels.
struct Channels {
    eps: f32,
    fixed: bool,
}

impl Kernel for Channels {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let last = if self.fixed { 5 } else { 3 };
        let stats = (1..last)
            .map(|i| ins.dense(i, cx))
            .collect::<KResult<Vec<Floats>>>()?;
        let x = ins.dense(0, cx)?;
        let (dims, dtype) = (x.dims().to_vec(), x.dtype());
        let channels = dims.get(1).copied().unwrap_or(1);
        if stats.iter().any(|s| s.tensor().elem_count() != channels) {
            return Err(Fault(format!("statistics for an input of {dims:?}")));
        }
        let plane = count(dims.get(2..).unwrap_or_default())?;
        let reads: Vec<_> = stats.iter().map(Floats::read).collect();
        let own = reads
            .iter()
            .map(|r| r.slice())
            .collect::<KResult<Vec<_>>>()?;
        let mut v = cx.buffer(x)?;
        walk::rows(&mut v, plane, |p, row| {
            let c = p % channels;
            let (mean, var) = if self.fixed {
                (own[2][c], own[3][c])
            } else {
                let n = row.len() as f32;
                let mean = row.iter().sum::<f32>() / n;
                (
                    mean,
                    row.iter().map(|x| (x - mean).powi(2)).sum::<f32>() / n,
                )
            };
            let slope = own[0][c] / (var + self.eps).sqrt();
            row.iter_mut()
                .for_each(|x| *x = (*x - mean).mul_add(slope, own[1][c]));
        });
        cx.one(v, &dims, dtype)
    }
}

/// `BatchNormalization` with the statistics of the batch, and the running ones that it updates.
struct OfBatch {
    eps: f32,
    momentum: f32,
}

impl Kernel for OfBatch {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let types = [ins.need(3)?.dtype(), ins.need(4)?.dtype()];
        let given = (1..5)
            .map(|i| ins.dense(i, cx)?.to_vec())
            .collect::<KResult<Vec<Vec<f32>>>>()?;
        let x = ins.dense(0, cx)?;
        let (dims, dtype) = (x.dims().to_vec(), x.dtype());
        let channels = dims.get(1).copied().unwrap_or(1);
        if given.iter().any(|s| s.len() != channels) {
            return Err(Fault(format!("statistics for an input of {dims:?}")));
        }
        let plane = count(dims.get(2..).unwrap_or_default())?.max(1);
        let mut v = cx.buffer(x)?;
        let n = (v.len() / channels.max(1)).max(1) as f64;
        let of = |c: usize| v.chunks(plane).skip(c).step_by(channels).flatten();
        let means: Vec<f64> = (0..channels)
            .map(|c| of(c).map(|&x| f64::from(x)).sum::<f64>() / n)
            .collect();
        let vars: Vec<f64> = (0..channels)
            .map(|c| {
                of(c)
                    .map(|&x| (f64::from(x) - means[c]).powi(2))
                    .sum::<f64>()
                    / n
            })
            .collect();
        walk::rows(&mut v, plane, |p, row| {
            let c = p % channels;
            let slope = given[0][c] / (vars[c] as f32 + self.eps).sqrt();
            let mean = means[c] as f32;
            row.iter_mut()
                .for_each(|x| *x = (*x - mean).mul_add(slope, given[1][c]));
        });
        let running = |old: &[f32], new: &[f64]| -> Vec<f32> {
            let pairs = old.iter().zip(new);
            pairs
                .map(|(o, n)| o * self.momentum + *n as f32 * (1.0 - self.momentum))
                .collect()
        };
        let stats = [running(&given[2], &means), running(&given[3], &vars)];
        let mut outs = vec![Some(cx.floats(v, &dims, dtype)?.into())];
        for (s, ty) in stats.into_iter().zip(types) {
            outs.push(Some(cx.floats(s, &[channels], ty)?.into()));
        }
        Ok(outs)
    }
}

/// One value per column; a single one serves all.
fn each_column(values: &[f32], width: usize) -> Cow<'_, [f32]> {
    match *values {
        [value] if width != 1 => Cow::Owned(vec![value; width]),
        _ => Cow::Borrowed(values),
    }
}

/// `SkipLayerNormalization(x, skip, gamma, beta?, bias?)` and its root mean square form `(x, skip, gamma, bias?)`.
struct Skip {
    norm: Norm,
    /// Slot of the bias.
    bias: usize,
}

impl Kernel for Skip {
    /// Output 0 is the normalized sum, output 3 the sum itself.
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let gamma = ins.dense(2, cx)?;
        let beta = if self.norm.centre {
            ins.dense_opt(3, cx)?
        } else {
            None
        };
        let bias = ins.dense_opt(self.bias, cx)?;
        let skip = ins.floats(1)?;
        let x = ins.floats(0)?;
        let (dims, dtype) = (x.dims().to_vec(), x.dtype());
        if walk::broadcast(&[&dims, skip.dims()])? != dims {
            return Err(Fault(format!("{dims:?} and a skip of {:?}", skip.dims())));
        }
        let mut sum = cx.buffer(x)?;
        walk::zip_in_place(&dims, &mut sum, &skip.read().view()?, |a, b| a + b);
        if let Some(b) = &bias {
            if walk::broadcast(&[&dims, b.dims()])? != dims {
                return Err(Fault(format!("{dims:?} and a bias of {:?}", b.dims())));
            }
            walk::zip_in_place(&dims, &mut sum, &b.read().view()?, |a, b| a + b);
        }
        let width = dims.last().copied().unwrap_or(1);
        let mut outs: Outs = vec![None, None, None, None];
        if self.norm.wants[0] {
            let mut copy = cx.alloc(sum.len());
            copy.copy_from_slice(&sum);
            outs[3] = Some(cx.floats(copy, &dims, dtype)?.into());
        }
        self.norm
            .apply(&mut sum, width, &gamma, beta.as_ref(), None)?;
        outs[0] = Some(cx.floats(sum, &dims, dtype)?.into());
        Ok(outs)
    }
}

fn norm(cx: &BuildCx<'_>, centre: bool) -> Box<dyn Kernel> {
    Box::new(Norm {
        axis: cx.int("axis", -1),
        eps: cx.float("epsilon", 1e-5),
        centre,
        wants: [cx.wants(1), cx.wants(2)],
    })
}

/// The same over the last axis, for the operator that the native pipeline puts in its place.
pub(super) fn layer_norm_of_last(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    Ok(norm(cx, true))
}

fn skip(cx: &BuildCx<'_>, centre: bool) -> KResult<Box<dyn Kernel>> {
    if cx.wants(1) || cx.wants(2) {
        return Err("the statistics (outputs 1 and 2) are not computed".into());
    }
    Ok(Box::new(Skip {
        norm: Norm {
            axis: -1,
            eps: cx.float("epsilon", 1e-12),
            centre,
            wants: [cx.wants(3), false],
        },
        bias: if centre { 4 } else { 3 },
    }))
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "BatchNormalization", |cx| {
        if cx.flag("training_mode") {
            return Ok(Box::new(OfBatch {
                eps: cx.float("epsilon", 1e-5),
                momentum: cx.float("momentum", 0.9),
            }));
        }
        Ok(Box::new(Channels {
            eps: cx.float("epsilon", 1e-5),
            fixed: true,
        }))
    }),
    ("", "InstanceNormalization", |cx| {
        Ok(Box::new(Channels {
            eps: cx.float("epsilon", 1e-5),
            fixed: false,
        }))
    }),
    ("", "LayerNormalization", |cx| Ok(norm(cx, true))),
    ("", "RMSNormalization", |cx| Ok(norm(cx, false))),
    ("", "SimplifiedLayerNormalization", |cx| Ok(norm(cx, false))),
    (MS, "SimplifiedLayerNormalization", |cx| Ok(norm(cx, false))),
    (MS, "SkipLayerNormalization", |cx| skip(cx, true)),
    (MS, "SkipSimplifiedLayerNormalization", |cx| skip(cx, false)),
];
