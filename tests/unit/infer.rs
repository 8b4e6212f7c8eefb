//! Inference on real exports: every value has a type and a shape over the symbols of the graph inputs.
//!
//! `TorchScript` exports declare no inner types, so that all of it is followed through their shape arithmetic.

use onnx_graft::infer::Verified;
use std::path::{Path, PathBuf};

fn exports(folder: &Path, out: &mut Vec<PathBuf>) {
    let mut entries: Vec<PathBuf> = std::fs::read_dir(folder)
        .expect("a folder")
        .map(|e| e.expect("an entry").path())
        .collect();
    entries.sort();
    for path in entries {
        if path.is_dir() {
            exports(&path, out);
        } else if path.extension().is_some_and(|e| e == "onnx") {
            out.push(path);
        }
    }
}

#[test]
fn shapes_of_real_exports_are_known() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let mut found = Vec::new();
    exports(&root, &mut found);
    // What is made to show a feature of the format need not have known shapes.
    found.retain(|p| {
        !["onnx", "hostile"]
            .iter()
            .any(|f| p.starts_with(root.join(f)))
    });
    assert!(found.len() >= 15, "fixtures are missing: {found:?}");
    for path in found {
        let model = onnx_graft::onnx::open(&path).expect("it reads");
        let verified = match Verified::check(model) {
            Ok(v) => v,
            Err(r) => panic!("{}: {:#?}", path.display(), r.findings),
        };
        let g = &verified.model().graph;
        let vague: Vec<&str> = g
            .values()
            .filter(|v| {
                let fact = verified.fact(*v).cloned().unwrap_or_default();
                let fresh = |d: &onnx_graft::ir::Sym| d.symbols().any(|s| s.contains(['?', '#']));
                fact.dtype.is_none() || fact.dims.is_none_or(|d| d.iter().any(fresh))
            })
            .map(|v| g.name_of(v))
            .collect();
        assert!(vague.is_empty(), "{}: {vague:?}", path.display());
    }
}

#[test]
fn shapes_follow_the_inputs() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let shape = |file: &str, name: &str| {
        let model = onnx_graft::onnx::open(root.join(file)).expect("it reads");
        let verified = Verified::check(model)
            .map_err(|r| r.findings)
            .expect("it verifies");
        let id = verified.model().graph.find(name).expect("a value");
        let fact = verified.fact(id).expect("a fact");
        let dims = fact.dims.iter().flatten().map(ToString::to_string);
        dims.collect::<Vec<_>>().join(", ")
    };
    for (file, name, want) in [
        (
            "qwen3/model.torchscript.onnx",
            "/model/layers.1/self_attn/MatMul_output_0",
            "batch, 4, sequence, sequence",
        ),
        (
            "qwen3/model.torchscript.onnx",
            "/model/layers.1/self_attn/Reshape_7_output_0",
            "batch, sequence, 32",
        ),
        (
            "gpt2/model.torchscript.onnx",
            "/transformer/h.1/attn/Softmax_output_0",
            "batch, 4, sequence, sequence",
        ),
        (
            "t5/model.torchscript.onnx",
            "/decoder/block.1/layer.1/EncDecAttention/Softmax_output_0",
            "batch, 4, decoder_sequence, sequence",
        ),
    ] {
        assert_eq!(shape(file, name), want, "{name} of {file}");
    }
}
