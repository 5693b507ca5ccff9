"""For the tests of workers: targets, a broker's stand-in, programs of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest

import shmbus
from shmbus.errors import WorkerFailed
from shmbus.workers import Handle, RestartLimits, Supervisor, WorkerGroup, run_forked

METHODS = ["fork", "spawn", "forkserver", "broker"]
AT_ONCE = RestartLimits(first_delay=0.0)


class ForkedByHand:
    """What a broker would give: a process that this one has forked, waited for here."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self._pidfd = os.pidfd_open(pid)

    def fileno(self) -> int:
        return self._pidfd

    def ended(self) -> tuple[bool, int | None]:
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return (True, os.waitstatus_to_exitcode(status)) if pid else (False, None)

    def kill(self, number: int) -> None:
        signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        os.close(self._pidfd)


def fork_by_hand(payload: bytes, pipe_fd: int, name: str) -> Handle:
    pid = os.fork()
    if pid == 0:
        # As in a broker, the main module is another program's.
        sys.modules["__main__"] = type(sys)("__main__")
        run_forked(payload, pipe_fd)
    return ForkedByHand(pid)


def the_failure(target: Callable[..., object], *args: Any, **how: Any) -> WorkerFailed:
    """The error of a single worker that runs `target`."""
    with pytest.raises(WorkerFailed) as caught, Supervisor() as supervisor:
        supervisor.spawn(target, args, **how)
    return caught.value


# --- targets, at the top level so that they pickle ---


class UnpicklableError(Exception):
    def __init__(self) -> None:
        super().__init__("holds a lock")
        self.lock = threading.Lock()


class UnprintableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


class NoException(BaseException):
    pass


def say(out: Connection, what: object) -> None:
    out.send(what)


def fail(error: type[BaseException], *args: object) -> NoReturn:
    raise error(*args)


def fail_from_a_cause() -> NoReturn:
    try:
        {}["missing"]
    except KeyError as error:
        raise RuntimeError("on top") from error


def leave(status: int) -> NoReturn:
    os._exit(status)


def die(number: int) -> None:
    signal.raise_signal(number)


def tell_of_sigint() -> None:
    blocked = signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, ())
    handler: Any = signal.getsignal(signal.SIGINT)
    print(handler.__name__, "blocked" if blocked else "unblocked")


def wait_for_ever(out: Connection) -> None:
    """Says its pid, and "cleaned" on the way out."""
    try:
        out.send(os.getpid())
        while True:
            signal.pause()
    finally:
        out.send("cleaned")


def refuse_to_end(out: Connection) -> None:
    words: list[object] = [os.getpid()]
    while True:
        try:
            if words:
                out.send(words.pop())
            signal.pause()
        except SystemExit:
            words = ["no"]


def wait_for_end(source: Connection) -> None:
    with pytest.raises(EOFError):
        source.recv()


def fail_until(file: str, times: int) -> None:
    with open(file, "ab+") as counter:
        counter.write(b".")
        if counter.tell() <= times:
            raise ValueError("not yet")


def leave_a_grandchild(out: Connection) -> None:
    """A child of the worker outlives it, with every descriptor that the worker had."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.pause()
        os._exit(0)
    out.send(pid)
    die(signal.SIGKILL)


class Silent:
    def send(self, what: object) -> None:
        pass


class LoadsBadly:
    def __reduce__(self) -> tuple[Any, ...]:
        return fail, (RuntimeError, "cannot be loaded")


def until_final(supervisor: Supervisor, group: WorkerGroup) -> None:
    while not all(worker.final for worker in group.workers):
        os.sched_yield()
        supervisor.failed_groups()


def state_of_this_process() -> tuple[object, ...]:
    descriptors = sorted(os.listdir("/proc/self/fd"))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return descriptors, children, threading.enumerate(), signals, signal.pthread_sigmask(signal.SIG_BLOCK, ())


# --- programs ---


def program(text: str, tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    """A program in a session of its own, with this test's targets as `t` and its start method as `how`."""
    file = tmp_path / "program.py"
    head = """
        import os, signal, sys, threading
        import worker_help as t
        from shmbus.workers import Supervisor
        how = {"launch": t.fork_by_hand} if sys.argv[1] == "broker" else {"start_method": sys.argv[1]}
        class Out:
            def send(self, what): os.write(1, f"{what}\\n".encode())
        """
    file.write_text(textwrap.dedent(head) + textwrap.dedent(text))
    path = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(shmbus.__path__[0])])
    return subprocess.Popen(
        [sys.executable, str(file), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A fork server whose program is killed leaves its socket there.
        env={**os.environ, "PYTHONPATH": path, "TMPDIR": str(tmp_path)},
    )


def line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()
