"""Start one worker process and hold on to it: start methods, signals during the start, death, last words.

Three things must not happen while a process is being started. A Ctrl-C must not get between the fork and
the note of the new pid (the child would be nobody's), so SIGINT is kept in the main thread and delivered
afterwards. The child must not meet a signal with its parent's handlers, or with Python's default of printing
a KeyboardInterrupt, so the signals are blocked, the child inherits the mask, and unblocks them when its own
handlers stand. And a fork server must not keep that mask, since it serves others too: it is started with
SIGINT blocked and unblocks it (``launch_server.py``). (A worker that it has just forked, with no handlers
yet, dies of SIGINT silently.)

How a death is seen: by the pidfd of a process that is our child (not by the sentinel of multiprocessing, a
pipe that the worker's own children keep open), and by the fork server's word for its children, which are not
ours; if the fork server has died, by the pidfd again. Signals go through the pidfd: they hit no stranger.
"""

from __future__ import annotations

import atexit
import os
import select
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Protocol

from shmbus.errors import Refused, WorkerFailed
from shmbus.worker_messages import read_notes
from shmbus.worker_process import GUARD, PROCESS_NAME, UNGUARDED, Brief, enter

__all__ = [
    "Bells",
    "Child",
    "Handle",
    "check_start_method",
    "close_at_exit",
    "failure_of",
    "interrupts_held",
    "poll",
    "read_all",
    "signals_blocked",
]


class Handle(Protocol):
    """A running worker process, whoever its operating system's parent is."""

    @property
    def pid(self) -> int:
        """Its process id."""

    def fileno(self) -> int:
        """A descriptor that is readable when `ended` has news."""

    def ended(self) -> tuple[bool, int | None]:
        """Whether it is dead, and its exit code if anybody knows (negative: the signal that killed it)."""

    def kill(self, number: int) -> None:
        """Send it a signal; nothing happens if it is dead."""

    def close(self) -> None:
        """Give back what this handle holds."""


def check_start_method(method: str | None) -> str:
    """The name of a start method that exists here; None is the platform's default (or the program's).

    Raises:
        Refused: there is no such start method.
    """
    import multiprocessing

    known = multiprocessing.get_all_start_methods()
    if method is None:
        # get_start_method() would fix the default for the rest of the program.
        return multiprocessing.get_start_method(allow_none=True) or known[0]
    if method not in known:
        raise Refused(
            f"start_method={method!r}: this platform has {', '.join(known)}", setting="start_method"
        )
    return method


class Child:
    """A worker that multiprocessing started."""

    def __init__(self, method: str, brief: Brief, name: str) -> None:
        import multiprocessing
        from multiprocessing import process

        if process.current_process().daemon:
            raise Refused(
                f"worker {name!r} cannot be started from the daemonic process "
                f"{process.current_process().name!r}: multiprocessing lets those have no children"
            )
        self._by_server = method == "forkserver"
        self._looks = 0
        if self._by_server:
            _start_fork_server()
        context: Any = multiprocessing.get_context(method)
        self._process = context.Process(target=enter, args=(brief,), name=PROCESS_NAME + name, daemon=False)
        try:
            self._process.start()
        except (EOFError, ConnectionError) as error:
            if not self._by_server:
                raise
            raise Refused(
                f"worker {name!r} cannot be started: the fork server ended while it was starting. " + GUARD
            ) from error
        assert self._process.pid is not None
        self.pid: int = self._process.pid
        try:
            self._pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:  # dead, and already waited for by somebody
            self._pidfd = -1
        except OSError:
            self._process.kill()
            self._process.join()
            self._process.close()
            raise

    def fileno(self) -> int:
        """See `Handle`."""
        return self._process.sentinel if self._by_server or self._pidfd < 0 else self._pidfd

    def ended(self) -> tuple[bool, int | None]:
        """See `Handle`."""
        code = self._process.exitcode
        dead = self._pidfd < 0 or bool(poll([self._pidfd], 0))
        if code == 255 and self._by_server and not dead:
            self._by_server = False  # not the worker's status: the server is dead, and the worker is not
            return False, None
        if code is not None:
            return True, code
        if dead and not self._by_server:
            # Somebody else has waited for our child; multiprocessing would be about to say what it got.
            self._looks += 1
            time.sleep(0.005)
            return self._looks > 20, None
        return False, None

    def kill(self, number: int) -> None:
        """See `Handle`."""
        if self._pidfd >= 0:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._pidfd, number)

    def close(self) -> None:
        """See `Handle`."""
        if self._process.exitcode is None:
            self._process._popen.returncode = (
                255  # nobody knows; without one it would not let go of its pipes
            )
        self._process.close()
        if self._pidfd >= 0:
            os.close(self._pidfd)


class _Closable(Protocol):
    def close(self) -> None: ...


_to_close: weakref.WeakSet[_Closable] = weakref.WeakSet()


def close_at_exit(supervisor: _Closable) -> None:
    """Close it when this program ends, if nobody has done so, so that its workers end.

    Without this, multiprocessing would wait for them there, and they for us.
    """
    if not _to_close:
        import multiprocessing.util  # noqa: F401  (what is registered first is called last)

        atexit.unregister(_close_all)
        atexit.register(_close_all)
    _to_close.add(supervisor)


def _close_all() -> None:
    for supervisor in list(_to_close):
        supervisor.close()


