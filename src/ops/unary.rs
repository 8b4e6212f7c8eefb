//! Element-wise functions of one tensor.
//!
//! Gradients use the output where that is enough, so that the input need not be kept. Kinks: `relu'(0) = 0`, `abs'(0) = 0`; a
//! piecewise function takes the derivative of its right-hand piece where its formula says `x >= 0`.

use super::kit::infer::same_as_input;
use super::kit::{Differentiated, Inferred, wrong};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{DType, Val};

const fn unary(name: &'static str, rule: fn(&mut GradCx<'_>) -> Differentiated) -> OpDef {
    OpDef::new(name, 1..=1, infer).gradient(rule)
}

/// A function that is constant between its steps.
const fn step(name: &'static str) -> OpDef {
    OpDef::new(name, 1..=1, infer).zero()
}

/// A gradient as a function of context, incoming gradient, input and output.
macro_rules! rule {
    (|$cx:ident, $g:ident, $x:ident, $y:ident| $body:expr) => {
        |cx: &mut GradCx<'_>| {
            if !cx.wants(0) {
                return Ok(());
            }
            let $cx = &*cx;
            let ($g, $x, $y) = (cx.grad()?, cx.input(0)?, cx.output(0)?);
            let result: Val = $body;
            cx.set(0, result);
            Ok(())
        }
    };
}

