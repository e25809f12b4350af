//! `HashRing` for Python.
//!
//! A ring and the Python names of its nodes are one immutable state behind an `Arc`: a change makes
//! a new state and swaps it, so a batch that runs detached keeps a consistent one. The lock is held
//! for a lookup or a swap, never while Python objects are made: that may run a finalizer, which may
//! hand the interpreter to a thread that waits for the lock. A single lookup allocates nothing: it
//! returns the name object that the node was added with.

use std::sync::Arc;

use parking_lot::RwLock;
use pyo3::exceptions::{PyKeyError, PyLookupError, PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyString, PyTuple};
use spacegrid_core::CoreError;
use spacegrid_core::hash::hash64;
use spacegrid_core::limits::VIRTUAL_NODES_DEFAULT;
use spacegrid_core::ring::Ring;

/// Batches from this size on are looked up detached from the interpreter.
const DETACHED_BATCH_MIN: usize = 256;

/// Keys of a batch that are read together.
const BLOCK_KEYS: usize = 64;

// The signature below states the number as Python's own signature has to show it.
const _: () = assert!(VIRTUAL_NODES_DEFAULT == 150);

/// Adds the class to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<HashRing>()
}

struct State {
    ring: Ring,
    /// By slot, as the ring's nodes.
    names: Vec<Option<Py<PyString>>>,
}

impl State {
    fn with_names(&self, py: Python<'_>, ring: Ring) -> Self {
        let names = self.names.iter();
        Self {
            ring,
            names: names.map(|name| name.as_ref().map(|name| name.clone_ref(py))).collect(),
        }
    }

    fn name<'py>(&self, py: Python<'py>, slot: u32) -> PyResult<Bound<'py, PyString>> {
        let name = self.names.get(slot as usize).and_then(Option::as_ref);
        name.map(|name| name.bind(py).clone()).ok_or_else(|| error_of(CoreError::EmptyRing))
    }
}

/// A consistent hash ring with virtual nodes.
#[pyclass(frozen, module = "spacegrid")]
struct HashRing {
    state: RwLock<Arc<State>>,
}

#[pymethods]
impl HashRing {
    #[new]
    #[pyo3(signature = (nodes = None, *, virtual_nodes = 150))]
    fn new(nodes: Option<&Bound<'_, PyAny>>, virtual_nodes: u32) -> PyResult<Self> {
        let ring = Ring::new(virtual_nodes).map_err(error_of)?;
        let state = State { ring, names: Vec::new() };
        let ring = Self { state: RwLock::new(Arc::new(state)) };
        if let Some(nodes) = nodes {
            ring.add(nodes.py(), names_and_weights(nodes)?)?;
        }
        Ok(ring)
    }

    /// Adds a node.
    #[pyo3(signature = (name, weight = 1.0))]
    fn add_node(&self, name: Bound<'_, PyString>, weight: f64) -> PyResult<()> {
        self.add(name.py(), vec![(name, weight)])
    }

    /// Removes a node.
    fn remove_node(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        let mut state = self.state.write();
        let mut ring = state.ring.clone();
        let slot = ring.remove_node(name).map_err(error_of)?;
        let mut next = state.with_names(py, ring);
        next.names[slot as usize] = None;
        *state = Arc::new(next);
        Ok(())
    }

    /// The node of a key.
    fn get_node<'py>(&self, key: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyString>> {
        let hash = hash_of_key(key)?;
        let state = self.state.read();
        let slot = state.ring.node_at(hash).map_err(error_of)?;
        state.name(key.py(), slot)
    }

    /// The first distinct nodes from a key on.
    fn get_nodes<'py>(&self, key: &Bound<'py, PyAny>, n: usize) -> PyResult<Bound<'py, PyList>> {
        let hash = hash_of_key(key)?;
        let state = Arc::clone(&self.state.read());
        if state.ring.is_empty() {
            return Err(error_of(CoreError::EmptyRing));
        }
        let names = state.ring.walk(hash).take(n).map(|slot| state.name(key.py(), slot));
        PyList::new(key.py(), names.collect::<PyResult<Vec<_>>>()?)
    }

    /// The nodes of many keys.
    fn get_node_batch<'py>(&self, keys: &Bound<'py, PyAny>) -> PyResult<Bound<'py, PyList>> {
        let py = keys.py();
        let hashes = hashes_of_keys(keys)?;
        let state = Arc::clone(&self.state.read());
        if state.ring.is_empty() && !hashes.is_empty() {
            return Err(error_of(CoreError::EmptyRing));
        }
        let find = |hashes: Vec<u64>| -> Vec<u32> {
            hashes.into_iter().map(|hash| state.ring.find(hash).unwrap_or(0)).collect()
        };
        let slots = if hashes.len() < DETACHED_BATCH_MIN {
            find(hashes)
        } else {
            py.detach(|| find(hashes))
        };
        let names = state.names.iter().map(|name| name.as_ref().map(|name| name.bind(py)));
        let names: Vec<_> = names.collect();
        PyList::new(py, slots.into_iter().map(|slot| names[slot as usize]))
    }

    /// The names of the nodes.
    #[getter(nodes)]
    fn node_names<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let state = Arc::clone(&self.state.read());
        let names = state.ring.occupied().map(|slot| state.name(py, slot));
        PyList::new(py, names.collect::<PyResult<Vec<_>>>()?)
    }

    /// The weights of the nodes by name.
    #[getter]
    fn weights<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let state = Arc::clone(&self.state.read());
        let weights = PyDict::new(py);
        for slot in state.ring.occupied() {
            weights.set_item(state.name(py, slot)?, state.ring.weight(slot))?;
        }
        Ok(weights)
    }

    /// Points of a node of weight 1.
    #[getter]
    fn virtual_nodes(&self) -> u32 {
        self.state.read().ring.virtual_nodes()
    }

    fn __len__(&self) -> usize {
        self.state.read().ring.len()
    }

    fn __contains__(&self, name: &Bound<'_, PyAny>) -> bool {
        let Ok(name) = name.cast::<PyString>() else { return false };
        name.to_str().is_ok_and(|name| self.state.read().ring.slot_of(name).is_some())
    }

    fn __repr__(&self) -> String {
        let state = self.state.read();
        format!("HashRing({} nodes, {} points)", state.ring.len(), state.ring.point_count())
    }
}

