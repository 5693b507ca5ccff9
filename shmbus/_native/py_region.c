/* The type shmbus._core.Region: a mapping with a buffer.
 *
 * Every system call here runs without the GIL, so another thread may call into the same region
 * meanwhile.  What keeps that whole, all of it read and written under the GIL:
 *
 *   exports      buffers handed out and not yet released
 *   calls        threads that are inside a system call on the mapping
 *   prot         rights that a new export may rely on; while protect() runs: only those that both
 *                the old and the new protection grant, so no view is born with a right about to go
 *   protecting   a protect() is under way; there is one at a time
 *
 *   counted_by   the process that `calls` and `protecting` belong to: in a forked child the threads
 *                that were inside a call do not exist, and both start anew
 *
 *   Taking away (close(), protect() with fewer rights):  only if exports == 0 and calls == 0.
 *   close() clears the base under the GIL before it unmaps: there is exactly one munmap.
 *
 * Errors of the system are OSError with its errno, a closed region is ValueError; shmbus.region makes
 * typed errors of both.
 */
#include "pycore.h"

#include "region.h"

#include <errno.h>
#include <stdbool.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

typedef struct {
    PyObject_HEAD
    struct region region;
    int prot;
    bool shared;
    bool protecting;
    Py_ssize_t exports;
    Py_ssize_t calls;
    pid_t counted_by;
} RegionObject;

static const int all_rights = PROT_READ | PROT_WRITE | PROT_EXEC;

static bool is_mirrored(const RegionObject *self) { return self->region.span != self->region.length; }

/* -1 with OSError set, from an errno value. */
static int raise_errno(int error)
{
    errno = error;
    (void)PyErr_SetFromErrno(PyExc_OSError);
    return -1;
}

static int check_open(const RegionObject *self)
{
    if (self->region.base == NULL) {
        PyErr_SetString(PyExc_ValueError, "the region is closed");
        return -1;
    }
    return 0;
}

/* Before `calls` or `protecting` is looked at. */
static void forget_other_process(RegionObject *self)
{
    const pid_t pid = getpid();
    if (self->counted_by != pid) {
        self->counted_by = pid;
        self->calls = 0;
        self->protecting = false;
    }
}

/* May something be taken away from whoever uses the mapping now? */
static int check_unused(RegionObject *self, const char *action)
{
    forget_other_process(self);
    if (self->exports > 0) {
        PyErr_Format(PyExc_BufferError,
                     "cannot %s while %zd %s in use: call memoryview.release() first, or del "
                     "what was made from it",
                     action, self->exports, self->exports == 1 ? "view is" : "views are");
        return -1;
    }
    if (self->calls > 0 || self->protecting) {
        PyErr_Format(PyExc_BufferError, "cannot %s: another thread is inside a call on the region", action);
        return -1;
    }
    return 0;
}

/* ---- making ---------------------------------------------------------------------------------- */

static PyObject *region_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    (void)type, (void)args, (void)kwargs;
    PyErr_SetString(PyExc_TypeError, "a Region is made by one of its class methods: map(), anonymous(), ...");
    return NULL;
}

PyDoc_STRVAR(map_doc, "map($type, /, fd, length, prot, shared, offset=0, mirrored=False)\n--\n\n"
                      "Map length bytes of fd (-1: anonymous memory) from offset on.");

static PyObject *region_map_method(PyObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"fd", "length", "prot", "shared", "offset", "mirrored", NULL};
    int fd = 0;
    Py_ssize_t length = 0;
    int prot = 0;
    int shared = 0;
    long long offset = 0;
    int mirrored = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "inip|Lp:map", names, &fd, &length, &prot, &shared,
                                     &offset, &mirrored)) {
        return NULL;
    }
    if (length <= 0 || (mirrored && length > PY_SSIZE_T_MAX / 2)) {
        return PyErr_Format(PyExc_ValueError, "length must be positive and addressable, not %zd", length);
    }
    if ((prot & ~all_rights) != 0) {
        return PyErr_Format(PyExc_ValueError, "prot has unknown bits: %d", prot);
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot((PyTypeObject *)type, Py_tp_alloc);
    RegionObject *self = (RegionObject *)allocate((PyTypeObject *)type, 0); /* new, zeroed */
    if (self == NULL) {
        return NULL;
    }
    const struct region_request request = {
        .fd = fd < 0 ? -1 : fd,
        .length = (size_t)length,
        .prot = prot,
        .shared = shared != 0,
        .offset = offset,
        .mirrored = mirrored != 0,
    };
    struct region mapped;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = region_map(&mapped, &request);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        Py_DECREF(self);
        (void)raise_errno(error);
        return NULL;
    }
    self->region = mapped;
    self->prot = prot;
    self->shared = request.shared;
    return (PyObject *)self;
}

