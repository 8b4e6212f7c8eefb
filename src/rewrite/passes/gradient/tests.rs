use super::{GradientPass, Outputs, Unreached};
use crate::rewrite::passes::testing::{check, refuses};

fn gradient(wrt: &[&str], outputs: Outputs) -> GradientPass {
    GradientPass {
        loss: "loss".into(),
        wrt: wrt.iter().map(|w| (*w).into()).collect(),
        outputs,
        unreached: Unreached::Refuse,
    }
}

#[test]
fn a_frozen_operand_gets_no_gradient() {
    check(
        gradient(&["a"], Outputs::Keep),
        r#"
        opset "" 17
        graph main(%x: f32[2, 4]) -> (%y: f32[2, 3])
          init %w: f32[4, 8] = fill(0.5)
          init %a: f32[8, 3] = fill(0.5)
          %h = MatMul(%x, %w)  // frozen
          %y = MatMul(%h, %a)  // trained
          %loss = ReduceMean(%y) {keepdims = 0}  // loss
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[2, 4]) -> (%y: f32[2, 3], %loss: f32[], %grad/a: f32[8, 3])
          init %w: f32[4, 8] blake3:30d34cc24afbfa52
          init %a: f32[8, 3] blake3:ba1ef1c43088d294
          init %grad/const: f32[] = 1.0
          init %grad/loss/const: i64[2] = {0, 1}
          init %grad/loss/const_1: f32[] = 0.16666667
          init %grad/loss/const_2: i64[2] = {2, 3}
          %h = MatMul(%x, %w)  // frozen
          %y = MatMul(%h, %a)  // trained
          %loss = ReduceMean(%y) {keepdims = 0}  // loss
          %grad/loss/Unsqueeze_output = Unsqueeze(%grad/const, %grad/loss/const)  // grad/loss/Unsqueeze
          %grad/loss/Mul_output = Mul(%grad/loss/Unsqueeze_output, %grad/loss/const_1)  // grad/loss/Mul
          %grad/loss/Expand_output = Expand(%grad/loss/Mul_output, %grad/loss/const_2)  // grad/loss/Expand
          %grad/trained/Transpose_output = Transpose(%h) {perm = [1, 0]}  // grad/trained/Transpose
          %grad/a = MatMul(%grad/trained/Transpose_output, %grad/loss/Expand_output)  // grad/trained/MatMul
    "#,
    );
}

#[test]
fn what_arrives_on_several_ways_is_added() {
    check(
        gradient(&["x"], Outputs::Drop),
        r#"
        opset "" 17
        graph main(%x: f32[2]) -> (%y: f32[2])
          %r = Relu(%x)  // relu
          %y = Mul(%r, %x)  // gate
          %loss = ReduceSum(%y) {keepdims = 0}  // loss
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[2]) -> (%loss: f32[], %grad/x: f32[2])
          init %grad/const: f32[] = 1.0
          init %grad/loss/const: i64[1] = {0}
          init %grad/loss/const_1: i64[1] = {2}
          init %grad/relu/const: f32[] = 0.0
          init %grad/relu/const_1: f32[] = 0.0
          %r = Relu(%x)  // relu
          %y = Mul(%r, %x)  // gate
          %loss = ReduceSum(%y) {keepdims = 0}  // loss
          %grad/loss/Unsqueeze_output = Unsqueeze(%grad/const, %grad/loss/const)  // grad/loss/Unsqueeze
          %grad/loss/Expand_output = Expand(%grad/loss/Unsqueeze_output, %grad/loss/const_1)  // grad/loss/Expand
          %grad/gate/Mul_output = Mul(%grad/loss/Expand_output, %x)  // grad/gate/Mul
          %grad/gate/Mul_1_output = Mul(%grad/loss/Expand_output, %r)  // grad/gate/Mul_1
          %grad/relu/Greater_output = Greater(%r, %grad/relu/const)  // grad/relu/Greater
          %grad/relu/Where_output = Where(%grad/relu/Greater_output, %grad/gate/Mul_output, %grad/relu/const_1)  // grad/relu/Where
          %grad/x = Add(%grad/gate/Mul_1_output, %grad/relu/Where_output)  // grad/relu/Add
    "#,
    );
}

