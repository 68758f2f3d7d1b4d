# SPDX-License-Identifier: GPL-2.0-only
# mm/gup.c: pages on somebody's behalf: faulted in, referenced, pinned.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport mm_struct, page, vm_area_struct

# Context: mmap_sem held R, may sleep. The page is there, and writable where `write`, or was a moment ago; or -EFAULT,
# -ENOMEM.
cdef int populate_page(Cpu *cpu, vm_area_struct *vma, unsigned long address, bint write) noexcept nogil
# Context: mmap_sem held R, may sleep. Fault in every page of the range that is not (MAP_POPULATE, mlock); may fail
# silently.
cdef long populate_vma_page_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil

# Context of the next two: process, IRQs on, no locks; may sleep. `start` lies in the first of nr_pages pages, gup_flags
# are FOLL_WRITE and one of FOLL_GET and FOLL_PIN. pages[] gets the pages, with a reference each (the zero page: without).
# How many there are, or -errno if there is none: -EFAULT, -ENOMEM.
# The slow path alone: under mmap_sem R, faulting in what is not there.
cdef long get_user_pages(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages, unsigned int gup_flags,
                         page **pages) noexcept nogil
# What the strategy pins without a lock, and the slow path for the rest.
cdef long get_user_pages_fast(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages,
                              unsigned int gup_flags, page **pages) noexcept nogil
# Gives the references up. `dirty`: they were written. Context: process, or IRQs off; no PTL.
cdef void unpin_user_pages(Cpu *cpu, page **pages, unsigned long nr_pages, unsigned int gup_flags,
                           bint dirty) noexcept nogil

# Context: a reference to the page that the entry maps read-only, after the second look at the entry; or the PTL. May a
# pin for reading not have the page as it is, since others map it as well?
cdef bint gup_must_unshare(Cpu *cpu, page *pg, unsigned int gup_flags) noexcept nogil

# What a study may leave out of the lockless walk.
cdef enum:
    GUP_NO_PMD_RECHECK = 1      # before the fix of race R20
    GUP_NO_FORK_SEQ = 2         # write_protect_seq is not looked at
    GUP_IRQS_ON = 4             # neither IRQs off nor RCU

# lockless_pages_from_mm(): for strategy_ops.gup_fast. Context: process, IRQs on; cpu->active_mm == mm; does not sleep.
# How many pages from `start` on were pinned: those up to the first that takes a fault, a PTL, or a copy.
cdef long lockless_pages_from_mm(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long nr_pages,
                                 unsigned int gup_flags, page **pages, unsigned int study) noexcept nogil
