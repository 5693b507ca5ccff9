/* The operating system as the ring core sees it. os_linux.c is the real one; the model checker and the
 * tests link their own, so that they decide when
 * time passes, who sleeps and who is dead. */
#ifndef SHMBUS_OS_H
#define SHMBUS_OS_H

#include "atomics.h"

struct ring;

/* 0 woken or the value differs, ETIMEDOUT, EINTR. A negative timeout waits for ever. */
int os_futex_wait(shared_u32 *word, uint32_t expected, int64_t timeout_ns);
/* Wakes at most `count` sleepers; returns how many. */
int os_futex_wake(shared_u32 *word, int count);
void os_event_fd_write(int fd);
uint64_t os_now_ns(void);
uint32_t os_pid(void);
uint64_t os_start_time(void);
/* True only with proof. `start_known` is false while only the low bits of the start time are recorded. */
bool os_is_dead(const struct ring *ring, uint32_t pid, uint64_t start, bool start_known);
/* Makes [offset, offset + bytes) of the control region safe to touch; false if there is no memory for it. */
bool os_reserve(const struct ring *ring, uint64_t offset, uint64_t bytes);
void os_unreserve(const struct ring *ring, uint64_t offset, uint64_t bytes);
uint64_t os_pid_namespace(void);
uint64_t os_time_namespace(void);
uint32_t os_usable_cores(void);
/* Changes in each forked child: what was attached before belongs to the parent. */
uint32_t os_fork_count(void);

/* Tests set this to -1: waits are then ended by wakes only, so that a missed one hangs instead of hiding. */
extern int64_t os_slice_ns;

#endif
