use super::Inline;
use crate::rewrite::passes::testing::check;

const INLINE: Inline = Inline {
    without_cache: false,
    calls: true,
};

/// The branch that is taken stands in the place of the node, under its names; what it captures is read as it is.
#[test]
fn a_decided_branch_is_put_in_place() {
    check(
        INLINE,
        r#"
        opset "" 17
        graph main(%x: f32[2, 2]) -> (%y: f32[2, 2])
          init %w: f32[2, 2] = {1.0, 2.0, 3.0, 4.0}
          init %test: bool[] = {true}
          %y = If(%test)  // if
            .then_branch = graph then() -> (%z)
              init %local: f32[2] = {3.0, 4.0}
              %product = MatMul(%x, %w)  // /layers.0/MatMul
              %z = Add(%product, %local)  // /layers.0/Add
            .else_branch = graph else() -> (%x)
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[2, 2]) -> (%y: f32[2, 2])
          init %w: f32[2, 2] = {1.0, 2.0, 3.0, 4.0}
          init %test: bool[] = true
          init %local: f32[2] = {3.0, 4.0}
          %product = MatMul(%x, %w)  // /layers.0/MatMul
          %y = Add(%product, %local)  // /layers.0/Add
    "#,
    );
}

/// A branch that nothing decides stays.
#[test]
fn an_open_branch_stays() {
    const OPEN: &str = r#"
        opset "" 17
        graph main(%x: f32[2], %use_cache_branch: bool[1]) -> (%y: f32[2])
          %y = If(%use_cache_branch)  // if
            .then_branch = graph then() -> (%z)
              %z = Neg(%x)
            .else_branch = graph else() -> (%e)
              %e = Relu(%x)
        "#;
    check(INLINE, OPEN, OPEN);
}

/// Without a cache the switch goes, and so does the cache that only the other branch reads.
#[test]
fn a_switch_for_a_cache_is_off() {
    check(
        Inline {
            without_cache: true,
            calls: true,
        },
        r#"
        opset "" 17
        graph main(%x: f32[2], %past_key_values.0.key: f32[2], %use_cache_branch: bool[1]) -> (%y: f32[2])
          %y = If(%use_cache_branch)  // if
            .then_branch = graph then() -> (%z)
              %z = Add(%x, %past_key_values.0.key)
            .else_branch = graph else() -> (%e)
              %e = Relu(%x)  // relu
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[2]) -> (%y: f32[2])
          %y = Relu(%x)  // relu
    "#,
    );
}

/// Calls are replaced by the body, with the attributes of each call and under names of their own.
#[test]
fn calls_are_put_in_place() {
    check(
        INLINE,
        r#"
        opset "" 17
        opset "local" 1
        function local::Scaled(%a) -> (%b)
          opset "" 17
          %n = Neg(%a)  // neg
          %b = LeakyRelu(%n) {alpha = @alpha:1}  // relu
        graph main(%x: f32[2]) -> (%y: f32[2])
          %h = local::Scaled(%x) {alpha = 0.5}  // first
          %y = local::Scaled(%h) {alpha = 0.25}  // second
        "#,
        r#"
        opset "" 17
        opset "local" 1
        function local::Scaled(%a) -> (%b)
          opset "" 17
          %n = Neg(%a)  // neg
          %b = LeakyRelu(%n) {alpha = @alpha:1}  // relu
        graph main(%x: f32[2]) -> (%y: f32[2])
          %first/n = Neg(%x)  // first/neg
          %h = LeakyRelu(%first/n) {alpha = 0.5}  // first/relu
          %second/n = Neg(%h)  // second/neg
          %y = LeakyRelu(%second/n) {alpha = 0.25}  // second/relu
    "#,
    );
}

/// A call that does not say what the body refers to stays: the default is not known here.
#[test]
fn a_call_with_an_open_attribute_stays() {
    const OPEN: &str = r#"
        opset "" 17
        opset "local" 1
        function local::Scaled(%a) -> (%b)
          opset "" 17
          %b = LeakyRelu(%a) {alpha = @alpha:1}  // relu
        graph main(%x: f32[2]) -> (%y)
          %y = local::Scaled(%x)  // call
        "#;
    check(INLINE, OPEN, OPEN);
}

/// Functions that call each other twice, forty times over: their calls stay, and nothing takes long.
#[test]
fn what_would_unfold_without_end_stays() {
    let mut text = String::from("opset \"\" 17\nopset \"f\" 1\n");
    for i in 0..40 {
        let inner = match i {
            0 => "  %y = Relu(%x)\n".to_owned(),
            i => format!("  %m = f::L{0}(%x)\n  %y = f::L{0}(%m)\n", i - 1),
        };
        let body =
            format!("function f::L{i}(%x) -> (%y)\n  opset \"\" 17\n  opset \"f\" 1\n{inner}");
        text.push_str(&body);
    }
    text.push_str("graph main(%x: f32[2]) -> (%y: f32[2])\n  %y = f::L39(%x)\n");
    let model = crate::ir::text::parse(&text).unwrap();
    assert!(super::unfolded(&model) > 1 << 39);
    let model = crate::infer::Verified::check(model).unwrap();
    let done = crate::rewrite::Pipeline::new()
        .with(INLINE)
        .run(model)
        .unwrap();
    assert_eq!(done.model.model().graph.node_count(), 1);
}
