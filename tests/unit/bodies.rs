//! Layers inside nodes, and encoders and decoders in files of their own: the same adapters compute the same there.

use onnx_graft::adapters::folder::WriteOptions;
use onnx_graft::adapters::{Adapter, AdapterStore};
use onnx_graft::api::{self, flat};
use onnx_graft::infer::Verified;
use onnx_graft::ir::{DType, text};
use onnx_graft::job::{self, AdapterSettings, Event, exchanging, merge};
use onnx_graft::onnx;
use onnx_graft::rewrite::Pipeline;
use onnx_graft::rewrite::passes::gradient::{GradientPass, Outputs, Unreached};
use onnx_graft::rewrite::pipelines;
use onnx_graft::runtime::host::Host;
use onnx_graft::runtime::{CompileOptions, Feeds, Plan, Value};
use onnx_graft::select::Interface;
use onnx_graft::{Adapted, Attach};
use std::fmt::Write;

/// A tensor of numbers that a name chooses.
fn init(out: &mut String, name: &str, dims: [usize; 2]) {
    let mut state = name
        .bytes()
        .fold(7u64, |s, b| s.wrapping_mul(31).wrapping_add(u64::from(b)));
    let numbers: Vec<String> = (0..dims[0] * dims[1])
        .map(|_| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            format!("{:?}", (state >> 40) as f32 / 16_777_216.0 - 0.5)
        })
        .collect();
    writeln!(
        out,
        "init %{name}: f32[{}, {}] = {{{}}}",
        dims[0],
        dims[1],
        numbers.join(", ")
    )
    .unwrap();
}

/// The scope of a module, as TorchScript names nodes: a number stays in its part.
fn scope(at: &str) -> String {
    let mut out = String::new();
    for part in at.split('.').filter(|p| !p.is_empty()) {
        let number = part.bytes().all(|b| b.is_ascii_digit());
        out.push(if number { '.' } else { '/' });
        out.push_str(part);
    }
    out
}

/// An attention of two heads of `%{x}` to `%{states}`, or to a cache where there are no states. The result is `%{at}.after`.
fn attention(out: &mut String, at: &str, x: &str, states: Option<&str>) {
    let path = scope(at);
    let layer = scope(at.rsplit_once('.').unwrap().0);
    let mut node = |name: &str, call: String| {
        writeln!(out, "%{at}.{name} = {call}  // {path}/{name}").unwrap();
    };
    let split = |of: &str| format!("Reshape(%{at}.{of}_proj/MatMul, %heads)");
    let line = |name: &str, of: &str| format!("MatMul(%{of}, %{at}.{name}_proj.weight)");
    let swapped = |of: &str, perm: &str| format!("Transpose(%{at}.{of}) {{perm = [{perm}]}}");
    node("q_proj/MatMul", line("q", x));
    node("q2", split("q"));
    node("q3", swapped("q2", "0, 2, 1, 3"));
    for (part, name) in [("k", "key"), ("v", "value")] {
        if let Some(states) = states {
            node(&format!("{part}_proj/MatMul"), line(part, states));
            node(&format!("{part}2"), split(part));
            node(
                &format!("{part}3"),
                swapped(&format!("{part}2"), "0, 2, 1, 3"),
            );
        } else {
            let cache = format!("Identity(%past_key_values.0.encoder.{name})");
            node(&format!("{part}3"), cache);
        }
    }
    node("k4", swapped("k3", "0, 1, 3, 2"));
    node("scores", format!("MatMul(%{at}.q3, %{at}.k4)"));
    node("weights", format!("Softmax(%{at}.scores) {{axis = -1}}"));
    node("mix", format!("MatMul(%{at}.weights, %{at}.v3)"));
    node("mix2", swapped("mix", "0, 2, 1, 3"));
    node("mix3", format!("Reshape(%{at}.mix2, %rows)"));
    node("out_proj/MatMul", line("out", &format!("{at}.mix3")));
    writeln!(
        out,
        "%{at}.after = Add(%{x}, %{at}.out_proj/MatMul)  // {layer}/Add"
    )
    .unwrap();
}

fn feed_forward(out: &mut String, at: &str, x: &str) {
    let path = scope(at);
    for line in [
        format!("%{at}.up = MatMul(%{x}, %{at}.fc1.weight)  // {path}/fc1/MatMul"),
        format!("%{at}.act = Tanh(%{at}.up)  // {path}/act/Tanh"),
        format!("%{at}.down = MatMul(%{at}.act, %{at}.fc2.weight)  // {path}/fc2/MatMul"),
        format!("%{at}.out = Add(%{x}, %{at}.down)  // {path}/Add_1"),
    ] {
        writeln!(out, "{line}").unwrap();
    }
}

