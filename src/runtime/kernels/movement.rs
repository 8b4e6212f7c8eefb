//! Operators that move elements: transposes, slices, concatenation.

use super::{BuildCx, Cx, Entry, Ins, Kernel, Outs, axis_of, each_kind, one, plain, size_of};
use crate::ir::AttrValue;
use crate::runtime::value::{Data, Fault, Host, KResult, Value};
use crate::runtime::walk::{self, View, count, row_major};

struct Transpose(Option<Vec<i64>>);

impl Kernel for Transpose {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let v = ins.take(0)?;
        let rank = v.dims().len();
        let perm: Vec<usize> = match &self.0 {
            None => (0..rank).rev().collect(),
            Some(p) => p
                .iter()
                .map(|&a| axis_of(a, rank))
                .collect::<KResult<_>>()?,
        };
        let mut seen = vec![false; rank];
        perm.iter().for_each(|&p| seen[p] = true);
        if perm.len() != rank || seen.contains(&false) {
            return Err(Fault(format!(
                "perm {:?} for a tensor of rank {rank}",
                self.0
            )));
        }
        one(v.permuted(&perm)?)
    }

    fn is_view(&self) -> bool {
        true
    }
}

/// `len` elements of an axis from `start`; floats as a view.
pub(crate) fn narrow(v: &Value, axis: usize, start: usize, len: usize) -> KResult<Value> {
    let size = v.dims()[axis];
    if start.checked_add(len).is_none_or(|end| end > size) {
        return Err(Fault(format!(
            "{start}..{start}+{len} of an axis of {size}"
        )));
    }
    if len == size {
        return Ok(v.clone());
    }
    match plain(v.clone())? {
        Value::Float(x) => Ok(Value::Float(x.view(|t| t.narrow(axis, start, len))?)),
        Value::Host(h) => {
            let strides = row_major(h.dims());
            let mut dims = h.dims().to_vec();
            dims[axis] = len;
            h.strided(dims, start * strides[axis], &strides)
                .map(Value::Host)
        }
        Value::Weight(_) => Err("a weight converts to a tensor".into()),
    }
}

/// Picks positions along an axis.
pub(crate) fn pick(cx: &Cx<'_>, v: Value, axis: usize, index: &[usize]) -> KResult<Value> {
    let from = v.dims().to_vec();
    let (len, inner) = (from[axis], count(&from[axis + 1..])?);
    let mut dims = from;
    dims[axis] = index.len();
    Ok(each_kind!(cx, v, &dims, |src, out| {
        if inner > 0 && !index.is_empty() {
            let block = index.len() * inner;
            walk::rows(out, block, |o, out| {
                for (piece, &i) in out.chunks_mut(inner).zip(index) {
                    let at = (o * len + i) * inner;
                    piece.copy_from_slice(&src[at..at + inner]);
                }
            });
        }
    }))
}

/// `Slice(data, starts, ends, axes?, steps?)`; attributes before opset 10.
struct Slice {
    starts: Option<Vec<i64>>,
    ends: Option<Vec<i64>>,
    axes: Option<Vec<i64>>,
}

impl Kernel for Slice {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let input = |fixed: &Option<Vec<i64>>, slot| match fixed {
            Some(v) => Ok(Some(v.clone())),
            None => ins.ints_opt(slot),
        };
        let starts = input(&self.starts, 1)?.ok_or("the starts are missing")?;
        let ends = input(&self.ends, 2)?.ok_or("the ends are missing")?;
        let axes = input(&self.axes, 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
        let steps = ins.ints_opt(4)?.unwrap_or_else(|| vec![1; starts.len()]);
        if ends.len() != starts.len() || axes.len() != starts.len() || steps.len() != starts.len() {
            return Err("starts, ends, axes and steps differ in length".into());
        }
        let mut v = ins.take(0)?;
        for i in 0..starts.len() {
            let axis = axis_of(axes[i], v.dims().len())?;
            v = sliced(cx, v, axis, starts[i], ends[i], steps[i])?;
        }
        one(v)
    }
}

fn sliced(cx: &Cx<'_>, v: Value, axis: usize, start: i64, end: i64, step: i64) -> KResult<Value> {
    let size = v.dims()[axis];
    if step == 1 {
        let (from, to) = (clamped(start, size, 0), clamped(end, size, 0));
        return narrow(&v, axis, from as usize, (to - from).max(0) as usize);
    }
    let index = positions(size, start, end, step)?;
    pick(cx, v, axis, &index)
}

