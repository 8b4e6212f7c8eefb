//! The command line that scripts are written against: no command and no flag of it is lost or renamed.

use super::desk::{Desk, stderr};
use super::support::fixture;

/// Commands, and the flags that each has for good.
const PAGE: [(&str, &str); 29] = [
    (
        "",
        "--interface --adapter --active --output --force --dry-run --seed --json --quiet --verbose --help --version",
    ),
    ("inspect", "--interface"),
    ("interface list", ""),
    ("interface show", ""),
    ("interface check", ""),
    ("interface infer", "--output --force"),
    (
        "run",
        "--inputs --outputs --output --loss --grad --interface --adapter --active --force --device --backend --dtype --threads --seed",
    ),
    (
        "train",
        "--interface --adapter --active --train-adapters --data --loss --learning-rate --per-device-train-batch-size \
         --gradient-accumulation-steps --max-steps --num-train-epochs --weight-decay --lr-scheduler-type --max-grad-norm --warmup-ratio \
         --eval-steps --save-steps --logging-steps --load-best-model-at-end --bf16 --seed --output-dir --device --backend --dtype --threads \
         --force",
    ),
    (
        "eval",
        "--data --metrics --interface --adapter --device --backend --dtype --threads --seed --force",
    ),
    (
        "generate",
        "--prompt --prompts --interface --adapter --max-new-tokens --device --backend --dtype --threads --seed",
    ),
    ("merge", "--adapter --interface --output --force"),
    ("strip", "--name --output --force"),
    ("adapter", ""),
    ("adapter summary", ""),
    ("adapter average", "--output --force"),
    ("adapter convert", "--to --output --force"),
    ("adapter rename", "--force"),
    ("adapter delete", ""),
    ("diff", "--exit-code"),
    ("print", "--module"),
    (
        "verify",
        "--engine --inputs --atol --rtol --device --backend --dtype --threads --seed",
    ),
    ("hub pull", "--force"),
    ("hub push", "--create"),
    ("completions", ""),
    ("man", "--force"),
    ("check", "--interface"),
    ("report", "--output --force"),
    // Where a build has them, they have these.
    ("graph?", "--adapter --output --force"),
    ("export-adapter?", "--adapter --output --force"),
];

#[test]
fn commands_and_flags_are_those_of_the_page() {
    let desk = Desk::new();
    let known = desk.ok(&["--help"]);
    let mut walked = 0;
    for (command, flags) in PAGE {
        let (command, optional) = match command.strip_suffix('?') {
            Some(command) => (command, true),
            None => (command, false),
        };
        if optional && !known.lines().any(|l| l.trim_start().starts_with(command)) {
            continue;
        }
        let words: Vec<&str> = command.split(' ').filter(|w| !w.is_empty()).collect();
        let help = desk.ok(&[&words[..], &["--help"]].concat());
        for flag in flags.split_whitespace() {
            let whole = |c: char| !(c.is_alphanumeric() || c == '-');
            let has = help.split(whole).any(|word| word == flag);
            assert!(has, "`{command}` has lost `{flag}`:\n{help}");
        }
        assert!(help.contains("Usage: rewrite"), "{help}");
        walked += 1;
    }
    assert!(walked >= 26);
}

#[test]
fn values_are_those_of_the_page() {
    let desk = Desk::with("qwen3/model.onnx");
    for shell in ["bash", "zsh", "fish"] {
        assert!(desk.ok(&["completions", shell]).contains("rewrite"));
    }
    let run = |name: &str, more: &[&str]| {
        let args = [
            "run",
            "model.onnx",
            "--inputs",
            "inputs.safetensors",
            "--outputs",
            name,
            "--output",
            "logits",
        ];
        desk.ok(&[&args[..], more].concat());
        std::fs::read(desk.path(name)).unwrap()
    };
    let plain = run("plain", &[]);
    // No processor multiplies faster in f16: it is computed in f32.
    assert!(run("f16", &["--dtype", "f16"]) == plain && run("f32", &["--dtype", "f32"]) == plain);
    assert_eq!(run("bf16", &["--dtype", "bf16"]).len(), plain.len());
    assert!(
        run(
            "candle",
            &["--backend", "candle", "--device", "cpu", "--threads", "1"]
        ) == plain
    );
    assert_eq!(
        run("native", &["--backend", "native"]),
        run("too", &["--native"])
    );
    for engine in ["candle", "tract"] {
        if engine == "tract" && cfg!(not(feature = "tract")) {
            continue;
        }
        desk.ok(&[
            "verify",
            "model.onnx",
            "model.onnx",
            "--engine",
            engine,
            "--rtol",
            "1e-3",
            "--atol",
            "1e-3",
        ]);
    }
    desk.ok(&["diff", "model.onnx", "model.onnx", "--exit-code"]);
}

