//! Comparisons, logic, and the tests for NaN and infinity: their outputs are booleans.

use super::kit::{Inferred, wrong};
use super::{InferCx, OpDef};
use crate::ir::{DType, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Equal", 2..=2, infer_comparison).zero(),
    OpDef::new("Greater", 2..=2, infer_comparison).zero(),
    OpDef::new("GreaterOrEqual", 2..=2, infer_comparison).zero(),
    OpDef::new("Less", 2..=2, infer_comparison).zero(),
    OpDef::new("LessOrEqual", 2..=2, infer_comparison).zero(),
    OpDef::new("And", 2..=2, infer_logic).zero(),
    OpDef::new("Or", 2..=2, infer_logic).zero(),
    OpDef::new("Xor", 2..=2, infer_logic).zero(),
    OpDef::new("Not", 1..=1, infer_logic).zero(),
    OpDef::new("IsNaN", 1..=1, infer_test).zero(),
    OpDef::new("IsInf", 1..=1, infer_test).zero(),
];

fn infer_comparison(cx: &mut InferCx<'_>) -> Inferred {
    cx.same_dtype(0..2)?;
    let dims = cx.broadcast_inputs(0..2)?;
    let bits = compare_ints(cx);
    cx.set(0, Some(DType::Bool), dims);
    cx.set_ints(bits);
    Ok(())
}

fn infer_logic(cx: &mut InferCx<'_>) -> Inferred {
    let n = cx.inputs.len();
    for slot in 0..n {
        cx.expect_dtype(slot, &[DType::Bool])?;
    }
    let dims = cx.broadcast_inputs(0..n)?;
    let bits = match (&*cx.node.op.op_type, cx.const_ints(0)) {
        ("Not", Some(v)) => Some(v.iter().map(|b| Sym::from(i64::from(*b == 0))).collect()),
        _ => None,
    };
    cx.set(0, Some(DType::Bool), dims);
    cx.set_ints(bits);
    Ok(())
}

fn infer_test(cx: &mut InferCx<'_>) -> Inferred {
    if let Some(d) = cx.dtype(0)
        && (d == DType::Bool || d == DType::String)
    {
        return wrong(format!("input 0 is {d}, expected a floating-point type"));
    }
    let dims = cx.dims_vec(0);
    cx.set(0, Some(DType::Bool), dims);
    Ok(())
}

/// Comparisons of integer vectors whose outcome is certain for all sizes.
fn compare_ints(cx: &InferCx<'_>) -> Option<Vec<Sym>> {
    let (a, b) = (cx.ints(0)?, cx.ints(1)?);
    let n = if a.len() == 1 { b.len() } else { a.len() };
    (0..n)
        .map(|i| {
            let at = |v: &'_ [Sym]| {
                if v.len() == 1 {
                    v.first().cloned()
                } else {
                    v.get(i).cloned()
                }
            };
            certain(&cx.node.op.op_type, &at(&a)?, &at(&b)?).map(|t| Sym::from(i64::from(t)))
        })
        .collect()
}

fn certain(op: &str, a: &Sym, b: &Sym) -> Option<bool> {
    let d = a.sub(b)?;
    let one = Sym::from(1);
    let at_least = d.is_size();
    let above = d.sub(&one)?.is_size();
    let at_most = b.sub(a)?.is_size();
    let below = b.sub(a)?.sub(&one)?.is_size();
    let decide = |yes: bool, no: bool| if yes { Some(true) } else { no.then_some(false) };
    match op {
        "Equal" => decide(d.is(0), above || below),
        "Greater" => decide(above, at_most),
        "GreaterOrEqual" => decide(at_least, below),
        "Less" => decide(below, at_least),
        "LessOrEqual" => decide(at_most, above),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::infer;

    #[test]
    fn what_holds_for_all_sizes_is_known() {
        let got = infer(&["f32[seq, 4]"], |b, v| {
            let shape = b.shape(v[0]);
            let cmp = |op: &str, n| b.op(op, &[shape, b.int(n)], &[]);
            vec![
                cmp("Equal", -1),
                cmp("Equal", 4),
                cmp("Greater", -1),
                cmp("Less", 0),
                b.unary("Not", cmp("GreaterOrEqual", 0)),
            ]
        });
        assert_eq!(
            got,
            [
                "bool[2] = (0, 0)",
                "bool[2]",
                "bool[2] = (1, 1)",
                "bool[2] = (0, 0)",
                "bool[2] = (0, 0)"
            ]
        );
    }

    #[test]
    fn types() {
        let got = infer(&["f32[n]", "bool[n]"], |b, v| {
            vec![b.unary("IsNaN", v[0]), b.op("And", &[v[1], v[1]], &[])]
        });
        assert_eq!(got, ["bool[n]", "bool[n]"]);
        let got = infer(&["f32[n]"], |b, v| vec![b.unary("Not", v[0])]);
        assert_eq!(got, ["error: Not: input 0 is f32, expected bool"]);
    }
}
