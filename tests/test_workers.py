"""Workers: each one reports, ends when it is asked to, and outlives nobody; under every start method.

"broker" is the way of a worker that a broker has forked: `run_forked` in a process that is made by hand here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe, resource_sharer
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import pytest

import shmbus
from shmbus import worker_messages
from shmbus.errors import Refused, TimedOut, WorkerFailed
from shmbus.worker_messages import Call, Note, read_notes, write_note
from shmbus.worker_process import ProcessIdentity
from shmbus.workers import Handle, RestartLimits, Supervisor, Terminated, Worker, WorkerGroup, run_forked

METHODS = ["fork", "spawn", "forkserver", "broker"]
AT_ONCE = RestartLimits(first_delay=0.0)


@pytest.fixture(autouse=True, scope="module")
def _resource_sharer() -> Iterator[None]:
    """A pipe given to a worker that is not started by multiprocessing is handed over by a thread of its."""
    yield
    resource_sharer.stop()


@pytest.fixture(params=METHODS)
def start(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The keywords of `Supervisor.spawn` for each way of starting a worker."""
    return {"launch": fork_by_hand} if request.param == "broker" else {"start_method": request.param}


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


# --- one worker and its end ---


def test_a_worker_runs_its_target_with_its_arguments(start: dict[str, Any]) -> None:
    source, out = Pipe(duplex=False)
    with source, out, Supervisor() as supervisor:
        group = supervisor.spawn(say, (out,), {"what": [1, "two"]}, **start)
        supervisor.wait()
        assert source.recv() == [1, "two"]
        assert [(worker.name, worker.state, worker.exit_code) for worker in group.workers] == [
            ("say-1", "ended", 0)
        ]


def test_an_exception_arrives_with_name_pid_status_and_traceback(start: dict[str, Any]) -> None:
    error = the_failure(fail, ValueError, "bad input", name="eater", **start)
    assert error.name == "eater-1"
    assert error.pid
    assert error.exit_code == 1
    assert error.traceback_text is not None
    assert error.traceback_text.startswith("Traceback")
    assert error.traceback_text.rstrip().endswith("ValueError: bad input")
    assert "raise error(*args)" in error.traceback_text
    assert "worker_process.py" not in error.traceback_text
    assert str(error).startswith(f"worker 'eater-1' (pid {error.pid}) failed: ValueError: bad input\n")
    assert error.traceback_text.rstrip() in str(error)


def test_an_exception_that_cannot_be_pickled_arrives_like_any_other(start: dict[str, Any]) -> None:
    assert "UnpicklableError: holds a lock" in str(the_failure(fail, UnpicklableError, **start))


def test_an_exception_that_cannot_be_printed_still_names_its_type() -> None:
    assert "UnprintableError" in str(the_failure(fail, UnprintableError))


def test_the_cause_of_an_exception_arrives_too() -> None:
    text = the_failure(fail_from_a_cause).traceback_text
    assert text is not None
    assert "KeyError: 'missing'" in text
    assert "RuntimeError: on top" in text


@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, NoException, MemoryError])
def test_what_is_no_exception_is_a_failure_all_the_same(kind: type[BaseException]) -> None:
    error = the_failure(fail, kind)
    assert error.exit_code == 1
    assert kind.__name__ in str(error)


def test_a_very_long_traceback_is_cut_in_the_middle_and_hangs_nobody() -> None:
    error = the_failure(fail, ValueError, "x" * 1_000_000 + "the end")
    text = error.traceback_text
    assert text is not None
    assert text.startswith("Traceback")
    assert text.rstrip().endswith("the end")
    assert "bytes left out" in text
    assert len(text) < 1 << 16


def test_an_exit_status_is_a_failure_with_that_status(start: dict[str, Any]) -> None:
    error = the_failure(sys.exit, 3, **start)
    assert error.exit_code == 3
    assert error.traceback_text is None
    assert str(error) == f"worker 'exit-1' (pid {error.pid}) ended with exit status 3"


def test_an_exit_message_is_passed_on() -> None:
    error = the_failure(sys.exit, "no such camera")
    assert error.exit_code == 1
    assert str(error).endswith("ended with exit status 1: no such camera")


@pytest.mark.parametrize("status", [None, 0])
def test_a_clean_exit_is_no_failure(status: int | None) -> None:
    with Supervisor() as supervisor:
        supervisor.spawn(sys.exit, (status,))


def test_a_worker_that_leaves_without_a_word_is_judged_by_its_status(start: dict[str, Any]) -> None:
    with Supervisor() as supervisor:
        supervisor.spawn(leave, (0,), **start)
    assert the_failure(leave, 7, **start).exit_code == 7


