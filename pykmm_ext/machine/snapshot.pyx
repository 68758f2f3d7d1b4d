# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects here: raw pointers only)
"""kernel/power/snapshot.c, mm/kasan/report.c: stands in for both: the copy of a machine that every execution of the
check engine starts from, and the names of what lies in it.

A snapshot is, slice by slice: the objects, their shadow, the frames, their states, their struct pages. Bytes that were
not in use need no copy: whoever takes them fills them (machine/region), and until then their shadow says NEVER.

simplified: frame 0 and its struct page are nobody's and stay out.
"""
from libc.errno cimport ENOMEM
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from pykmm_ext.machine.cpu cimport u8, u32
from pykmm_ext.machine.region cimport (
    KMM_SHADOW_ANON, KMM_SHADOW_FILE, KMM_SHADOW_FREED, KMM_SHADOW_GRAIN, KMM_SHADOW_LIVE, KMM_SHADOW_NEVER,
    KMM_SHADOW_STATE, KMM_SHADOW_TABLE, frame_kind, region_header_of, region_object, region_of, region_slice,
    region_state, region_t,
)
from pykmm_ext.mm.mm_types cimport KMEM_NR, kmem_cache, page, rcu_state, srcu_struct, zone

cdef extern from "kmm/region_names.h" nogil:
    const char *region_member_name(const char *structure, u64 offset)

# One run of bytes that belongs to a snapshot.
cdef struct run:
    u8 *at
    size_t bytes

cdef enum:
    RUNS = 5


# Context: any. The runs of a slice with everything below `next` and `pfn_next` in use.
cdef inline void slice_runs(region_t *r, region_slice *s, u8 *next, unsigned long pfn_next, run *runs) noexcept nogil:
    cdef unsigned long frames = pfn_next - s.pfn
    runs[0].at = s.base
    runs[0].bytes = next - s.base
    runs[1].at = r.shadow + (s.base - r.heap) // KMM_SHADOW_GRAIN
    runs[1].bytes = (next - s.base) // KMM_SHADOW_GRAIN
    runs[2].at = r.mem_base + (s.pfn << r.page_shift)
    runs[2].bytes = frames << r.page_shift
    runs[3].at = r.frame_state + s.pfn
    runs[3].bytes = frames
    runs[4].at = <u8 *>(r.mem_map + s.pfn)
    runs[4].bytes = frames * sizeof(page)


cdef int machine_snapshot(machine *m) noexcept nogil:
    cdef region_t *r = region_of(m)
    cdef run runs[RUNS]
    cdef region_slice *s
    cdef size_t total = 0
    cdef u32 i, k
    cdef u8 *to
    free(r.copy)
    r.copy_bytes = 0
    for i in range(r.nr_slices):
        slice_runs(r, &r.slices[i], r.slices[i].next, r.slices[i].pfn_next, runs)
        for k in range(RUNS):
            total += runs[k].bytes
    r.copy = <u8 *>malloc(total)
    if r.copy == NULL:
        return -ENOMEM
    to = r.copy
    for i in range(r.nr_slices):
        s = &r.slices[i]
        s.snap_next = s.next
        s.snap_last = s.last
        s.snap_pfn_next = s.pfn_next
        slice_runs(r, s, s.next, s.pfn_next, runs)
        for k in range(RUNS):
            memcpy(to, runs[k].at, runs[k].bytes)
            to += runs[k].bytes
    r.copy_bytes = total
    r.exhausted = 0
    return 0


