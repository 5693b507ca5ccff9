"""A watchdog that ends a hung test, with the stack of every thread of every process printed.

Theory of operation.  The watchdog is a process of its own, so that it works while the test process holds
the GIL in a loop of C.  The test process tells it through a pipe, line by line: `watch SECONDS soft|hard
WHAT` before each test, `calm` after it.  It also holds a pidfd of the test process.  When the time is over
it

  1. lists every process below the test process: state, kernel wait, command;
  2. sends each of them SIGABRT: PYTHONFAULTHANDLER is set, so a Python prints its threads' stacks and ends;
  3. (soft) sends the test process SIGNAL_HUNG, whose handler prints its own stacks and raises in the main
     thread, so that the test fails in the usual way, with what it had printed, and the run goes on;
  4. (hard, or if that brought nothing within HARD_AFTER seconds) shows the end of the captured output, sends
     the test process SIGABRT (faulthandler prints the stacks, the GIL is not needed), then SIGKILL to all
     that is left.

Whichever way, the run does not pass: by the exception, or by the signal in the exit status.  When the test
process is gone the watchdog removes the session's private folder, which a killed session cannot do, and
ends.

Times here bound a hang; no test asserts them.
"""

import contextlib
import faulthandler
import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from harness.leaks import Process, descendants

SIGNAL_HUNG = signal.SIGRTMIN + 7
#: Seconds for a test that was told to fail by itself.
HARD_AFTER = float(os.environ.get("SHMBUS_TEST_HARD_AFTER", "15"))
#: Seconds for faulthandler to print.
KILL_AFTER = 5.0
SHOWN_BYTES = 8000


# ---- the test process's side


class Watchdog:
    """The handle that the test process has of its watchdog.

    Args:
        private: The session's folder, removed when the session is gone.
        on_hang: Called in the main thread when a soft limit is over, after the stacks were printed, with
            the text to fail with; it may raise.
    """

    def __init__(self, private: Path, on_hang: Callable[[str], None]) -> None:
        self._watched = ""
        self._on_hang = on_hang
        self._report_to = os.dup(2)  # before the output of tests is captured
        signal.signal(SIGNAL_HUNG, self._hung)
        reader, self._writer = os.pipe()
        command = [sys.executable, "-P", __file__, str(os.getpid()), str(reader), str(private)]
        self._process = subprocess.Popen(
            command, pass_fds=[reader], stdin=subprocess.DEVNULL, stderr=self._report_to
        )
        os.close(reader)

    @property
    def pid(self) -> int:
        """The pid of the watchdog's process."""
        return self._process.pid

    def watch(self, seconds: float, what: str, *, soft: bool = True) -> None:
        """From now on `what` may take this long."""
        self._watched = what if soft else ""
        name = what.replace("\n", " ")
        self._tell(f"watch {seconds} {'soft' if soft else 'hard'} {name}\n")

    def calm(self) -> None:
        """What was watched has ended."""
        self._watched = ""
        self._tell("calm\n")

    def leave(self, seconds: float) -> None:
        """The session is over: its process may take this long to end, and the watchdog goes with it."""
        self.watch(seconds, "the end of the test process", soft=False)
        self._process.returncode = 0  # it outlives us; Popen is not to complain

    def _tell(self, line: str) -> None:
        with contextlib.suppress(BrokenPipeError):
            os.write(self._writer, line.encode())

    def _hung(self, _number: int, _frame: object) -> None:
        what, self._watched = self._watched, ""
        if not what:
            return  # it ended in the very moment in which its time was over
        os.write(self._report_to, b"[watchdog] threads of the test process:\n")
        faulthandler.dump_traceback(self._report_to, all_threads=True)
        self._on_hang(f"hung: {what} was ended by the watchdog, which printed the stacks")


# ---- the watchdog's side


def say(text: str) -> None:
    """Print to what was standard error before any test."""
    print(f"[watchdog] {text}", file=sys.stderr, flush=True)


