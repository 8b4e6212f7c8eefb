//! Generation: the same tokens as transformers, with and without a cache, alone and in batches.

#![cfg(feature = "train")]
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use onnx_graft::adapters::Adapter;
use onnx_graft::generate::{
    Decoder, DecoderOptions, FinishReason, GenerationArguments, Memory, Prompt, Settings, generate,
};
use onnx_graft::runtime::CompileOptions;
use onnx_graft::text::Tokenizer;
use onnx_graft::{Interface, Verified, api};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Clone, Deserialize)]
struct Case {
    model: String,
    adapter: Option<String>,
    args: GenerationArguments,
    prompt: Vec<i64>,
    ids: Vec<i64>,
}

fn cases() -> Vec<Case> {
    let text = std::fs::read_to_string("fixtures/generate/texts.json").unwrap();
    serde_json::from_str(&text).unwrap()
}

fn options(use_cache: bool) -> DecoderOptions {
    DecoderOptions {
        use_cache,
        compile: CompileOptions { threads: Some(1), ..CompileOptions::default() },
        ..DecoderOptions::default()
    }
}

/// A model with adapters, and a decoder of it.
fn decoder(file: &str, interface: &str, adapters: &[&str], options: DecoderOptions) -> Decoder {
    let model: Verified = api::open(Path::new("fixtures").join(file)).unwrap();
    let interface = Interface::resolve(interface).unwrap();
    let adapters: Vec<Adapter> = adapters.iter().map(|a| api::adapter(a).unwrap()).collect();
    if adapters.is_empty() {
        let selection = interface.select(&model).unwrap();
        return Decoder::new(model, Some(&selection), options).unwrap();
    }
    let setup = api::stacked(adapters.iter().map(|a| a.name.clone()));
    let adapted = api::attach(model, &interface, adapters, setup, 1, false).unwrap();
    Decoder::new(adapted.model, Some(&adapted.selection), options).unwrap()
}

fn settings(args: GenerationArguments) -> Settings {
    Settings::new(args, None, None)
}

fn ids(decoder: &Decoder, prompts: &[Vec<i64>], args: GenerationArguments) -> Vec<Vec<i64>> {
    let prompts: Vec<Prompt> = prompts.iter().map(|p| Prompt { ids: p.clone() }).collect();
    let out = generate(decoder, None, &prompts, &settings(args), &mut |_, _| Ok(())).unwrap();
    out.into_iter().map(|g| g.ids).collect()
}

/// All texts of transformers for one model, one by one and in batches.
fn check(file: &str, model: &str, adapter: Option<&str>, use_cache: bool, memory: Memory) {
    let all: Vec<Case> = cases()
        .into_iter()
        .filter(|c| c.model == model && c.adapter.as_deref() == adapter)
        .collect();
    assert!(!all.is_empty());
    let folder = adapter.map(|a| format!("fixtures/{model}/{a}"));
    let adapters: Vec<&str> = folder.as_deref().into_iter().collect();
    let decoder = decoder(file, model, &adapters, options(use_cache));
    assert_eq!(decoder.memory(), memory, "{file}: {:?}", decoder.warnings());
    let mut groups: BTreeMap<String, Vec<Case>> = BTreeMap::new();
    for case in all {
        groups.entry(serde_json::to_string(&case.args).unwrap()).or_default().push(case);
    }
    for group in groups.into_values() {
        let prompts: Vec<Vec<i64>> = group.iter().map(|c| c.prompt.clone()).collect();
        let want: Vec<Vec<i64>> = group.iter().map(|c| c.ids.clone()).collect();
        let args = GenerationArguments { max_new_tokens: 12, ..group[0].args.clone() };
        for batch_size in [1, 3] {
            let args = GenerationArguments { batch_size, ..args.clone() };
            assert_eq!(ids(&decoder, &prompts, args), want, "{file}, batches of {batch_size}");
        }
    }
}

