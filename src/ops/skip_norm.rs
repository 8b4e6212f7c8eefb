//! `com.microsoft::SkipLayerNormalization` and `SkipSimplifiedLayerNormalization`: `norm(x + skip + bias)`, with the sum as fourth
//! output. They are defined by an addition and a norm.

use super::kit::grad::{convert, widened};
use super::kit::infer::same_as_input;
use super::kit::{Defined, Inferred, MS};
use super::{ExpandCx, InferCx, OpDef};
use crate::ir::{Builder, DType, Fact, OpId, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("SkipLayerNormalization", 3..=5, infer)
        .in_domain(MS)
        .outputs(1..=4)
        .defined_by(|cx| expand(cx, true)),
    OpDef::new("SkipSimplifiedLayerNormalization", 3..=4, infer)
        .in_domain(MS)
        .outputs(1..=4)
        .defined_by(|cx| expand(cx, false)),
];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    same_as_input(cx)?;
    let statistics = cx.dims(0).map(|d| {
        let mut d = d.to_vec();
        if let Some(last) = d.last_mut() {
            *last = Sym::from(1);
        }
        d
    });
    cx.set(1, Some(DType::Float), statistics.clone());
    cx.set(2, Some(DType::Float), statistics);
    cx.set_like(3, 0);
    Ok(())
}

fn expand(cx: &ExpandCx<'_>, centered: bool) -> Defined {
    let b = cx.b;
    let (beta, bias) = if centered {
        (cx.optional(3), cx.optional(4))
    } else {
        (None, cx.optional(3))
    };
    // The bias is that of the projection which makes one of the summands, and which nothing else reads: added to it, the projection's
    // output is a value. The first one counts where both may be meant.
    let alone = |slot: usize| {
        let v = cx.graph.input(cx.id, slot);
        v.is_some_and(|v| cx.graph.uses(v).len() == 1)
    };
    let (of, other) = if alone(0) || !alone(1) {
        (0, 1)
    } else {
        (1, 0)
    };
    let x = match bias {
        Some(bias) => b.add(cx.input(of)?, bias),
        None => cx.input(of)?,
    };
    let sum = b.add(x, cx.input(other)?);
    let epsilon = cx.node().float("epsilon", 1e-12);
    let wants = [cx.has_output(1), cx.has_output(2)];
    let norm = Norm {
        scale: cx.input(2)?,
        beta,
        epsilon,
        centered,
    };
    let mut outs = norm.build(b, sum, &cx.fact(0), wants);
    outs.push(Some(sum));
    Ok(outs)
}

/// A norm over the last axis.
pub(super) struct Norm {
    pub(super) scale: Val,
    pub(super) beta: Option<Val>,
    pub(super) epsilon: f32,
    pub(super) centered: bool,
}

impl Norm {
    /// Output, mean and inverse deviation, in the operators that the opset has. `x` has the type of `like`.
    pub(super) fn build(
        &self,
        b: &Builder,
        x: Val,
        like: &Fact,
        wants: [bool; 2],
    ) -> Vec<Option<Val>> {
        let ty = like.dtype.unwrap_or(DType::Float);
        let attrs = [
            ("axis", (-1i64).into()),
            ("epsilon", self.epsilon.into()),
            ("stash_type", 1i64.into()),
        ];
        let name = if self.centered {
            "LayerNormalization"
        } else {
            "RMSNormalization"
        };
        let since = if self.centered { 17 } else { 23 };
        let statistics = wants.contains(&true);
        if b.opset() >= since && (self.centered || !statistics) {
            let n = if statistics { 3 } else { 1 };
            let ins = [Some(x), Some(self.scale), self.beta];
            let used = 2 + usize::from(self.beta.is_some());
            let outs = b.node_n(OpId::onnx(name), &ins[..used], &attrs, n);
            let at = |i: usize| outs.get(i).copied();
            return vec![at(0), at(1), at(2)];
        }
        // In f32 also for narrower types, as the fused operator computes it.
        let wide = widened(ty, 1);
        let x = convert(b, x, ty, wide);
        let mean = self.centered.then(|| b.reduce_mean(x, &[-1], true));
        let x = mean.map_or(x, |m| b.sub(x, m));
        let square = b.reduce_mean(b.mul(x, x), &[-1], true);
        let root = b.unary("Sqrt", b.add(square, b.scalar_of(self.epsilon, wide)));
        let inverse = b.unary("Reciprocal", root);
        let normal = convert(b, b.mul(x, inverse), wide, ty);
        let y = b.mul(normal, self.scale);
        let y = self.beta.map_or(y, |beta| b.add(y, beta));
        vec![Some(y), mean, Some(inverse)]
    }
}
