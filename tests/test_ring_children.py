"""Channels in children: by fork, spawn and forkserver, on each backing; and what a fork must not disturb."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
from collections.abc import Iterator
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import pytest
from ring_help import ended, forked, opened, roles, until

from shmbus import Backing, Channel, Closed, Consumer, EndOfChannel, Producer, Refused, TimedOut

pytestmark = pytest.mark.patience(60)


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def context(request: pytest.FixtureRequest) -> Any:
    return multiprocessing.get_context(request.param)


@pytest.fixture(params=list(Backing))
def settings_of_a_backing(
    request: pytest.FixtureRequest, tmp_path: Path, unique: str
) -> Iterator[dict[str, Any]]:
    """What makes a channel of each backing; its files, which stay, are taken away afterwards."""
    if request.param is not Backing.FILE:
        yield {"backing": request.param}
        return
    yield {"backing": request.param, "directory": str(tmp_path), "name": unique}
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == [f"{unique}.control", f"{unique}.data"]
    for path in tmp_path.iterdir():
        path.unlink()


def double(rx: Consumer, tx: Producer) -> None:
    with rx, tx:
        for number in rx:
            tx.send(2 * number)


def double_on(there: Channel, back: Channel) -> None:
    double(there.consumer(), back.producer())


def run_to_its_end(context: BaseContext, target: Any, *args: Any) -> None:
    process = context.Process(target=target, args=args)  # type: ignore[attr-defined]
    process.start()
    process.join()
    assert process.exitcode == 0
    process.close()


# ---- passed on


@pytest.mark.parametrize("what", ["ends", "channels"])
def test_a_channel_and_its_ends_can_be_passed_to_a_child(context: BaseContext, what: str) -> None:
    with opened() as there, opened() as back:
        with there.producer() as tx:
            tx.send_many(range(30))
        if what == "ends":
            run_to_its_end(context, double, there.consumer(), back.producer())
        else:
            run_to_its_end(context, double_on, there, back)
        with back.consumer() as rx:
            assert list(rx) == list(range(0, 60, 2))
        assert roles(there) == roles(back) == []


def test_each_backing_reaches_a_forked_child(settings_of_a_backing: dict[str, Any]) -> None:
    with opened("64 KiB", **settings_of_a_backing) as jobs:

        def produce() -> None:
            with jobs.producer() as tx:
                for number in range(3000):
                    tx.send_bytes(number.to_bytes(4, "big") * (number % 700))

        (ticket,) = jobs.memory().register()
        child = forked(produce)
        with jobs.consumer(ack="done") as rx:
            for number in range(3000):
                assert rx.recv() == number.to_bytes(4, "big") * (number % 700)
            assert ended(child) == 0
            jobs.memory().unregister([ticket])
            with pytest.raises(EndOfChannel):
                rx.recv()


def test_an_attached_end_cannot_be_passed_on_and_the_error_says_what_can() -> None:
    with opened() as jobs, jobs.producer() as tx, pytest.raises(Refused, match=r"channel\.producer\(\)"):
        pickle.dumps(tx)


def test_a_channel_without_a_broker_cannot_be_pickled_on_its_own() -> None:
    with opened() as jobs, pytest.raises(Refused, match="no broker"):
        pickle.dumps(jobs)


def test_anonymous_memory_cannot_be_passed_to_a_child_that_is_not_forked() -> None:
    with opened(backing="anonymous") as jobs, pytest.raises(Refused, match="forked"):
        multiprocessing.get_context("spawn").Process(target=double_on, args=(jobs, jobs)).start()


# ---- forked


def test_an_attached_end_is_closed_in_a_forked_child_and_the_parents_goes_on() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer(ack="done") as rx:
        tx.send("before")
        assert rx.recv() == "before"
        loan = tx.loan(3)
        tx.send("behind the loan")

        def use_what_was_inherited() -> None:
            for call in (lambda: tx.send(1), lambda: tx.loan(1), rx.recv, rx.try_recv, rx.fileno):
                with pytest.raises(Closed, match="belongs to the process"):
                    call()
            for call in (loan.commit, loan.abort):
                with pytest.raises(Closed):
                    call()
            assert tx.closed
            assert rx.closed
            tx.close()
            rx.close(redeliver=True)
            gc.collect()

        assert ended(forked(use_what_was_inherited)) == 0
        assert not tx.closed
        assert not rx.closed
        assert roles(jobs) == ["consumer", "producer"]
        loan.buffer[:] = b"own"
        loan.commit()
        assert [rx.recv(), rx.recv()] == [b"own", "behind the loan"]
        assert not rx.redelivered


def test_a_channel_object_works_in_a_forked_child_while_the_parent_is_attached() -> None:
    with opened() as jobs, jobs.consumer() as rx, jobs.producer() as tx:

        def use_the_channel() -> None:
            with jobs.producer() as own:
                own.send("from the child")
            jobs.detach()

        assert ended(forked(use_the_channel)) == 0
        tx.send("from the parent")
        assert rx.recv_many(9) == ["from the child", "from the parent"]


def test_a_child_and_its_parent_share_a_group_through_ends_of_their_own() -> None:
    with opened() as jobs, opened() as counts:

        def count() -> None:
            with jobs.consumer() as rx, counts.producer() as tx:
                tx.send("ready")
                tx.send(sum(1 for _ in rx))

        tickets = counts.memory().register(3)
        with jobs.producer() as tx:
            children = [forked(count) for _ in range(3)]
            with counts.consumer() as rx:
                assert [rx.recv() for _ in children] == ["ready"] * 3
                for number in range(2000):
                    tx.send(number)
                tx.close()
                counted = [rx.recv() for _ in children]
                assert sum(counted) == 2000
        for child in children:
            assert ended(child) == 0
        counts.memory().unregister(tickets)


def test_a_fork_of_a_fork_is_somebody_else_again() -> None:
    with opened() as jobs, jobs.consumer() as rx:

        def send_and_fork() -> None:
            tx = jobs.producer()
            tx.send("child")

            def send_as_grandchild() -> None:
                with pytest.raises(Closed):
                    tx.send("no")
                with jobs.producer() as own:
                    own.send("grandchild")

            assert ended(forked(send_as_grandchild)) == 0
            tx.send("child again")
            tx.close()

        assert ended(forked(send_and_fork)) == 0
        assert list(rx) == ["child", "grandchild", "child again"]


def test_tickets_that_were_inherited_are_the_parents() -> None:
    with opened() as jobs, jobs.consumer() as rx:
        tickets = jobs.memory().register(2)
        assert ended(forked(lambda: jobs.memory().unregister(tickets))) == 0
        assert roles(jobs) == ["consumer", "ticket", "ticket"]
        with pytest.raises(TimedOut):
            rx.recv(timeout=0)
        jobs.memory().unregister(tickets)


def test_a_child_that_dies_without_a_word_leaves_the_parents_ends_alone() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:
        child = forked(lambda: os.kill(os.getpid(), signal.SIGKILL))
        assert ended(child) == -signal.SIGKILL
        assert jobs.memory().reap() == 0
        tx.send(1)
        assert rx.recv() == 1


def test_a_zombie_is_dead_although_nobody_has_waited_for_it() -> None:
    with opened() as jobs, jobs.producer() as tx, jobs.consumer() as rx:

        def receive_and_die() -> None:
            own = jobs.consumer(ack="done")
            own.recv()
            os.kill(os.getpid(), signal.SIGKILL)
            del own

        tx.send("held by a zombie")
        child = forked(receive_and_die)
        os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
        os.kill(child, 0)  # to kill() it still exists
        assert jobs.memory().reap() == 1
        assert rx.recv(timeout=0) == "held by a zombie"
        assert ended(child) == -signal.SIGKILL


# ---- private


@pytest.mark.parametrize("backing", [Backing.MEMFD, Backing.ANONYMOUS])
def test_over_private_mappings_nothing_arrives_which_is_the_point(backing: Backing) -> None:
    with opened(visibility="private", backing=backing) as jobs, jobs.consumer() as rx:

        def send_into_the_void() -> None:
            with jobs.producer() as tx:
                for number in range(10):
                    tx.send(number)
                assert jobs.stats()["sent_bytes"] == 10 * 64

        assert ended(forked(send_into_the_void)) == 0
        with pytest.raises(TimedOut):
            rx.recv(timeout=0.001)
        assert jobs.stats()["sent_bytes"] == 0


# ---- putting away


def test_nothing_is_left_open_when_a_channel_is_put_away() -> None:
    before = len(os.listdir("/proc/self/fd"))
    mapped = Path("/proc/self/maps").read_text().count("shmbus:")
    for _ in range(3):
        with opened(groups=("a",)) as jobs:
            tx, rx = jobs.producer(), jobs.consumer("a")
            tx.send(1)
            rx.recv()
            rx.fileno()
    assert len(os.listdir("/proc/self/fd")) == before
    assert Path("/proc/self/maps").read_text().count("shmbus:") == mapped


def test_a_dead_childs_records_are_there_and_its_slot_is_free_after_reaping() -> None:
    with opened() as jobs:

        def send_and_die() -> None:
            tx = jobs.producer()
            tx.send(bytes(1000))
            os.kill(os.getpid(), signal.SIGKILL)

        assert ended(forked(send_and_die)) == -signal.SIGKILL
        assert roles(jobs) == ["producer"]
        until(lambda: jobs.memory().reap() == 0)
        assert roles(jobs) == []
        with jobs.consumer() as rx:
            assert list(rx) == [bytes(1000)]
