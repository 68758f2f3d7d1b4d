# SPDX-License-Identifier: GPL-2.0-only
# lockdep beneath a machine: what an engine calls for each lock operation and each event of the machine's CPUs.
# Context of everything here: as kernel/lockdep.pxd; finding the class of an address reads the machine's structures.
from pykmm_ext.kernel.lockdep cimport lockdep, lockdep_report
from pykmm_ext.kernel.lockdep_events cimport kmm_lock_op
from pykmm_ext.machine.cpu cimport Cpu, kmm_event, u32, u64
from pykmm_ext.mm.mm_types cimport machine

cdef enum:
    LOCKDEP_WATCH_CPUS = 64
    LOCKDEP_WATCH_CACHE = 256    # a power of two

cdef struct lockdep_watch_class:
    const char *type
    size_t offset
    int cls

cdef struct lockdep_watch:
    lockdep *ld                  # its owner destroys it
    machine *m
    u32 unknown                  # operations on locks of no known class: ignored
    u32 in_irq[LOCKDEP_WATCH_CPUS]
    lockdep_watch_class cache[LOCKDEP_WATCH_CACHE]

# For a machine of at most LOCKDEP_WATCH_CPUS; `ld` has as many CPUs.
cdef void lockdep_watch_init(lockdep_watch *w, lockdep *ld, machine *m) noexcept nogil
# A new execution: nobody holds anything or is in a handler.
cdef void lockdep_watch_reset(lockdep_watch *w) noexcept nogil
# The class of the lock at `p`, or LOCKDEP_UNKNOWN, or -1.
cdef int lockdep_watch_class_of(lockdep_watch *w, const void *p) noexcept nogil
# As check_program.lock: the lock was taken (1), a trylock failed (0), it was released (2).
cdef const lockdep_report *lockdep_watch_lock(lockdep_watch *w, Cpu *cpu, const void *lock, kmm_lock_op op, int what,
                                              const char *where) noexcept nogil
# As check_program.event.
cdef const lockdep_report *lockdep_watch_event(lockdep_watch *w, Cpu *cpu, kmm_event ev, const void *obj, u64 size,
                                               const char *where) noexcept nogil
# An operation has ended on this CPU.
cdef const lockdep_report *lockdep_watch_exit(lockdep_watch *w, Cpu *cpu, const char *where) noexcept nogil
