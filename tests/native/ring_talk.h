/* Sending and receiving with an account of it: every record says who sent it and as which of his, its bytes follow from that, and each delivery is entered.
 *
 * The account answers what the ring promises:
 *   whole      the bytes of a record are those that its sender wrote (checked where they lie, under a lease, and in a copy that was then taken)
 *   once       a group gets each record once as new (deliveries == 0); again only as redelivered
 *   in order   what one consumer gets as new from one producer comes in the order in which it was sent
 *   not lost   a record whose send had returned is delivered to each group; one whose sender died in the act may be
 */
#ifndef SHMBUS_TEST_RING_TALK_H
#define SHMBUS_TEST_RING_TALK_H

#include "ring_help.h"

enum { MOST_SENDERS = 16, MOST_GROUPS_TALKED = 4, HEAD_BYTES = 16 };
enum fate { NEVER_SENT, MAYBE_SENT, SENT };

struct account {
    uint32_t senders, groups, records; /* of each sender */
    _Atomic(unsigned char) *fates;     /* senders x records */
    _Atomic(unsigned char) *fresh;     /* groups x senders x records: deliveries as new */
    _Atomic(unsigned char) *again;     /* the same: deliveries as redelivered */
    uint64_t most_payload;             /* bytes */
};

static inline void account_open(struct account *account, uint32_t senders, uint32_t groups, uint32_t records, uint64_t most_payload)
{
    CHECK(senders <= MOST_SENDERS && groups <= MOST_GROUPS_TALKED && most_payload >= HEAD_BYTES);
    *account = (struct account){.senders = senders, .groups = groups, .records = records, .most_payload = most_payload};
    account->fates = calloc((size_t)senders * records, 1);
    account->fresh = calloc((size_t)groups * senders * records, 1);
    account->again = calloc((size_t)groups * senders * records, 1);
    CHECK(account->fates && account->fresh && account->again);
}

static inline void account_close(struct account *account)
{
    free(account->fates);
    free(account->fresh);
    free(account->again);
}

/* ---- one record */

static inline uint64_t record_seed(uint32_t sender, uint32_t number) { return mixed((uint64_t)sender << 32 | (number + 1)); }

/* Mostly small, now and then as large as it may be, and around the edges of cells. */
static inline uint64_t payload_bytes_of(const struct account *account, uint32_t sender, uint32_t number)
{
    uint64_t seed = record_seed(sender, number);
    uint64_t room = account->most_payload - HEAD_BYTES;
    switch (seed % 8) {
    case 0: return HEAD_BYTES + mixed(seed) % (room + 1);
    case 1: return room < 48 ? HEAD_BYTES : 48 - 1 + mixed(seed) % 3;
    default: return HEAD_BYTES + mixed(seed) % (room < 120 ? room + 1 : 120);
    }
}

static inline void fill_record(unsigned char *payload, uint64_t bytes, uint32_t sender, uint32_t number)
{
    unsigned char local[1 << 16];
    uint64_t head[2] = {(uint64_t)sender << 32 | number, bytes};
    uint64_t state = record_seed(sender, number);
    CHECK(bytes >= HEAD_BYTES && bytes <= sizeof local);
    memcpy(local, head, HEAD_BYTES);
    for (uint64_t i = HEAD_BYTES; i < bytes; i += 8) {
        uint64_t word = chance(&state);
        memcpy(local + i, &word, bytes - i < 8 ? bytes - i : 8);
    }
    copy_shared(payload, local, bytes);
}

static inline void check_record(const struct account *account, const unsigned char *local, uint64_t bytes, uint32_t *sender, uint32_t *number)
{
    uint64_t head[2];
    CHECK(bytes >= HEAD_BYTES);
    memcpy(head, local, HEAD_BYTES);
    *sender = (uint32_t)(head[0] >> 32);
    *number = (uint32_t)head[0];
    CHECK(*sender < account->senders && *number < account->records);
    CHECK_EQUAL(head[1], bytes);
    CHECK_EQUAL(bytes, payload_bytes_of(account, *sender, *number));
    uint64_t state = record_seed(*sender, *number);
    for (uint64_t i = HEAD_BYTES; i < bytes; i += 8) {
        uint64_t word = chance(&state);
        CHECK(memcmp(local + i, &word, bytes - i < 8 ? bytes - i : 8) == 0);
    }
}

/* ---- sending */

static inline enum ring_result send_one(struct producer *producer, struct account *account, uint32_t sender, uint32_t number)
{
    uint64_t bytes = payload_bytes_of(account, sender, number);
    struct claim claim;
    enum ring_result result;
    atomic_store_explicit(&account->fates[(size_t)sender * account->records + number], MAYBE_SENT, memory_order_relaxed);
    while ((result = producer_claim(producer, bytes, &claim)) != RING_OK) {
        if (result == RING_WOULD_BLOCK)
            producer_wait(producer, bytes, -1);
        else if (result != RING_RETRY)
            return result;
    }
    CHECK(claim.payload_bytes >= bytes);
    fill_record(claim.payload, bytes, sender, number);
    producer_commit(producer, &claim, bytes, 0);
    atomic_store_explicit(&account->fates[(size_t)sender * account->records + number], SENT, memory_order_relaxed);
    return RING_OK;
}

