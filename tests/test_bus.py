"""The bus as people meet it: the ten lines, channels, other processes."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from bus_help import (
    LITTLE,
    METHODS,
    add_up,
    count_into,
    count_to,
    drain,
    environment,
    send_its_pid,
    start_another,
)

import shmbus
from shmbus import Backing, Bus, Refused, connect
from shmbus.bus_workers import BusSource, ends_among

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
