//! Reductions. Axes are an attribute or, from opset 13 (`ReduceSum`) or 18 on, an input; both are read in any opset.
//!
//! Gradients: equal extremes of `ReduceMax` and `ReduceMin` share the gradient evenly, as `torch.amax` does; `ReduceL2` is 0 at 0;
//! `ReduceProd` is exact with zeros among the factors; `ReduceLogSumExp` is 0 where all inputs are -inf.

use super::kit::infer::{Axes, normal_axes, normal_axis};
use super::kit::{Differentiated, Inferred};
use super::{GradCx, GradError, InferCx, OpDef};
use crate::ir::{Attr, OpId, Sym, Val};

const fn reduction(name: &'static str) -> OpDef {
    OpDef::new(name, 1..=2, infer).gradient(gradient)
}

const fn arg(name: &'static str) -> OpDef {
    OpDef::new(name, 1..=1, infer_arg).zero()
}

pub(super) const OPS: &[OpDef] = &[
    reduction("ReduceSum"),
    reduction("ReduceMean"),
    reduction("ReduceMax"),
    reduction("ReduceMin"),
    reduction("ReduceProd"),
    reduction("ReduceL1"),
    reduction("ReduceL2"),
    reduction("ReduceSumSquare"),
    reduction("ReduceLogSum"),
    reduction("ReduceLogSumExp"),
    arg("ArgMax"),
    arg("ArgMin"),
];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let keep = cx.node.int("keepdims", 1) == 1;
    let dims = match (cx.dims(0), cx.axes(1)) {
        (None, _) => None,
        (Some(d), Axes::Unknown(n)) => match (keep, n) {
            (true, _) => Some(cx.unknown_dims(d.len())),
            (false, Some(n)) if n > 0 && n <= d.len() => Some(cx.unknown_dims(d.len() - n)),
            (false, _) => None,
        },
        (Some(d), axes) => {
            let axes = match axes {
                Axes::Known(a) if !a.is_empty() => normal_axes(&a, d.len())?,
                _ if cx.node.int("noop_with_empty_axes", 0) == 1 => Vec::new(),
                _ => (0..d.len()).collect(),
            };
            Some(reduced(d, &axes, keep))
        }
    };
    cx.set(0, dtype, dims);
    Ok(())
}

fn reduced(dims: &[Sym], axes: &[usize], keep: bool) -> Vec<Sym> {
    let size = |(i, d): (usize, &Sym)| match (axes.contains(&i), keep) {
        (false, _) => Some(d.clone()),
        (true, true) => Some(Sym::from(1)),
        (true, false) => None,
    };
    dims.iter().enumerate().filter_map(size).collect()
}

fn infer_arg(cx: &mut InferCx<'_>) -> Inferred {
    let dims = match cx.dims(0) {
        Some(d) => {
            let axis = normal_axis(cx.node.int("axis", 0), d.len())?;
            Some(reduced(d, &[axis], cx.node.int("keepdims", 1) == 1))
        }
        None => None,
    };
    cx.set(0, Some(crate::ir::DType::Int64), dims);
    Ok(())
}

/// What is reduced.
enum Over {
    /// Nothing: `noop_with_empty_axes`.
    Nothing,
    /// These axes, known.
    Known(Vec<i64>),
    /// All axes; their number is not known.
    All,
    /// What this vector says when the graph runs.
    Dynamic(Val),
}

fn over(cx: &GradCx<'_>) -> Over {
    let node = cx.node();
    let axes = node
        .ints("axes")
        .map(<[i64]>::to_vec)
        .or_else(|| cx.const_ints(1));
    match (axes, cx.optional(1)) {
        (Some(a), _) if !a.is_empty() => Over::Known(a),
        (None, Some(v)) => Over::Dynamic(v),
        _ if node.int("noop_with_empty_axes", 0) == 1 => Over::Nothing,
        _ => match cx.fact(0).rank() {
            Some(r) => Over::Known((0..r as i64).collect()),
            None => Over::All,
        },
    }
}

/// A value of the output's shape, with the reduced axes as axes of size one.
fn kept(cx: &GradCx<'_>, v: Val, over: &Over) -> Val {
    if cx.node().int("keepdims", 1) == 1 {
        return v;
    }
    match over {
        Over::Nothing | Over::All => v,
        Over::Known(axes) => cx.b.unsqueeze(v, axes),
        Over::Dynamic(axes) => cx.b.op("Unsqueeze", &[v, *axes], &[]),
    }
}

/// The same reduction, with axes kept, by another operator.
fn again(cx: &GradCx<'_>, op: &str, v: Val, over: &Over) -> Val {
    let keep = [("keepdims", Attr::from(1i64))];
    match over {
        Over::Nothing => v,
        Over::Known(axes) if op == "ReduceSum" => cx.b.reduce_sum(v, axes, true),
        Over::Known(axes) => cx.b.reduce(op, v, axes, true),
        Over::All => cx.b.op(op, &[v], &keep),
        Over::Dynamic(axes) => {
            cx.b.node_n(OpId::onnx(op), &[Some(v), Some(*axes)], &keep, 1)[0]
        }
    }
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let over = over(cx);
    let result = backward(cx, &over)?;
    cx.set(0, result);
    Ok(())
}

