/* ring_model.c: the ring core itself, explored exhaustively at small sizes.
 *
 * There is no second description of the protocol that could differ from the code: the scenarios below run shmbus/_native/*.c, compiled with SHMBUS_MODEL, under explore.c.
 * Each access to shared memory is a step; anybody marked so can die before any of them, and asleep. Waits have no time slices here (os_slice_ns = -1), so a wake that is
 * missed is a violation and not a delay. The dead are found by a broker, a daemon process that reaps whenever somebody has died and may be doubled.
 *
 * What is checked (`final`, and torn copies at once):
 *   P1  every record whose send returned is delivered exactly once to each group, if no consumer died, and in each producer's order as any one consumer sees it
 *   P2  with dead consumers and ack="done": at least once; with ack="receive": at most once, and lost only if a dead consumer had taken it
 *   never torn, never invented; P3, P5: nobody living is left asleep or going in circles (stuck and livelock are the explorer's own findings)
 *   nothing leaks: when all have left or been reaped, no slot, lease or private group is taken and the join word is free
 */
#include "explore.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "event.h"
#include "os.h"
#include "ring.h"

enum { MOST_CELLS = 4, PARTICIPANTS = 6, LEASES = 3, GROUPS = 3, MOST_IDS = 16, PROCS = MODEL_PROCS };

/* ---- memory */

static _Alignas(4096) unsigned char control_memory[HEADER_BYTES + PARTICIPANTS * 64 + LEASES * 64 + GROUPS * 256 + 4096 + LEASES * 4096];
static _Alignas(64) unsigned char data_memory[2 * MOST_CELLS * CELL_BYTES];
static struct ring rings[PROCS];
static struct producer producers[PROCS];
static struct consumer consumers[PROCS];
static struct ghost { /* what happened, for the checks; nobody's memory */
    unsigned char sent[MOST_IDS];
    unsigned char received[GROUPS][MOST_IDS]; /* deliveries that were finished */
    unsigned char taken_by_dead[PROCS];       /* 1 + id of what a process has taken and not yet finished */
    signed char last[PROCS][PROCS];           /* consumer x producer: last sequence seen */
    unsigned char joined_at[PROCS];
} ghost;

static struct options {
    int cells, messages, payload_bytes;
    bool done, leases, end_producers, hold, drop, one_producer;
    int groups; /* declared ones: "a", "b" */
    int participants;
    int parking;
} now;

static struct geometry g;
static int acting = -1; /* who attaches during set-up */

/* ---- the operating system */

int64_t os_now = 0;
static int self(void) { return acting >= 0 ? acting : model_self(); }
int os_futex_wait(shared_u32 *word, uint32_t expected, int64_t timeout_ns)
{
    return timeout_ns < 0 ? model_futex_wait((uint32_t *)word, expected) : model_futex_wait_timed((uint32_t *)word, expected);
}
int os_futex_wake(shared_u32 *word, int count) { return model_futex_wake((uint32_t *)word, count); }
void os_event_fd_write(int fd) { (void)fd; }
uint64_t os_now_ns(void) { return 0; }
uint32_t os_pid(void) { return (uint32_t)self() + 1; }
uint64_t os_start_time(void) { return 7; }
bool os_is_dead(const struct ring *ring, uint32_t pid, uint64_t start, bool start_known)
{
    (void)ring, (void)start, (void)start_known;
    return pid >= 1 && pid <= PROCS && (int)pid - 1 != self() && model_is_dead((int)pid - 1);
}
bool os_reserve(const struct ring *ring, uint64_t offset, uint64_t bytes) { (void)ring, (void)offset, (void)bytes; return true; }
void os_unreserve(const struct ring *ring, uint64_t offset, uint64_t bytes) { (void)ring, (void)offset, (void)bytes; }
uint64_t os_pid_namespace(void) { return 1; }
uint64_t os_time_namespace(void) { return 1; }
uint32_t os_usable_cores(void) { return 1; }
uint32_t os_fork_count(void) { return 0; }

