//! Executing a model file on tensors, optionally with loss and gradients.

use super::attach::AdapterSettings;
use super::check::{ensure_absent, keep, usage};
use super::event::OnEvent;
use super::model::ModelSettings;
use super::open;
use super::request::{Purpose, Request};
use super::variant::ModelName;
use crate::adapters::folder::to_safetensors;
use crate::adapters::manifest::Manifest;
use crate::adapters::{AdapterStore, onnx_adapter, spec};
use crate::api;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::options::{Options, fields};
use crate::rewrite::passes::gradient;
use crate::rewrite::passes::loss::Divisor;
use crate::rewrite::pipelines::{self, Mode};
use crate::runtime::{CompileOptions, Feeds, Outputs, Plan, io};
use crate::train::parse_loss;
use indexmap::IndexMap;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// How a model file is executed.
#[derive(Clone, Debug)]
pub(crate) struct Run {
    /// The ONNX file.
    pub model: PathBuf,
    /// Adapters to attach first (default: none).
    pub adapters: AdapterSettings,
    /// Names of the values that are wanted, outputs or not (default: the graph's outputs).
    pub wanted: Vec<String>,
    /// `causal-lm` (tensor `labels`), `mse` (tensor `target`), or the name of a scalar value (default: none).
    pub loss: Option<String>,
    /// Names of the values whose gradients are wanted; empty for every trainable adapter parameter (default: none).
    pub grad: Option<Vec<String>>,
    /// Whether fused kernels are used, where only outputs are wanted.
    pub native: bool,
    /// Seed of initial parameter values (default: 42).
    pub seed: u64,
    /// How the plan is compiled.
    pub compile: CompileOptions,
}

/// What is asked of a run besides its model.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
struct RunSettings {
    /// Names of the values that are wanted, outputs or not (default: the graph's outputs).
    outputs: Vec<String>,
    /// causal-lm, mse, or the name of a scalar value.
    loss: Option<String>,
    /// Names of the values whose gradients are wanted; none for every trainable adapter parameter.
    grad: Option<Vec<String>>,
    /// Seed of initial parameter values.
    seed: u64,
}

impl Options for RunSettings {}

impl Default for RunSettings {
    fn default() -> Self {
        RunSettings {
            outputs: Vec::new(),
            loss: None,
            grad: None,
            seed: 42,
        }
    }
}

/// A model that is ready to be executed, any number of times: what `rewrite run` does, as a call.
///
/// ```
/// use onnx_graft::job::{Compiled, Request};
/// use onnx_graft::runtime::{Feeds, Tensor};
///
/// let request = Request::new("fixtures/gpt2/model.onnx").set("adapter", "lora[r=2]");
/// let compiled = Compiled::open(&request, &mut |_| Ok(()))?;
/// let ids = Tensor::from_i64(&[1, 3], vec![5, 6, 7])?;
/// let mask = Tensor::from_i64(&[1, 3], vec![1; 3])?;
/// let outputs = compiled.run(Feeds::new().with("input_ids", ids).with("attention_mask", mask))?;
/// assert_eq!(outputs["logits"].dims()[..2], [1, 3]);
/// # Ok::<(), onnx_graft::Error>(())
/// ```
#[derive(Debug)]
pub struct Compiled {
    plan: Plan,
    /// What adapter files give inputs of the graph.
    served: Option<Feeds>,
    /// Names of the classes that the last axis of `logits` stands for, where the graph says them.
    pub(crate) classes: Option<Vec<String>>,
}

/// What an execution of files gave.
#[derive(Clone, Debug)]
pub(crate) struct RunReport {
    /// The results by name.
    pub outputs: Outputs,
    /// The loss, if there is one.
    pub loss: Option<f32>,
    /// Names of the classes that the last axis of `logits` stands for, where the graph says them.
    pub classes: Option<Vec<String>>,
}

impl Compiled {
    /// The model of a request, with its adapters. Settings are those of `eval` for a model, and `outputs` (names of values, in the graph or
    /// at its end), `loss`, `grad` (names, or none for every trainable parameter) and `seed`.
    ///
    /// # Errors
    /// Names that no setting has, values that do not fit, what the Hub does not have; a model or adapters that cannot be read; operators
    /// that are not executed here.
    pub fn open(request: &Request, events: OnEvent<'_>) -> Result<Self> {
        Run::of(request, events)?.compile(events)
    }

    /// Executes. Inputs go by name (`input_ids` or `input/input_ids`); a loss is the output `loss`, the gradient of a value `grad/NAME`.
    ///
    /// # Errors
    /// [`ErrorKind::Run`]: tensors that are missing or do not fit.
    pub fn run(&self, mut tensors: Feeds) -> Result<Outputs> {
        for (name, value) in self.served.iter().flat_map(|f| &f.0) {
            tensors.insert(name, value.clone());
        }
        self.plan.run(&feeds(&self.plan, tensors))
    }
}

impl Run {
    /// A job with the command's defaults.
    pub(crate) fn new(model: impl Into<PathBuf>) -> Self {
        Run {
            model: model.into(),
            adapters: AdapterSettings::default(),
            wanted: Vec::new(),
            loss: None,
            grad: None,
            native: false,
            seed: 42,
            compile: CompileOptions::default(),
        }
    }

    /// The run of a request.
    fn of(request: &Request, events: OnEvent<'_>) -> Result<Self> {
        let resolved = request.resolve(Purpose::Generate, events)?;
        resolved.check_names(&[fields::<ModelSettings>(), fields::<RunSettings>()])?;
        let model = resolved.model_settings()?;
        let asked: RunSettings = resolved.read()?;
        let name = ModelName {
            name: &resolved.model,
            variant: model.variant.as_deref(),
            every_part: false,
        };
        Ok(Run {
            adapters: model.adapters(),
            wanted: asked.outputs,
            loss: asked.loss,
            grad: asked.grad,
            native: model.mode() == Mode::Native,
            seed: asked.seed,
            compile: model.compile_options()?,
            ..Run::new(name.locate(events)?)
        })
    }

