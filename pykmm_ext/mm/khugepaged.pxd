# SPDX-License-Identifier: GPL-2.0-only
# mm/khugepaged.c
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport vm_area_struct

# MADV_COLLAPSE of [start, end) inside `vma`: 0 (nothing to do), -EINVAL, -ENOMEM, -EAGAIN
# (a page has references besides its mappings: a pin). Context: mmap_sem W, may sleep.
cdef int madvise_collapse(Cpu *cpu, vm_area_struct *vma, unsigned long start, unsigned long end) noexcept nogil
