//! `onnx_graft::ResizeMatrix`: the weights by which `Resize` sums the places of one axis, as `onnx.reference` has them.

use super::{BuildCx, Cx, Entry, Ins, Kernel, OWN, Outs, axis_of, size_of};
use crate::ir::{AttrValue, DType};
use crate::runtime::value::{Fault, Host, KResult, Value};
use crate::runtime::walk::count;

#[derive(Clone, Copy)]
enum Mode {
    Nearest,
    Linear,
    Cubic(f64),
}

struct ResizeMatrix {
    axis: usize,
    axes: Option<Vec<i64>>,
    mode: Mode,
    nearest: String,
    transform: String,
    policy: String,
    exclude: bool,
    antialias: bool,
    scales: Option<Vec<f32>>,
}

/// What is asked of the axis.
struct Asked {
    scale: f64,
    out: usize,
    roi: (f64, f64),
}

impl ResizeMatrix {
    fn asked(&self, shape: &[i64], ins: &Ins) -> KResult<Asked> {
        let rank = shape.len();
        let axes = match &self.axes {
            Some(axes) => axes
                .iter()
                .map(|&a| axis_of(a, rank))
                .collect::<KResult<_>>()?,
            None => (0..rank).collect::<Vec<usize>>(),
        };
        let at = axes
            .iter()
            .position(|&a| a == self.axis)
            .ok_or("an axis that is not resized")?;
        let size = shape[self.axis];
        let floats = |slot: usize| ins.get(slot).map(Value::to_f32).transpose();
        let roi = match floats(1)? {
            Some(roi) if roi.len() == 2 * axes.len() => {
                (f64::from(roi[at]), f64::from(roi[at + axes.len()]))
            }
            _ => (0.0, 1.0),
        };
        let scales = match &self.scales {
            Some(s) => Some(s.clone()),
            None => floats(2)?,
        };
        if let Some(scales) = scales.filter(|s| !s.is_empty()) {
            let scale = f64::from(*scales.get(at).ok_or("fewer scales than axes")?);
            if !(scale > 0.0 && scale.is_finite()) {
                return Err(Fault(format!("a scale of {scale}")));
            }
            let out = size_of((scale * size as f64) as i64)?;
            return Ok(Asked { scale, out, roi });
        }
        let sizes = ins.ints_opt(3)?.ok_or("neither scales nor sizes")?;
        let want = *sizes.get(at).ok_or("fewer sizes than axes")?;
        let ratio = |i: usize| sizes.get(i).map(|&s| s as f64 / shape[axes[i]] as f64);
        let each = (0..axes.len()).filter_map(ratio);
        let one = match &*self.policy {
            "stretch" => None,
            "not_larger" => Some(each.fold(f64::INFINITY, f64::min)),
            "not_smaller" => Some(each.fold(0.0, f64::max)),
            other => return Err(Fault(format!("keep_aspect_ratio_policy = \"{other}\""))),
        };
        let (scale, out) = match one {
            None => (want as f64 / size as f64, want),
            Some(scale) => (scale, (scale * size as f64 + 0.5) as i64),
        };
        Ok(Asked {
            scale,
            out: size_of(out)?,
            roi,
        })
    }

    /// Where an output lies among the inputs.
    fn origin(&self, y: f64, size: f64, asked: &Asked) -> KResult<f64> {
        let Asked { scale, out, roi } = asked;
        let width = scale * size;
        Ok(match &*self.transform {
            "align_corners" if width == 1.0 => 0.0,
            "align_corners" => y * (size - 1.0) / (width - 1.0),
            "asymmetric" => y / scale,
            "tf_crop_and_resize" => {
                let first = roi.0 * (size - 1.0);
                first
                    + if width == 1.0 {
                        (roi.1 - roi.0) * (size - 1.0) / 2.0
                    } else {
                        y * (roi.1 - roi.0) * (size - 1.0) / (width - 1.0)
                    }
            }
            "pytorch_half_pixel" if width == 1.0 => -0.5,
            "pytorch_half_pixel" | "half_pixel" => (y + 0.5) / scale - 0.5,
            "half_pixel_symmetric" => {
                let offset = size / 2.0 * (1.0 - *out as f64 / width);
                offset + (y + 0.5) / scale - 0.5
            }
            other => {
                return Err(Fault(format!(
                    "coordinate_transformation_mode = \"{other}\""
                )));
            }
        })
    }

