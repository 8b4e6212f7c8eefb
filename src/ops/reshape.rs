//! `Reshape`, `Flatten`, `Squeeze`, `Unsqueeze`: the same elements in another shape. All gradients are reshapes back.

use super::kit::infer::{Axes, normal_axes, normal_axis, product, shape_text};
use super::kit::{Differentiated, Inferred, wrong};
use super::{GradCx, InferCx, InferError, OpDef};
use crate::ir::{DType, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Reshape", 2..=2, infer_reshape).gradient(gradient),
    OpDef::new("Flatten", 1..=1, infer_flatten).gradient(gradient),
    OpDef::new("Squeeze", 1..=2, infer_squeeze).gradient(gradient),
    OpDef::new("Unsqueeze", 1..=2, infer_unsqueeze).gradient(gradient),
];

fn infer_reshape(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(1, &[DType::Int64])?;
    let dtype = cx.dtype(0);
    let dims = match cx.ints_or_unknown(1) {
        Some(shape) => Some(reshaped(cx, &shape)?),
        None => None,
    };
    let ints = cx
        .ints(0)
        .filter(|_| dims.as_ref().is_some_and(|d| d.len() <= 1));
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

/// The shape that a `Reshape` gives. One element that is -1, or not known, follows from the number of elements.
fn reshaped(cx: &InferCx<'_>, shape: &[Sym]) -> Result<Vec<Sym>, InferError> {
    let allow_zero = cx.node.int("allowzero", 0) == 1;
    let dims = cx.dims(0);
    if shape.iter().filter(|s| s.is(-1)).count() > 1 {
        return wrong(format!("shape {} has more than one -1", shape_text(shape)));
    }
    let mut out: Vec<Option<Sym>> = Vec::with_capacity(shape.len());
    for (i, s) in shape.iter().enumerate() {
        out.push(match s.as_const() {
            Some(0) if !allow_zero => match dims {
                Some(d) => Some(d.get(i).cloned().ok_or_else(|| {
                    InferError(format!(
                        "shape {} copies axis {i} of a tensor of rank {}",
                        shape_text(shape),
                        d.len()
                    ))
                })?),
                None => None,
            },
            Some(-1) => None,
            Some(n) if n < -1 => return wrong(format!("a size of {n}")),
            _ => s.is_size().then(|| s.clone()),
        });
    }
    let holes = out.iter().filter(|d| d.is_none()).count();
    if let Some(dims) = dims {
        let (from, to) = cancel(dims, out.iter().flatten());
        let (from, to) = (product(&from), product(&to));
        if let (Some(from), Some(to)) = (from, to) {
            let fits = match (from.as_const(), to.as_const(), holes) {
                (Some(a), Some(b), 0) => a == b,
                (Some(a), Some(b), _) => b == 0 || a % b == 0,
                _ => true,
            };
            if !fits {
                return wrong(format!(
                    "shape {} cannot hold the elements of {}",
                    shape_text(shape),
                    shape_text(dims)
                ));
            }
            if holes == 1
                && let Some(q) = quotient(cx, &from, &to)
            {
                for d in &mut out {
                    d.get_or_insert_with(|| q.clone());
                }
            }
        }
    }
    Ok(out
        .into_iter()
        .map(|d| d.unwrap_or_else(|| cx.unknown()))
        .collect())
}

/// Both lists without what they share.
fn cancel<'a>(from: &[Sym], to: impl Iterator<Item = &'a Sym>) -> (Vec<Sym>, Vec<Sym>) {
    let mut from = from.to_vec();
    let mut rest = Vec::new();
    for d in to {
        match from.iter().position(|f| f == d && !d.is(0)) {
            Some(i) => {
                from.swap_remove(i);
            }
            None => rest.push(d.clone()),
        }
    }
    (from, rest)
}

fn quotient(cx: &InferCx<'_>, from: &Sym, to: &Sym) -> Option<Sym> {
    if to.is(0) {
        return None;
    }
    if let Some(q) = from.div(to) {
        return Some(q);
    }
    // The runtime checks that it divides: the rounding is never seen.
    (from.is_size() && to.is_size()).then(|| cx.floor_div(from, to))
}

