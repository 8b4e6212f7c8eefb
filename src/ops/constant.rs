//! `Constant`, `ConstantOfShape`, `EyeLike`, `Range`, `Shape`, `Size`: values that do not depend on the elements of a tensor.

use super::kit::infer::{MAX_INTS, fact, product, tensor_fact};
use super::kit::{Inferred, wrong};
use super::{InferCx, OpDef};
use crate::ir::{AttrValue, DType, Fact, Sym, TensorData};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Constant", 0..=0, infer_constant).zero(),
    OpDef::new("ConstantOfShape", 1..=1, infer_of_shape).zero(),
    OpDef::new("EyeLike", 1..=1, infer_eye).zero(),
    OpDef::new("Range", 3..=3, infer_range).zero(),
    OpDef::new("Shape", 1..=1, infer_shape).zero(),
    OpDef::new("Size", 1..=1, infer_size).zero(),
];

fn infer_constant(cx: &mut InferCx<'_>) -> Inferred {
    const FORMS: [&str; 8] = [
        "value",
        "sparse_value",
        "value_int",
        "value_ints",
        "value_float",
        "value_floats",
        "value_string",
        "value_strings",
    ];
    let mut given = FORMS.iter().filter_map(|k| cx.node.attr(k));
    let (Some(value), None) = (given.next(), given.next()) else {
        return wrong("exactly one of the `value` attributes is expected");
    };
    let vector = |n: usize| Some(vec![Sym::from(n as i64)]);
    let scalar = || Some(Vec::new());
    let found = match value {
        AttrValue::Tensor(t) => tensor_fact(t),
        AttrValue::Int(n) => Fact {
            dtype: Some(DType::Int64),
            dims: scalar(),
            ints: Some(vec![Sym::from(*n)]),
        },
        AttrValue::Ints(v) => Fact {
            dtype: Some(DType::Int64),
            dims: vector(v.len()),
            ints: (v.len() <= MAX_INTS).then(|| v.iter().copied().map(Sym::from).collect()),
        },
        AttrValue::Float(_) => fact(Some(DType::Float), scalar()),
        AttrValue::Floats(v) => fact(Some(DType::Float), vector(v.len())),
        AttrValue::String(_) => fact(Some(DType::String), scalar()),
        AttrValue::Strings(v) => fact(Some(DType::String), vector(v.len())),
        AttrValue::Other(_) => Fact::default(),
        AttrValue::Graph(_)
        | AttrValue::Graphs(_)
        | AttrValue::Tensors(_)
        | AttrValue::Ref { .. } => {
            return wrong("the `value` attribute is of the wrong kind");
        }
    };
    cx.outputs[0] = found;
    Ok(())
}

fn infer_eye(cx: &mut InferCx<'_>) -> Inferred {
    let named = cx.node.attr("dtype").and_then(AttrValue::as_int);
    let dtype = match named {
        Some(code) => i32::try_from(code).ok().and_then(DType::from_code),
        None => cx.dtype(0),
    };
    let dims = cx.dims_vec(0);
    if let Some(d) = dims.as_ref().filter(|d| d.len() != 2) {
        return wrong(format!("an input of rank {}, expected a matrix", d.len()));
    }
    cx.set(0, dtype, dims);
    Ok(())
}

fn infer_of_shape(cx: &mut InferCx<'_>) -> Inferred {
    let value = cx.node.attr("value").and_then(AttrValue::as_tensor);
    if value.is_some_and(|t| t.count() != Some(1)) {
        return wrong("attribute `value` must have one element");
    }
    let dtype = value.map_or(DType::Float, |t| t.dtype);
    let shape = cx.ints_or_unknown(0);
    if let Some(n) = shape
        .iter()
        .flatten()
        .filter_map(Sym::as_const)
        .find(|n| *n < 0)
    {
        return wrong(format!("a size of {n}"));
    }
    let dims: Option<Vec<Sym>> = shape.map(|v| v.iter().map(|s| cx.as_size(s)).collect());
    let ints = value.and_then(TensorData::to_i64).and_then(|v| {
        let n = match dims.as_deref()? {
            [] => 1,
            [n] => usize::try_from(n.as_const()?).ok()?,
            _ => return None,
        };
        (n <= MAX_INTS).then(|| vec![Sym::from(v[0]); n])
    });
    cx.set(0, Some(dtype), dims);
    cx.set_ints(ints);
    Ok(())
}

fn infer_range(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.same_dtype(0..3)?;
    let scalar = |slot: usize| match cx.ints(slot).as_deref() {
        Some([s]) => Some(s.clone()),
        _ => None,
    };
    let (start, limit, delta) = (scalar(0), scalar(1), scalar(2));
    if delta.as_ref().is_some_and(|d| d.is(0)) {
        return wrong("a step of 0");
    }
    let count = match (&start, &limit, &delta) {
        (Some(s), Some(l), Some(d)) => count(cx, s, l, d),
        _ => float_count(cx),
    };
    let count = count.unwrap_or_else(|| cx.unknown());
    let ints = match (count.as_const(), start, delta) {
        (Some(n), Some(s), Some(d)) if n <= MAX_INTS as i64 => {
            (0..n).map(|i| s.add(&d.mul(&Sym::from(i))?)).collect()
        }
        _ => None,
    };
    cx.set(0, dtype, Some(vec![count]));
    cx.set_ints(ints);
    Ok(())
}