    /// Weights of the neighbours of a place that lies `ratio` behind the one on its left, in (0, 1].
    fn weights(&self, ratio: f64, scale: f64) -> KResult<Vec<f64>> {
        let narrow = scale.min(1.0);
        let normal = |v: Vec<f64>| {
            let sum: f64 = v.iter().sum();
            v.into_iter().map(|x| x / sum).collect::<Vec<f64>>()
        };
        Ok(match self.mode {
            Mode::Nearest if ratio == 1.0 => vec![0.0, 1.0],
            Mode::Nearest => {
                let right = match &*self.nearest {
                    "round_prefer_floor" => ratio > 0.5,
                    "round_prefer_ceil" => ratio >= 0.5,
                    "floor" => false,
                    "ceil" => true,
                    other => return Err(Fault(format!("nearest_mode = \"{other}\""))),
                };
                if right {
                    vec![0.0, 1.0]
                } else {
                    vec![1.0, 0.0]
                }
            }
            Mode::Linear if self.antialias => {
                let start = (-1.0 / narrow).floor() + 1.0;
                let n = 2.0 - 2.0 * start;
                let at =
                    |i: usize| (1.0 - ((start + i as f64 - ratio) * narrow).abs()).clamp(0.0, 1.0);
                normal((0..n as usize).map(at).collect())
            }
            Mode::Linear => vec![1.0 - ratio, ratio],
            Mode::Cubic(a) => {
                let curve = |x: f64| {
                    let x = x.abs();
                    if x <= 1.0 {
                        ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
                    } else if x < 2.0 {
                        ((x - 5.0) * x + 8.0) * x * a - 4.0 * a
                    } else {
                        0.0
                    }
                };
                if self.antialias {
                    let start = (-2.0 / narrow).floor() + 1.0;
                    let n = 2.0 - 2.0 * start;
                    normal(
                        (0..n as usize)
                            .map(|i| curve(narrow * (start + i as f64 - ratio)))
                            .collect(),
                    )
                } else {
                    (0..4).map(|i| curve(f64::from(i) - 1.0 - ratio)).collect()
                }
            }
        })
    }
}

impl Kernel for ResizeMatrix {
    fn run(&self, cx: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let shape = ins.ints(0)?;
        let asked = self.asked(&shape, &ins)?;
        let (out, size) = (asked.out, size_of(shape[self.axis])?);
        let mut matrix = cx.zeros(count(&[out, size])?);
        let mut outside = vec![0u8; out];
        for o in 0..if size == 0 { 0 } else { out } {
            let x = self.origin(o as f64, size as f64, &asked)?;
            if self.transform == "tf_crop_and_resize" && (x < 0.0 || x > size as f64 - 1.0) {
                outside[o] = 1;
                continue;
            }
            let left = x.ceil() - 1.0;
            let mut weights = self.weights(x - left, asked.scale)?;
            let first = left as i64 - weights.len() as i64 / 2 + 1;
            let places = first..first + weights.len() as i64;
            if self.exclude {
                let inside = |i: i64| (0..size as i64).contains(&i);
                for (w, i) in weights.iter_mut().zip(places.clone()) {
                    *w = if inside(i) { *w } else { 0.0 };
                }
                let sum: f64 = weights.iter().sum();
                let sum = if sum == 0.0 { 1.0 } else { sum };
                weights.iter_mut().for_each(|w| *w /= sum);
            }
            for (w, i) in weights.iter().zip(places) {
                matrix[o * size + i.clamp(0, size as i64 - 1) as usize] += *w as f32;
            }
        }
        let matrix = cx.floats(matrix, &[out, size], DType::Float)?;
        let matrix = super::cast::on_device(cx, matrix)?;
        let outside = Host::from_bools(vec![out], outside)?;
        Ok(vec![Some(matrix.into()), Some(outside.into())])
    }
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let text = |name: &str, default: &str| cx.node.str(name).unwrap_or(default).to_owned();
    Ok(Box::new(ResizeMatrix {
        axis: size_of(cx.need_int("axis")?)?,
        axes: cx.ints("axes"),
        mode: match cx.node.str("mode").unwrap_or("nearest") {
            "nearest" => Mode::Nearest,
            "linear" => Mode::Linear,
            "cubic" => Mode::Cubic(f64::from(cx.float("cubic_coeff_a", -0.75))),
            other => return Err(Fault(format!("mode = \"{other}\""))),
        },
        nearest: text("nearest_mode", "round_prefer_floor"),
        transform: text("coordinate_transformation_mode", "half_pixel"),
        policy: text("keep_aspect_ratio_policy", "stretch"),
        exclude: cx.flag("exclude_outside"),
        antialias: cx.flag("antialias"),
        scales: cx
            .node
            .attr("scales")
            .and_then(AttrValue::as_floats)
            .map(<[f32]>::to_vec),
    }))
}

pub(super) const KERNELS: &[Entry] = &[(OWN, "ResizeMatrix", make)];
