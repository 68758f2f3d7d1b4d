# SPDX-License-Identifier: GPL-2.0-only
# mm/memory.c, the part that fork needs.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport mm_struct, vm_area_struct

# Context: both mmap_sems held W, may sleep. The page tables below `src_vma`, for the child. 0 or -ENOMEM.
cdef int copy_page_range(Cpu *cpu, mm_struct *dst_mm, vm_area_struct *dst_vma, vm_area_struct *src_vma) noexcept nogil
