# SPDX-License-Identifier: GPL-2.0-only
# cython: boundscheck=False, wraparound=False, cdivision=True, initializedcheck=False
# (no Python objects in here: the checks would only cost)
"""mm/memory.c and mm/mmap.c of the speculative series, what strategies share: the writers' side.

vm_sequence counts writers (see the header): MADV_DONTNEED zaps under mmap_sem held for *reading*, so two zappers of one
VMA can be inside their sections at once; with a plain seqcount the second begin makes the count even again, and a fault
believes that nobody is there.

vm_sequence wraps after 2^19 write sections of one VMA. A fault would be fooled if it stopped between its two checks
for exactly a multiple of that many sections, at no less than 0.05 s a round, with nobody inside at both ends.

Barriers: smp_wmb() after the increment in spf_vma_write_begin pairs with the smp_rmb() that precedes the load of
read_seqcount_retry(); the one before the store of spf_vma_write_end with that of raw_read_seqcount(). The increments
themselves order nothing.
"""
from pykmm_ext.kernel.atomic cimport atomic_add_32, kmm_emit, smp_wmb
from pykmm_ext.kernel.rcu cimport rcu_read_lock, rcu_read_unlock
from pykmm_ext.kernel.seqlock cimport write_seqlock, write_sequnlock
from pykmm_ext.kernel.srcu cimport call_srcu, srcu_barrier
from pykmm_ext.machine.cpu cimport KMM_EV_SEQ_WRITE_BEGIN, KMM_EV_SEQ_WRITE_END, KMM_SEQ_COUNTED, rcu_head, unlikely
from pykmm_ext.machine.irq cimport vcpu_preempt_disable, vcpu_preempt_enable
from pykmm_ext.mm.mm_types cimport machine_of
from pykmm_ext.mm.vma cimport __vm_area_free, vma_of_rcu

cdef const char *counter_names[15]
counter_names[:] = [
    "attempts", "speculative", "retried", "vma_not_found", "vma_changed", "vma_seq_busy", "bounds", "access",
    "no_anon_vma", "unsupported", "no_page_table", "ptl_contended", "pte_changed_vma", "fault_error", NULL,
]


# Context: any.
cdef const char **spf_counter_names() noexcept nogil:
    return counter_names


# Context: IRQs off.
cdef void walk_begin_rcu(Cpu *cpu, const arch_ops *arch) noexcept nogil:
    rcu_read_lock(cpu)
    if arch.vcpu_preemption:
        vcpu_preempt_enable(cpu)


# Context: IRQs off.
cdef void walk_end_rcu(Cpu *cpu, const arch_ops *arch) noexcept nogil:
    if arch.vcpu_preemption:
        vcpu_preempt_disable(cpu)
    rcu_read_unlock(cpu)


# Context: mmap_sem W, or R or i_mmap_rwsem for zapping. Sections of one VMA may overlap and nest.
cdef void spf_vma_write_begin(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil:
    if unlikely(cpu.engine != NULL):
        kmm_emit(cpu, KMM_EV_SEQ_WRITE_BEGIN, &vma.vm_sequence, <unsigned int>subclass | KMM_SEQ_COUNTED)
    atomic_add_32(cpu, &vma.vm_sequence.sequence, 1)
    smp_wmb(cpu)  # pairs with smp_rmb() in read_seqcount_retry()


# Context: as above. One writer less, one generation more: no carry can reach the writers' bits.
cdef void spf_vma_write_end(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    smp_wmb(cpu)  # pairs with smp_rmb() in raw_read_seqcount()
    atomic_add_32(cpu, &vma.vm_sequence.sequence, SPF_GENERATION - 1)
    if unlikely(cpu.engine != NULL):
        kmm_emit(cpu, KMM_EV_SEQ_WRITE_END, &vma.vm_sequence, KMM_SEQ_COUNTED)


# Context: mmap_sem W. Not visible yet; who held the object's last life has left (SRCU), so the count starts anew.
cdef void spf_vma_init(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    vma.vm_sequence.sequence = 0


# Context: mmap_sem W; IRQs on.
cdef void spf_tree_write_begin(Cpu *cpu, mm_struct *mm) noexcept nogil:
    write_seqlock(cpu, &mm.mm_seq)


cdef void spf_tree_write_end(Cpu *cpu, mm_struct *mm) noexcept nogil:
    write_sequnlock(cpu, &mm.mm_seq)


# Context: SRCU callback: process, IRQs on.
cdef void __free_vma(Cpu *cpu, rcu_head *head) noexcept nogil:
    __vm_area_free(cpu, vma_of_rcu(head))


# Context: mmap_sem W or the mm is dead; the VMA is unlinked. Speculative faults may still hold it.
cdef void spf_free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil:
    call_srcu(cpu, &machine_of(cpu).vma_srcu, &vma.vm_rcu_head, __free_vma)


# Context: process, IRQs on, may sleep, no SRCU read section.
cdef void spf_quiesce(Cpu *cpu, machine *m) noexcept nogil:
    srcu_barrier(cpu, &m.vma_srcu)
