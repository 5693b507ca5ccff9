/* shmbus._core.Consumer and Lease: records into objects.
 *
 * Private copies only are decoded. A small record is copied before it is taken (receive.c, R1..R3), a large
 * one under a lease. A frame that is one msgpack `bin` becomes bytes right here.
 *
 * A consumer may be used by several threads, like a producer (see py_producer.c); with ack="done" the record
 * that is held is the consumer's, not the thread's, so there each thread wants a consumer of its own.
 */
#include "py_ring.h"

#include <stdlib.h>
#include <sys/epoll.h>
#include <unistd.h>

#include "event.h"

#define COPY_FIRST_BYTES                                                                                     \
    4096 /* records up to this are copied before they are taken: a wasted copy is cheap, a paused holder is not */
#define CODEC_RAW 0u
#define CODEC_MSGPACK 1u

typedef struct {
    PyObject_HEAD
    RingObject *ring; /* strong */
    struct consumer consumer;
    PyObject *decode;                              /* strong: frame -> object */
    PyObject *tend;                                /* strong or NULL */
    PyObject *late_type, *late_value, *late_trace; /* strong or NULL: an exception for the next receive */
    uint64_t next_tend_ns;
    uint32_t *held; /* leases that the next receive releases (ack="done") */
    uint32_t held_count;
    uint32_t codec;
    uint32_t inside;
    uint32_t views; /* Lease objects that are open */
    uint32_t forks;
    uint32_t deliveries;
    int epoll_fd; /* -1 until fileno() is asked for */
    bool attached, closing, redeliver_on_close, ack_done;
} ConsumerObject;

typedef struct {
    PyObject_HEAD
    ConsumerObject *owner; /* strong */
    struct record record;
    Py_ssize_t exports;
    uint32_t forks;
    bool open;
} LeaseObject;

enum want { WANT_OBJECT, WANT_BYTES, WANT_LEASE };

static bool usable(ConsumerObject *self)
{
    if (self->attached && !self->closing && self->forks == os_fork_count())
        return true;
    if (self->attached && !self->closing)
        core_error(
            (PyObject *)self, "Closed",
            "%s: this consumer belongs to the process that attached it; use the channel to make one here",
            self->ring->label);
    else
        core_error((PyObject *)self, "Closed", "%s: this consumer is closed",
                   self->ring ? self->ring->label : "channel");
    return false;
}

static void detach(ConsumerObject *self)
{
    if (!self->attached)
        return;
    self->attached = false;
    self->held_count = 0;
    if (self->forks == os_fork_count())
        consumer_detach(&self->consumer, self->redeliver_on_close);
    if (self->epoll_fd >= 0)
        close(self->epoll_fd);
    self->epoll_fd = -1;
    self->ring->endpoints--;
}

/* A close() that came meanwhile from another thread has waited for this. */
static void detach_if_closed(ConsumerObject *self)
{
    if (self->closing && self->inside == 0 && self->views == 0)
        detach(self);
}

static void leave(ConsumerObject *self)
{
    self->inside--;
    detach_if_closed(self);
}

/* Consumer(ring, codec number, decode, tend, spin_ns, group or None, lossy, ack_done) */
static PyObject *consumer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ring", "codec", "decode", "tend", "spin_ns", "group", "lossy", "ack_done", NULL};
    PyObject *ring_object, *decode, *tend;
    unsigned int codec, spin_ns;
    const char *group;
    Py_ssize_t group_bytes;
    int lossy, ack_done;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIOOIz#pp", names, &ring_object, &codec, &decode, &tend,
                                     &spin_ns, &group, &group_bytes, &lossy, &ack_done))
        return NULL;
    RingObject *ring = core_ring_of(ring_object);
    if (!ring)
        return NULL;
    if (group_bytes > (Py_ssize_t)GROUP_NAME_BYTES) {
        PyErr_SetString(PyExc_ValueError, "the name of a group is too long");
        return NULL;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    ConsumerObject *self = (ConsumerObject *)allocate(type, 0); /* new, zeroed */
    if (!self)
        return NULL;
    self->epoll_fd = -1;
    self->ring = (RingObject *)Py_NewRef((PyObject *)ring);
    self->decode = Py_NewRef(decode);
    self->tend = Py_NewRef(tend);
    self->codec = codec;
    self->ack_done = ack_done != 0;
    self->forks = os_fork_count();
    self->held = calloc(ring->ring.g.leases, sizeof *self->held);
    struct lossy_seen *seen = lossy ? calloc(MAX_PARTICIPANTS, sizeof *seen) : NULL;
    if (!self->held || (lossy && !seen)) {
        free(seen);
        Py_DECREF(self);
        return PyErr_NoMemory();
    }
    enum ring_result result;
    ring->endpoints++; /* already now: the ring must not be released while we attach without the lock */
    do {
        Py_BEGIN_ALLOW_THREADS
        result = consumer_attach(&self->consumer, &ring->ring, group, (size_t)group_bytes, lossy != 0);
        Py_END_ALLOW_THREADS
    } while (result == RING_WOULD_BLOCK && PyErr_CheckSignals() == 0);
    if (seen && result == RING_OK)
        lossy_begin(&self->consumer, seen);
    if (result != RING_OK) {
        ring->endpoints--;
        free(seen);
        if (!PyErr_Occurred())
            core_raise(ring, result, 0);
        Py_DECREF(self);
        return NULL;
    }
    self->consumer.spinner.limit_ns = self->consumer.spinner.budget_ns = spin_ns;
    self->attached = true;
    return (PyObject *)self;
}

