//! Numeric comparison of two models.

use super::event::OnEvent;
use super::open;
use crate::budget;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::{DType, Dim, Type};
use crate::runtime::value::Host;
use crate::runtime::{CompileOptions, Feeds, Outputs, Plan, Tensor, Value, io, tract};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Compares two model files numerically.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Compare {
    /// The model to compare with.
    pub a: PathBuf,
    /// The model to check.
    pub b: PathBuf,
    /// Who executes (default: this library).
    pub engine: Engine,
    /// Tensors by graph input name (default: generated ones).
    pub inputs: Option<PathBuf>,
    /// Largest absolute difference (default: 1e-4).
    pub atol: f64,
    /// Largest relative difference (default: 1e-4).
    pub rtol: f64,
    /// Seed of generated inputs (default: 42).
    pub seed: u64,
    /// How plans are compiled.
    pub compile: CompileOptions,
}

/// Who executes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Engine {
    /// This library's runtime.
    #[default]
    Native,
    /// The independent engine tract.
    Tract,
}

impl Compare {
    /// A job with the command's defaults.
    pub fn new(a: impl Into<PathBuf>, b: impl Into<PathBuf>) -> Self {
        Compare {
            a: a.into(),
            b: b.into(),
            engine: Engine::Native,
            inputs: None,
            atol: 1e-4,
            rtol: 1e-4,
            seed: 42,
            compile: CompileOptions::default(),
        }
    }

    /// Runs both models and compares their outputs. Differences are no error here: see [`agree`].
    ///
    /// # Errors
    /// Models that cannot be read or run; outputs that only one of them has, or of different shapes.
    pub fn run(&self, events: OnEvent<'_>) -> Result<Vec<Comparison>> {
        if self.engine == Engine::Tract {
            tract::ensure_built()?;
        }
        let (a, b) = (open(&self.a, events)?, open(&self.b, events)?);
        let inputs = match &self.inputs {
            Some(path) => io::read(path)?.plain(),
            None => generate_inputs(&a, self.seed)?,
        };
        let (x, y) = (
            self.execute(&a, &self.a, &inputs)?,
            self.execute(&b, &self.b, &inputs)?,
        );
        compare(&x, &y, self.atol, self.rtol)
    }

    fn execute(&self, model: &Verified, path: &Path, inputs: &Feeds) -> Result<Outputs> {
        if self.engine == Engine::Tract {
            return tract::run(model, path, inputs);
        }
        let plan = Plan::compile(model, &self.compile)?;
        let mut feeds = inputs.clone();
        feeds
            .0
            .retain(|k, _| plan.feeds().iter().any(|f| f.name == *k));
        plan.run(&feeds)
    }
}

/// That all outputs are within the tolerances.
///
/// # Errors
/// [`ErrorKind::Run`]: they are not.
pub(crate) fn agree(outputs: &[Comparison]) -> Result<()> {
    if outputs.iter().all(|o| o.within) {
        return Ok(());
    }
    let d = Diagnostic::error("verify-differs", "the models differ");
    Err(Error::new(
        ErrorKind::Run,
        d.help("raise --atol or --rtol if that is expected"),
    ))
}

/// How far two values of one output are apart.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// Name of the output.
    pub name: String,
    /// Largest absolute difference; infinite for values that are not both numbers.
    pub max_abs: f64,
    /// Largest difference relative to the first value's largest magnitude.
    pub max_rel: f64,
    /// Whether every element is within `atol + rtol · |a|`.
    pub within: bool,
}

/// Compares results by name. Outputs that only one side has are an error.
pub(crate) fn compare(a: &Outputs, b: &Outputs, atol: f64, rtol: f64) -> Result<Vec<Comparison>> {
    let missing: Vec<&String> = a
        .keys()
        .filter(|k| !b.contains_key(*k))
        .chain(b.keys().filter(|k| !a.contains_key(*k)))
        .collect();
    if !missing.is_empty() {
        let names: Vec<&str> = missing.iter().map(|s| s.as_str()).collect();
        return Err(wrong(format!(
            "outputs that only one of the models has: {}",
            names.join(", ")
        )));
    }
    a.iter()
        .map(|(name, x)| one(name, x, &b[name], atol, rtol))
        .collect()
}

