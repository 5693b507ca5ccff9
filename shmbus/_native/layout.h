/* What a ring's two regions hold, word by word. Layout version 1.
 *
 *   control:  header page | participants | leases | groups | claim words: one u64 per cell, linear | parking
 *   (sparse)
 *   data:     records: 16 bytes of record header, then the payload; mapped twice, back to back, so a record
 *   never wraps
 *
 * A *cell* is 64 bytes. A *position* is an unsigned 64-bit byte offset that only grows, always a multiple of
 * 64; the cell of a position is its offset modulo the capacity, its lap the quotient. Positions end at
 * POSITION_END; the ring is then `Closed`.
 *
 * Every word below names who may write it. "Owner" is the participant that holds the slot; all other writers
 * use compare-and-swap from the exact word that they read.
 */
#ifndef SHMBUS_LAYOUT_H
#define SHMBUS_LAYOUT_H

#include "atomics.h"

#define LAYOUT_MAGIC UINT64_C(0x0073756272316d68) /* "hm1rbus\0" */
#define LAYOUT_VERSION 1u
#define CELL_BYTES 64u
#define CELL_LOG2 6u
#define RECORD_HEADER_BYTES 16u
#define HEADER_BYTES 4096u
#define SETTINGS_BYTES 2048u
#define GROUP_NAME_BYTES 48u
#define POSITION_END (UINT64_C(1) << 61)

#define MAX_PARTICIPANTS 256u /* eight bits of a claim word */
#define MAX_LEASES 128u
#define MAX_GROUPS 32u

/* ---- claim word: state:2 | owner:8 | length in cells - 1: L bits | lap: the rest; L = log2(cells) - 1,
 * since no record is longer than half a ring.
 * The word of the cell at which a record starts is the truth about that record; for a given (cell, lap) it is
 * claimed at most once, so a word whose lap
 * is the position's lap tells the record's owner and length whenever it is read. A word of an older lap says
 * "not yet"; nothing needs zeroing. */
enum claim_state { CLAIM_EMPTY = 0, CLAIM_CLAIMED = 1, CLAIM_COMMITTED = 2, CLAIM_ABORTED = 3 };

/* ---- participant word: state:2 | generation:17 | pid:22 | start time, low bits:23. One CAS takes a slot
 * and names its owner, so that death during
 * attach can be proved too. */
enum participant_state { SLOT_FREE = 0, SLOT_ATTACHING = 1, SLOT_LIVE = 2, SLOT_LEAVING = 3 };
#define PID_BITS 22u
#define GENERATION_BITS 17u
#define START_BITS 23u

enum participant_role {
    ROLE_NONE = 0,
    ROLE_PRODUCER = 1,
    ROLE_CONSUMER = 2,
    ROLE_TICKET = 3,
    ROLE_OBSERVER = 4
};

struct participant {
    shared_u64 word; /* attach and reap: CAS */
    /* owner, before LIVE: the whole start time in clock ticks since boot. Its release store pairs with the
     * acquire loads of those who have seen LIVE */
    shared_u64 start;
    /* owner: role:8, before LIVE | group + 1: 8 (0 none), once joined. Its release store pairs with the
     * acquire loads of those who count producers, or settle what the dead left */
    shared_u64 info;
    shared_u64 messages; /* owner: records sent or received; statistics only */
    shared_u64 bytes;    /* owner: payload bytes; statistics only */
    shared_u64 sleeps;   /* owner: times it slept; statistics only */
    shared_u64 spins;    /* owner: times that spinning brought something; statistics only */
    shared_u64 spare;
};

/* ---- lease: start and end are written by the lease's owner alone; reapers and adopters move only the
 * owner word. */
/* low bits of `start` */
enum lease_state { LEASE_CLEAR = 0, LEASE_TAKING = 1, LEASE_HOLDING = 2, LEASE_PARKED = 3 };
enum owner_state { OWNER_FREE = 0, OWNER_ACQUIRING = 1, OWNER_OWNED = 2, OWNER_ORPHAN = 3 };

struct lease {
    shared_u64 owner; /* CAS: state:2 | slot:8 | generation:17 | group:8 | deliveries:8 */
    shared_u64 start; /* owner: position | lease_state */
    shared_u64 end;   /* owner: position */
    /* owner, before PARKED: the record header's first word of the parked record. Its release store pairs
     * with an adopter's acquire load: the block's bytes are visible with it */
    shared_u64 parked;
    /* owner, before PARKED: the record header's second word. Its release store pairs with an adopter's
     * load of start */
    shared_u64 origin;
    shared_u64 spare[3];
};

/* ---- group */
enum group_state {
    GROUP_FREE = 0,
    GROUP_HELD = 1,     /* unnamed, keeps everything from position 0 until the first group takes it over */
    GROUP_SETTLING = 2, /* its joiner holds the join word; holds producers back, is not received from */
    GROUP_NAMED = 3,
    GROUP_PRIVATE = 4, /* ends with its one consumer */
    GROUP_LOSSY = 5,   /* has an event word only: holds nobody back */
    GROUP_DROPPED = 6, /* taken away; its slot is not used again */
};

