/* Groups: how they join, end, and are dropped.
 *
 * One participant at a time makes a group: it holds the join word (its slot and generation, by CAS from 0).
 * That is a lock, on a path that is taken once a group, not once a record; it is given back by a reaper if
 * its holder is proved dead, and nothing but joining waits for it.
 *
 * A group that joins while producers run:
 *   J1  groups_high covers the slot    J2  cursor = start (provisional)    J3  owner word: SETTLING (producers
 *       now count the cursor)
 *   J4  version + 1                    J5  cursor = start, found again     J6  owner word: NAMED or PRIVATE;
 *       consumers may receive
 *   J7  wake the producers: some may have gone to sleep on the provisional cursor, which J5 then moved on
 *       (found by the model)
 * The start is the first record that is not settled, or the tail: a record that is still being written when
 * the group joins is its first. (Found by the model: with the tail for a cursor, and no other group that stood
 * before it, the floor passed the claim of a producer that was still writing, and another claimed its cells.)
 * A producer's scan that ended before J4 may have missed the group, but everything below its result was settled
 * by then, so the start of J5 is not below it; a scan that ends later sees another version and starts over
 * (send.c, F4).
 *
 * HELD is a real group without a name, at position 0 from the start: until somebody joins, it keeps what was
 * sent. The first to join takes it over with one CAS.
 */
#include "ring.h"

#include "event.h"
#include "os.h"

static uint64_t owner_word(enum group_state state, uint64_t who) { return (uint64_t)state | who; }

/* The index of the named group, or UINT32_MAX. Names are written before NAMED and never changed. */
uint32_t group_find(struct ring *ring, const char *name, size_t name_bytes)
{
    uint64_t high = load_sc(&ring->header->groups_high);
    for (uint32_t i = 0; i < ring->g.groups && i < high; i++) {
        struct group *group = &ring->groups[i];
        if (group_state_of(load_sc(&group->owner)) != GROUP_NAMED ||
            load_relaxed(&group->name_bytes) != name_bytes)
            continue;
        if (memcmp(group->name, name, name_bytes) == 0)
            return i;
    }
    return UINT32_MAX;
}

static void write_name(struct group *group, const char *name, size_t name_bytes)
{
    memset(group->name, 0, sizeof group->name);
    memcpy(group->name, name, name_bytes);
    store_relaxed(&group->name_bytes, name_bytes);
}

/* From `position`, below which everything is settled: the first record that is not settled, or the tail. What
 * is overrun meanwhile was settled too, and then the floor is beyond it. */
static uint64_t first_unsettled(struct ring *ring, uint64_t position)
{
    const struct geometry *g = &ring->g;
    for (uint64_t step = 0; step < 2 * g->cells + RACES_AT_MOST; step++) {
        uint64_t word = load_sc(claim_at(ring, position));
        if (claim_is_of(g, word, position)) {
            if (claim_state_of(word) == CLAIM_CLAIMED)
                break;
            position += claim_cells(g, word) * CELL_BYTES;
            continue;
        }
        uint64_t floor = load_sc(&ring->header->floor);
        if (floor <= position || !position_valid(floor))
            break; /* the tail */
        position = floor;
    }
    return position;
}

/* Under the join word. `name` NULL: private, or lossy. */
static enum ring_result make_group(struct consumer *consumer, const char *name, size_t name_bytes, bool lossy)
{
    struct ring *ring = consumer->member.ring;
    struct header *header = ring->header;
    uint64_t who = consumer->member.who;
    enum group_state kind = name ? GROUP_NAMED : lossy ? GROUP_LOSSY : GROUP_PRIVATE;
    uint64_t final = owner_word(kind, name ? 0 : who);
    uint32_t i = 0;
    if (!lossy && load_sc(&ring->groups[0].owner) == GROUP_HELD) {
        if (name)
            write_name(&ring->groups[0], name, name_bytes);
        if (cas_sc(&ring->groups[0].owner, GROUP_HELD, final)) {
            consumer->group_index = 0;
            return RING_OK;
        }
    }
    for (i = 0; i < ring->g.groups; i++)
        if (load_sc(&ring->groups[i].owner) == GROUP_FREE)
            break;
    if (i == ring->g.groups) {
        ring->why = "all 32 slots of groups (MAX_GROUPS) are taken; drop one";
        return RING_NO_SLOT;
    }
    struct group *group = &ring->groups[i];
    consumer->group_index = i;
    raise_to(&header->groups_high, i + 1); /* J1 */
    if (lossy) {
        store_sc(&group->cursor, load_sc(&header->tail));
        store_sc(&group->owner, final);
        return RING_OK;
    }
    if (name)
        write_name(group, name, name_bytes);
    uint64_t start = load_sc(&header->floor);
    if (!position_valid(start))
        return ring_corrupt(ring, "the floor is not a position", start);
    start = first_unsettled(ring, start);
    store_sc(&group->cursor, start);                          /* J2 */
    store_sc(&group->owner, owner_word(GROUP_SETTLING, who)); /* J3 */
    add_sc(&header->version, 1);                              /* J4 */
    store_sc(&group->cursor, first_unsettled(ring, start));   /* J5 */
    store_sc(&group->owner, final);                           /* J6 */
    event_wake(&header->space_event, true, -1);               /* J7 */
    return RING_OK;
}