def _start_fork_server() -> None:
    """Start the fork server of this process, if it does not run yet, out of reach of a Ctrl-C."""
    from multiprocessing import forkserver, resource_tracker

    server: Any = forkserver._forkserver
    module = f"{__package__}.launch_server"
    if server._forkserver_pid is not None or not _found_by_a_fresh_interpreter():
        return
    if module not in server._preload_modules:
        forkserver.set_forkserver_preload([*server._preload_modules, module])
    resource_tracker.ensure_running()  # its start would unblock SIGINT again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _found_by_a_fresh_interpreter() -> bool:
    """Whether this package can be imported where nothing but the environment says from where.

    The fork server of some versions of Python does not get this program's ``sys.path``, and what lies beside
    the program's own file is then not found. Nobody would unblock SIGINT.
    """
    here = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    beside_the_program = bool(sys.path) and os.path.abspath(sys.path[0]) == here
    elsewhere = [os.getcwd(), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    return not beside_the_program or here in map(os.path.abspath, elsewhere)


# --- signals --------------------------------------------------------------------------------------------


@contextmanager
def interrupts_held(on_interrupt: Callable[[], None] | None = None) -> Iterator[list[int]]:
    """Keep SIGINT out of the block and deliver it, once, at its end.

    Only the main thread gets KeyboardInterrupt, so elsewhere this does nothing.

    Args:
        on_interrupt: called from the signal handler; must not wait.

    Yields:
        A list that has an item for every SIGINT so far.
    """
    pressed: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or before is None:
        yield pressed
        return

    def note(number: int, frame: FrameType | None) -> None:
        pressed.append(number)
        if on_interrupt is not None:
            on_interrupt()

    signal.signal(signal.SIGINT, note)
    failed = False
    try:
        yield pressed
    except BaseException:
        failed = True
        raise
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            try:
                signal.raise_signal(signal.SIGINT)
            except BaseException as interrupt:
                if failed:  # an echo, most likely: what was being started was interrupted too
                    raise interrupt from None
                raise


@contextmanager
def signals_blocked(method: str) -> Iterator[tuple[int, ...]]:
    """Block, in this thread, what a worker started by `method` must not meet before its handlers stand.

    Yields:
        The signals that the worker has to unblock.
    """
    wanted = {"fork": {signal.SIGINT, signal.SIGTERM}, "spawn": {signal.SIGINT}}.get(method, set())
    if method == "spawn":
        from multiprocessing import resource_tracker

        resource_tracker.ensure_running()  # its start would unblock SIGINT again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted)
    try:
        yield tuple(wanted - before)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


# --- what is left of it ---------------------------------------------------------------------------------


def failure_of(name: str, pid: int, code: int | None, report: bytes) -> WorkerFailed | None:
    """The error of a worker that has ended with `code` and left `report`; None if it ended well."""
    notes = read_notes(report)
    last = notes[-1] if notes else None
    who = f"worker {name!r} (pid {pid})"
    text = None
    if last is not None and last.kind == "raised":
        text = last.text
        message = f"{who} failed: {last.summary}\n\n{text.rstrip()}"
    elif code == UNGUARDED and (last is None or last.kind == "unguarded"):
        message = f"{who} could not start. {GUARD}"
    elif code == 0 or (code is None and last is not None and last.kind == "returned"):
        return None
    elif last is not None and last.kind == "terminated":
        message = f"{who} was ended by a SIGTERM that its supervisor had not sent"
    elif code is None:
        message = f"{who} is gone, and left neither a report nor an exit status that could be read"
    elif code < 0:
        message = f"{who} was killed by {_signal_name(-code)}"
    elif last is None:
        message = (
            f"{who} could not start: it ended with exit status {code} before its target was called; "
            "what it said is on the standard error"
        )
    else:
        message = f"{who} ended with exit status {code}" + (f": {last.summary}" if last.summary else "")
    return WorkerFailed(message, name=name, pid=pid, exit_code=code, traceback_text=text)


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def read_all(fd: int) -> bytes:
    """All that a pipe holds now."""
    parts = []
    with suppress(BlockingIOError):
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    return b"".join(parts)


class Bells:
    """Makes those who sleep look again. A signal handler may ring."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._bells: list[int] = []

    def hang(self) -> int:
        """A new bell, for one sleeper."""
        with self._lock:
            bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
            self._bells.append(bell)
            return bell

    def drop(self, bell: int) -> None:
        """Give a bell back."""
        with self._lock:
            self._bells.remove(bell)
            os.close(bell)

    def ring(self) -> None:
        """Wake everybody who has a bell."""
        with self._lock:
            for bell in self._bells:
                os.eventfd_write(bell, 1)

    def sleep(self, bell: int, fds: Iterable[int], timeout: float | None) -> None:
        """Sleep until the bell rings, or one of `fds` is readable, for `timeout` seconds at most."""
        poll([bell, *fds], timeout)
        with suppress(BlockingIOError):
            os.eventfd_read(bell)


def poll(fds: Iterable[int], timeout: float | None) -> bool:
    """Sleep until one of `fds` is readable, for `timeout` seconds at most; whether one is."""
    poller = select.poll()
    for fd in fds:
        poller.register(fd, select.POLLIN)
    return bool(poller.poll(None if timeout is None else max(0, -int(-timeout * 1000 // 1))))