/// The constants of a layer.
fn weights(out: &mut String, at: &str, attentions: &[&str]) {
    for attention in attentions {
        for part in ["q", "k", "v", "out"] {
            init(out, &format!("{at}.{attention}.{part}_proj.weight"), [4, 4]);
        }
    }
    init(out, &format!("{at}.fc1.weight"), [4, 6]);
    init(out, &format!("{at}.fc2.weight"), [6, 4]);
}

const SHAPES: &str = "init %heads: i64[4] = {0, 0, 2, 2}\ninit %rows: i64[3] = {0, 0, 4}\n";

/// The nodes of an encoder of the token ids; `top` is the path that it has. The result is `%{top}layers.0.out`.
fn encode(out: &mut String, top: &str) {
    let (at, x) = (format!("{top}layers.0"), format!("{top}x"));
    let path = scope(top);
    writeln!(
        out,
        "%{x} = Gather(%{top}embed_tokens.weight, %input_ids)  // {path}/embed_tokens/Gather"
    )
    .unwrap();
    attention(out, &format!("{at}.self_attn"), &x, Some(&x));
    feed_forward(out, &at, &format!("{at}.self_attn.after"));
}

/// The nodes of a decoder; the result is `%logits`.
fn decode(out: &mut String, ids: &str, states: Option<&str>) {
    let at = "model.decoder.layers.0";
    writeln!(out, "%model.decoder.x = Gather(%model.decoder.embed_tokens.weight, %{ids})  // /model/decoder/embed_tokens/Gather").unwrap();
    attention(
        out,
        &format!("{at}.self_attn"),
        "model.decoder.x",
        Some("model.decoder.x"),
    );
    attention(
        out,
        &format!("{at}.encoder_attn"),
        &format!("{at}.self_attn.after"),
        states,
    );
    feed_forward(out, at, &format!("{at}.encoder_attn.after"));
    writeln!(
        out,
        "%logits = MatMul(%{at}.out, %lm_head.weight)  // /lm_head/MatMul"
    )
    .unwrap();
}

fn decoder_weights(out: &mut String) {
    init(out, "model.decoder.embed_tokens.weight", [8, 4]);
    weights(
        out,
        "model.decoder.layers.0",
        &["self_attn", "encoder_attn"],
    );
    init(out, "lm_head.weight", [4, 8]);
    out.push_str(SHAPES);
}

/// The same numbers as those of the whole model's encoder, under the names of an encoder that was exported alone.
fn encoder_weights(out: &mut String, top: &str) {
    let mut whole = String::new();
    init(&mut whole, "model.encoder.embed_tokens.weight", [8, 4]);
    weights(&mut whole, "model.encoder.layers.0", &["self_attn"]);
    out.push_str(&whole.replace("model.encoder.", top));
}

fn model(inputs: &str, output: &str, body: &str) -> Verified {
    let lines: Vec<String> = body.lines().map(|l| format!("  {l}\n")).collect();
    let lines = lines.concat();
    let text = format!("opset \"\" 17\ngraph main({inputs}) -> ({output})\n{lines}");
    let model = text::parse(&text).unwrap_or_else(|e| panic!("{e}\n{text}"));
    Verified::check(model).map_err(|r| r.findings).unwrap()
}

const LOGITS: &str = "%logits: f32[batch, target, 8]";

/// Encoder and decoder in one graph.
fn whole() -> Verified {
    whole_of(false)
}

/// `early`: whether the decoder's tokens are looked up in front of the encoder.
fn whole_of(early: bool) -> Verified {
    let mut body = String::new();
    encoder_weights(&mut body, "model.encoder.");
    decoder_weights(&mut body);
    let [mut encoder, mut decoder] = [String::new(), String::new()];
    encode(&mut encoder, "model.encoder.");
    let states = "model.encoder.layers.0.out";
    decode(&mut decoder, "decoder_input_ids", Some(states));
    let (lookup, layer) = decoder.split_once('\n').unwrap();
    let first = if early {
        [lookup, "\n", &encoder, layer]
    } else {
        [&encoder, lookup, "\n", layer]
    };
    body.extend(first);
    model(
        "%input_ids: i64[batch, source], %decoder_input_ids: i64[batch, target]",
        LOGITS,
        &body,
    )
}

/// The encoder alone, as Optimum exports it: without the path that leads to it.
fn encoder() -> Verified {
    let mut body = String::new();
    encoder_weights(&mut body, "");
    body.push_str(SHAPES);
    encode(&mut body, "");
    body.push_str("%last_hidden_state = Identity(%layers.0.out)\n");
    model(
        "%input_ids: i64[batch, source]",
        "%last_hidden_state: f32[batch, source, 4]",
        &body,
    )
}

