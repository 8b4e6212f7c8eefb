//! `Resize` (10, 11, 13, 18, 19) and `Upsample` (7, 9): interpolation, one axis after the other.
//!
//! Along an axis each output is a weighted sum of inputs, so that resizing is the product with a matrix of weights, and its gradient is
//! the product with the transposed one. The own operator `ResizeMatrix{axis, …}(shape, roi?, scales?, sizes?) -> (M, outside)` has the
//! attributes of `Resize`, and gives this matrix, `[out, in]`, and which outputs lie outside the region (`tf_crop_and_resize`), whose
//! rows are zero.

use super::kit::infer::normal_axes;
use super::kit::{DOMAIN, Defined, Inferred, no_gradient};
use super::{ExpandCx, InferCx, OpDef};
use crate::ir::{Attr, AttrValue, DType, OpId, Sym, TensorData, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Resize", 1..=4, infer).defined_by(|cx| expand(cx, Slots::of(cx))),
    OpDef::new("Upsample", 1..=2, infer_upsample).defined_by(|cx| {
        let slots = Slots {
            roi: None,
            scales: Some(1),
            sizes: None,
        };
        expand(cx, slots)
    }),
    OpDef::new("ResizeMatrix", 1..=4, infer_matrix)
        .in_domain(DOMAIN)
        .outputs(1..=2)
        .zero(),
];

/// Where the operands are.
#[derive(Clone, Copy)]
struct Slots {
    roi: Option<usize>,
    scales: Option<usize>,
    sizes: Option<usize>,
}

impl Slots {
    fn of(cx: &ExpandCx<'_>) -> Slots {
        // Opset 10 has `(x, scales)`, later ones `(x, roi, scales, sizes)`. An empty tensor is an absent one.
        let n = cx.graph.node_inputs(cx.id).len();
        let there = |slot: usize| {
            let empty = cx
                .fact(slot)
                .dims
                .is_some_and(|d| d.iter().any(|s| s.is(0)));
            (cx.optional(slot).is_some() && !empty).then_some(slot)
        };
        if n == 2 && cx.b.opset() < 11 {
            return Slots {
                roi: None,
                scales: Some(1),
                sizes: None,
            };
        }
        Slots {
            roi: there(1),
            scales: there(2),
            sizes: there(3),
        }
    }
}

