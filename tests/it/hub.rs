//! `rewrite hub` as a user runs it.

use super::desk::{Desk, stderr};
use super::support::fixture;
use super::support::hub::{COMMIT, Server, TOKEN};
use std::fs;

/// A folder, and a hub with these files that the command there talks to.
fn desk(files: &[(&str, &[u8], bool)]) -> (Desk, Server) {
    let (mut desk, server) = (Desk::new(), Server::new(files));
    let home = desk.folder().display().to_string();
    for (name, value) in [
        ("HF_ENDPOINT", Some(server.url.clone())),
        ("HF_HOME", Some(home)),
        ("HF_TOKEN", Some(TOKEN.to_owned())),
        ("HF_HUB_CACHE", None),
        ("HF_HUB_OFFLINE", None),
        ("TRANSFORMERS_OFFLINE", None),
    ] {
        desk.env(name, value);
    }
    (desk, server)
}

/// Exit 0, and the token is nowhere to be seen; what is on stdout.
fn ok(desk: &Desk, args: &[&str]) -> String {
    let out = desk.command(args);
    let (text, said) = (String::from_utf8_lossy(&out.stdout), stderr(&out));
    assert!(out.status.success(), "{args:?}\n{said}");
    assert!(!text.contains(TOKEN) && !said.contains(TOKEN));
    text.into_owned()
}

#[test]
fn pull_prints_where_files_are() {
    let (desk, _server) = desk(&[
        ("a.json", b"{}", false),
        ("main/train.jsonl", b"{}\n", false),
    ]);
    let text = ok(&desk, &["hub", "pull", "org/repo:main", "-vv"]);
    assert_eq!(
        text.trim(),
        desk.path("hub/models--org--repo")
            .join(format!("snapshots/{COMMIT}/main/train.jsonl"))
            .display()
            .to_string()
    );
    let text = ok(
        &desk,
        &[
            "hub",
            "pull",
            "org/repo",
            "--exclude",
            "main/",
            "-o",
            "out",
            "--json",
        ],
    );
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&json["commit"], &json["folder"]),
        (&COMMIT.into(), &"out".into())
    );
    assert!(desk.folder().join("out/a.json").exists());
    let text = ok(&desk, &["hub", "pull", "org/repo", "--list"]);
    assert!(text.contains("main/train.jsonl"));
    let text = ok(
        &desk,
        &[
            "hub",
            "pull",
            "org/repo",
            "--repo-type",
            "dataset",
            "--revision",
            COMMIT,
        ],
    );
    assert!(text.contains("datasets--org--repo"));
}

/// Rows of token ids.
fn rows(n: usize) -> Vec<u8> {
    "{\"input_ids\": [1, 2, 3]}\n".repeat(n).into_bytes()
}

/// What the record of a run says of its data, and the number of examples that were trained on.
fn trained(desk: &Desk, more: &[&str]) -> (serde_json::Value, u64) {
    let model = fixture("qwen3/model.onnx").display().to_string();
    let args = [
        "train",
        &model,
        "--adapter",
        "lora",
        "--max-steps",
        "1",
        "--output-dir",
        "out",
        "--force",
    ];
    ok(desk, &[&args, more].concat());
    let read = |name: &str| fs::read_to_string(desk.path("out").join(name)).unwrap();
    let run: serde_json::Value = serde_json::from_str(&read("run.json")).unwrap();
    let log = read("log.jsonl");
    let begin = log.lines().last().unwrap();
    let begin = log
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap())
        .find(|e| e.get("examples").is_some())
        .unwrap_or_else(|| panic!("{begin}"));
    (run["job"].clone(), begin["examples"].as_u64().unwrap())
}

