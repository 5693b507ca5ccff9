"""Inside a worker process: signals, the watch over its parent, and the last words that it leaves.

A worker runs one call, ``target(*args, **kwargs)``, and owes its supervisor (``workers.py``) four things.

*It reports.* One pipe leads to the supervisor. The worker writes a note when its target is about to run, and
one when it is over: returned, raised (with the traceback as text, so an exception that cannot be pickled
arrives like any other), exited, or terminated. The pipe's write end does not block, a note is cut to fit an
empty pipe, and nobody waits for its end of file: the supervisor reads it after the *process* is proved dead.
So neither a worker that is killed, nor a grandchild that keeps the pipe open, can make anybody wait.

*It leaves Ctrl-C to the parent.* A terminal sends SIGINT to every process in the foreground. Workers ignore
it; the parent decides, and sends SIGTERM. SIGTERM raises `Terminated`, a ``SystemExit``, in the main thread,
once: ``with`` blocks run, ``except Exception`` does not stop it, nothing is printed. Until the handlers
stand the signals are blocked (the mask comes with fork and exec): there is no moment of default behaviour.
Python runs a handler between two of its instructions. A signal that arrives after the last look, but before
the system call that is about to sleep, would wait with it. So whoever sends SIGTERM goes on to send SIGCONT:
here it has a handler that does nothing, which ends any sleep and has the other one run.

*It does not outlive the parent.* A daemon thread polls a pidfd of the supervising process; when that becomes
readable it sends this process SIGTERM and, a grace later, SIGKILL. Why a pidfd and not

- PR_SET_PDEATHSIG: it fires when the parent's *thread* ends, and names the wrong process under a fork server
  or a broker, whose children the workers then are;
- a pipe that only the parent holds: every process that the parent forks holds it too, and keeps it open.

The supervising process is named by its pid *and* start time, both taken before the worker was started. The
worker opens the pidfd first and compares the start time second: if they agree, the pidfd is the parent's; if
not, or if nobody has that pid, the parent is dead already and the target is not called. So it does not matter
when the parent dies. (What is left: native code that never releases the GIL keeps the thread from running.)

*It does not start the program again.* Under spawn and forkserver the worker imports the program's main
module. A program without ``if __name__ == "__main__":`` would make a bus and workers of its own there; the
call that tries it ends the worker with the exit status `UNGUARDED`, silently, and the supervisor says what to
mend. (In a process that is no worker of ours, but imports the main module for the same reason, the call
says so itself.)
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType
from typing import TYPE_CHECKING, Any, Final, NoReturn

from shmbus.errors import Refused
from shmbus.worker_messages import Call, Note, write_note

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

__all__ = [
    "GUARD",
    "PROCESS_NAME",
    "UNGUARDED",
    "Brief",
    "ProcessIdentity",
    "Terminated",
    "enter",
    "refuse_unguarded_main",
    "run_forked",
    "start_deaf_thread",
]

UNGUARDED: Final = 78
"""Exit status of a worker whose main module starts workers while it is imported (EX_CONFIG of sysexits.h)."""

TERMINATED: Final = 128 + signal.SIGTERM
POKE_SECONDS: Final = 0.25
"""How often SIGCONT follows a SIGTERM that has not ended a worker yet."""


class Terminated(SystemExit):
    """Raised in a worker's main thread by SIGTERM: the supervisor wants the worker to end.

    It is a ``SystemExit``: ``with`` and ``finally`` blocks run, ``except Exception`` does not catch it, and
    nothing is printed. Cleaning up has to be done within the supervisor's grace; SIGKILL follows.
    """


class _Unguarded(SystemExit):
    """Ends a forked worker whose main module starts processes while it is only being imported."""


GUARD: Final = (
    "The program's main module starts workers while a new process is importing it: put what starts them "
    'under `if __name__ == "__main__":`'
)


# --- who the parent is ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process, named so that a later process with the same pid is not mistaken for it."""

    pid: int
    start_ticks: int
    namespace: str

    @classmethod
    def own(cls) -> ProcessIdentity:
        """The identity of the calling process."""
        return cls(os.getpid(), _start_ticks("self"), _namespace())

    def open(self) -> int | None:
        """A pidfd of this process, or None if it is dead.

        Raises:
            Refused: the caller lives in another pid or time namespace, where neither number means anything.
            OSError: the descriptor limit is reached.
        """
        if _namespace() != self.namespace:
            raise Refused(
                f"this process and the one with pid {self.pid} live in different pid or time namespaces: "
                "neither can tell whether the other is alive; start workers from within one container"
            )
        try:
            pidfd = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        try:
            same = _start_ticks(str(self.pid)) == self.start_ticks
        except (FileNotFoundError, ProcessLookupError):
            same = False
        if not same:
            os.close(pidfd)
            return None
        return pidfd


