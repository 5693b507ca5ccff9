/* Module initialisation of shmbus._core: multi-phase, with per-module state and no static types. */
#include "pycore.h"

#include <stdbool.h>

/* To add a type: one field in core_state, one line here, and its line in core_traverse and core_clear. */
static int (*const registrations[])(PyObject *module) = {
    core_add_region,
    core_add_ring,
    core_add_producer,
    core_add_consumer,
};

core_state *core_state_of(PyObject *module) { return (core_state *)PyModule_GetState(module); }

static int core_exec(PyObject *module)
{
    for (size_t i = 0; i < sizeof registrations / sizeof registrations[0]; i++) {
        if (registrations[i](module) < 0) {
            return -1;
        }
    }
    return 0;
}

static int core_traverse(PyObject *module, visitproc visit, void *arg)
{
    core_state *state = core_state_of(module);
    if (state == NULL) {
        return 0;
    }
    Py_VISIT(state->region_type);
    Py_VISIT(state->loan_type);
    Py_VISIT(state->lease_type);
    return 0;
}

static int core_clear(PyObject *module)
{
    core_state *state = core_state_of(module);
    if (state == NULL) {
        return 0;
    }
    Py_CLEAR(state->region_type);
    Py_CLEAR(state->loan_type);
    Py_CLEAR(state->lease_type);
    return 0;
}

static void core_free(void *module) { (void)core_clear((PyObject *)module); }

static PyModuleDef_Slot core_slots[] = {
    {Py_mod_exec, (void *)core_exec},
    {0, NULL},
};

static struct PyModuleDef core_module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "shmbus._core",
    .m_doc = "The native core of shmbus: mapping calls, atomics, futexes and the record hot path.",
    .m_size = sizeof(core_state),
    .m_slots = core_slots,
    .m_traverse = core_traverse,
    .m_clear = core_clear,
    .m_free = core_free,
};

/* True when sys.abiflags has the "t" of a free-threaded build. */
static bool interpreter_is_free_threaded(void)
{
    PyObject *flags = PySys_GetObject("abiflags"); /* borrowed */
    if (flags == NULL || !PyUnicode_Check(flags)) {
        return false;
    }
    PyObject *letter = PyUnicode_FromString("t"); /* new */
    if (letter == NULL) {
        PyErr_Clear();
        return false;
    }
    int found = PyUnicode_Contains(flags, letter);
    Py_DECREF(letter);
    if (found < 0) {
        PyErr_Clear();
    }
    return found > 0;
}

PyMODINIT_FUNC PyInit__core(void)
{
    /* Asked before PyModuleDef_Init: objects are laid out differently there, and core_module is an object. */
    if (interpreter_is_free_threaded()) {
        PyErr_SetString(PyExc_ImportError,
                        "shmbus._core was built for CPython's stable ABI, which a free-threaded interpreter "
                        "does not share; run shmbus with the ordinary (GIL) build of the same version");
        return NULL;
    }
    return PyModuleDef_Init(&core_module);
}
