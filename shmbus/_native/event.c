/* Event counts: how a waiter sleeps without missing what it waits for.
 *
 *   sleeper                                   waker
 *   S1  v = word |= SLEEPING                  W1  make the thing true (commit, cursor, lease clear, status …)
 *   S2  look again at everything              W2  if the word has no SLEEPING bit: done
 *   S3  sleep while word == v                 W3  word += COUNT; wake one; if one was asleep: done
 *                                             W4  word = (word + COUNT) & ~SLEEPING; wake all
 *
 * All of these are sequentially consistent. S1 before W2 in that order, and the waker sees the bit; or W2
 * before S1, so W1 before S2, and the sleeper sees the thing (the pair that makes it work: S1 | W2 on the
 * word, W1 | S2 on the thing). Between S1 and S3 any W3 or W4 changes the word, so S3 does not sleep.
 *
 * The bit is set while anybody may be asleep, and cleared in W4 alone, with an increment: a sleeper between
 * S1 and S3 whose bit is cleared then finds another value.
 * W4 wakes all because somebody may have gone to sleep between "nobody was there" and the clearing. Nothing
 *    counts sleepers, so nothing leaks when one is killed.
 *
 * A wake-one can be lost with the one that was woken (killed, or it leaves empty-handed at its deadline):
 * whoever leaves empty-handed passes the wake on, whoever takes a record wakes another if the next one is
 * ready, and a reaper wakes all.
 *
 * A waker that is killed between W4's clearing and its wake leaves sleepers whose bit is gone. So after a
 * death reapers wake without looking at the bit, and without clearing it: one that has no slot, as a broker, is
 * reaped by nobody when it is killed itself (event_wake_after_death). Both found by the model.
 *
 * ARMED is for a sleeper that waits in poll() instead of a futex: the waker clears it and writes the
 * channel's eventfd. Nobody writes it unarmed.
 */
#include "event.h"

#include <limits.h>

#include "os.h"

uint32_t event_prepare(shared_u32 *event) { return or32_sc(event, EVENT_SLEEPING) | EVENT_SLEEPING; }

uint32_t event_arm(shared_u32 *event) { return or32_sc(event, EVENT_ARMED) | EVENT_ARMED; }

/* Clears `bits` with an increment. Returns false if they were clear already. Lock-free: a lost race means
 * another word was written, and each of those made progress. */
static bool clear_bits(shared_u32 *event, uint32_t bits)
{
    for (;;) {
        uint32_t word = load32_sc(event);
        if (!(word & bits))
            return false;
        if (cas32_sc(event, word, (word + EVENT_COUNT) & ~bits))
            return true;
    }
}

void event_wake_slow(shared_u32 *event, bool all, int event_fd)
{
    uint32_t word = load32_sc(event);
    if ((word & EVENT_ARMED) && clear_bits(event, EVENT_ARMED))
        os_event_fd_write(event_fd);
    if (!(word & EVENT_SLEEPING))
        return;
    if (!all) {
        add32_sc(event, EVENT_COUNT);
        if (os_futex_wake(event, 1) > 0)
            return;
    }
    clear_bits(event, EVENT_SLEEPING);
    os_futex_wake(event, INT_MAX);
}

/* Whoever died may have cleared the bits and not yet woken anybody, so this does not ask for them; and it leaves
 * them as they are, so that a reaper without a slot of its own, whom nobody would reap, leaves nothing behind when
 * it is killed in here. */
void event_wake_after_death(shared_u32 *event, int event_fd)
{
    add32_sc(event, EVENT_COUNT);
    os_event_fd_write(event_fd);
    os_futex_wake(event, INT_MAX);
}