static void region_dealloc(RegionObject *self)
{
    /* An export owns a reference, so nothing looks at the mapping any more. */
    PyTypeObject *type = Py_TYPE((PyObject *)self);
    if (self->region.base != NULL) {
        struct region mapped = self->region;
        self->region.base = NULL;
        Py_BEGIN_ALLOW_THREADS(void)
        region_unmap(&mapped);
        Py_END_ALLOW_THREADS
    }
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(self);
    Py_DECREF(type); /* instances of heap types own their type */
}

PyDoc_STRVAR(close_doc, "close($self, /)\n--\n\n"
                        "Unmap the region.  Repeating it is harmless.");

static PyObject *region_close(RegionObject *self, PyObject *unused)
{
    (void)unused;
    if (self->region.base == NULL) {
        Py_RETURN_NONE;
    }
    if (check_unused(self, "close") < 0) {
        return NULL;
    }
    struct region mapped = self->region;
    self->region.base = NULL;
    int error;
    Py_BEGIN_ALLOW_THREADS
    error = region_unmap(&mapped);
    Py_END_ALLOW_THREADS
    if (error != 0) {
        (void)raise_errno(error);
        return NULL;
    }
    Py_RETURN_NONE;
}

/* ---- buffer ---------------------------------------------------------------------------------- */

static int region_getbuffer(RegionObject *self, Py_buffer *view, int flags)
{
    view->obj = NULL;
    if (self->region.base == NULL) {
        PyErr_SetString(PyExc_BufferError, "the region is closed");
        return -1;
    }
    if ((self->prot & PROT_READ) == 0) {
        PyErr_SetString(PyExc_BufferError,
                        "the region's protection does not allow reading; protect() can grant it");
        return -1;
    }
    const int readonly = (self->prot & PROT_WRITE) == 0;
    if (PyBuffer_FillInfo(view, (PyObject *)self, self->region.base, (Py_ssize_t)self->region.span, readonly,
                          flags) < 0) {
        return -1;
    }
    self->exports++;
    return 0;
}

static void region_releasebuffer(RegionObject *self, Py_buffer *view)
{
    (void)view;
    self->exports--;
}

static Py_ssize_t region_len(RegionObject *self)
{
    return self->region.base == NULL ? 0 : (Py_ssize_t)self->region.span;
}

/* ---- calls on the mapping -------------------------------------------------------------------- */

/* Run one region_* call without the GIL, counted in `calls`.  None, or NULL with OSError set. */
#define CALL_WITHOUT_GIL(self, error, call)                                                                  \
    do {                                                                                                     \
        forget_other_process(self);                                                                          \
        (self)->calls++;                                                                                     \
        Py_BEGIN_ALLOW_THREADS(error)                                                                        \
        = (call);                                                                                            \
        Py_END_ALLOW_THREADS(self)                                                                           \
        ->calls--;                                                                                           \
    } while (0)

static PyObject *none_or_errno(int error)
{
    if (error != 0) {
        (void)raise_errno(error);
        return NULL;
    }
    Py_RETURN_NONE;
}

PyDoc_STRVAR(protect_doc, "protect($self, prot, /)\n--\n\n"
                          "Change the protection of the whole region.");

static PyObject *region_protect_method(RegionObject *self, PyObject *argument)
{
    const long asked = PyLong_AsLong(argument);
    if (asked == -1 && PyErr_Occurred()) {
        return NULL;
    }
    if (asked < 0 || (asked & ~(long)all_rights) != 0) {
        return PyErr_Format(PyExc_ValueError, "prot has unknown bits: %ld", asked);
    }
    if (check_open(self) < 0) {
        return NULL;
    }
    const int prot = (int)asked;
    const int old = self->prot;
    forget_other_process(self);
    if (self->protecting) {
        PyErr_SetString(PyExc_BufferError, "another thread is changing the protection of the region");
        return NULL;
    }
    if ((old & ~prot) != 0 && check_unused(self, "take a right away") < 0) {
        return NULL;
    }
    self->prot = old & prot;
    self->protecting = true;
    int error;
    CALL_WITHOUT_GIL(self, error, region_protect(&self->region, prot));
    self->protecting = false;
    self->prot = error == 0 ? prot : old;
    return none_or_errno(error);
}

PyDoc_STRVAR(lock_doc, "lock($self, /)\n--\n\n"
                       "Keep every page in memory (mlock).");

static PyObject *region_lock_method(RegionObject *self, PyObject *unused)
{
    (void)unused;
    if (check_open(self) < 0) {
        return NULL;
    }
    int error;
    CALL_WITHOUT_GIL(self, error, region_lock(&self->region));
    return none_or_errno(error);
}

PyDoc_STRVAR(unlock_doc, "unlock($self, /)\n--\n\n"
                         "Undo lock().");

