"""The parts of the word count: what a producer does, what a consumer does, what is done with their reports.

``wordcount.py`` has the picture of them together, and says why pieces have edges.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing import process
from typing import Any, Final

import shmbus

__all__ = [
    "IDENTIFIER",
    "Collector",
    "OnProgress",
    "PieceCount",
    "Share",
    "count_identifiers",
    "count_in_one_process",
    "count_piece",
    "count_records",
    "find_files",
    "join_edges",
    "read_file",
    "send_files",
]

IDENTIFIER: Final = rb"\b[A-Za-z_]\w*"
"""What is counted: each run of ASCII word bytes (letters, digits, underscores) that begins with no digit.
Keywords are among them, and so are words in comments and strings."""

_find: Final = re.compile(IDENTIFIER).findall
_WORD_BYTES: Final = bytes(byte for byte in range(256) if re.match(rb"\w", bytes([byte])))

OnProgress = Callable[[str, int, int], None]
"""Called with the stage ("bus" or "one process"), and how many bytes and files are counted so far."""


# --- counting ---------------------------------------------------------------------------------------------


def count_identifiers(data: bytes) -> Counter[bytes]:
    """How often each identifier occurs in `data`."""
    return Counter(_find(data))


@dataclass(frozen=True, slots=True)
class PieceCount:
    """What one piece of a file holds.

    Attributes:
        head: the run of word bytes that it begins with, uncounted; perhaps empty.
        tail: the one that it ends with; None if the piece is one run from end to end, all of it in `head`.
        counts: of everything between.
    """

    head: bytes
    tail: bytes | None
    counts: Counter[bytes]


def count_piece(data: bytes) -> PieceCount:
    """Count what cannot depend on the neighbours of a piece; see the top of this file."""
    rest = data.lstrip(_WORD_BYTES)
    head = data[: len(data) - len(rest)]
    if not rest:
        return PieceCount(head, None, Counter())
    inner = rest.rstrip(_WORD_BYTES)
    return PieceCount(head, rest[len(inner) :], count_identifiers(inner))


def join_edges(edges: Iterable[tuple[bytes, bytes | None]]) -> Iterator[bytes]:
    """The runs of word bytes that lie at the edges of a file's pieces, whole again.

    Args:
        edges: head and tail of each piece, in order.
    """
    run: list[bytes] = []
    for head, tail in edges:
        run.append(head)
        if tail is not None:
            yield b"".join(run)
            run = [tail]
    yield b"".join(run)


def count_in_one_process(files: Sequence[str], on_progress: OnProgress | None = None) -> Counter[bytes]:
    """Count the identifiers of the files right here, without a bus."""
    counts: Counter[bytes] = Counter()
    size = 0
    for number, path in enumerate(files, 1):
        data = read_file(path)
        counts.update(count_identifiers(data))
        size += len(data)
        if on_progress is not None:
            on_progress("one process", size, number)
    return counts


# --- files ------------------------------------------------------------------------------------------------


def find_files(folder: str) -> list[str]:
    """The regular ``.py`` files below a folder, sorted; site-packages and dist-packages are left out."""
    found = []
    for parent, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name not in ("site-packages", "dist-packages")]
        paths = (os.path.join(parent, name) for name in names if name.endswith(".py"))
        found += [path for path in paths if os.path.isfile(path)]
    return sorted(found)


def read_file(path: str) -> bytes:
    """All bytes of a file."""
    with open(path, "rb") as file:
        return file.read()


# --- what the workers do ----------------------------------------------------------------------------------


def send_files(
    files: Sequence[tuple[int, str]], piece_bytes: int, tx: shmbus.Producer, reports: shmbus.Producer
) -> None:
    """A producer: send the files, each with its number, and report how many pieces each had."""
    name = process.current_process().name
    with tx, reports:
        for number, path in files:
            began_ns = time.monotonic_ns()
            data = memoryview(read_file(path))
            starts = range(0, max(len(data), 1), piece_bytes)  # an empty file is a record too
            for piece, start in enumerate(starts):
                tx.send([number, piece, data[start : start + piece_bytes]])
            reports.send(["sent", name, number, len(starts), len(data), began_ns])


def count_records(rx: shmbus.Consumer, reports: shmbus.Producer) -> None:
    """A consumer: count each record, and report the counts before the next one is taken."""
    name = process.current_process().name
    with rx, reports:
        for number, piece, data in rx:
            found = count_piece(data)
            words, times = b" ".join(found.counts), list(found.counts.values())
            reports.send(["counted", name, number, piece, len(data), found.head, found.tail, words, times])


# --- collecting -------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Share:
    """What one worker did: the records that a producer sent, or that a consumer counted."""

    worker: str
    role: str
    records: int = 0
    size_bytes: int = 0


@dataclass(slots=True)
class Collector:
    """Adds up the reports of the workers.

    Args:
        files: how many files there are, numbered from 0.
    """

    files: int
    shares: dict[str, Share] = field(default_factory=dict)
    duplicated: int = 0
    size_bytes: int = 0
    first_ns: int | None = None
    last_ns: int = 0
    _counts: Counter[bytes] = field(default_factory=Counter)
    _sent: dict[int, int] = field(default_factory=dict)
    _got: dict[int, dict[int, tuple[bytes, bytes | None]]] = field(default_factory=dict)

    def add(self, report: list[Any]) -> None:
        """Take one report, as `send_files` and `count_records` make them."""
        kind, worker, number, *rest = report
        if kind == "sent":
            pieces, size, began_ns = rest
            self._share(worker, "producer", pieces, size)
            self._sent[number] = pieces
            self.first_ns = began_ns if self.first_ns is None else min(began_ns, self.first_ns)
            return
        piece, size, head, tail, words, times = rest
        self._share(worker, "consumer", 1, size)
        got = self._got.setdefault(number, {})
        if piece in got:
            self.duplicated += 1
            return
        got[piece] = (head, tail)
        self.size_bytes += size
        counts, so_far = self._counts, self._counts.get
        for word, count in zip(words.split(), times, strict=True):
            counts[word] = so_far(word, 0) + count
        self.last_ns = time.monotonic_ns()

    def _share(self, worker: str, role: str, records: int, size_bytes: int) -> None:
        share = self.shares.setdefault(worker, Share(worker, role))
        share.records += records
        share.size_bytes += size_bytes

    @property
    def files_seen(self) -> int:
        """How many files have been counted, or a piece of each."""
        return len(self._got)

    @property
    def records(self) -> int:
        """How many different records were counted."""
        return sum(map(len, self._got.values()))

    @property
    def lost(self) -> int:
        """How many records were not."""
        missing = 0
        for number in range(self.files):
            got = self._got.get(number, {})
            missing += sum(piece not in got for piece in range(self._sent.get(number, 1)))
        return missing

    @property
    def flow_seconds(self) -> float:
        """From the first file that a producer opened to the last report on a record."""
        return 0.0 if self.first_ns is None else max(0, self.last_ns - self.first_ns) / 1e9

    def total(self) -> Counter[bytes]:
        """All counts, those at the edges of pieces among them."""
        total = self._counts.copy()
        for pieces in self._got.values():
            for run in join_edges(edges for _, edges in sorted(pieces.items())):
                total.update(count_identifiers(run))
        return total
