/* Sending: claim, write, commit.
 *
 * A claim at position t:
 *   C1  t = tail
 *   C2  t + length <= limit, else refresh the limit (below), else RING_WOULD_BLOCK
 *   C3  w = claim word of t's cell. Of this lap already: somebody claimed here and did not yet move the tail:
 *       help it along by the length in w, again from C1
 *   C4  CAS(claim word, w, CLAIMED(lap, length, me)): the claim. Nobody can have claimed and been overrun in
 *       between, since that would have changed the word
 *   C5  CAS(tail, t, t + length); a failure means that somebody helped
 *   C6  status: closed after all: ABORTED, and say so. (Pairs with the consumers, who read status before they
 *       look for a last record: either this read sees the closing, or the consumer sees the claim.)
 *
 * From C4 to the commit the record is ours alone: its cells are below floor + capacity, and no cursor passes
 * CLAIMED, so the floor stays at or below it.
 * Nothing of Python runs between claim and commit, except in a loan.
 *
 * Space. limit = floor + capacity for some floor that was true once; floors only grow, so an old limit is
 * merely cautious. To refresh:
 *   F1  v = version
 *   F2  every cursor of a group that holds back
 *   F3  every lease (TAKING or HOLDING)
 *   F4  version == v, else again
 *   F5  CAS the floor up to the least of them.
 * Cursors before leases: a consumer writes its lease before it moves the cursor, so whoever misses the lease
 * still sees the old cursor.
 * The version: a group that joined during the scan could have been missed while another's cursor was read
 * late. A joiner finds its cursor, the first record that is not settled, after it has raised the version, so a
 * scan that ended before has a result at or below it.
 * No cursor stands beyond a claim that is not settled (group.c), so no floor does.
 * Without any group that holds back, the scan steps over settled records from the floor on.
 */
#include "ring.h"

#include "event.h"
#include "os.h"

enum ring_result producer_attach(struct producer *producer, struct ring *ring)
{
    memset(producer, 0, sizeof *producer);
    enum ring_result result = member_attach(&producer->member, ring, ROLE_PRODUCER);
    if (result != RING_OK || !(ring->flags & FLAG_ONE_PRODUCER))
        return result;
    /* producers="one": of two that attach at once both may withdraw, but never both stay. */
    for (uint32_t i = 0; i < ring->g.participants; i++) {
        struct participant *slot = &ring->participants[i];
        if (i == producer->member.index || slot_state(load_sc(&slot->word)) != SLOT_LIVE ||
            info_role(load_acquire(&slot->info)) != ROLE_PRODUCER)
            continue;
        if (ring_reap_slot(ring, i) == RING_OK)
            continue;
        producer_detach(producer);
        ring->why = "the channel has producers=\"one\" and another producer is attached";
        ring->why_position = i;
        return RING_SECOND_PRODUCER;
    }
    return RING_OK;
}

void producer_detach(struct producer *producer) { member_detach(&producer->member); }

/* Reads the tail and its claim word, and moves a tail that lags behind a claim. On RING_OK a claim may be
 * tried at *tail from *word. */
enum ring_result ring_help_tail(struct ring *ring, uint64_t *tail, uint64_t *word)
{
    const struct geometry *g = &ring->g;
    for (int races = 0; races < RACES_AT_MOST; races++) {
        uint64_t t = load_sc(&ring->header->tail);
        if (!position_valid(t))
            return ring_corrupt(ring, "the tail is not a position", t);
        uint64_t w = load_sc(claim_at(ring, t));
        if (claim_is_of(g, w, t)) {
            uint64_t cells = claim_cells(g, w);
            cas_sc(&ring->header->tail, t, t + cells * CELL_BYTES);
            continue;
        }
        if (claim_state_of(w) != CLAIM_EMPTY && claim_lap(g, w) > position_lap(g, t)) {
            if (load_sc(&ring->header->tail) == t && load_sc(claim_at(ring, t)) == w)
                return ring_corrupt(ring, "the claim word at the tail is of a later lap", t);
            continue;
        }
        *tail = t;
        *word = w;
        return RING_OK;
    }
    return RING_RETRY;
}