static void consumer_dealloc(ConsumerObject *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    if (self->ring) {
        self->redeliver_on_close = self->redeliver_on_close || !self->closing; /* forgotten, not closed */
        detach(self);
    }
    free(self->held);
    free(self->consumer.seen);
    Py_XDECREF((PyObject *)self->ring);
    Py_XDECREF(self->decode);
    Py_XDECREF(self->tend);
    Py_XDECREF(self->late_type);
    Py_XDECREF(self->late_value);
    Py_XDECREF(self->late_trace);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static int consumer_traverse(ConsumerObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT((PyObject *)self->ring);
    Py_VISIT(self->decode);
    Py_VISIT(self->tend);
    Py_VISIT(self->late_type);
    Py_VISIT(self->late_value);
    Py_VISIT(self->late_trace);
    return 0;
}

static int consumer_clear(ConsumerObject *self)
{
    Py_CLEAR(self->tend);
    Py_CLEAR(self->late_type);
    Py_CLEAR(self->late_value);
    Py_CLEAR(self->late_trace);
    return 0;
}

/* ---- from a record to an object */

static void copy_out(ConsumerObject *self, char *to, const unsigned char *from, uint64_t bytes)
{
    if (bytes < LONG_COPY_BYTES) {
        copy_shared(to, from, bytes);
        return;
    }
    self->inside++;
    Py_BEGIN_ALLOW_THREADS
    copy_shared(to, from, bytes);
    Py_END_ALLOW_THREADS
    self->inside--;
}

/* If the payload is one whole msgpack bin: how long its header is, else 0. The bytes may change while we
 * look; each is read once, and the copy
 * counts only if the record is then taken. */
static uint64_t bin_header(const unsigned char *payload, uint64_t length)
{
    unsigned char head[8] = {0};
    uint64_t body = 0, bytes = 0;
    if (length < 2)
        return 0;
    copy_shared(head, payload, length < 5 ? (size_t)length : 5);
    if (head[0] == 0xc4)
        bytes = 2, body = head[1];
    else if (head[0] == 0xc5)
        bytes = 3, body = (uint64_t)head[1] << 8 | head[2];
    else if (head[0] == 0xc6)
        bytes = 5,
        body = (uint64_t)head[1] << 24 | (uint64_t)head[2] << 16 | (uint64_t)head[3] << 8 | head[4];
    return bytes != 0 && bytes + body == length ? bytes : 0;
}

/* Copies what becomes the bytes object: the whole payload, or the body of a bin. *whole says which. New
 * reference. */
static PyObject *copy_record(ConsumerObject *self, const struct record *record, enum want want, bool *whole)
{
    uint64_t skip = want == WANT_OBJECT && record->codec == CODEC_MSGPACK && self->codec == CODEC_MSGPACK
                        ? bin_header(record->payload, record->length)
                        : 0;
    *whole = skip == 0;
    PyObject *copy = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(record->length - skip)); /* new */
    if (copy)
        copy_out(self, PyBytes_AsString(copy), record->payload + skip, record->length - skip);
    return copy;
}

