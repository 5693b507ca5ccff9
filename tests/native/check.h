/* Checks for the C tests of this folder. A failed one prints where it stands and ends the process with status 1.
 *
 * A test is a program: each test_*.c here is linked with the ring core and run under every flavour (test_programs.py). It returns 0, and
 * prints what a person who reads a failure wants to know, seeds above all.
 */
#ifndef SHMBUS_TEST_CHECK_H
#define SHMBUS_TEST_CHECK_H

#include <inttypes.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* Works under NDEBUG too. */
#define CHECK(condition)                                                                      \
    do {                                                                                      \
        if (!(condition)) {                                                                   \
            fprintf(stderr, "%s:%d: %s: not so: %s\n", __FILE__, __LINE__, __func__, #condition); \
            exit(1);                                                                          \
        }                                                                                     \
    } while (0)

/* For unsigned numbers of any width. */
#define CHECK_EQUAL(left, right)                                                                           \
    do {                                                                                                   \
        uint64_t left_ = (uint64_t)(left), right_ = (uint64_t)(right);                                     \
        if (left_ != right_) {                                                                             \
            fprintf(stderr, "%s:%d: %s: %s is %" PRIu64 ", %s is %" PRIu64 "\n", __FILE__, __LINE__, __func__, \
                    #left, left_, #right, right_);                                                         \
            exit(1);                                                                                       \
        }                                                                                                  \
    } while (0)

/* Whether this is the long version of the run: the program was started with the word "long". */
static inline bool long_run(int argc, char **argv) { return argc > 1 && strcmp(argv[1], "long") == 0; }

#endif
