/* Hard states, set directly: about to wrap, full, half-claimed, at the end of all positions, a participant dead in each state of a slot, a claim or a lease. One thread. */
#include "ring_talk.h"

static struct room room;
static struct ring ring;
static struct producer producer;
static struct consumer consumer;
static unsigned char pattern[4096];

enum { CAPACITY = 4096, LARGEST = CAPACITY / 2 - RECORD_HEADER_BYTES };

static void begin(uint32_t flags, uint64_t position)
{
    alone = any_are_dead = true;
    room.settings.flags = flags;
    room_format(&room);
    room_open(&room, &ring);
    ring_preset(&ring, position);
}

static void begin_with_both(uint32_t flags, uint64_t position)
{
    begin(flags, position);
    CHECK_EQUAL(producer_attach(&producer, &ring), RING_OK);
    CHECK_EQUAL(consumer_attach(&consumer, &ring, "a", 1, false), RING_OK);
}

static enum ring_result send(struct producer *by, uint64_t bytes)
{
    struct claim claim;
    enum ring_result result = producer_claim(by, bytes, &claim);
    if (result != RING_OK)
        return result;
    memcpy(claim.payload, pattern + bytes % 97, bytes);
    producer_commit(by, &claim, bytes, 3);
    check_invariant(&ring);
    return RING_OK;
}

static void check_bytes(const struct record *record, uint64_t bytes)
{
    CHECK_EQUAL(record->length, bytes);
    CHECK_EQUAL(record->codec, 3);
    CHECK(memcmp(record->payload, pattern + bytes % 97, bytes) == 0);
}

static enum ring_result take(struct consumer *by, struct record *record)
{
    enum ring_result result = consumer_peek(by, record);
    return result == RING_OK ? consumer_take_copied(by, record) : result;
}

static void receive(struct consumer *by, uint64_t bytes)
{
    struct record record;
    CHECK_EQUAL(consumer_peek(by, &record), RING_OK);
    check_bytes(&record, bytes);
    CHECK_EQUAL(consumer_take_copied(by, &record), RING_OK);
    check_invariant(&ring);
}

/* As a receive that found nothing asks for it. */
static enum ring_result end_of(struct consumer *by)
{
    struct record record;
    CHECK_EQUAL(consumer_adopt(by, &record), RING_WOULD_BLOCK);
    return consumer_end(by);
}

/* A word that speaks of a participant who is gone: half of all are. */
static uint32_t a_dead_pid(void)
{
    uint32_t pid = 1000;
    while (!(mixed(pid) & 1))
        pid++;
    return pid;
}

static struct member attach_the_dead(enum participant_role role, uint32_t group)
{
    struct member member;
    uint32_t me = my_pid;
    my_pid = a_dead_pid();
    CHECK_EQUAL(member_attach(&member, &ring, role), RING_OK);
    my_pid = me;
    if (role == ROLE_CONSUMER)
        store_sc(&member.slot->info, (uint64_t)ROLE_CONSUMER | (uint64_t)(group + 1) << 8);
    return member;
}

/* ---- sizes and places */

static void records_of_every_size_cross_every_boundary(void)
{
    for (uint64_t cell = 0; cell < CAPACITY / CELL_BYTES; cell++)
        for (uint64_t bytes = 0; bytes <= LARGEST; bytes += bytes % 64 >= 46 && bytes % 64 < 50 ? 1 : bytes % 64 < 46 ? 46 - bytes % 64 : 64 + 46 - bytes % 64) {
            begin_with_both(FLAG_HOLD, 5 * CAPACITY + cell * CELL_BYTES);
            CHECK_EQUAL(send(&producer, bytes), RING_OK);
            receive(&consumer, bytes);
            CHECK_EQUAL(load_sc(&ring.header->tail), 5 * CAPACITY + cell * CELL_BYTES + record_cells(bytes) * CELL_BYTES);
        }
    begin_with_both(FLAG_HOLD, 0);
    CHECK_EQUAL(send(&producer, LARGEST), RING_OK);
    CHECK_EQUAL(send(&producer, LARGEST), RING_OK);
    receive(&consumer, LARGEST);
    receive(&consumer, LARGEST);
    CHECK_EQUAL(send(&producer, LARGEST + 1), RING_TOO_LARGE);
}

