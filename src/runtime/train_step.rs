//! One optimizer step: loss and gradients from the graph, clipping, and an update of the trainable parameters.
//!
//! The gradient is part of the graph: a rewrite appended the outputs `loss` and `grad/NAME`. Only the parameters named here are ever
//! written; the base weights stay slices of the mapped file.

use super::adamw::{clip_scale, global_norm};
use super::plan::{CompileOptions, Feeds, Plan};
use super::value::{Floats, Value};
use crate::adapters::param::decays;
use crate::diag::{Diagnostic, nearest};
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::contract;
use crate::ir::{DType, TensorData};
use indexmap::IndexMap;

/// Vectors by name of their parameter.
pub type Gradients = IndexMap<Box<str>, Vec<f32>>;

/// A trainable parameter with its optimizer state.
#[derive(Clone, Debug)]
pub struct Trainable {
    /// Dimensions.
    pub dims: Vec<usize>,
    /// Element type in the graph. The value here is always `f32`: the master copy.
    pub dtype: DType,
    /// The value, row-major.
    pub value: Vec<f32>,
    /// First moment of `AdamW`; empty before the first step.
    pub first: Vec<f32>,
    /// Second moment of `AdamW`; empty before the first step.
    pub second: Vec<f32>,
    /// Whether weight decay applies (see [`decays`]).
    pub decays: bool,
    /// Weight of its squared distance from the identity, whose gradient is added once in each step.
    pub(crate) to_identity: Option<f32>,
    /// Sum of the gradients since the last step; empty right after it.
    grad: Vec<f32>,
}

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// Norm of all gradients together, before clipping.
    pub grad_norm: f64,
    /// What the gradients were multiplied by.
    pub clip: f32,
    /// Number of this step, from 1.
    pub step: u32,
}

/// A graph with `loss` and `grad/…`, its parameters, and the optimizer.
#[derive(Debug)]
pub struct TrainStep {
    plan: Plan,
    params: IndexMap<Box<str>, Trainable>,
    step: u32,
}

impl TrainStep {
    /// Prepares the step. `params` are initializers of the graph; each must have its gradient among the graph's outputs.
    /// `options.outputs` and `options.variables` are set here.
    pub fn compile(model: &Verified, params: &[String], options: &CompileOptions) -> Result<Self> {
        let g = &model.model().graph;
        let mut findings = Vec::new();
        let mut trainables = IndexMap::new();
        for name in params {
            let tensor = g.find(name).and_then(|v| g.value(v).tensor.as_ref());
            match tensor.map(Trainable::new) {
                Some(Some(t)) => {
                    trainables.insert(
                        name.as_str().into(),
                        Trainable {
                            decays: decays(name),
                            ..t
                        },
                    );
                }
                Some(None) => findings.push(Diagnostic::error(
                    "train-param",
                    format!("`{name}` is no float parameter with a value"),
                )),
                None => findings.push(unknown(model, name)),
            }
            if g.find(&contract::grad(name)).is_none() {
                findings.push(
                    Diagnostic::error("train-gradient", format!("no gradient reaches `{name}`"))
                        .help("freeze the parameter, or choose a loss that depends on it"),
                );
            }
        }
        if !findings.is_empty() {
            return Err(Error::many(ErrorKind::Train, findings));
        }
        let mut outputs = vec![contract::LOSS.to_owned()];
        outputs.extend(params.iter().map(|p| contract::grad(p)));
        let options = CompileOptions {
            outputs: Some(outputs),
            variables: params.to_vec(),
            ..options.clone()
        };
        Ok(TrainStep {
            plan: Plan::compile(model, &options)?,
            params: trainables,
            step: 0,
        })
    }

    /// The plan.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The parameters, in the order given.
    pub fn params(&self) -> &IndexMap<Box<str>, Trainable> {
        &self.params
    }

    /// The parameters, to be loaded from a checkpoint.
    pub(crate) fn params_mut(&mut self) -> &mut IndexMap<Box<str>, Trainable> {
        &mut self.params
    }

    /// Number of steps taken.
    pub fn steps(&self) -> u32 {
        self.step
    }

    /// Sets the number of steps taken, after loading a checkpoint.
    pub(crate) fn set_steps(&mut self, step: u32) {
        self.step = step;
    }

    /// Loss and gradients of one batch, nothing changed. `seed` draws dropout masks; `None` is evaluation mode, for the loss: gradients
    /// through a dropout that was wired for training are scaled by `1 / (1 - p)` then.
    pub fn evaluate(&self, batch: &Feeds, seed: Option<u64>) -> Result<(f32, Gradients)> {
        let mut feeds = batch.clone();
        for (name, p) in &self.params {
            let value = Floats::new(p.value.clone(), &p.dims, p.dtype, None)
                .map_err(|e| fault(name, &e.to_string()))?;
            feeds.insert(name, Value::Float(value));
        }
        let out = self.plan.run_seeded(&feeds, seed)?;
        let mut values = out.into_iter();
        let loss = values
            .next()
            .and_then(|(_, v)| v.to_f32().ok())
            .filter(|v| v.len() == 1)
            .ok_or_else(|| fault(contract::LOSS, "the loss is no scalar"))?[0];
        let mut grads = IndexMap::new();
        for ((name, p), (_, g)) in self.params.iter().zip(values) {
            if g.dims() != p.dims {
                let what = format!("a gradient of {:?}, expected {:?}", g.dims(), p.dims);
                return Err(fault(name, &what));
            }
            let g = g.to_f32().map_err(|e| fault(name, &e.to_string()))?;
            grads.insert(name.clone(), g);
        }
        Ok((loss, grads))
    }