#[test]
fn qwen3_without_a_cache_says_what_transformers_says() {
    check("qwen3/model.onnx", "qwen3", None, false, Memory::None);
    check("qwen3/model.torchscript.onnx", "qwen3", None, false, Memory::None);
}

#[test]
fn qwen3_with_a_cache_says_what_transformers_says() {
    check("qwen3/model.onnx", "qwen3", None, true, Memory::Added);
    check("qwen3/model.torchscript.onnx", "qwen3", None, true, Memory::Added);
    check("qwen3/model.dynamo23.onnx", "qwen3", None, true, Memory::Added);
    check("qwen3/extra/optimum.onnx", "qwen3", None, true, Memory::Added);
}

#[test]
fn an_attached_lora_says_what_transformers_says_with_it_in_the_weights() {
    let lora = Some("plugin/lora_qv");
    check("qwen3/model.onnx", "qwen3", lora, false, Memory::None);
    check("qwen3/model.onnx", "qwen3", lora, true, Memory::Added);
    check("qwen3/model.torchscript.onnx", "qwen3", lora, true, Memory::Added);
}

#[test]
fn a_graph_with_its_own_cache_says_what_transformers_says() {
    check("generate/qwen3-past.onnx", "qwen3", None, true, Memory::Own);
}

#[test]
fn llama_and_gpt2_say_what_transformers_says() {
    for model in ["llama", "gpt2"] {
        for file in ["model.onnx", "model.torchscript.onnx"] {
            let file = format!("{model}/{file}");
            check(&file, model, None, true, Memory::Added);
            check(&file, model, None, false, Memory::None);
        }
    }
}

/// Largest difference of logits with and without a cache over some steps, for rows of different lengths.
fn difference(file: &str, interface: &str, adapters: &[&str]) -> f32 {
    let with = decoder(file, interface, adapters, options(true));
    assert_eq!(with.memory(), Memory::Added, "{file} {adapters:?}: {:?}", with.warnings());
    let without = decoder(file, interface, adapters, options(false));
    let prompts = [vec![5, 9, 12, 30, 41], vec![7, 3]];
    let (mut a, x) = with.begin(&prompts).unwrap();
    let (mut b, y) = without.begin(&prompts).unwrap();
    let distance = |x: &[f32], y: &[f32]| x.iter().zip(y).map(|(x, y)| (x - y).abs()).fold(0.0, f32::max);
    let mut most = distance(x.row(0), y.row(0)).max(distance(x.row(1), y.row(1)));
    for next in [[1, 9], [20, 21], [33, 2], [4, 4], [10, 11], [40, 45]] {
        let (x, y) = (a.step(&next).unwrap(), b.step(&next).unwrap());
        most = most.max(distance(x.row(0), y.row(0))).max(distance(x.row(1), y.row(1)));
    }
    most
}

/// Sums of some hundred terms of size one in f32, in another order.
const ROUNDING: f32 = 1e-5;

#[test]
fn cached_logits_are_the_uncached_ones_with_every_kind_of_adapter() {
    let adapters = [
        &["lora[r=4,attn_matrices=[q,k,v],output_lora=True]"][..],
        &["seq_bn"],
        &["par_bn"],
        &["ia3"],
        &["prefix_tuning_flat[prefix_length=3]"],
        &["lora", "seq_bn"],
    ];
    for adapters in adapters {
        let d = difference("qwen3/model.onnx", "qwen3", adapters);
        assert!(d < ROUNDING, "{adapters:?}: {d}");
    }
}

#[test]
fn cached_logits_are_the_uncached_ones_in_every_export() {
    for (file, interface) in [
        ("llama/model.onnx", "llama"),
        ("llama/model.torchscript.onnx", "llama"),
        ("gpt2/model.onnx", "gpt2"),
        ("gpt2/model.torchscript.onnx", "gpt2"),
    ] {
        for adapters in [&["prefix_tuning_flat[prefix_length=3]"][..], &["lora"]] {
            let d = difference(file, interface, adapters);
            assert!(d < ROUNDING, "{file} {adapters:?}: {d}");
        }
    }
}
