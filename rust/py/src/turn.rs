//! `Turn` for Python: one run of a handler.
//!
//! A turn has its own lock, taken before its partition's and never while Python runs. Reads and
//! writes are short, so they stay attached unless the partition is busy.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList, PyTuple};
use spacegrid_core::frame::reply::status;
use spacegrid_core::replica::{Buffer, Ending, Node, Partition, Seen, TurnStart};

use crate::errors::refused;

pyo3::create_exception!(
    spacegrid._core,
    WrongRoutingKey,
    PyValueError,
    "A turn touched a key that does not belong to its own routing key."
);
pyo3::create_exception!(
    spacegrid._core,
    TurnOver,
    PyRuntimeError,
    "A turn was used after finish() or fail(), or after its partition moved."
);

/// Adds the class and its exceptions to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    let py = module.py();
    module.add("WrongRoutingKey", py.get_type::<WrongRoutingKey>())?;
    module.add("TurnOver", py.get_type::<TurnOver>())?;
    module.add_class::<Turn>()
}

/// Lock one partition: at once when it is free, otherwise detached from the interpreter.
pub fn with_partition<R: Send>(
    py: Python<'_>,
    node: &Node,
    index: u32,
    act: impl FnOnce(MutexGuard<'_, Partition>) -> R + Send,
) -> Option<R> {
    match node.try_partition(index)? {
        Some(partition) => Some(act(partition)),
        None => py.detach(|| node.partition(index).map(act)),
    }
}

#[derive(Default)]
struct State {
    buffer: Buffer,
    over: bool,
}

/// One run of a handler for one routing key.
#[pyclass(frozen, module = "spacegrid._core")]
pub struct Turn {
    node: Arc<Node>,
    start: TurnStart,
    state: Mutex<State>,
}

/// The lists that Python sees of turns.
pub fn turns_to_list<'py>(
    py: Python<'py>,
    node: &Arc<Node>,
    starts: Vec<TurnStart>,
) -> PyResult<Bound<'py, PyList>> {
    let turns: PyResult<Vec<_>> = starts
        .into_iter()
        .map(|start| Py::new(py, Turn { node: node.clone(), start, state: Mutex::default() }))
        .collect();
    PyList::new(py, turns?)
}

fn over() -> PyErr {
    TurnOver::new_err("the turn is over, or its partition has moved: nothing more is written")
}

impl Turn {
    fn check_key(&self, key: &[u8]) -> PyResult<()> {
        if self.start.owns(key) {
            return Ok(());
        }
        Err(WrongRoutingKey::new_err(format!(
            "key {} does not belong to the turn's routing key {}",
            key.escape_ascii(),
            self.start.routing_key.escape_ascii()
        )))
    }

    /// Act on the buffer and the partition together, if the turn still runs.
    fn with<R: Send>(
        &self,
        py: Python<'_>,
        act: impl FnOnce(&Partition, &mut Buffer) -> spacegrid_core::Result<R> + Send,
    ) -> PyResult<R> {
        // Another thread holds this only while it works in core, so it is never waited for long.
        let mut state = self.lock(py);
        if state.over {
            return Err(over());
        }
        let buffer = &mut state.buffer;
        let result = with_partition(py, &self.node, self.start.partition, |partition| {
            partition.runs(&self.start).then(|| act(&partition, buffer))
        });
        match result.flatten() {
            Some(result) => result.map_err(refused),
            None => Err(over()),
        }
    }

    fn lock(&self, py: Python<'_>) -> MutexGuard<'_, State> {
        loop {
            if let Some(state) = self.state.try_lock() {
                return state;
            }
            py.detach(|| drop(self.state.lock()));
        }
    }

    fn end<'py>(
        &self,
        py: Python<'py>,
        ending: &Ending<'_>,
        now_ms: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let mut state = self.lock(py);
        if state.over {
            return Err(over());
        }
        state.over = true;
        let buffer = std::mem::take(&mut state.buffer);
        drop(state);
        let next = py.detach(|| self.node.end_turn(&self.start, &buffer, ending, now_ms));
        turns_to_list(py, &self.node, next)
    }

    fn seen(&self, py: Python<'_>, map: &str, key: &[u8]) -> PyResult<Option<Seen>> {
        self.check_key(key)?;
        self.with(py, |partition, buffer| partition.turn_read(&self.start, buffer, map, key))
    }
}

#[pymethods]
impl Turn {
    #[getter]
    fn handler(&self) -> &str {
        &self.start.handler
    }

    #[getter]
    fn arguments<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.start.arguments)
    }

    #[getter]
    fn routing_key<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        PyBytes::new(py, &self.start.routing_key)
    }

    #[getter]
    fn partition(&self) -> u32 {
        self.start.partition
    }

    #[getter]
    fn token<'py>(&self, py: Python<'py>) -> (u64, u64, Bound<'py, PyBytes>, u64) {
        let start = &self.start;
        (start.stream, start.number, PyBytes::new(py, &start.path), start.lowest)
    }

    #[getter]
    fn chain<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        PyList::new(py, self.start.chain.iter().map(|caller| PyBytes::new(py, caller)))
    }

    fn get<'py>(
        &self,
        py: Python<'py>,
        map: &str,
        key: &[u8],
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        Ok(self.seen(py, map, key)?.map(|seen| PyBytes::new(py, &seen.value)))
    }

    fn get_entry<'py>(
        &self,
        py: Python<'py>,
        map: &str,
        key: &[u8],
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let Some(seen) = self.seen(py, map, key)? else { return Ok(None) };
        let value = PyBytes::new(py, &seen.value);
        (value, seen.codec, seen.version, seen.expires_at_ms).into_pyobject(py).map(Some)
    }

    #[pyo3(signature = (map, schema, key, value, codec, expires_at_ms = 0))]
    fn put(
        &self,
        py: Python<'_>,
        map: &str,
        schema: u32,
        key: &[u8],
        value: &[u8],
        codec: u8,
        expires_at_ms: u64,
    ) -> PyResult<()> {
        self.check_key(key)?;
        self.with(py, |partition, buffer| {
            partition.turn_put(buffer, map, schema, key, value, codec, expires_at_ms)
        })
    }

    fn delete(&self, py: Python<'_>, map: &str, key: &[u8]) -> PyResult<bool> {
        self.check_key(key)?;
        self.with(py, |partition, buffer| partition.turn_delete(&self.start, buffer, map, key))
    }

    fn barrier(&self, py: Python<'_>) -> PyResult<Option<(u32, u64)>> {
        let sequence = self.with(py, |partition, buffer| Ok(partition.turn_barrier(buffer)))?;
        Ok(sequence.map(|sequence| (self.start.partition, sequence)))
    }

    fn finish<'py>(
        &self,
        py: Python<'py>,
        reply: &[u8],
        now_ms: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        self.end(py, &Ending::Finished(reply), now_ms)
    }

    fn fail<'py>(
        &self,
        py: Python<'py>,
        status: u8,
        value: &[u8],
        now_ms: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        if status == status::OK || status > status::MAX {
            return Err(PyValueError::new_err(format!(
                "a turn cannot fail with status {status}; 1 to {} can be used",
                status::MAX
            )));
        }
        self.end(py, &Ending::Failed(status, value), now_ms)
    }

    fn __repr__(&self) -> String {
        format!("<Turn {} {}>", self.start.handler, self.start.routing_key.escape_ascii())
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let state = self.state.get_mut();
        if !state.over {
            state.over = true;
            let ending = Ending::Failed(status::UNKNOWN, &[]);
            self.node.abandon_turn(&self.start, &state.buffer, &ending);
        }
    }
}
