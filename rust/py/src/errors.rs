//! How errors of core look in Python.

use pyo3::exceptions::{PyOverflowError, PyValueError};
use pyo3::prelude::*;
use spacegrid_core::CoreError;

pyo3::create_exception!(
    spacegrid._core,
    FrameError,
    PyValueError,
    "Bytes that are no valid frame: bad magic, length, checksum, or an operation past its limit."
);

/// An argument that core refuses.
pub fn refused(error: CoreError) -> PyErr {
    match error {
        CoreError::Full { .. } => PyOverflowError::new_err(error.to_string()),
        _ => PyValueError::new_err(error.to_string()),
    }
}

/// Bytes from outside that core refuses.
pub fn bad_frame(error: CoreError) -> PyErr {
    FrameError::new_err(error.to_string())
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("FrameError", module.py().get_type::<FrameError>())
}
