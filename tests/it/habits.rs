//! What users of Hugging Face's libraries type, and what a run shows and keeps.

use super::desk::{Desk, stderr};
use super::support::fixture;
use serde_json::{Value as Json, json};
use std::fs;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/qwen3/model.onnx");
const PAST: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/fixtures/generate/qwen3-past.onnx"
);
const TOKENIZER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/fixtures/tokenizer/tokenizer.json"
);

fn ids() -> String {
    fixture("train/ids.jsonl").display().to_string()
}

/// A training of few steps.
fn train<'a>(model: &'a str, data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let args = ["train", model, "-i", "qwen3", "-a", "lora", "--data", data];
    [&args[..], more].concat()
}

fn read(desk: &Desk, name: &str) -> Json {
    serde_json::from_str(&fs::read_to_string(desk.path(name)).unwrap()).unwrap()
}

/// The losses that were logged, by step.
fn logged(desk: &Desk, name: &str) -> Vec<(u64, f64)> {
    let text = fs::read_to_string(desk.path(name)).unwrap();
    let events = text
        .lines()
        .map(|l| serde_json::from_str::<Json>(l).unwrap());
    events
        .filter(|e| e["event"] == "log")
        .map(|e| (e["step"].as_u64().unwrap(), e["loss"].as_f64().unwrap()))
        .collect()
}

#[test]
fn scripts_of_transformers_run() {
    let desk = Desk::new();
    let data = ids();
    let flags = [
        "--learning_rate",
        "1e-3",
        "--max_steps",
        "3",
        "--bf16",
        "true",
        "--output_dir",
        "out",
        "--report_to",
        "none",
        "--load_best_model_at_end",
        "False",
        "--seed",
        "7",
    ];
    desk.ok(&train(MODEL, &data, &flags));
    let run = read(&desk, "out/run.json");
    assert_eq!(
        (&run["job"]["learning_rate"], &run["job"]["bf16"]),
        (&json!(1e-3), &json!(true))
    );
    assert!(!desk.path("out/log.jsonl").exists() && !desk.path("out/report.html").exists());
    let job = json!({
        "model": MODEL, "interface": "qwen3", "adapter": "lora", "data": data, "output_dir": "all", "max_steps": 2,
        "report_to": "all", "run_name": "mine", "fp16": false, "remove_unused_columns": false, "deepspeed": null,
    });
    desk.write("job.json", &job.to_string());
    let out = desk.command(&["train", "job.json"]);
    let said = stderr(&out);
    assert!(out.status.success(), "{said}");
    let lines = said.lines().filter(|l| l.contains("ignored")).count();
    assert!(
        lines == 1 && said.contains("run_name, fp16, remove_unused_columns, deepspeed"),
        "{said}"
    );
    assert!(desk.path("all/report.html").exists() && desk.path("all/runs").exists());
    assert_eq!(
        logged(&desk, "all/log.jsonl").len(),
        2,
        "a short run has a curve"
    );
}

#[test]
fn arguments_that_change_nothing_are_flags_too() {
    let desk = Desk::new();
    let data = ids();
    let flags = "--max_steps 1 --output_dir out --logging_strategy steps --save_total_limit 2 --dataloader_num_workers 4 --fp16 \
                 --optim adamw_torch_fused --report_to wandb --run_name mine --ddp_find_unused_parameters False --local_rank=-1";
    let flags: Vec<&str> = flags.split_whitespace().collect();
    let out = desk.command(&train(MODEL, &data, &flags));
    let said = stderr(&out);
    assert!(out.status.success(), "{said}");
    let ignored = said.lines().find(|l| l.starts_with("ignored"));
    let all = "dataloader_num_workers, ddp_find_unused_parameters, local_rank, run_name";
    assert!(ignored.is_some_and(|l| l.ends_with(all)), "{said}");
    assert!(said.contains("more digits (f32): fp16"), "{said}");
    assert!(said.contains("nothing is sent to wandb"), "{said}");
    assert!(desk.path("out/report.html").exists() && desk.path("out/log.jsonl").exists());
    assert_eq!(read(&desk, "out/run.json")["job"]["optim"], "adamw_torch");
    for (more, says) in [
        ("--adafactor", "`optim` = \"adafactor\""),
        ("--neftune_noise_alpha 5", "--neftune-noise-alpha = 5"),
        ("--deepspeed zero.json", "--deepspeed = \"zero.json\""),
        ("--hub_token hf_secret", "HF_TOKEN"),
    ] {
        let more: Vec<&str> = more.split(' ').chain(["--output-dir", "no"]).collect();
        let said = desk.misused(&train(MODEL, &data, &more));
        assert!(said.contains(says) && !said.contains("hf_secret"), "{said}");
    }
    // Flags stand before the command as well.
    let before = ["--seed", "3", "-i", "qwen3"];
    let rest = [
        "train",
        MODEL,
        "-a",
        "lora",
        "--data",
        &data,
        "--max-steps",
        "1",
        "--output-dir",
        "seed",
    ];
    desk.ok(&[&before[..], &rest].concat());
    assert_eq!(read(&desk, "seed/run.json")["job"]["seed"], 3);
}

