//! Prediction heads: the library's files, its numbers, and the way back to the base model.

use super::support::fixture;
use onnx_graft::adapters::AdapterStore;
use onnx_graft::adapters::heads::{Head, HeadConfig, Pooling, SavedHead, owner};
use onnx_graft::api;
use onnx_graft::infer::Verified;
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, io};

fn inputs(arch: &str) -> Feeds {
    let data = io::read(&fixture(arch).join("inputs.safetensors")).unwrap();
    let mut feeds = Feeds::new();
    for (name, value) in data.0 {
        if let Some(name) = name.strip_prefix("input/") {
            feeds.insert(name, value);
        }
    }
    feeds
}

fn logits(model: &Verified, feeds: &Feeds) -> (Vec<usize>, Vec<f32>) {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let out = plan.run(feeds).unwrap();
    let logits = &out.get("logits").unwrap();
    (logits.dims().to_vec(), logits.to_f32().unwrap())
}

/// Largest difference.
fn apart(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter()
        .zip(b)
        .map(|(a, b)| (a - b).abs())
        .fold(0.0, f32::max)
}

fn read(folder: &std::path::Path, name: Option<&str>) -> Head {
    match SavedHead::read(folder, name).unwrap().unwrap() {
        SavedHead::Flexible(head) => head,
        SavedHead::Static(head) => head.flexible().unwrap(),
    }
}

#[test]
fn a_saved_head_gives_the_librarys_logits() {
    let head = read(&fixture("bert/head"), None);
    assert_eq!((head.name.as_str(), head.config.num_labels()), ("a", 3));
    let want = io::read(&fixture("bert/head/reference.safetensors")).unwrap();
    for graph in ["model.onnx", "model.torchscript.onnx"] {
        let base = api::open(fixture("bert").join(graph)).unwrap();
        let model = api::attach_head(base, head.clone(), 0, false).unwrap();
        let (dims, got) = logits(&model, &inputs("bert"));
        assert_eq!(dims, [3, 3]);
        // The base model's own outputs differ from the reference by 3e-6.
        assert!(apart(&got, &want.0["logits"].to_f32().unwrap()) < 1e-4);
    }
}

/// Name and values of the outputs that a head was recorded with.
fn recorded(folder: &std::path::Path) -> Vec<(String, Vec<f32>)> {
    let data = io::read(&folder.join("reference.safetensors")).unwrap();
    let named = data.0.iter();
    named
        .map(|(k, v)| (k.clone(), v.to_f32().unwrap()))
        .collect()
}

fn check_outputs(model: &Verified, arch: &str, folder: &std::path::Path) {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let out = plan.run(&inputs(arch)).unwrap();
    for (name, want) in recorded(folder) {
        let got = out.get(&name).unwrap().to_f32().unwrap();
        let most = apart(&got, &want);
        assert!(most < 1e-4, "{}: {name} is {most} off", folder.display());
    }
}

#[test]
fn heads_of_every_kind_give_the_librarys_outputs_and_are_written_as_they_were() {
    let kinds = [
        "multilabel",
        "multiple_choice",
        "tagging",
        "question_answering",
        "causal_lm",
        "masked_lm",
        "BertForTokenClassification",
        "BertForMaskedLM",
    ];
    for kind in kinds {
        let folder = fixture("bert/heads").join(kind);
        let head = read(&folder, Some("a"));
        for graph in ["model.onnx", "model.torchscript.onnx"] {
            let base = api::open(fixture("bert").join(graph)).unwrap();
            let model = api::attach_head(base, head.clone(), 0, false).unwrap();
            check_outputs(&model, "bert", &folder);
            let out = tempfile::tempdir().unwrap();
            let store = AdapterStore::from_model(model.model());
            let meta = onnx_graft::adapters::Meta {
                hidden_size: Some(32),
                model_type: "bert".into(),
                ..onnx_graft::adapters::Meta::default()
            };
            let graph = &model.model().graph;
            head.write(out.path(), &store, graph, &meta, false).unwrap();
            let again = read(out.path(), None);
            assert_eq!(again.weights, head.weights, "{kind}");
            if kind.starts_with(char::is_lowercase) {
                let json = |p: &std::path::Path| {
                    std::fs::read_to_string(p.join("head_config.json")).unwrap()
                };
                assert_eq!(json(out.path()), json(&folder), "{kind}");
            }
        }
    }
}

