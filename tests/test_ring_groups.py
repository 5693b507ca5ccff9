"""Who gets what: named, declared, private and lossy groups, holding, dropping, one producer."""

from __future__ import annotations

import os
import signal
import threading

import pytest
from ring_help import PAGE_BYTES, ended, forked, opened, pattern, roles

from shmbus import Closed, EndOfChannel, Refused, TimedOut, WouldBlock

pytestmark = pytest.mark.patience(60)

RECORDS_OF_A_PAGE = PAGE_BYTES // 64

# ---- named groups


def test_members_of_a_group_share_its_records_and_each_group_gets_all() -> None:
    with (
        opened(groups=("a", "b")) as jobs,
        jobs.producer() as tx,
        jobs.consumer("a") as one,
        jobs.consumer("a") as two,
        jobs.consumer("b") as other,
    ):
        tx.send_many(range(10))
        assert [one.recv(), two.recv(), two.recv(), one.recv()] == [0, 1, 2, 3]
        assert other.recv_many(20) == list(range(10))
        assert one.recv_many(20) == [4, 5, 6, 7, 8, 9]
        with pytest.raises(WouldBlock):
            two.try_recv()


def test_declared_groups_start_at_the_beginning_with_or_without_members() -> None:
    with opened(groups=("a", "b")) as jobs, jobs.producer() as tx:
        tx.send_many(range(5))
        for name in ("a", "b"):
            with jobs.consumer(name) as rx:
                assert rx.recv_many(9) == [0, 1, 2, 3, 4]


def test_a_group_keeps_its_place_while_it_has_no_members() -> None:
    with opened() as jobs, jobs.producer() as tx:
        with jobs.consumer("a") as rx:
            tx.send_many(range(4))
            assert rx.recv() == 0
        tx.send(4)
        with jobs.consumer("a") as rx:
            assert rx.recv_many(9) == [1, 2, 3, 4]


def test_a_group_that_joins_later_starts_with_what_is_sent_from_then_on() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer("first") as first:
        tx.send("early")
        with jobs.consumer("second") as second:
            tx.send("late")
            assert second.recv_many(9) == ["late"]
        assert first.recv_many(9) == ["early", "late"]


def test_the_slowest_group_holds_producers_back_and_the_statistics_name_it() -> None:
    with opened(groups=("fast", "slow")) as jobs, jobs.producer() as tx, jobs.consumer("fast") as fast:
        while tx.try_send(b""):
            fast.recv()
        backlog = {row["name"]: row["backlog_bytes"] for row in jobs.stats()["groups"]}
        assert backlog == {"fast": 0, "slow": PAGE_BYTES}
        with jobs.consumer("slow") as slow:
            slow.recv()
        assert tx.try_send(b"")


@pytest.mark.parametrize("name", ["", "a/b", "x" * 49, "\n"])
def test_a_name_that_no_group_can_have_is_refused(name: str) -> None:
    with opened() as jobs, pytest.raises(Refused):
        jobs.consumer(name)


def test_the_longest_name_of_a_group_is_told_from_one_that_differs_at_its_end() -> None:
    with (
        opened() as jobs,
        jobs.producer() as tx,
        jobs.consumer("x" * 48) as one,
        jobs.consumer("x" * 47) as other,
    ):
        tx.send(1)
        assert (one.recv(), other.recv()) == (1, 1)


def test_one_group_too_many_is_refused_and_a_private_one_gives_its_place_back() -> None:
    with opened(groups=tuple(f"g{number}" for number in range(31))) as jobs:
        for _ in range(40):
            with jobs.consumer(None):
                pass
        with jobs.consumer("last"), pytest.raises(Refused, match="slots of groups"):
            jobs.consumer("one more").recv()


