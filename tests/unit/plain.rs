//! Transformers that are written in plain torch: no interface is known for them, and parts of their layers are no modules. What adapters
//! compute there is what torch computes by hand (`fixtures/make_plain.py`).

use super::support::fixture;
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, io};
use onnx_graft::{Attach, api};

fn check(name: &str, paths: [&str; 4]) {
    let folder = fixture(&format!("plain/{name}"));
    let reference = io::read(&folder.join("reference.safetensors")).unwrap().0;
    let model = || api::open(folder.join("model.onnx")).unwrap();
    for kind in ["lora", "prefix", "bottleneck"] {
        let saved = folder.join(kind).display().to_string();
        let adapted = Attach::to(model()).adapter(&saved).unwrap().run().unwrap();
        let layer = &adapted.selection.layers[1];
        let attention = layer.self_attn.as_ref().unwrap();
        let found = [
            attention.qkv.as_ref(),
            attention.o.as_ref(),
            layer.intermediate.as_ref(),
            layer.output_proj.as_ref(),
        ];
        let found = found.map(|l| &*l.unwrap().path);
        assert_eq!(found, paths);
        let plan = Plan::compile(&adapted.model, &CompileOptions::default()).unwrap();
        let mut feeds = Feeds::new();
        feeds.insert("input_ids", reference["input/input_ids"].clone());
        let made = plan.run(&feeds).unwrap()["logits"].to_f32().unwrap();
        let wanted = reference[kind].to_f32().unwrap();
        let far = std::iter::zip(&made, &wanted).map(|(a, b)| (a - b).abs());
        let far = far.fold(0f32, f32::max);
        assert!(
            made.len() == wanted.len() && far < 1e-5,
            "{name} {kind}: {far}"
        );
    }
}

/// `nn.MultiheadAttention` holds its projections as parameters.
#[test]
fn projections_that_are_no_modules_are_named_by_their_parameters() {
    let at = |part| format!("encoder.layers.1.{part}");
    let paths = [
        "self_attn.in_proj",
        "self_attn.out_proj",
        "linear1",
        "linear2",
    ]
    .map(at);
    check("encoder", paths.each_ref().map(|p| &**p));
}

#[test]
fn a_layer_may_hold_its_attention_itself() {
    let paths = ["wqkv", "proj", "up", "down"].map(|part| format!("blocks.1.{part}"));
    check("decoder", paths.each_ref().map(|p| &**p));
}
