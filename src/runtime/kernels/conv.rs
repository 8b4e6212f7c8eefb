//! `Conv` in one to three dimensions: patches are laid out as a matrix and multiplied.

use super::matmul::{Mat, multiply};
use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs};
use crate::runtime::value::{Fault, KResult};
use crate::runtime::walk::{self, count};

#[derive(Clone, Copy, PartialEq)]
pub(super) enum Auto {
    NotSet,
    SameUpper,
    SameLower,
    Valid,
}

/// Where windows lie.
pub(super) struct Frame {
    pub(super) auto: Auto,
    pads: Option<Vec<i64>>,
    strides: Option<Vec<i64>>,
    dilations: Option<Vec<i64>>,
}

struct Conv {
    frame: Frame,
    group: i64,
}

/// One spatial axis.
#[derive(Clone, Copy, Debug)]
pub(super) struct Axis {
    pub(super) size: usize,
    pub(super) kernel: usize,
    pub(super) out: usize,
    pub(super) stride: usize,
    pub(super) dilation: usize,
    pub(super) before: i64,
    pub(super) after: i64,
}

impl Axis {
    /// One position, read once.
    const SINGLE: Axis = Axis {
        size: 1,
        kernel: 1,
        out: 1,
        stride: 1,
        dilation: 1,
        before: 0,
        after: 0,
    };

    /// The input position that output `o` reads with kernel element `k`; `None` in the padding.
    pub(super) fn at(self, o: usize, k: usize) -> Option<usize> {
        let i = (o * self.stride + k * self.dilation) as i64 - self.before;
        usize::try_from(i).ok().filter(|&i| i < self.size)
    }
}

impl Frame {
    pub(super) fn read(cx: &BuildCx<'_>) -> KResult<Frame> {
        let auto = match cx.node.str("auto_pad").unwrap_or("NOTSET") {
            "NOTSET" => Auto::NotSet,
            "SAME_UPPER" => Auto::SameUpper,
            "SAME_LOWER" => Auto::SameLower,
            "VALID" => Auto::Valid,
            other => return Err(Fault(format!("auto_pad = \"{other}\""))),
        };
        Ok(Frame {
            auto,
            pads: cx.ints("pads"),
            strides: cx.ints("strides"),
            dilations: cx.ints("dilations"),
        })
    }

    pub(super) fn axis(&self, i: usize, rank: usize, size: usize, kernel: usize) -> KResult<Axis> {
        let get = |v: &Option<Vec<i64>>, i: usize, d: i64| {
            v.as_ref().and_then(|v| v.get(i).copied()).unwrap_or(d)
        };
        let (stride, dilation) = (get(&self.strides, i, 1), get(&self.dilations, i, 1));
        if stride < 1 || dilation < 1 || kernel == 0 {
            return Err(Fault(format!(
                "stride {stride}, dilation {dilation}, kernel {kernel}"
            )));
        }
        let reach = dilation * (kernel as i64 - 1) + 1;
        let same = (size as i64 + stride - 1) / stride;
        let total = ((same - 1) * stride + reach - size as i64).max(0);
        let (before, after) = match self.auto {
            Auto::NotSet => (get(&self.pads, i, 0), get(&self.pads, i + rank, 0)),
            Auto::Valid => (0, 0),
            Auto::SameUpper => (total / 2, total - total / 2),
            Auto::SameLower => (total - total / 2, total / 2),
        };
        let room = size as i64 + before + after - reach;
        Ok(Axis {
            size,
            kernel,
            out: if room < 0 {
                0
            } else {
                (room / stride + 1) as usize
            },
            stride: stride as usize,
            dilation: dilation as usize,
            before,
            after,
        })
    }
}

