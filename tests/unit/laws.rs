//! Laws of rewriting, on configurations that nobody wrote down: an adapter can be taken out again without a trace, the same work gives
//! the same bytes, an adapter that starts as the identity computes nothing, and a merged adapter computes what an attached one does.

use super::support::fixture;
use onnx_graft::adapters::{Adapter, AdapterFolder, Config, Setup};
use onnx_graft::infer::Verified;
use onnx_graft::ir::text;
use onnx_graft::onnx::{self, ExternalSource};
use onnx_graft::select::Interface;
use onnx_graft::{Attach, api};
use proptest::prelude::*;
use std::sync::LazyLock;

/// An export and the interface for it.
struct Export {
    model: Verified,
    interface: Interface,
    text: String,
}

fn export(arch: &str, graph: &str) -> Export {
    let model = api::open(fixture(arch).join(graph)).unwrap();
    Export {
        interface: Interface::read(&fixture(arch).join("interface.json")).unwrap(),
        text: text::print(model.model()),
        model,
    }
}

static DYNAMO: LazyLock<Export> = LazyLock::new(|| export("qwen3", "model.onnx"));
static TORCHSCRIPT: LazyLock<Export> = LazyLock::new(|| export("qwen3", "model.torchscript.onnx"));
/// Gemm instead of `MatMul`, fused projections, norms behind the blocks.
static GPT2: LazyLock<Export> = LazyLock::new(|| export("gpt2", "model.onnx"));

impl Export {
    fn with(&self, adapters: Vec<Adapter>, seed: u64) -> onnx_graft::Result<Verified> {
        self.onto(self.model.clone(), adapters, seed)
    }

    fn onto(
        &self,
        model: Verified,
        adapters: Vec<Adapter>,
        seed: u64,
    ) -> onnx_graft::Result<Verified> {
        Ok(Attach::to(model)
            .interface(&self.interface)
            .adapters(adapters)
            .seed(seed)
            .run()?
            .model)
    }
}

fn fresh(name: &str, config: &str) -> Adapter {
    Adapter::fresh(name, Config::parse(config).unwrap())
}

fn python(on: bool) -> &'static str {
    if on { "True" } else { "False" }
}

/// `attn_matrices`, at least one.
fn matrices() -> impl Strategy<Value = String> {
    proptest::sample::subsequence(vec!["'q'", "'k'", "'v'", "'o'"], 1..=4).prop_map(|m| m.join(","))
}

/// Layers to leave out, not all of them.
fn leave_out() -> impl Strategy<Value = &'static str> {
    proptest::sample::select(vec!["[]", "[0]", "[1]"])
}

fn lora() -> impl Strategy<Value = String> {
    let shape = (1u32..6, 1u32..32, matrices(), leave_out());
    let switches = (any::<bool>(), any::<bool>(), any::<bool>());
    (shape, switches).prop_map(|((r, alpha, matrices, out), (inter, output, gate))| {
        format!(
            "lora[r={r},alpha={alpha},attn_matrices=[{matrices}],leave_out={out},\
             intermediate_lora={},output_lora={},use_gating={}]",
            python(inter),
            python(output),
            python(gate)
        )
    })
}

fn bottleneck() -> impl Strategy<Value = String> {
    let method = proptest::sample::select(vec!["seq_bn", "double_seq_bn", "par_bn"]);
    let factor = proptest::sample::select(vec![1.0, 2.0, 4.0, 5.5, 16.0, 64.0]);
    let scaling = proptest::sample::select(vec!["1.0", "0.5", "'learned'", "'channel'"]);
    let activation = proptest::sample::select(vec!["relu", "gelu", "swish", "tanh", "leakyrelu"]);
    let switches = (any::<bool>(), any::<bool>());
    (method, factor, scaling, activation, leave_out(), switches).prop_map(
        |(method, factor, scaling, activation, out, (before, gate))| {
            let norm = before && method != "par_bn";
            format!(
                "{method}[reduction_factor={factor:?},scaling={scaling},non_linearity='{activation}',\
                 leave_out={out},ln_before={},use_gating={}]",
                python(norm),
                python(gate)
            )
        },
    )
}

