"""The workers of a bus: who may still send or receive, tickets, and workers that the broker forks.

A supervisor (``workers.py``) knows processes. This file knows which ends of which channels they were given,
and draws the conclusions that keep everybody from waiting for somebody who will never come:

- a producer that is given to workers is *registered*: a ticket for each of them keeps the channel from ending
  before it has attached, and is given back when that worker has ended for good;
- when no worker of a group is left, and some have failed, whoever waits on the bus is told (`check`);
- when the program leaves its bus, a channel into which nobody can send any more is closed, and a group from
  which nobody can receive any more is dropped, so that it does not hold producers back. Both are looked at
  again whenever a worker ends. On a bus that others use too, that is theirs to decide, and is not done.

What a worker may do is judged by the ends among its arguments. One that was given a whole channel may do
anything with it, one that was given nothing of the bus may have what it needs in a closure: both are waited
for.

Anonymous memory (``backing="anonymous"``) is inherited, and the broker has it. So workers with an end of such
a channel are forked by the broker (``run_forked``), and this process cannot hold tickets of it. The bus makes
such a channel with ``end="closed"``, and closes it when the last worker that was given a producer has ended.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from shmbus.channel import Channel, Consumer, Producer
from shmbus.client import BrokerClient, become_worker, shared_client
from shmbus.errors import NoBroker, Refused, ShmbusError, TimedOut
from shmbus.launch import Handle, poll
from shmbus.ring import RingMemory
from shmbus.settings import Backing
from shmbus.workers import Restart, Supervisor, Worker, WorkerGroup

__all__ = ["BusSource", "BusWorkers", "ends_among"]

End = Producer | Consumer | Channel
_DEPTH = 4


@dataclass(slots=True)
class BusSource:
    """Where a channel of a bus comes from: the broker's socket and the channel's name. It pickles."""

    path: str
    name: str

    def open(self) -> RingMemory:
        """The channel's memory, from the broker, through this process's own connection."""
        return shared_client(self.path).open_channel(self.name, create=False)[1]

    def describe(self) -> str:
        """See `channel.Source`."""
        return f"{self.name!r} of the bus at {self.path}"

    def tend(self) -> None:
        """Look after the connection to the broker; see `BrokerClient.tend`."""
        shared_client(self.path).tend()


def ends_among(values: Iterable[object], depth: int = _DEPTH) -> Iterator[End]:
    """The ends and channels among `values`, also inside lists, tuples, sets, dictionaries and partials."""
    for value in values:
        if isinstance(value, Producer | Consumer | Channel):
            yield value
        elif depth > 0:
            if isinstance(value, list | tuple | set | frozenset):
                yield from ends_among(value, depth - 1)
            elif isinstance(value, Mapping):
                yield from ends_among(value.values(), depth - 1)
            elif isinstance(value, partial):
                yield from ends_among([*value.args, *value.keywords.values()], depth - 1)


@dataclass(slots=True, eq=False)
class _Assignment:
    """What the workers of one spawn were given."""

    ends: list[End]
    path: str
    tickets: list[tuple[Producer, list[int]]] = field(default_factory=list)
    group: WorkerGroup | None = None

    @property
    def running(self) -> bool:
        return self.group is None or self.group.running

    def may_send(self, name: str) -> bool:
        return not self.ends or any(
            not isinstance(end, Consumer) and _name_on(self.path, end) == name for end in self.ends
        )

    def may_receive_like(self, consumer: Consumer) -> bool:
        source, group = consumer.channel._source, consumer.group
        return any(
            isinstance(end, Consumer) and end.group == group and end.channel._source == source
            for end in self.ends
        )

    def may_receive(self, name: str, group: str | None) -> bool:
        """`group` None: from any group."""
        return not self.ends or any(
            _name_on(self.path, end) == name
            and (
                isinstance(end, Channel)
                or (isinstance(end, Consumer) and (group is None or end.group == group))
            )
            for end in self.ends
        )


def _name_on(path: str, end: End) -> str | None:
    """The name of the channel of an end, if it is one of the bus at `path`."""
    source = (end if isinstance(end, Channel) else end.channel)._source
    return source.name if isinstance(source, BusSource) and source.path == path else None


class BusWorkers:
    """The workers that this process has started on a bus.

    Args:
        path: of the broker's socket.
        own: whether the bus is this process's own, so that nobody else sends or receives on it.
        grace: seconds between SIGTERM and SIGKILL.
    """

    def __init__(self, path: str, *, own: bool, grace: float) -> None:
        self.supervisor = Supervisor(grace=grace, prepare=become_worker)
        self.closed_by_us: set[str] = set()
        self._path = path
        self._own = own
        self._leaving = False
        self._assignments: list[_Assignment] = []
        self._lock = threading.Lock()

    def spawn(
        self,
        target: Callable[..., object],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        *,
        count: int,
        start_method: str | None,
        restart: Restart,
        name: str | None,
    ) -> list[Worker]:
        """Start workers; see `Bus.spawn`."""
        assignment = _Assignment(list(ends_among([target, *args, *kwargs.values()])), self._path)
        launch = None
        for end in assignment.ends:
            channel = end if isinstance(end, Channel) else end.channel
            if channel is not end:
                end.__getstate__()  # refuses an end that is attached here: it cannot be anybody else's
            if channel.settings.backing is Backing.ANONYMOUS:
                launch = partial(_ForkedByBroker, shared_client(self._path))
        # A private group goes with its consumer, and holds nobody back.
        receivers = [end for end in assignment.ends if isinstance(end, Consumer) and end.group is not None]
        with self._lock:
            self._assignments.append(assignment)
        try:
            for end in assignment.ends:
                if isinstance(end, Producer) and end.channel.settings.backing is not Backing.ANONYMOUS:
                    tickets: list[int] = []
                    assignment.tickets.append((end, tickets))
                    for _ in range(count):  # one by one: what was had before a refusal is given back
                        tickets += end._register(1)
            assignment.group = self.supervisor.spawn(
                target,
                args,
                kwargs,
                count=count,
                start_method=start_method,
                restart=restart,
                name=name,
                vital=lambda: any(self._nobody_receives(end) for end in receivers),
                on_ended=lambda worker: self._on_ended(assignment, worker),
                prompt=any(isinstance(end, Producer) for end in assignment.ends),
                launch=launch,
            )
        except BaseException:
            with self._lock:
                self._assignments.remove(assignment)
            for end, tickets in assignment.tickets:
                while tickets:
                    _give_back(end, tickets.pop())
            raise
        return assignment.group.workers

    def _nobody_receives(self, consumer: Consumer) -> bool:
        """Whether all workers that were given a consumer of the same group have ended."""
        with self._lock:
            assignments = list(self._assignments)
        return not any(one.running and one.may_receive_like(consumer) for one in assignments)

    def _on_ended(self, assignment: _Assignment, worker: Worker) -> None:
        """A worker has ended for good. Called in whatever thread has noticed, perhaps while others start."""
        assignment.group = worker.group
        for end, tickets in assignment.tickets:
            if tickets:
                _give_back(end, tickets.pop())
        if not assignment.running:
            with suppress(ShmbusError):
                self._settle()

    # --- the end ---

    def leave(self) -> None:
        """This process itself sends and receives no more; see the top of this file."""
        self._leaving = True
        with suppress(ShmbusError):  # without a broker the channels stay as they are
            self._settle()

    def _settle(self) -> None:
        """Close the channels into which nobody sends any more, and drop the groups that nobody serves."""
        with self._lock:
            running = [assignment for assignment in self._assignments if assignment.running]
            given = [end for assignment in self._assignments for end in assignment.ends]
        client = shared_client(self._path)
        if not (self._leaving and self._own):
            for name in list(self.closed_by_us):
                producers = any(isinstance(end, Producer) and end.channel.name == name for end in given)
                if producers and not any(one.may_send(name) for one in running if one.ends):
                    client.close_channel(name)
                    self.closed_by_us.discard(name)
            return
        for row in client.list():
            name, settings = row["name"], row["settings"]
            with suppress(Refused):  # somebody has removed it meanwhile
                if not any(one.may_send(name) for one in running):
                    client.close_channel(name)
                elif settings["backing"] != Backing.ANONYMOUS.value:
                    self._drop_deserted(name, running)

    def _drop_deserted(self, name: str, running: list[_Assignment]) -> None:
        source = BusSource(self._path, name)
        memory = source.open()
        try:
            memory.reap()
            for group in memory.stats()["groups"]:
                if group["members"] or any(one.may_receive(name, group["name"]) for one in running):
                    continue
                if group["kind"] == "named":
                    memory.drop_group(group["name"])
                elif group["kind"] == "held":  # for a first group, which will not come: take it, and go
                    with Channel(source, memory.settings).consumer(group=None):
                        pass
        finally:
            memory.close()


def _give_back(end: Producer, ticket: int) -> None:
    with suppress(ShmbusError):  # the channel was removed, and its tickets with it
        end._unregister([ticket])


class _ForkedByBroker:
    """A worker whose operating system's parent is the broker: a `launch.Handle`."""

    def __init__(self, client: BrokerClient, payload: bytes, pipe_fd: int, name: str) -> None:
        self._client = client
        self._code: int | None = None
        self._ended = False
        self.pid, self._pidfd = client.spawn(payload, pipe_fd)

    def fileno(self) -> int:
        """See `launch.Handle`."""
        return self._pidfd

    def ended(self) -> tuple[bool, int | None]:
        """See `launch.Handle`."""
        if not self._ended and poll([self._pidfd], 0):
            self._ended = True
            with suppress(NoBroker, Refused, TimedOut):  # a broker that died has taken the code with it
                self._code = self._client.exit_code(self.pid)
        return self._ended, self._code

    def kill(self, number: int) -> None:
        """See `launch.Handle`."""
        import signal

        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """See `launch.Handle`."""
        import os

        os.close(self._pidfd)


_: type[Handle] = _ForkedByBroker
