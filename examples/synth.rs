//! Writes a Qwen3-shaped decoder of any size: `cargo run --release --example synth -- OUT.onnx [LAYERS [VOCAB]]`.
//!
//! Widths are those of Qwen3-0.6B, weights are zeros. 28 layers and a vocabulary of 151936 make 3 GB of `f32`, in an external data file.

#[path = "../benches/synth.rs"]
#[expect(dead_code, reason = "shared with benches")]
mod synth;

use bytes::Bytes;
use onnx_graft::Verified;
use onnx_graft::ir::{DType, TensorData};
use onnx_graft::onnx::{SaveOptions, save};

fn main() -> onnx_graft::Result<()> {
    let mut args = std::env::args().skip(1);
    let out = args.next().unwrap_or_else(|| "synth.onnx".into());
    let mut number = |default: u64| args.next().and_then(|a| a.parse().ok()).unwrap_or(default);
    let (layers, vocab) = (number(2), number(1000));
    let shape = synth::Shape::qwen3_0_6b(layers as usize, vocab);
    // All tensors share one buffer of zeros.
    let largest = (vocab * shape.hidden).max(shape.hidden * shape.inner) * 4;
    let zeros = Bytes::from(vec![0u8; largest as usize]);
    let model = synth::decoder(shape, &mut |_, dims| {
        let len = dims.iter().product::<u64>() as usize * 4;
        TensorData::raw(DType::Float, dims, zeros.slice(..len))
    });
    let verified = Verified::check(model)?;
    let options = SaveOptions {
        force: true,
        ..SaveOptions::default()
    };
    let saved = save(&verified, out, options)?;
    let mut err = std::io::stderr().lock();
    let _ = std::io::Write::write_fmt(&mut err, format_args!("{saved:?}\n"));
    Ok(())
}
