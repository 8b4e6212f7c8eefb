//! `Add`, `Sub`, `Mul`, `Div`, `Pow`, `Mod`, `BitShift`, and the n-ary `Sum`, `Mean`, `Max`, `Min`, all broadcasting.
//!
//! Gradients: equal entries of `Max` and `Min` share the gradient evenly, as in torch. `Pow` with a constant exponent is
//! differentiated in the form that is defined at zero; where the exponent is 0 the gradient of the base is 0.

use super::kit::{Differentiated, Inferred, MANY, no_gradient, wrong};
use super::{GradCx, GradError, InferCx, OpDef};
use crate::ir::{DType, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Add", 2..=2, infer).gradient(grad_add),
    OpDef::new("Sub", 2..=2, infer).gradient(grad_sub),
    OpDef::new("Mul", 2..=2, infer).gradient(grad_mul),
    OpDef::new("Div", 2..=2, infer).gradient(grad_div),
    OpDef::new("Mod", 2..=2, infer).gradient(grad_mod),
    OpDef::new("BitShift", 2..=2, infer).zero(),
    OpDef::new("BitwiseAnd", 2..=2, infer).zero(),
    OpDef::new("BitwiseOr", 2..=2, infer).zero(),
    OpDef::new("BitwiseXor", 2..=2, infer).zero(),
    OpDef::new("Pow", 2..=2, infer_pow).gradient(grad_pow),
    OpDef::new("Sum", 1..=MANY, infer).gradient(grad_sum),
    OpDef::new("Mean", 1..=MANY, infer).gradient(grad_mean),
    OpDef::new("Max", 1..=MANY, infer).gradient(grad_extreme),
    OpDef::new("Min", 1..=MANY, infer).gradient(grad_extreme),
];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let n = cx.inputs.len();
    let dtype = cx.same_dtype(0..n)?;
    if let Some(d @ (DType::Bool | DType::String)) = dtype {
        return wrong(format!("inputs are {d}, expected numbers"));
    }
    let dims = cx.broadcast_inputs(0..n)?;
    let ints = elementwise(cx);
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

fn infer_pow(cx: &mut InferCx<'_>) -> Inferred {
    let dims = cx.broadcast_inputs(0..2)?;
    let dtype = cx.dtype(0);
    cx.set(0, dtype, dims);
    Ok(())
}

/// The operator on integer vectors, element by element.
fn elementwise(cx: &InferCx<'_>) -> Option<Vec<Sym>> {
    let mut out: Option<Vec<Sym>> = None;
    for slot in 0..cx.inputs.len() {
        let v = cx.ints_or_unknown(slot)?;
        out = Some(match out {
            None => v,
            Some(o) => {
                let n = if o.len() == 1 { v.len() } else { o.len() };
                if (o.len() != n && o.len() != 1) || (v.len() != n && v.len() != 1) {
                    return None;
                }
                let at = |v: &'_ [Sym], i: usize| v.get(i).or(v.first()).cloned();
                (0..n)
                    .map(|i| {
                        let (a, b) = (at(&o, i)?, at(&v, i)?);
                        Some(combine(cx, &a, &b).unwrap_or_else(|| cx.unknown_int()))
                    })
                    .collect::<Option<Vec<Sym>>>()?
            }
        });
    }
    out
}

fn combine(cx: &InferCx<'_>, a: &Sym, b: &Sym) -> Option<Sym> {
    let consts = a.as_const().zip(b.as_const());
    match &*cx.node.op.op_type {
        "Add" | "Sum" => a.add(b),
        "Sub" => a.sub(b),
        "Mul" => a.mul(b),
        // ONNX divides integers towards zero.
        "Div" => match consts {
            Some((x, y)) => x.checked_div(y).map(Sym::from),
            None if a.is_size() && b.is_size() => Some(cx.floor_div(a, b)),
            None => a.div(b),
        },
        "Mod" => {
            let (x, y) = consts?;
            let r = if cx.node.int("fmod", 0) == 1 {
                x.checked_rem(y)?
            } else {
                // The sign of the divisor, as in Python.
                let r = x.checked_rem(y)?;
                if r != 0 && (r < 0) != (y < 0) {
                    r.checked_add(y)?
                } else {
                    r
                }
            };
            Some(Sym::from(r))
        }
        "Max" => {
            if a.sub(b)?.is_size() {
                Some(a.clone())
            } else if b.sub(a)?.is_size() {
                Some(b.clone())
            } else if a.is_size() || b.is_size() {
                let (a, b) = if a <= b { (a, b) } else { (b, a) };
                Some(cx.opaque(&format!("max({a}, {b})")))
            } else {
                None
            }
        }
        "Min" => Some(cx.min(a, b)),
        _ => None,
    }
}

