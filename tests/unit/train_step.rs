//! Optimizer steps on real graphs: the portable and the fused backward agree, the loss falls, the base stays.

use crate::unit::training_graph;
use onnx_graft::infer::Verified;
use onnx_graft::onnx;
use onnx_graft::rewrite::passes::gradient::Outputs;
use onnx_graft::rewrite::passes::loss::Divisor;
use onnx_graft::rewrite::pipelines::Mode;
use onnx_graft::runtime::{CompileOptions, Feeds, Gradient, TrainStep, Trainable, io};
use onnx_graft::train::parse_loss;
use std::path::Path;

/// Named norm weights: present under their own names in the exports of both exporters.
const PARAMS: [&str; 2] = [
    "model.layers.0.self_attn.q_norm.weight",
    "model.layers.1.post_attention_layernorm.weight",
];

fn step(arch: &str, mode: Mode) -> (TrainStep, Feeds) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(arch);
    let model = Verified::check(onnx::open(folder.join("model.onnx")).unwrap()).unwrap();
    let names: Vec<String> = PARAMS.iter().map(|&n| n.to_owned()).collect();
    let loss = parse_loss("causal-lm", Divisor::Labels);
    let graph = training_graph(model, &loss, &names, Outputs::Drop, mode).unwrap();
    let step = TrainStep::compile(&graph, &names, &CompileOptions::default()).unwrap();
    let data = io::read(&folder.join("inputs.safetensors")).unwrap();
    let mut feeds = Feeds::new();
    for spec in step.plan().feeds() {
        let key = if spec.name == "labels" {
            "labels".to_owned()
        } else {
            format!("input/{}", spec.name)
        };
        if let Some(v) = data.0.get(&key) {
            feeds.insert(&spec.name, v.clone());
        }
    }
    (step, feeds)
}

#[test]
fn portable_and_fused_gradients_agree() {
    let (portable, feeds) = step("qwen3", Mode::Portable);
    let (native, _) = step("qwen3", Mode::Native);
    let (a, ga) = portable.evaluate(&feeds, None).unwrap();
    let (b, gb) = native.evaluate(&feeds, None).unwrap();
    // Single precision, sums of some hundred terms in another order.
    assert!((a - b).abs() < 1e-5, "{a} and {b}");
    for (name, x) in &ga {
        let largest = x.iter().fold(0f32, |m, x| m.max(x.abs()));
        assert!(largest > 1e-4, "{name}: the gradient is zero");
        for (x, y) in x.iter().zip(&gb[name]) {
            assert!(
                (x - y).abs() < 1e-4 * (1.0 + largest),
                "{name}: {x} and {y}"
            );
        }
    }
}

/// A step against the sign of each gradient.
#[expect(clippy::unnecessary_wraps, reason = "the form of an optimizer")]
fn descend(_: &str, param: &mut Trainable, gradient: Gradient<'_>) -> onnx_graft::Result<()> {
    for (x, g) in param.value.iter_mut().zip(gradient.grad) {
        let sign = if *g == 0.0 { 0.0 } else { g.signum() };
        *x -= 1e-2 * sign;
    }
    Ok(())
}

#[test]
fn the_loss_falls_and_runs_repeat_to_the_bit() {
    let run = || {
        let (mut step, feeds) = step("qwen3", Mode::Native);
        let mut losses = Vec::new();
        for i in 0..5 {
            losses.push(step.accumulate(&feeds, 1.0, None).unwrap());
            let report = step.apply(Some(1.0), &mut descend).unwrap();
            assert_eq!(report.step, i + 1);
            assert!(report.grad_norm > 0.0 && report.clip <= 1.0);
        }
        losses
    };
    let losses = run();
    assert!(losses.windows(2).all(|w| w[1] < w[0]), "{losses:?}");
    assert_eq!(losses, run());
}

#[test]
fn a_step_without_gradients_and_unknown_names_are_errors() {
    let (mut fresh, _) = step("qwen3", Mode::Portable);
    assert!(fresh.apply(None, &mut descend).is_err());
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/qwen3");
    let model = Verified::check(onnx::open(folder.join("model.onnx")).unwrap()).unwrap();
    let names = vec!["model.layers.0.self_attn.q_norm.weigth".to_owned()];
    let message = TrainStep::compile(&model, &names, &CompileOptions::default())
        .unwrap_err()
        .to_string();
    assert!(
        message.contains("did you mean `model.layers.0.self_attn.q_norm.weight`?"),
        "{message}"
    );
}