def _start_ticks(pid: str) -> int:
    with open(f"/proc/{pid}/stat", "rb") as file:
        # The command name stands in parentheses and may hold spaces and parentheses itself.
        return int(file.read().rpartition(b")")[2].split()[19])


def _namespace() -> str:
    return " ".join(os.readlink(f"/proc/self/ns/{kind}") for kind in ("pid", "time"))


def _watch(pidfd: int, grace: float) -> None:
    """Start the thread that ends this process when that of `pidfd` has ended.

    It takes no signals: one that the kernel gave to this thread would not end a wait of the main thread.
    """
    main = threading.get_ident()

    def watch() -> None:
        poller = select.poll()
        poller.register(pidfd, select.POLLIN)
        poller.poll()
        signal.pthread_kill(main, signal.SIGTERM)
        deadline = time.monotonic() + grace
        while (left := deadline - time.monotonic()) > 0:
            select.poll().poll(min(left, POKE_SECONDS) * 1000)
            signal.pthread_kill(main, signal.SIGCONT)
        os.kill(os.getpid(), signal.SIGKILL)

    start_deaf_thread(watch, "shmbus parent watch")


def start_deaf_thread(run: Callable[[], None], name: str) -> threading.Thread:
    """Start a daemon thread in which every signal is blocked, so that the main thread gets them all."""
    thread = threading.Thread(target=run, name=name, daemon=True)
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        thread.start()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return thread


@dataclass(slots=True)
class Brief:
    """All that a worker is told: picklable while a process is being started.

    Attributes:
        call: what to do.
        report: the write end of the pipe to the supervisor.
        parent: the supervising process, which is not always the operating system's parent.
        grace: seconds between SIGTERM and SIGKILL when the parent has died.
        prepare: called before the target.
        unblock: signals that were blocked for the time of the start.
    """

    call: Call
    report: Connection[Any, Any]
    parent: ProcessIdentity
    grace: float
    prepare: Callable[[], None] | None = None
    unblock: tuple[int, ...] = ()


def _note_of(error: BaseException) -> Note:
    """What to say about the exception that ended the target."""
    if isinstance(error, Terminated):
        return Note("terminated", TERMINATED)
    if isinstance(error, _Unguarded):
        return Note("unguarded", UNGUARDED)
    if isinstance(error, SystemExit):
        if error.code is None:
            return Note("returned", 0)
        if isinstance(error.code, int):
            return Note("exited" if error.code & 0xFF else "returned", error.code & 0xFF)
        return Note("exited", 1, str(error.code))
    import traceback

    try:
        summary = "".join(traceback.format_exception_only(error)).strip()
        text = "".join(traceback.format_exception(type(error), error, _below_this_file(error)))
    except BaseException as trouble:  # an exception whose __str__, __notes__ or __cause__ misbehave
        summary = type(error).__qualname__
        text = f"{summary}, whose traceback could not be formatted: {type(trouble).__qualname__}\n"
    return Note("raised", 1, summary, text)


def _below_this_file(error: BaseException) -> Any:
    """The traceback without the frames of this file at its top, which say nothing to a user."""
    trace = error.__traceback__
    while trace is not None and trace.tb_frame.f_code.co_filename == __file__ and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


# --- the run --------------------------------------------------------------------------------------------


@contextmanager
def _terminable() -> Iterator[None]:
    """SIGTERM raises `Terminated` within the block, at most once; later ones wait for the block's end."""

    def on_sigterm(signum: int, frame: FrameType | None) -> NoReturn:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise Terminated(TERMINATED)

    signal.signal(signal.SIGTERM, on_sigterm)
    if signal.getsignal(signal.SIGCONT) in (signal.SIG_DFL, signal.SIG_IGN):
        signal.signal(signal.SIGCONT, _do_nothing)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    pass


