//! `_core.Client`: one request stream for asyncio and for threads.
//!
//! The hot path is `get` (one call, no Python object made but its number) and `on_frame_futures`
//! (one bytes and one `set_result` per reply). Python code can run whenever an object is released
//! or called, and could call the client again: so replies are first taken completely, and Python is
//! called with the client no longer borrowed.

mod queue;
mod replies;

use pyo3::PyTraverseError;
use pyo3::exceptions::{PyKeyError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyList};
use spacegrid_core::client::{Client, Request};
use spacegrid_core::frame::Opcode;
use spacegrid_core::frame::request::{Chain, Token, encode_chain};
use spacegrid_core::limits::PARTITIONS_MAX;

use self::queue::{checked_codec, key_bytes, value_bytes, with_token};
use self::replies::{About, Done, Group, MapFace, Waiter, report};
use crate::errors::{bad_frame, refused};

/// (stream, number, path, lowest)
type TokenArgument<'a> = (u64, u64, &'a [u8], u64);

#[pyclass(name = "Client", module = "spacegrid._core")]
pub struct PyClient {
    core: Client<Waiter>,
    maps: Vec<MapFace>,
    groups: Vec<Option<Group>>,
    free_groups: Vec<u32>,
    /// Kept between calls for its memory.
    done: Vec<Done>,
    /// What the operations were that the shell was told of last, by number.
    told: Vec<(u64, About)>,
}

#[pymethods]
impl PyClient {
    #[new]
    fn new(stream: u64, partition_count: u32) -> PyResult<Self> {
        Ok(Self {
            core: Client::new(stream, partition_count).map_err(refused)?,
            maps: Vec::new(),
            groups: Vec::new(),
            free_groups: Vec::new(),
            done: Vec::new(),
            told: Vec::new(),
        })
    }

    #[getter]
    fn stream(&self) -> u64 {
        self.core.stream()
    }

    #[getter]
    fn queued(&self) -> usize {
        self.core.queued()
    }

    #[getter]
    fn in_flight(&self) -> usize {
        self.core.in_flight()
    }

    fn in_flight_at(&self, slot: u16) -> usize {
        self.core.in_flight_at(slot)
    }

    #[getter]
    fn open(&self) -> usize {
        self.core.open()
    }

    #[pyo3(signature = (name, schema=0, codec=0, decode=None, persisted=false))]
    fn map(
        &mut self,
        name: &str,
        schema: u32,
        codec: u8,
        decode: Option<Py<PyAny>>,
        persisted: bool,
    ) -> PyResult<u16> {
        let codec = checked_codec(codec)?;
        let same = |face: &MapFace| {
            let decodes = match (&face.decode, &decode) {
                (Some(one), Some(other)) => one.is(other),
                (one, other) => one.is_none() && other.is_none(),
            };
            let form = face.schema == schema && face.codec == codec && decodes;
            face.name == name && form && face.persisted == persisted
        };
        if let Some(index) = self.maps.iter().position(same) {
            return Ok(index as u16);
        }
        let index = if persisted {
            self.core.add_persisted_map(name, schema)
        } else {
            self.core.add_map(name, schema)
        };
        let index = index.map_err(refused)?;
        self.maps.push(MapFace { name: name.to_owned(), schema, codec, decode, persisted });
        Ok(index)
    }

    fn set_frame_window(&mut self, frames: usize) {
        self.core.set_frame_window(frames);
    }

    fn set_routes(&mut self, revision: u64, slots: Vec<i32>) -> PyResult<()> {
        self.core.set_routes(revision, &slots).map_err(refused)
    }

    fn set_backups(&mut self, slots: Vec<Vec<u16>>) -> PyResult<()> {
        self.core.set_backups(&slots).map_err(refused)
    }

    fn turn_away(&mut self, slot: u16, now_ms: u64) {
        self.core.turn_away(slot, now_ms);
    }

    #[pyo3(signature = (map, key, waiter, timeout_ms, confirmed=false))]
    fn get(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        confirmed: bool,
    ) -> PyResult<u64> {
        let request = Request::new(Opcode::Get, map, key_bytes(key)?, &[]).confirmed(confirmed);
        self.queue(&request, waiter, timeout_ms)
    }

    #[pyo3(signature = (map, key, waiter, timeout_ms, confirmed=false))]
    fn get_entry(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        confirmed: bool,
    ) -> PyResult<u64> {
        let request = Request::new(Opcode::Get, map, key_bytes(key)?, &[]).confirmed(confirmed);
        self.core.queue(&request, Waiter::Shell(waiter), timeout_ms).map_err(refused)
    }

    fn get_stale(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        age_ms_max: u64,
    ) -> PyResult<u64> {
        let age = age_ms_max.to_le_bytes();
        let request = Request::new(Opcode::Get, map, key_bytes(key)?, &age).stale();
        self.core.queue(&request, Waiter::Shell(waiter), timeout_ms).map_err(refused)
    }

