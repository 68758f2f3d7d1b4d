# SPDX-License-Identifier: GPL-2.0-only
# mm/gup.c: faulting pages in on somebody's behalf.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport vm_area_struct

# Context: mmap_sem held R, may sleep. Fault in every page of the range that is not (MAP_POPULATE, mlock); may fail
# silently.
cdef long populate_vma_page_range(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil
