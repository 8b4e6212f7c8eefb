//! `rewrite graph`, and the picture in what a training leaves behind.

use super::desk::Desk;
use super::support::fixture;
use std::fs;

#[test]
fn the_name_of_the_file_says_the_format() {
    let desk = Desk::with("qwen3/model.onnx");
    let begins = [
        ("m.svg", "<?xml"),
        ("m.html", "<!doctype html>"),
        ("m.dot", "digraph"),
    ];
    for (file, begin) in begins {
        let said = desk.ok(&[
            "graph",
            "model.onnx",
            "-i",
            "interface.json",
            "-a",
            "lora",
            "-o",
            file,
        ]);
        assert_eq!(said, format!("wrote {file}\n"));
        let text = fs::read_to_string(desk.path(file)).unwrap();
        assert!(text.starts_with(begin), "{text}");
        for shown in [
            "layers 0–1",
            "lora",
            "trains",
            "q_proj",
            "[batch, sequence, 32]",
        ] {
            assert!(text.contains(shown), "{file} has no {shown}");
        }
    }
    let printed = desk.ok(&["graph", "model.onnx", "-i", "interface.json", "-a", "lora"]);
    assert_eq!(printed, fs::read_to_string(desk.path("m.dot")).unwrap());
    let before = fs::read(desk.path("m.svg")).unwrap();
    let again = ["graph", "model.onnx", "-o", "m.svg"];
    assert!(desk.fails(&again).contains("--force"));
    desk.ok(&[&again[..], &["--force"]].concat());
    assert_ne!(fs::read(desk.path("m.svg")).unwrap(), before);
    for wrong in ["m.png", "m"] {
        let message = desk.misused(&["graph", "model.onnx", "-o", wrong]);
        assert!(message.contains(".svg, .html or .dot"), "{message}");
    }
}

#[test]
fn the_data_of_a_picture_is_json() {
    let desk = Desk::attached("lora");
    let shown = desk.json(&["graph", "model.lora.onnx"]);
    let picture = &shown["picture"];
    assert!(shown["file"].is_null());
    assert_eq!(picture["title"], "model.lora.onnx");
    let row = &picture["adapters"][0];
    assert_eq!(
        (&row["name"], &row["kind"]),
        (&"lora".into(), &"lora".into())
    );
    assert_eq!(row["parameters"], 1792);
    let parts = picture["model"]["parts"].as_array().unwrap();
    let model = parts
        .iter()
        .find_map(|p| p.get("module").filter(|m| m["path"] == "model"));
    let inner = model.unwrap()["parts"].as_array().unwrap();
    let layers = inner
        .iter()
        .find_map(|p| p.get("module").filter(|m| m["name"] == "layers 0–1"));
    assert_eq!(layers.unwrap()["count"], 2);
}

#[test]
fn a_training_leaves_its_picture() {
    let desk = Desk::with("qwen3/model.onnx");
    let data = fixture("train/ids.jsonl");
    let data = data.to_str().unwrap();
    desk.ok(&[
        "train",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        "lora",
        "--data",
        data,
        "--max-steps",
        "2",
        "--output-dir",
        "out",
    ]);
    let svg = fs::read_to_string(desk.path("out/graph.svg")).unwrap();
    assert!(svg.contains("layers 0–1") && svg.contains("● trains"));
    let report = fs::read_to_string(desk.path("out/report.html")).unwrap();
    assert!(report.contains(&svg));
    let record = fs::read_to_string(desk.path("out/run.json")).unwrap();
    assert!(!record.contains("<svg"));
    if cfg!(feature = "hub") {
        let card = desk.ok(&["hub", "push", "out/lora", "me/mine", "--dry-run"]);
        assert!(card.contains("](graph.svg)"), "{card}");
    }
}

#[test]
fn what_a_quantizer_adds_stands_in_its_module() {
    let desk = Desk::new();
    fs::copy(
        fixture("skill/model.int8.onnx"),
        desk.path("model.int8.onnx"),
    )
    .unwrap();
    let shown = desk.json(&["graph", "model.int8.onnx"]);
    let parts = shown["picture"]["model"]["parts"].as_array().unwrap();
    let loose = parts.iter().filter_map(|p| p.get("operators"));
    let loose: Vec<String> = loose.map(ToString::to_string).collect();
    let scales = loose.iter().filter(|o| o.contains("[\"Mul\","));
    // Those of the head, which is no module here.
    assert!(scales.count() <= 2, "{loose:?}");
    desk.ok(&["print", "model.int8.onnx", "--module", "q_norm"]);
    let wrong = desk.misused(&["print", "model.int8.onnx", "--module", "q_nrm"]);
    assert!(wrong.contains("did you mean `q_norm`?"), "{wrong}");
}

#[test]
fn an_adapter_at_several_places_is_counted_at_each() {
    let desk = Desk::with("vit/model.onnx");
    let shown = desk.json(&[
        "graph",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        "prefix_tuning",
    ]);
    assert_eq!(shown["picture"]["adapters"][0]["places"], 2);
}