/// `max(0, ceil((limit - start) / delta))`.
fn count(cx: &InferCx<'_>, start: &Sym, limit: &Sym, delta: &Sym) -> Option<Sym> {
    let span = limit.sub(start)?;
    let step = delta.as_const()?;
    if let Some(n) = span.as_const() {
        let whole = i128::from(n);
        let step = i128::from(step);
        let ceil = (whole + step - step.signum()) / step;
        let n = if (whole > 0) == (step > 0) {
            ceil.max(0)
        } else {
            0
        };
        return i64::try_from(n).ok().map(Sym::from);
    }
    if span.symbols().any(|s| s.contains('#')) {
        return None;
    }
    match step {
        1 => Some(span),
        -1 => span.mul(&Sym::from(-1)),
        s if s > 0 => {
            let up = span.add(&Sym::from(s - 1))?;
            Some(span.div(delta).unwrap_or_else(|| cx.floor_div(&up, delta)))
        }
        _ => None,
    }
}

/// The same for constants that are no integers.
fn float_count(cx: &InferCx<'_>) -> Option<Sym> {
    let scalar = |slot: usize| {
        let tensor = cx.tensors.get(slot)?.filter(|t| t.count() == Some(1))?;
        tensor.to_f32()?.first().map(|x| f64::from(*x))
    };
    let (start, limit, delta) = (scalar(0)?, scalar(1)?, scalar(2)?);
    let n = ((limit - start) / delta).ceil().max(0.0);
    (n.is_finite() && n < 2f64.powi(53)).then(|| Sym::from(n as i64))
}

fn infer_shape(cx: &mut InferCx<'_>) -> Inferred {
    let dims = cx.dims_vec(0).map(|d| {
        // Bounds are clamped (Shape-15).
        let rank = d.len() as i64;
        let clamp = |x: i64| (if x < 0 { x.saturating_add(rank) } else { x }).clamp(0, rank);
        let start = clamp(cx.node.int("start", 0));
        let end = clamp(cx.node.int("end", rank)).max(start);
        d[start as usize..end as usize].to_vec()
    });
    let len = match &dims {
        Some(d) => Sym::from(d.len() as i64),
        None => cx.unknown(),
    };
    cx.set(0, Some(DType::Int64), Some(vec![len]));
    cx.set_ints(dims);
    Ok(())
}

fn infer_size(cx: &mut InferCx<'_>) -> Inferred {
    let count = cx.dims(0).and_then(product);
    cx.set(0, Some(DType::Int64), Some(Vec::new()));
    cx.set_ints(count.map(|n| vec![n]));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::infer;
    use crate::ir::TensorData;

    #[test]
    fn shapes_and_sizes() {
        let got = infer(&["f32[batch, seq, 8]"], |b, v| {
            let part = [("start", 1i64.into()), ("end", (-1i64).into())];
            vec![
                b.shape(v[0]),
                b.op("Shape", &[v[0]], &part),
                b.unary("Size", v[0]),
            ]
        });
        assert_eq!(
            got,
            [
                "i64[3] = (batch, seq, 8)",
                "i64[1] = (seq)",
                "i64[] = (8*batch*seq)"
            ]
        );
    }

    #[test]
    fn ranges() {
        let got = infer(&["f32[seq]"], |b, v| {
            let n = b.squeeze(b.shape(v[0]), &[0]);
            let range = |s, l, d| b.op("Range", &[s, l, d], &[]);
            vec![
                range(b.int(0), n, b.int(1)),
                range(n, b.add(n, n), b.int(1)),
                range(b.int(0), b.int(7), b.int(3)),
                range(b.int(3), b.int(0), b.int(-1)),
                range(b.int(3), b.int(0), b.int(1)),
                range(b.scalar(0.0), b.scalar(1.0), b.scalar(0.25)),
            ]
        });
        let want = [
            "i64[seq]",
            "i64[seq]",
            "i64[3] = (0, 3, 6)",
            "i64[3] = (3, 2, 1)",
            "i64[0] = ()",
            "f32[4]",
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn constants_of_a_shape() {
        let got = infer(&["f32[seq, 2]"], |b, v| {
            let minus = TensorData::ints(&[-1]);
            let shape = b.shape(v[0]);
            vec![
                b.unary("ConstantOfShape", shape),
                b.op(
                    "ConstantOfShape",
                    &[b.shape(shape)],
                    &[("value", minus.into())],
                ),
            ]
        });
        assert_eq!(got, ["f32[seq, 2]", "i64[2] = (-1, -1)"]);
        let got = infer(&[], |b, _| {
            vec![b.unary("ConstantOfShape", b.ints(&[2, -1]))]
        });
        assert_eq!(got, ["error: ConstantOfShape: a size of -1"]);
    }

    #[test]
    fn one_value_attribute() {
        let got = infer(&[], |b, _| {
            vec![
                b.op("Constant", &[], &[("value_ints", vec![1i64, 2].into())]),
                b.op("Constant", &[], &[("value_float", 1f32.into())]),
            ]
        });
        assert_eq!(got, ["i64[2] = (1, 2)", "f32[]"]);
        let got = infer(&[], |b, _| vec![b.op("Constant", &[], &[])]);
        assert_eq!(
            got,
            ["error: Constant: exactly one of the `value` attributes is expected"]
        );
    }
}
