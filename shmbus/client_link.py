"""One connection to a broker that may die and come back: no thread, no polling.

Theory of operation
===================

The socket never blocks. What is to be sent goes through an *outbox*, whose parcels own their descriptors
until they are sent; what comes in goes through ``control.ClientConnection``, which knows which reply is
whose. A request flushes the outbox, then reads until its own reply is there, sleeping in poll(2) in between;
replies that nobody waits for (to hello and to offers) are settled on the way.

Connecting means: connect, and put hello and all offers into the outbox, in one go. So it takes no round trip,
and ``tend`` can do it from the slow path of a channel: it sends what the socket takes, reads what is there,
and never waits, not even for a broker that was stopped in the middle of an answer.

A connection is dropped, never repaired: when the broker hangs up, when it breaks the protocol, when an answer
is out of time, and when a signal handler raises in the middle of an exchange. The next reply on it would be
somebody else's. A request that was lost with the connection is repeated once, on a fresh one, if that makes
no difference.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

from shmbus import control
from shmbus.control_io import close_all, command_of, duplicate, receive_some, send_some
from shmbus.errors import Closed, NoBroker, Refused, ShmbusError, TimedOut

__all__ = ["Link", "Offer"]

RETRY_SECONDS: Final = 0.1
"""How long ``tend`` leaves it at a failed attempt, at first; this doubles up to RETRY_MOST_SECONDS."""

RETRY_MOST_SECONDS: Final = 2.0

_REPEATABLE: Final = frozenset({"make", "open", "list", "stats", "close_channel"})


class Offer(NamedTuple):
    """A channel to give back; the descriptors belong to whoever gets this."""

    fields: Mapping[str, object]
    descriptors: list[int]


@dataclass(slots=True)
class _Parcel:
    """Bytes on their way to the broker, and the descriptors that go with the first of them."""

    data: memoryview
    descriptors: list[int]


class _LostError(Exception):
    """The broker is gone, or has closed this connection."""


class Link:
    """A connection that is made when it is needed. Threads may share it.

    Args:
        path: the broker's socket.
        timeout: seconds for a request, None for as long as it takes.
        role: called at each connection: one of ``control.ROLES``.
        offers: called at each connection: what to give back.
    """

    def __init__(
        self,
        path: str,
        timeout: float | None,
        role: Callable[[], str],
        offers: Callable[[], Iterable[Offer]],
    ) -> None:
        self.path = path
        self.closed = False
        self._timeout = timeout
        self._role = role
        self._offers = offers
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._connection = control.ClientConnection()
        self._outbox: deque[_Parcel] = deque()
        self._offered: dict[int, str] = {}
        self._was_connected = False
        self._retry_at = 0.0
        self._retry_seconds = RETRY_SECONDS
        self.broker: Mapping[str, object] = {}
        """What the broker said of itself: bus, pid, embedded, instance."""
        self.refused_offers: dict[str, ShmbusError] = {}
        """The channels that the present broker would not take back, and why."""
        _links.add(self)

    # Requests -----------------------------------------------------------------------------------------------

    def request(
        self, name: str, fields: Mapping[str, object], descriptors: Sequence[int] = ()
    ) -> control.Reply:
        """One request and its reply.

        Args:
            name: of the request.
            fields: its fields.
            descriptors: to send along; they stay the caller's.

        Raises:
            ShmbusError: what the broker answered.
            NoBroker: nobody listens, or the broker died and it is not known what became of the request.
            TimedOut: no answer in time.
            Closed: this link is closed.
        """
        deadline = None if self._timeout is None else time.monotonic() + self._timeout
        with self._lock:
            if self.closed:
                raise Closed(f"this client of the broker at {self.path} is closed")
            while True:
                if self._socket is not None and self._has_hung_up():
                    self._drop()
                fresh = self._socket is None
                try:
                    if fresh:
                        self._connect(deadline)
                    reply = self._exchange(name, fields, descriptors, deadline)
                except _LostError:
                    self._drop()
                    if fresh or name not in _REPEATABLE:
                        text = f"the broker at {self.path} has ended"
                        if name not in _REPEATABLE:
                            text += f" while it was asked to {name}; whether it has done so is not known"
                        raise NoBroker(text, path=self.path) from None
                except BaseException:
                    self._drop()
                    raise
                else:
                    break
        if reply.error is not None:
            raise reply.error
        return reply

    def tend(self) -> bool:
        """Connects again if the broker has died, and gives the channels back. Never waits or raises.

        Returns:
            Whether there is a broker, as far as can be told.
        """
        if self.closed or not self._lock.acquire(blocking=False):
            return not self.closed
        try:
            return self._tend()
        finally:
            self._lock.release()

    def drop(self) -> None:
        """Drops the connection; the next request makes another."""
        with self._lock:
            self._drop()

    def close(self) -> None:
        """Drops the connection for good. Harmless when repeated."""
        self.closed = True
        self.drop()

    # Sending and receiving ----------------------------------------------------------------------------------

    def _exchange(
        self, name: str, fields: Mapping[str, object], descriptors: Sequence[int], deadline: float | None
    ) -> control.Reply:
        wanted = self._post(name, fields, [*duplicate(*descriptors)])
        try:
            while not self._flush():
                self._await(select.POLLOUT, deadline)
            while True:
                reply = self._connection.next_reply()
                if reply is None:
                    self._await(select.POLLIN, deadline)
                    self._receive()
                elif reply.id == wanted:
                    return reply
                else:
                    self._settle(reply)
        except _LostError:
            self._settle_all()  # before it closed, it may have said why
            raise

    def _post(self, name: str, fields: Mapping[str, object], descriptors: list[int]) -> int:
        """Puts a request into the outbox, which owns its descriptors from now on; returns its id."""
        try:
            request_id, frame = self._connection.request(name, fields)
        except BaseException:
            close_all(descriptors)
            raise
        self._outbox.append(_Parcel(memoryview(frame), descriptors))
        return request_id

    def _flush(self) -> bool:
        """Sends what the socket takes; whether that was all."""
        assert self._socket is not None
        while self._outbox:
            parcel = self._outbox[0]
            try:
                sent = send_some(self._socket, parcel.data, parcel.descriptors)
            except BlockingIOError:
                return False
            except OSError:
                with suppress(_LostError):
                    while self._receive():
                        pass
                raise _LostError from None
            close_all(parcel.descriptors)
            parcel.data, parcel.descriptors = parcel.data[sent:], []
            if not parcel.data:
                self._outbox.popleft()
        return True

    def _receive(self) -> bool:
        """Takes what has arrived; whether anything had."""
        assert self._socket is not None
        try:
            data, descriptors = receive_some(self._socket)
        except BlockingIOError:
            return False
        except OSError:
            raise _LostError from None
        if not data and not descriptors:
            raise _LostError
        self._connection.receive(data, descriptors)
        return True

    def _await(self, event: int, deadline: float | None) -> None:
        assert self._socket is not None
        poll = select.poll()
        poll.register(self._socket, event)
        left = None if deadline is None else max(0.0, deadline - time.monotonic())
        if not poll.poll(None if left is None else left * 1000 + 1) and left is not None:
            raise TimedOut(
                f"the broker at {self.path} (process {self.broker.get('pid', 'unknown')}) has not answered "
                f"within {self._timeout:g} seconds; is it stopped?"
            )

    def _settle(self, reply: control.Reply) -> None:
        """Deals with a reply that nobody waits for."""
        close_all(reply.descriptors)
        if reply.request == "hello":
            if reply.error is not None:
                raise reply.error
            self.broker = reply.fields
        elif reply.error is not None and reply.id in self._offered:
            self.refused_offers[self._offered[reply.id]] = reply.error

    def _settle_all(self) -> None:
        while (reply := self._connection.next_reply()) is not None:
            self._settle(reply)

    def _has_hung_up(self) -> bool:
        assert self._socket is not None
        try:
            return not self._socket.recv(1, socket.MSG_PEEK | socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except OSError:
            return True

    # Connecting ---------------------------------------------------------------------------------------------

    def _connect(self, deadline: float | None, *, wait: bool = True) -> None:
        fresh = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            fresh.setblocking(wait)
            if wait and deadline is not None:
                # The kernel waits for a place in the broker's queue, and it knows only this way of a
                # deadline.
                left = max(0.001, deadline - time.monotonic())
                times = struct.pack("@ll", int(left), int(left % 1 * 1_000_000))
                fresh.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, times)
            fresh.connect(self.path)
            fresh.setblocking(False)
        except BaseException as error:
            fresh.close()
            if isinstance(error, OSError):
                raise self._explain(error) from None
            raise
        self._socket = fresh
        self._connection = control.ClientConnection()
        self._was_connected = True
        self._offered.clear()
        self.refused_offers.clear()
        hello = {"role": self._role(), "pid": os.getpid(), "command": command_of()}
        self._post("hello", hello, [os.pidfd_open(os.getpid())])
        for offer in self._offers():
            self._offered[self._post("offer", offer.fields, offer.descriptors)] = str(offer.fields["name"])

    def _explain(self, error: OSError) -> ShmbusError:
        if isinstance(error, BlockingIOError):
            return TimedOut(f"the broker at {self.path} accepts no connections; is it stopped?")
        if isinstance(error, PermissionError):
            return Refused(f"this user may not connect to {self.path}: its mode and its folder's say who may")
        folder, file = os.path.split(self.path)
        hint = "start it"
        if file.endswith(".sock") and os.path.basename(folder).startswith("shmbus"):
            hint = f"start it with: shmbus broker --bus {file.removesuffix('.sock')}"
        text = f"no broker answers at {self.path} ({error.strerror}); {hint}"
        return NoBroker(text, path=self.path)

    def _tend(self) -> bool:
        try:
            if self._socket is None:
                if not self._was_connected or time.monotonic() < self._retry_at:
                    return False
                self._connect(None, wait=False)
            try:
                self._flush()
                while self._receive():
                    pass
            finally:
                self._settle_all()
        except (_LostError, ShmbusError, OSError):
            self._drop()
            self._retry_at = time.monotonic() + self._retry_seconds
            self._retry_seconds = min(2 * self._retry_seconds, RETRY_MOST_SECONDS)
            return False
        self._retry_seconds = RETRY_SECONDS
        return True

    def _drop(self) -> None:
        close_all(self._connection.take_descriptors())
        for parcel in self._outbox:
            close_all(parcel.descriptors)
        self._outbox.clear()
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _forget_in_child(self) -> None:
        """A forked child closes its copy, makes the lock anew (a thread may have it), and starts over."""
        self._lock = threading.Lock()
        self._drop()
        self._connection = control.ClientConnection()
        self.broker = {}
        self._retry_at = 0.0


_links: weakref.WeakSet[Link] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for link in list(_links):
        link._forget_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)
