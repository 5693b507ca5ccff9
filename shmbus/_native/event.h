/* Sleep and wake: an event word is  count << 2 | ARMED | SLEEPING.  Theory in event.c. */
#ifndef SHMBUS_EVENT_H
#define SHMBUS_EVENT_H

#include "atomics.h"

#define EVENT_SLEEPING 1u
#define EVENT_ARMED 2u
#define EVENT_COUNT 4u

uint32_t event_prepare(shared_u32 *event);
uint32_t event_arm(shared_u32 *event);
void event_wake_slow(shared_u32 *event, bool all, int event_fd);
void event_wake_after_death(shared_u32 *event, int event_fd);

/* The usual case, nobody sleeps, costs one load. Pairs with event_prepare: see event.c. */
static inline void event_wake(shared_u32 *event, bool all, int event_fd)
{
    if (load32_sc(event) & (EVENT_SLEEPING | EVENT_ARMED))
        event_wake_slow(event, all, event_fd);
}

#endif
