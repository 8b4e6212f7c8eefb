//! `TfIdfVectorizer` (9), `OptionalHasElement`, `OptionalGetElement` (15, 18) of tensors, `Binarizer` and `ArrayFeatureExtractor` of `ai.onnx.ml` (1), `BitCast` (26), `CumProd` (26), `Det` (11, 22), `DFT` (17, 20), `STFT` (17), `MelWeightMatrix` (17), and the random `Bernoulli`,
//! `RandomNormal`, `RandomNormalLike`, `RandomUniform`, `RandomUniformLike` (1, 22).

use super::kit::infer::{normal_axis, same_as_input};
use super::kit::{Inferred, wrong};
use super::{InferCx, OpDef};

const ML: &str = "ai.onnx.ml";

use crate::ir::{DType, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("BitCast", 1..=1, |cx| {
        let to = named(cx, "to");
        let dims = cx.dims_vec(0);
        cx.set(0, to, dims);
        Ok(())
    }),
    OpDef::new("CumProd", 2..=2, same_as_input),
    OpDef::new("Det", 1..=1, |cx| {
        let dims = cx.dims_vec(0).map(|mut d| {
            d.truncate(d.len().saturating_sub(2));
            d
        });
        cx.set(0, cx.dtype(0), dims);
        Ok(())
    }),
    OpDef::new("DFT", 1..=3, infer_dft),
    OpDef::new("STFT", 2..=4, |cx| {
        let dims = cx.unknown_dims(4);
        cx.set(0, cx.dtype(0), Some(dims));
        Ok(())
    }),
    OpDef::new("MelWeightMatrix", 5..=5, |cx| {
        let ty = named(cx, "output_datatype").or(Some(DType::Float));
        let dims = cx.unknown_dims(2);
        cx.set(0, ty, Some(dims));
        Ok(())
    }),
    OpDef::new("TfIdfVectorizer", 1..=1, |cx| {
        let columns = cx.node.ints("ngram_indexes").unwrap_or_default();
        let width = columns.iter().max().map_or(0, |m| m.saturating_add(1));
        let dims = cx.dims_vec(0).map(|mut d| {
            if let Some(last) = d.last_mut() {
                *last = Sym::from(width);
            }
            d
        });
        cx.set(0, Some(DType::Float), dims);
        Ok(())
    })
    .zero(),
    OpDef::new("OptionalHasElement", 0..=1, |cx| {
        cx.set(0, Some(DType::Bool), Some(Vec::new()));
        Ok(())
    })
    .zero(),
    OpDef::new("OptionalGetElement", 1..=1, same_as_input)
        .defined_by(|cx| Ok(vec![Some(cx.b.unary("Identity", cx.input(0)?))])),
    OpDef::new("Binarizer", 1..=1, same_as_input)
        .in_domain(ML)
        .defined_by(|cx| {
            let (b, ty) = (cx.b, cx.float(0));
            let edge = b.scalar_of(cx.node().float("threshold", 0.0), ty);
            let above = b.op("Greater", &[cx.input(0)?, edge], &[]);
            Ok(vec![Some(b.cast(above, ty))])
        }),
    OpDef::new("ArrayFeatureExtractor", 2..=2, |cx| {
        let n = super::kit::infer::product(cx.dims(1).unwrap_or_default());
        let dims = match (cx.dims_vec(0), cx.dims(1)) {
            (Some(mut d), Some(_)) => {
                let n = n.unwrap_or_else(|| cx.unknown());
                if d.len() == 1 {
                    d.insert(0, Sym::from(1));
                }
                if let Some(last) = d.last_mut() {
                    *last = n;
                }
                Some(d)
            }
            _ => None,
        };
        cx.set(0, cx.dtype(0), dims);
        Ok(())
    })
    .in_domain(ML)
    .defined_by(|cx| {
        let b = cx.b;
        let at = b.reshape(cx.input(1)?, b.ints(&[-1]));
        let y = b.op("Gather", &[cx.input(0)?, at], &[("axis", (-1i64).into())]);
        Ok(vec![Some(if cx.rank(0)? == 1 {
            b.unsqueeze(y, &[0])
        } else {
            y
        })])
    }),
    OpDef::new("Bernoulli", 1..=1, infer_random).zero(),
    OpDef::new("RandomNormal", 0..=0, infer_shape).zero(),
    OpDef::new("RandomUniform", 0..=0, infer_shape).zero(),
    OpDef::new("RandomNormalLike", 1..=1, infer_random).zero(),
    OpDef::new("RandomUniformLike", 1..=1, infer_random).zero(),
];

/// An element type that an attribute names.
fn named(cx: &InferCx<'_>, name: &str) -> Option<DType> {
    let code = i32::try_from(cx.node.int(name, 0)).ok()?;
    DType::from_code(code).filter(|t| *t != DType::Undefined)
}

fn infer_random(cx: &mut InferCx<'_>) -> Inferred {
    let ty = named(cx, "dtype").or(cx.dtype(0));
    let dims = cx.dims_vec(0);
    cx.set(0, ty, dims);
    Ok(())
}

fn infer_shape(cx: &mut InferCx<'_>) -> Inferred {
    let shape = cx.node.ints("shape").unwrap_or_default();
    let dims = shape.iter().map(|&n| Sym::from(n)).collect();
    let ty = named(cx, "dtype").or(Some(DType::Float));
    cx.set(0, ty, Some(dims));
    Ok(())
}

/// `[.., signal, .., 1 or 2]`: real or complex numbers on the last axis.
fn infer_dft(cx: &mut InferCx<'_>) -> Inferred {
    let half = cx.node.int("onesided", 0) != 0;
    let inverse = cx.node.int("inverse", 0) != 0;
    let axis = if cx.opset < 20 {
        Some(cx.node.int("axis", 1))
    } else if cx.input(2).is_some() {
        cx.const_ints(2).and_then(|v| v.first().copied())
    } else {
        Some(-2)
    };
    let dims = match (cx.dims_vec(0), axis) {
        (Some(mut d), Some(axis)) => {
            let at = normal_axis(axis, d.len())?;
            if at + 1 == d.len() {
                return wrong("the axis of a transform is not that of real and imaginary parts");
            }
            if cx.input(1).is_some() {
                d[at] = match cx.ints(1).as_deref() {
                    Some([n]) => cx.as_size(n),
                    _ => cx.unknown(),
                };
            }
            if half && !inverse {
                let n = cx.floor_div(&d[at], &Sym::from(2));
                d[at] = n.add(&Sym::from(1)).unwrap_or_else(|| cx.unknown());
            } else if half {
                d[at] = cx.unknown();
            }
            if let Some(last) = d.last_mut() {
                *last = Sym::from(if half && inverse { 1 } else { 2 });
            }
            Some(d)
        }
        (d, _) => d.map(|d| cx.unknown_dims(d.len())),
    };
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}
