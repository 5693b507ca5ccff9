/* Receiving: copies, leases, parking, redelivery, the end.
 *
 * Small records are copied first and taken afterwards:
 *   R1  c = cursor; w = claim word of c's cell; COMMITTED of this lap, else nothing is there
 *   R2  read the length, check it against the length in cells of w, copy the payload out
 *   R3  CAS(cursor, c, end). Success proves that the cursor stood at c all the while (it only grows), that
 *       the producers therefore left the cells alone, and so that the copy is whole. Failure: throw the copy
 *       away. A receiver that is paused anywhere in here holds up nobody.
 * The compare-and-swap is a release, so the copy's loads come before it on every machine.
 *
 * Large records, views and ack="done" are taken under a lease, which keeps the bytes when the cursor has
 * moved on:
 *   L1  lease.start = TAKING(c)
 *   L2  read the cursor again: moved, clear and start over
 *   L3  lease.end = end; lease.start = HOLDING(c)
 *   L4  CAS(cursor, c, end), else clear
 *   L5  use
 *   L6  clear
 * Producers read cursors before leases (send.c), so one who sees the cursor of L4 sees the lease of L1.
 * Nobody sleeps between L1 and L4.
 *
 * Who owns a lease is one word, the only one that anybody but the owner changes:
 *   by the owner:  FREE -> ACQUIRING(me) -> OWNED(me, group, deliveries) -> FREE
 *   by reapers:    OWNED(dead) -> FREE or ORPHAN(group, deliveries), CAS from the exact word (reap.c)
 *   adoption:      ORPHAN -> OWNED(me, group, deliveries + 1), by a member of the group
 * start and end have a single writer, the owner; producers ignore them under FREE and ACQUIRING, so a lease
 * can be taken over without touching them. (In the opening design reapers cleared `start`. A reaper that had
 * been paused could then clear the lease of the slot's next owner: the word can be the same.)
 *
 * Parking: under ack="done" the record is kept until the next receive, perhaps for minutes. Its payload is
 * copied into the block of its lease, behind the control region's tables, and the lease becomes PARKED, which
 * no longer holds producers back. A record too large for a block, or for which there is no memory, stays in
 * the ring.
 */
#include "ring.h"

#include "event.h"
#include "os.h"

/* Producers may sleep until the floor reaches space_need: wake them unless this cursor itself still stands
 * below that. (Not: only if it stood below before. space_need may be lower than what any living sleeper
 * needs, since one that is killed or leaves early does not take its need back.) */
static void wake_space(struct ring *ring, uint64_t cursor_now)
{
    struct header *header = ring->header;
    if (!(load32_sc(&header->space_event) & (EVENT_SLEEPING | EVENT_ARMED)))
        return;
    if (load_sc(&header->space_need) > cursor_now)
        return;
    /* before the event word changes: a sleeper that sets it later has prepared later, and so looked later
     * (wait.c) */
    store_sc(&header->space_need, UINT64_MAX);
    event_wake(&header->space_event, true, ring->event_fd);
}

/* Whoever moves the cursor wakes another if the next record is ready: the wake-one of that record may have
 * gone to somebody who died with it. */
static void wake_next(struct consumer *consumer, uint64_t cursor)
{
    struct ring *ring = consumer->member.ring;
    if (!(load32_sc(&consumer->group->event) & (EVENT_SLEEPING | EVENT_ARMED)))
        return;
    uint64_t word = load_sc(claim_at(ring, cursor));
    if (claim_is_of(&ring->g, word, cursor) && claim_state_of(word) != CLAIM_CLAIMED)
        event_wake(&consumer->group->event, false, ring->event_fd);
}

static enum group_state group_state_now(struct consumer *consumer)
{
    return group_state_of(load_sc(&consumer->group->owner));
}

enum ring_result consumer_attach(struct consumer *consumer, struct ring *ring, const char *group,
                                 size_t group_bytes, bool lossy)
{
    memset(consumer, 0, sizeof *consumer);
    consumer->spare_lease = NO_LEASE;
    enum ring_result result = member_attach(&consumer->member, ring, ROLE_CONSUMER);
    if (result != RING_OK)
        return result;
    result = group_join(consumer, group, group_bytes, lossy);
    if (result != RING_OK)
        member_detach(&consumer->member);
    return result;
}

