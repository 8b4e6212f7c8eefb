//! Operators that are defined by simpler ones.

use super::super::harness::{Case, op};
use onnx_graft::ir::{DType, TensorData};

pub(super) fn cases() -> Vec<Case> {
    [
        norms(),
        resized(),
        moved(),
        functions(),
        fused(),
        experts(),
        steps(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

fn norms() -> Vec<Case> {
    let groups = |name| op(name).x(&[2, 4, 3]);
    vec![
        op("LpNormalization").x(&[2, 3]),
        op("LpNormalization")
            .x(&[2, 3])
            .set("p", 1i64)
            .set("axis", 0i64),
        op("MeanVarianceNormalization").x(&[2, 2, 2, 2]),
        groups("GroupNormalization")
            .x(&[2])
            .x(&[2])
            .set("num_groups", 2i64)
            .set("epsilon", 0.1f32),
        groups("GroupNormalization")
            .x(&[4])
            .x(&[4])
            .at(21)
            .set("num_groups", 2i64)
            .set("epsilon", 0.1f32),
        op("LRN")
            .x(&[1, 4, 2])
            .set("size", 3i64)
            .set("alpha", 0.5f32),
        op("com.microsoft::GroupNorm")
            .x(&[1, 2, 2, 4])
            .x(&[4])
            .x(&[4])
            .set("groups", 2i64)
            .set("activation", 1i64)
            .set("epsilon", 0.1f32),
        Case {
            weighed: vec![0, 1],
            ..op("com.microsoft::SkipGroupNorm")
                .x(&[1, 2, 2, 4])
                .x(&[4])
                .x(&[4])
                .x(&[1, 4])
                .x(&[4])
                .set("groups", 2i64)
                .set("epsilon", 0.1f32)
                .outs(2)
        },
    ]
}

fn resized() -> Vec<Case> {
    let scales = |s: &[f32]| TensorData::from_f32([s.len() as u64], s);
    let by = |s: &[f32]| op("Resize").x(&[1, 2, 3, 4]).none().is(scales(s));
    vec![
        by(&[1.0, 1.0, 2.0, 1.5]),
        by(&[1.0, 1.0, 2.0, 0.6]).set("mode", "linear"),
        by(&[1.0, 1.0, 0.7, 1.4])
            .set("mode", "cubic")
            .set("exclude_outside", 1i64),
        by(&[1.0, 1.0, 0.5, 0.5])
            .set("mode", "linear")
            .set("antialias", 1i64),
        op("Resize")
            .x(&[2, 3, 4])
            .none()
            .none()
            .ints(&[5, 3])
            .set("axes", vec![1, 2])
            .set("mode", "linear")
            .set("coordinate_transformation_mode", "align_corners"),
        op("Resize")
            .x(&[1, 1, 3, 4])
            .is(scales(&[0.0, 0.0, 0.1, 0.2, 1.0, 1.0, 1.2, 0.7]))
            .none()
            .ints(&[1, 1, 3, 3])
            .set("mode", "linear")
            .set("coordinate_transformation_mode", "tf_crop_and_resize")
            .set("extrapolation_value", 2.0f32),
        op("Upsample")
            .x(&[1, 1, 2, 2])
            .is(scales(&[1.0, 1.0, 2.0, 3.0]))
            .at(13),
    ]
}

fn moved() -> Vec<Case> {
    vec![
        op("DepthToSpace").x(&[1, 8, 2, 1]).set("blocksize", 2i64),
        op("DepthToSpace")
            .x(&[1, 8, 2, 1])
            .set("blocksize", 2i64)
            .set("mode", "CRD"),
        op("SpaceToDepth").x(&[1, 2, 4, 2]).set("blocksize", 2i64),
        op("CenterCropPad").x(&[4, 3]).ints(&[3, 6]),
        op("CenterCropPad")
            .x(&[2, 5, 3])
            .ints(&[2])
            .set("axes", vec![1]),
        op("Compress")
            .x(&[2, 3])
            .bools(&[2], &[0, 1])
            .set("axis", 1i64),
        op("Compress").x(&[2, 3]).bools(&[5], &[0, 1, 1, 0, 1]),
        op("ReverseSequence").x(&[3, 2, 2]).ints(&[2, 3]),
        op("ReverseSequence")
            .x(&[2, 3])
            .ints(&[2, 3])
            .set("batch_axis", 0i64)
            .set("time_axis", 1i64),
        op("TensorScatter")
            .x(&[2, 4, 3])
            .x(&[2, 2, 3])
            .ints(&[1, 2]),
        op("TensorScatter")
            .x(&[2, 4, 3])
            .x(&[2, 2, 3])
            .ints(&[3, 0])
            .set("mode", "circular"),
        op("Scatter").x(&[3, 3]).grid(&[1, 2], &[2, 0]).x(&[1, 2]),
        op("MaxPool")
            .x(&[1, 2, 4, 3])
            .set("kernel_shape", vec![2, 2]),
        op("MaxPool")
            .x(&[1, 1, 5])
            .set("kernel_shape", vec![3])
            .set("strides", vec![2])
            .set("pads", vec![1, 1]),
        op("GlobalMaxPool").x(&[2, 2, 3, 2]),
        op("LpPool")
            .x(&[1, 2, 4])
            .set("kernel_shape", vec![2])
            .set("pads", vec![1, 0]),
        op("GlobalLpPool").x(&[1, 2, 3]).set("p", 3i64),
        op("AffineGrid").x(&[2, 2, 3]).ints(&[2, 1, 3, 2]).fixed(),
        op("AffineGrid")
            .x(&[1, 3, 4])
            .ints(&[1, 1, 2, 3, 2])
            .set("align_corners", 1i64)
            .fixed(),
    ]
}

fn functions() -> Vec<Case> {
    let labels = |data: &[i64]| TensorData::from_i64([2, 2], data);
    let window = |name| op(name).is(TensorData::from_i64([], &[6]));
    vec![
        op("NegativeLogLikelihoodLoss")
            .x(&[2, 3, 2])
            .is(labels(&[0, 2, 1, 1])),
        op("NegativeLogLikelihoodLoss")
            .x(&[2, 3, 2])
            .is(labels(&[0, -1, 1, 1]))
            .x(&[3])
            .set("ignore_index", -1i64)
            .set("reduction", "sum"),
        op("NegativeLogLikelihoodLoss")
            .x(&[2, 3, 2])
            .is(labels(&[0, 2, 1, 1]))
            .set("reduction", "none"),
        op("Hardmax").frozen(&[2, 3]),
        op("OptionalGetElement").x(&[2]),
        op("ai.onnx.ml::Binarizer").frozen(&[2, 3]),
        op("ai.onnx.ml::ArrayFeatureExtractor")
            .x(&[2, 3])
            .ints(&[2, 0]),
        op("Shrink")
            .x(&[2, 3])
            .set("lambd", 0.4f32)
            .set("bias", 0.2f32),
        op("SwiGLU").x(&[2, 3]).x(&[2, 3]).set("alpha", 1.5f32),
        window("HannWindow"),
        window("HammingWindow"),
        window("BlackmanWindow").set("periodic", 0i64),
        op("CausalConvWithState")
            .x(&[2, 3, 4])
            .x(&[3, 1, 2])
            .x(&[3])
            .fixed(),
        Case {
            weighed: vec![0, 1],
            ..op("CausalConvWithState")
                .x(&[2, 3, 2])
                .frozen(&[3, 1, 3])
                .none()
                .x(&[2, 3, 2])
                .set("activation", "silu")
                .outs(2)
        },
    ]
}

fn fused() -> Vec<Case> {
    vec![
        op("com.microsoft::BiasSplitGelu")
            .x(&[1, 2, 6])
            .x(&[6])
            .fixed(),
        op("com.microsoft::BiasAdd")
            .x(&[1, 2, 3])
            .x(&[3])
            .x(&[1, 2, 3]),
        op("com.microsoft::BiasSoftmax")
            .x(&[2, 3])
            .x(&[3])
            .set("axis", 1i64),
        op("com.microsoft::GemmFastGelu")
            .x(&[2, 3])
            .x(&[3, 2])
            .x(&[2]),
        op("com.microsoft::FusedGemm")
            .x(&[2, 3])
            .x(&[4, 3])
            .x(&[4])
            .set("transB", 1i64)
            .set("activation", "LeakyRelu")
            .set("activation_alpha", 0.3f32),
        op("com.microsoft::FusedConv")
            .x(&[1, 2, 4])
            .x(&[3, 2, 2])
            .x(&[3])
            .set("activation", "Tanh")
            .fixed(),
    ]
}

fn experts() -> Vec<Case> {
    let moe = |rows: usize| {
        op("com.microsoft::MoE")
            .x(&[2, 3])
            .x(&[2, 3])
            .x(&[3, rows, 3])
    };
    let codes = |dims: [u64; 3]| {
        let n = dims.iter().product::<u64>();
        let data: Vec<u8> = (0..n).map(|i| (i * 37 % 256) as u8).collect();
        TensorData::raw(DType::Uint8, dims, data.into())
    };
    vec![
        moe(2)
            .x(&[3, 2])
            .x(&[3, 3, 2])
            .x(&[3, 3])
            .set("k", 2i64)
            .set("activation_type", "silu")
            .fixed(),
        moe(4)
            .none()
            .x(&[3, 3, 2])
            .set("k", 2i64)
            .set("normalize_routing_weights", 1i64)
            .set("activation_type", "swiglu")
            .set("swiglu_fusion", 1i64)
            .set("swiglu_limit", 1.0f32)
            .set("activation_beta", 1.0f32)
            .fixed(),
        op("com.microsoft::DecoderMaskedMultiHeadAttention")
            .x(&[1, 1, 4])
            .x(&[1, 1, 4])
            .x(&[1, 1, 4])
            .none()
            .none()
            .x(&[1, 2, 5, 2])
            .x(&[1, 2, 5, 2])
            .is(TensorData::raw(
                DType::Int32,
                [1],
                3i32.to_le_bytes().to_vec().into(),
            ))
            .set("num_heads", 2i64)
            .set("past_present_share_buffer", 1i64)
            .outs(3)
            .fixed(),
        op("com.microsoft::QMoE")
            .x(&[2, 8])
            .x(&[2, 3])
            .is(codes([3, 4, 4]))
            .frozen(&[3, 4])
            .x(&[3, 4])
            .is(codes([3, 8, 2]))
            .frozen(&[3, 8])
            .set("k", 1i64)
            .set("activation_type", "gelu")
            .fixed(),
    ]
}

fn steps() -> Vec<Case> {
    let rate = || TensorData::from_f32([], &[0.1]);
    let count = || TensorData::from_i64([], &[2]);
    let step = |name| op(name).is(rate()).is(count()).x(&[3]).x(&[3]);
    vec![
        step("ai.onnx.preview.training::Adagrad")
            .within(&[3], 0.5, 1.5)
            .set("epsilon", 0.1f32)
            .set("decay_factor", 0.1f32)
            .outs(2),
        step("ai.onnx.preview.training::Adam")
            .x(&[3])
            .within(&[3], 0.5, 1.5)
            .set("epsilon", 0.1f32)
            .outs(3),
        step("ai.onnx.preview.training::Momentum")
            .x(&[3])
            .set("alpha", 0.9f32)
            .set("beta", 0.5f32)
            .set("norm_coefficient", 0.01f32)
            .set("mode", "nesterov")
            .outs(2),
    ]
}