fn decoder() -> Verified {
    let mut body = String::new();
    decoder_weights(&mut body);
    decode(&mut body, "input_ids", Some("encoder_hidden_states"));
    model(
        "%input_ids: i64[batch, target], %encoder_hidden_states: f32[batch, source, 4]",
        LOGITS,
        &body,
    )
}

const PAST: &str = "%past_key_values.0.encoder.key: f32[batch, 2, source, 2], %past_key_values.0.encoder.value: f32[batch, 2, source, 2]";

/// Keys and values of the encoder's states from a cache.
fn with_past() -> Verified {
    let mut body = String::new();
    decoder_weights(&mut body);
    decode(&mut body, "input_ids", None);
    model(
        &format!("%input_ids: i64[batch, target], {PAST}"),
        LOGITS,
        &body,
    )
}

/// Both decoders as the branches of one node.
fn merged() -> Verified {
    let mut body = String::new();
    decoder_weights(&mut body);
    body.push_str("%logits = If(%use_cache_branch)  // if\n");
    for (name, states) in [("then", None), ("else", Some("encoder_hidden_states"))] {
        let mut branch = String::new();
        decode(&mut branch, "input_ids", states);
        // A value of a branch may not be called as one around it.
        let branch = branch.replace("%logits", "%inner");
        writeln!(body, "  .{name}_branch = graph {name}() -> (%inner)").unwrap();
        for line in branch.lines() {
            writeln!(body, "    {line}").unwrap();
        }
    }
    model(
        &format!(
            "%input_ids: i64[batch, target], %encoder_hidden_states: f32[batch, source, 4], {PAST}, %use_cache_branch: bool[1]"
        ),
        LOGITS,
        &body,
    )
}

fn interface() -> Interface {
    interface_of("decoder.layers")
}

/// `decoder`: what it calls the decoder's list of layers.
fn interface_of(decoder: &str) -> Interface {
    let text = INTERFACE.replace("decoder.layers", decoder);
    Interface::parse(&text, "of the test").unwrap()
}

const INTERFACE: &str = r#"{"interface": {
        "model_embeddings": "encoder.embed_tokens", "model_layers": ["encoder.layers", "decoder.layers"], "layer_self_attn": "self_attn",
        "attn_q_proj": "q_proj", "attn_k_proj": "k_proj", "attn_v_proj": "v_proj", "attn_o_proj": "out_proj",
        "layer_intermediate_proj": "fc1", "layer_output_proj": "fc2", "layer_cross_attn": [null, "encoder_attn"],
        "layer_pre_self_attn": null, "layer_pre_ffn": null, "layer_ln_1": null, "layer_ln_2": null,
        "layer_pre_cross_attn": null, "attn_qkv_proj": null, "base_model": null,
        "adapter_methods": ["lora"]}, "version": "adapters.1.2.0"}"#;

fn attached(model: Verified, adapter: Adapter) -> Adapted {
    Attach::to(model)
        .interface(&interface())
        .adapters([adapter])
        .run()
        .unwrap()
}

/// Configurations of several kinds of places; their fresh values change what is computed.
const SPECS: [&str; 3] = [
    "lora[r=2,attn_matrices=[q,k,v],init_weights='bert']",
    "seq_bn[reduction_factor=2]",
    "prefix_tuning_flat[prefix_length=3]",
];

fn fresh(spec: &str) -> Adapter {
    api::adapter(&format!("a={spec}")).unwrap()
}

fn ids(rows: &[i64]) -> Value {
    Value::from_i64(&[1, rows.len()], rows.to_vec()).unwrap()
}

fn truth(dims: &[usize], value: bool) -> Value {
    Value::Host(Host::from_bools(dims.to_vec(), vec![u8::from(value)]).unwrap())
}

fn floats(dims: &[usize]) -> Value {
    let n = dims.iter().product::<usize>();
    Value::from_f32(dims, (0..n).map(|i| (i as f32 * 0.7).sin()).collect()).unwrap()
}

/// What a graph makes of these inputs, of which it takes those that it has.
fn run(model: &Verified, given: &[(&str, Value)]) -> Vec<f32> {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let mut feeds = Feeds::new();
    for spec in plan.feeds() {
        if let Some((_, v)) = given.iter().find(|(n, _)| *n == spec.name) {
            feeds.insert(&spec.name, v.clone());
        }
    }
    let out = plan.run(&feeds).unwrap();
    out.values().next().unwrap().to_f32().unwrap()
}

