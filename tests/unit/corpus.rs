//! The parity corpus: what every saved adapter computes on every export, against what AdapterHub's library computes with it.
//!
//! A row is one adapter on one graph in one pipeline. A test is one graph; all of its rows that differ are reported together. Tolerances
//! are those of the row's `case.json`: ten times the difference between the library in single and in double precision.

use super::support::fixture;
use crate::unit::training_graph;
use indexmap::IndexMap;
use onnx_graft::adapters::folder::read_safetensors;
use onnx_graft::adapters::{Adapter, AdapterFolder, AdapterStore, Route, Setup, usually_trained};
use onnx_graft::infer::Verified;
use onnx_graft::ir::contract;
use onnx_graft::ir::{DType, TensorData};
use onnx_graft::rewrite::passes::gradient::Outputs as Keep;
use onnx_graft::rewrite::passes::loss::{Divisor, Loss};
use onnx_graft::rewrite::pipelines::{self, Mode};
use onnx_graft::runtime::{CompileOptions, Feeds, Outputs, Plan, Value, io};
use onnx_graft::select::Interface;
use onnx_graft::train::{Event, Schedule, Trainer, TrainingArguments, parse_loss};
use onnx_graft::{Attach, api};
use serde_json::Value as Json;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

const MODES: [Mode; 2] = [Mode::Portable, Mode::Native];

fn json(path: &Path) -> Json {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// One export of one architecture.
struct Case {
    folder: PathBuf,
    model: Verified,
    /// Of the plugin route.
    interface: Interface,
    /// Of the library's own model class, which reaches all stacks.
    native: Interface,
    /// Name of the output that the references hold.
    output: String,
    /// `inputs.safetensors`.
    data: BTreeMap<String, Value>,
}

impl Case {
    fn open(arch: &str, graph: &str) -> Case {
        let folder = fixture(arch);
        let data = io::read(&folder.join("inputs.safetensors")).unwrap();
        let interface = Interface::read(&folder.join("interface.json")).unwrap();
        let builtin = interface.model_type.as_deref().and_then(Interface::builtin);
        Case {
            model: api::open(folder.join(graph)).unwrap(),
            native: builtin.map_or_else(|| interface.clone(), |i| i.unwrap()),
            interface,
            output: json(&folder.join("case.json"))["output"]
                .as_str()
                .unwrap()
                .to_owned(),
            data: data.0.into_iter().collect(),
            folder,
        }
    }

    fn inputs(&self) -> Feeds {
        let mut feeds = Feeds::new();
        for (name, value) in &self.data {
            if let Some(name) = name.strip_prefix("input/") {
                feeds.insert(name, value.clone());
            }
        }
        feeds
    }

    /// Folders of adapters, in order.
    fn methods(&self) -> Vec<PathBuf> {
        let inside = |route: &str| {
            let mut found: Vec<PathBuf> = fs::read_dir(self.folder.join(route))
                .map(|d| d.map(|e| e.unwrap().path()).collect())
                .unwrap_or_default();
            let files = ["adapter_config.json", "setup.json"];
            found.retain(|f| files.iter().any(|n| f.join(n).exists()));
            found.sort();
            found
        };
        [inside("plugin"), inside("native")].concat()
    }

    fn base(&self, wrong: &mut Vec<String>) {
        let want = &self.data[&format!("base/{}", self.output)];
        for mode in MODES {
            let graph = pipelines::inference(mode)
                .run(self.model.clone())
                .unwrap()
                .model;
            let options = CompileOptions {
                outputs: Some(vec![self.output.clone()]),
                ..CompileOptions::default()
            };
            let out = Plan::compile(&graph, &options)
                .unwrap()
                .run(&fitting(&self.inputs(), &graph))
                .unwrap();
            // The corpus's floor for outputs; the exporters' own graphs differ from torch by up to 4e-6 in onnxruntime.
            let limit = Limit {
                atol: 2e-5,
                rtol: 1e-4,
            };
            limit.check("base output", &out[&self.output].0, want, &mut |e| {
                wrong.push(format!("base, {mode:?}: {e}"));
            });
        }
    }
}

/// An adapter of the corpus and what the library computes with it.
struct Row<'a> {
    case: &'a Case,
    folder: PathBuf,
    /// Names of the adapters, with their folders.
    adapters: Vec<(String, PathBuf)>,
    setup: Setup,
    /// Folder of the fusion that the setup asks for.
    fusion: Option<PathBuf>,
    loss: Loss,
    tolerance: Json,
    reference: BTreeMap<String, Value>,
    /// Inputs, `labels` or `target`, and what the method adds.
    feeds: Feeds,
}

