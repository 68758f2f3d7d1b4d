# SPDX-License-Identifier: GPL-2.0-only
# include/kmm/irq.h (irqflags.h) and kernel/smp.c: the interrupt flag, IPIs, cross-CPU calls.
from pykmm_ext.machine.cpu cimport Cpu, u32

cdef extern from "kmm/irq.h" nogil:
    void local_irq_disable(Cpu *cpu)
    void local_irq_enable(Cpu *cpu)
    # arch->vcpu_preemption: sections with IRQs off in which the host may flush this vCPU's TLB; see irq.h
    void vcpu_preempt_enable(Cpu *cpu)
    void vcpu_preempt_disable(Cpu *cpu)
    bint vcpu_flush_begin(Cpu *cpu, Cpu *target)
    void vcpu_flush_end(Cpu *cpu, Cpu *target)

cdef void irq_init_cpu(Cpu *cpu) noexcept nogil
# Run func(target, info) on every CPU of the bitmap except `cpu` itself, and wait for all.
# Context: IRQs on (two senders with IRQs off would deadlock, as on hardware); may be called
# with spinlocks held that no IRQ-off section spins on.
cdef void smp_call_function_many(Cpu *cpu, const unsigned long *mask,
                                 void (*func)(Cpu *, void *) noexcept nogil, void *info) noexcept nogil
