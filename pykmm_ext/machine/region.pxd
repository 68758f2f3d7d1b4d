# SPDX-License-Identifier: GPL-2.0-only
# A machine in one region: memory for everything that belongs to a machine, and its shadow. See include/kmm/region.h.
from pykmm_ext.machine.cpu cimport Cpu, u8, u32, u64
from pykmm_ext.mm.mm_types cimport machine, page

cdef extern from "kmm/region.h" nogil:
    enum:
        KMM_SHADOW_GRAIN
        KMM_SHADOW_NEVER, KMM_SHADOW_LIVE, KMM_SHADOW_FREED, KMM_SHADOW_FOREIGN
        KMM_SHADOW_STATE, KMM_SHADOW_FIRST, KMM_SHADOW_TABLE, KMM_SHADOW_ANON, KMM_SHADOW_FILE
        KMM_POISON_FREE, KMM_POISON_INUSE, KMM_ORDER_REGION, KMM_MAG_REGION
    cdef struct region_header:
        const char *name
        u32 size
        u32 prev
    cdef struct region_slice:
        u8 *base
        u8 *end
        u8 *next
        u8 *last
        unsigned long pfn, pfn_end, pfn_next
        u8 *snap_next
        u8 *snap_last
        unsigned long snap_pfn_next
    ctypedef struct region_t "struct region":
        size_t bytes
        u8 *heap
        size_t heap_bytes
        u8 *shadow
        u8 *frame_state
        page *mem_map
        size_t map_bytes
        u8 *mem_base
        size_t frame_bytes
        u32 page_shift
        u32 nr_slices
        u8 *copy
        size_t copy_bytes
        u32 exhausted
        void (*bug)(Cpu *cpu, const char *message, const void *obj) noexcept nogil
        char names[4][160]
        u32 name
        region_slice *slices
    int region_state(const region_t *r, const void *addr)

# The region of a machine, NULL where it lies on the host's heap. Context: any.
cdef inline region_t *region_of(const machine *m) noexcept nogil:
    return <region_t *>m.region

# ---- memory for everything that belongs to a machine ----
# Context of these three: any, IRQs on or off. Without a region: the host's malloc(), calloc(), posix_memalign(), free().
# `cpu` = on whose behalf; NULL while the machine is built, and where it has a slice of its own.
# `name` is static or lives as long as the machine. `align` is a power of two. NULL: no room.
cdef void *machine_malloc(Cpu *cpu, machine *m, size_t size, size_t align, const char *name) noexcept nogil
cdef void *machine_zalloc(Cpu *cpu, machine *m, size_t size, size_t align, const char *name) noexcept nogil
# p may be NULL.
cdef void machine_free(Cpu *cpu, machine *m, void *p) noexcept nogil

# ---- the region itself; context: the engine's thread ----
# Reserved, zero, nothing handed out but the zero page; NULL: the host has no room.
cdef region_t *region_create(u32 nr_cpus, unsigned long nr_frames, u32 page_shift) noexcept nogil
cdef void region_destroy(region_t *r) noexcept nogil
# An object of slice `slice`, its contents as they are. NULL: the slice is full.
cdef void *region_alloc(region_t *r, u32 slice, size_t size, size_t align, const char *name) noexcept nogil
# Poisons the object. False when it is not the start of a live one: nothing was done.
cdef bint region_free(region_t *r, void *p) noexcept nogil
# 1 << order frames of the Cpu's slice, with contents of POISON_INUSE, or 0 if `zero`. NULL: the slice is full.
cdef page *region_alloc_pages(region_t *r, u32 cpu_id, u32 order, bint zero) noexcept nogil
# What the page is used for, as a bit of its frame's state: KMM_SHADOW_TABLE, _ANON, _FILE; or 0.
cdef u8 frame_kind(const page *p) noexcept nogil
# Poisons the frames. False when the block is not live: nothing was done.
cdef bint region_free_pages(region_t *r, page *p, u32 order) noexcept nogil
# Start of the object that addr lies in or that lies before it, NULL = none; heap addresses only.
cdef u8 *region_object(region_t *r, const void *addr) noexcept nogil
cdef inline region_header *region_header_of(void *obj) noexcept nogil:
    return <region_header *>obj - 1
# How many objects of that name (the same pointer) are live; False when one that was freed has been written to since.
cdef bint region_count(region_t *r, const char *name, unsigned long *live) noexcept nogil
# Frame states, reference counts and poison agree; NULL or a static message with *pfn. *live: frames in use.
cdef const char *region_validate_frames(region_t *r, unsigned long *live, unsigned long *pfn) noexcept nogil
