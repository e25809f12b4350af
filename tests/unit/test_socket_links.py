"""The blocking client's own links: a socket per frame, found dead before it is used again."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from spacegrid import _core
from spacegrid.security.client import PLAIN
from spacegrid.transport.sockets import LinkBroken, SocketLink, SocketLinks


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server


def address_of(listener: socket.socket) -> str:
    return f"127.0.0.1:{listener.getsockname()[1]}"


def request_frame() -> bytes:
    client = _core.Client(1, 4)
    client.set_routes(1, [0] * 4)
    client.get(client.map("m"), b"k", object(), 1000)
    [(_slot, frame)] = client.take_frames(0)
    return frame


def test_nobody_there_is_surely_not_sent(listener: socket.socket) -> None:
    address = address_of(listener)
    listener.close()
    with pytest.raises(LinkBroken) as broken:
        SocketLink(address, PLAIN, 1.0)
    assert broken.value.sent is False


def test_a_node_that_says_nothing_is_waited_for_until_the_time_is_over(
    listener: socket.socket,
) -> None:
    link = SocketLink(address_of(listener), PLAIN, 1.0)
    began = time.monotonic()
    link.send(request_frame(), 0.2)
    with pytest.raises(LinkBroken, match="no answer in time") as broken:
        link.answers(0.2, 0.2)
    assert broken.value.sent is True
    assert time.monotonic() - began > 0.15
    link.close()


def test_a_connection_that_the_node_closed_is_not_used_again(listener: socket.socket) -> None:
    links = SocketLinks(PLAIN)
    address = address_of(listener)
    first = links.take(address, 1.0)
    accepted, _ = listener.accept()
    links.give_back(address, first)
    began = time.monotonic()
    assert links.take(address, 1.0) is first, "it is alive, and to know that takes no time"
    assert time.monotonic() - began < 0.5
    links.give_back(address, first)
    accepted.close()
    until = time.monotonic() + 5
    while first.is_alive():
        assert time.monotonic() < until
        time.sleep(0.01)
    second = links.take(address, 1.0)
    assert second is not first
    links.drop(second)
    links.close()


def test_closing_tells_a_thread_that_waits(listener: socket.socket) -> None:
    links = SocketLinks(PLAIN)
    link = links.take(address_of(listener), 1.0)
    link.send(request_frame(), 5.0)
    told: list[LinkBroken] = []

    def wait() -> None:
        try:
            link.answers(30.0, 30.0)
        except LinkBroken as error:
            told.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    links.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(told) == 1
    with pytest.raises(LinkBroken, match="closed"):
        links.take(address_of(listener), 1.0)