pub(super) const OPS: &[OpDef] = &[
    unary("Neg", rule!(|cx, g, _x, _y| cx.b.neg(g))),
    unary(
        "Abs",
        rule!(|cx, g, x, _y| cx.b.mul(g, cx.b.unary("Sign", x))),
    ),
    step("Sign"),
    step("Floor"),
    step("Ceil"),
    step("Round"),
    unary("Sqrt", rule!(|cx, g, _x, y| cx.b.div(cx.scaled(g, 0.5), y))),
    unary(
        "Reciprocal",
        rule!(|cx, g, _x, y| cx.b.neg(cx.b.mul(g, cx.b.mul(y, y)))),
    ),
    unary("Exp", rule!(|cx, g, _x, y| cx.b.mul(g, y))),
    unary("Log", rule!(|cx, g, x, _y| cx.b.div(g, x))),
    unary(
        "Erf",
        rule!(|cx, g, x, _y| {
            let bell = cx.b.unary("Exp", cx.b.neg(cx.b.mul(x, x)));
            cx.b.mul(g, cx.scaled(bell, std::f32::consts::FRAC_2_SQRT_PI))
        }),
    ),
    unary(
        "Tanh",
        rule!(|cx, g, _x, y| cx.b.mul(g, one_minus_square(cx, y))),
    ),
    unary(
        "Sigmoid",
        rule!(|cx, g, _x, y| cx.b.mul(g, cx.b.mul(y, one_minus(cx, y)))),
    ),
    unary(
        "Relu",
        rule!(|cx, g, _x, y| cx.keep_where(greater(cx, y, 0.0), g)),
    ),
    unary(
        "LeakyRelu",
        rule!(|cx, g, x, _y| {
            let slope = cx.node().float("alpha", 0.01);
            choose(cx, greater(cx, x, 0.0), g, cx.scaled(g, slope))
        }),
    ),
    unary(
        "ThresholdedRelu",
        rule!(|cx, g, x, _y| {
            let alpha = cx.node().float("alpha", 1.0);
            cx.keep_where(greater(cx, x, alpha), g)
        }),
    ),
    // Below zero y = alpha·(eˣ - 1), so that y' = y + alpha.
    unary(
        "Elu",
        rule!(|cx, g, x, y| {
            let alpha = cx.node().float("alpha", 1.0);
            let below = cx.b.mul(g, cx.b.add(y, cx.scalar(alpha)));
            choose(cx, greater(cx, x, 0.0), g, below)
        }),
    ),
    unary(
        "Selu",
        rule!(|cx, g, x, y| {
            let alpha = cx.node().float("alpha", 1.673_263_2);
            let gamma = cx.node().float("gamma", 1.050_701);
            let below = cx.b.mul(g, cx.b.add(y, cx.scalar(alpha * gamma)));
            choose(cx, greater(cx, x, 0.0), cx.scaled(g, gamma), below)
        }),
    ),
    // Below zero y = alpha·(e^(x/alpha) - 1), so that y' = y/alpha + 1.
    unary(
        "Celu",
        rule!(|cx, g, x, y| {
            let alpha = cx.node().float("alpha", 1.0);
            let slope = cx.b.add(cx.scaled(y, 1.0 / alpha), cx.scalar(1.0));
            choose(cx, greater(cx, x, 0.0), g, cx.b.mul(g, slope))
        }),
    ),
    unary(
        "Softplus",
        rule!(|cx, g, x, _y| cx.b.mul(g, cx.b.unary("Sigmoid", x))),
    ),
    unary(
        "Softsign",
        rule!(|cx, g, x, _y| {
            let d = cx.b.add(cx.b.unary("Abs", x), cx.scalar(1.0));
            cx.b.div(g, cx.b.mul(d, d))
        }),
    ),
    unary(
        "HardSigmoid",
        rule!(|cx, g, _x, y| {
            let inside =
                cx.b.op("And", &[greater(cx, y, 0.0), less(cx, y, 1.0)], &[]);
            cx.keep_where(inside, cx.scaled(g, cx.node().float("alpha", 0.2)))
        }),
    ),
    // y = x·clip(x/6 + 1/2, 0, 1)
    unary(
        "HardSwish",
        rule!(|cx, g, x, _y| {
            let slope = cx.b.add(cx.scaled(x, 1.0 / 3.0), cx.scalar(0.5));
            let inner = choose(cx, less(cx, x, 3.0), cx.b.mul(g, slope), g);
            cx.keep_where(greater(cx, x, -3.0), inner)
        }),
    ),
    // y = x·t, t = tanh(softplus(x)); y' = t + x·σ(x)·(1 - t²)
    unary(
        "Mish",
        rule!(|cx, g, x, _y| {
            let t = cx.b.unary("Tanh", cx.b.unary("Softplus", x));
            let inner = cx.b.mul(
                cx.b.mul(x, cx.b.unary("Sigmoid", x)),
                one_minus_square(cx, t),
            );
            cx.b.mul(g, cx.b.add(t, inner))
        }),
    ),
    // y = x·s, s = σ(alpha·x); y' = s + alpha·y·(1 - s)
    unary(
        "Swish",
        rule!(|cx, g, x, y| {
            let alpha = cx.node().float("alpha", 1.0);
            let s = cx.b.unary("Sigmoid", cx.scaled(x, alpha));
            let inner = cx.scaled(cx.b.mul(y, one_minus(cx, s)), alpha);
            cx.b.mul(g, cx.b.add(s, inner))
        }),
    ),
    unary(
        "Sin",
        rule!(|cx, g, x, _y| cx.b.mul(g, cx.b.unary("Cos", x))),
    ),
    unary(
        "Cos",
        rule!(|cx, g, x, _y| cx.b.neg(cx.b.mul(g, cx.b.unary("Sin", x)))),
    ),
    unary(
        "Tan",
        rule!(|cx, g, _x, y| cx.b.mul(g, cx.b.add(cx.b.mul(y, y), cx.scalar(1.0)))),
    ),
    unary(
        "Asin",
        rule!(|cx, g, x, _y| cx.b.div(g, cx.b.unary("Sqrt", one_minus_square(cx, x)))),
    ),
    unary(
        "Acos",
        rule!(|cx, g, x, _y| {
            cx.b.neg(cx.b.div(g, cx.b.unary("Sqrt", one_minus_square(cx, x))))
        }),
    ),
    unary(
        "Atan",
        rule!(|cx, g, x, _y| cx.b.div(g, cx.b.add(cx.b.mul(x, x), cx.scalar(1.0)))),
    ),
    unary(
        "Sinh",
        rule!(|cx, g, x, _y| cx.b.mul(g, cx.b.unary("Cosh", x))),
    ),
    unary(
        "Cosh",
        rule!(|cx, g, x, _y| cx.b.mul(g, cx.b.unary("Sinh", x))),
    ),
    unary(
        "Asinh",
        rule!(|cx, g, x, _y| {
            let d = cx.b.add(cx.b.mul(x, x), cx.scalar(1.0));
            cx.b.div(g, cx.b.unary("Sqrt", d))
        }),
    ),
    unary(
        "Acosh",
        rule!(|cx, g, x, _y| {
            let d = cx.b.sub(cx.b.mul(x, x), cx.scalar(1.0));
            cx.b.div(g, cx.b.unary("Sqrt", d))
        }),
    ),
    unary(
        "Atanh",
        rule!(|cx, g, x, _y| cx.b.div(g, one_minus_square(cx, x))),
    ),
];