#[test]
fn training_reads_the_split_and_configuration_that_are_asked_for() {
    let card = b"---\nconfigs:\n- config_name: main\n  default: true\n  data_files:\n  - split: train\n    path: main/train-*\n  - split: test\n    \
path: main/test-*\n- config_name: other\n  data_dir: other\n---\n";
    let (three, two, five) = (rows(3), rows(2), rows(5));
    let (desk, server) = desk(&[
        ("README.md", &card[..], false),
        ("main/train-0.jsonl", &three, false),
        ("main/test-0.jsonl", &two, false),
        ("other/train.jsonl", &five, false),
        ("other/test.jsonl", &five, false),
    ]);
    let data = "hub:datasets/org/repo";
    let (job, examples) = trained(&desk, &["--data", data]);
    let pinned = format!("hub:datasets/org/repo@{COMMIT}");
    assert_eq!((&job["data"], examples), (&serde_json::json!([pinned]), 3));
    let asked = |name: &str| {
        let state = server.state.lock().unwrap();
        state.seen.iter().any(|s| s.line.contains(name))
    };
    assert!(
        asked("main/test-0.jsonl") && !asked("other/"),
        "only the configuration is pulled"
    );
    for (more, n) in [
        (&["--data", "hub:datasets/org/repo:other"][..], 5),
        (
            &[
                "--data",
                data,
                "--data-config",
                "other",
                "--train-split",
                "train[:80%]",
            ],
            4,
        ),
        (&["--data", data, "--train-split", "train+test"], 5),
        (&["--data", "hub:datasets/org/repo:main/test-0.jsonl"], 2),
        (&["--data", "hub:datasets/org/repo:*/train*"], 8),
    ] {
        assert_eq!(trained(&desk, more).1, n, "{more:?}");
    }
    let model = fixture("qwen3/model.onnx").display().to_string();
    let out = desk.command(&[
        "train",
        &model,
        "--output-dir",
        "new",
        "--data",
        "hub:datasets/org/repo:man",
    ]);
    let said = stderr(&out);
    assert_eq!(out.status.code(), Some(1));
    assert!(
        said.contains("did you mean `main`") && !desk.path("new").exists(),
        "{said}"
    );
}

#[test]
fn a_push_after_training_is_checked_before_the_first_step() {
    let (mut desk, server) = desk(&[]);
    let model = fixture("qwen3/model.onnx").display().to_string();
    let data = fixture("train/ids.jsonl").display().to_string();
    let train = [
        "train",
        &model,
        "--data",
        &data,
        "--max-steps",
        "1",
        "--output-dir",
        "out",
        "--push-to-hub",
        "--hub-model-id",
        "mine",
    ];
    ok(&desk, &train);
    let seen = server.seen("POST /api/models/");
    assert!(
        seen.iter().all(|s| s.line.contains("/api/models/me/mine/")) && !seen.is_empty(),
        "{seen:?}"
    );
    fs::remove_dir_all(desk.path("out")).unwrap();
    for (token, says) in [
        (None, "a push needs a token"),
        (Some("hf_wrong"), "the token was refused"),
    ] {
        desk.env("HF_TOKEN", token.map(str::to_owned));
        let out = desk.command(&train);
        assert_eq!(out.status.code(), Some(1));
        assert!(stderr(&out).contains(says), "{}", stderr(&out));
        assert!(!desk.path("out").exists(), "nothing is trained");
    }
}

#[test]
fn bad_requests_end_with_one_and_leave_nothing() {
    let (desk, _server) = desk(&[("a.json", b"{}", false)]);
    for (args, says) in [
        (&["hub", "pull", "org/none", "-vv"][..], "hub-repo"),
        (&["hub", "pull", "org/repo:b.json"], "did you mean `a.json`"),
        (&["hub", "pull", "../x"], "hub-reference"),
        (&["hub", "pull", "org/repo@nope"], "hub-revision"),
        (&["hub", "push", "nope", "org/repo"], "cannot be read"),
    ] {
        let out = desk.command(args);
        let said = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{args:?}");
        assert!(said.contains(says) && !said.contains(TOKEN), "{said}");
        assert!(out.stdout.is_empty());
    }
    assert!(!desk.folder().join("hub").exists());
}

