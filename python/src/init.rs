//! What the interpreter calls when the module is imported.

use crate::{command, evaluate, generate, model, train};
use pyo3::ffi;
use pyo3::prelude::*;
use pyo3::types::{PyCFunction, PyDict, PyTuple};
use std::cell::UnsafeCell;
use std::ffi::CStr;
use std::ptr;

struct Definition(UnsafeCell<ffi::PyModuleDef>);

// SAFETY: only the interpreter reads and writes it, under its own lock.
#[allow(unsafe_code, reason = "what the interpreter keeps of a module")]
unsafe impl Sync for Definition {}

static DEFINITION: Definition = Definition(UnsafeCell::new(ffi::PyModuleDef {
    m_base: ffi::PyModuleDef_HEAD_INIT,
    m_name: c"_native".as_ptr(),
    m_doc: c"Jobs and commands of onnx-graft.".as_ptr(),
    // The module has no state of its own.
    m_size: -1,
    m_methods: ptr::null_mut(),
    m_slots: ptr::null_mut(),
    m_traverse: None,
    m_clear: None,
    m_free: None,
}));

/// A function of the module; its arguments have places and no names.
type Function = fn(&Bound<'_, PyTuple>) -> PyResult<Py<PyAny>>;

const FUNCTIONS: [(&CStr, &CStr, Function); 5] = [
    (c"command", c"Carries out a command.", command),
    (c"train", c"Trains.", train),
    (c"evaluate", c"Measures.", evaluate),
    (c"generate", c"Generates.", generate),
    (c"compile", c"Prepares a model.", model::compile),
];

/// Makes the module.
#[unsafe(no_mangle)]
#[allow(
    unsafe_code,
    non_snake_case,
    unreachable_pub,
    reason = "the interpreter looks for this name"
)]
pub extern "C" fn PyInit__native() -> *mut ffi::PyObject {
    Python::attach(|py| {
        // SAFETY: the definition is static and whole, and the interpreter, which calls this, is attached.
        let made = unsafe {
            let made = ffi::PyModule_Create(DEFINITION.0.get());
            Bound::from_owned_ptr_or_err(py, made)
        };
        match made.and_then(filled) {
            Ok(module) => module.into_ptr(),
            Err(e) => {
                e.restore(py);
                ptr::null_mut()
            }
        }
    })
}

fn filled(module: Bound<'_, PyAny>) -> PyResult<Bound<'_, PyAny>> {
    let py = module.py();
    for (name, doc, function) in FUNCTIONS {
        let call = move |args: &Bound<'_, PyTuple>, _: Option<&Bound<'_, PyDict>>| function(args);
        let function = PyCFunction::new_closure(py, Some(name), Some(doc), call)?;
        module.setattr(name.to_string_lossy().as_ref(), function)?;
    }
    module.setattr("__version__", env!("CARGO_PKG_VERSION"))?;
    Ok(module)
}
