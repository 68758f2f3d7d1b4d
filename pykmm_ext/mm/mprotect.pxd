# SPDX-License-Identifier: GPL-2.0-only
# mm/mprotect.c
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport mm_struct, vm_area_struct

# Context: process, no locks, may sleep, GIL not held. 0 or -errno.
cdef long do_mprotect(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, unsigned long prot) noexcept nogil