def describe(process: Process) -> str:
    """One line of a process: who it is and what it waits for."""
    try:
        wait = Path(f"/proc/{process.pid}/wchan").read_text()
    except OSError:
        wait = "?"
    who = f"pid {process.pid} of {process.parent}"
    return f"{who}, state {process.state}, waits in {wait or '?'}: {process.command}"


def send(pid: int, number: int) -> None:
    """Send a signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def is_helper(process: Process, test_process: int) -> bool:
    """Whether it is multiprocessing's forkserver or tracker: a session that goes on needs them."""
    return process.parent == test_process and (
        "multiprocessing.forkserver" in process.command
        or "multiprocessing.resource_tracker" in process.command
    )


def abort_descendants(test_process: int) -> None:
    """List what runs below the test process, then let each print its stacks and end."""
    below = [process for process in descendants(test_process) if process.pid != os.getpid()]
    for process in below:
        say(describe(process))
    for process in reversed(below):
        if not is_helper(process, test_process):
            send(process.pid, signal.SIGABRT)
            send(process.pid, signal.SIGCONT)  # a stopped one dies only when it goes on


def show_captured(test_process: int) -> None:
    """Print the end of what the test process has in its capture files."""
    for number, name in ((1, "output"), (2, "errors")):
        try:
            captured = Path(f"/proc/{test_process}/fd/{number}")
            if captured.is_file():
                text = captured.read_bytes()[-SHOWN_BYTES:].decode(errors="replace")
                say(f"captured {name} of the test process:\n{text}")
        except OSError:
            continue


class Guard:
    """The loop of the watchdog's process."""

    def __init__(self, test_process: int, orders: int) -> None:
        self._test_process = test_process
        self._pidfd = os.pidfd_open(test_process)
        self._orders = orders
        self._rest = b""
        self._poll = select.poll()
        self._poll.register(self._pidfd, select.POLLIN)
        self._poll.register(orders, select.POLLIN)
        self._deadline: float | None = None
        self._seconds = 0.0
        self._soft = True
        self._what = ""

    def run(self) -> None:
        """Obey until the test process is gone."""
        while not self._gone(self._deadline):
            if self._deadline is not None and time.monotonic() >= self._deadline:
                self._over()

    def _gone(self, until: float | None) -> bool:
        """Wait for the next order or `until`; True when the test process has ended."""
        wait = None if until is None else max(0, round((until - time.monotonic()) * 1000))
        ready = dict(self._poll.poll(wait))
        if self._orders in ready:
            self._obey()
        return self._pidfd in ready

    def _obey(self) -> None:
        data = os.read(self._orders, 65536)
        if not data:
            self._poll.unregister(self._orders)
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            word, _, rest = line.decode().partition(" ")
            if word == "watch":
                seconds, mode, self._what = rest.split(" ", 2)
                self._seconds = float(seconds)
                self._soft = mode == "soft"
                self._deadline = time.monotonic() + self._seconds
            else:
                self._deadline = None

    def _over(self) -> None:
        say(f"{self._what} has not ended after {self._seconds:g} s")
        abort_descendants(self._test_process)
        if self._soft:
            send(self._test_process, SIGNAL_HUNG)
            self._soft = False
            self._deadline = time.monotonic() + HARD_AFTER
            return
        show_captured(self._test_process)
        left = descendants(self._test_process)
        send(self._test_process, signal.SIGABRT)
        send(self._test_process, signal.SIGCONT)
        end = time.monotonic() + KILL_AFTER
        while time.monotonic() < end:
            if self._gone(end):
                break
        send(self._test_process, signal.SIGKILL)
        for process in left:
            if process.pid != os.getpid():
                process.kill()
        self._deadline = None


def main() -> None:
    """Watch the process and obey the pipe named on the command line."""
    test_process, orders, private = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the test process; we go when it goes
    with contextlib.suppress(ProcessLookupError):  # gone before we looked
        Guard(test_process, orders).run()
    shutil.rmtree(private, ignore_errors=True)


if __name__ == "__main__":
    main()
