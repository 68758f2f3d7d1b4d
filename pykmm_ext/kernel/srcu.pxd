# SPDX-License-Identifier: GPL-2.0-only
# include/linux/srcu.h, kernel/rcu/srcutree.c: sleepable RCU, per-CPU counters, two indices.
from pykmm_ext.machine.cpu cimport Cpu, rcu_head, u32
from pykmm_ext.kernel.rwsem cimport rw_semaphore
from pykmm_ext.kernel.spinlock cimport spinlock_t

cdef extern from "kmm/rcu_segcblist.h" nogil:
    # Callbacks by stage: waiting for a grace period to start, for it to end, ready to be called.
    cdef struct rcu_segcblist:
        spinlock_t lock
        unsigned long nr_next
        unsigned long nr_wait
        unsigned long nr_queued
        unsigned long nr_invoked

cdef extern from "kmm/srcu_types.h" nogil:
    cdef struct srcu_data:
        unsigned long *srcu_lock_count
        unsigned long *srcu_unlock_count
    cdef struct srcu_struct:
        unsigned long srcu_idx
        srcu_data *sda
        u32 nr_cpus
        rw_semaphore gp_mutex
        u32 gp_state
        u32 gp_cpu
        unsigned long gp_seq
        rcu_segcblist cblist

cdef extern from "kmm/srcu.h" nogil:
    # Context: process; may sleep inside. Returns the index to hand to srcu_read_unlock.
    int srcu_read_lock(Cpu *cpu, srcu_struct *ssp)
    void srcu_read_unlock(Cpu *cpu, srcu_struct *ssp, int idx)

# 0 or -ENOMEM
cdef int init_srcu_struct(srcu_struct *ssp, u32 nr_cpus) noexcept nogil
# The same with the caller's memory for [nr_cpus] counters, which cleanup_srcu_struct() free()s; NULL is -ENOMEM.
cdef int init_srcu_struct_at(srcu_struct *ssp, u32 nr_cpus, srcu_data *sda) noexcept nogil
# Runs what is left, then frees. No readers, no other users.
cdef void cleanup_srcu_struct(Cpu *cpu, srcu_struct *ssp) noexcept nogil
# Context: process, may sleep, not inside a read section of this domain, IRQs on, GIL not held.
cdef void synchronize_srcu(Cpu *cpu, srcu_struct *ssp) noexcept nogil
# Context: process, IRQs on; never waits for readers (it may run callbacks whose grace period is over).
cdef void call_srcu(Cpu *cpu, srcu_struct *ssp, rcu_head *head,
                    void (*func)(Cpu *, rcu_head *) noexcept nogil) noexcept nogil
# Waits until every callback queued before it has run. Context as synchronize_srcu.
cdef void srcu_barrier(Cpu *cpu, srcu_struct *ssp) noexcept nogil
cdef bint srcu_readers_active(Cpu *cpu, srcu_struct *ssp) noexcept nogil