impl Row<'_> {
    fn read<'a>(case: &'a Case, folder: &Path) -> Row<'a> {
        let own = json(&folder.join("case.json"));
        let reference: BTreeMap<String, Value> = io::read(&folder.join("reference.safetensors"))
            .unwrap()
            .0
            .into_iter()
            .collect();
        let causal = own["loss"].as_str().unwrap().starts_with("causal_lm");
        let mut feeds = case.inputs();
        if causal {
            feeds.insert("labels", case.data["labels"].clone());
        } else {
            let target = reference.get("target").unwrap_or(&case.data["target"]);
            feeds.insert("target", target.clone());
        }
        for (name, value) in &reference {
            if let Some(name) = name.strip_prefix("extra/") {
                feeds.insert(name, value.clone());
            }
        }
        let adapters = own["adapters"].as_object().unwrap();
        Row {
            case,
            adapters: adapters
                .iter()
                .map(|(n, at)| (n.clone(), folder.join(at.as_str().unwrap())))
                .collect(),
            setup: Setup::from_json(&own["setup"]).unwrap(),
            fusion: own["fusion"].as_str().map(|at| folder.join(at)),
            folder: folder.to_path_buf(),
            loss: parse_loss(if causal { "causal-lm" } else { "mse" }, Divisor::Labels),
            tolerance: own["tolerance"].clone(),
            reference,
            feeds,
        }
    }

    fn limit(&self, what: &str) -> Limit {
        let t = &self.tolerance[what];
        Limit {
            atol: t["atol"].as_f64().unwrap(),
            rtol: t["rtol"].as_f64().unwrap(),
        }
    }

    fn attach(&self, training: bool) -> Verified {
        let read = |(name, at): &(String, PathBuf)| {
            let mut folder = AdapterFolder::read(at).unwrap();
            folder.weights.tensors.extend(unsaved(&self.folder));
            folder.into_adapter(Some(name))
        };
        let mut adapters: Vec<Adapter> = self.adapters.iter().map(read).collect();
        let fusion = |at: &PathBuf| {
            let mut folder = AdapterFolder::read(at).unwrap();
            // The reference is a loop of its own, and only the library's trainer adds the regularisation.
            folder.config = folder.config.regularised(false);
            folder.into_adapter(None)
        };
        adapters.extend(self.fusion.iter().map(fusion));
        let interface = match adapters[0].route {
            Route::Plugin => &self.case.interface,
            Route::Native { .. } => &self.case.native,
        };
        let model = self.case.model.clone();
        Attach::to(model)
            .interface(interface)
            .adapters(adapters)
            .active(self.setup.clone())
            .seed(0)
            .training(training)
            .run()
            .unwrap()
            .model
    }

    fn check(&self, wrong: &mut Vec<String>) {
        let model = self.attach(false);
        frozen_bytes_stay(&self.case.model, &model);
        for mode in MODES {
            let row = self.folder.strip_prefix(&self.case.folder).unwrap();
            let mut wrong = |e: String| wrong.push(format!("{}, {mode:?}: {e}", row.display()));
            self.gradients(model.clone(), mode, &mut wrong);
            self.training(mode, &mut wrong);
        }
    }

    /// Output, loss and every gradient.
    fn gradients(&self, model: Verified, mode: Mode, wrong: &mut dyn FnMut(String)) {
        let output = &self.case.output;
        let mut store = AdapterStore::from_model(model.model());
        if let Some(only) = usually_trained(model.model()).unwrap() {
            assert_eq!(store.train_only(&only), None);
        }
        let trainable: Vec<String> = store.trainable();
        let graph = training_graph(model, &self.loss, &trainable, Keep::Keep, mode).unwrap();
        let plan = Plan::compile(&graph, &CompileOptions::default()).unwrap();
        let out: Outputs = plan.run(&fitting(&self.feeds, &graph)).unwrap();
        let adapted = format!("adapted/{output}");
        // A file of the library may compute something else than what was saved: what it computes counts.
        let whole = unsaved(&self.folder).is_empty();
        let reloaded = self.reference.get(&format!("reloaded/{output}"));
        let reloaded = reloaded.filter(|_| whole);
        let want = reloaded.unwrap_or(&self.reference[&adapted]);
        self.limit("output")
            .check("output", &out[output].0, want, wrong);
        if reloaded.is_some() {
            return;
        }
        self.limit("loss")
            .check("loss", &out["loss"].0, &self.reference["loss"], wrong);
        let found: BTreeSet<String> = trainable.iter().map(|n| contract::grad(n)).collect();
        for (name, want) in &self.reference {
            if !name.starts_with("grad/") {
                continue;
            }
            match out.get(name) {
                Some(v) => self.limit("grad").check(name, &v.0, want, wrong),
                None => wrong(format!("{name} is missing")),
            }
        }
        for name in found {
            if !self.reference.contains_key(&name) {
                wrong(format!("{name} is trained here only"));
            }
        }
    }

    /// Five steps of the optimizer: the loss before each, and the parameters after them.
    fn training(&self, mode: Mode, wrong: &mut dyn FnMut(String)) {
        let args = TrainingArguments {
            learning_rate: 1e-3,
            max_steps: 5,
            max_grad_norm: 0.0,
            lr_scheduler_type: Schedule::Constant,
            ..TrainingArguments::default()
        };
        let options = CompileOptions::default();
        let mut trainer =
            Trainer::new(self.attach(true), &self.loss, args, mode, &options).unwrap();
        let mut losses = Vec::new();
        trainer
            .train_on(&self.feeds, &mut |e| {
                if let Event::Step(r) = e {
                    losses.push(r.loss as f32);
                }
                Ok(())
            })
            .unwrap();
        let want = self.reference["losses"].to_f32().unwrap();
        let limit = self.limit("losses");
        for (i, (found, want)) in losses.iter().zip(&want).enumerate() {
            if limit.excess(*found, *want) > 1.0 {
                wrong(format!(
                    "loss before step {}: {found}, expected {want}",
                    i + 1
                ));
            }
        }
        assert_eq!(losses.len(), 5);
        let size = |v: &Value| {
            v.to_f32()
                .unwrap()
                .iter()
                .fold(0.0f32, |m, x| m.max(x.abs()))
        };
        let gradients = || {
            self.reference
                .iter()
                .filter(|(n, _)| n.starts_with("grad/"))
        };
        let largest = gradients().map(|(_, g)| size(g)).fold(0.0, f32::max);
        let store = trainer.store();
        let mut compared = 0;
        for (name, want) in &self.reference {
            let Some(name) = name.strip_prefix("step5/") else {
                continue;
            };
            compared += 1;
            // The bias of a fusion's keys moves all scores alike, and a softmax is blind to that: its gradient is rounding, of which AdamW
            // takes the sign.
            let own = self
                .reference
                .get(&contract::grad(name))
                .map_or(largest, size);
            if own <= 1e-6 * largest {
                continue;
            }
            match store.get(name) {
                Some(p) => self.limit("step5").check(
                    &format!("{name} after 5 steps"),
                    &value(&p.tensor),
                    want,
                    wrong,
                ),
                None => wrong(format!("{name} is missing")),
            }
        }
        assert!(
            compared > 0,
            "{}: nothing was trained",
            self.folder.display()
        );
    }
}

