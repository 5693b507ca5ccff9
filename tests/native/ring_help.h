/* What the tests of the ring share: memory for one, an operating system in which a test says who is dead, and an account of what was sent and received.
 *
 * Memory. The data region is a memfd mapped twice, back to back, as in real life, with a page on each side that nobody may touch. The thread sanitizer is the exception: it tells memory by
 * address and would take the two views for different bytes. There the data is one plain piece of twice the capacity, mapped once. Every access to a record starts from the address of its first byte,
 * for its producer and its consumers alike, so a record that crosses the end then simply runs on into the second half, which is nobody else's. What that loses is the overlap of such a record with
 * the ring's start; the other flavours have it. (So it is done too for rings smaller than a page.) The control region is from the heap, so that the address sanitizer watches both of its ends.
 *
 * Operating system. Participants are threads of this process. Each has a number for a pid (`my_pid`), and is dead when the table says so. Futexes and the clock are real. os_slice_ns is -1: waits end by
 * wakes alone, so that a wake which is missed hangs the test instead of costing half a second. Nobody then looks for the dead in passing; the tests reap.
 */
#ifndef SHMBUS_TEST_RING_HELP_H
#define SHMBUS_TEST_RING_HELP_H

#include <errno.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "event.h"
#include "os.h"
#include "ring.h"

/* ---- chance */

static inline uint64_t mixed(uint64_t value) /* splitmix64's finish */
{
    value = (value ^ value >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    value = (value ^ value >> 27) * UINT64_C(0x94d049bb133111eb);
    return value ^ value >> 31;
}
static inline uint64_t chance(uint64_t *state) { return mixed(*state += UINT64_C(0x9e3779b97f4a7c15)); }
static inline uint64_t below(uint64_t *state, uint64_t limit) { return chance(state) % limit; }
static inline uint64_t seed_of_this_run(void)
{
    const char *given = getenv("SHMBUS_TEST_SEED");
    uint64_t seed = given ? strtoull(given, NULL, 0) : os_now_ns() % 1000000007;
    printf("seed %" PRIu64 " (SHMBUS_TEST_SEED repeats it)\n", seed);
    fflush(stdout);
    return seed;
}

/* ---- the operating system */

enum { MOST_PIDS = 1 << 16 };

static _Thread_local uint32_t my_pid = 1;
static _Atomic(unsigned char) dead_pids[MOST_PIDS];
static _Atomic(uint32_t) pids_given = 1;

static inline void be_somebody_new(void)
{
    my_pid = atomic_fetch_add(&pids_given, 1) + 1;
    CHECK(my_pid < MOST_PIDS);
}
/* What the dead one wrote is visible to whoever sees it dead: a kernel does no less. */
static inline void declare_dead(uint32_t pid) { atomic_store(&dead_pids[pid], 1); }

/* For tests with one thread, which nobody would wake. */
static bool alone;
static uint64_t waits_alone; /* since the test last set it to 0: in one call there are few */
/* For memory that may say anything: half of all numbers are of the dead. */
static bool any_are_dead;

int os_futex_wait(shared_u32 *word, uint32_t expected, int64_t timeout_ns)
{
    if (alone) {
        CHECK(++waits_alone < 10000);
        return ETIMEDOUT;
    }
    struct timespec time = {timeout_ns / 1000000000, timeout_ns % 1000000000};
    if (syscall(SYS_futex, word, FUTEX_WAIT, expected, timeout_ns < 0 ? NULL : &time, NULL, 0) == 0 || errno == EAGAIN)
        return 0;
    return errno;
}
int os_futex_wake(shared_u32 *word, int count)
{
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken < 0 ? 0 : (int)woken;
}
void os_event_fd_write(int fd) { (void)fd; }
uint64_t os_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}
uint32_t os_pid(void) { return my_pid; }
uint64_t os_start_time(void) { return 7; }
bool os_is_dead(const struct ring *ring, uint32_t pid, uint64_t start, bool start_known)
{
    (void)ring, (void)start, (void)start_known;
    if (any_are_dead && pid != my_pid)
        return mixed(pid) & 1;
    return pid < MOST_PIDS && atomic_load(&dead_pids[pid]);
}
bool os_reserve(const struct ring *ring, uint64_t offset, uint64_t bytes) { (void)ring, (void)offset, (void)bytes; return true; }
void os_unreserve(const struct ring *ring, uint64_t offset, uint64_t bytes) { (void)ring, (void)offset, (void)bytes; }
uint64_t os_pid_namespace(void) { return 1; }
uint64_t os_time_namespace(void) { return 1; }
uint32_t os_usable_cores(void) { return 64; } /* spinning is part of what is tested */
uint32_t os_fork_count(void) { return 0; }

/* ---- memory */

struct room {
    struct geometry g;
    struct ring_settings settings;
    void *control;
    unsigned char *data;
    unsigned char *mapped;
    size_t mapped_bytes;
};

enum { TEST_PAGE = 4096 };

static inline bool data_is_mapped_once(uint64_t capacity_bytes)
{
#if defined(__SANITIZE_THREAD__)
    return capacity_bytes > 0;
#else
    return capacity_bytes % TEST_PAGE != 0;
#endif
}