/* Steals `copy`. New reference. */
static PyObject *decoded(ConsumerObject *self, PyObject *copy, uint32_t codec, enum want want, bool whole)
{
    if (want == WANT_BYTES || !whole || codec == CODEC_RAW)
        return copy;
    if (codec != self->codec) {
        Py_DECREF(copy);
        return core_error((PyObject *)self, "DecodeError",
                          "%s: a record of codec number %u, where this end reads codec number %u; both ends "
                          "must name the same codec",
                          self->ring->label, codec, self->codec);
    }
    PyObject *object = PyObject_CallFunctionObjArgs(self->decode, copy, NULL); /* new */
    Py_DECREF(copy);
    return object;
}

static PyObject *new_lease(ConsumerObject *self, const struct record *record)
{
    PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)self)); /* borrowed */
    PyTypeObject *type = module ? core_state_of(module)->lease_type : NULL;
    if (!type)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    LeaseObject *lease = (LeaseObject *)allocate(type, 0); /* new, zeroed */
    if (!lease)
        return NULL;
    lease->owner = (ConsumerObject *)Py_NewRef((PyObject *)self);
    lease->record = *record;
    lease->forks = self->forks;
    lease->open = true;
    self->views++;
    return (PyObject *)lease;
}

static void release_held(ConsumerObject *self)
{
    while (self->held_count > 0)
        consumer_release(&self->consumer, self->held[--self->held_count]);
}

/* Copies a record, then takes it. RING_OK: *object is new, or NULL with an exception set. */
static enum ring_result take_copied(ConsumerObject *self, const struct record *record, enum want want,
                                    PyObject **object)
{
    struct consumer *consumer = &self->consumer;
    bool whole = true;
    PyObject *copy = copy_record(self, record, want, &whole); /* new */
    *object = NULL;
    if (!copy)
        return RING_OK;
    enum ring_result result =
        consumer->lossy ? lossy_take(consumer, record) : consumer_take_copied(consumer, record);
    if (result != RING_OK) {
        Py_DECREF(copy);
        return result;
    }
    self->deliveries = 0;
    *object = decoded(self, copy, record->codec, want, whole); /* steals */
    return RING_OK;
}

/* One try, without waiting. RING_OK: *object is new, or NULL with an exception set. */
static enum ring_result try_once(ConsumerObject *self, enum want want, PyObject **object)
{
    struct consumer *consumer = &self->consumer;
    struct record record;
    enum ring_result result = RING_WOULD_BLOCK;
    bool whole = true;
    PyObject *copy = NULL;
    if (!consumer->lossy && consumer_sees_orphans(consumer))
        result = consumer_adopt(consumer, &record);
    if (result == RING_WOULD_BLOCK)
        result = consumer->lossy ? lossy_peek(consumer, &record) : consumer_peek(consumer, &record);
    if (result == RING_WOULD_BLOCK)
        return consumer_end(consumer);
    if (result != RING_OK)
        return result;
    if (record.lease == NO_LEASE &&
        (consumer->lossy || (!self->ack_done && want != WANT_LEASE && record.length <= COPY_FIRST_BYTES))) {
        return take_copied(self, &record, want, object);
    }
    if (record.lease == NO_LEASE) {
        result = consumer_take_leased(consumer, &record);
        if (result == RING_NO_SLOT && !self->ack_done && want != WANT_LEASE)
            return take_copied(self, &record, want, object); /* all leases are somebody's: do without */
        if (result != RING_OK)
            return result;
    }
    self->deliveries = record.deliveries;
    if (want == WANT_LEASE) {
        *object = new_lease(self, &record);
        if (!*object)
            consumer_give_back(consumer, record.lease);
        return RING_OK;
    }
    copy = copy_record(self, &record, want, &whole);
    if (!copy) {
        consumer_give_back(consumer, record.lease);
        *object = NULL;
        return RING_OK;
    }
    if (self->ack_done) {
        consumer_park(consumer, &record);
        self->held[self->held_count++] = record.lease;
    } else {
        consumer_release(consumer, record.lease);
    }
    *object = decoded(self, copy, record.codec, want, whole);
    return RING_OK;
}

/* Nothing was there: for those who wait in poll(), take the readiness back, arm, and look again. True:
 * look again. */
static bool rearm(ConsumerObject *self)
{
    struct epoll_event event;
    if (self->epoll_fd < 0)
        return false;
    (void)epoll_wait(self->epoll_fd, &event, 1, 0);
    event_arm(&self->consumer.group->event);
    return consumer_looks_ready(&self->consumer) || consumer_end(&self->consumer) != RING_WOULD_BLOCK;
}

/* The record as the caller wants it, waiting until the deadline. NULL without an exception: `end_quietly`
 * and the channel has ended. */