#[test]
fn one_gradient_of_two_values_is_two_outputs() {
    check(
        gradient(&["a", "b"], Outputs::Drop),
        r#"
        opset "" 17
        graph main(%a: f32[2], %b: f32[2]) -> (%loss: f32[])
          %y = Add(%a, %b)  // sum
          %loss = ReduceSum(%y) {keepdims = 0}  // loss
        "#,
        r#"
        opset "" 17
        graph main(%a: f32[2], %b: f32[2]) -> (%loss: f32[], %grad/a: f32[2], %grad/b: f32[2])
          init %grad/const: f32[] = 1.0
          init %grad/loss/const: i64[1] = {0}
          init %grad/loss/const_1: i64[1] = {2}
          %y = Add(%a, %b)  // sum
          %loss = ReduceSum(%y) {keepdims = 0}  // loss
          %grad/loss/Unsqueeze_output = Unsqueeze(%grad/const, %grad/loss/const)  // grad/loss/Unsqueeze
          %grad/a = Expand(%grad/loss/Unsqueeze_output, %grad/loss/const_1)  // grad/loss/Expand
          %grad/b = Identity(%grad/a)  // grad/b/Identity
    "#,
    );
}

#[test]
fn what_was_broadcast_is_summed() {
    check(
        gradient(&["bias"], Outputs::Drop),
        r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%loss: f32[])
          init %bias: f32[4] = fill(0.0)
          %y = Add(%x, %bias)  // bias
          %loss = ReduceSum(%y) {keepdims = 0}  // loss
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%loss: f32[], %grad/bias: f32[4])
          init %bias: f32[4] = {0.0, 0.0, 0.0, 0.0}
          init %grad/const: f32[] = 1.0
          init %grad/loss/const: i64[2] = {0, 1}
          init %grad/bias/const: i64[1] = {0}
          %y = Add(%x, %bias)  // bias
          %loss = ReduceSum(%y) {keepdims = 0}  // loss
          %grad/loss/Unsqueeze_output = Unsqueeze(%grad/const, %grad/loss/const)  // grad/loss/Unsqueeze
          %grad/loss/Shape_output = Shape(%y)  // grad/loss/Shape
          %grad/loss/Expand_output = Expand(%grad/loss/Unsqueeze_output, %grad/loss/Shape_output)  // grad/loss/Expand
          %grad/bias = ReduceSum(%grad/loss/Expand_output, %grad/bias/const) {keepdims = 0}  // grad/bias/ReduceSum
    "#,
    );
}

#[test]
fn a_composite_on_the_way_is_replaced_by_its_definition() {
    check(
        gradient(&["bias"], Outputs::Drop),
        r#"
        opset "" 20
        opset "com.microsoft" 1
        graph main(%x: f32[2]) -> (%loss: f32[])
          init %bias: f32[2] = fill(0.0)
          %y = com.microsoft::BiasGelu(%x, %bias)  // act
          %loss = ReduceSum(%y) {keepdims = 0}  // loss
        "#,
        r#"
        opset "" 20
        opset "com.microsoft" 1
        graph main(%x: f32[2]) -> (%loss: f32[], %grad/bias: f32[2])
          init %bias: f32[2] = {0.0, 0.0}
          init %grad/const: f32[] = 1.0
          init %grad/loss/const: i64[1] = {0}
          init %grad/loss/const_1: i64[1] = {2}
          init %grad/act/Gelu/const: f32[] = 0.70710677
          init %grad/act/Gelu/const_1: f32[] = 0.5
          init %grad/act/Gelu/const_2: f32[] = 0.5
          init %grad/act/Gelu/const_3: f32[] = -0.5
          init %grad/act/Gelu/const_4: f32[] = 0.3989423
          %act/Add_output = Add(%x, %bias) +onnx_graft.definition="com.microsoft::BiasGelu"  // act/Add
          %y = Gelu(%act/Add_output) {approximate = "none"} +onnx_graft.definition="com.microsoft::BiasGelu"  // act/Gelu
          %loss = ReduceSum(%y) {keepdims = 0}  // loss
          %grad/loss/Unsqueeze_output = Unsqueeze(%grad/const, %grad/loss/const)  // grad/loss/Unsqueeze
          %grad/loss/Expand_output = Expand(%grad/loss/Unsqueeze_output, %grad/loss/const_1)  // grad/loss/Expand
          %grad/act/Gelu/Mul_output = Mul(%act/Add_output, %grad/act/Gelu/const)  // grad/act/Gelu/Mul
          %grad/act/Gelu/Erf_output = Erf(%grad/act/Gelu/Mul_output)  // grad/act/Gelu/Erf
          %grad/act/Gelu/Mul_1_output = Mul(%grad/act/Gelu/Erf_output, %grad/act/Gelu/const_1)  // grad/act/Gelu/Mul_1
          %grad/act/Gelu/Add_output = Add(%grad/act/Gelu/Mul_1_output, %grad/act/Gelu/const_2)  // grad/act/Gelu/Add
          %grad/act/Gelu/Mul_2_output = Mul(%act/Add_output, %act/Add_output)  // grad/act/Gelu/Mul_2
          %grad/act/Gelu/Mul_3_output = Mul(%grad/act/Gelu/Mul_2_output, %grad/act/Gelu/const_3)  // grad/act/Gelu/Mul_3
          %grad/act/Gelu/Exp_output = Exp(%grad/act/Gelu/Mul_3_output)  // grad/act/Gelu/Exp
          %grad/act/Gelu/Mul_4_output = Mul(%grad/act/Gelu/Exp_output, %grad/act/Gelu/const_4)  // grad/act/Gelu/Mul_4
          %grad/act/Gelu/Mul_5_output = Mul(%act/Add_output, %grad/act/Gelu/Mul_4_output)  // grad/act/Gelu/Mul_5
          %grad/act/Gelu/Add_1_output = Add(%grad/act/Gelu/Add_output, %grad/act/Gelu/Mul_5_output)  // grad/act/Gelu/Add_1
          %grad/bias = Mul(%grad/loss/Expand_output, %grad/act/Gelu/Add_1_output)  // grad/act/Gelu/Mul_6
    "#,
    );
}

