//! Work on graphs, by size: decode, infer, select, attach, write, compile. Weights are tiny, so that nodes are what costs.

#![allow(clippy::unwrap_used, reason = "a bench stops where something fails")]

#[expect(dead_code, reason = "shared with tests and examples")]
mod synth;

use divan::{Bencher, black_box};
use onnx_graft::adapters::{Adapter, Config, Setup};
use onnx_graft::onnx::{self, ExternalSource};
use onnx_graft::select::Interface;
use onnx_graft::{Attach, Picture, Verified, ir::Model};
use synth::{Shape, decoder, patterned};

/// Numbers of nodes, about.
const NODES: [usize; 3] = [1_000, 10_000, 40_000];

fn main() {
    divan::main();
}

fn model(nodes: usize) -> Model {
    decoder(Shape::tiny(nodes / 95), &mut patterned)
}

fn verified(nodes: usize) -> Verified {
    Verified::check(model(nodes)).unwrap()
}

fn adapter() -> Adapter {
    Adapter::fresh("a", Config::parse("lora").unwrap())
}

fn attached(model: Verified, interface: &Interface) -> Verified {
    let setup = Setup::Single("a".into());
    let adapted = Attach::to(model)
        .interface(interface)
        .adapters(vec![adapter()])
        .active(setup)
        .seed(0)
        .run();
    adapted.unwrap().model
}

#[divan::bench(args = NODES, sample_count = 10)]
fn load(bencher: Bencher<'_, '_>, nodes: usize) {
    let bytes = bytes::Bytes::from(onnx::to_bytes(&verified(nodes)).unwrap());
    bencher.bench_local(|| onnx::read(black_box(bytes.clone()), &ExternalSource::none()).unwrap());
}

#[divan::bench(args = NODES, sample_count = 10)]
fn infer(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = model(nodes);
    bencher
        .with_inputs(|| model.clone())
        .bench_local_values(|m| Verified::check(m).unwrap());
}

#[divan::bench(args = NODES, sample_count = 10)]
fn select(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = verified(nodes);
    let interface = Interface::resolve("qwen3").unwrap();
    bencher.bench_local(|| interface.select(black_box(&model)).unwrap());
}

#[divan::bench(args = NODES, sample_count = 10)]
fn attach(bencher: Bencher<'_, '_>, nodes: usize) {
    let model = verified(nodes);
    let interface = Interface::resolve("qwen3").unwrap();
    bencher
        .with_inputs(|| model.clone())
        .bench_local_values(|m| attached(m, &interface));
}

#[divan::bench(args = NODES, sample_count = 10)]
fn picture(bencher: Bencher<'_, '_>, nodes: usize) {
    let interface = Interface::resolve("qwen3").unwrap();
    let model = attached(verified(nodes), &interface);
    bencher.bench_local(|| Picture::of(black_box(&model), None).unwrap().svg());
}

#[divan::bench(args = NODES, sample_count = 10)]
fn write(bencher: Bencher<'_, '_>, nodes: usize) {
    let interface = Interface::resolve("qwen3").unwrap();
    let model = attached(verified(nodes), &interface);
    bencher.bench_local(|| onnx::to_bytes(black_box(&model)).unwrap());
}

#[cfg(feature = "runtime")]
#[divan::bench(args = NODES, sample_count = 10)]
fn compile(bencher: Bencher<'_, '_>, nodes: usize) {
    use onnx_graft::runtime::{CompileOptions, Plan};
    let interface = Interface::resolve("qwen3").unwrap();
    let model = attached(verified(nodes), &interface);
    let options = CompileOptions::default();
    bencher.bench_local(|| Plan::compile(black_box(&model), &options).unwrap());
}
