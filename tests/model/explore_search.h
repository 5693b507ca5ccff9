/* explore_search.h: the searches over the moves of a scenario.  A part of explore.c, which tells how they work. */

enum outcome { PASSED, VIOLATED, INCOMPLETE };

static struct {
    uint64_t max_states, seed, walks, max_walk, preemptions;
    bool bound_preemptions, livelock, quiet, show_stats, longest;
} options;

static struct { /* what one search() is to do */
    uint64_t states;
    size_t depth; /* 0: no bound */
    bool has_target;
    struct hash128 target; /* violate on reaching this state */
} bounds;

static const char *why_incomplete = "";
static char target_text[sizeof violation];
static struct move attempt; /* the move being made from the end of the path */
static bool attempting;
static struct hash128 trap;
static bool trapped;

static uint32_t *open_ids; /* Tarjan's stack: states whose component is not closed, in the order of their ids */
static size_t open_count, open_room;
static uint64_t *closed; /* a bit for each id */
static size_t closed_words;

static sigjmp_buf escape;
static unsigned char signal_stack[65536];
static uint64_t steps_at_tick;
static int idle_ticks;

/* A crash of the code under check is a violation like others; so is a loop without points. */
static void on_signal(int number)
{
    if (number == SIGVTALRM) {
        if (current < 0 || stats.steps != steps_at_tick)
            idle_ticks = 0;
        steps_at_tick = stats.steps;
        if (idle_ticks++ < 2)
            return;
        violate("P%d runs on and on without a point", current);
    } else if (current < 0) {
        static const char text[] = "model: the explorer, or a scenario's own check, crashed\n";
        if (write(2, text, sizeof text - 1) < 0) {
        }
        signal(number, SIG_DFL);
        raise(number);
        return;
    } else {
        violate("P%d crashed: %s", current, strsignal(number));
    }
    siglongjmp(escape, 1);
}

static void catch_signals(void)
{
    static const int numbers[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGVTALRM};
    stack_t stack = {.ss_sp = signal_stack, .ss_size = sizeof signal_stack};
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK | SA_RESTART};
    struct itimerval tick = {{0, 500000}, {0, 500000}}; /* of CPU time */
    sigaltstack(&stack, NULL);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
    setitimer(ITIMER_VIRTUAL, &tick, NULL);
    for (int p = 0; p < MODEL_PROCS; p++)
        mprotect(stacks[p].guard, GUARD, PROT_NONE);
}

static bool seeks_livelocks(void) { return options.livelock && bounds.depth == 0 && !options.bound_preemptions; }

static enum outcome guarded(enum outcome (*body)(void))
{
    if (sigsetjmp(escape, 1) != 0) {
        current = -1;
        return VIOLATED;
    }
    return body();
}

static bool is_closed(uint32_t id) { return closed[id / 64] >> id % 64 & 1; }

static bool open_state(uint32_t id)
{
    if (open_count == open_room) {
        size_t room = open_room ? open_room * 2 : 1024;
        uint32_t *fresh = grown(open_ids, open_room * sizeof *open_ids, room * sizeof *open_ids);
        if (fresh == NULL)
            return false;
        open_ids = fresh;
        open_room = room;
    }
    if (id / 64 >= closed_words) {
        size_t words = closed_words ? closed_words * 2 : 1024;
        uint64_t *fresh = grown(closed, closed_words * sizeof *closed, words * sizeof *closed);
        if (fresh == NULL)
            return false;
        memset(fresh + closed_words, 0, (words - closed_words) * sizeof *closed);
        closed = fresh;
        closed_words = words;
    }
    open_ids[open_count++] = id;
    return true;
}

/* Leaves the state at the end of the path, all of whose moves have been tried. */
static void leave(void)
{
    struct frame *f = &path[path_count - 1];
    if (seeks_livelocks() && f->low == f->id) {
        if (!f->good) {
            trapped = true;
            trap = f->hash;
            violate("livelock: from here no end can be reached");
            return;
        }
        while (open_count > 0 && open_ids[open_count - 1] >= f->id) {
            uint32_t id = open_ids[--open_count];
            closed[id / 64] |= UINT64_C(1) << id % 64;
        }
    }
    path_count--;
    undo_to(f->undo);
    if (path_count == 0)
        return;
    struct frame *parent = f - 1;
    hash = parent->hash;
    if (f->move.kind != DEATH) {
        parent->good |= f->good;
        parent->low = f->low < parent->low ? f->low : parent->low;
    }
}

