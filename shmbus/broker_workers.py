"""Processes that end with the bus: the workers that the broker forks, and how all of them are ended.

A forked worker is the broker's own child, so the broker has to wait for it (or it stays a zombie), and only
the broker can learn how it ended. Whoever asked for it gets a pidfd, and asks for the exit code when that is
readable.

Ending: SIGTERM to all (and SIGCONT, or a stopped process would never see it), then a grace, then SIGKILL to
those who are left. Signals go through pidfds, so none can reach a stranger who was given the number.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

import anyio
from anyio.abc import TaskGroup

from shmbus import limits
from shmbus.broker_channels import Served
from shmbus.broker_fork import fork_worker
from shmbus.control_io import close_all, has_ended
from shmbus.errors import Refused

__all__ = ["ForkedWorkers", "end_processes"]

AFTER_KILL_SECONDS: Final = 10.0
"""How long the broker waits for a process after SIGKILL; only one stuck in the kernel takes longer."""


@dataclass(eq=False, slots=True)
class _Forked:
    pid: int
    pidfd: int
    exit_code: int = 0
    ended: anyio.Event = field(default_factory=anyio.Event)


class ForkedWorkers:
    """The children of a broker.

    Args:
        entry: "module:function", called in the child with the payload and the pipe.
        path: of the bus.
        on_end: called when one of them has ended.
    """

    def __init__(self, entry: str, path: str, on_end: Callable[[], object]) -> None:
        self._entry = entry
        self._path = path
        self._on_end = on_end
        self._all: dict[int, _Forked] = {}

    def fork(
        self, payload: bytes, pipe: int, channels: Iterable[Served], tasks: TaskGroup
    ) -> tuple[int, int]:
        """Forks a worker. Returns its pid, and a pidfd of it that is the caller's.

        Raises:
            Refused: too many of them run.
            OSError: no process or no descriptor can be had.
        """
        if len(self._all) >= limits.MAX_CLIENTS:
            for pid in [pid for pid, one in self._all.items() if one.ended.is_set()]:
                del self._all[pid]  # nobody has asked how it ended
        if len(self._all) >= limits.MAX_CLIENTS:
            raise Refused(f"the broker has forked {limits.MAX_CLIENTS} workers, the limit (MAX_CLIENTS)")
        pid = fork_worker(payload, pipe, self._entry, self._path, channels)
        handed = -1
        try:
            # Nobody else can have waited for it, so the number is still its own.
            handed = os.pidfd_open(pid)
            forked = self._all[pid] = _Forked(pid, os.dup(handed))
        except OSError:
            close_all([handed])
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise
        tasks.start_soon(self._watch, forked)
        return pid, handed

    async def exit_code(self, pid: int) -> int:
        """How a worker has ended, when it has; minus the signal that killed it. It is told once.

        Raises:
            Refused: there is no such worker, or it was told already.
        """
        forked = self._all.get(pid)
        if forked is None:
            raise Refused(f"process {pid} is no worker that this broker has forked")
        await forked.ended.wait()
        self._all.pop(pid, None)
        return forked.exit_code

    def running(self) -> dict[int, int]:
        """The pids of those that run, with their pidfds."""
        return {one.pid: one.pidfd for one in self._all.values() if not one.ended.is_set()}

    def bury(self) -> None:
        """Waits for those that have ended, and forgets the others: for the end of the broker."""
        for one in self._all.values():
            if not one.ended.is_set():
                if has_ended(one.pidfd):
                    self._wait(one)
                else:
                    close_all([one.pidfd])

    async def _watch(self, forked: _Forked) -> None:
        await anyio.wait_readable(forked.pidfd)
        self._on_end()
        self._wait(forked)

    def _wait(self, forked: _Forked) -> None:
        found = os.waitid(os.P_PIDFD, forked.pidfd, os.WEXITED)
        if found is not None:
            forked.exit_code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        close_all([forked.pidfd])
        forked.ended.set()


async def end_processes(pidfds: Iterable[int], grace_seconds: float) -> None:
    """Ends processes, and returns when they have ended.

    Args:
        pidfds: of the processes; no other task waits for them.
        grace_seconds: between SIGTERM and SIGKILL.
    """
    left = set(pidfds)
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, AFTER_KILL_SECONDS)):
        for pidfd in left:
            with suppress(OSError):
                signal.pidfd_send_signal(pidfd, number)
                signal.pidfd_send_signal(pidfd, signal.SIGCONT)
        with anyio.move_on_after(seconds):
            for pidfd in sorted(left):
                await anyio.wait_readable(pidfd)
                left.discard(pidfd)
