# SPDX-License-Identifier: GPL-2.0-only
# mm/page_alloc.c: buddy lists and per-CPU page lists over the arena.
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport machine, page

cdef enum:
    __GFP_ZERO = 1
    __GFP_NOWAIT = 2

# Frames 0 (never handed out: physical address 0 means "none") and 1 (the zero page) are reserved.
cdef enum:
    NR_RESERVED = 2

cdef int zone_init(machine *m) noexcept nogil
# Context: any with IRQs on or off, no zone->lock. _refcount = 1, _mapcount = 0; NULL = out of memory.
cdef page *alloc_page(Cpu *cpu, u32 gfp) noexcept nogil
cdef page *alloc_pages(Cpu *cpu, u32 gfp, u32 order) noexcept nogil
cdef void get_page(Cpu *cpu, page *page) noexcept nogil
# Drops a reference; the last one frees. zero_page and reserved pages are never freed.
cdef void put_page(Cpu *cpu, page *page) noexcept nogil
# The same for a frame of __GFP_ZERO that nobody has written: if it is free now, who gets it next need not clear it.
cdef void put_zeroed_page(Cpu *cpu, page *page) noexcept nogil
# page_ref_sub_and_test(): the same for `refs` references at once.
cdef void put_page_refs(Cpu *cpu, page *page, u32 refs) noexcept nogil
# `refs` more references, unless there is none (page_ref_add_unless()) or there would be too many. False: not taken.
# Fully ordered. Context: any; the caller needs no reference, only a page that was one.
cdef bint try_get_page_refs(Cpu *cpu, page *page, u32 refs) noexcept nogil
cdef void __free_pages(Cpu *cpu, page *page, u32 order) noexcept nogil
# Per-CPU lists back to the buddy lists (machine exit, accounting).
cdef void drain_local_pages(Cpu *cpu) noexcept nogil
# Frames in use by anything but the allocator itself (racy unless quiescent).
cdef unsigned long nr_used_pages(machine *m) noexcept nogil
