/* ring_scenarios.c: the ring core itself, explored exhaustively at small sizes.
 *
 * There is no second description of the protocol that could differ from the code: the scenarios below run
 * the files of shmbus/_native, compiled with SHMBUS_MODEL, under explore.c.
 * Each access to shared memory that others can notice is a step; whoever is MORTAL can die before any of
 * them, and asleep. Waits have no time slices (os_slice_ns = -1), so a wake that is
 * missed is a violation and not a delay; the dead are found by a broker, a daemon process that reaps
 * whenever somebody has died, and may be doubled, and may die. In the scenarios with slices there is
 * no broker, and whoever waits looks who blocks it.
 *
 *   ring_model short|long list             each scenario: its key, its bound in that set, its name
 *   ring_model short|long all|KEY [option] all of the set, or one; options are the explorer's:
 *   --preemptions, --stats, --quiet, …
 *
 * ALL in a set means: searched out. A number is a bound on preemptions (every schedule in which a process
 * that could go on is left for another at most so often; no livelocks are sought). WALKS: too large for either;
 * thousands of random schedules.
 */
#include "ring_model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { ALL = -1, WALKS = -2, SHORT_WALKS = 2000, LONG_WALKS = 40000 };

#define HEADER_HOT offsetof(struct header, tail)
#define BLOCKS                                                                                               \
    .blocks = {control_memory + HEADER_HOT,                                                                  \
               control_memory + HEADER_BYTES,                                                                \
               data_memory,                                                                                  \
               rings,                                                                                        \
               producers,                                                                                    \
               consumers,                                                                                    \
               tickets,                                                                                      \
               &ghost,                                                                                       \
               control_memory + HEADER_BYTES + 4096,                                                         \
               control_memory + HEADER_BYTES + 4096 + PARKING_BYTES},                                        \
    .block_bytes = {offsetof(struct header, reserved) - HEADER_HOT,                                          \
                    TABLE_BYTES,                                                                             \
                    MOST_CELLS * CELL_BYTES,                                                                 \
                    sizeof rings,                                                                            \
                    sizeof producers,                                                                        \
                    sizeof consumers,                                                                        \
                    sizeof tickets,                                                                          \
                    sizeof ghost,                                                                            \
                    MOST_PAYLOAD,                                                                            \
                    MOST_PAYLOAD},                                                                           \
    .block_names = {"header",    "tables",  "data",  "rings",     "producers",                               \
                    "consumers", "tickets", "ghost", "parking 0", "parking 1"}

/* clang-format off */
/* Who takes part: what it does, with what, whether it may die. */
#define LIVES(run) {run, NULL, false, false}
#define MORTAL(run) {run, NULL, true, false}
#define LIVES_WITH(run, arg) {run, arg, false, false}
#define MORTAL_WITH(run, arg) {run, arg, true, false}
#define BROKER {run_broker, NULL, false, true}
#define MORTAL_BROKER {run_broker, NULL, true, true}

/* A set-up: who is attached already (process numbers are those of the scenario), and the options. */
#define SETUP(name, attached, ...) static void name(void) { static const struct options options = {__VA_ARGS__}; set_up(&options); attached }
#define SMALL .cells = 2, .leases = 2, .payload_bytes = 16, .max_deliveries = 5
#define ENDS .ends_with_producers = true
#define CROWD .cells = 4, .leases = 6, .payload_bytes = 16, .max_deliveries = 5, ENDS, .participants = 6, .groups = 1, .messages = 2, .filled = 3
#define P(who) attach_producer(who);
#define C(who, group) attach_consumer(who, group, false);

