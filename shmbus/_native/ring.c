/* The ring as a whole: geometry, creation, what is checked at attach, status.
 *
 * THE PROTOCOL IN ONE PAGE
 *
 *   tail    where the next record will start; moves by compare-and-swap, by anybody, by the length in the
 *           claim word at the tail
 *   cursor  one per group: where its next record starts; moves by compare-and-swap, by a consumer that takes
 *           the record
 *   floor   a shared lower bound of what is still needed:
 *           floor <= every cursor, lease and unsettled claim <= tail <= floor + capacity
 *
 *   send:     read tail; check tail + length <= floor + capacity; CAS the claim word of the tail's cell from
 *             the stale word that was read to CLAIMED(lap, length, owner): this is the claim. CAS tail
 *             forward. Write header and payload. Store COMMITTED. Wake.
 *   receive:  read cursor and its claim word; COMMITTED: copy, then CAS cursor (success proves the copy
 *             whole); or lease, CAS cursor, use, clear.
 *   death:    a claim word names its owner and its length, so whoever proves the owner dead turns CLAIMED
 *             into ABORTED with one CAS, and readers step over it.
 *
 * The opening design had a table of intents (holder, position, length) beside the claim words, and aborted a
 * dead producer's claim cell by cell because the length was not in the claim word. Length and owner fit into
 * the word itself (positions then end at 2^61 instead of 2^63), so that table, its reuse rule and the
 * two-word claim are gone, a send is one shared store shorter, and the two mistakes that the design warns of
 * there cannot be written down.
 *
 * Without any group the design let producers run to tail + capacity. Nothing then protects a claim whose
 * producer is paused in the middle of its copy from being lapped. So space always comes from the floor; without a group producers move the floor themselves, over settled
 * records only.
 *
 * Hostile memory: each shared index or length is read once into a local, checked against private geometry
 * (struct geometry), then used. An offset into data is always position modulo capacity, and no length passes
 * half a capacity, so with the mirror no read or write can leave the mapping, whatever is in the words.
 */
#include "ring.h"

#include "event.h"
#include "os.h"

static uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

/* False if the numbers do not make a ring. `parking_limit_bytes` 0 means no parking. */
bool geometry_make(struct geometry *g, uint64_t capacity_bytes, uint32_t participants, uint32_t leases,
                   uint32_t groups, uint64_t parking_limit_bytes)
{
    if (capacity_bytes < 2 * CELL_BYTES || capacity_bytes > (UINT64_C(1) << 46) ||
        (capacity_bytes & (capacity_bytes - 1)) != 0)
        return false;
    if (participants < 1 || participants > MAX_PARTICIPANTS || leases < 1 || leases > MAX_LEASES ||
        groups < 1 || groups > MAX_GROUPS)
        return false;
    memset(g, 0, sizeof *g);
    g->capacity_bytes = capacity_bytes;
    g->cells = capacity_bytes >> CELL_LOG2;
    while ((UINT64_C(1) << g->cells_log2) < g->cells)
        g->cells_log2++;
    g->length_bits = g->cells_log2 - 1;
    g->participants = participants;
    g->leases = leases;
    g->groups = groups;
    g->participants_at = HEADER_BYTES;
    g->leases_at = g->participants_at + participants * sizeof(struct participant);
    g->groups_at = g->leases_at + leases * sizeof(struct lease);
    g->claims_at = g->groups_at + groups * sizeof(struct group);
    g->control_bytes = round_up(g->claims_at + g->cells * sizeof(shared_u64), 4096);
    g->parking_at = g->control_bytes;
    uint64_t half = capacity_bytes / 2;
    g->parking_bytes = parking_limit_bytes == 0
                           ? 0
                           : round_up(half < parking_limit_bytes ? half : parking_limit_bytes, 4096);
    g->total_bytes = g->control_bytes + leases * g->parking_bytes;
    return true;
}

/* Fills a control region of zeroed memory that nobody else has seen yet. */
void ring_format(void *control, const struct geometry *g, const struct ring_settings *settings)
{
    struct header *header = control;
    header->layout_version = LAYOUT_VERSION;
    header->header_bytes = HEADER_BYTES;
    header->capacity_bytes = g->capacity_bytes;
    header->control_bytes = g->control_bytes;
    header->parking_bytes = g->parking_bytes;
    header->participants = g->participants;
    header->leases = g->leases;
    header->groups = g->groups;
    header->flags = settings->flags;
    header->max_deliveries = settings->max_deliveries;
    header->pid_namespace = os_pid_namespace();
    header->time_namespace = os_time_namespace();
    header->created_ns = os_now_ns();
    if (settings->identity)
        memcpy(header->identity, settings->identity, sizeof header->identity);
    if (settings->settings && settings->settings_bytes <= SETTINGS_BYTES) {
        memcpy(header->settings, settings->settings, settings->settings_bytes);
        header->settings_bytes = settings->settings_bytes;
    }
    store_relaxed(&header->space_need, UINT64_MAX);
    struct group *groups = (struct group *)((unsigned char *)control + g->groups_at);
    for (uint32_t i = 0; i < settings->group_count; i++) {
        size_t bytes = strlen(settings->group_names[i]);
        memcpy(groups[i].name, settings->group_names[i], bytes < GROUP_NAME_BYTES ? bytes : GROUP_NAME_BYTES);
        store_relaxed(&groups[i].name_bytes, bytes);
        store_relaxed(&groups[i].owner, GROUP_NAMED);
    }
    if (settings->group_count == 0 && (settings->flags & FLAG_HOLD)) {
        store_relaxed(&groups[0].owner, GROUP_HELD);
        store_relaxed(&header->groups_high, 1);
    } else {
        store_relaxed(&header->groups_high, settings->group_count);
    }
    header->magic = LAYOUT_MAGIC;
}