/* The same step made twice must come out the same; if not, memory that is not registered is at play. */
static bool retrace(struct move move, struct frame *f, size_t mark)
{
    static char text[256];
    static struct hash128 *first;
    static uint32_t room;
    struct hash128 once = hash;
    if (room < chunks) {
        first = realloc(first, chunks * sizeof *first);
        room = chunks;
        if (first == NULL)
            abort();
    }
    memcpy(first, mirror_hash, chunks * sizeof *first);
    undo_to(mark);
    hash = f->hash;
    make_move(move);
    stats.steps--;
    if (hash.a == once.a && hash.b == once.b)
        return true;
    uint32_t number = 0;
    while (first[number].a == mirror_hash[number].a && number + 1 < chunks)
        number++;
    snprintf(text, sizeof text, "a step of P%d made twice from one state came out differently, at %s: is all memory registered?",
             move.process, chunk_name(number));
    why_incomplete = text;
    return false;
}

/* Who ran last, and how often a process that could have gone on was left for another, if `move` is made next. */
static struct history history_after(const struct frame *f, struct move move)
{
    struct history after = f->history;
    if (move.kind == STEP) {
        after.preemptions += after.last >= 0 && after.last != move.process && control[after.last].status == RUNNABLE;
        after.last = (int8_t)move.process;
    }
    return after;
}

/* Finds the state in live memory, reached over `depth` moves, in the visited set; *enter tells whether to go into it.
 * With a bound on depth or preemptions a state is entered again when it was reached with less of them; where they
 * decide what can follow, the history is a part of the state. */
static struct place *visit(size_t depth, struct history history, bool *enter)
{
    struct hash128 key = hash;
    bool fresh = false;
    if (options.bound_preemptions) {
        key.a += finally((uint64_t)(history.last + 2));
        key.b += bounds.depth > 0 ? finally(history.preemptions + UINT64_C(1000)) : 0;
    }
    struct place *place = table_find(key, &fresh);
    if (place == NULL)
        return NULL;
    *enter = fresh;
    if (bounds.depth > 0 || options.bound_preemptions) {
        uint32_t spent = bounds.depth > 0 ? (uint32_t)depth : history.preemptions;
        *enter = fresh || spent < place->value;
        if (*enter)
            place->value = spent;
    } else if (fresh) {
        place->value = (uint32_t)(table_count - 1);
    }
    return place;
}

static enum outcome search(void)
{
    static const char no_memory[] = "memory bound reached";
    memory_refused = trapped = attempting = false;
    memset(&stats, 0, sizeof stats);
    table_free();
    open_count = 0;
    if (closed != NULL)
        memset(closed, 0, closed_words * sizeof *closed);
    start();
    struct move move = {START, 0, 0};
    struct history history = {.last = -1};
    for (size_t mark = 0; violation[0] == 0;) {
        bool enter = false;
        struct place *place = visit(path_count, history, &enter);
        if (place == NULL || memory_refused)
            return why_incomplete = no_memory, INCOMPLETE;
        if (enter) {
            if (table_count > bounds.states)
                return why_incomplete = "bound on states reached", INCOMPLETE;
            if (options.show_stats && table_count % (1 << 24) == 0)
                fprintf(stderr, "  %s: %zu states, %zu deep\n", scenario->name, table_count, path_count);
            struct frame *f = push(move, mark);
            if (f == NULL || (seeks_livelocks() && !open_state(place->value)))
                return why_incomplete = no_memory, INCOMPLETE;
            f->id = f->low = place->value;
            f->history = history;
            attempting = false;
            examine(f);
            if (bounds.depth > 0 && path_count > bounds.depth) {
                f->chooser = -1;
                f->next = UINT16_MAX; /* go no deeper */
            }
            if (bounds.has_target && hash.a == bounds.target.a && hash.b == bounds.target.b)
                violate("%s", target_text);
        } else {
            struct frame *f = &path[path_count - 1];
            if (seeks_livelocks() && move.kind != DEATH) {
                if (is_closed(place->value))
                    f->good = true;
                else if (place->value < f->low)
                    f->low = place->value;
            }
            undo_to(mark);
            hash = f->hash;
        }
        attempting = false;
        while (violation[0] == 0 && path_count > 0) {
            struct frame *f = &path[path_count - 1];
            if (!next_move(f, &move)) {
                leave();
                continue;
            }
            history = history_after(f, move);
            if (!options.bound_preemptions || history.preemptions <= options.preemptions)
                break;
        }
        if (violation[0] != 0 || path_count == 0)
            break;
        mark = undo_count;
        attempt = move;
        attempting = true;
        make_move(move);
        if (violation[0] == 0 && (stats.steps < 4096 || stats.steps % 4096 == 0) &&
            !retrace(move, &path[path_count - 1], mark))
            return INCOMPLETE;
    }
    return violation[0] != 0 ? VIOLATED : PASSED;
}

