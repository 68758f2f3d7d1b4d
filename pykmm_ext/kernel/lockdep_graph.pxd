# SPDX-License-Identifier: GPL-2.0-only
# kernel/locking/lockdep.c, the graph of struct lockdep. Context of everything here: as kernel/lockdep.pxd.
from pykmm_ext.kernel.lockdep cimport (
    lockdep, lockdep_context, lockdep_edge, lockdep_held, lockdep_place, lockdep_report, lockdep_violation,
)
from pykmm_ext.machine.cpu cimport u32

cdef enum:                       # lockdep_node.usage; the numbers of the first four index lockdep_node.place
    USED_IN_IRQ = 1
    USED_IN_IRQ_READ = 2         # by a recursive reader
    HELD_IRQS_ON = 4
    HELD_IRQS_ON_READ = 8
    INVERSION_REPORTED = 16

cdef enum:                       # lockdep_held.flags
    TRYLOCK = 1
    IRQS_OFF = 2
    IN_IRQ = 4
    SYNC = 8                     # only in keys

# The node of (class, subclass), made at the first call; -1 when the table is full.
cdef int node_number(lockdep *ld, int cls, u32 subclass) noexcept nogil
cdef const char *node_name(const lockdep *ld, u32 node) noexcept nogil

# Begins a report: everything but the lock that it is about and the steps.
cdef lockdep_report *new_report(lockdep *ld, const lockdep_context *ctx, lockdep_violation violation,
                                const char *message) noexcept nogil
# A table is full: switches lockdep off.
cdef const lockdep_report *full(lockdep *ld, const lockdep_context *ctx, const char *what) noexcept nogil
# What the report is about: the lock that h stands for, which is not held yet.
cdef void about(lockdep *ld, lockdep_report *r, const lockdep_held *h) noexcept nogil

# Draws held -> h unless it is there; *drawn says so. Reports the cycle that it closes.
cdef const lockdep_report *add_edge(lockdep *ld, const lockdep_context *ctx, u32 held, const char *held_where, bint shared,
                                    const lockdep_held *h, bint *drawn) noexcept nogil
# True when the bit is new.
cdef bint mark_usage(lockdep *ld, const lockdep_context *ctx, u32 node, u32 bit, const char *where) noexcept nogil
# The graph or a usage has changed.
cdef const lockdep_report *check_inversions(lockdep *ld, const lockdep_context *ctx) noexcept nogil

# What another struct lockdep has found, class by class (kernel/lockdep_report.pyx). `bit`: of lockdep_node.usage.
cdef const lockdep_report *lockdep_merge_edge(lockdep *ld, const lockdep_edge *other, int held_cls, u32 held_subclass,
                                              int taken_cls, u32 taken_subclass) noexcept nogil
cdef const lockdep_report *lockdep_merge_usage(lockdep *ld, int cls, u32 subclass, u32 bit,
                                               const lockdep_place *place) noexcept nogil