#[test]
fn exit_codes_and_outputs_are_those_of_the_page() {
    let desk = Desk::with("qwen3/model.onnx");
    // 2: wrong arguments. 1: the work failed, and nothing is written.
    for args in [
        &["nothing", "at", "all"][..],
        &["run", "model.onnx"],
        &["--dtype", "f64"],
    ] {
        let out = desk.command(args);
        assert_eq!(out.status.code(), Some(2), "{args:?}\n{}", stderr(&out));
    }
    // A wrong value is a wrong argument too, whatever else is given.
    for (command, flag, value, said) in [
        ("train", "--bf16", "maybe", "true or false"),
        ("train", "--learning-rate", "-1", "--learning-rate must be"),
        ("train", "--adam-beta1", "2", "--adam-beta1 must be"),
        ("train", "--seed", "-1", "whole number of at least 0"),
        ("train", "--per-device-train-batch-size", "0", "at least 1"),
        ("train", "--max-length", "1", "at least 2"),
        ("train", "--pad-to-multiple-of", "0", "at least 1"),
        ("train", "--columns", "txt=a", "there is no role `txt`"),
        ("train", "--deepspeed", "z.json", "not followed here"),
        ("train", "--eos-token", "<|end|>", "not followed here"),
        ("train", "--adapter", "lorra", "nearest one is `lora`"),
        ("train", "--adapter", "a=lora[r=x]", "`r` is \"x\""),
        ("train", "--interface", "qwen33", "nearest built-in: qwen3"),
        ("run", "--device", "gpu", "cpu, cuda or cuda:N"),
        ("run", "--threads", "0", "0 is not in 1.."),
        ("eval", "--max-eval-samples", "0", "at least 1"),
        ("generate", "--top-p", "2", "--top-p must be"),
        ("generate", "--max-new-tokens", "-2", "at least 0"),
    ] {
        let out = desk.command(&[command, flag, value, "model.onnx"]);
        let text = stderr(&out);
        assert_eq!(out.status.code(), Some(2), "{flag} {value}\n{text}");
        assert!(text.contains(said), "{flag} {value}\n{text}");
    }
    desk.fails(&["print", "none.onnx"]);
    let attach = ["--interface", "qwen3", "--adapter", "lora", "model.onnx"];
    let out = desk.command(&attach);
    assert_eq!(out.status.code(), Some(0), "{}", stderr(&out));
    assert!(desk.path("model.lora.onnx").exists() && desk.path("lora").is_dir());
    // Inputs are not modified; outputs only with --force.
    let model = std::fs::read(desk.path("model.onnx")).unwrap();
    assert!(model == std::fs::read(fixture("qwen3/model.onnx")).unwrap());
    assert!(desk.fails(&attach).contains("--force"));
    let args = [
        "--interface",
        "qwen3",
        "--adapter",
        "lora",
        "--force",
        "model.onnx",
    ];
    let report = desk.json(&args);
    assert!(report["model"].is_string());
    // A built-in interface is named with and without .json; a configuration string names an adapter.
    desk.json(&[
        "--interface",
        "qwen3.json",
        "--adapter",
        "mine=lora[r=2]",
        "model.onnx",
        "--dry-run",
    ]);
}

#[test]
fn a_model_is_checked_and_runs_are_compared() {
    let desk = Desk::with("qwen3/model.onnx");
    let found = desk.json(&["check", "model.onnx"]);
    let aspects = found["aspects"].as_array().unwrap();
    let good =
        |purpose: &str| aspects.iter().find(|a| a["purpose"] == purpose).unwrap()["good"] == true;
    assert!(
        ["adapting", "training", "generating", "shapes"]
            .iter()
            .all(|p| good(p)),
        "{found}"
    );
    let said = desk.ok(&["check", fixture("vit/model.onnx").to_str().unwrap()]);
    assert!(said.contains("generating  no"), "{said}");
    let data = fixture("train/ids.jsonl").display().to_string();
    for (rate, out) in [("1e-3", "a"), ("1e-2", "b")] {
        let args = [
            "train",
            "model.onnx",
            "--data",
            &data,
            "--max-steps",
            "2",
            "--learning-rate",
            rate,
            "--output-dir",
            out,
        ];
        desk.ok(&args);
    }
    desk.ok(&["report", "a", "b", "-o", "page.html"]);
    let page = std::fs::read_to_string(desk.path("page.html")).unwrap();
    for part in [
        "Comparison of 2 runs",
        "Training loss",
        "learning_rate",
        "0.001",
        "0.01",
        "class=\"legend b\"",
    ] {
        assert!(page.contains(part), "{part}");
    }
    assert!(
        desk.fails(&["report", "a", "b", "-o", "page.html"])
            .contains("--force")
    );
    assert!(desk.fails(&["report", "nowhere"]).contains("nowhere"));
}