/* The mirror: data beyond the capacity is the beginning. A copy is two steps, so that it can be seen half done. */
static void fold(unsigned char *to, const unsigned char *from, size_t bytes)
{
    for (size_t i = 0; i < bytes; i++) {
        const unsigned char *source = from + i;
        unsigned char *target = to + i;
        if (source >= data_memory + g.capacity_bytes && source < data_memory + 2 * g.capacity_bytes)
            source -= g.capacity_bytes;
        if (target >= data_memory + g.capacity_bytes && target < data_memory + 2 * g.capacity_bytes)
            target -= g.capacity_bytes;
        *target = *source;
    }
}

/* Which words need a scheduling point: those that somebody writes and at least two touch. This is found out, not declared: a search starts with what is known so far; whenever an access shows that another word
 * belongs to them, the word gets its points from then on and the search is repeated (main). The last repetition met no such word: then every access without a point is to a word that nobody else
 * touches or that nobody writes, so it commutes with whatever others do, and leaving out its point leaves out no behaviour. A process that may be killed there might as well be killed at its next point. */
enum { WORDS = (sizeof control_memory + sizeof data_memory) / 8 };
static struct knowledge {
    unsigned char touched[WORDS], written[WORDS], contended[WORDS]; /* a bit a process; a bit a process; 0 or 1 */
    int grown;
} *known; /* shared with the repetitions, which are child processes */
static unsigned char active[WORDS]; /* what was known when this repetition began */

static bool contended(const void *at, bool writes)
{
    const unsigned char *byte = at;
    size_t word;
    int me = model_self();
    if (me < 0)
        return false;
    if (byte >= control_memory && byte < control_memory + sizeof control_memory)
        word = (size_t)(byte - control_memory) / 8;
    else if (byte >= data_memory && byte < data_memory + sizeof data_memory)
        word = sizeof control_memory / 8 + ((size_t)(byte - data_memory) & (g.capacity_bytes - 1)) / 8;
    else
        return false;
    known->touched[word] |= (unsigned char)(1 << me);
    known->written[word] |= (unsigned char)(writes << me);
    if (!known->contended[word] && known->written[word] && (known->touched[word] & (known->touched[word] - 1))) {
        known->contended[word] = 1;
        known->grown++;
    }
    return active[word];
}

void model_access(const void *word, bool writes)
{
    if (contended(word, writes))
        model_step();
}

static void copy_half(unsigned char *to, const unsigned char *from, size_t bytes)
{
    bool point = false;
    for (size_t i = 0; i < bytes; i += 8) {
        point |= contended(to + i, true);
        point |= contended(from + i, false);
    }
    if (point)
        model_step();
    fold(to, from, bytes);
}

void model_copy(void *to, const void *from, size_t bytes)
{
    size_t half = bytes / 16 * 8;
    copy_half(to, from, half);
    copy_half((unsigned char *)to + half, (const unsigned char *)from + half, bytes - half);
}

/* ---- participants */

/* The explorer is called only if it must be: a call with `...` leaves whatever was in the argument registers on the stack, and a later frame's padding would make that part of the state. */
static void must(bool holds, const char *what)
{
    if (!holds)
        model_assert(false, "%s", what);
}

static void fill(unsigned char *payload, int id, int bytes) { memset(payload, 0x40 + id, (size_t)bytes); }

static int id_of(const unsigned char *payload, uint64_t length)
{
    for (uint64_t i = 1; i < length; i++)
        must(payload[i] == payload[0], "torn: a record's bytes are of different records");
    must(length == (uint64_t)now.payload_bytes, "a record of another length than any that was sent");
    must(payload[0] >= 0x40 && payload[0] < 0x40 + MOST_IDS, "invented: nobody sent this record");
    return payload[0] - 0x40;
}

/* One message of `producer`; false if the channel is closed. */
static bool send_one(int who, int sequence)
{
    struct producer *producer = &producers[who];
    unsigned char payload[96];
    int id = who * now.messages + sequence;
    struct claim claim;
    fill(payload, id, now.payload_bytes);
    model_label("send");
    for (;;) {
        enum ring_result result = producer_claim(producer, (uint64_t)now.payload_bytes, &claim);
        if (result == RING_CLOSED)
            return false;
        must(result == RING_OK || result == RING_WOULD_BLOCK || result == RING_RETRY, "send fails for another reason than space");
        if (result == RING_OK)
            break;
        model_label("wait for space");
        producer_wait(producer, (uint64_t)now.payload_bytes, -1);
    }
    copy_shared(claim.payload, payload, (size_t)now.payload_bytes);
    producer_commit(producer, &claim, (uint64_t)now.payload_bytes, 0);
    ghost.sent[id] = 1; /* in the same step as the commit's last access: send has returned */
    return true;
}