#[test]
fn prompts_of_another_vocabulary_are_refused() {
    let desk = Desk::new();
    desk.write(
        "prompts.jsonl",
        "{\"input_ids\": [1, 2]}\n{\"input_ids\": [1, 999999]}\n",
    );
    let said = desk.fails(&["generate", MODEL, "--prompts", "prompts.jsonl"]);
    assert!(
        said.contains("token id 999999 is outside 0..") && said.contains("prompt 1"),
        "{said}"
    );
}

#[test]
fn what_has_no_label_counts_nothing() {
    let desk = Desk::new();
    let learned = "{\"input_ids\": [1, 2, 3, 4]}\n";
    let read_only = "{\"input_ids\": [1, 2, 3, 4], \"labels\": [-100, -100, -100, -100]}\n";
    // Windows of two micro-batches: whole, half empty, empty.
    desk.write(
        "a.jsonl",
        &format!("{learned}{learned}{read_only}{learned}{read_only}{read_only}"),
    );
    let flags = [
        "--per-device-train-batch-size",
        "1",
        "--gradient-accumulation-steps",
        "2",
        "--no-shuffle",
        "--num-train-epochs",
        "1",
        "--learning-rate",
        "1e-12",
        "--logging-steps",
        "3",
        "--output-dir",
        "out",
    ];
    let report = desk.json(&train(MODEL, "a.jsonl", &flags));
    let losses = report["losses"].as_array().unwrap();
    assert!(losses.len() == 3 && losses[2].is_null(), "{losses:?}");
    let first = losses[0].as_f64().unwrap();
    // Next to nothing changes at this rate: every loss is that of the one row. 1e-6: sums in another order.
    for loss in [losses[1].as_f64(), report["last_loss"].as_f64()] {
        assert!((loss.unwrap() - first).abs() < 1e-6 * first, "{losses:?}");
    }
    let logged = logged(&desk, "out/log.jsonl");
    assert!(
        logged.len() == 1 && (logged[0].1 - first).abs() < 1e-6 * first,
        "{logged:?}"
    );
    let end = &read(&desk, "out/run.json")["end"]["train_loss"];
    assert!(
        (end.as_f64().unwrap() - first).abs() < 1e-6 * first,
        "{end}"
    );
}

#[test]
fn examples_are_shown_before_anything_is_trained() {
    let desk = Desk::new();
    desk.write(
        "a.jsonl",
        "{\"prompt\": \"the cat\", \"completion\": \" sat\"}\n{\"text\": \"a dog\"}\n",
    );
    let flags = [
        "--tokenizer",
        TOKENIZER,
        "--output-dir",
        "out",
        "--show-examples",
        "5",
        "--dry-run",
    ];
    let out = desk.command(&train(MODEL, "a.jsonl", &flags));
    let said = stderr(&out);
    assert!(out.status.success(), "{said}");
    for part in [
        "example 1 of 2:\n  read ",
        "\n  learned ",
        "example 2 of 2:",
    ] {
        assert!(said.contains(part), "{said}");
    }
    assert!(!desk.path("out").exists());
    let shown = said.find("example 1").unwrap();
    let flags = [
        "--tokenizer",
        TOKENIZER,
        "--output-dir",
        "out",
        "--show-examples",
        "1",
        "--max-steps",
        "1",
    ];
    let said = stderr(&desk.command(&train(MODEL, "a.jsonl", &flags)));
    assert!(
        said.matches("example ").count() == 1 && shown < said.len(),
        "{said}"
    );
}

