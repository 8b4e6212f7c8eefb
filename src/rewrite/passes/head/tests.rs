use super::AttachHead;
use crate::adapters::heads::{Head, HeadConfig, Pooling};
use crate::rewrite::passes::testing::{check, refuses};

const BASE: &str = r#"
        opset "" 17
        graph main(%input_ids: i64[batch, seq], %attention_mask: i64[batch, seq]) -> (%last_hidden_state: f32[batch, seq, 2])
          init %table: f32[8, 2] = fill(0.5)
          %last_hidden_state = Gather(%table, %input_ids)  // embed
        "#;

fn head(pooling: Pooling, training: bool) -> AttachHead {
    let config = HeadConfig {
        num_labels: Some(3),
        layers: Some(1),
        dropout_prob: Some(0.5),
        pooling: Some(pooling),
        ..HeadConfig::default()
    };
    AttachHead {
        heads: vec![Head::fresh("task", config)],
        block: None,
        seed: 7,
        training,
    }
}

#[test]
fn the_first_position_is_read() {
    check(
        head(Pooling::First, false),
        BASE,
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"onnx-graft VERSION\",\"adapters\":[],\"heads\":[{\"name\":\"task\",\"flexible\":{\"num_labels\":3,\"layers\":1,\"dropout_prob\":0.5,\"pooling\":\"first\",\"head_type\":\"classification\"}}]}"
        graph main(%input_ids: i64[batch, seq], %attention_mask: i64[batch, seq]) -> (%last_hidden_state: f32[batch, seq, 2], %logits: f32[batch, 3])
          init %table: f32[8, 2] blake3:ef7b0a391c31c128
          init %heads.task.1.weight: f32[3, 2] = {-0.01372029, 0.0075790486, 0.008007464, -0.002046423, 0.0069069653, 0.032864958} +onnx_graft.adapter="head:task" +onnx_graft.param="trainable"
          init %heads.task.1.bias: f32[3] = {0.0, 0.0, 0.0} +onnx_graft.adapter="head:task" +onnx_graft.param="trainable"
          init %heads.task/const: i64[1] = {0} +onnx_graft.adapter="head:task"
          init %heads.task/const_1: i64[1] = {1} +onnx_graft.adapter="head:task"
          init %heads.task/const_2: i64[1] = {1} +onnx_graft.adapter="head:task"
          init %heads.task/const_3: i64[1] = {1} +onnx_graft.adapter="head:task"
          %last_hidden_state = Gather(%table, %input_ids)  // embed
          %heads.task/Cast_output = Cast(%last_hidden_state) {to = 1} +onnx_graft.adapter="head:task"  // heads.task/Cast
          %heads.task/Slice_output = Slice(%heads.task/Cast_output, %heads.task/const, %heads.task/const_1, %heads.task/const_2) +onnx_graft.adapter="head:task"  // heads.task/Slice
          %heads.task/Squeeze_output = Squeeze(%heads.task/Slice_output, %heads.task/const_3) +onnx_graft.adapter="head:task"  // heads.task/Squeeze
          %heads.task/Transpose_output = Transpose(%heads.task.1.weight) {perm = [1, 0]} +onnx_graft.adapter="head:task"  // heads.task/Transpose
          %heads.task/MatMul_output = MatMul(%heads.task/Squeeze_output, %heads.task/Transpose_output) +onnx_graft.adapter="head:task"  // heads.task/MatMul
          %logits = Add(%heads.task/MatMul_output, %heads.task.1.bias) +onnx_graft.adapter="head:task"  // heads.task/Add
    "#,
    );
}