def test_a_killed_worker_is_named_by_its_signal(start: dict[str, Any]) -> None:
    error = the_failure(die, signal.SIGKILL, **start)
    assert error.exit_code == -signal.SIGKILL
    assert str(error) == f"worker 'die-1' (pid {error.pid}) was killed by SIGKILL"


def test_a_sigterm_from_outside_is_a_failure_that_says_so(start: dict[str, Any]) -> None:
    assert "was ended by a SIGTERM that its supervisor had not sent" in str(
        the_failure(die, signal.SIGTERM, **start)
    )


def test_a_grandchild_that_keeps_every_pipe_open_makes_nobody_wait(start: dict[str, Any]) -> None:
    source, out = Pipe(duplex=False)
    with source, out:
        assert "SIGKILL" in str(the_failure(leave_a_grandchild, out, **start))
        os.kill(source.recv(), signal.SIGKILL)


def test_a_worker_that_somebody_else_has_waited_for_is_judged_by_its_report() -> None:
    with Supervisor() as supervisor:
        group = supervisor.spawn(say, (Silent(), 0), start_method="fork")
        os.waitpid(group.workers[0].pid, 0)
    assert group.workers[0].exit_code is None
    assert group.workers[0].state == "ended"


class Silent:
    def send(self, what: object) -> None:
        pass


# --- several workers ---


def test_the_first_failure_is_raised_and_the_others_are_notes() -> None:
    with pytest.raises(WorkerFailed, match="ValueError: here") as caught, Supervisor() as supervisor:
        supervisor.spawn(fail, (ValueError, "here"), count=3)
    assert sorted(note.split("'")[1] for note in caught.value.__notes__) == ["fail-2", "fail-3"]


def test_groups_of_the_same_name_go_on_counting() -> None:
    with Supervisor() as supervisor:
        supervisor.spawn(say, (Silent(), 0), count=2)
        supervisor.spawn(say, (Silent(), 0), count=1)
    assert [worker.name for worker in supervisor.workers] == ["say-1", "say-2", "say-3"]


def test_waiting_ends_at_its_timeout_and_names_who_is_late() -> None:
    source, out = Pipe(duplex=False)
    with source, Supervisor() as supervisor:
        with out:
            supervisor.spawn(wait_for_end, (source,), start_method="spawn")
            with pytest.raises(TimedOut, match=r"after 0 s .* wait_for_end-1 \(pid \d+\)"):
                supervisor.wait(0)
        supervisor.wait()


def test_a_failure_is_raised_once() -> None:
    supervisor = Supervisor()
    supervisor.spawn(fail, (ValueError,))
    with pytest.raises(WorkerFailed):
        supervisor.wait()
    supervisor.wait()
    assert supervisor.failures() == []


def test_check_raises_only_when_all_of_a_vital_group_have_failed() -> None:
    source, out = Pipe(duplex=False)
    with source, out, Supervisor() as supervisor:
        until_final(supervisor, supervisor.spawn(fail, (ValueError,), vital=False))
        group = supervisor.spawn(fail, (ValueError,), vital=True)
        half = supervisor.spawn(wait_for_ever, (out,), vital=True)
        with pytest.raises(WorkerFailed):
            supervisor.wait()  # does not wait for the one that waits for ever
        for _ in range(2):
            with pytest.raises(WorkerFailed, match="'fail-2'"):
                supervisor.check()
        assert group in supervisor.failed_groups()
        assert half not in supervisor.failed_groups()
        supervisor.terminate()
        with pytest.raises(WorkerFailed, match="'fail-1'"):
            supervisor.wait()  # what was not raised yet; the rest has been


def test_an_error_in_the_block_ends_the_workers_and_gets_their_failures_as_notes(
    start: dict[str, Any],
) -> None:
    source, out = Pipe(duplex=False)
    with source, out:
        with pytest.raises(ZeroDivisionError) as caught, Supervisor() as supervisor:  # noqa: PT012
            supervisor.spawn(wait_for_ever, (out,), **start)
            group = supervisor.spawn(fail, (ValueError, "before"))
            assert isinstance(source.recv(), int)
            until_final(supervisor, group)
            raise ZeroDivisionError
        assert source.recv() == "cleaned"
        assert [("before" in note) for note in caught.value.__notes__] == [True]


def until_final(supervisor: Supervisor, group: WorkerGroup) -> None:
    while not all(worker.final for worker in group.workers):
        os.sched_yield()
        supervisor.failed_groups()


