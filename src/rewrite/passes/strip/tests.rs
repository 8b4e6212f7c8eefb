use super::Strip;
use crate::rewrite::passes::testing::{check, refuses};

/// Two adapters, one behind the other.
const STACKED: &str = r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"adapters\":[{\"name\":\"a\",\"config\":{}},{\"name\":\"b\",\"config\":{}}]}"
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          init %w: f32[4, 4] = fill(0.5)
          init %a.scale: f32[4] = fill(0.5) +onnx_graft.adapter="a" +onnx_graft.param="trainable"
          init %b.scale: f32[4] = fill(0.5) +onnx_graft.adapter="b" +onnx_graft.param="trainable"
          %h = MatMul(%x, %w)  // linear
          %a.out = Mul(%h, %a.scale) +onnx_graft.adapter="a" +onnx_graft.replaces="h"  // a/scale
          %b.out = Mul(%a.out, %b.scale) +onnx_graft.adapter="b" +onnx_graft.replaces="a.out"  // b/scale
          %y = Relu(%b.out)  // relu
        "#;

fn strip(adapter: &str) -> Strip {
    Strip {
        adapter: Some(adapter.into()),
    }
}

#[test]
fn all_are_taken_out_and_the_base_is_left() {
    check(
        Strip::default(),
        STACKED,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          init %w: f32[4, 4] blake3:ef7b0a391c31c128
          %h = MatMul(%x, %w)  // linear
          %y = Relu(%h)  // relu
    "#,
    );
}

#[test]
fn one_is_taken_out_and_the_other_reads_what_it_read() {
    check(
        strip("a"),
        STACKED,
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"\",\"adapters\":[{\"name\":\"b\",\"config\":{}}]}"
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          init %w: f32[4, 4] blake3:ef7b0a391c31c128
          init %b.scale: f32[4] = {0.5, 0.5, 0.5, 0.5} +onnx_graft.adapter="b" +onnx_graft.param="trainable"
          %h = MatMul(%x, %w)  // linear
          %b.out = Mul(%h, %b.scale) +onnx_graft.adapter="b" +onnx_graft.replaces="h"  // b/scale
          %y = Relu(%b.out)  // relu
    "#,
    );
}

#[test]
fn the_last_one_gives_its_place_back() {
    check(
        strip("b"),
        STACKED,
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"tool\":\"\",\"adapters\":[{\"name\":\"a\",\"config\":{}}]}"
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          init %w: f32[4, 4] blake3:ef7b0a391c31c128
          init %a.scale: f32[4] = {0.5, 0.5, 0.5, 0.5} +onnx_graft.adapter="a" +onnx_graft.param="trainable"
          %h = MatMul(%x, %w)  // linear
          %a.out = Mul(%h, %a.scale) +onnx_graft.adapter="a" +onnx_graft.replaces="h"  // a/scale
          %y = Relu(%a.out)  // relu
    "#,
    );
}

#[test]
fn one_that_is_not_attached_is_refused() {
    refuses(
        strip("c"),
        STACKED,
        "
        error[adapter-missing]: no adapter `c` is attached to this model
          in pass strip
          the nearest one is `a`
          help: attached are: a, b
    ",
    );
}

#[test]
fn a_part_of_a_setup_is_refused() {
    refuses(
        strip("a"),
        r#"
        opset "" 17
        meta "onnx_graft.manifest" = "{\"adapters\":[{\"name\":\"a\",\"config\":{}},{\"name\":\"b\",\"config\":{}}],\"setups\":[{\"type\":\"MultiTask\",\"children\":[{\"type\":\"single\",\"children\":[\"a\"]},{\"type\":\"single\",\"children\":[\"b\"]}]}]}"
        graph main(%x: f32[batch, 4]) -> (%y: f32[batch, 4])
          %y = Relu(%x)
        "#,
        "
        error[adapter-bound]: `a` is a part of `MultiTask(a, b)`, which is one piece of the graph
          in pass strip
          help: strip all adapters, and attach again those that are to stay
    ",
    );
}
