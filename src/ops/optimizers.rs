//! Steps of optimizers as operators of `ai.onnx.preview.training` (1): `Adagrad`, `Adam`, `Momentum`. They are on no path of a gradient;
//! their definitions are what computes them.

use super::kit::{Defined, Inferred, MANY, no_gradient};
use super::{Definition, ExpandCx, InferCx, OpDef};
use crate::ir::{DType, Val};

const TRAINING: &str = "ai.onnx.preview.training";

const fn step(
    name: &'static str,
    infer: fn(&mut InferCx<'_>) -> Inferred,
    definition: Definition,
) -> OpDef {
    OpDef::new(name, 3..=MANY, infer)
        .in_domain(TRAINING)
        .outputs(1..=MANY)
        .defined_by(definition)
}

pub(super) const OPS: &[OpDef] = &[
    step("Adagrad", |cx| infer(cx, 3, 2), adagrad),
    step("Adam", |cx| infer(cx, 4, 3), adam),
    step("Momentum", |cx| infer(cx, 3, 2), momentum),
];

/// Rate, count, and behind them `kinds` lists of as many tensors; new values of the first, and of the last ones.
fn infer(cx: &mut InferCx<'_>, kinds: usize, made: usize) -> Inferred {
    let n = cx.inputs.len().saturating_sub(2) / kinds;
    for i in 0..n {
        cx.set_like(i, 2 + i);
        for k in 1..made {
            cx.set_like(k * n + i, 2 + (k + 1) * n + i);
        }
    }
    Ok(())
}

/// From the operands of one tensor to what the step makes of them.
type Step<'a> = &'a dyn Fn(&[Val]) -> Result<Vec<Val>, super::GradError>;

/// What each tensor is made of: `each` gets the operands of one, in the order of the lists.
fn lists(cx: &ExpandCx<'_>, kinds: usize, each: Step<'_>) -> Defined {
    let n = cx.graph.node_inputs(cx.id).len().saturating_sub(2) / kinds;
    let mut outs: Vec<Vec<Option<Val>>> = Vec::new();
    for i in 0..n {
        let operands = (0..kinds).map(|k| cx.input(2 + k * n + i));
        let made = each(&operands.collect::<Result<Vec<Val>, _>>()?)?;
        outs.resize(made.len(), Vec::new());
        outs.iter_mut()
            .zip(made)
            .for_each(|(list, v)| list.push(Some(v)));
    }
    Ok(outs.concat())
}

fn adagrad(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let decay = b.scale(
        b.cast(cx.input(1)?, DType::Float),
        node.float("decay_factor", 0.0),
    );
    let rate = b.div(cx.input(0)?, b.add(b.scalar(1.0), decay));
    let (norm, epsilon) = (
        node.float("norm_coefficient", 0.0),
        node.float("epsilon", 0.0),
    );
    lists(cx, 3, &|v| {
        let g = b.add(b.scale(v[0], norm), v[1]);
        let h = b.add(v[2], b.mul(g, g));
        let adaptive = b.add(b.unary("Sqrt", h), b.scalar(epsilon));
        Ok(vec![b.sub(v[0], b.div(b.mul(rate, g), adaptive)), h])
    })
}

fn adam(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let (alpha, beta) = (node.float("alpha", 0.9), node.float("beta", 0.999));
    let norm = node.float("norm_coefficient", 0.0);
    let after = node.float("norm_coefficient_post", 0.0);
    let epsilon = node.float("epsilon", 0.0);
    let count = b.cast(cx.input(1)?, DType::Float);
    let rest = |x: f32| b.sub(b.scalar(1.0), b.op("Pow", &[b.scalar(x), count], &[]));
    let corrected = b.div(
        b.mul(cx.input(0)?, b.unary("Sqrt", rest(beta))),
        rest(alpha),
    );
    let first = b.op("Greater", &[count, b.scalar(0.0)], &[]);
    let rate = b.op("Where", &[first, corrected, cx.input(0)?], &[]);
    lists(cx, 4, &|v| {
        let g = b.add(b.scale(v[0], norm), v[1]);
        let mean = b.add(b.scale(v[2], alpha), b.scale(g, 1.0 - alpha));
        let square = b.add(b.scale(v[3], beta), b.scale(b.mul(g, g), 1.0 - beta));
        let root = b.add(b.unary("Sqrt", square), b.scalar(epsilon));
        let x = b.sub(v[0], b.div(b.mul(rate, mean), root));
        Ok(vec![b.scale(x, 1.0 - after), mean, square])
    })
}

fn momentum(cx: &ExpandCx<'_>) -> Defined {
    let (b, node) = (cx.b, cx.node());
    let (alpha, beta) = (node.float("alpha", 0.0), node.float("beta", 0.0));
    let norm = node.float("norm_coefficient", 0.0);
    let nesterov = match node.str("mode") {
        Some("nesterov") => true,
        None | Some("standard") => false,
        Some(other) => return no_gradient(format!("mode = {other:?}")),
    };
    // The first step takes the gradient as it is.
    let first = b.op("Greater", &[cx.input(1)?, b.int(0)], &[]);
    let beta = b.op("Where", &[first, b.scalar(beta), b.scalar(1.0)], &[]);
    let rate = cx.input(0)?;
    lists(cx, 3, &|v| {
        let g = b.add(b.scale(v[0], norm), v[1]);
        let speed = b.add(b.scale(v[2], alpha), b.mul(g, beta));
        let change = if nesterov {
            b.add(g, b.scale(speed, alpha))
        } else {
            speed
        };
        Ok(vec![b.sub(v[0], b.mul(rate, change)), speed])
    })
}
