//! `ScatterElements` and `ScatterND`. With `reduction = "none"` the data's gradient is zero where it was overwritten; with `"add"` both
//! gradients pass; the other reductions have no rule.

use super::kit::infer::MAX_INTS;
use super::kit::{Differentiated, Inferred, no_gradient, wrong};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{DType, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("ScatterElements", 3..=3, infer_elements).gradient(gradient),
    OpDef::new("ScatterND", 3..=3, infer_nd).gradient(gradient),
];

fn infer_elements(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(1, &[DType::Int32, DType::Int64])?;
    let ranks: Vec<usize> = (0..3).filter_map(|s| cx.rank(s)).collect();
    if ranks.windows(2).any(|w| w[0] != w[1]) {
        return wrong(format!("data, indices and updates of ranks {ranks:?}"));
    }
    if let Some(r) = cx.rank(0) {
        cx.axis("axis", 0, r)?;
    }
    scattered(cx, None)
}

fn infer_nd(cx: &mut InferCx<'_>) -> Inferred {
    cx.expect_dtype(1, &[DType::Int64])?;
    if let (Some(d), Some(i)) = (cx.dims(0), cx.dims(1)) {
        let Some((last, index)) = i.split_last() else {
            return wrong("indices are a scalar");
        };
        if let Some(k) = last.as_const() {
            let Some(rest) = usize::try_from(k).ok().and_then(|k| d.get(k..)) else {
                return wrong(format!(
                    "index tuples of {k} for a tensor of rank {}",
                    d.len()
                ));
            };
            let want = index.len() + rest.len();
            if let Some(r) = cx.rank(2)
                && r != want
            {
                return wrong(format!("updates of rank {r}, expected {want}"));
            }
        }
    }
    let ints = scattered_ints(cx);
    scattered(cx, ints)
}

fn scattered(cx: &mut InferCx<'_>, ints: Option<Vec<Sym>>) -> Inferred {
    let dtype = cx.same_dtype([0, 2])?;
    let dims = cx.dims_vec(0);
    cx.set(0, dtype, dims);
    cx.set_ints(ints);
    Ok(())
}

/// A vector with some elements replaced: `ScatterND` of known positions.
fn scattered_ints(cx: &InferCx<'_>) -> Option<Vec<Sym>> {
    let mut v = cx.ints(0)?;
    cx.rank(0).filter(|r| *r == 1)?;
    if cx.node.str("reduction").is_some_and(|r| r != "none") {
        return None;
    }
    let index = cx.tensors.get(1)?.as_ref()?;
    let few = index.count().is_some_and(|n| n <= MAX_INTS as u64);
    let index = if few { index.to_i64()? } else { return None };
    let updates = cx.ints(2)?;
    (updates.len() == index.len()).then_some(())?;
    for (i, u) in index.into_iter().zip(updates) {
        let at = if i < 0 { i + v.len() as i64 } else { i };
        *v.get_mut(usize::try_from(at).ok()?)? = u;
    }
    Some(v)
}

fn gradient(cx: &mut GradCx<'_>) -> Differentiated {
    let (b, g, index) = (cx.b, cx.grad()?, cx.input(1)?);
    let adds = match cx.node().str("reduction") {
        None | Some("none") => false,
        Some("add") => true,
        Some(other) => return no_gradient(format!("there is no rule for reduction `{other}`")),
    };
    let elements = &*cx.node().op.op_type == "ScatterElements";
    let axis = [("axis", cx.node().int("axis", 0).into())];
    if cx.wants(0) {
        let kept = if adds {
            g
        } else {
            let zeros = cx.zeros_like(cx.input_id(2)?);
            if elements {
                b.op("ScatterElements", &[g, index, zeros], &axis)
            } else {
                b.op("ScatterND", &[g, index, zeros], &[])
            }
        };
        cx.set(0, kept);
    }
    if cx.wants(2) {
        let taken = if elements {
            b.op("GatherElements", &[g, index], &axis)
        } else {
            b.op("GatherND", &[g, index], &[])
        };
        cx.set(2, taken);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};

    #[test]
    fn keeps_the_shape_of_the_data() {
        let got = infer(
            &["f32[batch, 8]", "i64[n, 1]", "f32[n, 8]", "f32[n]"],
            |b, v| vec![b.op("ScatterND", &v[..3], &[])],
        );
        assert_eq!(got, ["f32[batch, 8]"]);
        let got = infer(&["f32[batch, 8]", "i64[n, 1]", "f32[n]"], |b, v| {
            vec![b.op("ScatterND", v, &[])]
        });
        assert_eq!(got, ["error: ScatterND: updates of rank 1, expected 2"]);
    }

    #[test]
    fn overwritten_elements_have_no_gradient() {
        let got = backward(18, &["f32[4, 8]", "i64[2, 1]", "f32[2, 8]"], |b, v| {
            vec![b.op("ScatterND", v, &[])]
        });
        assert_eq!(
            got,
            "ConstantOfShape: ConstantOfShape([2, 8])\nScatterND: ScatterND(g0, b, ConstantOfShape)\n\
             GatherND: GatherND(g0, b)\nda = ScatterND\ndc = GatherND"
        );
    }
}
