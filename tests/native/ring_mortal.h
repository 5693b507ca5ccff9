/* Threads that die and stall at any access to shared memory.
 *
 * The core is compiled into the program that includes this, with SHMBUS_MODEL: each access to shared memory first calls model_access(). A thread with a `way_out` may leave there by longjmp, for good as
 * far as the ring can tell: everything it had begun stays as it is, and only then is its pid declared dead, as with a process that is killed. It then comes back as somebody else. Any thread, reapers
 * too, may also stall there for a while, as when it is preempted; that is what makes a reaper late.
 *
 * Unlike in the model these are real threads, so the sanitizers and the machine's own memory order take part; what a thread does here is chance, not a search.
 */
#ifndef SHMBUS_TEST_RING_MORTAL_H
#define SHMBUS_TEST_RING_MORTAL_H

#define SHMBUS_MODEL 1

#include <sched.h>
#include <setjmp.h>

#include "../../shmbus/_native/event.c"
#include "../../shmbus/_native/group.c"
#include "../../shmbus/_native/lossy.c"
#include "../../shmbus/_native/participant.c"
#include "../../shmbus/_native/reap.c"
#include "../../shmbus/_native/receive.c"
#include "../../shmbus/_native/ring.c"
#include "../../shmbus/_native/send.c"
#include "../../shmbus/_native/wait.c"

#include "ring_talk.h"

static _Thread_local jmp_buf *way_out;
static _Thread_local uint64_t steps_left, mood;
static _Thread_local uint64_t lifetimes; /* steps of one life at most; 0: immortal */

static pthread_mutex_t news_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t news_came = PTHREAD_COND_INITIALIZER;
static uint64_t news; /* deaths so far, and the end */
static bool all_is_over;
static _Atomic(uint64_t) deaths;

/* For one thread that is two: what runs, whole, when the count of accesses has come down to 0. */
static _Thread_local void (*interruption)(void);
static _Thread_local uint64_t interrupted_in;

void model_access(const void *word, bool writes)
{
    (void)word, (void)writes;
    if (interruption && --interrupted_in == 0) {
        void (*what)(void) = interruption;
        interruption = NULL;
        what();
    }
    if (mood != 0) {
        uint64_t now = chance(&mood) % 4096;
        for (uint64_t i = now == 0 ? 100 : now < 64; i > 0; i--)
            sched_yield();
    }
    if (way_out && --steps_left == 0)
        longjmp(*way_out, 1);
}

static void copy_part(unsigned char *to, const unsigned char *from, size_t bytes)
{
#if defined(SHMBUS_TSAN)
    for (size_t i = 0; i < bytes; i++)
        atomic_store_explicit((_Atomic(unsigned char) *)(to + i),
            atomic_load_explicit((_Atomic(unsigned char) *)(uintptr_t)(from + i), memory_order_relaxed), memory_order_relaxed);
#else
    memcpy(to, from, bytes);
#endif
}

/* One may die in the middle of it. */
void model_copy(void *to, const void *from, size_t bytes)
{
    copy_part(to, from, bytes / 2);
    model_access(to, true);
    copy_part((unsigned char *)to + bytes / 2, (const unsigned char *)from + bytes / 2, bytes - bytes / 2);
}

static void tell_news(bool over)
{
    pthread_mutex_lock(&news_lock);
    news++;
    all_is_over = all_is_over || over;
    pthread_cond_broadcast(&news_came);
    pthread_mutex_unlock(&news_lock);
}

/* Lives `life` until that returns true: each time as somebody new. */
static void live(bool (*life)(void *), void *who, uint64_t seed, uint64_t steps_at_most)
{
    lifetimes = steps_at_most;
    mood = seed | 1;
    volatile bool done = false;
    while (!done) {
        jmp_buf out;
        be_somebody_new();
        steps_left = lifetimes ? 1 + below(&mood, lifetimes) : UINT64_MAX;
        if (setjmp(out) == 0) {
            way_out = &out;
            done = life(who);
            way_out = NULL;
        } else {
            way_out = NULL;
            declare_dead(my_pid);
            atomic_fetch_add(&deaths, 1);
            tell_news(false);
        }
    }
    mood = 0;
}

/* A life: reaps after every death, until all is over. */
static bool reap_after_each_death(void *ring_)
{
    struct ring *ring = ring_;
    uint64_t seen = 0;
    for (;;) {
        pthread_mutex_lock(&news_lock);
        while (news == seen && !all_is_over)
            pthread_cond_wait(&news_came, &news_lock);
        bool over = all_is_over;
        seen = news;
        pthread_mutex_unlock(&news_lock);
        if (over)
            return true;
        ring_reap(ring);
    }
}

/* Between two runs, when there is one thread only. */
static void forget_the_dead(void)
{
    memset((void *)dead_pids, 0, sizeof dead_pids);
    atomic_store(&pids_given, 1);
    news = 0;
    all_is_over = false;
    atomic_store(&deaths, 0);
}

#endif