static inline void room_make(struct room *room, struct ring_settings settings)
{
    if (settings.participants == 0)
        settings.participants = 64;
    if (settings.leases == 0)
        settings.leases = 32;
    if (settings.groups == 0)
        settings.groups = 8;
    if (settings.max_deliveries == 0)
        settings.max_deliveries = 255;
    room->settings = settings;
    os_slice_ns = -1;
    CHECK(geometry_make(&room->g, settings.capacity_bytes, settings.participants, settings.leases, settings.groups, settings.parking_limit_bytes));
    size_t capacity = settings.capacity_bytes;
    room->control = aligned_alloc(TEST_PAGE, room->g.total_bytes);
    CHECK(room->control);
    room->mapped_bytes = 2 * capacity + 2 * TEST_PAGE;
    room->mapped = mmap(NULL, room->mapped_bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    CHECK(room->mapped != MAP_FAILED);
    room->data = room->mapped + TEST_PAGE;
    if (data_is_mapped_once(capacity)) {
        CHECK(mprotect(room->data, 2 * capacity, PROT_READ | PROT_WRITE) == 0);
        return;
    }
    int fd = memfd_create("ring test", MFD_CLOEXEC);
    CHECK(fd >= 0 && ftruncate(fd, (off_t)capacity) == 0);
    for (int view = 0; view < 2; view++)
        CHECK(mmap(room->data + (size_t)view * capacity, capacity, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, fd, 0) != MAP_FAILED);
    close(fd);
}

static inline void room_format(struct room *room)
{
    memset(room->control, 0, room->g.total_bytes);
    ring_format(room->control, &room->g, &room->settings);
}

static inline void room_open(struct room *room, struct ring *ring)
{
    const char *wrong = ring_open(ring, room->control, room->g.total_bytes, room->data, room->g.capacity_bytes);
    if (wrong)
        fprintf(stderr, "%s\n", wrong);
    CHECK(!wrong);
}

static inline void room_unmake(struct room *room)
{
    free(room->control);
    CHECK(munmap(room->mapped, room->mapped_bytes) == 0);
}

/* Sets the ring, in which nothing was sent yet, to where it would be if everything up to `position` had been sent and received. */
static inline void ring_preset(struct ring *ring, uint64_t position)
{
    store_sc(&ring->header->tail, position);
    store_sc(&ring->header->floor, position);
    for (uint32_t i = 0; i < ring->g.groups; i++)
        store_sc(&ring->groups[i].cursor, position);
    uint64_t last_lap = position < ring->g.capacity_bytes ? 0 : position - ring->g.capacity_bytes;
    for (uint64_t at = last_lap; at < position; at += CELL_BYTES) /* as records of one cell each would have left them */
        store_sc(claim_at(ring, at), claim_pack(&ring->g, at, 0, 1, CLAIM_COMMITTED));
}

/* The invariant, for a ring that nobody is using at the moment:  floor <= cursors, leases, unsettled claims <= tail <= floor + capacity. */
static inline void check_invariant(struct ring *ring)
{
    uint64_t tail = load_sc(&ring->header->tail), floor = load_sc(&ring->header->floor);
    CHECK(position_valid(tail) && position_valid(floor));
    CHECK(floor <= tail && tail <= floor + ring->g.capacity_bytes);
    for (uint32_t i = 0; i < ring->g.groups; i++) {
        if (!group_holds_back(group_state_of(load_sc(&ring->groups[i].owner))))
            continue;
        uint64_t cursor = load_sc(&ring->groups[i].cursor);
        CHECK(position_valid(cursor) && floor <= cursor && cursor <= tail);
    }
    for (uint32_t i = 0; i < ring->g.leases; i++) {
        uint64_t start = load_sc(&ring->leases[i].start);
        if (owner_state_of(load_sc(&ring->leases[i].owner)) >= OWNER_OWNED && (start & 3) == LEASE_HOLDING)
            CHECK((start & ~UINT64_C(3)) >= floor && load_sc(&ring->leases[i].end) <= tail);
    }
    for (uint64_t at = floor; at < tail;) {
        uint64_t word = load_sc(claim_at(ring, at));
        CHECK(claim_is_of(&ring->g, word, at));
        at += claim_cells(&ring->g, word) * CELL_BYTES;
        CHECK(at <= tail);
    }
}

/* When all have left or were reaped: nothing is taken. */
static inline void check_nothing_is_left(struct ring *ring)
{
    check_invariant(ring);
    for (uint32_t i = 0; i < ring->g.participants; i++)
        CHECK_EQUAL(slot_state(load_sc(&ring->participants[i].word)), SLOT_FREE);
    for (uint32_t i = 0; i < ring->g.leases; i++)
        CHECK_EQUAL(owner_state_of(load_sc(&ring->leases[i].owner)), OWNER_FREE);
    for (uint32_t i = 0; i < ring->g.groups; i++) {
        enum group_state state = group_state_of(load_sc(&ring->groups[i].owner));
        CHECK(state == GROUP_FREE || state == GROUP_HELD || state == GROUP_NAMED || state == GROUP_DROPPED);
    }
    CHECK_EQUAL(load_sc(&ring->header->joiner), 0);
    for (uint64_t at = load_sc(&ring->header->floor); at < load_sc(&ring->header->tail);) {
        uint64_t word = load_sc(claim_at(ring, at));
        CHECK(claim_state_of(word) == CLAIM_COMMITTED || claim_state_of(word) == CLAIM_ABORTED);
        at += claim_cells(&ring->g, word) * CELL_BYTES;
    }
}

#endif
