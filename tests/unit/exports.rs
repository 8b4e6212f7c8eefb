//! One adapter on every export of a model: fused, optimized and plain graphs compute the same, forward and backward.

use super::support::fixture;
use crate::unit::training_graph;
use onnx_graft::adapters::{Adapter, AdapterFolder, AdapterStore, Setup};
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::ir::{AttrValue, Builder, DType, Dim, Model, OpId, TensorData, Type, Val};
use onnx_graft::rewrite::passes::gradient::Outputs;
use onnx_graft::rewrite::passes::loss::Divisor;
use onnx_graft::rewrite::pipelines::Mode;
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, io};
use onnx_graft::select::Interface;
use onnx_graft::train::parse_loss;
use onnx_graft::{Attach, api};
use std::collections::BTreeMap;
use std::path::PathBuf;

fn interface(arch: &str) -> Interface {
    Interface::read(&fixture(arch).join("interface.json")).unwrap()
}

fn data(arch: &str) -> Feeds {
    let mut feeds = Feeds::new();
    for (name, value) in io::read(&fixture(arch).join("inputs.safetensors"))
        .unwrap()
        .0
    {
        feeds.insert(name.strip_prefix("input/").unwrap_or(&name), value);
    }
    feeds
}

fn attach(model: Verified, interface: &Interface, adapter: Adapter) -> Verified {
    let setup = Setup::Single(adapter.name.clone());
    let adapted = Attach::to(model)
        .interface(interface)
        .adapters(vec![adapter])
        .active(setup)
        .seed(3)
        .run();
    adapted.unwrap().model
}

type Numbers = BTreeMap<String, Vec<f32>>;

fn run(model: &Verified, feeds: &Feeds) -> Numbers {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let mut feeds = feeds.clone();
    feeds
        .0
        .retain(|name, _| plan.feeds().iter().any(|f| f.name == *name));
    let out = plan.run(&feeds).unwrap();
    out.iter()
        .map(|(n, v)| (n.clone(), v.to_f32().unwrap()))
        .collect()
}

/// The output, the loss and the gradient of every parameter.
fn step(model: Verified, loss: &str, mode: Mode, feeds: &Feeds) -> Numbers {
    let store = AdapterStore::from_model(model.model());
    let wrt: Vec<String> = store.trainable();
    let loss = parse_loss(loss, Divisor::Labels);
    let graph = training_graph(model, &loss, &wrt, Outputs::Keep, mode).unwrap();
    let out = run(&graph, feeds);
    assert!(wrt.iter().all(|w| out.contains_key(&contract::grad(w))));
    out
}

fn far(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    let off = a.iter().zip(b).map(|(a, b)| (a - b).abs());
    off.fold(
        0.0,
        |m, x| if x.is_nan() { f32::INFINITY } else { m.max(x) },
    )
}

/// Numbers of order one; exports of one model differ by up to 2e-6 among themselves.
const TOLERANCE: f32 = 1e-5;

/// Attaches fresh adapters, whose parameters the seed and their names decide, to two graphs of one model.
fn same(arch: &str, loss: &str, output: &str, other: &str, config: &str) {
    let (interface, feeds) = (interface(arch), data(arch));
    let adapted = |file: PathBuf| {
        let adapter = api::adapter(&format!("a={config}")).unwrap();
        attach(api::open(file).unwrap(), &interface, adapter)
    };
    let plain = adapted(fixture(arch).join("model.onnx"));
    let base = run(
        &api::open(fixture(arch).join("model.onnx")).unwrap(),
        &feeds,
    );
    let want = step(plain, loss, Mode::Portable, &feeds);
    if base[output].len() == want[output].len() {
        assert!(
            far(&base[output], &want[output]) > 1e-3,
            "{config} does nothing"
        );
    }
    for mode in [Mode::Portable, Mode::Native] {
        let found = step(adapted(fixture(other)), loss, mode, &feeds);
        for (name, want) in want
            .iter()
            .filter(|(n, _)| *n == output || n.contains('/') || *n == "loss")
        {
            let off = far(want, &found[name]);
            assert!(
                off <= TOLERANCE,
                "{other}, {config}, {mode:?}: {name} is off by {off:e}"
            );
        }
    }
}