impl Kernel for Conv {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let bias = ins.dense_opt(2, cx)?;
        let (w, x) = (ins.dense(1, cx)?, ins.dense(0, cx)?);
        let (dx, dw) = (x.dims().to_vec(), w.dims().to_vec());
        let bad = || Fault(format!("an input of {dx:?} and a kernel of {dw:?}"));
        let (batch, channels, filters) = match (dx.as_slice(), dw.as_slice()) {
            ([n, c, ..], [m, ..]) if dx.len() == dw.len() && (3..=5).contains(&dx.len()) => {
                (*n, *c, *m)
            }
            _ => return Err(bad()),
        };
        let groups = super::size_of(self.group)?;
        if groups == 0 || channels != dw[1] * groups || filters % groups != 0 {
            return Err(bad());
        }
        let rank = dx.len() - 2;
        let own = (0..rank).map(|i| self.frame.axis(i, rank, dx[i + 2], dw[i + 2]));
        let own: Vec<Axis> = own.collect::<KResult<_>>()?;
        let mut dims = vec![batch, filters];
        dims.extend(own.iter().map(|a| a.out));
        // Fewer dimensions are three of which the first ones have size 1.
        let mut axes = [Axis::SINGLE; 3];
        axes[3 - rank..].copy_from_slice(&own);
        let area = count(&axes.map(|a| a.out))?;
        let per = dw[1];
        let depth = count(&[per, axes[0].kernel, axes[1].kernel, axes[2].kernel])?;
        let mut out = cx.zeros(count(&dims)?);
        let mut columns = cx.alloc(count(&[depth, area])?);
        let (rx, rw) = (x.read(), w.read());
        let (src, kernel) = (rx.slice()?, rw.slice()?);
        let plane = axes.iter().map(|a| a.size).product::<usize>();
        let share = filters / groups;
        for b in 0..batch {
            for g in 0..groups {
                let from = (b * channels + g * per) * plane;
                unfold(&src[from..from + per * plane], per, axes, &mut columns);
                let weight = &kernel[g * share * depth..(g + 1) * share * depth];
                let at = (b * filters + g * share) * area;
                multiply(
                    cx,
                    &mut out[at..at + share * area],
                    area,
                    Mat::dense(weight, share, depth),
                    Mat::dense(&columns, depth, area),
                    1.0,
                    false,
                )?;
            }
        }
        if let Some(bias) = bias {
            let read = bias.read();
            let bias = read.slice()?;
            if bias.len() != filters {
                return Err(Fault(format!(
                    "a bias of {} for {filters} filters",
                    bias.len()
                )));
            }
            if area > 0 {
                for (i, plane) in out.chunks_mut(area).enumerate() {
                    plane.iter_mut().for_each(|x| *x += bias[i % filters]);
                }
            }
        }
        cx.pool.give(columns);
        cx.one(out, &dims, x.dtype())
    }
}

fn unfold(src: &[f32], channels: usize, axes: [Axis; 3], out: &mut [f32]) {
    let [a, b, c] = axes;
    let area = a.out * b.out * c.out;
    if area == 0 {
        return;
    }
    let per = a.kernel * b.kernel * c.kernel;
    walk::rows(&mut out[..channels * per * area], area, |r, row| {
        let (channel, k) = (r / per, r % per);
        let (ka, kb) = (k / (b.kernel * c.kernel), k / c.kernel % b.kernel);
        let kc = k % c.kernel;
        for (o, x) in row.iter_mut().enumerate() {
            let (oa, ob) = (o / (b.out * c.out), o / c.out % b.out);
            let places = (a.at(oa, ka), b.at(ob, kb), c.at(o % c.out, kc));
            *x = match places {
                (Some(i), Some(j), Some(k)) => {
                    src[((channel * a.size + i) * b.size + j) * c.size + k]
                }
                _ => 0.0,
            };
        }
    });
}

fn make(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    Ok(Box::new(Conv {
        frame: Frame::read(cx)?,
        group: cx.int("group", 1),
    }))
}

pub(super) const KERNELS: &[Entry] = &[("", "Conv", make)];
