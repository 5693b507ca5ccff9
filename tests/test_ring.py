"""Sending and receiving through a channel of one page: sizes, limits, timeouts, order, the end."""

from __future__ import annotations

import itertools
import math
import os
import signal
from typing import Any

import pytest
from ring_help import LARGEST, PAGE_BYTES, edge_sizes, ended, forked, opened, pattern, roles

from shmbus import Closed, Corrupt, EndOfChannel, Refused, ShmbusError, TimedOut, TooLarge, WouldBlock

pytestmark = pytest.mark.patience(60)

# ---- sizes


def test_records_of_every_size_from_none_to_the_largest_come_back_as_they_were() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        for size in range(LARGEST + 1):
            tx.send_bytes(pattern(size, size), timeout=0)
            assert rx.recv_bytes(timeout=0) == pattern(size, size)


def test_sizes_around_each_edge_of_a_cell_fill_the_ring_and_leave_it_again() -> None:
    sizes = itertools.cycle(edge_sizes())
    with opened(codec="raw") as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        for round_number in range(300):
            sent = []
            while tx.try_send(record := pattern(round_number, next(sizes))):
                sent.append(record)
            assert sent
            assert [rx.try_recv() for _ in sent] == sent
            with pytest.raises(WouldBlock):
                rx.try_recv()


@pytest.mark.parametrize("ack", ["receive", "done"])
def test_a_page_between_two_processes_carries_every_size_without_hang_or_loss(ack: Any) -> None:
    sizes = [*edge_sizes(), *range(0, LARGEST + 1, 7)]
    with opened() as jobs:

        def produce() -> None:
            with jobs.producer() as tx:
                for number in range(6000):
                    tx.send_bytes(pattern(number, sizes[number % len(sizes)]))

        with jobs.consumer(ack=ack) as rx:
            (ticket,) = jobs.memory().register()
            child = forked(produce)
            for number in range(6000):
                assert rx.recv_bytes() == pattern(number, sizes[number % len(sizes)])
            jobs.memory().unregister([ticket])
            assert ended(child) == 0
            with pytest.raises(EndOfChannel):
                rx.recv()


@pytest.mark.parametrize("size", [LARGEST + 1, PAGE_BYTES, 10 * PAGE_BYTES])
def test_more_than_half_the_capacity_is_too_large_and_the_error_has_both_numbers(size: int) -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        with pytest.raises(TooLarge, match=f"{size}.*{LARGEST}") as caught:
            tx.send_bytes(bytes(size))
        assert (caught.value.size_bytes, caught.value.limit_bytes) == (size, LARGEST)
        with pytest.raises(TooLarge):
            tx.loan(size)
        with pytest.raises(TooLarge):
            tx.try_send("x" * size)
        with pytest.raises(WouldBlock):
            rx.try_recv()


def test_the_limit_counts_the_frame_and_not_the_object() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        largest = bytes(LARGEST - 3)  # a bin of this length has a header of three bytes
        tx.send(largest, timeout=0)
        assert rx.recv(timeout=0) == largest
        with pytest.raises(TooLarge) as caught:
            tx.send(largest + b"x")
        assert caught.value.size_bytes == LARGEST + 1


# ---- messages


@pytest.mark.parametrize(
    "message",
    [None, False, 0, -1, 2**63, 1.5, "", "ä", b"", b"bytes", [], [1, [2]], {}, {"a": None, 3: b"x"}],
    ids=repr,
)
def test_a_message_arrives_as_it_was_sent_whichever_way(message: object) -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        assert tx.try_send(message) is True
        assert rx.try_recv() == message
        tx.send(message)
        assert rx.recv() == message
        assert tx.send_many([message] * 3) == 3
        assert rx.recv_many(5) == [message] * 3


def test_none_is_a_message_and_nothing_is_would_block() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        tx.send(None)
        assert rx.try_recv() is None
        with pytest.raises(WouldBlock, match="unnamed"):
            rx.try_recv()


def test_recv_many_takes_what_is_there_and_no_more_than_it_was_asked_for() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        tx.send_many(range(10))
        assert rx.recv_many(4) == [0, 1, 2, 3]
        assert rx.recv_many(100, timeout=0) == [4, 5, 6, 7, 8, 9]
        with pytest.raises(TimedOut):
            rx.recv_many(1, timeout=0)
        with pytest.raises(ValueError, match="at least 1"):
            rx.recv_many(0)


