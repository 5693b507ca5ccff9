"""The client's side of the control protocol: what a process asks of a broker.

A :class:`BrokerClient` is one connection of this process, made at the first request (``client_link`` says
how). Its hello carries this process's own pidfd: that is how the broker learns of our death, whatever becomes
of the socket.

*The broker may die.* Channels do not mind: records never pass through the broker. The client finds out at its
next request, or when a slow path of a channel calls ``tend``; it connects again and gives back every channel
that it still has open. A request that the broker may have carried out before it died is repeated only if that
makes no difference; otherwise :class:`~shmbus.errors.NoBroker` says that nobody knows.

*Fork.* A forked child has nothing to do with its parent's connection: it connects afresh when it needs to.
The channels that it inherited are its own to give back.

*Workers that a broker forked* (``backing="anonymous"``) find in ``inherited`` the memory that nobody can send
them.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from shmbus.client_link import Link, Offer
from shmbus.control_io import close_all, duplicate
from shmbus.errors import Refused, ShmbusError
from shmbus.places import check_socket_path, runtime_folder, socket_path
from shmbus.settings import Backing, ChannelSettings

if TYPE_CHECKING:
    from shmbus.ring import RingMemory

__all__ = [
    "BrokerClient",
    "become_worker",
    "inherited",
    "runtime_folder",
    "shared_client",
    "socket_path",
]

REQUEST_SECONDS: Final = 60.0
"""How long a client waits for an answer. Reserving the space of a large channel is what takes longest."""

inherited: dict[tuple[str, str], Any] = {}
"""In a worker that a broker forked: the memory of anonymous channels, by socket path and channel name."""

_worker_of: set[str | None] = set()


def become_worker(path: str | None = None) -> None:
    """Declares this process a worker of a bus: the broker ends it when the owner of the bus is gone.

    Call it before the first connection. Children that it forks are workers too.

    Args:
        path: the broker's socket; None for every embedded bus that this process connects to.
    """
    _worker_of.add(None if path is None else check_socket_path(path))


class BrokerClient:
    """One connection to the broker that listens at a path. Threads may share it.

    Args:
        path: the broker's socket; ``socket_path(bus_name)`` for a named bus.
        timeout: seconds to wait for an answer to a request, None for as long as it takes.

    Example:
        >>> client = BrokerClient(socket_path("plant"))                     # doctest: +SKIP
        >>> settings, memory = client.open_channel("jobs")                  # doctest: +SKIP
    """

    def __init__(self, path: str, *, timeout: float | None = REQUEST_SECONDS) -> None:
        self.path = check_socket_path(path)
        self._held: weakref.WeakKeyDictionary[Any, str] = weakref.WeakKeyDictionary()
        self._link = Link(self.path, timeout, self._role, self._offers)

    # Channels -----------------------------------------------------------------------------------------------

    def make_channel(
        self, name: str, settings: ChannelSettings | None = None, *, create: bool = True
    ) -> ChannelSettings:
        """Finds a channel, or makes it, without taking part in it. Returns its settings.

        Args:
            name: of the channel.
            settings: those it has to have; None for those that it has, or the defaults for a new one.
            create: make it if it is not there.

        Raises:
            Refused: it exists with other settings (the message names each), or is not there and is not to be
                made (the message names those with a similar name), or the bus is full.
            NoSpace: there is no room for it.
            NoBroker: nobody serves the bus.
        """
        reply = self._link.request("make", self._open_fields(name, settings, create))
        return ChannelSettings.from_wire(reply.fields["settings"])

    def open_channel(
        self, name: str, settings: ChannelSettings | None = None, *, create: bool = True
    ) -> tuple[ChannelSettings, RingMemory]:
        """Opens a channel, or makes it, and maps its memory. Each call maps it anew; close what it returns.

        Args and errors are those of ``make_channel``; and

        Raises:
            Refused: its memory is anonymous, and this is no worker that the broker has forked.
            Corrupt: what the broker sent is no channel.
        """
        found = inherited.get((self.path, name))
        if found is not None:
            if settings is not None and settings != found.settings:
                different = found.settings.describe_differences(settings)
                raise Refused(f"channel {name!r} exists with other settings: {different}")
            return found.settings, found
        reply = self._link.request("open", self._open_fields(name, settings, create))
        try:
            made = ChannelSettings.from_wire(reply.fields["settings"])
            from shmbus.ring import RingMemory
        except BaseException:
            close_all(reply.descriptors)
            raise
        control_fd, data_fd, event_fd = reply.descriptors
        memory = RingMemory.open(control_fd, data_fd, event_fd, made, label=name)
        self._held[memory] = name
        return made, memory

    def _open_fields(self, name: str, settings: ChannelSettings | None, create: bool) -> dict[str, object]:
        return {"name": name, "settings": None if settings is None else settings.to_wire(), "create": create}

    def hold(self, name: str, memory: RingMemory) -> None:
        """Takes part in giving a channel back to a restarted broker, for memory that came in another way."""
        self._held[memory] = name

    def remove(self, name: str) -> None:
        """Takes a channel from the bus; its participants find it closed.

        Raises:
            Refused: there is no such channel.
            NoBroker: nobody serves the bus, or the broker died with the request.
        """
        self._link.request("remove", {"name": name})

    def close_channel(self, name: str) -> None:
        """Closes a channel: nothing more is sent, consumers drain it and end. It stays on the bus.

        Raises:
            Refused: there is no such channel.
            NoBroker: nobody serves the bus.
        """
        self._link.request("close_channel", {"name": name})

    def drop_group(self, name: str, group: str) -> None:
        """Takes a group of a channel away, with what it has not received.

        Raises:
            Refused: there is no such channel, or no such group.
            NoBroker: nobody serves the bus, or the broker died with the request.
        """
        self._link.request("drop_group", {"name": name, "group": group})

    def list(self) -> Sequence[Mapping[str, Any]]:
        """The channels of the bus, by name: name, identity, settings (as sent), processes (pids).

        Raises:
            NoBroker: nobody serves the bus.
        """
        rows: list[Mapping[str, Any]] = []
        more = True
        while more:
            reply = self._link.request("list", {"after": rows[-1]["name"] if rows else ""})
            page = reply.fields["channels"]
            assert isinstance(page, list)
            rows += page
            more = bool(reply.fields["more"]) and bool(page)
        return rows

    def stats(self, name: str | None = None) -> Mapping[str, Any]:
        """Statistics: of a channel, or, without a name, of the broker.

        Raises:
            Refused: there is no such channel.
            NoBroker: nobody serves the bus.
        """
        found = self._link.request("stats", {"name": name}).fields["stats"]
        assert isinstance(found, dict)
        return found

    # The broker ---------------------------------------------------------------------------------------------

    def connect(self) -> Self:
        """Connects now, if it is not connected.

        Raises:
            NoBroker: nobody serves the bus.
            Refused: the broker will not serve this process.
        """
        self._link.request("stats", {"name": None})
        return self

    @property
    def closed(self) -> bool:
        """Whether it was closed."""
        return self._link.closed

    @property
    def bus_name(self) -> str | None:
        """The bus, once connected."""
        name = self._link.broker.get("bus")
        return None if name is None else str(name)

    @property
    def broker_pid(self) -> int | None:
        """The broker's process, once connected."""
        pid = self._link.broker.get("pid")
        return pid if isinstance(pid, int) else None

    def spawn(self, payload: bytes, pipe: int) -> tuple[int, int]:
        """Has the broker fork a worker, which inherits the bus's anonymous channels.

        Args:
            payload: for ``workers.run_forked`` in the child; at most ``limits.MAX_FRAME_BYTES``.
            pipe: the write end of the pipe that the worker reports to; it stays the caller's.

        Returns:
            The worker's pid, and a pidfd of it that is the caller's to close.

        Raises:
            Refused: the payload is too long, or too many workers run.
            NoBroker: nobody serves the bus, or the broker died with the request.
        """
        reply = self._link.request("spawn", {"payload": payload}, [pipe])
        pid = reply.fields["pid"]
        assert isinstance(pid, int)
        return pid, reply.descriptors[0]

    def exit_code(self, pid: int) -> int:
        """How a worker that the broker forked has ended: its exit status, or minus the signal that killed it.

        Waits for its end; ask when the pidfd is readable. It can be asked once.

        Raises:
            Refused: the broker has forked no such worker, or has told already.
            NoBroker: the broker is gone, and the exit status with it.
        """
        found = self._link.request("exit_code", {"pid": pid}).fields["exit_code"]
        assert isinstance(found, int)
        return found

    def shutdown(self) -> None:
        """Ends the broker of an embedded bus, which only its owner may.

        Raises:
            Refused: the bus is not embedded, or not this process's own.
            NoBroker: nobody serves the bus.
        """
        try:
            self._link.request("shutdown", {})
        finally:
            self._link.drop()

    def tend(self) -> bool:
        """Looks after the connection, without ever waiting; for the slow paths of channels.

        If the broker has died, connects to the one that has taken its place, when there is one, and gives it
        this process's open channels back. Raises nothing: without a broker, traffic goes on.

        Returns:
            Whether there is a broker, as far as can be told.
        """
        return self._link.tend()

    @property
    def refused_offers(self) -> Mapping[str, ShmbusError]:
        """The channels that the present broker would not take back, by name, and why."""
        return self._link.refused_offers

    def _role(self) -> str:
        return "worker" if _worker_of & {None, self.path} else "client"

    def _offers(self) -> Iterator[Offer]:
        offered = set()
        for memory, name in [*self._held.items()]:
            if memory.settings.backing is Backing.ANONYMOUS or memory.identity in offered or memory.closed:
                continue
            try:
                descriptors = duplicate(memory.control_fd, memory.data_fd, memory.event_fd)
            except OSError:  # it was closed meanwhile
                continue
            offered.add(memory.identity)
            fields = {"name": name, "settings": memory.settings.to_wire(), "identity": memory.identity}
            yield Offer(fields, [*descriptors])

    def close(self) -> None:
        """Closes the connection. Channels that are open stay so. Harmless when repeated."""
        self._link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


_shared: dict[str, BrokerClient] = {}


def shared_client(path: str) -> BrokerClient:
    """The client of this process for the broker at a path: all endpoints of a bus can share one."""
    path = check_socket_path(path)
    found = _shared.get(path)
    if found is None or found.closed:
        found = _shared[path] = BrokerClient(path)
    return found
