/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * include/linux/kernel.h, lockdep.h: what code says about its own context. A virtual engine hands it to
 * kernel/lockdep; native asks nothing, so a statement costs it one predicted branch. On hot paths it belongs
 * under a branch on cpu->engine that is there anyway.
 */
#ifndef KMM_LOCKDEP_H
#define KMM_LOCKDEP_H

#include "kmm/atomic.h"

struct srcu_struct;

/* Context: process, IRQs on, no spinlock, no RCU read section, no IPI handler: this is what it says. */
static inline void might_sleep(Cpu *cpu, const char *what)
{
	if (unlikely(cpu->engine))
		kmm_event(cpu, KMM_EV_MIGHT_SLEEP, what, 0);
}

/* Context: inside rcu_read_lock(). */
static inline void rcu_lockdep_assert(Cpu *cpu, const char *what)
{
	if (unlikely(cpu->engine))
		kmm_event(cpu, KMM_EV_RCU_ASSERT, what, 0);
}

/* Context: inside srcu_read_lock(ssp). */
static inline void srcu_lockdep_assert(Cpu *cpu, const struct srcu_struct *ssp)
{
	if (unlikely(cpu->engine))
		kmm_event(cpu, KMM_EV_SRCU_ASSERT, ssp, 0);
}

/* Context: IRQs on, not in an IPI handler; spinlocks may be held. The caller waits for other CPUs' interrupts. */
static inline void ipi_lockdep_wait(Cpu *cpu, const char *what)
{
	if (unlikely(cpu->engine))
		kmm_event(cpu, KMM_EV_IPI_WAIT, what, 0);
}

/* The next acquire of `lock` by this CPU is of `subclass` (spin_lock_nested()). Context: any. */
static inline void lock_set_subclass(Cpu *cpu, const void *lock, int subclass)
{
	if (unlikely(cpu->engine))
		kmm_event(cpu, KMM_EV_LOCK_NESTED, lock, (u64)subclass);
}

#endif
