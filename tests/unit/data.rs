//! Data as it lies on disks and on the Hub, against what transformers and TRL make of it.

use onnx_graft::text::{ChatOptions, ChatTemplate, Tokenizer};
use onnx_graft::train::{
    CompletionMask, DataArguments, Dataset, EvalSplit, Example, Files, Labels, Loaded, Tokens,
};
use serde_json::{Map, Value, json};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures/data")
        .join(name)
}

fn read(name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(fixture(name)).unwrap()).unwrap()
}

fn ints(v: &Value) -> Vec<i64> {
    v.as_array()
        .unwrap()
        .iter()
        .map(|i| i.as_i64().unwrap())
        .collect()
}

fn args(options: &Value) -> DataArguments {
    serde_json::from_value(options.clone()).unwrap()
}

/// The article's job.
fn article() -> DataArguments {
    args(&json!({
        "template": "Solve the following math problem step-by-step:\n\nQuestion: {{ question }}\n\nAnswer: {{ answer }} <|endoftext|>",
        "response_template": "Answer:",
    }))
}

fn load(args: &DataArguments) -> Loaded {
    let tokenizer = Tokenizer::open(&fixture("bpe")).unwrap();
    args.load(Some(&tokenizer), None, 7, &mut |_| {}).unwrap()
}

fn all(d: &Dataset) -> Vec<Example> {
    (0..d.len()).map(|i| d.get(i).unwrap()).collect()
}

#[test]
fn functions_of_templates_are_those_of_transformers() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/tokenizer/templates.json");
    let table: Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    let messages = table["messages"].as_array().unwrap();
    let cases = table["cases"].as_array().unwrap();
    for case in cases {
        let source = case["template"].as_str().unwrap();
        let template = ChatTemplate::new(source, serde_json::Map::new()).unwrap();
        let (template, _) = template.dated(table["date"].as_str()).unwrap();
        let options = ChatOptions {
            tools: Some(&table["tools"]),
            ..ChatOptions::default()
        };
        match (template.render(messages, options), case["text"].as_str()) {
            (Ok(chat), Some(want)) => assert_eq!(chat.text, want, "{source}"),
            (Err(e), None) => {
                let want = case["error"].as_str().unwrap();
                assert!(e.to_string().contains(want), "{source}: {e}");
            }
            (found, _) => panic!("{source}: {found:?}"),
        }
    }
    assert!(cases.len() > 10);
}

#[test]
fn every_format_of_the_same_rows_gives_what_transformers_and_trl_give() {
    let files = [
        "main/train-00000-of-00001.parquet",
        "zstd.parquet",
        "train.jsonl",
        "train.jsonl.gz",
        "train.json",
        "train.csv",
        "main",
    ];
    for case in read("gsm8k/expected.json").as_array().unwrap() {
        for file in files {
            let mut args = article();
            args.data = Some(Files::One(
                fixture("gsm8k").join(file).display().to_string(),
            ));
            args.max_seq_length = Some(case["max_seq_length"].as_u64().unwrap() as usize);
            let loaded = load(&args);
            let expected = case["rows"].as_array().unwrap();
            assert_eq!(loaded.train.len(), expected.len(), "{file}");
            for (example, row) in all(&loaded.train).iter().zip(expected) {
                assert_eq!(example.input_ids, ints(&row["input_ids"]), "{file}");
                assert_eq!(
                    example.labels,
                    Labels::Tokens(ints(&row["labels"])),
                    "{file}"
                );
            }
            let ignored = |r: &&Value| ints(&r["labels"]).iter().all(|&l| l == -100);
            assert_eq!(
                loaded.report.data.unlabelled as usize,
                expected.iter().filter(ignored).count()
            );
        }
    }
}

#[test]
fn completion_masks_are_those_of_trl() {
    for case in read("completion_mask.json").as_array().unwrap() {
        let mask = CompletionMask {
            response: ints(&case["response"]),
            instruction: case["instruction"]
                .is_array()
                .then(|| ints(&case["instruction"])),
            pad_id: case["pad"].as_i64(),
        };
        let (labels, found) = mask.labels(&ints(&case["ids"]));
        assert_eq!(labels, ints(&case["labels"]), "{case}");
        assert_eq!(json!(found), case["found"], "{case}");
    }
}

