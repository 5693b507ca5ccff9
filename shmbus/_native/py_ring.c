/* shmbus._core.Ring: one process's view of a channel's two regions. Policy (names, settings, who may
 * attach) is Python's. */
#include "py_ring.h"

#include <math.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>

/* ---- errors */

PyObject *core_error(PyObject *any_core_object, const char *name, const char *format, ...)
{
    (void)any_core_object;
    /* new; a look into sys.modules but for the first time */
    PyObject *errors = PyImport_ImportModule("shmbus.errors");
    PyObject *kind = errors ? PyObject_GetAttrString(errors, name) : NULL; /* new */
    if (kind) {
        va_list arguments;
        va_start(arguments, format);
        PyErr_FormatV(kind, format, arguments);
        va_end(arguments);
    }
    Py_XDECREF(kind);
    Py_XDECREF(errors);
    return NULL;
}

PyObject *core_raise(RingObject *self, enum ring_result result, uint64_t size_bytes)
{
    PyObject *object = (PyObject *)self;
    const char *label = self->label;
    struct ring *ring = &self->ring;
    switch (result) {
    case RING_WOULD_BLOCK:
        return core_error(object, "WouldBlock", "%s: nothing can be done without waiting", label);
    case RING_END:
        return core_error(object, "EndOfChannel",
                          "%s has ended: everything was received and nothing more can be sent", label);
    case RING_CLOSED:
        return core_error(object, "Closed", "%s is closed: nothing more can be sent", label);
    case RING_POISONED:
        return core_error(
            object, "Corrupt",
            "%s was poisoned (reason %llu): a participant found its memory broken; make a new channel", label,
            (unsigned long long)load_relaxed(&ring->header->poison_reason));
    case RING_DROPPED:
        return core_error(object, "Closed", "this group was dropped from %s", label);
    case RING_CORRUPT:
        ring_poison(ring, POISON_CONTRADICTION);
        return core_error(
            object, "Corrupt",
            "%s: %s (position %llu); some process wrote where it had no business; make a new channel", label,
            ring->why ? ring->why : "contradiction", (unsigned long long)ring->why_position);
    case RING_TOO_LARGE: {
        unsigned long long limit = ring->g.capacity_bytes / 2 - RECORD_HEADER_BYTES;
        PyObject *none = core_error(
            object, "TooLarge",
            "%s: a record of %llu bytes; the largest that fits is %llu bytes, half of the capacity of %llu; "
            "make the channel with a larger capacity, or send the data in pieces",
            label, (unsigned long long)size_bytes, limit, (unsigned long long)ring->g.capacity_bytes);
        PyObject *type, *value, *trace;
        PyErr_Fetch(&type, &value, &trace);
        PyErr_NormalizeException(&type, &value, &trace);
        /* new */
        PyObject *size = PyLong_FromUnsignedLongLong(size_bytes), *most = PyLong_FromUnsignedLongLong(limit);
        if (value && size && most &&
            (PyObject_SetAttrString(value, "size_bytes", size) < 0 ||
             PyObject_SetAttrString(value, "limit_bytes", most) < 0))
            PyErr_Clear();
        Py_XDECREF(size);
        Py_XDECREF(most);
        PyErr_Restore(type, value, trace); /* steals all three */
        return none;
    }
    case RING_NO_SLOT:
    case RING_FOREIGN:
    case RING_SECOND_PRODUCER:
        return core_error(object, "Refused", "%s: %s", label, ring->why ? ring->why : "refused");
    case RING_OWN_LOAN:
        return core_error(object, "Refused",
                          "%s is full behind a loan that this very endpoint holds: waiting would never end; "
                          "commit or abort the loan first",
                          label);
    case RING_NO_GROUP:
        return core_error(object, "Refused", "%s has no such group", label);
    case RING_NO_MEMORY:
        return PyErr_NoMemory();
    default:
        PyErr_Format(PyExc_SystemError, "%s: unexpected ring result %d", label, (int)result);
        return NULL;
    }
}

