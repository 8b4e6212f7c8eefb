//! The independent engine: tract.
//!
//! tract looks operators up by name and ignores their domain, so graphs with operators outside `ai.onnx` are refused here.

use super::{Feeds, Outputs, Value};
use crate::diag::Diagnostic;
use crate::error::{Error, ErrorKind, Result};
use crate::infer::Verified;
use std::path::Path;

/// Runs a model file on tract. Inputs are `f32`, `i64`, `i32` and `bool` tensors by name.
#[cfg(feature = "tract")]
pub(crate) fn run(model: &Verified, path: &Path, inputs: &Feeds) -> Result<Outputs> {
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
    let work = || -> TractResult<Vec<TValue>> {
        let loaded = tract_onnx::onnx().model_for_path(path)?;
        let names: Vec<String> = loaded
            .input_outlets()?
            .iter()
            .map(|o| loaded.node(o.node).name.clone())
            .collect();
        let runnable = loaded.into_optimized()?.into_runnable()?;
        let feeds = names
            .iter()
            .map(|n| feed(inputs, n))
            .collect::<TractResult<TVec<TValue>>>()?;
        Ok(runnable.run(feeds)?.into_vec())
    };
    let results = std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .map_err(|_| failed("panicked", &"an index may be out of range"))?
        .map_err(|e| failed("cannot run the model", &format!("{e:#}")))?;
    let g = &model.model().graph;
    let names = g.outputs().iter().map(|p| g.name_of(p.value).to_owned());
    names
        .zip(results)
        .map(|(n, v)| Ok((n, value(&v).map_err(|e| failed("result", &e))?.into())))
        .collect()
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
pub(crate) fn run(_: &Verified, path: &Path, _: &Feeds) -> Result<Outputs> {
    let d = Diagnostic::error("tract", "this build has no tract").at(path.display().to_string());
    Err(Error::new(
        ErrorKind::Unsupported,
        d.help("build with the feature `tract`, or use --engine candle"),
    ))
}

#[cfg(not(feature = "tract"))]
#[expect(dead_code, reason = "keeps the imports of both forms alike")]
fn unused(v: Value) -> Value {
    v
}
