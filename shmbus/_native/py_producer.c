/* shmbus._core.Producer and Loan: objects into records.
 *
 * A producer may be used by several threads: what a claim touches is either atomic, or changed under the
 * interpreter's lock, which is given up only to wait, and to copy long payloads between a claim and its
 * commit. `inside` counts the threads that are in such a place: close() from another thread then only asks
 * (`closing`), and the last one out detaches.
 * In a forked child the object is inert: the slot is the parent's.
 */
#include "py_ring.h"

typedef struct {
    PyObject_HEAD
    RingObject *ring; /* strong */
    struct producer producer;
    PyObject *encode; /* strong: object -> bytes, or a list of buffers that make the frame */
    PyObject *tend;   /* strong or NULL */
    uint64_t next_tend_ns;
    uint64_t waits_ns;
    uint32_t codec;
    uint32_t inside;
    uint32_t forks;
    struct loan *loans; /* the open ones */
    bool attached, closing, packs_bytes;
} ProducerObject;

typedef struct loan {
    PyObject_HEAD
    ProducerObject *owner; /* strong */
    struct claim claim;
    uint64_t bytes;
    Py_ssize_t exports;
    unsigned long thread; /* who took it */
    struct loan *next;    /* of the owner's open loans; borrowed */
    uint32_t forks;
    bool open;
} LoanObject;

#define CODEC_RAW 0u
#define CODEC_MSGPACK 1u

static bool usable(ProducerObject *self)
{
    if (self->attached && !self->closing && self->forks == os_fork_count())
        return true;
    if (self->attached && !self->closing)
        core_error(
            (PyObject *)self, "Closed",
            "%s: this producer belongs to the process that attached it; use the channel to make one here",
            self->ring->label);
    else
        core_error((PyObject *)self, "Closed", "%s: this producer is closed",
                   self->ring ? self->ring->label : "channel");
    return false;
}

static void detach(ProducerObject *self)
{
    if (!self->attached)
        return;
    self->attached = false;
    if (self->forks == os_fork_count())
        producer_detach(&self->producer);
    self->ring->endpoints--;
}

static void leave(ProducerObject *self)
{
    if (--self->inside == 0 && self->closing && self->producer.open_loans == 0)
        detach(self);
}

/* Producer(ring, codec number, encode, tend, spin_ns) */
static PyObject *producer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"ring", "codec", "encode", "tend", "spin_ns", NULL};
    PyObject *ring_object, *encode, *tend;
    unsigned int codec, spin_ns;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OIOOI", names, &ring_object, &codec, &encode, &tend,
                                     &spin_ns))
        return NULL;
    RingObject *ring = core_ring_of(ring_object);
    if (!ring)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    ProducerObject *self = (ProducerObject *)allocate(type, 0); /* new, zeroed */
    if (!self)
        return NULL;
    self->ring = (RingObject *)Py_NewRef((PyObject *)ring);
    self->encode = Py_NewRef(encode);
    self->tend = Py_NewRef(tend);
    self->codec = codec;
    self->packs_bytes = codec == CODEC_MSGPACK;
    self->forks = os_fork_count();
    enum ring_result result;
    ring->endpoints++; /* already now: the ring must not be released while we attach without the lock */
    Py_BEGIN_ALLOW_THREADS
    result = producer_attach(&self->producer, &ring->ring);
    Py_END_ALLOW_THREADS
    if (result != RING_OK) {
        ring->endpoints--;
        core_raise(ring, result, 0);
        Py_DECREF(self);
        return NULL;
    }
    self->producer.spinner.limit_ns = self->producer.spinner.budget_ns = spin_ns;
    self->attached = true;
    return (PyObject *)self;
}