#[test]
fn a_head_of_the_graphs_class_takes_the_place_of_its_own() {
    use onnx_graft::adapters::heads::Joined;
    let folder = fixture("gpt2/heads/GPT2LMHeadModel");
    let Some(SavedHead::Static(head)) = SavedHead::read(&folder, Some("a")).unwrap() else {
        panic!("it is a head of a class");
    };
    for graph in ["model.onnx", "model.torchscript.onnx"] {
        let model = api::open(fixture("gpt2").join(graph)).unwrap();
        let interface = onnx_graft::Interface::resolve("gpt2").unwrap();
        let selection = interface.select(&model).unwrap();
        let config = onnx_graft::Config::parse("lora[r=2]").unwrap();
        let mut adapter = onnx_graft::Adapter::fresh("a", config);
        let mut head = head.clone();
        let weights = onnx_graft::Attach::to(model.clone())
            .interface(&interface)
            .adapters([adapter.clone()])
            .run()
            .unwrap();
        adapter = weights
            .folder("a", &weights.store())
            .unwrap()
            .into_adapter(None);
        let joined = head
            .join(&mut adapter, &selection, &model.model().graph, false)
            .unwrap();
        assert_eq!(joined, Joined::Taken);
        let adapted = onnx_graft::Attach::to(model)
            .interface(&interface)
            .adapters([adapter])
            .run()
            .unwrap();
        check_outputs(&adapted.model, "gpt2", &folder);
        assert_eq!(head.weights_in(&adapted.store()), head.weights);
    }
}

#[test]
fn a_head_is_written_as_it_was_read() {
    let head = read(&fixture("bert/head"), None);
    let base = api::open(fixture("bert/model.onnx")).unwrap();
    let model = api::attach_head(base, head.clone(), 0, false).unwrap();
    let store = AdapterStore::from_model(model.model());
    assert_eq!(store.of(&owner("a")).len(), 4);
    assert_eq!(store.of("a").len(), 0, "a head is no part of the adapter");
    let folder = tempfile::tempdir().unwrap();
    head.write(
        folder.path(),
        &store,
        &model.model().graph,
        &onnx_graft::adapters::Meta::default(),
        false,
    )
    .unwrap();
    assert_eq!(read(folder.path(), None), head);
    let renamed = read(folder.path(), Some("b"));
    assert!(renamed.weights.unwrap().contains_key("heads.b.1.weight"));
}

#[test]
fn a_head_goes_where_its_renamed_adapter_goes() {
    use onnx_graft::adapters::heads::files::copy_renamed;
    for kind in ["tagging", "BertForTokenClassification"] {
        let from = fixture("bert/heads").join(kind);
        let dir = tempfile::tempdir().unwrap();
        let to = dir.path().join("b");
        copy_renamed(&from, &to, "b", false).unwrap();
        let (before, after) = (read(&from, Some("b")), read(&to, Some("b")));
        assert_eq!(after, before, "{kind}");
        assert!(copy_renamed(&from, &to, "b", false).is_err());
        copy_renamed(&from, &to, "b", true).unwrap();
    }
    let empty = tempfile::tempdir().unwrap();
    copy_renamed(empty.path(), &empty.path().join("b"), "b", false).unwrap();
}

#[test]
fn stripping_takes_the_head_out() {
    let base = api::open(fixture("bert/model.onnx")).unwrap();
    let text = |m: &Verified| onnx_graft::ir::text::print(m.model());
    let before = text(&base);
    let head = Head::fresh("h", HeadConfig::default());
    let model = api::attach_head(base, head, 0, true).unwrap();
    assert_ne!(text(&model), before);
    assert_eq!(text(&api::strip(model, None).unwrap()), before);
}

