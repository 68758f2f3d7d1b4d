# SPDX-License-Identifier: GPL-2.0-only
# include/kmm/spinlock.h (include/linux/spinlock.h)
from pykmm_ext.machine.cpu cimport Cpu, u32

cdef extern from "kmm/spinlock.h" nogil:
    ctypedef struct spinlock_t:
        u32 slock
    void spin_lock_init(spinlock_t *lock)
    bint spin_trylock(Cpu *cpu, spinlock_t *lock)
    void spin_lock(Cpu *cpu, spinlock_t *lock)
    void spin_lock_nested(Cpu *cpu, spinlock_t *lock, int subclass)
    void spin_unlock(Cpu *cpu, spinlock_t *lock)
    bint spin_is_locked(Cpu *cpu, spinlock_t *lock)
