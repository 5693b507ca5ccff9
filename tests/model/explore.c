/* explore.c: an exhaustive, sequentially consistent, explicit-state model checker that runs real C.
 *
 *   cc -std=gnu11 -g -O1 -fno-stack-protector -U_FORTIFY_SOURCE -ftrivial-auto-var-init=zero explore.c scenarios.c …
 *
 * (-O1 because it leaves the fewest dead values in live stacks, and each of those splits states; -g for traces.)
 *
 * THEORY OF OPERATION
 *
 * Processes.  Each process of a scenario is a coroutine on a small stack at a fixed address.  It gives way to
 * the search at its points (explore.h), which stand directly *before* each access to shared memory.  A step runs
 * one process from its point, through the access, to its next point; what lies between is local, so it commutes
 * with everything else and needs no point of its own.  For the same reason these are done at once, as part of the
 * step that made them possible: the code of a process before its first point, and the code of a woken sleeper up to
 * its next point.
 *
 * State.  Control words (one chunk a process: status, stack pointer, what it waits for), the registered blocks, and
 * of each stack the part from the stack pointer up, where the switch has also put the callee-saved registers.  Dead
 * stack is zeroed at every switch, so old garbage does not split states.  The state is saved and restored by copying
 * (explore_state.h), so no prefix is ever run again.
 *
 * Moves.  From each state: a step of each process that can run; each answer to a pending model_choose (and then
 * nothing else: the choice belongs to an unfinished step); and, while deaths < max_deaths, the death of each living,
 * unfinished may_die process, running or asleep.  A death takes the process off futex queues and forgets its stack.
 *
 * Search.  Depth first, with a set of 128-bit hashes of states seen; nothing is reduced but what is said above.
 *   stuck:     some process that is not a daemon has not finished, and none can run (a death is no way out).
 *   terminal:  none can run and all but daemons are finished or dead; final() is checked.
 *   livelock:  a state from which no terminal state can be reached without further deaths (AG EF done).  Found by
 *              Tarjan's components, in the same pass: a component that closes with neither a terminal state nor an edge
 *              (other than a death) into an earlier one is a trap.  Since a trap ends the search, every closed component
 *              is good, and one bit for each state suffices.  Deaths only grow in number, so they are on no cycle.
 *   invariant: checked in each new state.
 * --preemptions N searches all schedules in which a process that could go on is left for another at most N times (the
 * usual way to get far in scenarios too large to search out: most mistakes show with two or three), --random walks.
 * A violation found is sought again with growing bounds on preemptions and then on depth, so that the schedule printed
 * can be read.  It is then replayed to print lines and changes of memory.
 *
 * What it is not: weak memory is not explored, only sequentially consistent interleavings; a process that loops for
 * ever *without* a point is stopped after a second or so; memory that changes and is not registered (errno, malloc, static
 * variables) would make states lie, which running a sample of the steps twice usually shows.
 *
 * Memory: about 27 to 53 bytes for each state seen (20 a place, three quarters to three eighths full; while the table
 * doubles, half as much again) plus 88 bytes for each chunk changed along the current path; --max-memory bounds it all. */
#if defined(__GNUC__) && !defined(__clang__)
#pragma GCC optimize("O3") /* the search is hot; code under check is best compiled with -O1 */
#endif
#define _GNU_SOURCE
#include "explore.h"

#include <errno.h>
#include <fnmatch.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#include "explore_state.h"

/* ---- coroutines --------------------------------------------------------------------------------------- */

enum status { RUNNABLE, CHOOSING, WAITING, TIMED_SLEEP, SLEEPING, WOKEN, FINISHED, DEAD };

static const char *const status_names[] = {
    "can run", "chooses", "waits in model_wait", "sleeps on a futex (timed)", "sleeps on a futex", "woken", "finished", "dead",
};

struct __attribute__((aligned(CHUNK))) control { /* one chunk each; part of the state */
    uint64_t sp;
    uint32_t status;
    int32_t choice; /* asked: the number of choices; answered: the choice */
    uint32_t *word; /* SLEEPING: on what */
    bool (*ready)(void *);
    void *context;
    uint32_t timed_out;
};
_Static_assert(sizeof(struct control) == CHUNK, "a control word is a chunk");

