//! `Node` and `Effects` for Python: the data plane of one node.
//!
//! Frames of more than a few operations are carried out detached from the interpreter, so other
//! threads run meanwhile. Co-located reads stay attached and try the partition's lock; only when it is
//! taken do they detach and wait. No lock of core is held while Python objects are made of more than
//! one entry.
//!
//! Over 500 lines in one room: it is one class, and its methods are few lines each.

use std::sync::Arc;
use std::time::Duration;

use pyo3::exceptions::{PyLookupError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyList, PyTuple};
use spacegrid_core::frame::peer::ChunkEntry;
use spacegrid_core::gate::Rights;
use spacegrid_core::limits::LOG_BYTES_DEFAULT;
use spacegrid_core::record::{Change, Position, decode_checked};
use spacegrid_core::replica::{
    Config, Effects as CoreEffects, LOCAL, Node as CoreNode, Ownership, Ring, Role, SHARED, State,
    TailCopy,
};
use spacegrid_net::boottime_ms;

use crate::errors::{bad_frame, refused};
use crate::turn::{turns_to_list, with_partition};

/// Frames below this many bytes are carried out without detaching: that would cost more.
const DETACHED_FRAME_BYTES: usize = 4096;

pyo3::create_exception!(
    spacegrid._core,
    KeyNotHere,
    PyLookupError,
    "A co-located read of a partition that this node is not the primary of (or that is stopped)."
);

// Python sees a default only when it is written out in the signature below.
const _: () = assert!(LOG_BYTES_DEFAULT == 67_108_864);

/// Adds the classes and the exception to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("KeyNotHere", module.py().get_type::<KeyNotHere>())?;
    module.add_class::<Effects>()?;
    module.add_class::<Node>()
}

/// What the node wants done since the last `take_effects()`.
#[pyclass(frozen, module = "spacegrid._core")]
pub(crate) struct Effects {
    client_frames: Py<PyList>,
    peer_frames: Py<PyList>,
    turns: Py<PyList>,
    settled: Py<PyList>,
    changes: Py<PyList>,
}

impl Effects {
    pub(crate) fn new(
        py: Python<'_>,
        core: &Arc<CoreNode>,
        effects: CoreEffects,
    ) -> PyResult<Self> {
        let changes = effects.changes.iter().map(|change| {
            let from = Position::unpack(change.from);
            (
                change.partition,
                change.epoch,
                change.version,
                change.kind as u8,
                change.copy,
                from.epoch,
                from.sequence,
            )
        });
        Ok(Self {
            client_frames: bytes_list(py, &effects.client_frames)?.unbind(),
            peer_frames: bytes_list(py, &effects.peer_frames)?.unbind(),
            turns: turns_to_list(py, core, effects.turns)?.unbind(),
            settled: PyList::new(py, effects.settled)?.unbind(),
            changes: PyList::new(py, changes)?.unbind(),
        })
    }
}

#[pymethods]
impl Effects {
    #[getter]
    fn client_frames(&self, py: Python<'_>) -> Py<PyList> {
        self.client_frames.clone_ref(py)
    }

    #[getter]
    fn peer_frames(&self, py: Python<'_>) -> Py<PyList> {
        self.peer_frames.clone_ref(py)
    }

    #[getter]
    fn turns(&self, py: Python<'_>) -> Py<PyList> {
        self.turns.clone_ref(py)
    }

    #[getter]
    fn settled(&self, py: Python<'_>) -> Py<PyList> {
        self.settled.clone_ref(py)
    }

    #[getter]
    fn changes(&self, py: Python<'_>) -> Py<PyList> {
        self.changes.clone_ref(py)
    }
}

type TableEntry =
    (u32, u32, u64, u8, u64, Vec<u64>, Vec<u64>, Vec<(u64, u64)>, Vec<(u64, u64, u32, u64)>, u64);
type StoredEntry<'py> = (String, u32, Bound<'py, PyBytes>, Bound<'py, PyBytes>, u8, u64, u64);

/// The data plane of one node.
#[pyclass(frozen, module = "spacegrid._core")]
pub(crate) struct Node {
    pub(crate) core: Arc<CoreNode>,
}

