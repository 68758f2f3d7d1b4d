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

kmm_body int __srcu_read_lock(const struct engine_ops *engine, Cpu *cpu, struct srcu_struct *ssp)
{
	int idx = (int)(engine_load(engine, cpu, &ssp->srcu_idx) & 1);
	unsigned long *count = &ssp->sda[cpu->id].srcu_lock_count[idx];

	engine_store(engine, cpu, count, engine_load(engine, cpu, count) + 1);
	engine_mb_light(engine, cpu); /* pairs with smp_mb_heavy() at the start of a grace period */
	if (engine)
		kmm_event(cpu, KMM_EV_SRCU_LOCK, ssp, 0);
	return idx;
}

/* Context: process; may sleep inside; nests, and ends on the Cpu on which it began. */
static inline int srcu_read_lock(Cpu *cpu, struct srcu_struct *ssp)
{
	return KMM_ON_ENGINE(cpu, __srcu_read_lock, ssp);
}

kmm_body void __srcu_read_unlock(const struct engine_ops *engine, Cpu *cpu, struct srcu_struct *ssp, int idx)
{
	unsigned long *count = &ssp->sda[cpu->id].srcu_unlock_count[idx];

	if (engine)
		kmm_event(cpu, KMM_EV_SRCU_UNLOCK, ssp, 0);
	/* Release: pairs with the scan's acquire. */
	engine_store_release(engine, cpu, count, engine_load(engine, cpu, count) + 1);
}

static inline void srcu_read_unlock(Cpu *cpu, struct srcu_struct *ssp, int idx)
{
	KMM_ON_ENGINE(cpu, __srcu_read_unlock, ssp, idx);
}

#endif
