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

static inline bool irqs_disabled(Cpu *cpu) { return cpu->irq_disabled != 0; }

#endif