/* ---- arguments */

int64_t core_deadline(PyObject *timeout)
{
    if (timeout == NULL || timeout == Py_None)
        return NO_DEADLINE;
    double seconds = PyFloat_AsDouble(timeout);
    if (seconds == -1.0 && PyErr_Occurred())
        return -3;
    if (isnan(seconds)) {
        PyErr_SetString(PyExc_ValueError, "timeout is not a number of seconds: nan");
        return -3;
    }
    if (seconds <= 0)
        return (int64_t)os_now_ns();
    if (seconds > 1e9)
        return NO_DEADLINE;
    return (int64_t)os_now_ns() + (int64_t)(seconds * 1e9);
}

int64_t core_left_ns(int64_t deadline)
{
    if (deadline == NO_DEADLINE)
        return -1;
    int64_t left = deadline - (int64_t)os_now_ns();
    return left > 0 ? left : 0;
}

int core_value_and_timeout(const char *name, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                           int required, PyObject **value, PyObject **timeout)
{
    *timeout = NULL;
    if (nargs < required || nargs > required + 1) {
        PyErr_Format(PyExc_TypeError, "%s() takes %d positional argument%s and timeout", name, required,
                     required == 1 ? "" : "s");
        return -1;
    }
    if (required)
        *value = args[0];
    if (nargs > required)
        *timeout = args[required];
    if (kwnames == NULL)
        return 0;
    for (Py_ssize_t i = 0; i < PyTuple_Size(kwnames); i++) {
        PyObject *keyword = PyTuple_GetItem(kwnames, i); /* borrowed */
        if (PyUnicode_CompareWithASCIIString(keyword, "timeout") != 0 || *timeout != NULL) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument %R", name, keyword);
            return -1;
        }
        *timeout = args[nargs + i];
    }
    return 0;
}

int core_tend(PyObject *tend, uint64_t *next_ns)
{
    uint64_t now = os_now_ns();
    if (tend == NULL || tend == Py_None || now < *next_ns)
        return 0;
    *next_ns = now + UINT64_C(500000000);
    PyObject *result = PyObject_CallNoArgs(tend); /* new */
    Py_XDECREF(result);
    return result ? 0 : -1;
}

/* ---- the type */

static PyObject *ring_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"control", "data", "control_fd", "event_fd", "label", NULL};
    PyObject *control, *data;
    int control_fd, event_fd;
    const char *label;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OOiis", names, &control, &data, &control_fd, &event_fd,
                                     &label))
        return NULL;
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    RingObject *self = (RingObject *)allocate(type, 0); /* new, zeroed */
    if (!self)
        return NULL;
    PyOS_snprintf(self->label, sizeof self->label, "%s", label);
    if (PyObject_GetBuffer(control, &self->control, PyBUF_WRITABLE) < 0)
        goto fail;
    if (PyObject_GetBuffer(data, &self->data, PyBUF_SIMPLE) < 0)
        goto fail;
    const char *wrong = ring_open(&self->ring, self->control.buf, (uint64_t)self->control.len, self->data.buf,
                                  (uint64_t)self->data.len / 2);
    if (wrong) {
        core_error((PyObject *)self, "Corrupt", "%s: %s", label, wrong);
        goto fail;
    }
    self->ring.control_fd = control_fd;
    self->ring.event_fd = event_fd;
    struct stat status;
    if (control_fd >= 0 && fstat(control_fd, &status) == 0)
        self->ring.control_inode = (uint64_t)status.st_ino;
    self->forks = os_fork_count();
    self->open = true;
    return (PyObject *)self;
fail:
    Py_DECREF(self);
    return NULL;
}

static void drop_buffers(RingObject *self)
{
    self->open = false;
    if (self->control.obj)
        PyBuffer_Release(&self->control);
    if (self->data.obj)
        PyBuffer_Release(&self->data);
}

static void ring_dealloc(RingObject *self)
{
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    free(self->tickets);
    drop_buffers(self);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type);
}

