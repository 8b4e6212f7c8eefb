//! The native half of the Python module `onnx_graft`: jobs and commands with Python's values in and out.
//!
//! It decides nothing: settings go to the library by their names, and reports come back as the command line prints them as JSON. The
//! interpreter's lock is let go while work is done; it is held again for each event, and signals are looked at then.
//!
//! Functions are given to the module by hand and not by macros: these would change how the packages are built that all others use, and
//! the command and this module would no longer come out of one compilation.

mod ear;
mod init;
mod model;

use ear::Ear;
use onnx_graft::job::{Evaluation, Generation, Job, Request};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use serde_json::{Value, json};
use std::ffi::OsString;
use std::path::PathBuf;

/// Work of third-party code has a limit of memory.
#[global_allocator]
static ALLOCATOR: onnx_graft::cli::Allocator = onnx_graft::cli::Allocator;

/// Who hears a job's events.
type Hears = Option<Py<PyAny>>;

/// What is asked for: a file, and settings in a dictionary.
fn request(file: PathBuf, given: &Bound<'_, PyDict>) -> PyResult<Request> {
    let mut request = Request::new(file);
    request.flags = pythonize::depythonize(given)?;
    Ok(request)
}

/// What a job came to: its report as Python has it, or what it raises.
fn outcome(py: Python<'_>, ear: &Ear, done: onnx_graft::Result<Value>) -> PyResult<Py<PyAny>> {
    let report = done.map_err(|e| ear.error(py, &e))?;
    Ok(pythonize::pythonize(py, &report)?.unbind())
}

/// `(arguments, on_event)`: carries out a command of `rewrite`, and gives what `--json` prints.
fn command(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (arguments, hears): (Vec<OsString>, Hears) = args.extract()?;
    let ear = Ear::new(hears);
    let own = ear.clone();
    let work = || onnx_graft::cli::command(arguments, move |event| own.hear(event));
    let done = args.py().detach(work);
    outcome(args.py(), &ear, done)
}

/// `(file, settings, on_event)`: trains.
fn train(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (file, given, hears): (PathBuf, Bound<'_, PyDict>, Hears) = args.extract()?;
    let ear = Ear::new(hears);
    let job = Job::new(request(file, &given)?).stop_on(ear.stop());
    let done = args.py().detach(|| {
        let report = job.run(&mut |event| ear.hear(event))?;
        let mut told = json!(report);
        told["dry_run"] = json!(report.dry_run);
        Ok(told)
    });
    outcome(args.py(), &ear, done)
}

/// `(file, settings, on_event)`: measures.
fn evaluate(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (file, given, hears): (PathBuf, Bound<'_, PyDict>, Hears) = args.extract()?;
    let ear = Ear::new(hears);
    let job = Evaluation::new(request(file, &given)?);
    let done = args.py().detach(|| {
        let report = job.run(&mut |event| ear.hear(event))?;
        let mut told = json!(report);
        told["predictions"] = json!(report.predictions);
        told["file"] = json!(report.file);
        Ok(told)
    });
    outcome(args.py(), &ear, done)
}

/// `(file, prompts, settings, on_event)`: generates.
fn generate(args: &Bound<'_, PyTuple>) -> PyResult<Py<PyAny>> {
    let (file, prompts, given, hears): (PathBuf, Vec<String>, Bound<'_, PyDict>, Hears) =
        args.extract()?;
    let ear = Ear::new(hears);
    let job = Generation::new(request(file, &given)?);
    let job = prompts.into_iter().fold(job, Generation::prompt);
    let done = args.py().detach(|| {
        let report = job.run(&mut |event| ear.hear(event))?;
        Ok(json!(report))
    });
    outcome(args.py(), &ear, done)
}
