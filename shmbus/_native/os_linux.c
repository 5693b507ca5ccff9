/* The operating system, for real: futexes, clocks, and proof of death.
 *
 * Proof of death is never a timeout. A process is dead for us if
 *   - its pidfd is readable (it has ended; a zombie whose parent has not waited yet is dead too), or
 *   - pidfd_open() says ESRCH: there is no such process; or ENOENT (EINVAL before Linux 6.9): the number belongs
 *     to a thread of another process, and while any thread of ours lived it could not, or
 *   - there is one, but with another start time (read after pidfd_open, so it is not a reading of an earlier
 *     process): the number was given to somebody else, or
 *   - it is the same process by number and start time, but its memory map lacks the control region: it called
 *     exec() and became another program.
 * Everything else proves nothing: EPERM, EMFILE, a state 'Z' in /proc (which is also shown by a process whose
 * leader thread has ended while others run), kill() (which succeeds on a zombie), or a connection that
 * closed.
 */
#define _GNU_SOURCE
#include "os.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/falloc.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "ring.h"

#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

uint64_t os_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * UINT64_C(1000000000) + (uint64_t)now.tv_nsec;
}

/* FUTEX_WAIT_BITSET takes an absolute deadline, so a restart after a signal does not begin anew. */
int os_futex_wait(shared_u32 *word, uint32_t expected, int64_t timeout_ns)
{
    struct timespec deadline;
    struct timespec *until = NULL;
    if (timeout_ns >= 0) {
        uint64_t at = os_now_ns() + (uint64_t)timeout_ns;
        deadline.tv_sec = (time_t)(at / UINT64_C(1000000000));
        deadline.tv_nsec = (long)(at % UINT64_C(1000000000));
        until = &deadline;
    }
    if (syscall(SYS_futex, word, FUTEX_WAIT_BITSET, expected, until, NULL, FUTEX_BITSET_MATCH_ANY) == 0 ||
        errno == EAGAIN)
        return 0;
    return errno;
}

int os_futex_wake(shared_u32 *word, int count)
{
    long woken = syscall(SYS_futex, word, FUTEX_WAKE, count, NULL, NULL, 0);
    return woken < 0 ? 0 : (int)woken;
}

void os_event_fd_write(int fd)
{
    uint64_t one = 1;
    if (fd >= 0 && write(fd, &one, sizeof one) < 0)
        return; /* EAGAIN: the counter is at its end, and so readable for ever */
}

/* ---- who we are; asked once a process, and again in a forked child */

static atomic_uint forks;
static uint32_t own_pid;
static uint64_t own_start;
static uint64_t pid_namespace, time_namespace;
static pthread_once_t fork_watch = PTHREAD_ONCE_INIT;

static void after_fork(void)
{
    atomic_fetch_add_explicit(&forks, 1, memory_order_relaxed);
    own_pid = 0;
}

static void watch_forks(void) { pthread_atfork(NULL, NULL, after_fork); }

uint32_t os_fork_count(void)
{
    pthread_once(&fork_watch, watch_forks);
    return atomic_load_explicit(&forks, memory_order_relaxed);
}

/* Field 22 of /proc/PID/stat, in clock ticks since boot; 0 if it cannot be read. The name in field 2 may
 * hold anything, so fields are counted from the last ')'. */
static uint64_t start_time_of(uint32_t pid)
{
    char path[32], text[1024];
    snprintf(path, sizeof path, "/proc/%u/stat", pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return 0;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return 0;
    text[length] = '\0';
    char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++)
        at = strchr(at + 1, ' ');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

static uint64_t namespace_of(const char *path)
{
    struct stat status;
    return stat(path, &status) == 0 ? (uint64_t)status.st_ino : 0;
}

static void learn_who_we_are(void)
{
    os_fork_count();
    if (own_pid != 0)
        return;
    own_start = start_time_of((uint32_t)getpid());
    pid_namespace = namespace_of("/proc/self/ns/pid");
    time_namespace = namespace_of("/proc/self/ns/time");
    own_pid = (uint32_t)getpid();
}

uint32_t os_pid(void)
{
    learn_who_we_are();
    return own_pid;
}
uint64_t os_start_time(void)
{
    learn_who_we_are();
    return own_start;
}
uint64_t os_pid_namespace(void)
{
    learn_who_we_are();
    return pid_namespace;
}
uint64_t os_time_namespace(void)
{
    learn_who_we_are();
    return time_namespace;
}

uint32_t os_usable_cores(void)
{
    static atomic_uint cores; /* asked once: affinity rarely changes, and a wrong number costs time only */
    uint32_t known = atomic_load_explicit(&cores, memory_order_relaxed);
    if (known == 0) {
        cpu_set_t set;
        known = sched_getaffinity(0, sizeof set, &set) == 0 ? (uint32_t)CPU_COUNT(&set) : 1;
        atomic_store_explicit(&cores, known, memory_order_relaxed);
    }
    return known;
}

/* ---- proof of death */

/* Whether /proc/PID/maps shows a mapping of this inode. True when in doubt. */
static bool maps_inode(uint32_t pid, uint64_t inode)
{
    char path[32];
    snprintf(path, sizeof path, "/proc/%u/maps", pid);
    FILE *maps = fopen(path, "re");
    if (!maps)
        return true;
    char *line = NULL;
    size_t room = 0;
    bool found = false, any = false;
    while (!found && getline(&line, &room, maps) > 0) {
        unsigned long long here = 0;
        any = true;
        if (sscanf(line, "%*x-%*x %*s %*x %*x:%*x %llu", &here) == 1 && here == inode)
            found = true;
    }
    free(line);
    fclose(maps);
    return found || !any;
}

bool os_is_dead(const struct ring *ring, uint32_t pid, uint64_t start, bool start_known)
{
    if (pid == os_pid() && ((start_known && start == own_start) || !start_known))
        return false;
    int fd = (int)syscall(SYS_pidfd_open, pid, 0);
    if (fd < 0) /* ENOENT, before Linux 6.9 EINVAL: the number is a thread's now, so no process has it */
        return errno == ESRCH || (pid > 0 && (errno == ENOENT || errno == EINVAL));
    struct pollfd ended = {.fd = fd, .events = POLLIN};
    bool dead = poll(&ended, 1, 0) == 1 && (ended.revents & POLLIN);
    if (!dead) {
        uint64_t now = start_time_of(pid);
        uint64_t mask = (UINT64_C(1) << START_BITS) - 1;
        if (now != 0 && start != 0)
            dead = start_known ? now != start : (now & mask) != (start & mask);
    }
    close(fd);
    if (!dead && start_known && ring->control_inode != 0)
        dead = !maps_inode(pid, ring->control_inode);
    return dead;
}

/* ---- parking */

bool os_reserve(const struct ring *ring, uint64_t offset, uint64_t bytes)
{
    if (bytes == 0)
        return true;
    if (ring->control_fd >= 0)
        return fallocate(ring->control_fd, FALLOC_FL_KEEP_SIZE, (off_t)offset, (off_t)bytes) == 0;
    unsigned char *base = (unsigned char *)ring->header;
    return madvise(base + (offset & ~UINT64_C(4095)), (bytes + (offset & 4095) + 4095) & ~UINT64_C(4095),
                   MADV_POPULATE_WRITE) == 0;
}

void os_unreserve(const struct ring *ring, uint64_t offset, uint64_t bytes)
{
    if (ring->control_fd >= 0)
        (void)!fallocate(ring->control_fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)offset,
                         (off_t)bytes);
}
