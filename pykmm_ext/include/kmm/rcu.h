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

/* Context: any, IRQs on or off; nests. No sleeping inside. */
static inline void rcu_read_lock(Cpu *cpu)
{
	if (cpu->rcu_nesting++)
		return;
	/* One look at the engine for the three primitives. */
	if (likely(!cpu->engine)) {
		__atomic_store_n(&cpu->rcu_gp_ctr, __atomic_load_n(&cpu->machine->rcu.gp_ctr, __ATOMIC_RELAXED),
				 __ATOMIC_RELAXED);
		if (unlikely(cpu->light_is_mb))
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
		else
			barrier();
		return;
	}
	kmm_write_once(cpu, &cpu->rcu_gp_ctr, kmm_read_once(cpu, &cpu->machine->rcu.gp_ctr));
	smp_mb_light(cpu); /* pairs with smp_mb_heavy() at the start of a grace period */
	kmm_event(cpu, KMM_EV_RCU_LOCK, &cpu->machine->rcu, 0);
}

static inline void rcu_read_unlock(Cpu *cpu)
{
	if (--cpu->rcu_nesting)
		return;
	/* Release: pairs with the acquire of the grace period's scan. */
	if (likely(!cpu->engine)) {
		__atomic_store_n(&cpu->rcu_gp_ctr, 0, __ATOMIC_RELEASE);
		return;
	}
	kmm_event(cpu, KMM_EV_RCU_UNLOCK, &cpu->machine->rcu, 0);
	kmm_store_release(cpu, &cpu->rcu_gp_ctr, 0);
}

static inline bool rcu_read_lock_held(Cpu *cpu) { return cpu->rcu_nesting != 0; }

#endif
