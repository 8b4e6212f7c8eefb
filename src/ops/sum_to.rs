//! Our operator `onnx_graft::SumTo`: the adjoint of broadcasting, for shapes that are only known when the graph runs.
//!
//! `SumTo(x, shape) -> y`: sums `x` over the axes along which a tensor of `shape` (an `i64` vector) was broadcast to give the shape
//! of `x`, so that `y` has exactly `shape`. Aligned at the last axis, an axis of `x` is summed where `shape` has no such axis or has 1
//! and `x` has not; all others must be equal. It is the adjoint of `Expand`; an `x` of that shape already comes back as it is.

use super::kit::{DOMAIN, Differentiated, Inferred};
use super::{GradCx, InferCx, OpDef};

pub(super) const OPS: &[OpDef] = &[OpDef::new("SumTo", 2..=2, infer)
    .in_domain(DOMAIN)
    .gradient(gradient)];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let dims = match (cx.ints(1), cx.len_of(1)) {
        (Some(v), _) => Some(v.iter().map(|s| cx.as_size(s)).collect()),
        (None, Some(n)) => Some(cx.unknown_dims(n)),
        (None, None) => None,
    };
    cx.set(0, dtype, dims);
    Ok(())
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    if cx.wants(0) {
        let (g, shape) = (cx.grad()?, cx.input_shape(0)?);
        cx.set(0, cx.b.op("Expand", &[g, shape], &[]));
    }
    Ok(())
}
