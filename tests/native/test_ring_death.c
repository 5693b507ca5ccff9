/* Producers, consumers and reapers that are killed at any access to shared memory, by real threads: see ring_mortal.h.
 *
 * What must hold all the same (ring_talk.h has the account): nothing whose send returned is lost to a group that works under leases, whatever comes as new comes once, whole and in its producer's
 * order, what comes again says so, and when all have gone nothing in the ring is taken. Waits end by wakes alone, those of reapers among them.
 *
 * has a long run
 */
#include "ring_mortal.h"

enum { SENDERS = 3, MEMBERS_A = 3, MEMBERS_B = 2, VISITORS = 2, REAPERS = 3 };

static struct room room;
static struct ring ring;
static struct account account;
static uint64_t run_seed;
static uint64_t life_steps;
static pthread_barrier_t begin;

struct actor {
    pthread_t thread;
    uint32_t number, next;
    const char *group;
    uint32_t group_number;
    bool lossy, is_reaper;
    struct reader reader;
    struct producer producer;
};

static bool send_rest(void *actor_)
{
    struct actor *actor = actor_;
    if (producer_attach(&actor->producer, &ring) != RING_OK)
        return false; /* slots of the dead are not free yet */
    while (actor->next < account.records) {
        uint32_t number = actor->next++; /* one that dies here may or may not have been sent */
        CHECK_EQUAL(send_one(&actor->producer, &account, actor->number, number), RING_OK);
        if (number % 16 == 3) {
            struct claim claim;
            if (producer_claim(&actor->producer, 100, &claim) == RING_OK)
                producer_abort(&actor->producer, &claim);
        }
    }
    producer_detach(&actor->producer);
    return true;
}

static bool receive_rest(void *actor_)
{
    struct actor *actor = actor_;
    struct reader *reader = &actor->reader;
    reader_begin(reader, &account, actor->group_number);
    reader->skips = actor->group == NULL;
    enum ring_result result = consumer_attach(&reader->consumer, &ring, actor->group, actor->group ? 1 : 0, actor->lossy);
    if (result == RING_NO_SLOT || result == RING_WOULD_BLOCK)
        return false;
    CHECK_EQUAL(result, RING_OK);
    reader->consumer.spinner.limit_ns = reader->consumer.spinner.budget_ns = actor->number % 2 ? 2000 : 0;
    bool stays = actor->group != NULL;
    do {
        /* a visitor copies; members take under leases, so that their death costs no record */
        result = receive_one(reader, !stays ? COPIED : below(&mood, 2) ? LEASED : PARKED);
        if (result == RING_WOULD_BLOCK)
            consumer_wait(&reader->consumer, -1);
        CHECK(result == RING_OK || result == RING_RETRY || result == RING_WOULD_BLOCK || result == RING_END || result == RING_NO_SLOT);
    } while (result != RING_END && (stays || reader->received < 20));
    consumer_detach(&reader->consumer, true);
    return result == RING_END;
}

static void *act(void *actor_)
{
    struct actor *actor = actor_;
    uint64_t seed = mixed(run_seed + (uint64_t)(uintptr_t)(actor->number) * 7 + (actor->group ? (unsigned char)*actor->group : 0) + (actor->is_reaper ? 1000 : 0));
    pthread_barrier_wait(&begin);
    if (actor->is_reaper)
        live(reap_after_each_death, &ring, seed, actor->number == 0 ? 0 : 20 * life_steps);
    else if (actor->group_number == UINT32_MAX)
        live(send_rest, actor, seed, life_steps);
    else
        live(receive_rest, actor, seed, life_steps);
    return NULL;
}

