"""The compiled core: hash ring, store, replicated log, batch frames, replica protocol."""

__version__: str

# ---- replica protocol: Node, Turn, Effects (rust/py/src/node.rs, turn.rs) ----

class FrameError(ValueError):
    """Bytes that are no valid frame: bad magic, length, checksum, or an operation past its limit."""

class KeyNotHere(LookupError):
    """A co-located read of a partition that this node is not the primary of (or that is stopped)."""

class WrongRoutingKey(ValueError):
    """A turn touched a key that does not belong to its own routing key."""

class TurnOver(RuntimeError):
    """A turn was used after finish() or fail()."""

# (partition, epoch, version, state, primary, in_sync, former, joining [(copy, session)],
#  tails [(copy, session, from_epoch, from_sequence)], target)
# state: 1 ok, 2 recovering, 3 unavailable, 4 lost. primary and target: 0 = none.
type TableEntry = tuple[
    int,
    int,
    int,
    int,
    int,
    list[int],
    list[int],
    list[tuple[int, int]],
    list[tuple[int, int, int, int]],
    int,
]
# (map, schema, key, value, codec, version, expires_at_ms)
type StoredEntry = tuple[str, int, bytes, bytes, int, int, int]
# (map, key, value or None for a delete, codec, version, expires_at_ms, expired)
type LogChange = tuple[str, bytes, bytes | None, int, int, int, bool]
# (epoch of ownership, first (epoch, sequence), last (epoch, sequence), record count, changes)
type LogBatch = tuple[int, tuple[int, int], tuple[int, int], int, list[LogChange]]
# (partition, role, epoch, version, commit_epoch, commit_sequence, entries, bytes)
# role: 0 none, 1 primary, 2 backup (in sync), 3 tail, 4 joining, 5 dormant
type Role = tuple[int, int, int, int, int, int, int, int]
# (partition, epoch, version, kind, copy, from_epoch, from_sequence); kind: 1 tail, 2 in_sync, 3 stopped
type ChangeRequest = tuple[int, int, int, int, int, int, int]

class Effects:
    """What the node wants done since the last take_effects()."""

    @property
    def client_frames(self) -> list[tuple[int, bytes]]:
        """(connection, reply frame); never more than FRAME_BYTES_HARD_MAX each."""

    @property
    def peer_frames(self) -> list[tuple[int, bytes]]:
        """(copy, peer frame), in the order in which they must be sent to that copy."""

    @property
    def turns(self) -> list[Turn]:
        """Turns to run at once; each must end with finish() or fail()."""

    @property
    def settled(self) -> list[int]:
        """Tickets of when_committed: positive when committed, negative when the record was cut."""

    @property
    def changes(self) -> list[ChangeRequest]:
        """Changes of the ownership table to ask the controller for; repeated until the table shows them."""

