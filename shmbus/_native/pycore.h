/* What every file of shmbus._core that knows Python shares.
 *
 * One file per type includes this header (py_region.c, ...); the plain C below them (region.c, ...)
 * does not know Python.  Each type file exports one registration, `int core_add_x(PyObject *module)`,
 * which makes its heap type, adds it to the module and keeps a reference in the module's state;
 * module.c lists the registrations in one table.
 *
 * References in this folder are marked "new", "borrowed" or "steals" where they change hands.
 */
#ifndef SHMBUS_PYCORE_H
#define SHMBUS_PYCORE_H

#include <pyconfig.h>
#ifdef Py_GIL_DISABLED
#error "shmbus._core keeps to the stable ABI of the GIL build; a free-threaded interpreter has another"
#endif

#define PY_SSIZE_T_CLEAN
#include <Python.h>

/* Per-module state: strong references, visited and cleared by module.c. */
typedef struct {
    PyTypeObject *region_type;
    PyTypeObject *loan_type;
    PyTypeObject *lease_type;
} core_state;

/* The state of a fully or partly initialised module; never NULL for shmbus._core. */
core_state *core_state_of(PyObject *module);

/* Registrations: 0, or -1 with an exception set. */
int core_add_region(PyObject *module);
int core_add_ring(PyObject *module);
int core_add_producer(PyObject *module);
int core_add_consumer(PyObject *module);

#endif
