/* explore.h: what code under check, and its scenarios, may call.  How it works: explore.c.
 *
 * A *process* here is a coroutine running the real C source.  It gives way only inside the calls marked
 * [point]; everything between two points is one indivisible step.  So each access to memory that another
 * process may touch must have a point directly before it. */
#ifndef SHMBUS_MODEL_EXPLORE_H
#define SHMBUS_MODEL_EXPLORE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { MODEL_PROCS = 8, MODEL_BLOCKS = 24, MODEL_STACK_BYTES = 16384 };

/* ---- for the code under check ------------------------------------------------------------------------- */

/* [point] Call before each shared access.  Outside a process (set-up, invariant, final, a ready()) it and
 * every other [point] simply go on. */
void model_step(void);

/* [point] The same from within a wrapper, which passes __builtin_return_address(0): traces name its caller's line. */
void model_step_from(const void *caller);

/* [point] A value in 0..n-1, each of them explored.  Nothing else runs, and nobody dies, between asking
 * and being answered: the choice belongs to the step that it is made in.  Outside a process: 0. */
int model_choose(int n);

/* [point] One atomic act: if *word == expected sleep and, once woken, return 0; otherwise return EAGAIN. */
int model_futex_wait(uint32_t *word, uint32_t expected);

/* [point] The same, but the sleep may also end by itself at any later moment: ETIMEDOUT. */
int model_futex_wait_timed(uint32_t *word, uint32_t expected);

/* [point] Wakes up to n sleepers on word and returns how many.  When there are more than n, every possible
 * set of them is explored.  The dead do not sleep. */
int model_futex_wake(uint32_t *word, int n);

/* [point] Has the process been killed?  A process that returned from run() is finished, not dead. */
bool model_is_dead(int process);
bool model_is_finished(int process);

/* The set of processes, a bit each, that have neither finished nor died.  Not a point: only to decide whether one is
 * needed, as in "nobody who is still active ever touches this word". */
unsigned model_active(void);

/* [point] Goes on only at a moment when ready(context) holds.  ready() must be a pure function of
 * registered memory, model_is_dead() and model_is_finished(); it runs outside any process. */
void model_wait(bool (*ready)(void *context), void *context);

/* Two [point]s, one before each half (one for up to 8 bytes): a copy that others may see, or make, torn. */
void model_copy(void *to, const void *from, size_t bytes);

/* The number of the running process; -1 outside. */
int model_self(void);

/* Reports a violation with the schedule that led to it, unless holds. */
void model_assert(bool holds, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Shown in traces from here to the process's next label; the text must be a constant.  Not a point. */
void model_label(const char *text);

/* ---- for scenarios ------------------------------------------------------------------------------------ */

struct model_proc {
    void (*run)(void *arg);
    void *arg;
    bool may_die; /* may be killed before any of its points, and in its sleep */
    bool daemon;  /* need not finish (a reaper); it must come to rest in model_wait or a futex */
};

struct scenario {
    const char *name;
    void (*setup)(void);     /* optional: the first state, written over zeroed blocks */
    int nprocs;
    struct model_proc procs[MODEL_PROCS];
    int max_deaths;
    void *blocks[MODEL_BLOCKS]; /* all memory that processes change, shared or private, but for their stacks */
    size_t block_bytes[MODEL_BLOCKS];
    const char *block_names[MODEL_BLOCKS]; /* optional, for traces */
    void (*invariant)(void); /* optional: asserted in every state */
    void (*final)(void);     /* optional: asserted in every terminal state (all finished or dead, daemons at rest) */
};

/* The command line around a table of scenarios.
 * Returns the exit status: 0 all OK, 1 a violation, 2 misuse or a search that did not complete. */
int model_main(int argc, char **argv, const struct scenario *scenarios, int count);

#ifdef __cplusplus
}
#endif
#endif
