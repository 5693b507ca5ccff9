/* Every pair of acts, one inside the other at every access to shared memory; and every act cut short by death at every access.
 *
 * One thread plays two participants: the first begins an act, and when it is about to make its n-th access the second acts, whole; then the first goes on. Or the first dies there, the second acts, and
 * somebody reaps. This for each of some states of the ring, each first and second act, and each n: a small part of all interleavings, but each of these is really run, with the code as it is.
 * Afterwards the ring is drained and judged: the invariant, the account (ring_talk.h), and that nothing is taken when all have left.
 */
#include "ring_mortal.h"

enum { CAPACITY = 1024, RECORDS = 40, LARGE = CAPACITY / 2 - RECORD_HEADER_BYTES };

static struct room room;
static struct ring ring;
static struct account account;
static struct member ticket;
static uint32_t group_b;
static bool died, died_copying, dropped_b, closed;

/* A participant of every kind. */
static struct person {
    struct producer producer;
    struct reader a, b, lossy, visitor;
    struct lossy_seen seen[MAX_PARTICIPANTS];
    uint32_t sender, next, pid;
    struct claim loan;
    bool lends;
} people[3]; /* the first, the second, and who clears up */
static struct person *me;

/* ---- acts */

static bool expected(enum ring_result result)
{
    return result == RING_OK || result == RING_WOULD_BLOCK || result == RING_RETRY || (closed && (result == RING_CLOSED || result == RING_END)) || (dropped_b && result == RING_DROPPED);
}

static enum ring_result try_to_send(void)
{
    struct person *self = me;
    uint32_t number = self->next;
    _Atomic(unsigned char) *fate = &account.fates[(size_t)self->sender * account.records + number];
    uint64_t bytes = payload_bytes_of(&account, self->sender, number);
    struct claim claim;
    atomic_store(fate, MAYBE_SENT);
    enum ring_result result = producer_claim(&self->producer, bytes, &claim);
    CHECK(expected(result));
    if (result != RING_OK) {
        atomic_store(fate, NEVER_SENT);
        return result;
    }
    self->next++;
    fill_record(claim.payload, bytes, self->sender, number);
    producer_commit(&self->producer, &claim, bytes, 0);
    atomic_store(fate, SENT);
    return RING_OK;
}

static void take(struct reader *reader, enum how how)
{
    if (reader->consumer.member.ring)
        CHECK(expected(receive_one(reader, how)));
}

static void drain(struct reader *reader)
{
    enum ring_result result;
    if (!reader->consumer.member.ring)
        return;
    do
        result = receive_one(reader, LEASED);
    while (result == RING_OK || result == RING_RETRY);
    CHECK(expected(result));
}

static void send(void) { (void)try_to_send(); }
static void take_a_copy(void) { take(&me->a, COPIED); }
static void take_under_a_lease(void) { take(&me->a, LEASED); }
static void take_and_park(void) { take(&me->b, PARKED); }
static void read_lossily(void) { take(&me->lossy, COPIED); }
static void reap(void) { ring_reap(&ring); }

static void lend_and_take_back(void)
{
    struct person *self = me;
    struct claim claim;
    if (producer_claim(&self->producer, 100, &claim) == RING_OK)
        producer_abort(&self->producer, &claim);
}

/* Takes a record and gives it back, as one does who leaves without being done. */
static void give_back(void)
{
    struct consumer *consumer = &me->a.consumer;
    struct record record;
    if (consumer_peek(consumer, &record) == RING_OK && consumer_take_leased(consumer, &record) == RING_OK)
        consumer_give_back(consumer, record.lease);
}

static void visit(void)
{
    struct reader *visitor = &me->visitor;
    struct person *self = me;
    reader_begin(visitor, &account, 0);
    visitor->skips = true;
    enum ring_result result = consumer_attach(&visitor->consumer, &ring, NULL, 0, false);
    CHECK(result == RING_OK || result == RING_WOULD_BLOCK); /* somebody else is joining */
    if (result != RING_OK)
        return;
    me = self;
    take(visitor, COPIED);
    consumer_detach(&visitor->consumer, false);
}

static void leave_and_come_back(void)
{
    struct reader *reader = &me->b;
    consumer_detach(&reader->consumer, true);
    enum ring_result result = consumer_attach(&reader->consumer, &ring, "b", 1, false);
    CHECK(result == RING_OK || (dropped_b && result == RING_WOULD_BLOCK)); /* somebody else is joining */
    reader->skips = reader->consumer.group_index != group_b; /* another group of the same name */
}

static void come_as_another_producer(void)
{
    producer_detach(&me->producer);
    CHECK_EQUAL(producer_attach(&me->producer, &ring), RING_OK);
}

