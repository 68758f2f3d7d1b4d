# SPDX-License-Identifier: GPL-2.0-only
# kernel/fork.c: the life of an mm_struct.
from pykmm_ext.machine.cpu cimport Cpu
from pykmm_ext.mm.mm_types cimport machine, mm_struct

# A new, empty address space; mm_users = 1. NULL with *err = -errno.
cdef mm_struct *mm_alloc(Cpu *cpu, machine *m, int *err) noexcept nogil
# fork: a copy-on-write copy of oldmm. NULL with *err. Context: process, no locks, may sleep.
cdef mm_struct *dup_mm(Cpu *cpu, mm_struct *oldmm, int *err) noexcept nogil
cdef void mmget(Cpu *cpu, mm_struct *mm) noexcept nogil
# A reference to the structure alone. Context of mmdrop: process, no spinlocks; the mm may be gone afterwards.
cdef void mmgrab(Cpu *cpu, mm_struct *mm) noexcept nogil
cdef void mmdrop(Cpu *cpu, mm_struct *mm) noexcept nogil
# The last user tears the address space down. Context: process, no locks, may sleep; no Cpu may have it active.
cdef void mmput(Cpu *cpu, mm_struct *mm) noexcept nogil
