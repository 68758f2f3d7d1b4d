/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/irqflags.h, smp.h: the per-CPU interrupt flag.
 *
 * Native: an IPI is a queued call_single_data. A CPU with IRQs on can be interrupted at any
 * instruction, which here means: the *sender* may run the handler on its behalf. So an
 * IRQ-off section of the owner and a handler run by a sender exclude each other like this:
 *
 *   owner:  irq_disabled = 1;  smp_mb_light();  if (ipi_pending) handle it first
 *   sender: ipi_pending += 1;  smp_mb_heavy();  take ipi_lock; if (!irq_disabled) run the handlers
 *
 * One of the two sees the other (Dekker; the argument stands in machine/irq.pyx). Everything that an IPI handler touches (the TLB
 * above all) is touched by its owner with IRQs off only.
 */
#ifndef KMM_IRQ_H
#define KMM_IRQ_H

#include "kmm/atomic.h"
#include "kmm/barrier.h"
#include "kmm/wait.h"

/* Nests (stands in for local_irq_save). Context: any. */
static inline void local_irq_disable(Cpu *cpu)
{
	if (unlikely(cpu->engine)) {
		cpu->engine->irq(cpu, KMM_IRQ_DISABLE);
		return;
	}
	if (cpu->irq_disabled) {
		__atomic_store_n(&cpu->irq_disabled, cpu->irq_disabled + 1, __ATOMIC_RELAXED);
		return;
	}
	for (;;) {
		__atomic_store_n(&cpu->irq_disabled, 1, __ATOMIC_RELAXED);
		smp_mb_light(cpu); /* pairs with smp_mb_heavy() in smp_call_function_many() */
		if (likely(!__atomic_load_n(&cpu->ipi_pending, __ATOMIC_ACQUIRE)))
			return;
		__atomic_store_n(&cpu->irq_disabled, 0, __ATOMIC_RELEASE);
		cpu->ipi_slow(cpu);
	}
}

static inline void local_irq_enable(Cpu *cpu)
{
	if (unlikely(cpu->engine)) {
		cpu->engine->irq(cpu, KMM_IRQ_ENABLE);
		if (!cpu->irq_disabled)
			kmm_event(cpu, KMM_EV_IRQS_ON, NULL, 0);
		return;
	}
	if (cpu->irq_disabled > 1) {
		__atomic_store_n(&cpu->irq_disabled, cpu->irq_disabled - 1, __ATOMIC_RELAXED);
		return;
	}
	__atomic_store_n(&cpu->irq_disabled, 0, __ATOMIC_RELEASE);
	smp_mb_light(cpu); /* pairs with smp_mb_heavy() in smp_call_function_many() */
	if (unlikely(__atomic_load_n(&cpu->ipi_pending, __ATOMIC_ACQUIRE)))
		cpu->ipi_slow(cpu);
}

/*
 * A vCPU that the host has stopped (arch->vcpu_preemption): its TLB may be flushed for it, although its IRQs are off.
 *
 *   vCPU:    walk of page tables, IRQs off: RUNNING -> STOPPED ... STOPPED -> RUNNING, once nobody flushes
 *   flusher: STOPPED -> FLUSHING, flush the vCPU's TLB, FLUSHING -> STOPPED; anything else: an ordinary IPI
 *
 * Only sections that touch no TLB may be marked: the flusher is in the vCPU's place. "Stopped" is what the host might
 * do there; on every engine the vCPU goes on, which is the case that matters to whoever relies on IRQs being off.
 */
enum kmm_vcpu { KMM_VCPU_RUNNING, KMM_VCPU_STOPPED, KMM_VCPU_FLUSHING };

/* Context: IRQs off, no TLB access until vcpu_preempt_disable(). Does not nest. */
static inline void vcpu_preempt_enable(Cpu *cpu)
{
	kmm_xchg_32(cpu, &cpu->vcpu_preempted, KMM_VCPU_STOPPED);
}

/* Context: IRQs off; waits for a flusher, who waits for nobody. */
static inline void vcpu_preempt_disable(Cpu *cpu)
{
	while (kmm_cmpxchg_32(cpu, &cpu->vcpu_preempted, KMM_VCPU_STOPPED, KMM_VCPU_RUNNING) != KMM_VCPU_STOPPED)
		kmm_await_32(cpu, &cpu->vcpu_preempted, kmm_is_equal, KMM_VCPU_STOPPED);
}

/* Context: any. True = the target is stopped and its TLB the caller's, until vcpu_flush_end(). */
static inline bool vcpu_flush_begin(Cpu *cpu, Cpu *target)
{
	return kmm_cmpxchg_32(cpu, &target->vcpu_preempted, KMM_VCPU_STOPPED, KMM_VCPU_FLUSHING) == KMM_VCPU_STOPPED;
}

static inline void vcpu_flush_end(Cpu *cpu, Cpu *target)
{
	kmm_store_release_32(cpu, &target->vcpu_preempted, KMM_VCPU_STOPPED); /* pairs with vcpu_preempt_disable() */
}

#endif