    /// Adds `weight` times the gradients of one batch to those of the next step, and returns the loss. Nothing is added when a
    /// gradient is not finite: that is an error which names the parameters.
    pub fn accumulate(&mut self, batch: &Feeds, weight: f32, seed: Option<u64>) -> Result<f32> {
        let (loss, grads) = self.evaluate(batch, seed)?;
        let bad: Vec<&str> = grads
            .iter()
            .filter(|(_, g)| g.iter().any(|x| !x.is_finite()))
            .map(|(n, _)| &**n)
            .collect();
        if let Some(first) = bad.first() {
            return Err(Error::new(
                ErrorKind::Train,
                Diagnostic::error(
                    "train-not-finite",
                    format!(
                        "the gradients of {} of {} parameters are not finite, first: `{first}` (loss {loss})",
                        bad.len(),
                        grads.len()
                    ),
                )
                .help("lower the learning rate, or look at the batch: rows without labels, values that overflow"),
            ));
        }
        for ((_, p), (_, g)) in self.params.iter_mut().zip(grads) {
            if p.grad.is_empty() && weight.to_bits() == 1f32.to_bits() {
                p.grad = g;
            } else {
                p.grad.resize(g.len(), 0.0);
                p.grad.iter_mut().zip(g).for_each(|(s, g)| *s += weight * g);
            }
        }
        Ok(loss)
    }

    /// Clips the accumulated gradients by their global norm and lets `update` change each parameter; then the gradients are zero.
    pub(crate) fn apply(
        &mut self,
        max_norm: Option<f64>,
        update: &mut dyn FnMut(&str, &mut Trainable, Gradient<'_>) -> Result<()>,
    ) -> Result<StepReport> {
        self.params.values_mut().for_each(Trainable::pull);
        let grads: Vec<&[f32]> = self.params.values().map(|p| p.grad.as_slice()).collect();
        if grads
            .iter()
            .zip(self.params.values())
            .any(|(g, p)| g.len() != p.value.len())
        {
            return Err(fault("optimizer", "a step without gradients"));
        }
        let norm = global_norm(&grads);
        let clip = match max_norm {
            Some(max) if max > 0.0 => clip_scale(norm, max),
            _ => 1.0,
        };
        self.step += 1;
        for (name, p) in &mut self.params {
            let grad = std::mem::take(&mut p.grad);
            let gradient = Gradient {
                grad: &grad,
                clip,
                number: self.step,
            };
            update(name, p, gradient)?;
        }
        Ok(StepReport {
            grad_norm: norm,
            clip,
            step: self.step,
        })
    }
}

/// The gradient of one parameter in a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Gradient<'a> {
    /// The sum over the micro-batches.
    pub grad: &'a [f32],
    /// What it is to be multiplied by.
    pub clip: f32,
    /// Number of the step, from 1.
    pub number: u32,
}

impl Trainable {
    /// A parameter with the value of a tensor; `None` if it is not of a float type or has no payload.
    pub(crate) fn new(t: &TensorData) -> Option<Self> {
        let value = t.to_f32()?;
        let dims: Option<Vec<usize>> = t.dims.iter().map(|&d| usize::try_from(d).ok()).collect();
        Some(Trainable {
            dims: dims?,
            dtype: t.dtype,
            value,
            first: Vec::new(),
            second: Vec::new(),
            decays: true,
            to_identity: None,
            grad: Vec::new(),
        })
    }

    /// Adds the gradient of the distance from the identity: `2·weight·(W − I)`, of the value that the step began with.
    fn pull(&mut self) {
        let (Some(weight), Some(&columns)) = (self.to_identity, self.dims.last()) else {
            return;
        };
        for (i, (g, w)) in self.grad.iter_mut().zip(&self.value).enumerate() {
            let one = if i / columns == i % columns { 1.0 } else { 0.0 };
            *g += 2.0 * weight * (w - one);
        }
    }
}

fn unknown(model: &Verified, name: &str) -> Diagnostic {
    let g = &model.model().graph;
    let d = Diagnostic::error(
        "train-param",
        format!("the graph has no parameter `{name}`"),
    );
    let names: Vec<&str> = g.initializers().iter().map(|&v| g.name_of(v)).collect();
    match nearest(name, names) {
        Some(n) => d.help(format!("did you mean `{n}`?")),
        None => d,
    }
}

fn fault(name: &str, what: &str) -> Error {
    Error::new(
        ErrorKind::Train,
        Diagnostic::error("train-step", format!("`{name}`: {what}")),
    )
}
