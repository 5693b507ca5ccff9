"""Counts the identifiers of many files through a bus, and once more in one process, and compares.

Theory of operation
===================

Three kinds of process, two channels::

    producers ── "files" ──▶ consumers ── "counts" ──▶ the process that called run()
        └───────────────────────────────────▲

A producer has a share of the files. It sends each as one record, ``[file number, piece number, bytes]``, or
as several where a file is larger than a record is to be: half of the ring at most (a larger one could never
be sent), and never more than `PIECE_BYTES`, so that what is reported of a record is small beside the second
ring. Then it reports how many pieces the file had.

*Pieces.* A piece ends wherever its size says, perhaps inside an identifier, and the next one may go to
another consumer. So a consumer counts what cannot depend on the neighbours, and hands back, uncounted, the
run of word bytes that the piece begins with and the one that it ends with (`count_piece`). Whoever collects
joins these in the order of the pieces and counts them (`Collector.total`). Every file goes this way, also one
of a single piece, and the sum is exact wherever a file is cut.

*Lost and duplicated* are measured. Consumers report each record by its two numbers. Lost is what a producer
reported and no consumer did (a file that no producer reported counts as one record). Duplicated is each
report of a record after its first; only the first one's counts are added.

*ack="done".* A record is done when its report is in the second ring, and the next receive says so. If a
consumer is killed before that, another gets its record, and nothing is lost. If it is killed after the report
and before the next receive, the record is counted again, and shows as duplicated. With ack="receive" the
record that a killed consumer had in hand would be lost.

*Time.* `seconds` is the bus part whole, from starting the broker until it and every worker have ended:
reading, counting and collecting are in it. `flow_seconds` is the part of it from the first file that a
producer opens to the last record's report; its clock is CLOCK_MONOTONIC, which is one for all processes of a
machine. The count in one process comes afterwards, so that neither slows the other down. Every file is read
once before both, so both find them in the page cache.
"""

from __future__ import annotations

import os
import sysconfig
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Final, Literal, cast

import shmbus
from shmbus import limits
from shmbus.lab.wordcount_work import (
    IDENTIFIER,
    Collector,
    OnProgress,
    Share,
    count_in_one_process,
    count_records,
    find_files,
    read_file,
    send_files,
)
from shmbus.launch import check_start_method
from shmbus.settings import parse_capacity

__all__ = ["PIECE_BYTES", "Plan", "WordCount", "plan", "run", "standard_library"]

PIECE_BYTES: Final = 1 << 20
"""The most of a file that goes into one record."""

FRAME_BYTES: Final = 256
"""Room in a record for its header, its two numbers and their framing; about 40 bytes are used."""

COUNTS_CAPACITY: Final = "8 MiB"
"""Of the second channel. A report is less than half of it: at worst all words of a piece are distinct."""

CONSUMERS: Final = "counters"
COLLECTOR: Final = "collector"