    #[pyo3(signature = (map, key, value, codec, waiter, timeout_ms, ttl_ms=0, if_absent=false,
                        version=None, token=None))]
    fn put(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        value: &[u8],
        codec: u8,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        ttl_ms: u64,
        if_absent: bool,
        version: Option<u64>,
        token: Option<TokenArgument<'_>>,
    ) -> PyResult<u64> {
        if if_absent && version.is_some() {
            return Err(PyValueError::new_err("if_absent and version exclude each other"));
        }
        let mut request = Request::new(Opcode::Put, map, key_bytes(key)?, value);
        request.codec = checked_codec(codec)?;
        request.expected = version;
        let request = with_token(request.with_ttl(ttl_ms).if_absent(if_absent), token);
        self.queue(&request, waiter, timeout_ms)
    }

    #[pyo3(signature = (map, key, waiter, timeout_ms, version=None, token=None))]
    fn delete(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        version: Option<u64>,
        token: Option<TokenArgument<'_>>,
    ) -> PyResult<u64> {
        let mut request = Request::new(Opcode::Delete, map, key_bytes(key)?, &[]);
        request.expected = version;
        self.queue(&with_token(request, token), waiter, timeout_ms)
    }

    #[pyo3(signature = (map, key, delta, waiter, timeout_ms, token=None))]
    fn incr(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        delta: i64,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        token: Option<TokenArgument<'_>>,
    ) -> PyResult<u64> {
        let delta = delta.to_le_bytes();
        let request = Request::new(Opcode::Incr, map, key_bytes(key)?, &delta);
        self.queue(&with_token(request, token), waiter, timeout_ms)
    }

    fn contains(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let request = Request::new(Opcode::Contains, map, key_bytes(key)?, &[]);
        self.queue(&request, waiter, timeout_ms)
    }

    #[pyo3(signature = (map, routing_key, arguments, waiter, timeout_ms, token=None, chain=None))]
    fn invoke(
        &mut self,
        map: u16,
        routing_key: &Bound<'_, PyAny>,
        arguments: &[u8],
        waiter: Py<PyAny>,
        timeout_ms: u64,
        token: Option<TokenArgument<'_>>,
        chain: Option<Vec<Vec<u8>>>,
    ) -> PyResult<u64> {
        let chain = encode_chain(&chain.unwrap_or_default()).map_err(refused)?;
        if token.is_none() && !chain.is_empty() {
            return Err(PyValueError::new_err("a chain needs a token"));
        }
        let mut request = Request::new(Opcode::Invoke, map, key_bytes(routing_key)?, arguments);
        request.codec = 1;
        if let Some((stream, number, path, lowest)) = token {
            let chain = Chain::decode(&chain).map_err(refused)?;
            request = request.with_token(Token { stream, number, path, lowest }, chain);
        }
        self.queue(&request, waiter, timeout_ms)
    }

    fn size(
        &mut self,
        map: u16,
        partition: u32,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let key = partition.to_le_bytes();
        let mut request = Request::new(Opcode::Size, map, &key, &[]);
        request.partition = Some(partition);
        self.queue(&request, waiter, timeout_ms)
    }

    fn scan(
        &mut self,
        map: u16,
        partition: u32,
        cursor: &[u8],
        limit: u32,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let key = partition.to_le_bytes();
        let value = [&limit.to_le_bytes(), cursor].concat();
        let mut request = Request::new(Opcode::Scan, map, &key, &value);
        request.partition = Some(partition);
        self.queue(&request, waiter, timeout_ms)
    }

    #[pyo3(signature = (map, keys, waiter, timeout_ms, confirmed=false))]
    fn get_many(
        &mut self,
        map: u16,
        keys: Vec<Bound<'_, PyAny>>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        confirmed: bool,
    ) -> PyResult<u64> {
        let request =
            |key| Ok(Request::new(Opcode::Get, map, key_bytes(key)?, &[]).confirmed(confirmed));
        self.queue_many(keys.iter().map(request), waiter, timeout_ms, false)
    }

    fn get_many_stale(
        &mut self,
        map: u16,
        keys: Vec<Bound<'_, PyAny>>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        age_ms_max: u64,
    ) -> PyResult<u64> {
        let age = age_ms_max.to_le_bytes();
        let request = |key| Ok(Request::new(Opcode::Get, map, key_bytes(key)?, &age).stale());
        self.queue_many(keys.iter().map(request), waiter, timeout_ms, true)
    }

    #[pyo3(signature = (map, keys, values, codec, waiter, timeout_ms, ttl_ms=0))]
    fn put_many(
        &mut self,
        map: u16,
        keys: Vec<Bound<'_, PyAny>>,
        values: Vec<Bound<'_, PyAny>>,
        codec: u8,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        ttl_ms: u64,
    ) -> PyResult<u64> {
        if keys.len() != values.len() {
            let (keys, values) = (keys.len(), values.len());
            return Err(PyValueError::new_err(format!("{keys} keys, but {values} values")));
        }
        let codec = checked_codec(codec)?;
        let request = |(key, value)| {
            let (key, value) = (key_bytes(key)?, value_bytes(value)?);
            let request = Request::new(Opcode::Put, map, key, value).with_ttl(ttl_ms);
            Ok(Request { codec, ..request })
        };
        self.queue_many(keys.iter().zip(&values).map(request), waiter, timeout_ms, false)
    }

    fn delete_many(
        &mut self,
        map: u16,
        keys: Vec<Bound<'_, PyAny>>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let request = |key| Ok(Request::new(Opcode::Delete, map, key_bytes(key)?, &[]));
        self.queue_many(keys.iter().map(request), waiter, timeout_ms, false)
    }

    fn about(&self, number: u64) -> Option<(&'static str, u16, u16)> {
        let at = self.told.binary_search_by_key(&number, |(number, _)| *number).ok()?;
        Some(self.told[at].1.tuple())
    }

    fn resend(&mut self, number: u64, waiter: Py<PyAny>, timeout_ms: u64) -> PyResult<()> {
        let queued = self.core.resend(number, Waiter::One(waiter), timeout_ms);
        queued.map_err(|_| PyKeyError::new_err(format!("request {number} is not kept as unknown")))
    }

    fn release(&mut self, number: u64) -> bool {
        self.core.release(number)
    }

    /// A number of a group cancels the group.
    fn cancel(slf: &Bound<'_, Self>, number: u64) -> bool {
        let mut client = slf.borrow_mut();
        let Some(waiter) = client.core.cancel(number) else { return false };
        let mut dropped = vec![waiter];
        if let Waiter::Member { group: id, .. } = dropped[0]
            && let Some(group) = client.groups[id as usize].take()
        {
            client.free_groups.push(id);
            for number in group.first..group.first + group.answers.len() as u64 {
                dropped.extend(client.core.cancel(number));
            }
            dropped.push(Waiter::One(group.waiter));
        }
        // Releasing a waiter may run Python code: not while the client is borrowed.
        drop(client);
        drop(dropped);
        true
    }

    fn take_frames<'py>(
        slf: &Bound<'py, Self>,
        now_ms: u64,
    ) -> PyResult<Vec<(u16, Bound<'py, PyBytes>)>> {
        let py = slf.py();
        let mut frames = Vec::new();
        let mut failed = None;
        slf.borrow_mut().core.take_frames(now_ms, |frame| {
            let written = PyBytes::new_with(py, frame.length, |out| {
                frame.write(out);
                Ok(())
            });
            match written {
                Ok(bytes) => frames.push((frame.slot, bytes)),
                Err(error) => failed = Some(error),
            }
        });
        failed.map_or(Ok(frames), Err)
    }

    fn on_frame<'py>(
        slf: &Bound<'py, Self>,
        slot: u16,
        frame: &[u8],
        now_ms: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let collected = slf.borrow_mut().collect(slf.py(), |core, done| {
            core.on_frame(slot, frame, now_ms, done).map_err(bad_frame)
        })?;
        report(slf, collected, false)
    }

    fn on_frame_futures<'py>(
        slf: &Bound<'py, Self>,
        slot: u16,
        frame: &[u8],
        now_ms: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let collected = slf.borrow_mut().collect(slf.py(), |core, done| {
            core.on_frame(slot, frame, now_ms, done).map_err(bad_frame)
        })?;
        report(slf, collected, true)
    }

    #[pyo3(signature = (slot, now_ms, sent=true))]
    fn on_disconnect(&mut self, slot: u16, now_ms: u64, sent: bool) {
        self.core.on_disconnect(slot, now_ms, sent);
    }

    fn expire<'py>(slf: &Bound<'py, Self>, now_ms: u64) -> PyResult<Bound<'py, PyList>> {
        let collected = slf.borrow_mut().collect(slf.py(), |core, done| {
            core.expire(now_ms, done);
            Ok(())
        })?;
        report(slf, collected, false)
    }

    fn next_event_ms(&self) -> Option<u64> {
        self.core.next_event_ms()
    }

    fn wants_routes(&self) -> bool {
        self.core.wants_routes()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for waiter in self.core.waiters() {
            if let Waiter::One(waiter) | Waiter::Shell(waiter) = waiter {
                visit.call(waiter)?;
            }
        }
        for group in self.groups.iter().flatten() {
            visit.call(&group.waiter)?;
        }
        for face in &self.maps {
            visit.call(&face.decode)?;
        }
        Ok(())
    }

    fn __clear__(&mut self) {
        let partition_count = self.core.partition_count().clamp(1, PARTITIONS_MAX);
        if let Ok(core) = Client::new(self.core.stream(), partition_count) {
            self.core = core;
        }
        self.groups.clear();
        self.maps.clear();
        self.done.clear();
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyClient>()
}
