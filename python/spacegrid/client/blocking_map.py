"""Maps of the blocking face, with the feel of a dictionary.

Who calls: `blocking`. A test compares the methods with `async_map`'s.
It is one room because that one is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, Generic, Literal, TypeVar, cast, overload

from spacegrid import _core, errors
from spacegrid.client.blocking_session import BlockingSession, Waiter
from spacegrid.client.common import (
    Duration,
    batch_error,
    read_stale,
    request_token,
    signed_delta,
    stale_age_ms,
    ttl_to_ms,
)
from spacegrid.clock import now_ms
from spacegrid.limits import PAGE_ENTRIES
from spacegrid.types import (
    CODEC_BYTES,
    PRIMARY,
    Durability,
    Entry,
    FromPrimary,
    Map,
    ReadFrom,
    Stale,
    is_persisted,
)
from spacegrid.wire.status import Status

__all__ = ["BlockingMap", "LocalMap"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")
T = TypeVar("T")

PAGES_AHEAD: Final = 32
"""Partitions whose pages are asked for together."""


class BlockingMap(Generic[K, V]):
    """A map of the cluster. Made by `Grid.map`, cheap, kept for as long as you like.

    Every method takes ``timeout=`` (seconds or a timedelta; the grid's own when None). Errors that
    any of them may raise: `DeadlineExceeded`, `AvailabilityError`, `CapacityError`,
    `SerializationError`, `GridClosed`. Beside the methods: ``m[key]``, ``m[key] = value``,
    ``del m[key]``, ``key in m``, and iteration over keys. There is no ``len()``: `size` asks the
    whole cluster, and its name says so.
    """

    def __init__(self, session: BlockingSession, spec: Map[K, V]) -> None:
        self.spec = spec
        self._session = session
        values = spec.value_codec
        self._codec = values.codec
        self._index = session.register(spec.name, values.schema, values.codec, spec.persisted)
        self._indexes: dict[bool, int] = {spec.persisted: self._index}
        key_type: Any = spec.key_codec.key_type
        self._raw_key: type | None = key_type if key_type in (str, bytes) else None
        self._pack_key = spec.key_codec.encode
        self._encode_value = values.encode

    @property
    def name(self) -> str:
        """Name of the map in the cluster."""
        return self.spec.name

    # ---- single entries

    @overload
    def get(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: FromPrimary = "primary",
    ) -> V | None: ...
    @overload
    def get(
        self,
        key: K,
        default: D,
        *,
        timeout: Duration | None = None,
        read: FromPrimary = "primary",
    ) -> V | D: ...
    @overload
    def get(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: Literal["stale"],
        max_age: Duration | None = None,
    ) -> Stale[V]: ...
    def get(
        self,
        key: K,
        default: Any = None,
        *,
        timeout: Duration | None = None,
        read: ReadFrom = PRIMARY,
        max_age: Duration | None = None,
    ) -> Any:
        """Return the value, or the default when there is no entry.

        Args:
            key: The key.
            default: Stands for a miss.
            timeout: Seconds.
            read: ``"primary"`` sees every acknowledged write, as sure as leases are;
                ``"confirmed"`` as well where a clock stands still, for a round trip between nodes;
                ``"stale"`` asks any complete copy, with or without a primary, for a `Stale`, which
                says how old it may be.
            max_age: Seconds that a stale read may be behind; 10 when None.

        Raises:
            TooStale: No copy could answer a stale read with something that recent.
        """
        core = self._session.core
        if (age_ms := stale_age_ms(read, default, max_age)) is not None:
            waiter = self._session.run(
                core.get_stale, self._index, (self._key(key),), timeout, (age_ms,)
            )
            if waiter.status not in (Status.OK, Status.MISS):
                raise self._session.failure(waiter)
            values = self.spec.value_codec
            return read_stale(values, waiter.value, waiter.version, waiter.codec)
        options = (read == "confirmed",)
        waiter = self._session.run(core.get, self._index, (self._key(key),), timeout, options)
        if waiter.status == Status.MISS:
            return default
        if waiter.status != Status.OK:
            raise self._session.failure(waiter)
        return self.spec.value_codec.decode(waiter.value, waiter.codec)

    @overload
    def get_entry(
        self, key: K, *, timeout: Duration | None = None, read: FromPrimary = "primary"
    ) -> Entry[V] | None: ...
    @overload
    def get_entry(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: Literal["stale"],
        max_age: Duration | None = None,
    ) -> Stale[V]: ...
    def get_entry(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: ReadFrom = PRIMARY,
        max_age: Duration | None = None,
    ) -> Any:
        """Return value and version, or None when there is no entry.

        Args:
            key: The key.
            timeout: Seconds.
            read: As for `get`; a stale read's `Stale` has the version too.
            max_age: As for `get`.

        Raises:
            TooStale: As for `get`.
        """
        if read == "stale":
            return self.get(key, timeout=timeout, read=read, max_age=max_age)
        stale_age_ms(read, None, max_age)
        core, options = self._session.core, (read == "confirmed",)
        waiter = self._session.run(core.get, self._index, (self._key(key),), timeout, options)
        if waiter.status == Status.MISS:
            return None
        if waiter.status != Status.OK:
            raise self._session.failure(waiter)
        value = self.spec.value_codec.decode(waiter.value, waiter.codec)
        return Entry(value, waiter.version)

    def contains(self, key: K, *, timeout: Duration | None = None) -> bool:
        """Tell whether there is an entry."""
        core = self._session.core
        return self._existed(
            self._session.run(core.contains, self._index, (self._key(key),), timeout)
        )

    @overload
    def put(
        self,
        key: K,
        value: V,
        *,
        ttl: Duration | None = None,
        if_absent: Literal[False] = False,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> int: ...
    @overload
    def put(
        self,
        key: K,
        value: V,
        *,
        ttl: Duration | None = None,
        if_absent: Literal[True],
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> bool: ...
    def put(
        self,
        key: K,
        value: V,
        *,
        ttl: Duration | None = None,
        if_absent: bool = False,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> Any:
        """Write a value.

        Args:
            key: The key.
            value: The value.
            ttl: Seconds to live; for ever when None.
            if_absent: Write only when there is no entry.
            timeout: Seconds.
            request_id: From `Grid.request_id`; the same one again is applied once.
            durability: The level to wait for, where it is not the map's.

        Returns:
            The entry's new version; with ``if_absent`` whether it was written.
        """
        waiter = self._put(key, value, ttl, if_absent, None, timeout, request_id, durability)
        return self._written(waiter, if_absent, None)

    def _put(
        self,
        key: K,
        value: V,
        ttl: Duration | None,
        if_absent: bool,
        version: int | None,
        timeout: Duration | None,
        request_id: str | None,
        durability: Durability | None,
    ) -> Waiter:
        packed = self._key(key), self._encode_value(value), self._codec
        options = ttl_to_ms(ttl), if_absent, version, request_token(request_id)
        index = self._index_of(durability)
        return self._session.run(self._session.core.put, index, packed, timeout, options)

    def _index_of(self, durability: Durability | None) -> int:
        """The map's index in the core for writes of that level; None: the map's own."""
        if durability is None:
            return self._index
        persisted = is_persisted(durability)
        index = self._indexes.get(persisted)
        if index is None:
            spec = self.spec
            index = self._session.register(spec.name, spec.schema, self._codec, persisted)
            self._indexes[persisted] = index
        return index

    def _written(self, waiter: Waiter, if_absent: bool, version: int | None) -> int | bool:
        if waiter.status == Status.OK:
            return True if if_absent else waiter.version
        if waiter.status == Status.CONFLICT and if_absent:
            return False
        raise self._session.failure(
            waiter, lambda again: self._written(again, if_absent, version), version
        )

    def put_if_absent(
        self,
        key: K,
        value: V,
        *,
        ttl: Duration | None = None,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> bool:
        """Write a value when there is no entry; tell whether it was written."""
        waiter = self._put(key, value, ttl, True, None, timeout, request_id, durability)
        return bool(self._written(waiter, True, None))

    def replace(
        self,
        key: K,
        value: V,
        *,
        version: int,
        ttl: Duration | None = None,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> int:
        """Write a value onto one version of the entry, as `get_entry` returned it.

        Returns:
            The new version.

        Raises:
            VersionMismatch: There is another version, or no entry.
        """
        waiter = self._put(key, value, ttl, False, version, timeout, request_id, durability)
        return self._written(waiter, False, version)

    def delete(
        self,
        key: K,
        *,
        version: int | None = None,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> bool:
        """Delete an entry; tell whether there was one.

        Args:
            key: The key.
            version: Delete only this version; `VersionMismatch` when there is another one.
            timeout: Seconds.
            request_id: As for `put`.
            durability: As for `put`.
        """
        options = version, request_token(request_id)
        core = self._session.core
        return self._existed(
            self._session.run(
                core.delete, self._index_of(durability), (self._key(key),), timeout, options
            ),
            version,
        )

    def _existed(self, waiter: Waiter, version: int | None = None) -> bool:
        if waiter.status not in (Status.OK, Status.MISS):
            raise self._session.failure(
                waiter, lambda again: self._existed(again, version), version
            )
        return waiter.status == Status.OK

    def incr(
        self,
        key: K,
        delta: int = 1,
        *,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> int:
        """Add to a whole number; a missing entry counts as 0.

        Returns:
            The sum.

        Raises:
            WrongType: The entry is no 64-bit whole number.
        """
        packed, options = (self._key(key), signed_delta(delta)), (request_token(request_id),)
        core = self._session.core
        index = self._index_of(durability)
        return self._number(self._session.run(core.incr, index, packed, timeout, options))

    def _number(self, waiter: Waiter) -> int:
        if waiter.status != Status.OK:
            raise self._session.failure(waiter, self._number)
        return cast(int, waiter.value)

    # ---- many entries

    @overload
    def get_many(
        self,
        keys: Iterable[K],
        *,
        timeout: Duration | None = None,
        read: FromPrimary = "primary",
    ) -> dict[K, V]: ...
    @overload
    def get_many(
        self,
        keys: Iterable[K],
        *,
        timeout: Duration | None = None,
        read: Literal["stale"],
        max_age: Duration | None = None,
    ) -> dict[K, Stale[V]]: ...
    def get_many(
        self,
        keys: Iterable[K],
        *,
        timeout: Duration | None = None,
        read: ReadFrom = PRIMARY,
        max_age: Duration | None = None,
    ) -> Any:
        """Return the values of those keys that have an entry; with ``read="stale"`` of all keys.

        Args:
            keys: The keys.
            timeout: Seconds.
            read: As for `get`.
            max_age: As for `get`.

        Returns:
            A dictionary in the order of the keys.

        Raises:
            BatchError: Some keys failed.
        """
        listed = list(keys)
        age_ms = stale_age_ms(read, None, max_age)
        if not listed:
            return {}
        core = self._session.core
        if age_ms is not None:
            return self._get_many_stale(listed, timeout, age_ms)
        arguments, options = (self._keys(listed),), (read == "confirmed",)
        waiter = self._session.run(core.get_many, self._index, arguments, timeout, options)

        decode = self.spec.value_codec.decode
        if waiter.status == Status.OK and not any(type(v) is tuple for v in waiter.value):
            codec = self._codec
            return {
                key: decode(value, codec)
                for key, value in zip(listed, waiter.value, strict=True)
                if value is not None
            }
        # Some key failed, or some entry was packed by another codec than the map's.
        found = self._each(
            waiter,
            listed,
            lambda _status, value, _version, codec: None if value is None else decode(value, codec),
        )
        return {key: value for key, value in found.items() if value is not None}

    def _get_many_stale(
        self, listed: list[K], timeout: Duration | None, age_ms: int
    ) -> dict[K, Stale[V]]:
        core, values = self._session.core, self.spec.value_codec
        arguments = (self._keys(listed),)
        waiter = self._session.run(core.get_many_stale, self._index, arguments, timeout, (age_ms,))

        def one(_status: int, value: Any, version: int, codec: int) -> Stale[V]:
            return read_stale(values, value, version, codec)

        return self._each(waiter, listed, one)

    def put_many(
        self,
        entries: Mapping[K, V] | Iterable[tuple[K, V]],
        *,
        ttl: Duration | None = None,
        timeout: Duration | None = None,
    ) -> None:
        """Write entries; each succeeds or fails alone.

        Args:
            entries: A dictionary, or pairs.
            ttl: Seconds to live, for all.
            timeout: Seconds.

        Raises:
            BatchError: Some failed; the others are written.
        """
        listed = dict(entries)
        if not listed:
            return
        encode = self._encode_value
        packed = self._keys(listed), [encode(value) for value in listed.values()], self._codec
        core = self._session.core
        waiter = self._session.run(core.put_many, self._index, packed, timeout, (ttl_to_ms(ttl),))
        if waiter.status != Status.OK:
            self._each(waiter, list(listed), lambda _status, _value, version, _codec: version)

    def delete_many(self, keys: Iterable[K], *, timeout: Duration | None = None) -> int:
        """Delete entries; each succeeds or fails alone.

        Returns:
            How many there were.

        Raises:
            BatchError: Some keys failed.
        """
        listed = list(dict.fromkeys(keys))
        if not listed:
            return 0
        core = self._session.core
        waiter = self._session.run(core.delete_many, self._index, (self._keys(listed),), timeout)
        if waiter.status == Status.OK:
            return sum(waiter.value)
        found = self._each(waiter, listed, lambda status, *_rest: status == Status.OK)
        return sum(found.values())

    def _each(
        self, waiter: Waiter, keys: list[K], read: Callable[[int, Any, int, int], T]
    ) -> dict[K, T]:
        """Results by key of a ``*_many`` operation."""
        results: dict[K, T] = {}
        failures: dict[Any, errors.SpaceGridError] = {}
        for key, (status, value, version, codec, number) in zip(keys, waiter.value, strict=True):
            if status in (Status.OK, Status.MISS):
                try:
                    results[key] = read(status, value, version, codec)
                except errors.SerializationError as error:
                    failures[key] = error
                continue
            one = Waiter()
            one.status, one.value, one.version, one.number = status, value, version, number
            failures[key] = self._session.failure(one, self._again)
        if failures:
            raise batch_error(results, failures)
        return results

    def _again(self, waiter: Waiter) -> None:
        """Outcome of sending one key of a ``*_many`` operation again."""
        if waiter.status not in (Status.OK, Status.MISS):
            raise self._session.failure(waiter, self._again)

    # ---- whole maps

    def items(self, *, timeout: Duration | None = None) -> Iterator[tuple[K, V]]:
        """Iterate over all entries, page by page, partition by partition.

        Entries that are written or deleted meanwhile may or may not appear; all others appear
        exactly once. A partition that can't answer ends the iteration with its error.

        Args:
            timeout: Seconds for each page.
        """
        decode_key = self.spec.key_codec.decode
        decode = self.spec.value_codec.decode
        return self._scan(lambda e: (decode_key(e[0]), decode(e[1], e[2])), timeout)

    def keys(self, *, timeout: Duration | None = None) -> Iterator[K]:
        """Iterate over all keys; see `items`."""
        decode_key = self.spec.key_codec.decode
        return self._scan(lambda e: decode_key(e[0]), timeout)

    def values(self, *, timeout: Duration | None = None) -> Iterator[V]:
        """Iterate over all values; see `items`."""
        decode = self.spec.value_codec.decode
        return self._scan(lambda e: decode(e[1], e[2]), timeout)

    def _scan(
        self, read: Callable[[tuple[bytes, bytes, int, int]], T], timeout: Duration | None
    ) -> Iterator[T]:
        session = self._session
        count = session.partition_count
        for start in range(0, count, PAGES_AHEAD):
            group = range(start, min(start + PAGES_AHEAD, count))
            pages = [self._page_of(partition, b"") for partition in group]
            for partition, waiter in zip(group, session.run_all(pages, timeout), strict=True):
                while True:
                    if waiter.status != Status.OK:
                        raise session.failure(waiter)
                    page, cursor = _core.decode_scan(waiter.value)
                    yield from map(read, page)
                    if not cursor:
                        break
                    waiter = session.run_all([self._page_of(partition, cursor)], timeout)[0]

    def _page_of(self, partition: int, cursor: bytes) -> Any:
        return self._session.core.scan, self._index, (partition, cursor, PAGE_ENTRIES), ()

    def size(self, *, timeout: Duration | None = None) -> int:
        """Count the entries of all partitions: one question to each partition's primary."""
        session = self._session
        core = session.core
        questions: list[Any] = [
            (core.size, self._index, (partition,), ())
            for partition in range(session.partition_count)
        ]
        return sum(self._number(waiter) for waiter in session.run_all(questions, timeout))

    # ---- the feel of a dictionary

    def __getitem__(self, key: K) -> V:
        value = self.get(key)
        if value is None:
            raise KeyError(key)
        return value

    def __setitem__(self, key: K, value: V) -> None:
        self.put(key, value)

    def __delitem__(self, key: K) -> None:
        if not self.delete(key):
            raise KeyError(key)

    def __contains__(self, key: object) -> bool:
        return self.contains(cast(K, key))

    def __iter__(self) -> Iterator[K]:
        return self.keys()

    # ---- queueing

    def _key(self, key: K) -> Any:
        return key if key.__class__ is self._raw_key else self._pack_key(key)

    def _keys(self, keys: Iterable[K]) -> list[Any]:
        raw, pack = self._raw_key, self._pack_key
        return [key if key.__class__ is raw else pack(key) for key in keys]

    def __repr__(self) -> str:
        return f"<BlockingMap {self.spec!r}>"


class LocalMap(BlockingMap[K, V]):
    """A map of a node in this process: reads go straight to the tables beside it."""

    def __init__(self, session: BlockingSession, spec: Map[K, V], node: _core.Node) -> None:
        super().__init__(session, spec)
        self._node = node
        if self._raw_key is bytes and self._codec == CODEC_BYTES:
            self._bind_bytes(node, spec.name)

    def _bind_bytes(self, node: _core.Node, name: str) -> None:
        """Shadow `get` by a closure: in a read of 150 ns every attribute counts."""
        read, clock_ns, slowly = node.read, time.time_ns, self._get_slowly

        def get(key: Any, default: Any = None, **options: Any) -> Any:
            if options:
                return slowly(key, default, **options)
            try:
                value = read(name, key, clock_ns() // 1_000_000)
            except (LookupError, TypeError, ValueError):
                return slowly(key, default)
            return default if value is None else value

        self.get = get  # type: ignore[method-assign]

    def _get_slowly(self, key: Any, default: Any, **options: Any) -> Any:
        self._session.check()
        return super().get(key, default, **options)

    @overload
    def get(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: FromPrimary = "primary",
    ) -> V | None: ...
    @overload
    def get(
        self,
        key: K,
        default: D,
        *,
        timeout: Duration | None = None,
        read: FromPrimary = "primary",
    ) -> V | D: ...
    @overload
    def get(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: Literal["stale"],
        max_age: Duration | None = None,
    ) -> Stale[V]: ...
    def get(
        self,
        key: K,
        default: Any = None,
        *,
        timeout: Duration | None = None,
        read: ReadFrom = PRIMARY,
        max_age: Duration | None = None,
    ) -> Any:
        """Return the value, or the default when there is no entry; no frame is made."""
        if read is not PRIMARY or max_age is not None:
            options: dict[str, Any] = {"timeout": timeout, "read": read, "max_age": max_age}
            return self._get_slowly(key, default, **options)
        packed = key.encode() if isinstance(key, str) else self._key(key)
        try:
            entry = self._node.read_entry(self.spec.name, packed, now_ms())
        except (LookupError, TypeError, ValueError):
            return self._get_slowly(key, default, timeout=timeout)
        return default if entry is None else self.spec.value_codec.decode(entry[0], entry[1])