#[test]
fn a_decoders_head_reads_the_last_token_wherever_the_padding_is() {
    let base = api::open(fixture("bert/model.onnx")).unwrap();
    let config = HeadConfig {
        pooling: Some(Pooling::Last),
        layers: Some(1),
        ..HeadConfig::default()
    };
    let head = Head::fresh("h", config);
    let model = api::attach_head(base, head, 7, false).unwrap();
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    let feeds = inputs("bert");
    let mask = feeds.0["attention_mask"].to_ints().unwrap();
    let out = plan.run(&feeds).unwrap();
    let hidden = out.get("last_hidden_state").unwrap().to_f32().unwrap();
    let got = out.get("logits").unwrap().to_f32().unwrap();
    let store = AdapterStore::from_model(model.model());
    let weight = store
        .get("heads.h.1.weight")
        .unwrap()
        .tensor
        .to_f32()
        .unwrap();
    let (seq, d) = (mask.len() / 3, 32);
    for row in 0..3 {
        let last = (0..seq).rev().find(|s| mask[row * seq + s] != 0).unwrap();
        let x = &hidden[(row * seq + last) * d..][..d];
        for label in 0..2 {
            let want: f32 = x.iter().zip(&weight[label * d..]).map(|(a, b)| a * b).sum();
            // Another order of the sum.
            assert!((got[row * 2 + label] - want).abs() < 1e-5);
        }
    }
}

#[test]
fn what_makes_no_head_is_refused() {
    let base = api::open(fixture("qwen3/model.onnx")).unwrap();
    let head = |config: HeadConfig| Head::fresh("h", config);
    let e = api::attach_head(base, head(HeadConfig::default()), 0, false).unwrap_err();
    assert!(e.to_string().contains("a head of its own"), "{e}");
    let base = api::open(fixture("bert/model.onnx")).unwrap();
    let config = HeadConfig {
        activation_function: onnx_graft::adapters::heads::Usual::Given(Some("tann".into())),
        ..HeadConfig::default()
    };
    let e = api::attach_head(base, head(config), 0, false).unwrap_err();
    assert!(e.to_string().contains("tanh"), "{e}");
}

