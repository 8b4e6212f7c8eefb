//! Many adapters in one file, from the command line: nothing but the file is needed to list, add, remove and extract them.

use super::desk::Desk;
use std::fs;

/// A desk with a base model, the folders of three adapters, and a file with the first two.
fn desk() -> Desk {
    let desk = Desk::with("qwen3/model.onnx");
    for spec in [
        "a=lora[r=2]",
        "b=lora[r=4,attn_matrices=['q','o']]",
        "c=seq_bn",
    ] {
        desk.ok(&["-i", "interface.json", "-a", spec, "model.onnx"]);
    }
    let both = [
        "-i",
        "interface.json",
        "--adapter-ids",
        "-a",
        "a",
        "-a",
        "b",
        "model.onnx",
    ];
    let said = desk.json(&[&both[..], &["-o", "both.onnx"]].concat());
    assert_eq!(said["adapter_ids"], serde_json::json!(["a", "b"]));
    assert_eq!(said["selected"]["at"][0]["adapter"], "adapter_ids");
    desk
}

#[test]
fn a_file_is_all_that_tenants_need() {
    let desk = desk();
    fs::create_dir(desk.path("alone")).unwrap();
    fs::rename(desk.path("both.onnx"), desk.path("alone/both.onnx")).unwrap();
    for gone in ["model.onnx", "interface.json"] {
        fs::rename(desk.path(gone), desk.path(&format!("{gone}.away"))).unwrap();
    }
    let names = |file: &str| -> Vec<String> {
        let rows = desk.json(&["tenants", "list", file]);
        let rows = rows.as_array().unwrap().iter().enumerate();
        rows.map(|(i, r)| {
            assert_eq!(r["id"], i);
            r["name"].as_str().unwrap().to_owned()
        })
        .collect()
    };
    assert_eq!(names("alone/both.onnx"), ["a", "b"]);
    let text = desk.ok(&[
        "tenants",
        "add",
        "alone/both.onnx",
        "-a",
        "c",
        "-o",
        "three.onnx",
    ]);
    assert!(
        text.contains("adapter_ids: 0 a, 1 b, 2 c; -1 none"),
        "{text}"
    );
    assert_eq!(names("three.onnx"), ["a", "b", "c"]);
    desk.ok(&[
        "tenants",
        "remove",
        "three.onnx",
        "a",
        "c",
        "-o",
        "one.onnx",
    ]);
    assert_eq!(names("one.onnx"), ["b"]);
    // Each comes out as it went in, byte for byte.
    for (file, name) in [("three.onnx", "a"), ("three.onnx", "c"), ("one.onnx", "b")] {
        let out = format!("out-{name}");
        desk.ok(&["tenants", "extract", file, name, "-o", &out]);
        let files = desk.files();
        let of = |folder: &str| -> Vec<_> {
            let inside = files
                .iter()
                .filter(|(p, _)| p.starts_with(desk.path(folder)));
            inside
                .filter(|(p, _)| p.is_file())
                .map(|(p, bytes)| (p.file_name().unwrap(), bytes))
                .collect()
        };
        assert_eq!(of(&out).len(), 4, "{name}");
        assert!(of(&out) == of(name), "{name}");
    }
    // And the base model, too.
    desk.ok(&["strip", "three.onnx", "-o", "stripped.onnx"]);
    let same = desk.json(&["diff", "model.onnx.away", "stripped.onnx", "--exit-code"]);
    assert_eq!(same["identical"], true);
}

#[test]
fn what_makes_no_sense_of_tenants_is_an_error() {
    let desk = desk();
    for (args, why) in [
        (
            &["tenants", "list", "model.onnx"][..],
            "has no adapters that an input `adapter_ids` chooses from",
        ),
        (
            &["tenants", "extract", "both.onnx", "other", "-o", "x"],
            "there are: a, b",
        ),
        (
            &["tenants", "remove", "both.onnx", "x", "-o", "x.onnx"],
            "there is no adapter `x`",
        ),
        (
            &["tenants", "remove", "both.onnx", "a", "b", "-o", "x.onnx"],
            "is the only adapter",
        ),
        (
            &["tenants", "remove", "both.onnx", "a", "-o", "both.onnx"],
            "is an input",
        ),
        (
            &["tenants", "add", "both.onnx", "-a", "a", "-o", "x.onnx"],
            "two adapters are called `a`",
        ),
        (
            &[
                "tenants",
                "add",
                "both.onnx",
                "-a",
                "x=dora",
                "-o",
                "x.onnx",
            ],
            "MultiTask(a, b)",
        ),
        (
            &[
                "merge",
                "both.onnx",
                "-i",
                "interface.json",
                "-a",
                "a",
                "-o",
                "x.onnx",
            ],
            "would act under every one of them",
        ),
        (
            &["-i", "interface.json", "-a", "c", "both.onnx"],
            "rewrite tenants add",
        ),
        (
            &["strip", "both.onnx", "--name", "a", "-o", "x.onnx"],
            "rewrite tenants remove",
        ),
    ] {
        let message = desk.fails(args);
        assert!(message.contains(why), "{args:?}: {message}");
    }
    let setup = [
        "--adapter-ids",
        "-i",
        "interface.json",
        "-a",
        "a",
        "-a",
        "b",
    ];
    let out = desk.command(&[&setup[..], &["--active", "Stack(a, b)", "model.onnx"]].concat());
    assert_eq!(out.status.code(), Some(2));
}
