//! What a job says, passed on to Python; and errors and signals on their ways.

use onnx_graft::job::Event;
use onnx_graft::{Diagnostic, Error, ErrorKind, Severity};
use pyo3::exceptions::PyKeyboardInterrupt;
use pyo3::prelude::*;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Hears a job's events.
#[derive(Clone)]
pub(crate) struct Ear(Arc<Inside>);

struct Inside {
    on_event: Option<Py<PyAny>>,
    /// Ends a training after its current step.
    stop: Arc<AtomicBool>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// What Python raised: in the function that hears, or by a signal.
    raised: Option<PyErr>,
    /// Whether a stop that is asked for leaves a checkpoint.
    stoppable: bool,
    stopping: bool,
}

impl Ear {
    pub(crate) fn new(on_event: Option<Py<PyAny>>) -> Self {
        Ear(Arc::new(Inside {
            on_event,
            stop: Arc::new(AtomicBool::new(false)),
            state: Mutex::default(),
        }))
    }

    /// The flag that ends a training.
    pub(crate) fn stop(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.0.stop)
    }

    /// Passes an event on. The first signal ends a training after its step, with a checkpoint; everything else ends at once.
    pub(crate) fn hear(&self, event: &Event) -> onnx_graft::Result<()> {
        Python::attach(|py| {
            if let Err(signal) = py.check_signals() {
                return self.interrupted(signal);
            }
            let mut state = self.state();
            state.stoppable |= matches!(event, Event::Stoppable);
            drop(state);
            let (Some(hears), Some(told)) = (&self.0.on_event, told(event)) else {
                return Ok(());
            };
            let said = pythonize::pythonize(py, &told).map_err(PyErr::from);
            match said.and_then(|said| hears.call1(py, (said,))) {
                Ok(_) => Ok(()),
                // A signal that came while Python's function ran.
                Err(raised) if raised.is_instance_of::<PyKeyboardInterrupt>(py) => {
                    self.interrupted(raised)
                }
                Err(raised) => self.ended(raised),
            }
        })
    }

    /// What a job that failed raises: what Python raised before, or the job's own error.
    pub(crate) fn error(&self, py: Python<'_>, e: &Error) -> PyErr {
        let mut state = self.state();
        match state.raised.take() {
            // The checkpoint is named in what the job says.
            Some(signal) if state.stopping => {
                let said = e.findings().first().map(|d| d.message.clone());
                signal
                    .get_type(py)
                    .call1((said.unwrap_or_default(),))
                    .map_or_else(|e| e, PyErr::from_value)
            }
            Some(raised) => raised,
            None => raised(py, e),
        }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn interrupted(&self, signal: PyErr) -> onnx_graft::Result<()> {
        let mut state = self.state();
        if state.stoppable && !state.stopping {
            state.stopping = true;
            state.raised = Some(signal);
            self.0.stop.store(true, Ordering::Relaxed);
            return Ok(());
        }
        state.stopping = false;
        drop(state);
        self.ended(signal)
    }

    /// Keeps what Python raised, and ends the job.
    fn ended(&self, raised: PyErr) -> onnx_graft::Result<()> {
        self.state().raised = Some(raised);
        let finding = Diagnostic::error("ended", "the caller ended it");
        Err(Error::new(ErrorKind::Run, finding))
    }
}

fn finding(d: &Diagnostic) -> Value {
    let severity = match d.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    json!({
        "code": d.code, "severity": severity, "message": d.message, "path": d.path, "notes": d.notes, "help": d.help,
    })
}

/// An event as a dictionary; `None` for one that says nothing to others.
fn told(event: &Event) -> Option<Value> {
    Some(match event {
        Event::Note(line) => json!({ "event": "note", "message": line }),
        Event::Detail(line) => json!({ "event": "detail", "message": line }),
        Event::Trace(line) => json!({ "event": "trace", "message": line }),
        Event::Warning(d) => {
            let mut told = finding(d);
            told["event"] = json!("warning");
            told
        }
        Event::Training(event) => json!(event),
        Event::Progress { what, done, total } => {
            json!({ "event": "progress", "what": what, "done": done, "total": total })
        }
        Event::Text { index, piece } => json!({ "event": "text", "index": index, "piece": piece }),
        Event::Transfer { file, done, total } => {
            json!({ "event": "transfer", "file": file, "done": done, "total": total })
        }
        _ => return None,
    })
}

/// An error of the library as `onnx_graft.Error`.
pub(crate) fn raised(py: Python<'_>, e: &Error) -> PyErr {
    let make = || -> PyResult<Bound<'_, PyAny>> {
        let findings = e.findings().iter().map(finding);
        let findings = pythonize::pythonize(py, &findings.collect::<Vec<_>>())?;
        let kind = format!("{:?}", e.kind()).to_lowercase();
        let class = py.import("onnx_graft._error")?.getattr("Error")?;
        class.call1((e.to_string(), kind, findings))
    };
    make().map_or_else(|e| e, PyErr::from_value)
}
