"""Links to nodes for threads: a socket per frame under way, kept for the next one.

The protocol is `_core.FrameLink`; the thread that waits for an answer reads the socket itself, so
there is no loop and no thread behind it, and threads that share a client wait for their own answers
only. A connection that a node has closed meanwhile is noticed before it is used again.

Invariants: a link has one frame under way at a time, and is kept only when all its answers came.

Who calls: `client_grpc`.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
import time
from typing import Final

from spacegrid._core import FrameLink
from spacegrid.config import split_address
from spacegrid.security.client import ClientSecurity

__all__ = ["LinkBroken", "SocketLink", "SocketLinks"]

CONNECT_TIMEOUT_S: Final = 2.0
IDLE_MAX: Final = 16
"""Links kept to one node while no frame is under way."""
_READ_BYTES: Final = 256 * 1024
_COUNT_OFFSET: Final = 8


class LinkBroken(Exception):
    """A frame has no answer.

    Attributes:
        sent: Whether the frame may have left this process.
        status: The gRPC status that the node gave, None: none.
        waits: Nothing is broken: the answer is not there yet and may be waited for again.
    """

    def __init__(
        self, reason: str, *, sent: bool, status: int | None = None, waits: bool = False
    ) -> None:
        super().__init__(reason)
        self.sent = sent
        self.status = status
        self.waits = waits


class SocketLink:
    """One stream to one node, over a socket of its own."""

    def __init__(self, address: str, security: ClientSecurity, timeout_s: float) -> None:
        """Connect.

        Raises:
            LinkBroken: Nobody listens there, not in time, or nobody that is trusted.
        """
        self._core = FrameLink(address, b"", security.authorization)
        self._sent = False
        self._missing = 0
        self._replies: list[bytes] = []
        try:
            self._socket = _connect(address, security, timeout_s)
        except OSError as error:
            raise LinkBroken(str(error), sent=False) from error

    def send(self, frame: bytes, timeout_s: float) -> None:
        """Send a request frame.

        Raises:
            LinkBroken: The connection broke, or did not take it in time.
        """
        self._core.send(frame)
        self._missing = _count(frame)
        self._replies = []
        self._sent = True
        self._write(time.monotonic() + timeout_s)

    def answers(self, look_s: float, timeout_s: float) -> list[bytes]:
        """Wait for the reply frames with all answers of what was sent.

        Args:
            look_s: How long to wait for the next of them.
            timeout_s: How long to wait at all.

        Raises:
            LinkBroken: The connection broke, or they did not come in time.
        """
        until = time.monotonic() + timeout_s
        while self._missing > 0:
            self._read(min(until, time.monotonic() + look_s))
            self._write(until)
        return self._replies

    def is_alive(self) -> bool:
        """Whether the node has not closed the connection meanwhile; takes what it sent."""
        self._socket.settimeout(0)
        try:
            while data := self._socket.recv(_READ_BYTES):
                self._core.receive(data)
        except (BlockingIOError, ssl.SSLWantReadError):
            return self._core.down is None
        except OSError:
            return False
        return False

    def close(self) -> None:
        """Close the connection; a thread that waits for it is told."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()

    def _write(self, until: float) -> None:
        while output := self._core.output():
            try:
                self._within(until)
                self._socket.sendall(output)
            except OSError as error:
                raise self._broken(error) from error

    def _read(self, until: float) -> None:
        try:
            self._within(until)
            data = self._socket.recv(_READ_BYTES)
        except TimeoutError as error:
            raise LinkBroken("no answer in time", sent=self._sent, waits=True) from error
        except OSError as error:
            raise self._broken(error) from error
        if not data:
            self._core.receive_end()
        for reply in self._core.receive(data):
            self._replies.append(reply)
            self._missing -= _count(reply)
        if self._missing > 0 and (reason := self._core.down) is not None:
            raise LinkBroken(reason, sent=not self._core.refused, status=self._core.status)

    def _within(self, until: float) -> None:
        left_s = until - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._socket.settimeout(left_s)

    def _broken(self, error: OSError) -> LinkBroken:
        reason = "no answer in time" if isinstance(error, TimeoutError) else str(error)
        return LinkBroken(reason, sent=self._sent)


class SocketLinks:
    """The links of one blocking client. Thread-safe."""

    def __init__(self, security: ClientSecurity) -> None:
        self._security = security
        self._lock = threading.Lock()
        self._idle: dict[str, list[SocketLink]] = {}
        self._busy: set[SocketLink] = set()
        self._closed = False

    def take(self, address: str, timeout_s: float) -> SocketLink:
        """A link to a node, for one frame; give it back, or drop it.

        Raises:
            LinkBroken: No connection.
        """
        while True:
            with self._lock:
                idle = self._idle.get(address)
                link = idle.pop() if idle else None
            if link is None:
                link = SocketLink(address, self._security, timeout_s)
            elif not link.is_alive():
                link.close()
                continue
            with self._lock:
                closed = self._closed
                if not closed:
                    self._busy.add(link)
            if closed:
                link.close()
                raise LinkBroken("the client is closed", sent=False)
            return link

    def give_back(self, address: str, link: SocketLink) -> None:
        """Keep a link whose answers have all come."""
        with self._lock:
            self._busy.discard(link)
            idle = self._idle.setdefault(address, [])
            keep = not self._closed and len(idle) < IDLE_MAX
            if keep:
                idle.append(link)
        if not keep:
            link.close()

    def drop(self, link: SocketLink) -> None:
        """Let go of a link."""
        with self._lock:
            self._busy.discard(link)
        link.close()

    def close(self) -> None:
        """Close all links; threads that wait for one are told."""
        with self._lock:
            self._closed = True
            links = [*self._busy, *(link for idle in self._idle.values() for link in idle)]
            self._idle.clear()
            self._busy.clear()
        for link in links:
            link.close()


def _connect(address: str, security: ClientSecurity, timeout_s: float) -> socket.socket:
    host, port = split_address(address)
    host = host.strip("[]")
    wait_s = max(0.001, min(timeout_s, CONNECT_TIMEOUT_S))
    connection = socket.create_connection((host, port), wait_s)
    try:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if security.context is None:
            return connection
        return security.context.wrap_socket(connection, server_hostname=host)
    except BaseException:
        connection.close()
        raise


def _count(frame: bytes) -> int:
    """Operations of a request frame, or replies of a reply frame (proto/FRAME.md)."""
    return int.from_bytes(frame[_COUNT_OFFSET : _COUNT_OFFSET + 4], "little")
