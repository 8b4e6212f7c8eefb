//! An adapter folded into the base weights computes what the attached one computes, and the base file stays as it was.

use super::support::fixture;
use onnx_graft::adapters::{Adapter, AdapterStore, Config, Weights};
use onnx_graft::infer::Verified;
use onnx_graft::ir::{TensorData, text};
use onnx_graft::job::{merge, reset};
use onnx_graft::runtime::{CompileOptions, Feeds, Outputs, Plan, io};
use onnx_graft::select::Interface;
use onnx_graft::{Attach, api};

fn outputs(model: &Verified, data: &Feeds) -> Outputs {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let mut feeds = Feeds::new();
    for spec in plan.feeds() {
        if let Some(v) = data.0.get(&format!("input/{}", spec.name)) {
            feeds.insert(&spec.name, v.clone());
        }
    }
    plan.run(&feeds).unwrap()
}

fn difference(a: &Outputs, b: &Outputs) -> f32 {
    let (mut most, mut compared) = (0f32, 0);
    for (name, x) in a {
        let (Some(y), Ok(x)) = (b.get(name), x.to_f32()) else {
            continue;
        };
        let y = y.to_f32().unwrap();
        assert_eq!(x.len(), y.len(), "{name}");
        compared += 1;
        most = x
            .iter()
            .zip(&y)
            .fold(most, |m, (x, y)| m.max((x - y).abs()));
    }
    assert!(compared > 0, "nothing was compared");
    most
}

/// The adapter with every parameter moved, so that nothing is an identity.
fn moved(model: &Verified, interface: &Interface, config: &str) -> Adapter {
    let config = Config::parse(config).unwrap();
    let fresh = Adapter::fresh("a", config.clone());
    let adapted = Attach::to(model.clone())
        .interface(interface)
        .adapters(vec![fresh])
        .active("a".into())
        .seed(1)
        .run()
        .unwrap();
    let store = AdapterStore::from_model(adapted.model.model());
    let mut state = 1u32;
    let tensors: Vec<_> = store
        .iter()
        .map(|(name, p)| {
            let values = p.tensor.to_f32().unwrap().into_iter().map(|x| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                x + ((state >> 8) as f32 / (1 << 24) as f32 - 0.5) * 0.4
            });
            let values: Vec<f32> = values.collect();
            (
                Box::from(name),
                TensorData::from_f32(p.tensor.dims.clone(), &values),
            )
        })
        .collect();
    Adapter {
        weights: Some(Weights::new("a", tensors)),
        ..Adapter::fresh("a", config)
    }
}

/// f32 rounding of two layers whose outputs are of order 1 to 10; an adapter's own effect is more than a hundred times this.
const TOLERANCE: f32 = 2e-5;

fn check(arch: &str, file: &str, configs: &[&str]) {
    let folder = fixture(arch);
    let model = api::open(folder.join(file)).unwrap();
    let interface = Interface::read(&folder.join("interface.json")).unwrap();
    let data = io::read(&folder.join("inputs.safetensors")).unwrap();
    let base = outputs(&model, &data);
    let before = text::print(model.model());
    for config in configs {
        let adapter = moved(&model, &interface, config);
        let merged = merge(&model, &interface, vec![adapter.clone()]).unwrap();
        resets(&merged, &interface, &adapter, (&base, &data), config);
        let attached = Attach::to(model.clone())
            .interface(&interface)
            .adapters(vec![adapter])
            .active("a".into())
            .seed(0)
            .run()
            .unwrap()
            .model;
        let (merged_out, attached_out) = (outputs(&merged, &data), outputs(&attached, &data));
        let d = difference(&merged_out, &attached_out);
        assert!(
            d < TOLERANCE,
            "{arch}/{file} {config}: merged and attached differ by {d}"
        );
        let effect = difference(&merged_out, &base);
        assert!(
            effect > 100.0 * TOLERANCE,
            "{arch}/{file} {config}: the adapter does nothing ({effect})"
        );
        let nodes = |m: &Verified| m.model().graph.nodes().count();
        assert_eq!(
            nodes(&merged),
            nodes(&model),
            "{config}: merging adds no node"
        );
        assert_eq!(
            text::print(model.model()),
            before,
            "{config}: the base is the way back"
        );
        let stripped = api::strip(attached, None).unwrap();
        assert_eq!(
            text::print(stripped.model()),
            before,
            "{config}: so is stripping"
        );
    }
}

/// Taking a merged adapter out gives the base model again, except for DoRA, which says so.
fn resets(
    merged: &Verified,
    interface: &Interface,
    adapter: &Adapter,
    (base, data): (&Outputs, &Feeds),
    config: &str,
) {
    let back = reset(merged, interface, vec![adapter.clone()]);
    if config.starts_with("dora") || config.starts_with("dvora") {
        assert!(back.unwrap_err().to_string().contains("reset-dora"));
        return;
    }
    let d = difference(&outputs(&back.unwrap(), data), base);
    assert!(d < TOLERANCE, "{config}: reset differs by {d}");
}

const CONFIGS: [&str; 11] = [
    "lora[r=4,alpha=8,attn_matrices=['q','k','v','o'],intermediate_lora=True,output_lora=True]",
    "ia3[alpha=2]",
    "vera[alpha=4]",
    "dora[r=4,alpha=8,intermediate_lora=True]",
    "dvora[alpha=4,attn_matrices=['q']]",
    "mtl_lora[n_up_projection=3,alpha=4]",
    "lora[r=2,leave_out=[0]]",
    "lora[r=2,target_modules='all-linear',rank_pattern={'down_proj': 3, 'output.dense': 3},use_rslora=True]",
    "ia3[target_modules=['k_proj','key','down_proj','output.dense'],feedforward_modules=['down_proj','output.dense']]",
    "vera[r=3,target_modules=['q_proj','query','up_proj','intermediate.dense']]",
    "dora[r=2,alpha=8,target_modules=['v_proj','value','down_proj','output.dense']]",
];

/// Weights without biases, grouped queries, `[in, out]` or `[out, in]` as the exporter stored them.
#[test]
fn qwen3() {
    check("qwen3", "model.onnx", &CONFIGS);
    check("qwen3", "model.torchscript.onnx", &CONFIGS);
}

/// Every linear has a bias.
#[test]
fn bert() {
    check("bert", "model.onnx", &CONFIGS);
    check("bert", "model.torchscript.onnx", &CONFIGS);
}

/// q, k and v in one weight, with biases.
#[test]
fn gpt2() {
    let fused = [
        "lora[r=4,alpha=8,output_lora=True]",
        "ia3[alpha=2]",
        "dora[r=4,alpha=8,attn_matrices=['q','k','v']]",
    ];
    check("gpt2", "model.onnx", &fused);
    check("gpt2", "model.torchscript.onnx", &fused);
}

/// What depends on its input, or is no change of a linear, has no merged form.
#[test]
fn the_others_say_so() {
    let folder = fixture("qwen3");
    let model = api::open(folder.join("model.onnx")).unwrap();
    let interface = Interface::read(&folder.join("interface.json")).unwrap();
    for config in [
        "lora[use_gating=True]",
        "seq_bn",
        "loreft",
        "compacter[reduction_factor=4]",
        "lora|par_bn",
    ] {
        let adapter = Adapter::fresh("a", Config::parse(config).unwrap());
        let error = merge(&model, &interface, vec![adapter])
            .unwrap_err()
            .to_string();
        assert!(error.contains("folded"), "{config}: {error}");
    }
}
