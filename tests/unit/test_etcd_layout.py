"""How a space is laid out in etcd: chunks, values, and that the largest write fits."""

from __future__ import annotations

import random
import zlib

import pytest
from spacegrid.coordinator.etcd import api_pb2 as api
from spacegrid.coordinator.etcd import decisions, layout
from spacegrid.coordinator.etcd.image import Image
from spacegrid.coordinator.etcd.layout import Keys, Meta, Term
from spacegrid.errors import ProtocolError
from spacegrid.machine.table import CopyStore, Joining, PartitionEntry, State, Tail, new_table

#: etcd's own defaults.
OPERATIONS_MAX = 128
REQUEST_BYTES_MAX = 1536 * 1024
KEYS = Keys("shop")


@pytest.mark.parametrize("count", [1, 2, 3, 63, 64, 65, 100, 1000, 1024, 4096, 16_384])
def test_each_partition_is_in_one_chunk(count: int) -> None:
    found = []
    for index in range(layout.chunk_count(count)):
        low, high = layout.chunk_bounds(index, count)
        assert low < high
        assert {layout.chunk_of(partition, count) for partition in range(low, high)} == {index}
        found += range(low, high)
    assert found == list(range(count))


def busy_entry(partition: int, draw: random.Random) -> PartitionEntry:
    """An entry with much to say, of numbers that hardly repeat."""
    copies = draw.sample(range(1, 1 << 20), 5)
    return PartitionEntry(
        partition,
        epoch=draw.randrange(1, 1 << 24),
        version=draw.randrange(1 << 30, 1 << 31),
        state=State.OK,
        primary=copies[0],
        in_sync=tuple(copies[:3]),
        joining=(Joining(copies[3], draw.randrange(1 << 30)),),
        tails=(Tail(copies[4], draw.randrange(1 << 30), 7, draw.randrange(1 << 40), copies[0]),),
    )


def created(count: int) -> Image:
    """The image of a space right after it was created."""
    table = new_table(bytes(16), partition_count=count, copies=3, min_in_sync=2)
    meta = Meta(table.life, count, 3, 2, 3, etcd_cluster=1)
    image = Image(KEYS)
    step = decisions.create(image, meta, table)
    assert isinstance(step, decisions.Try)
    image.wrote(step.request.success, 5)
    image.check()
    return image


def test_the_largest_write_fits_into_one_transaction() -> None:
    image = created(layout.PARTITIONS_MAX)
    draw = random.Random(1)
    entries = [busy_entry(partition, draw) for partition in range(layout.PARTITIONS_MAX)]
    step = decisions.write(image, image.table, entries, term=Term(), write=bytes(8), in_doubt=False)
    assert isinstance(step, decisions.Try)
    for operations in (step.request.compare, step.request.success):
        assert len(operations) <= OPERATIONS_MAX
    assert step.request.ByteSize() < REQUEST_BYTES_MAX


def test_a_write_touches_only_the_chunks_that_change() -> None:
    image = created(1024)
    draw = random.Random(2)
    step = decisions.write(
        image,
        image.table,
        [busy_entry(17, draw), busy_entry(1023, draw)],
        term=Term(),
        write=b"w",
        in_doubt=False,
    )
    assert isinstance(step, decisions.Try)
    written = [operation.put.key for operation in step.request.success]
    assert written == [KEYS.head, KEYS.chunk(1), KEYS.chunk(63)]
    news = image.wrote(step.request.success, 9)
    assert news.changed == {17, 1023}
    assert image.table.revision == 2
    image.table.check()


def test_news_of_the_past_changes_nothing() -> None:
    image = created(4)
    later = layout.encode(Term(2, 2))
    put = api.RequestOp(put=api.PutRequest(key=KEYS.term, value=later))
    assert image.wrote([put], 9).term
    old = api.Event(kv=api.KeyValue(key=KEYS.term, value=layout.encode(Term(1, 1)), mod_revision=8))
    assert not image.hear([old], 8).term
    assert image.term == Term(2, 2)
    gone = api.Event(type=api.Event.DELETE, kv=api.KeyValue(key=KEYS.node(3), mod_revision=12))
    image.hear([gone], 12)
    back = api.RequestOp(put=api.PutRequest(key=KEYS.node(3), value=b"never read"))
    image.wrote([back], 11)
    assert image.nodes == {}


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "has version none"),
        (b"\x02abc", "has version 2, this node reads 1"),
        (b"\x01not zlib", "is damaged"),
        (layout.encode("no term"), "is damaged"),
        (layout.encode(Term(1, 2))[:-2], "is cut off"),
        (b"\x01" + zlib.compress(bytes(layout.VALUE_BYTES_MAX + 1)), "is cut off or over"),
    ],
)
def test_a_damaged_value_is_refused_by_name(data: bytes, says: str) -> None:
    with pytest.raises(ProtocolError, match=says):
        layout.decode(KEYS.term, data, Term)


def test_a_chunk_of_other_partitions_is_refused() -> None:
    image = created(128)
    value = layout.encode((PartitionEntry(5), PartitionEntry(6)))
    with pytest.raises(ProtocolError, match="does not hold partitions 0 to 1"):
        image.hear([api.Event(kv=api.KeyValue(key=KEYS.chunk(0), value=value, mod_revision=9))], 9)


def test_stores_without_names_are_read_as_they_were_written_before() -> None:
    before = layout.encode(((4, b"s" * 16, True),))
    assert layout.stores_of(b"stores", before) == (CopyStore(4, b"s" * 16, crashed=True),)


def test_a_key_that_no_space_has_is_refused() -> None:
    event = api.Event(kv=api.KeyValue(key=KEYS.alive + b"x", value=b"", mod_revision=1))
    with pytest.raises(ProtocolError, match="is none of a space"):
        Image(KEYS).hear([event], 1)