static PyObject *receive(ConsumerObject *self, enum want want, int64_t deadline, bool end_quietly, bool first)
{
    PyObject *object = NULL;
    bool woken = false, rearmed = false;
    int races = 0;
    if (!usable(self))
        return NULL;
    if (self->late_type) { /* found by a recv_many() that had messages to return */
        PyErr_Restore(self->late_type, self->late_value, self->late_trace); /* steals all three */
        self->late_type = self->late_value = self->late_trace = NULL;
        return NULL;
    }
    if (first)
        release_held(self);
    for (;;) {
        enum ring_result result = try_once(self, want, &object);
        detach_if_closed(self); /* during a long copy */
        if (result == RING_OK)
            return object;
        if (!usable(self))
            return NULL;
        if (result == RING_RETRY) {
            if (PyErr_CheckSignals() < 0 || !usable(self))
                return NULL;
            /* somebody else was faster, or the reader was overtaken: there may be more all the same */
            if (++races < RACES_AT_MOST || (deadline != NO_WAIT && core_left_ns(deadline) != 0))
                continue;
            result = RING_WOULD_BLOCK;
        }
        if (result == RING_END && end_quietly)
            return NULL;
        if (result != RING_WOULD_BLOCK)
            return core_raise(self->ring, result, 0);
        if (deadline == NO_WAIT) {
            if (rearm(self))
                continue;
            return core_error((PyObject *)self, "WouldBlock", "%s: nothing to receive right now",
                              self->ring->label);
        }
        if (core_tend(self->tend, &self->next_tend_ns) < 0)
            break;
        if (!usable(self)) /* tend() may have closed this end, and so may another thread meanwhile */
            return NULL;
        int64_t left = core_left_ns(deadline);
        if (left == 0 && !rearmed && (rearmed = rearm(self)))
            continue;
        if (left == 0) {
            core_error((PyObject *)self, "TimedOut", "%s: nothing was received within the timeout",
                       self->ring->label);
            break;
        }
        self->inside++;
        Py_BEGIN_ALLOW_THREADS
        consumer_wait(&self->consumer, left);
        Py_END_ALLOW_THREADS
        leave(self);
        woken = true;
        if (PyErr_CheckSignals() < 0)
            break;
        if (!usable(self))
            return NULL;
    }
    if (woken && self->attached)
        consumer_pass_wake_on(&self->consumer);
    return NULL;
}

static PyObject *receive_with_timeout(ConsumerObject *self, const char *name, enum want want,
                                      PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames)
{
    PyObject *timeout;
    if (core_value_and_timeout(name, args, nargs, kwnames, 0, NULL, &timeout) < 0)
        return NULL;
    int64_t deadline = core_deadline(timeout);
    return deadline == -3 ? NULL : receive(self, want, deadline, false, true);
}

static PyObject *consumer_recv(ConsumerObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    return receive_with_timeout(self, "recv", WANT_OBJECT, args, nargs, kwnames);
}

static PyObject *consumer_recv_bytes(ConsumerObject *self, PyObject *const *args, Py_ssize_t nargs,
                                     PyObject *kwnames)
{
    return receive_with_timeout(self, "recv_bytes", WANT_BYTES, args, nargs, kwnames);
}

static PyObject *consumer_lease(ConsumerObject *self, PyObject *const *args, Py_ssize_t nargs,
                                PyObject *kwnames)
{
    if (self->consumer.lossy)
        return core_error((PyObject *)self, "Refused",
                          "%s: a lossy reader cannot lease, since it holds nobody back; use recv()",
                          self->ring->label);
    return receive_with_timeout(self, "lease", WANT_LEASE, args, nargs, kwnames);
}

static PyObject *consumer_try_recv(ConsumerObject *self, PyObject *Py_UNUSED(none))
{
    return receive(self, WANT_OBJECT, NO_WAIT, false, true);
}

static PyObject *consumer_next(ConsumerObject *self)
{
    return receive(self, WANT_OBJECT, NO_DEADLINE, true, true);
}

