//! `Slice`, and our operator `onnx_graft::SliceGrad` for slices whose bounds are only known when the graph runs.
//!
//! `SliceGrad(grad, shape, starts, ends, axes?, steps?) -> dx`: zeros of `shape` (an `i64` vector, the shape of the slice's input) with
//! `grad` written where `Slice(dx, starts, ends, axes, steps)` reads: bounds count from the end when negative and are clamped, exactly
//! as `Slice-13` says.

use super::kit::infer::{normal_axes, shaped_by};
use super::kit::{DOMAIN, Differentiated, Inferred, wrong};
use super::{GradCx, GradError, InferCx, InferError, OpDef};
use crate::ir::{OpId, Sym, Val};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Slice", 1..=5, infer).gradient(gradient),
    OpDef::new("SliceGrad", 4..=6, |cx| shaped_by(cx, 1)).in_domain(DOMAIN),
];

/// A slice of one axis.
#[derive(Clone, Debug)]
struct Cut {
    axis: usize,
    start: Option<Sym>,
    end: Option<Sym>,
    step: Option<i64>,
}

/// The slices of a node, from inputs or (before opset 10) attributes; `None` if it is not known which axes they are of.
fn cuts(cx: &InferCx<'_>, rank: usize) -> Result<Option<Vec<Cut>>, InferError> {
    let attr = |name: &str| {
        cx.node
            .ints(name)
            .map(|v| v.iter().copied().map(Sym::from).collect::<Vec<Sym>>())
    };
    let starts = attr("starts").or_else(|| cx.ints(1));
    let ends = attr("ends").or_else(|| cx.ints(2));
    let Some(n) = [&starts, &ends]
        .into_iter()
        .flatten()
        .map(Vec::len)
        .next()
        .or_else(|| cx.len_of(1))
        .or_else(|| cx.len_of(2))
        .or_else(|| cx.len_of(3))
    else {
        return Ok(None);
    };
    if [&starts, &ends].into_iter().flatten().any(|v| v.len() != n) {
        return wrong("starts and ends are of different lengths");
    }
    let axes = match (cx.node.ints("axes"), cx.input(3)) {
        (Some(a), _) => a.to_vec(),
        (None, None) => (0..n as i64).collect(),
        (None, Some(_)) => match cx.const_ints(3) {
            Some(a) => a,
            None => return Ok(None),
        },
    };
    if axes.len() != n {
        return wrong(format!("{} axes for {n} starts", axes.len()));
    }
    let steps: Vec<Option<i64>> = match (cx.input(4), cx.ints(4)) {
        (None, _) => vec![Some(1); n],
        (Some(_), Some(v)) if v.len() == n => v.iter().map(Sym::as_const).collect(),
        (Some(_), Some(v)) => return wrong(format!("{} steps for {n} starts", v.len())),
        (Some(_), None) => vec![None; n],
    };
    if steps.contains(&Some(0)) {
        return wrong("a step of 0");
    }
    let axes = normal_axes(&axes, rank)?;
    let pick = |v: &Option<Vec<Sym>>, i: usize| v.as_ref().map(|v| v[i].clone());
    Ok(Some(
        axes.into_iter()
            .enumerate()
            .map(|(i, axis)| Cut {
                axis,
                start: pick(&starts, i),
                end: pick(&ends, i),
                step: steps[i],
            })
            .collect(),
    ))
}

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let Some(mut dims) = cx.dims_vec(0) else {
        cx.set(0, dtype, None);
        return Ok(());
    };
    let Some(cuts) = cuts(cx, dims.len())? else {
        let unknown = cx.unknown_dims(dims.len());
        cx.set(0, dtype, Some(unknown));
        return Ok(());
    };
    let ints = sliced_ints(cx, &cuts);
    for cut in &cuts {
        let dim = &mut dims[cut.axis];
        *dim = match (&cut.start, &cut.end, cut.step) {
            (Some(s), Some(e), Some(step)) => size(cx, dim, s, e, step),
            _ => None,
        }
        .unwrap_or_else(|| cx.unknown());
    }
    cx.set(0, dtype, Some(dims));
    cx.set_ints(ints);
    Ok(())
}

/// A bound from the front, in `0..=dim`.
fn bound(cx: &InferCx<'_>, dim: &Sym, x: &Sym) -> Option<Sym> {
    match x.as_const() {
        Some(n) if n < 0 => match dim.as_const() {
            Some(d) => Some(Sym::from(n.saturating_add(d).max(0))),
            // The tensor is believed to be long enough for a bound that counts from the end.
            None if n > i64::from(i32::MIN) => dim.add(x),
            None => Some(Sym::from(0)),
        },
        Some(n) if n >= i64::from(i32::MAX) => Some(dim.clone()),
        // The same for a constant bound from the front.
        Some(n) => match dim.as_const() {
            Some(d) => Some(Sym::from(n.min(d))),
            None => Some(x.clone()),
        },
        None if x.is_size() => Some(cx.min(x, dim)),
        // `-n` with a size `n` counts from the end.
        None => {
            let n = x.mul(&Sym::from(-1))?;
            if !n.is_size() {
                return symbolic(dim, x);
            }
            dim.sub(&cx.min(&n, dim))
        }
    }
}