enum { GUARD = 65536 }; /* a page, whatever its size */
static struct __attribute__((aligned(GUARD))) {
    unsigned char guard[GUARD];
    unsigned char bytes[(MODEL_STACK_BYTES + GUARD - 1) / GUARD * GUARD];
} stacks[MODEL_PROCS];

static struct control control[MODEL_PROCS];
static const struct scenario *scenario;
static int current = -1; /* the process that runs */
static uint64_t search_sp;
static uint32_t first_stack_chunk;

static struct note { /* where a process stands, for traces; deliberately no part of the state */
    const void *pc;
    const char *label;
} notes[MODEL_PROCS];

static char violation[512];
static bool tracing;
static void violate(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Pushes the callee-saved registers, stores the stack pointer, and continues on another stack. */
void model_switch(uint64_t *save_sp, uint64_t to_sp);
#if defined(__x86_64__)
enum { RETURN_WORD = 6, FRAME_WORDS = 6 };
__asm__(".text\n.globl model_switch\n.type model_switch,@function\nmodel_switch:\n"
        "  pushq %rbp\n  pushq %rbx\n  pushq %r12\n  pushq %r13\n  pushq %r14\n  pushq %r15\n"
        "  movq %rsp, (%rdi)\n  movq %rsi, %rsp\n"
        "  popq %r15\n  popq %r14\n  popq %r13\n  popq %r12\n  popq %rbx\n  popq %rbp\n  ret\n"
        ".size model_switch,.-model_switch\n");
#elif defined(__aarch64__)
enum { RETURN_WORD = 11, FRAME_WORDS = 20 }; /* x30 is the 12th word */
__asm__(".text\n.globl model_switch\n.type model_switch,%function\nmodel_switch:\n"
        "  sub sp, sp, #160\n"
        "  stp x19, x20, [sp]\n  stp x21, x22, [sp, #16]\n  stp x23, x24, [sp, #32]\n  stp x25, x26, [sp, #48]\n"
        "  stp x27, x28, [sp, #64]\n  stp x29, x30, [sp, #80]\n"
        "  stp d8, d9, [sp, #96]\n  stp d10, d11, [sp, #112]\n  stp d12, d13, [sp, #128]\n  stp d14, d15, [sp, #144]\n"
        "  mov x9, sp\n  str x9, [x0]\n  mov sp, x1\n"
        "  ldp x19, x20, [sp]\n  ldp x21, x22, [sp, #16]\n  ldp x23, x24, [sp, #32]\n  ldp x25, x26, [sp, #48]\n"
        "  ldp x27, x28, [sp, #64]\n  ldp x29, x30, [sp, #80]\n"
        "  ldp d8, d9, [sp, #96]\n  ldp d10, d11, [sp, #112]\n  ldp d12, d13, [sp, #128]\n  ldp d14, d15, [sp, #144]\n"
        "  add sp, sp, #160\n  ret\n"
        ".size model_switch,.-model_switch\n");
#else
#error "explore.c switches stacks by hand: add model_switch for this processor"
#endif

static inline uint64_t stack_top(int p)
{
    return (uint64_t)(uintptr_t)(stacks[p].bytes + sizeof stacks[p].bytes);
}

static void give_way(const void *pc, enum status status)
{
    notes[current].pc = pc;
    control[current].status = status;
    model_switch(&control[current].sp, search_sp);
}

static void process_body(void)
{
    scenario->procs[current].run(scenario->procs[current].arg);
    notes[current].pc = NULL;
    give_way(NULL, FINISHED);
    abort();
}

static void prepare_stack(int p)
{
    memset(stacks[p].bytes, 0, sizeof stacks[p].bytes);
    uint64_t *frame = (uint64_t *)(uintptr_t)stack_top(p) - 2 - FRAME_WORDS;
    frame[RETURN_WORD] = (uint64_t)(uintptr_t)process_body;
    control[p] = (struct control){.sp = (uint64_t)(uintptr_t)frame};
}

/* Makes the stack of p canonical: zero below its stack pointer, and everywhere when p is gone. */
static void clean_stack(int p)
{
    struct control *c = &control[p];
    unsigned char *at = (unsigned char *)(uintptr_t)c->sp, *bottom = stacks[p].bytes;
    size_t odd = (uintptr_t)at % CHUNK;
    memset(at -= odd, 0, odd);
    for (int clean = 0; clean < 16 && at > bottom; at -= CHUNK) { /* until a kilobyte was clean */
        static const unsigned char zeros[CHUNK];
        if (same_bytes(at - CHUNK, zeros, CHUNK))
            clean++;
        else
            clean = 0, memset(at - CHUNK, 0, CHUNK);
    }
    if (c->status >= FINISHED) {
        memset((void *)(uintptr_t)c->sp, 0, stack_top(p) - c->sp);
        *c = (struct control){.sp = stack_top(p), .status = c->status};
    }
}

/* Runs p to its next point, and after it each sleeper that it woke.  Returns the set of those that ran. */
static unsigned run(int p)
{
    unsigned ran = 0;
    while (p >= 0) {
        ran |= 1u << p;
        control[p].status = RUNNABLE;
        current = p;
        model_switch(&search_sp, control[p].sp);
        current = -1;
        clean_stack(p);
        for (p = scenario->nprocs - 1; p >= 0 && control[p].status != WOKEN; p--)
            ;
    }
    return ran;
}

/* ---- what code under check calls ----------------------------------------------------------------------- */

#define PC __builtin_return_address(0)

static inline void point(const void *pc)
{
    if (current >= 0)
        give_way(pc, RUNNABLE);
}

static int choose(const void *pc, int n)
{
    if (current < 0 || n <= 1)
        return 0;
    struct control *c = &control[current];
    c->choice = n;
    give_way(pc, CHOOSING);
    int choice = c->choice;
    c->choice = 0;
    return choice;
}

static int sleep_on(const void *pc, uint32_t *word, uint32_t expected, enum status how)
{
    if (current < 0)
        return EAGAIN;
    struct control *c = &control[current];
    point(pc);
    if (*word != expected)
        return EAGAIN;
    c->word = word;
    c->timed_out = 1; /* unless woken */
    give_way(pc, how);
    int result = c->timed_out ? ETIMEDOUT : 0;
    c->word = NULL;
    c->timed_out = 0;
    return result;
}

void model_step(void) { point(PC); }
void model_step_from(const void *caller) { point(caller); }
int model_choose(int n) { return choose(PC, n); }
int model_self(void) { return current; }
int model_futex_wait(uint32_t *word, uint32_t expected) { return sleep_on(PC, word, expected, SLEEPING); }
int model_futex_wait_timed(uint32_t *word, uint32_t expected) { return sleep_on(PC, word, expected, TIMED_SLEEP); }

int model_futex_wake(uint32_t *word, int n)
{
    point(PC);
    int sleepers = 0, woken = 0;
    for (int p = 0; p < scenario->nprocs; p++)
        sleepers += control[p].word == word;
    /* Takes sleepers in order, choosing only how many to pass over: each set comes up exactly once. */
    for (int p = 0, left = sleepers; p < scenario->nprocs && woken < n; p++) {
        if (control[p].word != word)
            continue;
        int need = n - woken, spare = left - need;
        left--;
        if (spare > 0 && choose(PC, 2) != 0)
            continue;
        control[p].timed_out = 0;
        control[p].status = WOKEN;
        woken++;
    }
    return woken;
}

bool model_is_dead(int p)
{
    point(PC);
    return control[p].status == DEAD;
}

bool model_is_finished(int p)
{
    point(PC);
    return control[p].status == FINISHED;
}

unsigned model_active(void)
{
    unsigned active = 0;
    for (int p = 0; p < scenario->nprocs; p++)
        active |= (unsigned)(control[p].status < FINISHED) << p;
    return active;
}

void model_wait(bool (*ready)(void *), void *context)
{
    if (current < 0)
        return;
    struct control *c = &control[current];
    c->ready = ready;
    c->context = context;
    give_way(PC, WAITING);
    c->ready = NULL;
    c->context = NULL;
}

/* Two points for more than a word: what is read or left torn in the middle shows. */
__attribute__((weak)) void model_copy(void *to, const void *from, size_t bytes)
{
    size_t half = bytes > 8 ? (bytes / 2 + 7) / 8 * 8 : 0;
    if (half > 0) {
        point(PC);
        memcpy(to, from, half);
    }
    point(PC);
    memcpy((unsigned char *)to + half, (const unsigned char *)from + half, bytes - half);
}

void model_label(const char *text)
{
    if (current >= 0)
        notes[current].label = text;
}

static void violate_list(const char *format, va_list list) /* the first violation is the one that counts */
{
    if (violation[0] == 0)
        vsnprintf(violation, sizeof violation, format, list);
}

static void violate(const char *format, ...)
{
    va_list list;
    va_start(list, format);
    violate_list(format, list);
    va_end(list);
}

void model_assert(bool holds, const char *format, ...)
{
    if (holds)
        return;
    va_list list;
    va_start(list, format);
    violate_list(format, list);
    va_end(list);
    while (current >= 0) /* a process stops here; outside, the checks that follow may still run */
        give_way(PC, RUNNABLE);
}

/* ---- moves -------------------------------------------------------------------------------------------- */

enum kind { START, STEP, CHOICE, DEATH };

struct move {
    uint8_t kind, process;
    uint16_t pick;
};

struct history { /* kept for --preemptions */
    uint32_t preemptions;
    int8_t last;
};

struct frame {
    struct hash128 hash;
    size_t undo; /* the undo log's length before `move` */
    uint32_t id, low;
    struct move move; /* what led here */
    struct history history;
    uint16_t next; /* the next move to try */
    int8_t chooser;
    bool good; /* reaches a terminal state */
};

static struct frame *path;
static size_t path_count, path_room;
static struct {
    uint64_t states, steps, terminals;
    size_t deepest, undo, live_stack;
} stats;

static bool can_run(int p)
{
    const struct control *c = &control[p];
    return c->status <= CHOOSING || c->status == TIMED_SLEEP || (c->status == WAITING && c->ready(c->context));
}

static bool can_die(int p)
{
    int deaths = 0;
    for (int q = 0; q < scenario->nprocs; q++)
        deaths += control[q].status == DEAD;
    return deaths < scenario->max_deaths && scenario->procs[p].may_die && control[p].status < FINISHED;
}

/* The next untried move of the state at the end of the path, which is the state in live memory. */
static inline bool next_move(struct frame *f, struct move *move)
{
    if (f->chooser >= 0) {
        *move = (struct move){CHOICE, (uint8_t)f->chooser, f->next};
        return f->next++ < control[f->chooser].choice;
    }
    int n = scenario->nprocs;
    while (f->next < 2 * n) {
        int p = f->next % n;
        bool step = f->next++ < n;
        if (step ? can_run(p) : can_die(p)) {
            *move = (struct move){step ? STEP : DEATH, (uint8_t)p, 0};
            return true;
        }
    }
    return false;
}

#include "explore_trace.h" /* show_move, show_changes */

static void capture_shared(void)
{
    uint32_t number = (uint32_t)scenario->nprocs;
    capture(0, (unsigned char *)control, number * CHUNK);
    for (int b = 0; b < MODEL_BLOCKS && scenario->blocks[b] != NULL; b++) {
        capture(number, scenario->blocks[b], scenario->block_bytes[b]);
        number += (uint32_t)((scenario->block_bytes[b] + CHUNK - 1) / CHUNK);
    }
}

static void capture_stack(int p, uint64_t old_sp)
{
    uint64_t bottom = (uint64_t)(uintptr_t)stacks[p].bytes, top = stack_top(p);
    uint64_t low = old_sp < control[p].sp ? old_sp : control[p].sp;
    uint32_t base = first_stack_chunk + (uint32_t)(p * (sizeof stacks[p].bytes / CHUNK));
    if (low < control[p].sp) /* what was live and no longer is */
        memset((void *)(uintptr_t)(low / CHUNK * CHUNK), 0, control[p].sp - low / CHUNK * CHUNK);
    low = low / CHUNK * CHUNK;
    capture(base + (uint32_t)((low - bottom) / CHUNK), (unsigned char *)(uintptr_t)low, top - low);
    if (top - control[p].sp > stats.live_stack)
        stats.live_stack = top - control[p].sp;
}

static void make_move(struct move move)
{
    unsigned ran = 1u << move.process;
    if (tracing)
        show_move(move);
    uint64_t old_sp[MODEL_PROCS];
    for (int p = 0; p < scenario->nprocs; p++)
        old_sp[p] = control[p].sp;
    if (move.kind == DEATH) {
        control[move.process].status = DEAD;
        clean_stack(move.process);
    } else {
        if (move.kind == CHOICE)
            control[move.process].choice = move.pick;
        ran = run(move.process);
    }
    if (tracing)
        show_changes(move);
    capture_shared();
    for (int p = 0; p < scenario->nprocs; p++)
        if (ran >> p & 1)
            capture_stack(p, old_sp[p]);
    stats.steps++;
}

/* Puts the scenario into its first state, with an empty undo log. */
static void start(void)
{
    path_count = chunks = 0;
    violation[0] = 0;
    memset(control, 0, sizeof control);
    memset(notes, 0, sizeof notes);
    add_chunks(control, sizeof *control * (size_t)scenario->nprocs);
    for (int b = 0; b < MODEL_BLOCKS && scenario->blocks[b] != NULL; b++) {
        memset(scenario->blocks[b], 0, scenario->block_bytes[b]);
        add_chunks(scenario->blocks[b], scenario->block_bytes[b]);
    }
    first_stack_chunk = chunks;
    for (int p = 0; p < scenario->nprocs; p++) {
        add_chunks(stacks[p].bytes, sizeof stacks[p].bytes);
        prepare_stack(p);
    }
    mirror_start();
    if (scenario->setup != NULL)
        scenario->setup();
    for (int p = 0; p < scenario->nprocs; p++)
        run(p);
    capture_shared();
    for (int p = 0; p < scenario->nprocs; p++)
        capture_stack(p, control[p].sp);
    undo_count = 0;
}

static struct frame *push(struct move move, size_t undo)
{
    if (path_count == path_room) {
        size_t room = path_room ? path_room + path_room / 2 : 1024;
        struct frame *fresh = grown(path, path_room * sizeof *path, room * sizeof *path);
        if (fresh == NULL)
            return NULL;
        path = fresh;
        path_room = room;
    }
    struct frame *f = &path[path_count++];
    *f = (struct frame){.hash = hash, .undo = undo, .move = move, .chooser = -1};
    if (path_count > stats.deepest)
        stats.deepest = path_count;
    if (undo_count > stats.undo)
        stats.undo = undo_count;
    return f;
}

/* Looks at a state on first reaching it: may violate(). */
static void examine(struct frame *f)
{
    bool runs = false, unfinished = false;
    for (int p = 0; p < scenario->nprocs; p++) {
        if (control[p].status == CHOOSING)
            f->chooser = (int8_t)p;
        runs = runs || can_run(p);
        unfinished = unfinished || (control[p].status < FINISHED && !scenario->procs[p].daemon);
    }
    if (scenario->invariant != NULL && f->chooser < 0)
        scenario->invariant();
    if (runs)
        return;
    if (unfinished)
        violate("stuck: not all have finished, and nobody can run");
    f->good = true;
    stats.terminals++;
    if (scenario->final != NULL && violation[0] == 0)
        scenario->final();
}

#include "explore_search.h" /* search, walks */
#include "explore_main.h"   /* model_main */
