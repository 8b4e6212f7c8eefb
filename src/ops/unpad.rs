//! Rows of a batch without their padding, as `unpad_input` and `pad_input` of `FlashAttention` make them:
//!
//! * `onnx_graft::TokenIndices(mask[b, s]) -> tokens[1, t]`: where the mask is not zero, counted row by row. Rows must be padded on the
//!   right: if one has a token behind padding, all positions count.
//! * `onnx_graft::UnpadInput(x[b, s, …], tokens[1, t], shape[2]) -> y[1, t, …]`: the positions that `tokens` counts row by row.
//! * `onnx_graft::PadInput(y[1, t, …], tokens[1, t], shape[2]) -> x[b, s, …]`: back at their places, with zeros between them.
//!
//! `shape` is `(b, s)`. Each of the last two is the gradient of the other.

use super::kit::{DOMAIN, Differentiated, Inferred};
use super::{GradCx, InferCx, OpDef};
use crate::ir::{DType, Sym};

pub(super) const OPS: &[OpDef] = &[
    OpDef::new("TokenIndices", 1..=1, infer_tokens)
        .in_domain(DOMAIN)
        .zero(),
    OpDef::new("UnpadInput", 3..=3, |cx| infer(cx, false))
        .in_domain(DOMAIN)
        .gradient(|cx| grad(cx, "PadInput")),
    OpDef::new("PadInput", 3..=3, |cx| infer(cx, true))
        .in_domain(DOMAIN)
        .gradient(|cx| grad(cx, "UnpadInput")),
];

fn infer_tokens(cx: &mut InferCx<'_>) -> Inferred {
    let found = cx.unknown();
    cx.set(0, Some(DType::Int64), Some(vec![Sym::from(1), found]));
    Ok(())
}

fn infer(cx: &mut InferCx<'_>, padded: bool) -> Inferred {
    let leading = if padded {
        cx.ints(2)
    } else {
        cx.dims(1).map(<[Sym]>::to_vec)
    };
    let leading = leading.filter(|l| l.len() == 2);
    let leading = leading.unwrap_or_else(|| cx.unknown_dims(2));
    let dtype = cx.dtype(0);
    let dims = cx
        .dims(0)
        .and_then(|d| Some([&leading, d.get(2..)?].concat()));
    cx.set(0, dtype, dims);
    Ok(())
}

fn grad(cx: &mut GradCx<'_>, back: &str) -> Differentiated {
    if cx.wants(0) {
        let inputs = [cx.grad()?, cx.input(1)?, cx.input(2)?];
        let dx = cx.b.op_in(DOMAIN, back, &inputs, &[]);
        cx.set(0, dx);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{backward, infer};
    use super::DOMAIN;

    #[test]
    fn rows_lose_their_padding_and_get_it_back() {
        let got = infer(
            &["f32[batch, seq, 8]", "i64[1, tokens]", "i64[2]"],
            |b, v| {
                let y = b.op_in(DOMAIN, "UnpadInput", v, &[]);
                vec![y, b.op_in(DOMAIN, "PadInput", &[y, v[1], v[2]], &[])]
            },
        );
        assert_eq!(got, ["f32[1, tokens, 8]", "f32[?, ?, 8]"]);
    }

    #[test]
    fn each_is_the_gradient_of_the_other() {
        let types = ["f32[batch, seq, 8]", "i64[1, tokens]", "i64[2]"];
        let got = backward(17, &types, |b, v| {
            vec![b.op_in(DOMAIN, "UnpadInput", v, &[])]
        });
        assert_eq!(
            got,
            "PadInput: onnx_graft::PadInput(g0, b, c)\nda = PadInput"
        );
    }
}