/* ---- random walks ------------------------------------------------------------------------------------- */

static uint64_t random_state;

static uint64_t random_below(uint64_t n)
{
    return finally(random_state += UINT64_C(0x9e3779b97f4a7c15)) % n;
}

/* One walk from the first state.  Its tempers are drawn from the seed: how long to stay with one process, and how
 * often to kill. */
static void walk(uint64_t seed)
{
    static const unsigned stay_of_1000[] = {0, 500, 900, 980}, death_of_10000[] = {2000, 200, 20, 2};
    random_state = finally(seed * 2 + 1);
    unsigned stay = stay_of_1000[random_below(4)], death = death_of_10000[random_below(4)];
    int last = -1;
    while (violation[0] == 0 && path_count <= options.max_walk && !memory_refused) {
        struct move moves[2 * MODEL_PROCS], move;
        int steps = 0, deaths = 0, same = -1;
        struct frame *f = &path[path_count - 1];
        if (f->chooser >= 0) {
            move = (struct move){CHOICE, (uint8_t)f->chooser, (uint16_t)random_below((uint64_t)control[f->chooser].choice)};
        } else {
            while (next_move(f, &moves[steps + deaths])) { /* steps come first */
                same = moves[steps + deaths].kind == STEP && moves[steps + deaths].process == last ? steps : same;
                *(moves[steps + deaths].kind == DEATH ? &deaths : &steps) += 1;
            }
            if (steps == 0)
                return;
            if (deaths > 0 && random_below(10000) < death)
                move = moves[steps + (int)random_below((uint64_t)deaths)];
            else if (same >= 0 && random_below(1000) < stay)
                move = moves[same];
            else
                move = moves[random_below((uint64_t)steps)];
            last = move.process;
        }
        size_t mark = undo_count;
        attempt = move;
        attempting = true;
        make_move(move);
        if (violation[0] != 0)
            return;
        f = push(move, mark);
        attempting = false;
        if (f != NULL)
            examine(f);
    }
}

static uint64_t walk_seed;

static enum outcome walks(void)
{
    memory_refused = trapped = attempting = false;
    memset(&stats, 0, sizeof stats);
    start();
    struct frame *root = push((struct move){START, 0, 0}, 0);
    if (root == NULL)
        return why_incomplete = "memory bound reached", INCOMPLETE;
    examine(root);
    for (uint64_t i = 0; i < options.walks && violation[0] == 0; i++) {
        path[0].next = 0;
        walk(walk_seed = options.seed + i);
        stats.states += path_count;
        if (violation[0] != 0)
            break;
        if (memory_refused || path_count > options.max_walk)
            return why_incomplete = "a walk did not end within --max-walk moves (or memory)", INCOMPLETE;
        undo_to(0);
        path_count = 1;
        hash = path[0].hash;
    }
    return violation[0] != 0 ? VIOLATED : PASSED;
}