fn infer_flatten(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let dims = match cx.dims(0) {
        Some(d) => {
            let axis = match cx.node.int("axis", 1) {
                a if a == d.len() as i64 => d.len(),
                a => normal_axis(a, d.len().max(1))?,
            };
            let part = |d: &[Sym]| product(d).unwrap_or_else(|| cx.unknown());
            vec![part(&d[..axis]), part(&d[axis..])]
        }
        None => cx.unknown_dims(2),
    };
    cx.set(0, dtype, Some(dims));
    Ok(())
}

fn infer_squeeze(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let ints = cx.ints(0);
    let dims = match (cx.dims(0), cx.axes(1)) {
        (Some(d), Axes::Known(axes)) => {
            let gone = normal_axes(&axes, d.len())?;
            if let Some(a) = gone
                .iter()
                .find(|&&a| d[a].as_const().is_some_and(|n| n != 1))
            {
                return wrong(format!("axis {a} of {} is not of size 1", shape_text(d)));
            }
            let stays = |i: &usize| !gone.contains(i);
            Some((0..d.len()).filter(stays).map(|i| d[i].clone()).collect())
        }
        // Without axes all axes of size 1 go: which ones, only known sizes tell.
        (Some(d), Axes::Absent) if d.iter().all(|s| s.as_const().is_some()) => {
            Some(d.iter().filter(|s| !s.is(1)).cloned().collect())
        }
        (Some(d), Axes::Unknown(Some(n))) if n <= d.len() => Some(cx.unknown_dims(d.len() - n)),
        _ => None,
    };
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

fn infer_unsqueeze(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let dims = match (cx.dims(0), cx.axes(1)) {
        (_, Axes::Absent) => return wrong("the axes are missing"),
        (Some(d), Axes::Known(axes)) => {
            let rank = d.len() + axes.len();
            let new = normal_axes(&axes, rank)?;
            let mut old = d.iter();
            let pick = |i| {
                if new.contains(&i) {
                    Some(Sym::from(1))
                } else {
                    old.next().cloned()
                }
            };
            Some((0..rank).filter_map(pick).collect::<Vec<Sym>>())
        }
        (Some(d), Axes::Unknown(Some(n))) => Some(cx.unknown_dims(d.len() + n)),
        _ => None,
    };
    let ints = cx
        .ints(0)
        .filter(|_| dims.as_ref().is_some_and(|d| d.len() == 1));
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

/// Back to the input's shape. Known axes are undone without reading the input.
fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let g = cx.grad()?;
    let axes = || {
        cx.node()
            .ints("axes")
            .map(<[i64]>::to_vec)
            .or_else(|| cx.const_ints(1))
    };
    let static_shape = cx.fact(0).dims.and_then(|dims| static_shape(&dims));
    let back = match (&*cx.node().op.op_type, axes()) {
        ("Squeeze", Some(axes)) => cx.b.unsqueeze(g, &axes),
        ("Unsqueeze", Some(axes)) => cx.b.squeeze(g, &axes),
        _ => match static_shape {
            Some(shape) => cx.b.reshape(g, cx.b.ints(&shape)),
            None => cx.b.reshape(g, cx.input_shape(0)?),
        },
    };
    cx.set(0, back);
    Ok(())
}

/// A shape vector for `Reshape` with at most one -1, if at most one size is unknown.
fn static_shape(dims: &[Sym]) -> Option<Vec<i64>> {
    let shape: Vec<i64> = dims.iter().map(|d| d.as_const().unwrap_or(-1)).collect();
    // A size of zero would be read as "copy".
    let unknown = shape.iter().filter(|d| **d == -1).count();
    (unknown <= 1 && !shape.contains(&0)).then_some(shape)
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};

    #[test]
    fn reshape_follows_symbols() {
        for (input, shape, want) in [
            (
                "f32[batch, seq, 32]",
                &[0, 0, 4, 8][..],
                "f32[batch, seq, 4, 8]",
            ),
            ("f32[batch, seq, 32]", &[0, -1, 8], "f32[batch, 4*seq, 8]"),
            ("f32[batch, seq, 32]", &[-1, 32], "f32[batch*seq, 32]"),
            ("f32[batch, seq, 32]", &[-1], "f32[32*batch*seq]"),
            ("f32[..]", &[0, -1, 8], "f32[?, ?, 8]"),
            (
                "f32[2, 3]",
                &[4, 2],
                "error: Reshape: shape [4, 2] cannot hold the elements of [2, 3]",
            ),
            (
                "f32[2, 3]",
                &[-1, -1],
                "error: Reshape: shape [-1, -1] has more than one -1",
            ),
            (
                "f32[2, 3]",
                &[6, 1, 0],
                "error: Reshape: shape [6, 1, 0] copies axis 2 of a tensor of rank 2",
            ),
        ] {
            let got = infer(&[input], |b, v| vec![b.reshape(v[0], b.ints(shape))]);
            assert_eq!(got, [want], "{input} to {shape:?}");
        }
    }

    #[test]
    fn reshape_by_computed_shape() {
        // The form of TorchScript: sizes of another tensor, one of them multiplied.
        let got = infer(&["f32[batch, seq, 4, 8]"], |b, v| {
            let shape = b.shape(v[0]);
            let at = |i| b.op("Gather", &[shape, b.ints(&[i])], &[]);
            let hidden = b.mul(at(2), at(3));
            let target = b.concat(&[at(0), at(1), hidden], 0);
            vec![b.reshape(v[0], target), target]
        });
        assert_eq!(got, ["f32[batch, seq, 32]", "i64[3] = (batch, seq, 32)"]);
    }

    #[test]
    fn zero_is_a_size_if_allowed() {
        let got = infer(&["f32[0, seq]"], |b, v| {
            vec![b.op(
                "Reshape",
                &[v[0], b.ints(&[3, 0])],
                &[("allowzero", 1i64.into())],
            )]
        });
        assert_eq!(got, ["f32[3, 0]"]);
    }

    #[test]
    fn squeeze_and_unsqueeze() {
        let got = infer(&["f32[batch, 1, seq]"], |b, v| {
            vec![b.squeeze(v[0], &[1]), b.unsqueeze(v[0], &[0, -1])]
        });
        assert_eq!(got, ["f32[batch, seq]", "f32[1, batch, 1, seq, 1]"]);
        let got = infer(&["f32[batch, 2]"], |b, v| vec![b.squeeze(v[0], &[1])]);
        assert_eq!(
            got,
            ["error: Squeeze: axis 1 of [batch, 2] is not of size 1"]
        );
    }

    #[test]
    fn flatten() {
        let got = infer(&["f32[batch, 3, 16, 16]"], |b, v| {
            vec![
                b.unary("Flatten", v[0]),
                b.op("Flatten", &[v[0]], &[("axis", 0i64.into())]),
            ]
        });
        assert_eq!(got, ["f32[batch, 768]", "f32[1, 768*batch]"]);
    }

    #[test]
    fn gradients_reshape_back() {
        let got = backward(18, &["f32[batch, 4, 8]"], |b, v| {
            vec![b.reshape(v[0], b.ints(&[0, 32]))]
        });
        assert_eq!(got, "Reshape: Reshape(g0, [-1, 4, 8])\nda = Reshape");
        let got = backward(18, &["f32[batch, seq, 8]"], |b, v| {
            vec![b.reshape(v[0], b.ints(&[-1, 8]))]
        });
        assert_eq!(
            got,
            "Shape: Shape(a)\nReshape: Reshape(g0, Shape)\nda = Reshape"
        );
        let got = backward(18, &["f32[batch, seq]"], |b, v| {
            vec![b.unsqueeze(v[0], &[1])]
        });
        assert_eq!(got, "Squeeze: Squeeze(g0, [1])\nda = Squeeze");
    }
}