RingObject *core_ring_of(PyObject *object)
{
    PyObject *module = PyImport_ImportModule("shmbus._core");                /* new */
    PyObject *type = module ? PyObject_GetAttrString(module, "Ring") : NULL; /* new */
    Py_XDECREF(module);
    if (!type)
        return NULL;
    int is_ring = PyObject_IsInstance(object, type);
    Py_DECREF(type);
    if (is_ring == 1) {
        if (((RingObject *)object)->open)
            return (RingObject *)object;
        core_error(object, "Closed", "%s: this process has closed its mapping",
                   ((RingObject *)object)->label);
        return NULL;
    }
    if (is_ring == 0)
        PyErr_SetString(PyExc_TypeError, "expected a shmbus._core.Ring");
    return NULL;
}

static bool usable(RingObject *self)
{
    if (self->open)
        return true;
    core_error((PyObject *)self, "Closed", "%s: this process has closed its mapping", self->label);
    return false;
}

static PyObject *ring_release(RingObject *self, PyObject *Py_UNUSED(none))
{
    if (self->endpoints) {
        PyErr_Format(PyExc_BufferError, "%s: %u endpoints are still attached", self->label, self->endpoints);
        return NULL;
    }
    drop_buffers(self);
    Py_RETURN_NONE;
}

/* geometry(capacity_bytes, participants, leases, groups, parking_limit_bytes) -> (control bytes to
 * reserve, control bytes in all) */
static PyObject *ring_geometry(PyObject *Py_UNUSED(type), PyObject *args)
{
    unsigned long long capacity, parking;
    unsigned int participants, leases, groups;
    struct geometry g;
    if (!PyArg_ParseTuple(args, "KIIIK", &capacity, &participants, &leases, &groups, &parking))
        return NULL;
    if (!geometry_make(&g, capacity, participants, leases, groups, parking)) {
        PyErr_SetString(PyExc_ValueError, "these numbers do not make a ring");
        return NULL;
    }
    return Py_BuildValue("(KK)", (unsigned long long)g.control_bytes, (unsigned long long)g.total_bytes);
}

/* format(control, capacity_bytes, participants, leases, groups, parking_limit_bytes, flags,
 * max_deliveries, identity, group_names, settings) */
static PyObject *ring_format_region(PyObject *Py_UNUSED(type), PyObject *args)
{
    Py_buffer control = {0};
    unsigned long long capacity, parking;
    struct ring_settings settings = {0};
    const char *identity, *blob;
    Py_ssize_t identity_bytes, blob_bytes;
    PyObject *names;
    if (!PyArg_ParseTuple(args, "w*KIIIKIIy#O!y#", &control, &capacity, &settings.participants,
                          &settings.leases, &settings.groups, &parking, &settings.flags,
                          &settings.max_deliveries, &identity, &identity_bytes, &PyTuple_Type, &names, &blob,
                          &blob_bytes))
        return NULL;
    struct geometry g;
    const char *group_names[MAX_GROUPS];
    PyObject *result = NULL;
    settings.group_count = (uint32_t)PyTuple_Size(names);
    if (!geometry_make(&g, capacity, settings.participants, settings.leases, settings.groups, parking) ||
        (uint64_t)control.len < g.control_bytes || identity_bytes != 16 ||
        settings.group_count > settings.groups || blob_bytes > (Py_ssize_t)SETTINGS_BYTES) {
        PyErr_SetString(PyExc_ValueError, "these numbers do not make a ring in that region");
        goto done;
    }
    for (uint32_t i = 0; i < settings.group_count; i++) {
        Py_ssize_t bytes;
        group_names[i] = PyUnicode_AsUTF8AndSize(PyTuple_GetItem(names, i), &bytes); /* borrowed */
        if (!group_names[i])
            goto done;
        if (bytes > (Py_ssize_t)GROUP_NAME_BYTES) {
            PyErr_SetString(PyExc_ValueError, "the name of a group is too long");
            goto done;
        }
    }
    settings.identity = (const unsigned char *)identity;
    settings.group_names = group_names;
    settings.settings = (const unsigned char *)blob;
    settings.settings_bytes = (uint32_t)blob_bytes;
    ring_format(control.buf, &g, &settings);
    result = Py_NewRef(Py_None);
done:
    PyBuffer_Release(&control);
    return result;
}

