# SPDX-License-Identifier: GPL-2.0-only
# include/asm-generic/pgtable.h of the walk-monitoring series (2019): who walks page tables without a lock, and waiting
# for them. Any strategy may cimport it; the shared mm calls the writers' half where mm->lockless_walk is set.
from pykmm_ext.kernel.atomic cimport WRITE_ONCE, atomic_dec, atomic_inc, smp_mb, smp_store_release
from pykmm_ext.kernel.rcu cimport rcu_read_lock, rcu_read_unlock
from pykmm_ext.machine.cpu cimport Cpu, u32, unlikely
from pykmm_ext.machine.irq cimport local_irq_disable, local_irq_enable, vcpu_preempt_disable, vcpu_preempt_enable
from pykmm_ext.mm.mm_types cimport (
    KMM_SERIALIZE_RCU, KMM_WALK_PERCPU, arch_ops, lockless_walk, machine, mm_struct,
)

cdef extern from "kmm/atomic.h" nogil:
    unsigned long fetch_add_order "kmm_fetch_add"(Cpu *cpu, unsigned long *p, unsigned long n, int order)
    const int ATOMIC_RELEASE "__ATOMIC_RELEASE"

# Cpu.strategy_count of strategies that monitor: how often tables were waited for, and how often that was left out.
cdef enum:
    WALK_SERIALIZED = 8
    WALK_SKIPPED = 9

# Context: process; mm_init of a strategy. NULL: no memory. `serialize` is one of KMM_SERIALIZE_*.
cdef lockless_walk *lockless_walk_alloc(Cpu *cpu, machine *m, bint counted, u32 monitor, u32 serialize,
                                        bint unordered) noexcept nogil
# Context: process; mm_exit of a strategy: nobody uses the mm.
cdef void lockless_walk_free(Cpu *cpu, mm_struct *mm) noexcept nogil

# Context: process or IRQs off. May anybody be between begin and end, who began before the caller's last change of the
# page tables? False: nobody; whoever begins from now on sees the change.
cdef bint lockless_pgtbl_walkers(Cpu *cpu, mm_struct *mm) noexcept nogil
# A PMD that pointed to a table does not any more, and its translations are flushed: wait for who may have found the
# table. Context: process, IRQs on, may sleep; spinlocks only with serialize=arch or ipi.
cdef void serialize_against_walkers(Cpu *cpu, mm_struct *mm) noexcept nogil
# How tables that are unlinked and flushed go, in an mm with lockless_walk: at once, after a grace period, or as the arch
# does it. Waits where it has to. Context: as serialize_against_walkers(), no spinlocks.
cdef enum:
    REMOVE_NOW
    REMOVE_RCU
    REMOVE_ARCH
cdef int lockless_table_removal(Cpu *cpu, mm_struct *mm) noexcept nogil

# Context: any, IRQs on or off; cpu->active_mm == mm, which keeps this Cpu in mm_cpumask. A walk must not sleep.
#
# The count comes last, and a full barrier after it: it pairs with smp_mb() in lockless_pgtbl_walkers(). Of the two, one
# sees the other: either who removed a table finds the count, or this walk finds the entry changed.
cdef inline void begin_lockless_pgtbl_walk(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef lockless_walk *w = mm.lockless_walk
    local_irq_disable(cpu)
    if unlikely(mm.arch.rcu_table_free or (w != NULL and w.serialize == <u32>KMM_SERIALIZE_RCU)):
        rcu_read_lock(cpu)
    if unlikely(mm.arch.vcpu_preemption):
        vcpu_preempt_enable(cpu)
    if w != NULL and w.counted:
        if w.monitor == <u32>KMM_WALK_PERCPU:
            WRITE_ONCE(cpu, &w.cpus[cpu.id].count, 1)
        else:
            atomic_inc(cpu, &w.walkers.count)
        if not w.unordered:
            smp_mb(cpu)

# Context: after begin_lockless_pgtbl_walk(). What the walk has read, it has read before the count goes: release, pairs
# with the acquire in lockless_pgtbl_walkers().
cdef inline void end_lockless_pgtbl_walk(Cpu *cpu, mm_struct *mm) noexcept nogil:
    cdef lockless_walk *w = mm.lockless_walk
    if w != NULL and w.counted:
        if w.monitor == <u32>KMM_WALK_PERCPU:
            if w.unordered:
                WRITE_ONCE(cpu, &w.cpus[cpu.id].count, 0)
            else:
                smp_store_release(cpu, &w.cpus[cpu.id].count, 0)
        elif w.unordered:
            atomic_dec(cpu, &w.walkers.count)
        else:
            fetch_add_order(cpu, &w.walkers.count, <unsigned long>-1, ATOMIC_RELEASE)
    if unlikely(mm.arch.vcpu_preemption):
        vcpu_preempt_disable(cpu)
    if unlikely(mm.arch.rcu_table_free or (w != NULL and w.serialize == <u32>KMM_SERIALIZE_RCU)):
        rcu_read_unlock(cpu)
    local_irq_enable(cpu)
