/* toys.c: small scenarios with known answers, which the explorer must give (test_explorer.py states them). */
#include "explore.h"

#include <stdlib.h>

static struct {
    uint32_t flag[2], turn; /* Peterson's lock */
    uint32_t inside;        /* how many are in the critical section */
    uint32_t lock;          /* 0, or 1 + the owner's number */
    uint32_t word;          /* an event count: count << 1 | sleeping */
    uint32_t items, counter;
    uint32_t seen[4];
} shared;

static uint32_t unregistered;

static uint32_t load(uint32_t *at)
{
    model_step();
    return *at;
}

static void store(uint32_t *at, uint32_t value)
{
    model_step();
    *at = value;
}

static uint32_t set_bits(uint32_t *at, uint32_t bits)
{
    model_step();
    return *at |= bits;
}

static void add(uint32_t *at, uint32_t value)
{
    model_step();
    *at += value;
}

static bool swap_if(uint32_t *at, uint32_t expected, uint32_t value)
{
    model_step();
    if (*at != expected)
        return false;
    *at = value;
    return true;
}

static char yes; /* an argument that is not NULL: with the mistake */

/* ---- Peterson's lock; the mistake: the turn is given away before the flag is raised ------------------------ */

static void peterson(void *mistake)
{
    uint32_t me = (uint32_t)model_self(), other = 1 - me;
    for (int round = 0; round < 2; round++) {
        model_label("enter");
        if (mistake == NULL)
            store(&shared.flag[me], 1);
        store(&shared.turn, other);
        if (mistake != NULL)
            store(&shared.flag[me], 1);
        while (load(&shared.flag[other]) == 1 && load(&shared.turn) == other)
            ;
        model_label("inside");
        add(&shared.inside, 1);
        model_assert(load(&shared.inside) == 1, "P%u is not alone in the critical section", me);
        add(&shared.inside, UINT32_MAX);
        store(&shared.flag[me], 0);
    }
}

static void at_most_one_inside(void)
{
    model_assert(shared.inside <= 1, "two in the critical section");
}

/* ---- increments; the mistake: not in one access --------------------------------------------------------------- */

static void increment(void *mistake)
{
    if (mistake == NULL)
        add(&shared.counter, 1);
    else
        store(&shared.counter, load(&shared.counter) + 1);
}

static void increment_twice(void *arg)
{
    increment(arg);
    increment(arg);
}

static void both_counted(void)
{
    model_assert(shared.counter == 2, "an increment was lost: the counter is %u", shared.counter);
}

/* ---- an event count; the mistake: the sleeping bit is cleared and the count stays ------------------------------- */

static void sleeper(void *timed)
{
    for (;;) {
        uint32_t items = load(&shared.items);
        if (items != 0) {
            if (swap_if(&shared.items, items, items - 1))
                return;
            continue;
        }
        uint32_t word = set_bits(&shared.word, 1);
        if (load(&shared.items) != 0)
            continue;
        if (timed != NULL)
            model_futex_wait_timed(&shared.word, word);
        else
            model_futex_wait(&shared.word, word);
    }
}

static void waker(void *mistake)
{
    for (int item = 0; item < 2; item++) {
        add(&shared.items, 1);
        for (;;) {
            uint32_t word = load(&shared.word);
            if ((word & 1) == 0)
                break;
            if (swap_if(&shared.word, word, mistake != NULL ? word & ~1u : (word + 2) & ~1u)) {
                model_futex_wake(&shared.word, 1000);
                break;
            }
        }
    }
}

/* A waker that wakes one; the sleeper that it wakes takes one item and tells nobody of the other. */
static void waker_of_one(void *arg)
{
    (void)arg;
    add(&shared.items, 2);
    uint32_t word = load(&shared.word);
    if ((word & 1) != 0 && swap_if(&shared.word, word, (word + 2) & ~1u))
        model_futex_wake(&shared.word, 1);
}

