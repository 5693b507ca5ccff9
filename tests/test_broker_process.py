"""Broker processes: the service and the embedded one, how they start, what ends them, what they leave."""

import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from broker_help import Bare, forked, python, status_of

import shmbus
from shmbus import broker, broker_owner, places
from shmbus.broker import start_embedded
from shmbus.client import BrokerClient, socket_path
from shmbus.errors import NoBroker, Refused
from shmbus.settings import ChannelSettings

SMALL = ChannelSettings(capacity_bytes=4096)

SERVICE = """
import sys
from shmbus.broker import serve
from shmbus.errors import Refused
try:
    ready = lambda path: print("ready", path, flush=True)
    print("ended", serve(*sys.argv[2:], bus_name=sys.argv[1], on_ready=ready), flush=True)
except Refused as error:
    print("refused", error, flush=True)
"""


# The service ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_service_ends_well_at_a_signal_and_leaves_nothing(unique, number):
    path = socket_path(unique)
    with python(SERVICE, unique) as process:
        assert process.stdout.readline() == f"ready {path}\n"
        with BrokerClient(path) as client:
            client.make_channel("jobs", SMALL)
            process.send_signal(number)
            assert process.stdout.readline() == f"ended {number.name} arrived\n"
            assert process.wait() == 0
    assert not os.path.exists(os.path.dirname(path))


def test_the_folder_of_sockets_stays_while_another_bus_uses_it(unique):
    with python(SERVICE, unique) as one, python(SERVICE, unique + "x") as two:
        one.stdout.readline()
        two.stdout.readline()
        one.terminate()
        one.wait()
        with BrokerClient(socket_path(unique + "x")) as client:
            assert client.list() == []
        two.terminate()
        two.wait()
    assert not os.path.exists(os.path.dirname(socket_path(unique)))


def test_a_signal_that_comes_before_the_loop_runs_is_not_lost(unique):
    path = socket_path(unique)
    code = SERVICE.replace('print("ready", path, flush=True)', "os.kill(os.getpid(), 15)").replace(
        "import sys", "import os, sys"
    )
    with python(code, unique) as process:
        assert process.stdout.readline() == "ended SIGTERM arrived\n"
    assert not os.path.exists(path)


def test_a_second_service_on_a_bus_is_refused_by_naming_its_holder(unique):
    with python(SERVICE, unique) as first, python(SERVICE, unique) as second:
        # They start at the same time; either may win.
        lines = [process.stdout.readline() for process in (first, second)]
        winner, loser = (first, second) if lines[0].startswith("ready") else (second, first)
        said = lines[1] if winner is first else lines[0]
        assert said.startswith("refused")
        assert unique in said
        if "only just starting" not in said:
            assert f"process {winner.pid} " in said
        assert loser.wait() == 0
        with python(SERVICE, unique) as third:
            said = third.stdout.readline()
        assert f"held by process {winner.pid} (" in said
        assert "serve" in said  # its command line
        assert "since 2" in said
        winner.terminate()
        assert winner.wait() == 0


def test_a_stale_socket_is_recovered_after_kill_9(unique):
    path = socket_path(unique)
    with python(SERVICE, unique) as first:
        first.stdout.readline()
        first.kill()
        first.wait()
        assert os.path.exists(path)
        with pytest.raises(NoBroker, match=f"shmbus broker --bus {unique}"):
            BrokerClient(path).list()
        with python(SERVICE, unique) as second:
            assert second.stdout.readline() == f"ready {path}\n"
            with BrokerClient(path) as client:
                assert client.list() == []
                assert client.broker_pid == second.pid
            second.terminate()
            second.wait()
    assert not os.path.exists(path)


def test_a_service_may_have_a_path_of_its_own(unique, tmp_path):
    path = str(tmp_path / "own")
    with python(SERVICE, unique, path) as process:
        assert process.stdout.readline() == f"ready {path}\n"
        with BrokerClient(path) as client:
            assert client.connect().bus_name == unique
        process.terminate()
        process.wait()
    assert list(tmp_path.iterdir()) == []


# The embedded broker ----------------------------------------------------------------------------------------


@pytest.fixture
def embedded():
    with start_embedded() as running:
        yield running


def folder_of(running):
    return os.path.dirname(running.path)


def test_an_embedded_broker_answers_and_is_gone_with_its_folder_when_it_is_closed():
    running = start_embedded(bus_name="mine")
    with BrokerClient(running.path) as client:
        assert (client.connect().bus_name, client.broker_pid) == ("mine", running.pid)
        client.make_channel("jobs", SMALL)
    assert os.listdir(folder_of(running)) != []
    assert os.stat(folder_of(running)).st_mode & 0o777 == 0o700
    running.close()
    running.close()
    assert running.process.returncode == 0
    assert not os.path.exists(folder_of(running))


def test_an_embedded_broker_is_out_of_reach_of_the_terminals_ctrl_c(embedded):
    assert os.getsid(embedded.pid) == embedded.pid != os.getsid(0)