static PyObject *region_unlock_method(RegionObject *self, PyObject *unused)
{
    (void)unused;
    if (check_open(self) < 0) {
        return NULL;
    }
    int error;
    CALL_WITHOUT_GIL(self, error, region_unlock(&self->region));
    return none_or_errno(error);
}

/* A byte range of the backing from offset and an optional length (None or absent: to the end). */
static int parse_range(const RegionObject *self, Py_ssize_t offset, PyObject *length_or_none, size_t *length)
{
    if (check_open(self) < 0) {
        return -1;
    }
    const Py_ssize_t whole = (Py_ssize_t)self->region.length;
    if (offset < 0 || offset > whole) {
        PyErr_Format(PyExc_ValueError, "offset %zd is outside the region's %zd bytes", offset, whole);
        return -1;
    }
    Py_ssize_t asked = whole - offset;
    if (length_or_none != NULL && length_or_none != Py_None) {
        asked = PyNumber_AsSsize_t(length_or_none, PyExc_OverflowError);
        if (asked == -1 && PyErr_Occurred()) {
            return -1;
        }
        /* Index conversion may have run Python code, which may have closed the region. */
        if (check_open(self) < 0) {
            return -1;
        }
    }
    if (asked < 0 || asked > whole - offset) {
        PyErr_Format(PyExc_ValueError, "length %zd from offset %zd is outside the region's %zd bytes", asked,
                     offset, whole);
        return -1;
    }
    *length = (size_t)asked;
    return 0;
}

PyDoc_STRVAR(flush_doc, "flush($self, /, offset=0, length=None, *, wait=True)\n--\n\n"
                        "Write a byte range back to the file (msync).");

static PyObject *region_flush_method(RegionObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"offset", "length", "wait", NULL};
    Py_ssize_t offset = 0;
    PyObject *length_or_none = NULL; /* borrowed */
    int wait = 1;
    size_t length = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|nO$p:flush", names, &offset, &length_or_none, &wait) ||
        parse_range(self, offset, length_or_none, &length) < 0) {
        return NULL;
    }
    int error;
    CALL_WITHOUT_GIL(self, error, region_flush(&self->region, (size_t)offset, length, wait != 0));
    return none_or_errno(error);
}

PyDoc_STRVAR(advise_doc, "advise($self, /, advice, offset=0, length=None)\n--\n\n"
                         "Tell the kernel how a byte range will be used (madvise).");

static PyObject *region_advise_method(RegionObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"advice", "offset", "length", NULL};
    int advice = 0;
    Py_ssize_t offset = 0;
    PyObject *length_or_none = NULL; /* borrowed */
    size_t length = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "i|nO:advise", names, &advice, &offset, &length_or_none) ||
        parse_range(self, offset, length_or_none, &length) < 0) {
        return NULL;
    }
    int error;
    CALL_WITHOUT_GIL(self, error, region_advise(&self->region, (size_t)offset, length, advice));
    return none_or_errno(error);
}

PyDoc_STRVAR(populate_doc, "populate($self, /, offset=0, length=None, *, write=None)\n--\n\n"
                           "Fault a byte range in, for writing (the default where the protection allows it) "
                           "or for reading.");

static PyObject *region_populate_method(RegionObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"offset", "length", "write", NULL};
    Py_ssize_t offset = 0;
    PyObject *length_or_none = NULL; /* borrowed */
    PyObject *write_or_none = NULL;  /* borrowed */
    size_t length = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|nO$O:populate", names, &offset, &length_or_none,
                                     &write_or_none)) {
        return NULL;
    }
    int write = -1;
    if (write_or_none != NULL && write_or_none != Py_None) {
        write = PyObject_IsTrue(write_or_none);
        if (write < 0) {
            return NULL;
        }
    }
    if (parse_range(self, offset, length_or_none, &length) < 0) {
        return NULL;
    }
    if (write < 0) {
        write = (self->prot & PROT_WRITE) != 0;
    }
    /* Checked here because the fallback for old kernels touches the pages; `calls` holds it so. */
    if ((self->prot & (write ? PROT_WRITE : PROT_READ)) == 0) {
        (void)raise_errno(EACCES);
        return NULL;
    }
    int error;
    CALL_WITHOUT_GIL(self, error, region_populate(&self->region, (size_t)offset, length, write != 0));
    return none_or_errno(error);
}

/* list[bool] of `count` pages; new. */
static PyObject *list_of_pages(const unsigned char *pages, Py_ssize_t count)
{
    PyObject *list = PyList_New(count); /* new */
    for (Py_ssize_t i = 0; list != NULL && i < count; i++) {
        PyObject *item = PyBool_FromLong(pages[i] & 1); /* new */
        if (PyList_SetItem(list, i, item) < 0) {        /* steals */
            Py_CLEAR(list);
        }
    }
    return list;
}

