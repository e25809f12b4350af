"""Maps of the asyncio face: every method queues its operation and returns a future.

The fast paths of `AsyncMap.get` and `AsyncMap.put` are written for speed: one call makes the future
and one call queues the operation, and nothing else is touched per operation. Options, deadlines and
a grid that is closed go the slow way.

Who calls: `asynchronous`. A test compares the methods with `blocking_map`'s, which is why it is
one room like that.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from typing import Any, Final, Generic, Literal, TypeVar, overload

from spacegrid.client.common import (
    Duration,
    read_stale,
    refusal,
    request_token,
    signed_delta,
    stale_age_ms,
    timeout_to_ms,
    ttl_to_ms,
)
from spacegrid.client.replies import ManyReply, Reply
from spacegrid.client.session import Session
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

__all__ = ["AsyncMap"]

K = TypeVar("K")
V = TypeVar("V")
D = TypeVar("D")
T = TypeVar("T")

PAGES_AHEAD: Final = 32
"""Partitions whose next page is asked for while the pages before it are read."""


class AsyncMap(Generic[K, V]):
    """A map of the cluster. Made by `AsyncGrid.map`, cheap, kept for as long as you like.

    Every method takes ``timeout=`` (seconds or a timedelta; the grid's own when None). Methods that
    return futures have queued the operation already. Errors that any of them may raise when
    awaited: `DeadlineExceeded`, `AvailabilityError`, `CapacityError`, `SerializationError`,
    `GridClosed`.
    """

    __slots__ = (
        "_encode_value",
        "_future",
        "_get",
        "_index",
        "_indexes",
        "_pack_key",
        "_put",
        "_raw_key",
        "_raw_value",
        "_session",
        "spec",
    )

    def __init__(self, session: Session, spec: Map[K, V]) -> None:
        self.spec = spec
        self._session = session
        self._index = session.register_map(spec.name, spec.value_codec, spec.persisted)
        self._indexes: dict[bool, int] = {spec.persisted: self._index}
        self._future: Callable[[], asyncio.Future[Any]] = session.loop.create_future
        self._get = session.core.get
        self._put = session.core.put
        key_type: Any = spec.key_codec.key_type
        # Texts and bytes go to the core as they are; it checks sizes and packs them on the way.
        self._raw_key: type | None = key_type if key_type in (str, bytes) else None
        self._pack_key = spec.key_codec.encode
        self._raw_value: type | None = bytes if spec.value_codec.codec == CODEC_BYTES else None
        self._encode_value = spec.value_codec.encode

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
    ) -> asyncio.Future[V | None]: ...
    @overload
    def get(
        self,
        key: K,
        default: D,
        *,
        timeout: Duration | None = None,
        read: FromPrimary = "primary",
    ) -> asyncio.Future[V | D]: ...
    @overload
    def get(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: Literal["stale"],
        max_age: Duration | None = None,
    ) -> asyncio.Future[Stale[V]]: ...
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

        Returns:
            A future, already queued. A stale read may end with `TooStale`.
        """
        session = self._session
        if (
            default is not None
            or timeout is not None
            or read is not PRIMARY
            or max_age is not None
            or session.special
        ):
            return self._get_slowly(key, default, timeout, read, max_age)
        future = self._future()
        try:
            self._get(
                self._index,
                key if key.__class__ is self._raw_key else self._pack_key(key),  # type: ignore[arg-type]
                future,
                session.timeout_ms,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise refusal(error) from error
        if not session.scheduled:
            session.schedule()
        return future

    def _get_slowly(
        self,
        key: K,
        default: Any,
        timeout: Duration | None,
        read: ReadFrom,
        max_age: Duration | None,
    ) -> asyncio.Future[Any]:
        session = self._session
        timeout_ms = self._begin(timeout)
        if (age_ms := stale_age_ms(read, default, max_age)) is not None:
            stale: Reply[Stale[V]] = Reply(session.loop, self._read_stale, raw=True)
            self._queue(session.core.get_stale, self._key(key), stale, timeout_ms, age_ms)
            return stale
        reply: Reply[Any] = Reply(
            session.loop, None if default is None else lambda value: _or_else(value, default)
        )
        self._queue(session.core.get, self._key(key), reply, timeout_ms, read == "confirmed")
        return reply

    @overload
    def get_entry(
        self, key: K, *, timeout: Duration | None = None, read: FromPrimary = "primary"
    ) -> asyncio.Future[Entry[V] | None]: ...
    @overload
    def get_entry(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: Literal["stale"],
        max_age: Duration | None = None,
    ) -> asyncio.Future[Stale[V]]: ...
    def get_entry(
        self,
        key: K,
        *,
        timeout: Duration | None = None,
        read: ReadFrom = PRIMARY,
        max_age: Duration | None = None,
    ) -> asyncio.Future[Any]:
        """Return value and version, or None when there is no entry.

        Args:
            key: The key.
            timeout: Seconds.
            read: As for `get`; a stale read's `Stale` has the version too.
            max_age: As for `get`.
        """
        if read == "stale":
            return self._get_slowly(key, None, timeout, read, max_age)
        stale_age_ms(read, None, max_age)
        session = self._session
        timeout_ms = self._begin(timeout)
        reply: Reply[Entry[V] | None] = Reply(session.loop, self._read_entry, raw=True)
        self._queue(session.core.get_entry, self._key(key), reply, timeout_ms, read == "confirmed")
        return reply

    def _read_stale(self, reply: tuple[bytes, int, int]) -> Stale[V]:
        value, version, codec = reply
        return read_stale(self.spec.value_codec, value, version, codec)

    def _read_entry(self, reply: tuple[bytes | None, int, int]) -> Entry[V] | None:
        value, version, codec = reply
        if value is None:
            return None
        return Entry(self.spec.value_codec.decode(value, codec), version)

    def contains(self, key: K, *, timeout: Duration | None = None) -> asyncio.Future[bool]:
        """Tell whether there is an entry."""
        timeout_ms = self._begin(timeout)
        future = self._future()
        self._queue(self._session.core.contains, self._key(key), future, timeout_ms)
        return future

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
    ) -> asyncio.Future[int]: ...
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
    ) -> asyncio.Future[bool]: ...
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
            request_id: From `AsyncGrid.request_id`; the same one again is applied once.
            durability: The level to wait for, where it is not the map's.

        Returns:
            A future of the entry's new version; with ``if_absent`` of whether it was written.
        """
        session = self._session
        if (
            ttl is not None
            or timeout is not None
            or request_id is not None
            or if_absent
            or durability is not None
            or session.special
        ):
            return self._put_slowly(key, value, ttl, if_absent, timeout, request_id, durability)
        future = self._future()
        try:
            self._put(
                self._index,
                key if key.__class__ is self._raw_key else self._pack_key(key),  # type: ignore[arg-type]
                value if value.__class__ is self._raw_value else self._encode_value(value),  # type: ignore[arg-type]
                self.spec.value_codec.codec,
                future,
                session.timeout_ms,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise refusal(error) from error
        if not session.scheduled:
            session.schedule()
        return future

    def _put_slowly(
        self,
        key: K,
        value: V,
        ttl: Duration | None,
        if_absent: bool,
        timeout: Duration | None,
        request_id: str | None,
        durability: Durability | None,
        version: int | None = None,
    ) -> asyncio.Future[Any]:
        session = self._session
        timeout_ms = self._begin(timeout)
        reply: Reply[Any] = Reply(session.loop, expected_version=version)
        packed_key, packed = self._key(key), self._encode_value(value)
        token = request_token(request_id)
        codec, index = self.spec.value_codec.codec, self._index_of(durability)
        try:
            session.core.put(
                index,
                packed_key,
                packed,
                codec,
                reply,
                timeout_ms,
                ttl_to_ms(ttl),
                if_absent,
                version,
                token,
            )
        except (TypeError, ValueError, OverflowError) as error:
            raise refusal(error) from error
        if not session.scheduled:
            session.schedule()
        return reply

    def put_if_absent(
        self,
        key: K,
        value: V,
        *,
        ttl: Duration | None = None,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> asyncio.Future[bool]:
        """Write a value when there is no entry; tell whether it was written."""
        return self._put_slowly(key, value, ttl, True, timeout, request_id, durability)

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
    ) -> asyncio.Future[int]:
        """Write a value onto one version of the entry, as `get_entry` returned it.

        Returns:
            A future of the new version; `VersionMismatch` when there is another version or none.
        """
        return self._put_slowly(key, value, ttl, False, timeout, request_id, durability, version)

    def delete(
        self,
        key: K,
        *,
        version: int | None = None,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> asyncio.Future[bool]:
        """Delete an entry; tell whether there was one.

        Args:
            key: The key.
            version: Delete only this version; `VersionMismatch` when there is another one.
            timeout: Seconds.
            request_id: As for `put`.
            durability: As for `put`.
        """
        session = self._session
        timeout_ms = self._begin(timeout)
        reply: Reply[bool] = Reply(session.loop, expected_version=version)
        token = request_token(request_id)
        index = self._index_of(durability)
        self._queue(
            session.core.delete, self._key(key), reply, timeout_ms, version, token, index=index
        )
        return reply

    def incr(
        self,
        key: K,
        delta: int = 1,
        *,
        timeout: Duration | None = None,
        request_id: str | None = None,
        durability: Durability | None = None,
    ) -> asyncio.Future[int]:
        """Add to a whole number; a missing entry counts as 0.

        Returns:
            A future of the sum; `WrongType` when the entry is no 64-bit whole number.
        """
        timeout_ms = self._begin(timeout)
        future = self._future()
        token = request_token(request_id)
        packed = self._key(key)
        arguments = packed, signed_delta(delta), future, timeout_ms, token
        self._queue(self._session.core.incr, *arguments, index=self._index_of(durability))
        return future

    # ---- many entries

    @overload
    def get_many(
        self,
        keys: Iterable[K],
        *,
        timeout: Duration | None = None,
        read: FromPrimary = "primary",
    ) -> asyncio.Future[dict[K, V]]: ...
    @overload
    def get_many(
        self,
        keys: Iterable[K],
        *,
        timeout: Duration | None = None,
        read: Literal["stale"],
        max_age: Duration | None = None,
    ) -> asyncio.Future[dict[K, Stale[V]]]: ...
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
            A future of a dictionary in the order of the keys; `BatchError` when some keys failed.
        """
        listed = list(keys)
        if (age_ms := stale_age_ms(read, None, max_age)) is not None:
            return self._get_many_stale(listed, timeout, age_ms)

        def convert(values: list[Any]) -> dict[K, V]:
            if None in values:
                return {k: v for k, v in zip(listed, values, strict=True) if v is not None}
            return dict(zip(listed, values, strict=True))

        def one(_status: int, value: Any, _version: int, codec: int) -> Any:
            return None if value is None else self.spec.value_codec.decode(value, codec)

        reply: ManyReply[dict[K, V]]
        reply = ManyReply(self._session.loop, listed, convert, one)
        timeout_ms = self._begin(timeout)
        if listed:
            confirmed = read == "confirmed"
            packed = self._keys(listed)
            self._queue(self._session.core.get_many, packed, reply, timeout_ms, confirmed)
        else:
            reply.set_result([])
        return reply

    def _get_many_stale(
        self, listed: list[K], timeout: Duration | None, age_ms: int
    ) -> asyncio.Future[dict[K, Stale[V]]]:
        def convert(values: list[Stale[V]]) -> dict[K, Stale[V]]:
            return dict(zip(listed, values, strict=True))

        def one(_status: int, value: Any, version: int, codec: int) -> Stale[V]:
            return read_stale(self.spec.value_codec, value, version, codec)

        reply: ManyReply[dict[K, Stale[V]]]
        reply = ManyReply(self._session.loop, listed, convert, one)
        timeout_ms = self._begin(timeout)
        if listed:
            keys = self._keys(listed)
            self._queue(self._session.core.get_many_stale, keys, reply, timeout_ms, age_ms)
        else:
            reply.set_result([])
        return reply

    def put_many(
        self,
        entries: Mapping[K, V] | Iterable[tuple[K, V]],
        *,
        ttl: Duration | None = None,
        timeout: Duration | None = None,
    ) -> asyncio.Future[None]:
        """Write entries; each succeeds or fails alone.

        Args:
            entries: A dictionary, or pairs.
            ttl: Seconds to live, for all.
            timeout: Seconds.

        Returns:
            A future that is done when all are acknowledged; `BatchError` when some failed.
        """
        listed = dict(entries)
        encode = self._encode_value
        reply: ManyReply[None]
        reply = ManyReply(self._session.loop, list(listed), _nothing, _version_of)
        timeout_ms = self._begin(timeout)
        if not listed:
            reply.set_result([])
            return reply
        values = [
            value if value.__class__ is self._raw_value else encode(value)
            for value in listed.values()
        ]
        self._queue(
            self._session.core.put_many,
            self._keys(listed),
            values,
            self.spec.value_codec.codec,
            reply,
            timeout_ms,
            ttl_to_ms(ttl),
        )
        return reply

    def delete_many(
        self, keys: Iterable[K], *, timeout: Duration | None = None
    ) -> asyncio.Future[int]:
        """Delete entries; each succeeds or fails alone.

        Returns:
            A future of how many there were; `BatchError` when some keys failed.
        """
        listed = list(dict.fromkeys(keys))
        reply: ManyReply[int] = ManyReply(self._session.loop, listed, sum, _existed)
        timeout_ms = self._begin(timeout)
        if listed:
            self._queue(self._session.core.delete_many, self._keys(listed), reply, timeout_ms)
        else:
            reply.set_result([])
        return reply

    # ---- whole maps

    def items(self, *, timeout: Duration | None = None) -> AsyncIterator[tuple[K, V]]:
        """Iterate over all entries, page by page, partition by partition.

        Entries that are written or deleted meanwhile may or may not appear; all others appear
        exactly once. A partition that can't answer ends the iteration with its error.

        Args:
            timeout: Seconds for each page.
        """
        decode_key = self.spec.key_codec.decode
        decode = self.spec.value_codec.decode
        return self._scan(lambda e: (decode_key(e[0]), decode(e[1], e[2])), timeout)

    def keys(self, *, timeout: Duration | None = None) -> AsyncIterator[K]:
        """Iterate over all keys; see `items`."""
        decode_key = self.spec.key_codec.decode
        return self._scan(lambda e: decode_key(e[0]), timeout)

    def values(self, *, timeout: Duration | None = None) -> AsyncIterator[V]:
        """Iterate over all values; see `items`."""
        decode = self.spec.value_codec.decode
        return self._scan(lambda e: decode(e[1], e[2]), timeout)

    async def _scan(
        self, read: Callable[[tuple[bytes, bytes, int, int]], T], timeout: Duration | None
    ) -> AsyncIterator[T]:
        session = self._session
        timeout_ms = self._begin(timeout)
        count = session.partition_count
        ahead = {
            partition: session.scan(self._index, partition, b"", PAGE_ENTRIES, timeout_ms)
            for partition in range(min(PAGES_AHEAD, count))
        }
        try:
            for partition in range(count):
                reply = ahead.pop(partition)
                following = partition + PAGES_AHEAD
                if following < count:
                    timeout_ms = self._begin(timeout)
                    ahead[following] = session.scan(
                        self._index, following, b"", PAGE_ENTRIES, timeout_ms
                    )
                while True:
                    page, cursor = await reply
                    if cursor:
                        timeout_ms = self._begin(timeout)
                        reply = session.scan(
                            self._index, partition, cursor, PAGE_ENTRIES, timeout_ms
                        )
                    for entry in page:
                        yield read(entry)
                    if not cursor:
                        break
        finally:
            for reply in ahead.values():
                reply.cancel()

    def size(self, *, timeout: Duration | None = None) -> asyncio.Future[int]:
        """Count the entries of all partitions: one question to each partition's primary."""
        session = self._session
        timeout_ms = self._begin(timeout)
        counts: list[asyncio.Future[Any]] = []
        for partition in range(session.partition_count):
            future = self._future()
            session.core.size(self._index, partition, future, timeout_ms)
            counts.append(future)
        if not session.scheduled:
            session.schedule()
        return session.loop.create_task(_sum_of(counts))

    # ---- queueing

    def _begin(self, timeout: Duration | None) -> int:
        """Check that operations may be queued; return the milliseconds that this one has."""
        session = self._session
        session.check()
        return timeout_to_ms(timeout, session.timeout_ms)

    def _key(self, key: K) -> Any:
        return key if key.__class__ is self._raw_key else self._pack_key(key)

    def _keys(self, keys: Iterable[K]) -> list[Any]:
        raw, pack = self._raw_key, self._pack_key
        return [key if key.__class__ is raw else pack(key) for key in keys]

    def _index_of(self, durability: Durability | None) -> int:
        """The map's index in the core for writes of that level; None: the map's own."""
        if durability is None:
            return self._index
        persisted = is_persisted(durability)
        index = self._indexes.get(persisted)
        if index is None:
            spec = self.spec
            index = self._session.register_map(spec.name, spec.value_codec, persisted)
            self._indexes[persisted] = index
        return index

    def _queue(self, method: Callable[..., Any], *arguments: Any, index: int | None = None) -> None:
        try:
            method(self._index if index is None else index, *arguments)
        except (TypeError, ValueError, OverflowError) as error:
            raise refusal(error) from error
        if not self._session.scheduled:
            self._session.schedule()

    def __repr__(self) -> str:
        return f"<AsyncMap {self.spec!r}>"


def _or_else(value: Any, default: Any) -> Any:
    return default if value is None else value


def _nothing(_results: object) -> None:
    return None


def _version_of(_status: int, _value: Any, version: int, _codec: int) -> int:
    return version


def _existed(status: int, _value: Any, _version: int, _codec: int) -> bool:
    return status == 0


async def _sum_of(counts: list[asyncio.Future[Any]]) -> int:
    return sum(await asyncio.gather(*counts))
