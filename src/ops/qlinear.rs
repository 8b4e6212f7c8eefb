//! Operators from integers to integers: `QLinearMatMul`, `QLinearConv` (10), and onnxruntime's `QLinearAdd`, `QLinearMul`,
//! `QLinearSigmoid`, `QLinearLeakyRelu`, `QLinearSoftmax`, `QLinearAveragePool`, `QLinearGlobalAveragePool`, `QLinearReduceMean`,
//! `QLinearConcat`, `QLinearWhere`, `QGemm` and `QAttention` (1).
//!
//! Each is defined by what it stands for: its operands dequantized (sums of products as exact integers), the operator on floats, and the
//! result quantized. Of that definition is the gradient.

use super::kit::infer::{normal_axis, same_as_input};
use super::kit::{Defined, Inferred, MANY, MS, no_gradient};
use super::{ExpandCx, GradError, InferCx, OpDef};
use crate::ir::{Attr, DType, OpId, Sym, Val};

const fn ms(
    name: &'static str,
    inputs: std::ops::RangeInclusive<usize>,
    infer: fn(&mut InferCx<'_>) -> Inferred,
    definition: super::Definition,
) -> OpDef {
    OpDef::new(name, inputs, infer)
        .in_domain(MS)
        .defined_by(definition)
}

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("QLinearMatMul", 8..=8, infer_matmul).defined_by(expand_matmul),
    OpDef::new("QLinearConv", 8..=9, infer_conv).defined_by(expand_conv),
    ms("QLinearAdd", 7..=8, infer_binary, |cx| binary(cx, "Add")),
    ms("QLinearMul", 7..=8, infer_binary, |cx| binary(cx, "Mul")),
    ms("QLinearSigmoid", 4..=5, same_as_input, |cx| {
        unary(cx, "Sigmoid", &[])
    }),
    ms("QLinearLeakyRelu", 4..=5, same_as_input, |cx| {
        let alpha = cx.node().float("alpha", 0.01);
        unary(cx, "LeakyRelu", &[("alpha", alpha.into())])
    }),
    ms("QLinearSoftmax", 5..=5, same_as_input, expand_softmax),
    ms(
        "QLinearAveragePool",
        4..=5,
        |cx| pooled(cx, false),
        |cx| {
            let attrs = copied(
                cx,
                &[
                    "auto_pad",
                    "ceil_mode",
                    "count_include_pad",
                    "kernel_shape",
                    "pads",
                    "strides",
                ],
            );
            pool(cx, "AveragePool", &attrs)
        },
    ),
    ms(
        "QLinearGlobalAveragePool",
        4..=5,
        |cx| pooled(cx, true),
        |cx| pool(cx, "GlobalAveragePool", &[]),
    ),
    ms("QLinearReduceMean", 4..=5, infer_mean, expand_mean),
    ms("QLinearConcat", 5..=MANY, infer_concat, expand_concat),
    ms("QLinearWhere", 9..=9, infer_where, expand_where),
    ms("QGemm", 6..=9, infer_gemm, expand_gemm),
    ms("QAttention", 5..=9, infer_attention, expand_attention),
];

/// The float that an operand stands for: `slot` holds its integers, `scale` its scale and, behind that, its zero point.
fn real(cx: &ExpandCx<'_>, slot: usize, scale: usize, axis: i64) -> Result<Val, GradError> {
    let ins = [
        Some(cx.input(slot)?),
        Some(cx.input(scale)?),
        cx.optional(scale + 1),
    ];
    let n = if ins[2].is_some() { 3 } else { 2 };
    let op = OpId::new("", "DequantizeLinear");
    Ok(cx.b.node_n(op, &ins[..n], &[("axis", axis.into())], 1)[0])
}