static void produce_attached(int who)
{
    for (int i = 0; i < now.messages; i++)
        if (!send_one(who, i))
            break;
    model_label("producer leaves");
    producer_detach(&producers[who]);
}

static void run_producer(void *none)
{
    (void)none;
    produce_attached(model_self());
}

static void run_producer_that_attaches(void *none)
{
    (void)none;
    int me = model_self();
    model_label("producer attaches");
    must(producer_attach(&producers[me], &rings[me]) == RING_OK, "no slot");
    produce_attached(me);
}

static void finished(struct consumer *consumer, int me, int id)
{
    if (ghost.received[consumer->group_index][id] < 200)
        ghost.received[consumer->group_index][id]++;
    ghost.taken_by_dead[me] = 0;
}

/* What a receive does in py_consumer.c, step by step; false at the end of the channel. *held is the lease that ack="done" keeps. */
static bool receive_one(struct consumer *consumer, uint32_t *held, int *held_id)
{
    int me = model_self();
    struct record record;
    unsigned char copy[96];
    if (*held != NO_LEASE) {
        finished(consumer, me, *held_id); /* the work is done; from here on it may be lost to redelivery */
        consumer_release(consumer, *held);
        *held = NO_LEASE;
    }
    for (;;) {
        enum ring_result result = RING_WOULD_BLOCK;
        model_label("receive");
        if (!consumer->lossy && consumer_sees_orphans(consumer))
            result = consumer_adopt(consumer, &record);
        if (result == RING_WOULD_BLOCK)
            result = consumer->lossy ? lossy_peek(consumer, &record) : consumer_peek(consumer, &record);
        if (result == RING_WOULD_BLOCK)
            result = consumer_end(consumer);
        if (result == RING_END || result == RING_DROPPED)
            return false;
        if (result == RING_RETRY)
            continue;
        if (result == RING_WOULD_BLOCK) {
            model_label("wait for a record");
            consumer_wait(consumer, -1);
            continue;
        }
        must(result == RING_OK, "receive fails");
        if (record.lease == NO_LEASE && (consumer->lossy || !(now.done || now.leases))) {
            must(record.length <= sizeof copy, "a length that was not checked");
            copy_shared(copy, record.payload, record.length);
            result = consumer->lossy ? lossy_take(consumer, &record) : consumer_take_copied(consumer, &record);
            if (result == RING_DROPPED)
                return false;
            if (result != RING_OK)
                continue;
            int id = id_of(copy, record.length);
            finished(consumer, me, id);
            int from = id / now.messages, sequence = id % now.messages;
            must(sequence > ghost.last[me][from], "a producer's order is not kept");
            ghost.last[me][from] = (signed char)sequence;
            return true;
        }
        if (record.lease == NO_LEASE) {
            result = consumer_take_leased(consumer, &record);
            if (result == RING_DROPPED)
                return false;
            if (result != RING_OK) {
                must(result == RING_RETRY, "no lease");
                continue;
            }
        }
        copy_shared(copy, record.payload, record.length);
        int id = id_of(copy, record.length);
        ghost.taken_by_dead[me] = (unsigned char)(1 + id);
        if (now.done) {
            if (now.parking)
                consumer_park(consumer, &record);
            *held = record.lease;
            *held_id = id;
        } else {
            finished(consumer, me, id);
            consumer_release(consumer, record.lease);
        }
        return true;
    }
}

static void consume_attached(int me, bool leave)
{
    uint32_t held = NO_LEASE;
    int held_id = 0;
    while (receive_one(&consumers[me], &held, &held_id))
        ;
    model_label("consumer leaves");
    if (leave)
        consumer_detach(&consumers[me], false);
}

