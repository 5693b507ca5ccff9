"""Workers that fail, and leaving a bus: nobody waits for somebody who will not come."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bus_help import (
    LITTLE,
    METHODS,
    add_up,
    add_up_when_ready,
    count_to,
    die_sending,
    drain,
    drain_later,
    fail_after,
    fail_at_first,
    fill,
    for_ever,
    kill_yourself,
    take,
)

import shmbus
from shmbus import Bus, Refused, WorkerFailed, limits

pytestmark = pytest.mark.patience(60)


@pytest.fixture(params=METHODS)
def method(request: pytest.FixtureRequest) -> Any:
    return request.param


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
    assert any(str(entry.path) == __file__ and "send" in str(entry.statement) for entry in caught.traceback)


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


def test_a_killed_producer_ends_the_channel_for_its_consumers() -> None:
    with pytest.raises(WorkerFailed, match="SIGKILL"), Bus() as bus:  # noqa: PT012
        jobs, go = bus.channel("jobs"), bus.channel("go")
        bus.spawn(die_sending, jobs.producer(), go.consumer())
        with go.producer() as tx:
            tx.send("go")
        assert list(jobs.consumer()) == [1]


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


def test_leaving_waits_for_a_worker_that_has_its_ends_in_a_closure() -> None:
    with Bus() as bus:
        numbers, sums = bus.channel("numbers"), bus.channel("sums", groups=["default"])
        bus.spawn(lambda: count_to(100, numbers.producer()), start_method="fork")
        bus.spawn(add_up, numbers.consumer(), sums.producer())
        rx = sums.consumer()
        assert rx.recv() == sum(range(100))


def test_a_subscriber_that_fails_stops_nobody() -> None:
    with pytest.raises(WorkerFailed, match="bad record"), Bus() as bus:  # noqa: PT012
        news, ready = bus.channel("news", capacity=LITTLE, hold=False), bus.channel("ready")
        bus.spawn(fail_after, 0, news.consumer(group=None))
        bus.spawn(for_ever, news.consumer(group=None), ready.producer())
        with ready.consumer() as rx, news.producer() as tx:
            rx.recv()
            tx.send_many(range(1000))


def test_more_producers_than_a_channel_has_room_for_are_refused_and_leave_no_ticket() -> None:
    with Bus() as bus:
        channel = bus.channel("x")
        with pytest.raises(Refused, match="slots"):
            bus.spawn(count_to, 1, channel.producer(), count=limits.MAX_PARTICIPANTS + 1)
        assert bus.workers == []
        bus.spawn(count_to, 3, channel.producer())
        assert list(channel.consumer()) == [0, 1, 2]


def test_work_goes_on_to_its_end_when_the_broker_is_killed() -> None:
    with Bus() as bus:
        jobs, sums, ready = bus.channel("jobs", capacity=LITTLE), bus.channel("sums"), bus.channel("ready")
        bus.spawn(add_up_when_ready, jobs.consumer(), sums.producer(), ready.producer(), count=2)
        with ready.consumer() as rx, sums.consumer() as results, jobs.producer() as tx:
            assert [rx.recv(), rx.recv()] == ["ready", "ready"]
            with pytest.raises(shmbus.WouldBlock):
                results.try_recv()
            assert bus._broker is not None
            bus._broker.process.kill()
            bus._broker.process.wait()
            tx.send_many(range(1000))
            tx.close()
            assert sum(results) == sum(range(1000))