/// A result as integers again. Without a zero point it has the type of the first operand.
fn quantized(cx: &ExpandCx<'_>, y: Val, scale: usize) -> Defined {
    let b = cx.b;
    let zero = cx.optional(scale + 1).unwrap_or_else(|| {
        let ty = cx.fact(0).dtype.unwrap_or(DType::Uint8);
        b.cast(b.scalar(0.0), ty)
    });
    let q = b.op("QuantizeLinear", &[y, cx.input(scale)?, zero], &[]);
    Ok(vec![Some(q)])
}

/// Attributes of the node, as they are.
fn copied(cx: &ExpandCx<'_>, names: &[&'static str]) -> Vec<(&'static str, Attr)> {
    let there = |name: &&'static str| Some((*name, cx.node().attrs.get(*name)?.clone()));
    names.iter().filter_map(there).collect()
}

fn infer_binary(cx: &mut InferCx<'_>) -> Inferred {
    let dims = cx.broadcast_inputs([0, 3])?;
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn binary(cx: &ExpandCx<'_>, op: &str) -> Defined {
    let (x, y) = (real(cx, 0, 1, 0)?, real(cx, 3, 4, 0)?);
    quantized(cx, cx.b.op(op, &[x, y], &[]), 6)
}

fn unary(cx: &ExpandCx<'_>, op: &str, attrs: &[(&str, Attr)]) -> Defined {
    let y = cx.b.op(op, &[real(cx, 0, 1, 0)?], attrs);
    quantized(cx, y, 3)
}

/// `Softmax` over one axis from opset 13 on; over this and all behind it before.
fn expand_softmax(cx: &ExpandCx<'_>) -> Defined {
    let rank = cx.rank(0)?;
    let opset = cx.node().int("opset", 13);
    let axis = normal_axis(cx.node().int("axis", if opset < 13 { 1 } else { -1 }), rank)?;
    if opset < 13 && axis + 1 != rank {
        return no_gradient("a softmax over several axes");
    }
    unary(cx, "Softmax", &[("axis", (axis as i64).into())])
}

fn pooled(cx: &mut InferCx<'_>, global: bool) -> Inferred {
    if cx.node.int("channels_last", 0) != 0 {
        cx.set(0, cx.dtype(0), None);
        return Ok(());
    }
    if global {
        super::conv::infer_global(cx)
    } else {
        super::conv::infer_pool(cx)
    }
}

/// A pooling operator, which has channels in front.
fn pool(cx: &ExpandCx<'_>, op: &str, attrs: &[(&'static str, Attr)]) -> Defined {
    let (b, rank) = (cx.b, cx.rank(0)? as i64);
    let last = cx.node().int("channels_last", 0) != 0;
    let mut x = real(cx, 0, 1, 0)?;
    if last {
        let perm: Vec<i64> = [0, rank - 1].into_iter().chain(1..rank - 1).collect();
        x = b.transpose(x, &perm);
    }
    let mut y = b.op(op, &[x], attrs);
    if last {
        let perm: Vec<i64> = [0].into_iter().chain(2..rank).chain([1]).collect();
        y = b.transpose(y, &perm);
    }
    quantized(cx, y, 3)
}

