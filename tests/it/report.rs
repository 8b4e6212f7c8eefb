//! What a training shows of itself.

use super::desk::Desk;
use super::support::fixture;
use serde_json::{Value as Json, json};
use std::fs;

fn page(desk: &Desk, name: &str) -> String {
    fs::read_to_string(desk.path(name)).unwrap()
}

fn look(desk: &Desk, run: &str) -> Json {
    let run: Json = serde_json::from_str(&page(desk, &format!("{run}/run.json"))).unwrap();
    run["look"].clone()
}

/// Trains Qwen3 for a few steps on rows that it is evaluated on, too.
fn trained(desk: &Desk, out: &str, more: &[&str]) -> String {
    let rows = fs::read_to_string(fixture("train/ids.jsonl")).unwrap();
    let three: Vec<&str> = rows.lines().take(3).collect();
    desk.write("rows.jsonl", &three.join("\n"));
    let args = [
        "train",
        "model.onnx",
        "-i",
        "qwen3",
        "-a",
        "a=lora[r=2]",
        "--data",
        "rows.jsonl",
        "--eval-data",
        "rows.jsonl",
        "--eval-strategy",
        "epoch",
        "--eval-on-start",
        "--learning-rate",
        "5e-2",
        "--max-steps",
        "4",
        "--output-dir",
        out,
    ];
    desk.ok(&[&args[..], more].concat())
}

#[test]
fn a_short_run_has_a_curve_and_its_examples_before_and_after() {
    let desk = Desk::with("qwen3/model.onnx");
    let said = trained(&desk, "out", &[]);
    assert!(said.contains("best evaluation: "), "{said}");
    assert!(said.trim_end().ends_with("wrote out/report.html"), "{said}");
    let text = page(&desk, "out/report.html");
    for part in [
        "aria-label=\"training by step, from ",
        "<h2>Before and after</h2>",
        "<h2>Losses of tokens</h2>",
        "training report of the run out",
    ] {
        assert!(text.contains(part), "{part}");
    }
    let look = look(&desk, "out");
    assert_eq!(
        (&look["notes"], &look["evaluation"]),
        (&json!([]), &json!(true))
    );
    let samples = look["samples"].as_array().unwrap();
    // Without a tokenizer, an example is its ids: what is read, and what is to follow.
    assert_eq!(samples[0]["given"], "15 5");
    assert_eq!(samples[0]["expected"], "12 11 15 9");
    assert!(samples.iter().all(|s| s["before"][0]["text"].is_string()));
    // The losses of the tokens are what the evaluations before and after say.
    let mean = |key: &str| {
        let tokens = look["tokens"].as_array().unwrap().iter();
        let each: Vec<f64> = tokens
            .flat_map(|t| t.as_array().unwrap())
            .filter_map(|t| t[key].as_f64())
            .collect();
        each.iter().sum::<f64>() / each.len() as f64
    };
    let log = page(&desk, "out/log.jsonl");
    let evaluations: Vec<f64> = super::desk::lines(&log)
        .iter()
        .filter(|l| l["event"] == "evaluate")
        .map(|l| l["metrics"]["loss"].as_f64().unwrap())
        .collect();
    let (first, last) = (evaluations[0], evaluations[evaluations.len() - 1]);
    assert!(last < first);
    // One is a mean of f32 computed by the graph, the other of f64 from its logits.
    assert!((mean("before") - first).abs() < 1e-4, "{first}");
    assert!((mean("after") - last).abs() < 1e-4, "{last}");
}

#[test]
fn a_run_that_logs_nothing_has_a_curve_and_one_without_samples_has_none() {
    let desk = Desk::with("qwen3/model.onnx");
    let quiet = ["--report-samples", "0", "--logging-strategy", "no"];
    trained(&desk, "out", &quiet);
    let text = page(&desk, "out/report.html");
    assert!(text.contains("aria-label=\"training by step, from "));
    assert!(!text.contains("Before and after") && look(&desk, "out").is_null());
    let said = trained(&desk, "none", &["--report-to", "none"]);
    assert!(!said.contains("report.html") && !desk.path("none/report.html").exists());
    assert!(look(&desk, "none").is_null());
}

#[test]
fn classes_and_numbers_are_held_against_what_is_right() {
    let desk = Desk::new();
    let texts = ["the cat sat", "the dog", "a dog met the cat", "the log"];
    let write = |labels: [Json; 4]| {
        let rows = texts.iter().zip(labels);
        let rows = rows.map(|(t, l)| json!({ "text": t, "label": l }).to_string() + "\n");
        desk.write("rows.jsonl", &rows.collect::<String>());
    };
    let (model, tokenizer) = (
        fixture("bert/model.onnx"),
        fixture("tokenizer/tokenizer.json"),
    );
    let train = |task: &str| {
        desk.ok(&[
            "train",
            model.to_str().unwrap(),
            "--tokenizer",
            tokenizer.to_str().unwrap(),
            "--data",
            "rows.jsonl",
            "--task",
            task,
            "-a",
            "a=lora[r=2]",
            "--max-steps",
            "2",
            "--output-dir",
            task,
        ]);
        look(&desk, task)
    };
    write(["<neg>", "pos", "neu", "pos"].map(Json::from));
    let found = train("classification");
    // No data is set apart: the examples are those of the training.
    assert_eq!(found["evaluation"], false);
    let pairs = found["classes"]["pairs"].as_array().unwrap();
    let all: u64 = pairs.iter().map(|p| p[2].as_u64().unwrap()).sum();
    assert_eq!(all, 4);
    let shares = found["samples"][0]["after"].as_array().unwrap();
    let sum: f64 = shares.iter().map(|g| g["share"].as_f64().unwrap()).sum();
    assert!((sum - 1.0).abs() < 1e-6);
    let text = page(&desk, "classification/report.html");
    assert!(text.contains("Confusion matrix") && text.contains("&lt;neg&gt;"));
    assert!(!text.contains("<neg>"));
    write([0.5, 2.0, -1.0, 0.0].map(Json::from));
    let found = train("regression");
    let numbers = found["numbers"].as_array().unwrap();
    let right: Vec<&Json> = numbers.iter().map(|n| &n["right"]).collect();
    assert_eq!(right, [0.5, 2.0, -1.0, 0.0]);
    assert!(numbers.iter().all(|n| n["before"] != n["after"]));
    assert!(page(&desk, "regression/report.html").contains("Answers against what is right"));
}

#[test]
fn runs_that_were_broken_off_or_are_hostile_are_compared() {
    let desk = Desk::with("qwen3/model.onnx");
    trained(&desk, "a", &[]);
    trained(&desk, "b", &[]);
    fs::remove_file(desk.path("b/run.json")).unwrap();
    let lines = [
        json!({ "event": "log", "step": 9, "loss": 1e308, "learning_rate": "x", "grad_norm": [1] }),
        json!({ "event": "evaluate", "step": 1e300, "metrics": { "<script>": 1 } }),
        json!({ "event": "warning", "message": "<script>alert(1)</script>" }),
    ];
    let mut log = page(&desk, "b/log.jsonl");
    for line in lines {
        log += &(line.to_string() + "\n");
    }
    desk.write("b/log.jsonl", &(log + "{\"event\": \"log\", "));
    let made = desk.json(&["report", "a", "b", "-o", "page.html"]);
    assert_eq!(made["report"], "page.html");
    let text = page(&desk, "page.html");
    assert!(text.contains("Comparison of 2 runs") && !text.contains("<script"));
    desk.ok(&["report", "a/run.json", "-o", "one.html"]);
    assert!(page(&desk, "one.html").contains("The run a"));
}
