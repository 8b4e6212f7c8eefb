//! Work grows as the graph does: selecting, attaching and writing four times the layers takes about four times as long.

use super::synth::{Shape, decoder, patterned};
use onnx_graft::adapters::{Adapter, Config, Setup};
use onnx_graft::infer::Verified;
use onnx_graft::ir::TensorData;
use onnx_graft::select::Interface;
use onnx_graft::{api, onnx};
use std::time::{Duration, Instant};

/// Runs of each size; the fastest one counts, so that what else the machine does falls out.
const RUNS: usize = 5;

/// Linear work takes 4 times as long at 4 times the size, quadratic work 16 times. Between them, with room for caches.
const LIMIT: f64 = 8.0;

struct Times {
    verify: Duration,
    attach: Duration,
    write: Duration,
}

fn measure(layers: usize) -> Times {
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
    let mut best = [Duration::MAX; 3];
    for _ in 0..RUNS {
        let copy = model.clone();
        let started = Instant::now();
        let verified = Verified::check(copy).unwrap();
        best[0] = best[0].min(started.elapsed());

        let adapter = Adapter::fresh("a", Config::parse("lora|par_bn").unwrap());
        let setup = Setup::Single("a".into());
        let started = Instant::now();
        let adapted = api::attach(verified, &interface, vec![adapter], setup, 0, false).unwrap();
        best[1] = best[1].min(started.elapsed());
        assert_eq!(adapted.selection.layers.len(), layers);

        let started = Instant::now();
        let bytes = onnx::to_bytes(&adapted.model).unwrap();
        best[2] = best[2].min(started.elapsed());
        assert!(bytes.len() > layers * 1000);
    }
    let [verify, attach, write] = best;
    Times {
        verify,
        attach,
        write,
    }
}

#[test]
fn work_grows_as_the_graph_does() {
    let (one, four) = (measure(8), measure(32));
    for (what, a, b) in [
        ("inference", one.verify, four.verify),
        ("attaching", one.attach, four.attach),
        ("writing", one.write, four.write),
    ] {
        let factor = b.as_secs_f64() / a.as_secs_f64();
        println!("{what}: {a:?}, {b:?}: {factor:.1} times");
        assert!(
            factor < LIMIT,
            "{what} takes {a:?} for 8 layers and {b:?} for 32: {factor:.1} times as long"
        );
    }
}