/* What is wrong with a header that somebody else wrote, or NULL; then *g is its geometry. `file_bytes` is
 * the control region's length. The fields are copied
 * once, so that nobody can change them between check and use. */
const char *ring_check_header(const struct header *shared, uint64_t file_bytes, struct geometry *g)
{
    struct header copy;
    if (file_bytes < HEADER_BYTES)
        return "the control region is shorter than its header page";
    memcpy(&copy, shared, offsetof(struct header, creation_spare));
    if (copy.magic != LAYOUT_MAGIC)
        return "the control region does not start with the magic number of a ring";
    if (copy.layout_version != LAYOUT_VERSION)
        return "the ring has another layout version";
    if (copy.header_bytes != HEADER_BYTES)
        return "the ring's header has another length";
    if (!geometry_make(g, copy.capacity_bytes, copy.participants, copy.leases, copy.groups,
                       copy.parking_bytes))
        return "the ring's capacity or table sizes are out of range";
    if (copy.control_bytes != g->control_bytes || copy.parking_bytes != g->parking_bytes)
        return "the ring's tables do not add up to its control region";
    if (file_bytes < g->control_bytes)
        return "the control region is shorter than its tables";
    return NULL;
}

/* Makes *ring from mapped regions; what is wrong with them, or NULL. `data` must be mapped twice, back to
 * back (data_bytes is one of the two). */
const char *ring_open(struct ring *ring, void *control, uint64_t control_bytes, void *data,
                      uint64_t data_bytes)
{
    struct geometry g;
    const char *wrong = ring_check_header(control, control_bytes, &g);
    if (wrong)
        return wrong;
    if (data_bytes != g.capacity_bytes)
        return "the data region is not as long as the capacity";
    memset(ring, 0, sizeof *ring);
    unsigned char *base = control;
    ring->g = g;
    ring->header = control;
    ring->participants = (struct participant *)(base + g.participants_at);
    ring->leases = (struct lease *)(base + g.leases_at);
    ring->groups = (struct group *)(base + g.groups_at);
    ring->claims = (shared_u64 *)(base + g.claims_at);
    ring->parking = g.parking_bytes != 0 && control_bytes >= g.total_bytes ? base + g.parking_at : NULL;
    ring->data = data;
    ring->flags = ring->header->flags;
    ring->max_deliveries = ring->header->max_deliveries;
    ring->control_fd = -1;
    ring->event_fd = -1;
    return NULL;
}

/* Made in another pid or time namespace than this process is in; asked each time, since a fork may change it. */
bool ring_is_foreign(const struct ring *ring)
{
    return ring->header->pid_namespace != os_pid_namespace() ||
           ring->header->time_namespace != os_time_namespace();
}

enum ring_result ring_corrupt(struct ring *ring, const char *why, uint64_t position)
{
    ring->why = why;
    ring->why_position = position;
    return RING_CORRUPT;
}

/* Sequentially consistent: producers look after their claim, consumers before they believe in the end. */
enum ring_result ring_status(struct ring *ring)
{
    uint64_t status = load_sc(&ring->header->status);
    return status == STATUS_OPEN ? RING_OK : status == STATUS_CLOSED ? RING_CLOSED : RING_POISONED;
}

void ring_wake_consumers(struct ring *ring)
{
    uint64_t high = load_sc(&ring->header->groups_high);
    for (uint32_t i = 0; i < ring->g.groups && i < high; i++)
        event_wake(&ring->groups[i].event, true, ring->event_fd);
}

void ring_wake_everybody(struct ring *ring)
{
    ring_wake_consumers(ring);
    event_wake(&ring->header->space_event, true, ring->event_fd);
    event_wake(&ring->header->join_event, true, ring->event_fd);
}

/* Nothing more is sent; what was claimed before is still delivered. */
void ring_close(struct ring *ring)
{
    cas_sc(&ring->header->status, STATUS_OPEN, STATUS_CLOSED);
    ring_wake_everybody(ring);
}

void ring_poison(struct ring *ring, uint64_t reason)
{
    if (cas_sc(&ring->header->status, STATUS_OPEN, STATUS_POISONED) ||
        cas_sc(&ring->header->status, STATUS_CLOSED, STATUS_POISONED))
        store_relaxed(&ring->header->poison_reason, reason);
    ring_wake_everybody(ring);
}

/* word = max(word, at_least); lock-free, as each lost race raised the word. */
void raise_to(shared_u64 *word, uint64_t at_least)
{
    uint64_t seen = load_sc(word);
    while (seen < at_least && !cas_sc(word, seen, at_least))
        seen = load_sc(word);
}
