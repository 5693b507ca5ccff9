"""The leak check and the watchdog fire: each test here runs a small session that does the wrong thing."""

import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run_session(tmp_path: Path) -> Run:
    """Run one test file under a copy of this conftest; returns what became of it."""

    def run(
        text: str, more: str = "", *arguments: str, patience: float = 60, hard_after: float = 30
    ) -> subprocess.CompletedProcess[str]:
        shutil.copy(HERE / "conftest.py", tmp_path)
        shutil.copytree(HERE / "harness", tmp_path / "harness", ignore=shutil.ignore_patterns("__pycache__"))
        (tmp_path / "test_inner.py").write_text(textwrap.dedent(text) + more)
        (tmp_path / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, str(tmp_path)]
        environment = dict(
            os.environ,
            SHMBUS_TEST_PATIENCE=str(patience),
            SHMBUS_TEST_HARD_AFTER=str(hard_after),
            SHMBUS_TEST_GRACE="0.2",
            PYTEST_DISABLE_PLUGIN_AUTOLOAD="1",
        )
        return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)

    return run


def assert_left_behind(done: subprocess.CompletedProcess[str], *words: str) -> None:
    output = done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, output
    assert "left behind by the session" in output
    line = next((line for line in output.splitlines() if all(word in line for word in words)), None)
    assert line is not None, f"no line with all of {words} in:\n{output}"