const PREFIXES: [&str; 4] = [
    "prefix_tuning[prefix_length=3, bottleneck_size=8]",
    "prefix_tuning_flat[prefix_length=2, use_gating=True, shared_gating=False, leave_out=[0]]",
    "prefix_tuning[prefix_length=3, bottleneck_size=8]|par_bn[init_weights='bert']",
    "prefix_tuning[prefix_length=2, use_gating=True, bottleneck_size=8]|seq_bn[use_gating=True]|lora[r=4, use_gating=True, init_weights='bert']",
];

#[test]
fn prefixes_on_the_fused_attention_of_opset_23() {
    for config in PREFIXES {
        same(
            "qwen3",
            "causal-lm",
            "logits",
            "qwen3/model.dynamo23.onnx",
            config,
        );
    }
}

#[test]
fn adapters_and_prompts_on_opset_23() {
    for config in [
        "lora[attn_matrices=['q','k','v'], init_weights='bert', alpha=64]",
        "double_seq_bn[reduction_factor=4, init_weights='houlsby', scaling=8.0]",
        "prompt_tuning[prompt_length=2]",
    ] {
        same(
            "qwen3",
            "causal-lm",
            "logits",
            "qwen3/model.dynamo23.onnx",
            config,
        );
    }
}

#[test]
fn prefixes_on_a_graph_that_a_session_optimized() {
    for config in PREFIXES {
        same(
            "qwen3",
            "causal-lm",
            "logits",
            "qwen3/extra/ort-session-extended.onnx",
            config,
        );
    }
}

#[test]
fn prefixes_on_packed_attention() {
    for config in PREFIXES {
        same(
            "bert",
            "mse",
            "last_hidden_state",
            "onnx/bert-optimizer.onnx",
            config,
        );
    }
}

#[test]
fn a_fused_graph_names_the_same_places() {
    let interface = interface("bert");
    let paths = |file: &str| {
        let (model, _) = api::opened(api::open(fixture(file)).unwrap(), false).unwrap();
        let s = interface.select(&model).unwrap();
        let graph = &model.model().graph;
        let width = |v| model.fact(v).and_then(|f| f.size(-1));
        let mut out: Vec<(String, Option<i64>)> = Vec::new();
        for e in &s.embeddings {
            out.push((e.path.to_string(), width(e.output)));
        }
        for l in &s.layers {
            assert!(
                l.pre_self_attn == Some(l.input),
                "{}",
                graph.name_of(l.input)
            );
            let a = l.self_attn.as_ref().unwrap();
            let linears = [&a.q, &a.k, &a.v, &a.o, &l.intermediate, &l.output_proj];
            for site in linears.into_iter().flatten() {
                assert!(site.weight.bias.is_some() && site.late_bias.is_none());
                out.push((site.path.to_string(), width(site.input)));
            }
            for norm in [&l.ln_1, &l.ln_2].into_iter().flatten() {
                out.push((norm.path.to_string(), width(norm.output)));
            }
            out.push((l.path.to_string(), width(l.output)));
        }
        (out, s.embeddings[0].output == s.layers[0].input)
    };
    let (found, meet) = paths("onnx/bert-optimizer.onnx");
    assert!(meet, "the embeddings end where the first layer begins");
    assert_eq!(found, paths("bert/model.onnx").0);
    assert_eq!(found.len(), 1 + 2 * 9);
}

#[test]
fn a_prompt_is_refused_where_it_would_come_again() {
    let attached = |model: Verified| {
        let adapters = vec![api::adapter("prompt_tuning").unwrap()];
        let setup = Setup::Single("prompt_tuning".into());
        Attach::to(model)
            .interface(&interface("qwen3"))
            .adapters(adapters)
            .active(setup)
            .seed(0)
            .run()
            .unwrap_err()
            .to_string()
    };
    let cached = attached(api::open(fixture("onnx/qwen3-genai-int4.onnx")).unwrap());
    assert!(cached.contains("past_key_values.0.key"), "{cached}");
    let model = api::open(fixture("qwen3/model.onnx")).unwrap();
    let packed = attached(api::pack(model, &interface("qwen3")).unwrap());
    assert!(packed.contains("several examples share a row"), "{packed}");
}