static void a_full_ring_takes_as_much_as_was_received(void)
{
    for (uint64_t start = 0; start < 2 * CAPACITY; start += 17 * CELL_BYTES) {
        begin_with_both(FLAG_HOLD, start);
        while (send(&producer, 100) == RING_OK)
            continue;
        CHECK_EQUAL(load_sc(&ring.header->tail), start + CAPACITY);
        CHECK_EQUAL(send(&producer, 0), RING_WOULD_BLOCK);
        CHECK(!producer_has_space(&producer, 0));
        receive(&consumer, 100);
        CHECK_EQUAL(send(&producer, 113), RING_WOULD_BLOCK); /* three cells where two are free */
        CHECK_EQUAL(send(&producer, 100), RING_OK);
        CHECK_EQUAL(send(&producer, 0), RING_WOULD_BLOCK);
    }
}

static void a_lease_keeps_its_bytes_when_the_cursor_is_laps_ahead(void)
{
    begin_with_both(FLAG_HOLD, 3 * CAPACITY - CELL_BYTES);
    CHECK_EQUAL(send(&producer, 500), RING_OK);
    struct record record;
    CHECK_EQUAL(consumer_peek(&consumer, &record), RING_OK);
    CHECK_EQUAL(consumer_take_leased(&consumer, &record), RING_OK);
    uint64_t sent = 0;
    while (send(&producer, 200) == RING_OK) {
        receive(&consumer, 200);
        sent++;
    }
    CHECK_EQUAL(sent, (CAPACITY - record_cells(500) * CELL_BYTES) / (record_cells(200) * CELL_BYTES));
    check_bytes(&record, 500);
    consumer_park(&consumer, &record); /* parked, it holds nobody back */
    for (int i = 0; i < 200; i++) {
        CHECK_EQUAL(send(&producer, 200), RING_OK);
        receive(&consumer, 200);
    }
    check_bytes(&record, 500);
    consumer_release(&consumer, record.lease);
    consumer_detach(&consumer, true);
    producer_detach(&producer);
    check_nothing_is_left(&ring);
}

static void positions_come_to_an_end(void)
{
    begin_with_both(FLAG_HOLD | FLAG_END_PRODUCERS, POSITION_END - 4 * CELL_BYTES);
    CHECK_EQUAL(send(&producer, 100), RING_OK);
    CHECK_EQUAL(send(&producer, 100), RING_CLOSED);
    CHECK_EQUAL(send(&producer, 0), RING_OK);
    CHECK_EQUAL(send(&producer, 0), RING_CLOSED); /* a record ends before the last position */
    receive(&consumer, 100);
    receive(&consumer, 0);
    producer_detach(&producer);
    CHECK_EQUAL(end_of(&consumer), RING_END);
}

/* ---- claims of the dead */

static void a_claim_whose_tail_was_not_moved_is_helped_and_aborted(void)
{
    for (int tail_moved = 0; tail_moved < 2; tail_moved++) {
        uint64_t start = 2 * CAPACITY - CELL_BYTES;
        begin_with_both(FLAG_HOLD, start);
        struct member dead = attach_the_dead(ROLE_PRODUCER, 0);
        store_sc(claim_at(&ring, start), claim_pack(&ring.g, start, dead.index, 3, CLAIM_CLAIMED));
        if (tail_moved)
            store_sc(&ring.header->tail, start + 3 * CELL_BYTES);
        struct record record;
        CHECK_EQUAL(consumer_peek(&consumer, &record), RING_WOULD_BLOCK);
        CHECK_EQUAL(consumer_end(&consumer), RING_WOULD_BLOCK);
        CHECK_EQUAL(ring_head_blocker(&ring, start), dead.index);
        CHECK_EQUAL(send(&producer, 10), RING_OK); /* behind it */
        CHECK_EQUAL(consumer_peek(&consumer, &record), RING_WOULD_BLOCK);
        consumer_look_who_blocks(&consumer);
        receive(&consumer, 10);
        CHECK_EQUAL(load_sc(&ring.header->aborted), 1);
        CHECK_EQUAL(slot_state(load_sc(&dead.slot->word)), SLOT_FREE);
        CHECK_EQUAL(slot_generation(load_sc(&dead.slot->word)), slot_generation(dead.word) + 1);
    }
}

