"""A cluster with TLS and tokens: who gets in, who does not, and what is written about it."""

from __future__ import annotations

import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest
import spacegrid
from etcd import Etcd
from spacegrid import errors
from spacegrid.coordinator.etcd import EtcdOptions
from spacegrid.node.secrets import SECRETS, ClusterSecrets
from spacegrid.security import tokens
from spacegrid.security.access import METHODS, ROLE_NAMES, Role
from spacegrid.security.authority import Authority
from spacegrid.security.client import ClientSecurity, client_security
from spacegrid.security.files import load_material, node_dns
from spacegrid.security.secret import Secret
from spacegrid.testing import LocalCluster
from spacegrid.transport.channel import CHANNEL_OPTIONS
from spacegrid.v1 import data_pb2, data_pb2_grpc, peers_pb2, peers_pb2_grpc

REFUSED = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
STREAMS = {"Data/Stream", "Peers/Link", "Coordinator/Join", "Health/Watch"}
ONE_SIDED = {"Health/Watch"}
PATHS = [f"/{service}/{call}" for service, calls in METHODS.items() for call in calls]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(
        nodes=3, data=tmp_path_factory.mktemp("tls"), partitions=16, lmdb=False, tls=True
    ) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def token(cluster: LocalCluster) -> dict[str, str]:
    """A token of each role."""
    assert cluster.secrets is not None
    made = {role: cluster.secrets.token(f"the-{role}", role) for role in ROLE_NAMES}
    wait_for(lambda: let_in(cluster, made["admin"]) == {True}, "the nodes to read the tokens")
    return made


def wait_for(condition: Callable[[], object], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.05)


def let_in(cluster: LocalCluster, token: str) -> set[bool]:
    """Whether nodes let a token in; two answers while some have not read it again."""
    path = "/spacegrid.v1.Data/GetRoutes"
    return {call(cluster, name, path, token=token) not in REFUSED for name in cluster.nodes}


def authority(cluster: LocalCluster) -> Path:
    assert cluster.secrets is not None
    return cluster.secrets.authority


def node_files(cluster: LocalCluster, name: str) -> tuple[bytes, bytes, bytes]:
    assert cluster.secrets is not None
    pair = cluster.secrets.folder / f"{name}.pem"
    return load_material(authority(cluster), pair, pair).pem


def open_channel(
    cluster: LocalCluster, to: str, pem: tuple[bytes, bytes | None, bytes | None]
) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(pem[0], private_key=pem[2], certificate_chain=pem[1])
    options = [*CHANNEL_OPTIONS, ("grpc.ssl_target_name_override", node_dns(to))]
    return grpc.secure_channel(cluster.nodes[to].address, credentials, options=options)


def call(
    cluster: LocalCluster,
    to: str,
    path: str,
    *,
    token: str | None = None,
    pem: tuple[bytes, bytes | None, bytes | None] | None = None,
    body: bytes = b"",
) -> grpc.StatusCode:
    """Make one call with a raw body, and say how it ended."""
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    given = pem or (authority(cluster).read_bytes(), None, None)
    name = "/".join(part.rpartition(".")[2] for part in path[1:].split("/"))
    with open_channel(cluster, to, given) as channel:
        try:
            if name in ONE_SIDED:
                stream: Any = channel.unary_stream(path)(body, timeout=5, metadata=metadata)
                next(iter(stream), None)
                stream.cancel()
            elif name in STREAMS:
                for _ in channel.stream_stream(path)(iter([body]), timeout=5, metadata=metadata):
                    break
            else:
                channel.unary_unary(path)(body, timeout=5, metadata=metadata)
        except grpc.RpcError as error:
            code: grpc.StatusCode = error.code()
            return code
    return grpc.StatusCode.OK


# ---- let in