/* A group joins where one had left, everything is received, more is sent and received. */
static void be_busy(void)
{
    struct person *self = me;
    struct reader *visitor = &self->visitor;
    reader_begin(visitor, &account, 0);
    visitor->skips = true;
    bool joined = consumer_attach(&visitor->consumer, &ring, NULL, 0, false) == RING_OK;
    for (int round = 0; round < 3; round++) {
        drain(&self->a);
        if (!dropped_b)
            drain(&self->b);
        send();
        send();
    }
    if (!joined)
        return;
    if (self == &people[0] || !died)
        take(visitor, LEASED);
    if (self != &people[0])
        return; /* stays until the end */
    consumer_detach(&visitor->consumer, false);
}

static void drop_b(void)
{
    dropped_b = true;
    (void)group_drop(&ring, "b", 1);
}

static void close_it(void)
{
    closed = true;
    ring_close(&ring);
}

static void (*const acts[])(void) = {send, take_a_copy, take_under_a_lease, take_and_park, read_lossily, lend_and_take_back, give_back, visit, leave_and_come_back, come_as_another_producer, be_busy, reap, drop_b, close_it};
static const char *const act_names[] = {"send", "take a copy", "take under a lease", "take and park", "read lossily", "lend and take back", "give back", "visit", "leave and come back", "come as another producer", "be busy", "reap", "drop b", "close"};
enum { ACTS = sizeof acts / sizeof *acts };

/* ---- states */

enum { EMPTY, SOME, FULL, FULL_BEHIND_A_LEASE, BEHIND_A_LOAN, WITH_AN_ORPHAN, STATES };
static const char *const state_names[] = {"empty", "some", "full", "full behind a lease", "behind a loan", "with an orphan"};
static struct record held;

static void arrive(struct person *person)
{
    be_somebody_new();
    person->pid = my_pid;
    person->lends = false;
    CHECK_EQUAL(producer_attach(&person->producer, &ring), RING_OK);
    CHECK_EQUAL(consumer_attach(&person->a.consumer, &ring, "a", 1, false), RING_OK);
    reader_begin(&person->a, &account, 0);
    CHECK_EQUAL(consumer_attach(&person->b.consumer, &ring, "b", 1, false), RING_OK);
    reader_begin(&person->b, &account, 1);
    CHECK_EQUAL(consumer_attach(&person->lossy.consumer, &ring, NULL, 0, true), RING_OK);
    reader_begin(&person->lossy, &account, 0);
    person->lossy.skips = true;
    lossy_begin(&person->lossy.consumer, person->seen);
    memset(&person->visitor.consumer, 0, sizeof person->visitor.consumer);
}

static void leave(struct person *person)
{
    if (person->visitor.consumer.member.ring)
        consumer_detach(&person->visitor.consumer, false);
    consumer_detach(&person->lossy.consumer, false);
    consumer_detach(&person->b.consumer, true);
    consumer_detach(&person->a.consumer, true);
    producer_detach(&person->producer);
}

static void set_up(int state)
{
    forget_the_dead();
    waits_alone = 0;
    room_format(&room);
    room_open(&room, &ring);
    ring_preset(&ring, 2 * CAPACITY - 3 * CELL_BYTES);
    died = died_copying = dropped_b = closed = false;
    be_somebody_new();
    CHECK_EQUAL(member_attach(&ticket, &ring, ROLE_TICKET), RING_OK);
    struct consumer early; /* a private group before the named ones, so that a place in front of them is free */
    CHECK_EQUAL(consumer_attach(&early, &ring, NULL, 0, false), RING_OK);
    for (uint32_t i = 0; i < 3; i++) {
        people[i].sender = i;
        people[i].next = 0;
    }
    arrive(&people[1]);
    arrive(&people[0]);
    group_b = people[0].b.consumer.group_index;
    consumer_detach(&early, false);
    me = &people[1];
    held.lease = NO_LEASE;
    if (state >= FULL_BEHIND_A_LEASE)
        send();
    if (state == FULL_BEHIND_A_LEASE) {
        CHECK_EQUAL(consumer_peek(&people[1].a.consumer, &held), RING_OK);
        CHECK_EQUAL(consumer_take_leased(&people[1].a.consumer, &held), RING_OK);
        copy_shared(people[1].a.copy, held.payload, held.length);
        enter(&people[1].a, &held);
    }
    if (state == BEHIND_A_LOAN) {
        CHECK_EQUAL(producer_claim(&people[1].producer, 10, &people[1].loan), RING_OK);
        people[1].lends = true;
    }
    if (state == WITH_AN_ORPHAN)
        give_back();
    int more = state == EMPTY ? 0 : state == SOME || state == WITH_AN_ORPHAN ? 3 : RECORDS;
    while (more-- > 0 && try_to_send() == RING_OK)
        continue;
}

