"""Channels and their two ends: ring + codec.

A ``Channel`` is a name for something that is opened when it is needed; a ``Producer`` or a ``Consumer``
attaches in ``with``, or when it is
first used, and is then this process's. Before that it can be passed to any child (``fork``, ``spawn``,
``forkserver``): it pickles as "where from, and which end".

Where from is a *source*: an object that pickles and opens the channel's memory in whatever process it finds
itself. A bus's source asks
the broker; the source of ``shmbus.channel()`` carries the descriptors.

"""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Callable
from typing import Any, Protocol

from shmbus import limits
from shmbus.channel_carried import CarriedSource
from shmbus.channel_ends import Ack, Consumer, Producer, _End
from shmbus.channel_views import Lease, Loan
from shmbus.errors import Refused
from shmbus.ring import OPENING, RingMemory
from shmbus.settings import Backing, ChannelSettings, check_group_name, parse_capacity

__all__ = ["Ack", "Channel", "Consumer", "Lease", "Loan", "Producer", "Source", "channel"]

DEFAULT_GROUP = "default"


class Source(Protocol):
    """Where a channel's memory comes from. It pickles."""

    name: str

    def open(self) -> RingMemory:
        """The channel's memory in this process."""

    def describe(self) -> str:
        """For messages: ``channel 'jobs' of bus 'default'``."""

    def tend(self) -> None:
        """What a client owes its broker: called before waits, and twice a second while they last."""


class Channel:
    """A named ring with a codec, its groups and its settings.

    Made by ``bus.channel(name, …)`` or ``shmbus.channel(…)``, not directly. It can be passed to other
    processes.
    """

    def __init__(
        self, source: Source, settings: ChannelSettings, tend: Callable[[], None] | None = None
    ) -> None:
        self._source = source
        self.name = source.name
        self.settings = settings
        self.tend = tend if tend is not None else source.tend
        self._opened: tuple[int, RingMemory] | None = None
        self._ends: weakref.WeakSet[_End] = weakref.WeakSet()

    def memory(self) -> RingMemory:
        """The channel's memory in this process; opened afresh in a forked child."""
        opened = self._opened
        if opened is None or opened[0] != os.getpid():
            with OPENING:
                opened = self._opened
                if opened is None or opened[0] != os.getpid():
                    opened = self._opened = (os.getpid(), self._source.open())
        return opened[1]

    def producer(self) -> Producer:
        """An end to send through. It attaches in ``with`` or at its first use."""
        return Producer(self)

    def consumer(
        self, group: str | None = DEFAULT_GROUP, *, ack: Ack = "receive", lossy: bool = False
    ) -> Consumer:
        """An end to receive from.

        Args:
            group: each record goes to one member of each group. None: a private group, which starts with
                what is sent from now on
                (or takes over what was held for the first group) and ends with this consumer.
            ack: "receive": a record is finished when ``recv`` returns it; a crash afterwards loses it.
                "done": it is kept until the next
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

    def adopt(self, end: _End) -> None:
        """Remember an end that has attached: ``detach`` closes it."""
        self._ends.add(end)

    def close(self) -> None:
        """Nothing more is sent: ``send`` raises ``Closed``, and consumers end when they have drained.

        For everybody, not for this process alone.
        """
        self.memory().close_channel()

    def drop_group(self, name: str) -> None:
        """Take a group away, with what it had not received.

        Raises:
            Refused: there is no such group.
        """
        self.memory().drop_group(name)

    def stats(self) -> dict[str, Any]:
        """Fill, groups, participants, and who blocks, right now. See ``RingMemory.stats``."""
        return self.memory().stats()

    def detach(self) -> None:
        """Close the ends that this process has open on this channel object, and its mapping.

        The channel itself goes on.
        """
        for end in list(self._ends):
            end.close()
        if isinstance(self._source, CarriedSource):
            return  # this process's mapping is all there is of it here: nobody could open it again
        if self._opened is not None and self._opened[0] == os.getpid():
            with contextlib.suppress(BufferError):  # an array made from a lease or loan still lives
                self._opened[1].close()
        self._opened = None

    def __getstate__(self) -> tuple[Source, ChannelSettings]:
        return (self._source, self.settings)

    def __setstate__(self, state: tuple[Source, ChannelSettings]) -> None:
        self.__init__(*state)  # type: ignore[misc]

    def __repr__(self) -> str:
        return f"<shmbus.Channel {self._source.describe()}>"


def channel(
    capacity: int | str = limits.DEFAULT_CAPACITY_BYTES, *, name: str = "unnamed", **settings: Any
) -> Channel:
    """An unnamed channel without any broker, for a library to embed.

    It can be passed to child processes (``fork``, ``spawn``, ``forkserver``) when they are started. Its
    participants reap for each other, and
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
    return Channel(CarriedSource(RingMemory.create(made, name)), made)
