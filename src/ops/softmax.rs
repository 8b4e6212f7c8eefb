//! `Softmax` and `LogSoftmax` (1, 11, 13). From opset 13 on they normalise one axis; before, all axes from `axis` (1 unless said) on,
//! taken together.

use super::kit::infer::{normal_axis, same_as_input};
use super::kit::{Differentiated, Inferred, no_gradient};
use super::{GradCx, GradError, InferCx, OpDef};
use crate::ir::{Use, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Softmax", 1..=1, infer).gradient(softmax),
    OpDef::new("LogSoftmax", 1..=1, infer).gradient(log_softmax),
];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let default = if cx.opset < 13 { 1 } else { -1 };
    if let Some(dims) = cx.dims(0) {
        normal_axis(cx.node.int("axis", default), dims.len())?;
    }
    same_as_input(cx)
}

/// The axes that are normalised together.
fn axes(cx: &GradCx<'_>) -> Result<Vec<i64>, GradError> {
    if cx.b.opset() >= 13 {
        return Ok(vec![cx.node().int("axis", -1)]);
    }
    let rank = cx.rank(0)?;
    let axis = cx.node().int("axis", 1);
    let first = normal_axis(axis, rank).or_else(|_| no_gradient(format!("no axis {axis}")))?;
    Ok((first as i64..rank as i64).collect())
}

/// `dx = y·(g - Σ g·y)`.
///
/// A row that is masked as a whole is NaN; graphs that expect it test the output with `IsNaN` and replace such rows. There the rule
/// takes zero for NaN, so that the gradient of the row is zero and not NaN.
fn softmax(cx: &mut GradCx<'_>) -> Differentiated {
    let axes = axes(cx)?;
    let (y, g) = (guarded(cx, cx.output(0)?), cx.grad()?);
    let gy = cx.b.mul(g, y);
    let total = cx.b.reduce_sum(gy, &axes, true);
    let dx = cx.b.sub(gy, cx.b.mul(y, total));
    cx.set(0, dx);
    Ok(())
}

fn guarded(cx: &GradCx<'_>, y: Val) -> Val {
    let Val::Old(id) = y else { return y };
    let tested = cx.graph.uses(id).into_iter().find_map(|u| match u {
        Use::Input(n, 0) if cx.graph.node(n).op.is_onnx("IsNaN") => cx.graph.output(n, 0),
        _ => None,
    });
    match tested {
        Some(nan) => {
            let zero = cx.b.scalar_of(0.0, cx.float(0));
            cx.b.op("Where", &[nan.into(), zero, y], &[])
        }
        None => y,
    }
}

/// `dx = g - exp(y)·Σ g`.
fn log_softmax(cx: &mut GradCx<'_>) -> Differentiated {
    let axes = axes(cx)?;
    let (y, g) = (cx.output(0)?, cx.grad()?);
    let total = cx.b.reduce_sum(g, &axes, true);
    let dx = cx.b.sub(g, cx.b.mul(cx.b.unary("Exp", y), total));
    cx.set(0, dx);
    Ok(())
}
