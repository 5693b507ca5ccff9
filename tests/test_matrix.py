"""Many producers and many consumers in processes of their own: every record once, in its producer's order.

Each record carries its producer and its place in that producer's sequence. A ledger in shared memory has
a byte for each record and group, which whoever receives the record counts up; in the end each byte is 1.
What one consumer gets of one producer has to come in order. Nobody dies here, so waits have no time
slices: a wake that is missed hangs the test.

The long version sends 1 M records in each cell.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ring_help import ended, forked, opened

from shmbus import Backing, Channel, Consumer, EndOfChannel, _core

HEAD = struct.Struct("<II")
FILLERS = [bytes(size) for size in range(0, 64, 7)]
EVERYDAY, LONG = 40_000, 1_000_000
SIZES = [1, 4, 20]


@pytest.fixture(autouse=True)
def wakes_only() -> Iterator[None]:
    before = _core.set_wait_slice(-1)
    yield
    _core.set_wait_slice(before)


class Ledger:
    """How often each record was received by each group; inherited by forked children."""

    def __init__(self, groups: int, producers: int, each: int) -> None:
        self._groups, self._producers, self._each = groups, producers, each
        self._counts = mmap.mmap(-1, groups * producers * each)

    def reader(self, group: int) -> Callable[[bytes | memoryview], None]:
        """Enters what one consumer of a group receives, and checks the order of each producer."""
        counts, each = self._counts, self._each
        base = group * self._producers * each
        last = [-1] * self._producers

        def enter(record: bytes | memoryview) -> None:
            producer, number = HEAD.unpack_from(record)
            assert len(record) == HEAD.size + len(FILLERS[number % len(FILLERS)])
            assert number > last[producer], f"producer {producer}: {number} after {last[producer]}"
            last[producer] = number
            counts[base + producer * each + number] += 1

        return enter

    def check(self) -> None:
        for group in range(self._groups):
            for producer in range(self._producers):
                start = (group * self._producers + producer) * self._each
                counts = self._counts[start : start + self._each]
                wrong = len(counts) - counts.count(1)
                lost = counts.count(0)
                assert wrong == 0, (
                    f"group {group}, producer {producer}: {lost} lost, {wrong - lost} more than once"
                )
        self._counts.close()


def produce(jobs: Channel, producer: int, each: int) -> None:
    with jobs.producer() as tx:
        if producer % 3 == 2:
            for start in range(0, each, 100):
                tx.send_many(record_of(producer, number) for number in range(start, min(each, start + 100)))
        else:
            for number in range(each):
                tx.send(record_of(producer, number))


def record_of(producer: int, number: int) -> bytes:
    return HEAD.pack(producer, number) + FILLERS[number % len(FILLERS)]


def consume(rx: Consumer, way: int, enter: Callable[[bytes | memoryview], None]) -> None:
    """Until the end, in one of the ways to receive."""
    with rx:
        if way == 0:
            for record in rx:
                enter(record)
            return
        try:
            while True:
                if way == 1:
                    for record in rx.recv_many(50):
                        enter(record)
                elif way == 2:
                    with rx.lease() as view:
                        enter(view[2:])  # behind the header of a msgpack bin
                else:
                    enter(rx.recv())
        except EndOfChannel:
            return


def run_cell(
    producers: int, consumers: int, groups: int, total: int, *, done: bool = False, **settings: Any
) -> None:
    names = tuple(f"group {number}" for number in range(groups))
    each = total // producers
    ledger = Ledger(groups, producers, each)
    with opened("64 KiB", groups=names, **settings) as jobs:
        (ticket,) = jobs.memory().register()
        receiving = [
            forked(
                lambda number=number, group=group: consume(
                    jobs.consumer(names[group], ack="done" if done else "receive"),
                    number % (2 if done else 4),
                    ledger.reader(group),
                )
            )
            for number in range(consumers)
            for group in range(groups)
        ]
        sending = [forked(lambda number=number: produce(jobs, number, each)) for number in range(producers)]
        for pid in sending:
            assert ended(pid) == 0
        jobs.memory().unregister([ticket])
        for pid in receiving:
            assert ended(pid) == 0
        assert jobs.stats()["used_bytes"] == 0
        assert jobs.stats()["participants"] == []
    ledger.check()


@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("consumers", SIZES)
@pytest.mark.parametrize("producers", SIZES)
def test_every_record_comes_once_to_each_group_and_in_order(
    producers: int, consumers: int, groups: int
) -> None:
    run_cell(producers, consumers, groups, EVERYDAY)


@pytest.mark.long
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize("consumers", SIZES)
@pytest.mark.parametrize("producers", SIZES)
def test_every_record_of_a_million_comes_once_to_each_group_and_in_order(
    producers: int, consumers: int, groups: int
) -> None:
    run_cell(producers, consumers, groups, LONG)


def test_so_it_is_when_records_are_kept_until_they_are_done() -> None:
    run_cell(4, 4, 2, EVERYDAY, done=True)


@pytest.mark.parametrize("backing", [Backing.SHM, Backing.FILE, Backing.ANONYMOUS])
def test_so_it_is_on_every_other_backing(backing: Backing, tmp_path: Path, unique: str) -> None:
    files = {"directory": str(tmp_path), "name": unique} if backing is Backing.FILE else {}
    run_cell(4, 4, 1, EVERYDAY, backing=backing, **files)
    for path in tmp_path.iterdir():
        path.unlink()