# --- what is refused ---


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_target_that_cannot_be_pickled_is_refused_and_told_how_to_mend_it(method: str) -> None:
    with Supervisor() as supervisor:
        with pytest.raises(Refused, match=r'target .* cannot be pickled.*top level.*start_method="fork"'):
            supervisor.spawn(lambda: None, start_method=method, count=2)
        with pytest.raises(Refused, match=r"args\[1\] .* cannot be pickled"):
            supervisor.spawn(say, (1, threading.Lock()), start_method=method)
        with pytest.raises(Refused, match=r"kwargs\['what'\] .* cannot be pickled"):
            supervisor.spawn(say, (1,), {"what": threading.Lock()}, start_method=method)
        assert supervisor.workers == []


def test_under_fork_nothing_needs_pickling() -> None:
    with Supervisor() as supervisor:
        supervisor.spawn(lambda lock: lock.acquire(), (threading.Lock(),), start_method="fork")


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"target": 3}, "target=3"),
        ({"count": 0}, "count=0"),
        ({"restart": "always"}, "restart='always'"),
        ({"start_method": "thread"}, "start_method='thread'"),
    ],
)
def test_an_impossible_request_is_refused_by_name(wrong: dict[str, Any], names: str) -> None:
    with Supervisor() as supervisor, pytest.raises(Refused, match=names):
        supervisor.spawn(**{"target": say, **wrong})


def test_arguments_that_cannot_be_loaded_are_the_workers_failure(start: dict[str, Any]) -> None:
    if start == {"start_method": "fork"}:
        return
    error = the_failure(say, LoadsBadly(), 0, **start)
    assert "RuntimeError: cannot be loaded" in str(error)
    assert "could not load its target and arguments" in str(error)


class LoadsBadly:
    def __reduce__(self) -> tuple[Any, ...]:
        return fail, (RuntimeError, "cannot be loaded")


# --- being ended ---


def test_terminate_lets_blocks_clean_up_and_is_no_failure(start: dict[str, Any]) -> None:
    source, out = Pipe(duplex=False)
    with source, out:
        supervisor = Supervisor()
        group = supervisor.spawn(wait_for_ever, (out,), count=2, **start)
        assert {source.recv(), source.recv()} == {worker.pid for worker in group.workers}
        supervisor.terminate()
        assert [source.recv(), source.recv()] == ["cleaned", "cleaned"]
        assert [worker.state for worker in group.workers] == ["ended", "ended"]
        supervisor.terminate()
        supervisor.wait()


def test_a_worker_that_refuses_to_end_is_killed_after_the_grace(start: dict[str, Any]) -> None:
    source, out = Pipe(duplex=False)
    with source, out:
        supervisor = Supervisor()
        group = supervisor.spawn(refuse_to_end, (out,), **start)
        assert source.recv() == group.workers[0].pid
        supervisor.terminate(grace=0.05)
        assert group.workers[0].exit_code == -signal.SIGKILL
        assert group.workers[0].state == "ended"


def test_a_stopped_worker_is_woken_to_end() -> None:
    source, out = Pipe(duplex=False)
    with source, out:
        supervisor = Supervisor(grace=100)
        supervisor.spawn(wait_for_ever, (out,))
        os.kill(source.recv(), signal.SIGSTOP)
        supervisor.terminate()
        assert source.recv() == "cleaned"


def test_sigterm_raises_a_kind_of_system_exit_that_except_exception_lets_pass() -> None:
    assert issubclass(Terminated, SystemExit)
    assert not issubclass(Terminated, Exception)


def test_nothing_is_left_behind(start: dict[str, Any]) -> None:
    def run() -> None:
        supervisor = Supervisor(limits=RestartLimits(most=1, first_delay=0.0))
        supervisor.spawn(
            fail, (ValueError,), count=2, restart="on-failure", on_ended=lambda worker: None, **start
        )
        with pytest.raises(WorkerFailed):
            supervisor.wait()

    run()  # starts what multiprocessing keeps for the rest of the program
    before = state_of_this_process()
    run()
    assert state_of_this_process() == before


def state_of_this_process() -> tuple[object, ...]:
    descriptors = sorted(os.listdir("/proc/self/fd"))
    children = Path(f"/proc/self/task/{os.getpid()}/children").read_text()
    signals = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    return descriptors, children, threading.enumerate(), signals, signal.pthread_sigmask(signal.SIG_BLOCK, ())


# --- starting again ---