cdef void machine_restore(machine *m) noexcept nogil:
    cdef region_t *r = region_of(m) # read now: m is overwritten
    cdef run runs[RUNS]
    cdef region_slice *s
    cdef u8 *copy = r.copy
    cdef u32 i, k
    if copy == NULL:
        return
    for i in range(r.nr_slices):
        s = &r.slices[i]
        slice_runs(r, s, s.snap_next, s.snap_pfn_next, runs)
        for k in range(RUNS):
            memcpy(runs[k].at, copy, runs[k].bytes)
            copy += runs[k].bytes
        # Handed out since: in nobody's hands again. The contents stay, whoever gets them next fills them.
        memset(runs[1].at + runs[1].bytes, KMM_SHADOW_NEVER, (s.next - s.snap_next) // KMM_SHADOW_GRAIN)
        memset(runs[3].at + runs[3].bytes, KMM_SHADOW_NEVER, s.pfn_next - s.snap_pfn_next)
        memset(runs[4].at + runs[4].bytes, 0, (s.pfn_next - s.snap_pfn_next) * sizeof(page))
        s.next = s.snap_next
        s.last = s.snap_last
        s.pfn_next = s.snap_pfn_next
    r.exhausted = 0


cdef bint machine_is_restored(machine *m) noexcept nogil:
    cdef region_t *r = region_of(m)
    cdef run runs[RUNS]
    cdef region_slice *s
    cdef u8 *copy = r.copy
    cdef u32 i, k
    if copy == NULL:
        return False
    for i in range(r.nr_slices):
        s = &r.slices[i]
        if s.next != s.snap_next or s.pfn_next != s.snap_pfn_next or s.last != s.snap_last:
            return False
        slice_runs(r, s, s.snap_next, s.snap_pfn_next, runs)
        for k in range(RUNS):
            if memcmp(runs[k].at, copy, runs[k].bytes) != 0:
                return False
            copy += runs[k].bytes
    return True


cdef size_t machine_snapshot_size(machine *m) noexcept nogil:
    return region_of(m).copy_bytes


# ---- what lies at an address ----

cdef int machine_shadow_state(machine *m, const void *addr) noexcept nogil:
    return region_state(region_of(m), addr)


# Does [at, at + bytes) hold addr? Then *offset is how far in.
cdef inline bint within(const void *addr, const void *at, size_t bytes, u64 *offset) noexcept nogil:
    if <size_t>(<const u8 *>addr - <const u8 *>at) >= bytes:
        return False
    offset[0] = <const u8 *>addr - <const u8 *>at
    return True


# Context: as machine_object_name. A part of struct machine that has a name of its own, or the machine.
cdef void name_machine(machine *m, const void *addr, char *to, size_t size, u64 *offset) noexcept nogil:
    cdef u32 i
    if within(addr, &m.zone, sizeof(zone), offset):
        snprintf(to, size, b"zone")
        return
    if within(addr, &m.rcu, sizeof(rcu_state), offset):
        snprintf(to, size, b"rcu_state")
        return
    if within(addr, &m.vma_srcu, sizeof(srcu_struct), offset):
        snprintf(to, size, b"vma_srcu")
        return
    for i in range(KMEM_NR):
        if within(addr, &m.caches[i], sizeof(kmem_cache), offset):
            snprintf(to, size, b"kmem_cache %s", m.caches[i].name)
            return
    snprintf(to, size, b"machine")


# How many objects the slice handed out up to this one.
cdef u32 object_number(u8 *obj) noexcept nogil:
    cdef u32 n = 1
    while region_header_of(obj).prev:
        obj -= region_header_of(obj).prev
        n += 1
    return n


# Context: as machine_object_name; addr lies in the heap.
cdef void name_object(machine *m, region_t *r, const void *addr, char *to, size_t size, u64 *offset) noexcept nogil:
    cdef u8 *obj = region_object(r, addr)
    cdef u32 slice, i
    cdef const char *name
    cdef const char *state = b""
    if obj == NULL:
        offset[0] = <size_t>addr
        snprintf(to, size, b"unused memory")
        return
    offset[0] = <const u8 *>addr - obj
    name = region_header_of(obj).name
    if obj == <u8 *>m:
        name_machine(m, addr, to, size, offset)
        return
    for i in range(m.nr_cpus):
        if obj == <u8 *>m.cpus[i] or obj == <u8 *>m.cpus[i].tlb:
            snprintf(to, size, b"%s %u", name, i)
            return
    slice = <u32>((obj - r.slices[0].base) // (r.slices[0].end - r.slices[0].base))
    if offset[0] >= region_header_of(obj).size:
        state = b", behind its end"
    elif region_state(r, addr) == KMM_SHADOW_FREED:
        state = b", freed"
    if slice == 0:
        snprintf(to, size, b"%s%s", name, state)
    else:
        snprintf(to, size, b"%s %u.%u%s", name, slice - 1, object_number(obj), state)


# Context: as machine_object_name. What the frame holds or held.
cdef void name_frame(machine *m, region_t *r, unsigned long pfn, char *to, size_t size) noexcept nogil:
    cdef page *p = r.mem_map + pfn
    cdef u8 state = r.frame_state[pfn]
    cdef const char *freed = b""
    if p == m.zero_page:
        snprintf(to, size, b"frame %lu (zero page)", pfn)
        return
    if state & KMM_SHADOW_STATE == KMM_SHADOW_NEVER:
        snprintf(to, size, b"frame %lu (never handed out)", pfn)
        return
    if state & KMM_SHADOW_STATE == KMM_SHADOW_FREED:
        freed = b", freed"
    else: # as it will be when it is freed
        state = KMM_SHADOW_LIVE | frame_kind(p)
    if state & KMM_SHADOW_TABLE:
        snprintf(to, size, b"frame %lu (page table level %lu of mm %lu%s)", pfn, p.private_ & 255, p.private_ >> 8, freed)
    elif state & KMM_SHADOW_ANON:
        snprintf(to, size, b"frame %lu (anonymous page, index %#lx%s)", pfn, p.index, freed)
    elif state & KMM_SHADOW_FILE:
        snprintf(to, size, b"frame %lu (page %lu of a file%s)", pfn, p.index, freed)
    else:
        snprintf(to, size, b"frame %lu%s", pfn, b" (freed)" if freed[0] else b"")


cdef const char *machine_object_name(machine *m, const void *addr, u64 *offset) noexcept nogil:
    cdef region_t *r = region_of(m)
    cdef char *to = r.names[r.name]
    cdef u64 at = 0
    r.name = (r.name + 1) % 4
    if within(addr, r.heap, r.heap_bytes, &at):
        name_object(m, r, addr, to, sizeof(r.names[0]), offset)
    elif within(addr, r.mem_base, r.frame_bytes, &at):
        offset[0] = at & ((<u64>1 << r.page_shift) - 1)
        name_frame(m, r, at >> r.page_shift, to, sizeof(r.names[0]))
    elif within(addr, r.mem_map, r.map_bytes, &at):
        offset[0] = at % sizeof(page)
        snprintf(to, sizeof(r.names[0]), b"page %lu", <unsigned long>(at // sizeof(page)))
    else:
        offset[0] = <size_t>addr
        snprintf(to, sizeof(r.names[0]), b"?")
    return to


cdef const char *machine_member_name(const char *structure, u64 offset) noexcept nogil:
    return region_member_name(structure, offset)
