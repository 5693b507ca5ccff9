/* The operating system of the model, and which accesses to shared memory are points.
 *
 * A word needs a point where a process accesses it only if the access does not commute with what others may
 * still do: if it writes, and another process that is still active ever touches the
 * word; or if it reads, and another one that is still active ever writes it. Who ever touches and writes
 * which word is found out, not declared: a search starts with what is known so far;
 * accesses add to it, and if that makes a difference the search is repeated with it (ring_scenarios.c). In
 * the last repetition nothing was added: then every access without a point is independent
 * of whatever the others could do, so leaving out its point leaves out no outcome. A process that may be
 * killed there might as well be killed at its next point: the broker, who looks at what the
 * dead leave behind, is one of the others.
 *
 * Statistics are no part of the state: they order nothing and nobody decides on them. They are put to zero
 * at every point.
 */
#include "ring_model.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

_Alignas(4096) unsigned char control_memory[CONTROL_BYTES];
_Alignas(64) unsigned char data_memory[2 * MOST_CELLS * CELL_BYTES];

/* ---- what os.h promises */

static const struct scenario *playing;

static int self(void) { return acting >= 0 ? acting : model_self(); }
int os_futex_wait(shared_u32 *word, uint32_t expected, int64_t timeout_ns)
{
    return timeout_ns < 0 ? model_futex_wait((uint32_t *)word, expected)
                          : model_futex_wait_timed((uint32_t *)word, expected);
}
int os_futex_wake(shared_u32 *word, int count) { return model_futex_wake((uint32_t *)word, count); }
void os_event_fd_write(int fd) { (void)fd; }
uint64_t os_now_ns(void) { return 0; }
uint32_t os_pid(void) { return (uint32_t)self() + 1; }
uint64_t os_start_time(void) { return 7; }
bool os_is_dead(const struct ring *ring, uint32_t pid, uint64_t start, bool start_known)
{
    (void)ring, (void)start, (void)start_known;
    int process = (int)pid - 1;
    return process >= 0 && process < playing->nprocs && process != self() &&
           playing->procs[process].may_die && model_is_dead(process);
}
bool os_reserve(const struct ring *ring, uint64_t offset, uint64_t bytes)
{
    (void)ring, (void)offset, (void)bytes;
    return true;
}
void os_unreserve(const struct ring *ring, uint64_t offset, uint64_t bytes)
{
    (void)ring, (void)offset, (void)bytes;
}
uint64_t os_pid_namespace(void) { return 1; }
uint64_t os_time_namespace(void) { return 1; }
uint32_t os_usable_cores(void) { return 1; }
uint32_t os_fork_count(void) { return 0; }

/* ---- who touches what */

enum { WORDS = (sizeof control_memory + sizeof data_memory) / 8 };
struct masks {
    unsigned char touched[WORDS], written[WORDS];
}; /* a bit a process */
struct knowledge {
    struct masks found;
    int grown;
};
static struct knowledge *known; /* shared with the repetitions, which are child processes */
static struct masks believed;   /* what was known when this repetition began */

struct knowledge *knowledge_new(void)
{
    void *memory = mmap(NULL, sizeof *known, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (memory == MAP_FAILED)
        abort();
    return memory;
}

void knowledge_begin(struct knowledge *knowledge, const struct scenario *scenario)
{
    known = knowledge;
    playing = scenario;
    known->grown = 0;
    believed = known->found;
}

bool knowledge_grew(const struct knowledge *knowledge) { return knowledge->grown != 0; }

static bool is_statistics(size_t offset)
{
    if (offset >= offsetof(struct header, reaped) && offset < offsetof(struct header, poison_reason))
        return true;
    if (offset >= g.participants_at && offset < g.leases_at)
        return (offset - g.participants_at) % sizeof(struct participant) >=
               offsetof(struct participant, messages);
    if (offset >= g.groups_at && offset < g.claims_at) {
        size_t field = (offset - g.groups_at) % sizeof(struct group);
        return field >= offsetof(struct group, redelivered) && field < offsetof(struct group, spare);
    }
    return false;
}

static void zero_statistics(void)
{
    struct ring *ring = &rings[0];
    memset((unsigned char *)ring->header + offsetof(struct header, reaped), 0,
           offsetof(struct header, poison_reason) - offsetof(struct header, reaped));
    for (uint32_t i = 0; i < g.participants; i++)
        memset((unsigned char *)&ring->participants[i] + offsetof(struct participant, messages), 0,
               sizeof(struct participant) - offsetof(struct participant, messages));
    for (uint32_t i = 0; i < g.groups; i++)
        memset((unsigned char *)&ring->groups[i] + offsetof(struct group, redelivered), 0,
               offsetof(struct group, spare) - offsetof(struct group, redelivered));
    for (int i = 0; now.has_slices && i < PROCS;
         i++) { /* 3, 16, 3, 16 …: patient, and looking who blocks each time */
        uint32_t *streak = &producers[i].full_streak;
        *streak = *streak == 4 ? 16 : *streak == 17 ? 3 : *streak;
    }
}

/* Whether the access needs a point; notes it. */
static bool depends(const void *at, bool writes)
{
    const unsigned char *byte = at;
    size_t word;
    int me = model_self();
    if (me < 0)
        return false;
    if (byte >= control_memory && byte < control_memory + sizeof control_memory) {
        size_t offset = (size_t)(byte - control_memory);
        if (is_statistics(offset))
            return false;
        word = offset / 8;
    } else if (byte >= data_memory && byte < data_memory + sizeof data_memory) {
        word = sizeof control_memory / 8 + ((size_t)(byte - data_memory) & (g.capacity_bytes - 1)) / 8;
    } else {
        return false; /* private */
    }
    unsigned char bit = (unsigned char)(1 << me);
    struct masks *found = &known->found;
    bool news = (!(found->touched[word] & bit) && (found->written[word] & ~bit)) ||
                (writes && !(found->written[word] & bit) && (found->touched[word] & ~bit));
    found->touched[word] |= bit;
    if (writes)
        found->written[word] |= bit;
    known->grown += news;
    unsigned others = model_active() & ~(unsigned)bit;
    return others & (writes ? believed.touched[word] : believed.written[word]);
}

static void point(const void *caller)
{
    zero_statistics();
    model_step_from(caller);
}

void model_access(const void *word, bool writes)
{
    if (depends(word, writes))
        point(__builtin_return_address(0));
}

/* A copy is two steps, so that it can be seen half done. The mirror: data beyond the capacity is the
 * beginning. */
static void copy_half(const void *caller, unsigned char *to, const unsigned char *from, size_t bytes)
{
    bool needed = false;
    for (size_t i = 0; i < bytes; i += 8) {
        needed |= depends(to + i, true);
        needed |= depends(from + i, false);
    }
    if (needed)
        point(caller);
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

void model_copy(void *to, const void *from, size_t bytes)
{
    size_t half = bytes / 16 * 8;
    copy_half(__builtin_return_address(0), to, from, half);
    copy_half(__builtin_return_address(0), (unsigned char *)to + half, (const unsigned char *)from + half,
              bytes - half);
}

/* The explorer is called only if it must be: a call with `...` leaves whatever was in the argument registers
 * on the stack, where a later frame's padding would make it part of the state. */
void must(bool holds, const char *what)
{
    if (!holds)
        model_assert(false, "%s", what);
}
