/* The ring core: what processes do with the two regions of a channel. No Python in here.
 *
 * The theory of operation stands on top of the file that does the thing:
 *   ring.c         geometry, creation, attach-time validation, status
 *   participant.c  slots: attach, detach, who is registered
 *   send.c         claim, commit, abort, space
 *   receive.c      cursor, copies, leases, parking, redelivery, the end of a channel
 *   lossy.c        readers that never hold a producer back
 *   group.c        groups join, end, are dropped
 *   reap.c         what is done after a participant that is proved dead
 *   event.c        sleep and wake
 *   wait.c         spin, then sleep, then look who blocks
 *   os.h           the operating system, so that tests and models can bring their own
 */
#ifndef SHMBUS_RING_H
#define SHMBUS_RING_H

#include "layout.h"

enum ring_result {
    RING_OK = 0,
    RING_WOULD_BLOCK, /* nothing to receive, or no space */
    /* lost a bounded number of races: come again, after signals and the deadline were looked at */
    RING_RETRY,
    RING_END,             /* drained, and nobody registered will send */
    RING_CLOSED,          /* somebody closed the channel, or positions are used up */
    RING_POISONED,        /* somebody found it broken */
    RING_DROPPED,         /* the group was taken away */
    RING_CORRUPT,         /* a contradiction that stays when read again; ring->why says which */
    RING_TOO_LARGE,       /* more than half a ring, record header included */
    RING_NO_SLOT,         /* a table is full; ring->why says which */
    RING_FOREIGN,         /* another pid or time namespace, and so no proof of death */
    RING_OWN_LOAN,        /* what blocks is a loan of this very participant */
    RING_SECOND_PRODUCER, /* producers="one", and another one lives */
    RING_NOT_DEAD,        /* reap: death is not proved */
    RING_NO_MEMORY,       /* the private memory of this process */
    RING_NO_GROUP,
};

#define RACES_AT_MOST 64 /* lost compare-and-swaps before RING_RETRY */

struct ring {
    struct header *header;
    struct participant *participants;
    struct lease *leases;
    struct group *groups;
    shared_u64 *claims;
    unsigned char *parking; /* NULL if it is not mapped */
    unsigned char *data;    /* the mirror follows at data + capacity_bytes */
    struct geometry g;
    uint32_t flags;
    uint32_t max_deliveries;
    int control_fd; /* for reserving parking; -1 for anonymous memory */
    int event_fd;   /* written when a sleeper waits by descriptor; -1 if there is none */
    uint64_t control_inode;
    const char *why; /* the last contradiction or refusal, in words */
    uint64_t why_position;
};

/* One process's attachment; `word` is the slot's word while it is LIVE. */
struct member {
    struct ring *ring;
    struct participant *slot;
    uint64_t word;
    uint64_t who;
    uint32_t index;
};

/* What spinning has brought lately, so that waits learn; private. */
struct spinner {
    uint32_t budget_ns, hits, misses, probe;
    uint32_t limit_ns;
};

struct producer {
    struct member member;
    uint64_t limit; /* no claim may reach beyond it: a lower bound of floor + capacity, may lag */
    uint64_t sequence;
    uint32_t open_loans;
    shared_u32 closing;   /* set by a thread that closes this end while another waits; private */
    uint32_t full_streak; /* sleeps for space since a claim last found room at once */
    struct spinner spinner;
};

struct claim {
    uint64_t position;
    uint64_t word;
    unsigned char *payload;
    uint64_t payload_bytes; /* room */
};

#define NO_LEASE UINT32_MAX

struct record {
    uint64_t position, end;
    const unsigned char *payload;
    uint64_t length;
    uint64_t origin;
    uint32_t codec;
    uint32_t lease;      /* NO_LEASE unless taken under one */
    uint32_t deliveries; /* how often it was delivered before */
    bool parked;
};

struct lossy_seen {
    uint64_t first, next; /* sequences: the first that could have been received, the next that should be */
    uint32_t generation;
};

struct consumer {
    struct member member;
    struct group *group;
    uint32_t group_index;
    uint32_t spare_lease; /* owned, clear, ready for the next record; NO_LEASE if none */
    uint32_t held_leases;
    /* group->orphans when the lease table was last found to hold no orphan of the group */
    bool parked_any; /* a block of parking may have to be given back */
    uint64_t orphans_seen;
    shared_u32 closing; /* set by a thread that closes this end while another waits; private */
    bool private_group;
    bool lossy;
    uint64_t lossy_position;
    uint64_t lost;
    struct lossy_seen *seen; /* one per participant slot; lossy readers only */
    struct spinner spinner;
};

/* ring.c */
struct ring_settings {
    uint64_t capacity_bytes;
    uint32_t participants, leases, groups;
    uint32_t flags;
    uint32_t max_deliveries;
    uint64_t parking_limit_bytes;  /* of one lease's block; it is at most half the capacity */
    const unsigned char *identity; /* 16 bytes */
    const char *const *group_names;
    uint32_t group_count;
    const unsigned char *settings;
    uint32_t settings_bytes;
};
bool geometry_make(struct geometry *g, uint64_t capacity_bytes, uint32_t participants, uint32_t leases,
                   uint32_t groups, uint64_t parking_limit_bytes);