static void a_ring_full_of_a_dead_ones_claims_is_emptied(void)
{
    begin_with_both(FLAG_HOLD, CAPACITY - 7 * CELL_BYTES);
    struct member dead = attach_the_dead(ROLE_PRODUCER, 0);
    for (uint64_t at = CAPACITY - 7 * CELL_BYTES; at < 2 * CAPACITY - 7 * CELL_BYTES; at += 2 * CELL_BYTES)
        store_sc(claim_at(&ring, at), claim_pack(&ring.g, at, dead.index, 2, CLAIM_CLAIMED));
    store_sc(&ring.header->tail, 2 * CAPACITY - 7 * CELL_BYTES);
    CHECK_EQUAL(send(&producer, 10), RING_WOULD_BLOCK);
    producer_look_who_blocks(&producer);
    CHECK_EQUAL(load_sc(&ring.header->aborted), CAPACITY / (2 * CELL_BYTES));
    struct record record;
    CHECK_EQUAL(consumer_peek(&consumer, &record), RING_WOULD_BLOCK); /* has stepped over all */
    CHECK_EQUAL(send(&producer, 10), RING_OK);
    receive(&consumer, 10);
}

static void a_living_ones_claim_is_left_alone(void)
{
    begin_with_both(FLAG_HOLD, 0);
    struct claim claim;
    CHECK_EQUAL(producer_claim(&producer, 10, &claim), RING_OK);
    consumer_look_who_blocks(&consumer);
    CHECK_EQUAL(ring_reap(&ring), 0);
    CHECK_EQUAL(load_sc(claim_at(&ring, 0)), claim.word);
    memcpy(claim.payload, pattern + 10, 10);
    producer_commit(&producer, &claim, 10, 3);
    receive(&consumer, 10);
}

/* ---- leases of the dead */

static void what_becomes_of_a_lease_depends_on_its_state(void)
{
    static const struct { enum owner_state owner; enum lease_state lease; bool cursor_beyond, drops; enum owner_state after; } cases[] = {
        {OWNER_ACQUIRING, LEASE_HOLDING, true, false, OWNER_FREE}, /* start and end are the last owner's still */
        {OWNER_OWNED, LEASE_CLEAR, true, false, OWNER_FREE},
        {OWNER_OWNED, LEASE_TAKING, true, false, OWNER_FREE},
        {OWNER_OWNED, LEASE_HOLDING, false, false, OWNER_FREE},
        {OWNER_OWNED, LEASE_HOLDING, true, false, OWNER_ORPHAN},
        {OWNER_OWNED, LEASE_PARKED, true, false, OWNER_ORPHAN},
        {OWNER_OWNED, LEASE_HOLDING, true, true, OWNER_FREE},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        begin_with_both(FLAG_HOLD | (cases[i].drops ? FLAG_DROP_ORPHANS : 0), CAPACITY);
        CHECK_EQUAL(send(&producer, 40), RING_OK);
        struct member dead = attach_the_dead(ROLE_CONSUMER, 0);
        struct lease *lease = &ring.leases[0];
        store_sc(&ring.header->leases_high, 1);
        store_sc(&lease->start, (uint64_t)CAPACITY | cases[i].lease);
        store_sc(&lease->end, CAPACITY + CELL_BYTES);
        store_sc(&lease->parked, record_pack(40, 3));
        memcpy(ring.parking, pattern + 40, 40);
        store_sc(&lease->owner, owner_pack(cases[i].owner, dead.who, 0, 0));
        if (cases[i].cursor_beyond)
            store_sc(&ring.groups[0].cursor, CAPACITY + CELL_BYTES);
        CHECK_EQUAL(ring_reap(&ring), 1);
        CHECK_EQUAL(owner_state_of(load_sc(&lease->owner)), cases[i].after);
        CHECK_EQUAL(load_sc(&ring.groups[0].dropped), cases[i].drops);
        struct record record;
        if (cases[i].after == OWNER_ORPHAN) {
            CHECK(consumer_sees_orphans(&consumer));
            CHECK_EQUAL(consumer_end(&consumer), RING_WOULD_BLOCK);
            CHECK_EQUAL(consumer_adopt(&consumer, &record), RING_OK);
            CHECK_EQUAL(record.deliveries, 1);
            check_bytes(&record, 40);
            consumer_release(&consumer, record.lease);
        }
        CHECK_EQUAL(consumer_adopt(&consumer, &record), RING_WOULD_BLOCK);
        CHECK_EQUAL(consumer_peek(&consumer, &record), cases[i].cursor_beyond ? RING_WOULD_BLOCK : RING_OK);
    }
}