#[test]
fn dropout_acts_in_training() {
    check(
        head(Pooling::First, true),
        BASE,
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"onnx-graft VERSION\",\"adapters\":[],\"heads\":[{\"name\":\"task\",\"flexible\":{\"num_labels\":3,\"layers\":1,\"dropout_prob\":0.5,\"pooling\":\"first\",\"head_type\":\"classification\"}}]}"
        graph main(%input_ids: i64[batch, seq], %attention_mask: i64[batch, seq]) -> (%last_hidden_state: f32[batch, seq, 2], %logits: f32[batch, 3])
          init %table: f32[8, 2] blake3:ef7b0a391c31c128
          init %heads.task.1.weight: f32[3, 2] = {-0.01372029, 0.0075790486, 0.008007464, -0.002046423, 0.0069069653, 0.032864958} +onnx_graft.adapter="head:task" +onnx_graft.param="trainable"
          init %heads.task.1.bias: f32[3] = {0.0, 0.0, 0.0} +onnx_graft.adapter="head:task" +onnx_graft.param="trainable"
          init %heads.task/const: i64[1] = {0} +onnx_graft.adapter="head:task"
          init %heads.task/const_1: i64[1] = {1} +onnx_graft.adapter="head:task"
          init %heads.task/const_2: i64[1] = {1} +onnx_graft.adapter="head:task"
          init %heads.task/const_3: i64[1] = {1} +onnx_graft.adapter="head:task"
          init %heads.task/const_4: bool[] = true +onnx_graft.adapter="head:task"
          init %heads.task/const_5: f32[] = 0.5 +onnx_graft.adapter="head:task"
          %last_hidden_state = Gather(%table, %input_ids)  // embed
          %heads.task/Cast_output = Cast(%last_hidden_state) {to = 1} +onnx_graft.adapter="head:task"  // heads.task/Cast
          %heads.task/Slice_output = Slice(%heads.task/Cast_output, %heads.task/const, %heads.task/const_1, %heads.task/const_2) +onnx_graft.adapter="head:task"  // heads.task/Slice
          %heads.task/Squeeze_output = Squeeze(%heads.task/Slice_output, %heads.task/const_3) +onnx_graft.adapter="head:task"  // heads.task/Squeeze
          %heads.task/Dropout_output, %heads.task/Dropout_output_1 = Dropout(%heads.task/Squeeze_output, %heads.task/const_5, %heads.task/const_4) +onnx_graft.adapter="head:task"  // heads.task/Dropout
          %heads.task/Transpose_output = Transpose(%heads.task.1.weight) {perm = [1, 0]} +onnx_graft.adapter="head:task"  // heads.task/Transpose
          %heads.task/MatMul_output = MatMul(%heads.task/Dropout_output, %heads.task/Transpose_output) +onnx_graft.adapter="head:task"  // heads.task/MatMul
          %logits = Add(%heads.task/MatMul_output, %heads.task.1.bias) +onnx_graft.adapter="head:task"  // heads.task/Add
    "#,
    );
}

