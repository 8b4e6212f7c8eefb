//! What strangers send, and what goes wrong while a command runs: small files that ask for much, outputs over inputs, names that are taken,
//! files that are none or that change. `fixtures/make_hostile.py` makes the files.

use super::desk::{Desk, stderr};
use super::support::fixture;
use std::fs;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

fn path(name: &str) -> String {
    fixture(name).to_str().unwrap().to_owned()
}

/// Models whose results are terabytes, and what the message names.
const LARGE: [(&str, &str); 11] = [
    ("constant_of_shape", "[1048576, 1048576]"),
    ("expand", "[1048576, 1048576]"),
    ("tile", "[4398046511104]"),
    ("pad", "[4398046511105]"),
    ("one_hot", "[1024, 4294967296]"),
    ("range", "[4398046511104]"),
    ("broadcast", "[1048576, 1048576]"),
    ("product", "[1048576, 1048576]"),
    ("einsum", "[1048576, 1, 1, 1048576]"),
    ("gather", "[1048576, 1048576]"),
    ("resize", "[1, 1, 1048576, 1048576]"),
];

#[test]
fn what_does_not_fit_in_memory_is_refused_before_it_is_made() {
    let desk = Desk::new();
    let inputs = path("hostile/x.safetensors");
    for (name, shape) in LARGE {
        let model = path(&format!("hostile/{name}.onnx"));
        let message = desk.fails(&["run", &model, "--inputs", &inputs, "--outputs", "o"]);
        for part in [shape, "TiB", "--memory-limit"] {
            assert!(message.contains(part), "{name}: {message}");
        }
    }
    for name in ["input", "input_longest"] {
        let model = path(&format!("hostile/{name}.onnx"));
        let message = desk.fails(&["verify", &model, &model]);
        assert!(message.contains("the input `x`"), "{message}");
    }
    let calls = path("hostile/calls.onnx");
    let message = desk.fails(&["run", &calls, "--inputs", &inputs, "--outputs", "o"]);
    assert!(message.contains("1048576 nodes"), "{message}");
}

#[test]
fn the_limit_is_the_users_to_set() {
    let desk = Desk::with("qwen3/model.onnx");
    let run = [
        "run",
        "model.onnx",
        "--inputs",
        "inputs.safetensors",
        "--outputs",
        "o",
    ];
    desk.ok(&[&run[..], &["--force", "--memory-limit", "1G"]].concat());
    let message = desk.fails(&[&run[..], &["--force", "--memory-limit", "4K"]].concat());
    assert!(message.contains("the limit is 4.0 KiB"), "{message}");
    let message = desk.misused(&[&run[..], &["--memory-limit", "much"]].concat());
    assert!(message.contains("as in 8G"), "{message}");
}

#[test]
fn rows_classes_and_ranks_have_a_bound() {
    let refused = |arch: &str, data: &str, more: &[&str]| {
        let desk = Desk::with(&format!("{arch}/model.onnx"));
        let rows =
            "{\"input_ids\": [1, 2], \"label\": 1000000000}\n{\"input_ids\": [1], \"label\": 0}\n";
        desk.write("rows.jsonl", rows);
        let own = ["train", "model.onnx", "-i", "interface.json"];
        let to = ["--output-dir", "out", "--max-steps", "1", "--data", data];
        desk.fails(&[&own[..], &to, more].concat())
    };
    let task = ["-a", "lora", "--task", "classification"];
    let message = refused("distilbert", "rows.jsonl", &task);
    assert!(message.contains("1000000001 classes"), "{message}");
    let message = refused("qwen3", "rows.jsonl", &["-a", "lora[r=100000000]"]);
    assert!(message.contains("param-size"), "{message}");
    let tokenizer = path("tokenizer/tokenizer.json");
    let long = path("hostile/long.parquet");
    let message = refused("qwen3", &long, &["-a", "lora", "--tokenizer", &tokenizer]);
    assert!(message.contains("row 2 is longer than 64 MiB"), "{message}");
}

