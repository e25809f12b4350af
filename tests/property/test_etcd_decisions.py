"""Changes of a space in etcd under lost requests, lost answers and attempts that land late.

etcd is a dictionary here that carries out transactions as etcd does. Whoever changes the space asks
again after each loss, by the rule of `Space.decide`; nothing may be given, written or ended twice.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from spacegrid.coordinator.etcd import api_pb2 as api
from spacegrid.coordinator.etcd import decisions
from spacegrid.coordinator.etcd.decisions import Done, Try
from spacegrid.coordinator.etcd.image import Image
from spacegrid.coordinator.etcd.layout import Keys, Meta, NodeRecord, Term
from spacegrid.errors import ConnectionFailed, ProtocolError
from spacegrid.machine.table import PartitionEntry, Registration, State, new_table

KEYS = Keys("shop")
STEPS = 120


class FakeEtcd:
    """Keys, their revisions, and the requests that are still on their way."""

    def __init__(self, draw: random.Random) -> None:
        self.draw = draw
        self.kvs: dict[bytes, api.KeyValue] = {}
        self.revision = 1
        self.late: list[api.TxnRequest] = []

    def image(self) -> Image:
        image = Image(KEYS)
        image.read(self.kvs.values(), self.revision)
        return image

    def carry_out(self, request: api.TxnRequest) -> bool:
        if not all(self._holds(compare) for compare in request.compare):
            return False
        self.revision += 1
        for operation in request.success:
            if operation.WhichOneof("request") == "put":
                key = operation.put.key
                created = self.kvs[key].create_revision if key in self.kvs else self.revision
                self.kvs[key] = api.KeyValue(
                    key=key,
                    value=operation.put.value,
                    create_revision=created,
                    mod_revision=self.revision,
                )
            else:
                self.kvs.pop(operation.delete_range.key, None)
        return True

    def _holds(self, compare: api.Compare) -> bool:
        kv = self.kvs.get(compare.key, api.KeyValue())
        if compare.target == api.Compare.MOD:
            return kv.mod_revision == compare.mod_revision
        assert compare.target == api.Compare.CREATE
        if compare.result == api.Compare.GREATER:
            return kv.create_revision > compare.create_revision
        return kv.create_revision == compare.create_revision

    def send(self, request: api.TxnRequest) -> bool:
        """As over a bad network; earlier requests may land first."""
        while self.late and self.draw.random() < 0.5:
            self.carry_out(self.late.pop(self.draw.randrange(len(self.late))))
        match self.draw.randrange(6):
            case 0:
                raise ConnectionFailed("the request is lost")
            case 1:
                self.late.append(request)
                raise ConnectionFailed("the request is late")
            case 2:
                self.carry_out(request)
                raise ConnectionFailed("the answer is lost")
            case _:
                return self.carry_out(request)

    def decide(self, decide: Callable[[Image, bool], Try[Any] | Done[Any]]) -> Any:
        in_doubt = False
        while True:
            step = decide(self.image(), in_doubt)
            if isinstance(step, Done):
                return step.result
            try:
                if self.send(step.request):
                    return step.result
            except ConnectionFailed:
                in_doubt = True


class World:
    """Nodes that join, end, campaign and write, and what they were told."""

    def __init__(self, seed: int) -> None:
        self.draw = random.Random(seed)
        self.etcd = FakeEtcd(self.draw)
        self.alive: dict[int, NodeRecord] = {}
        self.given: list[int] = []
        self.terms: dict[int, int] = {}
        self.written: list[int] = []
        self.in_doubt = 0
        table = new_table(bytes(16), partition_count=4, copies=2, min_in_sync=1)
        meta = Meta(table.life, 4, 2, 1, 1, etcd_cluster=1)
        self.etcd.decide(lambda image, _: decisions.create(image, meta, table))

    def join(self) -> None:
        boot = self.draw.randbytes(16)
        record = NodeRecord(Registration(name=boot.hex()), boot)
        accepted = self.etcd.decide(lambda image, _: decisions.join(image, record, 7))
        self.given.append(accepted.incarnation)
        self.alive[accepted.incarnation] = NodeRecord(accepted, boot)

    def end(self, incarnation: int) -> None:
        del self.alive[incarnation]
        seen = self.etcd.image().mod(KEYS.node(incarnation))
        assert self.etcd.decide(
            lambda image, _: decisions.end(image, incarnation, seen, proved=True)
        )
        with pytest.raises(ProtocolError, match="has ended"):
            self.etcd.decide(lambda image, _: decisions.campaign(image, incarnation, 0))

    def campaign(self, incarnation: int) -> None:
        known = self.etcd.image().term.term
        found = self.etcd.decide(lambda image, _: decisions.campaign(image, incarnation, known))
        assert self.terms.setdefault(found.term, found.incarnation) == found.incarnation

    def write(self, incarnation: int) -> None:
        image = self.etcd.image()
        table, term = image.table, image.term
        partition = self.draw.randrange(4)
        version = table.entries[partition].version + 1
        entry = PartitionEntry(partition, 1, version, State.OK, incarnation, in_sync=(incarnation,))
        mark = self.draw.randbytes(8)
        try:
            result = self.etcd.decide(
                lambda image, in_doubt: decisions.write(
                    image,
                    table,
                    [entry],
                    term=Term(incarnation, term.term),
                    write=mark,
                    in_doubt=in_doubt,
                )
            )
        except ConnectionFailed:
            self.in_doubt += 1
            return
        if result.accepted:
            assert term.incarnation == incarnation
            self.written.append(result.revision)
            assert self.etcd.image().table.entries[partition].version >= version

    def step(self) -> None:
        incarnation = self.draw.choice(list(self.alive)) if self.alive else 0
        match self.draw.randrange(6):
            case 0:
                self.join()
            case 1 if len(self.alive) > 2:
                self.end(incarnation)
            case 2 if incarnation:
                self.campaign(incarnation)
            case _ if incarnation:
                self.write(incarnation)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_is_given_or_written_twice_however_answers_get_lost(seed: int) -> None:
    world = World(seed)
    for _ in range(STEPS):
        world.step()
    assert len(set(world.given)) == len(world.given)
    assert world.given == sorted(world.given)
    assert len(set(world.written)) == len(world.written)
    assert world.written == sorted(world.written)
    image = world.etcd.image()
    image.table.check()
    assert set(image.nodes) == set(world.alive)
    # Every revision was answered for, but those of writes that nobody could tell any more.
    unknown = image.table.revision - 1 - len(world.written)
    assert 0 <= unknown <= world.in_doubt
    assert world.written
