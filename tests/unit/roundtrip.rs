//! The law of the wire layer: `decode(write(read(b))) == decode(b)`, and no input panics.

use bytes::Bytes;
use onnx_graft::infer::Verified;
use onnx_graft::ir::{diff, text};
use onnx_graft::onnx::{self, ExternalSource, proto::ModelProto};
use proptest::prelude::*;
use prost::Message;
use std::path::{Path, PathBuf};

fn fixtures() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx");
    let mut found: Vec<PathBuf> = std::fs::read_dir(folder)
        .unwrap()
        .map(|f| f.unwrap().path())
        .filter(|p| p.extension().is_some_and(|e| e == "onnx"))
        .collect();
    found.sort();
    assert!(found.len() >= 8, "{found:?}");
    found
}

fn verified(model: onnx_graft::ir::Model) -> Verified {
    Verified::check(model).map_err(|r| r.findings).unwrap()
}

/// The message in prost's own encoding: equal for equal messages, also where they hold NaN.
fn canonical(bytes: &[u8]) -> Vec<u8> {
    ModelProto::decode(bytes).unwrap().encode_to_vec()
}

/// Every fixture, or the models named by `ONNX_ROUNDTRIP` (separated by spaces).
fn models() -> Vec<PathBuf> {
    match std::env::var("ONNX_ROUNDTRIP") {
        Ok(list) => list.split_whitespace().map(PathBuf::from).collect(),
        Err(_) => fixtures(),
    }
}

#[test]
fn printed_models_parse_and_print_the_same() {
    for path in models() {
        let text = text::print(&onnx::open(&path).unwrap());
        let again = text::parse(&text).unwrap();
        assert!(text::print(&again) == text, "{} differs", path.display());
    }
}

#[test]
fn a_model_does_not_differ_from_itself() {
    for path in models() {
        let open = || onnx::open(&path).unwrap();
        let found = diff::diff(&open(), &open(), &|_, _| String::new());
        assert!(found.is_empty(), "{}: {found}", path.display());
    }
}

#[test]
fn written_models_decode_to_what_was_read() {
    for path in models() {
        let bytes = std::fs::read(&path).unwrap();
        let model = onnx::open(&path).unwrap();
        let written = onnx::to_bytes(&verified(model)).unwrap();
        assert!(
            canonical(&written) == canonical(&bytes),
            "{} differs",
            path.display()
        );
        let again = onnx::read(written.clone().into(), &ExternalSource::none()).unwrap();
        assert!(
            onnx::to_bytes(&verified(again)).unwrap() == written,
            "{} is not stable",
            path.display()
        );
    }
}

#[test]
fn no_prefix_of_a_model_panics() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/onnx");
    for name in ["storage.onnx", "control_flow.onnx", "function.onnx"] {
        let bytes = Bytes::from(std::fs::read(path.join(name)).unwrap());
        let whole = (0..bytes.len())
            .filter(|&n| onnx::read(bytes.slice(..n), &ExternalSource::none()).is_ok())
            .count();
        // A cut between two top-level fields behind the graph leaves a valid, shorter model.
        assert!(whole < 20, "{name}: {whole} prefixes are models");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    /// Any damage gives an error or a model that is written and read again; never a panic.
    #[test]
    fn damaged_models_never_panic(
        which in 0usize..64,
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let small: Vec<PathBuf> = fixtures()
            .into_iter()
            .filter(|p| std::fs::metadata(p).unwrap().len() < 50_000)
            .collect();
        let path = &small[which % small.len()];
        let mut bytes = std::fs::read(path).unwrap();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
        }
        let source = ExternalSource::folder(path.parent().unwrap());
        let Ok(model) = onnx::read(bytes.clone().into(), &source) else { return Ok(()) };
        let Ok(model) = Verified::check(model) else { return Ok(()) };
        let written = onnx::to_bytes(&model).unwrap();
        prop_assert_eq!(canonical(&written), canonical(&bytes));
    }
}