/* ---- leases */

static uint32_t acquire_lease(struct consumer *consumer)
{
    struct ring *ring = consumer->member.ring;
    uint64_t who = consumer->member.who;
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < ring->g.leases; i++) {
            struct lease *lease = &ring->leases[i];
            uint64_t owner = load_sc(&lease->owner);
            if (owner_state_of(owner) != OWNER_FREE)
                continue;
            raise_to(&ring->header->leases_high, i + 1);
            uint64_t acquiring = owner_pack(OWNER_ACQUIRING, who, consumer->group_index, 0);
            if (!cas_sc(&lease->owner, owner, acquiring))
                continue;
            store_sc(&lease->start, LEASE_CLEAR);
            cas_sc(&lease->owner, acquiring, owner_pack(OWNER_OWNED, who, consumer->group_index, 0));
            return i;
        }
        ring_reap(ring);
    }
    ring->why = "all 128 leases (MAX_LEASES) are taken; release some, or acknowledge with ack=\"receive\"";
    return NO_LEASE;
}

static void free_lease(struct consumer *consumer, uint32_t index)
{
    struct lease *lease = &consumer->member.ring->leases[index];
    uint64_t owner = load_sc(&lease->owner);
    if (who_of(owner) == consumer->member.who)
        cas_sc(&lease->owner, owner, OWNER_FREE);
}

/* A lease that is given back may be what other members waited for before they end. */
static void wake_for_end(struct consumer *consumer)
{
    struct ring *ring = consumer->member.ring;
    if (!(load32_sc(&consumer->group->event) & (EVENT_SLEEPING | EVENT_ARMED)))
        return;
    if (ring_status(ring) != RING_OK || ring_ends_with_producers(ring))
        event_wake(&consumer->group->event, true, ring->event_fd);
}

/* L6. The bytes may be overwritten from here on. */
void consumer_release(struct consumer *consumer, uint32_t index)
{
    struct ring *ring = consumer->member.ring;
    struct lease *lease = &ring->leases[index];
    store_sc(&lease->start, LEASE_CLEAR);
    wake_space(ring, UINT64_MAX);
    wake_for_end(consumer);
    if (consumer->spare_lease == NO_LEASE && owner_deliveries(load_sc(&lease->owner)) == 0)
        consumer->spare_lease = index;
    else
        free_lease(consumer, index);
}

/* ---- taking */

/* Only of a group that still holds producers back: a dropped one is overrun, and rightly so. */
static enum ring_result contradiction(struct consumer *consumer, const char *why, uint64_t position)
{
    return group_state_now(consumer) == GROUP_DROPPED ? RING_DROPPED
                                                      : ring_corrupt(consumer->member.ring, why, position);
}

/* R1 and R2 up to the length: what stands at the cursor. Steps over aborted records. */
enum ring_result consumer_peek(struct consumer *consumer, struct record *record)
{
    struct ring *ring = consumer->member.ring;
    const struct geometry *g = &ring->g;
    shared_u64 *cursor = &consumer->group->cursor;
    for (int races = 0; races < RACES_AT_MOST; races++) {
        uint64_t c = load_sc(cursor);
        if (!position_valid(c))
            return ring_corrupt(ring, "the group's cursor is not a position", c);
        uint64_t word = load_sc(claim_at(ring, c));
        if (!claim_is_of(g, word, c)) {
            if (claim_state_of(word) == CLAIM_EMPTY || claim_lap(g, word) < position_lap(g, c))
                return RING_WOULD_BLOCK;
            if (load_sc(cursor) == c && load_sc(claim_at(ring, c)) == word)
                return contradiction(consumer, "the claim word at the cursor is of a later lap", c);
            continue;
        }
        if (claim_state_of(word) == CLAIM_CLAIMED)
            return RING_WOULD_BLOCK;
        uint64_t room = claim_cells(g, word) * CELL_BYTES;
        if (claim_state_of(word) == CLAIM_ABORTED) {
            if (cas_sc(cursor, c, c + room)) {
                wake_space(ring, c + room);
                wake_next(consumer, c + room);
            }
            continue;
        }
        shared_u64 *head = (shared_u64 *)(void *)data_at(ring, c);
        uint64_t first = load_acquire(head); /* pairs with the commit: layout.h */
        record->origin = load_relaxed(head + 1);
        record->length = record_length(first);
        record->codec = record_codec(first);
        record->position = c;
        record->end = c + room;
        record->payload = data_at(ring, c) + RECORD_HEADER_BYTES;
        record->lease = NO_LEASE;
        record->deliveries = 0;
        record->parked = false;
        if (record->length <= room - RECORD_HEADER_BYTES)
            return RING_OK;
        if (load_sc(cursor) == c)
            return contradiction(consumer, "a record is longer than its claim", c);
    }
    return RING_RETRY;
}