static void run_consumer(void *none)
{
    (void)none;
    consume_attached(model_self(), true);
}

/* Joins the group named by arg (NULL: private), and receives. */
static void run_consumer_that_joins(void *group)
{
    int me = model_self();
    model_label("consumer joins");
    enum ring_result result = consumer_attach(&consumers[me], &rings[me], group, group ? 1 : 0, false);
    must(result == RING_OK, "no slot, or the join word is never free");
    ghost.joined_at[me] = 1;
    consume_attached(me, true);
}

/* Receives one record and leaves: what it leaves behind must not disturb anybody. */
static void run_consumer_of_one(void *none)
{
    (void)none;
    int me = model_self();
    uint32_t held = NO_LEASE;
    int held_id = 0;
    receive_one(&consumers[me], &held, &held_id);
    if (held != NO_LEASE)
        finished(&consumers[me], me, held_id);
    model_label("consumer leaves early");
    consumer_detach(&consumers[me], false);
}

static void run_lossy(void *none) { run_consumer(none); }

static void run_closer(void *none)
{
    (void)none;
    model_label("close");
    ring_close(&rings[model_self()]);
}

static void run_dropper(void *none)
{
    (void)none;
    model_label("drop the group");
    group_drop(&rings[model_self()], "a", 1);
}

static bool somebody_died(void *none)
{
    (void)none;
    for (int i = 0; i < PARTICIPANTS && i < now.participants; i++) {
        uint64_t word = load_relaxed(&rings[0].participants[i].word);
        if (slot_state(word) != SLOT_FREE && model_is_dead((int)slot_pid(word) - 1))
            return true;
    }
    return false;
}

static void run_broker(void *none)
{
    for (;;) {
        model_wait(somebody_died, none);
        model_label("reap");
        ring_reap(&rings[model_self()]);
    }
}

/* ---- set-up and checks */

static const char *const names[] = {"a", "b"};

static void set_up(const struct options *options)
{
    now = *options;
    uint32_t participants = now.participants ? (uint32_t)now.participants : PARTICIPANTS;
    now.participants = (int)participants;
    if (!geometry_make(&g, (uint64_t)now.cells * CELL_BYTES, participants, LEASES, GROUPS, now.parking ? 4096 : 0))
        abort();
    struct ring_settings settings = {
        .flags = (now.end_producers ? FLAG_END_PRODUCERS : 0u) | (now.hold ? FLAG_HOLD : 0u) | (now.drop ? FLAG_DROP_ORPHANS : 0u) | (now.one_producer ? FLAG_ONE_PRODUCER : 0u),
        .max_deliveries = 5,
        .group_names = names,
        .group_count = (uint32_t)now.groups,
    };
    ring_format(control_memory, &g, &settings);
    os_slice_ns = -1;
    memset(ghost.last, -1, sizeof ghost.last);
    for (int i = 0; i < PROCS; i++)
        if (ring_open(&rings[i], control_memory, now.parking ? g.total_bytes : g.control_bytes, data_memory, g.capacity_bytes))
            abort();
}

static void attach_producer(int who)
{
    acting = who;
    if (producer_attach(&producers[who], &rings[who]) != RING_OK)
        abort();
    acting = -1;
}

static void attach_consumer(int who, const char *group, bool lossy)
{
    acting = who;
    if (consumer_attach(&consumers[who], &rings[who], group, group ? 1 : 0, lossy) != RING_OK)
        abort();
    consumers[who].orphans_seen = 0; /* saves the first scan's states */
    acting = -1;
}

static bool anybody_died(void)
{
    for (int i = 0; i < PROCS; i++)
        if (model_is_dead(i))
            return true;
    return false;
}

/* Who of the listed group's consumers is dead and had taken this record. */
static int dead_with(int id)
{
    int count = 0;
    for (int i = 0; i < PROCS; i++)
        count += model_is_dead(i) && ghost.taken_by_dead[i] == 1 + id;
    return count;
}

static bool consumer_died(void)
{
    for (int i = 0; i < PROCS; i++)
        if (model_is_dead(i) && consumers[i].group)
            return true;
    return false;
}

