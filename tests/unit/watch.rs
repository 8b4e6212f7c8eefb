//! What a run leaves behind: the log, the record and the report, TensorBoard's file; also when it was interrupted.

use onnx_graft::train::watch::{Watchers, file};
use onnx_graft::train::{EvalEntry, Event, LogEntry, ReportTo, StepReport, Stop};
use serde_json::{Value, json};
use std::fs;
use std::path::Path;

const ALL: [ReportTo; 3] = [ReportTo::Jsonl, ReportTo::Tensorboard, ReportTo::Html];

fn begin(resumed_from: Option<u64>) -> Event {
    Event::Begin {
        total_steps: 6,
        resumed_from,
        examples: 3,
        trainable: 4,
    }
}

fn log(step: u64, loss: f64) -> Event {
    Event::Log(LogEntry {
        step,
        epoch: step as f64 / 6.0,
        loss,
        learning_rate: 1e-3,
        grad_norm: 0.5,
        tokens_per_second: 100.0,
    })
}

fn evaluate(step: u64) -> Event {
    Event::Evaluate(EvalEntry {
        step,
        epoch: 0.5,
        metrics: [
            ("loss".to_owned(), 1.5),
            ("perplexity".to_owned(), 1.5f64.exp()),
        ]
        .into(),
        samples: 4,
        items: 8,
        runtime: 2.0,
    })
}

fn end(steps: u64, reason: Stop) -> Event {
    Event::End {
        reason,
        steps,
        runtime: 3.0,
        train_loss: 0.75,
        best_step: Some(2),
        best_metric: Some(1.5),
        done: steps,
    }
}

fn run(folder: &Path, events: &[Event]) {
    let mut w = Watchers::open(folder, &ALL, json!({"model": "m.onnx"})).unwrap();
    w.describe(vec!["3 rows".into()], "a table".into());
    for e in events {
        w.event(e).unwrap();
    }
}

fn lines(folder: &Path) -> Vec<Value> {
    let text = fs::read_to_string(folder.join(file::LOG)).unwrap();
    text.lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect()
}

#[test]
fn a_resumed_run_is_logged_as_one_run() {
    let out = tempfile::tempdir().unwrap();
    let save = Event::Save {
        step: 2,
        path: "checkpoint-2".into(),
        best: true,
    };
    // Killed at step 4, in the middle of a line; the last checkpoint was that of step 2.
    run(
        out.path(),
        &[
            begin(None),
            log(1, 4.0),
            log(2, 3.0),
            evaluate(2),
            save,
            log(3, 9.0),
            log(4, 9.0),
        ],
    );
    let path = out.path().join(file::LOG);
    let whole = fs::read_to_string(&path).unwrap();
    fs::write(&path, &whole[..whole.len() - 9]).unwrap();
    run(
        out.path(),
        &[
            begin(Some(2)),
            log(3, 2.0),
            log(4, 1.0),
            end(4, Stop::Finished),
        ],
    );

    let of = |kind: &str, key: &str| -> Vec<Value> {
        let all = lines(out.path());
        all.iter()
            .filter(|l| l["event"] == kind)
            .map(|l| l[key].clone())
            .collect()
    };
    assert_eq!(of("log", "step"), [1, 2, 3, 4]);
    assert_eq!(of("log", "loss"), [4.0, 3.0, 2.0, 1.0]);
    assert_eq!(
        (of("evaluate", "step"), of("end", "steps")),
        (vec![json!(2)], vec![json!(4)])
    );
    let record: Value =
        serde_json::from_slice(&fs::read(out.path().join(file::RUN)).unwrap()).unwrap();
    assert_eq!(record["log"].as_array().unwrap().len(), 4);
    assert_eq!(record["evaluations"].as_array().unwrap().len(), 1);
}

#[test]
fn a_new_run_begins_a_new_log() {
    let out = tempfile::tempdir().unwrap();
    run(out.path(), &[begin(None), log(1, 4.0)]);
    run(out.path(), &[begin(None), log(1, 5.0)]);
    assert_eq!(lines(out.path()).len(), 2);
}

#[test]
fn the_report_can_be_looked_at_while_the_run_goes_on() {
    let out = tempfile::tempdir().unwrap();
    let step = StepReport {
        step: 1,
        epoch: 0.1,
        loss: 4.0,
        learning_rate: 1e-3,
        grad_norm: 0.5,
        tokens: 5,
        positions: 6,
    };
    run(out.path(), &[begin(None), Event::Step(step), log(1, 4.0)]);
    assert!(!out.path().join(file::REPORT).exists());
    run(out.path(), &[begin(None), log(1, 4.0), evaluate(1)]);
    let report = || fs::read_to_string(out.path().join(file::REPORT)).unwrap();
    assert!(
        report().contains("still running")
            && report().contains("3 rows")
            && report().contains("a table")
    );
    run(
        out.path(),
        &[begin(None), log(1, f64::NAN), end(1, Stop::EarlyStopping)],
    );
    assert!(report().contains("early stopping"));
    let names = fs::read_dir(out.path())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.collect();
    names.sort();
    assert_eq!(
        names,
        [file::LOG, file::REPORT, file::RUN, file::RUNS],
        "nothing temporary is left"
    );
}

#[test]
fn only_what_is_asked_for_is_written() {
    let out = tempfile::tempdir().unwrap();
    let mut w = Watchers::open(out.path(), &[], Value::Null).unwrap();
    w.event(&begin(None)).unwrap();
    w.event(&evaluate(1)).unwrap();
    w.close().unwrap();
    // The record is always there: a push and a run that goes on read it.
    let found = fs::read_dir(out.path())
        .unwrap()
        .map(|e| e.unwrap().file_name());
    assert_eq!(found.collect::<Vec<_>>(), [file::RUN]);
}

/// The payloads of a TFRecord file.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let mut rest = bytes;
    let mut out = Vec::new();
    while !rest.is_empty() {
        let n = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        out.push(&rest[12..12 + n]);
        rest = &rest[12 + n + 4..];
    }
    out
}

#[test]
fn tensorboard_gets_hugging_faces_tags() {
    let out = tempfile::tempdir().unwrap();
    run(
        out.path(),
        &[
            begin(None),
            log(1, 4.0),
            evaluate(1),
            end(1, Stop::Finished),
        ],
    );
    run(out.path(), &[begin(Some(1)), log(2, 3.0)]);
    let mut files: Vec<_> = fs::read_dir(out.path().join(file::RUNS))
        .unwrap()
        .map(|e| e.unwrap().path())
        .collect();
    files.sort();
    assert_eq!(files.len(), 2, "each process has its own file");
    let first = fs::read(&files[0]).unwrap();
    let first = records(&first);
    assert_eq!(first.len(), 4);
    let has = |i: usize, text: &str| first[i].windows(text.len()).any(|w| w == text.as_bytes());
    assert!(has(0, "brain.Event:2"));
    for (i, tag) in [
        (1, "train/loss"),
        (1, "train/learning_rate"),
        (2, "eval/loss"),
        (2, "eval/runtime"),
        (3, "train/train_loss"),
    ] {
        assert!(has(i, tag), "{tag}");
    }
    assert!(
        first[1].windows(5).any(|w| w == [0x15, 0, 0, 0x80, 0x40]),
        "4.0 as simple_value"
    );
    // The second file makes what the first has from step 2 on void.
    let second = fs::read(&files[1]).unwrap();
    let restart = records(&second)[1];
    assert_eq!(&restart[9..], [2 << 3, 2, 7 << 3 | 2, 2, 1 << 3, 1]);
}
