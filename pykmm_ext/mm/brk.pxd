# SPDX-License-Identifier: GPL-2.0-only
# mm/mmap.c, the mappings that grow.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport mm_struct, vm_area_struct

# Context: process, no locks, IRQs on, may sleep, GIL not held. The new break, or the old one where that cannot be.
cdef unsigned long ksys_brk(Cpu *cpu, mm_struct *mm, unsigned long brk) noexcept nogil
# Context: mmap_sem W, may sleep. 0 or -errno.
cdef int expand_stack(Cpu *cpu, vm_area_struct *vma, unsigned long address) noexcept nogil