static void check_nothing_leaks(void)
{
    struct ring *ring = &rings[0];
    for (uint32_t i = 0; i < ring->g.participants; i++)
        must(slot_state(load_relaxed(&ring->participants[i].word)) == SLOT_FREE, "a slot stays taken");
    for (uint32_t i = 0; i < ring->g.leases; i++)
        must(owner_state_of(load_relaxed(&ring->leases[i].owner)) == OWNER_FREE, "a lease stays taken");
    for (uint32_t i = 0; i < ring->g.groups; i++) {
        enum group_state state = group_state_of(load_relaxed(&ring->groups[i].owner));
        must(state != GROUP_PRIVATE && state != GROUP_SETTLING && state != GROUP_LOSSY, "a private group outlives its consumer");
    }
    must(load_relaxed(&ring->header->joiner) == 0, "the join word stays taken");
}

/* For groups 0..now.groups-1 that had a consumer till the end. */
static void check_delivery(int groups)
{
    for (int group = 0; group < groups; group++) {
        for (int id = 0; id < MOST_IDS; id++) {
            int times = ghost.received[group][id];
            if (!consumer_died()) {
                must(times <= 1, "delivered twice");
                must(!ghost.sent[id] || times == 1, "lost: send had returned");
            } else if (now.done) {
                must(!ghost.sent[id] || times >= 1, "lost, though it was never finished");
            } else {
                must(times <= 1 + dead_with(id), "delivered twice with ack=receive");
            }
        }
    }
}

static void final_all(void)
{
    check_nothing_leaks();
    check_delivery(now.groups);
}

static void final_leaks_only(void)
{
    check_nothing_leaks();
    (void)anybody_died;
}

/* floor <= cursors and leases; tail <= floor + capacity, once everything has come to rest or at any moment */
static void invariant(void)
{
    struct ring *ring = &rings[0];
    uint64_t floor = load_relaxed(&ring->header->floor), tail = load_relaxed(&ring->header->tail);
    must(tail <= floor + g.capacity_bytes, "the tail has overrun the floor");
    for (uint32_t i = 0; i < ring->g.groups; i++) {
        uint64_t owner = load_relaxed(&ring->groups[i].owner);
        if (group_holds_back(group_state_of(owner)) && group_state_of(owner) != GROUP_SETTLING)
            must(floor <= load_relaxed(&ring->groups[i].cursor), "the floor has passed a cursor");
    }
}

#define HEADER_HOT offsetof(struct header, tail)
#define BLOCKS \
    .blocks = {control_memory + HEADER_HOT, control_memory + HEADER_BYTES, data_memory, rings, producers, consumers, &ghost, \
               control_memory + HEADER_BYTES + PARTICIPANTS * 64 + LEASES * 64 + GROUPS * 256 + 0}, \
    .block_bytes = {offsetof(struct header, reserved) - HEADER_HOT, PARTICIPANTS * 64 + LEASES * 64 + GROUPS * 256 + MOST_CELLS * 8, MOST_CELLS * CELL_BYTES, \
                    sizeof rings, sizeof producers, sizeof consumers, sizeof ghost}, \
    .block_names = {"header", "tables", "data", "rings", "producers", "consumers", "ghost"}

#define PRODUCER {run_producer, NULL, true, false}
#define IMMORTAL_PRODUCER {run_producer, NULL, false, false}
#define CONSUMER {run_consumer, NULL, true, false}
#define IMMORTAL_CONSUMER {run_consumer, NULL, false, false}
#define BROKER {run_broker, NULL, false, true}
#define MORTAL_BROKER {run_broker, NULL, true, true}

#define SETUP(name, body, ...) static void name(void) { static const struct options options = {__VA_ARGS__}; set_up(&options); body }

SETUP(two_to_one, { attach_producer(0); attach_producer(1); attach_consumer(2, "a", false); },
      .cells = 2, .messages = 2, .payload_bytes = 24, .end_producers = true, .groups = 1)
SETUP(one_to_two, { attach_producer(0); attach_consumer(1, "a", false); attach_consumer(2, "a", false); },
      .cells = 2, .messages = 3, .payload_bytes = 24, .end_producers = true, .groups = 1)