/// Sums in another order: 1e-5 of numbers of about one.
#[track_caller]
fn close(a: &[f32], b: &[f32]) {
    assert_eq!(a.len(), b.len());
    let far = std::iter::zip(a, b)
        .map(|(x, y)| (x - y).abs())
        .fold(0f32, f32::max);
    assert!(far < 1e-5, "{far}: {a:?} {b:?}");
}

fn names(store: &AdapterStore) -> Vec<String> {
    let mut names: Vec<String> = store.iter().map(|(n, _)| n.to_owned()).collect();
    names.sort();
    names
}

fn inputs(cache: bool) -> Vec<(&'static str, Value)> {
    vec![
        ("input_ids", ids(&[1, 5, 2])),
        ("encoder_hidden_states", floats(&[1, 4, 4])),
        ("past_key_values.0.encoder.key", floats(&[1, 2, 4, 2])),
        ("past_key_values.0.encoder.value", floats(&[1, 2, 4, 2])),
        ("use_cache_branch", truth(&[1], cache)),
    ]
}

/// Each branch computes what the decoder that it holds computes with the same adapter, whose parameters stand in the main graph once.
#[test]
fn layers_in_branches_are_adapted_where_they_stand() {
    for spec in SPECS {
        let both = attached(merged(), fresh(spec));
        let first = attached(decoder(), fresh(spec));
        let later = attached(with_past(), fresh(spec));
        assert_eq!(names(&both.store()), names(&first.store()), "{spec}");
        close(
            &run(&both.model, &inputs(false)),
            &run(&first.model, &inputs(false)),
        );
        close(
            &run(&both.model, &inputs(true)),
            &run(&later.model, &inputs(true)),
        );
        assert_ne!(
            run(&both.model, &inputs(true)),
            run(&merged(), &inputs(true)),
            "{spec}"
        );
    }
}

#[test]
fn adapters_are_taken_out_of_branches_again() {
    for spec in SPECS {
        let both = attached(merged(), fresh(spec));
        let back = api::strip(both.model, None).unwrap();
        assert_eq!(
            text::print(back.model()),
            text::print(merged().model()),
            "{spec}"
        );
    }
}

/// The branches share the weights of the main graph, which are changed once.
#[test]
fn adapters_are_merged_into_the_weights_of_branches() {
    let spec = "lora[r=2,attn_matrices=[q,v],init_weights='bert']";
    let both = attached(merged(), fresh(spec));
    let folder = both.folder("a", &both.store()).unwrap();
    let into = merge(&merged(), &interface(), vec![folder.into_adapter(None)]).unwrap();
    for cache in [false, true] {
        close(
            &run(&both.model, &inputs(cache)),
            &run(&into, &inputs(cache)),
        );
        assert_ne!(run(&into, &inputs(cache)), run(&merged(), &inputs(cache)));
    }
}

