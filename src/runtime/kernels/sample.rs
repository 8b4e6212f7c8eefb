//! Values at places between others: `GridSample`, `RoiAlign`, `DeformConv`; and `Col2Im`, which adds columns up where they came from.

use super::conv::{Axis, Frame};
use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, size_of};
use crate::runtime::value::{Fault, KResult};
use crate::runtime::walk::{self, count, row_major};

#[derive(Clone, Copy, PartialEq)]
enum Mode {
    Nearest,
    Linear,
    Cubic,
}

#[derive(Clone, Copy, PartialEq)]
enum Padding {
    Zeros,
    Border,
    Reflection,
}

/// A neighbour along an axis, if it is there, and its weight.
type Tap = (Option<usize>, f32);

/// Back and forth between two borders.
fn reflect(x: f64, low: f64, high: f64) -> f64 {
    let range = high - low;
    let over = if x < low {
        low - x
    } else if x > high {
        x - high
    } else {
        return x;
    };
    if range <= 0.0 {
        return low;
    }
    let turns = (over / range).floor();
    let rest = over - turns * range;
    let even = turns % 2.0 == 0.0;
    if (x < low) == even {
        low + rest
    } else {
        high - rest
    }
}

fn cubic(x: f64) -> f64 {
    const A: f64 = -0.75;
    let x = x.abs();
    if x <= 1.0 {
        ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0
    } else if x < 2.0 {
        ((x - 5.0) * x + 8.0) * x * A - 4.0 * A
    } else {
        0.0
    }
}

struct GridSample {
    mode: Mode,
    padding: Padding,
    corners: bool,
}

impl GridSample {
    /// The neighbours of a place between -1 and 1 along an axis of `size`.
    fn taps(&self, place: f32, size: usize) -> Vec<Tap> {
        let (place, length) = (f64::from(place), size as f64);
        let x = if self.corners {
            f64::midpoint(place, 1.0) * (length - 1.0)
        } else {
            ((place + 1.0) * length - 1.0) / 2.0
        };
        let mut x = f64::from(x as f32);
        if self.mode == Mode::Nearest {
            x = x.round_ties_even();
        }
        let (low, high) = if self.corners {
            (0.0, length - 1.0)
        } else {
            (-0.5, length - 0.5)
        };
        if x < low || x > high {
            x = match self.padding {
                Padding::Zeros => x,
                Padding::Border => x.clamp(0.0, length - 1.0),
                Padding::Reflection => reflect(x, low, high),
            };
        }
        let pixel = |i: i64| -> Option<usize> {
            let inside = usize::try_from(i).ok().filter(|&i| i < size);
            match self.padding {
                Padding::Zeros => inside,
                Padding::Border => Some(i.clamp(0, size as i64 - 1) as usize),
                Padding::Reflection => {
                    let i = reflect(i as f64, low, high) as i64;
                    Some(i.clamp(0, size as i64 - 1) as usize)
                }
            }
        };
        let left = x.floor();
        let (first, n) = match self.mode {
            Mode::Nearest => return vec![(pixel(x as i64), 1.0)],
            Mode::Linear => (left as i64, 2),
            Mode::Cubic => (left as i64 - 1, 4),
        };
        (first..first + n)
            .map(|i| {
                let far = x - i as f64;
                let weight = if self.mode == Mode::Linear {
                    1.0 - far.abs()
                } else {
                    cubic(far)
                };
                (pixel(i), weight as f32)
            })
            .collect()
    }
}

/// The weighted sum over the neighbours of all axes.
fn gathered(plane: &[f32], steps: &[usize], taps: &[Vec<Tap>]) -> f32 {
    let Some((first, rest)) = taps.split_first() else {
        return plane.first().copied().unwrap_or(0.0);
    };
    first
        .iter()
        .filter_map(|(i, w)| Some(w * gathered(&plane[(*i)? * steps[0]..], &steps[1..], rest)))
        .sum()
}

