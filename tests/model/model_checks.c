/* The first state of a scenario, and what must hold.
 *
 * A scenario does not begin with a fresh ring but where it hurts: at the last cell of the second lap, so
 * that the second record wraps and every claim word that is met is a stale one of an older lap,
 * and with as many records in the ring as the scenario wants.
 *
 *   P1  every record whose send returned is delivered exactly once to each audience (a named group, a
 *   private consumer) that had joined before the send began, unless a consumer of it died,
 *       and in each producer's order as any one consumer sees it
 *   P2  with dead consumers and ack="done": at least once; else lost only what a dead consumer had taken
 *   (one record each), and delivered twice only under a lease that is redelivered
 *   never torn, never invented, never what was refused (model_people.c); nobody living is left asleep or
 *   going in circles (stuck and livelock are the explorer's own findings)
 *   nothing leaks: when all have left or been reaped, no slot, lease or private group is taken and the join
 *   word is free
 *   in every state: floor <= cursors and unsettled claims <= tail <= floor + capacity
 */
#include "ring_model.h"

#include <stdlib.h>

struct ring rings[PROCS];
struct producer producers[PROCS];
struct consumer consumers[PROCS];
struct member tickets[PROCS];
struct claim claims[PROCS];
struct ghost ghost;
struct options now;
struct geometry g;
int acting = -1;

/* ---- set-up */

static void fill_ring(void)
{
    struct ring *ring = &rings[0];
    uint64_t cells = record_cells((uint64_t)now.payload_bytes);
    uint64_t start = (2 * (uint64_t)now.cells - 1) * CELL_BYTES;
    for (uint64_t back = cells; back <= (uint64_t)now.cells; back += cells) { /* the lap before */
        uint64_t position = start - back * CELL_BYTES;
        store_relaxed(claim_at(ring, position),
                      claim_pack(&g, position, 0, cells, back == cells ? CLAIM_COMMITTED : CLAIM_ABORTED));
    }
    uint64_t tail = start;
    for (int i = 0; i < now.filled; i++, tail += cells * CELL_BYTES) {
        unsigned char payload[MOST_PAYLOAD];
        shared_u64 *head = (shared_u64 *)(void *)data_at(ring, tail);
        memset(payload, 0x40 + FILLED_IDS + i, sizeof payload);
        store_relaxed(claim_at(ring, tail), claim_pack(&g, tail, 0, cells, CLAIM_COMMITTED));
        store_relaxed(head, record_pack((uint64_t)now.payload_bytes, 0));
        store_relaxed(head + 1, origin_pack((uint64_t)i, 0, 0));
        copy_shared(data_at(ring, tail) + RECORD_HEADER_BYTES, payload, (size_t)now.payload_bytes);
        ghost.sent[FILLED_IDS + i] = 1;
        ghost.at[FILLED_IDS + i] = (unsigned char)(tail / CELL_BYTES);
        ghost.due[FILLED_IDS + i] = (uint16_t)((1 << now.groups) - 1);
    }
    store_relaxed(&ring->header->tail, tail);
    store_relaxed(&ring->header->floor, start);
    for (uint32_t i = 0; i < g.groups; i++)
        store_relaxed(&ring->groups[i].cursor, start);
}

void set_up(const struct options *options)
{
    static const char *const names[] = {"a", "b"};
    now = *options;
    if (!geometry_make(&g, (uint64_t)now.cells * CELL_BYTES, (uint32_t)now.participants, (uint32_t)now.leases,
                       MOST_GROUPS, now.parks ? PARKING_BYTES : 0))
        abort();
    struct ring_settings settings = {
        .flags = (now.ends_with_producers ? FLAG_END_PRODUCERS : 0u) | (now.holds ? FLAG_HOLD : 0u) |
                 (now.drops_orphans ? FLAG_DROP_ORPHANS : 0u) | (now.one_producer ? FLAG_ONE_PRODUCER : 0u),
        .max_deliveries = (uint32_t)now.max_deliveries,
        .group_names = names,
        .group_count = (uint32_t)now.groups,
    };
    ring_format(control_memory, &g, &settings);
    os_slice_ns = now.has_slices ? 1 : -1;
    memset(ghost.last, -1, sizeof ghost.last);
    for (int i = 0; i < PROCS; i++)
        if (ring_open(&rings[i], control_memory, g.total_bytes, data_memory, g.capacity_bytes))
            abort();
    fill_ring();
    if (now.is_closed)
        store_relaxed(&rings[0].header->status, STATUS_CLOSED);
}

void attach_producer(int who)
{
    acting = who;
    if (producer_attach(&producers[who], &rings[who]) != RING_OK)
        abort();
    acting = -1;
}

/* The producer has claimed room for its first record, and gone no further. */
void claim_ahead(int who, bool moves_tail)
{
    int id = who * now.messages;
    ghost.due[id] = ghost.joined;
    if (producer_claim(&producers[who], (uint64_t)now.payload_bytes, &claims[who]) != RING_OK)
        abort();
    if (!moves_tail)
        store_relaxed(&rings[who].header->tail, claims[who].position);
}

