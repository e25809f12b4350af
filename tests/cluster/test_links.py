"""Fault proxies: what passes, what waits, and that healing loses nothing."""

import asyncio
import contextlib
from collections.abc import AsyncIterator

import pytest
from spacegrid.testing import FaultLinks


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while line := await reader.readline():
            writer.write(b"echo " + line)
    writer.close()
    with contextlib.suppress(ConnectionError):
        await writer.wait_closed()


@pytest.fixture
async def links() -> AsyncIterator[FaultLinks]:
    """Two nodes; b is an echo server."""
    echoing: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        echoing.add(task)
        await echo(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    with FaultLinks(["a", "b"]) as made:
        made.set_target("b", f"127.0.0.1:{server.sockets[0].getsockname()[1]}")
        yield made
    server.close()
    await asyncio.gather(*echoing)


async def connect(links: FaultLinks) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, _, port = links.address("a", "b").rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def test_bytes_pass_both_ways(links: FaultLinks) -> None:
    reader, writer = await connect(links)
    writer.write(b"1\n")
    assert await reader.readline() == b"echo 1\n"
    writer.close()
    await writer.wait_closed()


@pytest.mark.parametrize(("source", "target"), [("a", "b"), ("b", "a")])
async def test_what_is_sent_into_a_cut_direction_waits_and_arrives_after_it(
    links: FaultLinks, source: str, target: str
) -> None:
    reader, writer = await connect(links)
    writer.write(b"1\n")
    assert await reader.readline() == b"echo 1\n"
    links.cut(source, target)
    assert links.cuts() == [(source, target)]
    writer.write(b"2\n")
    answer = asyncio.ensure_future(reader.readline())
    assert (await asyncio.wait([answer], timeout=0.1))[0] == set()
    links.heal(source, target)
    assert await answer == b"echo 2\n"
    writer.close()


async def test_no_connection_comes_about_over_a_cut_link(links: FaultLinks) -> None:
    links.isolate("a", ["b"])
    reader, writer = await connect(links)
    writer.write(b"1\n")
    answer = asyncio.ensure_future(reader.readline())
    assert (await asyncio.wait([answer], timeout=0.1))[0] == set()
    links.heal_all()
    assert await answer == b"echo 1\n"
    writer.close()


async def test_a_node_that_does_not_listen_refuses(links: FaultLinks) -> None:
    host, _, port = links.address("b", "a").rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    assert await reader.read() == b""
    writer.close()


def test_a_node_is_told_to_reach_everyone_through_the_proxies() -> None:
    with FaultLinks(["a", "b", "c"]) as links:
        arguments = links.arguments_of("a")
        assert arguments == [
            *("--coordinator", f"local://{links.address('a', 'coordinator')}"),
            *("--via", f"b={links.address('a', 'b')}"),
            *("--via", f"c={links.address('a', 'c')}"),
        ]
