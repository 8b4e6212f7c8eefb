//! `Conv` (1, 11, 22), its adjoint `ConvTranspose` (1, 11, 22), and pooling: one to three spatial axes, groups, dilations, strides.
//!
//! With respect to the input the gradient is a transposed convolution; with respect to the weight it is a convolution in which batch
//! and channels change places, and strides and dilations with them. Of the transposed convolution it is the convolution, and the same
//! with input and gradient exchanged. A mean hands to each place of its window what it was divided by.

use super::kit::infer::same_size;
use super::kit::{DOMAIN, Defined, Differentiated, Inferred, no_gradient, wrong};
use super::{ExpandCx, GradCx, GradError, InferCx, InferError, OpDef};
use crate::ir::{Attr, Builder, DType, Node, OpId, Sym, TensorData, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Conv", 2..=3, infer_conv).gradient(gradient),
    OpDef::new("ConvTranspose", 2..=3, infer_transposed).gradient(grad_transposed),
    OpDef::new("MaxPool", 1..=1, infer_pool)
        .outputs(1..=2)
        .gradient(grad_most),
    OpDef::new("AveragePool", 1..=1, infer_pool).gradient(grad_average),
    OpDef::new("GlobalAveragePool", 1..=1, infer_global).gradient(grad_global),
    OpDef::new("GlobalMaxPool", 1..=1, infer_global).defined_by(global_most),
];

/// Attributes that all of them share, for `n` spatial axes.
struct Window {
    kernel: Vec<Option<i64>>,
    strides: Vec<i64>,
    dilations: Vec<i64>,
    pads: Pads,
}

enum Pads {
    /// Before all axes, then after all axes.
    Given(Vec<i64>),
    /// As many as make the output as long as the input divided by the stride; the odd one before (`lower`) or after.
    Same { lower: bool },
}

impl Window {
    fn read(node: &Node, kernel: Vec<Option<i64>>) -> Result<Window, InferError> {
        let n = kernel.len();
        let list = |name: &str, len: usize, default: i64| match node.ints(name) {
            None => Ok(vec![default; len]),
            Some(v) if v.len() == len => Ok(v.to_vec()),
            Some(v) => {
                let found = v.len();
                wrong(format!("{name} has {found} entries, expected {len}"))
            }
        };
        let pads = match node.str("auto_pad") {
            None | Some("NOTSET") => Pads::Given(list("pads", 2 * n, 0)?),
            Some("VALID") => Pads::Given(vec![0; 2 * n]),
            Some("SAME_UPPER") => Pads::Same { lower: false },
            Some("SAME_LOWER") => Pads::Same { lower: true },
            Some(other) => return wrong(format!("auto_pad = {other:?}")),
        };
        let (strides, dilations) = (list("strides", n, 1)?, list("dilations", n, 1)?);
        if strides.iter().chain(&dilations).any(|&x| x < 1) {
            return wrong("strides and dilations must be positive");
        }
        Ok(Window {
            kernel,
            strides,
            dilations,
            pads,
        })
    }

    /// What the kernel covers along an axis.
    fn span(&self, axis: usize) -> Option<i64> {
        let k = self.kernel[axis]?;
        k.checked_sub(1)?
            .checked_mul(self.dilations[axis])?
            .checked_add(1)
    }

    /// Padding before and after an axis.
    fn pad(&self, axis: usize, size: Option<i64>) -> Option<(i64, i64)> {
        match &self.pads {
            Pads::Given(p) => Some((p[axis], p[axis + self.kernel.len()])),
            Pads::Same { lower } => {
                let (size, stride) = (size?, self.strides[axis]);
                let out = size.max(1).checked_add(stride - 1)? / stride;
                let need = (out - 1)
                    .checked_mul(stride)?
                    .checked_add(self.span(axis)?)?;
                let total = need.checked_sub(size)?.max(0);
                let small = total / 2;
                Some(if *lower {
                    (total - small, small)
                } else {
                    (small, total - small)
                })
            }
        }
    }

