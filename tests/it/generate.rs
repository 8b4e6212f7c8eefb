//! `generate` and `eval` as a user runs them.

use super::desk::{Desk, stderr};
use super::support::fixture;
use serde_json::{Value as Json, json};
use std::fs;

const MODEL: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/qwen3/model.onnx");
const LORA: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/qwen3/plugin/lora_qv");
const SEQ_BN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/qwen3/plugin/seq_bn");
const TOKENIZER: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/fixtures/tokenizer/tokenizer.json"
);

#[test]
fn generates_what_transformers_generates() {
    let desk = Desk::new();
    let texts = fs::read_to_string(fixture("generate/texts.json")).unwrap();
    let mut all: Vec<Json> = serde_json::from_str(&texts).unwrap();
    all.retain(|c| c["model"] == "qwen3" && !c["adapter"].is_null() && c["args"] == json!({}));
    assert_eq!(all.len(), 4);
    let rows: Vec<String> = all
        .iter()
        .map(|c| json!({ "input_ids": c["prompt"] }).to_string())
        .collect();
    let prompts = "prompts.jsonl";
    desk.write(prompts, &rows.join("\n"));
    let report = desk.generated(&[
        "generate",
        MODEL,
        "-a",
        LORA,
        "--prompts",
        prompts,
        "--max-new-tokens",
        "12",
    ]);
    assert_eq!(report["cache"], "added");
    for (c, found) in all.iter().zip(report["results"].as_array().unwrap()) {
        assert_eq!(found["ids"], c["ids"]);
        assert_eq!(found["finish_reason"], "length");
    }
    let tokenizer = ["--tokenizer", TOKENIZER];
    let text = ["generate", MODEL, "-p", "the cat", "--max-new-tokens", "5"];
    let whole = desk.command(&[&text[..], &tokenizer].concat());
    let streamed = desk.command(&[&text[..], &tokenizer, &["--stream"]].concat());
    assert!(whole.status.success() && !whole.stdout.is_empty());
    assert_eq!(whole.stdout, streamed.stdout);
}

/// A template in which what was said stays as it was.
const TEMPLATE: &str = "{% for m in messages %}{{ m.role }} : {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant : {% endif %}";

#[test]
fn a_prompt_may_be_piped_in() {
    let desk = Desk::new();
    let model = ["generate", MODEL, "--tokenizer", TOKENIZER];
    let few = ["--max-new-tokens", "5"];
    let given = desk.ok(&[&model[..], &["-p", "a dog sat on"], &few].concat());
    assert!(!given.trim().is_empty());
    for more in [&[][..], &["-p", "-"]] {
        let out = desk.piped(&[&model[..], more, &few].concat(), "a dog sat on\n");
        assert_eq!(String::from_utf8_lossy(&out.stdout), given, "{more:?}");
    }
    // All of it is one prompt.
    let two = [&model[..], &few, &["--json"]].concat();
    let two = desk.piped(&two, "the cat\na dog\n");
    let events = super::desk::lines(&String::from_utf8_lossy(&two.stdout));
    let answers: Vec<&Json> = events.iter().filter(|e| e["event"] == "answer").collect();
    assert_eq!(answers.len(), 1);
    assert_eq!(answers[0]["prompt_text"], "the cat\na dog");
    let nothing = desk.piped(&model, "\n");
    assert_eq!(nothing.status.code(), Some(2));
}

#[test]
fn answers_to_several_prompts_are_numbered_and_stand_under_them() {
    let desk = Desk::new();
    let model = ["generate", MODEL, "--tokenizer", TOKENIZER];
    let few = ["--max-new-tokens", "5"];
    let alone = |prompt: &str| desk.ok(&[&model[..], &["-p", prompt], &few].concat());
    let want = format!(
        "[1/2] a mat\n{}\n[2/2] a dog sat on\n{}",
        alone("a mat"),
        alone("a dog sat on")
    );
    let prompts = ["-p", "a mat", "-p", "a dog sat on"];
    for more in [&[][..], &["--stream"], &["--batch-size", "1"]] {
        let found = desk.ok(&[&model[..], &prompts, &few, more].concat());
        assert_eq!(found, want, "{more:?}");
    }
    let lines = desk.piped(
        &[&model[..], &["--prompts", "-"], &few].concat(),
        "a mat\n\na dog sat on\n",
    );
    assert_eq!(String::from_utf8_lossy(&lines.stdout), want);
    let rows = "{\"prompt\": \"a mat\"}\n{\"prompt\": \"a dog sat on\"}\n";
    let rows = desk.piped(&[&model[..], &["--prompts", "-"], &few].concat(), rows);
    assert_eq!(String::from_utf8_lossy(&rows.stdout), want);
}

