# SPDX-License-Identifier: GPL-2.0-only
# What strategies with speculative faults share (mm/memory.c, mm/mmap.c, mm/internal.h of the series): the lockless
# walk, the writers' sections, VMAs freed through SRCU. Any strategy may cimport it.
from pykmm_ext.machine.cpu cimport Cpu, unlikely
from pykmm_ext.machine.irq cimport local_irq_disable, local_irq_enable, vcpu_preempt_disable, vcpu_preempt_enable
from pykmm_ext.mm.mm_types cimport arch_ops, machine, mm_struct, vm_area_struct

# Cpu.strategy_count: attempts == speculative + the sum of the reasons; retried == the sum of the reasons.
cdef enum:
    SPF_ATTEMPTS
    SPF_SPECULATIVE
    SPF_RETRIED
    SPF_VMA_NOT_FOUND
    SPF_VMA_CHANGED
    SPF_VMA_SEQ_BUSY
    SPF_BOUNDS
    SPF_ACCESS
    SPF_NO_ANON_VMA
    SPF_UNSUPPORTED
    SPF_NO_PAGE_TABLE
    SPF_PTL_CONTENDED
    SPF_PTE_CHANGED_VMA
    SPF_FAULT_FAILED

# vm_sequence as a count of writers: the low SPF_WRITER_BITS are the writers inside, the bits above a generation that
# every end advances. Up to 8191 writers: 4096 CPUs may zap, and sections nest.
cdef enum:
    SPF_WRITER_BITS = 13
    SPF_WRITER_MASK = (1 << SPF_WRITER_BITS) - 1
    SPF_GENERATION = 1 << SPF_WRITER_BITS

# The strategies' counter_names, in the order above; NULL-terminated.
cdef const char **spf_counter_names() noexcept nogil

# A walk of page tables that only IRQs off protect: enough where the freeing side waits for an IPI. Context: any; does
# not nest on an arch with vcpu_preemption.
cdef inline void walk_begin_irq(Cpu *cpu, const arch_ops *arch) noexcept nogil:
    local_irq_disable(cpu)
    if unlikely(arch.vcpu_preemption):
        vcpu_preempt_enable(cpu)

cdef inline void walk_end_irq(Cpu *cpu, const arch_ops *arch) noexcept nogil:
    if unlikely(arch.vcpu_preemption):
        vcpu_preempt_disable(cpu)
    local_irq_enable(cpu)

# The rare half of the next two, out of line. Context: IRQs off.
cdef void walk_begin_rcu(Cpu *cpu, const arch_ops *arch) noexcept nogil
cdef void walk_end_rcu(Cpu *cpu, const arch_ops *arch) noexcept nogil

# What keeps a page table that was found from being freed: IRQs off and, on an arch that frees tables by RCU, a read
# section. Context: as above.
cdef inline void walk_begin(Cpu *cpu, const arch_ops *arch) noexcept nogil:
    local_irq_disable(cpu)
    if unlikely(arch.rcu_table_free):
        walk_begin_rcu(cpu, arch)

cdef inline void walk_end(Cpu *cpu, const arch_ops *arch) noexcept nogil:
    if unlikely(arch.rcu_table_free):
        walk_end_rcu(cpu, arch)
    local_irq_enable(cpu)

# Members of strategy_ops; contexts as there.
cdef void spf_vma_write_begin(Cpu *cpu, vm_area_struct *vma, int subclass) noexcept nogil
cdef void spf_vma_write_end(Cpu *cpu, vm_area_struct *vma) noexcept nogil
cdef void spf_vma_init(Cpu *cpu, vm_area_struct *vma) noexcept nogil
cdef void spf_tree_write_begin(Cpu *cpu, mm_struct *mm) noexcept nogil
cdef void spf_tree_write_end(Cpu *cpu, mm_struct *mm) noexcept nogil
cdef void spf_free_vma(Cpu *cpu, vm_area_struct *vma) noexcept nogil
cdef void spf_quiesce(Cpu *cpu, machine *m) noexcept nogil
