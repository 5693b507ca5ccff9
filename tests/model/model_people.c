/* What producers, consumers, brokers and others do in the model: step by step what py_producer.c,
 * py_consumer.c and the broker do with the core. */
#include "ring_model.h"

static void fill(unsigned char *payload, int id) { memset(payload, 0x40 + id, (size_t)now.payload_bytes); }

static int id_of(const struct record *record, const unsigned char *payload)
{
    uint64_t length = record->length;
    for (uint64_t i = 1; i < length; i++)
        must(payload[i] == payload[0], "torn: a record's bytes are of different records");
    must(length == (uint64_t)now.payload_bytes, "a record of another length than any that was sent");
    must(payload[0] >= 0x40 && payload[0] < 0x40 + MOST_IDS, "invented: nobody sent this record");
    must(ghost.at[payload[0] - 0x40] == (unsigned char)(record->position / CELL_BYTES),
         "the record of another place");
    return payload[0] - 0x40;
}

/* ---- producers */

/* What follows a claim. */
static void write_and_commit(int who, int id, const struct claim *claim)
{
    struct producer *producer = &producers[who];
    unsigned char payload[MOST_PAYLOAD];
    fill(payload, id);
    ghost.at[id] = (unsigned char)(claim->position / CELL_BYTES);
    copy_shared(claim->payload, payload, (size_t)now.payload_bytes);
    must(*claim_at(producer->member.ring, claim->position) == claim->word,
         "somebody settled the claim of a living producer");
    producer_commit(producer, claim, (uint64_t)now.payload_bytes, 0);
    ghost.sent[id] = 1;
}

/* One message of `who`; false if the channel is closed. */
static bool send_one(int who, int sequence)
{
    struct producer *producer = &producers[who];
    int id = who * now.messages + sequence;
    struct claim claim;
    ghost.due[id] = ghost.joined;
    model_label("send");
    for (;;) {
        enum ring_result result = producer_claim(producer, (uint64_t)now.payload_bytes, &claim);
        if (result == RING_CLOSED) {
            ghost.refused[id] = 1;
            return false;
        }
        must(result == RING_OK || result == RING_WOULD_BLOCK || result == RING_RETRY,
             "send fails for another reason than space");
        if (result == RING_OK)
            break;
        if (result == RING_RETRY) {
            model_step();
            continue;
        }
        model_label("wait for space");
        producer_wait(producer, (uint64_t)now.payload_bytes, -1);
    }
    write_and_commit(who, id, &claim);
    return true;
}

static void produce(int who)
{
    for (int i = 0; i < now.messages; i++)
        if (!send_one(who, i))
            break;
    model_label("producer leaves");
    producer_detach(&producers[who]);
}

void run_producer(void *none)
{
    (void)none;
    produce(model_self());
}

static bool a_slot_is_free(void *none)
{
    (void)none;
    for (uint32_t i = 0; i < g.participants; i++)
        if (slot_state(load_relaxed(&rings[0].participants[i].word)) == SLOT_FREE)
            return true;
    return false;
}

static void attach_and_produce(bool closes)
{
    int me = model_self();
    enum ring_result result;
    model_label("producer attaches");
    while ((result = producer_attach(&producers[me], &rings[me])) == RING_NO_SLOT)
        model_wait(a_slot_is_free, NULL);
    if (result == RING_SECOND_PRODUCER)
        return;
    must(result == RING_OK, "a producer cannot attach");
    if (now.one_producer) {
        ghost.inside |= (unsigned char)(1 << me);
        must((ghost.inside & model_active()) == 1u << me, "two producers under producers=\"one\"");
    }
    for (int i = 0; i < now.messages; i++)
        if (!send_one(me, i))
            break;
    ghost.inside &= (unsigned char)~(1 << me);
    if (closes)
        ring_close(&rings[me]);
    model_label("producer leaves");
    producer_detach(&producers[me]);
}

void run_producer_that_attaches(void *none)
{
    (void)none;
    attach_and_produce(false);
}

/* The last to come, in scenarios in which others may come and go before it: ends the channel. */
void run_producer_that_closes(void *none)
{
    (void)none;
    attach_and_produce(true);
}

/* As many as the scenario wants have come to somebody … */
static bool all_are_received(void *none)
{
    (void)none;
    int count = 0;
    for (int id = 0; id < MOST_IDS; id++)
        count += ghost.received[0][id];
    return count >= now.to_receive;
}