fn infer_mean(cx: &mut InferCx<'_>) -> Inferred {
    let keep = cx.node.int("keepdims", 1) != 0;
    let dims = match (cx.dims_vec(0), cx.node.ints("axes")) {
        (Some(d), axes) => {
            let all: Vec<i64> = (0..d.len() as i64).collect();
            let axes = super::kit::infer::normal_axes(axes.unwrap_or(&all), d.len())?;
            let kept = d.into_iter().enumerate().filter_map(|(i, s)| {
                if axes.contains(&i) {
                    keep.then(|| Sym::from(1))
                } else {
                    Some(s)
                }
            });
            Some(kept.collect())
        }
        _ => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

fn expand_mean(cx: &ExpandCx<'_>) -> Defined {
    let rank = cx.rank(0)? as i64;
    let all: Vec<i64> = (0..rank).collect();
    let axes = cx.node().ints("axes").unwrap_or(&all);
    let keep = cx.node().int("keepdims", 1) != 0;
    let y = cx.b.reduce_mean(real(cx, 0, 1, 0)?, axes, keep);
    quantized(cx, y, 3)
}

/// Operands of `QLinearConcat` begin at slot 2, each with scale and zero point.
fn infer_concat(cx: &mut InferCx<'_>) -> Inferred {
    let parts: Option<Vec<Vec<Sym>>> = (2..cx.inputs.len())
        .step_by(3)
        .map(|i| cx.dims_vec(i))
        .collect();
    let dims = match parts.as_deref() {
        Some([first, rest @ ..]) => {
            let axis = normal_axis(cx.node.int("axis", 0), first.len())?;
            let mut dims = first.clone();
            for part in rest {
                let sum = part.get(axis).and_then(|s| dims[axis].add(s));
                dims[axis] = sum.unwrap_or_else(|| cx.unknown());
            }
            Some(dims)
        }
        _ => None,
    };
    cx.set(0, cx.dtype(2), dims);
    Ok(())
}

fn expand_concat(cx: &ExpandCx<'_>) -> Defined {
    let n = cx.graph.node_inputs(cx.id).len();
    let parts = (2..n).step_by(3).map(|i| real(cx, i, i + 1, 0));
    let parts = parts.collect::<Result<Vec<Val>, GradError>>()?;
    let y = cx.b.concat(&parts, cx.node().int("axis", 0));
    quantized(cx, y, 0)
}

fn infer_where(cx: &mut InferCx<'_>) -> Inferred {
    let dims = cx.broadcast_inputs([0, 1, 4])?;
    cx.set(0, cx.dtype(1), dims);
    Ok(())
}

fn expand_where(cx: &ExpandCx<'_>) -> Defined {
    let ins = [cx.input(0)?, real(cx, 1, 2, 0)?, real(cx, 4, 5, 0)?];
    let y = cx.b.op("Where", &ins, &[]);
    quantized(cx, y, 7)
}

fn infer_matmul(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match (cx.dims_vec(0), cx.dims_vec(3)) {
        (Some(a), Some(b)) => Some(super::matmul::product(cx, a, b)?),
        _ => None,
    };
    cx.set(0, cx.dtype(7), dims);
    Ok(())
}

/// The exact sum of products as a float: operands at slots 0 and 3, a scale of `a` for each row, of `b` for each column.
fn sum(cx: &ExpandCx<'_>, a: Val, w: Val) -> Result<(Val, Val), GradError> {
    let b = cx.b;
    let ins = [Some(a), Some(w), cx.optional(2), cx.optional(5)];
    let sum = b.node_n(OpId::new("", "MatMulInteger"), &ins, &[], 1)[0];
    let ty = cx.float(1);
    let by_row = cx.fact(1).rank() == Some(1) && cx.fact(1).size(0) != Some(1);
    let left = if by_row {
        b.unsqueeze(cx.input(1)?, &[1])
    } else {
        cx.input(1)?
    };
    Ok((b.cast(sum, ty), b.mul(left, cx.input(4)?)))
}

fn expand_matmul(cx: &ExpandCx<'_>) -> Defined {
    let (sum, scale) = sum(cx, cx.input(0)?, cx.input(3)?)?;
    quantized(cx, cx.b.mul(sum, scale), 6)
}

fn infer_gemm(cx: &mut InferCx<'_>) -> Inferred {
    let turned = |d: Vec<Sym>, name: &str| {
        let mut d = d;
        if cx.node.int(name, 0) != 0 {
            d.reverse();
        }
        d
    };
    let dims = match (cx.dims_vec(0), cx.dims_vec(3)) {
        (Some(a), Some(b)) => {
            let (a, b) = (turned(a, "transA"), turned(b, "transB"));
            Some(super::matmul::product(cx, a, b)?)
        }
        _ => None,
    };
    let ty = match cx.input(7) {
        Some(_) => cx.dtype(0),
        None => cx.dtype(1),
    };
    cx.set(0, ty, dims);
    Ok(())
}

/// `alpha·A·B + C`, where `C` has the scale `alpha·(scale of A)·(scale of B)`. Without a scale of the result that is a float.
fn expand_gemm(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let side = |slot: usize, name: &str| -> Result<Val, GradError> {
        let v = cx.input(slot)?;
        Ok(match cx.node().int(name, 0) {
            0 => v,
            _ => b.transpose(v, &[1, 0]),
        })
    };
    let (mut total, scale) = sum(cx, side(0, "transA")?, side(3, "transB")?)?;
    if let Some(c) = cx.optional(6) {
        total = b.add(total, b.cast(c, cx.float(1)));
    }
    let y = b.mul(total, b.scale(scale, cx.node().float("alpha", 1.0)));
    match cx.optional(7) {
        Some(_) => quantized(cx, y, 7),
        None => Ok(vec![Some(y)]),
    }
}

fn infer_conv(cx: &mut InferCx<'_>) -> Inferred {
    cx.inputs.swap(1, 3);
    super::conv::infer_conv(cx)?;
    cx.inputs.swap(1, 3);
    cx.outputs[0].dtype = cx.dtype(7);
    Ok(())
}

/// The bias has the scale of the sums.
fn expand_conv(cx: &ExpandCx<'_>) -> Defined {
    let (b, rank) = (cx.b, cx.rank(0)? as i64);
    let attrs = copied(
        cx,
        &[
            "auto_pad",
            "dilations",
            "group",
            "kernel_shape",
            "pads",
            "strides",
        ],
    );
    let ins = [
        Some(cx.input(0)?),
        Some(cx.input(3)?),
        cx.optional(2),
        cx.optional(5),
    ];
    let total = b.node_n(OpId::new("", "ConvInteger"), &ins, &attrs, 1)[0];
    let behind: Vec<i64> = (1..rank - 1).collect();
    let channels = |v: Val, slot: usize| match cx.fact(slot).dims.as_deref() {
        Some([n]) if !n.is(1) => b.unsqueeze(v, &behind),
        _ => v,
    };
    let total = match cx.optional(8) {
        Some(bias) => b.add(total, b.unsqueeze(bias, &behind)),
        None => total,
    };
    let scale = b.mul(cx.input(1)?, channels(cx.input(4)?, 4));
    quantized(cx, b.mul(b.cast(total, cx.float(1)), scale), 6)
}

/// Inputs are those of `Attention`, with scales of input and weight in front of the mask, and their zero points behind it.
fn infer_attention(cx: &mut InferCx<'_>) -> Inferred {
    let dims = cx.dims_vec(0).map(|mut d| {
        let third = cx.dims(1).and_then(|w| w.get(1)).and_then(Sym::as_const);
        if let Some(last) = d.last_mut() {
            *last = third.map_or_else(|| cx.unknown(), |n| Sym::from(n / 3));
        }
        d
    });
    cx.set(0, cx.dtype(2), dims);
    Ok(())
}

fn expand_attention(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let part = |slot: usize, scale: usize, zero: usize, axis: i64| -> Result<Val, GradError> {
        let ins = [
            Some(cx.input(slot)?),
            Some(cx.input(scale)?),
            cx.optional(zero),
        ];
        let n = if ins[2].is_some() { 3 } else { 2 };
        let op = OpId::new("", "DequantizeLinear");
        Ok(b.node_n(op, &ins[..n], &[("axis", axis.into())], 1)[0])
    };
    let ins = [
        Some(part(0, 3, 6, 2)?),
        Some(part(1, 4, 7, 1)?),
        cx.optional(2),
        cx.optional(5),
        cx.optional(8),
    ];
    let attrs = copied(
        cx,
        &[
            "num_heads",
            "unidirectional",
            "do_rotary",
            "mask_filter_value",
            "scale",
        ],
    );
    let outs = if cx.has_output(1) { 2 } else { 1 };
    let made = b.node_n(OpId::new(MS, "Attention"), &ins, &attrs, outs);
    Ok(made.into_iter().map(Some).collect())
}
