"""The compiled core: hash ring, store, replicated log, batch frames, replica protocol."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias, final

__version__: str

# ---- keys and routing (rust/py/src/keys.rs) ----

def hash64(data: bytes, seed: int = 0) -> int:
    """Hash bytes with murmur3 x64 128 and return the first 64 bits.

    Args:
        data: Any bytes.
        seed: 0 to 2**32 - 1; routing always uses 0.

    Returns:
        The same number as `mmh3.hash64(data, seed, signed=False)[0]`.

    Cost: about 10 ns for 16 bytes.   Source: tests/vectors/hash.txt.
    """

def routing_key(key: bytes) -> bytes:
    """Return the part of an encoded key that decides its partition.

    A tuple key routes by its first part; then, as in Redis, by what is inside the first braces when
    that is not empty.

    Args:
        key: An encoded key (see `encode_key`), or any bytes.

    Returns:
        The routing key; `key` itself when nothing narrows it.
    """

def partition_of(key: bytes, partition_count: int) -> int:
    """Return the partition of an encoded key.

    Args:
        key: An encoded key.
        partition_count: 1 to 65,535, the same for the whole life of a space.

    Returns:
        `hash64(routing_key(key)) % partition_count`.

    Raises:
        ValueError: `partition_count` is out of its bounds.
    """

def encode_key(key: str | bytes | int | tuple[str | bytes | int, ...]) -> bytes:
    """Encode a key for the wire and the store.

    Text becomes UTF-8, bytes stay, an integer becomes decimal text, a tuple its parts behind 0xC1,
    each with its length.

    Args:
        key: The key; a tuple has 1 to 32 parts, none of them a tuple.

    Returns:
        1 to 4,096 bytes.

    Raises:
        TypeError: Some other type (True and False are not keys).
        ValueError: The key is empty or too long, or has too many parts.
    """

def split_key(key: bytes) -> list[bytes] | None:
    """Split an encoded tuple key into its parts.

    Args:
        key: An encoded key.

    Returns:
        The encoded parts, or None when `key` is not a tuple key from end to end.
    """

# ---- the hash ring (rust/py/src/ring.rs) ----

@final
class HashRing:
    """A consistent hash ring with virtual nodes: which node for this key.

    Each node of weight 1 owns 150 points on a circle of hashes; a key belongs to the node of the
    first point at or after its own hash. A node that joins takes keys only for itself, one that
    leaves gives up only its own. Rings with the same nodes agree, in whatever order they were
    built.

        ring = HashRing(["red", "green", "blue"])
        node = ring.get_node("customer-42")
        first, second = ring.get_nodes("customer-42", 2)

    Balance follows the number of points: with 150, the fullest of ten nodes has about 1.1 times the
    mean. Keys are hashed whole; braces and tuples mean nothing here. Safe to use from many threads.
    """

    def __new__(
        cls,
        nodes: Iterable[str] | Mapping[str, float] | None = None,
        *,
        virtual_nodes: int = 150,
    ) -> Self:
        """Build a ring.

        Args:
            nodes: Names, or names with weights. Adding them here costs one pass in all.
            virtual_nodes: Points of a node of weight 1, 1 to 10,000.

        Raises:
            ValueError: A name is empty, repeated or over 255 bytes, a weight is not within 0.001 to
                1,000, or `virtual_nodes` is out of its bounds.
        """

    def add_node(self, name: str, weight: float = 1.0) -> None:
        """Add a node.

        Args:
            name: Its name, 1 to 255 bytes of UTF-8.
            weight: Its share relative to the others, 0.001 to 1,000.

        Raises:
            ValueError: The ring has the node already, or an argument is out of its bounds.

        Cost: one pass over all points.
        """

    def remove_node(self, name: str) -> None:
        """Remove a node.

        Args:
            name: Its name.

        Raises:
            KeyError: The ring has no such node.

        Cost: one pass over all points.
        """

    def get_node(self, key: str | bytes) -> str:
        """Return the node that a key belongs to.

        Args:
            key: Text (hashed as UTF-8) or bytes.

        Returns:
            The name, as the same object the node was added with.

        Raises:
            LookupError: The ring has no nodes.
            TypeError: The key is neither text nor bytes.

        Cost: about 60 ns; allocates nothing.
        """

    def get_nodes(self, key: str | bytes, n: int) -> list[str]:
        """Return the first distinct nodes from a key on.

        Args:
            key: Text or bytes.
            n: How many nodes, 0 or more.

        Returns:
            `n` names, the key's own node first; all nodes when the ring has fewer.

        Raises:
            LookupError: The ring has no nodes.
            TypeError: The key is neither text nor bytes.
        """

    def get_node_batch(self, keys: Iterable[str | bytes]) -> list[str]:
        """Return the node of each of many keys.

        The lookups of 256 keys and more run without the interpreter lock.

        Args:
            keys: Keys; a list or a tuple is fastest.

        Returns:
            One name per key, in the same order.

        Raises:
            LookupError: The ring has no nodes.
            TypeError: `keys` is one key, or holds something that is neither text nor bytes.

        Cost: about 20 ns per key.
        """

    @property
    def nodes(self) -> list[str]:
        """The names of the nodes, in the order they were added; a place that became free is
        reused."""

    @property
    def weights(self) -> dict[str, float]:
        """The weights of the nodes by name, in the order of `nodes`."""

    @property
    def virtual_nodes(self) -> int:
        """Points of a node of weight 1."""

    def __len__(self) -> int: ...
    def __contains__(self, name: object, /) -> bool: ...

# ---- placement of partitions (rust/py/src/assign.rs) ----

_AssignNode: TypeAlias = str | tuple[str] | tuple[str, float] | tuple[str, float, str | None]

def assign(
    partition_count: int,
    copies: int,
    nodes: Sequence[_AssignNode],
    current: Sequence[Sequence[int]] | None = None,
) -> list[list[int]]:
    """Assign partitions to nodes: balanced to the last copy, with the fewest moves.

    Every node gets its share of the copies by weight, rounded down or up, and its part of the
    primaries likewise. Copies of a partition are on distinct nodes, and in distinct zones where
    there are enough. A first placement follows the hash ring; later ones keep what is there.

    Args:
        partition_count: 1 to 65,535.
        copies: Copies of each partition, 1 or more; as many as there are nodes at most.
        nodes: Names, with weight (0.001 to 1,000; 1 by default) and zone where there are any.
            The order matters only to break ties: pass the same one every time.
        current: The holders of each partition now, as indexes into `nodes`, primary first; a
            negative index is a node that is gone. None for a first placement.

    Returns:
        The holders of each partition as indexes into `nodes`, primary first. The same arguments
        always give the same answer.

    Raises:
        ValueError: A count or weight is out of its bounds, a name is repeated, or `current` does
            not fit the other arguments.

    Cost: milliseconds for 4,096 partitions on 100 nodes; runs without the interpreter lock.
    """

# ---- replica protocol: Node, Turn, Effects (rust/py/src/node.rs, turn.rs) ----

class FrameError(ValueError):
    """Bytes that are no valid frame: bad magic, length, checksum, or an operation past its
    limit."""

class KeyNotHere(LookupError):
    """A co-located read of a partition that this node is not the primary of (or that is
    stopped)."""

class WrongRoutingKey(ValueError):
    """A turn touched a key that does not belong to its own routing key."""

class TurnOver(RuntimeError):
    """A turn was used after finish() or fail(), or after its partition moved: it writes nothing."""

# (partition, epoch, version, state, primary, in_sync, former, joining [(copy, session)],
#  tails [(copy, session, from_epoch, from_sequence)], target)
# state: 1 ok, 2 recovering, 3 unavailable, 4 lost. primary and target: 0 = none.
TableEntry: TypeAlias = tuple[
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
StoredEntry: TypeAlias = tuple[str, int, bytes, bytes, int, int, int]
# (map, schema (0 for a delete), key, value or None for a delete, codec, version, expires_at_ms,
# expired); version is the packed position of the change's record, for a delete as well
LogChange: TypeAlias = tuple[str, int, bytes, bytes | None, int, int, int, bool]
# (epoch of ownership, first (epoch, sequence), last (epoch, sequence), record count, changes)
LogBatch: TypeAlias = tuple[int, tuple[int, int], tuple[int, int], int, list[LogChange]]
# (partition, role, epoch, version, commit_epoch, commit_sequence, entries, bytes)
# role: 0 none, 1 primary, 2 backup (in sync), 3 tail, 4 joining, 5 dormant
Role: TypeAlias = tuple[int, int, int, int, int, int, int, int]
# (partition, epoch, version, kind, copy, from_epoch, from_sequence); kind: 1 tail, 2 in_sync, 3
# stopped, 4 shrink, 5 recover
ChangeRequest: TypeAlias = tuple[int, int, int, int, int, int, int]

@final
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
        """Changes of the ownership table to ask the controller for; repeated until the table shows
        them."""

@final
class Net:
    """The port of a node, its links to others, and the effects of its core, on a thread of their
    own.

    Frames of clients and of other nodes never touch Python. Every other call goes on, as it is, to
    the server behind. Thread-safe.
    """

    def __new__(
        cls,
        listen: str,
        upstream: str | Path,
        gate: Gate | None = None,
        tls: tuple[bytes, bytes, bytes] | None = None,
        busy_poll_us: int = 0,
    ) -> Self:
        """Bind host:port and start the thread.

        Args:
            listen: host:port; port 0 takes any free one.
            upstream: Unix socket on which the server behind listens; its name may be removed once
                this returns.
            gate: Decides about each call; None: everyone who reaches the port is let in.
            tls: PEM of the authority's certificate, the node's own, and its key; with `gate` only.
            busy_poll_us: Microseconds that the thread looks for more frames before it sleeps.

        Raises:
            OSError: The address can't be bound, or nobody listens on the socket.
            ValueError: One of `gate` and `tls` without the other, or PEM that can't be used.
        """

    def set_tls(self, tls: tuple[bytes, bytes, bytes]) -> None:
        """Show other certificates to connections from now on.

        Raises:
            ValueError: PEM that can't be used; nothing has changed.
        """

    @property
    def port(self) -> int:
        """The port that is bound."""

    def fileno(self) -> int:
        """File descriptor that is readable when there is something to take()."""

    def join(self, node: Node, cluster_id: bytes, name: str, incarnation: int) -> None:
        """The node has joined its cluster: carry out its effects and let it tick, from now on.

        Raises:
            RuntimeError: One has already.
        """

    def set_serving(self, serving: bool) -> None:
        """Let frames of clients and other nodes in, or refuse them (UNAVAILABLE)."""

    def link(self, peers: list[tuple[str, str, int]]) -> None:
        """Link to exactly these nodes: (name, address, incarnation) each; this one is left out."""

    def beat(self, heart: Heart, peers: list[tuple[str, str, int]]) -> None:
        """Send heartbeats to exactly these nodes, as with link(); leases go to the node at once."""

    def wake(self) -> None:
        """There may be effects: somebody has called the node. Costs one system call at most."""

    def open_local(self) -> int:
        """Number a connection inside this process; its replies come with take()."""

    def take(self) -> tuple[Effects | None, list[tuple[str, str]], str | None]:
        """Take what waits for Python: effects without peer frames, lines for the log as (level,
        text), and the words of a panic that ended the thread."""

    def close(self) -> None:
        """Close port and links and end the thread; replies that are there still leave."""

@final
class FrameLink:
    """A client's link to one node (Data.Stream), without the socket.

    Whoever owns the socket hands in what came from it and sends what output() returns, after each
    call. Nothing here waits. Thread-safe.
    """

    def __new__(cls, address: str, cluster_id: bytes, authorization: str | None = None) -> Self:
        """Begin a link; the first output opens it, and frames may be sent at once.

        Args:
            address: host:port of the node, for the call's head only.
            cluster_id: The cluster expected; empty for any.
            authorization: The header of that name.

        Raises:
            ValueError: The address is none, or the header can be none.
        """

    def send(self, frame: bytes) -> None:
        """Queue a request frame; dropped once the link is down."""

    def receive(self, data: bytes) -> list[bytes]:
        """Take bytes from the socket; the reply frames that are whole now."""

    def receive_end(self) -> None:
        """The socket has ended."""

    def output(self) -> bytes:
        """Bytes for the socket, as far as the node takes more; may be empty."""

    def ping(self) -> bool:
        """Ask for a sign of life. False: the last question has found no answer."""

    @property
    def down(self) -> str | None:
        """Why the link has ended; None while it has not."""

    @property
    def refused(self) -> bool:
        """Whether the node did not let the stream in, so that it has taken no frame of it."""

    @property
    def status(self) -> int | None:
        """The gRPC status that the node ended it with; None where there was none."""

@final
class Node:
    """The data plane of one node: every copy of a partition that it holds.

    Thread-safe. After a call from another thread the caller wakes the loop that calls
    take_effects().
    """

    def __new__(
        cls,
        copy: int,
        partition_count: int,
        *,
        min_in_sync: int,
        quota_bytes: int = 0,
        log_bytes: int = 67_108_864,
        shared_sink: bool = False,
        local_sink: bool = False,
    ) -> Self:
        """Create a node that holds nothing.

        Args:
            copy: Incarnation of this node, from 1; issued by the coordinator.
            partition_count: Partitions of the cluster, 1 to PARTITIONS_MAX.
            min_in_sync: Copies (in sync and tails) that must hold a write before it is
            acknowledged. quota_bytes: Memory of all tables; 0 is no limit.
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

        (epoch, sequence) is the position that the store was at; the table decides whether it
        counts.
        """

    def reload(self, partition: int, epoch: int, sequence: int, entries: list[StoredEntry]) -> None:
        """Give what a sink has of a partition that nobody serves; dormant until the table names it.

        Args:
            partition: Which.
            epoch: Of the position that the sink holds.
            sequence: Of that position.
            entries: All of them; they do not expire.

        Raises:
            ValueError: It is served, or this node has a copy of it already.
        """

    def unload(self, partition: int) -> None:
        """Forget what was reloaded, or came from disk while others serve it.

        What the table has taken on stays.
        """

    def limit_transfers(self, bytes_per_s: int) -> None:
        """Send snapshots of at most so many bytes in a second to all copies together; 0: no bound.

        Records are not held back: commits wait for them.
        """

    def require_lease(self) -> None:
        """From now on answers need a lease; before, and on a lone node, it is endless."""

    def grant_lease(self, revision: int, until_ms: int, now_ms: int) -> bool:
        """Take a grant of the controller; whether it counts, which needs its revision applied.

        Args:
            revision: Of the table that the grant names.
            until_ms: Its end on CLOCK_BOOTTIME, counted from before the request it answers.
            now_ms: CLOCK_BOOTTIME after the grant came. When the lease was over by then, answers
                that wait in the node become UNKNOWN: they may have been computed without one.
        """

    def stop_all(self) -> None:
        """Refuse new requests on every partition (NOT_PRIMARY); what is appended still commits."""

    def idle(self) -> bool:
        """Nothing uncommitted, nothing waiting, no turn running."""

    # frames
    def on_client_frame(self, connection: int, frame: bytes, now_ms: int, rights: int = 3) -> int:
        """Execute one request frame.

        Args:
            connection: Where the replies go.
            frame: The bytes.
            now_ms: The time.
            rights: What the caller may do: 1 read, 2 write and call. An operation outside them is
                answered with PERMISSION.

        Returns:
            Number of operations in the frame.

        Raises:
            FrameError: Nothing was executed.
        """

    def close_connection(self, connection: int) -> None:
        """Forget the connection: its replies are dropped; what it asked for is still carried
        out."""

    def on_peer_frame(self, copy: int, frame: bytes, now_ms: int) -> None:
        """Take one frame from that copy. Raises FrameError; the caller drops the link."""

    def peer_up(self, copy: int) -> None:
        """A fresh outgoing link to that copy: records are sent again from what it acknowledged."""

    def peer_down(self, copy: int) -> None:
        """The outgoing link is gone: frames for that copy are dropped until peer_up."""

    def tick(self, now_ms: int) -> None:
        """Every 5 to 20 ms: commit positions, expiry, snapshot chunks, forgetting, change
        requests."""

    def take_effects(self, peers: bool = True, boot_ms: int | None = None) -> Effects | None:
        """All effects since the last call, or None. Never waits for a lock that a frame holds
        long.

        Args:
            peers: Also what other copies are owed.
            boot_ms: Time that leases are counted in, as it is after the answers were computed;
                None reads CLOCK_BOOTTIME. Without a valid lease then, answers come as UNKNOWN.
        """

    # co-located reads: committed entries of a partition that this node is the primary of
    def read(self, map: str, key: bytes, now_ms: int) -> bytes | None:
        """Value of a committed entry, or None.

        Raises:
            KeyNotHere: This node is not the primary of the key's partition.
        """

    def read_entry(self, map: str, key: bytes, now_ms: int) -> tuple[bytes, int, int, int] | None:
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
        """Start or move a cursor ("local" or "shared"): records up to that position are in the
        sink.

        Returns:
            False when that position is neither in the log nor its base: a gap; take a snapshot.
        """

    def advance_cursor(self, name: str, partition: int, epoch: int, sequence: int) -> bool:
        """As set_cursor, but never backwards; False also when the cursor does not exist."""

    def cursor(self, name: str, partition: int) -> tuple[int, int] | None:
        """(epoch, sequence) of a cursor, or None."""

    def set_persisted(self, partition: int, epoch: int, sequence: int) -> None:
        """Say that this node's own disk has the partition, fsynced, up to that position.

        Answers that waited for it come with the next effects. A position that is not in the log is
        ignored.
        """

    def shared_may_read(self, partition: int, sequence: int) -> bool:
        """Whether every in-sync copy that has a disk has fsynced up to there."""

    def wait_local(self, timeout_s: float) -> bool:
        """Wait, detached, until `wake_local` is called or an answer waits for this node's disk.

        Returns:
            Whether an answer waits.
        """

    def wake_local(self) -> None:
        """End `wait_local`, the one under way or the next."""

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

    def log_ends(self) -> list[tuple[int, int, int]]:
        """(partition, epoch, sequence) of the last record of every copy held here, committed or
        not; for tests."""

    def log_positions(self, partition: int, first: int, last: int) -> list[tuple[int, int]]:
        """(epoch, sequence) of the records from `first` to `last` that the log of a copy held here
        still has, committed or not; for tests."""

    def check(self) -> None:
        """Assert every invariant of every partition, for tests; a broken one panics.

        Cost: one pass over all logs.
        """

    def status(self) -> dict[str, int]:
        """Counters: memory_bytes, quota_bytes, entries, log_bytes, primaries, copies, uncommitted,
        ..."""

@final
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
        """Buffer a write. Raises WrongRoutingKey, TurnOver, ValueError (a limit, another
        schema)."""

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

# ---- client: one request stream (rust/py/src/client.rs) ----

Completion: TypeAlias = tuple[Any, int, Any, int, int, int, int]
"""(waiter, status, value, version, codec, copies, number).

