"""What a run of tests leaves behind, and after which test it was first seen.

Theory of operation. The test process makes itself the *subreaper* of everything below it: when a process of
a test dies, its children come to us instead of to init, so that a descendant cannot get out of sight, in a
session of its own or not. A `Look` is everything of ours that exists at one moment: descriptors,
descendants, threads that would hold up the end of the process, entries of /dev/shm, files of the session's
private folder. `begin()` keeps one as the baseline. After each test `note()` takes another and remembers,
of what is new, after which test it was seen first: a fixture of a module may rightly hold things meanwhile,
so nothing is judged yet. `finish()` judges: what is new when all fixtures are gone is a leak. It allows a
grace, since a process that is told to end needs a moment, and looks again until the grace is over.

The helper processes of multiprocessing (forkserver, resource tracker) live as long as their parent;
finish() stops them by itself, after everything that could keep them from stopping.

A zombie is not a leak: nothing runs, and an orphan that has ended waits for us, its new parent, until
finish().
"""

import contextlib
import ctypes
import gc
import os
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

PR_SET_CHILD_SUBREAPER = 36
SHARED_MEMORY = Path("/dev/shm")


def become_subreaper() -> None:
    """From now on orphans among our descendants become our children."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


# ---- processes


@dataclass(frozen=True)
class Process:
    """A process, told from a later one of the same pid by its start time."""

    pid: int
    start: int
    parent: int = field(compare=False)
    state: str = field(compare=False)

    @property
    def command(self) -> str:
        """Its command line; for a forked child that is its parent's."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return "?"
        return " ".join(word.decode(errors="replace") for word in words)[:200].strip()

    def kill(self) -> None:
        """SIGKILL, if it is still this very process."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except OSError:
            return
        try:
            if read_process(self.pid) == self:
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        except OSError:
            pass
        finally:
            os.close(descriptor)


def read_process(pid: int) -> Process | None:
    """The process with that pid, or None if there is none."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the name before it may hold anything
    return Process(pid, start=int(fields[19]), parent=int(fields[1]), state=fields[0])


def descendants(pid: int) -> list[Process]:
    """Everything below a process, parents before children, zombies included."""
    found: list[Process] = []
    waiting = [pid]
    while waiting:
        parent = waiting.pop(0)
        try:
            threads = os.listdir(f"/proc/{parent}/task")
        except OSError:
            continue
        for thread in threads:
            try:
                children = Path(f"/proc/{parent}/task/{thread}/children").read_text().split()
            except OSError:
                continue
            for child in map(int, children):
                process = read_process(child)
                if process is not None:
                    found.append(process)
                    waiting.append(child)
    return found


# ---- looking


@dataclass(frozen=True)
class Thing:
    """Something that exists: what it is, and words that tell it from others of its kind."""

    kind: str
    name: str


def open_descriptors() -> set[Thing]:
    """Our open descriptors and what they lead to; not the standard ones, which capturing moves about."""
    things = set()
    for number in set(os.listdir("/proc/self/fd")) - {"0", "1", "2"}:
        try:
            target = os.readlink(f"/proc/self/fd/{number}")
        except OSError:  # the one that listdir itself used
            continue
        things.add(Thing("descriptor", f"{number} -> {target}"))
    return things


def lasting_threads() -> set[Thing]:
    """Threads that the interpreter waits for when it ends."""
    here = threading.current_thread()
    return {
        Thing("thread", f"{thread.name} ({thread.ident})")
        for thread in threading.enumerate()
        if thread is not here and thread is not threading.main_thread() and not thread.daemon
    }


def shared_memory_entries() -> set[Thing]:
    """Entries of /dev/shm that belong to our user."""
    things = set()
    for entry in os.scandir(SHARED_MEMORY):
        try:
            if entry.stat(follow_symlinks=False).st_uid == os.getuid():
                things.add(Thing("entry", entry.path))
        except OSError:
            continue
    return things


def used_elsewhere(path: str, ours: Iterable[int]) -> bool:
    """Whether a process other than ours has this file mapped or open: then it is somebody else's business."""
    mine = set(ours)
    for name in os.listdir("/proc"):
        if not name.isdigit() or int(name) in mine:
            continue
        try:
            if path in Path(f"/proc/{name}/maps").read_text(errors="replace"):
                return True
            for number in os.listdir(f"/proc/{name}/fd"):
                if os.readlink(f"/proc/{name}/fd/{number}") == path:
                    return True
        except OSError:
            continue
    return False