void ring_format(void *control, const struct geometry *g, const struct ring_settings *settings);
const char *ring_check_header(const struct header *header, uint64_t file_bytes, struct geometry *g);
const char *ring_open(struct ring *ring, void *control, uint64_t control_bytes, void *data,
                      uint64_t data_bytes);
bool ring_is_foreign(const struct ring *ring);
enum ring_result ring_status(struct ring *ring);
void ring_close(struct ring *ring);
/* Reasons: 1 a contradiction that a call met (it says which), 2 a cursor beyond the tail; others are the user's. */
#define POISON_CONTRADICTION 1u
#define POISON_CURSOR_BEYOND_TAIL 2u
void ring_poison(struct ring *ring, uint64_t reason);
void ring_wake_everybody(struct ring *ring);
void ring_wake_consumers(struct ring *ring);
enum ring_result ring_corrupt(struct ring *ring, const char *why, uint64_t position);
void raise_to(shared_u64 *word, uint64_t at_least);

static inline bool position_valid(uint64_t position)
{
    return (position & (CELL_BYTES - 1)) == 0 && position <= POSITION_END;
}
static inline shared_u64 *claim_at(struct ring *ring, uint64_t position)
{
    return &ring->claims[position_cell(&ring->g, position)];
}
static inline unsigned char *data_at(struct ring *ring, uint64_t position)
{
    return ring->data + (position & (ring->g.capacity_bytes - 1));
}

/* participant.c */
enum ring_result member_attach(struct member *member, struct ring *ring, enum participant_role role);
void member_detach(struct member *member);
bool ring_has_registered_producer(struct ring *ring);
bool ring_ends_with_producers(struct ring *ring);

/* send.c */
enum ring_result producer_attach(struct producer *producer, struct ring *ring);
void producer_detach(struct producer *producer);
enum ring_result producer_claim(struct producer *producer, uint64_t payload_bytes, struct claim *claim);
void producer_commit(struct producer *producer, const struct claim *claim, uint64_t length, uint32_t codec);
void producer_abort(struct producer *producer, const struct claim *claim);
bool producer_has_space(struct producer *producer, uint64_t payload_bytes);
uint64_t producer_space_needed(struct producer *producer, uint64_t payload_bytes);
enum ring_result ring_help_tail(struct ring *ring, uint64_t *tail, uint64_t *word);

/* group.c */
enum ring_result group_join(struct consumer *consumer, const char *name, size_t name_bytes, bool lossy);
void group_leave(struct consumer *consumer);
enum ring_result group_drop(struct ring *ring, const char *name, size_t name_bytes);
void free_orphan_of_no_group(struct ring *ring, uint32_t index);
uint32_t group_find(struct ring *ring, const char *name, size_t name_bytes);

/* receive.c */
enum ring_result consumer_attach(struct consumer *consumer, struct ring *ring, const char *group,
                                 size_t group_bytes, bool lossy);
void consumer_detach(struct consumer *consumer, bool redeliver);
enum ring_result consumer_peek(struct consumer *consumer, struct record *record);
enum ring_result consumer_take_copied(struct consumer *consumer, const struct record *record);
enum ring_result consumer_take_leased(struct consumer *consumer, struct record *record);
enum ring_result consumer_adopt(struct consumer *consumer, struct record *record);
void consumer_park(struct consumer *consumer, struct record *record);
void consumer_release(struct consumer *consumer, uint32_t lease);
void consumer_give_back(struct consumer *consumer, uint32_t lease);
enum ring_result consumer_end(struct consumer *consumer);
bool consumer_looks_ready(struct consumer *consumer);
void consumer_pass_wake_on(struct consumer *consumer);
static inline bool consumer_sees_orphans(struct consumer *consumer)
{
    return load_sc(&consumer->group->orphans) != consumer->orphans_seen;
}

/* lossy.c */
void lossy_begin(struct consumer *consumer, struct lossy_seen *seen);
enum ring_result lossy_peek(struct consumer *consumer, struct record *record);
enum ring_result lossy_take(struct consumer *consumer, const struct record *record);

/* reap.c */
enum ring_result ring_reap_slot(struct ring *ring, uint32_t index);
uint32_t ring_reap(struct ring *ring);

/* wait.c */
enum wait_result { WAIT_READY, WAIT_SLICE, WAIT_SIGNAL };
enum wait_result consumer_wait(struct consumer *consumer, int64_t timeout_ns);
enum wait_result producer_wait(struct producer *producer, uint64_t payload_bytes, int64_t timeout_ns);
void consumer_look_who_blocks(struct consumer *consumer);
void producer_look_who_blocks(struct producer *producer);
int64_t ring_head_blocker(struct ring *ring, uint64_t position);

#endif
