//! `com.microsoft::MoE` and `QMoE` (1): for each token some experts of two or three linear maps, weighted by a router.
//!
//! The definition computes all experts and weighs those that a token does not take with zero: the result and the gradient are the same.
//! Weights of few bits are dequantized by `onnx_graft::DequantizeNBits`, an expert's rows after the other's.

use super::kit::grad::convert;
use super::kit::infer::same_as_input;
use super::kit::{DOMAIN, Defined, MS, no_gradient};
use super::{ExpandCx, GradError, OpDef};
use crate::ir::{Attr, DType, OpId, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("MoE", 4..=8, same_as_input)
        .in_domain(MS)
        .defined_by(|cx| expand(cx, &[2, 4, 6].map(|slot| layer(cx, slot)))),
    OpDef::new("QMoE", 7..=15, same_as_input)
        .in_domain(MS)
        .defined_by(|cx| {
            let third = cx.optional(8).is_some();
            let layers = [(2, 11), (5, 12), (8, 13)]
                .map(|(slot, zeros)| (slot < 8 || third).then(|| quantized(cx, slot, zeros)));
            let layers = layers.map(|l| l.unwrap_or(Ok(None)));
            expand(cx, &layers)
        }),
];

/// The weight of a layer, `[experts, out, in]`, and its bias, `[experts, out]`.
type Layer = Result<Option<(Val, Option<Val>)>, GradError>;

fn layer(cx: &ExpandCx<'_>, slot: usize) -> Layer {
    Ok(cx.optional(slot).map(|w| (w, cx.optional(slot + 1))))
}

/// Codes, scales, bias; zero points are elsewhere.
fn quantized(cx: &ExpandCx<'_>, slot: usize, zeros: usize) -> Layer {
    let (b, node) = (cx.b, cx.node());
    let bits = node.int("expert_weight_bits", 4);
    let sizes = |slot: usize| -> Result<Vec<i64>, GradError> {
        let dims = cx.fact(slot).dims.unwrap_or_default();
        let known: Option<Vec<i64>> = dims.iter().map(crate::ir::Sym::as_const).collect();
        known
            .filter(|d| d.len() >= 2)
            .ok_or_else(|| GradError(format!("the shape of input {slot} is unknown")))
    };
    let codes = sizes(slot)?;
    let &[experts, rows, bytes] = &codes[..] else {
        return no_gradient(format!("experts of shape {codes:?}"));
    };
    if !matches!(bits, 2 | 4 | 8) {
        return no_gradient(format!("expert_weight_bits = {bits}"));
    }
    let (n, k) = (experts * rows, bytes * 8 / bits);
    let block = match node.int("block_size", 0) {
        0 => k,
        block => block,
    };
    let blocks = (k + block - 1) / block;
    let codes = b.reshape(cx.input(slot)?, b.ints(&[n, blocks, -1]));
    let scales = b.reshape(cx.input(slot + 1)?, b.ints(&[n, blocks]));
    let zero = cx.optional(zeros).map(|z| b.reshape(z, b.ints(&[n, -1])));
    let attrs: [(&str, Attr); 4] = [
        ("K", k.into()),
        ("N", n.into()),
        ("bits", bits.into()),
        ("block_size", block.into()),
    ];
    let ins = [Some(codes), Some(scales), zero];
    let ins = if zero.is_some() { &ins[..] } else { &ins[..2] };
    let w = b.node_n(OpId::new(DOMAIN, "DequantizeNBits"), ins, &attrs, 1)[0];
    let w = convert(b, w, cx.float(slot + 1), cx.float(0));
    let w = b.reshape(w, b.ints(&[experts, rows, k]));
    Ok(Some((w, cx.optional(slot + 2))))
}

