"""Waiting: who wakes whom, what ends a wait, and that nothing else in the process stands still meanwhile.

With `wakes_only` a sleep is ended by a wake and by nothing else, so that a wake which is missed hangs the
test instead of costing half a second.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from ring_help import PAGE_BYTES, Background, asleep, ended, forked, opened, roles, until

from shmbus import Channel, Closed, Consumer, EndOfChannel, TimedOut, _core

pytestmark = pytest.mark.patience(60)


@pytest.fixture
def wakes_only() -> Iterator[None]:
    before = _core.set_wait_slice(-1)
    yield
    _core.set_wait_slice(before)


def fill(jobs: Channel) -> None:
    with jobs.producer() as tx:
        while tx.try_send(None):
            pass


# ---- woken


@pytest.mark.usefixtures("wakes_only")
@pytest.mark.parametrize("way", ["recv", "recv_bytes", "lease", "recv_many", "next"])
def test_a_receiver_that_sleeps_is_woken_by_a_send(way: str) -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        calls = {"recv_many": lambda: rx.recv_many(3), "next": lambda: next(rx)}
        waiting = Background(calls.get(way, lambda: getattr(rx, way)()))
        until(lambda: asleep(jobs, "consumer"))
        tx.send_bytes(b"up")
        got = waiting.result()
        if way == "lease":
            assert got.view == b"up"
            got.release()
        else:
            assert got == ([b"up"] if way == "recv_many" else b"up")


@pytest.mark.usefixtures("wakes_only")
@pytest.mark.parametrize("way", ["send", "send_bytes", "loan", "send_many"])
def test_a_sender_that_sleeps_is_woken_by_a_receive(way: str) -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        fill(jobs)
        argument: Any = {"loan": 3, "send_many": [b"up"]}.get(way, b"up")
        waiting = Background(lambda: getattr(tx, way)(argument))
        until(lambda: asleep(jobs, "producer"))
        rx.recv()
        got = waiting.result()
        if way == "loan":
            got.buffer[:] = b"up!"
            got.commit()
        assert rx.recv_many(PAGE_BYTES)[-1][:2] == b"up"


@pytest.mark.usefixtures("wakes_only")
@pytest.mark.parametrize("who", ["lease", "private", "dropped"])
def test_a_sender_is_woken_by_whatever_else_makes_room(who: str) -> None:
    with opened(groups=("a",)) as jobs, jobs.producer() as tx, jobs.consumer("a") as rx:
        private = jobs.consumer(None).__enter__()
        tx.send_bytes(b"held")
        lease = rx.lease() if who == "lease" else None
        if lease is not None:
            private.close()
        fill(jobs)
        if who != "dropped":
            rx.recv_many(PAGE_BYTES)
        else:
            private.close()
        waiting = Background(lambda: tx.send("up"))
        until(lambda: asleep(jobs, "producer"))
        if lease is not None:
            lease.release()
        elif who == "private":
            private.close()
        else:
            jobs.drop_group("a")
        waiting.result()


@pytest.mark.usefixtures("wakes_only")
def test_every_waiting_member_gets_one_of_as_many_records() -> None:
    with opened() as jobs, jobs.producer() as tx:
        ends = [jobs.consumer().__enter__() for _ in range(6)]
        waiting = [Background(rx.recv) for rx in ends]
        until(lambda: asleep(jobs, "consumer") == 6)
        tx.send_many(range(6))
        assert sorted(thread.result() for thread in waiting) == list(range(6))


@pytest.mark.usefixtures("wakes_only")
@pytest.mark.parametrize("reason", ["producer leaves", "channel closed", "ticket given back"])
def test_the_end_wakes_everybody_who_waits(reason: str) -> None:
    with opened(end="closed" if reason == "channel closed" else "producers") as jobs:
        tx = jobs.producer().__enter__()
        (ticket,) = jobs.memory().register()
        ends = [jobs.consumer(group).__enter__() for group in ("a", "a", "b", None)]
        ends.append(jobs.consumer(None, lossy=True).__enter__())
        waiting = [Background(rx.recv) for rx in ends]
        until(lambda: asleep(jobs, "consumer") == 5)
        if reason == "producer leaves":
            jobs.memory().unregister([ticket])
            tx.close()
        elif reason == "ticket given back":
            tx.close()
            jobs.memory().unregister([ticket])
        else:
            jobs.close()
        for thread in waiting:
            with pytest.raises(EndOfChannel):
                thread.result()
        if reason == "channel closed":
            jobs.memory().unregister([ticket])


@pytest.mark.usefixtures("wakes_only")
def test_closing_the_channel_wakes_a_sender() -> None:
    with opened() as jobs, jobs.producer() as tx:
        fill(jobs)
        waiting = Background(lambda: tx.send("never"))
        until(lambda: asleep(jobs, "producer"))
        jobs.close()
        with pytest.raises(Closed):
            waiting.result()


@pytest.mark.usefixtures("wakes_only")
def test_an_aborted_loan_wakes_a_receiver_that_waits_behind_it() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        loan = tx.loan(10)
        tx.send("behind")
        waiting = Background(rx.recv)
        until(lambda: asleep(jobs, "consumer"))
        loan.abort()
        assert waiting.result() == "behind"


@pytest.mark.usefixtures("wakes_only")
def test_what_is_given_back_wakes_another_member() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        other = jobs.consumer(ack="done")
        tx.send("back")
        other.recv()
        waiting = Background(rx.recv)
        until(lambda: asleep(jobs, "consumer"))
        other.close(redeliver=True)
        assert waiting.result() == "back"


@pytest.mark.usefixtures("wakes_only")
def test_reaping_wakes_who_waited_for_the_dead() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        ready, tell = os.pipe()

        def lend_and_wait() -> None:
            loan = jobs.producer().loan(1)
            os.write(tell, b".")
            signal.pause()
            del loan

        child = forked(lend_and_wait)
        os.read(ready, 1)
        tx.send("behind")
        waiting = Background(rx.recv)
        until(lambda: asleep(jobs, "consumer"))
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        assert jobs.memory().reap() == 1
        assert waiting.result() == "behind"
        os.close(ready)
        os.close(tell)


@pytest.mark.usefixtures("wakes_only")
def test_two_processes_that_answer_each_other_never_miss_a_wake() -> None:
    with opened() as there, opened() as back:

        def answer() -> None:
            with there.consumer() as rx, back.producer() as tx:
                for message in rx:
                    tx.send(message)

        (ticket,) = back.memory().register()
        child = forked(answer)
        with back.consumer() as rx:
            with there.producer() as tx:
                for number in range(5000):
                    tx.send(number)
                    assert rx.recv() == number
            back.memory().unregister([ticket])
            assert ended(child) == 0
            with pytest.raises(EndOfChannel):
                rx.recv()


# ---- ended otherwise


@pytest.mark.usefixtures("wakes_only")
def test_closing_an_end_from_another_thread_ends_its_wait() -> None:
    with opened() as jobs, jobs.producer() as tx:
        rx = jobs.consumer()
        waiting = Background(rx.recv)
        until(lambda: asleep(jobs, "consumer"))
        rx.close()
        with pytest.raises(Closed):
            waiting.result()
        assert roles(jobs) == ["producer"]
        fill(jobs)
        waiting = Background(lambda: tx.send("x"))
        until(lambda: asleep(jobs, "producer"))
        tx.close()
        with pytest.raises(Closed):
            waiting.result()
        assert roles(jobs) == []


def test_closing_during_a_long_copy_detaches_when_the_copy_is_done() -> None:
    with opened("8 MiB") as jobs, jobs.producer() as tx:
        payload = bytes(3 << 20)
        for _ in range(20):
            rx = jobs.consumer(None)
            rx.fileno()  # attached
            closed = threading.Event()

            def close(end: Consumer = rx, done: threading.Event = closed) -> None:
                end.close()
                done.set()

            tx.send_bytes(payload)
            closing = threading.Thread(target=close)
            closing.start()
            with contextlib.suppress(Closed):
                assert rx.recv_bytes() == payload
            closing.join()
            assert closed.is_set()
            assert roles(jobs) == ["producer"]


@pytest.mark.parametrize("wait", ["recv", "send"])
def test_a_signal_handler_that_raises_ends_a_wait_and_the_end_stays_usable(wait: str) -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        main = threading.main_thread().ident
        assert main is not None
        if wait == "send":
            fill(jobs)
        role = "consumer" if wait == "recv" else "producer"

        def interrupt() -> None:
            until(lambda: asleep(jobs, role))
            signal.pthread_kill(main, signal.SIGINT)

        helper = Background(interrupt)
        with pytest.raises(KeyboardInterrupt):
            rx.recv() if wait == "recv" else tx.send("x")
        helper.result()
        if wait == "send":
            rx.recv_many(PAGE_BYTES)
        tx.send("after")
        assert rx.recv() == "after"


def test_a_signal_handler_that_returns_lets_the_wait_go_on() -> None:
    seen: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, _: seen.append(number))
    try:
        with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:

            def disturb() -> None:
                until(lambda: asleep(jobs, "consumer"))
                for _ in range(5):
                    signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)
                until(lambda: seen)
                tx.send("through")

            helper = Background(disturb)
            assert rx.recv() == "through"
            helper.result()
            assert seen
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_receive_that_times_out_passes_its_wake_on() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as patient, jobs.consumer() as hasty:
        for number in range(300):
            waiting = Background(patient.recv)
            short = Background(lambda: hasty.recv(timeout=1e-5))
            tx.send(number)
            got = []
            with contextlib.suppress(TimedOut):
                got.append(short.result())
            if got:
                tx.send(number)
            assert [*got, waiting.result()][-1] == number


def test_other_threads_run_while_one_waits() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        waiting = Background(rx.recv)
        until(lambda: asleep(jobs, "consumer"))
        assert sum(range(100_000)) == 4999950000
        assert waiting.is_alive()
        tx.send("now")
        assert waiting.result() == "now"


# ---- shared by threads


def test_threads_share_a_producer_and_a_consumer() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:

        def send_some(first: int) -> None:
            for number in range(first, first + 500):
                tx.send(number)

        def receive_some() -> list[int]:
            return [rx.recv() for _ in range(500)]

        receivers = [Background(receive_some) for _ in range(4)]
        senders = [Background(lambda first=first: send_some(first)) for first in range(0, 2000, 500)]
        for thread in senders:
            thread.result()
        received = [thread.result() for thread in receivers]
        assert sorted(number for part in received for number in part) == list(range(2000))
        for part in received:
            for first in range(0, 2000, 500):
                ours = [number for number in part if first <= number < first + 500]
                assert ours == sorted(ours)


def test_threads_that_use_a_fresh_end_at_once_attach_it_once() -> None:
    with opened() as jobs:
        for _ in range(30):
            tx = jobs.producer()
            start = threading.Barrier(4)

            def send(end: Any = tx, gate: threading.Barrier = start) -> None:
                gate.wait()
                end.send(1)

            threads = [Background(send) for _ in range(4)]
            for thread in threads:
                thread.result()
            assert roles(jobs) == ["producer"]
            assert tx.stats()["messages"] == 4
            tx.close()
            with jobs.consumer() as rx:
                assert rx.recv_many(9) == [1] * 4