static void run(uint64_t capacity_bytes, uint64_t start, uint32_t records, uint64_t steps, bool drop)
{
    static const char *const names[] = {"a", "b"};
    static struct actor actors[SENDERS + MEMBERS_A + MEMBERS_B + VISITORS + REAPERS];
    forget_the_dead();
    life_steps = steps;
    struct ring_settings settings = {.capacity_bytes = capacity_bytes, .flags = FLAG_END_PRODUCERS | FLAG_HOLD | (drop ? FLAG_DROP_ORPHANS : 0),
        .parking_limit_bytes = 4096, .group_names = names, .group_count = 2};
    room_make(&room, settings);
    room_format(&room);
    room_open(&room, &ring);
    ring_preset(&ring, start);
    account_open(&account, SENDERS, 2, records, capacity_bytes / 2 - RECORD_HEADER_BYTES);
    CHECK(pthread_barrier_init(&begin, NULL, SENDERS + MEMBERS_A + MEMBERS_B + VISITORS + REAPERS) == 0);
    struct member ticket;
    CHECK_EQUAL(member_attach(&ticket, &ring, ROLE_TICKET), RING_OK);
    struct actor *next = actors;
    for (uint32_t i = 0; i < SENDERS; i++, next++)
        *next = (struct actor){.number = i, .group_number = UINT32_MAX};
    for (uint32_t i = 0; i < MEMBERS_A; i++, next++)
        *next = (struct actor){.number = i, .group = names[0], .group_number = 0};
    for (uint32_t i = 0; i < MEMBERS_B; i++, next++)
        *next = (struct actor){.number = i, .group = names[1], .group_number = 1};
    for (uint32_t i = 0; i < VISITORS; i++, next++)
        *next = (struct actor){.number = i, .lossy = i % 2};
    for (uint32_t i = 0; i < REAPERS; i++, next++)
        *next = (struct actor){.number = i, .is_reaper = true};
    for (struct actor *actor = actors; actor < next; actor++)
        CHECK(pthread_create(&actor->thread, NULL, act, actor) == 0);
    for (uint32_t i = 0; i < SENDERS; i++)
        pthread_join(actors[i].thread, NULL);
    member_detach(&ticket);
    for (uint32_t i = SENDERS; i < SENDERS + MEMBERS_A + MEMBERS_B + VISITORS; i++)
        pthread_join(actors[i].thread, NULL);
    tell_news(true);
    for (uint32_t i = SENDERS + MEMBERS_A + MEMBERS_B + VISITORS; i < sizeof actors / sizeof *actors; i++)
        pthread_join(actors[i].thread, NULL);
    ring_reap(&ring);
    uint64_t dropped = load_sc(&ring.groups[0].dropped) + load_sc(&ring.groups[1].dropped), missing = 0;
    for (uint32_t group = 0; group < 2; group++)
        for (size_t i = 0; i < (size_t)SENDERS * records; i++) {
            size_t place = (size_t)group * SENDERS * records + i;
            if (account.fates[i] == SENT && account.fresh[place] == 0 && account.again[place] == 0) {
                missing++;
                if (drop)
                    account.fates[i] = MAYBE_SENT;
            }
        }
    printf("capacity %" PRIu64 ", lives of %" PRIu64 " steps%s: %u records, %" PRIu64 " deaths, %" PRIu64 " aborted, %" PRIu64 " reaped, %" PRIu64 "+%" PRIu64 " redelivered, %" PRIu64 " dropped, %" PRIu64 " missing\n",
        capacity_bytes, steps, drop ? ", dropping" : "", SENDERS * records, (uint64_t)deaths, load_sc(&ring.header->aborted), load_sc(&ring.header->reaped), load_sc(&ring.groups[0].redelivered),
        load_sc(&ring.groups[1].redelivered), dropped, missing);
    fflush(stdout);
    CHECK(drop ? missing <= dropped : dropped == 0);
    check_account(&account, !drop);
    check_nothing_is_left(&ring);
    pthread_barrier_destroy(&begin);
    account_close(&account);
    room_unmake(&room);
}

int main(int argc, char **argv)
{
    uint64_t seed = seed_of_this_run();
    uint32_t rounds = long_run(argc, argv) ? 30 : 1;
    for (uint32_t round = 0; round < rounds; round++) {
        run_seed = mixed(seed + round);
        run(4096, 0, 500, 500, false);
        run(4096, 4096 - CELL_BYTES, 500, 3000, false);
        run(16384, (UINT64_C(1) << 32) - 3 * CELL_BYTES, 500, 1000, false);
        run(4096, 0, 500, 1000, true);
    }
    return 0;
}
