"""Workers: processes that run one call each, and the supervisor that starts, watches and ends them.

What happens inside a worker is told in ``worker_process.py``, how one is started and found dead in
``launch.py``, which states it goes through in ``worker_state.py``. Here is who decides.

Only `Supervisor._tend` moves a worker, under the supervisor's lock. Whoever has time calls `_tend`: `wait`,
`terminate` and `check` do in their caller's thread. So a program that only waits for its workers has no other
thread. One exists only where somebody has to notice at once, whatever the program is doing: for workers
that are to be restarted, and for those whose `on_ended` is to be prompt. It sleeps in poll(2) on the workers'
descriptors, without the GIL, and ends with the last such worker. It is stopped while this process forks a
worker, so that the child inherits no lock in mid-use and Python has no multi-threaded fork to warn of. (A
*re*start by fork is made in that thread. Where the program has threads with locks, restart with spawn or
forkserver.)

Ending workers: SIGTERM (and SIGCONT, for the stopped), a grace, SIGKILL. What a worker does after it was
asked to end is not a failure: its complaints would only be echoes of the first.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, Self

from shmbus.errors import TimedOut, WorkerFailed
from shmbus.launch import Bells, Handle, check_start_method, close_at_exit, interrupts_held
from shmbus.worker_messages import Call
from shmbus.worker_process import (
    POKE_SECONDS,
    UNGUARDED,
    Terminated,
    refuse_unguarded_main,
    run_forked,
    start_deaf_thread,
)
from shmbus.worker_state import (
    Launch,
    Restart,
    RestartLimits,
    Worker,
    WorkerGroup,
    check_request,
    copy_failure,
)

__all__ = [
    "GRACE",
    "Handle",
    "Restart",
    "RestartLimits",
    "Supervisor",
    "Terminated",
    "Worker",
    "WorkerGroup",
    "run_forked",
]

GRACE: Final = 3.0
"""Seconds between SIGTERM and SIGKILL, unless told otherwise."""
AFTER_KILL: Final = 30.0
"""Seconds to wait for a process after SIGKILL; only one stuck inside the kernel takes longer."""


class Supervisor:
    """Starts workers, and ends when they have ended.

    As a context manager it waits for its workers when the block ends, and ends them when the block raises.

    Args:
        grace: seconds that workers have between SIGTERM and SIGKILL.
        limits: of restarts.
        prepare: called in each worker before its target; a function at the top level of a module.

    Example:
        >>> with Supervisor() as supervisor:
        ...     supervisor.spawn(work, (1, 2), count=4)
    """

    def __init__(
        self,
        *,
        grace: float = GRACE,
        limits: RestartLimits | None = None,
        prepare: Callable[[], None] | None = None,
    ) -> None:
        self._grace = grace
        self._prepare = prepare
        self._limits = limits or RestartLimits()
        self._forget()

    def _forget(self) -> None:
        """Start with nothing: at first, and in a forked child, which has none of its parent's workers."""
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._groups: list[WorkerGroup] = []
        self._bells = Bells()
        self._thread: threading.Thread | None = None
        self._halts = 0
        self._ending = False
        self._raised: list[WorkerFailed] = []

    def _own(self) -> None:
        if self._pid != os.getpid():
            self._forget()

    @property
    def workers(self) -> list[Worker]:
        """Every worker so far, in the order of their start."""
        self._own()
        with self._lock:
            return [worker for group in self._groups for worker in group.workers]

    def failed_groups(self) -> list[WorkerGroup]:
        """The groups of which no worker is left and some have failed."""
        self._own()
        self._tend()
        with self._lock:
            return [group for group in self._groups if group.failed]

    # --- starting ---

    def spawn(
        self,
        target: Callable[..., object],
        args: Iterable[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
        *,
        count: int = 1,
        start_method: str | None = None,
        restart: Restart = "never",
        name: str | None = None,
        vital: bool | Callable[[], bool] = False,
        on_ended: Callable[[Worker], None] | None = None,
        prompt: bool = True,
        launch: Launch | None = None,
    ) -> WorkerGroup:
        """Start `count` workers that call ``target(*args, **kwargs)``, each in its own process.

        Args:
            target: anything callable; under spawn and forkserver it has to be picklable, as its arguments.
            args: positional arguments, the same for each worker.
            kwargs: keyword arguments.
            count: how many workers.
            start_method: "fork", "spawn" or "forkserver"; None is the platform's default.
            restart: "on-failure" starts a worker again that failed, within the supervisor's limits.
            name: names the workers name-1, name-2, …; the target's name by default.
            vital: whether others would wait in vain if these had failed; see `check`. A callable is asked
                when they have.
            on_ended: called once for each worker, when it has ended for good, in whatever thread notices.
                It must not raise.
            prompt: whether `on_ended` is to be called at once, or when somebody waits for the workers.
            launch: starts the processes instead of multiprocessing (the broker does, for anonymous memory).

        Returns:
            The new workers.

        Raises:
            Refused: `count`, `restart` or `start_method` is impossible, or something cannot be pickled;
                nothing was started.
            OSError: the machine has no room for another process; those already started were killed.
        """
        refuse_unguarded_main()
        self._own()
        check_request(target, count, restart)
        method = "broker" if launch else check_start_method(start_method)
        label = name or getattr(target, "__name__", None) or type(target).__name__
        call = Call(target, tuple(args), kwargs or {})
        asked = vital if callable(vital) else lambda: vital
        group = WorkerGroup(call, method, restart, asked, on_ended, prompt, launch)
        taken = sum(worker.name.rpartition("-")[0] == label for worker in self.workers)
        group.workers = [Worker(f"{label}-{taken + number}", group) for number in range(1, count + 1)]
        close_at_exit(self)
        with interrupts_held(), self._thread_halted(method == "fork"), self._lock:
            try:
                for worker in group.workers:
                    worker.start(self._grace, self._prepare)
            except BaseException:
                for worker in group.workers:
                    worker.kill_now()
                raise
            self._groups.append(group)
            self._bells.ring()
        return group

    # --- noticing ---

    def _tend(self) -> float | None:
        """Settle what has ended, start what is due; return the seconds until the next start, if any."""
        with interrupts_held():  # nothing is noted by halves
            over: list[Worker] = []
            with self._lock:
                now = time.monotonic()
                next_due: float | None = None
                for worker in self.workers:
                    if worker.state == "running":
                        worker.settle(self._limits)
                        if worker.final:
                            over.append(worker)
                    if worker.state == "waiting":
                        if self._ending:
                            worker.state = "failed"
                            over.append(worker)
                        elif worker.due <= now:
                            self._restart(worker)
                        else:
                            next_due = min(worker.due, next_due or worker.due)
                if over:
                    self._bells.ring()
            for worker in over:
                if worker.group.on_ended is not None:
                    worker.group.on_ended(worker)
            return None if next_due is None else max(0.0, next_due - now)

    def _restart(self, worker: Worker) -> None:
        worker.restarts += 1
        try:
            worker.start(self._grace, self._prepare)
        except Exception as error:  # no process, no descriptor: the machine's trouble may pass
            message = f"worker {worker.name!r} could not be started again: {error}"
            worker.failures.append(WorkerFailed(message, name=worker.name))
            worker.postpone(self._limits, time.monotonic())
        self._bells.ring()

    # --- the thread, and sleeping ---

    def _needs_thread(self) -> bool:
        return not self._halts and any(
            group.running and (group.restart == "on-failure" or (group.prompt and group.on_ended is not None))
            for group in self._groups
        )

    def _run_thread(self, bell: int) -> None:
        while True:
            due = self._tend()
            with self._lock:
                if not self._needs_thread():
                    self._thread = None
                    self._bells.drop(bell)
                    return
                fds = self._running_fds()
            self._bells.sleep(bell, fds, due)

    @contextmanager
    def _thread_halted(self, halt: bool) -> Iterator[None]:
        """Run the block with the thread stopped, if `halt`; afterwards it runs if it is needed."""
        thread = self._thread
        if halt and thread is not None and thread is not threading.current_thread():
            with self._lock:
                self._halts += 1
                self._bells.ring()
            thread.join()
        else:
            halt = False
        try:
            yield
        finally:
            with self._lock:
                self._halts -= halt
                if self._thread is None and self._needs_thread():
                    bell = self._bells.hang()
                    self._thread = start_deaf_thread(lambda: self._run_thread(bell), "shmbus supervisor")

    def _running_fds(self) -> list[int]:
        return [worker.handle.fileno() for worker in self.workers if worker.handle is not None]

    def _sleep_until(self, done: Callable[[], bool], deadline: float | None) -> bool:
        """Tend until `done`; False if the deadline (monotonic, None: never) came first."""
        bell = self._bells.hang()
        try:
            while True:
                due = self._tend()
                if done():
                    return True
                left = None if deadline is None else deadline - time.monotonic()
                if left is not None and left <= 0:
                    return False
                with self._lock:
                    fds = self._running_fds()
                self._bells.sleep(bell, fds, min((t for t in (due, left) if t is not None), default=None))
        finally:
            self._bells.drop(bell)

    # --- waiting and ending ---

    def check(self) -> None:
        """Raise if a vital group has failed for good; takes microseconds and never waits.

        A group is vital when others would wait in vain without it: consumers, mostly. A call that waits for
        somebody else's progress calls this now and then.

        Raises:
            WorkerFailed: no worker of a vital group is left, and some have failed.
        """
        self._own()
        self._tend()
        with self._lock:
            failed = [group for group in self._groups if group.failed and group.vital()]
        if failed:
            self._raise([worker for worker in failed[0].workers if worker.state == "failed"])

    def wait(self, timeout: float | None = None) -> None:
        """Wait until every worker has ended, and raise if one failed.

        Args:
            timeout: seconds; None waits for as long as it takes.

        Raises:
            WorkerFailed: the first that failed, with its traceback; the others are notes on it. If a vital
                group has failed entirely, it is raised at once, and the other workers are still running.
            TimedOut: workers were still running at the end of `timeout`; nothing has changed.
        """
        self._own()

        def done() -> bool:
            if self._all_final():
                return True
            self.check()
            return False

        deadline = None if timeout is None else time.monotonic() + timeout
        if not self._sleep_until(done, deadline):
            late = [f"{worker.name} (pid {worker.pid})" for worker in self.workers if not worker.final]
            raise TimedOut(f"after {timeout:g} s these workers have not ended: {', '.join(late)}")
        self._join_thread()
        failed = [worker for worker in self.workers if worker.state == "failed"]
        new = [worker for worker in failed if worker.failures[-1] not in self._raised]
        if new:
            self._raise(new)

    def failures(self) -> list[WorkerFailed]:
        """The last failure of each worker that failed for good, unless it was raised already."""
        self._own()
        self._tend()
        with self._lock:
            last = [worker.failures[-1] for worker in self.workers if worker.state == "failed"]
            return [copy_failure(failure) for failure in last if failure not in self._raised]

    def _raise(self, workers: list[Worker]) -> None:
        last = [worker.failures[-1] for worker in workers]
        self._raised += [failure for failure in last if failure not in self._raised]
        error = copy_failure(last[0])
        for failure in last[1:]:
            if not failure.exit_code == error.exit_code == UNGUARDED:  # said once, it is said to all
                error.add_note(f"Another: {failure}")
        raise error

    def terminate(self, grace: float | None = None) -> None:
        """End every worker: SIGTERM, a grace, SIGKILL. Nothing is restarted; what they leave is no failure.

        A SIGINT (Ctrl-C) during the grace kills at once; it is delivered when this call is done.

        Args:
            grace: seconds; None is the supervisor's own.
        """
        self._own()
        with interrupts_held(self._bells.ring) as interrupts:
            self._tend()  # what failed before is a failure still
            self._ending = True
            try:
                self._signal(signal.SIGTERM, signal.SIGCONT)
                deadline = time.monotonic() + (self._grace if grace is None else grace)
                while not interrupts and not self._all_final() and time.monotonic() < deadline:
                    poke = min(deadline, time.monotonic() + POKE_SECONDS)
                    self._sleep_until(lambda: bool(interrupts) or self._all_final(), poke)
                    self._signal(signal.SIGCONT)
                self._signal(signal.SIGKILL)
                if self._sleep_until(self._all_final, time.monotonic() + AFTER_KILL):
                    self._join_thread()
            finally:
                self._ending = False

    def _signal(self, *numbers: int) -> None:
        with self._lock:
            for worker in self.workers:
                worker.send(*numbers)

    def _join_thread(self) -> None:
        """The workers have ended, and so does the thread: wait for that too."""
        thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            self._bells.ring()
            thread.join()

    def _all_final(self) -> bool:
        return all(worker.final for worker in self.workers)

    def close(self) -> None:
        """End what still runs; harmless when repeated."""
        self._own()
        if not self._all_final():
            self.terminate()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._pid != os.getpid():
            return
        if error is not None:
            self.end_after(error)
            return
        try:
            self.wait()
        except BaseException as raised:
            self.end_after(raised)
            raise

    def end_after(self, error: BaseException) -> None:
        """End every worker because of `error`, and note on it what had failed before.

        Raises:
            KeyboardInterrupt: of a Ctrl-C meanwhile, unless `error` is one already. The workers have ended.
        """
        try:
            try:
                self.terminate()
            except BaseException:  # a Ctrl-C just before terminate() could hold it
                if not self._all_final():
                    self.terminate(0)
                raise
        except KeyboardInterrupt:
            if not isinstance(error, KeyboardInterrupt):
                raise
        for failure in self.failures():
            error.add_note(str(failure))