fn grad_add(cx: &mut GradCx<'_>) -> Differentiated {
    each(cx, |cx, _| cx.grad())
}

fn grad_sum(cx: &mut GradCx<'_>) -> Differentiated {
    each(cx, |cx, _| cx.grad())
}

fn grad_mean(cx: &mut GradCx<'_>) -> Differentiated {
    let share = 1.0 / cx.node().input_count() as f32;
    each(cx, |cx, _| Ok(cx.scaled(cx.grad()?, share)))
}

fn grad_sub(cx: &mut GradCx<'_>) -> Differentiated {
    let g = cx.grad()?;
    if cx.wants(0) {
        cx.set(0, cx.unbroadcast(0, g)?);
    }
    if cx.wants(1) {
        // Summed first: the negation is then of the smaller tensor.
        let summed = cx.unbroadcast(1, g)?;
        cx.set(1, cx.b.neg(summed));
    }
    Ok(())
}

fn grad_mul(cx: &mut GradCx<'_>) -> Differentiated {
    each(cx, |cx, slot| Ok(cx.b.mul(cx.grad()?, cx.input(1 - slot)?)))
}

fn grad_div(cx: &mut GradCx<'_>) -> Differentiated {
    each(cx, |cx, slot| {
        let over = cx.b.div(cx.grad()?, cx.input(1)?);
        Ok(if slot == 0 {
            over
        } else {
            cx.b.neg(cx.b.mul(over, cx.output(0)?))
        })
    })
}

fn grad_mod(cx: &mut GradCx<'_>) -> Differentiated {
    each(cx, |cx, slot| {
        if slot == 1 {
            return no_gradient("there is no rule for the divisor of Mod");
        }
        cx.grad()
    })
}

fn grad_pow(cx: &mut GradCx<'_>) -> Differentiated {
    each(cx, |cx, slot| {
        if slot == 0 {
            pow_base(cx)
        } else {
            pow_exponent(cx)
        }
    })
}

fn pow_base(cx: &GradCx<'_>) -> Result<Val, GradError> {
    let (b, g, x) = (cx.b, cx.grad()?, cx.input(0)?);
    match constant_exponent(cx) {
        Some(0.0) => Ok(cx.scaled(g, 0.0)),
        Some(1.0) => Ok(g),
        Some(2.0) => Ok(b.mul(g, cx.scaled(x, 2.0))),
        Some(3.0) => Ok(b.mul(g, cx.scaled(b.mul(x, x), 3.0))),
        Some(0.5) => Ok(b.div(cx.scaled(g, 0.5), cx.output(0)?)),
        Some(p) => {
            let power = b.op("Pow", &[x, cx.scalar(p - 1.0)], &[]);
            Ok(b.mul(g, cx.scaled(power, p)))
        }
        None => {
            let p = float_exponent(cx)?;
            let power = b.op("Pow", &[x, b.sub(p, cx.scalar(1.0))], &[]);
            let zero = b.op("Equal", &[p, cx.scalar(0.0)], &[]);
            let slope = b.op("Where", &[zero, cx.scalar(0.0), b.mul(p, power)], &[]);
            Ok(b.mul(g, slope))
        }
    }
}

/// `g·y·ln x`, and 0 where `x` is 0, as in torch.
fn pow_exponent(cx: &GradCx<'_>) -> Result<Val, GradError> {
    let (b, g, x) = (cx.b, cx.grad()?, cx.input(0)?);
    let zero = b.op("Equal", &[x, cx.scalar(0.0)], &[]);
    let safe = b.op("Where", &[zero, cx.scalar(1.0), x], &[]);
    Ok(b.mul(g, b.mul(cx.output(0)?, b.unary("Log", safe))))
}

/// The exponent, if it is one number.
fn constant_exponent(cx: &GradCx<'_>) -> Option<f32> {
    let v = cx.graph.input(cx.id, 1)?;
    if let Some([n]) = cx.fact_of(v).ints.as_deref() {
        return n.as_const().map(|n| n as f32);
    }
    let value = cx.graph.value(v);
    let tensor = match (&value.tensor, cx.graph.producer(v)) {
        (Some(t), _) if !cx.graph.is_input(v) => t,
        (None, Some((n, _))) if cx.graph.node(n).op.is_onnx("Constant") => {
            cx.graph.node(n).attr("value")?.as_tensor()?
        }
        _ => return None,
    };
    if tensor.count()? != 1 {
        return None;
    }
    tensor.to_f32()?.first().copied()
}

