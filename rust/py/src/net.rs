//! `Net` and `FrameLink` for Python: a node's port and links, and a client's link to one node.
//!
//! The net thread never holds the interpreter: it leaves what needs Python in a queue and makes a
//! file descriptor readable (`rust/net`).

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use pyo3::exceptions::{PyOSError, PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use spacegrid_core::replica::{Effects as CoreEffects, Node as CoreNode};
use spacegrid_net::{ClientLink, Member, Net as CoreNet, Peer, Security, Tls};

use crate::gate::Gate;
use crate::heart::Heart;
use crate::node::{Effects, Node};

/// Adds the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<Net>()?;
    module.add_class::<FrameLink>()
}

/// The port of a node, its links to others, and the effects of its core, on a thread of their own.
#[pyclass(frozen, module = "spacegrid._core")]
struct Net {
    net: CoreNet,
    core: OnceLock<Arc<CoreNode>>,
}

/// (effects, lines for the log, what ended the thread)
type Taken = (Option<Effects>, Vec<(&'static str, String)>, Option<String>);

/// The authority's certificate, the node's own, and its key.
type Pem = (Vec<u8>, Vec<u8>, Vec<u8>);

fn read_tls((authority, certificate, key): &Pem) -> PyResult<Tls> {
    Tls::new(authority, certificate, key).map_err(|error| PyValueError::new_err(error.to_string()))
}

#[pymethods]
impl Net {
    #[new]
    #[pyo3(signature = (listen, upstream, gate = None, tls = None, busy_poll_us = 0))]
    fn new(
        py: Python<'_>,
        listen: &str,
        upstream: PathBuf,
        gate: Option<&Bound<'_, Gate>>,
        tls: Option<Pem>,
        busy_poll_us: u32,
    ) -> PyResult<Self> {
        let security = match (gate, tls) {
            (Some(gate), Some(pem)) => {
                Some(Security { gate: gate.get().core.clone(), tls: read_tls(&pem)? })
            }
            (None, None) => None,
            _ => return Err(PyValueError::new_err("gate and tls go together")),
        };
        let busy_poll = Duration::from_micros(busy_poll_us.into());
        let net = py.detach(|| CoreNet::start(listen, &upstream, security, busy_poll));
        let net = net.map_err(|error| PyOSError::new_err(error.to_string()))?;
        Ok(Self { net, core: OnceLock::new() })
    }

    #[getter]
    fn port(&self) -> u16 {
        self.net.port()
    }

    fn fileno(&self) -> i32 {
        self.net.fd()
    }

    fn join(
        &self,
        node: &Bound<'_, Node>,
        cluster_id: &[u8],
        name: &str,
        incarnation: u64,
    ) -> PyResult<()> {
        let core = node.get().core.clone();
        if self.core.set(core.clone()).is_err() {
            return Err(PyRuntimeError::new_err("a node has joined already"));
        }
        let member = Member {
            cluster_id: Bytes::copy_from_slice(cluster_id),
            name: Bytes::copy_from_slice(name.as_bytes()),
            incarnation,
        };
        self.net.join(core, member);
        Ok(())
    }

    fn set_tls(&self, tls: Pem) -> PyResult<()> {
        self.net.set_tls(read_tls(&tls)?);
        Ok(())
    }

    fn set_serving(&self, serving: bool) {
        self.net.set_serving(serving);
    }

    fn link(&self, peers: Vec<(String, String, u64)>) {
        let peer = |(name, address, incarnation)| Peer { name, address, incarnation };
        self.net.link(peers.into_iter().map(peer).collect());
    }

    fn beat(&self, heart: &Bound<'_, Heart>, peers: Vec<(String, String, u64)>) {
        let peer = |(name, address, incarnation)| Peer { name, address, incarnation };
        self.net.beat(heart.get().core.clone(), peers.into_iter().map(peer).collect());
    }

    fn wake(&self) {
        self.net.wake();
    }

    fn open_local(&self) -> u64 {
        self.net.open_local()
    }

    fn take(&self, py: Python<'_>) -> PyResult<Taken> {
        let batch = self.net.take();
        let notes = batch.notes.into_iter().map(|note| (note.level, note.text)).collect();
        let effects = match self.core.get() {
            Some(core) => {
                let effects = CoreEffects {
                    client_frames: batch.client_frames,
                    peer_frames: Vec::new(),
                    turns: batch.turns,
                    settled: batch.settled,
                    changes: batch.changes,
                };
                Some(Effects::new(py, core, effects)?)
            }
            None => None,
        };
        Ok((effects, notes, batch.fatal))
    }

    fn close(&self, py: Python<'_>) {
        py.detach(|| self.net.close());
    }
}

/// A client's link to one node, without the socket.
#[pyclass(frozen, module = "spacegrid._core")]
struct FrameLink {
    link: Mutex<ClientLink>,
}

#[pymethods]
impl FrameLink {
    #[new]
    #[pyo3(signature = (address, cluster_id, authorization = None))]
    fn new(address: &str, cluster_id: &[u8], authorization: Option<&str>) -> PyResult<Self> {
        let link = ClientLink::new(address, cluster_id, authorization)
            .map_err(|error| PyValueError::new_err(format!("address {address:?}: {error}")))?;
        Ok(Self { link: Mutex::new(link) })
    }

    fn send(&self, frame: &[u8]) {
        self.link.lock().send(Bytes::copy_from_slice(frame));
    }

    fn receive<'py>(&self, py: Python<'py>, data: &[u8]) -> PyResult<Bound<'py, PyList>> {
        let mut link = self.link.lock();
        link.receive(data);
        let frames = PyList::empty(py);
        while let Some(frame) = link.next_frame() {
            frames.append(PyBytes::new(py, &frame))?;
        }
        Ok(frames)
    }

    fn receive_end(&self) {
        self.link.lock().receive_end();
    }

    fn output<'py>(&self, py: Python<'py>) -> Bound<'py, PyBytes> {
        let output = self.link.lock().output();
        PyBytes::new(py, &output)
    }

    fn ping(&self) -> bool {
        self.link.lock().ping()
    }

    #[getter]
    fn down(&self) -> Option<String> {
        self.link.lock().down().map(|down| down.reason.clone())
    }

    #[getter]
    fn refused(&self) -> bool {
        self.link.lock().down().is_some_and(|down| down.refused)
    }

    #[getter]
    fn status(&self) -> Option<u16> {
        self.link.lock().down().and_then(|down| down.status)
    }
}