/// A bound counted from the front, between `least` and `least + size`.
fn clamped(x: i64, size: usize, least: i64) -> i64 {
    let size = size as i64;
    let x = if x < 0 { x.saturating_add(size) } else { x };
    x.clamp(least, least + size)
}

/// The positions of an axis that a slice reads.
pub(crate) fn positions(size: usize, start: i64, end: i64, step: i64) -> KResult<Vec<usize>> {
    if step == 0 {
        return Err("a step of 0".into());
    }
    let least = if step > 0 { 0 } else { -1 };
    let (mut i, to) = (clamped(start, size, least), clamped(end, size, least));
    // Backwards it begins at the front at the latest (ONNX, Slice).
    i = if size > 0 { i.max(0) } else { i };
    let mut index = Vec::new();
    while if step > 0 { i < to } else { i > to } {
        index.push(i as usize);
        let Some(next) = i.checked_add(step) else {
            break;
        };
        i = next;
    }
    Ok(index)
}

struct Concat(i64);

impl Kernel for Concat {
    fn run(&self, cx: &Cx<'_>, ins: Ins) -> KResult<Outs> {
        let parts: Vec<Value> = ins.0.into_iter().flatten().collect();
        one(concat(cx, parts, self.0)?)
    }
}

/// Joins values along an axis.
pub(crate) fn concat(cx: &Cx<'_>, parts: Vec<Value>, axis: i64) -> KResult<Value> {
    let parts = parts.into_iter().map(plain).collect::<KResult<Vec<_>>>()?;
    let first = parts.first().ok_or("nothing to join")?;
    let axis = axis_of(axis, first.dims().len())?;
    let mut dims = first.dims().to_vec();
    dims[axis] = 0;
    for p in &parts {
        let d = p.dims();
        let fits = d.len() == dims.len()
            && d.iter()
                .zip(&dims)
                .enumerate()
                .all(|(i, (a, b))| i == axis || a == b)
            && p.dtype() == first.dtype();
        if !fits {
            return Err(Fault(format!(
                "{}{d:?} does not join along axis {axis}",
                p.dtype()
            )));
        }
        dims[axis] += d[axis];
    }
    let (outer, inner) = (count(&dims[..axis])?, count(&dims[axis + 1..])?);
    let n = count(&dims)?;
    let width = dims[axis] * inner;
    if let Value::Float(x) = first {
        let dtype = x.dtype();
        let mut out = cx.alloc(n);
        let mut at = 0;
        for p in &parts {
            let Value::Float(x) = p else { continue };
            let w = x.dims()[axis] * inner;
            place(&mut out, &x.read().view()?, outer, width, at, w)?;
            at += w;
        }
        return Ok(Value::Float(cx.floats(out, &dims, dtype)?));
    }
    let hosts: Vec<&Host> = parts
        .iter()
        .filter_map(|p| {
            if let Value::Host(h) = p {
                Some(h)
            } else {
                None
            }
        })
        .collect();
    let dtype = first.dtype();
    let data = match hosts.first().map(|h| h.data()) {
        Some(Data::U8(_)) => {
            let mut out = vec![0u8; n];
            join(&hosts, &mut out, outer, width, |h| h.bytes().ok())?;
            Data::U8(out)
        }
        Some(Data::I64(_)) => {
            let mut out = vec![0i64; n];
            join(&hosts, &mut out, outer, width, |h| match h.data() {
                Data::I64(v) => Some(v.as_slice()),
                _ => None,
            })?;
            Data::I64(out)
        }
        _ => {
            let mut out = vec![0f64; n];
            join(&hosts, &mut out, outer, width, |h| match h.data() {
                Data::F64(v) => Some(v.as_slice()),
                _ => None,
            })?;
            Data::F64(out)
        }
    };
    Ok(Value::Host(Host::new(dtype, dims, data)?))
}

