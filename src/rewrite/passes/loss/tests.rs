use super::{Divisor, Loss, RowLoss};
use crate::rewrite::passes::testing::{check, refuses};

const LANGUAGE_MODEL: &str = r#"
        opset "" 17
        graph main(%h: f32[batch, seq, 4]) -> (%logits: f32[batch, seq, 16])
          init %w: f32[4, 16] = fill(0.5)
          %logits = MatMul(%h, %w)  // head
        "#;

const CLASSIFIER: &str = r#"
        opset "" 17
        graph main(%h: f32[batch, 4]) -> (%logits: f32[batch, 3])
          init %w: f32[4, 3] = fill(0.5)
          %logits = MatMul(%h, %w)  // head
        "#;

const HALF: &str = r#"
        opset "" 17
        graph main(%h: f16[batch, 4]) -> (%y: f16[batch, 3])
          init %w: f16[4, 3] = fill(0.5)
          %y = MatMul(%h, %w)  // head
        "#;

fn rows(kind: RowLoss, divisor: Divisor, smoothing: f64) -> Loss {
    Loss::Rows {
        kind,
        divisor,
        smoothing,
    }
}

#[test]
fn a_language_model_is_scored_against_the_next_token() {
    let loss = Loss::CausalLm {
        logits: None,
        divisor: Divisor::Labels,
    };
    check(
        loss,
        LANGUAGE_MODEL,
        r#"
        opset "" 17
        graph main(%h: f32[batch, seq, 4], %labels: i64[batch, seq]) -> (%logits: f32[batch, seq, 16], %loss: f32[])
          init %w: f32[4, 16] blake3:0f583d9684694fa4
          init %loss/const: i64[1] = {0}
          init %loss/const_1: i64[1] = {-1}
          init %loss/const_2: i64[1] = {1}
          init %loss/const_3: i64[2] = {-1, 16}
          init %loss/const_4: i64[1] = {1}
          init %loss/const_5: i64[1] = {9223372036854775807}
          init %loss/const_6: i64[1] = {1}
          init %loss/const_7: i64[1] = {-1}
          %logits = MatMul(%h, %w)  // head
          %loss/Slice_output = Slice(%logits, %loss/const, %loss/const_1, %loss/const_2)  // loss/Slice
          %loss/Reshape_output = Reshape(%loss/Slice_output, %loss/const_3)  // loss/Reshape
          %loss/Slice_1_output = Slice(%labels, %loss/const_4, %loss/const_5, %loss/const_6)  // loss/Slice_1
          %loss/Reshape_1_output = Reshape(%loss/Slice_1_output, %loss/const_7)  // loss/Reshape_1
          %loss = SoftmaxCrossEntropyLoss(%loss/Reshape_output, %loss/Reshape_1_output) {ignore_index = -100, reduction = "mean"}  // loss/SoftmaxCrossEntropyLoss
    "#,
    );
}

#[test]
fn the_divisor_may_be_an_input() {
    let loss = Loss::CausalLm {
        logits: Some("logits".into()),
        divisor: Divisor::Input,
    };
    check(
        loss,
        LANGUAGE_MODEL,
        r#"
        opset "" 17
        graph main(%h: f32[batch, seq, 4], %labels: i64[batch, seq], %num_items: f32[]) -> (%logits: f32[batch, seq, 16], %loss: f32[])
          init %w: f32[4, 16] blake3:0f583d9684694fa4
          init %loss/const: i64[1] = {0}
          init %loss/const_1: i64[1] = {-1}
          init %loss/const_2: i64[1] = {1}
          init %loss/const_3: i64[2] = {-1, 16}
          init %loss/const_4: i64[1] = {1}
          init %loss/const_5: i64[1] = {9223372036854775807}
          init %loss/const_6: i64[1] = {1}
          init %loss/const_7: i64[1] = {-1}
          %logits = MatMul(%h, %w)  // head
          %loss/Slice_output = Slice(%logits, %loss/const, %loss/const_1, %loss/const_2)  // loss/Slice
          %loss/Reshape_output = Reshape(%loss/Slice_output, %loss/const_3)  // loss/Reshape
          %loss/Slice_1_output = Slice(%labels, %loss/const_4, %loss/const_5, %loss/const_6)  // loss/Slice_1
          %loss/Reshape_1_output = Reshape(%loss/Slice_1_output, %loss/const_7)  // loss/Reshape_1
          %loss/SoftmaxCrossEntropyLoss_output = SoftmaxCrossEntropyLoss(%loss/Reshape_output, %loss/Reshape_1_output) {ignore_index = -100, reduction = "sum"}  // loss/SoftmaxCrossEntropyLoss
          %loss = Div(%loss/SoftmaxCrossEntropyLoss_output, %num_items)  // loss/Div
    "#,
    );
}

