//! Prediction heads: the library's files, its numbers, and the way back to the base model.

use super::support::fixture;
use onnx_graft::adapters::AdapterStore;
use onnx_graft::adapters::head::{Head, HeadConfig, Pooling, owner};
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

#[test]
fn a_saved_head_gives_the_librarys_logits() {
    let head = Head::read(&fixture("bert/head"), None).unwrap().unwrap();
    assert_eq!((head.name.as_str(), head.config.num_labels), ("a", 3));
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

#[test]
fn a_head_is_written_as_it_was_read() {
    let head = Head::read(&fixture("bert/head"), None).unwrap().unwrap();
    let base = api::open(fixture("bert/model.onnx")).unwrap();
    let model = api::attach_head(base, head.clone(), 0, false).unwrap();
    let store = AdapterStore::from_model(model.model());
    assert_eq!(store.of(&owner("a")).len(), 4);
    assert_eq!(store.of("a").len(), 0, "a head is no part of the adapter");
    let folder = tempfile::tempdir().unwrap();
    head.write(
        folder.path(),
        &store,
        &onnx_graft::adapters::Meta::default(),
        false,
    )
    .unwrap();
    assert_eq!(Head::read(folder.path(), None).unwrap().unwrap(), head);
    let renamed = Head::read(folder.path(), Some("b")).unwrap().unwrap();
    assert!(renamed.weights.unwrap().contains_key("heads.b.1.weight"));
}

#[test]
fn stripping_takes_the_head_out() {
    let base = api::open(fixture("bert/model.onnx")).unwrap();
    let text = |m: &Verified| onnx_graft::ir::text::print(m.model());
    let before = text(&base);
    let head = Head {
        name: "h".into(),
        config: HeadConfig::default(),
        weights: None,
    };
    let model = api::attach_head(base, head, 0, true).unwrap();
    assert_ne!(text(&model), before);
    assert_eq!(text(&api::strip(model, None).unwrap()), before);
}

#[test]
fn a_decoders_head_reads_the_last_token_wherever_the_padding_is() {
    let base = api::open(fixture("bert/model.onnx")).unwrap();
    let head = Head {
        name: "h".into(),
        config: HeadConfig {
            pooling: Pooling::Last,
            layers: 1,
            ..HeadConfig::default()
        },
        weights: None,
    };
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
    let head = |config: HeadConfig| Head {
        name: "h".into(),
        config,
        weights: None,
    };
    let e = api::attach_head(base, head(HeadConfig::default()), 0, false).unwrap_err();
    assert!(e.to_string().contains("a head of its own"), "{e}");
    let base = api::open(fixture("bert/model.onnx")).unwrap();
    let config = HeadConfig {
        activation_function: Some("tann".into()),
        ..HeadConfig::default()
    };
    let e = api::attach_head(base, head(config), 0, false).unwrap_err();
    assert!(e.to_string().contains("tanh"), "{e}");
}
