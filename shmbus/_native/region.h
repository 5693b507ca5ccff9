/* Mapping calls of one region, in plain C11: no Python, no exceptions, results are 0 or an errno value.
 *
 * A region is `length` bytes of a backing, seen through `span` bytes of address space:
 *
 *     span == length          plain
 *     span == 2 * length      mirrored: [base, base+length) and [base+length, base+span) show the same
 *                             bytes of the backing, so whatever starts below `length` is contiguous.
 *
 * A mirrored region that is private has two independent private views: what is written through one
 * is not seen through the other.  Lengths of mirrored regions are multiples of the page.
 *
 * Offsets and lengths given to the calls below are of the backing: offset + length <= region->length.
 * The caller keeps two threads from unmapping, or using while unmapping, one region.
 */
#ifndef SHMBUS_REGION_H
#define SHMBUS_REGION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct region {
    unsigned char *base; /* NULL: not mapped */
    size_t length;       /* bytes of the backing */
    size_t span;         /* bytes of address space: length, or twice that */
    bool anonymous;      /* no descriptor underneath */
};

struct region_request {
    int fd;         /* -1: anonymous */
    size_t length;  /* bytes, > 0 */
    int prot;       /* PROT_* */
    bool shared;    /* MAP_SHARED or MAP_PRIVATE */
    int64_t offset; /* bytes into the file, a multiple of the page */
    bool mirrored;
};

/* The size of a page in bytes. */
size_t region_page_size(void);

/* Map what is asked for.  On an error nothing stays mapped and `region` is left with base == NULL. */
int region_map(struct region *region, const struct region_request *request);

/* Unmap, once: base is NULL afterwards, and a second call does nothing. */
int region_unmap(struct region *region);

/* mprotect of every view. */
int region_protect(const struct region *region, int prot);

/* mlock / munlock of every view.  A lock that fails part-way is undone. */
int region_lock(const struct region *region);
int region_unlock(const struct region *region);

/* msync of the pages that hold [offset, offset+length); `wait`: until they are on disk. */
int region_flush(const struct region *region, size_t offset, size_t length, bool wait);

/* madvise of the pages that hold [offset, offset+length), in every view.  Advice that could make a
 * later access, or a child's, end in a signal is refused with EINVAL; see region.c for the list. */
int region_advise(const struct region *region, size_t offset, size_t length, int advice);

/* Fault the pages that hold [offset, offset+length) in, in every view, for writing or for reading;
 * what would be SIGBUS in a fault is an error here.  Kernels before 5.14: anonymous memory is touched
 * page by page, and a file is only read ahead. */
int region_populate(const struct region *region, size_t offset, size_t length, bool write);

/* mincore: one byte for each page that holds [offset, offset+length), non-zero where in memory. */
int region_resident(const struct region *region, size_t offset, size_t length, unsigned char *pages);

/* How many pages hold [offset, offset+length). */
size_t region_page_count(size_t offset, size_t length);

#endif