#[test]
fn a_decoder_is_scored_in_place_and_a_part_of_the_target_spread() {
    let loss = Loss::Tokens {
        shift: false,
        divisor: Divisor::Labels,
        smoothing: 0.1,
    };
    check(
        loss,
        LANGUAGE_MODEL,
        r#"
        opset "" 17
        graph main(%h: f32[batch, seq, 4], %labels: i64[batch, seq]) -> (%logits: f32[batch, seq, 16], %loss: f32[])
          init %w: f32[4, 16] blake3:0f583d9684694fa4
          init %loss/const: i64[2] = {-1, 16}
          init %loss/const_1: i64[1] = {-1}
          init %loss/const_2: i64[] = -100
          init %loss/const_3: f32[] = 0.0
          init %loss/const_4: i64[1] = {0}
          init %loss/const_5: f32[] = 1.0
          init %loss/const_6: i64[1] = {0}
          init %loss/const_7: f32[] = 0.9
          init %loss/const_8: f32[] = 0.1
          %logits = MatMul(%h, %w)  // head
          %loss/Reshape_output = Reshape(%logits, %loss/const)  // loss/Reshape
          %loss/Reshape_1_output = Reshape(%labels, %loss/const_1)  // loss/Reshape_1
          %loss/SoftmaxCrossEntropyLoss_output = SoftmaxCrossEntropyLoss(%loss/Reshape_output, %loss/Reshape_1_output) {ignore_index = -100, reduction = "mean"}  // loss/SoftmaxCrossEntropyLoss
          %loss/LogSoftmax_output = LogSoftmax(%loss/Reshape_output) {axis = -1}  // loss/LogSoftmax
          %loss/ReduceMean_output = ReduceMean(%loss/LogSoftmax_output) {axes = [-1], keepdims = 0}  // loss/ReduceMean
          %loss/Neg_output = Neg(%loss/ReduceMean_output)  // loss/Neg
          %loss/Equal_output = Equal(%loss/Reshape_1_output, %loss/const_2)  // loss/Equal
          %loss/Where_output = Where(%loss/Equal_output, %loss/const_3, %loss/Neg_output)  // loss/Where
          %loss/ReduceSum_output = ReduceSum(%loss/Where_output, %loss/const_4) {keepdims = 0}  // loss/ReduceSum
          %loss/Where_1_output = Where(%loss/Equal_output, %loss/const_3, %loss/const_5)  // loss/Where_1
          %loss/ReduceSum_1_output = ReduceSum(%loss/Where_1_output, %loss/const_6) {keepdims = 0}  // loss/ReduceSum_1
          %loss/Div_output = Div(%loss/ReduceSum_output, %loss/ReduceSum_1_output)  // loss/Div
          %loss/Mul_output = Mul(%loss/SoftmaxCrossEntropyLoss_output, %loss/const_7)  // loss/Mul
          %loss/Mul_1_output = Mul(%loss/Div_output, %loss/const_8)  // loss/Mul_1
          %loss = Add(%loss/Mul_output, %loss/Mul_1_output)  // loss/Add
    "#,
    );
}

#[test]
fn classes() {
    let loss = rows(RowLoss::Classification, Divisor::Labels, 0.0);
    check(
        loss,
        CLASSIFIER,
        r#"
        opset "" 17
        graph main(%h: f32[batch, 4], %labels: i64[batch]) -> (%logits: f32[batch, 3], %loss: f32[])
          init %w: f32[4, 3] blake3:084706f38b5c8803
          %logits = MatMul(%h, %w)  // head
          %loss = SoftmaxCrossEntropyLoss(%logits, %labels) {ignore_index = -100, reduction = "mean"}  // loss/SoftmaxCrossEntropyLoss
    "#,
    );
}

#[test]
fn several_labels() {
    let loss = rows(RowLoss::MultiLabel, Divisor::Labels, 0.0);
    check(
        loss,
        CLASSIFIER,
        r#"
        opset "" 17
        graph main(%h: f32[batch, 4], %labels: f32[batch, 3]) -> (%logits: f32[batch, 3], %loss: f32[])
          init %w: f32[4, 3] blake3:084706f38b5c8803
          %logits = MatMul(%h, %w)  // head
          %loss/Softplus_output = Softplus(%logits)  // loss/Softplus
          %loss/Mul_output = Mul(%logits, %labels)  // loss/Mul
          %loss/Sub_output = Sub(%loss/Softplus_output, %loss/Mul_output)  // loss/Sub
          %loss = ReduceMean(%loss/Sub_output) {axes = [0, 1], keepdims = 0}  // loss/ReduceMean
    "#,
    );
}