/// A base model learns a task of tokens with a head of its own, which is saved in the library's form and answers in an evaluation.
#[test]
fn tasks_of_tokens_train_a_head_and_are_measured() {
    use onnx_graft::job::{Evaluation, Job};
    use serde_json::json;
    let wordpiece = fixture("data/wordpiece");
    let rows: Vec<serde_json::Value> = (0..6)
        .map(|i| {
            let ids: Vec<i64> = (0..8).map(|j| 5 + (i * 7 + j * 3) % 40).collect();
            let labels: Vec<i64> = ids.iter().map(|id| id % 3).collect();
            json!({ "input_ids": ids, "labels": labels })
        })
        .collect();
    let asked: Vec<serde_json::Value> = (0..6)
        .map(|i| {
            let answers = json!({ "text": ["b"], "answer_start": [2 + 2 * (i % 2)] });
            let context = if i % 2 == 0 { "c b d" } else { "c d b" };
            json!({ "question": "a", "context": context, "answers": answers })
        })
        .collect();
    for (task, rows, kind, measure) in [
        ("token-classification", &rows, "tagging", "accuracy"),
        ("masked-lm", &rows, "masked_lm", "perplexity"),
        (
            "question-answering",
            &asked,
            "question_answering",
            "accuracy",
        ),
    ] {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("rows.jsonl");
        let lines: Vec<String> = rows.iter().map(ToString::to_string).collect();
        std::fs::write(&data, lines.join("\n")).unwrap();
        let out = dir.path().join("out");
        let model = fixture("bert/model.onnx");
        let set = [
            ("task", json!(task)),
            ("data", json!(data)),
            ("tokenizer", json!(wordpiece)),
        ];
        let mut job = Job::open(&model).unwrap();
        let mut evaluation = Evaluation::open(&model).unwrap();
        for (name, value) in set {
            job = job.set(name, value.clone());
            evaluation = evaluation.set(name, value);
        }
        let report = job
            .set("adapter", "a=lora[r=2]")
            .set("output_dir", json!(out))
            .set("max_steps", 3)
            .set("learning_rate", 0.01)
            .run(&mut |_| Ok(()))
            .unwrap_or_else(|e| panic!("{task}: {e}"));
        assert_eq!(report.steps, 3);
        let text = std::fs::read_to_string(out.join("a/head_config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert_eq!(config["config"]["head_type"], kind);
        assert_eq!(config["model_class"], "BertAdapterModel");
        let report = evaluation
            .set("adapter", json!(out.join("a")))
            .run(&mut |_| Ok(()))
            .unwrap_or_else(|e| panic!("{task}: {e}"));
        assert!(report.metrics[measure].is_finite(), "{task}");
    }
}

/// Rows of a further training come in another order, and not of every class: what a class is stays what it was.
#[test]
fn the_classes_of_a_saved_head_stay_what_they_are() {
    use onnx_graft::job::{Evaluation, Job};
    use serde_json::{Value, json};
    let row = |i: usize| {
        let (label, first) = [("yes", 5), ("no", 30)][i % 2];
        let ids: Vec<usize> = (0..6).map(|j| first + (i + j) % 10).collect();
        json!({ "input_ids": ids, "label": label }).to_string()
    };
    let dir = tempfile::tempdir().unwrap();
    let (forth, back) = (
        dir.path().join("forth.jsonl"),
        dir.path().join("back.jsonl"),
    );
    let rows: Vec<String> = (0..16).map(row).collect();
    std::fs::write(&forth, rows.join("\n")).unwrap();
    let turned: Vec<&str> = rows.iter().rev().map(String::as_str).collect();
    std::fs::write(&back, turned.join("\n")).unwrap();
    let model = fixture("bert/model.onnx");
    let train = |adapter: &str, data: &std::path::Path, out: &str, steps: u64, rate: f64| {
        let out = dir.path().join(out);
        let set: [(&str, Value); 6] = [
            ("task", json!("classification")),
            ("adapter", json!(adapter)),
            ("data", json!(data)),
            ("output_dir", json!(out)),
            ("max_steps", json!(steps)),
            ("learning_rate", json!(rate)),
        ];
        let job = set
            .into_iter()
            .fold(Job::open(&model).unwrap(), |j, (n, v)| j.set(n, v));
        job.run(&mut |_| Ok(())).unwrap();
        out.join("a")
    };
    let first = train("a=lora[r=4]", &forth, "one", 40, 0.02);
    let second = train(first.to_str().unwrap(), &back, "two", 1, 1e-7);
    for folder in [&first, &second] {
        for data in [&forth, &back] {
            let evaluation = Evaluation::open(&model).unwrap();
            let report = evaluation
                .set("task", "classification")
                .set("adapter", json!(folder))
                .set("data", json!(data))
                .run(&mut |_| Ok(()))
                .unwrap();
            assert!(report.metrics["accuracy"] > 0.9, "{}", folder.display());
        }
    }
}

/// An adapter that is not active keeps its head, as it keeps its weights.
#[test]
fn a_head_that_is_not_used_stays_in_its_folder() {
    use onnx_graft::job::Job;
    use serde_json::json;
    let dir = tempfile::tempdir().unwrap();
    let data = dir.path().join("rows.jsonl");
    let row = |i: usize| json!({ "input_ids": [5, 6, 7 + i], "label": i % 2 }).to_string();
    std::fs::write(&data, (0..4).map(row).collect::<Vec<_>>().join("\n")).unwrap();
    let model = fixture("bert/model.onnx");
    let train = |adapters: serde_json::Value, active: &str, out: &str| {
        let job = Job::open(&model).unwrap().set("task", "classification");
        let job = job.set("adapter", adapters).set("data", json!(data));
        let job = job.set("max_steps", 1).set("active", active);
        let out = dir.path().join(out);
        job.set("output_dir", json!(out))
            .run(&mut |_| Ok(()))
            .unwrap();
        out
    };
    let a = train(json!(["a=lora[r=2]"]), "a", "one").join("a");
    let b = train(json!(["b=lora[r=2]"]), "b", "two").join("b");
    let both = train(json!([a, b]), "b", "both");
    for name in ["a", "b"] {
        assert!(
            both.join(name).join("model_head.safetensors").exists(),
            "{name}"
        );
    }
    let bytes = |p: &std::path::Path| std::fs::read(p.join("model_head.safetensors")).unwrap();
    assert_eq!(bytes(&both.join("a")), bytes(&a));
}