static void producer_dealloc(ProducerObject *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    PyObject_GC_UnTrack(self);
    if (self->ring)
        detach(self);
    Py_XDECREF((PyObject *)self->ring);
    Py_XDECREF(self->encode);
    Py_XDECREF(self->tend);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

static int producer_traverse(ProducerObject *self, visitproc visit, void *arg)
{
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT((PyObject *)self->ring);
    Py_VISIT(self->encode);
    Py_VISIT(self->tend);
    return 0;
}

static int producer_clear(ProducerObject *self)
{
    Py_CLEAR(self->tend); /* cycles go through the callbacks of channels and buses */
    return 0;
}

/* Whether the record at `position` is a loan that this very thread holds. Another thread's loan may be
 * committed while we wait. */
static bool is_own_loan(ProducerObject *self, uint64_t position)
{
    unsigned long thread = PyThread_get_thread_ident();
    for (const LoanObject *loan = self->loans; loan; loan = loan->next)
        if (loan->claim.position == position && loan->thread == thread)
            return true;
    return false;
}

/* Whether waiting for space is waiting for a loan of this thread: one stands at a group's cursor, or, without
 * groups, at the floor. */
static bool blocked_by_own_loan(ProducerObject *self)
{
    struct ring *ring = &self->ring->ring;
    if (!self->loans)
        return false;
    uint64_t high = load_sc(&ring->header->groups_high);
    for (uint32_t i = 0; i < ring->g.groups && i < high; i++)
        if (group_holds_back(group_state_of(load_sc(&ring->groups[i].owner))) &&
            is_own_loan(self, load_sc(&ring->groups[i].cursor)))
            return true;
    return is_own_loan(self, load_sc(&ring->header->floor));
}

/* Claims room, waiting until the deadline. 1 claimed, 0 would block (only with NO_WAIT), -1 with an
 * exception set. On 1 and `inside` counted up. */
static int claim_room(ProducerObject *self, uint64_t bytes, int64_t deadline, struct claim *claim)
{
    for (;;) {
        if (!usable(self))
            return -1;
        enum ring_result result = producer_claim(&self->producer, bytes, claim);
        if (result == RING_OK) {
            self->producer.full_streak = 0;
            return 1;
        }
        if (result == RING_RETRY) {
            if (PyErr_CheckSignals() < 0)
                return -1;
            if (deadline != NO_WAIT && core_left_ns(deadline) != 0)
                continue;
            result = RING_WOULD_BLOCK;
        }
        if (result != RING_WOULD_BLOCK) {
            core_raise(self->ring, result, bytes);
            return -1;
        }
        if (deadline == NO_WAIT)
            return 0;
        if (blocked_by_own_loan(self)) {
            core_raise(self->ring, RING_OWN_LOAN, 0);
            return -1;
        }
        if (core_tend(self->tend, &self->next_tend_ns) < 0 || !usable(self)) /* it may have closed this end */
            return -1;
        int64_t left = core_left_ns(deadline);
        if (left == 0) {
            core_error(
                (PyObject *)self, "TimedOut",
                "%s: no space for a record of %llu bytes within the timeout; stats() names who holds it back",
                self->ring->label, (unsigned long long)bytes);
            return -1;
        }
        self->inside++;
        Py_BEGIN_ALLOW_THREADS
        producer_wait(&self->producer, bytes, left);
        Py_END_ALLOW_THREADS
        leave(self);
        if (PyErr_CheckSignals() < 0)
            return -1;
    }
}

static void copy_payload(ProducerObject *self, unsigned char *to, const void *from, size_t bytes)
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

/* The header of a msgpack bin of that many bytes; returns its length. */
static size_t bin_header(unsigned char *at, size_t bytes)
{
    if (bytes < 256) {
        at[0] = 0xc4;
        at[1] = (unsigned char)bytes;
        return 2;
    }
    if (bytes < 65536) {
        at[0] = 0xc5;
        at[1] = (unsigned char)(bytes >> 8);
        at[2] = (unsigned char)bytes;
        return 3;
    }
    at[0] = 0xc6;
    for (int i = 0; i < 4; i++)
        at[1 + i] = (unsigned char)(bytes >> (24 - 8 * i));
    return 5;
}

/* After the copy: a close() that came meanwhile from another thread has waited for this. */
static void finish(ProducerObject *self, const struct claim *claim, uint64_t length, uint32_t codec)
{
    producer_commit(&self->producer, claim, length, codec);
    if (self->closing && self->inside == 0 && self->producer.open_loans == 0)
        detach(self);
}

static int send_prefixed(ProducerObject *self, const unsigned char *prefix, size_t prefix_bytes,
                         const void *body, size_t body_bytes, uint32_t codec, int64_t deadline)
{
    struct claim claim;
    int claimed = claim_room(self, prefix_bytes + body_bytes, deadline, &claim);
    if (claimed != 1)
        return claimed;
    if (prefix_bytes)
        copy_shared(claim.payload, prefix, prefix_bytes);
    copy_payload(self, claim.payload + prefix_bytes, body, body_bytes);
    finish(self, &claim, prefix_bytes + body_bytes, codec);
    return 1;
}

static int send_buffer(ProducerObject *self, PyObject *object, uint32_t codec, int64_t deadline)
{
    Py_buffer buffer;
    if (PyBytes_CheckExact(object)) {
        char *bytes;
        Py_ssize_t length;
        if (PyBytes_AsStringAndSize(object, &bytes, &length) < 0)
            return -1;
        return send_prefixed(self, NULL, 0, bytes, (size_t)length, codec, deadline);
    }
    if (PyObject_GetBuffer(object, &buffer, PyBUF_SIMPLE) < 0)
        return -1;
    int sent = send_prefixed(self, NULL, 0, buffer.buf, (size_t)buffer.len, codec, deadline);
    PyBuffer_Release(&buffer);
    return sent;
}

/* A frame in several buffers, so that large ones are copied once, into the ring. */
static int send_parts(ProducerObject *self, PyObject *parts, int64_t deadline)
{
    Py_ssize_t count = PyList_Size(parts);
    Py_buffer *buffers = PyMem_Calloc((size_t)count, sizeof *buffers);
    Py_ssize_t ready = 0;
    int sent = -1;
    uint64_t bytes = 0;
    if (!buffers) {
        PyErr_NoMemory();
        return -1;
    }
    for (; ready < count; ready++) {
        if (PyObject_GetBuffer(PyList_GetItem(parts, ready), &buffers[ready], PyBUF_SIMPLE) < 0)
            goto done;
        bytes += (uint64_t)buffers[ready].len;
    }
    struct claim claim;
    sent = claim_room(self, bytes, deadline, &claim);
    if (sent == 1) {
        unsigned char *to = claim.payload;
        for (Py_ssize_t i = 0; i < count; i++) {
            copy_payload(self, to, buffers[i].buf, (size_t)buffers[i].len);
            to += buffers[i].len;
        }
        finish(self, &claim, bytes, self->codec);
    }
done:
    while (ready > 0)
        PyBuffer_Release(&buffers[--ready]);
    PyMem_Free(buffers);
    return sent;
}

static int send_object(ProducerObject *self, PyObject *object, int64_t deadline)
{
    if (self->packs_bytes && PyBytes_CheckExact(object)) {
        char *bytes;
        Py_ssize_t length;
        unsigned char prefix[8];
        if (PyBytes_AsStringAndSize(object, &bytes, &length) < 0)
            return -1;
        if (length <= (Py_ssize_t)UINT32_MAX)
            return send_prefixed(self, prefix, bin_header(prefix, (size_t)length), bytes, (size_t)length,
                                 CODEC_MSGPACK, deadline);
    }
    if (!usable(self))
        return -1;
    PyObject *frame = PyObject_CallFunctionObjArgs(self->encode, object, NULL); /* new */
    if (!frame)
        return -1;
    int sent = PyList_CheckExact(frame) ? send_parts(self, frame, deadline)
                                        : send_buffer(self, frame, self->codec, deadline);
    Py_DECREF(frame);
    return sent;
}

static PyObject *producer_send(ProducerObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    PyObject *object, *timeout;
    if (core_value_and_timeout("send", args, nargs, kwnames, 1, &object, &timeout) < 0)
        return NULL;
    int64_t deadline = core_deadline(timeout);
    if (deadline == -3 || send_object(self, object, deadline) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *producer_try_send(ProducerObject *self, PyObject *object)
{
    int sent = send_object(self, object, NO_WAIT);
    return sent < 0 ? NULL : PyBool_FromLong(sent);
}

static PyObject *producer_send_bytes(ProducerObject *self, PyObject *const *args, Py_ssize_t nargs,
                                     PyObject *kwnames)
{
    PyObject *object, *timeout;
    if (core_value_and_timeout("send_bytes", args, nargs, kwnames, 1, &object, &timeout) < 0)
        return NULL;
    int64_t deadline = core_deadline(timeout);
    if (deadline == -3 || send_buffer(self, object, CODEC_RAW, deadline) < 0)
        return NULL;
    Py_RETURN_NONE;
}

static PyObject *producer_send_many(ProducerObject *self, PyObject *const *args, Py_ssize_t nargs,
                                    PyObject *kwnames)
{
    PyObject *objects, *timeout;
    if (core_value_and_timeout("send_many", args, nargs, kwnames, 1, &objects, &timeout) < 0)
        return NULL;
    int64_t deadline = core_deadline(timeout);
    PyObject *iterator = deadline == -3 ? NULL : PyObject_GetIter(objects); /* new */
    if (!iterator)
        return NULL;
    Py_ssize_t count = 0;
    PyObject *object;
    while ((object = PyIter_Next(iterator)) != NULL) { /* new */
        int sent = send_object(self, object, deadline);
        Py_DECREF(object);
        if (sent < 0)
            break;
        if (++count % 1024 == 0) { /* a long run that never waits: let signals and other threads in */
            if (PyErr_CheckSignals() < 0)
                break;
            Py_BEGIN_ALLOW_THREADS
            Py_END_ALLOW_THREADS
        }
    }
    Py_DECREF(iterator);
    return PyErr_Occurred() ? NULL : PyLong_FromSsize_t(count);
}

static PyObject *producer_close(ProducerObject *self, PyObject *Py_UNUSED(none))
{
    self->closing = true;
    or32_sc(&self->producer.closing, 1);
    if (!self->attached)
        Py_RETURN_NONE;
    if (self->forks == os_fork_count() && self->inside != 0)
        ring_wake_everybody(&self->ring->ring);
    else if (self->producer.open_loans == 0)
        detach(self);
    Py_RETURN_NONE;
}

/* (slot, messages, bytes, sleeps, spins that paid) */
static PyObject *producer_stats(ProducerObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    struct participant *slot = self->producer.member.slot;
    return Py_BuildValue(
        "(IKKKK)", self->producer.member.index, (unsigned long long)load_relaxed(&slot->messages),
        (unsigned long long)load_relaxed(&slot->bytes), (unsigned long long)load_relaxed(&slot->sleeps),
        (unsigned long long)load_relaxed(&slot->spins));
}

static PyObject *producer_closed(ProducerObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(!self->attached || self->closing || self->forks != os_fork_count());
}

/* ---- loans */

static PyObject *producer_loan(ProducerObject *self, PyObject *const *args, Py_ssize_t nargs,
                               PyObject *kwnames)
{
    PyObject *size, *timeout;
    if (core_value_and_timeout("loan", args, nargs, kwnames, 1, &size, &timeout) < 0)
        return NULL;
    unsigned long long bytes = PyLong_AsUnsignedLongLong(size);
    if (PyErr_Occurred())
        return NULL;
    int64_t deadline = core_deadline(timeout);
    if (deadline == -3 || !usable(self))
        return NULL;
    PyObject *module = PyType_GetModule(Py_TYPE((PyObject *)self)); /* borrowed */
    PyTypeObject *type = module ? core_state_of(module)->loan_type : NULL;
    if (!type)
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    LoanObject *loan = (LoanObject *)allocate(type, 0); /* new, zeroed */
    if (!loan)
        return NULL;
    if (claim_room(self, bytes, deadline, &loan->claim) != 1) {
        Py_DECREF(loan);
        return NULL;
    }
    loan->owner = (ProducerObject *)Py_NewRef((PyObject *)self);
    loan->bytes = bytes;
    loan->forks = self->forks;
    loan->open = true;
    loan->thread = PyThread_get_thread_ident();
    loan->next = self->loans;
    self->loans = loan;
    self->producer.open_loans++;
    return (PyObject *)loan;
}

/* The claim's end: committed with `length` bytes, or aborted. */
static void end_loan(LoanObject *self, bool commit, uint64_t length)
{
    ProducerObject *owner = self->owner;
    self->open = false;
    if (self->forks != os_fork_count())
        return; /* inherited: the parent's to end */
    owner->producer.open_loans--;
    for (LoanObject **link = &owner->loans; *link; link = &(*link)->next) {
        if (*link == self) {
            *link = self->next;
            break;
        }
    }
    if (commit)
        finish(owner, &self->claim, length, CODEC_RAW);
    else {
        producer_abort(&owner->producer, &self->claim);
        if (owner->closing && owner->inside == 0 && owner->producer.open_loans == 0)
            detach(owner);
    }
}

static bool loan_usable(LoanObject *self)
{
    if (self->open && self->forks == os_fork_count() && self->exports == 0)
        return true;
    if (self->open && self->exports != 0)
        PyErr_SetString(PyExc_BufferError, "views of this loan still exist (a memoryview or an array made "
                                           "from it): release them, then commit or abort");
    else
        core_error((PyObject *)self, "Closed",
                   "%s: this loan was committed or aborted already, or belongs to the parent process",
                   self->owner->ring->label);
    return false;
}

static PyObject *loan_commit(LoanObject *self, PyObject *args)
{
    unsigned long long length = self->bytes;
    PyObject *given = Py_None;
    if (!PyArg_ParseTuple(args, "|O", &given) || !loan_usable(self))
        return NULL;
    if (given != Py_None) {
        length = PyLong_AsUnsignedLongLong(given);
        if (PyErr_Occurred())
            return NULL;
    }
    if (length > self->bytes)
        return PyErr_Format(PyExc_ValueError, "this loan is %llu bytes long; %llu cannot be committed",
                            (unsigned long long)self->bytes, length);
    end_loan(self, true, length);
    Py_RETURN_NONE;
}

static PyObject *loan_abort(LoanObject *self, PyObject *Py_UNUSED(none))
{
    if (!loan_usable(self))
        return NULL;
    end_loan(self, false, 0);
    Py_RETURN_NONE;
}

static PyObject *loan_open(LoanObject *self, void *Py_UNUSED(closure))
{
    return PyBool_FromLong(self->open && self->forks == os_fork_count());
}

static int loan_getbuffer(LoanObject *self, Py_buffer *view, int flags)
{
    if (!self->open || self->forks != os_fork_count()) {
        core_error((PyObject *)self, "Closed", "%s: this loan is over", self->owner->ring->label);
        view->obj = NULL;
        return -1;
    }
    if (PyBuffer_FillInfo(view, (PyObject *)self, self->claim.payload, (Py_ssize_t)self->bytes, 0, flags) < 0)
        return -1;
    self->exports++;
    return 0;
}

static void loan_releasebuffer(LoanObject *self, Py_buffer *Py_UNUSED(view)) { self->exports--; }

static void loan_dealloc(LoanObject *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->open)
        end_loan(self, false, 0); /* forgotten: nobody can write into it any more */
    Py_XDECREF((PyObject *)self->owner);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

#define FAST(function) ((PyCFunction)(void (*)(void))function)

static PyMethodDef producer_methods[] = {
    {"send", FAST(producer_send), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"try_send", FAST(producer_try_send), METH_O, NULL},
    {"send_bytes", FAST(producer_send_bytes), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"send_many", FAST(producer_send_many), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"loan", FAST(producer_loan), METH_FASTCALL | METH_KEYWORDS, NULL},
    {"close", FAST(producer_close), METH_NOARGS, NULL},
    {"stats", FAST(producer_stats), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef producer_getters[] = {
    {"closed", (getter)(void (*)(void))producer_closed, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot producer_slots[] = {
    {Py_tp_new, (void *)producer_new},
    {Py_tp_dealloc, (void *)producer_dealloc},
    {Py_tp_traverse, (void *)producer_traverse},
    {Py_tp_clear, (void *)producer_clear},
    {Py_tp_methods, producer_methods},
    {Py_tp_getset, producer_getters},
    {0, NULL},
};

static PyType_Spec producer_spec = {
    .name = "shmbus._core.Producer",
    .basicsize = sizeof(ProducerObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = producer_slots,
};

static PyMethodDef loan_methods[] = {
    {"commit", FAST(loan_commit), METH_VARARGS, NULL},
    {"abort", FAST(loan_abort), METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef loan_getters[] = {
    {"open", (getter)(void (*)(void))loan_open, NULL, NULL, NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot loan_slots[] = {
    {Py_tp_dealloc, (void *)loan_dealloc},
    {Py_tp_methods, loan_methods},
    {Py_tp_getset, loan_getters},
    {Py_bf_getbuffer, (void *)loan_getbuffer},
    {Py_bf_releasebuffer, (void *)loan_releasebuffer},
    {0, NULL},
};

static PyType_Spec loan_spec = {
    .name = "shmbus._core.Loan",
    .basicsize = sizeof(LoanObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE | Py_TPFLAGS_DISALLOW_INSTANTIATION,
    .slots = loan_slots,
};

int core_add_producer(PyObject *module)
{
    core_state *state = core_state_of(module);
    /* new, kept in the state */
    state->loan_type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &loan_spec, NULL);
    if (!state->loan_type || PyModule_AddObjectRef(module, "Loan", (PyObject *)state->loan_type) < 0)
        return -1;
    PyObject *type = PyType_FromModuleAndSpec(module, &producer_spec, NULL); /* new */
    if (!type)
        return -1;
    int added = PyModule_AddObjectRef(module, "Producer", type);
    Py_DECREF(type);
    return added;
}