/* ---- receiving */

enum how { COPIED, LEASED, PARKED };

struct reader {
    struct consumer consumer;
    struct account *account;
    uint32_t group;                 /* in the account */
    int64_t last[MOST_SENDERS];     /* number of the last new one, -1 before the first */
    uint64_t received, redelivered; /* by this reader */
    bool skips;                     /* lossy, or joined late: what it does not get is not lost */
    unsigned char copy[1 << 16];
};

static inline void reader_begin(struct reader *reader, struct account *account, uint32_t group)
{
    reader->account = account;
    reader->group = group;
    reader->received = reader->redelivered = 0;
    reader->skips = false;
    for (uint32_t i = 0; i < MOST_SENDERS; i++)
        reader->last[i] = -1;
}

/* The record is taken: enter it. */
static inline void enter(struct reader *reader, const struct record *record)
{
    struct account *account = reader->account;
    uint32_t sender, number;
    check_record(account, reader->copy, record->length, &sender, &number);
    size_t place = ((size_t)reader->group * account->senders + sender) * account->records + number;
    reader->received++;
    CHECK(atomic_load_explicit(&account->fates[(size_t)sender * account->records + number], memory_order_relaxed) != NEVER_SENT);
    if (record->deliveries > 0) {
        reader->redelivered++;
        if (!reader->skips)
            atomic_fetch_add_explicit(&account->again[place], 1, memory_order_relaxed);
        return;
    }
    CHECK((int64_t)number > reader->last[sender]);
    reader->last[sender] = number;
    if (!reader->skips)
        CHECK_EQUAL(atomic_fetch_add_explicit(&account->fresh[place], 1, memory_order_relaxed), 0);
}

/* One try, as the Python types do it (py_consumer.c). */
static inline enum ring_result receive_one(struct reader *reader, enum how how)
{
    struct consumer *consumer = &reader->consumer;
    struct record record;
    enum ring_result result = RING_WOULD_BLOCK;
    if (!consumer->lossy && consumer_sees_orphans(consumer))
        result = consumer_adopt(consumer, &record);
    if (result == RING_WOULD_BLOCK)
        result = consumer->lossy ? lossy_peek(consumer, &record) : consumer_peek(consumer, &record);
    if (result == RING_WOULD_BLOCK)
        return consumer_end(consumer);
    if (result != RING_OK)
        return result;
    CHECK(record.length <= sizeof reader->copy);
    if (record.lease == NO_LEASE && (how == COPIED || consumer->lossy)) {
        copy_shared(reader->copy, record.payload, record.length);
        result = consumer->lossy ? lossy_take(consumer, &record) : consumer_take_copied(consumer, &record);
        if (result == RING_OK)
            enter(reader, &record);
        return result;
    }
    if (record.lease == NO_LEASE) {
        result = consumer_take_leased(consumer, &record);
        if (result != RING_OK)
            return result;
    }
    if (how == PARKED)
        consumer_park(consumer, &record);
    copy_shared(reader->copy, record.payload, record.length);
    enter(reader, &record);
    if (record.position % 256 == 0)
        sched_yield(); /* hold some a little longer, while the others go on */
    copy_shared(reader->copy, record.payload, record.length); /* still the same bytes, where they lie */
    uint32_t sender, number;
    check_record(reader->account, reader->copy, record.length, &sender, &number);
    consumer_release(consumer, record.lease);
    return RING_OK;
}

/* Until something other than the next record comes: the end, or what is wrong. `how` by chance when it is negative. */
static inline enum ring_result receive_until_the_end(struct reader *reader, int how, uint64_t *state)
{
    for (;;) {
        enum ring_result result = receive_one(reader, how < 0 ? (enum how)below(state, 3) : (enum how)how);
        if (result == RING_WOULD_BLOCK)
            consumer_wait(&reader->consumer, -1);
        else if (result != RING_OK && result != RING_RETRY)
            return result;
    }
}

/* ---- the verdict */

/* `deaths` of consumers allow redelivery, nothing else. */
static inline void check_account(const struct account *account, bool consumers_died)
{
    for (uint32_t group = 0; group < account->groups; group++)
        for (size_t i = 0; i < (size_t)account->senders * account->records; i++) {
            size_t place = (size_t)group * account->senders * account->records + i;
            unsigned fate = account->fates[i], fresh = account->fresh[place], again = account->again[place];
            bool bad = fresh > 1 || (fate == SENT && fresh + again == 0) || (fate == NEVER_SENT && fresh + again != 0) || (again != 0 && !consumers_died);
            if (bad)
                fprintf(stderr, "group %u, sender %zu, record %zu: fate %u, %u times new, %u times again\n", group, i / account->records, i % account->records, fate, fresh, again);
            CHECK(!bad);
        }
}

#endif