#[test]
fn chat_templates_write_what_transformers_writes() {
    let fixture_ = read("chat.json");
    let tokenizer = Tokenizer::open(&fixture("bpe")).unwrap();
    for case in fixture_["cases"].as_array().unwrap() {
        let (name, talk) = (
            case["template"].as_str().unwrap(),
            case["talk"].as_str().unwrap(),
        );
        let special = fixture_["special"].as_object().unwrap().clone();
        let template =
            ChatTemplate::new(fixture_["templates"][name].as_str().unwrap(), special).unwrap();
        let messages = fixture_["talks"][talk].as_array().unwrap();
        let kwargs: Map<String, Value> = case
            .get("enable_thinking")
            .map(|v| ("enable_thinking".to_owned(), v.clone()))
            .into_iter()
            .collect();
        let options = ChatOptions {
            add_generation_prompt: case["add_generation_prompt"] == true,
            tools: case.get("tools"),
            kwargs: Some(&kwargs),
        };
        let chat = match (template.render(messages, options), case.get("error")) {
            (Ok(chat), None) => chat,
            (Err(e), Some(said)) => {
                let e = e.to_string();
                assert!(
                    e.contains(said.as_str().unwrap_or_default()),
                    "{name}, {talk}: {e}"
                );
                continue;
            }
            (chat, said) => panic!("{name}, {talk}: {chat:?} against {said:?}"),
        };
        assert_eq!(chat.text, case["text"].as_str().unwrap(), "{name}, {talk}");
        if case["mask"].is_array() {
            let tokens = tokenizer.tokens(&chat.text, None, false).unwrap();
            let ids: Vec<i64> = tokens.iter().map(|t| t.id).collect();
            assert_eq!(ids, ints(&case["ids"]), "{name}, {talk}");
            let spans = chat.assistant.unwrap();
            let said = |t: &onnx_graft::text::Token| {
                spans
                    .iter()
                    .any(|s| t.span.start < s.end && s.start < t.span.end)
            };
            let mask: Vec<i64> = tokens.iter().map(|t| i64::from(said(t))).collect();
            assert_eq!(mask, ints(&case["mask"]), "{name}, {talk}");
        }
    }
}

#[test]
fn text_pairs_are_cut_as_transformers_cuts_them() {
    let tokenizer = Tokenizer::open(&fixture("pair")).unwrap();
    let file = tempfile::Builder::new()
        .suffix(".jsonl")
        .tempfile()
        .unwrap();
    for case in read("pairs.json").as_array().unwrap() {
        let row = json!({"text": case["text"], "text_pair": case["text_pair"], "label": 1});
        std::fs::write(file.path(), row.to_string()).unwrap();
        let args = args(&json!({
            "data": file.path(), "task": "classification",
            "max_seq_length": case["max_seq_length"], "truncation_side": case["truncation_side"],
        }));
        let example = args
            .load(Some(&tokenizer), None, 0, &mut |_| {})
            .unwrap()
            .train
            .get(0)
            .unwrap();
        assert_eq!(example.input_ids, ints(&case["input_ids"]), "{case}");
        let types = example
            .token_type_ids
            .unwrap_or_else(|| vec![0; example.input_ids.len()]);
        assert_eq!(types, ints(&case["token_type_ids"]), "{case}");
    }
}

#[test]
fn a_folder_of_the_hub_has_its_splits() {
    let mut args = article();
    args.data = Some(Files::One(fixture("gsm8k/main").display().to_string()));
    args.eval_split = Some(EvalSplit::Named("test".to_owned()));
    args.max_train_samples = Some(15);
    args.max_eval_samples = Some(4);
    let loaded = load(&args);
    assert_eq!(
        (loaded.train.len(), loaded.eval.as_ref().unwrap().len()),
        (15, 4)
    );
    assert_eq!(loaded.report.eval_data.unwrap().files.len(), 1);
    args.eval_split = Some(EvalSplit::Named("validation".to_owned()));
    let tokenizer = Tokenizer::open(&fixture("bpe")).unwrap();
    let e = args
        .load(Some(&tokenizer), None, 7, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("the data has no split `validation`") && e.contains("splits: train, test"),
        "{e}"
    );
}