SETUP(one_to_two_done, { attach_producer(0); attach_consumer(1, "a", false); attach_consumer(2, "a", false); },
      .cells = 2, .messages = 2, .payload_bytes = 24, .end_producers = true, .groups = 1, .done = true)
SETUP(one_to_two_leased, { attach_producer(0); attach_consumer(1, "a", false); attach_consumer(2, "a", false); },
      .cells = 2, .messages = 3, .payload_bytes = 24, .end_producers = true, .groups = 1, .leases = true)
SETUP(drop_policy, { attach_producer(0); attach_consumer(1, "a", false); attach_consumer(2, "a", false); },
      .cells = 2, .messages = 2, .payload_bytes = 24, .end_producers = true, .groups = 1, .leases = true, .drop = true)
SETUP(two_groups, { attach_producer(0); attach_consumer(1, "a", false); attach_consumer(2, "b", false); },
      .cells = 2, .messages = 3, .payload_bytes = 24, .end_producers = true, .groups = 2)
SETUP(long_records, { attach_producer(0); attach_producer(1); attach_consumer(2, "a", false); },
      .cells = 4, .messages = 2, .payload_bytes = 80, .end_producers = true, .groups = 1)
SETUP(joins, { attach_producer(0); attach_consumer(1, "a", false); },
      .cells = 2, .messages = 3, .payload_bytes = 24, .end_producers = true, .groups = 1)
SETUP(join_held, { attach_producer(0); },
      .cells = 2, .messages = 2, .payload_bytes = 24, .end_producers = true, .groups = 0, .hold = true)
SETUP(nobody, { attach_producer(0); attach_producer(1); },
      .cells = 2, .messages = 3, .payload_bytes = 24, .end_producers = true, .groups = 0)
SETUP(reuse, { attach_producer(0); attach_consumer(1, "a", false); },
      .cells = 2, .messages = 2, .payload_bytes = 24, .end_producers = true, .groups = 1, .participants = 2)
SETUP(lossy, { attach_producer(0); attach_consumer(1, NULL, true); },
      .cells = 2, .messages = 4, .payload_bytes = 24, .end_producers = true, .groups = 0)
SETUP(closing, { attach_producer(0); attach_producer(1); attach_consumer(2, "a", false); },
      .cells = 2, .messages = 1, .payload_bytes = 24, .groups = 1)
SETUP(dropping, { attach_producer(0); attach_consumer(1, "a", false); },
      .cells = 2, .messages = 3, .payload_bytes = 24, .end_producers = true, .groups = 1)
SETUP(privates, { attach_producer(0); attach_consumer(1, NULL, false); },
      .cells = 2, .messages = 3, .payload_bytes = 24, .end_producers = true, .groups = 0)

