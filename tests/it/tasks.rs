//! Tasks from end to end: what training measures is what `eval` measures, and a graph that cannot do a task says so first.

use super::desk::{Desk, stderr};
use super::support::fixture;
use serde_json::{Value as Json, json};
use std::fs;
use std::path::PathBuf;
use std::process::Output;

/// Rows to train and to evaluate on.
struct Rows(Desk);

impl Rows {
    fn new(rows: &str) -> Rows {
        let desk = Desk::new();
        desk.write("rows.jsonl", rows);
        Rows(desk)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path(name)
    }

    fn with<T>(
        &self,
        command: &str,
        model: &str,
        args: &[&str],
        act: fn(&Desk, &[&str]) -> T,
    ) -> T {
        let [model, tokenizer] = [model, "tokenizer/tokenizer.json"].map(fixture);
        let [model, tokenizer] = [&model, &tokenizer].map(|p| p.to_str().unwrap());
        let own = [
            command,
            model,
            "--data",
            "rows.jsonl",
            "--tokenizer",
            tokenizer,
        ];
        act(&self.0, &[&own[..], args].concat())
    }

    fn run(&self, command: &str, model: &str, args: &[&str]) -> Output {
        self.with(command, model, args, Desk::command)
    }

    fn json(&self, command: &str, model: &str, args: &[&str]) -> Json {
        self.with(command, model, args, Desk::json)
    }

    /// One error, and nothing written.
    fn fails(&self, command: &str, model: &str, args: &[&str]) -> String {
        let message = self.with(command, model, args, Desk::fails);
        assert_eq!(message.matches("error[").count(), 1, "{message}");
        message
    }

    /// What the last evaluation of the run says.
    fn evaluation(&self) -> Json {
        let log = fs::read_to_string(self.path("out/log.jsonl")).unwrap();
        let mut lines = log
            .lines()
            .map(|l| serde_json::from_str::<Json>(l).unwrap());
        lines.rfind(|l| l["event"] == "evaluate").unwrap()["metrics"].clone()
    }
}

#[track_caller]
fn equal(trained: &Json, evaluated: &Json, names: &[&str]) {
    for name in names {
        let (a, b) = (
            trained[name].as_f64().unwrap(),
            evaluated[name].as_f64().unwrap(),
        );
        // The loss is computed in f32 by the graph, and in f64 from its logits.
        assert!((a - b).abs() < 1e-5 * (1.0 + a.abs()), "{name}: {a} {b}");
    }
}

const RUN: [&str; 10] = [
    "--output-dir",
    "out",
    "--max-steps",
    "3",
    "--learning-rate",
    "1e-2",
    "--eval-strategy",
    "epoch",
    "--save-strategy",
    "no",
];

/// Trains on all rows, evaluates on the same, and again with `eval`.
#[track_caller]
fn measures(rows: &str, model: &str, adapter: &str, task: &str, names: &[&str]) -> Rows {
    let desk = Rows::new(rows);
    let own = [
        "--task",
        task,
        "--eval-data",
        "rows.jsonl",
        "--adapter",
        adapter,
    ];
    desk.json("train", model, &[&RUN[..], &own].concat());
    let list = names.join(",");
    let saved = format!("out/{}", adapter.split('=').next().unwrap());
    let args = [
        &[
            "--task",
            task,
            "--adapter",
            &saved,
            "--predictions",
            "p.jsonl",
            "--metrics",
        ],
        &[&*list][..],
    ]
    .concat();
    let found = desk.json("eval", model, &args);
    equal(&desk.evaluation(), &found["metrics"], names);
    desk
}

#[test]
fn classes() {
    let rows = [
        "the cat sat",
        "the dog met a cat",
        "the cat",
        "a dog met the dog",
    ];
    let rows: String = rows
        .iter()
        .zip(["neg", "pos", "neu", "pos"])
        .map(|(text, label)| json!({ "text": text, "label": label }).to_string() + "\n")
        .collect();
    let names = ["loss", "accuracy", "f1", "precision", "recall"];
    let desk = measures(
        &rows,
        "bert/model.onnx",
        "a=seq_bn",
        "classification",
        &names,
    );
    let predictions = fs::read_to_string(desk.path("p.jsonl")).unwrap();
    let first: Json = serde_json::from_str(predictions.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&first["row"], &first["reference"]),
        (&0.into(), &"neg".into())
    );
    assert!(
        ["neg", "pos", "neu"]
            .iter()
            .any(|c| first["prediction"] == *c),
        "{first}"
    );
    // The run's record says what was trained, though flags said it.
    let record: Json =
        serde_json::from_slice(&fs::read(desk.path("out/run.json")).unwrap()).unwrap();
    assert!(
        record["job"]["model"]
            .as_str()
            .unwrap()
            .ends_with("model.onnx")
    );
    assert_eq!(record["job"]["adapter"], json!(["a=seq_bn"]));
}