struct group {
    _Alignas(64) shared_u64 cursor; /* consumers of the group: CAS forward; the joiner while SETTLING */
    /* reapers: +1 after leases of this group became orphans. The add pairs with the acquire load in front
     * of each receive: the orphans' owner words are visible with it */
    shared_u64 orphans;
    _Alignas(64) shared_u32 event; /* see event.h */
    uint32_t event_pad;
    _Alignas(64) shared_u64 owner; /* joiner, leaver, reaper: CAS: state:4 | slot:8 | generation:17 */
    shared_u64 redelivered;        /* counters, statistics only */
    shared_u64 dropped;
    shared_u64 spare[5];
    /* joiner, while it holds the join word, before NAMED */
    _Alignas(64) unsigned char name[GROUP_NAME_BYTES];
    shared_u64 name_bytes;
    shared_u64 name_spare;
};

/* ---- header page */
enum ring_status { STATUS_OPEN = 0, STATUS_CLOSED = 1, STATUS_POISONED = 2 };

#define FLAG_END_PRODUCERS 1u
#define FLAG_ONE_PRODUCER 2u
#define FLAG_DROP_ORPHANS 4u
#define FLAG_HOLD 8u

struct header {
    /* Written once by the creator, before anybody else sees the region; compared with private geometry at
     * attach and not read again. */
    uint64_t magic;
    uint32_t layout_version;
    uint32_t header_bytes;
    uint64_t capacity_bytes;
    uint64_t control_bytes; /* without parking */
    uint64_t parking_bytes; /* of one lease's block */
    uint32_t participants;
    uint32_t leases;
    uint32_t groups;
    uint32_t flags;
    uint32_t max_deliveries;
    uint32_t settings_bytes;
    uint64_t pid_namespace;
    uint64_t time_namespace;
    uint64_t created_ns;
    unsigned char identity[16];
    unsigned char creation_spare[128];

    /* producers and reapers: CAS forward by the length in the claim word at the tail */
    _Alignas(64) shared_u64 tail;
    /* producers: CAS forward; floor <= every cursor, lease and unsettled claim */
    _Alignas(64) shared_u64 floor;
    /* joiner: +1 when the set of groups that hold producers back has grown */
    _Alignas(64) shared_u64 version;
    shared_u64 status;            /* anybody: CAS from STATUS_OPEN */
    shared_u64 groups_high;       /* joiner: slots of groups ever used */
    shared_u64 leases_high;       /* CAS max */
    shared_u64 participants_high; /* CAS max */
    shared_u64 producers_seen;    /* producers and tickets that ever attached; after LIVE */
    /* sleeping producers: lowest position that the floor must reach to be worth a wake */
    _Alignas(64) shared_u64 space_need;
    shared_u32 space_event;
    shared_u32 join_event;
    /* CAS: 0 or slot and generation of the participant that makes a group */
    shared_u64 joiner;
    _Alignas(64) shared_u64 reaped; /* counters, statistics only */
    shared_u64 aborted;
    shared_u64 poison_reason;
    shared_u64 status_spare[5];
    unsigned char reserved[1024];
    /* the channel's settings as a control frame's body: for offers and statistics */
    unsigned char settings[SETTINGS_BYTES];
};

_Static_assert(sizeof(struct header) <= HEADER_BYTES, "the header is one page");
_Static_assert(sizeof(struct participant) == 64, "a participant is a cache line");
_Static_assert(sizeof(struct lease) == 64, "a lease is a cache line");
_Static_assert(sizeof(struct group) == 256, "a group is four cache lines");

/* Private to each process: derived from capacity and table sizes once, checked against the header at
 * attach. */
struct geometry {
    uint64_t capacity_bytes;
    uint64_t cells;
    uint64_t parking_bytes;
    uint64_t participants_at, leases_at, groups_at, claims_at, parking_at;
    uint64_t control_bytes; /* without parking: what is reserved at creation */
    uint64_t total_bytes;   /* with parking: the length of the control region */
    uint32_t participants, leases, groups;
    uint32_t cells_log2;
    uint32_t length_bits;
};

/* ---- claim words */
static inline uint64_t position_cell(const struct geometry *g, uint64_t position)
{
    return (position >> CELL_LOG2) & (g->cells - 1);
}
static inline uint64_t position_lap(const struct geometry *g, uint64_t position)
{
    return position >> (CELL_LOG2 + g->cells_log2);
}

static inline uint64_t claim_pack(const struct geometry *g, uint64_t position, uint32_t owner, uint64_t cells,
                                  enum claim_state state)
{
    return (uint64_t)state | (uint64_t)owner << 2 | (cells - 1) << 10 |
           position_lap(g, position) << (10 + g->length_bits);
}
static inline enum claim_state claim_state_of(uint64_t word) { return (enum claim_state)(word & 3); }
static inline uint32_t claim_owner(uint64_t word) { return (uint32_t)(word >> 2) & 0xff; }
static inline uint64_t claim_cells(const struct geometry *g, uint64_t word)
{
    return ((word >> 10) & ((UINT64_C(1) << g->length_bits) - 1)) + 1;
}
static inline uint64_t claim_lap(const struct geometry *g, uint64_t word)
{
    return word >> (10 + g->length_bits);
}
static inline uint64_t claim_with_state(uint64_t word, enum claim_state state)
{
    return (word & ~UINT64_C(3)) | (uint64_t)state;
}
/* Whether the word speaks of the record that starts at this very position. */
static inline bool claim_is_of(const struct geometry *g, uint64_t word, uint64_t position)
{
    return claim_state_of(word) != CLAIM_EMPTY && claim_lap(g, word) == position_lap(g, position);
}