static void a_record_that_kills_every_consumer_is_dropped_and_counted(void)
{
    begin_with_both(FLAG_HOLD | FLAG_END_PRODUCERS, 0);
    ring.max_deliveries = 3;
    CHECK_EQUAL(send(&producer, 40), RING_OK);
    struct record record;
    CHECK_EQUAL(consumer_peek(&consumer, &record), RING_OK);
    CHECK_EQUAL(consumer_take_leased(&consumer, &record), RING_OK);
    for (uint32_t death = 1; death <= 3; death++) {
        consumer_detach(&consumer, true); /* as if it had died */
        CHECK_EQUAL(consumer_attach(&consumer, &ring, "a", 1, false), RING_OK);
        CHECK_EQUAL(consumer_adopt(&consumer, &record), RING_OK);
        CHECK_EQUAL(record.deliveries, death);
        check_bytes(&record, 40);
    }
    consumer_detach(&consumer, true);
    CHECK_EQUAL(consumer_attach(&consumer, &ring, "a", 1, false), RING_OK);
    CHECK_EQUAL(consumer_adopt(&consumer, &record), RING_WOULD_BLOCK);
    CHECK_EQUAL(load_sc(&ring.groups[0].dropped), 1);
    CHECK_EQUAL(load_sc(&ring.groups[0].redelivered), 3);
    producer_detach(&producer);
    CHECK_EQUAL(end_of(&consumer), RING_END);
    consumer_detach(&consumer, true);
    check_nothing_is_left(&ring);
}

/* ---- groups */

static void the_first_group_takes_over_what_was_held(void)
{
    for (int private = 0; private < 2; private++) {
        begin(FLAG_HOLD, 0);
        CHECK_EQUAL(producer_attach(&producer, &ring), RING_OK);
        while (send(&producer, 100) == RING_OK)
            continue;
        CHECK_EQUAL(consumer_attach(&consumer, &ring, private ? NULL : "x", 1, false), RING_OK);
        for (uint64_t i = 0; i < CAPACITY / 128; i++)
            receive(&consumer, 100);
        struct consumer second;
        CHECK_EQUAL(send(&producer, 100), RING_OK);
        CHECK_EQUAL(consumer_attach(&second, &ring, "y", 1, false), RING_OK); /* starts at the tail */
        CHECK_EQUAL(send(&producer, 7), RING_OK);
        receive(&second, 7);
    }
}

static void without_a_group_records_are_stepped_over_but_not_a_claim(void)
{
    begin(0, 3 * CAPACITY - 5 * CELL_BYTES);
    CHECK_EQUAL(producer_attach(&producer, &ring), RING_OK);
    for (int i = 0; i < 1000; i++)
        CHECK_EQUAL(send(&producer, (uint64_t)i % LARGEST), RING_OK);
    struct claim claim;
    CHECK_EQUAL(producer_claim(&producer, 100, &claim), RING_OK);
    int sent = 0;
    while (send(&producer, 100) == RING_OK)
        sent++;
    CHECK(sent < CAPACITY / 128 && sent > 0);
    producer_abort(&producer, &claim);
    CHECK_EQUAL(send(&producer, 100), RING_OK);
}