/* recv_many(at most, timeout): waits for the first, takes what is there. */
static PyObject *consumer_recv_many(ConsumerObject *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames)
{
    PyObject *most_object, *timeout;
    if (core_value_and_timeout("recv_many", args, nargs, kwnames, 1, &most_object, &timeout) < 0)
        return NULL;
    Py_ssize_t most = PyLong_AsSsize_t(most_object);
    if (most == -1 && PyErr_Occurred())
        return NULL;
    if (most < 1)
        return PyErr_Format(PyExc_ValueError, "recv_many() takes at least 1 message, not %zd", most);
    int64_t deadline = core_deadline(timeout);
    PyObject *object = deadline == -3 ? NULL : receive(self, WANT_OBJECT, deadline, false, true); /* new */
    PyObject *list = object ? PyList_New(0) : NULL;                                               /* new */
    while (list) {
        int appended = PyList_Append(list, object);
        Py_DECREF(object);
        if (appended < 0) {
            Py_CLEAR(list);
            break;
        }
        enum ring_result result = RING_WOULD_BLOCK;
        bool more = self->attached && !self->closing && PyList_Size(list) < most &&
                    self->held_count < self->ring->ring.g.leases / 2;
        for (int races = 0; more && races < RACES_AT_MOST; races++) {
            result = try_once(self, WANT_OBJECT, &object);
            if (result != RING_RETRY)
                break;
        }
        if (result != RING_OK)
            break; /* what is wrong, if anything, will be found by the next call */
        if (!object) {
            PyErr_Fetch(&self->late_type, &self->late_value, &self->late_trace); /* new */
            break;
        }
    }
    detach_if_closed(self);
    return list;
}

/* fileno(): readable when a receive may find something. */
static PyObject *consumer_fileno(ConsumerObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    if (self->epoll_fd < 0) {
        if (self->ring->ring.event_fd < 0)
            return core_error((PyObject *)self, "Refused",
                              "%s has no descriptor to wait with in this process", self->ring->label);
        struct epoll_event edge = {.events = EPOLLIN | EPOLLET};
        int fd = epoll_create1(EPOLL_CLOEXEC);
        if (fd < 0)
            return PyErr_SetFromErrno(PyExc_OSError);
        /* Edge-triggered on an eventfd that nobody ever reads: each write is an edge for every consumer of
         * the channel, and none can take another's away. */
        if (epoll_ctl(fd, EPOLL_CTL_ADD, self->ring->ring.event_fd, &edge) < 0) {
            close(fd);
            return PyErr_SetFromErrno(PyExc_OSError);
        }
        self->epoll_fd = fd;
    }
    return PyLong_FromLong(self->epoll_fd);
}

/* close(redeliver): what ack="done" still holds is finished, or goes to another member. */
static PyObject *consumer_close(ConsumerObject *self, PyObject *redeliver)
{
    int again = PyObject_IsTrue(redeliver);
    if (again < 0)
        return NULL;
    if (!self->attached || self->closing)
        Py_RETURN_NONE;
    self->closing = true;
    self->redeliver_on_close = again;
    or32_sc(&self->consumer.closing, 1);
    if (self->forks == os_fork_count() && self->inside != 0)
        ring_wake_everybody(&self->ring->ring);
    else if (self->views == 0)
        detach(self);
    Py_RETURN_NONE;
}

/* (slot, messages, bytes, sleeps, spins that paid, lost, group index, cursor, head blocker) */
static PyObject *consumer_stats(ConsumerObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    struct consumer *c = &self->consumer;
    struct participant *slot = c->member.slot;
    uint64_t cursor = c->lossy ? c->lossy_position : load_sc(&c->group->cursor);
    return Py_BuildValue(
        "(IKKKKKIKL)", c->member.index, (unsigned long long)load_relaxed(&slot->messages),
        (unsigned long long)load_relaxed(&slot->bytes), (unsigned long long)load_relaxed(&slot->sleeps),
        (unsigned long long)load_relaxed(&slot->spins), (unsigned long long)c->lost, c->group_index,
        (unsigned long long)cursor, (long long)ring_head_blocker(&self->ring->ring, cursor));
}

static PyObject *consumer_closed(ConsumerObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(!self->attached || self->closing || self->forks != os_fork_count());
}

static PyObject *consumer_deliveries(ConsumerObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(self->deliveries);
}
static PyObject *consumer_lost(ConsumerObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLongLong(self->consumer.lost);
}

/* ---- Lease: a read-only view of one record, where it lies */

