//! Executing a model file on tensors of a file, optionally with loss and gradients.

use super::attach::AdapterSettings;
use super::check::{ensure_absent, keep, usage};
use super::event::OnEvent;
use super::open;
use crate::adapters::folder::to_safetensors;
use crate::adapters::manifest::Manifest;
use crate::adapters::{AdapterStore, onnx_adapter, spec};
use crate::api;
use crate::disk;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::rewrite::passes::gradient;
use crate::rewrite::passes::loss::Divisor;
use crate::rewrite::pipelines::{self, Mode};
use crate::runtime::{CompileOptions, Feeds, Outputs, Plan, io};
use crate::train::parse_loss;
use indexmap::IndexMap;
use std::path::{Path, PathBuf};

/// Executes a model file.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct Run {
    /// The ONNX file.
    pub model: PathBuf,
    /// safetensors file with a tensor for each graph input, by name (`input_ids` or `input/input_ids`).
    pub inputs: PathBuf,
    /// safetensors file for the results.
    pub outputs: PathBuf,
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
    /// Whether an existing file of outputs is replaced.
    pub force: bool,
    /// How the plan is compiled.
    pub compile: CompileOptions,
}

/// What an execution gave.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub(crate) struct RunReport {
    /// The results by name.
    pub outputs: Outputs,
    /// The loss, if there is one.
    pub loss: Option<f32>,
    /// Names of the classes that the last axis of `logits` stands for, where the graph says them.
    pub classes: Option<Vec<String>>,
}

impl Run {
    /// A job with the command's defaults.
    pub(crate) fn new(
        model: impl Into<PathBuf>,
        inputs: impl Into<PathBuf>,
        outputs: impl Into<PathBuf>,
    ) -> Self {
        Run {
            model: model.into(),
            inputs: inputs.into(),
            outputs: outputs.into(),
            adapters: AdapterSettings::default(),
            wanted: Vec::new(),
            loss: None,
            grad: None,
            native: false,
            seed: 42,
            force: false,
            compile: CompileOptions::default(),
        }
    }

    /// Executes and writes the results.
    ///
    /// # Errors
    /// Settings that do not fit; an output that exists or is an input; tensors that are missing or do not fit.
    pub(crate) fn run(&self, events: OnEvent<'_>) -> Result<RunReport> {
        ensure_absent(&self.outputs, self.force)?;
        keep(&self.outputs, [&*self.inputs, &*self.model])?;
        let mut model = open(&self.model, events)?;
        let served = served(&model, &self.adapters.adapters)?;
        if self.adapters.adapters.is_empty() || served.is_some() {
            api::check_finite(&model, None)?;
        } else {
            model = self
                .adapters
                .attach(model, &self.model, self.seed, false, events)?
                .model;
        }
        let classes = api::classes(&model)?;
        let mut tensors = io::read(&self.inputs)?;
        for (name, value) in served.into_iter().flat_map(|f| f.0) {
            tensors.insert(&name, value);
        }
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
        let plan = Plan::compile(&model, &options)?;
        let outputs = plan.run(&feeds(&plan, tensors))?;
        io::write(
            &self.outputs,
            outputs.iter().map(|(k, v)| (k.as_str(), &v.0)),
        )?;
        let loss = outputs
            .get(contract::LOSS)
            .and_then(|v| v.to_f32().ok())
            .and_then(|v| v.first().copied());
        Ok(RunReport {
            outputs,
            loss,
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