#[test]
fn the_template_of_a_training_is_kept_and_used() {
    let desk = Desk::new();
    let template =
        "{% for m in messages %}{{ m.content }} {% endfor %}{{ strftime_now('%Y') }} the cat";
    desk.write("own.jinja", template);
    desk.write(
        "a.jsonl",
        "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"dog\"}]}\n",
    );
    let flags = [
        "--tokenizer",
        TOKENIZER,
        "--output-dir",
        "out",
        "--max-steps",
        "2",
        "--save-steps",
        "1",
        "--chat-template",
        "own.jinja",
        "--chat-date",
        "1999-12-31",
    ];
    desk.ok(&train(MODEL, "a.jsonl", &flags));
    let kept = fs::read_to_string(desk.path("out/lora/chat_template.jinja")).unwrap();
    assert_eq!(kept, template);
    assert_eq!(
        read(&desk, "out/run.json")["job"]["chat_date"],
        "1999-12-31"
    );
    // A run that goes on has the date of the run before.
    let flags = [
        "--tokenizer",
        TOKENIZER,
        "--output-dir",
        "out",
        "--max-steps",
        "3",
        "--chat-template",
        "own.jinja",
        "--resume",
    ];
    desk.ok(&train(MODEL, "a.jsonl", &flags));
    assert_eq!(
        read(&desk, "out/run.json")["job"]["chat_date"],
        "1999-12-31"
    );
    let generate = |more: &[&str]| {
        let args = [
            "generate",
            MODEL,
            "-i",
            "qwen3",
            "--tokenizer",
            TOKENIZER,
            "--chat",
            "--prompt",
            "a",
            "--max-new-tokens",
            "2",
        ];
        desk.command(&[&args[..], more].concat())
    };
    assert!(
        !generate(&[]).status.success(),
        "the tokenizer has no template of its own"
    );
    for more in [&["-a", "out/lora"][..], &["--chat-template", "own.jinja"]] {
        let out = generate(more);
        assert!(out.status.success(), "{}", stderr(&out));
    }
    // The template goes where the adapter goes.
    desk.ok(&["-i", "qwen3", "-a", "out/lora", MODEL, "-o", "new/m.onnx"]);
    let kept = fs::read_to_string(desk.path("new/lora/chat_template.jinja")).unwrap();
    assert_eq!(kept, template);
    let args = [
        "eval",
        MODEL,
        "-i",
        "qwen3",
        "--tokenizer",
        TOKENIZER,
        "--data",
        "a.jsonl",
        "-a",
        "out/lora",
    ];
    assert!(desk.json(&args)["metrics"]["loss"].as_f64().unwrap() > 0.0);
}

#[test]
fn decoders_with_a_cache_train_and_evaluate_like_others() {
    let desk = Desk::new();
    let data = ids();
    // Values that are drawn depend on names, which differ between the exports.
    let flags = [
        "--max-steps",
        "2",
        "--learning-rate",
        "0.01",
        "--output-dir",
        "begun",
    ];
    desk.ok(&train(MODEL, &data, &flags));
    let losses = |model: &str, out: &str| -> Vec<f64> {
        let args = [
            "train",
            model,
            "-i",
            "qwen3",
            "-a",
            "begun/lora",
            "--data",
            &data,
            "--max-steps",
            "4",
            "--learning-rate",
            "0.01",
            "--output-dir",
            out,
        ];
        let report = desk.json(&args);
        let losses = report["losses"].as_array().unwrap();
        losses.iter().map(|l| l.as_f64().unwrap()).collect()
    };
    let (with, without) = (losses(PAST, "past"), losses(MODEL, "plain"));
    assert!(with[3] < with[0], "{with:?}");
    // 1e-5: the same weights in the graph of another exporter, summed in another order. Seen: 1e-7.
    for (a, b) in with.iter().zip(&without) {
        assert!((a - b).abs() < 1e-5 * b, "{with:?} {without:?}");
    }
    let loss = |model: &str, folder: &str| {
        let args = ["eval", model, "-i", "qwen3", "--data", &data, "-a", folder];
        desk.json(&args)["metrics"]["loss"].as_f64().unwrap()
    };
    let (with, without) = (loss(PAST, "past/lora"), loss(MODEL, "plain/lora"));
    assert!((with - without).abs() < 1e-5 * without, "{with} {without}");
}

