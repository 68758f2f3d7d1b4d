# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: everything here works on C structures)
"""mm/page_alloc.c: what must hold of its lists when no Cpu runs. Every frame is on one list, has an owner, or was never used."""
from libc.stdlib cimport calloc, free

from pykmm_ext.machine.cpu cimport u8, u32
from pykmm_ext.machine.region cimport region_of, region_validate_frames
from pykmm_ext.mm.mm_types cimport MAX_ORDER, PG_buddy, PG_pristine, machine, page, page_to_pfn, pfn_to_page, zone
from pykmm_ext.mm.page_alloc cimport NR_RESERVED, nr_used_pages


cdef inline bint test_and_set(u8 *map, unsigned long pfn) noexcept nogil:
    cdef bint was = (map[pfn >> 3] >> (pfn & 7)) & 1
    map[pfn >> 3] |= <u8>(1 << (pfn & 7))
    return was


# Context: as validate_zone. `map`: a zeroed bit per frame below pristine_pfn, set for every free one.
cdef const char *validate_lists(machine *m, u8 *map, unsigned long *pfn) noexcept nogil:
    cdef zone *z = &m.zone
    cdef u32 order, i, n
    cdef unsigned long blocks, j
    cdef unsigned long total = 0
    cdef page *p
    cdef page *prev
    for order in range(MAX_ORDER):
        blocks = 0
        prev = NULL
        p = z.free_area[order].free_list
        while p != NULL:
            pfn[0] = page_to_pfn(m, p)
            if pfn[0] < NR_RESERVED or pfn[0] + (<unsigned long>1 << order) > z.pristine_pfn:
                return b"free block outside the zone's used part"
            if pfn[0] & ((<unsigned long>1 << order) - 1):
                return b"free block not aligned to its order"
            if p.flags != PG_buddy or p.order != order:
                return b"free block without PG_buddy or with the wrong order"
            if p.lru_prev != prev:
                return b"buddy list: broken back link"
            if p._refcount != 0:
                return b"free block with references"
            for j in range(<unsigned long>1 << order):
                if test_and_set(map, pfn[0] + j):
                    return b"frame is free twice"
                if j and (p[j].flags & PG_buddy):
                    return b"PG_buddy inside a free block"
            j = pfn[0] ^ (<unsigned long>1 << order)
            if (order < MAX_ORDER - 1 and j < z.pristine_pfn and m.mem_map[j].flags & PG_buddy
                    and m.mem_map[j].order == order):
                return b"two free buddies were not merged"
            blocks += 1
            prev = p
            p = p.lru_next
        if blocks != z.free_area[order].nr_free:
            pfn[0] = order
            return b"free_area: nr_free is wrong (pfn = the order)"
        total += blocks << order
    if total + (z.end_pfn - z.pristine_pfn) != z.nr_free_pages:
        pfn[0] = total
        return b"zone: nr_free_pages is wrong"
    for i in range(m.nr_cpus):
        n = 0
        prev = NULL
        p = <page *>m.cpus[i].pcp.list
        while p != NULL:
            pfn[0] = page_to_pfn(m, p)
            if pfn[0] < NR_RESERVED or pfn[0] >= z.pristine_pfn:
                return b"per-CPU list: frame outside the zone's used part"
            if test_and_set(map, pfn[0]):
                return b"frame is free twice"
            if p._refcount != 0 or p.flags & ~PG_pristine:
                return b"per-CPU list: frame with references or flags"
            if p.lru_prev != prev:
                return b"per-CPU list: broken back link"
            n += 1
            prev = p
            p = p.lru_next
        if m.cpus[i].pcp.tail != <void *>prev:
            pfn[0] = i
            return b"per-CPU list: tail is wrong (pfn = the CPU)"
        if n != m.cpus[i].pcp.count:
            pfn[0] = i
            return b"per-CPU list: count is wrong (pfn = the CPU)"
    # Everything else has an owner.
    j = NR_RESERVED
    while j < z.pristine_pfn:
        p = pfn_to_page(m, j)
        pfn[0] = j
        if map[j >> 3] >> (j & 7) & 1:
            j += 1
            continue
        if p._refcount == 0:
            return b"frame is neither free nor owned"
        if p.flags & PG_buddy:
            return b"PG_buddy on a frame that is in use"
        j += <unsigned long>1 << p.order
    if z.pristine_pfn < z.end_pfn:
        p = pfn_to_page(m, z.pristine_pfn)
        pfn[0] = z.pristine_pfn
        if p._refcount != 0 or p.flags != 0:
            return b"pristine frame was used"
    return NULL


# Context: quiescent: no Cpu of the machine runs. Takes memory of the host: one bit per used frame.
cdef const char *validate_zone(machine *m, unsigned long *pfn) noexcept nogil:
    cdef const char *message
    cdef unsigned long live = 0
    cdef u8 *map
    pfn[0] = 0
    if m.region != NULL:
        message = region_validate_frames(region_of(m), &live, pfn)
        if message == NULL and live != nr_used_pages(m):
            return b"zone: nr_free_pages is wrong"
        return message
    if m.zone.pristine_pfn > m.zone.end_pfn:
        return b"zone: the pristine tail is beyond its end"
    map = <u8 *>calloc(m.zone.pristine_pfn // 8 + 1, 1)
    if map == NULL:
        return b"validate_zone: out of host memory"
    message = validate_lists(m, map, pfn)
    free(map)
    return message
