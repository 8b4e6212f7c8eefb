//! Heads stay what they are: a written graph knows its classes, its head is trained further and written again, and a head is not taken
//! for that of another task or model.

use super::desk::{Desk, stderr};
use super::support::fixture;
use serde_json::{Value as Json, json};
use std::fs;

/// BERT without a head, rows of three classes, and the tokenizer's path.
fn desk() -> (Desk, String) {
    let desk = Desk::with("bert/model.onnx");
    fs::copy(fixture("bert/config.json"), desk.path("config.json")).unwrap();
    // Not in the order of the alphabet, nor in that of the numbers.
    let rows = [
        ("the cat sat", "pos"),
        ("the dog met a cat", "neg"),
        ("a dog", "neu"),
    ];
    let line = |(text, label): (&str, &str)| json!({ "text": text, "label": label }).to_string();
    desk.write("rows.jsonl", &rows.map(line).join("\n"));
    let turned: Vec<String> = rows.into_iter().rev().map(line).collect();
    desk.write("turned.jsonl", &turned.join("\n"));
    let tokenizer = fixture("tokenizer/tokenizer.json");
    (desk, tokenizer.to_str().unwrap().to_owned())
}

fn train<'a>(
    model: &'a str,
    adapter: &'a str,
    data: &'a str,
    task: &'a str,
    tokenizer: &'a str,
    out: &'a str,
) -> Vec<&'a str> {
    vec![
        "train",
        model,
        "-i",
        "interface.json",
        "-a",
        adapter,
        "--data",
        data,
        "--task",
        task,
        "--tokenizer",
        tokenizer,
        "--output-dir",
        out,
        "--max-steps",
        "2",
        "--learning-rate",
        "1e-2",
        "--threads",
        "1",
    ]
}

fn read(desk: &Desk, path: &str) -> Json {
    serde_json::from_str(&fs::read_to_string(desk.path(path)).unwrap()).unwrap()
}

fn contains(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "`{part}` is not in: {text}");
    }
}

/// A trained classifier as a file of its own: `ship/model.a.onnx`.
fn shipped() -> (Desk, String) {
    let (desk, tokenizer) = desk();
    let task = "classification";
    desk.ok(&train(
        "model.onnx",
        "a=lora[r=2]",
        "rows.jsonl",
        task,
        &tokenizer,
        "out",
    ));
    desk.ok(&[
        "-i",
        "interface.json",
        "-a",
        "out/a",
        "model.onnx",
        "-o",
        "ship/",
    ]);
    (desk, tokenizer)
}

#[test]
fn a_written_graph_knows_its_classes() {
    let (desk, tokenizer) = shipped();
    let eval = |model: &str, more: &[&str], predictions: &str| {
        let own = [
            "eval",
            model,
            "-i",
            "interface.json",
            "--task",
            "classification",
            "--data",
            "turned.jsonl",
            "--tokenizer",
            &tokenizer,
            "--predictions",
            predictions,
        ];
        let found = desk.json(&[&own[..], more].concat());
        (
            found["metrics"].clone(),
            fs::read_to_string(desk.path(predictions)).unwrap(),
        )
    };
    let (there, said) = eval("model.onnx", &["-a", "out/a"], "a.jsonl");
    let (here, shown) = eval("ship/model.a.onnx", &[], "b.jsonl");
    assert_eq!(here, there, "the data has its classes in another order");
    assert_eq!(shown, said);
    contains(&shown, &["\"reference\":\"neu\""]);

    let inspected = desk.ok(&["inspect", "ship/model.a.onnx"]);
    contains(&inspected, &["classification of `a`: pos, neg, neu"]);
    let heads = desk.json(&["inspect", "ship/model.a.onnx"])["heads"].clone();
    assert_eq!(heads[0]["classes"], json!(["pos", "neg", "neu"]));
    let ran = desk.json(&[
        "run",
        "ship/model.a.onnx",
        "--inputs",
        "inputs.safetensors",
        "--outputs",
        "o.safetensors",
    ]);
    assert_eq!(ran["classes"], json!(["pos", "neg", "neu"]));
    // It goes with the adapter.
    desk.ok(&["strip", "ship/model.a.onnx", "-o", "base.onnx"]);
    assert_eq!(desk.json(&["inspect", "base.onnx"])["heads"], Json::Null);
    // A merged model keeps it.
    desk.ok(&[
        "merge",
        "-i",
        "interface.json",
        "-a",
        "out/a",
        "model.onnx",
        "-o",
        "merged.onnx",
    ]);
    let (merged, _) = eval("merged.onnx", &[], "c.jsonl");
    assert_eq!(merged["accuracy"], there["accuracy"]);
    // Its adapter cannot be taken out of the weights, so it stays with them, which is said.
    let out = desk.command(&["strip", "merged.onnx", "-o", "stripped.onnx"]);
    let said = stderr(&out);
    assert!(said.contains("the head of `a` stays"), "{said}");
    let heads = |file: &str| desk.json(&["inspect", file])["heads"].clone();
    assert_eq!(heads("stripped.onnx"), heads("merged.onnx"));
}