static void who_dies_while_making_a_group_leaves_no_trace(void)
{
    begin(FLAG_HOLD, 0);
    CHECK_EQUAL(producer_attach(&producer, &ring), RING_OK);
    CHECK_EQUAL(consumer_attach(&consumer, &ring, "first", 5, false), RING_OK);
    struct member dead = attach_the_dead(ROLE_CONSUMER, 1);
    store_sc(&ring.header->joiner, dead.who | 1);
    store_sc(&ring.header->groups_high, 2);
    store_sc(&ring.groups[1].owner, GROUP_SETTLING | dead.who);
    struct consumer next;
    CHECK_EQUAL(consumer_attach(&next, &ring, "second", 6, false), RING_OK);
    CHECK_EQUAL(next.group_index, 1);
    CHECK_EQUAL(load_sc(&ring.header->joiner), 0);
    CHECK_EQUAL(slot_state(load_sc(&dead.slot->word)), SLOT_FREE);
}

static void a_dropped_group_says_so_and_holds_nobody_back(void)
{
    begin_with_both(FLAG_HOLD, 0);
    while (send(&producer, 100) == RING_OK)
        continue;
    CHECK_EQUAL(group_drop(&ring, "a", 1), RING_OK);
    CHECK_EQUAL(group_drop(&ring, "a", 1), RING_NO_GROUP);
    for (int i = 0; i < 100; i++)
        CHECK_EQUAL(send(&producer, 100), RING_OK);
    struct record record;
    enum ring_result result = take(&consumer, &record);
    CHECK_EQUAL(result == RING_WOULD_BLOCK ? consumer_end(&consumer) : result, RING_DROPPED);
}

/* ---- the rest */

static void a_lossy_reader_counts_what_it_was_too_slow_for(void)
{
    static struct lossy_seen seen[MAX_PARTICIPANTS];
    begin_with_both(FLAG_HOLD, CAPACITY - CELL_BYTES);
    struct consumer lossy;
    struct record record;
    for (int i = 0; i < 5; i++) /* before the reader: not lost */
        CHECK_EQUAL(send(&producer, 30), RING_OK);
    CHECK_EQUAL(consumer_attach(&lossy, &ring, NULL, 0, true), RING_OK);
    lossy_begin(&lossy, seen);
    uint64_t sent = 0, received = 0;
    for (uint64_t burst = 1; burst < 200; burst += 7) {
        for (uint64_t i = 0; i < burst; i++) {
            while (send(&producer, (sent * 37) % 200) != RING_OK)
                CHECK_EQUAL(take(&consumer, &record), RING_OK);
            sent++;
        }
        while (lossy_peek(&lossy, &record) == RING_OK)
            received += lossy_take(&lossy, &record) == RING_OK;
        CHECK_EQUAL(received + lossy.lost, sent);
    }
    CHECK(lossy.lost > 0 && received > 0);
}

static void a_lossy_reader_counts_from_the_first_of_a_producer_who_came_later(void)
{
    static struct lossy_seen seen[MAX_PARTICIPANTS];
    begin_with_both(FLAG_HOLD, 0);
    struct consumer lossy;
    struct record record;
    struct producer gone, second;
    CHECK_EQUAL(producer_attach(&gone, &ring), RING_OK);
    CHECK_EQUAL(producer_attach(&second, &ring), RING_OK);
    for (int i = 0; i < 50; i++) {
        CHECK_EQUAL(send(&second, 10), RING_OK);
        receive(&consumer, 10);
    }
    producer_detach(&gone);
    producer_detach(&second);
    CHECK_EQUAL(consumer_attach(&lossy, &ring, NULL, 0, true), RING_OK);
    lossy_begin(&lossy, seen);
    uint32_t slot = second.member.index;
    CHECK_EQUAL(producer_attach(&second, &ring), RING_OK);
    CHECK_EQUAL(second.member.index, slot);
    for (int i = 0; i < 200; i++) {
        CHECK_EQUAL(send(i % 2 ? &producer : &second, 10), RING_OK);
        receive(&consumer, 10);
    }
    uint64_t received = 0;
    while (lossy_peek(&lossy, &record) == RING_OK)
        received += lossy_take(&lossy, &record) == RING_OK;
    CHECK(received > 0);
    CHECK_EQUAL(received + lossy.lost, 200);
}