/// Each would write over something that it reads.
#[test]
fn inputs_are_never_modified() {
    let desk = Desk::with("qwen3/model.onnx");
    let lora = fixture("qwen3/plugin/lora_qv");
    fs::create_dir(desk.path("l")).unwrap();
    for file in fs::read_dir(&lora).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), desk.path("l").join(file.file_name())).unwrap();
    }
    fs::hard_link(desk.path("l/adapter_config.json"), desk.path("config.json")).unwrap();
    fs::copy(fixture("onnx/external.onnx"), desk.path("external.onnx")).unwrap();
    let data = "external.onnx.data";
    fs::copy(fixture(&format!("onnx/{data}")), desk.path(data)).unwrap();
    fs::create_dir(desk.path("weights")).unwrap();
    fs::copy(
        fixture("onnx/weights/more.bin"),
        desk.path("weights/more.bin"),
    )
    .unwrap();
    let on = ["-i", "interface.json", "-a", "l"];
    let with = |args: &[&'static str]| [args, &on].concat();
    let run = [
        "run",
        "model.onnx",
        "--inputs",
        "inputs.safetensors",
        "--outputs",
    ];
    let attacks = [
        vec!["adapter", "rename", "l", "x", "-o", "l"],
        vec!["adapter", "average", "x", "-a", "l", "-a", "l", "-o", "l"],
        vec!["adapter", "convert", "l", "--to", "peft", "-o", "l"],
        with(&["merge", "model.onnx", "-o", "l/adapter_config.json"]),
        with(&["merge", "model.onnx", "-o", "model.onnx"]),
        with(&["merge", "model.onnx", "-o", "config.json"]),
        with(&["model.onnx", "-o", "l/adapter_config.json"]),
        with(&["model.onnx", "-o", "interface.json"]),
        with(&[&run[..], &["l/adapter_config.json"]].concat()),
        with(&[&run[..], &["inputs.safetensors"]].concat()),
        vec!["strip", "external.onnx", "-o", data],
        vec!["strip", "external.onnx", "-o", "weights/more.bin"],
    ];
    for attack in attacks {
        // The message of each says that inputs are kept; what a command does not offer would say something else.
        let message = desk.fails(&[&attack[..], &["--force"]].concat());
        assert!(
            message.contains("inputs are never modified"),
            "{attack:?}\n{message}"
        );
    }
}

