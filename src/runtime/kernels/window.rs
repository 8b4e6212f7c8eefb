//! Pooling over one to three spatial axes, and `ConvTranspose`: what a window reads, and what it writes.

use super::conv::{Auto, Axis, Frame};
use super::matmul::{Mat, multiply};
use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, size_of};
use crate::ir::DType;
use crate::runtime::value::{Data, Fault, Host, KResult};
use crate::runtime::walk::{self, count};

enum Of {
    /// The mean; `pads`: with the zeros of the padding.
    Mean { pads: bool },
    /// The largest; `column`: indices count the axes from the front.
    Most { column: bool },
}

struct Pool {
    frame: Frame,
    kernel: Vec<i64>,
    ceil: bool,
    of: Of,
}

/// Sizes of the spatial axes.
fn space(dims: &[usize]) -> KResult<&[usize]> {
    match dims {
        [_, _, space @ ..] if (1..=3).contains(&space.len()) => Ok(space),
        _ => Err(Fault(format!(
            "an input of {dims:?}, expected one to three axes behind batch and channels"
        ))),
    }
}

/// The multi-index of a place in row-major order.
fn place(
    mut i: usize,
    dims: impl DoubleEndedIterator<Item = usize> + ExactSizeIterator,
) -> Vec<usize> {
    let mut out = vec![0; dims.len()];
    for (slot, d) in out.iter_mut().zip(dims).rev() {
        (*slot, i) = (i % d, i / d);
    }
    out
}

impl Pool {
    /// An axis, which begins one more window in the rest of the input where sizes are rounded up.
    fn axis(&self, i: usize, size: usize) -> KResult<Axis> {
        let rank = self.kernel.len();
        let mut axis = self.frame.axis(i, rank, size, size_of(self.kernel[i])?)?;
        let reach = (axis.dilation * (axis.kernel - 1) + 1) as i64;
        let room = size as i64 + axis.before + axis.after - reach;
        let own = matches!(self.frame.auto, Auto::NotSet | Auto::Valid);
        if self.ceil && own && room >= 0 {
            let out = (room as usize).div_ceil(axis.stride) + 1;
            let last = ((out - 1) * axis.stride) as i64;
            axis.out = if last >= size as i64 + axis.before {
                out - 1
            } else {
                out
            };
        }
        Ok(axis)
    }

    /// How many elements a window is divided by along an axis: those of the input, or of the padded input.
    fn divisor(axis: Axis, o: usize, pads: bool) -> usize {
        let (low, high) = if pads {
            (-axis.before, axis.size as i64 + axis.after)
        } else {
            (0, axis.size as i64)
        };
        let at = |k: usize| (o * axis.stride + k * axis.dilation) as i64 - axis.before;
        (0..axis.kernel)
            .filter(|&k| (low..high).contains(&at(k)))
            .count()
    }
}

