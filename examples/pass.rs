//! A pass of your own: the mean size of every layer's output becomes an output of the graph.
//!
//! ```sh
//! cargo run --example pass -- fixtures/qwen3/model.onnx
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to a person")]

use onnx_graft::ir::text;
use onnx_graft::{Interface, Pass, PassCx, PassError, Pipeline, Result};

/// Says how loud every layer is.
struct Loudness(Interface);

impl Pass for Loudness {
    fn name(&self) -> &'static str {
        "loudness"
    }

    fn run(&self, cx: &mut PassCx<'_>) -> std::result::Result<(), PassError> {
        let selection = self.0.select(cx.before())?;
        let mut patch = cx.patch("loudness of every layer", None);
        for layer in &selection.layers {
            let b = patch.builder();
            let size = b.reduce_mean(b.unary("Abs", layer.output), &[0, 1, 2], false);
            patch.add_output(size, &format!("loudness.{}", layer.index), None);
        }
        // All of it or nothing: a patch that does not fit leaves the model as it was.
        cx.commit(patch)?;
        Ok(())
    }
}

fn main() -> Result<()> {
    let Some(path) = std::env::args().nth(1) else {
        println!("usage: pass MODEL.onnx");
        return Ok(());
    };
    let model = onnx_graft::open(&path)?;
    let interface = onnx_graft::find_interface(&model, Some(path.as_ref()))?;
    let rewritten = Pipeline::new().with(Loudness(interface)).run(model)?;
    println!("{}", text::print(rewritten.model.model()));
    Ok(())
}
