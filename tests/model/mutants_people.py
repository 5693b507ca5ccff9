"""Mistakes around it: groups, the dead, slots, sleeping and waking."""

from __future__ import annotations

from model.planted import Mutant

PEOPLE = [
    # ---- group.c
    Mutant(
        "a group joins without raising the version",
        "group.c",
        (
            (
                "add_sc(&header->version, 1);",
                "",
            ),
        ),
        "joins",
        "a scan that has missed the group moves the floor beyond its cursor",
    ),
    Mutant(
        "a group joins where it looked first",
        "group.c",
        (
            (
                "store_sc(&group->cursor, first_unsettled(ring, start));",
                "",
            ),
        ),
        "joins",
        "a scan that ended before J4 may have found a floor beyond that",
    ),
    Mutant(
        "a group joins at the tail",
        "group.c",
        (
            (
                "store_sc(&group->cursor, first_unsettled(ring, start));",
                "store_sc(&group->cursor, load_sc(&header->tail));",
            ),
        ),
        "nobody-joined-two",
        "the floor then passes claims that are not settled (the model found this one in the core)",
    ),
    Mutant(
        "a joiner wakes no producer",
        "group.c",
        (
            (
                "event_wake(&header->space_event, true, -1);",
                "",
            ),
        ),
        "nobody-joined",
        "who slept on the provisional cursor sleeps on (the model found this one in the core)",
    ),
    Mutant(
        "a name is looked for only before the join word is held",
        "group.c",
        (
            (
                "if (found != UINT32_MAX) consumer->group_index = found; else",
                "",
            ),
        ),
        "joiners",
        "two joiners make two groups of one name",
    ),
    # ---- reap.c
    Mutant(
        "an orphan is made of a lease whose cursor has not moved on",
        "reap.c",
        (
            (
                "(start & 3) == LEASE_HOLDING && load_sc(&ring->groups[g].cursor) >= load_sc(&lease->end)",
                "(start & 3) == LEASE_HOLDING",
            ),
        ),
        "leased-leftovers",
        "the record still stands at the cursor: it is delivered twice though nobody had taken it",
    ),
    Mutant(
        "a lease whose cursor has moved on is freed",
        "reap.c",
        (
            (
                "(start & 3) == LEASE_PARKED || ((start & 3) == LEASE_HOLDING && "
                "load_sc(&ring->groups[g].cursor) >= load_sc(&lease->end))",
                "(start & 3) == LEASE_PARKED",
            ),
        ),
        "redelivered",
        "with ack=done the record is lost",
    ),
    Mutant(
        "a parked lease is freed",
        "reap.c",
        (
            (
                "(start & 3) == LEASE_PARKED ||",
                "",
            ),
        ),
        "parked",
        "its cursor has long moved on: the record is lost",
    ),
    Mutant(
        "a reaper acts on a stale word",
        "reap.c",
        (
            (
                "if (load_sc(&ring->participants[index].word) != dead) return false;",
                "",
            ),
        ),
        "slot-reuse",
        "paused after its proof, it aborts the claim of the slot's next, living owner",
    ),
    Mutant(
        "the slot is freed before what it names is settled",
        "reap.c",
        (
            (
                "if (!settle_claims(ring, index, dead))",
                "cas_sc(&slot->word, dead, slot_freed(dead)); if (!settle_claims(ring, index, dead))",
            ),
        ),
        "one-to-one",
        "nobody looks after a free slot: its claim stands for ever",
    ),
    Mutant(
        "the slot is freed before leases are settled",
        "reap.c",
        (
            (
                "settle_leases(ring, who);",
                "cas_sc(&slot->word, dead, slot_freed(dead)); settle_leases(ring, who);",
            ),
        ),
        "reaper-dies",
        "a reaper that dies in between leaves leases that nobody settles",
    ),
    Mutant(
        "reapers clear the lease itself",
        "reap.c",
        (
            (
                "if (!cas_sc(&lease->owner, owner, after))",
                "if (after == OWNER_FREE) store_sc(&lease->start, LEASE_CLEAR); if "
                "(!cas_sc(&lease->owner, owner, after))",
            ),
        ),
        "lease-reuse-two",
        "a reaper that was paused clears the lease of its next owner: the two-word lease of the "
        "opening design",
    ),
    Mutant(
        "the reaper does not help the tail",
        "reap.c",
        (
            (
                "cas_sc(&ring->header->tail, position, end);",
                "",
            ),
        ),
        "one-to-one",
        "a settled record that the tail has not passed: cursors pass the tail, and the end is never found",
    ),
    Mutant(
        "the reaper keeps the join word",
        "reap.c",
        (
            (
                "cas_sc(&ring->header->joiner, who | 1, 0);",
                "",
            ),
        ),
        "joiners",
        "nobody can join any more",
    ),
    Mutant(
        "the reaper keeps private groups",
        "reap.c",
        (
            (
                "settle_groups(ring, who);",
                "",
            ),
        ),
        "private-full",
        "the cursor of a dead consumer holds producers back for ever",
    ),
    Mutant(
        "orphans are not announced",
        "reap.c",
        (
            (
                "add_sc(&ring->groups[group - 1].orphans, 1);",
                "(void)group;",
            ),
        ),
        "redelivered",
        "the others do not look for them",
    ),
    Mutant(
        "after a death only the visible sleepers are woken",
        "reap.c",
        (
            (
                "event_wake_after_death(&ring->groups[i].event, ring->event_fd);",
                "event_wake(&ring->groups[i].event, true, ring->event_fd);",
            ),
        ),
        "one-to-one",
        "a waker that died after clearing the bit leaves sleepers without one (the model found this "
        "one in the core)",
    ),
    Mutant(
        "the reaper frees the slot before it wakes",
        "reap.c",
        (
            (
                "wake_after_death(ring); /*",
                "cas_sc(&slot->word, leaving, slot_freed(leaving)); wake_after_death(ring); /*",
            ),
        ),
        "reaper-dies",
        "a reaper that dies in its wake leaves sleepers whom nobody will wake",
    ),
    # ---- participant.c
    Mutant(
        "the slot is free before the wake",
        "participant.c",
        (
            (
                "cas_sc(&member->slot->word, member->word, leaving);",
                "cas_sc(&member->slot->word, member->word, slot_freed(leaving));",
            ),
        ),
        "one-to-one",
        "a leaver that dies in its wake leaves sleepers whom nobody will wake (the model found this "
        "one in the core)",
    ),
    Mutant(
        "producers are seen before they are there",
        "participant.c",
        (
            (
                "uint64_t attaching =",
                "if (role == ROLE_PRODUCER) store_sc(&ring->header->producers_seen, 1); uint64_t attaching =",
            ),
        ),
        "late-producer",
        "a consumer finds that there was a producer and that there is none: the end, before the beginning",
    ),
    # ---- event.c
    Mutant(
        "a reaper clears the bit",
        "event.c",
        (
            (
                "add32_sc(event, EVENT_COUNT); os_event_fd_write(",
                "clear_bits(event, EVENT_SLEEPING); add32_sc(event, EVENT_COUNT); os_event_fd_write(",
            ),
        ),
        "reaper-wakes",
        "a broker that is killed before its wake is reaped by nobody (the model found this one in the core)",
    ),
    Mutant(
        "a wake-one clears the bit",
        "event.c",
        (
            (
                "if (os_futex_wake(event, 1) > 0) return;",
                "if (os_futex_wake(event, 1) > 0) { clear_bits(event, EVENT_SLEEPING); return; }",
            ),
        ),
        "busy",
        "the others sleep without a bit, and the next record wakes nobody",
    ),
    Mutant(
        "the bit is cleared without an increment",
        "event.c",
        (
            (
                "(word + EVENT_COUNT) & ~bits",
                "word & ~bits",
            ),
        ),
        "full-once",
        "another sleeper sets the bit again, and the word is the one that the first sleeps on: the "
        "wake has passed it by",
    ),
    Mutant(
        "a sleeper takes its value after it has set the bit",
        "event.c",
        (
            (
                "{ return or32_sc(event, EVENT_SLEEPING) | EVENT_SLEEPING; }",
                "{ or32_sc(event, EVENT_SLEEPING); return load32_sc(event); }",
            ),
        ),
        "one-to-one-empty",
        "a waker in between clears the bit, and the sleeper sleeps on the word without it",
    ),
    Mutant(
        "a wake-one makes no new value",
        "event.c",
        (
            (
                "add32_sc(event, EVENT_COUNT); if (os_futex_wake",
                "if (os_futex_wake",
            ),
            (
                "clear_bits(event, EVENT_SLEEPING); os_futex_wake(event, INT_MAX); } /* Whoever died",
                "} /* Whoever died",
            ),
        ),
        "one-to-one-empty",
        "a sleeper that has looked and is not yet asleep misses it",
    ),
    # ---- wait.c
    Mutant(
        "the need is published before the bit",
        "wait.c",
        (
            (
                "uint32_t value = event_prepare(&header->space_event);",
                "",
            ),
            (
                "if (load32_sc(&producer->closing) || producer_has_space",
                "uint32_t value = event_prepare(&header->space_event); if "
                "(load32_sc(&producer->closing) || producer_has_space",
            ),
        ),
        "full",
        "a waker resets it in between, and the producer sleeps with a bit and without a need",
    ),
    Mutant(
        "a producer sleeps without looking again",
        "wait.c",
        (
            (
                "if (load32_sc(&producer->closing) || producer_has_space(producer, payload_bytes))",
                "if (load32_sc(&producer->closing))",
            ),
        ),
        "one-to-one",
        "the space came before the bit",
    ),
    Mutant(
        "a consumer sleeps without looking again",
        "wait.c",
        (
            (
                "if (load32_sc(&consumer->closing) || consumer_looks_ready(consumer) || "
                "consumer_end(consumer) != RING_WOULD_BLOCK)",
                "if (load32_sc(&consumer->closing) || consumer_end(consumer) != RING_WOULD_BLOCK)",
            ),
        ),
        "one-to-one-empty",
        "the record came before the bit",
    ),
]