fn other() -> impl Strategy<Value = String> {
    let layers = proptest::sample::select(vec!["'all'", "[0]", "[1]"]);
    let loreft = (1u32..4, 0u32..4, 1u32..4, layers).prop_map(|(r, prefix, suffix, layers)| {
        format!("loreft[r={r},prefix_positions={prefix},suffix_positions={suffix},layers={layers}]")
    });
    let ia3 = (matrices(), leave_out())
        .prop_map(|(m, out)| format!("ia3[attn_matrices=[{m}],leave_out={out}]"));
    prop_oneof![
        loreft,
        ia3,
        Just("seq_bn_inv".to_owned()),
        Just("dora".to_owned())
    ]
}

fn config() -> impl Strategy<Value = String> {
    prop_oneof![3 => lora(), 3 => bottleneck(), 2 => other()]
}

fn cases(n: u32) -> ProptestConfig {
    ProptestConfig {
        cases: n,
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn stripping_undoes_attaching(config in config(), gemm in any::<bool>(), seed in any::<u64>()) {
        let exports: &[&Export] = if gemm { &[&GPT2] } else { &[&DYNAMO, &TORCHSCRIPT] };
        for export in exports {
            let adapted = export.with(vec![fresh("a", &config)], seed).unwrap();
            prop_assert_ne!(&text::print(adapted.model()), &export.text);
            let bytes = onnx::to_bytes(&adapted).unwrap();
            let again = export.with(vec![fresh("a", &config)], seed).unwrap();
            prop_assert_eq!(&onnx::to_bytes(&again).unwrap(), &bytes, "not the same bytes twice");
            let reread = onnx::read(bytes.into(), &ExternalSource::none()).unwrap();
            for model in [adapted, Verified::check(reread).unwrap()] {
                let stripped = api::strip(model, None).unwrap();
                prop_assert_eq!(&text::print(stripped.model()), &export.text);
            }
        }
    }

    #[test]
    fn the_last_of_two_can_be_stripped_alone(first in config(), second in config()) {
        let one = DYNAMO.with(vec![fresh("a", &first)], 0).unwrap();
        let before = text::print(one.model());
        let Ok(two) = DYNAMO.onto(one, vec![fresh("b", &second)], 0) else {
            // What a method needs may be behind the first adapter: that is said, and nothing is done.
            return Ok(());
        };
        let stripped = api::strip(two.clone(), Some("b")).unwrap();
        prop_assert_eq!(text::print(stripped.model()), before);
        // What a prompt changes about the graph is the first's, whoever is above it.
        if let Ok(second) = api::strip(two, Some("a")) {
            let none = api::strip(second, Some("b")).unwrap();
            prop_assert_eq!(text::print(none.model()), DYNAMO.text.clone());
        }
    }
}

/// A model's text as a set of lines, without the manifest: the order of independent nodes is no meaning.
fn sorted(model: &Verified) -> Vec<String> {
    let mut lines: Vec<String> = text::print(model.model())
        .lines()
        .filter(|l| !l.contains("manifest"))
        .map(str::to_owned)
        .collect();
    lines.sort();
    lines
}

#[test]
fn adapters_on_disjoint_sites_commute() {
    let (q, v) = ("lora[attn_matrices=['q']]", "lora[attn_matrices=['v']]");
    for export in [&*DYNAMO, &*TORCHSCRIPT] {
        let one = |name: &str, config: &str| vec![fresh(name, config)];
        let ab = export.with(one("a", q), 0).unwrap();
        let ab = export.onto(ab, one("b", v), 0).unwrap();
        let ba = export.with(one("b", v), 0).unwrap();
        let ba = export.onto(ba, one("a", q), 0).unwrap();
        assert_eq!(sorted(&ab), sorted(&ba));
    }
}

#[test]
fn a_misspelt_field_names_the_nearest() {
    for (text, near) in [
        ("lora[alhpa=3]", "alpha"),
        ("lora[attn_matrix=['q']]", "attn_matrices"),
        ("seq_bn[reduction_facto=2]", "reduction_factor"),
        ("loreft[sufix_positions=1]", "suffix_positions"),
    ] {
        let message = Config::parse(text).unwrap_err().to_string();
        let way_out = format!("the nearest one is `{near}`");
        assert!(message.contains(&way_out), "{text}: {message}");
    }
}

#[test]
fn weights_of_another_model_are_refused_with_a_full_list() {
    let mut folder = AdapterFolder::read(&fixture("gpt2/plugin/seq_bn")).unwrap();
    // A file that says for which type of model it is gets one finding.
    folder.meta.model_type.clear();
    let names: Vec<Box<str>> = folder.weights.tensors.keys().cloned().collect();
    let adapter = folder.into_adapter(Some("a"));
    let setup = Setup::Single("a".into());
    let base = DYNAMO.model.clone();
    let failed = Attach::to(base)
        .interface(&DYNAMO.interface)
        .adapters(vec![adapter])
        .active(setup)
        .seed(0)
        .run();
    let message = failed.unwrap_err().to_string();
    assert!(message.contains("error[weights-missing]"), "{message}");
    for name in names {
        assert!(message.contains(&*name), "{name} is not listed: {message}");
    }
}

#[cfg(feature = "train")]
mod computed {
    use super::*;
    use onnx_graft::adapters::{AdapterStore, Meta};
    use onnx_graft::job::merge;
    use onnx_graft::runtime::{CompileOptions, Feeds, Plan, io};

    fn logits(model: &Verified) -> Vec<f32> {
        let inputs = io::read(&fixture("qwen3/inputs.safetensors")).unwrap();
        let mut feeds = Feeds::new();
        for name in ["input_ids", "attention_mask"] {
            feeds.insert(name, inputs.0[&format!("input/{name}")].clone());
        }
        let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
        plan.run(&feeds).unwrap()["logits"].to_f32().unwrap()
    }

    fn largest_difference(a: &[f32], b: &[f32]) -> f32 {
        assert_eq!(a.len(), b.len());
        let off = a.iter().zip(b).map(|(x, y)| (x - y).abs());
        off.fold(0.0, |m, d| if d.is_nan() { f32::NAN } else { m.max(d) })
    }

    /// `B = 0`, `up = 0`, `l = 1`: the change is exactly zero or the factor exactly one, so that not even the last bit may differ.
    #[test]
    fn a_fresh_identity_changes_no_bit() {
        for export in [&*DYNAMO, &*TORCHSCRIPT] {
            let base = logits(&export.model);
            for config in [
                "lora[intermediate_lora=True,output_lora=True]",
                "ia3",
                "par_bn",
            ] {
                let adapted = export.with(vec![fresh("a", config)], 7).unwrap();
                assert!(logits(&adapted) == base, "{config}");
            }
        }
    }

    /// `DoRA` divides by a norm that it computes from the weights, and VeRA by nothing: rounding of one division per linear.
    #[test]
    fn a_fresh_dora_changes_little() {
        let base = logits(&DYNAMO.model);
        let adapted = DYNAMO.with(vec![fresh("a", "dora")], 7).unwrap();
        // Logits are of order 10; 2e-5 is the corpus's floor for one of its outputs.
        assert!(largest_difference(&logits(&adapted), &base) < 2e-5);
    }

    /// An adapter with the initial values of one draw as its weights.
    fn drawn_once(config: &str) -> Adapter {
        let model = DYNAMO.with(vec![fresh("a", config)], 7).unwrap();
        let store = AdapterStore::from_model(model.model());
        let config = Config::parse(config).unwrap();
        let interface = DYNAMO.interface.to_json();
        AdapterFolder::from_store("a", config, &store, Meta::default(), Some(interface))
            .into_adapter(None)
    }

    /// `W·x + s·B·(A·x)` and `(W + s·B·A)·x` are rounded in another order: 1e-4 on logits of order 10, with effects of order 1.
    #[test]
    fn merged_is_attached() {
        let saved = ["lora_qv", "lora_all", "ia3", "vera_q"].map(|method| {
            let folder = fixture("qwen3/plugin").join(method);
            let adapter = AdapterFolder::read(&folder)
                .unwrap()
                .into_adapter(Some("a"));
            (method, adapter)
        });
        let drawn = [
            "lora[init_weights='bert',r=3,attn_matrices=['q','k','v','o']]",
            "dora[init_weights='bert',alpha=4]",
            "dvora[attn_matrices=['q'],vera_b=0.3]",
            "ia3[init_weights='bert']",
        ];
        let drawn = drawn.map(|config| (config, drawn_once(config)));
        for export in [&*DYNAMO, &*TORCHSCRIPT] {
            let base = logits(&export.model);
            for (what, adapter) in saved.iter().chain(&drawn) {
                let attached = logits(&export.with(vec![adapter.clone()], 7).unwrap());
                let merged =
                    merge(&export.model, &export.interface, vec![adapter.clone()]).unwrap();
                let off = largest_difference(&logits(&merged), &attached);
                assert!(off < 1e-4, "{what}: merged and attached differ by {off}");
                let effect = largest_difference(&attached, &base);
                assert!(effect > 1e-3, "{what}: nothing was attached ({effect})");
            }
        }
    }
}
