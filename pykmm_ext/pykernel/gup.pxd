# SPDX-License-Identifier: GPL-2.0-only
# Lockless walks of strategies in Python. Not part of the plugin C API.
from pykmm_ext.machine.cpu cimport Cpu, u32
from pykmm_ext.mm.mm_types cimport mm_struct, page
from pykmm_ext.pykernel.call cimport CpuHandle
from pykmm_ext.pykernel.handles cimport MmHandle

# An entry of a page table that a walk has come to.
cdef struct entry_state:
    unsigned long *p
    u32 dep                 # number of the load that led to it; check engine
    u32 loaded              # number of its own last load

cdef class EntryHandle:
    cdef CpuHandle on
    cdef mm_struct *mm
    cdef unsigned long address
    cdef unsigned long table    # a PTE: physical address of its page table
    cdef readonly u32 level # 0: it maps a page; 1: it leads to a table of such entries
    cdef entry_state e

# pages[] of strategy_ops.gup_fast.
cdef class PageArray:
    cdef CpuHandle on
    cdef page **pages
    cdef unsigned long n, nr_pages
    cdef unsigned int gup_flags

ctypedef long (*gup_function)(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
                              page **pages) noexcept nogil

# Context: GIL held.
cdef PageArray page_array(CpuHandle on, page **pages, unsigned long nr_pages, unsigned int gup_flags)
# Context: GIL held. fn() for a part of `pages`; how many it has pinned.
cdef object pin_pages(CpuHandle cpu, gup_function fn, MmHandle mm, unsigned long start, unsigned long nr_pages,
                      unsigned int gup_flags, object pages)