/* check(header, file_bytes) -> (identity, settings, capacity_bytes, control bytes, control bytes with
 * parking) of a header that somebody else wrote, read by pread */
static PyObject *ring_check(PyObject *type, PyObject *args)
{
    Py_buffer header = {0};
    unsigned long long file_bytes;
    if (!PyArg_ParseTuple(args, "y*K", &header, &file_bytes))
        return NULL;
    PyObject *result = NULL;
    struct geometry g;
    struct header *copy = malloc(HEADER_BYTES);
    if (!copy) {
        PyErr_NoMemory();
    } else if (header.len < (Py_ssize_t)HEADER_BYTES) {
        core_error(type, "Corrupt", "the control region is shorter than its header page");
    } else {
        memcpy(copy, header.buf, HEADER_BYTES);
        const char *wrong = ring_check_header(copy, file_bytes, &g);
        if (wrong)
            core_error(type, "Corrupt", "%s", wrong);
        else if (copy->settings_bytes > SETTINGS_BYTES)
            core_error(type, "Corrupt", "the ring's settings are longer than their place");
        else
            result =
                Py_BuildValue("(y#y#KKK)", (char *)copy->identity, (Py_ssize_t)16, (char *)copy->settings,
                              (Py_ssize_t)copy->settings_bytes, (unsigned long long)g.capacity_bytes,
                              (unsigned long long)g.control_bytes, (unsigned long long)g.total_bytes);
    }
    free(copy);
    PyBuffer_Release(&header);
    return result;
}

static PyObject *ring_close_channel(RingObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    ring_close(&self->ring);
    Py_RETURN_NONE;
}

static PyObject *ring_poison_channel(RingObject *self, PyObject *reason)
{
    unsigned long long number = PyLong_AsUnsignedLongLong(reason);
    if (PyErr_Occurred() || !usable(self))
        return NULL;
    ring_poison(&self->ring, number);
    Py_RETURN_NONE;
}

static PyObject *ring_reap_all(RingObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    uint32_t count;
    self->endpoints++; /* not to be released meanwhile */
    Py_BEGIN_ALLOW_THREADS
    count = ring_reap(&self->ring);
    Py_END_ALLOW_THREADS
    self->endpoints--;
    return PyLong_FromUnsignedLong(count);
}

static PyObject *ring_register(RingObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    if (self->forks != os_fork_count()) { /* the inherited tickets are the parent's */
        self->endpoints -= self->ticket_count;
        self->ticket_count = 0;
        self->forks = os_fork_count();
    }
    struct member *grown = realloc(self->tickets, (self->ticket_count + 1) * sizeof *grown);
    if (!grown)
        return PyErr_NoMemory();
    self->tickets = grown;
    enum ring_result result = member_attach(&grown[self->ticket_count], &self->ring, ROLE_TICKET);
    if (result != RING_OK)
        return core_raise(self, result, 0);
    self->endpoints++;
    return PyLong_FromUnsignedLong(grown[self->ticket_count++].index);
}

static PyObject *ring_unregister(RingObject *self, PyObject *index)
{
    unsigned long wanted = PyLong_AsUnsignedLong(index);
    if (PyErr_Occurred() || !usable(self))
        return NULL;
    if (self->forks != os_fork_count())
        Py_RETURN_NONE; /* inherited by fork: the parent's to give back */
    for (uint32_t i = 0; i < self->ticket_count; i++) {
        if (self->tickets[i].index != wanted)
            continue;
        member_detach(&self->tickets[i]);
        self->tickets[i] = self->tickets[--self->ticket_count];
        self->endpoints--;
        Py_RETURN_NONE;
    }
    return PyErr_Format(PyExc_KeyError, "%s: no ticket in slot %lu", self->label, wanted);
}