#[test]
fn a_pushed_adapter_has_a_card_of_its_training() {
    let (desk, server) = desk(&[]);
    let out = desk.folder().join("out");
    let [model, data] = ["qwen3/model.onnx", "train/ids.jsonl"].map(fixture);
    let [model, data] = [&model, &data].map(|p| p.to_str().unwrap());
    ok(
        &desk,
        &[
            "train",
            model,
            "-i",
            "qwen3",
            "-a",
            "lora[r=2]",
            "--data",
            data,
            "--max-steps",
            "1",
            "--output-dir",
            "out",
        ],
    );
    let text = fs::read_to_string(out.join("run.json")).unwrap();
    let mut run: serde_json::Value = serde_json::from_str(&text).unwrap();
    run["job"] = serde_json::json!({"learning_rate": 1e-3, "seed": 42, "resume_from_checkpoint": "/home/me/x", "data": "hub:datasets/openai/gsm8k:main", "output_dir": "/home/me"});
    run["end"] = serde_json::json!({"steps": 20, "train_loss": 0.5, "best_step": 10});
    run["evaluations"] = serde_json::json!([
        {"step": 10, "metrics": {"loss": 0.25}},
        {"step": 20, "metrics": {"loss": 0.75}},
    ]);
    fs::write(out.join("run.json"), run.to_string()).unwrap();
    // An adapter that stands beside the record, and is of no run.
    let other = out.join("other");
    fs::create_dir_all(&other).unwrap();
    for name in ["adapter_config.json", "pytorch_adapter.bin"] {
        let from = fixture("qwen3/plugin/lora_qv").join(name);
        fs::copy(from, other.join(name)).unwrap();
    }
    let dry = ["hub", "push", "out/other", "org/repo", "--dry-run"];
    let done = desk.command(&dry);
    let (card, said) = [done.stdout, done.stderr]
        .map(|b| String::from_utf8(b).unwrap())
        .into();
    assert!(
        done.status.success() && said.contains("warning[run-record]"),
        "{said}"
    );
    assert!(!card.contains("0.25") && !card.contains("gsm8k"), "{card}");
    let done = desk.command(&[&dry[..], &["--run", "out/run.json"]].concat());
    assert_eq!(done.status.code(), Some(1));
    // The same weights under another name are the run's.
    ok(&desk, &["adapter", "rename", "out/lora", "mine"]);
    let args = [
        "hub",
        "push",
        "out/mine",
        "org/repo",
        "--base-model",
        "Qwen/Qwen3-0.6B",
        "--license",
        "mit",
    ];
    let card = ok(&desk, &[&args[..], &["--dry-run"]].concat());
    for part in [
        "base_model: Qwen/Qwen3-0.6B",
        "- openai/gsm8k",
        "| loss | 0.25 |",
        "| `learning_rate` | 0.001 |",
        "license: mit",
        "- adapter-transformers",
    ] {
        assert!(card.contains(part), "{part}\n{card}");
    }
    assert!(!card.contains("/home/me"), "no paths of this machine");
    assert!(server.seen("").is_empty(), "nothing is sent");

    let text = ok(&desk, &[&args[..], &["--create", "-vv"]].concat());
    assert!(text.contains(&format!("commit {COMMIT}")));
    let state = server.state.lock().unwrap();
    let paths: Vec<&str> = state.commits[0]
        .iter()
        .filter_map(|l| l["value"]["path"].as_str())
        .collect();
    assert!(
        paths.contains(&"README.md") && paths.contains(&"adapter_config.json"),
        "{paths:?}"
    );
}