/* Where the floor may move if no group holds producers back: over settled records, until `enough` or the
 * first that is not settled. */
static uint64_t settled_until(struct ring *ring, uint64_t position, uint64_t enough)
{
    const struct geometry *g = &ring->g;
    for (uint64_t step = 0; step < g->cells && position < enough; step++) {
        uint64_t word = load_sc(claim_at(ring, position));
        if (!claim_is_of(g, word, position) || claim_state_of(word) == CLAIM_CLAIMED)
            break;
        position += claim_cells(g, word) * CELL_BYTES;
    }
    return position;
}

/* The scan F1..F5. RING_OK if `end` is then within *limit. */
static enum ring_result refresh_limit(struct ring *ring, uint64_t end, uint64_t *limit)
{
    const struct geometry *g = &ring->g;
    struct header *header = ring->header;
    for (int races = 0; races < RACES_AT_MOST; races++) {
        uint64_t floor = load_sc(&header->floor);
        if (!position_valid(floor))
            return ring_corrupt(ring, "the floor is not a position", floor);
        *limit = floor + g->capacity_bytes;
        if (end <= *limit)
            return RING_OK;
        uint64_t version = load_sc(&header->version);
        uint64_t least = UINT64_MAX;
        uint64_t high = load_sc(&header->groups_high);
        for (uint32_t i = 0; i < g->groups && i < high; i++) {
            if (!group_holds_back(group_state_of(load_sc(&ring->groups[i].owner))))
                continue;
            uint64_t cursor = load_sc(&ring->groups[i].cursor);
            if (!position_valid(cursor))
                return ring_corrupt(ring, "a group's cursor is not a position", cursor);
            if (cursor < least)
                least = cursor;
        }
        if (least == UINT64_MAX)
            least = settled_until(ring, floor, end - g->capacity_bytes);
        high = load_sc(&header->leases_high);
        for (uint32_t i = 0; i < g->leases && i < high; i++) {
            if (owner_state_of(load_sc(&ring->leases[i].owner)) < OWNER_OWNED)
                continue;
            uint64_t start = load_sc(&ring->leases[i].start);
            if ((start & 3) != LEASE_TAKING && (start & 3) != LEASE_HOLDING)
                continue;
            start &= ~UINT64_C(3);
            if (start < least)
                least = start;
        }
        if (load_sc(&header->version) != version)
            continue;
        /* `<`: a lease that a consumer is about to clear, since its cursor had moved on */
        if (least <= floor)
            return RING_WOULD_BLOCK;
        cas_sc(&header->floor, floor, least); /* lost: somebody else raised it; read it again */
    }
    return RING_RETRY;
}

/* Claims room for a record of payload_bytes. RING_WOULD_BLOCK: no space. */
enum ring_result producer_claim(struct producer *producer, uint64_t payload_bytes, struct claim *claim)
{
    struct ring *ring = producer->member.ring;
    const struct geometry *g = &ring->g;
    if (payload_bytes > g->capacity_bytes / 2 - RECORD_HEADER_BYTES)
        return RING_TOO_LARGE;
    uint64_t cells = record_cells(payload_bytes);
    for (int races = 0; races < RACES_AT_MOST; races++) {
        uint64_t tail = 0, word = 0;
        enum ring_result result = ring_help_tail(ring, &tail, &word); /* C1, C3 */
        if (result != RING_OK)
            return result;
        uint64_t end = tail + cells * CELL_BYTES;
        if (end >= POSITION_END)
            return RING_CLOSED;
        if (end > producer->limit) { /* C2 */
            result = ring_status(ring);
            if (result != RING_OK)
                return result;
            result = refresh_limit(ring, end, &producer->limit);
            if (result != RING_OK)
                return result;
        }
        uint64_t mine = claim_pack(g, tail, producer->member.index, cells, CLAIM_CLAIMED);
        if (!cas_sc(claim_at(ring, tail), word, mine)) /* C4 */
            continue;
        cas_sc(&ring->header->tail, tail, end); /* C5 */
        claim->position = tail;
        claim->word = mine;
        claim->payload = data_at(ring, tail) + RECORD_HEADER_BYTES;
        claim->payload_bytes = cells * CELL_BYTES - RECORD_HEADER_BYTES;
        result = ring_status(ring); /* C6 */
        if (result != RING_OK)
            producer_abort(producer, claim);
        return result;
    }
    return RING_RETRY;
}