impl Kernel for GridSample {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (grid, x) = (ins.dense(1, cx)?, ins.dense(0, cx)?);
        let (dx, dg) = (x.dims().to_vec(), grid.dims().to_vec());
        let rank = dx.len().saturating_sub(2);
        if rank == 0 || dg.len() != rank + 2 || dg[0] != dx[0] || dg[rank + 1] != rank {
            return Err(Fault(format!("an input of {dx:?} and a grid of {dg:?}")));
        }
        let mut dims = dx[..2].to_vec();
        dims.extend_from_slice(&dg[1..=rank]);
        let (plane, area) = (count(&dx[2..])?, count(&dg[1..=rank])?);
        let steps = row_major(&dx[2..]);
        let (rx, rg) = (x.read(), grid.read());
        let (src, at) = (rx.slice()?, rg.slice()?);
        let mut out = cx.alloc(count(&dims)?);
        if plane == 0 {
            out.fill(0.0);
        } else {
            walk::rows(&mut out, area, |p, row| {
                let b = p / dx[1];
                for (i, o) in row.iter_mut().enumerate() {
                    let place = &at[(b * area + i) * rank..][..rank];
                    let taps: Vec<Vec<Tap>> = (0..rank)
                        .map(|a| self.taps(place[rank - 1 - a], dx[2 + a]))
                        .collect();
                    *o = gathered(&src[p * plane..(p + 1) * plane], &steps, &taps);
                }
            });
        }
        cx.one(out, &dims, x.dtype())
    }
}

fn grid_sample(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(GridSample {
        mode: match cx.node.str("mode").unwrap_or("linear") {
            "nearest" => Mode::Nearest,
            "linear" | "bilinear" => Mode::Linear,
            "cubic" | "bicubic" => Mode::Cubic,
            other => return Err(Fault(format!("mode = \"{other}\""))),
        },
        padding: match cx.node.str("padding_mode").unwrap_or("zeros") {
            "zeros" => Padding::Zeros,
            "border" => Padding::Border,
            "reflection" => Padding::Reflection,
            other => return Err(Fault(format!("padding_mode = \"{other}\""))),
        },
        corners: cx.flag("align_corners"),
    }))
}

/// The four neighbours of a place of a plane, with their weights; those of a place outside weigh nothing.
fn corners(y: f32, x: f32, h: usize, w: usize) -> [(usize, f32); 4] {
    if y < -1.0 || y > h as f32 || x < -1.0 || x > w as f32 {
        return [(0, 0.0); 4];
    }
    let split = |v: f32, size: usize| {
        let v = v.max(0.0);
        let low = v as usize;
        if low + 1 >= size {
            (size - 1, size - 1, 0.0)
        } else {
            (low, low + 1, v - low as f32)
        }
    };
    let ((y0, y1, ly), (x0, x1, lx)) = (split(y, h), split(x, w));
    [
        (y0 * w + x0, (1.0 - ly) * (1.0 - lx)),
        (y0 * w + x1, (1.0 - ly) * lx),
        (y1 * w + x0, ly * (1.0 - lx)),
        (y1 * w + x1, ly * lx),
    ]
}

/// `RoiAlign(x, rois, batch of each)`.
struct RoiAlign {
    half_pixel: bool,
    most: bool,
    size: [usize; 2],
    samples: usize,
    scale: f32,
}

impl Kernel for RoiAlign {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let batches = ins.ints(2)?;
        let (rois, x) = (ins.dense(1, cx)?, ins.dense(0, cx)?);
        let ([n, c, h, w], [k, 4]) = (x.dims(), rois.dims()) else {
            return Err(Fault(format!(
                "an input of {:?}, regions of {:?}",
                x.dims(),
                rois.dims()
            )));
        };
        let (n, c, h, w, k) = (*n, *c, *h, *w, *k);
        if batches.len() != k || h == 0 || w == 0 {
            return Err(Fault(format!("{} batches for {k} regions", batches.len())));
        }
        let of = batches
            .iter()
            .map(|&b| super::gather::index_of(b, n))
            .collect::<KResult<Vec<usize>>>()?;
        let [rows, cols] = self.size;
        let (rx, rr) = (x.read(), rois.read());
        let (src, regions) = (rx.slice()?, rr.slice()?);
        let mut out = cx.alloc(count(&[k, c, rows, cols])?);
        walk::rows(&mut out, rows * cols, |p, plane| {
            let (roi, channel) = (p / c, p % c);
            let offset = if self.half_pixel { 0.5 } else { 0.0 };
            let edge = |i: usize| regions[roi * 4 + i] * self.scale - offset;
            let (x0, y0, x1, y1) = (edge(0), edge(1), edge(2), edge(3));
            let least = if self.half_pixel { f32::MIN } else { 1.0 };
            let (bin_h, bin_w) = (
                (y1 - y0).max(least) / rows as f32,
                (x1 - x0).max(least) / cols as f32,
            );
            let samples = |bin: f32| {
                if self.samples > 0 {
                    self.samples
                } else {
                    bin.ceil().max(0.0) as usize
                }
            };
            let (sh, sw) = (samples(bin_h), samples(bin_w));
            let from = &src[(of[roi] * c + channel) * h * w..][..h * w];
            for (i, o) in plane.iter_mut().enumerate() {
                let (r, q) = ((i / cols) as f32, (i % cols) as f32);
                let (mut sum, mut most) = (0.0f32, None::<f32>);
                for iy in 0..sh {
                    for ix in 0..sw {
                        let y = y0 + r * bin_h + (iy as f32 + 0.5) * bin_h / sh as f32;
                        let x = x0 + q * bin_w + (ix as f32 + 0.5) * bin_w / sw as f32;
                        for (at, weight) in corners(y, x, h, w) {
                            let v = weight * from[at];
                            sum += v;
                            most = Some(most.map_or(v, |m| m.max(v)));
                        }
                    }
                }
                *o = if self.most {
                    most.unwrap_or(0.0)
                } else {
                    sum / (sh * sw).max(1) as f32
                };
            }
        });
        cx.one(out, &[k, c, rows, cols], x.dtype())
    }
}

