"""A channel against a deque for each group: any sequence of sends, receives, loans, leases and closings.

The model knows positions too, so it says of each try whether there is room, to the last cell: a record takes
its header and payload in whole cells, and nothing is overwritten that a group has not passed or that a lease
holds.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from ring_help import CELL_BYTES, HEADER_BYTES, LARGEST, PAGE_BYTES, edge_sizes, pattern

from shmbus import Closed, EndOfChannel, TimedOut, TooLarge, WouldBlock, channel

pytestmark = pytest.mark.patience(400)  # a failure is first made small

SIZES = st.one_of(st.sampled_from(edge_sizes()), st.integers(0, 200), st.integers(0, LARGEST))
WHICH = st.integers(0, 9)


@dataclass(eq=False)
class Record:
    """What lies in the ring, or did: `payload` is None while a loan is open, and after it was aborted."""

    start: int
    end: int
    payload: bytes | None = None
    aborted: bool = False

    @property
    def is_open(self) -> bool:
        return self.payload is None and not self.aborted


@dataclass(eq=False)
class Group:
    """A group's deque of what it has yet to receive, and its members."""

    waiting: deque[Record]
    members: list[Any] = field(default_factory=list)
    private: bool = False

    def skip_aborted(self) -> None:
        while self.waiting and self.waiting[0].aborted:
            self.waiting.popleft()