fn chunk_entries<'a>(entries: &'a [StoredEntry<'_>]) -> impl Iterator<Item = ChunkEntry<'a>> {
    entries.iter().map(|(map, schema, key, value, codec, version, expires)| ChunkEntry {
        map,
        schema: *schema,
        key: key.as_bytes(),
        value: Some(value.as_bytes()),
        codec: *codec,
        version: *version,
        expires_at_ms: *expires,
    })
}

fn ownership(entry: TableEntry) -> PyResult<(u32, Ownership)> {
    let (partition, epoch, version, state, primary, in_sync, former, joining, tails, target) =
        entry;
    let Some(state) = State::from_number(state) else {
        return Err(PyValueError::new_err(format!("state {state} is none of 1 to 4")));
    };
    let tails = tails
        .into_iter()
        .map(|(copy, session, epoch, sequence)| {
            Ok(TailCopy { copy, session, from: position(epoch, sequence)? })
        })
        .collect::<PyResult<_>>()?;
    Ok((
        partition,
        Ownership { epoch, version, state, primary, in_sync, former, joining, tails, target },
    ))
}

fn position(epoch: u32, sequence: u64) -> PyResult<Position> {
    use spacegrid_core::limits::{EPOCH_MAX, SEQUENCE_MAX};
    if epoch > EPOCH_MAX || sequence > SEQUENCE_MAX {
        return Err(PyValueError::new_err(format!(
            "position ({epoch}, {sequence}) is past the limit ({EPOCH_MAX}, {SEQUENCE_MAX})"
        )));
    }
    Ok(Position { epoch, sequence })
}

fn check_name(name: &str) -> PyResult<()> {
    if name == LOCAL || name == SHARED {
        return Ok(());
    }
    Err(PyValueError::new_err(format!("cursor {name:?} is neither \"{LOCAL}\" nor \"{SHARED}\"")))
}

fn bytes_list<'py>(py: Python<'py>, frames: &[(u64, Vec<u8>)]) -> PyResult<Bound<'py, PyList>> {
    PyList::new(py, frames.iter().map(|(to, frame)| (*to, PyBytes::new(py, frame))))
}