impl Kernel for Pool {
    /// `x -> (y, indices?)`
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let codes = ins.need(0)?.dtype();
        if matches!(codes, DType::Int8 | DType::Uint8) {
            // Numbers of eight bits are floats, and come back as they were.
            let x = super::cast::cast(cx, super::plain(ins.take(0)?)?, DType::Float)?;
            let mut outs = self.run(cx, Ins(vec![Some(x)]))?;
            if let Some(Some(y)) = outs.first_mut() {
                *y = super::cast::cast(cx, y.clone(), codes)?;
            }
            return Ok(outs);
        }
        let x = ins.dense(0, cx)?;
        let dims = x.dims().to_vec();
        let sizes = space(&dims)?;
        if sizes.len() != self.kernel.len() {
            return Err(Fault(format!(
                "an input of {dims:?} and a window of {:?}",
                self.kernel
            )));
        }
        let axes: Vec<Axis> = (0..sizes.len())
            .map(|i| self.axis(i, sizes[i]))
            .collect::<KResult<_>>()?;
        let mut shape = dims[..2].to_vec();
        shape.extend(axes.iter().map(|a| a.out));
        let (plane, area) = (count(sizes)?, count(&shape[2..])?);
        let taps = count(&axes.iter().map(|a| a.kernel).collect::<Vec<_>>())?;
        let read = x.read();
        let src = read.slice()?;
        // Places of the input that each window reads, the same for all planes.
        let windows: Vec<(Vec<usize>, usize)> = (0..area)
            .map(|o| {
                let at = place(o, axes.iter().map(|a| a.out));
                let reads = (0..taps).filter_map(|k| {
                    let tap = place(k, axes.iter().map(|a| a.kernel));
                    let mut flat = 0;
                    for ((axis, o), k) in axes.iter().zip(&at).zip(tap) {
                        flat = flat * axis.size + axis.at(*o, k)?;
                    }
                    Some(flat)
                });
                let by = axes.iter().zip(&at).map(|(a, o)| match self.of {
                    Of::Mean { pads } => Pool::divisor(*a, *o, pads),
                    Of::Most { .. } => 1,
                });
                (reads.collect(), by.product())
            })
            .collect();
        let mut out = cx.zeros(count(&shape)?);
        let most = matches!(self.of, Of::Most { .. });
        let largest = |from: &[f32], reads: &[usize]| {
            let better = |best: Option<usize>, i: usize| match best {
                Some(b) if !(from[i] > from[b] || from[i].is_nan()) => Some(b),
                _ => Some(i),
            };
            reads.iter().copied().fold(None, better)
        };
        walk::rows(&mut out, area, |p, row| {
            let from = &src[p * plane..(p + 1) * plane];
            for (y, (reads, by)) in row.iter_mut().zip(&windows) {
                *y = if most {
                    largest(from, reads).map_or(f32::NEG_INFINITY, |i| from[i])
                } else {
                    reads.iter().map(|i| from[*i]).sum::<f32>() / *by as f32
                };
            }
        });
        let mut outs = cx.one(out, &shape, x.dtype())?;
        if let Of::Most { column } = self.of {
            let mut indices = vec![0i64; count(&shape)?];
            walk::rows(&mut indices, area, |p, row| {
                let from = &src[p * plane..(p + 1) * plane];
                for (y, (reads, _)) in row.iter_mut().zip(&windows) {
                    let found = largest(from, reads).unwrap_or(0);
                    let at = if column {
                        let at = place(found, sizes.iter().copied());
                        at.iter().zip(sizes).rev().fold(0, |n, (i, d)| n * d + i)
                    } else {
                        found
                    };
                    *y = (p * plane + at) as i64;
                }
            });
            outs.push(Some(
                Host::new(DType::Int64, shape, Data::I64(indices))?.into(),
            ));
        }
        Ok(outs)
    }
}

/// The mean or the largest of each plane.
struct Global {
    most: bool,
}

impl Kernel for Global {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let x = ins.dense(0, cx)?;
        let [batch, channels, space @ ..] = x.dims() else {
            return Err(Fault(format!("an input of {:?}", x.dims())));
        };
        let mut shape = vec![*batch, *channels];
        shape.resize(x.dims().len(), 1);
        let plane = count(space)?;
        let read = x.read();
        let src = read.slice()?;
        let mut out = cx.alloc(batch * channels);
        walk::rows(&mut out, 1, |p, y| {
            let from = &src[p * plane..(p + 1) * plane];
            y[0] = if self.most {
                from.iter().copied().fold(f32::NEG_INFINITY, |a, b| {
                    if b > a || b.is_nan() { b } else { a }
                })
            } else {
                from.iter().sum::<f32>() / plane as f32
            };
        });
        cx.one(out, &shape, x.dtype())
    }
}

struct Transposed {
    frame: Frame,
    group: i64,
    extra: Option<Vec<i64>>,
    shape: Option<Vec<i64>>,
}

impl Transposed {
    /// The axis of the convolution whose adjoint this is: `out` are the places of the input, `size` those of the result.
    fn axis(&self, i: usize, rank: usize, places: usize, kernel: usize) -> KResult<Axis> {
        // What the frame says of pads and steps does not depend on the size where nothing is to be made the same.
        let own = self.frame.axis(i, rank, places, kernel)?;
        let reach = (own.dilation * (kernel - 1) + 1) as i64;
        let extra = self
            .extra
            .as_ref()
            .and_then(|e| e.get(i))
            .copied()
            .unwrap_or(0);
        let full = (own.stride * places.saturating_sub(1)) as i64 + extra + reach;
        let same = matches!(self.frame.auto, Auto::SameUpper | Auto::SameLower);
        let named = self
            .shape
            .as_ref()
            .and_then(|s| s.get(s.len().checked_sub(rank)? + i).copied());
        let (size, before) = match named.or(same.then_some((places * own.stride) as i64)) {
            Some(size) => {
                let total = (full - size).max(0);
                let less = total / 2;
                let upper = self.frame.auto == Auto::SameUpper;
                (size, if upper { less } else { total - less })
            }
            None => (full - own.before - own.after, own.before),
        };
        Ok(Axis {
            size: size_of(size)?,
            out: places,
            before,
            ..own
        })
    }
}

