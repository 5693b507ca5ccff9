"""ack="done": a record is kept until the next receive, and goes to another member when its holder is gone."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator

import pytest
from ring_help import LARGEST, PAGE_BYTES, ended, forked, opened, pattern, roles, until

from shmbus import Channel, DecodeError, EndOfChannel, TimedOut, WouldBlock, _core

pytestmark = pytest.mark.patience(60)


@pytest.fixture
def short_slices() -> Iterator[None]:
    """Waits look around every millisecond, so that a test of who finds the dead is soon over."""
    before = _core.set_wait_slice(0.001)
    yield
    _core.set_wait_slice(before)


def killed_with(jobs: Channel, receive: Callable[[Channel], object]) -> None:
    """A child that receives something and is then killed, before it has said that it is done."""

    def receive_and_die() -> None:
        kept = receive(jobs)
        os.kill(os.getpid(), signal.SIGKILL)
        del kept

    assert ended(forked(receive_and_die)) == -signal.SIGKILL


def receive_one(jobs: Channel) -> object:
    rx = jobs.consumer(ack="done")
    rx.recv()
    return rx


# ---- given back


@pytest.mark.parametrize("size", [0, 10, LARGEST])
def test_what_was_not_done_goes_to_another_member_and_says_so(size: int) -> None:
    with opened() as jobs, jobs.producer() as tx:
        first, second = jobs.consumer(ack="done"), jobs.consumer(ack="done")
        tx.send_bytes(pattern(1, size))
        assert first.recv() == pattern(1, size)
        assert not first.redelivered
        tx.send_bytes(b"next")
        first.close(redeliver=True)
        assert second.recv() == pattern(1, size)
        assert (second.redelivered, second.deliveries) == (True, 1)
        assert second.recv() == b"next"
        assert (second.redelivered, second.deliveries) == (False, 0)


def test_closing_says_that_it_is_done_and_an_exception_that_it_is_not() -> None:
    with opened() as jobs, jobs.producer() as tx:
        tx.send_many(range(3))
        with jobs.consumer(ack="done") as rx:
            assert rx.recv() == 0

        def work_and_fail() -> None:
            with jobs.consumer(ack="done") as rx:
                assert rx.recv() == 1
                raise RuntimeError("the work failed")

        with pytest.raises(RuntimeError, match="work failed"):
            work_and_fail()
        with jobs.consumer(ack="done") as rx:
            assert rx.recv() == 1
            assert rx.redelivered
            assert rx.recv() == 2


def test_a_consumer_that_is_forgotten_gives_back_what_it_held() -> None:
    with opened() as jobs, jobs.producer() as tx:
        tx.send("kept")
        rx = jobs.consumer(ack="done")
        assert rx.recv() == "kept"
        del rx
        with jobs.consumer() as other:
            assert other.recv(timeout=0) == "kept"
            assert other.redelivered


def test_the_next_receive_is_the_acknowledgement_even_when_it_finds_nothing() -> None:
    with opened() as jobs, jobs.producer() as tx:
        tx.send("done by then")
        rx = jobs.consumer(ack="done")
        rx.recv()
        with pytest.raises(WouldBlock):
            rx.try_recv()
        rx.close(redeliver=True)
        with jobs.consumer() as other, pytest.raises(TimedOut):
            other.recv(timeout=0)


def test_all_of_recv_many_is_held_until_the_next_receive() -> None:
    with opened() as jobs, jobs.producer() as tx:
        tx.send_many(range(20))
        rx = jobs.consumer(ack="done")
        assert rx.recv_many(20) == list(range(20))
        rx.close(redeliver=True)
        with jobs.consumer(ack="done") as other:
            assert sorted(other.recv() for _ in range(20)) == list(range(20))
            assert other.redelivered
            with pytest.raises(WouldBlock):
                other.try_recv()


def test_a_record_that_cannot_be_decoded_is_done_with_the_next_receive_too() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer(ack="done") as rx:
        core = _core.Producer(jobs.memory().ring(writable=True), 1, lambda frame: frame, lambda: None, 0)
        core.send(memoryview(b"\xc1"))  # no msgpack
        core.close()
        tx.send("good")
        with pytest.raises(DecodeError):
            rx.recv()
        assert rx.recv() == "good"


def test_recv_many_returns_what_came_before_a_record_that_cannot_be_decoded() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        tx.send_many(["a", "b"])
        core = _core.Producer(jobs.memory().ring(writable=True), 1, lambda frame: frame, lambda: None, 0)
        core.send(memoryview(b"\xc1"))
        core.close()
        tx.send("c")
        assert rx.recv_many(9) == ["a", "b"]
        with pytest.raises(DecodeError):
            rx.recv_many(9)
        assert rx.recv_many(9) == ["c"]


# ---- parked


def test_a_long_job_does_not_stop_the_producers_after_a_rings_worth() -> None:
    with opened() as jobs, jobs.producer() as tx:
        with jobs.consumer(ack="done") as slow, jobs.consumer() as fast:
            tx.send_bytes(pattern(0, LARGEST))
            assert slow.recv() == pattern(0, LARGEST)
            for number in range(1, 20):
                tx.send_bytes(pattern(number, LARGEST), timeout=0)
                assert fast.recv() == pattern(number, LARGEST)
            slow.close(redeliver=True)
            assert fast.recv() == pattern(0, LARGEST)
            assert fast.redelivered
        assert jobs.stats()["used_bytes"] == 0


def test_the_statistics_show_what_is_parked_by_whom() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer(ack="done") as rx:
        tx.send_bytes(bytes(100))
        rx.recv()
        (lease,) = jobs.stats()["leases"]
        assert (lease["state"], lease["pid"], lease["deliveries"]) == ("parked", os.getpid(), 0)


# ---- killed


@pytest.mark.parametrize("size", [5, LARGEST])
def test_a_killed_consumers_record_is_redelivered_once_somebody_reaps(size: int) -> None:
    with opened() as jobs, jobs.producer() as tx:
        tx.send_bytes(pattern(7, size))
        killed_with(jobs, receive_one)
        assert jobs.memory().reap() == 1
        with jobs.consumer(ack="done") as rx:
            assert rx.recv(timeout=0) == pattern(7, size)
            assert rx.deliveries == 1
        assert jobs.stats()["groups"][0]["redelivered"] == 1


@pytest.mark.usefixtures("short_slices")
def test_a_member_that_waits_finds_the_dead_one_by_itself() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer(ack="done") as rx:
        tx.send("orphan")
        killed_with(jobs, receive_one)
        assert rx.recv() == "orphan"
        assert rx.redelivered


@pytest.mark.usefixtures("short_slices")
@pytest.mark.parametrize("group", ["default", None])
def test_a_producer_that_waits_for_a_killed_holder_of_a_lease_finds_out(group: str | None) -> None:
    with opened(groups=("default",)) as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        asked, ask = os.pipe()

        def attach_receive_and_die() -> None:
            with jobs.consumer(group) as dying:
                os.write(ask, b".")
                lease = dying.lease()
                os.kill(os.getpid(), signal.SIGKILL)
                lease.release()

        child = forked(attach_receive_and_die)
        os.read(asked, 1)
        tx.send_bytes(b"leased")
        assert ended(child) == -signal.SIGKILL
        sender = threading.Thread(target=lambda: [tx.send(None) for _ in range(2 * PAGE_BYTES // 64)])
        sender.start()
        received = [rx.recv() for _ in range(2 * PAGE_BYTES // 64 + 1)]  # its orphan among them, or its own
        sender.join()
        assert sorted(received, key=repr) == [*[None] * (2 * PAGE_BYTES // 64), b"leased"]
        os.close(asked)
        os.close(ask)


@pytest.mark.usefixtures("short_slices")
def test_the_channel_does_not_end_while_a_dead_members_record_is_still_to_come() -> None:
    with opened() as jobs, jobs.consumer(ack="done") as rx:
        with jobs.producer() as tx:
            tx.send_many(["first", "second"])
        killed_with(jobs, receive_one)
        assert sorted(rx) == ["first", "second"]
        with pytest.raises(EndOfChannel):
            rx.recv()


def test_with_ack_receive_a_crash_loses_what_had_been_received_and_nothing_else() -> None:
    def receive_without_ack(jobs: Channel) -> object:
        rx = jobs.consumer()
        rx.recv()
        return rx

    with opened() as jobs, jobs.producer() as tx:
        tx.send_many(["lost", "kept"])
        killed_with(jobs, receive_without_ack)
        jobs.memory().reap()
        with jobs.consumer() as rx:
            assert rx.recv_many(9) == ["kept"]


def test_a_channel_that_drops_such_records_counts_them() -> None:
    with opened(on_consumer_death="drop") as jobs, jobs.producer() as tx:
        tx.send_many(["dropped", "kept"])
        killed_with(jobs, receive_one)
        jobs.memory().reap()
        with jobs.consumer() as rx:
            assert rx.recv_many(9) == ["kept"]
        assert jobs.stats()["groups"][0]["dropped"] == 1


def test_a_record_that_kills_everyone_is_dropped_and_counted_in_the_end() -> None:
    with opened() as jobs, jobs.producer() as tx:
        tx.send("poisonous")
        for death in range(6):
            killed_with(jobs, receive_one)
            assert jobs.memory().reap() == 1, death
        tx.send("harmless")
        with jobs.consumer() as rx:
            assert rx.recv_many(9) == ["harmless"]
        group = jobs.stats()["groups"][0]
        assert (group["redelivered"], group["dropped"]) == (5, 1)


def test_a_producer_killed_with_a_loan_is_stepped_over() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:

        def lend_and_die() -> None:
            loan = jobs.producer().loan(100)
            loan.buffer[:] = bytes(100)
            os.kill(os.getpid(), signal.SIGKILL)

        assert ended(forked(lend_and_die)) == -signal.SIGKILL
        tx.send("behind it")
        assert rx.recv() == "behind it"
        assert jobs.stats()["aborted"] == 1


def test_a_process_that_becomes_another_program_is_as_good_as_dead() -> None:
    with opened() as jobs, jobs.producer() as tx:
        tx.send("held")

        def receive_and_exec() -> None:
            rx = jobs.consumer(ack="done")
            rx.recv()
            os.execv("/bin/sh", ["sh", "-c", "read line"])

        line, say = os.pipe()

        def in_the_child() -> None:
            os.dup2(line, 0)
            os.close(say)
            receive_and_exec()

        child = forked(in_the_child)
        until(lambda: roles(jobs) == ["consumer", "producer"] and jobs.memory().reap())
        os.kill(child, 0)  # it lives
        os.close(line)
        os.close(say)
        assert ended(child) == 1
        with jobs.consumer() as rx:
            assert rx.recv(timeout=0) == "held"
            assert rx.redelivered


def test_a_stopped_process_is_not_robbed() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        told, tell = os.pipe()

        def lend_and_stop() -> None:
            with jobs.producer() as stopped:
                loan = stopped.loan(4)
                os.write(tell, b".")
                os.kill(os.getpid(), signal.SIGSTOP)
                loan.buffer[:] = b"late"
                loan.commit()

        child = forked(lend_and_stop)
        os.read(told, 1)
        os.waitid(os.P_PID, child, os.WSTOPPED)
        tx.send("behind")
        assert jobs.memory().reap() == 0
        with pytest.raises(TimedOut):
            rx.recv(timeout=0.001)
        assert jobs.stats()["blockers"] == [child]
        os.kill(child, signal.SIGCONT)
        assert [rx.recv(), rx.recv()] == [b"late", "behind"]
        assert ended(child) == 0
        os.close(told)
        os.close(tell)