SETUP(two_to_one, P(0) P(1) C(2, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1, .filled = 1)
SETUP(one_to_one, P(0) C(1, "a"), SMALL, ENDS, .participants = 2, .groups = 1, .messages = 2, .filled = 1)
SETUP(one_to_one_empty, P(0) C(1, "a"), SMALL, ENDS, .participants = 2, .groups = 1, .messages = 2, .to_receive = 2, .to_send = 2)
SETUP(one_to_two, P(0) C(1, "a") C(2, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1, .filled = 2)
SETUP(one_to_two_empty, P(0) C(1, "a") C(2, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1)
SETUP(one_to_one_watched, P(0) C(1, "a") C(2, "b"), SMALL, ENDS, .participants = 3, .groups = 2, .messages = 1, .to_receive = 1, .to_send = 1)
SETUP(one_to_two_leased, P(0) C(1, "a") C(2, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1, .filled = 2, .takes_leases = true)
SETUP(one_to_one_leased, P(0) C(1, "a"), SMALL, ENDS, .participants = 2, .groups = 1, .messages = 1, .filled = 2, .takes_leases = true)
SETUP(two_to_full, P(0) P(1) C(2, "a"), SMALL, .participants = 3, .groups = 1, .messages = 1, .filled = 2, .to_receive = 4, .to_send = 2)
SETUP(two_to_full_once, P(0) P(1) C(2, "a"), SMALL, .participants = 3, .groups = 1, .messages = 1, .filled = 2, .to_receive = 2, .to_send = 2)
SETUP(two_alone, P(0) P(1), SMALL, ENDS, .participants = 2, .groups = 1, .messages = 1)
SETUP(busy, P(0) P(1) C(2, "a") C(3, "a") claim_ahead(0, true); claim_ahead(1, true);, SMALL, .participants = 4, .groups = 1, .messages = 1, .to_receive = 2, .to_send = 2)
SETUP(long_records, P(0) P(1) C(2, "a"), .cells = 4, .leases = 1, .payload_bytes = 80, ENDS, .participants = 3, .groups = 1, .messages = 1, .filled = 1)
SETUP(two_groups, P(0) C(1, "a") C(2, "b"), SMALL, ENDS, .participants = 3, .groups = 2, .messages = 1, .filled = 2)
SETUP(leftovers, C(0, "a") C(1, "a"), SMALL, .participants = 2, .groups = 1, .messages = 1, .filled = 1, .is_closed = true, .acks_done = true)
SETUP(leftovers_of_two, C(0, "a") C(1, "a"), SMALL, .participants = 2, .groups = 1, .messages = 1, .filled = 2, .is_closed = true, .acks_done = true)
SETUP(leftovers_parked, C(0, "a") C(1, "a"), SMALL, .participants = 2, .groups = 1, .messages = 1, .filled = 1, .is_closed = true, .acks_done = true, .parks = true)
SETUP(leftovers_of_three, C(0, "a") C(1, "a") C(2, "a"), .cells = 2, .leases = 3, .payload_bytes = 16, .max_deliveries = 5, .participants = 3, .groups = 1, .messages = 1, .filled = 1, .is_closed = true, .acks_done = true)
SETUP(leftovers_leased, C(0, "a") C(1, "a"), SMALL, .participants = 2, .groups = 1, .messages = 1, .filled = 2, .is_closed = true, .takes_leases = true)
SETUP(leftovers_dropped, C(0, "a") C(1, "a"), SMALL, .participants = 2, .groups = 1, .messages = 1, .filled = 2, .is_closed = true, .takes_leases = true, .drops_orphans = true)
SETUP(leftovers_delivered_once, C(0, "a") C(1, "a"), .cells = 2, .leases = 2, .payload_bytes = 16, .max_deliveries = 0, .participants = 2, .groups = 1, .messages = 1, .filled = 1, .is_closed = true,
      .acks_done = true)
SETUP(parking, P(0) C(1, "a") C(2, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1, .filled = 2, .acks_done = true, .parks = true)
SETUP(redelivery, P(0) C(1, "a") C(2, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1, .filled = 2, .acks_done = true)
SETUP(joins, P(0) P(1) C(2, "a") claim_ahead(0, false);, SMALL, .participants = 4, .groups = 1, .messages = 1, .filled = 1, .to_receive = 3, .to_send = 2)
SETUP(joins_one, P(0) C(1, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1, .filled = 2)
SETUP(held, P(0), SMALL, ENDS, .participants = 3, .messages = 1, .filled = 1, .holds = true)
SETUP(held_closed, {}, SMALL, .participants = 2, .messages = 1, .filled = 1, .holds = true, .is_closed = true)
SETUP(joiners, {}, SMALL, .participants = 2, .messages = 1, .is_closed = true)
SETUP(nobody, P(0) P(1), SMALL, ENDS, .participants = 2, .messages = 2)
SETUP(nobody_of_two, P(0) P(1), SMALL, ENDS, .participants = 3, .messages = 1, .filled = 1)
SETUP(nobody_joined, P(0), SMALL, ENDS, .participants = 2, .messages = 3, .filled = 1)
SETUP(slot_reuse, P(0), SMALL, .participants = 1, .groups = 1, .messages = 1)
SETUP(lease_reuse, C(0, "a"), SMALL, .participants = 1, .groups = 1, .messages = 1, .filled = 1, .is_closed = true, .acks_done = true)
SETUP(lossy, P(0) attach_consumer(1, NULL, true);, SMALL, ENDS, .participants = 2, .messages = 3, .filled = 1)
SETUP(closing, P(0) C(1, "a"), SMALL, .participants = 2, .groups = 1, .messages = 1)
SETUP(closing_full, P(0) C(1, "a"), SMALL, .participants = 2, .groups = 1, .messages = 1, .filled = 2)
SETUP(dropping, P(0) C(1, "a"), SMALL, ENDS, .participants = 2, .groups = 1, .messages = 2, .filled = 2)
SETUP(dropping_leased, C(0, "a"), SMALL, .participants = 1, .groups = 1, .messages = 1, .filled = 2, .is_closed = true, .acks_done = true)
SETUP(private_full, P(0) C(1, NULL), SMALL, ENDS, .participants = 2, .messages = 3)
SETUP(giving_back, C(0, "a") C(1, "a"), SMALL, .participants = 2, .groups = 1, .messages = 1, .filled = 2, .is_closed = true, .acks_done = true)
SETUP(ticket, attach_ticket(1); C(2, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1)
SETUP(late_producer, C(1, "a"), SMALL, ENDS, .participants = 2, .groups = 1, .messages = 1)
SETUP(only_one_producer, {}, SMALL, .participants = 2, .groups = 1, .messages = 1, .one_producer = true)
SETUP(slices, P(0) C(1, "a"), SMALL, ENDS, .participants = 2, .groups = 1, .messages = 1, .filled = 2, .has_slices = true)
SETUP(slices_leased, P(0) C(1, "a") C(2, "a"), SMALL, ENDS, .participants = 3, .groups = 1, .messages = 1, .filled = 2, .takes_leases = true, .has_slices = true)
SETUP(slices_joiners, {}, SMALL, .participants = 2, .messages = 1, .is_closed = true, .has_slices = true)

#define CROWD_ATTACHED P(0) P(1) C(2, "a") C(3, "a") C(4, "a")
SETUP(crowd, CROWD_ATTACHED, CROWD)
SETUP(crowd_leased, CROWD_ATTACHED, CROWD, .takes_leases = true)
SETUP(crowd_done, CROWD_ATTACHED, CROWD, .acks_done = true)
SETUP(crowd_parked, CROWD_ATTACHED, CROWD, .acks_done = true, .parks = true)
SETUP(crowd_dropping, CROWD_ATTACHED, CROWD, .takes_leases = true, .drops_orphans = true)
#define CROWD_OF MORTAL(run_producer), MORTAL(run_producer), MORTAL(run_consumer), MORTAL(run_consumer), LIVES(run_consumer), MORTAL(run_consumer_that_joins), BROKER, MORTAL_BROKER

static const struct entry {
    const char *key;
    int in_short, in_long;
    struct scenario model;
} entries[] = {
#define ENTRY(key, in_short, in_long, name, setup, deaths, nprocs, ...) {key, in_short, in_long, {name, setup, nprocs, {__VA_ARGS__}, deaths, BLOCKS, .invariant = invariant, .final = final_all}}
#define NO_BROKER(key, in_short, in_long, name, setup, deaths, nprocs, ...) {key, in_short, in_long, {name, setup, nprocs, {__VA_ARGS__}, deaths, BLOCKS, .invariant = invariant, .final = final_delivery}}
    ENTRY("one-to-one", ALL, ALL, "one producer and one consumer, the producer may die", one_to_one, 1, 3, MORTAL(run_producer), LIVES(run_consumer), BROKER),
    ENTRY("one-to-one-empty", ALL, ALL, "one producer and one consumer that waits for records", one_to_one_empty, 0, 2, LIVES(run_producer_that_stays), LIVES(run_consumer)),
    ENTRY("two-to-one", 1, 2, "two producers that compete for the last cell, either may die", two_to_one, 1, 4, MORTAL(run_producer), MORTAL(run_producer), LIVES(run_consumer), BROKER),
    ENTRY("two-to-one-alive", 2, 4, "two producers that compete for the last cell", two_to_one, 0, 3, LIVES(run_producer), LIVES(run_producer), LIVES(run_consumer)),
    NO_BROKER("full", 2, ALL, "two producers that wait for space, and stay when they have sent", two_to_full, 0, 3, LIVES(run_producer_that_stays), LIVES(run_producer_that_stays), LIVES(run_consumer_that_stays)),
    NO_BROKER("full-once", ALL, ALL, "two producers that wait for space, and a consumer that makes just enough", two_to_full_once, 0, 3, LIVES(run_producer_that_stays), LIVES(run_producer_that_stays),
              LIVES(run_consumer_that_stays)),
    NO_BROKER("stopped", ALL, ALL, "a producer that stops anywhere keeps no other from sending", two_alone, 1, 2, MORTAL(run_producer), LIVES(run_producer)),
    ENTRY("long-records", 1, 2, "records of two cells, across the end of the ring", long_records, 1, 4, MORTAL(run_producer), MORTAL(run_producer), LIVES(run_consumer), BROKER),
    ENTRY("one-to-two", 2, 3, "two consumers of a group", one_to_two, 0, 3, LIVES(run_producer), LIVES(run_consumer), LIVES(run_consumer)),
    ENTRY("one-to-two-dying", 1, 2, "two consumers of a group, one or the producer may die", one_to_two, 1, 4, MORTAL(run_producer), MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("sleepers-dying", 1, 3, "two sleeping consumers, one or the producer may die", one_to_two_empty, 1, 4, MORTAL(run_producer), MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    NO_BROKER("busy", 2, ALL, "a member that works on one record does not keep the next from its colleague", busy, 0, 4, LIVES(run_producer_that_claimed), LIVES(run_producer_that_claimed),
              LIVES(run_busy_consumer), LIVES(run_busy_consumer)),
    ENTRY("leased", ALL, ALL, "a consumer that takes leases from a full ring", one_to_one_leased, 0, 2, LIVES(run_producer), LIVES(run_consumer)),
    ENTRY("leases", 2, 3, "two consumers that take leases", one_to_two_leased, 0, 3, LIVES(run_producer), LIVES(run_consumer), LIVES(run_consumer)),
    ENTRY("leases-dying", 1, 2, "two consumers that take leases, one may die", one_to_two_leased, 1, 4, LIVES(run_producer), MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("two-groups", 2, 4, "two groups", two_groups, 0, 3, LIVES(run_producer), LIVES(run_consumer), LIVES(run_consumer)),
    ENTRY("redelivery", 1, 2, "ack=done: a consumer may die, and its records come again", redelivery, 1, 4, LIVES(run_producer), MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("acknowledged", ALL, ALL, "ack=done: two consumers share what is left", leftovers_of_two, 0, 2, LIVES(run_consumer), LIVES(run_consumer)),
    ENTRY("redelivered", ALL, ALL, "ack=done: a consumer may die, another finishes its work", leftovers, 1, 3, MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("parked", ALL, ALL, "a consumer may die with a parked record", leftovers_parked, 1, 3, MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("two-reapers", 1, 3, "ack=done: a consumer may die, and two reap at once", leftovers, 1, 4, MORTAL(run_consumer), LIVES(run_consumer), BROKER, BROKER),
    ENTRY("reaper-dies", 1, 2, "ack=done: a consumer may die, two reap at once, and one of them may die", leftovers, 2, 4, MORTAL(run_consumer), LIVES(run_consumer), BROKER, MORTAL_BROKER),
    NO_BROKER("reaper-wakes", 1, 2, "two reap at once, one of them dies, and a consumer goes to sleep meanwhile", one_to_one_watched, 2, 5, LIVES(run_producer_that_stays), LIVES(run_consumer_that_stays),
              MORTAL(run_consumer), BROKER, MORTAL_BROKER),
    ENTRY("adopter-dies", 1, 2, "ack=done: the adopter may die too", leftovers_of_three, 2, 4, MORTAL(run_consumer), MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("leased-leftovers", ALL, ALL, "a consumer may die with a lease", leftovers_leased, 1, 3, MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("dropped-orphans", ALL, ALL, "on_consumer_death=drop: at most once", leftovers_dropped, 1, 3, MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("max-deliveries", ALL, ALL, "a record that was delivered too often is dropped", leftovers_delivered_once, 1, 3, MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    ENTRY("giving-back", ALL, ALL, "a consumer leaves and gives its record back", giving_back, 1, 3, MORTAL(run_consumer_that_gives_back), LIVES(run_consumer), BROKER),
    ENTRY("parking", 1, 2, "parked records make room, and come again", parking, 1, 4, LIVES(run_producer), MORTAL(run_consumer), LIVES(run_consumer), BROKER),
    NO_BROKER("joins", 2, 3, "a group joins while two producers send and another group receives", joins, 0, 4, LIVES(run_producer_that_claimed), LIVES(run_producer_that_stays),
              LIVES(run_consumer_that_stays), LIVES(run_joiner)),
    ENTRY("joins-named", 2, 3, "a named group joins", joins_one, 0, 3, LIVES(run_producer), LIVES(run_consumer), LIVES_WITH(run_consumer_that_joins, "b")),
    ENTRY("joins-dying", 1, 2, "a private group joins, and may die", joins_one, 1, 4, LIVES(run_producer), LIVES(run_consumer), MORTAL(run_consumer_that_joins), BROKER),
    ENTRY("joiners", ALL, ALL, "two join the same new group at once, one may die", joiners, 1, 3, MORTAL_WITH(run_consumer_that_joins, "a"), LIVES_WITH(run_consumer_that_joins, "a"), BROKER),
    ENTRY("held", ALL, ALL, "two join at once what was held, one may die", held_closed, 1, 3, MORTAL_WITH(run_consumer_that_joins, "a"), LIVES_WITH(run_consumer_that_joins, "a"), BROKER),
    ENTRY("held-sent", 2, 3, "two join at once what is held, while a producer sends", held, 0, 3, LIVES(run_producer), LIVES_WITH(run_consumer_that_joins, "a"), LIVES(run_consumer_that_joins)),
    ENTRY("nobody", ALL, ALL, "no group at all, a producer may die", nobody, 1, 3, MORTAL(run_producer), MORTAL(run_producer), BROKER),
    ENTRY("nobody-joined", ALL, ALL, "no group, then one joins", nobody_joined, 0, 2, LIVES(run_producer), LIVES(run_consumer_that_joins)),
    ENTRY("nobody-joined-two", 2, ALL, "no group and two producers, then one joins", nobody_of_two, 0, 3, LIVES(run_producer), LIVES(run_producer), LIVES(run_consumer_that_joins)),
    ENTRY("slot-reuse", 2, 3, "a dead producer's slot is used again while two reap", slot_reuse, 1, 4, MORTAL(run_producer), LIVES(run_producer_that_attaches), BROKER, BROKER),
    ENTRY("lease-reuse", ALL, ALL, "a dead consumer's slot and lease are used again", lease_reuse, 1, 3, MORTAL(run_consumer), LIVES_WITH(run_consumer_that_joins, "a"), BROKER),
    ENTRY("lease-reuse-two", 2, 3, "a dead consumer's slot and lease are used again while two reap", lease_reuse, 1, 4, MORTAL(run_consumer), LIVES_WITH(run_consumer_that_joins, "a"), BROKER, BROKER),
    ENTRY("lossy", ALL, ALL, "a lossy reader", lossy, 1, 3, LIVES(run_producer), MORTAL(run_consumer), BROKER),
    ENTRY("closing", ALL, ALL, "the channel is closed meanwhile", closing, 0, 3, LIVES(run_producer), LIVES(run_consumer), LIVES(run_closer)),
    ENTRY("closing-full", ALL, ALL, "the channel is closed while a producer waits for space", closing_full, 0, 3, LIVES(run_producer), LIVES(run_consumer), LIVES(run_closer)),
    ENTRY("dropping", 2, ALL, "the group is dropped meanwhile", dropping, 0, 3, LIVES(run_producer), LIVES(run_consumer), LIVES(run_dropper)),
    ENTRY("dropping-leased", ALL, ALL, "the group is dropped while a consumer holds a record, and may die", dropping_leased, 1, 3, MORTAL(run_consumer), LIVES(run_dropper), BROKER),
    ENTRY("private-full", ALL, ALL, "a private group leaves a full ring, or dies", private_full, 1, 3, LIVES(run_producer), MORTAL(run_consumer_of_one), BROKER),
    ENTRY("ticket", ALL, ALL, "a ticket keeps the channel from ending before its worker has attached", ticket, 1, 4, MORTAL(run_producer_that_attaches), LIVES_WITH(run_ticket_holder, (void *)0),
          LIVES(run_consumer), BROKER),
    ENTRY("late-producer", ALL, ALL, "the channel does not end before its first producer has come", late_producer, 1, 3, LIVES(run_producer_that_attaches), LIVES(run_consumer), BROKER),
    ENTRY("one-producer", ALL, ALL, "producers=one: two attach at once, one may die", only_one_producer, 1, 3, MORTAL(run_producer_that_attaches), LIVES(run_producer_that_attaches), BROKER),
    NO_BROKER("slices", ALL, ALL, "without a broker: whoever waits finds the dead", slices, 1, 2, MORTAL(run_producer), LIVES(run_consumer)),
    NO_BROKER("slices-leased", 1, 2, "without a broker: a dead holder of a lease is found", slices_leased, 1, 3, LIVES(run_producer), MORTAL(run_consumer), LIVES(run_consumer)),
    NO_BROKER("slices-joiners", ALL, ALL, "without a broker: a dead joiner is found", slices_joiners, 1, 2, MORTAL_WITH(run_consumer_that_joins, "a"), LIVES_WITH(run_consumer_that_joins, "a")),
    ENTRY("crowd", WALKS, WALKS, "a crowd, three of whom may die", crowd, 3, 8, CROWD_OF),
    ENTRY("crowd-leased", WALKS, WALKS, "a crowd that takes leases", crowd_leased, 3, 8, CROWD_OF),
    ENTRY("crowd-done", WALKS, WALKS, "a crowd with ack=done", crowd_done, 3, 8, CROWD_OF),
    ENTRY("crowd-parked", WALKS, WALKS, "a crowd that parks", crowd_parked, 3, 8, CROWD_OF),
    ENTRY("crowd-dropping", WALKS, WALKS, "a crowd with on_consumer_death=drop", crowd_dropping, 3, 8, CROWD_OF),
};

/* clang-format on */

enum { ENTRIES = sizeof entries / sizeof entries[0], MOST_ARGUMENTS = 32 };

/* Runs the explorer in a child process, on what is known; its output goes to `output`. */
static int explore(const struct entry *entry, struct knowledge *known, int output, char **arguments)
{
    int status = 0, count = 0;
    while (arguments[count])
        count++;
    fflush(NULL);
    if (ftruncate(output, 0) != 0 || lseek(output, 0, SEEK_SET) != 0)
        abort();
    pid_t child = fork();
    if (child == 0) {
        dup2(output, 1);
        knowledge_begin(known, &entry->model);
        exit(model_main(count, arguments, &entry->model, 1));
    }
    if (child < 0 || waitpid(child, &status, 0) != child)
        abort();
    return WIFEXITED(status) ? WEXITSTATUS(status) : 2;
}

/* One scenario: random walks to find most of the words that matter, then searches until no more are found.
 * What the last one printed counts; a violation counts at once. */
static int check(const struct entry *entry, bool is_long, int argc, char **argv)
{
    int bound = is_long ? entry->in_long : entry->in_short;
    char output[] = "/tmp/shmbus-model-XXXXXX", number[16];
    char *walks[] = {argv[0], "--random", "1", "300", "--quiet", NULL};
    char *search[MOST_ARGUMENTS] = {argv[0]};
    int count = 1, status;
    if (bound >= 0) {
        snprintf(number, sizeof number, "%d", bound);
        search[count++] = "--preemptions";
        search[count++] = number;
    } else if (bound == WALKS) {
        snprintf(number, sizeof number, "%d", is_long ? LONG_WALKS : SHORT_WALKS);
        search[count++] = "--random";
        search[count++] = "1";
        search[count++] = number;
    }
    for (int i = 3; i < argc && count + 1 < MOST_ARGUMENTS; i++)
        search[count++] = argv[i];
    int fd = mkstemp(output);
    if (fd < 0)
        abort();
    unlink(output);
    struct knowledge *known = knowledge_new();
    explore(entry, known, fd, walks);
    do
        status = explore(entry, known, fd, search);
    while (status == 0 && knowledge_grew(known));
    lseek(fd, 0, SEEK_SET);
    char text[4096];
    for (ssize_t n; (n = read(fd, text, sizeof text)) > 0;)
        fwrite(text, 1, (size_t)n, stdout);
    fflush(stdout);
    close(fd);
    return status;
}

int main(int argc, char **argv)
{
    int worst = 0;
    bool found = false;
    bool is_short = argc >= 3 && strcmp(argv[1], "short") == 0,
         is_long = argc >= 3 && strcmp(argv[1], "long") == 0;
    if (!is_short && !is_long) {
        fprintf(stderr, "usage: %s short|long list|all|KEY [options of the explorer]\n", argv[0]);
        return 2;
    }
    for (int i = 0; i < ENTRIES; i++) {
        const struct entry *entry = &entries[i];
        int bound = is_long ? entry->in_long : entry->in_short;
        if (strcmp(argv[2], "list") == 0) {
            printf("%s\t%d\t%s\n", entry->key, bound, entry->model.name);
            found = true;
        } else if (strcmp(argv[2], "all") == 0 || strcmp(argv[2], entry->key) == 0) {
            int status = check(entry, is_long, argc, argv);
            worst = status > worst ? status : worst;
            found = true;
        }
    }
    if (!found)
        fprintf(stderr, "%s: no scenario is called %s\n", argv[0], argv[2]);
    return found ? worst : 2;
}
