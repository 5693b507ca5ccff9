"""Shared memory in which anything may stand: calls end in messages or errors of shmbus, never in a crash."""

from __future__ import annotations

import contextlib
import os
import random
import struct

import pytest
from ring_help import PAGE_BYTES, ended, forked, opened

from shmbus import Corrupt, ShmbusError
from shmbus.ring import RingMemory
from shmbus.settings import ChannelSettings

pytestmark = pytest.mark.patience(120)

#: A seed of the user's, to repeat a run; else a new one.
SEED = int(os.environ.get("SHMBUS_TEST_SEED", "0")) or random.SystemRandom().randrange(1 << 30)


def spoil(rng: random.Random, control: memoryview, data: memoryview) -> None:
    """Change one word: anywhere, or in the tables at the front."""
    view, length = rng.choice(
        [(control, 4096), (control, len(control)), (control, 60_000), (data, len(data))]
    )
    place = rng.randrange(0, min(length, len(view)) - 8, 8)
    (before,) = struct.unpack_from("<Q", view, place)
    after = rng.choice(
        [
            rng.getrandbits(64),
            rng.randrange(300),
            before ^ (1 << rng.randrange(64)),
            (before + rng.choice([-64, 64, PAGE_BYTES])) & (1 << 64) - 1,
            (1 << 64) - 1,
            1 << 61,
        ]
    )
    struct.pack_into("<Q", view, place, after)


def use_a_spoilt_channel(seed: int, steps: int) -> None:
    rng = random.Random(seed)
    with opened(groups=("a", "b"), end="closed") as jobs:
        memory = jobs.memory()
        ends = []
        calls = [
            lambda: rng.choice(ends[:2]).try_send(bytes(rng.randrange(1500))),
            lambda: rng.choice(ends[:2]).send([rng.random()], timeout=0),
            lambda: rng.choice(ends[2:]).recv(timeout=0),
            lambda: rng.choice(ends[2:]).try_recv(),
            lambda: rng.choice(ends[2:]).recv_many(5, timeout=0),
            lambda: bytes(rng.choice(ends[2:5]).lease(timeout=0).view),
            lambda: rng.choice(ends[:2]).loan(rng.randrange(200), timeout=0).abort(),
            jobs.stats,
            memory.participants,
            memory.is_closed,
            memory.reap,
            lambda: rng.choice(ends).stats(),
            lambda: jobs.consumer(None).recv(timeout=0),
        ]
        for make in (
            jobs.producer,
            jobs.producer,
            lambda: jobs.consumer("a"),
            lambda: jobs.consumer("a", ack="done"),
            lambda: jobs.consumer("b"),
            lambda: jobs.consumer(None, lossy=True),
        ):
            ends.append(make().__enter__())  # type: ignore[attr-defined]
        ring = memory._rings[True]
        with memoryview(memory._control) as control, memoryview(ring[1]) as data:  # type: ignore[arg-type]
            for _ in range(steps):
                spoil(rng, control, data)
                for call in rng.sample(calls, 3):
                    with contextlib.suppress(ShmbusError, BufferError):
                        call()


@pytest.mark.parametrize("number", range(15))
def test_words_changed_at_random_end_in_errors_of_shmbus(number: int) -> None:
    seed = SEED + number
    print(f"seed {seed}")
    child = forked(lambda: use_a_spoilt_channel(seed, 150))  # so that a crash is seen as one
    assert ended(child) == 0, f"SHMBUS_TEST_SEED={seed}"


@pytest.mark.long
def test_words_changed_at_random_for_long() -> None:
    for seed in range(SEED, SEED + 1000):
        assert ended(forked(lambda seed=seed: use_a_spoilt_channel(seed, 300))) == 0, (
            f"SHMBUS_TEST_SEED={seed}"
        )


def test_a_header_of_which_any_word_was_changed_is_opened_or_corrupt() -> None:
    rng = random.Random(SEED)
    settings = ChannelSettings(capacity_bytes=PAGE_BYTES)
    made = RingMemory.create(settings, "header")
    (original,) = (os.pread(made.control_fd, 4096, 0),)
    opened_anyway = 0
    for place in [*range(0, 160, 8), *range(2000, 4096, 64)]:
        for value in (0, 1, (1 << 64) - 1, rng.getrandbits(64)):
            os.pwrite(made.control_fd, struct.pack("<Q", value), place)
            try:
                fds = [os.dup(fd) for fd in (made.control_fd, made.data_fd, made.event_fd)]
                RingMemory.open(*fds, settings).close()
                opened_anyway += 1
            except Corrupt:
                pass
            os.pwrite(made.control_fd, original, 0)
    assert opened_anyway  # counters and times are nobody's business
    made.close()