/* ---- which sleeper is woken, and who dies asleep ------------------------------------------------------------------ */

static bool two_sleep(void *arg)
{
    (void)arg;
    return shared.items == 2;
}

static void sleep_once(void *arg)
{
    (void)arg;
    add(&shared.items, 1);
    if (model_futex_wait(&shared.word, 0) == 0)
        store(&shared.seen[model_self()], 1);
}

static void wake_one_of_two(void *arg)
{
    (void)arg;
    model_wait(two_sleep, NULL);
    int woken = model_futex_wake(&shared.word, 1);
    add(&shared.counter, (uint32_t)woken);
    store(&shared.word, 1);
    model_futex_wake(&shared.word, 1000);
}

static void only_the_first(void)
{
    model_assert(shared.counter != 1 || shared.seen[1] == 0 || shared.seen[0] == 1, "the second was woken first");
}

/* ---- choices ---------------------------------------------------------------------------------------------------- */

static void choose_digits(void *arg)
{
    (void)arg;
    uint32_t number = (uint32_t)model_choose(10) * 10;
    number += (uint32_t)model_choose(10);
    store(&shared.counter, number);
}

static void not_73(void)
{
    model_assert(shared.counter != 73, "73 was chosen");
}

/* ---- death with a lock, alone and with a reaper ------------------------------------------------------------------ */

static void lock_user(void *arg)
{
    (void)arg;
    uint32_t me = (uint32_t)model_self() + 1;
    for (;;) {
        uint32_t holder = load(&shared.lock);
        if (holder == 0 && swap_if(&shared.lock, 0, me))
            break;
        if (holder != 0)
            model_futex_wait(&shared.lock, holder);
    }
    store(&shared.seen[me], 1);
    store(&shared.lock, 0);
    model_futex_wake(&shared.lock, 1000);
}

static bool somebody_died(void *arg)
{
    (void)arg;
    return model_is_dead(0) || model_is_dead(1);
}

static void reaper(void *arg)
{
    model_wait(somebody_died, arg);
    uint32_t holder = load(&shared.lock);
    if (holder != 0 && model_is_dead((int)holder - 1) && swap_if(&shared.lock, holder, 0))
        model_futex_wake(&shared.lock, 1000);
    else if (holder == 0)
        model_futex_wake(&shared.lock, 1000); /* it may have died between letting go and waking */
}

static void lock_is_free(void)
{
    model_assert(shared.lock == 0, "the lock is held by %u at the end", shared.lock);
}

/* A stale read and then the proof of a death: a death between the two is possible, and must be found. */
static void judge(void *arg)
{
    (void)arg;
    uint32_t before = load(&shared.counter);
    if (model_is_dead(0))
        model_assert(load(&shared.counter) == before, "it moved between the look and the proof of its death");
}

/* ---- a livelock: each waits for the other to step back; some schedules end, the trap does not -------------------- */

static void polite(void *arg)
{
    (void)arg;
    uint32_t me = (uint32_t)model_self(), other = 1 - me;
    store(&shared.flag[me], 1);
    while (load(&shared.flag[other]) == 1)
        ;
    store(&shared.flag[me], 0);
}

/* ---- mistakes of the code under check that the explorer reports, and of a scenario ------------------------------- */

static void crash(void *arg)
{
    (void)arg;
    if (load(&shared.counter) == 1)
        *(volatile uint32_t *)(uintptr_t)8 = 1;
}

static void give_up(void *arg)
{
    (void)arg;
    if (load(&shared.counter) == 1)
        abort();
}

static void spin_without_points(void *arg)
{
    (void)arg;
    load(&shared.counter);
    for (volatile int forever = 1; forever != 0;)
        ;
}

static int deep(int n)
{
    volatile char much[256] = {(char)n};
    model_step();
    return n == 0 ? 0 : deep(n - 1) + much[0];
}