/* Without a group that holds back, producers wait for each other's claims to be settled: there is nobody else
 * who could wake them. */
static void wake_producers_without_groups(struct ring *ring)
{
    if (!(load32_sc(&ring->header->space_event) & (EVENT_SLEEPING | EVENT_ARMED)))
        return;
    uint64_t high = load_sc(&ring->header->groups_high);
    for (uint32_t i = 0; i < ring->g.groups && i < high; i++)
        if (group_holds_back(group_state_of(load_sc(&ring->groups[i].owner))))
            return;
    event_wake(&ring->header->space_event, true, -1);
}

/* The payload is written: makes the record visible. Sequentially consistent: it pairs with a consumer's
 * look between event_prepare and sleep, and publishes the
 * record's bytes to whoever loads COMMITTED. */
void producer_commit(struct producer *producer, const struct claim *claim, uint64_t length, uint32_t codec)
{
    struct ring *ring = producer->member.ring;
    shared_u64 *head = (shared_u64 *)(void *)data_at(ring, claim->position);
    store_relaxed(head, record_pack(length, codec));
    store_relaxed(head + 1, origin_pack(producer->sequence++, producer->member.index,
                                        slot_generation(producer->member.word)));
    store_sc(claim_at(ring, claim->position), claim_with_state(claim->word, CLAIM_COMMITTED));
    struct participant *slot = producer->member.slot;
    store_relaxed(&slot->messages, load_relaxed(&slot->messages) + 1);
    store_relaxed(&slot->bytes, load_relaxed(&slot->bytes) + length);
    /* after the commit: a group that came later looks for the record itself */
    uint64_t high = load_sc(&ring->header->groups_high);
    for (uint32_t i = 0; i < ring->g.groups && i < high; i++)
        event_wake(&ring->groups[i].event, false, ring->event_fd);
    wake_producers_without_groups(ring);
}

/* The living owner gives up; readers step over the record. All wake: this record will not be anybody's. */
void producer_abort(struct producer *producer, const struct claim *claim)
{
    struct ring *ring = producer->member.ring;
    store_sc(claim_at(ring, claim->position), claim_with_state(claim->word, CLAIM_ABORTED));
    ring_wake_consumers(ring);
    wake_producers_without_groups(ring);
}

/* For waits: whether a claim would be tried, and not refused for want of space. */
bool producer_has_space(struct producer *producer, uint64_t payload_bytes)
{
    struct ring *ring = producer->member.ring;
    uint64_t tail = load_sc(&ring->header->tail);
    if (!position_valid(tail) || ring_status(ring) != RING_OK)
        return true; /* the claim will say what is wrong */
    /* not the producer's own, which another thread may be using: waits run without the interpreter's lock */
    uint64_t limit;
    return refresh_limit(ring, tail + record_cells(payload_bytes) * CELL_BYTES, &limit) != RING_WOULD_BLOCK;
}

/* The floor that would do. */
uint64_t producer_space_needed(struct producer *producer, uint64_t payload_bytes)
{
    struct ring *ring = producer->member.ring;
    uint64_t end = load_sc(&ring->header->tail) + record_cells(payload_bytes) * CELL_BYTES;
    return end > ring->g.capacity_bytes ? end - ring->g.capacity_bytes : 0;
}