fn scaled(cx: &InferCx<'_>, scales: Option<Vec<f32>>, axes: &[usize]) -> Option<Vec<Sym>> {
    let mut dims = cx.dims_vec(0)?;
    let scales = scales?;
    for (&a, &s) in axes.iter().zip(&scales) {
        if s.to_bits() == 1f32.to_bits() {
            continue;
        }
        dims[a] = match dims[a].as_const() {
            Some(n) => Sym::from((n as f64 * f64::from(s)).floor() as i64),
            None => cx.unknown(),
        };
    }
    Some(dims)
}

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let rank = cx.rank(0).unwrap_or(0);
    let axes = match cx.node.ints("axes") {
        Some(axes) => normal_axes(axes, rank)?,
        None => (0..rank).collect(),
    };
    let floats = |slot: usize| {
        let tensor = cx.tensors.get(slot).copied().flatten()?;
        tensor.to_f32().filter(|v| v.len() == axes.len())
    };
    let stretch = matches!(
        cx.node.str("keep_aspect_ratio_policy"),
        None | Some("stretch")
    );
    let early = cx.opset < 11;
    let scales = floats(if early { 1 } else { 2 });
    let dims = match (scaled(cx, scales, &axes), cx.ints(3), cx.dims_vec(0)) {
        (Some(dims), _, _) => Some(dims),
        (None, Some(sizes), Some(mut dims)) if stretch && sizes.len() == axes.len() => {
            for (&a, s) in axes.iter().zip(&sizes) {
                dims[a] = cx.as_size(s);
            }
            Some(dims)
        }
        (_, _, dims) => dims.map(|d| cx.unknown_dims(d.len())),
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn infer_upsample(cx: &mut InferCx<'_>) -> Inferred {
    let rank = cx.rank(0).unwrap_or(0);
    let named = cx.node.attr("scales").and_then(AttrValue::as_floats);
    let given = cx
        .tensors
        .get(1)
        .copied()
        .flatten()
        .and_then(TensorData::to_f32);
    let scales = named
        .map(<[f32]>::to_vec)
        .or(given)
        .filter(|s| s.len() == rank);
    let axes: Vec<usize> = (0..rank).collect();
    let dims = scaled(cx, scales, &axes).or_else(|| cx.rank(0).map(|r| cx.unknown_dims(r)));
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn infer_matrix(cx: &mut InferCx<'_>) -> Inferred {
    let (out, size) = (cx.unknown(), cx.unknown());
    cx.set(0, Some(DType::Float), Some(vec![out.clone(), size]));
    cx.set(1, Some(DType::Bool), Some(vec![out]));
    Ok(())
}

const COPIED: [&str; 9] = [
    "antialias",
    "axes",
    "coordinate_transformation_mode",
    "cubic_coeff_a",
    "exclude_outside",
    "keep_aspect_ratio_policy",
    "mode",
    "nearest_mode",
    "scales",
];

fn expand(cx: &ExpandCx<'_>, slots: Slots) -> Defined {
    let (b, node, rank) = (cx.b, cx.node(), cx.rank(0)?);
    let upsample = &*node.op.op_type == "Upsample";
    let named = match node.ints("axes") {
        Some(axes) => normal_axes(axes, rank)?,
        None => (0..rank).collect(),
    };
    let mut attrs: Vec<(&str, Attr)> = COPIED
        .into_iter()
        .filter_map(|name| Some((name, node.attrs.get(name)?.clone())))
        .collect();
    if upsample || cx.b.opset() < 11 {
        attrs.push(("coordinate_transformation_mode", "asymmetric".into()));
        attrs.push(("nearest_mode", "floor".into()));
    }
    let operand = |slot: Option<usize>| slot.and_then(|s| cx.optional(s));
    let x = cx.input(0)?;
    let shape = b.shape(x);
    let ins = [
        Some(shape),
        operand(slots.roi),
        operand(slots.scales),
        operand(slots.sizes),
    ];
    if ins[2..].iter().all(Option::is_none) && node.attr("scales").is_none() {
        return no_gradient("neither scales nor sizes");
    }
    let crops = node.str("coordinate_transformation_mode") == Some("tf_crop_and_resize");
    let ty = cx.float(0);
    let mut y = x;
    for &axis in &named {
        if !crops && stays(cx, &slots, &named, axis) {
            continue;
        }
        let mut own = attrs.clone();
        own.push(("axis", (axis as i64).into()));
        let made = b.node_n(OpId::new(DOMAIN, "ResizeMatrix"), &ins, &own, 2);
        let weights = super::kit::grad::convert(b, made[0], DType::Float, ty);
        y = along(b, y, weights, axis, rank);
        if crops {
            let behind: Vec<i64> = (1..(rank - axis) as i64).collect();
            let outside = if behind.is_empty() {
                made[1]
            } else {
                b.unsqueeze(made[1], &behind)
            };
            let value = b.scalar_of(node.float("extrapolation_value", 0.0), ty);
            y = b.op("Where", &[outside, value, y], &[]);
        }
    }
    Ok(vec![Some(if y == x { b.unary("Identity", x) } else { y })])
}

/// Whether an axis keeps its size: no scale, or that of 1, as far as it is known now.
fn stays(cx: &ExpandCx<'_>, slots: &Slots, named: &[usize], axis: usize) -> bool {
    let Some(at) = named.iter().position(|a| *a == axis) else {
        return true;
    };
    let constant = |slot: usize| {
        let v = cx.graph.input(cx.id, slot)?;
        cx.graph.value(v).tensor.as_ref()
    };
    if let Some(scales) = slots.scales {
        let scales = constant(scales).and_then(TensorData::to_f32);
        return scales.is_some_and(|s| s.get(at).is_some_and(|s| s.to_bits() == 1f32.to_bits()));
    }
    let stretch = matches!(
        cx.node().str("keep_aspect_ratio_policy"),
        None | Some("stretch")
    );
    let Some(sizes) = slots.sizes.filter(|_| stretch) else {
        return false;
    };
    let size = cx.fact(sizes).ints.and_then(|v| v.get(at)?.as_const());
    size.is_some() && size == cx.fact(0).size(axis as i64)
}

/// The product along one axis: `y[.., o, ..] = Σ M[o, i]·x[.., i, ..]`.
fn along(b: &crate::ir::Builder, x: Val, m: Val, axis: usize, rank: usize) -> Val {
    if axis + 2 == rank {
        return b.matmul(m, x);
    }
    let mut perm: Vec<i64> = (0..rank as i64).collect();
    perm.swap(axis, rank - 1);
    let moved = axis + 1 != rank;
    let x = if moved { b.transpose(x, &perm) } else { x };
    let y = b.matmul(x, b.transpose(m, &[1, 0]));
    if moved { b.transpose(y, &perm) } else { y }
}
