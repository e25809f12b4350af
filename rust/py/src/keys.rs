//! Key bytes and routing for Python: `hash64`, `routing_key`, `partition_of`, `encode_key`,
//! `split_key`.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyInt, PyList, PyString, PyTuple};
use spacegrid_core::{hash, key, limits};

/// Adds the functions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(hash64, module)?)?;
    module.add_function(wrap_pyfunction!(routing_key, module)?)?;
    module.add_function(wrap_pyfunction!(partition_of, module)?)?;
    module.add_function(wrap_pyfunction!(encode_key, module)?)?;
    module.add_function(wrap_pyfunction!(split_key, module)?)
}

/// The first half of murmur3 x64 128 of bytes.
#[pyfunction]
#[pyo3(signature = (data, seed = 0))]
fn hash64(data: &[u8], seed: u32) -> u64 {
    hash::hash64(data, seed)
}

/// The part of a key that decides its partition.
#[pyfunction]
fn routing_key<'py>(key: &Bound<'py, PyBytes>) -> Bound<'py, PyBytes> {
    let bytes = key.as_bytes();
    let routing = key::routing_key(bytes);
    if routing.len() == bytes.len() {
        return key.clone();
    }
    PyBytes::new(key.py(), routing)
}

/// The partition of a key.
#[pyfunction]
fn partition_of(key: &[u8], partition_count: u32) -> PyResult<u32> {
    check_partition_count(partition_count)?;
    Ok(key::partition_of(key, partition_count))
}

/// Encodes a key.
#[pyfunction]
fn encode_key<'py>(key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyBytes>> {
    let py = key.py();
    if let Ok(bytes) = key.cast_exact::<PyBytes>() {
        limits::check_key(bytes.as_bytes()).map_err(value_error)?;
        return Ok(bytes.clone());
    }
    if let Ok(parts) = key.cast::<PyTuple>() {
        let encoded = parts.iter().map(|part| scalar(&part)).collect::<PyResult<Vec<_>>>()?;
        return Ok(PyBytes::new(py, &key::encode_tuple(&encoded).map_err(value_error)?));
    }
    let encoded = scalar(key)?;
    limits::check_key(encoded.as_ref()).map_err(value_error)?;
    Ok(PyBytes::new(py, encoded.as_ref()))
}

/// The parts of a tuple key.
#[pyfunction]
fn split_key<'py>(py: Python<'py>, key: &[u8]) -> PyResult<Option<Bound<'py, PyList>>> {
    let Some(parts) = key::split_tuple(key) else { return Ok(None) };
    PyList::new(py, parts.into_iter().map(|part| PyBytes::new(py, part))).map(Some)
}

/// Refuses a partition count outside 1 to `PARTITIONS_MAX`.
pub(crate) fn check_partition_count(partition_count: u32) -> PyResult<()> {
    if (1..=limits::PARTITIONS_MAX).contains(&partition_count) {
        return Ok(());
    }
    Err(PyValueError::new_err(format!(
        "partition_count is {partition_count}, it must be within 1 to {}",
        limits::PARTITIONS_MAX
    )))
}

/// A text, bytes or integer as key bytes.
fn scalar(key: &Bound<'_, PyAny>) -> PyResult<Vec<u8>> {
    if let Ok(text) = key.cast::<PyString>() {
        return Ok(text.to_str()?.as_bytes().to_vec());
    }
    if let Ok(bytes) = key.cast::<PyBytes>() {
        return Ok(bytes.as_bytes().to_vec());
    }
    // True is an int to Python, but as a key it is more likely a mistake than the number 1.
    if key.is_instance_of::<PyInt>() && !key.is_instance_of::<PyBool>() {
        if let Ok(number) = key.extract::<i64>() {
            return Ok(number.to_string().into_bytes());
        }
        // Python's own conversion has the limit on digits; int.__repr__ keeps subclasses out of it.
        let digits = key.py().get_type::<PyInt>().call_method1("__repr__", (key,))?;
        return Ok(digits.extract::<String>()?.into_bytes());
    }
    let name = key.get_type().name()?;
    Err(PyTypeError::new_err(format!("a key (or part) is str, bytes or int, not {name}")))
}

fn value_error(error: spacegrid_core::CoreError) -> PyErr {
    PyValueError::new_err(error.to_string())
}
