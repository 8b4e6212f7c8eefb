use super::Pack;
use crate::infer::Verified;
use crate::rewrite::passes::testing::{DECODER, check_with, refuses_with, sites};

fn pack(model: &Verified) -> Pack {
    Pack {
        selection: sites(model),
    }
}

#[test]
fn attention_sees_its_own_segment_and_positions_become_an_input() {
    check_with(
        DECODER,
        pack,
        r#"
        opset "" 17
        graph main(%input_ids: i64[batch, seq], %segment_ids: i64[batch, seq], %position_ids: i64[batch, seq]) -> (%logits: f32[batch, seq, 8])
          init %table: f32[8, 4] blake3:30d34cc24afbfa52
          init %q.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %k.weight: f32[4, 4] blake3:ef7b0a391c31c128
          init %v.weight: f32[4, 4] blake3:ef7b0a391c31c128
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
          init %packing/const: i64[2] = {1, 3}
          init %packing/const_1: i64[2] = {1, 2}
          init %packing/const_2: f32[] = 0.0
          init %packing/const_3: f32[] = -1.7014117e38
          %shape = Shape(%input_ids)  // /model/Shape
          %length = Gather(%shape, %one)  // /model/Gather
          %counted = Range(%zero, %length, %one)  // /model/Range
          %row = Unsqueeze(%counted, %axis)  // /model/Unsqueeze
          %place = Gather(%places, %position_ids)  // /model/embed_positions/Gather
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
          %packing/Unsqueeze_output = Unsqueeze(%segment_ids, %packing/const)  // packing/Unsqueeze
          %packing/Unsqueeze_1_output = Unsqueeze(%segment_ids, %packing/const_1)  // packing/Unsqueeze_1
          %packing/Equal_output = Equal(%packing/Unsqueeze_output, %packing/Unsqueeze_1_output)  // packing/Equal
          %packing/Where_output = Where(%packing/Equal_output, %packing/const_2, %packing/const_3)  // packing/Where
          %packing/Add_output = Add(%scaled, %packing/Where_output)  // packing/Add
          %weights = Softmax(%packing/Add_output) {axis = -1}  // /model/layers.0/self_attn/Softmax
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
fn a_decoder_without_positions_is_refused() {
    let without = DECODER.replace(
        "%x = Add(%token, %place)  // /model/Add",
        "%x = Add(%token, %token)  // /model/Add",
    );
    let without = without.replace(
        "%place = Gather(%places, %row)  // /model/embed_positions/Gather",
        "",
    );
    refuses_with(
        &without,
        pack,
        "
        error[packing]: the positions of tokens were not found in the graph
          in pass pack
          help: train without packing; `group_by_length` also saves padding
    ",
    );
}

#[test]
fn a_graph_that_is_packed_already_is_refused() {
    let packed = DECODER.replace(
        "main(%input_ids: i64[batch, seq])",
        "main(%input_ids: i64[batch, seq], %segment_ids: i64[batch, seq])",
    );
    refuses_with(
        &packed,
        pack,
        "
        error[packing]: the graph has a value `segment_ids` already
          in pass pack
          help: train without packing; `group_by_length` also saves padding
    ",
    );
}