def test_a_session_that_leaves_nothing_passes(run_session: Run) -> None:
    done = run_session(
        """
        import multiprocessing, os, tempfile, threading
        import pytest

        def work(): pass

        @pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
        def test_tidy(method, tmp_path, unique):
            process = multiprocessing.get_context(method).Process(target=work)
            process.start()
            process.join()
            (tmp_path / unique).touch()

        @pytest.fixture(scope="module")
        def held():
            reader, writer = os.pipe()
            yield
            os.close(reader)
            os.close(writer)

        def test_a_fixture_of_the_module_may_hold_things(held): pass
        def test_and_go_on_holding_them(held): pass
        """
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "5 passed" in done.stdout


def test_a_leaked_descriptor_fails_the_session(run_session: Run) -> None:
    done = run_session(
        """
        import os
        def test_opens(): os.memfd_create("forgotten")
        def test_later(): pass
        """
    )
    assert_left_behind(done, "descriptor", "memfd:forgotten", "first seen after", "test_opens")


def test_a_leaked_child_fails_the_session_and_is_killed(run_session: Run) -> None:
    done = run_session(
        """
        import os, signal
        def test_forks():
            if os.fork() == 0:
                signal.pause()
        """
    )
    assert_left_behind(done, "process", "test_forks")


def test_a_leaked_grandchild_in_a_session_of_its_own_fails_the_session(run_session: Run) -> None:
    done = run_session(
        """
        import subprocess, sys
        CHILD = (
            "import subprocess, sys\\n"
            "command = [sys.executable, '-c', 'import signal; signal.pause()']\\n"
            "subprocess.Popen(command, start_new_session=True)"
        )
        def test_orphans():
            subprocess.run([sys.executable, "-c", CHILD], check=True)
        """
    )
    assert_left_behind(done, "process", "signal.pause()")


def test_a_child_of_the_forkserver_that_stays_fails_the_session(run_session: Run) -> None:
    done = run_session(
        """
        import multiprocessing, signal
        def test_stays():
            process = multiprocessing.get_context("forkserver").Process(target=signal.pause)
            process.start()
        """
    )
    assert_left_behind(done, "process", "test_stays")


def test_a_leaked_entry_in_dev_shm_fails_the_session(run_session: Run, unique: str) -> None:
    entry = Path("/dev/shm", f"harness-{unique}")
    try:
        done = run_session(
            f"""
            import mmap
            def test_names():
                with open({str(entry)!r}, "wb+") as file:
                    file.truncate(4096)
            """
        )
    finally:
        entry.unlink(missing_ok=True)
    assert_left_behind(done, f"entry {entry}", "test_names")


def test_a_leaked_socket_in_the_runtime_folder_fails_the_session(run_session: Run) -> None:
    done = run_session(
        """
        import os, pathlib, socket
        def test_listens():
            folder = pathlib.Path(os.environ["XDG_RUNTIME_DIR"], "shmbus")
            folder.mkdir()
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(folder / "bus.sock"))
        """
    )
    assert_left_behind(done, "socket", "shmbus/bus.sock", "test_listens")
    assert_left_behind(done, "folder", "shmbus")


def test_a_leaked_temporary_folder_fails_the_session(run_session: Run) -> None:
    done = run_session(
        """
        import tempfile
        def test_makes(): tempfile.mkdtemp(prefix="shmbus-")
        """
    )
    assert_left_behind(done, "folder", "shmbus-", "test_makes")


def test_a_thread_that_would_hold_up_the_end_fails_the_session(run_session: Run) -> None:
    done = run_session(
        """
        import threading
        def test_starts(request):
            released = threading.Event()
            request.config.add_cleanup(released.set)  # so that the session itself can end
            threading.Thread(target=released.wait, name="forgotten").start()
        """
    )
    assert_left_behind(done, "thread", "forgotten")


def test_a_leak_is_found_when_the_session_stops_early(run_session: Run) -> None:
    done = run_session(
        """
        import os
        def test_opens(): os.memfd_create("forgotten")
        def test_fails(): assert False
        def test_never_comes(): pass
        """,
        "",
        "-x",
    )
    assert_left_behind(done, "descriptor", "memfd:forgotten")


#: The hang is declared when everything is in place, so that no test here depends on how long a start takes.
TIME_IS_OVER = """
def time_is_over(request):
    from conftest import SESSION
    request.config.stash[SESSION].watchdog.watch(0, request.node.nodeid)
"""


def test_a_hung_test_fails_with_the_stacks_of_all_its_processes_and_the_rest_goes_on(
    run_session: Run,
) -> None:
    done = run_session(
        """
        import subprocess, sys, threading
        CHILD = (
            "import signal\\n"
            "def waits_in_the_child():\\n print('ready', flush=True); signal.pause()\\n"
            "waits_in_the_child()"
        )
        def waits_in_the_test(): threading.Event().wait()
        def test_hangs(request):
            with subprocess.Popen([sys.executable, "-c", CHILD], stdout=subprocess.PIPE) as child:
                child.stdout.readline()
                time_is_over(request)
                waits_in_the_test()
        def test_after(): pass
        """,
        TIME_IS_OVER,
    )
    output = done.stdout + done.stderr
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, output
    assert "1 failed, 1 passed" in output
    assert "waits_in_the_child" in done.stdout, output  # captured with the test
    assert "waits_in_the_test" in done.stderr, output
    assert "test_inner.py::test_hangs has not ended after 0 s" in done.stderr


def test_a_test_that_takes_longer_than_its_patience_is_hung(run_session: Run) -> None:
    done = run_session("def test_hangs():\n    import threading; threading.Event().wait()", patience=0.5)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "1 failed" in done.stdout
    assert "test_inner.py::test_hangs has not ended after 0.5 s" in done.stderr


def test_a_hung_test_that_swallows_the_exception_does_not_pass(run_session: Run) -> None:
    done = run_session(
        """
        import threading
        def test_hangs(request):
            time_is_over(request)
            try:
                threading.Event().wait()
            except BaseException:
                pass
        """,
        TIME_IS_OVER,
    )
    assert done.returncode == pytest.ExitCode.TESTS_FAILED, done.stdout + done.stderr
    assert "1 failed" in done.stdout


def test_a_hang_that_keeps_the_gil_is_ended_with_its_stack_and_leaves_nothing(run_session: Run) -> None:
    done = run_session(
        """
        import itertools, os, subprocess, sys
        def never_lets_go(): sum(itertools.repeat(0))
        def test_hangs(request):
            child = subprocess.Popen([sys.executable, "-c", "import signal; signal.pause()"])
            print("private", os.environ["XDG_RUNTIME_DIR"], "child", child.pid)
            time_is_over(request)
            never_lets_go()
        """,
        TIME_IS_OVER,
        hard_after=0.5,
    )
    output = done.stdout + done.stderr
    assert done.returncode < 0, output
    assert "never_lets_go" in done.stderr
    assert "captured output of the test process" in done.stderr
    line = next(line for line in done.stderr.splitlines() if line.startswith("private"))
    _, folder, _, pid = line.split()
    assert not os.path.exists(folder), output
    assert not os.path.exists(f"/proc/{pid}") or Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