fn join<'a, T: Copy + 'a>(
    hosts: &[&'a Host],
    out: &mut [T],
    outer: usize,
    width: usize,
    get: impl Fn(&'a Host) -> Option<&'a [T]>,
) -> KResult<()> {
    let mut at = 0;
    for h in hosts {
        let src = get(h).ok_or("operands of different kinds")?;
        let w = src.len().checked_div(outer).unwrap_or(0);
        for (o, s) in src.chunks(w.max(1)).enumerate().take(outer) {
            out[o * width + at..o * width + at + s.len()].copy_from_slice(s);
        }
        at += w;
    }
    Ok(())
}

/// Copies a strided part into columns `at..at + w` of a dense matrix of `outer` rows.
fn place(
    out: &mut [f32],
    src: &View<'_, f32>,
    outer: usize,
    width: usize,
    at: usize,
    w: usize,
) -> KResult<()> {
    if w == 0 || outer == 0 {
        return Ok(());
    }
    let dense = *src.strides == *row_major(&src.dims);
    let temp: Vec<f32>;
    let flat: &[f32] = if dense {
        &src.data[..count(&src.dims)?]
    } else {
        let mut t = vec![0.0; count(&src.dims)?];
        walk::copy(src, &mut t);
        temp = t;
        &temp
    };
    walk::rows(out, width, |o, row| {
        row[at..at + w].copy_from_slice(&flat[o * w..(o + 1) * w]);
    });
    Ok(())
}

/// `Split(data, split?)`: sizes from the input, the attribute, or equal parts.
struct Split {
    axis: i64,
    fixed: Option<Vec<i64>>,
    parts: usize,
}

impl Kernel for Split {
    fn run(&self, _: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let sizes = match &self.fixed {
            Some(s) => Some(s.clone()),
            None => ins.ints_opt(1)?,
        };
        let v = ins.take(0)?;
        let axis = axis_of(self.axis, v.dims().len())?;
        let size = v.dims()[axis];
        let sizes: Vec<usize> = match sizes {
            Some(s) => s.into_iter().map(size_of).collect::<KResult<_>>()?,
            None => {
                // Opset 18: the last part is smaller if the size does not divide.
                let each = size.div_ceil(self.parts.max(1));
                (0..self.parts)
                    .map(|i| each.min(size.saturating_sub(i * each)))
                    .collect()
            }
        };
        if sizes.iter().sum::<usize>() != size {
            return Err(Fault(format!("parts {sizes:?} of an axis of {size}")));
        }
        let mut at = 0;
        sizes
            .into_iter()
            .map(|n| {
                let part = narrow(&v, axis, at, n)?;
                at += n;
                Ok(Some(part))
            })
            .collect()
    }
}

/// `Tile(data, repeats)`.
struct Tile;

impl Kernel for Tile {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let repeats = ins.ints(1)?;
        let mut v = ins.take(0)?;
        if repeats.len() != v.dims().len() {
            return Err(Fault(format!("repeats {repeats:?} of {:?}", v.dims())));
        }
        for (axis, &r) in repeats.iter().enumerate() {
            let (r, n) = (size_of(r)?, v.dims()[axis]);
            if r != 1 {
                count(&[r, n])?;
                let index: Vec<usize> = (0..r * n).map(|i| i % n).collect();
                v = pick(cx, v, axis, &index)?;
            }
        }
        one(v)
    }
}

/// `Pad(data, pads, value?, axes?)` in the modes constant, edge, reflect and wrap.
struct Pad {
    mode: PadMode,
    fixed: Option<Vec<i64>>,
    value: f32,
}

#[derive(Clone, Copy, PartialEq)]
enum PadMode {
    Constant,
    Edge,
    Reflect,
    Wrap,
}

impl Kernel for Pad {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let pads = match &self.fixed {
            Some(p) => p.clone(),
            None => ins.ints(1)?,
        };
        let fill = if ins.has(2) {
            ins.scalar(2)?
        } else {
            self.value
        };
        let rank = ins.need(0)?.dims().len();
        let axes = ins
            .ints_opt(3)?
            .unwrap_or_else(|| (0..rank as i64).collect());
        if pads.len() != 2 * axes.len() {
            return Err(Fault(format!(
                "{} pads for {} axes",
                pads.len(),
                axes.len()
            )));
        }
        let mut v = plain(ins.take(0)?)?;
        for (k, &a) in axes.iter().enumerate() {
            let axis = axis_of(a, rank)?;
            let (lo, hi) = (pads[k], pads[k + axes.len()]);
            if lo < 0 || hi < 0 {
                let n = v.dims()[axis] as i64;
                let (from, to) = ((-lo).max(0), n - (-hi).max(0));
                v = narrow(&v, axis, size_of(from)?, size_of(to - from)?)?;
            }
            v = self.pad(cx, v, axis, lo.max(0) as usize, hi.max(0) as usize, fill)?;
        }
        one(v)
    }
}