def enter(brief: Brief) -> None:
    """The target of every worker process: run the call of `brief`, report, and exit with its status.

    Raises:
        SystemExit: always, unless the call returned.
    """
    from multiprocessing import process

    own = process.current_process()
    own.name = own.name.removeprefix(PROCESS_NAME)
    fd = brief.report.fileno()
    os.set_blocking(fd, False)
    note = Note("returned", 0)
    try:
        # A forked worker has its parent's wake-up descriptor: a signal here would reach that event loop.
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with _terminable():
            signal.pthread_sigmask(signal.SIG_UNBLOCK, brief.unblock)
            pidfd = brief.parent.open()
            if pidfd is None:
                raise Terminated(TERMINATED)
            _watch(pidfd, brief.grace)
            write_note(fd, Note("started", 0))
            if brief.prepare is not None:
                brief.prepare()
            brief.call.run()
    except BaseException as error:
        note = _note_of(error)
        del error
    write_note(fd, note)
    brief.report.close()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    if note.status:
        sys.exit(note.status)


def pack_forked(
    call: Call,
    parent: ProcessIdentity,
    name: str,
    grace: float,
    prepare: Callable[[], None] | None = None,
) -> bytes:
    """The payload of `run_forked`: `call` and all that an interpreter needs for it; see `Brief`.

    Raises:
        Refused: a part of the call cannot be pickled.
    """
    import pickle
    from multiprocessing import spawn

    preparation = spawn.get_preparation_data(PROCESS_NAME + name)
    preparation["authkey"] = bytes(preparation["authkey"])  # its own type pickles only while spawning
    return pickle.dumps((preparation, call.dumps(), parent, grace, prepare))


def run_forked(payload: bytes, pipe_fd: int) -> NoReturn:
    """Run a worker in this process, which a broker has just forked, and end the process.

    The interpreter is made to look like one that multiprocessing has spawned: the program's main module is
    imported, under the name ``__mp_main__``, with its path, arguments and folder. Signals and reports are
    those of every worker.

    Args:
        payload: from `pack_forked`.
        pipe_fd: the write end of the pipe to the supervisor; this call owns it.
    """
    import contextvars

    status = 1
    try:
        # Handlers and context variables are those of the broker's event loop.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, signal.SIG_DFL)
        status = contextvars.Context().run(_run_forked, payload, pipe_fd)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


class _Forked(Call):
    """A call that prepares the interpreter first, so that what goes wrong there is reported too."""

    def __init__(self, preparation: dict[str, Any], blob: bytes) -> None:
        self._preparation = preparation
        self._blob = blob

    def run(self) -> None:
        from multiprocessing import process, spawn

        global _forked
        _forked = True
        own = process.current_process()
        own._inheriting = True  # type: ignore[attr-defined]
        try:
            spawn.prepare(self._preparation)
        finally:
            del own._inheriting  # type: ignore[attr-defined]
        own.name = own.name.removeprefix(PROCESS_NAME)
        super().run()


def _run_forked(payload: bytes, pipe_fd: int) -> int:
    import pickle
    from multiprocessing import process, util
    from multiprocessing.connection import Connection

    # What multiprocessing would finish or wait for at the exit is the broker's.
    util._finalizer_registry.clear()  # type: ignore[attr-defined]
    process._children.clear()  # type: ignore[attr-defined]
    preparation, blob, parent, grace, prepare = pickle.loads(payload)
    report = Connection(pipe_fd, readable=False)
    blocked = (signal.SIGINT, signal.SIGTERM)
    brief = Brief(_Forked(preparation, blob), report, parent, grace, prepare, blocked)
    status = 0
    try:
        enter(brief)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    try:
        util._exit_function()  # type: ignore[attr-defined]
        threading._shutdown()  # type: ignore[attr-defined]
    finally:
        util._flush_std_streams()  # type: ignore[attr-defined]
    return status


# --- the main module ------------------------------------------------------------------------------------


PROCESS_NAME: Final = "shmbus worker "
"""What the name of a worker's process begins with, until its target is about to run."""
_forked = False


def refuse_unguarded_main() -> None:
    """End this process if it is only importing the program's main module.

    Called by whatever starts processes. The supervisor of a worker sees the exit status and says what to
    mend, once, where the program was started; a process that multiprocessing started for others says it here.
    """
    process = sys.modules.get("multiprocessing.process")
    if process is None or not getattr(process.current_process(), "_inheriting", False):
        return
    if _forked:
        raise _Unguarded(UNGUARDED)  # there is a report to say it in
    if not process.current_process().name.startswith(PROCESS_NAME):
        sys.stderr.write(GUARD + "\n")
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(UNGUARDED)  # a SystemExit would not get its status through a fork server
