use super::Join;
use crate::infer::Verified;
use crate::ir::text::parse;
use crate::rewrite::passes::testing::{check, refuses};

fn encoder(text: &str) -> Join {
    let encoder = Verified::check(parse(text).expect("text")).expect("an encoder");
    Join { encoder }
}

const ENCODER: &str = r#"
        opset "" 17
        graph main(%input_ids: i64[batch, sequence]) -> (%last_hidden_state: f32[batch, sequence, 2])
          init %embed_tokens.weight: f32[3, 2] = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
          %last_hidden_state = Gather(%embed_tokens.weight, %input_ids)  // /embed_tokens/Gather
        "#;

const DECODER: &str = r#"
        opset "" 17
        graph main(%input_ids: i64[batch, target], %encoder_hidden_states: f32[batch, source, 2]) -> (%logits: f32[batch, target, 2], %present.0.key: f32[batch, source, 2])
          init %embed_tokens.weight: f32[3, 2] = {0.5, 1.0, 2.0, 3.0, 4.0, 5.0}
          %own = Gather(%embed_tokens.weight, %input_ids)  // /model/decoder/embed_tokens/Gather
          %present.0.key = Relu(%encoder_hidden_states)  // /model/decoder/Relu
          %sum = ReduceMean(%present.0.key) {axes = [1]}  // /model/decoder/ReduceMean
          %logits = Add(%own, %sum)  // /model/decoder/Add
        "#;

/// The encoder stands in front, at the path that it has in the whole model; the decoder's tokens get the name that they have there.
#[test]
fn an_encoder_is_put_in_front_of_its_decoder() {
    check(
        encoder(ENCODER),
        DECODER,
        r#"
        opset "" 17
        graph main(%decoder_input_ids: i64[batch, target], %input_ids: i64[batch, sequence]) -> (%logits: f32[batch, target, 2])
          init %embed_tokens.weight: f32[3, 2] = {0.5, 1.0, 2.0, 3.0, 4.0, 5.0}
          init %model.encoder.embed_tokens.weight: f32[3, 2] = {0.0, 1.0, 2.0, 3.0, 4.0, 5.0}
          %last_hidden_state = Gather(%model.encoder.embed_tokens.weight, %input_ids)  // /model/encoder/embed_tokens/Gather
          %own = Gather(%embed_tokens.weight, %decoder_input_ids)  // /model/decoder/embed_tokens/Gather
          %present.0.key = Relu(%last_hidden_state)  // /model/decoder/Relu
          %sum = ReduceMean(%present.0.key) {axes = [1]}  // /model/decoder/ReduceMean
          %logits = Add(%own, %sum)  // /model/decoder/Add
    "#,
    );
}

#[test]
fn a_decoder_without_states_is_refused() {
    refuses(
        encoder(ENCODER),
        r#"
        opset "" 17
        graph main(%input_ids: i64[batch, target]) -> (%logits: f32[batch, target, 2])
          init %table: f32[3, 2] = {0.5, 1.0, 2.0, 3.0, 4.0, 5.0}
          %logits = Gather(%table, %input_ids)
        "#,
        r"
        error[join]: the decoder has no input `encoder_hidden_states`
          in pass join
          help: the files of one export are expected, as Optimum writes them; or export encoder and decoder as one graph
    ",
    );
}

#[test]
fn other_versions_are_refused() {
    refuses(
        encoder(&ENCODER.replace("opset \"\" 17", "opset \"\" 18")),
        DECODER,
        r"
        error[join]: the encoder imports ai.onnx 18 and the decoder 17
          in pass join
          help: the files of one export are expected, as Optimum writes them; or export encoder and decoder as one graph
    ",
    );
}
