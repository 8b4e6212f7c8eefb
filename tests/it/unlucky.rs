//! Runs that end early, meet each other, or meet what is damaged: nothing half-written is left, and nothing of two runs is mixed.

use super::desk::{Desk, stderr};
use super::support::fixture;
use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// Names in a folder.
fn names(folder: &Path) -> Vec<String> {
    let list = fs::read_dir(folder).into_iter().flatten();
    let mut names: Vec<String> = list
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn start(desk: &Desk, args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_rewrite"))
        .args(args)
        .current_dir(desk.folder())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// A size that makes tract call itself without end (a release build, whose stack ends) or panic (a debug build).
#[cfg(feature = "tract")]
#[test]
fn what_sends_an_engine_too_deep_is_an_error_without_a_trace() {
    let desk = Desk::new();
    let path = fixture("gpt2/model.onnx");
    let mut model = fs::read(&path).unwrap();
    let one = b"B\x06val_12J\x08\x01\0\0\0\0\0\0\0";
    let at = model.windows(one.len()).position(|w| w == one).unwrap();
    let number = at + one.len() - 8..at + one.len();
    model[number].copy_from_slice(&i64::MIN.to_le_bytes());
    fs::write(desk.path("odd.onnx"), model).unwrap();
    let known = path.to_str().unwrap();
    let out = desk.command(&["verify", known, "odd.onnx", "--engine", "tract"]);
    let said = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.starts_with("error["), "{said}");
    assert!(
        !said.contains("overflowed") && !said.contains("panicked"),
        "{said}"
    );
}

#[test]
fn a_damaged_tokenizer_is_an_error_without_a_trace() {
    let desk = Desk::new();
    let text = fs::read_to_string(fixture("skill/tokenizer.json")).unwrap();
    let damaged = text.replace("\"decoder\": null", "\"decoder\": \"\\ud800\"");
    assert_ne!(damaged, text);
    desk.write("tokenizer.json", &damaged);
    let model = fixture("skill/model.onnx");
    let args = [
        "generate",
        model.to_str().unwrap(),
        "--tokenizer",
        "tokenizer.json",
        "--prompt",
        "a",
    ];
    let out = desk.command(&args);
    let said = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.starts_with("error[tokenizer]") && !said.contains("panicked"),
        "{said}"
    );
}

#[test]
fn a_folder_that_cannot_be_written_leaves_no_model_alone() {
    let desk = Desk::with("qwen3/model.onnx");
    // A folder stands where a file of the adapter is to be.
    fs::create_dir_all(desk.path("out/a/adapter.safetensors/full")).unwrap();
    let attach = [
        "-i",
        "interface.json",
        "-a",
        "a=lora",
        "model.onnx",
        "-o",
        "out/m.onnx",
    ];
    for force in [&[][..], &["--force"]] {
        let out = desk.command(&[&attach[..], force].concat());
        assert_eq!(out.status.code(), Some(1), "{}", stderr(&out));
        assert_eq!(names(&desk.path("out")), ["a"], "{force:?}");
        assert_eq!(names(&desk.path("out/a")), ["adapter.safetensors"]);
    }
    fs::remove_dir_all(desk.path("out/a")).unwrap();
    desk.ok(&attach);
    assert_eq!(names(&desk.path("out")), ["a", "m.onnx"]);
}

#[test]
fn writers_of_one_folder_do_not_mix() {
    let desk = Desk::with("qwen3/model.onnx");
    let ranks = ["a=lora[r=2]", "a=lora[r=4]", "a=lora[r=8]", "a=lora[r=16]"];
    let attach = |spec| {
        start(
            &desk,
            &[
                "-i",
                "interface.json",
                "-a",
                spec,
                "model.onnx",
                "-o",
                "out/m.onnx",
                "--force",
            ],
        )
    };
    let mut running: Vec<Child> = ranks.into_iter().map(attach).collect();
    let ended = running.iter_mut().map(|c| c.wait().unwrap().success());
    // All of them, before the first is looked at.
    let ended: Vec<bool> = ended.collect();
    assert!(ended.iter().all(|e| *e));
    assert_eq!(names(&desk.path("out")), ["a", "m.onnx"]);
    // The folder can be read, and it is the one of the model.
    desk.ok(&[
        "-i",
        "interface.json",
        "-a",
        "out/a",
        "model.onnx",
        "-o",
        "again/m.onnx",
    ]);
    desk.ok(&[
        "verify",
        "out/m.onnx",
        "again/m.onnx",
        "--atol",
        "0",
        "--rtol",
        "0",
    ]);
}

/// Asks a process to end.
#[cfg(unix)]
fn signal(name: &str, child: &Child) {
    let done = Command::new("kill")
        .args([name, &child.id().to_string()])
        .status();
    assert!(done.unwrap().success());
}

#[cfg(unix)]
#[test]
fn a_signal_leaves_nothing_staged() {
    for name in ["-TERM", "-INT", "-HUP"] {
        let desk = Desk::with("qwen3/model.onnx");
        fs::create_dir(desk.path("out")).unwrap();
        let mut child = start(
            &desk,
            &[
                "-i",
                "interface.json",
                "-a",
                "lora[r=16384]",
                "model.onnx",
                "-o",
                "out/m.onnx",
            ],
        );
        // Until there is something to leave behind.
        let status = loop {
            if let Some(status) = child.try_wait().unwrap() {
                break Some(status);
            }
            if names(&desk.path("out")).iter().any(|n| n.starts_with('.')) {
                break None;
            }
        };
        assert!(status.is_none(), "{name}: nothing was staged: {status:?}");
        signal(name, &child);
        let status = child.wait().unwrap();
        if !status.success() {
            assert_eq!(status.code(), Some(130), "{name}");
        }
        let left = names(&desk.path("out"));
        assert!(left.iter().all(|n| !n.starts_with('.')), "{name}: {left:?}");
    }
}

/// The last update is followed by no loss that would show it.
#[test]
fn an_update_that_overflows_is_not_saved() {
    let desk = Desk::with("qwen3/model.onnx");
    let data = fixture("train/ids.jsonl");
    let on = ["train", "model.onnx", "-i", "interface.json", "-a", "lora"];
    let to = ["--output-dir", "out", "--max-steps", "1", "--data"];
    let rate = [data.to_str().unwrap(), "--learning-rate", "1e38"];
    let out = desk.command(&[&on[..], &to, &rate].concat());
    let said = stderr(&out);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(said.contains("error[weights-finite]"), "{said}");
    assert!(!desk.path("out/lora").exists() && !desk.path("out/checkpoint-1").exists());
}