    /// Executes on the tensors of a safetensors file, and writes the results to another.
    ///
    /// # Errors
    /// Those of [`compile`](Self::compile) and [`Compiled::run`]; an output that exists or is an input.
    pub(crate) fn files(
        &self,
        inputs: &Path,
        outputs: &Path,
        force: bool,
        events: OnEvent<'_>,
    ) -> Result<RunReport> {
        ensure_absent(outputs, force)?;
        keep(outputs, [inputs, &*self.model])?;
        let compiled = self.compile(events)?;
        let found = compiled.run(io::read(inputs)?)?;
        io::write(outputs, found.iter().map(|(k, v)| (k.as_str(), &v.0)))?;
        let loss = found.get(contract::LOSS).and_then(|v| v.to_f32().ok());
        Ok(RunReport {
            loss: loss.and_then(|v| v.first().copied()),
            outputs: found,
            classes: compiled.classes,
        })
    }

    /// Reads the model, attaches, and makes the plan of what is wanted.
    ///
    /// # Errors
    /// Settings that do not fit; a model or adapters that cannot be read; operators that are not executed here.
    fn compile(&self, events: OnEvent<'_>) -> Result<Compiled> {
        let mut model = open(&self.model, events)?;
        let served = served(&model, &self.adapters.adapters)?;
        if self.adapters.adapters.is_empty() || served.is_some() {
            api::check_finite(&model, None)?;
        } else {
            let adapted = self
                .adapters
                .attach(model, &self.model, self.seed, false, events)?;
            api::check_finite(&adapted.model, Some(&adapted.selection))?;
            model = adapted.model;
        }
        let classes = api::classes(&model)?;
        let graph = &model.model().graph;
        let names = graph.outputs().iter().map(|p| graph.name_of(p.value));
        let names: Vec<String> = names.map(str::to_owned).collect();
        // A value inside a fused block has no name in a native plan.
        let inner = self.wanted.iter().any(|w| !names.contains(w));
        let mode = if self.native && !inner {
            Mode::Native
        } else {
            Mode::Portable
        };
        let wanted = if self.wanted.is_empty() {
            names
        } else {
            self.wanted.clone()
        };
        let (model, wanted) = self.prepare(model, wanted, mode)?;
        let options = CompileOptions {
            outputs: Some(wanted),
            ..self.compile.clone()
        };
        Ok(Compiled {
            plan: Plan::compile(&model, &options)?,
            served,
            classes,
        })
    }

    /// The graph with the loss and gradients that are wanted, and the names of all that is wanted.
    fn prepare(
        &self,
        model: Verified,
        mut wanted: Vec<String>,
        mode: Mode,
    ) -> Result<(Verified, Vec<String>)> {
        let Some(loss) = &self.loss else {
            if self.grad.is_some() {
                return Err(usage(
                    "--grad needs a loss",
                    "add --loss causal-lm, --loss mse or --loss NAME",
                ));
            }
            return Ok((pipelines::inference(mode).run(model)?.model, wanted));
        };
        let loss = parse_loss(loss, Divisor::Labels);
        wanted.push(contract::LOSS.to_owned());
        let Some(grad) = &self.grad else {
            return Ok((pipelines::loss(&loss, mode).run(model)?.model, wanted));
        };
        let wrt = if grad.is_empty() {
            AdapterStore::from_model(model.model()).trainable()
        } else {
            grad.clone()
        };
        if wrt.is_empty() {
            return Err(usage(
                "the model has no trainable adapter parameter",
                "attach one with --adapter, or name values: --grad NAME",
            ));
        }
        wanted.extend(wrt.iter().map(|w| contract::grad(w)));
        let keep = gradient::Outputs::Keep;
        let pipeline = pipelines::training(&loss, &wrt, keep, false, mode);
        Ok((pipeline.run(model)?.model, wanted))
    }
}

/// What an adapter file of ONNX Runtime gives the inputs of a graph that has some for it; `None` for other graphs.
fn served(model: &Verified, adapters: &[String]) -> Result<Option<Feeds>> {
    let manifest = Manifest::read(model.model()).map_err(|d| Error::new(ErrorKind::Method, d))?;
    if manifest.exchanged.is_empty() {
        return Ok(None);
    }
    let mut all = IndexMap::new();
    for text in adapters {
        let path = Path::new(spec::split(text).1);
        if !spec::is_served(path) {
            return Ok(None);
        }
        let bytes = disk::tensors(path).map_err(|e| Error::io(path, "cannot be read", e))?;
        let at = |e: Error| e.within(path.display().to_string());
        all.extend(onnx_adapter::read(&bytes.into()).map_err(at)?.tensors);
    }
    io::decode(&to_safetensors(&all)?).map(Some)
}

/// The tensors that the plan reads. Names may carry the prefix `input/`; `labels` and `target` are dropped when no loss reads them.
fn feeds(plan: &Plan, tensors: Feeds) -> Feeds {
    let known = |name: &str| plan.feeds().iter().any(|f| f.name == name);
    let mut feeds = Feeds::new();
    for (name, value) in tensors.0 {
        let plain = name
            .strip_prefix("input/")
            .filter(|p| known(p))
            .unwrap_or(&name);
        let spare = [contract::LABELS, contract::TARGET].contains(&plain)
            || name.starts_with("base/")
            || name.starts_with("adapted/");
        if known(plain) || !spare {
            feeds.insert(plain, value);
        }
    }
    feeds
}