static void recurse(void *arg)
{
    (void)arg;
    deep(100000);
}

static void forget_to_register(void *arg)
{
    (void)arg;
    for (int i = 0; i < 3; i++)
        store(&shared.counter, unregistered++);
}

static void work(void *arg) /* for measuring: private arithmetic between accesses, a cell for each process */
{
    (void)arg;
    int me = model_self();
    for (uint32_t i = 1; i <= 12; i++) {
        store(&shared.seen[me], i);
        if (load(&shared.seen[(me + 1) % 4]) > 100)
            abort();
    }
}

static char bulk[1400]; /* makes the state of "measure" as large as a ring's */

#define SHARED .blocks = {&shared}, .block_bytes = {sizeof shared}, .block_names = {"shared"}

static const struct scenario toys[] = {
    {"peterson", .nprocs = 2, .procs = {{peterson}, {peterson}}, SHARED, .invariant = at_most_one_inside},
    {"peterson-late-flag", .nprocs = 2, .procs = {{peterson, &yes}, {peterson, &yes}}, SHARED},
    {"peterson-invariant", .nprocs = 2, .procs = {{peterson, &yes}, {peterson}}, SHARED, .invariant = at_most_one_inside},
    {"counter", .nprocs = 2, .procs = {{increment}, {increment}}, SHARED, .final = both_counted},
    {"counter-torn", .nprocs = 2, .procs = {{increment, &yes}, {increment, &yes}}, SHARED, .final = both_counted},
    {"event-count", .nprocs = 3, .procs = {{sleeper}, {sleeper}, {waker}}, SHARED},
    {"event-count-cleared-bit", .nprocs = 3, .procs = {{sleeper}, {sleeper}, {waker, &yes}}, SHARED},
    {"event-count-wake-one", .nprocs = 3, .procs = {{sleeper}, {sleeper}, {waker_of_one}}, SHARED},
    {"event-count-timed", .nprocs = 3, .procs = {{sleeper, &yes}, {sleeper, &yes}, {waker_of_one}}, SHARED},
    {"wake-either", .nprocs = 3, .procs = {{sleep_once}, {sleep_once}, {wake_one_of_two}}, SHARED, .invariant = only_the_first},
    {"choices", .nprocs = 1, .procs = {{choose_digits}}, SHARED, .final = not_73},
    {"lock", .nprocs = 2, .procs = {{lock_user}, {lock_user}}, SHARED, .final = lock_is_free},
    {"lock-death", .nprocs = 2, .procs = {{lock_user, .may_die = true}, {lock_user}}, .max_deaths = 1, SHARED},
    {"lock-death-reaped", .nprocs = 3,
     .procs = {{lock_user, .may_die = true}, {lock_user, .may_die = true}, {reaper, .daemon = true}},
     .max_deaths = 1, SHARED, .final = lock_is_free},
    {"stale-judge", .nprocs = 2, .procs = {{increment_twice, .may_die = true}, {judge}}, .max_deaths = 1, SHARED},
    {"livelock", .nprocs = 2, .procs = {{polite}, {polite}}, SHARED},
    {"crash", .nprocs = 2, .procs = {{increment}, {crash}}, SHARED},
    {"abort", .nprocs = 2, .procs = {{increment}, {give_up}}, SHARED},
    {"spin", .nprocs = 1, .procs = {{spin_without_points}}, SHARED},
    {"overflow", .nprocs = 1, .procs = {{recurse}}, SHARED},
    {"unregistered", .nprocs = 2, .procs = {{forget_to_register}, {increment}}, SHARED},
    {"measure", .nprocs = 4, .procs = {{work}, {work}, {work}, {work}}, .blocks = {&shared, bulk},
     .block_bytes = {sizeof shared, sizeof bulk}},
};

int main(int argc, char **argv)
{
    return model_main(argc, argv, toys, sizeof toys / sizeof *toys);
}