/// A difference of sizes, such as `key - query`: believed to lie inside if the tensor is at least as long as its positive part.
fn symbolic(dim: &Sym, x: &Sym) -> Option<Sym> {
    let known = !x.symbols().any(|s| s.contains('#'));
    (known && dim.sub(x)?.is_size()).then(|| x.clone())
}

fn size(cx: &InferCx<'_>, dim: &Sym, start: &Sym, end: &Sym, step: i64) -> Option<Sym> {
    if step < 0 {
        return backwards(dim, start, end, step);
    }
    // A constant end on a symbolic axis may lie beyond it.
    let (s, e) = (bound(cx, dim, start)?, bound(cx, dim, end)?);
    let e = match (e.as_const(), dim.as_const()) {
        (Some(_), None) if !e.is(0) => cx.min(&e, dim),
        _ => e,
    };
    let span = e.sub(&s)?;
    match (span.as_const(), step) {
        (Some(n), _) => Some(Sym::from(n.max(0).checked_add(step - 1)? / step)),
        (None, 1) => Some(span),
        (None, _) => {
            let up = span.add(&Sym::from(step - 1))?;
            Some(cx.floor_div(&up, &Sym::from(step)))
        }
    }
}

/// Negative steps: a whole axis backwards, or known numbers.
fn backwards(dim: &Sym, start: &Sym, end: &Sym, step: i64) -> Option<Sym> {
    let (s, e) = (start.as_const()?, end.as_const()?);
    let whole = (s == -1 || s >= i64::from(i32::MAX)) && e <= i64::from(i32::MIN);
    if whole && step == -1 {
        return Some(dim.clone());
    }
    let d = dim.as_const()?;
    if d == 0 {
        return Some(Sym::from(0));
    }
    let front = |x: i64| if x < 0 { x.saturating_add(d) } else { x };
    let s = front(s).clamp(0, d - 1);
    let e = front(e).clamp(-1, d - 1);
    let span = (s - e).max(0);
    Some(Sym::from(
        (span + step.checked_neg()? - 1) / step.checked_neg()?,
    ))
}

/// A slice of an integer vector.
fn sliced_ints(cx: &InferCx<'_>, cuts: &[Cut]) -> Option<Vec<Sym>> {
    let v = cx.ints(0)?;
    let [cut] = cuts else { return None };
    cx.rank(0).filter(|r| *r == 1)?;
    let n = v.len() as i64;
    let (start, end) = (
        cut.start.as_ref()?.as_const()?,
        cut.end.as_ref()?.as_const()?,
    );
    let step = cut.step?;
    let front = |x: i64| if x < 0 { x.saturating_add(n) } else { x };
    let mut out = Vec::new();
    if step > 0 {
        let mut i = front(start).clamp(0, n);
        while i < front(end).clamp(0, n) {
            out.push(v[i as usize].clone());
            i = i.checked_add(step)?;
        }
    } else {
        let mut i = front(start).clamp(0, (n - 1).max(0));
        while n > 0 && i > front(end).clamp(-1, n - 1) {
            out.push(v[i as usize].clone());
            i = i.checked_add(step)?;
        }
    }
    Some(out)
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let g = cx.grad()?;
    let back = match static_pads(cx) {
        Some(pads) => cx.pad_zeros(g, &pads),
        None => slice_grad(cx, g)?,
    };
    cx.set(0, back);
    Ok(())
}

/// Pads that undo the slice, if all bounds are known and no step is taken.
fn static_pads(cx: &GradCx<'_>) -> Option<Vec<i64>> {
    let dims = cx.fact(0).dims?;
    let ints = |slot: usize, name: &str| {
        cx.node()
            .ints(name)
            .map(<[i64]>::to_vec)
            .or_else(|| cx.const_ints(slot))
    };
    let (starts, ends) = (ints(1, "starts")?, ints(2, "ends")?);
    let axes = match ints(3, "axes") {
        Some(a) => a,
        None if cx.optional(3).is_none() => (0..starts.len() as i64).collect(),
        None => return None,
    };
    if cx.optional(4).is_some() && cx.const_ints(4)?.iter().any(|s| *s != 1) {
        return None;
    }
    let rank = dims.len();
    let mut pads = vec![0; 2 * rank];
    for ((axis, s), e) in normal_axes(&axes, rank)
        .ok()?
        .into_iter()
        .zip(starts)
        .zip(ends)
    {
        let (before, after) = match dims[axis].as_const() {
            Some(d) => {
                let front = |x: i64| (if x < 0 { x.saturating_add(d) } else { x }).clamp(0, d);
                let (s, e) = (front(s), front(e));
                (s, d - e.max(s))
            }
            // On an axis of unknown size only what counts from its two ends is known.
            None if s >= 0 && e >= i64::from(i32::MAX) => (s, 0),
            None if s >= 0 && e < 0 => (s, e.checked_neg()?),
            None => return None,
        };
        pads[axis] = before;
        pads[rank + axis] = after;
    }
    Some(pads)
}