#[test]
fn a_norm_that_may_hold_one_more_than_its_weight_is_not_taken_for_it() {
    // The onnxruntime-genai builder stores 1 + weight under the parameter's name where the model's norms multiply with that.
    let attached = |file: &str, model_type: Option<&str>| {
        let mut interface = interface("qwen3");
        interface.model_type = model_type.map(str::to_owned);
        let spec = "lora[target_modules=['q_proj'], modules_to_save=['input_layernorm']]";
        let attach = Attach::to(api::open(fixture(file)).unwrap()).interface(&interface);
        attach.adapter(spec).unwrap().run().map(|_| ())
    };
    let genai = "onnx/qwen3-genai-int4.onnx";
    for (file, model_type, derived) in [
        (genai, Some("qwen3"), false),
        (genai, Some("gemma2"), true),
        (genai, None, true),
        ("qwen3/model.onnx", Some("qwen3"), false),
        ("qwen3/model.onnx", None, false),
        ("qwen3/model.onnx", Some("gemma"), true),
    ] {
        let found = attached(file, model_type).map_err(|e| e.to_string());
        let said = found
            .as_ref()
            .is_err_and(|e| e.contains("parameter-derived"));
        assert_eq!(said, derived, "{file} {model_type:?}: {found:?}");
    }
}

// ---- fused attentions, each against the same attention in standard operators --------------------------------------------------

const HEADS: i64 = 2;
const HEAD: i64 = 4;
const WIDTH: i64 = HEADS * HEAD;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Plain,
    /// `ai.onnx::Attention` over `[b, s, n·d]`, causal by attribute, with a mask of keys.
    Causal,
    /// `ai.onnx::Attention` over heads, with all in the mask.
    Masked,
    /// `com.microsoft::MultiHeadAttention`, which adds the projections' biases.
    MultiHead,
    /// `com.microsoft::GroupQueryAttention` without a cache.
    GroupQuery,
    /// `com.microsoft::Attention`, which holds the projections.
    Packed,
}

/// Numbers between -1 and 1 that only the name decides.
fn noise(name: &str, dims: &[i64]) -> TensorData {
    let seed = name
        .bytes()
        .fold(7u64, |h, b| h.wrapping_mul(31).wrapping_add(u64::from(b)));
    let mut x = seed;
    let count = dims.iter().product::<i64>();
    let numbers: Vec<f32> = (0..count)
        .map(|_| {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            (x >> 40) as f32 / (1u64 << 23) as f32 - 1.0
        })
        .collect();
    let dims: Vec<u64> = dims.iter().map(|&d| d as u64).collect();
    TensorData::from_f32(dims, &numbers)
}

/// The same columns or numbers of several tensors, side by side.
fn beside(parts: &[TensorData]) -> TensorData {
    let rows = parts[0].dims.len() == 2;
    let lines = if rows { parts[0].dims[0] as usize } else { 1 };
    let numbers: Vec<Vec<f32>> = parts.iter().map(|p| p.to_f32().unwrap()).collect();
    let width: u64 = parts.iter().map(|p| *p.dims.last().unwrap()).sum();
    let mut out = Vec::new();
    for i in 0..lines {
        for p in &numbers {
            let n = p.len() / lines;
            out.extend_from_slice(&p[i * n..(i + 1) * n]);
        }
    }
    let dims = if rows {
        vec![lines as u64, width]
    } else {
        vec![width]
    };
    TensorData::from_f32(dims, &out)
}

struct Maker<'a> {
    b: &'a Builder,
    ids: Val,
    mask: Val,
}