#[pymethods]
impl Node {
    #[new]
    #[pyo3(signature = (copy, partition_count, *, min_in_sync, quota_bytes = 0,
                        log_bytes = 67_108_864, shared_sink = false,
                        local_sink = false))]
    fn new(
        copy: u64,
        partition_count: u32,
        min_in_sync: usize,
        quota_bytes: u64,
        log_bytes: u64,
        shared_sink: bool,
        local_sink: bool,
    ) -> PyResult<Self> {
        let config = Config {
            copy,
            partition_count,
            min_in_sync,
            quota_bytes,
            log_bytes,
            shared_sink,
            local_sink,
        };
        Ok(Self { core: Arc::new(CoreNode::new(&config).map_err(refused)?) })
    }

    #[getter]
    fn copy(&self) -> u64 {
        self.core.settings().copy
    }

    #[getter]
    fn partition_count(&self) -> u32 {
        self.core.settings().partition_count
    }

    #[getter]
    fn revision(&self) -> u64 {
        self.core.settings().revision()
    }

    fn apply_table(
        &self,
        py: Python<'_>,
        revision: u64,
        entries: Vec<TableEntry>,
        now_ms: u64,
    ) -> PyResult<()> {
        let entries = entries.into_iter().map(ownership).collect::<PyResult<_>>()?;
        py.detach(|| self.core.apply_table(revision, entries, now_ms));
        Ok(())
    }

    fn load(
        &self,
        partition: u32,
        epoch: u32,
        sequence: u64,
        entries: Vec<StoredEntry<'_>>,
        streams: &[u8],
        last: bool,
    ) -> PyResult<()> {
        // Entries may come in any number of calls; the copy is dormant from the first one on.
        let _ = last;
        let entries = chunk_entries(&entries);
        let position = position(epoch, sequence)?;
        self.core.load(partition, position, entries, streams).map_err(refused)
    }

    fn reload(
        &self,
        partition: u32,
        epoch: u32,
        sequence: u64,
        entries: Vec<StoredEntry<'_>>,
    ) -> PyResult<()> {
        let position = position(epoch, sequence)?;
        self.core.reload(partition, position, chunk_entries(&entries)).map_err(refused)
    }

    fn unload(&self, partition: u32) {
        self.core.unload(partition);
    }

    fn limit_transfers(&self, bytes_per_s: u64) {
        self.core.limit_transfers(bytes_per_s);
    }

    fn require_lease(&self) {
        self.core.require_lease();
    }

    #[pyo3(signature = (revision, until_ms, now_ms))]
    fn grant_lease(&self, revision: u64, until_ms: u64, now_ms: u64) -> bool {
        self.core.grant_lease(revision, until_ms, now_ms)
    }

    fn stop_all(&self) {
        self.core.stop_all();
    }

    fn idle(&self, py: Python<'_>) -> bool {
        py.detach(|| self.core.idle())
    }

    #[pyo3(signature = (connection, frame, now_ms, rights = 3))]
    fn on_client_frame(
        &self,
        py: Python<'_>,
        connection: u64,
        frame: &[u8],
        now_ms: u64,
        rights: u8,
    ) -> PyResult<usize> {
        let rights = Rights::from_bits(rights);
        let count = if frame.len() < DETACHED_FRAME_BYTES {
            self.core.on_client_frame_as(connection, rights, frame, now_ms)
        } else {
            py.detach(|| self.core.on_client_frame_as(connection, rights, frame, now_ms))
        };
        count.map_err(bad_frame)
    }

    fn close_connection(&self, connection: u64) {
        self.core.close_connection(connection);
    }

    fn on_peer_frame(&self, py: Python<'_>, copy: u64, frame: &[u8], now_ms: u64) -> PyResult<()> {
        let result = if frame.len() < DETACHED_FRAME_BYTES {
            self.core.on_peer_frame(copy, frame, now_ms)
        } else {
            py.detach(|| self.core.on_peer_frame(copy, frame, now_ms))
        };
        result.map_err(bad_frame)
    }

    fn peer_up(&self, py: Python<'_>, copy: u64) {
        py.detach(|| self.core.peer_up(copy));
    }

    fn peer_down(&self, py: Python<'_>, copy: u64) {
        py.detach(|| self.core.peer_down(copy));
    }

    fn tick(&self, py: Python<'_>, now_ms: u64) {
        py.detach(|| self.core.tick(now_ms));
    }

    #[pyo3(signature = (peers = true, boot_ms = None))]
    fn take_effects(
        &self,
        py: Python<'_>,
        peers: bool,
        boot_ms: Option<u64>,
    ) -> PyResult<Option<Effects>> {
        let clock = || boot_ms.unwrap_or_else(boottime_ms);
        let Some(effects) = self.core.take_effects(peers, clock) else { return Ok(None) };
        Effects::new(py, &self.core, effects).map(Some)
    }

    fn read<'py>(
        &self,
        py: Python<'py>,
        map: &str,
        key: &[u8],
        now_ms: u64,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let index = self.core.partition_of(key);
        // The value is copied once, straight from the table into the object that Python gets.
        if let Some(Some(partition)) = self.core.try_partition(index) {
            let entry =
                partition.read_committed(map, key, now_ms).ok_or_else(|| not_here(index))?;
            return Ok(entry.map(|entry| PyBytes::new(py, entry.value)));
        }
        Ok(self.read_waiting(py, index, map, key, now_ms)?.map(|entry| PyBytes::new(py, &entry.0)))
    }

    fn read_entry<'py>(
        &self,
        py: Python<'py>,
        map: &str,
        key: &[u8],
        now_ms: u64,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        let index = self.core.partition_of(key);
        let Some((value, codec, version, expires)) =
            self.read_waiting(py, index, map, key, now_ms)?
        else {
            return Ok(None);
        };
        (PyBytes::new(py, &value), codec, version, expires).into_pyobject(py).map(Some)
    }

    fn when_committed(&self, partition: u32, sequence: u64, ticket: i64) -> PyResult<bool> {
        if ticket <= 0 {
            return Err(PyValueError::new_err(format!("ticket {ticket} is not positive")));
        }
        Ok(self.core.when_committed(partition, sequence, ticket))
    }

    fn set_cursor(
        &self,
        py: Python<'_>,
        name: &str,
        partition: u32,
        epoch: u32,
        sequence: u64,
    ) -> PyResult<bool> {
        check_name(name)?;
        let at = position(epoch, sequence)?;
        let set = |mut partition: parking_lot::MutexGuard<
            '_,
            spacegrid_core::replica::Partition,
        >| { partition.set_cursor(name, at) };
        Ok(with_partition(py, &self.core, partition, set).unwrap_or(false))
    }

    fn set_persisted(
        &self,
        py: Python<'_>,
        partition: u32,
        epoch: u32,
        sequence: u64,
    ) -> PyResult<()> {
        let at = position(epoch, sequence)?;
        py.detach(|| self.core.set_persisted(partition, at));
        Ok(())
    }

    fn shared_may_read(&self, py: Python<'_>, partition: u32, sequence: u64) -> bool {
        with_partition(py, &self.core, partition, |partition| partition.shared_may_read(sequence))
            .unwrap_or(false)
    }

    fn wait_local(&self, py: Python<'_>, timeout_s: f64) -> bool {
        let timeout = Duration::try_from_secs_f64(timeout_s).unwrap_or(Duration::ZERO);
        let doorbell = self.core.doorbell();
        py.detach(|| {
            let mut ring = doorbell.ring.lock();
            if *ring == Ring::Silent {
                doorbell.bell.wait_for(&mut ring, timeout);
            }
            std::mem::take(&mut *ring) == Ring::Asked
        })
    }

    fn wake_local(&self) {
        self.core.doorbell().ring(Ring::Woken);
    }

    fn advance_cursor(
        &self,
        py: Python<'_>,
        name: &str,
        partition: u32,
        epoch: u32,
        sequence: u64,
    ) -> PyResult<bool> {
        check_name(name)?;
        let at = position(epoch, sequence)?;
        let advanced = with_partition(py, &self.core, partition, |mut partition| {
            partition.advance_cursor(name, at)
        });
        Ok(advanced.unwrap_or(false))
    }

    fn cursor(&self, py: Python<'_>, name: &str, partition: u32) -> PyResult<Option<(u32, u64)>> {
        check_name(name)?;
        let cursor = with_partition(py, &self.core, partition, |partition| partition.cursor(name));
        Ok(cursor.flatten().map(|position| (position.epoch, position.sequence)))
    }

    fn drop_cursor(&self, py: Python<'_>, name: &str, partition: u32) -> PyResult<()> {
        check_name(name)?;
        with_partition(py, &self.core, partition, |mut partition| partition.drop_cursor(name));
        Ok(())
    }

    fn read_log<'py>(
        &self,
        py: Python<'py>,
        name: &str,
        partition: u32,
        max_records: usize,
        max_bytes: usize,
    ) -> PyResult<Option<Bound<'py, PyTuple>>> {
        check_name(name)?;
        let batch = with_partition(py, &self.core, partition, |partition| {
            partition.read_log(name, max_records, max_bytes)
        });
        let Some(batch) = batch.flatten() else { return Ok(None) };
        let changes = PyList::empty(py);
        for (position, bytes) in &batch.records {
            let record = decode_checked(bytes).map_err(refused)?;
            for change in record.changes() {
                changes.append(log_change(py, &change, position.pack())?)?;
            }
        }
        let place = |(position, _): &(Position, _)| (position.epoch, position.sequence);
        let first = batch.records.first().map(place);
        let last = batch.records.last().map(place);
        (batch.epoch, first, last, batch.records.len(), changes).into_pyobject(py).map(Some)
    }

    fn pump_ready(&self, py: Python<'_>, name: &str) -> PyResult<Vec<u32>> {
        check_name(name)?;
        Ok(py.detach(|| self.core.pump_ready(name)))
    }

    fn snapshot<'py>(
        &self,
        py: Python<'py>,
        partition: u32,
        after: &[u8],
        max_bytes: usize,
    ) -> PyResult<Bound<'py, PyTuple>> {
        let chunk = py.detach(|| {
            self.core
                .partition(partition)
                .and_then(|partition| partition.snapshot(after, max_bytes))
        });
        let (position, entries, next) = chunk.ok_or_else(|| not_here(partition))?;
        let list = PyList::empty(py);
        for entry in &entries {
            list.append((
                &entry.map,
                entry.schema,
                PyBytes::new(py, &entry.key),
                PyBytes::new(py, &entry.value),
                entry.codec,
                entry.version,
                entry.expires_at_ms,
            ))?;
        }
        ((position.epoch, position.sequence), list, PyBytes::new(py, &next)).into_pyobject(py)
    }

    fn streams<'py>(&self, py: Python<'py>, partition: u32) -> Bound<'py, PyBytes> {
        let streams = py
            .detach(|| self.core.partition(partition).map(|partition| partition.export_streams()));
        PyBytes::new(py, &streams.unwrap_or_default())
    }

    fn roles<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyList>> {
        let rows = py.detach(|| self.core.roles());
        PyList::new(
            py,
            rows.iter().map(|row| {
                (
                    row.partition,
                    row.role as u8,
                    row.epoch,
                    row.version,
                    row.commit.epoch,
                    row.commit.sequence,
                    row.entries,
                    row.bytes,
                )
            }),
        )
    }

    fn log_ends(&self) -> Vec<(u32, u32, u64)> {
        let held = |index: u32| {
            let partition = self.core.partition(index)?;
            let last = partition.log().last();
            (partition.role() != Role::None).then_some((index, last.epoch, last.sequence))
        };
        (0..self.core.settings().partition_count).filter_map(held).collect()
    }

    fn log_positions(&self, partition: u32, first: u64, last: u64) -> Vec<(u32, u64)> {
        let Some(partition) = self.core.partition(partition) else { return Vec::new() };
        let log = partition.log();
        let held = first.max(log.base().sequence)..=last.min(log.last().sequence);
        held.filter_map(|sequence| log.position_of(sequence))
            .map(|position| (position.epoch, position.sequence))
            .collect()
    }

    fn check(&self, py: Python<'_>) {
        py.detach(|| self.core.check());
    }

    fn status<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let status = py.detach(|| self.core.status());
        let dict = PyDict::new(py);
        for (name, value) in [
            ("memory_bytes", status.memory_bytes),
            ("quota_bytes", status.quota_bytes),
            ("entries", status.entries),
            ("log_bytes", status.log_bytes),
            ("log_limit_bytes", status.log_limit_bytes),
            ("primaries", status.primaries),
            ("copies", status.copies),
            ("uncommitted", status.uncommitted),
            ("waiting", status.waiting),
            ("turns", status.turns),
            ("streams", status.streams),
            ("faults", status.faults),
            ("lease_until_ms", status.lease_until_ms),
            ("lease_revision", status.lease_revision),
            ("withheld", status.withheld),
            ("transfers", status.transfers.copies),
            ("transfer_done_bytes", status.transfers.done_bytes),
            ("transfer_left_bytes", status.transfers.left_bytes),
            ("transfer_sent_bytes", status.transfer_sent_bytes),
            ("transfer_bytes_per_s", status.transfer_bytes_per_s),
        ] {
            dict.set_item(name, value)?;
        }
        Ok(dict)
    }
}