fn roi_align(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let default = if cx.opset < 16 {
        "output_half_pixel"
    } else {
        "half_pixel"
    };
    Ok(Box::new(RoiAlign {
        half_pixel: match cx
            .node
            .str("coordinate_transformation_mode")
            .unwrap_or(default)
        {
            "half_pixel" => true,
            "output_half_pixel" => false,
            other => {
                return Err(Fault(format!(
                    "coordinate_transformation_mode = \"{other}\""
                )));
            }
        },
        most: match cx.node.str("mode").unwrap_or("avg") {
            "avg" => false,
            "max" => true,
            other => return Err(Fault(format!("mode = \"{other}\""))),
        },
        size: [
            size_of(cx.int("output_height", 1))?,
            size_of(cx.int("output_width", 1))?,
        ],
        samples: size_of(cx.int("sampling_ratio", 0))?,
        scale: cx.float("spatial_scale", 1.0),
    }))
}

/// `DeformConv(x, w, offset, bias?, mask?)` in two dimensions: each tap reads `offset` away from its place.
struct DeformConv {
    frame: Frame,
    group: usize,
    offsets: usize,
}

impl Kernel for DeformConv {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let (bias, mask) = (ins.dense_opt(3, cx)?, ins.dense_opt(4, cx)?);
        let (offset, weight, x) = (ins.dense(2, cx)?, ins.dense(1, cx)?, ins.dense(0, cx)?);
        let ([n, c, h, w], [filters, per, kh, kw]) = (x.dims(), weight.dims()) else {
            return Err(Fault(format!(
                "an input of {:?}, expected two axes of places",
                x.dims()
            )));
        };
        let (n, c, h, w, filters, per, kh, kw) = (*n, *c, *h, *w, *filters, *per, *kh, *kw);
        let axes: [Axis; 2] = [self.frame.axis(0, 2, h, kh)?, self.frame.axis(1, 2, w, kw)?];
        let (rows, cols, taps) = (axes[0].out, axes[1].out, kh * kw);
        let fits = per * self.group == c
            && filters.is_multiple_of(self.group)
            && c.is_multiple_of(self.offsets)
            && offset.dims() == [n, self.offsets * taps * 2, rows, cols]
            && mask
                .as_ref()
                .is_none_or(|m| m.dims() == [n, self.offsets * taps, rows, cols])
            && bias.as_ref().is_none_or(|b| b.dims() == [filters]);
        if !fits {
            return Err(Fault(format!(
                "an input of {:?}, a kernel of {:?} and offsets of {:?}",
                x.dims(),
                weight.dims(),
                offset.dims()
            )));
        }
        let area = rows * cols;
        let mask = mask.map(|m| m.to_vec()).transpose()?;
        let bias = bias.map(|b| b.to_vec()).transpose()?;
        let (xs, ws, os) = (x.to_vec()?, weight.to_vec()?, offset.to_vec()?);
        let mut out = cx.alloc(count(&[n, filters, rows, cols])?);
        walk::rows(&mut out, area, |p, plane| {
            let (b, f) = (p / filters, p % filters);
            let first = f / (filters / self.group) * per;
            for (i, o) in plane.iter_mut().enumerate() {
                let mut sum = bias.as_ref().map_or(0.0, |b| b[f]);
                for t in 0..taps {
                    let place = |a: usize, o: usize, k: usize| {
                        let axis = axes[a];
                        (o * axis.stride + k * axis.dilation) as f32 - axis.before as f32
                    };
                    let (y0, x0) = (place(0, i / cols, t / kw), place(1, i % cols, t % kw));
                    for q in 0..per {
                        let channel = first + q;
                        let group = channel / (c / self.offsets);
                        let at = (b * self.offsets + group) * taps + t;
                        let (dy, dx) = (os[at * 2 * area + i], os[(at * 2 + 1) * area + i]);
                        let m = mask.as_ref().map_or(1.0, |m| m[at * area + i]);
                        let from = &xs[(b * c + channel) * h * w..][..h * w];
                        let (y, x) = (y0 + dy, x0 + dx);
                        let value = bilinear(from, [y, x], [h, w]);
                        sum += m * value * ws[(f * per + q) * taps + t];
                    }
                }
                *o = sum;
            }
        });
        cx.one(out, &[n, filters, rows, cols], x.dtype())
    }
}

