//! Weights of few bits in blocks: `com.microsoft::MatMulNBits`, `MatMulBnb4` and `GatherBlockQuantized` (1).
//!
//! Weights are constants: dequantizing them is on no path, and the products pass the gradient of their activation through the
//! dequantized weight.
//!
//! The own operator `DequantizeNBits{K, N, bits, block_size}(B, scales, zero_points?, order?) -> W` is the weight of `MatMulNBits`:
//! `W[n, k] = (q[n, k] - z[n, k / block_size])·scales[n, k / block_size]`, of shape `[N, K]` and the type of `scales`. `q` is read
//! from `B[n, block, byte]` from the low bits up. `z` is `2^(bits - 1)` unless given: packed like `B`, each row filled up to a byte, or
//! already of the type of `scales`. With `order` (`g_idx`) the block of column `k` is `order[k]`.
//!
//! `DequantizeBnb4{K, N, block_size, quant_type}(B, absmax) -> W` is the weight of `MatMulBnb4`: codes of four bits, the first in the
//! high ones, that stand for the values of FP4 (0) or NF4 (1), times the `absmax` of so many elements of `[N, K]` in that order.

use super::kit::grad::{convert, rows};
use super::kit::infer::{normal_axis, same_size};
use super::kit::{DOMAIN, Defined, Differentiated, Inferred, MS, no_gradient, wrong};
use super::{ExpandCx, GradCx, InferCx, OpDef};
use crate::ir::{Attr, AttrValue, Builder, DType, OpId, Sym, TensorData, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("MatMulNBits", 3..=6, infer_product)
        .in_domain(MS)
        .gradient(grad_nbits),
    OpDef::new("MatMulBnb4", 3..=3, infer_bnb4)
        .in_domain(MS)
        .defined_by(expand_bnb4),
    OpDef::new("GatherBlockQuantized", 3..=4, infer_gather).in_domain(MS),
    OpDef::new("DequantizeNBits", 2..=4, infer_weight)
        .in_domain(DOMAIN)
        .defined_by(expand_weight),
    OpDef::new("DequantizeBnb4", 2..=2, infer_weight)
        .in_domain(DOMAIN)
        .zero(),
];

/// The values of bitsandbytes' FP4, by code.
pub(crate) const FP4: [f32; 16] = [
    0.0,
    5.208_333_3e-3,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -5.208_333_3e-3,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];