    /// Output size along an axis.
    fn out(&self, cx: &InferCx<'_>, axis: usize, size: &Sym, ceil: bool) -> Sym {
        let stride = self.strides[axis];
        let known = || -> Option<i64> {
            let n = size.as_const()?;
            let (before, after) = self.pad(axis, Some(n))?;
            let room = n
                .checked_add(before)?
                .checked_add(after)?
                .checked_sub(self.span(axis)?)?;
            if !ceil {
                return room.div_euclid(stride).checked_add(1);
            }
            let out = room
                .checked_add(stride - 1)?
                .div_euclid(stride)
                .checked_add(1)?;
            // The last window must begin in the input or the padding before it.
            let last = out.checked_sub(1)?.checked_mul(stride)?;
            Some(if last >= n + before { out - 1 } else { out })
        };
        if let Some(n) = known() {
            return Sym::from(n);
        }
        let symbolic = || -> Option<Sym> {
            let (before, after) = self.pad(axis, None)?;
            let less = self.span(axis)?.checked_sub(before)?.checked_sub(after)?;
            let more = 1i64.checked_sub(less)?;
            (stride == 1).then(|| size.add(&Sym::from(more)))?
        };
        symbolic().unwrap_or_else(|| cx.unknown())
    }
}

/// Kernel sizes: the attribute, or the weight's own.
fn kernel(node: &Node, weight: Option<&[Sym]>, n: usize) -> Result<Vec<Option<i64>>, InferError> {
    if let Some(k) = node.ints("kernel_shape") {
        if k.len() != n {
            let found = k.len();
            return wrong(format!("kernel_shape has {found} entries, expected {n}"));
        }
        return Ok(k.iter().copied().map(Some).collect());
    }
    Ok(match weight {
        Some(w) if w.len() == n + 2 => w[2..].iter().map(Sym::as_const).collect(),
        _ => vec![None; n],
    })
}

pub(super) fn infer_conv(cx: &mut InferCx<'_>) -> Inferred {
    let ty = cx.dtype(0);
    let Some([batch, channels, space @ ..]) = cx.dims(0) else {
        cx.set(0, ty, None);
        return Ok(());
    };
    let weight = cx.dims(1);
    let window = Window::read(cx.node, kernel(cx.node, weight, space.len())?)?;
    if let Some([_, per_group, ..]) = weight {
        let all = per_group.mul(&Sym::from(cx.node.int("group", 1)));
        if let Some(all) = all {
            same_size(channels, &all, "channels of input and weight")?;
        }
    }
    let mut dims = vec![
        batch.clone(),
        weight
            .and_then(|w| w.first())
            .cloned()
            .unwrap_or_else(|| cx.unknown()),
    ];
    dims.extend(
        space
            .iter()
            .enumerate()
            .map(|(i, s)| window.out(cx, i, s, false)),
    );
    cx.set(0, ty, Some(dims));
    Ok(())
}

fn infer_transposed(cx: &mut InferCx<'_>) -> Inferred {
    let ty = cx.dtype(0);
    let (Some([batch, _, space @ ..]), Some(weight)) = (cx.dims(0), cx.dims(1)) else {
        cx.set(0, ty, None);
        return Ok(());
    };
    let n = space.len();
    let window = Window::read(cx.node, kernel(cx.node, Some(weight), n)?)?;
    let extra = cx
        .node
        .ints("output_padding")
        .map_or_else(|| vec![0; n], <[_]>::to_vec);
    let named = cx.node.ints("output_shape");
    let size = |i: usize, s: &Sym| -> Option<Sym> {
        if let Some(shape) = named {
            return shape
                .get(shape.len().checked_sub(n)? + i)
                .copied()
                .map(Sym::from);
        }
        let Pads::Given(pads) = &window.pads else {
            return s.mul(&Sym::from(window.strides[i]));
        };
        let fixed = window
            .span(i)?
            .checked_add(*extra.get(i)?)?
            .checked_sub(pads[i])?
            .checked_sub(pads[i + n])?;
        s.sub(&Sym::from(1))?
            .mul(&Sym::from(window.strides[i]))?
            .add(&Sym::from(fixed))
    };
    let channels = weight
        .get(1)
        .and_then(|w| w.mul(&Sym::from(cx.node.int("group", 1))));
    let mut dims = vec![batch.clone(), channels.unwrap_or_else(|| cx.unknown())];
    dims.extend(
        space
            .iter()
            .enumerate()
            .map(|(i, s)| size(i, s).unwrap_or_else(|| cx.unknown())),
    );
    cx.set(0, ty, Some(dims));
    Ok(())
}

