/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/srcu.h: the read side. Each Cpu counts the sections that it entered and left under
 * either index, in words that it alone writes: no atomic, and no barrier instruction where Linux has
 * smp_mb() (its barriers B and C in srcutree.c):
 *
 *   B, lock: count, then the section's loads. Here smp_mb_light(), whose other half is the
 *      smp_mb_heavy() that starts a grace period and runs on every CPU.
 *   C, unlock: the section's accesses, then the count. Here a release store, whose other half is the
 *      acquire load of the unlock count in the scan.
 */
#ifndef KMM_SRCU_H
#define KMM_SRCU_H

#include "kmm/atomic.h"
#include "kmm/barrier.h"
#include "kmm/srcu_types.h"

/* Context: process; may sleep inside; nests, and ends on the Cpu on which it began. */
static inline int srcu_read_lock(Cpu *cpu, struct srcu_struct *ssp)
{
	unsigned long *count;
	int idx;

	/* One look at the engine for the three primitives. */
	if (likely(!cpu->engine)) {
		idx = (int)(__atomic_load_n(&ssp->srcu_idx, __ATOMIC_RELAXED) & 1);
		count = &ssp->sda[cpu->id].srcu_lock_count[idx];
		__atomic_store_n(count, *count + 1, __ATOMIC_RELAXED);
		if (unlikely(cpu->light_is_mb))
			__atomic_thread_fence(__ATOMIC_SEQ_CST);
		else
			barrier();
		return idx;
	}
	idx = (int)(kmm_read_once(cpu, &ssp->srcu_idx) & 1);
	count = &ssp->sda[cpu->id].srcu_lock_count[idx];
	kmm_write_once(cpu, count, kmm_read_once(cpu, count) + 1);
	smp_mb_light(cpu); /* pairs with smp_mb_heavy() at the start of a grace period */
	kmm_event(cpu, KMM_EV_SRCU_LOCK, ssp, 0);
	return idx;
}

static inline void srcu_read_unlock(Cpu *cpu, struct srcu_struct *ssp, int idx)
{
	unsigned long *count = &ssp->sda[cpu->id].srcu_unlock_count[idx];

	/* Release: pairs with the scan's acquire. */
	if (likely(!cpu->engine)) {
		__atomic_store_n(count, *count + 1, __ATOMIC_RELEASE);
		return;
	}
	kmm_event(cpu, KMM_EV_SRCU_UNLOCK, ssp, 0);
	/* Not *count: the last store to it may still be in the CPU's buffer. */
	kmm_store_release(cpu, count, kmm_read_once(cpu, count) + 1);
}

#endif
