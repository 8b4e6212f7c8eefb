//! Attaches an adapter, prints what was adapted, and writes the model and the adapter's folder.
//!
//! ```sh
//! cargo run --example attach -- fixtures/qwen3/model.onnx 'lora[r=8,alpha=16]' target/demo/example
//! ```

#![allow(clippy::print_stdout, reason = "an example talks to a person")]

use onnx_graft::adapters::WriteOptions;
use onnx_graft::onnx::{SaveOptions, save};
use onnx_graft::{Attach, Result};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, spec, out] = args.as_slice() else {
        println!("usage: attach MODEL.onnx ADAPTER FOLDER");
        return Ok(());
    };
    let out = Path::new(out);
    std::fs::create_dir_all(out).map_err(|e| onnx_graft::Error::io(out, "cannot make it", e))?;

    // The interface is found by `config.json` beside the model, or inferred from the graph.
    let adapted = Attach::open(model)?.adapter(spec)?.seed(42).run()?;
    println!("{}", adapted.summary()?.table());

    // The base weights are not copied into memory: the written graph is the old one with new nodes and new tensors.
    save(
        &adapted.model,
        out.join("model.onnx"),
        SaveOptions::default(),
    )?;
    for (name, _) in adapted.manifest()? {
        let folder = adapted.folder(&name, &adapted.store())?;
        folder.write(&out.join(&name), WriteOptions::default())?;
    }
    Ok(())
}
