//! Sampling at places that are computed: `AffineGrid` (20), `GridSample` (16, 20, 22), `RoiAlign` (10, 16, 22), `DeformConv` (19, 22),
//! `Col2Im` (18), `NonMaxSuppression` (10, 11), `LpPool` (1, 2, 11, 18, 22) and `GlobalLpPool` (1, 2, 22).

use super::kit::{Defined, Inferred, no_gradient, wrong};
use super::{ExpandCx, InferCx, OpDef};
use crate::ir::{Attr, DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("AffineGrid", 2..=2, infer_affine).defined_by(affine),
    OpDef::new("GridSample", 2..=2, infer_sample),
    OpDef::new("RoiAlign", 3..=3, infer_roi),
    OpDef::new("DeformConv", 3..=5, super::conv::infer_conv),
    OpDef::new("Col2Im", 3..=3, infer_columns),
    OpDef::new("NonMaxSuppression", 2..=5, |cx| {
        let n = cx.unknown();
        cx.set(0, Some(DType::Int64), Some(vec![n, Sym::from(3)]));
        Ok(())
    })
    .zero(),
    OpDef::new("LpPool", 1..=1, super::conv::infer_pool).defined_by(lp_pool),
    OpDef::new("GlobalLpPool", 1..=1, super::conv::infer_global).defined_by(global_lp),
];

fn infer_affine(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match cx.ints(1).as_deref() {
        Some([n, _, space @ ..]) => {
            let mut dims = vec![cx.as_size(n)];
            dims.extend(space.iter().map(|s| cx.as_size(s)));
            dims.push(Sym::from(space.len() as i64));
            Some(dims)
        }
        _ => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

/// Places from -1 to 1 in each direction, the last axis first, times the matrix.
fn affine(cx: &ExpandCx<'_>) -> Defined {
    let (b, ty) = (cx.b, cx.float(0));
    let Some(n) = cx.fact(0).size(1) else {
        return no_gradient("the number of axes is unknown");
    };
    let corners = cx.node().int("align_corners", 0) != 0;
    let sizes = b.slice(cx.input(1)?, 0, 2, i64::MAX);
    let one = b.ints(&[1]);
    let grid = b.concat(&[sizes, one], 0);
    let along = |axis: i64| {
        let size = b.squeeze(b.slice(sizes, 0, axis, axis + 1), &[0]);
        let at = b.cast(b.op("Range", &[b.int(0), size, b.int(1)], &[]), ty);
        let number = |x: f32| b.scalar_of(x, ty);
        let whole = b.cast(size, ty);
        let place = if corners {
            let steps = b.op("Max", &[b.sub(whole, number(1.0)), number(1.0)], &[]);
            b.div(b.mul(at, number(2.0)), steps)
        } else {
            b.div(b.add(b.mul(at, number(2.0)), number(1.0)), whole)
        };
        let place = b.sub(place, number(1.0));
        let behind: Vec<i64> = (1..=n - axis).collect();
        b.op("Expand", &[b.unsqueeze(place, &behind), grid], &[])
    };
    let mut parts: Vec<Val> = (0..n).rev().map(along).collect();
    parts.push(b.op("Expand", &[b.scalar_of(1.0, ty), grid], &[]));
    let places = b.reshape(b.concat(&parts, -1), b.ints(&[-1, n + 1]));
    let y = b.matmul(places, b.transpose(cx.input(0)?, &[0, 2, 1]));
    let batch = b.slice(cx.input(1)?, 0, 0, 1);
    let shape = b.concat(&[batch, sizes, b.ints(&[n])], 0);
    Ok(vec![Some(b.reshape(y, shape))])
}

fn infer_sample(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match (cx.dims(0), cx.dims(1)) {
        (Some([n, c, ..]), Some([_, space @ .., _])) => {
            let mut dims = vec![n.clone(), c.clone()];
            dims.extend_from_slice(space);
            Some(dims)
        }
        _ => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn infer_roi(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match (cx.dims(0), cx.dims(1)) {
        (Some([_, c, ..]), Some([n, _])) => {
            let size = |name: &str| Sym::from(cx.node.int(name, 1));
            let (h, w) = (size("output_height"), size("output_width"));
            Some(vec![n.clone(), c.clone(), h, w])
        }
        _ => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn infer_columns(cx: &mut InferCx<'_>) -> Inferred {
    let (image, block) = (cx.ints(1), cx.const_ints(2));
    let dims = match (cx.dims(0), image, block) {
        (Some([n, rows, _]), Some(image), Some(block)) => {
            let taps = block.iter().product::<i64>();
            if taps < 1 {
                return wrong(format!("a block of {block:?}"));
            }
            let mut dims = vec![n.clone(), cx.floor_div(rows, &Sym::from(taps))];
            dims.extend(image.iter().map(|s| cx.as_size(s)));
            Some(dims)
        }
        _ => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn power(cx: &ExpandCx<'_>, v: Val, p: f32) -> Val {
    cx.b.op("Pow", &[v, cx.b.scalar_of(p, cx.float(0))], &[])
}

/// The sum over a window is its mean times its size, padding included.
fn lp_pool(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let Some(kernel) = node.ints("kernel_shape") else {
        return no_gradient("kernel_shape is missing");
    };
    if node.int("ceil_mode", 0) != 0 {
        return no_gradient("ceil_mode = 1: windows may end behind the padding");
    }
    let p = node.int("p", 2) as f32;
    let names = ["auto_pad", "dilations", "kernel_shape", "pads", "strides"];
    let mut attrs: Vec<(&str, Attr)> = names
        .into_iter()
        .filter_map(|name| Some((name, node.attrs.get(name)?.clone())))
        .collect();
    attrs.push(("count_include_pad", 1i64.into()));
    let powers = power(cx, b.unary("Abs", cx.input(0)?), p);
    let mean = b.op("AveragePool", &[powers], &attrs);
    let taps = kernel.iter().product::<i64>() as f32;
    let sum = b.mul(mean, b.scalar_of(taps, cx.float(0)));
    Ok(vec![Some(power(cx, sum, 1.0 / p))])
}

fn global_lp(cx: &ExpandCx<'_>) -> Defined {
    let (b, p) = (cx.b, cx.node().int("p", 2) as f32);
    let space: Vec<i64> = (2..cx.rank(0)? as i64).collect();
    let powers = power(cx, b.unary("Abs", cx.input(0)?), p);
    let sum = b.reduce_sum(powers, &space, true);
    Ok(vec![Some(power(cx, sum, 1.0 / p))])
}
