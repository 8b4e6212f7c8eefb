//! `OneHot`, `NonZero` and `TopK`: operators around indices. The gradient of `TopK` goes to the places that were taken.

use super::kit::infer::normal_axis;
use super::kit::{Differentiated, Inferred, wrong};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{AttrValue, DType, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("OneHot", 3..=3, infer_one_hot),
    OpDef::new("NonZero", 1..=1, infer_non_zero).zero(),
    OpDef::new("TopK", 1..=2, infer_top_k)
        .outputs(2..=2)
        .gradient(grad_top_k),
];

fn infer_one_hot(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(2);
    let depth = match cx.ints(1).as_deref() {
        Some([d]) if d.is_size() => Some(d.clone()),
        _ => None,
    };
    let dims = match cx.dims(0) {
        Some(d) => {
            let axis = cx.axis("axis", -1, d.len() + 1)?;
            let depth = depth.unwrap_or_else(|| cx.unknown());
            Some([&d[..axis], &[depth], &d[axis..]].concat())
        }
        None => None,
    };
    cx.set(0, dtype, dims);
    Ok(())
}

fn infer_non_zero(cx: &mut InferCx<'_>) -> Inferred {
    let rank = match cx.rank(0) {
        // A scalar counts as a vector of one element.
        Some(r) => Sym::from(r.max(1) as i64),
        None => cx.unknown(),
    };
    let found = cx.unknown();
    cx.set(0, Some(DType::Int64), Some(vec![rank, found]));
    Ok(())
}

fn infer_top_k(cx: &mut InferCx<'_>) -> Inferred {
    let dtype = cx.dtype(0);
    let k = match (cx.node.attr("k").and_then(AttrValue::as_int), cx.ints(1)) {
        (Some(k), _) => Some(Sym::from(k)),
        (None, Some(v)) => match v.as_slice() {
            [k] if k.is_size() => Some(k.clone()),
            [k] if k.as_const().is_some() => return wrong(format!("k is {k}")),
            _ => None,
        },
        (None, None) => None,
    };
    let dims = match cx.dims_vec(0) {
        Some(mut d) => {
            let axis = normal_axis(cx.node.int("axis", -1), d.len())?;
            if let (Some(n), Some(k)) = (d[axis].as_const(), k.as_ref().and_then(Sym::as_const))
                && k > n
            {
                return wrong(format!("k is {k} for an axis of size {n}"));
            }
            d[axis] = k.unwrap_or_else(|| cx.unknown());
            Some(d)
        }
        None => None,
    };
    cx.set(0, dtype, dims.clone());
    cx.set(1, Some(DType::Int64), dims);
    Ok(())
}

fn grad_top_k(cx: &mut GradCx<'_>) -> Differentiated {
    // Only the values carry a gradient; no index is taken twice, so that scattering need not add.
    if !cx.wants(0) || cx.grads.first().copied().flatten().is_none() {
        return Ok(());
    }
    let zeros = cx.zeros_like(cx.input_id(0)?);
    let axis = cx.node().int("axis", -1);
    let inputs = [zeros, cx.output(1)?, cx.grad()?];
    let back =
        cx.b.op("ScatterElements", &inputs, &[("axis", axis.into())]);
    cx.set(0, back);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::infer;
    use crate::ir::OpId;

    #[test]
    fn shapes() {
        let got = infer(&["i64[batch, seq]", "f32[2]", "f32[batch, 64]"], |b, v| {
            let hot = b.op("OneHot", &[v[0], b.int(5), v[1]], &[]);
            let top = b.node_n(
                OpId::onnx("TopK"),
                &[Some(v[2]), Some(b.ints(&[3]))],
                &[],
                2,
            );
            vec![hot, b.unary("NonZero", v[0]), top[0], top[1]]
        });
        assert_eq!(
            got,
            [
                "f32[batch, seq, 5]",
                "i64[2, ?]",
                "f32[batch, 3]",
                "i64[batch, 3]"
            ]
        );
    }
}