#[test]
fn numbers() {
    let loss = rows(RowLoss::Regression, Divisor::Input, 0.0);
    check(
        loss,
        CLASSIFIER,
        r#"
        opset "" 17
        graph main(%h: f32[batch, 4], %labels: f32[batch, 3], %num_items: f32[]) -> (%logits: f32[batch, 3], %loss: f32[])
          init %w: f32[4, 3] blake3:084706f38b5c8803
          init %loss/const: i64[2] = {0, 1}
          %logits = MatMul(%h, %w)  // head
          %loss/Sub_output = Sub(%logits, %labels)  // loss/Sub
          %loss/Mul_output = Mul(%loss/Sub_output, %loss/Sub_output)  // loss/Mul
          %loss/ReduceSum_output = ReduceSum(%loss/Mul_output, %loss/const) {keepdims = 0}  // loss/ReduceSum
          %loss = Div(%loss/ReduceSum_output, %num_items)  // loss/Div
    "#,
    );
}

#[test]
fn squares_are_computed_in_f32() {
    check(
        Loss::Mse { output: None },
        HALF,
        r#"
        opset "" 17
        graph main(%h: f16[batch, 4], %target: f32[batch, 3]) -> (%y: f16[batch, 3], %loss: f32[])
          init %w: f16[4, 3] blake3:0eff1be08c1566ac
          %y = MatMul(%h, %w)  // head
          %loss/Cast_output = Cast(%y) {to = 1}  // loss/Cast
          %loss/Sub_output = Sub(%loss/Cast_output, %target)  // loss/Sub
          %loss/Mul_output = Mul(%loss/Sub_output, %loss/Sub_output)  // loss/Mul
          %loss = ReduceMean(%loss/Mul_output) {keepdims = 0}  // loss/ReduceMean
    "#,
    );
}

#[test]
fn a_scalar_of_the_graph_is_published() {
    check(
        Loss::Named("mean".into()),
        r#"
        opset "" 17
        graph main(%x: f32[batch]) -> (%y: f32[batch])
          %y = Relu(%x)
          %mean = ReduceMean(%y) {keepdims = 0}
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[batch]) -> (%y: f32[batch], %loss: f32[])
          %y = Relu(%x)
          %mean = ReduceMean(%y) {keepdims = 0}
          %loss = Identity(%mean)  // loss/Identity
    "#,
    );
}

#[test]
fn a_second_loss_is_refused() {
    refuses(
        Loss::Mse { output: None },
        r#"
        opset "" 17
        graph main(%x: f32[batch]) -> (%loss: f32[])
          %loss = ReduceMean(%x) {keepdims = 0}
        "#,
        "
        error[loss-name]: the graph has a value `loss` already
          in pass loss
          help: use it as the loss by name: `loss`
    ",
    );
}

#[test]
fn logits_of_another_rank_are_refused() {
    let loss = Loss::CausalLm {
        logits: None,
        divisor: Divisor::Labels,
    };
    refuses(
        loss,
        CLASSIFIER,
        "
        error[loss-shape]: `logits` has rank 2; a language-model loss needs [batch, seq, vocab]
          in pass loss
          help: name the logits, or choose another loss
    ",
    );
    let loss = rows(RowLoss::Classification, Divisor::Labels, 0.0);
    refuses(
        loss,
        LANGUAGE_MODEL,
        "
        error[loss-shape]: `logits` has rank 3; a loss of whole examples needs [batch, labels]
          in pass loss
          help: a base model needs a prediction head; a language model's loss is causal-lm
    ",
    );
}

#[test]
fn a_value_that_is_no_number_is_refused() {
    refuses(
        Loss::Named("logits".into()),
        CLASSIFIER,
        "
        error[loss-shape]: `logits` has shape [batch, 3]; a loss is one number
          in pass loss
    ",
    );
    refuses(
        Loss::Named("logit".into()),
        CLASSIFIER,
        "
        error[loss-value]: no value `logit` in the graph
          in pass loss
          help: did you mean `logits`?
    ",
    );
}

#[test]
fn an_input_of_another_type_is_refused() {
    refuses(
        rows(RowLoss::Classification, Divisor::Labels, 0.0),
        r#"
        opset "" 17
        graph main(%logits: f32[batch, 3], %labels: f32[batch]) -> (%y)
          %y = Relu(%logits)
        "#,
        "
        error[loss-input]: the input `labels` is f32; the loss needs i64[batch]
          in pass loss
    ",
    );
}
