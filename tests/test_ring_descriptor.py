"""Waiting with `select` and `epoll`: a consumer is readable while a receive may find something."""

from __future__ import annotations

import select

import pytest
from ring_help import Background, asleep, ended, forked, opened, until

from shmbus import Consumer, EndOfChannel, WouldBlock

pytestmark = pytest.mark.patience(60)


def readable(rx: Consumer) -> bool:
    return bool(select.select([rx], [], [], 0)[0])


def settle(*ends: Consumer) -> None:
    """Look once: a descriptor may be readable before the first look, and after others' wakes."""
    for rx in ends:
        with pytest.raises(WouldBlock):
            rx.try_recv()


def test_the_descriptor_is_readable_while_messages_remain_and_not_when_a_look_found_nothing() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        assert rx.fileno() == rx.fileno()
        settle(rx)
        assert not readable(rx)
        for _ in range(3):
            tx.send_many([1, 2, 3])
            for number in (1, 2, 3):
                assert readable(rx)
                assert rx.try_recv() == number
            settle(rx)
            assert not readable(rx)


def test_a_loop_over_epoll_gets_everything_and_the_end() -> None:
    with opened() as jobs, jobs.consumer() as rx, select.epoll() as loop:
        loop.register(rx, select.EPOLLIN)

        def produce() -> None:
            with jobs.producer() as tx:
                for number in range(3000):
                    tx.send(number)

        (ticket,) = jobs.memory().register()
        child = forked(produce)
        received = []
        while len(received) < 3000:
            assert loop.poll() == [(rx.fileno(), select.EPOLLIN)]
            while True:
                try:
                    received.append(rx.try_recv())
                except WouldBlock:
                    break
        assert received == list(range(3000))
        assert ended(child) == 0
        settle(rx)
        jobs.memory().unregister([ticket])
        assert loop.poll()
        with pytest.raises(EndOfChannel):
            rx.try_recv()


def test_each_group_and_each_member_of_one_is_woken_by_its_own_descriptor() -> None:
    with (
        opened(groups=("a", "b")) as jobs,
        jobs.producer() as tx,
        jobs.consumer("a") as one,
        jobs.consumer("a") as two,
        jobs.consumer("b") as other,
    ):
        ends = [one, two, other]
        for rx in ends:
            rx.fileno()
        for round_number in range(20):
            settle(*ends)
            assert not any(readable(rx) for rx in ends)
            tx.send(round_number)
            assert all(readable(rx) for rx in ends)
            assert (two if round_number % 2 else one).try_recv() == round_number
            assert other.try_recv() == round_number


def test_the_descriptor_says_it_when_the_end_comes_or_a_record_is_given_back() -> None:
    with opened() as jobs, jobs.consumer() as rx, jobs.producer() as tx:
        rx.fileno()
        other = jobs.consumer(ack="done")
        tx.send("back")
        assert other.recv() == "back"
        settle(rx)
        assert not readable(rx)
        other.close(redeliver=True)
        assert readable(rx)
        assert rx.try_recv() == "back"
        settle(rx)
        tx.close()
        assert readable(rx)
        with pytest.raises(EndOfChannel):
            rx.try_recv()


def test_a_blocking_receive_beside_the_descriptor_works_too() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        rx.fileno()
        settle(rx)
        waiting = Background(rx.recv)
        until(lambda: asleep(jobs, "consumer"))
        tx.send(1)
        assert waiting.result() == 1
        settle(rx)
        assert not readable(rx)
        tx.send(2)
        assert readable(rx)