fn slice_grad(cx: &GradCx<'_>, g: Val) -> Result<Val, GradError> {
    let shape = cx.input_shape(0)?;
    let bound = |slot: usize, name: &str| match cx.node().ints(name) {
        Some(v) => Some(cx.b.ints(v)),
        None => cx.optional(slot),
    };
    let mut inputs = vec![
        Some(g),
        Some(shape),
        bound(1, "starts"),
        bound(2, "ends"),
        bound(3, "axes"),
        cx.optional(4),
    ];
    while inputs.last().is_some_and(Option::is_none) {
        inputs.pop();
    }
    Ok(cx.b.node_n(OpId::new(DOMAIN, "SliceGrad"), &inputs, &[], 1)[0])
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};
    use crate::ir::{Builder, Val};

    fn slice(b: &Builder, x: Val, bounds: [Val; 2], axis: i64) -> Val {
        b.op("Slice", &[x, bounds[0], bounds[1], b.ints(&[axis])], &[])
    }

    #[test]
    fn constant_bounds() {
        for (input, axis, start, end, want) in [
            ("f32[batch, 8]", 1, 0, 4, "f32[batch, 4]"),
            ("f32[batch, 8]", -1, 4, i64::MAX, "f32[batch, 4]"),
            ("f32[batch, 8]", 1, -3, -1, "f32[batch, 2]"),
            ("f32[batch, 8]", 1, 5, 2, "f32[batch, 0]"),
            ("f32[batch, seq]", 1, 1, i64::MAX, "f32[batch, seq - 1]"),
            ("f32[batch, seq]", 1, 0, -1, "f32[batch, seq - 1]"),
            ("f32[batch, seq]", 1, 0, i64::MAX, "f32[batch, seq]"),
            ("f32[batch, seq]", 1, 0, 4, "f32[batch, min(4, seq)]"),
            ("f32[..]", 1, 0, 4, "f32[..]"),
            (
                "f32[batch, 8]",
                2,
                0,
                4,
                "error: Slice: axis 2 of a tensor of rank 2",
            ),
        ] {
            let got = infer(&[input], |b, v| vec![b.slice(v[0], axis, start, end)]);
            assert_eq!(got, [want], "{input}[{start}:{end}] along {axis}");
        }
    }

    #[test]
    fn computed_bounds_meet_their_axis_again() {
        // A causal mask cut out of a table, applied to scores: the sizes agree though the table may be too short.
        let got = infer(&["bool[64, 64]", "f32[batch, seq, seq]"], |b, v| {
            let len = b.op("Gather", &[b.shape(v[1]), b.ints(&[1])], &[]);
            let rows = slice(b, v[0], [b.ints(&[0]), len], 0);
            let mask = slice(b, rows, [b.ints(&[0]), len], 1);
            vec![mask, b.op("Where", &[mask, v[1], b.scalar(0.0)], &[])]
        });
        assert_eq!(
            got,
            ["bool[min(64, seq), min(64, seq)]", "f32[batch, seq, seq]"]
        );
    }

    #[test]
    fn slices_of_shapes() {
        let got = infer(&["f32[batch, seq, 8]"], |b, v| {
            let shape = b.shape(v[0]);
            vec![b.slice(shape, 0, 0, -1), b.slice(shape, 0, -1, i64::MAX)]
        });
        assert_eq!(got, ["i64[2] = (batch, seq)", "i64[1] = (8)"]);
    }

    #[test]
    fn backwards() {
        let reversed = |input: &str, start: i64, end: i64| {
            infer(&[input], |b, v| {
                let i = |x| b.ints(&[x]);
                vec![b.op("Slice", &[v[0], i(start), i(end), i(0), i(-1)], &[])]
            })
        };
        assert_eq!(reversed("f32[seq]", -1, i64::MIN), ["f32[seq]"]);
        assert_eq!(reversed("f32[8]", 6, 2), ["f32[4]"]);
    }

    #[test]
    fn gradient_pads_or_scatters() {
        let got = backward(18, &["f32[batch, seq, 8]"], |b, v| {
            vec![b.slice(v[0], -1, 4, i64::MAX)]
        });
        assert_eq!(got, "Pad: Pad(g0, [0, 0, 4, 0, 0, 0])\nda = Pad");
        let got = backward(18, &["f32[batch, seq, 8]", "i64[1]"], |b, v| {
            vec![slice(b, v[0], [b.ints(&[0]), v[1]], 1)]
        });
        assert_eq!(
            got,
            "Shape: Shape(a)\nSliceGrad: onnx_graft::SliceGrad(g0, Shape, [0], b, [1])\nda = SliceGrad"
        );
    }
}
