/* What the Python types of the ring share: the ring object, errors, deadlines. */
#ifndef SHMBUS_PY_RING_H
#define SHMBUS_PY_RING_H

#include "pycore.h"

#include "os.h"
#include "ring.h"

#define LABEL_BYTES 200

typedef struct {
    PyObject_HEAD
    struct ring ring;
    Py_buffer control, data; /* pin the two regions while the ring is open */
    bool open;
    /* attached producers, consumers and tickets: the ring cannot be released under them */
    uint32_t endpoints;
    struct member *tickets;
    uint32_t ticket_count;
    uint32_t forks;          /* of the process that made this object; its tickets are that process's */
    char label[LABEL_BYTES]; /* what messages call the channel */
} RingObject;

/* No deadline; -1 cannot be a deadline, since the clock is positive. */
#define NO_DEADLINE ((int64_t)-1)
#define NO_WAIT ((int64_t)-2)

/* Sets the exception that fits; always returns NULL. `size_bytes` is for TooLarge. */
PyObject *core_raise(RingObject *ring, enum ring_result result, uint64_t size_bytes);
/* Sets shmbus.errors.<name>; always returns NULL. */
PyObject *core_error(PyObject *any_core_object, const char *name, const char *format, ...);
/* float seconds or None to an absolute deadline in nanoseconds; -3 with an exception set. */
int64_t core_deadline(PyObject *timeout);
/* What is left until the deadline in nanoseconds: negative for no deadline, 0 when it has passed. */
int64_t core_left_ns(int64_t deadline);
/* (value, timeout=None), as METH_FASTCALL | METH_KEYWORDS hands them over. `required` 0 or 1 values before
 * it. 0, or -1 with an exception set. */
int core_value_and_timeout(const char *name, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames,
                           int required, PyObject **value, PyObject **timeout);
/* Calls tend() if there is one and half a second has gone since the last time. 0, or -1 with an exception
 * set. */
int core_tend(PyObject *tend, uint64_t *next_ns);
RingObject *core_ring_of(PyObject *object); /* borrowed; NULL with TypeError, or Closed if released */

#define LONG_COPY_BYTES (256 * 1024) /* longer copies are made without the interpreter's lock */

#endif
