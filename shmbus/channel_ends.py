"""The two ends of a channel: attached late, passed to other processes until then, and this process's
afterwards.

Once attached, the methods of the native end take the place of the Python methods on the instance, so that
``tx.send(x)`` runs no Python at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from shmbus import _core, limits
from shmbus.channel_views import Lease, Loan
from shmbus.codec import get_codec
from shmbus.errors import Closed, Refused
from shmbus.ring import OPENING, RingMemory

Ack = Literal["receive", "done"]


class Home(Protocol):
    """What an end needs of its channel."""

    name: str
    tend: Callable[[], None]

    def memory(self) -> RingMemory:
        """The channel's memory in this process."""

    def adopt(self, end: _End) -> None:
        """Remember an end that has attached, so that detaching the channel closes it."""


class _End:
    """What both ends share: attach late, pickle until then, belong to one process afterwards."""

    _kind: str
    _fast: tuple[str, ...]

    def __init__(self, channel: Home) -> None:
        self._channel = channel
        self._core: Any = None
        self._closed = False
        self._attached_in = 0

    @property
    def channel(self) -> Any:
        """The channel that this is an end of."""
        return self._channel

    @property
    def closed(self) -> bool:
        """Whether ``close()`` was called, or this process forked off the one that had attached."""
        return self._closed or (self._core is not None and self._core.closed)

    def _attach(self) -> Any:
        if self._closed:
            raise Closed(f"this {self._kind} of channel {self._channel.name!r} is closed")
        if self._core is None:
            with OPENING:
                self._attach_once()
        return self._core

    def _attach_once(self) -> None:
        if self._core is not None:
            return  # another thread was faster
        core = self._make_core(self._channel.memory())
        self._attached_in = os.getpid()
        self._channel.adopt(self)
        for name in self._fast:
            self.__dict__[name] = getattr(core, name)
        self._core = core

    def _make_core(self, memory: RingMemory) -> Any:
        raise NotImplementedError

    def close(self) -> None:
        """Detach; see the ends."""
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        if self._core is not None:
            raise Refused(
                f"this {self._kind} of channel {self._channel.name!r} is attached in process "
                f"{self._attached_in} and belongs to it; pass the channel, or a fresh "
                f"channel.{self._kind}(), to the other process"
            )
        return self.__dict__.copy()

    def __enter__(self) -> Self:
        self._attach()
        return self


class Producer(_End):
    """The sending end of a channel. Safe to use from several threads.

    Example:
        >>> with channel.producer() as tx:
        ...     tx.send({"id": 1})
    """

    _kind = "producer"
    _fast = ("send", "try_send", "send_bytes", "send_many")

    def _make_core(self, memory: RingMemory) -> _core.Producer:
        codec = get_codec(memory.settings.codec)
        return _core.Producer(
            memory.ring(writable=True), codec.number, codec.encode_parts, self._channel.tend, limits.SPIN_NS
        )

    def send(self, message: object, /, timeout: float | None = None) -> None:
        """Send a message, waiting for space.

        Args:
            message: whatever the channel's codec takes.
            timeout: seconds to wait for space at most; None: for ever.

        Raises:
            EncodeError: the codec does not take it; the message says which part of it. Nothing was sent.
            TooLarge: it can never fit.
            TimedOut: there was no space in time. Nothing was sent.
            Closed: this end or the channel was closed.
            WorkerFailed: every worker that would receive it has failed for good.
        """
        self._attach().send(message, timeout)

    def try_send(self, message: object, /) -> bool:
        """Send a message if there is space right now.

        Returns:
            Whether it was sent.
        """
        return bool(self._attach().try_send(message))

    def send_bytes(self, data: Any, /, timeout: float | None = None) -> None:
        """Send bytes, or any contiguous buffer, as they are: no codec. They are received as ``bytes``."""
        self._attach().send_bytes(data, timeout)

    def send_many(self, messages: Iterable[object], /, timeout: float | None = None) -> int:
        """Send several messages, in order; what was sent before an error stays sent.

        Returns:
            How many were sent: all of them.
        """
        return int(self._attach().send_many(messages, timeout))

    def loan(self, nbytes: int, /, timeout: float | None = None) -> Loan:
        """Borrow room in the ring and write the record there, without any copy.

        Records of all producers behind a loan wait until it is committed or aborted.

        Args:
            nbytes: room for the payload in bytes.
            timeout: seconds to wait for space at most.

        Example:
            >>> with tx.loan(6) as buffer:
            ...     buffer[:] = b"frame!"
        """
        return Loan(self._attach().loan(nbytes, timeout))

    def stats(self) -> dict[str, int]:
        """Records and bytes sent by this end, and how often it slept or gained by spinning."""
        slot, messages, size, sleeps, spins = self._attach().stats()
        return {"slot": slot, "messages": messages, "bytes": size, "sleeps": sleeps, "spins": spins}

    def close(self) -> None:
        """Detach.

        With ``end="producers"`` the channel ends when the last producer has. Repeating it is harmless.
        """
        self._closed = True
        if self._core is not None:
            self._core.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _register(self, count: int) -> list[int]:
        """Tickets that keep the channel from ending until ``count`` copies of this end have attached

        elsewhere.
        """
        return self._channel.memory().register(count)

    def _unregister(self, tickets: list[int]) -> None:
        self._channel.memory().unregister(tickets)


