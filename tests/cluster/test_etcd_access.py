"""etcd that lets in only who it knows: certificates of its own authority, users and passwords."""

from __future__ import annotations

import asyncio
import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest
from coordinator_clusters import EtcdSpace
from etcd import Etcd
from spacegrid.config import load
from spacegrid.coordinator.etcd import EtcdCoordinator, EtcdOptions, decisions
from spacegrid.coordinator.etcd.client import EtcdClient
from spacegrid.coordinator.etcd.layout import Keys
from spacegrid.errors import ConfigError, ConnectionFailed, ProtocolError
from spacegrid.machine.table import Registration
from spacegrid.security.authority import Authority
from spacegrid.security.secret import Secret


@dataclass
class Files:
    """Certificates of one authority."""

    ca: Path
    cert: Path
    key: Path


def certificates(folder: Path) -> Files:
    now = datetime.datetime.now(datetime.UTC)
    issued = Authority.create(folder, "etcd", now).issue("member", ["127.0.0.1"], now)
    return Files(folder / "ca.crt", issued.path, issued.path)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    return certificates(tmp_path_factory.mktemp("certs") / "own")


@pytest.fixture(scope="module")
def secure(files: Files, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Etcd]:
    folder = tmp_path_factory.mktemp("secure")
    with Etcd(folder, tls=(files.ca, files.cert, files.key)) as etcd:
        yield etcd


def options(etcd: Etcd, files: Files | None = None, **more: str) -> EtcdOptions:
    """As a node reads them from its settings."""
    given: dict[str, str] = {"coordinator": etcd.url, **more}
    if files is not None:
        given |= {"etcd_ca": str(files.ca)}
        given |= {"etcd_cert": str(files.cert), "etcd_key": str(files.key)}
    return EtcdOptions.of(load(given, environ={}))


async def join(space: EtcdSpace, timeout_s: float = 10.0) -> None:
    """Join with no process behind it, which nobody looks for in these tests."""
    node = EtcdCoordinator(space.options, timeout_s=timeout_s)
    await node.join(Registration(name="a"))


async def test_a_node_joins_over_tls(secure: Etcd, files: Files) -> None:
    space = EtcdSpace(secure)
    space.options = options(secure, files)
    first, second = await space.node("a"), await space.node("b")
    controller = await first.campaign(0)
    assert (await first.write(controller.term, 1, [])).accepted
    assert await second.confirm() == controller
    await space.stop()


async def test_etcd_of_another_authority_is_not_believed(
    secure: Etcd, files: Files, tmp_path: Path
) -> None:
    other = certificates(tmp_path / "other")
    space = EtcdSpace(secure)
    space.options = options(secure, Files(other.ca, files.cert, files.key))
    with pytest.raises(ConnectionFailed):
        await join(space, timeout_s=0.5)


async def test_a_node_without_a_certificate_is_not_let_in(secure: Etcd, files: Files) -> None:
    space = EtcdSpace(secure)
    space.options = options(secure, etcd_ca=str(files.ca))
    with pytest.raises(ConnectionFailed):
        await join(space, timeout_s=0.5)


def test_a_key_that_others_can_read_is_refused(secure: Etcd, files: Files, tmp_path: Path) -> None:
    key = tmp_path / "open.key"
    key.write_bytes(files.key.read_bytes())
    key.chmod(0o644)
    with pytest.raises(ConfigError, match="allowed is 0600"):
        options(secure, Files(files.ca, files.cert, key))


@pytest.fixture
def guarded(tmp_path: Path) -> Iterator[Etcd]:
    """An etcd with users; `grid` may use /spacegrid/ and nothing else."""
    with Etcd(tmp_path / "etcd") as etcd:
        for command in (
            "user add root:root",
            "role add grid",
            "role grant-permission --prefix=true grid readwrite /spacegrid/",
            "user add grid:secret",
            "user grant-role grid grid",
            "auth enable",
        ):
            etcd.ctl(*command.split())
        etcd.login = "root:root"
        yield etcd


async def test_a_user_logs_in_and_again_when_etcd_forgot(guarded: Etcd, tmp_path: Path) -> None:
    password = tmp_path / "password"
    password.write_text("secret\n")
    password.chmod(0o600)
    space = EtcdSpace(guarded)
    space.options = options(guarded, etcd_user="grid", etcd_password_file=str(password))
    assert "secret" not in repr(space.options)
    node = await space.node("a")
    controller = await node.campaign(0)
    # A member that restarts knows no token any more.
    [member] = guarded.members
    member.kill()
    guarded.launch(member)
    guarded.wait_healthy()
    assert await node.confirm() == controller
    assert (await node.write(controller.term, 1, [])).accepted
    await space.stop()


async def test_calls_that_fail_together_with_an_old_token_all_get_the_new_one(
    guarded: Etcd, tmp_path: Path
) -> None:
    client = EtcdClient(
        msgspec.structs.replace(
            options(guarded), user="grid", password=Secret("secret"), space="together"
        )
    )
    client._token = "forgotten.1"
    # All are refused once, and only the first of them finds the old token still there.
    read = decisions.read_keys((Keys("together").term,))
    answers = await asyncio.gather(*(client.read(read, 5.0) for _ in range(20)))
    assert all(answer.header.revision for answer in answers)
    await client.close()


async def test_a_wrong_password_is_refused(guarded: Etcd) -> None:
    space = EtcdSpace(guarded)
    space.options = msgspec.structs.replace(
        space.options, user="grid", password=Secret("something else")
    )
    with pytest.raises(ProtocolError, match="authentication failed"):
        await join(space)


async def test_a_user_without_the_right_to_the_keys_is_refused(guarded: Etcd) -> None:
    guarded.ctl("user", "add", "nobody:secret")
    space = EtcdSpace(guarded)
    space.options = msgspec.structs.replace(space.options, user="nobody", password=Secret("secret"))
    with pytest.raises(ProtocolError, match="permission denied"):
        await join(space)
