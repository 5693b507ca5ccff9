/* explore_main.h: what to do with a violation, and the command line.  A part of explore.c. */

static struct move *schedule;
static size_t schedule_count;

static void keep_schedule(void)
{
    free(schedule);
    schedule = malloc((path_count + 1) * sizeof *schedule);
    if (schedule == NULL)
        abort();
    schedule_count = 0;
    for (size_t i = 1; i < path_count; i++)
        schedule[schedule_count++] = path[i].move;
    if (attempting)
        schedule[schedule_count++] = attempt;
}

enum { SHORTEN_STATES = 4000000 }; /* what may be spent on each of the two ways below */

/* Looks for a schedule with as few preemptions as can be, then, with no more than those, for a shorter one.
 * Returns the number of preemptions, or -1 if none was found with few. */
static int simplify(bool *shortest)
{
    bool was_bounded = options.bound_preemptions, was_trapped = trapped, complete = true;
    uint64_t was_bound = options.preemptions, budget = SHORTEN_STATES;
    int few = -1;
    bounds.has_target = trapped;
    bounds.target = trap;
    memcpy(target_text, violation, sizeof violation);
    bounds.depth = 0;
    options.bound_preemptions = true;
    for (options.preemptions = 0; options.preemptions < 5 && few < 0 && budget > 0; options.preemptions++) {
        bounds.states = budget;
        enum outcome outcome = guarded(search);
        budget = outcome == INCOMPLETE || table_count > budget ? 0 : budget - table_count;
        if (outcome == VIOLATED) {
            keep_schedule();
            few = (int)options.preemptions;
        }
    }
    options.preemptions = few >= 0 ? (uint64_t)few : was_bound;
    options.bound_preemptions = few >= 0 || was_bounded;
    budget = SHORTEN_STATES;
    size_t failed = 0, bound = 6;
    while (failed + 1 < schedule_count && budget > 0) {
        bounds.depth = bound < schedule_count ? bound : schedule_count - 1;
        bounds.states = budget;
        enum outcome outcome = guarded(search);
        budget -= table_count < budget ? table_count : budget;
        if (outcome == VIOLATED)
            keep_schedule();
        else if (outcome == PASSED)
            failed = bounds.depth;
        else
            complete = false, budget = 0;
        bound = outcome == VIOLATED ? (failed + schedule_count) / 2 : bound + bound / 3 + 1;
        if (bound <= failed)
            bound = failed + 1;
    }
    *shortest = complete && failed + 1 >= schedule_count;
    options.bound_preemptions = was_bounded;
    options.preemptions = was_bound;
    trapped = was_trapped;
    return few;
}

static enum outcome replay(void)
{
    start();
    shown_moves = 0;
    for (size_t i = 0; i < schedule_count; i++)
        make_move(schedule[i]);
    if (trapped && violation[0] == 0) {
        printf("  and so on for ever:\n");
        for (int turn = 0; turn < 12; turn++) { /* in turn, whoever can */
            struct frame f = {.chooser = -1};
            struct move move, chosen = {START, 0, 0};
            for (int p = 0; p < scenario->nprocs; p++)
                f.chooser = control[p].status == CHOOSING ? (int8_t)p : f.chooser;
            while (next_move(&f, &move) && move.kind != DEATH)
                if (chosen.kind == START || (chosen.process < turn % scenario->nprocs && f.chooser < 0))
                    chosen = move;
            make_move(chosen);
        }
    }
    return PASSED;
}

static void report(const char *text)
{
    bool shortest = false;
    int few = -1;
    uint64_t seed = walk_seed;
    keep_schedule();
    if (!options.longest)
        few = simplify(&shortest);
    printf("violation in %s: %s\n", scenario->name, text);
    if (options.walks > 0)
        printf("  found by --random %lu 1\n", (unsigned long)seed);
    printf("  schedule of %zu moves", schedule_count);
    if (few >= 0)
        printf(", preemptions: %d (no schedule has fewer%s)", few, shortest ? ", and with these none is shorter" : "");
    else if (shortest)
        printf(" (none is shorter)");
    printf("\n");
    tracing = true;
    if (guarded(replay) == VIOLATED)
        printf("  (here)\n");
    tracing = false;
    show_standing();
}

/* ---- the command line --------------------------------------------------------------------------------- */

