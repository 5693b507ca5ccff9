"""What the tests of channels without a broker share: channels put away, children, waiting for a state."""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import Any

from shmbus import Channel, channel

PAGE = "4 KiB"
PAGE_BYTES = 4096
HEADER_BYTES = 16
"""What a record takes in the ring besides its payload."""
CELL_BYTES = 64
LARGEST = PAGE_BYTES // 2 - HEADER_BYTES
"""The largest payload that fits into a channel of one page."""


@contextlib.contextmanager
def opened(capacity: int | str = PAGE, **settings: Any) -> Iterator[Channel]:
    """A channel without a broker; its ends in this process and its mapping are put away afterwards."""
    made = channel(capacity, **settings)
    try:
        yield made
    finally:
        made.detach()
        with contextlib.suppress(BufferError):  # a view of it is still in use
            made.memory().close()


def until(condition: Callable[[], object]) -> None:
    """Let others run until something is so. The watchdog bounds it."""
    while not condition():
        os.sched_yield()


def asleep(on: Channel, role: str) -> int:
    """How many participants of a role have gone to sleep at least once, or are about to."""
    return sum(1 for row in on.stats()["participants"] if row["role"] == role and row["sleeps"])


def roles(on: Channel) -> list[str]:
    """The roles of all who are attached."""
    return sorted(row["role"] for row in on.stats()["participants"])


def forked(body: Callable[[], object]) -> int:
    """Run something in a forked child, and return its pid at once."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    try:
        body()
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)


def ended(pid: int) -> int:
    """Wait for a child; its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def pattern(number: int, size: int) -> bytes:
    """A payload that tells which one it is by every byte of it."""
    unit = number.to_bytes(4, "little") + bytes((number * 7 + place) % 251 for place in range(60))
    return (unit * (size // 64 + 1))[:size]


def edge_sizes() -> list[int]:
    """Payload sizes around every edge of a cell, up to the largest that fits into a page."""
    edges = range(CELL_BYTES - HEADER_BYTES, LARGEST + 1, CELL_BYTES)
    near = {edge + step for edge in edges for step in (-1, 0, 1)} | {0, 1, 2, LARGEST - 1, LARGEST}
    return sorted(size for size in near if size <= LARGEST)


class Background(threading.Thread):
    """A call in a thread; `result()` waits for what it returned or raised."""

    def __init__(self, call: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._returned: Any = None
        self._raised: BaseException | None = None
        self.start()

    def run(self) -> None:
        try:
            self._returned = self._call()
        except BaseException as error:
            self._raised = error

    def result(self) -> Any:
        self.join()
        if self._raised is not None:
            raise self._raised
        return self._returned
