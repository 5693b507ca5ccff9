"""What a ring's tables say, in words."""

from __future__ import annotations

from typing import Any, Final

from shmbus import _core

ROLES: Final = {0: "attaching", 1: "producer", 2: "consumer", 3: "ticket", 4: "observer"}
_GROUP_STATES: Final = {1: "held", 2: "joining", 3: "named", 4: "private", 5: "lossy", 6: "dropped"}
_LEASE_STATES: Final = {1: "taking", 2: "holding", 3: "parked"}
_STATUSES: Final = {0: "open", 1: "closed", 2: "poisoned"}


def describe(ring: _core.Ring, label: str, capacity_bytes: int) -> dict[str, Any]:
    """The tables of a ring as plain numbers, text and lists: see ``RingMemory.stats``.

    Args:
        ring: the native ring.
        label: the channel's name.
        capacity_bytes: its capacity.
    """
    tail, floor, status, reaped, aborted, _ = ring.counters()
    people = ring.participants()
    pid_of = {row[0]: row[1] for row in people}
    groups = []
    oldest = tail
    blockers: set[int] = set()
    for index, state, name, cursor, redelivered, dropped, blocker in ring.groups():
        if state in (1, 2, 3, 4):
            oldest = min(oldest, cursor)
        if blocker >= 0 and state != 5:
            blockers.add(pid_of.get(blocker, 0))
        groups.append(
            {
                "name": name or None,
                "kind": _GROUP_STATES.get(state, "?"),
                "backlog_bytes": max(0, tail - cursor) if state != 5 else None,
                "redelivered": redelivered,
                "dropped": dropped,
                "members": sum(1 for row in people if row[4] == index),
            }
        )
    leases = []
    for _, owner_state, slot, group, deliveries, state, start, end in ring.leases():
        held_back = state in (1, 2) and start < oldest
        owner = pid_of.get(slot) if owner_state == 2 else None
        if held_back and owner:
            blockers.add(owner)
        leases.append(
            {
                "pid": owner,
                "group": group,
                "state": _LEASE_STATES.get(state, "?") if owner_state == 2 else "orphan",
                "bytes": end - start,
                "deliveries": deliveries,
            }
        )
        if state in (1, 2):
            oldest = min(oldest, start)
    return {
        "name": label,
        "status": _STATUSES.get(status, "?"),
        "capacity_bytes": capacity_bytes,
        "used_bytes": max(0, tail - oldest),
        "sent_bytes": tail,
        "floor_bytes": floor,
        "groups": groups,
        "leases": leases,
        "blockers": sorted(blockers - {0}),
        "reaped": reaped,
        "aborted": aborted,
        "participants": [
            {
                "pid": row[1],
                "role": ROLES.get(row[3], "?"),
                "group": row[4] if row[4] >= 0 else None,
                "messages": row[5],
                "bytes": row[6],
                "sleeps": row[7],
                "spins": row[8],
            }
            for row in people
        ],
    }