def standard_library() -> str:
    """The folder of the running Python's standard library."""
    return sysconfig.get_path("stdlib")


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be done: the files, and who does it how. Made by `plan`."""

    folder: str
    files: list[str]
    size_bytes: int
    consumers: int
    producers: int
    start_method: Literal["fork", "spawn", "forkserver"]
    backing: shmbus.Backing
    capacity_bytes: int

    @property
    def started_by(self) -> str:
        """How the workers are started: anonymous memory can only be inherited, so the broker forks them."""
        return "broker" if self.backing is shmbus.Backing.ANONYMOUS else self.start_method

    @property
    def piece_bytes(self) -> int:
        """The most of a file in one record."""
        return min(self.capacity_bytes // 2 - FRAME_BYTES, PIECE_BYTES)


def plan(
    folder: str | os.PathLike[str] | None = None,
    *,
    consumers: int = 2,
    producers: int = 1,
    start_method: str | None = None,
    backing: shmbus.Backing | str = shmbus.Backing.MEMFD,
    capacity: int | str = limits.DEFAULT_CAPACITY_BYTES,
) -> Plan:
    """Find the files and read each once.

    Args:
        folder: whose ``.py`` files; the standard library by default.
        consumers: how many processes count.
        producers: how many processes send; each has every n-th file.
        start_method: "fork", "spawn" or "forkserver"; None is the platform's default.
        backing: of the channel of files. The channel of counts is a memfd always, since this process takes
            part in it.
        capacity: of the channel of files, in bytes or text such as "64 MiB".

    Raises:
        Refused: the folder holds no ``.py`` file, or an argument is not possible.
        OSError: a file cannot be read.
    """
    where = standard_library() if folder is None else os.path.abspath(os.fspath(folder))
    if consumers < 1 or producers < 1:
        raise shmbus.Refused(f"{consumers} consumers and {producers} producers: one of each at least")
    method = cast(Literal["fork", "spawn", "forkserver"], check_start_method(start_method))
    wanted = shmbus.ChannelSettings(
        capacity_bytes=parse_capacity(capacity),
        backing=cast(shmbus.Backing, backing),
        directory="." if backing == shmbus.Backing.FILE else None,
    )
    files = find_files(where)
    if not files:
        raise shmbus.Refused(f"there is no .py file below {where}, so there is nothing to count")
    size_bytes = sum(len(read_file(path)) for path in files)
    return Plan(where, files, size_bytes, consumers, producers, method, wanted.backing, wanted.capacity_bytes)


@dataclass(frozen=True, slots=True)
class WordCount:
    """What happened; the top of this file says what each number covers.

    Attributes:
        plan: what was to be done.
        size_bytes: of the different records that were counted.
        records: how many different records were counted.
        lost: records that were sent and not counted.
        duplicated: counts of a record after its first.
        counts: of each identifier, through the bus.
        expected: the same, in one process.
        shares: what each worker did.
        failure: what a worker died of, where everything was collected all the same.
    """

    plan: Plan
    size_bytes: int
    records: int
    lost: int
    duplicated: int
    counts: Counter[bytes]
    expected: Counter[bytes]
    shares: list[Share]
    seconds: float
    flow_seconds: float
    one_process_seconds: float
    failure: shmbus.WorkerFailed | None = None

    @property
    def counts_equal(self) -> bool:
        """Whether the bus and the one process counted the same."""
        return self.counts == self.expected

    @property
    def correct(self) -> bool:
        """Whether the counts are equal, and each record was counted once."""
        return self.counts_equal and not self.lost and not self.duplicated

    def differences(self) -> list[tuple[str, int, int]]:
        """Identifiers whose counts differ: through the bus, in one process."""
        words = sorted(self.counts.keys() | self.expected.keys())
        rows = ((word.decode(), self.counts[word], self.expected[word]) for word in words)
        return [row for row in rows if row[1] != row[2]]

    def top(self, most: int = 10) -> list[tuple[str, int]]:
        """The identifiers that occur most often, with their counts."""
        ranked = sorted(self.counts.items(), key=lambda item: (-item[1], item[0]))
        return [(word.decode(), count) for word, count in ranked[:most]]

    def to_json(self) -> dict[str, Any]:
        """All of it as numbers, text, lists and dictionaries. The rates are over `seconds`."""
        return {
            "folder": self.plan.folder,
            "files": len(self.plan.files),
            "bytes": self.size_bytes,
            "records": self.records,
            "lost": self.lost,
            "duplicated": self.duplicated,
            "counts_equal": self.counts_equal,
            "identifiers": self.counts.total(),
            "distinct": len(self.counts),
            "seconds": self.seconds,
            "flow_seconds": self.flow_seconds,
            "one_process_seconds": self.one_process_seconds,
            "bytes_per_second": self.size_bytes / self.seconds,
            "records_per_second": self.records / self.seconds,
            "consumers": self.plan.consumers,
            "producers": self.plan.producers,
            "started_by": self.plan.started_by,
            "backing": self.plan.backing.value,
            "capacity_bytes": self.plan.capacity_bytes,
            "pattern": IDENTIFIER.decode(),
            "shares": [
                {
                    "worker": share.worker,
                    "role": share.role,
                    "records": share.records,
                    "bytes": share.size_bytes,
                }
                for share in self.shares
            ],
            "top": [list(pair) for pair in self.top()],
        }


def run(plan: Plan, on_progress: OnProgress | None = None) -> WordCount:
    """Count through a bus, count again in this process, and compare.

    Args:
        plan: from the function of that name.
        on_progress: called for each record, and then for each file of the second count.

    Raises:
        WorkerFailed: a worker failed, and not everything was collected.
        NoSpace: the machine has no room for the channels.
        Refused: more workers than a channel takes; or, with ``backing="anonymous"``, so many files that their
            names do not fit into the frame that asks the broker for a worker (about 12,000).
        OSError: a file cannot be read, or the machine has no room for another process.

    Example:
        >>> run(plan("src", consumers=4)).counts_equal
        True
    """
    collector = Collector(len(plan.files))
    began = time.perf_counter()
    failure = _count_through_bus(plan, collector, on_progress)
    bus_ended = time.perf_counter()
    expected = count_in_one_process(plan.files, on_progress)
    ended = time.perf_counter()
    return WordCount(
        plan=plan,
        size_bytes=collector.size_bytes,
        records=collector.records,
        lost=collector.lost,
        duplicated=collector.duplicated,
        counts=collector.total(),
        expected=expected,
        shares=list(collector.shares.values()),
        seconds=bus_ended - began,
        flow_seconds=collector.flow_seconds,
        one_process_seconds=ended - bus_ended,
        failure=failure,
    )


def _count_through_bus(
    plan: Plan, collector: Collector, on_progress: OnProgress | None
) -> shmbus.WorkerFailed | None:
    """Fill the collector; returns the failure of a worker that kept nothing from being collected."""
    collected = False
    try:
        with ExitStack() as stack:
            directory = None
            if plan.backing is shmbus.Backing.FILE:
                directory = stack.enter_context(tempfile.TemporaryDirectory(prefix="shmbus-demo-"))
            bus = stack.enter_context(shmbus.Bus())
            files = bus.channel(
                "files",
                capacity=plan.capacity_bytes,
                groups=[CONSUMERS],
                backing=plan.backing,
                directory=directory,
            )
            counts = bus.channel("counts", capacity=COUNTS_CAPACITY, groups=[COLLECTOR])
            consumers = bus.spawn(
                count_records,
                files.consumer(CONSUMERS, ack="done"),
                counts.producer(),
                count=plan.consumers,
                start_method=plan.start_method,
                name="consumer",
            )
            producers = []
            numbered = list(enumerate(plan.files))
            with ExitStack() as until_all_are_spawned:
                # The channel ends when everybody registered has gone: so the first producer, should it
                # be done before the last is spawned, must not be everybody. (Of anonymous memory the bus sees
                # to that by itself, and this process could not attach.)
                if plan.backing is not shmbus.Backing.ANONYMOUS:
                    until_all_are_spawned.enter_context(files.producer())
                for first in range(plan.producers):
                    producers += bus.spawn(
                        send_files,
                        numbered[first :: plan.producers],
                        plan.piece_bytes,
                        files.producer(),
                        counts.producer(),
                        start_method=plan.start_method,
                        name="producer",
                    )
            for role, workers in (("consumer", consumers), ("producer", producers)):
                for worker in workers:
                    collector.shares[worker.name] = Share(worker.name, role)
            with counts.consumer(COLLECTOR) as rx:
                for report in rx:
                    collector.add(report)
                    if on_progress is not None:
                        on_progress("bus", collector.size_bytes, collector.files_seen)
            collected = True
    except shmbus.WorkerFailed as error:
        if not collected:
            raise
        return error
    return None