def test_many_threads_that_join_one_new_group_at_once_make_one() -> None:
    with opened() as jobs, jobs.producer() as tx:
        ends = [jobs.consumer("new") for _ in range(8)]
        start = threading.Barrier(8)

        def attach(number: int) -> None:
            start.wait()
            ends[number].__enter__()

        threads = [threading.Thread(target=attach, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert [row["name"] for row in jobs.stats()["groups"]] == ["new"]
        tx.send_many(range(8))
        assert [rx.recv() for rx in ends] == list(range(8))


# ---- held, and not held


def test_what_was_sent_before_any_group_waits_for_the_first() -> None:
    for first in ("named", None):
        with opened() as jobs, jobs.producer() as tx:
            tx.send_many(range(3))
            with jobs.consumer(first) as rx, jobs.consumer("later") as later:
                tx.send(3)
                assert rx.recv_many(9) == [0, 1, 2, 3]
                assert later.recv_many(9) == [3]


def test_without_holding_it_is_discarded_and_producers_never_wait() -> None:
    with opened(hold=False) as jobs, jobs.producer() as tx:
        for number in range(5 * RECORDS_OF_A_PAGE):
            assert tx.try_send(number)
        with jobs.consumer("first") as rx:
            tx.send("now")
            assert rx.recv_many(9) == ["now"]


def test_a_channel_that_holds_is_full_without_any_consumer() -> None:
    with opened() as jobs, jobs.producer() as tx:
        for _ in range(RECORDS_OF_A_PAGE):
            assert tx.try_send(None)
        with pytest.raises(TimedOut):
            tx.send(None, timeout=0)


# ---- private groups


def test_a_private_group_starts_at_the_tail_and_ends_with_its_consumer() -> None:
    with opened(groups=("a",)) as jobs, jobs.producer() as tx, jobs.consumer("a") as rx:
        tx.send("early")
        with jobs.consumer(None) as tap, jobs.consumer(None) as other:
            tx.send("late")
            assert tap.recv_many(9) == other.recv_many(9) == ["late"]
            assert rx.recv_many(9) == ["early", "late"]
            while tx.try_send(None):
                rx.recv()
        assert tx.try_send(None)
        assert [row["name"] for row in jobs.stats()["groups"]] == ["a"]


def test_a_private_consumer_that_was_killed_holds_producers_back_no_longer() -> None:
    with opened(groups=("a",)) as jobs, jobs.producer() as tx, jobs.consumer("a") as rx:
        attached, tell = os.pipe()

        def attach_and_wait() -> None:
            with jobs.consumer(None):
                os.write(tell, b".")
                signal.pause()

        child = forked(attach_and_wait)
        os.read(attached, 1)
        while tx.try_send(None):
            rx.recv()
        os.kill(child, signal.SIGKILL)
        assert ended(child) == -signal.SIGKILL
        tx.send("on it goes")  # the waiting producer finds out by itself
        assert rx.recv_many(99)[-1] == "on it goes"
        assert roles(jobs) == ["consumer", "producer"]
        os.close(attached)
        os.close(tell)


# ---- lossy readers


def test_a_lossy_reader_never_holds_back_and_counts_exactly_what_it_lost() -> None:
    with opened(groups=("a",)) as jobs, jobs.producer() as tx, jobs.consumer("a") as rx:
        tx.send_many(range(7))  # before the tap: not lost
        with jobs.consumer(None, lossy=True) as tap:
            sent, received = 0, []
            for burst in (1, 3, 50, 64, 65, 200, 5):
                for _ in range(burst):
                    while not tx.try_send(sent):
                        rx.recv_many(10)
                    sent += 1
                while True:
                    try:
                        received.append(tap.try_recv())
                    except WouldBlock:
                        break
                assert len(received) + tap.lost == sent
            assert received == sorted(received)
            assert tap.lost == tap.stats()["lost"] > 0


def test_a_lossy_reader_counts_for_each_producer_also_for_those_who_came_later() -> None:
    with opened(groups=("a",)) as jobs, jobs.consumer("a") as rx:
        for _ in range(3):  # slots that were used before
            with jobs.producer() as tx:
                tx.send_many(range(20))
        rx.recv_many(99)
        with jobs.consumer(None, lossy=True) as tap, jobs.producer() as one, jobs.producer() as two:
            for number in range(300):
                while not (one if number % 3 else two).try_send(number):
                    rx.recv()
            received = tap.recv_many(999)
            assert received == list(range(300 - len(received), 300))
            assert tap.lost == 300 - len(received) > 0


def test_a_loan_that_is_committed_late_is_neither_lost_nor_counted() -> None:
    with (
        opened(groups=("a",)) as jobs,
        jobs.producer() as tx,
        jobs.consumer("a"),
        jobs.consumer(None, lossy=True) as tap,
    ):
        loan = tx.loan(3)
        tx.send_bytes(b"second")
        loan.buffer[:] = b"1st"
        loan.commit()
        aborted = tx.loan(9)
        tx.send_bytes(b"third")
        aborted.abort()
        assert tap.recv_many(9) == [b"1st", b"second", b"third"]
        assert tap.lost == 0


def test_a_lossy_reader_waits_and_ends_like_the_others() -> None:
    with opened() as jobs, jobs.consumer(None, lossy=True) as tap, jobs.consumer("a") as rx:
        with pytest.raises(TimedOut):
            tap.recv(timeout=0)
        with jobs.producer() as tx:
            tx.send(1)
        assert list(tap) == list(rx) == [1]
        with pytest.raises(EndOfChannel):
            tap.recv()


def test_what_a_lossy_reader_cannot_do_is_refused() -> None:
    with opened() as jobs:
        with pytest.raises(Refused, match="group=None"):
            jobs.consumer("a", lossy=True)
        with pytest.raises(Refused, match="lossy"):
            jobs.consumer(None, lossy=True, ack="done")
        with jobs.consumer(None, lossy=True) as tap, pytest.raises(Refused, match="lease"):
            tap.lease(timeout=0)


@pytest.mark.parametrize("size", [24, 300_000])
def test_a_fast_producer_in_another_process_never_tears_what_a_lossy_reader_gets(size: int) -> None:
    count = 3000 if size < 1000 else 200
    with (
        opened(PAGE_BYTES if size < 1000 else "1 MiB", hold=False) as jobs,
        jobs.consumer(None, lossy=True) as tap,
    ):

        def produce() -> None:
            with jobs.producer() as tx:
                for number in range(count):
                    tx.send_bytes(pattern(number, size))

        (ticket,) = jobs.memory().register()
        child = forked(produce)
        threading.Thread(target=lambda: (ended(child), jobs.memory().unregister([ticket]))).start()
        last = -1
        received = 0
        for record in tap:
            number = int.from_bytes(record[:4], "little")
            assert record == pattern(number, size)
            assert number > last
            last = number
            received += 1
        assert received + tap.lost + (count - 1 - last) == count


# ---- dropped groups


def test_a_dropped_group_holds_nobody_back_and_tells_its_members() -> None:
    with opened(groups=("a", "b")) as jobs, jobs.producer() as tx:
        with jobs.consumer("a") as member, jobs.consumer("b") as rx:
            tx.send_many(range(RECORDS_OF_A_PAGE))
            rx.recv_many(99)
            assert not tx.try_send("full")
            jobs.drop_group("a")
            assert tx.try_send("room")
            with pytest.raises(Closed, match="dropped"):
                member.recv()
            assert rx.recv() == "room"
        with pytest.raises(Refused, match="'a'"):
            jobs.drop_group("a")
        with pytest.raises(Refused, match="'never'"):
            jobs.drop_group("never")


def test_a_group_of_a_dropped_name_is_a_new_one() -> None:
    with opened(groups=("a",)) as jobs, jobs.producer() as tx:
        tx.send("gone")
        jobs.drop_group("a")
        with jobs.consumer("a") as rx:
            tx.send("new")
            assert rx.recv_many(9) == ["new"]


# ---- one producer


def test_a_second_producer_is_refused_where_there_may_be_one() -> None:
    with opened(producers="one") as jobs:
        with jobs.producer() as tx:
            tx.send(1)
            with pytest.raises(Refused, match='producers="one"'):
                jobs.producer().send(2)
            tx.send(3)
        with jobs.producer() as tx:
            tx.send(4)
        with jobs.consumer() as rx:
            assert list(rx) == [1, 3, 4]


def test_the_one_producer_can_be_replaced_after_it_was_killed() -> None:
    with opened(producers="one", end="closed") as jobs, jobs.consumer() as rx:

        def send_and_die() -> None:
            jobs.producer().send("first")
            os.kill(os.getpid(), signal.SIGKILL)

        assert ended(forked(send_and_die)) == -signal.SIGKILL
        with jobs.producer() as tx:
            tx.send("second")
        assert rx.recv_many(9) == ["first", "second"]
