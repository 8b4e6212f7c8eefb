//! Every graph among the fixtures is listed in their manifest, as it is.

use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures")
}

fn graphs(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            graphs(&path, found);
        } else if path.extension().is_some_and(|e| e == "onnx") {
            found.push(path);
        }
    }
}

fn manifest() -> BTreeMap<String, Value> {
    let text = std::fs::read_to_string(root().join("MANIFEST.json")).unwrap();
    let json: Value = serde_json::from_str(&text).unwrap();
    let entries = json["files"].as_array().unwrap().iter();
    entries
        .map(|e| (e["file"].as_str().unwrap().to_owned(), e.clone()))
        .collect()
}

#[test]
fn the_manifest_lists_every_graph_and_no_other() {
    let mut found = Vec::new();
    graphs(&root(), &mut found);
    let name = |p: &PathBuf| {
        let inside = p.strip_prefix(root()).unwrap();
        inside.to_str().unwrap().replace('\\', "/")
    };
    let mut found: Vec<String> = found.iter().map(name).collect();
    found.sort();
    let listed: Vec<String> = manifest().into_keys().collect();
    assert_eq!(found, listed, "run `python fixtures/make.py --manifest`");
}

#[test]
fn a_graph_is_the_one_the_manifest_describes() {
    for (file, entry) in manifest() {
        let bytes = std::fs::read(root().join(&file)).unwrap();
        assert_eq!(entry["bytes"], bytes.len(), "{file}");
        let hash = blake3::hash(&bytes).to_hex();
        assert_eq!(entry["blake3"], hash.as_str(), "{file}");
        let model = onnx_graft::onnx::open(root().join(&file)).unwrap();
        let opsets: BTreeMap<&str, i64> = model
            .opset_imports
            .iter()
            .map(|(d, v)| (if d.is_empty() { "ai.onnx" } else { d }, *v))
            .collect();
        assert_eq!(entry["opset"], serde_json::json!(opsets), "{file}");
        for key in ["exporter", "purpose", "licence"] {
            let said = entry[key].as_str().is_some_and(|t| !t.is_empty());
            assert!(said, "{file}: no {key}");
        }
    }
}

#[test]
fn the_training_rows_stay_within_the_vocabulary_of_the_model() {
    let text = std::fs::read_to_string(root().join("train/ids.jsonl")).unwrap();
    for row in text.lines() {
        let row: Value = serde_json::from_str(row).unwrap();
        let ids = row["input_ids"].as_array().unwrap();
        assert!(ids.iter().all(|i| (0..48).contains(&i.as_i64().unwrap())));
    }
}
