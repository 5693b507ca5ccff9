"""What a supervisor knows of its workers: their states, their failures, when they are started again.

A worker goes through

    running ──> ended          it returned, or ended because it was asked to
       │ ▲ └──> failed         it raised, exited with a status, or was killed; for good
       ▼ │
      waiting                  restart="on-failure": its next start is due at a known time

and only its supervisor (``workers.py``) moves it.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal, get_args

from shmbus.errors import Refused, WorkerFailed
from shmbus.launch import Child, Handle, failure_of, interrupts_held, poll, read_all, signals_blocked
from shmbus.worker_messages import Call
from shmbus.worker_process import Brief, ProcessIdentity, pack_forked

__all__ = [
    "Launch",
    "Restart",
    "RestartLimits",
    "Worker",
    "WorkerGroup",
    "check_request",
    "copy_failure",
]

Restart = Literal["never", "on-failure"]
Launch = Callable[[bytes, int, str], Handle]
"""Starts a worker elsewhere, from a payload of `run_forked`, the report's descriptor and a name."""


@dataclass(frozen=True, slots=True)
class RestartLimits:
    """How often a failing worker is started again, and how long it waits before that.

    Attributes:
        most: restarts allowed within `window`; the failure after that is for good.
        window: seconds. A worker that ran longer than this starts counting afresh.
        first_delay: seconds before the first restart; each further one waits twice as long.
        longest_delay: seconds; the delay grows no further.
    """

    most: int = 5
    window: float = 60.0
    first_delay: float = 0.1
    longest_delay: float = 5.0


@dataclass(slots=True, eq=False)
class Worker:
    """What a supervisor knows of one worker.

    Attributes:
        name: "consume-1"; stays the same over restarts.
        pid: of its present or last process.
        state: "running", "waiting" (to be restarted), "ended" or "failed" (both for good).
        exit_code: of its last process: a status, minus a signal, or None if it runs or nobody knows.
        restarts: how often it was started again.
        failures: what went wrong, the latest last. Failures before a restart are among them.
    """

    name: str
    group: WorkerGroup = field(repr=False)
    pid: int = -1
    state: Literal["running", "waiting", "ended", "failed"] = "waiting"
    exit_code: int | None = None
    restarts: int = 0
    failures: list[WorkerFailed] = field(default_factory=list, repr=False)
    handle: Handle | None = field(default=None, repr=False)
    due: float = field(default=0.0, repr=False)
    _report: int = field(default=-1, repr=False)
    _asked: bool = field(default=False, repr=False)
    _started: float = field(default=0.0, repr=False)
    _restarted: list[float] = field(default_factory=list, repr=False)

    @property
    def final(self) -> bool:
        """Whether it has ended for good."""
        return self.state in ("ended", "failed")

    # What follows is for the supervisor, under its lock.

    def start(self, grace: float, prepare: Callable[[], None] | None) -> None:
        """Start its process, for the first time or again.

        Raises:
            Refused: the call cannot be pickled, as the start method wants it.
            OSError: there is no process or no descriptor to be had.
        """
        from multiprocessing.connection import Pipe

        group, parent = self.group, ProcessIdentity.own()
        with interrupts_held(), signals_blocked(group.start_method) as blocked:
            reader, writer = Pipe(duplex=False)
            try:
                if group.launch is not None:
                    payload = pack_forked(group.call, parent, self.name, grace, prepare)
                    self.handle = group.launch(payload, writer.fileno(), self.name)
                else:
                    brief = Brief(group.call, writer, parent, grace, prepare, blocked)
                    self.handle = Child(group.start_method, brief, self.name)
                self._report = os.dup(reader.fileno())
            finally:
                reader.close()
                writer.close()
            os.set_blocking(self._report, False)
            self.pid, self.exit_code, self._asked = self.handle.pid, None, False
            self._started = time.monotonic()
            self.state = "running"

    def settle(self, limits: RestartLimits) -> None:
        """Take note of the end of its process, if it has ended."""
        assert self.handle is not None
        ended, code = self.handle.ended()
        if not ended:
            return
        failure = failure_of(self.name, self.pid, code, read_all(self._report))
        self.handle.close()
        os.close(self._report)
        self.handle, self._report, self.exit_code = None, -1, code
        if self._asked or failure is None:
            self.state = "ended"
            return
        self.failures.append(failure)
        self.state = "failed"
        if self.group.restart == "on-failure":
            self.postpone(limits, time.monotonic())

    def postpone(self, limits: RestartLimits, now: float) -> None:
        """After a failure: set the time of its next start, or add to the failure why there is none."""
        if now - self._started > limits.window:
            self._restarted.clear()
        self._restarted = [start for start in self._restarted if now - start <= limits.window]
        times = len(self._restarted)
        if times >= limits.most:
            self.failures[-1].add_note(
                f"It was restarted {times} times within {limits.window:g} s, and is given up."
            )
            self.state = "failed"
            return
        self._restarted.append(now)
        self.due = now + min(limits.longest_delay, limits.first_delay * 2**times)
        self.state = "waiting"

    def send(self, *numbers: int) -> None:
        """Send signals that ask it to end; what it does from now on is no failure."""
        if self.handle is not None:
            self._asked = True
            for number in numbers:
                self.handle.kill(number)

    def kill_now(self) -> None:
        """Kill it and wait for its end, if it runs."""
        self.send(signal.SIGKILL)
        while self.handle is not None:
            poll([self.handle.fileno()], None)
            self.settle(RestartLimits())


@dataclass(slots=True, eq=False)
class WorkerGroup:
    """The workers of one `Supervisor.spawn`, whose arguments are described there."""

    call: Call
    start_method: str
    restart: Restart = "never"
    vital: Callable[[], bool] = lambda: False
    on_ended: Callable[[Worker], None] | None = None
    prompt: bool = False
    launch: Launch | None = None
    workers: list[Worker] = field(default_factory=list)

    @property
    def running(self) -> bool:
        """Whether a worker of it runs, or will be started again."""
        return not all(worker.final for worker in self.workers)

    @property
    def failed(self) -> bool:
        """Whether none is left and some have failed: nobody will do their work."""
        return not self.running and any(worker.state == "failed" for worker in self.workers)


def check_request(target: object, count: int, restart: str) -> None:
    """Refuse what no supervisor can do.

    Raises:
        Refused: an argument of ``spawn`` is not possible; the message names it.
    """
    if not callable(target):
        raise Refused(f"target={target!r} cannot be called: pass the function itself", setting="target")
    if count < 1:
        raise Refused(f"count={count}: a group has at least one worker", setting="count")
    if restart not in get_args(Restart):
        raise Refused(f'restart={restart!r}: it is "never" or "on-failure"', setting="restart")


def copy_failure(failure: WorkerFailed) -> WorkerFailed:
    """A fresh error that says the same: one that is raised twice would collect tracebacks and notes."""
    error = WorkerFailed(
        str(failure),
        name=failure.name,
        pid=failure.pid,
        exit_code=failure.exit_code,
        traceback_text=failure.traceback_text,
    )
    for note in getattr(failure, "__notes__", ()):
        error.add_note(note)
    return error
