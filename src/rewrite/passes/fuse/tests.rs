use super::{Cleanup, FuseBlocks, FuseLoss, FuseProducts};
use crate::rewrite::passes::loss::{Divisor, Loss};
use crate::rewrite::passes::testing::check;

#[test]
fn identities_and_casts_to_the_same_type_go() {
    check(
        Cleanup,
        r#"
        opset "" 17
        graph main(%x: f32[2]) -> (%y: f32[2], %z: f32[2])
          %a = Identity(%x)  // same
          %b = Cast(%a) {to = 1}  // f32 of f32
          %c = Cast(%b) {to = 11}  // f64 of f32
          %d = Cast(%c) {to = 1}  // f32 of f64
          %y = Relu(%d)  // relu
          %z = Identity(%y)  // an output keeps its name
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[2]) -> (%y: f32[2], %z: f32[2])
          %c = Cast(%x) {to = 11}  // f64 of f32
          %d = Cast(%c) {to = 1}  // f32 of f64
          %y = Relu(%d)  // relu
          %z = Identity(%y)  // an output keeps its name
    "#,
    );
}

#[test]
fn an_rms_norm_with_a_division() {
    check(
        FuseBlocks,
        r#"
        opset "" 17
        graph main(%x: f32[batch, seq, 8]) -> (%y: f32[batch, seq, 8])
          init %two: f32[] = 2.0
          init %epsilon: f32[] = 0.001
          init %one: f32[] = 1.0
          init %w: f32[8] = fill(0.5)
          %square = Pow(%x, %two)
          %mean = ReduceMean(%square) {axes = [-1]}
          %plus = Add(%mean, %epsilon)
          %root = Sqrt(%plus)
          %inverse = Div(%one, %root)
          %normal = Mul(%x, %inverse)
          %y = Mul(%w, %normal)  // norm/scale
        "#,
        r#"
        opset "" 17
        opset "onnx_graft" 1
        graph main(%x: f32[batch, seq, 8]) -> (%y: f32[batch, seq, 8])
          init %two: f32[] = 2.0
          init %epsilon: f32[] = 0.001
          init %one: f32[] = 1.0
          init %w: f32[8] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}
          %y, %y/fused/RMSNormalization_output_1 = onnx_graft::RMSNormalization(%x, %w) {epsilon = 0.001}  // y/fused/RMSNormalization
    "#,
    );
}

#[test]
fn an_rms_norm_with_a_reciprocal_of_opset_18() {
    check(
        FuseBlocks,
        r#"
        opset "" 18
        graph main(%x: f32[batch, seq, 8]) -> (%z: f32[batch, seq, 8])
          init %epsilon: f32[] = 0.001
          init %axes: i64[1] = {2}
          init %w: f32[8] = fill(0.5)
          %square = Mul(%x, %x)
          %mean = ReduceMean(%square, %axes)
          %plus = Add(%mean, %epsilon)
          %root = Sqrt(%plus)
          %inverse = Reciprocal(%root)
          %normal = Mul(%x, %inverse)
          %y = Mul(%normal, %w)  // norm/scale
          %z = Relu(%y)
        "#,
        r#"
        opset "" 18
        opset "onnx_graft" 1
        graph main(%x: f32[batch, seq, 8]) -> (%z: f32[batch, seq, 8])
          init %epsilon: f32[] = 0.001
          init %axes: i64[1] = {2}
          init %w: f32[8] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}
          %y/fused/RMSNormalization_output, %y/fused/RMSNormalization_output_1 = onnx_graft::RMSNormalization(%x, %w) {epsilon = 0.001}  // y/fused/RMSNormalization
          %z = Relu(%y/fused/RMSNormalization_output)
    "#,
    );
}

#[test]
fn a_norm_whose_inside_is_read_elsewhere_stays() {
    check(
        FuseBlocks,
        r#"
        opset "" 17
        graph main(%x: f32[batch, seq, 8]) -> (%y, %mean)
          init %epsilon: f32[] = 0.001
          init %w: f32[8] = fill(0.5)
          %square = Mul(%x, %x)
          %mean = ReduceMean(%square) {axes = [-1]}
          %plus = Add(%mean, %epsilon)
          %root = Sqrt(%plus)
          %normal = Div(%x, %root)
          %y = Mul(%normal, %w)
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[batch, seq, 8]) -> (%y, %mean)
          init %epsilon: f32[] = 0.001
          init %w: f32[8] = {0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5}
          %square = Mul(%x, %x)
          %mean = ReduceMean(%square) {axes = [-1]}
          %plus = Add(%mean, %epsilon)
          %root = Sqrt(%plus)
          %normal = Div(%x, %root)
          %y = Mul(%normal, %w)
    "#,
    );
}

