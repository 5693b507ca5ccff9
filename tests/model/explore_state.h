/* explore_state.h: the state of a model as a row of 64-byte chunks; its hash, its undo log, the visited set.
 *
 * Live memory (control words, registered blocks, stacks) is shadowed by `mirror`, which always holds the last
 * state captured.  capture() compares the two; each chunk that differs goes to the undo log with its
 * old content and moves the state's hash.  So a step costs a comparison of what it could have touched, and
 * a state on the search's path costs only the chunks by which it differs from its parent.
 *
 * Invariant: hash == sum over all chunks of chunk_hash(number, mirror[number]), an all-zero chunk counting 0.
 * The sum makes the hash incremental; each term is 128 bits of two independently keyed multilinear (NH)
 * hashes, finally mixed.  With n states the chance that any two share a hash is about n*n / 2^129. */
#ifndef SHMBUS_MODEL_EXPLORE_STATE_H
#define SHMBUS_MODEL_EXPLORE_STATE_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

enum { CHUNK = 64 };

struct hash128 {
    uint64_t a, b;
};

struct undo {
    struct hash128 hash; /* of the old content */
    uint32_t number;
    unsigned char old[CHUNK];
};

static unsigned char *mirror;       /* chunks * CHUNK bytes */
static struct hash128 *mirror_hash; /* of each chunk of it */
static unsigned char **chunk_live;  /* where each chunk lives */
static uint8_t *chunk_bytes;        /* CHUNK, or less for the last chunk of a block */
static uint32_t chunks;
static struct hash128 hash;
static struct undo *undo_log;
static size_t undo_count, undo_room;
static size_t memory_used, memory_limit; /* bytes of table, logs and frames */
static bool memory_refused;

static void *grown(void *old, size_t old_bytes, size_t new_bytes)
{
    if (memory_used + new_bytes - old_bytes > memory_limit) {
        memory_refused = true;
        return NULL;
    }
    void *fresh = realloc(old, new_bytes);
    if (fresh == NULL) {
        memory_refused = true;
        return NULL;
    }
    memory_used += new_bytes - old_bytes;
    return fresh;
}

static inline uint64_t finally(uint64_t x)
{
    x ^= x >> 32;
    x *= UINT64_C(0xd6e8feb86659fd93);
    x ^= x >> 29;
    x *= UINT64_C(0x9fb21c651e98df25);
    return x ^ x >> 32;
}

static uint64_t hash_keys[2][CHUNK / 8];

static void hash_start(void)
{
    uint64_t seed = 0;
    for (int lane = 0; lane < 2; lane++)
        for (int i = 0; i < CHUNK / 8; i++)
            hash_keys[lane][i] = finally(seed += UINT64_C(0x9e3779b97f4a7c15));
}

static inline struct hash128 chunk_hash(uint32_t number, const unsigned char *chunk)
{
    uint64_t w[CHUNK / 8], any = 0;
    unsigned __int128 a = 0, b = 0;
    memcpy(w, chunk, CHUNK);
    for (int i = 0; i < CHUNK / 8; i += 2) {
        any |= w[i] | w[i + 1];
        a += (unsigned __int128)(w[i] + hash_keys[0][i]) * (w[i + 1] + hash_keys[0][i + 1]);
        b += (unsigned __int128)(w[i] + hash_keys[1][i]) * (w[i + 1] + hash_keys[1][i + 1]);
    }
    if (any == 0)
        return (struct hash128){0, 0};
    uint64_t where = (uint64_t)(number + 1) * UINT64_C(0x9e3779b97f4a7c15);
    return (struct hash128){
        finally((uint64_t)a + finally((uint64_t)(a >> 64) + where)),
        finally((uint64_t)b + finally((uint64_t)(b >> 64) ^ where)),
    };
}

static inline bool same_bytes(const unsigned char *x, const unsigned char *y, size_t bytes) /* whole chunks */
{
    uint64_t differ = 0;
    for (size_t i = 0; i < bytes; i += 8) {
        uint64_t p, q;
        memcpy(&p, x + i, 8);
        memcpy(&q, y + i, 8);
        differ |= p ^ q;
    }
    return differ == 0;
}

static void chunk_changed(uint32_t number, const unsigned char *now)
{
    unsigned char *old = mirror + (size_t)number * CHUNK;
    if (undo_count == undo_room) {
        size_t room = undo_room ? undo_room + undo_room / 2 : 4096;
        struct undo *fresh = grown(undo_log, undo_room * sizeof *undo_log, room * sizeof *undo_log);
        if (fresh == NULL)
            return; /* the search sees memory_refused after this very step, and gives up */
        undo_log = fresh;
        undo_room = room;
    }
    struct undo *entry = &undo_log[undo_count++];
    struct hash128 was = mirror_hash[number], is = chunk_hash(number, now);
    entry->number = number;
    entry->hash = was;
    memcpy(entry->old, old, CHUNK);
    hash.a += is.a - was.a;
    hash.b += is.b - was.b;
    mirror_hash[number] = is;
    memcpy(old, now, CHUNK);
}