#[test]
fn json_is_a_stream_of_events() {
    let desk = Desk::new();
    let args = ["generate", MODEL, "--tokenizer", TOKENIZER];
    let more = ["-p", "the cat", "-p", "a dog", "--max-new-tokens", "4"];
    let events = desk.events(&[&args[..], &more].concat());
    assert_eq!(
        events[0],
        json!({ "event": "begin", "texts": 2, "prompts": 2 })
    );
    let end = &events[events.len() - 1];
    assert_eq!((&end["event"], &end["texts"]), (&json!("end"), &json!(2)));
    let mut pieces = [String::new(), String::new()];
    let mut answers = Vec::new();
    for e in &events[1..events.len() - 1] {
        let index = e["index"].as_u64().unwrap() as usize;
        match e["event"].as_str().unwrap() {
            "text" => pieces[index] += e["text"].as_str().unwrap(),
            "answer" => answers.push(e.clone()),
            other => panic!("{other}"),
        }
    }
    for (a, prompt) in answers.iter().zip(["the cat", "a dog"]) {
        assert_eq!(a["prompt_text"], prompt);
        assert_eq!(a["text"], pieces[a["index"].as_u64().unwrap() as usize]);
        assert_eq!(a["ids"].as_array().unwrap().len(), 4);
    }
    // An error is an event, too, and so is one of the arguments.
    for (wrong, code) in [(&["-p", "x"][..], 1), (&["--top-p", "2"], 2), (&[], 2)] {
        let out = desk.command(&[&["generate", MODEL, "--json"], wrong].concat());
        assert_eq!(out.status.code(), Some(code));
        let events = super::desk::lines(&String::from_utf8_lossy(&out.stdout));
        assert_eq!(events.len(), 1);
        assert_eq!(events[0]["event"], "error");
        assert!(events[0]["errors"][0]["message"].is_string());
    }
    // Of other commands it is one document.
    let out = desk.command(&["eval", MODEL, "--data", "none.jsonl", "--json"]);
    let error: Json = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(error["errors"][0]["code"], "io");
}

#[test]
fn a_conversation_goes_on_line_by_line() {
    let desk = Desk::new();
    desk.write("own.jinja", TEMPLATE);
    let base = ["generate", MODEL, "-i", "qwen3", "--tokenizer", TOKENIZER];
    let talk = ["--interactive", "--max-new-tokens", "4", "--json"];
    let chat = [&base[..], &talk, &["--chat-template", "own.jinja"]].concat();
    let said = "the cat\n\na dog\n/reset\na dog\n/exit\nnever said\n";
    let out = desk.piped(&chat, said);
    assert!(out.status.success(), "{}", stderr(&out));
    let events = super::desk::lines(&String::from_utf8_lossy(&out.stdout));
    let answers: Vec<&Json> = events.iter().filter(|e| e["event"] == "answer").collect();
    assert_eq!(answers.len(), 3);
    assert_eq!(answers[0]["kept_tokens"], 0);
    // What was said before is read again, and was computed before.
    let [first, second, anew] = [0, 1, 2].map(|i| answers[i]["prompt_tokens"].as_u64().unwrap());
    assert!(second > first && anew <= first + 1);
    assert!(answers[1]["kept_tokens"].as_u64().unwrap() >= first);
    // The same as when the whole conversation is given at once.
    let rows = json!({ "messages": [
        { "role": "user", "content": "the cat" },
        { "role": "assistant", "content": answers[0]["text"] },
        { "role": "user", "content": "a dog" },
    ]});
    desk.write("rows.jsonl", &rows.to_string());
    let rest = ["--prompts", "rows.jsonl", "--max-new-tokens", "4"];
    let whole = desk.generated(&[&base[..], &rest, &["--chat-template", "own.jinja"]].concat());
    assert_eq!(whole["results"][0]["ids"], answers[1]["ids"]);
    // Without a template the text goes on, which is said once.
    let plain = [&base[..], &["--interactive", "--max-new-tokens", "2"]].concat();
    let out = desk.piped(&plain, "the cat\n/nothing\na dog");
    let said = stderr(&out);
    assert_eq!(said.matches("no chat template").count(), 1, "{said}");
    assert!(said.contains("there is no /nothing"));
    assert_eq!(String::from_utf8_lossy(&out.stdout).lines().count(), 2);
}