pub(super) fn infer_pool(cx: &mut InferCx<'_>) -> Inferred {
    let ty = cx.dtype(0);
    let Some([batch, channels, space @ ..]) = cx.dims(0) else {
        cx.set(0, ty, None);
        return Ok(());
    };
    let window = Window::read(cx.node, kernel(cx.node, None, space.len())?)?;
    let ceil = cx.node.int("ceil_mode", 0) != 0;
    let mut dims = vec![batch.clone(), channels.clone()];
    dims.extend(
        space
            .iter()
            .enumerate()
            .map(|(i, s)| window.out(cx, i, s, ceil)),
    );
    cx.set(0, ty, Some(dims.clone()));
    cx.set(1, Some(crate::ir::DType::Int64), Some(dims));
    Ok(())
}

pub(super) fn infer_global(cx: &mut InferCx<'_>) -> Inferred {
    let dims = cx.dims(0).map(|d| {
        let mut d = d.to_vec();
        d.iter_mut().skip(2).for_each(|s| *s = Sym::from(1));
        d
    });
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn grad_global(cx: &mut GradCx<'_>) -> Differentiated {
    let (b, rank) = (cx.b, cx.rank(0)? as i64);
    let shape = b.shape(cx.input(0)?);
    let space = b.slice(shape, 0, 2, rank);
    let count = b.op("ReduceProd", &[space], &[("keepdims", 0i64.into())]);
    let count = b.cast(count, cx.float(0));
    let each = b.div(cx.grad()?, count);
    cx.set(0, b.op("Expand", &[each, shape], &[]));
    Ok(())
}

/// The window of a convolution, and its padding before and after all axes.
fn placed(cx: &GradCx<'_>, x: &[Sym], w: &[Sym]) -> Result<(Window, Vec<i64>), GradError> {
    let n = x.len().saturating_sub(2);
    let kernel = kernel(cx.node(), Some(w), n)?;
    let window = Window::read(cx.node(), kernel)?;
    let mut pads = vec![0; 2 * n];
    for i in 0..n {
        let known = x[i + 2].as_const();
        let both = window.pad(i, known).filter(|_| window.span(i).is_some());
        let (before, after) = both.ok_or_else(|| {
            GradError("the padding or the kernel depends on sizes that are unknown".into())
        })?;
        (pads[i], pads[i + n]) = (before, after);
    }
    Ok((window, pads))
}

/// The gradient of a convolution with respect to its input, through this weight.
pub(super) fn grad_input(cx: &GradCx<'_>, w: Val) -> Result<Val, GradError> {
    let x = cx.dims(0)?;
    let (window, pads) = placed(cx, &x, &cx.dims(1)?)?;
    input_gradient(cx, w, &x, &window, &pads)
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    let (x, w) = (cx.dims(0)?, cx.dims(1)?);
    let (window, pads) = placed(cx, &x, &w)?;
    if cx.wants(0) {
        let dx = input_gradient(cx, cx.input(1)?, &x, &window, &pads)?;
        cx.set(0, dx);
    }
    if cx.wants(1) {
        let (x, g) = (cx.input(0)?, cx.grad()?);
        let dw = weight_gradient(cx, [x, g], &w, &window, &pads)?;
        cx.set(1, dw);
    }
    if cx.wants(2) {
        let axes: Vec<i64> = (0..x.len() as i64).filter(|&a| a != 1).collect();
        cx.set(2, cx.b.reduce_sum(cx.grad()?, &axes, false));
    }
    Ok(())
}

/// The transposed convolution of the gradient. Where the stride leaves places of the padded input untouched, the result is filled up
/// with zeros.
fn input_gradient(
    cx: &GradCx<'_>,
    w: Val,
    x: &[Sym],
    window: &Window,
    pads: &[i64],
) -> Result<Val, GradError> {
    let (b, n) = (cx.b, window.kernel.len());
    let group = cx.node().int("group", 1);
    let common = |pads: &[i64], extra: Option<Vec<i64>>| -> Vec<(&'static str, Attr)> {
        let mut attrs: Vec<(&str, Attr)> = vec![
            ("dilations", window.dilations.clone().into()),
            ("group", group.into()),
            ("pads", pads.into()),
            ("strides", window.strides.clone().into()),
        ];
        attrs.extend(extra.map(|e| ("output_padding", e.into())));
        attrs
    };
    let ins = [cx.grad()?, w];
    let left: Option<Vec<i64>> = (0..n)
        .map(|i| {
            if window.strides[i] == 1 {
                return Some(0);
            }
            let padded = x[i + 2].as_const()?.checked_add(pads[i])?;
            let room = padded
                .checked_add(pads[i + n])?
                .checked_sub(window.span(i)?)?;
            Some(room.rem_euclid(window.strides[i]))
        })
        .collect();
    if let Some(left) = left {
        let extra = left.iter().any(|&l| l != 0).then_some(left);
        return Ok(b.op("ConvTranspose", &ins, &common(pads, extra)));
    }
    // The size of the input is not known: as much as the windows cover, then zeros, then without the padding.
    let full = b.op("ConvTranspose", &ins, &common(&vec![0; 2 * n], None));
    Ok(fitted(b, full, cx.input(0)?, &pads[..n]))
}

/// What windows wrote from the padding on, as long as the input: with zeros where they left places out, without the padding.
fn fitted(b: &Builder, full: Val, x: Val, before: &[i64]) -> Val {
    let n = before.len();
    let sizes = |v: Val| b.slice(b.shape(v), 0, 2, i64::MAX);
    let padded = b.add(sizes(x), b.ints(before));
    let missing = b.op(
        "Max",
        &[b.sub(padded, sizes(full)), b.ints(&vec![0; n])],
        &[],
    );
    let none = b.ints(&vec![0; n + 2]);
    let two = b.ints(&[0, 0]);
    let amounts = b.concat(&[none, two, missing], 0);
    let filled = b.op("Pad", &[full, amounts], &[]);
    let axes: Vec<i64> = (2..n as i64 + 2).collect();
    let ins = [filled, b.ints(before), padded, b.ints(&axes)];
    b.op("Slice", &ins, &[])
}

/// The gradient goes to the place that each window took; places that several took add up.
fn grad_most(cx: &mut GradCx<'_>) -> Differentiated {
    let (b, x) = (cx.b, cx.input(0)?);
    let names = [
        "auto_pad",
        "ceil_mode",
        "dilations",
        "kernel_shape",
        "pads",
        "strides",
    ];
    let attrs: Vec<(&str, Attr)> = names
        .into_iter()
        .filter_map(|name| Some((name, cx.node().attrs.get(name)?.clone())))
        .collect();
    let places = b.node_n(OpId::new("", "MaxPool"), &[Some(x)], &attrs, 2)[1];
    let flat = |v: Val| b.reshape(v, b.ints(&[-1]));
    let size = b.reshape(b.unary("Size", x), b.ints(&[1]));
    let ins = [flat(cx.grad()?), flat(places), size];
    let dx = b.op_in(DOMAIN, "GatherGrad", &ins, &[("axis", 0i64.into())]);
    cx.set(0, b.reshape(dx, cx.input_shape(0)?));
    Ok(())
}

fn global_most(cx: &ExpandCx<'_>) -> Defined {
    let space: Vec<i64> = (2..cx.rank(0)? as i64).collect();
    Ok(vec![Some(cx.b.reduce(
        "ReduceMax",
        cx.input(0)?,
        &space,
        true,
    ))])
}

fn grad_average(cx: &mut GradCx<'_>) -> Differentiated {
    let x = cx.dims(0)?;
    let n = x.len().saturating_sub(2);
    let window = Window::read(cx.node(), kernel(cx.node(), None, n)?)?;
    let (b, g, ty) = (cx.b, cx.grad()?, cx.float(0));
    let space = |v: Val| b.slice(b.shape(v), 0, 2, i64::MAX);
    let pads = cx.node().int("count_include_pad", 0) != 0;
    let (mut each, mut before, mut taps) = (g, Vec::new(), vec![1u64, 1]);
    for i in 0..n {
        let sizes = window.pad(i, x[i + 2].as_const()).zip(window.kernel[i]);
        let Some(((first, last), kernel)) = sizes else {
            return no_gradient("the padding depends on sizes that are unknown");
        };
        before.push(first);
        taps.push(kernel as u64);
        // How many places of each window there are: [windows, taps] of places, behind the padding.
        let size = |v: Val| b.squeeze(b.slice(space(v), 0, i as i64, i as i64 + 1), &[0]);
        let windows = b.op("Range", &[b.int(0), size(g), b.int(1)], &[]);
        let begins = b.sub(b.mul(windows, b.int(window.strides[i])), b.int(first));
        let offsets: Vec<i64> = (0..kernel).map(|k| k * window.dilations[i]).collect();
        let places = b.add(b.unsqueeze(begins, &[1]), b.ints(&offsets));
        let end = b.add(size(cx.input(0)?), b.int(if pads { last } else { 0 }));
        let mut there = b.op("Less", &[places, end], &[]);
        if !pads {
            let first = b.op("Less", &[places, b.int(0)], &[]);
            there = b.op("And", &[there, b.unary("Not", first)], &[]);
        }
        let count = b.reduce_sum(b.cast(there, ty), &[1], false);
        let behind: Vec<i64> = (1..(n - i) as i64).collect();
        let count = if behind.is_empty() {
            count
        } else {
            b.unsqueeze(count, &behind)
        };
        each = b.div(each, count);
    }
    // All channels are alike: each is a picture of its own.
    let alone = b.concat(&[b.ints(&[-1, 1]), space(g)], 0);
    let ones = vec![1.0; taps.iter().product::<u64>() as usize];
    let ones = b.constant(TensorData::from_f32(taps, &ones));
    let ones = if ty == DType::Float {
        ones
    } else {
        b.cast(ones, ty)
    };
    let attrs: [(&str, Attr); 2] = [
        ("dilations", window.dilations.clone().into()),
        ("strides", window.strides.clone().into()),
    ];
    let full = b.op("ConvTranspose", &[b.reshape(each, alone), ones], &attrs);
    let fitted = fitted(b, full, cx.input(0)?, &before);
    let shape = b.shape(cx.input(0)?);
    cx.set(0, b.reshape(fitted, shape));
    Ok(())
}

fn grad_transposed(cx: &mut GradCx<'_>) -> Differentiated {
    let (x, w) = (cx.dims(0)?, cx.dims(1)?);
    let n = x.len().saturating_sub(2);
    let window = Window::read(cx.node(), kernel(cx.node(), Some(&w), n)?)?;
    let (before, after): (Vec<i64>, Vec<i64>) = (0..n)
        .map(|i| transposed_pads(cx.node(), &window, i, x[i + 2].as_const()))
        .collect::<Option<Vec<_>>>()
        .ok_or_else(|| GradError("the padding depends on sizes that are unknown".into()))?
        .into_iter()
        .unzip();
    let (b, g, pads) = (cx.b, cx.grad()?, [before, after].concat());
    if cx.wants(0) {
        let attrs: [(&str, Attr); 4] = [
            ("dilations", window.dilations.clone().into()),
            ("group", cx.node().int("group", 1).into()),
            ("pads", pads.clone().into()),
            ("strides", window.strides.clone().into()),
        ];
        let wide = b.op("Conv", &[g, cx.input(1)?], &attrs);
        // Places of the output that no window reaches may hold one more.
        let ends = b.slice(b.shape(cx.input(0)?), 0, 2, i64::MAX);
        let axes: Vec<i64> = (2..n as i64 + 2).collect();
        let ins = [wide, b.ints(&vec![0; n]), ends, b.ints(&axes)];
        cx.set(0, b.op("Slice", &ins, &[]));
    }
    if cx.wants(1) {
        let dw = weight_gradient(cx, [g, cx.input(0)?], &w, &window, &pads)?;
        cx.set(1, dw);
    }
    if cx.wants(2) {
        let axes: Vec<i64> = (0..x.len() as i64).filter(|&a| a != 1).collect();
        cx.set(2, b.reduce_sum(g, &axes, false));
    }
    Ok(())
}

/// What a transposed convolution cuts off before and behind an axis.
fn transposed_pads(
    node: &Node,
    window: &Window,
    i: usize,
    size: Option<i64>,
) -> Option<(i64, i64)> {
    let n = window.kernel.len();
    let named = node.ints("output_shape");
    let size = match (&window.pads, named) {
        (Pads::Given(p), None) => return Some((p[i], p[i + n])),
        (_, Some(shape)) => (size?, *shape.get(shape.len().checked_sub(n)? + i)?),
        (Pads::Same { .. }, None) => (size?, size?.checked_mul(window.strides[i])?),
    };
    let extra = node.ints("output_padding").and_then(|e| e.get(i).copied());
    let full = (size.0 - 1).checked_mul(window.strides[i])?;
    let full = full
        .checked_add(extra.unwrap_or(0))?
        .checked_add(window.span(i)?)?;
    let total = full.checked_sub(size.1)?;
    let cut = total.max(0);
    let upper = matches!(window.pads, Pads::Same { lower: false });
    let before = if upper { cut / 2 } else { cut - cut / 2 };
    // What is longer than the windows reach is zero behind them.
    Some((before, total - before))
}

/// The convolution of the input by the gradient, with batch and channels exchanged.
fn weight_gradient(
    cx: &GradCx<'_>,
    [x, g]: [Val; 2],
    w: &[Sym],
    window: &Window,
    pads: &[i64],
) -> Result<Val, GradError> {
    let (b, n) = (cx.b, window.kernel.len());
    let group = cx.node().int("group", 1);
    let mut exchange: Vec<i64> = (0..n as i64 + 2).collect();
    exchange.swap(0, 1);
    let space = |v: Val| b.slice(b.shape(v), 0, 2, i64::MAX);
    let x = if group == 1 {
        b.transpose(x, &exchange)
    } else {
        // [batch, group·c, …] as [c, group·batch, …]
        let batch = b.slice(b.shape(x), 0, 0, 1);
        let split = b.concat(&[batch, b.ints(&[group, -1]), space(x)], 0);
        let mut perm: Vec<i64> = (0..n as i64 + 3).collect();
        perm.swap(0, 2);
        let turned = b.transpose(b.reshape(x, split), &perm);
        let per_group = w[1]
            .as_const()
            .ok_or_else(|| GradError("the number of channels is unknown".into()))?;
        let joined = b.concat(&[b.ints(&[per_group, -1]), space(x)], 0);
        b.reshape(turned, joined)
    };
    let attrs: [(&str, Attr); 4] = [
        ("dilations", window.strides.clone().into()),
        ("group", group.into()),
        ("pads", pads.into()),
        ("strides", window.dilations.clone().into()),
    ];
    let g = b.transpose(g, &exchange);
    let wide = b.transpose(b.op("Conv", &[x, g], &attrs), &exchange);
    // A stride that does not divide the input gives columns that belong to no tap of the kernel.
    let taps: Vec<i64> = window
        .kernel
        .iter()
        .copied()
        .map(Option::unwrap_or_default)
        .collect();
    let axes: Vec<i64> = (2..n as i64 + 2).collect();
    let ins = [wide, b.ints(&vec![0; n]), b.ints(&taps), b.ints(&axes)];
    Ok(b.op("Slice", &ins, &[]))
}