#[test]
fn a_written_graphs_head_is_trained_and_written_again() {
    let (desk, tokenizer) = shipped();
    let further = |out| {
        train(
            "ship/model.a.onnx",
            "b=lora[r=2]",
            "turned.jsonl",
            "classification",
            &tokenizer,
            out,
        )
    };
    for (out, more) in [("plain", &[][..]), ("head", &["--train-head"])] {
        let said = desk.command(&[&further(out)[..], more].concat());
        assert!(said.status.success(), "{}", stderr(&said));
        contains(&stderr(&said), &["parameters of a, b"]);
        let [before, after] = ["out".to_owned(), out.to_owned()]
            .map(|o| read(&desk, &format!("{o}/a/head_config.json")));
        assert_eq!(after["config"], before["config"]);
        let bytes =
            |o: &str| fs::read(desk.path(&format!("{o}/a/model_head.safetensors"))).unwrap();
        assert_ne!(bytes("out"), bytes(out), "it was trained");
        assert!(!desk.path(&format!("{out}/b/head_config.json")).exists());
    }
    let frozen = [&further("frozen")[..], &["--train-adapters", "b"]].concat();
    contains(
        &stderr(&desk.command(&frozen)),
        &["parameters of b, the head of a\n"],
    );
    let mut new = further("new");
    new[7] = "new.jsonl";
    desk.write("new.jsonl", "{\"text\": \"the cat\", \"label\": \"bad\"}\n");
    contains(
        &desk.fails(&new),
        &["there is no class \"bad\"", "pos, neg, neu"],
    );
}

/// The head of a Transformers class, which is among its adapter's parameters.
#[test]
fn a_written_graphs_own_head_stays_with_its_adapter() {
    let desk = Desk::with("gpt2/model.onnx");
    fs::copy(fixture("train/ids.jsonl"), desk.path("ids.jsonl")).unwrap();
    let attach = |adapter, to| {
        desk.ok(&[
            "-i",
            "interface.json",
            "-a",
            adapter,
            "model.onnx",
            "-o",
            to,
        ])
    };
    attach("a=lora[r=2]", "first/");
    for file in fs::read_dir(fixture("gpt2/heads/GPT2LMHeadModel")).unwrap() {
        let file = file.unwrap();
        fs::copy(file.path(), desk.path("first/a").join(file.file_name())).unwrap();
    }
    attach("first/a", "ship/");
    let run = [
        "train",
        "ship/model.a.onnx",
        "-i",
        "interface.json",
        "-a",
        "b=seq_bn",
        "--data",
        "ids.jsonl",
        "--output-dir",
        "out",
        "--max-steps",
        "1",
    ];
    desk.ok(&run);
    for name in ["config", "name"] {
        let [before, after] = ["first", "out"]
            .map(|o| read(&desk, &format!("{o}/a/adapter_config.json"))[name].clone());
        assert_eq!(after, before);
    }
    let [before, after] = ["first", "out"].map(|o| read(&desk, &format!("{o}/a/head_config.json")));
    for name in ["model_class", "config", "num_labels", "label2id"] {
        assert_eq!(after[name], before[name], "{name}");
    }
    let inspected = desk.ok(&["inspect", "ship/model.a.onnx"]);
    contains(&inspected, &["GPT2LMHeadModel of `a`"]);
}