/// Every file of a folder takes what of the adapter belongs to it.
#[test]
fn adapters_are_merged_into_encoder_and_decoder_together() {
    let spec = "lora[r=2,attn_matrices=[q,v],init_weights='bert']";
    let of_whole = attached(whole(), fresh(spec));
    let folder = of_whole.folder("a", &of_whole.store()).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    folder.write(&at("a"), WriteOptions::default()).unwrap();
    std::fs::write(at("config.json"), r#"{"model_type": "unheard-of"}"#).unwrap();
    let parts = [
        ("encoder_model.onnx", encoder()),
        ("decoder_model.onnx", decoder()),
        ("decoder_with_past_model.onnx", with_past()),
        ("decoder_model_merged.onnx", merged()),
    ];
    for (name, model) in &parts {
        onnx::save(model, at(name), onnx::SaveOptions::default()).unwrap();
    }
    std::fs::write(at("interface.json"), INTERFACE).unwrap();
    let settings = AdapterSettings {
        interface: Some(at("interface.json").display().to_string()),
        adapters: vec![format!("a={}", at("a").display())],
        ..AdapterSettings::default()
    };
    let mut job = job::Merge::new(dir.path(), settings, at("merged"));
    let mut said = Vec::new();
    let files = job.run(&mut |e| {
        said.extend(matches!(e, Event::Warning(_)).then(|| format!("{e:?}")));
        Ok(())
    });
    let files = files.unwrap();
    assert_eq!(said, [""; 0]);
    assert_eq!(files.more.len(), parts.len() - 1);
    for (name, model) in parts {
        let made = api::open(at("merged").join(name)).unwrap();
        let adapter = folder.clone().into_adapter(None);
        let by_hand = merge(&model, &interface(), vec![adapter]).unwrap();
        close(&run(&made, &inputs(true)), &run(&by_hand, &inputs(true)));
        assert_ne!(run(&made, &inputs(true)), run(&model, &inputs(true)));
    }
    assert!(at("merged/config.json").is_file());
    // What is there is not replaced, and what goes in is no output.
    assert!(job.run(&mut |_| Ok(())).is_err());
    job.force = true;
    job.run(&mut |_| Ok(())).unwrap();
    job.output = dir.path().to_owned();
    assert!(job.run(&mut |_| Ok(())).is_err());
}

/// An adapter of the encoder alone leaves the decoder as it is.
#[test]
fn an_adapter_may_be_of_another_file_alone() {
    let spec = "lora[r=2,target_modules=['encoder.layers.0.self_attn.q_proj'],init_weights='bert']";
    let of_whole = attached(whole(), fresh(spec));
    let folder = of_whole.folder("a", &of_whole.store()).unwrap();
    for (model, is_there) in [(encoder(), true), (decoder(), false)] {
        let made = attached(model.clone(), folder.clone().into_adapter(None)).model;
        let adapter = folder.clone().into_adapter(None);
        let into = merge(&model, &interface(), vec![adapter]).unwrap();
        for made in [&made, &into] {
            let [found, base] = [made, &model].map(|m| run(m, &inputs(false)));
            assert_eq!(found != base, is_there);
        }
    }
    // A fresh one that names nothing is refused.
    let to = |a| {
        Attach::to(decoder())
            .interface(&interface())
            .adapters([a])
            .run()
    };
    let e = to(fresh(spec)).unwrap_err();
    assert_eq!(e.findings()[0].code, "target-modules");
}

/// Inputs of adapters stand in the main graph once, and each branch reads those of the places that it has.
#[test]
fn adapters_come_into_branches() {
    let spec = "lora[r=2,attn_matrices=[q,v],init_weights='bert']";
    let come = Attach::to(merged())
        .interface(&interface())
        .adapters([fresh(spec)])
        .exchange(exchanging(DType::Float), Vec::new())
        .run()
        .unwrap();
    let both = attached(merged(), fresh(spec));
    for cache in [false, true] {
        let mut given = inputs(cache);
        close(&run(&come.model, &given), &run(&merged(), &given));
        for (name, tensor) in &come.exchanged[0].1 {
            let dims: Vec<usize> = tensor.dims.iter().map(|d| *d as usize).collect();
            let value = Value::from_f32(&dims, tensor.to_f32().unwrap()).unwrap();
            given.push((name, value));
        }
        close(&run(&come.model, &given), &run(&both.model, &inputs(cache)));
    }
    let back = api::strip(come.model, None).unwrap();
    assert_eq!(text::print(back.model()), text::print(merged().model()));
}

/// A model is trained without its cache: the branch that needs none stands in the place of the node.
#[test]
fn a_merged_decoder_is_trained_without_its_cache() {
    let decided = flat(merged()).unwrap();
    let g = &decided.model().graph;
    let left: Vec<&str> = g.inputs().iter().map(|p| g.name_of(p.value)).collect();
    assert_eq!(left, ["input_ids", "encoder_hidden_states"]);
    close(
        &run(&decided, &inputs(false)),
        &run(&decoder(), &inputs(false)),
    );
}

/// What enters a layer of a decoder is its own stream, wherever the encoder's nodes stand.
#[test]
fn the_order_of_nodes_does_not_choose_what_enters_a_layer() {
    for early in [false, true] {
        let model = whole_of(early);
        let selection = interface().select(&model).unwrap();
        let input = selection.layers[1].input;
        assert_eq!(model.model().graph.name_of(input), "model.decoder.x");
    }
}

#[test]
fn a_stack_of_another_file_is_left_out() {
    let both = interface().select(&whole()).unwrap();
    let paths = |s: &onnx_graft::select::Selection| -> Vec<String> {
        s.layers.iter().map(|l| l.path.to_string()).collect()
    };
    assert_eq!(
        paths(&both),
        ["model.encoder.layers.0", "model.decoder.layers.0"]
    );
    assert!(both.misses.is_empty() && both.absent.is_empty());
    let first = interface().select(&encoder()).unwrap();
    assert_eq!(paths(&first), ["encoder.layers.0"]);
    assert_eq!(first.absent, ["decoder.layers"]);
    for other in [decoder(), with_past()] {
        let second = interface().select(&other).unwrap();
        assert_eq!(paths(&second), ["model.decoder.layers.0"]);
        assert_eq!(second.absent[0], "encoder.layers");
        assert!(second.misses.iter().any(|d| d.code == "select-stack"));
    }
    // A wrong name is no stack of another file where the graph has a list that it might mean.
    assert!(interface_of("decoder.blocks").select(&whole()).is_err());
}

/// The files of a model as one graph compute what the whole model computes, and their adapters have its names.
#[test]
fn files_of_one_model_are_joined() {
    let joined = pipelines::joining(encoder()).run(decoder()).unwrap().model;
    let given = [
        ("input_ids", ids(&[3, 1, 4, 6])),
        ("decoder_input_ids", ids(&[1, 5, 2])),
    ];
    close(&run(&joined, &given), &run(&whole(), &given));
    for spec in SPECS {
        let (one, two) = (
            attached(whole(), fresh(spec)),
            attached(joined.clone(), fresh(spec)),
        );
        assert_eq!(names(&one.store()), names(&two.store()), "{spec}");
        close(&run(&two.model, &given), &run(&one.model, &given));
    }
}

/// An adapter of the whole model goes into each of its files with what belongs there, and its folder stays whole.
#[test]
fn an_adapter_of_the_whole_model_goes_into_each_file() {
    for spec in SPECS {
        let one = attached(whole(), fresh(spec));
        let saved = || one.folder("a", &one.store()).unwrap().into_adapter(None);
        let given = [
            ("input_ids", ids(&[3, 1, 4, 6])),
            ("decoder_input_ids", ids(&[1, 5, 2])),
        ];
        let first = attached(encoder(), saved());
        let second = attached(decoder(), saved());
        let states = Value::from_f32(&[1, 4, 4], run(&first.model, &given)).unwrap();
        let fed = [
            ("input_ids", ids(&[1, 5, 2])),
            ("encoder_hidden_states", states),
        ];
        close(&run(&second.model, &fed), &run(&one.model, &given));
        let count = |a: &Adapted| a.folder("a", &a.store()).unwrap().weights.tensors.len();
        assert_eq!(count(&first), count(&one), "{spec}");
        assert_eq!(count(&second), count(&one), "{spec}");
        attached(with_past(), saved());
        attached(merged(), saved());
    }
}

/// Both branches against differences, also by a value that one of them does not read.
#[test]
fn a_branch_has_a_gradient() {
    let graph = r#"
        opset "" 17
        graph main(%a: f32[2, 3], %b: f32[3], %c: f32[3], %test: bool[]) -> (%loss: f32[])
          %y, %z = If(%test)  // if
            .then_branch = graph t() -> (%p, %q)
              %h = Mul(%a, %b)
              %p = Tanh(%h)
              %q = Mul(%h, %h)
            .else_branch = graph e() -> (%r, %s)
              init %half: f32[] = {0.5}
              %i = Mul(%a, %c)
              %r = Sigmoid(%i)
              %s = Mul(%a, %half)
          %w = Mul(%y, %y)
          %sum = Add(%w, %z)
          %loss = ReduceMean(%sum) {keepdims = 0}"#;
    let wrt: [(&str, &[usize], &[f32]); 3] = [
        ("a", &[2, 3], &[0.3, -0.7, 1.1, 0.4, -0.2, 0.9]),
        ("b", &[3], &[0.5, -1.2, 0.8]),
        ("c", &[3], &[-0.6, 0.3, 1.4]),
    ];
    for test in [true, false] {
        gradients_are_slopes((graph, &wrt, &[("test", truth(&[], test))]));
    }
}

/// The states of an encoder with a prefix, whose scores are made into those of the softmax by these nodes.
fn with_prefix(constants: &str, queries: &str, between: &str) -> Vec<f32> {
    let mut body = String::new();
    encoder_weights(&mut body, "");
    body.push_str(SHAPES);
    body.push_str(constants);
    encode(&mut body, "");
    body.push_str("%last_hidden_state = Identity(%layers.0.out)\n");
    let at = "%layers.0.self_attn";
    let softmax = format!("{at}.weights = Softmax({at}.scores)");
    let between = between.replace('@', at) + &format!("{at}.weights = Softmax({at}.shaped)");
    let product = format!("{at}.scores = MatMul({at}.q3, ");
    let scaled = queries.replace('@', at) + &format!("{at}.scores = MatMul({at}.q4, ");
    let body = body.replace(&softmax, &between).replace(&product, &scaled);
    let states = "%last_hidden_state: f32[batch, source, 4]";
    let model = model("%input_ids: i64[batch, source]", states, &body);
    let adapted = attached(model, fresh(SPECS[2]));
    run(&adapted.model, &[("input_ids", ids(&[3, 1, 4, 2]))])
}

/// Scores that are multiplied with what shows them (GPT-1), and with a number for each head (Swin V2).
#[test]
fn prefixes_stand_in_front_of_scores_with_factors() {
    let plain = "@.q4 = Identity(@.q3)\n";
    let mask = |seen: &str, gone: &str| {
        let row = |i: usize| [[seen; 4], [gone; 4]].concat()[3 - i..7 - i].join(", ");
        (0..4).map(row).collect::<Vec<_>>().join(", ")
    };
    let constants = format!(
        "init %seen: f32[1, 1, 4, 4] = {{{}}}\ninit %gone: f32[1, 1, 4, 4] = {{{}}}\ninit %each: f32[2, 1, 1] = {{0.5, -1.25}}\n",
        mask("1.0", "0.0"),
        mask("0.0", "-10000.0")
    );
    let of = |queries: &str, between: &str| with_prefix(&constants, queries, between);
    let added = of(plain, "@.shaped = Add(@.scores, %gone)\n");
    let times = of(
        plain,
        "@.shown = Mul(@.scores, %seen)\n@.shaped = Add(@.shown, %gone)\n",
    );
    close(&added, &times);
    let queries = of(
        "@.q4 = Mul(@.q3, %each)\n",
        "@.shaped = Identity(@.scores)\n",
    );
    let scores = of(plain, "@.shaped = Mul(@.scores, %each)\n");
    close(&queries, &scores);
    assert_ne!(added, queries);
}

/// A graph, what it is differentiated by (name, shape, values), and what else is fed.
type Case<'a> = (
    &'a str,
    &'a [(&'a str, &'a [usize], &'a [f32])],
    &'a [(&'a str, Value)],
);

