"""Channels and their two ends: ring + codec.

A ``Channel`` is a name for something that is opened when it is needed; a ``Producer`` or a ``Consumer`` attaches in ``with``, or when it is
first used, and is then this process's. Before that it can be passed to any child (``fork``, ``spawn``, ``forkserver``): it pickles as "where from, and which end".

Where from is a *source*: an object that pickles and opens the channel's memory in whatever process it finds itself. A bus's source asks
the broker; the source of ``shmbus.channel()`` carries the descriptors.

Once attached, the methods of the native end take the place of the Python methods on the instance, so that ``tx.send(x)`` runs no Python at all.
"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import Any, Literal, Protocol, Self

from shmbus import _core, limits
from shmbus.codec import Codec, get_codec
from shmbus.errors import Closed, Refused
from shmbus.ring import RingMemory
from shmbus.settings import Backing, ChannelSettings, check_group_name, parse_capacity

Ack = Literal["receive", "done"]
DEFAULT_GROUP = "default"


class Source(Protocol):
    """Where a channel's memory comes from. It pickles."""

    name: str

    def open(self) -> RingMemory:
        """The channel's memory in this process."""

    def describe(self) -> str:
        """For messages: ``channel 'jobs' of bus 'default'``."""


class Channel:
    """A named ring with a codec, its groups and its settings.

    Made by ``bus.channel(name, …)`` or ``shmbus.channel(…)``, not directly. It can be passed to other processes.
    """

    def __init__(
        self, source: Source, settings: ChannelSettings, tend: Callable[[], None] | None = None
    ) -> None:
        self._source = source
        self.name = source.name
        self.settings = settings
        self.tend = tend
        self._opened: tuple[int, RingMemory] | None = None
        self._ends: weakref.WeakSet[Producer | Consumer] = weakref.WeakSet()

    def memory(self) -> RingMemory:
        """The channel's memory in this process; opened afresh in a forked child."""
        if self._opened is None or self._opened[0] != os.getpid():
            self._opened = (os.getpid(), self._source.open())
        return self._opened[1]

    def producer(self) -> Producer:
        """An end to send through. It attaches in ``with`` or at its first use."""
        return Producer(self)

    def consumer(
        self, group: str | None = DEFAULT_GROUP, *, ack: Ack = "receive", lossy: bool = False
    ) -> Consumer:
        """An end to receive from.

        Args:
            group: each record goes to one member of each group. None: a private group, which starts with what is sent from now on
                (or takes over what was held for the first group) and ends with this consumer.
            ack: "receive": a record is finished when ``recv`` returns it; a crash afterwards loses it. "done": it is kept until the next
                receive, and a crash before that gives it to another member.
            lossy: (with ``group=None``) never holds producers back; ``lost`` counts what it was too slow for.

        Raises:
            Refused: the group's name is not possible, or the arguments contradict each other.
        """
        if group is not None:
            check_group_name(group)
        if ack not in ("receive", "done"):
            raise Refused(f'ack={ack!r} is neither "receive" nor "done"', setting="ack")
        if lossy and (group is not None or ack != "receive"):
            raise Refused(
                'lossy=True wants group=None and ack="receive": a lossy reader keeps nothing back',
                setting="lossy",
            )
        return Consumer(self, group, ack, lossy)

    def close(self) -> None:
        """Nothing more is sent: ``send`` raises ``Closed``, and consumers end when they have drained. For everybody, not for this process alone."""
        self.memory().close_channel()

    def drop_group(self, name: str) -> None:
        """Take a group away, with what it had not received.

        Raises:
            Refused: there is no such group.
        """
        self.memory().drop_group(name)

    def stats(self) -> dict[str, Any]:
        """What the channel's tables say right now: fill, groups, participants, who blocks. See ``RingMemory.stats``."""
        return self.memory().stats()

    def detach(self) -> None:
        """Close the ends that this process has open on this channel object, and its mapping. The channel itself goes on."""
        for end in list(self._ends):
            end.close()
        if self._opened is not None and self._opened[0] == os.getpid():
            with contextlib.suppress(
                BufferError
            ):  # an array made from a lease or loan still lives: it keeps the mapping
                self._opened[1].close()
        self._opened = None

    def __getstate__(self) -> tuple[Source, ChannelSettings]:
        return (self._source, self.settings)

    def __setstate__(self, state: tuple[Source, ChannelSettings]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"<shmbus.Channel {self._source.describe()}>"


class _End:
    """What both ends share: attach late, pickle until then, belong to one process afterwards."""

    _kind: str
    _fast: tuple[str, ...]

    def __init__(self, channel: Channel) -> None:
        self._channel = channel
        self._core: Any = None
        self._closed = False
        self._attached_in = 0

    @property
    def channel(self) -> Channel:
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
            self._core = self._make_core(self._channel.memory())
            self._attached_in = os.getpid()
            self._channel._ends.add(self)  # type: ignore[arg-type]
            for name in self._fast:
                self.__dict__[name] = getattr(self._core, name)
        return self._core

    def _make_core(self, memory: RingMemory) -> Any:
        raise NotImplementedError

    def __getstate__(self) -> dict[str, Any]:
        if self._core is not None:
            raise Refused(
                f"this {self._kind} of channel {self._channel.name!r} is attached in process {self._attached_in} and belongs to it; "
                f"pass the channel, or a fresh channel.{self._kind}(), to the other process"
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
            memory.ring(writable=True), codec.number, _encoder(codec), self._channel.tend, limits.SPIN_NS
        )

    def send(self, message: object, timeout: float | None = None) -> None:
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

    def try_send(self, message: object) -> bool:
        """Send a message if there is space right now.

        Returns:
            Whether it was sent.
        """
        return bool(self._attach().try_send(message))

    def send_bytes(self, data: Any, timeout: float | None = None) -> None:
        """Send bytes, or any contiguous buffer, as they are: no codec. They are received as ``bytes``."""
        self._attach().send_bytes(data, timeout)

    def send_many(self, messages: Iterable[object], timeout: float | None = None) -> int:
        """Send several messages, in order; what was sent before an error stays sent.

        Returns:
            How many were sent: all of them.
        """
        return int(self._attach().send_many(messages, timeout))

    def loan(self, nbytes: int, timeout: float | None = None) -> Loan:
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
        """Detach. With ``end="producers"`` the channel ends when the last producer has. Repeating it is harmless."""
        self._closed = True
        if self._core is not None:
            self._core.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _register(self, count: int) -> list[int]:
        """Tickets that keep the channel from ending until ``count`` copies of this end have attached elsewhere."""
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

    def __init__(self, channel: Channel, group: str | None, ack: Ack, lossy: bool) -> None:
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

    def recv_many(self, most: int, timeout: float | None = None) -> list[Any]:
        """Wait for one message, then take what else is there.

        Args:
            most: how many at most.
            timeout: seconds to wait for the first.
        """
        messages: list[Any] = self._attach().recv_many(most, timeout)
        return messages

    def lease(self, timeout: float | None = None) -> Lease:
        """The next record as a read-only view of where it lies, without any copy.

        Producers cannot use the space of a lease, nor what comes after it once they have gone round, until it is released.

        Example:
            >>> with rx.lease() as view:
            ...     total = sum(view)
        """
        return Lease(self._attach().lease(timeout))

    def fileno(self) -> int:
        """A descriptor that is readable when a receive may find something: for ``select``, ``poll`` and event loops."""
        return int(self._attach().fileno())

    @property
    def redelivered(self) -> bool:
        """Whether the record that was received last had been delivered before, to a member that died with it."""
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
        core: Iterator[Any] = self._attach()
        return core

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


class Loan:
    """Room in the ring, to be written and committed. ``with`` commits, or aborts if the body raises."""

    def __init__(self, core: _core.Loan) -> None:
        self._core = core
        self._view: memoryview | None = None

    @property
    def buffer(self) -> memoryview:
        """The room, writable. ``numpy.frombuffer`` takes it."""
        if self._view is None:
            self._view = memoryview(self._core)
        return self._view

    def commit(self, nbytes: int | None = None) -> None:
        """Send what was written.

        Args:
            nbytes: how much of the room, from its start; default: all.

        Raises:
            BufferError: arrays made from the buffer still exist, and could write into a record that was sent.
        """
        self._release()
        self._core.commit(nbytes)

    def abort(self) -> None:
        """Give the room back; nothing is sent."""
        self._release()
        self._core.abort()

    def _release(self) -> None:
        if self._view is not None:
            self._view.release()
            self._view = None

    def __enter__(self) -> memoryview:
        return self.buffer

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._core.open:
            return
        if kind is None:
            self.commit()
        else:
            self.abort()


class Lease:
    """A record in the ring, held for reading."""

    def __init__(self, core: _core.Lease) -> None:
        self._core = core
        self._view: memoryview | None = None

    @property
    def view(self) -> memoryview:
        """The record's bytes, read-only. Arrays made from it keep the record held for as long as they live."""
        if self._view is None:
            self._view = memoryview(self._core)
        return self._view

    def release(self) -> None:
        """Let producers use the space again. Repeating it is harmless.

        Raises:
            BufferError: arrays made from the view still exist.
        """
        if self._view is not None:
            self._view.release()
            self._view = None
        self._core.release()

    def __enter__(self) -> memoryview:
        return self.view

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def _encoder(codec: Codec) -> Callable[[object], object]:
    return codec.encode_parts


class _CarriedSource:
    """A channel without a broker: its descriptors go where the channel goes."""

    def __init__(self, memory: RingMemory) -> None:
        self.name = memory.label
        self._memory = memory

    def open(self) -> RingMemory:
        return self._memory

    def describe(self) -> str:
        return f"{self.name!r} without a broker"

    def __getstate__(self) -> dict[str, Any]:
        import multiprocessing.context
        from multiprocessing import reduction

        memory = self._memory
        if multiprocessing.context.get_spawning_popen() is None:
            raise Refused(
                f"channel {self.name!r} has no broker: it can be passed to a child process when that is started (as an argument of "
                "multiprocessing.Process), not pickled on its own; use shmbus.Bus() or connect() to reach processes that run already"
            )
        if memory.control_fd < 0:
            raise Refused(
                f"channel {self.name!r} is of backing='anonymous': only a forked child inherits its memory"
            )
        duplicates = [reduction.DupFd(fd) for fd in (memory.control_fd, memory.data_fd, memory.event_fd)]
        return {"name": self.name, "descriptors": duplicates, "settings": memory.settings.to_wire()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        fds = [duplicate.detach() for duplicate in state["descriptors"]]
        self.name = state["name"]
        self._memory = RingMemory.open(*fds, ChannelSettings.from_wire(state["settings"]), label=self.name)


def channel(
    capacity: int | str = limits.DEFAULT_CAPACITY_BYTES, *, name: str = "unnamed", **settings: Any
) -> Channel:
    """An unnamed channel without any broker, for a library to embed.

    It can be passed to child processes (``fork``, ``spawn``, ``forkserver``) when they are started. Its participants reap for each other, and
    when the last process has gone nothing is left of it.

    Args:
        capacity: bytes, or text such as "64 MiB".
        name: what messages call it; no other process finds it by that.
        settings: as for ``bus.channel``.

    Example:
        >>> jobs = shmbus.channel(capacity="1 MiB")
        >>> multiprocessing.Process(target=work, args=(jobs.consumer(),)).start()
    """
    made = ChannelSettings(capacity_bytes=parse_capacity(capacity), **settings)
    if made.backing is Backing.FILE and name == "unnamed":
        raise Refused("a channel of files needs a name for them: shmbus.channel(name=…)", setting="name")
    return Channel(_CarriedSource(RingMemory.create(made, name)), made)