#[test]
fn data_files_never_collide() {
    let desk = Desk::new();
    let from = |folder: &str, byte: u8| {
        fs::create_dir_all(desk.path(folder).join("weights")).unwrap();
        for file in ["external.onnx", "external.onnx.data", "weights/more.bin"] {
            let mut bytes = fs::read(fixture("onnx").join(file)).unwrap();
            if file == "external.onnx.data" {
                bytes[0] ^= byte;
            }
            fs::write(desk.path(folder).join(file), bytes).unwrap();
        }
    };
    fs::create_dir(desk.path("o")).unwrap();
    fs::create_dir(desk.path("p")).unwrap();
    from("a", 0);
    from("b", 1);
    // The same name, in one folder: the second model gets data of another name. Once more, and replaced.
    desk.ok(&["strip", "a/external.onnx", "-o", "o/x.onnx"]);
    desk.ok(&["strip", "b/external.onnx", "-o", "o/y.onnx"]);
    desk.ok(&["strip", "b/external.onnx", "-o", "o/y.onnx", "--force"]);
    // The output has the name of the input's data.
    desk.ok(&["strip", "b/external.onnx", "-o", "p/external.onnx.data"]);
    for (a, b) in [
        ("a/external.onnx", "o/x.onnx"),
        ("b/external.onnx", "o/y.onnx"),
        ("b/external.onnx", "p/external.onnx.data"),
    ] {
        desk.ok(&["verify", a, b]);
    }
    // Another model in the place of the second: its data go, those of the first stay.
    desk.ok(&["strip", "a/external.onnx", "-o", "o/y.onnx", "--force"]);
    desk.ok(&["verify", "a/external.onnx", "o/y.onnx"]);
    let mut left: Vec<String> = fs::read_dir(desk.path("o"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    left.sort();
    assert_eq!(left, ["external.onnx.data", "weights", "x.onnx", "y.onnx"]);
}

#[test]
fn names_do_not_act_on_the_terminal() {
    let desk = Desk::new();
    let model = path("hostile/escapes.onnx");
    for command in ["inspect", "print"] {
        let out = desk.command(&[command, &model]);
        let text = [out.stdout, out.stderr].concat();
        assert!(!text.contains(&0x1b), "{command}");
        assert!(String::from_utf8_lossy(&text).contains("[2J"), "{command}");
    }
}

/// Pipes and devices are no files: nothing waits for them, and nothing reads them to their end.
#[cfg(target_os = "linux")]
#[test]
fn only_files_are_read() {
    let desk = Desk::with("qwen3/model.onnx");
    for name in ["f.onnx", "f.jsonl", "f.json"] {
        let made = Command::new("mkfifo").arg(desk.path(name)).status();
        assert!(made.unwrap().success());
    }
    std::os::unix::fs::symlink("/dev/zero", desk.path("z.json")).unwrap();
    let on = ["-i", "interface.json", "-a", "lora", "--output-dir", "o"];
    let attacks = [
        vec!["inspect", "f.onnx"],
        [&["train", "model.onnx", "--data", "f.jsonl"], &on[..]].concat(),
        vec!["inspect", "model.onnx", "-i", "f.json"],
        vec!["inspect", "model.onnx", "-i", "z.json"],
        vec!["train", "f.json"],
        vec!["run", "model.onnx", "--inputs", "f.json", "--outputs", "o"],
        vec![
            "generate",
            "model.onnx",
            "--tokenizer",
            "z.json",
            "--prompt",
            "x",
        ],
    ];
    for attack in attacks {
        let out = desk.command(&attack);
        let message = stderr(&out);
        assert_eq!(out.status.code(), Some(1), "{attack:?}\n{message}");
        assert!(
            message.contains("not a regular file"),
            "{attack:?}\n{message}"
        );
    }
}

/// A file that becomes shorter ends the work with a message; one that changes is noticed.
#[cfg(unix)]
#[test]
fn files_that_change_under_a_run_are_noticed() {
    let desk = Desk::with("qwen3/model.onnx");
    desk.write("rows.jsonl", &"{\"input_ids\": [5, 6, 7, 8]}\n".repeat(8));
    desk.ok(&[
        "merge",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        &path("qwen3/plugin/lora_qv"),
        "-o",
        "merged.onnx",
    ]);
    // What is read again after it was cut off ends the process at once; what is not is seen at the end.
    for (name, cut) in [("short", true), ("changed", false)] {
        let expected = "while it was read";
        let model = format!("{name}.onnx");
        fs::copy(desk.path("merged.onnx"), desk.path(&model)).unwrap();
        let mut run = Command::new(env!("CARGO_BIN_EXE_rewrite"))
            .args([
                "train",
                &model,
                "-i",
                "interface.json",
                "-a",
                "a=lora[r=2]",
                "--data",
                "rows.jsonl",
            ])
            .args([
                "--output-dir",
                name,
                "--num-train-epochs",
                "2000",
                "--logging-steps",
                "1",
            ])
            .current_dir(desk.folder())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        // It reads weights in every step; a first one has been done when the log has a line.
        let begun = Instant::now();
        let log = desk.path(name).join("log.jsonl");
        while !fs::read(&log).is_ok_and(|l| l.len() > 10) {
            assert!(begun.elapsed() < Duration::from_mins(1), "no step was done");
            assert!(run.try_wait().unwrap().is_none(), "{name}: it has ended");
            std::thread::sleep(Duration::from_millis(5));
        }
        let file = fs::OpenOptions::new()
            .write(true)
            .open(desk.path(&model))
            .unwrap();
        if cut {
            file.set_len(100).unwrap();
        } else {
            file.set_modified(std::time::SystemTime::UNIX_EPOCH)
                .unwrap();
        }
        let out = run.wait_with_output().unwrap();
        assert_eq!(out.status.code(), Some(1), "{name}: {}", stderr(&out));
        assert!(stderr(&out).contains(expected), "{name}: {}", stderr(&out));
    }
}