/// The gradients of a loss against differences of it.
#[track_caller]
fn gradients_are_slopes((graph, wrt, fed): Case<'_>) {
    let model = Verified::check(text::parse(graph).unwrap()).unwrap();
    let pass = GradientPass {
        loss: "loss".into(),
        wrt: wrt.iter().map(|w| w.0.to_owned()).collect(),
        outputs: Outputs::Keep,
        unreached: Unreached::Refuse,
    };
    let model = Pipeline::new().with(pass).run(model).unwrap().model;
    let plan = Plan::compile(&model, &CompileOptions::default()).unwrap();
    let run = |values: &[Vec<f32>]| {
        let mut feeds = Feeds::new();
        for (name, v) in fed {
            feeds.insert(name, v.clone());
        }
        for ((name, dims, _), v) in std::iter::zip(wrt, values) {
            feeds.insert(name, Value::from_f32(dims, v.clone()).unwrap());
        }
        plan.run(&feeds).unwrap()
    };
    let start: Vec<Vec<f32>> = wrt.iter().map(|w| w.2.to_vec()).collect();
    let found = run(&start);
    for (k, (name, dims, values)) in wrt.iter().enumerate() {
        let grad = &found[&format!("grad/{name}")];
        assert_eq!(grad.dims(), *dims, "{name}");
        let grad = grad.to_f32().unwrap();
        for i in 0..values.len() {
            let at = |step: f32| {
                let mut values = start.clone();
                values[k][i] += step;
                run(&values)["loss"].to_f32().unwrap()[0]
            };
            // Rounding (1e-7 / step) and curvature (step² / 6) both stay below 1e-4.
            let slope = (at(1e-2) - at(-1e-2)) / 2e-2;
            let gap = (slope - grad[i]).abs();
            assert!(gap < 1e-3, "{name}[{i}]: {slope} {}", grad[i]);
        }
    }
}

