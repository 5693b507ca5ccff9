/* Slots of participants.
 *
 *   FREE(generation) --CAS--> ATTACHING(generation, pid, start) --owner--> LIVE --owner or reaper, CAS-->
 *   LEAVING --wake all; CAS--> FREE(generation + 1)
 *
 * One compare-and-swap takes a slot and says who took it, so that a process killed anywhere in attach can be
 * proved dead. A slot is given back only when nothing in the ring refers to it: its claims are settled, its
 * leases free or orphaned, its private group free, the join word not its own. So a word that names (slot,
 * generation) and a slot that still shows this generation, read in this order, speak of the same participant;
 * that is what licenses a reaper's CAS.
 *
 * LEAVING is there for the wakes. Others may sleep until this participant has gone (the last producer), so
 * the wake must come after it no longer counts; and it must come before the slot is free, since nobody looks
 * after a slot that is free: whoever is killed between the two, participant or reaper, leaves a slot that is
 * reaped (again), with the wake. (Found by the model: with LIVE -> FREE -> wake a leaver that was killed in
 * its wake left a consumer asleep for ever.)
 */
#include "ring.h"

#include "event.h"
#include "os.h"

enum ring_result member_attach(struct member *member, struct ring *ring, enum participant_role role)
{
    if (ring_is_foreign(ring)) {
        ring->why = "the ring was made in another pid or time namespace, where no death could be proved";
        return RING_FOREIGN;
    }
    uint32_t pid = os_pid();
    uint64_t start = os_start_time();
    for (int pass = 0; pass < 2; pass++) {
        for (uint32_t i = 0; i < ring->g.participants; i++) {
            struct participant *slot = &ring->participants[i];
            uint64_t word = load_sc(&slot->word);
            if (slot_state(word) != SLOT_FREE)
                continue;
            /* before the slot is taken, so that scans find it */
            raise_to(&ring->header->participants_high, i + 1);
            uint64_t attaching = slot_pack(SLOT_ATTACHING, slot_generation(word), pid, start);
            if (!cas_sc(&slot->word, word, attaching))
                continue;
            store_release(&slot->start, start);
            store_release(&slot->info, (uint64_t)role);
            store_relaxed(&slot->messages, 0);
            store_relaxed(&slot->bytes, 0);
            store_relaxed(&slot->sleeps, 0);
            store_relaxed(&slot->spins, 0);
            member->ring = ring;
            member->slot = slot;
            member->index = i;
            member->word = slot_pack(SLOT_LIVE, slot_generation(word), pid, start);
            member->who = who_pack(i, slot_generation(word));
            store_sc(&slot->word, member->word);
            if (role == ROLE_PRODUCER || role == ROLE_TICKET)
                /* after LIVE: who sees it also sees a registered producer, or one that has ended */
                add_sc(&ring->header->producers_seen, 1);
            else if (ring->flags & FLAG_END_PRODUCERS)
                ring_wake_consumers(
                    ring); /* who went to sleep on ATTACHING, which might have been a producer */
            return RING_OK;
        }
        ring_reap(ring); /* full: the dead may be in the way */
    }
    ring->why = "all 256 slots of participants (MAX_PARTICIPANTS) are taken; close ends that are not needed";
    return RING_NO_SLOT;
}

/* The owner's last act; everything that names the slot was settled before. */
void member_detach(struct member *member)
{
    if (!member->ring)
        return;
    uint64_t leaving = slot_leaving(member->word);
    cas_sc(&member->slot->word, member->word, leaving);
    ring_wake_everybody(member->ring);
    cas_sc(&member->slot->word, leaving, slot_freed(leaving));
    member->ring = NULL;
}

/* A slot in ATTACHING has no role yet and counts: it may be a producer. */
bool ring_has_registered_producer(struct ring *ring)
{
    uint64_t high = load_sc(&ring->header->participants_high);
    for (uint32_t i = 0; i < ring->g.participants && i < high; i++) {
        struct participant *slot = &ring->participants[i];
        uint64_t word = load_sc(&slot->word);
        if (slot_state(word) == SLOT_ATTACHING)
            return true;
        if (slot_state(word) != SLOT_LIVE)
            continue;
        enum participant_role role = info_role(load_acquire(&slot->info));
        if (role == ROLE_PRODUCER || role == ROLE_TICKET)
            return true;
    }
    return false;
}

/* end="producers", somebody was registered, and nobody is. producers_seen is read first: see
 * member_attach. */
bool ring_ends_with_producers(struct ring *ring)
{
    if (!(ring->flags & FLAG_END_PRODUCERS))
        return false;
    uint64_t seen = load_sc(&ring->header->producers_seen);
    /* The scan is no snapshot: one may attach in a slot that was passed, and another leave before its own is
     * read. Then somebody was registered throughout, and `seen` has grown. */
    return seen != 0 && !ring_has_registered_producer(ring) && load_sc(&ring->header->producers_seen) == seen;
}