def files_below(folder: Path) -> set[Thing]:
    """Every file, socket and folder below a folder, symbolic links not followed."""
    things = set()
    for parent, folders, files in os.walk(folder):
        for name in folders + files:
            path = os.path.join(parent, name)
            try:
                mode = os.lstat(path).st_mode
            except OSError:
                continue
            kind = "socket" if stat.S_ISSOCK(mode) else "folder" if stat.S_ISDIR(mode) else "file"
            things.add(Thing(kind, path))
    return things


# ---- judging


def stop_multiprocessing_helpers() -> None:
    """End the forkserver and the resource tracker, and clean up what multiprocessing does at exit."""
    forkserver = sys.modules.get("multiprocessing.forkserver")
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    with contextlib.suppress(ChildProcessError):  # a test may have killed it and waited for it
        if forkserver is not None:
            forkserver._forkserver._stop()
    with contextlib.suppress(ChildProcessError):
        if tracker is not None:
            tracker._resource_tracker._stop()
    util = sys.modules.get("multiprocessing.util")
    if util is not None:
        util._run_finalizers()  # as at the end of the process: among them the folder of its sockets


def multiprocessing_helpers() -> set[int]:
    """The pids of the two, as far as they run."""
    pids = set()
    forkserver = sys.modules.get("multiprocessing.forkserver")
    if forkserver is not None:
        pids.add(forkserver._forkserver._forkserver_pid)
    tracker = sys.modules.get("multiprocessing.resource_tracker")
    if tracker is not None:
        pids.add(tracker._resource_tracker._pid)
    return pids - {None}


class LeakCheck:
    """Begin, note after each test, finish: see the module.

    Args:
        folders: Folders that belong to this session alone and are to be empty at its end.
        spare: Pids of children that are part of the harness.
        grace: Seconds that finish() allows for what is ending just now.
        clock, nap: Time, for tests of this class.
    """

    def __init__(
        self,
        folders: Iterable[Path],
        *,
        spare: Iterable[int] = (),
        grace: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        nap: Callable[[float], None] = time.sleep,
    ) -> None:
        self._folders = list(folders)
        self._spare = set(spare)
        self._grace = grace
        self._clock = clock
        self._nap = nap
        self._baseline: set[Thing] = set()
        self._first_seen: dict[Thing, str] = {}

    def begin(self) -> None:
        """Keep what exists now as what may exist at the end."""
        become_subreaper()
        self._baseline = self._look()

    def note(self, test: str) -> None:
        """Remember what is there for the first time after this test."""
        new = self._new()
        self._first_seen = {thing: self._first_seen.get(thing, test) for thing in new}

    def finish(self) -> list[str]:
        """Stop what multiprocessing keeps running, then return one line for each thing left behind.

        Processes that were left behind are killed, so that a failing run leaves none either.
        """
        gc.collect()
        end = self._clock() + self._grace
        helpers = self._spare | multiprocessing_helpers()
        leaks = {self._thing_of(process) for process in self._living_until(end, helpers)}
        while doomed := self._living(helpers):  # children of the killed come to us and are next
            for process in doomed:
                process.kill()
            self._nap(0.01)
        stop_multiprocessing_helpers()
        self._bury()
        while (rest := self._new()) and self._clock() < end:
            self._nap(0.02)
            self._bury()
        ours = [os.getpid(), *(process.pid for process in descendants(os.getpid()))]
        leaks |= {thing for thing in rest if thing.kind != "entry" or not used_elsewhere(thing.name, ours)}
        return [self._line(thing) for thing in sorted(leaks, key=lambda thing: (thing.kind, thing.name))]

    def _look(self) -> set[Thing]:
        things = open_descriptors() | lasting_threads() | shared_memory_entries()
        things |= {self._thing_of(process) for process in self._living(self._spare)}
        for folder in self._folders:
            things |= files_below(folder)
        return things

    def _new(self) -> set[Thing]:
        return self._look() - self._baseline

    def _living(self, besides: set[int]) -> list[Process]:
        below = descendants(os.getpid())
        return [
            process
            for process in below
            if process.state not in "ZX"
            and process.pid not in besides
            and self._thing_of(process) not in self._baseline
        ]

    def _living_until(self, end: float, besides: set[int]) -> list[Process]:
        while (living := self._living(besides)) and self._clock() < end:
            self._nap(0.02)
        return living

    def _bury(self) -> None:
        """Wait for children that have ended, among them orphans that came to us."""
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass

    @staticmethod
    def _thing_of(process: Process) -> Thing:
        return Thing("process", f"{process.pid} [{process.start}] {process.command}")

    def _line(self, thing: Thing) -> str:
        test = self._first_seen.get(thing)
        return f"{thing.kind} {thing.name}" + (f", first seen after {test}" if test else "")