#[test]
fn a_drawn_split_parts_the_examples_and_depends_on_the_seed() {
    let mut args = article();
    args.data = Some(Files::One(fixture("gsm8k/train.csv").display().to_string()));
    args.eval_split = Some(EvalSplit::Share(0.21));
    let tokenizer = Tokenizer::open(&fixture("bpe")).unwrap();
    let draw = |seed| {
        args.load(Some(&tokenizer), None, seed, &mut |_| {})
            .unwrap()
    };
    let (a, b) = (draw(1), draw(2));
    let eval = a.eval.unwrap();
    assert_eq!((a.train.len(), eval.len()), (15, 5));
    assert_ne!(eval.fingerprint(), b.eval.unwrap().fingerprint());
    assert_eq!(eval.fingerprint(), draw(1).eval.unwrap().fingerprint());
    let mut parts = [all(&a.train), all(&eval)].concat();
    args.eval_split = None;
    let mut whole = all(&load(&args).train);
    let ids = |e: &Example| e.input_ids.clone();
    parts.sort_by_key(ids);
    whole.sort_by_key(ids);
    assert_eq!(parts, whole);
}

#[test]
fn data_larger_than_memory_gives_the_same_examples() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("many.jsonl");
    let row = |i: usize| {
        json!({"prompt": format!("Question: {i} pens?\nAnswer:"), "completion": format!(" {} pens", i * 7)}).to_string() + "\n"
    };
    std::fs::write(&path, (0..6000).map(row).collect::<String>()).unwrap();
    let mut args = args(&json!({"data": path, "cache_dir": dir.path()}));
    let memory = load(&args);
    args.in_memory_max_size = 1 << 12;
    let file = load(&args);
    assert!(file.train.spilled() && !memory.train.spilled());
    assert_eq!(file.train.fingerprint(), memory.train.fingerprint());
    assert_eq!(file.train.lengths(), memory.train.lengths());
    for i in (0..6000).rev().step_by(17) {
        assert_eq!(file.train.get(i).unwrap(), memory.train.get(i).unwrap());
    }
    // The temporary file has no name.
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn prompts_and_references_come_from_the_same_arguments() {
    let tokenizer = Tokenizer::open(&fixture("bpe")).unwrap();
    let mut args = article();
    args.data = Some(Files::One(fixture("gsm8k/main").display().to_string()));
    let pairs = args.text_pairs(Some(&tokenizer), &mut |_| {}).unwrap();
    assert_eq!(pairs.len(), 20);
    assert!(
        pairs[0].prompt.ends_with("\n\nAnswer:")
            && pairs[0].completion.ends_with("#### 3 <|endoftext|>"),
        "{:?}",
        pairs[0]
    );
    args.response_template = Some(Tokens::Ids(vec![1]));
    let e = args
        .text_pairs(Some(&tokenizer), &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(e.contains("where the completion begins"), "{e}");
}

#[test]
fn damaged_parquet_is_an_error_and_never_a_crash() {
    let bytes = std::fs::read(fixture("gsm8k/main/train-00000-of-00001.parquet")).unwrap();
    let file = tempfile::Builder::new()
        .suffix(".parquet")
        .tempfile()
        .unwrap();
    let mut args = article();
    args.data = Some(Files::One(file.path().display().to_string()));
    let tokenizer = Tokenizer::open(&fixture("bpe")).unwrap();
    for at in (0..bytes.len()).step_by(7) {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x55;
        std::fs::write(file.path(), &damaged).unwrap();
        let _ = args.load(Some(&tokenizer), None, 0, &mut |_| {});
    }
    std::fs::write(file.path(), &bytes[..bytes.len() / 2]).unwrap();
    let e = args
        .load(Some(&tokenizer), None, 0, &mut |_| {})
        .unwrap_err()
        .to_string();
    assert!(
        e.contains("not a readable Parquet file") && e.contains("complete"),
        "{e}"
    );
}

/// Rows of words with classes, and of questions with answers, as `run_ner.py` and `run_qa.py` of Transformers make examples of them.
#[test]
fn rows_with_labels_of_tokens_are_those_of_transformers_scripts() {
    let recorded = read("marked.json");
    let tokenizer = Tokenizer::open(&fixture("wordpiece")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let load = |case: &Value, task: &str| {
        std::fs::write(&rows, case["row"].to_string()).unwrap();
        let mut options = json!({ "task": task, "data": rows });
        for key in ["max_seq_length", "doc_stride", "label_all_tokens"] {
            if let Some(value) = case.get(key) {
                options[key] = value.clone();
            }
        }
        let loaded = args(&options).load(Some(&tokenizer), None, 0, &mut |_| {});
        let data = loaded.unwrap().train;
        let all = (0..data.len()).map(|i| data.get(i).unwrap());
        all.collect::<Vec<Example>>()
    };
    let tags = recorded["tags"].as_array().unwrap();
    for case in tags {
        let [example] = &load(case, "token-classification")[..] else {
            panic!("one example");
        };
        assert_eq!(example.input_ids, ints(&case["want"]["input_ids"]));
        let want = Labels::Each(ints(&case["want"]["labels"]));
        assert_eq!(example.labels, want, "{case}");
    }
    let questions = recorded["questions"].as_array().unwrap();
    for case in questions {
        let got = load(case, "question-answering");
        let want = case["want"].as_array().unwrap();
        assert_eq!(got.len(), want.len(), "{case}");
        for (example, want) in got.iter().zip(want) {
            assert_eq!(example.input_ids, ints(&want["input_ids"]));
            let span = ints(&want["span"]);
            assert_eq!(example.labels, Labels::Span(span[0], span[1]), "{case}");
            let types = example.token_type_ids.clone().unwrap();
            assert_eq!(types, ints(&want["token_type_ids"]));
        }
    }
}

#[test]
fn rows_with_labels_of_tokens_that_do_not_fit_are_refused() {
    let tokenizer = Tokenizer::open(&fixture("wordpiece")).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let rows = dir.path().join("rows.jsonl");
    let error = |task: &str, row: Value| {
        std::fs::write(&rows, row.to_string()).unwrap();
        let options = args(&json!({ "task": task, "data": rows, "max_seq_length": 40 }));
        let loaded = options.load(Some(&tokenizer), None, 0, &mut |_| {});
        loaded.unwrap_err().to_string()
    };
    let e = error(
        "token-classification",
        json!({ "tokens": ["a", "b"], "labels": [1] }),
    );
    assert!(e.contains("1 classes for 2 words"), "{e}");
    let answers = json!({ "text": ["b"], "answer_start": [0] });
    let row = json!({ "question": "a", "context": "a b", "answers": answers });
    let e = error("question-answering", row);
    assert!(e.contains("does not stand at character 0"), "{e}");
    let row = json!({ "question": "a ".repeat(60), "context": "a b", "answers": { "text": [], "answer_start": [] } });
    let e = error("question-answering", row);
    assert!(e.contains("`doc_stride` is 128"), "{e}");
}

/// The tokenizer says how long a row may be, where it says less than the model has positions.
#[test]
fn rows_end_where_the_tokenizer_says() {
    let dir = tempfile::tempdir().unwrap();
    let from = fixture("wordpiece/tokenizer.json");
    std::fs::copy(from, dir.path().join("tokenizer.json")).unwrap();
    let config = json!({ "model_max_length": 6 }).to_string();
    std::fs::write(dir.path().join("tokenizer_config.json"), config).unwrap();
    let tokenizer = Tokenizer::open(dir.path()).unwrap();
    let of = |positions, asked| DataArguments {
        positions,
        max_seq_length: asked,
        ..DataArguments::default()
    };
    assert_eq!(of(Some(64), None).max_length(Some(&tokenizer)), 6);
    assert_eq!(of(Some(4), None).max_length(Some(&tokenizer)), 4);
    assert_eq!(of(Some(64), None).max_length(None), 64);
    assert_eq!(of(Some(64), Some(100)).max_length(Some(&tokenizer)), 100);
}
