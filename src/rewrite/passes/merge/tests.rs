use super::{Changes, Merge};
use crate::adapters::methods::Fold;
use crate::adapters::{Adapter, Config};
use crate::infer::Verified;
use crate::ir::TensorData;
use crate::rewrite::passes::testing::{DECODER, check_with, refuses_with, sites};

/// Merges an adapter; instead of running the expression, every merged weight is a matrix of threes.
fn merge(spec: &str) -> impl FnOnce(&Verified) -> Merge {
    let adapter = Adapter::fresh("a", Config::parse(spec).expect("a configuration"));
    move |model| Merge {
        selection: sites(model),
        adapters: vec![adapter],
        setup: None,
        skip_layers: Vec::new(),
        fold: Fold::In,
        changes: Changes::default(),
        evaluate: Box::new(|_| Ok(vec![TensorData::from_f32([4, 4], &[3.0; 16])])),
    }
}

#[test]
fn the_weight_changes_and_no_node_does() {
    check_with(
        DECODER,
        merge("lora[r=1,attn_matrices=[v]]"),
        r#"
        opset "" 17
        graph main(%input_ids: i64[batch, seq]) -> (%logits: f32[batch, seq, 8])
          init %table: f32[8, 4] blake3:30d34cc24afbfa52
          init %q.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %k.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %v.weight: f32[4, 4] blake3:e49fb25e343cc827
          init %o.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %up.weight: f32[4, 6] blake3:ba1ef1c43088d294
          init %down.weight: f32[6, 4] blake3:ba1ef1c43088d294
          init %head.weight: f32[4, 8] blake3:30d34cc24afbfa52
          init %heads: i64[4] = {0, 0, 2, 2}
          init %rows: i64[3] = {0, 0, 4}
          init %places: f32[16, 4] blake3:0f583d9684694fa4
          init %scale: f32[] = 0.5
          init %zero: i64[] = 0
          init %one: i64[] = 1
          init %axis: i64[1] = {0}
          %shape = Shape(%input_ids)  // /model/Shape
          %length = Gather(%shape, %one)  // /model/Gather
          %counted = Range(%zero, %length, %one)  // /model/Range
          %row = Unsqueeze(%counted, %axis)  // /model/Unsqueeze
          %place = Gather(%places, %row)  // /model/embed_positions/Gather
          %token = Gather(%table, %input_ids)  // /model/embed_tokens/Gather
          %x = Add(%token, %place)  // /model/Add
          %q = MatMul(%x, %q.weight)  // /model/layers.0/self_attn/q_proj/MatMul
          %k = MatMul(%x, %k.weight)  // /model/layers.0/self_attn/k_proj/MatMul
          %v = MatMul(%x, %v.weight)  // /model/layers.0/self_attn/v_proj/MatMul
          %q2 = Reshape(%q, %heads)  // /model/layers.0/self_attn/Reshape
          %q3 = Transpose(%q2) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose
          %k2 = Reshape(%k, %heads)  // /model/layers.0/self_attn/Reshape_1
          %k3 = Transpose(%k2) {perm = [0, 2, 3, 1]}  // /model/layers.0/self_attn/Transpose_1
          %v2 = Reshape(%v, %heads)  // /model/layers.0/self_attn/Reshape_2
          %v3 = Transpose(%v2) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_2
          %scores = MatMul(%q3, %k3)  // /model/layers.0/self_attn/MatMul
          %scaled = Mul(%scores, %scale)  // /model/layers.0/self_attn/Mul
          %weights = Softmax(%scaled) {axis = -1}  // /model/layers.0/self_attn/Softmax
          %mix = MatMul(%weights, %v3)  // /model/layers.0/self_attn/MatMul_1
          %mix2 = Transpose(%mix) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_3
          %mix3 = Reshape(%mix2, %rows)  // /model/layers.0/self_attn/Reshape_3
          %o = MatMul(%mix3, %o.weight)  // /model/layers.0/self_attn/o_proj/MatMul
          %between = Add(%x, %o)  // /model/layers.0/Add
          %up = MatMul(%between, %up.weight)  // /model/layers.0/mlp/up_proj/MatMul
          %act = Relu(%up)  // /model/layers.0/mlp/act/Relu
          %down = MatMul(%act, %down.weight)  // /model/layers.0/mlp/down_proj/MatMul
          %after = Add(%between, %down)  // /model/layers.0/Add_1
          %logits = MatMul(%after, %head.weight)  // /lm_head/MatMul
    "#,
    );
}

#[test]
fn what_is_no_change_of_a_linear_is_refused() {
    refuses_with(
        DECODER,
        merge("seq_bn[reduction_factor=2]"),
        "
        error[merge]: `model.layers.0.output_adapters.adapters.a` is no change of a linear, and cannot be folded into a weight
          in pass merge
          help: only the LoRA family merges; keep this adapter attached
    ",
    );
}
