use super::Expand;
use crate::ir::OpId;
use crate::rewrite::passes::testing::{check, refuses};

const TWO: &str = r#"
        opset "" 20
        opset "com.microsoft" 1
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          init %bias: f32[4] = fill(0.5)
          init %w: f32[4, 4] = fill(0.5)
          %h = com.microsoft::BiasGelu(%x, %bias)  // gelu
          %y = com.microsoft::FusedMatMul(%h, %w) {alpha = 0.5, transB = 1}  // product
        "#;

#[test]
fn every_operator_that_has_a_definition() {
    check(
        Expand::All,
        TWO,
        r#"
        opset "" 20
        opset "com.microsoft" 1
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          init %bias: f32[4] = {0.5, 0.5, 0.5, 0.5}
          init %w: f32[4, 4] blake3:ef7b0a391c31c128
          init %product/const: f32[] = 0.5 +onnx_graft.definition="com.microsoft::FusedMatMul"
          %gelu/Add_output = Add(%x, %bias) +onnx_graft.definition="com.microsoft::BiasGelu"  // gelu/Add
          %h = Gelu(%gelu/Add_output) {approximate = "none"} +onnx_graft.definition="com.microsoft::BiasGelu"  // gelu/Gelu
          %product/Transpose_output = Transpose(%w) {perm = [1, 0]} +onnx_graft.definition="com.microsoft::FusedMatMul"  // product/Transpose
          %product/MatMul_output = MatMul(%h, %product/Transpose_output) +onnx_graft.definition="com.microsoft::FusedMatMul"  // product/MatMul
          %y = Mul(%product/MatMul_output, %product/const) +onnx_graft.definition="com.microsoft::FusedMatMul"  // product/Mul
    "#,
    );
}

#[test]
fn chosen_operators() {
    let gelu = OpId::new("com.microsoft", "BiasGelu");
    check(
        Expand::Ops(vec![gelu]),
        TWO,
        r#"
        opset "" 20
        opset "com.microsoft" 1
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          init %bias: f32[4] = {0.5, 0.5, 0.5, 0.5}
          init %w: f32[4, 4] blake3:ef7b0a391c31c128
          %gelu/Add_output = Add(%x, %bias) +onnx_graft.definition="com.microsoft::BiasGelu"  // gelu/Add
          %h = Gelu(%gelu/Add_output) {approximate = "none"} +onnx_graft.definition="com.microsoft::BiasGelu"  // gelu/Gelu
          %y = com.microsoft::FusedMatMul(%h, %w) {alpha = 0.5, transB = 1}  // product
    "#,
    );
}

#[test]
fn chosen_nodes() {
    check(
        Expand::Nodes(vec!["product".into()]),
        TWO,
        r#"
        opset "" 20
        opset "com.microsoft" 1
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          init %bias: f32[4] = {0.5, 0.5, 0.5, 0.5}
          init %w: f32[4, 4] blake3:ef7b0a391c31c128
          init %product/const: f32[] = 0.5 +onnx_graft.definition="com.microsoft::FusedMatMul"
          %h = com.microsoft::BiasGelu(%x, %bias)  // gelu
          %product/Transpose_output = Transpose(%w) {perm = [1, 0]} +onnx_graft.definition="com.microsoft::FusedMatMul"  // product/Transpose
          %product/MatMul_output = MatMul(%h, %product/Transpose_output) +onnx_graft.definition="com.microsoft::FusedMatMul"  // product/MatMul
          %y = Mul(%product/MatMul_output, %product/const) +onnx_graft.definition="com.microsoft::FusedMatMul"  // product/Mul
    "#,
    );
}

