//! Products of quantized integers: `MatMulInteger`, `ConvInteger` (10), and `com.microsoft::MatMulIntegerToFloat`,
//! `DynamicQuantizeMatMul` (1).
//!
//! An operand is the difference of its integers and its zero point. The gradient passes through the other one, as the real number it
//! is; where that is a constant, it is dequantized with the scale 1, so that a plan widens a panel of it at a time.

use super::kit::grad::swap_last;
use super::kit::{Defined, Differentiated, Inferred, MS, no_gradient};
use super::matmul::{full, product};
use super::{ExpandCx, GradCx, GradError, InferCx, OpDef};
use crate::ir::{Builder, DType, Fact, OpId, TensorData, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("MatMulInteger", 2..=4, |cx| infer(cx, DType::Int32)).gradient(gradient),
    OpDef::new("ConvInteger", 2..=4, |cx| {
        super::conv::infer_conv(cx)?;
        cx.outputs[0].dtype = Some(DType::Int32);
        Ok(())
    })
    .gradient(grad_conv),
    OpDef::new("MatMulIntegerToFloat", 4..=7, infer_to_float)
        .in_domain(MS)
        .defined_by(expand_to_float),
    OpDef::new("DynamicQuantizeMatMul", 3..=5, |cx| infer(cx, DType::Float))
        .in_domain(MS)
        .defined_by(expand_dynamic),
];

fn infer(cx: &mut InferCx<'_>, ty: DType) -> Inferred {
    let dims = match (cx.dims_vec(0), cx.dims_vec(1)) {
        (Some(a), Some(b)) => Some(product(cx, a, b)?),
        _ => None,
    };
    cx.set(0, Some(ty), dims);
    Ok(())
}

fn infer_to_float(cx: &mut InferCx<'_>) -> Inferred {
    let ty = cx.dtype(2).unwrap_or(DType::Float);
    infer(cx, ty)
}

/// `v - zero`, in `f32`: `axis` is where a vector of zero points lies.
fn real(b: &Builder, v: Val, zero: Option<(Val, &Fact)>, axis: i64) -> Val {
    let dims = zero.as_ref().and_then(|z| z.1.dims.clone());
    let sizes: Option<Vec<u64>> = match &zero {
        None => Some(Vec::new()),
        Some(_) => dims.as_ref().and_then(|d| {
            let all = d.iter().map(|d| u64::try_from(d.as_const()?).ok());
            all.collect()
        }),
    };
    let simple = sizes.filter(|s| s.len() <= 1);
    let zero = zero.map(|z| z.0);
    let Some(sizes) = simple else {
        let v = b.cast(v, DType::Float);
        return match zero {
            Some(z) => b.sub(v, b.cast(z, DType::Float)),
            None => v,
        };
    };
    let n = sizes.first().copied().unwrap_or(1) as usize;
    let ones = b.constant(TensorData::from_f32(sizes, &vec![1.0; n]));
    let ins = [Some(v), Some(ones), zero];
    let ins = if zero.is_some() { &ins[..] } else { &ins[..2] };
    b.node_n(
        OpId::new("", "DequantizeLinear"),
        ins,
        &[("axis", axis.into())],
        1,
    )[0]
}

/// An operand as the real number it is before its scale.
fn operand(cx: &GradCx<'_>, slot: usize, axis: i64) -> Result<Val, GradError> {
    let fact = cx.fact(slot + 2);
    let zero = cx.optional(slot + 2).map(|z| (z, &fact));
    Ok(real(cx.b, cx.input(slot)?, zero, axis))
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    let (ra, rb) = (cx.rank(0)?, cx.rank(1)?);
    if ra < 2 || rb < 2 {
        return no_gradient("no rule for vectors of integers");
    }
    let g = cx.grad()?;
    if cx.wants(0) {
        let w = operand(cx, 1, rb as i64 - 1)?;
        let da = cx.b.matmul(g, swap_last(cx.b, w, rb));
        let da = match rb {
            2 => da,
            _ => cx.sum_to_input(0, da, full(cx, 0, 1).as_deref())?,
        };
        cx.set(0, da);
    }
    if cx.wants(1) {
        let a = operand(cx, 0, ra as i64 - 2)?;
        let db = cx.b.matmul(swap_last(cx.b, a, ra), g);
        let db = cx.sum_to_input(1, db, full(cx, 1, 0).as_deref())?;
        cx.set(1, db);
    }
    Ok(())
}

fn grad_conv(cx: &mut GradCx<'_>) -> Differentiated {
    cx.refuse(&[1, 2, 3], "the kernel of a quantized convolution")?;
    let w = operand(cx, 1, 0)?;
    let dx = super::conv::grad_input(cx, w)?;
    cx.set(0, dx);
    Ok(())
}

/// `(a - za)·(b - zb)·(scale of a)·(scale of b) + bias`: scales of `b` may be one for each column.
fn expand_to_float(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let ins = [
        Some(cx.input(0)?),
        Some(cx.input(1)?),
        cx.optional(4),
        cx.optional(5),
    ];
    let sum = b.node_n(OpId::new("", "MatMulInteger"), &ins, &[], 1)[0];
    let sum = b.cast(sum, cx.float(2));
    let mut y = b.mul(sum, b.mul(cx.input(2)?, cx.input(3)?));
    if let Some(bias) = cx.optional(6) {
        y = b.add(y, bias);
    }
    Ok(vec![Some(y)])
}

/// `MatMulIntegerToFloat` of the dynamically quantized input.
fn expand_dynamic(cx: &ExpandCx<'_>) -> Defined {
    let b = cx.b;
    let parts = b.node_n(
        OpId::new("", "DynamicQuantizeLinear"),
        &[Some(cx.input(0)?)],
        &[],
        3,
    );
    let ins = [
        Some(parts[0]),
        Some(cx.input(1)?),
        Some(parts[2]),
        cx.optional(3),
    ];
    let sum = b.node_n(OpId::new("", "MatMulInteger"), &ins, &[], 1)[0];
    let sum = b.cast(sum, DType::Float);
    let mut y = b.mul(sum, b.mul(parts[1], cx.input(2)?));
    if let Some(bias) = cx.optional(4) {
        y = b.add(y, bias);
    }
    Ok(vec![Some(y)])
}
