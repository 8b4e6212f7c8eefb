//! The independent engine: tract.
//!
//! tract looks operators up by name and ignores their domain, so graphs with operators outside `ai.onnx` are refused here. It has no bound
//! for what it derives of shapes, and panics at what it does not expect: it works behind the fence, with limits of time and memory that
//! grow with the model.

use super::{Feeds, Outputs, Value};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
#[cfg(feature = "tract")]
use crate::fence::{self, Limits};
use crate::infer::Verified;
use std::path::Path;
#[cfg(feature = "tract")]
use std::time::Duration;

/// Runs a model file on tract. Inputs are `f32`, `i64`, `i32` and `bool` tensors by name.
#[cfg(feature = "tract")]
pub(crate) fn run(model: &Verified, path: &Path, inputs: &Feeds) -> Result<Outputs> {
    run_within(model, path, inputs, limits(model))
}

/// The same within limits.
#[cfg(feature = "tract")]
pub(crate) fn run_within(
    model: &Verified,
    path: &Path,
    inputs: &Feeds,
    limits: Limits,
) -> Result<Outputs> {
    use tract_onnx::prelude::*;
    refuse_domains(model)?;
    let failed = |what: &str, e: &dyn std::fmt::Display| {
        let d =
            Diagnostic::error("tract", format!("tract {what}: {e}")).at(path.display().to_string());
        Error::new(
            ErrorKind::Run,
            d.help("`--engine candle` runs the model here"),
        )
    };
    let (file, feeds) = (path.to_owned(), inputs.clone());
    let work = move || -> TractResult<Vec<Value>> {
        let loaded = tract_onnx::onnx().model_for_path(file)?;
        let names: Vec<String> = loaded
            .input_outlets()?
            .iter()
            .map(|o| loaded.node(o.node).name.clone())
            .collect();
        let runnable = loaded.into_optimized()?.into_runnable()?;
        let feeds = names
            .iter()
            .map(|n| feed(&feeds, n))
            .collect::<TractResult<TVec<TValue>>>()?;
        let results = runnable.run(feeds)?;
        let results = results.iter().map(|v| value(v).or_else(anyhow_bail));
        results.collect()
    };
    let results = fence::bounded(limits, work)
        .map_err(|f| failed("was stopped", &f))?
        .map_err(|e| failed("cannot run the model", &format!("{e:#}")))?;
    let g = &model.model().graph;
    let names = g.outputs().iter().map(|p| g.name_of(p.value).to_owned());
    Ok(names.zip(results).map(|(n, v)| (n, v.into())).collect())
}

/// What tract may take: 15 s and 1 GiB, and for each MiB of the model's weights a second and 16 MiB more.
#[cfg(feature = "tract")]
fn limits(model: &Verified) -> Limits {
    let g = &model.model().graph;
    let weights = g
        .initializers()
        .iter()
        .filter_map(|v| g.value(*v).tensor.as_ref());
    let bytes: u64 = weights.filter_map(|t| Some(t.bytes()?.len() as u64)).sum();
    Limits {
        time: Duration::from_secs(15 + (bytes >> 20)),
        bytes: (1u64 << 30).saturating_add(bytes.saturating_mul(16)),
    }
}

#[cfg(feature = "tract")]
fn feed(
    inputs: &Feeds,
    name: &str,
) -> tract_onnx::prelude::TractResult<tract_onnx::prelude::TValue> {
    use crate::ir::DType;
    use tract_onnx::prelude::*;
    let Some(v) = inputs.0.get(name) else {
        anyhow_bail(format!("the input `{name}` is missing"))?
    };
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let tensor = match v.dtype() {
        DType::Float => {
            Tensor::from_shape(v.dims(), &v.to_f32().or_else(|e| anyhow_bail(text(&e)))?)?
        }
        DType::Int64 => {
            Tensor::from_shape(v.dims(), &v.to_ints().or_else(|e| anyhow_bail(text(&e)))?)?
        }
        DType::Int32 => {
            let ints: Vec<i32> = v
                .to_ints()
                .or_else(|e| anyhow_bail(text(&e)))?
                .into_iter()
                .map(|x| x as i32)
                .collect();
            Tensor::from_shape(v.dims(), &ints)?
        }
        DType::Bool => {
            let bools: Vec<bool> = v
                .to_ints()
                .or_else(|e| anyhow_bail(text(&e)))?
                .into_iter()
                .map(|x| x != 0)
                .collect();
            Tensor::from_shape(v.dims(), &bools)?
        }
        other => anyhow_bail(format!("the input `{name}` is {other}"))?,
    };
    Ok(tensor.into())
}

#[cfg(feature = "tract")]
fn anyhow_bail<T>(message: String) -> tract_onnx::prelude::TractResult<T> {
    Err(tract_onnx::prelude::TractError::msg(message))
}

#[cfg(feature = "tract")]
fn value(v: &tract_onnx::prelude::TValue) -> std::result::Result<Value, String> {
    use tract_onnx::prelude::DatumType;
    let dims = v.shape().to_vec();
    let text = |e: &dyn std::fmt::Display| e.to_string();
    if v.datum_type() == DatumType::I64 {
        let data = v.cast_to::<i64>().map_err(|e| text(&e))?;
        let slice = data.to_plain_array_view::<i64>().map_err(|e| text(&e))?;
        return Value::from_i64(&dims, slice.iter().copied().collect()).map_err(|e| text(&e));
    }
    let data = v.cast_to::<f32>().map_err(|e| text(&e))?;
    let slice = data.to_plain_array_view::<f32>().map_err(|e| text(&e))?;
    Value::from_f32(&dims, slice.iter().copied().collect()).map_err(|e| text(&e))
}

#[cfg(feature = "tract")]
fn refuse_domains(model: &Verified) -> Result<()> {
    let g = &model.model().graph;
    let mut foreign: Vec<String> = g
        .nodes()
        .map(|n| &g.node(n).op)
        .filter(|o| !o.domain.is_empty())
        .map(ToString::to_string)
        .collect();
    foreign.sort();
    foreign.dedup();
    if foreign.is_empty() {
        return Ok(());
    }
    let d = Diagnostic::error(
        "tract-domain",
        format!(
            "tract ignores operator domains; the model has {}",
            foreign.join(", ")
        ),
    );
    Err(Error::new(
        ErrorKind::Unsupported,
        d.help("use --engine candle"),
    ))
}

/// Without the feature `tract` there is no second engine.
#[cfg(not(feature = "tract"))]
pub(crate) fn run(_: &Verified, _: &Path, _: &Feeds) -> Result<Outputs> {
    Err(missing())
}

/// Refuses tract in a build without it, before anything is read.
pub(crate) fn ensure_built() -> Result<()> {
    if cfg!(feature = "tract") {
        Ok(())
    } else {
        Err(missing())
    }
}

fn missing() -> Error {
    let d = Diagnostic::error("tract-missing", "this build has no tract");
    Error::new(
        ErrorKind::Unsupported,
        d.help("leave `--engine tract` out: this program then compares by itself; one that is built with `--features tract` has both"),
    )
}

#[cfg(not(feature = "tract"))]
#[expect(dead_code, reason = "keeps the imports of both forms alike")]
fn unused(v: Value) -> Value {
    v
}