/// The same of NF4.
pub(crate) const NF4: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// `[.., K]` to `[.., N]`.
fn infer_product(cx: &mut InferCx<'_>) -> Inferred {
    let (k, n) = (cx.node.int("K", 0), cx.node.int("N", 0));
    let dims = match cx.dims(0) {
        Some(d) => {
            let mut d = d.to_vec();
            let Some(last) = d.last_mut() else {
                return wrong("input 0 is a scalar");
            };
            same_size(last, &Sym::from(k), "the width of the input and K")?;
            *last = Sym::from(n);
            Some(d)
        }
        None => None,
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}

/// `dA = g·W`.
fn grad_nbits(cx: &mut GradCx<'_>) -> Differentiated {
    cx.refuse(&[1, 2, 3, 4], "quantized weights")?;
    let (b, node) = (cx.b, cx.node());
    if cx.wants(0) {
        let names = ["K", "N", "bits", "block_size"];
        let defaults = [0, 0, 4, 0];
        let attrs: Vec<(&str, Attr)> = names
            .into_iter()
            .zip(defaults)
            .map(|(name, d)| (name, node.int(name, d).into()))
            .collect();
        let mut ins = vec![Some(cx.input(1)?), Some(cx.input(2)?)];
        ins.extend([cx.optional(3), cx.optional(4)]);
        let w = b.node_n(OpId::new(DOMAIN, "DequantizeNBits"), &ins, &attrs, 1)[0];
        let w = convert(b, w, cx.float(2), cx.float(0));
        cx.set(0, b.matmul(cx.grad()?, w));
    }
    if cx.wants(5) {
        let bias = cx.input(5)?;
        let flat = rows(b, cx.grad()?, bias, &cx.fact(5), 0);
        cx.set(5, b.reduce_sum(flat, &[0], false));
    }
    Ok(())
}

fn infer_bnb4(cx: &mut InferCx<'_>) -> Inferred {
    if cx.node.int("transB", 1) == 0 {
        return wrong("transB = 0, expected 1: the weight is stored as [N, K]");
    }
    infer_product(cx)
}

/// `A·Wᵀ`.
fn expand_bnb4(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let names = ["K", "N", "block_size", "quant_type"];
    let attrs: Vec<(&str, Attr)> = names
        .into_iter()
        .map(|name| (name, node.int(name, i64::from(name == "quant_type")).into()))
        .collect();
    let w = b.op_in(
        DOMAIN,
        "DequantizeBnb4",
        &[cx.input(1)?, cx.input(2)?],
        &attrs,
    );
    let w = convert(b, w, cx.float(2), cx.float(0));
    Ok(vec![Some(b.matmul(cx.input(0)?, b.transpose(w, &[1, 0])))])
}

fn infer_weight(cx: &mut InferCx<'_>) -> Inferred {
    let dims = vec![
        Sym::from(cx.node.int("N", 0)),
        Sym::from(cx.node.int("K", 0)),
    ];
    cx.set(0, cx.dtype(1), Some(dims));
    Ok(())
}

/// Bytes `[n, m]` as their numbers of `bits` bits each, from the low bits up, `[n, m·8/bits]`, in a float type.
fn unpack(b: &Builder, v: Val, bits: i64, ty: DType) -> Val {
    if bits == 8 {
        return b.cast(v, ty);
    }
    let byte = |x: i64| b.constant(TensorData::raw(DType::Uint8, [], vec![x as u8].into()));
    let parts: Vec<Val> = (0..8 / bits)
        .map(|i| {
            let right = [("direction", "RIGHT".into())];
            let v = match i {
                0 => v,
                i => b.op("BitShift", &[v, byte(i * bits)], &right),
            };
            let wide = b.cast(v, DType::Int32);
            let modulus = b.constant(TensorData::raw(
                DType::Int32,
                [],
                (1i32 << bits).to_le_bytes().to_vec().into(),
            ));
            b.unsqueeze(b.op("Mod", &[wide, modulus], &[]), &[2])
        })
        .collect();
    let all = b.concat(&parts, 2);
    b.cast(b.reshape(all, b.ints(&[0, -1])), ty)
}

fn expand_weight(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let (k, n) = (node.int("K", 0), node.int("N", 0));
    let (bits, block) = (node.int("bits", 4), node.int("block_size", 0));
    if ![2, 4, 8].contains(&bits) || block < 1 || k < 1 || n < 1 {
        return no_gradient(format!(
            "K = {k}, N = {n}, bits = {bits}, block_size = {block}"
        ));
    }
    let blocks = k.saturating_add(block - 1) / block;
    let ty = cx.float(1);
    let q = unpack(b, b.reshape(cx.input(0)?, b.ints(&[n, -1])), bits, ty);
    if let Some(order) = cx.optional(3) {
        let each = |v: Val| b.op("Gather", &[v, order], &[("axis", 1i64.into())]);
        let zero = match cx.optional(2) {
            None => b.scalar_of(f32::from(1u8 << (bits - 1)), ty),
            Some(z) if cx.fact(2).dtype != Some(DType::Uint8) => {
                each(b.reshape(z, b.ints(&[n, blocks])))
            }
            Some(z) => each(unpack(b, b.reshape(z, b.ints(&[n, -1])), bits, ty)),
        };
        let scales = each(b.reshape(cx.input(1)?, b.ints(&[n, blocks])));
        let q = b.slice(q, 1, 0, k);
        return Ok(vec![Some(b.mul(b.sub(q, zero), scales))]);
    }
    let q = b.reshape(q, b.ints(&[n, blocks, block]));
    let zero = match cx.optional(2) {
        None => b.scalar_of(f32::from(1u8 << (bits - 1)), ty),
        Some(z) if cx.fact(2).dtype != Some(DType::Uint8) => b.reshape(z, b.ints(&[n, blocks, 1])),
        Some(z) => {
            let z = unpack(b, b.reshape(z, b.ints(&[n, -1])), bits, ty);
            b.unsqueeze(b.slice(z, 1, 0, blocks), &[2])
        }
    };
    let scales = b.reshape(cx.input(1)?, b.ints(&[n, blocks, 1]));
    let w = b.mul(b.sub(q, zero), scales);
    let w = b.reshape(w, b.ints(&[n, blocks.saturating_mul(block)]));
    Ok(vec![Some(b.slice(w, 1, 0, k))])
}

/// `data` gathered along `gather_axis` and dequantized: sub-byte elements in `u8` count as many as they are.
fn infer_gather(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match (cx.dims(0), cx.dims(1)) {
        (Some(data), Some(indices)) => {
            let at = normal_axis(cx.node.int("gather_axis", 0), data.len())?;
            let quantized = normal_axis(cx.node.int("quantize_axis", 1), data.len())?;
            let mut data = data.to_vec();
            if cx.dtype(0) == Some(DType::Uint8) {
                let bits = cx
                    .node
                    .attr("bits")
                    .and_then(AttrValue::as_int)
                    .unwrap_or(4);
                let each = 8i64.checked_div(bits).unwrap_or(1);
                let whole = data[quantized].mul(&Sym::from(each));
                data[quantized] = whole.unwrap_or_else(|| cx.unknown());
            }
            let mut dims = data[..at].to_vec();
            dims.extend_from_slice(indices);
            dims.extend_from_slice(&data[at + 1..]);
            Some(dims)
        }
        _ => None,
    };
    cx.set(0, cx.dtype(2), dims);
    Ok(())
}
