"""Workers end when they are asked to, start again when that is wanted, and outlive nobody.

"broker" is the way of a worker that a broker has forked: `run_forked` in a process that is made by hand here.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe, resource_sharer
from pathlib import Path
from typing import Any

import pytest
from worker_help import (
    AT_ONCE,
    METHODS,
    fail,
    fail_until,
    fork_by_hand,
    line,
    program,
    refuse_to_end,
    say,
    state_of_this_process,
    the_failure,
    wait_for_ever,
)

from shmbus.errors import Refused, WorkerFailed
from shmbus.launch import interrupts_held
from shmbus.worker_messages import Call
from shmbus.worker_process import ProcessIdentity
from shmbus.workers import RestartLimits, Supervisor, Terminated, Worker, WorkerGroup


@pytest.fixture(autouse=True, scope="module")
def _resource_sharer() -> Iterator[None]:
    """A pipe given to a worker that is not started by multiprocessing is handed over by a thread of its."""
    yield
    resource_sharer.stop()


@pytest.fixture(params=METHODS)
def start(request: pytest.FixtureRequest) -> dict[str, Any]:
    """The keywords of `Supervisor.spawn` for each way of starting a worker."""
    return {"launch": fork_by_hand} if request.param == "broker" else {"start_method": request.param}


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


def test_an_interrupt_that_was_held_is_raised_once_and_alone() -> None:
    with pytest.raises(KeyboardInterrupt) as caught, interrupts_held() as pressed:  # noqa: PT012
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        assert len(pressed) == 2
        raise ValueError("an echo")
    assert caught.value.__suppress_context__


def test_the_fork_server_serves_others_as_ever(tmp_path: Path) -> None:
    text = """
        import multiprocessing
        if __name__ == "__main__":
            with Supervisor() as supervisor:
                supervisor.spawn(t.say, (Out(), "ours"), **how)
            process = multiprocessing.get_context("forkserver").Process(target=t.tell_of_sigint)
            process.start()
            process.join()
        """
    with program(text, tmp_path, "forkserver") as process:
        out, err = process.communicate()
        assert (out, err) == ("ours\ndefault_int_handler unblocked\n", "")
