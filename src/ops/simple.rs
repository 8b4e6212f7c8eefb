//! Functions that are a few simple operators: `Hardmax` (1, 11, 13), `Shrink` (9), `SwiGLU` (28), the windows of signal processing (17),
//! and of onnxruntime `BiasSplitGelu`, `BiasAdd`, `BiasSoftmax`, `GemmFastGelu`, `FusedGemm`, `FusedConv` (1).

use super::kit::grad::convert;
use super::kit::infer::{normal_axis, same_as_input};
use super::kit::{Defined, Inferred, MS, no_gradient, wrong};
use super::{ExpandCx, GradError, InferCx, OpDef};
use crate::ir::{Attr, DType, OpId, Sym, TensorData, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Hardmax", 1..=1, same_as_input).defined_by(hardmax),
    OpDef::new("Shrink", 1..=1, same_as_input).defined_by(shrink),
    OpDef::new("SwiGLU", 2..=2, same_as_input).defined_by(swiglu),
    OpDef::new("HannWindow", 1..=1, infer_window).defined_by(|cx| window(cx, 0.5, 0.5, 0.0)),
    OpDef::new("HammingWindow", 1..=1, infer_window)
        .defined_by(|cx| window(cx, 25.0 / 46.0, 21.0 / 46.0, 0.0)),
    OpDef::new("BlackmanWindow", 1..=1, infer_window).defined_by(|cx| window(cx, 0.42, 0.5, 0.08)),
    OpDef::new("BiasSplitGelu", 2..=2, infer_split)
        .in_domain(MS)
        .defined_by(split_gelu),
    OpDef::new("BiasAdd", 3..=3, same_as_input)
        .in_domain(MS)
        .defined_by(|cx| {
            let sum = cx.b.add(cx.input(0)?, cx.input(1)?);
            Ok(vec![Some(cx.b.add(sum, cx.input(2)?))])
        }),
    OpDef::new("BiasSoftmax", 2..=2, same_as_input)
        .in_domain(MS)
        .defined_by(bias_softmax),
    OpDef::new("GemmFastGelu", 2..=3, |cx| {
        let (a, b) = (cx.dims_vec(0), cx.dims_vec(1));
        let dims = match (a, b) {
            (Some(a), Some(b)) => Some(super::matmul::product(cx, a, b)?),
            _ => None,
        };
        cx.set(0, cx.dtype(0), dims);
        Ok(())
    })
    .in_domain(MS)
    .defined_by(|cx| {
        let mut y = cx.b.matmul(cx.input(0)?, cx.input(1)?);
        if let Some(bias) = cx.optional(2) {
            y = cx.b.add(y, bias);
        }
        Ok(vec![Some(cx.b.op_in(MS, "FastGelu", &[y], &[]))])
    }),
    OpDef::new("FusedGemm", 2..=3, super::gemm::infer)
        .in_domain(MS)
        .defined_by(|cx| fused(cx, "Gemm", &["alpha", "beta", "transA", "transB"], 3)),
    OpDef::new("FusedConv", 2..=4, super::conv::infer_conv)
        .in_domain(MS)
        .defined_by(|cx| {
            let attrs = [
                "auto_pad",
                "dilations",
                "group",
                "kernel_shape",
                "pads",
                "strides",
            ];
            fused(cx, "Conv", &attrs, 3)
        }),
];

/// One where the first largest element is.
fn hardmax(cx: &ExpandCx<'_>) -> Defined {
    let (b, rank, ty) = (cx.b, cx.rank(0)?, cx.float(0));
    let early = b.opset() < 13;
    let axis = normal_axis(cx.node().int("axis", if early { 1 } else { -1 }), rank)?;
    if early && axis + 1 != rank {
        return no_gradient("a hardmax over several axes");
    }
    let axis = axis as i64;
    let x = cx.input(0)?;
    let attrs: [(&str, Attr); 2] = [("axis", axis.into()), ("keepdims", 0i64.into())];
    let best = b.op("ArgMax", &[x], &attrs);
    let depth = b.slice(b.shape(x), 0, axis, axis + 1);
    let values = TensorData::from_floats(ty, [2], &[0.0, 1.0]);
    let values = values.ok_or_else(|| GradError(format!("values of type {ty}")))?;
    let y = b.op(
        "OneHot",
        &[best, depth, b.constant(values)],
        &[("axis", axis.into())],
    );
    Ok(vec![Some(y)])
}

fn shrink(cx: &ExpandCx<'_>) -> Defined {
    let (b, ty, x) = (cx.b, cx.float(0), cx.input(0)?);
    let number = |v: f32| {
        if ty.is_float() {
            b.scalar_of(v, ty)
        } else {
            b.cast(b.scalar(v), ty)
        }
    };
    let (edge, bias) = (
        cx.node().float("lambd", 0.5),
        number(cx.node().float("bias", 0.0)),
    );
    let below = b.op("Less", &[x, number(-edge)], &[]);
    let above = b.op("Greater", &[x, number(edge)], &[]);
    let upper = b.op("Where", &[above, b.sub(x, bias), number(0.0)], &[]);
    Ok(vec![Some(b.op(
        "Where",
        &[below, b.add(x, bias), upper],
        &[],
    ))])
}