def test_an_embedded_broker_writes_no_list_of_channels(embedded):
    with BrokerClient(embedded.path) as client:
        client.make_channel("jobs", SMALL)
    assert sorted(os.listdir(folder_of(embedded))) == ["bus.lock", "bus.sock"]


def test_its_owner_may_also_shut_it_down_by_request(embedded):
    with BrokerClient(embedded.path) as client:
        client.shutdown()
    embedded.process.wait()
    assert not os.path.exists(folder_of(embedded))


def test_nobody_but_its_owner_may_shut_it_down(embedded):
    def ask():
        with pytest.raises(Refused, match=f"its owner, process {os.getppid()}, only"):
            BrokerClient(embedded.path).shutdown()

    assert status_of(forked(ask)) == 0
    with BrokerClient(embedded.path) as client:
        assert client.list() == []


def test_a_forked_child_of_the_owner_neither_ends_the_broker_nor_keeps_it_alive():
    running = start_embedded()
    reader, writer = os.pipe()

    def live():
        running.close()  # it is not the child's to close
        os.write(writer, b"x")
        signal.pause()

    child = forked(live)
    os.read(reader, 1)
    with BrokerClient(running.path) as client:
        assert client.list() == []
    running.close()
    assert not os.path.exists(folder_of(running))
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    os.close(reader)
    os.close(writer)


OWNER = """
import os, subprocess, sys
from shmbus.broker import start_embedded
running = start_embedded(grace_seconds=float(sys.argv[1]))
keeper = None
if len(sys.argv) > 2:  # a child that has the lifeline too, and outlives us
    lifeline = running._lifeline.fileno()
    keeper = subprocess.Popen(["sleep", "1000"], pass_fds=[lifeline], stdout=subprocess.DEVNULL)
print(running.path, running.pid, keeper.pid if keeper else 0, flush=True)
sys.stdin.readline()
"""

WORKER = """
import os, signal, sys
from shmbus import client
client.become_worker()
own = client.BrokerClient(sys.argv[1])
own.connect()
if sys.argv[2] == "deaf":
    signal.signal(signal.SIGTERM, lambda *_: print("asked", flush=True))
print("at work", flush=True)
own.close()
while True:
    signal.pause()
"""


@pytest.fixture
def owner():
    with python(OWNER, 3) as process:
        path, pid, _ = process.stdout.readline().split()
        pidfd = os.pidfd_open(int(pid))
        yield process, path, pidfd
        os.close(pidfd)


def await_end_of(pidfd):
    select.select([pidfd], [], [])


def test_an_embedded_broker_ends_when_its_owner_is_killed(owner):
    process, path, pidfd = owner
    process.kill()
    await_end_of(pidfd)
    assert not os.path.exists(os.path.dirname(path))


def test_an_embedded_broker_ends_with_a_killed_owner_whose_child_has_the_lifeline():
    with python(OWNER, 3, "keeper") as process:
        path, pid, keeper = process.stdout.readline().split()
        pidfd = os.pidfd_open(int(pid))
        process.kill()
        await_end_of(pidfd)
        os.close(pidfd)
        assert not os.path.exists(os.path.dirname(path))
        os.kill(int(keeper), signal.SIGKILL)


def test_the_workers_of_a_killed_owner_are_ended(owner):
    process, path, pidfd = owner
    with python(WORKER, path, "obedient") as worker:
        assert worker.stdout.readline() == "at work\n"
        process.kill()
        assert worker.wait() == -signal.SIGTERM
    await_end_of(pidfd)


def test_a_worker_that_does_not_listen_is_killed_after_the_grace():
    with python(OWNER, 1.0) as process:
        path, pid, _ = process.stdout.readline().split()
        pidfd = os.pidfd_open(int(pid))
        with python(WORKER, path, "deaf") as worker:
            assert worker.stdout.readline() == "at work\n"
            process.kill()
            assert worker.stdout.readline() == "asked\n"
            assert worker.wait() == -signal.SIGKILL
        await_end_of(pidfd)
        os.close(pidfd)
        assert not os.path.exists(os.path.dirname(path))


def test_a_stopped_worker_is_ended_too(owner):
    process, path, pidfd = owner
    with python(WORKER, path, "obedient") as worker:
        assert worker.stdout.readline() == "at work\n"
        worker.send_signal(signal.SIGSTOP)
        process.kill()
        assert worker.wait() == -signal.SIGTERM
    await_end_of(pidfd)


def test_whoever_is_no_worker_outlives_the_bus(owner):
    process, path, pidfd = owner
    with python(WORKER.replace("client.become_worker()", ""), path, "obedient") as bystander:
        assert bystander.stdout.readline() == "at work\n"
        process.kill()
        await_end_of(pidfd)
        assert bystander.poll() is None


def test_a_signal_ends_the_embedded_broker_and_not_the_workers_of_a_living_owner(owner):
    process, path, pidfd = owner
    with python(WORKER, path, "obedient") as worker:
        assert worker.stdout.readline() == "at work\n"
        signal.pidfd_send_signal(pidfd, signal.SIGTERM)
        await_end_of(pidfd)
        assert worker.poll() is None
        assert process.poll() is None