/// Parameters that the library leaves out of the file: those that all places share, where a model without a head saves.
fn unsaved(folder: &Path) -> IndexMap<Box<str>, TensorData> {
    match fs::read(folder.join("unsaved.safetensors")) {
        Ok(bytes) => read_safetensors(&bytes.into()).unwrap(),
        Err(_) => IndexMap::new(),
    }
}

/// How far a number may be off.
struct Limit {
    atol: f64,
    rtol: f64,
}

impl Limit {
    /// The difference as a multiple of what is allowed; not a number is too much.
    fn excess(&self, found: f32, want: f32) -> f64 {
        let (found, want) = (f64::from(found), f64::from(want));
        let off = (found - want).abs() / (self.atol + self.rtol * want.abs());
        if off.is_nan() { f64::INFINITY } else { off }
    }

    fn check(&self, what: &str, found: &Value, want: &Value, wrong: &mut dyn FnMut(String)) {
        if found.dims() != want.dims() {
            let (found, want) = (found.dims(), want.dims());
            return wrong(format!("{what} has shape {found:?}, expected {want:?}"));
        }
        let (found, want) = (found.to_f32().unwrap(), want.to_f32().unwrap());
        let worst = found
            .iter()
            .zip(&want)
            .map(|(f, w)| self.excess(*f, *w))
            .fold(0.0, f64::max);
        if worst > 1.0 {
            wrong(format!("{what} is off by {worst:.2} times its tolerance"));
        }
    }
}