/// A loop of carried values, a scanned one, the number of the iteration, and a weight around it; also without a single iteration.
#[test]
fn a_loop_has_a_gradient() {
    let graph = r#"
        opset "" 17
        graph main(%h: f32[2], %w: f32[2], %k: f32[2], %n: i64[]) -> (%loss: f32[])
          %end, %all = Loop(%n, _, %h)  // loop
            .body = graph step(%i: i64[], %go: bool[], %x: f32[2]) -> (%on: bool[], %y: f32[2], %seen: f32[2])
              %on = Identity(%go)
              %turn = Cast(%i) {to = 1}
              %scaled = Mul(%x, %w)
              %moved = Add(%scaled, %turn)
              %y = Tanh(%moved)
              %seen = Mul(%x, %y)
          %both = ReduceSum(%all) {keepdims = 0}
          %weighted = Mul(%end, %k)
          %last = ReduceSum(%weighted) {keepdims = 0}
          %loss = Add(%both, %last)"#;
    let wrt: [(&str, &[usize], &[f32]); 3] = [
        ("h", &[2], &[0.3, -0.7]),
        ("w", &[2], &[0.9, -1.2]),
        ("k", &[2], &[0.5, 0.8]),
    ];
    for turns in [4, 1, 0] {
        let fed = [("n", Value::from_i64(&[], vec![turns]).unwrap())];
        gradients_are_slopes((graph, &wrt, &fed));
    }
}