static void count_received(struct consumer *consumer, uint64_t bytes)
{
    struct participant *slot = consumer->member.slot;
    store_relaxed(&slot->messages, load_relaxed(&slot->messages) + 1);
    store_relaxed(&slot->bytes, load_relaxed(&slot->bytes) + bytes);
}

/* R3. RING_RETRY: the copy is worth nothing. */
enum ring_result consumer_take_copied(struct consumer *consumer, const struct record *record)
{
    struct ring *ring = consumer->member.ring;
    if (!cas_sc(&consumer->group->cursor, record->position, record->end))
        return RING_RETRY;
    if (group_state_now(consumer) == GROUP_DROPPED) /* nothing kept producers from the bytes */
        return RING_DROPPED;
    count_received(consumer, record->length);
    wake_space(ring, record->end);
    wake_next(consumer, record->end);
    return RING_OK;
}

/* L1..L4 for the record that consumer_peek found. */
enum ring_result consumer_take_leased(struct consumer *consumer, struct record *record)
{
    struct ring *ring = consumer->member.ring;
    if (consumer->spare_lease == NO_LEASE)
        consumer->spare_lease = acquire_lease(consumer);
    uint32_t index = consumer->spare_lease;
    if (index == NO_LEASE)
        return RING_NO_SLOT;
    /* in use: a release below makes it the spare again. (Found by the model: kept as the spare, a lost
     * race freed it and the next try used it unowned.) */
    consumer->spare_lease = NO_LEASE;
    struct lease *lease = &ring->leases[index];
    store_sc(&lease->start, record->position | LEASE_TAKING);
    if (load_sc(&consumer->group->cursor) != record->position) {
        consumer_release(consumer, index);
        return RING_RETRY;
    }
    store_sc(&lease->end, record->end);
    store_sc(&lease->start, record->position | LEASE_HOLDING);
    if (!cas_sc(&consumer->group->cursor, record->position, record->end)) {
        consumer_release(consumer, index);
        return RING_RETRY;
    }
    if (group_state_now(consumer) == GROUP_DROPPED) {
        consumer_release(consumer, index);
        return RING_DROPPED;
    }
    record->lease = index;
    count_received(consumer, record->length);
    wake_next(consumer, record->end);
    return RING_OK;
}

static unsigned char *parking_of(struct ring *ring, uint32_t lease)
{
    return ring->parking + lease * ring->g.parking_bytes;
}

/* Moves a leased record out of the ring, if there is room for it. */
void consumer_park(struct consumer *consumer, struct record *record)
{
    struct ring *ring = consumer->member.ring;
    struct lease *lease = &ring->leases[record->lease];
    if (record->parked || !ring->parking || record->length > ring->g.parking_bytes)
        return;
    if (!os_reserve(ring, ring->g.parking_at + record->lease * ring->g.parking_bytes, record->length))
        return;
    copy_shared(parking_of(ring, record->lease), record->payload, record->length);
    store_release(&lease->parked, record_pack(record->length, record->codec));
    store_release(&lease->origin, record->origin);
    store_sc(&lease->start, record->position | LEASE_PARKED);
    record->payload = parking_of(ring, record->lease);
    record->parked = true;
    consumer->parked_any = true;
    wake_space(ring, UINT64_MAX);
}