/* … and as many as it wants were sent. */
static bool all_is_done(void *none)
{
    int count = 0;
    for (int id = 0; id < FILLED_IDS; id++)
        count += ghost.sent[id];
    return count >= now.to_send && all_are_received(none);
}

/* Does not leave, which would wake everybody, before all is done. */
void run_producer_that_stays(void *none)
{
    int me = model_self();
    for (int i = 0; i < now.messages; i++)
        send_one(me, i);
    model_label("stays");
    model_wait(all_is_done, none);
    producer_detach(&producers[me]);
}

/* Has made its claim (claim_ahead); whether the tail has moved is for the scenario to say. Does not leave. */
void run_producer_that_claimed(void *none)
{
    (void)none;
    int me = model_self();
    const struct claim *claim = &claims[me];
    model_label("send, claimed");
    cas_sc(&rings[me].header->tail, claim->position,
           claim->position + claim_cells(&g, claim->word) * CELL_BYTES);
    write_and_commit(me, me * now.messages, claim);
}

static bool child_has_ended(void *child)
{
    int process = (int)(intptr_t)child;
    return model_is_finished(process) || model_is_dead(process);
}

/* The parent of a worker: its ticket keeps the channel from ending before the worker has. */
void run_ticket_holder(void *child)
{
    model_label("ticket");
    model_wait(child_has_ended, child);
    member_detach(&tickets[model_self()]);
}

/* ---- consumers */

static void finished(int me, int id)
{
    unsigned char *times = &ghost.received[audience_of(me)][id];
    if (*times < 100)
        ++*times;
}

static void check_order(int me, int id)
{
    int from = id >= FILLED_IDS ? PROCS : id / now.messages;
    int sequence = id >= FILLED_IDS ? id - FILLED_IDS : id % now.messages;
    must(sequence > ghost.last[me][from], "a producer's order is not kept");
    ghost.last[me][from] = (signed char)sequence;
}

/* What ack="done" keeps until the next receive. */
struct held {
    uint32_t lease;
    int id;
};

/* One try, as in py_consumer.c. */
static enum ring_result try_once(struct consumer *consumer, struct held *held)
{
    int me = model_self();
    struct record record = {0};
    unsigned char copy[MOST_PAYLOAD];
    enum ring_result result = RING_WOULD_BLOCK;
    if (!consumer->lossy && consumer_sees_orphans(consumer))
        result = consumer_adopt(consumer, &record);
    must(result != RING_OK || consumer->group->cursor >= record.end, "an orphan that nobody had taken");
    if (result == RING_WOULD_BLOCK)
        result = consumer->lossy ? lossy_peek(consumer, &record) : consumer_peek(consumer, &record);
    if (result == RING_WOULD_BLOCK)
        return consumer_end(consumer);
    if (result != RING_OK)
        return result;
    must(record.length <= sizeof copy, "a length that was not checked");
    if (record.lease == NO_LEASE && (consumer->lossy || !(now.acks_done || now.takes_leases))) {
        copy_shared(copy, record.payload, record.length);
        result = consumer->lossy ? lossy_take(consumer, &record) : consumer_take_copied(consumer, &record);
        if (result != RING_OK)
            return result;
        int id = id_of(&record, copy);
        finished(me, id);
        check_order(me, id);
        return RING_OK;
    }
    if (record.lease == NO_LEASE) {
        result = consumer_take_leased(consumer, &record);
        if (result != RING_OK)
            return result;
    }
    if (now.parks)
        consumer_park(consumer, &record);
    copy_shared(copy, record.payload, record.length);
    int id = id_of(&record, copy);
    if (record.deliveries == 0)
        check_order(me, id);
    if (now.acks_done) {
        *held = (struct held){record.lease, id};
    } else {
        consumer_release(consumer, record.lease);
        finished(me, id);
    }
    return RING_OK;
}