impl Maker<'_> {
    fn linear(&self, path: &str, x: Val, wide: i64, biased: bool) -> Val {
        let b = self.b;
        b.set_scope(&format!("/{path}"));
        let name = path.replace('/', ".");
        let w = b.initializer(
            &format!("{name}.weight"),
            noise(&format!("{name}.weight"), &[WIDTH, wide]),
        );
        let y = b.matmul(x, w);
        if !biased {
            return y;
        }
        let bias = b.initializer(
            &format!("{name}.bias"),
            noise(&format!("{name}.bias"), &[wide]),
        );
        b.add(y, bias)
    }

    /// Whether a query may see a key: `[b, 1, s, s]`.
    fn allowed(&self) -> Val {
        let b = self.b;
        let n = b.op(
            "Gather",
            &[b.shape(self.ids), b.int(1)],
            &[("axis", 0i64.into())],
        );
        let at = b.op("Range", &[b.int(0), n, b.int(1)], &[]);
        let past = b.op(
            "LessOrEqual",
            &[b.unsqueeze(at, &[0]), b.unsqueeze(at, &[1])],
            &[],
        );
        b.op("And", &[self.keys(), past], &[])
    }

    /// Whether a key counts: `[b, 1, 1, s]`.
    fn keys(&self) -> Val {
        self.b
            .cast(self.b.unsqueeze(self.mask, &[1, 2]), DType::Bool)
    }

    fn heads(&self, x: Val) -> Val {
        let split = self.b.reshape(x, self.b.ints(&[0, 0, HEADS, HEAD]));
        self.b.transpose(split, &[0, 2, 1, 3])
    }

    fn merged(&self, x: Val) -> Val {
        let b = self.b;
        b.reshape(b.transpose(x, &[0, 2, 1, 3]), b.ints(&[0, 0, WIDTH]))
    }

    fn fused(
        &self,
        domain: &str,
        name: &str,
        inputs: &[Option<Val>],
        attrs: &[(&str, i64)],
    ) -> Val {
        let attrs: Vec<_> = attrs
            .iter()
            .map(|(n, v)| (*n, AttrValue::Int(*v).into()))
            .collect();
        self.b.node_n(OpId::new(domain, name), inputs, &attrs, 1)[0]
    }

    fn attention(&self, path: &str, x: Val, form: Form) -> Val {
        let b = self.b;
        if form == Form::Packed {
            b.set_scope(&format!("/{path}"));
            let part = |what: &str, dims: &[i64]| {
                let of =
                    |p: &str| noise(&format!("{}.{p}_proj.{what}", path.replace('/', ".")), dims);
                b.initializer(
                    &format!("{path}_qkv_{what}"),
                    beside(&["q", "k", "v"].map(of)),
                )
            };
            let inputs = [x, part("weight", &[WIDTH, WIDTH]), part("bias", &[WIDTH])];
            let mask = b.cast(self.mask, DType::Int32);
            let inputs = inputs
                .into_iter()
                .chain([mask])
                .map(Some)
                .collect::<Vec<_>>();
            return self.fused(
                "com.microsoft",
                "Attention",
                &inputs,
                &[("num_heads", HEADS), ("unidirectional", 1)],
            );
        }
        let biased = form != Form::MultiHead;
        let [q, k, v] =
            ["q", "k", "v"].map(|p| self.linear(&format!("{path}/{p}_proj"), x, WIDTH, biased));
        b.set_scope(&format!("/{path}"));
        match form {
            Form::Plain => {
                let [q, k, v] = [q, k, v].map(|x| self.heads(x));
                let scores = b.scale(b.matmul(q, b.transpose(k, &[0, 1, 3, 2])), 0.5);
                let bias = b.op(
                    "Where",
                    &[self.allowed(), b.scalar(0.0), b.scalar(-1e9)],
                    &[],
                );
                let shares = b.op(
                    "Softmax",
                    &[b.add(scores, bias)],
                    &[("axis", (-1i64).into())],
                );
                self.merged(b.matmul(shares, v))
            }
            Form::Causal => {
                let inputs = [q, k, v, self.keys()].map(Some);
                let attrs = [
                    ("q_num_heads", HEADS),
                    ("kv_num_heads", HEADS),
                    ("is_causal", 1),
                ];
                self.fused("", "Attention", &inputs, &attrs)
            }
            Form::Masked => {
                let [q, k, v] = [q, k, v].map(|x| self.heads(x));
                self.merged(self.fused("", "Attention", &[q, k, v, self.allowed()].map(Some), &[]))
            }
            Form::MultiHead => {
                let of = |p: &str| {
                    noise(
                        &format!("{}.{p}_proj.bias", path.replace('/', ".")),
                        &[WIDTH],
                    )
                };
                let bias = b.initializer(
                    &format!("{path}_qkv_bias"),
                    beside(&["q", "k", "v"].map(of)),
                );
                let mask = b.cast(self.mask, DType::Int32);
                let inputs = [q, k, v, bias, mask].map(Some);
                self.fused(
                    "com.microsoft",
                    "MultiHeadAttention",
                    &inputs,
                    &[("num_heads", HEADS), ("unidirectional", 1)],
                )
            }
            Form::GroupQuery => {
                let last = b.sub(b.reduce_sum(self.mask, &[1], false), b.int(1));
                let total = b.op(
                    "Gather",
                    &[b.shape(self.ids), b.int(1)],
                    &[("axis", 0i64.into())],
                );
                let [last, total] = [last, total].map(|x| Some(b.cast(x, DType::Int32)));
                let inputs = [Some(q), Some(k), Some(v), None, None, last, total];
                self.fused(
                    "com.microsoft",
                    "GroupQueryAttention",
                    &inputs,
                    &[("num_heads", HEADS), ("kv_num_heads", HEADS)],
                )
            }
            Form::Packed => x,
        }
    }
}