class Consumer(_End):
    """The receiving end of a channel: one member of one group.

    Several threads may share one with ``ack="receive"``; with ``ack="done"`` each thread wants its own.

    Example:
        >>> with channel.consumer(group="workers") as rx:
        ...     for message in rx:      # ends when every producer has closed
        ...         ...
    """

    _kind = "consumer"
    _fast = ("recv", "try_recv", "recv_bytes", "recv_many", "fileno")

    def __init__(self, channel: Home, group: str | None, ack: Ack, lossy: bool) -> None:
        super().__init__(channel)
        self.group = group
        self.ack = ack
        self.lossy = lossy

    def _make_core(self, memory: RingMemory) -> _core.Consumer:
        codec = get_codec(memory.settings.codec)
        return _core.Consumer(
            memory.ring(writable=False),
            codec.number,
            codec.decode,
            self._channel.tend,
            limits.SPIN_NS,
            self.group,
            self.lossy,
            self.ack == "done",
        )

    def recv(self, timeout: float | None = None) -> Any:
        """The next message, waiting for it.

        Args:
            timeout: seconds to wait at most; None: for ever.

        Raises:
            EndOfChannel: everything was received, and nothing more can be sent.
            TimedOut: nothing came in time.
            DecodeError: the record is no frame of the channel's codec. It is gone; go on with the next.
            Closed: this end was closed, or its group dropped.
            Corrupt: shared memory contradicts itself.
        """
        return self._attach().recv(timeout)

    def try_recv(self) -> Any:
        """The next message if there is one.

        Raises:
            WouldBlock: there is none right now (None would be a message).
        """
        return self._attach().try_recv()

    def recv_bytes(self, timeout: float | None = None) -> bytes:
        """The next record's bytes as they are: what ``send_bytes`` sent, or an encoded frame."""
        data: bytes = self._attach().recv_bytes(timeout)
        return data

    def recv_many(self, most: int, /, timeout: float | None = None) -> list[Any]:
        """Wait for one message, then take what else is there.

        Args:
            most: how many at most.
            timeout: seconds to wait for the first.
        """
        messages: list[Any] = self._attach().recv_many(most, timeout)
        return messages

    def lease(self, timeout: float | None = None) -> Lease:
        """The next record as a read-only view of where it lies, without any copy.

        Producers cannot use the space of a lease, nor what comes after it once they have gone round, until
        it is released.

        Example:
            >>> with rx.lease() as view:
            ...     total = sum(view)
        """
        return Lease(self._attach().lease(timeout))

    def fileno(self) -> int:
        """A descriptor that is readable when a receive may find something.

        For ``select``, ``poll`` and event loops.
        """
        return int(self._attach().fileno())

    @property
    def redelivered(self) -> bool:
        """Whether the record that was received last had been delivered before, to a member that died with

        it.
        """
        return self.deliveries > 0

    @property
    def deliveries(self) -> int:
        """How often the record that was received last had been delivered before."""
        return int(self._core.deliveries) if self._core is not None else 0

    @property
    def lost(self) -> int:
        """Records that a lossy reader was too slow for."""
        return int(self._core.lost) if self._core is not None else 0

    def stats(self) -> dict[str, Any]:
        """Records and bytes received by this end, what it lost, and which slot it waits for, if any."""
        slot, messages, size, sleeps, spins, lost, group, cursor, blocker = self._attach().stats()
        blocked_by = None
        if blocker >= 0:
            blocked_by = next(
                (
                    row[1]
                    for row in self._channel.memory().ring(writable=False).participants()
                    if row[0] == blocker
                ),
                None,
            )
        return {
            "slot": slot,
            "group": group,
            "messages": messages,
            "bytes": size,
            "sleeps": sleeps,
            "spins": spins,
            "lost": lost,
            "cursor": cursor,
            "blocked_by_pid": blocked_by,
        }

    def __iter__(self) -> Iterator[Any]:
        """Messages until the channel ends."""
        # A generator, so that this end lives, and is known to its channel, for as long as the loop; and no
        # `yield from`, which would close the native end with it.
        for message in self._attach():  # noqa: UP028
            yield message

    def __next__(self) -> Any:
        return next(self._attach())

    def close(self, *, redeliver: bool = False) -> None:
        """Detach. Repeating it is harmless.

        Args:
            redeliver: what ``ack="done"`` still holds goes to another member; default: it is finished.
        """
        self._closed = True
        if self._core is not None:
            self._core.close(redeliver)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close(redeliver=kind is not None)