fn swiglu(cx: &ExpandCx<'_>) -> Defined {
    let (b, a) = (cx.b, cx.input(0)?);
    let gate = b.unary("Sigmoid", b.scale(a, cx.node().float("alpha", 1.0)));
    Ok(vec![Some(b.mul(b.mul(a, gate), cx.input(1)?))])
}

fn infer_window(cx: &mut InferCx<'_>) -> Inferred {
    let size = match cx.ints(0).as_deref() {
        Some([n]) => cx.as_size(n),
        _ => cx.unknown(),
    };
    let ty = DType::from_code(cx.node.int("output_datatype", 1) as i32);
    if ty.is_none_or(|t| t == DType::Undefined) {
        return wrong("output_datatype is no element type");
    }
    cx.set(0, ty, Some(vec![size]));
    Ok(())
}

/// `a0 - a1·cos(2πn/N) + a2·cos(4πn/N)`; `N` is the size, or one less where the window is symmetric.
fn window(cx: &ExpandCx<'_>, a0: f32, a1: f32, a2: f32) -> Defined {
    let b = cx.b;
    let size = b.cast(cx.input(0)?, DType::Float);
    let size = b.reshape(size, b.ints(&[]));
    let period = match cx.node().int("periodic", 1) {
        0 => b.sub(size, b.scalar(1.0)),
        _ => size,
    };
    let n = b.op("Range", &[b.scalar(0.0), size, b.scalar(1.0)], &[]);
    let angle = b.div(b.scale(n, std::f32::consts::TAU), period);
    let once = b.scale(b.unary("Cos", angle), -a1);
    let twice = b.scale(b.unary("Cos", b.scale(angle, 2.0)), a2);
    let y = b.add(b.add(b.scalar(a0), once), twice);
    let ty = DType::from_code(cx.node().int("output_datatype", 1) as i32);
    Ok(vec![Some(convert(
        b,
        y,
        DType::Float,
        ty.unwrap_or(DType::Float),
    ))])
}

fn infer_split(cx: &mut InferCx<'_>) -> Inferred {
    let dims = cx.dims_vec(0).map(|mut d| {
        if let Some(last) = d.last_mut() {
            *last = cx.floor_div(last, &Sym::from(2));
        }
        d
    });
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

/// Of `x + bias` the first half, times the `Gelu` of the second.
fn split_gelu(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let sum = b.add(cx.input(0)?, cx.input(1)?);
    let Some(width) = cx.fact(0).size(-1) else {
        return no_gradient("the width of the input is unknown");
    };
    let (left, right) = (
        b.slice(sum, -1, 0, width / 2),
        b.slice(sum, -1, width / 2, width),
    );
    let gelu = b.op_in(MS, "Gelu", &[right], &[]);
    Ok(vec![Some(b.mul(left, gelu))])
}

/// The softmax of a sum, over the axes from `axis` on. Without `is_inner_broadcast` the bias has the size of the outermost ones.
fn bias_softmax(cx: &ExpandCx<'_>) -> Defined {
    let (b, rank) = (cx.b, cx.rank(0)?);
    let axis = normal_axis(cx.node().int("axis", 1), rank)?;
    if axis + 1 != rank {
        return no_gradient("a softmax over several axes");
    }
    let sum = b.add(cx.input(0)?, cx.input(1)?);
    let y = b.op("Softmax", &[sum], &[("axis", (axis as i64).into())]);
    Ok(vec![Some(y)])
}

/// An operator, what is added to it, and its activation.
fn fused(cx: &ExpandCx<'_>, op: &str, copied: &[&'static str], own: usize) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let ins: Vec<Option<Val>> = (0..own).map(|i| cx.optional(i)).collect();
    let ins = &ins[..ins.iter().rposition(Option::is_some).map_or(0, |i| i + 1)];
    let attrs: Vec<(&str, Attr)> = copied
        .iter()
        .filter_map(|name| Some((*name, node.attrs.get(*name)?.clone())))
        .collect();
    let mut y = b.node_n(OpId::new("", op), ins, &attrs, 1)[0];
    if let Some(sum) = cx.optional(own) {
        y = b.add(y, sum);
    }
    let listed = node.attr("activation_params").and_then(|a| a.as_floats());
    let parameter = |i: usize, name: &str, default: f32| {
        let listed = listed.and_then(|v| v.get(i).copied());
        listed.unwrap_or_else(|| node.float(name, default))
    };
    let alpha = |default: f32| Attr::from(parameter(0, "activation_alpha", default));
    let beta = |default: f32| Attr::from(parameter(1, "activation_beta", default));
    let y = match node.str("activation") {
        None | Some("") => y,
        Some("LeakyRelu") => b.op("LeakyRelu", &[y], &[("alpha", alpha(0.01))]),
        Some("HardSigmoid") => b.op(
            "HardSigmoid",
            &[y],
            &[("alpha", alpha(0.2)), ("beta", beta(0.5))],
        ),
        Some("Clip") => {
            let ty = cx.float(0);
            let low = b.scalar_of(parameter(0, "activation_alpha", f32::MIN), ty);
            let high = b.scalar_of(parameter(1, "activation_beta", f32::MAX), ty);
            b.op("Clip", &[y, low, high], &[])
        }
        Some(name @ ("Relu" | "Tanh" | "Sigmoid" | "Softplus" | "Softsign" | "HardSwish")) => {
            b.unary(name, y)
        }
        Some(other) => return no_gradient(format!("activation = {other:?}")),
    };
    Ok(vec![Some(y)])
}
