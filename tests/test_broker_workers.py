"""Workers that the broker forks: what they inherit, what they do not, how they end."""

import os
import resource
import signal
import textwrap

import pytest
from broker_help import Running, forked, python, status_of

from shmbus import broker_fork
from shmbus import client as client_module
from shmbus.broker_memory import RingFactory
from shmbus.client import BrokerClient
from shmbus.errors import Refused
from shmbus.settings import Backing, ChannelSettings

ANONYMOUS = ChannelSettings(capacity_bytes=4096, backing=Backing.ANONYMOUS)
MEMFD = ChannelSettings(capacity_bytes=4096)

# A broker of its own process, whose workers run what the payload says: a fork of the test's process would
# have the test in it.
BROKER = """
import sys, types
import anyio
entry = types.ModuleType("entry")
def run(payload, pipe):
    scope = {"pipe": pipe}
    exec(payload.decode(), scope)
    return scope.get("status", 0)
entry.run = run
sys.modules["entry"] = entry
from shmbus.broker_hold import Hold
from shmbus.broker_memory import RingFactory
from shmbus.broker_server import Broker
hold = Hold(sys.argv[1], bus_name="b")
async def main():
    broker = Broker(hold.listener, bus_name="b", factory=RingFactory(), worker_entry="entry:run")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(stop, broker)
        print("ready", flush=True)
        print("ended", await broker.run(), flush=True)
        tasks.cancel_scope.cancel()
async def stop(broker):
    await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True)
    broker.stop("told to")
import anyio.to_thread
anyio.run(main)
hold.release()
"""


@pytest.fixture
def bus(tmp_path):
    path = str(tmp_path / "b.sock")
    with open(tmp_path / "errors", "w") as errors, python(BROKER, path, stderr=errors) as process:
        assert process.stdout.readline() == "ready\n"
        with BrokerClient(path) as client:
            yield client
        process.stdin.close()
        process.wait()


def spawn(client, code):
    """Has a worker forked; its pid, its pidfd, and the read end of its pipe."""
    reader, writer = os.pipe()
    try:
        pid, pidfd = client.spawn(textwrap.dedent(code).encode(), writer)
    finally:
        os.close(writer)
    return pid, pidfd, open(reader)


def run(client, code):
    """Has a worker forked, and returns what it said and its exit code."""
    pid, pidfd, pipe = spawn(client, code)
    with pipe:
        said = pipe.read()
    os.close(pidfd)
    return said, client.exit_code(pid)


def test_a_forked_worker_inherits_the_anonymous_channels(bus):
    bus.make_channel("one", ANONYMOUS)
    bus.make_channel("two", ANONYMOUS)
    code = """
    import os
    from shmbus.client import BrokerClient, inherited
    (path, _), *_ = inherited
    settings, memory = BrokerClient(path).open_channel("one")
    os.write(pipe, memory.identity.hex().encode() + b" ")
    memory.close_channel()
    os.write(pipe, str(len(inherited)).encode())
    """
    identity = next(row["identity"] for row in bus.list() if row["name"] == "one")
    assert run(bus, code) == (f"{identity.hex()} 2", 0)
    # It is one memory: what the worker did is seen in the broker.
    assert bus.stats("one")["ring"]["status"] == "closed"
    assert bus.stats("two")["ring"]["status"] == "open"


def test_a_forked_worker_opens_other_channels_like_anybody(bus):
    bus.make_channel("jobs", MEMFD)
    bus.make_channel("own", ANONYMOUS)
    code = """
    import os
    from shmbus.client import BrokerClient, inherited
    (path, _), *_ = inherited
    client = BrokerClient(path)
    settings, memory = client.open_channel("jobs")
    os.write(pipe, str(sorted(client.list()[0]["processes"]) == [os.getpid()]).encode())
    """
    assert run(bus, code) == ("True", 0)


def test_settings_that_differ_from_the_inherited_ones_are_refused(bus):
    bus.make_channel("one", ANONYMOUS)
    code = """
    import os
    from shmbus.client import BrokerClient, inherited
    from shmbus.errors import Refused
    from shmbus.settings import ChannelSettings
    (path, _), *_ = inherited
    try:
        BrokerClient(path).open_channel("one", ChannelSettings(capacity_bytes=8192))
    except Refused as error:
        os.write(pipe, str(error).encode())
    """
    said, code = run(bus, code)
    assert "4 KiB" in said
    assert code == 0


def test_a_forked_worker_has_none_of_the_brokers_descriptors(bus):
    bus.make_channel("jobs", MEMFD)
    bus.make_channel("one", ANONYMOUS)
    code = """
    import os
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            pass  # the listing's own
    kept = [link for fd, link in sorted(found.items()) if fd > 2 and fd != pipe]
    os.write(pipe, repr(kept).encode())
    """
    said, code = run(bus, code)
    # The eventfd of the anonymous channel is inherited with its memory.
    assert [link for link in eval(said) if "eventfd" not in link] == []
    assert code == 0


def test_a_forked_worker_may_run_event_loops_and_threads_of_its_own(bus):
    code = """
    import asyncio, os, threading
    import anyio
    async def loop():
        await anyio.sleep(0)
        reader, writer = os.pipe()
        os.write(writer, b"x")
        await anyio.wait_readable(reader)
        return await anyio.to_thread.run_sync(threading.get_ident) != threading.get_ident()
    os.write(pipe, str(asyncio.run(loop())).encode() + str(anyio.run(loop)).encode())
    """
    assert run(bus, code) == ("TrueTrue", 0)