fn value(tensor: &TensorData) -> Value {
    let dims: Vec<usize> = tensor.dims.iter().map(|&d| d as usize).collect();
    assert_eq!(tensor.dtype, DType::Float);
    Value::from_f32(&dims, tensor.to_f32().unwrap()).unwrap()
}

/// The tensors that a graph reads.
fn fitting(feeds: &Feeds, graph: &Verified) -> Feeds {
    let g = &graph.model().graph;
    let mut feeds = feeds.clone();
    feeds
        .0
        .retain(|name, _| g.inputs().iter().any(|p| g.name_of(p.value) == name));
    feeds
}

/// Every tensor of the base model is in the adapted one, under its name and with its bytes.
fn frozen_bytes_stay(base: &Verified, adapted: &Verified) {
    let (a, b) = (&base.model().graph, &adapted.model().graph);
    for &v in a.initializers() {
        let name = a.name_of(v);
        let there = b.find(name).and_then(|v| b.value(v).tensor.as_ref());
        assert_eq!(a.value(v).tensor.as_ref(), there, "{name}");
    }
}

fn corpus(arch: &str, graph: &str) {
    let path = fixture(arch).join(graph);
    let before = fs::read(&path).unwrap();
    let case = Case::open(arch, graph);
    let mut wrong = Vec::new();
    case.base(&mut wrong);
    for folder in case.methods() {
        Row::read(&case, &folder).check(&mut wrong);
    }
    assert!(wrong.is_empty(), "{arch}/{graph}\n{}", wrong.join("\n"));
    assert!(
        fs::read(&path).unwrap() == before,
        "the model's file changed"
    );
}

macro_rules! corpus {
    ($($arch:ident),*) => {$(
        mod $arch {
            #[test]
            fn dynamo() {
                super::corpus(stringify!($arch), "model.onnx");
            }

            #[test]
            fn torchscript() {
                super::corpus(stringify!($arch), "model.torchscript.onnx");
            }
        }
    )*};
}

corpus!(qwen3, qwen3_dedup, llama, bert, distilbert, gpt2, t5, vit);

/// Graphs whose operators are fused.
mod fused {
    #[test]
    fn opset_23() {
        super::corpus("qwen3", "model.dynamo23.onnx");
    }

    #[test]
    fn optimizer() {
        super::corpus("bert", "../onnx/bert-optimizer.onnx");
    }
}

#[test]
fn every_architecture_with_inputs_is_in_the_table() {
    let root = fixture("");
    let found: BTreeSet<String> = fs::read_dir(root)
        .unwrap()
        .map(|e| e.unwrap().path())
        .filter(|p| p.join("inputs.safetensors").exists())
        .map(|p| p.file_name().unwrap().to_string_lossy().into_owned())
        .collect();
    let table = [
        "bert",
        "distilbert",
        "gpt2",
        "llama",
        "qwen3",
        "qwen3_dedup",
        "t5",
        "vit",
    ];
    assert_eq!(found, table.map(str::to_owned).into());
}