static PyObject *ring_drop_group(RingObject *self, PyObject *name)
{
    Py_ssize_t bytes;
    const char *text = PyUnicode_AsUTF8AndSize(name, &bytes);
    if (!text || !usable(self))
        return NULL;
    enum ring_result result = group_drop(&self->ring, text, (size_t)bytes);
    if (result != RING_OK)
        return core_error((PyObject *)self, "Refused", "%s has no group %R", self->label, name);
    Py_RETURN_NONE;
}

static PyObject *append(PyObject *list, PyObject *item) /* steals item */
{
    if (!list || !item || PyList_Append(list, item) < 0) {
        Py_XDECREF(item);
        Py_XDECREF(list);
        return NULL;
    }
    Py_DECREF(item);
    return list;
}

/* [(slot, pid, start time, role, group index or -1, messages, bytes, sleeps, spins), ...] of all who are
 * attached */
static PyObject *ring_participants(RingObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    struct ring *ring = &self->ring;
    PyObject *list = PyList_New(0); /* new */
    for (uint32_t i = 0; list && i < ring->g.participants; i++) {
        struct participant *slot = &ring->participants[i];
        uint64_t word = load_sc(&slot->word);
        if (slot_state(word) == SLOT_FREE)
            continue;
        uint64_t info = load_acquire(&slot->info);
        list = append(
            list,
            Py_BuildValue("(IIKiiKKKK)", i, slot_pid(word), (unsigned long long)load_relaxed(&slot->start),
                          slot_state(word) == SLOT_LIVE ? (int)info_role(info) : (int)ROLE_NONE,
                          (int)info_group(info) - 1, (unsigned long long)load_relaxed(&slot->messages),
                          (unsigned long long)load_relaxed(&slot->bytes),
                          (unsigned long long)load_relaxed(&slot->sleeps),
                          (unsigned long long)load_relaxed(&slot->spins)));
    }
    return list;
}

/* [(index, state, name, cursor, redelivered, dropped, slot whose claim is at the cursor or -1), ...] of
 * all groups in use */
static PyObject *ring_groups(RingObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    struct ring *ring = &self->ring;
    PyObject *list = PyList_New(0); /* new */
    for (uint32_t i = 0; list && i < ring->g.groups; i++) {
        struct group *group = &ring->groups[i];
        enum group_state state = group_state_of(load_sc(&group->owner));
        if (state == GROUP_FREE)
            continue;
        uint64_t bytes = load_relaxed(&group->name_bytes);
        uint64_t cursor = load_sc(&group->cursor);
        if (bytes > GROUP_NAME_BYTES || state != GROUP_NAMED)
            bytes = 0;
        char name[GROUP_NAME_BYTES];
        memcpy(name, group->name, sizeof name);
        PyObject *text = PyUnicode_DecodeUTF8(name, (Py_ssize_t)bytes, "replace"); /* new */
        list = append(list, text ? Py_BuildValue("(IiNKKKL)", i, (int)state, text, (unsigned long long)cursor,
                                                 (unsigned long long)load_relaxed(&group->redelivered),
                                                 (unsigned long long)load_relaxed(&group->dropped),
                                                 (long long)ring_head_blocker(ring, cursor))
                                 : NULL);
    }
    return list;
}

/* [(lease, owner state, slot, group, deliveries, state, start, end), ...] of all leases that hold
 * something */
static PyObject *ring_leases(RingObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    struct ring *ring = &self->ring;
    PyObject *list = PyList_New(0); /* new */
    for (uint32_t i = 0; list && i < ring->g.leases; i++) {
        uint64_t owner = load_sc(&ring->leases[i].owner);
        uint64_t start = load_sc(&ring->leases[i].start);
        if (owner_state_of(owner) < OWNER_OWNED || (start & 3) == LEASE_CLEAR)
            continue;
        list = append(list, Py_BuildValue("(IiIIIiKK)", i, (int)owner_state_of(owner), who_slot(owner),
                                          owner_group(owner), owner_deliveries(owner), (int)(start & 3),
                                          (unsigned long long)(start & ~UINT64_C(3)),
                                          (unsigned long long)load_sc(&ring->leases[i].end)));
    }
    return list;
}

