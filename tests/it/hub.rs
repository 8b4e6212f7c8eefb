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
