"""The processes that a broker knows, and how it learns of their ends.

A process is known from its first hello, under the pid that the kernel gave for it at connect. The hello
carries a pidfd; it is believed when it names the same pid. One task per process waits for the pidfd to become
readable, which is the proof of death, and the only one that counts here. It goes on waiting when the process
has closed all its connections, for as long as something ties it to the bus.

A pid means nothing after its process has ended: the number may come again, with a hello, before the end of
its former bearer was noticed here. So a known process whose pidfd is readable is never taken for the one that
connects.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import anyio
from anyio.abc import TaskGroup

from shmbus import control
from shmbus.control_io import Peer, close_all, command_of, has_ended, pidfd_pid, start_ticks
from shmbus.errors import Refused

__all__ = ["Process", "Processes"]


@dataclass(eq=False, slots=True)
class Process:
    """A process that the broker knows; `ended` once it is dead, or nothing ties it to the bus any more."""

    pid: int
    started: int | None
    pidfd: int
    uid: int
    command: str
    worker: bool = False
    connections: int = 0
    ended: bool = False
    scope: anyio.CancelScope = field(default_factory=anyio.CancelScope)


class Processes:
    """Those that are connected, and those that were and still take part.

    Args:
        on_end: called once for each process, when it has ended.
    """

    def __init__(self, on_end: Callable[[Process], None]) -> None:
        self._on_end = on_end
        # One that cannot be seen from here has pid 0, like every other such, and is known by itself.
        self._known: dict[int | Process, Process] = {}
        self._kept_open = False

    def __iter__(self) -> Iterator[Process]:
        return iter(self._known.values())

    def greet(
        self, peer: Peer, role: object, command: object, descriptors: list[int], tasks: TaskGroup
    ) -> Process:
        """The process that says hello on a new connection.

        Args:
            peer: who connected.
            role: one of ``control.ROLES``.
            command: what it says it is, for a process whose command line cannot be read.
            descriptors: its pidfd, which is taken out if it is needed.
            tasks: where its end is waited for.

        Raises:
            Refused: there is no such role, or the descriptor is no pidfd of this process.
        """
        if role not in control.ROLES:
            raise Refused(f"there is no role {str(role)[:40]!r}; there are {', '.join(control.ROLES)}")
        pid = pidfd_pid(descriptors[0])
        if pid is None:
            raise Refused("the descriptor in hello is no pidfd")
        # 0 on both sides: a process of another pid namespace. Its pidfd works all the same.
        if pid not in (peer.pid, -1):
            raise Refused(f"the pidfd in hello is of process {pid}, and process {peer.pid} connected")
        process = self._known.get(peer.pid) if peer.pid else None
        if process is not None and has_ended(process.pidfd):
            self.end(process)
            process = None
        if process is None:
            words = command_of(peer.pid) if peer.pid else str(command)
            process = Process(
                peer.pid,
                start_ticks(peer.pid) if peer.pid else None,
                descriptors.pop(),
                peer.uid,
                "".join(filter(str.isprintable, words))[:200],
            )
            self._known[peer.pid or process] = process
            tasks.start_soon(self._watch, process)
        process.connections += 1
        process.worker = process.worker or role == "worker"
        return process

    async def _watch(self, process: Process) -> None:
        try:
            with process.scope:
                await anyio.wait_readable(process.pidfd)
        finally:
            # Only this task closes the pidfd: while it waits, the number must not come to mean another file.
            if process.ended or not self._kept_open:
                self.end(process)
                close_all([process.pidfd])

    def end(self, process: Process) -> None:
        """Forgets a process. Harmless when repeated, and after ``keep_open``."""
        if process.ended or self._kept_open:
            return
        process.ended = True
        del self._known[process.pid or process]
        process.scope.cancel()
        self._on_end(process)

    def keep_open(self) -> None:
        """From now on nobody is forgotten, and pidfds stay open without their watchers: the broker ends."""
        self._kept_open = True

    def close(self) -> None:
        """Closes what ``keep_open`` left open."""
        for process in self:
            close_all([process.pidfd])
        self._known.clear()
