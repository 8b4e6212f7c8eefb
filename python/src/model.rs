//! A model that is compiled once and run many times.

use crate::ear::{Ear, raised};
use crate::{Hears, request};
use onnx_graft::ir::DType;
use onnx_graft::job::Compiled;
use onnx_graft::runtime::{Feeds, Tensor};
use pyo3::exceptions::PyTypeError;
use pyo3::prelude::*;
use pyo3::types::{PyByteArray, PyBytes, PyCFunction, PyDict, PyTuple};
use std::path::PathBuf;

/// A tensor on its way in: element type, shape, and elements in row-major order, little-endian.
type Given<'py> = (String, Vec<usize>, Bound<'py, PyBytes>);

/// A tensor on its way out.
type Made<'py> = (&'static str, Vec<usize>, Bound<'py, PyByteArray>);

/// `(file, settings, on_event)`: reads, attaches and compiles. Gives the function that executes.
pub(crate) fn compile(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (file, given, hears): (PathBuf, Bound<'_, PyDict>, Hears) = args.extract()?;
    let py = args.py();
    let ear = Ear::new(hears);
    let request = request(file, &given)?;
    let compiled = py.detach(|| Compiled::open(&request, &mut |event| ear.hear(event)));
    let compiled = compiled.map_err(|e| ear.error(py, &e))?;
    let call = move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| run(&compiled, args);
    let function = PyCFunction::new_closure(py, Some(c"run"), Some(c"Executes."), call)?;
    Ok(function.into_any().unbind())
}

/// `([(name, tensor)],)`: executes.
fn run(compiled: &Compiled, args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let py = args.py();
    let (inputs,): (Vec<(String, Given<'_>)>,) = args.extract()?;
    let mut feeds = Feeds::new();
    for (name, (dtype, dims, bytes)) in inputs {
        let Some(dtype) = DType::from_name(&dtype) else {
            return Err(PyTypeError::new_err(format!("{name}: {dtype}")));
        };
        let tensor = Tensor::from_bytes(dtype, &dims, bytes.as_bytes());
        feeds.insert(&name, tensor.map_err(|e| raised(py, &e))?);
    }
    let outputs = py.detach(|| compiled.run(feeds));
    let outputs = outputs.map_err(|e| raised(py, &e))?;
    let made = |(name, tensor): (String, Tensor)| -> PyResult<(String, Made<'_>)> {
        let bytes = py.detach(|| tensor.to_bytes());
        let bytes = bytes.map_err(|e| raised(py, &e))?;
        let bytes = PyByteArray::new(py, &bytes);
        Ok((name, (tensor.dtype().name(), tensor.dims().to_vec(), bytes)))
    };
    let outputs: Vec<_> = outputs.into_iter().map(made).collect::<PyResult<_>>()?;
    Ok(outputs.into_pyobject(py)?.unbind())
}