/// A decoder of two layers.
fn decoder(form: Form) -> Verified {
    let b = Builder::new(23);
    let axes = || vec![Dim::Symbol("batch".into()), Dim::Symbol("seq".into())];
    let ids = b.graph_input("input_ids", Type::tensor(DType::Int64, axes()));
    let mask = b.graph_input("attention_mask", Type::tensor(DType::Int64, axes()));
    let m = Maker { b: &b, ids, mask };
    b.set_scope("/model/embed_tokens");
    let table = b.initializer("model.embed_tokens.weight", noise("table", &[11, WIDTH]));
    let mut x = b.op("Gather", &[table, ids], &[("axis", 0i64.into())]);
    for l in 0..2 {
        let layer = format!("model/layers.{l}");
        let core = m.attention(&format!("{layer}/self_attn"), x, form);
        let o = m.linear(&format!("{layer}/self_attn/o_proj"), core, WIDTH, true);
        b.set_scope(&format!("/{layer}"));
        x = b.add(x, o);
        let up = m.linear(&format!("{layer}/mlp/up_proj"), x, WIDTH, true);
        b.set_scope(&format!("/{layer}/mlp"));
        let up = b.unary("Tanh", up);
        let down = m.linear(&format!("{layer}/mlp/down_proj"), up, WIDTH, true);
        b.set_scope(&format!("/{layer}"));
        x = b.add(x, down);
    }
    let mut dims = axes();
    dims.push(Dim::Known(WIDTH));
    let graph = b
        .finish_graph("g", &[(x, "y", Type::tensor(DType::Float, dims))])
        .unwrap();
    let model = Model {
        graph,
        opset_imports: vec![("".into(), 23), ("com.microsoft".into(), 1)],
        ir_version: 10,
        ..Model::default()
    };
    Verified::check(model).unwrap()
}

fn decoder_interface() -> Interface {
    let text = r#"{"adapter_methods": ["lora"], "model_embeddings": "embed_tokens", "model_layers": "layers",
        "layer_self_attn": "self_attn", "attn_q_proj": "q_proj", "attn_k_proj": "k_proj", "attn_v_proj": "v_proj",
        "attn_o_proj": "o_proj", "layer_intermediate_proj": "mlp.up_proj", "layer_output_proj": "mlp.down_proj",
        "layer_pre_self_attn": null, "layer_pre_ffn": null}"#;
    Interface::parse(text, "test").unwrap()
}

/// Output at the positions that count: what padding computes is not specified in all of the operators.
fn counted(model: &Verified) -> Vec<f32> {
    let ids: Vec<i64> = vec![1, 2, 3, 4, 5, 6, 7, 8];
    let mask: Vec<i64> = vec![1, 1, 1, 1, 1, 1, 1, 0];
    let value = |v: &[i64]| onnx_graft::runtime::Value::from_i64(&[2, 4], v.to_vec()).unwrap();
    let mut feeds = Feeds::new();
    feeds.insert("input_ids", value(&ids));
    feeds.insert("attention_mask", value(&mask));
    let y = run(model, &feeds).remove("y").unwrap();
    assert_eq!(y.len(), 8 * WIDTH as usize);
    y[..7 * WIDTH as usize].to_vec()
}

