/* ring_model.h: what the files of the ring's model share.
 *
 *   model_os.c        the operating system, and which accesses are points
 *   model_people.c    what producers, consumers, brokers … do, step by step as py_*.c does it
 *   model_checks.c    the first state of a scenario; what must hold in every state, and at the end
 *   ring_scenarios.c  the scenarios, and what is checked by them in words
 */
#ifndef SHMBUS_RING_MODEL_H
#define SHMBUS_RING_MODEL_H

#include "explore.h"
#include "os.h"
#include "ring.h"

enum {
    MOST_CELLS = 4,
    MOST_PARTICIPANTS = 6,
    MOST_LEASES = 6,
    MOST_GROUPS = 2,
    PROCS = MODEL_PROCS,
    MOST_IDS = 16,
    FILLED_IDS = 12, /* from here on: records that were sent before the scenario begins */
    AUDIENCES = MOST_GROUPS +
        PROCS, /* a named group is one audience, and so is each private or lossy consumer */
    MOST_PAYLOAD = 80,
    PARKING_BYTES = 4096,
    TABLE_BYTES = MOST_PARTICIPANTS * 64 + MOST_LEASES * 64 + MOST_GROUPS * 256 + MOST_CELLS * 8,
    CONTROL_BYTES = HEADER_BYTES + 4096 + MOST_LEASES * PARKING_BYTES,
};

struct options {
    int cells, participants, leases, groups; /* sizes; `groups` of them are declared, as "a" and "b" */
    int messages;                            /* that each producer sends */
    int to_receive, to_send; /* for those who stay until so many records were received and sent */
    int filled;              /* records that lie in the ring at the beginning */
    int payload_bytes;
    int max_deliveries;
    bool acks_done, takes_leases, parks; /* how consumers receive */
    bool ends_with_producers, is_closed, holds, drops_orphans, one_producer;
    bool has_slices; /* sleeps may end by themselves, and there is no broker */
};

/* What happened, for the checks. Nobody's memory, but part of the state. */
struct ghost {
    uint16_t joined, ended; /* audiences that have joined; of which somebody has received until the end */
    uint16_t due[MOST_IDS]; /* audiences that had joined before this send began */
    unsigned char sent[MOST_IDS];                /* send has returned */
    unsigned char at[MOST_IDS];                  /* the cell of its position, counted on over the laps */
    unsigned char refused[MOST_IDS];             /* send has returned Closed */
    unsigned char received[AUDIENCES][MOST_IDS]; /* deliveries that were finished */
    signed char last[PROCS][PROCS + 1];          /* consumer x producer: the last sequence seen */
    unsigned char inside;                        /* producers that are attached under producers="one" */
};

extern unsigned char control_memory[CONTROL_BYTES], data_memory[2 * MOST_CELLS * CELL_BYTES];
extern struct ring rings[PROCS];
extern struct producer producers[PROCS];
extern struct consumer consumers[PROCS];
extern struct member tickets[PROCS];
extern struct claim claims[PROCS]; /* made during set-up, not changed afterwards */
extern struct ghost ghost;
extern struct options now;
extern struct geometry g;
extern int acting; /* who attaches during set-up, or -1 */

/* model_os.c */
struct knowledge;
struct knowledge *knowledge_new(void);
void knowledge_begin(struct knowledge *known, const struct scenario *scenario);
bool knowledge_grew(const struct knowledge *known);
void must(bool holds, const char *what);

/* model_checks.c */
void set_up(const struct options *options);
void attach_producer(int who);
void claim_ahead(int who, bool moves_tail);
void attach_ticket(int who);
void attach_consumer(int who, const char *group, bool lossy);
int audience_of(int who);
void invariant(void);
void final_all(void);
void final_delivery(void);

/* model_people.c */
void run_producer(void *none);
void run_producer_that_attaches(void *none);
void run_producer_that_closes(void *none);
void run_producer_that_stays(void *none);
void run_producer_that_claimed(void *none);
void run_ticket_holder(void *child);
void run_consumer(void *none);
void run_busy_consumer(void *none);
void run_consumer_that_joins(void *group);
void run_consumer_that_stays(void *none);
void run_joiner(void *group);
void run_consumer_of_one(void *none);
void run_consumer_that_gives_back(void *none);
void run_closer(void *none);
void run_dropper(void *none);
void run_broker(void *none);

#endif