/* (tail, floor, status, reaped, aborted, poison reason) */
static PyObject *ring_counters(RingObject *self, PyObject *Py_UNUSED(none))
{
    if (!usable(self))
        return NULL;
    struct header *header = self->ring.header;
    return Py_BuildValue(
        "(KKKKKK)", (unsigned long long)load_sc(&header->tail), (unsigned long long)load_sc(&header->floor),
        (unsigned long long)load_sc(&header->status), (unsigned long long)load_relaxed(&header->reaped),
        (unsigned long long)load_relaxed(&header->aborted),
        (unsigned long long)load_relaxed(&header->poison_reason));
}

static PyMethodDef ring_methods[] = {
    {"geometry", ring_geometry, METH_VARARGS | METH_STATIC, NULL},
    {"format", ring_format_region, METH_VARARGS | METH_STATIC, NULL},
    {"check", ring_check, METH_VARARGS | METH_STATIC, NULL},
    {"release", (PyCFunction)(void (*)(void))ring_release, METH_NOARGS, NULL},
    {"close_channel", (PyCFunction)(void (*)(void))ring_close_channel, METH_NOARGS, NULL},
    {"poison", (PyCFunction)(void (*)(void))ring_poison_channel, METH_O, NULL},
    {"reap", (PyCFunction)(void (*)(void))ring_reap_all, METH_NOARGS, NULL},
    {"register", (PyCFunction)(void (*)(void))ring_register, METH_NOARGS, NULL},
    {"unregister", (PyCFunction)(void (*)(void))ring_unregister, METH_O, NULL},
    {"drop_group", (PyCFunction)(void (*)(void))ring_drop_group, METH_O, NULL},
    {"participants", (PyCFunction)(void (*)(void))ring_participants, METH_NOARGS, NULL},
    {"groups", (PyCFunction)(void (*)(void))ring_groups, METH_NOARGS, NULL},
    {"leases", (PyCFunction)(void (*)(void))ring_leases, METH_NOARGS, NULL},
    {"counters", (PyCFunction)(void (*)(void))ring_counters, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot ring_slots[] = {
    {Py_tp_new, (void *)ring_new},
    {Py_tp_dealloc, (void *)ring_dealloc},
    {Py_tp_methods, ring_methods},
    {0, NULL},
};

static PyType_Spec ring_spec = {
    .name = "shmbus._core.Ring",
    .basicsize = sizeof(RingObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = ring_slots,
};

static PyObject *set_slice(PyObject *Py_UNUSED(module), PyObject *seconds)
{
    double value = PyFloat_AsDouble(seconds);
    if (PyErr_Occurred())
        return NULL;
    double before = os_slice_ns < 0 ? -1.0 : (double)os_slice_ns / 1e9;
    os_slice_ns = value < 0 ? -1 : (int64_t)(value * 1e9);
    return PyFloat_FromDouble(before);
}

static PyObject *own_start_time(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(none))
{
    return PyLong_FromUnsignedLongLong(os_start_time());
}

static PyMethodDef ring_functions[] = {
    {"set_wait_slice", set_slice, METH_O, NULL},
    {"own_start_time", own_start_time, METH_NOARGS, NULL},
    {NULL, NULL, 0, NULL},
};

int core_add_ring(PyObject *module)
{
    os_fork_count();                                                     /* from now on forks are noticed */
    PyObject *type = PyType_FromModuleAndSpec(module, &ring_spec, NULL); /* new */
    if (!type)
        return -1;
    int added = PyModule_AddObjectRef(module, "Ring", type);
    Py_DECREF(type);
    return added < 0 ? -1 : PyModule_AddFunctions(module, ring_functions);
}