fn one(name: &str, x: &Tensor, y: &Tensor, atol: f64, rtol: f64) -> Result<Comparison> {
    if x.dims() != y.dims() {
        return Err(wrong(format!(
            "`{name}` has shapes {:?} and {:?}",
            x.dims(),
            y.dims()
        )));
    }
    let floats = |v: &Tensor| -> Result<Vec<f64>> {
        match v.to_f32() {
            Ok(f) => Ok(f.into_iter().map(f64::from).collect()),
            Err(_) => v
                .to_i64()
                .map(|i| i.into_iter().map(|x| x as f64).collect())
                .map_err(|e| wrong(e.to_string())),
        }
    };
    let (x, y) = (floats(x)?, floats(y)?);
    let peak = x.iter().fold(0f64, |m, v| m.max(v.abs()));
    let mut out = Comparison {
        name: name.to_owned(),
        max_abs: 0.0,
        max_rel: 0.0,
        within: true,
    };
    for (a, b) in x.iter().zip(&y) {
        let same = a.to_bits() == b.to_bits() || (a.is_nan() && b.is_nan());
        let d = if same { 0.0 } else { (a - b).abs() };
        let d = if d.is_nan() { f64::INFINITY } else { d };
        out.max_abs = out.max_abs.max(d);
        out.within &= d <= atol + rtol * a.abs();
    }
    out.max_rel = out.max_abs / peak.max(f64::MIN_POSITIVE);
    Ok(out)
}

/// Inputs for a model: symbolic sizes become small numbers, integers small ids, masks ones, floats a fixed pattern of `seed`.
pub(crate) fn generate_inputs(model: &Verified, seed: u64) -> Result<Feeds> {
    let g = &model.model().graph;
    let mut sizes: BTreeMap<String, usize> = BTreeMap::new();
    let mut feeds = Feeds::new();
    let mut state = seed;
    for port in g.inputs() {
        let value = g.value(port.value);
        if value.tensor.is_some() {
            continue;
        }
        let Some((dtype, dims)) = port
            .ty
            .as_ref()
            .and_then(|t: &Type| Some((t.dtype()?, t.dims()?)))
        else {
            return Err(wrong(format!(
                "the input `{}` declares no shape; give --inputs",
                value.name
            )));
        };
        let mut size = |d: &Dim| match d {
            Dim::Known(n) => usize::try_from(*n).unwrap_or(1),
            Dim::Symbol(s) => {
                let next = [2, 7, 3, 5][sizes.len().min(3)];
                *sizes.entry(s.to_string()).or_insert(next)
            }
            Dim::Unknown => 2,
        };
        let dims: Vec<usize> = dims.iter().map(&mut size).collect();
        let bytes = budget::bytes_of(dims.iter().map(|d| *d as u64), 8);
        let what = || format!("the input `{}` of shape {dims:?}", value.name);
        budget::check(what, bytes)
            .map_err(|e| wrong(format!("{e}; give --inputs with smaller ones")))?;
        let count: usize = dims.iter().product();
        let mut draw = || {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            state >> 33
        };
        let ints: Vec<i64> = if value.name.contains("mask") {
            vec![1; count]
        } else {
            (0..count).map(|_| (draw() % 16) as i64).collect()
        };
        let made = match dtype {
            DType::Int64 => Value::from_i64(&dims, ints),
            DType::Float => Value::from_f32(
                &dims,
                (0..count)
                    .map(|_| draw() as f32 / 2f32.powi(30) - 1.0)
                    .collect(),
            ),
            other => Host::from_ints(other, dims, ints).map(Value::Host),
        };
        feeds.insert(&value.name, made.map_err(|e| wrong(e.to_string()))?);
    }
    Ok(feeds)
}

fn wrong(message: String) -> Error {
    Error::new(ErrorKind::Run, Diagnostic::error("verify", message))
}