impl Pad {
    fn pad(
        &self,
        cx: &Cx<'_>,
        v: Value,
        axis: usize,
        lo: usize,
        hi: usize,
        fill: f32,
    ) -> KResult<Value> {
        let n = v.dims()[axis];
        if lo == 0 && hi == 0 {
            return Ok(v);
        }
        if self.mode != PadMode::Constant {
            if n == 0 || (self.mode == PadMode::Reflect && (lo >= n || hi >= n)) {
                return Err(Fault(format!("pads {lo}, {hi} of an axis of {n}")));
            }
            let index: Vec<usize> = (0..lo + n + hi)
                .map(|i| {
                    let i = i as i64 - lo as i64;
                    let last = n as i64 - 1;
                    let i = match self.mode {
                        PadMode::Reflect if i < 0 => -i,
                        PadMode::Reflect if i > last => 2 * last - i,
                        PadMode::Wrap => i.rem_euclid(n as i64),
                        _ => i.clamp(0, last),
                    };
                    i as usize
                })
                .collect();
            return pick(cx, v, axis, &index);
        }
        let block = |len: usize, like: &Value| -> KResult<Value> {
            let mut dims = like.dims().to_vec();
            dims[axis] = len;
            let n = count(&dims)?;
            Ok(match like {
                Value::Host(h) => match h.data() {
                    Data::F64(_) => Value::Host(Host::new(
                        h.dtype(),
                        dims,
                        Data::F64(vec![f64::from(fill); n]),
                    )?),
                    _ => Value::Host(Host::from_ints(h.dtype(), dims, vec![fill as i64; n])?),
                },
                like => {
                    let mut out = cx.alloc(n);
                    out.fill(fill);
                    Value::Float(cx.floats(out, &dims, like.dtype())?)
                }
            })
        };
        let parts = vec![block(lo, &v)?, v.clone(), block(hi, &v)?];
        concat(cx, parts, axis as i64)
    }
}

fn pad(cx: &mut BuildCx<'_>) -> KResult<Box<dyn Kernel>> {
    let mode = match cx.node.str("mode").unwrap_or("constant") {
        "constant" => PadMode::Constant,
        "edge" => PadMode::Edge,
        "reflect" => PadMode::Reflect,
        "wrap" => PadMode::Wrap,
        other => return Err(Fault(format!("mode = \"{other}\""))),
    };
    Ok(Box::new(Pad {
        mode,
        fixed: cx.ints("pads"),
        value: cx.float("value", 0.0),
    }))
}

/// `Trilu(data, k?)`.
struct Trilu(bool);

impl Kernel for Trilu {
    fn run(&self, cx: &Cx<'_>, mut ins: Ins) -> KResult<Outs> {
        let k = ins
            .ints_opt(1)?
            .and_then(|v| v.first().copied())
            .unwrap_or(0);
        let v = ins.take(0)?;
        let dims = v.dims().to_vec();
        let [.., rows, cols] = dims[..] else {
            return Err("a tensor of rank 2 or more".into());
        };
        let upper = self.0;
        one(each_kind!(cx, v, &dims, |src, out| {
            out.copy_from_slice(src);
            if cols > 0 {
                for (i, row) in out.chunks_mut(cols).enumerate() {
                    let d = (i % rows.max(1)) as i64 + k;
                    for (j, x) in row.iter_mut().enumerate() {
                        let j = j as i64;
                        if if upper { j < d } else { j > d } {
                            *x = Default::default();
                        }
                    }
                }
            }
        }))
    }
}

pub(super) const KERNELS: &[Entry] = &[
    ("", "Transpose", |cx| {
        Ok(Box::new(Transpose(cx.ints("perm"))))
    }),
    ("", "Slice", |cx| {
        Ok(Box::new(Slice {
            starts: cx.ints("starts"),
            ends: cx.ints("ends"),
            axes: cx.ints("axes"),
        }))
    }),
    ("", "Concat", |cx| {
        Ok(Box::new(Concat(cx.need_int("axis")?)))
    }),
    ("", "Split", |cx| {
        let parts = cx
            .node
            .attr("num_outputs")
            .and_then(AttrValue::as_int)
            .map_or(cx.wants.len(), |n| n.clamp(0, 1 << 16) as usize);
        Ok(Box::new(Split {
            axis: cx.int("axis", 0),
            fixed: cx.ints("split"),
            parts,
        }))
    }),
    ("", "Tile", |_| Ok(Box::new(Tile))),
    ("", "Pad", pad),
    ("", "Trilu", |cx| {
        Ok(Box::new(Trilu(cx.int("upper", 1) != 0)))
    }),
];