#[test]
fn a_model_that_was_written_with_its_adapter_generates_the_same() {
    let desk = Desk::new();
    let prompts = "prompts.jsonl";
    desk.write(prompts, "{\"input_ids\": [5, 9, 12]}");
    let out = "adapted.onnx";
    let made = desk.command(&["-i", "qwen3", "-a", SEQ_BN, MODEL, "-o", out]);
    assert!(made.status.success());
    let rest = ["--prompts", prompts, "--max-new-tokens", "9"];
    let attached =
        desk.generated(&[&["generate", MODEL, "-i", "qwen3", "-a", SEQ_BN], &rest[..]].concat());
    let written = desk.generated(&[&["generate", out, "-i", "qwen3"], &rest[..]].concat());
    assert_eq!(attached["results"], written["results"]);
    assert_eq!(
        (&attached["cache"], &written["cache"]),
        (&json!("added"), &json!("added"))
    );
}

#[test]
fn measures_text_and_what_is_generated_from_it() {
    let desk = Desk::new();
    let rows = "{\"prompt\": \"the cat\", \"completion\": \" sat on #### 4\"}\n{\"prompt\": \"a dog\", \"completion\": \" met 5\"}";
    let data = "data.jsonl";
    desk.write(data, rows);
    let predictions = "predictions.jsonl";
    let args = ["eval", MODEL, "--data", data, "--tokenizer", TOKENIZER];
    let report = desk.json(&args);
    let metrics = &report["metrics"];
    let [loss, perplexity] = ["loss", "perplexity"].map(|m| metrics[m].as_f64().unwrap());
    assert!((loss.exp() - perplexity).abs() < 1e-9 * perplexity);
    assert_eq!(report["samples"], 2);
    let more = [
        "--metrics",
        "exact_match,final_number",
        "--max-new-tokens",
        "4",
        "--predictions",
        predictions,
    ];
    let report = desk.json(&[&args[..], &more].concat());
    assert_eq!(
        report["metrics"],
        json!({ "exact_match": 0.0, "final_number": 0.0 })
    );
    let lines = fs::read_to_string(desk.path(predictions)).unwrap();
    assert_eq!(lines.lines().count(), 2);
    let again = desk.command(&[&args[..], &more].concat());
    assert_eq!(again.status.code(), Some(1), "a file that is there is kept");
}

/// A classifier: each word has three scores, and a text has their mean.
const CLASSIFIER: &str = r#"graph-text 1
ir_version 8
opset "" 17
graph g(%input_ids: i64[batch, sequence]) -> (%logits: f32[batch, 3])
  init %table: f32[4, 3] = {1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.25, 0.25, 0.5}
  %words = Gather(%table, %input_ids) {axis = 0}
  %logits = ReduceMean(%words) {axes = [1], keepdims = 0}
"#;