/* Everything that was begun and lives is ended, and what is left is received. */
static void finish(int state)
{
    (void)state;
    struct person *second = &people[1];
    me = second;
    if (second->lends)
        producer_abort(&second->producer, &second->loan);
    if (held.lease != NO_LEASE) {
        uint32_t sender, number;
        copy_shared(second->a.copy, held.payload, held.length); /* has anybody written over it? */
        check_record(&account, second->a.copy, held.length, &sender, &number);
        consumer_release(&second->a.consumer, held.lease);
    }
    if (died) {
        be_somebody_new();
        CHECK(ring_reap(&ring) <= 6);
    }
    dropped_b = group_state_of(load_sc(&ring.groups[group_b].owner)) == GROUP_DROPPED; /* or died before */
    check_invariant(&ring);
    me = second;
    drain(&second->a);
    if (!dropped_b)
        drain(&second->b);
    drain(&second->visitor);
    drain(&second->lossy);
    check_invariant(&ring);
    if (!closed)
        CHECK_EQUAL(try_to_send(), RING_OK); /* nothing stands in the way of it */
    drain(&second->a);
    if (!dropped_b)
        drain(&second->b);
    if (!died)
        leave(&people[0]);
    leave(second);
    member_detach(&ticket);
    if (dropped_b) /* what it had not received is gone with it */
        for (size_t i = 0, each = (size_t)account.senders * account.records; i < each; i++)
            account.again[each + i] = 1;
    if (died_copying)
        for (size_t i = 0, missing = 0; i < (size_t)account.senders * account.records; i++)
            if (account.fates[i] == SENT && account.fresh[i] + account.again[i] == 0) {
                CHECK_EQUAL(missing++, 0); /* at most what it had just taken */
                account.fates[i] = MAYBE_SENT;
            }
    if (dropped_b)
        for (size_t i = 0, each = (size_t)account.senders * account.records; i < each; i++)
            if (account.fates[i] == NEVER_SENT)
                account.again[each + i] = 0;
    check_account(&account, true);
    check_nothing_is_left(&ring);
    size_t all = (size_t)account.senders * account.records;
    memset((void *)account.fates, 0, all);
    memset((void *)account.fresh, 0, account.groups * all);
    memset((void *)account.again, 0, account.groups * all);
}

/* ---- pairs */

static int second_act;
static bool came_to_it;

static void second_acts(void)
{
    struct person *first = me;
    uint32_t pid = my_pid;
    came_to_it = true;
    me = &people[1];
    my_pid = people[1].pid;
    acts[second_act]();
    me = first;
    my_pid = pid;
}

static bool first_acts(int act)
{
    me = &people[0];
    my_pid = people[0].pid;
    acts[act]();
    return true;
}

/* False if the first act has fewer than n accesses. */
static bool interrupted_at(int state, int first, int second, uint64_t n)
{
    set_up(state);
    second_act = second;
    came_to_it = false;
    interruption = second_acts;
    interrupted_in = n;
    first_acts(first);
    interruption = NULL;
    finish(state);
    return came_to_it;
}

/* False if it lived through its act. */
static bool dead_at(int state, int first, int second, uint64_t n)
{
    jmp_buf out;
    set_up(state);
    second_act = second;
    steps_left = n;
    if (setjmp(out) == 0) {
        way_out = &out;
        first_acts(first);
        way_out = NULL;
    } else {
        way_out = NULL;
        died = true;
        died_copying = first == 1;
        declare_dead(people[0].pid);
        second_acts();
    }
    finish(state);
    return died;
}

static int now[3] = {-1, 0, 0};
static uint64_t now_at;

static void say_where(void)
{
    if (now[0] >= 0)
        fprintf(stderr, "ring %s; first: %s; second: %s; at access %" PRIu64 " %s\n", state_names[now[0]], act_names[now[1]], act_names[now[2]], now_at, died ? "(dead)" : "(interrupted)");
}

int main(void)
{
    alone = true;
    atexit(say_where);
    room_make(&room, (struct ring_settings){.capacity_bytes = CAPACITY, .participants = 24, .leases = 8, .groups = 8, .flags = FLAG_END_PRODUCERS, .parking_limit_bytes = 4096});
    account_open(&account, 3, 2, RECORDS, LARGE);
    uint64_t interrupted = 0, killed = 0, longest = 0;
    for (int state = 0; state < STATES; state++)
        for (int first = 0; first < ACTS; first++)
            for (int second = 0; second < ACTS; second++) {
                now[0] = state, now[1] = first, now[2] = second;
                for (now_at = 1; interrupted_at(state, first, second, now_at); now_at++)
                    interrupted++;
                longest = now_at > longest ? now_at : longest;
                for (now_at = 1; dead_at(state, first, second, now_at); now_at++)
                    killed++;
            }
    printf("%" PRIu64 " interruptions, %" PRIu64 " deaths; the longest act has %" PRIu64 " accesses\n", interrupted, killed, longest - 1);
    now[0] = -1;
    account_close(&account);
    room_unmake(&room);
    return 0;
}
