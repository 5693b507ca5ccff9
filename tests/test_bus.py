"""The bus as people meet it: channels, workers, and leaving; under every start method."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import pytest

import shmbus
from shmbus import Backing, Bus, Channel, Consumer, Producer, Refused, WorkerFailed, connect
from shmbus.bus_workers import BusSource, ends_among

METHODS = ["fork", "spawn", "forkserver"]
LITTLE = "4 KiB"
"""A capacity that is soon used up."""

pytestmark = pytest.mark.patience(60)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Any:
    return request.param


@pytest.fixture
def named_bus(unique: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a bus that a broker serves, as a service would."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    say = "lambda path: print(path, flush=True)"
    serve = f"from shmbus.broker import serve; serve(bus_name={unique!r}, on_ready={say})"
    with subprocess.Popen(
        [sys.executable, "-c", serve], stdout=subprocess.PIPE, text=True, env=environment()
    ) as broker:
        assert broker.stdout is not None
        assert broker.stdout.readline()
        yield unique
        broker.terminate()


def environment(**more: str) -> dict[str, str]:
    path = os.pathsep.join([os.path.dirname(__file__), os.path.dirname(shmbus.__path__[0])])
    return {**os.environ, "PYTHONPATH": path, **more}


# --- targets ---


def add_up(rx: Consumer, results: Producer) -> None:
    with rx, results:
        results.send(sum(rx))


def count_to(number: int, tx: Producer) -> None:
    with tx:
        for value in range(number):
            tx.send(value)


def count_into(ends: dict[str, Any]) -> None:
    for tx in ends["nested"]:
        count_to(10, tx)


def fail_after(records: int, rx: Consumer) -> NoReturn:
    with rx:
        for _ in range(records):
            rx.recv()
        raise ValueError("bad record")


def take(records: int, rx: Consumer) -> None:
    with rx:
        for _ in range(records):
            rx.recv()


def drain(rx: Consumer) -> None:
    with rx:
        for _ in rx:
            pass


def fill(tx: Producer) -> None:
    """Send more than fits."""
    count_to(1000, tx)


def for_ever(rx: Consumer, ready: Producer) -> None:
    with ready:
        ready.send(os.getpid())
    drain(rx)


def fail_at_first(marker: str, tx: Producer) -> None:
    with tx:
        if not os.path.exists(marker):
            open(marker, "w").close()
            raise ValueError("not yet")
        tx.send("done")


def send_its_pid(channel: Channel) -> None:
    with channel.producer() as tx:
        tx.send(os.getpid())


def kill_yourself(rx: Consumer) -> None:
    with rx:
        rx.recv()
        signal.raise_signal(signal.SIGKILL)


# --- the ten lines ---


def test_the_first_ten_lines_of_the_design(method: Any) -> None:
    with Bus() as bus:
        jobs, sums = bus.channel("jobs", capacity="64 MiB"), bus.channel("sums")
        bus.spawn(add_up, jobs.consumer(group="workers"), sums.producer(), count=4, start_method=method)
        with jobs.producer() as tx:
            for item in range(10_000):
                tx.send(item)
        assert sum(sums.consumer()) == sum(range(10_000))
    assert [(worker.state, worker.exit_code) for worker in bus.workers] == [("ended", 0)] * 4


def test_workers_send_to_workers_and_the_channel_ends_after_the_last(method: Any) -> None:
    with Bus() as bus:
        jobs, sums = bus.channel("jobs", capacity=LITTLE), bus.channel("sums")
        bus.spawn(add_up, jobs.consumer(), sums.producer(), count=2, start_method=method)
        bus.spawn(count_to, 1000, jobs.producer(), count=3, start_method=method)
        assert sum(sums.consumer()) == 3 * sum(range(1000))


@pytest.mark.parametrize("given", [None, *METHODS])
def test_workers_share_anonymous_memory_that_the_broker_has_made(given: Any) -> None:
    with Bus() as bus:
        jobs, sums = bus.channel("jobs", capacity=LITTLE, backing="anonymous"), bus.channel("sums")
        bus.spawn(count_to, 1000, jobs.producer(), count=3, start_method=given)
        bus.spawn(add_up, jobs.consumer(), sums.producer(), count=2, start_method=given)
        assert sum(sums.consumer()) == 3 * sum(range(1000))


def test_anonymous_memory_is_not_for_the_program_itself() -> None:
    with Bus() as bus, pytest.raises(Refused, match=r"bus\.spawn"):
        bus.channel("jobs", backing="anonymous").producer().send(1)


@pytest.mark.parametrize("backing", ["memfd", "shm", "file"])
def test_every_backing_works_the_same(backing: Any, tmp_path: Path) -> None:
    with Bus() as bus:
        directory = tmp_path if backing == "file" else None
        jobs, sums = bus.channel("jobs", backing=backing, directory=directory), bus.channel("sums")
        bus.spawn(add_up, jobs.consumer(), sums.producer())
        with jobs.producer() as tx:
            tx.send_many(range(100))
        assert list(sums.consumer()) == [sum(range(100))]


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_ends_may_be_keywords_nested_or_bound_to_a_partial(method: Any) -> None:
    with Bus() as bus:
        channel = bus.channel("numbers")
        rx = channel.consumer()
        bus.spawn(count_to, 10, kwargs={"tx": channel.producer()}, start_method=method)
        bus.spawn(count_into, {"nested": [channel.producer()]}, start_method=method)
        bus.spawn(partial(count_to, 10, channel.producer()), start_method=method)
        assert sum(rx) == 3 * sum(range(10))


def test_ends_are_found_wherever_arguments_hold_them() -> None:
    with Bus() as bus:
        channel = bus.channel("x")
        tx, rx = channel.producer(), channel.consumer()
        values = [1, tx, [rx, ("a", {"b": tx})], {"c": channel}, partial(print, rx, end=tx), "text", {3}]
        assert list(ends_among(values)) == [tx, rx, tx, channel, rx, tx]
        endless: list[Any] = [tx]
        endless.append(endless)
        assert set(ends_among(endless)) == {tx}


def test_a_whole_channel_can_be_given_to_a_worker(method: Any) -> None:
    with Bus() as bus:
        channel = bus.channel("pids")
        (worker,) = bus.spawn(send_its_pid, channel, start_method=method)
        assert channel.consumer().recv() == worker.pid


# --- failures ---


def test_a_failed_worker_is_raised_on_leaving_with_its_traceback(method: Any) -> None:
    with pytest.raises(WorkerFailed, match="ValueError: bad record") as caught, Bus() as bus:  # noqa: PT012
        jobs = bus.channel("jobs", capacity=LITTLE)
        bus.spawn(fail_after, 0, jobs.consumer(), start_method=method, name="bad")
        bus.spawn(drain, jobs.consumer(), start_method=method)
        with jobs.producer() as tx:
            tx.send_many(range(1000))  # the other one takes them all
    assert caught.value.name == "bad-1"
    assert "fail_after" in (caught.value.traceback_text or "")


def test_send_raises_when_every_worker_of_the_group_has_failed(method: Any) -> None:
    with pytest.raises(WorkerFailed, match="ValueError: bad record") as caught, Bus() as bus:  # noqa: PT012
        jobs = bus.channel("jobs", capacity=LITTLE)
        bus.spawn(fail_after, 2, jobs.consumer(group="workers"), count=2, start_method=method)
        with jobs.producer() as tx:
            while True:
                tx.send("x" * 100)
    assert any(
        "test_bus.py" in str(entry.path) and "send" in str(entry.statement) for entry in caught.traceback
    )


def test_send_raises_when_every_worker_of_an_anonymous_channel_has_failed() -> None:
    with pytest.raises(WorkerFailed, match="bad record"), Bus() as bus:  # noqa: PT012
        jobs = bus.channel("jobs", capacity=LITTLE, backing="anonymous")
        bus.spawn(fail_after, 2, jobs.consumer())
        bus.spawn(fill, jobs.producer())  # would wait for ever


def test_two_spawns_may_serve_one_group_and_one_of_them_may_fail() -> None:
    with pytest.raises(WorkerFailed, match="bad record"), Bus() as bus:  # noqa: PT012
        jobs = bus.channel("jobs", capacity=LITTLE)
        bus.spawn(fail_after, 0, jobs.consumer(group="workers"))
        bus.spawn(drain, jobs.consumer(group="workers"))
        with jobs.producer() as tx:
            tx.send_many(range(1000))


def test_a_killed_worker_is_a_failure_and_its_siblings_go_on(
    method: Any, await_end: Callable[[int], None]
) -> None:
    with pytest.raises(WorkerFailed, match="was killed by SIGKILL"), Bus() as bus:  # noqa: PT012
        jobs, go = bus.channel("jobs", capacity=LITTLE), bus.channel("go")
        (doomed,) = bus.spawn(kill_yourself, jobs.consumer(), start_method=method)
        bus.spawn(drain_later, go.consumer(), jobs.consumer(), start_method=method)
        with jobs.producer() as tx, go.producer() as start:
            tx.send(0)
            await_end(doomed.pid)
            start.send("go")
            tx.send_many(range(1000))


def drain_later(go: Consumer, rx: Consumer) -> None:
    with go:
        go.recv()
    drain(rx)


def test_a_killed_producer_ends_the_channel_for_its_consumers() -> None:
    with pytest.raises(WorkerFailed, match="SIGKILL"), Bus() as bus:  # noqa: PT012
        jobs, go = bus.channel("jobs"), bus.channel("go")
        bus.spawn(die_sending, jobs.producer(), go.consumer())
        with go.producer() as tx:
            tx.send("go")
        assert list(jobs.consumer()) == [1]


def die_sending(tx: Producer, go: Consumer) -> None:
    with tx, go:
        go.recv()
        tx.send(1)
        signal.raise_signal(signal.SIGKILL)


def test_an_exception_in_the_body_ends_the_workers_and_propagates(method: Any) -> None:
    with pytest.raises(ZeroDivisionError) as caught, Bus() as bus:  # noqa: PT012
        jobs, ready = bus.channel("jobs"), bus.channel("ready")
        bus.spawn(for_ever, jobs.consumer(), ready.producer(), count=2, start_method=method)
        with jobs.producer(), ready.consumer() as rx:
            assert {rx.recv(), rx.recv()} == {worker.pid for worker in bus.workers}
            raise ZeroDivisionError
    assert not hasattr(caught.value, "__notes__")
    assert [worker.state for worker in bus.workers] == ["ended", "ended"]


def test_a_restarted_producer_stays_registered_meanwhile(method: Any, tmp_path: Path) -> None:
    with Bus() as bus:
        channel = bus.channel("results")
        args = str(tmp_path / "marker"), channel.producer()
        (worker,) = bus.spawn(fail_at_first, *args, start_method=method, restart="on-failure")
        assert list(channel.consumer()) == ["done"]
    assert worker.restarts == 1


# --- leaving never waits for somebody who will not come ---


def test_leaving_closes_what_the_program_has_left_open() -> None:
    with Bus() as bus:
        jobs = bus.channel("jobs")
        bus.spawn(drain, jobs.consumer())
        jobs.producer().send(1)  # never closed


def test_leaving_ends_consumers_for_whom_there_never_was_a_producer() -> None:
    with Bus() as bus:
        bus.spawn(drain, bus.channel("jobs").consumer())


def test_leaving_closes_a_channel_that_ends_only_when_closed() -> None:
    with Bus() as bus:
        jobs = bus.channel("jobs", end="closed")
        bus.spawn(drain, jobs.consumer())
        bus.spawn(count_to, 100, jobs.producer())


def test_leaving_frees_producers_whose_records_the_program_does_not_want_any_more() -> None:
    with Bus() as bus:
        numbers = bus.channel("numbers", capacity=LITTLE)
        bus.spawn(fill, numbers.producer())
        with numbers.consumer() as rx:
            assert rx.recv() == 0


def test_leaving_frees_producers_whose_consumers_have_returned() -> None:
    with Bus() as bus:
        numbers = bus.channel("numbers", capacity=LITTLE)
        bus.spawn(fill, numbers.producer(), count=2)
        bus.spawn(take, 3, numbers.consumer(), count=2)


def test_leaving_frees_producers_that_nobody_ever_received_from() -> None:
    with Bus() as bus:
        bus.spawn(fill, bus.channel("numbers", capacity=LITTLE).producer())


def test_leaving_an_own_bus_takes_its_broker_and_its_folder_along() -> None:
    with Bus() as bus:
        bus.channel("x").producer().send(1)
        assert bus._broker is not None
        pid, folder = bus._broker.pid, os.path.dirname(bus.path)
        assert os.path.isdir(folder)
    assert not os.path.exists(folder)
    assert not os.path.exists(f"/proc/{pid}")
    assert bus.closed
    bus.close()


@pytest.mark.parametrize(
    "use",
    [
        lambda bus: bus.channel("x"),
        lambda bus: bus.spawn(print),
        lambda bus: bus.channels(),
        lambda bus: bus.stats(),
        lambda bus: bus.remove("x"),
        lambda bus: bus.__enter__(),
    ],
)
def test_a_bus_that_was_left_says_so(use: Callable[[Bus], object]) -> None:
    with Bus() as bus:
        pass
    with pytest.raises(shmbus.Closed, match="closed by this process"):
        use(bus)


def test_nothing_is_left_behind(method: Any) -> None:
    def run() -> None:
        with Bus() as bus:
            numbers = bus.channel("numbers")
            bus.spawn(count_to, 10, numbers.producer(), start_method=method)
            assert list(numbers.consumer()) == list(range(10))

    run()  # starts what multiprocessing keeps for the rest of the program
    before = sorted(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")
    run()
    assert (sorted(os.listdir("/proc/self/fd")), os.listdir("/dev/shm")) == before


# --- channels ---


def test_a_channel_gets_defaults_and_is_the_same_when_asked_for_again() -> None:
    with Bus() as bus:
        channel = bus.channel("x")
        assert channel.settings == shmbus.ChannelSettings()
        assert bus.channel("x") is channel
        assert bus.channel("x", capacity="64 MiB", hold=True) is channel
        assert bus.channels() == ["x"]


def test_settings_that_differ_are_refused_by_name_and_others_do_not_matter() -> None:
    with Bus() as bus:
        channel = bus.channel("x", capacity="1 MiB", groups=["a", "b"], end="closed", backing=Backing.SHM)
        assert channel.settings.capacity_bytes == 1 << 20
        assert channel.settings.groups == ("a", "b")
        assert bus.channel("x", end="closed") is channel
        with pytest.raises(Refused, match="capacity is 1 MiB, not 2 MiB") as caught:
            bus.channel("x", capacity="2 MiB", end="closed")
        assert "groups" not in str(caught.value)
        assert "backing" not in str(caught.value)


def test_impossible_settings_are_refused() -> None:
    with Bus() as bus:
        for wrong in ({"capacity": "5 MiB"}, {"end": "never"}, {"codec": "morse"}, {"groups": "abc"}):
            with pytest.raises(Refused):
                bus.channel("x", **wrong)  # type: ignore[arg-type]
        with pytest.raises(Refused, match="cannot hold"):
            bus.channel("a/b")
        assert bus.channels() == []


def test_a_removed_channel_is_closed_for_everybody_and_its_name_is_free() -> None:
    with Bus() as bus:
        channel = bus.channel("x")
        with channel.producer() as tx:
            tx.send(1)
            bus.remove(channel)
            with pytest.raises(shmbus.Closed):
                tx.send(2)
        assert bus.channels() == []
        assert bus.channel("x", capacity=LITTLE) is not channel
        bus.remove("x")
        with pytest.raises(Refused, match="no channel"):
            bus.remove("x")


def test_stats_tell_of_broker_channels_and_workers() -> None:
    with Bus() as bus:
        channel = bus.channel("x")
        bus.spawn(drain, channel.consumer(), name="reader")
        with channel.producer() as tx:
            tx.send(1)
            stats = bus.stats()
            assert stats["broker"]["embedded"]
            assert stats["channels"]["x"]["ring"]["capacity_bytes"] == 64 << 20
            assert stats["workers"] == [
                {"name": "reader-1", "pid": bus.workers[0].pid, "state": "running", "restarts": 0}
            ]


def test_a_bus_does_not_pickle_and_says_what_does() -> None:
    with Bus() as bus:
        with pytest.raises(TypeError, match=r"shmbus\.connect"):
            pickle.dumps(bus)
        channel = pickle.loads(pickle.dumps(bus.channel("x")))
        with channel.producer() as tx:
            tx.send("over there")
        assert bus.channel("x").consumer().recv() == "over there"
        channel.detach()


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_end_that_is_attached_here_is_not_given_to_a_worker(method: Any) -> None:
    with Bus() as bus, bus.channel("x").producer() as tx:
        with pytest.raises(Refused, match="attached in process"):
            bus.spawn(count_to, 1, tx, start_method=method)
        assert bus.workers == []


def test_a_spawn_that_is_refused_leaves_no_ticket_behind() -> None:
    with Bus() as bus:
        channel = bus.channel("x")
        with pytest.raises(Refused, match="pickled"):
            bus.spawn(lambda tx: None, channel.producer(), count=3, start_method="spawn")
        with channel.producer() as tx:
            tx.send(1)
        assert list(channel.consumer()) == [1]  # it ends: no producer is waited for


# --- other processes ---


def test_a_forked_child_uses_the_bus_and_leaves_it_as_it_is() -> None:
    with Bus() as bus:
        channel = bus.channel("x")
        with channel.producer() as own:
            own.send("parent")
            pid = os.fork()
            if pid == 0:
                status = 1
                try:
                    with bus, bus.channel("x").producer() as tx:
                        tx.send("child")
                        bus.channel("y", capacity=LITTLE)
                    status = 0
                finally:
                    os._exit(status)
            assert os.waitpid(pid, 0)[1] == 0
            own.send("parent again")
        assert list(channel.consumer()) == ["parent", "child", "parent again"]
        assert bus.channels() == ["x", "y"]


def test_a_process_of_multiprocessing_takes_an_end_too(method: Any) -> None:
    context: Any = multiprocessing.get_context(method)
    with Bus() as bus:
        channel = bus.channel("x")
        process = context.Process(target=count_to, args=(10, channel.producer()))
        process.start()
        assert list(channel.consumer()) == list(range(10))
        process.join()
        assert process.exitcode == 0
        process.close()


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_workers_of_a_worker_are_its_own(method: Any) -> None:
    with Bus() as bus:
        channel = bus.channel("x")
        bus.spawn(start_another, bus.path, channel.producer(), start_method=method)
        assert sorted(channel.consumer()) == ["child", "grandchild"]


def start_another(path: str, tx: Producer) -> None:
    with tx, connect(socket=path) as bus:
        tx.send("child")
        bus.spawn(say, bus.channel("x").producer(), "grandchild")


def say(tx: Producer, word: str) -> None:
    with tx:
        tx.send(word)


def test_joining_a_bus_that_nobody_serves_is_told_how_to_start_it(unique: str) -> None:
    with pytest.raises(shmbus.NoBroker, match=f"shmbus broker --bus {unique}"):
        connect(unique)


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_joined_bus_goes_on_when_it_is_left(named_bus: str, method: Any) -> None:
    with connect(named_bus) as bus:
        channel = bus.channel("x")
        assert channel.settings.end == "closed"
        (worker,) = bus.spawn(count_to, 10, channel.producer(), start_method=method)
    assert worker.state == "ended"
    with connect(socket=bus.path) as again:
        rx = again.channel("x").consumer()
        assert [rx.recv() for _ in range(10)] == list(range(10))
        again.channel("x").close()
        assert list(rx) == []


def test_two_buses_of_one_process_share_a_connection_until_the_last_is_left(named_bus: str) -> None:
    with connect(named_bus) as one:
        with connect(named_bus) as two:
            two.channel("x").producer().send(1)
        assert one.channel("x").consumer().recv() == 1
        assert one.stats()["broker"]["clients"] == 1


# --- programs of their own ---


def program(text: str, tmp_path: Path, *args: str) -> subprocess.Popen[str]:
    file = tmp_path / "program.py"
    file.write_text("import os, sys, shmbus\nimport test_bus as t\n" + textwrap.dedent(text))
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


def pause(ready: Producer) -> None:
    with ready:
        ready.send(os.getpid())
    while True:
        signal.pause()


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


def test_importing_shmbus_stays_light() -> None:
    heavy = {"rich", "click", "anyio", "asyncio", "numpy", "multiprocessing", "subprocess", "msgspec"}
    code = f"import sys, shmbus; print({heavy} & set(sys.modules))"
    out = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment()
    )
    assert out.stdout == "set()\n"


def test_every_public_name_is_there_and_is_exported_once() -> None:
    assert sorted(shmbus.__all__, key=str) == sorted(set(shmbus.__all__))
    for name in shmbus.__all__:
        assert hasattr(shmbus, name)


def test_a_source_pickles_and_describes_itself() -> None:
    source = pickle.loads(pickle.dumps(BusSource("/run/x.sock", "jobs")))
    assert source == BusSource("/run/x.sock", "jobs")
    assert source.describe() == "'jobs' of the bus at /run/x.sock"