#[test]
fn a_rotary_embedding() {
    check(
        FuseBlocks,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 2, seq, 4], %cos: f32[1, 1, seq, 4], %sin: f32[1, 1, seq, 4]) -> (%y)
          init %zero: i64[1] = {0}
          init %half: i64[1] = {2}
          init %end: i64[1] = {9223372036854775807}
          init %axis: i64[1] = {3}
          init %step: i64[1] = {1}
          %plain = Mul(%x, %cos)
          %lower = Slice(%x, %zero, %half, %axis, %step)
          %upper = Slice(%x, %half, %end, %axis, %step)
          %negated = Neg(%upper)
          %turned = Concat(%negated, %lower) {axis = -1}
          %rotated = Mul(%turned, %sin)
          %y = Add(%plain, %rotated)  // rope
        "#,
        r#"
        opset "" 17
        opset "onnx_graft" 1
        graph main(%x: f32[batch, 2, seq, 4], %cos: f32[1, 1, seq, 4], %sin: f32[1, 1, seq, 4]) -> (%y)
          init %zero: i64[1] = {0}
          init %half: i64[1] = {2}
          init %end: i64[1] = {9223372036854775807}
          init %axis: i64[1] = {3}
          init %step: i64[1] = {1}
          %y = onnx_graft::RotaryEmbedding(%x, %cos, %sin) {inverse = 0}  // y/fused/RotaryEmbedding
    "#,
    );
}

#[test]
fn an_attention_with_scale_and_mask() {
    check(
        FuseBlocks,
        r#"
        opset "" 17
        graph main(%q: f32[batch, 2, seq, 4], %k: f32[batch, 2, seq, 4], %v: f32[batch, 2, seq, 4], %mask: f32[batch, 1, seq, seq]) -> (%y)
          init %scale: f32[] = 0.5
          %kt = Transpose(%k) {perm = [0, 1, 3, 2]}
          %scores = MatMul(%q, %kt)
          %scaled = Mul(%scores, %scale)
          %masked = Add(%scaled, %mask)
          %p = Softmax(%masked) {axis = -1}
          %y = MatMul(%p, %v)  // mix
        "#,
        r#"
        opset "" 17
        opset "onnx_graft" 1
        graph main(%q: f32[batch, 2, seq, 4], %k: f32[batch, 2, seq, 4], %v: f32[batch, 2, seq, 4], %mask: f32[batch, 1, seq, seq]) -> (%y)
          init %scale: f32[] = 0.5
          %y, %y/fused/Attention_output_1 = onnx_graft::Attention(%q, %k, %v, %mask) {scale = 0.5}  // y/fused/Attention
    "#,
    );
}

/// A bias that hidden states choose has a gradient.
#[test]
fn an_attention_with_a_computed_bias_stays() {
    let graph = r#"
        opset "" 17
        graph main(%q: f32[1, 2, 2, 2], %k: f32[1, 2, 2, 2], %v: f32[1, 2, 2, 2], %x: f32[1, 2, 2, 2]) -> (%y)
          init %w: f32[2, 2] = {1.0, 2.0, 3.0, 4.0}
          %kt = Transpose(%k) {perm = [0, 1, 3, 2]}
          %scores = MatMul(%q, %kt)
          %bias = MatMul(%x, %w)
          %masked = Add(%scores, %bias)
          %p = Softmax(%masked) {axis = -1}
          %y = MatMul(%p, %v)  // mix
        "#;
    check(FuseBlocks, graph, graph);
}