/* ---- redelivery */

/* What an adopted lease holds; false if that makes no sense. */
static bool adopted_record(struct ring *ring, uint32_t index, struct record *record)
{
    struct lease *lease = &ring->leases[index];
    uint64_t start = load_sc(&lease->start);
    uint64_t end = load_sc(&lease->end);
    uint64_t first;
    uint64_t room;
    record->position = start & ~UINT64_C(3);
    record->end = end;
    record->lease = index;
    if (!position_valid(record->position) || !position_valid(end) || end <= record->position ||
        end - record->position > ring->g.capacity_bytes / 2)
        return false;
    if ((start & 3) == LEASE_PARKED && ring->parking) {
        first = load_acquire(&lease->parked);
        record->origin = load_relaxed(&lease->origin);
        record->payload = parking_of(ring, index);
        record->parked = true;
        room = ring->g.parking_bytes;
    } else if ((start & 3) == LEASE_HOLDING) {
        shared_u64 *head = (shared_u64 *)(void *)data_at(ring, record->position);
        first = load_acquire(head); /* pairs with the commit: layout.h */
        record->origin = load_relaxed(head + 1);
        record->payload = data_at(ring, record->position) + RECORD_HEADER_BYTES;
        record->parked = false;
        room = end - record->position - RECORD_HEADER_BYTES;
    } else {
        return false;
    }
    record->length = record_length(first);
    record->codec = record_codec(first);
    return record->length <= room;
}

/* Takes over a record that a dead member of the group had not finished. RING_WOULD_BLOCK: there is none. */
enum ring_result consumer_adopt(struct consumer *consumer, struct record *record)
{
    struct ring *ring = consumer->member.ring;
    uint64_t orphans = load_sc(&consumer->group->orphans);
    uint64_t high = load_sc(&ring->header->leases_high);
    for (uint32_t i = 0; i < ring->g.leases && i < high; i++) {
        struct lease *lease = &ring->leases[i];
        uint64_t owner = load_sc(&lease->owner);
        if (owner_state_of(owner) != OWNER_ORPHAN || owner_group(owner) != consumer->group_index)
            continue;
        uint32_t deliveries = owner_deliveries(owner) + 1;
        if (deliveries > ring->max_deliveries) {
            if (cas_sc(&lease->owner, owner, OWNER_FREE)) {
                count_up(&consumer->group->dropped, 1);
                wake_space(ring, UINT64_MAX);
            }
            continue;
        }
        if (!cas_sc(&lease->owner, owner,
                    owner_pack(OWNER_OWNED, consumer->member.who, consumer->group_index, deliveries)))
            continue;
        if (!adopted_record(ring, i, record)) {
            consumer_release(consumer, i);
            return ring_corrupt(ring, "an orphaned lease holds no record", record->position);
        }
        record->deliveries = deliveries;
        count_up(&consumer->group->redelivered, 1);
        count_received(consumer, record->length);
        return RING_OK;
    }
    consumer->orphans_seen = orphans; /* read before the scan: what came since will be looked for again */
    return RING_WOULD_BLOCK;
}

/* ---- the end */

/* A lease of the group that another member may still give back, or that waits for adoption. */
static bool group_has_unfinished(struct consumer *consumer)
{
    struct ring *ring = consumer->member.ring;
    uint64_t high = load_sc(&ring->header->leases_high);
    for (uint32_t i = 0; i < ring->g.leases && i < high; i++) {
        uint64_t owner = load_sc(&ring->leases[i].owner);
        if (owner_state_of(owner) < OWNER_OWNED || owner_group(owner) != consumer->group_index)
            continue;
        if (owner_state_of(owner) == OWNER_ORPHAN)
            return true;
        if (who_of(owner) != consumer->member.who && (load_sc(&ring->leases[i].start) & 3) != LEASE_CLEAR)
            return true;
    }
    return false;
}