class Node:
    """The data plane of one node: every copy of a partition that it holds.

    Thread-safe. After a call from another thread the caller wakes the loop that calls take_effects().
    """

    def __init__(
        self,
        copy: int,
        partition_count: int,
        *,
        min_in_sync: int,
        quota_bytes: int = 0,
        log_bytes: int = 67_108_864,
        shared_sink: bool = False,
        local_sink: bool = False,
    ) -> None:
        """Create a node that holds nothing.

        Args:
            copy: Incarnation of this node, from 1; issued by the coordinator.
            partition_count: Partitions of the cluster, 1 to PARTITIONS_MAX.
            min_in_sync: Copies (in sync and tails) that must hold a write before it is acknowledged.
            quota_bytes: Memory of all tables; 0 is no limit.
            log_bytes: Memory of all logs; beyond it writes get BACKPRESSURE.
            shared_sink: Logs wait for the cursor "shared" of their partition's primary.
            local_sink: Logs wait for the cursor "local" of this node.
        Raises:
            ValueError: An argument outside its limits.
        """

    @property
    def copy(self) -> int: ...
    @property
    def partition_count(self) -> int: ...
    @property
    def revision(self) -> int:
        """Revision of the ownership table applied last."""

    # ownership
    def apply_table(self, revision: int, entries: list[TableEntry], now_ms: int) -> None:
        """Apply entries of the ownership table; an older epoch or version of an entry is ignored.

        Entries may be the whole table or those that changed. A partition not named keeps its state.
        """

    def load(
        self,
        partition: int,
        epoch: int,
        sequence: int,
        entries: list[StoredEntry],
        streams: bytes,
        last: bool,
    ) -> None:
        """Give a copy from disk, in as many calls as needed, before the first table; it is dormant.

        (epoch, sequence) is the position that the store was at; the table decides whether it counts.
        """

    def stop_all(self) -> None:
        """Refuse new requests on every partition (NOT_PRIMARY); what is appended still commits."""

    def idle(self) -> bool:
        """Nothing uncommitted, nothing waiting, no turn running."""

    # frames
    def on_client_frame(self, connection: int, frame: bytes, now_ms: int) -> int:
        """Execute one request frame.

        Returns:
            Number of operations in the frame.
        Raises:
            FrameError: Nothing was executed.
        """

    def close_connection(self, connection: int) -> None:
        """Forget the connection: its replies are dropped; what it asked for is still carried out."""

    def on_peer_frame(self, copy: int, frame: bytes, now_ms: int) -> None:
        """Take one frame from that copy. Raises FrameError; the caller drops the link."""

    def peer_up(self, copy: int) -> None:
        """A fresh outgoing link to that copy: records are sent again from what it acknowledged."""

    def peer_down(self, copy: int) -> None:
        """The outgoing link is gone: frames for that copy are dropped until peer_up."""

    def tick(self, now_ms: int) -> None:
        """Every 5 to 20 ms: commit positions, expiry, snapshot chunks, forgetting, change requests."""

    def take_effects(self) -> Effects | None:
        """All effects since the last call, or None. Never waits for a lock that a frame holds long."""

    # co-located reads: committed entries of a partition that this node is the primary of
    def read(self, map: str, key: bytes, now_ms: int) -> bytes | None:
        """Value of a committed entry, or None.

        Raises:
            KeyNotHere: This node is not the primary of the key's partition.
        """

    def read_entry(
        self, map: str, key: bytes, now_ms: int
    ) -> tuple[bytes, int, int, int] | None:
        """(value, codec, version, expires_at_ms) of a committed entry, or None. Raises as read."""

    def when_committed(self, partition: int, sequence: int, ticket: int) -> bool:
        """Whether that record is committed; if not, the ticket comes in Effects.settled.

        Args:
            partition: A partition that this node is the primary of.
            sequence: From Turn.barrier().
            ticket: Positive number of the caller's.
        """

    # pumps
    def set_cursor(self, name: str, partition: int, epoch: int, sequence: int) -> bool:
        """Start or move a cursor ("local" or "shared"): records up to that position are in the sink.

        Returns:
            False when that position is neither in the log nor its base: a gap; take a snapshot.
        """

    def advance_cursor(self, name: str, partition: int, epoch: int, sequence: int) -> bool:
        """As set_cursor, but never backwards; False also when the cursor does not exist."""

    def cursor(self, name: str, partition: int) -> tuple[int, int] | None:
        """(epoch, sequence) of a cursor, or None."""

    def drop_cursor(self, name: str, partition: int) -> None:
        """Remove a cursor; it no longer pins the log."""

    def read_log(
        self, name: str, partition: int, max_records: int, max_bytes: int
    ) -> LogBatch | None:
        """Committed records after the cursor, whole ones, at least one if there is any, or None."""

    def pump_ready(self, name: str) -> list[int]:
        """Partitions with committed records past the cursor, or with no cursor yet.

        "shared": partitions that this node is the primary of. "local": complete copies and tails.
        """

    def snapshot(
        self, partition: int, after: bytes, max_bytes: int
    ) -> tuple[tuple[int, int], list[StoredEntry], bytes]:
        """One chunk of the committed tables of a copy held here.

        Args:
            after: b"" for the first chunk, then what the previous call returned.
        Returns:
            Position it was read at, entries, and where to go on (b"" = end).
        Raises:
            KeyNotHere: No complete copy of that partition is held here.
        """

    def streams(self, partition: int) -> bytes:
        """Request results and floors of a partition, opaque, for load() after a clean stop."""

    def roles(self) -> list[Role]:
        """One row per partition that this node holds a copy of."""

    def status(self) -> dict[str, int]:
        """Counters: memory_bytes, quota_bytes, entries, log_bytes, primaries, copies, uncommitted, ..."""

class Turn:
    """One run of a handler for one routing key. Ends with finish() or fail(); both once.

    Dropping a turn without ending it fails it with UNKNOWN, so that its routing key is not held up.
    """

    @property
    def handler(self) -> str:
        """Unit and handler, as in "Shop.buy"."""

    @property
    def arguments(self) -> bytes: ...
    @property
    def routing_key(self) -> bytes: ...
    @property
    def partition(self) -> int: ...
    @property
    def token(self) -> tuple[int, int, bytes, int]:
        """(stream, number, path, lowest) of the call."""

    @property
    def chain(self) -> list[bytes]:
        """b"Unit\\0routing key" of each caller, outermost first; without this turn's own."""

    def get(self, map: str, key: bytes) -> bytes | None:
        """Value: the turn's own writes first, then uncommitted records, then tables.

        Raises:
            WrongRoutingKey: The key belongs to another routing key.
            TurnOver: The turn has ended.
        """

    def get_entry(self, map: str, key: bytes) -> tuple[bytes, int, int, int] | None:
        """(value, codec, version, expires_at_ms); version 0 for an entry this turn wrote."""

    def put(
        self, map: str, schema: int, key: bytes, value: bytes, codec: int, expires_at_ms: int = 0
    ) -> None:
        """Buffer a write. Raises WrongRoutingKey, TurnOver, ValueError (a limit, another schema)."""

    def delete(self, map: str, key: bytes) -> bool:
        """Buffer a delete; whether the entry was there."""

    def barrier(self) -> tuple[int, int] | None:
        """(partition, sequence) of the last uncommitted record that it has read, or None."""

    def finish(self, reply: bytes, now_ms: int) -> list[Turn]:
        """Append the turn's one record (none if it wrote nothing) and answer after commit.

        Args:
            reply: The handler's answer, one msgpack value, at most VALUE_BYTES_MAX.
        Returns:
            Turns that are next for this routing key, to run at once.
        """

    def fail(self, status: int, value: bytes, now_ms: int) -> list[Turn]:
        """Append nothing; answer with that status. Returns as finish."""
