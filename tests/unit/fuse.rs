//! The native pipeline finds every block of real exports.

use onnx_graft::infer::Verified;
use onnx_graft::rewrite::Pipeline;
use onnx_graft::rewrite::passes::fuse::{Cleanup, FuseBlocks};
use std::collections::BTreeMap;
use std::path::Path;

fn fused(file: &str) -> BTreeMap<String, usize> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(file);
    let model = Verified::check(onnx_graft::onnx::open(path).unwrap()).unwrap();
    let out = Pipeline::new()
        .with(Cleanup)
        .with(FuseBlocks)
        .run(model)
        .unwrap();
    let g = &out.model.model().graph;
    let mut counts = BTreeMap::new();
    for n in g.nodes() {
        let op = &g.node(n).op;
        if &*op.domain == "onnx_graft" {
            *counts.entry(op.op_type.to_string()).or_insert(0) += 1;
        }
    }
    counts
}

#[track_caller]
fn check(file: &str, want: &[(&str, usize)]) {
    let want: BTreeMap<String, usize> = want.iter().map(|(k, v)| ((*k).to_owned(), *v)).collect();
    assert_eq!(fused(file), want, "{file}");
}

/// Two layers: four norms each and a final one, rotary for q and k, one attention core and one gated activation each.
const QWEN3: &[(&str, usize)] = &[
    ("Attention", 2),
    ("RMSNormalization", 9),
    ("RotaryEmbedding", 4),
    ("SwiGLU", 2),
];
/// The same without q-norm and k-norm.
const LLAMA: &[(&str, usize)] = &[
    ("Attention", 2),
    ("RMSNormalization", 5),
    ("RotaryEmbedding", 4),
    ("SwiGLU", 2),
];

#[test]
fn qwen3_from_dynamo() {
    check("qwen3/model.onnx", QWEN3);
}

#[test]
fn qwen3_from_torchscript() {
    check("qwen3/model.torchscript.onnx", QWEN3);
}

#[test]
fn llama_from_dynamo() {
    check("llama/model.onnx", LLAMA);
}

#[test]
fn llama_from_torchscript() {
    check("llama/model.torchscript.onnx", LLAMA);
}

#[test]
fn bert_from_dynamo() {
    let fused = [("Attention", 2), ("Gelu", 2), ("LayerNormalization", 5)];
    check("bert/model.onnx", &fused);
}

#[test]
fn qwen3_of_newer_transformers_and_optimum() {
    check("qwen3/extra/optimum.onnx", QWEN3);
}