def test_both_faces_read_and_write_over_tls(cluster: LocalCluster) -> None:
    with spacegrid.connect_sync(*cluster.addresses, **cluster.connection) as grid:
        orders = grid.map("orders", key=str, value=dict)
        for n in range(50):
            orders.put(f"k{n}", {"n": n})
        assert [orders.get(f"k{n}") for n in range(50)] == [{"n": n} for n in range(50)]
    cluster.wait_ready()


async def test_a_stream_of_frames_goes_over_tls(cluster: LocalCluster) -> None:
    async with spacegrid.connect(*cluster.addresses, **cluster.connection) as grid:
        orders = grid.map("orders", key=str, value=int)
        pending = [orders.put(f"{{{n}}}s", n) for n in range(200)]
        for put in pending:
            await put
        assert await orders.get("{7}s") == 7


def test_the_command_line_takes_its_secrets_from_files(cluster: LocalCluster) -> None:
    assert cluster.secrets is not None
    word = [sys.executable, "-m", "spacegrid", "--tls-ca", str(authority(cluster))]
    word += ["--token-file", str(cluster.secrets.admin_token)]
    at = ["--at", cluster.addresses[0]]
    done = subprocess.run([*word, "put", "cli", "tea", "7", *at], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*word, "get", "cli", "tea", *at], capture_output=True, text=True)
    assert done.stdout.strip() == "7"
    bare = [sys.executable, "-m", "spacegrid", "--tls-ca", str(authority(cluster)), "status", *at]
    done = subprocess.run(bare, capture_output=True, text=True)
    assert done.returncode == 1
    assert "wants a token" in done.stderr


# ---- the matrix (X2)


@pytest.mark.parametrize("path", PATHS)
def test_a_node_lets_each_call_pass_for_the_roles_of_the_table(
    cluster: LocalCluster, token: dict[str, str], path: str
) -> None:
    service, _, method = path[1:].partition("/")
    allowed = METHODS[service][method]
    callers: dict[str, dict[str, Any]] = {role: {"token": token[role]} for role in ROLE_NAMES}
    callers["node"] = {"pem": node_files(cluster, "node-2")}
    callers["nobody"] = {}
    for who, proof in callers.items():
        may = who != "nobody" and bool(allowed & Role[who.upper()])
        if may and method in ("Stop", "StopCluster"):
            continue
        code = call(cluster, "node-1", path, **proof)
        if service == "spacegrid.v1.Peers" and may:
            # Let in as a node, and then refused for a hello that names none.
            assert code in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.FAILED_PRECONDITION)
            continue
        expected = "nobody" if who == "nobody" else "denied"
        if may:
            assert code not in REFUSED, (who, code)
        else:
            assert code is REFUSED[expected == "denied"], (who, code)


def test_a_call_that_is_in_no_table_is_refused(
    cluster: LocalCluster, token: dict[str, str]
) -> None:
    code = call(cluster, "node-1", "/spacegrid.v1.Data/Format", token=token["admin"])
    assert code is grpc.StatusCode.PERMISSION_DENIED


# ---- rights of each operation in a frame


async def test_a_reader_reads_in_streams_and_changes_nothing(
    cluster: LocalCluster, token: dict[str, str]
) -> None:
    options: dict[str, Any] = {"tls": authority(cluster), "token": token["write"]}
    async with spacegrid.connect(*cluster.addresses, **options) as grid:
        await grid.map("kept", key=str, value=int).put("a", 1)
    options["token"] = token["read"]
    async with spacegrid.connect(*cluster.addresses, **options) as grid:
        kept = grid.map("kept", key=str, value=int)
        assert await kept.get("a") == 1
        assert await kept.contains("a")
        for change in (kept.put("a", 2), kept.delete("a"), kept.incr("a")):
            with pytest.raises(errors.PermissionDenied):
                await change
        with pytest.raises(errors.PermissionDenied):
            await grid.call("Shop.buy", sku="tea")
        assert await kept.get("a") == 1