/* After a look that found nothing: RING_WOULD_BLOCK if something may still come, else why not. Whoever
 * finds the end wakes the others, who find it too.
 * First the reason, then the emptiness: a producer looks at the status after its claim (C6), so a claim that
 * this read does not see will be aborted. */
enum ring_result consumer_end(struct consumer *consumer)
{
    struct ring *ring = consumer->member.ring;
    enum ring_result status = ring_status(ring);
    if (status == RING_POISONED)
        return RING_POISONED;
    if (group_state_now(consumer) == GROUP_DROPPED)
        return RING_DROPPED;
    if (status == RING_OK && !ring_ends_with_producers(ring))
        return RING_WOULD_BLOCK;
    uint64_t cursor = consumer->lossy ? consumer->lossy_position : load_sc(&consumer->group->cursor);
    uint64_t word = load_sc(claim_at(ring, cursor));
    if (claim_is_of(&ring->g, word, cursor) || load_sc(&ring->header->tail) != cursor)
        return RING_WOULD_BLOCK;
    if (!consumer->lossy &&
        (group_has_unfinished(consumer) || load_sc(&consumer->group->orphans) != consumer->orphans_seen))
        return RING_WOULD_BLOCK;
    event_wake(&consumer->group->event, true, ring->event_fd);
    return RING_END;
}

/* Whether a receive would find anything but RING_WOULD_BLOCK. Changes nothing. */
bool consumer_looks_ready(struct consumer *consumer)
{
    struct ring *ring = consumer->member.ring;
    if (!consumer->lossy && consumer_sees_orphans(consumer))
        return true;
    uint64_t cursor = consumer->lossy ? consumer->lossy_position : load_sc(&consumer->group->cursor);
    uint64_t word = load_sc(claim_at(ring, cursor));
    if (claim_state_of(word) == CLAIM_EMPTY || claim_lap(&ring->g, word) < position_lap(&ring->g, cursor))
        return false;
    return claim_state_of(word) != CLAIM_CLAIMED ||
           claim_lap(&ring->g, word) != position_lap(&ring->g, cursor);
}

/* For a consumer that was woken and leaves with nothing: what it was woken for may still be there. */
void consumer_pass_wake_on(struct consumer *consumer)
{
    if (consumer_looks_ready(consumer))
        event_wake(&consumer->group->event, false, consumer->member.ring->event_fd);
}

/* Gives a leased record back to the group, as if this member had died with it. */
void consumer_give_back(struct consumer *consumer, uint32_t index)
{
    struct lease *lease = &consumer->member.ring->leases[index];
    uint64_t owner = load_sc(&lease->owner);
    if (consumer->private_group) {
        consumer_release(consumer, index);
        return;
    }
    cas_sc(&lease->owner, owner, owner_pack(OWNER_ORPHAN, 0, consumer->group_index, owner_deliveries(owner)));
    free_orphan_of_no_group(consumer->member.ring, index);
    add_sc(&consumer->group->orphans, 1);
    event_wake(&consumer->group->event, true, consumer->member.ring->event_fd);
}

/* `redeliver`: what is held goes to another member, as if this one had died; else it counts as finished. */
void consumer_detach(struct consumer *consumer, bool redeliver)
{
    struct ring *ring = consumer->member.ring;
    if (!ring)
        return;
    uint64_t high = load_sc(&ring->header->leases_high);
    for (uint32_t i = 0; i < ring->g.leases && i < high; i++) {
        struct lease *lease = &ring->leases[i];
        uint64_t owner = load_sc(&lease->owner);
        if (owner_state_of(owner) != OWNER_OWNED || who_of(owner) != consumer->member.who)
            continue;
        uint64_t held = load_sc(&lease->start) & 3;
        if (redeliver && held >= LEASE_HOLDING && !consumer->private_group) {
            consumer_give_back(consumer, i);
        } else {
            if (consumer->parked_any)
                os_unreserve(ring, ring->g.parking_at + i * ring->g.parking_bytes, ring->g.parking_bytes);
            consumer->spare_lease = i; /* not to be kept as the spare */
            consumer_release(consumer, i);
        }
    }
    group_leave(consumer);
    member_detach(&consumer->member);
}
