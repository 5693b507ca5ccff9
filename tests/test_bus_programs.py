"""A bus and its workers as a program of their own: kill -9, Ctrl-C, a forgotten guard."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bus_help import (
    METHODS,
    environment,
)

pytestmark = pytest.mark.patience(60)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Any:
    return request.param


# --- programs of their own ---


def program(text: str, tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    file = tmp_path / "program.py"
    file.write_text("import os, sys, shmbus\nimport bus_help as t\n" + textwrap.dedent(text))
    return subprocess.Popen(
        [sys.executable, str(file), *args],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        # A fork server whose program is killed leaves its socket there.
        env=environment(TMPDIR=str(tmp_path)),
    )


AT_WORK = """
    if __name__ == "__main__":
        with shmbus.Bus() as bus:
            jobs, ready = bus.channel("jobs"), bus.channel("ready")
            bus.spawn(t.for_ever, jobs.consumer(), ready.producer(), count=3, start_method=sys.argv[1])
            with jobs.producer(), ready.consumer() as rx:
                print(*[rx.recv() for _ in range(3)], bus._broker.pid, os.path.dirname(bus.path), flush=True)
                jobs.consumer(group="nobody").recv()  # for ever
    """


def test_when_the_program_is_killed_everything_goes(
    method: str, tmp_path: Path, await_end: Callable[[int], None]
) -> None:
    with program(AT_WORK, tmp_path, method) as process:
        assert process.stdout is not None
        *pids, folder = process.stdout.readline().split()
        assert len(pids) == 4
        process.kill()
        out, err = process.communicate()  # nobody holds the pipes any more
        assert (out, err) == ("", "")
    for pid in pids:
        await_end(int(pid))
    assert not os.path.exists(folder)


def test_ctrl_c_ends_everybody_once_without_a_trail(method: str, tmp_path: Path) -> None:
    with program(AT_WORK, tmp_path, method) as process:
        assert process.stdout is not None
        folder = process.stdout.readline().split()[-1]
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
        assert out == ""
        assert err.count("Traceback") == 1
        assert err.count("KeyboardInterrupt") == 1
        assert process.returncode == -signal.SIGINT
    assert not os.path.exists(folder)


def test_ctrl_c_while_leaving_ends_everybody_too(method: str, tmp_path: Path) -> None:
    text = """
        if __name__ == "__main__":
            with shmbus.Bus() as bus:
                ready = bus.channel("ready")
                bus.spawn(t.pause, ready.producer(), count=3, start_method=sys.argv[1])
                with ready.consumer() as rx:
                    print(*[rx.recv() for _ in range(3)], flush=True)
        """
    with program(text, tmp_path, method) as process:
        assert process.stdout is not None
        assert process.stdout.readline()
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
        assert err.count("Traceback") == 1
        assert err.count("KeyboardInterrupt") == 1


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_an_unguarded_program_gets_one_clear_sentence(method: str, tmp_path: Path) -> None:
    text = """
        with shmbus.Bus() as bus:
            jobs = bus.channel("jobs")
            bus.spawn(t.drain, jobs.consumer(), count=3, start_method=sys.argv[1])
            with jobs.producer() as tx:
                tx.send(1)
        """
    with program(text, tmp_path, method) as process:
        _, err = process.communicate()
        assert err.count('under `if __name__ == "__main__":`') == 1
        assert err.count("Traceback") == 1


def test_a_second_ctrl_c_kills_at_once(method: str, tmp_path: Path) -> None:
    text = """
        if __name__ == "__main__":
            with shmbus.Bus(grace=1000) as bus:
                ready = bus.channel("ready")
                bus.spawn(t.refuse_to_end, ready.producer(), start_method=sys.argv[1])
                with ready.consumer() as rx:
                    rx.recv()
        """
    with program(text, tmp_path, method) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        os.killpg(process.pid, signal.SIGINT)
        assert process.stdout.readline() == "no\n"
        os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate()
        assert out == ""
        assert err.count("Traceback") == 1
        assert process.returncode == -signal.SIGINT
