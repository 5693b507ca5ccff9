/* explore_trace.h: printing a schedule as it is replayed.  A part of explore.c, which explains the terms.
 *
 * A line per move: its number, the process, the source line of the point that it stood at (by addr2line, when the
 * program was built with -g), its label, and each 8-byte word of registered memory that the step changed. */

enum { KNOWN_PLACES = 512, PLACE_BYTES = 160 };

static struct {
    const void *pc;
    char text[PLACE_BYTES];
} places_known[KNOWN_PLACES];
static size_t shown_moves;

extern const char __executable_start[] __attribute__((weak)); /* where the linker put the program's first byte */

/* Asks addr2line; " < " goes outwards through inlined calls. */
static void ask_place(const void *pc, char *text)
{
    char program[512], command[640], line[256];
    ssize_t n = readlink("/proc/self/exe", program, sizeof program - 1);
    uintptr_t address = (uintptr_t)pc - 1; /* inside the call, not behind it */
#ifdef __PIE__
    address -= (uintptr_t)__executable_start;
#endif
    snprintf(text, PLACE_BYTES, "%p", pc);
    if (n <= 0 || memchr(program, '\'', (size_t)n) != NULL)
        return;
    program[n] = 0;
    snprintf(command, sizeof command, "addr2line -f -i -p -s -e '%s' 0x%lx 2>/dev/null", program, (unsigned long)address);
    FILE *answer = popen(command, "r");
    if (answer == NULL)
        return;
    size_t used = 0;
    while (fgets(line, sizeof line, answer) != NULL) {
        char *from = line, *note;
        if (strncmp(from, " (inlined by) ", 14) == 0)
            from += 14;
        from[strcspn(from, "\n")] = 0;
        if ((note = strstr(from, " (discriminator")) != NULL)
            *note = 0;
        if (strchr(from, '?') == NULL && used < PLACE_BYTES - 1)
            used += (size_t)snprintf(text + used, PLACE_BYTES - used, "%s%s", used ? " < " : "", from);
    }
    pclose(answer);
}

static const char *place_name(const void *pc)
{
    if (pc == NULL)
        return "";
    size_t i = 0;
    while (i < KNOWN_PLACES - 1 && places_known[i].pc != NULL && places_known[i].pc != pc)
        i++;
    if (places_known[i].pc != pc) {
        places_known[i].pc = pc;
        ask_place(pc, places_known[i].text);
    }
    return places_known[i].text;
}

/* Before the move is made, so that a crash still shows who crashed. */
static void show_move(struct move move)
{
    struct note note = notes[move.process];
    printf("  %4zu  P%d  ", ++shown_moves, move.process);
    if (move.kind == DEATH)
        printf("DIES at ");
    if (control[move.process].status == TIMED_SLEEP)
        printf("times out ");
    if (note.label != NULL)
        printf("[%s] ", note.label);
    printf("%s", place_name(note.pc));
    if (move.kind == CHOICE)
        printf("  chooses %d of %d", move.pick, control[move.process].choice);
    fflush(stdout);
}

/* Which part of the state a chunk is. */
static const char *chunk_name(uint32_t number)
{
    static char text[80];
    uint32_t first = (uint32_t)scenario->nprocs;
    if (number < first)
        snprintf(text, sizeof text, "the place of P%u", number);
    else if (number >= first_stack_chunk)
        snprintf(text, sizeof text, "the stack of P%zu", (number - first_stack_chunk) * CHUNK / sizeof stacks[0].bytes);
    for (int b = 0; number >= first && number < first_stack_chunk; b++) {
        uint32_t size = (uint32_t)((scenario->block_bytes[b] + CHUNK - 1) / CHUNK);
        if (number < first + size) {
            snprintf(text, sizeof text, "block %d (%s), bytes from %u", b,
                     scenario->block_names[b] ? scenario->block_names[b] : "no name", (number - first) * CHUNK);
            break;
        }
        first += size;
    }
    return text;
}

static void show_changes(struct move move)
{
    uint32_t number = (uint32_t)scenario->nprocs;
    for (int b = 0; b < MODEL_BLOCKS && scenario->blocks[b] != NULL; b++) {
        const unsigned char *live = scenario->blocks[b], *old = mirror + (size_t)number * CHUNK;
        size_t bytes = scenario->block_bytes[b];
        for (size_t at = 0; at < bytes; at += 8) {
            uint64_t was = 0, is = 0;
            memcpy(&was, old + at, bytes - at < 8 ? bytes - at : 8);
            memcpy(&is, live + at, bytes - at < 8 ? bytes - at : 8);
            if (was == is)
                continue;
            if (scenario->block_names[b] != NULL)
                printf("  %s", scenario->block_names[b]);
            else
                printf("  block%d", b);
            printf("+%zu: %#lx -> %#lx", at, (unsigned long)was, (unsigned long)is);
        }
        number += (uint32_t)((bytes + CHUNK - 1) / CHUNK);
    }
    enum status status = control[move.process].status;
    if (move.kind != DEATH && status != RUNNABLE && status != CHOOSING)
        printf("  (%s)", status_names[status]);
    printf("\n");
}

static void show_standing(void)
{
    for (int p = 0; p < scenario->nprocs; p++) {
        struct note note = notes[p];
        enum status status = control[p].status;
        printf("  at the end P%d %s", p, status_names[status]);
        if (status < FINISHED)
            printf(", at %s%s%s%s", note.label ? "[" : "", note.label ? note.label : "", note.label ? "] " : "", place_name(note.pc));
        printf("%s\n", scenario->procs[p].daemon ? " (daemon)" : "");
    }
}
