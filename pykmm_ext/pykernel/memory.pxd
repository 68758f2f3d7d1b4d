# SPDX-License-Identifier: GPL-2.0-only
# Faults and pages of strategies in Python. Not part of the plugin C API.
from pykmm_ext.machine.cpu cimport u32
from pykmm_ext.mm.mm_types cimport page, vm_fault
from pykmm_ext.pykernel.call cimport CpuHandle, kernel_function
from pykmm_ext.pykernel.handles cimport MmHandle

# A page that the callback knows. What it owns of it is booked as HELD_PAGE.
cdef class PageHandle:
    cdef CpuHandle on
    cdef page *pg
    cdef u32 refs           # references that it owns; 0 = given up, or handed over
    cdef unsigned long table    # physical address of the page table that it was found in, or 0
    cdef bint major         # it had to be made

cdef class VmFault:
    cdef CpuHandle on       # of the innermost callback that has it
    cdef vm_fault vmf
    cdef bint walked        # pmd, orig_pmd and orig_pte are there
    cdef bint busy          # handle_pte_fault() is under way
    cdef public object private

# Context: GIL held; `pg` has `refs` references for the callback; there was room().
cdef PageHandle page_handle(CpuHandle on, page *pg, u32 refs)
# Context: GIL held. Is a walk without a lock under way on the Cpu?
cdef bint walking(CpuHandle on)
# Context: GIL held. fn() begins, or ends, a walk of `kind`; `what` is its name.
cdef int begin_walk(CpuHandle cpu, MmHandle mm, kernel_function fn, u32 kind, str what) except -1
cdef int end_walk(CpuHandle cpu, MmHandle mm, kernel_function fn, u32 kind, str what) except -1