fn expand(cx: &ExpandCx<'_>, layers: &[Layer; 3]) -> Defined {
    let (b, ty) = (cx.b, cx.float(0));
    let [up, down, beside] = layers.clone();
    let (Some(up), Some(down)) = (up?, down?) else {
        return no_gradient("a layer of the experts is absent");
    };
    let width = cx.fact(0).size(-1);
    let width = width.ok_or_else(|| GradError("the width of the input is unknown".into()))?;
    let tokens = b.reshape(cx.input(0)?, b.ints(&[1, -1, width]));
    let linear = |x: Val, (w, bias): (Val, Option<Val>)| {
        let y = b.matmul(x, b.transpose(w, &[0, 2, 1]));
        bias.map_or(y, |v| b.add(y, b.unsqueeze(v, &[1])))
    };
    let mut h = activated(cx, linear(tokens, up))?;
    if let Some(beside) = beside? {
        h = b.mul(h, linear(tokens, beside));
    }
    let each = linear(h, down);
    let share = b.unsqueeze(b.transpose(shares(cx, ty)?, &[1, 0]), &[2]);
    let sum = b.reduce_sum(b.mul(each, share), &[0], false);
    Ok(vec![Some(b.reshape(sum, b.shape(cx.input(0)?)))])
}

/// `[tokens, experts]`: the probabilities of the `k` likeliest experts, which sum up to one where that is asked for.
fn shares(cx: &ExpandCx<'_>, ty: DType) -> Result<Val, GradError> {
    let (b, node) = (cx.b, cx.node());
    let last: [(&str, Attr); 1] = [("axis", (-1i64).into())];
    if node.int("use_sparse_mixer", 0) != 0 {
        return no_gradient("use_sparse_mixer = 1");
    }
    let p = b.op("Softmax", &[cx.input(1)?], &last);
    let k = b.ints(&[node.int("k", 1)]);
    let top = b.node_n(OpId::new("", "TopK"), &[Some(p), Some(k)], &last, 2);
    let mut best = top[0];
    if node.int("normalize_routing_weights", 0) != 0 {
        best = b.div(best, b.reduce_sum(best, &[-1], true));
    }
    let none = b.mul(p, b.scalar_of(0.0, ty));
    Ok(b.op("ScatterElements", &[none, top[1], best], &last))
}

fn activated(cx: &ExpandCx<'_>, h: Val) -> Result<Val, GradError> {
    let (b, node, ty) = (cx.b, cx.node(), cx.float(0));
    let swish = |x: Val, alpha: f32| b.mul(x, b.unary("Sigmoid", b.scale(x, alpha)));
    Ok(match node.str("activation_type").unwrap_or("relu") {
        "relu" => b.unary("Relu", h),
        "silu" => swish(h, 1.0),
        "gelu" => b.op_in(MS, "FastGelu", &[h], &[]),
        "identity" => h,
        "swiglu" => {
            let odd = |first: i64| {
                let (end, axis, step) = (b.ints(&[i64::MAX]), b.ints(&[-1]), b.ints(&[2]));
                b.op("Slice", &[h, b.ints(&[first]), end, axis, step], &[])
            };
            let (mut gate, mut value) = match node.int("swiglu_fusion", 0) {
                1 => (odd(0), odd(1)),
                2 => {
                    let attrs: [(&str, Attr); 1] = [("axis", (-1i64).into())];
                    let size = b.slice(b.shape(h), 0, -1, i64::MAX);
                    let half = b.div(size, b.ints(&[2]));
                    let sizes = b.concat(&[half, half], 0);
                    let parts =
                        b.node_n(OpId::new("", "Split"), &[Some(h), Some(sizes)], &attrs, 2);
                    (parts[0], parts[1])
                }
                other => return no_gradient(format!("swiglu_fusion = {other}")),
            };
            if node.attr("swiglu_limit").is_some() {
                let limit = node.float("swiglu_limit", f32::INFINITY);
                let edge = b.scalar_of(limit, ty);
                gate = b.op("Min", &[gate, edge], &[]);
                value = b.op("Clip", &[value, b.scalar_of(-limit, ty), edge], &[]);
            }
            let value = match node.float("activation_beta", 0.0) {
                0.0 => value,
                beta => b.add(value, b.scalar_of(beta, ty)),
            };
            b.mul(swish(gate, node.float("activation_alpha", 1.0)), value)
        }
        other => return no_gradient(format!("activation_type = {other:?}")),
    })
}