fn backward(cx: &GradCx<'_>, over: &Over) -> Result<Val, GradError> {
    let (b, x) = (cx.b, cx.input(0)?);
    let g = kept(cx, cx.grad()?, over);
    let y = || Ok::<Val, GradError>(kept(cx, cx.output(0)?, over));
    let spread = |v: Val| Ok(b.op("Expand", &[v, cx.input_shape(0)?], &[]));
    match &*cx.node().op.op_type {
        "ReduceSum" | "ReduceMean" if matches!(over, Over::Nothing) => Ok(g),
        "ReduceSum" => spread(g),
        "ReduceMean" => spread(mean_share(cx, g, over)?),
        "ReduceMax" | "ReduceMin" => {
            let hit = b.op("Equal", &[x, y()?], &[]);
            let mask = b.cast(hit, cx.float_type());
            let ties = again(cx, "ReduceSum", mask, over);
            Ok(b.mul(mask, b.div(g, ties)))
        }
        "ReduceProd" => Ok(b.mul(g, other_factors(cx, x, y()?, over))),
        "ReduceL1" => Ok(b.mul(g, b.unary("Sign", x))),
        "ReduceL2" => {
            let y = y()?;
            let zero = b.op("Equal", &[y, cx.scalar(0.0)], &[]);
            let safe = b.op("Where", &[zero, cx.scalar(1.0), y], &[]);
            Ok(b.mul(x, b.div(g, safe)))
        }
        "ReduceSumSquare" => Ok(b.mul(cx.scaled(x, 2.0), g)),
        "ReduceLogSum" => spread(b.div(g, b.unary("Exp", y()?))),
        _ => {
            // ReduceLogSumExp: softmax of the input.
            let y = y()?;
            let empty = b.op("IsInf", &[y], &[("detect_positive", 0i64.into())]);
            let safe = b.op("Where", &[empty, cx.scalar(0.0), y], &[]);
            Ok(b.mul(g, b.unary("Exp", b.sub(x, safe))))
        }
    }
}

/// The gradient of a mean: divided by how many elements each output averages.
fn mean_share(cx: &GradCx<'_>, g: Val, over: &Over) -> Result<Val, GradError> {
    if let Over::Known(axes) = over {
        let fact = cx.fact(0);
        let count: Option<i64> = axes
            .iter()
            .try_fold(1i64, |n, &a| n.checked_mul(fact.size(a)?));
        if let Some(n) = count.filter(|n| *n > 0) {
            return Ok(cx.scaled(g, 1.0 / n as f32));
        }
    }
    let ty = cx.float_type();
    let size = |v: Val| cx.b.cast(cx.b.unary("Size", v), ty);
    let count = cx.b.div(size(cx.input(0)?), size(cx.output(0)?));
    Ok(cx.b.div(g, count))
}

/// For each element the product of all others.
fn other_factors(cx: &GradCx<'_>, x: Val, y: Val, over: &Over) -> Val {
    let b = cx.b;
    let is_zero = b.op("Equal", &[x, cx.scalar(0.0)], &[]);
    let safe = b.op("Where", &[is_zero, cx.scalar(1.0), x], &[]);
    let zeros = again(cx, "ReduceSum", b.cast(is_zero, cx.float_type()), over);
    let nonzero = again(cx, "ReduceProd", safe, over);
    let none = b.op("Equal", &[zeros, cx.scalar(0.0)], &[]);
    let one = b.op("Equal", &[zeros, cx.scalar(1.0)], &[]);
    let only = b.op("And", &[is_zero, one], &[]);
    let with_zero = cx.keep_where(only, nonzero);
    b.op("Where", &[none, b.div(y, safe), with_zero], &[])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer, infer_at};

    #[test]
    fn axes_are_attribute_or_input() {
        for opset in [13, 17, 18, 24] {
            let got = infer_at(opset, &["f32[batch, seq, 8]"], |b, v| {
                vec![
                    b.reduce_mean(v[0], &[-1], true),
                    b.reduce("ReduceMax", v[0], &[0, 2], false),
                    b.reduce_sum(v[0], &[1], false),
                    b.unary("ReduceL2", v[0]),
                ]
            });
            assert_eq!(
                got,
                [
                    "f32[batch, seq, 1]",
                    "f32[seq]",
                    "f32[batch, 8]",
                    "f32[1, 1, 1]"
                ],
                "opset {opset}"
            );
        }
        let got = infer(&["f32[batch, 8]"], |b, v| {
            vec![b.reduce_sum(v[0], &[2], true)]
        });
        assert_eq!(got, ["error: ReduceSum: axis 2 of a tensor of rank 2"]);
    }

    #[test]
    fn positions() {
        let got = infer(&["f32[batch, seq, 8]"], |b, v| {
            let attrs = [("axis", (-1i64).into()), ("keepdims", 0i64.into())];
            vec![b.unary("ArgMax", v[0]), b.op("ArgMin", &[v[0]], &attrs)]
        });
        assert_eq!(got, ["i64[1, seq, 8]", "i64[batch, seq]"]);
    }

    #[test]
    fn gradients_spread() {
        let got = backward(18, &["f32[2, 3, 8]"], |b, v| {
            vec![b.reduce_mean(v[0], &[2], false)]
        });
        assert_eq!(
            got,
            "Unsqueeze: Unsqueeze(g0, [2])\nMul: Mul(Unsqueeze, [0.125])\nExpand: Expand(Mul, [2, 3, 8])\nda = Expand"
        );
        // An axis of unknown size is counted when the graph runs.
        let got = backward(18, &["f32[batch, 8]"], |b, v| {
            vec![b.reduce_mean(v[0], &[0], true)]
        });
        assert!(
            got.contains("Size: Size(a)") && got.contains("Size_1: Size(out0)"),
            "{got}"
        );
    }
}
