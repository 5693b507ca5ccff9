/* Every access to shared memory goes through the functions of this file.
 *
 * The ring core never touches a shared word in another way, so this is the one place in which
 *   - the memory orders are spelled (a suffix on the name: _sc sequentially consistent, _acquire, _release,
 *     _relaxed);
 *   - a model checker gets its scheduling points (SHMBUS_MODEL: model_access() before each access);
 *   - the thread sanitizer is told that racing copies of payload are meant (SHMBUS_TSAN: copied as relaxed
 *     atomic words).
 * There are no bare fences: sanitizers do not model them, and an order that stands on the access itself is
 * read where it matters.
 */
#ifndef SHMBUS_ATOMICS_H
#define SHMBUS_ATOMICS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef _Atomic(uint64_t) shared_u64;
typedef _Atomic(uint32_t) shared_u32;

#if defined(SHMBUS_MODEL)
void model_access(const void *word, bool writes);
void model_copy(void *to, const void *from, size_t bytes);
#define SHARED_READ(word) model_access((const void *)(uintptr_t)(word), false)
#define SHARED_WRITE(word) model_access((const void *)(uintptr_t)(word), true)
#else
#define SHARED_READ(word) ((void)0)
#define SHARED_WRITE(word) ((void)0)
#endif

_Static_assert(sizeof(shared_u64) == 8 && sizeof(shared_u32) == 4, "shared words are plain words");
_Static_assert(ATOMIC_LLONG_LOCK_FREE == 2 && ATOMIC_INT_LOCK_FREE == 2,
               "a lock inside an atomic cannot be shared between processes");

static inline uint64_t load_sc(const shared_u64 *word)
{
    SHARED_READ(word);
    return atomic_load_explicit((shared_u64 *)(uintptr_t)word, memory_order_seq_cst);
}
static inline uint64_t load_acquire(const shared_u64 *word)
{
    SHARED_READ(word);
    return atomic_load_explicit((shared_u64 *)(uintptr_t)word, memory_order_acquire);
}
/* For counters that order nothing, for words that only their owner writes, and for the record header,
 * which is data like the payload. */
static inline uint64_t load_relaxed(const shared_u64 *word)
{
    SHARED_READ(word);
    return atomic_load_explicit((shared_u64 *)(uintptr_t)word, memory_order_relaxed);
}
static inline void store_sc(shared_u64 *word, uint64_t value)
{
    SHARED_WRITE(word);
    atomic_store_explicit(word, value, memory_order_seq_cst);
}
static inline void store_release(shared_u64 *word, uint64_t value)
{
    SHARED_WRITE(word);
    atomic_store_explicit(word, value, memory_order_release);
}
static inline void store_relaxed(shared_u64 *word, uint64_t value)
{
    SHARED_WRITE(word);
    atomic_store_explicit(word, value, memory_order_relaxed);
}

/* One attempt; true if the word held `expected` and now holds `desired`. */
static inline bool cas_sc(shared_u64 *word, uint64_t expected, uint64_t desired)
{
    SHARED_WRITE(word);
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_seq_cst,
                                                   memory_order_seq_cst);
}

/* Returns the value before. */
static inline uint64_t add_sc(shared_u64 *word, uint64_t amount)
{
    SHARED_WRITE(word);
    return atomic_fetch_add_explicit(word, amount, memory_order_seq_cst);
}
/* A counter that several may raise and that orders nothing. */
static inline void count_up(shared_u64 *word, uint64_t amount)
{
    atomic_fetch_add_explicit(word, amount, memory_order_relaxed);
}

static inline uint32_t load32_sc(const shared_u32 *word)
{
    SHARED_READ(word);
    return atomic_load_explicit((shared_u32 *)(uintptr_t)word, memory_order_seq_cst);
}
static inline uint32_t add32_sc(shared_u32 *word, uint32_t amount)
{
    SHARED_WRITE(word);
    return atomic_fetch_add_explicit(word, amount, memory_order_seq_cst);
}
static inline uint32_t or32_sc(shared_u32 *word, uint32_t bits)
{
    SHARED_WRITE(word);
    return atomic_fetch_or_explicit(word, bits, memory_order_seq_cst);
}
static inline bool cas32_sc(shared_u32 *word, uint32_t expected, uint32_t desired)
{
    SHARED_WRITE(word);
    return atomic_compare_exchange_strong_explicit(word, &expected, desired, memory_order_seq_cst,
                                                   memory_order_seq_cst);
}

/* Payload. A reader may copy bytes that a writer of a later lap is overwriting; it then finds that its
 * cursor moved and
 * throws the copy away, so nothing is decided on such bytes. */
static inline void copy_shared(void *to, const void *from, size_t bytes)
{
#if defined(SHMBUS_MODEL)
    model_copy(to, from, bytes);
#elif defined(SHMBUS_TSAN)
    const _Atomic(unsigned char) *source = from;
    _Atomic(unsigned char) *target = to;
    for (size_t i = 0; i < bytes; i++)
        atomic_store_explicit(
            target + i,
            atomic_load_explicit((_Atomic(unsigned char) *)(uintptr_t)(source + i), memory_order_relaxed),
            memory_order_relaxed);
#else
    memcpy(to, from, bytes);
#endif
}

static inline void cpu_relax(void)
{
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}

#endif