class ChannelMachine(RuleBasedStateMachine):
    """One channel of a page; groups "a" and "b" are declared, "c" and private ones join later."""

    @initialize()
    def make(self) -> None:
        self.channel = channel(PAGE_BYTES, codec="raw", groups=("a", "b"), end="closed")
        self.producers = [self.channel.producer().__enter__() for _ in range(2)]
        self.tail = self.number = 0
        self.sent: list[Record] = []
        self.groups: dict[str, Group] = {}
        self.loans: list[tuple[Any, Record, int]] = []
        self.leases: list[tuple[Any, Record]] = []
        for name in ("a", "b"):
            self.join(name)

    def join(self, name: str | None) -> None:
        rx = self.channel.consumer(group=name).__enter__()
        self.number += 1
        key = name if name is not None else f"private {self.number}"
        if (
            key not in self.groups
        ):  # it starts with the first record that is still being written, or at the tail
            unsettled = (place for place, record in enumerate(self.sent) if record.is_open)
            start = next(unsettled, len(self.sent))
            self.groups[key] = Group(deque(self.sent[start:]), private=name is None)
        self.groups[key].members.append(rx)

    # ---- the model

    def has_room(self, size: int) -> bool:
        return self.tail + self.length(size) <= self.floor() + PAGE_BYTES

    def cursor(self, group: Group) -> int:
        return group.waiting[0].start if group.waiting else self.tail

    def floor(self) -> int:
        cursors = [self.cursor(group) for group in self.groups.values()]
        return min([self.tail, *cursors, *(record.start for _, record in self.leases)])

    @staticmethod
    def length(size: int) -> int:
        return -(-(size + HEADER_BYTES) // CELL_BYTES) * CELL_BYTES

    def append(self, size: int, payload: bytes | None) -> Record:
        record = Record(self.tail, self.tail + self.length(size), payload)
        self.tail = record.end
        self.sent.append(record)
        for group in self.groups.values():
            group.waiting.append(record)
        return record

    def next_payload(self, size: int) -> bytes:
        self.number += 1
        return pattern(self.number, size)

    # ---- sending

    @rule(size=SIZES, which=WHICH, way=st.sampled_from(["try_send", "send", "send_bytes"]))
    def send(self, size: int, which: int, way: str) -> None:
        tx = self.producers[which % 2]
        payload = self.next_payload(size)
        if way == "try_send":
            sent = tx.try_send(payload)
        elif self.has_room(size) or not self.loans:
            try:
                getattr(tx, way)(payload, timeout=0)
                sent = True
            except TimedOut:
                sent = False
        else:
            return  # full behind a loan: sending may be refused instead of waited for
        assert sent == self.has_room(size)
        if sent:
            self.append(size, payload)

    @rule(size=st.integers(LARGEST + 1, 3 * PAGE_BYTES), which=WHICH)
    def send_too_much(self, size: int, which: int) -> None:
        with pytest.raises(TooLarge):
            self.producers[which % 2].try_send(bytes(size))

    @rule(size=SIZES, which=WHICH)
    def lend(self, size: int, which: int) -> None:
        if self.has_room(size) and len(self.loans) < 3:
            loan = self.producers[which % 2].loan(size, timeout=0)
            self.loans.append((loan, self.append(size, None), size))

    @precondition(lambda self: self.loans)
    @rule(which=WHICH, shorter=st.integers(0, LARGEST), commit=st.booleans())
    def end_a_loan(self, which: int, shorter: int, commit: bool) -> None:
        loan, record, size = self.loans.pop(which % len(self.loans))
        if not commit:
            loan.abort()
            record.aborted = True
            return
        record.payload = self.next_payload(min(size, shorter))
        loan.buffer[: len(record.payload)] = record.payload
        loan.commit(len(record.payload))

    # ---- receiving

    def some_group(self, which: int) -> Group:
        return list(self.groups.values())[which % len(self.groups)]

    @rule(which=WHICH, member=WHICH, way=st.sampled_from(["try_recv", "recv", "recv_bytes", "recv_many"]))
    def receive(self, which: int, member: int, way: str) -> None:
        group = self.some_group(which)
        if not group.members:
            return
        rx = group.members[member % len(group.members)]
        group.skip_aborted()
        if not group.waiting or group.waiting[0].payload is None:
            with pytest.raises(WouldBlock if way == "try_recv" else TimedOut):
                {"try_recv": rx.try_recv}.get(way, lambda: rx.recv(timeout=0))()
            return
        if way == "recv_many":
            expected = []
            while group.waiting and group.waiting[0].payload is not None and len(expected) < 4:
                expected.append(group.waiting.popleft().payload)
                group.skip_aborted()
            assert rx.recv_many(4, timeout=0) == expected
            return
        received = rx.try_recv() if way == "try_recv" else getattr(rx, way)(timeout=0)
        assert received == group.waiting.popleft().payload
        assert not rx.redelivered

    @rule(which=WHICH, member=WHICH)
    def hold(self, which: int, member: int) -> None:
        group = self.some_group(which)
        if not group.members or len(self.leases) > 4:
            return
        group.skip_aborted()
        if not group.waiting or group.waiting[0].payload is None:
            with pytest.raises(TimedOut):
                group.members[member % len(group.members)].lease(timeout=0)
            return
        lease = group.members[member % len(group.members)].lease(timeout=0)
        self.leases.append((lease, group.waiting.popleft()))

    @precondition(lambda self: self.leases)
    @rule(which=WHICH)
    def let_go(self, which: int) -> None:
        lease, record = self.leases.pop(which % len(self.leases))
        assert lease.view == record.payload
        lease.release()

    # ---- joining and leaving

    @rule(name=st.sampled_from(["a", "b", "c", None]))
    def another_joins(self, name: str | None) -> None:
        if sum(len(group.members) for group in self.groups.values()) < 8:
            self.join(name)

    @rule(which=WHICH, member=WHICH)
    def one_leaves(self, which: int, member: int) -> None:
        name, group = list(self.groups.items())[which % len(self.groups)]
        if group.members and not self.leases:  # one that lends views leaves when they have ended
            group.members.pop(member % len(group.members)).close()
            if group.private:
                del self.groups[name]

    @rule(which=WHICH)
    def a_producer_comes_anew(self, which: int) -> None:
        if not self.loans:
            self.producers[which % 2].close()
            self.producers[which % 2] = self.channel.producer().__enter__()

    # ---- always

    @invariant()
    def what_is_held_stays_as_it_was(self) -> None:
        for lease, record in getattr(self, "leases", []):
            assert lease.view == record.payload

    @invariant()
    def the_statistics_agree(self) -> None:
        if not hasattr(self, "tail"):
            return
        said = self.channel.stats()
        assert said["sent_bytes"] == self.tail
        backlogs = [self.tail - self.cursor(group) for group in self.groups.values()]
        assert sorted(row["backlog_bytes"] for row in said["groups"]) == sorted(backlogs)
        assert said["used_bytes"] == self.tail - self.floor()

    def teardown(self) -> None:
        if not hasattr(self, "channel"):
            return
        for loan, record, _ in self.loans:
            loan.abort()
            record.aborted = True
        for lease, _ in self.leases:
            lease.release()
        self.channel.close()
        with pytest.raises(Closed):
            self.producers[0].send(b"")
        for group in self.groups.values():
            rest = [record.payload for record in group.waiting if not record.aborted]
            if not group.members:
                continue
            assert list(group.members[0]) == rest
            for rx in group.members:
                with pytest.raises(EndOfChannel):
                    rx.recv()
        self.channel.detach()


ChannelMachine.TestCase.settings = settings(
    database=None, deadline=None, max_examples=50, stateful_step_count=50
)
TestAChannelIsADequeForEachGroup = ChannelMachine.TestCase


class LongChannelMachine(ChannelMachine):
    """The same, for longer."""


LongChannelMachine.TestCase.settings = settings(
    database=None, deadline=None, max_examples=3000, stateful_step_count=120
)
TestAChannelIsADequeForEachGroupAtLength = pytest.mark.long(LongChannelMachine.TestCase)