impl Kernel for Transposed {
    /// `(x, weight: [channels, filters / group, …], bias?) -> y`
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let bias = ins.dense_opt(2, cx)?;
        let (w, x) = (ins.dense(1, cx)?, ins.dense(0, cx)?);
        let (dx, dw) = (x.dims().to_vec(), w.dims().to_vec());
        let bad = || Fault(format!("an input of {dx:?} and a kernel of {dw:?}"));
        let (places, kernel) = (space(&dx)?, dw.get(2..).unwrap_or_default());
        let (groups, channels) = (size_of(self.group)?, dx[1]);
        if kernel.len() != places.len()
            || dw[0] != channels
            || groups == 0
            || channels % groups != 0
        {
            return Err(bad());
        }
        let rank = places.len();
        let axes: Vec<Axis> = (0..rank)
            .map(|i| self.axis(i, rank, places[i], kernel[i]))
            .collect::<KResult<_>>()?;
        let (share, per) = (channels / groups, dw[1]);
        let mut shape = vec![dx[0], per * groups];
        shape.extend(axes.iter().map(|a| a.size));
        let (area, plane, taps) = (count(places)?, count(&shape[2..])?, count(kernel)?);
        let mut out = cx.zeros(count(&shape)?);
        let mut columns = cx.alloc(count(&[per, taps, area])?);
        let (rx, rw) = (x.read(), w.read());
        let (src, weight) = (rx.slice()?, rw.slice()?);
        // Where each place of the input lands, by tap of the kernel.
        let lands: Vec<Option<usize>> = (0..taps * area)
            .map(|i| {
                let (tap, at) = (
                    place(i / area, kernel.iter().copied()),
                    place(i % area, places.iter().copied()),
                );
                let mut flat = 0;
                for ((axis, k), o) in axes.iter().zip(tap).zip(at) {
                    flat = flat * axis.size + axis.at(o, k)?;
                }
                Some(flat)
            })
            .collect();
        for b in 0..dx[0] {
            for g in 0..groups {
                let from = (b * channels + g * share) * area;
                let own = &weight[g * share * per * taps..(g + 1) * share * per * taps];
                multiply(
                    cx,
                    &mut columns,
                    area,
                    Mat::dense(own, share, per * taps).t(),
                    Mat::dense(&src[from..from + share * area], share, area),
                    1.0,
                    false,
                )?;
                let to = (b * groups + g) * per * plane;
                walk::rows(&mut out[to..to + per * plane], plane, |m, row| {
                    let column = &columns[m * taps * area..(m + 1) * taps * area];
                    for (value, at) in column.iter().zip(&lands) {
                        if let Some(at) = *at {
                            row[at] += value;
                        }
                    }
                });
            }
        }
        cx.pool.give(columns);
        if let Some(bias) = bias {
            let read = bias.read();
            let bias = read.slice()?;
            if bias.len() != per * groups {
                return Err(bad());
            }
            walk::rows(&mut out, plane, |p, row| {
                row.iter_mut().for_each(|y| *y += bias[p % bias.len()]);
            });
        }
        cx.one(out, &shape, x.dtype())
    }
}

fn pool(cx: &mut BuildCx<'_>, of: Of) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(Pool {
        frame: Frame::read(cx)?,
        kernel: cx
            .ints("kernel_shape")
            .ok_or("the attribute `kernel_shape` is missing")?,
        ceil: cx.flag("ceil_mode"),
        of,
    }))
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "AveragePool", |cx| {
        let pads = cx.flag("count_include_pad");
        pool(cx, Of::Mean { pads })
    }),
    ("", "MaxPool", |cx| {
        let column = cx.flag("storage_order");
        pool(cx, Of::Most { column })
    }),
    ("", "GlobalAveragePool", |_| {
        Ok(Box::new(Global { most: false }))
    }),
    ("", "GlobalMaxPool", |_| Ok(Box::new(Global { most: true }))),
    ("", "ConvTranspose", |cx| {
        Ok(Box::new(Transposed {
            frame: Frame::read(cx)?,
            group: cx.int("group", 1),
            extra: cx.ints("output_padding"),
            shape: cx.ints("output_shape"),
        }))
    }),
];