static PyObject *lease_release(LeaseObject *self, PyObject *Py_UNUSED(none))
{
    if (!self->open)
        Py_RETURN_NONE;
    if (self->exports != 0) {
        PyErr_SetString(
            PyExc_BufferError,
            "views of this lease still exist (a memoryview or an array made from it): release them first");
        return NULL;
    }
    self->open = false;
    if (self->forks != os_fork_count() || !self->owner->attached)
        Py_RETURN_NONE;
    consumer_release(&self->owner->consumer, self->record.lease);
    self->owner->views--;
    if (self->owner->closing && self->owner->inside == 0 && self->owner->views == 0)
        detach(self->owner);
    Py_RETURN_NONE;
}

static int lease_getbuffer(LeaseObject *self, Py_buffer *view, int flags)
{
    if (!self->open || self->forks != os_fork_count() || !self->owner->attached) {
        core_error((PyObject *)self, "Closed", "%s: this lease was released", self->owner->ring->label);
        view->obj = NULL;
        return -1;
    }
    if (PyBuffer_FillInfo(view, (PyObject *)self, (void *)(uintptr_t)self->record.payload,
                          (Py_ssize_t)self->record.length, 1, flags) < 0)
        return -1;
    self->exports++;
    return 0;
}

static void lease_releasebuffer(LeaseObject *self, Py_buffer *Py_UNUSED(view)) { self->exports--; }

static void lease_dealloc(LeaseObject *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject *type_, *value, *trace;
    PyErr_Fetch(&type_, &value, &trace);
    if (self->owner)
        Py_XDECREF(lease_release(self, NULL));
    PyErr_Restore(type_, value, trace);
    Py_XDECREF((PyObject *)self->owner);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static PyObject *lease_open(LeaseObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->open);
}
static PyObject *lease_codec(LeaseObject *self, void *Py_UNUSED(closure))
{
    return PyLong_FromUnsignedLong(self->record.codec);
}

#define FAST(function) ((PyCFunction)(void (*)(void))function)
#define GET(function) ((getter)(void (*)(void))function)

static PyMethodDef consumer_methods[] = {
    {"recv", FAST(consumer_recv), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"try_recv", FAST(consumer_try_recv), METH_NOARGS, NULL},
    {"recv_bytes", FAST(consumer_recv_bytes), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"recv_many", FAST(consumer_recv_many), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"lease", FAST(consumer_lease), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"fileno", FAST(consumer_fileno), METH_NOARGS, NULL},
    {"close", FAST(consumer_close), METH_O, NULL},
    {"stats", FAST(consumer_stats), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef consumer_getters[] = {
    {"closed", GET(consumer_closed), NULL, NULL, NULL},
    {"deliveries", GET(consumer_deliveries), NULL, NULL, NULL},
    {"lost", GET(consumer_lost), NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot consumer_slots[] = {
    {Py_tp_new, (void *)consumer_new},
    {Py_tp_dealloc, (void *)consumer_dealloc},
    {Py_tp_traverse, (void *)consumer_traverse},
    {Py_tp_clear, (void *)consumer_clear},
    {Py_tp_iter, (void *)PyObject_SelfIter},
    {Py_tp_iternext, (void *)consumer_next},
    {Py_tp_methods, consumer_methods},
    {Py_tp_getset, consumer_getters},
    {0, NULL},
};

static PyType_Spec consumer_spec = {
    .name = "shmbus._core.Consumer",
    .basicsize = sizeof(ConsumerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = consumer_slots,
};

static PyMethodDef lease_methods[] = {
    {"release", FAST(lease_release), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef lease_getters[] = {
    {"open", GET(lease_open), NULL, NULL, NULL},
    {"codec", GET(lease_codec), NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot lease_slots[] = {
    {Py_tp_dealloc, (void *)lease_dealloc},
    {Py_tp_methods, lease_methods},
    {Py_tp_getset, lease_getters},
    {Py_bf_getbuffer, (void *)lease_getbuffer},
    {Py_bf_releasebuffer, (void *)lease_releasebuffer},
    {0, NULL},
};

static PyType_Spec lease_spec = {
    .name = "shmbus._core.Lease",
    .basicsize = sizeof(LeaseObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = lease_slots,
};

int core_add_consumer(PyObject *module)
{
    core_state *state = core_state_of(module);
    /* new, kept in the state */
    state->lease_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &lease_spec, NULL);
    if (!state->lease_type || PyModule_AddObjectRef(module, "Lease", (PyObject *)state->lease_type) < 0)
        return -1;
    PyObject *type = PyType_FromModuleAndSpec(module, &consumer_spec, NULL); /* new */
    if (!type)
        return -1;
    int added = PyModule_AddObjectRef(module, "Consumer", type);
    Py_DECREF(type);
    return added;
}
