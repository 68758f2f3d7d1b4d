# SPDX-License-Identifier: GPL-2.0-only
# kernel/locking/rwsem.c with parts missing: mutation tests only.
from pykmm_ext.kernel.rwsem cimport rw_semaphore
from pykmm_ext.machine.cpu cimport Cpu

cdef struct rwsem_ops:
    void (*down_read)(Cpu *cpu, rw_semaphore *sem) noexcept nogil
    bint (*down_read_trylock)(Cpu *cpu, rw_semaphore *sem) noexcept nogil
    void (*up_read)(Cpu *cpu, rw_semaphore *sem) noexcept nogil
    void (*down_write)(Cpu *cpu, rw_semaphore *sem) noexcept nogil
    bint (*down_write_trylock)(Cpu *cpu, rw_semaphore *sem) noexcept nogil
    void (*up_write)(Cpu *cpu, rw_semaphore *sem) noexcept nogil
    void (*downgrade_write)(Cpu *cpu, rw_semaphore *sem) noexcept nogil

# The functions of rwsem.pyx, compiled again. `mutant` as in KMM_KEEP(); 0 = intact; one at a time in a process.
cdef void rwsem_mutant(rwsem_ops *ops, int mutant) noexcept