def test_send_many_that_times_out_has_sent_what_fitted_in_order() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        with pytest.raises(TimedOut):
            tx.send_many(range(1000), timeout=0)
        assert rx.recv_many(1000) == list(range(PAGE_BYTES // 64))


def test_two_producers_keep_their_order_in_one_stream() -> None:
    with opened() as jobs, jobs.producer() as one, jobs.producer() as two, jobs.consumer() as rx:
        for number in range(20):
            (one if number % 3 else two).send(number)
        assert rx.recv_many(100) == list(range(20))


# ---- full, and timeouts


def test_a_full_channel_refuses_to_try_and_times_out_and_nothing_was_sent() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        for number in range(PAGE_BYTES // 64):
            assert tx.try_send(number)
        assert not tx.try_send("more")
        for timeout in (0, 1e-9, 0.001, -1.0):
            with pytest.raises(TimedOut, match="no space"):
                tx.send("more", timeout=timeout)
        assert rx.recv_many(1000) == list(range(PAGE_BYTES // 64))
        assert tx.try_send("more")


@pytest.mark.parametrize("timeout", [0, 0.0, -1, 1e-9, 1e-6, 0.002])
def test_a_receive_with_a_timeout_ends_as_a_timeout_error(timeout: float) -> None:
    with opened() as jobs, jobs.consumer() as rx:
        for call in (rx.recv, rx.recv_bytes, rx.lease):
            with pytest.raises(TimeoutError) as caught:
                call(timeout=timeout)
            assert isinstance(caught.value, ShmbusError)


def test_what_is_there_is_received_whatever_the_timeout() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        for timeout in (0, -5, 1e-9, 1.0, 1e300, math.inf, None):
            tx.send(timeout)
            assert rx.recv(timeout=timeout) == timeout


@pytest.mark.parametrize(("timeout", "error"), [(math.nan, ValueError), ("1", TypeError), ([], TypeError)])
def test_a_timeout_that_is_no_number_of_seconds_is_an_error(timeout: Any, error: type[Exception]) -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        with pytest.raises(error):
            rx.recv(timeout=timeout)
        with pytest.raises(error):
            tx.send(1, timeout=timeout)
        with pytest.raises(WouldBlock):
            rx.try_recv()


# ---- the end


def test_a_channel_ends_when_it_was_drained_and_its_last_producer_has_left() -> None:
    with opened() as jobs, jobs.consumer() as rx:
        with jobs.producer() as one, jobs.producer() as two:
            one.send(1)
            two.send(2)
            one.close()
            assert rx.recv_many(2) == [1, 2]
            with pytest.raises(WouldBlock):
                rx.try_recv()
            two.send(3)
        assert list(rx) == [3]
        for call in (rx.recv, rx.try_recv, rx.recv_bytes, rx.lease):
            with pytest.raises(EndOfChannel):
                call()


def test_a_channel_without_any_producer_yet_has_not_ended() -> None:
    with opened() as jobs, jobs.consumer() as rx, pytest.raises(TimedOut):
        rx.recv(timeout=0)


def test_a_ticket_keeps_the_channel_from_ending_before_its_producer_has_come() -> None:
    with opened() as jobs, jobs.consumer() as rx:
        tickets = jobs.memory().register(2)
        with jobs.producer() as tx:
            tx.send(1)
        assert rx.recv() == 1
        with pytest.raises(TimedOut):
            rx.recv(timeout=0)
        jobs.memory().unregister(tickets[:1])
        with pytest.raises(TimedOut):
            rx.recv(timeout=0)
        jobs.memory().unregister(tickets[1:])
        with pytest.raises(EndOfChannel):
            rx.recv()


def test_a_producer_that_was_killed_counts_as_gone() -> None:
    with opened() as jobs, jobs.consumer() as rx:

        def send_and_die() -> None:
            tx = jobs.producer()
            tx.send("last words")
            os.kill(os.getpid(), signal.SIGKILL)

        assert ended(forked(send_and_die)) == -signal.SIGKILL
        assert list(rx) == ["last words"]
        assert roles(jobs) == ["consumer"]


def test_with_end_closed_producers_come_and_go_and_only_closing_ends_it() -> None:
    with opened(end="closed") as jobs, jobs.consumer() as rx:
        for number in range(3):
            with jobs.producer() as tx:
                tx.send(number)
        assert rx.recv_many(9) == [0, 1, 2]
        with pytest.raises(TimedOut):
            rx.recv(timeout=0)
        with jobs.producer() as tx:
            tx.send("before")
            jobs.close()
            for send in (tx.send, tx.try_send, tx.send_bytes, tx.loan):
                with pytest.raises(Closed, match="closed"):
                    send(1 if send == tx.loan else b"after")
        assert list(rx) == ["before"]


def test_a_poisoned_channel_is_corrupt_for_everybody() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        jobs.memory().poison(77)
        with pytest.raises(Corrupt, match="77"):
            rx.recv()
        with pytest.raises(Corrupt, match="77"):
            tx.send(1)


# ---- ends


def test_a_closed_end_says_so_and_closing_again_is_harmless() -> None:
    with opened() as jobs:
        tx, rx = jobs.producer(), jobs.consumer()
        tx.send(1)
        rx.recv()
        for end in (tx, rx):
            assert not end.closed
            end.close()
            end.close()
            assert end.closed
        for call in (rx.recv, rx.try_recv, rx.fileno, rx.lease, rx.stats, tx.stats):
            with pytest.raises(Closed):
                call()
        for send in (tx.send, tx.try_send, tx.send_bytes):
            with pytest.raises(Closed):
                send(b"x")
        with pytest.raises(Closed):
            next(rx)
        with pytest.raises(Closed), rx:
            pass
        assert roles(jobs) == []


def test_an_end_that_was_closed_before_it_attached_stays_closed() -> None:
    with opened() as jobs:
        rx = jobs.consumer()
        rx.close()
        with pytest.raises(Closed):
            rx.recv()


def test_one_participant_too_many_is_refused() -> None:
    with opened("64 KiB") as jobs:
        ends = [jobs.producer().__enter__() for _ in range(256)]
        with pytest.raises(Refused, match="slots of participants"):
            jobs.consumer().recv()
        ends.pop().close()
        with jobs.consumer() as rx:
            ends[0].send(1)
            assert rx.recv() == 1
        for end in ends:
            end.close()


def test_the_statistics_say_who_is_there_and_how_full_it_is() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer(group="g") as rx:
        for _ in range(3):
            tx.send_bytes(bytes(100))
        rx.recv()
        said = jobs.stats()
        assert said["sent_bytes"] == 3 * 128
        assert said["used_bytes"] == 2 * 128
        assert said["capacity_bytes"] == PAGE_BYTES
        assert [(row["name"], row["members"]) for row in said["groups"]] == [("g", 1)]
        assert [(row["role"], row["pid"], row["messages"]) for row in said["participants"]] == [
            ("producer", os.getpid(), 3),
            ("consumer", os.getpid(), 1),
        ]
        assert tx.stats()["bytes"] == 300
        assert rx.stats()["messages"] == 1
