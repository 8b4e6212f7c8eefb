//! Whole models: losses, and the gradient by weights in the first and last layers, against differences along two directions.

use super::harness::noise;
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::ir::{DType, Graph, NodeId, ValueId};
use onnx_graft::rewrite::Pipeline;
use onnx_graft::rewrite::passes::gradient::{GradientPass, Outputs, Unreached};
use onnx_graft::rewrite::passes::loss::{Divisor, Loss};
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value, io};
use std::collections::BTreeSet;
use std::path::Path;

/// Length of the step. The losses are about 4, with a rounding of 4e-7, which is 2e-4 of the step.
const STEP: f32 = 2e-3;
/// Absolute, and relative to the slope: five times that.
const TOLERANCE: f32 = 1e-3;

/// The constant weights of matrix products that the first output depends on, in order: first, second and last.
fn weights(g: &Graph) -> Vec<String> {
    let mut needed: BTreeSet<ValueId> = BTreeSet::from([g.outputs()[0].value]);
    let order = g.order().unwrap();
    let used: BTreeSet<NodeId> = order
        .iter()
        .rev()
        .copied()
        .filter(|&n| {
            let on = g
                .node_outputs(n)
                .iter()
                .flatten()
                .any(|v| needed.contains(v));
            if on {
                needed.extend(g.node_inputs(n).into_iter().flatten());
            }
            on
        })
        .collect();
    let of = |v: ValueId| {
        g.value(v)
            .tensor
            .as_ref()
            .filter(|t| t.dtype == DType::Float)
    };
    let mut found: Vec<String> = Vec::new();
    for n in order.into_iter().filter(|n| used.contains(n)) {
        let product = ["MatMul", "Gemm"].iter().any(|op| g.node(n).op.is_onnx(op));
        if let Some(w) = g.input(n, 1).filter(|&w| product && of(w).is_some()) {
            found.push(g.name_of(w).to_owned());
        }
    }
    let last = found.pop().unwrap();
    found.truncate(2);
    found.push(last);
    found
}

fn check(file: &str, loss: Loss) {
    let folder = file.split('/').next().unwrap();
    check_on(file, folder, loss, TOLERANCE);
}

/// A model of `fixtures/`, on the inputs of one of the folders there.
fn check_on(file: &str, inputs: &str, loss: Loss, tolerance: f32) {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures");
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fixtures")
        .join(file);
    let base = Verified::check(onnx_graft::onnx::open(&path).unwrap()).unwrap();
    let wrt = weights(&base.model().graph);
    let pass = GradientPass {
        loss: contract::LOSS.into(),
        wrt: wrt.clone(),
        outputs: Outputs::Drop,
        unreached: Unreached::Refuse,
    };
    let done = Pipeline::new().with(loss).with(pass).run(base);
    let done = done.map_err(|f| f.error.to_string()).unwrap();
    let g = &done.model.model().graph;
    let outputs: Vec<&str> = g.outputs().iter().map(|p| g.name_of(p.value)).collect();
    assert_eq!(outputs.len(), wrt.len() + 1, "{outputs:?}");

    let options = CompileOptions {
        variables: wrt.clone(),
        ..CompileOptions::default()
    };
    let plan = Plan::compile(&done.model, &options).unwrap();
    let saved = io::read(&fixtures.join(inputs).join("inputs.safetensors")).unwrap();
    let mut feeds = Feeds::new();
    for port in g.inputs() {
        let name = g.name_of(port.value);
        let inputs = &saved.0;
        let value = inputs
            .get(&format!("input/{name}"))
            .or_else(|| inputs.get(name));
        feeds.insert(name, value.unwrap_or_else(|| panic!("{name}")).clone());
    }
    let grads = plan.run(&feeds).unwrap();
    for name in &wrt {
        let grad = grads[&contract::grad(name)].to_f32().unwrap();
        assert!(grad.iter().all(|x| x.is_finite()), "{file}: grad/{name}");
        let tensor = g.value(g.find(name).unwrap()).tensor.as_ref().unwrap();
        let values = tensor.to_f32().unwrap();
        let dims: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
        for direction in [grad.clone(), noise(5, grad.len(), -1.0, 1.0)] {
            let norm = direction.iter().map(|x| x * x).sum::<f32>().sqrt();
            assert!(norm > 1e-6, "{file}: grad/{name} is zero");
            let at = |step: f32| {
                let moved = values
                    .iter()
                    .zip(&direction)
                    .map(|(x, d)| x + step * d / norm);
                let value = Value::from_f32(&dims, moved.collect()).unwrap();
                let out = plan.run(&feeds.clone().with(name, value)).unwrap();
                out[contract::LOSS].to_f32().unwrap()[0]
            };
            let want = (at(STEP) - at(-STEP)) / (2.0 * STEP);
            let found: f32 = grad.iter().zip(&direction).map(|(g, d)| g * d / norm).sum();
            assert!(
                (want - found).abs() <= tolerance * (1.0 + want.abs()),
                "{file}: the slope along grad/{name} is {found}, the difference {want}"
            );
        }
    }
}

fn causal() -> Loss {
    Loss::CausalLm {
        logits: None,
        divisor: Divisor::Labels,
    }
}

fn mse() -> Loss {
    Loss::Mse { output: None }
}

#[test]
fn decoders() {
    check("qwen3/model.onnx", causal());
    check("qwen3/model.torchscript.onnx", causal());
    check("llama/model.onnx", causal());
    check("gpt2/model.onnx", causal());
    check("gpt2/model.torchscript.onnx", causal());
}

#[test]
fn encoders() {
    check("bert/model.onnx", mse());
    check("bert/model.torchscript.onnx", mse());
    check("distilbert/model.onnx", mse());
    check("vit/model.onnx", mse());
}

#[test]
fn encoder_decoder() {
    // Its activation is ReLU: kinks lie within the step, and the difference is off by a multiple of the step.
    check_on("t5/model.onnx", "t5", mse(), 2.0 * STEP);
    check_on("t5/model.torchscript.onnx", "t5", mse(), 2.0 * STEP);
}

/// Attention, skip norms and activations of other producers, by their definitions.
#[test]
fn fused_by_other_tools() {
    check_on("onnx/bert-optimizer.onnx", "bert", mse(), TOLERANCE);
}