#[test]
fn a_head_is_not_taken_for_that_of_another_task() {
    let (desk, tokenizer) = shipped();
    desk.write("numbers.jsonl", "{\"text\": \"the cat\", \"label\": 7}\n");
    desk.write("values.jsonl", "{\"text\": \"the cat\", \"label\": 0.5}\n");
    desk.write(
        "lists.jsonl",
        "{\"text\": \"the cat\", \"label\": [0, 1, 0]}\n",
    );
    desk.write(
        "tags.jsonl",
        "{\"tokens\": [\"the\", \"cat\"], \"tags\": [\"pos\", \"neg\"]}\n",
    );
    let cases = [
        ("numbers.jsonl", "classification", "class 7"),
        ("values.jsonl", "regression", "the head gives 3"),
        ("lists.jsonl", "multi-label", "of the type classification"),
        (
            "tags.jsonl",
            "token-classification",
            "of the type classification",
        ),
    ];
    for (data, task, said) in cases {
        let run = train(
            "ship/model.a.onnx",
            "b=lora[r=2]",
            data,
            task,
            &tokenizer,
            "new",
        );
        contains(&desk.fails(&run), &["error[", said]);
        let eval = [
            "eval",
            "ship/model.a.onnx",
            "-i",
            "interface.json",
            "--task",
            task,
            "--data",
            data,
            "--tokenizer",
            &tokenizer,
        ];
        contains(&desk.fails(&eval), &["error[", said]);
    }
}

#[test]
fn what_a_heads_file_says_of_its_model_is_compared() {
    let (desk, _) = shipped();
    let path = desk.path("out/a/head_config.json");
    let config = fs::read_to_string(&path).unwrap();
    let attach = |to| {
        [
            "-i",
            "interface.json",
            "-a",
            "out/a",
            "model.onnx",
            "-o",
            to,
        ]
    };
    fs::write(
        &path,
        config.replace("\"hidden_size\": 32", "\"hidden_size\": 48"),
    )
    .unwrap();
    contains(
        &desk.fails(&attach("x.onnx")),
        &["error[model-differs]", "the head of `a`", "width 48"],
    );
    fs::write(&path, config.replace("\"bert\"", "\"roberta\"")).unwrap();
    let out = desk.command(&attach("y.onnx"));
    contains(
        &stderr(&out),
        &["warning[model-differs]", "the head of `a`", "`roberta`"],
    );
}

#[test]
fn classes_of_lists_have_names() {
    let (desk, tokenizer) = desk();
    let rows = [
        ("the cat sat", &["b", "a"][..]),
        ("a dog", &["a"]),
        ("the dog", &[]),
    ];
    let line = |(text, label): (&str, &[&str])| json!({ "text": text, "label": label }).to_string();
    desk.write("lists.jsonl", &rows.map(line).join("\n"));
    let mut run = train(
        "model.onnx",
        "a=lora[r=2]",
        "lists.jsonl",
        "multi-label",
        &tokenizer,
        "out",
    );
    run.extend(["--head", "use_pooler=false,dropout_prob=0.1"]);
    let out = desk.command(&run);
    assert!(out.status.success(), "{}", stderr(&out));
    contains(&stderr(&out), &["classes: b, a"]);
    let head = read(&desk, "out/a/head_config.json");
    assert_eq!(head["config"]["label2id"], json!({ "a": 1, "b": 0 }));
    assert_eq!(head["config"]["use_pooler"], false);
    assert_eq!(head["config"]["dropout_prob"], 0.1);
    desk.ok(&[
        "eval",
        "model.onnx",
        "-i",
        "interface.json",
        "-a",
        "out/a",
        "--task",
        "multi-label",
        "--data",
        "lists.jsonl",
        "--tokenizer",
        &tokenizer,
        "--predictions",
        "p.jsonl",
    ]);
    let said = fs::read_to_string(desk.path("p.jsonl")).unwrap();
    contains(&said, &["\"reference\":[\"b\",\"a\"]", "\"reference\":[]"]);
}

#[test]
fn labels_that_are_all_the_same_are_told() {
    let (desk, tokenizer) = desk();
    let cases = [
        (
            "regression",
            json!({ "text": "the cat", "label": 0.5 }),
            "all 2 targets are 0.5",
        ),
        (
            "token-classification",
            json!({ "tokens": ["the", "cat"], "tags": ["X", "X"] }),
            "all 4 tags are of one class, `X`",
        ),
        (
            "multi-label",
            json!({ "text": "the cat", "label": [0, 1] }),
            "all 2 examples have the same labels: 0, 1",
        ),
    ];
    for (task, row, said) in cases {
        desk.write("same.jsonl", &format!("{row}\n{row}\n"));
        let run = train(
            "model.onnx",
            "a=lora[r=2]",
            "same.jsonl",
            task,
            &tokenizer,
            task,
        );
        let out = desk.command(&run);
        assert!(out.status.success(), "{}", stderr(&out));
        contains(&stderr(&out), &["warning[data-one-class]", said]);
    }
}
