//! Several adapters in one batch, from the command line: trained together, measured and asked one by one.

use super::desk::Desk;
use serde_json::{Value as Json, json};
use std::fs;

/// Rows of three classes that the last token tells.
fn rows() -> String {
    let row = |i: i64| {
        let ids = [7 + i % 5, 20 + i % 9, 40 - i % 3, 10 + i % 3];
        json!({"input_ids": ids, "label": i % 3}).to_string()
    };
    (0..12).map(|i| row(i) + "\n").collect()
}

const DATA: [&str; 4] = ["--data", "rows.jsonl", "--task", "classification"];

fn last_evaluation(desk: &Desk, folder: &str) -> Json {
    let log = fs::read_to_string(desk.path(folder).join("log.jsonl")).unwrap();
    let mut lines = log
        .lines()
        .map(|l| serde_json::from_str::<Json>(l).unwrap());
    let found = lines.rfind(|l| l["event"] == "evaluate");
    found.unwrap()["metrics"].clone()
}

#[test]
fn children_of_a_parallel_train_and_are_measured_as_if_alone() {
    let desk = Desk::with("bert/model.onnx");
    desk.write("rows.jsonl", &rows());
    let train = |adapters: &[&str], active: &str, out: &str| {
        let own = [
            "train",
            "model.onnx",
            "-i",
            "interface.json",
            "--active",
            active,
            "--output-dir",
            out,
            "--max-steps",
            "3",
            "--learning-rate",
            "0.01",
            "--lr-scheduler-type",
            "constant",
            "--max-grad-norm",
            "0",
            "--eval-data",
            "rows.jsonl",
            "--eval-strategy",
            "epoch",
        ];
        let named = adapters.iter().flat_map(|a| ["-a", a]).collect::<Vec<_>>();
        desk.ok(&[&own[..], &DATA, &named].concat());
        last_evaluation(&desk, out)
    };
    let (a, b) = ("a=lora[r=2]", "b=seq_bn[reduction_factor=8]");
    let both = train(&[a, b], "Parallel(a, b)", "both");
    let near = |x: &Json, y: &Json| (x.as_f64().unwrap() - y.as_f64().unwrap()).abs() < 1e-5;
    let mut sum = 0.0;
    for (spec, name) in [(a, "a"), (b, "b")] {
        let alone = train(&[spec], name, name);
        for (metric, want) in alone.as_object().unwrap() {
            let found = &both[format!("{name}.{metric}")];
            assert!(near(found, want), "{name}.{metric}: {found} {want}");
        }
        sum += alone["loss"].as_f64().unwrap();
        assert!(
            desk.path("both")
                .join(name)
                .join("head_config.json")
                .is_file()
        );
    }
    assert!((both["loss"].as_f64().unwrap() - sum).abs() < 1e-5);
    // With the saved heads, and with the file that holds all of it.
    let saved = [
        "-a",
        "a=both/a",
        "-a",
        "b=both/b",
        "--active",
        "Parallel(a, b)",
    ];
    let attach = ["-i", "interface.json", "model.onnx", "-o", "both.onnx"];
    desk.ok(&[&attach[..], &saved].concat());
    let folders = [
        &["eval", "model.onnx", "-i", "interface.json"][..],
        &saved,
        &DATA,
    ]
    .concat();
    let file = [
        &["eval", "both.onnx"][..],
        &DATA,
        &["--predictions", "p.jsonl"],
    ]
    .concat();
    for args in [folders, file] {
        let found = desk.json(&args);
        for name in ["a.accuracy", "b.accuracy", "a.f1", "b.f1"] {
            assert!(
                near(&found["metrics"][name], &both[name]),
                "{name}: {found}"
            );
        }
    }
    let lines = fs::read_to_string(desk.path("p.jsonl")).unwrap();
    let lines: Vec<Json> = lines
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(lines.len(), 24);
    assert_eq!(
        (&lines[0]["adapter"], &lines[12]["adapter"]),
        (&json!("a"), &json!("b"))
    );
    // A head for one of two is not enough.
    fs::remove_file(desk.path("both/b/head_config.json")).unwrap();
    for file in ["model_head.safetensors", "pytorch_model_head.bin"] {
        fs::remove_file(desk.path("both/b").join(file)).unwrap();
    }
    let e = desk.fails(&[&attach[..4], &["half.onnx"], &saved].concat());
    assert!(e.contains("`a` was saved with one, and `b` was not"), "{e}");
}