/* Whether the holder of the join word can be what it should be: a consumer that has no group yet (it gets one
 * only after it has given the word back). */
static bool may_be_joining(struct ring *ring, uint64_t holder)
{
    uint32_t index = who_slot(holder);
    if (index >= ring->g.participants)
        return false;
    struct participant *slot = &ring->participants[index];
    uint64_t word = load_sc(&slot->word);
    uint64_t info = load_acquire(&slot->info); /* pairs with its stores: layout.h */
    return who_pack(index, slot_generation(word)) == who_of(holder) && slot_state(word) == SLOT_LIVE &&
           info_role(info) == ROLE_CONSUMER && info_group(info) == 0;
}

/* `name` NULL: a private group, or (lossy) only an event word. RING_WOULD_BLOCK: somebody else is joining;
 * RING_RETRY cannot happen. */
enum ring_result group_join(struct consumer *consumer, const char *name, size_t name_bytes, bool lossy)
{
    struct ring *ring = consumer->member.ring;
    shared_u64 *joiner = &ring->header->joiner;
    enum ring_result result = RING_OK;
    for (;;) {
        uint32_t found = name ? group_find(ring, name, name_bytes) : UINT32_MAX;
        if (found != UINT32_MAX) {
            consumer->group_index = found;
            break;
        }
        uint64_t holder = load_sc(joiner);
        if (holder == 0) {
            if (!cas_sc(joiner, 0, consumer->member.who | 1))
                continue;
            /* made while we were not looking */
            found = name ? group_find(ring, name, name_bytes) : UINT32_MAX;
            if (found != UINT32_MAX)
                consumer->group_index = found;
            else
                result = make_group(consumer, name, name_bytes, lossy);
            cas_sc(joiner, consumer->member.who | 1, 0);
            event_wake(&ring->header->join_event, true, -1);
            break;
        }
        uint32_t value = event_prepare(&ring->header->join_event);
        if (load_sc(joiner) != holder)
            continue;
        os_futex_wait(&ring->header->join_event, value, os_slice_ns < 0 ? -1 : 20 * 1000 * 1000);
        if (load_sc(joiner) != holder)
            continue;
        bool alive = ring_reap_slot(ring, who_slot(holder)) != RING_OK;
        if (alive && may_be_joining(ring, holder))
            return RING_WOULD_BLOCK;
        if (load_sc(joiner) == holder) /* a reaper takes the join word back before it frees the slot */
            return ring_corrupt(ring, "the join word names a participant that is not joining", holder);
    }
    if (result != RING_OK)
        return result;
    consumer->group = &ring->groups[consumer->group_index];
    consumer->private_group = name == NULL;
    consumer->lossy = lossy;
    consumer->orphans_seen = UINT64_MAX; /* the first receive looks for orphans */
    consumer->lossy_position = load_sc(&consumer->group->cursor);
    if (!position_valid(consumer->lossy_position))
        return ring_corrupt(ring, "the group's cursor is not a position", consumer->lossy_position);
    store_release(&consumer->member.slot->info,
                  (uint64_t)ROLE_CONSUMER | (uint64_t)(consumer->group_index + 1) << 8);
    return RING_OK;
}

/* A private group ends with its consumer; a named one stays. */
void group_leave(struct consumer *consumer)
{
    if (!consumer->private_group)
        return;
    uint64_t owner = load_sc(&consumer->group->owner);
    if (who_of(owner) == consumer->member.who && cas_sc(&consumer->group->owner, owner, GROUP_FREE))
        event_wake(&consumer->member.ring->header->space_event, true, -1);
}

/* An orphan whose group is gone would wait for adoption, and hold producers back, for ever. Called by whoever
 * drops a group, after the drop, and by whoever makes an orphan, after that: one of the two sees the other. */
void free_orphan_of_no_group(struct ring *ring, uint32_t index)
{
    struct lease *lease = &ring->leases[index];
    uint64_t owner = load_sc(&lease->owner);
    uint32_t group = owner_group(owner);
    if (owner_state_of(owner) != OWNER_ORPHAN || group >= ring->g.groups)
        return;
    if (group_state_of(load_sc(&ring->groups[group].owner)) != GROUP_NAMED)
        cas_sc(&lease->owner, owner, OWNER_FREE);
}

/* The group's records hold producers back no longer; its members get RING_DROPPED. */
enum ring_result group_drop(struct ring *ring, const char *name, size_t name_bytes)
{
    uint32_t i = group_find(ring, name, name_bytes);
    if (i == UINT32_MAX || !cas_sc(&ring->groups[i].owner, GROUP_NAMED, GROUP_DROPPED))
        return RING_NO_GROUP;
    uint64_t high = load_sc(&ring->header->leases_high);
    for (uint32_t k = 0; k < ring->g.leases && k < high; k++)
        free_orphan_of_no_group(ring, k);
    ring_wake_everybody(ring);
    return RING_OK;
}
