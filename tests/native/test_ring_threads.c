/* Many at once: producers, two groups of several consumers, a private group that joins and leaves, a lossy reader, over one small ring, with real threads and real futexes.
 *
 * Waits end by wakes alone and the channel ends when the last producer leaves, so a wake that is missed, or an end that nobody notices, hangs here. The account (ring_talk.h) says whether every
 * record came to each group whole, once and in its producer's order.
 *
 * has a long run
 */
#include <sched.h>

#include "ring_talk.h"

enum { SENDERS = 3, MEMBERS_A = 3, MEMBERS_B = 2, VISITORS = 2 };

static struct room room;
static struct ring ring;
static struct account account;
static pthread_barrier_t attached;
static uint64_t run_seed;

struct actor {
    pthread_t thread;
    uint32_t number;
    const char *group; /* NULL: private */
    uint32_t group_number;
    bool lossy;
    struct reader reader;
};

static void *send_all(void *actor_)
{
    struct actor *actor = actor_;
    struct producer producer;
    be_somebody_new();
    CHECK_EQUAL(producer_attach(&producer, &ring), RING_OK);
    producer.spinner.limit_ns = producer.spinner.budget_ns = actor->number % 2 ? 2000 : 0;
    pthread_barrier_wait(&attached);
    uint64_t state = run_seed + actor->number;
    for (uint32_t i = 0; i < account.records; i++) {
        if (below(&state, 16) == 0) { /* a loan that is given back */
            struct claim claim;
            if (producer_claim(&producer, below(&state, account.most_payload), &claim) == RING_OK)
                producer_abort(&producer, &claim);
        }
        CHECK_EQUAL(send_one(&producer, &account, actor->number, i), RING_OK);
    }
    producer_detach(&producer);
    return NULL;
}

static void *receive_all(void *actor_)
{
    struct actor *actor = actor_;
    struct reader *reader = &actor->reader;
    be_somebody_new();
    reader_begin(reader, &account, actor->group_number);
    CHECK_EQUAL(consumer_attach(&reader->consumer, &ring, actor->group, strlen(actor->group), false), RING_OK);
    reader->consumer.spinner.limit_ns = reader->consumer.spinner.budget_ns = actor->number % 2 ? 2000 : 0;
    pthread_barrier_wait(&attached);
    uint64_t state = run_seed + 100 + actor->number;
    CHECK_EQUAL(receive_until_the_end(reader, (int)(actor->number % 4) - 1, &state), RING_END);
    CHECK_EQUAL(reader->redelivered, 0);
    consumer_detach(&reader->consumer, true);
    return NULL;
}

/* Joins, takes a few, leaves, and so on until the end. */
static void *visit(void *actor_)
{
    struct actor *actor = actor_;
    struct reader *reader = &actor->reader;
    uint64_t state = run_seed + 200 + actor->number;
    pthread_barrier_wait(&attached);
    enum ring_result result = RING_OK;
    while (result != RING_END) {
        be_somebody_new();
        reader_begin(reader, &account, 0);
        reader->skips = true;
        while ((result = consumer_attach(&reader->consumer, &ring, NULL, 0, actor->lossy)) == RING_WOULD_BLOCK)
            sched_yield();
        CHECK_EQUAL(result, RING_OK);
        uint64_t stay = below(&state, 40);
        while (result != RING_END && reader->received <= stay) {
            result = receive_one(reader, (enum how)below(&state, 3));
            CHECK(result == RING_OK || result == RING_RETRY || result == RING_WOULD_BLOCK || result == RING_END);
            if (result == RING_WOULD_BLOCK)
                consumer_wait(&reader->consumer, -1);
        }
        consumer_detach(&reader->consumer, false);
    }
    return NULL;
}

static void run(uint64_t capacity_bytes, uint64_t start, uint32_t records)
{
    static const char *const names[] = {"a", "b"};
    static struct actor senders[SENDERS], members[MEMBERS_A + MEMBERS_B], visitors[VISITORS];
    struct ring_settings settings = {
        .capacity_bytes = capacity_bytes, .flags = FLAG_END_PRODUCERS | FLAG_HOLD, .parking_limit_bytes = 4096, .group_names = names, .group_count = 2};
    room_make(&room, settings);
    room_format(&room);
    room_open(&room, &ring);
    ring_preset(&ring, start);
    uint64_t largest = capacity_bytes / 2 - RECORD_HEADER_BYTES;
    account_open(&account, SENDERS, 2, records, largest < 60000 ? largest : 60000);
    CHECK(pthread_barrier_init(&attached, NULL, SENDERS + MEMBERS_A + MEMBERS_B + VISITORS + 1) == 0);
    struct member ticket; /* until all have attached, so that the channel does not end before */
    CHECK_EQUAL(member_attach(&ticket, &ring, ROLE_TICKET), RING_OK);
    for (uint32_t i = 0; i < SENDERS; i++) {
        senders[i].number = i;
        CHECK(pthread_create(&senders[i].thread, NULL, send_all, &senders[i]) == 0);
    }
    for (uint32_t i = 0; i < MEMBERS_A + MEMBERS_B; i++) {
        members[i].number = i;
        members[i].group_number = i >= MEMBERS_A;
        members[i].group = names[i >= MEMBERS_A];
        CHECK(pthread_create(&members[i].thread, NULL, receive_all, &members[i]) == 0);
    }
    for (uint32_t i = 0; i < VISITORS; i++) {
        visitors[i].number = i;
        visitors[i].lossy = i % 2;
        CHECK(pthread_create(&visitors[i].thread, NULL, visit, &visitors[i]) == 0);
    }
    pthread_barrier_wait(&attached);
    member_detach(&ticket);
    for (uint32_t i = 0; i < SENDERS; i++)
        pthread_join(senders[i].thread, NULL);
    for (uint32_t i = 0; i < MEMBERS_A + MEMBERS_B; i++)
        pthread_join(members[i].thread, NULL);
    for (uint32_t i = 0; i < VISITORS; i++)
        pthread_join(visitors[i].thread, NULL);
    check_account(&account, false);
    check_nothing_is_left(&ring);
    printf("capacity %" PRIu64 " from %" PRIu64 ": %u records, tail %" PRIu64 "\n", capacity_bytes, start, SENDERS * records, load_sc(&ring.header->tail));
    fflush(stdout);
    pthread_barrier_destroy(&attached);
    account_close(&account);
    room_unmake(&room);
}

int main(int argc, char **argv)
{
    uint64_t seed = seed_of_this_run();
    uint32_t rounds = long_run(argc, argv) ? 30 : 1;
    for (uint32_t round = 0; round < rounds; round++) {
        run_seed = mixed(seed + round);
        run(4096, 0, 1500);
        run(4096, 4096 - CELL_BYTES, 1500);                                   /* about to wrap for the first time */
        run(16384, (UINT64_C(1) << 32) - 16384 - 3 * CELL_BYTES, 1500);       /* about to pass 32 bits */
        run(65536, POSITION_END - (UINT64_C(1) << 28) - 5 * CELL_BYTES, 1500); /* near the end of all positions */
    }
    return 0;
}