def test_a_reader_reads_in_exchanges_and_changes_nothing(
    cluster: LocalCluster, token: dict[str, str]
) -> None:
    options: dict[str, Any] = {"tls": authority(cluster), "token": token["read"]}
    with spacegrid.connect_sync(*cluster.addresses, **options) as grid:
        kept = grid.map("kept-sync", key=str, value=int)
        assert kept.get("a") is None
        for change in (kept.put, kept.put_if_absent):
            with pytest.raises(errors.PermissionDenied) as raised:
                change("a", 2)
            assert not raised.value.maybe_applied


def test_a_reader_gains_nothing_by_asking_another_node(
    cluster: LocalCluster, token: dict[str, str]
) -> None:
    """Whichever node is asked, and wherever it passes the call on to, the caller's role counts."""
    for name in cluster.nodes:
        with open_channel(cluster, name, (authority(cluster).read_bytes(), None, None)) as channel:
            stub = data_pb2_grpc.DataStub(channel)
            reader = (("authorization", f"Bearer {token['read']}"),)
            writer = (("authorization", f"Bearer {token['write']}"),)
            put = data_pb2.PutRequest(map="passed-on", key=b"k", value=b"v")
            with pytest.raises(grpc.RpcError) as refused:
                stub.Put(put, timeout=5, metadata=reader)
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert stub.Put(put, timeout=5, metadata=writer).applied
            get = data_pb2.GetRequest(map="passed-on", key=b"k")
            assert stub.Get(get, timeout=5, metadata=reader).value.data == b"v"


# ---- not let in


def test_clients_without_a_good_token_are_told_so_at_once(
    cluster: LocalCluster, token: dict[str, str]
) -> None:
    for bad in (None, "sg1.aa.bb", token["read"][:-2] + "xx"):
        with pytest.raises(errors.AuthenticationFailed):
            spacegrid.connect_sync(*cluster.addresses, tls=authority(cluster), token=bad, timeout=5)