/// Caches by other names, as other exporters write them: of the same length, so that the file stays one.
#[test]
fn caches_of_other_names_are_fed_empty() {
    let desk = Desk::new();
    let data = ids();
    let whole = fs::read(PAST).unwrap();
    let eval = |model: &str| {
        desk.json(&["eval", model, "-i", "qwen3", "--data", &data])["metrics"]["loss"].as_f64()
    };
    let loss = eval(PAST).unwrap();
    desk.write("prompts.jsonl", r#"{"input_ids": [1, 5, 9, 2]}"#);
    let tokens = |model: &str| {
        let model = ["generate", model, "-i", "qwen3"];
        let prompts = ["--prompts", "prompts.jsonl", "--max-new-tokens", "6"];
        desk.generated(&[model, prompts].concat())["results"][0]["ids"].clone()
    };
    let next = tokens(PAST);
    assert_eq!(next.as_array().map(Vec::len), Some(6));
    for (name, words) in [("a.onnx", "pkv_with_a_name"), ("b.onnx", "kv_cache_layers")] {
        let mut bytes = whole.clone();
        let old = b"past_key_values";
        let at: Vec<usize> = (0..bytes.len() - old.len())
            .filter(|&i| &bytes[i..i + old.len()] == old)
            .collect();
        assert!(at.len() > 4 && old.len() == words.len());
        for i in at {
            bytes[i..i + old.len()].copy_from_slice(words.as_bytes());
        }
        fs::write(desk.path(name), bytes).unwrap();
        assert_eq!(eval(name), Some(loss), "{words}");
        assert_eq!(tokens(name), next, "{words}");
    }
}

#[test]
fn the_sizes_of_a_cache_are_declared_or_beside_the_model() {
    let desk = Desk::new();
    fs::copy(
        fixture("onnx/qwen3-genai-int4.onnx"),
        desk.path("model.onnx"),
    )
    .unwrap();
    let data = ids();
    let eval = ["eval", "model.onnx", "--data", &data];
    let said = desk.fails(&eval);
    assert!(
        said.contains("past_key_values.0.key") && said.contains("config.json"),
        "{said}"
    );
    let config = json!({"num_key_value_heads": 2, "num_attention_heads": 4, "head_dim": 8});
    desk.write("config.json", &config.to_string());
    assert!(desk.json(&eval)["metrics"]["loss"].as_f64().unwrap() > 0.0);
}

#[test]
fn flags_of_every_command_stand_anywhere_and_say_something() {
    let desk = Desk::new();
    let data = ids();
    let flags = [
        "--max-steps",
        "2",
        "--report-to",
        "none",
        "--output-dir",
        "out",
        "--force",
    ];
    let said = |globals: &[&str]| {
        let out = desk.command(&[globals, &train(MODEL, &data, &flags)].concat());
        assert!(out.status.success(), "{}", stderr(&out));
        (
            String::from_utf8_lossy(&out.stdout).into_owned(),
            stderr(&out),
        )
    };
    let plain = said(&[]).1;
    let more = said(&["-v"]).1;
    assert!(
        more.contains("nodes") && more.contains("adapter lora") && more.len() > plain.len(),
        "{more}"
    );
    let all = said(&["-vv"]).1;
    assert!(
        all.contains("step 2: loss") && all.len() > more.len(),
        "{all}"
    );
    assert!(!more.contains("step 2: loss, gradient"), "{more}");
    assert_eq!(said(&["--quiet"]).1, "");
    let report: Json = serde_json::from_str(&said(&["--json", "-q"]).0).unwrap();
    assert_eq!(report["steps"], 2);
    let inspected = desk.command(&["-vv", "inspect", MODEL]);
    assert!(stderr(&inspected).contains("operators of ai.onnx"));
}

#[test]
fn errors_are_json_too() {
    let desk = Desk::new();
    for (args, code, status) in [
        (&["--json", "inspect", "none.onnx"][..], "io", 1),
        (&["inspect", "--json"], "arguments", 2),
        (&["train", MODEL, "--json"], "arguments", 2),
        (&["--json", "trian", "x"], "arguments", 2),
    ] {
        let out = desk.command(args);
        assert_eq!(out.status.code(), Some(status), "{args:?}");
        let errors: Json = serde_json::from_slice(&out.stdout).unwrap();
        let first = &errors["errors"][0];
        assert_eq!(first["code"], code, "{errors}");
        assert!(!first["message"].as_str().unwrap().is_empty(), "{errors}");
        assert!(stderr(&out).contains("error"), "{args:?}");
    }
    let out = desk.command(&["trian"]);
    assert_eq!(out.status.code(), Some(2));
    assert!(
        stderr(&out).contains("did you mean `train`"),
        "{}",
        stderr(&out)
    );
}
