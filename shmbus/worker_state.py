"""What a supervisor knows of its workers: their states, their failures, when they are started again.

A worker goes through

    running ──> ended          it returned, or ended because it was asked to
       │ ▲ └──> failed         it raised, exited with a status, or was killed; for good
       ▼ │
      waiting                  restart="on-failure": its next start is due at a known time

and only its supervisor (``workers.py``) moves it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from shmbus.errors import WorkerFailed
from shmbus.launch import Handle
from shmbus.worker_messages import Call

__all__ = ["Launch", "Restart", "RestartLimits", "Worker", "WorkerGroup", "copy_failure"]

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
    _handle: Handle | None = field(default=None, repr=False)
    _report: int = field(default=-1, repr=False)
    _asked: bool = field(default=False, repr=False)
    _due: float = field(default=0.0, repr=False)
    _started: float = field(default=0.0, repr=False)
    _recent: list[float] = field(default_factory=list, repr=False)

    @property
    def final(self) -> bool:
        """Whether it has ended for good."""
        return self.state in ("ended", "failed")


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