/// Functions whose input may be an integer, too.
const ANY_NUMBER: [&str; 4] = ["Neg", "Abs", "Sign", "Relu"];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let op = &*cx.node.op.op_type;
    if let Some(d) = cx.dtype(0) {
        let number = !matches!(d, DType::Bool | DType::String);
        if !(d.is_float() || (number && ANY_NUMBER.contains(&op))) {
            return wrong(format!("input 0 is {d}, expected a floating-point type"));
        }
    }
    let ints = cx.ints(0);
    let negated = op == "Neg";
    same_as_input(cx)?;
    if negated && let Some(v) = ints {
        let minus = crate::ir::Sym::from(-1);
        let out = v.iter().map(|s| s.mul(&minus)).collect();
        cx.set_ints(out);
    }
    Ok(())
}

fn one_minus(cx: &GradCx<'_>, v: Val) -> Val {
    cx.b.sub(cx.scalar(1.0), v)
}

fn one_minus_square(cx: &GradCx<'_>, v: Val) -> Val {
    one_minus(cx, cx.b.mul(v, v))
}

fn greater(cx: &GradCx<'_>, v: Val, x: f32) -> Val {
    cx.b.op("Greater", &[v, cx.scalar(x)], &[])
}

fn less(cx: &GradCx<'_>, v: Val, x: f32) -> Val {
    cx.b.op("Less", &[v, cx.scalar(x)], &[])
}

fn choose(cx: &GradCx<'_>, cond: Val, yes: Val, no: Val) -> Val {
    cx.b.op("Where", &[cond, yes, no], &[])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};

    #[test]
    fn types() {
        let got = infer(&["f16[batch, 8]", "i64[n]"], |b, v| {
            vec![b.unary("Tanh", v[0]), b.unary("Abs", v[1])]
        });
        assert_eq!(got, ["f16[batch, 8]", "i64[n]"]);
        let got = infer(&["i64[n]"], |b, v| vec![b.unary("Sqrt", v[0])]);
        assert_eq!(
            got,
            ["error: Sqrt: input 0 is i64, expected a floating-point type"]
        );
    }

    #[test]
    fn gradients_prefer_the_output() {
        let rule = |op: &str| backward(18, &["f32[n]"], |b, v| vec![b.unary(op, v[0])]);
        assert_eq!(
            rule("Relu"),
            "Greater: Greater(out0, [0.0])\nWhere: Where(Greater, g0, [0.0])\nda = Where"
        );
        assert_eq!(rule("Exp"), "Mul: Mul(g0, out0)\nda = Mul");
        assert_eq!(rule("Sin"), "Cos: Cos(a)\nMul: Mul(g0, Cos)\nda = Mul");
        assert_eq!(rule("Floor"), "Zero");
    }
}
