use super::Recompute;
use crate::rewrite::passes::testing::{check, refuses};

/// Two stages of a residual stream, a loss, and of the backward pass what reads values of the forward pass.
const TRAINING: &str = r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%loss: f32[], %b.grad: f32[4, 4], %a.grad: f32[4, 4])
          init %a: f32[4, 4] = fill(0.5)
          init %b: f32[4, 4] = fill(0.5)
          %h1 = MatMul(%x, %a)  // layers.0/MatMul
          %act1 = Tanh(%h1)  // layers.0/Tanh
          %r1 = Add(%x, %act1)  // layers.0/Add
          %h2 = MatMul(%r1, %b)  // layers.1/MatMul
          %act2 = Tanh(%h2)  // layers.1/Tanh
          %r2 = Add(%r1, %act2)  // layers.1/Add
          %sum = ReduceMean(%r2) {keepdims = 0}  // loss/sum
          %loss = Abs(%sum)  // loss
          %square2 = Mul(%act2, %act2)  // gradient/square2
          %turned2 = Transpose(%r1) {perm = [1, 0]}  // gradient/turned2
          %b.grad = MatMul(%turned2, %square2)  // gradient/b
          %square1 = Mul(%act1, %act1)  // gradient/square1
          %both = Mul(%square1, %square2)  // gradient/both
          %turned1 = Transpose(%x) {perm = [1, 0]}  // gradient/turned1
          %a.grad = MatMul(%turned1, %both)  // gradient/a
        "#;

fn recompute(loss: &str) -> Recompute {
    Recompute {
        loss: loss.into(),
        wrt: vec!["a".into(), "b".into()],
    }
}

#[test]
fn the_inside_of_a_stage_is_computed_again_for_the_backward_pass() {
    check(
        recompute("loss"),
        TRAINING,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%loss: f32[], %b.grad: f32[4, 4], %a.grad: f32[4, 4])
          init %a: f32[4, 4] blake3:ef7b0a391c31c128
          init %b: f32[4, 4] blake3:ef7b0a391c31c128
          %h1 = MatMul(%x, %a)  // layers.0/MatMul
          %act1 = Tanh(%h1)  // layers.0/Tanh
          %r1 = Add(%x, %act1)  // layers.0/Add
          %h2 = MatMul(%r1, %b)  // layers.1/MatMul
          %act2 = Tanh(%h2)  // layers.1/Tanh
          %r2 = Add(%r1, %act2)  // layers.1/Add
          %sum = ReduceMean(%r2) {keepdims = 0}  // loss/sum
          %loss = Abs(%sum)  // loss
          %square2 = Mul(%act2, %act2)  // gradient/square2
          %turned2 = Transpose(%r1) {perm = [1, 0]}  // gradient/turned2
          %b.grad = MatMul(%turned2, %square2)  // gradient/b
          %turned1 = Transpose(%x) {perm = [1, 0]}  // gradient/turned1
          %recompute/MatMul_output = MatMul(%x, %a)  // recompute/MatMul
          %recompute/Tanh_output = Tanh(%recompute/MatMul_output)  // recompute/Tanh
          %square1 = Mul(%recompute/Tanh_output, %recompute/Tanh_output)  // gradient/square1
          %both = Mul(%square1, %square2)  // gradient/both
          %a.grad = MatMul(%turned1, %both)  // gradient/a
    "#,
    );
}

#[test]
fn a_graph_without_the_loss_is_refused() {
    refuses(
        recompute("nothing"),
        TRAINING,
        "
        error[recompute-loss]: the graph computes no value `nothing`
          in pass recompute
          help: append the loss and its gradients first
    ",
    );
}