#[test]
fn an_operator_without_a_rule_is_named_with_the_way() {
    refuses(
        gradient(&["w"], Outputs::Drop),
        r#"
        opset "" 17
        graph main(%x: f32[2, 8, 8]) -> (%loss: f32[])
          init %w: f32[1] = fill(0.5)
          %h = Mul(%x, %w)  // scale
          %p = Det(%h)  // size
          %loss = ReduceMean(%p) {keepdims = 0}  // loss
        "#,
        "
        error[gradient-no-rule]: Det has no gradient rule, and lies between `w` and `loss`
          in pass gradient, size
          nodes: size
          help: train parameters behind this operator only, or export the model without it
    ",
    );
}

#[test]
fn a_value_that_the_loss_does_not_depend_on_is_named() {
    refuses(
        gradient(&["w", "other"], Outputs::Drop),
        r#"
        opset "" 17
        graph main(%x: f32[2]) -> (%loss: f32[])
          init %w: f32[2] = fill(0.5)
          init %other: f32[2] = fill(0.5)
          %y = Mul(%x, %w)
          %loss = ReduceSum(%y) {keepdims = 0}
        "#,
        "
        error[gradient-none]: `other` gets no gradient: `loss` does not depend on it
          in pass gradient
          help: choose another loss, or leave this value out of the trainable ones
    ",
    );
}

#[test]
fn names_are_checked_together() {
    refuses(
        GradientPass {
            loss: "los".into(),
            wrt: vec!["ww".into()],
            outputs: Outputs::Keep,
            unreached: Unreached::Refuse,
        },
        r#"
        opset "" 17
        graph main(%x: f32[2]) -> (%loss: f32[])
          init %w: f32[2] = fill(0.5)
          %y = Mul(%x, %w)
          %loss = ReduceSum(%y) {keepdims = 0}
        "#,
        "
        error[gradient-name]: no value `los` for the loss
          in pass gradient
          help: did you mean `loss`?
        error[gradient-name]: no value `ww` for the gradient
          in pass gradient
          help: did you mean `w`?
    ",
    );
}

#[test]
fn a_loss_is_one_number_of_floating_point() {
    refuses(
        gradient(&["n"], Outputs::Keep),
        r#"
        opset "" 17
        graph main(%x: f32[2], %n: i64[2]) -> (%loss: f32[2])
          %f = Cast(%n) {to = 1}
          %loss = Mul(%x, %f)
        "#,
        "
        error[gradient-loss]: the loss `loss` has shape [2], not one element
          in pass gradient
          help: reduce it to a scalar, for example with ReduceMean
        error[gradient-type]: `n` is i64, which has no gradient
          in pass gradient
    ",
    );
}

#[test]
fn old_opsets_are_refused() {
    refuses(
        gradient(&["x"], Outputs::Keep),
        r#"
        opset "" 12
        graph main(%x: f32[2]) -> (%loss: f32[])
          %loss = ReduceSum(%x) {keepdims = 0}
        "#,
        "
        error[gradient-opset]: the model imports opset 12; gradients need 13 or later
          in pass gradient
          help: export the model with a newer opset (`opset_version=17`), or convert it: `onnx.version_converter.convert_version(model, 17)`
    ",
    );
}