#[test]
fn grouped_keys_and_values_are_not_repeated() {
    check(
        FuseBlocks,
        r#"
        opset "" 17
        graph main(%q: f32[batch, 4, seq, 8], %k: f32[batch, 2, seq, 8], %v: f32[batch, 2, seq, 8]) -> (%y)
          init %scale: f32[] = 8.0
          init %axes: i64[1] = {2}
          init %times: i64[5] = {1, 1, 2, 1, 1}
          init %heads: i64[4] = {0, 4, -1, 8}
          %k1 = Unsqueeze(%k, %axes)
          %k2 = Expand(%k1, %times)
          %k3 = Reshape(%k2, %heads)
          %v1 = Unsqueeze(%v, %axes)
          %v2 = Expand(%v1, %times)
          %v3 = Reshape(%v2, %heads)
          %kt = Transpose(%k3) {perm = [0, 1, 3, 2]}
          %scores = MatMul(%q, %kt)
          %scaled = Div(%scores, %scale)
          %p = Softmax(%scaled) {axis = -1}
          %y = MatMul(%p, %v3)  // mix
        "#,
        r#"
        opset "" 17
        opset "onnx_graft" 1
        graph main(%q: f32[batch, 4, seq, 8], %k: f32[batch, 2, seq, 8], %v: f32[batch, 2, seq, 8]) -> (%y)
          init %scale: f32[] = 8.0
          init %axes: i64[1] = {2}
          init %times: i64[5] = {1, 1, 2, 1, 1}
          init %heads: i64[4] = {0, 4, -1, 8}
          %y, %y/fused/Attention_output_1 = onnx_graft::Attention(%q, %k, %v, _) {scale = 0.125}  // y/fused/Attention
    "#,
    );
}

#[test]
fn an_attention_whose_weights_are_an_output_stays() {
    check(
        FuseBlocks,
        r#"
        opset "" 17
        graph main(%q: f32[batch, 2, seq, 4], %kt: f32[batch, 2, 4, seq], %v: f32[batch, 2, seq, 4]) -> (%y, %p)
          %scores = MatMul(%q, %kt)
          %p = Softmax(%scores) {axis = -1}
          %y = MatMul(%p, %v)
        "#,
        r#"
        opset "" 17
        graph main(%q: f32[batch, 2, seq, 4], %kt: f32[batch, 2, 4, seq], %v: f32[batch, 2, seq, 4]) -> (%y, %p)
          %scores = MatMul(%q, %kt)
          %p = Softmax(%scores) {axis = -1}
          %y = MatMul(%p, %v)
    "#,
    );
}

#[test]
fn gated_activations() {
    check(
        FuseBlocks,
        r#"
        opset "" 17
        graph main(%a: f32[batch, 8], %b: f32[batch, 8]) -> (%y, %silu)
          %s = Sigmoid(%a)
          %act = Mul(%a, %s)
          %y = Mul(%act, %b)  // gate
          %s2 = Sigmoid(%b)
          %silu = Mul(%s2, %b)  // silu
        "#,
        r#"
        opset "" 17
        opset "onnx_graft" 1
        graph main(%a: f32[batch, 8], %b: f32[batch, 8]) -> (%y, %silu)
          %y = onnx_graft::SwiGLU(%a, %b)  // y/fused/SwiGLU
          %silu = onnx_graft::Silu(%b)  // silu/fused/Silu
    "#,
    );
}

#[test]
fn half_precision_has_no_fused_kernels() {
    check(
        FuseBlocks,
        r#"
        opset "" 17
        graph main(%a: f16[batch, 8]) -> (%silu)
          %s = Sigmoid(%a)
          %silu = Mul(%s, %a)
        "#,
        r#"
        opset "" 17
        graph main(%a: f16[batch, 8]) -> (%silu)
          %s = Sigmoid(%a)
          %silu = Mul(%s, %a)
    "#,
    );
}

#[test]
fn transpositions_are_folded_into_the_product() {
    check(
        FuseProducts,
        r#"
        opset "" 17
        graph main(%g: f32[batch, 4]) -> (%dx, %t2)
          init %w: f32[8, 4] = fill(0.5)
          %t = Transpose(%w) {perm = [1, 0]}
          %dx = MatMul(%g, %t)  // product
          %t2 = Transpose(%g) {perm = [1, 0]}
        "#,
        r#"
        opset "" 17
        opset "com.microsoft" 1
        graph main(%g: f32[batch, 4]) -> (%dx, %t2)
          init %w: f32[8, 4] blake3:30d34cc24afbfa52
          %dx = com.microsoft::FusedMatMul(%g, %w) {alpha = 1.0, transA = 0, transB = 1}  // dx/fused/FusedMatMul
          %t2 = Transpose(%g) {perm = [1, 0]}
    "#,
    );
}

