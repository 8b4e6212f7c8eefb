//! `ai.onnx.preview::FlexAttention` (1): an attention whose scores and probabilities go through subgraphs of its own. There is no gradient.

use super::kit::Inferred;
use super::{InferCx, OpDef};

pub(super) const OPS: &[OpDef] =
    &[OpDef::new("FlexAttention", 3..=3, infer).in_domain("ai.onnx.preview")];

fn infer(cx: &mut InferCx<'_>) -> Inferred {
    let width = cx.dims(2).and_then(|d| d.last().cloned());
    let dims = cx.dims_vec(0).zip(width).map(|(mut d, width)| {
        if let Some(last) = d.last_mut() {
            *last = width;
        }
        d
    });
    cx.set(0, cx.dtype(0), dims);
    Ok(())
}
