/* Cleaning up after a participant that is proved dead.
 *
 * No election: any number may reap the same slot at once, any of them may be paused at any point and go on
 * much later, and any of them may be killed half-way. So each step is a CAS from the exact word that was
 * read, and each word says which participant it speaks of:
 *   - a claim word names a slot, not a generation; after reading it the slot's word is read again. If that
 *     still shows the dead generation, the claim is the dead one's, because a slot is given to somebody else
 *     only after all of its claims were settled. The CAS from that exact word (its lap is in it) then cannot
 *     hit anything else.
 *   - owner words of leases and groups, and the join word, carry slot and generation.
 * Reapers never write a cursor, a lease's start or a record. The slot is freed last, after the wakes; if a
 * reaper dies before that, the next one does it all again.
 *
 * A lease OWNED by the dead:
 *   start CLEAR or TAKING: FREE.
 *   HOLDING with the group's cursor below end, so that the dead one had not taken it: FREE.
 *   HOLDING with the cursor at or beyond end, or PARKED: ORPHAN, for another member (FREE if the channel drops
 *   such records, or the group is no longer).
 * The cursor may have been moved past end by another member, while the dead one was still trying: then the
 * record is delivered twice. A death may cost that (at least once), and never a record.
 */
#include "ring.h"

#include "event.h"
#include "os.h"

/* Settles what the dead one had claimed: CLAIMED becomes ABORTED, which every reader steps over. False if
 * the slot is no longer the dead one's. */
static bool settle_claims(struct ring *ring, uint32_t index, uint64_t dead)
{
    const struct geometry *g = &ring->g;
    uint64_t position = load_sc(&ring->header->floor);
    for (uint64_t step = 0; step < 2 * g->cells + RACES_AT_MOST; step++) {
        if (!position_valid(position))
            return true;
        uint64_t word = load_sc(claim_at(ring, position));
        if (!claim_is_of(g, word, position)) {
            uint64_t floor = load_sc(&ring->header->floor);
            if (floor <= position || !position_valid(floor))
                return true;  /* the tail */
            position = floor; /* overrun meanwhile; what lies below the floor is settled */
            continue;
        }
        uint64_t end = position + claim_cells(g, word) * CELL_BYTES;
        if (claim_state_of(word) == CLAIM_CLAIMED && claim_owner(word) == index) {
            if (load_sc(&ring->participants[index].word) != dead)
                return false;
            /* The tail first: whoever finds a settled record may rely on the tail being beyond it. */
            cas_sc(&ring->header->tail, position, end);
            if (cas_sc(claim_at(ring, position), word, claim_with_state(word, CLAIM_ABORTED)))
                count_up(&ring->header->aborted, 1);
        }
        position = end;
    }
    return true;
}

static void settle_leases(struct ring *ring, uint64_t who)
{
    uint64_t high = load_sc(&ring->header->leases_high);
    for (uint32_t i = 0; i < ring->g.leases && i < high; i++) {
        struct lease *lease = &ring->leases[i];
        uint64_t owner = load_sc(&lease->owner);
        if ((owner_state_of(owner) != OWNER_ACQUIRING && owner_state_of(owner) != OWNER_OWNED) ||
            who_of(owner) != who)
            continue;
        uint64_t after = OWNER_FREE;
        bool drop = false;
        uint32_t g = owner_group(owner);
        if (owner_state_of(owner) == OWNER_OWNED && g < ring->g.groups) {
            uint64_t start = load_sc(&lease->start);
            bool taken =
                (start & 3) == LEASE_PARKED ||
                ((start & 3) == LEASE_HOLDING && load_sc(&ring->groups[g].cursor) >= load_sc(&lease->end));
            if (taken && group_state_of(load_sc(&ring->groups[g].owner)) == GROUP_NAMED) {
                drop = (ring->flags & FLAG_DROP_ORPHANS) != 0;
                after = drop ? OWNER_FREE : owner_pack(OWNER_ORPHAN, 0, g, owner_deliveries(owner));
            }
        }
        if (!cas_sc(&lease->owner, owner, after))
            continue;
        if (drop)
            count_up(&ring->groups[g].dropped, 1);
        if (owner_state_of(after) == OWNER_ORPHAN)
            free_orphan_of_no_group(ring, i); /* the group may have been dropped since we looked */
    }
}

static void settle_groups(struct ring *ring, uint64_t who)
{
    uint64_t high = load_sc(&ring->header->groups_high);
    for (uint32_t i = 0; i < ring->g.groups && i < high; i++) {
        uint64_t owner = load_sc(&ring->groups[i].owner);
        enum group_state state = group_state_of(owner);
        if ((state == GROUP_SETTLING || state == GROUP_PRIVATE || state == GROUP_LOSSY) &&
            who_of(owner) == who)
            cas_sc(&ring->groups[i].owner, owner, GROUP_FREE);
    }
}

static void wake_after_death(struct ring *ring)
{
    uint64_t high = load_sc(&ring->header->groups_high);
    for (uint32_t i = 0; i < ring->g.groups && i < high; i++)
        event_wake_after_death(&ring->groups[i].event, ring->event_fd);
    event_wake_after_death(&ring->header->space_event, -1);
    event_wake_after_death(&ring->header->join_event, -1);
}

/* RING_OK: the slot is (now) free of that participant. RING_NOT_DEAD: no proof. */
enum ring_result ring_reap_slot(struct ring *ring, uint32_t index)
{
    if (index >= ring->g.participants)
        return RING_NOT_DEAD;
    struct participant *slot = &ring->participants[index];
    uint64_t dead = load_sc(&slot->word);
    if (slot_state(dead) == SLOT_FREE)
        return RING_OK;
    bool live = slot_state(dead) >= SLOT_LIVE; /* or LEAVING: the rest of the table entry is written */
    uint64_t start = live ? load_acquire(&slot->start) : slot_start_low(dead);
    if (ring_is_foreign(ring) || !os_is_dead(ring, slot_pid(dead), start, live))
        return RING_NOT_DEAD;
    /* after the proof: before, it could still have been about to join a group */
    uint64_t info = load_acquire(&slot->info);
    if (load_sc(&slot->word) != dead) /* start and info may be the next one's */
        return RING_NOT_DEAD;
    uint64_t who = who_pack(index, slot_generation(dead));
    if (!settle_claims(ring, index, dead))
        return RING_OK;
    settle_leases(ring, who);
    settle_groups(ring, who);
    cas_sc(&ring->header->joiner, who | 1, 0);
    uint32_t group = info_group(info);
    if (live && group != 0 && group <= ring->g.groups)
        /* always: an earlier reaper may have died between the orphans and this */
        add_sc(&ring->groups[group - 1].orphans, 1);
    uint64_t leaving = slot_leaving(dead);
    if (leaving != dead && cas_sc(&slot->word, dead, leaving))
        count_up(&ring->header->reaped, 1);
    wake_after_death(ring); /* before the slot is free: see participant.c */
    cas_sc(&slot->word, leaving, slot_freed(leaving));
    return RING_OK;
}

/* All that are proved dead; returns how many slots were found so. */
uint32_t ring_reap(struct ring *ring)
{
    uint32_t count = 0;
    uint64_t high = load_sc(&ring->header->participants_high);
    for (uint32_t i = 0; i < ring->g.participants && i < high; i++)
        if (slot_state(load_sc(&ring->participants[i].word)) != SLOT_FREE &&
            ring_reap_slot(ring, i) == RING_OK)
            count++;
    return count;
}