async def test_a_cluster_of_another_authority_is_not_trusted(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    other = Authority.create(tmp_path / "other", "local", datetime.now(UTC))
    options: dict[str, Any] = {"tls": other.folder / "ca.crt", "token": "sg1.a.b", "timeout": 5}
    with pytest.raises(errors.AuthenticationFailed, match="not trusted"):
        spacegrid.connect_sync(*cluster.addresses, **options)
    with pytest.raises(errors.AuthenticationFailed, match="not trusted"):
        await spacegrid.connect(*cluster.addresses, **options)


def handshake_fails(cluster: LocalCluster, pem: tuple[bytes, bytes, bytes]) -> bool:
    trusted = (authority(cluster).read_bytes(), pem[1], pem[2])
    code = call(cluster, "node-1", "/spacegrid.v1.Data/GetRoutes", pem=trusted)
    return code is grpc.StatusCode.UNAVAILABLE


def test_a_node_of_another_authority_is_no_node(cluster: LocalCluster, tmp_path: Path) -> None:
    now = datetime.now(UTC)
    path = Authority.create(tmp_path / "other", "local", now).issue("node-2", ["::1"], now).path
    pem = load_material(tmp_path / "other" / "ca.crt", path, path).pem
    assert handshake_fails(cluster, pem)
    assert not handshake_fails(cluster, node_files(cluster, "node-2"))


def test_a_node_whose_certificate_has_ended_is_no_node(cluster: LocalCluster) -> None:
    assert cluster.secrets is not None
    long_ago = datetime.now(UTC) - timedelta(days=400)
    path = Authority(cluster.secrets.folder).issue("node-8", ["127.0.0.1"], long_ago).path
    pem = load_material(authority(cluster), path, path).pem
    assert handshake_fails(cluster, pem)


def test_a_node_speaks_for_itself_only(cluster: LocalCluster) -> None:
    status = cluster.status("node-1")
    incarnations = {node.name: node.incarnation for node in status.nodes}
    hello = peers_pb2.PeerHello(
        protocol_version=1,
        cluster_id=status.cluster_id,
        node="node-3",
        incarnation=incarnations["node-3"],
        receiver=incarnations["node-1"],
    )
    with open_channel(cluster, "node-1", node_files(cluster, "node-2")) as channel:
        stub = peers_pb2_grpc.PeersStub(channel)
        with pytest.raises(grpc.RpcError) as refused:
            stub.RequestChanges(peers_pb2.ChangesRequest(hello=hello), timeout=5)
        assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        for name in ("node-3", "node-2"):  # with its own name it still is not that incarnation
            hello.node = name
            with pytest.raises(grpc.RpcError) as refused:
                next(stub.Link(iter([peers_pb2.PeerFrame(hello=hello)]), timeout=5))
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
            assert "the certificate names node-2" in refused.value.details()


def test_headers_that_say_who_calls_are_taken_from_nobody(cluster: LocalCluster) -> None:
    forged = (("spacegrid-caller-role", "admin"), ("spacegrid-caller-name", "root"))
    with open_channel(cluster, "node-1", (authority(cluster).read_bytes(), None, None)) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            channel.unary_unary("/spacegrid.v1.Admin/Status")(b"", timeout=5, metadata=forged)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED


# ---- strangers on the socket


def test_plain_text_is_no_way_in(cluster: LocalCluster) -> None:
    with pytest.raises(errors.ConnectionFailed, match="a cluster with TLS wants tls="):
        spacegrid.connect_sync(cluster.addresses[0], timeout=2)
    host, port = cluster.nodes["node-1"].address.split(":")
    with socket.create_connection((host, int(port)), timeout=8) as plain:
        plain.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0" * 64)
        answered = plain.recv(4096)
        # A TLS alert at most, and the end; no HTTP/2.
        assert len(answered) <= 7
        assert plain.recv(4096) == b""


def test_old_tls_is_refused(cluster: LocalCluster) -> None:
    host, port = cluster.nodes["node-1"].address.split(":")
    context = ssl.create_default_context(cafile=str(authority(cluster)))
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    with (
        socket.create_connection((host, int(port)), timeout=5) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def test_a_stranger_sends_little_and_not_for_long(cluster: LocalCluster) -> None:
    host, port = cluster.nodes["node-1"].address.split(":")
    context = client_security(authority(cluster)).context
    assert context is not None
    started = time.monotonic()
    with (
        socket.create_connection((host, int(port)), timeout=12) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as silent,
    ):
        # Settings only, and then nothing: the connection ends by itself.
        silent.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\4\0\0\0\0\0")
        while silent.recv(65_536):
            pass
    assert 3.0 < time.monotonic() - started < 9.0
    big = data_pb2.PutRequest(map="m", key=b"k", value=b"v" * 900_000).SerializeToString()
    code = call(cluster, "node-1", "/spacegrid.v1.Data/Put", body=big)
    assert code is grpc.StatusCode.UNAUTHENTICATED


# ---- while it runs


def test_tokens_come_and_go_without_a_restart(cluster: LocalCluster) -> None:
    assert cluster.secrets is not None
    made = cluster.secrets.token("passing", "write")
    wait_for(lambda: let_in(cluster, made) == {True}, "a new token to be let in")
    options: dict[str, Any] = {"tls": authority(cluster), "token": made, "timeout": 5}
    with spacegrid.connect_sync(*cluster.addresses, **options) as grid:
        entries = grid.map("passing", key=str, value=int)
        entries.put("a", 1)
        assert tokens.remove(cluster.secrets.tokens, "passing") == 1
        wait_for(lambda: let_in(cluster, made) == {False}, "the token to be refused")
        with pytest.raises(errors.AuthenticationFailed):
            entries.put("a", 2)


async def test_a_stream_that_is_open_ends_with_its_token(cluster: LocalCluster) -> None:
    assert cluster.secrets is not None
    made = cluster.secrets.token("streaming", "write")
    wait_for(lambda: let_in(cluster, made) == {True}, "a new token to be let in")
    options: dict[str, Any] = {"tls": authority(cluster), "token": made}
    async with spacegrid.connect(*cluster.addresses, **options) as grid:
        entries = grid.map("streaming", key=str, value=int)
        await entries.put("a", 1)
        tokens.remove(cluster.secrets.tokens, "streaming")
        wait_for(lambda: let_in(cluster, made) == {False}, "the token to be refused")
        with pytest.raises(errors.DeadlineExceeded) as unknown:
            await entries.put("a", 2, timeout=2)
        assert isinstance(unknown.value.reason, errors.AuthenticationFailed)
    with spacegrid.connect_sync(*cluster.addresses, **cluster.connection) as grid:
        assert grid.map("streaming", key=str, value=int).get("a") == 1


def test_renewed_certificates_are_shown_without_a_restart(cluster: LocalCluster) -> None:
    assert cluster.secrets is not None

    def serial() -> int:
        host, port = cluster.nodes["node-3"].address.split(":")
        context = client_security(authority(cluster)).context
        assert context is not None
        with (
            socket.create_connection((host, int(port)), timeout=5) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as shown,
        ):
            found = shown.getpeercert()
            assert found is not None
            return int(str(found["serialNumber"]), 16)

    before = serial()
    Authority(cluster.secrets.folder).renew("node-3", datetime.now(UTC))
    wait_for(lambda: serial() != before, "the new certificate to be shown")
    pair = cluster.secrets.folder / "node-3.pem"
    good = pair.read_bytes()
    renewed = serial()
    tokens.write_private(pair, b"damaged")
    log = cluster.nodes["node-3"].log
    wait_for(lambda: "not read again" in log.read_text(), "the damaged file to be told of")
    assert serial() == renewed
    tokens.write_private(pair, good)


def test_the_log_tells_who_was_refused_and_never_a_secret(
    cluster: LocalCluster, token: dict[str, str]
) -> None:
    call(cluster, "node-1", "/spacegrid.v1.Admin/Stop", token=token["read"])
    call(cluster, "node-1", "/spacegrid.v1.Admin/Status", token=token["read"] + "x")
    log = cluster.nodes["node-1"].log

    def told() -> bool:
        text = log.read_text()
        return all(w in text for w in ("role_denied", "bad_token", "the-read", "joined"))

    wait_for(told, "the refusals to be logged")
    for child in cluster.nodes.values():
        text = child.log.read_text()
        assert "PRIVATE KEY" not in text
        for secret in (*token.values(), cluster.connection["token"]):
            assert secret.split(".")[2] not in text
            assert secret not in " ".join(child.command)


def test_security_shows_no_secret_in_its_repr(cluster: LocalCluster) -> None:
    shown = repr(cluster.security) + repr(ClientSecurity(b"", key=b"PRIVATE KEY"))
    assert cluster.connection["token"] not in shown
    assert "PRIVATE KEY" not in shown


# ---- with etcd


def test_a_grid_and_its_etcd_speak_tls_with_one_authority(tmp_path: Path) -> None:
    secrets = ClusterSecrets(tmp_path / "grid" / SECRETS)
    pair = secrets.certificate("etcd")
    with (
        Etcd(tmp_path / "etcd", tls=(secrets.authority, pair, pair)) as etcd,
        LocalCluster(
            nodes=2, data=tmp_path / "grid", partitions=16, coordinator=etcd.url, tls=True
        ) as cluster,
        spacegrid.connect_sync(*cluster.addresses, **cluster.connection) as grid,
    ):
        assert etcd.url.startswith("etcds://")
        entries = grid.map("etcd", key=str, value=int)
        entries.put("a", 1)
        assert entries.get("a") == 1
        key, password = Secret("k3y"), Secret("pass-phrase")
        shown = repr(EtcdOptions(etcd.addresses, "default", True, key=key, password=password))
        assert "k3y" not in shown
        assert "pass-phrase" not in shown
