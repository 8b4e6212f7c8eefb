//! Folders as PEFT saves them: attached as they are they compute what PEFT computes, with its gradients, on both exports; merged they
//! compute the same, stripped the base model is back, and saved as PEFT's again they are the same bytes.

use super::support::fixture;
use super::training_graph;
use onnx_graft::adapters::folder::read_safetensors;
use onnx_graft::adapters::peft::{PeftFolder, to_peft};
use onnx_graft::adapters::spec::read_folder;
use onnx_graft::adapters::{Adapter, AdapterFolder, AdapterStore, Param};
use onnx_graft::infer::Verified;
use onnx_graft::ir::{TensorData, contract, text};
use onnx_graft::job::merge;
use onnx_graft::rewrite::passes::gradient::Outputs as Keep;
use onnx_graft::rewrite::passes::loss::Divisor;
use onnx_graft::rewrite::pipelines::Mode;
use onnx_graft::runtime::{CompileOptions, Feeds, Outputs, Plan, Value, io};
use onnx_graft::select::Interface;
use onnx_graft::train::parse_loss;
use onnx_graft::{Attach, api};
use std::path::Path;

/// Logits are of order 1 to 10: rounding of two layers of f32, whose sums go in another order on each unit (T5, which scales no scores,
/// is the furthest: 2.3e-5 with AVX2). Gradients relative to the largest of their tensor.
const OUTPUT: f32 = 4e-5;
const GRADIENT: f32 = 1e-4;
/// T5 does not scale its scores: gradients of its keys are small differences of large numbers, and PEFT's own are of f32.
const GRADIENT_OF_T5: f32 = 1e-3;

fn run(model: &Verified, feeds: &Feeds) -> Outputs {
    let plan = Plan::compile(model, &CompileOptions::default()).unwrap();
    let mut own = Feeds::new();
    for spec in plan.feeds() {
        if let Some(v) = feeds.0.get(&*spec.name) {
            own.insert(&spec.name, v.clone());
        }
    }
    plan.run(&own).unwrap()
}

/// The largest difference, and the largest of what is expected.
fn apart(found: &[f32], want: &TensorData) -> (f32, f32) {
    let want = want.to_f32().unwrap();
    assert_eq!(found.len(), want.len());
    let pairs = found.iter().zip(&want);
    let off = pairs.fold(0f32, |m, (a, b)| m.max((a - b).abs()));
    (off, want.iter().fold(0f32, |m, b| m.max(b.abs())))
}

fn logits(out: &Outputs) -> Vec<f32> {
    out[contract::LOGITS].to_f32().unwrap()
}

struct Case {
    model: Verified,
    interface: Interface,
    feeds: Feeds,
    gradient: f32,
}

impl Case {
    fn new(name: &str, file: &str) -> Case {
        let folder = fixture(name);
        let data = io::read(&folder.join("inputs.safetensors")).unwrap();
        let mut feeds = Feeds::new();
        for (name, value) in &data.0 {
            feeds.insert(name.strip_prefix("input/").unwrap_or(name), value.clone());
        }
        Case {
            model: api::open(folder.join(file)).unwrap(),
            interface: Interface::builtin(name).unwrap().unwrap(),
            feeds,
            gradient: if name == "t5" {
                GRADIENT_OF_T5
            } else {
                GRADIENT
            },
        }
    }

    fn attach(&self, adapter: Adapter) -> Verified {
        let attach = Attach::to(self.model.clone()).interface(&self.interface);
        attach.adapters([adapter]).run().unwrap().model
    }

    /// Labels behind as many masked ones as the logits are longer than they.
    fn with_labels(&self, length: usize) -> Feeds {
        let mut feeds = self.feeds.clone();
        let labels = &self.feeds.0[contract::LABELS];
        let [rows, have] = labels.dims()[..] else {
            unreachable!()
        };
        let all = labels.to_ints().unwrap();
        let front = vec![-100i64; length - have];
        let rowwise = all
            .chunks(have)
            .flat_map(|r| front.iter().chain(r).copied());
        let longer = Value::from_i64(&[rows, length], rowwise.collect()).unwrap();
        feeds.insert(contract::LABELS, longer);
        feeds
    }

