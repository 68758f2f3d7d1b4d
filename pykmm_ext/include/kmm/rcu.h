/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/rcupdate.h: the read side. A reader copies the machine's grace-period counter into its
 * Cpu and clears it at the end: two plain stores and no barrier instruction. kernel/rcu.pyx has the
 * argument why that is enough.
 */
#ifndef KMM_RCU_H
#define KMM_RCU_H

#include "kmm/atomic.h"
#include "kmm/barrier.h"
#include "kmm/mm_types.h"

kmm_body void rcu_reader_enters(const struct engine_ops *engine, Cpu *cpu, const unsigned long *gp_ctr)
{
	engine_store(engine, cpu, &cpu->rcu_gp_ctr, engine_load(engine, cpu, gp_ctr));
	engine_mb_light(engine, cpu); /* pairs with smp_mb_heavy() at the start of a grace period */
	if (engine)
		kmm_event(cpu, KMM_EV_RCU_LOCK, &cpu->machine->rcu, 0);
}

/* Context: any, IRQs on or off; nests. No sleeping inside. */
static inline void rcu_read_lock(Cpu *cpu)
{
	if (cpu->rcu_nesting++)
		return;
	KMM_ON_ENGINE(cpu, rcu_reader_enters, &cpu->machine->rcu.gp_ctr);
}

static inline void rcu_read_unlock(Cpu *cpu)
{
	if (--cpu->rcu_nesting)
		return;
	if (unlikely(cpu->engine))
		kmm_event(cpu, KMM_EV_RCU_UNLOCK, &cpu->machine->rcu, 0);
	kmm_store_release(cpu, &cpu->rcu_gp_ctr, 0); /* pairs with the acquire of the grace period's scan */
}

static inline bool rcu_read_lock_held(Cpu *cpu) { return cpu->rcu_nesting != 0; }

#endif
