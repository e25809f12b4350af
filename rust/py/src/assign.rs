//! `assign` for Python: partitions to nodes, for the controller.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyString, PyTuple};
use spacegrid_core::assign::{Member, assign as core_assign};

/// Adds the function to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(assign, module)?)
}

/// Name, weight, zone.
type Node = (String, f64, Option<String>);

/// Assigns partitions to nodes.
#[pyfunction]
#[pyo3(signature = (partition_count, copies, nodes, current = None))]
fn assign(
    py: Python<'_>,
    partition_count: u32,
    copies: usize,
    nodes: Vec<Bound<'_, PyAny>>,
    current: Option<Vec<Vec<i64>>>,
) -> PyResult<Vec<Vec<u32>>> {
    let nodes = nodes.iter().map(node_of).collect::<PyResult<Vec<Node>>>()?;
    let members: Vec<Member<'_>> = nodes
        .iter()
        .map(|(name, weight, zone)| Member { name, weight: *weight, zone: zone.as_deref() })
        .collect();
    py.detach(|| core_assign(partition_count, copies, &members, current.as_deref()))
        .map_err(|error| PyValueError::new_err(error.to_string()))
}

/// A name, or a tuple of a name and perhaps a weight and a zone.
fn node_of(node: &Bound<'_, PyAny>) -> PyResult<Node> {
    if let Ok(name) = node.cast::<PyString>() {
        return Ok((name.to_str()?.to_owned(), 1.0, None));
    }
    let parts = node.cast::<PyTuple>()?;
    match parts.len() {
        1 => parts.extract::<(String,)>().map(|(name,)| (name, 1.0, None)),
        2 => parts.extract::<(String, f64)>().map(|(name, weight)| (name, weight, None)),
        3 => parts.extract(),
        count => Err(PyTypeError::new_err(format!("a node has 1 to 3 parts, not {count}"))),
    }
}