/* How many of the first `bytes` (a multiple of STRIDE) are the same, in whole strides.  Most of a step's time goes here. */
enum { STRIDE = 4 * CHUNK };
#if defined(__x86_64__) && defined(__GLIBC__) && !defined(__clang__)
__attribute__((target_clones("avx2", "default")))
#endif
static size_t same_strides(const unsigned char *x, const unsigned char *y, size_t bytes)
{
    size_t at = 0;
    while (at < bytes && same_bytes(x + at, y + at, STRIDE))
        at += STRIDE;
    return at;
}

/* Takes `bytes` of live memory, whose first chunk is `number`, into the mirror, the hash and the undo log. */
static void capture(uint32_t number, const unsigned char *live, size_t bytes)
{
    const unsigned char *old = mirror + (size_t)number * CHUNK;
    for (size_t at = 0; at < bytes;) {
        at += same_strides(live + at, old + at, (bytes - at) / STRIDE * STRIDE);
        size_t end = bytes - at < STRIDE ? bytes : at + STRIDE;
        for (; at < end; at += CHUNK) {
            unsigned char whole[CHUNK] = {0};
            const unsigned char *now = live + at;
            if (bytes - at < CHUNK)
                now = memcpy(whole, now, bytes - at);
            if (!same_bytes(now, old + at, CHUNK))
                chunk_changed(number + (uint32_t)(at / CHUNK), now);
        }
    }
}

/* Brings live memory and mirror back to where the undo log was `mark` entries long.  The caller sets hash. */
static inline void undo_to(size_t mark)
{
    while (undo_count > mark) {
        const struct undo *entry = &undo_log[--undo_count];
        memcpy(mirror + (size_t)entry->number * CHUNK, entry->old, CHUNK);
        mirror_hash[entry->number] = entry->hash;
        if (chunk_bytes[entry->number] == CHUNK)
            memcpy(chunk_live[entry->number], entry->old, CHUNK);
        else
            memcpy(chunk_live[entry->number], entry->old, chunk_bytes[entry->number]);
    }
}

static void add_chunks(void *memory, size_t bytes)
{
    for (size_t at = 0; at < bytes; at += CHUNK) {
        if (chunks % 1024 == 0) {
            chunk_live = realloc(chunk_live, (chunks + 1024) * sizeof *chunk_live);
            chunk_bytes = realloc(chunk_bytes, chunks + 1024);
        }
        if (chunk_live == NULL || chunk_bytes == NULL)
            abort(); /* a few kilobytes, before any search */
        chunk_live[chunks] = (unsigned char *)memory + at;
        chunk_bytes[chunks++] = (uint8_t)(bytes - at < CHUNK ? bytes - at : CHUNK);
    }
}

/* An all-zero mirror for the chunks that were added; an empty undo log. */
static void mirror_start(void)
{
    free(mirror);
    free(mirror_hash);
    mirror = calloc(chunks, CHUNK);
    mirror_hash = calloc(chunks, sizeof *mirror_hash);
    if (mirror == NULL || mirror_hash == NULL)
        abort();
    hash = (struct hash128){0, 0};
    undo_count = 0;
}

/* ---- the visited set: open addressing, 20 bytes a place, at most three quarters full -------------------- */

struct __attribute__((packed)) place {
    uint64_t a, b; /* both 0: free */
    uint32_t value;
};

static struct place *table;
static size_t table_places, table_count;

static struct place *table_new(size_t places)
{
    size_t bytes = places * sizeof(struct place);
    if (memory_used + bytes > memory_limit) {
        memory_refused = true;
        return NULL;
    }
    void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (memory == MAP_FAILED) {
        memory_refused = true;
        return NULL;
    }
    madvise(memory, bytes, MADV_HUGEPAGE);
    memory_used += bytes;
    return memory;
}

static void table_free(void)
{
    if (table != NULL) {
        munmap(table, table_places * sizeof *table);
        memory_used -= table_places * sizeof *table;
    }
    table = NULL;
    table_places = table_count = 0;
}

static inline struct place *table_probe(struct place *in, size_t places, struct hash128 key)
{
    size_t at = key.a & (places - 1);
    while ((in[at].a != key.a || in[at].b != key.b) && (in[at].a | in[at].b) != 0)
        at = (at + 1) & (places - 1);
    return &in[at];
}

/* The place of the state whose hash is `key`; *fresh tells whether it was put there just now.  NULL: no memory. */
static inline struct place *table_find(struct hash128 key, bool *fresh)
{
    if ((key.a | key.b) == 0)
        key.b = 1;
    if (table_count >= table_places / 4 * 3) {
        size_t places = table_places ? table_places * 2 : (size_t)1 << 14;
        struct place *bigger = table_new(places);
        if (bigger == NULL)
            return NULL;
        for (size_t i = 0; i < table_places; i++)
            if ((table[i].a | table[i].b) != 0)
                *table_probe(bigger, places, (struct hash128){table[i].a, table[i].b}) = table[i];
        size_t count = table_count;
        table_free();
        table = bigger;
        table_places = places;
        table_count = count;
    }
    struct place *place = table_probe(table, table_places, key);
    *fresh = (place->a | place->b) == 0;
    if (*fresh) {
        place->a = key.a;
        place->b = key.b;
        table_count++;
    }
    return place;
}

#endif
