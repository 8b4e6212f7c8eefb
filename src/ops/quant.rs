//! `QuantizeLinear`, `DequantizeLinear` (10, 13, 19, 21, 23) and `DynamicQuantizeLinear` (11).
//!
//! Rounding has derivative zero almost everywhere; calling that the gradient would cut every parameter before a quantized activation
//! off in silence. Here it is *straight through*: quantizing and dequantizing again hands the gradient back as it came, and nothing where
//! `QuantizeLinear` cuts a value off at the end of its range. Scale and zero point count as constants. The integers in between stand for
//! real numbers, `(q - zero)·scale`; the gradient by them is of their scale's type, and the integer products in between (`integer`)
//! have their rules for it.

use super::kit::infer::same_as_input;
use super::kit::{Differentiated, Inferred, no_gradient};
use super::{GradCx, GradError, InferCx, OpDef};
use crate::ir::{DType, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("QuantizeLinear", 2..=3, infer_quantize).gradient(grad_quantize),
    OpDef::new("DequantizeLinear", 2..=3, infer_dequantize).gradient(grad_dequantize),
    OpDef::new("DynamicQuantizeLinear", 1..=1, infer_dynamic)
        .outputs(3..=3)
        .gradient(grad_dynamic),
];

/// The ends of what a quantized type can hold.
pub(crate) fn code_range(dtype: DType) -> Option<(f32, f32)> {
    Some(match dtype {
        DType::Uint8 => (0.0, 255.0),
        DType::Int8 => (-128.0, 127.0),
        DType::Uint16 => (0.0, 65535.0),
        DType::Int16 => (-32768.0, 32767.0),
        DType::Uint4 => (0.0, 15.0),
        DType::Int4 => (-8.0, 7.0),
        DType::Uint2 => (0.0, 3.0),
        DType::Int2 => (-2.0, 1.0),
        _ => return None,
    })
}

/// Whether an output of this operator is a real number in the form of an integer.
pub(crate) fn quantizes(op: &crate::ir::OpId, slot: usize) -> bool {
    let quantizers = ["QuantizeLinear", "DynamicQuantizeLinear"];
    slot == 0 && quantizers.iter().any(|name| op.is_onnx(name))
}

fn infer_quantize(cx: &mut InferCx<'_>) -> Inferred {
    same_as_input(cx)?;
    let named = DType::from_code(cx.node.int("output_dtype", 0) as i32);
    let ty = match (cx.dtype(2), named) {
        (Some(zero), _) => Some(zero),
        (None, Some(named)) if named != DType::Undefined => Some(named),
        _ if cx.input(2).is_none() => Some(DType::Uint8),
        _ => None,
    };
    cx.outputs[0].dtype = ty;
    Ok(())
}

fn infer_dequantize(cx: &mut InferCx<'_>) -> Inferred {
    same_as_input(cx)?;
    let named = DType::from_code(cx.node.int("output_dtype", 0) as i32);
    cx.outputs[0].dtype = named
        .filter(|&t| t != DType::Undefined)
        .or_else(|| cx.dtype(1));
    Ok(())
}

fn infer_dynamic(cx: &mut InferCx<'_>) -> Inferred {
    same_as_input(cx)?;
    cx.outputs[0].dtype = Some(DType::Uint8);
    cx.set(1, Some(DType::Float), Some(Vec::new()));
    cx.set(2, Some(DType::Uint8), Some(Vec::new()));
    Ok(())
}

/// A scale or zero point in a shape that broadcasts to the input: one number, or one for each position of `axis`.
fn spread(cx: &GradCx<'_>, slot: usize) -> Result<Val, GradError> {
    let (v, fact) = (cx.input(slot)?, cx.fact(slot));
    let dims = fact.dims.unwrap_or_default();
    if dims.iter().all(|d| d.is(1)) {
        let lead: Vec<i64> = (0..dims.len() as i64).collect();
        return Ok(if lead.is_empty() {
            v
        } else {
            cx.b.squeeze(v, &lead)
        });
    }
    if dims.len() != 1 || cx.node().int("block_size", 0) != 0 {
        return no_gradient("no rule for activations that are quantized in blocks");
    }
    let rank = cx.rank(0)?;
    let axis = super::kit::infer::normal_axis(cx.node().int("axis", 1), rank)?;
    let behind: Vec<i64> = (1..(rank - axis) as i64).collect();
    Ok(if behind.is_empty() {
        v
    } else {
        cx.b.unsqueeze(v, &behind)
    })
}

/// `g / scale` where the value was not cut off, and zero elsewhere.
fn grad_quantize(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return no_gradient("no gradient by a scale");
    }
    let (b, ty) = (cx.b, cx.float(0));
    let to = cx
        .graph
        .output(cx.id, 0)
        .and_then(|v| cx.stored_type(v))
        .unwrap_or(DType::Uint8);
    let Some((low, high)) = code_range(to) else {
        return no_gradient(format!("no rule for values of type {to}"));
    };
    let scale = spread(cx, 1)?;
    let mut code = b.unary("Round", b.div(cx.input(0)?, scale));
    if cx.optional(2).is_some() {
        code = b.add(code, b.cast(spread(cx, 2)?, ty));
    }
    let above = b.op("GreaterOrEqual", &[code, b.scalar_of(low, ty)], &[]);
    let below = b.op("LessOrEqual", &[code, b.scalar_of(high, ty)], &[]);
    let inside = b.op("And", &[above, below], &[]);
    let passed = b.div(cx.grad()?, scale);
    let dx = b.op("Where", &[inside, passed, b.scalar_of(0.0, ty)], &[]);
    cx.set(0, dx);
    Ok(())
}

/// `g·scale`.
fn grad_dequantize(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return no_gradient("no gradient by a scale");
    }
    let dx = cx.b.mul(cx.grad()?, spread(cx, 1)?);
    cx.set(0, dx);
    Ok(())
}

/// `g / scale`: the range is that of the input, which nothing is cut off from.
fn grad_dynamic(cx: &mut GradCx<'_>) -> Differentiated {
    let dx = cx.b.div(cx.grad()?, cx.output(1)?);
    cx.set(0, dx);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::infer;

    #[test]
    fn types_follow_the_zero_point_or_the_scale() {
        let got = infer(&["f32[n, 4]", "f32[]", "i8[]"], |b, v| {
            let q = b.op("QuantizeLinear", &[v[0], v[1], v[2]], &[]);
            let u = b.op("QuantizeLinear", &[v[0], v[1]], &[]);
            vec![q, u, b.op("DequantizeLinear", &[q, v[1], v[2]], &[])]
        });
        assert_eq!(got, ["i8[n, 4]", "u8[n, 4]", "f32[n, 4]"]);
    }
}