/// The value at a place counted in pixels; nothing outside.
fn bilinear(plane: &[f32], at: [f32; 2], size: [usize; 2]) -> f32 {
    let axis = |v: f32, n: usize| -> [Tap; 2] {
        let left = v.floor();
        let inside = |i: f32| (i >= 0.0 && i < n as f32).then_some(i as usize);
        [
            (inside(left), 1.0 - (v - left)),
            (inside(left + 1.0), v - left),
        ]
    };
    let mut sum = 0.0;
    for (y, wy) in axis(at[0], size[0]) {
        for (x, wx) in axis(at[1], size[1]) {
            if let (Some(y), Some(x)) = (y, x) {
                sum += wy * wx * plane[y * size[1] + x];
            }
        }
    }
    sum
}

/// `Col2Im(columns, image, block)`.
struct Columns(Frame);

impl Kernel for Columns {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let sizes = |v: Vec<i64>| v.into_iter().map(size_of).collect::<KResult<Vec<usize>>>();
        let (image, block) = (sizes(ins.ints(1)?)?, sizes(ins.ints(2)?)?);
        let x = ins.dense(0, cx)?;
        let [n, rows, area] = *x.dims() else {
            return Err(Fault(format!("columns of {:?}", x.dims())));
        };
        let rank = image.len();
        if block.len() != rank {
            return Err(Fault(format!("a block of {block:?} in {image:?}")));
        }
        let axes = (0..rank)
            .map(|i| self.0.axis(i, rank, image[i], block[i]))
            .collect::<KResult<Vec<Axis>>>()?;
        let (taps, plane) = (count(&block)?, count(&image)?);
        let outs: Vec<usize> = axes.iter().map(|a| a.out).collect();
        if taps == 0 || rows % taps != 0 || count(&outs)? != area {
            return Err(Fault(format!(
                "columns of {:?} for a block of {block:?} in {image:?}",
                x.dims()
            )));
        }
        let channels = rows / taps;
        let read = x.read();
        let src = read.slice()?;
        let mut dims = vec![n, channels];
        dims.extend_from_slice(&image);
        let mut out = cx.zeros(count(&dims)?);
        walk::rows(&mut out, plane, |p, o| {
            for t in 0..taps {
                for i in 0..area {
                    let (mut tap, mut at, mut flat, mut step) = (t, i, Some(0), 1);
                    for axis in axes.iter().rev() {
                        let place = axis.at(at % axis.out, tap % axis.kernel);
                        flat = flat.zip(place).map(|(f, p)| f + p * step);
                        step *= axis.size;
                        at /= axis.out;
                        tap /= axis.kernel;
                    }
                    if let Some(flat) = flat {
                        o[flat] += src[(p * taps + t) * area + i];
                    }
                }
            }
        });
        cx.one(out, &dims, x.dtype())
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "GridSample", grid_sample),
    ("", "RoiAlign", roi_align),
    ("", "DeformConv", |cx| {
        let (group, offsets) = (
            size_of(cx.int("group", 1))?,
            size_of(cx.int("offset_group", 1))?,
        );
        if group == 0 || offsets == 0 {
            return Err("no groups".into());
        }
        Ok(Box::new(DeformConv {
            frame: Frame::read(cx)?,
            group,
            offsets,
        }))
    }),
    ("", "Col2Im", |cx| Ok(Box::new(Columns(Frame::read(cx)?)))),
];
