"""Bus and `connect`: where a program meets its channels and starts its workers.

A bus is a broker's socket and what this process does there. `Bus` starts a broker of its own and ends it;
`connect` joins a broker that runs already, as a service, and leaves it running. Otherwise they are the same.

*Leaving.* The end of the ``with`` block is the end of the work. After a clean body this process closes the
ends that it has open (an open producer would keep consumers waiting for ever), and waits for its workers:
they drain their channels and end. If one has failed, that is raised, with its traceback. After an
exception in the body, or when the wait itself fails (Ctrl-C, a group of which no worker is left), the workers
are ended: SIGTERM, a grace, SIGKILL. Then an own broker goes, and with it the channels and all their bytes.

*Waiting.* Whenever an end that was made here waits, and twice a second while it does, it tends the bus: the
connection to a broker that was restarted, and the supervisor, so that ``send`` raises WorkerFailed instead of
waiting for consumers that will not come back.

*Fork.* In a forked child a bus connects afresh. The workers and the broker stay its parent's: a child that
leaves the block ends neither.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Self

from shmbus.bus_workers import BusSource, BusWorkers
from shmbus.channel import Channel
from shmbus.client import BrokerClient, shared_client, socket_path
from shmbus.errors import Closed, Refused, ShmbusError
from shmbus.settings import Backing, ChannelSettings, End, OnConsumerDeath, Producers, Visibility
from shmbus.worker_process import refuse_unguarded_main
from shmbus.workers import GRACE, Restart, Worker

if TYPE_CHECKING:
    from types import TracebackType

    from shmbus.broker import EmbeddedBroker

__all__ = ["Bus", "connect"]


class Bus:
    """A bus of this program's own: its broker is a process that ends with it.

    Use it as a context manager; leaving the block waits for the workers (see the top of this file).

    Args:
        grace: seconds that workers have between SIGTERM and SIGKILL when they are ended.

    Raises:
        Refused: the broker could not be started; the message says why.
        NoBroker: its process ended before it was ready.

    Example:
        >>> with shmbus.Bus() as bus:
        ...     jobs = bus.channel("jobs")
        ...     bus.spawn(consume, jobs.consumer(group="workers"), count=4)
        ...     with jobs.producer() as tx:
        ...         tx.send("hello")
    """

    _broker: EmbeddedBroker | None

    def __init__(self, *, grace: float = GRACE) -> None:
        refuse_unguarded_main()
        from shmbus.broker import start_embedded

        broker = start_embedded(grace_seconds=grace)
        self._begin(broker.path, broker, grace)

    def _begin(self, path: str, broker: EmbeddedBroker | None, grace: float) -> None:
        self.path = path
        self._broker = broker
        self._pid = os.getpid()
        self._closed = False
        self._channels: dict[str, Channel] = {}
        self._workers = BusWorkers(path, own=broker is not None, grace=grace)
        _buses[path] = _buses.get(path, 0) + 1

    @property
    def _client(self) -> BrokerClient:
        if self._closed:
            raise Closed(f"the bus at {self.path} was closed by this process")
        return shared_client(self.path)

    @property
    def closed(self) -> bool:
        """Whether it was left or closed."""
        return self._closed

    @property
    def workers(self) -> list[Worker]:
        """The workers that this process has started here: names, pids, states."""
        return self._workers.supervisor.workers

    # --- channels ---

    def channel(
        self,
        name: str,
        *,
        capacity: int | str | None = None,
        groups: Sequence[str] | None = None,
        hold: bool | None = None,
        end: End | None = None,
        producers: Producers | None = None,
        on_consumer_death: OnConsumerDeath | None = None,
        backing: Backing | Literal["memfd", "shm", "file", "anonymous"] | None = None,
        directory: str | os.PathLike[str] | None = None,
        visibility: Visibility | None = None,
        codec: str | None = None,
    ) -> Channel:
        """Open a channel of the bus, or make it if there is none of that name.

        Settings that are left out are those that the channel has; a new one gets the defaults.

        Args:
            name: of the channel.
            capacity: room for records in bytes, or text such as "64 MiB" (the default).
            groups: groups that exist from the start, and get every record.
            hold: whether records that are sent before there is a group wait for the first (the default).
            end: "producers": the channel ends when every producer has gone (the default on an own bus);
                "closed": when it is closed (the default on a joined one).
            producers: "many" (the default), or "one" if there are never two at once.
            on_consumer_death: "redeliver" what a dead consumer held (the default), or "drop" it.
            backing: "memfd" (the default), "shm", "file" (with `directory`) or "anonymous" (for workers of
                this bus only: the broker forks them).
            directory: the folder of the files of ``backing="file"``.
            visibility: `Visibility.PRIVATE` for the comparison mode.
            codec: "msgpack" (the default) or another that `shmbus` has.

        Raises:
            Refused: the name or a setting is not possible, or the channel exists and differs in a setting
                that was asked for; the message names it.
            NoSpace: the machine has no room for it.
            NoBroker: the broker is gone.
        """
        asked = {
            "capacity_bytes": capacity,
            "groups": groups if groups is None or isinstance(groups, str) else tuple(groups),
            "hold": hold,
            "end": end,
            "producers": producers,
            "on_consumer_death": on_consumer_death,
            "backing": backing,
            "directory": directory,
            "visibility": visibility,
            "codec": codec,
        }
        given: dict[str, Any] = {key: value for key, value in asked.items() if value is not None}
        wanted = ChannelSettings(**{"end": "producers" if self._broker else "closed", **given})
        closed_by_us = wanted.backing is Backing.ANONYMOUS and self._broker and wanted.end == "producers"
        if closed_by_us:
            wanted = replace(wanted, end="closed")  # see bus_workers.py
        settings = self._open_or_make(name, wanted, set(given))
        if closed_by_us:
            self._workers.closed_by_us.add(name)
        channel = self._channels.get(name)
        if channel is None or channel.settings != settings:
            channel = self._channels[name] = Channel(BusSource(self.path, name), settings, self._tend)
        return channel

    def _open_or_make(self, name: str, wanted: ChannelSettings, given: set[str]) -> ChannelSettings:
        client = self._client
        try:
            return client.make_channel(name, wanted)
        except Refused as error:
            # It may be there, with other settings, and only those that were asked for count.
            try:
                found = client.make_channel(name, None, create=False)
            except Refused:
                raise error from None
        wrong = {field: getattr(wanted, field) for field in wanted.differences(found) if field in given}
        if wrong:
            raise Refused(
                f"channel {name!r} exists with other settings: "
                f"{found.describe_differences(replace(found, **wrong))}; ask for those, or leave them out"
            )
        return found

    def channels(self) -> list[str]:
        """The names of the channels of the bus, whoever made them.

        Raises:
            NoBroker: the broker is gone.
        """
        return [str(row["name"]) for row in self._client.list()]

    def remove(self, channel: str | Channel) -> None:
        """Take a channel from the bus, with what is in it; whoever uses it finds it closed.

        Args:
            channel: the channel, or its name.

        Raises:
            Refused: there is no such channel.
            NoBroker: the broker is gone.
        """
        name = channel if isinstance(channel, str) else channel.name
        self._client.remove(name)
        self._channels.pop(name, None)
        self._workers.closed_by_us.discard(name)

    def stats(self) -> dict[str, Any]:
        """What there is to know: "broker", "channels" by name, and "workers" of this process.

        Raises:
            NoBroker: the broker is gone.
        """
        client = self._client
        rows: dict[str, Mapping[str, Any]] = {}
        for name in self.channels():
            with suppress(Refused):  # removed meanwhile
                rows[name] = client.stats(name)
        workers = [
            {"name": one.name, "pid": one.pid, "state": one.state, "restarts": one.restarts}
            for one in self.workers
        ]
        return {"broker": client.stats(), "channels": rows, "workers": workers}

    # --- workers ---

    def spawn(
        self,
        target: Callable[..., object],
        *args: Any,
        count: int = 1,
        kwargs: Mapping[str, Any] | None = None,
        start_method: Literal["fork", "spawn", "forkserver"] | None = None,
        restart: Restart = "never",
        name: str | None = None,
    ) -> list[Worker]:
        """Start `count` workers, each a process that calls ``target(*args, **kwargs)``.

        Ends of channels among the arguments (also inside lists, tuples, sets, dictionaries and partials)
        attach in the worker. Producers are registered at once: the channel cannot end before they attach.
        It can end between two calls, if the producers of the first have finished by the second: start them
        with one call, or keep a producer of your own open until all are started.

        Args:
            target: a function; under spawn and forkserver at the top level of a module.
            args: its positional arguments.
            count: how many workers.
            kwargs: its keyword arguments.
            start_method: how; None is the platform's default. Workers that are given an end of a channel of
                ``backing="anonymous"`` are forked by the broker, whatever this says; for them, too, the main
                module is imported and the arguments are pickled.
            restart: "on-failure" starts a worker again that has failed, up to 5 times a minute.
            name: the workers are called name-1, name-2, …; the target's name by default.

        Raises:
            Refused: something cannot be passed to the worker, or an argument is not possible; nothing was
                started.
            OSError: the machine has no room for another process.
        """
        refuse_unguarded_main()
        if self._closed:
            raise Closed(f"the bus at {self.path} was closed by this process")
        return self._workers.spawn(
            target, args, kwargs or {}, count=count, start_method=start_method, restart=restart, name=name
        )

    def _tend(self) -> None:
        """Called by ends that wait; see the top of this file."""
        if not self._closed:
            shared_client(self.path).tend()
            self._workers.supervisor.check()

    # --- leaving ---

    def close(self) -> None:
        """Leave the bus as at the end of a ``with`` block: wait for the workers. Harmless when repeated.

        Raises:
            WorkerFailed: a worker has failed.
        """
        self._leave(None)

    def __enter__(self) -> Self:
        if self._closed:
            raise Closed(f"the bus at {self.path} was closed by this process")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        if self._closed:
            return
        if os.getpid() != self._pid:  # a forked child
            self._closed = True
            self._detach()
            return
        supervisor = self._workers.supervisor
        with ExitStack() as stack:
            stack.callback(self._give_back)
            if error is not None:
                supervisor.end_after(error)
                return
            try:
                self._close_own_ends()
                self._workers.leave()
                supervisor.wait()
            except BaseException as raised:
                supervisor.end_after(raised)
                raise

    def _close_own_ends(self) -> None:
        for channel in self._channels.values():
            for end in list(channel._ends):
                end.close()

    def _detach(self) -> None:
        for channel in self._channels.values():
            with suppress(ShmbusError):
                channel.detach()

    def _give_back(self) -> None:
        self._closed = True
        self._detach()
        self._channels.clear()
        _buses[self.path] -= 1
        if not _buses[self.path]:
            del _buses[self.path]
            shared_client(self.path).close()
        if self._broker is not None:
            self._broker.close()

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "a Bus cannot be pickled: pass its channels, or their ends, to the worker; "
            "a process that needs the bus itself joins it with shmbus.connect()"
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else f"{len(self.workers)} workers"
        return f"<shmbus.Bus at {self.path}, {state}>"


_buses: dict[str, int] = {}
"""How many buses of this process share the connection to a socket."""


def connect(
    name: str = "default", *, socket: str | os.PathLike[str] | None = None, grace: float = GRACE
) -> Bus:
    """Join the bus of a broker that runs already (``shmbus broker --bus NAME``).

    Args:
        name: of the bus.
        socket: the path of its socket, if that is elsewhere.
        grace: seconds that workers have between SIGTERM and SIGKILL when they are ended.

    Returns:
        The bus. Leaving it waits for the workers that were started through it; the broker goes on.

    Raises:
        NoBroker: nobody serves that bus; the message says how to start it.
        Refused: the broker will not serve this process, or the name is not possible.

    Example:
        >>> with shmbus.connect("plant") as bus:
        ...     for message in bus.channel("ticks").consumer():
        ...         print(message)
    """
    path = socket_path(name) if socket is None else os.path.abspath(os.fspath(socket))
    shared_client(path).connect()
    bus = Bus.__new__(Bus)
    bus._begin(path, None, grace)
    return bus