#[test]
fn the_last_position_that_counts_is_read() {
    check(
        head(Pooling::Last, false),
        BASE,
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"onnx-graft VERSION\",\"adapters\":[],\"heads\":[{\"name\":\"task\",\"flexible\":{\"num_labels\":3,\"layers\":1,\"dropout_prob\":0.5,\"pooling\":\"last\",\"head_type\":\"classification\"}}]}"
        graph main(%input_ids: i64[batch, seq], %attention_mask: i64[batch, seq]) -> (%last_hidden_state: f32[batch, seq, 2], %logits: f32[batch, 3])
          init %table: f32[8, 2] blake3:ef7b0a391c31c128
          init %heads.task.1.weight: f32[3, 2] = {-0.01372029, 0.0075790486, 0.008007464, -0.002046423, 0.0069069653, 0.032864958} +onnx_graft.adapter="head:task" +onnx_graft.param="trainable"
          init %heads.task.1.bias: f32[3] = {0.0, 0.0, 0.0} +onnx_graft.adapter="head:task" +onnx_graft.param="trainable"
          init %heads.task/const: i64[1] = {1} +onnx_graft.adapter="head:task"
          init %heads.task/const_1: i64[1] = {2} +onnx_graft.adapter="head:task"
          init %heads.task/const_2: i64[1] = {0} +onnx_graft.adapter="head:task"
          init %heads.task/const_3: i64[] = 1 +onnx_graft.adapter="head:task"
          init %heads.task/const_4: i64[1] = {1} +onnx_graft.adapter="head:task"
          init %heads.task/const_5: i64[1] = {0} +onnx_graft.adapter="head:task"
          init %heads.task/const_6: i64[] = 1 +onnx_graft.adapter="head:task"
          init %heads.task/const_7: i64[1] = {2} +onnx_graft.adapter="head:task"
          init %heads.task/const_8: i64[1] = {2} +onnx_graft.adapter="head:task"
          init %heads.task/const_9: i64[1] = {3} +onnx_graft.adapter="head:task"
          init %heads.task/const_10: i64[1] = {0} +onnx_graft.adapter="head:task"
          init %heads.task/const_11: i64[2] = {1, 1} +onnx_graft.adapter="head:task"
          init %heads.task/const_12: i64[1] = {1} +onnx_graft.adapter="head:task"
          %last_hidden_state = Gather(%table, %input_ids)  // embed
          %heads.task/Cast_output = Cast(%last_hidden_state) {to = 1} +onnx_graft.adapter="head:task"  // heads.task/Cast
          %heads.task/Cast_1_output = Cast(%attention_mask) {to = 7} +onnx_graft.adapter="head:task"  // heads.task/Cast_1
          %heads.task/Shape_output = Shape(%heads.task/Cast_1_output) +onnx_graft.adapter="head:task"  // heads.task/Shape
          %heads.task/Slice_output = Slice(%heads.task/Shape_output, %heads.task/const, %heads.task/const_1, %heads.task/const_2) +onnx_graft.adapter="head:task"  // heads.task/Slice
          %heads.task/Add_output = Add(%heads.task/Slice_output, %heads.task/const_4) +onnx_graft.adapter="head:task"  // heads.task/Add
          %heads.task/Squeeze_output = Squeeze(%heads.task/Add_output, %heads.task/const_5) +onnx_graft.adapter="head:task"  // heads.task/Squeeze
          %heads.task/Range_output = Range(%heads.task/const_3, %heads.task/Squeeze_output, %heads.task/const_6) +onnx_graft.adapter="head:task"  // heads.task/Range
          %heads.task/Mul_output = Mul(%heads.task/Cast_1_output, %heads.task/Range_output) +onnx_graft.adapter="head:task"  // heads.task/Mul
          %heads.task/ArgMax_output = ArgMax(%heads.task/Mul_output) {axis = 1, keepdims = 1} +onnx_graft.adapter="head:task"  // heads.task/ArgMax
          %heads.task/Unsqueeze_output = Unsqueeze(%heads.task/ArgMax_output, %heads.task/const_7) +onnx_graft.adapter="head:task"  // heads.task/Unsqueeze
          %heads.task/Shape_1_output = Shape(%heads.task/Cast_output) +onnx_graft.adapter="head:task"  // heads.task/Shape_1
          %heads.task/Slice_1_output = Slice(%heads.task/Shape_1_output, %heads.task/const_8, %heads.task/const_9, %heads.task/const_10) +onnx_graft.adapter="head:task"  // heads.task/Slice_1
          %heads.task/Concat_output = Concat(%heads.task/const_11, %heads.task/Slice_1_output) {axis = 0} +onnx_graft.adapter="head:task"  // heads.task/Concat
          %heads.task/Expand_output = Expand(%heads.task/Unsqueeze_output, %heads.task/Concat_output) +onnx_graft.adapter="head:task"  // heads.task/Expand
          %heads.task/GatherElements_output = GatherElements(%heads.task/Cast_output, %heads.task/Expand_output) {axis = 1} +onnx_graft.adapter="head:task"  // heads.task/GatherElements
          %heads.task/Squeeze_1_output = Squeeze(%heads.task/GatherElements_output, %heads.task/const_12) +onnx_graft.adapter="head:task"  // heads.task/Squeeze_1
          %heads.task/Transpose_output = Transpose(%heads.task.1.weight) {perm = [1, 0]} +onnx_graft.adapter="head:task"  // heads.task/Transpose
          %heads.task/MatMul_output = MatMul(%heads.task/Squeeze_1_output, %heads.task/Transpose_output) +onnx_graft.adapter="head:task"  // heads.task/MatMul
          %logits = Add(%heads.task/MatMul_output, %heads.task.1.bias) +onnx_graft.adapter="head:task"  // heads.task/Add_1
    "#,
    );
}

#[test]
fn the_last_position_needs_a_mask() {
    refuses(
        head(Pooling::Last, false),
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"onnx-graft VERSION\",\"adapters\":[],\"heads\":[{\"name\":\"task\",\"flexible\":{\"num_labels\":3,\"layers\":1,\"dropout_prob\":0.5,\"pooling\":\"last\",\"head_type\":\"classification\"}}]}"
        graph main(%x: f32[batch, seq, 2]) -> (%y: f32[batch, seq, 2])
          %y = Relu(%x)
        "#,
        "
        error[head]: `pooling` last needs the graph input `attention_mask`
          in pass head
    ",
    );
}

#[test]
fn a_graph_with_logits_is_refused() {
    refuses(
        head(Pooling::First, false),
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"onnx-graft VERSION\",\"adapters\":[],\"heads\":[{\"name\":\"task\",\"flexible\":{\"num_labels\":3,\"layers\":1,\"dropout_prob\":0.5,\"pooling\":\"first\",\"head_type\":\"classification\"}}]}"
        graph main(%x: f32[batch, 2]) -> (%logits: f32[batch, 2])
          %logits = Relu(%x)
        "#,
        "
        error[head]: the graph has a value `logits`: a head of its own
          in pass head
          help: train on that head's loss, or export the base model without a head
    ",
    );
}

#[test]
fn a_graph_without_hidden_states_is_refused() {
    refuses(
        head(Pooling::First, false),
        r#"
        opset "" 17
        graph main(%x: f32[batch, 2]) -> (%y: f32[batch, 2])
          %y = Relu(%x)
        "#,
        "
        error[head]: no output of the graph holds hidden states [batch, sequence, width]
          in pass head
          help: export the base model, whose output is `last_hidden_state`
    ",
    );
}
