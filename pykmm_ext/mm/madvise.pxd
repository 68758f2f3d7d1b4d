# SPDX-License-Identifier: GPL-2.0-only
# mm/madvise.c, mincore.c, msync.c
from pykmm_ext.machine.cpu cimport Cpu, u8
from pykmm_ext.mm.mm_types cimport mm_struct

# Context of all: process, no locks, may sleep, GIL not held. 0 or -errno.
cdef long do_madvise(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, int behavior) noexcept nogil
# vec: one byte per page.
cdef long do_mincore(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, u8 *vec) noexcept nogil
cdef long do_msync(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, int flags) noexcept nogil
