use super::EarlyShapes;
use crate::rewrite::passes::testing::check;

#[test]
fn a_value_kept_for_its_shape_gives_it_early() {
    check(
        EarlyShapes,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%z: f32[batch, 4])
          init %to: i64[1] = {-1}
          %h = Relu(%x)  // relu
          %flat = Reshape(%h, %to)  // flatten
          %y = Exp(%flat)  // exp
          %shape = Shape(%h)  // late
          %z = Reshape(%y, %shape)  // back
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%z: f32[batch, 4])
          init %to: i64[1] = {-1}
          %h = Relu(%x)  // relu
          %shape/Shape_output = Shape(%h)  // shape/Shape
          %flat = Reshape(%h, %to)  // flatten
          %y = Exp(%flat)  // exp
          %z = Reshape(%y, %shape/Shape_output)  // back
    "#,
    );
}

#[test]
fn a_value_that_is_read_later_anyway_stays() {
    check(
        EarlyShapes,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%z)
          %h = Relu(%x)  // relu
          %y = Exp(%h)  // exp
          %shape = Shape(%h)  // shape
          %w = Reshape(%y, %shape)  // back
          %z = Add(%w, %h)  // add
        "#,
        r#"
        opset "" 17
        graph main(%x: f32[batch, 4]) -> (%z)
          %h = Relu(%x)  // relu
          %y = Exp(%h)  // exp
          %shape = Shape(%h)  // shape
          %w = Reshape(%y, %shape)  // back
          %z = Add(%w, %h)  // add
    "#,
    );
}