#[test]
fn measures_classes_and_numbers() {
    let desk = Desk::new();
    let words = json!({
        "version": "1.0", "added_tokens": [], "normalizer": null, "pre_tokenizer": {"type": "Whitespace"},
        "post_processor": null, "decoder": null,
        "model": {"type": "WordLevel", "vocab": {"a": 0, "b": 1, "c": 2, "d": 3}, "unk_token": "d"}
    });
    desk.write("tokenizer.json", &words.to_string());
    desk.write(
        "config.json",
        r#"{"label2id": {"first": 0, "second": 1, "third": 2}}"#,
    );
    let save = |text: &str, name: &str| {
        let model = onnx_graft::ir::text::parse(text).unwrap();
        let model = onnx_graft::Verified::check(model).unwrap();
        let path = desk.path(name);
        onnx_graft::onnx::save(&model, &path, onnx_graft::onnx::SaveOptions::default()).unwrap();
    };
    save(CLASSIFIER, "model.onnx");
    let model = "model.onnx";
    let rows = [
        ("a a", json!("first")),
        ("b d", json!(1)),
        ("c c", json!(0)),
        ("d d", json!(2)),
    ];
    let rows: Vec<String> = rows
        .iter()
        .map(|(t, l)| json!({ "text": t, "label": l }).to_string())
        .collect();
    let data = "data.jsonl";
    desk.write(data, &rows.join("\n"));
    let args = ["eval", model, "--data", data, "--task", "classification"];
    let report = desk.json(&args);
    // Classes 0, 1, 2, 2 where 0, 1, 0, 2 are right: F1 2/3, 1 and 2/3.
    assert_eq!(report["metrics"]["accuracy"], 0.75);
    assert!((report["metrics"]["f1"].as_f64().unwrap() - 7.0 / 9.0).abs() < 1e-12);
    let micro = desk.json(&[&args[..], &["--average", "micro", "--metrics", "f1"]].concat());
    assert_eq!(micro["metrics"], json!({ "f1": 0.75 }));

    let number = CLASSIFIER.replace("batch, 3", "batch, 1").replace(
        "[4, 3] = {1.0, 0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 0.25, 0.25, 0.5}",
        "[4, 1] = {1.0, 2.0, 3.0, 4.0}",
    );
    save(&number, "number.onnx");
    let model = "number.onnx";
    let rows = [("a", 1.0), ("b", 2.5), ("c", 2.5), ("d", 4.0)];
    let rows: Vec<String> = rows
        .iter()
        .map(|(t, l)| json!({ "text": t, "label": l }).to_string())
        .collect();
    let data = "numbers.jsonl";
    desk.write(data, &rows.join("\n"));
    let report = desk.json(&[
        "eval",
        model,
        "--data",
        data,
        "--task",
        "regression",
        "--metrics",
        "mse,mae,pearson",
    ]);
    assert_eq!(report["metrics"]["mse"], 0.125);
    assert_eq!(report["metrics"]["mae"], 0.25);
    assert!(
        (report["metrics"]["pearson"].as_f64().unwrap() - 0.9f64.sqrt()).abs() < 1e-12,
        "{report}"
    );
    let wrong = desk.command(&["eval", model, "--data", data, "--task", "classification"]);
    let said = stderr(&wrong);
    assert!(!wrong.status.success() && said.contains("label"), "{said}");
}

#[test]
fn bad_arguments_and_files_are_one_error() {
    let desk = Desk::new();
    let bad = "bad.jsonl";
    desk.write(bad, "{\"prompt\": \"a\"}\n{\"promt\": \"b\"}");
    for (args, code, want) in [
        (&["generate", MODEL][..], 2, "--prompt TEXT"),
        (&["generate", MODEL, "-p", "x"], 1, "--tokenizer"),
        (
            &[
                "generate",
                MODEL,
                "-p",
                "x",
                "--do-sample",
                "--temperature",
                "0",
            ],
            1,
            "`temperature`",
        ),
        (&["generate", MODEL, "--prompts", bad], 1, "line 2"),
        (
            &["generate", MODEL, "-p", "x", "--max-new-token", "3"],
            2,
            "--max-new-tokens",
        ),
        (
            &["eval", MODEL, "--data", bad, "--metrics", "mse"],
            1,
            "no measure",
        ),
        (
            &["eval", MODEL, "--data", bad, "--metrics", "final_numbr"],
            2,
            "did you mean `final_number`",
        ),
        (
            &["eval", MODEL, "--data", "missing.jsonl"],
            1,
            "missing.jsonl",
        ),
    ] {
        let out = desk.command(args);
        let said = stderr(&out);
        assert_eq!(out.status.code(), Some(code), "{args:?}: {said}");
        assert!(
            said.contains(want) && out.stdout.is_empty(),
            "{args:?}: {said}"
        );
    }
}
