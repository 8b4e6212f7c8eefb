use super::AddCache;
use crate::infer::Verified;
use crate::rewrite::passes::testing::{DECODER, check_with, sites};

fn cache(past: bool) -> impl FnOnce(&Verified) -> AddCache {
    move |model| AddCache {
        selection: sites(model),
        past,
    }
}

#[test]
fn the_first_step_gives_its_keys_and_values() {
    check_with(
        DECODER,
        cache(false),
        r#"
        opset "" 17
        graph main(%input_ids: i64[batch, seq]) -> (%logits: f32[batch, seq, 8], %new_key_values.0.key, %new_key_values.0.value)
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
          %new_key_values.0.key = Transpose(%k2) {perm = [0, 2, 1, 3]}  // cache/Transpose
          %new_key_values.0.value = Transpose(%v2) {perm = [0, 2, 1, 3]}  // cache/Transpose_1
    "#,
    );
}

#[test]
fn later_steps_read_those_of_the_positions_before() {
    check_with(
        DECODER,
        cache(true),
        r#"
        opset "" 17
        graph main(%input_ids: i64[batch, seq], %past_attention_mask: i64[batch, past_sequence], %position_ids: i64[batch, seq], %past_key_values.0.key: f32[batch, 2, past_sequence, 2], %past_key_values.0.value: f32[batch, 2, past_sequence, 2]) -> (%logits: f32[batch, seq, 8], %new_key_values.0.key, %new_key_values.0.value)
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
          init %cache/const: f32[] = 1.0
          init %cache/const_1: f32[] = -3.4028235e38
          init %cache/const_2: i64[2] = {1, 2}
          init %cache.0/const: i64[1] = {0}
          init %cache.0/const_1: i64[1] = {1}
          init %cache.0/const_2: i64[1] = {0}
          init %cache.0/const_3: i64[1] = {2}
          init %cache.0/const_4: i64[1] = {3}
          init %cache.0/const_5: i64[1] = {0}
          init %cache.0/const_6: i64[1] = {2}
          init %cache.0/const_7: i64[2] = {2, -1}
          init %cache.0/const_8: i64[1] = {0}
          init %cache.0/const_9: i64[1] = {-1}
          init %cache.0/const_10: i64[1] = {0}
          init %cache.0/const_11: i64[1] = {-1}
          init %cache.0/const_12: i64[1] = {9223372036854775807}
          init %cache.0/const_13: i64[1] = {-1}
          init %cache.0/const_14: i64[1] = {0}
          init %cache.0/const_15: i64[1] = {-1}
          init %cache.0/const_16: i64[2] = {2, -1}
          init %cache.0/const_17: i64[1] = {0}
          init %cache.0/const_18: i64[1] = {-1}
          init %cache.0/const_19: i64[1] = {0}
          init %cache.0/const_20: i64[1] = {-1}
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
          %weights = Softmax(%scaled) {axis = -1}  // /model/layers.0/self_attn/Softmax
          %mix = MatMul(%weights, %v3)  // /model/layers.0/self_attn/MatMul_1
          %cache.0/Shape_output = Shape(%past_key_values.0.key)  // cache.0/Shape
          %cache.0/Slice_output = Slice(%cache.0/Shape_output, %cache.0/const, %cache.0/const_1, %cache.0/const_2)  // cache.0/Slice
          %cache.0/Shape_1_output = Shape(%past_key_values.0.key)  // cache.0/Shape_1
          %cache.0/Slice_1_output = Slice(%cache.0/Shape_1_output, %cache.0/const_3, %cache.0/const_4, %cache.0/const_5)  // cache.0/Slice_1
          %cache.0/Concat_output = Concat(%cache.0/Slice_output, %cache.0/const_7, %cache.0/const_6) {axis = 0}  // cache.0/Concat
          %cache.0/Reshape_output = Reshape(%q3, %cache.0/Concat_output)  // cache.0/Reshape
          %cache.0/Transpose_output = Transpose(%past_key_values.0.key) {perm = [0, 1, 3, 2]}  // cache.0/Transpose
          %cache.0/MatMul_output = MatMul(%cache.0/Reshape_output, %cache.0/Transpose_output)  // cache.0/MatMul
          %cache.0/Mul_output = Mul(%cache.0/MatMul_output, %scale)  // cache.0/Mul
          %cache.0/Shape_2_output = Shape(%scaled)  // cache.0/Shape_2
          %cache.0/Slice_2_output = Slice(%cache.0/Shape_2_output, %cache.0/const_8, %cache.0/const_9, %cache.0/const_10)  // cache.0/Slice_2
          %cache.0/Concat_1_output = Concat(%cache.0/Slice_2_output, %cache.0/const_11) {axis = 0}  // cache.0/Concat_1
          %cache.0/Concat_3_output = Concat(%cache.0/Slice_output, %cache.0/const_16, %cache.0/Slice_1_output) {axis = 0}  // cache.0/Concat_3
          %cache/Cast_output = Cast(%past_attention_mask) {to = 1}  // cache/Cast
          %cache/Sub_output = Sub(%cache/const, %cache/Cast_output)  // cache/Sub
          %cache/Mul_output = Mul(%cache/Sub_output, %cache/const_1)  // cache/Mul
          %cache/Unsqueeze_output = Unsqueeze(%cache/Mul_output, %cache/const_2)  // cache/Unsqueeze
          %cache.0/Add_output = Add(%cache.0/Mul_output, %cache/Unsqueeze_output)  // cache.0/Add
          %cache.0/Reshape_1_output = Reshape(%cache.0/Add_output, %cache.0/Concat_1_output)  // cache.0/Reshape_1
          %cache.0/Concat_2_output = Concat(%cache.0/Reshape_1_output, %scaled) {axis = -1}  // cache.0/Concat_2
          %cache.0/Softmax_output = Softmax(%cache.0/Concat_2_output) {axis = -1}  // cache.0/Softmax
          %cache.0/Slice_3_output = Slice(%cache.0/Softmax_output, %cache.0/Slice_1_output, %cache.0/const_12, %cache.0/const_13)  // cache.0/Slice_3
          %cache.0/MatMul_1_output = MatMul(%cache.0/Slice_3_output, %v3)  // cache.0/MatMul_1
          %cache.0/Slice_4_output = Slice(%cache.0/Softmax_output, %cache.0/const_14, %cache.0/Slice_1_output, %cache.0/const_15)  // cache.0/Slice_4
          %cache.0/Reshape_2_output = Reshape(%cache.0/Slice_4_output, %cache.0/Concat_3_output)  // cache.0/Reshape_2
          %cache.0/MatMul_2_output = MatMul(%cache.0/Reshape_2_output, %past_key_values.0.value)  // cache.0/MatMul_2
          %cache.0/Shape_3_output = Shape(%cache.0/MatMul_1_output)  // cache.0/Shape_3
          %cache.0/Slice_5_output = Slice(%cache.0/Shape_3_output, %cache.0/const_17, %cache.0/const_18, %cache.0/const_19)  // cache.0/Slice_5
          %cache.0/Concat_4_output = Concat(%cache.0/Slice_5_output, %cache.0/const_20) {axis = 0}  // cache.0/Concat_4
          %cache.0/Reshape_3_output = Reshape(%cache.0/MatMul_2_output, %cache.0/Concat_4_output)  // cache.0/Reshape_3
          %cache.0/Add_1_output = Add(%cache.0/Reshape_3_output, %cache.0/MatMul_1_output)  // cache.0/Add_1
          %mix2 = Transpose(%cache.0/Add_1_output) {perm = [0, 2, 1, 3]}  // /model/layers.0/self_attn/Transpose_3
          %mix3 = Reshape(%mix2, %rows)  // /model/layers.0/self_attn/Reshape_3
          %o = MatMul(%mix3, %o.weight)  // /model/layers.0/self_attn/o_proj/MatMul
          %between = Add(%x, %o)  // /model/layers.0/Add
          %up = MatMul(%between, %up.weight)  // /model/layers.0/mlp/up_proj/MatMul
          %act = Relu(%up)  // /model/layers.0/mlp/act/Relu
          %down = MatMul(%act, %down.weight)  // /model/layers.0/mlp/down_proj/MatMul
          %after = Add(%between, %down)  // /model/layers.0/Add_1
          %logits = MatMul(%after, %head.weight)  // /lm_head/MatMul
          %new_key_values.0.key = Transpose(%k2) {perm = [0, 2, 1, 3]}  // cache/Transpose
          %new_key_values.0.value = Transpose(%v2) {perm = [0, 2, 1, 3]}  // cache/Transpose_1
    "#,
    );
}
