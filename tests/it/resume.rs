//! A run that is stopped and goes on is the run that was never stopped.

use super::support::fixture;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// A run with dropout, accumulation, shuffling, several epochs and evaluations in between.
fn command(out: &Path, steps: u32, more: &[&str]) -> Command {
    let mut c = Command::new(env!("CARGO_BIN_EXE_rewrite"));
    c.args(["train"]).arg(fixture("qwen3/model.onnx")).args([
        "-i",
        "qwen3",
        "-a",
        "a=lora[r=2,dropout=0.1]",
        "--data",
    ]);
    c.arg(fixture("train/ids.jsonl"))
        .arg("--output-dir")
        .arg(out);
    c.args([
        "--per-device-train-batch-size",
        "2",
        "--gradient-accumulation-steps",
        "2",
        "--learning-rate",
        "1e-2",
    ]);
    c.args([
        "--num-train-epochs",
        "1000",
        "--save-steps",
        "3",
        "--logging-steps",
        "2",
        "--threads",
        "1",
    ]);
    c.args(["--max-steps", &steps.to_string()]).args(more);
    c.stdout(Stdio::null()).stderr(Stdio::piped());
    c
}

fn run(out: &Path, steps: u32, more: &[&str]) {
    let done = command(out, steps, more).output().unwrap();
    assert!(
        done.status.success(),
        "{}",
        String::from_utf8_lossy(&done.stderr)
    );
}

fn bytes(out: &Path, file: &str) -> Vec<u8> {
    fs::read(out.join(file)).unwrap()
}

/// The log without what depends on the clock, and without where the run was stopped.
fn log(out: &Path) -> Vec<String> {
    let text = fs::read_to_string(out.join("log.jsonl")).unwrap();
    let entries = text
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap());
    let kept = entries.filter(|e| ["log", "evaluate"].contains(&e["event"].as_str().unwrap()));
    kept.map(|e| {
        format!(
            "{} {} {} {}",
            e["step"], e["epoch"], e["loss"], e["metrics"]
        )
    })
    .collect()
}

fn checkpoints(out: &Path) -> Vec<u64> {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    let number = |e: fs::DirEntry| {
        e.file_name()
            .to_str()?
            .strip_prefix("checkpoint-")?
            .parse()
            .ok()
    };
    let mut all: Vec<u64> = entries.filter_map(number).collect();
    all.sort_unstable();
    all
}

/// Whether anything that looks like a checkpoint lacks its manifest.
fn half_written(out: &Path) -> bool {
    checkpoints(out)
        .into_iter()
        .any(|s| !out.join(format!("checkpoint-{s}/checkpoint.json")).exists())
}

#[test]
fn going_on_equals_never_stopping() {
    let (whole, parts) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let data = fixture("train/ids.jsonl");
    let eval = [
        "--eval-data",
        data.to_str().unwrap(),
        "--eval-strategy",
        "steps",
        "--eval-steps",
        "2",
    ];
    run(whole.path(), 9, &eval);
    run(parts.path(), 9, &eval);
    // As if the process had ended after step 6.
    fs::remove_dir_all(parts.path().join("checkpoint-9")).unwrap();
    fs::remove_dir_all(parts.path().join("a")).unwrap();
    let more: Vec<&str> = eval.into_iter().chain(["--resume"]).collect();
    run(parts.path(), 9, &more);
    for file in [
        "a/adapter.safetensors",
        "checkpoint-9/optimizer.safetensors",
    ] {
        assert_eq!(
            bytes(whole.path(), file),
            bytes(parts.path(), file),
            "{file}"
        );
    }
    assert_eq!(log(whole.path()), log(parts.path()));
}

#[test]
fn another_run_is_not_gone_on_with() {
    let out = tempfile::tempdir().unwrap();
    run(out.path(), 3, &[]);
    let other = command(
        out.path(),
        3,
        &["--resume", "--force", "--learning-rate", "2e-2"],
    )
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&other.stderr);
    assert_eq!(
        other.status.code(),
        Some(2),
        "the flag is given twice: {text}"
    );
    let other = command(
        out.path(),
        3,
        &["--resume", "--force", "--weight-decay", "0.1"],
    )
    .output()
    .unwrap();
    let text = String::from_utf8_lossy(&other.stderr);
    assert_eq!(other.status.code(), Some(1), "{text}");
    assert!(text.contains("`weight_decay` was 0.0, is 0.1"), "{text}");
}

