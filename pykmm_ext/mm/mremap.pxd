# SPDX-License-Identifier: GPL-2.0-only
# mm/mremap.c
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport mm_struct

# Context: process, no locks, may sleep, GIL not held. The new address or -errno.
cdef long sys_mremap(Cpu *cpu, mm_struct *mm, unsigned long addr, unsigned long old_len, unsigned long new_len,
                     unsigned long flags, unsigned long new_addr) noexcept nogil
