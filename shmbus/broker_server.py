"""The broker at work: it admits clients, answers their requests, and learns of deaths.

Theory of operation
===================

One task per connection reads a frame, answers it, reads the next. A client that sends half a frame and stops,
or that takes no answers, keeps only its own task waiting, and only until a deadline. A frame that breaks the
protocol ends that connection, with a reply that says why. The state that tasks share (processes, channels) is
changed without an await in between, so there are no locks.

*Death* is a readable pidfd, nothing else (``broker_processes``). Then every channel is reaped, at once. The
end of a connection proves nothing (a process may close it, and a forked child may keep it open), but it is a
good moment to look: the ring reaps whoever it can itself prove dead. While nothing happens nothing runs:
there is no timer, no polling.

*The end* comes by a signal or, on an embedded bus, by its owner: it says shutdown, closes its end of the
lifeline, or dies. Then the embedded bus ends its workers, SIGTERM first, SIGKILL after a grace: the owner is
not there to do it. Forked workers are the broker's own children, and go with it always: their memory is its
memory.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import time
import traceback
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, NamedTuple

import anyio
from anyio.abc import TaskGroup

from shmbus import control, limits
from shmbus.broker_channels import Channels
from shmbus.broker_connection import Connection, say_no
from shmbus.broker_hold import ChannelList
from shmbus.broker_memory import MemoryFactory
from shmbus.broker_processes import Process, Processes
from shmbus.broker_workers import ForkedWorkers, end_processes
from shmbus.control_io import close_all, duplicate, pidfd_pid
from shmbus.errors import Refused, ShmbusError

__all__ = ["Broker", "End"]


_HARD_TIMES: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_HARD_TIMES_SECONDS: Final = 0.02


class End(NamedTuple):
    """Why a broker ended: `workers` says whether its workers were ended with it."""

    reason: str
    workers: bool


class _Answer(NamedTuple):
    fields: dict[str, object]
    descriptors: tuple[int, ...] = ()
    """Sent, and then closed."""


@dataclass(eq=False, slots=True)
class _Client:
    connection: Connection
    process: Process | None = None


class Broker:
    """Serves one bus on a listening socket.

    Args:
        listener: a Unix stream socket, listening, non-blocking. It stays the caller's.
        bus_name: for messages.
        factory: makes and opens the memory of channels.
        channel_list: where names outlive this broker; None for an embedded bus.
        open_to_others: whether the socket's mode lets other users connect.
        lifeline: of an embedded bus: the bus ends when the other end is closed.
        owner: of an embedded bus: a pidfd of the process that started it; the bus ends when it does.
        grace_seconds: between SIGTERM and SIGKILL for workers.
        frame_seconds: how long a client may take for the rest of a frame, or to take an answer.
        worker_entry: "module:function" that forked workers run, called with the payload and the pipe.
    """

    def __init__(
        self,
        listener: socket.socket,
        *,
        bus_name: str,
        factory: MemoryFactory,
        channel_list: ChannelList | None = None,
        open_to_others: bool = False,
        lifeline: socket.socket | None = None,
        owner: int | None = None,
        grace_seconds: float = 3.0,
        frame_seconds: float = control.FRAME_SECONDS,
        worker_entry: str = "shmbus.workers:run_forked",
    ) -> None:
        self._listener = listener
        self._path = str(listener.getsockname())
        self._bus_name = bus_name
        self._channels = Channels(bus_name, factory, channel_list, os.getpid())
        self._open_to_others = open_to_others
        self._lifeline = lifeline
        self._owner = owner
        self._owner_pid = None if owner is None else pidfd_pid(owner)
        self._grace_seconds = grace_seconds
        self._frame_seconds = frame_seconds
        self._workers = ForkedWorkers(worker_entry, self._path, self._channels.reap)
        self._instance = os.urandom(16)
        self._since = time.time()
        self._processes = Processes(self._process_ended)
        self._clients: set[_Client] = set()
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        self._end: End | None = None
        self._ending = anyio.Event()
        self._tasks: TaskGroup
        self._answers: dict[str, Callable[[_Client, control.Request, list[int]], Awaitable[_Answer]]] = {
            "hello": self._hello,
            "make": self._make,
            "open": self._open,
            "offer": self._offer,
            "list": self._list,
            "stats": self._stats,
            "remove": self._remove,
            "close_channel": self._close_channel,
            "drop_group": self._drop_group,
            "spawn": self._spawn,
            "exit_code": self._exit_code,
            "shutdown": self._shutdown,
        }

    def stop(self, reason: str, *, workers: bool = False) -> None:
        """Asks the broker to end; `run` then returns.

        Args:
            reason: for the record.
            workers: end the workers too.
        """
        if self._end is None:
            self._end = End(reason, workers)
        self._ending.set()

    async def run(self) -> End:
        """Serves until `stop`, the owner's end or a shutdown request. Returns why it ended."""
        try:
            async with anyio.create_task_group() as self._tasks:
                self._channels.watch_kept(self._tasks)
                if self._owner is not None:
                    self._tasks.start_soon(self._watch_owner, self._owner)
                if self._lifeline is not None:
                    self._tasks.start_soon(self._watch_lifeline, self._lifeline)
                self._tasks.start_soon(self._accept)
                await self._ending.wait()
                self._processes.keep_open()
                self._tasks.cancel_scope.cancel()
            assert self._end is not None
            with suppress(OSError):
                self._listener.shutdown(socket.SHUT_RDWR)  # nobody is to wait for an answer that never comes
            await self._end_workers(self._end)
            return self._end
        finally:
            self._processes.close()
            close_all([self._spare])
            self._channels.close(end=self._end is not None and self._end.workers)

    # Who comes ----------------------------------------------------------------------------------------------

    async def _accept(self) -> None:
        while True:
            await anyio.wait_readable(self._listener)
            try:
                connected, _ = self._listener.accept()
            except (BlockingIOError, ConnectionAbortedError):
                continue
            except OSError as error:
                if error.errno not in _HARD_TIMES:
                    raise
                self._turn_one_away()
                # Who is still waiting keeps the listener readable, and nothing tells when times get better.
                await anyio.sleep(_HARD_TIMES_SECONDS)
                continue
            self._tasks.start_soon(self._serve, connected)

    def _turn_one_away(self) -> None:
        """Without a free descriptor nobody can be let in, and the listener stays readable: use the spare."""
        close_all([self._spare])
        self._spare = -1
        with suppress(OSError):
            connected, _ = self._listener.accept()
            say_no(connected, f"the broker of bus {self._bus_name!r} is at its limit of open files")
        with suppress(OSError):
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)

    async def _serve(self, connected: socket.socket) -> None:
        client = _Client(Connection(connected, self._frame_seconds))
        self._clients.add(client)
        refused: Refused | None = None
        try:
            self._admit(client.connection.peer.uid)
            while True:
                request = await client.connection.next_request()
                if request is None:
                    break
                await self._answer(client, request)
                if client.process is None:
                    break  # its hello was refused
        except Refused as error:
            refused = error
        except OSError:
            pass  # the connection broke; what that means is looked at below
        except Exception:
            # A fault of the broker's own: this connection ends, the bus goes on.
            traceback.print_exc(file=sys.stderr)
        finally:
            self._clients.discard(client)
            client.connection.close(refused)
            self._left(client)

    def _admit(self, uid: int) -> None:
        if len(self._clients) > limits.MAX_CLIENTS:
            raise Refused(
                f"bus {self._bus_name!r} has {limits.MAX_CLIENTS} clients, the limit (MAX_CLIENTS); close one"
            )
        if uid != os.geteuid() and not self._open_to_others:
            raise Refused(
                f"bus {self._bus_name!r} belongs to user {os.geteuid()}, and user {uid} is not let in"
            )

    async def _answer(self, client: _Client, request: control.Request) -> None:
        descriptors = list(request.descriptors)
        answer: _Answer | None = None
        handed: tuple[int, ...] = ()
        try:
            try:
                answer = await self._answers[request.name](client, request, descriptors)
                frame, handed = client.connection.reply(request, answer.fields), answer.descriptors
            except ShmbusError as error:
                frame = client.connection.refusal(request, error)
            except Exception as error:
                # A fault of the broker's own, or of the machine: this request fails, the bus goes on.
                traceback.print_exc(file=sys.stderr)
                wire = control.error_to_wire(error)
                frame = client.connection.refusal(request, control.error_from_wire(wire))
            await client.connection.send(frame, handed)
        finally:
            close_all(descriptors)
            if answer is not None:
                close_all(answer.descriptors)
        if answer is not None and request.name == "shutdown":
            self.stop("its owner asked for it", workers=True)

    def _left(self, client: _Client) -> None:
        process = client.process
        if process is None:
            return
        process.connections -= 1
        self._channels.reap()
        if not (process.connections or process.worker or self._channels.holds_any(process)):
            self._processes.end(process)

    def _process_ended(self, process: Process) -> None:
        self._channels.reap()
        with suppress(ShmbusError):
            self._channels.process_ended(process)
        for client in self._clients:
            if client.process is process:
                client.connection.hang_up()  # a forked child keeps it open, and nobody speaks for the dead

    # Requests -----------------------------------------------------------------------------------------------

    async def _hello(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        role, command = request.fields["role"], request.fields["command"]
        peer = client.connection.peer
        client.process = self._processes.greet(peer, role, command, descriptors, self._tasks)
        return _Answer(
            {
                "bus": self._bus_name,
                "pid": os.getpid(),
                "embedded": self._owner is not None,
                "instance": self._instance,
            }
        )

    def _known(self, client: _Client) -> Process:
        assert client.process is not None  # the state table lets nothing through before hello
        return client.process

    async def _make(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        return await self._find(request.fields, None)

    async def _open(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        return await self._find(request.fields, self._known(client))

    async def _find(self, fields: dict[str, object], process: Process | None) -> _Answer:
        name, settings = str(fields["name"]), fields["settings"]
        served, made = await self._channels.open(
            name, settings, create=bool(fields["create"]), process=process
        )
        answer = {"settings": served.settings.to_wire(), "identity": served.identity, "made": made}
        if process is None:
            return _Answer(answer)
        # Copies: the channel may be removed, and its numbers used again, while the answer waits to be taken.
        memory = served.memory
        return _Answer(answer, duplicate(memory.control_fd, memory.data_fd, memory.event_fd))

    async def _offer(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        fields = request.fields
        name, settings, identity = str(fields["name"]), fields["settings"], fields["identity"]
        assert isinstance(identity, bytes)
        merged = await self._channels.offer(name, settings, identity, descriptors, self._known(client))
        return _Answer({"merged": merged})

    async def _list(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        rows, more = self._channels.page(str(request.fields["after"]))
        return _Answer({"channels": rows, "more": more})

    async def _stats(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        name = request.fields["name"]
        if name is not None:
            return _Answer({"stats": self._channels.stats(str(name))})
        processes = [
            {"pid": one.pid, "command": one.command, "worker": one.worker, "connections": one.connections}
            for one in self._processes
        ]
        return _Answer(
            {
                "stats": {
                    "bus": self._bus_name,
                    "path": self._path,
                    "pid": os.getpid(),
                    "since": self._since,
                    "embedded": self._owner is not None,
                    "channels": len(self._channels),
                    "clients": len(self._clients),
                    "processes": processes,
                }
            }
        )

    async def _remove(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        self._channels.remove(str(request.fields["name"]))
        return _Answer({})

    async def _close_channel(
        self, client: _Client, request: control.Request, descriptors: list[int]
    ) -> _Answer:
        self._channels.find(str(request.fields["name"])).memory.close_channel()
        return _Answer({})

    async def _drop_group(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        self._channels.drop_group(str(request.fields["name"]), str(request.fields["group"]))
        return _Answer({})

    async def _shutdown(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        if self._owner is None:
            raise Refused(
                f"bus {self._bus_name!r} is not embedded, and no client ends it; send its broker "
                f"(process {os.getpid()}) a SIGTERM"
            )
        if client.connection.peer.pid != self._owner_pid:
            raise Refused(f"bus {self._bus_name!r} is ended by its owner, process {self._owner_pid}, only")
        return _Answer({})

    # Forked workers -----------------------------------------------------------------------------------------

    async def _spawn(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        if client.connection.peer.uid != os.geteuid():
            raise Refused("a broker forks workers for its own user only")
        payload = request.fields["payload"]
        assert isinstance(payload, bytes)
        pid, pidfd = self._workers.fork(payload, descriptors[0], self._channels, self._tasks)
        return _Answer({"pid": pid}, (pidfd,))

    async def _exit_code(self, client: _Client, request: control.Request, descriptors: list[int]) -> _Answer:
        pid = request.fields["pid"]
        assert isinstance(pid, int)
        return _Answer({"exit_code": await self._workers.exit_code(pid)})

    # The end ------------------------------------------------------------------------------------------------

    async def _watch_owner(self, owner: int) -> None:
        await anyio.wait_readable(owner)
        self.stop(f"its owner, process {self._owner_pid}, has ended", workers=True)

    async def _watch_lifeline(self, lifeline: socket.socket) -> None:
        lifeline.setblocking(False)
        while True:
            await anyio.wait_readable(lifeline)
            try:
                if lifeline.recv(4096):
                    continue  # nothing is ever said here
            except BlockingIOError:
                continue
            except OSError:
                pass
            self.stop("its owner closed the lifeline", workers=True)
            return

    async def _end_workers(self, end: End) -> None:
        doomed = self._workers.running()
        if end.workers:
            for process in self._processes:
                if process.worker and process.pid != self._owner_pid:
                    doomed.setdefault(process.pid, process.pidfd)
        with anyio.CancelScope(shield=True):
            await end_processes(doomed.values(), self._grace_seconds)
        self._workers.bury()