def test_a_failing_worker_is_started_again_until_it_succeeds(start: dict[str, Any], tmp_path: Path) -> None:
    over: list[Worker] = []
    with Supervisor(limits=AT_ONCE) as supervisor:
        args = (str(tmp_path / "count"), 2)
        (worker,) = supervisor.spawn(
            fail_until, args, restart="on-failure", on_ended=over.append, **start
        ).workers
        supervisor.wait()
    assert over == [worker]
    assert worker.restarts == 2
    assert worker.state == "ended"
    assert len(worker.failures) == 2


def test_a_worker_is_restarted_while_nobody_waits_for_it(tmp_path: Path) -> None:
    over = threading.Event()
    supervisor = Supervisor(limits=AT_ONCE)
    args = (str(tmp_path / "count"), 2)
    supervisor.spawn(fail_until, args, restart="on-failure", on_ended=lambda worker: over.set())
    over.wait()
    supervisor.wait()


def test_restarts_end_at_their_limit_and_the_failure_says_so() -> None:
    with (
        pytest.raises(WorkerFailed) as caught,
        Supervisor(limits=RestartLimits(most=2, first_delay=0.0)) as supervisor,
    ):
        supervisor.spawn(sys.exit, (3,), restart="on-failure")
    assert caught.value.__notes__ == ["It was restarted 2 times within 60 s, and is given up."]
    assert supervisor.workers[0].restarts == 2


def test_delays_between_restarts_double_up_to_the_longest() -> None:
    limits, now = RestartLimits(most=10, first_delay=1.0, longest_delay=5.0), 1000.0
    group = WorkerGroup(Call(say, (), {}), "fork", "on-failure")
    worker = Worker("w-1", group, failures=[WorkerFailed("x")], _started=now)
    delays = []
    for _ in range(5):
        worker.postpone(limits, now)
        delays.append(worker.due - now)
    assert delays == [1.0, 2.0, 4.0, 5.0, 5.0]
    now += 1000.0  # it ran for longer than the window
    worker.postpone(limits, now)
    assert worker.due - now == 1.0


def test_a_worker_that_succeeds_is_not_started_again(tmp_path: Path) -> None:
    with Supervisor(limits=AT_ONCE) as supervisor:
        supervisor.spawn(fail_until, (str(tmp_path / "count"), 0), restart="on-failure")
    assert (tmp_path / "count").read_bytes() == b"."


def test_ending_a_worker_that_waits_to_be_restarted_keeps_its_failure() -> None:
    supervisor = Supervisor(limits=RestartLimits(first_delay=1000.0, longest_delay=1000.0))
    (worker,) = supervisor.spawn(fail, (ValueError, "early"), restart="on-failure").workers
    while worker.state == "running":
        supervisor.check()
        os.sched_yield()
    assert worker.state == "waiting"
    supervisor.terminate()
    assert ["early" in str(failure) for failure in supervisor.failures()] == [True]


# --- the parent's death, Ctrl-C, and forks: in programs of their own ---


