/* Waiting: spin while that pays, then sleep, and now and then look who blocks.
 *
 * close() from another thread sets `closing` and wakes all: either the waiter has prepared by then and is
 * woken, or it sees `closing` after it has.
 *
 * The caller tries first, and waits only after RING_WOULD_BLOCK; a wait that returns says "try again",
 * nothing more. All of this runs without the interpreter's lock.
 *
 * Spinning is worth it while the other side runs on another core. So: not at all if more participants of this
 * ring live than there are cores, and otherwise for a budget that is learned: it doubles (up to the limit)
 * when spinning brought something and halves when it did not; at zero every 16th wait probes again.
 *
 * A sleep lasts a slice at most (half a second; less when a record at the cursor is claimed but not
 * committed), because a stopped process may have swallowed a wake, and without a broker nobody else looks for
 * the dead. After a slice the waiter checks whether who blocks it is alive: one or two system calls, no scan
 * of everybody.
 *
 * Producers publish how far the floor must come before waking them makes sense (space_need, least of all
 * sleepers): bit first, then need, then look again. A waker resets the need before it changes the event word,
 * so a need that a reset wiped belongs to a sleeper whose futex value is stale. (Need before bit loses a
 * wake: reset, increment, bit, sleep with no need.)
 * When the ring stays full a producer that is woken for each record costs two context switches a record. So
 * after two sleeps in a row it asks for a quarter of the ring, or the tail, and in return sleeps no longer
 * than two milliseconds.
 */
#include <errno.h>

#include "event.h"
#include "os.h"
#include "ring.h"

#define SLICE_BLOCKED_NS (20 * INT64_C(1000000))
#define SLICE_PATIENT_NS (2 * INT64_C(1000000))

int64_t os_slice_ns = 500 * INT64_C(1000000);

static bool cores_to_spare(struct ring *ring)
{
    uint32_t live = 0;
    uint32_t cores = os_usable_cores();
    uint64_t high = load_relaxed(&ring->header->participants_high);
    for (uint32_t i = 0; i < ring->g.participants && i < high && live <= cores; i++) {
        uint64_t word = load_relaxed(&ring->participants[i].word);
        if (slot_state(word) == SLOT_LIVE &&
            info_role(load_relaxed(&ring->participants[i].info)) <= ROLE_CONSUMER)
            live++;
    }
    return live <= cores;
}

/* Spins until looks_ready or the budget is spent. */
static bool spin(struct ring *ring, struct spinner *spinner, struct participant *slot,
                 bool (*looks_ready)(void *), void *who, int64_t timeout_ns)
{
    if (spinner->limit_ns == 0 || !cores_to_spare(ring))
        return false;
    if (spinner->budget_ns < 500) {
        if (++spinner->probe % 16 != 0)
            return false;
        spinner->budget_ns = 2000;
    }
    uint64_t start = os_now_ns();
    uint64_t budget = spinner->budget_ns;
    if (timeout_ns >= 0 && (uint64_t)timeout_ns < budget)
        budget = (uint64_t)timeout_ns;
    do {
        for (int i = 0; i < 32; i++) {
            if (looks_ready(who)) {
                spinner->hits++;
                spinner->budget_ns =
                    spinner->budget_ns * 2 < spinner->limit_ns ? spinner->budget_ns * 2 : spinner->limit_ns;
                store_relaxed(&slot->spins, load_relaxed(&slot->spins) + 1);
                return true;
            }
            cpu_relax();
        }
    } while (os_now_ns() - start < budget);
    spinner->misses++;
    spinner->budget_ns /= 2;
    return false;
}

static int64_t shorter(int64_t a, int64_t b) { return a < 0 ? b : b < 0 ? a : a < b ? a : b; }

static bool consumer_ready(void *consumer) { return consumer_looks_ready(consumer); }

/* timeout_ns: what is left until the caller's deadline, negative for none. */
enum wait_result consumer_wait(struct consumer *consumer, int64_t timeout_ns)
{
    struct ring *ring = consumer->member.ring;
    if (spin(ring, &consumer->spinner, consumer->member.slot, consumer_ready, consumer, timeout_ns))
        return WAIT_READY;
    uint32_t value = event_prepare(&consumer->group->event);
    if (load32_sc(&consumer->closing) || consumer_looks_ready(consumer) ||
        consumer_end(consumer) != RING_WOULD_BLOCK)
        return WAIT_READY;
    store_relaxed(&consumer->member.slot->sleeps, load_relaxed(&consumer->member.slot->sleeps) + 1);
    uint64_t cursor = consumer->lossy ? consumer->lossy_position : load_sc(&consumer->group->cursor);
    int64_t slice = os_slice_ns;
    if (slice > SLICE_BLOCKED_NS && ring_head_blocker(ring, cursor) >= 0)
        slice = SLICE_BLOCKED_NS;
    int error = os_futex_wait(&consumer->group->event, value, shorter(timeout_ns, slice));
    if (error == ETIMEDOUT) {
        consumer_look_who_blocks(consumer);
        return WAIT_SLICE;
    }
    return error == EINTR ? WAIT_SIGNAL : WAIT_READY;
}

struct space_wanted {
    struct producer *producer;
    uint64_t payload_bytes;
};

static bool producer_ready(void *wanted_)
{
    struct space_wanted *wanted = wanted_;
    return producer_has_space(wanted->producer, wanted->payload_bytes);
}

