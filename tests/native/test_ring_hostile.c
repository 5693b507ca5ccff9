/* Shared memory that says anything: words of both regions are changed at random while one thread uses the ring in every way it can be used.
 *
 * Nothing is promised about what such a ring delivers. But each call returns, with one of its results; no access leaves the two regions (the address sanitizer watches the ends of the control region,
 * pages without rights those of the data); whatever is handed out as a record or as room for one lies inside; and nothing is undefined behaviour (a position that is no multiple of a cell would be
 * an unaligned access, a shift too far, …). The seed is printed.
 *
 * has a long run
 */
#include "ring_talk.h"

enum { READERS = 4, HELD = 6 };

static struct room room;
static struct ring ring;
static uint64_t state;
static struct producer producer;
static bool sends;
static struct { struct claim claim; bool open; } pending[2];
static struct user {
    struct consumer consumer;
    bool attached;
    uint32_t held[HELD];
    uint32_t held_count;
    struct lossy_seen seen[MAX_PARTICIPANTS];
} users[READERS];
static uint64_t results[RING_NO_GROUP + 1], bytes_seen;
static volatile unsigned char sink;

static enum ring_result counted(enum ring_result result)
{
    CHECK((unsigned)result <= RING_NO_GROUP);
    results[result]++;
    if (result == RING_CORRUPT)
        CHECK(ring.why != NULL);
    return result;
}

/* ---- spoiling */

static shared_u64 *some_word(void)
{
    unsigned char *base = room.control;
    const struct geometry *g = &room.g;
    size_t header = offsetof(struct header, tail);
    switch (below(&state, 8)) {
    case 0: return (shared_u64 *)(void *)(base + header + below(&state, (offsetof(struct header, reserved) - header) / 8) * 8);
    case 1: return (shared_u64 *)(void *)(base + g->participants_at + below(&state, 4 * sizeof(struct participant) / 8) * 8);
    case 2: return (shared_u64 *)(void *)(base + g->leases_at + below(&state, 6 * sizeof(struct lease) / 8) * 8);
    case 3: return (shared_u64 *)(void *)(base + g->groups_at + below(&state, 3 * sizeof(struct group) / 8) * 8);
    case 4: return claim_at(&ring, load_sc(&ring.header->tail) - below(&state, 3) * CELL_BYTES);
    case 5: return claim_at(&ring, load_sc(&ring.groups[below(&state, 3)].cursor));
    case 6: return (shared_u64 *)(void *)(room.data + below(&state, g->capacity_bytes / 8) * 8);
    default: return (shared_u64 *)(void *)(base + below(&state, g->total_bytes / 8) * 8);
    }
}

static uint64_t some_value(uint64_t before)
{
    uint64_t capacity = room.g.capacity_bytes;
    switch (below(&state, 12)) {
    case 0: return chance(&state);
    case 1: return 0;
    case 2: return UINT64_MAX;
    case 3: return below(&state, 300);
    case 4: return load_sc(some_word());
    case 5: return before + CELL_BYTES;
    case 6: return before - CELL_BYTES;
    case 7: return before + capacity;
    case 8: return POSITION_END - below(&state, 3) * CELL_BYTES;
    case 9: return load_sc(&ring.header->tail) + below(&state, 8) * CELL_BYTES;
    case 10: return claim_pack(&room.g, load_sc(&ring.header->tail) & ~UINT64_C(63), (uint32_t)below(&state, 256), 1 + below(&state, room.g.cells / 2), (enum claim_state)below(&state, 4));
    default: return before ^ UINT64_C(1) << below(&state, 64);
    }
}

static void spoil(void)
{
    shared_u64 *word = some_word();
    store_sc(word, some_value(load_sc(word)));
}

/* ---- using */

static void check_record_inside(const struct record *record)
{
    const unsigned char *low = room.data, *high = room.data + 2 * room.g.capacity_bytes;
    if (record->parked) {
        low = (unsigned char *)room.control + room.g.parking_at;
        high = (unsigned char *)room.control + room.g.total_bytes;
    }
    CHECK(record->payload >= low && record->payload <= high && record->length <= (uint64_t)(high - record->payload));
    CHECK(record->lease == NO_LEASE || record->lease < room.g.leases);
    CHECK_EQUAL(record->position % CELL_BYTES, 0); /* the sanitizer does not look at the alignment of atomics */
    for (uint64_t i = 0; i < record->length; i++)
        sink = record->payload[i];
    bytes_seen += record->length;
}

static void use_producer(void)
{
    unsigned which = (unsigned)below(&state, 2);
    struct claim *claim = &pending[which].claim;
    if (pending[which].open) {
        pending[which].open = false;
        if (below(&state, 4) == 0)
            producer_abort(&producer, claim);
        else
            producer_commit(&producer, claim, below(&state, claim->payload_bytes + 1), (uint32_t)below(&state, 256));
        return;
    }
    uint64_t bytes = below(&state, 4) ? below(&state, 200) : below(&state, room.g.capacity_bytes);
    if (counted(producer_claim(&producer, bytes, claim)) != RING_OK) {
        producer_wait(&producer, bytes, 0);
        producer_look_who_blocks(&producer);
        return;
    }
    CHECK(claim->payload_bytes >= bytes && claim->payload >= room.data && claim->payload + claim->payload_bytes <= room.data + 2 * room.g.capacity_bytes);
    memset(claim->payload, (int)below(&state, 256), claim->payload_bytes);
    pending[which].open = true;
}

