"""The table of every call and role (X2): complete, and equal to what the gate lets pass."""

import pytest
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health_pb2
from spacegrid._core import Gate, GateRefused
from spacegrid.security import access, tokens
from spacegrid.security.access import METHODS, Role
from spacegrid.v1 import admin_pb2, coordinator_pb2, data_pb2, peers_pb2, units_pb2

FILES = (admin_pb2, coordinator_pb2, data_pb2, peers_pb2, units_pb2, health_pb2)
SERVICES: list[ServiceDescriptor] = [
    service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()
]
ROWS = [(service.full_name, call.name) for service in SERVICES for call in service.methods]

# Who may call what, written a second time: an error in one of the two shows.
READERS, WRITERS, ADMINS = {"read", "write", "admin"}, {"write", "admin"}, {"admin"}
EXPECTED = {
    "spacegrid.v1.Data/Stream": READERS | {"node"},
    "spacegrid.v1.Data/Put": WRITERS,
    "spacegrid.v1.Data/PutMany": WRITERS,
    "spacegrid.v1.Data/Delete": WRITERS,
    "spacegrid.v1.Units/Invoke": WRITERS,
    "spacegrid.v1.Admin/Flush": WRITERS,
    "spacegrid.v1.Admin/Accept": ADMINS,
    "spacegrid.v1.Admin/Reload": ADMINS,
    "spacegrid.v1.Admin/Stop": ADMINS,
}
EXPECTED_BY_SERVICE = {
    "spacegrid.v1.Data": READERS,
    "spacegrid.v1.Admin": READERS,
    "grpc.health.v1.Health": READERS,
    "spacegrid.v1.Peers": {"node"},
    "spacegrid.v1.Coordinator": {"node"},
}


def test_every_call_of_every_service_has_a_row() -> None:
    described = {service.full_name: {m.name for m in service.methods} for service in SERVICES}
    assert {service: set(calls) for service, calls in METHODS.items()} == described


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, object]]:
    file = tmp_path_factory.mktemp("tokens") / "tokens"
    found: dict[str, dict[str, object]] = {
        role: {"authorization": f"Bearer {tokens.add(file, role, role).reveal()}".encode()}
        for role in access.ROLE_NAMES
    }
    found["node"] = {"certificate": "spacegrid://shop/node/node-1"}
    found["nobody"] = {}
    found["other cluster"] = {"certificate": "spacegrid://other/node/node-1"}
    found["file"] = {"text": tokens.read(file)}
    return found


@pytest.mark.parametrize(("service", "call"), ROWS)
def test_a_call_is_let_pass_for_exactly_these_roles(
    callers: dict[str, dict[str, object]], service: str, call: str
) -> None:
    gate = Gate("shop", access.methods())
    gate.set_tokens(str(callers["file"]["text"]))
    allowed = set()
    for who, proof in callers.items():
        if who == "file":
            continue
        try:
            gate.admit(f"/{service}/{call}", **proof)  # type: ignore[arg-type]
        except GateRefused as refused:
            code, _message, known = refused.args
            assert known is (who in (*access.ROLE_NAMES, "node")), (who, code)
        else:
            allowed.add(who)
    expected = EXPECTED.get(f"{service}/{call}", EXPECTED_BY_SERVICE.get(service))
    assert allowed == expected


def test_what_is_not_in_the_table_is_refused(callers: dict[str, dict[str, object]]) -> None:
    gate = Gate("shop", access.methods())
    gate.set_tokens(str(callers["file"]["text"]))
    for path in ("/spacegrid.v1.Data/Format", "/spacegrid.v1.Data/get", "/", "", "*"):
        with pytest.raises(GateRefused) as refused:
            gate.admit(path, authorization=callers["admin"]["authorization"])  # type: ignore[arg-type]
        assert refused.value.args[0] == "no_such_method"


def test_roles_of_tokens_are_ordered() -> None:
    for calls in METHODS.values():
        for roles in calls.values():
            assert not (roles & Role.READ and not roles & Role.WRITE)
            assert not (roles & Role.WRITE and not roles & Role.ADMIN)
            assert not roles & Role.LOCAL