/// What can be seen of a run from outside: the names in its folder, and how long its log is.
fn sight(out: &Path) -> (Vec<OsString>, u64) {
    let entries = fs::read_dir(out).into_iter().flatten().flatten();
    let mut names: Vec<OsString> = entries.map(|e| e.file_name()).collect();
    names.sort();
    let log = fs::metadata(out.join("log.jsonl"));
    (names, log.map_or(0, |m| m.len()))
}

/// Looks on until the run has changed this often or has ended; the last step whose checkpoint was seen.
fn watch(child: &mut Child, out: &Path, mut changes: u32) -> u64 {
    let mut before = sight(out);
    let mut last = checkpoints(out).last().copied().unwrap_or(0);
    while changes > 0 && child.try_wait().unwrap().is_none() {
        assert!(!half_written(out), "a checkpoint appears as a whole");
        last = last.max(checkpoints(out).last().copied().unwrap_or(0));
        let now = sight(out);
        if now != before {
            changes -= 1;
        }
        before = now;
        std::thread::yield_now();
    }
    last
}

/// Kills after one change of the folder or many, in the midst of a checkpoint or between two. `ONNX_GRAFT_KILLS` asks for more.
#[test]
fn killing_loses_at_most_the_steps_since_the_last_checkpoint() {
    const STEPS: u32 = 30;
    let kills: u32 = std::env::var("ONNX_GRAFT_KILLS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(20);
    let whole = tempfile::tempdir().unwrap();
    run(whole.path(), STEPS, &[]);
    let mut out = tempfile::tempdir().unwrap();
    let (mut done, mut finished) = (0, 0);
    while done < kills {
        let mut child = command(out.path(), STEPS, &["--resume", "--force"])
            .spawn()
            .unwrap();
        // A different part of the run each time; a whole one has some thirty changes.
        let changes = 1 + (done * 7 + 3) % 20 * 2;
        let seen = watch(&mut child, out.path(), changes);
        let ended = child.try_wait().unwrap();
        let _ = child.kill();
        let end = child.wait_with_output().unwrap();
        done += 1;
        assert!(!half_written(out.path()));
        let kept = checkpoints(out.path()).last().copied().unwrap_or(0);
        assert!(
            kept >= seen,
            "a checkpoint that was there is gone: {seen}, {kept}"
        );
        if let Some(status) = ended {
            assert!(status.success(), "{}", String::from_utf8_lossy(&end.stderr));
            compare(whole.path(), out.path());
            finished += 1;
            out = tempfile::tempdir().unwrap();
        }
    }
    run(out.path(), STEPS, &["--resume", "--force"]);
    compare(whole.path(), out.path());
    assert!(finished < done, "at least one run was killed");
}

#[track_caller]
fn compare(whole: &Path, parts: &Path) {
    for file in [
        "a/adapter.safetensors",
        "checkpoint-30/optimizer.safetensors",
    ] {
        assert_eq!(bytes(whole, file), bytes(parts, file), "{file}");
    }
    assert_eq!(log(whole), log(parts));
}

#[test]
fn a_run_that_is_another_one_says_what_differs() {
    let out = tempfile::tempdir().unwrap();
    run(out.path(), 3, &[]);
    let other = ["-a", "a=lora[r=4,dropout=0.1]", "--resume"];
    // The command has the adapter of rank 2, too: without it.
    let mut changed = Command::new(env!("CARGO_BIN_EXE_rewrite"));
    let first = command(out.path(), 6, &other);
    let mut args: Vec<OsString> = first.get_args().map(OsString::from).collect();
    let old = args.iter().position(|a| a == "-a").unwrap();
    args.drain(old..old + 2);
    let done = changed.args(args).output().unwrap();
    let said = String::from_utf8_lossy(&done.stderr);
    assert!(!done.status.success());
    assert!(
        said.contains("`r` of `a` of `adapters` was 2, is 4"),
        "{said}"
    );
    assert!(!said.contains("`parameters`"), "{said}");
}