PyDoc_STRVAR(resident_doc, "resident($self, /, offset=0, length=None)\n--\n\n"
                           "Which pages of a byte range are in memory (mincore): one bool a page.");

static PyObject *region_resident_method(RegionObject *self, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"offset", "length", NULL};
    Py_ssize_t offset = 0;
    PyObject *length_or_none = NULL; /* borrowed */
    size_t length = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|nO:resident", names, &offset, &length_or_none) ||
        parse_range(self, offset, length_or_none, &length) < 0) {
        return NULL;
    }
    const size_t count = region_page_count((size_t)offset, length);
    unsigned char *pages = PyMem_Malloc(count);
    if (pages == NULL) {
        return PyErr_NoMemory();
    }
    int error;
    CALL_WITHOUT_GIL(self, error, region_resident(&self->region, (size_t)offset, length, pages));
    PyObject *list = NULL;
    if (error != 0) {
        (void)raise_errno(error);
    } else {
        list = list_of_pages(pages, (Py_ssize_t)count);
    }
    PyMem_Free(pages);
    return list;
}

/* ---- attributes ------------------------------------------------------------------------------ */

static PyObject *get_address(RegionObject *self, void *unused)
{
    (void)unused;
    return check_open(self) < 0 ? NULL : PyLong_FromVoidPtr(self->region.base);
}

static PyObject *get_length(RegionObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSize_t(self->region.length);
}

static PyObject *get_prot(RegionObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromLong(self->prot);
}

static PyObject *get_shared(RegionObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->shared);
}

static PyObject *get_mirrored(RegionObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(is_mirrored(self));
}

static PyObject *get_exports(RegionObject *self, void *unused)
{
    (void)unused;
    return PyLong_FromSsize_t(self->exports);
}

static PyObject *get_closed(RegionObject *self, void *unused)
{
    (void)unused;
    return PyBool_FromLong(self->region.base == NULL);
}

/* ---- the type -------------------------------------------------------------------------------- */

#define METHOD(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef region_methods[] = {
    {"map", METHOD(region_map_method), METH_VARARGS | METH_KEYWORDS | METH_CLASS, map_doc},
    {"close", METHOD(region_close), METH_NOARGS, close_doc},
    {"protect", METHOD(region_protect_method), METH_O, protect_doc},
    {"lock", METHOD(region_lock_method), METH_NOARGS, lock_doc},
    {"unlock", METHOD(region_unlock_method), METH_NOARGS, unlock_doc},
    {"flush", METHOD(region_flush_method), METH_VARARGS | METH_KEYWORDS, flush_doc},
    {"advise", METHOD(region_advise_method), METH_VARARGS | METH_KEYWORDS, advise_doc},
    {"populate", METHOD(region_populate_method), METH_VARARGS | METH_KEYWORDS, populate_doc},
    {"resident", METHOD(region_resident_method), METH_VARARGS | METH_KEYWORDS, resident_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef region_attributes[] = {
    {"address", (getter)get_address, NULL, "Where the first byte lies in this process.", NULL},
    {"length", (getter)get_length, NULL, "Bytes of the backing that are mapped.", NULL},
    {"prot_bits", (getter)get_prot, NULL, "The protection's bits, as of mmap(2).", NULL},
    {"shared", (getter)get_shared, NULL, "Whether others see what is written here.", NULL},
    {"mirrored", (getter)get_mirrored, NULL, "Whether the bytes are mapped twice, back to back.", NULL},
    {"exports", (getter)get_exports, NULL, "How many buffers of the region are in use.", NULL},
    {"closed", (getter)get_closed, NULL, "Whether close() has unmapped the region.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot region_slots[] = {
    {Py_tp_doc, (void *)"A mapped piece of memory, read and written through its buffer."},
    {Py_tp_new, (void *)region_new},
    {Py_tp_dealloc, (void *)region_dealloc},
    {Py_tp_methods, region_methods},
    {Py_tp_getset, region_attributes},
    {Py_bf_getbuffer, (void *)region_getbuffer},
    {Py_bf_releasebuffer, (void *)region_releasebuffer},
    {Py_mp_length, (void *)region_len},
    {0, NULL},
};

static PyType_Spec region_spec = {
    .name = "shmbus._core.Region",
    .basicsize = sizeof(RegionObject),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_BASETYPE,
    .slots = region_slots,
};

int core_add_region(PyObject *module)
{
    PyTypeObject *type = (PyTypeObject *)PyType_FromModuleAndSpec(module, &region_spec, NULL); /* new */
    if (type == NULL) {
        return -1;
    }
    core_state_of(module)->region_type = type; /* steals */
    return PyModule_AddType(module, type);
}
