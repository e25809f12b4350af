//! Frames opened up for people: `decode_request`, `encode_reply`, `decode_scan`.

use pyo3::IntoPyObjectExt;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use spacegrid_core::frame::request::{FLAG_TOKEN, Operation};
use spacegrid_core::frame::scan::Page;
use spacegrid_core::frame::{Reply, ReplyBuilder, RequestFrame};

use crate::errors::bad_frame;

#[pyfunction]
fn decode_request<'py>(py: Python<'py>, frame: &[u8]) -> PyResult<Bound<'py, PyList>> {
    let frame = RequestFrame::decode(frame).map_err(bad_frame)?;
    let list = PyList::empty(py);
    for operation in frame.operations() {
        list.append(view(py, frame.stream, &operation)?)?;
    }
    Ok(list)
}

fn view<'py>(py: Python<'py>, stream: u64, one: &Operation<'_>) -> PyResult<Bound<'py, PyTuple>> {
    let explicit = one.flags & FLAG_TOKEN != 0;
    let token = &one.token;
    let chain: Vec<_> = one.chain.entries().map(|entry| PyBytes::new(py, entry)).collect();
    let path = PyBytes::new(py, token.path);
    let given = explicit.then_some((token.stream, token.number, path, token.lowest, chain));
    let fields = [
        stream.into_bound_py_any(py)?,
        one.number.into_bound_py_any(py)?,
        (one.opcode as u8).into_bound_py_any(py)?,
        one.flags.into_bound_py_any(py)?,
        one.map.into_bound_py_any(py)?,
        one.schema.into_bound_py_any(py)?,
        PyBytes::new(py, one.key).into_any(),
        PyBytes::new(py, one.value).into_any(),
        one.codec.into_bound_py_any(py)?,
        one.ttl_ms.into_bound_py_any(py)?,
        one.expected_version().into_bound_py_any(py)?,
        given.into_bound_py_any(py)?,
        token.lowest.into_bound_py_any(py)?,
    ];
    PyTuple::new(py, fields)
}

/// (number, status, flags, codec, copies, version, value)
type ReplyArgument<'a> = (u64, u8, u8, u8, u8, u64, &'a [u8]);

#[pyfunction]
fn encode_reply<'py>(
    py: Python<'py>,
    stream: u64,
    replies: Vec<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyBytes>> {
    let mut builder = ReplyBuilder::new(stream);
    let mut frame = None;
    for reply in &replies {
        let reply: ReplyArgument<'_> = reply.extract()?;
        let (number, status, flags, codec, copies, version, value) = reply;
        frame =
            frame.or(builder.push(&Reply { number, status, flags, codec, copies, version, value }));
    }
    match (frame, builder.finish()) {
        (None, Some(frame)) => Ok(PyBytes::new(py, &frame)),
        (None, None) => Err(pyo3::exceptions::PyValueError::new_err("no replies are given")),
        (Some(_), _) => {
            let count = replies.len();
            let message = format!("{count} replies of these sizes do not fit into one frame");
            Err(pyo3::exceptions::PyValueError::new_err(message))
        }
    }
}

#[pyfunction]
fn decode_scan<'py>(
    py: Python<'py>,
    value: &[u8],
) -> PyResult<(Bound<'py, PyList>, Bound<'py, PyBytes>)> {
    let page = Page::decode(value).map_err(bad_frame)?;
    let list = PyList::empty(py);
    for entry in page.entries() {
        let (key, value) = (PyBytes::new(py, entry.key), PyBytes::new(py, entry.value));
        list.append((key, value, entry.codec, entry.version))?;
    }
    Ok((list, PyBytes::new(py, page.next)))
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_function(wrap_pyfunction!(decode_request, module)?)?;
    module.add_function(wrap_pyfunction!(encode_reply, module)?)?;
    module.add_function(wrap_pyfunction!(decode_scan, module)?)
}