#[test]
fn outputs_keep_their_names() {
    check(
        Expand::All,
        r#"
        opset "" 17
        opset "com.microsoft" 1
        graph main(%x: f32[batch, seq, 4], %skip: f32[batch, seq, 4]) -> (%y, %sum)
          init %scale: f32[4] = fill(1.0)
          init %beta: f32[4] = fill(0.0)
          %y, _, _, %sum = com.microsoft::SkipLayerNormalization(%x, %skip, %scale, %beta) {epsilon = 0.001}  // norm
        "#,
        r#"
        opset "" 17
        opset "com.microsoft" 1
        graph main(%x: f32[batch, seq, 4], %skip: f32[batch, seq, 4]) -> (%y, %sum)
          init %scale: f32[4] = {1.0, 1.0, 1.0, 1.0}
          init %beta: f32[4] = {0.0, 0.0, 0.0, 0.0}
          %sum = Add(%x, %skip) +onnx_graft.definition="com.microsoft::SkipLayerNormalization"  // norm/Add
          %y = LayerNormalization(%sum, %scale, %beta) {axis = -1, epsilon = 0.001, stash_type = 1} +onnx_graft.definition="com.microsoft::SkipLayerNormalization"  // norm/LayerNormalization
    "#,
    );
}

#[test]
fn a_form_without_a_definition_is_refused() {
    refuses(
        Expand::All,
        r#"
        opset "" 17
        opset "com.microsoft" 1
        graph main(%qkv: f32[batch, seq, 24], %lengths: i32[batch], %total: i32[1]) -> (%y)
          %y = com.microsoft::GroupQueryAttention(%qkv, _, _, _, _, %lengths, %total) {num_heads = 2, kv_num_heads = 1, smooth_softmax = 1}  // attention
        "#,
        "
        error[expand]: com.microsoft::GroupQueryAttention: no definition with smooth_softmax = 1
          in pass expand, attention
          help: export the graph without this fused operator
    ",
    );
}

#[test]
fn a_sum_over_one_index_is_a_product_of_matrices() {
    let sum = |equation: &str| {
        format!(
            r#"
        opset "" 17
        graph main(%q: f32[2, 3, 4, 5], %k: f32[2, 6, 4, 5]) -> (%y)
          %y = Einsum(%q, %k) {{equation = "{equation}"}}  // sum
        "#
        )
    };
    check(
        Expand::Ops(vec![OpId::onnx("Einsum")]),
        &sum("bind,bjnd->bnij"),
        r#"
        opset "" 17
        graph main(%q: f32[2, 3, 4, 5], %k: f32[2, 6, 4, 5]) -> (%y)
          %sum/Transpose_output = Transpose(%q) {perm = [0, 2, 1, 3]} +onnx_graft.definition="Einsum"  // sum/Transpose
          %sum/Transpose_1_output = Transpose(%k) {perm = [0, 2, 3, 1]} +onnx_graft.definition="Einsum"  // sum/Transpose_1
          %y = MatMul(%sum/Transpose_output, %sum/Transpose_1_output) +onnx_graft.definition="Einsum"  // sum/MatMul
    "#,
    );
    // The operand whose own index comes first in the output is on the left.
    check(
        Expand::Ops(vec![OpId::onnx("Einsum")]),
        &sum("bind,bjnd->bjni"),
        r#"
        opset "" 17
        graph main(%q: f32[2, 3, 4, 5], %k: f32[2, 6, 4, 5]) -> (%y)
          %sum/Transpose_output = Transpose(%k) {perm = [0, 2, 1, 3]} +onnx_graft.definition="Einsum"  // sum/Transpose
          %sum/Transpose_1_output = Transpose(%q) {perm = [0, 2, 3, 1]} +onnx_graft.definition="Einsum"  // sum/Transpose_1
          %sum/MatMul_output = MatMul(%sum/Transpose_output, %sum/Transpose_1_output) +onnx_graft.definition="Einsum"  // sum/MatMul
          %y = Transpose(%sum/MatMul_output) {perm = [0, 2, 1, 3]} +onnx_graft.definition="Einsum"  // sum/Transpose_2
    "#,
    );
    for other in ["bind,bjne->bnij", "bind,bjnd->bij", "bind,bjnd->bnijd"] {
        check(
            Expand::Ops(vec![OpId::onnx("Einsum")]),
            &sum(other),
            &sum(other),
        );
    }
}
