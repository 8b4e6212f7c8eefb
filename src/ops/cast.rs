//! `Cast`, `CastLike`, `Identity`, `Dropout`: the values stay, the type may change.

use super::kit::infer::same_as_input;
use super::kit::{DOMAIN, Differentiated, Inferred, no_gradient, wrong};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{AttrValue, DType, Fact};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("Cast", 1..=1, infer_cast).gradient(grad_cast),
    OpDef::new("CastLike", 2..=2, infer_cast_like).gradient(grad_cast),
    OpDef::new("Identity", 1..=1, infer_identity).gradient(grad_identity),
    OpDef::new("Dropout", 1..=3, infer_dropout)
        .outputs(1..=2)
        .gradient(grad_dropout),
    // The same for tokens: each draws what it draws at its place in the batch, which the last input says.
    OpDef::new("Dropout", 4..=4, infer_dropout)
        .in_domain(DOMAIN)
        .outputs(1..=2)
        .gradient(grad_dropout),
];

fn infer_cast(cx: &mut InferCx<'_>) -> Inferred {
    let Some(code) = cx.node.attr("to").and_then(AttrValue::as_int) else {
        return wrong("attribute `to` is missing");
    };
    let dtype = i32::try_from(code).ok().and_then(DType::from_code);
    let Some(to) = dtype.filter(|d| *d != DType::Undefined) else {
        return wrong(format!(
            "attribute `to` is {code}, which is no element type"
        ));
    };
    converted(cx, Some(to));
    Ok(())
}

fn infer_cast_like(cx: &mut InferCx<'_>) -> Inferred {
    let to = cx.dtype(1);
    converted(cx, to);
    Ok(())
}

fn converted(cx: &mut InferCx<'_>, to: Option<DType>) {
    let dims = cx.dims_vec(0);
    let ints = match to {
        // A size fits every integer type that exporters cast shapes to.
        Some(DType::Int64 | DType::Int32) => cx.ints(0),
        Some(DType::Bool) => cx
            .const_ints(0)
            .map(|v| v.iter().map(|x| i64::from(*x != 0).into()).collect()),
        _ => None,
    };
    cx.set(0, to, dims);
    cx.set_ints(ints);
}

/// Back to the input's type. Where either side is no floating-point type nothing passes.
fn grad_cast(cx: &mut GradCx<'_>) -> Differentiated {
    if !cx.wants(0) {
        return Ok(());
    }
    let g = cx.grad()?;
    match (cx.fact(0).dtype, cx.out_fact(0).dtype) {
        (Some(from), Some(to)) if from == to => cx.set(0, g),
        (Some(from), _) if from.is_float() => cx.set(0, cx.b.cast(g, from)),
        (Some(_), _) => {}
        // The type is not known here, but it is there when the graph runs.
        (None, _) => {
            let x = cx.input(0)?;
            cx.set(0, cx.b.op("CastLike", &[g, x], &[]));
        }
    }
    Ok(())
}

fn infer_identity(cx: &mut InferCx<'_>) -> Inferred {
    if let (Some(f), Some(o)) = (cx.inputs[0], cx.outputs.first_mut()) {
        *o = Fact::clone(f);
    }
    Ok(())
}

fn grad_identity(cx: &mut GradCx<'_>) -> Differentiated {
    if cx.wants(0) {
        cx.set(0, cx.grad()?);
    }
    Ok(())
}

fn infer_dropout(cx: &mut InferCx<'_>) -> Inferred {
    same_as_input(cx)?;
    let dims = cx.dims_vec(0);
    cx.set(1, Some(DType::Bool), dims);
    Ok(())
}

/// In inference mode, as exporters write it, `Dropout` is the identity. In training mode the mask decides what passes, scaled as in the
/// forward pass: `Where(mask, g / (1 - ratio), 0)`.
fn grad_dropout(cx: &mut GradCx<'_>) -> Differentiated {
    if cx.optional(2).is_none() || cx.const_ints(2).is_some_and(|v| v == [0]) {
        return grad_identity(cx);
    }
    let (Ok(mask), Some(ratio)) = (cx.output(1), cx.optional(1)) else {
        return no_gradient("Dropout is in training mode, without its ratio or its mask");
    };
    let (b, g) = (cx.b, cx.grad()?);
    let dtype = cx.float(0);
    let keep = b.sub(b.scalar_of(1.0, dtype), ratio);
    let dx = b.op(
        "Where",
        &[mask, b.div(g, keep), b.scalar_of(0.0, dtype)],
        &[],
    );
    cx.set(0, dx);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};
    use crate::ir::DType;

    #[test]
    fn sizes_survive_a_cast() {
        let got = infer(&["f32[seq, 4]"], |b, v| {
            let shape = b.shape(v[0]);
            vec![
                b.cast(b.cast(shape, DType::Int32), DType::Int64),
                b.cast(shape, DType::Float),
            ]
        });
        assert_eq!(got, ["i64[2] = (seq, 4)", "f32[2]"]);
        let got = infer(&["f32[n]"], |b, v| {
            vec![b.op("Cast", &[v[0]], &[("to", 99i64.into())])]
        });
        assert_eq!(
            got,
            ["error: Cast: attribute `to` is 99, which is no element type"]
        );
    }

    #[test]
    fn gradients_cast_back() {
        let got = backward(18, &["f16[n]"], |b, v| vec![b.cast(v[0], DType::Float)]);
        assert_eq!(got, "Cast: Cast(g0)\nda = Cast");
        let got = backward(18, &["f32[n]"], |b, v| vec![b.unary("Dropout", v[0])]);
        assert_eq!(got, "da = g0");
    }
}
