/* Readers that hold nobody back.
 *
 * A lossy reader keeps its position to itself; its group slot is there for the event word only. What it
 * copied is whole if the floor still stood at or below the record after the copy: producers overwrite a
 * record only when the floor has passed it. The floor is then read by an atomic add of 0, because that,
 * unlike a load, comes after the copy's own loads on every machine.
 *
 * When it was overtaken it goes on at the floor, which is always the start of a record. How much it lost it
 * learns from the records' own sequence numbers, per producer.
 */
#include "ring.h"

#include "event.h"
#include "os.h"

static bool overtaken(struct consumer *consumer, uint64_t floor)
{
    if (floor <= consumer->lossy_position || !position_valid(floor))
        return false;
    consumer->lossy_position = floor;
    return true;
}

enum ring_result lossy_peek(struct consumer *consumer, struct record *record)
{
    struct ring *ring = consumer->member.ring;
    const struct geometry *g = &ring->g;
    for (int races = 0; races < RACES_AT_MOST; races++) {
        uint64_t c = consumer->lossy_position;
        uint64_t word = load_sc(claim_at(ring, c));
        if (!claim_is_of(g, word, c)) {
            if (overtaken(consumer, load_sc(&ring->header->floor)))
                continue;
            if (claim_state_of(word) == CLAIM_EMPTY || claim_lap(g, word) < position_lap(g, c))
                return RING_WOULD_BLOCK;
            return ring_corrupt(
                ring, "the claim word at a lossy reader's position is of a later lap than the floor allows",
                c);
        }
        if (claim_state_of(word) == CLAIM_CLAIMED)
            return RING_WOULD_BLOCK;
        uint64_t room = claim_cells(g, word) * CELL_BYTES;
        if (claim_state_of(word) == CLAIM_ABORTED) {
            consumer->lossy_position = c + room;
            continue;
        }
        shared_u64 *head = (shared_u64 *)(void *)data_at(ring, c);
        uint64_t first = load_acquire(head); /* pairs with the commit: layout.h */
        record->origin = load_relaxed(head + 1);
        record->length = record_length(first);
        record->codec = record_codec(first);
        record->position = c;
        record->end = c + room;
        record->payload = data_at(ring, c) + RECORD_HEADER_BYTES;
        record->lease = NO_LEASE;
        record->deliveries = 0;
        record->parked = false;
        if (record->length <= room - RECORD_HEADER_BYTES)
            return RING_OK;
        if (!overtaken(consumer, add_sc(&ring->header->floor, 0)))
            return ring_corrupt(ring, "a record is longer than its claim", c);
    }
    return RING_RETRY;
}

/* What has been sent so far was not for this reader. `seen` has MAX_PARTICIPANTS entries. A record sent
 * between the join and here may be received although it counts as earlier. */
void lossy_begin(struct consumer *consumer, struct lossy_seen *seen)
{
    struct ring *ring = consumer->member.ring;
    memset(seen, 0, MAX_PARTICIPANTS * sizeof *seen);
    for (uint32_t i = 0; i < ring->g.participants; i++) {
        uint64_t word = load_sc(&ring->participants[i].word);
        seen[i].generation = slot_generation(word);
        if (slot_state(word) == SLOT_LIVE) /* else the counter is its last owner's */
            seen[i].first = seen[i].next = load_relaxed(&ring->participants[i].messages);
    }
    consumer->seen = seen;
}

/* Counts what is missing before a record in its producer's sequence. A loan's record lies before records
 * that were committed earlier: it was counted when it was skipped, and is taken back. */
static void count_lost(struct consumer *consumer, uint64_t origin)
{
    struct lossy_seen *seen = &consumer->seen[origin_slot(origin)];
    uint64_t sequence = origin_sequence(origin);
    if (seen->generation != origin_generation(origin)) {
        seen->generation = origin_generation(origin); /* another participant in that slot: it began at 0 */
        seen->first = seen->next = 0;
    }
    if (sequence >= seen->next) {
        consumer->lost += sequence - seen->next;
        seen->next = sequence + 1;
    } else if (sequence >= seen->first && consumer->lost > 0) {
        consumer->lost--;
    }
}

/* After the copy. RING_RETRY: the copy is worth nothing. */
enum ring_result lossy_take(struct consumer *consumer, const struct record *record)
{
    /* another thread of this reader took it while we copied */
    if (consumer->lossy_position != record->position)
        return RING_RETRY;
    if (overtaken(consumer, add_sc(&consumer->member.ring->header->floor, 0)))
        return RING_RETRY;
    consumer->lossy_position = record->end;
    if (consumer->seen)
        count_lost(consumer, record->origin);
    struct participant *slot = consumer->member.slot;
    store_relaxed(&slot->messages, load_relaxed(&slot->messages) + 1);
    store_relaxed(&slot->bytes, load_relaxed(&slot->bytes) + record->length);
    return RING_OK;
}
