use super::ChooseLogits;
use crate::rewrite::passes::testing::{check, refuses};

#[test]
fn the_hidden_state_is_cut_in_front_of_the_head() {
    check(
        ChooseLogits::default(),
        r#"
        opset "" 17
        graph main(%x: f32[batch, seq, 4]) -> (%logits: f32[batch, seq, 16])
          init %w: f32[4, 16] = fill(0.5)
          init %bias: f32[16] = fill(0.5)
          init %cap: f32[] = 30.0
          %h = Relu(%x)  // norm
          %product = MatMul(%h, %w)  // head
          %biased = Add(%product, %bias)  // bias
          %small = Div(%biased, %cap)  // cap/div
          %bent = Tanh(%small)  // cap/tanh
          %logits = Mul(%bent, %cap)  // cap/mul
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[batch, seq, 4], %logit_positions: i64[batch, chosen]) -> (%logits: f32[batch, chosen, 16])
          init %w: f32[4, 16] blake3:0f583d9684694fa4
          init %bias: f32[16] blake3:ef7b0a391c31c128
          init %cap: f32[] = 30.0
          init %chosen/const: i64[1] = {2}
          %h = Relu(%x)  // norm
          %chosen/Unsqueeze_output = Unsqueeze(%logit_positions, %chosen/const)  // chosen/Unsqueeze
          %chosen/GatherND_output = GatherND(%h, %chosen/Unsqueeze_output) {batch_dims = 1}  // chosen/GatherND
          %product = MatMul(%chosen/GatherND_output, %w)  // head
          %biased = Add(%product, %bias)  // bias
          %small = Div(%biased, %cap)  // cap/div
          %bent = Tanh(%small)  // cap/tanh
          %logits = Mul(%bent, %cap)  // cap/mul
    "#,
    );
}

#[test]
fn logits_that_mix_positions_are_cut_themselves() {
    check(
        ChooseLogits::default(),
        r#"
        opset "" 17
        graph main(%x: f32[batch, seq, 4]) -> (%logits: f32[batch, seq, 4])
          %logits = Softmax(%x) {axis = 1}  // mix
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[batch, seq, 4], %logit_positions: i64[batch, chosen]) -> (%logits: f32[batch, seq, 4])
          init %chosen/const: i64[1] = {2}
          %chosen/GatherND_output = Softmax(%x) {axis = 1}  // mix
          %chosen/Unsqueeze_output = Unsqueeze(%logit_positions, %chosen/const)  // chosen/Unsqueeze
          %logits = GatherND(%chosen/GatherND_output, %chosen/Unsqueeze_output) {batch_dims = 1}  // chosen/GatherND
    "#,
    );
}

#[test]
fn an_output_that_is_not_there_is_refused() {
    let pass = ChooseLogits {
        logits: Some("scores".into()),
    };
    refuses(
        pass,
        r#"
        opset "" 17
        graph main(%x: f32[batch, seq, 4]) -> (%logits: f32[batch, seq, 4])
          %logits = Relu(%x)
        "#,
        "
        error[logits]: the graph has no output `scores`
          in pass choose-logits
          help: its outputs are: logits
    ",
    );
}
