# SPDX-License-Identifier: GPL-2.0-only
# mm/mlock.c
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport mm_struct

# Context of all: process, no locks, may sleep, GIL not held. 0 or -errno.
cdef long do_mlock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len, int flags) noexcept nogil
cdef long do_munlock(Cpu *cpu, mm_struct *mm, unsigned long start, unsigned long len) noexcept nogil
cdef long do_mlockall(Cpu *cpu, mm_struct *mm, int flags) noexcept nogil
cdef long do_munlockall(Cpu *cpu, mm_struct *mm) noexcept nogil
