"""Mistakes in the way of a record: sending, receiving, looking without holding back."""

from __future__ import annotations

from model.planted import Mutant

RECORDS = [
    # ---- send.c
    Mutant(
        "leases read before cursors",
        "send.c",
        (
            (
                "uint64_t least = UINT64_MAX;",
                "uint64_t least = UINT64_MAX; for (uint32_t i = 0; i < g->leases && i < "
                "load_sc(&header->leases_high); i++) { uint64_t early = "
                "load_sc(&ring->leases[i].start); if (owner_state_of(load_sc(&ring->leases[i].owner)) "
                ">= OWNER_OWNED && (early & 3) % 3 != 0 && (early & ~UINT64_C(3)) < least) least = "
                "early & ~UINT64_C(3); }",
            ),
            (
                "high = load_sc(&header->leases_high);",
                "high = 0;",
            ),
        ),
        "leased",
        "a lease taken between the two scans is missed, and its cursor has moved on: the bytes are "
        "overwritten",
    ),
    Mutant(
        "the floor ignores leases",
        "send.c",
        (
            (
                "high = load_sc(&header->leases_high);",
                "high = 0;",
            ),
        ),
        "leased",
        "what a consumer holds is overwritten",
    ),
    Mutant(
        "the scan does not look at the version",
        "send.c",
        (
            (
                "if (load_sc(&header->version) != version)",
                "if (version == UINT64_MAX)",
            ),
        ),
        "joins",
        "a group that joined during the scan is missed, while another's cursor was read late",
    ),
    Mutant(
        "the floor passes claims that are not settled",
        "send.c",
        (
            (
                "|| claim_state_of(word) == CLAIM_CLAIMED) break;",
                ") break;",
            ),
        ),
        "nobody",
        "without a group nothing but the claim itself keeps others off the cells that are being written",
    ),
    Mutant(
        "no status after the claim",
        "send.c",
        (
            (
                "result = ring_status(ring); /* C6 */",
                "result = RING_OK;",
            ),
        ),
        "closing",
        "C6: a consumer may have found the channel closed and drained before this claim",
    ),
    Mutant(
        "committed before the payload is written",
        "send.c",
        (
            (
                "claim_pack(g, tail, producer->member.index, cells, CLAIM_CLAIMED)",
                "claim_pack(g, tail, producer->member.index, cells, CLAIM_COMMITTED)",
            ),
        ),
        "one-to-one",
        "a consumer copies what is not there yet",
    ),
    Mutant(
        "a lagging tail is waited for",
        "send.c",
        (
            (
                "cas_sc(&ring->header->tail, t, t + cells * CELL_BYTES); continue;",
                "if (cells) continue;",
            ),
        ),
        "stopped",
        "C3: a producer that stops between claim and tail would keep all others from sending",
    ),
    Mutant(
        "no wake after the commit",
        "send.c",
        (
            (
                "event_wake(&ring->groups[i].event, false, ring->event_fd);",
                "(void)i;",
            ),
        ),
        "one-to-one-empty",
        "a consumer sleeps beside a record",
    ),
    # ---- receive.c
    Mutant(
        "the cursor moves before the copy",
        "receive.c",
        (
            (
                "if (record->length <= room - RECORD_HEADER_BYTES) return RING_OK;",
                "if (record->length <= room - RECORD_HEADER_BYTES) return cas_sc(cursor, c, c + room) "
                "? RING_OK : RING_RETRY;",
            ),
            (
                "if (!cas_sc(&consumer->group->cursor, record->position, record->end)) return RING_RETRY; if",
                "if",
            ),
        ),
        "one-to-one",
        "R2, R3: the producers may have the cells before the copy is made",
    ),
    Mutant(
        "a lease is taken without reading the cursor again",
        "receive.c",
        (
            (
                "if (load_sc(&consumer->group->cursor) != record->position) {",
                "if (record->position == UINT64_MAX) {",
            ),
        ),
        "leases-dying",
        "L2: the record may have gone before TAKING was seen; who dies now leaves an orphan of "
        "overwritten bytes",
    ),
    Mutant(
        "a lease in use stays the spare",
        "receive.c",
        (
            (
                "consumer->spare_lease = NO_LEASE; struct lease *lease",
                "struct lease *lease",
            ),
            (
                "record->lease = index; count",
                "record->lease = index; consumer->spare_lease = NO_LEASE; count",
            ),
        ),
        "acknowledged",
        "after a lost race it is freed and used all the same (the model found this one in the core)",
    ),
    Mutant(
        "a release does not wake producers",
        "receive.c",
        (
            (
                "store_sc(&lease->start, LEASE_CLEAR); wake_space(ring, UINT64_MAX);",
                "store_sc(&lease->start, LEASE_CLEAR);",
            ),
        ),
        "leased",
        "a producer sleeps beside free space",
    ),
    Mutant(
        "a taken record does not wake producers",
        "receive.c",
        (
            (
                "wake_space(ring, record->end);",
                "",
            ),
        ),
        "one-to-one",
        "a producer sleeps beside free space",
    ),
    Mutant(
        "the need is reset after the wake",
        "receive.c",
        (
            (
                "store_sc(&header->space_need, UINT64_MAX); event_wake(&header->space_event, true, "
                "ring->event_fd); }",
                "event_wake(&header->space_event, true, ring->event_fd); "
                "store_sc(&header->space_need, UINT64_MAX); }",
            ),
        ),
        "full",
        "it may wipe the need of a producer that has gone to sleep since",
    ),
    Mutant(
        "nobody wakes the next",
        "receive.c",
        (
            (
                "if (claim_is_of(&ring->g, word, cursor) && claim_state_of(word) != CLAIM_CLAIMED)",
                "if (word == UINT64_MAX)",
            ),
        ),
        "busy",
        "the wake of a record that was committed out of order went to who found nothing yet",
    ),
    Mutant(
        "a dropped group reads as corruption",
        "receive.c",
        (
            (
                "return group_state_now(consumer) == GROUP_DROPPED ? RING_DROPPED : ring_corrupt(",
                "return group_state_now(consumer) == GROUP_FREE ? RING_DROPPED : ring_corrupt(",
            ),
        ),
        "dropping",
        "a dropped group is overrun, and rightly so (the model found this one in the core)",
    ),
    Mutant(
        "a copy from a dropped group counts",
        "receive.c",
        (
            (
                "if (group_state_now(consumer) == GROUP_DROPPED) /* nothing kept producers from the bytes */",
                "if (ring == NULL)",
            ),
        ),
        "dropping",
        "nothing kept producers from the bytes: the copy may be torn",
    ),
    Mutant(
        "emptiness is read before the reason to end",
        "receive.c",
        (
            (
                "enum ring_result status = ring_status(ring); if (status == RING_POISONED)",
                "uint64_t cursor = consumer->lossy ? consumer->lossy_position : "
                "load_sc(&consumer->group->cursor); uint64_t word = load_sc(claim_at(ring, cursor)); "
                "bool empty = !claim_is_of(&ring->g, word, cursor) && load_sc(&ring->header->tail) == "
                "cursor; enum ring_result status = ring_status(ring); if (status == RING_POISONED)",
            ),
            (
                "uint64_t cursor = consumer->lossy ? consumer->lossy_position : "
                "load_sc(&consumer->group->cursor); uint64_t word = load_sc(claim_at(ring, cursor)); "
                "if (claim_is_of(&ring->g, word, cursor) || load_sc(&ring->header->tail) != cursor)",
                "if (!empty)",
            ),
        ),
        "closing",
        "a record sent between the two looks is left behind",
    ),
    Mutant(
        "the end does not wait for other members",
        "receive.c",
        (
            (
                "group_has_unfinished(consumer) ||",
                "",
            ),
        ),
        "redelivered",
        "what a member holds when it dies would come to nobody",
    ),
    # ---- lossy.c
    Mutant(
        "a lossy copy is not checked",
        "lossy.c",
        (
            (
                "if (overtaken(consumer, add_sc(&consumer->member.ring->header->floor, 0))) return "
                "RING_RETRY;",
                "",
            ),
        ),
        "lossy",
        "producers may have overwritten it meanwhile",
    ),
]