static void closing_ends_sending_and_lets_receiving_finish(void)
{
    begin_with_both(FLAG_HOLD, 0);
    CHECK_EQUAL(send(&producer, 40), RING_OK);
    ring_close(&ring);
    CHECK_EQUAL(send(&producer, 40), RING_CLOSED);
    CHECK_EQUAL(consumer_end(&consumer), RING_WOULD_BLOCK);
    receive(&consumer, 40);
    struct record record;
    CHECK_EQUAL(consumer_peek(&consumer, &record), RING_WOULD_BLOCK); /* over the aborted one */
    CHECK_EQUAL(end_of(&consumer), RING_END);
    ring_poison(&ring, 9);
    CHECK_EQUAL(consumer_end(&consumer), RING_POISONED);
}

static void a_contradiction_that_stays_is_corrupt(void)
{
    begin_with_both(FLAG_HOLD, 0);
    CHECK_EQUAL(send(&producer, 40), RING_OK);
    struct record record;
    store_sc((shared_u64 *)(void *)data_at(&ring, 0), record_pack(49, 3)); /* one cell has room for 48 */
    CHECK_EQUAL(consumer_peek(&consumer, &record), RING_CORRUPT);
    store_sc((shared_u64 *)(void *)data_at(&ring, 0), record_pack(48, 3));
    CHECK_EQUAL(consumer_peek(&consumer, &record), RING_OK);
    store_sc(claim_at(&ring, 0), claim_pack(&ring.g, CAPACITY, 0, 1, CLAIM_COMMITTED));
    CHECK_EQUAL(consumer_peek(&consumer, &record), RING_CORRUPT);
    store_sc(&ring.groups[0].cursor, 7);
    CHECK_EQUAL(consumer_peek(&consumer, &record), RING_CORRUPT);
    store_sc(&ring.header->tail, 7);
    CHECK_EQUAL(send(&producer, 1), RING_CORRUPT);
}

static void slots_are_given_again_under_another_generation(void)
{
    begin(FLAG_HOLD | FLAG_ONE_PRODUCER, 0);
    for (uint32_t i = 0; i < 300; i++) {
        CHECK_EQUAL(producer_attach(&producer, &ring), RING_OK);
        CHECK_EQUAL(producer.member.index, 0);
        CHECK_EQUAL(slot_generation(producer.member.word), i);
        struct producer second;
        CHECK_EQUAL(producer_attach(&second, &ring), RING_SECOND_PRODUCER);
        producer_detach(&producer);
    }
    struct member dead[8];
    for (int i = 0; i < 8; i++)
        dead[i] = attach_the_dead(ROLE_TICKET, 0);
    CHECK_EQUAL(ring_has_registered_producer(&ring), true);
    CHECK_EQUAL(ring_reap(&ring), 8);
    CHECK_EQUAL(ring_has_registered_producer(&ring), false);
    for (int i = 0; i < 8; i++)
        CHECK_EQUAL(slot_state(load_sc(&dead[i].slot->word)), SLOT_FREE);
}

int main(void)
{
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (unsigned char)mixed(i);
    room_make(&room, (struct ring_settings){.capacity_bytes = CAPACITY, .parking_limit_bytes = 4096});
    records_of_every_size_cross_every_boundary();
    a_full_ring_takes_as_much_as_was_received();
    a_lease_keeps_its_bytes_when_the_cursor_is_laps_ahead();
    positions_come_to_an_end();
    a_claim_whose_tail_was_not_moved_is_helped_and_aborted();
    a_ring_full_of_a_dead_ones_claims_is_emptied();
    a_living_ones_claim_is_left_alone();
    what_becomes_of_a_lease_depends_on_its_state();
    a_record_that_kills_every_consumer_is_dropped_and_counted();
    the_first_group_takes_over_what_was_held();
    without_a_group_records_are_stepped_over_but_not_a_claim();
    who_dies_while_making_a_group_leaves_no_trace();
    a_dropped_group_says_so_and_holds_nobody_back();
    a_lossy_reader_counts_what_it_was_too_slow_for();
    a_lossy_reader_counts_from_the_first_of_a_producer_who_came_later();
    closing_ends_sending_and_lets_receiving_finish();
    a_contradiction_that_stays_is_corrupt();
    slots_are_given_again_under_another_generation();
    room_unmake(&room);
    return 0;
}
