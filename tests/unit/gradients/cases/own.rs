//! Operators of our own domain.

use super::super::harness::{Case, op};

pub(super) fn cases() -> Vec<Case> {
    let attention = || {
        op("onnx_graft::Attention")
            .x(&[1, 4, 3, 2])
            .x(&[1, 2, 3, 2])
            .x(&[1, 2, 3, 2])
    };
    vec![
        op("onnx_graft::SumTo").x(&[2, 3, 4]).ints(&[3, 1]),
        op("onnx_graft::RMSNormalization")
            .x(&[2, 2, 5])
            .x(&[5])
            .set("epsilon", 1e-6f32)
            .first_of(2),
        op("onnx_graft::RotaryEmbedding")
            .x(&[1, 2, 3, 4])
            .frozen(&[1, 1, 3, 4])
            .frozen(&[1, 1, 3, 4]),
        attention().set("scale", 0.6f32).first_of(2),
        attention()
            .frozen(&[1, 1, 3, 3])
            .set("scale", 0.6f32)
            .first_of(2),
        op("onnx_graft::LayerNormalization")
            .x(&[2, 2, 5])
            .frozen(&[5])
            .frozen(&[5])
            .set("epsilon", 1e-5f32),
        op("onnx_graft::LayerNormalization")
            .x(&[2, 2, 5])
            .x(&[5])
            .x(&[5]),
        op("onnx_graft::Gelu").x(&[2, 3]),
        op("onnx_graft::Gelu").x(&[2, 3]).set("approximate", "tanh"),
        op("onnx_graft::Dropout")
            .x(&[1, 2, 3])
            .grid(&[], &[0])
            .grid(&[], &[0])
            .grid(&[1, 2], &[0, 3]),
        op("onnx_graft::UnpadInput")
            .x(&[2, 3, 2])
            .grid(&[1, 4], &[0, 1, 3, 4])
            .ints(&[2, 3]),
        op("onnx_graft::PadInput")
            .x(&[1, 4, 2])
            .grid(&[1, 4], &[0, 1, 3, 4])
            .ints(&[2, 3]),
        op("onnx_graft::Silu").x(&[2, 3]),
        op("onnx_graft::SwiGLU").x(&[2, 3]).x(&[2, 3]),
        op("onnx_graft::LinearCrossEntropy")
            .x(&[2, 3, 4])
            .frozen(&[4, 5])
            .grid(&[2, 3], &[0, 3, -100, 1, 4, 2])
            .set("ignore_index", -100i64)
            .first_of(2),
    ]
}