static enum outcome check(void)
{
    static const char *const words[] = {"OK", "VIOLATION", "INCOMPLETE"};
    const char *good = options.walks > 0 ? "WALKED" : options.bound_preemptions ? "BOUNDED" : words[PASSED];
    struct timespec from, to;
    bounds.states = options.max_states;
    bounds.depth = 0;
    bounds.has_target = false;
    clock_gettime(CLOCK_MONOTONIC, &from);
    enum outcome outcome = guarded(options.walks > 0 ? walks : search);
    clock_gettime(CLOCK_MONOTONIC, &to);
    double seconds = (double)(to.tv_sec - from.tv_sec) + 1e-9 * (double)(to.tv_nsec - from.tv_nsec);
    uint64_t states = options.walks > 0 ? stats.states : table_count;
    char text[sizeof violation];
    memcpy(text, violation, sizeof text);
    printf("%s: %s=%lu transitions=%lu terminals=%lu seconds=%.2f %s", scenario->name,
           options.walks > 0 ? "random-states" : "states", (unsigned long)states, (unsigned long)stats.steps,
           (unsigned long)stats.terminals, seconds, outcome == PASSED ? good : words[outcome]);
    if (outcome != PASSED)
        printf(": %s", outcome == VIOLATED ? text : why_incomplete);
    printf("\n");
    if (options.show_stats)
        printf("  states/s=%.0f transitions/s=%.0f deepest=%zu chunks=%u undo=%zu MiB table=%zu MiB memory=%zu MiB"
               " live-stack<=%zu\n",
               (double)states / (seconds + 1e-9), (double)stats.steps / (seconds + 1e-9), stats.deepest,
               first_stack_chunk, stats.undo * sizeof(struct undo) >> 20, table_places * sizeof *table >> 20,
               memory_used >> 20, stats.live_stack);
    if (outcome == VIOLATED && !options.quiet)
        report(text);
    fflush(stdout);
    return outcome;
}

static int usage(const char *program)
{
    fprintf(stderr,
            "usage: %s [--list] [--scenario PATTERN] [--quiet] [--stats] [--no-livelock] [--long-trace]\n"
            "          [--max-states N] [--max-memory MIB] [--preemptions N] [--random SEED N] [--max-walk MOVES]\n"
            "ends with: OK       every state was seen, no violation\n"
            "           BOUNDED  every schedule with at most --preemptions was seen, no violation (livelocks not sought)\n"
            "           WALKED   --random schedules were tried, no violation\n"
            "status: 0 those; 1 VIOLATION; 2 INCOMPLETE (a bound was met), or misuse\n",
            program);
    return 2;
}

static bool number_option(int argc, char **argv, int *i, uint64_t *value)
{
    char *end = NULL;
    if (*i + 1 >= argc)
        return false;
    const char *text = argv[++*i];
    *value = strtoull(text, &end, 10);
    return *text >= '0' && *text <= '9' && *end == 0;
}

int model_main(int argc, char **argv, const struct scenario *scenarios, int count)
{
    const char *pattern = "*";
    uint64_t megabytes = 8192;
    bool list = false, good = true;
    options.livelock = true;
    options.max_states = 200000000;
    options.max_walk = 200000;
    for (int i = 1; i < argc && good; i++) {
        const char *word = argv[i];
        if (strcmp(word, "--list") == 0)
            list = true;
        else if (strcmp(word, "--quiet") == 0)
            options.quiet = true;
        else if (strcmp(word, "--stats") == 0)
            options.show_stats = true;
        else if (strcmp(word, "--no-livelock") == 0)
            options.livelock = false;
        else if (strcmp(word, "--long-trace") == 0)
            options.longest = true;
        else if (strcmp(word, "--scenario") == 0 && i + 1 < argc)
            pattern = argv[++i];
        else if (strcmp(word, "--max-states") == 0)
            good = number_option(argc, argv, &i, &options.max_states);
        else if (strcmp(word, "--max-memory") == 0)
            good = number_option(argc, argv, &i, &megabytes);
        else if (strcmp(word, "--max-walk") == 0)
            good = number_option(argc, argv, &i, &options.max_walk);
        else if (strcmp(word, "--preemptions") == 0)
            good = options.bound_preemptions = number_option(argc, argv, &i, &options.preemptions);
        else if (strcmp(word, "--random") == 0)
            good = number_option(argc, argv, &i, &options.seed) && number_option(argc, argv, &i, &options.walks) &&
                   options.walks > 0;
        else
            good = false;
    }
    if (!good || options.max_states > UINT32_MAX - 1)
        return usage(argv[0]);
    memory_limit = megabytes << 20;
    hash_start();
    catch_signals();
    bool violated = false, incomplete = false, any = false;
    for (int i = 0; i < count; i++) {
        if (fnmatch(pattern, scenarios[i].name, 0) != 0)
            continue;
        any = true;
        if (list) {
            printf("%s\n", scenarios[i].name);
            continue;
        }
        scenario = &scenarios[i];
        enum outcome outcome = check();
        violated = violated || outcome == VIOLATED;
        incomplete = incomplete || outcome == INCOMPLETE;
    }
    if (!any) {
        fprintf(stderr, "%s: no scenario is called %s (--list shows them)\n", argv[0], pattern);
        return 2;
    }
    return violated ? 1 : incomplete ? 2 : 0;
}
