#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* mremap, MAP_ANONYMOUS, mincore */
#endif
#include "region.h"

#include <errno.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <unistd.h>

/* Newer than the headers that some supported systems build with. */
#ifndef MADV_COLD
#define MADV_COLD 20
#endif
#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21
#endif
#ifndef MADV_POPULATE_READ
#define MADV_POPULATE_READ 22
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

size_t region_page_size(void) { return (size_t)sysconf(_SC_PAGESIZE); }

/* The page-aligned range that holds a byte range. */
struct page_range {
    size_t start;
    size_t length;
};

static struct page_range pages_of(size_t offset, size_t length)
{
    const size_t page = region_page_size();
    const size_t start = offset - offset % page;
    const size_t unaligned = offset % page + length;
    const size_t rest = unaligned % page;
    /* Rounded up without overflow: a mapped length is far below SIZE_MAX - page. */
    return (struct page_range){.start = start, .length = rest == 0 ? unaligned : unaligned + (page - rest)};
}

size_t region_page_count(size_t offset, size_t length)
{
    return pages_of(offset, length).length / region_page_size();
}

static int errno_of(int result) { return result == 0 ? 0 : errno; }

static int map_flags(const struct region_request *request)
{
    return (request->shared ? MAP_SHARED : MAP_PRIVATE) | (request->fd < 0 ? MAP_ANONYMOUS : 0);
}

/* Map the request at exactly `where`, inside a reservation of ours. */
static int map_at(unsigned char *where, const struct region_request *request)
{
    void *mapped = mmap(where, request->length, request->prot, map_flags(request) | MAP_FIXED, request->fd,
                        (off_t)request->offset);
    return mapped == MAP_FAILED ? errno : 0;
}

/* The second view.  Shared anonymous memory has no descriptor to map again: an old size of 0 makes
 * mremap duplicate a shared mapping instead of moving it (mremap(2), NOTES). */
static int map_mirror(unsigned char *base, const struct region_request *request)
{
    unsigned char *where = base + request->length;
    if (request->fd < 0 && request->shared) {
        void *mapped = mremap(base, 0, request->length, MREMAP_MAYMOVE | MREMAP_FIXED, where);
        return mapped == MAP_FAILED ? errno : 0;
    }
    return map_at(where, request);
}

static int map_twice(struct region *region, const struct region_request *request)
{
    if (request->length > SIZE_MAX / 2) {
        return ENOMEM;
    }
    if (request->length % region_page_size() != 0) {
        return EINVAL;
    }
    const size_t span = 2 * request->length;
    /* The reservation keeps other threads' mappings out until both views are in place. */
    void *reserved = mmap(NULL, span, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (reserved == MAP_FAILED) {
        return errno;
    }
    unsigned char *base = reserved;
    int error = map_at(base, request);
    if (error == 0) {
        error = map_mirror(base, request);
    }
    if (error != 0) {
        (void)munmap(base, span);
        return error;
    }
    region->base = base;
    region->span = span;
    return 0;
}

static int map_once(struct region *region, const struct region_request *request)
{
    void *mapped =
        mmap(NULL, request->length, request->prot, map_flags(request), request->fd, (off_t)request->offset);
    if (mapped == MAP_FAILED) {
        return errno;
    }
    region->base = mapped;
    region->span = request->length;
    return 0;
}

int region_map(struct region *region, const struct region_request *request)
{
    *region = (struct region){.base = NULL, .length = request->length, .anonymous = request->fd < 0};
    if (request->length == 0 || request->offset < 0) {
        return EINVAL;
    }
    return request->mirrored ? map_twice(region, request) : map_once(region, request);
}

int region_unmap(struct region *region)
{
    unsigned char *base = region->base;
    if (base == NULL) {
        return 0;
    }
    region->base = NULL;
    return errno_of(munmap(base, region->span));
}

int region_protect(const struct region *region, int prot)
{
    return errno_of(mprotect(region->base, region->span, prot));
}

int region_lock(const struct region *region)
{
    const int error = errno_of(mlock(region->base, region->span));
    if (error != 0) {
        (void)munlock(region->base, region->span);
    }
    return error;
}

int region_unlock(const struct region *region) { return errno_of(munlock(region->base, region->span)); }

int region_flush(const struct region *region, size_t offset, size_t length, bool wait)
{
    /* One view is enough: write-back finds what was dirtied through either. */
    const struct page_range range = pages_of(offset, length);
    return errno_of(msync(region->base + range.start, range.length, wait ? MS_SYNC : MS_ASYNC));
}

/* madvise of one byte range in each view. */
static int advise_views(const struct region *region, struct page_range range, int advice)
{
    for (size_t view = 0; view < region->span; view += region->length) {
        if (madvise(region->base + view + range.start, range.length, advice) != 0) {
            return errno;
        }
    }
    return 0;
}

/* Not on the list: DONTFORK (a child's access would be SIGSEGV, and its close() would unmap whatever
 * came to lie there), REMOVE (takes reserved space away again: SIGBUS on a full disk), HWPOISON and
 * SOFT_OFFLINE (for testing kernels), POPULATE_* (region_populate). */
static bool advice_is_harmless(int advice)
{
    switch (advice) {
    case MADV_NORMAL:
    case MADV_RANDOM:
    case MADV_SEQUENTIAL:
    case MADV_WILLNEED:
    case MADV_DONTNEED:
    case MADV_FREE:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_DONTDUMP:
    case MADV_DODUMP:
    case MADV_WIPEONFORK:
    case MADV_KEEPONFORK:
    case MADV_COLD:
    case MADV_PAGEOUT:
    case MADV_COLLAPSE:
        return true;
    default:
        return false;
    }
}

int region_advise(const struct region *region, size_t offset, size_t length, int advice)
{
    return advice_is_harmless(advice) ? advise_views(region, pages_of(offset, length), advice) : EINVAL;
}

/* Fault pages of anonymous memory in by hand.  OR with 0 is a write that changes nothing and, being
 * one atomic step, loses no concurrent write of another process. */
static void touch_views(const struct region *region, struct page_range range, bool write)
{
    const size_t page = region_page_size();
    for (size_t view = 0; view < region->span; view += region->length) {
        for (size_t at = 0; at < range.length; at += page) {
            _Atomic unsigned char *byte = (_Atomic unsigned char *)(region->base + view + range.start + at);
            if (write) {
                (void)atomic_fetch_or_explicit(byte, (unsigned char)0, memory_order_relaxed);
            } else {
                (void)atomic_load_explicit(byte, memory_order_relaxed);
            }
        }
    }
}

int region_populate(const struct region *region, size_t offset, size_t length, bool write)
{
    const struct page_range range = pages_of(offset, length);
    const int error = advise_views(region, range, write ? MADV_POPULATE_WRITE : MADV_POPULATE_READ);
    if (error != EINVAL) {
        return error;
    }
    /* EINVAL: the kernel does not know the advice, or the protection forbids the access, which is
     * the caller's to check.  A file is not touched: past its end, or without space, that is SIGBUS. */
    if (!region->anonymous) {
        return advise_views(region, range, MADV_WILLNEED);
    }
    touch_views(region, range, write);
    return 0;
}

int region_resident(const struct region *region, size_t offset, size_t length, unsigned char *pages)
{
    const struct page_range range = pages_of(offset, length);
    int error;
    do {
        error = errno_of(mincore(region->base + range.start, range.length, pages));
    } while (error == EAGAIN); /* "temporarily out of resources" */
    return error;
}