#[test]
fn a_token_that_only_reads_is_told_before_the_first_step() {
    let (desk, server) = desk(&[]);
    let [model, data] = ["qwen3/model.onnx", "train/ids.jsonl"].map(fixture);
    let [model, data] = [&model, &data].map(|p| p.to_str().unwrap());
    server.state.lock().unwrap().auth =
        serde_json::json!({"type": "access_token", "accessToken": {"role": "read"}});
    let out = desk.command(&[
        "train",
        model,
        "-i",
        "qwen3",
        "-a",
        "lora",
        "--data",
        data,
        "--max-steps",
        "1",
        "--push-to-hub",
        "--output-dir",
        "out",
    ]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{said}");
    assert!(
        said.contains("may read, and not write to me/out") && said.contains("HF_TOKEN"),
        "{said}"
    );
    assert!(!desk.folder().join("out/log.jsonl").exists() && !said.contains(TOKEN));
}

/// The text of a fixture's file.
fn bytes(name: &str) -> Vec<u8> {
    fs::read(fixture(name)).unwrap()
}

#[test]
fn a_model_is_trained_by_its_name_in_the_variant_that_is_asked_for() {
    let (model, config) = (bytes("qwen3/model.onnx"), bytes("qwen3/config.json"));
    let (desk, server) = desk(&[
        ("config.json", &config, false),
        ("onnx/model.onnx", b"not this", true),
        ("onnx/model_q4.onnx", &model, true),
        ("onnx/model_fp16.onnx", b"not this", true),
        ("train.jsonl", &rows(3), false),
    ]);
    let train = |more: &[&str]| {
        let line = [
            "train",
            "hub:org/repo",
            "-a",
            "lora[r=2]",
            "--data",
            "hub:datasets/org/repo",
            "--output-dir",
            "out",
        ];
        [&line[..], more].concat().join(" ")
    };
    let run = |line: &str| desk.command(&line.split(' ').collect::<Vec<_>>());
    let said = stderr(&run(&train(&["--variant", "q44"])));
    assert!(
        said.contains("no variant `q44`")
            && said.contains("there are `q4` (")
            && said.contains("help: --variant q4"),
        "{said}"
    );
    assert!(!desk.path("out").exists() && server.seen("resolve").is_empty());
    let first = train(&["--variant", "q4", "--max-steps", "2", "--save-steps", "1"]);
    let done = run(&first);
    assert!(done.status.success(), "{}", stderr(&done));
    let asked = server.seen("model");
    assert!(
        asked
            .iter()
            .all(|s| !s.line.contains("resolve") || s.line.contains("model_q4.onnx")),
        "one variant is pulled: {asked:?}"
    );
    let read = |name: &str| -> serde_json::Value {
        serde_json::from_str(&fs::read_to_string(desk.path("out").join(name)).unwrap()).unwrap()
    };
    let job = read("run.json")["job"].take();
    assert_eq!(
        job["model"],
        format!("hub:org/repo@{COMMIT}:onnx/model_q4.onnx")
    );
    assert_eq!(job["data"][0], format!("hub:datasets/org/repo@{COMMIT}"));
    let base = read("lora/adapter_config.json")["onnx_graft"]["hub"].take();
    assert_eq!(
        base,
        serde_json::json!({"repo": "org/repo", "revision": COMMIT, "file": "onnx/model_q4.onnx"})
    );
    let card = ok(&desk, &["hub", "push", "out/lora", "me/mine", "--dry-run"]);
    let usage = format!(
        "rewrite generate hub:org/repo@{COMMIT}:onnx/model_q4.onnx --adapter hub:me/mine --prompt"
    );
    assert!(
        card.contains(&usage) && card.contains("base_model: org/repo\n"),
        "{card}"
    );

    // The branch moves on, and the run does not.
    let moved = "f".repeat(40);
    server.state.lock().unwrap().commit = Some(moved.clone());
    let again = train(&["--variant", "q4", "--max-steps", "3", "--resume"]);
    let done = run(&again);
    let said = stderr(&done);
    assert!(!said.contains(&moved), "{said}");
    assert!(said.contains(&format!("org/repo at {COMMIT}")), "{said}");
}

#[test]
fn one_variant_is_pulled_into_a_folder_and_named_there() {
    let (model, config) = (bytes("qwen3/model.onnx"), bytes("qwen3/config.json"));
    let (desk, server) = desk(&[
        ("README.md", b"x", false),
        ("config.json", &config, false),
        ("onnx/model_q4.onnx", &model, true),
        ("onnx/model_fp16.onnx", b"not this", true),
    ]);
    let said = stderr(&desk.command(&["check", "hub:org/repo"]));
    assert!(
        said.contains("no model in full precision") && said.contains("`fp16` (8 bytes), `q4` ("),
        "{said}"
    );
    ok(
        &desk,
        &["hub", "pull", "org/repo", "--variant", "q4", "-o", "m"],
    );
    let pulled = server.seen("resolve");
    let other =
        |s: &super::support::hub::Seen| s.line.contains("fp16") || s.line.contains("README");
    assert!(!pulled.iter().any(other), "{pulled:?}");
    for args in [
        &["inspect", "m", "--variant", "q4"][..],
        &["check", "--quiet", "hub:org/repo", "--variant", "q4"],
        &["m", "--variant", "q4", "-a", "lora[r=2]", "-o", "new"],
    ] {
        ok(&desk, args);
    }
    let folder = fs::read_to_string(desk.path("new/lora/adapter_config.json")).unwrap();
    assert!(
        folder.contains(COMMIT),
        "a folder that was pulled into is known"
    );
    let out = desk.command(&["inspect", "m/onnx/model_q4.onnx", "--variant", "q8"]);
    assert_eq!(out.status.code(), Some(2), "{}", stderr(&out));
}