static void use_consumer(struct user *user)
{
    struct consumer *consumer = &user->consumer;
    struct record record;
    if (user->held_count > 0 && below(&state, 3) == 0) {
        uint32_t lease = user->held[--user->held_count];
        if (below(&state, 2))
            consumer_release(consumer, lease);
        else
            consumer_give_back(consumer, lease);
        return;
    }
    if (!consumer->lossy && below(&state, 4) == 0 && counted(consumer_adopt(consumer, &record)) == RING_OK) {
        check_record_inside(&record);
        consumer_release(consumer, record.lease);
    }
    enum ring_result result = counted(consumer->lossy ? lossy_peek(consumer, &record) : consumer_peek(consumer, &record));
    if (result != RING_OK) {
        counted(consumer_end(consumer));
        consumer_wait(consumer, 0);
        consumer_look_who_blocks(consumer);
        consumer_pass_wake_on(consumer);
        return;
    }
    check_record_inside(&record);
    if (below(&state, 4) == 0)
        spoil(); /* between the look and the taking */
    if (consumer->lossy) {
        counted(lossy_take(consumer, &record));
    } else if (user->held_count == HELD || below(&state, 2)) {
        counted(consumer_take_copied(consumer, &record));
    } else if (counted(consumer_take_leased(consumer, &record)) == RING_OK) {
        if (below(&state, 2))
            consumer_park(consumer, &record);
        check_record_inside(&record);
        user->held[user->held_count++] = record.lease;
    }
}

static void attach_user(uint32_t which)
{
    static const char *const names[READERS] = {"a", "a", NULL, NULL};
    struct user *user = &users[which];
    enum ring_result result = counted(consumer_attach(&user->consumer, &ring, names[which], names[which] ? 1 : 0, which == 3));
    user->attached = result == RING_OK;
    user->held_count = 0;
    user->consumer.seen = user->seen;
}

static void use(void)
{
    waits_alone = 0;
    uint64_t at, word;
    switch (below(&state, 24)) {
    case 0: counted(ring_reap_slot(&ring, (uint32_t)below(&state, 300))); break;
    case 1: CHECK(ring_reap(&ring) <= room.g.participants); break;
    case 2: counted(ring_help_tail(&ring, &at, &word)); break;
    case 3: counted(group_drop(&ring, below(&state, 2) ? "a" : "zz", 1 + below(&state, 2))); break;
    case 4: (void)ring_ends_with_producers(&ring); break;
    case 5: counted(ring_status(&ring)); ring_wake_everybody(&ring); break;
    case 6: store_sc(&ring.header->status, STATUS_OPEN); break;
    case 7:
        if (sends)
            producer_detach(&producer);
        pending[0].open = pending[1].open = false;
        sends = counted(producer_attach(&producer, &ring)) == RING_OK;
        break;
    case 8:
    case 9: {
        uint32_t which = (uint32_t)below(&state, READERS);
        if (users[which].attached)
            consumer_detach(&users[which].consumer, below(&state, 2));
        attach_user(which);
        break;
    }
    case 10:
    case 11:
    case 12:
    case 13:
    case 14:
    case 15:
        if (sends)
            use_producer();
        break;
    default: {
        struct user *user = &users[below(&state, READERS)];
        if (user->attached)
            use_consumer(user);
    }
    }
}

/* A new ring, somewhere; used, then used and spoilt. */
static void run(uint32_t steps)
{
    room_format(&room);
    room_open(&room, &ring);
    ring_preset(&ring, below(&state, 4) ? below(&state, 200) * CELL_BYTES : POSITION_END - below(&state, 200) * CELL_BYTES);
    sends = producer_attach(&producer, &ring) == RING_OK;
    pending[0].open = pending[1].open = false;
    for (uint32_t i = 0; i < READERS; i++)
        attach_user(i);
    uint32_t calm = (uint32_t)below(&state, 60);
    for (uint32_t i = 0; i < steps; i++) {
        use();
        for (uint64_t often = below(&state, 3); i > calm && often > 0; often--)
            spoil();
    }
    /* what a newcomer would make of it */
    struct ring other;
    struct geometry g;
    (void)ring_check_header(room.control, room.g.total_bytes, &g);
    (void)ring_open(&other, room.control, room.g.total_bytes, room.data, room.g.capacity_bytes);
}

int main(int argc, char **argv)
{
    state = seed_of_this_run();
    alone = any_are_dead = true;
    uint32_t rounds = long_run(argc, argv) ? 40000 : 1000;
    struct ring_settings settings = {.capacity_bytes = 4096, .participants = 12, .leases = 8, .groups = 4, .flags = FLAG_END_PRODUCERS | FLAG_HOLD, .parking_limit_bytes = 4096};
    room_make(&room, settings);
    for (uint32_t round = 0; round < rounds; round++)
        run(400);
    room_unmake(&room);
    static const char *const names[] = {"OK", "WOULD_BLOCK", "RETRY", "END", "CLOSED", "POISONED", "DROPPED", "CORRUPT", "TOO_LARGE", "NO_SLOT", "FOREIGN", "OWN_LOAN", "SECOND_PRODUCER", "NOT_DEAD", "NO_MEMORY", "NO_GROUP"};
    for (unsigned i = 0; i <= RING_NO_GROUP; i++)
        printf("%s %" PRIu64 "%s", names[i], results[i], i < RING_NO_GROUP ? ", " : "\n");
    printf("%" PRIu64 " bytes of records\n", bytes_seen);
    CHECK(results[RING_CORRUPT] > 0 && results[RING_OK] > 0 && bytes_seen > 0);
    return 0;
}