#[test]
fn numbers() {
    let rows: String = [0.5, 2.0, -1.0]
        .iter()
        .zip(["the cat sat", "the dog", "a dog met the cat"])
        .map(|(label, text)| json!({ "text": text, "label": label }).to_string() + "\n")
        .collect();
    measures(
        &rows,
        "bert/model.onnx",
        "a=lora[r=2]",
        "regression",
        &["loss", "mse", "mae"],
    );
}

#[test]
fn targets() {
    let rows = "{\"source\": \"the cat sat\", \"target\": \"a dog\"}\n{\"source\": \"a dog\", \"target\": \"the cat sat on\"}\n";
    let desk = Rows::new(rows);
    let model = "t5/model.onnx";
    let own = [
        "--task",
        "seq2seq",
        "--eval-data",
        "rows.jsonl",
        "--adapter",
        "a=lora[r=2]",
        "--per-device-eval-batch-size",
        "1",
    ];
    desk.json("train", model, &[&RUN[..], &own].concat());
    // Means over tokens and means of means over rows are the same where rows are as long: one row at a time here, weighted by hand.
    let args = ["--task", "seq2seq", "--adapter", "out/a"];
    let found = desk.json("eval", model, &args)["metrics"].clone();
    let one = |row: &str| {
        let rows: Vec<&str> = rows.lines().collect();
        fs::write(desk.path("rows.jsonl"), rows[usize::from(row == "second")]).unwrap();
        desk.json("eval", model, &args)["metrics"]["loss"]
            .as_f64()
            .unwrap()
    };
    let (first, second) = (one("first"), one("second"));
    let mean = f64::midpoint(first, second);
    assert!((desk.evaluation()["loss"].as_f64().unwrap() - mean).abs() < 1e-5);
    let loss = found["loss"].as_f64().unwrap();
    assert!(loss > first.min(second) && loss < first.max(second));
    assert!((found["perplexity"].as_f64().unwrap() - loss.exp()).abs() < 1e-9);
}

#[test]
fn a_graph_that_cannot_do_the_task_says_so_first() {
    let row = |target: &str| {
        format!("{{\"text\": \"the cat sat\", \"source\": \"a\", \"target\": \"{target}\"}}\n")
    };
    let desk = Rows::new(&(row("b") + &row("c")));
    let run = &RUN[..4];
    let hidden = "`last_hidden_state` is [batch, sequence, 32], expected [batch, tokens, 48]";
    for command in ["train", "eval"] {
        let args = if command == "train" { run } else { &[] };
        assert!(
            desk.fails(command, "bert/model.onnx", args)
                .contains(hidden)
        );
        let pair = [args, &["--task", "seq2seq"]].concat();
        let e = desk.fails(command, "qwen3/model.onnx", &pair);
        assert!(e.contains("no input `decoder_input_ids`"), "{e}");
        let e = desk.fails(command, "t5/model.onnx", args);
        assert!(e.contains("--task seq2seq"), "{e}");
    }
    let rest = [
        "--task",
        "classification",
        "--eval-data",
        "rows.jsonl",
        "--eval-strategy",
        "epoch",
        "--metric-for-best-model",
        "acuracy",
        "--columns",
        "{\"label\": \"target\"}",
    ];
    let e = desk.fails("train", "bert/model.onnx", &[run, &rest].concat());
    assert!(
        e.contains("no `acuracy`") && e.contains("did you mean `accuracy`?"),
        "{e}"
    );
    let e = desk.fails(
        "train",
        "bert/model.onnx",
        &[run, &rest[..2], &rest[8..], &["--packing"]].concat(),
    );
    assert!(e.contains("each token has its label"), "{e}");
}

#[test]
fn a_repeated_flag_is_called_that() {
    let desk = Rows::new("");
    let out = desk.run(
        "train",
        "qwen3/model.onnx",
        &["--max-steps", "1", "--max-steps", "2"],
    );
    assert_eq!(out.status.code(), Some(2));
    assert!(stderr(&out).contains("'--max-steps <N>' cannot be used multiple times"));
}