void attach_ticket(int who)
{
    acting = who;
    if (member_attach(&tickets[who], &rings[who], ROLE_TICKET) != RING_OK)
        abort();
    acting = -1;
}

void attach_consumer(int who, const char *group, bool lossy)
{
    acting = who;
    if (consumer_attach(&consumers[who], &rings[who], group, group ? 1 : 0, lossy) != RING_OK)
        abort();
    consumers[who].orphans_seen = 0; /* there are none: saves the first look */
    if (!lossy)
        ghost.joined |= (uint16_t)(1 << audience_of(who));
    acting = -1;
}

int audience_of(int who)
{
    return consumers[who].private_group ? MOST_GROUPS + who : (int)consumers[who].group_index;
}

/* ---- checks */

static void check_nothing_leaks(void)
{
    struct ring *ring = &rings[0];
    for (uint32_t i = 0; i < g.participants; i++)
        must(slot_state(load_relaxed(&ring->participants[i].word)) == SLOT_FREE, "a slot stays taken");
    for (uint32_t i = 0; i < g.leases; i++) {
        uint64_t owner = load_relaxed(&ring->leases[i].owner);
        bool is_kept = owner_state_of(owner) == OWNER_ORPHAN &&
                       !(ghost.ended >> owner_group(owner) & 1) && /* for a member that comes later */
                       group_state_of(load_relaxed(&ring->groups[owner_group(owner)].owner)) == GROUP_NAMED;
        must(owner_state_of(owner) == OWNER_FREE || is_kept, "a lease stays taken");
    }
    for (uint32_t i = 0; i < g.groups; i++) {
        enum group_state state = group_state_of(load_relaxed(&ring->groups[i].owner));
        must(state != GROUP_PRIVATE && state != GROUP_SETTLING && state != GROUP_LOSSY,
             "a private group outlives its consumer");
    }
    must(load_relaxed(&ring->header->joiner) == 0, "the join word stays taken");
}

static int deaths_in(int audience)
{
    int count = 0;
    for (int i = 0; i < PROCS; i++)
        count += model_is_dead(i) && consumers[i].group && audience_of(i) == audience;
    return count;
}

static void check_audience(int audience)
{
    int deaths = deaths_in(audience), lost = 0;
    bool is_redelivered = (now.acks_done || now.takes_leases) && !now.drops_orphans;
    for (int id = 0; id < MOST_IDS; id++) {
        int times = ghost.received[audience][id];
        if (!is_redelivered || deaths == 0)
            must(times <= 1, "delivered twice");
        else if (!now.acks_done)
            must(times <= 1 + deaths, "delivered more often than consumers died");
        must(times == 0 || !ghost.refused[id], "delivered, though send had said Closed");
        if ((ghost.ended >> audience & 1) && (ghost.due[id] >> audience & 1) && ghost.sent[id] && times == 0)
            lost++;
    }
    bool may_lose = deaths > 0 && (!now.acks_done || now.drops_orphans || now.max_deliveries <= deaths);
    must(lost == 0 || may_lose, "lost: send had returned");
    must(lost <= deaths, "more lost than consumers died");
}

void final_delivery(void)
{
    for (int audience = 0; audience < AUDIENCES; audience++)
        check_audience(audience);
}

void final_all(void)
{
    check_nothing_leaks();
    final_delivery();
}

void invariant(void)
{
    struct ring *ring = &rings[0];
    uint64_t floor = load_relaxed(&ring->header->floor), tail = load_relaxed(&ring->header->tail);
    must(tail <= floor + g.capacity_bytes, "the tail has overrun the floor");
    for (uint64_t cell = 0; cell < g.cells; cell++) {
        uint64_t word = ring->claims[cell];
        if (claim_state_of(word) == CLAIM_CLAIMED)
            must(claim_lap(&g, word) * g.capacity_bytes + cell * CELL_BYTES >= floor,
                 "the floor has passed a claim that is not settled");
    }
    for (uint32_t i = 0; i < g.groups; i++) {
        enum group_state state = group_state_of(load_relaxed(&ring->groups[i].owner));
        uint64_t cursor = load_relaxed(&ring->groups[i].cursor);
        if (!group_holds_back(state) || state == GROUP_SETTLING)
            continue;
        must(floor <= cursor, "the floor has passed a cursor");
        must(cursor <= tail, "a cursor has passed the tail");
        for (uint32_t k = 0; k < i && state == GROUP_NAMED; k++)
            must(group_state_of(load_relaxed(&ring->groups[k].owner)) != GROUP_NAMED ||
                     memcmp(ring->groups[k].name, ring->groups[i].name, GROUP_NAME_BYTES) != 0,
                 "two groups of one name");
    }
}
