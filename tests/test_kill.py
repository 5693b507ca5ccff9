"""Processes that are killed at random under load: nothing that a send had returned for is lost, and the
others go on.

Producers and consumers (ack="done") run in forked children, round a small channel with two groups. The
parent kills one at random times with SIGKILL, stops one now and then for a while with SIGSTOP, and puts
another in the place of whoever is gone. Some of the killed stay zombies until the end.

What has happened is in a ledger in anonymous shared memory, which outlives whoever writes to it. A
producer notes a record's number after the send of it has returned; a consumer marks a record before it
asks for the next one, which is what says that it is done. In the end each noted record must have been
marked in each group. A record that comes as new must come so once, and what one consumer gets as new from
one producer must come in order.

SHMBUS_TEST_KILLS is the number of kills (40), SHMBUS_TEST_SEED repeats the same choices (though not the
same moments).
"""

from __future__ import annotations

import contextlib
import mmap
import os
import random
import select
import signal
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest
from ring_help import forked, opened, until

from shmbus import Bus, Channel, _core

KILLS = int(os.environ.get("SHMBUS_TEST_KILLS", "40"))
SEED = int(os.environ.get("SHMBUS_TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 30)
GROUPS = ("a", "b")
PRODUCERS, CONSUMERS = 3, 5
MOST_RECORDS = 1 << 17
"""Of one producer; it then ends by itself and another comes."""
HEAD = struct.Struct("<II")
FRESH, MARKED = 1, 2


class Ledger:
    """What was sent and received, in memory that forked children share; producers are numbered."""

    def __init__(self, most_producers: int) -> None:
        self.most_producers = most_producers
        self._sent = mmap.mmap(-1, 8 * most_producers)
        self._marks = mmap.mmap(-1, len(GROUPS) * most_producers * MOST_RECORDS)
        self._flags = mmap.mmap(-1, 4096)

    def stop(self) -> None:
        self._flags[0] = 1

    @property
    def stopping(self) -> bool:
        return self._flags[0] != 0

    def note_sent(self, producer: int, number: int) -> None:
        struct.pack_into("<Q", self._sent, 8 * producer, number + 1)

    def sent(self, producer: int) -> int:
        (count,) = struct.unpack_from("<Q", self._sent, 8 * producer)
        return int(count)

    def total(self) -> int:
        return sum(struct.unpack(f"<{self.most_producers}Q", self._sent[:]))

    def mark(self, group: int, producer: int, number: int, *, fresh: bool) -> None:
        place = (group * self.most_producers + producer) * MOST_RECORDS + number
        if fresh:
            assert not self._marks[place] & FRESH, f"record {producer}/{number} came twice as a new one"
        self._marks[place] |= MARKED | (FRESH if fresh else 0)

    def lost(self) -> list[str]:
        """Each record that was sent and not marked by a group."""
        missing = []
        for group, name in enumerate(GROUPS):
            for producer in range(self.most_producers):
                start = (group * self.most_producers + producer) * MOST_RECORDS
                marks = self._marks[start : start + self.sent(producer)]
                if 0 in marks:
                    missing += [f"{name}: {producer}/{at}" for at, mark in enumerate(marks) if not mark]
        return missing

    def close(self) -> None:
        for memory in (self._sent, self._marks, self._flags):
            memory.close()


# ---- the children


def produce(jobs: Channel, ledger: Ledger, producer: int) -> None:
    fillers = [bytes(size) for size in range(0, 300, 37)]
    with jobs.producer() as tx:
        for number in range(MOST_RECORDS):
            if ledger.stopping:
                break
            tx.send(HEAD.pack(producer, number) + fillers[number % len(fillers)])
            ledger.note_sent(producer, number)


def consume(jobs: Channel, ledger: Ledger, group: int) -> None:
    last: dict[int, int] = {}
    with jobs.consumer(GROUPS[group], ack="done") as rx:
        for record in rx:
            producer, number = HEAD.unpack_from(record)
            fresh = not rx.redelivered
            if fresh:
                assert number > last.get(producer, -1), f"{producer}/{number} after {last[producer]}"
                last[producer] = number
            ledger.mark(group, producer, number, fresh=fresh)


# ---- the parent


@dataclass
class Child:
    pid: int
    role: str
    group: int
    descriptor: int


@dataclass
class Campaign:
    """The children of one run, and what was done to them."""

    jobs: Channel
    kills: int
    rng: random.Random
    ledger: Ledger = field(init=False)
    children: list[Child] = field(default_factory=list)
    zombies: list[int] = field(default_factory=list)
    producers: int = 0
    killed: dict[str, int] = field(default_factory=lambda: {"producer": 0, "consumer": 0})
    stopped: int = 0

    def __post_init__(self) -> None:
        self.ledger = Ledger(3 * self.kills + 10 * PRODUCERS)

    def start(self, role: str, group: int) -> None:
        body: Callable[[], None]
        if role == "producer":
            number, self.producers = self.producers, self.producers + 1
            assert number < self.ledger.most_producers
            body = lambda: produce(self.jobs, self.ledger, number)  # noqa: E731
        else:
            body = lambda: consume(self.jobs, self.ledger, group)  # noqa: E731
        pid = forked(body)
        self.children.append(Child(pid, role, group, os.pidfd_open(pid)))

    def bury(self, child: Child, *expected: int) -> None:
        """Wait for one that has ended, or will, and see how."""
        code = os.waitstatus_to_exitcode(os.waitpid(child.pid, 0)[1])
        assert code in expected, f"{child.role} {child.pid} ended with {code}"
        os.close(child.descriptor)

    def replace_who_has_ended(self, patience: float) -> None:
        """For a random while, and whoever ends by himself is a producer that has sent all it can."""
        ended, _, _ = select.select([child.descriptor for child in self.children], [], [], patience)
        for child in [child for child in self.children if child.descriptor in ended]:
            self.children.remove(child)
            self.bury(child, 0)
            assert child.role == "producer", "a consumer has ended while producers run"
            self.start(child.role, child.group)

    def kill_one(self) -> None:
        child = self.children.pop(self.rng.randrange(len(self.children)))
        os.kill(child.pid, signal.SIGKILL)
        self.killed[child.role] += 1
        if self.rng.random() < 0.1:
            self.zombies.append(child.pid)
            os.close(child.descriptor)
        else:
            self.bury(child, -signal.SIGKILL)
        self.start(child.role, child.group)

    def stop_one_for_a_while(self) -> None:
        child = self.rng.choice(self.children)
        os.kill(child.pid, signal.SIGSTOP)
        self.stopped += 1
        others = [other.descriptor for other in self.children if other is not child]
        select.select(others, [], [], self.rng.uniform(0, 0.02))
        os.kill(child.pid, signal.SIGCONT)

    def run(self) -> None:
        memory = self.jobs.memory()
        (ticket,) = memory.register()
        for number in range(CONSUMERS):
            self.start("consumer", number % len(GROUPS))
        for _ in range(PRODUCERS):
            self.start("producer", 0)
        until(lambda: self.ledger.total() > 0)
        for _ in range(self.kills):
            self.replace_who_has_ended(self.rng.uniform(0, 0.02))
            if self.rng.random() < 0.1:
                self.stop_one_for_a_while()
            self.kill_one()
        before = self.ledger.total()
        until(lambda: self.ledger.total() > before + 1000)  # those who are left go on
        self.ledger.stop()
        for role in ("producer", "consumer"):
            for child in [child for child in self.children if child.role == role]:
                self.bury(child, 0)
                self.children.remove(child)
            if role == "producer":
                memory.unregister([ticket])
        for pid in self.zombies:
            os.waitpid(pid, 0)

    def check(self) -> None:
        memory = self.jobs.memory()
        memory.reap()
        said = self.jobs.stats()
        dropped = sum(group["dropped"] for group in said["groups"])
        print(
            f"seed {SEED}: killed {self.killed}, stopped {self.stopped}, sent {self.ledger.total()}, "
            f"redelivered {[group['redelivered'] for group in said['groups']]}, dropped {dropped}, "
            f"aborted {said['aborted']}, reaped {said['reaped']}"
        )
        lost = self.ledger.lost()
        assert not lost[:20], f"{len(lost)} records lost"
        assert dropped == 0
        assert said["participants"] == said["leases"] == []
        assert said["used_bytes"] == 0
        assert sum(self.killed.values()) == self.kills

    def abandon(self) -> None:
        """After a failure: nobody stays behind."""
        for child in self.children:
            os.kill(child.pid, signal.SIGKILL)
            os.waitpid(child.pid, 0)
            os.close(child.descriptor)


@contextlib.contextmanager
def slice_of(seconds: float) -> Iterator[None]:
    before = _core.set_wait_slice(seconds)
    try:
        yield
    finally:
        _core.set_wait_slice(before)


def kill_at_random(jobs: Channel, kills: int) -> None:
    print(f"seed {SEED} (SHMBUS_TEST_SEED repeats it)")
    campaign = Campaign(jobs, kills, random.Random(SEED))
    try:
        campaign.run()
        campaign.check()
    finally:
        campaign.abandon()
        campaign.ledger.close()


@pytest.mark.parametrize("capacity", ["4 KiB", "64 KiB"])
def test_killed_at_random_nothing_that_was_sent_is_lost_without_a_broker(capacity: str) -> None:
    with slice_of(0.01), opened(capacity, groups=GROUPS) as jobs:  # the living find the dead in their waits
        kill_at_random(jobs, KILLS)


def test_killed_at_random_nothing_that_was_sent_is_lost_with_a_broker() -> None:
    with slice_of(-1), Bus() as bus:  # nobody looks but the broker
        kill_at_random(bus.channel("jobs", capacity="16 KiB", groups=GROUPS, end="producers"), KILLS)


@pytest.mark.long
def test_a_thousand_killed_at_random_and_nothing_is_lost_without_a_broker() -> None:
    with slice_of(0.01), opened("16 KiB", groups=GROUPS) as jobs:
        kill_at_random(jobs, 1000)


@pytest.mark.long
def test_a_thousand_killed_at_random_and_nothing_is_lost_with_a_broker() -> None:
    with slice_of(-1), Bus() as bus:
        kill_at_random(bus.channel("jobs", capacity="16 KiB", groups=GROUPS, end="producers"), 1000)
