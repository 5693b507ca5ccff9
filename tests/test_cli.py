"""The command around its commands: exit status, lines for errors, signals, pipes, terminals; the service."""

from __future__ import annotations

import errno
import os
import pty
import re
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest
from cli_help import command, environment, patched, shmbus, started, write_corpus

import shmbus as package
from shmbus.cli import main
from shmbus.cli.root import COMMANDS

METHODS = ["fork", "spawn", "forkserver"]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus"))


# --- usage ---


@pytest.mark.parametrize("module", ["shmbus", "shmbus.cli"])
def test_version_is_one_line_of_either_module(module: str) -> None:
    words = [sys.executable, "-m", module, "--version"]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"shmbus \S.*\n", done.stdout)


def test_help_lists_every_command() -> None:
    done = shmbus("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert re.findall(r"^  (\w+)  ", done.stdout, re.MULTILINE) == sorted(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([name, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"Usage: shmbus {name} [OPTIONS]")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tune"], "No such command 'tune'"),
        (["demo", "--consumers", "0"], "0 is not in the range"),
        (["demo", "--capacity", "5000"], "the nearest: 4096 (4 KiB) or 8192 (8 KiB)"),
        (["demo", "--backing", "tape"], "'memfd', 'shm', 'file', 'anonymous'"),
        (["demo", "--start-method", "clone"], "'fork', 'spawn', 'forkserver'"),
        (["demo", "--folder", "/nowhere"], "'/nowhere' does not exist"),
        (["broker", "--mode", "0888"], "write octal digits, such as 0600"),
        (["broker", "--mode", "10000"], "write octal digits, such as 0600"),
        (["broker", "extra"], "unexpected extra argument"),
    ],
)
def test_wrong_usage_is_status_2_and_says_what_is_wrong(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert said in err


def test_importing_the_command_brings_in_neither_click_nor_rich() -> None:
    code = "import sys, shmbus.cli; print({'click', 'rich', 'multiprocessing'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout == "set()\n"


def test_rich_is_imported_where_something_is_drawn_and_nowhere_else(corpus: Path) -> None:
    code = (
        "import sys; from shmbus.cli import main; "
        f"main(['demo', '--folder', {str(corpus)!r}, '--start-method', 'fork']); main(['--help']); "
        "print('rich' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout.splitlines()[-1] == "False"


# --- errors ---


def test_an_error_is_one_line_and_status_1(tmp_path: Path) -> None:
    done = shmbus("demo", "--folder", tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"shmbus: there is no .py file below {tmp_path}, so there is nothing to count\n"


def test_an_error_shows_its_traceback_when_asked_to(tmp_path: Path) -> None:
    done = shmbus("--traceback", "demo", "--folder", tmp_path)
    assert done.returncode == 1
    assert done.stderr.startswith("Traceback")
    assert "shmbus.errors.Refused: there is no .py file" in done.stderr


def test_an_error_of_the_system_is_one_line_that_names_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from shmbus.lab import wordcount

    def unreadable(path: str) -> bytes:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)

    (tmp_path / "secret.py").touch()
    monkeypatch.setattr(wordcount, "read_file", unreadable)
    assert main(["demo", "--folder", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"shmbus: {tmp_path}/secret.py: Permission denied\n"


@pytest.mark.parametrize("backing", ["memfd", "anonymous"])
def test_the_failure_of_all_consumers_is_one_line(corpus: Path, tmp_path: Path, backing: str) -> None:
    failing = """
        def count_piece(data):
            raise ValueError("no more fingers")
        work.count_piece = count_piece
        """
    words = [*patched(tmp_path, failing), "demo", "--folder", str(corpus), "--backing", backing]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert re.fullmatch(r"shmbus: worker 'consumer-\d' \(pid \d+\) failed: ValueError: no more fingers", line)


# --- signals ---

STUCK = """
def stuck(data):
    print("stuck", flush=True)
    while True:
        signal.pause()
"""
IN_A_WORKER = STUCK + "work.count_piece = stuck\n"
IN_THIS_PROCESS = STUCK + "wordcount.count_in_one_process = lambda *_: stuck(b'')\n"


def until_stuck(process: subprocess.Popen[str]) -> None:
    assert process.stdout is not None
    while "stuck" not in process.stdout.readline():
        assert process.poll() is None


@pytest.mark.parametrize("arrangement", [*METHODS, "anonymous"])
def test_ctrl_c_ends_everybody_once_with_one_line(corpus: Path, tmp_path: Path, arrangement: str) -> None:
    option = "--backing" if arrangement == "anonymous" else "--start-method"
    words = [*patched(tmp_path, IN_A_WORKER), "demo", "--folder", str(corpus), option, arrangement]
    with started(words) as process:
        until_stuck(process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()  # returns when nobody has the pipes any more
        assert (process.returncode, err) == (130, "shmbus: interrupted\n")


def test_ctrl_c_while_one_process_counts_is_one_line_too(corpus: Path, tmp_path: Path) -> None:
    with started([*patched(tmp_path, IN_THIS_PROCESS), "demo", "--folder", str(corpus)]) as process:
        until_stuck(process)
        os.killpg(process.pid, signal.SIGINT)
        _, err = process.communicate()
        assert (process.returncode, err) == (130, "shmbus: interrupted\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_that_end_the_demo_take_the_folder_of_its_files_along(
    corpus: Path, tmp_path: Path, number: signal.Signals
) -> None:
    place = tmp_path / "place"
    place.mkdir()
    words = [*patched(tmp_path, IN_A_WORKER), "demo", "--folder", str(corpus), "--backing", "file"]
    with started(words, TMPDIR=str(place)) as process:
        until_stuck(process)
        (folder,) = place.glob("shmbus-demo-*")
        assert len(list(folder.iterdir())) == 2
        process.send_signal(number)
        _, err = process.communicate()
        assert process.returncode == 128 + number
        assert err == ("shmbus: interrupted\n" if number == signal.SIGINT else "")
    assert list(place.iterdir()) == []


def test_the_folder_of_the_files_is_removed_at_the_end(corpus: Path) -> None:
    before = set(os.listdir(tempfile.gettempdir()))
    assert shmbus("demo", "--folder", corpus, "--backing", "file").returncode == 0
    assert set(os.listdir(tempfile.gettempdir())) == before


# --- pipes and terminals ---


def test_a_reader_that_goes_away_ends_the_demo_quietly(corpus: Path, tmp_path: Path) -> None:
    closing = """
        run = wordcount.run
        def closed(*given):
            sys.stdin.readline()  # the reader has gone by now
            return run(*given)
        wordcount.run = closed
        """
    words = [*patched(tmp_path, closing), "demo", "--folder", str(corpus), "--start-method", "fork"]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        words, env=environment(), stdin=pipe, stdout=pipe, stderr=pipe, text=True
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        process.stdin.write("gone\n")
        process.stdin.close()
        assert process.stderr.read() == ""
        assert process.wait() == 128 + signal.SIGPIPE


def test_output_that_cannot_be_written_is_one_line_and_status_1() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            command("--version"), env=environment(), stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "shmbus: No space left on device\n")


def test_there_need_not_be_any_output(corpus: Path) -> None:
    words = ["sh", "-c", 'exec "$@" >&- 2>&-', "sh", *command("demo", "--folder", corpus)]
    assert subprocess.run(words, env=environment()).returncode == 0


def seen_on_a_terminal(words: list[str], **more: str) -> tuple[int, str]:
    """Run a command on a terminal of its own; its exit status, and all that was written there."""
    outer, inner = pty.openpty()
    parts: list[bytes] = []

    def read() -> None:
        while True:
            try:
                part = os.read(outer, 1 << 16)
            except OSError:  # EIO: nobody has the other end any more
                return
            parts.append(part)

    try:
        with subprocess.Popen(
            words, env=environment(**more), stdin=inner, stdout=inner, stderr=inner
        ) as process:
            os.close(inner)
            reader = threading.Thread(target=read)
            reader.start()
            reader.join()
    finally:
        os.close(outer)
    return process.returncode, b"".join(parts).decode()


def test_a_terminal_gets_a_bar_and_tables(corpus: Path) -> None:
    status, text = seen_on_a_terminal(command("demo", "--folder", corpus))
    assert status == 0
    assert "━" in text
    assert "\x1b[?25l" in text  # the cursor is hidden while the bar is drawn
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # and shown again
    assert "┃" in text
    assert "counting through the bus: " not in text
    assert r"(\b[A-Za-z_]\w*)" in text
    assert "counts equal to those of one process" in text


def test_a_terminal_that_cannot_move_its_cursor_gets_plain_lines(corpus: Path) -> None:
    status, text = seen_on_a_terminal(command("demo", "--folder", corpus), TERM="dumb")
    assert status == 0
    assert "\x1b" not in text
    assert "counting through the bus: 100 %" in text


# --- the service ---


def test_a_broker_says_when_it_is_ready_and_serves_until_a_signal(unique: str, tmp_path: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with started(command("broker", "--bus", unique), XDG_RUNTIME_DIR=str(tmp_path)) as process:
            assert process.stdout is not None
            path = str(tmp_path / "shmbus" / f"{unique}.sock")
            ready = process.stdout.readline()
            assert ready == f"bus {unique!r} is served at {path} by process {process.pid}\n"
            assert os.stat(path).st_mode & 0o777 == 0o600
            with package.connect(socket=path) as bus:
                assert bus.channels() == []
            os.killpg(process.pid, number)
            assert process.communicate() == ("", "")
            assert process.returncode == 0
        assert list(tmp_path.iterdir()) == []


def test_a_second_broker_is_refused_in_one_line_that_names_the_first(unique: str, tmp_path: Path) -> None:
    path = tmp_path / "own.sock"
    words = ["broker", "--bus", unique, "--socket", str(path)]
    with started(command(*words, "--mode", "0660")) as first:
        assert first.stdout is not None
        first.stdout.readline()
        assert os.stat(path).st_mode & 0o777 == 0o660
        second = shmbus(*words)
        assert (second.returncode, second.stdout) == (1, "")
        (line,) = second.stderr.splitlines()
        assert line.startswith(f"shmbus: bus {unique!r} at {path} is held by process {first.pid} (")
        first.terminate()
        first.communicate()
        assert first.returncode == 0
    assert list(tmp_path.iterdir()) == []


def test_the_hint_of_an_error_about_a_missing_broker_is_a_command_that_works(
    unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    with pytest.raises(package.NoBroker) as caught:
        package.connect(unique)
    hint = re.search(r"shmbus (broker --bus \S+)", str(caught.value))
    assert hint
    with started(command(*hint[1].split())) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with package.connect(unique) as bus:
            assert bus.channels() == []
        process.terminate()
