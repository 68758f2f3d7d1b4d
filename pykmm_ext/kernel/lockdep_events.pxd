# SPDX-License-Identifier: GPL-2.0-only
# include/linux/lockdep.h: from what an engine sees (a lock operation, an event, an address) to calls of lockdep.
# Context of everything here: as kernel/lockdep.pxd.
from pykmm_ext.kernel.lockdep cimport lockdep, lockdep_context, lockdep_report
from pykmm_ext.kernel.spinlock cimport spinlock_t
from pykmm_ext.machine.cpu cimport kmm_event, u32, u64

cdef extern from "kmm/tlb.h" nogil:
    ctypedef struct tlb_t "struct tlb":
        spinlock_t lock

cdef extern from "kmm/engine.h" nogil:
    cdef enum kmm_lock_op:
        KMM_SPIN_LOCK, KMM_SPIN_TRYLOCK, KMM_SPIN_UNLOCK, KMM_DOWN_READ, KMM_DOWN_READ_TRYLOCK, KMM_UP_READ
        KMM_DOWN_WRITE, KMM_DOWN_WRITE_TRYLOCK, KMM_UP_WRITE, KMM_DOWNGRADE_WRITE

cdef enum:
    LOCKDEP_UNKNOWN = -2         # no such lock in the table; -1 = lockdep's class table is full

# A lock of a known structure.
cdef struct lockdep_known_lock:
    const char *type             # the structure's C name
    size_t offset                # of the lock, or of the domain, in bytes
    const char *name             # of the class
    u32 kind
    u32 flags

# The table's entry for a lock at `offset` within a `type`, or NULL.
cdef const lockdep_known_lock *lockdep_known(const char *type, size_t offset) noexcept nogil
# Its class in `ld`, or LOCKDEP_UNKNOWN, or -1.
cdef int lockdep_known_class(lockdep *ld, const char *type, size_t offset) noexcept nogil

# A lock operation: before one that may wait, after a trylock that has succeeded (not one that has failed), at a release.
cdef const lockdep_report *lockdep_on_lock(lockdep *ld, const lockdep_context *ctx, const void *lock, kmm_lock_op op,
                                           int cls) noexcept nogil
# Does the event name a lock or domain, so that lockdep_on_event() needs its class?
cdef bint lockdep_event_has_class(kmm_event ev) noexcept nogil
# Any event; those that are none of lockdep's are ignored. `cls` matters if lockdep_event_has_class().
cdef const lockdep_report *lockdep_on_event(lockdep *ld, const lockdep_context *ctx, kmm_event ev, const void *obj, u64 size,
                                            int cls) noexcept nogil