impl HashRing {
    fn add(&self, py: Python<'_>, nodes: Vec<(Bound<'_, PyString>, f64)>) -> PyResult<()> {
        let pairs = nodes.iter().map(|(name, weight)| Ok((name.to_str()?, *weight)));
        let pairs = pairs.collect::<PyResult<Vec<_>>>()?;
        let mut state = self.state.write();
        let mut ring = state.ring.clone();
        let slots = ring.add_nodes(&pairs).map_err(error_of)?;
        let mut next = state.with_names(py, ring);
        for (slot, (name, _)) in slots.into_iter().zip(&nodes) {
            if next.names.len() <= slot as usize {
                next.names.resize_with(slot as usize + 1, || None);
            }
            next.names[slot as usize] = Some(name.clone().unbind());
        }
        *state = Arc::new(next);
        Ok(())
    }
}

fn names_and_weights<'py>(nodes: &Bound<'py, PyAny>) -> PyResult<Vec<(Bound<'py, PyString>, f64)>> {
    if let Ok(weights) = nodes.cast::<PyDict>() {
        let items = weights.iter();
        return items.map(|(name, weight)| Ok((name.cast_into()?, weight.extract()?))).collect();
    }
    nodes.try_iter()?.map(|name| Ok((name?.cast_into()?, 1.0))).collect()
}

#[inline]
fn hash_of_key(key: &Bound<'_, PyAny>) -> PyResult<u64> {
    Ok(hash64(bytes_of_key(key)?, 0))
}

#[inline]
fn bytes_of_key<'a>(key: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    // The exact type first: that check is a comparison, the other one a call.
    if let Ok(text) = key.cast_exact::<PyString>() {
        return Ok(text.to_str()?.as_bytes());
    }
    if let Ok(text) = key.cast::<PyString>() {
        return Ok(text.to_str()?.as_bytes());
    }
    if let Ok(bytes) = key.cast::<PyBytes>() {
        return Ok(bytes.as_bytes());
    }
    let name = key.get_type().name()?;
    Err(PyTypeError::new_err(format!("a ring key is str or bytes, not {name}")))
}

fn hashes_of_keys(keys: &Bound<'_, PyAny>) -> PyResult<Vec<u64>> {
    if keys.is_instance_of::<PyString>() || keys.is_instance_of::<PyBytes>() {
        return Err(PyTypeError::new_err("keys is a sequence of keys, not one key"));
    }
    // A tuple cannot change under us, and its items need no reference of our own.
    let keys = match keys.cast::<PyList>() {
        Ok(keys) => keys.to_tuple(),
        Err(_) => match keys.cast::<PyTuple>() {
            Ok(keys) => keys.clone(),
            Err(_) => PyTuple::new(keys.py(), keys.try_iter()?.collect::<PyResult<Vec<_>>>()?)?,
        },
    };
    hash_in_blocks(&keys)
}

/// Hashes keys a block at a time: first all texts of the block, then all hashes. Keys that lie
/// scattered in memory are then fetched together, not one after the other.
fn hash_in_blocks(keys: &Bound<'_, PyTuple>) -> PyResult<Vec<u64>> {
    let mut hashes = Vec::with_capacity(keys.len());
    let mut block = Vec::with_capacity(BLOCK_KEYS);
    let mut keys = keys.iter_borrowed();
    loop {
        block.clear();
        block.extend(keys.by_ref().take(BLOCK_KEYS));
        if block.is_empty() {
            return Ok(hashes);
        }
        let mut texts: [&[u8]; BLOCK_KEYS] = [b""; BLOCK_KEYS];
        for (text, key) in texts.iter_mut().zip(&block) {
            *text = bytes_of_key(key)?;
        }
        hashes.extend(texts[..block.len()].iter().map(|text| hash64(text, 0)));
    }
}

fn error_of(error: CoreError) -> PyErr {
    let message = error.to_string();
    match error {
        CoreError::EmptyRing => PyLookupError::new_err(message),
        CoreError::UnknownNode { .. } => PyKeyError::new_err(message),
        _ => PyValueError::new_err(message),
    }
}
