"""Many producers and many consumers: every record once a group, every producer's order kept.

The long version sends a million records a cell: ``pytest -m long tests/test_matrix.py``.
"""

import multiprocessing
import struct
from multiprocessing.connection import Connection
from typing import NamedTuple

import pytest

import shmbus

RECORD = struct.Struct("<II56x")  # producer, sequence
CELLS = [(producers, consumers) for producers in (1, 4, 20) for consumers in (1, 4, 20)]


class Received(NamedTuple):
    """What one consumer saw."""

    out_of_order: int
    count: int
    seen: list[bytearray]  # a bit a record, by producer


def produce(tx: shmbus.Producer, who: int, each: int) -> None:
    with tx:
        for sequence in range(each):
            tx.send_bytes(RECORD.pack(who, sequence))


def consume(rx: shmbus.Consumer, report: Connection, producers: int, each: int) -> None:
    last = [-1] * producers
    seen = [bytearray((each + 7) // 8) for _ in range(producers)]
    count = out_of_order = 0
    with rx:
        for record in rx:
            who, sequence = RECORD.unpack(record)
            out_of_order += sequence <= last[who]
            last[who] = sequence
            seen[who][sequence >> 3] |= 1 << (sequence & 7)
            count += 1
    report.send(Received(out_of_order, count, seen))
    report.close()


def run_cell(producers: int, consumers: int, groups: int, total: int, **settings: object) -> None:
    """One cell of the matrix, in processes of its own; asserts what must hold."""
    context = multiprocessing.get_context("fork")
    each = total // producers
    names = [f"group-{number}" for number in range(groups)]
    channel = shmbus.channel("1 MiB", groups=names, **settings)
    expected = channel.producer()
    tickets = expected._register(producers)
    reports: dict[str, list[Connection]] = {name: [] for name in names}
    processes = []
    for name in names:
        for _ in range(consumers):
            mine, theirs = context.Pipe(duplex=False)
            arguments = (channel.consumer(name), theirs, producers, each)
            processes.append(context.Process(target=consume, args=arguments))
            processes[-1].start()
            theirs.close()
            reports[name].append(mine)
    senders = [
        context.Process(target=produce, args=(channel.producer(), who, each)) for who in range(producers)
    ]
    for process in senders:
        process.start()
    for process in senders:
        process.join()
    expected._unregister(tickets)
    for received in reports.values():
        seen = [0] * producers
        count = 0
        for pipe in received:
            report: Received = pipe.recv()
            pipe.close()
            count += report.count
            assert report.out_of_order == 0
            for who, bits in enumerate(report.seen):
                number = int.from_bytes(bits, "little")
                assert seen[who] & number == 0, f"producer {who}: a record was received twice"
                seen[who] |= number
        assert count == each * producers
        assert seen == [(1 << each) - 1] * producers
    for process in processes:
        process.join()
    assert [process.exitcode for process in [*senders, *processes]] == [0] * (producers + groups * consumers)
    channel.detach()


@pytest.mark.parametrize(("producers", "consumers"), CELLS)
def test_every_record_arrives_once_and_each_producers_order_is_kept(producers: int, consumers: int) -> None:
    run_cell(producers, consumers, groups=1, total=8000)


@pytest.mark.parametrize(("producers", "consumers"), [(1, 1), (4, 4), (20, 5)])
def test_each_of_four_groups_receives_every_record_once(producers: int, consumers: int) -> None:
    run_cell(producers, consumers, groups=4, total=4000)


@pytest.mark.parametrize("backing", ["memfd", "shm", "anonymous"])
def test_each_backing_carries_records_between_processes(backing: str) -> None:
    run_cell(2, 2, groups=1, total=4000, backing=backing)


@pytest.mark.long
@pytest.mark.parametrize("groups", [1, 4])
@pytest.mark.parametrize(("producers", "consumers"), CELLS)
def test_a_million_records_arrive_once_in_order(producers: int, consumers: int, groups: int) -> None:
    run_cell(producers, consumers, groups=groups, total=1_000_000)