#[test]
fn every_fused_attention_takes_prefixes() {
    let adapter = |config: &str| api::adapter(&format!("a={config}")).unwrap();
    let interface = decoder_interface();
    for config in [
        "prefix_tuning[prefix_length=3, bottleneck_size=8]",
        "prefix_tuning_flat[prefix_length=2, use_gating=True]|ia3[init_weights='bert']",
    ] {
        let want = counted(&attach(decoder(Form::Plain), &interface, adapter(config)));
        let base = counted(&decoder(Form::Plain));
        assert!(far(&want, &base) > 1e-2, "{config} does nothing");
        for form in [
            Form::Causal,
            Form::Masked,
            Form::MultiHead,
            Form::GroupQuery,
            Form::Packed,
        ] {
            let plain = far(&counted(&decoder(form)), &base);
            assert!(
                plain <= TOLERANCE,
                "{form:?} without adapter is off by {plain:e}"
            );
            // Gates read padding too: what a padded position holds must not differ.
            if form == Form::GroupQuery && config.contains("gating") {
                continue;
            }
            let off = far(
                &counted(&attach(decoder(form), &interface, adapter(config))),
                &want,
            );
            assert!(off <= TOLERANCE, "{form:?}, {config}: off by {off:e}");
        }
    }
}

// ---- eject --------------------------------------------------------------------------------------------------------------------

/// A saved adapter of fresh parameters.
fn saved(arch: &str, config: &str) -> AdapterFolder {
    let attach = Attach::open(fixture(arch).join("model.onnx")).unwrap();
    let attach = attach.adapter(&format!("a={config}")).unwrap();
    let adapted = attach.interface(&interface(arch)).seed(3).run().unwrap();
    adapted.folder("a", &adapted.store()).unwrap()
}

#[test]
fn ejected_prefixes_compute_the_same() {
    for (arch, output, config) in [
        ("qwen3", "logits", PREFIXES[0]),
        ("bert", "last_hidden_state", PREFIXES[3]),
        (
            "bert",
            "last_hidden_state",
            "prefix_tuning[prefix_length=2, bottleneck_size=4, non_linearity='gelu_new', leave_out=[1]]",
        ),
    ] {
        let before = saved(arch, config);
        let after = api::eject_prefix_tuning(before.clone()).unwrap();
        assert_eq!(after.config.methods().len(), before.config.methods().len());
        assert!(after.config_json().contains("\"flat\": true"));
        let names = |f: &AdapterFolder, part: &str| {
            f.weights
                .tensors
                .keys()
                .filter(|k| k.contains(part))
                .count()
        };
        let tables = names(&before, "wte.weight");
        assert!(
            tables > 1,
            "the library repeats the table under the name of every attention"
        );
        assert_eq!(
            (names(&after, "wte.weight"), names(&after, "control_trans")),
            (0, tables)
        );
        let dir = tempfile::tempdir().unwrap();
        after
            .write(
                &dir.path().join("a"),
                onnx_graft::adapters::folder::WriteOptions::default(),
            )
            .unwrap();
        let read = AdapterFolder::read(&dir.path().join("a")).unwrap();
        let out = |folder: AdapterFolder| {
            let model = api::open(fixture(arch).join("model.onnx")).unwrap();
            run(
                &attach(model, &interface(arch), folder.into_adapter(None)),
                &data(arch),
            )
            .remove(output)
            .unwrap()
        };
        // The same products, in the same order.
        let off = far(&out(before), &out(read));
        assert!(off <= 1e-6, "{arch}, {config}: off by {off:e}");
    }
}

#[test]
fn what_cannot_be_ejected() {
    let error = |folder| api::eject_prefix_tuning(folder).unwrap_err().to_string();
    assert!(error(saved("qwen3", "lora")).contains("`a` has no prefix tuning"));
    let flat = saved("qwen3", "prefix_tuning_flat[prefix_length=2]");
    assert!(error(flat).contains("are parameters already"));
    let mut part = saved("qwen3", "prefix_tuning[prefix_length=2, bottleneck_size=4]");
    part.weights
        .tensors
        .retain(|k, _| !k.ends_with("control_trans.2.bias"));
    assert!(error(part).contains("control_trans.2.bias` is not in the file"));
    let mut none = saved("qwen3", "prefix_tuning[prefix_length=2, bottleneck_size=4]");
    none.weights.tensors.clear();
    assert!(error(none).contains("holds no wte.weight"));
    let mut bent = saved("qwen3", "prefix_tuning[prefix_length=2, bottleneck_size=4]");
    for (k, t) in &mut bent.weights.tensors {
        if k.ends_with("control_trans.0.weight") {
            *t = TensorData::from_f32([3], &[0.0; 3]);
        }
    }
    assert!(!error(bent).is_empty());
}
