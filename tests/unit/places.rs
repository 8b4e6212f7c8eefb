//! What an adapter reads, adds to and counts in the library's own class of each family, where families differ: the library's outputs.
//!
//! A folder of `fixtures/places` is a model, a folder in it an adapter as the library saved it. `fixtures/make_places.py` made them.

use super::support::fixture;
use onnx_graft::adapters::AdapterFolder;
use onnx_graft::rewrite::pipelines::{self, Mode};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value, io};
use onnx_graft::select::Interface;
use onnx_graft::{Attach, api};
use std::collections::BTreeMap;
use std::path::Path;

/// Single precision, over two layers of eight channels; a wrong place is off by 1e-2 at least.
const TOLERANCE: f32 = 1e-4;

fn check(family: &str) {
    let folder = fixture(&format!("places/{family}"));
    let interface = Interface::builtin(family).unwrap().unwrap();
    let data: BTreeMap<String, Value> = io::read(&folder.join("expected.safetensors"))
        .unwrap()
        .0
        .into_iter()
        .collect();
    let mut feeds = Feeds::new();
    let mut checked = 0;
    for (name, value) in &data {
        if let Some(input) = name.strip_prefix("input/") {
            feeds.insert(input, value.clone());
        }
    }
    for (name, want) in &data {
        let Some((method, output)) = name.split_once('/').filter(|(m, _)| *m != "input") else {
            continue;
        };
        let got = run(&folder, &interface, method, output, &feeds);
        let (found, want) = (got.to_f32().unwrap(), want.to_f32().unwrap());
        assert_eq!(found.len(), want.len(), "{family}, {method}");
        let largest = want.iter().fold(1.0f32, |m, x| m.max(x.abs()));
        let pairs = found.iter().zip(&want);
        let off = pairs.fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
        assert!(
            off <= TOLERANCE * largest,
            "{family}, {method}: off by {off}"
        );
        checked += 1;
    }
    assert!(checked > 0);
}

fn run(folder: &Path, interface: &Interface, method: &str, output: &str, feeds: &Feeds) -> Value {
    let adapter = AdapterFolder::read(&folder.join(method)).unwrap();
    let model = Attach::to(api::open(folder.join("model.onnx")).unwrap())
        .interface(interface)
        .adapters([adapter.into_adapter(None)])
        .run()
        .unwrap()
        .model;
    let model = pipelines::inference(Mode::Portable)
        .run(model)
        .unwrap()
        .model;
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    plan.run(feeds).unwrap()[output].0.clone()
}

#[test]
fn albert_gives_the_attention_adapter_the_layers_input_and_has_groups_of_layers() {
    check("albert");
}

#[test]
fn beit_adds_what_the_layer_scale_makes() {
    check("beit");
}

#[test]
fn clip_has_two_towers_of_different_widths() {
    check("clip");
}

#[test]
fn deberta_projects_relative_positions_with_the_adapted_keys() {
    check("deberta-v2");
}

#[test]
fn distilbert_adds_ones_to_the_scores_of_a_prompt() {
    check("distilbert");
}

#[test]
fn electra_inverts_embeddings_that_are_narrower_than_the_stream() {
    check("electra");
}

#[test]
fn an_encoder_decoder_has_a_room_in_each_model() {
    check("encoder-decoder");
}

#[test]
fn gptj_adds_the_attention_to_the_residual_of_the_feed_forward_block() {
    check("gptj");
}

#[test]
fn t5_has_one_interface_for_plain_and_gated_blocks() {
    check("t5");
}

#[test]
fn whisper_inverts_what_the_encoder_makes() {
    check("whisper");
}

#[test]
fn xmod_norms_twice() {
    check("xmod");
}