fn float_exponent(cx: &GradCx<'_>) -> Result<Val, GradError> {
    let p = cx.input(1)?;
    let (have, want) = (cx.fact(1).dtype, cx.float_type());
    Ok(if have == Some(want) {
        p
    } else {
        cx.b.cast(p, want)
    })
}

fn grad_extreme(cx: &mut GradCx<'_>) -> Differentiated {
    let n = cx.node().input_count();
    if n == 1 {
        return each(cx, |cx, _| cx.grad());
    }
    let ty = cx.float_type();
    let y = cx.output(0)?;
    let mut masks = Vec::with_capacity(n);
    for slot in 0..n {
        let hit = cx.b.op("Equal", &[cx.input(slot)?, y], &[]);
        masks.push(cx.b.cast(hit, ty));
    }
    let total = masks[1..].iter().fold(masks[0], |sum, &m| cx.b.add(sum, m));
    let share = cx.b.div(cx.grad()?, total);
    each(cx, |cx, slot| Ok(cx.b.mul(share, masks[slot])))
}

/// Sets the gradient of each input that wants one, from a gradient in the shape of the output.
fn each(
    cx: &mut GradCx<'_>,
    mut full: impl FnMut(&GradCx<'_>, usize) -> Result<Val, GradError>,
) -> Differentiated {
    for slot in 0..cx.node().input_count() {
        if cx.wants(slot) {
            let g = full(cx, slot)?;
            cx.set(slot, cx.unbroadcast(slot, g)?);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};

    #[test]
    fn broadcasting() {
        for (a, b, want) in [
            ("f32[batch, seq, 8]", "f32[8]", "f32[batch, seq, 8]"),
            ("f32[batch, 1, 8]", "f32[seq, 1]", "f32[batch, seq, 8]"),
            ("f32[batch]", "f32[4]", "f32[4]"),
            ("f32[n]", "f32[m]", "f32[broadcast(m, n)]"),
            ("f32[?]", "f32[4]", "f32[4]"),
            ("f32[..]", "f32[4]", "f32[..]"),
            (
                "f32[3]",
                "f32[4]",
                "error: Add: shapes [3] and [4] do not broadcast",
            ),
            (
                "f32[3]",
                "i64[3]",
                "error: Add: input 0 is f32 and input 1 is i64; they must be of one type",
            ),
        ] {
            assert_eq!(
                infer(&[a, b], |g, v| vec![g.add(v[0], v[1])]),
                [want],
                "{a} + {b}"
            );
        }
    }

    #[test]
    fn shape_arithmetic() {
        let got = infer(&["f32[batch, seq]"], |b, v| {
            let n = b.op("Gather", &[b.shape(v[0]), b.int(1)], &[]);
            let two = b.int(2);
            let ops = ["Add", "Sub", "Mul", "Div", "Mod", "Min", "Max"];
            ops.iter().map(|op| b.op(op, &[n, two], &[])).collect()
        });
        let want = [
            "(seq + 2)",
            "(seq - 2)",
            "(2*seq)",
            "(floor((seq) / (2)))",
            "(#)",
            "(min(2, seq))",
            "(max(2, seq))",
        ];
        assert_eq!(got, want.map(|w| format!("i64[] = {w}")));
    }

    #[test]
    fn gradient_sums_what_was_broadcast() {
        let got = backward(18, &["f32[batch, seq, 8]", "f32[8]"], |b, v| {
            vec![b.mul(v[0], v[1])]
        });
        assert_eq!(
            got,
            "Mul: Mul(g0, b)\nMul_1: Mul(g0, a)\nReduceSum: ReduceSum(Mul_1, [0, 1])\nda = Mul\ndb = ReduceSum"
        );
        let got = backward(18, &["f32[batch, n]", "f32[batch, m]"], |b, v| {
            vec![b.sub(v[0], v[1])]
        });
        assert_eq!(
            got,
            "Shape: Shape(a)\nSumTo: onnx_graft::SumTo(g0, Shape)\nShape_1: Shape(b)\n\
             SumTo_1: onnx_graft::SumTo(g0, Shape_1)\nNeg: Neg(SumTo_1)\nda = SumTo\ndb = Neg"
        );
    }

    #[test]
    fn power_of_two_is_a_product() {
        let got = backward(18, &["f32[n]"], |b, v| {
            vec![b.op("Pow", &[v[0], b.scalar(2.0)], &[])]
        });
        // The exponent is a floating-point value, so that the test asks for its gradient, too.
        assert!(
            got.starts_with("Mul: Mul(a, [2.0])\nMul_1: Mul(g0, Mul)\n"),
            "{got}"
        );
    }
}
