"""Random kill -9 under load: what ``send`` had returned for is not lost with ``ack="done"``.

The oracle is memory that no victim can take along: each producer writes how many of its sends have returned
into a shared mapping, each consumer marks there what it has finished. Whom to kill, and after how many
records, comes from a printed seed.

The long version: ``pytest -m long tests/test_kill.py`` (a thousand kills).
"""

import mmap
import multiprocessing
import os
import random
import signal
import struct
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from typing import Final

import pytest

import shmbus

COUNT: Final = struct.Struct("<Q")
RECORD: Final = struct.Struct("<II")
EACH: Final = 50_000  # sends of one producer's life, at most
FORK: Final = multiprocessing.get_context("fork")


def body_of(life: int, sequence: int) -> bytes:
    return bytes([(life + sequence) & 255]) * (sequence * 37 % 700)


class Ledger:
    """What was sent and what was finished, by each life of a producer."""

    def __init__(self, lives: int) -> None:
        self.lives = lives
        self.sent = mmap.mmap(-1, lives * COUNT.size)
        self.finished = mmap.mmap(-1, lives * EACH)

    def send_returned(self, life: int, count: int) -> None:
        COUNT.pack_into(self.sent, life * COUNT.size, count)

    def count_of(self, life: int) -> int:
        return int(COUNT.unpack_from(self.sent, life * COUNT.size)[0])

    def total(self) -> int:
        return sum(self.count_of(life) for life in range(self.lives))

    def lost(self) -> int:
        return sum(
            self.finished[life * EACH : life * EACH + self.count_of(life)].count(0)
            for life in range(self.lives)
        )

    def close(self) -> None:
        self.sent.close()
        self.finished.close()


def produce(tx: shmbus.Producer, ledger: Ledger, life: int) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    with tx:
        for sequence in range(EACH):
            tx.send_bytes(RECORD.pack(life, sequence) + body_of(life, sequence))
            ledger.send_returned(life, sequence + 1)


def consume(rx: shmbus.Consumer, ledger: Ledger) -> None:
    with rx:
        for record in rx:
            life, sequence = RECORD.unpack_from(record)
            assert record[RECORD.size :] == body_of(life, sequence), "torn"
            at = life * EACH + sequence
            ledger.finished[at] = min(2, ledger.finished[at] + 1)


def wait_for_records(ledger: Ledger, records: int, producers: list[BaseProcess]) -> None:
    """Until so many more were sent. Gives the processor away between looks: nothing tells it."""
    target = ledger.total() + records
    while ledger.total() < target and any(process.is_alive() for process in producers):
        os.sched_yield()


def campaign(kills: int, seed: int) -> None:
    print("seed", seed)
    choice = random.Random(seed)
    ledger = Ledger(lives=2 * kills + 10)
    channel = shmbus.channel("256 KiB", groups=["workers"])
    expected = channel.producer()
    tickets = expected._register(1)
    life = 0
    producers: list[BaseProcess] = []
    consumers: list[BaseProcess] = []

    def start_producer() -> None:
        nonlocal life
        producers.append(FORK.Process(target=produce, args=(channel.producer(), ledger, life)))
        producers[-1].start()
        life += 1

    def start_consumer() -> None:
        consumers.append(FORK.Process(target=consume, args=(channel.consumer("workers", ack="done"), ledger)))
        consumers[-1].start()

    for _ in range(3):
        start_producer()
        start_consumer()
    for _ in range(kills):
        wait_for_records(ledger, choice.randrange(20, 300), producers)
        kind: tuple[list[BaseProcess], Callable[[], None]] = choice.choice(
            [(producers, start_producer), (consumers, start_consumer)]
        )
        victims, start_another = kind
        victim = victims.pop(choice.randrange(len(victims)))
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        start_another()
        for process in [process for process in producers if not process.is_alive()]:
            producers.remove(process)  # it has sent everything
            start_producer()
    for process in producers:
        process.terminate()
        process.join()
    expected._unregister(tickets)
    for process in consumers:
        process.join()
    assert [process.exitcode for process in consumers] == [0, 0, 0], "a survivor did not drain and end"
    assert ledger.total() > kills
    assert ledger.lost() == 0
    stats = channel.stats()
    assert stats["leases"] == []
    assert stats["participants"] == []
    print(f"{kills} kills, {ledger.total()} records sent, {stats['groups'][0]['redelivered']} redelivered")
    channel.detach()
    ledger.close()


@pytest.mark.parametrize("seed", [1, 2])
def test_a_kill_at_any_moment_loses_nothing_that_send_returned_for(seed: int) -> None:
    campaign(kills=25, seed=seed)


@pytest.mark.long
@pytest.mark.parametrize("seed", [11])
def test_a_thousand_kills_lose_nothing_that_send_returned_for(seed: int) -> None:
    campaign(kills=1000, seed=seed)
