# SPDX-License-Identifier: GPL-2.0-only
# kernel/rcu: rcu_read_lock and grace periods, by per-CPU reader state and membarrier.
from pykmm_ext.machine.cpu cimport Cpu, rcu_head
from pykmm_ext.mm.mm_types cimport machine

cdef extern from "kmm/rcu.h" nogil:
    # Context: any, IRQs on or off; nests. No sleeping inside.
    void rcu_read_lock(Cpu *cpu)
    void rcu_read_unlock(Cpu *cpu)
    bint rcu_read_lock_held(Cpu *cpu)

cdef void rcu_init(machine *m) noexcept nogil
# Context: process, may sleep, no RCU/SRCU read section, IRQs on, GIL not held.
cdef void synchronize_rcu(Cpu *cpu) noexcept nogil
# Context: any with IRQs on. The callback runs on some later caller of call_rcu (batched),
# rcu_barrier() or synchronize, in process context.
cdef void call_rcu(Cpu *cpu, rcu_head *head, void (*func)(Cpu *, rcu_head *) noexcept nogil) noexcept nogil
# Waits until every callback queued before it has run. Context as synchronize_rcu.
cdef void rcu_barrier(Cpu *cpu) noexcept nogil