def program(text: str, tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    """A program in a session of its own, with this test's targets as `t` and its start method as `how`."""
    file = tmp_path / "program.py"
    head = """
        import os, signal, sys, threading
        import test_workers as t
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


@pytest.mark.parametrize("method", METHODS)
def test_no_worker_survives_a_parent_that_is_killed(
    method: str, tmp_path: Path, await_end: Callable[[int], None]
) -> None:
    text = """
        if __name__ == "__main__":
            with Supervisor(grace=0.05) as supervisor:
                supervisor.spawn(t.wait_for_ever, (Out(),), **how)
                supervisor.spawn(t.refuse_to_end, (Out(),), **how)
        """
    with program(text, tmp_path, method) as process:
        pids = {int(line(process)), int(line(process))}
        process.kill()
        out, err = process.communicate()  # ends when nobody holds the pipes any more
        assert sorted(out.split()) == ["cleaned", "no"]
        assert err == ""
    for pid in pids:
        await_end(pid)


@pytest.mark.parametrize("method", METHODS)
def test_ctrl_c_ends_everybody_once_without_a_trail(method: str, tmp_path: Path) -> None:
    text = """
        if __name__ == "__main__":
            with Supervisor(grace=100) as supervisor:
                supervisor.spawn(t.wait_for_ever, (Out(),), count=3, **how)
        """
    with program(text, tmp_path, method) as process:
        for _ in range(3):
            assert line(process).isdigit()
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
        assert out.split() == ["cleaned"] * 3
        assert err.count("Traceback") == 1
        assert err.count("KeyboardInterrupt") == 1
        assert process.returncode == -signal.SIGINT


@pytest.mark.parametrize("method", METHODS)
def test_a_second_ctrl_c_kills_at_once(method: str, tmp_path: Path) -> None:
    text = """
        if __name__ == "__main__":
            with Supervisor(grace=1000) as supervisor:
                supervisor.spawn(t.refuse_to_end, (Out(),), **how)
        """
    with program(text, tmp_path, method) as process:
        assert line(process).isdigit()
        os.killpg(process.pid, signal.SIGINT)
        assert line(process) == "no"
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
        assert out == ""
        assert err.count("Traceback") == 1
        assert process.returncode == -signal.SIGINT


def test_a_program_that_forgets_its_workers_ends_them_at_its_exit(tmp_path: Path) -> None:
    text = """
        if __name__ == "__main__":
            supervisor = Supervisor()
            supervisor.spawn(t.wait_for_ever, (Out(),), **how)
            sys.stdin.readline()
        """
    with program(text, tmp_path, "fork") as process:
        assert line(process).isdigit()
        out, err = process.communicate()
        assert (out, err, process.returncode) == ("cleaned\n", "", 0)


@pytest.mark.parametrize("method", ["spawn", "forkserver", "broker"])
def test_an_unguarded_main_module_gives_one_clear_sentence(method: str, tmp_path: Path) -> None:
    text = """
        with Supervisor() as supervisor:
            supervisor.spawn(t.die, (9,), count=2, **how)
        """
    with program(text, tmp_path, method) as process:
        _, err = process.communicate()
        assert err.count('under `if __name__ == "__main__":`') == 1
        assert err.count("Traceback") == 1
        assert process.returncode == 1


def test_a_worker_whose_parent_died_before_it_could_watch_does_not_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    own = ProcessIdentity.own()
    gone = ProcessIdentity(own.pid, own.start_ticks - 1, own.namespace)
    monkeypatch.setattr(ProcessIdentity, "own", classmethod(lambda cls: gone))
    source, out = Pipe(duplex=False)
    with source:
        with out:
            assert "SIGTERM" in str(the_failure(say, out, 1, start_method="spawn"))
        with pytest.raises(EOFError):
            source.recv()


def test_a_process_is_known_by_its_start_and_not_by_its_pid_alone() -> None:
    own = ProcessIdentity.own()
    pidfd = own.open()
    assert pidfd is not None
    os.close(pidfd)
    assert ProcessIdentity(own.pid, own.start_ticks + 1, own.namespace).open() is None
    assert ProcessIdentity(2**22 + 1, own.start_ticks, own.namespace).open() is None
    with pytest.raises(Refused, match="namespaces"):
        ProcessIdentity(own.pid, own.start_ticks, "elsewhere").open()


def test_a_forked_child_has_no_workers_and_ends_none() -> None:
    source, out = Pipe(duplex=False)
    with source, out, Supervisor() as supervisor:
        supervisor.spawn(wait_for_ever, (out,))
        source.recv()
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                with supervisor:
                    status = len(supervisor.workers)
                supervisor.close()
            finally:
                os._exit(status)
        assert os.waitpid(pid, 0)[1] == 0
        assert not source.poll()
        supervisor.terminate()
        assert source.recv() == "cleaned"


# --- notes ---


@pytest.mark.parametrize(
    "length", [0, 1, 100, worker_messages.NOTE_BYTES, worker_messages.NOTE_BYTES + 1, 10**6]
)
def test_a_note_fits_into_an_empty_pipe_whatever_its_length(length: int) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    write_note(writer, Note("started", 0))
    write_note(writer, Note("raised", 1, "sum\nmary", "x" * length))
    os.close(writer)
    with open(reader, "rb") as file:
        first, second = read_notes(file.read())
    assert first == Note("started", 0)
    assert (second.kind, second.status, second.summary) == ("raised", 1, "sum mary")
    assert second.text == "x" * length if length <= worker_messages.NOTE_BYTES else "left out" in second.text


@pytest.mark.parametrize("garbage", [b"", b"\n", b"raised", b"raised 1 2\n", b"a b c d\n", b"\xff\xfe\n\n\n"])
def test_garbage_in_the_report_is_no_note(garbage: bytes) -> None:
    assert read_notes(garbage) == []


def test_a_note_that_nobody_can_take_is_dropped() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    write_note(writer, Note("started", 0))
    os.close(writer)


def test_importing_the_workers_brings_in_nothing_heavy() -> None:
    heavy = {"multiprocessing", "asyncio", "anyio", "pickle"}
    code = f"import sys, shmbus.workers; print({heavy} & set(sys.modules))"
    path = os.path.dirname(shmbus.__path__[0])
    out = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": path},
    ).stdout
    assert out == "set()\n"
