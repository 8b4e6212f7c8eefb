//! `Concat` and `Split`, which undo each other.

use super::kit::infer::{normal_axis, shape_text};
use super::kit::{Differentiated, Inferred, MANY, no_gradient, wrong};
use super::{GradCx, GradError, InferCx, InferError, OpDef};
use crate::ir::{OpId, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Concat", 1..=MANY, infer_concat).gradient(grad_concat),
    OpDef::new("Split", 1..=2, infer_split)
        .outputs(1..=MANY)
        .gradient(grad_split),
];

fn infer_concat(cx: &mut InferCx<'_>) -> Inferred {
    let n = cx.inputs.len();
    if cx.node.attr("axis").is_none() {
        return wrong("attribute `axis` is missing");
    }
    let dtype = cx.same_dtype(0..n)?;
    let ints = concat_ints(cx);
    let dims = concat_dims(cx)?;
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

fn concat_dims(cx: &InferCx<'_>) -> Result<Option<Vec<Sym>>, InferError> {
    let mut known = (0..cx.inputs.len()).filter_map(|s| cx.dims(s));
    let Some(first) = known.next() else {
        return Ok(None);
    };
    let axis = cx.axis("axis", 0, first.len())?;
    let mut out = first.to_vec();
    let mut total = Some(Sym::from(0));
    for slot in 0..cx.inputs.len() {
        let Some(d) = cx.dims(slot) else {
            total = None;
            continue;
        };
        if d.len() != out.len() {
            return wrong(format!("inputs of rank {} and {}", out.len(), d.len()));
        }
        total = total.and_then(|t| t.add(&d[axis]));
        for (i, size) in d.iter().enumerate().filter(|(i, _)| *i != axis) {
            match (out[i].as_const(), size.as_const()) {
                (Some(a), Some(b)) if a != b => {
                    return wrong(format!(
                        "shapes {} and {} differ in axis {i}",
                        shape_text(&out),
                        shape_text(d)
                    ));
                }
                // All sizes are equal: the best known one stands.
                (None, Some(_)) => out[i] = size.clone(),
                (None, None) if !out[i].is_plain() && size.is_plain() => out[i] = size.clone(),
                _ => {}
            }
        }
    }
    out[axis] = total.unwrap_or_else(|| cx.unknown());
    Ok(Some(out))
}

fn concat_ints(cx: &InferCx<'_>) -> Option<Vec<Sym>> {
    let mut out = Vec::new();
    for slot in 0..cx.inputs.len() {
        cx.rank(slot).filter(|r| *r == 1)?;
        out.extend(cx.ints_or_unknown(slot)?);
    }
    Some(out)
}

/// A part of the gradient for each input: one slice if only one is wanted, else one `Split`.
fn grad_concat(cx: &mut GradCx<'_>) -> Differentiated {
    let n = cx.node().input_count();
    let axis = cx.node().int("axis", 0);
    let g = cx.grad()?;
    if n == 1 {
        cx.set(0, g);
        return Ok(());
    }
    let sizes: Option<Vec<i64>> = (0..n).map(|s| cx.fact(s).size(axis)).collect();
    let wanted: Vec<usize> = (0..n).filter(|s| cx.wants(*s)).collect();
    if let (Some(sizes), [slot]) = (&sizes, wanted.as_slice()) {
        let start = sizes[..*slot]
            .iter()
            .fold(0i64, |n, s| n.saturating_add(*s));
        let end = start.saturating_add(sizes[*slot]);
        let part = cx.b.slice(g, axis, start, end);
        cx.set(*slot, part);
        return Ok(());
    }
    let sizes = if let Some(s) = sizes {
        cx.b.ints(&s)
    } else {
        let parts = (0..n).map(|slot| axis_size(cx, slot, axis));
        cx.b.concat(&parts.collect::<Result<Vec<Val>, _>>()?, 0)
    };
    let parts = cx.b.node_n(
        OpId::onnx("Split"),
        &[Some(g), Some(sizes)],
        &[("axis", axis.into())],
        n,
    );
    for slot in wanted {
        cx.set(slot, parts[slot]);
    }
    Ok(())
}

/// The size of one axis of an input, as a vector of one element.
fn axis_size(cx: &GradCx<'_>, slot: usize, axis: i64) -> Result<Val, GradError> {
    if let Some(n) = cx.fact(slot).size(axis) {
        return Ok(cx.b.ints(&[n]));
    }
    let shape = cx.b.shape(cx.input(slot)?);
    let at = cx.b.ints(&[axis]);
    Ok(cx.b.op("Gather", &[shape, at], &[]))
}

fn infer_split(cx: &mut InferCx<'_>) -> Inferred {
    let parts = cx.outputs.len();
    let dtype = cx.dtype(0);
    let Some(dims) = cx.dims_vec(0) else {
        for slot in 0..parts {
            cx.set(slot, dtype, None);
        }
        return Ok(());
    };
    let axis = normal_axis(cx.node.int("axis", 0), dims.len())?;
    let sizes = split_sizes(cx, &dims[axis], parts)?;
    let ints = cx.ints(0).filter(|_| dims.len() == 1);
    let mut start = Some(0usize);
    for (slot, size) in sizes.into_iter().enumerate() {
        let mut d = dims.clone();
        let count = size.as_const().and_then(|n| usize::try_from(n).ok());
        d[axis] = size;
        cx.set(slot, dtype, Some(d));
        let end = start.zip(count).and_then(|(s, n)| s.checked_add(n));
        if let (Some(v), Some(s), Some(e)) = (&ints, start, end)
            && let Some(part) = v.get(s..e)
        {
            cx.outputs[slot].ints = Some(part.to_vec());
        }
        start = end;
    }
    Ok(())
}

fn split_sizes(cx: &InferCx<'_>, dim: &Sym, parts: usize) -> Result<Vec<Sym>, InferError> {
    let given = match (cx.node.ints("split"), cx.input(1)) {
        (Some(v), _) => Some(v.iter().copied().map(Sym::from).collect()),
        (None, Some(_)) => match cx.ints(1) {
            Some(v) => Some(v),
            None => return Ok(cx.unknown_dims(parts)),
        },
        (None, None) => None,
    };
    if let Some(sizes) = given {
        let sizes: Vec<Sym> = sizes;
        if sizes.len() != parts {
            return wrong(format!("{} sizes for {parts} outputs", sizes.len()));
        }
        let total = sizes.iter().try_fold(Sym::from(0), |t, s| t.add(s));
        if let (Some(t), Some(d)) = (total.and_then(|t| t.as_const()), dim.as_const())
            && t != d
        {
            return wrong(format!("sizes that add up to {t} of an axis of size {d}"));
        }
        if let Some(n) = sizes.iter().filter_map(Sym::as_const).find(|n| *n < 0) {
            return wrong(format!("a size of {n}"));
        }
        return Ok(sizes.iter().map(|s| cx.as_size(s)).collect());
    }
    let n = cx.node.int("num_outputs", parts as i64);
    if n != parts as i64 {
        return wrong(format!("num_outputs is {n}, but there are {parts} outputs"));
    }
    let Some(d) = dim.as_const() else {
        let part = dim.div(&Sym::from(n));
        return Ok(match part {
            Some(p) => vec![p; parts],
            None => cx.unknown_dims(parts),
        });
    };
    if d % n != 0 && cx.opset < 18 {
        return wrong(format!("an axis of size {d} in {n} equal parts"));
    }
    // From opset 18 on the last part may be smaller.
    let chunk = d / n + i64::from(d % n != 0);
    Ok((0..n)
        .map(|i| Sym::from(d.saturating_sub(i.saturating_mul(chunk)).clamp(0, chunk)))
        .collect())
}

/// The parts' gradients side by side; zeros for a part that nothing reads.
fn grad_split(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let axis = cx.node().int("axis", 0);
    let outputs = cx.graph.node_outputs(cx.id);
    let mut parts = Vec::with_capacity(outputs.len());
    for (slot, out) in outputs.iter().enumerate() {
        let part = match (cx.grads.get(slot).copied().flatten(), out) {
            (Some(g), _) => g,
            (None, Some(v)) => cx.zeros_like(*v),
            (None, None) => {
                return no_gradient(format!("output {slot} has no name, its size is not known"));
            }
        };
        parts.push(part);
    }
    let whole = if parts.len() == 1 {
        parts[0]
    } else {
        cx.b.concat(&parts, axis)
    };
    cx.set(0, whole);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer, infer_at};
    use crate::ir::{Builder, OpId, Val};

    fn split(b: &Builder, x: Val, sizes: Option<&[i64]>, axis: i64, n: usize) -> Vec<Val> {
        let sizes = sizes.map(|s| b.ints(s));
        b.node_n(
            OpId::onnx("Split"),
            &[Some(x), sizes],
            &[("axis", axis.into())],
            n,
        )
    }

    #[test]
    fn sizes_add_up() {
        let cat = |a: &str, b: &str| infer(&[a, b], |g, v| vec![g.concat(v, 1)]);
        assert_eq!(
            cat("f32[batch, past, 8]", "f32[?, seq, 8]"),
            ["f32[batch, seq + past, 8]"]
        );
        assert_eq!(
            cat("f32[batch, 1, ?]", "f32[batch, seq, 8]"),
            ["f32[batch, seq + 1, 8]"]
        );
        assert_eq!(cat("f32[..]", "f32[batch, seq, 8]"), ["f32[batch, ?, 8]"]);
        assert_eq!(
            cat("f32[batch, 1, 4]", "f32[batch, 1, 8]"),
            ["error: Concat: shapes [batch, 1, 4] and [batch, 1, 8] differ in axis 2"]
        );
        assert_eq!(
            cat("f32[2, 1]", "f32[2]"),
            ["error: Concat: inputs of rank 2 and 1"]
        );
    }

    #[test]
    fn splits() {
        let got = infer(&["f32[batch, 24]"], |b, v| {
            split(b, v[0], Some(&[16, 8]), -1, 2)
        });
        assert_eq!(got, ["f32[batch, 16]", "f32[batch, 8]"]);
        let got = infer(&["f32[batch, 24]"], |b, v| {
            split(b, v[0], Some(&[16, 9]), -1, 2)
        });
        assert_eq!(
            got,
            ["error: Split: sizes that add up to 25 of an axis of size 24"]
        );
        // The last part may be smaller from opset 18 on.
        let thirds = |opset| infer_at(opset, &["f32[7]"], |b, v| split(b, v[0], None, 0, 3));
        assert_eq!(thirds(18), ["f32[3]", "f32[3]", "f32[1]"]);
        assert_eq!(
            thirds(17),
            ["error: Split: an axis of size 7 in 3 equal parts"]
        );
        let got = infer(&["f32[n]"], |b, v| split(b, v[0], None, 0, 2));
        assert_eq!(got, ["f32[?]", "f32[?]"]);
    }

    #[test]
    fn gradients_undo_each_other() {
        let got = backward(18, &["f32[n, 4]", "f32[n, 8]"], |b, v| {
            vec![b.concat(v, -1)]
        });
        assert_eq!(
            got,
            "Split: Split(g0, [4, 8])\nda = Split\ndb = Split_output_1"
        );
        let got = backward(18, &["f32[n, 4]", "i64[n, 8]"], |b, v| {
            let cast = b.cast(v[1], crate::ir::DType::Float);
            vec![b.concat(&[v[0], cast], -1)]
        });
        assert!(
            got.starts_with("Split: "),
            "a computed part counts as wanted in this test: {got}"
        );
        let got = backward(18, &["f32[n, 24]"], |b, v| {
            split(b, v[0], Some(&[16, 8]), -1, 2)
        });
        assert_eq!(got, "Concat: Concat(g0, g1)\nda = Concat");
    }
}
