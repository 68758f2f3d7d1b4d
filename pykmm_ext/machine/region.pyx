# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""mm/kasan/common.c, mm/slab_common.c: stands in for both where a machine lies in one region (include/kmm/region.h).

Two bump allocators, of objects and of frames, with one slice a Cpu. What was freed is poisoned and stays freed until the
region is copied back (machine/snapshot). So a stale pointer finds the shadow's FREED and poison behind it, and every
object of an execution has an address of its own.

simplified: no redzone beyond the header of the next object; no record of who allocated and freed.
"""
from libc.stdlib cimport abort, calloc, free, malloc
from libc.string cimport memcmp, memset

from pykmm_ext.mm.mm_types cimport PG_anon, PG_table

cdef extern from "<sys/mman.h>" nogil:
    void *mmap(void *addr, size_t length, int prot, int flags, int fd, long offset)
    int munmap(void *addr, size_t length)
    const int PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_ANONYMOUS, MAP_NORESERVE
    void *MAP_FAILED

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **memptr, size_t alignment, size_t size)

cdef extern from *:
    """
    #define REGION_HOST_ALIGN _Alignof(max_align_t)
    """
    const size_t HOST_ALIGN "REGION_HOST_ALIGN"

cdef enum:
    SLICE = 32 << 20        # reserved for the objects of a Cpu; what is not used costs address space only
    PAGE = 4096
    ZERO_PFN = 1
    NR_RESERVED = 2         # as in mm/page_alloc: nothing, and the zero page


cdef inline size_t round_up(size_t n, size_t to) noexcept nogil:
    return (n + to - 1) & ~(to - 1)


# ---- memory for everything that belongs to a machine ----

cdef void *machine_malloc(Cpu *cpu, machine *m, size_t size, size_t align, const char *name) noexcept nogil:
    cdef void *p = NULL
    if m.region != NULL:
        p = region_alloc(region_of(m), 0 if cpu == NULL else cpu.id + 1, size, align, name)
        if p != NULL:
            memset(p, KMM_POISON_INUSE, size) # what an earlier execution left would make this one differ from its replay
        return p
    if align <= HOST_ALIGN:
        return malloc(size)
    return p if posix_memalign(&p, align, size) == 0 else NULL


cdef void *machine_zalloc(Cpu *cpu, machine *m, size_t size, size_t align, const char *name) noexcept nogil:
    cdef void *p = NULL
    if m.region != NULL:
        p = region_alloc(region_of(m), 0 if cpu == NULL else cpu.id + 1, size, align, name)
    elif align <= HOST_ALIGN:
        return calloc(1, size)
    elif posix_memalign(&p, align, size) != 0:
        return NULL
    if p != NULL:
        memset(p, 0, size)
    return p


cdef void machine_free(Cpu *cpu, machine *m, void *p) noexcept nogil:
    if m.region == NULL:
        free(p)
    elif p != NULL and not region_free(region_of(m), p):
        if region_of(m).bug == NULL:
            abort()
        region_of(m).bug(cpu, b"an object was freed twice", p)


# ---- life of a region ----

cdef region_t *region_create(u32 nr_cpus, unsigned long nr_frames, u32 page_shift) noexcept nogil:
    cdef u32 nr_slices = nr_cpus + 1
    cdef size_t header = round_up(sizeof(region_t) + nr_slices * sizeof(region_slice), PAGE)
    cdef size_t heap_bytes = <size_t>SLICE * nr_slices
    cdef size_t shadow_bytes = heap_bytes // KMM_SHADOW_GRAIN
    cdef size_t state_bytes = round_up(nr_frames, PAGE)
    cdef size_t map_bytes = nr_frames * sizeof(page)
    cdef size_t frame_bytes = nr_frames << page_shift
    cdef size_t size = <size_t>1 << page_shift
    cdef size_t total = header + heap_bytes + shadow_bytes + state_bytes + round_up(map_bytes, PAGE) + size + frame_bytes
    cdef unsigned long share = (nr_frames - NR_RESERVED) // nr_cpus
    cdef region_slice *s
    cdef region_t *r
    cdef u32 i
    cdef u8 *p = <u8 *>mmap(NULL, total, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0)
    if <void *>p == MAP_FAILED:
        return NULL
    r = <region_t *>p
    r.bytes = total
    r.heap = p + header
    r.heap_bytes = heap_bytes
    r.shadow = r.heap + heap_bytes
    r.frame_state = r.shadow + shadow_bytes
    r.mem_map = <page *>(r.frame_state + state_bytes)
    r.map_bytes = map_bytes
    r.mem_base = <u8 *>round_up(<size_t>r.mem_map + map_bytes, size)
    r.frame_bytes = frame_bytes
    r.page_shift = page_shift
    r.nr_slices = nr_slices
    for i in range(nr_slices):
        s = &r.slices[i]
        s.base = s.next = r.heap + <size_t>SLICE * i
        s.end = s.base + SLICE
        if i == 0:
            s.pfn = ZERO_PFN
            s.pfn_end = s.pfn_next = NR_RESERVED
            continue
        s.pfn = s.pfn_next = NR_RESERVED + share * (i - 1)
        s.pfn_end = s.pfn + share if i < nr_cpus else nr_frames
    r.frame_state[ZERO_PFN] = KMM_SHADOW_LIVE
    return r


cdef void region_destroy(region_t *r) noexcept nogil:
    free(r.copy)
    munmap(r, r.bytes)


# ---- objects ----

cdef inline u8 *shadow_of(region_t *r, const void *addr) noexcept nogil:
    return r.shadow + (<const u8 *>addr - r.heap) // KMM_SHADOW_GRAIN


cdef void *region_alloc(region_t *r, u32 slice, size_t size, size_t align, const char *name) noexcept nogil:
    cdef region_slice *s = &r.slices[slice]
    cdef size_t grains = round_up(size if size else 1, KMM_SHADOW_GRAIN) // KMM_SHADOW_GRAIN
    cdef u8 *p
    cdef region_header *h
    if align < KMM_SHADOW_GRAIN:
        align = KMM_SHADOW_GRAIN
    p = <u8 *>round_up(<size_t>(s.next + sizeof(region_header)), align)
    if p > s.end or grains > <size_t>(s.end - p) // KMM_SHADOW_GRAIN or size >> 32:
        r.exhausted += 1
        return NULL
    h = region_header_of(p)
    # What lies between objects is part of the snapshot too.
    memset(s.next, 0, <u8 *>h - s.next)
    memset(p + size, 0, grains * KMM_SHADOW_GRAIN - size)
    h.name = name
    h.size = <u32>size
    h.prev = <u32>(p - s.last) if s.last != NULL else 0
    s.last = p
    s.next = p + grains * KMM_SHADOW_GRAIN
    memset(shadow_of(r, p), KMM_SHADOW_LIVE, grains)
    shadow_of(r, p)[0] = KMM_SHADOW_LIVE | KMM_SHADOW_FIRST
    return p


cdef bint region_free(region_t *r, void *p) noexcept nogil:
    cdef size_t size, grains
    cdef u8 *shadow
    if <size_t>(<u8 *>p - r.heap) >= r.heap_bytes or <size_t>p & (KMM_SHADOW_GRAIN - 1):
        return False
    shadow = shadow_of(r, p)
    if shadow[0] != (KMM_SHADOW_LIVE | KMM_SHADOW_FIRST):
        return False
    size = region_header_of(p).size
    grains = round_up(size if size else 1, KMM_SHADOW_GRAIN) // KMM_SHADOW_GRAIN
    memset(p, KMM_POISON_FREE, size)
    memset(shadow, KMM_SHADOW_FREED, grains)
    shadow[0] = KMM_SHADOW_FREED | KMM_SHADOW_FIRST
    return True


cdef u8 *region_object(region_t *r, const void *addr) noexcept nogil:
    cdef size_t at = <size_t>(<const u8 *>addr - r.heap) // KMM_SHADOW_GRAIN
    cdef size_t first = at - at % (SLICE // KMM_SHADOW_GRAIN)
    while True:
        if r.shadow[at] & KMM_SHADOW_FIRST:
            return r.heap + at * KMM_SHADOW_GRAIN
        if at == first:
            return NULL
        at -= 1


# Is every one of n bytes at p still what fills freed memory? All are equal if each equals the next.
cdef inline bint is_poison(const u8 *p, size_t n) noexcept nogil:
    return n == 0 or (p[0] == KMM_POISON_FREE and memcmp(p, p + 1, n - 1) == 0)


cdef bint region_count(region_t *r, const char *name, unsigned long *live) noexcept nogil:
    cdef region_header *h
    cdef u32 i
    cdef u8 *p
    live[0] = 0
    for i in range(r.nr_slices):
        p = r.slices[i].last
        while p != NULL:
            h = region_header_of(p)
            if h.name == name:
                if shadow_of(r, p)[0] & KMM_SHADOW_STATE == KMM_SHADOW_LIVE:
                    live[0] += 1
                elif not is_poison(p, h.size):
                    return False
            p = p - h.prev if h.prev else NULL
    return True


# ---- frames ----

cdef inline u8 *frame_of(region_t *r, unsigned long pfn) noexcept nogil:
    return r.mem_base + (pfn << r.page_shift)


cdef page *region_alloc_pages(region_t *r, u32 cpu_id, u32 order, bint zero) noexcept nogil:
    cdef region_slice *s = &r.slices[cpu_id + 1]
    cdef unsigned long n = <unsigned long>1 << order
    cdef unsigned long pfn = (s.pfn_next + n - 1) & ~(n - 1)
    if pfn + n > s.pfn_end:
        r.exhausted += 1
        return NULL
    s.pfn_next = pfn + n
    memset(r.frame_state + pfn, KMM_SHADOW_LIVE, n)
    memset(frame_of(r, pfn), 0 if zero else KMM_POISON_INUSE, n << r.page_shift)
    return r.mem_map + pfn


cdef u8 frame_kind(const page *p) noexcept nogil:
    if p.flags & PG_table:
        return KMM_SHADOW_TABLE
    if p.flags & PG_anon:
        return KMM_SHADOW_ANON
    return KMM_SHADOW_FILE if p.mapping != NULL else 0


cdef bint region_free_pages(region_t *r, page *p, u32 order) noexcept nogil:
    cdef unsigned long n = <unsigned long>1 << order
    cdef unsigned long pfn = p - r.mem_map
    if r.frame_state[pfn] & KMM_SHADOW_STATE != KMM_SHADOW_LIVE:
        return False
    memset(r.frame_state + pfn, KMM_SHADOW_FREED | frame_kind(p), n)
    memset(frame_of(r, pfn), KMM_POISON_FREE, n << r.page_shift)
    return True


cdef const char *region_validate_frames(region_t *r, unsigned long *live, unsigned long *pfn) noexcept nogil:
    cdef unsigned long n
    cdef region_slice *s
    cdef page *p
    cdef int state
    cdef u32 i
    live[0] = 0
    for i in range(1, r.nr_slices):
        s = &r.slices[i]
        n = s.pfn
        while n < s.pfn_next:
            pfn[0] = n
            p = r.mem_map + n
            state = r.frame_state[n] & KMM_SHADOW_STATE
            n += 1
            if state == KMM_SHADOW_LIVE:
                if p._refcount == 0:
                    return b"frame is neither free nor owned"
                live[0] += 1
                # The rest of a larger block has no count of its own.
                while p.order & ~KMM_ORDER_REGION and n & ((<unsigned long>1 << (p.order & ~KMM_ORDER_REGION)) - 1):
                    live[0] += 1
                    n += 1
                continue
            if p._refcount != 0:
                return b"free frame with references"
            if p._mapcount != 0:
                return b"free frame with mappings"
            if state == KMM_SHADOW_FREED and not is_poison(frame_of(r, pfn[0]), <size_t>1 << r.page_shift):
                return b"frame was written to after it was freed"
    return NULL