enum wait_result producer_wait(struct producer *producer, uint64_t payload_bytes, int64_t timeout_ns)
{
    struct ring *ring = producer->member.ring;
    struct header *header = ring->header;
    struct space_wanted wanted = {producer, payload_bytes};
    if (spin(ring, &producer->spinner, producer->member.slot, producer_ready, &wanted, timeout_ns))
        return WAIT_READY;
    uint32_t value = event_prepare(&header->space_event);
    uint64_t need = producer_space_needed(producer, payload_bytes);
    int64_t slice = os_slice_ns;
    if (slice > 0 && ++producer->full_streak > 2) {
        uint64_t tail = load_sc(&header->tail);
        uint64_t quarter = tail - ring->g.capacity_bytes + ring->g.capacity_bytes / 4;
        if (tail > ring->g.capacity_bytes && need < quarter)
            need = quarter < tail ? quarter : tail;
        slice = SLICE_PATIENT_NS;
    }
    uint64_t seen = load_sc(&header->space_need);
    while (need < seen && !cas_sc(&header->space_need, seen, need))
        seen = load_sc(&header->space_need);
    if (load32_sc(&producer->closing) || producer_has_space(producer, payload_bytes))
        return WAIT_READY;
    store_relaxed(&producer->member.slot->sleeps, load_relaxed(&producer->member.slot->sleeps) + 1);
    int error = os_futex_wait(&header->space_event, value, shorter(timeout_ns, slice));
    if (error == ETIMEDOUT) {
        if (producer->full_streak % 16 == 0 || slice != SLICE_PATIENT_NS)
            producer_look_who_blocks(producer);
        return WAIT_SLICE;
    }
    return error == EINTR ? WAIT_SIGNAL : WAIT_READY;
}

/* The slot whose claim at `position` is not settled, or -1. */
int64_t ring_head_blocker(struct ring *ring, uint64_t position)
{
    uint64_t word = load_sc(claim_at(ring, position));
    return claim_is_of(&ring->g, word, position) && claim_state_of(word) == CLAIM_CLAIMED
               ? (int64_t)claim_owner(word)
               : -1;
}

/* What a consumer can wait for in vain: the head claim of a dead producer; dead producers that were never
 * seen off; a dead member's lease before the end. */
void consumer_look_who_blocks(struct consumer *consumer)
{
    struct ring *ring = consumer->member.ring;
    shared_u64 *place = &consumer->group->cursor;
    uint64_t cursor = load_sc(place);
    uint64_t tail = load_sc(&ring->header->tail); /* after the cursor: a true tail is never behind it */
    if (!consumer->lossy && cursor > tail && load_sc(place) == cursor && load_sc(&ring->header->tail) == tail)
        ring_poison(ring, POISON_CURSOR_BEYOND_TAIL);
    int64_t blocker = ring_head_blocker(ring, consumer->lossy ? consumer->lossy_position
                                                              : load_sc(&consumer->group->cursor));
    if (blocker >= 0)
        ring_reap_slot(ring, (uint32_t)blocker);
    uint64_t high = load_sc(&ring->header->participants_high);
    for (uint32_t i = 0; (ring->flags & FLAG_END_PRODUCERS) && i < ring->g.participants && i < high; i++) {
        uint64_t word = load_sc(&ring->participants[i].word);
        enum participant_role role = info_role(load_acquire(&ring->participants[i].info));
        if (slot_state(word) == SLOT_FREE ||
            (slot_state(word) == SLOT_LIVE && role != ROLE_PRODUCER && role != ROLE_TICKET))
            continue;
        if (ring_reap_slot(ring, i) == RING_NOT_DEAD)
            break; /* one that lives is enough to wait for */
    }
    high = load_sc(&ring->header->leases_high);
    for (uint32_t i = 0; i < ring->g.leases && i < high; i++) {
        uint64_t owner = load_sc(&ring->leases[i].owner);
        if (owner_state_of(owner) == OWNER_OWNED && owner_group(owner) == consumer->group_index &&
            who_of(owner) != consumer->member.who)
            ring_reap_slot(ring, who_slot(owner));
    }
}

/* What a producer can wait for in vain: a dead holder of a lease, of a private group, or of the claim at a
 * group's cursor. */
void producer_look_who_blocks(struct producer *producer)
{
    struct ring *ring = producer->member.ring;
    uint64_t high = load_sc(&ring->header->leases_high);
    for (uint32_t i = 0; i < ring->g.leases && i < high; i++) {
        uint64_t owner = load_sc(&ring->leases[i].owner);
        if (owner_state_of(owner) == OWNER_OWNED && (load_sc(&ring->leases[i].start) & 3) != LEASE_CLEAR)
            ring_reap_slot(ring, who_slot(owner));
    }
    high = load_sc(&ring->header->groups_high);
    for (uint32_t i = 0; i < ring->g.groups && i < high; i++) {
        uint64_t owner = load_sc(&ring->groups[i].owner);
        enum group_state state = group_state_of(owner);
        if (!group_holds_back(state))
            continue;
        if (state == GROUP_PRIVATE || state == GROUP_SETTLING)
            ring_reap_slot(ring, who_slot(owner));
        int64_t blocker = ring_head_blocker(ring, load_sc(&ring->groups[i].cursor));
        if (blocker >= 0)
            ring_reap_slot(ring, (uint32_t)blocker);
    }
    int64_t blocker = ring_head_blocker(ring, load_sc(&ring->header->floor));
    if (blocker >= 0)
        ring_reap_slot(ring, (uint32_t)blocker);
}