type ReadEntry = (Box<[u8]>, u8, u64, u64);

impl Node {
    fn read_waiting(
        &self,
        py: Python<'_>,
        index: u32,
        map: &str,
        key: &[u8],
        now_ms: u64,
    ) -> PyResult<Option<ReadEntry>> {
        with_partition(py, &self.core, index, |partition| {
            debug_assert!(partition.role() != Role::None || partition.store().is_empty());
            partition.read_committed(map, key, now_ms).map(|entry| {
                entry.map(|entry| {
                    (entry.value.into(), entry.codec, entry.version, entry.expires_at_ms)
                })
            })
        })
        .flatten()
        .ok_or_else(|| not_here(index))
    }
}

fn not_here(partition: u32) -> PyErr {
    KeyNotHere::new_err(format!("partition {partition} is not served by this node"))
}

fn log_change<'py>(
    py: Python<'py>,
    change: &Change<'_>,
    version: u64,
) -> PyResult<Bound<'py, PyTuple>> {
    match *change {
        Change::Put { map, schema, key, value, codec, expires_at_ms } => (
            map,
            schema,
            PyBytes::new(py, key),
            Some(PyBytes::new(py, value)),
            codec,
            version,
            expires_at_ms,
            false,
        )
            .into_pyobject(py),
        Change::Delete { map, key, expired } => (
            map,
            0_u32,
            PyBytes::new(py, key),
            None::<Bound<'py, PyBytes>>,
            0_u8,
            version,
            0_u64,
            expired,
        )
            .into_pyobject(py),
    }
}