static const struct scenario scenarios[] = {
    {"two producers, one consumer, a producer may die", two_to_one, 4, {PRODUCER, PRODUCER, IMMORTAL_CONSUMER, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_all},
    {"one producer, two consumers of a group, nobody dies", one_to_two, 3, {IMMORTAL_PRODUCER, IMMORTAL_CONSUMER, IMMORTAL_CONSUMER}, 0, BLOCKS, .invariant = invariant, .final = final_all},
    {"one producer, two consumers of a group, anybody may die", one_to_two, 4, {PRODUCER, CONSUMER, IMMORTAL_CONSUMER, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_all},
    {"redelivery: ack=done, a consumer may die", one_to_two_done, 4, {IMMORTAL_PRODUCER, CONSUMER, IMMORTAL_CONSUMER, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_all},
    {"leases, nobody dies", one_to_two_leased, 3, {IMMORTAL_PRODUCER, IMMORTAL_CONSUMER, IMMORTAL_CONSUMER}, 0, BLOCKS, .invariant = invariant, .final = final_all},
    {"dropped orphans: a consumer may die", drop_policy, 4, {IMMORTAL_PRODUCER, CONSUMER, IMMORTAL_CONSUMER, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_all},
    {"two groups", two_groups, 3, {IMMORTAL_PRODUCER, IMMORTAL_CONSUMER, IMMORTAL_CONSUMER}, 0, BLOCKS, .invariant = invariant, .final = final_all},
    {"records of two cells", long_records, 4, {PRODUCER, PRODUCER, IMMORTAL_CONSUMER, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_all},
    {"a named group joins", joins, 3, {IMMORTAL_PRODUCER, IMMORTAL_CONSUMER, {run_consumer_that_joins, "b", false, false}}, 0, BLOCKS, .invariant = invariant, .final = final_all},
    {"a private group joins, and may die", joins, 4, {IMMORTAL_PRODUCER, IMMORTAL_CONSUMER, {run_consumer_that_joins, NULL, true, false}, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_all},
    {"two join at once what was held", join_held, 4, {IMMORTAL_PRODUCER, {run_consumer_that_joins, "a", true, false}, {run_consumer_that_joins, "a", false, false}, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_leaks_only},
    {"no group at all", nobody, 3, {PRODUCER, PRODUCER, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_leaks_only},
    {"no group, then one joins", nobody, 3, {IMMORTAL_PRODUCER, IMMORTAL_PRODUCER, {run_consumer_that_joins, NULL, false, false}}, 0, BLOCKS, .invariant = invariant, .final = final_leaks_only},
    {"a slot is used again while two reap", reuse, 5, {PRODUCER, IMMORTAL_CONSUMER, {run_producer_that_attaches, NULL, false, false}, BROKER, MORTAL_BROKER}, 2, BLOCKS, .invariant = invariant, .final = final_leaks_only},
    {"a lossy reader", lossy, 2, {IMMORTAL_PRODUCER, {run_lossy, NULL, false, false}}, 0, BLOCKS, .invariant = invariant, .final = final_leaks_only},
    {"the channel is closed meanwhile", closing, 4, {IMMORTAL_PRODUCER, IMMORTAL_PRODUCER, IMMORTAL_CONSUMER, {run_closer, NULL, false, false}}, 0, BLOCKS, .invariant = invariant, .final = final_all},
    {"the group is dropped meanwhile", dropping, 3, {IMMORTAL_PRODUCER, IMMORTAL_CONSUMER, {run_dropper, NULL, false, false}}, 0, BLOCKS, .invariant = invariant, .final = final_leaks_only},
    {"a private group leaves a full ring", privates, 3, {IMMORTAL_PRODUCER, {run_consumer_of_one, NULL, true, false}, BROKER}, 1, BLOCKS, .invariant = invariant, .final = final_leaks_only},
};

/* One scenario: repeated until the set of contended words is complete. What it printed last counts. */
static int search(int argc, char **argv, int which)
{
    char output[] = "/tmp/shmbus-model-XXXXXX";
    int fd = mkstemp(output), status = 0;
    unlink(output);
    memset(known, 0, sizeof *known);
    do {
        known->grown = 0;
        fflush(NULL);
        if (ftruncate(fd, 0) != 0 || lseek(fd, 0, SEEK_SET) != 0)
            abort();
        pid_t child = fork();
        if (child == 0) {
            dup2(fd, 1);
            memcpy(active, known->contended, sizeof active);
            exit(model_main(argc, argv, &scenarios[which], 1));
        }
        if (waitpid(child, &status, 0) != child)
            abort();
    } while (WIFEXITED(status) && WEXITSTATUS(status) == 0 && known->grown);
    lseek(fd, 0, SEEK_SET);
    char text[4096];
    for (ssize_t n; (n = read(fd, text, sizeof text)) > 0;)
        fwrite(text, 1, (size_t)n, stdout);
    close(fd);
    return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

/* [scenario number or "all"] [options of the explorer] */
int main(int argc, char **argv)
{
    int count = (int)(sizeof scenarios / sizeof scenarios[0]), worst = 0;
    known = mmap(NULL, sizeof *known, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (known == MAP_FAILED || argc < 2)
        return 2;
    if (strcmp(argv[1], "list") == 0) {
        for (int i = 0; i < count; i++)
            printf("%d\t%s\n", i, scenarios[i].name);
        return 0;
    }
    for (int i = 0; i < count; i++) {
        if (strcmp(argv[1], "all") != 0 && atoi(argv[1]) != i)
            continue;
        int status = search(argc - 1, argv + 1, i);
        worst = status > worst ? status : worst;
    }
    return worst;
}