#[test]
fn a_low_rank_update_joins_the_sum() {
    check(
        FuseProducts,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 8]) -> (%y)
          init %w: f32[8, 8] = fill(0.5)
          init %a: f32[2, 8] = fill(0.5)
          init %b: f32[8, 2] = fill(0.5)
          init %scale: f32[] = 2.0
          %base = MatMul(%x, %w)  // base
          %at = Transpose(%a) {perm = [1, 0]}
          %down = MatMul(%x, %at)  // down
          %bt = Transpose(%b) {perm = [1, 0]}
          %up = MatMul(%down, %bt)  // up
          %scaled = Mul(%up, %scale)  // scale
          %y = Add(%base, %scaled)  // sum
        "#,
        r#"
        opset "" 17
        opset "com.microsoft" 1
        opset "onnx_graft" 1
        graph main(%x: f32[batch, 8]) -> (%y)
          init %w: f32[8, 8] blake3:0f583d9684694fa4
          init %a: f32[2, 8] blake3:ef7b0a391c31c128
          init %b: f32[8, 2] blake3:ef7b0a391c31c128
          init %scale: f32[] = 2.0
          %base = MatMul(%x, %w)  // base
          %down/fused/FusedMatMul_output = com.microsoft::FusedMatMul(%x, %a) {alpha = 1.0, transA = 0, transB = 1}  // down/fused/FusedMatMul
          %y = onnx_graft::MatMulAdd(%base, %down/fused/FusedMatMul_output, %b) {alpha = 2.0, transA = 0, transB = 1}  // y/fused/MatMulAdd
    "#,
    );
}

fn fuse_loss() -> FuseLoss {
    FuseLoss {
        of: Loss::CausalLm {
            logits: Some("logits".into()),
            divisor: Divisor::Labels,
        },
    }
}

#[test]
fn a_loss_is_computed_without_logits() {
    check(
        fuse_loss(),
        r#"
        opset "" 17
        graph main(%h: f32[batch, seq, 4], %labels: i64[batch, seq]) -> (%loss: f32[])
          init %w: f32[4, 16] = fill(0.5)
          init %zero: i64[1] = {0}
          init %one: i64[1] = {1}
          init %end: i64[1] = {-1}
          init %rows: i64[2] = {-1, 16}
          init %flat: i64[1] = {-1}
          init %last: i64[1] = {9223372036854775807}
          %logits = MatMul(%h, %w)  // head
          %scores = Slice(%logits, %zero, %end, %one)
          %rows_of = Reshape(%scores, %rows)
          %next = Slice(%labels, %one, %last, %one)
          %targets = Reshape(%next, %flat)
          %loss = SoftmaxCrossEntropyLoss(%rows_of, %targets) {ignore_index = -100, reduction = "mean"}  // loss
        "#,
        r#"
        opset "" 17
        opset "onnx_graft" 1
        graph main(%h: f32[batch, seq, 4], %labels: i64[batch, seq]) -> (%loss: f32[])
          init %w: f32[4, 16] blake3:0f583d9684694fa4
          init %zero: i64[1] = {0}
          init %one: i64[1] = {1}
          init %end: i64[1] = {-1}
          init %rows: i64[2] = {-1, 16}
          init %flat: i64[1] = {-1}
          init %last: i64[1] = {9223372036854775807}
          %logits = MatMul(%h, %w)  // head
          %scores = Slice(%logits, %zero, %end, %one)
          %rows_of = Reshape(%scores, %rows)
          %next = Slice(%labels, %one, %last, %one)
          %targets = Reshape(%next, %flat)
          %loss/fused/LinearCrossEntropy_output = SoftmaxCrossEntropyLoss(%rows_of, %targets) {ignore_index = -100, reduction = "mean"}  // loss
          %loss, %loss/fused/LinearCrossEntropy_output_1 = onnx_graft::LinearCrossEntropy(%h, %w, %labels) {ignore_index = -100}  // loss/fused/LinearCrossEntropy
    "#,
    );
}

#[test]
fn logits_that_are_no_product_with_a_constant_stay() {
    check(
        fuse_loss(),
        r#"
        opset "" 17
        graph main(%logits: f32[rows, 16], %labels: i64[rows]) -> (%loss: f32[])
          %loss = SoftmaxCrossEntropyLoss(%logits, %labels) {ignore_index = -100}
        "#,
        r#"
        opset "" 17
        graph main(%logits: f32[rows, 16], %labels: i64[rows]) -> (%loss: f32[])
          %loss = SoftmaxCrossEntropyLoss(%logits, %labels) {ignore_index = -100}
    "#,
    );
}