#[test]
fn each_child_and_each_tenant_writes_its_own_text() {
    let desk = Desk::with("qwen3/model.onnx");
    desk.write(
        "p.jsonl",
        "{\"input_ids\": [3, 4, 5]}\n{\"input_ids\": [6, 7]}\n",
    );
    let specs = [
        "a=lora[init_weights='bert',alpha=900]",
        "b=lora[init_weights='bert',alpha=1200,attn_matrices=['v']]",
    ];
    for spec in specs {
        desk.ok(&["-i", "interface.json", "-a", spec, "model.onnx"]);
    }
    let generate = |args: &[&str]| -> Vec<Json> {
        let own = ["generate", "--max-new-tokens", "4"];
        let found = desk.generated(&[&own[..], args].concat());
        found["results"].as_array().unwrap().clone()
    };
    let ids = |found: &[Json]| found.iter().map(|r| r["ids"].clone()).collect::<Vec<_>>();
    let base = ["model.onnx", "-i", "interface.json", "--prompts", "p.jsonl"];
    let alone = |name: &str| ids(&generate(&[&base[..], &["-a", name]].concat()));
    let (of_a, of_b, none) = (alone("a"), alone("b"), ids(&generate(&base)));
    assert_ne!(of_a, of_b);
    let both = ["-a", "a", "-a", "b", "--active", "Parallel(a, b)"];
    let both = generate(&[&base[..], &both].concat());
    assert_eq!(ids(&both), [&of_a[..], &of_b].concat());
    assert_eq!(
        (&both[1]["adapter"], &both[2]["adapter"]),
        (&json!("a"), &json!("b"))
    );
    // Many in one file, each prompt for its own.
    let attach = ["-i", "interface.json", "model.onnx", "-a", "a", "-a", "b"];
    desk.ok(&[&attach[..], &["--adapter-ids", "-o", "many.onnx"]].concat());
    desk.ok(&[
        &attach[..],
        &["--active", "MultiTask(a, b)", "-o", "tasks.onnx"],
    ]
    .concat());
    let rows = |key: &str, first: &str, second: &str| {
        let row = |ids: &str, who: &str| format!("{{\"input_ids\": {ids}, \"{key}\": {who}}}\n");
        desk.write(
            "own.jsonl",
            &(row("[3, 4, 5]", first) + &row("[6, 7]", second)),
        );
    };
    for (file, key) in [("many.onnx", "adapter_ids"), ("tasks.onnx", "task_ids")] {
        rows(key, "\"b\"", "0");
        let own = ids(&generate(&[file, "--prompts", "own.jsonl"]));
        assert_eq!(own, [of_b[0].clone(), of_a[1].clone()], "{file}");
        let named = [file, "--prompts", "p.jsonl", "--adapter-name", "b"];
        assert_eq!(ids(&generate(&named)), of_b, "{file}");
    }
    assert_eq!(ids(&generate(&["many.onnx", "--prompts", "p.jsonl"])), none);
    let asked = ["--prompts", "p.jsonl", "--adapter-name", "__base__"];
    assert_eq!(ids(&generate(&[&["many.onnx"][..], &asked].concat())), none);
    for (args, why) in [
        (
            ["tasks.onnx", "--prompts", "p.jsonl"],
            "does not say which adapter",
        ),
        (
            ["model.onnx", "--prompts", "own.jsonl"],
            "nothing to choose from",
        ),
    ] {
        let e = desk.fails(&[&["generate"][..], &args].concat());
        assert!(e.contains(why), "{e}");
    }
    // The same in evaluation.
    let data = |a: &str, b: &str| {
        let row =
            |ids: &str, who: &str| format!("{{\"input_ids\": {ids}, \"adapter_ids\": {who}}}\n");
        row("[3, 4, 5, 6, 7]", a) + &row("[6, 7, 8, 9, 10]", b)
    };
    let loss = |args: &[&str], rows: &str| {
        desk.write("d.jsonl", rows);
        let own = ["eval", "--data", "d.jsonl", "--metrics", "loss"];
        desk.json(&[&own[..], args].concat())["metrics"]["loss"]
            .as_f64()
            .unwrap()
    };
    let attached = |name| ["model.onnx", "-i", "interface.json", "-a", name];
    let first = data("0", "0").lines().next().unwrap().to_owned();
    let second = data("0", "0").lines().nth(1).unwrap().to_owned();
    let want = f64::midpoint(loss(&attached("b"), &first), loss(&attached("a"), &second));
    let found = loss(&["many.onnx"], &data("\"b\"", "\"a\""));
    assert!((found - want).abs() < 1e-5, "{found} {want}");
    let bare = loss(&["model.onnx"], &first);
    let found = loss(&["many.onnx"], "{\"input_ids\": [3, 4, 5, 6, 7]}\n");
    assert!((found - bare).abs() < 1e-6, "{found} {bare}");
}

#[test]
fn a_merge_leaves_skipped_layers_out() {
    let desk = Desk::with("qwen3/model.onnx");
    let spec = "a=lora[init_weights='bert',alpha=900]";
    desk.ok(&["-i", "interface.json", "-a", spec, "model.onnx"]);
    let own = [
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        "a",
        "--skip-layers",
        "1",
        "-o",
    ];
    desk.ok(&[&own[..], &["skipped.onnx"]].concat());
    desk.ok(&[&["merge"][..], &own, &["merged.onnx"]].concat());
    let verify = |other: &str| desk.command(&["verify", "merged.onnx", other]);
    assert_eq!(verify("skipped.onnx").status.code(), Some(0));
    assert_ne!(verify("model.a.onnx").status.code(), Some(0));
    let e = desk.command(
        &[
            &["merge", "--skip-layers-input"][..],
            &own[..5],
            &["-o", "x.onnx"],
        ]
        .concat(),
    );
    assert_eq!(e.status.code(), Some(2));
}
