//! Products, norms, softmax, losses, convolutions, attention.

use super::super::harness::{Case, op};
use onnx_graft::ir::{DType, TensorData};

pub(super) fn cases() -> Vec<Case> {
    [
        products(),
        norms(),
        softmax(),
        convolutions(),
        rotary(),
        attention(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn products() -> Vec<Case> {
    vec![
        op("MatMul").x(&[2, 3]).x(&[3, 4]),
        op("MatMul").x(&[2, 2, 3]).x(&[3, 4]),
        op("MatMul").x(&[2, 2, 2, 3]).frozen(&[3, 2]),
        op("MatMul").x(&[2, 1, 2, 3]).x(&[3, 3, 2]),
        op("MatMul").x(&[2, 3]).x(&[2, 3, 2]),
        op("MatMul").x(&[3]).x(&[3, 2]),
        op("MatMul").x(&[3]).x(&[2, 3, 2]),
        op("MatMul").x(&[2, 3]).x(&[3]),
        op("MatMul").x(&[2, 2, 3]).x(&[3]),
        op("MatMul").x(&[3]).x(&[3]),
        op("Gemm").x(&[2, 3]).x(&[3, 4]).x(&[4]),
        op("Gemm")
            .x(&[3, 2])
            .x(&[4, 3])
            .x(&[2, 1])
            .set("transA", 1i64)
            .set("transB", 1i64),
        op("Gemm")
            .x(&[3, 2])
            .x(&[3, 4])
            .set("transA", 1i64)
            .set("alpha", 0.5f32),
        op("Gemm")
            .x(&[2, 3])
            .x(&[4, 3])
            .x(&[])
            .set("transB", 1i64)
            .set("alpha", 0.5f32)
            .set("beta", 2.0f32),
        op("com.microsoft::FusedMatMul")
            .x(&[2, 3, 2])
            .x(&[2, 4, 3])
            .set("transA", 1i64)
            .set("transB", 1i64)
            .set("alpha", 0.5f32),
        op("com.microsoft::FusedMatMul")
            .x(&[2, 3, 2])
            .x(&[3, 2, 4])
            .set("transBatchA", 1i64),
    ]
}

fn norms() -> Vec<Case> {
    let skip = |name| op(name).x(&[2, 2, 5]).x(&[2, 2, 5]).x(&[5]);
    vec![
        op("LayerNormalization").x(&[2, 2, 5]).x(&[5]).x(&[5]),
        op("LayerNormalization")
            .x(&[2, 2, 3])
            .x(&[2, 3])
            .set("axis", 1i64)
            .set("epsilon", 0.1f32),
        op("RMSNormalization").x(&[2, 2, 5]).x(&[5]).at(23),
        op("RMSNormalization")
            .x(&[2, 2, 3])
            .x(&[2, 3])
            .at(23)
            .set("axis", -2i64),
        op("SimplifiedLayerNormalization").x(&[2, 2, 5]).x(&[5]),
        op("com.microsoft::SimplifiedLayerNormalization")
            .x(&[2, 5])
            .x(&[5]),
        skip("com.microsoft::SkipLayerNormalization")
            .x(&[5])
            .x(&[5]),
        Case {
            weighed: vec![0, 3],
            ..skip("com.microsoft::SkipLayerNormalization").at(16).outs(4)
        },
        Case {
            weighed: vec![0, 3],
            ..skip("com.microsoft::SkipSimplifiedLayerNormalization").outs(4)
        },
        skip("com.microsoft::SkipSimplifiedLayerNormalization")
            .x(&[5])
            .at(23),
        op("com.microsoft::EmbedLayerNormalization")
            .is(int32(&[2, 3], &[0, 4, 1, 2, 2, 3]))
            .is(int32(&[2, 3], &[0, 0, 1, 1, 1, 0]))
            .x(&[5, 4])
            .x(&[3, 4])
            .x(&[2, 4])
            .x(&[4])
            .x(&[4])
            .is(int32(&[2, 3], &[1, 1, 0, 1, 1, 1]))
            .first_of(2),
        op("InstanceNormalization")
            .x(&[2, 2, 3, 2])
            .x(&[2])
            .x(&[2])
            .set("epsilon", 0.1f32),
        op("InstanceNormalization").x(&[2, 3, 4]).x(&[3]).x(&[3]),
        op("BatchNormalization")
            .x(&[2, 3, 2])
            .x(&[3])
            .x(&[3])
            .frozen(&[3])
            .is(TensorData::from_f32([3], &[0.5, 1.0, 2.0])),
    ]
}

fn softmax() -> Vec<Case> {
    let loss = || op("SoftmaxCrossEntropyLoss").x(&[4, 5]);
    let labels = [3, -100, 0, 4];
    vec![
        op("Softmax").x(&[2, 3, 2]),
        op("Softmax").x(&[2, 3, 2]).set("axis", 1i64),
        op("LogSoftmax").x(&[2, 4]),
        op("LogSoftmax").x(&[2, 3, 2]).set("axis", -2i64),
        loss().ints(&[3, 1, 0, 4]),
        loss().ints(&labels).set("ignore_index", -100i64),
        loss()
            .ints(&labels)
            .set("ignore_index", -100i64)
            .set("reduction", "sum"),
        loss()
            .ints(&labels)
            .set("ignore_index", -100i64)
            .set("reduction", "none"),
        loss()
            .ints(&labels)
            .is(TensorData::from_f32([5], &[0.5, 1.0, 2.0, 0.1, 0.7]))
            .set("ignore_index", -100i64),
        op("SoftmaxCrossEntropyLoss")
            .x(&[2, 3, 2])
            .grid(&[2, 2], &[0, 2, 1, 1])
            .outs(2),
    ]
}

fn convolutions() -> Vec<Case> {
    vec![
        op("Conv").x(&[2, 3, 5]).x(&[4, 3, 2]).x(&[4]).fixed(),
        op("Conv").x(&[1, 2, 5, 4]).x(&[3, 2, 2, 2]).x(&[3]).fixed(),
        // The stride leaves a column of the input untouched.
        op("Conv")
            .x(&[2, 2, 6])
            .x(&[3, 2, 3])
            .set("strides", vec![2])
            .set("pads", vec![1, 0])
            .fixed(),
        op("Conv")
            .x(&[1, 2, 7, 6])
            .x(&[2, 2, 2, 2])
            .set("strides", vec![2, 1])
            .set("dilations", vec![1, 2])
            .set("pads", vec![1, 1, 0, 1])
            .fixed(),
        op("Conv")
            .x(&[2, 4, 5])
            .x(&[6, 2, 2])
            .set("group", 2i64)
            .fixed(),
        op("Conv")
            .x(&[2, 3, 5])
            .x(&[3, 1, 3])
            .set("group", 3i64)
            .set("pads", vec![1, 1])
            .fixed(),
        op("Conv")
            .x(&[1, 2, 5])
            .x(&[2, 2, 3])
            .set("auto_pad", "SAME_UPPER")
            .fixed(),
        // The weight's sizes are known, the input's are not.
        op("Conv")
            .x(&[1, 2, 6])
            .frozen(&[2, 2, 3])
            .set("strides", vec![2])
            .set("pads", vec![1, 1]),
        op("GlobalAveragePool").x(&[2, 2, 3, 2]),
        op("AveragePool").x(&[1, 2, 5]).set("kernel_shape", vec![2]),
        op("AveragePool")
            .x(&[2, 1, 5, 4])
            .set("kernel_shape", vec![3, 2])
            .set("strides", vec![2, 1])
            .set("pads", vec![1, 0, 1, 1]),
        op("AveragePool")
            .x(&[1, 2, 6])
            .set("kernel_shape", vec![3])
            .set("strides", vec![2])
            .set("pads", vec![1, 0])
            .set("ceil_mode", 1i64)
            .set("count_include_pad", 1i64),
        op("AveragePool")
            .x(&[1, 2, 7])
            .at(19)
            .set("kernel_shape", vec![2])
            .set("dilations", vec![2])
            .set("strides", vec![3])
            .set("ceil_mode", 1i64),
        op("AveragePool")
            .x(&[1, 1, 5, 3])
            .set("kernel_shape", vec![2, 2])
            .set("strides", vec![2, 2])
            .set("auto_pad", "SAME_LOWER")
            .fixed(),
        op("ConvTranspose")
            .x(&[1, 2, 3])
            .x(&[2, 3, 2])
            .x(&[3])
            .fixed(),
        op("ConvTranspose")
            .x(&[2, 4, 3, 2])
            .x(&[4, 2, 2, 3])
            .x(&[4])
            .set("group", 2i64)
            .set("strides", vec![2, 1])
            .set("dilations", vec![1, 2])
            .set("pads", vec![1, 0, 0, 1])
            .set("output_padding", vec![1, 0])
            .fixed(),
        op("ConvTranspose")
            .x(&[1, 2, 3])
            .x(&[2, 1, 3])
            .set("strides", vec![2])
            .set("auto_pad", "SAME_UPPER")
            .fixed(),
        op("ConvTranspose")
            .x(&[1, 1, 3])
            .x(&[1, 2, 3])
            .set("strides", vec![2])
            .set("output_shape", vec![8])
            .fixed(),
        // The weight's sizes are known, the input's are not.
        op("ConvTranspose")
            .x(&[1, 2, 4])
            .frozen(&[2, 2, 3])
            .set("strides", vec![2])
            .set("pads", vec![1, 1]),
    ]
}

fn int32(dims: &[u64], data: &[i32]) -> TensorData {
    let bytes: Vec<u8> = data.iter().flat_map(|x| x.to_le_bytes()).collect();
    TensorData::raw(DType::Int32, dims, bytes.into())
}

fn rotary() -> Vec<Case> {
    let places = |c: Case| c.grid(&[2, 3], &[0, 1, 2, 3, 4, 0]);
    vec![
        places(
            op("RotaryEmbedding")
                .at(23)
                .x(&[2, 2, 3, 4])
                .frozen(&[5, 2])
                .frozen(&[5, 2]),
        )
        .fixed(),
        op("RotaryEmbedding")
            .at(23)
            .x(&[2, 3, 8])
            .frozen(&[2, 3, 2])
            .frozen(&[2, 3, 2])
            .set("num_heads", 2i64)
            .fixed(),
        places(
            op("RotaryEmbedding")
                .at(23)
                .x(&[2, 2, 3, 6])
                .frozen(&[5, 2])
                .frozen(&[5, 2]),
        )
        .set("rotary_embedding_dim", 4i64)
        .set("interleaved", 1i64)
        .fixed(),
        places(op("com.microsoft::RotaryEmbedding").x(&[2, 3, 8]))
            .frozen(&[5, 2])
            .frozen(&[5, 2])
            .fixed(),
        op("com.microsoft::RotaryEmbedding")
            .x(&[2, 2, 3, 4])
            .ints(&[1])
            .frozen(&[5, 2])
            .frozen(&[5, 2])
            .fixed(),
    ]
}

fn attention() -> Vec<Case> {
    let heads = |q: i64, k: i64, c: Case| c.set("q_num_heads", q).set("kv_num_heads", k);
    let qkv = || {
        op("Attention")
            .at(23)
            .x(&[1, 2, 3, 4])
            .x(&[1, 2, 3, 4])
            .x(&[1, 2, 3, 4])
            .fixed()
    };
    vec![
        qkv(),
        qkv().set("is_causal", 1i64).set("scale", 0.7f32),
        qkv().set("softcap", 1.5f32),
        qkv().x(&[1, 1, 3, 3]),
        // Its second row is masked as a whole.
        qkv().bools(&[3, 3], &[1, 0, 1, 0, 0, 0, 1, 1, 1]),
        heads(
            4,
            2,
            op("Attention")
                .at(23)
                .x(&[2, 3, 8])
                .x(&[2, 2, 4])
                .x(&[2, 2, 6]),
        )
        .fixed(),
        qkv()
            .none()
            .x(&[1, 2, 2, 4])
            .x(&[1, 2, 2, 4])
            .set("is_causal", 1i64)
            .outs(3),
        op("com.microsoft::Attention")
            .x(&[2, 3, 4])
            .x(&[4, 12])
            .x(&[12])
            .is(int32(&[2], &[3, 2]))
            .set("num_heads", 2i64)
            .fixed(),
        op("com.microsoft::Attention")
            .x(&[2, 3, 4])
            .x(&[4, 12])
            .x(&[12])
            .is(int32(&[2, 3], &[1, 1, 1, 1, 1, 0]))
            .set("num_heads", 2i64)
            .set("unidirectional", 1i64)
            .fixed(),
        op("com.microsoft::MultiHeadAttention")
            .x(&[2, 3, 4])
            .x(&[2, 2, 4])
            .x(&[2, 2, 4])
            .x(&[12])
            .set("num_heads", 2i64)
            .fixed(),
        op("com.microsoft::MultiHeadAttention")
            .x(&[2, 3, 2, 3, 4])
            .set("num_heads", 2i64)
            .set("unidirectional", 1i64)
            .fixed(),
        op("com.microsoft::GroupQueryAttention")
            .x(&[2, 3, 32])
            .x(&[2, 3, 16])
            .x(&[2, 3, 16])
            .none()
            .none()
            .is(int32(&[2], &[2, 1]))
            .is(int32(&[], &[3]))
            .frozen(&[5, 8])
            .frozen(&[5, 8])
            .set("num_heads", 2i64)
            .set("kv_num_heads", 1i64)
            .set("do_rotary", 1i64)
            .fixed(),
        op("com.microsoft::GroupQueryAttention")
            .x(&[2, 1, 32])
            .none()
            .none()
            .x(&[2, 1, 3, 8])
            .x(&[2, 1, 3, 8])
            .is(int32(&[2], &[3, 2]))
            .is(int32(&[], &[4]))
            .set("num_heads", 2i64)
            .set("kv_num_heads", 1i64)
            .set("local_window_size", 2i64)
            .first_of(3)
            .fixed(),
    ]
}