static void acknowledge(struct held *held)
{
    if (held->lease == NO_LEASE)
        return;
    const struct lease *kept = &rings[0].leases[held->lease];
    must((kept->start & 3) >= LEASE_HOLDING, "somebody cleared the lease of a living consumer");
    must(owner_state_of(kept->owner) == OWNER_OWNED &&
             who_of(kept->owner) == consumers[model_self()].member.who,
         "a consumer works under a lease that it does not own");
    finished(model_self(), held->id); /* the work is done; from here on a redelivery is a repetition */
    uint32_t lease = held->lease;
    *held = (struct held){NO_LEASE, 0};
    consumer_release(&consumers[model_self()], lease);
}

/* A receive that waits; false at the end of the channel, or when the group is dropped. */
static bool receive_one(struct held *held)
{
    int me = model_self();
    acknowledge(held);
    for (;;) {
        model_label("receive");
        enum ring_result result = try_once(&consumers[me], held);
        if (result == RING_OK)
            return true;
        if (result == RING_END)
            ghost.ended |= (uint16_t)(1 << audience_of(me));
        if (result == RING_END || result == RING_DROPPED)
            return false;
        must(result == RING_RETRY || result == RING_WOULD_BLOCK, "receive fails");
        if (result == RING_RETRY)
            model_step();
        if (result == RING_WOULD_BLOCK) {
            model_label("wait for a record");
            consumer_wait(&consumers[me], -1);
        }
    }
}

static void consume(int me)
{
    struct held held = {NO_LEASE, 0};
    while (receive_one(&held))
        ;
    model_label("consumer leaves");
    consumer_detach(&consumers[me], false);
}

void run_consumer(void *none)
{
    (void)none;
    consume(model_self());
}

/* Works on its first record until all are received; does not leave. */
void run_busy_consumer(void *none)
{
    struct held held = {NO_LEASE, 0};
    receive_one(&held);
    model_label("works");
    model_wait(all_are_received, none);
}

/* Receives as many as the scenario wants; does not leave. */
void run_consumer_that_stays(void *none)
{
    struct held held = {NO_LEASE, 0};
    while (!all_are_received(none))
        receive_one(&held);
}

/* Or whoever did has died. (Each try takes another generation of a slot, which would make endlessly many
 * states.) */
static bool nobody_joins(void *none)
{
    (void)none;
    uint64_t holder = rings[0].header->joiner;
    return holder == 0 || model_is_dead((int)slot_pid(rings[0].participants[who_slot(holder)].word) - 1);
}

/* Joins the group named by the argument (NULL: private). */
static void join(const char *group)
{
    int me = model_self();
    enum ring_result result;
    model_label("consumer joins");
    while ((result = consumer_attach(&consumers[me], &rings[me], group, group ? 1 : 0, false)) != RING_OK) {
        must(result == RING_NO_SLOT || result == RING_WOULD_BLOCK, "a consumer cannot join");
        model_wait(result == RING_NO_SLOT ? a_slot_is_free : nobody_joins, NULL);
    }
    ghost.joined |= (uint16_t)(1 << audience_of(me));
}

void run_consumer_that_joins(void *group)
{
    join(group);
    consume(model_self());
}

void run_joiner(void *group) { join(group); }

void run_consumer_of_one(void *none)
{
    (void)none;
    struct held held = {NO_LEASE, 0};
    receive_one(&held);
    if (held.lease != NO_LEASE)
        finished(model_self(), held.id);
    model_label("consumer leaves early");
    consumer_detach(&consumers[model_self()], false);
}

void run_consumer_that_gives_back(void *none)
{
    (void)none;
    struct held held = {NO_LEASE, 0};
    receive_one(&held);
    model_label("consumer gives back");
    consumer_detach(&consumers[model_self()], true);
}

/* ---- others */

void run_closer(void *none)
{
    (void)none;
    model_label("close");
    ring_close(&rings[model_self()]);
}

void run_dropper(void *none)
{
    (void)none;
    model_label("drop the group");
    group_drop(&rings[model_self()], "a", 1);
}

static bool somebody_died(void *none)
{
    (void)none;
    for (uint32_t i = 0; i < g.participants; i++) {
        uint64_t word = load_relaxed(&rings[0].participants[i].word);
        if (slot_state(word) != SLOT_FREE && model_is_dead((int)slot_pid(word) - 1))
            return true;
    }
    return false;
}

/* Reaps whenever somebody that holds a slot is dead. */
void run_broker(void *none)
{
    for (;;) {
        model_wait(somebody_died, none);
        model_label("reap");
        ring_reap(&rings[model_self()]);
    }
}
