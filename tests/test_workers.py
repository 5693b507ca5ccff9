"""Workers report: under every start method, whatever becomes of them.

"broker" is the way of a worker that a broker has forked: `run_forked` in a process that is made by hand here.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from multiprocessing import Pipe, resource_sharer
from typing import Any

import pytest
from worker_help import (
    METHODS,
    LoadsBadly,
    NoException,
    Silent,
    UnpicklableError,
    UnprintableError,
    die,
    fail,
    fail_from_a_cause,
    fork_by_hand,
    leave,
    leave_a_grandchild,
    say,
    the_failure,
    until_final,
    wait_for_end,
    wait_for_ever,
)

import shmbus
from shmbus.errors import Refused, TimedOut, WorkerFailed
from shmbus.workers import Supervisor


@pytest.fixture(autouse=True, scope="module")
def _resource_sharer() -> Iterator[None]:
    """A pipe given to a worker that is not started by multiprocessing is handed over by a thread of its."""
    yield
    resource_sharer.stop()


@pytest.fixture(params=METHODS)
def start(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The keywords of `Supervisor.spawn` for each way of starting a worker."""
    return {"launch": fork_by_hand} if request.param == "broker" else {"start_method": request.param}


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


def test_a_supervisor_works_in_any_thread(start: dict[str, Any]) -> None:
    caught: list[WorkerFailed] = []
    thread = threading.Thread(target=lambda: caught.append(the_failure(fail, ValueError, "there", **start)))
    thread.start()
    thread.join()
    assert "ValueError: there" in str(caught[0])


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


def test_importing_the_workers_brings_in_nothing_heavy() -> None:
    heavy = {"multiprocessing", "asyncio", "anyio"}
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
