//! Folding adapters into base weights: the method's expression, evaluated here.

use crate::adapters::Adapter;
use crate::adapters::methods::Fold;
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use crate::ir::TensorData;
use crate::rewrite::passes::Merge;
use crate::rewrite::pipelines;
use crate::runtime::{CompileOptions, Feeds, Plan, Value};
use crate::select::Interface;

/// Folds adapters into the weights of a model, one after the other.
///
/// # Errors
/// Adapters whose method has no merged form (bottlenecks, gated LoRA), and weights that are not stored as floats.
pub fn merge(model: &Verified, interface: &Interface, adapters: Vec<Adapter>) -> Result<Verified> {
    fold(model, interface, adapters, Fold::In)
}

/// Takes adapters out of weights that they were folded into, as the library's `reset_adapter` does. The weights come back up to
/// rounding.
///
/// # Errors
/// Those of [`merge`], and DoRA, whose norms the merged weight does not tell any more.
pub fn reset(model: &Verified, interface: &Interface, adapters: Vec<Adapter>) -> Result<Verified> {
    fold(model, interface, adapters, Fold::Out)
}

fn fold(
    model: &Verified,
    interface: &Interface,
    adapters: Vec<Adapter>,
    fold: Fold,
) -> Result<Verified> {
    let selection = interface.select(model)?;
    let pass = Merge {
        selection,
        adapters,
        fold,
        evaluate: Box::new(evaluate),
    };
    Ok(pipelines::merging(pass).run(model.clone())?.model)
}

/// Runs a model without inputs.
fn evaluate(model: &Verified) -> Result<Vec<TensorData>> {
    let plan = Plan::compile(model, &CompileOptions::default())?;
    plan.run(&Feeds::new())?.values().map(tensor).collect()
}

fn tensor(value: &Value) -> Result<TensorData> {
    let wrong = |e: String| Error::new(ErrorKind::Run, Diagnostic::error("merge", e));
    let data = value.to_f32().map_err(|e| wrong(e.to_string()))?;
    let dims: Vec<u64> = value.dims().iter().map(|&d| d as u64).collect();
    TensorData::from_floats(value.dtype(), dims, &data)
        .ok_or_else(|| wrong(format!("a merged weight of type {}", value.dtype())))
}
