"""The broker's end of one connection: whole requests in, whole answers out, each before a deadline.

A client that stops in the middle of a frame, or that takes no answers, keeps only its own task waiting, and
only for so long. The deadline is one for the whole frame: a byte now and then does not move it. Between
frames there is none: a client may be silent for as long as it lives.
"""

from __future__ import annotations

import math
import socket
from contextlib import suppress
from typing import Final

import anyio

from shmbus import control
from shmbus.control_io import Peer, close_all, peer_of, receive_some, send_some
from shmbus.errors import Refused, ShmbusError

__all__ = ["Connection", "say_no"]


class Connection:
    """One connection, of one task.

    Args:
        connected: the socket, which is this object's from now on.
        frame_seconds: how long the rest of a frame may take, an answer to be taken, and the first frame.
    """

    def __init__(self, connected: socket.socket, frame_seconds: float) -> None:
        connected.setblocking(False)
        self.peer: Final[Peer] = peer_of(connected)
        self._socket = connected
        self._protocol = control.ServerConnection()
        self._frame_seconds = frame_seconds

    async def next_request(self) -> control.Request | None:
        """The next request, or None at the end of the connection.

        Raises:
            Refused: the client broke the protocol, or was too slow.
            OSError: the connection broke.
        """
        deadline: float | None = None
        while True:
            request = self._protocol.next_request()
            if request is not None:
                return request
            if deadline is None and (self._protocol.mid_frame or self._protocol.state is control.State.NEW):
                deadline = anyio.current_time() + self._frame_seconds
            try:
                data, descriptors = receive_some(self._socket)
            except BlockingIOError:
                with anyio.CancelScope(deadline=math.inf if deadline is None else deadline) as scope:
                    await anyio.wait_readable(self._socket)
                if scope.cancelled_caught:
                    raise Refused(f"a frame was not complete after {self._frame_seconds:g} seconds") from None
                continue
            if not data and not descriptors:
                return None
            self._protocol.receive(data, descriptors)

    def reply(self, request: control.Request, fields: dict[str, object]) -> bytes:
        """The frame that grants a request.

        Raises:
            Refused: it would be too long.
        """
        return self._protocol.reply(request, fields)

    def refusal(self, request: control.Request, error: ShmbusError) -> bytes:
        """The frame that refuses a request."""
        return self._protocol.refuse(request.id, error)

    async def send(self, frame: bytes, descriptors: tuple[int, ...] = ()) -> None:
        """Sends a frame; the descriptors stay the caller's.

        Raises:
            OSError: the connection broke, or the client does not take the frame.
        """
        rest = memoryview(frame)
        deadline = anyio.current_time() + self._frame_seconds
        while rest:
            try:
                sent = send_some(self._socket, rest, descriptors)
            except BlockingIOError:
                with anyio.CancelScope(deadline=deadline) as scope:
                    await anyio.wait_writable(self._socket)
                if scope.cancelled_caught:
                    raise TimeoutError("the client takes no answers") from None
                continue
            rest, descriptors = rest[sent:], ()

    def hang_up(self) -> None:
        """Ends the connection for whoever has it open, while its task may be waiting for it."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)

    def close(self, error: Refused | None = None) -> None:
        """Closes it, saying why if there is a reason."""
        if error is not None:
            with suppress(OSError):
                send_some(self._socket, self._protocol.refuse(0, error))
        close_all(self._protocol.take_descriptors())
        self._socket.close()


def say_no(connected: socket.socket, text: str) -> None:
    """Turns somebody away who was accepted only to be told so."""
    Connection(connected, 0).close(Refused(text))
