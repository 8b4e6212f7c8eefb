//! Work grows as the graph does: selecting, attaching and writing four times the layers looks at about four times as many nodes, values
//! and edges.

use super::synth::{Shape, decoder, patterned};
use onnx_graft::adapters::{Adapter, Config, Setup};
use onnx_graft::infer::Verified;
use onnx_graft::ir::{TensorData, looks};
use onnx_graft::select::Interface;
use onnx_graft::{Attach, onnx};

/// Linear work is 4 times as much at 4 times the size, quadratic work 16 times. What does not grow makes it less, logarithms make it
/// a little more.
const LIMIT: f64 = 4.4;

/// How often verifying, attaching and writing look at the graph.
fn work(layers: usize) -> [u64; 3] {
    // All layers share their weights: the graph grows, not the payload.
    let mut made: Vec<(Vec<u64>, TensorData)> = Vec::new();
    let mut weight = |name: &str, dims: &[u64]| {
        if let Some((_, t)) = made.iter().find(|(d, _)| d == dims) {
            return t.clone();
        }
        let tensor = patterned(name, dims);
        made.push((dims.to_vec(), tensor.clone()));
        tensor
    };
    let model = decoder(Shape::tiny(layers), &mut weight);
    let interface = Interface::resolve("qwen3").unwrap();
    let (verified, verifying) = looks::count(|| Verified::check(model).unwrap());
    let adapter = Adapter::fresh("a", Config::parse("lora|par_bn").unwrap());
    let setup = Setup::Single("a".into());
    let (adapted, attaching) = looks::count(|| {
        Attach::to(verified)
            .interface(&interface)
            .adapters(vec![adapter])
            .active(setup)
            .seed(0)
            .run()
            .unwrap()
    });
    assert_eq!(adapted.selection.layers.len(), layers);
    let (bytes, writing) = looks::count(|| onnx::to_bytes(&adapted.model).unwrap());
    assert!(bytes.len() > layers * 1000);
    [verifying, attaching, writing]
}

#[test]
fn work_grows_as_the_graph_does() {
    let (one, four) = (work(8), work(32));
    for ((what, a), b) in ["verifying", "attaching", "writing"]
        .into_iter()
        .zip(one)
        .zip(four)
    {
        let factor = b as f64 / a as f64;
        assert!(
            a > 0 && factor < LIMIT,
            "{what}: {a} and {b} look-ups, {factor:.2} times as many"
        );
    }
}
