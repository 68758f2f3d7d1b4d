# SPDX-License-Identifier: GPL-2.0-only
# kernel/locking/rwsem.c: fair reader/writer semaphore, writer hand-off, reader batches.
from pykmm_ext.kernel.atomic cimport READ_ONCE, atomic_add_return
from pykmm_ext.machine.cpu cimport Cpu, likely, u32, unlikely
from pykmm_ext.kernel.spinlock cimport spinlock_t

cdef extern from "kmm/rwsem_types.h" nogil:
    cdef struct rwsem_waiter:
        pass
    ctypedef struct rw_semaphore "rwlock_sem":
        unsigned long count
        spinlock_t wait_lock
        rwsem_waiter *first
        rwsem_waiter *last

# Context of down_*: process, IRQs on, may sleep, GIL not held. up_*: any.
cdef void init_rwsem(rw_semaphore *sem) noexcept nogil
cdef void down_read(Cpu *cpu, rw_semaphore *sem) noexcept nogil
cdef bint down_read_trylock(Cpu *cpu, rw_semaphore *sem) noexcept nogil
cdef void up_read(Cpu *cpu, rw_semaphore *sem) noexcept nogil

cdef enum:
    READER_BIAS = 256       # of `count`, per reader
    READ_FAILED_MASK = 7    # a reader may come in beside other readers unless one of these is set

# Context: any. A reader has left, and `count` is what it left behind.
cdef void up_read_waiters(Cpu *cpu, rw_semaphore *sem, unsigned long count) noexcept nogil

# The same two without a call where nobody is in the way: for faults, of which two calls are some percent.
# *others: another reader is in.
cdef inline bint down_read_trylock_inline(Cpu *cpu, rw_semaphore *sem, bint *others) noexcept nogil:
    cdef unsigned long c
    if unlikely(cpu.engine != NULL):
        if not down_read_trylock(cpu, sem):
            return False
        others[0] = READ_ONCE(cpu, &sem.count) >= 2 * READER_BIAS
        return True
    c = atomic_add_return(cpu, &sem.count, READER_BIAS)
    others[0] = c >= 2 * READER_BIAS
    if likely(not c & READ_FAILED_MASK):
        return True
    up_read(cpu, sem)
    return False

cdef inline void up_read_inline(Cpu *cpu, rw_semaphore *sem) noexcept nogil:
    cdef unsigned long c
    if unlikely(cpu.engine != NULL):
        up_read(cpu, sem)
        return
    c = atomic_add_return(cpu, &sem.count, -<unsigned long>READER_BIAS)
    if unlikely(c & READ_FAILED_MASK):
        up_read_waiters(cpu, sem, c)

cdef void down_write(Cpu *cpu, rw_semaphore *sem) noexcept nogil
cdef bint down_write_trylock(Cpu *cpu, rw_semaphore *sem) noexcept nogil
cdef void up_write(Cpu *cpu, rw_semaphore *sem) noexcept nogil
cdef void downgrade_write(Cpu *cpu, rw_semaphore *sem) noexcept nogil

# For the self-test. Context: process, may sleep; the fast path has added READER_BIAS and found somebody in the way.
cdef void down_read_slowpath(Cpu *cpu, rw_semaphore *sem) noexcept nogil
# For the self-test. Context: process, may sleep.
cdef void down_write_slowpath(Cpu *cpu, rw_semaphore *sem) noexcept nogil
# For the self-test. Context: any; the caller released the lock and saw FLAG_WAITERS.
cdef void rwsem_wake(Cpu *cpu, rw_semaphore *sem) noexcept nogil