def test_a_forked_worker_has_the_default_signals(bus):
    code = """
    import os, signal
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    terminate, interrupt = map(signal.getsignal, (signal.SIGTERM, signal.SIGINT))
    same = (terminate == signal.SIG_DFL, interrupt == signal.default_int_handler)
    os.write(pipe, repr((same, signal.set_wakeup_fd(-1))).encode())
    """
    assert run(bus, code) == ("((True, True), -1)", 0)


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("pass", 0),
        ("status = 7", 7),
        ("raise SystemExit(3)", 3),
        ("raise SystemExit", 0),
        ("raise SystemExit('why')", 1),
        ("import os; os._exit(9)", 9),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9),
    ],
)
def test_the_exit_code_of_a_forked_worker_is_told(bus, code, wanted):
    assert run(bus, code) == ("", wanted)


def test_the_fault_of_a_forked_worker_is_its_own(bus, tmp_path):
    assert run(bus, "1 / 0") == ("", 1)
    assert "ZeroDivisionError" in (tmp_path / "errors").read_text()
    assert run(bus, "pass") == ("", 0)


def test_an_exit_code_is_told_once_and_only_of_forked_workers(bus):
    pid, pidfd, pipe = spawn(bus, "pass")
    pipe.close()
    os.close(pidfd)
    assert bus.exit_code(pid) == 0
    with pytest.raises(Refused, match=f"process {pid} is no worker"):
        bus.exit_code(pid)


def test_the_pidfd_of_a_forked_worker_is_its_own(bus):
    pid, pidfd, pipe = spawn(bus, "import os, signal; os.write(pipe, b'up'); signal.pause()")
    with pipe:
        assert pipe.read(2) == "up"
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
    assert bus.exit_code(pid) == -signal.SIGKILL
    os.close(pidfd)


def test_a_forked_worker_may_open_no_more_than_before_the_broker_raised_its_own_limit(tmp_path):
    path = str(tmp_path / "b.sock")
    raised = BROKER.replace(
        "hold = Hold", "from shmbus.broker_fork import *; raise_descriptor_limit(); hold = Hold"
    )

    def lower():
        resource.setrlimit(resource.RLIMIT_NOFILE, (512, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))

    with python(raised, path, preexec_fn=lower) as process:
        assert process.stdout.readline() == "ready\n"
        assert resource.prlimit(process.pid, resource.RLIMIT_NOFILE)[0] > 512
        with BrokerClient(path) as client:
            code = "import os, resource; os.write(pipe, str(resource.getrlimit(7)[0]).encode())"
            assert run(client, code) == ("512", 0)
        process.stdin.close()
        process.wait()


def test_a_worker_sees_only_the_channels_of_its_time(bus):
    bus.make_channel("one", ANONYMOUS)
    code = "from shmbus.client import inherited; import os; os.write(pipe, str(len(inherited)).encode())"
    assert run(bus, code) == ("1", 0)
    bus.make_channel("two", ANONYMOUS)
    assert run(bus, code) == ("2", 0)
    bus.remove("one")
    assert run(bus, code) == ("1", 0)


def test_forked_workers_go_with_their_broker(tmp_path):
    path = str(tmp_path / "b.sock")
    with python(BROKER, path) as process:
        assert process.stdout.readline() == "ready\n"
        with BrokerClient(path) as client:
            code = """
            import os, signal
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            os.write(pipe, b"up")
            signal.pause()
            """
            _, pidfd, pipe = spawn(client, code)
            with pipe:
                assert pipe.read(2) == "up"
                process.stdin.close()
                assert pipe.read() == ""
            os.close(pidfd)
        assert process.wait() == 0


def test_a_broker_has_so_many_workers_and_no_more(tmp_path, monkeypatch):
    from shmbus import limits

    path = str(tmp_path / "b.sock")
    monkeypatch.setattr(limits, "MAX_CLIENTS", 2)
    # The limit is looked at before the fork, so this may be a broker in this process.
    monkeypatch.setattr("shmbus.broker_workers.fork_worker", lambda *_: forked(signal.pause))
    with Running(path, RingFactory()), BrokerClient(path) as client:
        children = [client.spawn(b"", 1) for _ in range(2)]
        with pytest.raises(Refused, match=r"forked 2 workers, the limit \(MAX_CLIENTS\)"):
            client.spawn(b"", 1)
        for pid, pidfd in children:
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            os.close(pidfd)
            assert client.exit_code(pid) == -signal.SIGKILL
        pid, pidfd = client.spawn(b"", 1)
        signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)
        assert client.exit_code(pid) == -signal.SIGKILL


def test_closing_all_but_some_descriptors_closes_the_others():
    def work():
        keep, lose = os.open("/dev/null", os.O_RDONLY), os.open("/dev/null", os.O_RDONLY)
        broker_fork._close_all_but({0, 1, 2, keep})
        os.fstat(keep)
        try:
            os.fstat(lose)
        except OSError:
            return
        raise AssertionError

    assert status_of(forked(work)) == 0


def test_only_a_process_that_a_broker_forked_has_inherited_anything():
    assert client_module.inherited == {}