def test_the_owner_removes_what_a_killed_broker_left():
    running = start_embedded()
    running.process.kill()
    running.process.wait()
    assert os.path.exists(running.path)
    running.close()
    assert not os.path.exists(folder_of(running))


def test_the_callers_main_module_is_not_run_again(tmp_path):
    script = tmp_path / "program.py"
    # No `if __name__ == "__main__"`, and names that would shadow the library's if the folder were searched.
    script.write_text(
        textwrap.dedent("""
        import sys
        print("running", flush=True)
        from shmbus.broker import start_embedded
        from shmbus.client import BrokerClient
        with start_embedded() as running, BrokerClient(running.path) as client:
            print(client.list(), flush=True)
        """)
    )
    code = "import runpy, sys; runpy.run_path(sys.argv[1], run_name='__main__')"
    with python(code, script, cwd=tmp_path) as process:
        assert process.stdout.read() == "running\n[]\n"
        assert process.wait() == 0


def test_modules_in_the_current_folder_are_not_imported(tmp_path):
    (tmp_path / "anyio.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "msgpack.py").write_text("raise SystemExit('the wrong one')")
    code = """
import sys
sys.path.remove("")
from shmbus.broker import start_embedded
from shmbus.client import BrokerClient
with start_embedded() as running, BrokerClient(running.path) as client:
    print(client.list(), flush=True)
"""
    with python(code, cwd=tmp_path) as process:
        assert process.stdout.read() == "[]\n"


def test_a_broker_finds_its_modules_where_its_owner_found_them():
    # An interpreter without site-packages and environment, whose program adds to sys.path by itself. (An
    # editable installation is found by a hook of site-packages, so its folder is named too.)
    code = f"""
import sys
sys.path += {[*filter(None, sys.path), str(Path(shmbus.__file__).parents[1])]!r}
from shmbus.broker import start_embedded
from shmbus.client import BrokerClient
with start_embedded() as running, BrokerClient(running.path) as client:
    print(client.list())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code], check=True, capture_output=True, text=True
    )
    assert done.stdout == "[]\n"


def test_a_broker_that_finds_no_place_says_so_to_its_owner(monkeypatch, tmp_path):
    long = tmp_path / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(Refused, match=r"bytes, and the limit is 107"):
        start_embedded()
    assert list(long.iterdir()) == []


def test_a_broker_that_cannot_start_is_no_broker(monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(NoBroker, match="ended with status 1 before it was ready"):
        start_embedded()
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(NoBroker, match="No such file"):
        start_embedded()
    monkeypatch.setattr(sys, "executable", None)
    with pytest.raises(NoBroker, match=r"sys\.executable"):
        start_embedded()


def test_a_broker_that_does_nothing_is_killed_at_the_deadline(monkeypatch, tmp_path):
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec sleep 1000\n")
    mute.chmod(0o700)
    monkeypatch.setattr(sys, "executable", str(mute))
    monkeypatch.setattr(broker_owner, "START_SECONDS", 0.05)
    with pytest.raises(NoBroker, match=r"not ready after 0\.05"):
        start_embedded()


def test_an_owner_that_dies_while_its_broker_starts_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    own, its = socket.socketpair()
    child = forked(signal.pause)
    owner = os.pidfd_open(child)
    process = subprocess.Popen(
        broker_owner._command_line("b", its.fileno(), owner, 3.0), pass_fds=(its.fileno(), owner)
    )
    its.close()
    own.close()
    os.kill(child, signal.SIGKILL)
    assert status_of(child) == -signal.SIGKILL
    os.close(owner)
    assert process.wait() == 0
    assert list(tmp_path.iterdir()) == []


def test_the_module_says_what_to_run_instead(capsys):
    assert broker.main(["--help"]) == 2
    assert "shmbus broker --bus" in capsys.readouterr().err


def test_the_module_runs_a_service_too(unique):
    path = socket_path(unique)
    code = "import runpy, sys; sys.argv[0] = 'broker'; runpy.run_module('shmbus.broker', run_name='__main__')"
    with python(code, "--bus", unique) as process:
        with BrokerClient(path) as client:
            while process.poll() is None:
                try:
                    assert client.list() == []
                    break
                except NoBroker:
                    pass
        process.terminate()
        assert process.wait() == 0
    assert not os.path.exists(path)


def test_the_server_is_not_imported_before_it_is_needed():
    code = "import sys, shmbus.broker; print(sorted({'anyio', 'asyncio'} & set(sys.modules)))"
    with python(code) as process:
        assert process.stdout.read() == "[]\n"


def test_a_bare_client_of_an_embedded_bus_is_told_that_it_is_one(embedded):
    with Bare(embedded.path, hello=False) as client:
        assert client.hello().fields["embedded"] is True
    assert places.check_socket_path(embedded.path) == embedded.path
