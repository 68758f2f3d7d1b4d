# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (the line above: a walk begins and ends with every lockless pin)
"""include/asm-generic/pgtable.h as proposed in 2019 (begin/end_lockless_pgtbl_walk, walk tracking): waiting for lockless
walkers of page tables only where there are any.

A walk that takes no lock keeps IRQs off, so that an IPI to its CPU waits for it, and where page tables are freed by RCU
it is a read section as well. Whoever changes the kind of a PMD, or unlinks page tables, must wait for the walks that
began before. A count of walkers tells whether there are any: one atomic word per mm, which all walkers write, or a word
per CPU, which whoever removes tables has to read one by one.

The order that makes the count believable (the 2019 thread: a barrier between disabling IRQs and the walk orders nothing
that matters; what has to be ordered is the count against the walk):

=====================================  ==================================================
a walk                                 who removes a table
=====================================  ==================================================
count + 1                              clear the entry
``smp_mb``                             ``smp_mb``
read the entry, walk                   read the count; 0 = nobody to wait for
count - 1 with release order           the read has acquire order
=====================================  ==================================================

The upper three lines are store buffering: with both barriers, one of the two sees the other. Without the walk's (race
R17), its count may still lie in the store buffer while it reads the old entry. On x86 an atomic count is itself a full
barrier; a plain store to a word per CPU is not. The last line keeps what the walk read before the moment at which the
count may be seen to go.

Who runs against whom
    walk                      IRQs off, counted; never sleeps
    collapse_huge_page        mmap_sem W, pmd cleared, TLBs flushed, then serialize_against_walkers()
    free_pgtables             mmap_sem W, tables unlinked, TLBs flushed, then lockless_table_removal()
    hardware walkers          not counted: the flush waits for them, on every arch
"""
from pykmm_ext.kernel.atomic cimport smp_load_acquire
from pykmm_ext.kernel.rcu cimport synchronize_rcu
from pykmm_ext.machine.cpu cimport count_strategy
from pykmm_ext.machine.region cimport machine_free, machine_zalloc
from pykmm_ext.mm.mm_types cimport KMM_SERIALIZE_IPI, KMM_SERIALIZE_NONE, lockless_walk_count


cdef lockless_walk *lockless_walk_alloc(Cpu *cpu, machine *m, bint counted, u32 monitor, u32 serialize,
                                        bint unordered) noexcept nogil:
    cdef u32 n = m.nr_cpus if counted and monitor == <u32>KMM_WALK_PERCPU else 0
    cdef lockless_walk *w = <lockless_walk *>machine_zalloc(
        cpu, m, sizeof(lockless_walk) + n * sizeof(lockless_walk_count), 128, b"lockless_walk")
    if w == NULL:
        return NULL
    w.counted = counted
    w.monitor = monitor
    w.serialize = serialize
    w.unordered = unordered
    w.nr_counts = n
    return w


cdef void lockless_walk_free(Cpu *cpu, mm_struct *mm) noexcept nogil:
    machine_free(cpu, mm.machine, mm.lockless_walk)
    mm.lockless_walk = NULL


cdef bint lockless_pgtbl_walkers(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef lockless_walk *w = mm.lockless_walk
    cdef u32 i
    if w == NULL or not w.counted:
        return True
    smp_mb(cpu)  # the changed entry before the count; pairs with the one in begin_lockless_pgtbl_walk()
    if w.monitor != <u32>KMM_WALK_PERCPU:
        return smp_load_acquire(cpu, &w.walkers.count) != 0
    for i in range(w.nr_counts):
        if smp_load_acquire(cpu, &w.cpus[i].count):
            return True
    return False


cdef void serialize_against_walkers(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef lockless_walk *w = mm.lockless_walk
    if w == NULL:
        mm.arch.serialize_against_pte_lookup(cpu, mm)
    elif w.serialize == <u32>KMM_SERIALIZE_NONE:
        return
    elif not lockless_pgtbl_walkers(cpu, mm):
        count_strategy(cpu, WALK_SKIPPED)
    else:
        count_strategy(cpu, WALK_SERIALIZED)
        if w.serialize == <u32>KMM_SERIALIZE_RCU:
            synchronize_rcu(cpu)
        else:
            mm.arch.serialize_against_pte_lookup(cpu, mm)


cdef int lockless_table_removal(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef lockless_walk *w = mm.lockless_walk
    cdef bint skip
    if w.serialize == <u32>KMM_SERIALIZE_NONE:
        return REMOVE_NOW
    skip = not lockless_pgtbl_walkers(cpu, mm)
    count_strategy(cpu, WALK_SKIPPED if skip else WALK_SERIALIZED)
    if skip:
        return REMOVE_NOW
    if w.serialize == <u32>KMM_SERIALIZE_IPI:
        mm.arch.serialize_against_pte_lookup(cpu, mm)
        return REMOVE_NOW
    return REMOVE_RCU if w.serialize == <u32>KMM_SERIALIZE_RCU else REMOVE_ARCH