    fn gradients(
        &self,
        folder: &AdapterFolder,
        attached: &Verified,
        want: &PeftReference,
        mode: Mode,
    ) {
        let store = AdapterStore::from_model(attached.model());
        let trainable = store.trainable();
        let targeted = !self.feeds.0.contains_key(contract::LABELS);
        let loss = parse_loss(if targeted { "mse" } else { "causal-lm" }, Divisor::Labels);
        let graph = training_graph(attached.clone(), &loss, &trainable, Keep::Keep, mode).unwrap();
        let length = want.0["logits"].dims[1] as usize;
        let feeds = if targeted {
            self.feeds.clone()
        } else {
            self.with_labels(length)
        };
        let out = run(&graph, &feeds);
        let (off, most) = apart(&out["loss"].to_f32().unwrap(), &want.0["loss"]);
        assert!(off <= OUTPUT * most, "loss: {off}");
        // The gradients under the names that PEFT has for the parameters.
        let mut grads = AdapterStore::default();
        for (name, p) in store.iter() {
            let g = out.get(&*contract::grad(name)).map(|g| g.to_f32().unwrap());
            let g = g.unwrap_or_else(|| vec![0.0; p.tensor.count().unwrap() as usize]);
            let tensor = TensorData::from_f32(p.tensor.dims.clone(), &g);
            grads.insert(
                name,
                Param {
                    tensor,
                    ..p.clone()
                },
            );
        }
        let config = folder.config.clone();
        let meta = folder.meta.clone();
        let grads = AdapterFolder::from_store(&folder.name, config, &grads, meta, None);
        let grads = to_peft(&grads).unwrap();
        let mut compared = 0;
        for (name, want) in want.0.iter().filter(|(n, _)| n.starts_with("grad/")) {
            let found = &grads.tensors[&name[5..]];
            let (off, most) = apart(&found.to_f32().unwrap(), want);
            assert!(
                off <= self.gradient * most.max(1e-3),
                "{mode:?} {name}: {off} of {most}"
            );
            compared += 1;
        }
        assert_eq!(compared, trainable.len(), "{mode:?}");
    }
}

struct PeftReference(indexmap::IndexMap<Box<str>, TensorData>);

fn check(name: &str, file: &str) {
    let case = Case::new(name, file);
    let base = text::print(case.model.model());
    let mut folders: Vec<_> = std::fs::read_dir(fixture(name).join("peft"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    folders.sort();
    assert!(folders.len() > 2);
    for path in folders {
        let what = format!("{} on {file}", path.display());
        one(&case, &path, &what, &base);
    }
}

fn one(case: &Case, path: &Path, what: &str, base: &str) {
    let bytes = std::fs::read(path.join("reference.safetensors")).unwrap();
    let want = PeftReference(read_safetensors(&bytes.into()).unwrap());
    let folder = read_folder(path).unwrap();
    let attached = case.attach(folder.clone().into_adapter(None));
    let (off, most) = apart(&logits(&run(&attached, &case.feeds)), &want.0["logits"]);
    assert!(off <= OUTPUT * most, "{what}: {off} of {most}");
    for mode in [Mode::Portable, Mode::Native] {
        case.gradients(&folder, &attached, &want, mode);
    }
    let stripped = api::strip(attached.clone(), None).unwrap();
    assert_eq!(text::print(stripped.model()), base, "{what}");
    // What was attached is saved as PEFT's again.
    let config = folder.config.clone();
    let store = AdapterStore::from_model(attached.model());
    let name = folder.name.clone();
    let saved = AdapterFolder::from_store(&name, config, &store, folder.meta.clone(), None);
    let read = PeftFolder::read(path).unwrap();
    let back = to_peft(&saved).unwrap();
    assert_eq!(back.tensors.len(), read.tensors.len(), "{what}");
    for (key, tensor) in &read.tensors {
        assert_eq!(&back.tensors[key], tensor, "{what}: {key}");
    }
    for key in [
        "peft_type",
        "r",
        "target_modules",
        "rank_pattern",
        "num_virtual_tokens",
        "num_transformer_submodules",
        "trainable_token_indices",
        "token_indices",
    ] {
        let (have, wants) = (back.config.get(key), read.config.get(key));
        assert_eq!(have, wants, "{what}: {key}");
    }
    let kind = read.config["peft_type"].as_str().unwrap();
    if kind == "PREFIX_TUNING" {
        assert_eq!(
            back.config["num_layers"], read.config["num_layers"],
            "{what}"
        );
    }
    if ["PROMPT_TUNING", "PREFIX_TUNING"].contains(&kind) {
        return;
    }
    let merged = merge(
        &case.model,
        &case.interface,
        vec![folder.into_adapter(None)],
    )
    .unwrap();
    let (off, most) = apart(&logits(&run(&merged, &case.feeds)), &want.0["logits"]);
    assert!(off <= OUTPUT * most, "{what}, merged: {off} of {most}");
    let nodes = |m: &Verified| m.model().graph.nodes().count();
    assert_eq!(
        nodes(&merged),
        nodes(&case.model),
        "{what}: merging adds no node"
    );
}

/// Linears without biases, grouped queries; the gate's projection, norms and the head are adapted too.
#[test]
fn llama() {
    check("llama", "model.onnx");
    check("llama", "model.torchscript.onnx");
}

/// One projection for q, k and v, weights as torch's `Conv1D` stores them, every bias trained, learned positions.
#[test]
fn gpt2() {
    check("gpt2", "model.onnx");
    check("gpt2", "model.torchscript.onnx");
}

/// Encoder and decoder: prefixes stand in the decoder's self-attention alone, and the bias by relative position reaches them.
#[test]
fn t5() {
    check("t5", "model.onnx");
    check("t5", "model.torchscript.onnx");
}