/* ---- participant words */
static inline uint64_t slot_pack(enum participant_state state, uint32_t generation, uint32_t pid,
                                 uint64_t start)
{
    return (uint64_t)state | (uint64_t)(generation & ((1u << GENERATION_BITS) - 1)) << 2 |
           (uint64_t)(pid & ((1u << PID_BITS) - 1)) << (2 + GENERATION_BITS) |
           (start & ((UINT64_C(1) << START_BITS) - 1)) << (2 + GENERATION_BITS + PID_BITS);
}
static inline enum participant_state slot_state(uint64_t word) { return (enum participant_state)(word & 3); }
static inline uint32_t slot_generation(uint64_t word)
{
    return (uint32_t)(word >> 2) & ((1u << GENERATION_BITS) - 1);
}
static inline uint32_t slot_pid(uint64_t word)
{
    return (uint32_t)(word >> (2 + GENERATION_BITS)) & ((1u << PID_BITS) - 1);
}
static inline uint64_t slot_start_low(uint64_t word) { return word >> (2 + GENERATION_BITS + PID_BITS); }
static inline uint64_t slot_leaving(uint64_t word) { return word | 3; }
static inline uint64_t slot_freed(uint64_t word)
{
    return slot_pack(SLOT_FREE, slot_generation(word) + 1, 0, 0);
}
static inline enum participant_role info_role(uint64_t info) { return (enum participant_role)(info & 0xff); }
/* index + 1, or 0 */
static inline uint32_t info_group(uint64_t info) { return (uint32_t)(info >> 8) & 0xff; }

/* ---- owner words of leases and groups, and the join word: who (slot and generation) in bits that all
 * three share */
static inline uint64_t who_pack(uint32_t slot, uint32_t generation)
{
    return (uint64_t)slot << 4 | (uint64_t)generation << 12;
}
static inline uint64_t who_of(uint64_t word)
{
    return word & (((UINT64_C(1) << (8 + GENERATION_BITS)) - 1) << 4);
}
static inline uint32_t who_slot(uint64_t word) { return (uint32_t)(word >> 4) & 0xff; }
static inline enum owner_state owner_state_of(uint64_t word) { return (enum owner_state)(word & 3); }
static inline uint64_t owner_pack(enum owner_state state, uint64_t who, uint32_t group, uint32_t deliveries)
{
    return (uint64_t)state | who | (uint64_t)group << 32 | (uint64_t)deliveries << 40;
}
static inline uint32_t owner_group(uint64_t word) { return (uint32_t)(word >> 32) & 0xff; }
static inline uint32_t owner_deliveries(uint64_t word) { return (uint32_t)(word >> 40) & 0xff; }
static inline enum group_state group_state_of(uint64_t word) { return (enum group_state)(word & 15); }
static inline bool group_holds_back(enum group_state state)
{
    return state >= GROUP_HELD && state <= GROUP_PRIVATE;
}

/* ---- record header (`head` in the code): its relaxed stores and the payload come before the store of
 * COMMITTED, which pairs with the load of the claim word; the acquire
 * load of its first word only keeps what follows behind it. First word length:48 | codec:8 | flags:8; second
 * word sequence:39 | slot:8 | generation:17 of its producer */
#define RECORD_LENGTH_BITS 48u
static inline uint64_t record_pack(uint64_t length, uint32_t codec)
{
    return length | (uint64_t)codec << RECORD_LENGTH_BITS;
}
static inline uint64_t record_length(uint64_t word)
{
    return word & ((UINT64_C(1) << RECORD_LENGTH_BITS) - 1);
}
static inline uint32_t record_codec(uint64_t word) { return (uint32_t)(word >> RECORD_LENGTH_BITS) & 0xff; }
static inline uint64_t origin_pack(uint64_t sequence, uint32_t slot, uint32_t generation)
{
    return (sequence & ((UINT64_C(1) << 39) - 1)) | (uint64_t)slot << 39 | (uint64_t)generation << 47;
}
static inline uint64_t origin_sequence(uint64_t word) { return word & ((UINT64_C(1) << 39) - 1); }
static inline uint32_t origin_slot(uint64_t word) { return (uint32_t)(word >> 39) & 0xff; }
static inline uint32_t origin_generation(uint64_t word) { return (uint32_t)(word >> 47); }

static inline uint64_t record_cells(uint64_t payload_bytes)
{
    return (payload_bytes + RECORD_HEADER_BYTES + CELL_BYTES - 1) >> CELL_LOG2;
}

#endif
