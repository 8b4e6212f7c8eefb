//! An adapter folded into the base weights computes what the attached one computes, and the base file stays as it was.

use super::support::fixture;
use onnx_graft::adapters::{Adapter, AdapterStore, Config, Setup, Weights};
use onnx_graft::infer::Verified;
use onnx_graft::ir::{TensorData, text};
use onnx_graft::job::{merge, reset};
use onnx_graft::runtime::{CompileOptions, Feeds, Outputs, Plan, io};
use onnx_graft::select::Interface;
use onnx_graft::{Attach, api};

pub(super) fn outputs(model: &Verified, data: &Feeds) -> Outputs {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let mut feeds = Feeds::new();
    for spec in plan.feeds() {
        if let Some(v) = data.0.get(&format!("input/{}", spec.name)) {
            feeds.insert(&spec.name, v.clone());
        }
    }
    plan.run(&feeds).unwrap()
}

pub(super) fn difference(a: &Outputs, b: &Outputs) -> f32 {
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
pub(super) fn moved(model: &Verified, interface: &Interface, config: &str) -> Adapter {
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

/// Two adapters of one stack, merged together: the same as attached, or refused.
fn check_stack(arch: &str, file: &str, pairs: &[[&str; 2]]) {
    let folder = fixture(arch);
    let model = api::open(folder.join(file)).unwrap();
    let interface = Interface::read(&folder.join("interface.json")).unwrap();
    let data = io::read(&folder.join("inputs.safetensors")).unwrap();
    let base = outputs(&model, &data);
    for pair in pairs {
        let adapters: Vec<Adapter> = ["a", "b"]
            .iter()
            .zip(pair)
            .map(|(name, config)| Adapter {
                name: (*name).into(),
                ..moved(&model, &interface, config)
            })
            .collect();
        let attached = Attach::to(model.clone())
            .interface(&interface)
            .adapters(adapters.clone())
            .active(Setup::parse("Stack(a, b)").unwrap())
            .run()
            .unwrap();
        let merged = merge(&model, &interface, adapters.clone());
        if pair.iter().any(|c| c.starts_with("dora")) || pair[0][..3] != pair[1][..3] {
            let error = merged.unwrap_err().to_string();
            assert!(error.contains("merge-stack"), "{pair:?}: {error}");
            continue;
        }
        let merged = merged.unwrap();
        let want = outputs(&attached.model, &data);
        let d = difference(&outputs(&merged, &data), &want);
        assert!(d < TOLERANCE, "{arch}/{file} {pair:?}: differ by {d}");
        assert!(difference(&want, &base) > 100.0 * TOLERANCE);
        let back = outputs(&reset(&merged, &interface, adapters).unwrap(), &data);
        let d = difference(&back, &base);
        assert!(
            d < TOLERANCE,
            "{arch}/{file} {pair:?}: reset differs by {d}"
        );
    }
}

/// Square linears, where the second reads what the first made, and others (grouped queries, fused projections, the feed-forward
/// block), where the changes are added.
#[test]
fn stacks() {
    let lora = "lora[r=3,alpha=6,attn_matrices=['q','k','v','o'],output_lora=True]";
    let pairs = [
        [
            lora,
            "lora[r=2,alpha=4,attn_matrices=['q','v'],intermediate_lora=True]",
        ],
        ["ia3", "ia3[alpha=2]"],
        [lora, "ia3"],
        ["ia3", lora],
        [lora, "dora[r=2]"],
        ["dora[r=2]", lora],
    ];
    for arch in ["qwen3", "bert"] {
        check_stack(arch, "model.onnx", &pairs);
        check_stack(arch, "model.torchscript.onnx", &pairs[..2]);
        let all = "lora[r=2,target_modules='all-linear']";
        check_stack(arch, "model.onnx", &[[all, lora], [lora, all], [all, all]]);
        check_stack(
            arch,
            "model.onnx",
            &[["vera[alpha=2]", "vera[r=3,alpha=4]"]],
        );
    }
    let fused = [
        "lora[r=4,alpha=8,output_lora=True]",
        "lora[r=2,attn_matrices=['q','k']]",
    ];
    check_stack("gpt2", "model.onnx", &[fused, ["ia3", "ia3[alpha=2]"]]);
}

/// PEFT's DoRA scales what the linear makes, so an adapter in front of it or behind it would be scaled or not.
#[test]
fn no_stack_with_dora_of_peft() {
    let folder = fixture("bert");
    let model = api::open(folder.join("model.onnx")).unwrap();
    let interface = Interface::read(&folder.join("interface.json")).unwrap();
    let dora = Config::parse("dora[target_modules=['query']]").unwrap();
    let lora = Config::parse("lora").unwrap();
    let both = [Adapter::fresh("a", dora), Adapter::fresh("b", lora)];
    let setup = Setup::parse("Stack(b, a)").unwrap();
    let attach = Attach::to(model).interface(&interface).adapters(both);
    let error = attach.active(setup).run().unwrap_err().to_string();
    assert!(error.contains("stack-dora"), "{error}");
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