Statuses 0..19 are those of proto/FRAME.md. 9 UNKNOWN also stands for a mutating operation at its
deadline that may have been applied: its number stays open (resend() asks again) until release().
255 TIMEOUT is a Completion's own: the deadline passed and the operation was surely not applied (any
read; a mutation that was refused each time, or never left). In both, `version` is the status of its
last refusal (3, 4, 6, 7, 9), 0 when nothing was heard.

value: get, invoke: bytes, None for a miss. incr: the new number (int). size: the count (int). scan:
the page's bytes (decode_scan()). Others: None, or the reply's bytes when it carries some (CONFLICT,
INVALID, HANDLER_ERROR).

get_many, put_many, delete_many: status 0 when every reply was OK or MISS; value is then list[bytes
| None] (decoded when the map has a decoder), list[int] (versions), list[bool]. Otherwise status is
that of the first key that was neither, and value is list[ManyReply] in key order. version is 0,
copies the fewest of any, number that of the first key.
"""
ManyReply: TypeAlias = tuple[int, bytes | None, int, int, int]
"""(status, value, version, codec, number) of one key."""

@final
class Client:
    """One request stream: numbers operations, packs them into frames, routes, retries, and matches
    replies.

    Has no clock, no socket and no thread: the caller sends what take_frames() gives, hands in what
    arrives, and calls expire() and take_frames() when next_event_ms() is due. Any monotonic
    milliseconds will do as `now_ms`. Operations that wait for each other's reply take effect in
    that order; those in flight together may take effect in any. One thread at a time. A key is
    bytes or str (encoded as UTF-8). At most 1,048,576 operations are open.

    Raises: every queueing method raises ValueError (naming value and limit) for an empty or too
    large key, value or name, OverflowError when too much is open, TypeError for other types;
    nothing is queued then.
    """

    def __new__(cls, stream: int, partition_count: int) -> Self: ...
    @property
    def stream(self) -> int: ...
    @property
    def queued(self) -> int:
        """Operations waiting: for the next take_frames(), a retry time, or routes."""

    @property
    def in_flight(self) -> int:
        """Operations sent and not answered."""

    def in_flight_at(self, slot: int) -> int:
        """Operations sent to the node of a slot and not answered. Cost: a pass over its buffers."""

    @property
    def open(self) -> int:
        """Operations queued, in flight, or unknown and not released."""

    def map(
        self,
        name: str,
        schema: int = 0,
        codec: int = 0,
        decode: Callable[[bytes], Any] | None = None,
        persisted: bool = False,
    ) -> int:
        """Register a map, or a handler ("Unit.handler", schema 0); returns the index that
        operations name it by.

        The same arguments give the same index. `decode` is applied to values of this `codec` before
        they reach a future (on_frame_futures) or a get_many list; an exception it raises goes to
        that future. With `persisted` whatever changes it is answered only when it is fsynced on
        every complete copy's own disk. At most 65,535.
        """

    def set_frame_window(self, frames: int) -> None:
        """Let a frame wait until it holds one in `frames` of the operations in flight to its slot.

        Many callers in flight would otherwise fall into step with their replies, one operation a
        frame. It waits 5 ms at most. 0, the default: never wait. For callers that flush again at
        next_event_ms().
        """

    def set_backups(self, slots: Sequence[Sequence[int]]) -> None:
        """Slots of the complete copies beside the primary, per partition; before set_routes().
        ValueError when there are too few or too many."""

    def turn_away(self, slot: int, now_ms: int) -> None:
        """The node is silent: ask other copies what stale reads it owes."""

    def set_routes(self, revision: int, slots: Sequence[int]) -> None:
        """Partition -> slot (any small number of the caller's, 0..65,534) or -1. Everything that
        waits is due now."""

    def get(
        self,
        map: int,
        key: bytes | str,
        waiter: object,
        timeout_ms: int,
        confirmed: bool = False,
    ) -> int:
        """Queue a get; returns its number. The deadline counts from the next take_frames() or
        expire(). `confirmed`: answered once the copies have confirmed the primary."""

    def get_entry(
        self,
        map: int,
        key: bytes | str,
        waiter: object,
        timeout_ms: int,
        confirmed: bool = False,
    ) -> int:
        """As get(), but on_frame_futures() always returns its completion: the caller wants the
        version too."""

    def get_stale(
        self, map: int, key: bytes | str, waiter: object, timeout_ms: int, age_ms_max: int
    ) -> int:
        """Queue a read of any complete copy; as get_entry(), and the value begins with its age in
        ms (8 bytes, little endian), also of a miss."""

    def put(
        self,
        map: int,
        key: bytes | str,
        value: bytes,
        codec: int,
        waiter: object,
        timeout_ms: int,
        ttl_ms: int = 0,
        if_absent: bool = False,
        version: int | None = None,
        token: tuple[int, int, bytes, int] | None = None,
    ) -> int:
        """Queue a put. ttl_ms 0 = never expires; version = only onto that version; token = (stream,
        number, path, lowest)."""

    def delete(
        self,
        map: int,
        key: bytes | str,
        waiter: object,
        timeout_ms: int,
        version: int | None = None,
        token: tuple[int, int, bytes, int] | None = None,
    ) -> int: ...
    def incr(
        self,
        map: int,
        key: bytes | str,
        delta: int,
        waiter: object,
        timeout_ms: int,
        token: tuple[int, int, bytes, int] | None = None,
    ) -> int: ...
    def contains(self, map: int, key: bytes | str, waiter: object, timeout_ms: int) -> int: ...
    def invoke(
        self,
        map: int,
        routing_key: bytes | str,
        arguments: bytes,
        waiter: object,
        timeout_ms: int,
        token: tuple[int, int, bytes, int] | None = None,
        chain: Sequence[bytes] | None = None,
    ) -> int:
        """Queue a handler call. chain (only with a token): the turns above it, each
        b"Unit\\0routing key"."""

    def size(self, map: int, partition: int, waiter: object, timeout_ms: int) -> int: ...
    def scan(
        self, map: int, partition: int, cursor: bytes, limit: int, waiter: object, timeout_ms: int
    ) -> int:
        """Queue one page of a partition's entries; cursor b"" = from the start."""

    def get_many(
        self,
        map: int,
        keys: Sequence[bytes | str],
        waiter: object,
        timeout_ms: int,
        confirmed: bool = False,
    ) -> int:
        """Queue all keys under one waiter; returns the first number. ValueError when `keys` is
        empty."""

    def get_many_stale(
        self,
        map: int,
        keys: Sequence[bytes | str],
        waiter: object,
        timeout_ms: int,
        age_ms_max: int,
    ) -> int:
        """As get_many(), of any complete copy each; the waiter gets the bare replies, see
        get_stale()."""

    def put_many(
        self,
        map: int,
        keys: Sequence[bytes | str],
        values: Sequence[bytes],
        codec: int,
        waiter: object,
        timeout_ms: int,
        ttl_ms: int = 0,
    ) -> int: ...
    def delete_many(
        self, map: int, keys: Sequence[bytes | str], waiter: object, timeout_ms: int
    ) -> int: ...
    def about(self, number: int) -> tuple[str, int, int] | None:
        """What an operation was, for messages: (verb, map index, partition).

        verb: get, put, delete, incr, call, size, scan, contains. Known for what the last
        on_frame(), on_frame_futures() or expire() has returned and was neither OK nor MISS.
        """

    def resend(self, number: int, waiter: object, timeout_ms: int) -> None:
        """Ask again for an unknown outcome: same token, so it is applied once. KeyError when it is
        not kept."""

    def release(self, number: int) -> bool:
        """Give up on an unknown outcome: its number is no longer open. False when it was not
        kept."""

    def cancel(self, number: int) -> bool:
        """Nobody waits any more: runs on to an answer nobody gets, is released at its deadline.
        False when not open.

        Not needed for futures that are cancelled themselves; on_frame_futures() skips those.
        """

    def take_frames(self, now_ms: int) -> list[tuple[int, bytes]]:
        """(slot, frame) for all that is queued and every retry due, in sending order per slot."""

    def on_frame(self, slot: int, frame: bytes, now_ms: int) -> list[Completion]:
        """Take a reply frame. Raises FrameError: the caller drops the connection and calls
        on_disconnect()."""

    def on_frame_futures(self, slot: int, frame: bytes, now_ms: int) -> list[Completion]:
        """As on_frame() for waiters that are asyncio futures: sets the plain results itself,
        returns the rest.

        Set here (a future already done is skipped): get, get_many: the value or None. contains,
        delete: bool. put: the version; with if_absent: True, or False on CONFLICT. incr, size: int.
        invoke: the reply's value. put_many, delete_many: list. Whatever is not OK or MISS, and
        every scan, is returned; so is a value whose codec is not the map's.
        """

    def on_disconnect(self, slot: int, now_ms: int, sent: bool = True) -> None:
        """Everything in flight there is queued again with the same token, after a back-off.

        sent=False: the frames taken for this slot surely never left this process (the connection
        was never made), so they do not make an outcome unknown. No frame of the old connection may
        be handed in afterwards.
        """

    def expire(self, now_ms: int) -> list[Completion]:
        """What is past its deadline: 9 UNKNOWN or 255 TIMEOUT."""

    def next_event_ms(self) -> int | None:
        """When to call expire() and take_frames() next; 0 when something is queued right now; None
        for never."""

    def wants_routes(self) -> bool:
        """A refusal or a missing slot since the last set_routes() says that there may be newer
        routes."""

def decode_scan(value: bytes) -> tuple[list[tuple[bytes, bytes, int, int]], bytes]:
    """A scan reply's page: ([(key, value, codec, version)], next cursor; b"" = that was all).
    Raises FrameError."""

RequestView: TypeAlias = tuple[
    int, int, int, int, str, int, bytes, bytes, int, int, int | None, tuple[Any, ...] | None, int
]
"""(stream, number, opcode, flags, map, schema, key, value, codec, ttl_ms, expected version, token,
lowest)."""

def decode_request(frame: bytes) -> list[RequestView]:
    """A request frame's operations, for debugging and tests. token: (stream, number, path, lowest,
    chain). Raises FrameError."""

def encode_reply(
    stream: int, replies: Sequence[tuple[int, int, int, int, int, int, bytes]]
) -> bytes:
    """A reply frame of (number, status, flags, codec, copies, version, value), for debugging and
    tests."""

# ---- who may call what (rust/py/src/gate.rs) ----

@final
class Heart:
    """A node's heartbeats: what each says, which answers count, and the leases they bring.

    Time is in milliseconds of the clock that leases are counted in. Thread-safe: the net thread
    sends heartbeats while the loops that say() something stand still.
    """

    def __new__(cls, held_ms: int) -> Self:
        """A heart whose leases last at most `held_ms` from before their heartbeats left."""

    def say(
        self, progress: Sequence[int], heard_term: int, registered_until_ms: int, now_ms: int
    ) -> None:
        """Take what the node's loops say of themselves.

        Args:
            progress: Their counters.
            heard_term: Term of the controller that this node has heard lately; 0: of none. It
                counts for half a second.
            registered_until_ms: Until when this node may believe that it is registered: no lease
                is good for longer.
            now_ms: Now.
        """

    def beat(self, now_ms: int) -> tuple[int, int, list[int], int]:
        """A heartbeat is about to leave, and `now_ms` was read before.

        Returns:
            Its nonce, the revision applied, the counters (the last is that of the controller's
            answers), the term heard.
        """

    def answered(
        self, nonce: int, lease_ms: int, revision: int, term: int, now_ms: int
    ) -> tuple[int, int] | None:
        """Take an answer; the lease that counts now: (revision, end).

        Args:
            nonce: Of the heartbeat.
            lease_ms: How long the lease lasts; 0: it is none.
            revision: Of the table that the lease is for.
            term: Under which the controller speaks; 0: it was none.
            now_ms: Now.
        """

    def applied(self, revision: int) -> tuple[int, int] | None:
        """A table is applied; the lease that waited for it and counts now: (revision, end)."""

    def heard(self) -> tuple[int, int]:
        """The newest term under which an answer came (0: none), and when the last one came."""

class GateRefused(Exception):
    """A request that the gate refuses: (code, message, whether it is known who calls)."""

@final
class Gate:
    """Who is calling, and whether this caller may make this call. Thread-safe.

    Args:
        cluster: Name of the cluster, as its certificates have it. methods: Path of each method, as
        ``/spacegrid.v1.Data/Get``, to the bits of the roles that may
            call it (`spacegrid.security.access`). A method that is not in it is refused.
    """

    def __new__(cls, cluster: str, methods: Mapping[str, int]) -> Self: ...
    @property
    def generation(self) -> int:
        """Changes with the tokens."""

    def set_tokens(self, text: str) -> int:
        """Take the tokens as they are now, and return how many there are.

        Raises:
            ValueError: A line is no token; nothing has changed. The line is not quoted.
        """

    def admit(
        self,
        method: str,
        *,
        certificate: str | None = None,
        authorization: bytes | None = None,
        remote: str = "",
    ) -> tuple[int, str]:
        """Let a request pass.

        Args:
            method: Its path.
            certificate: The URI in the certificate that the connection has proved; "" when that
                has none, None without a certificate.
            authorization: The header of that name.
            remote: Where it comes from, for the log.

        Returns:
            Bit of the caller's role, and the name of its node or token.

        Raises:
            GateRefused: It does not pass.
        """

    def take_audit(self) -> tuple[list[tuple[str, str, str, str]], int]:
        """What was refused since the last call: (code, method, caller, remote) each, and how many
        more there were that are not listed."""

def token_hash(salt: bytes, secret: str) -> bytes:
    """The 32 bytes that are kept of a token's secret."""