/// A loop that ends by its own condition, in a loop.
#[test]
fn a_loop_in_a_loop_has_a_gradient() {
    let graph = r#"
        opset "" 17
        graph main(%h: f32[2], %w: f32[2], %n: i64[]) -> (%loss: f32[])
          %end = Loop(%n, _, %h)  // outer
            .body = graph step(%i: i64[], %go: bool[], %x: f32[2]) -> (%on, %next)
              init %yes: bool[] = {true}
              %on = Identity(%go)
              %next, %c = Loop(_, %yes, %x, %i)  // inner
                .body = graph again(%j: i64[], %goon: bool[], %y: f32[2], %count: i64[]) -> (%more, %z, %counted)
                  init %one: i64[] = {1}
                  init %limit: i64[] = {3}
                  %counted = Add(%count, %one)
                  %more = Less(%counted, %limit)
                  %wy = Mul(%y, %w)
                  %z = Tanh(%wy)
          %squared = Mul(%end, %end)
          %loss = ReduceSum(%squared) {keepdims = 0}"#;
    let wrt: [(&str, &[usize], &[f32]); 2] = [("h", &[2], &[0.9, -0.7]), ("w", &[2], &[1.4, -1.2])];
    let fed = [("n", Value::from_i64(&[], vec![2]).unwrap())];
    gradients_are_slopes((graph, &wrt, &fed));
}

/// A state and two sequences, one of them read along its second axis and from its end; the results are put together from their end.
#[test]
fn a_scan_has_a_gradient() {
    let graph = r#"
        opset "" 17
        graph main(%s: f32[2], %a: f32[3, 2], %b: f32[2, 3], %w: f32[2], %k: f32[2, 3]) -> (%loss: f32[])
          %end, %out = Scan(%s, %a, %b) {num_scan_inputs = 2, scan_input_axes = [0, 1], scan_input_directions = [0, 1], scan_output_axes = [1], scan_output_directions = [1]}  // scan
            .body = graph step(%x: f32[2], %p: f32[2], %q: f32[2]) -> (%y, %z)
              %xp = Mul(%x, %p)
              %qw = Mul(%q, %w)
              %sum = Add(%xp, %qw)
              %y = Tanh(%sum)
              %z = Mul(%y, %q)
          %kept = Mul(%out, %k)
          %most = ReduceSum(%kept) {keepdims = 0}
          %last = ReduceSum(%end) {keepdims = 0}
          %loss = Add(%most, %last)"#;
    let wrt: [(&str, &[usize], &[f32]); 5] = [
        ("s", &[2], &[0.4, -0.6]),
        ("a", &[3, 2], &[0.3, -0.7, 1.1, 0.4, -0.2, 0.9]),
        ("b", &[2, 3], &[0.5, -1.2, 0.8, 0.1, 0.7, -0.3]),
        ("w", &[2], &[0.9, -1.2]),
        ("k", &[2, 3], &[0.2, -0.4, 0.6, 1.0, -0.9, 0.5]),
    ];
    gradients_are_slopes((graph, &wrt, &[]));
}

/// A linear in the body of a loop is adapted there: one adapter for all turns.
#[test]
fn a_linear_in_a_loop_is_adapted_where_it_stands() {
    let mut body = String::new();
    init(&mut body, "mixer.proj.weight", [4, 4]);
    body.push_str("%y = Loop(%n, _, %x)  // loop\n");
    body.push_str(
        "  .body = graph step(%i: i64[], %go: bool[], %h: f32[batch, seq, 4]) -> (%on, %next)\n",
    );
    body.push_str("    %on = Identity(%go)\n");
    body.push_str("    %mixed = MatMul(%h, %mixer.proj.weight)  // /mixer/proj/MatMul\n");
    body.push_str("    %next = Tanh(%mixed)  // /mixer/act/Tanh\n");
    let inputs = "%x: f32[batch, seq, 4], %n: i64[]";
    let base = model(inputs, "%y: f32[batch, seq, 4]", &body);
    let adapter = fresh("lora[r=2,target_modules=['proj'],init_weights='bert']");
    let adapted = Attach::to(base.clone()).adapters([adapter]).run().unwrap();
    let given = [
        ("x", floats(&[1, 3, 4])),
        ("n", Value::from_i64(&[], vec![3]).unwrap()),
    ];
    let folder = adapted.folder("a", &adapted.store()).unwrap();
    let into = merge(&base, &Interface::bare(), vec![folder.into_adapter(None)]).unwrap();
    close(&run(&adapted.model, &given), &run(&into, &given));
    assert_ne!(run(&into, &given), run(&base, &given));
}
